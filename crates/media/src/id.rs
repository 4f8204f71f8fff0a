//! Media ids: the second half of an `mxc:` URI.
//!
//! An id becomes part of keys and of nothing else (files are named by the blob store), and still
//! only the characters of the specification pass: there is no id with a dot or a slash in it.

use std::fmt;

use homeserver_runtime::Entropy;

/// Characters of an id.
pub const MAX_MEDIA_ID: usize = 255;

/// Characters of the ids made here: 190 bits, nobody guesses one.
const NEW_ID_LENGTH: usize = 32;

/// The id is empty, too long, or holds other characters than `A-Z`, `a-z`, `0-9`, `_`, `-`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid media id")]
pub struct BadMediaId;

/// A well-formed media id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MediaId(String);

impl MediaId {
    /// Checks an id that came from outside.
    pub fn parse(text: &str) -> Result<Self, BadMediaId> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if (1..=MAX_MEDIA_ID).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadMediaId)
        }
    }

    pub(crate) fn new(entropy: &dyn Entropy) -> Self {
        Self(entropy.alphanumeric(NEW_ID_LENGTH))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MediaId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_characters_of_the_specification() {
        let long = "a".repeat(MAX_MEDIA_ID);
        for good in ["a", "AZaz09_-", long.as_str()] {
            assert!(MediaId::parse(good).is_ok(), "{good}");
        }
        let too_long = "a".repeat(MAX_MEDIA_ID + 1);
        let bad = [
            "",
            "..",
            "../x",
            "a/b",
            "a\\b",
            "a.b",
            "a%2e",
            "/etc/passwd",
            "a\0",
            "a\n",
            "ä",
            " a",
            "a b",
            too_long.as_str(),
        ];
        for bad in bad {
            assert_eq!(MediaId::parse(bad), Err(BadMediaId), "{bad:?}");
        }
    }
}

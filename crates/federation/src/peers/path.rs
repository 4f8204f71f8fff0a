//! Paths of requests, encoded once: the same text is signed and sent.

use std::fmt::Write as _;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Everything but what never needs it (RFC 3986, "Unreserved Characters").
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Path and query of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    /// An endpoint by its fixed words, from the first slash to the last word.
    #[must_use]
    pub fn of(endpoint: &str) -> Self {
        Self(endpoint.to_owned())
    }

    /// An endpoint of version 1, `state_ids` for `/_matrix/federation/v1/state_ids`.
    #[must_use]
    pub fn v1(endpoint: &str) -> Self {
        Self(format!("/_matrix/federation/v1/{endpoint}"))
    }

    /// An endpoint of version 2.
    #[must_use]
    pub fn v2(endpoint: &str) -> Self {
        Self(format!("/_matrix/federation/v2/{endpoint}"))
    }

    /// Adds a segment, of any characters. Comes before all of the query.
    #[must_use]
    pub fn segment(mut self, segment: impl AsRef<str>) -> Self {
        self.0.push('/');
        self.0
            .extend(utf8_percent_encode(segment.as_ref(), ENCODED));
        self
    }

    /// Adds a parameter of the query; several may have one name.
    #[must_use]
    pub fn query(mut self, name: &str, value: impl AsRef<str>) -> Self {
        let sign = if self.0.contains('?') { '&' } else { '?' };
        let value = utf8_percent_encode(value.as_ref(), ENCODED);
        // Writing to a string cannot fail.
        let _ = write!(self.0, "{sign}{name}={value}");
        self
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_but_unreserved_characters_is_encoded_once() {
        let path = Path::v1("state_ids")
            .segment("!a/b?c#d%e+f g:h")
            .query("event_id", "$ä&=;")
            .query("event_id", "x-._~");
        let wanted = "/_matrix/federation/v1/state_ids/%21a%2Fb%3Fc%23d%25e%2Bf%20g%3Ah?event_id=%24%C3%A4%26%3D%3B&event_id=x-._~";
        assert_eq!(path.as_str(), wanted);
        assert!(wanted.parse::<http::Uri>().is_ok());
        let path = Path::v2("send_join").segment("!a").segment("$b");
        assert_eq!(path.as_str(), "/_matrix/federation/v2/send_join/%21a/%24b");
        let path = Path::of("/_matrix/policy/v1/sign");
        assert_eq!(path.as_str(), "/_matrix/policy/v1/sign");
    }
}

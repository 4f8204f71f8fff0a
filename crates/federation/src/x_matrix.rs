//! The `Authorization` header of the scheme `X-Matrix`.
//!
//! Read as liberally as the specification asks: names in any case and order, values as tokens or
//! quoted with backslash escapes, unquoted values with colons, blanks round the commas, unknown
//! parameters. Written in the one form that every server reads.
//!
//! Specification: server-server API, "Request Authentication"; RFC 9110, section 11.4.

use std::fmt;

use ruma::{OwnedServerName, ServerName};

/// The longest header that is read, in bytes: two server names, a key id and a signature need less
/// than a quarter of it.
const MAX_LENGTH: usize = 4096;

/// One header: who asks whom, and a signature by one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XMatrix {
    /// The server that asks.
    pub origin: OwnedServerName,
    /// The server that is asked. Servers from before version 1.3 of the specification leave it out.
    pub destination: Option<OwnedServerName>,
    /// The id of the signing key with its algorithm, `ed25519:…`.
    pub key: String,
    /// The signature in base64.
    pub signature: String,
}

/// Why a header is not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum XMatrixError {
    /// Over 4,096 bytes, or not ASCII.
    #[error("the X-Matrix header is too long or not ASCII")]
    Characters,
    /// Not the scheme `X-Matrix` and at least one space.
    #[error("the authorisation scheme is not X-Matrix")]
    Scheme,
    /// Not a list of parameters as RFC 9110 has it.
    #[error("the X-Matrix header is malformed")]
    Form,
    /// A parameter stands twice.
    #[error("a parameter stands twice in the X-Matrix header")]
    Twice,
    /// `origin`, `key` or `sig` is missing.
    #[error("the X-Matrix header lacks {0}")]
    Missing(&'static str),
    /// `origin` or `destination` is no server name.
    #[error("{0} of the X-Matrix header is not a server name")]
    ServerName(&'static str),
}

impl XMatrix {
    /// Reads the value of an `Authorization` header.
    pub fn parse(header: &[u8]) -> Result<Self, XMatrixError> {
        let text = std::str::from_utf8(header).ok();
        let text = text.filter(|text| text.is_ascii() && text.len() <= MAX_LENGTH);
        let text = text.ok_or(XMatrixError::Characters)?;
        let (scheme, rest) = text.split_once(' ').ok_or(XMatrixError::Scheme)?;
        if !scheme.eq_ignore_ascii_case("X-Matrix") {
            return Err(XMatrixError::Scheme);
        }
        let mut found = Parameters::default();
        let mut rest = blanks(rest);
        loop {
            // Empty elements of a list are passed over, as RFC 9110 asks of recipients.
            while let Some(after) = rest.strip_prefix(',') {
                rest = blanks(after);
            }
            if rest.is_empty() {
                break;
            }
            let (name, value, after) = parameter(rest)?;
            found.note(name, value)?;
            rest = blanks(after);
            if !rest.is_empty() && !rest.starts_with(',') {
                return Err(XMatrixError::Form);
            }
        }
        found.finish()
    }
}

impl fmt::Display for XMatrix {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            origin,
            destination,
            key,
            signature,
        } = self;
        write!(formatter, "X-Matrix origin=\"{origin}\",")?;
        if let Some(destination) = destination {
            write!(formatter, "destination=\"{destination}\",")?;
        }
        write!(formatter, "key=\"{}\",", Escaped(key))?;
        write!(formatter, "sig=\"{}\"", Escaped(signature))
    }
}

/// The inside of a quoted string.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            if matches!(character, '"' | '\\') {
                write!(formatter, "\\")?;
            }
            write!(formatter, "{character}")?;
        }
        Ok(())
    }
}

#[derive(Default)]
struct Parameters {
    origin: Option<String>,
    destination: Option<String>,
    key: Option<String>,
    /// Called `sig` by every server, and `signature` in the specification's list.
    signature: Option<String>,
}

impl Parameters {
    fn note(&mut self, name: &str, value: String) -> Result<(), XMatrixError> {
        let place = match name.to_ascii_lowercase().as_str() {
            "origin" => &mut self.origin,
            "destination" => &mut self.destination,
            "key" => &mut self.key,
            "sig" | "signature" => &mut self.signature,
            _ => return Ok(()),
        };
        match place.replace(value) {
            Some(_) => Err(XMatrixError::Twice),
            None => Ok(()),
        }
    }

    fn finish(self) -> Result<XMatrix, XMatrixError> {
        let origin = self.origin.ok_or(XMatrixError::Missing("origin"))?;
        let destination = self
            .destination
            .map(|name| server_name(&name, "destination"));
        Ok(XMatrix {
            origin: server_name(&origin, "origin")?,
            destination: destination.transpose()?,
            key: self.key.ok_or(XMatrixError::Missing("key"))?,
            signature: self.signature.ok_or(XMatrixError::Missing("sig"))?,
        })
    }
}

fn server_name(text: &str, parameter: &'static str) -> Result<OwnedServerName, XMatrixError> {
    ServerName::parse(text).map_err(|_| XMatrixError::ServerName(parameter))
}

/// What comes after spaces and tabs.
fn blanks(text: &str) -> &str {
    text.trim_start_matches([' ', '\t'])
}

/// Splits `name=value` off: name, value, and what comes after it.
fn parameter(text: &str) -> Result<(&str, String, &str), XMatrixError> {
    let length = text.find(|c| !is_token(c)).ok_or(XMatrixError::Form)?;
    let (name, rest) = text.split_at(length);
    let rest = blanks(rest).strip_prefix('=').ok_or(XMatrixError::Form)?;
    let rest = blanks(rest);
    if name.is_empty() {
        return Err(XMatrixError::Form);
    }
    if let Some(quoted) = rest.strip_prefix('"') {
        let (value, rest) = unquote(quoted).ok_or(XMatrixError::Form)?;
        return Ok((name, value, rest));
    }
    let end = rest.find(|c| !is_unquoted(c)).unwrap_or(rest.len());
    let (value, rest) = rest.split_at(end);
    if value.is_empty() {
        return Err(XMatrixError::Form);
    }
    Ok((name, value.to_owned(), rest))
}

/// The value of a quoted string after its first quote, and what comes after its last.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            character => value.push(character),
        }
    }
    None
}

/// What RFC 9110, section 5.6.2, allows in a token.
fn is_token(character: char) -> bool {
    character.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(character)
}

/// What stands in values without quotes: tokens; colons and brackets of server names and key ids;
/// and what base64 adds, which old servers left unquoted as well.
fn is_unquoted(character: char) -> bool {
    is_token(character) || ":[]/=".contains(character)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ruma::server_name;

    use super::*;

    fn header() -> XMatrix {
        XMatrix {
            origin: server_name!("origin.example:8448").to_owned(),
            destination: Some(server_name!("here.example").to_owned()),
            key: "ed25519:a_key".to_owned(),
            signature: "ab+/cd".to_owned(),
        }
    }

    #[test]
    fn every_spelling_that_the_specification_allows_is_read() {
        let spellings = [
            r#"X-Matrix origin="origin.example:8448",destination="here.example",key="ed25519:a_key",sig="ab+/cd""#,
            r"X-Matrix origin=origin.example:8448,destination=here.example,key=ed25519:a_key,sig=ab+/cd",
            "x-matrix   SIG=\"ab+/cd\" ,\t Key=ed25519:a_key,\tdestination=\"here.example\" , ORIGIN=origin.example:8448",
            r#"X-Matrix origin="origin.exam\ple:8448",destination=here.example,key="ed25519\:a_key",sig="ab+/cd",new="\"x\",y=z""#,
            r#"X-Matrix ,origin="origin.example:8448",,destination="here.example",key="ed25519:a_key",sig="ab+/cd","#,
            r#"X-Matrix origin = "origin.example:8448",destination="here.example",key="ed25519:a_key",signature="ab+/cd""#,
        ];
        for spelling in spellings {
            assert_eq!(
                XMatrix::parse(spelling.as_bytes()),
                Ok(header()),
                "{spelling}"
            );
        }
    }

    #[test]
    fn the_destination_may_be_missing_and_names_may_be_addresses() {
        let read =
            XMatrix::parse(br#"X-Matrix origin=[::1]:8448,key="ed25519:1",sig="s==""#).unwrap();
        assert_eq!(read.origin, "[::1]:8448");
        assert_eq!(read.destination, None);
        assert_eq!(read.signature, "s==");
    }

    #[test]
    fn what_is_no_such_header_is_refused() {
        let cases: [(&[u8], XMatrixError); 13] = [
            (b"", XMatrixError::Scheme),
            (b"Bearer abc", XMatrixError::Scheme),
            (b"X-Matrix", XMatrixError::Scheme),
            (b"X-Matrix ", XMatrixError::Missing("origin")),
            (b"X-Matrix origin=a,key=b", XMatrixError::Missing("sig")),
            (b"X-Matrix origin=a,sig=b", XMatrixError::Missing("key")),
            (
                b"X-Matrix origin=a,origin=a,key=b,sig=c",
                XMatrixError::Twice,
            ),
            (
                b"X-Matrix origin=a,sig=b,signature=b,key=c",
                XMatrixError::Twice,
            ),
            (b"X-Matrix origin=\"a,key=b,sig=c", XMatrixError::Form),
            (b"X-Matrix origin=a key=b,sig=c", XMatrixError::Form),
            (b"X-Matrix =a", XMatrixError::Form),
            (
                b"X-Matrix origin=\"a b\",key=b,sig=c",
                XMatrixError::ServerName("origin"),
            ),
            (
                b"X-Matrix origin=\xff,key=b,sig=c",
                XMatrixError::Characters,
            ),
        ];
        for (text, why) in cases {
            assert_eq!(
                XMatrix::parse(text),
                Err(why),
                "{:?}",
                text.escape_ascii().to_string()
            );
        }
        let long = format!("X-Matrix origin=a,key=b,sig={}", "c".repeat(MAX_LENGTH));
        assert_eq!(
            XMatrix::parse(long.as_bytes()),
            Err(XMatrixError::Characters)
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            origin in "[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?(:[0-9]{1,4})?",
            destination in proptest::option::of("[a-z0-9]{1,20}(:[0-9]{1,4})?"),
            key in "[ -~]{1,30}",
            signature in "[ -~]{0,90}",
        ) {
            let written = XMatrix {
                origin: ServerName::parse(&origin).unwrap(),
                destination: destination.map(|name| ServerName::parse(&name).unwrap()),
                key,
                signature,
            };
            prop_assert_eq!(XMatrix::parse(written.to_string().as_bytes()), Ok(written));
        }

        #[test]
        fn nothing_makes_it_panic(text in "X-Matrix [ -~]{0,60}", bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = XMatrix::parse(text.as_bytes());
            let _ = XMatrix::parse(&bytes);
        }
    }
}

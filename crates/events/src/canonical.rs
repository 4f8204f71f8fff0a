//! Canonical JSON: reading it with the strictness of a room version, and writing it
//! ([appendices, canonical JSON][1]).
//!
//! Writing is the same for all versions: shortest form, keys sorted by code point. Reading differs:
//!
//! * [`Strictness::Strict`] (room versions 6 and later, and everything that is not an event) refuses
//!   fractions, exponents, `-0`, integers outside ±(2^53 − 1) and **duplicate keys**.
//! * [`Strictness::Lenient`] (room versions 1 to 5) keeps integers of any size digit by digit, turns
//!   `-0` into `0`, and of duplicate keys keeps the last, as other servers do. A fraction or exponent
//!   is kept as it is if it already is the shortest decimal form that servers of that time print;
//!   otherwise it is brought into that form, or written as an integer if it is one.
//!
//! Both refuse what is not JSON at all (`NaN`, numbers beyond a double, lone surrogates, control
//! characters in strings) and nesting beyond [`crate::limits::MAX_JSON_DEPTH`].
//!
//! [1]: https://spec.matrix.org/v1.19/appendices/#canonical-json

mod number;
mod parse;
mod write;

use std::collections::BTreeMap;

pub use parse::{parse, parse_object};
pub use write::{to_string, to_string_without, write_value};

/// A JSON object with its keys in canonical order.
pub type CanonicalObject = BTreeMap<String, CanonicalValue>;

/// How exactly canonical JSON is enforced when reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strictness {
    /// What room versions 1 to 5 may contain.
    Lenient,
    /// What the specification calls canonical JSON.
    Strict,
}

/// A JSON value that can be written canonically.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CanonicalValue {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// An integer of 64 bits.
    Integer(i64),
    /// The canonical text of any other number; only lenient reading gives it.
    Number(Box<str>),
    /// A string, unescaped.
    String(String),
    /// An array.
    Array(Vec<CanonicalValue>),
    /// An object.
    Object(CanonicalObject),
}

impl CanonicalValue {
    /// The string, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            CanonicalValue::String(text) => Some(text),
            _ => None,
        }
    }

    /// The object, if it is one.
    pub fn as_object(&self) -> Option<&CanonicalObject> {
        match self {
            CanonicalValue::Object(object) => Some(object),
            _ => None,
        }
    }

    /// The array, if it is one.
    pub fn as_array(&self) -> Option<&[CanonicalValue]> {
        match self {
            CanonicalValue::Array(values) => Some(values),
            _ => None,
        }
    }

    /// The integer, if it is one of 64 bits.
    pub fn as_integer(&self) -> Option<i64> {
        match self {
            CanonicalValue::Integer(number) => Some(*number),
            _ => None,
        }
    }
}

impl From<&str> for CanonicalValue {
    fn from(text: &str) -> Self {
        CanonicalValue::String(text.to_owned())
    }
}

impl From<String> for CanonicalValue {
    fn from(text: String) -> Self {
        CanonicalValue::String(text)
    }
}

/// Why a text is not acceptable canonical JSON. Positions are byte offsets into the input.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CanonicalError {
    /// The text is not JSON.
    #[error("not valid JSON at byte {0}")]
    Syntax(usize),
    /// The text is not UTF-8.
    #[error("not valid UTF-8")]
    Encoding,
    /// Arrays and objects are nested too deeply.
    #[error("nested deeper than {} levels", crate::limits::MAX_JSON_DEPTH)]
    TooDeep,
    /// A number that canonical JSON does not allow.
    #[error("the number at byte {0} is not allowed in canonical JSON")]
    Number(usize),
    /// A key stands twice in one object.
    #[error("the key {0:?} stands twice in one object")]
    DuplicateKey(String),
    /// An object was expected.
    #[error("not a JSON object")]
    NotAnObject,
}

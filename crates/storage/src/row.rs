//! Rows: what is stored under a key.
//!
//! A row is one byte of format version, then postcard. A type keeps its version until its layout
//! changes; then [`Row::decode`] of the new type reads both. Raw forms (`()`, `u64`, [`Bytes`])
//! have no version byte: they cannot change.

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use smallvec::SmallVec;

use crate::{
    Position,
    key::{At, DecodeError, KeyWriter, Placeholder},
};

/// What can be stored as a row. Serde types get it from [`row!`](crate::row!).
pub trait Row: Sized {
    /// The bytes. A position that is not yet given is written as 0.
    fn encode(&self) -> Vec<u8>;

    /// Reads what [`Row::encode`] wrote, in this or an older format version.
    fn decode(bytes: &[u8]) -> Result<Self, DecodeError>;

    /// Appends the bytes to a batch. The default copies from [`Row::encode`]; types that can write
    /// in place do so.
    fn write(&self, writer: &mut RowWriter<'_>) {
        writer.raw(&self.encode());
    }
}

/// Collects the bytes of a row.
#[derive(Debug)]
pub struct RowWriter<'a> {
    bytes: &'a mut Vec<u8>,
    placeholders: &'a mut SmallVec<[Placeholder; 4]>,
    failed: bool,
}

impl<'a> RowWriter<'a> {
    pub(crate) fn new(
        bytes: &'a mut Vec<u8>,
        placeholders: &'a mut SmallVec<[Placeholder; 4]>,
    ) -> Self {
        Self {
            bytes,
            placeholders,
            failed: false,
        }
    }

    /// Appends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends a position as eight big-endian bytes, perhaps one that this batch will be given.
    pub fn position(&mut self, at: At) {
        KeyWriter::new(self.bytes, self.placeholders).position(at);
    }

    /// Appends a format version byte and the postcard form of `value`.
    pub fn versioned<T: Serialize>(&mut self, version: u8, value: &T) {
        self.bytes.push(version);
        let appended = postcard::serialize_with_flavor(value, Appending(self.bytes));
        self.failed |= appended.is_err();
    }

    /// Whether a value could not be written (serde said so); such a batch is refused.
    pub(crate) fn failed(&self) -> bool {
        self.failed
    }
}

/// Lets postcard write at the end of a vector that others write to as well.
struct Appending<'a>(&'a mut Vec<u8>);

impl postcard::ser_flavors::Flavor for Appending<'_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// Makes a serde type a row of the given format version: `row!(MyType, 1);`
#[macro_export]
macro_rules! row {
    ($name:ty, $version:literal) => {
        impl $crate::Row for $name {
            fn encode(&self) -> Vec<u8> {
                $crate::row::encode_versioned($version, self)
            }
            fn decode(bytes: &[u8]) -> Result<Self, $crate::DecodeError> {
                $crate::row::decode_versioned($version, ::std::stringify!($name), bytes)
            }
            fn write(&self, writer: &mut $crate::RowWriter<'_>) {
                writer.versioned($version, self);
            }
        }
    };
}

/// The bytes of a row of format `version`. For [`row!`](crate::row!) and hand-written rows.
pub fn encode_versioned<T: Serialize>(version: u8, value: &T) -> Vec<u8> {
    let (mut bytes, mut placeholders) = (Vec::with_capacity(64), SmallVec::new());
    RowWriter::new(&mut bytes, &mut placeholders).versioned(version, value);
    bytes
}

/// Reads a row that must be of format `version`.
///
/// # Errors
/// When the version is another one, the bytes are not the type's, or some are left over.
pub fn decode_versioned<T: DeserializeOwned>(
    version: u8,
    name: &'static str,
    bytes: &[u8],
) -> Result<T, DecodeError> {
    let (found, rest) = bytes
        .split_first()
        .ok_or_else(|| DecodeError::new(name, "the row is empty"))?;
    if *found != version {
        let why = format!("it has format version {found}, this program knows {version}");
        return Err(DecodeError::new(name, why));
    }
    match postcard::take_from_bytes(rest) {
        Ok((value, [])) => Ok(value),
        Ok((_, left)) => Err(DecodeError::new(
            name,
            format!("{} bytes too many", left.len()),
        )),
        Err(error) => Err(DecodeError::new(name, error.to_string())),
    }
}

impl Row for () {
    fn encode(&self) -> Vec<u8> {
        Vec::new()
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::new("()", "the row is not empty"))
        }
    }
}

impl Row for u64 {
    fn encode(&self) -> Vec<u8> {
        self.to_be_bytes().to_vec()
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let array = bytes
            .try_into()
            .map_err(|_| DecodeError::new("u64", format!("{} bytes", bytes.len())))?;
        Ok(Self::from_be_bytes(array))
    }

    fn write(&self, writer: &mut RowWriter<'_>) {
        writer.raw(&self.to_be_bytes());
    }
}

/// A position as a row, perhaps one that this very batch is given.
impl Row for At {
    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Known(position) => position.encode(),
            Self::Append(_) => 0_u64.encode(),
        }
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        Position::decode(bytes).map(Self::Known)
    }

    fn write(&self, writer: &mut RowWriter<'_>) {
        writer.position(*self);
    }
}

impl Row for Bytes {
    fn encode(&self) -> Vec<u8> {
        self.to_vec()
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self::copy_from_slice(bytes))
    }

    fn write(&self, writer: &mut RowWriter<'_>) {
        writer.raw(self);
    }
}

/// A row that begins with a position, perhaps one that this very batch is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Positioned<V> {
    /// The position; always [`At::Known`] when read.
    pub position: At,
    /// The rest of the row.
    pub value: V,
}

impl<V> Positioned<V> {
    /// `value` at `position`.
    pub fn new(position: impl Into<At>, value: V) -> Self {
        Self {
            position: position.into(),
            value,
        }
    }

    /// The position of a row that was read; 0 in one whose batch is not committed yet.
    pub fn known(&self) -> Position {
        match self.position {
            At::Known(position) => position,
            At::Append(_) => 0,
        }
    }
}

impl<V: Row> Row for Positioned<V> {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = self.position.encode();
        bytes.extend_from_slice(&self.value.encode());
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (position, rest) = bytes
            .split_at_checked(8)
            .ok_or_else(|| DecodeError::new("Positioned", "it ends early"))?;
        Ok(Self {
            position: At::decode(position)?,
            value: V::decode(rest)?,
        })
    }

    fn write(&self, writer: &mut RowWriter<'_>) {
        writer.position(self.position);
        self.value.write(writer);
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Example {
        name: String,
        count: u32,
    }
    row!(Example, 3);

    #[test]
    fn the_layout_is_fixed() {
        let row = Example {
            name: "ab".to_owned(),
            count: 300,
        };
        assert_eq!(row.encode(), [3, 2, b'a', b'b', 0xac, 2]);
        assert_eq!(Example::decode(&row.encode()).unwrap(), row);
        let positioned = Positioned::new(7, row);
        assert_eq!(
            positioned.encode(),
            [0, 0, 0, 0, 0, 0, 0, 7, 3, 2, b'a', b'b', 0xac, 2]
        );
        assert_eq!(
            Positioned::decode(&positioned.encode()).unwrap(),
            positioned
        );
    }

    #[test]
    fn another_version_and_left_over_bytes_are_errors() {
        let newer = Example::decode(&[4, 0, 0]).unwrap_err();
        assert_eq!(
            newer.to_string(),
            "stored bytes cannot be read as Example: it has format version 4, this program knows 3"
        );
        assert!(Example::decode(&[3, 0, 0, 9]).is_err());
        assert!(Example::decode(&[]).is_err());
        assert!(<()>::decode(&[1]).is_err());
        assert!(u64::decode(&[1; 7]).is_err());
    }
}

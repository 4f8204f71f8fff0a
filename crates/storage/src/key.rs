//! Keys: order-preserving tuples.
//!
//! A key is a tuple of integers (big-endian, signed ones with the sign bit flipped), byte arrays
//! and strings (0x00 escaped as 0x00 0xFF, ended by 0x00 0x01), so that the order of the bytes is
//! the order of the tuples, and a leading part of a tuple is a prefix of its bytes. A [`Table`]
//! puts its own number in front.
//!
//! [`Table`]: crate::Table

use std::borrow::Cow;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::{Position, batch::AppendRef};

/// Ends a string. Smaller than [`ESCAPED_ZERO`], so that a string sorts before its extensions.
const TERMINATOR: [u8; 2] = [0x00, 0x01];
/// A zero byte within a string.
const ESCAPED_ZERO: [u8; 2] = [0x00, 0xff];

/// A stored key or value is not what its type says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("stored bytes cannot be read as {expected}: {why}")]
pub struct DecodeError {
    /// What was being read.
    pub expected: &'static str,
    /// What is wrong with it.
    pub why: Cow<'static, str>,
}

impl DecodeError {
    /// `why` it is not an `expected`.
    pub fn new(expected: &'static str, why: impl Into<Cow<'static, str>>) -> Self {
        Self {
            expected,
            why: why.into(),
        }
    }
}

/// What can be written as a key (or as a leading part of one): keys themselves and their borrowed
/// or not yet known forms, such as `(u64, &str)` for `(u64, String)` and [`At`] for [`Position`].
pub trait ToKey {
    /// The key type it is written as.
    type Key;
    /// Appends the bytes.
    fn write(&self, writer: &mut KeyWriter<'_>);
}

/// A key that can be read back. A newtype gets both traits from [`key!`](crate::key!).
pub trait Key: ToKey<Key = Self> + Sized {
    /// Takes the bytes that [`ToKey::write`] appended.
    fn read(reader: &mut KeyReader<'_>) -> Result<Self, DecodeError>;
}

/// Makes a newtype over a key type a key: `key!(RoomNumber(u64));`
#[macro_export]
macro_rules! key {
    ($name:ident($inner:ty)) => {
        impl $crate::ToKey for $name {
            type Key = Self;
            fn write(&self, writer: &mut $crate::KeyWriter<'_>) {
                $crate::ToKey::write(&self.0, writer);
            }
        }
        impl $crate::Key for $name {
            fn read(reader: &mut $crate::KeyReader<'_>) -> Result<Self, $crate::DecodeError> {
                Ok(Self(<$inner as $crate::Key>::read(reader)?))
            }
        }
    };
}

/// A place in a batch's bytes that the committer fills with the position of one of its appends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Placeholder {
    /// Offset of eight bytes, big-endian.
    pub(crate) offset: u32,
    /// Which append of the batch.
    pub(crate) append: u16,
}

/// Collects the bytes of a key.
#[derive(Debug)]
pub struct KeyWriter<'a> {
    bytes: &'a mut Vec<u8>,
    placeholders: &'a mut SmallVec<[Placeholder; 4]>,
}

impl<'a> KeyWriter<'a> {
    pub(crate) fn new(
        bytes: &'a mut Vec<u8>,
        placeholders: &'a mut SmallVec<[Placeholder; 4]>,
    ) -> Self {
        Self {
            bytes,
            placeholders,
        }
    }

    /// Appends bytes as they are; for parts of fixed length.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends bytes of any length, escaped and terminated.
    pub fn terminated(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some(zero) = rest.iter().position(|byte| *byte == 0) {
            self.bytes.extend_from_slice(&rest[..zero]);
            self.bytes.extend_from_slice(&ESCAPED_ZERO);
            rest = &rest[zero + 1..];
        }
        self.bytes.extend_from_slice(rest);
        self.bytes.extend_from_slice(&TERMINATOR);
    }

    /// Appends a position, perhaps one that this batch will be given.
    pub fn position(&mut self, at: At) {
        match at {
            At::Known(position) => self.raw(&position.to_be_bytes()),
            At::Append(append) => {
                self.placeholders.push(Placeholder {
                    offset: self.bytes.len() as u32,
                    append: append.0,
                });
                self.raw(&[0; 8]);
            }
        }
    }
}

/// Takes a key apart.
#[derive(Debug)]
pub struct KeyReader<'a> {
    rest: &'a [u8],
}

impl<'a> KeyReader<'a> {
    /// Reads from the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next `N` bytes.
    pub fn raw<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or_else(|| DecodeError::new("a key", "it ends early"))?;
        self.rest = rest;
        Ok(*taken)
    }

    /// The next escaped and terminated bytes.
    pub fn terminated(&mut self) -> Result<Vec<u8>, DecodeError> {
        let mut taken = Vec::new();
        loop {
            let zero = self
                .rest
                .iter()
                .position(|byte| *byte == 0)
                .ok_or_else(|| DecodeError::new("a key", "a string in it has no end"))?;
            taken.extend_from_slice(&self.rest[..zero]);
            let mark = self.rest.get(zero..zero + 2).map(<[u8]>::to_vec);
            self.rest = self.rest.get(zero + 2..).unwrap_or_default();
            match mark.as_deref() {
                Some(mark) if mark == ESCAPED_ZERO => taken.push(0),
                Some(mark) if mark == TERMINATOR => return Ok(taken),
                _ => return Err(DecodeError::new("a key", "a string in it is badly escaped")),
            }
        }
    }

    /// Fails unless everything was read.
    pub fn end(&self) -> Result<(), DecodeError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::new("a key", "it is longer than its type"))
        }
    }
}

macro_rules! unsigned_keys {
    ($($integer:ty),*) => {$(
        impl ToKey for $integer {
            type Key = Self;
            fn write(&self, writer: &mut KeyWriter<'_>) {
                writer.raw(&self.to_be_bytes());
            }
        }
        impl Key for $integer {
            fn read(reader: &mut KeyReader<'_>) -> Result<Self, DecodeError> {
                Ok(Self::from_be_bytes(reader.raw()?))
            }
        }
    )*};
}
unsigned_keys!(u8, u16, u32, u64, u128);

impl ToKey for i64 {
    type Key = Self;
    fn write(&self, writer: &mut KeyWriter<'_>) {
        writer.raw(&(self.cast_unsigned() ^ (1 << 63)).to_be_bytes());
    }
}

impl Key for i64 {
    fn read(reader: &mut KeyReader<'_>) -> Result<Self, DecodeError> {
        Ok((u64::read(reader)? ^ (1 << 63)).cast_signed())
    }
}

impl ToKey for bool {
    type Key = Self;
    fn write(&self, writer: &mut KeyWriter<'_>) {
        writer.raw(&[u8::from(*self)]);
    }
}

impl Key for bool {
    fn read(reader: &mut KeyReader<'_>) -> Result<Self, DecodeError> {
        match u8::read(reader)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(DecodeError::new("bool", format!("{other} is neither"))),
        }
    }
}

impl<const N: usize> ToKey for [u8; N] {
    type Key = Self;
    fn write(&self, writer: &mut KeyWriter<'_>) {
        writer.raw(self);
    }
}

impl<const N: usize> Key for [u8; N] {
    fn read(reader: &mut KeyReader<'_>) -> Result<Self, DecodeError> {
        reader.raw()
    }
}

impl ToKey for str {
    type Key = String;
    fn write(&self, writer: &mut KeyWriter<'_>) {
        writer.terminated(self.as_bytes());
    }
}

impl ToKey for String {
    type Key = Self;
    fn write(&self, writer: &mut KeyWriter<'_>) {
        writer.terminated(self.as_bytes());
    }
}

impl Key for String {
    fn read(reader: &mut KeyReader<'_>) -> Result<Self, DecodeError> {
        Self::from_utf8(reader.terminated()?)
            .map_err(|_| DecodeError::new("String", "it is not UTF-8"))
    }
}

impl ToKey for Bytes {
    type Key = Self;
    fn write(&self, writer: &mut KeyWriter<'_>) {
        writer.terminated(self);
    }
}

impl Key for Bytes {
    fn read(reader: &mut KeyReader<'_>) -> Result<Self, DecodeError> {
        Ok(reader.terminated()?.into())
    }
}

impl<T: ToKey + ?Sized> ToKey for &T {
    type Key = T::Key;
    fn write(&self, writer: &mut KeyWriter<'_>) {
        (**self).write(writer);
    }
}

/// The empty key: the single row of a table, or the prefix of all rows.
impl ToKey for () {
    type Key = Self;
    fn write(&self, _writer: &mut KeyWriter<'_>) {}
}

impl Key for () {
    fn read(_reader: &mut KeyReader<'_>) -> Result<Self, DecodeError> {
        Ok(())
    }
}

/// A number that sorts greatest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reverse64(pub u64);

impl ToKey for Reverse64 {
    type Key = Self;
    fn write(&self, writer: &mut KeyWriter<'_>) {
        (!self.0).write(writer);
    }
}

impl Key for Reverse64 {
    fn read(reader: &mut KeyReader<'_>) -> Result<Self, DecodeError> {
        Ok(Self(!u64::read(reader)?))
    }
}

/// A position in a key or row: a known one, or the one that an append of the same batch will be
/// given. Written where a [`Position`] stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// This position.
    Known(Position),
    /// The position of this append of the same batch.
    Append(AppendRef),
}

impl ToKey for At {
    type Key = Position;
    fn write(&self, writer: &mut KeyWriter<'_>) {
        writer.position(*self);
    }
}

impl From<Position> for At {
    fn from(position: Position) -> Self {
        Self::Known(position)
    }
}

impl From<AppendRef> for At {
    fn from(append: AppendRef) -> Self {
        Self::Append(append)
    }
}

macro_rules! tuple_keys {
    ($(($($name:ident . $index:tt),+))*) => {$(
        impl<$($name: ToKey),+> ToKey for ($($name,)+) {
            type Key = ($($name::Key,)+);
            fn write(&self, writer: &mut KeyWriter<'_>) {
                $(self.$index.write(writer);)+
            }
        }
        impl<$($name: Key),+> Key for ($($name,)+) {
            fn read(reader: &mut KeyReader<'_>) -> Result<Self, DecodeError> {
                Ok(($($name::read(reader)?,)+))
            }
        }
    )*};
}
tuple_keys! {
    (A.0)
    (A.0, B.1)
    (A.0, B.1, C.2)
    (A.0, B.1, C.2, D.3)
    (A.0, B.1, C.2, D.3, E.4)
    (A.0, B.1, C.2, D.3, E.4, F.5)
}

/// The bytes of a key that holds no placeholder (a placeholder reads as position 0).
pub fn key_bytes(key: &impl ToKey) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(32);
    write_key(key, &mut bytes);
    bytes
}

/// Appends the bytes of a key to `bytes`; placeholders are written as position 0.
pub(crate) fn write_key(key: &impl ToKey, bytes: &mut Vec<u8>) {
    let mut none = SmallVec::new();
    key.write(&mut KeyWriter::new(bytes, &mut none));
    debug_assert!(
        none.is_empty(),
        "only a batch can hold a position yet to be given"
    );
}

/// Reads a whole key.
pub fn read_key<K: Key>(bytes: &[u8]) -> Result<K, DecodeError> {
    let mut reader = KeyReader::new(bytes);
    let key = K::read(&mut reader)?;
    reader.end()?;
    Ok(key)
}

#[cfg(test)]
mod tests;

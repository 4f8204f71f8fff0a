//! A batch: puts, deletes, asserts and journal appends that happen together or not at all.
//!
//! All bytes of a batch lie in one vector; operations are spans of it. A position that an append
//! will be given is a placeholder in those bytes, which the committer fills in.

use smallvec::SmallVec;

use crate::{
    At, Entry, Key, Position, Row, RowWriter, Table, ToKey, Topic,
    journal::Filed,
    key::{KeyWriter, Placeholder},
    system::{JOURNAL, TOPIC_ENTRIES},
};

/// Bytes of a key, its table's number included.
pub const MAX_KEY: usize = 511;
/// Bytes of a value.
pub const MAX_VALUE: usize = 128 * 1024;
/// Puts, deletes and asserts of a batch; an append counts one and one for each topic.
pub const MAX_OPS: usize = 1_000;
/// Bytes of all keys and values of a batch.
pub const MAX_BATCH: usize = 5_000_000;
/// Topics of one append.
pub const MAX_TOPICS: usize = 8;

/// Names an append of a batch, before its position is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AppendRef(pub(crate) u16);

impl AppendRef {
    /// Index into [`Committed::positions`](crate::Committed::positions).
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Names an assert of a batch, to recognise which one failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AssertRef(pub(crate) u16);

/// A batch, or a part of it, is over a limit. Never split silently: the caller must.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {size} is over the limit of {limit}")]
pub struct TooLarge {
    /// What is too large, with its unit.
    pub what: &'static str,
    /// How large it is.
    pub size: usize,
    /// How large it may be.
    pub limit: usize,
}

/// How the references of a batch changed when it was added to another.
#[derive(Debug, Clone, Copy)]
pub struct Shift {
    appends: u16,
    asserts: u16,
}

impl Shift {
    /// What an append of the added batch is called now.
    #[must_use]
    pub fn append(self, reference: AppendRef) -> AppendRef {
        AppendRef(reference.0 + self.appends)
    }

    /// What an assert of the added batch is called now.
    #[must_use]
    pub fn assert(self, reference: AssertRef) -> AssertRef {
        AssertRef(reference.0 + self.asserts)
    }
}

/// Changes that happen together or not at all. See the module.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    ops: Vec<Op>,
    asserts: SmallVec<[Assert; 4]>,
    placeholders: SmallVec<[Placeholder; 4]>,
    appends: u16,
    refused: Option<Refused>,
}

/// Why a batch cannot be submitted; remembered from where it happened.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Refused {
    TooLarge(TooLarge),
    Malformed(&'static str),
}

/// A part of a batch's bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    start: u32,
    length: u32,
}

/// A put, or a delete where there is no value.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Op {
    pub(crate) key: Span,
    pub(crate) value: Option<Span>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Assert {
    pub(crate) key: Span,
    pub(crate) expected: Expected,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Expected {
    Absent,
    Present,
    Value(Span),
}

impl Batch {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes a row, in place of one that is there.
    pub fn put<K: Key, V: Row>(
        &mut self,
        table: &Table<K, V>,
        key: &impl ToKey<Key = K>,
        value: &V,
    ) {
        let key = self.key(table, key);
        let value = Some(self.value(value));
        self.ops.push(Op { key, value });
    }

    /// Removes a row, if it is there.
    pub fn delete<K: Key, V: Row>(&mut self, table: &Table<K, V>, key: &impl ToKey<Key = K>) {
        let key = self.key(table, key);
        self.ops.push(Op { key, value: None });
    }

    /// The batch is dropped if there is such a row.
    pub fn assert_absent<K: Key, V: Row>(
        &mut self,
        table: &Table<K, V>,
        key: &impl ToKey<Key = K>,
    ) -> AssertRef {
        self.assert(table, key, |_| Expected::Absent)
    }

    /// The batch is dropped if there is no such row.
    pub fn assert_present<K: Key, V: Row>(
        &mut self,
        table: &Table<K, V>,
        key: &impl ToKey<Key = K>,
    ) -> AssertRef {
        self.assert(table, key, |_| Expected::Present)
    }

    /// The batch is dropped unless the row's bytes are those of `value`.
    pub fn assert_value<K: Key, V: Row>(
        &mut self,
        table: &Table<K, V>,
        key: &impl ToKey<Key = K>,
        value: &V,
    ) -> AssertRef {
        self.assert(table, key, |batch| Expected::Value(batch.value(value)))
    }

    fn assert<K: Key, V: Row>(
        &mut self,
        table: &Table<K, V>,
        key: &impl ToKey<Key = K>,
        expected: impl FnOnce(&mut Self) -> Expected,
    ) -> AssertRef {
        let placeholders = self.placeholders.len();
        let key = self.key(table, key);
        let expected = expected(self);
        if self.placeholders.len() != placeholders {
            self.refuse(Refused::Malformed(
                "an assert names a position of its own batch",
            ));
        }
        let reference = AssertRef(self.asserts.len() as u16);
        self.asserts.push(Assert { key, expected });
        reference
    }

    /// Appends a journal entry under `topics`. It is given its position in the commit.
    pub fn append(&mut self, entry: &Entry, topics: &[Topic]) -> AppendRef {
        if topics.len() > MAX_TOPICS {
            let (size, limit) = (topics.len(), MAX_TOPICS);
            let what = "topics of an append";
            self.refuse(Refused::TooLarge(TooLarge { what, size, limit }));
        }
        let reference = AppendRef(self.appends);
        self.appends = self.appends.saturating_add(1);
        let at = At::Append(reference);
        self.put(&JOURNAL, &at, &Filed::new(entry, topics));
        for topic in topics {
            self.put(&TOPIC_ENTRIES, &(topic.kind, topic.id, at), &());
        }
        reference
    }

    /// Removes a journal entry that a newer one replaces; `topics` are those it was appended under.
    pub fn remove_entry(&mut self, position: Position, topics: &[Topic]) {
        self.delete(&JOURNAL, &position);
        for topic in topics {
            self.delete(&TOPIC_ENTRIES, &(topic.kind, topic.id, position));
        }
    }

    /// Adds all of `other` after what is here; its references are [`Shift`]ed.
    pub fn extend(&mut self, other: &Self) -> Shift {
        let shift = Shift {
            appends: self.appends,
            asserts: self.asserts.len() as u16,
        };
        let base = self.bytes.len() as u32;
        let moved = |span: Span| Span {
            start: span.start + base,
            length: span.length,
        };
        self.bytes.extend_from_slice(&other.bytes);
        self.ops.extend(other.ops.iter().map(|op| Op {
            key: moved(op.key),
            value: op.value.map(moved),
        }));
        self.asserts
            .extend(other.asserts.iter().map(|assert| Assert {
                key: moved(assert.key),
                expected: match assert.expected {
                    Expected::Value(span) => Expected::Value(moved(span)),
                    expected => expected,
                },
            }));
        let placeholders = other.placeholders.iter().map(|placeholder| Placeholder {
            offset: placeholder.offset + base,
            append: placeholder.append + shift.appends,
        });
        self.placeholders.extend(placeholders);
        self.appends = self.appends.saturating_add(other.appends);
        self.refused = self.refused.or(other.refused);
        shift
    }

    /// Puts, deletes and asserts in it, those of appends included. Compare [`MAX_OPS`].
    pub fn len(&self) -> usize {
        self.ops.len() + self.asserts.len()
    }

    /// Whether it does nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of its keys and values. Compare [`MAX_BATCH`].
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// How many journal entries it appends.
    pub fn appends(&self) -> usize {
        usize::from(self.appends)
    }

    /// Whether it is within the limits and well made.
    pub(crate) fn check(&self) -> Result<(), Refused> {
        if let Some(refused) = self.refused {
            return Err(refused);
        }
        let within = |what, size, limit| {
            if size > limit {
                return Err(Refused::TooLarge(TooLarge { what, size, limit }));
            }
            Ok(())
        };
        within("operations of a batch", self.len(), MAX_OPS)?;
        within("bytes of a batch", self.bytes(), MAX_BATCH)
    }

    /// A put of bytes as they are, for copies of whole databases.
    pub(crate) fn put_raw(&mut self, key: &[u8], value: &[u8]) {
        let key = self.raw(key);
        let value = Some(self.raw(value));
        self.ops.push(Op { key, value });
    }

    /// The same changes, whatever the rows are now.
    pub(crate) fn without_asserts(mut self) -> Self {
        self.asserts.clear();
        self
    }

    pub(crate) fn ops(&self) -> &[Op] {
        &self.ops
    }

    pub(crate) fn asserts(&self) -> &[Assert] {
        &self.asserts
    }

    pub(crate) fn span(&self, span: Span) -> &[u8] {
        &self.bytes[span.start as usize..][..span.length as usize]
    }

    /// Fills in the positions, the first append being given `first`.
    pub(crate) fn give_positions(&mut self, first: Position) {
        for placeholder in &self.placeholders {
            let position = first + Position::from(placeholder.append);
            let place = &mut self.bytes[placeholder.offset as usize..][..8];
            place.copy_from_slice(&position.to_be_bytes());
        }
    }

    fn raw(&mut self, bytes: &[u8]) -> Span {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        self.span_from(start)
    }

    fn key<K: Key, V: Row>(&mut self, table: &Table<K, V>, key: &impl ToKey<Key = K>) -> Span {
        let start = self.bytes.len();
        self.bytes.push(table.spec().id);
        key.write(&mut KeyWriter::new(&mut self.bytes, &mut self.placeholders));
        let span = self.span_from(start);
        self.limit("bytes of a key", span, MAX_KEY);
        span
    }

    fn value<V: Row>(&mut self, value: &V) -> Span {
        let start = self.bytes.len();
        let mut writer = RowWriter::new(&mut self.bytes, &mut self.placeholders);
        value.write(&mut writer);
        if writer.failed() {
            self.refuse(Refused::Malformed("a row cannot be written by serde"));
        }
        let span = self.span_from(start);
        self.limit("bytes of a value", span, MAX_VALUE);
        span
    }

    fn span_from(&self, start: usize) -> Span {
        Span {
            start: start as u32,
            length: (self.bytes.len() - start) as u32,
        }
    }

    fn limit(&mut self, what: &'static str, span: Span, limit: usize) {
        let size = span.length as usize;
        if size > limit {
            self.refuse(Refused::TooLarge(TooLarge { what, size, limit }));
        }
    }

    /// Remembers the first reason.
    fn refuse(&mut self, why: Refused) {
        self.refused.get_or_insert(why);
    }
}

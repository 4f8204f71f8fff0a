//! Cutting a JSON object into its parts while it arrives: the elements of its long lists one by
//! one, all else together.
//!
//! An answer with the state of a room may be as large as the peer likes. Nothing of it is held here
//! but what is cut off next, under a bound, and what does not belong to the lists, under another.
//! What comes out is what reading the whole answer at once would give: the same elements, and an
//! error wherever that would be one.

use bytes::{Bytes, BytesMut};
use serde_json::value::RawValue;

#[cfg(test)]
mod tests;

/// Bytes of one element: an event, which may have an `unsigned` beside its 64 KiB.
pub(crate) const MAX_ELEMENT: usize = 1024 * 1024;
/// Bytes of all that does not belong to the lists: most of it is the names of the servers in the
/// room, of which large rooms have ten thousands.
pub(crate) const MAX_REST: usize = 8 * 1024 * 1024;

/// Why an answer cannot be cut.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SplitError {
    /// It is no JSON object.
    #[error("not a JSON object: {0}")]
    Syntax(&'static str),
    /// A list is there twice.
    #[error("{0} is there twice")]
    Twice(&'static str),
    /// A list is not there, or something else is in its place.
    #[error("{0} is no list")]
    NoList(&'static str),
    /// An element, or all that is around the lists, is too large.
    #[error("{0} too large")]
    TooLarge(&'static str),
}

/// What may come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// The object.
    Object,
    /// A key, or the end of the object if none came before.
    Key { first: bool },
    /// The colon after a key of the rest, or of a list.
    Colon(Option<usize>),
    /// A value that belongs to the rest.
    Value,
    /// The beginning of a list.
    List(usize),
    /// An element of a list, or its end if none came before.
    Element { list: usize, first: bool },
    /// What stands after an element.
    AfterElement(usize),
    /// What stands after a value of the object.
    AfterValue,
    /// Nothing.
    End,
}

/// Cuts one answer.
#[derive(Debug)]
pub(crate) struct Splitter<const N: usize> {
    lists: [&'static str; N],
    seen: [bool; N],
    next: Next,
    /// What has arrived and is not cut off yet.
    held: BytesMut,
    scan: Scan,
    /// The object without the lists.
    rest: Vec<u8>,
}

impl<const N: usize> Splitter<N> {
    /// Cuts an object with these lists, each of which must be there.
    pub(crate) fn new(lists: [&'static str; N]) -> Self {
        Self {
            lists,
            seen: [false; N],
            next: Next::Object,
            held: BytesMut::new(),
            scan: Scan::default(),
            rest: Vec::new(),
        }
    }

    /// Takes what has arrived, and gives the elements that are whole, each with the number of its
    /// list.
    pub(crate) fn take(&mut self, chunk: &[u8]) -> Result<Vec<(usize, Bytes)>, SplitError> {
        self.held.extend_from_slice(chunk);
        let mut elements = Vec::new();
        while self.step(&mut elements)? {}
        Ok(elements)
    }

    /// The object without its lists, when all has arrived.
    pub(crate) fn finish(self) -> Result<Bytes, SplitError> {
        let beyond = self.held.iter().any(|byte| !is_space(*byte));
        if self.next != Next::End || beyond {
            return Err(SplitError::Syntax("it breaks off"));
        }
        let lists = self.lists.iter().zip(self.seen);
        for (list, seen) in lists {
            if !seen {
                return Err(SplitError::NoList(list));
            }
        }
        Ok(self.rest.into())
    }

    /// Takes one token, if it is whole. Gives whether there may be another.
    fn step(&mut self, elements: &mut Vec<(usize, Bytes)>) -> Result<bool, SplitError> {
        if self.scan.is_fresh() {
            let spaces = self.held.iter().take_while(|byte| is_space(**byte)).count();
            let _ = self.held.split_to(spaces);
        }
        let Some(byte) = self.held.first().copied() else {
            return Ok(false);
        };
        match (self.next, byte) {
            (Next::Object, b'{') => self.past(Next::Key { first: true }, b"{")?,
            (Next::Key { first: true } | Next::AfterValue, b'}') => self.past(Next::End, b"}")?,
            (Next::AfterValue, b',') => self.past(Next::Key { first: false }, b"")?,
            (Next::Key { .. }, b'"') => return self.key(),
            (Next::Colon(None), b':') => self.past(Next::Value, b":")?,
            (Next::Colon(Some(list)), b':') => self.past(Next::List(list), b"")?,
            (Next::Value, _) => {
                let Some(value) = self.token(MAX_REST)? else {
                    return Ok(false);
                };
                self.keep(&value)?;
                self.next = Next::AfterValue;
            }
            (Next::List(list), b'[') => self.past(Next::Element { list, first: true }, b"")?,
            (Next::List(list), _) => return Err(SplitError::NoList(self.lists[list])),
            (Next::Element { first: true, .. } | Next::AfterElement(_), b']') => {
                self.past(Next::AfterValue, b"")?;
            }
            (Next::AfterElement(list), b',') => {
                self.past(Next::Element { list, first: false }, b"")?;
            }
            (Next::Element { list, .. }, _) => {
                let Some(element) = self.token(MAX_ELEMENT)? else {
                    return Ok(false);
                };
                is_json(&element)?;
                elements.push((list, element));
                self.next = Next::AfterElement(list);
            }
            _ => return Err(SplitError::Syntax("something is out of place")),
        }
        Ok(true)
    }

    /// Goes past one byte, for which this is written to the rest.
    fn past(&mut self, next: Next, kept: &[u8]) -> Result<(), SplitError> {
        let _ = self.held.split_to(1);
        self.next = next;
        self.keep(kept)
    }

    /// A key: of a list, which is cut out of the rest, or of the rest.
    fn key(&mut self) -> Result<bool, SplitError> {
        let Some(text) = self.token(MAX_REST)? else {
            return Ok(false);
        };
        let no_string = |_| SplitError::Syntax("a key is no string");
        let key: String = serde_json::from_slice(&text).map_err(no_string)?;
        let list = self.lists.iter().position(|list| **list == key);
        if let Some(list) = list {
            if std::mem::replace(&mut self.seen[list], true) {
                return Err(SplitError::Twice(self.lists[list]));
            }
        } else {
            if self.rest.len() > 1 {
                self.keep(b",")?;
            }
            self.keep(&text)?;
        }
        self.next = Next::Colon(list);
        Ok(true)
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), SplitError> {
        if self.rest.len() + bytes.len() > MAX_REST {
            return Err(SplitError::TooLarge("what is around the lists is"));
        }
        self.rest.extend_from_slice(bytes);
        Ok(())
    }

    /// The next value as it stands there, if it is whole.
    fn token(&mut self, most: usize) -> Result<Option<Bytes>, SplitError> {
        let end = self.scan.end(&self.held);
        if end.unwrap_or(self.held.len()) > most {
            return Err(SplitError::TooLarge("an element is"));
        }
        let Some(end) = end else { return Ok(None) };
        self.scan = Scan::default();
        Ok(Some(self.held.split_to(end).freeze()))
    }
}

/// Finds the end of a value. It tells strings from brackets; all else is left to who reads the
/// value.
#[derive(Debug, Default)]
struct Scan {
    /// Bytes that were looked at.
    at: usize,
    /// Arrays and objects that are open.
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Scan {
    fn is_fresh(&self) -> bool {
        self.at == 0
    }

    /// The length of the value that `held` begins with; `None` if more has to come.
    fn end(&mut self, held: &[u8]) -> Option<usize> {
        while let Some(byte) = held.get(self.at).copied() {
            if self.in_string {
                self.at += 1;
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => {
                        self.in_string = false;
                        if self.depth == 0 {
                            return Some(self.at);
                        }
                    }
                    _ => {}
                }
                continue;
            }
            match byte {
                // A number or a word ends where something else begins.
                b',' | b']' | b'}' | b':' if self.depth == 0 => return Some(self.at),
                byte if self.depth == 0 && self.at > 0 && is_space(byte) => return Some(self.at),
                b'"' if self.depth == 0 && self.at > 0 => return Some(self.at),
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        self.at += 1;
                        return Some(self.at);
                    }
                }
                _ => {}
            }
            self.at += 1;
        }
        None
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Whether an element is JSON at all: if not, nothing of the answer is.
fn is_json(element: &[u8]) -> Result<(), SplitError> {
    let read: Result<&RawValue, _> = serde_json::from_slice(element);
    read.map(drop).map_err(|_| SplitError::Syntax("an element"))
}

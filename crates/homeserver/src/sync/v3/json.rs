//! A writer of JSON that puts the commas, so that events that are JSON already are copied as they
//! are.

use serde_json::value::RawValue;

use crate::client_event::string;

/// JSON being written: puts the commas.
#[derive(Debug, Default)]
pub(super) struct Json {
    pub(super) bytes: Vec<u8>,
}

impl Json {
    fn comma(&mut self) {
        if !matches!(self.bytes.last(), None | Some(b'{' | b'[' | b':')) {
            self.bytes.push(b',');
        }
    }

    /// The next member of the object being written; its value must follow.
    pub(super) fn name(&mut self, name: &str) -> &mut Self {
        self.comma();
        string(&mut self.bytes, name);
        self.bytes.push(b':');
        self
    }

    /// The next item of the array being written; its value must follow.
    pub(super) fn item(&mut self) -> &mut Self {
        self.comma();
        self
    }

    pub(super) fn object(&mut self, write: impl FnOnce(&mut Self)) {
        self.bytes.push(b'{');
        write(self);
        self.bytes.push(b'}');
    }

    pub(super) fn array(&mut self, write: impl FnOnce(&mut Self)) {
        self.bytes.push(b'[');
        write(self);
        self.bytes.push(b']');
    }

    pub(super) fn string(&mut self, value: &str) {
        string(&mut self.bytes, value);
    }

    pub(super) fn number(&mut self, value: u64) {
        self.bytes.extend_from_slice(value.to_string().as_bytes());
    }

    pub(super) fn boolean(&mut self, value: bool) {
        let text: &[u8] = if value { b"true" } else { b"false" };
        self.bytes.extend_from_slice(text);
    }

    pub(super) fn raw(&mut self, value: &RawValue) {
        self.bytes.extend_from_slice(value.get().as_bytes());
    }
}

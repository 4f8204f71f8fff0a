//! A recursive-descent JSON reader, bounded in depth, that keeps number texts exact.
//!
//! `serde_json` is not used for this: without its `arbitrary_precision` feature it loses large
//! integers, and it neither reports duplicate keys nor tells `-0` from `0.0`.

use super::{CanonicalError, CanonicalObject, CanonicalValue, Strictness, number};
use crate::limits::MAX_JSON_DEPTH;

/// Reads one JSON value, and nothing after it but white space.
pub fn parse(json: &[u8], strictness: Strictness) -> Result<CanonicalValue, CanonicalError> {
    let text = std::str::from_utf8(json).map_err(|_| CanonicalError::Encoding)?;
    let mut reader = Reader {
        text,
        at: 0,
        strictness,
    };
    reader.skip_space();
    let value = reader.value(0)?;
    reader.skip_space();
    if reader.at == text.len() {
        Ok(value)
    } else {
        Err(CanonicalError::Syntax(reader.at))
    }
}

/// Reads one JSON object.
pub fn parse_object(
    json: &[u8],
    strictness: Strictness,
) -> Result<CanonicalObject, CanonicalError> {
    match parse(json, strictness)? {
        CanonicalValue::Object(object) => Ok(object),
        _ => Err(CanonicalError::NotAnObject),
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    strictness: Strictness,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn syntax<T>(&self) -> Result<T, CanonicalError> {
        Err(CanonicalError::Syntax(self.at))
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    fn expect(&mut self, byte: u8) -> Result<(), CanonicalError> {
        if self.peek() == Some(byte) {
            self.at += 1;
            Ok(())
        } else {
            self.syntax()
        }
    }

    /// `depth` is the number of arrays and objects around this value.
    fn value(&mut self, depth: usize) -> Result<CanonicalValue, CanonicalError> {
        match self.peek() {
            Some(b'{') => self.object(depth + 1).map(CanonicalValue::Object),
            Some(b'[') => self.array(depth + 1).map(CanonicalValue::Array),
            Some(b'"') => self.string().map(CanonicalValue::String),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word("true", CanonicalValue::Bool(true)),
            Some(b'f') => self.word("false", CanonicalValue::Bool(false)),
            Some(b'n') => self.word("null", CanonicalValue::Null),
            _ => self.syntax(),
        }
    }

    fn word(
        &mut self,
        word: &str,
        value: CanonicalValue,
    ) -> Result<CanonicalValue, CanonicalError> {
        if self.text.as_bytes()[self.at..].starts_with(word.as_bytes()) {
            self.at += word.len();
            Ok(value)
        } else {
            self.syntax()
        }
    }

    fn object(&mut self, depth: usize) -> Result<CanonicalObject, CanonicalError> {
        if depth > MAX_JSON_DEPTH {
            return Err(CanonicalError::TooDeep);
        }
        self.at += 1;
        let mut object = CanonicalObject::new();
        self.skip_space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(object);
        }
        loop {
            self.skip_space();
            if self.peek() != Some(b'"') {
                return self.syntax();
            }
            let key = self.string()?;
            self.skip_space();
            self.expect(b':')?;
            self.skip_space();
            let value = self.value(depth)?;
            if self.strictness == Strictness::Strict && object.contains_key(&key) {
                return Err(CanonicalError::DuplicateKey(key));
            }
            object.insert(key, value);
            self.skip_space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(object);
                }
                _ => return self.syntax(),
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<Vec<CanonicalValue>, CanonicalError> {
        if depth > MAX_JSON_DEPTH {
            return Err(CanonicalError::TooDeep);
        }
        self.at += 1;
        let mut values = Vec::new();
        self.skip_space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(values);
        }
        loop {
            self.skip_space();
            values.push(self.value(depth)?);
            self.skip_space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(values);
                }
                _ => return self.syntax(),
            }
        }
    }

    fn number(&mut self) -> Result<CanonicalValue, CanonicalError> {
        let start = self.at;
        let bytes = self.text.as_bytes();
        let digits = |mut at: usize| {
            while bytes.get(at).is_some_and(u8::is_ascii_digit) {
                at += 1;
            }
            at
        };
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        let whole = self.at;
        self.at = digits(whole);
        let leading_zero = bytes.get(whole) == Some(&b'0') && self.at > whole + 1;
        if self.at == whole || leading_zero {
            return self.syntax();
        }
        let mut integer = true;
        if self.peek() == Some(b'.') {
            integer = false;
            let fraction = self.at + 1;
            self.at = digits(fraction);
            if self.at == fraction {
                return self.syntax();
            }
        }
        if let Some(b'e' | b'E') = self.peek() {
            integer = false;
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            let exponent = self.at;
            self.at = digits(exponent);
            if self.at == exponent {
                return self.syntax();
            }
        }
        let text = &self.text[start..self.at];
        let value = match (self.strictness, integer) {
            (Strictness::Strict, true) => number::strict_integer(text),
            (Strictness::Strict, false) => None,
            (Strictness::Lenient, true) => Some(number::lenient_integer(text)),
            (Strictness::Lenient, false) => number::lenient_float(text),
        };
        value.ok_or(CanonicalError::Number(start))
    }

    /// Reads a string from its opening quote on.
    fn string(&mut self) -> Result<String, CanonicalError> {
        self.at += 1;
        let mut out = String::new();
        loop {
            let start = self.at;
            let bytes = self.text.as_bytes();
            while let Some(&byte) = bytes.get(self.at) {
                if byte == b'"' || byte == b'\\' || byte < 0x20 {
                    break;
                }
                self.at += 1;
            }
            let run = &self.text[start..self.at];
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    if out.is_empty() {
                        return Ok(run.to_owned());
                    }
                    out.push_str(run);
                    return Ok(out);
                }
                Some(b'\\') => {
                    out.push_str(run);
                    self.at += 1;
                    let character = self.escape()?;
                    out.push(character);
                }
                _ => return self.syntax(),
            }
        }
    }

    /// Reads what follows a backslash.
    fn escape(&mut self) -> Result<char, CanonicalError> {
        let character = match self.peek() {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                self.at += 1;
                return self.unicode_escape();
            }
            _ => return self.syntax(),
        };
        self.at += 1;
        Ok(character)
    }

    fn unicode_escape(&mut self) -> Result<char, CanonicalError> {
        let first = self.four_hex_digits()?;
        let code = match first {
            0xD800..=0xDBFF => {
                self.expect(b'\\')?;
                self.expect(b'u')?;
                let second = self.four_hex_digits()?;
                if !(0xDC00..=0xDFFF).contains(&second) {
                    return self.syntax();
                }
                0x1_0000 + ((first - 0xD800) << 10) + (second - 0xDC00)
            }
            code => code,
        };
        // A lone low surrogate is no character either.
        char::from_u32(code).ok_or(CanonicalError::Syntax(self.at))
    }

    fn four_hex_digits(&mut self) -> Result<u32, CanonicalError> {
        let mut code = 0;
        for _ in 0..4 {
            let digit = self.peek().and_then(|byte| char::from(byte).to_digit(16));
            let Some(digit) = digit else {
                return self.syntax();
            };
            code = code * 16 + digit;
            self.at += 1;
        }
        Ok(code)
    }
}

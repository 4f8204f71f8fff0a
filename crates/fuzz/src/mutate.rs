//! Making an input out of others.
//!
//! Half of the mutations know nothing but bytes; the others look for what JSON, and much other
//! text, is made of: values, strings, digits. They work on text that is no longer JSON, too.

use std::ops::Range;

use crate::dice::Dice;

/// Mutations of one input at most.
const MOST_MUTATIONS: usize = 6;
/// Bytes of an input at most; more than an event may have.
const MAX_INPUT: usize = 80 * 1024;
/// How often a part is repeated, or a value wrapped: around the limits that formats have.
const COUNTS: [usize; 16] = [
    2, 3, 10, 11, 20, 21, 63, 64, 65, 126, 127, 128, 129, 255, 256, 300,
];

/// Numbers at the edges of what is allowed, and texts that look like numbers.
const NUMBERS: [&str; 24] = [
    "0",
    "-0",
    "1",
    "-1",
    "255",
    "256",
    "65535",
    "65536",
    "2147483648",
    "4294967296",
    "9007199254740991",
    "9007199254740992",
    "-9007199254740991",
    "-9007199254740992",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e3",
    "1.0",
    "1e400",
    "1E-7",
    "00",
    "+1",
];
/// Values that stand where others are expected.
const VALUES: [&str; 12] = [
    "null",
    "true",
    "false",
    "{}",
    "[]",
    "\"\"",
    "[null]",
    "{\"\":{}}",
    "[[],{}]",
    "NaN",
    "1.5",
    "\"*\"",
];
/// What strings are made of where they hurt.
const TEXTS: [&str; 14] = [
    "\\u0000",
    "\\ud800",
    "\\udc00",
    "\\ud83d\\ude00",
    "\\\"",
    "\\/",
    "\\n",
    "\u{0}",
    "\u{7f}",
    "\u{202e}",
    "\u{df}",
    "\u{130}",
    "\u{1f600}",
    "*?*",
];
/// Bytes that mean something to some format.
const BYTES: [u8; 16] = [
    0, 1, 0x7f, 0x80, 0xff, b'"', b'\\', b'{', b'}', b'[', b']', b',', b':', b'.', b'%', b'\n',
];

/// Makes one input.
pub(crate) struct Mutator<'a> {
    pub(crate) dice: Dice,
    words: &'a [Vec<u8>],
    pool: Vec<&'a [u8]>,
}

impl<'a> Mutator<'a> {
    pub(crate) fn new(dice: Dice, words: &'a [Vec<u8>], pool: &'a [Vec<u8>]) -> Self {
        let pool = pool.iter().map(Vec::as_slice).collect();
        Self { dice, words, pool }
    }

    /// One of the pool, mutated a few times.
    pub(crate) fn input(&mut self) -> Vec<u8> {
        let mut bytes = self.other().to_vec();
        for _ in 0..=self.dice.below(MOST_MUTATIONS) {
            self.mutate(&mut bytes);
            if self.dice.one_in(3) {
                break;
            }
        }
        bytes.truncate(MAX_INPUT);
        bytes
    }

    fn other(&mut self) -> &'a [u8] {
        self.dice.pick(&self.pool).copied().unwrap_or_default()
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        match self.dice.below(16) {
            0 => self.flip(bytes),
            1 => self.overwrite(bytes),
            2 => self.insert_bytes(bytes),
            3 => drop(bytes.drain(self.dice.range(bytes.len()))),
            4 => self.repeat(bytes),
            5 => bytes.truncate(self.dice.below(bytes.len() + 1)),
            6 => self.splice(bytes),
            7 => self.insert_part(bytes),
            8 | 9 => self.insert_word(bytes),
            10 => self.number(bytes),
            11 => self.wrap(bytes),
            12 | 13 => self.value(bytes),
            14 => self.string(bytes),
            _ => self.member(bytes),
        }
    }

    fn count(&mut self) -> usize {
        self.dice.pick(&COUNTS).copied().unwrap_or(1)
    }

    fn flip(&mut self, bytes: &mut [u8]) {
        let at = self.dice.below(bytes.len());
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 1 << self.dice.below(8);
        }
    }

    fn overwrite(&mut self, bytes: &mut [u8]) {
        let at = self.dice.below(bytes.len());
        let random = self.dice.number() as u8;
        let byte = self.dice.pick(&BYTES).copied().unwrap_or(random);
        if let Some(place) = bytes.get_mut(at) {
            *place = byte;
        }
    }

    fn insert_bytes(&mut self, bytes: &mut Vec<u8>) {
        let at = self.dice.below(bytes.len() + 1);
        let random = self.dice.number().to_le_bytes();
        let length = 1 + self.dice.below(random.len());
        bytes.splice(at..at, random[..length].iter().copied());
    }

    /// Repeats a part, mostly once, sometimes often.
    fn repeat(&mut self, bytes: &mut Vec<u8>) {
        let part = bytes[self.dice.range(bytes.len())].to_vec();
        let often = self.dice.one_in(8);
        let times = if often { self.count() } else { 1 };
        let at = self.dice.below(bytes.len() + 1);
        bytes.splice(at..at, part.repeat(times));
        bytes.truncate(MAX_INPUT);
    }

    /// The head of this and the tail of another.
    fn splice(&mut self, bytes: &mut Vec<u8>) {
        let other = self.other();
        bytes.truncate(self.dice.below(bytes.len() + 1));
        bytes.extend_from_slice(&other[self.dice.below(other.len() + 1)..]);
    }

    fn insert_part(&mut self, bytes: &mut Vec<u8>) {
        let other = self.other();
        let part = &other[self.dice.range(other.len())];
        let at = self.dice.below(bytes.len() + 1);
        bytes.splice(at..at, part.iter().copied());
    }

    fn word(&mut self) -> Vec<u8> {
        let edge = match self.dice.below(4) {
            0 => self.dice.pick(&NUMBERS),
            1 => self.dice.pick(&TEXTS),
            _ => self.dice.pick(&VALUES),
        };
        let edge = edge.map(|text| text.as_bytes().to_vec());
        match self.dice.pick(self.words) {
            Some(word) if !self.dice.one_in(3) => word.clone(),
            _ => edge.unwrap_or_default(),
        }
    }

    /// Puts a word in, or in the place of a few bytes.
    fn insert_word(&mut self, bytes: &mut Vec<u8>) {
        let word = self.word();
        let at = self.dice.below(bytes.len() + 1);
        let replaced = if self.dice.one_in(2) { 0 } else { word.len() };
        let end = (at + replaced).min(bytes.len());
        bytes.splice(at..end, word);
    }

    /// Puts another number in the place of digits.
    fn number(&mut self, bytes: &mut Vec<u8>) {
        let Some(start) = self.find(bytes, |byte| byte.is_ascii_digit()) else {
            return self.insert_word(bytes);
        };
        let digits = bytes[start..]
            .iter()
            .take_while(|byte| byte.is_ascii_digit());
        let range = start..start + digits.count();
        let number = self.dice.pick(&NUMBERS).copied().unwrap_or_default();
        bytes.splice(range, number.bytes());
    }

    /// Wraps a value in arrays or objects.
    fn wrap(&mut self, bytes: &mut Vec<u8>) {
        let Some(range) = self.some_value(bytes) else {
            return self.repeat(bytes);
        };
        let often = self.dice.one_in(3);
        let times = if often { self.count() } else { 1 };
        let (open, close) = if self.dice.one_in(2) {
            ("[", "]")
        } else {
            ("{\"a\":", "}")
        };
        let mut wrapped = open.repeat(times).into_bytes();
        wrapped.extend_from_slice(&bytes[range.clone()]);
        wrapped.extend_from_slice(close.repeat(times).as_bytes());
        bytes.splice(range, wrapped);
    }

    /// Puts another value in the place of a value.
    fn value(&mut self, bytes: &mut Vec<u8>) {
        let Some(range) = self.some_value(bytes) else {
            return self.insert_word(bytes);
        };
        let other = self.other();
        let value = match self.some_value(other) {
            Some(found) if self.dice.one_in(2) => other[found].to_vec(),
            _ => self.word(),
        };
        bytes.splice(range, value);
    }

    /// Makes a string long, or puts something ugly into it.
    fn string(&mut self, bytes: &mut Vec<u8>) {
        let Some(quote) = self.find(bytes, |byte| byte == b'"') else {
            return self.insert_bytes(bytes);
        };
        let text = self.dice.pick(&TEXTS).copied().unwrap_or_default();
        let text = match self.dice.below(4) {
            0 => "a".repeat(self.count()),
            1 => text.repeat(self.count()),
            _ => text.to_owned(),
        };
        let inside = quote + 1;
        bytes.splice(inside..inside, text.bytes());
    }

    /// Doubles or removes what stands between two commas.
    fn member(&mut self, bytes: &mut Vec<u8>) {
        let Some(start) = self.find(bytes, |byte| matches!(byte, b'{' | b'[' | b',')) else {
            return self.insert_part(bytes);
        };
        let start = start + 1;
        let key_end = value_end(bytes, start);
        let colon = bytes.get(key_end) == Some(&b':');
        let end = if colon {
            value_end(bytes, key_end + 1)
        } else {
            key_end
        };
        if self.dice.one_in(2) {
            let comma = usize::from(bytes.get(end) == Some(&b','));
            bytes.drain(start..end + comma);
        } else {
            let mut member = bytes[start..end].to_vec();
            member.push(b',');
            bytes.splice(start..start, member);
        }
    }

    /// A byte that is `wanted`, from a random place on.
    fn find(&mut self, bytes: &[u8], wanted: impl Fn(u8) -> bool) -> Option<usize> {
        let from = self.dice.below(bytes.len());
        let mut places = (from..bytes.len()).chain(0..from);
        places.find(|&at| bytes.get(at).is_some_and(|byte| wanted(*byte)))
    }

    /// Where some JSON value stands; the whole text counts as one.
    fn some_value(&mut self, bytes: &[u8]) -> Option<Range<usize>> {
        let whole = self.dice.one_in(8) && !bytes.is_empty();
        let before = self.find(bytes, |byte| matches!(byte, b':' | b'[' | b','))?;
        let start = if whole { 0 } else { before + 1 };
        let end = value_end(bytes, start);
        (start < end).then_some(start..end)
    }
}

/// Where the JSON value that starts at `start` ends, as far as its quotes and brackets tell.
fn value_end(bytes: &[u8], start: usize) -> usize {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for (at, &byte) in bytes.iter().enumerate().skip(start) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' | b',' | b':' if depth == 0 => return at,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
    }
    bytes.len()
}

//! Writing canonical JSON. It cannot fail: every [`CanonicalValue`] has exactly one text.

use std::fmt::Write;

use super::{CanonicalObject, CanonicalValue};

/// The canonical text of an object.
pub fn to_string(object: &CanonicalObject) -> String {
    to_string_without(object, &[])
}

/// The canonical text of an object as if it did not have these top-level keys.
pub fn to_string_without(object: &CanonicalObject, left_out: &[&str]) -> String {
    let mut out = String::with_capacity(512);
    write_object(object, left_out, &mut out);
    out
}

/// Appends the canonical text of a value.
pub fn write_value(value: &CanonicalValue, out: &mut String) {
    match value {
        CanonicalValue::Null => out.push_str("null"),
        CanonicalValue::Bool(true) => out.push_str("true"),
        CanonicalValue::Bool(false) => out.push_str("false"),
        CanonicalValue::Integer(number) => write_integer(*number, out),
        CanonicalValue::Number(text) => out.push_str(text),
        CanonicalValue::String(text) => write_string(text, out),
        CanonicalValue::Array(values) => {
            out.push('[');
            for (index, value) in values.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_value(value, out);
            }
            out.push(']');
        }
        CanonicalValue::Object(object) => write_object(object, &[], out),
    }
}

fn write_object(object: &CanonicalObject, left_out: &[&str], out: &mut String) {
    out.push('{');
    let mut first = true;
    for (key, value) in object {
        if left_out.contains(&key.as_str()) {
            continue;
        }
        if !first {
            out.push(',');
        }
        first = false;
        write_string(key, out);
        out.push(':');
        write_value(value, out);
    }
    out.push('}');
}

fn write_integer(number: i64, out: &mut String) {
    // Writing to a String cannot fail.
    let _ = write!(out, "{number}");
}

fn write_string(text: &str, out: &mut String) {
    out.push('"');
    let mut written = 0;
    for (at, byte) in text.bytes().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.push_str(&text[written..at]);
        written = at + 1;
        match byte {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            0x08 => out.push_str("\\b"),
            0x09 => out.push_str("\\t"),
            0x0a => out.push_str("\\n"),
            0x0c => out.push_str("\\f"),
            0x0d => out.push_str("\\r"),
            _ => {
                let _ = write!(out, "\\u{byte:04x}");
            }
        }
    }
    out.push_str(&text[written..]);
    out.push('"');
}

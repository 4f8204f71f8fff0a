//! The numbers of canonical JSON, strict and as events of old rooms contain them.

use super::CanonicalValue;
use crate::limits::MAX_CANONICAL_INTEGER;

/// [`MAX_CANONICAL_INTEGER`] as a double.
const MAX_EXACT_INTEGER: f64 = 9_007_199_254_740_991.0;

/// An integer that canonical JSON allows; `text` is a JSON integer.
pub(super) fn strict_integer(text: &str) -> Option<CanonicalValue> {
    let number: i64 = text.parse().ok()?;
    let in_range = (-MAX_CANONICAL_INTEGER..=MAX_CANONICAL_INTEGER).contains(&number);
    (in_range && text != "-0").then_some(CanonicalValue::Integer(number))
}

/// Any JSON integer, digit by digit.
pub(super) fn lenient_integer(text: &str) -> CanonicalValue {
    match text.parse() {
        Ok(number) => CanonicalValue::Integer(number),
        Err(_) => CanonicalValue::Number(text.into()),
    }
}

/// A number with a fraction or an exponent, if a double can hold it.
///
/// The events of old rooms were hashed over what Python's `json` printed, which is `repr(float)`:
/// a number in that form stays as it is, so that such events keep their hashes. Any other form of
/// an integer becomes the integer (`1e10` is `10000000000` in the specification's example).
pub(super) fn lenient_float(text: &str) -> Option<CanonicalValue> {
    let value: f64 = text.parse().ok()?;
    if !value.is_finite() {
        return None;
    }
    let printed = python_repr(value);
    if printed == text {
        return Some(CanonicalValue::Number(printed.into()));
    }
    if value.fract() == 0.0 && value.abs() <= MAX_EXACT_INTEGER {
        return Some(CanonicalValue::Integer(value as i64));
    }
    Some(CanonicalValue::Number(printed.into()))
}

/// The shortest decimal that reads back as this double, in the form of Python's `repr`.
fn python_repr(value: f64) -> String {
    let scientific = format!("{value:e}");
    let Some((mantissa, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{value}");
        return if plain.contains('.') {
            plain
        } else {
            plain + ".0"
        };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_print_like_python() {
        for (value, printed) in [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (50.57, "50.57"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e16, "1.5e+16"),
            (1e22, "1e+22"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.25e-7, "1.25e-07"),
            (1e100, "1e+100"),
            (f64::MAX, "1.7976931348623157e+308"),
        ] {
            assert_eq!(python_repr(value), printed);
        }
    }

    #[test]
    fn lenient_numbers() {
        let number = |text: &str| CanonicalValue::Number(text.into());
        assert_eq!(
            lenient_float("1e10"),
            Some(CanonicalValue::Integer(10_000_000_000))
        );
        assert_eq!(lenient_float("1E2"), Some(CanonicalValue::Integer(100)));
        assert_eq!(lenient_float("1.0"), Some(number("1.0")));
        assert_eq!(lenient_float("1.00"), Some(CanonicalValue::Integer(1)));
        assert_eq!(lenient_float("50.570"), Some(number("50.57")));
        assert_eq!(lenient_float("1e+16"), Some(number("1e+16")));
        assert_eq!(lenient_float("1e400"), None);
        assert_eq!(lenient_float("-1e400"), None);
        assert_eq!(lenient_integer("-0"), CanonicalValue::Integer(0));
        let long = "123456789012345678901234567890";
        assert_eq!(lenient_integer(long), number(long));
        assert_eq!(
            strict_integer("9007199254740991"),
            Some(CanonicalValue::Integer((1 << 53) - 1))
        );
        assert_eq!(strict_integer("9007199254740992"), None);
        assert_eq!(strict_integer("-9007199254740992"), None);
        assert_eq!(strict_integer("-0"), None);
    }
}

//! Glob patterns: examples, and a property against a matcher that tries everything.

use proptest::prelude::*;

use super::super::MAX_PATTERN_CHARS;
use super::Glob;

fn whole(pattern: &str, text: &str) -> bool {
    Glob::new(pattern).matches_whole(text)
}

fn words(pattern: &str, text: &str) -> bool {
    Glob::new(pattern).matches_words(text)
}

#[test]
fn whole_values() {
    for (pattern, text, expected) in [
        ("lunc?*", "Lunch plans", true),
        ("lunc?*", "LUNCH", true),
        ("lunc?*", " lunch", false),
        ("lunc?*", "lunc", false),
        ("", "", true),
        ("", "a", false),
        ("*", "", true),
        ("?", "", false),
        ("?", "é", true),
        ("a*a", "a", false),
        ("a*b*c", "a_b_b_c", true),
        ("a*b*c", "a_c_b", false),
        ("**a**", "xay", true),
        ("ÄRGER", "ärger", true),
        ("m.room.*", "m.room.message", true),
        ("m.room", "m.room.message", false),
    ] {
        assert_eq!(whole(pattern, text), expected, "{pattern:?} on {text:?}");
    }
}

#[test]
fn words_in_a_body() {
    for (pattern, text, expected) in [
        ("ex*ple", "An example event.", true),
        ("ex*ple", "exple", true),
        ("ex*ple", "An exciting triple-whammy", true),
        ("alice", "malice", false),
        ("alice", "alices", false),
        ("alice", "malice and Alice!", true),
        ("alice", "alice_", false),
        ("alice", "-alice-", true),
        ("alice", "éaliceé", true),
        ("@room", "x@room", true),
        ("@room", "@roomy", false),
        ("c++", "we use c++ here", true),
        ("*", "", true),
        ("*", "anything", true),
        ("*lice", "malice", true),
        ("ali*", "malice", false),
        ("?ob", "bob", true),
        ("?ob", "ob", false),
        ("", "", true),
        ("", "two words", false),
        ("foo bar", "a foo bar b", true),
        ("foo bar", "a foo barb", false),
    ] {
        assert_eq!(words(pattern, text), expected, "{pattern:?} on {text:?}");
    }
}

#[test]
fn long_patterns_match_nothing() {
    let longest = "a".repeat(MAX_PATTERN_CHARS);
    assert!(whole(&longest, &longest));
    let too_long = "a".repeat(MAX_PATTERN_CHARS + 1);
    assert!(!whole(&too_long, &too_long));
    assert!(!whole(&"*".repeat(MAX_PATTERN_CHARS + 1), "a"));
}

#[test]
fn a_large_body_needs_no_stack() {
    let body = "ab ".repeat(20_000);
    assert!(!words("a", &body));
    assert!(words("a", &format!("{body} a")));
}

/// Tries everything, by the definition.
fn plain(pattern: &[char], text: &[char]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, text) => text.is_none(),
        (Some(('*', rest)), None) => plain(rest, text),
        (Some(('*', rest)), Some((_, tail))) => plain(rest, text) || plain(pattern, tail),
        (Some(('?', rest)), Some((_, tail))) => plain(rest, tail),
        (Some((c, rest)), Some((d, tail))) => c == d && plain(rest, tail),
        (Some(_), None) => false,
    }
}

fn plain_words(pattern: &[char], text: &[char]) -> bool {
    if pattern.is_empty() {
        return text.is_empty();
    }
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let boundary =
        |i: usize| i == 0 || i == text.len() || !is_word(text[i - 1]) || !is_word(text[i]);
    (0..=text.len())
        .filter(|start| boundary(*start))
        .any(|start| {
            (start..=text.len())
                .filter(|end| boundary(*end))
                .any(|end| plain(pattern, &text[start..end]))
        })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(
        crate::push::tests::globs::cases()) })]

    #[test]
    fn globs_match_as_defined(pattern in "[ab *?]{0,6}", text in "[ab ]{0,8}") {
        let (p, t): (Vec<_>, Vec<_>) = (pattern.chars().collect(), text.chars().collect());
        prop_assert_eq!(whole(&pattern, &text), plain(&p, &t));
        prop_assert_eq!(words(&pattern, &text), plain_words(&p, &t));
    }
}

/// Cases of a cheap property: 10,000 unless `PROPTEST_CASES` says otherwise.
pub(crate) fn cases() -> u32 {
    std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(10_000)
}

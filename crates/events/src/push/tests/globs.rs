//! Glob patterns: examples, and a property against a matcher that tries everything.

use proptest::prelude::*;

use ruma::{
    push::{NewConditionalPushRule, NewPatternedPushRule, NewPushRule},
    user_id,
};
use serde_json::json;

use super::super::{
    Context, Glob, MAX_PATTERN_CHARS, MAX_STEPS, PushEvent, Rules, SenderPermission,
    default_ruleset,
    glob::{Folded, Steps},
};

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

/// What no pattern and no text can make worse: one word of the pattern for each character.
#[test]
fn a_match_costs_its_text_times_the_words_of_its_pattern() {
    let body = "a ".repeat(30_000);
    let folded = Folded::new(&body);
    for (pattern, expected) in [
        ("?".repeat(MAX_PATTERN_CHARS - 1) + "b", false),
        ("a".repeat(MAX_PATTERN_CHARS), false),
        ("*a".repeat(MAX_PATTERN_CHARS / 2), true),
        ("a?*".repeat(MAX_PATTERN_CHARS / 3) + "b", false),
        ("*".repeat(MAX_PATTERN_CHARS), true),
        ("a*b".to_owned(), false),
    ] {
        let words = pattern.chars().filter(|c| *c != '*').count() / 64 + 1;
        let cost = body.len() as u64 * words as u64;
        let steps = Steps::new(cost);
        let found = Glob::new(&pattern).matches_words_within(&folded, &steps);
        assert_eq!(steps.left(), 0, "{pattern}");
        assert_eq!(found, expected, "{pattern}");
        let steps = Steps::new(cost - 1);
        assert!(!Glob::new(&pattern).matches_words_within(&folded, &steps));
        assert_eq!(steps.left(), 0, "nothing is left for a cheaper one");
    }
}

/// Rules that are as costly as a ruleset can make them, on the longest message.
#[test]
fn a_ruleset_has_so_many_steps_for_an_event() {
    let user = user_id!("@me:example.org");
    let body = "a ".repeat(30_000);
    let message = json!({
        "type": "m.room.message", "sender": "@you:example.org", "room_id": "!r:example.org",
        "event_id": "$e", "content": { "body": body, "values": vec!["a"; 10_000] },
    });
    let patterned = |id: usize, pattern: &str| {
        let rule = NewPatternedPushRule::new(format!("r{id}"), pattern.to_owned(), Vec::new());
        NewPushRule::Content(rule)
    };
    let contains = |id: usize| {
        let data = serde_json::from_value(json!({
            "kind": "event_property_contains", "key": r"content.values", "value": "b",
        }));
        let rule = NewConditionalPushRule::new(format!("r{id}"), vec![data.unwrap()], Vec::new());
        NewPushRule::Override(rule)
    };
    let permission = SenderPermission {
        sender: crate::PowerLevel::Finite(0),
        power_levels: None,
    };
    let context = Context {
        member_count: 3,
        display_name: Some("Me"),
        permission: &permission,
    };
    let costly = "?".repeat(200) + "b";
    type Made<'a> = &'a dyn Fn(usize) -> NewPushRule;
    let cases: [(Made<'_>, usize, bool); 3] = [
        (&|id| patterned(id, &costly), 190, true),
        (&contains, 500, true),
        (&|id| patterned(id, "tea"), 10, false),
    ];
    for (make, count, is_too_much) in cases {
        let mut ruleset = default_ruleset(user);
        for id in 0..count {
            ruleset.insert(make(id), None, None).unwrap();
        }
        let event = PushEvent::from_json(message.as_object().unwrap().clone());
        let rules = Rules::compile(user, &ruleset);
        let (outcome, steps) = rules.evaluate_counted(&event, &context);
        assert_eq!(outcome.unwrap().rule_id, ".m.rule.message");
        assert_eq!(steps >= MAX_STEPS, is_too_much, "{steps}");
        assert!(steps <= 2 * MAX_STEPS);
    }
}

/// The server's own rules at their costliest, after keywords that used up all that they may.
#[test]
fn the_servers_own_rules_never_run_out_of_steps() {
    let user = user_id!("@me:example.org");
    let body = "a ".repeat(30_000);
    let message = |mentioned: &[&str]| {
        let mut ids = vec!["@x:y"; 5_000];
        ids.extend(mentioned);
        let event = json!({
            "type": "m.room.message", "sender": "@you:example.org", "room_id": "!r:example.org",
            "event_id": "$e", "content": { "body": body, "m.mentions": { "user_ids": ids } },
        });
        PushEvent::from_json(event.as_object().unwrap().clone())
    };
    let mut ruleset = default_ruleset(user);
    for id in 0..100 {
        let path = serde_json::from_value(json!({
            "kind": "event_match", "key": "content.body", "pattern": "?".repeat(200) + "b",
        }));
        let conditions = vec![path.unwrap()];
        let rule = NewConditionalPushRule::new(format!("r{id}"), conditions, Vec::new());
        let rule = NewPushRule::Override(rule);
        ruleset.insert(rule, None, None).unwrap();
    }
    let permission = SenderPermission {
        sender: crate::PowerLevel::Finite(0),
        power_levels: None,
    };
    let rules = Rules::compile(user, &ruleset);
    let longest = "\u{10400}".repeat(MAX_PATTERN_CHARS);
    let too_long = format!("{longest}x");
    for name in ["Me", &longest, &too_long, &"x".repeat(20_000)] {
        let context = Context {
            member_count: 3,
            display_name: Some(name),
            permission: &permission,
        };
        for (mentioned, expected) in [
            (&["@me:example.org"][..], ".m.rule.is_user_mention"),
            (&[], ".m.rule.message"),
        ] {
            let (outcome, steps) = rules.evaluate_counted(&message(mentioned), &context);
            assert_eq!(outcome.unwrap().rule_id, expected);
            let servers = steps - MAX_STEPS;
            assert!(servers < MAX_STEPS, "{servers}");
        }
    }
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
    fn globs_longer_than_a_word_match_as_defined(
        before in "[ab?]{58,66}", pattern in "[ab*?]{0,4}", text in "[ab]{56,72}",
    ) {
        let pattern = format!("{before}{pattern}");
        // So that some match.
        let fitted: String = before.chars().map(|c| if c == '?' { 'b' } else { c }).collect();
        for text in [&text, &fitted, &format!("{fitted}a"), &format!("{fitted}ba")] {
            let (p, t): (Vec<_>, Vec<_>) = (pattern.chars().collect(), text.chars().collect());
            prop_assert_eq!(whole(&pattern, text), plain(&p, &t));
        }
    }

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

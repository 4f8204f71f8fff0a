//! Verdicts by class agree with the evaluation of each event, whatever of the defaults is changed.

use proptest::prelude::*;
use ruma::{
    RoomId,
    push::{Action, AnyPushRuleRef, NewPushRule, NewSimplePushRule, RuleKind, Tweak},
    room_id,
};

use super::{
    Class, Context, PushEvent, Rules, alice,
    classes::{class_of, events},
    default_ruleset, pdu, permission,
};
use crate::push::{ClassRules, Verdict};

fn here() -> &'static RoomId {
    room_id!("!r:example.org")
}

/// A change of the default rules.
#[derive(Debug, Clone)]
enum Change {
    Disable(usize),
    Actions(usize, u8),
    Mute(bool),
    MuteByOverride(bool),
    Master,
    Keyword,
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (0..16_usize).prop_map(Change::Disable),
        (0..16_usize, 0..3_u8).prop_map(|(rule, actions)| Change::Actions(rule, actions)),
        any::<bool>().prop_map(Change::Mute),
        any::<bool>().prop_map(Change::MuteByOverride),
        Just(Change::Master),
        Just(Change::Keyword),
    ]
}

fn room_named(is_here: bool) -> &'static RoomId {
    if is_here {
        here()
    } else {
        room_id!("!other:example.org")
    }
}

fn apply(rules: &mut ruma::push::Ruleset, change: &Change) {
    let named: Vec<(RuleKind, String)> = rules
        .iter()
        .filter_map(|rule| {
            let kind = match rule {
                AnyPushRuleRef::Override(_) => RuleKind::Override,
                AnyPushRuleRef::Underride(_) => RuleKind::Underride,
                _ => return None,
            };
            Some((kind, rule.rule_id().to_owned()))
        })
        .collect();
    match change {
        Change::Disable(at) => {
            let (kind, id) = &named[at % named.len()];
            rules.set_enabled(kind.clone(), id, false).unwrap();
        }
        Change::Actions(at, actions) => {
            let (kind, id) = &named[at % named.len()];
            let highlight =
                Action::SetTweak(Tweak::Highlight(ruma::push::HighlightTweakValue::Yes));
            let actions = match actions {
                0 => vec![],
                1 => vec![Action::Notify],
                _ => vec![Action::Notify, highlight],
            };
            rules.set_actions(kind.clone(), id, actions).unwrap();
        }
        Change::Mute(here) => {
            let rule = NewSimplePushRule::new(room_named(*here).to_owned(), vec![]);
            rules.insert(NewPushRule::Room(rule), None, None).unwrap();
        }
        Change::MuteByOverride(here) => {
            let condition =
                ruma::push::PushCondition::EventMatch(ruma::push::EventMatchConditionData::new(
                    "room_id".to_owned(),
                    room_named(*here).to_string(),
                ));
            let rule = ruma::push::NewConditionalPushRule::new(
                room_named(*here).to_string(),
                vec![condition],
                vec![],
            );
            rules
                .insert(NewPushRule::Override(rule), None, None)
                .unwrap();
        }
        Change::Master => {
            let id = ".m.rule.master";
            rules.set_enabled(RuleKind::Override, id, true).unwrap();
        }
        Change::Keyword => {
            let rule = ruma::push::NewPatternedPushRule::new(
                "word".to_owned(),
                "x".to_owned(),
                vec![Action::Notify],
            );
            rules
                .insert(NewPushRule::Content(rule), None, None)
                .unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(
        super::globs::cases()) })]

    #[test]
    fn verdicts_agree_with_the_rules(
        changes in prop::collection::vec(change(), 0..4),
        json in events(),
        level in 0..100_i64,
        members in 2..4_u64,
    ) {
        let mut ruleset = default_ruleset(alice());
        for change in &changes {
            apply(&mut ruleset, change);
        }
        let Some(mut by_class) = ClassRules::new(alice(), &ruleset) else {
            let has_keyword = changes.iter().any(|change| matches!(change, Change::Keyword));
            prop_assert!(has_keyword);
            return Ok(());
        };
        let Some(verdicts) = by_class.verdicts(here()) else {
            return Ok(());
        };
        let found = class_of(&json, level);
        // Who is invited is not in the room and counts nothing there.
        prop_assume!(found.invites.is_none());
        let mentioned = found.mentions.users.iter().any(|user| user == alice());
        let verdict = if mentioned {
            verdicts.of_mention(found.class)
        } else {
            verdicts.of_class(found.class)
        };
        let permission = permission(level);
        let context = Context { member_count: members, display_name: None, permission: &permission };
        let rules = Rules::compile(alice(), &ruleset);
        let mut json = json;
        json["room_id"] = here().as_str().into();
        let outcome = rules.evaluate(&PushEvent::new(&pdu(&json)), &context);
        let expected = outcome.map_or(Verdict::default(), |outcome| Verdict {
            notify: outcome.notify,
            highlight: outcome.highlight,
        });
        prop_assert_eq!(verdict, expected, "{:?}", found.class);
    }
}

#[test]
fn default_rules_mutes_and_levels_are_answered_by_class() {
    let highlight_off = Change::Actions(4, 1);
    let cases = [
        vec![],
        vec![Change::Mute(true)],
        vec![Change::MuteByOverride(true), Change::Mute(false)],
        vec![Change::Master],
        vec![highlight_off],
    ];
    for changes in cases {
        let mut ruleset = default_ruleset(alice());
        for change in &changes {
            apply(&mut ruleset, change);
        }
        let mut rules = ClassRules::new(alice(), &ruleset).unwrap();
        assert!(rules.verdicts(here()).is_some(), "{changes:?}");
    }
    let mut muted = default_ruleset(alice());
    apply(&mut muted, &Change::Mute(true));
    let mut rules = ClassRules::new(alice(), &muted).unwrap();
    let (here, there) = (
        rules.verdicts(here()).unwrap(),
        rules.verdicts(room_named(false)).unwrap(),
    );
    assert!(!here.of_class(Class::Message).notify && there.of_class(Class::Message).notify);
    assert!(here.of_mention(Class::Message).highlight);
}

#[test]
fn a_rule_that_splits_a_class_is_not_answered_by_class() {
    let mut ruleset = default_ruleset(alice());
    let edits = ".m.rule.suppress_edits";
    ruleset
        .set_enabled(RuleKind::Override, edits, false)
        .unwrap();
    let mut rules = ClassRules::new(alice(), &ruleset).unwrap();
    assert_eq!(rules.verdicts(here()), None);
}

//! What one user's rules make of each class of events.
//!
//! Most users have the server's rules, with some rooms muted and some levels moved. For them a
//! count per [`Class`] answers what an evaluation of every event would. Whether that is so is not
//! reasoned out again here: the user's own compiled rules are tried on samples of every class, and
//! where two samples of a class are judged differently the class says too little.
//!
//! Rules that look at anything beside the class and the room (words, senders, user-made conditions)
//! make a ruleset unfit; its owner's events have to be evaluated one by one.

use std::collections::HashMap;

use ruma::{
    RoomId, UserId,
    push::{ConditionalPushRule, PushCondition, Ruleset},
};
use serde_json::{Map, Value, json};

use super::{
    class::{Class, class_of_parts},
    condition::{Context, SenderPermission},
    event::PushEvent,
    glob::Glob,
    rules::{Outcome, Rules},
};
use crate::PowerLevel;

/// Patterns with stars that rooms are held against. Who has more has their events evaluated one by
/// one, which has a limit of its own.
const MAX_ROOM_PATTERNS: usize = 32;

/// What an event is to a user.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verdict {
    /// It counts as a notification.
    pub notify: bool,
    /// It counts as a highlight.
    pub highlight: bool,
}

/// What the events of a room are to a user, by class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdicts {
    unnamed: [Verdict; Class::ALL.len()],
    mentioned: [Verdict; Class::ALL.len()],
}

impl Verdicts {
    /// An event of this class that does not mention the user.
    pub fn of_class(&self, class: Class) -> Verdict {
        self.unnamed[usize::from(class.number())]
    }

    /// An event of this class that mentions the user.
    pub fn of_mention(&self, class: Class) -> Verdict {
        self.mentioned[usize::from(class.number())]
    }
}

/// A ruleset that may be answered by class.
#[derive(Debug)]
pub struct ClassRules {
    rules: Rules,
    /// The rooms that the user's own rules are about, a pattern for each condition.
    rooms: Vec<Glob>,
    samples: Vec<Sample>,
    /// Rooms that the same patterns match have the same verdicts.
    known: HashMap<Vec<bool>, Option<Verdicts>>,
}

#[derive(Debug)]
struct Sample {
    class: Class,
    mentions: bool,
    members: u64,
    event: Map<String, Value>,
}

impl ClassRules {
    /// The rules of a user; `None` if they look at more than class and room.
    pub fn new(user: &UserId, ruleset: &Ruleset) -> Option<Self> {
        let mut rooms = Vec::new();
        for rule in ruleset.override_.iter().chain(&ruleset.underride) {
            if rule.enabled && !rule.default {
                rooms.extend(rooms_of(rule)?);
            }
        }
        if rooms.iter().filter(|pattern| pattern.has_stars()).count() > MAX_ROOM_PATTERNS {
            return None;
        }
        let looks_closer = ruleset.content.iter().any(|rule| rule.enabled)
            || ruleset.sender.iter().any(|rule| rule.enabled);
        if looks_closer {
            return None;
        }
        let muted = ruleset.room.iter().filter(|rule| rule.enabled);
        rooms.extend(muted.map(|rule| Glob::literal(rule.rule_id.as_str())));
        Some(Self {
            rules: Rules::compile(user, ruleset),
            rooms,
            samples: samples(user),
            known: HashMap::new(),
        })
    }

    /// What the events of a room are to the user; `None` if their classes do not tell.
    pub fn verdicts(&mut self, room: &RoomId) -> Option<Verdicts> {
        let matching: Vec<bool> = self
            .rooms
            .iter()
            .map(|pattern| pattern.matches_whole(room.as_str()))
            .collect();
        if let Some(known) = self.known.get(&matching) {
            return *known;
        }
        let found = self.judge(room);
        self.known.insert(matching, found);
        found
    }

    fn judge(&self, room: &RoomId) -> Option<Verdicts> {
        let mut unnamed = [None; Class::ALL.len()];
        let mut mentioned = [None; Class::ALL.len()];
        let permission = may_notify_all();
        for sample in &self.samples {
            let mut event = sample.event.clone();
            event.insert("room_id".to_owned(), room.as_str().into());
            event.insert("event_id".to_owned(), "$sample".into());
            let context = Context {
                member_count: sample.members,
                display_name: None,
                permission: &permission,
            };
            let outcome = self.rules.evaluate(&PushEvent::from_json(event), &context);
            let verdict = outcome.map_or(Verdict::default(), verdict_of);
            let verdicts = if sample.mentions {
                &mut mentioned
            } else {
                &mut unnamed
            };
            let known = verdicts[usize::from(sample.class.number())].get_or_insert(verdict);
            if *known != verdict {
                return None;
            }
        }
        let whole =
            |found: [Option<Verdict>; Class::ALL.len()]| found.map(Option::unwrap_or_default);
        let verdicts = Verdicts {
            unnamed: whole(unnamed),
            mentioned: whole(mentioned),
        };
        verdicts.fits().then_some(verdicts)
    }
}

impl Verdicts {
    /// Whether nothing notifies that is not kept: only classes that notify under default rules are
    /// counted, and only mentions that highlight under default rules have rows.
    fn fits(&self) -> bool {
        Class::ALL.into_iter().all(|class| {
            (class.notifies() || !self.of_class(class).notify)
                && (class.mentions_count() || !self.of_mention(class).notify)
        })
    }
}

fn verdict_of(outcome: &Outcome) -> Verdict {
    Verdict {
        notify: outcome.notify,
        highlight: outcome.highlight,
    }
}

/// The rooms that a user's rule is about; `None` if it is about anything else.
fn rooms_of(rule: &ConditionalPushRule) -> Option<Vec<Glob>> {
    let room = |condition: &PushCondition| match condition {
        PushCondition::EventMatch(data) if data.key == "room_id" => Some(Glob::new(&data.pattern)),
        _ => None,
    };
    rule.conditions.iter().map(room).collect()
}

fn may_notify_all() -> SenderPermission {
    SenderPermission {
        sender: PowerLevel::Finite(i64::MAX),
        power_levels: None,
    }
}

/// Events of every class, in all ways in which those of one class differ to the default rules.
fn samples(user: &UserId) -> Vec<Sample> {
    const NOBODY: &str = "@sample:sample.invalid";
    // (type, state key, counts of members that some default rule asks for)
    let kinds: [(&str, Option<&str>, &[u64]); 8] = [
        ("m.room.message", None, &[2, 3]),
        ("m.room.encrypted", None, &[2, 3]),
        ("m.call.invite", None, &[3]),
        ("m.reaction", None, &[3]),
        ("m.room.tombstone", Some(""), &[3]),
        ("m.room.server_acl", Some(""), &[3]),
        ("m.room.member", Some(NOBODY), &[3]),
        ("m.sample", None, &[3]),
    ];
    let mut samples = Vec::new();
    for (event_type, state_key, members) in kinds {
        for traits in 0..16_u8 {
            let [notice, edit, everybody, mentions] = [1, 2, 4, 8].map(|bit| traits & bit != 0);
            let named: &[&str] = if mentions { &[user.as_str()] } else { &[] };
            let mut content = json!({ "m.mentions": { "user_ids": named, "room": everybody } });
            if notice {
                content["msgtype"] = "m.notice".into();
            }
            if edit {
                content["m.relates_to"] = json!({ "rel_type": "m.replace", "event_id": "$e" });
            }
            let text = content.to_string();
            let class = class_of_parts(event_type, state_key, &text, &may_notify_all());
            let mut event = Map::new();
            event.insert("type".to_owned(), event_type.into());
            event.insert("sender".to_owned(), NOBODY.into());
            event.insert("content".to_owned(), content);
            if let Some(state_key) = state_key {
                event.insert("state_key".to_owned(), state_key.into());
            }
            samples.extend(members.iter().map(|members| Sample {
                class,
                mentions,
                members: *members,
                event: event.clone(),
            }));
        }
    }
    samples
}

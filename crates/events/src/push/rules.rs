//! A user's push rules in the order in which they are tried, and their evaluation.
//!
//! Specification: Client-Server API, "Push Rules" and "Predefined Rules".

use ruma::{
    OwnedUserId, UserId,
    push::{
        Action, ConditionalPushRule, PatternedPushRule, PredefinedOverrideRuleId, RuleKind, Ruleset,
    },
};

use super::{
    condition::{Condition, Context},
    event::{Path, PushEvent},
    glob::{Glob, Steps},
};

/// What the patterns of one user may cost for one event, in characters of a text times words of 64
/// characters of a pattern: 16 keywords in the longest message there can be, 1,000 in one of a
/// page. Patterns beyond that match nothing. The server's own rules have as many to themselves,
/// which is more than they can take: nothing that a user adds stops them from matching.
pub const MAX_STEPS: u64 = 1 << 20;

/// Conditions of one rule that are looked at; a rule with more never matches.
pub const MAX_CONDITIONS: usize = 64;

/// What the matching rule says.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The kind of the rule that matched.
    pub kind: RuleKind,
    /// The id of the rule that matched.
    pub rule_id: String,
    /// The event counts as a notification and goes to pushers.
    pub notify: bool,
    /// The notification is a highlight. Never without `notify`.
    pub highlight: bool,
    /// The sound to play.
    pub sound: Option<String>,
    /// The rule's actions as they stand, tweaks for the gateway among them.
    pub actions: Vec<Action>,
}

/// A user's ruleset, compiled. Disabled rules are not in it.
#[derive(Debug)]
pub struct Rules {
    user: OwnedUserId,
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    test: Test,
    is_default: bool,
    outcome: Outcome,
}

#[derive(Debug)]
enum Test {
    Conditions(Vec<Condition>),
    Room(String),
    Sender(String),
}

/// The server-default rules of the specification for a user.
pub fn default_ruleset(user: &UserId) -> Ruleset {
    Ruleset::server_default(user)
}

impl Rules {
    /// Compiles the enabled rules of `ruleset` for its owner.
    ///
    /// Rules are tried by kind, the user's own before the server's in each kind, each in the order
    /// of the ruleset; only `.m.rule.master` stands before everything.
    pub fn compile(user: &UserId, ruleset: &Ruleset) -> Self {
        let mut ranked: Vec<(Rank, Rule)> = Vec::new();
        let mut push =
            |kind: RuleKind, is_default: bool, rule_id: &str, actions: &[Action], test| {
                let rank = Rank::of(&kind, rule_id, is_default);
                ranked.push((
                    rank,
                    Rule {
                        test,
                        is_default,
                        outcome: outcome(kind, rule_id, actions),
                    },
                ));
            };
        for (kind, rules) in [
            (RuleKind::Override, &ruleset.override_),
            (RuleKind::Underride, &ruleset.underride),
        ] {
            for rule in rules.iter().filter(|rule| rule.enabled) {
                let test = Test::Conditions(conditions(rule));
                push(
                    kind.clone(),
                    rule.default,
                    &rule.rule_id,
                    &rule.actions,
                    test,
                );
            }
        }
        for rule in ruleset.content.iter().filter(|rule| rule.enabled) {
            let test = Test::Conditions(vec![body_matches(rule)]);
            push(
                RuleKind::Content,
                rule.default,
                &rule.rule_id,
                &rule.actions,
                test,
            );
        }
        for rule in ruleset.room.iter().filter(|rule| rule.enabled) {
            let test = Test::Room(rule.rule_id.to_string());
            push(
                RuleKind::Room,
                rule.default,
                rule.rule_id.as_str(),
                &rule.actions,
                test,
            );
        }
        for rule in ruleset.sender.iter().filter(|rule| rule.enabled) {
            let test = Test::Sender(rule.rule_id.to_string());
            push(
                RuleKind::Sender,
                rule.default,
                rule.rule_id.as_str(),
                &rule.actions,
                test,
            );
        }
        // Stable: rules of equal rank keep the order of the ruleset.
        ranked.sort_by_key(|(rank, _)| *rank);
        let rules = ranked.into_iter().map(|(_, rule)| rule).collect();
        Self {
            user: user.to_owned(),
            rules,
        }
    }

    /// The outcome of the first rule that matches, if any. A user's own events match nothing.
    pub fn evaluate(&self, event: &PushEvent, context: &Context<'_>) -> Option<&Outcome> {
        self.evaluate_counted(event, context).0
    }

    /// The same, with the steps that it took: at most twice [`MAX_STEPS`].
    pub fn evaluate_counted(
        &self,
        event: &PushEvent,
        context: &Context<'_>,
    ) -> (Option<&Outcome>, u64) {
        if event.text("sender") == Some(self.user.as_str()) {
            return (None, 0);
        }
        let [users, servers] = [(); 2].map(|()| Steps::new(MAX_STEPS));
        let rule = self.rules.iter().find(|rule| {
            let steps = if rule.is_default { &servers } else { &users };
            rule.test.matches(event, context, steps)
        });
        let taken = 2 * MAX_STEPS - users.left() - servers.left();
        (rule.map(|rule| &rule.outcome), taken)
    }
}

/// The place of a rule in the order of trying; smaller comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Master,
    Kind(u8, Origin),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    User,
    Server,
}

impl Rank {
    fn of(kind: &RuleKind, rule_id: &str, is_default: bool) -> Self {
        if *kind == RuleKind::Override && rule_id == PredefinedOverrideRuleId::Master.as_ref() {
            return Self::Master;
        }
        let place = match kind {
            RuleKind::Override => 0,
            RuleKind::Content => 1,
            RuleKind::Room => 2,
            RuleKind::Sender => 3,
            _ => 4,
        };
        Self::Kind(
            place,
            if is_default {
                Origin::Server
            } else {
                Origin::User
            },
        )
    }
}

impl Test {
    fn matches(&self, event: &PushEvent, context: &Context<'_>, steps: &Steps) -> bool {
        match self {
            Self::Conditions(conditions) => {
                conditions.iter().all(|c| c.matches(event, context, steps))
            }
            Self::Room(room) => event.text("room_id") == Some(room),
            Self::Sender(sender) => event.text("sender") == Some(sender),
        }
    }
}

fn conditions(rule: &ConditionalPushRule) -> Vec<Condition> {
    if rule.conditions.len() > MAX_CONDITIONS {
        return vec![Condition::Unknown];
    }
    rule.conditions.iter().map(Condition::compile).collect()
}

fn body_matches(rule: &PatternedPushRule) -> Condition {
    Condition::EventMatch {
        path: Path::new("content.body"),
        glob: Glob::new(&rule.pattern),
    }
}

/// `dont_notify` and `coalesce` of older clients say nothing: only `notify` notifies.
fn outcome(kind: RuleKind, rule_id: &str, actions: &[Action]) -> Outcome {
    let notify = actions.iter().any(Action::should_notify);
    Outcome {
        kind,
        rule_id: rule_id.to_owned(),
        notify,
        highlight: notify && actions.iter().any(Action::is_highlight),
        sound: actions
            .iter()
            .find_map(Action::sound)
            .map(ToString::to_string),
        actions: actions.to_vec(),
    }
}

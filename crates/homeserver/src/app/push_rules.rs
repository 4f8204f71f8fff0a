//! A user's push rules: read, changed, given to whoever evaluates them.
//!
//! They are stored as the account data `m.push_rules`, so that every device is told of a change. A
//! user who never changed anything has none stored and gets the server's defaults; default rules
//! that came with a newer version of the server are added on reading.
//!
//! Specification: client-server API, "Push Rules: API".

use homeserver_events::push::default_ruleset;
use homeserver_users::{AccountDataError, Failure, Scope, UserNumber, Users};
use parking_lot::Mutex;
use ruma::{
    UserId,
    push::{
        Action, AnyPushRuleRef, InsertPushRuleError, NewPushRule, RemovePushRuleError, RuleKind,
        Ruleset,
    },
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The type of the account data.
pub(crate) const PUSH_RULES: &str = "m.push_rules";

/// Rules of the user's own, of all kinds together.
pub(crate) const MAX_RULES: usize = 1_000;

/// Push rules were not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PushRuleError {
    /// There is no such rule.
    #[error("there is no such push rule")]
    NotFound,
    /// The rule cannot be placed or named so.
    #[error(transparent)]
    Insert(#[from] InsertPushRuleError),
    /// A default rule cannot be removed.
    #[error("default push rules cannot be removed")]
    ServerDefault,
    /// The user has [`MAX_RULES`] rules.
    #[error("too many push rules")]
    TooMany,
    /// The rules could not be stored.
    #[error(transparent)]
    Store(#[from] AccountDataError),
}

impl From<RemovePushRuleError> for PushRuleError {
    fn from(error: RemovePushRuleError) -> Self {
        match error {
            RemovePushRuleError::ServerDefault => Self::ServerDefault,
            _ => Self::NotFound,
        }
    }
}

/// The content of the account data.
#[derive(Debug, Serialize, Deserialize)]
struct Content {
    global: Ruleset,
}

/// The push rules of this server's users. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct PushRules {
    users: Users,
}

impl PushRules {
    /// Push rules on top of the users' account data.
    pub(crate) fn new(users: Users) -> Self {
        Self { users }
    }

    /// The rules of a user.
    pub(crate) async fn of(&self, user: UserNumber, id: &UserId) -> Result<Ruleset, Failure> {
        let data = &self.users.account_data;
        let stored = data.one(user, Scope::Global, PUSH_RULES).await?;
        Ok(rules_in(stored.as_ref().map(|datum| &*datum.content), id))
    }

    /// The rules of a user as content of `m.push_rules`.
    pub(crate) async fn content(
        &self,
        user: UserNumber,
        id: &UserId,
    ) -> Result<Box<RawValue>, Failure> {
        Ok(content_of(self.of(user, id).await?).unwrap_or_else(|| RawValue::NULL.to_owned()))
    }

    /// Adds a rule of the user's own, or replaces the one of this name.
    pub(crate) async fn insert(
        &self,
        user: (UserNumber, &UserId),
        rule: NewPushRule,
        after: Option<&str>,
        before: Option<&str>,
    ) -> Result<(), PushRuleError> {
        self.change(user, |rules| place(rules, rule.clone(), after, before))
            .await
    }

    /// Removes a rule of the user's own.
    pub(crate) async fn remove(
        &self,
        user: (UserNumber, &UserId),
        kind: RuleKind,
        rule_id: &str,
    ) -> Result<(), PushRuleError> {
        self.change(user, |rules| Ok(rules.remove(kind.clone(), rule_id)?))
            .await
    }

    /// Switches a rule on or off.
    pub(crate) async fn set_enabled(
        &self,
        user: (UserNumber, &UserId),
        kind: RuleKind,
        rule_id: &str,
        enabled: bool,
    ) -> Result<(), PushRuleError> {
        self.change(user, |rules| {
            let found = rules.set_enabled(kind.clone(), rule_id, enabled);
            found.map_err(|_| PushRuleError::NotFound)
        })
        .await
    }

    /// Changes what a rule does.
    pub(crate) async fn set_actions(
        &self,
        user: (UserNumber, &UserId),
        kind: RuleKind,
        rule_id: &str,
        actions: Vec<Action>,
    ) -> Result<(), PushRuleError> {
        self.change(user, |rules| {
            let found = rules.set_actions(kind.clone(), rule_id, actions.clone());
            found.map_err(|_| PushRuleError::NotFound)
        })
        .await
    }

    async fn change(
        &self,
        (user, id): (UserNumber, &UserId),
        apply: impl Fn(&mut Ruleset) -> Result<(), PushRuleError> + Send + Sync,
    ) -> Result<(), PushRuleError> {
        let refused = Mutex::new(None);
        let decide = |stored: Option<&RawValue>| {
            let mut rules = rules_in(stored, id);
            let result = apply(&mut rules);
            let changed = result.is_ok();
            *refused.lock() = result.err();
            changed.then(|| content_of(rules)).flatten()
        };
        let data = &self.users.account_data;
        data.update(user, Scope::Global, PUSH_RULES, decide).await?;
        refused.into_inner().map_or(Ok(()), Err)
    }
}

/// Puts a rule into its place: anew if one is named, else where the rule of its name is.
///
/// A rule that moves is taken out first: ruma's `insert` expects that what is placed is not there
/// yet, and panics where a rule is placed behind itself or moved behind the last one.
fn place(
    rules: &mut Ruleset,
    rule: NewPushRule,
    after: Option<&str>,
    before: Option<&str>,
) -> Result<(), PushRuleError> {
    let (kind, id) = (rule.kind(), rule.rule_id().to_owned());
    let mut neighbours = after.iter().chain(&before).peekable();
    let moves = neighbours.peek().is_some();
    if neighbours.any(|neighbour| **neighbour == id) {
        return Err(InsertPushRuleError::UnknownRuleId.into());
    }
    let enabled = rules.get(kind.clone(), &id).map(AnyPushRuleRef::enabled);
    if moves && enabled.is_some() && !id.starts_with('.') {
        rules.remove(kind.clone(), &id)?;
    }
    rules.insert(rule, after, before)?;
    if enabled == Some(false) {
        let switched = rules.set_enabled(kind, &id, false);
        switched.map_err(|_| PushRuleError::NotFound)?;
    }
    let own = rules.iter().filter(|rule| !rule.is_server_default());
    if own.count() > MAX_RULES {
        return Err(PushRuleError::TooMany);
    }
    Ok(())
}

/// One rule of a ruleset.
pub(crate) fn rule<'a>(
    rules: &'a Ruleset,
    kind: RuleKind,
    rule_id: &str,
) -> Result<AnyPushRuleRef<'a>, PushRuleError> {
    rules.get(kind, rule_id).ok_or(PushRuleError::NotFound)
}

fn content_of(rules: Ruleset) -> Option<Box<RawValue>> {
    serde_json::value::to_raw_value(&Content { global: rules }).ok()
}

/// The stored rules with what the server's defaults have added since; the defaults if nothing, or
/// nothing readable, is stored.
fn rules_in(stored: Option<&RawValue>, user: &UserId) -> Ruleset {
    let stored = stored.and_then(|content| serde_json::from_str::<Content>(content.get()).ok());
    let default = default_ruleset(user);
    match stored {
        Some(Content { mut global }) => {
            global.update_with_server_default(default);
            global
        }
        None => default,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ruma::{
        push::{NewConditionalPushRule, NewPatternedPushRule, NewSimplePushRule},
        room_id, user_id,
    };

    #[test]
    fn what_is_stored_is_read_again_with_the_defaults_of_today() {
        let user = user_id!("@alice:example.org");
        let mut rules = default_ruleset(user);
        let room = room_id!("!muted:example.org").to_owned();
        let muted = NewPushRule::Room(NewSimplePushRule::new(room, Vec::new()));
        rules.insert(muted, None, None).unwrap();
        rules
            .set_enabled(RuleKind::Override, ".m.rule.master", true)
            .unwrap();
        let missing = ".m.rule.call";
        let mut older = rules.clone();
        older.underride.shift_remove(missing);
        assert!(rule(&older, RuleKind::Underride, missing).is_err());

        let read = rules_in(Some(&content_of(older).unwrap()), user);
        assert!(rule(&read, RuleKind::Room, "!muted:example.org").is_ok());
        assert!(
            rule(&read, RuleKind::Override, ".m.rule.master")
                .unwrap()
                .enabled()
        );
        assert!(rule(&read, RuleKind::Underride, missing).is_ok());
    }

    fn named(kind: &RuleKind, name: &str) -> NewPushRule {
        let name = name.to_owned();
        match kind {
            RuleKind::Override => {
                let rule = NewConditionalPushRule::new(name, Vec::new(), Vec::new());
                NewPushRule::Override(rule)
            }
            _ => NewPushRule::Content(NewPatternedPushRule::new(name, "x".to_owned(), Vec::new())),
        }
    }

    /// The names of a user's own rules, and whether each is switched on.
    fn own(rules: &Ruleset) -> Vec<(String, bool)> {
        let rules = rules.iter().filter(|rule| !rule.is_server_default());
        rules
            .map(|rule| (rule.rule_id().to_owned(), rule.enabled()))
            .collect()
    }

    /// Where the specification puts a rule among the user's own.
    fn expected(
        now: &[(String, bool)],
        name: &str,
        after: Option<&str>,
        before: Option<&str>,
    ) -> Option<Vec<(String, bool)>> {
        let at = now.iter().position(|(other, _)| other == name);
        let enabled = at.is_none_or(|at| now[at].1);
        let mut rules = now.to_vec();
        if after.is_none() && before.is_none() {
            if at.is_none() {
                rules.insert(0, (name.to_owned(), true));
            }
            return Some(rules);
        }
        rules.retain(|(other, _)| other != name);
        let find = |wanted: &str| rules.iter().position(|(other, _)| other == wanted);
        let behind = after.map(&find).map(|at| at.map(|at| at + 1));
        let ahead = before.map(&find);
        let to = match (behind, ahead) {
            (Some(None), _) | (_, Some(None)) => return None,
            (Some(Some(behind)), Some(Some(ahead))) if ahead < behind => return None,
            (_, Some(Some(ahead))) => ahead,
            (Some(Some(behind)), None) => behind,
            (None, None) => 0,
        };
        rules.insert(to, (name.to_owned(), enabled));
        Some(rules)
    }

    #[test]
    fn rules_are_limited_in_number() {
        let mut rules = default_ruleset(user_id!("@alice:example.org"));
        for number in 0..MAX_RULES {
            let kind = [RuleKind::Override, RuleKind::Content][number % 2].clone();
            let rule = named(&kind, &format!("r{number}"));
            place(&mut rules, rule, None, None).unwrap();
        }
        for kind in [RuleKind::Override, RuleKind::Content] {
            let more = place(&mut rules.clone(), named(&kind, "more"), None, None);
            assert!(matches!(more, Err(PushRuleError::TooMany)), "{more:?}");
        }
        // One that is there may be replaced.
        let again = named(&RuleKind::Content, "r1");
        place(&mut rules, again, Some("r3"), None).unwrap();
    }

    proptest! {
        #[test]
        fn rules_go_where_they_are_placed(
            conditional: bool,
            steps in prop::collection::vec(
                ("[a-e]", prop::option::of("[a-e]"), prop::option::of("[a-e]"), any::<bool>()),
                1..12,
            ),
        ) {
            let kind = if conditional { RuleKind::Override } else { RuleKind::Content };
            let mut rules = default_ruleset(user_id!("@alice:example.org"));
            for (name, after, before, off) in steps {
                let now = own(&rules);
                let (after, before) = (after.as_deref(), before.as_deref());
                let wanted = expected(&now, &name, after, before);
                let mut changed = rules.clone();
                let placed = place(&mut changed, named(&kind, &name), after, before);
                prop_assert_eq!(placed.is_ok(), wanted.is_some());
                let Some(wanted) = wanted else { continue };
                prop_assert_eq!(own(&changed), wanted);
                rules = changed;
                if off {
                    rules.set_enabled(kind.clone(), &name, false).unwrap();
                }
            }
        }
    }
}

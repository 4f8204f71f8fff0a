//! Rule 10: who may change power levels to what.

use std::collections::{BTreeMap, BTreeSet};

use super::levels::{LevelName, PowerLevel, PowerLevels, UnreadableLevel};
use super::state::State;
use super::{AuthError, ensure, is_user_id};
use crate::pdu::Pdu;
use crate::rules::{CreatorRule, LevelSyntax};

const TOO_HIGH: &str = "the sender's power level is too low for this change of power levels";

pub(super) fn check(
    event: &Pdu,
    state: &State<'_>,
    sender_level: PowerLevel,
) -> Result<(), AuthError> {
    let new = event.power_levels();
    check_form(new, state)?;
    // 10.5.
    let Some(current) = state.power_levels() else {
        return Ok(());
    };
    let current = current.power_levels();

    // 10.6.
    for name in LevelName::ALL {
        if current.explicit(name)? != new.explicit(name)? {
            let highest = current.named(name)?.max(new.named(name)?);
            ensure(sender_level >= highest, TOO_HIGH)?;
        }
    }
    // 10.7 and 10.8.
    let removable = |_: &str, level: i64| sender_level >= level;
    check_entries(
        map(&current.events)?,
        map(&new.events)?,
        sender_level,
        removable,
    )?;
    if state.rules.checks_notification_levels {
        let (current, new) = (map(&current.notifications)?, map(&new.notifications)?);
        check_entries(current, new, sender_level, removable)?;
    }
    // 10.9 and 10.10: others' levels only if they are below one's own.
    let removable = |user: &str, level: i64| user == event.sender() || sender_level > level;
    check_entries(
        map(&current.users)?,
        map(&new.users)?,
        sender_level,
        removable,
    )
}

/// 10.1 to 10.4: what must be so regardless of the current levels.
fn check_form(new: &PowerLevels, state: &State<'_>) -> Result<(), AuthError> {
    if state.rules.levels == LevelSyntax::Integers {
        ensure(new.is_readable(), "the power levels are not integers")?;
    }
    let users = new
        .users
        .as_ref()
        .map_err(|_| AuthError::Refused("the users of the power levels are not an object"))?;
    let readable = users
        .iter()
        .all(|(user, level)| is_user_id(user) && level.is_ok());
    ensure(
        readable,
        "the users of the power levels are not user ids with levels",
    )?;
    if state.rules.creators == CreatorRule::SenderAndAdditional {
        let creators = state.levels().creators();
        let listed = creators
            .iter()
            .any(|creator| users.contains_key(creator.as_str()));
        ensure(!listed, "the power levels list a creator of the room")?;
    }
    Ok(())
}

type Entries = BTreeMap<String, Result<i64, UnreadableLevel>>;

fn map(levels: &Result<Entries, UnreadableLevel>) -> Result<&Entries, UnreadableLevel> {
    levels.as_ref().map_err(|error| *error)
}

/// Every entry that differs must be one that the sender may remove, and not be raised above the
/// sender's own level.
fn check_entries(
    current: &Entries,
    new: &Entries,
    sender_level: PowerLevel,
    removable: impl Fn(&str, i64) -> bool,
) -> Result<(), AuthError> {
    let keys: BTreeSet<&String> = current.keys().chain(new.keys()).collect();
    for key in keys {
        let before = current.get(key).copied().transpose()?;
        let after = new.get(key).copied().transpose()?;
        if before == after {
            continue;
        }
        ensure(before.is_none_or(|level| removable(key, level)), TOO_HIGH)?;
        ensure(after.is_none_or(|level| sender_level >= level), TOO_HIGH)?;
    }
    Ok(())
}

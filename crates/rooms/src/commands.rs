//! Deciding commands: one file for each kind.

mod aliases;
mod create;
pub(crate) mod membership;
mod preset;
mod restricted;
mod send;
mod upgrade;

pub use create::{MAX_INITIAL_STATE, MAX_INVITES};

use homeserver_events::{
    Pdu,
    auth::{LevelName, Levels, UnreadableLevel},
};
use ruma::{OwnedUserId, UserId};

use crate::{
    Rooms,
    command::{RoomAction, RoomCommand},
    edit::RoomEdit,
    error::RoomError,
    execute::Decision,
    rows::{Effect, Origin},
};

impl RoomCommand {
    /// The request as its event remembers it.
    pub(crate) fn origin(&self) -> Option<Origin> {
        Some(Origin {
            device: self.device.clone()?,
            transaction: self.transaction.as_ref()?.id.clone(),
        })
    }
}

impl Rooms {
    /// Decides a command on the tip of its room.
    pub(crate) async fn decide(
        &self,
        edit: &mut RoomEdit<'_>,
        command: &RoomCommand,
    ) -> Result<Decision, RoomError> {
        let sender = &command.sender;
        match &command.action {
            // Rooms that do not exist have no tip: see `decide_create`.
            RoomAction::Create(_) => Err(RoomError::UnknownRoom),
            RoomAction::Send { event, .. } => {
                self.decide_send(edit, sender, event, command.origin())
                    .await
            }
            RoomAction::Redact { target, reason, .. } => {
                let event = send::redaction(target, reason.as_deref());
                self.decide_send(edit, sender, &event, command.origin())
                    .await
            }
            RoomAction::Membership { change, reason, .. } => {
                self.decide_membership(edit, sender, change, reason.as_deref())
                    .await
            }
            RoomAction::Forget { .. } => self.decide_forget(edit, sender).await,
            RoomAction::SetAlias { alias, .. } => self.decide_set_alias(edit, sender, alias).await,
            RoomAction::DeleteAlias { alias, as_admin } => {
                self.decide_delete_alias(edit, sender, alias, *as_admin)
                    .await
            }
            RoomAction::SetDirectoryVisibility {
                visible, as_admin, ..
            } => self.decide_publish(edit, sender, *visible, *as_admin).await,
            RoomAction::Upgrade(upgrade) => self.decide_upgrade(edit, sender, upgrade).await,
        }
    }
}

/// Who may do what in a room. Where a level cannot be read, nobody may.
pub(crate) struct Powers {
    levels: Levels,
    /// The event that they are from.
    event: Option<Pdu>,
}

impl Powers {
    /// Creators, and users to whom the room gives a level of their own.
    pub(crate) fn named_users(&self) -> impl Iterator<Item = OwnedUserId> {
        let listed = self
            .event
            .iter()
            .flat_map(|event| event.power_levels().listed_users());
        let listed = listed.filter_map(|(user, _)| UserId::parse(user).ok());
        self.levels.creators().iter().cloned().chain(listed)
    }

    fn reaches(&self, user: &UserId, needed: Result<i64, UnreadableLevel>) -> bool {
        match (self.levels.user(user), needed) {
            (Ok(level), Ok(needed)) => level >= needed,
            _ => false,
        }
    }

    pub(crate) fn may_redact(&self, user: &UserId) -> bool {
        self.reaches(user, self.levels.named(LevelName::Redact))
    }

    pub(crate) fn may_invite(&self, user: &UserId) -> bool {
        self.reaches(user, self.levels.named(LevelName::Invite))
    }

    pub(crate) fn may_send_state(&self, user: &UserId, event_type: &str) -> bool {
        self.reaches(user, self.levels.event(event_type, true))
    }
}

impl RoomEdit<'_> {
    /// The power levels at the tip.
    pub(crate) async fn levels(&self) -> Result<Powers, RoomError> {
        let create = self.state("m.room.create", "").await?;
        let create = create.ok_or_else(|| RoomError::damaged("a room has no create event"))?;
        let levels = self.state("m.room.power_levels", "").await?;
        let levels = levels.map(|event| event.pdu.clone());
        Ok(Powers {
            levels: Levels::new(self.room().rules, &create.pdu, levels.clone()),
            event: levels,
        })
    }

    /// What a user is to the room at the tip.
    pub(crate) async fn membership(
        &self,
        user: &UserId,
    ) -> Result<Option<crate::rows::Membership>, RoomError> {
        let event = self.state("m.room.member", user.as_str()).await?;
        Ok(event.and_then(|event| crate::visible::membership_of(&event)))
    }
}

/// The effect of an event just appended.
pub(crate) fn sent(event: &crate::event::StoredEvent) -> Decision {
    Effect::Sent(event.pdu.event_id().to_owned()).into()
}

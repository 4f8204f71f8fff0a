//! Aliases of this server, and its directory of rooms.

use ruma::{RoomAliasId, UserId};

use crate::{
    Rooms,
    edit::RoomEdit,
    error::RoomError,
    execute::Decision,
    rowchange::RowChange,
    rows::{AliasRow, Effect, Membership},
    tables::ALIASES,
};

/// Aliases of one room: any member may give it one, and an upgrade moves them all at once.
const MAX_ALIASES: usize = 200;

impl Rooms {
    /// Whether a new alias is well formed and of this server.
    pub(super) fn check_own_alias(&self, alias: &RoomAliasId) -> Result<(), RoomError> {
        if alias.server_name() == self.options.server_name && alias.as_str().len() <= 255 {
            Ok(())
        } else {
            Err(RoomError::InvalidAlias(alias.to_string()))
        }
    }

    pub(super) async fn decide_set_alias(
        &self,
        edit: &RoomEdit<'_>,
        sender: &UserId,
        alias: &RoomAliasId,
    ) -> Result<Decision, RoomError> {
        self.check_own_alias(alias)?;
        // Knowing a room's id is not enough: an alias is how others find it.
        if edit.membership(sender).await? != Some(Membership::Join) {
            return Err(RoomError::forbidden(
                "you must be in the room to give it an alias",
            ));
        }
        if self.store.get(&ALIASES, &alias.as_str()).await?.is_some() {
            return Err(RoomError::AliasInUse(alias.to_string()));
        }
        if self.aliases(edit.room().number).await?.len() >= MAX_ALIASES {
            return Err(RoomError::forbidden("this room has too many aliases"));
        }
        let row = AliasRow {
            room: edit.room().number.0,
            creator: sender.to_owned(),
        };
        let mut decision = Decision::from(Effect::Done);
        decision
            .rows
            .push(RowChange::AddAlias(alias.to_owned(), row));
        Ok(decision)
    }

    /// An alias is removed by who made it, or by who may change the room's canonical alias.
    pub(super) async fn decide_delete_alias(
        &self,
        edit: &RoomEdit<'_>,
        sender: &UserId,
        alias: &RoomAliasId,
        as_admin: bool,
    ) -> Result<Decision, RoomError> {
        let row = self.store.get(&ALIASES, &alias.as_str()).await?;
        let row = row.ok_or(RoomError::UnknownAlias)?;
        if row.room != edit.room().number.0 {
            return Err(RoomError::UnknownAlias);
        }
        let allowed = as_admin
            || row.creator == *sender
            || self.may_set(edit, sender, "m.room.canonical_alias").await?;
        if !allowed {
            return Err(RoomError::forbidden("this alias is not yours"));
        }
        let mut decision = Decision::from(Effect::Done);
        decision
            .rows
            .push(RowChange::RemoveAlias(alias.to_owned(), row));
        Ok(decision)
    }

    /// Listing a room takes the power to change its canonical alias.
    pub(super) async fn decide_publish(
        &self,
        edit: &mut RoomEdit<'_>,
        sender: &UserId,
        visible: bool,
        as_admin: bool,
    ) -> Result<Decision, RoomError> {
        if !as_admin && !self.may_set(edit, sender, "m.room.canonical_alias").await? {
            return Err(RoomError::forbidden(
                "you may not change where this room is listed",
            ));
        }
        if edit.delta.head.listed != visible {
            edit.delta.head.listed = visible;
            edit.delta.head.sequence += 1;
        }
        Ok(Effect::Done.into())
    }

    /// Whether a user may send this kind of state event.
    pub(super) async fn may_set(
        &self,
        edit: &RoomEdit<'_>,
        user: &UserId,
        event_type: &str,
    ) -> Result<bool, RoomError> {
        let joined = edit.membership(user).await? == Some(Membership::Join);
        Ok(joined && edit.levels().await?.may_send_state(user, event_type))
    }
}

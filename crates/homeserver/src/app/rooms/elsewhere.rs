//! Rooms that are elsewhere: which way a join, a knock or a leave takes, and invites that other
//! servers send.
//!
//! Specification: client-server API, "Room membership"; server-server API, "Joining Rooms",
//! "Inviting to a room".

use homeserver_events::Pdu;
use homeserver_federation::{
    Joined, MembershipError, Wanted,
    membership::{InviteRefused, ReceivedInvite},
};
use homeserver_rooms::{MembershipChange, RoomAction, RoomError};
use homeserver_users::AccountState;
use ruma::{OwnedRoomId, OwnedServerName, OwnedUserId, RoomAliasId, RoomId, RoomOrAliasId};
use serde_json::value::RawValue;

use super::change::{Actor, ChangeError, RoomChanges};
use crate::app::session::Session;

/// Why an invite of another server is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InviteError {
    /// It is not an invite, or not one that may be.
    #[error(transparent)]
    Refused(#[from] InviteRefused),
    /// No such user may be invited.
    #[error("{0} cannot be invited")]
    NoSuchUser(OwnedUserId),
    /// The user takes no invites, or that could not be found out.
    #[error(transparent)]
    Change(#[from] ChangeError),
}

/// A room that somebody wants to be in.
#[derive(Debug)]
pub(crate) struct Door {
    /// The room.
    pub(crate) room: OwnedRoomId,
    /// Servers that may be in it.
    pub(crate) via: Vec<OwnedServerName>,
    /// Why, for people.
    pub(crate) reason: Option<String>,
}

impl RoomChanges {
    /// The room that an id or alias stands for, with servers that may be in it: those that the
    /// client names come first.
    pub(crate) async fn door(
        &self,
        name: &RoomOrAliasId,
        mut via: Vec<OwnedServerName>,
        reason: Option<String>,
    ) -> Result<Door, ChangeError> {
        let room = match <&RoomAliasId>::try_from(name) {
            Ok(alias) => {
                let (room, servers) = self.look_up_alias(alias).await?;
                via.extend(servers);
                room
            }
            Err(_) => RoomId::parse(name.as_str()).map_err(|_| RoomError::UnknownRoom)?,
        };
        Ok(Door { room, via, reason })
    }

    /// Where an alias points, and servers that may be in the room.
    pub(crate) async fn look_up_alias(
        &self,
        alias: &RoomAliasId,
    ) -> Result<(OwnedRoomId, Vec<OwnedServerName>), ChangeError> {
        if let Some(found) = self.rooms.alias(alias).await? {
            return Ok((found.room.id.clone(), found.servers));
        }
        match self.memberships.look_up_alias(alias).await {
            Ok(found) => Ok(found),
            Err(MembershipError::UnknownAlias) => Err(RoomError::UnknownAlias.into()),
            Err(error) => Err(error.into()),
        }
    }

    /// Lets a user join a room, wherever it is. Whoever proves with it that a third-party invite is
    /// meant for them is invited first.
    pub(crate) async fn join(
        &self,
        actor: impl Into<Actor<'_>>,
        door: Door,
        third_party_signed: Option<Box<RawValue>>,
    ) -> Result<(), ChangeError> {
        let actor = actor.into();
        if let Some(signed) = third_party_signed {
            self.show_proof(actor.user, &door.room, signed).await?;
        }
        let profile = self.profile_of(actor.user).await?;
        if self.memberships.is_elsewhere(&door.room).await? {
            let wanted = Wanted {
                user: actor.user.clone(),
                room: door.room.clone(),
                via: door.via,
                profile: profile.clone(),
                reason: door.reason.clone(),
            };
            match self.memberships.join(wanted).await {
                Ok(Joined::Yes) => return Ok(()),
                // Nobody can be asked: what the rooms say of it.
                Ok(Joined::Here) | Err(MembershipError::NoServers) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let action = RoomAction::Membership {
            room: door.room,
            change: MembershipChange::Join { profile },
            reason: door.reason,
        };
        self.act(actor, action).await?;
        Ok(())
    }

    /// Lets a user knock on a room, wherever it is.
    pub(crate) async fn knock(
        &self,
        actor: impl Into<Actor<'_>>,
        door: Door,
    ) -> Result<(), ChangeError> {
        let actor = actor.into();
        let profile = self.profile_of(actor.user).await?;
        if self.memberships.is_elsewhere(&door.room).await? {
            let wanted = Wanted {
                user: actor.user.clone(),
                room: door.room.clone(),
                via: door.via,
                profile: profile.clone(),
                reason: door.reason.clone(),
            };
            match self.memberships.knock(wanted).await {
                Ok(()) => return Ok(()),
                Err(MembershipError::NoServers) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let action = RoomAction::Membership {
            room: door.room,
            change: MembershipChange::Knock { profile },
            reason: door.reason,
        };
        self.act(actor, action).await?;
        Ok(())
    }

    /// Lets a user leave a room, refuse an invite or take a knock back, wherever the room is.
    pub(crate) async fn leave(
        &self,
        actor: impl Into<Actor<'_>>,
        room: OwnedRoomId,
        reason: Option<String>,
    ) -> Result<(), ChangeError> {
        let actor = actor.into();
        if self
            .memberships
            .leave(actor.user, &room, reason.clone())
            .await?
        {
            return Ok(());
        }
        let action = RoomAction::Membership {
            room,
            change: MembershipChange::Leave,
            reason,
        };
        self.act(actor, action).await?;
        Ok(())
    }

    /// Does not show a room that a user has left any more, wherever it is.
    pub(crate) async fn forget(
        &self,
        session: &Session,
        room: OwnedRoomId,
    ) -> Result<(), ChangeError> {
        if !self.rooms.forget_outside(&session.user, &room).await? {
            self.act(session, RoomAction::Forget { room }).await?;
        }
        Ok(())
    }

    /// Takes an invite that another server sent, and gives it back signed.
    pub(crate) async fn receive_invite(&self, invite: ReceivedInvite) -> Result<Pdu, InviteError> {
        let (origin, room) = (invite.origin.clone(), invite.room.clone());
        let invited = self.memberships.check_invite(invite).await?;
        let account = self.accounts.by_id(&invited.user).await;
        let account = account.map_err(ChangeError::from)?;
        if account.is_none_or(|account| account.state != AccountState::Active) {
            return Err(InviteError::NoSuchUser(invited.user));
        }
        self.check_invite(&invited.user).await?;
        if let Some(here) = self.rooms.room(&room).await.map_err(ChangeError::from)? {
            let acl = self.rooms.acl(&here).await.map_err(ChangeError::from)?;
            if !acl.allows(&origin) {
                return Err(InviteRefused::NotAllowed.into());
            }
        }
        Ok(self.memberships.accept_invite(invited).await?)
    }
}

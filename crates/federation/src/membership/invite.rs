//! Invites of users of this server to rooms that are elsewhere.
//!
//! Nothing but an invite is signed: of the type, with the membership, of a user of the server that
//! sends it, for a user of this one. Whether that user exists and takes invites is asked between
//! [`Memberships::check_invite`] and [`Memberships::accept_invite`].
//!
//! Specification: server-server API, "Inviting to a room".

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use homeserver_events::{
    Handshake, Pdu, PduError, RoomVersion, Rules, StatusKind, Step,
    handshake::{CoSignError, NotTheStep},
};
use homeserver_rooms::{Outside, Received, Room, RoomError};
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomVersionId, UserId};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Inner, Memberships, state::names_its_create};
use crate::{CheckError, Dropped, PolicyError, is_same_server};

/// How long keys are waited for that are not known.
const PATIENCE: Duration = Duration::from_secs(10);

/// State events with an invite that are looked at.
const MAX_STATE: usize = 100;

/// An invite as another server sent it.
#[derive(Debug)]
pub struct ReceivedInvite {
    /// The server that sent it.
    pub origin: OwnedServerName,
    /// The room, as the path names it.
    pub room: OwnedRoomId,
    /// The event, as the path names it.
    pub event_id: OwnedEventId,
    /// The version of the room.
    pub version: String,
    /// The event.
    pub event: Box<RawValue>,
    /// State of the room.
    pub room_state: Vec<Box<RawValue>>,
}

/// An invite that was found to be one.
#[derive(Debug)]
pub struct Invited {
    /// Who is invited, a user of this server's name.
    pub user: OwnedUserId,
    /// Who invites.
    pub inviter: OwnedUserId,
    origin: OwnedServerName,
    version: RoomVersionId,
    pdu: Pdu,
    room_state: Vec<Box<RawValue>>,
}

/// Why an invite is not taken. Each variant says which answer it is.
#[derive(Debug, thiserror::Error)]
pub enum InviteRefused {
    /// 400 `M_INCOMPATIBLE_ROOM_VERSION`.
    #[error("this server does not support that room version")]
    Version(String),
    /// 400 `M_INVALID_PARAM`.
    #[error("the event is not one of that room version: {0}")]
    Form(#[from] PduError),
    /// 400 `M_INVALID_PARAM`.
    #[error(transparent)]
    NotAnInvite(#[from] NotTheStep),
    /// 400 `M_INVALID_PARAM`.
    #[error("the event is not signed as it must be: {0}")]
    Signatures(#[from] Dropped),
    /// 400 `M_MISSING_PARAM`.
    #[error("the create event is missing in invite_room_state")]
    NoCreate,
    /// 400 `M_INVALID_PARAM`.
    #[error("invite_room_state is not that of the room: {0}")]
    RoomState(String),
    /// 403 `M_FORBIDDEN`.
    #[error("the room does not allow this invite")]
    NotAllowed,
    /// 400 `M_INVALID_PARAM`.
    #[error(transparent)]
    CoSign(#[from] CoSignError),
    /// The room refuses, or could not tell.
    #[error(transparent)]
    Room(#[from] RoomError),
    /// Nothing could be checked. 500.
    #[error(transparent)]
    Check(#[from] CheckError),
}

impl Memberships {
    /// Whether what another server sent is an invite that may be signed.
    ///
    /// # Errors
    /// When it is not.
    pub async fn check_invite(&self, invite: ReceivedInvite) -> Result<Invited, InviteRefused> {
        self.inner.check_invite(invite).await
    }

    /// Signs an invite, and shows it to the invited user. The same invite a second time changes
    /// nothing.
    ///
    /// # Errors
    /// When the room, which is here, does not allow it.
    pub async fn accept_invite(&self, invited: Invited) -> Result<Pdu, InviteRefused> {
        self.inner.accept_invite(invited).await
    }
}

impl Inner {
    async fn check_invite(&self, invite: ReceivedInvite) -> Result<Invited, InviteRefused> {
        let unsupported = || InviteRefused::Version(invite.version.clone());
        let version = RoomVersion::parse(&invite.version).ok_or_else(unsupported)?;
        let rules = version.rules();
        let pdu = Pdu::parse(invite.event.get().as_bytes(), rules)?;
        // Names of servers are compared as the ids of users spell them.
        let sender = pdu.sender().server_name();
        if !is_same_server(sender, &invite.origin) {
            return Err(NotTheStep::Sender.into());
        }
        let handshake = Handshake {
            step: Step::Invite,
            room: &invite.room,
            event: &invite.event_id,
            origin: sender,
            own: self.own.server(),
        };
        handshake.check(&pdu)?;
        let json = Bytes::copy_from_slice(pdu.json());
        let mut verified = self.verifier.verify(vec![json], rules, PATIENCE).await?;
        match verified.pop() {
            Some(Ok(verified)) if verified.json() == pdu.json() => {}
            Some(Err(why)) => return Err(why.into()),
            _ => return Err(NotTheStep::Hash.into()),
        }
        self.check_room_state(&pdu, rules, &invite.room_state)
            .await?;
        let user = pdu.state_key().and_then(|key| UserId::parse(key).ok());
        Ok(Invited {
            user: user.ok_or(NotTheStep::StateKey)?,
            inviter: pdu.sender().to_owned(),
            origin: invite.origin,
            version: rules.version_id(),
            pdu,
            room_state: invite.room_state,
        })
    }

    /// The state that comes with an invite says which room it is: in versions whose room ids are
    /// hashes all of it must be whole events of that room, in older ones it must not say otherwise.
    async fn check_room_state(
        &self,
        invite: &Pdu,
        rules: &'static Rules,
        state: &[Box<RawValue>],
    ) -> Result<(), InviteRefused> {
        #[derive(Deserialize)]
        struct Kind<'a> {
            #[serde(rename = "type", borrow)]
            event_type: std::borrow::Cow<'a, str>,
            content: Content,
        }
        #[derive(Default, Deserialize)]
        struct Content {
            #[serde(default)]
            room_version: serde_json::Value,
        }
        let wrong = |why: &str| InviteRefused::RoomState(why.to_owned());
        if state.len() > MAX_STATE {
            return Err(wrong("too many events"));
        }
        let mut has_create = false;
        for event in state {
            let Ok(kind) = serde_json::from_str::<Kind<'_>>(event.get()) else {
                continue;
            };
            if kind.event_type == "m.room.create" {
                has_create = true;
                let version = kind.content.room_version;
                let version = version.as_str().unwrap_or("1");
                if version != rules.version.as_str() {
                    return Err(wrong("the room is of another version"));
                }
            }
        }
        if !names_its_create(rules) {
            if !has_create {
                tracing::debug!(room = %invite.room_id(), "an invite without the create event");
            }
            return Ok(());
        }
        if !has_create {
            return Err(InviteRefused::NoCreate);
        }
        let json = state.iter();
        let json = json.map(|event| Bytes::copy_from_slice(event.get().as_bytes()));
        let verified = self
            .verifier
            .verify(json.collect(), rules, PATIENCE)
            .await?;
        for event in verified {
            let event = event.map_err(|why| InviteRefused::RoomState(why.to_string()))?;
            if event.room_id() != invite.room_id() {
                return Err(wrong("an event of another room"));
            }
        }
        Ok(())
    }

    async fn accept_invite(&self, invited: Invited) -> Result<Pdu, InviteRefused> {
        let room = invited.pdu.room_id().to_owned();
        let handshake = Handshake {
            step: Step::Invite,
            room: &room,
            event: invited.pdu.event_id(),
            origin: invited.inviter.server_name(),
            own: self.own.server(),
        };
        let signed = handshake.co_sign(&invited.pdu, self.own.signing_key())?;
        if let Some(here) = self.rooms.room(&room).await? {
            if here.version != invited.version {
                return Err(InviteRefused::RoomState("another version".to_owned()));
            }
            if self.rooms.is_resident(&here).await? {
                return self.received_here(&here, signed).await;
            }
        }
        let mut via = vec![invited.inviter.server_name().to_owned()];
        if !is_same_server(&via[0], &invited.origin) {
            via.push(invited.origin);
        }
        let outside = Outside {
            user: invited.user,
            version: invited.version,
            pdu: signed.clone(),
            stripped: invited.room_state,
            via,
        };
        match self.rooms.note_outside(&outside).await {
            Ok(_) => Ok(signed),
            Err(RoomError::Forbidden(_)) => Err(InviteRefused::NotAllowed),
            Err(error) => Err(error.into()),
        }
    }

    /// An invite into a room that users of this server are in: it is judged like any event of the
    /// room, and signed for nobody whom the room would not let in.
    async fn received_here(&self, room: &Arc<Room>, signed: Pdu) -> Result<Pdu, InviteRefused> {
        let signed = match self.policies.seal(room, signed).await {
            Ok(signed) => signed,
            Err(PolicyError::Room(error)) => return Err(error.into()),
            Err(error) => {
                tracing::debug!(%error, room = %room.id, "an invite is not recommended");
                return Err(InviteRefused::NotAllowed);
            }
        };
        let is_taken = match self.rooms.receive(room, signed.clone()).await? {
            Received::Judged { status, .. } => {
                matches!(status, StatusKind::Accepted | StatusKind::PartialAccepted)
            }
            // It comes once more, with what it follows, and is judged by that then.
            Received::Missing { .. } => self.rooms.allows_now(room, &signed).await?,
        };
        if is_taken {
            Ok(signed)
        } else {
            Err(InviteRefused::NotAllowed)
        }
    }
}

//! The resident side of membership across servers: users of other servers are let into rooms of
//! this one, and users of this one invite those of others.
//!
//! A peer is believed nothing: what it hands over is the event that the request names, of a user of
//! its own, signed by it, and allowed by the room now; only then is it signed here, received like
//! any other event, and from then on sent to the rest of the room
//! ([`homeserver_events::relays`]).
//!
//! Specification: server-server API, "Joining Rooms", "Knocking upon a room", "Inviting to a room",
//! "Leaving Rooms".

mod answer;
mod invite;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::Stream;
use homeserver_events::{Handshake, Pdu, PduError, StatusKind, Step};
use homeserver_rooms::{Admitted, Received, Room, RoomError, Rooms};
use homeserver_runtime::Runtime;
use ruma::{EventId, RoomId, RoomVersionId, ServerName, UserId};

use self::answer::join_frame;
pub use self::{
    answer::{Form, knock_answer},
    invite::InviteError,
};
use crate::{
    CheckError, Dropped, Federation, OwnKeys, Peers, Policies, PolicyError, Verifier,
    is_same_server, written::Writers,
};

/// How long keys are waited for that are not known.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a request about a membership is refused. Each variant says which answer it is.
#[derive(Debug, thiserror::Error)]
pub enum ResidentError {
    /// This server does not know the room, or has no user in it. 404 `M_NOT_FOUND`.
    #[error("this server is not in that room")]
    UnknownRoom,
    /// 403 `M_FORBIDDEN`.
    #[error("the user is not one of the requesting server")]
    NotYours,
    /// 403 `M_FORBIDDEN`.
    #[error("the room does not admit your server")]
    Denied,
    /// The asking server does not know the version of the room, which is told.
    /// 400 `M_INCOMPATIBLE_ROOM_VERSION`.
    #[error("your server does not support the version of this room")]
    Version(RoomVersionId),
    /// 400 `M_BAD_JSON`.
    #[error("the body is not an event of the room's version: {0}")]
    Form(#[from] PduError),
    /// 400 `M_INVALID_PARAM`.
    #[error("the event is not signed as it must be: {0}")]
    Signatures(Dropped),
    /// 400 `M_INVALID_PARAM`.
    #[error("the event refers to events that are not in the room here")]
    Unfounded,
    /// 403 `M_FORBIDDEN`.
    #[error("the room does not allow this event")]
    NotAllowed,
    /// 403 `M_FORBIDDEN`.
    #[error("the policy server of the room does not recommend this event")]
    NotRecommended,
    /// The room refuses, or could not tell.
    #[error(transparent)]
    Room(#[from] RoomError),
    /// Nothing could be checked. 500.
    #[error(transparent)]
    Check(#[from] CheckError),
}

/// The template of an event.
#[derive(Clone, Debug)]
pub struct Template {
    /// The version of the room.
    pub version: RoomVersionId,
    /// A JSON object.
    pub event: String,
}

/// An event that is part of its room now.
#[derive(Clone, Debug)]
pub struct Taken {
    /// The room.
    pub room: Arc<Room>,
    /// The event, with the signature of this server.
    pub event: Pdu,
}

/// Lets users of other servers in and out, and invites them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Resident {
    rooms: Arc<Rooms>,
    verifier: Verifier,
    own: OwnKeys,
    peers: Peers,
    policies: Policies,
    writers: Writers,
    runtime: Runtime,
}

impl Resident {
    /// The resident side of these rooms.
    pub fn new(federation: &Federation, rooms: Arc<Rooms>, runtime: Runtime) -> Self {
        Self {
            verifier: federation.verifier.clone(),
            own: federation.own_keys.clone(),
            peers: federation.peers.clone(),
            policies: Policies::new(Arc::clone(&rooms), federation.peers.clone()),
            writers: Writers::new(runtime.tasks.clone()),
            rooms,
            runtime,
        }
    }

    /// The rooms.
    pub fn rooms(&self) -> &Arc<Rooms> {
        &self.rooms
    }

    /// The room, if a user of this server is in it, its whole state is here, and it admits `origin`.
    ///
    /// # Errors
    /// When there is no such room, or it does not admit the server.
    pub async fn room(
        &self,
        origin: &ServerName,
        room: &RoomId,
    ) -> Result<Arc<Room>, ResidentError> {
        let room = self.rooms.room(room).await?;
        let room = room.ok_or(ResidentError::UnknownRoom)?;
        // Of a room of partial state another server knows more.
        if !self.rooms.is_resident(&room).await? || self.rooms.is_partial(room.number) {
            return Err(ResidentError::UnknownRoom);
        }
        if self.rooms.acl(&room).await?.allows(origin) {
            Ok(room)
        } else {
            Err(ResidentError::Denied)
        }
    }

    /// The template of the event by which `user`, of the server `origin`, takes this step. `versions`
    /// are the room versions that the server knows; `None` where it was not to say.
    ///
    /// # Errors
    /// When the room does not let the user do so.
    pub async fn template(
        &self,
        origin: &ServerName,
        (step, room, user): (Step, &RoomId, &UserId),
        versions: Option<&[String]>,
    ) -> Result<Template, ResidentError> {
        if !is_same_server(user.server_name(), origin) {
            return Err(ResidentError::NotYours);
        }
        let room = self.room(origin, room).await?;
        let version = room.version.clone();
        let known = |versions: &[String]| versions.iter().any(|known| known == version.as_str());
        if versions.is_some_and(|versions| !known(versions)) {
            return Err(ResidentError::Version(version));
        }
        let event = self.rooms.membership_template(&room, user, step).await?;
        Ok(Template { version, event })
    }

    /// Takes the signed event of a step into its room. The answer comes when it is on disk. The
    /// same event may be handed over again.
    ///
    /// # Errors
    /// When it is not the event that the request names, not signed, or not allowed by the room.
    pub async fn take(
        &self,
        origin: &ServerName,
        (step, room, id): (Step, &RoomId, &EventId),
        body: &[u8],
    ) -> Result<Taken, ResidentError> {
        let room = self.room(origin, room).await?;
        let event = Pdu::parse(body, room.rules)?;
        // As its users spell it, if it is their server.
        let its_user = event.sender().server_name();
        let handshake = Handshake {
            step,
            room: &room.id,
            event: id,
            origin: if is_same_server(its_user, origin) {
                its_user
            } else {
                origin
            },
            own: self.own.server(),
        };
        let signed = match self.rooms.admit(&room, &event, &handshake).await? {
            Admitted::Before(event) => return Ok(Taken { room, event }),
            Admitted::Signed(event) => event,
        };
        let event = self.verified(&room, &signed).await?;
        let event = self.recommended(&room, event).await?;
        match self.rooms.receive(&room, event.clone()).await? {
            Received::Judged {
                status: StatusKind::Accepted,
                ..
            } => Ok(Taken { room, event }),
            Received::Judged { .. } => Err(ResidentError::NotAllowed),
            Received::Missing { .. } => Err(ResidentError::Unfounded),
        }
    }

    /// Takes a signed join into its room. Gives the answer in pieces: the state before it, without
    /// members if these are to be left out.
    ///
    /// # Errors
    /// Those of [`Resident::take`].
    pub async fn take_join(
        &self,
        origin: &ServerName,
        (room, id): (&RoomId, &EventId),
        body: &[u8],
        (omit_members, form): (bool, Form),
    ) -> Result<impl Stream<Item = Result<Bytes, RoomError>> + Send + use<>, ResidentError> {
        // Who is let in is told so: the turn comes first.
        let turn = self.writers.turn(origin).await?;
        let taken = self.take(origin, (Step::Join, room, id), body).await?;
        let join = taken.event.event_id();
        let handover = self.rooms.handover(&taken.room, join, omit_members).await?;
        let handover = handover.ok_or(ResidentError::NotAllowed)?;
        let frame = join_frame(&handover, self.own.server(), form);
        Ok(self.writers.write(turn, handover.chain, frame))
    }

    /// The event with the signature of the room's policy server, if it uses one.
    async fn recommended(&self, room: &Room, event: Pdu) -> Result<Pdu, ResidentError> {
        let id = event.event_id().to_owned();
        match self.policies.seal(room, event).await {
            Ok(event) => Ok(event),
            Err(PolicyError::Room(error)) => Err(error.into()),
            Err(error) => {
                tracing::debug!(%error, room = %room.id, %id, "a membership is not recommended");
                Err(ResidentError::NotRecommended)
            }
        }
    }

    /// The event, whose signatures hold.
    async fn verified(&self, room: &Room, event: &Pdu) -> Result<Pdu, ResidentError> {
        let json = Bytes::copy_from_slice(event.json());
        let checked = self
            .verifier
            .verify(vec![json], room.rules, PATIENCE)
            .await?;
        let checked = checked
            .into_iter()
            .next()
            .ok_or(ResidentError::NotAllowed)?;
        let checked = checked.map_err(ResidentError::Signatures)?;
        if checked == *event {
            Ok(checked)
        } else {
            Err(ResidentError::NotAllowed)
        }
    }
}

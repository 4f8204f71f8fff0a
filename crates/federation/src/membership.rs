//! The joining side of membership across servers: users of this server join, knock on and leave
//! rooms that are elsewhere, and are invited to them.
//!
//! Another server tells what the event has to follow; nothing else of what it hands over is signed.
//! The event is built here from parts that were each checked (`template`). What it answers to a join
//! is a claim about the room: signatures, the create event, the auth chain and the join itself are
//! checked before anybody sees the room (`state`). A join that fails leaves nothing, and an invite
//! stays an invite.
//!
//! Servers are tried one after the other, a bounded number of them; what they refused is told to
//! the client, the most telling refusal first.
//!
//! Specification: server-server API, "Joining Rooms", "Knocking upon a room", "Inviting to a room",
//! "Leaving Rooms (Rejecting Invites)".

mod complete;
mod ended;
mod exchange;
mod hear;
mod held;
mod invite;
mod join;
mod leave;
mod state;
mod template;
mod turns;
pub(crate) mod undo;

use std::{collections::HashSet, sync::Arc, time::Duration};

use homeserver_events::{SealError, Step};
use homeserver_rooms::{MemberProfile, RoomError, RoomNumber, Rooms};
use homeserver_runtime::Runtime;
use http::StatusCode;
use parking_lot::Mutex;
use ruma::{OwnedRoomId, OwnedServerName, OwnedUserId, RoomAliasId, RoomVersionId, ServerName};
use serde::Deserialize;
use tokio::sync::Semaphore;

pub use self::{
    exchange::Proof,
    held::HeldEvents,
    invite::{InviteRefused, Invited, ReceivedInvite},
};
use self::{held::Held, template::Template, turns::Turns};
use crate::{
    Call, CallError, CheckError, Federation, Limits, OwnKeys, Path, Peers, Policies, Verifier,
    is_same_server,
};

/// Servers that are tried for one join or knock: each may cost a whole deadline.
const MAX_CANDIDATES: usize = 10;
/// Answers with the state of a room that are read at once. A slow one keeps others waiting only
/// where as many are as slow.
const STATES_AT_ONCE: usize = 16;
/// Of those, large ones: each may come to be as large as `join::STATE_BODY`.
const LARGE_AT_ONCE: usize = 2;
/// Bytes of events from which on a state is large.
const LARGE: usize = 8 * 1024 * 1024;
/// How long small answers are waited for.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long an answer may stand still.
const STALL: Duration = Duration::from_secs(15);
/// Bytes of a template: an event and little else.
const TEMPLATE_BODY: usize = 256 * 1024;
/// Servers in the answer of a directory that are looked at.
const MAX_DIRECTORY_SERVERS: usize = 100;

/// Why a membership in a room that is elsewhere did not come about.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// No server is known that could be asked.
    #[error("no server is known that is in that room")]
    NoServers,
    /// The alias is not known to its server.
    #[error("no such alias")]
    UnknownAlias,
    /// A server refused, for a reason that clients may be told.
    #[error("{message}")]
    Refused {
        /// What it answered.
        status: StatusCode,
        /// The error code.
        errcode: String,
        /// Its words, for people.
        message: String,
        /// The version of the room, of `M_INCOMPATIBLE_ROOM_VERSION`.
        version: Option<RoomVersionId>,
    },
    /// No server did its part.
    #[error("none of the servers in that room could be used: {0}")]
    Unreachable(String),
    /// The room refuses, or could not tell.
    #[error(transparent)]
    Room(#[from] RoomError),
    /// Nothing could be checked.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// What was to be sent is no event.
    #[error("the event cannot be made")]
    Seal(#[from] SealError),
}

/// Why one server was of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// It did not answer, or refused.
    #[error(transparent)]
    Call(#[from] CallError),
    /// What it answered is not to be used.
    #[error("the answer is not to be used: {0}")]
    Answer(String),
    /// It may be right, but cannot be checked now.
    #[error("keys of {0} that signed a part of the room's state are not to be had now")]
    Keys(OwnedServerName),
    /// No other server would help.
    #[error(transparent)]
    Own(MembershipError),
}

impl Failure {
    fn answer(why: impl std::fmt::Display) -> Self {
        Self::Answer(why.to_string())
    }
}

/// Somebody who wants to join or knock.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The user, of this server.
    pub user: OwnedUserId,
    /// The room.
    pub room: OwnedRoomId,
    /// Servers that the client or a directory names.
    pub via: Vec<OwnedServerName>,
    /// What the event shows of the user.
    pub profile: MemberProfile,
    /// Why, for people.
    pub reason: Option<String>,
}

/// What became of a wish to join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Joined {
    /// The user is in the room.
    Yes,
    /// The room is here by now, with users of this server in it: it is to be joined here.
    Here,
}

/// Makes memberships in rooms that are elsewhere. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Memberships {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    enabled: bool,
    own: OwnKeys,
    peers: Peers,
    verifier: Verifier,
    policies: Policies,
    rooms: Arc<Rooms>,
    runtime: Runtime,
    turns: Turns,
    held: Held,
    states: Semaphore,
    /// Places for states that nobody waits for: of rooms of partial state.
    whole_states: Semaphore,
    large: Arc<Semaphore>,
    /// For what servers say that have no say in it.
    doubts: Arc<Semaphore>,
    /// Rooms of partial state that are being completed.
    completing: Mutex<HashSet<RoomNumber>>,
}

impl Memberships {
    /// Memberships of users of this server, over these calls.
    pub fn new(federation: &Federation, rooms: Arc<Rooms>, runtime: Runtime) -> Self {
        let inner = Inner {
            enabled: federation.enabled,
            own: federation.own_keys.clone(),
            peers: federation.peers.clone(),
            verifier: federation.verifier.clone(),
            policies: Policies::new(Arc::clone(&rooms), federation.peers.clone()),
            rooms,
            runtime,
            turns: Turns::default(),
            held: Held::new(),
            states: Semaphore::new(STATES_AT_ONCE),
            whole_states: Semaphore::new(complete::AT_ONCE),
            large: Arc::new(Semaphore::new(LARGE_AT_ONCE)),
            doubts: Arc::new(Semaphore::new(ended::DOUBTED_AT_ONCE)),
            completing: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Whether a room is only to be joined by way of other servers: it is not here, or no user of
    /// this server is in it while users of others are.
    ///
    /// # Errors
    /// When the rooms cannot be read.
    pub async fn is_elsewhere(&self, room: &ruma::RoomId) -> Result<bool, RoomError> {
        self.inner.is_elsewhere(room).await
    }

    /// Asks the server of an alias where it points.
    ///
    /// # Errors
    /// When that server does not know the alias, or does not answer.
    pub async fn look_up_alias(
        &self,
        alias: &RoomAliasId,
    ) -> Result<(OwnedRoomId, Vec<OwnedServerName>), MembershipError> {
        let path = Path::v1("query/directory").query("room_alias", alias.as_str());
        let call = Call::get(path).limits(usual(TEMPLATE_BODY)).urgent();
        let answer = self.inner.peers.ask(alias.server_name(), call).await;
        let answer = answer.map_err(|error| of_alias(alias, error))?;
        #[derive(Deserialize)]
        struct Target {
            room_id: OwnedRoomId,
            #[serde(default)]
            servers: Vec<String>,
        }
        let unusable = |error: CallError| MembershipError::Unreachable(error.to_string());
        let target: Target = answer.read().map_err(unusable)?;
        let servers = target.servers.iter().take(MAX_DIRECTORY_SERVERS);
        let servers = servers.filter_map(|name| ServerName::parse(name).ok());
        Ok((target.room_id, servers.collect()))
    }
}

fn of_alias(alias: &RoomAliasId, error: CallError) -> MembershipError {
    match error {
        CallError::Disabled | CallError::OwnServer => MembershipError::UnknownAlias,
        CallError::Refused { status, .. } if status == StatusCode::NOT_FOUND => {
            MembershipError::UnknownAlias
        }
        error => MembershipError::Unreachable(format!("{alias}: {error}")),
    }
}

fn usual(body: usize) -> Limits {
    Limits {
        body,
        deadline: PATIENCE,
        stall: STALL,
    }
}

impl Inner {
    async fn is_elsewhere(&self, id: &ruma::RoomId) -> Result<bool, RoomError> {
        if !self.enabled {
            return Ok(false);
        }
        let Some(room) = self.rooms.room(id).await? else {
            return Ok(true);
        };
        if self.rooms.is_resident(&room).await? {
            return Ok(false);
        }
        let servers = self.rooms.servers(room.number, 1).await?;
        Ok(!servers.is_empty())
    }

    /// The servers that may be in a room, the likeliest first.
    async fn candidates(&self, wanted: &Wanted) -> Result<Vec<OwnedServerName>, RoomError> {
        let mut found: Vec<OwnedServerName> = Vec::new();
        let standing = self.rooms.standing_of(&wanted.user, &wanted.room).await?;
        if let Some(standing) = standing {
            let inviter = standing.pdu.sender().server_name().to_owned();
            found.extend(standing.via);
            found.push(inviter);
        }
        found.splice(0..0, wanted.via.iter().cloned());
        found.extend(wanted.room.server_name().map(ToOwned::to_owned));
        if let Some(room) = self.rooms.room(&wanted.room).await? {
            found.extend(self.rooms.servers(room.number, MAX_CANDIDATES).await?);
        }
        let mut candidates: Vec<OwnedServerName> = Vec::new();
        for server in found {
            let known = candidates
                .iter()
                .any(|known| is_same_server(known, &server));
            if !known && !is_same_server(&server, self.own.server()) {
                candidates.push(server);
            }
        }
        candidates.truncate(MAX_CANDIDATES);
        Ok(candidates)
    }
}

/// What servers that were tried were of no use for.
#[derive(Debug, Default)]
struct Failures(Vec<Failure>);

impl Failures {
    /// Notes a failure, after which the next server may be tried; not one of our own.
    fn note(&mut self, server: &ServerName, failure: Failure) -> Result<(), MembershipError> {
        if let Failure::Own(error) = failure {
            return Err(error);
        }
        tracing::debug!(%server, %failure, "a server is of no use for a membership");
        self.0.push(failure);
        Ok(())
    }

    /// What a client is told when no server was of use.
    fn most_telling(self) -> MembershipError {
        most_telling(self.0)
    }
}

/// What a client is told when no server was of use.
fn most_telling(failures: Vec<Failure>) -> MembershipError {
    let mut best: Option<(usize, MembershipError)> = None;
    let mut last = None;
    for failure in failures {
        let Failure::Call(CallError::Refused {
            status,
            errcode,
            message,
            body,
        }) = failure
        else {
            last = Some(failure);
            continue;
        };
        let Some(rank) = telling(&errcode) else {
            last = Some(Failure::answer(format!("{status} {errcode}")));
            continue;
        };
        if best.as_ref().is_none_or(|(known, _)| rank < *known) {
            #[derive(Deserialize)]
            struct Version {
                room_version: RoomVersionId,
            }
            let version = serde_json::from_slice::<Version>(&body).ok();
            let refused = MembershipError::Refused {
                status,
                errcode,
                message,
                version: version.map(|version| version.room_version),
            };
            best = Some((rank, refused));
        }
    }
    match (best, last) {
        (Some((_, refused)), _) => refused,
        (None, Some(failure)) => MembershipError::Unreachable(failure.to_string()),
        (None, None) => MembershipError::NoServers,
    }
}

/// Refusals that say something about the user and the room, not about the request; the more telling
/// ones first.
fn telling(errcode: &str) -> Option<usize> {
    let order = [
        "M_FORBIDDEN",
        "M_INCOMPATIBLE_ROOM_VERSION",
        "M_UNABLE_TO_AUTHORISE_JOIN",
        "M_UNABLE_TO_GRANT_JOIN",
        "M_NOT_FOUND",
    ];
    order.iter().position(|known| *known == errcode)
}

/// The word of a step in the paths of its endpoints.
const fn word(step: Step) -> &'static str {
    step.membership()
}

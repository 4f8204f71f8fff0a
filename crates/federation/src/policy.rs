//! Asking the policy server of a room to recommend events: those of other servers that lack its
//! signature, those of this server before they are sent, and memberships that are handed over
//! before they are let in.
//!
//! Specification: server-server API, "Asking for a Policy Server signature on an event".

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use homeserver_events::{Pdu, PolicyServer, SoftFailReason, policy::POLICY_KEY};
use homeserver_rooms::{Room, RoomError, Rooms};

use crate::{Call, CallError, Limits, Path, Peers, is_same_server};

/// Events that one policy server is asked about at once.
const AT_ONCE: usize = 4;
/// How long it is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of its answer.
const MAX_ANSWER: usize = 16 * 1024;

/// Why an event is not recommended.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The policy server refuses, or cannot be asked.
    #[error(transparent)]
    Call(#[from] CallError),
    /// It answered, and not with a valid signature.
    #[error("the policy server of the room did not sign the event")]
    NotSigned,
    /// The room's state cannot be read.
    #[error(transparent)]
    Room(#[from] RoomError),
}

/// Asks policy servers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Policies {
    rooms: Arc<Rooms>,
    peers: Peers,
}

impl Policies {
    /// Asks those of these rooms.
    pub fn new(rooms: Arc<Rooms>, peers: Peers) -> Self {
        Self { rooms, peers }
    }

    /// Received events, each with the reason to soft-fail it if the room's policy server does not
    /// recommend it. Where a signature was asked for, the event has it then.
    ///
    /// # Errors
    /// When the room's state cannot be read.
    pub async fn check(
        &self,
        room: &Room,
        events: Vec<Pdu>,
    ) -> Result<Vec<(Pdu, Option<SoftFailReason>)>, RoomError> {
        let Some(policy) = self.rooms.policy_server(room).await? else {
            return Ok(events.into_iter().map(|event| (event, None)).collect());
        };
        let check = async |event: Pdu| match self.sealed_by(&policy, &event, false).await {
            Ok(signed) => (signed, None),
            Err(error) => {
                let id = event.event_id();
                tracing::debug!(%error, room = %room.id, %id, "an event is not recommended");
                (event, Some(SoftFailReason::PolicyServer))
            }
        };
        let checked = stream::iter(events).map(check).buffered(AT_ONCE);
        Ok(checked.collect().await)
    }

    /// An event that somebody waits for, with the signature of the room's policy server, if it uses
    /// one.
    ///
    /// # Errors
    /// When the policy server does not recommend it.
    pub async fn seal(&self, room: &Room, event: Pdu) -> Result<Pdu, PolicyError> {
        match self.rooms.policy_server(room).await? {
            Some(policy) => self.sealed_by(&policy, &event, true).await,
            None => Ok(event),
        }
    }

    async fn sealed_by(
        &self,
        policy: &PolicyServer,
        event: &Pdu,
        urgent: bool,
    ) -> Result<Pdu, PolicyError> {
        if !PolicyServer::judges(event) || policy.has_signed(event) {
            return Ok(event.clone());
        }
        let path = Path::of("/_matrix/policy/v1/sign");
        let call = Call::post(path, event.json().to_vec()).limits(Limits {
            body: MAX_ANSWER,
            deadline: PATIENCE,
            stall: PATIENCE,
        });
        let call = if urgent { call.urgent() } else { call };
        let answer = self.peers.ask(policy.via(), call).await?;
        let signatures: BTreeMap<String, BTreeMap<String, String>> = answer.read()?;
        let theirs = signatures.into_iter().find(|(server, _)| {
            ruma::ServerName::parse(server.as_str())
                .is_ok_and(|server| is_same_server(&server, policy.via()))
        });
        let signature = theirs.and_then(|(_, mut theirs)| theirs.remove(POLICY_KEY));
        let signed = signature.and_then(|signature| policy.with_signature(event, &signature));
        signed.ok_or(PolicyError::NotSigned)
    }
}

//! Inviting users of other servers: their server signs the event before it is part of the room.
//!
//! Specification: server-server API, "Inviting to a room".

use std::time::Duration;

use homeserver_events::{CoSignError, Pdu, StatusKind, with_signatures_of};
use homeserver_rooms::{Proposed, Received, RoomError};
use http::StatusCode;
use ruma::{OwnedEventId, ServerName, UserId};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{PATIENCE, Resident, answer::listed};
use crate::{Answer, Call, CallError, CheckError, Limits, Path};

/// Bytes of the largest answer: an event with its signatures and a little around it.
const MAX_ANSWER: usize = 256 * 1024;

/// How long the other server may take to sign.
const DEADLINE: Duration = Duration::from_secs(30);

/// How long it may stand still.
const STALL: Duration = Duration::from_secs(10);

/// Why an invite was not made.
#[derive(Debug, thiserror::Error)]
pub enum InviteError {
    /// The other server was not reached, or refused.
    #[error(transparent)]
    Call(#[from] CallError),
    /// What it answered is not the event with its signature.
    #[error("the answer to an invite is no such event: {0}")]
    Answer(#[from] CoSignError),
    /// Its signature is wrong, or by a key that it does not publish.
    #[error("the other server did not sign the invite")]
    NotSigned,
    /// The event invites nobody elsewhere.
    #[error("the event invites nobody")]
    Nobody,
    /// The room does not allow the invite any more, or could not tell.
    #[error(transparent)]
    Room(#[from] RoomError),
    /// The signature could not be checked.
    #[error(transparent)]
    Check(#[from] CheckError),
}

impl Resident {
    /// Has the invited user's server sign a proposed invite and makes it part of its room. What was
    /// begun is ended, also if nobody waits for it. Gives the id of the event.
    ///
    /// # Errors
    /// When the other server does not sign, and when the room does not allow the invite any more.
    pub async fn invite(&self, proposed: Proposed) -> Result<OwnedEventId, InviteError> {
        let this = self.clone();
        let done = async move { this.invite_now(proposed).await };
        self.runtime.tasks.see_through(done).await
    }

    async fn invite_now(&self, proposed: Proposed) -> Result<OwnedEventId, InviteError> {
        let event = &proposed.event;
        let target = event.state_key().and_then(|key| UserId::parse(key).ok());
        let target = target.ok_or(InviteError::Nobody)?;
        let server = target.server_name();
        let theirs = self.ask(server, &proposed).await?;
        let signed = with_signatures_of(event, &theirs, server)?;
        if !self
            .verifier
            .is_signed_by(&signed, server, PATIENCE)
            .await?
        {
            return Err(InviteError::NotSigned);
        }
        let id = signed.event_id().to_owned();
        let received = self.rooms.receive(&proposed.room, signed).await?;
        if let Received::Judged {
            status: StatusKind::Accepted | StatusKind::PartialAccepted,
            ..
        } = received
        {
            return Ok(id);
        }
        let why = "the room changed and does not allow this invite any more";
        Err(RoomError::Forbidden(why.to_owned()).into())
    }

    /// The event as the other server answers it.
    async fn ask(&self, server: &ServerName, proposed: &Proposed) -> Result<Pdu, InviteError> {
        #[derive(Deserialize)]
        struct Signed<'a> {
            #[serde(borrow)]
            event: &'a RawValue,
        }
        let event = &proposed.event;
        let bad = |error: &dyn std::fmt::Display| CallError::BadAnswer(error.to_string());
        let answer = match self
            .ask_by(Path::v2("invite"), server, proposed, in_v2)
            .await
        {
            Err(error) if is_old(&error) && event.rules().event_id_server_signs => {
                let answer = self
                    .ask_by(Path::v1("invite"), server, proposed, in_v1)
                    .await?;
                let pair: (u16, Signed<'_>) =
                    serde_json::from_slice(&answer.body).map_err(|error| bad(&error))?;
                return parsed(pair.1.event, event);
            }
            other => other?,
        };
        let signed: Signed<'_> =
            serde_json::from_slice(&answer.body).map_err(|error| bad(&error))?;
        parsed(signed.event, event)
    }

    async fn ask_by(
        &self,
        endpoint: Path,
        server: &ServerName,
        proposed: &Proposed,
        body: fn(&Proposed) -> String,
    ) -> Result<Answer, CallError> {
        let path = endpoint
            .segment(&proposed.room.id)
            .segment(proposed.event.event_id());
        let limits = Limits {
            body: MAX_ANSWER,
            deadline: DEADLINE,
            stall: STALL,
        };
        let call = Call::put(path, body(proposed)).limits(limits).urgent();
        self.peers.ask(server, call).await
    }
}

fn parsed(answered: &RawValue, event: &Pdu) -> Result<Pdu, InviteError> {
    let answered = Pdu::parse(answered.get().as_bytes(), event.rules());
    answered.map_err(|error| InviteError::Answer(error.into()))
}

/// Whether a server that answers so may know the first version of the endpoint only.
fn is_old(error: &CallError) -> bool {
    matches!(error, CallError::Refused { status, .. }
        if matches!(*status, StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND))
}

fn in_v2(proposed: &Proposed) -> String {
    format!(
        "{{\"room_version\":\"{}\",\"event\":{},\"invite_room_state\":[{}]}}",
        proposed.room.rules.version.as_str(),
        proposed.event.json_str(),
        listed(&proposed.room_state, true),
    )
}

/// The event with the state in its `unsigned`.
fn in_v1(proposed: &Proposed) -> String {
    let event = proposed.event.json_str();
    let open = event.strip_suffix('}').unwrap_or(event);
    let state = listed(&proposed.room_state, true);
    format!("{open},\"unsigned\":{{\"invite_room_state\":[{state}]}}}}")
}

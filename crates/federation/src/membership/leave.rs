//! Knocking on a room that is elsewhere, and leaving one: refusing an invite, taking a knock back.
//!
//! Specification: server-server API, "Knocking upon a room", "Leaving Rooms (Rejecting Invites)".

use std::sync::Arc;

use bytes::Bytes;
use homeserver_events::{Draft, Pdu, Step};
use homeserver_rooms::{MemberProfile, Membership, Outside, RoomError, Standing};
use ruma::{OwnedServerName, RoomId, RoomVersionId, ServerName, UserId};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Failure, Failures, Inner, MembershipError, Memberships, TEMPLATE_BODY, Wanted,
    template::content, usual,
};
use crate::{Call, Path};

/// Servers that are asked to pass on that somebody left: the client waits meanwhile, and is out of
/// the room for itself in any case.
const MAX_TOLD: usize = 3;

/// Bytes of the answer to a knock: some state events.
const KNOCK_BODY: usize = 2 * 1024 * 1024;

impl Memberships {
    /// Knocks on a room that is elsewhere.
    ///
    /// # Errors
    /// When no server passes the knock on.
    pub async fn knock(&self, wanted: Wanted) -> Result<(), MembershipError> {
        let inner = Arc::clone(&self.inner);
        let knocking = async move { inner.knock(&wanted).await };
        self.inner.runtime.tasks.see_through(knocking).await
    }

    /// Lets a user of this server refuse an invite or take a knock back, of a room that is
    /// elsewhere. If no server passes that on, it holds here all the same. Gives false where the
    /// user's membership is not one from elsewhere.
    ///
    /// # Errors
    /// When it cannot be stored.
    pub async fn leave(
        &self,
        user: &UserId,
        room: &RoomId,
        reason: Option<String>,
    ) -> Result<bool, MembershipError> {
        let inner = Arc::clone(&self.inner);
        let wanted = Wanted {
            user: user.to_owned(),
            room: room.to_owned(),
            via: Vec::new(),
            profile: MemberProfile::default(),
            reason,
        };
        let leaving = async move { inner.leave(&wanted).await };
        self.inner.runtime.tasks.see_through(leaving).await
    }
}

impl Inner {
    async fn knock(&self, wanted: &Wanted) -> Result<(), MembershipError> {
        let _turn = self.turns.turn(&wanted.room).await;
        let servers = self.candidates(wanted).await?;
        let mut failures = Failures::default();
        for server in &servers {
            match self.knock_through(server, wanted).await {
                Ok(outside) => {
                    self.rooms.note_outside(&outside).await?;
                    return Ok(());
                }
                Err(failure) => failures.note(server, failure)?,
            }
        }
        Err(failures.most_telling())
    }

    async fn knock_through(
        &self,
        server: &ServerName,
        wanted: &Wanted,
    ) -> Result<Outside, Failure> {
        #[derive(Deserialize)]
        struct Answer {
            knock_room_state: Option<Vec<Box<RawValue>>>,
        }
        let template = self.template(server, Step::Knock, wanted).await?;
        let knock = self.seal(&template, Step::Knock, wanted)?;
        let path = Path::v1("send_knock")
            .segment(wanted.room.as_str())
            .segment(knock.event_id().as_str());
        let call = Call::put(path, Bytes::copy_from_slice(knock.json()));
        let call = call.limits(usual(KNOCK_BODY)).urgent();
        let answer: Answer = self.peers.ask(server, call).await?.read()?;
        Ok(Outside {
            user: wanted.user.clone(),
            version: template.version,
            pdu: knock,
            stripped: answer.knock_room_state.unwrap_or_default(),
            via: vec![server.to_owned()],
        })
    }

    async fn leave(&self, wanted: &Wanted) -> Result<bool, MembershipError> {
        let _turn = self.turns.turn(&wanted.room).await;
        let standing = self.rooms.standing_of(&wanted.user, &wanted.room).await?;
        let Some(standing) = standing.filter(|standing| standing.outside) else {
            return Ok(false);
        };
        match standing.membership.membership {
            Membership::Invite | Membership::Knock => {}
            Membership::Leave | Membership::Ban => return Ok(true),
            Membership::Join => return Ok(false),
        }
        let mut servers: Vec<OwnedServerName> = self.candidates(wanted).await?;
        servers.truncate(MAX_TOLD);
        let mut passed_on = None;
        for server in &servers {
            let version = Some(&standing.room.version);
            match self.leave_through(server, wanted, version).await {
                Ok(leave) => {
                    passed_on = Some(leave);
                    break;
                }
                Err(failure) => {
                    tracing::info!(room = %wanted.room, %server, %failure, "a leave is not passed on");
                }
            }
        }
        let leave = match passed_on {
            Some(leave) => leave,
            None => self.left_alone(wanted, &standing)?,
        };
        let outside = Outside {
            user: wanted.user.clone(),
            version: standing.room.version.clone(),
            pdu: leave,
            stripped: Vec::new(),
            via: Vec::new(),
        };
        match self.rooms.note_outside(&outside).await {
            // It came about in the meantime.
            Ok(_) | Err(RoomError::Forbidden(_)) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Has a leave passed on by a server: of a room of this version, if it is known here.
    pub(super) async fn leave_through(
        &self,
        server: &ServerName,
        wanted: &Wanted,
        version: Option<&RoomVersionId>,
    ) -> Result<Pdu, Failure> {
        let template = self.template(server, Step::Leave, wanted).await?;
        // Its event would be unreadable here.
        if version.is_some_and(|version| *version != template.version) {
            return Err(Failure::answer("the room is of another version"));
        }
        let leave = self.seal(&template, Step::Leave, wanted)?;
        let path = Path::v2("send_leave")
            .segment(wanted.room.as_str())
            .segment(leave.event_id().as_str());
        let call = Call::put(path, Bytes::copy_from_slice(leave.json()));
        let call = call.limits(usual(TEMPLATE_BODY)).urgent();
        self.peers.ask(server, call).await?;
        Ok(leave)
    }

    /// The leaving that nobody else hears of: it follows the invite or the knock, and is never sent.
    fn left_alone(&self, wanted: &Wanted, standing: &Standing) -> Result<Pdu, MembershipError> {
        let before = &standing.pdu;
        let reference = before.reference();
        let reference = reference.map_err(homeserver_events::SealError::Content)?;
        let content = content(Step::Leave, wanted, None);
        let content = content.map_err(|failure| match failure {
            Failure::Own(error) => error,
            other => MembershipError::Unreachable(other.to_string()),
        })?;
        let draft = Draft {
            room_id: Some(wanted.room.clone()),
            sender: wanted.user.clone(),
            event_type: "m.room.member".to_owned(),
            state_key: Some(wanted.user.to_string()),
            content,
            origin_server_ts: self.runtime.clock.unix_millis(),
            prev_events: vec![reference.clone()],
            auth_events: vec![reference],
            depth: before.depth().saturating_add(1),
            redacts: None,
        };
        let rules = standing.room.rules;
        Ok(draft.seal(rules, self.own.server(), self.own.signing_key())?)
    }
}

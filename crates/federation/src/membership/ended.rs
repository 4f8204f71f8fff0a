//! Invites and knocks that somebody elsewhere ends: kicks and bans of users of this server who wait
//! to be let into a room that is not here.
//!
//! Whether the room allows such an event cannot be checked. A server by which the user is known to
//! the room is believed; what any other says is asked of these: a server in the room gives nobody a
//! template for leaving who is not there.
//!
//! Specification: server-server API, "Inviting to a room", "Knocking upon a room".

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use homeserver_events::{Pdu, Step};
use homeserver_rooms::{MemberProfile, Membership, Outside, RoomError, Standing};
use http::StatusCode;
use ruma::{OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, ServerName, UserId};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::{Failure, HeldEvents, Inner, Memberships, Wanted};
use crate::{CallError, inbound, is_same_server};

/// How long keys are waited for that are not known.
const PATIENCE: Duration = Duration::from_secs(10);

/// What other servers say that is looked into at once: each asks a server or two. More is passed
/// over; users can leave by themselves.
pub(super) const DOUBTED_AT_ONCE: usize = 16;

/// Pauses before a server is asked: it may not have heard yet.
const PAUSES: [Duration; 3] = [
    Duration::from_secs(2),
    Duration::from_secs(20),
    Duration::from_mins(3),
];

/// What an event does, as far as it says so itself.
#[derive(Deserialize)]
struct Member {
    #[serde(rename = "type")]
    event_type: String,
    state_key: OwnedUserId,
    content: Content,
}

#[derive(Deserialize)]
struct Content {
    membership: String,
}

/// An event that ends a membership if what it says is so.
struct Doubted {
    user: OwnedUserId,
    room: OwnedRoomId,
    origin: OwnedServerName,
    json: Bytes,
}

#[async_trait]
impl inbound::Outside for Memberships {
    async fn outside(
        &self,
        origin: &ServerName,
        room: &RoomId,
        json: Bytes,
    ) -> Option<Result<(), String>> {
        let own = self.own_matter(origin, room, json.clone()).await;
        if own.is_none() && self.inner.held.take(origin, room, &json) {
            return Some(Err("the room is being joined".to_owned()));
        }
        own
    }

    fn held(&self) -> Option<mpsc::Receiver<HeldEvents>> {
        self.inner.held.hear()
    }
}

impl Memberships {
    /// What came of an event that may end the membership of a user of this server.
    async fn own_matter(
        &self,
        origin: &ServerName,
        room: &RoomId,
        json: Bytes,
    ) -> Option<Result<(), String>> {
        let member: Member = serde_json::from_slice(&json).ok()?;
        let ends = matches!(&*member.content.membership, "leave" | "ban");
        let inner = &self.inner;
        if member.event_type != "m.room.member" || !ends || !inner.rooms.is_local(&member.state_key)
        {
            return None;
        }
        let user = member.state_key;
        let standing = match inner.waiting(&user, room).await {
            Ok(standing) => standing?,
            Err(error) => return Some(Err(error.to_string())),
        };
        if is_known_to(&standing, origin) {
            return Some(inner.end(origin, (&user, room), &standing, json).await);
        }
        self.look_into(Doubted {
            user,
            room: room.to_owned(),
            origin: origin.to_owned(),
            json,
        });
        None
    }

    /// Finds out whether what a server says that has no say in it is so, in the background.
    fn look_into(&self, doubted: Doubted) {
        let inner = Arc::clone(&self.inner);
        let Ok(place) = Arc::clone(&inner.doubts).try_acquire_owned() else {
            return;
        };
        let tasks = inner.runtime.tasks.clone();
        self.inner.runtime.tasks.spawn(async move {
            let _place = place;
            for pause in PAUSES {
                tokio::select! {
                    biased;
                    () = tasks.stopping() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                match inner.try_end(&doubted).await {
                    Ok(true) => return,
                    Ok(false) => {}
                    Err(error) => {
                        let (room, user) = (&doubted.room, &doubted.user);
                        tracing::debug!(%error, %room, %user, "a kick is not taken");
                    }
                }
            }
        });
    }
}

fn is_known_to(standing: &Standing, server: &ServerName) -> bool {
    let mut via = standing.via.iter();
    via.any(|known| is_same_server(known, server))
}

impl Inner {
    /// What a user is to a room that is elsewhere, if they are invited to it or knock.
    async fn waiting(&self, user: &UserId, room: &RoomId) -> Result<Option<Standing>, RoomError> {
        let standing = self.rooms.standing_of(user, room).await?;
        Ok(standing.filter(|standing| {
            let membership = standing.membership.membership;
            let waits = matches!(membership, Membership::Invite | Membership::Knock);
            standing.outside && waits
        }))
    }

    /// Takes an event that ends an invite or a knock, if it is one of its server.
    async fn end(
        &self,
        origin: &ServerName,
        (user, room): (&UserId, &RoomId),
        standing: &Standing,
        json: Bytes,
    ) -> Result<(), String> {
        let rules = standing.room.rules;
        let verified = self.verifier.verify(vec![json], rules, PATIENCE).await;
        let verified = verified.map_err(|error| error.to_string())?.pop();
        let pdu: Pdu = match verified {
            Some(Ok(pdu)) => pdu,
            Some(Err(why)) => return Err(why.to_string()),
            None => return Err("the event was not checked".to_owned()),
        };
        if pdu.room_id() != room || !is_same_server(pdu.sender().server_name(), origin) {
            return Err("the event is not of that server and room".to_owned());
        }
        let outside = Outside {
            user: user.to_owned(),
            version: standing.room.version.clone(),
            pdu,
            stripped: Vec::new(),
            via: Vec::new(),
        };
        let noted = self.rooms.note_outside(&outside).await;
        noted.map(drop).map_err(|error| error.to_string())
    }

    /// Ends a membership if the servers by which it is known say that it ended. Gives whether there
    /// is nothing left to find out.
    async fn try_end(&self, doubted: &Doubted) -> Result<bool, String> {
        let Doubted {
            user, room, origin, ..
        } = doubted;
        let _turn = self.turns.turn(room).await;
        let standing = self.waiting(user, room).await;
        let Some(standing) = standing.map_err(|error| error.to_string())? else {
            return Ok(true);
        };
        let wanted = Wanted {
            user: user.clone(),
            room: room.clone(),
            via: Vec::new(),
            profile: MemberProfile::default(),
            reason: None,
        };
        for server in &standing.via {
            match self.template(server, Step::Leave, &wanted).await {
                Ok(_) => return Ok(false),
                Err(Failure::Call(CallError::Refused { status, .. }))
                    if status == StatusCode::FORBIDDEN =>
                {
                    let about = (&**user, &**room);
                    let ended = self.end(origin, about, &standing, doubted.json.clone());
                    return ended.await.map(|()| true);
                }
                Err(failure) => {
                    tracing::debug!(%room, %server, %failure, "whether a membership ended is not known");
                }
            }
        }
        Ok(false)
    }
}

//! Joins that another server let in and that came to nothing here: that server believes that the
//! user is in the room, until it is told otherwise.
//!
//! Before a join is handed over, a row says so; it goes with the room that is taken in, and with a
//! refusal. What a row is left of, also after a crash, ends with a leave. There is none for users
//! who are invited: with it they would lose the invite, of which they can make another join, or
//! which they can refuse.
//!
//! Specification: server-server API, "Joining Rooms", "Leaving Rooms (Rejecting Invites)".

use std::{sync::Arc, time::Duration};

use homeserver_rooms::{MemberProfile, Membership, RoomError};
use homeserver_storage::{Batch, CommitError, Direction, Durability, ScanRange, row};
use http::StatusCode;
use ruma::{OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, ServerName, UserId};
use serde::{Deserialize, Serialize};

use super::{Failure, Inner, Memberships, Wanted};
use crate::{CallError, is_same_server, tables::UNSURE_JOINS};

/// Times that it is tried to leave, in about an hour: a server that is away for longer finds out
/// when it sends its events here.
const ATTEMPTS: u32 = 9;

/// The pause after the first attempt; it doubles.
const PAUSE: Duration = Duration::from_secs(10);

/// Joins that are looked after at once when this server starts.
const RESUMED: usize = 500;

/// Servers that were handed a join, of which is not known that it came to nothing there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UnsureJoin {
    pub(crate) servers: Vec<OwnedServerName>,
}
row!(UnsureJoin, 1);

impl Memberships {
    /// Goes on with what the last process left undone.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn resume(&self) -> Result<(), RoomError> {
        let store = self.inner.rooms.store();
        let all = ScanRange::all();
        let rows = store.scan(&UNSURE_JOINS, all, Direction::Forward, RESUMED);
        for ((user, room), _) in rows.await? {
            if let (Ok(user), Ok(room)) = (UserId::parse(user), RoomId::parse(room)) {
                undo(&self.inner, user, room);
            }
        }
        Ok(())
    }
}

/// Has what a failed join may have left elsewhere ended, in the background.
pub(super) fn undo(inner: &Arc<Inner>, user: OwnedUserId, room: OwnedRoomId) {
    let this = Arc::clone(inner);
    let tasks = inner.runtime.tasks.clone();
    inner.runtime.tasks.spawn(async move {
        let mut pause = PAUSE;
        for _ in 0..ATTEMPTS {
            match this.try_undo(&user, &room).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, %room, "a failed join is not undone yet"),
            }
            tokio::select! {
                biased;
                // It is gone on with after the next start.
                () = tasks.stopping() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause *= 2;
        }
        tracing::info!(%user, %room, "whether a failed join is undone elsewhere is not known");
        this.is_sure(&user, &room).await;
    });
}

impl Inner {
    /// Notes that a server is about to be handed a join.
    pub(super) async fn is_unsure(
        &self,
        wanted: &Wanted,
        server: &ServerName,
    ) -> Result<(), RoomError> {
        let key = (wanted.user.as_str(), wanted.room.as_str());
        let row = self.rooms.store().get(&UNSURE_JOINS, &key).await?;
        let mut row = row.unwrap_or_default();
        row.servers.retain(|one| !is_same_server(one, server));
        row.servers.push(server.to_owned());
        let mut batch = Batch::new();
        batch.put(&UNSURE_JOINS, &key, &row);
        let written = self.rooms.store().commit(batch).await;
        written.map(drop).map_err(RoomError::NotStored)
    }

    /// Notes that it came to nothing with this server.
    pub(super) async fn was_refused(&self, wanted: &Wanted, server: &ServerName) {
        let key = (wanted.user.as_str(), wanted.room.as_str());
        let row = self.rooms.store().get(&UNSURE_JOINS, &key).await;
        let mut row = row.ok().flatten().unwrap_or_default();
        row.servers.retain(|one| !is_same_server(one, server));
        let mut batch = Batch::new();
        if row.servers.is_empty() {
            batch.delete(&UNSURE_JOINS, &key);
        } else {
            batch.put(&UNSURE_JOINS, &key, &row);
        }
        self.write_lazily(batch).await;
    }

    /// Notes that there is nothing to undo.
    pub(super) async fn is_sure(&self, user: &UserId, room: &RoomId) {
        let mut batch = Batch::new();
        batch.delete(&UNSURE_JOINS, &(user.as_str(), room.as_str()));
        self.write_lazily(batch).await;
    }

    /// What is lost with the process is found out again by whoever reads the row.
    async fn write_lazily(&self, batch: Batch) {
        let store = self.rooms.store();
        let written: Result<_, CommitError> = match store.submit(batch, Durability::Lazy).await {
            Ok(ticket) => ticket.await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = written {
            tracing::warn!(%error, "a row about a join is left");
        }
    }

    /// Ends a membership elsewhere that came to nothing here. Gives whether there is nothing left to
    /// do.
    async fn try_undo(&self, user: &UserId, room: &RoomId) -> Result<bool, RoomError> {
        // Who joins anew comes before or after it.
        let _turn = self.turns.turn(room).await;
        let key = (user.as_str(), room.as_str());
        let Some(row) = self.rooms.store().get(&UNSURE_JOINS, &key).await? else {
            return Ok(true);
        };
        let standing = self.rooms.standing_of(user, room).await?;
        let stays = standing.is_some_and(|standing| match standing.membership.membership {
            Membership::Join => true,
            Membership::Invite | Membership::Knock => standing.outside,
            Membership::Leave | Membership::Ban => false,
        });
        if stays {
            self.is_sure(user, room).await;
            return Ok(true);
        }
        let wanted = Wanted {
            user: user.to_owned(),
            room: room.to_owned(),
            via: Vec::new(),
            profile: MemberProfile::default(),
            reason: None,
        };
        let mut unknown = false;
        for server in &row.servers {
            match self.leave_through(server, &wanted, None).await {
                Ok(_) => {
                    unknown = false;
                    break;
                }
                Err(failure) => {
                    tracing::debug!(%room, %server, %failure, "a failed join is not undone");
                    unknown |= !is_outside(&failure);
                }
            }
        }
        if !unknown {
            self.is_sure(user, room).await;
        }
        Ok(!unknown)
    }
}

/// Whether a server says that the user is not in the room, or that it is not itself.
fn is_outside(failure: &Failure) -> bool {
    matches!(failure, Failure::Call(CallError::Refused { status, .. })
        if matches!(*status, StatusCode::FORBIDDEN | StatusCode::NOT_FOUND))
}

/// Whether a call that failed in this way did nothing elsewhere.
pub(super) fn did_nothing(error: &CallError) -> bool {
    match error {
        CallError::Disabled
        | CallError::OwnServer
        | CallError::NotAdmitted(_)
        | CallError::BackingOff(_)
        | CallError::Busy
        | CallError::OwnRequest(_) => true,
        CallError::Refused { status, .. } => status.is_client_error(),
        CallError::Transport(_) | CallError::BadAnswer(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use homeserver_storage::Row as _;
    use ruma::owned_server_name;

    use super::*;

    #[test]
    fn rows_keep_their_form() {
        let row = UnsureJoin {
            servers: vec![owned_server_name!("a.example"), owned_server_name!("b:1")],
        };
        let encoded = row.encode().escape_ascii().to_string();
        insta::assert_snapshot!(encoded, @r"\x01\x02\ta.example\x03b:1");
        assert_eq!(UnsureJoin::decode(&row.encode()).unwrap(), row);
    }
}

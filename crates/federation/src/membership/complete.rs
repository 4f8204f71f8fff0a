//! Completing rooms of partial state: the members that an answer to a join left out are fetched in
//! the background.
//!
//! The server that let the user in is asked first for the state before the join, then others that it
//! said to be in the room, a few in each attempt. One answer after the other is checked like the
//! answer to a join and given to the rooms, which judge again what came meanwhile. Attempts are
//! repeated with growing pauses, for as long as the room is here and partial; after a start it goes
//! on where rooms are partial still. What an attempt prepared goes with it.
//!
//! Specification: server-server API, `send_join` (`members_omitted`), `GET /state`.

use std::{sync::Arc, time::Duration};

use homeserver_rooms::{ImportId, Room, RoomNumber};
use ruma::{OwnedServerName, ServerName};

use super::{
    Failure, Inner, Memberships,
    hear::Lists,
    join::{STATE_BODY, STATE_PATIENCE, STATE_STALL, of_answer},
    state::Ordered,
};
use crate::{Call, Limits, Path, is_same_server};

/// States that are held at once, beside those of joins, which do not wait for these: each may be as
/// large as `join::STATE_BODY`.
pub(super) const AT_ONCE: usize = 1;
/// Servers that are asked in one attempt, the first among them: each may send very much.
const SERVERS_AN_ATTEMPT: usize = 4;
/// Servers among which the others are chosen in turn.
const SERVERS_IN_TURN: usize = 100;
/// The pause after the first attempt that came to nothing; doubled after each one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause: who waits for the members of a room waits for no longer than that once a
/// server is back.
const LONGEST_PAUSE: Duration = Duration::from_mins(10);

impl Memberships {
    /// Goes on completing the rooms of which only part of the state is here.
    pub fn complete_rooms(&self) {
        for room in self.inner.rooms.partial_rooms() {
            self.complete(room);
        }
    }

    /// Completes a room in the background, unless that is under way.
    pub(super) fn complete(&self, room: RoomNumber) {
        if !self.inner.enabled || !self.inner.completing.lock().insert(room) {
            return;
        }
        let inner = Arc::clone(&self.inner);
        self.inner.runtime.tasks.spawn(async move {
            inner.complete_room(room).await;
            inner.completing.lock().remove(&room);
        });
    }
}

impl Inner {
    /// Tries until the room is whole, or nobody of this server is in it.
    async fn complete_room(&self, number: RoomNumber) {
        let mut pause = FIRST_PAUSE;
        for attempt in 0.. {
            match self.try_complete(number, attempt).await {
                Ok(()) => return,
                Err(failure) => {
                    tracing::info!(room = number.0, attempt, %failure, "a room is not whole yet");
                }
            }
            tokio::select! {
                biased;
                // It is gone on with after the next start.
                () = self.runtime.tasks.stopping() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    async fn try_complete(&self, number: RoomNumber, attempt: usize) -> Result<(), Failure> {
        let room = self.rooms.room_by_number(number).await?;
        if self.rooms.go_on_whole(&room).await? {
            return Ok(());
        }
        let Some(join) = self.rooms.partial_join(&room).await? else {
            return Ok(());
        };
        if !self.rooms.is_resident(&room).await? {
            return Ok(());
        }
        let mut last = Failure::answer("no other server is known to be in the room");
        for server in self.servers_to_complete(number, attempt) {
            match self.complete_from(&server, &room, &join).await {
                Ok(()) => return Ok(()),
                Err(failure) => {
                    tracing::debug!(%server, room = %room.id, %failure, "a state is of no use");
                    last = failure;
                }
            }
            if !self.rooms.is_partial(number) {
                // What it leaves to do is not done.
                break;
            }
        }
        Err(last)
    }

    /// Whom to ask: the server that let the user in, and a few others, in each attempt the next.
    fn servers_to_complete(&self, room: RoomNumber, attempt: usize) -> Vec<OwnedServerName> {
        let mut told = self.rooms.said_to_be_in(room, SERVERS_IN_TURN);
        told.retain(|server| !is_same_server(server, self.own.server()));
        let others = told.split_off(told.len().min(1));
        let further = SERVERS_AN_ATTEMPT - 1;
        let from = attempt.saturating_mul(further);
        let next =
            (from..from + further.min(others.len())).map(|at| others[at % others.len()].clone());
        told.extend(next);
        told
    }

    /// Completes a room with what one server tells.
    async fn complete_from(
        &self,
        server: &ServerName,
        room: &Arc<Room>,
        join: &ruma::EventId,
    ) -> Result<(), Failure> {
        let _place = self.whole_states.acquire().await;
        let path = Path::v1("state")
            .segment(room.id.as_str())
            .query("event_id", join.as_str());
        let limits = Limits {
            body: STATE_BODY,
            deadline: STATE_PATIENCE,
            stall: STATE_STALL,
        };
        let call = Call::get(path).limits(limits);
        let of_room = (&*room.id, room.rules);
        let witnesses = self.rooms.said_to_be_in(room.number, SERVERS_AN_ATTEMPT);
        let asked = (server, &*witnesses);
        let heard = self.hear(asked, call, Lists::STATE, of_room).await?;
        let completing = self.complete(server, of_room, heard.checked);
        let completed = tokio::time::timeout(STATE_PATIENCE, completing).await;
        let too_slow = |_| Failure::answer("its auth chain was not given in time");
        let events = completed.map_err(too_slow)??;
        let import = self.rooms.begin_whole(room).await?;
        let done = self.make_whole(import, room, events).await;
        drop(heard.place);
        if done.is_err()
            && let Err(error) = self.rooms.abandon_whole(room, import).await
        {
            tracing::warn!(room = %room.id, %error, "what was prepared is not removed yet");
        }
        done
    }

    async fn make_whole(
        &self,
        import: ImportId,
        room: &Room,
        events: Ordered,
    ) -> Result<(), Failure> {
        self.import((import, 0), room.rules, events).await?;
        self.rooms.make_whole(import).await.map_err(of_answer)?;
        Ok(())
    }
}

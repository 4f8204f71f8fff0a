//! Hands EDUs on, those of each server one after the other.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use homeserver_rooms::{Room, RoomError};
use homeserver_storage::{Batch, Durability};
use ruma::{OwnedServerName, RoomId, ServerName};

use super::{
    EduFailure, Inner,
    read_edu::{KeptEdu, PassingEdu},
    rows::WaitingEdu,
};
use crate::tables::INBOUND_EDUS;

/// Rows that are worked off before others get their turn.
const AT_ONCE: usize = 100;
/// Times that an EDU is tried.
const MAX_ATTEMPTS: u8 = 6;
/// The pause after the first failure; it doubles with each.
const PAUSE: Duration = Duration::from_secs(1);

impl Inner {
    /// Hands over EDUs that are not kept.
    pub(super) fn pass_on(self: &Arc<Self>, origin: &ServerName, edus: Vec<PassingEdu>) {
        if self.edu_queues.pass_on(origin, edus) {
            self.start_edu_worker(origin.to_owned());
        }
    }

    /// Starts the worker of a server that is said to have one.
    pub(super) fn start_edu_worker(self: &Arc<Self>, origin: OwnedServerName) {
        let inner = Arc::clone(self);
        let tasks = self.parts.runtime.tasks.clone();
        tasks.spawn(async move {
            while !inner.parts.runtime.tasks.is_stopping() {
                if let Some(pause) = inner.work_off_edus(&origin).await {
                    tokio::select! {
                        biased;
                        () = inner.parts.runtime.tasks.stopping() => return,
                        () = tokio::time::sleep(pause) => {}
                    }
                } else if inner.edu_queues.may_end(&origin) {
                    return;
                }
            }
        });
    }

    /// Hands on what waits. Gives how long to pause if something has to be tried again.
    async fn work_off_edus(&self, origin: &ServerName) -> Option<Duration> {
        let _turn = self.handing_on.acquire().await.ok()?;
        let work = self.edu_queues.ready(origin, AT_ONCE);
        for edu in work.passing {
            let handed = AssertUnwindSafe(self.hand_on_passing(origin, edu));
            match handed.catch_unwind().await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, %origin, "an EDU is passed over"),
                Err(_) => tracing::error!(%origin, "handing on an EDU panicked"),
            }
        }
        let keys: Vec<_> = work
            .rows
            .iter()
            .map(|row| (origin.as_str(), *row))
            .collect();
        let rows = match self.parts.store.multi_get(&INBOUND_EDUS, &keys).await {
            Ok(rows) => rows,
            Err(error) => {
                tracing::warn!(%error, %origin, "waiting EDUs cannot be read");
                self.edu_queues.put_back(origin, &work.rows);
                return Some(PAUSE * 10);
            }
        };
        let mut batch = Batch::new();
        let mut done = 0;
        let mut pause = None;
        for (number, row) in work.rows.iter().zip(rows) {
            let key = (origin.as_str(), *number);
            let Some(row) = row else {
                done += 1;
                continue;
            };
            let Err(EduFailure::Passing(error)) = self.hand_on_row(origin, &row).await else {
                batch.delete(&INBOUND_EDUS, &key);
                done += 1;
                continue;
            };
            let attempts = row.attempts + 1;
            if attempts >= MAX_ATTEMPTS {
                let edu_type = row.edu_type;
                tracing::warn!(%error, %origin, edu_type, "an EDU is given up");
                batch.delete(&INBOUND_EDUS, &key);
                done += 1;
                continue;
            }
            tracing::debug!(%error, %origin, "an EDU is tried again");
            batch.put(&INBOUND_EDUS, &key, &WaitingEdu { attempts, ..row });
            pause = Some(PAUSE * 2_u32.pow(u32::from(attempts - 1)));
            // Those after it wait: the order of one server's messages counts.
            break;
        }
        self.edu_queues.put_back(origin, &work.rows[done..]);
        self.remove_edus(origin, batch, done).await;
        pause
    }

    /// Removes what was handed on. What stays for want of a disk is handed on twice.
    async fn remove_edus(&self, origin: &ServerName, batch: Batch, done: usize) {
        if !batch.is_empty() {
            let removed = match self.parts.store.submit(batch, Durability::Durable).await {
                Ok(ticket) => ticket.await.map(drop),
                Err(error) => Err(error),
            };
            if let Err(error) = removed {
                tracing::warn!(%error, %origin, "EDUs that were handed on stay on disk");
            }
        }
        for _ in 0..done {
            self.edu_queues.give_back(origin);
        }
    }

    async fn hand_on_row(&self, origin: &ServerName, row: &WaitingEdu) -> Result<(), EduFailure> {
        let read = KeptEdu::read(origin, &row.edu_type, row.content.as_bytes());
        let edu = read.ok_or_else(|| EduFailure::Refused("it is malformed".to_owned()))?;
        let edus = &self.parts.edus;
        let handed = async {
            match edu {
                KeptEdu::ToDevice(message) => edus.to_device(origin, message).await,
                KeptEdu::DeviceList(update) => edus.device_list_update(origin, update).await,
                KeptEdu::SigningKeys(update) => edus.signing_key_update(origin, update).await,
            }
        };
        let handed = AssertUnwindSafe(handed).catch_unwind().await;
        let handed = handed.unwrap_or_else(|_| Err(EduFailure::Passing("it panicked".to_owned())));
        if let Err(EduFailure::Refused(error)) = &handed {
            tracing::debug!(%error, %origin, "an EDU is refused");
        }
        handed
    }

    async fn hand_on_passing(
        &self,
        origin: &ServerName,
        edu: PassingEdu,
    ) -> Result<(), EduFailure> {
        let edus = &self.parts.edus;
        match edu {
            PassingEdu::Presence(update) => edus.presence(update).await,
            PassingEdu::Typing(typing) => {
                let room = self.room_of_edu(origin, &typing.room_id).await?;
                edus.typing(&room, &typing.user_id, typing.typing).await
            }
            PassingEdu::Receipt(room, receipt) => {
                let room = self.room_of_edu(origin, &room).await?;
                edus.receipt(&room, receipt).await
            }
        }
    }

    /// The room of an EDU, if the server may speak of it.
    async fn room_of_edu(&self, origin: &ServerName, id: &RoomId) -> Result<Arc<Room>, EduFailure> {
        let rooms = &self.parts.rooms;
        let passing = |error: RoomError| EduFailure::Passing(error.to_string());
        let refused = |why: &str| EduFailure::Refused(why.to_owned());
        let room = rooms.room(id).await.map_err(passing)?;
        let room = room.ok_or_else(|| refused("the room is not here"))?;
        let now = self.parts.store.durable();
        for server in [&*self.parts.own, origin] {
            let joined = rooms.server_joined(&room, server, now).await;
            if !joined.map_err(passing)? {
                return Err(refused("a server is not in the room"));
            }
        }
        if !rooms.acl(&room).await.map_err(passing)?.allows(origin) {
            return Err(refused("the room's ACL does not admit the server"));
        }
        Ok(room)
    }
}

//! The reader: follows the journal, notes who is owed what, and writes down how far it has come.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use homeserver_rooms::{EventNumber, RoomError, RoomNumber, journal as rooms_journal};
use homeserver_storage::{CommitError, Direction, Durability, Entry, Position, ScanRange};
use homeserver_users::{UserNumber, journal as users_journal};
use ruma::OwnedServerName;
use tokio::time::Instant;

use super::{CURSOR, Inner, SenderError, owed::Queued, state::Lacking};
use crate::tables::{BEHIND, BEHIND_ROOMS};

/// Entries read from the journal in one go.
const ENTRIES_AT_ONCE: usize = 500;

/// Rows read in one go.
const ROWS_AT_ONCE: usize = 1_000;

/// Time between two writings of what is owed. What was acknowledged in so much time before a crash
/// is sent again after it.
const WRITE_EVERY: Duration = Duration::from_secs(1);

/// Entries without anything to be sent after which the cursor is moved all the same: the journal is
/// not trimmed behind it.
const CURSOR_STEP: Position = 1_000;

/// Time until the journal is read again where that failed.
const REST: Duration = Duration::from_secs(1);

/// How long the end waits for transactions that are on their way.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

impl Inner {
    /// Takes back what is stored. Gives where the journal is to be read on.
    pub(super) async fn take_up(&self) -> Result<Position, SenderError> {
        let upto = self.store.cursor(CURSOR).position().await?;
        let mut all: BTreeMap<OwnedServerName, Lacking> = BTreeMap::new();
        let mut range = ScanRange::all();
        loop {
            let scan = self
                .store
                .scan(&BEHIND, range, Direction::Forward, ROWS_AT_ONCE);
            let rows = scan.await?;
            let last = rows.last().map(|(name, _)| name.clone());
            let is_full = rows.len() == ROWS_AT_ONCE;
            for (name, row) in rows {
                if let Ok(server) = OwnedServerName::try_from(name) {
                    all.entry(server).or_default().rest = Some(row);
                }
            }
            match last {
                Some(last) if is_full => range = ScanRange::all().after(&last),
                _ => break,
            }
        }
        let mut range = ScanRange::all();
        loop {
            let table = &BEHIND_ROOMS;
            let scan = self
                .store
                .scan(table, range, Direction::Forward, ROWS_AT_ONCE);
            let rows = scan.await?;
            let last = rows.last().map(|(key, _)| key.clone());
            let is_full = rows.len() == ROWS_AT_ONCE;
            for ((name, room), from) in rows {
                if let Ok(server) = OwnedServerName::try_from(name) {
                    all.entry(server).or_default().rooms.insert(room, from);
                }
            }
            match last {
                Some(last) if is_full => range = ScanRange::all().after(&last),
                _ => break,
            }
        }
        let mut state = self.state.lock();
        for (server, lacking) in all {
            state.take_back(server, lacking, upto);
        }
        Ok(upto)
    }

    /// Moves the cursor where nothing is sent, so that the journal can be trimmed.
    pub(super) async fn stand_still(&self) -> Result<(), SenderError> {
        let cursor = self.store.cursor(CURSOR);
        // A cursor that never was is not needed.
        if cursor.position().await? > 0 {
            cursor.advance(self.store.durable()).await?;
        }
        Ok(())
    }

    /// Follows the journal from a position until shutdown.
    pub(super) async fn follow_journal(self: Arc<Self>, from: Position) {
        let mut grown = self.store.subscribe();
        let (mut read, mut written) = (from, from);
        let mut write_at = Instant::now() + WRITE_EVERY;
        let idle = self.state.lock().without_worker();
        for server in idle {
            self.employ(server);
        }
        loop {
            let upto = *grown.borrow_and_update();
            let noted = self.note_upto(&mut read, upto).await;
            if let Err(error) = &noted {
                tracing::warn!(%error, "the journal is not read for other servers, trying again");
            }
            if Instant::now() >= write_at {
                self.write(read, &mut written).await;
                write_at = Instant::now() + WRITE_EVERY;
            }
            let news = async {
                match noted {
                    Ok(()) => drop(grown.changed().await),
                    Err(_) => tokio::time::sleep(REST).await,
                }
            };
            tokio::select! {
                biased;
                () = self.runtime.tasks.stopping() => break,
                () = news => {}
                () = self.acknowledged.notified() => {}
                () = tokio::time::sleep_until(write_at), if self.is_unwritten(read, written) => {}
            }
        }
        let _ = tokio::time::timeout(LAST_ANSWERS, self.without_workers()).await;
        self.write(read, &mut written).await;
    }

    async fn without_workers(&self) {
        loop {
            let rested = self.rested.notified();
            if self.state.lock().workers == 0 {
                return;
            }
            rested.await;
        }
    }

    fn is_unwritten(&self, read: Position, written: Position) -> bool {
        self.state.lock().is_changed() || read - written >= CURSOR_STEP
    }

    /// Writes down what is owed, and then that everything before is read.
    async fn write(&self, read: Position, written: &mut Position) {
        let generation = self.store.generation();
        self.state.lock().note_generation(generation);
        if !self.is_unwritten(read, *written) {
            return;
        }
        let rows = self.state.lock().rows();
        let done = async {
            for batch in &rows.batches {
                let ticket = self.store.submit(batch.clone(), Durability::Lazy).await?;
                ticket.await?;
            }
            self.store.cursor(CURSOR).advance(read).await
        };
        let done: Result<(), CommitError> = done.await;
        match &done {
            Ok(()) => *written = read,
            Err(error) => tracing::warn!(%error, "what other servers lack was not stored"),
        }
        self.state.lock().written(rows, done.is_ok());
    }

    /// Notes what the entries after `read` say, and moves `read` behind each.
    async fn note_upto(
        self: &Arc<Self>,
        read: &mut Position,
        upto: Position,
    ) -> Result<(), SenderError> {
        while *read < upto {
            let journal = self.store.journal();
            let entries = journal.read_all(*read, upto, ENTRIES_AT_ONCE).await?;
            let is_full = entries.len() == ENTRIES_AT_ONCE;
            for (position, entry) in entries {
                match self.note(position, &entry).await {
                    Err(error) if error.is_passing() => return Err(error),
                    // One damaged room costs only itself.
                    Err(error) => {
                        tracing::error!(%error, position, "not sent to other servers");
                    }
                    Ok(()) => {}
                }
                *read = position;
            }
            if !is_full {
                *read = upto;
            }
        }
        Ok(())
    }

    async fn note(self: &Arc<Self>, position: Position, entry: &Entry) -> Result<(), SenderError> {
        match (entry.kind, &entry.numbers[..]) {
            (rooms_journal::ROOM_EVENT, [room, event, ..]) => {
                let (room, event) = (RoomNumber(*room), EventNumber(*event));
                let queued = Queued {
                    room,
                    event,
                    position,
                };
                self.note_event(queued).await?;
                self.note_newcomer((room, event), position).await
            }
            (rooms_journal::STATE_CHANGED | rooms_journal::MEMBERS_CHANGED, _) => {
                self.remote_users.may_meet_anybody();
                Ok(())
            }
            (users_journal::TO_DEVICE_QUEUED, _) => self.note_messages(position).await,
            (users_journal::DEVICE_LIST_CHANGED, [user, ..]) => {
                self.note_list(UserNumber(*user), position).await
            }
            (users_journal::RECEIPT_CHANGED, [room, user, ..]) => {
                self.note_receipt((*room, UserNumber(*user)), position)
                    .await
            }
            (
                rooms_journal::ROOM_EVENT
                | users_journal::DEVICE_LIST_CHANGED
                | users_journal::RECEIPT_CHANGED,
                _,
            ) => {
                let damaged = "an entry of the journal lacks numbers".to_owned();
                Err(RoomError::Damaged(damaged).into())
            }
            _ => Ok(()),
        }
    }

    async fn note_messages(self: &Arc<Self>, position: Position) -> Result<(), SenderError> {
        let outgoing = &self.users.outgoing;
        let before = position - 1;
        let queued = outgoing
            .destinations(before, position, ROWS_AT_ONCE)
            .await?;
        for (_, server) in queued {
            if self.federation.peers.may_call(&server) {
                let server = std::iter::once(&server);
                self.note_edus(server, |owed| owed.note_message(position));
            } else {
                outgoing.delivered(&server, position).await?;
            }
        }
        Ok(())
    }

    async fn note_list(
        self: &Arc<Self>,
        user: UserNumber,
        position: Position,
    ) -> Result<(), SenderError> {
        if self.is_ours(user).await? {
            let servers = self.sharing_with(user, position).await?;
            self.note_edus(servers.iter(), |owed| owed.note_list(position));
        }
        Ok(())
    }

    async fn note_receipt(
        self: &Arc<Self>,
        (room, user): (u64, UserNumber),
        position: Position,
    ) -> Result<(), SenderError> {
        if self.is_ours(user).await? {
            let of = self.rooms.room_by_number(RoomNumber(room)).await?;
            let servers = self.others_in(&of, position).await?;
            self.note_edus(servers.iter(), |owed| owed.receipts.note((position, room)));
        }
        Ok(())
    }

    /// Notes an event for everybody to whom it goes.
    async fn note_event(self: &Arc<Self>, queued: Queued) -> Result<(), SenderError> {
        let room = self.rooms.room_by_number(queued.room).await?;
        let Some(event) = self.rooms.outgoing(&room, queued.event).await? else {
            return Ok(());
        };
        let destinations = self.rooms.destinations(&room, &event).await?;
        self.at_hand
            .insert((queued.room, queued.event), event.pdu.clone());
        let mut idle = Vec::new();
        {
            let mut state = self.state.lock();
            for server in destinations.iter() {
                if self.federation.peers.may_call(server) && state.push(server, queued) {
                    idle.push(server.clone());
                }
            }
        }
        for server in idle {
            self.employ(server);
        }
        Ok(())
    }

    /// Starts the worker of a server, which was counted already.
    pub(super) fn employ(self: &Arc<Self>, server: OwnedServerName) {
        let worker = Arc::clone(self).work(server);
        self.runtime.tasks.spawn(worker);
    }
}

//! Messages to devices of other servers, until those have them.
//!
//! A row `(server, position)` is the content of one `m.direct_to_device` EDU but for its message
//! id, which follows from the row's place: a repetition carries the same. What is bounded is what
//! waits for one server, and for how long: a server that never comes back must not fill the disk.
//!
//! Which devices a user of another server has is that server's to know: `*` is passed on.
//!
//! Spec: Server-Server API, "Send-to-device messaging".

use std::{collections::BTreeMap, sync::Arc};

use homeserver_storage::{At, Batch, Durability, Position};
use quick_cache::sync::Cache;
use ruma::{OwnedServerName, OwnedUserId, ServerName};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, value::RawValue};
use xxhash_rust::xxh3::xxh3_128;

use crate::{
    Failure, Recipient,
    ground::Ground,
    journal,
    tables::{OUTGOING, OUTGOING_BY_POSITION},
};

/// Messages (rows) that may wait for one server; more are dropped, and the drop is logged.
pub const MAX_OUTGOING: u64 = 20_000;

/// Bytes of all messages that may wait for one server.
pub const MAX_OUTGOING_BYTES: u64 = 64 * 1024 * 1024;

/// Bytes of contents that are put into one row, unless one content alone has more.
const ROW_BYTES: usize = 32 * 1024;

/// How long messages wait for a server, in milliseconds: as long as the journal is kept.
const OUTGOING_LIFE: u64 = 30 * 24 * 60 * 60 * 1_000;

/// Servers whose waiting messages are remembered by number and size.
const COUNTS_REMEMBERED: usize = 10_000;

/// Rows read or deleted in one go.
const PAGE: usize = 200;

/// Row of [`OUTGOING`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OutgoingRow {
    sender: String,
    event_type: String,
    /// `messages` as JSON.
    messages: String,
    /// When it was queued, in milliseconds since the Unix epoch.
    at: u64,
}
homeserver_storage::row!(OutgoingRow, 1);

/// A message on its way to another server.
#[derive(Clone, Debug)]
pub struct OutgoingMessage {
    /// Its place in the queue.
    pub position: Position,
    /// The content of its EDU.
    pub content: Box<RawValue>,
}

/// Messages for other servers' devices. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Outgoing {
    ground: Ground,
    /// What waits per server, at least: enough to keep it bounded.
    waiting: Arc<Cache<String, Waiting>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Waiting {
    messages: u64,
    bytes: u64,
}

impl Waiting {
    fn has_room(self) -> bool {
        self.messages < MAX_OUTGOING && self.bytes < MAX_OUTGOING_BYTES
    }
}

/// One row that is about to be written.
#[derive(Clone, Debug)]
pub(crate) struct Parcel {
    server: OwnedServerName,
    messages: String,
}

impl Parcel {
    pub(crate) fn bytes(&self) -> usize {
        self.messages.len()
    }
}

/// What goes to other servers, in rows of a bounded size, in an order that follows from the
/// messages.
pub(crate) fn parcels(
    messages: &BTreeMap<OwnedUserId, BTreeMap<Recipient, Box<RawValue>>>,
) -> Result<Vec<Parcel>, Failure> {
    let mut by_server: BTreeMap<OwnedServerName, Vec<(&OwnedUserId, &Recipient, &RawValue)>> =
        BTreeMap::new();
    for (user, of_user) in messages {
        let server = user.server_name().to_owned();
        let of_server = by_server.entry(server).or_default();
        of_server.extend(of_user.iter().map(|(to, content)| (user, to, &**content)));
    }
    let mut parcels = Vec::new();
    for (server, messages) in by_server {
        let mut users: Map<String, Value> = Map::new();
        let mut bytes = 0;
        for (user, to, content) in messages {
            if bytes > 0 && bytes + content.get().len() > ROW_BYTES {
                parcels.push(parcel(&server, std::mem::take(&mut users)));
                bytes = 0;
            }
            bytes += content.get().len();
            let device = match to {
                Recipient::AllDevices => "*",
                Recipient::Device(device) => device.as_str(),
            };
            let content = serde_json::from_str::<Value>(content.get());
            let content = content.map_err(|_| Failure::Damaged("to-device message"))?;
            let of_user = users.entry(user.to_string());
            let of_user = of_user.or_insert_with(|| Value::Object(Map::new()));
            if let Some(of_user) = of_user.as_object_mut() {
                of_user.insert(device.to_owned(), content);
            }
        }
        parcels.push(parcel(&server, users));
    }
    Ok(parcels)
}

fn parcel(server: &ServerName, users: Map<String, Value>) -> Parcel {
    Parcel {
        server: server.to_owned(),
        messages: Value::Object(users).to_string(),
    }
}

impl Outgoing {
    pub(crate) fn new(ground: Ground) -> Self {
        Self {
            ground,
            waiting: Arc::new(Cache::new(COUNTS_REMEMBERED)),
        }
    }

    /// Adds a row to a batch, each under a position of its own.
    pub(crate) fn put(
        &self,
        batch: &mut Batch,
        (sender, event_type): (&str, &str),
        parcel: &Parcel,
    ) {
        let entry = journal::entry(journal::TO_DEVICE_QUEUED, &[]);
        let at = batch.append(&entry, &[journal::outgoing()]);
        let row = OutgoingRow {
            sender: sender.to_owned(),
            event_type: event_type.to_owned(),
            messages: parcel.messages.clone(),
            at: self.ground.now(),
        };
        let server = parcel.server.as_str().to_owned();
        let by_position = (At::Append(at), server.clone());
        batch.put(&OUTGOING, &(server, At::Append(at)), &row);
        batch.put(&OUTGOING_BY_POSITION, &by_position, &());
    }

    /// Whether another row may wait for its server, and counts it in.
    pub(crate) async fn has_room(&self, parcel: &Parcel) -> Result<bool, Failure> {
        let server = parcel.server.as_str();
        let mut waiting = match self.waiting.get(server) {
            Some(waiting) if waiting.has_room() => waiting,
            // What is remembered may be too much: what arrived is not taken off.
            _ => self.count(server).await?,
        };
        let has_room = waiting.has_room();
        if has_room {
            waiting.messages += 1;
            waiting.bytes += parcel.bytes() as u64;
        }
        self.waiting.insert(server.to_owned(), waiting);
        Ok(has_room)
    }

    async fn count(&self, server: &str) -> Result<Waiting, Failure> {
        let mut waiting = Waiting::default();
        let mut after = 0;
        while waiting.has_room() {
            let rows = self.rows(server, (after, Position::MAX), PAGE).await?;
            for (_, row) in &rows {
                waiting.messages += 1;
                waiting.bytes += row.messages.len() as u64;
            }
            match rows.last() {
                Some(((_, last), _)) if rows.len() == PAGE => after = *last,
                _ => break,
            }
        }
        Ok(waiting)
    }

    async fn rows(
        &self,
        server: &str,
        (after, upto): (Position, Position),
        limit: usize,
    ) -> Result<Vec<((String, Position), OutgoingRow)>, Failure> {
        let from = (server, after.saturating_add(1));
        let to = (server, upto.saturating_add(1));
        self.ground.scan_between(&OUTGOING, from, to, limit).await
    }

    /// The servers that messages were queued for in `(after, upto]`, and where; the oldest first, at
    /// most `limit`. What has arrived since is missing.
    pub async fn destinations(
        &self,
        after: Position,
        upto: Position,
        limit: usize,
    ) -> Result<Vec<(Position, OwnedServerName)>, Failure> {
        let (from, to) = (after.saturating_add(1), upto.saturating_add(1));
        let table = &OUTGOING_BY_POSITION;
        let rows = self.ground.scan_between(table, from, to, limit).await?;
        let parsed = rows.into_iter().map(|((position, server), ())| {
            let server = ServerName::parse(server);
            let server = server.map_err(|_| Failure::Damaged("destination"))?;
            Ok((position, server))
        });
        parsed.collect()
    }

    /// The oldest messages that wait for a server in `(after, upto]`, at most `limit`.
    pub async fn page(
        &self,
        destination: &ServerName,
        after: Position,
        upto: Position,
        limit: usize,
    ) -> Result<Vec<OutgoingMessage>, Failure> {
        let rows = self.rows(destination.as_str(), (after, upto), limit);
        let message = |((server, position), row): ((String, Position), OutgoingRow)| {
            Ok(OutgoingMessage {
                position,
                content: self.content(&server, position, row)?,
            })
        };
        rows.await?.into_iter().map(message).collect()
    }

    fn content(
        &self,
        server: &str,
        position: Position,
        row: OutgoingRow,
    ) -> Result<Box<RawValue>, Failure> {
        #[derive(Serialize)]
        struct Content<'a> {
            sender: &'a str,
            r#type: &'a str,
            message_id: String,
            messages: &'a RawValue,
        }
        let damaged = |_| Failure::Damaged("message to another server");
        // The epoch: a database that was restored gives the same positions once more.
        let place = format!("{:x}/{position:x}/{server}", self.ground.store.epoch());
        let messages = RawValue::from_string(row.messages).map_err(damaged)?;
        let content = Content {
            sender: &row.sender,
            r#type: &row.event_type,
            message_id: format!("{:032x}", xxh3_128(place.as_bytes())),
            messages: &messages,
        };
        serde_json::value::to_raw_value(&content).map_err(damaged)
    }

    /// Deletes the messages up to `upto` that wait for a server: it has them.
    pub async fn delivered(&self, destination: &ServerName, upto: Position) -> Result<(), Failure> {
        loop {
            let rows = self.rows(destination.as_str(), (0, upto), PAGE).await?;
            self.delete(rows.iter().map(|((server, at), _)| (server.clone(), *at)))
                .await?;
            if rows.len() < PAGE {
                self.waiting.remove(destination.as_str());
                return Ok(());
            }
        }
    }

    /// Deletes what waits for too long. Runs hourly.
    pub(crate) async fn sweep(&self) -> Result<(), Failure> {
        let expired = self.ground.now().saturating_sub(OUTGOING_LIFE);
        loop {
            let table = &OUTGOING_BY_POSITION;
            let rows = self.ground.scan_between(table, 0_u64, Position::MAX, PAGE);
            let places: Vec<_> = rows
                .await?
                .into_iter()
                .map(|((position, server), ())| (server, position))
                .collect();
            let queued = self.ground.store.multi_get(&OUTGOING, &places).await?;
            let old = |row: &Option<OutgoingRow>| row.as_ref().is_none_or(|row| row.at < expired);
            let is_old: Vec<bool> = queued.iter().map(old).collect();
            let all_old = places.len() == PAGE && is_old.iter().all(|old| *old);
            let old = places.into_iter().zip(is_old).filter(|(_, old)| *old);
            self.delete(old.map(|(place, _)| place)).await?;
            if !all_old {
                return Ok(());
            }
        }
    }

    async fn delete(
        &self,
        places: impl Iterator<Item = (String, Position)>,
    ) -> Result<(), Failure> {
        let mut batch = Batch::new();
        for (server, position) in places {
            batch.delete(&OUTGOING_BY_POSITION, &(position, server.clone()));
            batch.delete(&OUTGOING, &(server, position));
        }
        if !batch.is_empty() {
            let submitted = self.ground.store.submit(batch, Durability::Lazy);
            submitted.await?.await?;
        }
        Ok(())
    }
}

//! To-device messages: an inbox per device, emptied by acknowledgement.
//!
//! A message is a row `(device, position)`; a device gets at most one message per position, so a
//! position cuts an inbox anywhere. Messages are deleted only when a token shows that they
//! arrived. A request to many devices is several batches; its transaction row says up to whom it
//! was carried out, so that a repetition goes on there and nobody gets a message twice.
//!
//! What is for devices of other servers is queued in the same batches (see `outgoing`), before what is
//! for devices of this one. What comes from other servers is told apart by their message ids.
//!
//! Spec: Client-Server API, "Send-to-Device messaging".

use std::{collections::BTreeMap, sync::Arc};

use homeserver_storage::{At, Batch, Position};
use quick_cache::sync::Cache;
use ruma::{DeviceId, OwnedDeviceId, OwnedServerName, OwnedUserId};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use xxhash_rust::xxh3::{xxh3_128, xxh3_128_with_seed};

use crate::{
    DeviceNumber, Failure, UserNumber,
    device::{MAX_DEVICES, number},
    ground::{Attempt, Ground, MAX_ATTEMPTS},
    identifier::{BadIdentifier, check_identifier},
    journal,
    keys::check_canonical,
    outgoing::{Outgoing, Parcel, parcels},
    tables::{DEVICES, INBOX, TO_DEVICE_TRANSACTIONS, TO_DEVICE_TRANSACTIONS_BY_TIME},
};

/// Messages given to one sync response.
pub const INBOX_PAGE: usize = 100;

/// Bytes of one message's content.
pub const MAX_TO_DEVICE_CONTENT: usize = 64 * 1024;

/// Messages that may wait for one device. A device that is never used again must not fill the
/// disk: what is sent to it beyond this, or beyond [`MAX_INBOX_BYTES`], is dropped, and the drop is
/// logged. Its sender is not told, who could do nothing about it: the device asks for keys that it
/// misses when it comes back.
pub const MAX_INBOX: u64 = 10_000;

/// Bytes of all messages that may wait for one device: ten thousand room keys take half of it.
pub const MAX_INBOX_BYTES: u64 = 32 * 1024 * 1024;

/// Recipient devices of one request.
pub const MAX_RECIPIENTS: usize = 20_000;

/// Bytes of one request's contents, each counted as often as it has recipients: a room key for some
/// thousand devices.
pub const MAX_DELIVERED_BYTES: usize = 16 * 1024 * 1024;

/// Messages and bytes of content put into one batch.
const BATCH_MESSAGES: usize = 300;
const BATCH_BYTES: usize = 2 * 1024 * 1024;

/// Topics that one journal entry may have.
const TOPICS: usize = 8;

/// Devices whose waiting messages are remembered by number and size.
const COUNTS_REMEMBERED: usize = 20_000;

/// How long a transaction id is remembered, in milliseconds.
pub(crate) const TRANSACTION_LIFE: u64 = 24 * 60 * 60 * 1_000;

/// Row of [`INBOX`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MessageRow {
    sender: String,
    event_type: String,
    content: String,
}
homeserver_storage::row!(MessageRow, 1);

/// Row of [`TO_DEVICE_TRANSACTIONS`]: how far a request was carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TransactionRow {
    started_at: u64,
    /// The last device that has its message; `None` once all have.
    upto: Option<(u64, String)>,
}
homeserver_storage::row!(TransactionRow, 1);

/// A message as its recipient gets it.
#[derive(Clone, Debug)]
pub struct ToDeviceMessage {
    /// Its place in the inbox.
    pub position: Position,
    /// Who sent it.
    pub sender: OwnedUserId,
    /// Its type.
    pub event_type: String,
    /// Its content.
    pub content: Box<RawValue>,
}

/// Part of an inbox.
#[derive(Clone, Debug, Default)]
pub struct InboxPage {
    /// Messages in order of arrival.
    pub messages: Vec<ToDeviceMessage>,
    /// Every waiting message at or before this position is in the page: what a token must
    /// remember and give back to [`Inbox::acknowledge`].
    pub upto: Position,
    /// Whether more messages wait behind `upto`.
    pub more: bool,
}

/// To which of a user's devices.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Recipient {
    /// All that the user has.
    AllDevices,
    /// This one, if the user has it.
    Device(OwnedDeviceId),
}

/// What makes a repeated request harmless, for a day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transaction {
    /// The sending device and its transaction id.
    Client(DeviceNumber, String),
    /// The sending server and its message id.
    Server(OwnedServerName, String),
}

/// Stands where the sending device does in the keys of transactions of other servers. No device has
/// this number.
const NO_DEVICE: u64 = 0;

/// Messages of one type to any number of devices.
#[derive(Clone, Debug)]
pub struct ToDeviceRequest {
    /// Who sends.
    pub sender: OwnedUserId,
    /// The type of all messages.
    pub event_type: String,
    /// Contents by user of this server and device.
    pub messages: BTreeMap<UserNumber, BTreeMap<Recipient, Box<RawValue>>>,
    /// Contents by user of another server and device.
    pub remote: BTreeMap<OwnedUserId, BTreeMap<Recipient, Box<RawValue>>>,
    /// Makes a repetition harmless.
    pub transaction: Option<Transaction>,
}

/// The request was not, or not wholly, carried out; repeat it with the same transaction id.
#[derive(Debug, thiserror::Error)]
pub enum ToDeviceError {
    /// The type or the transaction id is not a valid identifier.
    #[error("the type or the transaction id is not a valid identifier")]
    BadIdentifier(#[from] BadIdentifier),
    /// A content is longer than [`MAX_TO_DEVICE_CONTENT`] bytes, or all for all recipients than
    /// [`MAX_DELIVERED_BYTES`].
    #[error("a message is too large, or has too many recipients for its size")]
    TooLarge,
    /// A content for another server has no canonical form (a fraction, say), so that no request with
    /// it could be signed.
    #[error("a message for another server has no canonical form")]
    NotCanonical,
    /// More than [`MAX_RECIPIENTS`] devices.
    #[error("too many recipients")]
    TooManyRecipients,
    /// The store could not do it.
    #[error(transparent)]
    Failure(#[from] Failure),
}

/// The inboxes of this server's devices. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Inbox {
    ground: Ground,
    outgoing: Outgoing,
    /// Messages waiting per device, at least: enough to keep an inbox bounded. Another process
    /// that fills the same inbox makes the bound a little softer.
    waiting: Arc<Cache<DeviceNumber, Waiting>>,
}

/// How much waits for a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Waiting {
    messages: u64,
    bytes: u64,
    /// Counted, and found to be too much for another message; until something is acknowledged.
    full: bool,
}

impl Waiting {
    /// Whether another message fits, even the largest.
    fn has_room(self) -> bool {
        let bytes = self.bytes + MAX_TO_DEVICE_CONTENT as u64;
        self.messages < MAX_INBOX && bytes <= MAX_INBOX_BYTES
    }

    fn add(&mut self, bytes: usize) {
        self.messages += 1;
        self.bytes += bytes as u64;
    }
}

/// One message on its way to one device.
struct Delivery<'a> {
    user: UserNumber,
    device_id: String,
    device: DeviceNumber,
    content: &'a RawValue,
}

/// One step of a request, in the order in which they are taken.
enum Step<'a> {
    /// Messages for another server, and which of them in the request.
    Away(usize, Parcel),
    /// A message for a device of this one.
    Here(Delivery<'a>),
}

impl Step<'_> {
    fn bytes(&self) -> usize {
        match self {
            Self::Away(_, parcel) => parcel.bytes(),
            Self::Here(delivery) => delivery.content.get().len(),
        }
    }

    /// The step's place among all of the request, as a [`TransactionRow`] holds it. No user has the
    /// number zero.
    fn place(&self) -> (u64, String) {
        match self {
            Self::Away(index, _) => (0, format!("{index:08}")),
            Self::Here(delivery) => (delivery.user.0, delivery.device_id.clone()),
        }
    }
}

impl Inbox {
    pub(crate) fn new(ground: Ground, outgoing: Outgoing) -> Self {
        Self {
            ground,
            outgoing,
            waiting: Arc::new(Cache::new(COUNTS_REMEMBERED)),
        }
    }

    /// Puts messages into inboxes. Users and devices that do not exist get nothing and leave
    /// nothing behind. A request whose transaction id was seen within a day does nothing.
    pub async fn send(&self, request: &ToDeviceRequest) -> Result<(), ToDeviceError> {
        check_identifier(&request.event_type)?;
        let contents = request.messages.values().flat_map(BTreeMap::values);
        let remote = request.remote.values().flat_map(BTreeMap::values);
        if contents
            .chain(remote)
            .any(|content| content.get().len() > MAX_TO_DEVICE_CONTENT)
        {
            return Err(ToDeviceError::TooLarge);
        }
        let mut remote = request.remote.values().flat_map(BTreeMap::values);
        if !remote.all(|content| check_canonical(content.get()).is_ok()) {
            return Err(ToDeviceError::NotCanonical);
        }
        let key = self.transaction_key(request)?;
        let is_done = |row: &TransactionRow| row.upto.is_none();
        let mut progress = self.progress(key).await?;
        if progress.as_ref().is_some_and(is_done) {
            return Ok(());
        }
        let steps = self.steps(request, progress.is_some()).await?;
        let is_foreign = matches!(request.transaction, Some(Transaction::Server(..)));
        if steps.is_empty() && is_foreign {
            // Nothing to be told apart from a repetition.
            return Ok(());
        }
        for _ in 0..MAX_ATTEMPTS {
            if progress.as_ref().is_some_and(is_done) {
                return Ok(());
            }
            match self.deliver(request, key, progress, &steps).await? {
                Attempt::Done(_) => return Ok(()),
                Attempt::Conflict => progress = self.progress(key).await?,
            }
        }
        Err(Failure::Busy.into())
    }

    fn transaction_key(
        &self,
        request: &ToDeviceRequest,
    ) -> Result<Option<(u64, u128)>, BadIdentifier> {
        Ok(match &request.transaction {
            Some(Transaction::Client(device, id)) => {
                check_identifier(id)?;
                let scope = format!("{}\0{id}", request.event_type);
                Some((device.0, xxh3_128(scope.as_bytes())))
            }
            Some(Transaction::Server(server, id)) => {
                check_identifier(id)?;
                let scope = format!("{server}\0{id}");
                // Seeded, so that nobody can aim at the ids of others.
                let seed = self.ground.store.epoch();
                Some((NO_DEVICE, xxh3_128_with_seed(scope.as_bytes(), seed)))
            }
            None => None,
        })
    }

    /// All steps of a request. What other servers do not have room for is left out.
    async fn steps<'a>(
        &self,
        request: &'a ToDeviceRequest,
        is_begun: bool,
    ) -> Result<Vec<Step<'a>>, ToDeviceError> {
        let mut steps = Vec::new();
        for (index, parcel) in parcels(&request.remote)?.into_iter().enumerate() {
            if self.outgoing.has_room(&parcel).await? {
                steps.push(Step::Away(index, parcel));
            } else {
                tracing::warn!("too much waits for another server, message dropped");
            }
        }
        let deliveries = self.deliveries(request, is_begun).await?;
        steps.extend(deliveries.into_iter().map(Step::Here));
        Ok(steps)
    }

    /// How far the request of a transaction was carried out, if it was begun.
    async fn progress(&self, key: Option<(u64, u128)>) -> Result<Option<TransactionRow>, Failure> {
        match &key {
            Some(key) => Ok(self.ground.store.get(&TO_DEVICE_TRANSACTIONS, key).await?),
            None => Ok(None),
        }
    }

    /// Who gets what, in the order of user number and device id. Whether that is too much is decided
    /// before a request is begun: its users may have got more devices since.
    async fn deliveries<'a>(
        &self,
        request: &'a ToDeviceRequest,
        is_begun: bool,
    ) -> Result<Vec<Delivery<'a>>, ToDeviceError> {
        let mut deliveries = Vec::new();
        let mut bytes = 0;
        for (user, messages) in &request.messages {
            let devices = self
                .ground
                .scan_prefix(&DEVICES, &user.0, MAX_DEVICES)
                .await?;
            for ((_, device_id), row) in devices {
                let named = Recipient::Device(<&DeviceId>::from(device_id.as_str()).to_owned());
                let content = messages
                    .get(&named)
                    .or_else(|| messages.get(&Recipient::AllDevices));
                let Some(content) = content else {
                    continue;
                };
                bytes += content.get().len();
                if bytes > MAX_DELIVERED_BYTES && !is_begun {
                    return Err(ToDeviceError::TooLarge);
                }
                let device = number(&row);
                if self.has_room(device, content.get().len()).await? {
                    deliveries.push(Delivery {
                        user: *user,
                        device_id,
                        device,
                        content,
                    });
                } else {
                    tracing::warn!(%user, device = %device_id, "inbox full, message dropped");
                }
            }
            if deliveries.len() > MAX_RECIPIENTS && !is_begun {
                return Err(ToDeviceError::TooManyRecipients);
            }
        }
        Ok(deliveries)
    }

    /// Carries a request out from where `progress` left it, batch by batch.
    async fn deliver(
        &self,
        request: &ToDeviceRequest,
        key: Option<(u64, u128)>,
        mut progress: Option<TransactionRow>,
        steps: &[Step<'_>],
    ) -> Result<Attempt, Failure> {
        let is_left = |step: &&Step<'_>| match &progress {
            Some(TransactionRow {
                upto: Some(upto), ..
            }) => step.place() > *upto,
            _ => true,
        };
        let mut left: &[Step<'_>] = &steps[steps.iter().take_while(|one| !is_left(one)).count()..];
        loop {
            let (now, later) = left.split_at(batch_length(left));
            let mut batch = Batch::new();
            self.put_steps(&mut batch, request, now);
            if let Some(key) = &key {
                let upto = now.last().filter(|_| !later.is_empty());
                let started_at = progress
                    .as_ref()
                    .map_or(self.ground.now(), |row| row.started_at);
                let row = TransactionRow {
                    started_at,
                    upto: upto.map(Step::place),
                };
                match &progress {
                    Some(before) => batch.assert_value(&TO_DEVICE_TRANSACTIONS, key, before),
                    None => batch.assert_absent(&TO_DEVICE_TRANSACTIONS, key),
                };
                batch.put(&TO_DEVICE_TRANSACTIONS, key, &row);
                let by_time = (started_at, key.0, key.1);
                batch.put(&TO_DEVICE_TRANSACTIONS_BY_TIME, &by_time, &());
                progress = Some(row);
            } else if batch.is_empty() {
                return Ok(Attempt::Done(crate::ground::Positions::none()));
            }
            let attempt = self.ground.attempt(batch).await?;
            if later.is_empty() || matches!(attempt, Attempt::Conflict) {
                return Ok(attempt);
            }
            left = later;
        }
    }

    /// The oldest messages waiting for a device, at most [`INBOX_PAGE`] in `(after, upto]`.
    pub async fn page(
        &self,
        device: DeviceNumber,
        after: Position,
        upto: Position,
    ) -> Result<InboxPage, Failure> {
        let from = (device.0, after.saturating_add(1));
        let to = (device.0, upto.saturating_add(1));
        let mut rows = self
            .ground
            .scan_between(&INBOX, from, to, INBOX_PAGE + 1)
            .await?;
        let more = rows.len() > INBOX_PAGE;
        rows.truncate(INBOX_PAGE);
        let messages = rows.into_iter().map(|((_, at), row)| message(at, row));
        let messages = messages.collect::<Result<Vec<_>, _>>()?;
        let last = messages.last().map(|message| message.position);
        Ok(InboxPage {
            upto: last.filter(|_| more).unwrap_or(upto),
            messages,
            more,
        })
    }

    /// Deletes the messages at or before `upto`, which the device has shown to have received.
    pub async fn acknowledge(&self, device: DeviceNumber, upto: Position) -> Result<(), Failure> {
        let from = (device.0, 0_u64);
        let to = (device.0, upto.saturating_add(1));
        loop {
            let rows = self
                .ground
                .scan_between(&INBOX, from, to, INBOX_PAGE)
                .await?;
            if rows.is_empty() {
                return Ok(());
            }
            let mut batch = Batch::new();
            for (key, _) in &rows {
                batch.delete(&INBOX, key);
            }
            self.ground.store.commit(batch).await?;
            self.waiting.remove(&device);
        }
    }

    /// Whether an inbox may take another message, of so many bytes; counts it in.
    async fn has_room(&self, device: DeviceNumber, bytes: usize) -> Result<bool, Failure> {
        // What is remembered may be too much (a repeated request counts twice): counted anew
        // before anything is dropped.
        let mut waiting = match self.waiting.get(&device) {
            Some(Waiting { full: true, .. }) => return Ok(false),
            Some(waiting) if waiting.has_room() => waiting,
            _ => self.count(device).await?,
        };
        let has_room = waiting.has_room();
        if has_room {
            waiting.add(bytes);
        } else {
            waiting.full = true;
        }
        self.waiting.insert(device, waiting);
        Ok(has_room)
    }

    fn put_steps(&self, batch: &mut Batch, request: &ToDeviceRequest, steps: &[Step<'_>]) {
        let kind = (request.sender.as_str(), request.event_type.as_str());
        let mut here = Vec::new();
        for step in steps {
            match step {
                Step::Away(_, parcel) => self.outgoing.put(batch, kind, parcel),
                Step::Here(delivery) => here.push(delivery),
            }
        }
        put_messages(batch, request, &here);
    }

    async fn count(&self, device: DeviceNumber) -> Result<Waiting, Failure> {
        let mut waiting = Waiting::default();
        let mut after = 0;
        while waiting.has_room() {
            let from = (device.0, after + 1);
            let to = (device.0, Position::MAX);
            let rows = self
                .ground
                .scan_between(&INBOX, from, to, INBOX_PAGE)
                .await?;
            for (_, row) in &rows {
                waiting.add(row.content.len());
            }
            match rows.last() {
                Some(((_, last), _)) if rows.len() == INBOX_PAGE => after = *last,
                _ => break,
            }
        }
        Ok(waiting)
    }
}

/// How many of these fit into one batch; at least one if there are any.
fn batch_length(steps: &[Step<'_>]) -> usize {
    let (mut bytes, mut operations) = (0, 0);
    let fits = |step: &&Step<'_>| {
        bytes += step.bytes();
        operations += match step {
            Step::Away(..) => 2,
            Step::Here(_) => 1,
        };
        bytes <= BATCH_BYTES && operations <= BATCH_MESSAGES
    };
    steps.iter().take_while(fits).count()
}

fn put_messages(batch: &mut Batch, request: &ToDeviceRequest, deliveries: &[&Delivery<'_>]) {
    for deliveries in deliveries.chunks(TOPICS) {
        let topics: Vec<_> = deliveries
            .iter()
            .map(|one| journal::device(one.device))
            .collect();
        let devices: Vec<u64> = deliveries.iter().map(|one| one.device.0).collect();
        let position = batch.append(&journal::entry(journal::TO_DEVICE_SENT, &devices), &topics);
        for delivery in deliveries {
            let row = MessageRow {
                sender: request.sender.to_string(),
                event_type: request.event_type.clone(),
                content: delivery.content.get().to_owned(),
            };
            batch.put(&INBOX, &(delivery.device.0, At::Append(position)), &row);
        }
    }
}

fn message(position: Position, row: MessageRow) -> Result<ToDeviceMessage, Failure> {
    let damaged = || Failure::Damaged("to-device message");
    Ok(ToDeviceMessage {
        position,
        sender: crate::ground::user_id(&row.sender)?,
        event_type: row.event_type,
        content: RawValue::from_string(row.content).map_err(|_| damaged())?,
    })
}

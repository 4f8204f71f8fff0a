//! Account data: what a client keeps for itself on the server, for the account or for one room.
//!
//! Only the last value counts, and each carries the position at which it was set. Tags
//! (`m.tag`), push rules (`m.push_rules`) and the fully read marker (`m.fully_read`) are account
//! data too; which types a client may write itself is the caller's decision, except for
//! `m.fully_read`, which only [`AccountData::set_fully_read`] writes.
//!
//! Spec: Client-Server API, "Client Config", "Room Tagging", "Fully read markers".

use homeserver_storage::{At, Batch, Position, Positioned};
use ruma::EventId;
use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};

use crate::{
    Failure, UserNumber,
    ground::{Attempt, Ground, MAX_ATTEMPTS},
    identifier::{BadIdentifier, check_identifier},
    journal,
    tables::{ACCOUNT_DATA, ACCOUNT_DATA_CHANGES, READ_MARKERS},
};

/// Bytes of one value.
pub const MAX_ACCOUNT_DATA: usize = 100 * 1024;

/// Values one user may keep, rooms included; what is beyond it is not read back.
pub const MAX_ACCOUNT_DATA_ITEMS: usize = 100_000;

/// Values deleted by one batch.
const DELETED_AT_ONCE: usize = 100;

/// The room number that stands for "no room".
const GLOBAL: u64 = 0;

const FULLY_READ: &str = "m.fully_read";

/// Account data of the account itself, or of a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Of the account.
    Global,
    /// Of the account in the room with this number.
    Room(u64),
}

impl Scope {
    fn number(self) -> u64 {
        match self {
            Self::Global => GLOBAL,
            Self::Room(room) => room,
        }
    }

    fn from_number(number: u64) -> Self {
        match number {
            GLOBAL => Self::Global,
            room => Self::Room(room),
        }
    }
}

/// One value and where it stands.
#[derive(Clone, Debug)]
pub struct AccountDatum {
    /// Of the account or of a room.
    pub scope: Scope,
    /// The event type.
    pub event_type: String,
    /// The event content.
    pub content: Box<RawValue>,
    /// When it was set.
    pub position: Position,
}

/// Row of [`ACCOUNT_DATA`]: the content as JSON text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContentRow(String);
homeserver_storage::row!(ContentRow, 1);

/// Row of [`ACCOUNT_DATA_CHANGES`]: which value changed at that position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChangeRow {
    room: u64,
    event_type: String,
}
homeserver_storage::row!(ChangeRow, 1);

/// Account data was not changed.
#[derive(Debug, thiserror::Error)]
pub enum AccountDataError {
    /// The type is not a valid identifier.
    #[error("the type is not a valid identifier")]
    BadType(#[from] BadIdentifier),
    /// `m.fully_read` has its own way in.
    #[error("this type is managed by the server")]
    Managed,
    /// The content is longer than [`MAX_ACCOUNT_DATA`] bytes.
    #[error("the content is too large")]
    TooLarge,
    /// The store could not do it.
    #[error(transparent)]
    Failure(#[from] Failure),
}

/// The account data of this server's users. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AccountData {
    ground: Ground,
}

impl AccountData {
    pub(crate) fn new(ground: Ground) -> Self {
        Self { ground }
    }

    /// One value.
    pub async fn one(
        &self,
        user: UserNumber,
        scope: Scope,
        event_type: &str,
    ) -> Result<Option<AccountDatum>, Failure> {
        let key = (user.0, scope.number(), event_type.to_owned());
        let row = self.ground.store.get(&ACCOUNT_DATA, &key).await?;
        row.map(|row| datum(scope, key.2, row)).transpose()
    }

    /// All values of one scope, by type.
    pub async fn of_scope(
        &self,
        user: UserNumber,
        scope: Scope,
    ) -> Result<Vec<AccountDatum>, Failure> {
        let prefix = (user.0, scope.number());
        let rows = self
            .ground
            .scan_prefix(&ACCOUNT_DATA, &prefix, MAX_ACCOUNT_DATA_ITEMS)
            .await?;
        let rows = rows.into_iter();
        rows.map(|((_, _, event_type), row)| datum(scope, event_type, row))
            .collect()
    }

    /// The values last set in `(after, upto]`, oldest first. A value that was set again after
    /// `upto` is missing here and is told next time.
    pub async fn changes(
        &self,
        user: UserNumber,
        after: Position,
        upto: Position,
    ) -> Result<Vec<AccountDatum>, Failure> {
        let from = (user.0, after.saturating_add(1));
        let to = (user.0, upto.saturating_add(1));
        let changes = self
            .ground
            .scan_between(&ACCOUNT_DATA_CHANGES, from, to, MAX_ACCOUNT_DATA_ITEMS)
            .await?;
        let keys = changes
            .into_iter()
            .map(|(_, change)| (user.0, change.room, change.event_type));
        let keys: Vec<_> = keys.collect();
        let rows = self.ground.store.multi_get(&ACCOUNT_DATA, &keys).await?;
        let mut data = Vec::with_capacity(keys.len());
        for ((_, room, event_type), row) in keys.into_iter().zip(rows) {
            if let Some(row) = row {
                let datum = datum(Scope::from_number(room), event_type, row)?;
                if datum.position <= upto {
                    data.push(datum);
                }
            }
        }
        Ok(data)
    }

    /// Deletes everything a user has stored, as for an account that is erased; in many batches,
    /// and to be repeated if it is interrupted.
    pub async fn delete_all(&self, user: UserNumber) -> Result<(), Failure> {
        loop {
            let rows = self
                .ground
                .scan_prefix(&ACCOUNT_DATA, &user.0, DELETED_AT_ONCE)
                .await?;
            if rows.is_empty() {
                return Ok(());
            }
            let mut batch = Batch::new();
            for (key, row) in &rows {
                batch.delete(&ACCOUNT_DATA, key);
                batch.delete(&ACCOUNT_DATA_CHANGES, &(user.0, row.known()));
                batch.remove_entry(row.known(), &[journal::user(user)]);
            }
            self.ground.store.commit(batch).await?;
        }
    }

    /// Sets a value. Gives its position.
    pub async fn set(
        &self,
        user: UserNumber,
        scope: Scope,
        event_type: &str,
        content: &RawValue,
    ) -> Result<Position, AccountDataError> {
        if event_type == FULLY_READ {
            return Err(AccountDataError::Managed);
        }
        let write = |_: Option<&RawValue>| Some(content.to_owned());
        let change = self
            .change(user, scope, event_type, &write, &Batch::new())
            .await?;
        change.ok_or(Failure::Busy.into())
    }

    /// Changes a value depending on what it is: tags and push rules are changed like this.
    ///
    /// `decide` gets the present content and gives the new one, or `None` to leave it as it is;
    /// it is asked again if another change comes between. Gives the position of the change.
    pub async fn update(
        &self,
        user: UserNumber,
        scope: Scope,
        event_type: &str,
        decide: impl Fn(Option<&RawValue>) -> Option<Box<RawValue>> + Send + Sync,
    ) -> Result<Option<Position>, AccountDataError> {
        if event_type == FULLY_READ {
            return Err(AccountDataError::Managed);
        }
        self.change(user, scope, event_type, &decide, &Batch::new())
            .await
    }

    /// Moves the fully read marker of a room to an event, unless it stands further on already.
    /// `arrival` is the arrival position of the event in the room.
    pub async fn set_fully_read(
        &self,
        user: UserNumber,
        room: u64,
        event_id: &EventId,
        arrival: Position,
    ) -> Result<Option<Position>, AccountDataError> {
        let key = (room, user.0);
        for _ in 0..MAX_ATTEMPTS {
            let before = self
                .ground
                .store
                .get(&READ_MARKERS, &key)
                .await
                .map_err(Failure::from)?;
            if before.is_some_and(|before| before >= arrival) {
                return Ok(None);
            }
            let mut more = Batch::new();
            match &before {
                Some(before) => more.assert_value(&READ_MARKERS, &key, before),
                None => more.assert_absent(&READ_MARKERS, &key),
            };
            more.put(&READ_MARKERS, &key, &arrival);
            let content = serde_json::value::to_raw_value(&json!({ "event_id": event_id }));
            let content = content.map_err(|_| Failure::Damaged("event id"))?;
            let write = |_: Option<&RawValue>| Some(content.clone());
            match self
                .change(user, Scope::Room(room), FULLY_READ, &write, &more)
                .await
            {
                Err(AccountDataError::Failure(Failure::Refused)) => {}
                done => return done,
            }
        }
        Err(Failure::Busy.into())
    }

    async fn change(
        &self,
        user: UserNumber,
        scope: Scope,
        event_type: &str,
        decide: &(dyn Fn(Option<&RawValue>) -> Option<Box<RawValue>> + Send + Sync),
        more: &Batch,
    ) -> Result<Option<Position>, AccountDataError> {
        check_identifier(event_type)?;
        let key = (user.0, scope.number(), event_type.to_owned());
        for _ in 0..MAX_ATTEMPTS {
            let before = self
                .ground
                .store
                .get(&ACCOUNT_DATA, &key)
                .await
                .map_err(Failure::from)?;
            let present = before
                .as_ref()
                .map(|row| raw(row.value.0.clone()))
                .transpose()?;
            let Some(content) = decide(present.as_deref()) else {
                return Ok(None);
            };
            if content.get().len() > MAX_ACCOUNT_DATA {
                return Err(AccountDataError::TooLarge);
            }
            let mut batch = Batch::new();
            let ours = match &before {
                Some(before) => batch.assert_value(&ACCOUNT_DATA, &key, before),
                None => batch.assert_absent(&ACCOUNT_DATA, &key),
            };
            if let Some(before) = &before {
                batch.delete(&ACCOUNT_DATA_CHANGES, &(user.0, before.known()));
                batch.remove_entry(before.known(), &[journal::user(user)]);
            }
            let appended = batch.append(
                &journal::entry(journal::ACCOUNT_DATA_CHANGED, &[user.0, key.1]),
                &[journal::user(user)],
            );
            let position = At::Append(appended);
            let row = Positioned::new(position, ContentRow(content.get().to_owned()));
            batch.put(&ACCOUNT_DATA, &key, &row);
            let change = ChangeRow {
                room: key.1,
                event_type: key.2.clone(),
            };
            batch.put(&ACCOUNT_DATA_CHANGES, &(user.0, position), &change);
            batch.extend(more);
            if let Attempt::Done(at) = self.ground.attempt_asserting(batch, &[ours]).await? {
                return Ok(Some(at.first()));
            }
        }
        Err(Failure::Busy.into())
    }
}

fn datum(
    scope: Scope,
    event_type: String,
    row: Positioned<ContentRow>,
) -> Result<AccountDatum, Failure> {
    Ok(AccountDatum {
        scope,
        event_type,
        position: row.known(),
        content: raw(row.value.0)?,
    })
}

fn raw(json: String) -> Result<Box<RawValue>, Failure> {
    RawValue::from_string(json).map_err(|_| Failure::Damaged("account data"))
}

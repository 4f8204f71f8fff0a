//! Giving numbers: to rooms and events from blocks, to users and state keys by name.
//!
//! A block of numbers is taken from the database at once, so that a number costs no commit. What
//! was not used of a block when the process ends is a gap, which is ordinary.

use std::sync::Arc;

use homeserver_storage::{Batch, Interner, NumberKind, Store};
use parking_lot::Mutex;
use ruma::{OwnedUserId, UserId};

use crate::{
    error::RoomError,
    numbers::{EventNumber, KeyNumber, RoomNumber, UserNumber},
    tables::NUMBER_BLOCKS,
};

/// Numbers taken from the database at once.
const BLOCK: u64 = 65_536;

/// Attempts to take a block while others take theirs.
const BLOCK_ATTEMPTS: usize = 16;

/// Users have one number for all crates.
pub(crate) const USERS: NumberKind = NumberKind(1);

/// State keys have numbers of their own kind. The name of a key is the number of its type, a colon
/// and the state key.
pub(crate) const STATE_KEYS: NumberKind = NumberKind(0x10);

/// So have the types of state events.
pub(crate) const STATE_TYPES: NumberKind = NumberKind(0x11);

/// Gives and remembers numbers.
pub(crate) struct Numbering {
    store: Store,
    rooms: Mutex<Block>,
    events: Mutex<Block>,
    /// One refill at a time.
    refill: tokio::sync::Mutex<()>,
    users: Interner,
    keys: Interner,
    types: Interner,
}

#[derive(Clone, Copy)]
enum Kind {
    Room = 1,
    Event = 2,
}

#[derive(Default)]
struct Block {
    next: u64,
    end: u64,
}

impl Block {
    fn take(&mut self, count: u64) -> Option<u64> {
        let first = self.next;
        (self.end - first >= count).then(|| {
            self.next += count;
            first
        })
    }
}

impl Numbering {
    pub(crate) fn new(store: &Store) -> Self {
        Self {
            store: store.clone(),
            rooms: Mutex::default(),
            events: Mutex::default(),
            refill: tokio::sync::Mutex::default(),
            users: store.numbers(USERS),
            keys: store.numbers(STATE_KEYS),
            types: store.numbers(STATE_TYPES),
        }
    }

    pub(crate) async fn new_room(&self) -> Result<RoomNumber, RoomError> {
        self.take(Kind::Room, 1).await.map(RoomNumber)
    }

    pub(crate) async fn new_event(&self) -> Result<EventNumber, RoomError> {
        self.take(Kind::Event, 1).await.map(EventNumber)
    }

    async fn take(&self, kind: Kind, count: u64) -> Result<u64, RoomError> {
        let block = match kind {
            Kind::Room => &self.rooms,
            Kind::Event => &self.events,
        };
        let at_hand = block.lock().take(count);
        if let Some(first) = at_hand {
            return Ok(first);
        }
        let _one_at_a_time = self.refill.lock().await;
        let refilled_meanwhile = block.lock().take(count);
        if let Some(first) = refilled_meanwhile {
            return Ok(first);
        }
        let next = self.reserve(kind).await?;
        let mut block = block.lock();
        *block = Block {
            next,
            end: next + BLOCK,
        };
        block.take(count).ok_or(RoomError::Contended)
    }

    /// Takes the next block of a kind. Number 0 is never given.
    async fn reserve(&self, kind: Kind) -> Result<u64, RoomError> {
        let key = kind as u8;
        for _ in 0..BLOCK_ATTEMPTS {
            let stored = self.store.get(&NUMBER_BLOCKS, &key).await?;
            let mut batch = Batch::new();
            let next = stored.unwrap_or(1);
            if stored.is_some() {
                batch.assert_value(&NUMBER_BLOCKS, &key, &next);
            } else {
                batch.assert_absent(&NUMBER_BLOCKS, &key);
            }
            batch.put(&NUMBER_BLOCKS, &key, &(next + BLOCK));
            match self.store.commit(batch).await {
                Ok(_) => return Ok(next),
                Err(homeserver_storage::CommitError::Conflict { .. }) => {}
                Err(error) => return Err(RoomError::NotStored(error)),
            }
        }
        Err(RoomError::Contended)
    }

    /// The number of a user, given on first mention.
    pub(crate) async fn user(&self, user: &UserId) -> Result<UserNumber, RoomError> {
        Ok(UserNumber(self.users.number(user.as_str()).await?))
    }

    /// The number of a user, if one was given.
    pub(crate) async fn known_user(&self, user: &UserId) -> Result<Option<UserNumber>, RoomError> {
        Ok(self.users.lookup(user.as_str()).await?.map(UserNumber))
    }

    /// The user with this number.
    pub(crate) async fn user_name(&self, user: UserNumber) -> Result<OwnedUserId, RoomError> {
        let name = self.users.name(user.0).await?;
        name.and_then(|name| UserId::parse(name.as_ref()).ok())
            .ok_or_else(|| RoomError::damaged(format!("no user has the number {}", user.0)))
    }

    /// The number of a state key, given on first mention.
    pub(crate) async fn key(
        &self,
        event_type: &str,
        state_key: &str,
    ) -> Result<KeyNumber, RoomError> {
        let of_type = self.types.number(event_type).await?;
        let number = self.keys.number(&key_name(of_type, state_key)).await?;
        Ok(KeyNumber(number))
    }

    /// Sees to it that state keys have numbers, in few commits.
    pub(crate) async fn prepare_keys(&self, pairs: &[(&str, &str)]) -> Result<(), RoomError> {
        let types: Vec<_> = pairs.iter().map(|(of_type, _)| *of_type).collect();
        let types = self.types.numbers(&types).await?;
        let names = types.iter().zip(pairs);
        let names: Vec<_> = names
            .map(|(of_type, (_, state_key))| key_name(*of_type, state_key))
            .collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        self.keys.numbers(&names).await?;
        Ok(())
    }

    /// The number of a state key, if one was given.
    pub(crate) async fn known_key(
        &self,
        event_type: &str,
        state_key: &str,
    ) -> Result<Option<KeyNumber>, RoomError> {
        let Some(of_type) = self.types.lookup(event_type).await? else {
            return Ok(None);
        };
        let found = self.keys.lookup(&key_name(of_type, state_key)).await?;
        Ok(found.map(KeyNumber))
    }

    /// The event type and state key with this number.
    pub(crate) async fn key_name(&self, key: KeyNumber) -> Result<StateKey, RoomError> {
        let damaged = || RoomError::damaged(format!("no state key has the number {}", key.0));
        let name = self.keys.name(key.0).await?.ok_or_else(damaged)?;
        let (of_type, _) = name.split_once(':').ok_or_else(damaged)?;
        let start = of_type.len() + 1;
        let of_type = of_type.parse().map_err(|_| damaged())?;
        let event_type = self.types.name(of_type).await?.ok_or_else(damaged)?;
        Ok(StateKey {
            event_type,
            name,
            start,
        })
    }
}

fn key_name(of_type: u64, state_key: &str) -> String {
    format!("{of_type}:{state_key}")
}

/// A pair of event type and state key.
#[derive(Clone, Debug)]
pub struct StateKey {
    event_type: Arc<str>,
    /// Ends with the state key.
    name: Arc<str>,
    start: usize,
}

impl StateKey {
    /// A key from its parts.
    pub fn new(event_type: &str, state_key: &str) -> Self {
        Self {
            event_type: event_type.into(),
            name: state_key.into(),
            start: 0,
        }
    }

    /// The type of the state event.
    pub fn event_type(&self) -> &str {
        &self.event_type
    }

    /// The state key.
    pub fn state_key(&self) -> &str {
        &self.name[self.start..]
    }

    /// Both.
    pub fn pair(&self) -> (&str, &str) {
        (self.event_type(), self.state_key())
    }
}

impl PartialEq for StateKey {
    fn eq(&self, other: &Self) -> bool {
        self.pair() == other.pair()
    }
}

impl Eq for StateKey {}

impl PartialOrd for StateKey {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for StateKey {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.pair().cmp(&other.pair())
    }
}

impl std::hash::Hash for StateKey {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.pair().hash(state);
    }
}

//! Living rooms: loads what a decision needs, asks the event rules, appends.
//!
//! A [`RoomCommand`] is decided on the tip of its room, becomes one value that holds everything it
//! changes, and is written as one batch; [`Rooms::execute`] answers when that is on disk. Readers
//! ask for what was so at a position of the journal, and obtain events only through a visibility
//! check ([`Rooms::visible`], [`Rooms::timeline`], [`Rooms::history`], [`Rooms::context`]); so do other
//! servers ([`Rooms::enter_as_server`]).
//!
//! The state of a room is a shared search tree: a message costs no state, a state change one path.
//! Events have two orders, by arrival (/sync) and by height in the graph (/messages).
//!
//! This crate never calls out: hooks, policies and limits on users are asked before a command is
//! made, federation hands over events it has fetched.

mod acl;
mod arrival;
mod backfill;
mod bulk;
mod command;
mod commands;
mod debts;
mod decide;
mod delta;
mod description;
mod directory;
mod edit;
mod error;
mod event;
mod execute;
mod gap;
mod handover;
mod handshake;
mod history;
mod import;
mod judge;
mod live;
mod members;
mod nearest;
mod newcomer;
mod numbering;
mod numbers;
mod outgoing;
mod outside;
mod partial;
mod plant;
mod policy;
mod reads;
mod receive;
mod relations;
mod resolving;
mod room;
mod rowchange;
mod rows;
mod serving;
mod states;
mod sweep;
mod switch;
mod tables;
mod tally;
mod third_party;
mod timeline;
mod token;
mod transactions;
mod tree;
mod visible;
mod whereabouts;
mod whole;

use std::sync::Arc;

use homeserver_events::{SigningKey, VerifyKey};
use homeserver_runtime::{Clock, Runtime};
use homeserver_storage::{Batch, Bytes, CommitError, Store};
use ruma::{OwnedServerName, RoomVersionId};

pub use arrival::Arriving;
pub use backfill::{Backfilled, Gap, MAX_BACKFILL};
pub use command::{
    CreateRoom, InitialState, MemberProfile, MembershipChange, NewEvent, Preset, RoomAction,
    RoomAnswer, RoomCommand, TransactionKey, UpgradeRoom,
};
pub use commands::{MAX_INITIAL_STATE, MAX_INVITES};
pub use delta::journal;
pub use description::Description;
pub use directory::{AliasTarget, DirectoryPlace};
pub use error::RoomError;
pub use gap::{OutliersTaken, ToldState};
pub use handover::Handover;
pub use handshake::{Admitted, Proposed};
pub use history::{Context, HistoryPage, MAX_PAGE, Wanted};
pub use import::{IMPORT_LIFETIME, IMPORT_PART, IMPORT_PART_BYTES, ImportId, Imported, PartTaken};
pub use nearest::{Near, Nearest};
pub use numbering::StateKey;
pub use numbers::{EventNumber, KeyNumber, RoomNumber, UserNumber};
pub use outgoing::{Backlog, Destinations, OutgoingEvent};
pub use outside::{Outside, Standing};
pub use partial::MAX_PARTIAL_SERVERS;
pub use policy::{Unsealed, UnsealedUpgrade};
pub use reads::{HEROES, StateChange, Summary, UserMembership};
pub use receive::{Incoming, Received};
pub use relations::{RelationFilter, RelationPage, Thread};
pub use room::Room;
pub use rows::{Membership, Origin, StateLogRow};
pub use serving::{
    MAX_BACKFILL_SERVED, MAX_CHAIN, MAX_MISSING_SERVED, MissingAsked, Section, ServedChain,
    ServedEvent, ServerVisit,
};
pub use tables::TABLES;
pub use tally::{COUNTED_CLASSES, ClassCounts, CountedArrival, Tally};
pub use timeline::{Arrival, TimelineSlice};
pub use token::{HistoryKey, HistoryToken, Place, Towards};
pub use transactions::TRANSACTION_LIFETIME;
pub use tree::StateRoot;
pub use visible::{ReadableState, Reader, VisibleEvent};
pub use whereabouts::IndexEventRooms;

/// Shares of the memory budget, in percent.
const EVENT_CACHE_SHARE: u8 = 25;
const NODE_CACHE_SHARE: u8 = 15;

/// The name under which the secret of the state trees is stored.
const TREE_SECRET: &str = "state_tree";

/// What the rooms are told about their server.
#[derive(Clone, Debug)]
pub struct RoomsOptions {
    /// The server that local users belong to.
    pub server_name: OwnedServerName,
    /// Signs the events of local users.
    pub signing_key: Arc<SigningKey>,
    /// Public halves of keys that this server signed with before, by their ids.
    pub old_keys: Vec<(String, VerifyKey)>,
    /// The version of new rooms.
    pub default_version: RoomVersionId,
}

/// All rooms that this server knows.
pub struct Rooms {
    store: Store,
    runtime: Runtime,
    clock: Arc<dyn Clock>,
    options: RoomsOptions,
    signing_key: Arc<SigningKey>,
    numbering: numbering::Numbering,
    states: states::States,
    events: event::Events,
    directory: room::RoomDirectory,
    live: live::LiveRooms,
    resolutions: resolving::Resolutions,
    underway: Arc<transactions::Underway>,
    acls: acl::Acls,
    policies: policy::Policies,
    servers_at_hand: outgoing::ServersAtHand,
    partials: partial::Partials,
}

impl std::fmt::Debug for Rooms {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.debug_struct("Rooms")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Rooms {
    /// The rooms in `store`, which must have been opened with [`TABLES`].
    pub async fn open(
        store: Store,
        runtime: &Runtime,
        options: RoomsOptions,
    ) -> Result<Arc<Self>, RoomError> {
        let secret = tree_secret(&store, runtime).await?;
        let node_bytes = runtime.memory.share(NODE_CACHE_SHARE);
        let event_bytes = runtime.memory.share(EVENT_CACHE_SHARE);
        let rooms = Self {
            numbering: numbering::Numbering::new(&store),
            states: states::States::new(&store, secret, node_bytes),
            events: event::Events::new(&store, event_bytes),
            directory: room::RoomDirectory::new(&store),
            live: live::LiveRooms::new(),
            resolutions: resolving::Resolutions::new(),
            underway: Arc::default(),
            acls: acl::Acls::new(),
            policies: policy::Policies::new(),
            servers_at_hand: outgoing::ServersAtHand::new(),
            partials: partial::Partials::load(&store).await?,
            clock: Arc::clone(&runtime.clock),
            runtime: runtime.clone(),
            signing_key: Arc::clone(&options.signing_key),
            options,
            store,
        };
        rooms.resume().await?;
        rooms.resume_partials().await?;
        rooms.end_arrivals().await?;
        let rooms = Arc::new(rooms);
        sweep::start(&rooms);
        Ok(rooms)
    }

    /// The store the rooms are in.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The key of this server with this id (`ed25519:…`).
    pub(crate) fn own_key(&self, id: &str) -> Option<VerifyKey> {
        if id == self.signing_key.id().as_str() {
            return Some(self.signing_key.verify_key());
        }
        let mut old = self.options.old_keys.iter();
        old.find(|(old, _)| old == id).map(|(_, key)| *key)
    }
}

/// The secret of this database that keys the state trees, made when it is first needed.
async fn tree_secret(store: &Store, runtime: &Runtime) -> Result<tree::TreeSecret, RoomError> {
    loop {
        if let Some(found) = store.get(&tables::SECRETS, &TREE_SECRET).await? {
            let bytes: Result<[u8; 32], _> = found.as_ref().try_into();
            let damaged = |_| RoomError::damaged("the secret of the state trees is cut");
            return bytes.map(tree::TreeSecret::new).map_err(damaged);
        }
        let fresh: [u8; 32] = runtime.entropy.bytes();
        let mut batch = Batch::new();
        batch.assert_absent(&tables::SECRETS, &TREE_SECRET);
        batch.put(
            &tables::SECRETS,
            &TREE_SECRET,
            &Bytes::copy_from_slice(&fresh),
        );
        match store.commit(batch).await {
            Ok(_) | Err(CommitError::Conflict { .. }) => {}
            Err(error) => return Err(RoomError::NotStored(error)),
        }
    }
}

#[cfg(test)]
mod tests;

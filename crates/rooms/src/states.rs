//! The state trees of rooms in the store, with a cache of their nodes.
//!
//! Nodes are immutable and named by their contents, so a node may be cached before it is stored:
//! nothing on disk names it before its batch is committed. A writer writes every node of a changed
//! path, also those that the cache knew, so that no root on disk ever lacks one.

use std::{collections::HashMap, sync::Arc};

use homeserver_storage::{Batch, Store};
use quick_cache::sync::Cache;

use crate::{
    error::RoomError,
    numbers::RoomNumber,
    rows::NodeRow,
    tables::STATE_NODES,
    tree::{Change, Edited, Item, KeyHash, Missing, Node, NodeId, Nodes, StateRoot, TreeSecret},
};

/// Bytes a cached node takes, roughly: sixteen slots with their allocations.
const NODE_BYTES: u64 = 700;

/// Nodes read from the store in one go.
const NODES_AT_ONCE: usize = 256;

/// Reads and edits state trees.
pub(crate) struct States {
    store: Store,
    secret: TreeSecret,
    cache: Cache<(RoomNumber, NodeId), Arc<Node>>,
}

/// The nodes that one operation may look at: those it loaded, those that are not stored yet, and
/// the cache.
struct AtHand<'a> {
    states: &'a States,
    room: RoomNumber,
    loaded: HashMap<NodeId, Arc<Node>>,
    pending: &'a PendingNodes,
}

/// Nodes of commits that are on their way.
pub(crate) type PendingNodes = HashMap<NodeId, Arc<Node>>;

impl Nodes for AtHand<'_> {
    fn node(&self, id: NodeId) -> Option<Arc<Node>> {
        if let Some(node) = self.pending.get(&id).or_else(|| self.loaded.get(&id)) {
            return Some(Arc::clone(node));
        }
        self.states.cache.get(&(self.room, id))
    }
}

impl States {
    pub(crate) fn new(store: &Store, secret: TreeSecret, cache_bytes: u64) -> Self {
        let nodes = usize::try_from(cache_bytes / NODE_BYTES).unwrap_or(usize::MAX);
        Self {
            store: store.clone(),
            secret,
            cache: Cache::new(nodes.max(1024)),
        }
    }

    /// The place of a key in the trees of this database.
    pub(crate) fn place(&self, event_type: &str, state_key: &str) -> KeyHash {
        self.secret.key(event_type, state_key)
    }

    pub(crate) async fn find(
        &self,
        room: RoomNumber,
        pending: &PendingNodes,
        root: StateRoot,
        place: (KeyHash, crate::numbers::KeyNumber),
    ) -> Result<Option<Item>, RoomError> {
        let look = |nodes: &AtHand<'_>| crate::tree::find(nodes, root, place.0, place.1);
        self.drive(room, pending, look).await
    }

    /// Keys whose type collides with `of_type` or is it, at most about `limit`.
    pub(crate) async fn of_type(
        &self,
        room: RoomNumber,
        root: StateRoot,
        of_type: KeyHash,
        limit: usize,
    ) -> Result<Vec<Item>, RoomError> {
        let look = |nodes: &AtHand<'_>| crate::tree::scan_type(nodes, root, of_type, limit);
        self.drive(room, &PendingNodes::new(), look).await
    }

    pub(crate) async fn all(
        &self,
        room: RoomNumber,
        root: StateRoot,
    ) -> Result<Vec<Item>, RoomError> {
        let look = |nodes: &AtHand<'_>| crate::tree::scan_all(nodes, root);
        self.drive(room, &PendingNodes::new(), look).await
    }

    /// All keys but those of the type that lies at `left_out`.
    pub(crate) async fn except(
        &self,
        room: RoomNumber,
        pending: &PendingNodes,
        root: StateRoot,
        left_out: KeyHash,
    ) -> Result<Vec<Item>, RoomError> {
        let look = |nodes: &AtHand<'_>| crate::tree::scan_except(nodes, root, left_out);
        self.drive(room, pending, look).await
    }

    /// Keys whose events have an `auth_height` above this.
    pub(crate) async fn above(
        &self,
        room: RoomNumber,
        pending: &PendingNodes,
        root: StateRoot,
        height: u64,
    ) -> Result<Vec<Item>, RoomError> {
        let look = |nodes: &AtHand<'_>| crate::tree::scan_above(nodes, root, height);
        self.drive(room, pending, look).await
    }

    pub(crate) async fn difference(
        &self,
        room: RoomNumber,
        pending: &PendingNodes,
        (before, after): (StateRoot, StateRoot),
    ) -> Result<Vec<crate::tree::Difference>, RoomError> {
        let look = |nodes: &AtHand<'_>| crate::tree::difference(nodes, before, after);
        self.drive(room, pending, look).await
    }

    /// The tree after `changes`. The new nodes are in the cache afterwards, not in the store.
    pub(crate) async fn edit(
        &self,
        room: RoomNumber,
        pending: &PendingNodes,
        root: StateRoot,
        changes: &[Change],
    ) -> Result<Edited, RoomError> {
        let look = |nodes: &AtHand<'_>| crate::tree::edit(nodes, &self.secret, root, changes);
        let edited = self.drive(room, pending, look).await?;
        for sealed in &edited.written {
            self.cache
                .insert((room, sealed.id), Arc::clone(&sealed.node));
        }
        Ok(edited)
    }

    /// Runs a pure operation, loading what it misses until it misses nothing.
    async fn drive<T>(
        &self,
        room: RoomNumber,
        pending: &PendingNodes,
        operation: impl Fn(&AtHand<'_>) -> Result<T, Missing>,
    ) -> Result<T, RoomError> {
        let mut nodes = AtHand {
            states: self,
            room,
            loaded: HashMap::new(),
            pending,
        };
        loop {
            match operation(&nodes) {
                Ok(done) => return Ok(done),
                Err(Missing(ids)) => {
                    for some in ids.chunks(NODES_AT_ONCE) {
                        self.load(room, some, &mut nodes.loaded).await?;
                    }
                }
            }
        }
    }

    async fn load(
        &self,
        room: RoomNumber,
        ids: &[NodeId],
        loaded: &mut HashMap<NodeId, Arc<Node>>,
    ) -> Result<(), RoomError> {
        let keys: Vec<_> = ids.iter().map(|id| (room.0, id.0)).collect();
        let rows = self.store.multi_get(&STATE_NODES, &keys).await?;
        for (id, row) in ids.iter().zip(rows) {
            let node = row
                .and_then(|row| Node::decode(&row.encoded))
                .ok_or_else(|| {
                    RoomError::damaged(format!("a state node of room {} is not there", room.0))
                })?;
            let node = Arc::new(node);
            self.cache.insert((room, *id), Arc::clone(&node));
            loaded.insert(*id, node);
        }
        Ok(())
    }
}

/// Adds the nodes of an edit to a batch, as written in this generation of the room. The batch must
/// assert the row that the generation was read from, so that no sweep begins in between.
pub(crate) fn write_nodes(
    batch: &mut Batch,
    (room, generation): (RoomNumber, u64),
    nodes: &[crate::tree::SealedNode],
) {
    for sealed in nodes {
        let row = NodeRow {
            generation,
            encoded: sealed.encoded.clone().into(),
        };
        batch.put(&STATE_NODES, &(room.0, sealed.id.0), &row);
    }
}

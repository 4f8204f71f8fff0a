//! Which servers may take part in a room: its ACL, and who is joined.
//!
//! Specification: Server-Server API, "Server Access Control Lists (ACLs)".

use std::sync::Arc;

use homeserver_events::{ServerAcl, names::canonical_name};
use homeserver_storage::{Direction, Position, ScanRange};
use quick_cache::sync::Cache;
use ruma::ServerName;

use crate::{
    Rooms,
    error::RoomError,
    numbers::{EventNumber, RoomNumber},
    room::Room,
    tables,
};

/// ACLs that are kept at hand. The largest has a few thousand patterns of some hundred bytes each.
const ACLS_AT_HAND: usize = 500;

/// The event that states an ACL, with the redaction that emptied it: together they decide what it
/// says.
type Stated = (RoomNumber, EventNumber, Option<EventNumber>);

/// ACLs of late, read.
pub(crate) struct Acls {
    read: Cache<Stated, Arc<ServerAcl>>,
    open: Arc<ServerAcl>,
}

impl Acls {
    pub(crate) fn new() -> Self {
        Self {
            read: Cache::new(ACLS_AT_HAND),
            open: Arc::new(ServerAcl::open()),
        }
    }
}

impl Rooms {
    /// The ACL that holds in a room now. Who judges many events of one origin asks once.
    pub async fn acl(&self, room: &Room) -> Result<Arc<ServerAcl>, RoomError> {
        let now = self.state_at(room.number, self.durable()).await?;
        let event = self
            .state_event(room, now.root, "m.room.server_acl", "")
            .await?;
        let Some(event) = event else {
            return Ok(Arc::clone(&self.acls.open));
        };
        let stated = (room.number, event.number, event.redacted_by);
        if let Some(acl) = self.acls.read.get(&stated) {
            return Ok(acl);
        }
        let acl = Arc::new(ServerAcl::from_content(event.pdu.content().get()));
        self.acls.read.insert(stated, Arc::clone(&acl));
        Ok(acl)
    }

    /// Whether a server has joined users in a room at a position.
    pub async fn server_joined(
        &self,
        room: &Room,
        server: &ServerName,
        at: Position,
    ) -> Result<bool, RoomError> {
        for name in names_of(server) {
            let key = (room.number.0, name);
            let range = ScanRange::prefix(&key).upto(&(key.0, key.1.as_str(), at));
            let table = &tables::SERVER_LOG;
            let rows = self
                .store
                .scan(table, range, Direction::Backward, 1)
                .await?;
            if rows.first().is_some_and(|(_, present)| *present == 1) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a server came to have joined users in a room in (`after`, `upto`].
    pub(crate) async fn server_joined_within(
        &self,
        room: &Room,
        server: &ServerName,
        (after, upto): (Position, Position),
    ) -> Result<bool, RoomError> {
        for name in names_of(server) {
            let key = (room.number.0, name);
            let range = ScanRange::prefix(&key)
                .after(&(key.0, key.1.as_str(), after))
                .upto(&(key.0, key.1.as_str(), upto));
            // Coming and going take turns.
            let table = &tables::SERVER_LOG;
            let rows = self.store.scan(table, range, Direction::Forward, 2).await?;
            if rows.iter().any(|(_, present)| *present == 1) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// How user ids may write the name of a server: as it does itself, or plainly.
fn names_of(server: &ServerName) -> Vec<String> {
    let mut names = vec![server.as_str().to_owned()];
    let plain = canonical_name(server);
    if plain != names[0] {
        names.push(plain.to_string());
    }
    names
}

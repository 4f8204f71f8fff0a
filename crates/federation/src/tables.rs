//! The tables of this crate, ids `0xa0`–`0xbf`, each with the layout of its key.

use homeserver_storage::{Table, TableSpec};

use crate::{health::HealthRow, keys::known::ServerKeys};

/// (server name) → the keys that it published, and its last document.
pub(crate) const SERVER_KEYS: Table<String, ServerKeys> = Table::new(0xa0, "server_keys");

/// (server name) → since when it fails, and when it is asked again; none if it is well.
pub(crate) const HEALTH: Table<String, HealthRow> = Table::new(0xa2, "health");

/// All tables of this crate, for [`homeserver_storage::Store::open`].
pub const TABLES: &[TableSpec] = &[SERVER_KEYS.spec(), HEALTH.spec()];

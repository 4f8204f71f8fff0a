//! What the server decided once and keeps: its name, the generated registration token.

use homeserver_storage::{Batch, StorageError, Store, Table, TableSpec, row};
use serde::{Deserialize, Serialize};

/// Row of [`SETTINGS`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Setting(pub(crate) String);
row!(Setting, 1);

/// (name) → value
pub(crate) const SETTINGS: Table<String, Setting> = Table::new(0x85, "settings");

/// The tables above.
pub(crate) const TABLES: [TableSpec; 1] = [SETTINGS.spec()];

/// The domain in user ids, written when the database is made.
pub(crate) const SERVER_NAME: &str = "server_name";
/// The token with which the first account may be registered.
pub(crate) const REGISTRATION_TOKEN: &str = "registration_token";

/// The value of a setting.
pub(crate) async fn read(store: &Store, name: &str) -> Result<Option<String>, StorageError> {
    let row = store.get(&SETTINGS, &name.to_owned()).await?;
    Ok(row.map(|Setting(value)| value))
}

/// A batch that sets `name`, if it is not set yet.
pub(crate) fn initial(name: &str, value: &str) -> Batch {
    let mut batch = Batch::new();
    batch.assert_absent(&SETTINGS, &name);
    batch.put(&SETTINGS, &name, &Setting(value.to_owned()));
    batch
}

/// A batch that gives settings other values, if they still have these.
pub(crate) fn changed(settings: &[(&str, Option<&str>, &str)]) -> Batch {
    let mut batch = Batch::new();
    for (name, before, value) in settings {
        match before {
            Some(before) => {
                let before = Setting((*before).to_owned());
                batch.assert_value(&SETTINGS, name, &before);
            }
            None => {
                batch.assert_absent(&SETTINGS, name);
            }
        }
        batch.put(&SETTINGS, name, &Setting((*value).to_owned()));
    }
    batch
}

/// A batch that takes away the setting `name`, if it still has `value`.
pub(crate) fn taken(name: &str, value: &str) -> Batch {
    let mut batch = Batch::new();
    batch.assert_value(&SETTINGS, &name, &Setting(value.to_owned()));
    batch.delete(&SETTINGS, &name);
    batch
}

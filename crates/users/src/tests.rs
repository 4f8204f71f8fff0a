//! What the parts do together, over the memory engine.

mod accounts;
mod data;
mod devices;
mod fuzz;
mod keys;
mod remote;
mod rows;
mod signing;
mod to_device;

use std::sync::Arc;

use homeserver_runtime::{ManualClock, Runtime};
use homeserver_storage::{Store, engines::memory::MemoryEngine};
use ruma::{OwnedDeviceId, OwnedUserId};
use serde_json::{Value, value::RawValue};

use crate::{AccountKind, Admin, NewAccount, TABLES, UserNumber, Users};

struct World {
    users: Users,
    store: Store,
    clock: Arc<ManualClock>,
}

impl World {
    async fn new() -> Self {
        let clock = Arc::new(ManualClock::new(1_700_000_000_000));
        let runtime = Runtime::simulated(Arc::clone(&clock), 7);
        let engine = Arc::new(MemoryEngine::new());
        let tokens = [homeserver_storage::TableSpec {
            id: 0x80,
            name: "tokens",
        }];
        let store = Store::open(engine, &[TABLES, &tokens], &runtime)
            .await
            .unwrap();
        Self {
            users: Users::open(&store, &runtime),
            store,
            clock,
        }
    }

    /// A new account.
    async fn user(&self, name: &str) -> UserNumber {
        let new = NewAccount {
            user_id: user_id(name),
            kind: AccountKind::Person,
            admin: Admin::No,
            password_hash: None,
        };
        self.users.accounts.create(new).await.unwrap().number
    }

    /// A new device.
    async fn device(&self, user: UserNumber, id: &str) -> crate::DeviceNumber {
        let ensured = self
            .users
            .devices
            .ensure(user, &device_id(id), None)
            .await
            .unwrap();
        ensured.device.number
    }
}

fn user_id(name: &str) -> OwnedUserId {
    format!("@{name}:localhost").try_into().unwrap()
}

fn device_id(id: &str) -> OwnedDeviceId {
    id.into()
}

fn raw(value: &Value) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).unwrap()
}

fn value(raw: &RawValue) -> Value {
    serde_json::from_str(raw.get()).unwrap()
}

//! What belongs to a user, without HTTP: accounts, devices, keys, profiles, receipts, account
//! data, typing, presence, and messages to devices.
//!
//! [`Users`] only holds the parts together; each is cheap to clone and is handed to whoever needs
//! it. Users and devices are named by number inside ([`UserNumber`], [`DeviceNumber`]); rooms by
//! the number that the rooms crate gives them.
//!
//! Every change is one batch: rows, asserts on what was read, and a journal entry under the
//! topics of those who want to know (see [`journal`]). What changed for a user in `(S, P]` is
//! asked from the parts:
//!
//! | what | where |
//! |---|---|
//! | account data, tags, push rules, fully read markers | [`AccountData::changes`] |
//! | receipts of a room | [`Receipts::changed_rooms`], [`Receipts::changes`] |
//! | messages for other servers | [`Outgoing::page`], then [`Outgoing::delivered`] |
//! | messages to a device | [`Inbox::page`], then [`Inbox::acknowledge`] |
//! | device lists | [`DeviceLists::changed`], [`DeviceLists::signed_by`] |
//! | device lists, for other servers | [`DeviceLists::told`], [`DeviceLists::version`] |
//! | counts of one-time keys, unused fallback keys | [`Keys::counts`], [`Keys::unused_fallback_types`] |
//! | typing, presence | [`Typing::changes`], [`Presences::changes`] |
//!
//! Not here: passwords' hashing, tokens, sessions (crate `homeserver`); whether a user may see
//! another (crate `rooms` knows who shares a room).

mod account;
mod account_data;
mod cross_signing;
mod device;
mod device_list;
mod filter;
mod ground;
mod identifier;
mod inbox;
pub mod journal;
mod keys;
mod number;
mod outgoing;
mod presence;
mod profile;
mod receipt;
mod remote_list;
mod signature;
mod stream;
mod sweep;
mod tables;
mod tag;
mod typing;

pub use account::{
    Account, AccountKind, AccountState, Accounts, Admin, ChangeAccountError, CreateAccountError,
    NewAccount,
};
pub use account_data::{
    AccountData, AccountDataError, AccountDatum, MAX_ACCOUNT_DATA, MAX_ACCOUNT_DATA_ITEMS, Scope,
};
pub use cross_signing::{
    CrossSigning, CrossSigningError, CrossSigningKeys, CrossSigningUpload, KeyUsage,
    MAX_CROSS_SIGNING_KEY, MAX_SIGNED_OBJECTS, Proved, SignatureFailure, SignatureFailures,
};
pub use device::{
    DELETED_AT_ONCE, Device, DeviceError, Devices, Ensured, MAX_DEVICES, MAX_DISPLAY_NAME, Seen,
};
pub use device_list::{DeviceChange, DeviceLists};
pub use filter::{FilterError, Filters, MAX_FILTER, MAX_FILTERS};
pub use ground::Failure;
pub use identifier::{BadIdentifier, MAX_IDENTIFIER};
pub use inbox::{
    INBOX_PAGE, Inbox, InboxPage, MAX_DELIVERED_BYTES, MAX_INBOX, MAX_INBOX_BYTES, MAX_RECIPIENTS,
    MAX_TO_DEVICE_CONTENT, Recipient, ToDeviceError, ToDeviceMessage, ToDeviceRequest, Transaction,
};
pub use keys::{
    ClaimedKey, InvalidKey, KeyUpload, KeyUploadError, Keys, MAX_ALGORITHMS, MAX_DEVICE_KEYS,
    MAX_DEVICE_KEYS_OF_USER, MAX_KEYS_IN_UPLOAD, MAX_ONE_TIME_KEY, MAX_ONE_TIME_KEYS,
};
pub use number::{DeviceNumber, UserNumber};
pub use outgoing::{MAX_OUTGOING, MAX_OUTGOING_BYTES, Outgoing, OutgoingMessage};
pub use presence::{
    ACTIVE_FOR, IDLE_AFTER, MAX_PRESENCES, MAX_REMOTE_PRESENCES, MAX_STATUS, ONLINE_AFTER_SYNC,
    Presence, Presences, REMOTE_PRESENCE_HOLDS, RemotePresence,
};
pub use profile::{MAX_FIELD_NAME, MAX_PROFILE, Profile, ProfileError, Profiles};
pub use receipt::{
    MAX_RECEIPTS, MAX_RECEIPTS_OF_USER, Receipt, ReceiptKind, Receipts, StoredReceipt,
};
pub use remote_list::{
    DeviceListUpdate, RemoteDevice, RemoteDeviceList, RemoteListState, RemoteLists, Updated,
    Witness, checked_cross_signing, checked_devices, checked_one_time_key,
};
pub use stream::{Changes, StreamToken};
pub use tables::TABLES;
pub use tag::{MAX_TAG_NAME, MAX_TAGS, TagError};
pub use typing::{MAX_TYPING, MAX_TYPING_IN_ROOM, MAX_TYPING_ROOMS, Typing, TypingNotice};

use std::{ops::Deref, sync::Arc, time::Duration};

use homeserver_runtime::Runtime;
use homeserver_storage::Store;
use ruma::{OwnedUserId, UserId};

use crate::ground::Ground;

/// Time between two sweeps of what deleted devices and old transactions left behind.
const SWEEP_INTERVAL: Duration = Duration::from_hours(1);

/// All parts of this crate over one store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Users {
    parts: Arc<Parts>,
}

impl Deref for Users {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.parts
    }
}

/// The parts of [`Users`], each for those who need no other.
#[derive(Debug)]
pub struct Parts {
    /// Accounts.
    pub accounts: Accounts,
    /// Devices.
    pub devices: Devices,
    /// Profiles.
    pub profiles: Profiles,
    /// Account data, tags, push rules, fully read markers.
    pub account_data: AccountData,
    /// Stored filters.
    pub filters: Filters,
    /// Read receipts.
    pub receipts: Receipts,
    /// Who is typing.
    pub typing: Typing,
    /// Who is online.
    pub presence: Presences,
    /// Keys of devices.
    pub keys: Keys,
    /// Cross-signing keys and signatures.
    pub cross_signing: CrossSigning,
    /// Which device lists changed.
    pub device_lists: DeviceLists,
    /// Device lists of users of other servers.
    pub remote_lists: RemoteLists,
    /// Messages to devices.
    pub inbox: Inbox,
    /// Messages for devices of other servers.
    pub outgoing: Outgoing,
    ground: Ground,
}

impl Users {
    /// The parts over a store that knows [`TABLES`]. Starts the memory streams' timers and an
    /// hourly sweep on the runtime's tasks, which end with its shutdown.
    pub fn open(store: &Store, runtime: &Runtime) -> Self {
        let ground = Ground::new(store.clone(), runtime);
        let outgoing = Outgoing::new(ground.clone());
        let parts = Parts {
            accounts: Accounts::new(ground.clone()),
            devices: Devices::new(ground.clone()),
            profiles: Profiles::new(ground.clone()),
            account_data: AccountData::new(ground.clone()),
            filters: Filters::new(ground.clone()),
            receipts: Receipts::new(ground.clone()),
            typing: Typing::start(runtime),
            presence: Presences::start(runtime),
            keys: Keys::new(ground.clone()),
            cross_signing: CrossSigning::new(ground.clone()),
            device_lists: DeviceLists::new(ground.clone()),
            remote_lists: RemoteLists::new(ground.clone()),
            inbox: Inbox::new(ground.clone(), outgoing.clone()),
            outgoing: outgoing.clone(),
            ground: ground.clone(),
        };
        let tasks = runtime.tasks.clone();
        runtime.tasks.spawn(sweep_hourly(ground, outgoing, tasks));
        Self {
            parts: Arc::new(parts),
        }
    }

    /// The number of a user id, local or not, given now if it has none.
    pub async fn number(&self, user_id: &UserId) -> Result<UserNumber, Failure> {
        self.ground.user_number(user_id).await
    }

    /// The number of a user id, if it has one. Prefer this for ids that a stranger names.
    pub async fn known_number(&self, user_id: &UserId) -> Result<Option<UserNumber>, Failure> {
        self.ground.known_user_number(user_id).await
    }

    /// The user id of a number.
    pub async fn user_id(&self, number: UserNumber) -> Result<Option<OwnedUserId>, Failure> {
        self.ground.user_id(number).await
    }

    /// Removes what deleted devices and old transactions left behind. Runs hourly by itself.
    pub async fn sweep(&self) -> Result<(), Failure> {
        sweep::all(&self.ground).await?;
        self.outgoing.sweep().await
    }
}

async fn sweep_hourly(ground: Ground, outgoing: Outgoing, tasks: homeserver_runtime::Tasks) {
    loop {
        tokio::select! {
            biased;
            () = tasks.stopping() => return,
            () = tokio::time::sleep(SWEEP_INTERVAL) => {}
        }
        let swept = async {
            sweep::all(&ground).await?;
            outgoing.sweep().await
        };
        if let Err(error) = swept.await {
            tracing::warn!(%error, "sweep interrupted; the next one goes on");
        }
    }
}

#[cfg(test)]
mod tests;

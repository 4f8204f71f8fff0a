//! Who is asking: access tokens, what they stand for, how they are made, renewed and ended.
//!
//! A token belongs to a device and ends with it. A client that can refresh its token gets a pair;
//! the pair it replaces lives on until one of the new tokens is used, so that an answer lost on
//! the way locks nobody out.
//!
//! Specification: client-server API, "Using access tokens", "Refreshing access tokens", "Soft
//! logout", "Relationship between access tokens and devices".

mod end;
mod issue;
mod refresh;

use std::{sync::Arc, time::Duration};

use homeserver_runtime::Runtime;
use homeserver_storage::{CommitError, StorageError, Store};
use homeserver_users::{
    Account, Accounts, ChangeAccountError, DeviceError, DeviceNumber, Devices, Failure, UserNumber,
};
use quick_cache::sync::Cache;
use ruma::{OwnedDeviceId, OwnedUserId};

use super::{
    pushers::Pushers,
    tokens::{self, ACCESS_TOKENS, TokenHash},
};

pub(crate) use end::Keep;
pub(crate) use issue::{Issued, Login};

/// Devices whose number is remembered with their token.
const MAX_REMEMBERED: usize = 50_000;

/// The authenticated side of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Session {
    /// The account.
    pub(crate) user: OwnedUserId,
    /// Its number.
    pub(crate) user_number: UserNumber,
    /// The device that the access token belongs to.
    pub(crate) device: OwnedDeviceId,
    /// Its number.
    pub(crate) device_number: DeviceNumber,
    /// The account's generation of logins that it belongs to.
    pub(crate) generation: u64,
    /// Whether the account may use the administrators' endpoints.
    pub(crate) admin: bool,
}

/// Why a token gives no session.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// There is no such token, or it was revoked.
    #[error("unknown access token")]
    Unknown,
    /// The token expired; its device still exists and may log in again or refresh.
    #[error("expired access token")]
    Expired,
    /// The device could not be had.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The account could not be changed.
    #[error(transparent)]
    Account(#[from] ChangeAccountError),
    /// The store could not do it.
    #[error(transparent)]
    Failure(#[from] Failure),
}

impl From<StorageError> for SessionError {
    fn from(error: StorageError) -> Self {
        Self::Failure(error.into())
    }
}

impl From<CommitError> for SessionError {
    fn from(error: CommitError) -> Self {
        Self::Failure(error.into())
    }
}

/// Makes, checks, renews and ends access tokens. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Sessions {
    runtime: Runtime,
    store: Store,
    accounts: Accounts,
    devices: Devices,
    pushers: Pushers,
    lifetime: Duration,
    /// A token never changes its device, nor a device its number; that the token is still good is
    /// read each time.
    numbers: Arc<Cache<TokenHash, DeviceNumber>>,
}

impl Sessions {
    /// Sessions kept in `store`; refreshable access tokens last for `lifetime`.
    pub(crate) fn new(
        runtime: Runtime,
        store: Store,
        accounts: Accounts,
        devices: Devices,
        lifetime: Duration,
    ) -> Self {
        Self {
            runtime,
            pushers: Pushers::new(store.clone()),
            store,
            accounts,
            devices,
            lifetime,
            numbers: Arc::new(Cache::new(MAX_REMEMBERED)),
        }
    }

    /// The session of `token`.
    pub(crate) async fn authenticate(&self, token: &str) -> Result<Session, SessionError> {
        let hash = tokens::hash(token);
        let row = self.store.get(&ACCESS_TOKENS, &hash).await?;
        let row = row.ok_or(SessionError::Unknown)?;
        if row.expires_at.is_some_and(|at| at <= self.now()) {
            return Err(SessionError::Expired);
        }
        let number = UserNumber(row.user);
        let account = self.accounts.by_number(number).await?;
        let account = good(account, row.generation)?;
        let device: OwnedDeviceId = row.device.as_str().into();
        let device_number = self.device_number(hash, number, &device).await?;
        if row.replaces.is_some() {
            self.first_use(hash, &row).await?;
        }
        Ok(Session {
            user: account.user_id,
            user_number: number,
            device,
            device_number,
            generation: row.generation,
            admin: account.admin,
        })
    }

    /// Notes that a session was used. May be lost in a crash, and fails without harm.
    pub(crate) async fn seen(&self, session: &Session, ip: Option<&str>, user_agent: Option<&str>) {
        let noted = self.devices.seen(session.device_number, ip, user_agent);
        if let Err(error) = noted.await {
            tracing::debug!(%error, "the last use of a device was not noted");
        }
    }

    async fn device_number(
        &self,
        hash: TokenHash,
        user: UserNumber,
        device: &OwnedDeviceId,
    ) -> Result<DeviceNumber, SessionError> {
        if let Some(number) = self.numbers.get(&hash) {
            return Ok(number);
        }
        let number = self.devices.number(user, device).await?;
        let number = number.ok_or(SessionError::Unknown)?;
        self.numbers.insert(hash, number);
        Ok(number)
    }

    fn now(&self) -> u64 {
        self.runtime.clock.unix_millis()
    }
}

/// The account of a token of `generation`, if the token is still good.
fn good(account: Option<Account>, generation: u64) -> Result<Account, SessionError> {
    let account = account.filter(|account| account.is_active() && account.generation == generation);
    account.ok_or(SessionError::Unknown)
}

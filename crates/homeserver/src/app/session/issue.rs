//! Making tokens at login, and ending them with their devices.

use std::time::Duration;

use homeserver_storage::{Batch, Direction, ScanRange};
use homeserver_users::{Account, UserNumber};
use ruma::{OwnedDeviceId, OwnedUserId};

use super::{Session, SessionError, Sessions};
use crate::app::tokens::{
    self, ACCESS, ACCESS_TOKENS, AccessRow, DEVICE_TOKENS, Pair, REFRESH, REFRESH_TOKENS,
    RefreshRow, TokenHash, TokenKind,
};

/// Tokens of one device that are ended by one batch. A device has one pair, or two while the
/// second is unused; more are leftovers of logins at the same time.
const MAX_DEVICE_TOKENS: usize = 100;
/// Devices that are ended by one batch.
const DEVICES_AT_ONCE: usize = 50;
/// Letters of a generated device id.
const DEVICE_ID_LENGTH: usize = 10;

/// What a client asks for when it logs in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Login {
    /// The device; a new one if absent.
    pub(crate) device: Option<OwnedDeviceId>,
    /// The name of a new device.
    pub(crate) display_name: Option<String>,
    /// Whether the client can refresh its access token.
    pub(crate) refreshable: bool,
}

/// A new login.
#[derive(Clone, Debug)]
pub(crate) struct Issued {
    /// The account.
    pub(crate) user: OwnedUserId,
    /// The device.
    pub(crate) device: OwnedDeviceId,
    /// The access token.
    pub(crate) access_token: String,
    /// The refresh token, if asked for.
    pub(crate) refresh_token: Option<String>,
    /// How long the access token lasts, if it ends.
    pub(crate) expires_in: Option<Duration>,
}

impl Sessions {
    /// Logs in: the device is made if there is none, and its older tokens end.
    pub(crate) async fn issue(
        &self,
        account: &Account,
        login: Login,
    ) -> Result<Issued, SessionError> {
        let device = login.device.unwrap_or_else(|| {
            let id = self.runtime.entropy.alphanumeric(DEVICE_ID_LENGTH);
            id.to_ascii_uppercase().into()
        });
        let access_token = tokens::generate(TokenKind::Access, &*self.runtime.entropy);
        let refresh_token = login
            .refreshable
            .then(|| tokens::generate(TokenKind::Refresh, &*self.runtime.entropy));
        let mut batch = Batch::new();
        self.end_tokens(&mut batch, account.number, &device).await?;
        let pair = Pair {
            access: tokens::hash(&access_token),
            refresh: refresh_token
                .as_deref()
                .map(tokens::hash)
                .unwrap_or_default(),
        };
        let expires_in = login.refreshable.then_some(self.lifetime);
        self.put_access(
            &mut batch,
            account.number.0,
            device.as_str(),
            pair.access,
            expires_in,
            None,
        );
        if login.refreshable {
            put_refresh(&mut batch, account.number.0, device.as_str(), pair, None);
        }
        let name = login.display_name.as_deref();
        self.devices
            .ensure_with(account.number, &device, name, &batch)
            .await?;
        Ok(Issued {
            user: account.user_id.clone(),
            device,
            access_token,
            refresh_token,
            expires_in,
        })
    }

    /// Logs out: the device and its tokens end.
    pub(crate) async fn end(&self, session: &Session) -> Result<(), SessionError> {
        let devices = std::slice::from_ref(&session.device);
        self.end_devices(session.user_number, devices).await
    }

    /// Ends devices and their tokens; ids that the user does not have are passed over.
    pub(crate) async fn end_devices(
        &self,
        user: UserNumber,
        devices: &[OwnedDeviceId],
    ) -> Result<(), SessionError> {
        for devices in devices.chunks(DEVICES_AT_ONCE) {
            let mut batch = Batch::new();
            for device in devices {
                self.end_tokens(&mut batch, user, device).await?;
            }
            self.devices.delete(user, devices, batch).await?;
            for device in devices {
                self.end_leftovers(user, device).await?;
            }
        }
        Ok(())
    }

    /// Ends the tokens of a device that is gone: those that did not fit into the batch which
    /// deleted it, and a pair that a renewal at the same moment put beside it.
    async fn end_leftovers(
        &self,
        user: UserNumber,
        device: &OwnedDeviceId,
    ) -> Result<(), SessionError> {
        loop {
            let mut batch = Batch::new();
            self.end_tokens(&mut batch, user, device).await?;
            // Whoever logs in on the device again ends its older tokens by that.
            if batch.is_empty() || self.devices.number(user, device).await?.is_some() {
                return Ok(());
            }
            self.store.commit(batch).await?;
        }
    }

    /// Ends all devices of a user but `keep`.
    pub(crate) async fn end_all(
        &self,
        user: UserNumber,
        keep: Option<&OwnedDeviceId>,
    ) -> Result<(), SessionError> {
        let devices = self.devices.all(user).await?;
        let ids = devices.into_iter().map(|device| device.id);
        let ids: Vec<_> = ids.filter(|id| Some(id) != keep).collect();
        self.end_devices(user, &ids).await
    }

    /// Adds the deletion of all tokens of a device to `batch`.
    async fn end_tokens(
        &self,
        batch: &mut Batch,
        user: UserNumber,
        device: &OwnedDeviceId,
    ) -> Result<(), SessionError> {
        let range = ScanRange::prefix(&(user.0, device.as_str()));
        let rows = self
            .store
            .scan(&DEVICE_TOKENS, range, Direction::Forward, MAX_DEVICE_TOKENS)
            .await?;
        for (key, ()) in rows {
            match key.2 {
                REFRESH => batch.delete(&REFRESH_TOKENS, &key.3),
                _ => batch.delete(&ACCESS_TOKENS, &key.3),
            }
            batch.delete(&DEVICE_TOKENS, &key);
        }
        Ok(())
    }

    /// Adds an access token to `batch`.
    pub(super) fn put_access(
        &self,
        batch: &mut Batch,
        user: u64,
        device: &str,
        hash: TokenHash,
        expires_in: Option<Duration>,
        replaces: Option<Pair>,
    ) {
        let millis = |after: Duration| u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        let row = AccessRow {
            user,
            device: device.to_owned(),
            expires_at: expires_in.map(|after| self.now().saturating_add(millis(after))),
            replaces,
        };
        batch.put(&ACCESS_TOKENS, &hash, &row);
        batch.put(&DEVICE_TOKENS, &(user, device, ACCESS, hash), &());
    }
}

/// Adds a refresh token to `batch`.
pub(super) fn put_refresh(
    batch: &mut Batch,
    user: u64,
    device: &str,
    pair: Pair,
    replaces: Option<Pair>,
) {
    let row = RefreshRow {
        user,
        device: device.to_owned(),
        access: pair.access,
        replaces,
        replaced_by: None,
    };
    batch.put(&REFRESH_TOKENS, &pair.refresh, &row);
    batch.put(&DEVICE_TOKENS, &(user, device, REFRESH, pair.refresh), &());
}

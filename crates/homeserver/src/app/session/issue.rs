//! Making tokens at login.

use std::time::Duration;

use homeserver_storage::Batch;
use homeserver_users::{Account, DeviceError, UserNumber};
use ruma::{DeviceId, OwnedDeviceId, OwnedUserId};

use super::{SessionError, Sessions};
use crate::app::{
    secret::Secret,
    tokens::{
        self, ACCESS, ACCESS_TOKENS, AccessRow, DEVICE_TOKENS, Pair, REFRESH, REFRESH_TOKENS,
        RefreshRow, TokenHash, TokenKind,
    },
};

/// Letters of a generated device id.
const DEVICE_ID_LENGTH: usize = 10;

/// Devices that are ended for one login, which others at the same moment may take the room from.
const MAX_ENDED_FOR_ANOTHER: usize = 8;

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
    pub(crate) access_token: Secret,
    /// The refresh token, if asked for.
    pub(crate) refresh_token: Option<Secret>,
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
        // Of the generation under which the password was checked: had all logins been ended
        // since, this one is born dead.
        let owner = Owner {
            user: account.number.0,
            device: device.to_string(),
            generation: account.generation,
        };
        self.put_access(&mut batch, &owner, pair.access, expires_in, None);
        if login.refreshable {
            put_refresh(&mut batch, &owner, pair, None);
        }
        let name = login.display_name.as_deref();
        self.ensure(account.number, &device, name, &batch).await?;
        Ok(Issued {
            user: account.user_id.clone(),
            device,
            access_token: access_token.into(),
            refresh_token: refresh_token.map(Secret::from),
            expires_in,
        })
    }

    /// The device, with its tokens. If the user has too many, one without keys ends for it: whoever
    /// logs in anew each time must not lock the account out. Where all have keys, none is ended.
    async fn ensure(
        &self,
        user: UserNumber,
        device: &DeviceId,
        name: Option<&str>,
        tokens: &Batch,
    ) -> Result<(), SessionError> {
        for _ in 0..MAX_ENDED_FOR_ANOTHER {
            let ensured = self.devices.ensure_with(user, device, name, tokens).await;
            let Err(DeviceError::TooMany) = ensured else {
                return Ok(ensured.map(drop)?);
            };
            let oldest = self.devices.longest_unseen_without_keys(user).await?;
            let oldest = oldest.ok_or(DeviceError::TooMany)?;
            tracing::info!(%user, device = %oldest, "ended for another, beyond the greatest number");
            self.end_devices(user, &[oldest]).await?;
        }
        Err(DeviceError::TooMany.into())
    }

    /// Adds an access token to `batch`.
    pub(super) fn put_access(
        &self,
        batch: &mut Batch,
        owner: &Owner,
        hash: TokenHash,
        expires_in: Option<Duration>,
        replaces: Option<Pair>,
    ) {
        let millis = |after: Duration| u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        let row = AccessRow {
            user: owner.user,
            device: owner.device.clone(),
            generation: owner.generation,
            expires_at: expires_in.map(|after| self.now().saturating_add(millis(after))),
            replaces,
        };
        batch.put(&ACCESS_TOKENS, &hash, &row);
        let of_device = (owner.user, owner.device.as_str(), ACCESS, hash);
        batch.put(&DEVICE_TOKENS, &of_device, &());
    }
}

/// Whose a token is.
pub(super) struct Owner {
    /// Number of the user.
    pub(super) user: u64,
    /// Id of the device.
    pub(super) device: String,
    /// The account's generation of logins.
    pub(super) generation: u64,
}

/// Adds a refresh token to `batch`.
pub(super) fn put_refresh(batch: &mut Batch, owner: &Owner, pair: Pair, replaces: Option<Pair>) {
    let row = RefreshRow {
        user: owner.user,
        device: owner.device.clone(),
        generation: owner.generation,
        access: pair.access,
        replaces,
        replaced_by: None,
    };
    batch.put(&REFRESH_TOKENS, &pair.refresh, &row);
    let of_device = (owner.user, owner.device.as_str(), REFRESH, pair.refresh);
    batch.put(&DEVICE_TOKENS, &of_device, &());
}

#[cfg(test)]
mod tests {
    use homeserver_users::{KeyUpload, MAX_DEVICES};
    use serde_json::{json, value::to_raw_value};

    use super::*;
    use crate::http::tests::fresh;

    /// A bot that logs in without a device id goes on; a device with keys stays.
    #[tokio::test]
    async fn a_login_beyond_the_greatest_number_ends_the_oldest_without_keys() {
        let fresh = fresh().await;
        let administration = fresh.homeserver.administration();
        let made = administration.create_user("bot", None, false);
        made.await.unwrap();
        let account = administration.account("bot").await.unwrap();
        let components = fresh.homeserver.components();
        let sessions = &components.sessions;
        let first = sessions.issue(&account, Login::default()).await.unwrap();
        let device_keys = to_raw_value(&json!({
            "user_id": account.user_id,
            "device_id": first.device,
            "algorithms": [],
            "keys": { format!("ed25519:{}", first.device): "k" },
            "signatures": { &account.user_id: { format!("ed25519:{}", first.device): "s" } },
        }));
        let upload = KeyUpload {
            device_keys: Some(device_keys.unwrap()),
            ..KeyUpload::default()
        };
        let owner = (account.number, &*account.user_id);
        let uploaded = components.keys.upload(owner, &first.device, &upload);
        uploaded.await.unwrap();
        let mut issued = Vec::new();
        for _ in 0..=MAX_DEVICES {
            issued.push(sessions.issue(&account, Login::default()).await.unwrap());
        }
        let alive = async |one: &Issued| sessions.authenticate(&one.access_token).await.is_ok();
        assert!(alive(&first).await);
        assert!(!alive(&issued[0]).await && !alive(&issued[1]).await);
        assert!(alive(&issued[2]).await && alive(&issued[MAX_DEVICES]).await);
        let left = components.devices.all(account.number).await.unwrap();
        assert_eq!(left.len(), MAX_DEVICES);
    }
}

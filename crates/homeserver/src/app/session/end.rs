//! Ending logins: one device's, or all of an account at once.
//!
//! An account may have more devices than one batch can delete. All its logins therefore end by one
//! number, the generation in the account's row: tokens of an earlier one are no longer good. Their
//! devices are deleted after that, by whoever ended them or by a later run of the leftovers.

use homeserver_storage::{Batch, Direction, ScanRange, StorageError};
use homeserver_users::{ChangeAccountError, Failure, UserNumber};
use ruma::OwnedDeviceId;

use super::{Session, SessionError, Sessions};
use crate::app::{
    leftovers::see_through,
    tokens::{ACCESS_TOKENS, DEVICE_TOKENS, ENDINGS, REFRESH, REFRESH_TOKENS, TokenHash},
};

/// Tokens of one device that are ended by one batch. A device has one pair, or two while the
/// second is unused; more are leftovers of logins at the same time.
const MAX_DEVICE_TOKENS: usize = 100;
/// Devices that are ended by one batch.
const DEVICES_AT_ONCE: usize = 50;
/// How often all logins are ended anew after a renewal of the one that is kept was faster.
const MAX_ATTEMPTS: usize = 8;
/// Endings taken up again by one run; more wait for the next.
const MAX_RESUMED: usize = 1_000;

/// Which login outlives the others.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Keep<'a> {
    /// None.
    Nothing,
    /// The one that asks for the end of the others.
    Own(&'a Session),
}

impl Sessions {
    /// Logs out: the device and its tokens end.
    pub(crate) async fn end(&self, session: &Session) -> Result<(), SessionError> {
        let devices = std::slice::from_ref(&session.device);
        self.end_devices(session.user_number, devices).await
    }

    /// Ends devices, their tokens and their pushers; ids that the user does not have are passed
    /// over.
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
            self.pushers.end(&mut batch, user, devices).await?;
            self.devices.delete(user, devices, batch).await?;
            for device in devices {
                self.end_leftovers(user, device).await?;
            }
        }
        Ok(())
    }

    /// Ends all logins of a user but the one to keep and, in the same batch, sets the hash of a new
    /// password if one is given.
    pub(crate) async fn end_all(
        &self,
        user: UserNumber,
        password_hash: Option<&str>,
        keep: Keep<'_>,
    ) -> Result<(), SessionError> {
        let mut attempts = 0;
        loop {
            let account = self.accounts.by_number(user).await?;
            let account = account.ok_or(ChangeAccountError::NotFound)?;
            let mut batch = Batch::new();
            batch.put(&ENDINGS, &user.0, &());
            if let Keep::Own(session) = keep {
                self.carry_over(&mut batch, session, account.generation)
                    .await?;
            }
            let ended = self.accounts.end_logins(&account, password_hash, &batch);
            attempts += 1;
            match ended.await {
                Ok(()) => break,
                Err(ChangeAccountError::Failure(Failure::Refused)) if attempts < MAX_ATTEMPTS => {}
                Err(ChangeAccountError::Failure(Failure::Refused)) => {
                    return Err(Failure::Busy.into());
                }
                Err(error) => return Err(error.into()),
            }
        }
        // It is done: nobody gets in with an ended token. Their devices may wait.
        let sessions = self.clone();
        see_through(&self.runtime.tasks, async move {
            if let Err(error) = sessions.sweep_ended(user).await {
                tracing::warn!(%error, %user, "ended logins are not wholly swept away");
            }
        })
        .await;
        Ok(())
    }

    /// Sweeps away what was left unfinished.
    pub(crate) async fn resume(&self) -> Result<(), StorageError> {
        let range = ScanRange::all();
        let rows = self
            .store
            .scan(&ENDINGS, range, Direction::Forward, MAX_RESUMED)
            .await?;
        for (user, ()) in rows {
            if self.runtime.tasks.is_stopping() {
                break;
            }
            if let Err(error) = self.sweep_ended(UserNumber(user)).await {
                tracing::warn!(%error, user, "ended logins are not wholly swept away");
            }
        }
        Ok(())
    }

    /// Deletes the devices of a user that have no good token any more.
    pub(crate) async fn sweep_ended(&self, user: UserNumber) -> Result<(), SessionError> {
        let account = self.accounts.by_number(user).await?;
        let generation = account.map(|account| account.generation);
        let mut ended = Vec::new();
        for device in self.devices.all(user).await? {
            if !self.is_of_generation(user, &device.id, generation).await? {
                ended.push(device.id);
            }
        }
        self.end_devices(user, &ended).await?;
        let mut batch = Batch::new();
        batch.delete(&ENDINGS, &user.0);
        self.store.commit(batch).await?;
        Ok(())
    }

    /// Whether a device has a token of this generation.
    async fn is_of_generation(
        &self,
        user: UserNumber,
        device: &OwnedDeviceId,
        generation: Option<u64>,
    ) -> Result<bool, SessionError> {
        for (kind, hash) in self.tokens_of(user, device).await? {
            let found = if kind == REFRESH {
                let row = self.store.get(&REFRESH_TOKENS, &hash).await?;
                row.map(|row| row.generation)
            } else {
                let row = self.store.get(&ACCESS_TOKENS, &hash).await?;
                row.map(|row| row.generation)
            };
            if found.is_some() && found == generation {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Adds to `batch` that the tokens of a session live on in the next generation.
    async fn carry_over(
        &self,
        batch: &mut Batch,
        session: &Session,
        generation: u64,
    ) -> Result<(), SessionError> {
        let tokens = self.tokens_of(session.user_number, &session.device).await?;
        for (kind, hash) in tokens {
            if kind == REFRESH {
                if let Some(mut row) = self.store.get(&REFRESH_TOKENS, &hash).await?
                    && row.generation == generation
                {
                    batch.assert_value(&REFRESH_TOKENS, &hash, &row);
                    row.generation += 1;
                    batch.put(&REFRESH_TOKENS, &hash, &row);
                }
            } else if let Some(mut row) = self.store.get(&ACCESS_TOKENS, &hash).await?
                && row.generation == generation
            {
                batch.assert_value(&ACCESS_TOKENS, &hash, &row);
                row.generation += 1;
                batch.put(&ACCESS_TOKENS, &hash, &row);
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

    /// Adds the deletion of all tokens of a device to `batch`.
    pub(super) async fn end_tokens(
        &self,
        batch: &mut Batch,
        user: UserNumber,
        device: &OwnedDeviceId,
    ) -> Result<(), SessionError> {
        for (kind, hash) in self.tokens_of(user, device).await? {
            match kind {
                REFRESH => batch.delete(&REFRESH_TOKENS, &hash),
                _ => batch.delete(&ACCESS_TOKENS, &hash),
            }
            batch.delete(&DEVICE_TOKENS, &(user.0, device.as_str(), kind, hash));
        }
        Ok(())
    }

    /// Kind and hash of a device's tokens.
    async fn tokens_of(
        &self,
        user: UserNumber,
        device: &OwnedDeviceId,
    ) -> Result<Vec<(u8, TokenHash)>, SessionError> {
        let range = ScanRange::prefix(&(user.0, device.as_str()));
        let rows = self
            .store
            .scan(&DEVICE_TOKENS, range, Direction::Forward, MAX_DEVICE_TOKENS)
            .await?;
        let tokens = rows.into_iter();
        Ok(tokens
            .map(|((_, _, kind, hash), ())| (kind, hash))
            .collect())
    }
}

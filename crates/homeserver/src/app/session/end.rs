//! Ending logins: one device's, or all of an account at once.
//!
//! An account may have more devices than one batch can delete. All its logins therefore end by one
//! number, the generation in the account's row: tokens of an earlier one are no longer good. Their
//! devices are deleted after that, by whoever ended them or by a later run of the leftovers.

use homeserver_storage::{Batch, Direction, ScanRange, StorageError};
use homeserver_users::{ChangeAccountError, DELETED_AT_ONCE, Failure, UserNumber};
use ruma::OwnedDeviceId;

use super::{Session, SessionError, Sessions};
use crate::app::{
    leftovers::see_through,
    tokens::{ACCESS_TOKENS, DEVICE_TOKENS, ENDINGS, REFRESH, REFRESH_TOKENS, TokenHash},
};

/// Tokens of one device that are ended by one batch. A device has one pair, or two while the
/// second is unused; more are leftovers of logins at the same time.
const MAX_DEVICE_TOKENS: usize = 100;
/// How often an ending is decided anew after another change was faster.
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

/// Which of some devices end.
#[derive(Clone, Copy, Debug)]
enum Ending {
    /// All of them.
    Asked,
    /// Those that have no good token.
    Dead,
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
        self.end_in_turn(user, devices, Ending::Asked).await
    }

    /// Ends devices, so many by one batch that their tokens and pushers go with all of them.
    async fn end_in_turn(
        &self,
        user: UserNumber,
        devices: &[OwnedDeviceId],
        ending: Ending,
    ) -> Result<(), SessionError> {
        for devices in devices.chunks(DELETED_AT_ONCE) {
            let mut attempts = 0;
            loop {
                attempts += 1;
                match self.end_some(user, devices, ending).await {
                    Ok(()) => break,
                    Err(SessionError::Failure(Failure::Refused)) if attempts < MAX_ATTEMPTS => {}
                    Err(SessionError::Failure(Failure::Refused)) => {
                        return Err(Failure::Busy.into());
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// [`Failure::Refused`]: somebody logged in on one of them or set a pusher meanwhile.
    async fn end_some(
        &self,
        user: UserNumber,
        devices: &[OwnedDeviceId],
        ending: Ending,
    ) -> Result<(), SessionError> {
        let mut batch = Batch::new();
        let devices = match ending {
            Ending::Asked => devices.to_vec(),
            Ending::Dead => self.dead(&mut batch, user, devices).await?,
        };
        if devices.is_empty() {
            return Ok(());
        }
        for device in &devices {
            self.end_tokens(&mut batch, user, device).await?;
        }
        self.pushers.end(&mut batch, user, &devices).await?;
        self.devices.delete(user, &devices, batch).await?;
        for device in &devices {
            self.end_leftovers(user, device).await?;
        }
        Ok(())
    }

    /// Those of some devices that have no good token; adds to `batch` that nobody logs in on one
    /// of them, which ends its older tokens.
    async fn dead(
        &self,
        batch: &mut Batch,
        user: UserNumber,
        devices: &[OwnedDeviceId],
    ) -> Result<Vec<OwnedDeviceId>, SessionError> {
        let account = self.accounts.by_number(user).await?;
        let generation = account.map(|account| account.generation);
        let mut dead = Vec::new();
        for device in devices {
            let tokens = self.tokens_of(user, device).await?;
            if self.has_good(&tokens, generation).await? {
                continue;
            }
            for (kind, hash) in tokens {
                let key = (user.0, device.as_str(), kind, hash);
                batch.assert_present(&DEVICE_TOKENS, &key);
            }
            dead.push(device.clone());
        }
        Ok(dead)
    }

    /// Sets the hash of a new password; no login ends.
    pub(crate) async fn set_password_hash(
        &self,
        session: &Session,
        hash: String,
    ) -> Result<(), SessionError> {
        let (user, generation) = (session.user_number, session.generation);
        let set = self
            .accounts
            .set_password_hash(user, generation, Some(hash));
        match set.await {
            Err(ChangeAccountError::Failure(Failure::Refused)) => {
                self.check_alive(session).await?;
                Err(Failure::Busy.into())
            }
            set => Ok(set?),
        }
    }

    /// That all logins did not end since the session was authenticated. One that was kept then is
    /// asked to come again.
    pub(crate) async fn check_alive(&self, session: &Session) -> Result<(), SessionError> {
        let account = self.accounts.by_number(session.user_number).await?;
        let account = account.filter(homeserver_users::Account::is_active);
        let generation = account.ok_or(SessionError::Unknown)?.generation;
        if generation == session.generation {
            return Ok(());
        }
        let tokens = self.tokens_of(session.user_number, &session.device).await?;
        if self.has_good(&tokens, Some(generation)).await? {
            return Err(Failure::Busy.into());
        }
        Err(SessionError::Unknown)
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
                if account.generation != session.generation {
                    self.check_alive(session).await?;
                }
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
        let devices = self.devices.all(user).await?.into_iter();
        let devices: Vec<_> = devices.map(|device| device.id).collect();
        self.end_in_turn(user, &devices, Ending::Dead).await?;
        let mut batch = Batch::new();
        batch.delete(&ENDINGS, &user.0);
        self.store.commit(batch).await?;
        Ok(())
    }

    /// Whether a device's tokens have one of this generation, or of one that began since it was
    /// read. Older ones stay dead.
    async fn has_good(
        &self,
        tokens: &[(u8, TokenHash)],
        generation: Option<u64>,
    ) -> Result<bool, SessionError> {
        let Some(generation) = generation else {
            return Ok(false);
        };
        for (kind, hash) in tokens {
            let found = if *kind == REFRESH {
                let row = self.store.get(&REFRESH_TOKENS, hash).await?;
                row.map(|row| row.generation)
            } else {
                let row = self.store.get(&ACCESS_TOKENS, hash).await?;
                row.map(|row| row.generation)
            };
            if found.is_some_and(|found| found >= generation) {
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

#[cfg(test)]
mod tests {
    use homeserver_storage::CommitError;

    use super::*;
    use crate::{app::session::Login, http::tests::fresh};

    #[tokio::test]
    async fn a_device_logged_in_to_a_moment_ago_is_not_swept() {
        let fresh = fresh().await;
        let administration = fresh.homeserver.administration();
        let made = administration.create_user("alice", None, false);
        made.await.unwrap();
        let components = fresh.homeserver.components();
        let (sessions, accounts) = (&components.sessions, &components.accounts);
        let before = administration.account("alice").await.unwrap();
        let on = |device: &str| Login {
            device: Some(device.into()),
            ..Login::default()
        };
        for n in 0..60 {
            let device = format!("{n:02}");
            sessions.issue(&before, on(&device)).await.unwrap();
        }
        let batch = Batch::new();
        let ended = accounts.end_logins(&before, None, &batch);
        ended.await.unwrap();
        let now = administration.account("alice").await.unwrap();

        // What is decided before a login conflicts with it.
        let mut batch = Batch::new();
        let first = [OwnedDeviceId::from("00")];
        let dead = sessions.dead(&mut batch, now.number, &first).await.unwrap();
        assert_eq!(dead, first);
        let issued = sessions.issue(&now, on("00")).await.unwrap();
        let late = components.store.commit(batch).await;
        assert!(matches!(late, Err(CommitError::Conflict { .. })));
        // One that comes while the sweep goes on is seen by it.
        let (swept, last) = tokio::join!(
            sessions.sweep_ended(now.number),
            sessions.issue(&now, on("59"))
        );
        swept.unwrap();
        for token in [issued.access_token, last.unwrap().access_token] {
            sessions.authenticate(&token).await.unwrap();
        }
        let left = components.devices.all(now.number).await.unwrap();
        let left: Vec<_> = left.iter().map(|device| device.id.as_str()).collect();
        assert_eq!(left, ["00", "59"]);
    }
}

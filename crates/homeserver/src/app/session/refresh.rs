//! Renewing an access token, and ending the pair it replaces when the new one is first used.

use homeserver_storage::{Batch, CommitError};
use homeserver_users::{Failure, UserNumber};

use super::{
    Issued, SessionError, Sessions,
    issue::{self, Owner},
};
use crate::app::tokens::{
    self, ACCESS, ACCESS_TOKENS, AccessRow, DEVICE_TOKENS, Pair, REFRESH, REFRESH_TOKENS,
    TokenHash, TokenKind,
};

/// How often a renewal is decided anew after another of the same token was faster.
const MAX_ATTEMPTS: usize = 8;

impl Sessions {
    /// A new pair for a refresh token. Asked again before the new pair was used, it gives another
    /// one in its place.
    pub(crate) async fn refresh(&self, token: &str) -> Result<Issued, SessionError> {
        let hash = tokens::hash(token);
        for _ in 0..MAX_ATTEMPTS {
            let row = self.store.get(&REFRESH_TOKENS, &hash).await?;
            let mut row = row.ok_or(SessionError::Unknown)?;
            let account = self.accounts.by_number(UserNumber(row.user)).await?;
            let account = super::good(account, row.generation)?;
            let owner = Owner {
                user: row.user,
                device: row.device.clone(),
                generation: row.generation,
            };

            let mut batch = Batch::new();
            batch.assert_value(&REFRESH_TOKENS, &hash, &row);
            if let Some(older) = row.replaces.take() {
                delete_pair(&mut batch, row.user, &row.device, older);
                self.used(&mut batch, row.access).await?;
            }
            if let Some(unused) = row.replaced_by.take() {
                delete_pair(&mut batch, row.user, &row.device, unused);
            }
            let access_token = tokens::generate(TokenKind::Access, &*self.runtime.entropy);
            let refresh_token = tokens::generate(TokenKind::Refresh, &*self.runtime.entropy);
            let new = Pair {
                access: tokens::hash(&access_token),
                refresh: tokens::hash(&refresh_token),
            };
            let old = Some(Pair {
                access: row.access,
                refresh: hash,
            });
            let expires_in = Some(self.lifetime);
            self.put_access(&mut batch, &owner, new.access, expires_in, old);
            issue::put_refresh(&mut batch, &owner, new, old);
            row.replaced_by = Some(new);
            batch.put(&REFRESH_TOKENS, &hash, &row);
            match self.store.commit(batch).await {
                Ok(_) => {
                    return Ok(Issued {
                        user: account.user_id,
                        device: row.device.as_str().into(),
                        access_token: access_token.into(),
                        refresh_token: Some(refresh_token.into()),
                        expires_in,
                    });
                }
                Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Failure::Busy.into())
    }

    /// The first use of an access token ends the pair it replaces.
    pub(super) async fn first_use(
        &self,
        hash: TokenHash,
        row: &AccessRow,
    ) -> Result<(), SessionError> {
        let Some(older) = row.replaces else {
            return Ok(());
        };
        let mut batch = Batch::new();
        batch.assert_value(&ACCESS_TOKENS, &hash, row);
        let mut after = row.clone();
        after.replaces = None;
        batch.put(&ACCESS_TOKENS, &hash, &after);
        delete_pair(&mut batch, row.user, &row.device, older);
        match self.store.commit(batch).await {
            // Whoever was faster did the same, or ended this token, which then counts as ended
            // after this request.
            Ok(_) | Err(CommitError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Notes on an access token that the pair it replaces is gone.
    async fn used(&self, batch: &mut Batch, access: TokenHash) -> Result<(), SessionError> {
        if let Some(mut row) = self.store.get(&ACCESS_TOKENS, &access).await? {
            row.replaces = None;
            batch.put(&ACCESS_TOKENS, &access, &row);
        }
        Ok(())
    }
}

fn delete_pair(batch: &mut Batch, user: u64, device: &str, pair: Pair) {
    batch.delete(&ACCESS_TOKENS, &pair.access);
    batch.delete(&REFRESH_TOKENS, &pair.refresh);
    batch.delete(&DEVICE_TOKENS, &(user, device, ACCESS, pair.access));
    batch.delete(&DEVICE_TOKENS, &(user, device, REFRESH, pair.refresh));
}

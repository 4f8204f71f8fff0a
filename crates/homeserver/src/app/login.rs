//! Logging in by a token that another login of the same user asked for.
//!
//! Specification: client-server API, `/login/get_token` and `m.login.token`; the module
//! "`OpenID`".

use std::time::Duration;

use homeserver_runtime::Runtime;
use homeserver_storage::{Batch, CommitError, Direction, ScanRange, Store, Table};
use homeserver_users::{Account, Accounts, Failure, UserNumber};

use super::{
    session::Session,
    tokens::{self, BriefRow, LOGIN_TOKENS, OPENID_TOKENS, TokenHash, TokenKind},
};

/// How long a login token may be used.
pub(crate) const LOGIN_TOKEN_LIFETIME: Duration = Duration::from_mins(2);
/// How long an `OpenID` token may be used.
pub(crate) const OPENID_TOKEN_LIFETIME: Duration = Duration::from_hours(1);
/// Tokens that are looked at, for expired ones to delete, when a new one is made.
const SWEPT_AT_ONCE: usize = 20;

/// A brief token did not log anybody in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BriefTokenError {
    /// Unknown, used, or expired.
    #[error("invalid login token")]
    Invalid,
    /// Its account is closed.
    #[error("the account is deactivated")]
    Deactivated,
    /// The store could not do it.
    #[error(transparent)]
    Failure(#[from] Failure),
}

/// Tokens that live for minutes. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct BriefTokens {
    pub(crate) runtime: Runtime,
    pub(crate) store: Store,
    pub(crate) accounts: Accounts,
}

impl BriefTokens {
    /// A token that logs the user of `session` in once.
    pub(crate) async fn for_login(&self, session: &Session) -> Result<String, Failure> {
        self.make(
            TokenKind::Login,
            &LOGIN_TOKENS,
            session,
            LOGIN_TOKEN_LIFETIME,
        )
        .await
    }

    /// A token by which somebody else can learn who the user of `session` is.
    pub(crate) async fn for_openid(&self, session: &Session) -> Result<String, Failure> {
        self.make(
            TokenKind::OpenId,
            &OPENID_TOKENS,
            session,
            OPENID_TOKEN_LIFETIME,
        )
        .await
    }

    /// The account that a login token logs in; it cannot be used again.
    pub(crate) async fn spend(&self, token: &str) -> Result<Account, BriefTokenError> {
        let hash = tokens::hash(token);
        let row = self
            .store
            .get(&LOGIN_TOKENS, &hash)
            .await
            .map_err(Failure::from)?;
        let row = row.ok_or(BriefTokenError::Invalid)?;
        let mut batch = Batch::new();
        batch.assert_value(&LOGIN_TOKENS, &hash, &row);
        batch.delete(&LOGIN_TOKENS, &hash);
        match self.store.commit(batch).await {
            Ok(_) => {}
            Err(CommitError::Conflict { .. }) => return Err(BriefTokenError::Invalid),
            Err(error) => return Err(Failure::from(error).into()),
        }
        self.account_of(&row).await
    }

    /// The account that an `OpenID` token speaks of. It can be asked for until its time is over.
    pub(crate) async fn who_is(&self, token: &str) -> Result<Account, BriefTokenError> {
        let stored = self.store.get(&OPENID_TOKENS, &tokens::hash(token)).await;
        let row = stored.map_err(Failure::from)?;
        self.account_of(&row.ok_or(BriefTokenError::Invalid)?).await
    }

    async fn account_of(&self, row: &BriefRow) -> Result<Account, BriefTokenError> {
        if row.expires_at <= self.runtime.clock.unix_millis() {
            return Err(BriefTokenError::Invalid);
        }
        let account = self.accounts.by_number(UserNumber(row.user)).await?;
        let account = account.ok_or(BriefTokenError::Invalid)?;
        if !account.is_active() {
            Err(BriefTokenError::Deactivated)
        } else if account.generation == row.generation {
            Ok(account)
        } else {
            Err(BriefTokenError::Invalid)
        }
    }

    async fn make(
        &self,
        kind: TokenKind,
        table: &Table<TokenHash, BriefRow>,
        session: &Session,
        lifetime: Duration,
    ) -> Result<String, Failure> {
        let token = tokens::generate(kind, &*self.runtime.entropy);
        let hash = tokens::hash(&token);
        let now = self.runtime.clock.unix_millis();
        let lifetime = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
        let mut batch = Batch::new();
        // Each new token sweeps a few of its neighbours, so that expired ones do not pile up.
        let range = ScanRange::all().from(&hash);
        let neighbours = self
            .store
            .scan(table, range, Direction::Forward, SWEPT_AT_ONCE)
            .await?;
        for (neighbour, row) in neighbours {
            if row.expires_at <= now {
                batch.delete(table, &neighbour);
            }
        }
        let row = BriefRow {
            user: session.user_number.0,
            generation: session.generation,
            expires_at: now.saturating_add(lifetime),
        };
        batch.put(table, &hash, &row);
        self.store.commit(batch).await?;
        Ok(token)
    }
}

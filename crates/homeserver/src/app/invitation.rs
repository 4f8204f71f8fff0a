//! Registration tokens: the configured one, those that the operator made, and the one that is
//! generated for the first account.
//!
//! Specification: client-server API, "Token-authenticated registration".

use homeserver_runtime::Runtime;
use homeserver_storage::{Batch, CommitError, Direction, ScanRange, Store, Table, TableSpec, row};
use homeserver_users::{Accounts, Failure};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::settings::{self, REGISTRATION_TOKEN};
use crate::config::{RegistrationConfig, RegistrationMode};

/// Letters of a generated token.
const LENGTH: usize = 24;
/// Letters of the longest token.
const MAX_TOKEN: usize = 64;
/// Tokens that there may be.
pub(crate) const MAX_TOKENS: usize = 10_000;

/// Row of [`TOKENS`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TokenRow {
    /// Accounts that it may make; any number if absent.
    pub(crate) uses_allowed: Option<u32>,
    /// Accounts that it made.
    pub(crate) used: u32,
    /// Milliseconds since the Unix epoch from which it is refused.
    pub(crate) expires_at: Option<u64>,
}
row!(TokenRow, 1);

/// (token) → how far it is good
pub(crate) const TOKENS: Table<String, TokenRow> = Table::new(0x88, "registration tokens");

/// The tables above.
pub(crate) const TABLES: [TableSpec; 1] = [TOKENS.spec()];

/// A token was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NewTokenError {
    /// Not what the specification lets a token be.
    #[error("a token has 1 to {MAX_TOKEN} of the letters a-z, A-Z, 0-9 and ._~-")]
    Form,
    /// There is one like it.
    #[error("there is such a token already")]
    Taken,
    /// There are [`MAX_TOKENS`].
    #[error("there are too many tokens; revoke some first")]
    TooMany,
    /// The store could not do it.
    #[error(transparent)]
    Failure(#[from] Failure),
}

/// Says who may register. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Invitations {
    runtime: Runtime,
    store: Store,
    accounts: Accounts,
    config: RegistrationConfig,
}

impl Invitations {
    /// Tokens as configured, or generated and kept in `store`.
    pub(crate) fn new(
        runtime: Runtime,
        store: Store,
        accounts: Accounts,
        config: RegistrationConfig,
    ) -> Self {
        Self {
            runtime,
            store,
            accounts,
            config,
        }
    }

    /// Who may register.
    pub(crate) fn mode(&self) -> RegistrationMode {
        self.config.mode
    }

    /// Key of the operators' registration endpoint.
    pub(crate) fn shared_secret(&self) -> Option<&str> {
        self.config.shared_secret.as_deref()
    }

    /// The token with which the first account may be registered, made now if there is none. `None`
    /// once there is an account, or where no generated token is asked for.
    pub(crate) async fn for_first_account(&self) -> Result<Option<String>, Failure> {
        let wanted = self.config.mode == RegistrationMode::Token && self.config.token.is_none();
        if !wanted || !self.accounts.is_empty().await? {
            return Ok(None);
        }
        if let Some(token) = settings::read(&self.store, REGISTRATION_TOKEN).await? {
            return Ok(Some(token));
        }
        let token = self.runtime.entropy.alphanumeric(LENGTH);
        match self
            .store
            .commit(settings::initial(REGISTRATION_TOKEN, &token))
            .await
        {
            Ok(_) => Ok(Some(token)),
            Err(CommitError::Conflict { .. }) => {
                Ok(settings::read(&self.store, REGISTRATION_TOKEN).await?)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Whether somebody who shows `token` may register.
    pub(crate) async fn is_valid(&self, token: &str) -> Result<bool, Failure> {
        let asked_for = self.config.mode == RegistrationMode::Token;
        Ok(asked_for && self.spending(Some(token)).await?.is_some())
    }

    /// What must be committed with an account that is made by showing `token`; `None` if it is not
    /// good, or no longer.
    pub(crate) async fn spending(&self, token: Option<&str>) -> Result<Option<Batch>, Failure> {
        if self.config.mode != RegistrationMode::Token {
            return Ok(Some(Batch::new()));
        }
        let Some(token) = token else { return Ok(None) };
        // The length of a token is no secret; its letters are.
        let is_it = |known: &String| bool::from(known.as_bytes().ct_eq(token.as_bytes()));
        if self.config.token.as_ref().is_some_and(is_it) {
            return Ok(Some(Batch::new()));
        }
        if self.config.token.is_none() && self.accounts.is_empty().await? {
            let first = settings::read(&self.store, REGISTRATION_TOKEN).await?;
            if first.as_ref().is_some_and(is_it) {
                return Ok(Some(settings::taken(REGISTRATION_TOKEN, token)));
            }
        }
        if !is_token(token) {
            return Ok(None);
        }
        let key = token.to_owned();
        let row = self.store.get(&TOKENS, &key).await?;
        let now = self.runtime.clock.unix_millis();
        Ok(row.filter(|row| row.is_good(now)).map(|row| {
            let mut batch = Batch::new();
            batch.assert_value(&TOKENS, &key, &row);
            let used = row.used.saturating_add(1);
            batch.put(&TOKENS, &key, &TokenRow { used, ..row });
            batch
        }))
    }

    /// Makes a token, under a generated name if none is given.
    pub(crate) async fn make(
        &self,
        token: Option<String>,
        row: TokenRow,
    ) -> Result<String, NewTokenError> {
        let token = token.unwrap_or_else(|| self.runtime.entropy.alphanumeric(LENGTH));
        if !is_token(&token) {
            return Err(NewTokenError::Form);
        }
        if self.all().await?.len() >= MAX_TOKENS {
            return Err(NewTokenError::TooMany);
        }
        let mut batch = Batch::new();
        batch.assert_absent(&TOKENS, &token);
        batch.put(&TOKENS, &token, &row);
        match self.store.commit(batch).await {
            Ok(_) => Ok(token),
            Err(CommitError::Conflict { .. }) => Err(NewTokenError::Taken),
            Err(error) => Err(Failure::from(error).into()),
        }
    }

    /// All tokens that were made, used ones too.
    pub(crate) async fn all(&self) -> Result<Vec<(String, TokenRow)>, Failure> {
        let range = ScanRange::all();
        let rows = self
            .store
            .scan(&TOKENS, range, Direction::Forward, MAX_TOKENS)
            .await?;
        Ok(rows)
    }

    /// Takes a token back. Gives whether there was one.
    pub(crate) async fn revoke(&self, token: &str) -> Result<bool, Failure> {
        if !is_token(token) {
            return Ok(false);
        }
        let mut batch = Batch::new();
        batch.assert_present(&TOKENS, &token.to_owned());
        batch.delete(&TOKENS, &token.to_owned());
        match self.store.commit(batch).await {
            Ok(_) => Ok(true),
            Err(CommitError::Conflict { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl TokenRow {
    /// Whether another account may be made with it.
    pub(crate) fn is_good(&self, now: u64) -> bool {
        self.uses_allowed.is_none_or(|allowed| self.used < allowed)
            && self.expires_at.is_none_or(|at| now < at)
    }
}

fn is_token(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._~-".contains(&byte);
    (1..=MAX_TOKEN).contains(&text.len()) && text.bytes().all(allowed)
}

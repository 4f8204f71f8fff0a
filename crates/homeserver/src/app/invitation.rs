//! Registration tokens: the operator's, or the one that is generated for the first account.
//!
//! Specification: client-server API, "Token-authenticated registration".

use homeserver_runtime::Runtime;
use homeserver_storage::{Batch, CommitError, Store};
use homeserver_users::{Accounts, Failure};
use subtle::ConstantTimeEq;

use super::settings::{self, REGISTRATION_TOKEN};
use crate::config::{RegistrationConfig, RegistrationMode};

/// Letters of a generated token.
const LENGTH: usize = 24;

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
        let known = self.known().await?;
        // The length of a token is no secret; its letters are.
        Ok(known.is_some_and(|known| bool::from(known.as_bytes().ct_eq(token.as_bytes()))))
    }

    /// What must be committed with an account that was registered by token: the generated token
    /// serves once.
    pub(crate) async fn spending(&self) -> Result<Batch, Failure> {
        if self.config.mode != RegistrationMode::Token || self.config.token.is_some() {
            return Ok(Batch::new());
        }
        let known = self.known().await?.ok_or(Failure::Refused)?;
        Ok(settings::taken(REGISTRATION_TOKEN, &known))
    }

    async fn known(&self) -> Result<Option<String>, Failure> {
        if self.config.mode != RegistrationMode::Token {
            return Ok(None);
        }
        match &self.config.token {
            Some(token) => Ok(Some(token.clone())),
            None if self.accounts.is_empty().await? => {
                Ok(settings::read(&self.store, REGISTRATION_TOKEN).await?)
            }
            None => Ok(None),
        }
    }
}

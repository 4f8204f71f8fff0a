//! Making accounts.
//!
//! Specification: client-server API, "Account registration and management"; user ids: appendices,
//! "User Identifiers".

use homeserver_runtime::Runtime;
use homeserver_storage::Batch;
use homeserver_users::{
    Account, AccountKind, Accounts, Admin, CreateAccountError, Failure, NewAccount,
};
use ruma::{OwnedServerName, OwnedUserId, UserId};

use super::{
    interactive::{Flows, Stage},
    invitation::Invitations,
    passwords::{PasswordError, Passwords},
};
use crate::config::RegistrationMode;

/// Bytes of the longest user id.
const MAX_USER_ID: usize = 255;
/// Letters of a generated localpart.
const GENERATED_LENGTH: usize = 12;

/// How often an account is tried to be made while others use the same token.
const MAX_ATTEMPTS: usize = 32;

const OPEN: Flows = &[&[Stage::Dummy]];
const BY_TOKEN: Flows = &[&[Stage::RegistrationToken]];

/// An account was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistrationError {
    /// Nobody may register.
    #[error("registration is closed")]
    Closed,
    /// The name cannot be a localpart.
    #[error("{0}")]
    InvalidUsername(&'static str),
    /// The name is or was somebody's.
    #[error("the user id is taken")]
    InUse,
    /// The token was used by somebody else just now.
    #[error("the registration token was used")]
    TokenUsed,
    /// Not a password that can be used.
    #[error(transparent)]
    Password(#[from] PasswordError),
    /// The store could not do it.
    #[error(transparent)]
    Failure(#[from] Failure),
}

/// How an account comes to be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way<'a> {
    /// Through the public endpoint.
    Public {
        /// The registration token that was shown.
        token: Option<&'a str>,
    },
    /// Made by the operator.
    Operator {
        /// Whether it is to be an administrator.
        admin: bool,
    },
}

/// Makes accounts. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Registration {
    pub(crate) runtime: Runtime,
    pub(crate) server_name: OwnedServerName,
    pub(crate) accounts: Accounts,
    pub(crate) passwords: Passwords,
    pub(crate) invitations: Invitations,
}

impl Registration {
    /// What a stranger has to do before registering.
    pub(crate) fn flows(&self) -> Result<Flows, RegistrationError> {
        match self.invitations.mode() {
            RegistrationMode::Closed => Err(RegistrationError::Closed),
            RegistrationMode::Token => Ok(BY_TOKEN),
            RegistrationMode::Open => Ok(OPEN),
        }
    }

    /// The user id that `username` would get, if it can be had now.
    pub(crate) async fn available(&self, username: &str) -> Result<OwnedUserId, RegistrationError> {
        let user_id = user_id(&self.server_name, username)?;
        match self.accounts.by_id(&user_id).await? {
            Some(_) => Err(RegistrationError::InUse),
            None => Ok(user_id),
        }
    }

    /// Makes an account; without `username` under a generated one.
    pub(crate) async fn register(
        &self,
        username: Option<&str>,
        password: Option<&str>,
        way: Way<'_>,
    ) -> Result<Account, RegistrationError> {
        let user_id = match username {
            Some(username) => self.available(username).await?,
            None => self.generated()?,
        };
        let password_hash = match password {
            Some(password) => Some(self.passwords.hash(password).await?),
            None => None,
        };
        let (admin, token) = match way {
            // A token shows that the operator has let them in. Where all may register, nobody
            // becomes an administrator by being faster.
            Way::Public { token: Some(token) } => (Admin::IfFirst, Some(Some(token))),
            Way::Public { token: None } => (Admin::No, Some(None)),
            Way::Operator { admin: true } => (Admin::Yes, None),
            Way::Operator { admin: false } => (Admin::No, None),
        };
        for _ in 0..MAX_ATTEMPTS {
            let more = match token {
                Some(token) => self.invitations.spending(token).await?,
                None => Some(Batch::new()),
            };
            let new = NewAccount {
                user_id: user_id.clone(),
                kind: AccountKind::Person,
                admin,
                password_hash: password_hash.clone(),
            };
            let more = more.ok_or(RegistrationError::TokenUsed)?;
            match self.accounts.create_with(new, more).await {
                Ok(account) => return Ok(account),
                Err(CreateAccountError::Taken) => return Err(RegistrationError::InUse),
                // Somebody else used the token just now; it may be good for more than one.
                Err(CreateAccountError::Failure(Failure::Refused)) => {}
                Err(CreateAccountError::Failure(error)) => return Err(error.into()),
            }
        }
        Err(Failure::Busy.into())
    }

    fn generated(&self) -> Result<OwnedUserId, RegistrationError> {
        let name = self.runtime.entropy.alphanumeric(GENERATED_LENGTH);
        user_id(&self.server_name, &name.to_ascii_lowercase())
    }
}

/// The user id of a new account. Only names that the specification allows for new users: of those
/// that old servers gave out, no new ones are made.
fn user_id(
    server_name: &OwnedServerName,
    username: &str,
) -> Result<OwnedUserId, RegistrationError> {
    let refused = RegistrationError::InvalidUsername;
    if username.is_empty() {
        return Err(refused("A user name cannot be empty"));
    }
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9') || b"._=-/+".contains(&byte);
    if !username.bytes().all(allowed) {
        return Err(refused("A user name may hold only a-z, 0-9 and ._=-/+"));
    }
    let text = format!("@{username}:{server_name}");
    if text.len() > MAX_USER_ID {
        return Err(refused("The user id would be longer than 255 bytes"));
    }
    UserId::parse(text).map_err(|_| refused("Not a user name"))
}

#[cfg(test)]
mod tests {
    use ruma::owned_server_name;

    use super::*;

    #[test]
    fn only_names_for_new_users_are_given() {
        let server_name = owned_server_name!("example.org");
        for name in ["alice", "a", "0", "a.b_c=d-e/f+g"] {
            let user_id = user_id(&server_name, name).unwrap();
            assert_eq!(user_id.localpart(), name);
        }
        let longest = "a".repeat(255 - "@:example.org".len());
        assert!(user_id(&server_name, &longest).is_ok());
        let longer = format!("{longest}a");
        let refused = [
            "", "Alice", "@x:other", "a:b", "ä", "a b", "a\0", "a!", &longer,
        ];
        for name in refused {
            assert!(user_id(&server_name, name).is_err(), "{name:?}");
        }
    }
}

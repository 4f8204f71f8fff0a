//! What an operator does with accounts, on the command line or from an embedding program.

use homeserver_rooms::{NewEvent, RoomError};
use homeserver_storage::Position;
use std::time::Duration;

use homeserver_users::{Account, ChangeAccountError, Device, UserNumber};
use ruma::{OwnedUserId, RoomId};

use crate::{
    Homeserver,
    app::{
        authentication::local_user,
        invitation::{NewTokenError, TokenRow},
        passwords::PasswordError,
        registration::{RegistrationError, Way},
        session::{Keep, SessionError},
    },
    signing_key::SigningKeyError,
};

/// A token with which accounts may be registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistrationToken {
    /// The token.
    pub token: String,
    /// Accounts that it may make; any number if absent.
    pub uses_allowed: Option<u32>,
    /// Accounts that it made.
    pub used: u32,
    /// Milliseconds since the Unix epoch from which it is refused; never if absent.
    pub expires_at: Option<u64>,
    /// Whether another account may be made with it now.
    pub is_good: bool,
}

/// Accounts read in one go.
const PAGE: usize = 500;

/// An operator's command failed.
#[derive(Debug, thiserror::Error)]
pub enum AdministrationError {
    /// There is no such account here.
    #[error("there is no account {0}")]
    NoSuchUser(String),
    /// There is no such registration token.
    #[error("there is no registration token {0}")]
    NoSuchToken(String),
    /// The account was not made or changed.
    #[error("{0}")]
    Refused(String),
}

macro_rules! refused {
    ($($error:ty)*) => {
        $(impl From<$error> for AdministrationError {
            fn from(error: $error) -> Self {
                Self::Refused(in_full(&error))
            }
        })*
    };
}

refused!(RegistrationError PasswordError ChangeAccountError SessionError NewTokenError
    SigningKeyError homeserver_users::Failure homeserver_media::Failure);

/// An error with everything that caused it, for people.
fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}

/// An operator's hand on the accounts of one homeserver.
#[derive(Clone, Debug)]
pub struct Administration {
    homeserver: Homeserver,
}

impl Administration {
    pub(crate) fn new(homeserver: Homeserver) -> Self {
        Self { homeserver }
    }

    /// Makes an account, which can log in if it has a password.
    pub async fn create_user(
        &self,
        username: &str,
        password: Option<&str>,
        admin: bool,
    ) -> Result<Account, AdministrationError> {
        let registration = &self.homeserver.components().registration;
        let way = Way::Operator { admin };
        Ok(registration.register(Some(username), password, way).await?)
    }

    /// Appends events of local users to a room, in their order: to seed a room or to move a history
    /// in. Each is decided like any other, but they share batches, and nobody is answered before
    /// the last one is on disk. Gives the position of the last one in the journal.
    ///
    /// # Errors
    /// On the first event that is not allowed; those before it are in the room.
    pub async fn append_events(
        &self,
        room: &RoomId,
        events: &[(OwnedUserId, NewEvent)],
    ) -> Result<Position, RoomError> {
        let rooms = &self.homeserver.components().rooms;
        rooms.append_many(room, events).await
    }

    /// Sets a new password and logs the user out everywhere.
    pub async fn reset_password(
        &self,
        user: &str,
        password: &str,
    ) -> Result<(), AdministrationError> {
        let account = self.account(user).await?;
        let components = self.homeserver.components();
        let hash = components.passwords.hash(password).await?;
        let sessions = &components.sessions;
        let ended = sessions.end_all(account.number, Some(&hash), Keep::Nothing);
        Ok(ended.await?)
    }

    /// Logs a user out everywhere.
    pub async fn log_out(&self, user: &str) -> Result<(), AdministrationError> {
        let account = self.account(user).await?;
        let sessions = &self.homeserver.components().sessions;
        let ended = sessions.end_all(account.number, None, Keep::Nothing);
        Ok(ended.await?)
    }

    /// The devices of a user.
    pub async fn devices(&self, user: &str) -> Result<Vec<Device>, AdministrationError> {
        let account = self.account(user).await?;
        let devices = &self.homeserver.components().devices;
        Ok(devices.all(account.number).await?)
    }

    /// Bytes of all files that a user has uploaded.
    pub async fn uploaded_bytes(&self, user: &str) -> Result<u64, AdministrationError> {
        let account = self.account(user).await?;
        let media = &self.homeserver.components().media;
        Ok(media.usage(&account.user_id).await?.bytes)
    }

    /// Makes a registration token, generated unless one is given, for so many accounts and so long.
    pub async fn create_registration_token(
        &self,
        token: Option<&str>,
        uses_allowed: Option<u32>,
        lifetime: Option<Duration>,
    ) -> Result<String, AdministrationError> {
        let components = self.homeserver.components();
        let now = components.runtime.clock.unix_millis();
        let millis = |lifetime: Duration| u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
        let row = TokenRow {
            uses_allowed,
            used: 0,
            expires_at: lifetime.map(|lifetime| now.saturating_add(millis(lifetime))),
        };
        let token = token.map(str::to_owned);
        Ok(components.invitations.make(token, row).await?)
    }

    /// All registration tokens that were made this way, used ones too.
    pub async fn registration_tokens(&self) -> Result<Vec<RegistrationToken>, AdministrationError> {
        let components = self.homeserver.components();
        let now = components.runtime.clock.unix_millis();
        let rows = components.invitations.all().await?.into_iter();
        Ok(rows
            .map(|(token, row)| RegistrationToken {
                is_good: row.is_good(now),
                token,
                uses_allowed: row.uses_allowed,
                used: row.used,
                expires_at: row.expires_at,
            })
            .collect())
    }

    /// Takes a registration token back.
    pub async fn revoke_registration_token(&self, token: &str) -> Result<(), AdministrationError> {
        let invitations = &self.homeserver.components().invitations;
        if invitations.revoke(token).await? {
            Ok(())
        } else {
            Err(AdministrationError::NoSuchToken(token.to_owned()))
        }
    }

    /// Makes another signing key, with which the server signs from its next start on. Gives its id.
    /// The one until now is published as an old one, so that what it signed stays good.
    pub async fn rotate_signing_key(&self) -> Result<String, AdministrationError> {
        Ok(self.homeserver.components().key_place.rotate().await?)
    }

    /// Makes a user an administrator, or no longer one.
    pub async fn set_admin(&self, user: &str, admin: bool) -> Result<(), AdministrationError> {
        let account = self.account(user).await?;
        let accounts = &self.homeserver.components().accounts;
        Ok(accounts.set_admin(account.number, admin).await?)
    }

    /// Closes an account for good.
    pub async fn deactivate(&self, user: &str, erase: bool) -> Result<(), AdministrationError> {
        let account = self.account(user).await?;
        let closing = &self.homeserver.components().closing;
        Ok(closing.close(account.number, erase).await?)
    }

    /// All accounts, deactivated ones too, in the order of their making.
    pub async fn accounts(&self) -> Result<Vec<Account>, AdministrationError> {
        let accounts = &self.homeserver.components().accounts;
        let mut found: Vec<Account> = Vec::new();
        let mut after: Option<UserNumber> = None;
        loop {
            let page = accounts.list(after, PAGE).await?;
            let full = page.len() == PAGE;
            after = page.last().map(|account| account.number);
            found.extend(page);
            if !full {
                return Ok(found);
            }
        }
    }

    /// The account of a localpart or full user id.
    pub async fn account(&self, user: &str) -> Result<Account, AdministrationError> {
        let components = self.homeserver.components();
        let missing = || AdministrationError::NoSuchUser(user.to_owned());
        let user_id = local_user(&components.server_name, user).ok_or_else(missing)?;
        let account = components.accounts.by_id(&user_id).await?;
        account.ok_or_else(missing)
    }
}

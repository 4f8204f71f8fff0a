//! What an operator does with accounts, on the command line or from an embedding program.

use homeserver_rooms::{NewEvent, RoomError};
use homeserver_storage::Position;
use homeserver_users::{Account, ChangeAccountError, UserNumber};
use ruma::{OwnedUserId, RoomId};

use crate::{
    Homeserver,
    app::{
        authentication::local_user,
        passwords::PasswordError,
        registration::{RegistrationError, Way},
        session::{Keep, SessionError},
    },
};

/// Accounts read in one go.
const PAGE: usize = 500;

/// An operator's command failed.
#[derive(Debug, thiserror::Error)]
pub enum AdministrationError {
    /// There is no such account here.
    #[error("there is no account {0}")]
    NoSuchUser(String),
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

refused!(RegistrationError PasswordError ChangeAccountError SessionError
    homeserver_users::Failure);

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

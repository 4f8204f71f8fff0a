//! Accounts: that a local user exists, of what kind, in what state, and the opaque hash of the
//! password.
//!
//! What this is not: authentication. Hashing passwords, tokens and interactive sessions belong to
//! the homeserver. A user id stays taken for ever, also after deactivation.

use ruma::{OwnedUserId, UserId};
use serde::{Deserialize, Serialize};

use homeserver_storage::{Batch, Position};

use crate::{
    Failure, UserNumber,
    ground::{Attempt, Ground, MAX_ATTEMPTS},
    journal,
    tables::{ACCOUNTS, FIRST_ACCOUNT},
};

/// What kind of account it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AccountKind {
    /// A person or a bot that logs in by itself.
    Person,
    /// A guest: no password, few endpoints.
    Guest,
    /// Made and used by an application service.
    ApplicationService,
}

/// Whether the account may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AccountState {
    /// In use.
    Active,
    /// Closed by its owner or an administrator; its messages stay as they are.
    Deactivated,
    /// Closed, and what it wrote is to be hidden from those who join later.
    Erased,
}

/// An account as stored.
#[derive(Clone, PartialEq, Eq)]
pub struct Account {
    /// Its number in keys and topics.
    pub number: UserNumber,
    /// Its full user id.
    pub user_id: OwnedUserId,
    /// What kind it is.
    pub kind: AccountKind,
    /// Whether it may be used.
    pub state: AccountState,
    /// Whether it may use the administration interfaces.
    pub admin: bool,
    /// The password's hash, in whatever form the caller handed it over; `None` cannot log in by
    /// password.
    pub password_hash: Option<String>,
    /// Counts how often all of its logins were ended. A token that was issued under an earlier
    /// generation is no longer good.
    pub generation: u64,
    /// When it was created, in milliseconds since the Unix epoch.
    pub created_at: u64,
}

impl Account {
    /// Whether it may be used.
    pub fn is_active(&self) -> bool {
        self.state == AccountState::Active
    }
}

/// Row of [`ACCOUNTS`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AccountRow {
    user_id: String,
    kind: AccountKind,
    state: AccountState,
    admin: bool,
    password_hash: Option<String>,
    generation: u64,
    created_at: u64,
}
homeserver_storage::row!(AccountRow, 1);

/// Password hashes are not shown.
impl std::fmt::Debug for Account {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = formatter.debug_struct("Account");
        shown.field("user_id", &self.user_id);
        shown.field("kind", &self.kind).field("state", &self.state);
        shown.field("admin", &self.admin).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for NewAccount {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = formatter.debug_struct("NewAccount");
        shown.field("user_id", &self.user_id);
        shown.field("admin", &self.admin).finish_non_exhaustive()
    }
}

/// Who becomes an administrator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admin {
    /// Not this account.
    No,
    /// This account.
    Yes,
    /// This account if it is the first ever on this server; decided with its creation, so that of
    /// two at the same time only one is.
    IfFirst,
}

/// An account to create.
#[derive(Clone)]
pub struct NewAccount {
    /// Its full user id; the caller has checked that it is one of this server and well-formed.
    pub user_id: OwnedUserId,
    /// What kind it is.
    pub kind: AccountKind,
    /// Whether it is an administrator.
    pub admin: Admin,
    /// The password's hash, if it has a password.
    pub password_hash: Option<String>,
}

/// An account was not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateAccountError {
    /// The user id is or was in use.
    #[error("the user id is taken")]
    Taken,
    /// The store could not do it.
    #[error(transparent)]
    Failure(#[from] Failure),
}

/// An account was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeAccountError {
    /// There is no such account.
    #[error("no such account")]
    NotFound,
    /// The account is closed.
    #[error("the account is deactivated")]
    Deactivated,
    /// The store could not do it.
    #[error(transparent)]
    Failure(#[from] Failure),
}

/// The accounts of this server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Accounts {
    ground: Ground,
}

impl Accounts {
    pub(crate) fn new(ground: Ground) -> Self {
        Self { ground }
    }

    /// Creates an account, unless its user id is or was in use.
    pub async fn create(&self, new: NewAccount) -> Result<Account, CreateAccountError> {
        self.create_with(new, Batch::new()).await
    }

    /// Creates an account together with what `more` holds: all of it or nothing. An assert of
    /// `more` that fails (a used registration token, say) comes back as [`Failure::Refused`].
    pub async fn create_with(
        &self,
        new: NewAccount,
        more: Batch,
    ) -> Result<Account, CreateAccountError> {
        let number = self.ground.user_number(&new.user_id).await?;
        for _ in 0..MAX_ATTEMPTS {
            if self.by_number(number).await?.is_some() {
                return Err(CreateAccountError::Taken);
            }
            let first = self.is_empty().await? && new.kind != AccountKind::ApplicationService;
            let row = AccountRow {
                user_id: new.user_id.to_string(),
                kind: new.kind,
                state: AccountState::Active,
                admin: match new.admin {
                    Admin::No => false,
                    Admin::Yes => true,
                    Admin::IfFirst => first,
                },
                password_hash: new.password_hash.clone(),
                generation: 0,
                created_at: self.ground.now(),
            };
            let mut batch = Batch::new();
            let mut ours = vec![batch.assert_absent(&ACCOUNTS, &number.0)];
            batch.put(&ACCOUNTS, &number.0, &row);
            if first {
                ours.push(batch.assert_absent(&FIRST_ACCOUNT, &()));
                batch.put(&FIRST_ACCOUNT, &(), &number.0);
            }
            batch.append(
                &journal::entry(journal::ACCOUNT_CHANGED, &[number.0]),
                &[journal::user(number)],
            );
            batch.extend(&more);
            match self.ground.attempt_asserting(batch, &ours).await? {
                Attempt::Done(_) => return Ok(account(number, row)?),
                Attempt::Conflict => {}
            }
        }
        Err(Failure::Busy.into())
    }

    /// Whether no account was ever created (those of application services do not count).
    pub async fn is_empty(&self) -> Result<bool, Failure> {
        Ok(self.ground.store.get(&FIRST_ACCOUNT, &()).await?.is_none())
    }

    /// The account of a user id, whatever its state.
    pub async fn by_id(&self, user_id: &UserId) -> Result<Option<Account>, Failure> {
        match self.ground.known_user_number(user_id).await? {
            Some(number) => self.by_number(number).await,
            None => Ok(None),
        }
    }

    /// The account of a user number, whatever its state.
    pub async fn by_number(&self, number: UserNumber) -> Result<Option<Account>, Failure> {
        let row = self.ground.store.get(&ACCOUNTS, &number.0).await?;
        row.map(|row| account(number, row)).transpose()
    }

    /// A page of accounts by number, those after `after`, at most `limit`.
    pub async fn list(
        &self,
        after: Option<UserNumber>,
        limit: usize,
    ) -> Result<Vec<Account>, Failure> {
        let from = after.map_or(0, |number| number.0.saturating_add(1));
        let rows = self
            .ground
            .scan_between(&ACCOUNTS, from, u64::MAX, limit)
            .await?;
        let accounts = rows.into_iter();
        accounts
            .map(|(number, row)| account(UserNumber(number), row))
            .collect()
    }

    /// Sets or removes the password's hash of an account in use.
    ///
    /// [`Failure::Refused`] if the account's logins are no longer of this generation.
    pub async fn set_password_hash(
        &self,
        number: UserNumber,
        generation: u64,
        hash: Option<String>,
    ) -> Result<(), ChangeAccountError> {
        self.change(number, &Batch::new(), |row| {
            active(row)?;
            if row.generation != generation {
                return Err(Failure::Refused.into());
            }
            row.password_hash.clone_from(&hash);
            Ok(())
        })
        .await?;
        Ok(())
    }

    /// Ends all logins of an account in use, by beginning a new generation of them, and sets its
    /// password's hash if one is given: one batch, together with `more`, which may hold tokens of
    /// the new generation that are to live on.
    ///
    /// [`Failure::Refused`] if the account is no longer of the generation that `account` shows, or
    /// an assert of `more` fails: read both again.
    pub async fn end_logins(
        &self,
        account: &Account,
        hash: Option<&str>,
        more: &Batch,
    ) -> Result<(), ChangeAccountError> {
        self.change(account.number, more, |row| {
            active(row)?;
            if row.generation != account.generation {
                return Err(Failure::Refused.into());
            }
            row.generation += 1;
            if let Some(hash) = hash {
                row.password_hash = Some(hash.to_owned());
            }
            Ok(())
        })
        .await?;
        Ok(())
    }

    /// Makes an account in use an administrator, or no longer one.
    pub async fn set_admin(
        &self,
        number: UserNumber,
        admin: bool,
    ) -> Result<(), ChangeAccountError> {
        self.change(number, &Batch::new(), |row| {
            active(row)?;
            row.admin = admin;
            Ok(())
        })
        .await?;
        Ok(())
    }

    /// Closes an account: no password, no rights, no logins. Closing a closed one again may still
    /// erase it. `more` is committed in the same batch.
    ///
    /// The caller then deletes its devices and tokens, leaves its rooms and clears its profile;
    /// all of that may be repeated if it is interrupted.
    pub async fn deactivate(
        &self,
        number: UserNumber,
        to: AccountState,
        more: &Batch,
    ) -> Result<Position, ChangeAccountError> {
        self.change(number, more, |row| {
            if row.state == AccountState::Active {
                row.generation += 1;
            }
            if row.state != AccountState::Erased {
                row.state = to;
            }
            row.password_hash = None;
            row.admin = false;
            Ok(())
        })
        .await
    }

    /// Opens a closed account again; it has no password until one is set.
    pub async fn reactivate(&self, number: UserNumber) -> Result<Position, ChangeAccountError> {
        self.change(number, &Batch::new(), |row| {
            row.state = AccountState::Active;
            Ok(())
        })
        .await
    }

    /// Turns a guest into a full account.
    pub async fn upgrade_guest(
        &self,
        number: UserNumber,
        password_hash: Option<String>,
    ) -> Result<(), ChangeAccountError> {
        self.change(number, &Batch::new(), |row| {
            active(row)?;
            row.kind = AccountKind::Person;
            row.password_hash.clone_from(&password_hash);
            Ok(())
        })
        .await?;
        Ok(())
    }

    async fn change(
        &self,
        number: UserNumber,
        more: &Batch,
        mut apply: impl FnMut(&mut AccountRow) -> Result<(), ChangeAccountError> + Send,
    ) -> Result<Position, ChangeAccountError> {
        for _ in 0..MAX_ATTEMPTS {
            let before = self.ground.store.get(&ACCOUNTS, &number.0).await;
            let before = before.map_err(Failure::from)?;
            let before = before.ok_or(ChangeAccountError::NotFound)?;
            let mut after = before.clone();
            apply(&mut after)?;
            let mut batch = Batch::new();
            let ours = [batch.assert_value(&ACCOUNTS, &number.0, &before)];
            batch.put(&ACCOUNTS, &number.0, &after);
            batch.append(
                &journal::entry(journal::ACCOUNT_CHANGED, &[number.0]),
                &[journal::user(number)],
            );
            batch.extend(more);
            let attempt = self.ground.attempt_asserting(batch, &ours).await?;
            if let Attempt::Done(committed) = attempt {
                return Ok(committed.first());
            }
        }
        Err(Failure::Busy.into())
    }
}

fn active(row: &AccountRow) -> Result<(), ChangeAccountError> {
    match row.state {
        AccountState::Active => Ok(()),
        AccountState::Deactivated | AccountState::Erased => Err(ChangeAccountError::Deactivated),
    }
}

fn account(number: UserNumber, row: AccountRow) -> Result<Account, Failure> {
    Ok(Account {
        number,
        user_id: crate::ground::user_id(&row.user_id)?,
        kind: row.kind,
        state: row.state,
        admin: row.admin,
        password_hash: row.password_hash,
        generation: row.generation,
        created_at: row.created_at,
    })
}

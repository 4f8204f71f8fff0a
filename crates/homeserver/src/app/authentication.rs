//! Proving who one is: the password of an account, and the stages of user-interactive
//! authentication.
//!
//! Whether an account exists shows neither in the answer nor in the time it takes; wrong guesses
//! at one account are limited wherever they come from.

use homeserver_users::{Account, Accounts, Failure as UsersFailure};
use ruma::{OwnedServerName, OwnedUserId, UserId};

use super::{
    interactive::{
        self, Challenge, Completed, Failure, Flows, InteractiveSessions, Operation, Proven, Stage,
    },
    invitation::Invitations,
    limits::{LimitClass, LimitExceeded, LimitKey, RateLimits},
    passwords::{PasswordError, Passwords},
    secret::Secret,
};

/// What a client offers as proof, as it came in `auth`.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Proof {
    /// The stage attempted; absent when the client only asks how far it is.
    pub(crate) stage: Option<String>,
    /// The session.
    pub(crate) session: Option<String>,
    /// Whose password it is.
    pub(crate) user: Option<String>,
    /// The password.
    pub(crate) password: Option<String>,
    /// The registration token.
    pub(crate) token: Option<String>,
}

/// Secrets are not shown.
impl std::fmt::Debug for Proof {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = formatter.debug_struct("Proof");
        shown.field("stage", &self.stage).finish_non_exhaustive()
    }
}

/// Somebody did not prove who they are.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthenticationError {
    /// There is more to do.
    #[error("more authentication is needed")]
    Challenge(Challenge),
    /// Unknown account, or not its password.
    #[error("wrong user name or password")]
    WrongPassword,
    /// The account is closed.
    #[error("the account is deactivated")]
    Deactivated,
    /// Too many attempts.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
    /// The password could not be checked.
    #[error(transparent)]
    Password(#[from] PasswordError),
    /// The store could not do it.
    #[error(transparent)]
    Failure(#[from] UsersFailure),
}

/// How an attempt at a stage on a page ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageOutcome {
    /// The stage is complete.
    Done,
    /// What was entered is wrong.
    Wrong,
}

/// Checks proofs. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Authenticator {
    pub(crate) server_name: OwnedServerName,
    pub(crate) accounts: Accounts,
    pub(crate) passwords: Passwords,
    pub(crate) interactive: InteractiveSessions,
    pub(crate) invitations: Invitations,
    pub(crate) limits: RateLimits,
}

impl Authenticator {
    /// The account of `user` (a localpart or a full user id), if `password` is its password.
    pub(crate) async fn by_password(
        &self,
        user: &str,
        password: &str,
    ) -> Result<Account, AuthenticationError> {
        let user_id = local_user(&self.server_name, user);
        let target = match &user_id {
            Some(user_id) => LimitKey::Target(user_id.localpart().to_ascii_lowercase()),
            None => LimitKey::Target(String::new()),
        };
        // Before the password is looked at, so that guesses in flight together count too.
        self.limits.take(LimitClass::Login, target.clone())?;
        let account = match user_id {
            Some(user_id) => self.account(&user_id).await?,
            None => None,
        };
        self.matching(account, password, target).await
    }

    /// The account, if `password` is its password: what was taken from `bucket` is given back then.
    async fn matching(
        &self,
        account: Option<Account>,
        password: &str,
        bucket: LimitKey,
    ) -> Result<Account, AuthenticationError> {
        let hash = stored_hash(account.as_ref());
        let matches = self.passwords.verify(password, hash).await?;
        match account {
            Some(account) if matches && account.is_active() => {
                self.limits.give_back(LimitClass::Login, bucket);
                Ok(account)
            }
            Some(account) if !account.is_active() => Err(AuthenticationError::Deactivated),
            _ => Err(AuthenticationError::WrongPassword),
        }
    }

    /// The account as written, else in small letters.
    async fn account(&self, user_id: &UserId) -> Result<Option<Account>, UsersFailure> {
        if let Some(account) = self.accounts.by_id(user_id).await? {
            return Ok(Some(account));
        }
        let lowered = user_id.localpart().to_ascii_lowercase();
        match local_user(&self.server_name, &lowered) {
            Some(lowered) if lowered != user_id => self.accounts.by_id(&lowered).await,
            _ => Ok(None),
        }
    }

    /// Lets `operation` pass once one of `flows` is complete; until then says what is missing.
    pub(crate) async fn require(
        &self,
        operation: &Operation,
        flows: Flows,
        proof: Option<&Proof>,
    ) -> Result<Proven, AuthenticationError> {
        let session = proof.and_then(|proof| proof.session.as_deref());
        let mut challenge = self.interactive.resume(session, operation, flows);
        let Some(proof) = proof else {
            return Err(AuthenticationError::Challenge(challenge));
        };
        let Some(name) = proof.stage.as_deref() else {
            let proven = self.interactive.finish(&challenge, operation);
            return proven.ok_or(AuthenticationError::Challenge(challenge));
        };
        let Some(stage) = interactive::offered(flows, name) else {
            challenge.failure = Some(Failure::UnknownStage);
            return Err(AuthenticationError::Challenge(challenge));
        };
        if let Some(failure) = self.attempt(stage, operation, proof).await? {
            challenge.failure = Some(failure);
            return Err(AuthenticationError::Challenge(challenge));
        }
        let completed = completed(stage, proof);
        let proven = self.interactive.complete(challenge, completed, operation);
        proven.map_err(AuthenticationError::Challenge)
    }

    /// Attempts the stage `name` of session `id` with what its user entered on a page: a password,
    /// a token, or nothing. `None`: there is no such session, or it does not offer the stage.
    pub(crate) async fn on_page(
        &self,
        id: &str,
        name: &str,
        entered: String,
    ) -> Result<Option<PageOutcome>, AuthenticationError> {
        let Some((stage, operation)) = self.interactive.offered(id, name) else {
            return Ok(None);
        };
        let proof = Proof {
            password: Some(entered.clone()),
            token: Some(entered),
            ..Proof::default()
        };
        if self.attempt(stage, &operation, &proof).await?.is_some() {
            return Ok(Some(PageOutcome::Wrong));
        }
        let completed = completed(stage, &proof);
        let noted = self
            .interactive
            .complete_elsewhere(id, completed, &operation);
        Ok(noted.then_some(PageOutcome::Done))
    }

    /// Checks one stage; gives why it failed, if it did.
    async fn attempt(
        &self,
        stage: Stage,
        operation: &Operation,
        proof: &Proof,
    ) -> Result<Option<Failure>, AuthenticationError> {
        match stage {
            Stage::Dummy => Ok(None),
            Stage::RegistrationToken => {
                let token = proof.token.as_deref().unwrap_or_default();
                let valid = self.invitations.is_valid(token).await?;
                Ok((!valid).then_some(Failure::WrongToken))
            }
            Stage::Password => match operation.user.as_ref() {
                Some(asking) => self.own_password(asking, proof).await,
                None => Ok(Some(Failure::WrongPassword)),
            },
        }
    }

    /// Checks that somebody who is logged in knows their own password.
    async fn own_password(
        &self,
        asking: &OwnedUserId,
        proof: &Proof,
    ) -> Result<Option<Failure>, AuthenticationError> {
        let user = proof.user.as_deref().unwrap_or(asking.as_str());
        let account = match local_user(&self.server_name, user) {
            Some(user_id) => self.account(&user_id).await?,
            None => None,
        };
        // Nobody else's password is tried here.
        let Some(account) = account.filter(|account| account.user_id == *asking) else {
            return Ok(Some(Failure::WrongPassword));
        };
        let bucket = LimitKey::OwnPassword(asking.clone());
        self.limits.take(LimitClass::Login, bucket.clone())?;
        let password = proof.password.as_deref().unwrap_or_default();
        match self.matching(Some(account), password, bucket).await {
            Ok(_) => Ok(None),
            Err(AuthenticationError::WrongPassword) => Ok(Some(Failure::WrongPassword)),
            Err(error) => Err(error),
        }
    }
}

/// A stage that was completed by `proof`.
fn completed(stage: Stage, proof: &Proof) -> Completed {
    let token = proof.token.as_ref();
    Completed {
        stage,
        token: token
            .filter(|_| stage == Stage::RegistrationToken)
            .cloned()
            .map(Secret::from),
    }
}

fn stored_hash(account: Option<&Account>) -> Option<&str> {
    account?.password_hash.as_deref()
}

/// The local user that `user`, a localpart or a full user id, names.
pub(crate) fn local_user(server_name: &OwnedServerName, user: &str) -> Option<OwnedUserId> {
    let user_id = if user.starts_with('@') {
        UserId::parse(user).ok()?
    } else {
        UserId::parse(format!("@{user}:{server_name}")).ok()?
    };
    (user_id.server_name() == server_name).then_some(user_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let secret = || Some("hunter2".to_owned());
        let proof = Proof {
            stage: Some("m.login.password".to_owned()),
            session: secret(),
            user: None,
            password: secret(),
            token: secret(),
        };
        let shown = format!("{proof:?}");
        assert!(shown.contains("m.login.password") && !shown.contains("hunter2"));
    }
}

//! Passwords: hashed with Argon2id on the CPU pool, and checked in the same time whether or not
//! there is an account.

use std::sync::Arc;

use argon2::{
    Algorithm, Argon2, Params, Version,
    password_hash::{PasswordHasher, PasswordVerifier},
};
use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
use homeserver_runtime::{PoolClosed, Runtime};

/// Memory of one hash, in KiB. With [`PASSES`] and [`LANES`] the OWASP recommendation for Argon2id.
const MEMORY_KIB: u32 = 19 * 1024;
/// Passes over the memory.
const PASSES: u32 = 2;
/// Lanes computed one after the other.
const LANES: u32 = 1;
/// Bytes of salt.
const SALT: usize = 16;
/// Bytes of the hash.
const HASH: usize = 32;

/// Bytes of the longest password that is accepted.
pub(crate) const MAX_PASSWORD: usize = 512;

/// A password was not hashed or checked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PasswordError {
    /// An empty password protects nothing.
    #[error("the password is empty")]
    Empty,
    /// Longer than [`MAX_PASSWORD`].
    #[error("the password is longer than {MAX_PASSWORD} bytes")]
    TooLong,
    /// The hash function refused, which its fixed parameters rule out.
    #[error("the password could not be hashed: {0}")]
    Hash(argon2::password_hash::Error),
    /// The pool is gone.
    #[error(transparent)]
    Pool(#[from] PoolClosed),
}

/// Hashes and checks passwords. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Passwords {
    runtime: Runtime,
    /// Checked when there is no account, so that the answer takes as long.
    decoy: Arc<str>,
}

impl Passwords {
    /// Prepares what is checked when there is no account: a random salt and hash, which cost as much
    /// to check as real ones and which no known password has. Nothing is hashed for it, so that a
    /// start costs neither the time nor the memory.
    pub(crate) fn open(runtime: Runtime) -> Self {
        let salt = BASE64_STANDARD_NO_PAD.encode(runtime.entropy.bytes::<SALT>());
        let hash = BASE64_STANDARD_NO_PAD.encode(runtime.entropy.bytes::<HASH>());
        let decoy = format!("$argon2id$v=19$m={MEMORY_KIB},t={PASSES},p={LANES}${salt}${hash}");
        Self {
            runtime,
            decoy: decoy.into(),
        }
    }

    /// Whether `password` may be somebody's.
    pub(crate) fn check(password: &str) -> Result<(), PasswordError> {
        match password.len() {
            0 => Err(PasswordError::Empty),
            1..=MAX_PASSWORD => Ok(()),
            _ => Err(PasswordError::TooLong),
        }
    }

    /// The PHC string of a new password.
    pub(crate) async fn hash(&self, password: &str) -> Result<String, PasswordError> {
        Self::check(password)?;
        hash(&self.runtime, password.to_owned()).await
    }

    /// Whether `password` is the one of `stored`; never if there is none. Takes the same time
    /// either way.
    pub(crate) async fn verify(
        &self,
        password: &str,
        stored: Option<&str>,
    ) -> Result<bool, PasswordError> {
        let possible = stored.is_some() && !password.is_empty() && password.len() <= MAX_PASSWORD;
        let against = stored.unwrap_or(&self.decoy).to_owned();
        let password = password.as_bytes();
        let password = password[..password.len().min(MAX_PASSWORD)].to_owned();
        let matches = move || {
            argon2().is_ok_and(|it| it.verify_password(&password, against.as_str()).is_ok())
        };
        Ok(self.runtime.cpu.run(matches).await? && possible)
    }
}

async fn hash(runtime: &Runtime, password: String) -> Result<String, PasswordError> {
    let salt: [u8; SALT] = runtime.entropy.bytes();
    let job = move || {
        let phc = argon2()?.hash_password_with_salt(password.as_bytes(), &salt)?;
        Ok(phc.to_string())
    };
    runtime.cpu.run(job).await?.map_err(PasswordError::Hash)
}

fn argon2() -> Result<Argon2<'static>, argon2::password_hash::Error> {
    let parameters = Params::new(MEMORY_KIB, PASSES, LANES, None)?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, parameters))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_right_password_matches() {
        let passwords = Passwords::open(Runtime::system());
        let stored = passwords.hash("correct horse").await.unwrap();
        assert!(
            stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"),
            "{stored}"
        );
        assert_ne!(
            stored,
            passwords.hash("correct horse").await.unwrap(),
            "salted"
        );
        assert!(
            passwords
                .verify("correct horse", Some(&stored))
                .await
                .unwrap()
        );
        for wrong in ["correct horsf", "", "*", "!"] {
            assert!(
                !passwords.verify(wrong, Some(&stored)).await.unwrap(),
                "{wrong:?}"
            );
        }
        // No password, a damaged one, and the one whose prefix fits.
        for stored in [None, Some(""), Some("*"), Some("!")] {
            assert!(!passwords.verify("", stored).await.unwrap());
            assert!(!passwords.verify("*", stored).await.unwrap());
        }
        let longest = "a".repeat(MAX_PASSWORD);
        let stored = passwords.hash(&longest).await.unwrap();
        assert!(passwords.verify(&longest, Some(&stored)).await.unwrap());
        let longer = format!("{longest}a");
        assert!(!passwords.verify(&longer, Some(&stored)).await.unwrap());
    }

    /// An unreadable decoy would be answered at once and tell who has an account.
    #[test]
    fn the_decoy_is_computed_like_a_real_hash() {
        let passwords = Passwords::open(Runtime::system());
        let verified = argon2().unwrap().verify_password(b"x", &*passwords.decoy);
        let wrong = argon2::password_hash::Error::PasswordInvalid;
        assert_eq!(verified, Err(wrong), "{}", passwords.decoy);
    }

    #[tokio::test]
    async fn empty_and_endless_passwords_are_refused() {
        let passwords = Passwords::open(Runtime::system());
        assert!(matches!(
            passwords.hash("").await,
            Err(PasswordError::Empty)
        ));
        let long = "a".repeat(MAX_PASSWORD + 1);
        assert!(matches!(
            passwords.hash(&long).await,
            Err(PasswordError::TooLong)
        ));
    }
}

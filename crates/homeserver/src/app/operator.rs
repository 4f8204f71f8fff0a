//! Accounts made by whoever knows the shared secret, as test tools and operators' scripts do.
//!
//! A nonce is asked for first and serves once; the request is authenticated by an HMAC-SHA1 over
//! nonce, user name, password and whether it is an administrator, separated by NUL bytes.

use std::{sync::Arc, time::Duration};

use hmac::{Hmac, KeyInit, Mac};
use homeserver_runtime::Runtime;
use quick_cache::sync::Cache;
use sha1::Sha1;
use subtle::ConstantTimeEq;

/// How long a nonce may be used.
const NONCE_LIFETIME: Duration = Duration::from_mins(1);
/// Nonces that are remembered.
const MAX_NONCES: usize = 1_000;
/// Letters of a nonce.
const NONCE_LENGTH: usize = 64;

/// Hands out nonces and checks codes. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct OperatorRegistration {
    runtime: Runtime,
    nonces: Arc<Cache<String, Duration>>,
}

/// What the code covers.
#[derive(Clone, Copy)]
pub(crate) struct Covered<'a> {
    /// The nonce.
    pub(crate) nonce: &'a str,
    /// The user name.
    pub(crate) username: &'a str,
    /// The password.
    pub(crate) password: &'a str,
    /// Whether it is to be an administrator.
    pub(crate) admin: bool,
    /// The kind of user, which few tools send.
    pub(crate) user_type: Option<&'a str>,
}

impl OperatorRegistration {
    /// No nonces.
    pub(crate) fn new(runtime: Runtime) -> Self {
        Self {
            runtime,
            nonces: Arc::new(Cache::new(MAX_NONCES)),
        }
    }

    /// A new nonce.
    pub(crate) fn nonce(&self) -> String {
        let nonce = self.runtime.entropy.alphanumeric(NONCE_LENGTH);
        self.nonces
            .insert(nonce.clone(), self.runtime.clock.monotonic());
        nonce
    }

    /// Whether `nonce` was handed out and is unused; it is used now.
    pub(crate) fn spend(&self, nonce: &str) -> bool {
        let Some((_, made)) = self.nonces.remove(nonce) else {
            return false;
        };
        self.runtime.clock.monotonic().saturating_sub(made) < NONCE_LIFETIME
    }
}

/// Whether `code`, in hexadecimal, is the one of `covered` under `secret`.
pub(crate) fn is_right(secret: &str, covered: Covered<'_>, code: &str) -> bool {
    let Ok(mut mac) = Hmac::<Sha1>::new_from_slice(secret.as_bytes()) else {
        return false;
    };
    let admin = if covered.admin { "admin" } else { "notadmin" };
    let mut parts = vec![covered.nonce, covered.username, covered.password, admin];
    parts.extend(covered.user_type);
    mac.update(parts.join("\0").as_bytes());
    let right = mac.finalize().into_bytes();
    let code: Option<Vec<u8>> = code.as_bytes().chunks(2).map(hex_byte).collect();
    code.is_some_and(|code| bool::from(right.as_slice().ct_eq(&code)))
}

/// The byte that two hexadecimal digits stand for.
fn hex_byte(digits: &[u8]) -> Option<u8> {
    let [high, low] = digits else { return None };
    let digit = |letter: u8| char::from(letter).to_digit(16);
    u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()
}

#[cfg(test)]
mod tests {
    use homeserver_runtime::ManualClock;

    use super::*;

    /// The code that Synapse's own `register_new_matrix_user` computes for this request (Python's
    /// `hmac`).
    #[test]
    fn the_code_is_the_one_of_the_scripts() {
        let covered = Covered {
            nonce: "thisisanonce",
            username: "pepper_roni",
            password: "pizza",
            admin: true,
            user_type: None,
        };
        let code = "2a62ac3bcfd2e3a7762c919fe561c0e12eede03e";
        assert!(is_right("shared secret", covered, code));
        assert!(is_right("shared secret", covered, &code.to_uppercase()));
        let other = Covered {
            admin: false,
            ..covered
        };
        assert!(!is_right("shared secret", other, code));
        assert!(!is_right("another secret", covered, code));
        assert!(!is_right("shared secret", covered, ""));
    }

    #[test]
    fn a_nonce_serves_once_and_not_for_long() {
        let clock = Arc::new(ManualClock::new(0));
        let operator = OperatorRegistration::new(Runtime::simulated(Arc::clone(&clock), 1));
        let nonce = operator.nonce();
        assert!(operator.spend(&nonce));
        assert!(!operator.spend(&nonce));
        let nonce = operator.nonce();
        clock.advance(NONCE_LIFETIME);
        assert!(!operator.spend(&nonce));
        assert!(!operator.spend(""));
    }
}

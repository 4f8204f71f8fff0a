//! Ed25519 keys of servers, and signatures over bytes.
//!
//! Making a key needs randomness, which this crate does not have: the caller hands in a seed.
//! Whether a key was valid at some time is decided in [`crate::signatures`].

use std::fmt;

use ed25519_dalek::{Signature, Signer as _};
use ruma::{OwnedServerSigningKeyId, ServerSigningKeyId};
use sha2::{Digest, Sha256};

use crate::hash::{decode_any_base64, encode_base64};

/// Why a key is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The key id is not `ed25519:` and a version of `a-z`, `A-Z`, `0-9`, `_`.
    #[error("not a valid ed25519 key id")]
    Id,
    /// The text is not base64 of a key's length, or not in the stored form.
    #[error("not a valid ed25519 key")]
    Form,
    /// The public key has small order: anybody could sign with it.
    #[error("a weak ed25519 key")]
    Weak,
    /// Everybody can have the private half.
    #[error("a predictable signing key")]
    Predictable,
}

/// Public keys, in unpadded base64, whose private halves everybody can have.
const PREDICTABLE: [&str; 2] = [
    // The seed is all zeroes: the source of randomness did not deliver.
    "O2onvM62pC1io6jQKm8Nc2UyFXcd4kOmOsBIoYtZ2ik",
    // The key that every installation of Element Server Suite before 25.12.1 made (CVE-2026-24044).
    "l/O9hxMVKB6Lg+3Hqf0FQQZhVESQcMzbPN1Cz2nM3og",
];

fn is_predictable(key: &ed25519_dalek::VerifyingKey) -> bool {
    PREDICTABLE.contains(&encode_base64(key.as_bytes()).as_str())
}

/// A server's private signing key and its id. `Debug` does not show the secret.
#[derive(Clone)]
pub struct SigningKey {
    id: OwnedServerSigningKeyId,
    key: ed25519_dalek::SigningKey,
}

impl SigningKey {
    /// A key of this version (`a_AbCd`) from 32 random bytes.
    pub fn from_seed(version: &str, seed: &[u8; 32]) -> Result<Self, KeyError> {
        let id = key_id(version)?;
        let key = ed25519_dalek::SigningKey::from_bytes(seed);
        if is_predictable(&key.verifying_key()) {
            return Err(KeyError::Predictable);
        }
        Ok(Self { id, key })
    }

    /// The version that a key with this seed gets when none is given: `a_` and four characters
    /// of a hash of the public key.
    pub fn version_for_seed(seed: &[u8; 32]) -> String {
        let public = ed25519_dalek::SigningKey::from_bytes(seed).verifying_key();
        let digest = Sha256::digest(public.as_bytes());
        let mut version = String::from("a_");
        for byte in &digest[..4] {
            version.push(char::from(b'a' + byte % 26));
        }
        version
    }

    /// Reads the form of [`Self::to_stored`], which is also that of other servers' key files:
    /// `ed25519 VERSION SEED`, the seed in unpadded base64.
    pub fn from_stored(text: &str) -> Result<Self, KeyError> {
        let mut words = text.split_ascii_whitespace();
        let (Some("ed25519"), Some(version), Some(seed), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(KeyError::Form);
        };
        let seed = decode_any_base64(seed).ok_or(KeyError::Form)?;
        let seed: [u8; 32] = seed.try_into().map_err(|_| KeyError::Form)?;
        Self::from_seed(version, &seed)
    }

    /// `ed25519 VERSION SEED`. This is the secret itself.
    pub fn to_stored(&self) -> String {
        let seed = encode_base64(self.key.as_bytes());
        format!("ed25519 {} {seed}", self.id.key_name())
    }

    /// The key id, `ed25519:VERSION`.
    pub fn id(&self) -> &ServerSigningKeyId {
        &self.id
    }

    /// The public half.
    pub fn verify_key(&self) -> VerifyKey {
        VerifyKey(self.key.verifying_key())
    }

    /// The signature over these bytes in unpadded base64. Private to the crate: what is signed
    /// is built here from typed parts, never handed over by a peer.
    pub(crate) fn sign(&self, message: &[u8]) -> String {
        encode_base64(self.key.sign(message).to_bytes())
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("SigningKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// A public key that signatures are checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifyKey(ed25519_dalek::VerifyingKey);

impl VerifyKey {
    /// From the 32 bytes of a public key. Keys of small order are refused, and those whose private
    /// half is known.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        let key = ed25519_dalek::VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::Form)?;
        if key.is_weak() {
            Err(KeyError::Weak)
        } else if is_predictable(&key) {
            Err(KeyError::Predictable)
        } else {
            Ok(Self(key))
        }
    }

    /// From base64 in either alphabet.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        let bytes = decode_any_base64(text).ok_or(KeyError::Form)?;
        let bytes: [u8; 32] = bytes.try_into().map_err(|_| KeyError::Form)?;
        Self::from_bytes(&bytes)
    }

    /// The key's 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// Unpadded standard base64, as keys are published.
    pub fn to_base64(&self) -> String {
        encode_base64(self.0.as_bytes())
    }

    /// Whether this base64 text is this key's signature over the message.
    ///
    /// Strict: `R` of small order and non-canonical scalars are refused, as libsodium does, which
    /// most of the federation uses.
    pub fn verifies(&self, message: &[u8], signature: &str) -> bool {
        let bytes = crate::hash::decode_base64(signature);
        let bytes: Option<[u8; 64]> = bytes.and_then(|bytes| bytes.try_into().ok());
        let Some(bytes) = bytes else { return false };
        self.0
            .verify_strict(message, &Signature::from_bytes(&bytes))
            .is_ok()
    }
}

fn key_id(version: &str) -> Result<OwnedServerSigningKeyId, KeyError> {
    let valid = !version.is_empty()
        && version
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !valid {
        return Err(KeyError::Id);
    }
    ServerSigningKeyId::parse(format!("ed25519:{version}")).map_err(|_| KeyError::Id)
}

//! Cross-signing: a user's master, self-signing and user-signing keys, and signatures on keys.
//!
//! Signatures are checked before they are stored: by the master key on the two others, by the
//! self-signing key on the user's devices, by devices on the master key, by the user-signing key
//! on other users' master keys. Nothing else is accepted, nothing unchecked is stored.
//!
//! Who sees which signature is decided when keys are read: everybody the owner's own, and each
//! signer what they signed.
//!
//! Spec: Client-Server API, "Cross-signing".

mod sign;
mod verify;

pub use sign::{MAX_SIGNED_OBJECTS, SignatureFailure, SignatureFailures};

use std::collections::BTreeMap;

use homeserver_storage::Batch;
use ruma::UserId;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, value::RawValue};

use crate::{
    Failure, UserNumber,
    device_list::{Told, list_changed},
    ground::{Attempt, Ground, MAX_ATTEMPTS},
    keys::{InvalidKey, with_signatures},
    tables::{CROSS_SIGNING_KEYS, DEVICES},
};

/// Bytes of one cross-signing key.
pub const MAX_CROSS_SIGNING_KEY: usize = 16 * 1024;

/// What a cross-signing key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyUsage {
    /// Signs the two others; what people verify.
    Master,
    /// Signs the user's own devices.
    SelfSigning,
    /// Signs other users' master keys; only its owner sees it.
    UserSigning,
}

impl KeyUsage {
    const ALL: [Self; 3] = [Self::Master, Self::SelfSigning, Self::UserSigning];

    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Master => 0,
            Self::SelfSigning => 1,
            Self::UserSigning => 2,
        }
    }

    /// The name it has in a key's `usage`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::SelfSigning => "self_signing",
            Self::UserSigning => "user_signing",
        }
    }
}

/// Row of [`CROSS_SIGNING_KEYS`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CrossSigningKeyRow {
    /// The public key in unpadded base64, which is also the key's id.
    pub(crate) public_key: String,
    /// The key object as uploaded, without `unsigned`.
    pub(crate) json: String,
}
homeserver_storage::row!(CrossSigningKeyRow, 1);

/// Cross-signing keys to store; any may be missing.
#[derive(Clone, Debug, Default)]
pub struct CrossSigningUpload {
    /// The master key.
    pub master: Option<Box<RawValue>>,
    /// The self-signing key.
    pub self_signing: Option<Box<RawValue>>,
    /// The user-signing key.
    pub user_signing: Option<Box<RawValue>>,
}

impl CrossSigningUpload {
    fn parts(&self) -> impl Iterator<Item = (KeyUsage, &RawValue)> {
        let of = |usage| match usage {
            KeyUsage::Master => self.master.as_deref(),
            KeyUsage::SelfSigning => self.self_signing.as_deref(),
            KeyUsage::UserSigning => self.user_signing.as_deref(),
        };
        KeyUsage::ALL
            .into_iter()
            .filter_map(move |usage| Some((usage, of(usage)?)))
    }
}

/// Nothing of the upload was stored.
#[derive(Debug, thiserror::Error)]
pub enum CrossSigningError {
    /// A key does not have the form of a cross-signing key of this user and usage.
    #[error("the {} key is invalid", .0.name())]
    Invalid(KeyUsage, #[source] InvalidKey),
    /// A key is not signed by the master key, or the signature is wrong.
    #[error("the {} key is not signed by the master key", .0.name())]
    BadSignature(KeyUsage),
    /// There is no master key, neither in the upload nor stored.
    #[error("no master key is available")]
    NoMasterKey,
    /// A public key is also the id of one of the user's devices.
    #[error("the {} key is the id of a device", .0.name())]
    IsDeviceId(KeyUsage),
    /// The user has a master key, the upload changes something, and they have not proved themselves.
    #[error("other keys are there already")]
    NeedsAuthentication,
    /// The store could not do it.
    #[error(transparent)]
    Failure(#[from] Failure),
}

/// Whether whoever uploads keys has proved anew who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proved {
    /// Only by an access token.
    No,
    /// By user-interactive authentication.
    Yes,
}

/// A user's cross-signing keys as a reader may see them, signatures included.
#[derive(Clone, Debug, Default)]
pub struct CrossSigningKeys {
    /// The master key.
    pub master: Option<Box<RawValue>>,
    /// The self-signing key.
    pub self_signing: Option<Box<RawValue>>,
    /// The user-signing key, for its owner only.
    pub user_signing: Option<Box<RawValue>>,
}

/// The cross-signing keys of users. Cheap to clone.
#[derive(Clone, Debug)]
pub struct CrossSigning {
    ground: Ground,
}

/// A key of the upload that has the right form.
struct Checked {
    row: CrossSigningKeyRow,
    object: Map<String, Value>,
}

impl Checked {
    /// Whether `stored` is the same key, signatures aside.
    fn is_same(&self, stored: &CrossSigningKeyRow) -> bool {
        let Ok(mut stored) = serde_json::from_str::<Map<String, Value>>(&stored.json) else {
            return false;
        };
        let mut object = self.object.clone();
        object.remove("signatures");
        stored.remove("signatures");
        object == stored
    }
}

impl CrossSigning {
    pub(crate) fn new(ground: Ground) -> Self {
        Self { ground }
    }

    /// Stores cross-signing keys. The same keys again change nothing, whatever signatures they come
    /// with: others are uploaded as signatures. Keys other than the stored ones need proof once
    /// there is a master key; that is decided on the very rows that the commit finds, so that of two
    /// first uploads at once only one passes without.
    pub async fn upload(
        &self,
        user: (UserNumber, &UserId),
        upload: &CrossSigningUpload,
        proved: Proved,
    ) -> Result<(), CrossSigningError> {
        let mut new = BTreeMap::new();
        for (usage, json) in upload.parts() {
            let checked = check(usage, json.get(), user.1)
                .map_err(|error| CrossSigningError::Invalid(usage, error))?;
            new.insert(usage, checked);
        }
        for _ in 0..MAX_ATTEMPTS {
            let stored = self.rows(user.0).await?;
            if proved == Proved::No && needs_proof(&new, &stored) {
                return Err(CrossSigningError::NeedsAuthentication);
            }
            check_signed_by_master(user.1, &new, &stored)?;
            let mut batch = Batch::new();
            let mut changed = false;
            let mut told = Told::Nothing;
            for usage in KeyUsage::ALL {
                let key = (user.0.0, usage.code());
                match stored.get(&usage) {
                    Some(old) => batch.assert_value(&CROSS_SIGNING_KEYS, &key, old),
                    None => batch.assert_absent(&CROSS_SIGNING_KEYS, &key),
                };
            }
            for (usage, checked) in &new {
                let key = (user.0.0, usage.code());
                let old = stored.get(usage);
                let device = (user.0.0, checked.row.public_key.clone());
                let device = self.ground.store.get(&DEVICES, &device).await;
                if device.map_err(Failure::from)?.is_some() {
                    return Err(CrossSigningError::IsDeviceId(*usage));
                }
                if !old.is_some_and(|old| checked.is_same(old)) {
                    batch.put(&CROSS_SIGNING_KEYS, &key, &checked.row);
                    changed = true;
                    if *usage != KeyUsage::UserSigning {
                        told = Told::CrossSigning;
                    }
                }
            }
            if !changed {
                return Ok(());
            }
            list_changed(&mut batch, user.0, told);
            if let Attempt::Done(_) = self.ground.attempt(batch).await? {
                return Ok(());
            }
        }
        Err(Failure::Busy.into())
    }

    /// Deletes a user's keys, as for an account that is closed. Signatures on them are left: they
    /// are shown with the keys only.
    pub async fn delete(&self, user: UserNumber) -> Result<(), Failure> {
        if self.rows(user).await?.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        for usage in KeyUsage::ALL {
            batch.delete(&CROSS_SIGNING_KEYS, &(user.0, usage.code()));
        }
        list_changed(&mut batch, user, Told::CrossSigning);
        self.ground.store.commit(batch).await?;
        Ok(())
    }

    /// A user's keys as `reader` may see them; all missing if the user has none.
    pub async fn keys(
        &self,
        owner: (UserNumber, &UserId),
        reader: (UserNumber, &UserId),
    ) -> Result<CrossSigningKeys, Failure> {
        let rows = self.rows(owner.0).await?;
        if rows.is_empty() {
            return Ok(CrossSigningKeys::default());
        }
        let signatures = crate::signature::visible(&self.ground, owner.0, reader.0).await?;
        let shown = |usage: KeyUsage| {
            let row = rows.get(&usage)?;
            let signed = signatures.on(&row.public_key);
            Some(with_signatures(&row.json, signed))
        };
        let is_own = owner.0 == reader.0;
        Ok(CrossSigningKeys {
            master: shown(KeyUsage::Master).transpose()?,
            self_signing: shown(KeyUsage::SelfSigning).transpose()?,
            user_signing: shown(KeyUsage::UserSigning)
                .filter(|_| is_own)
                .transpose()?,
        })
    }

    /// A user's keys as other servers may see them: with the user's own signatures, and without the
    /// user-signing key, which is nobody else's business.
    pub async fn public_keys(
        &self,
        owner: (UserNumber, &UserId),
    ) -> Result<CrossSigningKeys, Failure> {
        let keys = self.keys(owner, owner).await?;
        Ok(CrossSigningKeys {
            user_signing: None,
            ..keys
        })
    }

    /// Whether the user has a cross-signing key with this public half: no device may be called so,
    /// since signatures name devices and these keys alike.
    pub async fn has_key(&self, user: UserNumber, public_key: &str) -> Result<bool, Failure> {
        let rows = self.rows(user).await?;
        Ok(rows.values().any(|row| row.public_key == public_key))
    }

    async fn rows(
        &self,
        user: UserNumber,
    ) -> Result<BTreeMap<KeyUsage, CrossSigningKeyRow>, Failure> {
        let keys = KeyUsage::ALL.map(|usage| (user.0, usage.code()));
        let rows = self
            .ground
            .store
            .multi_get(&CROSS_SIGNING_KEYS, &keys)
            .await?;
        let pairs = KeyUsage::ALL.into_iter().zip(rows);
        Ok(pairs
            .filter_map(|(usage, row)| Some((usage, row?)))
            .collect())
    }
}

/// Not for a first master key, and not if every key of the upload is the stored one already.
fn needs_proof(
    new: &BTreeMap<KeyUsage, Checked>,
    stored: &BTreeMap<KeyUsage, CrossSigningKeyRow>,
) -> bool {
    let is_stored = |(usage, checked): (&KeyUsage, &Checked)| {
        let row = stored.get(usage);
        row.is_some_and(|row| checked.is_same(row))
    };
    stored.contains_key(&KeyUsage::Master) && !new.iter().all(is_stored)
}

/// The two lesser keys must be signed by the master key of the upload, or else the stored one.
fn check_signed_by_master(
    user: &UserId,
    new: &BTreeMap<KeyUsage, Checked>,
    stored: &BTreeMap<KeyUsage, CrossSigningKeyRow>,
) -> Result<(), CrossSigningError> {
    let master = new.get(&KeyUsage::Master).map(|checked| &checked.row);
    let master = master.or_else(|| stored.get(&KeyUsage::Master));
    let master = master.ok_or(CrossSigningError::NoMasterKey)?;
    for (usage, checked) in new {
        let signed = || verify::is_signed_by(&checked.object, user, &master.public_key);
        if *usage != KeyUsage::Master && !signed() {
            return Err(CrossSigningError::BadSignature(*usage));
        }
    }
    Ok(())
}

/// The rows of keys that another server tells of its user: the master key, and the self-signing key
/// if the master key signed it. `None` if what is there is not what it should be.
pub(crate) fn checked_public(
    user: &UserId,
    master: Option<&RawValue>,
    self_signing: Option<&RawValue>,
) -> Option<BTreeMap<KeyUsage, CrossSigningKeyRow>> {
    let mut rows = BTreeMap::new();
    let Some(master) = master else {
        return Some(rows);
    };
    let master = check(KeyUsage::Master, master.get(), user).ok()?.row;
    if let Some(key) = self_signing {
        let key = check(KeyUsage::SelfSigning, key.get(), user).ok()?;
        if !verify::is_signed_by(&key.object, user, &master.public_key) {
            return None;
        }
        rows.insert(KeyUsage::SelfSigning, key.row);
    }
    rows.insert(KeyUsage::Master, master);
    Some(rows)
}

/// Checks the form: this user's, of this usage, with one ed25519 key named by itself.
fn check(usage: KeyUsage, json: &str, user: &UserId) -> Result<Checked, InvalidKey> {
    if json.len() > MAX_CROSS_SIGNING_KEY {
        return Err(InvalidKey::TooLarge);
    }
    crate::keys::check_canonical(json)?;
    let mut object: Map<String, Value> =
        serde_json::from_str(json).map_err(|_| InvalidKey::Form)?;
    object.remove("unsigned");
    match object.get("user_id") {
        Some(Value::String(owner)) if owner == user.as_str() => {}
        Some(Value::String(_)) => return Err(InvalidKey::NotOwn),
        _ => return Err(InvalidKey::Property("user_id")),
    }
    let usages = object.get("usage").and_then(Value::as_array);
    let named = usages.is_some_and(|usages| usages.iter().any(|name| name == usage.name()));
    if !named {
        return Err(InvalidKey::Property("usage"));
    }
    let malformed = InvalidKey::Property("keys");
    let keys = object
        .get("keys")
        .and_then(Value::as_object)
        .ok_or(malformed)?;
    let mut keys = keys.iter();
    let (Some((name, Value::String(key))), None) = (keys.next(), keys.next()) else {
        return Err(malformed);
    };
    if name.strip_prefix("ed25519:") != Some(key) || !verify::is_public_key(key) {
        return Err(malformed);
    }
    if object.contains_key("signatures") {
        crate::keys::check_signatures(object.get("signatures"))?;
    }
    let public_key = key.clone();
    let row = CrossSigningKeyRow {
        public_key,
        json: Value::Object(object.clone()).to_string(),
    };
    Ok(Checked { row, object })
}

//! `/keys/signatures/upload`: each signature is checked and stored, or listed as failed.

use std::collections::BTreeMap;

use homeserver_storage::Batch;
use ruma::{DeviceId, OwnedUserId, UserId};
use serde_json::{Map, Value, value::RawValue};

use super::{CrossSigning, KeyUsage, MAX_CROSS_SIGNING_KEY, verify};
use crate::{
    Failure, UserNumber,
    device::number,
    device_list::{Told, list_changed},
    ground::{Attempt, MAX_ATTEMPTS},
    journal,
    keys::{MAX_DEVICE_KEYS, check_signatures},
    signature::SignatureRow,
    tables::{CROSS_SIGNING_KEYS, DEVICE_KEYS, DEVICES, SIGNATURES},
};

/// Signed objects of one upload.
pub const MAX_SIGNED_OBJECTS: usize = 100;

/// Signatures taken from one signed object; more are not looked at.
const MAX_SIGNATURES_OF_OBJECT: usize = 4;

/// Why the signatures on one key were not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureFailure {
    /// There is no such key, or none that this user may sign.
    #[error("no such key to sign")]
    NotFound,
    /// The signed object is not the stored key.
    #[error("the signed object differs from the stored key")]
    Mismatch,
    /// No signature by a key that may sign this one, or a wrong one.
    #[error("no valid signature by a key that may sign this one")]
    InvalidSignature,
    /// Not a JSON object with signatures, or too large.
    #[error("not a signed object")]
    Malformed,
    /// More than [`MAX_SIGNED_OBJECTS`] in one upload.
    #[error("too many signed objects at once")]
    TooMany,
}

/// Failures by user and key id; what is not listed was stored.
pub type SignatureFailures = BTreeMap<OwnedUserId, BTreeMap<String, SignatureFailure>>;

/// A key that is to be signed, and the keys that may sign it.
struct Target {
    json: String,
    /// (id of the signing key, its public key).
    signers: Vec<(String, String)>,
}

impl CrossSigning {
    /// Stores the signatures that `signer` made on keys, each on its own.
    pub async fn add_signatures(
        &self,
        signer: (UserNumber, &UserId),
        signed: &BTreeMap<OwnedUserId, BTreeMap<String, Box<RawValue>>>,
    ) -> Result<SignatureFailures, Failure> {
        for _ in 0..MAX_ATTEMPTS {
            let mut batch = Batch::new();
            let failures = self.judge(&mut batch, signer, signed).await?;
            if batch.appends() == 0 {
                return Ok(failures);
            }
            if let Attempt::Done(_) = self.ground.attempt(batch).await? {
                return Ok(failures);
            }
        }
        Err(Failure::Busy)
    }

    async fn judge(
        &self,
        batch: &mut Batch,
        signer: (UserNumber, &UserId),
        signed: &BTreeMap<OwnedUserId, BTreeMap<String, Box<RawValue>>>,
    ) -> Result<SignatureFailures, Failure> {
        let mut failures = SignatureFailures::new();
        let mut seen = 0;
        for (owner, objects) in signed {
            let mut any = None;
            let mut told = Vec::new();
            for (key_id, json) in objects {
                seen += 1;
                let outcome = if seen > MAX_SIGNED_OBJECTS {
                    Err(SignatureFailure::TooMany)
                } else {
                    self.add_one(batch, signer, owner, key_id, json.get())
                        .await?
                };
                match outcome {
                    Ok(number) => {
                        any = Some(number);
                        told.push(key_id.as_str());
                    }
                    Err(failure) => {
                        let of_owner = failures.entry(owner.clone()).or_default();
                        of_owner.insert(key_id.clone(), failure);
                    }
                }
            }
            match any {
                Some(owner) if owner == signer.0 => {
                    let own = self.rows(owner).await?;
                    let master = own
                        .get(&KeyUsage::Master)
                        .map(|row| row.public_key.as_str());
                    for key_id in told {
                        let what = if Some(key_id) == master {
                            Told::CrossSigning
                        } else {
                            Told::Device(key_id)
                        };
                        list_changed(batch, owner, what);
                    }
                }
                Some(owner) => {
                    let entry = journal::entry(journal::SIGNATURE_ADDED, &[signer.0.0, owner.0]);
                    batch.append(&entry, &[journal::user(signer.0)]);
                }
                None => {}
            }
        }
        Ok(failures)
    }

    /// Adds the valid signatures of one object to the batch; gives the owner of the key.
    async fn add_one(
        &self,
        batch: &mut Batch,
        signer: (UserNumber, &UserId),
        owner: &UserId,
        key_id: &str,
        json: &str,
    ) -> Result<Result<UserNumber, SignatureFailure>, Failure> {
        if json.len() > MAX_CROSS_SIGNING_KEY.max(MAX_DEVICE_KEYS) {
            return Ok(Err(SignatureFailure::Malformed));
        }
        let Ok(object) = serde_json::from_str::<Map<String, Value>>(json) else {
            return Ok(Err(SignatureFailure::Malformed));
        };
        let Ok(signatures) = check_signatures(object.get("signatures")) else {
            return Ok(Err(SignatureFailure::Malformed));
        };
        let Some(number) = self.ground.known_user_number(owner).await? else {
            return Ok(Err(SignatureFailure::NotFound));
        };
        let Some(target) = self.target(batch, signer, number, key_id).await? else {
            return Ok(Err(SignatureFailure::NotFound));
        };
        if !same_but_signatures(&object, &target.json) {
            return Ok(Err(SignatureFailure::Mismatch));
        }
        let own = signatures.get(signer.1.as_str()).and_then(Value::as_object);
        let mut valid = Vec::new();
        for (name, signature) in own.into_iter().flatten().take(MAX_SIGNATURES_OF_OBJECT) {
            let by = target
                .signers
                .iter()
                .find(|(id, _)| name.strip_prefix("ed25519:") == Some(id));
            let Some(((id, public_key), signature)) = by.zip(signature.as_str()) else {
                continue;
            };
            if !verify::is_signed_with(&object, signer.1, id, public_key) {
                return Ok(Err(SignatureFailure::InvalidSignature));
            }
            valid.push((name.clone(), SignatureRow(signature.to_owned())));
        }
        if valid.is_empty() {
            return Ok(Err(SignatureFailure::InvalidSignature));
        }
        for (name, row) in valid {
            let key = (number.0, signer.0.0, key_id.to_owned(), name);
            batch.put(&SIGNATURES, &key, &row);
        }
        Ok(Ok(number))
    }

    /// The key that `key_id` names, and who of the signer's keys may sign it. The batch asserts
    /// that it is still that key.
    async fn target(
        &self,
        batch: &mut Batch,
        signer: (UserNumber, &UserId),
        owner: UserNumber,
        key_id: &str,
    ) -> Result<Option<Target>, Failure> {
        let own_keys = self.rows(signer.0).await?;
        let by = |usage: KeyUsage| {
            let row = own_keys.get(&usage)?;
            Some((row.public_key.clone(), row.public_key.clone()))
        };
        if owner != signer.0 {
            let master = self.rows(owner).await?.remove(&KeyUsage::Master);
            let Some(master) = master.filter(|master| master.public_key == key_id) else {
                return Ok(None);
            };
            batch.assert_value(
                &CROSS_SIGNING_KEYS,
                &(owner.0, KeyUsage::Master.code()),
                &master,
            );
            let signers = by(KeyUsage::UserSigning).into_iter().collect();
            return Ok(Some(Target {
                json: master.json,
                signers,
            }));
        }
        if let Some(master) = own_keys.get(&KeyUsage::Master)
            && master.public_key == key_id
        {
            batch.assert_value(
                &CROSS_SIGNING_KEYS,
                &(owner.0, KeyUsage::Master.code()),
                master,
            );
            let signers = self.signing_devices(owner).await?;
            return Ok(Some(Target {
                json: master.json.clone(),
                signers,
            }));
        }
        let device = (owner.0, <&DeviceId>::from(key_id).to_string());
        let Some(row) = self.ground.store.get(&DEVICES, &device).await? else {
            return Ok(None);
        };
        let number = number(&row).0;
        let Some(keys) = self.ground.store.get(&DEVICE_KEYS, &number).await? else {
            return Ok(None);
        };
        batch.assert_value(&DEVICE_KEYS, &number, &keys);
        let signers = by(KeyUsage::SelfSigning).into_iter().collect();
        Ok(Some(Target {
            json: keys.0,
            signers,
        }))
    }

    /// The user's devices with their signing keys.
    async fn signing_devices(&self, user: UserNumber) -> Result<Vec<(String, String)>, Failure> {
        let devices = self
            .ground
            .scan_prefix(&DEVICES, &user.0, crate::device::MAX_DEVICES)
            .await?;
        let numbers: Vec<u64> = devices.iter().map(|(_, row)| number(row).0).collect();
        let keys = self.ground.store.multi_get(&DEVICE_KEYS, &numbers).await?;
        let mut signing = Vec::new();
        for (((_, id), _), keys) in devices.into_iter().zip(keys) {
            let object = keys.and_then(|keys| serde_json::from_str::<Value>(&keys.0).ok());
            let name = format!("ed25519:{id}");
            let key = object
                .as_ref()
                .and_then(|object| object["keys"][&name].as_str());
            if let Some(key) = key {
                signing.push((id, key.to_owned()));
            }
        }
        Ok(signing)
    }
}

/// Whether a signed object is the stored key, apart from signatures and `unsigned`.
fn same_but_signatures(signed: &Map<String, Value>, stored: &str) -> bool {
    let Ok(mut stored) = serde_json::from_str::<Map<String, Value>>(stored) else {
        return false;
    };
    let mut signed = signed.clone();
    for object in [&mut signed, &mut stored] {
        object.remove("signatures");
        object.remove("unsigned");
    }
    signed == stored
}

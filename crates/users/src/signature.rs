//! Stored signatures on keys: who signed which key of whom, and who may see it.

use std::collections::BTreeMap;

use homeserver_storage::Batch;

use crate::{Failure, UserNumber, ground::Ground, tables::SIGNATURES};

/// Signatures of one signer on one user's keys that are read at once.
pub(crate) const MAX_SIGNATURES: usize = 10_000;

/// Key of `SIGNATURES`: target user, signer, id of the target key, id of the signing key.
pub(crate) type SignatureKey = (u64, u64, String, String);

/// Signatures on a user's keys: id of the key → signer's user id → id of the signing key →
/// signature.
#[derive(Debug, Default)]
pub(crate) struct Visible(BTreeMap<String, OnOneKey>);

/// Signer's user id → id of the signing key (`ed25519:…`) → signature.
pub(crate) type OnOneKey = BTreeMap<String, BTreeMap<String, String>>;

impl Visible {
    /// The signatures on one key: a device id or a public key.
    pub(crate) fn on(&self, key_id: &str) -> Option<&OnOneKey> {
        self.0.get(key_id)
    }
}

/// The signatures on `owner`'s keys that `reader` may see: the owner's and the reader's own.
pub(crate) async fn visible(
    ground: &Ground,
    owner: UserNumber,
    reader: UserNumber,
) -> Result<Visible, Failure> {
    let mut visible = Visible::default();
    let signers = if owner == reader {
        vec![owner]
    } else {
        vec![owner, reader]
    };
    for signer in signers {
        let prefix = (owner.0, signer.0);
        let rows = ground
            .scan_prefix(&SIGNATURES, &prefix, MAX_SIGNATURES)
            .await?;
        if rows.is_empty() {
            continue;
        }
        let name = ground
            .user_id(signer)
            .await?
            .ok_or(Failure::Damaged("signature"))?;
        for ((_, _, target, signing), signature) in rows {
            let of_signer = visible.0.entry(target).or_default();
            of_signer
                .entry(name.to_string())
                .or_default()
                .insert(signing, signature.0);
        }
    }
    Ok(visible)
}

/// Deletes, in `batch`, what the owner signed about one of their own keys.
pub(crate) async fn delete_own(
    ground: &Ground,
    batch: &mut Batch,
    owner: UserNumber,
    key_id: &str,
) -> Result<(), Failure> {
    let prefix = (owner.0, owner.0, key_id.to_owned());
    for (key, _) in ground
        .scan_prefix(&SIGNATURES, &prefix, MAX_OWN_SIGNATURES)
        .await?
    {
        batch.delete(&SIGNATURES, &key);
    }
    Ok(())
}

/// Signatures of the owner on one own key: by the self-signing key, and its predecessors.
const MAX_OWN_SIGNATURES: usize = 10;

/// Row of `SIGNATURES`: the signature in unpadded base64.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct SignatureRow(pub(crate) String);
homeserver_storage::row!(SignatureRow, 1);

//! Checks of ed25519 signatures on JSON objects, as the appendix "Signing JSON" defines them.

use homeserver_events::{Strictness, VerifyKey, canonical::parse_object, verify_json};
use ruma::UserId;
use serde_json::{Map, Value};

/// Whether `object` carries a valid signature of `user` by the cross-signing key `public_key`,
/// whose id is the key itself.
pub(super) fn is_signed_by(object: &Map<String, Value>, user: &UserId, public_key: &str) -> bool {
    is_signed_with(object, user, public_key, public_key)
}

/// Whether `object` carries a valid signature of `user` under `ed25519:{key_id}` by `public_key`.
pub(super) fn is_signed_with(
    object: &Map<String, Value>,
    user: &UserId,
    key_id: &str,
    public_key: &str,
) -> bool {
    let Ok(key) = VerifyKey::from_base64(public_key) else {
        return false;
    };
    let Ok(text) = serde_json::to_vec(object) else {
        return false;
    };
    let Ok(canonical) = parse_object(&text, Strictness::Strict) else {
        return false;
    };
    let wanted = format!("ed25519:{key_id}");
    verify_json(&canonical, user.as_str(), &|id| {
        (id == wanted).then_some(key)
    })
    .is_ok()
}

/// Whether a text is the unpadded base64 of an acceptable ed25519 public key.
pub(super) fn is_public_key(text: &str) -> bool {
    VerifyKey::from_base64(text).is_ok_and(|key| key.to_base64() == text)
}

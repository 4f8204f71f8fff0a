//! Rule 5.4.1: an invitation that fulfils a third-party invite, vouched for by the signature of the
//! identity server.

use ruma::UserId;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::state::{Membership, State};
use super::{AuthError, ensure};
use crate::canonical::{self, CanonicalObject, CanonicalValue};
use crate::keys::VerifyKey;
use crate::pdu::Pdu;
use crate::rules::Rules;
use crate::signatures::signed_text;

/// How many public keys of one third-party invite are tried, and how many signatures: real ones
/// have one or two of each.
const MAX_KEYS: usize = 16;
const MAX_SIGNATURES: usize = 16;

pub(super) fn check(
    event: &Pdu,
    target: &UserId,
    invite: &RawValue,
    state: &State<'_>,
) -> Result<(), AuthError> {
    ensure(
        state.membership(target) != Membership::Ban,
        "the invited user is banned",
    )?;
    let signed = signed_block(invite, state.rules).ok_or(AuthError::Refused(
        "the third-party invite has no signed block",
    ))?;
    let field = |name: &str| signed.get(name).and_then(CanonicalValue::as_str);
    let (Some(user), Some(token)) = (field("mxid"), field("token")) else {
        return Err(AuthError::Refused(
            "the third-party invite has no mxid or token",
        ));
    };
    ensure(user == target, "the third-party invite is for another user")?;
    let offer = state.third_party_invite(token).ok_or(AuthError::Refused(
        "there is no third-party invite with this token",
    ))?;
    ensure(
        event.sender() == offer.sender(),
        "the third-party invite was sent by another user",
    )?;
    ensure(
        is_signed(&signed, &public_keys(&offer)),
        "the third-party invite is not signed",
    )
}

/// `signed` of a `third_party_invite` property.
fn signed_block(invite: &RawValue, rules: &Rules) -> Option<CanonicalObject> {
    let mut invite = canonical::parse_object(invite.get().as_bytes(), rules.strictness).ok()?;
    match invite.remove("signed") {
        Some(CanonicalValue::Object(signed)) => Some(signed),
        _ => None,
    }
}

/// The token that the auth event of such an invitation has as its state key.
pub(super) fn token(invite: &RawValue, rules: &Rules) -> Option<String> {
    let signed = signed_block(invite, rules)?;
    signed
        .get("token")
        .and_then(CanonicalValue::as_str)
        .map(str::to_owned)
}

/// A public key of a third-party invite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferedKey {
    /// As the event spells it.
    pub public_key: String,
    /// Where one may ask whether it still holds; without one it holds for good.
    pub validity_url: Option<String>,
}

/// The keys of an `m.room.third_party_invite` event that signed this block (`signed` of a
/// `third_party_invite` property); none if none did.
pub fn proving_keys(offer: &Pdu, signed: &RawValue) -> Vec<OfferedKey> {
    let strictness = offer.rules().strictness;
    let Ok(signed) = canonical::parse_object(signed.get().as_bytes(), strictness) else {
        return Vec::new();
    };
    let mut keys = offered(offer);
    keys.truncate(MAX_KEYS);
    keys.retain(|key| {
        VerifyKey::from_base64(&key.public_key).is_ok_and(|key| is_signed(&signed, &[key]))
    });
    keys
}

/// `public_key` and `public_keys` of an `m.room.third_party_invite` event; unusable ones are passed
/// over.
fn public_keys(offer: &Pdu) -> Vec<VerifyKey> {
    let keys = offered(offer).into_iter().take(MAX_KEYS);
    keys.filter_map(|key| VerifyKey::from_base64(&key.public_key).ok())
        .collect()
}

/// The keys of an `m.room.third_party_invite` event, as far as they are text.
fn offered(offer: &Pdu) -> Vec<OfferedKey> {
    #[derive(Deserialize)]
    struct Content<'a> {
        #[serde(borrow)]
        public_key: Option<&'a RawValue>,
        #[serde(borrow)]
        key_validity_url: Option<&'a RawValue>,
        #[serde(borrow)]
        public_keys: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct Listed<'a> {
        #[serde(borrow)]
        public_key: Option<&'a RawValue>,
        #[serde(borrow)]
        key_validity_url: Option<&'a RawValue>,
    }
    let Ok(content) = offer.content_as::<Content<'_>>() else {
        return Vec::new();
    };
    let listed: Vec<Listed<'_>> = content
        .public_keys
        .and_then(|list| serde_json::from_str(list.get()).ok())
        .unwrap_or_default();
    let first = Listed {
        public_key: content.public_key,
        key_validity_url: content.key_validity_url,
    };
    let text = |value: &RawValue| serde_json::from_str::<String>(value.get()).ok();
    let read = |listed: Listed<'_>| {
        Some(OfferedKey {
            public_key: text(listed.public_key?)?,
            validity_url: listed.key_validity_url.and_then(text),
        })
    };
    let all = std::iter::once(first).chain(listed);
    all.filter_map(read).collect()
}

/// Whether any signature in the block, whoever's, is by any of these keys.
fn is_signed(signed: &CanonicalObject, keys: &[VerifyKey]) -> bool {
    let text = signed_text(signed);
    let entities = signed.get("signatures").and_then(CanonicalValue::as_object);
    entities
        .into_iter()
        .flat_map(CanonicalObject::values)
        .filter_map(CanonicalValue::as_object)
        .flatten()
        .filter(|(key_id, _)| key_id.starts_with("ed25519:"))
        .filter_map(|(_, signature)| signature.as_str())
        .take(MAX_SIGNATURES)
        .any(|signature| {
            keys.iter()
                .any(|key| key.verifies(text.as_bytes(), signature))
        })
}

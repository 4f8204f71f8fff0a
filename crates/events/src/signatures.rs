//! Signatures on JSON objects and on events, and which servers must have signed an event
//! ([appendices, signing JSON][1]; [Validating hashes and signatures on received events][2]).
//!
//! Fetching keys is not done here: a [`KeySource`] gives what is known. How long a published key may
//! be believed (at most seven days ahead) needs a clock and is the key ring's task.
//!
//! [1]: https://spec.matrix.org/v1.19/appendices/#signing-json
//! [2]: https://spec.matrix.org/v1.19/server-server-api/#validating-hashes-and-signatures-on-received-events

use ruma::{OwnedServerName, ServerName, UserId};

use crate::canonical::{CanonicalError, CanonicalObject, CanonicalValue, to_string_without};
use crate::hash::content_hash_matches;
use crate::keys::{SigningKey, VerifyKey};
use crate::pdu::{Pdu, PduError};
use crate::redaction::redact_object;
use crate::rules::Rules;

/// Until when a published key may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyLifetime {
    /// The server publishes it as current, and the key ring believes that until this time
    /// (milliseconds since 1970): the lesser of `valid_until_ts` and seven days ahead.
    ValidUntil(u64),
    /// The server publishes it as an old key that expired at this time.
    ExpiredAt(u64),
}

/// A server's public key as it was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishedKey {
    /// The key.
    pub key: VerifyKey,
    /// Until when it may be used.
    pub lifetime: KeyLifetime,
}

impl PublishedKey {
    /// Whether the key may vouch for an event of this time. An old key counts for events from
    /// before it expired in every room version; the end of a current key only where the room
    /// version enforces it.
    fn covers(&self, origin_server_ts: u64, rules: &Rules) -> bool {
        match self.lifetime {
            KeyLifetime::ExpiredAt(expired) => expired >= origin_server_ts,
            KeyLifetime::ValidUntil(until) => {
                !rules.enforces_key_validity || until >= origin_server_ts
            }
        }
    }
}

/// The public keys that are known.
pub trait KeySource {
    /// The key of this server with this id (`ed25519:…`), if it is known.
    fn key(&self, server: &ServerName, key_id: &str) -> Option<PublishedKey>;
}

impl<F: Fn(&ServerName, &str) -> Option<PublishedKey>> KeySource for F {
    fn key(&self, server: &ServerName, key_id: &str) -> Option<PublishedKey> {
        self(server, key_id)
    }
}

/// What a verified event may be used as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verified {
    /// Signatures and content hash hold.
    All,
    /// The signatures hold, the content hash does not: the event goes on as this redacted copy.
    HashMismatch(Pdu),
}

/// Why a signature check failed. Such an event is dropped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The object has no signature of this entity by a key that is known and may be used.
    #[error("no signature of {0} by a known and valid key")]
    NoUsableSignature(String),
    /// A signature by a known key is wrong.
    #[error("a signature of {0} is wrong")]
    WrongSignature(String),
    /// The servers that must have signed cannot be read from the event.
    #[error("the event does not name the servers that must sign it")]
    UnknownSigner,
    /// The event is not canonical JSON of its room version.
    #[error("the event is not acceptable JSON")]
    Json(#[from] CanonicalError),
    /// The redacted copy of the event has a wrong form.
    #[error("the redacted event has a wrong form")]
    Redacted(#[source] PduError),
}

/// The text that a signature covers.
pub(crate) fn signed_text(object: &CanonicalObject) -> String {
    to_string_without(object, &["signatures", "unsigned"])
}

/// Adds a signature beside those that are there. What is not a map there is replaced.
pub(crate) fn insert_signature(
    object: &mut CanonicalObject,
    entity: &str,
    key_id: &str,
    signature: String,
) {
    let mut signatures = take_map(object, "signatures");
    let mut of_entity = take_map(&mut signatures, entity);
    of_entity.insert(key_id.to_owned(), signature.into());
    signatures.insert(entity.to_owned(), CanonicalValue::Object(of_entity));
    object.insert("signatures".to_owned(), CanonicalValue::Object(signatures));
}

fn take_map(object: &mut CanonicalObject, key: &str) -> CanonicalObject {
    match object.remove(key) {
        Some(CanonicalValue::Object(map)) => map,
        _ => CanonicalObject::new(),
    }
}

/// Signs an object of this server's own making (keys, requests, invitations' `signed` blocks) as
/// this entity. For events use [`crate::Draft::seal`].
pub fn sign_json(object: &mut CanonicalObject, entity: &str, key: &SigningKey) {
    let signature = key.sign(signed_text(object).as_bytes());
    insert_signature(object, entity, key.id().as_str(), signature);
}

/// Checks that an object is signed by this entity: by at least one of the keys that `key` knows,
/// and wrongly by none of them. Signatures by unknown keys are passed over.
pub fn verify_json(
    object: &CanonicalObject,
    entity: &str,
    key: &dyn Fn(&str) -> Option<VerifyKey>,
) -> Result<(), VerifyError> {
    let signatures = signatures_of(object, entity);
    let mut text = None;
    for (key_id, signature) in signatures {
        let Some(key) = key(key_id) else { continue };
        let text = text.get_or_insert_with(|| signed_text(object));
        let valid = signature
            .as_str()
            .is_some_and(|signature| key.verifies(text.as_bytes(), signature));
        if !valid {
            return Err(VerifyError::WrongSignature(entity.to_owned()));
        }
    }
    match text {
        Some(_) => Ok(()),
        None => Err(VerifyError::NoUsableSignature(entity.to_owned())),
    }
}

/// The signatures of an entity by key id; none if the object has no well-formed ones.
fn signatures_of<'a>(
    object: &'a CanonicalObject,
    entity: &str,
) -> impl Iterator<Item = (&'a String, &'a CanonicalValue)> {
    object
        .get("signatures")
        .and_then(CanonicalValue::as_object)
        .and_then(|signatures| signatures.get(entity))
        .and_then(CanonicalValue::as_object)
        .into_iter()
        .flatten()
}

/// The servers that must have signed an event, in order and without repetition.
///
/// The sender's server, except for an invitation that fulfils a third-party invite; in room
/// versions 1 and 2 the server in the event id; from version 8 on the server of
/// `join_authorised_via_users_server`.
pub fn required_servers(event: &Pdu, rules: &Rules) -> Result<Vec<OwnedServerName>, VerifyError> {
    let object = event.to_object()?;
    required_servers_of(event, &object, rules)
}

/// The keys that decide about an event's signatures: of each server that must have signed, the ids
/// of those that it claims to have signed with; none where it did not sign.
pub fn claimed_keys(
    event: &Pdu,
    rules: &Rules,
) -> Result<Vec<(OwnedServerName, Vec<String>)>, VerifyError> {
    claimed_keys_in(event, &event.to_object()?, rules)
}

/// Like [`claimed_keys`], with the object that the event was read from.
pub fn claimed_keys_in(
    event: &Pdu,
    object: &CanonicalObject,
    rules: &Rules,
) -> Result<Vec<(OwnedServerName, Vec<String>)>, VerifyError> {
    let servers = required_servers_of(event, object, rules)?;
    let claimed = servers.into_iter().map(|server| {
        let ids = signatures_of(object, server.as_str()).map(|(id, _)| id.clone());
        let ids = ids.collect();
        (server, ids)
    });
    Ok(claimed.collect())
}

fn required_servers_of(
    event: &Pdu,
    object: &CanonicalObject,
    rules: &Rules,
) -> Result<Vec<OwnedServerName>, VerifyError> {
    let mut servers = Vec::with_capacity(2);
    let empty = CanonicalObject::new();
    let content = object
        .get("content")
        .and_then(CanonicalValue::as_object)
        .unwrap_or(&empty);
    let is_member = event.event_type() == "m.room.member";
    let membership = content.get("membership").and_then(CanonicalValue::as_str);
    let is_third_party_invite =
        is_member && membership == Some("invite") && content.contains_key("third_party_invite");
    if !is_third_party_invite {
        servers.push(event.sender().server_name().to_owned());
    }
    if rules.event_id_server_signs {
        let server = event
            .event_id()
            .server_name()
            .ok_or(VerifyError::UnknownSigner)?;
        servers.push(server.to_owned());
    }
    if rules.restricted_joins
        && is_member
        && let Some(user) = content.get("join_authorised_via_users_server")
    {
        let user = user
            .as_str()
            .and_then(|user| <&UserId>::try_from(user).ok());
        let user = user.ok_or(VerifyError::UnknownSigner)?;
        servers.push(user.server_name().to_owned());
    }
    servers.sort();
    servers.dedup();
    Ok(servers)
}

/// Checks the signatures of every required server, then the content hash.
///
/// If the hash does not match, the redacted copy must stand on its own: a redaction may remove the
/// `third_party_invite` that excused the sender's server from signing, so what the copy requires is
/// checked as well. Otherwise anybody could forge invitations by breaking their hash.
pub fn verify_event(
    event: &Pdu,
    rules: &'static Rules,
    keys: &dyn KeySource,
) -> Result<Verified, VerifyError> {
    verify_event_in(event, &event.to_object()?, rules, keys)
}

/// Like [`verify_event`], with the object that the event was read from.
pub fn verify_event_in(
    event: &Pdu,
    object: &CanonicalObject,
    rules: &'static Rules,
    keys: &dyn KeySource,
) -> Result<Verified, VerifyError> {
    let redacted = redact_object(object, rules);
    let verify = |servers: Vec<OwnedServerName>| {
        servers.into_iter().try_for_each(|server| {
            verify_json(&redacted, server.as_str(), &|key_id| {
                let published = keys.key(&server, key_id)?;
                published
                    .covers(event.origin_server_ts(), rules)
                    .then_some(published.key)
            })
        })
    };
    verify(required_servers_of(event, object, rules)?)?;
    if content_hash_matches(object) {
        return Ok(Verified::All);
    }
    verify(required_servers_of(event, &redacted, rules)?)?;
    let json = crate::canonical::to_string(&redacted);
    let copy = Pdu::from_stored(json.as_bytes(), event.event_id().to_owned(), rules);
    copy.map(Verified::HashMismatch)
        .map_err(VerifyError::Redacted)
}

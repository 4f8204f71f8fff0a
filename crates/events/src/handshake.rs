//! Membership events that one server hands to another to be let in: what such an event must be
//! before this server adds its signature.
//!
//! Adding a signature to what a peer sends is only done here, after every field has been checked.
//! Whether the room allows the event, and the signatures that are on it, are checked elsewhere.
//!
//! Specification: server-server API, "Joining Rooms", "Knocking upon a room", "Inviting to a room",
//! "Leaving Rooms".

use ruma::{EventId, RoomId, ServerName, UserId};
use serde::Deserialize;

use crate::canonical::{self, CanonicalError, CanonicalObject, CanonicalValue};
use crate::hash::content_hash_matches;
use crate::keys::{SigningKey, VerifyKey};
use crate::limits::MAX_PDU_BYTES;
use crate::pdu::{Pdu, PduError};
use crate::redaction::redact_object;
use crate::signatures::{insert_signature, signed_text, verify_json};

/// A step of a protocol in which a server hands over a membership event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// `send_join`.
    Join,
    /// `send_leave`.
    Leave,
    /// `send_knock`.
    Knock,
    /// `invite`.
    Invite,
}

impl Step {
    /// The membership that the event of this step states.
    pub const fn membership(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Leave => "leave",
            Self::Knock => "knock",
            Self::Invite => "invite",
        }
    }
}

/// What the event of a step has to be.
#[derive(Clone, Copy, Debug)]
pub struct Handshake<'a> {
    /// The step.
    pub step: Step,
    /// The room that the request names.
    pub room: &'a RoomId,
    /// The event that the request names.
    pub event: &'a EventId,
    /// The server that hands it over, as the ids of its users spell it.
    pub origin: &'a ServerName,
    /// This server.
    pub own: &'a ServerName,
}

/// What is wrong with the event of a step. `M_INVALID_PARAM`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTheStep {
    /// It is of another room than the request names.
    #[error("the event is of another room than the path says")]
    Room,
    /// It has another id than the request names.
    #[error("the event has another id than the path says")]
    EventId,
    /// It is no membership event, or one with another membership.
    #[error("the event is not the membership event that this endpoint takes")]
    Membership,
    /// Its sender is not a user of the server that hands it over.
    #[error("the sender is not a user of the requesting server")]
    Sender,
    /// Its state key is not the user whose membership may change in this step.
    #[error("the state key is not the user whom this endpoint is about")]
    StateKey,
    /// Its content is not what its hash says.
    #[error("the content hash of the event does not match")]
    Hash,
}

/// Why no signature was added to an event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CoSignError {
    /// It is not the event of the step.
    #[error(transparent)]
    NotTheStep(#[from] NotTheStep),
    /// It is not acceptable JSON.
    #[error("the event is not acceptable JSON")]
    Json(#[from] CanonicalError),
    /// With the signature it would be no event.
    #[error("the event with its signatures is no event")]
    Form(#[from] PduError),
    /// The answered event is another one.
    #[error("the answer is another event than was sent")]
    OtherEvent,
    /// The answered event lacks the signature that was asked for.
    #[error("the answer is not signed by the server that was asked")]
    NotSigned,
}

impl Handshake<'_> {
    /// Whether this is the event of the step, in all its fields but the signatures.
    ///
    /// # Errors
    /// When it is not, with the first field that differs.
    pub fn check(&self, event: &Pdu) -> Result<(), NotTheStep> {
        if event.room_id() != self.room {
            return Err(NotTheStep::Room);
        }
        if event.event_id() != self.event {
            return Err(NotTheStep::EventId);
        }
        if event.event_type() != "m.room.member" || membership(event) != Some(self.step) {
            return Err(NotTheStep::Membership);
        }
        if event.sender().server_name() != self.origin {
            return Err(NotTheStep::Sender);
        }
        let target = event.state_key().and_then(|key| UserId::parse(key).ok());
        let target = target.ok_or(NotTheStep::StateKey)?;
        let fits = match self.step {
            Step::Invite => target.server_name() == self.own,
            Step::Join | Step::Leave | Step::Knock => target == event.sender(),
        };
        if fits {
            Ok(())
        } else {
            Err(NotTheStep::StateKey)
        }
    }

    /// The event with the signature of this server beside those that are there, if it is the event
    /// of the step and its content is what its hash says.
    ///
    /// # Errors
    /// When it is not that event, or would be too large.
    pub fn co_sign(&self, event: &Pdu, key: &SigningKey) -> Result<Pdu, CoSignError> {
        self.check(event)?;
        let mut object = event.to_object()?;
        if !content_hash_matches(&object) {
            return Err(NotTheStep::Hash.into());
        }
        let text = signed_text(&redact_object(&object, event.rules()));
        let signature = key.sign(text.as_bytes());
        insert_signature(&mut object, self.own.as_str(), key.id().as_str(), signature);
        assembled(event, &object)
    }
}

/// `own` with the signatures that `server` added in `theirs`, of which nothing else is taken.
///
/// # Errors
/// When the other is not the same event, or not signed by that server. Whether its signatures are
/// right is not checked here.
pub fn with_signatures_of(
    own: &Pdu,
    theirs: &Pdu,
    server: &ServerName,
) -> Result<Pdu, CoSignError> {
    if own.event_id() != theirs.event_id() || own.room_id() != theirs.room_id() {
        return Err(CoSignError::OtherEvent);
    }
    let theirs = theirs.to_object()?;
    let signatures = theirs
        .get("signatures")
        .and_then(CanonicalValue::as_object)
        .and_then(|signatures| signatures.get(server.as_str()))
        .and_then(CanonicalValue::as_object)
        .filter(|signatures| !signatures.is_empty())
        .ok_or(CoSignError::NotSigned)?;
    let mut object = own.to_object()?;
    for (key, signature) in signatures {
        let signature = signature.as_str().unwrap_or_default().to_owned();
        insert_signature(&mut object, server.as_str(), key, signature);
    }
    assembled(own, &object)
}

/// Whether this server sends an event of another server's user on to the rest of its room: a join,
/// leave or knock that came to it in a handshake, or an invite that fulfils a third-party invite of
/// that user, which it signed. `key` gives the public keys of this server by their ids: what others
/// write in its name does not count.
pub fn relays(event: &Pdu, own: &ServerName, key: &dyn Fn(&str) -> Option<VerifyKey>) -> bool {
    let is_step = || {
        event.event_type() == "m.room.member"
            && event.state_key() == Some(event.sender().as_str())
            && matches!(
                membership(event),
                Some(Step::Join | Step::Leave | Step::Knock)
            )
    };
    let signed = || {
        let object = event.to_object().ok();
        let redacted = object.map(|object| redact_object(&object, event.rules()));
        redacted.is_some_and(|redacted| verify_json(&redacted, own.as_str(), key).is_ok())
    };
    event.sender().server_name() != own
        && (is_step() || fulfils_third_party_invite(event))
        && signed()
}

/// Whether an event is an invite that fulfils a third-party invite. Any server in the room may make
/// one in the name of the user who sent the third-party invite.
pub fn fulfils_third_party_invite(event: &Pdu) -> bool {
    #[derive(Deserialize)]
    struct Content<'a> {
        #[serde(borrow)]
        third_party_invite: Option<&'a serde_json::value::RawValue>,
    }
    event.event_type() == "m.room.member"
        && membership(event) == Some(Step::Invite)
        && event
            .content_as::<Content<'_>>()
            .is_ok_and(|content| content.third_party_invite.is_some())
}

/// The step whose event states the membership that this event does.
fn membership(event: &Pdu) -> Option<Step> {
    #[derive(Deserialize)]
    struct Content {
        membership: String,
    }
    let content: Content = event.content_as().ok()?;
    [Step::Join, Step::Leave, Step::Knock, Step::Invite]
        .into_iter()
        .find(|step| step.membership() == content.membership)
}

/// The same event with other signatures.
fn assembled(event: &Pdu, object: &CanonicalObject) -> Result<Pdu, CoSignError> {
    let json = canonical::to_string(object);
    if json.len() > MAX_PDU_BYTES {
        return Err(PduError::TooLarge.into());
    }
    let id = event.event_id().to_owned();
    Ok(Pdu::from_stored(json.as_bytes(), id, event.rules())?)
}

#[cfg(test)]
mod tests {
    use ruma::{OwnedRoomId, OwnedUserId, server_name};
    use serde_json::{json, value::to_raw_value};

    use super::*;
    use crate::{Draft, RoomVersion};

    fn here() -> &'static ServerName {
        server_name!("here.example")
    }

    fn key(version: &str, seed: u8) -> SigningKey {
        SigningKey::from_seed(version, &[seed; 32]).unwrap()
    }

    /// A membership of a user of another server, signed by that server alone.
    fn theirs(membership: &str) -> Pdu {
        let user = OwnedUserId::try_from("@zed:there.example").unwrap();
        let draft = Draft {
            room_id: Some(OwnedRoomId::try_from("!r:here.example").unwrap()),
            event_type: "m.room.member".to_owned(),
            state_key: Some(user.to_string()),
            sender: user,
            content: to_raw_value(&json!({ "membership": membership })).unwrap(),
            origin_server_ts: 1,
            prev_events: Vec::new(),
            auth_events: Vec::new(),
            depth: 1,
            redacts: None,
        };
        let rules = RoomVersion::V11.rules();
        let there = server_name!("there.example");
        draft.seal(rules, there, &key("far", 9)).unwrap()
    }

    fn co_signed(event: &Pdu, step: Step, key: &SigningKey) -> Pdu {
        let handshake = Handshake {
            step,
            room: event.room_id(),
            event: event.event_id(),
            origin: event.sender().server_name(),
            own: here(),
        };
        handshake.co_sign(event, key).unwrap()
    }

    /// The event with something that claims to be a signature of this server.
    fn claims(event: &Pdu, id: &str, signature: &str) -> Pdu {
        let mut object = event.to_object().unwrap();
        insert_signature(&mut object, here().as_str(), id, signature.to_owned());
        assembled(event, &object).unwrap()
    }

    #[test]
    fn what_this_server_signed_is_sent_on_and_what_claims_so_is_not() {
        let (now, before) = (key("now", 1), key("before", 2));
        let own = |id: &str| match id {
            "ed25519:now" => Some(now.verify_key()),
            "ed25519:before" => Some(before.verify_key()),
            _ => None,
        };
        for step in [Step::Join, Step::Leave, Step::Knock] {
            let event = theirs(step.membership());
            assert!(!relays(&event, here(), &own), "nobody here signed it");
            for key in [&now, &before] {
                let signed = co_signed(&event, step, key);
                assert!(relays(&signed, here(), &own), "{step:?}");
            }
        }
        let join = theirs("join");
        let stranger = co_signed(&join, Step::Join, &key("now", 3));
        let unknown = co_signed(&join, Step::Join, &key("other", 3));
        let other = co_signed(&theirs("leave"), Step::Leave, &now);
        let signatures = other.to_object().unwrap();
        let signatures = signatures.get("signatures").unwrap().as_object().unwrap();
        let taken = signatures
            .get(here().as_str())
            .unwrap()
            .as_object()
            .unwrap();
        let taken = taken.get("ed25519:now").unwrap().as_str().unwrap();
        for forged in [
            claims(&join, "ed25519:now", "AAAA"),
            claims(&join, "ed25519:invented", "AAAA"),
            claims(&join, "ed25519:now", taken),
            stranger,
            unknown,
        ] {
            assert!(!relays(&forged, here(), &own), "{}", forged.json_str());
        }
    }
}

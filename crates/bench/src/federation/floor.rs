//! The least that a PDU costs whoever takes it: reading it, its hashes, its signature.

use std::time::Instant;

use homeserver_events::{KeyLifetime, Pdu, PublishedKey, RoomVersion, canonical, verify_event_in};
use ruma::ServerName;

use super::{peer::Peer, room::Generated};
use crate::Error;

/// Events that are looked at.
const EVENTS: usize = 2_000;

/// Seconds of CPU for each event.
pub(super) fn of_a_pdu(peer: &Peer) -> Result<f64, Error> {
    let room = Generated::new(&peer.name, &peer.key, 1)?;
    let join = room.first_member()?;
    let events = room.messages(&peer.name, &peer.key, &join, EVENTS)?;
    let rules = RoomVersion::V12.rules();
    let key = PublishedKey {
        key: peer.key.verify_key(),
        lifetime: KeyLifetime::ValidUntil(u64::MAX),
    };
    let keys = |_: &ServerName, _: &str| Some(key);
    let unusable = |error: &dyn std::fmt::Display| Error::Server(error.to_string());
    let started = Instant::now();
    for event in &events {
        let object = canonical::parse_object(event.json(), rules.strictness);
        let object = object.map_err(|error| unusable(&error))?;
        let pdu = Pdu::of_object(&object, rules).map_err(|error| unusable(&error))?;
        verify_event_in(&pdu, &object, rules, &keys).map_err(|error| unusable(&error))?;
    }
    Ok(started.elapsed().as_secs_f64() / EVENTS as f64)
}

//! What one local event costs: canonicalise, hash, sign, and what reading and judging it costs.
//! `cargo run --release -p homeserver-events --example seal_cost`

#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a measurement prints and reads the clock"
)]

use std::hint::black_box;
use std::time::Instant;

use homeserver_events::{
    Draft, KeyLifetime, Pdu, PublishedKey, RoomVersion, SigningKey, verify_event,
};
use ruma::{EventId, RoomId, ServerName, UserId};
use serde_json::value::RawValue;

const ROUNDS: u32 = 20_000;

fn measure<T>(name: &str, mut work: impl FnMut() -> T) {
    for _ in 0..ROUNDS / 10 {
        black_box(work());
    }
    let start = Instant::now();
    for _ in 0..ROUNDS {
        black_box(work());
    }
    println!(
        "{name:<24} {:>8.2} µs",
        start.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS)
    );
}

fn main() {
    let rules = RoomVersion::V12.rules();
    let key = SigningKey::from_seed("a_key", &[7; 32]).unwrap();
    let server = <&ServerName>::try_from("example.org").unwrap();
    let content = r#"{"msgtype":"m.text","body":"Hello, this is a message of usual length.",
        "m.mentions":{"user_ids":["@bob:example.org"]}}"#;
    let id = |n: u8| {
        let opaque = homeserver_events::hash::encode_base64_url([n; 32]);
        EventId::parse(format!("${opaque}")).unwrap()
    };
    let draft = Draft {
        room_id: Some(RoomId::parse("!31hneApxJ_1o-63DmFrpeqnkFfWppnzWso1JvH3ogLM").unwrap()),
        sender: UserId::parse("@alice:example.org").unwrap(),
        event_type: "m.room.message".to_owned(),
        state_key: None,
        content: RawValue::from_string(content.to_owned()).unwrap(),
        origin_server_ts: 1_700_000_000_000,
        prev_events: vec![id(1).into()],
        auth_events: vec![id(2).into(), id(3).into()],
        depth: 1_000,
        redacts: None,
    };
    let sealed = draft.clone().seal(rules, server, &key).unwrap();
    println!("an event of {} bytes", sealed.json().len());
    let lifetime = KeyLifetime::ValidUntil(u64::MAX);
    let published = PublishedKey {
        key: key.verify_key(),
        lifetime,
    };
    let keys = |_: &ServerName, _: &str| Some(published);
    measure("seal", || draft.clone().seal(rules, server, &key));
    measure("sign 300 bytes", || {
        let mut object = homeserver_events::CanonicalObject::new();
        object.insert("a".to_owned(), "x".repeat(300).into());
        homeserver_events::sign_json(&mut object, "example.org", &key);
        object
    });
    measure("parse", || Pdu::parse(sealed.json(), rules));
    measure("from_stored", || {
        Pdu::from_stored(sealed.json(), sealed.event_id().to_owned(), rules)
    });
    measure("verify", || verify_event(&sealed, rules, &keys));
}

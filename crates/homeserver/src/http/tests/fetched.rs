//! Events that other servers give when they are asked are checked like those that they send: on every
//! way of asking.

use homeserver_events::{Pdu, RoomVersion};
use homeserver_federation::{FetchError, MissingEvents, RoomOf};
use ruma::OwnedEventId;

use super::{
    inbound::World,
    peer::{NewEvent, Peer},
    *,
};

const FEDERATION: &str = "/_matrix/federation/v1";

/// Ways to ask for events, and where they stand in the answer.
const WAYS: [(&str, &str); 5] = [
    ("get_missing_events", "events"),
    ("backfill", "pdus"),
    ("state", "pdus"),
    ("state", "auth_chain"),
    ("event_auth", "auth_chain"),
];

/// What an event is that nobody may believe: its text, and what is wrong.
fn not_to_be_used(world: &World, event: &Pdu) -> Vec<(&'static str, String)> {
    let text = event.json_str();
    let mut flipped: Value = serde_json::from_str(text).unwrap();
    let signature = &mut flipped["signatures"]["peer.example"]["ed25519:a"];
    let first = signature.as_str().unwrap().chars().next().unwrap();
    let other = if first == 'A' { "B" } else { "A" };
    *signature = json!(signature.as_str().unwrap().replacen(first, other, 1));
    let evil = Peer::new("peer.example", 9);
    let field = |field: &str, value: Value| {
        let mut event: Value = serde_json::from_str(text).unwrap();
        event[field] = value;
        world.peer.seal_text(&event.to_string())
    };
    let number = |number: &str| {
        let marked = field("depth", json!(123_456)).replace("123456", number);
        world.peer.seal_text(&marked)
    };
    vec![
        ("flipped", flipped.to_string()),
        ("another's key", evil.seal_text(text)),
        ("unsigned", text.replace("\"signatures\"", "\"signed\"")),
        ("2^53", number("9007199254740992")),
        ("-2^53", number("-9007199254740992")),
        ("-1", number("-1")),
        ("text", field("depth", json!("20"))),
        ("null", field("depth", Value::Null)),
        ("fraction", number("20.5")),
        (
            "large",
            field("content", json!({ "body": "x" })).replace("\"x\"", "9007199254740993"),
        ),
        ("a room that is none", field("room_id", json!("x"))),
        ("another room", field("room_id", json!("!x:peer.example"))),
        ("no sender", field("sender", json!("mallory"))),
        ("ids that are none", field("prev_events", json!([7, "x"]))),
        ("no list", field("auth_events", json!({}))),
        ("no event", "7".to_owned()),
        ("nothing", "{}".to_owned()),
    ]
}

/// The ids of what is taken of an answer.
async fn taken(
    world: &World,
    way: (&str, &str),
    about: &Pdu,
) -> Result<Vec<OwnedEventId>, FetchError> {
    let fetcher = &world.here.homeserver.components().federation.fetcher;
    let room = RoomOf {
        id: &world.room,
        rules: RoomVersion::V11.rules(),
    };
    let (server, id) = (&*world.peer.name, about.event_id());
    let latest = [id.to_owned()];
    let events = match way {
        ("get_missing_events", _) => {
            let asked = MissingEvents {
                latest: &latest,
                earliest: &[],
                min_depth: 0,
                limit: 10,
            };
            fetcher.missing_events(server, room, asked).await?
        }
        ("backfill", _) => fetcher.backfill(server, room, &latest, 10).await?,
        ("state", "pdus") => fetcher.state(server, room, id).await?.state,
        ("state", _) => fetcher.state(server, room, id).await?.auth_chain,
        _ => fetcher.event_auth(server, room, id).await?,
    };
    Ok(events
        .iter()
        .map(|event| event.event_id().to_owned())
        .collect())
}

/// CVE-2022-39200, CVE-2025-30355: each costs only itself.
#[tokio::test(start_paused = true)]
async fn what_is_not_to_be_used_is_left_out_of_every_answer() {
    let world = World::new().await;
    let chain = world.chain(&world.join, 3);
    let (first, last) = (chain[0].json_str(), chain[2].json_str());
    let wanted = [chain[0].event_id(), chain[2].event_id()];
    for (what, bad) in not_to_be_used(&world, &chain[1]) {
        for way in WAYS {
            let (endpoint, list) = way;
            let lists = ["events", "pdus", "auth_chain"].map(|name| {
                let events = if name == list {
                    format!("{first},{bad},{last}")
                } else {
                    String::new()
                };
                format!("\"{name}\":[{events}]")
            });
            let path = format!("{FEDERATION}/{endpoint}/");
            let body = format!("{{{}}}", lists.join(","));
            world.peer.instead_text(&path, 200, body);
            let taken = taken(&world, way, &chain[2]).await.unwrap();
            assert_eq!(taken, wanted, "{what}: {way:?}");
        }
        // One by one.
        let path = format!("{FEDERATION}/event/");
        let body = format!("{{\"pdus\":[{bad}]}}");
        world.peer.instead_text(&path, 200, body);
        let fetcher = &world.here.homeserver.components().federation.fetcher;
        let room = RoomOf {
            id: &world.room,
            rules: RoomVersion::V11.rules(),
        };
        let asked = fetcher.event(&world.peer.name, room, chain[1].event_id());
        assert!(asked.await.is_err(), "{what}");
    }
    // Numbers that no JSON has make an answer none at all.
    for number in ["NaN", "Infinity", "-Infinity", "1e999", "0x7"] {
        let bad = first.replacen("\"depth\":20", &format!("\"depth\":{number}"), 1);
        for way in WAYS {
            let path = format!("{FEDERATION}/{}/", way.0);
            let body = format!(
                "{{\"{}\":[{bad}],\"auth_chain\":[],\"pdus\":[{bad}]}}",
                way.1
            );
            world.peer.instead_text(&path, 200, body);
            let taken = taken(&world, way, &chain[2]).await;
            assert!(
                taken.is_err() || taken.unwrap().is_empty(),
                "{number}: {way:?}"
            );
        }
    }
}

/// The same when a gap is filled: what is beside it is kept, and the room goes on.
#[tokio::test(start_paused = true)]
async fn what_is_not_to_be_used_keeps_nothing_else_from_a_gap() {
    let world = World::new().await;
    let good = &world.chain(&world.join, 1)[0];
    let hidden = world.peer.event(&NewEvent {
        content: json!({ "msgtype": "m.text", "body": "hidden" }),
        ..world.message(&[world.join.event_id().to_owned()])
    });
    let mut all = vec![good.json_str().to_owned()];
    all.extend(
        not_to_be_used(&world, &hidden)
            .into_iter()
            .map(|(_, text)| text),
    );
    let path = format!("{FEDERATION}/get_missing_events");
    let body = format!("{{\"events\":[{}]}}", all[..10].join(","));
    world.peer.instead_text(&path, 200, body);
    let after = world
        .peer
        .event(&world.message(&[good.event_id().to_owned()]));
    let after_hidden = world
        .peer
        .event(&world.message(&[hidden.event_id().to_owned()]));
    world.send("1", &[&after, &after_hidden]).await;
    world.until(&after).await;
    assert!(world.is_seen(good).await);
    assert!(!world.is_seen(&hidden).await && !world.is_seen(&after_hidden).await);
    // Requests both ways are good, and so is what was hidden.
    world.peer.recommends();
    world.peer.has(&hidden);
    world.peer.has(&after_hidden);
    world.here.clock.advance(std::time::Duration::from_hours(1));
    world.until(&after_hidden).await;
}

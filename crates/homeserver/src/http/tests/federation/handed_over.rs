//! Membership events that are handed over by a server that may not, or are not what the request says:
//! on every endpoint that takes one, in every version.
//!
//! Specification: server-server API, "Joining Rooms", "Knocking upon a room", "Leaving Rooms",
//! "Inviting to a room".

use super::{
    peer::Peer,
    resident::{FEDERATION, World, client_path, encode},
    *,
};

const VERSION: &str = "11";

/// Version and name of the endpoints, and the membership that one leads to.
const STEPS: [(&str, &str, &str); 5] = [
    ("v1", "join", "join"),
    ("v2", "join", "join"),
    ("v1", "leave", "leave"),
    ("v2", "leave", "leave"),
    ("v1", "knock", "knock"),
];

/// A room in which the step can be taken by Bob, and Bob's membership before.
async fn room(world: &World, step: &str) -> (String, Value) {
    let bob = world.peer.user("bob");
    match step {
        "knock" => {
            let rule = json!([{
                "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" },
            }]);
            let wish = json!({ "room_version": VERSION, "initial_state": rule });
            (world.room(wish).await, Value::Null)
        }
        "leave" => {
            let room = world.public_room(VERSION).await;
            world.join(&room, &bob).await;
            (room, json!("join"))
        }
        _ => (world.public_room(VERSION).await, Value::Null),
    }
}

/// What is put where.
struct Handed<'a> {
    what: &'a str,
    by: &'a Peer,
    room: &'a str,
    id: String,
    event: Value,
}

impl Handed<'_> {
    async fn to(&self, here: &Fresh, (version, endpoint): (&str, &str)) -> Answer {
        let path = format!(
            "{FEDERATION}/{version}/{endpoint}/{}/{}",
            encode(self.room),
            encode(&self.id)
        );
        self.by.put(here, &path, &self.event).await
    }
}

fn case<'a>(
    what: &'a str,
    by: &'a Peer,
    room: &'a str,
    (id, event): &(String, Value),
) -> Handed<'a> {
    Handed {
        what,
        by,
        room,
        id: id.clone(),
        event: event.clone(),
    }
}

/// The event as somebody else may have changed it, and signed by `by` alone.
fn changed(by: &Peer, event: &Value, pointer: &str, value: Value) -> (String, Value) {
    let mut event = event.clone();
    *event.pointer_mut(pointer).unwrap() = value;
    by.seal(&event, VERSION)
}

/// CVE-2019-18835, CVE-2020-26257, Synapse 1.2.1: by whom and where a step is handed over.
#[tokio::test]
async fn steps_are_taken_by_their_own_server_in_their_own_room() {
    let world = World::new().await;
    let other = Peer::join(&world.network, "other.example", Router::new());
    let (bob, carol) = (world.peer.user("bob"), world.peer.user("carol"));
    let stranger = "@eve:elsewhere.example";
    for (version, step, membership) in STEPS {
        let (room, before) = room(&world, step).await;
        let (other_room, _) = self::room(&world, step).await;
        let template = world.make(step, &room, &bob).await.ok()["event"].clone();
        let (id, event) = world.peer.seal(&template, VERSION);
        let by_other = other.seal(&template, VERSION);
        let mut renamed = by_other.1.clone();
        renamed["signatures"] = json!({ "peer.example": renamed["signatures"]["other.example"] });
        let both = other.co_sign(&event, VERSION);
        let of = |user: &str| {
            let mut event = template.clone();
            event["sender"] = json!(user);
            event["state_key"] = json!(user);
            world.peer.seal(&event, VERSION)
        };
        let genuine = (id.clone(), event.clone());
        let in_other = changed(&world.peer, &template, "/room_id", json!(other_room));
        let cases = [
            case("signed by another", &world.peer, &room, &by_other),
            case(
                "in its name",
                &world.peer,
                &room,
                &(by_other.0.clone(), renamed),
            ),
            case("by another", &other, &room, &genuine),
            case(
                "by another that signed, too",
                &other,
                &room,
                &(id.clone(), both),
            ),
            case("into another room", &world.peer, &other_room, &genuine),
            case("of another room", &world.peer, &room, &in_other),
            case(
                "another id",
                &world.peer,
                &room,
                &(by_other.0 + "x", event.clone()),
            ),
            case(
                "somebody else's",
                &world.peer,
                &room,
                &changed(&world.peer, &template, "/state_key", json!(carol)),
            ),
            case(
                "of somebody else",
                &world.peer,
                &room,
                &changed(&world.peer, &template, "/sender", json!(carol)),
            ),
            case("of a user elsewhere", &world.peer, &room, &of(stranger)),
            case("of our user", &world.peer, &room, &of(&world.alice.user)),
        ];
        let endpoint = format!("send_{step}");
        for handed in cases {
            let answer = handed.to(&world.here, (version, &endpoint)).await;
            let what = format!("{version} {endpoint}: {}", handed.what);
            assert!(
                matches!(answer.status, 400 | 403),
                "{what}: {}",
                answer.body
            );
            assert!(!answer.body.to_string().contains("signatures"), "{what}");
            // Nobody is anything else, and the event is nowhere.
            for room in [&room, &other_room] {
                let member = world.state(room, "m.room.member", &bob).await;
                assert_eq!(member["membership"], before, "{what}");
                for (user, is) in [
                    (&*carol, Value::Null),
                    (stranger, Value::Null),
                    (&world.alice.user, json!("join")),
                ] {
                    let member = world.state(room, "m.room.member", user).await;
                    assert_eq!(member["membership"], is, "{what}: {user}");
                }
                let path = format!("{}/event/{}", client_path(room), encode(&handed.id));
                let shown = world.here.get(&path, Some(&world.alice.token)).await;
                assert_eq!(shown.status, 404, "{what}: {}", shown.body);
            }
        }
        // What it is all about is taken.
        let handed = Handed {
            what: "",
            by: &world.peer,
            room: &room,
            id,
            event,
        };
        let answer = handed.to(&world.here, (version, &endpoint)).await;
        assert_eq!(answer.status, 200, "{version} {endpoint}: {}", answer.body);
        let member = world.state(&room, "m.room.member", &bob).await;
        assert_eq!(member["membership"], membership);
    }
}

/// An invite of this user for ours into a room of the peer.
fn invitation(world: &World, room: &str, sender: &str) -> Value {
    json!({
        "type": "m.room.member", "room_id": room, "sender": sender,
        "state_key": world.alice.user, "content": { "membership": "invite" },
        "origin_server_ts": START, "depth": 5, "prev_events": [], "auth_events": [],
    })
}

/// The same for invites, which the server of the inviter hands over.
#[tokio::test]
async fn invites_are_handed_over_by_the_server_of_who_invites() {
    let world = World::new().await;
    let other = Peer::join(&world.network, "other.example", Router::new());
    for version in ["1", VERSION] {
        let room = &*format!("!far{version}:peer.example");
        let of = |sender: &str| invitation(&world, room, sender);
        let own = of(&world.peer.user("zed"));
        let (foreign, ours) = (of("@zed:elsewhere.example"), of(&world.alice.user));
        let (id, event) = world.peer.seal(&own, version);
        let (by_other, mut renamed) = other.seal(&own, version);
        let signed_by_other = renamed.clone();
        renamed["signatures"] = json!({ "peer.example": renamed["signatures"]["other.example"] });
        let both = other.co_sign(&event, version);
        let another_id = id.replacen('$', "$x", 1);
        let (foreign_id, foreign) = world.peer.seal(&foreign, version);
        let (ours_id, ours) = world.peer.seal(&ours, version);
        let cases = [
            (
                "signed by another",
                &world.peer,
                room,
                &by_other,
                &signed_by_other,
            ),
            ("in its name", &world.peer, room, &by_other, &renamed),
            ("by another", &other, room, &id, &event),
            ("by another that signed, too", &other, room, &id, &both),
            (
                "into another room",
                &world.peer,
                "!else:peer.example",
                &id,
                &event,
            ),
            ("another id", &world.peer, room, &another_id, &event),
            (
                "of a user elsewhere",
                &world.peer,
                room,
                &foreign_id,
                &foreign,
            ),
            ("of our user", &world.peer, room, &ours_id, &ours),
        ];
        let put = async |by: &Peer, room: &str, id: &str, event: &Value| {
            let (endpoint, event) = if version == "1" {
                let mut event = event.clone();
                event["unsigned"] = json!({ "invite_room_state": [] });
                ("v1", event)
            } else {
                let create = json!({
                    "type": "m.room.create", "state_key": "", "sender": "@zed:peer.example",
                    "content": { "room_version": version },
                });
                let body = json!({
                    "room_version": version, "event": event, "invite_room_state": [create],
                });
                ("v2", body)
            };
            let handed = Handed {
                what: "",
                by,
                room,
                id: id.to_owned(),
                event,
            };
            handed.to(&world.here, (endpoint, "invite")).await
        };
        let invited = async || {
            let path = "/_matrix/client/v3/sync?timeout=0";
            let told = world.here.get(path, Some(&world.alice.token)).await.ok();
            told["rooms"]["invite"][room].is_object()
        };
        for (what, by, room, id, event) in cases {
            let answer = put(by, room, id, event).await;
            assert!(
                matches!(answer.status, 400 | 403),
                "{what}: {}",
                answer.body
            );
            assert!(!answer.body.to_string().contains("signatures"), "{what}");
            assert!(!invited().await, "{what}");
        }
        let answer = put(&world.peer, room, &id, &event).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert!(invited().await);
        let path = format!("{}/leave", client_path(room));
        let left = world.here.post(&path, Some(&world.alice.token), json!({}));
        left.await.ok();
    }
}

//! Server ACLs, over the wire: whom they keep out of what, and what cannot be read of them.
//!
//! Specification: client-server API, "Server Access Control Lists (ACLs) for rooms"; server-server
//! API of the same name.

use super::{
    peer::Peer,
    resident::{FEDERATION, World, client_path, encode},
    *,
};

const VERSION: &str = "11";

/// A room with a user of each of these servers in it.
struct Stage {
    world: World,
    room: String,
    peers: Vec<Peer>,
    sent: u32,
}

impl Stage {
    async fn new(names: &[&str]) -> Self {
        let world = World::new().await;
        let room = world.public_room(VERSION).await;
        let join = |name: &&str| Peer::join(&world.network, name, Router::new());
        let peers: Vec<_> = names.iter().map(join).collect();
        let stage = Self {
            world,
            room,
            peers,
            sent: 0,
        };
        for peer in &stage.peers {
            let (id, join) = stage.made(peer, "join", &peer.user("bob")).await;
            stage.hand_over(peer, "v2/send_join", &id, &join).await.ok();
        }
        stage
    }

    async fn make(&self, peer: &Peer, step: &str, user: &str) -> Answer {
        let path = format!(
            "{FEDERATION}/v1/make_{step}/{}/{}?ver={VERSION}",
            encode(&self.room),
            encode(user)
        );
        peer.get(&self.world.here, &path).await
    }

    async fn made(&self, peer: &Peer, step: &str, user: &str) -> (String, Value) {
        let made = self.make(peer, step, user).await.ok();
        peer.seal(&made["event"], VERSION)
    }

    async fn hand_over(&self, peer: &Peer, endpoint: &str, id: &str, event: &Value) -> Answer {
        let path = format!(
            "{FEDERATION}/{endpoint}/{}/{}",
            encode(&self.room),
            encode(id)
        );
        peer.put(&self.world.here, &path, event).await
    }

    async fn set(&self, acl: Value) {
        // Of two in the same millisecond either may count where branches come together.
        self.world
            .here
            .clock
            .advance(std::time::Duration::from_secs(1));
        let (world, room) = (&self.world, &self.room);
        let set = world.set_state(room, "m.room.server_acl", "", acl).await;
        set.ok();
    }

    /// A message of a server's user, as the template of its leave has it.
    fn message(&mut self, peer: usize, template: &Value) -> (String, Value) {
        self.sent += 1;
        let mut event = template.clone();
        event["type"] = json!("m.room.message");
        event["content"] = json!({ "body": self.sent });
        event.as_object_mut().unwrap().remove("state_key");
        self.peers[peer].seal(&event, VERSION)
    }

    async fn transact(&mut self, peer: usize, body: &Value) -> Value {
        self.sent += 1;
        let path = format!("{FEDERATION}/v1/send/{}", self.sent);
        self.peers[peer]
            .put(&self.world.here, &path, body)
            .await
            .ok()
    }

    /// Who types, when those who did have been seen.
    async fn typing(&self) -> Vec<String> {
        let path = "/_matrix/client/v3/sync?timeout=0";
        let token = Some(&*self.world.alice.token);
        let told = self.world.here.get(path, token).await.ok();
        let events = &told["rooms"]["join"][&self.room]["ephemeral"]["events"];
        let events = events.as_array().cloned().unwrap_or_default();
        let typing = events.iter().find(|event| event["type"] == "m.typing");
        typing.map_or_else(Vec::new, |event| {
            serde_json::from_value(event["content"]["user_ids"].clone()).unwrap()
        })
    }

    async fn types(&mut self, peer: usize, typing: bool) {
        let content = json!({
            "room_id": self.room, "user_id": self.peers[peer].user("bob"), "typing": typing,
        });
        let body = json!({ "pdus": [], "edus": [{ "edu_type": "m.typing", "content": content }] });
        self.transact(peer, &body).await;
    }

    /// Waits until exactly these servers' users type.
    async fn until_typing(&self, peers: &[usize]) {
        let mut wanted: Vec<_> = peers.iter().map(|it| self.peers[*it].user("bob")).collect();
        wanted.sort();
        let look = async {
            loop {
                let mut typing = self.typing().await;
                typing.sort();
                if typing == wanted {
                    return;
                }
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        let patience = std::time::Duration::from_secs(20);
        tokio::time::timeout(patience, look).await.unwrap();
    }
}

/// Continuwuity 0.5.4: names in any case, with ports, addresses; and what is no list is an empty one.
#[tokio::test(start_paused = true)]
async fn an_acl_keeps_out_whom_it_denies_and_nobody_else() {
    let names = [
        "good.example",
        "evil.example",
        "evil.example:8448",
        "sub.evil.example",
        "192.0.2.1",
        "192.0.2.1:8448",
        "[2001:db8::1]:8448",
    ];
    let (all, evil, addresses) = (0..7, [1, 2], [4, 5, 6]);
    let everybody: Vec<usize> = all.collect();
    let cases: [(Value, &[usize]); 14] = [
        (json!({}), &everybody),
        (json!({ "allow": [] }), &everybody),
        (json!({ "allow": "*" }), &everybody),
        (json!({ "deny": [] }), &everybody),
        (json!({ "allow": [{ "*": "*" }, null] }), &everybody),
        (json!({ "allow": ["*"] }), &[]),
        (json!({ "allow": ["*"], "deny": "evil.example" }), &[]),
        (json!({ "allow": ["*"], "deny": ["EVIL.Example"] }), &evil),
        (
            json!({ "allow": [7, null, "*"], "deny": [{}, "evil.example", 7] }),
            &evil,
        ),
        (json!({ "allow": ["*"], "deny": ["*.EVIL.example"] }), &[3]),
        (
            json!({ "allow": ["*"], "deny": ["192.0.2.?", "[2001:DB8:0::1]"] }),
            &addresses,
        ),
        (
            json!({ "allow": ["*"], "allow_ip_literals": false }),
            &addresses,
        ),
        (json!({ "allow": ["*"], "allow_ip_literals": "false" }), &[]),
        (
            json!({ "allow": ["GOOD.example", "e?il.example"] }),
            &[0, 1, 2],
        ),
    ];
    let mut stage = Stage::new(&names).await;
    let last = cases.len() - 1;
    for (number, (acl, found)) in cases.into_iter().enumerate() {
        stage.set(json!({ "allow": ["*"] })).await;
        let mut templates = Vec::new();
        for peer in &stage.peers {
            let made = stage.make(peer, "leave", &peer.user("bob")).await;
            templates.push(made.ok()["event"].clone());
        }
        stage.set(acl.clone()).await;
        // The last one names those who may.
        let denied = |peer: usize| found.contains(&peer) != (number == last);
        for (peer, template) in templates.iter().enumerate() {
            let what = format!("{acl} {}", stage.peers[peer].name);
            let (id, message) = stage.message(peer, template);
            let told = stage.transact(peer, &json!({ "pdus": [message] })).await;
            let error = told["pdus"][&id]["error"].as_str().unwrap_or_default();
            assert_eq!(error.contains("ACL"), denied(peer), "{what}: {told}");
            let own = &stage.peers[peer];
            let left = stage.make(own, "leave", &own.user("bob")).await;
            let status = if denied(peer) { 403 } else { 200 };
            assert_eq!(left.status, status, "{what}: {}", left.body);
            let path = format!(
                "{FEDERATION}/v1/backfill/{}?limit=1&v={}",
                encode(&stage.room),
                encode(template["prev_events"][0].as_str().unwrap())
            );
            let history = own.get(&stage.world.here, &path).await;
            assert_eq!(history.status, status, "{what}: {}", history.body);
            stage.types(peer, true).await;
        }
        let typing: Vec<_> = everybody
            .iter()
            .copied()
            .filter(|it| !denied(*it))
            .collect();
        stage.until_typing(&typing).await;
        stage.set(json!({ "allow": ["*"] })).await;
        for peer in 0..names.len() {
            stage.types(peer, false).await;
        }
        stage.until_typing(&[]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn no_step_is_taken_for_a_server_that_the_acl_denies() {
    let stage = Stage::new(&["evil.example"]).await;
    let evil = &stage.peers[0];
    let (bob, carol) = (evil.user("bob"), evil.user("carol"));
    let (join_id, join) = stage.made(evil, "join", &carol).await;
    let (leave_id, leave) = stage.made(evil, "leave", &bob).await;
    let mut knock = join.clone();
    knock["content"] = json!({ "membership": "knock" });
    let (knock_id, knock) = evil.seal(&knock, VERSION);
    let mut invite = leave.clone();
    let dave = stage.world.here.register("dave").await;
    invite["content"] = json!({ "membership": "invite" });
    invite["state_key"] = json!(dave.user);
    let (invite_id, invite) = evil.seal(&invite, VERSION);
    stage
        .set(json!({ "allow": ["*"], "deny": ["EVIL.example"] }))
        .await;
    for (step, user) in [("join", &carol), ("knock", &carol), ("leave", &bob)] {
        let made = stage.make(evil, step, user).await;
        made.refused(403, "M_FORBIDDEN");
    }
    for (endpoint, id, event) in [
        ("v1/send_join", &join_id, &join),
        ("v2/send_join", &join_id, &join),
        ("v1/send_leave", &leave_id, &leave),
        ("v2/send_leave", &leave_id, &leave),
        ("v1/send_knock", &knock_id, &knock),
    ] {
        let answer = stage.hand_over(evil, endpoint, id, event).await;
        assert_eq!(answer.status, 403, "{endpoint}: {}", answer.body);
    }
    let body = json!({ "room_version": VERSION, "event": invite, "invite_room_state": [] });
    let answer = stage.hand_over(evil, "v2/invite", &invite_id, &body).await;
    assert_eq!(answer.status, 403, "{}", answer.body);
    let membership = async |user: &str| {
        let (world, room) = (&stage.world, &stage.room);
        world.state(room, "m.room.member", user).await["membership"].clone()
    };
    assert_eq!(membership(&bob).await, "join");
    assert_eq!(membership(&carol).await, Value::Null);
    assert_eq!(membership(&dave.user).await, Value::Null);
    // It was the ACL.
    stage.set(json!({ "allow": ["*"] })).await;
    stage
        .hand_over(evil, "v2/send_join", &join_id, &join)
        .await
        .ok();
    let left = stage
        .hand_over(evil, "v2/send_leave", &leave_id, &leave)
        .await;
    left.ok();
}

/// CVE-2023-45129: patterns that take for ever when they are tried one character after another, as
/// many as fit into an event, and read once for all that it is asked about.
#[tokio::test(start_paused = true)]
async fn an_acl_that_is_as_costly_as_may_be_keeps_nobody_waiting() {
    let long = format!("{}.example", ["a"; 100].join("."));
    let mut stage = Stage::new(&["good.example", &long]).await;
    let hard = |length: usize| format!("{}b", "*a?".repeat(length));
    let few: Vec<_> = (0..400).map(|n| format!("{}{n}", hard(40))).collect();
    let many: Vec<_> = (0..7_000).map(|n| format!("*{n}")).collect();
    let none: Vec<_> = (0..9_000).map(|_| json!(1)).collect();
    for deny in [json!([hard(20_000)]), json!(few), json!(many), json!(none)] {
        assert!(deny.to_string().len() > 15_000);
        stage.set(json!({ "allow": ["*"] })).await;
        let mut templates = Vec::new();
        for peer in &stage.peers {
            let made = stage.make(peer, "leave", &peer.user("bob")).await;
            templates.push(made.ok()["event"].clone());
        }
        stage.set(json!({ "allow": ["*"], "deny": deny })).await;
        for (peer, template) in templates.iter().enumerate() {
            let messages: Vec<_> = (0..50).map(|_| stage.message(peer, template)).collect();
            let pdus: Vec<_> = messages.iter().map(|(_, event)| event).collect();
            let told = stage.transact(peer, &json!({ "pdus": pdus })).await;
            for (id, _) in &messages {
                assert_eq!(told["pdus"][id], json!({}));
            }
            let (id, _) = messages.last().unwrap();
            let path = format!("{}/event/{}", client_path(&stage.room), encode(id));
            let look = async {
                let token = Some(&*stage.world.alice.token);
                while stage.world.here.get(&path, token).await.status != 200 {
                    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                }
            };
            let patience = std::time::Duration::from_mins(1);
            tokio::time::timeout(patience, look).await.unwrap();
        }
    }
}

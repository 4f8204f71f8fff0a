//! Events of another server: forks, resolution, soft failure, rejection.

use std::collections::{BTreeMap, BTreeSet};

use homeserver_events::{Draft, EventReference, Pdu, SigningKey, StatusKind, auth};
use homeserver_storage::Batch;
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomVersionId, server_name, user_id};
use serde_json::{Value, json, value::to_raw_value};

use super::support::{Server, event, user};
use crate::{
    CreateRoom, InitialState, Membership, MembershipChange, Preset, Received, RoomAction,
    edit::RoomEdit, live::Wants, receive::judging::MAX_EXTREMITIES, rows::JoinedUsers,
};

pub(super) struct Elsewhere<'a> {
    pub(super) server: &'a Server,
    pub(super) room: OwnedRoomId,
    pub(super) user: OwnedUserId,
    pub(super) time: u64,
}

impl<'a> Elsewhere<'a> {
    /// Another user of another server.
    pub(super) fn other(&self, user: &str) -> Elsewhere<'a> {
        Elsewhere {
            server: self.server,
            room: self.room.clone(),
            user: OwnedUserId::try_from(user).unwrap(),
            time: self.time + 1_000,
        }
    }

    /// An event of another server that follows `prev`, allowed by the state after `prev`.
    pub(super) async fn make(
        &mut self,
        prev: &[OwnedEventId],
        event_type: &str,
        state_key: Option<&str>,
        content: Value,
    ) -> Pdu {
        let draft = self.draft(prev, event_type, state_key, content).await;
        self.seal(draft).await
    }

    /// What [`Self::make`] seals.
    pub(super) async fn draft(
        &mut self,
        prev: &[OwnedEventId],
        event_type: &str,
        state_key: Option<&str>,
        content: Value,
    ) -> Draft {
        let room = self.server.room(&self.room).await;
        let rooms = &self.server.rooms;
        let mut before = Vec::new();
        for id in prev {
            let number = rooms.events.number(room.number, id).await.unwrap().unwrap();
            before.push(rooms.events.load(&room, number).await.unwrap());
        }
        let content = to_raw_value(&content).unwrap();
        let kinds = auth::auth_types(room.rules, event_type, &self.user, state_key, &content);
        let mut auth_events: Vec<EventReference> = Vec::new();
        for (kind, key) in kinds {
            let found = rooms
                .state_event(&room, before[0].after, kind, &key)
                .await
                .unwrap();
            auth_events.extend(found.map(|event| event.pdu.reference().unwrap()));
        }
        self.time += 1;
        Draft {
            room_id: Some(self.room.clone()),
            sender: self.user.clone(),
            event_type: event_type.to_owned(),
            state_key: state_key.map(ToOwned::to_owned),
            content,
            origin_server_ts: self.time,
            prev_events: before
                .iter()
                .map(|event| event.pdu.reference().unwrap())
                .collect(),
            auth_events,
            depth: before.iter().map(|event| event.pdu.depth()).max().unwrap() + 1,
            redacts: None,
        }
    }

    /// The place of the auth event of this type in a draft.
    pub(super) async fn auth_event(&self, draft: &Draft, event_type: &str) -> usize {
        let (rooms, room) = (&self.server.rooms, self.server.room(&self.room).await);
        for (at, reference) in draft.auth_events.iter().enumerate() {
            let number = rooms.events.number(room.number, &reference.event_id);
            let event = rooms.events.load(&room, number.await.unwrap().unwrap());
            if event.await.unwrap().pdu.event_type() == event_type {
                return at;
            }
        }
        panic!("no auth event of type {event_type}");
    }

    pub(super) async fn seal(&self, draft: Draft) -> Pdu {
        let room = self.server.room(&self.room).await;
        let key = SigningKey::from_seed("far", &[9; 32]).unwrap();
        draft
            .seal(room.rules, self.user.server_name(), &key)
            .unwrap()
    }

    pub(super) async fn receive(&self, pdu: &Pdu) -> StatusKind {
        let room = self.server.room(&self.room).await;
        match self.server.rooms.receive(&room, pdu.clone()).await.unwrap() {
            Received::Judged { status, .. } => status,
            missing @ Received::Missing { .. } => panic!("{missing:?}"),
        }
    }

    pub(super) async fn join(&mut self, prev: &OwnedEventId) -> OwnedEventId {
        let content = json!({ "membership": "join" });
        let key = self.user.to_string();
        let prev = std::slice::from_ref(prev);
        let join = self.make(prev, "m.room.member", Some(&key), content).await;
        assert_eq!(self.receive(&join).await, StatusKind::Accepted);
        join.event_id().to_owned()
    }
}

pub(super) async fn shared_room<'a>(
    server: &'a Server,
    version: &str,
) -> (Elsewhere<'a>, OwnedEventId) {
    let levels = json!({ "users": { "@zed:there.example": 50 } });
    let create = CreateRoom {
        preset: Some(Preset::PublicChat),
        version: Some(RoomVersionId::try_from(version).unwrap()),
        power_level_content_override: Some(
            to_raw_value(&match version {
                "12" => levels,
                _ => json!({ "users": { "@zed:there.example": 50, "@alice:here.example": 100 } }),
            })
            .unwrap(),
        ),
        initial_state: vec![InitialState {
            event_type: "m.room.name".to_owned(),
            state_key: String::new(),
            content: to_raw_value(&json!({ "name": "first" })).unwrap(),
        }],
        ..CreateRoom::default()
    };
    let room = server.create(&user("alice"), create).await;
    let said = server.say(&user("alice"), &room, "hello").await;
    let mut elsewhere = Elsewhere {
        server,
        room,
        user: user_id!("@zed:there.example").to_owned(),
        time: 1_700_000_000_000,
    };
    let join = elsewhere.join(&said).await;
    (elsewhere, join)
}

#[tokio::test]
async fn a_fork_is_joined_by_the_next_event() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "12").await;
    let alice = user("alice");
    let ours = server.say(&alice, &zed.room, "ours").await;
    let theirs = zed
        .make(
            std::slice::from_ref(&join),
            "m.room.message",
            None,
            json!({ "body": "theirs" }),
        )
        .await;
    assert_eq!(zed.receive(&theirs).await, StatusKind::Accepted);
    assert_eq!(
        zed.receive(&theirs).await,
        StatusKind::Accepted,
        "the same again"
    );
    let after = server.say(&alice, &zed.room, "after").await;
    let timeline = server.timeline(&alice, &zed.room).await;
    let last: Vec<_> = timeline
        .iter()
        .rev()
        .take(3)
        .map(|e| e.pdu().event_id())
        .collect();
    assert_eq!(last, [&*after, theirs.event_id(), &*ours]);
    let mut prev = timeline.last().unwrap().pdu().prev_events().to_vec();
    prev.sort();
    let mut expected = vec![ours, theirs.event_id().to_owned()];
    expected.sort();
    assert_eq!(prev, expected);
    let room = server.room(&zed.room).await;
    let summary = server
        .rooms
        .summary(&server.reader(&alice).await, &room)
        .await
        .unwrap();
    assert_eq!(summary.joined, 2);
    let servers = server.rooms.servers(room.number, 9).await.unwrap();
    assert_eq!(servers, ["here.example", "there.example"]);
}

/// Rows of servers that are not in the room are no part of what is asked for.
#[tokio::test]
async fn as_many_servers_as_asked_for_are_named() {
    let server = Server::start().await;
    let (zed, _) = shared_room(&server, "11").await;
    let room = server.room(&zed.room).await;
    let mut batch = Batch::new();
    for (name, joined) in [
        ("a.example", 1),
        ("b.example", -1),
        ("b.example.net", -1),
        ("c.example", -1),
        ("d.example", 2),
    ] {
        JoinedUsers(joined).put(&mut batch, &(room.number.0, name));
    }
    server.rooms.store.commit(batch).await.unwrap();
    let all = ["here.example", "a.example", "d.example", "there.example"];
    for limit in 0..9 {
        let servers = server.rooms.servers(room.number, limit).await.unwrap();
        assert_eq!(servers, all[..limit.min(4)], "{limit}");
    }
}

#[tokio::test]
async fn conflicting_state_is_resolved() {
    for version in ["1", "2", "10", "11", "12"] {
        let server = Server::start().await;
        let (mut zed, join) = shared_room(&server, version).await;
        let alice = user("alice");
        let name = |name: &str| json!({ "name": name });
        // Ours is at 1_700_000_000_000, theirs is made later.
        let ours = event("m.room.name", Some(""), &name("ours"));
        let ours = server.try_send(&alice, &zed.room, ours).await.unwrap();
        let theirs = zed
            .make(
                std::slice::from_ref(&join),
                "m.room.name",
                Some(""),
                name("theirs"),
            )
            .await;
        assert_eq!(zed.receive(&theirs).await, StatusKind::Accepted);
        let now = server.state(&zed.room, "m.room.name", "").await.unwrap();
        if version != "1" {
            // Same place on the mainline: the later one of the two counts.
            assert_eq!(now["name"], "theirs", "version {version}");
        }
        // Both orders of arrival give the same state: resolve by hand from the extremities.
        let merged = server.say(&alice, &zed.room, "merged").await;
        let room = server.room(&zed.room).await;
        let number = server
            .rooms
            .events
            .number(room.number, &merged)
            .await
            .unwrap()
            .unwrap();
        let merged = server.rooms.events.load(&room, number).await.unwrap();
        assert_eq!(merged.prev.len(), 2, "{ours}");
        let told = server
            .rooms
            .state_at(room.number, server.rooms.durable())
            .await
            .unwrap();
        assert_eq!(told.root, merged.before());
    }
}

#[tokio::test]
async fn what_a_ban_overtook_is_soft_failed() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "11").await;
    let alice = user("alice");
    let ban = MembershipChange::Ban {
        user: zed.user.clone(),
    };
    server.member(&alice, &zed.room, ban).await.unwrap();
    let late = zed
        .make(
            &[join],
            "m.room.message",
            None,
            json!({ "body": "still me" }),
        )
        .await;
    assert_eq!(zed.receive(&late).await, StatusKind::SoftFailed);
    let timeline = server.timeline(&alice, &zed.room).await;
    assert!(
        timeline
            .iter()
            .all(|event| event.pdu().event_id() != late.event_id())
    );
    let reader = server.reader(&alice).await;
    let room = server.room(&zed.room).await;
    let hidden = server
        .rooms
        .visible_by_id(&reader, &room, late.event_id())
        .await
        .unwrap();
    assert!(hidden.is_none());
    let said = server.say(&alice, &zed.room, "quiet now").await;
    let last = server.timeline(&alice, &zed.room).await;
    let last = last.last().unwrap();
    assert_eq!(
        (last.pdu().event_id(), last.pdu().prev_events().len()),
        (&*said, 1)
    );
    assert_eq!(
        server.rooms.servers(room.number, 9).await.unwrap(),
        ["here.example"]
    );
}

#[tokio::test]
async fn what_is_not_allowed_is_rejected_and_what_is_missing_is_named() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "12").await;
    let levels = json!({ "users": { "@zed:there.example": 100 } });
    let grab = zed
        .make(
            std::slice::from_ref(&join),
            "m.room.power_levels",
            Some(""),
            levels,
        )
        .await;
    assert_eq!(zed.receive(&grab).await, StatusKind::Rejected);
    let message = zed
        .make(&[join], "m.room.message", None, json!({ "body": "hi" }))
        .await;
    assert_eq!(zed.receive(&message).await, StatusKind::Accepted);
    let room = server.room(&zed.room).await;
    let key = SigningKey::from_seed("far", &[9; 32]).unwrap();
    let unknown = ruma::owned_event_id!("$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
    let draft = Draft {
        room_id: Some(zed.room.clone()),
        sender: zed.user.clone(),
        event_type: "m.room.message".to_owned(),
        state_key: None,
        content: to_raw_value(&json!({})).unwrap(),
        origin_server_ts: 1,
        prev_events: vec![unknown.clone().into(), grab.reference().unwrap()],
        auth_events: vec![unknown.clone().into()],
        depth: 99,
        redacts: None,
    };
    let pdu = draft
        .seal(room.rules, server_name!("there.example"), &key)
        .unwrap();
    let expected = Received::Missing {
        prev: vec![unknown.clone()],
        auth: vec![unknown],
    };
    assert_eq!(server.rooms.receive(&room, pdu).await.unwrap(), expected);
}

#[tokio::test]
async fn a_redaction_may_come_before_its_target() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "11").await;
    let alice = user("alice");
    let target = zed
        .make(
            std::slice::from_ref(&join),
            "m.room.message",
            None,
            json!({ "body": "oops" }),
        )
        .await;
    let id = target.event_id().to_owned();
    let redaction = zed
        .make(&[join], "m.room.redaction", None, json!({ "redacts": id }))
        .await;
    assert_eq!(zed.receive(&redaction).await, StatusKind::Accepted);
    assert_eq!(zed.receive(&target).await, StatusKind::Accepted);
    let timeline = server.timeline(&alice, &zed.room).await;
    let shown = timeline.last().unwrap();
    assert_eq!(
        (shown.pdu().event_id(), shown.pdu().content_str()),
        (&*id, "{}")
    );
    assert!(shown.redacted_by().is_some());
}

#[tokio::test]
async fn a_local_user_whom_resolution_puts_out_is_told() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "11").await;
    let bob = user("bob");
    // Zed bans bob in a fork that does not know that bob joined.
    server.join(&bob, &zed.room).await.unwrap();
    let content = json!({ "membership": "ban" });
    let ban = zed
        .make(&[join], "m.room.member", Some(bob.as_str()), content)
        .await;
    assert_eq!(zed.receive(&ban).await, StatusKind::Accepted);
    let reader = server.reader(&bob).await;
    let room = server.room(&zed.room).await;
    let mine = server
        .rooms
        .membership(reader.number.unwrap(), room.number, reader.position)
        .await;
    assert_eq!(mine.unwrap().unwrap().membership, Membership::Ban);
    let send = RoomAction::Send {
        room: zed.room.clone(),
        event: super::support::message("am I in?"),
    };
    assert!(server.act(&bob, send).await.is_err());
    let log = server
        .rooms
        .state_at(room.number, reader.position)
        .await
        .unwrap();
    assert_eq!(log.joined, 2);
}

#[tokio::test]
async fn keys_that_only_auth_chains_have_are_part_of_the_resolved_state() {
    let server = Server::start().await;
    let (zed, _) = shared_room(&server, "11").await;
    let room = server.room(&zed.room).await;
    let live = server.rooms.live.room(room.number);
    let mut tip = live
        .tip(server.rooms.store(), Wants::Settled)
        .await
        .unwrap();
    let (head, pending) = tip.parts();
    let first = head.root;
    let mut edit = RoomEdit::new(&server.rooms, room, Some(head), pending);
    let name = edit.state("m.room.name", "").await.unwrap().unwrap();
    let key = ("org.example.kept".to_owned(), "x".to_owned());
    let resolved = BTreeMap::from([(key, name.number.0)]);
    let root = edit
        .settle(first, &BTreeSet::new(), resolved)
        .await
        .unwrap();
    let kept = edit.state_in(root, "org.example.kept", "x").await.unwrap();
    assert_eq!(kept.unwrap().number, name.number);
    let others = edit.state_in(root, "m.room.name", "").await.unwrap();
    assert_eq!(others.unwrap().number, name.number);
}

#[tokio::test]
async fn a_room_has_one_create_event() {
    let server = Server::start().await;
    let (zed, _) = shared_room(&server, "11").await;
    let room = server.room(&zed.room).await;
    let draft = Draft {
        room_id: Some(zed.room.clone()),
        sender: user("mallory"),
        event_type: "m.room.create".to_owned(),
        state_key: Some(String::new()),
        content: to_raw_value(&json!({ "room_version": "11" })).unwrap(),
        origin_server_ts: 1,
        prev_events: Vec::new(),
        auth_events: Vec::new(),
        depth: 1,
        redacts: None,
    };
    let key = SigningKey::from_seed("far", &[9; 32]).unwrap();
    let second = draft
        .seal(room.rules, server_name!("here.example"), &key)
        .unwrap();
    assert_eq!(zed.receive(&second).await, StatusKind::Rejected);
    let said = server.say(&user("alice"), &zed.room, "still here").await;
    let timeline = server.timeline(&user("alice"), &zed.room).await;
    assert_eq!(timeline.last().unwrap().pdu().event_id(), said);
}

#[tokio::test]
async fn a_flood_of_forks_leaves_the_room_writable() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "12").await;
    let prev = std::slice::from_ref(&join);
    for fork in 0..60 {
        let (key, content) = (fork.to_string(), json!({ "fork": fork }));
        let pdu = zed
            .make(prev, "org.example.fork", Some(&key), content)
            .await;
        assert_eq!(zed.receive(&pdu).await, StatusKind::Accepted);
    }
    let room = server.room(&zed.room).await;
    let head = async || {
        let found = server
            .rooms
            .store
            .get(&crate::tables::HEADS, &room.number.0);
        found.await.unwrap().unwrap()
    };
    assert_eq!(head().await.extremities.len(), MAX_EXTREMITIES);
    // What the forgotten ones brought into the state is there.
    for fork in 0..60 {
        let key = fork.to_string();
        let found = server.state(&zed.room, "org.example.fork", &key);
        assert_eq!(found.await.unwrap()["fork"], fork);
    }
    // Events of this server join the branches, a few at a time.
    let alice = user("alice");
    for left in [11, 2, 1, 1] {
        server.say(&alice, &zed.room, "on").await;
        assert_eq!(head().await.extremities.len(), left);
    }
    let name = event("m.room.name", Some(""), &json!({ "name": "after" }));
    server.try_send(&alice, &zed.room, name).await.unwrap();
    let late = zed
        .make(prev, "org.example.late", Some(""), json!({}))
        .await;
    assert_eq!(zed.receive(&late).await, StatusKind::Accepted);
    for fork in 0..60 {
        let key = fork.to_string();
        let found = server.state(&zed.room, "org.example.fork", &key);
        assert_eq!(found.await.unwrap()["fork"], fork);
    }
}

/// What forgotten extremities brought is not undone by a peer that joins all that are left.
#[tokio::test]
async fn a_flood_of_forks_undoes_no_ban() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "12").await;
    let mut sock = Elsewhere {
        server: &server,
        room: zed.room.clone(),
        user: user_id!("@sock:there.example").to_owned(),
        time: zed.time + 1_000,
    };
    let fork = sock.join(&join).await;
    let ban = MembershipChange::Ban {
        user: zed.user.clone(),
    };
    server.member(&user("alice"), &zed.room, ban).await.unwrap();
    let mut branches = Vec::new();
    for _ in 0..MAX_EXTREMITIES {
        let prev = std::slice::from_ref(&fork);
        let branch = sock
            .make(prev, "m.room.message", None, json!({ "body": "!" }))
            .await;
        assert_eq!(sock.receive(&branch).await, StatusKind::Accepted);
        branches.push(branch.event_id().to_owned());
    }
    let joined = sock
        .make(&branches, "m.room.message", None, json!({ "body": "?" }))
        .await;
    assert_eq!(sock.receive(&joined).await, StatusKind::Accepted);
    let zed_is = async || {
        let found = server.state(&zed.room, "m.room.member", zed.user.as_str());
        found.await.unwrap()["membership"].clone()
    };
    assert_eq!(zed_is().await, "ban");
    server.say(&user("alice"), &zed.room, "still").await;
    assert_eq!(zed_is().await, "ban");
    let late = zed
        .make(&[join], "m.room.message", None, json!({ "body": "me" }))
        .await;
    assert_eq!(zed.receive(&late).await, StatusKind::SoftFailed);
}

#[tokio::test]
async fn everybody_whose_membership_a_resolution_changes_is_told() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "12").await;
    let names: Vec<String> = (0..20).map(|number| format!("guest{number}")).collect();
    for name in &names {
        server.join(&user(name), &zed.room).await.unwrap();
    }
    let room = server.room(&zed.room).await;
    let before = server.rooms.durable();
    // On another branch, and before all those joins, the room was closed.
    zed.time = 1_600_000_000_000;
    let rule = json!({ "join_rule": "invite" });
    let prev = std::slice::from_ref(&join);
    let closed = zed.make(prev, "m.room.join_rules", Some(""), rule).await;
    assert_eq!(zed.receive(&closed).await, StatusKind::Accepted);
    let now = server.rooms.durable();
    let log = server.rooms.state_at(room.number, now).await.unwrap();
    assert_eq!(log.joined, 2, "alice and zed");
    for name in &names {
        let number = server.rooms.user_number(&user(name)).await.unwrap();
        let mine = server.rooms.membership(number, room.number, now);
        let mine = mine.await.unwrap().unwrap();
        assert_eq!(mine.membership, Membership::Leave, "{name}");
        assert!(mine.since > before, "{name}");
        let topic = crate::journal::user_topic(number);
        let told = server.rooms.store.journal().last(&[topic]).await.unwrap();
        assert_eq!(told, [Some(mine.since)], "{name}");
    }
    // The event itself is where it arrived, however many entries follow it.
    let shown = server.timeline(&user("alice"), &zed.room).await;
    let shown = shown.last().unwrap();
    assert_eq!(shown.pdu().event_id(), closed.event_id());
    assert_eq!(shown.position(), Some(before + 1));
    let again = server.restart().await;
    let shown = again.timeline(&user("alice"), &zed.room).await;
    assert_eq!(shown.last().unwrap().position(), Some(before + 1));
}

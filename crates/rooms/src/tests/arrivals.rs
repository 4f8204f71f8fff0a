//! Rooms from elsewhere: invited to, taken in, left, taken in anew.

use std::sync::Arc;

use homeserver_events::{Draft, Pdu, SigningKey};
use homeserver_storage::{Direction, ScanRange, engines::memory::MemoryEngine};
use ruma::{
    EventId, OwnedRoomId, OwnedUserId, RoomVersionId, UserId, owned_server_name, owned_user_id,
    server_name,
};
use serde_json::{Value, json, value::to_raw_value};

use super::support::{Server, kinds, user};
use crate::{
    Arriving, CreateRoom, Imported, Membership, MembershipChange, Outside, PartTaken, Preset,
    RoomError, tables,
};

/// A server elsewhere with a public room.
pub(super) struct There {
    pub(super) server: Server,
    pub(super) room: OwnedRoomId,
    pub(super) host: OwnedUserId,
}

impl There {
    pub(super) async fn of_version(version: &str) -> Self {
        let name = owned_server_name!("there.example");
        let server = Server::named(name, Arc::new(MemoryEngine::new()))
            .await
            .unwrap();
        let host = owned_user_id!("@host:there.example");
        let create = CreateRoom {
            version: Some(RoomVersionId::try_from(version).unwrap()),
            preset: Some(Preset::PublicChat),
            name: Some("far".to_owned()),
            ..CreateRoom::default()
        };
        let room = server.create(&host, create).await;
        Self { server, room, host }
    }

    /// The state of the room, each event after those that authorise it.
    pub(super) async fn state(&self) -> Vec<Pdu> {
        let (rooms, room) = (&self.server.rooms, self.server.room(&self.room).await);
        let now = rooms.state_at(room.number, rooms.durable()).await.unwrap();
        let all = rooms.state_all(&room, now.root).await.unwrap();
        let numbers: Vec<_> = all.into_iter().map(|(_, number)| number).collect();
        let mut events = rooms.events.load_all(&room, &numbers).await.unwrap();
        events.sort_by_key(|event| (event.auth_height, event.number));
        events.iter().map(|event| event.pdu.clone()).collect()
    }

    /// All events of the room, as they arrived.
    pub(super) async fn all(&self) -> Vec<Pdu> {
        let (rooms, room) = (&self.server.rooms, self.server.room(&self.room).await);
        let upto = rooms.durable();
        let arrivals = rooms.arrivals(room.number, 0, upto, 10_000).await.unwrap();
        let numbers: Vec<_> = arrivals.iter().map(|arrival| arrival.event).collect();
        let events = rooms.events.load_all(&room, &numbers).await.unwrap();
        events.iter().map(|event| event.pdu.clone()).collect()
    }

    /// The state before an event, each event after those that authorise it.
    pub(super) async fn state_before(&self, id: &EventId) -> Vec<Pdu> {
        let (rooms, room) = (&self.server.rooms, self.server.room(&self.room).await);
        let number = rooms.events.number(room.number, id).await.unwrap();
        let event = rooms.events.load(&room, number.unwrap()).await.unwrap();
        let all = rooms.state_all(&room, event.before()).await.unwrap();
        let numbers: Vec<_> = all.into_iter().map(|(_, number)| number).collect();
        let mut events = rooms.events.load_all(&room, &numbers).await.unwrap();
        events.sort_by_key(|event| (event.auth_height, event.number));
        events.iter().map(|event| event.pdu.clone()).collect()
    }

    /// What bans of the past left in the auth chains, newest first.
    pub(super) async fn replaced(&self) -> Vec<Pdu> {
        let (rooms, room) = (&self.server.rooms, self.server.room(&self.room).await);
        let (mut found, mut next) = (Vec::new(), Vec::new());
        let state = self.state().await;
        next.extend(state.iter().flat_map(|pdu| pdu.auth_events().to_vec()));
        while let Some(id) = next.pop() {
            let known = state.iter().chain(&found);
            if known.clone().any(|pdu| pdu.event_id() == id) {
                continue;
            }
            let number = rooms.events.number(room.number, &id).await.unwrap();
            let event = rooms.events.load(&room, number.unwrap()).await.unwrap();
            next.extend(event.pdu.auth_events().to_vec());
            found.push(event.pdu.clone());
        }
        found
    }

    /// A membership event of a user here, after what the room has now.
    pub(super) async fn member(&self, sender: &UserId, target: &UserId, membership: &str) -> Pdu {
        self.member_at(1_700_000_000_000, (sender, target), membership)
            .await
    }

    /// The same, made at some time.
    async fn member_at(
        &self,
        time: u64,
        (sender, target): (&UserId, &UserId),
        membership: &str,
    ) -> Pdu {
        let room = self.server.room(&self.room).await;
        let live = self.server.rooms.live.room(room.number);
        let mut tip = live
            .tip(&self.server.rooms.store, crate::live::Wants::Settled)
            .await
            .unwrap();
        let (head, _) = tip.parts();
        drop(tip);
        let state = self.state().await;
        let wanted = [
            ("m.room.create", ""),
            ("m.room.join_rules", ""),
            ("m.room.power_levels", ""),
            ("m.room.member", sender.as_str()),
            ("m.room.member", target.as_str()),
        ];
        let implied = room.rules.create_is_implied();
        let auth = state.iter().filter(|pdu| {
            let pair = pdu.state_pair().unwrap();
            wanted.contains(&pair) && !(implied && pair.0 == "m.room.create")
        });
        let prev = |e: &crate::rows::Extremity| homeserver_events::EventReference {
            event_id: e.id.clone(),
            reference_hash: e.reference_hash,
        };
        let draft = Draft {
            room_id: Some(self.room.clone()),
            sender: sender.to_owned(),
            event_type: "m.room.member".to_owned(),
            state_key: Some(target.to_string()),
            content: to_raw_value(&json!({ "membership": membership })).unwrap(),
            origin_server_ts: time,
            prev_events: head.extremities.iter().map(prev).collect(),
            auth_events: auth.map(|pdu| pdu.reference().unwrap()).collect(),
            depth: head.extremities.iter().map(|e| e.depth).max().unwrap() + 1,
            redacts: None,
        };
        let key = SigningKey::from_seed("test", &[5; 32]).unwrap();
        let server = sender.server_name();
        draft.seal(room.rules, server, &key).unwrap()
    }

    async fn outside(&self, pdu: &Pdu, name: &str) -> Outside {
        let told = json!({
            "type": "m.room.name", "state_key": "", "sender": self.host,
            "content": { "name": "far" }, "event_id": "$no:there.example", "x": 1,
        });
        Outside {
            user: user(name),
            version: self.server.room(&self.room).await.version.clone(),
            pdu: pdu.clone(),
            stripped: vec![
                to_raw_value(&told).unwrap(),
                to_raw_value(&json!({})).unwrap(),
            ],
            via: vec![owned_server_name!("there.example")],
        }
    }
}

/// Prepares the state of a room elsewhere.
pub(super) async fn prepare(here: &Server, there: &There) -> Arriving {
    let state = there.state().await;
    let create = state[0].clone();
    let version = there.server.room(&there.room).await.version.clone();
    let begun = here
        .rooms
        .begin_arrival(&there.room, &version, &create)
        .await
        .unwrap();
    let mut events: Vec<_> = state.into_iter().map(Imported::State).collect();
    for pdu in there.replaced().await {
        let after = |event: &Imported| {
            let (Imported::State(other) | Imported::Auth(other)) = event;
            other.auth_events().contains(&pdu.event_id().to_owned())
        };
        let at = events.iter().position(after).unwrap_or(events.len());
        events.insert(at, Imported::Auth(pdu));
    }
    let part = here
        .rooms
        .import_part(begun.import, begun.first_part, &events)
        .await
        .unwrap();
    assert_eq!(part, PartTaken::Stored);
    begun
}

async fn stands(server: &Server, name: &str, there: &There) -> Option<(Membership, bool)> {
    let found = server.rooms.standing_of(&user(name), &there.room).await;
    let found = found.unwrap();
    found.map(|found| (found.membership.membership, found.outside))
}

async fn rows(server: &Server) -> usize {
    let table = &tables::IMPORT_IDS;
    let scan = server
        .rooms
        .store
        .scan(table, ScanRange::all(), Direction::Forward, 1000);
    scan.await.unwrap().len()
}

#[tokio::test]
async fn a_room_from_elsewhere_is_taken_in_with_the_join_after_its_state() {
    for version in ["2", "6", "11", "12"] {
        let (here, there) = (Server::start().await, There::of_version(version).await);
        let alice = user("alice");
        let begun = prepare(&here, &there).await;
        assert!(here.rooms.room(&there.room).await.unwrap().is_none());
        let join = there.member(&alice, &alice, "join").await;
        let position = here.rooms.arrive(begun.import, join.clone()).await.unwrap();
        assert_eq!(rows(&here).await, 0, "nothing of the import is left");

        let room = here.room(&there.room).await;
        assert!(here.rooms.is_resident(&room).await.unwrap());
        assert_eq!(
            stands(&here, "alice", &there).await,
            Some((Membership::Join, false))
        );
        let log = here.rooms.state_at(room.number, position).await.unwrap();
        assert_eq!((log.joined, log.invited), (2, 0));
        let reader = here.reader(&alice).await;
        let slice = here.rooms.timeline(&reader, &room, 0, 10, &|_| true).await;
        let slice = slice.unwrap();
        assert_eq!(kinds(&slice.events), ["m.room.member"]);
        assert!(slice.limited, "what was before is not here");
        let servers = here.rooms.servers(room.number, 10).await.unwrap();
        assert_eq!(servers, ["here.example", "there.example"]);
        // What is sent from here follows the join, and is taken there.
        let theirs = there.server.room(&there.room).await;
        let took = there.server.rooms.receive(&theirs, join.clone()).await;
        took.unwrap();
        let said = here.say(&alice, &there.room, "hello").await;
        let number = here.rooms.events.number(room.number, &said).await.unwrap();
        let said = here
            .rooms
            .events
            .load(&room, number.unwrap())
            .await
            .unwrap();
        assert_eq!(said.pdu.prev_events(), [join.event_id().to_owned()]);
        let took = there.server.rooms.receive(&theirs, said.pdu.clone()).await;
        assert!(matches!(
            took.unwrap(),
            crate::Received::Judged {
                status: homeserver_events::StatusKind::Accepted,
                ..
            }
        ));
        // The same after a restart.
        let again = here.restart().await;
        again.say(&alice, &there.room, "again").await;
    }
}

#[tokio::test]
async fn a_join_that_the_state_does_not_allow_leaves_nothing_and_keeps_the_invite() {
    let (here, there) = (Server::start().await, There::of_version("11").await);
    let alice = user("alice");
    let invite = there.member(&there.host, &alice, "invite").await;
    let invite = there.outside(&invite, "alice").await;
    here.rooms.note_outside(&invite).await.unwrap();
    let join = there.member(&alice, &alice, "join").await;
    let private = MembershipChange::Ban {
        user: alice.clone(),
    };
    there
        .server
        .member(&there.host, &there.room, private)
        .await
        .unwrap();
    let begun = prepare(&here, &there).await;
    let refused = here.rooms.arrive(begun.import, join).await;
    assert!(
        matches!(refused, Err(RoomError::Forbidden(_))),
        "{refused:?}"
    );
    here.rooms.abandon_arrival(begun.import).await.unwrap();
    assert!(here.rooms.room(&there.room).await.unwrap().is_none());
    assert_eq!(
        stands(&here, "alice", &there).await,
        Some((Membership::Invite, true))
    );
    assert_eq!(rows(&here).await, 0);
    here.rooms.sweep().await.unwrap();

    // Once it is allowed, all goes well, and the room keeps its number.
    let unban = MembershipChange::Unban {
        user: alice.clone(),
    };
    there
        .server
        .member(&there.host, &there.room, unban)
        .await
        .unwrap();
    let begun = prepare(&here, &there).await;
    let join = there.member(&alice, &alice, "join").await;
    here.rooms.arrive(begun.import, join).await.unwrap();
    let standing = here.rooms.standing_of(&alice, &there.room).await.unwrap();
    let number = standing.unwrap().room.number;
    assert_eq!(number, here.room(&there.room).await.number);
    here.rooms.sweep().await.unwrap();
    here.say(&alice, &there.room, "after the sweep").await;
}

#[tokio::test]
async fn what_a_killed_process_prepared_is_removed() {
    let (here, there) = (Server::start().await, There::of_version("12").await);
    prepare(&here, &there).await;
    assert!(rows(&here).await > 0);
    let again = here.restart().await;
    assert_eq!(rows(&again).await, 0);
    let begun = prepare(&again, &there).await;
    let alice = user("alice");
    let join = there.member(&alice, &alice, "join").await;
    again.rooms.arrive(begun.import, join).await.unwrap();
}

#[tokio::test]
async fn a_room_that_was_left_is_taken_in_anew() {
    let (here, there) = (Server::start().await, There::of_version("11").await);
    let alice = user("alice");
    let begun = prepare(&here, &there).await;
    let join = there.member(&alice, &alice, "join").await;
    here.rooms.arrive(begun.import, join.clone()).await.unwrap();
    let theirs = there.server.room(&there.room).await;
    there.server.rooms.receive(&theirs, join).await.unwrap();
    here.say(&alice, &there.room, "hello").await;
    here.member(&alice, &there.room, MembershipChange::Leave)
        .await
        .unwrap();
    let room = here.room(&there.room).await;
    assert!(!here.rooms.is_resident(&room).await.unwrap());

    // Meanwhile, out of sight.
    let left = there.member(&alice, &alice, "leave").await;
    there.server.rooms.receive(&theirs, left).await.unwrap();
    let name = super::support::event("m.room.name", Some(""), &json!({ "name": "new" }));
    let named = there.server.try_send(&there.host, &there.room, name).await;
    named.unwrap();
    let invite = there.member(&there.host, &alice, "invite").await;
    let outside = there.outside(&invite, "alice").await;
    here.rooms.note_outside(&outside).await.unwrap();
    assert_eq!(
        stands(&here, "alice", &there).await,
        Some((Membership::Invite, true))
    );
    there.server.rooms.receive(&theirs, invite).await.unwrap();

    let begun = prepare(&here, &there).await;
    let join = there.member(&alice, &alice, "join").await;
    here.rooms.arrive(begun.import, join.clone()).await.unwrap();
    assert!(here.rooms.is_resident(&room).await.unwrap());
    assert_eq!(
        stands(&here, "alice", &there).await,
        Some((Membership::Join, false))
    );
    let now: Value = here.state(&there.room, "m.room.name", "").await.unwrap();
    assert_eq!(now["name"], "new");
    let log = here.rooms.state_at(room.number, here.rooms.durable());
    assert_eq!(log.await.unwrap().joined, 2);
    let said = here.say(&alice, &there.room, "back").await;
    let number = here.rooms.events.number(room.number, &said).await.unwrap();
    let said = here
        .rooms
        .events
        .load(&room, number.unwrap())
        .await
        .unwrap();
    assert_eq!(said.pdu.prev_events(), [join.event_id().to_owned()]);
    let servers = here.rooms.servers(room.number, 10).await.unwrap();
    assert_eq!(servers, ["here.example", "there.example"]);
}

/// What a third server knows of a room, and the join that follows it.
type Stale = (Vec<Pdu>, Pdu);

/// A room that Alice was in; what `there` did after that is known here, and Alice has left.
async fn left_after(change: Option<MembershipChange>) -> (Server, There, Stale) {
    let (here, there) = (Server::start().await, There::of_version("11").await);
    let alice = user("alice");
    let begun = prepare(&here, &there).await;
    let join = there.member(&alice, &alice, "join").await;
    here.rooms.arrive(begun.import, join.clone()).await.unwrap();
    let theirs = there.server.room(&there.room).await;
    there.server.rooms.receive(&theirs, join).await.unwrap();
    // After the leave, which this server makes by its clock.
    let later = 4_000_000_000_000;
    let again = there.member_at(later, (&alice, &alice), "join").await;
    let stale = (there.state().await, again);
    let topic = super::support::event("m.room.topic", Some(""), &json!({ "topic": "new" }));
    let told = there.server.try_send(&there.host, &there.room, topic).await;
    told.unwrap();
    let last = there.all().await.pop().unwrap();
    let room = here.room(&there.room).await;
    here.rooms.receive(&room, last).await.unwrap();
    if let Some(change) = change {
        let done = there.server.member(&there.host, &there.room, change).await;
        done.unwrap();
        let last = there.all().await.pop().unwrap();
        here.rooms.receive(&room, last).await.unwrap();
    } else {
        let leave = MembershipChange::Leave;
        here.member(&alice, &there.room, leave).await.unwrap();
    }
    assert!(!here.rooms.is_resident(&room).await.unwrap());
    (here, there, stale)
}

/// Alice comes back by a state that is out of date.
async fn back(here: &Server, there: &There, stale: Stale) -> Result<Pdu, RoomError> {
    let (stale, join) = stale;
    let version = there.server.room(&there.room).await.version.clone();
    let create = stale[0].clone();
    let begun = here.rooms.begin_arrival(&there.room, &version, &create);
    let begun = begun.await.unwrap();
    let events: Vec<_> = stale.into_iter().map(Imported::State).collect();
    let (import, first) = (begun.import, begun.first_part);
    let part = here.rooms.import_part(import, first, &events).await;
    assert_eq!(part.unwrap(), PartTaken::Stored);
    let beside = here.rooms.extremities(&begun.room).await.unwrap();
    let arrived = here.rooms.arrive_beside(import, join.clone(), beside);
    if let Err(error) = arrived.await {
        here.rooms.abandon_arrival(import).await.unwrap();
        return Err(error);
    }
    Ok(join)
}

#[tokio::test]
async fn what_only_this_server_knows_of_a_room_stays_when_somebody_comes_back() {
    let (here, there, stale) = left_after(None).await;
    let room = here.room(&there.room).await;
    let before = here.rooms.extremities(&room).await.unwrap();
    let join = back(&here, &there, stale).await.unwrap();
    let now: Value = here.state(&there.room, "m.room.topic", "").await.unwrap();
    assert_eq!(now["topic"], "new");
    let log = here.rooms.state_at(room.number, here.rooms.durable());
    assert_eq!(log.await.unwrap().joined, 2);
    let servers = here.rooms.servers(room.number, 10).await.unwrap();
    assert_eq!(servers, ["here.example", "there.example"]);
    // What is said next follows both, so that others hear of it.
    let extremities = here.rooms.extremities(&room).await.unwrap();
    assert_eq!(extremities, [before[0].clone(), join.event_id().to_owned()]);
    here.say(&user("alice"), &there.room, "back").await;
    assert_eq!(here.rooms.extremities(&room).await.unwrap().len(), 1);
    here.rooms.sweep().await.unwrap();
    let again = here.restart().await;
    again.say(&user("alice"), &there.room, "again").await;
}

#[tokio::test]
async fn a_ban_that_is_known_here_lets_nobody_in_by_a_server_that_does_not_know_it() {
    let user = user("alice");
    let (here, there, stale) = left_after(Some(MembershipChange::Ban { user })).await;
    let refused = back(&here, &there, stale).await;
    assert!(
        matches!(refused, Err(RoomError::Forbidden(_))),
        "{refused:?}"
    );
    let room = here.room(&there.room).await;
    assert!(!here.rooms.is_resident(&room).await.unwrap());
}

#[tokio::test]
async fn an_invite_from_elsewhere_is_told_once_refused_and_forgotten() {
    let (here, there) = (Server::start().await, There::of_version("12").await);
    let alice = user("alice");
    let number = here.rooms.user_number(&alice).await.unwrap();
    let invite = there.member(&there.host, &alice, "invite").await;
    let outside = there.outside(&invite, "alice").await;
    let told = here.rooms.note_outside(&outside).await.unwrap();
    assert_eq!(here.rooms.note_outside(&outside).await.unwrap(), told);
    let standing = here.rooms.standing_of(&alice, &there.room).await.unwrap();
    let standing = standing.unwrap();
    assert_eq!(standing.pdu.event_id(), invite.event_id());
    assert_eq!(standing.via, [server_name!("there.example")]);
    let stripped = here.rooms.stripped_state(&standing.membership).await;
    let stripped: Vec<Value> = stripped
        .unwrap()
        .iter()
        .map(|json| serde_json::from_str(json).unwrap())
        .collect();
    assert_eq!(stripped.len(), 2, "what is no event is left out");
    assert_eq!(stripped[0]["content"]["name"], "far");
    assert_eq!(stripped[0].as_object().unwrap().len(), 4);
    assert_eq!(stripped[1]["state_key"], "@alice:here.example");
    let all = here.rooms.memberships(number, here.rooms.durable()).await;
    assert_eq!(all.unwrap().len(), 1);
    let forget = here.rooms.forget_outside(&alice, &there.room).await;
    assert!(matches!(forget, Err(RoomError::StillInRoom)));

    let leave = there.member(&alice, &alice, "leave").await;
    let leave = there.outside(&leave, "alice").await;
    here.rooms.note_outside(&leave).await.unwrap();
    assert_eq!(
        stands(&here, "alice", &there).await,
        Some((Membership::Leave, true))
    );
    assert!(
        here.rooms
            .forget_outside(&alice, &there.room)
            .await
            .unwrap()
    );
    let standing = here.rooms.standing_of(&alice, &there.room).await.unwrap();
    assert!(standing.unwrap().membership.forgotten);
    // Nobody else was invited, so nobody else can have left.
    let leave = there.outside(&leave.pdu, "bob").await;
    assert!(here.rooms.note_outside(&leave).await.is_err());
    assert_eq!(stands(&here, "bob", &there).await, None);
}

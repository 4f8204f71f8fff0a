//! Rooms that are joined with part of their state, and made whole afterwards.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use homeserver_events::{Draft, EventReference, Pdu, SigningKey, StatusKind};
use homeserver_storage::{Direction, ScanRange, engines::memory::MemoryEngine};
use ruma::{OwnedServerName, OwnedUserId, UserId};
use serde_json::{Value, json, value::to_raw_value};

use super::{
    arrivals::There,
    mortal::{MortalEngine, copy},
    support::{Server, event, user},
};
use crate::{
    Arriving, ImportId, Imported, MembershipChange, PartTaken, Received, RoomError, tables,
};

/// A user of some server elsewhere.
fn far(name: &str, server: &str) -> OwnedUserId {
    UserId::parse(format!("@{name}:{server}.example")).unwrap()
}

/// A room elsewhere with members of several servers, and where it is taken in.
struct Scene {
    here: Server,
    there: There,
    alice: OwnedUserId,
    /// The state before the join, and what authorises it.
    whole: Vec<Imported>,
    join: Pdu,
}

/// Takes an event in where the room is whole.
async fn take(there: &There, pdu: &Pdu) -> StatusKind {
    let room = there.server.room(&there.room).await;
    match there
        .server
        .rooms
        .receive(&room, pdu.clone())
        .await
        .unwrap()
    {
        Received::Judged { status, .. } => status,
        Received::Missing { .. } => panic!("{} lacks something", pdu.event_id()),
    }
}

/// What the room has now, with the auth chains, in order.
async fn whole_state(there: &There) -> Vec<Imported> {
    let mut events: Vec<_> = there
        .state()
        .await
        .into_iter()
        .map(Imported::State)
        .collect();
    for pdu in there.replaced().await {
        let after = |event: &Imported| {
            let (Imported::State(other) | Imported::Auth(other)) = event;
            other.auth_events().contains(&pdu.event_id().to_owned())
        };
        let at = events.iter().position(after).unwrap_or(events.len());
        events.insert(at, Imported::Auth(pdu));
    }
    events
}

/// The state without members, but for those that authorise the rest.
fn without_members(whole: &[Imported]) -> Vec<Imported> {
    let is_member = |pdu: &Pdu| pdu.event_type() == "m.room.member";
    let mut kept: Vec<Imported> = Vec::new();
    for event in whole.iter().rev() {
        let (Imported::State(pdu) | Imported::Auth(pdu)) = event;
        let names = |other: &Imported| {
            let (Imported::State(other) | Imported::Auth(other)) = other;
            other.auth_events().iter().any(|id| id == pdu.event_id())
        };
        if !is_member(pdu) {
            kept.push(event.clone());
        } else if kept.iter().any(names) {
            kept.push(Imported::Auth(pdu.clone()));
        }
    }
    kept.reverse();
    kept
}

async fn import(server: &Server, import: ImportId, first: u64, events: &[Imported]) {
    for (ordinal, part) in (first..).zip(events.chunks(50)) {
        let taken = server.rooms.import_part(import, ordinal, part).await;
        assert_eq!(taken.unwrap(), PartTaken::Stored);
    }
}

fn servers() -> Vec<OwnedServerName> {
    let names = ["there.example", "other.example", "bad.example"];
    names.map(|name| name.try_into().unwrap()).to_vec()
}

/// Begins to take the room in with this state.
async fn begin(here: &Server, there: &There, state: &[Imported]) -> Arriving {
    let Some(Imported::State(create)) = state.first() else {
        panic!("the create event comes first");
    };
    let version = there.server.room(&there.room).await.version.clone();
    let begun = here
        .rooms
        .begin_arrival(&there.room, &version, create)
        .await;
    let begun = begun.unwrap();
    import(here, begun.import, begun.first_part, state).await;
    begun
}

impl Scene {
    /// A room with members, in which `alice` of this server is with part of its state.
    async fn of_version(version: &str) -> Self {
        Self::on(version, Arc::new(MemoryEngine::new())).await
    }

    async fn on(version: &str, engine: Arc<MemoryEngine>) -> Self {
        let there = There::of_version(version).await;
        let (bob, eve, mallory) = (far("bob", "there"), far("eve", "other"), far("m", "bad"));
        there.server.join(&bob, &there.room).await.unwrap();
        for user in [&eve, &mallory] {
            let joined = there.member(user, user, "join").await;
            assert_eq!(take(&there, &joined).await, StatusKind::Accepted);
        }
        Self::joining(Server::on(engine).await, there).await
    }

    async fn joining(here: Server, there: There) -> Self {
        let (whole, alice) = (whole_state(&there).await, user("alice"));
        let begun = begin(&here, &there, &without_members(&whole)).await;
        let join = there.member(&alice, &alice, "join").await;
        let arrived = here
            .rooms
            .arrive_partial(begun.import, join.clone(), servers());
        arrived.await.unwrap();
        assert_eq!(take(&there, &join).await, StatusKind::Accepted);
        Self {
            here,
            there,
            alice,
            whole,
            join,
        }
    }

    /// Receives an event here, with those that authorise it.
    async fn receive(&self, pdu: &Pdu) -> StatusKind {
        let room = self.here.room(&self.there.room).await;
        for _ in 0..2 {
            match self.here.rooms.receive(&room, pdu.clone()).await.unwrap() {
                Received::Judged { status, .. } => return status,
                Received::Missing { prev, auth } => {
                    assert!(prev.is_empty(), "{prev:?}");
                    let chain = self.whole.iter().filter_map(|event| {
                        let (Imported::State(pdu) | Imported::Auth(pdu)) = event;
                        auth.iter()
                            .any(|id| id == pdu.event_id())
                            .then(|| pdu.clone())
                    });
                    let taken = self.here.rooms.receive_outliers(&room, chain.collect());
                    assert_eq!(taken.await.unwrap().left_out, [""; 0]);
                }
            }
        }
        panic!("what authorises it is not to be had");
    }

    /// Makes the room whole with this state.
    async fn complete(&self, events: &[Imported]) -> Result<u64, RoomError> {
        let room = self.here.room(&self.there.room).await;
        let begun = self.here.rooms.begin_whole(&room).await?;
        import(&self.here, begun, 0, events).await;
        let made = self.here.rooms.make_whole(begun).await;
        if made.is_err() {
            self.here.rooms.abandon_whole(&room, begun).await.unwrap();
        }
        made
    }

    async fn is_partial(&self) -> bool {
        let room = self.here.room(&self.there.room).await;
        self.here.rooms.is_partial(room.number)
    }

    /// The kind of status of an event here.
    async fn status(&self, pdu: &Pdu) -> StatusKind {
        let room = self.here.room(&self.there.room).await;
        let events = &self.here.rooms.events;
        let number = events.number(room.number, pdu.event_id()).await.unwrap();
        let event = events.load(&room, number.unwrap()).await.unwrap();
        event.status.kind()
    }

    /// An event that somebody makes with these previous events.
    async fn made(
        &self,
        sender: &UserId,
        (event_type, key): (&str, Option<&str>),
        content: &Value,
        prev: &[&Pdu],
    ) -> Pdu {
        let room = self.there.server.room(&self.there.room).await;
        let implied = room.rules.create_is_implied();
        let auth = self.whole.iter().filter_map(|event| {
            let Imported::State(pdu) = event else {
                return None;
            };
            let (kind, key) = pdu.state_pair()?;
            let named = match kind {
                "m.room.create" => !implied,
                "m.room.power_levels" => true,
                "m.room.member" => key == sender.as_str(),
                _ => false,
            };
            named.then(|| pdu.reference().unwrap())
        });
        let reference = |pdu: &&Pdu| -> EventReference { pdu.reference().unwrap() };
        let draft = Draft {
            room_id: Some(self.there.room.clone()),
            sender: sender.to_owned(),
            event_type: event_type.to_owned(),
            state_key: key.map(ToOwned::to_owned),
            content: to_raw_value(content).unwrap(),
            origin_server_ts: 1_700_000_000_500,
            prev_events: prev.iter().map(reference).collect(),
            auth_events: auth.collect(),
            depth: prev.iter().map(|pdu| pdu.depth()).max().unwrap() + 1,
            redacts: None,
        };
        let key = SigningKey::from_seed("test", &[5; 32]).unwrap();
        draft.seal(room.rules, sender.server_name(), &key).unwrap()
    }

    async fn message(&self, sender: &UserId, text: &str, prev: &[&Pdu]) -> Pdu {
        let content = json!({ "msgtype": "m.text", "body": text });
        let kind = ("m.room.message", None);
        self.made(sender, kind, &content, prev).await
    }

    /// An event that was sent here.
    async fn sent(&self, text: &str) -> Pdu {
        let id = self.here.say(&self.alice, &self.there.room, text).await;
        let room = self.here.room(&self.there.room).await;
        let events = &self.here.rooms.events;
        let number = events.number(room.number, &id).await.unwrap();
        events
            .load(&room, number.unwrap())
            .await
            .unwrap()
            .pdu
            .clone()
    }

    /// The state here, by its keys, and how many are joined and invited.
    async fn state_here(&self) -> (BTreeMap<(String, String), String>, (u64, u64)) {
        state_of(&self.here, &self.there).await
    }

    async fn state_there(&self) -> (BTreeMap<(String, String), String>, (u64, u64)) {
        state_of(&self.there.server, &self.there).await
    }
}

async fn state_of(
    server: &Server,
    there: &There,
) -> (BTreeMap<(String, String), String>, (u64, u64)) {
    let room = server.room(&there.room).await;
    let now = server
        .rooms
        .state_at(room.number, server.rooms.durable())
        .await
        .unwrap();
    let all = server.rooms.state_all(&room, now.root).await.unwrap();
    let numbers: Vec<_> = all.iter().map(|(_, number)| *number).collect();
    let events = server.rooms.events.load_all(&room, &numbers).await.unwrap();
    let state = all.iter().zip(&events).map(|((key, _), event)| {
        let key = (key.event_type().to_owned(), key.state_key().to_owned());
        (key, event.pdu.event_id().to_string())
    });
    (state.collect(), (now.joined, now.invited))
}

async fn listed(server: &Server) -> usize {
    let (table, all) = (&tables::PARTIAL_EVENTS, ScanRange::all());
    let scan = server.rooms.store.scan(table, all, Direction::Forward, 100);
    scan.await.unwrap().len()
}

#[tokio::test]
async fn a_room_of_partial_state_is_read_and_written_and_becomes_whole() {
    for version in ["6", "11", "12"] {
        let mut scene = Scene::of_version(version).await;
        assert!(scene.is_partial().await);
        let bob = far("bob", "there");
        let room = scene.here.room(&scene.there.room).await;
        assert!(!scene.here.rooms.knows_member(&room, &bob).await.unwrap());
        let name = scene.here.state(&scene.there.room, "m.room.name", "").await;
        assert_eq!(name.unwrap()["name"], "far");

        // Both sides speak; whoever spoke is known.
        let ours = scene.sent("from here").await;
        assert_eq!(scene.status(&ours).await, StatusKind::PartialAccepted);
        assert_eq!(take(&scene.there, &ours).await, StatusKind::Accepted);
        let theirs = scene.message(&bob, "from there", &[&ours]).await;
        assert_eq!(take(&scene.there, &theirs).await, StatusKind::Accepted);
        assert_eq!(scene.receive(&theirs).await, StatusKind::PartialAccepted);
        assert!(scene.here.rooms.knows_member(&room, &bob).await.unwrap());
        // Others are to ask somebody else.
        let entered = scene
            .here
            .rooms
            .enter_as_server(bob.server_name(), &room.id)
            .await;
        assert!(
            matches!(entered, Err(RoomError::PartialState)),
            "{entered:?}"
        );

        scene.here = scene.here.restart().await;
        assert!(scene.is_partial().await);
        let again = scene.sent("after a restart").await;
        assert_eq!(take(&scene.there, &again).await, StatusKind::Accepted);
        assert!(listed(&scene.here).await >= 4);

        let position = scene.complete(&scene.whole.clone()).await.unwrap();
        assert!(!scene.is_partial().await);
        assert_eq!(scene.state_here().await, scene.state_there().await);
        for pdu in [&scene.join, &ours, &theirs, &again] {
            assert_eq!(scene.status(pdu).await, StatusKind::Accepted);
        }
        assert_eq!(listed(&scene.here).await, 0);
        let rooms = &scene.here.rooms;
        assert_eq!(
            rooms.made_whole_in(room.number, (0, position)),
            Some(position)
        );
        assert!(rooms.was_partial_at(room.number, position - 1));
        // Which servers were there is known also of the time before.
        let since = rooms.partials.get(room.number).unwrap().since;
        let servers = rooms.servers_at(&room, since).await.unwrap();
        let names: Vec<_> = servers.iter().map(|name| name.as_str()).collect();
        let all = [
            "bad.example",
            "here.example",
            "other.example",
            "there.example",
        ];
        assert_eq!(names, all);
        rooms
            .enter_as_server(bob.server_name(), &room.id)
            .await
            .unwrap();

        // And so it is after another start.
        scene.here = scene.here.restart().await;
        assert!(!scene.is_partial().await);
        let last = scene.sent("whole").await;
        assert_eq!(take(&scene.there, &last).await, StatusKind::Accepted);
        assert_eq!(scene.state_here().await, scene.state_there().await);
    }
}

#[tokio::test]
async fn what_the_whole_state_does_not_allow_is_taken_back_in_order() {
    for version in ["6", "11", "12"] {
        let there = There::of_version(version).await;
        let mallory = far("m", "bad");
        let joined = there.member(&mallory, &mallory, "join").await;
        assert_eq!(take(&there, &joined).await, StatusKind::Accepted);
        let ban = MembershipChange::Ban {
            user: mallory.clone(),
        };
        there
            .server
            .member(&there.host, &there.room, ban)
            .await
            .unwrap();
        let mut scene = Scene::joining(Server::start().await, there).await;
        // The ban is not told, and the messages that follow name the join before it.
        let ban = scene.whole.iter().position(|event| {
            let (Imported::State(pdu) | Imported::Auth(pdu)) = event;
            let content: Value = pdu.content_as().unwrap();
            pdu.state_key() == Some(mallory.as_str()) && content["membership"] == "ban"
        });
        let with_ban = scene.whole.clone();
        let position = ban.unwrap();
        scene.whole[position] = Imported::State(joined.clone());
        let said = scene.message(&mallory, "not banned", &[&scene.join]).await;
        let reaction = scene.message(&mallory, "really not", &[&said]).await;
        for pdu in [&said, &reaction] {
            assert_eq!(scene.receive(pdu).await, StatusKind::PartialAccepted);
            assert_eq!(take(&scene.there, pdu).await, StatusKind::Rejected);
        }
        let bodies = async |scene: &Scene| {
            let timeline = scene.here.reader(&scene.alice).await;
            let room = scene.here.room(&scene.there.room).await;
            let slice = scene
                .here
                .rooms
                .timeline(&timeline, &room, 0, 50, &|_| true);
            slice.await.unwrap().events.len()
        };
        assert_eq!(bodies(&scene).await, 3);

        scene.complete(&with_ban).await.unwrap();
        for pdu in [&said, &reaction] {
            assert_eq!(scene.status(pdu).await, StatusKind::Rejected);
        }
        assert_eq!(bodies(&scene).await, 1, "only the join is shown");
        let member = scene
            .here
            .state(&scene.there.room, "m.room.member", mallory.as_str());
        assert_eq!(member.await.unwrap()["membership"], "ban");
        assert_eq!(scene.state_here().await, scene.state_there().await);
        // What is sent now follows the join, not what was taken back.
        let ours = scene.sent("whole").await;
        assert_eq!(ours.prev_events(), [scene.join.event_id().to_owned()]);
        assert_eq!(take(&scene.there, &ours).await, StatusKind::Accepted);
    }
}

#[tokio::test]
async fn an_event_beside_the_join_is_judged_by_the_state_before_the_join() {
    let scene = Scene::of_version("11").await;
    let room = scene.there.server.room(&scene.there.room).await;
    let before: Vec<Pdu> = {
        let all = scene.there.all().await;
        let names = scene.join.prev_events();
        let followed = all
            .into_iter()
            .filter(|pdu| names.contains(&pdu.event_id().to_owned()));
        followed.collect()
    };
    let before: Vec<&Pdu> = before.iter().collect();
    let bob = far("bob", "there");
    let beside = scene.message(&bob, "at the same time", &before).await;
    assert_eq!(take(&scene.there, &beside).await, StatusKind::Accepted);
    assert_eq!(scene.receive(&beside).await, StatusKind::PartialAccepted);
    let ours = scene.sent("after both").await;
    assert_eq!(ours.prev_events().len(), 2);
    assert_eq!(take(&scene.there, &ours).await, StatusKind::Accepted);
    scene.complete(&scene.whole).await.unwrap();
    assert_eq!(scene.status(&beside).await, StatusKind::Accepted);
    assert_eq!(scene.state_here().await, scene.state_there().await);
    drop(room);
}

#[tokio::test]
async fn a_state_that_is_not_that_of_the_room_changes_nothing() {
    let scene = Scene::of_version("11").await;
    let refused = scene.complete(&[]).await;
    assert!(
        matches!(refused, Err(RoomError::Forbidden(_))),
        "{refused:?}"
    );
    assert!(scene.is_partial().await);
    let imports =
        scene
            .here
            .rooms
            .store
            .scan(&tables::IMPORTS, ScanRange::all(), Direction::Forward, 10);
    assert_eq!(imports.await.unwrap().len(), 0, "nothing of it is left");
    scene.sent("still partial").await;
    scene.complete(&scene.whole).await.unwrap();
    let again = scene.complete(&scene.whole).await;
    assert!(matches!(again, Err(RoomError::Forbidden(_))), "{again:?}");
}

#[tokio::test]
async fn two_servers_that_tell_another_state_are_resolved_like_branches() {
    let there = There::of_version("11").await;
    let old = there.state().await;
    there.server.clock.advance(Duration::from_millis(10));
    let topic = event("m.room.name", Some(""), &json!({ "name": "newer" }));
    there
        .server
        .try_send(&there.host, &there.room, topic)
        .await
        .unwrap();
    let scene = Scene::joining(Server::start().await, there).await;
    // An older name, and a member less.
    let stale = scene.whole.iter().map(|event| match event {
        Imported::State(pdu) if pdu.event_type() == "m.room.name" => {
            let older = old.iter().find(|pdu| pdu.event_type() == "m.room.name");
            Imported::State(older.unwrap().clone())
        }
        event => event.clone(),
    });
    let stale: Vec<_> = stale.collect();
    scene.complete(&stale).await.unwrap();
    let name = scene.here.state(&scene.there.room, "m.room.name", "").await;
    assert_eq!(name.unwrap()["name"], "newer");
    assert_eq!(scene.state_here().await, scene.state_there().await);
}

#[tokio::test]
async fn a_join_that_the_whole_state_forbids_ends() {
    let there = There::of_version("11").await;
    let alice = user("alice");
    let before = whole_state(&there).await;
    let here = Server::start().await;
    let join = there.member(&alice, &alice, "join").await;
    let begun = begin(&here, &there, &without_members(&before)).await;
    let ban = MembershipChange::Ban {
        user: alice.clone(),
    };
    there
        .server
        .member(&there.host, &there.room, ban)
        .await
        .unwrap();
    let arrived = here
        .rooms
        .arrive_partial(begun.import, join.clone(), servers());
    arrived.await.unwrap();
    let scene = Scene {
        whole: whole_state(&there).await,
        here,
        there,
        alice,
        join,
    };
    scene.sent("unwelcome").await;
    scene.complete(&scene.whole).await.unwrap();
    assert_eq!(scene.status(&scene.join).await, StatusKind::Rejected);
    let room = scene.here.room(&scene.there.room).await;
    assert!(!scene.here.rooms.is_resident(&room).await.unwrap());
    let number = scene.here.rooms.user_number(&scene.alice).await.unwrap();
    let now = scene
        .here
        .rooms
        .membership(number, room.number, scene.here.rooms.durable());
    assert_eq!(
        now.await.unwrap().unwrap().membership,
        crate::Membership::Ban
    );
}

/// Messages that take more than one batch to be judged again.
const MANY: usize = 400;

#[tokio::test]
async fn a_process_that_is_killed_while_it_judges_again_goes_on_at_the_next_start() {
    let memory = Arc::new(MemoryEngine::new());
    let scene = Scene::on("11", Arc::clone(&memory)).await;
    let bob = far("bob", "there");
    let first = scene.message(&bob, "first", &[&scene.join]).await;
    assert_eq!(scene.receive(&first).await, StatusKind::PartialAccepted);
    let mut said = vec![first];
    for number in 1..MANY {
        let follows = said.last().unwrap();
        said.push(scene.message(&bob, &number.to_string(), &[follows]).await);
    }
    let (room, theirs) = (
        scene.here.room(&scene.there.room).await,
        scene.there.server.room(&scene.there.room).await,
    );
    let events = |said: &[Pdu]| said.iter().cloned().map(Into::into).collect();
    let here = scene
        .here
        .rooms
        .receive_all(&room, events(&said[1..]))
        .await;
    let there = &scene.there.server.rooms;
    let there = there.receive_all(&theirs, events(&said)).await;
    assert!(here.iter().chain(&there).all(Result::is_ok));
    let expected = scene.state_there().await;

    let (mut left_partial, mut gone_on) = (0, 0);
    for commits in 0..12 {
        let database = copy(&memory).await;
        let mortal = MortalEngine::new(database.clone(), u64::MAX / 2);
        let killed = Server::on(mortal.clone()).await;
        let import_id = killed.rooms.begin_whole(&room).await.unwrap();
        import(&killed, import_id, 0, &scene.whole).await;
        mortal.leave(commits);
        let made = killed.rooms.make_whole(import_id).await;
        drop(killed);

        let again = Server::on(database).await;
        let is_partial = again.rooms.is_partial(room.number);
        left_partial += usize::from(is_partial);
        gone_on += usize::from(made.is_err() && !is_partial);
        assert!(made.is_err() || !is_partial, "{commits} commits");
        let imports =
            again
                .rooms
                .store
                .scan(&tables::IMPORTS, ScanRange::all(), Direction::Forward, 10);
        assert_eq!(imports.await.unwrap().len(), 0, "{commits} commits");
        if is_partial {
            let import_id = again.rooms.begin_whole(&room).await.unwrap();
            import(&again, import_id, 0, &scene.whole).await;
            again.rooms.make_whole(import_id).await.unwrap();
        }
        assert_eq!(
            state_of(&again, &scene.there).await,
            expected,
            "{commits} commits"
        );
        assert_eq!(listed(&again).await, 0, "{commits} commits");
        for pdu in &said {
            let number = again.rooms.events.number(room.number, pdu.event_id()).await;
            let event = again
                .rooms
                .events
                .load(&room, number.unwrap().unwrap())
                .await;
            assert_eq!(event.unwrap().status.kind(), StatusKind::Accepted);
        }
        again.say(&scene.alice, &scene.there.room, "on").await;
    }
    assert!(left_partial > 0 && gone_on > 0, "{left_partial} {gone_on}");
}

/// Numbers that look random and follow from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        let next = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = next.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

impl Scene {
    /// An event of a user there, or of one here, as its server stored it; `None` if that refused it.
    async fn of(&self, sender: &OwnedUserId, new: crate::NewEvent) -> Option<Pdu> {
        let server = match sender.server_name().as_str() {
            "here.example" => &self.here,
            _ => &self.there.server,
        };
        server.clock.advance(Duration::from_millis(10));
        let id = server.try_send(sender, &self.there.room, new).await.ok()?;
        let room = server.room(&self.there.room).await;
        let number = server.rooms.events.number(room.number, &id).await.unwrap();
        let event = server.rooms.events.load(&room, number.unwrap()).await;
        // Where it says what stands already, that is told: it may be older than the join.
        let pdu = event.unwrap().pdu.clone();
        (pdu.depth() > self.join.depth()).then_some(pdu)
    }

    /// Something that somebody there does.
    async fn something(&self, dice: &mut Dice) -> Option<Pdu> {
        let users = ["host", "bob", "new0", "new1"].map(|name| far(name, "there"));
        let pick = |dice: &mut Dice| users[dice.roll(4) as usize].clone();
        let (sender, target) = (pick(dice), pick(dice));
        let membership = |sender: &OwnedUserId, target: &OwnedUserId, membership: &str| {
            let content = json!({ "membership": membership });
            let new = event("m.room.member", Some(target.as_str()), &content);
            (sender.clone(), new)
        };
        let (sender, new) = match dice.roll(8) {
            0 => {
                let levels = json!({ "users": { users[0].as_str(): 100, users[1].as_str(): 50 } });
                (
                    users[0].clone(),
                    event("m.room.power_levels", Some(""), &levels),
                )
            }
            1 => {
                let content = json!({ "topic": dice.roll(1000).to_string() });
                (sender, event("m.room.topic", Some(""), &content))
            }
            2 => membership(&sender, &sender, "join"),
            3 => membership(&sender, &sender, "leave"),
            4 => membership(&users[0], &target, "leave"),
            5 => membership(&users[0], &target, "ban"),
            _ => {
                let body = dice.roll(1000).to_string();
                let content = json!({ "msgtype": "m.text", "body": body });
                (sender, event("m.room.message", None, &content))
            }
        };
        // The room is not to be left by all.
        let is_host = new.state_key.as_deref() == Some(users[0].as_str());
        if new.event_type == "m.room.member" && is_host {
            return None;
        }
        self.of(&sender, new).await
    }
}

#[tokio::test]
async fn who_joined_with_part_of_the_state_comes_to_the_same_as_who_has_all_of_it() {
    let mut events = 0;
    for seed in 0..24 {
        let version = if seed % 2 == 0 { "10" } else { "12" };
        let scene = Scene::of_version(version).await;
        let mut dice = Dice(seed);
        // What was done on each side and is not told to the other yet.
        let (mut to_here, mut to_there) = (Vec::new(), Vec::new());
        let mut all = Vec::new();
        for _ in 0..30 {
            match dice.roll(6) {
                0 => {
                    let body = json!({ "msgtype": "m.text", "body": "ours" });
                    let new = event("m.room.message", None, &body);
                    to_there.extend(scene.of(&scene.alice, new).await);
                }
                1 => {
                    for pdu in to_here.drain(..) {
                        scene.receive(&pdu).await;
                        all.push(pdu);
                    }
                }
                2 => {
                    for pdu in to_there.drain(..) {
                        take(&scene.there, &pdu).await;
                        all.push(pdu);
                    }
                }
                _ => to_here.extend(scene.something(&mut dice).await),
            }
        }
        // Half of it comes before the room is whole, half after.
        if seed % 4 < 2 {
            scene.complete(&scene.whole).await.unwrap();
        }
        for pdu in to_here.drain(..) {
            scene.receive(&pdu).await;
            all.push(pdu);
        }
        for pdu in to_there.drain(..) {
            take(&scene.there, &pdu).await;
            all.push(pdu);
        }
        if scene.is_partial().await {
            scene.complete(&scene.whole).await.unwrap();
        }
        assert_eq!(
            scene.state_here().await,
            scene.state_there().await,
            "seed {seed}"
        );
        for pdu in &all {
            let status = scene.status(pdu).await;
            let theirs = state_status(&scene.there.server, &scene, pdu).await;
            let rejected = |status| status == StatusKind::Rejected;
            assert_eq!(rejected(status), rejected(theirs), "seed {seed}: {pdu:?}");
        }
        events += all.len();
    }
    assert!(events > 24 * 5, "only {events} events");
}

async fn state_status(server: &Server, scene: &Scene, pdu: &Pdu) -> StatusKind {
    let room = server.room(&scene.there.room).await;
    let number = server
        .rooms
        .events
        .number(room.number, pdu.event_id())
        .await;
    let event = server
        .rooms
        .events
        .load(&room, number.unwrap().unwrap())
        .await;
    event.unwrap().status.kind()
}

//! What a lying server does at random, and what must not have come of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use homeserver::events::Pdu;
use http::Method;
use parking_lot::Mutex;
use ruma::{OwnedEventId, OwnedServerName, OwnedUserId};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    actors::{Actor, Room},
    dice::Dice,
    liar::{Liar, Lie, New, altered},
    verdict,
    world::{Cast, World},
};

/// What it does for each thing that a user does.
const LIES_PER_ACTION: u64 = 2;
/// Questions that it is asked for each event that it sends to a server, on the average of a seed.
/// Looking for one missing event takes a few, and is tried again some times.
const QUESTIONS_PER_EVENT: usize = 40;

/// The lying server of a seed, if it has one.
pub(super) struct Liars {
    liar: Option<Arc<Liar>>,
    dice: Mutex<Dice>,
    deeds: Mutex<Deeds>,
}

#[derive(Default)]
struct Deeds {
    /// What must be nowhere: room, event, and what it is.
    outlaws: Vec<(String, OwnedEventId, &'static str)>,
    /// Good events about which it did not lie, by room.
    good: BTreeMap<String, BTreeSet<OwnedEventId>>,
    /// Good events that a server said it took: server, room, event.
    taken: Vec<(OwnedServerName, String, OwnedEventId)>,
    /// Events sent, counted for each server.
    sent: usize,
    /// Transactions and handshakes that were made: to whom, method, target, body.
    before: Vec<(OwnedServerName, Method, String, String)>,
}

impl Liars {
    /// The lying server of a world, which begins to be reached.
    pub(super) fn of(world: &World, dice: &mut Dice) -> Self {
        let liar = (world.cast != Cast::Plain)
            .then(|| Liar::enter(&world.network, dice.between(1, 250) as u8));
        let seed = if liar.is_some() { dice.throw() } else { 0 };
        Self {
            liar,
            dice: Mutex::new(Dice::new(seed)),
            deeds: Mutex::default(),
        }
    }

    /// Does so many bad things.
    pub(super) async fn act(&self, world: &World, actions: u64) {
        let Some(liar) = &self.liar else { return };
        for _ in 0..actions * LIES_PER_ACTION {
            let pause = self.between(50, 2_500);
            sleep(Duration::from_millis(pause)).await;
            let rooms = world.rooms.lock().clone();
            let room = self.pick(&rooms);
            let joined = liar.knows(&room.id, |_| ()).is_some();
            if !joined {
                let through = self.server(&room);
                if let Some((target, join)) = liar.join(&through, &room.id).await {
                    let before = (through, Method::PUT, target, join);
                    self.deeds.lock().before.push(before);
                }
            } else if world.cast == Cast::Disk {
                self.speak_once(liar, &room).await;
            } else {
                self.lie(liar, &room, &rooms).await;
            }
        }
    }

    fn between(&self, from: u64, to: u64) -> u64 {
        self.dice.lock().between(from, to)
    }

    fn pick<T: Clone>(&self, from: &[T]) -> T {
        self.dice.lock().pick(from).expect("something").clone()
    }

    /// One of the servers.
    fn server(&self, room: &Room) -> OwnedServerName {
        let all: Vec<_> = room.servers.iter().cloned().collect();
        self.pick(&all)
    }

    /// Some of the servers, one at least.
    fn some(&self, room: &Room) -> Vec<OwnedServerName> {
        let all: Vec<_> = room.servers.iter().cloned().collect();
        let mut some = all.clone();
        some.retain(|_| self.dice.lock().chance(500));
        if some.is_empty() {
            vec![self.server(room)]
        } else {
            some
        }
    }

    fn good(&self, room: &str, event: &Pdu) {
        let mut deeds = self.deeds.lock();
        let good = deeds.good.entry(room.to_owned()).or_default();
        good.insert(event.event_id().to_owned());
    }

    fn outlaw(&self, room: &str, event: &Pdu, what: &'static str) {
        let outlaw = (room.to_owned(), event.event_id().to_owned(), what);
        self.deeds.lock().outlaws.push(outlaw);
    }

    /// Sends an event to servers.
    async fn send(&self, liar: &Liar, to: &[OwnedServerName], event: &Pdu) {
        self.deeds.lock().sent += to.len();
        let (id, prev) = (event.event_id(), event.prev_events());
        liar.note(&format!(
            "{} {id} after {prev:?} to {to:?}",
            event.event_type()
        ));
        join_all(to.iter().map(|server| async {
            if liar.send(server, &[event]).await {
                let room = event.room_id().to_string();
                let taken = (server.clone(), room, event.event_id().to_owned());
                self.deeds.lock().taken.push(taken);
            }
        }))
        .await;
    }

    /// Says something to one server, follows it there only, and gives it to nobody else.
    async fn speak_once(&self, liar: &Liar, room: &Room) {
        let to = self.server(room);
        let last = {
            let deeds = self.deeds.lock();
            let mut taken = deeds.taken.iter().rev();
            let last = taken.find(|(server, at, _)| *server == to && *at == room.id);
            last.map(|(_, _, event)| event.clone())
        };
        let text = format!("once {}", self.between(0, 1_000_000));
        let event = liar.knows(&room.id, |known| {
            let last = last.unwrap_or_else(|| known.join.clone());
            known.events[&last].clone()
        });
        let event = liar
            .message(&room.id, &text)
            .after(&[&event.expect("joined")]);
        let event = liar.aside(&room.id, event);
        liar.withhold(event.event_id(), &[]);
        self.good(&room.id, &event);
        self.send(liar, &[to], &event).await;
    }

    async fn lie(&self, liar: &Liar, room: &Room, rooms: &[Room]) {
        let id = &room.id;
        let all: Vec<_> = room.servers.iter().cloned().collect();
        let text = format!("lie {}", self.between(0, 1_000_000));
        match self.between(0, 16) {
            0..3 => {
                let event = liar.seal(id, liar.message(id, &text));
                self.good(id, &event);
                self.send(liar, &all, &event).await;
            }
            3 => {
                // Two events in one place, each for other servers.
                let (new, side) = (liar.message(id, &text), self.some(room));
                let one = liar.seal(id, new.clone());
                let other = liar.seal(id, new.with(json!({ "body": "the other" })));
                self.good(id, &one);
                self.good(id, &other);
                self.send(liar, &side, &one).await;
                let rest: Vec<_> = all.into_iter().filter(|to| !side.contains(to)).collect();
                self.send(liar, &rest, &other).await;
            }
            4 => {
                let side = self.some(room);
                let one = liar.seal(id, liar.profile(id, &text));
                let other = liar.aside(id, liar.profile(id, "another").after(&[&one]));
                self.send(liar, &side, &one).await;
                self.send(liar, &self.some(room), &other).await;
            }
            5 => self.over_a_gap(liar, room, &text).await,
            6 => {
                let side = self.some(room);
                let event = liar.seal(id, liar.message(id, &text));
                liar.withhold(event.event_id(), &side.iter().collect::<Vec<_>>());
                self.good(id, &event);
                self.send(liar, &side, &event).await;
            }
            7 => {
                let depth = self.pick(&[0, 1, 1_000_000, (1 << 53) - 1]);
                let time = self.pick(&[0, 1, liar.now() * 2, (1 << 53) - 1]);
                let old = liar.knows(id, |known| {
                    let events: Vec<_> = known.events.values().cloned().collect();
                    self.pick(&events)
                });
                let old = old.expect("joined");
                let new = liar.message(id, &text).after(&[&old]);
                let event = liar.aside(id, New { depth, time, ..new });
                self.send(liar, &self.some(room), &event).await;
            }
            8 => {
                let before = self.deeds.lock().before.clone();
                let (_, method, target, body) = self.pick(&before);
                liar.ask(&self.server(room), method, &target, &body).await;
            }
            9 => self.forge(liar, room, &text).await,
            10 | 11 => {
                let endpoints = [
                    "/event/",
                    "/state_ids/",
                    "/state/",
                    "/get_missing",
                    "/backfill",
                    "/event_auth/",
                    "/",
                ];
                let lie = self.answer(liar, id);
                liar.lie(self.pick(&endpoints), lie);
            }
            12 => liar.repent(),
            13 => {
                // Into a room that it is not in, and one that nobody is in.
                let event = liar.aside(id, liar.message(id, &text));
                let other = self.pick(rooms).id;
                let elsewhere = if liar.knows(&other, |_| ()).is_some() {
                    "!elsewhere:liar.example".to_owned()
                } else {
                    other
                };
                let text = altered(&event, &[("room_id", json!(elsewhere))]);
                liar.send_text(&self.server(room), text).await;
            }
            14 => self.tell_of_others(liar, room).await,
            _ => self.rule(liar, room).await,
        }
    }

    /// An event after one that nobody is given, with a state before it that is not true.
    async fn over_a_gap(&self, liar: &Liar, room: &Room, text: &str) {
        let id = &room.id;
        let hidden = liar.seal(id, liar.message(id, "hidden"));
        liar.withhold(hidden.event_id(), &[]);
        let event = liar.seal(id, liar.message(id, text).after(&[&hidden]));
        let state = liar.knows(id, |known| {
            let mut state: Vec<_> = known.joined_at.values().cloned().collect();
            state.retain(|_| self.dice.lock().chance(800));
            state
        });
        liar.tells(id, event.event_id(), state.unwrap_or_default());
        self.send(liar, &self.some(room), &event).await;
    }

    /// Events in the name of others, and with signatures and hashes that do not hold.
    async fn forge(&self, liar: &Liar, room: &Room, text: &str) {
        let id = &room.id;
        let to = self.some(room);
        let victim = self.server(room);
        let victim = OwnedUserId::try_from(format!("@user:{victim}")).unwrap();
        match self.between(0, 3) {
            0 => {
                let forged = liar.forge(id, liar.message(id, text), &victim);
                liar.keep(id, &forged);
                self.outlaw(id, &forged, "forged");
                self.send(liar, &to, &forged).await;
            }
            1 => {
                // The same event, as others must not take it, before they are told it.
                let event = liar.seal(id, liar.message(id, text));
                let text = altered(
                    &event,
                    &[(
                        "signatures",
                        json!({ "liar.example": { "ed25519:a": "AAAA" } }),
                    )],
                );
                for server in &to {
                    liar.send_text(server, text.clone()).await;
                }
                self.good(id, &event);
                self.send(liar, &to, &event).await;
            }
            _ => {
                let event = liar.seal(id, liar.message(id, text));
                let text = altered(
                    &event,
                    &[("content", json!({ "msgtype": "m.text", "body": "changed" }))],
                );
                for server in &to {
                    liar.send_text(server, text.clone()).await;
                }
            }
        }
    }

    /// Does what it has no power to do.
    async fn rule(&self, liar: &Liar, room: &Room) {
        let id = &room.id;
        let victim = format!("@user:{}", self.server(room));
        let new = liar.message(id, "");
        let new = match self.between(0, 4) {
            0 => new.state("m.room.member", &victim, json!({ "membership": "ban" })),
            1 => new.state("m.room.member", &victim, json!({ "membership": "leave" })),
            2 => new.state("m.room.topic", "", json!({ "topic": "mine" })),
            _ => {
                let levels = json!({ "users": { liar.user.as_str(): 100 } });
                new.state("m.room.power_levels", "", levels)
            }
        };
        let event = liar.aside(id, new);
        self.outlaw(id, &event, "without power");
        self.send(liar, &self.some(room), &event).await;
    }

    /// What is no event, about users of others.
    async fn tell_of_others(&self, liar: &Liar, room: &Room) {
        let victim = format!("@user:{}", self.server(room));
        let edus = [
            json!({ "edu_type": "m.typing", "content": {
                "room_id": room.id, "user_id": victim, "typing": true } }),
            json!({ "edu_type": "m.presence", "content": { "push": [
                { "user_id": victim, "presence": "online", "last_active_ago": 1 } ] } }),
            json!({ "edu_type": "m.direct_to_device", "content": { "sender": victim,
                "type": "m.test", "message_id": "1", "messages": { victim.as_str(): { "*": {} } } } }),
            json!({ "edu_type": "m.device_list_update", "content": { "user_id": victim,
                "device_id": "X", "stream_id": 1, "prev_id": [] } }),
        ];
        let to = self.server(room);
        let id = liar.transaction();
        liar.transact(&to, &id, &[], &edus).await;
    }

    /// A wrong answer.
    fn answer(&self, liar: &Liar, room: &str) -> Lie {
        let event = liar.knows(room, |known| {
            let events: Vec<_> = known.events.values().collect();
            let event = self.pick(&events);
            serde_json::from_slice::<Value>(event.json()).unwrap()
        });
        let event = event.expect("joined");
        match self.between(0, 6) {
            0 => Lie::Json(
                200,
                json!({ "pdus": [event], "events": [event], "auth_chain": [event],
                "pdu_ids": ["$x"], "auth_chain_ids": ["$y"] }),
            ),
            1 => Lie::Json(self.pick(&[400, 403, 404, 429, 500, 502]), json!({})),
            2 => Lie::Text(
                self.pick(&["", "{", "[]", "<html>", "null", "{\"pdus\":7}"])
                    .to_owned(),
            ),
            3 => Lie::Late(Duration::from_secs(self.between(1, 90))),
            4 => Lie::Halt,
            _ => Lie::Json(
                200,
                json!({ "pdus": vec![event; 200], "events": [], "auth_chain": [],
                "pdu_ids": [], "auth_chain_ids": [] }),
            ),
        }
    }

    /// Its last true word in each room, to all: who its user is.
    ///
    /// Nobody but the maker of an event can tell the state before it while its past is withheld, and
    /// the maker may leave out what its own user was. What comes of that past later is history, so
    /// servers that were told differently differ in that one membership, until it changes again.
    pub(super) async fn come_clean(&self, world: &World) {
        let Some(liar) = self.liar.as_ref().filter(|_| world.cast == Cast::Liar) else {
            return;
        };
        liar.repent();
        let rooms = world.rooms.lock().clone();
        for room in &rooms {
            if liar.knows(&room.id, |_| ()).is_some() {
                let all: Vec<_> = room.servers.iter().cloned().collect();
                let event = liar.seal(&room.id, liar.profile(&room.id, "the last word"));
                self.send(liar, &all, &event).await;
            }
        }
    }

    /// Notes what came of it that must not have.
    pub(super) async fn judge(&self, world: &World, actors: &[Actor]) {
        let Some(liar) = &self.liar else { return };
        let mut found = Vec::new();
        let deeds = std::mem::take(&mut *self.deeds.lock());
        let asked = liar.asked().len();
        let bound = QUESTIONS_PER_EVENT * (deeds.sent + 10);
        if asked > bound {
            found.push(format!(
                "the liar was asked {asked} times, more than {bound}"
            ));
        }
        let rooms = world.rooms.lock().clone();
        for room in &rooms {
            // Paging fetches what is lacking, from those who have it by then.
            for actor in actors {
                if actor.is_in(world, &room.id).await {
                    verdict::history(world, actor, &room.id).await;
                }
            }
            let mut seen_by = Vec::new();
            for actor in actors {
                if actor.is_in(world, &room.id).await {
                    let history = verdict::history(world, actor, &room.id).await;
                    let state = verdict::state(world, actor, &room.id).await;
                    seen_by.push((actor, history, state));
                }
            }
            for (at, event, what) in &deeds.outlaws {
                for (actor, history, state) in &seen_by {
                    let here = history.contains(event.as_str())
                        || state.values().any(|held| held == event.as_str());
                    if *at == room.id && here {
                        found.push(format!("{} has {event}, which is {what}", actor.user));
                    }
                }
            }
            let good = deeds.good.get(&room.id).cloned().unwrap_or_default();
            for event in &good {
                let has = |history: &BTreeSet<String>| history.contains(event.as_str());
                let somewhere = seen_by.iter().any(|(actor, history, _)| {
                    has(history) && !room.unsteady.contains(&actor.user)
                });
                for (actor, history, _) in &seen_by {
                    if somewhere && !has(history) {
                        found.push(format!("{} lacks {event} of the liar", actor.user));
                    }
                }
            }
            for (server, at, event) in &deeds.taken {
                let its = seen_by.iter().find(|(actor, _, _)| actor.server == *server);
                let Some((actor, history, _)) = its else {
                    continue;
                };
                // Of an event whose past it lies about it may be true that nobody can judge it.
                let whole = world.cast == Cast::Disk && good.contains(event);
                let steady = whole && !room.unsteady.contains(&actor.user);
                if *at == room.id && steady && !history.contains(event.as_str()) {
                    found.push(format!("{server} took {event} of the liar and lost it"));
                }
            }
        }
        world.faults.lock().extend(found);
    }
}

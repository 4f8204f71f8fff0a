//! Room version 1, worked by hand from the specification.

use serde_json::{Value, json};
use sha1::{Digest, Sha1};

use super::{EventNumber, State, TestRoom, key};
use crate::RoomVersion;

const ALICE: &str = "@alice:a.org";
const BOB: &str = "@bob:a.org";

/// A room of version 1 with a depth for every event.
struct Room {
    room: TestRoom,
    base: State,
}

impl Room {
    /// Alice has level 100, Bob 50; anybody may join.
    fn new() -> Self {
        let mut this = Self {
            room: TestRoom::new(RoomVersion::V1),
            base: State::new(),
        };
        let levels = json!({ "users": { ALICE: 100, BOB: 50 } });
        for (depth, id, sender, event_type, state_key, content) in [
            (
                1,
                "create",
                ALICE,
                "m.room.create",
                "",
                json!({ "creator": ALICE }),
            ),
            (
                2,
                "alice",
                ALICE,
                "m.room.member",
                ALICE,
                json!({ "membership": "join" }),
            ),
            (3, "levels", ALICE, "m.room.power_levels", "", levels),
            (
                4,
                "rules",
                ALICE,
                "m.room.join_rules",
                "",
                json!({ "join_rule": "public" }),
            ),
            (
                5,
                "bob",
                BOB,
                "m.room.member",
                BOB,
                json!({ "membership": "join" }),
            ),
        ] {
            let number = this.send(depth, id, sender, event_type, state_key, &content);
            this.base.insert(key(event_type, state_key), number);
        }
        this
    }

    fn send(
        &mut self,
        depth: u64,
        id: &str,
        sender: &str,
        event_type: &str,
        state_key: &str,
        content: &Value,
    ) -> EventNumber {
        let prev = if id == "create" {
            json!([])
        } else {
            json!(["$create:a.org"])
        };
        let auth: Vec<_> = self
            .base
            .values()
            .map(|number| self.room.id(*number))
            .collect();
        let auth = if id == "create" {
            json!([])
        } else {
            json!(auth)
        };
        self.room.add(json!({
            "event_id": format!("${id}:a.org"), "room_id": "!r:a.org", "type": event_type,
            "state_key": state_key, "sender": sender, "content": content, "depth": depth,
            "origin_server_ts": 1, "prev_events": prev, "auth_events": auth,
        }))
    }

    fn topic(&mut self, depth: u64, id: &str, sender: &str) -> EventNumber {
        self.send(
            depth,
            id,
            sender,
            "m.room.topic",
            "",
            &json!({ "topic": id }),
        )
    }

    fn levels(&mut self, depth: u64, id: &str, sender: &str, bob: i64) -> EventNumber {
        let content = json!({ "users": { ALICE: 100, BOB: bob } });
        self.send(depth, id, sender, "m.room.power_levels", "", &content)
    }

    fn with(&self, changes: &[EventNumber]) -> State {
        let mut state = self.base.clone();
        for number in changes {
            let event = &self.room.event(*number).event;
            state.insert(key(event.event_type(), event.state_key().unwrap()), *number);
        }
        state
    }

    /// The value of a key after resolving the base with each of these changes.
    fn resolve(&self, forks: &[&[EventNumber]], event_type: &str, state_key: &str) -> EventNumber {
        let states: Vec<_> = forks.iter().map(|changes| self.with(changes)).collect();
        self.room.resolve(&states)[&key(event_type, state_key)]
    }
}

fn sha1(id: &str) -> [u8; 20] {
    Sha1::digest(format!("${id}:a.org")).into()
}

#[test]
fn power_levels_are_followed_upwards_while_allowed() {
    let mut room = Room::new();
    let raise = room.levels(10, "raise", ALICE, 100);
    let bobs = room.levels(11, "bobs", BOB, 100);
    // At depth 10 Bob becomes an equal, so his own change at depth 11 is allowed.
    assert_eq!(
        room.resolve(&[&[raise], &[bobs]], "m.room.power_levels", ""),
        bobs
    );
    // With Bob demoted at depth 10, his change is not, and the list is left there even though a
    // still deeper event of Alice would be allowed.
    let demote = room.levels(10, "demote", ALICE, 0);
    let late = room.levels(12, "late", ALICE, 60);
    let forks: [&[EventNumber]; 3] = [&[demote], &[bobs], &[late]];
    assert_eq!(room.resolve(&forks, "m.room.power_levels", ""), demote);
}

#[test]
fn the_first_power_levels_are_taken_unchecked() {
    let mut room = Room::new();
    let stranger = room.levels(10, "stranger", "@mallory:m.org", 100);
    let again = room.levels(11, "again", "@mallory:m.org", 100);
    assert_eq!(
        room.resolve(&[&[stranger], &[again]], "m.room.power_levels", ""),
        stranger
    );
}

#[test]
fn other_keys_take_the_deepest_that_is_allowed() {
    let mut room = Room::new();
    let low = room.topic(10, "low", ALICE);
    let high = room.topic(12, "high", BOB);
    assert_eq!(room.resolve(&[&[low], &[high]], "m.room.topic", ""), high);
    // Judged in the resolved state: there Bob is demoted.
    let demote = room.levels(10, "demote", ALICE, 0);
    let keep = room.levels(9, "keep", ALICE, 50);
    assert_eq!(
        room.resolve(&[&[low, demote], &[high, keep]], "m.room.topic", ""),
        low
    );
}

#[test]
fn if_none_is_allowed_the_least_deep_stays() {
    let mut room = Room::new();
    let low = room.topic(10, "low", "@mallory:m.org");
    let high = room.topic(12, "high", "@mallory:m.org");
    assert_eq!(room.resolve(&[&[low], &[high]], "m.room.topic", ""), low);
}

/// Unlike in later versions, what authorises an event is in the state or nowhere.
#[test]
fn an_events_own_auth_events_do_not_count() {
    let mut room = Room::new();
    let mallory = "@mallory:m.org";
    let join = json!({ "membership": "join" });
    let joined = room.send(6, "mallory", mallory, "m.room.member", mallory, &join);
    let low = room.topic(10, "low", ALICE);
    let levels = json!({ "users": { ALICE: 100, BOB: 50 }, "state_default": 0 });
    let open = room.send(9, "open", ALICE, "m.room.power_levels", "", &levels);
    let other = room.send(8, "other", ALICE, "m.room.power_levels", "", &levels);
    room.base.insert(key("m.room.member", mallory), joined);
    let high = room.topic(12, "high", mallory);
    assert_eq!(
        room.resolve(&[&[low, open], &[high, other]], "m.room.topic", ""),
        high
    );
    room.base.remove(&key("m.room.member", mallory));
    assert_eq!(
        room.resolve(&[&[low, open], &[high, other]], "m.room.topic", ""),
        low
    );
}

#[test]
fn equal_depths_are_ordered_by_sha1() {
    let mut room = Room::new();
    let (one, two) = (room.topic(10, "one", ALICE), room.topic(10, "two", ALICE));
    let lowest = if sha1("one") < sha1("two") { one } else { two };
    assert_eq!(room.resolve(&[&[one], &[two]], "m.room.topic", ""), lowest);
    // Power levels are sorted by descending SHA-1 and the last allowed one wins: the same order.
    let (one, two) = (
        room.levels(10, "l1", ALICE, 10),
        room.levels(10, "l2", ALICE, 20),
    );
    let lowest = if sha1("l1") < sha1("l2") { one } else { two };
    assert_eq!(
        room.resolve(&[&[one], &[two]], "m.room.power_levels", ""),
        lowest
    );
}

#[test]
fn a_key_that_a_state_lacks_is_no_conflict() {
    let mut room = Room::new();
    let topic = room.topic(10, "topic", "@mallory:m.org");
    assert_eq!(room.resolve(&[&[topic], &[]], "m.room.topic", ""), topic);
}

#[test]
fn members_are_judged_after_levels_and_rules() {
    let mut room = Room::new();
    let member = |room: &mut Room, depth, id: &str, sender: &str, membership: &str| {
        room.send(
            depth,
            id,
            sender,
            "m.room.member",
            BOB,
            &json!({ "membership": membership }),
        )
    };
    let ban = member(&mut room, 10, "ban", ALICE, "ban");
    let rejoin = member(&mut room, 12, "rejoin", BOB, "join");
    // The ban comes first by depth; the join after it is not allowed.
    assert_eq!(
        room.resolve(&[&[ban], &[rejoin]], "m.room.member", BOB),
        ban
    );
    // The other way round the ban is allowed after the join.
    let late_ban = member(&mut room, 14, "late_ban", ALICE, "ban");
    assert_eq!(
        room.resolve(&[&[rejoin], &[late_ban]], "m.room.member", BOB),
        late_ban
    );
}

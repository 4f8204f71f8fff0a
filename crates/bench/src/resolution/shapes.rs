//! The shapes of rooms whose state comes apart.

use std::collections::BTreeMap;

use homeserver_events::RoomVersion;
use serde_json::{Value, json};

use super::graph::{Deed, Graph};
use crate::Error;

/// A shape, its name, and how to make one with about so many events in conflict.
pub(super) type Shape = (&'static str, fn(RoomVersion, usize) -> Result<Graph, Error>);

pub(super) const SHAPES: [Shape; 4] = [
    ("a busy room", busy),
    ("a struggle for power", struggle),
    ("a long mainline", mainline),
    ("a deep chain", chain),
];

/// Who created the room.
const CREATOR: &str = "@creator:example.org";

/// Moderators; the first has the power of an administrator.
const MODERATORS: [&str; 5] = [
    "@administrator:one.example.org",
    "@moderator-1:two.example.org",
    "@moderator-2:three.example.org",
    "@moderator-3:example.org",
    "@moderator-4:one.example.org",
];

/// Users who are given levels of their own.
const WITH_LEVELS: usize = 40;

/// A sequence that looks random and is the same every time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap_or(0) % bound.max(1)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Membership {
    Join,
    Leave,
    Ban,
}

/// A room with what its users know of it.
struct Room {
    graph: Graph,
    dice: Dice,
    users: Vec<String>,
    /// Of each branch, of each user.
    members: Vec<Vec<Membership>>,
    levels: Vec<BTreeMap<String, usize>>,
}

impl Room {
    /// A public room with its moderators and so many users, not forked yet.
    fn new(version: RoomVersion, users: usize) -> Result<Self, Error> {
        let mut levels = BTreeMap::new();
        if !version.rules().create_is_implied() {
            levels.insert(CREATOR.to_owned(), 100);
        }
        for (number, moderator) in MODERATORS.iter().enumerate() {
            levels.insert((*moderator).to_owned(), if number == 0 { 99 } else { 50 });
        }
        let mut room = Self {
            graph: Graph::new(version),
            dice: Dice(0x2545_F491_4F6C_DD1D),
            users: Vec::new(),
            members: vec![Vec::new()],
            levels: vec![levels],
        };
        let create = json!({ "room_version": version.as_str(), "creator": CREATOR });
        room.send(0, CREATOR, "m.room.create", "", create)?;
        room.join(0, CREATOR, "creator")?;
        room.power_levels(0, CREATOR)?;
        let rule = json!({ "join_rule": "public" });
        room.send(0, CREATOR, "m.room.join_rules", "", rule)?;
        let seen = json!({ "history_visibility": "shared" });
        room.send(0, CREATOR, "m.room.history_visibility", "", seen)?;
        for moderator in MODERATORS {
            room.join(0, moderator, "moderator")?;
        }
        for _ in 0..users {
            room.newcomer(0)?;
        }
        Ok(room)
    }

    fn fork(&mut self) {
        self.graph.fork();
        self.members.push(self.members[0].clone());
        self.levels.push(self.levels[0].clone());
    }

    fn send(
        &mut self,
        branch: usize,
        sender: &str,
        kind: &str,
        key: &str,
        content: Value,
    ) -> Result<(), Error> {
        let deed = Deed {
            sender,
            kind,
            key,
            content,
        };
        // Few different times: many events bear the same one.
        let later = self.dice.below(3) as u64;
        self.graph.send(branch, &deed, later)
    }

    fn join(&mut self, branch: usize, user: &str, name: &str) -> Result<(), Error> {
        let join = json!({ "membership": "join", "displayname": name, "avatar_url": "mxc://example.org/picture" });
        self.send(branch, user, "m.room.member", user, join)
    }

    /// Somebody new joins a branch.
    fn newcomer(&mut self, branch: usize) -> Result<(), Error> {
        let number = self.users.len();
        let user = format!("@user-{number}:server-{}.example.org", number % 50);
        self.join(branch, &user, "somebody new")?;
        self.users.push(user);
        for (other, members) in self.members.iter_mut().enumerate() {
            members.push(if other == branch {
                Membership::Join
            } else {
                Membership::Leave
            });
        }
        Ok(())
    }

    /// Somebody makes another one, or themselves, leave or be banned.
    fn part(
        &mut self,
        branch: usize,
        sender: &str,
        (user, membership): (usize, Membership),
    ) -> Result<(), Error> {
        let word = match membership {
            Membership::Ban => "ban",
            _ => "leave",
        };
        let key = self.users[user].clone();
        let content = json!({ "membership": word });
        self.send(branch, sender, "m.room.member", &key, content)?;
        self.members[branch][user] = membership;
        Ok(())
    }

    /// A change of the power levels.
    fn power_levels(&mut self, branch: usize, sender: &str) -> Result<(), Error> {
        if !self.users.is_empty() {
            let user = self.dice.below(self.users.len().min(WITH_LEVELS));
            let level = self.dice.below(50);
            self.levels[branch].insert(self.users[user].clone(), level);
        }
        let content = json!({
            "users": self.levels[branch], "users_default": 0, "events_default": 0,
            "state_default": 50, "ban": 50, "kick": 50, "redact": 50, "invite": 0,
            "events": { "m.room.name": 50, "m.room.power_levels": 99, "m.room.topic": 0 },
        });
        self.send(branch, sender, "m.room.power_levels", "", content)
    }

    fn setting(&mut self, branch: usize, key: usize) -> Result<(), Error> {
        let sender = MODERATORS[self.dice.below(MODERATORS.len())];
        let key = format!("setting-{key}");
        let content = json!({ "url": "https://widget.example.org/", "branch": branch });
        self.send(branch, sender, "im.vector.modular.widgets", &key, content)
    }

    fn topic(&mut self, branch: usize) -> Result<(), Error> {
        let sender = MODERATORS[self.dice.below(MODERATORS.len())];
        let content = json!({ "topic": "what is talked about" });
        self.send(branch, sender, "m.room.topic", "", content)
    }

    /// What happens in a room on a usual day.
    fn usual(&mut self, branch: usize) -> Result<(), Error> {
        let user = self.dice.below(self.users.len());
        let membership = self.members[branch][user];
        let name = self.users[user].clone();
        let moderator = MODERATORS[self.dice.below(MODERATORS.len())];
        match (self.dice.below(100), membership) {
            (0..50, Membership::Leave) => {
                self.members[branch][user] = Membership::Join;
                self.join(branch, &name, "back again")
            }
            (0..30, Membership::Join) => self.part(branch, &name, (user, Membership::Leave)),
            (30..50, Membership::Join) => self.join(branch, &name, "another name"),
            (0..50, Membership::Ban) => self.part(branch, moderator, (user, Membership::Leave)),
            (50..60, _) => self.newcomer(branch),
            (60..68, _) => self.part(branch, moderator, (user, Membership::Ban)),
            (68..94, _) => {
                let key = self.dice.below(self.users.len());
                self.setting(branch, key)
            }
            (94..97, _) => self.topic(branch),
            _ => self.power_levels(branch, CREATOR),
        }
    }

    /// Goes on on both branches until so many events are in conflict.
    fn until(
        mut self,
        wanted: usize,
        mut act: impl FnMut(&mut Self, usize) -> Result<(), Error>,
    ) -> Result<Graph, Error> {
        self.fork();
        let mut size = 0;
        while size < wanted {
            for _ in 0..((wanted - size) / 8).max(8) {
                for branch in 0..2 {
                    act(&mut self, branch)?;
                }
            }
            size = self.graph.size();
        }
        Ok(self.graph)
    }
}

/// Many users come, go and change their names; moderators ban some, set topics and other things,
/// and now and then levels change.
fn busy(version: RoomVersion, wanted: usize) -> Result<Graph, Error> {
    Room::new(version, wanted)?.until(wanted, Room::usual)
}

/// Two administrators change levels in turn, and a moderator bans somebody and sets something under
/// each of them: long chains of power events on both branches.
fn struggle(version: RoomVersion, wanted: usize) -> Result<Graph, Error> {
    let room = Room::new(version, wanted / 4 + 16)?;
    let mut turn = 0;
    room.until(wanted, |room, branch| {
        turn += 1;
        let (administrator, user) = match turn % 4 {
            0 | 3 => (CREATOR, turn % room.users.len()),
            _ => (MODERATORS[0], turn * 7 % room.users.len()),
        };
        room.power_levels(branch, administrator)?;
        room.part(branch, MODERATORS[0], (user, Membership::Ban))?;
        room.setting(branch, turn)
    })
}

/// A long history of changes of power levels, with a setting made under each of them. On one branch
/// all settings are then made anew.
fn mainline(version: RoomVersion, wanted: usize) -> Result<Graph, Error> {
    let mut room = Room::new(version, WITH_LEVELS)?;
    for key in 0..wanted / 2 {
        room.power_levels(0, CREATOR)?;
        room.setting(0, key)?;
    }
    room.fork();
    for key in 0..wanted / 2 {
        room.setting(0, key)?;
    }
    Ok(room.graph)
}

/// On both branches one user leaves and comes back all the time: each event is authorised by the
/// one before.
fn chain(version: RoomVersion, wanted: usize) -> Result<Graph, Error> {
    Room::new(version, 1)?.until(wanted, |room, branch| {
        let user = room.users[0].clone();
        room.part(branch, &user, (0, Membership::Leave))?;
        room.join(branch, &user, "back again")
    })
}

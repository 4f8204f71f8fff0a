//! Which events of a room a server may see.
//!
//! A server sees what one of its users may see by being in the room: the rules are those of
//! [`homeserver_events::visibility`], with the greatest membership that a user of the server has in
//! the state around the event. Where the state before an event is that of the room when it arrived,
//! history rows tell whether the server was joined; elsewhere (forks, what has no arrival), and for
//! invitations, the members of the state are looked at.

use std::collections::HashMap;

use homeserver_events::{
    EventStatus,
    names::is_same_server,
    redact,
    visibility::{Around, HistoryVisibility, Later, Membership as Seen, Sight, may_see},
};
use homeserver_storage::Position;
use ruma::{ServerName, UserId};

use crate::{
    Rooms,
    error::RoomError,
    event::StoredEvent,
    numbers::EventNumber,
    room::Room,
    rows::Membership,
    states::PendingNodes,
    tree::StateRoot,
    visible::{content_text, membership_of},
};

const MEMBER: &str = "m.room.member";
const VISIBILITY: &str = "m.room.history_visibility";

/// How an event is shown to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// As it is.
    Whole,
    /// What a redaction leaves of it.
    Redacted,
    /// Not at all.
    No,
}

/// How many users of the server are joined and invited in a state.
#[derive(Clone, Copy, Debug, Default)]
struct Present {
    joined: i64,
    invited: i64,
}

impl Present {
    fn count(&mut self, membership: Option<Membership>, by: i64) {
        match membership {
            Some(Membership::Join) => self.joined += by,
            Some(Membership::Invite) => self.invited += by,
            _ => {}
        }
    }

    fn seen(self) -> Seen {
        match self {
            Self { joined: 1.., .. } => Seen::Join,
            Self { invited: 1.., .. } => Seen::Invite,
            _ => Seen::Outside,
        }
    }
}

/// What one server may see of one room, with what was found out on the way.
pub(crate) struct ServerSights<'a> {
    rooms: &'a Rooms,
    room: &'a Room,
    server: &'a ServerName,
    position: Position,
    joined_now: bool,
    visibility: HashMap<StateRoot, HistoryVisibility>,
    /// The last state whose members were counted: the next one differs little from it.
    counted: Option<(StateRoot, Present)>,
}

impl<'a> ServerSights<'a> {
    pub(super) async fn new(
        rooms: &'a Rooms,
        room: &'a Room,
        server: &'a ServerName,
        position: Position,
    ) -> Result<Self, RoomError> {
        Ok(Self {
            rooms,
            room,
            server,
            position,
            joined_now: rooms.server_joined(room, server, position).await?,
            visibility: HashMap::new(),
            counted: None,
        })
    }

    /// How an event is shown.
    pub(crate) async fn of(&mut self, event: &StoredEvent) -> Result<Shown, RoomError> {
        let arrived_later = event.position.is_some_and(|at| at > self.position);
        if event.room != self.room.number || arrived_later {
            return Ok(Shown::No);
        }
        let hidden = if self.joined_now {
            Shown::Redacted
        } else {
            Shown::No
        };
        let before = match &event.status {
            EventStatus::Rejected { .. } => return Ok(Shown::No),
            // Part of some state or auth chain, where who is in the room gets it anyway.
            EventStatus::Outlier if event.pdu.state_key().is_some() && self.joined_now => {
                return Ok(Shown::Whole);
            }
            EventStatus::Outlier => return Ok(hidden),
            EventStatus::Accepted { before, .. } | EventStatus::SoftFailed { before, .. } => {
                *before
            }
        };
        let visibility = Around {
            before: self.visibility_in(before).await?,
            after: if event.is_state(VISIBILITY, "") {
                self.visibility_in(event.after).await?
            } else {
                self.visibility_in(before).await?
            },
        };
        let sight = Sight {
            visibility,
            membership: self.membership(event, before, visibility).await?,
            later: self.later(event).await?,
        };
        Ok(if may_see(&sight) {
            Shown::Whole
        } else {
            hidden
        })
    }

    async fn visibility_in(&mut self, root: StateRoot) -> Result<HistoryVisibility, RoomError> {
        if let Some(known) = self.visibility.get(&root) {
            return Ok(*known);
        }
        let event = self
            .rooms
            .state_event(self.room, root, VISIBILITY, "")
            .await?;
        let named = event.and_then(|event| content_text(&event, "history_visibility"));
        let visibility = named.map_or(HistoryVisibility::DEFAULT, |name| {
            HistoryVisibility::from_name(&name)
        });
        self.visibility.insert(root, visibility);
        Ok(visibility)
    }

    async fn later(&self, event: &StoredEvent) -> Result<Later, RoomError> {
        let joined = match event.position {
            _ if self.joined_now => true,
            Some(at) => {
                let (room, server) = (self.room, self.server);
                let span = (at, self.position);
                self.rooms.server_joined_within(room, server, span).await?
            }
            None => false,
        };
        Ok(if joined {
            Later::Joined
        } else {
            Later::NeverJoined
        })
    }

    /// The greatest membership around an event, as far as it matters under this visibility.
    async fn membership(
        &mut self,
        event: &StoredEvent,
        before: StateRoot,
        visibility: Around<HistoryVisibility>,
    ) -> Result<Around<Seen>, RoomError> {
        let either = [visibility.before, visibility.after];
        // Who is joined now sees what is shared whoever was in the room then.
        let is_open = |one: &HistoryVisibility| match one {
            HistoryVisibility::WorldReadable => true,
            HistoryVisibility::Shared => self.joined_now,
            HistoryVisibility::Invited | HistoryVisibility::Joined => false,
        };
        if either.iter().any(is_open) {
            return Ok(Around::unchanged(Seen::Outside));
        }
        let own = if event.pdu.event_type() == MEMBER && self.is_own(event.pdu.state_key()) {
            seen(membership_of(event))
        } else {
            Seen::Outside
        };
        if let Some(at) = self.logged(event, before).await? {
            let joined = self.rooms.server_joined(self.room, self.server, at);
            if joined.await? {
                return Ok(Around::unchanged(Seen::Join));
            }
            if !either.contains(&HistoryVisibility::Invited) {
                return Ok(Around {
                    before: Seen::Outside,
                    after: own,
                });
            }
        }
        let members = self.present_in(before).await?.seen();
        Ok(Around {
            before: members,
            after: own,
        })
    }

    /// The position at which the state before an event was that of the room; `None` if it never was,
    /// as on a branch that is older than what arrived before the event.
    async fn logged(
        &self,
        event: &StoredEvent,
        before: StateRoot,
    ) -> Result<Option<Position>, RoomError> {
        let Some(at) = event.position.map(|at| at.saturating_sub(1)) else {
            return Ok(None);
        };
        let logged = self.rooms.state_at(self.room.number, at).await?;
        Ok((logged.root == before).then_some(at))
    }

    fn is_own(&self, state_key: Option<&str>) -> bool {
        let user = state_key.and_then(|key| <&UserId>::try_from(key).ok());
        user.is_some_and(|user| is_same_server(user.server_name(), self.server))
    }

    /// How many users of the server are in the room by a state.
    async fn present_in(&mut self, root: StateRoot) -> Result<Present, RoomError> {
        let present = match self.counted {
            Some((counted, present)) if counted == root => present,
            Some((counted, present)) => self.recount(present, (counted, root)).await?,
            None => {
                let mut present = Present::default();
                let members = self.rooms.state_of_type(self.room, root, MEMBER).await?;
                for (key, event) in members {
                    if self.is_own(Some(key.state_key())) {
                        present.count(self.membership_in(event).await?, 1);
                    }
                }
                present
            }
        };
        self.counted = Some((root, present));
        Ok(present)
    }

    /// The count in the second of two states from that in the first.
    async fn recount(
        &self,
        mut present: Present,
        roots: (StateRoot, StateRoot),
    ) -> Result<Present, RoomError> {
        let pending = PendingNodes::new();
        let states = &self.rooms.states;
        let changes = states.difference(self.room.number, &pending, roots).await?;
        for change in changes {
            let key = self.rooms.numbering.key_name(change.key).await?;
            if key.event_type() != MEMBER || !self.is_own(Some(key.state_key())) {
                continue;
            }
            if let Some((event, _)) = change.before {
                present.count(self.membership_in(event).await?, -1);
            }
            if let Some((event, _)) = change.after {
                present.count(self.membership_in(event).await?, 1);
            }
        }
        Ok(present)
    }

    async fn membership_in(&self, event: EventNumber) -> Result<Option<Membership>, RoomError> {
        let event = self.rooms.events.find(self.room, event).await?;
        Ok(event.and_then(|event| membership_of(&event)))
    }
}

fn seen(membership: Option<Membership>) -> Seen {
    match membership {
        Some(Membership::Join) => Seen::Join,
        Some(Membership::Invite) => Seen::Invite,
        _ => Seen::Outside,
    }
}

/// An event as it is shown; `None` if it is not, or if nothing can be left of it.
pub(super) fn shown(event: &StoredEvent, how: Shown) -> Option<homeserver_events::Pdu> {
    match how {
        Shown::Whole => Some(event.pdu.clone()),
        Shown::Redacted => redact(&event.pdu, event.pdu.rules())
            .inspect_err(|error| tracing::warn!(%error, "an event cannot be redacted"))
            .ok(),
        Shown::No => None,
    }
}

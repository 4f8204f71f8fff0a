//! History visibility: whether a user may see an event.
//!
//! [`may_see`] is a pure function of the history visibility and the user's membership at the event
//! and of whether the user joined later. This is what it answers, where *at* means the state
//! before the event:
//!
//! | visibility at the event | joined | invited | other membership, joined after the event | other membership, never joined after |
//! |---|---|---|---|---|
//! | `world_readable` | yes | yes | yes | yes |
//! | `shared`, none, or unknown | yes | if joined after | yes | no |
//! | `invited` | yes | yes | no | no |
//! | `joined` | yes | no | no | no |
//!
//! Two kinds of event are judged by the state before *or* after them, whichever lets more be seen:
//! the user's own `m.room.member` events, and `m.room.history_visibility` events.
//!
//! What this is not: it does not know what was redacted, ignored or erased, whether the user may
//! ask about the room at all, or what an invited user is shown of the room (stripped state).
//!
//! Specification: Client-Server API, "Room History Visibility".

use ruma::events::room::{history_visibility::HistoryVisibility as Named, member::MembershipState};

#[cfg(test)]
mod tests;

/// `history_visibility` of `m.room.history_visibility`, as it is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HistoryVisibility {
    /// Anybody may see.
    WorldReadable,
    /// Whoever was joined, or joined later. Also what an absent or unknown value means.
    Shared,
    /// Whoever was joined or invited.
    Invited,
    /// Whoever was joined.
    Joined,
}

impl HistoryVisibility {
    /// The visibility that a room without `m.room.history_visibility`, or with one that is not
    /// understood, has.
    pub const DEFAULT: Self = Self::Shared;

    /// All values.
    pub const ALL: [Self; 4] = [
        Self::WorldReadable,
        Self::Shared,
        Self::Invited,
        Self::Joined,
    ];

    /// Reads a value of the state event.
    pub fn from_name(name: &str) -> Self {
        match name {
            "world_readable" => Self::WorldReadable,
            "invited" => Self::Invited,
            "joined" => Self::Joined,
            _ => Self::DEFAULT,
        }
    }
}

impl From<&Named> for HistoryVisibility {
    fn from(named: &Named) -> Self {
        Self::from_name(named.as_str())
    }
}

/// A user's membership in a room, as far as visibility goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Membership {
    /// Joined.
    Join,
    /// Invited.
    Invite,
    /// Knocking, left, banned, or never mentioned.
    Outside,
}

impl Membership {
    /// All values.
    pub const ALL: [Self; 3] = [Self::Join, Self::Invite, Self::Outside];

    /// Reads a value of `m.room.member`.
    pub fn from_name(name: &str) -> Self {
        match name {
            "join" => Self::Join,
            "invite" => Self::Invite,
            _ => Self::Outside,
        }
    }
}

impl From<&MembershipState> for Membership {
    fn from(state: &MembershipState) -> Self {
        Self::from_name(state.as_str())
    }
}

/// Something in the state before an event and in the state after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Around<T> {
    /// In the state before the event.
    pub before: T,
    /// In the state after the event.
    pub after: T,
}

impl<T: Copy> Around<T> {
    /// An event that does not change it.
    pub const fn unchanged(value: T) -> Self {
        Self {
            before: value,
            after: value,
        }
    }
}

/// Whether the user joined the room at any point after the event, whatever came of it later.
///
/// Who is joined at the moment of asking was either joined at the event or joined later, so a
/// reader whose membership is `join` now is always [`Later::Joined`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Later {
    /// The user's membership became `join` after the event.
    Joined,
    /// It did not, up to the point in time that is being read.
    NeverJoined,
}

/// What decides whether a user sees an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sight {
    /// History visibility around the event; it differs only for `m.room.history_visibility`.
    pub visibility: Around<HistoryVisibility>,
    /// The user's membership around the event; it differs only for the user's own membership.
    pub membership: Around<Membership>,
    /// What became of the user afterwards.
    pub later: Later,
}

/// Whether a user may see an event.
pub fn may_see(sight: &Sight) -> bool {
    let visibilities = [sight.visibility.before, sight.visibility.after];
    let memberships = [sight.membership.before, sight.membership.after];
    visibilities.into_iter().any(|visibility| {
        memberships
            .into_iter()
            .any(|membership| may_see_in(visibility, membership, sight.later))
    })
}

/// The specification's five rules, in its order.
fn may_see_in(visibility: HistoryVisibility, membership: Membership, later: Later) -> bool {
    match (visibility, membership, later) {
        (HistoryVisibility::WorldReadable, _, _)
        | (_, Membership::Join, _)
        | (HistoryVisibility::Shared, _, Later::Joined)
        | (HistoryVisibility::Invited, Membership::Invite, _) => true,
        (
            HistoryVisibility::Shared | HistoryVisibility::Invited | HistoryVisibility::Joined,
            _,
            _,
        ) => false,
    }
}

//! The numbers that stand for long names in keys, indexes and journal entries.
//!
//! A number is given on first mention and never used again; gaps are ordinary. Only positions mean
//! order, numbers do not.

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta] $name:ident),+ $(,)?) => {$(
        #[$doc]
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);
    )+};
}

number! {
    /// A room. Never reused: a room that is purged and joined again gets another number.
    RoomNumber,
    /// An event, within its room.
    EventNumber,
    /// A user, local or not.
    UserNumber,
    /// A pair of event type and state key.
    KeyNumber,
}

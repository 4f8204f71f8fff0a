//! State resolution held against the fixtures and the algorithm of `ruma-state-res`, hand-worked
//! cases of room version 1, and its bounds.

mod bounds;
mod differential;
mod fixtures;
mod fork;
mod fuzz;
mod peer;
mod room;
mod version1;

use std::collections::BTreeMap;

use self::room::TestRoom;
use super::{
    Answer, Conflict, EventNumber, Limit, Limits, Need, Resolution, StateKey, Step, split,
};

/// A whole state.
type State = BTreeMap<StateKey, EventNumber>;

fn key(event_type: &str, state_key: &str) -> StateKey {
    (event_type.to_owned(), state_key.to_owned())
}

/// Cases of a property that builds whole rooms, unless `PROPTEST_CASES` says otherwise.
fn cases(default: u32) -> u32 {
    std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(default)
}

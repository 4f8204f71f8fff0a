//! Whether all servers agree, and have what was acknowledged.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use homeserver_tests::encode;
use serde_json::Value;

use super::{actors::Actor, world::World};

/// How often it is looked after the network is mended, and the pause before each look.
pub(super) const ROUNDS: usize = 20;
pub(super) const PAUSE: Duration = Duration::from_secs(30);

/// The state of a room, an event for each key.
pub(super) async fn state(
    world: &World,
    reader: &Actor,
    room: &str,
) -> BTreeMap<(String, String), String> {
    let state = reader.read(world, room, "state").await.unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let events = state.as_array().into_iter().flatten();
    events
        .map(|event| {
            let key = (text(&event["type"]), text(&event["state_key"]));
            (key, text(&event["event_id"]))
        })
        .collect()
}

/// Everything that a user can page back to, which makes a server fetch what it lacks.
pub(super) async fn history(world: &World, reader: &Actor, room: &str) -> BTreeSet<String> {
    let mut events = BTreeSet::new();
    let mut from = String::new();
    loop {
        let what = format!("messages?dir=b&limit=100{from}");
        let page = reader.read(world, room, &what).await.unwrap_or_default();
        let chunk = page["chunk"].as_array().into_iter().flatten();
        events.extend(chunk.filter_map(|event| event["event_id"].as_str().map(str::to_owned)));
        match page["end"].as_str() {
            Some(end) => from = format!("&from={}", encode(end)),
            None => return events,
        }
    }
}

/// What the servers of users who are in the same room do not agree about, and what is missing there.
///
/// A server counts where its own user is joined as it has it. Whether others have users joined who are
/// not as their own servers have it is not looked at, for the protocol does not see to that: a leave
/// is told to those who are in the room as the leaving server knows it. If they have left as well, and
/// one of them comes back by what their own server knows, nobody there can name that leave.
pub(super) async fn differences(world: &World, actors: &[Actor]) -> Vec<String> {
    let mut found = Vec::new();
    let rooms = world.rooms.lock().clone();
    for room in rooms {
        let mut first = None;
        for actor in actors {
            if !actor.is_in(world, &room.id).await {
                continue;
            }
            let state = state(world, actor, &room.id).await;
            let (first_user, first_state) =
                first.get_or_insert_with(|| (&actor.user, state.clone()));
            for (key, event) in first_state.iter() {
                if state.get(key) != Some(event) {
                    let other = state.get(key);
                    found.push(format!(
                        "{} {key:?}: {event} for {first_user}, {other:?} for {}",
                        room.id, actor.user
                    ));
                }
            }
            if state.len() > first_state.len() {
                found.push(format!("{}: {} has more state", room.id, actor.user));
            }
            let history = history(world, actor, &room.id).await;
            for (sender, event) in &room.said {
                if !room.unsteady.contains(sender) && !history.contains(event) {
                    found.push(format!(
                        "{}: {} lacks {event} of {sender}",
                        room.id, actor.user
                    ));
                }
            }
        }
    }
    found
}

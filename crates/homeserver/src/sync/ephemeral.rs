//! Typing, receipts, presence and to-device messages, as events.
//!
//! Specification: client-server API, `m.typing`, `m.receipt`, `m.presence`.

use std::collections::{BTreeMap, BTreeSet};

use homeserver_rooms::{Membership, Room, RoomNumber};
use homeserver_storage::Position;
use homeserver_users::{
    Presence, ReceiptKind, StoredReceipt, StreamToken, ToDeviceMessage, UserNumber,
};
use ruma::{OwnedEventId, OwnedUserId, UserId, presence::PresenceState};
use serde::Serialize;
use serde_json::{Map, Value, json, value::RawValue};

use super::{SyncError, filter::EventShape, pass::Pass};
use crate::app::acquaintance::Company;

/// Changes of presence told at once; the oldest ones are left out.
const MAX_PRESENCES: usize = 1_000;

/// Changes of presence, anywhere on the server, that are looked through for those of acquaintances.
/// When there are more, the acquaintances are looked up.
const CHANGES_WALKED: usize = 500;

/// Members of the reader's rooms that are looked at for that.
const MEMBERS_LOOKED_AT: usize = 5_000;

/// Who is typing.
pub(super) fn typing(users: &[OwnedUserId]) -> Box<RawValue> {
    raw(&json!({ "type": "m.typing", "content": { "user_ids": users } }))
}

/// A message to the device.
pub(super) fn to_device(message: &ToDeviceMessage) -> Box<RawValue> {
    #[derive(Serialize)]
    struct Event<'a> {
        content: &'a RawValue,
        sender: &'a UserId,
        r#type: &'a str,
    }
    raw(&Event {
        content: &message.content,
        sender: &message.sender,
        r#type: &message.event_type,
    })
}

/// The receipts of a room that moved after `after`, and the user's own wherever they stand if the
/// device starts anew.
pub(super) async fn receipts(
    pass: &Pass<'_>,
    room: &Room,
    after: Position,
    anew: bool,
) -> Result<Option<Box<RawValue>>, SyncError> {
    let users = &pass.engine.users;
    let (number, me) = (room.number.0, pass.session.user_number);
    let mut found = users
        .receipts
        .changes(number, me, after, pass.upto())
        .await?;
    if anew {
        let own = users.receipts.of_user(number, me).await?;
        found.extend(own.into_iter().filter(|one| one.position <= after));
    }
    let mut content: BTreeMap<OwnedEventId, BTreeMap<&str, Map<String, Value>>> = BTreeMap::new();
    for StoredReceipt { receipt, .. } in found {
        let Some(user) = users.user_id(receipt.user).await? else {
            continue;
        };
        if !pass.hears(&user) {
            continue;
        }
        let kind = match receipt.kind {
            ReceiptKind::Public => "m.read",
            ReceiptKind::Private => "m.read.private",
        };
        let mut told = json!({ "ts": receipt.at });
        if let Some(thread) = receipt.thread.as_str() {
            told["thread_id"] = thread.into();
        }
        let of_event = content.entry(receipt.event_id).or_default();
        let of_kind = of_event.entry(kind).or_default();
        // One event can hold one receipt per user and kind only: the unthreaded one says most.
        if receipt.thread.as_str().is_none() || !of_kind.contains_key(user.as_str()) {
            of_kind.insert(user.to_string(), told);
        }
    }
    let event = json!({ "type": "m.receipt", "content": content });
    Ok((!content.is_empty()).then(|| raw(&event)))
}

/// Presence of the users whom the reader shares a room with.
pub(super) async fn presence(pass: &Pass<'_>) -> Result<Vec<Box<RawValue>>, SyncError> {
    let filter = &pass.request.filter.presence;
    if filter.allows_nothing() || !filter.allows_type("m.presence") {
        return Ok(Vec::new());
    }
    let since = pass
        .since
        .map_or(StreamToken::default(), |since| since.presence);
    let presences = &pass.engine.users.presence;
    let changes = match presences.changes(since, CHANGES_WALKED) {
        Some(changes) => changes,
        None => acquaintances(pass).await?,
    };
    let mut events = Vec::new();
    for (number, presence) in changes.into_iter().rev() {
        if events.len() == MAX_PRESENCES {
            break;
        }
        if pass.since.is_none() && presence.state == PresenceState::Offline {
            continue;
        }
        let Some(user) = visible(pass, number).await? else {
            continue;
        };
        let shape = EventShape {
            event_type: "m.presence",
            sender: Some(user.as_str()),
            content: None,
        };
        if filter.allows(shape) {
            events.push(presence_event(&user, &presence));
        }
    }
    events.reverse();
    Ok(events)
}

/// The user, if the reader may know of their presence.
async fn visible(pass: &Pass<'_>, number: UserNumber) -> Result<Option<OwnedUserId>, SyncError> {
    let users = &pass.engine.users;
    let Some(user) = users.user_id(number).await? else {
        return Ok(None);
    };
    let own = number == pass.session.user_number;
    if !own && !pass.hears(&user) {
        return Ok(None);
    }
    if own {
        return Ok(Some(user));
    }
    if let Some(rooms) = users.presence.met_in(number) {
        let met = meets(pass, &user, &rooms).await?;
        return Ok(met.then_some(user));
    }
    let number = homeserver_rooms::UserNumber(number.0);
    let theirs = pass.engine.memberships_at(number, pass.upto()).await?;
    Ok(theirs.share_a_room(&pass.mine).then_some(user))
}

/// Whether the reader is together with a user of another server in one of these rooms.
async fn meets(pass: &Pass<'_>, user: &UserId, rooms: &[u64]) -> Result<bool, SyncError> {
    let mine = &pass.mine.joined;
    let shared = rooms.iter().filter(|room| mine.binary_search(room).is_ok());
    let mut shared: Vec<u64> = shared.copied().collect();
    shared.sort_unstable();
    let rooms = &pass.engine.rooms;
    let mut company = Company::new(rooms, &shared, pass.upto());
    Ok(company.has(user).await?)
}

/// The presence of those who share a room with the reader, where more than them changed theirs.
async fn acquaintances(pass: &Pass<'_>) -> Result<Vec<(UserNumber, Presence)>, SyncError> {
    let mut left = MEMBERS_LOOKED_AT;
    let mut known = BTreeSet::from([pass.session.user_number]);
    for room in &pass.mine.joined {
        let rooms = &pass.engine.rooms;
        let members = rooms.local_members(RoomNumber(*room), left).await?;
        left -= members.len();
        let joined = members
            .iter()
            .filter(|one| one.membership == Membership::Join);
        known.extend(joined.map(|one| UserNumber(one.user.0)));
        if left == 0 {
            break;
        }
    }
    let presences = &pass.engine.users.presence;
    let told = |user| Some((user, presences.of(user)?));
    let mut told: Vec<_> = known.into_iter().filter_map(told).collect();
    told.extend(presences.met_in_one_of(&pass.mine.joined, MAX_PRESENCES));
    Ok(told)
}

fn presence_event(user: &UserId, presence: &Presence) -> Box<RawValue> {
    let mut content = Map::new();
    content.insert("presence".into(), presence.state.as_str().into());
    content.insert("currently_active".into(), presence.currently_active.into());
    if let Some(status) = &presence.status {
        content.insert("status_msg".into(), status.as_str().into());
    }
    if let Some(ago) = presence.last_active_ago {
        let millis = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
        content.insert("last_active_ago".into(), millis.into());
    }
    raw(&json!({ "type": "m.presence", "sender": user, "content": content }))
}

/// Our own values always are JSON; `null` stands in for what is not.
fn raw(value: &impl Serialize) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

//! What a server is told beside events: chosen when it is sent, as it is then.
//!
//! Specification: server-server API, "EDUs", "Send-to-device messaging", "Device Management",
//! "Typing Notifications", "Receipts", "Presence".

use std::collections::BTreeMap;

use homeserver_rooms::RoomNumber;
use homeserver_storage::Position;
use homeserver_users::StoredReceipt;
use ruma::{OwnedRoomId, OwnedUserId, ServerName};
use serde_json::value::RawValue;

use super::{
    Inner, SenderError,
    edus::{Lists, Told},
    transaction::{ENOUGH_BYTES, Edu},
};
use crate::users::edus;

/// Messages to devices of one transaction, so that there is room for the rest.
const MESSAGES: usize = 60;

/// Messages to devices that are read in one go.
const MESSAGES_AT_ONCE: usize = 10;

/// Updates of device lists of one transaction.
const UPDATES: usize = 30;

/// Receipts of one transaction.
const RECEIPTS: usize = 200;

/// Users whose presence is told in one transaction.
const PRESENCES: usize = 200;

/// The receipts of one message: of each user in a room one.
type Receipts = BTreeMap<OwnedRoomId, Vec<(OwnedUserId, StoredReceipt)>>;

/// What was chosen.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    pub(super) edus: Vec<Edu>,
    pub(super) told: Told,
    bytes: usize,
}

impl Chosen {
    fn add(&mut self, edu_type: &'static str, content: Box<RawValue>) {
        self.bytes += content.get().len();
        self.edus.push((edu_type, content));
    }

    /// How many more may be added.
    fn left(&self, limit: usize) -> usize {
        if self.bytes >= ENOUGH_BYTES {
            return 0;
        }
        limit.saturating_sub(self.edus.len())
    }
}

/// What there is to be told.
#[derive(Debug, Default)]
struct ToTell {
    to_device: Option<Position>,
    device_lists: Option<Lists>,
    typing: Vec<((u64, OwnedUserId), u64)>,
    receipts: Vec<((Position, u64), u64)>,
    presence: Vec<(homeserver_users::UserNumber, u64)>,
}

impl Inner {
    /// What a server is told next, at most so many messages.
    pub(super) async fn choose(
        &self,
        server: &ServerName,
        limit: usize,
    ) -> Result<Chosen, SenderError> {
        let mut chosen = Chosen::default();
        if limit == 0 {
            return Ok(chosen);
        }
        let tell = self.to_tell(server, limit);
        if let Some(upto) = tell.to_device {
            self.add_messages(server, upto, limit.min(MESSAGES), &mut chosen)
                .await?;
        }
        if let Some(lists) = tell.device_lists
            && chosen.left(limit) > 0
        {
            let limit = chosen.left(limit).min(UPDATES);
            let (after, upto) = (lists.after, lists.upto);
            let remote = &self.remote_users;
            let found = remote.device_list_edus(server, (after, upto), limit);
            let found = found.await?;
            for (edu_type, content) in found.edus {
                chosen.add(edu_type, content);
            }
            chosen.told.device_lists = Some(found.upto);
        }
        if chosen.left(limit) > 0 && !tell.receipts.is_empty() {
            self.add_receipts(tell.receipts, limit, &mut chosen).await?;
        }
        if chosen.left(limit) > 0 && !tell.presence.is_empty() {
            self.add_presence(tell.presence, &mut chosen).await?;
        }
        for ((room, user), change) in tell.typing {
            if chosen.left(limit) == 0 {
                break;
            }
            let types = self.users.typing.in_room(room).contains(&user);
            let id = self
                .rooms
                .room_by_number(RoomNumber(room))
                .await?
                .id
                .clone();
            chosen.add(edus::TYPING, edus::typing(&id, &user, types));
            chosen.told.typing.push(((room, user), change));
        }
        Ok(chosen)
    }

    fn to_tell(&self, server: &ServerName, limit: usize) -> ToTell {
        let state = self.state.lock();
        let Some(owed) = state.owed(server).map(|owed| &owed.edus) else {
            return ToTell::default();
        };
        ToTell {
            to_device: owed.to_device,
            device_lists: owed.device_lists,
            typing: owed.typing.some(limit),
            receipts: owed.receipts.some(RECEIPTS),
            presence: owed.presence.some(PRESENCES),
        }
    }

    async fn add_messages(
        &self,
        server: &ServerName,
        upto: Position,
        limit: usize,
        chosen: &mut Chosen,
    ) -> Result<(), SenderError> {
        let mut after = 0;
        loop {
            let wanted = chosen.left(limit).min(MESSAGES_AT_ONCE);
            if wanted == 0 {
                return Ok(());
            }
            let outgoing = &self.users.outgoing;
            let messages = outgoing.page(server, after, upto, wanted).await?;
            let is_last = messages.len() < wanted;
            for message in messages {
                after = message.position;
                chosen.told.to_device = Some(after);
                chosen.told.messages += 1;
                chosen.add(edus::DIRECT_TO_DEVICE, message.content);
                if chosen.left(limit) == 0 {
                    return Ok(());
                }
            }
            if is_last {
                chosen.told.to_device = Some(upto);
                return Ok(());
            }
        }
    }

    async fn add_receipts(
        &self,
        noted: Vec<((Position, u64), u64)>,
        limit: usize,
        chosen: &mut Chosen,
    ) -> Result<(), SenderError> {
        let mut messages: Vec<Receipts> = Vec::new();
        for ((position, room), change) in noted {
            // None if it has moved on since: that is noted apart.
            let receipt = self.users.receipts.moved_at(room, position).await?;
            if let Some(receipt) = receipt
                && let Some(user) = self.users.user_id(receipt.receipt.user).await?
            {
                let id = self
                    .rooms
                    .room_by_number(RoomNumber(room))
                    .await?
                    .id
                    .clone();
                if !put_receipt(&mut messages, chosen.left(limit), (id, user), receipt) {
                    break;
                }
            }
            chosen.told.receipts.push(((position, room), change));
        }
        for receipts in &messages {
            chosen.add(edus::RECEIPT, edus::receipts(receipts));
        }
        Ok(())
    }

    async fn add_presence(
        &self,
        noted: Vec<(homeserver_users::UserNumber, u64)>,
        chosen: &mut Chosen,
    ) -> Result<(), SenderError> {
        let mut users = Vec::new();
        for (user, change) in noted {
            if let Some(presence) = self.users.presence.of(user)
                && let Some(id) = self.users.user_id(user).await?
            {
                users.push((id, presence));
            }
            chosen.told.presence.push((user, change));
        }
        if !users.is_empty() {
            chosen.add(edus::PRESENCE, edus::presence(&users));
        }
        Ok(())
    }
}

/// Puts a receipt into the first message that has none of its user in its room: those of several
/// threads are told apart. `false` if that takes more than `limit` messages.
fn put_receipt(
    messages: &mut Vec<Receipts>,
    limit: usize,
    (room, user): (OwnedRoomId, OwnedUserId),
    receipt: StoredReceipt,
) -> bool {
    let has = |message: &Receipts| {
        let of_room = message.get(&room);
        of_room.is_some_and(|of_room| of_room.iter().any(|(other, _)| *other == user))
    };
    let at = messages.iter().position(|message| !has(message));
    let at = at.unwrap_or(messages.len());
    if at == messages.len() {
        if messages.len() >= limit {
            return false;
        }
        messages.push(Receipts::new());
    }
    let of_room = messages[at].entry(room).or_default();
    of_room.push((user, receipt));
    true
}

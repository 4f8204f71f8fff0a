//! What a membership event changes beside the state: counts, indexes, stripped state.

use ruma::{OwnedServerName, UserId};
use serde_json::{json, value::RawValue};

use super::RoomEdit;
use crate::{
    delta::{Appended, MemberChange},
    error::RoomError,
    event::StoredEvent,
    rows::{Head, Membership},
    tables::SERVER_COUNTS,
    visible::membership_of,
};

/// State shown to somebody invited or knocking (client-server API, "Stripped state").
pub(crate) const STRIPPED: [&str; 7] = [
    "m.room.create",
    "m.room.name",
    "m.room.avatar",
    "m.room.topic",
    "m.room.join_rules",
    "m.room.canonical_alias",
    "m.room.encryption",
];

/// Bytes of stripped state at most: it is one row, and the row of an event that large fits.
const MAX_STRIPPED: usize = 100_000;

/// A state event as stripped state shows it.
pub(crate) fn strip(event: &StoredEvent) -> String {
    json!({
        "type": event.pdu.event_type(),
        "state_key": event.pdu.state_key().unwrap_or_default(),
        "sender": event.pdu.sender(),
        "content": serde_json::from_str::<&RawValue>(event.pdu.content_str()).unwrap_or(RawValue::NULL),
    })
    .to_string()
}

/// Counts a membership that comes (`by` 1) or goes (-1).
pub(crate) fn count(head: &mut Head, membership: Option<Membership>, by: i64) {
    match membership {
        Some(Membership::Join) => head.joined = head.joined.saturating_add_signed(by),
        Some(Membership::Invite) => head.invited = head.invited.saturating_add_signed(by),
        _ => {}
    }
}

impl RoomEdit<'_> {
    /// Notes what a membership event changes. `replaced` is the membership event before it.
    pub(crate) async fn note_member(
        &mut self,
        appended: &mut Appended,
        replaced: Option<&StoredEvent>,
    ) -> Result<(), RoomError> {
        let event = appended.event.clone();
        match event.pdu.state_pair() {
            Some(("m.room.member", target)) => {
                self.note_member_change(appended, target, replaced, Some(&event))
                    .await
            }
            _ => Ok(()),
        }
    }

    /// Notes that the membership event of `target` becomes another one, or none.
    pub(crate) async fn note_member_change(
        &mut self,
        appended: &mut Appended,
        target: &str,
        before: Option<&StoredEvent>,
        after: Option<&StoredEvent>,
    ) -> Result<(), RoomError> {
        let Ok(target) = UserId::parse(target) else {
            return Ok(());
        };
        let (was, is) = (
            before.and_then(membership_of),
            after.and_then(membership_of),
        );
        count(&mut self.delta.head, was, -1);
        count(&mut self.delta.head, is, 1);
        let server = target.server_name();
        match (was == Some(Membership::Join), is == Some(Membership::Join)) {
            (false, true) => self.count_server(appended, server.to_owned(), 1).await?,
            (true, false) => self.count_server(appended, server.to_owned(), -1).await?,
            _ => {}
        }
        let Some(event) = after
            .or(before)
            .filter(|_| server == self.rooms.options.server_name)
        else {
            return Ok(());
        };
        let membership = is.unwrap_or(Membership::Leave);
        let told = matches!(membership, Membership::Invite | Membership::Knock);
        appended.members.push(MemberChange {
            user: self.rooms.numbering.user(&target).await?,
            membership,
            event: event.number,
            stripped: if told {
                Some(self.stripped_state(event).await?)
            } else {
                None
            },
        });
        Ok(())
    }

    /// Counts a joined user of a server, and notes when the server comes or goes with it.
    async fn count_server(
        &mut self,
        appended: &mut Appended,
        server: OwnedServerName,
        by: i64,
    ) -> Result<(), RoomError> {
        let counted = if let Some(count) = self.pending.servers.get(&server) {
            *count
        } else {
            let key = (self.room().number.0, server.as_str());
            let stored = self.rooms.store.get(&SERVER_COUNTS, &key).await?;
            stored.unwrap_or_default()
        };
        let count = counted.changed(by);
        self.delta.server_counts.insert(server.clone(), count);
        self.pending.servers.insert(server.clone(), count);
        if counted.present() != count.present() {
            appended.servers.push((server, count.present()));
        }
        Ok(())
    }

    /// What somebody who is invited or knocks is told of the room. The membership event itself is
    /// part of it for an invite, so that a client sees who invites.
    async fn stripped_state(&self, event: &StoredEvent) -> Result<Vec<String>, RoomError> {
        let mut stripped = Vec::with_capacity(STRIPPED.len() + 2);
        for event_type in STRIPPED {
            stripped.extend(self.state(event_type, "").await?.map(|state| strip(&state)));
        }
        let sender = event.pdu.sender().as_str();
        if event.pdu.state_key() != Some(sender) {
            let member = self.state("m.room.member", sender).await?;
            stripped.extend(member.map(|member| strip(&member)));
        }
        Ok(bounded(stripped, strip(event)))
    }
}

/// What fits of the state of a room, and the membership event, which always does. The largest parts
/// are left out first: a room must not become one that nobody can be invited to by what it is
/// called.
pub(crate) fn bounded(mut room: Vec<String>, member: String) -> Vec<String> {
    let mut size = member.len() + room.iter().map(String::len).sum::<usize>();
    while size > MAX_STRIPPED {
        let largest = (0..room.len()).max_by_key(|at| room[*at].len());
        let Some(largest) = largest else { break };
        size -= room.remove(largest).len();
    }
    room.push(member);
    room
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_parts_of_stripped_state_are_left_out() {
        let part = |size: usize, name: &str| name.repeat(size);
        let room = vec![
            part(10, "c"),
            part(60_000, "n"),
            part(59_000, "t"),
            part(900, "j"),
        ];
        let told = bounded(room.clone(), part(50, "m"));
        assert_eq!(
            told,
            [
                part(10, "c"),
                part(59_000, "t"),
                part(900, "j"),
                part(50, "m")
            ]
        );
        let told = bounded(room, part(65_000, "m"));
        assert_eq!(told, [part(10, "c"), part(900, "j"), part(65_000, "m")]);
        assert_eq!(bounded(Vec::new(), part(3, "m")), ["mmm"]);
    }
}

//! Rooms that are elsewhere: local users are invited to them or knock, and this server has neither
//! their state nor their events.
//!
//! Such a room has a number and a row, but no head, and is not found by its id. Memberships in it
//! are rows like all others, so that they are read and told like all others. The event of such a
//! membership is stored under a number that no id leads to: it was never judged, and nothing may
//! build on it. When the room is taken in (see `arrival`) it keeps its number, unless its version is
//! another than whoever invited said.
//!
//! The same is done for a room that is here and that no local user is in any more: nobody sends its
//! events to this server, so an invite has no place in its history.
//!
//! Specification: server-server API, "Inviting to a room", "Leaving Rooms", "Knocking upon a room".

use std::sync::Arc;

use homeserver_events::{EventStatus, Pdu, Rules};
use homeserver_storage::{At, Batch, CommitError, Direction, Position, Positioned, ScanRange};
use ruma::{OwnedServerName, OwnedUserId, RoomId, RoomVersionId, UserId};
use serde::Deserialize;
use serde_json::value::RawValue;
use smallvec::SmallVec;

use crate::{
    Rooms, UserMembership,
    delta::{append_members_changed, put_event, put_member},
    edit::member::bounded,
    error::RoomError,
    event::StoredEvent,
    execute::not_stored,
    import::ATTEMPTS,
    numbers::{EventNumber, RoomNumber, UserNumber},
    room::Room,
    rowchange::RowChange,
    rows::{Membership, MembershipRow, StrippedRow, ViaRow},
    tables,
    tree::StateRoot,
    visible::membership_of,
};

/// Versions in which one room may be told of at most: only one is true.
const VERSIONS: usize = 32;

/// Stripped events that are kept of a room at most.
const MAX_STRIPPED_EVENTS: usize = 50;

/// A membership event of a local user in a room that is elsewhere. Whether it is to be believed was
/// decided before.
#[derive(Clone, Debug)]
pub struct Outside {
    /// The user, whom the event is about.
    pub user: OwnedUserId,
    /// The version of the room, as it was told.
    pub version: RoomVersionId,
    /// The event.
    pub pdu: Pdu,
    /// What was told of the room's state, each a JSON object; of an invite or a knock.
    pub stripped: Vec<Box<RawValue>>,
    /// Servers by which the user is known to the room.
    pub via: Vec<OwnedServerName>,
}

/// What a local user is to a room, whether the room is here or not.
#[derive(Clone, Debug)]
pub struct Standing {
    /// The membership.
    pub membership: UserMembership,
    /// The room; one that is elsewhere allows nothing but to be named.
    pub room: Arc<Room>,
    /// The event of the membership.
    pub pdu: Pdu,
    /// Whether the room as it is here does not know that event.
    pub outside: bool,
    /// Servers by which the user is known to the room.
    pub via: Vec<OwnedServerName>,
}

/// Reads what was told of the state of a room, in the form of stripped state or of whole events, as
/// stripped state. What is neither is left out.
fn stripped_of(told: &[Box<RawValue>]) -> Vec<String> {
    #[derive(Deserialize)]
    struct Told<'a> {
        #[serde(rename = "type")]
        event_type: String,
        state_key: String,
        sender: OwnedUserId,
        #[serde(borrow)]
        content: &'a RawValue,
    }
    let read = |event: &RawValue| {
        let told: Told<'_> = serde_json::from_str(event.get()).ok()?;
        if !told.content.get().starts_with('{') {
            return None;
        }
        let stripped = serde_json::json!({
            "type": told.event_type,
            "state_key": told.state_key,
            "sender": told.sender,
            "content": told.content,
        });
        Some(stripped.to_string())
    };
    told.iter()
        .filter_map(|event| read(event))
        .take(MAX_STRIPPED_EVENTS)
        .collect()
}

/// A room to which a membership is noted.
struct Place {
    room: Arc<Room>,
    /// Its row has to be written.
    new: bool,
}

impl Rooms {
    /// What a local user is to a room now; `None` if nothing.
    pub async fn standing_of(
        &self,
        user: &UserId,
        id: &RoomId,
    ) -> Result<Option<Standing>, RoomError> {
        let Some(number) = self.numbering.known_user(user).await? else {
            return Ok(None);
        };
        let mut newest: Option<UserMembership> = None;
        for room in self.numbers_of(id).await? {
            let found = self.membership(number, room, Position::MAX).await?;
            let since = newest.as_ref().map_or(0, |membership| membership.since);
            newest = found.filter(|found| found.since >= since).or(newest);
        }
        let Some(membership) = newest else {
            return Ok(None);
        };
        let room = self.room_by_number(membership.room).await?;
        let event = self.events.load(&room, membership.event).await?;
        let known = self.events.number(room.number, event.pdu.event_id());
        let outside = known.await? != Some(membership.event);
        let via = (number.0, room.number.0);
        let via = self.store.get(&tables::OUTSIDE_VIA, &via).await?;
        Ok(Some(Standing {
            membership,
            room,
            pdu: event.pdu.clone(),
            outside,
            via: via.map(|via: ViaRow| via.servers).unwrap_or_default(),
        }))
    }

    /// The numbers of a room: of the one that is here, and of those that it was told to be.
    async fn numbers_of(&self, id: &RoomId) -> Result<Vec<RoomNumber>, RoomError> {
        let mut numbers = Vec::new();
        numbers.extend(self.room(id).await?.map(|room| room.number));
        let range = ScanRange::prefix(&id.as_str());
        let table = &tables::OUTSIDE_ROOMS;
        let told = self.store.scan(table, range, Direction::Forward, VERSIONS);
        let told = told.await?.into_iter();
        numbers.extend(told.map(|(_, number)| RoomNumber(number)));
        numbers.dedup();
        Ok(numbers)
    }

    /// The number of a room that is elsewhere, under the version that was told.
    pub(crate) async fn outside_number(
        &self,
        id: &RoomId,
        version: &RoomVersionId,
    ) -> Result<Option<RoomNumber>, RoomError> {
        let key = (id.as_str(), version.as_str());
        let found = self.store.get(&tables::OUTSIDE_ROOMS, &key).await?;
        Ok(found.map(RoomNumber))
    }

    /// Notes what a local user is to a room that is elsewhere. Gives where it is told. The same
    /// event changes nothing a second time; who is in the room stays there; and only those who are
    /// invited or knock can be said to have left.
    pub async fn note_outside(&self, outside: &Outside) -> Result<Position, RoomError> {
        for _ in 0..ATTEMPTS {
            match self.try_note_outside(outside).await {
                Err(RoomError::NotStored(CommitError::Conflict { .. })) => {}
                outcome => return outcome,
            }
        }
        Err(RoomError::Contended)
    }

    async fn try_note_outside(&self, outside: &Outside) -> Result<Position, RoomError> {
        let place = self.place_of(outside).await?;
        let user = self.numbering.user(&outside.user).await?;
        let event = self.unjudged(place.room.number, &outside.pdu).await?;
        let membership = membership_of(&event)
            .filter(|_| event.is_state("m.room.member", outside.user.as_str()))
            .ok_or_else(|| RoomError::BadContent("not a membership of that user".to_owned()))?;
        let key = (user.0, place.room.number.0);
        let seen = self.store.get(&tables::CURRENT_MEMBERSHIPS, &key).await?;
        if let Some(seen) = &seen {
            let known = self.events.load(&place.room, seen.value.event).await?;
            if known.pdu.event_id() == event.pdu.event_id() {
                return Ok(seen.known());
            }
            // A server takes no invite over that another one made: whoever made it revokes it.
            let by = |event: &StoredEvent| event.pdu.sender().server_name().to_owned();
            let invited = (seen.value.membership, membership);
            if invited == (Membership::Invite, Membership::Invite) && by(&known) != by(&event) {
                return Ok(seen.known());
            }
        }
        let before = seen.as_ref().map(|seen| seen.value.membership);
        check_change(before, membership)?;
        let mut batch = Batch::new();
        match &seen {
            Some(seen) => batch.assert_value(&tables::CURRENT_MEMBERSHIPS, &key, seen),
            None => batch.assert_absent(&tables::CURRENT_MEMBERSHIPS, &key),
        };
        if place.new {
            write_outside_room(&mut batch, &place.room);
        }
        put_event(&mut batch, &event, At::Known(0));
        let append = append_members_changed(&mut batch, place.room.number, &[user]);
        let row = MembershipRow {
            membership,
            event: event.number,
            forgotten: false,
        };
        put_member(&mut batch, key, &row, At::Append(append));
        if matches!(membership, Membership::Invite | Membership::Knock) {
            let told = stripped_of(&outside.stripped);
            let events = bounded(told, crate::edit::member::strip(&event));
            let key = (user.0, place.room.number.0, At::Append(append));
            batch.put(&tables::STRIPPED_STATE, &key, &StrippedRow { events });
            let servers = outside.via.clone();
            let key = (user.0, place.room.number.0);
            batch.put(&tables::OUTSIDE_VIA, &key, &ViaRow { servers });
        } else {
            batch.delete(&tables::OUTSIDE_VIA, &key);
        }
        let done = self.store.commit(batch).await.map_err(not_stored)?;
        Ok(done.positions.last().copied().unwrap_or(0))
    }

    /// The room of a membership, as far as it is known here.
    async fn place_of(&self, outside: &Outside) -> Result<Place, RoomError> {
        let id = outside.pdu.room_id();
        if let Some(room) = self.room(id).await? {
            if room.version != outside.version {
                let why = format!("{id} is of version {}", room.version);
                return Err(RoomError::BadContent(why));
            }
            return Ok(Place { room, new: false });
        }
        if let Some(number) = self.outside_number(id, &outside.version).await? {
            let room = self.room_by_number(number).await?;
            return Ok(Place { room, new: false });
        }
        let unsupported = || RoomError::UnsupportedRoomVersion(outside.version.to_string());
        let room = Room {
            number: self.numbering.new_room().await?,
            id: id.to_owned(),
            version: outside.version.clone(),
            rules: Rules::for_version(&outside.version).ok_or_else(unsupported)?,
            create: EventNumber(0),
        };
        let room = Arc::new(room);
        Ok(Place { room, new: true })
    }

    /// An event that nothing was decided about.
    pub(crate) async fn unjudged(
        &self,
        room: RoomNumber,
        pdu: &Pdu,
    ) -> Result<StoredEvent, RoomError> {
        Ok(StoredEvent {
            number: self.numbering.new_event().await?,
            room,
            pdu: pdu.clone(),
            status: EventStatus::Outlier,
            after: StateRoot::EMPTY,
            position: None,
            height: 0,
            backfill_tie: None,
            auth_height: 0,
            auth: SmallVec::new(),
            prev: SmallVec::new(),
            over_gap: false,
            replaces: None,
            redacted_by: None,
            origin: None,
        })
    }

    /// Does not show a room that is elsewhere to a user any more. Gives false if the user's
    /// membership is that of a room that is here, where a command does so.
    pub async fn forget_outside(&self, user: &UserId, id: &RoomId) -> Result<bool, RoomError> {
        for _ in 0..ATTEMPTS {
            match self.try_forget_outside(user, id).await {
                Err(RoomError::NotStored(CommitError::Conflict { .. })) => {}
                outcome => return outcome,
            }
        }
        Err(RoomError::Contended)
    }

    async fn try_forget_outside(&self, user: &UserId, id: &RoomId) -> Result<bool, RoomError> {
        if self.room(id).await?.is_some() {
            return Ok(false);
        }
        let Some(standing) = self.standing_of(user, id).await? else {
            return Ok(false);
        };
        let (number, room) = (standing.membership.user, standing.room.number);
        let key = (number.0, room.0);
        let seen = self.store.get(&tables::CURRENT_MEMBERSHIPS, &key).await?;
        let Some(seen) = seen else { return Ok(false) };
        match seen.value.membership {
            Membership::Leave | Membership::Ban if seen.value.forgotten => return Ok(true),
            Membership::Leave | Membership::Ban => {}
            Membership::Join | Membership::Invite | Membership::Knock => {
                return Err(RoomError::StillInRoom);
            }
        }
        self.write_forgotten(room, number, &seen).await?;
        Ok(true)
    }

    async fn write_forgotten(
        &self,
        room: RoomNumber,
        user: UserNumber,
        seen: &Positioned<MembershipRow>,
    ) -> Result<(), RoomError> {
        let forgotten = MembershipRow {
            forgotten: true,
            ..seen.value.clone()
        };
        let mut batch = Batch::new();
        batch.assert_value(&tables::CURRENT_MEMBERSHIPS, &(user.0, room.0), seen);
        RowChange::Forget(room, user, forgotten).write(&mut batch);
        self.store.commit(batch).await.map_err(not_stored)?;
        Ok(())
    }
}

/// Whether an event of a room that is elsewhere may change what a user is to it.
fn check_change(before: Option<Membership>, after: Membership) -> Result<(), RoomError> {
    use Membership::{Ban, Invite, Join, Knock, Leave};
    match (before, after) {
        (_, Join) => Err(RoomError::forbidden("a join is not noted from outside")),
        (Some(Join), _) => Err(RoomError::forbidden("the user is in the room")),
        (_, Invite | Knock) | (Some(Invite | Knock), Leave | Ban) => Ok(()),
        (_, Leave | Ban) => Err(RoomError::forbidden("the user is not invited")),
    }
}

/// Writes the rows of a room that is elsewhere for the first time.
pub(crate) fn write_outside_room(batch: &mut Batch, room: &Room) {
    let (id, version) = (room.id.as_str(), room.version.as_str());
    batch.assert_absent(&tables::ROOM_IDS, &id);
    batch.assert_absent(&tables::OUTSIDE_ROOMS, &(id, version));
    batch.put(&tables::OUTSIDE_ROOMS, &(id, version), &room.number.0);
    batch.put(&tables::ROOMS, &room.number.0, &room.row());
}

//! Reading rooms: states, memberships, summaries, stripped state.
//!
//! Every read is bounded by a position the caller chose, at most the durable one: history rows say
//! what was so there, current rows are used where they are old enough.

use std::sync::Arc;

use homeserver_storage::{Direction, Position, ScanRange};
use ruma::{OwnedServerName, OwnedUserId, RoomId, ServerName, UserId};

use crate::{
    Rooms,
    error::RoomError,
    event::StoredEvent,
    numbering::StateKey,
    numbers::{EventNumber, RoomNumber, UserNumber},
    room::Room,
    rows::{JoinedUsers, Membership, MembershipRow, StateLogRow},
    states::PendingNodes,
    tables,
    tree::{Item, StateRoot},
    visible::{ReadableState, Reader, membership_of},
};

/// Rows read from an index in one go.
pub(crate) const ROWS_AT_ONCE: usize = 500;

/// Rows of a user's memberships in one room that are looked at for the last join.
const MEMBERSHIP_CHANGES_AT_ONCE: usize = 32;

/// Pages of so many changes that are read to find out since when somebody is in a room.
const PAGES_OF_MEMBERSHIPS: usize = 32;

/// Members looked at for the heroes of a room.
const HERO_CANDIDATES: usize = 100;

/// Heroes of a room summary (client-server API, `m.heroes`).
pub const HEROES: usize = 5;

/// A membership of a local user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserMembership {
    /// The room.
    pub room: RoomNumber,
    /// The user.
    pub user: UserNumber,
    /// What the user is to the room.
    pub membership: Membership,
    /// The membership event.
    pub event: EventNumber,
    /// Since when, exactly: the position of the event, or of the forgetting.
    pub since: Position,
    /// The user does not want to see the room any more.
    pub forgotten: bool,
}

impl UserMembership {
    fn new(user: u64, room: u64, since: Position, row: &MembershipRow) -> Self {
        Self {
            room: RoomNumber(room),
            user: UserNumber(user),
            membership: row.membership,
            event: row.event,
            since,
            forgotten: row.forgotten,
        }
    }
}

/// A key whose event differs between two states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateChange {
    /// The key.
    pub key: StateKey,
    /// Its event in the first state.
    pub before: Option<EventNumber>,
    /// Its event in the second state.
    pub after: Option<EventNumber>,
}

/// Who is in a room, briefly.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Joined users.
    pub joined: u64,
    /// Invited users.
    pub invited: u64,
    /// Up to [`HEROES`] users other than the reader, from whom a name can be made.
    pub heroes: Vec<OwnedUserId>,
}

impl Rooms {
    /// The room with this id, if this server knows it.
    pub async fn room(&self, id: &RoomId) -> Result<Option<Arc<Room>>, RoomError> {
        self.directory.by_id(id).await
    }

    /// The room with this number.
    pub async fn room_by_number(&self, number: RoomNumber) -> Result<Arc<Room>, RoomError> {
        let room = self.directory.by_number(number).await?;
        room.ok_or_else(|| RoomError::damaged(format!("room {} is not there", number.0)))
    }

    /// The number of a user, given on first mention.
    pub async fn user_number(&self, user: &UserId) -> Result<UserNumber, RoomError> {
        self.numbering.user(user).await
    }

    /// The user with this number.
    pub async fn user_name(&self, user: UserNumber) -> Result<OwnedUserId, RoomError> {
        self.numbering.user_name(user).await
    }

    /// A reader at `position`.
    pub async fn reader(&self, user: OwnedUserId, position: Position) -> Result<Reader, RoomError> {
        let number = self.numbering.known_user(&user).await?;
        Ok(Reader {
            user,
            number,
            position,
        })
    }

    /// All memberships a local user had at `at`, of every kind.
    pub async fn memberships(
        &self,
        user: UserNumber,
        at: Position,
    ) -> Result<Vec<UserMembership>, RoomError> {
        let mut found = Vec::new();
        let mut range = ScanRange::prefix(&user.0);
        loop {
            let table = &tables::CURRENT_MEMBERSHIPS;
            let rows = self
                .store
                .scan(table, range, Direction::Forward, ROWS_AT_ONCE)
                .await?;
            let last = rows.last().map(|(key, _)| *key);
            let full = rows.len() == ROWS_AT_ONCE;
            for ((user, room), row) in rows {
                let since = row.known();
                if since <= at {
                    found.push(UserMembership::new(user, room, since, &row.value));
                } else {
                    let (user, room) = (UserNumber(user), RoomNumber(room));
                    found.extend(self.past_membership(user, room, at).await?);
                }
            }
            match last {
                Some(last) if full => range = ScanRange::prefix(&user.0).after(&last),
                _ => return Ok(found),
            }
        }
    }

    /// The membership a local user had in a room at `at`.
    pub async fn membership(
        &self,
        user: UserNumber,
        room: RoomNumber,
        at: Position,
    ) -> Result<Option<UserMembership>, RoomError> {
        let current = self
            .store
            .get(&tables::CURRENT_MEMBERSHIPS, &(user.0, room.0))
            .await?;
        let Some(row) = current else { return Ok(None) };
        let since = row.known();
        if since <= at {
            return Ok(Some(UserMembership::new(user.0, room.0, since, &row.value)));
        }
        self.past_membership(user, room, at).await
    }

    async fn past_membership(
        &self,
        user: UserNumber,
        room: RoomNumber,
        at: Position,
    ) -> Result<Option<UserMembership>, RoomError> {
        let changes = self.membership_changes(user, room, at, 1).await?;
        Ok(changes.into_iter().next())
    }

    /// The changes of a local user's membership in a room up to `upto`, newest first.
    pub async fn membership_changes(
        &self,
        user: UserNumber,
        room: RoomNumber,
        upto: Position,
        limit: usize,
    ) -> Result<Vec<UserMembership>, RoomError> {
        let range = ScanRange::prefix(&(user.0, room.0)).upto(&(user.0, room.0, upto));
        let rows = self
            .store
            .scan(&tables::MEMBERSHIPS, range, Direction::Backward, limit)
            .await?;
        Ok(rows
            .into_iter()
            .map(|((user, room, at), row)| UserMembership::new(user, room, at, &row))
            .collect())
    }

    /// The user's last join up to `upto`.
    pub(crate) async fn last_join(
        &self,
        user: UserNumber,
        room: RoomNumber,
        upto: Position,
    ) -> Result<Option<UserMembership>, RoomError> {
        let mut upto = upto;
        loop {
            let limit = MEMBERSHIP_CHANGES_AT_ONCE;
            let changes = self.membership_changes(user, room, upto, limit).await?;
            let oldest = changes.last().map(|change| change.since);
            let is_last = changes.len() < limit;
            let join = changes
                .into_iter()
                .find(|change| change.membership == Membership::Join);
            match (join, oldest) {
                (Some(join), _) => return Ok(Some(join)),
                (None, Some(oldest)) if !is_last && oldest > 0 => upto = oldest - 1,
                (None, _) => return Ok(None),
            }
        }
    }

    /// Since when a user who is in a room at `upto` is in it without interruption; a change of the
    /// profile is none. Zero for who is not. Looks at so many pages of changes, newest first.
    pub async fn joined_since(
        &self,
        user: UserNumber,
        room: RoomNumber,
        upto: Position,
    ) -> Result<Position, RoomError> {
        let (mut upto, mut joined) = (upto, 0);
        for _ in 0..PAGES_OF_MEMBERSHIPS {
            let limit = MEMBERSHIP_CHANGES_AT_ONCE;
            let changes = self.membership_changes(user, room, upto, limit).await?;
            for change in &changes {
                if change.membership != Membership::Join {
                    return Ok(joined);
                }
                joined = change.since;
            }
            if changes.len() < limit || joined == 0 {
                break;
            }
            upto = joined - 1;
        }
        Ok(joined)
    }

    /// The local users of a room and what they are to it now, up to `limit`.
    pub async fn local_members(
        &self,
        room: RoomNumber,
        limit: usize,
    ) -> Result<Vec<UserMembership>, RoomError> {
        let range = ScanRange::prefix(&room.0);
        let rows = self
            .store
            .scan(&tables::LOCAL_MEMBERS, range, Direction::Forward, limit)
            .await?;
        Ok(rows
            .into_iter()
            .map(|((room, user), row)| {
                let since = row.known();
                UserMembership::new(user, room, since, &row.value)
            })
            .collect())
    }

    /// The state of a room at a position, with its counts.
    pub async fn state_at(&self, room: RoomNumber, at: Position) -> Result<StateLogRow, RoomError> {
        let range = ScanRange::prefix(&room.0).upto(&(room.0, at));
        let rows = self
            .store
            .scan(&tables::STATE_LOG, range, Direction::Backward, 1)
            .await?;
        Ok(rows
            .into_iter()
            .next()
            .map(|(_, row)| row)
            .unwrap_or_default())
    }

    /// The state that a reader may see whole: for members that at the reader's position, for former
    /// members that when they left, in a world-readable room for anybody the newest. `None` when
    /// the reader may see none.
    pub async fn state_root_for(
        &self,
        reader: &Reader,
        room: &Arc<Room>,
    ) -> Result<Option<ReadableState>, RoomError> {
        let readable = |root, position| ReadableState {
            room: Arc::clone(room),
            root,
            position,
        };
        let now = self.state_at(room.number, reader.position).await?;
        if let Some(user) = reader.number {
            let mine = self.membership(user, room.number, reader.position).await?;
            match mine {
                Some(mine) if mine.membership == Membership::Join => {
                    return Ok(Some(readable(now.root, reader.position)));
                }
                Some(mine) => {
                    if let Some(state) = self.state_when_left(reader, room, &mine).await? {
                        return Ok(Some(state));
                    }
                }
                None => {}
            }
        }
        let visibility = self
            .state_event(room, now.root, "m.room.history_visibility", "")
            .await?;
        let visibility =
            visibility.and_then(|e| crate::visible::content_text(&e, "history_visibility"));
        let world_readable = visibility.as_deref() == Some("world_readable");
        Ok(world_readable.then(|| readable(now.root, reader.position)))
    }

    /// The state right after the change by which a joined reader stopped being joined.
    async fn state_when_left(
        &self,
        reader: &Reader,
        room: &Arc<Room>,
        mine: &UserMembership,
    ) -> Result<Option<ReadableState>, RoomError> {
        let Some(join) = self
            .last_join(mine.user, room.number, reader.position)
            .await?
        else {
            return Ok(None);
        };
        let range = ScanRange::prefix(&(mine.user.0, room.number.0))
            .after(&(mine.user.0, room.number.0, join.since))
            .upto(&(mine.user.0, room.number.0, reader.position));
        let rows = self
            .store
            .scan(&tables::MEMBERSHIPS, range, Direction::Forward, 1)
            .await?;
        let Some(((_, _, at), _)) = rows.into_iter().next() else {
            return Ok(None);
        };
        let position = at;
        let root = self.state_at(room.number, position).await?.root;
        Ok(Some(ReadableState {
            room: Arc::clone(room),
            root,
            position,
        }))
    }

    /// The event of one key in a state.
    pub async fn state_value(
        &self,
        room: &Room,
        root: StateRoot,
        event_type: &str,
        state_key: &str,
    ) -> Result<Option<EventNumber>, RoomError> {
        let pending = PendingNodes::new();
        let item = self.state_item(room, &pending, root, (event_type, state_key));
        Ok(item.await?.map(|item| item.event))
    }

    pub(crate) async fn state_item(
        &self,
        room: &Room,
        pending: &PendingNodes,
        root: StateRoot,
        (event_type, state_key): (&str, &str),
    ) -> Result<Option<Item>, RoomError> {
        let Some(key) = self.numbering.known_key(event_type, state_key).await? else {
            return Ok(None);
        };
        let place = (self.states.place(event_type, state_key), key);
        self.states.find(room.number, pending, root, place).await
    }

    /// The event of one key in a state, for this crate's own decisions.
    pub(crate) async fn state_event(
        &self,
        room: &Room,
        root: StateRoot,
        event_type: &str,
        state_key: &str,
    ) -> Result<Option<Arc<StoredEvent>>, RoomError> {
        match self.state_value(room, root, event_type, state_key).await? {
            Some(number) => Ok(Some(self.events.load(room, number).await?)),
            None => Ok(None),
        }
    }

    /// State keys and events of one type in a state.
    pub async fn state_of_type(
        &self,
        room: &Room,
        root: StateRoot,
        event_type: &str,
    ) -> Result<Vec<(StateKey, EventNumber)>, RoomError> {
        self.some_of_type(room, root, event_type, usize::MAX).await
    }

    pub(crate) async fn some_of_type(
        &self,
        room: &Room,
        root: StateRoot,
        event_type: &str,
        limit: usize,
    ) -> Result<Vec<(StateKey, EventNumber)>, RoomError> {
        let place = self.states.place(event_type, "");
        let items = self.states.of_type(room.number, root, place, limit).await?;
        let mut found = self.with_keys(items).await?;
        found.retain(|(key, _)| key.event_type() == event_type);
        Ok(found)
    }

    /// The whole of a state.
    pub async fn state_all(
        &self,
        room: &Room,
        root: StateRoot,
    ) -> Result<Vec<(StateKey, EventNumber)>, RoomError> {
        let items = self.states.all(room.number, root).await?;
        self.with_keys(items).await
    }

    pub(crate) async fn with_keys(
        &self,
        items: Vec<Item>,
    ) -> Result<Vec<(StateKey, EventNumber)>, RoomError> {
        let mut found = Vec::with_capacity(items.len());
        for item in items {
            found.push((self.numbering.key_name(item.key).await?, item.event));
        }
        Ok(found)
    }

    /// The keys in which two states of a room differ.
    pub async fn state_difference(
        &self,
        room: &Room,
        before: StateRoot,
        after: StateRoot,
    ) -> Result<Vec<StateChange>, RoomError> {
        let pending = PendingNodes::new();
        let found = self
            .states
            .difference(room.number, &pending, (before, after))
            .await?;
        let mut changes = Vec::with_capacity(found.len());
        for change in found {
            changes.push(StateChange {
                key: self.numbering.key_name(change.key).await?,
                before: change.before.map(|(event, _)| event),
                after: change.after.map(|(event, _)| event),
            });
        }
        Ok(changes)
    }

    /// Counts and heroes of a room as `reader` is told them (`summary` of /sync).
    ///
    /// Heroes are taken from the first hundred members in the order of the tree; in rooms that
    /// large, names are not made from members.
    pub async fn summary(&self, reader: &Reader, room: &Room) -> Result<Summary, RoomError> {
        let log = self.state_at(room.number, reader.position).await?;
        let members = self
            .some_of_type(room, log.root, "m.room.member", HERO_CANDIDATES)
            .await?;
        let numbers: Vec<_> = members.iter().map(|(_, event)| *event).collect();
        let events = self.events.load_all(room, &numbers).await?;
        let mut present = Vec::new();
        let mut gone = Vec::new();
        for ((key, _), event) in members.iter().zip(&events) {
            let Ok(user) = UserId::parse(key.state_key()) else {
                continue;
            };
            if user == reader.user {
                continue;
            }
            match membership_of(event) {
                Some(Membership::Join | Membership::Invite) => present.push((event.position, user)),
                Some(Membership::Leave | Membership::Ban) => gone.push((event.position, user)),
                _ => {}
            }
        }
        let mut heroes = if present.is_empty() { gone } else { present };
        heroes.sort();
        heroes.truncate(HEROES);
        Ok(Summary {
            joined: log.joined,
            invited: log.invited,
            heroes: heroes.into_iter().map(|(_, user)| user).collect(),
        })
    }

    /// The stripped state that was told to a local user with the membership that stood at `at`,
    /// each a JSON object with `type`, `state_key`, `sender` and `content`.
    pub async fn stripped_state(
        &self,
        membership: &UserMembership,
    ) -> Result<Vec<String>, RoomError> {
        let key = (membership.user.0, membership.room.0);
        let range = ScanRange::prefix(&key).upto(&(key.0, key.1, membership.since));
        let rows = self
            .store
            .scan(&tables::STRIPPED_STATE, range, Direction::Backward, 1)
            .await?;
        Ok(rows
            .into_iter()
            .next()
            .map(|(_, row)| row.events)
            .unwrap_or_default())
    }

    /// Servers with joined users, this one first if it has any, at most `limit`. In a room of partial
    /// state, those that are said to be in it come last.
    pub async fn servers(
        &self,
        room: RoomNumber,
        limit: usize,
    ) -> Result<Vec<OwnedServerName>, RoomError> {
        let own = &self.options.server_name;
        let key = (room.0, own.as_str());
        let counted = self.store.get(&tables::SERVER_COUNTS, &key).await?;
        let mut servers = Vec::new();
        if counted.is_some_and(JoinedUsers::present) {
            servers.push(own.clone());
        }
        let mut range = ScanRange::prefix(&room.0);
        while servers.len() < limit {
            let table = &tables::SERVER_COUNTS;
            let scan = self.store.scan(table, range, Direction::Forward, limit);
            let rows = scan.await?;
            // Some rows may be of servers that are not in the room.
            let last = rows.last().map(|(key, _)| key.clone());
            let full = rows.len() == limit;
            let present = rows.into_iter().filter(|(_, joined)| joined.present());
            let parsed = present.filter_map(|((_, name), _)| ServerName::parse(name).ok());
            servers.extend(parsed.filter(|server| server != own));
            match last {
                Some(last) if full => range = ScanRange::prefix(&room.0).after(&last),
                _ => break,
            }
        }
        for told in self.told_servers(room).iter() {
            if servers.len() >= limit {
                break;
            }
            if told != own && !servers.contains(told) {
                servers.push(told.clone());
            }
        }
        servers.truncate(limit);
        Ok(servers)
    }
}

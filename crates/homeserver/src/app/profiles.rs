//! Profiles, and what follows when one changes.
//!
//! A new display name or picture is shown in every room by a new member event of the user. That is
//! follow-up work: a reader of the journal does it, with a durable cursor, so that a crash between
//! the change and the last room leaves nothing behind. Whoever changes a profile waits for the
//! reader for a short while, so that a client that looks at once sees what it wrote.
//!
//! Specification: client-server API, "Profiles", "Events on Change of Profile Information".

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use homeserver_rooms::{
    Membership, NewEvent, RoomAction, RoomCommand, RoomError, Rooms, UserNumber as RoomUserNumber,
};
use homeserver_runtime::Runtime;
use homeserver_storage::{Position, StorageError, Store};
use homeserver_users::{Failure, Profile, ProfileError, UserNumber, Users, journal};
use ruma::{OwnedUserId, UserId};
use serde_json::{Map, Value, value::RawValue};
use tokio::sync::watch;

use super::session::Session;

/// The name of the reader's cursor.
const CURSOR: &str = "profiles-to-rooms";

/// Journal entries read at once.
const ENTRIES_AT_ONCE: usize = 500;

/// Entries without a profile after which the cursor is moved all the same.
const CURSOR_STEP: Position = 500;

/// How long a client waits for its rooms to be told.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the reader rests when the rooms or the store failed.
const REST: Duration = Duration::from_secs(1);

/// Fields that member events show.
const SHOWN_IN_ROOMS: [&str; 2] = ["displayname", "avatar_url"];

/// Reads and changes profiles. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ProfileChanges {
    store: Store,
    rooms: Arc<Rooms>,
    users: Users,
    runtime: Runtime,
    /// Up to where rooms were told.
    told: watch::Sender<Position>,
}

/// The rooms were not told.
#[derive(Debug, thiserror::Error)]
enum TellError {
    #[error(transparent)]
    Room(#[from] RoomError),
    #[error(transparent)]
    Users(#[from] Failure),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl ProfileChanges {
    /// Profiles of these users. Starts the reader that tells the rooms.
    pub(crate) fn start(
        store: &Store,
        rooms: &Arc<Rooms>,
        users: &Users,
        runtime: &Runtime,
    ) -> Self {
        let profiles = Self {
            store: store.clone(),
            rooms: Arc::clone(rooms),
            users: users.clone(),
            runtime: runtime.clone(),
            told: watch::Sender::new(0),
        };
        runtime.tasks.spawn(profiles.clone().tell_rooms());
        profiles
    }

    /// The profile of a user of this server, if there is such a user.
    pub(crate) async fn of(&self, user: &UserId) -> Result<Option<Profile>, Failure> {
        let account = self.users.accounts.by_id(user).await?;
        match account.filter(homeserver_users::Account::is_active) {
            Some(account) => Ok(Some(self.users.profiles.all(account.number).await?)),
            None => Ok(None),
        }
    }

    /// Sets a field of the session's user.
    pub(crate) async fn set(
        &self,
        session: &Session,
        name: &str,
        value: &RawValue,
    ) -> Result<(), ProfileError> {
        let profiles = &self.users.profiles;
        let changed = profiles.set(session.user_number, name, value).await?;
        self.wait_for_rooms(name, changed).await;
        Ok(())
    }

    /// Takes a field of the session's user away.
    pub(crate) async fn remove(&self, session: &Session, name: &str) -> Result<(), ProfileError> {
        let profiles = &self.users.profiles;
        let changed = profiles.remove(session.user_number, name).await?;
        self.wait_for_rooms(name, changed).await;
        Ok(())
    }

    async fn wait_for_rooms(&self, name: &str, changed: Option<Position>) {
        let Some(position) = changed.filter(|_| SHOWN_IN_ROOMS.contains(&name)) else {
            return;
        };
        let mut told = self.told.subscribe();
        // The rooms are told sooner or later in any case.
        let _ = tokio::time::timeout(PATIENCE, told.wait_for(|told| *told >= position)).await;
    }

    /// Follows the journal until shutdown.
    async fn tell_rooms(self) {
        let mut grown = self.store.subscribe();
        loop {
            let upto = *grown.borrow_and_update();
            let rest = match self.tell_upto(upto).await {
                Ok(()) => None,
                Err(error) => {
                    tracing::warn!(%error, "rooms were not told of a profile, trying again");
                    Some(REST)
                }
            };
            let wait = async {
                match rest {
                    Some(rest) => tokio::time::sleep(rest).await,
                    None => {
                        let _ = grown.changed().await;
                    }
                }
            };
            tokio::select! {
                () = self.runtime.tasks.stopping() => return,
                () = wait => {}
            }
        }
    }

    async fn tell_upto(&self, upto: Position) -> Result<(), TellError> {
        let cursor = self.store.cursor(CURSOR);
        let mut stored = cursor.position().await?;
        let mut after = stored.max(*self.told.borrow());
        while after < upto {
            let entries = self.store.journal();
            let entries = entries.read_all(after, upto, ENTRIES_AT_ONCE).await?;
            let full = entries.len() == ENTRIES_AT_ONCE;
            let last = entries.last().map_or(upto, |(position, _)| *position);
            let mut changed = false;
            for (_, entry) in &entries {
                if entry.kind == journal::PROFILE_CHANGED
                    && let Some(user) = entry.numbers.first()
                {
                    self.tell_rooms_of(UserNumber(*user)).await?;
                    changed = true;
                }
            }
            after = if full { last } else { upto };
            self.told.send_replace(after);
            // The journal is not trimmed beyond the cursor, so it does not stay far behind.
            if changed || after - stored >= CURSOR_STEP {
                // Lost in a crash, the rooms are told once more, which changes nothing.
                match cursor.advance(after).await {
                    Ok(()) => stored = after,
                    Err(error) => tracing::warn!(%error, "the cursor of profiles was not moved"),
                }
            }
        }
        Ok(())
    }

    /// Sends a member event into every room of a user whose event there shows another profile.
    async fn tell_rooms_of(&self, user: UserNumber) -> Result<(), TellError> {
        let Some(id) = self.users.user_id(user).await? else {
            return Ok(());
        };
        let shown = self.shown(user).await?;
        let at = self.rooms.durable();
        for membership in self.rooms.memberships(RoomUserNumber(user.0), at).await? {
            if membership.membership != Membership::Join {
                continue;
            }
            let room = self.rooms.room_by_number(membership.room).await?;
            let reader = self.rooms.reader(id.clone(), at).await?;
            let events = self
                .rooms
                .visible(&reader, &room, &[membership.event])
                .await?;
            let before = events.first().map(|event| event.pdu().content());
            let Some(content) = before.and_then(|before| with_profile(before, &shown)) else {
                continue;
            };
            match self.send_member(&id, &room.id, content).await {
                // The room does not want it: banned from changing, left in the meantime.
                Ok(_) | Err(RoomError::Forbidden(_) | RoomError::UnknownRoom) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn shown(&self, user: UserNumber) -> Result<BTreeMap<&'static str, Value>, Failure> {
        let mut shown = BTreeMap::new();
        for name in SHOWN_IN_ROOMS {
            if let Some(text) = self.users.profiles.text(user, name).await? {
                shown.insert(name, Value::String(text));
            }
        }
        Ok(shown)
    }

    async fn send_member(
        &self,
        user: &OwnedUserId,
        room: &ruma::OwnedRoomId,
        content: Box<RawValue>,
    ) -> Result<homeserver_rooms::RoomAnswer, RoomError> {
        let event = NewEvent {
            event_type: "m.room.member".to_owned(),
            state_key: Some(user.to_string()),
            content,
            timestamp: None,
        };
        let action = RoomAction::Send {
            room: room.clone(),
            event,
        };
        self.rooms
            .execute(RoomCommand::new(user.clone(), action))
            .await
    }
}

/// The content of a member event with another profile; `None` if it shows that one already.
fn with_profile(before: &RawValue, shown: &BTreeMap<&str, Value>) -> Option<Box<RawValue>> {
    let mut content: Map<String, Value> = serde_json::from_str(before.get()).ok()?;
    let old = content.clone();
    for name in SHOWN_IN_ROOMS {
        match shown.get(name) {
            Some(value) => content.insert(name.to_owned(), value.clone()),
            None => content.remove(name),
        };
    }
    // Why somebody joined is not why they are called so.
    content.remove("reason");
    let changed = SHOWN_IN_ROOMS
        .iter()
        .any(|name| content.get(*name) != old.get(*name));
    changed
        .then(|| serde_json::value::to_raw_value(&content).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_member_event_is_sent_only_if_it_shows_something_new() {
        let raw = |value: Value| serde_json::value::to_raw_value(&value).unwrap();
        let name = |name: &str| BTreeMap::from([("displayname", Value::String(name.to_owned()))]);
        let before = raw(
            json!({"membership": "join", "displayname": "A", "reason": "x", "is_direct": true}),
        );
        assert!(with_profile(&before, &name("A")).is_none());
        let after = with_profile(&before, &name("B")).unwrap();
        let after: Value = serde_json::from_str(after.get()).unwrap();
        assert_eq!(
            after,
            json!({"membership": "join", "displayname": "B", "is_direct": true})
        );
        let after = with_profile(&before, &BTreeMap::new()).unwrap();
        let after: Value = serde_json::from_str(after.get()).unwrap();
        assert_eq!(after, json!({"membership": "join", "is_direct": true}));
    }
}

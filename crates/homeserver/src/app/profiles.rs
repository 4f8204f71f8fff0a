//! Profiles, and what follows when one changes.
//!
//! A new display name or picture is shown in every room by a new member event of the user. That is
//! follow-up work: a reader of the journal does it, with a durable cursor, so that a crash between
//! the change and the last room leaves nothing behind. Whoever changes a profile waits for the
//! reader for a short while, so that a client that looks at once sees what it wrote.
//!
//! Specification: client-server API, "Profiles", "Events on Change of Profile Information".

use std::{sync::Arc, time::Duration};

use homeserver_rooms::{
    MemberProfile, Membership, MembershipChange, RoomAction, RoomCommand, RoomError, RoomNumber,
    Rooms, UserNumber as RoomUserNumber,
};
use homeserver_runtime::Runtime;
use homeserver_storage::{Position, StorageError, Store};
use homeserver_users::{Failure, Profile, ProfileError, UserNumber, Users, journal};
use ruma::{OwnedUserId, UserId};
use serde_json::value::RawValue;
use tokio::sync::{Notify, watch};

use super::session::Session;

/// The name of the reader's cursor.
const CURSOR: &str = "profiles-to-rooms";

/// Journal entries read at once.
const ENTRIES_AT_ONCE: usize = 500;

/// Entries without a profile after which the cursor is moved all the same.
const CURSOR_STEP: Position = 500;

/// How long a client waits for its rooms to be told.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the reader rests when the rooms or the store failed, and, unless somebody waits for it,
/// between two looks at what others write all the time.
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
    /// Ends the reader's rest.
    awaited: Arc<Notify>,
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

impl TellError {
    /// Whether it may go well later. An engine that does not answer is nobody's profile's fault.
    fn is_passing(&self) -> bool {
        match self {
            Self::Room(RoomError::Storage(error))
            | Self::Users(Failure::Read(error))
            | Self::Storage(error) => {
                error.is_passing() || matches!(error, StorageError::Engine(_))
            }
            Self::Room(error) => error.is_passing(),
            Self::Users(error) => error.is_passing(),
        }
    }
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
            awaited: Arc::default(),
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
        self.awaited.notify_one();
        // The rooms are told sooner or later in any case.
        let _ = tokio::time::timeout(PATIENCE, told.wait_for(|told| *told >= position)).await;
    }

    /// Resolves when the rooms were told of all that is in the journal now.
    #[cfg(test)]
    pub(crate) async fn told_now(&self) {
        let now = self.store.durable();
        let mut told = self.told.subscribe();
        self.awaited.notify_one();
        // The sender lives as long as `self`.
        let _ = told.wait_for(|told| *told >= now).await;
    }

    /// Follows the journal until shutdown.
    async fn tell_rooms(self) {
        let mut grown = self.store.subscribe();
        loop {
            let upto = *grown.borrow_and_update();
            let told = self.tell_upto(upto).await;
            if let Err(error) = &told {
                tracing::warn!(%error, "rooms were not told of a profile, trying again");
            }
            let wait = async {
                tokio::select! {
                    biased;
                    () = tokio::time::sleep(REST) => {}
                    () = self.awaited.notified(), if told.is_ok() => {}
                }
                if told.is_ok() {
                    let _ = grown.changed().await;
                }
            };
            tokio::select! {
                biased;
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
                    match self.tell_rooms_of(UserNumber(*user)).await {
                        Err(error) if error.is_passing() => return Err(error),
                        // Tried again for ever, it would keep everybody's rooms from being told.
                        Err(error) => tracing::warn!(%error, user, "a profile cannot be shown"),
                        Ok(()) => {}
                    }
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
        let profile = self.shown(user).await?;
        let user = RoomUserNumber(user.0);
        let memberships = self.rooms.memberships(user, self.rooms.durable()).await?;
        for membership in memberships {
            if membership.membership != Membership::Join {
                continue;
            }
            match self.tell_room(&id, membership.room, &profile).await {
                // The room does not want it: banned from changing, left in the meantime.
                Ok(()) | Err(RoomError::Forbidden(_) | RoomError::UnknownRoom) => {}
                Err(error) => {
                    let error = TellError::from(error);
                    if error.is_passing() {
                        return Err(error);
                    }
                    // A room that will never take it does not keep the others from being told.
                    let room = membership.room.0;
                    tracing::warn!(%error, user = %id, room, "a room cannot show a profile");
                }
            }
        }
        Ok(())
    }

    /// Whether the user is still in the room is decided there, at its tip.
    async fn tell_room(
        &self,
        user: &OwnedUserId,
        room: RoomNumber,
        profile: &MemberProfile,
    ) -> Result<(), RoomError> {
        let room = self.rooms.room_by_number(room).await?;
        let action = RoomAction::Membership {
            room: room.id.clone(),
            change: MembershipChange::Show {
                profile: profile.clone(),
            },
            reason: None,
        };
        let command = RoomCommand::new(user.clone(), action);
        self.rooms.execute(command).await?;
        Ok(())
    }

    async fn shown(&self, user: UserNumber) -> Result<MemberProfile, Failure> {
        let [displayname, avatar_url] = SHOWN_IN_ROOMS;
        Ok(MemberProfile {
            displayname: self.users.profiles.text(user, displayname).await?,
            avatar_url: self.users.profiles.text(user, avatar_url).await?,
        })
    }
}

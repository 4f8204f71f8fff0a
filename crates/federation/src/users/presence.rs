//! Who of the users of other servers is online, as their servers say.
//!
//! It concerns whoever shares a room with them. A join and the presence that follows it take different
//! ways: what is told of a user whom nobody is known to have met waits until somebody has, for a while.
//!
//! Specification: server-server API, "Presence".

use std::{collections::BTreeMap, time::Duration};

use homeserver_users::{RemotePresence, UserNumber};
use ruma::{
    OwnedUserId, UserId, api::federation::transactions::edu::PresenceUpdate,
    presence::PresenceState,
};
use tokio::time::Instant;

use super::{RemoteUsers, UsersError, heard::Ignored};

/// Presences of users who were not met yet that are kept, of all servers and of one.
const MAX_WAITING: usize = 2_000;
const MAX_WAITING_OF_SERVER: usize = 200;

/// How long it is waited for a user to be met.
const WAITS_FOR: Duration = Duration::from_mins(2);

/// What was last told of users whom nobody was found to have met.
#[derive(Debug, Default)]
pub(super) struct WaitingPresences(BTreeMap<OwnedUserId, Waiting>);

#[derive(Debug)]
struct Waiting {
    told: Instant,
    update: PresenceUpdate,
    /// The look-up in which the user was not found.
    look_up: Option<u64>,
}

impl WaitingPresences {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Keeps what was told, unless there is something newer. Whether there is room for it.
    fn keep(&mut self, waiting: Waiting) -> bool {
        let user = &waiting.update.user_id;
        if let Some(other) = self.0.get_mut(user) {
            if other.told <= waiting.told {
                *other = waiting;
            }
            return true;
        }
        let server = user.server_name();
        let of_server = self.0.keys().filter(|user| user.server_name() == server);
        if self.0.len() >= MAX_WAITING || of_server.count() >= MAX_WAITING_OF_SERVER {
            return false;
        }
        self.0.insert(user.clone(), waiting);
        true
    }
}

impl RemoteUsers {
    /// How somebody is.
    pub(super) async fn take_presence(&self, update: PresenceUpdate) -> Result<(), Ignored> {
        self.check_of(update.user_id.server_name(), &update.user_id)?;
        let known = [
            PresenceState::Online,
            PresenceState::Offline,
            PresenceState::Unavailable,
        ];
        if !known.contains(&update.presence) {
            return Err(Ignored::Refused("there is no such state of presence"));
        }
        // What was told before is out of date, also where it is being looked at.
        self.inner.presences.lock().0.remove(&update.user_id);
        let Some(met) = self.met_in(&update.user_id, None).await? else {
            return Ok(());
        };
        let waiting = Waiting {
            told: Instant::now(),
            update,
            look_up: Some(met.look_up),
        };
        let is_known = !met.rooms.is_empty();
        if is_known {
            let number = self.number_of(&waiting.update.user_id).await?;
            self.show(number, &waiting, met.rooms);
        }
        if is_known && !met.outdated {
            return Ok(());
        }
        if !self.inner.presences.lock().keep(waiting) && !is_known {
            return Err(Ignored::Refused("nobody who is here knows this user"));
        }
        self.inner.waiting.notify_one();
        Ok(())
    }

    async fn number_of(&self, user: &UserId) -> Result<UserNumber, UsersError> {
        Ok(self.inner.users.number(user).await?)
    }

    fn show(&self, number: UserNumber, waiting: &Waiting, rooms: Vec<u64>) {
        let update = &waiting.update;
        let active_before = Duration::from_millis(update.last_active_ago.into());
        let told = RemotePresence {
            state: update.presence.clone(),
            status: update.status_msg.clone(),
            last_active_ago: active_before.saturating_add(waiting.told.elapsed()),
            currently_active: update.currently_active,
            rooms,
        };
        if !self.inner.users.presence.remote(number, told) {
            tracing::debug!("the presence of too many users is known already");
        }
    }

    /// Looks once more for users who were not met before.
    pub(super) async fn put_down_presences(&self) {
        let now = Instant::now();
        let waiting: Vec<_> = {
            let mut presences = self.inner.presences.lock();
            presences.0.retain(|_, one| one.told + WAITS_FOR > now);
            let waiting = presences.0.iter();
            waiting
                .map(|(user, one)| (user.clone(), one.told, one.look_up))
                .collect()
        };
        for (user, told, look_up) in waiting {
            if let Err(error) = self.put_down_presence(&user, (told, look_up)).await {
                tracing::debug!(%error, "a presence is not shown");
            }
        }
    }

    async fn put_down_presence(
        &self,
        user: &UserId,
        (told, look_up): (Instant, Option<u64>),
    ) -> Result<(), UsersError> {
        let Some(met) = self.met_in(user, look_up).await? else {
            return Ok(());
        };
        let number = if met.rooms.is_empty() {
            // Strangers are not written down.
            None
        } else {
            Some(self.number_of(user).await?)
        };
        let mut presences = self.inner.presences.lock();
        let same = |one: &&mut Waiting| one.told == told;
        let Some(waiting) = presences.0.get_mut(user).filter(same) else {
            return Ok(());
        };
        waiting.look_up = Some(met.look_up);
        if let Some(number) = number {
            self.show(number, waiting, met.rooms);
            if !met.outdated {
                presences.0.remove(user);
            }
        }
        Ok(())
    }
}

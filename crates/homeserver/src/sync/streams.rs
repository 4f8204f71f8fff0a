//! Wakes those whom typing and presence concern: who is in a room with the one who types, or whose
//! presence changed, and wants to hear of it. Nobody else looks up.

use std::time::Duration;

use homeserver_rooms::UserNumber;

use super::{
    SyncEngine,
    wake::{Bell, News},
};

/// After waking somebody for presence, changes are collected for so long before the next time.
const PRESENCE_PACE: Duration = Duration::from_secs(1);

/// Changes of presence that wake at one time; after more of them everybody hears at the next look.
const CHANGES_TOLD: usize = 1_000;

/// Requests that presence wakes at one time. The others hear of it when they look for another reason.
const MAX_WOKEN: usize = 2_000;

impl SyncEngine {
    /// Wakes for typing until shutdown.
    pub(super) async fn follow_typing(self) {
        let typing = &self.users.typing;
        let mut changed = typing.subscribe();
        let mut told = typing.token();
        loop {
            tokio::select! {
                biased;
                () = self.runtime.tasks.stopping() => return,
                gone = changed.changed() => if gone.is_err() { return },
            }
            let now = typing.token();
            for room in typing.changed_rooms(told) {
                self.wakeups.ring(Bell::Room(room), News::Typing);
            }
            told = now;
        }
    }

    /// Wakes for presence until shutdown.
    pub(super) async fn follow_presence(self) {
        let presence = &self.users.presence;
        let mut changed = presence.subscribe();
        let mut told = presence.token();
        loop {
            tokio::select! {
                biased;
                () = self.runtime.tasks.stopping() => return,
                gone = changed.changed() => if gone.is_err() { return },
            }
            let now = presence.token();
            let changes = presence.changes(told, CHANGES_TOLD).unwrap_or_default();
            let mut woken = 0;
            for (user, _) in changes {
                if woken < MAX_WOKEN {
                    woken += self.wake_acquaintances(UserNumber(user.0)).await;
                }
            }
            told = now;
            if woken > 0 {
                tokio::select! {
                    biased;
                    () = self.runtime.tasks.stopping() => return,
                    () = tokio::time::sleep(PRESENCE_PACE) => {}
                }
            }
        }
    }

    /// Wakes who shares a room with a user. Gives how many.
    pub(super) async fn wake_acquaintances(&self, user: UserNumber) -> usize {
        let presence = &self.users.presence;
        if let Some(rooms) = presence.met_in(homeserver_users::UserNumber(user.0)) {
            let bells = rooms.into_iter().map(Bell::Room);
            let woken = bells.map(|bell| self.wakeups.ring(bell, News::Presence));
            return woken.sum();
        }
        match self.memberships_at(user, self.store.durable()).await {
            Ok(theirs) => {
                let rooms = theirs.joined.iter().map(|room| Bell::Room(*room));
                let bells = rooms.chain([Bell::User(user.0)]);
                bells
                    .map(|bell| self.wakeups.ring(bell, News::Presence))
                    .sum()
            }
            Err(error) => {
                // They hear of it when they look for another reason.
                tracing::warn!(%error, "nobody was woken for a change of presence");
                0
            }
        }
    }
}

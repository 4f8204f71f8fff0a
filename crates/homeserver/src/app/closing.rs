//! Closing an account for good: no way in any more, out of all rooms, profile gone.
//!
//! What is to be done is written down with the closing and struck off last, so that what a crash
//! interrupts is finished by the next start, and what fails by the next hourly run. Every step may
//! be repeated.
//!
//! Specification: client-server API, `/account/deactivate`.

use std::sync::Arc;

use homeserver_federation::{MembershipError, Memberships};
use homeserver_rooms::{
    Membership, MembershipChange, RoomAction, RoomCommand, RoomError, RoomNumber, Rooms,
};
use homeserver_runtime::Runtime;
use homeserver_storage::{Batch, Direction, ScanRange, StorageError, Store, Table, TableSpec};
use homeserver_users::{
    AccountData, AccountState, Accounts, ChangeAccountError, CrossSigning, Failure, ProfileError,
    Profiles, UserNumber, Users,
};
use ruma::UserId;

use super::{
    leftovers::see_through,
    pushers::Pushers,
    session::{SessionError, Sessions},
};

/// (user number) → (): accounts whose closing is not finished
pub(crate) const CLOSINGS: Table<u64, ()> = Table::new(0x86, "closings of accounts");

/// The tables above.
pub(crate) const TABLES: [TableSpec; 1] = [CLOSINGS.spec()];

/// Closings taken up again by one run; more wait for the next.
const MAX_RESUMED: usize = 1_000;

/// A closed account was not wholly cleared; the next run goes on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClosingError {
    /// Its tokens could not be ended.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// Its rooms could not be left.
    #[error(transparent)]
    Rooms(#[from] RoomError),
    /// An invite to a room elsewhere could not be refused.
    #[error(transparent)]
    Elsewhere(#[from] MembershipError),
    /// Its profile could not be cleared.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The store could not do it.
    #[error(transparent)]
    Failure(#[from] Failure),
}

impl From<StorageError> for ClosingError {
    fn from(error: StorageError) -> Self {
        Self::Failure(error.into())
    }
}

/// Closes accounts. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Closing {
    runtime: Runtime,
    store: Store,
    accounts: Accounts,
    profiles: Profiles,
    account_data: AccountData,
    cross_signing: CrossSigning,
    pushers: Pushers,
    sessions: Sessions,
    rooms: Arc<Rooms>,
    memberships: Memberships,
}

impl Closing {
    /// Closes accounts of `users`.
    pub(crate) fn new(
        (runtime, store): (&Runtime, &Store),
        users: &Users,
        sessions: &Sessions,
        (rooms, memberships): (&Arc<Rooms>, &Memberships),
    ) -> Self {
        Self {
            runtime: runtime.clone(),
            store: store.clone(),
            accounts: users.accounts.clone(),
            profiles: users.profiles.clone(),
            account_data: users.account_data.clone(),
            cross_signing: users.cross_signing.clone(),
            pushers: Pushers::new(store.clone()),
            sessions: sessions.clone(),
            rooms: Arc::clone(rooms),
            memberships: memberships.clone(),
        }
    }

    /// Closes an account. Nobody gets in once that is on disk. What is left to do then goes on
    /// without the returned future; if that is dropped before the commit is answered, the hourly
    /// run does it.
    pub(crate) async fn close(
        &self,
        user: UserNumber,
        erase: bool,
    ) -> Result<(), ChangeAccountError> {
        let state = if erase {
            AccountState::Erased
        } else {
            AccountState::Deactivated
        };
        let mut batch = Batch::new();
        batch.put(&CLOSINGS, &user.0, &());
        self.accounts.deactivate(user, state, &batch).await?;
        let closing = self.clone();
        see_through(&self.runtime.tasks, async move {
            if let Err(error) = closing.carry_out(user).await {
                tracing::warn!(%error, %user, "an account is closed, but not wholly cleared");
            }
        })
        .await;
        Ok(())
    }

    /// Takes up what was left unfinished.
    pub(crate) async fn resume(&self) -> Result<(), StorageError> {
        let range = ScanRange::all();
        let rows = self
            .store
            .scan(&CLOSINGS, range, Direction::Forward, MAX_RESUMED)
            .await?;
        for (user, ()) in rows {
            if self.runtime.tasks.is_stopping() {
                break;
            }
            if let Err(error) = self.carry_out(UserNumber(user)).await {
                tracing::warn!(%error, user, "an account is not wholly closed");
            }
        }
        Ok(())
    }

    async fn carry_out(&self, user: UserNumber) -> Result<(), ClosingError> {
        self.sessions.sweep_ended(user).await?;
        self.pushers.remove_all(user).await?;
        self.cross_signing.delete(user).await?;
        self.account_data.delete_all(user).await?;
        self.profiles.clear(user).await?;
        self.leave_rooms(user).await?;
        let mut batch = Batch::new();
        batch.delete(&CLOSINGS, &user.0);
        self.store.commit(batch).await.map_err(Failure::from)?;
        Ok(())
    }

    async fn leave_rooms(&self, user: UserNumber) -> Result<(), ClosingError> {
        let account = self.accounts.by_number(user).await?;
        let Some(account) = account else {
            return Ok(());
        };
        let number = self.rooms.user_number(&account.user_id).await?;
        let memberships = self.rooms.memberships(number, self.store.durable()).await?;
        let mut failed = None;
        for membership in memberships {
            match membership.membership {
                Membership::Join | Membership::Invite | Membership::Knock => {}
                Membership::Leave | Membership::Ban => continue,
            }
            match self.leave_room(&account.user_id, membership.room).await {
                // A room whose rules do not let go is left behind, as any other server would.
                Ok(())
                | Err(ClosingError::Rooms(RoomError::Forbidden(_) | RoomError::UnknownRoom)) => {}
                // One room that cannot be left now keeps nobody in the others.
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    async fn leave_room(&self, user: &UserId, room: RoomNumber) -> Result<(), ClosingError> {
        let room = self.rooms.room_by_number(room).await?;
        if self.memberships.leave(user, &room.id, None).await? {
            return Ok(());
        }
        let action = RoomAction::Membership {
            room: room.id.clone(),
            change: MembershipChange::Leave,
            reason: None,
        };
        let command = RoomCommand::new(user.to_owned(), action);
        self.rooms.execute(command).await?;
        Ok(())
    }
}

//! One computation of what changed: from a token to one durable position.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use homeserver_rooms::{Membership, Reader, RoomNumber, UserMembership, UserNumber};
use homeserver_storage::Position;
use homeserver_users::{Scope, StreamToken};
use ruma::OwnedUserId;
use tokio::sync::OnceCell;

use super::{
    SyncEngine, SyncError, SyncRequest,
    changes::{AccountDatum, Changes, DeviceListChanges},
    count::Counting,
    ephemeral,
    filter::{EventFilter, EventShape, LazyMembers},
    memberships::Memberships,
    token::SyncToken,
    touched::Touched,
};
use crate::{
    app::{
        ignored::{IGNORED_USER_LIST, IgnoredUsers},
        push_rules::PUSH_RULES,
        session::Session,
    },
    client_event::present::Presenter,
};

/// Memberships in one room that are looked at for the one before it was forgotten.
const CHANGES_BEFORE_FORGETTING: usize = 2;

/// What one computation knows.
pub(super) struct Pass<'a> {
    pub(super) engine: &'a SyncEngine,
    pub(super) session: &'a Session,
    pub(super) request: &'a SyncRequest,
    /// Where the device stands; `None` for a first sync.
    pub(super) since: Option<SyncToken>,
    /// The user, at the position that everything is read at.
    pub(super) reader: Reader,
    pub(super) mine: Arc<Memberships>,
    pub(super) ignored: IgnoredUsers,
    /// The rules that unread events are counted by, once something is counted.
    pub(super) counting: OnceCell<Counting>,
    next: SyncToken,
}

/// What else happened in joined rooms, by room number.
#[derive(Debug, Default)]
pub(super) struct Beside {
    pub(super) typing: BTreeMap<u64, Vec<OwnedUserId>>,
    pub(super) account_data: BTreeMap<u64, Vec<AccountDatum>>,
}

impl<'a> Pass<'a> {
    pub(super) async fn begin(
        engine: &'a SyncEngine,
        session: &'a Session,
        since: Option<SyncToken>,
        request: &'a SyncRequest,
    ) -> Result<Self, SyncError> {
        // The tokens of the memory streams are taken first: what changes now is told twice rather
        // than never.
        let next = engine.token(session, engine.store.durable());
        let number = UserNumber(session.user_number.0);
        Ok(Self {
            engine,
            session,
            request,
            since,
            reader: Reader {
                user: session.user.clone(),
                number: Some(number),
                position: next.position,
            },
            mine: engine.memberships_at(number, next.position).await?,
            ignored: ignored_users(engine, session).await?,
            counting: OnceCell::new(),
            next,
        })
    }

    /// The position that everything is read at.
    pub(super) fn upto(&self) -> Position {
        self.reader.position
    }

    /// The position that the device has been told up to.
    pub(super) fn after(&self) -> Position {
        self.since.map_or(0, |since| since.position)
    }

    pub(super) fn user(&self) -> UserNumber {
        UserNumber(self.session.user_number.0)
    }

    pub(super) fn presenter(&self) -> Presenter<'_> {
        let clock = &*self.engine.runtime.clock;
        Presenter::new(
            &self.engine.rooms,
            clock,
            &self.reader,
            &self.session.device,
        )
        .shaped(&self.request.filter)
    }

    pub(super) async fn run(mut self) -> Result<Changes, SyncError> {
        let mut changes = Changes::default();
        let beside = self.own_data(&mut changes).await?;
        self.rooms(&mut changes, beside).await?;
        self.device(&mut changes).await?;
        changes.presence = ephemeral::presence(&self).await?;
        let since = self.since.map(|since| since.position);
        changes.device_lists = match since {
            // A first sync tells no changes; one that starts anew tells them all.
            None if self.request.since.is_none() => DeviceListChanges::default(),
            _ => {
                super::device_lists::between(self.engine, self.session, since, self.upto()).await?
            }
        };
        changes.next = self.next;
        Ok(changes)
    }

    /// Account data, and what is to be told beside the events of joined rooms.
    async fn own_data(&self, changes: &mut Changes) -> Result<Beside, SyncError> {
        let user = self.session.user_number;
        let filter = &self.request.filter;
        let data = &self.engine.users.account_data;
        let found = match self.since {
            Some(since) => data.changes(user, since.position, self.upto()).await?,
            None => data.of_scope(user, Scope::Global).await?,
        };
        let mut beside = Beside::default();
        for datum in found {
            let told = AccountDatum {
                event_type: datum.event_type,
                content: datum.content,
            };
            match datum.scope {
                Scope::Global => changes.account_data.push(told),
                Scope::Room(room) => beside.account_data.entry(room).or_default().push(told),
            }
        }
        if self.since.is_none() || changes.account_data.iter().any(is_push_rules) {
            // Never as stored: default rules that are newer than that are part of them.
            changes.account_data.retain(|datum| !is_push_rules(datum));
            changes.account_data.push(AccountDatum {
                event_type: PUSH_RULES.to_owned(),
                content: self.engine.rules.content(user, &self.session.user).await?,
            });
        }
        let wanted = &filter.account_data;
        changes
            .account_data
            .retain(|datum| allows_datum(wanted, datum));
        let since = self
            .since
            .map_or(StreamToken::default(), |since| since.typing);
        let typing = self.engine.users.typing.changes(&self.mine.joined, since);
        beside.typing = typing.into_inner().into_iter().collect();
        Ok(beside)
    }

    async fn rooms(&self, changes: &mut Changes, mut beside: Beside) -> Result<(), SyncError> {
        let touched = match self.since {
            Some(since) => {
                let span = (since.position, self.upto());
                let found = self.engine.touched(self.user(), &self.mine, span).await?;
                Some(found)
            }
            None => None,
        };
        for membership in self.concerned(touched.as_ref(), &beside) {
            let room = self.engine.rooms.room_by_number(membership.room).await?;
            if !self.request.filter.rooms.allows(&room.id) {
                continue;
            }
            match membership.membership {
                // Who wants all members is told of the room once they are known.
                Membership::Join if self.lacks_members(room.number) => {}
                Membership::Join => {
                    let touched = touched.as_ref();
                    let told = self
                        .joined_room(&room, membership, touched, &mut beside)
                        .await?;
                    changes.joined.extend(told);
                }
                Membership::Invite if self.is_new(membership) => {
                    changes
                        .invited
                        .extend(self.invite(&room, membership).await?);
                }
                Membership::Knock if self.is_new(membership) => {
                    changes
                        .knocked
                        .push(self.stripped(&room, membership).await?);
                }
                Membership::Leave | Membership::Ban => {
                    let left = self.leaving(membership).await?;
                    if let Some(left) = left {
                        changes.left.extend(self.left_room(&room, &left).await?);
                    }
                }
                Membership::Invite | Membership::Knock => {}
            }
        }
        Ok(())
    }

    /// The memberships of rooms in which something may have to be told.
    fn concerned<'m>(
        &'m self,
        touched: Option<&Touched>,
        beside: &Beside,
    ) -> Vec<&'m UserMembership> {
        let Some(touched) = touched.filter(|_| !self.request.full_state) else {
            return self.mine.all.iter().collect();
        };
        let mut rooms: BTreeSet<u64> = &touched.rooms | &touched.receipts;
        rooms.extend(beside.typing.keys());
        rooms.extend(beside.account_data.keys());
        let concerned = |one: &&UserMembership| rooms.contains(&one.room.0) || self.is_new(one);
        self.mine.all.iter().filter(concerned).collect()
    }

    /// Whether the device wants all members of a room, and they are not known yet.
    fn lacks_members(&self, room: RoomNumber) -> bool {
        let wants_all = self.request.filter.lazy == LazyMembers::All;
        wants_all && self.engine.rooms.was_partial_at(room, self.upto())
    }

    /// Whether all members of a room became known after the device's token.
    pub(super) fn got_members(&self, room: RoomNumber) -> bool {
        let span = (self.after(), self.upto());
        self.engine.rooms.made_whole_in(room, span).is_some()
    }

    /// Whether the membership began after the device's token.
    pub(super) fn is_new(&self, membership: &UserMembership) -> bool {
        membership.since > self.after()
    }

    /// The membership by which the user left the room, if the device is to be told of it.
    async fn leaving(
        &self,
        membership: &UserMembership,
    ) -> Result<Option<UserMembership>, SyncError> {
        if self.since.is_none() {
            let shown = self.request.filter.include_leave && !membership.forgotten;
            return Ok(shown.then(|| membership.clone()));
        }
        if !self.is_new(membership) {
            return Ok(None);
        }
        if !membership.forgotten {
            return Ok(Some(membership.clone()));
        }
        let rooms = &self.engine.rooms;
        let limit = CHANGES_BEFORE_FORGETTING;
        let changes = rooms
            .membership_changes(self.user(), membership.room, self.upto(), limit)
            .await?;
        let before = changes.into_iter().find(|change| !change.forgotten);
        Ok(before.filter(|before| self.is_new(before)))
    }

    /// To-device messages and counts of keys.
    async fn device(&mut self, changes: &mut Changes) -> Result<(), SyncError> {
        let device = self.session.device_number;
        let told = self.since.filter(|since| since.device == device.0);
        let told = told.map_or(0, |since| since.to_device);
        let users = &self.engine.users;
        let page = users.inbox.page(device, told, self.upto()).await?;
        changes.to_device = page.messages.iter().map(ephemeral::to_device).collect();
        self.next.to_device = page.upto;
        changes.one_time_keys = users.keys.counts(device).await?;
        changes.unused_fallback_types = users.keys.unused_fallback_types(device).await?;
        if self.since.is_some() {
            let topic = homeserver_users::journal::device(device);
            let last = self.engine.store.journal().last(&[topic]).await?;
            let last = last.first().copied().flatten().unwrap_or(0);
            let (after, upto) = (self.after(), self.upto());
            changes.keys_changed = last > after && last <= upto && changes.to_device.is_empty();
        }
        Ok(())
    }

    /// Whether the reader hears of what this user says.
    pub(super) fn hears(&self, user: &ruma::UserId) -> bool {
        !self.ignored.hides(user, false)
    }
}

/// Whether a filter lets a value of account data through.
pub(super) fn allows_datum(filter: &EventFilter, datum: &AccountDatum) -> bool {
    filter.allows(EventShape {
        event_type: &datum.event_type,
        sender: None,
        content: Some(&datum.content),
    })
}

fn is_push_rules(datum: &AccountDatum) -> bool {
    datum.event_type == PUSH_RULES
}

/// The users whom the reader ignores.
async fn ignored_users(engine: &SyncEngine, session: &Session) -> Result<IgnoredUsers, SyncError> {
    let data = &engine.users.account_data;
    let list = data
        .one(session.user_number, Scope::Global, IGNORED_USER_LIST)
        .await?;
    let ignored = list.map_or_else(IgnoredUsers::default, |list| {
        IgnoredUsers::read(&list.content)
    });
    Ok(ignored.others_than(&session.user))
}

/// The pair of numbers under which members sent to a device are remembered.
pub(super) fn lazy_place(
    session: &Session,
    room: RoomNumber,
) -> (homeserver_users::DeviceNumber, RoomNumber) {
    (session.device_number, room)
}

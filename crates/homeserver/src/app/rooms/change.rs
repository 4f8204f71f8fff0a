//! Changing rooms: from a client's request to a room command.
//!
//! The checks here are those that need more than the room: profiles, settings of other users,
//! aliases. Whether the room allows the change is decided by the room.
//!
//! Specification: client-server API, "Rooms" and "Sending events to a room".

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use homeserver_federation::{
    IdentityError, IdentityServers, InviteError, MembershipError, Memberships, Policies,
    PolicyError, RemoteUsers, Resident,
};
use homeserver_rooms::{
    CreateRoom, MemberProfile, MembershipChange, NewEvent, RoomAction, RoomAnswer, RoomCommand,
    RoomError, Rooms,
};
use homeserver_users::{
    AccountData, Accounts, Failure, Presences, Profile, Profiles, Scope, Typing, Users,
};
use ruma::{OwnedDeviceId, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde::Deserialize;
use tokio::sync::Semaphore;

use super::{
    content::{check_redaction, invited_by_state},
    read::MEMBERS_PATIENCE,
    third_party::BONDS_AT_ONCE,
};
use crate::app::session::Session;

/// Account data in which a user says who may send invites.
const INVITE_PERMISSION: &str = "m.invite_permission_config";

/// Servers that are asked at once to sign invites into a new room.
const INVITES_AT_ONCE: usize = 20;

/// Times that an upgrade is decided and shown to a policy server: a room in which more is said in
/// the meantime is replaced by events that other servers have to show to it.
const UPGRADES_DECIDED: usize = 5;

/// How long an invite waits for the profile of a user of another server, which it can do without.
const PROFILE_PATIENCE: Duration = Duration::from_secs(1);

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChangeError {
    /// The room refuses, or could not tell.
    #[error(transparent)]
    Room(#[from] RoomError),
    /// The user takes no invites.
    #[error("{0} does not accept invites")]
    InviteBlocked(OwnedUserId),
    /// An identity server was of no use.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The content of the event is not what its type must hold.
    #[error("{0}")]
    BadContent(&'static str),
    /// The server of the invited user did not sign the invite.
    #[error(transparent)]
    Invite(#[from] InviteError),
    /// The room's policy server does not recommend the event.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The room is elsewhere, and no server there let the user in.
    #[error(transparent)]
    Elsewhere(#[from] MembershipError),
    /// A profile or a setting could not be read.
    #[error("a profile or a setting could not be read")]
    Users(#[from] Failure),
}

/// A client's transaction id and what it is the id of.
#[derive(Debug)]
pub(crate) struct Transaction {
    /// Method and path without the transaction id, the same for all versions of the path.
    pub(crate) endpoint: String,
    /// The id.
    pub(crate) id: String,
}

/// Who changes something.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Actor<'a> {
    /// The user.
    pub(crate) user: &'a OwnedUserId,
    /// The device, unless it is somebody within the process.
    pub(crate) device: Option<&'a OwnedDeviceId>,
}

impl<'a> From<&'a Session> for Actor<'a> {
    fn from(session: &'a Session) -> Self {
        Self {
            user: &session.user,
            device: Some(&session.device),
        }
    }
}

/// Makes changes in rooms for users of this server.
#[derive(Clone, Debug)]
pub(crate) struct RoomChanges {
    pub(super) rooms: Arc<Rooms>,
    pub(super) resident: Resident,
    policies: Policies,
    remote_users: RemoteUsers,
    pub(super) memberships: Memberships,
    pub(super) identity: IdentityServers,
    /// What is said of addresses by servers that did not sign it.
    pub(super) bonds: Arc<Semaphore>,
    pub(super) accounts: Accounts,
    profiles: Profiles,
    account_data: AccountData,
    typing: Typing,
    presences: Presences,
}

impl RoomChanges {
    /// Changes to these rooms by these users, who invite `remote_users` by `resident` and whom
    /// `identity` servers know, are in rooms that are elsewhere by `memberships`, and ask policy
    /// servers where the rooms use them.
    pub(crate) fn new(
        rooms: Arc<Rooms>,
        (resident, memberships, policies): (Resident, Memberships, Policies),
        (remote_users, identity): (RemoteUsers, IdentityServers),
        users: &Users,
    ) -> Self {
        Self {
            rooms,
            resident,
            policies,
            remote_users,
            memberships,
            identity,
            bonds: Arc::new(Semaphore::new(BONDS_AT_ONCE)),
            accounts: users.accounts.clone(),
            profiles: users.profiles.clone(),
            account_data: users.account_data.clone(),
            typing: users.typing.clone(),
            presences: users.presence.clone(),
        }
    }

    /// What a membership event shows of a user. Of users of other servers that is what these tell at
    /// once, or nothing.
    pub(crate) async fn profile_of(&self, user: &UserId) -> Result<MemberProfile, ChangeError> {
        if !self.rooms.is_local(user) {
            let asked = self.remote_users.profile(user);
            let told = tokio::time::timeout(PROFILE_PATIENCE, asked).await;
            let profile = told.ok().and_then(Result::ok).flatten();
            return Ok(profile.as_ref().map(shown).unwrap_or_default());
        }
        let Some(account) = self.accounts.by_id(user).await? else {
            return Ok(MemberProfile::default());
        };
        Ok(MemberProfile {
            displayname: self.profiles.text(account.number, "displayname").await?,
            avatar_url: self.profiles.text(account.number, "avatar_url").await?,
        })
    }

    /// Puts the profiles of its first members into a room that is to be made.
    pub(crate) async fn introduce(
        &self,
        creator: &UserId,
        room: &mut CreateRoom,
    ) -> Result<(), ChangeError> {
        room.profile = self.profile_of(creator).await?;
        let invited = stream::iter(room.invite.clone());
        let profiles = invited.map(async |user| {
            let profile = self.profile_of(&user).await?;
            Ok::<_, ChangeError>((user, profile))
        });
        let mut profiles = profiles.buffer_unordered(INVITES_AT_ONCE);
        while let Some(found) = profiles.next().await {
            let (user, profile) = found?;
            room.invited_profiles.insert(user, profile);
        }
        Ok(())
    }

    /// Does what somebody asked for.
    pub(crate) async fn act(
        &self,
        actor: impl Into<Actor<'_>>,
        action: RoomAction,
    ) -> Result<RoomAnswer, ChangeError> {
        let actor = actor.into();
        self.check(&action).await?;
        let mut command = RoomCommand::new(actor.user.clone(), action);
        command.device = actor.device.cloned();
        self.carry_out(command).await
    }

    /// Does what a client asked for, or answers as before if this was done already.
    pub(crate) async fn act_once(
        &self,
        session: &Session,
        transaction: Transaction,
        action: RoomAction,
    ) -> Result<RoomAnswer, ChangeError> {
        self.check(&action).await?;
        let command = RoomCommand::new(session.user.clone(), action).with_transaction(
            (session.device.clone(), session.device_number.0),
            transaction.endpoint,
            transaction.id,
        );
        self.carry_out(command).await
    }

    /// Waits until the membership that a command changes is known, where only part of the room's
    /// state is here. Who joins a public room and is not known to be kept out joins at once.
    async fn await_member(&self, command: &RoomCommand) -> Result<(), ChangeError> {
        let Some((room, target, joins)) = changed_member(command) else {
            return Ok(());
        };
        let Some(room) = self.rooms.room(room).await? else {
            return Ok(());
        };
        let is_known = async || self.rooms.knows_member(&room, &target).await;
        if is_known().await? || (joins && self.rooms.is_public(&room).await?) {
            return Ok(());
        }
        let whole = tokio::time::timeout(MEMBERS_PATIENCE, self.rooms.until_whole(room.number));
        whole.await.map_err(|_| RoomError::PartialState)?;
        Ok(())
    }

    /// Carries out a command, where it invites users of other servers with the help of these.
    pub(super) async fn carry_out(&self, command: RoomCommand) -> Result<RoomAnswer, ChangeError> {
        self.await_member(&command).await?;
        if let Some(event) = self.invite_elsewhere(&command).await? {
            let position = self.rooms.durable();
            return Ok(RoomAnswer::Sent { event, position });
        }
        if let Some(mut unsealed) = self.rooms.unsealed(&command).await? {
            let sealed = self.policies.seal(&unsealed.room, unsealed.event);
            unsealed.event = sealed.await?;
            return Ok(self.rooms.append_sealed(command, unsealed).await?);
        }
        for _ in 0..UPGRADES_DECIDED {
            let Some(mut upgrade) = self.rooms.unsealed_upgrade(&command).await? else {
                break;
            };
            for event in &mut upgrade.events {
                *event = self.policies.seal(&upgrade.room, event.clone()).await?;
            }
            if let Some(answer) = self.rooms.append_upgrade(upgrade).await? {
                return Ok(answer);
            }
        }
        let further = Self::invites_elsewhere(&command);
        let answer = self.rooms.execute(command).await?;
        if let RoomAnswer::Created { room, .. } = &answer {
            let invites = stream::iter(further);
            let send = |(sender, change)| self.invite_into_new(room, sender, change);
            invites.for_each_concurrent(INVITES_AT_ONCE, send).await;
        }
        Ok(answer)
    }

    /// Invites a user of another server, if that is what a command does. Gives the id of the event.
    async fn invite_elsewhere(
        &self,
        command: &RoomCommand,
    ) -> Result<Option<OwnedEventId>, ChangeError> {
        let Some(mut proposed) = self.rooms.propose(command).await? else {
            return Ok(None);
        };
        let sealed = self.policies.seal(&proposed.room, proposed.event);
        proposed.event = sealed.await?;
        Ok(Some(self.resident.invite(proposed).await?))
    }

    /// The invites of users of other servers into a room that is to be made.
    fn invites_elsewhere(command: &RoomCommand) -> Vec<(OwnedUserId, MembershipChange)> {
        let RoomAction::Create(wanted) = &command.action else {
            return Vec::new();
        };
        let sender = &command.sender;
        let elsewhere = |user: &&OwnedUserId| user.server_name() != sender.server_name();
        let invites = wanted.invite.iter().filter(elsewhere).map(|user| {
            let change = MembershipChange::Invite {
                user: user.clone(),
                profile: wanted
                    .invited_profiles
                    .get(user)
                    .cloned()
                    .unwrap_or_default(),
                is_direct: wanted.is_direct,
            };
            (sender.clone(), change)
        });
        invites.collect()
    }

    /// The room is there, whether or not somebody can be invited to it.
    async fn invite_into_new(&self, room: &RoomId, sender: OwnedUserId, change: MembershipChange) {
        let action = RoomAction::Membership {
            room: room.to_owned(),
            change,
            reason: None,
        };
        let command = RoomCommand::new(sender, action);
        if let Err(error) = self.invite_elsewhere(&command).await {
            tracing::info!(%room, %error, "a user of another server was not invited to a new room");
        }
    }

    /// Sends an event. Redactions may come this way in all room versions.
    pub(crate) async fn send(
        &self,
        session: &Session,
        room: OwnedRoomId,
        event: NewEvent,
        transaction: Option<Transaction>,
    ) -> Result<RoomAnswer, ChangeError> {
        let is_message = event.state_key.is_none()
            && !matches!(&*event.event_type, "m.reaction" | "m.room.redaction");
        let action = RoomAction::Send {
            room: room.clone(),
            event,
        };
        let answer = match transaction {
            Some(transaction) => self.act_once(session, transaction, action).await?,
            None => self.act(session, action).await?,
        };
        self.presences.active(session.user_number);
        if is_message && let Some(room) = self.rooms.room(&room).await? {
            // What was typed is sent: clients do not say so again.
            self.typing.stop_typing(room.number.0, &session.user);
        }
        Ok(answer)
    }

    /// Refuses an action that would invite a user of this server who takes no invites, and a
    /// redaction that no room could read.
    async fn check(&self, action: &RoomAction) -> Result<(), ChangeError> {
        match action {
            RoomAction::Create(wanted) => {
                for user in &wanted.invite {
                    self.check_invite(user).await?;
                }
                for state in &wanted.initial_state {
                    let (kind, key) = (&state.event_type, &state.state_key);
                    if let Some(user) = invited_by_state(kind, Some(key), &state.content) {
                        self.check_invite(&user).await?;
                    }
                }
            }
            RoomAction::Membership {
                change: MembershipChange::Invite { user, .. } | MembershipChange::Prove { user, .. },
                ..
            } => self.check_invite(user).await?,
            RoomAction::Send { event, .. } => {
                if event.state_key.is_none() && event.event_type == "m.room.redaction" {
                    check_redaction(&event.content)?;
                }
                let (kind, key) = (&event.event_type, event.state_key.as_deref());
                if let Some(user) = invited_by_state(kind, key, &event.content) {
                    self.check_invite(&user).await?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) async fn check_invite(&self, user: &UserId) -> Result<(), ChangeError> {
        #[derive(Deserialize)]
        struct Permission<'a> {
            #[serde(borrow)]
            default_action: Option<std::borrow::Cow<'a, str>>,
        }
        let Some(account) = self.accounts.by_id(user).await? else {
            return Ok(());
        };
        let data = &self.account_data;
        let datum = data.one(account.number, Scope::Global, INVITE_PERMISSION);
        let Some(datum) = datum.await? else {
            return Ok(());
        };
        // A value that is not understood blocks nobody, says the specification.
        let permission = serde_json::from_str::<Permission<'_>>(datum.content.get());
        match permission {
            Ok(Permission {
                default_action: Some(action),
            }) if action == "block" => Err(ChangeError::InviteBlocked(user.to_owned())),
            _ => Ok(()),
        }
    }
}

/// The room and the user whose membership a command changes, and whether it is a join.
fn changed_member(command: &RoomCommand) -> Option<(&RoomId, OwnedUserId, bool)> {
    let sender = || command.sender.clone();
    match &command.action {
        RoomAction::Membership { room, change, .. } => {
            let (target, joins) = match change {
                MembershipChange::Join { .. } => (sender(), true),
                MembershipChange::Show { .. }
                | MembershipChange::Leave
                | MembershipChange::Knock { .. } => (sender(), false),
                MembershipChange::Invite { user, .. }
                | MembershipChange::Prove { user, .. }
                | MembershipChange::Kick { user }
                | MembershipChange::Ban { user }
                | MembershipChange::Unban { user } => (user.clone(), false),
            };
            Some((room, target, joins))
        }
        RoomAction::Send { room, event } if event.event_type == "m.room.member" => {
            let target = UserId::parse(event.state_key.as_deref()?).ok()?;
            let joins = target == command.sender;
            Some((room, target, joins))
        }
        _ => None,
    }
}

/// The fields of a profile that membership events show, if they are text.
fn shown(profile: &Profile) -> MemberProfile {
    let text = |name: &str| serde_json::from_str(profile.get(name)?.get()).ok();
    MemberProfile {
        displayname: text("displayname"),
        avatar_url: text("avatar_url"),
    }
}

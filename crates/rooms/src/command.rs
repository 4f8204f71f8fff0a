//! What may be asked of a room: values that can be stored or sent to another node, and their
//! answers.
//!
//! A command says who wants what. Whether it is allowed is decided by the room; whether the sender
//! may use this server at all (suspension, invite blocking, reserved namespaces, rate limits) is
//! decided before a command is made.

use std::collections::BTreeMap;

use homeserver_storage::Position;
use ruma::{
    OwnedDeviceId, OwnedEventId, OwnedRoomAliasId, OwnedRoomId, OwnedUserId, RoomVersionId,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// One request to the rooms, by one user.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RoomCommand {
    /// Who asks. Always a user of this server.
    pub sender: OwnedUserId,
    /// The device that asks; its own /sync is told the transaction id of the event.
    pub device: Option<OwnedDeviceId>,
    /// Makes the command happen at most once.
    pub transaction: Option<TransactionKey>,
    /// What is asked.
    pub action: RoomAction,
}

impl RoomCommand {
    /// A command without a device and a transaction id.
    pub fn new(sender: OwnedUserId, action: RoomAction) -> Self {
        Self {
            sender,
            device: None,
            transaction: None,
            action,
        }
    }

    /// The same command, done at most once for this transaction of a device, which is named by its
    /// id and its number.
    #[must_use]
    pub fn with_transaction(
        mut self,
        (device, number): (OwnedDeviceId, u64),
        endpoint: impl Into<String>,
        id: impl Into<String>,
    ) -> Self {
        self.device = Some(device);
        self.transaction = Some(TransactionKey {
            device: number,
            endpoint: endpoint.into(),
            id: id.into(),
        });
        self
    }
}

/// A client's transaction id. Its scope is the device and the endpoint with its path parameters
/// (client-server API, "Transaction identifiers"); the device is the command's.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TransactionKey {
    /// The number of the device. One that was deleted and is made again under the same id has
    /// another number, and may use its transaction ids again.
    pub device: u64,
    /// Method and path without the transaction id, such as `PUT send/!room/m.room.message`. The
    /// same text for all versions of the path.
    pub endpoint: String,
    /// The client's transaction id.
    pub id: String,
}

/// What is asked of the rooms.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum RoomAction {
    /// Make a room.
    Create(Box<CreateRoom>),
    /// Send an event, with a state key or without.
    Send {
        /// The room.
        room: OwnedRoomId,
        /// The event.
        event: NewEvent,
    },
    /// Redact an event.
    Redact {
        /// The room.
        room: OwnedRoomId,
        /// The event to redact.
        target: OwnedEventId,
        /// Why, for people.
        reason: Option<String>,
    },
    /// Change a membership.
    Membership {
        /// The room.
        room: OwnedRoomId,
        /// What to change.
        change: MembershipChange,
        /// Why, for people.
        reason: Option<String>,
    },
    /// Do not show a left room to the sender any more.
    Forget {
        /// The room.
        room: OwnedRoomId,
    },
    /// Point a new local alias at a room.
    SetAlias {
        /// The alias, of this server.
        alias: OwnedRoomAliasId,
        /// The room.
        room: OwnedRoomId,
    },
    /// Remove a local alias.
    DeleteAlias {
        /// The alias, of this server.
        alias: OwnedRoomAliasId,
        /// Remove it although the sender neither made it nor has power in its room.
        as_admin: bool,
    },
    /// Show a room in this server's directory or not.
    SetDirectoryVisibility {
        /// The room.
        room: OwnedRoomId,
        /// Whether the room is listed.
        visible: bool,
        /// Allow it although the sender has no power in the room.
        as_admin: bool,
    },
    /// Replace a room by one of another version.
    Upgrade(UpgradeRoom),
}

/// An event to be sent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NewEvent {
    /// The type of the event.
    pub event_type: String,
    /// Present for state events.
    pub state_key: Option<String>,
    /// The content, a JSON object.
    pub content: Box<RawValue>,
    /// `origin_server_ts` in milliseconds; the server's clock when absent.
    pub timestamp: Option<u64>,
}

/// What a membership event shows of its user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberProfile {
    /// The display name.
    pub displayname: Option<String>,
    /// An `mxc:` URI.
    pub avatar_url: Option<String>,
}

/// A change of somebody's membership.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum MembershipChange {
    /// The sender joins. Joining a room one is in changes nothing and answers the same.
    Join {
        /// The sender's profile.
        profile: MemberProfile,
    },
    /// The sender, who is joined, shows another profile; whoever is not joined is refused.
    Show {
        /// The sender's profile.
        profile: MemberProfile,
    },
    /// The sender leaves, refuses an invite or takes a knock back.
    Leave,
    /// The sender asks to be let in.
    Knock {
        /// The sender's profile.
        profile: MemberProfile,
    },
    /// The sender invites somebody.
    Invite {
        /// Whom.
        user: OwnedUserId,
        /// The invited user's profile, as far as known.
        profile: MemberProfile,
        /// Whether the room is meant as a direct chat.
        is_direct: bool,
    },
    /// Somebody has proven that a third-party invite of the sender is meant for them.
    Prove {
        /// Whom it invites.
        user: OwnedUserId,
        /// The invited user's profile, as far as known.
        profile: MemberProfile,
        /// The block that the identity server signed.
        signed: Box<RawValue>,
    },
    /// The sender removes somebody, or refuses a knock, or takes an invite back.
    Kick {
        /// Whom.
        user: OwnedUserId,
    },
    /// The sender bans somebody.
    Ban {
        /// Whom.
        user: OwnedUserId,
    },
    /// The sender lifts a ban.
    Unban {
        /// Whose.
        user: OwnedUserId,
    },
}

/// The three sets of first state that `createRoom` knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Preset {
    /// By invite; history for members; guests may join.
    PrivateChat,
    /// As `PrivateChat`, and invited users have the creator's power.
    TrustedPrivateChat,
    /// Anybody may join; history for members; no guests.
    PublicChat,
}

/// A state event of `initial_state`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InitialState {
    /// The type of the event.
    pub event_type: String,
    /// The state key, empty by default.
    pub state_key: String,
    /// The content, a JSON object.
    pub content: Box<RawValue>,
}

/// What `POST /createRoom` asks for (client-server API, "Creation").
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CreateRoom {
    /// The version; the configured default when absent.
    pub version: Option<RoomVersionId>,
    /// The preset; follows from `published` when absent.
    pub preset: Option<Preset>,
    /// Whether the room is listed in this server's directory (`visibility: public`).
    pub published: bool,
    /// The localpart of a new alias.
    pub alias_localpart: Option<String>,
    /// The name of the room.
    pub name: Option<String>,
    /// The topic of the room.
    pub topic: Option<String>,
    /// Whom to invite, in this order.
    pub invite: Vec<OwnedUserId>,
    /// Whether the invites say that the room is a direct chat.
    pub is_direct: bool,
    /// State to set after the preset's.
    pub initial_state: Vec<InitialState>,
    /// Further keys of the content of `m.room.create`, a JSON object.
    pub creation_content: Option<Box<RawValue>>,
    /// Laid over the first power levels, a JSON object.
    pub power_level_content_override: Option<Box<RawValue>>,
    /// The creator's profile.
    pub profile: MemberProfile,
    /// Profiles of invited users, as far as known.
    pub invited_profiles: BTreeMap<OwnedUserId, MemberProfile>,
}

/// What `POST /rooms/{roomId}/upgrade` asks for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UpgradeRoom {
    /// The room to replace.
    pub room: OwnedRoomId,
    /// The version of its replacement.
    pub new_version: RoomVersionId,
    /// Users who are creators of the new room beside the sender, in versions that know such.
    pub additional_creators: Vec<OwnedUserId>,
    /// The sender's profile.
    pub profile: MemberProfile,
}

/// What a command did. Stored with its transaction id, so that a repeated request gets it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RoomAnswer {
    /// A room was made.
    Created {
        /// Its id.
        room: OwnedRoomId,
        /// Where its last first event stands in the journal.
        position: Position,
    },
    /// An event was appended, or one that says the same is there already.
    Sent {
        /// Its id.
        event: OwnedEventId,
        /// Where it stands in the journal.
        position: Position,
    },
    /// A room was replaced.
    Upgraded {
        /// The new room.
        replacement: OwnedRoomId,
        /// Where the tombstone stands in the journal.
        position: Position,
    },
    /// It is so now, or was so before.
    Done,
}

impl RoomAnswer {
    /// The position up to which the command had effects; zero if it had none in the journal.
    pub fn position(&self) -> Position {
        match self {
            Self::Created { position, .. }
            | Self::Sent { position, .. }
            | Self::Upgraded { position, .. } => *position,
            Self::Done => 0,
        }
    }
}

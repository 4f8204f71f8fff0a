//! What a room looks like from outside.
//!
//! Specification: client-server API, "Room summary".

use std::sync::Arc;

use homeserver_rooms::{Description, Membership, Reader, Room};
use ruma::{OwnedRoomAliasId, OwnedRoomId, RoomAliasId, RoomOrAliasId, RoomVersionId};
use serde::{Deserialize, Serialize};

use super::read::{ReadError, RoomReads};
use crate::app::session::Session;

/// Conditions of a restricted room that are looked at; each costs a look at a membership.
const MAX_CONDITIONS: usize = 100;

/// The summary of a room, in the words of the specification.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RoomSummary {
    /// The room.
    pub(crate) room_id: OwnedRoomId,
    /// Its main alias.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) canonical_alias: Option<OwnedRoomAliasId>,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// Its topic in plain text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) topic: Option<String>,
    /// Its picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) avatar_url: Option<String>,
    /// Its type, such as `m.space`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) room_type: Option<String>,
    /// How many are joined.
    pub(crate) num_joined_members: u64,
    /// Who may join; anybody where another server does not say.
    #[serde(default = "public")]
    pub(crate) join_rule: String,
    /// Whose members may join, of a restricted room.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) allowed_room_ids: Vec<OwnedRoomId>,
    /// Whether anybody may read it.
    pub(crate) world_readable: bool,
    /// Whether guests may join.
    pub(crate) guest_can_join: bool,
    /// The encryption in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) encryption: Option<String>,
    /// The room's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) room_version: Option<RoomVersionId>,
}

fn public() -> String {
    "public".to_owned()
}

impl RoomSummary {
    /// Whether strangers may know of the room.
    pub(super) fn is_open(&self) -> bool {
        let asks_nobody = matches!(
            self.join_rule.as_str(),
            "public" | "knock" | "knock_restricted"
        );
        asks_nobody || self.world_readable
    }

    /// Everything, for `/room_summary`.
    pub(super) fn whole(described: Description) -> Self {
        let encryption = described.encryption.clone();
        let allowed_room_ids = described.allowed_rooms.clone();
        let version = described.room.version.clone();
        Self {
            encryption,
            allowed_room_ids,
            room_version: Some(version),
            ..Self::listed(described)
        }
    }

    /// What the directory shows.
    pub(super) fn listed(described: Description) -> Self {
        Self {
            room_id: described.room.id.clone(),
            canonical_alias: described.canonical_alias,
            name: described.name,
            topic: described.topic,
            avatar_url: described.avatar_url,
            room_type: described.room_type,
            num_joined_members: described.joined,
            join_rule: described.join_rule,
            allowed_room_ids: Vec::new(),
            world_readable: described.world_readable,
            guest_can_join: described.guest_can_join,
            encryption: None,
            room_version: None,
        }
    }
}

impl RoomReads {
    /// The summary of a room, and what the reader is to it. Rooms that the reader may neither join
    /// nor read are not there.
    pub(crate) async fn summary(
        &self,
        session: Option<&Session>,
        name: &RoomOrAliasId,
    ) -> Result<(RoomSummary, Option<&'static str>), ReadError> {
        let room = self.named(name).await?.ok_or(ReadError::NoSuchRoom)?;
        let described = self
            .rooms
            .description(&room, self.rooms.store().durable())
            .await?;
        let Some(session) = session else {
            if is_open(&described) {
                return Ok((RoomSummary::whole(described), None));
            }
            return Err(ReadError::NoSuchRoom);
        };
        let reader = self
            .rooms
            .reader(session.user.clone(), self.rooms.store().durable())
            .await?;
        let (mine, is_let_in) = self.may_know(&reader, &room, &described).await?;
        if !is_let_in {
            return Err(ReadError::NoSuchRoom);
        }
        Ok((RoomSummary::whole(described), Some(mine.as_str())))
    }

    /// What the reader is to a room that is here, and whether the reader may know of it.
    pub(super) async fn may_know(
        &self,
        reader: &Reader,
        room: &Room,
        described: &Description,
    ) -> Result<(Membership, bool), ReadError> {
        let mine = self.membership_of(reader, room).await?;
        let mine = mine.map_or(Membership::Leave, |mine| mine.membership);
        let may_know = match mine {
            Membership::Join | Membership::Invite | Membership::Knock => true,
            Membership::Leave => {
                is_open(described) || self.is_admitted(reader, &described.allowed_rooms).await?
            }
            Membership::Ban => described.world_readable,
        };
        Ok((mine, may_know))
    }

    /// The room of an id or of an alias of this server.
    async fn named(&self, name: &RoomOrAliasId) -> Result<Option<Arc<Room>>, ReadError> {
        if let Ok(alias) = <&RoomAliasId>::try_from(name) {
            let target = self.rooms.alias(alias).await?;
            return Ok(target.map(|target| target.room));
        }
        let Ok(id) = <&ruma::RoomId>::try_from(name) else {
            return Ok(None);
        };
        Ok(self.rooms.room(id).await?)
    }

    /// Whether the reader is in one of the rooms whose members may join.
    pub(super) async fn is_admitted(
        &self,
        reader: &Reader,
        allowed: &[OwnedRoomId],
    ) -> Result<bool, ReadError> {
        for id in allowed.iter().take(MAX_CONDITIONS) {
            let Some(room) = self.rooms.room(id).await? else {
                continue;
            };
            let mine = self.membership_of(reader, &room).await?;
            if mine.is_some_and(|mine| mine.membership == Membership::Join) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether strangers may know of the room.
pub(super) fn is_open(described: &Description) -> bool {
    let asks_nobody = matches!(
        described.join_rule.as_str(),
        "public" | "knock" | "knock_restricted"
    );
    asks_nobody || described.world_readable
}

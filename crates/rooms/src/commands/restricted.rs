//! Joining a restricted room: who of this server may vouch for the join (client-server API,
//! "Restricted rooms").

use ruma::{OwnedRoomId, OwnedUserId, UserId};
use serde::Deserialize;

use crate::{
    Rooms, edit::RoomEdit, error::RoomError, rows::Membership, tables::CURRENT_MEMBERSHIPS,
};

/// Conditions of one room that are looked at.
const MAX_CONDITIONS: usize = 50;

/// Members of this server who are asked whether they may invite.
const MAX_VOUCHERS: usize = 200;

#[derive(Deserialize)]
struct JoinRules {
    join_rule: String,
    #[serde(default)]
    allow: Vec<Condition>,
}

#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    room_id: Option<OwnedRoomId>,
}

impl Rooms {
    /// The user who vouches for a join, where somebody has to.
    pub(super) async fn voucher(
        &self,
        edit: &RoomEdit<'_>,
        sender: &UserId,
        membership: Option<Membership>,
    ) -> Result<Option<OwnedUserId>, RoomError> {
        if !edit.room().rules.restricted_joins || membership == Some(Membership::Invite) {
            return Ok(None);
        }
        let Some(rules) = edit.state("m.room.join_rules", "").await? else {
            return Ok(None);
        };
        let Ok(rules) = rules.pdu.content_as::<JoinRules>() else {
            return Ok(None);
        };
        if !matches!(rules.join_rule.as_str(), "restricted" | "knock_restricted") {
            return Ok(None);
        }
        if !self.meets_a_condition(sender, &rules.allow).await? {
            return Err(RoomError::forbidden(
                "you are in none of the rooms this room admits",
            ));
        }
        let voucher = self.local_inviter(edit).await?;
        voucher.map(Some).ok_or(RoomError::UnableToAuthoriseJoin)
    }

    async fn meets_a_condition(
        &self,
        user: &UserId,
        conditions: &[Condition],
    ) -> Result<bool, RoomError> {
        let user = self.numbering.user(user).await?;
        let rooms = conditions
            .iter()
            .take(MAX_CONDITIONS)
            .filter(|condition| condition.kind == "m.room_membership")
            .filter_map(|condition| condition.room_id.as_ref());
        for id in rooms {
            let Some(room) = self.room(id).await? else {
                continue;
            };
            let row = self
                .store
                .get(&CURRENT_MEMBERSHIPS, &(user.0, room.number.0))
                .await?;
            if row.is_some_and(|row| row.value.membership == Membership::Join) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A joined user of this server who may invite.
    async fn local_inviter(&self, edit: &RoomEdit<'_>) -> Result<Option<OwnedUserId>, RoomError> {
        let levels = edit.levels().await?;
        for member in self.local_members(edit.room().number, MAX_VOUCHERS).await? {
            if member.membership != Membership::Join {
                continue;
            }
            let user = self.user_name(member.user).await?;
            if levels.may_invite(&user) {
                return Ok(Some(user));
            }
        }
        Ok(None)
    }
}

//! Joining a restricted room: who of this server may vouch for the join (client-server API,
//! "Restricted rooms").

use ruma::{OwnedRoomId, OwnedUserId, UserId};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    Rooms, edit::RoomEdit, error::RoomError, rows::Membership, tables::CURRENT_MEMBERSHIPS,
    visible::membership_of,
};

/// Conditions of one room that are looked at.
const MAX_CONDITIONS: usize = 50;

/// Members of this server who are asked whether they may invite.
const MAX_VOUCHERS: usize = 200;

#[derive(Deserialize)]
struct JoinRules {
    join_rule: String,
    #[serde(default)]
    allow: Value,
}

impl JoinRules {
    /// Who is admitted. What is no condition admits nobody, and takes none of the others away.
    fn conditions(self) -> Vec<Condition> {
        let Value::Array(allow) = self.allow else {
            return Vec::new();
        };
        let conditions = allow.into_iter().map(serde_json::from_value);
        conditions.filter_map(Result::ok).collect()
    }
}

#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    room_id: Option<OwnedRoomId>,
}

/// Whether a user of another server is in one of the rooms that a restricted room admits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Admitted,
    NotAdmitted,
    /// This server is not in all of these rooms, and in none of those it is in is the user.
    Unknown,
}

impl Rooms {
    /// The conditions of a room that admits members of other rooms; `None` of any other room.
    async fn conditions(&self, edit: &RoomEdit<'_>) -> Result<Option<Vec<Condition>>, RoomError> {
        if !edit.room().rules.restricted_joins {
            return Ok(None);
        }
        let Some(rules) = edit.state("m.room.join_rules", "").await? else {
            return Ok(None);
        };
        let Ok(rules) = rules.pdu.content_as::<JoinRules>() else {
            return Ok(None);
        };
        let restricted = matches!(rules.join_rule.as_str(), "restricted" | "knock_restricted");
        Ok(restricted.then(|| rules.conditions()))
    }

    /// The user who vouches for a join, where somebody has to.
    pub(super) async fn voucher(
        &self,
        edit: &RoomEdit<'_>,
        sender: &UserId,
        membership: Option<Membership>,
    ) -> Result<Option<OwnedUserId>, RoomError> {
        if membership == Some(Membership::Invite) {
            return Ok(None);
        }
        let Some(conditions) = self.conditions(edit).await? else {
            return Ok(None);
        };
        if !self.meets_a_condition(sender, &conditions).await? {
            return Err(not_admitted());
        }
        let voucher = self.local_inviter(edit).await?;
        voucher.map(Some).ok_or(RoomError::UnableToAuthoriseJoin)
    }

    /// The user of this server who vouches for the join of a user of another one, where somebody
    /// has to (server-server API, "Restricted rooms").
    pub(crate) async fn voucher_for_guest(
        &self,
        edit: &RoomEdit<'_>,
        guest: &UserId,
    ) -> Result<Option<OwnedUserId>, RoomError> {
        let membership = edit.membership(guest).await?;
        if matches!(membership, Some(Membership::Invite | Membership::Join)) {
            return Ok(None);
        }
        let Some(conditions) = self.conditions(edit).await? else {
            return Ok(None);
        };
        match self.standing(guest, &conditions).await? {
            Standing::Admitted => {}
            Standing::NotAdmitted => return Err(not_admitted()),
            Standing::Unknown => return Err(RoomError::UnableToAuthoriseJoin),
        }
        let voucher = self.local_inviter(edit).await?;
        voucher.map(Some).ok_or(RoomError::UnableToGrantJoin)
    }

    async fn standing(
        &self,
        guest: &UserId,
        conditions: &[Condition],
    ) -> Result<Standing, RoomError> {
        let mut standing = Standing::NotAdmitted;
        for id in admitting(conditions) {
            let room = match self.room(id).await? {
                Some(room) if self.is_resident(&room).await? => room,
                _ => {
                    standing = Standing::Unknown;
                    continue;
                }
            };
            let root = self.state_at(room.number, self.durable()).await?.root;
            let member = self.state_event(&room, root, "m.room.member", guest.as_str());
            let membership = member.await?.and_then(|event| membership_of(&event));
            if membership == Some(Membership::Join) {
                return Ok(Standing::Admitted);
            }
        }
        Ok(standing)
    }

    async fn meets_a_condition(
        &self,
        user: &UserId,
        conditions: &[Condition],
    ) -> Result<bool, RoomError> {
        let user = self.numbering.user(user).await?;
        for id in admitting(conditions) {
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

    /// A joined user of this server who may invite: of those who have a level of their own, or of
    /// the first members.
    async fn local_inviter(&self, edit: &RoomEdit<'_>) -> Result<Option<OwnedUserId>, RoomError> {
        let levels = edit.levels().await?;
        for user in levels.named_users().take(MAX_VOUCHERS) {
            if user.server_name() == self.options.server_name
                && levels.may_invite(&user)
                && edit.membership(&user).await? == Some(Membership::Join)
            {
                return Ok(Some(user));
            }
        }
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

fn not_admitted() -> RoomError {
    RoomError::forbidden("you are in none of the rooms this room admits")
}

/// The rooms whose members the conditions admit.
fn admitting(conditions: &[Condition]) -> impl Iterator<Item = &OwnedRoomId> {
    conditions
        .iter()
        .take(MAX_CONDITIONS)
        .filter(|condition| condition.kind == "m.room_membership")
        .filter_map(|condition| condition.room_id.as_ref())
}

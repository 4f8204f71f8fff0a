//! Changing memberships: join, leave, knock, invite, kick, ban, unban, forget.

use homeserver_storage::Position;
use ruma::{OwnedUserId, UserId};
use serde_json::{Map, Value, json, value::RawValue};

use super::{send::stood, sent};
use crate::{
    Rooms,
    command::{MemberProfile, MembershipChange, NewEvent},
    edit::RoomEdit,
    error::RoomError,
    execute::Decision,
    rowchange::RowChange,
    rows::{Effect, Membership, MembershipRow},
    tables::CURRENT_MEMBERSHIPS,
    third_party::THIRD_PARTY_INVITE,
};

/// Who vouches for a restricted join. Only the server may say so: it signs for it.
pub(crate) const VOUCHER: &str = "join_authorised_via_users_server";

/// The content of a membership event.
pub(crate) fn content(
    membership: Membership,
    profile: &MemberProfile,
    reason: Option<&str>,
) -> Map<String, Value> {
    let mut content = Map::new();
    let mut put = |key: &str, value: Option<&str>| {
        if let Some(value) = value {
            content.insert(key.to_owned(), value.into());
        }
    };
    put("membership", Some(membership.as_str()));
    put("displayname", profile.displayname.as_deref());
    put("avatar_url", profile.avatar_url.as_deref());
    put("reason", reason);
    content
}

/// The content of a member event with another profile; `None` if it shows that one already.
fn with_profile(
    before: &str,
    profile: &MemberProfile,
) -> Result<Option<Map<String, Value>>, RoomError> {
    let before: Map<String, Value> =
        serde_json::from_str(before).map_err(|error| RoomError::damaged(error.to_string()))?;
    let mut content = before.clone();
    for (name, value) in [
        ("displayname", &profile.displayname),
        ("avatar_url", &profile.avatar_url),
    ] {
        match value {
            Some(value) => content.insert(name.to_owned(), value.as_str().into()),
            None => content.remove(name),
        };
    }
    if content == before {
        return Ok(None);
    }
    // Why somebody joined is not why they are called so, and nobody vouches for a name.
    content.remove("reason");
    content.remove(VOUCHER);
    Ok(Some(content))
}

fn not_there(user: &UserId) -> RoomError {
    RoomError::forbidden(format!("{user} is not in this room"))
}

/// The invite that a proof of a third-party invite makes.
pub(crate) struct Proven {
    /// Who sent the third-party invite.
    pub(crate) inviter: OwnedUserId,
    /// The content of the member event.
    pub(crate) content: Map<String, Value>,
}

/// A membership event.
pub(crate) fn member_event(user: &UserId, content: Map<String, Value>) -> NewEvent {
    NewEvent::of(
        "m.room.member",
        Some(user.as_str()),
        &Value::Object(content),
    )
}

impl Rooms {
    pub(super) async fn decide_membership(
        &self,
        edit: &mut RoomEdit<'_>,
        sender: &UserId,
        change: &MembershipChange,
        reason: Option<&str>,
    ) -> Result<Decision, RoomError> {
        use MembershipChange as Change;
        let nobody = MemberProfile::default();
        match change {
            Change::Join { profile } => {
                self.decide_join(edit, sender, content(Membership::Join, profile, reason))
                    .await
            }
            Change::Show { profile } => self.decide_show(edit, sender, profile).await,
            Change::Leave => self.decide_leave(edit, sender, reason).await,
            Change::Knock { profile } => {
                let content = content(Membership::Knock, profile, reason);
                self.set_member(edit, sender, sender, content).await
            }
            Change::Invite {
                user,
                profile,
                is_direct,
            } => {
                let mut content = content(Membership::Invite, profile, reason);
                if *is_direct {
                    content.insert("is_direct".to_owned(), true.into());
                }
                self.set_member(edit, sender, user, content).await
            }
            Change::Prove {
                user,
                profile,
                signed,
            } => {
                let proven = self.proven_invite(edit, user, (profile, signed)).await?;
                if proven.inviter != *sender {
                    let why = "the third-party invite was sent by another user";
                    return Err(RoomError::forbidden(why));
                }
                self.set_member(edit, sender, user, proven.content).await
            }
            Change::Kick { user } => {
                let now = edit.membership(user).await?;
                if !matches!(
                    now,
                    Some(Membership::Join | Membership::Invite | Membership::Knock)
                ) {
                    return Err(not_there(user));
                }
                self.set_member(
                    edit,
                    sender,
                    user,
                    content(Membership::Leave, &nobody, reason),
                )
                .await
            }
            Change::Ban { user } => {
                self.set_member(
                    edit,
                    sender,
                    user,
                    content(Membership::Ban, &nobody, reason),
                )
                .await
            }
            Change::Unban { user } => {
                if edit.membership(user).await? != Some(Membership::Ban) {
                    return Err(RoomError::forbidden(format!("{user} is not banned")));
                }
                self.set_member(
                    edit,
                    sender,
                    user,
                    content(Membership::Leave, &nobody, reason),
                )
                .await
            }
        }
    }

    async fn set_member(
        &self,
        edit: &mut RoomEdit<'_>,
        sender: &UserId,
        target: &UserId,
        content: Map<String, Value>,
    ) -> Result<Decision, RoomError> {
        let event = edit
            .append(sender, &member_event(target, content), None)
            .await?;
        Ok(sent(&event))
    }

    /// Joining a room one is in changes nothing. Where the room admits members of other rooms, a
    /// user of this server who may invite vouches for the join.
    async fn decide_join(
        &self,
        edit: &mut RoomEdit<'_>,
        sender: &UserId,
        mut content: Map<String, Value>,
    ) -> Result<Decision, RoomError> {
        let now = edit.state("m.room.member", sender.as_str()).await?;
        let membership = now.as_deref().and_then(crate::visible::membership_of);
        if let (Some(now), Some(Membership::Join)) = (&now, membership) {
            return Ok(stood(now));
        }
        if let Some(voucher) = self.voucher(edit, sender, membership).await? {
            content.insert(VOUCHER.to_owned(), voucher.as_str().into());
        }
        self.set_member(edit, sender, sender, content).await
    }

    /// A member event that a client sends like any other state, with a voucher of the server's
    /// choice or none; `None` where it may stay as it is.
    pub(super) async fn vouched(
        &self,
        edit: &RoomEdit<'_>,
        sender: &UserId,
        event: &NewEvent,
        mut content: Map<String, Value>,
    ) -> Result<Option<NewEvent>, RoomError> {
        let ("m.room.member", Some(target)) = (&*event.event_type, event.state_key.as_deref())
        else {
            return Ok(None);
        };
        let mut changed = content.remove(VOUCHER).is_some();
        let joins = content.get("membership").and_then(Value::as_str) == Some("join");
        if joins && target == sender {
            let now = edit.membership(sender).await?;
            if now != Some(Membership::Join)
                && let Some(voucher) = self.voucher(edit, sender, now).await?
            {
                content.insert(VOUCHER.to_owned(), voucher.as_str().into());
                changed = true;
            }
        }
        let content = Value::Object(content);
        Ok(changed.then(|| NewEvent {
            timestamp: event.timestamp,
            ..NewEvent::of("m.room.member", Some(target), &content)
        }))
    }

    /// Refuses to remove somebody who is not there, which the rules would allow.
    pub(super) async fn check_removal(
        &self,
        edit: &RoomEdit<'_>,
        sender: &UserId,
        event: &NewEvent,
        target: &str,
    ) -> Result<(), RoomError> {
        let leaves = serde_json::from_str::<Value>(event.content.get())
            .is_ok_and(|content| content["membership"] == "leave");
        let target = UserId::parse(target).ok().filter(|target| target != sender);
        let (true, Some(target)) = (leaves, target) else {
            return Ok(());
        };
        match edit.membership(&target).await? {
            None | Some(Membership::Leave) => Err(not_there(&target)),
            Some(_) => Ok(()),
        }
    }

    /// Another profile never makes a member of somebody: a member event that says `join` would,
    /// where anybody may join.
    async fn decide_show(
        &self,
        edit: &mut RoomEdit<'_>,
        sender: &UserId,
        profile: &MemberProfile,
    ) -> Result<Decision, RoomError> {
        let now = edit.state("m.room.member", sender.as_str()).await?;
        let membership = now.as_deref().and_then(crate::visible::membership_of);
        let (Some(now), Some(Membership::Join)) = (now, membership) else {
            return Err(RoomError::forbidden("you are not in this room"));
        };
        match with_profile(now.pdu.content_str(), profile)? {
            Some(content) => self.set_member(edit, sender, sender, content).await,
            None => Ok(stood(&now)),
        }
    }

    /// Leaving a room one has left changes nothing.
    async fn decide_leave(
        &self,
        edit: &mut RoomEdit<'_>,
        sender: &UserId,
        reason: Option<&str>,
    ) -> Result<Decision, RoomError> {
        let now = edit.state("m.room.member", sender.as_str()).await?;
        let membership = now.as_deref().and_then(crate::visible::membership_of);
        if let (Some(now), Some(Membership::Leave)) = (&now, membership) {
            return Ok(stood(now));
        }
        let content = content(Membership::Leave, &MemberProfile::default(), reason);
        self.set_member(edit, sender, sender, content).await
    }

    /// The invite that follows from a proof. Whether the proof holds is for the rules to say.
    pub(crate) async fn proven_invite(
        &self,
        edit: &RoomEdit<'_>,
        user: &UserId,
        (profile, signed): (&MemberProfile, &RawValue),
    ) -> Result<Proven, RoomError> {
        // The rules would make an invited user of a member.
        if edit.membership(user).await? == Some(Membership::Join) {
            return Err(RoomError::forbidden(format!("{user} is in this room")));
        }
        let signed: Value = serde_json::from_str(signed.get())
            .map_err(|error| RoomError::BadContent(error.to_string()))?;
        let token = signed.get("token").and_then(Value::as_str);
        let invite = edit
            .state(THIRD_PARTY_INVITE, token.unwrap_or_default())
            .await?;
        let invite = invite.ok_or_else(|| RoomError::forbidden("no such third-party invite"))?;
        let shown = crate::visible::content_text(&invite, "display_name");
        let mut content = content(Membership::Invite, profile, None);
        content.insert(
            "third_party_invite".to_owned(),
            json!({ "display_name": shown.unwrap_or_default(), "signed": signed }),
        );
        Ok(Proven {
            inviter: invite.pdu.sender().to_owned(),
            content,
        })
    }

    pub(super) async fn decide_forget(
        &self,
        edit: &RoomEdit<'_>,
        sender: &UserId,
    ) -> Result<Decision, RoomError> {
        let user = self.numbering.user(sender).await?;
        let key = (user.0, edit.room().number.0);
        let row = self.store.get(&CURRENT_MEMBERSHIPS, &key).await?;
        let row = row.ok_or(RoomError::UnknownRoom)?.value;
        match row.membership {
            Membership::Leave | Membership::Ban if row.forgotten => Ok(Effect::Done.into()),
            Membership::Leave | Membership::Ban => {
                let forgotten = MembershipRow {
                    forgotten: true,
                    ..row
                };
                let mut decision = Decision::from(Effect::Done);
                let change = RowChange::Forget(edit.room().number, user, forgotten);
                decision.rows.push(change);
                Ok(decision)
            }
            Membership::Join | Membership::Invite | Membership::Knock => {
                Err(RoomError::StillInRoom)
            }
        }
    }

    /// The position of the newest entry that this server can show.
    pub fn durable(&self) -> Position {
        self.store.durable()
    }
}

//! Rule 5: changes of membership.

use ruma::UserId;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::levels::LevelName;
use super::state::{JoinRule, Membership, State};
use super::{AuthError, ensure, is_user_id, present, third_party};
use crate::pdu::Pdu;

/// The content of a member event as far as the rules look at it.
#[derive(Deserialize)]
pub(super) struct MemberContent<'a> {
    pub(super) membership: Option<String>,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(super) third_party_invite: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    join_authorised_via_users_server: Option<&'a RawValue>,
}

impl MemberContent<'_> {
    /// Who vouches for a restricted join.
    pub(super) fn authorised_via(&self) -> Option<String> {
        serde_json::from_str(self.join_authorised_via_users_server?.get()).ok()
    }
}

pub(super) fn check(event: &Pdu, state: &State<'_>) -> Result<(), AuthError> {
    const NO_KEY: AuthError = AuthError::Refused("a member event must have a user id as state key");
    // 5.1.
    let target = event
        .state_key()
        .filter(|key| is_user_id(key))
        .ok_or(NO_KEY)?;
    let target = <&UserId>::try_from(target).map_err(|_| NO_KEY)?;
    let content: MemberContent<'_> = event
        .content_as()
        .map_err(|_| AuthError::Refused("the content of the member event cannot be read"))?;
    let membership = content
        .membership
        .as_deref()
        .ok_or(AuthError::Refused("a member event must have a membership"))?;
    // 5.2, that the server of `join_authorised_via_users_server` signed, is checked with the
    // other signatures.
    match Membership::parse(membership) {
        Membership::Join => check_join(event, target, &content, state),
        Membership::Invite => check_invite(event, target, &content, state),
        Membership::Leave => check_leave(event, target, state),
        Membership::Ban => check_ban(event, target, state),
        Membership::Knock if state.rules.knocking => check_knock(event, target, state),
        _ => Err(AuthError::Refused("the membership is not known")),
    }
}

/// 5.3.
fn check_join(
    event: &Pdu,
    target: &UserId,
    content: &MemberContent<'_>,
    state: &State<'_>,
) -> Result<(), AuthError> {
    let follows_create = matches!(event.prev_events(), [only] if only == state.create().event_id());
    if follows_create
        && state
            .first_joiner()
            .is_some_and(|creator| creator == target)
    {
        return Ok(());
    }
    ensure(event.sender() == target, "nobody can join for another user")?;
    let current = state.membership(target);
    ensure(
        current != Membership::Ban,
        "the sender is banned from the room",
    )?;
    let may_enter = matches!(current, Membership::Invite | Membership::Join);
    match state.join_rule() {
        JoinRule::Public => Ok(()),
        JoinRule::Invite | JoinRule::Knock => ensure(may_enter, "the sender is not invited"),
        JoinRule::Restricted | JoinRule::KnockRestricted if may_enter => Ok(()),
        JoinRule::Restricted | JoinRule::KnockRestricted => check_authorised_via(content, state),
        JoinRule::Other => Err(AuthError::Refused("the join rule lets nobody in")),
    }
}

/// 5.3.5.2.
fn check_authorised_via(content: &MemberContent<'_>, state: &State<'_>) -> Result<(), AuthError> {
    let via = content.authorised_via();
    let via = via
        .as_deref()
        .and_then(|user| <&UserId>::try_from(user).ok());
    let via = via.ok_or(AuthError::Refused("nobody vouches for the restricted join"))?;
    ensure(
        state.is_joined(via),
        "the user who vouches for the join is not in the room",
    )?;
    let levels = state.levels();
    ensure(
        levels.user(via)? >= levels.named(LevelName::Invite)?,
        "the user who vouches for the join may not invite",
    )
}

/// 5.4.
fn check_invite(
    event: &Pdu,
    target: &UserId,
    content: &MemberContent<'_>,
    state: &State<'_>,
) -> Result<(), AuthError> {
    if let Some(invite) = content.third_party_invite {
        return third_party::check(event, target, invite, state);
    }
    ensure(
        state.is_joined(event.sender()),
        "the sender is not in the room",
    )?;
    ensure(
        !matches!(state.membership(target), Membership::Join | Membership::Ban),
        "the invited user is in the room or banned from it",
    )?;
    let levels = state.levels();
    ensure(
        levels.user(event.sender())? >= levels.named(LevelName::Invite)?,
        "the sender may not invite",
    )
}

/// 5.5.
fn check_leave(event: &Pdu, target: &UserId, state: &State<'_>) -> Result<(), AuthError> {
    let current = state.membership(target);
    if event.sender() == target {
        let may_leave = match current {
            Membership::Join | Membership::Invite => true,
            Membership::Knock => state.rules.knocking,
            _ => false,
        };
        return ensure(
            may_leave,
            "the sender is not in the room, invited or knocking",
        );
    }
    ensure(
        state.is_joined(event.sender()),
        "the sender is not in the room",
    )?;
    let levels = state.levels();
    let sender_level = levels.user(event.sender())?;
    if current == Membership::Ban {
        ensure(
            sender_level >= levels.named(LevelName::Ban)?,
            "the sender may not unban",
        )?;
    }
    ensure(
        sender_level >= levels.named(LevelName::Kick)?,
        "the sender may not kick",
    )?;
    ensure(
        levels.user(target)? < sender_level,
        "the sender may not kick this user",
    )
}

/// 5.6.
fn check_ban(event: &Pdu, target: &UserId, state: &State<'_>) -> Result<(), AuthError> {
    ensure(
        state.is_joined(event.sender()),
        "the sender is not in the room",
    )?;
    let levels = state.levels();
    let sender_level = levels.user(event.sender())?;
    ensure(
        sender_level >= levels.named(LevelName::Ban)?,
        "the sender may not ban",
    )?;
    ensure(
        levels.user(target)? < sender_level,
        "the sender may not ban this user",
    )
}

/// 5.7.
fn check_knock(event: &Pdu, target: &UserId, state: &State<'_>) -> Result<(), AuthError> {
    ensure(
        matches!(
            state.join_rule(),
            JoinRule::Knock | JoinRule::KnockRestricted
        ),
        "the join rule does not allow knocking",
    )?;
    ensure(
        event.sender() == target,
        "nobody can knock for another user",
    )?;
    ensure(
        !matches!(
            state.membership(target),
            Membership::Ban | Membership::Invite | Membership::Join
        ),
        "the sender is in the room, invited or banned",
    )
}

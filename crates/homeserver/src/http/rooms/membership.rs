//! Joining, knocking, inviting, leaving, forgetting, kicking, banning, unbanning.
//!
//! Specification: client-server API, "Room membership".

use axum::extract::State;
use homeserver_federation::identity::Addressee;
use homeserver_rooms::{MembershipChange, RoomAction};
use ruma::{
    OwnedRoomId,
    api::client::{
        knock::knock_room,
        membership::{
            Invite3pid, ThirdPartySigned, ban_user, forget_room, invite_user,
            invite_user::v3::InvitationRecipient, join_room_by_id, join_room_by_id_or_alias,
            joined_rooms, kick_user, leave_room, unban_user,
        },
    },
};
use serde_json::value::{RawValue, to_raw_value};

use crate::{
    app::{
        rooms::{ChangeError, Door, RoomChanges, RoomReads},
        session::Session,
    },
    http::{ApiError, Routes, Ruma},
};

pub(super) fn routes() -> Routes {
    Routes::new()
        .ruma(join_by_id)
        .ruma(join_by_id_or_alias)
        .ruma(knock)
        .ruma(invite)
        .ruma(leave)
        .ruma(forget)
        .ruma(kick)
        .ruma(ban)
        .ruma(unban)
        .ruma(joined)
}

async fn join_by_id(
    State(changes): State<RoomChanges>,
    session: Session,
    Ruma(request): Ruma<join_room_by_id::v3::Request>,
) -> Result<Ruma<join_room_by_id::v3::Response>, ApiError> {
    let signed = request.third_party_signed.as_ref();
    let door = Door {
        room: request.room_id,
        via: Vec::new(),
        reason: request.reason,
    };
    let room = join(&changes, &session, door, signed).await?;
    Ok(Ruma(join_room_by_id::v3::Response::new(room)))
}

async fn join_by_id_or_alias(
    State(changes): State<RoomChanges>,
    session: Session,
    Ruma(request): Ruma<join_room_by_id_or_alias::v3::Request>,
) -> Result<Ruma<join_room_by_id_or_alias::v3::Response>, ApiError> {
    let signed = request.third_party_signed.as_ref();
    let name = &request.room_id_or_alias;
    let door = changes.door(name, request.via, request.reason).await?;
    let room = join(&changes, &session, door, signed).await?;
    Ok(Ruma(join_room_by_id_or_alias::v3::Response::new(room)))
}

async fn join(
    changes: &RoomChanges,
    session: &Session,
    door: Door,
    signed: Option<&ThirdPartySigned>,
) -> Result<OwnedRoomId, ApiError> {
    let third_party_signed = signed.map(raw_third_party_signed).transpose()?;
    let room = door.room.clone();
    changes.join(session, door, third_party_signed).await?;
    Ok(room)
}

fn raw_third_party_signed(signed: &ThirdPartySigned) -> Result<Box<RawValue>, ApiError> {
    to_raw_value(signed).map_err(ApiError::from)
}

async fn knock(
    State(changes): State<RoomChanges>,
    session: Session,
    Ruma(request): Ruma<knock_room::v3::Request>,
) -> Result<Ruma<knock_room::v3::Response>, ApiError> {
    let name = &request.room_id_or_alias;
    let door = changes.door(name, request.via, request.reason).await?;
    let room = door.room.clone();
    let knocked = changes.knock(&session, door).await;
    knocked.map_err(ApiError::naming_the_room)?;
    Ok(Ruma(knock_room::v3::Response::new(room)))
}

async fn invite(
    State(changes): State<RoomChanges>,
    session: Session,
    Ruma(request): Ruma<invite_user::v3::Request>,
) -> Result<Ruma<invite_user::v3::Response>, ApiError> {
    let recipient = match request.recipient {
        InvitationRecipient::UserId(recipient) => recipient,
        InvitationRecipient::ThirdPartyId(somebody) => {
            let (room, somebody) = (&request.room_id, addressee(somebody));
            changes
                .invite_by_address(&session, room, &somebody, false)
                .await?;
            return Ok(Ruma(invite_user::v3::Response::new()));
        }
        _ => return Err(ApiError::bad_json("it is not said who is invited")),
    };
    let change = MembershipChange::Invite {
        profile: changes.profile_of(&recipient.user_id).await?,
        user: recipient.user_id,
        is_direct: false,
    };
    set_membership(
        &changes,
        &session,
        request.room_id,
        change,
        recipient.reason,
    )
    .await?;
    Ok(Ruma(invite_user::v3::Response::new()))
}

/// Somebody whom a client knows by an address only.
pub(super) fn addressee(invited: Invite3pid) -> Addressee {
    Addressee {
        id_server: invited.id_server,
        access_token: invited.id_access_token,
        medium: invited.medium.to_string(),
        address: invited.address,
    }
    .canonical()
}

async fn leave(
    State(changes): State<RoomChanges>,
    session: Session,
    Ruma(request): Ruma<leave_room::v3::Request>,
) -> Result<Ruma<leave_room::v3::Response>, ApiError> {
    changes
        .leave(&session, request.room_id, request.reason)
        .await?;
    Ok(Ruma(leave_room::v3::Response::new()))
}

async fn forget(
    State(changes): State<RoomChanges>,
    session: Session,
    Ruma(request): Ruma<forget_room::v3::Request>,
) -> Result<Ruma<forget_room::v3::Response>, ApiError> {
    changes.forget(&session, request.room_id).await?;
    Ok(Ruma(forget_room::v3::Response::new()))
}

async fn kick(
    State(changes): State<RoomChanges>,
    session: Session,
    Ruma(request): Ruma<kick_user::v3::Request>,
) -> Result<Ruma<kick_user::v3::Response>, ApiError> {
    let user = request.user_id;
    let change = MembershipChange::Kick { user };
    set_membership(&changes, &session, request.room_id, change, request.reason).await?;
    Ok(Ruma(kick_user::v3::Response::new()))
}

async fn ban(
    State(changes): State<RoomChanges>,
    session: Session,
    Ruma(request): Ruma<ban_user::v3::Request>,
) -> Result<Ruma<ban_user::v3::Response>, ApiError> {
    let user = request.user_id;
    let change = MembershipChange::Ban { user };
    set_membership(&changes, &session, request.room_id, change, request.reason).await?;
    Ok(Ruma(ban_user::v3::Response::new()))
}

async fn unban(
    State(changes): State<RoomChanges>,
    session: Session,
    Ruma(request): Ruma<unban_user::v3::Request>,
) -> Result<Ruma<unban_user::v3::Response>, ApiError> {
    let user = request.user_id;
    let change = MembershipChange::Unban { user };
    set_membership(&changes, &session, request.room_id, change, request.reason).await?;
    Ok(Ruma(unban_user::v3::Response::new()))
}

async fn set_membership(
    changes: &RoomChanges,
    session: &Session,
    room: OwnedRoomId,
    change: MembershipChange,
    reason: Option<String>,
) -> Result<(), ChangeError> {
    let action = RoomAction::Membership {
        room,
        change,
        reason,
    };
    changes.act(session, action).await?;
    Ok(())
}

async fn joined(
    State(reads): State<RoomReads>,
    session: Session,
    Ruma(_): Ruma<joined_rooms::v3::Request>,
) -> Result<Ruma<joined_rooms::v3::Response>, ApiError> {
    let rooms = reads.joined_rooms(&session.user).await?;
    Ok(Ruma(joined_rooms::v3::Response::new(rooms)))
}

//! Third-party invites become invites: what identity servers and the servers of invited users say.
//!
//! Specification: server-server API, "Third-party invites".

use axum::{
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::put,
};
use homeserver_federation::membership::Proof;
use http::header;
use ruma::{OwnedUserId, RoomId, api::federation::thirdparty::bind_callback};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::SignedBody;
use crate::{
    app::rooms::{Exchange, RoomChanges},
    http::{ApiError, Counted, Routes, Ruma},
};

/// Bytes of the largest event that may be exchanged: it would not be one if it were larger.
const MAX_BYTES: usize = 64 * 1024;

pub(super) fn routes() -> Routes {
    let path = "/_matrix/federation/v1/exchange_third_party_invite/{roomId}";
    Routes::new()
        .ruma(bound)
        .raw(path, Counted::Within, put(exchange))
}

/// Nobody proves to be an identity server: what counts are the signed blocks.
async fn bound(
    State(changes): State<RoomChanges>,
    Ruma(request): Ruma<bind_callback::v1::Request>,
) -> Result<Ruma<bind_callback::v1::Response>, ApiError> {
    let proofs = request.invites.into_iter().map(|invite| Proof {
        room: invite.room_id,
        inviter: invite.sender,
        user: invite.mxid,
        signed: invite.signed.into_json(),
    });
    changes.bound(&request.mxid, proofs.collect()).await?;
    Ok(Ruma(bind_callback::v1::Response::new()))
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    room_id: String,
    sender: OwnedUserId,
    state_key: OwnedUserId,
    content: Content,
}

#[derive(Deserialize)]
struct Content {
    membership: String,
    third_party_invite: ThirdPartyInvite,
}

#[derive(Deserialize)]
struct ThirdPartyInvite {
    signed: Box<RawValue>,
}

async fn exchange(
    State(changes): State<RoomChanges>,
    Path(room): Path<String>,
    SignedBody { origin, body, .. }: SignedBody,
) -> Result<Response, ApiError> {
    if body.bytes.len() > MAX_BYTES {
        let message = format!("An event has at most {MAX_BYTES} bytes");
        return Err(ApiError::too_large(message));
    }
    let event: Event = serde_json::from_slice(&body.bytes)?;
    let named = RoomId::parse(&room);
    let named = named.map_err(|_| ApiError::invalid_param("The path does not name a room"))?;
    if event.room_id != room {
        return Err(ApiError::invalid_param("The event is for another room"));
    }
    if event.kind != "m.room.member" || event.content.membership != "invite" {
        return Err(ApiError::invalid_param("The event is no invite"));
    }
    let wanted = Exchange {
        origin,
        proof: Proof {
            room: named,
            inviter: event.sender,
            user: event.state_key,
            signed: event.content.third_party_invite.signed,
        },
    };
    changes.exchange(wanted).await?;
    let answer = ([(header::CONTENT_TYPE, "application/json")], "{}");
    Ok(answer.into_response())
}

//! What other servers ask. Here is what they ask without signing it: our keys, the keys that we
//! vouch for, which software this is, and who an `OpenID` token speaks of. What they sign is in the
//! modules below, whose handlers take [`Signed`] or [`SignedBody`] as their last argument.
//!
//! Specification: server-server API, "Retrieving server keys", "Server implementation", "`OpenID`".

mod directory;
mod history;
mod invite;
mod media;
mod membership;
mod query;
mod signed;
mod space;
mod third_party;
mod transactions;
mod user_keys;

use std::collections::BTreeMap;

use axum::{
    extract::{Path, Query, Request, State},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use homeserver_federation::{
    Federation,
    keys::ring::{KeyQuery, MAX_ASKED},
};
use homeserver_runtime::Runtime;
use http::header;
use ruma::{OwnedServerName, ServerName};
use serde::Deserialize;
use serde_json::json;

pub(crate) use self::signed::{Signed, SignedBody};
use super::{ApiError, BodyBudget, Counted, Routes, json_answer};
use crate::app::{
    limits::{LimitClass, LimitKey},
    login::{BriefTokenError, BriefTokens},
};

/// Bytes of the largest question for keys: [`MAX_ASKED`] servers with some keys each.
const MAX_QUERY: usize = 64 * 1024;

pub(super) fn routes() -> Routes {
    let counted = Counted::As(LimitClass::Other);
    Routes::new()
        .raw("/_matrix/key/v2/server", counted, get(own_keys))
        .raw("/_matrix/key/v2/server/{keyId}", counted, get(own_keys))
        .raw("/_matrix/key/v2/query", counted, post(keys_of_many))
        .raw("/_matrix/key/v2/query/{server}", counted, get(keys_of_one))
        .raw(
            "/_matrix/key/v2/query/{server}/{keyId}",
            counted,
            get(keys_of_one_by_id),
        )
        .raw("/_matrix/federation/v1/version", counted, get(version))
        .raw(
            "/_matrix/federation/v1/openid/userinfo",
            counted,
            get(who_is),
        )
        .merge(signed_routes())
}

fn signed_routes() -> Routes {
    Routes::new()
        .merge(directory::routes())
        .merge(history::routes())
        .merge(invite::routes())
        .merge(media::routes())
        .merge(membership::routes())
        .merge(query::routes())
        .merge(space::routes())
        .merge(third_party::routes())
        .merge(transactions::routes())
        .merge(user_keys::routes())
        .around(|router| router.layer(middleware::from_fn(signed::hold_place)))
}

/// The parameters of a query string. Of one that stands twice the last counts.
type Parameters = BTreeMap<String, String>;

/// JSON that is signed: as it is, and for caches to keep.
fn signed_answer(json: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], json).into_response()
}

async fn own_keys(
    State(federation): State<Federation>,
    State(runtime): State<Runtime>,
) -> Response {
    signed_answer(federation.own_keys.document(runtime.clock.unix_millis()))
}

async fn keys_of_one(
    State(federation): State<Federation>,
    Path(server): Path<String>,
    query: Query<Parameters>,
) -> Result<Response, ApiError> {
    vouch_for_one(&federation, &server, &query).await
}

/// The path before version 1.18 of the specification. All keys of a server are in one document.
async fn keys_of_one_by_id(
    State(federation): State<Federation>,
    Path((server, _)): Path<(String, String)>,
    query: Query<Parameters>,
) -> Result<Response, ApiError> {
    vouch_for_one(&federation, &server, &query).await
}

async fn vouch_for_one(
    federation: &Federation,
    server: &str,
    parameters: &Parameters,
) -> Result<Response, ApiError> {
    let server = ServerName::parse(server)
        .map_err(|_| ApiError::invalid_param("The path does not name a server"))?;
    let minimum = parameters.get("minimum_valid_until_ts").map(|time| {
        let time = time.parse::<u64>();
        time.map_err(|_| ApiError::invalid_param("minimum_valid_until_ts is not a time"))
    });
    let minimum_valid_until = minimum.transpose()?.unwrap_or_default();
    let asked = KeyQuery {
        server,
        minimum_valid_until,
    };
    vouch(federation, vec![asked]).await
}

#[derive(Deserialize)]
struct Queries {
    server_keys: BTreeMap<OwnedServerName, BTreeMap<String, Criteria>>,
}

#[derive(Deserialize)]
struct Criteria {
    #[serde(default)]
    minimum_valid_until_ts: u64,
}

async fn keys_of_many(
    State(federation): State<Federation>,
    State(bodies): State<BodyBudget>,
    client: LimitKey,
    request: Request,
) -> Result<Response, ApiError> {
    let body = bodies
        .read_at_most(request.into_body(), client, MAX_QUERY)
        .await?;
    let asked: Queries = serde_json::from_slice(&body.bytes)?;
    // Others need what is held of bodies while this one waits.
    drop(body);
    if asked.server_keys.len() > MAX_ASKED {
        let message = format!("At most {MAX_ASKED} servers may be asked for at once");
        return Err(ApiError::invalid_param(message));
    }
    let asked = asked.server_keys.into_iter().map(|(server, keys)| {
        let minimum = keys.values().map(|key| key.minimum_valid_until_ts).max();
        KeyQuery {
            server,
            minimum_valid_until: minimum.unwrap_or_default(),
        }
    });
    vouch(&federation, asked.collect()).await
}

async fn vouch(federation: &Federation, asked: Vec<KeyQuery>) -> Result<Response, ApiError> {
    let vouched = federation.ring.vouch(asked).await;
    let documents = vouched.map_err(|error| ApiError::internal(&error))?;
    let documents = documents.join(",");
    Ok(signed_answer(format!("{{\"server_keys\":[{documents}]}}")))
}

async fn version() -> Response {
    let version = env!("CARGO_PKG_VERSION");
    json_answer(&json!({ "server": { "name": "homeserver", "version": version } }))
}

async fn who_is(
    State(tokens): State<BriefTokens>,
    parameters: Query<Parameters>,
) -> Result<Response, ApiError> {
    let token = parameters.get("access_token");
    let token = token.ok_or_else(ApiError::missing_token)?;
    match tokens.who_is(token).await {
        Ok(account) => Ok(json_answer(&json!({ "sub": account.user_id }))),
        Err(BriefTokenError::Failure(error)) => Err(error.into()),
        Err(BriefTokenError::Invalid | BriefTokenError::Deactivated) => Err(
            ApiError::unknown_token("The token is unknown or its time is over", false),
        ),
    }
}

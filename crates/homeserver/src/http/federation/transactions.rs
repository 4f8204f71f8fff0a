//! Transactions of other servers.
//!
//! Specification: server-server API, "Transactions".

use axum::{
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::put,
};
use homeserver_federation::{Inbound, TransactionError, inbound::BodyError};
use http::header;

use super::SignedBody;
use crate::http::{ApiError, Counted, Routes};

pub(super) fn routes() -> Routes {
    Routes::new().raw(
        "/_matrix/federation/v1/send/{txnId}",
        Counted::Within,
        put(send),
    )
}

/// Takes events and EDUs. The answer says nothing of whether the events are allowed: that is found
/// out later.
async fn send(
    State(inbound): State<Inbound>,
    Path(txn_id): Path<String>,
    SignedBody { origin, body }: SignedBody,
) -> Result<Response, ApiError> {
    let answer = inbound
        .receive(&origin, &txn_id, body.bytes.clone())
        .await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], answer).into_response())
}

impl From<TransactionError> for ApiError {
    fn from(error: TransactionError) -> Self {
        match error {
            TransactionError::Body(BodyError::NotJson(why)) => Self::not_json(why),
            TransactionError::Body(error) => Self::bad_json(error.to_string()),
            TransactionError::Storage(error) => error.into(),
            TransactionError::NotStored(error) => error.into(),
            TransactionError::Rooms(error) => error.into(),
            TransactionError::Pool(error) => Self::internal(&error),
        }
    }
}

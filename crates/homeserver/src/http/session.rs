//! `Session` as a handler's argument: 401 without a valid access token.
//!
//! Specification: client-server API, "Using access tokens".

use axum::{
    extract::{FromRequestParts, OptionalFromRequestParts},
    http::{HeaderMap, header, request::Parts},
};

use super::{ApiError, Components};
use crate::app::session::Session;

impl FromRequestParts<Components> for Session {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &Components) -> Result<Self, ApiError> {
        authenticate(parts, state)
            .await?
            .ok_or_else(ApiError::missing_token)
    }
}

/// No token is `None`; a token that is not valid is refused all the same.
impl OptionalFromRequestParts<Components> for Session {
    type Rejection = ApiError;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &Components,
    ) -> Result<Option<Self>, ApiError> {
        authenticate(parts, state).await
    }
}

async fn authenticate(parts: &mut Parts, state: &Components) -> Result<Option<Session>, ApiError> {
    let query = parts
        .uri
        .query()
        .filter(|_| state.session_config.allow_token_in_query);
    let Some(token) = access_token(&parts.headers, query) else {
        return Ok(None);
    };
    let session = state.sessions.authenticate(&token).await?;
    let address = state.proxies.client(&parts.extensions, &parts.headers);
    let address = address.map(|address| address.to_string());
    let user_agent = parts.headers.get(header::USER_AGENT);
    let user_agent = user_agent.and_then(|value| value.to_str().ok());
    state
        .sessions
        .seen(&session, address.as_deref(), user_agent)
        .await;
    // The rate limiter, which runs later, counts by account rather than by address.
    parts.extensions.insert(session.clone());
    Ok(Some(session))
}

/// The token in the `Authorization` header, else in the query. An empty token is none.
fn access_token(headers: &HeaderMap, query: Option<&str>) -> Option<String> {
    const SCHEME: &str = "bearer ";
    let in_header = headers.get(header::AUTHORIZATION).and_then(|value| {
        let value = value.to_str().ok()?;
        let scheme = value.get(..SCHEME.len())?;
        let token = value.get(SCHEME.len()..)?.trim();
        scheme
            .eq_ignore_ascii_case(SCHEME)
            .then(|| token.to_owned())
    });
    let token = in_header.or_else(|| {
        query?.split('&').find_map(|pair| {
            let value = pair.strip_prefix("access_token=")?;
            let decoded = percent_encoding::percent_decode_str(value).decode_utf8();
            Some(decoded.ok()?.into_owned())
        })
    });
    token.filter(|token| !token.is_empty())
}

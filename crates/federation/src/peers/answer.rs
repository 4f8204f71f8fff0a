//! What other servers answer.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{CallError, Reply};

/// Bytes of an error that are read.
const MAX_ERROR: usize = 64 * 1024;

/// The whole body of an answer that is no error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// As it came.
    pub body: Bytes,
}

impl Answer {
    /// Reads the answer as a JSON object.
    ///
    /// # Errors
    /// When it is not what was asked for.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, CallError> {
        // A list would be taken for a struct of its entries.
        let begins = self.body.iter().find(|byte| !byte.is_ascii_whitespace());
        if begins != Some(&b'{') {
            return Err(CallError::BadAnswer("not a JSON object".to_owned()));
        }
        serde_json::from_slice(&self.body).map_err(|error| CallError::BadAnswer(error.to_string()))
    }
}

/// The parts of an error that are looked at.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Said {
    errcode: String,
    error: String,
    retry_after_ms: Option<u64>,
}

/// An error that another server answered.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    said: Said,
    /// How long it wants to be left alone, by its header.
    retry_after: Option<Duration>,
    body: Bytes,
}

impl Refusal {
    /// Reads the error of an answer; one that breaks off, or is too long, has said nothing.
    pub(super) async fn of(mut reply: Reply) -> Self {
        let mut body = Vec::new();
        loop {
            match reply.body.chunk().await {
                Ok(None) => break,
                Ok(Some(chunk)) if body.len() + chunk.len() <= MAX_ERROR => {
                    body.extend_from_slice(&chunk);
                }
                Ok(Some(_)) | Err(_) => {
                    body.clear();
                    break;
                }
            }
        }
        Self {
            status: reply.status,
            said: serde_json::from_slice(&body).unwrap_or_default(),
            retry_after: retry_after(&reply.headers),
            body: body.into(),
        }
    }

    /// For how long at least the server is to be left alone; `None` if it is well. Errors of the
    /// 500s say that it is not, but for the one that speaks of a medium.
    pub(super) fn pause(&self) -> Option<Duration> {
        let fails = match self.status {
            StatusCode::TOO_MANY_REQUESTS => true,
            status => status.is_server_error() && self.said.errcode != "M_NOT_YET_UPLOADED",
        };
        let in_body = || self.said.retry_after_ms.map(Duration::from_millis);
        fails.then(|| self.retry_after.or_else(in_body).unwrap_or_default())
    }
}

impl From<Refusal> for CallError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused {
            status: refusal.status,
            errcode: refusal.said.errcode,
            message: refusal.said.error,
            body: refusal.body,
        }
    }
}

/// `Retry-After` in seconds. Dates are not read: servers do not send them.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    seconds.trim().parse().ok().map(Duration::from_secs)
}

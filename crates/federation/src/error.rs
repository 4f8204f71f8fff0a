//! What can go wrong when another server is asked.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use ruma::OwnedServerName;

use crate::TransportError;

/// Another server was asked and did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// This server does not federate.
    #[error("federation is disabled")]
    Disabled,
    /// This server itself was to be asked.
    #[error("the server is this one")]
    OwnServer,
    /// The configuration does not allow to speak to it.
    #[error("{0} is not allowed by the configuration")]
    NotAdmitted(OwnedServerName),
    /// It failed a short while ago and is left alone for so long.
    #[error("the server failed before and is not asked again for {0:?}")]
    BackingOff(Duration),
    /// Too many calls to it are waiting, or this one waited for too long.
    #[error("too many calls to the server at once")]
    Busy,
    /// What was to be sent is not JSON, or cannot be said in HTTP: a fault of this server.
    #[error("the request cannot be sent: {0}")]
    OwnRequest(String),
    /// It was not reached, or its answer did not arrive.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// It refused.
    #[error("the server answered {status} {errcode}: {message}")]
    Refused {
        /// The status, never 2xx.
        status: StatusCode,
        /// The error code; empty where the answer had none.
        errcode: String,
        /// Its words, for people.
        message: String,
        /// The body as it came.
        body: Bytes,
    },
    /// It answered 2xx with something that is no answer.
    #[error("the server's answer makes no sense: {0}")]
    BadAnswer(String),
}

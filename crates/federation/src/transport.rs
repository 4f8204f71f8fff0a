//! How a request gets to another server: the one seam between the protocol and the network.
//!
//! Whoever sends knows the server's name only. Finding the server, connecting, TLS and the guard
//! against private addresses are the transport's.

use std::fmt::Debug;

use async_trait::async_trait;
use bytes::Bytes;
pub use homeserver_outbound::{Answer, Exchange, OutboundError};
pub use homeserver_outbound::{Body, Reply, StreamLimits as Limits, TransportError};
use ruma::OwnedServerName;

/// A request that is ready to be sent: signed, where it has to be.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The server by its name; not where it is reached.
    pub destination: OwnedServerName,
    /// Method, headers and body; of the URI only path and query, which are sent as they are.
    pub request: http::Request<Bytes>,
    /// What its answer may cost.
    pub limits: Limits,
}

/// Sends requests to servers by name.
#[async_trait]
pub trait Transport: Debug + Send + Sync {
    /// Sends a request and gives the head of the answer. A request that may have arrived is never
    /// sent twice.
    async fn send(&self, outgoing: Outgoing) -> Result<Reply, TransportError>;

    /// Asks at a URL that somebody named: an identity server. No transport but that of the real
    /// network reaches one.
    async fn exchange(&self, exchange: Exchange) -> Result<Answer, OutboundError> {
        let why = format!("nobody is at {}", exchange.url);
        Err(OutboundError::Failed(why.into()))
    }

    /// Fetches a URL that a server named, where a medium lies elsewhere. No transport but that of
    /// the real network reaches one.
    async fn fetch(&self, url: &str, limits: Limits) -> Result<Reply, TransportError> {
        let _ = (url, limits);
        let why = "nothing lies elsewhere".to_owned();
        Err(TransportError::Unreachable(why))
    }
}

/// The transport of a server that does not federate: nobody is reached.
#[derive(Clone, Copy, Debug)]
pub struct Nowhere;

#[async_trait]
impl Transport for Nowhere {
    async fn send(&self, _outgoing: Outgoing) -> Result<Reply, TransportError> {
        let why = "federation is disabled".to_owned();
        Err(TransportError::Unreachable(why))
    }
}

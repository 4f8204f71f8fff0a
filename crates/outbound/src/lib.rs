//! The one guarded HTTP client: whatever this server fetches from an address that somebody else
//! named (another server, a push gateway, a link to preview) is fetched through here.
//!
//! What it guards:
//! - **Where to.** Names are resolved here, and every resolved address is judged by
//!   [`AddressPolicy`] at the moment of connecting, so that a name that answers differently the
//!   second time (DNS rebinding) gains nothing. Address literals in URLs are judged too.
//!   Redirects are off unless asked for, counted, and each target is judged like the first.
//! - **How much.** Bodies are read up to a limit named by the caller, never further.
//! - **How long.** One deadline covers the whole exchange, redirects and body included.
//! - **Whom.** TLS trusts the operating system's certificates and those of the configuration;
//!   the crypto provider is passed explicitly, nothing process-wide is touched. Proxies of the
//!   environment are ignored: they would bypass the address check.
//!
//! [`Outbound::exchange`] fetches URLs and hands over whole answers. [`Outbound::send`] reaches an
//! [`Endpoint`], whose address, certificate name and `Host` the caller has found out by rules of
//! its own, and hands over the body as it arrives; it keeps connections apart from the former's.
//!
//! It does not sign requests, does not discover Matrix servers, and does not retry; that is its
//! callers' business.

mod address;
mod client;
mod connect;
mod endpoint;
mod line;
mod pool;
mod reply;
mod resolver;
mod send;
mod tls;

pub use address::{AddressPolicy, Denied};
pub use client::{Answer, Exchange, Limits, Outbound, OutboundError, OutboundOptions, SetupError};
pub use endpoint::{Dial, Endpoint, SrvTarget};
pub use reply::{Body, Reply, StreamLimits, TransportError};
/// A URL, as [`Exchange`] takes it.
pub use reqwest::Url;
pub use resolver::LookupError;

#[cfg(test)]
mod tests;

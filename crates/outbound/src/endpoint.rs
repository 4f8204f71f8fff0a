//! Where a server is reached, and as whom it has to prove itself there.

use std::net::SocketAddr;

use http::HeaderValue;
use rustls_pki_types::ServerName;

/// A way to a server. Dialled name, proven name and `Host` may all differ: records in the DNS may
/// send us elsewhere, but do not vouch for who answers there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// What to connect to.
    pub dial: Dial,
    /// The name, or address, that the certificate has to be valid for.
    pub tls_name: ServerName<'static>,
    /// The `Host` header.
    pub host: HeaderValue,
}

impl Endpoint {
    /// `tls_name` is a name or an address, without brackets. `None` if no certificate can be for
    /// it, or no header can hold `host`.
    pub fn new(dial: Dial, tls_name: &str, host: &str) -> Option<Self> {
        Some(Self {
            dial,
            tls_name: ServerName::try_from(tls_name.to_owned()).ok()?,
            host: HeaderValue::from_str(host).ok()?,
        })
    }
}

/// What to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dial {
    /// An address, judged by the policy like all others.
    Address(SocketAddr),
    /// Names and ports, tried in this order.
    Names(Vec<(String, u16)>),
}

/// Where a service runs, by its SRV record (RFC 2782).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SrvTarget {
    /// Lower ones are tried first.
    pub priority: u16,
    /// The share among those of equal priority.
    pub weight: u16,
    /// The host; `.` says that the service is not offered.
    pub target: String,
    /// The port.
    pub port: u16,
}

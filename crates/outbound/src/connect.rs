//! Connecting to an endpoint: names to addresses, addresses judged, TCP, TLS with the right name.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use rustls::ClientConfig;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsConnector;

use crate::{
    AddressPolicy, Dial, Endpoint, TransportError,
    client::CONNECT_TIMEOUT,
    line::Line,
    resolver::{GuardedResolver, NoAddress},
};

/// Names of one endpoint that are tried.
const MAX_NAMES: usize = 8;

/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 4;

/// Opens connections.
pub(crate) struct Connector {
    resolver: GuardedResolver,
    policy: AddressPolicy,
    tls: TlsConnector,
}

impl Connector {
    /// Trusts whom `trust` trusts, and speaks HTTP/1.1 only: HTTP/2 would send the name that was
    /// dialled where the `Host` belongs.
    pub(crate) fn new(
        resolver: GuardedResolver,
        policy: AddressPolicy,
        mut trust: ClientConfig,
    ) -> Self {
        trust.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self {
            resolver,
            policy,
            tls: TlsConnector::from(Arc::new(trust)),
        }
    }

    pub(crate) fn resolver(&self) -> &GuardedResolver {
        &self.resolver
    }

    /// Connects to the first address that answers and proves the endpoint's name. The time is
    /// divided among what is yet to be tried, so that a dead address leaves some to the next.
    pub(crate) async fn connect(&self, endpoint: &Endpoint) -> Result<Line, TransportError> {
        let until = Instant::now() + CONNECT_TIMEOUT;
        let names = match &endpoint.dial {
            Dial::Address(address) => {
                let denied = self.policy.check(address.ip());
                denied.map_err(|_| TransportError::Denied)?;
                return self.open(endpoint, *address, until).await;
            }
            Dial::Names(names) => names.get(..MAX_NAMES).unwrap_or(names),
        };
        let mut failed = TransportError::Unresolved("no name to dial".to_owned());
        for (done, (name, port)) in names.iter().enumerate() {
            let until = share(until, names.len() - done);
            match self.connect_name(endpoint, name, *port, until).await {
                Ok(line) => return Ok(line),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn connect_name(
        &self,
        endpoint: &Endpoint,
        name: &str,
        port: u16,
        until: Instant,
    ) -> Result<Line, TransportError> {
        let addresses = timeout_at(until, self.resolver.allowed(name)).await;
        let addresses: Vec<IpAddr> = match addresses {
            Ok(Ok(addresses)) => addresses,
            Ok(Err(NoAddress::Denied(_))) => return Err(TransportError::Denied),
            Ok(Err(NoAddress::Failed(error))) => {
                return Err(TransportError::Unresolved(format!("{name}: {error}")));
            }
            Err(_) => return Err(TransportError::Unresolved(format!("{name}: no answer"))),
        };
        let addresses = addresses.get(..MAX_ADDRESSES).unwrap_or(&addresses);
        let mut failed = TransportError::Unresolved(format!("{name} has no address"));
        for (done, address) in addresses.iter().enumerate() {
            let until = share(until, addresses.len() - done);
            let address = SocketAddr::new(*address, port);
            match self.open(endpoint, address, until).await {
                Ok(line) => return Ok(line),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    #[expect(clippy::disallowed_methods, reason = "this is the guarded client")]
    async fn open(
        &self,
        endpoint: &Endpoint,
        address: SocketAddr,
        until: Instant,
    ) -> Result<Line, TransportError> {
        let unreachable = |error| TransportError::Unreachable(format!("{address}: {error}"));
        let late = || unreachable(io::Error::from(io::ErrorKind::TimedOut));
        let connecting = timeout_at(until, TcpStream::connect(address));
        let stream = connecting.await.map_err(|_| late())?.map_err(unreachable)?;
        // Requests are written whole; nothing is gained by waiting for more.
        stream.set_nodelay(true).map_err(unreachable)?;
        let handshake = self.tls.connect(endpoint.tls_name.clone(), stream);
        let stream = timeout_at(until, handshake).await.map_err(|_| late())?;
        let stream = stream.map_err(|error| tls_failure(address, &error))?;
        Line::open(stream).await
    }
}

/// The end of the next of `left` equal parts of the time until `until`.
fn share(until: Instant, left: usize) -> Instant {
    let now = Instant::now();
    let whole: Duration = until.saturating_duration_since(now);
    now + whole / u32::try_from(left.max(1)).unwrap_or(u32::MAX)
}

/// Tells a certificate that does not hold from a connection that broke.
fn tls_failure(address: SocketAddr, error: &io::Error) -> TransportError {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    match inner {
        Some(rustls::Error::InvalidCertificate(why)) => {
            TransportError::Tls(format!("{address}: {why:?}"))
        }
        _ => TransportError::Unreachable(format!("{address}: {error}")),
    }
}

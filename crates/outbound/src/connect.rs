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

/// What an attempt gets at least while time is left: a handshake across the world over a busy line.
const LEAST_ATTEMPT: Duration = Duration::from_secs(2);

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
    /// divided among what is yet to be tried, so that a dead address leaves some to the next; the
    /// last of very many may get none.
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
            let after = names.len() - done - 1;
            match self
                .connect_name(endpoint, (name, *port), after, until)
                .await
            {
                Ok(line) => return Ok(line),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// Connects to one of the names, with `after` more of them to follow.
    async fn connect_name(
        &self,
        endpoint: &Endpoint,
        (name, port): (&str, u16),
        after: usize,
        until: Instant,
    ) -> Result<Line, TransportError> {
        let lookup = self.resolver.allowed(name);
        let addresses = timeout_at(share(until, after + 1), lookup).await;
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
            let until = share(until, addresses.len() - done + after);
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

/// The end of the next of `left` equal parts of the time until `until`, or of the least that an
/// attempt gets.
fn share(until: Instant, left: usize) -> Instant {
    let now = Instant::now();
    let whole: Duration = until.saturating_duration_since(now);
    let part = whole / u32::try_from(left.max(1)).unwrap_or(u32::MAX);
    now + part.max(LEAST_ATTEMPT).min(whole)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_attempt_gets_its_part_but_never_next_to_nothing() {
        let now = Instant::now();
        let part = |whole: u64, left| {
            let end = share(now + Duration::from_millis(whole), left);
            u64::try_from((end - now).as_millis()).unwrap()
        };
        assert_eq!(part(10_000, 1), 10_000);
        assert_eq!(part(10_000, 4), 2_500);
        assert_eq!(part(10_000, MAX_NAMES * MAX_ADDRESSES), 2_000);
        assert_eq!(part(1_500, 2), 1_500);
        assert_eq!(part(0, 2), 0);
    }
}

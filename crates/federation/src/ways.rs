//! How a server is found by its name: where to connect to, which name its certificate has to hold,
//! and what the `Host` header says.
//!
//! The six steps of the specification are two questions. *To whom does the name delegate?* Asked
//! of `.well-known`, and only for names that are neither addresses nor have a port; the answer
//! takes the name's place. *Where is that?* Said by itself if it is an address or has a port, else
//! by its SRV records, else port 8448 of its host. Whoever is reached proves the name that was
//! looked up, never the one that a SRV record led to.
//!
//! Specification: server-server API, "Resolving server names".

mod name;
mod srv;
mod well_known;

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::{future, stream};
use homeserver_outbound::{
    Answer, Dial, Endpoint, Exchange, Limits as ExchangeLimits, Outbound, OutboundError, SrvTarget,
    Url,
};
use homeserver_runtime::{Entropy, Runtime};
use ruma::ServerName;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout, timeout_at},
};

use self::{name::Name, well_known::WellKnown};
use crate::{Body, Limits, Outgoing, Reply, Transport, TransportError};

/// The services of the SRV records, the preferred one first.
const SERVICES: [&str; 2] = ["_matrix-fed._tcp", "_matrix._tcp"];

/// How long SRV records are waited for; a server without any is reached all the same.
const SRV_PATIENCE: Duration = Duration::from_secs(3);

/// Media fetched at once from where servers say that they lie: each is held whole meanwhile.
const ELSEWHERE_AT_ONCE: usize = 4;

/// How long such a medium may take: it comes from networks made for that.
const ELSEWHERE_DEADLINE: Duration = Duration::from_mins(1);

/// Redirects that are followed there.
const MAX_REDIRECTS: u8 = 3;

/// The ports that are asked where no name gives another: those of the specification, but in tests.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// Of `.well-known`.
    pub well_known: u16,
    /// Of the server-server API.
    pub federation: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self {
            well_known: 443,
            federation: 8448,
        }
    }
}

/// The transport of the real network.
#[derive(Debug)]
pub struct Ways {
    outbound: Outbound,
    well_known: WellKnown,
    federation_port: u16,
    entropy: Arc<dyn Entropy>,
    elsewhere: Semaphore,
}

impl Ways {
    /// Ways over `outbound`, none of them known yet.
    pub fn new(outbound: Outbound, ports: Ports, runtime: &Runtime) -> Self {
        Self {
            well_known: WellKnown::new(outbound.clone(), ports.well_known, runtime),
            outbound,
            federation_port: ports.federation,
            entropy: Arc::clone(&runtime.entropy),
            elsewhere: Semaphore::new(ELSEWHERE_AT_ONCE),
        }
    }

    /// Where `server` is reached now. Its `.well-known` answer is kept here, its records by the
    /// resolver.
    async fn find(&self, server: &ServerName) -> Result<Endpoint, TransportError> {
        let name = Name::of(server);
        if let Some(dial) = name.dial(self.federation_port) {
            return endpoint(dial, &name); // steps 1, 2
        }
        let delegated = self.well_known.delegated(name.host).await;
        let name = delegated.as_deref().map_or(name, Name::of);
        let dial = match name.dial(self.federation_port) {
            Some(dial) => dial,              // steps 3.1, 3.2
            None => self.dial(&name).await?, // steps 3.3 to 3.5, 4 to 6
        };
        endpoint(dial, &name)
    }

    /// Where a name without a port is served.
    async fn dial(&self, name: &Name<'_>) -> Result<Dial, TransportError> {
        let lookups = SERVICES.map(|service| self.srv(service, name.host));
        for targets in future::join_all(lookups).await {
            if targets.is_empty() {
                continue;
            }
            let names = srv::order(targets, &mut |below| self.entropy.number() % below);
            if names.is_empty() {
                let text = format!("{} offers no federation, by its SRV record", name.host);
                return Err(TransportError::Unresolved(text));
            }
            return Ok(Dial::Names(names));
        }
        let host = name.host.to_owned();
        Ok(Dial::Names(vec![(host, self.federation_port)]))
    }

    /// The records of a service. Where the DNS fails there are none: the certificate has to hold
    /// the same name on port 8448, so nothing is lost but the way.
    async fn srv(&self, service: &str, host: &str) -> Vec<SrvTarget> {
        let name = format!("{service}.{host}");
        match timeout(SRV_PATIENCE, self.outbound.srv(&name)).await {
            Ok(Ok(targets)) => targets,
            Ok(Err(error)) => {
                tracing::debug!(name, %error, "SRV records are not known");
                Vec::new()
            }
            Err(_) => {
                tracing::debug!(name, "SRV records did not come in time");
                Vec::new()
            }
        }
    }
}

fn endpoint(dial: Dial, name: &Name<'_>) -> Result<Endpoint, TransportError> {
    Endpoint::new(dial, name.certificate(), name.whole).ok_or_else(|| {
        let text = format!("no certificate can be for {}", name.whole);
        TransportError::Unresolved(text)
    })
}

#[async_trait]
impl Transport for Ways {
    async fn send(&self, outgoing: Outgoing) -> Result<Reply, TransportError> {
        let until = Instant::now() + outgoing.limits.deadline;
        let found = timeout_at(until, self.find(&outgoing.destination)).await;
        let endpoint = found.map_err(|_| TransportError::Deadline)??;
        let limits = Limits {
            deadline: until.saturating_duration_since(Instant::now()),
            ..outgoing.limits
        };
        self.outbound
            .send(&endpoint, outgoing.request, limits)
            .await
    }

    async fn exchange(&self, exchange: Exchange) -> Result<Answer, OutboundError> {
        self.outbound.exchange(exchange).await
    }

    async fn fetch(&self, url: &str, limits: Limits) -> Result<Reply, TransportError> {
        let unreachable =
            |error: &dyn std::fmt::Display| TransportError::Unreachable(error.to_string());
        let url = Url::parse(url).map_err(|error| unreachable(&error))?;
        let _turn = self.elsewhere.acquire().await;
        let exchange = Exchange::fetch(
            url,
            ExchangeLimits {
                body: limits.body,
                deadline: limits.deadline.min(ELSEWHERE_DEADLINE),
                redirects: MAX_REDIRECTS,
                https_only: true,
            },
        );
        let answer = self.outbound.exchange(exchange).await;
        let answer = answer.map_err(|error| unreachable(&error))?;
        Ok(Reply {
            status: answer.status,
            headers: answer.headers,
            body: Body::new(stream::iter([Ok(answer.body)]), limits.body),
        })
    }
}

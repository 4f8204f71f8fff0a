//! Name resolution with the address check built in: the client only ever sees addresses that the
//! policy lets through.

use std::{
    error::Error,
    net::{IpAddr, SocketAddr},
};

use hickory_resolver::{
    ResolverBuilder, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig},
    net::runtime::TokioRuntimeProvider,
    proto::rr::{RData, RecordType},
};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::{AddressPolicy, Denied, SrvTarget, client::SetupError};

/// Addresses of one name that are considered; a longer answer is cut.
const MAX_ADDRESSES: usize = 32;

/// SRV records of one name that are considered, those of the first priorities.
const MAX_TARGETS: usize = 8;

/// Whether there are SRV records could not be found out.
#[derive(Debug, thiserror::Error)]
#[error("the DNS gives no answer for {name}")]
pub struct LookupError {
    name: String,
    #[source]
    source: Box<dyn Error + Send + Sync>,
}

/// Why a name leads nowhere.
#[derive(Debug)]
pub(crate) enum NoAddress {
    /// All its addresses are denied; this is one of them.
    Denied(Denied),
    /// It has none, or the DNS does not answer.
    Failed(Box<dyn Error + Send + Sync>),
}

/// Who answers the question for a name's addresses.
#[derive(Clone)]
enum Lookup {
    /// The operating system: hosts file, resolv.conf and whatever else it is set up to ask. It has
    /// no call for SRV records: those are asked for directly, of the servers of resolv.conf.
    /// `None` if that names none.
    System(Option<Box<TokioResolver>>),
    /// The DNS servers of the configuration.
    Servers(Box<TokioResolver>),
}

/// Resolves names and drops every address that the policy denies.
#[derive(Clone)]
pub(crate) struct GuardedResolver {
    lookup: Lookup,
    policy: AddressPolicy,
}

impl GuardedResolver {
    /// Asks `servers` if there are any, else the operating system.
    pub(crate) fn new(servers: &[SocketAddr], policy: AddressPolicy) -> Result<Self, SetupError> {
        let lookup = if servers.is_empty() {
            Lookup::System(system_dns_client())
        } else {
            Lookup::Servers(Box::new(dns_client(servers)?))
        };
        Ok(Self { lookup, policy })
    }

    async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, Box<dyn Error + Send + Sync>> {
        let addresses = match &self.lookup {
            Lookup::System(_) => tokio::net::lookup_host((name, 0))
                .await?
                .map(|address| address.ip())
                .take(MAX_ADDRESSES)
                .collect(),
            Lookup::Servers(client) => client
                .lookup_ip(name)
                .await?
                .iter()
                .take(MAX_ADDRESSES)
                .collect(),
        };
        Ok(addresses)
    }

    /// The addresses of `name` that may be connected to; never none.
    pub(crate) async fn allowed(&self, name: &str) -> Result<Vec<IpAddr>, NoAddress> {
        let found = self.addresses(name).await.map_err(NoAddress::Failed)?;
        let mut allowed = Vec::with_capacity(found.len());
        let mut denied = None;
        for address in found {
            match self.policy.check(address) {
                Ok(()) => allowed.push(address),
                Err(error) => denied = Some(error),
            }
        }
        match denied {
            _ if !allowed.is_empty() => Ok(allowed),
            Some(denied) => Err(NoAddress::Denied(denied)),
            None => Err(NoAddress::Failed("the name has no address".into())),
        }
    }

    /// The SRV records of `name`, by priority; none if there are none.
    pub(crate) async fn srv(&self, name: &str) -> Result<Vec<SrvTarget>, LookupError> {
        let failed = |source| LookupError {
            name: name.to_owned(),
            source,
        };
        let (Lookup::Servers(client) | Lookup::System(Some(client))) = &self.lookup else {
            return Err(failed("no DNS server is configured".into()));
        };
        // With the dot at its end no search list is tried.
        let absolute = format!("{}.", name.trim_end_matches('.'));
        let found = match client.lookup(absolute, RecordType::SRV).await {
            Ok(found) => found,
            Err(error) if error.is_no_records_found() => return Ok(Vec::new()),
            Err(error) => return Err(failed(error.into())),
        };
        let records = found.answers().iter().map(|record| &record.data);
        let mut targets: Vec<_> = records
            .filter_map(|data| match data {
                RData::SRV(record) => Some(SrvTarget {
                    priority: record.priority,
                    weight: record.weight,
                    target: record.target.to_ascii(),
                    port: record.port,
                }),
                _ => None,
            })
            .collect();
        targets.sort_by_key(|target| target.priority);
        targets.truncate(MAX_TARGETS);
        Ok(targets)
    }
}

/// A resolver that asks the servers of the operating system.
fn system_dns_client() -> Option<Box<TokioResolver>> {
    match TokioResolver::builder_tokio().and_then(ResolverBuilder::build) {
        Ok(client) => Some(Box::new(client)),
        Err(error) => {
            tracing::warn!(%error, "no DNS server is known: SRV records are not looked up");
            None
        }
    }
}

/// A resolver that asks `servers` over UDP, and over TCP where an answer does not fit.
fn dns_client(servers: &[SocketAddr]) -> Result<TokioResolver, SetupError> {
    let name_servers = servers.iter().map(|server| {
        let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()]
            .into_iter()
            .map(|mut connection| {
                connection.port = server.port();
                connection
            })
            .collect();
        NameServerConfig::new(server.ip(), true, connections)
    });
    let config = ResolverConfig::from_parts(None, Vec::new(), name_servers.collect());
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .build()
        .map_err(|error| SetupError::Dns(Box::new(error)))
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.clone();
        Box::pin(async move {
            match resolver.allowed(name.as_str()).await {
                Ok(allowed) => {
                    let allowed = allowed
                        .into_iter()
                        .map(|address| SocketAddr::new(address, 0));
                    Ok(Box::new(allowed) as Addrs)
                }
                Err(NoAddress::Denied(denied)) => Err(denied.into()),
                Err(NoAddress::Failed(error)) => Err(error),
            }
        })
    }
}

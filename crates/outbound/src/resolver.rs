//! Name resolution with the address check built in: the client only ever sees addresses that the
//! policy lets through.

use std::{
    error::Error,
    net::{IpAddr, SocketAddr},
};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig},
    net::runtime::TokioRuntimeProvider,
};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::{AddressPolicy, client::SetupError};

/// Addresses of one name that are considered; a longer answer is cut.
const MAX_ADDRESSES: usize = 32;

/// Who answers the question for a name's addresses.
#[derive(Clone)]
enum Lookup {
    /// The operating system: hosts file, resolv.conf and whatever else it is set up to ask.
    System,
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
            Lookup::System
        } else {
            Lookup::Servers(Box::new(dns_client(servers)?))
        };
        Ok(Self { lookup, policy })
    }

    async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, Box<dyn Error + Send + Sync>> {
        let addresses = match &self.lookup {
            Lookup::System => tokio::net::lookup_host((name, 0))
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
            let found = resolver.addresses(name.as_str()).await?;
            let mut allowed = Vec::with_capacity(found.len());
            let mut denied = None;
            for address in found {
                match resolver.policy.check(address) {
                    Ok(()) => allowed.push(SocketAddr::new(address, 0)),
                    Err(error) => denied = Some(error),
                }
            }
            match denied {
                Some(denied) if allowed.is_empty() => Err(denied.into()),
                _ => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}

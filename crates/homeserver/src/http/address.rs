//! Where a request came from, through trusted proxies.

use std::{net::IpAddr, sync::Arc};

use axum::http::{Extensions, HeaderMap};
use ipnet::IpNet;

/// The other end of the connection; listeners put it beside each request. Requests within the
/// process have none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerAddress(pub(crate) IpAddr);

/// Networks whose `X-Forwarded-For` is believed.
#[derive(Clone, Debug)]
pub(crate) struct TrustedProxies(Arc<[IpNet]>);

impl TrustedProxies {
    /// Believes proxies in these networks.
    pub(crate) fn new(networks: &[IpNet]) -> Self {
        Self(networks.into())
    }

    /// The client's address: the last one on the way that is not a trusted proxy's.
    pub(crate) fn client(&self, extensions: &Extensions, headers: &HeaderMap) -> Option<IpAddr> {
        let PeerAddress(peer) = *extensions.get::<PeerAddress>()?;
        let trusted = |address: &IpAddr| self.0.iter().any(|network| network.contains(address));
        let peer = peer.to_canonical();
        if !trusted(&peer) {
            return Some(peer);
        }
        let hops = headers.get_all("x-forwarded-for").iter();
        let hops: Vec<&str> = hops.filter_map(|value| value.to_str().ok()).collect();
        let hops = hops.join(",");
        let mut client = peer;
        for hop in hops.rsplit(',') {
            let Ok(address) = hop.trim().parse::<IpAddr>() else {
                break;
            };
            client = address.to_canonical();
            if !trusted(&client) {
                break;
            }
        }
        Some(client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_trusted_proxies_are_believed() {
        let proxies = TrustedProxies::new(&["10.0.0.0/8".parse().unwrap()]);
        let cases = [
            ("192.0.2.1", "198.51.100.7", "192.0.2.1"),
            ("10.0.0.1", "198.51.100.7", "198.51.100.7"),
            // Whatever a client writes in front is not believed.
            ("10.0.0.1", "203.0.113.9, 198.51.100.7", "198.51.100.7"),
            ("10.0.0.1", "198.51.100.7, 10.0.0.2", "198.51.100.7"),
            ("::ffff:10.0.0.1", "198.51.100.7", "198.51.100.7"),
            ("10.0.0.1", "nonsense", "10.0.0.1"),
            ("10.0.0.1", "", "10.0.0.1"),
        ];
        for (peer, header, client) in cases {
            let mut extensions = Extensions::new();
            extensions.insert(PeerAddress(peer.parse().unwrap()));
            let mut headers = HeaderMap::new();
            headers.insert("x-forwarded-for", header.parse().unwrap());
            let found = proxies.client(&extensions, &headers);
            assert_eq!(found, Some(client.parse().unwrap()), "{peer} {header}");
        }
        assert_eq!(proxies.client(&Extensions::new(), &HeaderMap::new()), None);
    }
}

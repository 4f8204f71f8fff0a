//! Room for connections: how many at once, all together and from one address.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{app::limits::host, config::HttpConfig};

/// The connections of one listener.
pub(super) struct Room {
    all: Arc<Semaphore>,
    per_address: usize,
    proxies: Vec<IpNet>,
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Room {
    pub(super) fn new(config: &HttpConfig) -> Self {
        Self {
            all: Arc::new(Semaphore::new(config.max_connections)),
            per_address: config.max_connections_per_address,
            proxies: config.trusted_proxies.clone(),
            counts: Arc::default(),
        }
    }

    /// Waits until another connection may be accepted. `None`: never again.
    pub(super) async fn wait(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.all).acquire_owned().await.ok()
    }

    /// A seat for a connection from `address`, unless that address has too many. A reverse proxy
    /// stands for all of its clients and may have any number.
    pub(super) fn seat(&self, address: IpAddr, permit: OwnedSemaphorePermit) -> Option<Seat> {
        let canonical = address.to_canonical();
        let is_proxy = canonical.is_loopback()
            || self
                .proxies
                .iter()
                .any(|network| network.contains(&canonical));
        let host = (!is_proxy).then(|| host(address));
        if let Some(host) = host {
            let mut counts = self.counts.lock();
            let count = counts.entry(host).or_default();
            if *count >= self.per_address {
                return None;
            }
            *count += 1;
        }
        Some(Seat {
            host,
            counts: Arc::clone(&self.counts),
            _permit: permit,
        })
    }
}

/// What a connection takes up until it is dropped.
pub(super) struct Seat {
    host: Option<IpAddr>,
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Some(host) = self.host else { return };
        let mut counts = self.counts.lock();
        if let Some(count) = counts.get_mut(&host) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&host);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[tokio::test]
    async fn an_address_has_only_so_many_seats_and_a_proxy_any_number() {
        let mut config = Config::default().http;
        config.max_connections_per_address = 2;
        config.trusted_proxies = vec!["10.0.0.0/8".parse().unwrap()];
        let room = Room::new(&config);
        let seat = async |address: &str| {
            let permit = room.wait().await.unwrap();
            room.seat(address.parse().unwrap(), permit)
        };
        let first = seat("192.0.2.1").await.unwrap();
        let _second = seat("::ffff:192.0.2.1").await.unwrap();
        assert!(seat("192.0.2.1").await.is_none());
        assert!(seat("192.0.2.2").await.is_some());
        drop(first);
        assert!(seat("192.0.2.1").await.is_some());
        // One network of IPv6 is one host.
        let _one = seat("2001:db8::1").await.unwrap();
        let _two = seat("2001:db8::2").await.unwrap();
        assert!(seat("2001:db8::3").await.is_none());
        assert!(seat("2001:db8:0:1::3").await.is_some());
        let mut seats = Vec::new();
        for _ in 0..10 {
            for proxy in ["127.0.0.1", "::1", "10.1.2.3"] {
                seats.push(seat(proxy).await.unwrap());
            }
        }
        // What is refused leaves its permit, and nobody is remembered for nothing.
        assert_eq!(room.all.available_permits(), config.max_connections - 33);
        assert_eq!(room.counts.lock().len(), 2);
    }
}

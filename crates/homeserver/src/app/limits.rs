//! How much each client may ask for: token buckets, one per class and client.
//!
//! A bucket is one number, the time at which it will be full again (the "generic cell rate
//! algorithm"). The number of buckets is bounded; one that is pushed out starts full again.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use homeserver_runtime::Clock;
use quick_cache::sync::Cache;
use ruma::OwnedUserId;

use crate::config::{Rate, RateLimitConfig};

/// Clients whose buckets are remembered.
const MAX_BUCKETS: usize = 100_000;

/// What is limited; each has its own key in `[rate_limits]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LimitClass {
    /// Attempts to log in.
    Login,
    /// Access tokens renewed.
    Refresh,
    /// Attempts to register.
    Registration,
    /// Events sent.
    Message,
    /// Rooms joined or created.
    Join,
    /// Invitations.
    Invite,
    /// Uploads and downloads.
    Media,
    /// Whatever else is limited.
    Other,
}

/// Whose bucket it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LimitKey {
    /// Somebody who is logged in.
    User(OwnedUserId),
    /// An account that somebody tries to log in to, existing or not, by its localpart.
    Target(String),
    /// An account whose own login proves its password once more. Apart from the attempts to log
    /// in to it, so that strangers keep nobody from what needs the password.
    OwnPassword(OwnedUserId),
    /// A [`host`].
    Address(IpAddr),
    /// Another server, by its [`host`] if that is known. Its name is only claimed as long as this
    /// counts.
    Server(Option<IpAddr>),
    /// Requests whose address is not known, as those within the process.
    Nobody,
}

impl LimitKey {
    /// The bucket of an address.
    pub(crate) fn address(address: Option<IpAddr>) -> Self {
        address.map_or(Self::Nobody, |address| Self::Address(host(address)))
    }

    /// The bucket of a server at an address.
    pub(crate) fn server(address: Option<IpAddr>) -> Self {
        Self::Server(address.map(host))
    }
}

/// What counts as one host: an address; of IPv6 the network, since a host has all of a /64.
pub(crate) fn host(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    }
}

/// Too much was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rate limit exceeded")]
pub(crate) struct LimitExceeded {
    /// When the next request will be let through.
    pub(crate) wait: Duration,
}

/// The buckets of one homeserver. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct RateLimits {
    config: Arc<RateLimitConfig>,
    clock: Arc<dyn Clock>,
    /// Microseconds of the monotonic clock at which the bucket is full again.
    full_at: Arc<Cache<(LimitClass, LimitKey), Arc<AtomicU64>>>,
}

impl RateLimits {
    /// Buckets that are all full.
    pub(crate) fn new(config: RateLimitConfig, clock: Arc<dyn Clock>) -> Self {
        Self {
            config: Arc::new(config),
            clock,
            full_at: Arc::new(Cache::new(MAX_BUCKETS)),
        }
    }

    /// Takes one token, or says how long to wait for it.
    pub(crate) fn take(&self, class: LimitClass, key: LimitKey) -> Result<(), LimitExceeded> {
        let Some((bucket, rate)) = self.bucket(class, key) else {
            return Ok(());
        };
        let now = self.now();
        let mut full_at = bucket.load(Ordering::Acquire);
        loop {
            let after = decide(full_at, now, rate)?;
            match bucket.compare_exchange(full_at, after, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(()),
                Err(moved) => full_at = moved,
            }
        }
    }

    /// Gives back one token that was taken, as for a password that turned out to be right.
    pub(crate) fn give_back(&self, class: LimitClass, key: LimitKey) {
        if let Some((bucket, rate)) = self.bucket(class, key) {
            let less = |full_at: u64| Some(full_at.saturating_sub(one(rate)));
            let _ = bucket.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        }
    }

    fn bucket(&self, class: LimitClass, key: LimitKey) -> Option<(Arc<AtomicU64>, Rate)> {
        if !self.config.enabled {
            return None;
        }
        let rate = match class {
            LimitClass::Login => self.config.login,
            LimitClass::Refresh => self.config.refresh,
            LimitClass::Registration => self.config.registration,
            LimitClass::Message => self.config.message,
            LimitClass::Join => self.config.join,
            LimitClass::Invite => self.config.invite,
            LimitClass::Media => self.config.media,
            LimitClass::Other => self.config.other,
        };
        let fresh = || Ok::<_, std::convert::Infallible>(Arc::default());
        let bucket = self.full_at.get_or_insert_with(&(class, key), fresh);
        Some((bucket.unwrap_or_default(), rate))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.clock.monotonic().as_micros()).unwrap_or(u64::MAX)
    }
}

/// Microseconds in which one token comes back.
#[expect(clippy::cast_sign_loss, reason = "rates are positive")]
fn one(rate: Rate) -> u64 {
    (1_000_000.0 / rate.per_second).ceil() as u64
}

/// When the bucket will be full after one more was taken at `now`.
fn decide(full_at: u64, now: u64, rate: Rate) -> Result<u64, LimitExceeded> {
    let depth = one(rate).saturating_mul(rate.burst.into());
    let after = full_at.max(now).saturating_add(one(rate));
    let over = after.saturating_sub(now).saturating_sub(depth);
    if over == 0 {
        return Ok(after);
    }
    let wait = Duration::from_micros(over);
    Err(LimitExceeded { wait })
}

#[cfg(test)]
mod tests {
    use homeserver_runtime::ManualClock;

    use super::*;
    use crate::config::Config;

    fn limits(enabled: bool) -> (RateLimits, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::new(0));
        let mut config = Config::default().rate_limits;
        config.enabled = enabled;
        config.login = Rate {
            per_second: 2.0,
            burst: 3,
        };
        (RateLimits::new(config, Arc::clone(&clock) as _), clock)
    }

    #[test]
    fn a_burst_passes_then_one_at_a_time() {
        let (limits, clock) = limits(true);
        let key = || LimitKey::address(Some([192, 0, 2, 1].into()));
        let take = || limits.take(LimitClass::Login, key());
        for _ in 0..3 {
            take().unwrap();
        }
        let refused = take().unwrap_err();
        assert_eq!(refused.wait, Duration::from_millis(500));
        limits.give_back(LimitClass::Login, key());
        take().unwrap();
        assert_eq!(take(), Err(refused));
        clock.advance(Duration::from_millis(499));
        take().unwrap_err();
        clock.advance(Duration::from_millis(1));
        take().unwrap();
        take().unwrap_err();
        // Others, and other classes, have buckets of their own.
        limits.take(LimitClass::Login, LimitKey::Nobody).unwrap();
        limits.take(LimitClass::Other, key()).unwrap();
    }

    #[test]
    fn nothing_is_limited_when_off() {
        let (limits, _) = limits(false);
        for _ in 0..1000 {
            limits.take(LimitClass::Login, LimitKey::Nobody).unwrap();
        }
    }

    #[test]
    fn an_ipv6_network_shares_a_bucket() {
        let key = |text: &str| LimitKey::address(Some(text.parse().unwrap()));
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:1"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
    }
}

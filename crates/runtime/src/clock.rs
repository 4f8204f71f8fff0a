//! Time, handed in. Waiting is tokio's business (`tokio::time`); telling the time is this trait's.

use std::{
    fmt::Debug,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Tells the time. Implementations never go backwards in [`Clock::monotonic`]; the wall clock may.
pub trait Clock: Debug + Send + Sync + 'static {
    /// Milliseconds since the Unix epoch, the unit of `origin_server_ts`.
    fn unix_millis(&self) -> u64;

    /// Time since an arbitrary fixed moment of this process. Only differences mean anything.
    fn monotonic(&self) -> Duration;
}

/// The operating system's clocks.
#[derive(Debug)]
pub struct SystemClock {
    started: std::time::Instant,
}

impl Default for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    fn default() -> Self {
        Self {
            started: std::time::Instant::now(),
        }
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    fn unix_millis(&self) -> u64 {
        let since_epoch = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }
}

/// A clock that stands still until it is moved; both faces move together.
#[derive(Debug)]
pub struct ManualClock {
    start: u64,
    elapsed: AtomicU64,
}

impl ManualClock {
    /// A clock standing at `unix_millis`.
    #[must_use]
    pub fn new(unix_millis: u64) -> Self {
        Self {
            start: unix_millis,
            elapsed: AtomicU64::new(0),
        }
    }

    /// Moves the clock forward, by whole milliseconds.
    pub fn advance(&self, by: Duration) {
        let millis = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.elapsed.fetch_add(millis, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn unix_millis(&self) -> u64 {
        self.start + self.elapsed.load(Ordering::SeqCst)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.elapsed.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manual_clock_moves_both_faces() {
        let clock = ManualClock::new(1_000);
        clock.advance(Duration::from_millis(250));
        assert_eq!(clock.unix_millis(), 1_250);
        assert_eq!(clock.monotonic(), Duration::from_millis(250));
    }

    #[test]
    fn system_clock_is_after_2024() {
        assert!(SystemClock::default().unix_millis() > 1_704_067_200_000);
    }
}

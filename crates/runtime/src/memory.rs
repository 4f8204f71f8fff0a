//! The memory budget of all caches together.

/// A number of bytes to divide among caches. Plain arithmetic: each cache is told its share when
/// it is built and keeps to it.
#[derive(Clone, Copy, Debug)]
pub struct MemoryBudget {
    bytes: u64,
}

impl MemoryBudget {
    /// A budget of `bytes`.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        Self { bytes }
    }

    /// The share of a cache that weighs `percent` of all caches, in bytes.
    #[must_use]
    pub fn share(self, percent: u8) -> u64 {
        self.bytes / 100 * u64::from(percent)
    }
}

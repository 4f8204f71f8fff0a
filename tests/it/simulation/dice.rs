//! Chance from a seed.

/// Throws the same for the same seed (`SplitMix64`).
#[derive(Clone, Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d))
    }

    pub(super) fn throw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from `from` on, before `to`.
    pub(super) fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.throw() % (to - from)
    }

    /// Whether something happens that happens so many times in a thousand.
    pub(super) fn chance(&mut self, thousandths: u64) -> bool {
        self.between(0, 1000) < thousandths
    }

    /// One of several.
    pub(super) fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        let count = from.len() as u64;
        (count > 0).then(|| &from[self.between(0, count) as usize])
    }
}

//! Randomness, handed in.

use std::fmt::Debug;

use parking_lot::Mutex;

/// Fills buffers with random bytes.
pub trait Entropy: Debug + Send + Sync + 'static {
    /// Overwrites `buffer` with random bytes.
    fn fill(&self, buffer: &mut [u8]);
}

impl dyn Entropy {
    /// `N` random bytes.
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut buffer = [0; N];
        self.fill(&mut buffer);
        buffer
    }

    /// A random number over the whole range of `u64`.
    pub fn number(&self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }

    /// `length` characters of `a-zA-Z0-9`, each equally likely (about 5.95 bits a character).
    pub fn alphanumeric(&self, length: usize) -> String {
        const ALPHABET: &[u8; 62] =
            b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
        let mut text = String::with_capacity(length);
        while text.len() < length {
            // Six bits a byte; the two values past the alphabet are drawn again.
            let drawn = self.bytes::<32>();
            let characters = drawn
                .iter()
                .filter_map(|byte| ALPHABET.get(usize::from(byte & 63)));
            text.extend(
                characters
                    .take(length - text.len())
                    .map(|byte| char::from(*byte)),
            );
        }
        text
    }
}

/// The operating system's randomness, fit for keys and tokens.
#[derive(Debug)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    #[expect(clippy::disallowed_methods, reason = "this is the entropy source")]
    #[expect(
        clippy::panic,
        reason = "without randomness no key or token may be made"
    )]
    fn fill(&self, buffer: &mut [u8]) {
        if let Err(error) = getrandom::fill(buffer) {
            panic!("the operating system gives no random bytes: {error}");
        }
    }
}

/// Repeatable numbers from a seed, for tests and simulations only: `SplitMix64`, not secret.
#[derive(Debug)]
pub struct SeededEntropy {
    state: Mutex<u64>,
}

impl SeededEntropy {
    /// The same seed gives the same bytes for the same calls.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            state: Mutex::new(seed),
        }
    }
}

impl Entropy for SeededEntropy {
    fn fill(&self, buffer: &mut [u8]) {
        let mut state = self.state.lock();
        for chunk in buffer.chunks_mut(8) {
            *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = *state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            chunk.copy_from_slice(&z.to_le_bytes()[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats() {
        let [first, second]: [Box<dyn Entropy>; 2] = [
            Box::new(SeededEntropy::new(7)),
            Box::new(SeededEntropy::new(7)),
        ];
        assert_eq!(first.bytes::<21>(), second.bytes::<21>());
        assert_ne!(first.number(), first.number());
    }

    #[test]
    fn alphanumeric_has_the_length_and_alphabet() {
        let entropy: Box<dyn Entropy> = Box::new(SystemEntropy);
        for length in [0, 1, 31, 32, 33, 500] {
            let text = entropy.alphanumeric(length);
            assert_eq!(text.len(), length);
            assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        }
    }
}

//! Fuzzing for tests: inputs made by mutation of a corpus, run against a function.
//!
//! A [`Target`] begins with what is known to be interesting (the files of its folder in
//! `tests/data/fuzz`, among them every input that ever broke something, and seeds that the test
//! makes) and mutates it: bytes, numbers, strings, and JSON values as wholes. Inputs that the
//! function accepts are mutated further, so that the inputs wander away from the seeds without
//! being refused at the door. An input on which the function panics is made small and told.
//!
//! Executions depend on the seed only. [`EXECUTIONS`] and [`SEED`] in the environment say how many
//! and which; `cargo xtask fuzz` sets them. [`LAST`] names a folder where each input is written
//! before it is run, for those that end the process (a stack that overflows, memory that ends).
//!
//! What this is not: it does not watch which branches are taken. The functions take plain bytes, so
//! that an instrumenting fuzzer can be put in front of the same functions.

mod dice;
mod mutate;
pub mod rows;
#[cfg(test)]
mod tests;

use std::{
    collections::hash_map::DefaultHasher,
    env, fs,
    hash::{Hash as _, Hasher as _},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use dice::Dice;
use mutate::Mutator;

/// The variable that says how often each target is run.
pub const EXECUTIONS: &str = "HOMESERVER_FUZZ_EXECUTIONS";
/// The variable that says with which seed.
pub const SEED: &str = "HOMESERVER_FUZZ_SEED";
/// The variable that names the folder for the input being run.
pub const LAST: &str = "HOMESERVER_FUZZ_LAST";

/// Executions where nothing is said: as many as every run of the tests can afford.
const DEFAULT_EXECUTIONS: u64 = 500;
/// Inputs that were accepted and are mutated further, at most.
const MAX_POOL: usize = 256;
/// Bytes of an input that is mutated further, at most.
const MAX_POOLED: usize = 16 * 1024;
/// At least one of so many inputs must be accepted: a target that only ever refuses tests nothing.
const ACCEPTED_ONE_IN: u64 = 50;
/// Executions from which on that is asked.
const ACCEPTED_FROM: u64 = 200;
/// Attempts to make a breaking input smaller.
const MAX_SHRINKS: usize = 300;

/// What a run of a target found.
#[derive(Debug)]
pub struct Found {
    /// The smallest input that breaks the function.
    pub input: Vec<u8>,
    /// What the function said.
    pub message: String,
}

/// What a run of a target did.
#[derive(Debug)]
pub struct Tally {
    /// Inputs that were made and run.
    pub executions: u64,
    /// Those that the function accepted.
    pub accepted: u64,
}

/// A function that takes foreign bytes, and what to begin with.
#[derive(Debug)]
pub struct Target {
    name: &'static str,
    seeds: Vec<Vec<u8>>,
    words: Vec<Vec<u8>>,
}

impl Target {
    /// A target with the corpus of its name.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            seeds: corpus(name),
            words: Vec::new(),
        }
    }

    /// Adds inputs to begin with.
    #[must_use]
    pub fn seeds<S: Into<Vec<u8>>>(mut self, seeds: impl IntoIterator<Item = S>) -> Self {
        self.seeds.extend(seeds.into_iter().map(Into::into));
        self
    }

    /// Adds words that mutations put in.
    #[must_use]
    pub fn words(mut self, words: &[&str]) -> Self {
        self.words
            .extend(words.iter().map(|word| word.as_bytes().to_vec()));
        self
    }

    /// Runs `function`, which says whether it accepted its input, as often as the environment asks.
    ///
    /// # Panics
    /// When the function panics for an input, or accepts too few of them.
    #[expect(clippy::panic, reason = "a test fails by panicking")]
    #[expect(clippy::print_stdout, reason = "a test says what it did")]
    pub fn run(self, function: impl Fn(&[u8]) -> bool) {
        let (name, seed) = (self.name, number(SEED).unwrap_or(0));
        match self.hunt(
            number(EXECUTIONS).unwrap_or(DEFAULT_EXECUTIONS),
            seed,
            function,
        ) {
            Ok(Tally {
                executions,
                accepted,
            }) => {
                println!("fuzz {name}: {executions} executions, {accepted} accepted, seed {seed}");
                assert!(
                    executions < ACCEPTED_FROM || accepted * ACCEPTED_ONE_IN >= executions,
                    "{name}: only {accepted} of {executions} inputs were accepted: \
                     what follows the first check is hardly tested"
                );
            }
            Err(Found { input, message }) => panic!(
                "{name}, seed {seed}: {message}\ninput ({} bytes): b\"{}\"\n{}",
                input.len(),
                input.escape_ascii(),
                keep(name, &input),
            ),
        }
    }

    /// Like [`Target::run`], with everything given and what was found as a value.
    ///
    /// # Errors
    /// The input that breaks the function.
    pub fn hunt(
        self,
        executions: u64,
        seed: u64,
        function: impl Fn(&[u8]) -> bool,
    ) -> Result<Tally, Found> {
        let last = env::var_os(LAST).map(|folder| Path::new(&folder).join(self.name));
        let attempt = |input: &[u8]| {
            if let Some(last) = &last {
                // Only a help to find what ended the process.
                let _ = fs::write(last, input);
            }
            catch_unwind(AssertUnwindSafe(|| function(input))).map_err(words_of)
        };
        let broken = |input: &[u8], message| {
            let input = smaller(input.to_vec(), |smaller| attempt(smaller).is_err());
            Found { input, message }
        };
        let mut pool = self.seeds;
        for input in &pool {
            attempt(input).map_err(|message| broken(input, message))?;
        }
        let seeds = pool.len();
        let mut accepted = 0;
        for execution in 0..executions {
            let dice = Dice::new(seed_of(self.name, seed, execution));
            let mut mutator = Mutator::new(dice, &self.words, &pool);
            let input = mutator.input();
            let grows = attempt(&input).map_err(|message| broken(&input, message))?;
            accepted += u64::from(grows);
            if !grows || input.len() > MAX_POOLED {
                continue;
            }
            if pool.len() < seeds + MAX_POOL {
                pool.push(input);
            } else {
                let replaced = seeds + mutator.dice.below(MAX_POOL);
                pool[replaced] = input;
            }
        }
        Ok(Tally {
            executions,
            accepted,
        })
    }
}

/// Where the corpus of a target is.
fn corpus_folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/data/fuzz")
        .join(name)
}

/// The files of a target's folder, in the order of their names; there need not be any.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let Ok(folder) = fs::read_dir(corpus_folder(name)) else {
        return Vec::new();
    };
    let mut files: Vec<_> = folder.flatten().map(|entry| entry.path()).collect();
    files.sort();
    files
        .iter()
        .filter_map(|file| fs::read(file).ok())
        .collect()
}

/// Keeps a breaking input in the corpus; says where.
fn keep(name: &str, input: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    input.hash(&mut hasher);
    let folder = corpus_folder(name);
    let file = folder.join(format!("regress-{:016x}", hasher.finish()));
    let kept = fs::create_dir_all(&folder).and_then(|()| fs::write(&file, input));
    match kept {
        Ok(()) => format!("kept as {}", file.display()),
        Err(error) => format!("could not be kept as {}: {error}", file.display()),
    }
}

/// Removes parts as long as the rest still breaks the function.
fn smaller(mut input: Vec<u8>, breaks: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut attempts = 0;
    let mut step = input.len().div_ceil(2);
    while step > 0 {
        let mut at = 0;
        while at < input.len() {
            if attempts == MAX_SHRINKS {
                return input;
            }
            attempts += 1;
            let end = (at + step).min(input.len());
            let without = [&input[..at], &input[end..]].concat();
            if breaks(&without) {
                input = without;
            } else {
                at = end;
            }
        }
        step /= 2;
    }
    input
}

fn seed_of(name: &str, seed: u64, execution: u64) -> u64 {
    let mut mixed = seed ^ execution.wrapping_mul(0x2545_f491_4f6c_dd1d);
    for byte in name.bytes() {
        mixed = (mixed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    mixed
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok()?.parse().ok()
}

fn words_of(panic: Box<dyn std::any::Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(words) => *words,
        Err(other) => match other.downcast::<&str>() {
            Ok(words) => (*words).to_owned(),
            Err(_) => "a panic without words".to_owned(),
        },
    }
}

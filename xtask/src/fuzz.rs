//! `cargo xtask fuzz`: every fuzz target, so many times, from a seed that is printed.
//!
//! Targets are tests in a module named `fuzz` of their crate (see `crates/fuzz`), so they are also
//! run, a few times each, whenever the tests are.

use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::command::{self, Error, cargo, make_folder};

/// Executions of each target in continuous integration.
pub(crate) const IN_CI: u64 = 10_000;

/// The seed in continuous integration: whether a commit passes depends on the commit alone. By hand
/// each run has a seed of its own.
pub(crate) const SEED_IN_CI: u64 = 1;

/// Runs the targets whose names contain `target`, or all. Without a seed, one that differs from
/// run to run.
pub(crate) fn run(target: Option<&str>, executions: u64, seed: Option<u64>) -> Result<(), Error> {
    let seed = seed.unwrap_or_else(any_seed);
    let last = command::target_folder().join("fuzz-last");
    make_folder(&last)?;
    println!("fuzz: {executions} executions of each target, --seed {seed}");
    println!(
        "fuzz: if a process dies, its last inputs are in {}",
        last.display()
    );
    tests(target, executions, seed, &last)
}

fn tests(target: Option<&str>, executions: u64, seed: u64, last: &Path) -> Result<(), Error> {
    let name = format!("fuzz::{}", target.unwrap_or_default());
    let mut tests = cargo(&["test", "--workspace", "--locked", "--no-fail-fast"]);
    tests.args(["--lib", "--test", "it", "--", &name, "--nocapture"]);
    tests.env("HOMESERVER_FUZZ_EXECUTIONS", executions.to_string());
    tests.env("HOMESERVER_FUZZ_SEED", seed.to_string());
    tests.env("HOMESERVER_FUZZ_LAST", last);
    command::run(&mut tests)
}

#[expect(clippy::disallowed_methods, reason = "a task may look at the clock")]
fn any_seed() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

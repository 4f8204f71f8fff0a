//! `cargo xtask ci`: what continuous integration runs, with the time that each part took.

use std::{path::Path, time::Duration};

use crate::{
    command::{self, Error, answers, cargo},
    fuzz, schema, test,
};

/// The cargo-deny that is installed where none is. `cargo install` wants a range to say so.
const CARGO_DENY_VERSION: &str = "^0.20";

/// Runs one part and notes its time.
fn part(
    times: &mut Vec<(&'static str, Duration)>,
    name: &'static str,
    work: impl FnOnce() -> Result<(), Error>,
) -> Result<(), Error> {
    println!("\n== {name}");
    let started = now();
    work()?;
    times.push((name, started.elapsed()));
    Ok(())
}

/// Runs every part in order and stops at the first that fails.
fn parts(spec: Option<&Path>) -> Result<Vec<(&'static str, Duration)>, Error> {
    let mut times = Vec::new();
    let times_of = &mut times;
    part(times_of, "format", || {
        command::run(&mut cargo(&["fmt", "--all", "--check"]))
    })?;
    part(times_of, "lints", || {
        let lints = [
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ];
        command::run(&mut cargo(&lints))
    })?;
    part(times_of, "documentation", || {
        let mut docs = cargo(&["doc", "--workspace", "--no-deps", "--locked"]);
        command::run(docs.env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    part(times_of, "dependencies", dependencies)?;
    part(times_of, "tests", || test::run(&[]))?;
    part(times_of, "fuzz", || {
        fuzz::run(None, fuzz::IN_CI, Some(fuzz::SEED_IN_CI))
    })?;
    match spec {
        Some(spec) => part(times_of, "schemas", || schema::run(spec))?,
        None => println!("\n== schemas: no specification given (--spec DIR)"),
    }
    Ok(times)
}

/// The whole of continuous integration.
pub(crate) fn run(spec: Option<&Path>) -> Result<(), Error> {
    let times = parts(spec)?;
    println!("\n== times");
    for (name, time) in times {
        println!("{name:<16}{:>6} s", time.as_secs());
    }
    Ok(())
}

fn dependencies() -> Result<(), Error> {
    install_cargo_deny()?;
    command::run(&mut cargo(&[
        "deny", "--locked", "check", "bans", "licenses", "sources",
    ]))
}

/// Checks the dependencies against the `RustSec` database, which cargo-deny fetches.
pub(crate) fn advisories() -> Result<(), Error> {
    install_cargo_deny()?;
    command::run(&mut cargo(&["deny", "--locked", "check", "advisories"]))
}

fn install_cargo_deny() -> Result<(), Error> {
    if answers(Path::new("cargo-deny")) {
        return Ok(());
    }
    command::run(&mut cargo(&[
        "install",
        "cargo-deny",
        "--locked",
        "--version",
        CARGO_DENY_VERSION,
    ]))
}

#[expect(clippy::disallowed_methods, reason = "a task measures its own parts")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

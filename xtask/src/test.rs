//! `cargo xtask test`: prepares what the tests need and runs them all.

use std::process::Command;

use crate::{
    command::{self, Error, cargo},
    peers, schema,
};

/// Tests that fail as yet, for reasons that `docs/progress.md` names. They run where they are asked for
/// (`cargo xtask test -p homeserver-tests --test it simulation`).
const KNOWN_TO_FAIL: &[&str] = &["simulation::servers_agree_on_failing_disks"];

/// Runs the tests; `arguments` narrow them and are passed on to `cargo test`.
pub(crate) fn run(arguments: &[String]) -> Result<(), Error> {
    let peers = peers::prepare()?;
    schema::forget_recorded()?;
    // The tests that kill a server need its program.
    command::run(&mut cargo(&[
        "build",
        "--package",
        "homeserver-cli",
        "--locked",
    ]))?;
    let mut tests = cargo(&["test", "--locked", "--no-fail-fast"]);
    if arguments.is_empty() {
        tests.arg("--workspace");
    }
    tests.args(arguments);
    if arguments.is_empty() {
        tests.arg("--");
        for name in KNOWN_TO_FAIL {
            tests.args(["--skip", name]);
        }
    }
    tests.env(
        "HOMESERVER_BINARY",
        command::target_folder().join("debug/homeserver"),
    );
    tests.env("HOMESERVER_PYTHON", &peers.python);
    tests.env("HOMESERVER_NODE", &peers.node);
    tests.env("HOMESERVER_NODE_MODULES", &peers.node_modules);
    tests.env("HOMESERVER_RECORD", schema::recorded_folder());
    command::run(&mut tests)?;
    // A part of the tests cannot show all.
    if arguments.is_empty() {
        command::run(&mut coverage())?;
    }
    Ok(())
}

/// Judges what the wire tests recorded: every endpoint's yes under all of its names, and every error.
fn coverage() -> Command {
    let mut judge = cargo(&[
        "run",
        "--quiet",
        "--locked",
        "--package",
        "homeserver-tests",
    ]);
    judge.args(["--bin", "wire-coverage", "--"]);
    judge.arg(schema::recorded_folder());
    judge
}

//! `cargo xtask bench`: builds in release and measures. Figures are printed, never asserted.

use clap::ValueEnum;

use crate::command::{Error, cargo, run as run_command};

/// What can be measured.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum What {
    /// Each storage engine beside a bare write-and-fdatasync loop on the same disk.
    Storage,
    /// A whole server through the Client-Server API.
    Client,
    /// Reading in a room of a thousand events beside one of a million, seeded offline.
    Rooms,
    /// Transactions of another server, and joins of its rooms.
    Federation,
}

/// Runs one benchmark.
pub(crate) fn run(what: What, arguments: &[String]) -> Result<(), Error> {
    let base: &[&str] = match what {
        What::Storage => &[
            "run",
            "--release",
            "-p",
            "homeserver-storage",
            "--example",
            "bench_storage",
        ],
        What::Client => &["run", "--release", "-p", "homeserver-bench", "--", "client"],
        What::Rooms => &["run", "--release", "-p", "homeserver-bench", "--", "rooms"],
        What::Federation => &[
            "run",
            "--release",
            "-p",
            "homeserver-bench",
            "--",
            "federation",
        ],
    };
    if matches!(what, What::Client | What::Rooms | What::Federation) {
        run_command(&mut cargo(&["build", "--release", "-p", "homeserver-cli"]))?;
    }
    if matches!(what, What::Rooms) {
        let seed = [
            "build",
            "--release",
            "-p",
            "homeserver",
            "--example",
            "seed",
        ];
        run_command(&mut cargo(&seed))?;
    }
    run_command(cargo(base).args(arguments))
}

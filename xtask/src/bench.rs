//! `cargo xtask bench`: builds in release and measures. Figures are printed, never asserted.

use clap::ValueEnum;

use crate::command::{Error, answers, cargo, run as run_command, target_folder};

/// What can be measured.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum What {
    /// Each storage engine beside a bare write-and-fdatasync loop on the same disk.
    Storage,
    /// A whole server through the Client-Server API.
    Client,
    /// Reading in a room of a thousand events beside one of a million, seeded offline.
    Rooms,
    /// State resolution, transactions of another server, joins of its rooms, delivery and outages
    /// beside Synapse.
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
    let mut command = cargo(base);
    // Synapse is measured where the tests have installed it.
    let python = target_folder().join("peers/python/bin/python");
    if std::env::var_os("HOMESERVER_PYTHON").is_none() && answers(&python) {
        command.env("HOMESERVER_PYTHON", python);
    }
    run_command(command.args(arguments))
}

//! The load tool: starts a homeserver, drives it over the Client-Server API and prints figures.
//!
//! Figures are printed beside a floor measured in the same run (a bare write-and-fdatasync loop on
//! the same disk), because absolute times of a shared machine mean little. Every loop has a count.
#![expect(clippy::cast_precision_loss, reason = "figures are for reading")]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line tool talks"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "a load generator reads the clock and makes clients"
)]

mod client;
mod disk;
mod load;
mod process;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;

/// Measures a homeserver.
#[derive(Parser)]
struct Arguments {
    /// Storage engines to measure, in turn.
    #[arg(long, value_delimiter = ',', default_value = "fjall,sled")]
    engines: Vec<String>,
    /// Messages in each measurement of throughput.
    #[arg(long, default_value_t = 8_000)]
    messages: usize,
    /// Messages in each measurement of latency.
    #[arg(long, default_value_t = 1_000)]
    latencies: usize,
    /// The server program.
    #[arg(long, default_value_os_t = default_program())]
    program: PathBuf,
    /// The folder for the servers' data; on the disk that is to be measured.
    #[arg(long)]
    folder: Option<PathBuf>,
}

/// Why a measurement stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0}")]
    File(#[from] std::io::Error),
    #[error("{0}")]
    Request(#[from] reqwest::Error),
    #[error("the server answered {status} to {request}: {body}")]
    Answer {
        request: String,
        status: u16,
        body: String,
    },
    #[error("{0}")]
    Server(String),
}

fn default_program() -> PathBuf {
    let target = std::env::current_exe().ok();
    let folder = target.as_deref().and_then(std::path::Path::parent);
    folder.map_or_else(|| "homeserver".into(), |folder| folder.join("homeserver"))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(&Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> Result<(), Error> {
    let folder = match &arguments.folder {
        Some(folder) => tempfile::tempdir_in(folder)?,
        None => tempfile::tempdir()?,
    };
    println!("floor: {}", disk::fdatasync_floor(folder.path())?);
    for engine in &arguments.engines {
        println!("\n{engine}");
        for (what, figure) in load::measure(arguments, engine, folder.path()).await? {
            println!("  {what:<44}{figure}");
        }
        println!("floor again: {}", disk::fdatasync_floor(folder.path())?);
    }
    Ok(())
}

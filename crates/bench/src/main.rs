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
mod federation;
mod load;
mod machine;
mod process;
mod resolution;
mod rooms;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Measures a homeserver.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Sends, /sync, CPU, memory, disk.
    Client(LoadArguments),
    /// Reading in a room of few events beside one of many.
    Rooms(RoomsArguments),
    /// State resolution, what another server pushes, joins of its rooms, delivery and outages.
    Federation(FederationArguments),
}

#[derive(Args)]
struct LoadArguments {
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
    #[arg(long, default_value_os_t = beside("homeserver"))]
    program: PathBuf,
    /// The folder for the servers' data; on the disk that is to be measured.
    #[arg(long)]
    folder: Option<PathBuf>,
}

#[derive(Args)]
struct RoomsArguments {
    /// Storage engines to measure, in turn.
    #[arg(long, value_delimiter = ',', default_value = "fjall")]
    engines: Vec<String>,
    /// Sizes of the room, in events.
    #[arg(long, value_delimiter = ',', default_value = "1000,1000000")]
    events: Vec<usize>,
    /// How often each question is asked.
    #[arg(long, default_value_t = 50)]
    repetitions: usize,
    /// The server program.
    #[arg(long, default_value_os_t = beside("homeserver"))]
    program: PathBuf,
    /// The program that seeds a room offline.
    #[arg(long, default_value_os_t = beside("examples/seed"))]
    seed_program: PathBuf,
    /// The folder for the servers' data; on the disk that is to be measured.
    #[arg(long)]
    folder: Option<PathBuf>,
}

/// A part of the measurements of federation.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// State resolution beside `ruma-state-res`.
    Resolution,
    /// Transactions of another server.
    Push,
    /// Joins of large rooms of another server.
    Join,
    /// From server to server, beside Synapse.
    Delivery,
    /// A server is away for a minute.
    Outage,
}

#[derive(Args)]
struct FederationArguments {
    /// Storage engines to measure, in turn.
    #[arg(long, value_delimiter = ',', default_value = "fjall")]
    engines: Vec<String>,
    /// What to measure; everything by default.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "resolution,push,join,delivery,outage"
    )]
    parts: Vec<Part>,
    /// Sizes of the conflicts that are resolved, in events.
    #[arg(long, value_delimiter = ',', default_value = "1000,10000")]
    conflicts: Vec<usize>,
    /// Messages from server to server, of each kind of server.
    #[arg(long, default_value_t = 200)]
    deliveries: usize,
    /// Seconds for which a server is away.
    #[arg(long, default_value_t = 60)]
    outage: u64,
    /// A Python that has Synapse; by default what `HOMESERVER_PYTHON` names, if anything.
    #[arg(long)]
    synapse_python: Option<PathBuf>,
    /// Events that are pushed in each measurement.
    #[arg(long, default_value_t = 20_000)]
    events: usize,
    /// Sizes of the rooms that are joined, in members.
    #[arg(long, value_delimiter = ',', default_value = "1000,10000,100000")]
    members: Vec<usize>,
    /// The server program.
    #[arg(long, default_value_os_t = beside("homeserver"))]
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

/// A program in this one's folder.
fn beside(name: &str) -> PathBuf {
    let this = std::env::current_exe().ok();
    let folder = this.as_deref().and_then(std::path::Path::parent);
    folder.map_or_else(|| name.into(), |folder| folder.join(name))
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
    let (engines, folder) = match &arguments.what {
        What::Client(load) => (&load.engines, &load.folder),
        What::Rooms(rooms) => (&rooms.engines, &rooms.folder),
        What::Federation(federation) => (&federation.engines, &federation.folder),
    };
    let folder = match folder {
        Some(folder) => tempfile::tempdir_in(folder)?,
        None => tempfile::tempdir()?,
    };
    println!("machine: {}", machine::describe());
    println!("floor: {}", disk::fdatasync_floor(folder.path())?);
    if let What::Federation(arguments) = &arguments.what
        && arguments.parts.contains(&Part::Resolution)
    {
        resolution::measure(&arguments.conflicts)?;
    }
    for engine in engines {
        println!("\n{engine}");
        match &arguments.what {
            What::Client(arguments) => {
                for (what, figure) in load::measure(arguments, engine, folder.path()).await? {
                    println!("  {what:<44}{figure}");
                }
            }
            What::Rooms(arguments) => rooms::compare(arguments, engine, folder.path()).await?,
            What::Federation(arguments) => {
                federation::measure(arguments, engine, folder.path()).await?;
            }
        }
        println!("floor again: {}", disk::fdatasync_floor(folder.path())?);
    }
    Ok(())
}

//! The homeserver binary: argument parsing, start-up and the operator's commands.
//!
//! Everything process-wide is here and nowhere else: the allocator, the log, signals, the
//! environment, exit codes.

mod admin;
mod arguments;
mod configuration;
mod report;
mod serve;
mod storage;

use std::{io::IsTerminal, process::ExitCode};

use clap::Parser;
use tracing_subscriber::EnvFilter;

use arguments::{Arguments, Command, ConfigCommand};
use report::Failed;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What the server logs unless `RUST_LOG` says otherwise.
const SERVER_LOG: &str = "info";
/// What the other commands log, who say themselves what they do.
const COMMAND_LOG: &str = "warn";

fn main() -> ExitCode {
    keep_pages_small();
    let arguments = Arguments::parse();
    start_log(&arguments);
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            report::error(&failed);
            ExitCode::FAILURE
        }
    }
}

/// Asks Linux for no huge pages: a server with few users would hold several times the memory that
/// it uses, because a page of 2 MiB is held as long as any of it is.
fn keep_pages_small() {
    #[cfg(target_os = "linux")]
    // It costs memory only where the kernel knows no such wish.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

fn run(arguments: Arguments) -> Result<(), Failed> {
    let file = arguments.config.as_deref();
    match arguments.command.unwrap_or(Command::Serve) {
        Command::Serve => {
            let config = configuration::load(file)?;
            runtime()?.block_on(serve::serve(config))
        }
        Command::Admin { command } => {
            let config = configuration::load(file)?;
            runtime()?.block_on(admin::run(config, command))
        }
        Command::Storage { command } => {
            let config = configuration::load(file)?;
            runtime()?.block_on(storage::run(config, command))
        }
        Command::Config {
            command: ConfigCommand::Check,
        } => {
            configuration::load(file)?;
            report::line("The configuration is good.");
            Ok(())
        }
        Command::GenerateConfig => {
            report::text(homeserver::config::DOCUMENTED);
            Ok(())
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Failed> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failed::new("cannot start threads", &error))
}

/// The log goes to standard error, so that what commands print can be piped.
fn start_log(arguments: &Arguments) {
    let default = match arguments.command {
        None | Some(Command::Serve | Command::Storage { .. }) => SERVER_LOG,
        Some(_) => COMMAND_LOG,
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    if arguments.log_json {
        log.json().init();
    } else {
        log.init();
    }
}

//! The project's tasks, run as `cargo xtask <task>`.
//!
//! `test` prepares what the tests need and runs them all; `ci` is exactly what continuous
//! integration runs; `schema` compares recorded answers with the specification's schemas; `bench`
//! measures; `fuzz` feeds mutated input to all that parses. Nothing here is part of the product.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line tool talks"
)]

mod bench;
mod ci;
mod command;
mod fixture;
mod fuzz;
mod peers;
mod schema;
mod test;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "The project's tasks")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Prepare what the tests need, then run all of them.
    Test {
        /// Passed on to `cargo test`, for example `-p homeserver-events`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// What continuous integration runs: format, lints, docs, dependencies, tests, schemas.
    Ci {
        /// A checkout of the Matrix specification, for the schema check.
        #[arg(long)]
        spec: Option<PathBuf>,
    },
    /// Check the answers that the wire tests recorded against the specification's schemas.
    Schema {
        /// A checkout of the Matrix specification: the folder that holds `data/api`.
        #[arg(long)]
        spec: PathBuf,
    },
    /// Measure: `storage`, `client`, `rooms` or `federation`.
    Bench {
        /// What to measure.
        what: bench::What,
        /// Passed on to the benchmark.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run the fuzz targets, from a seed that is printed.
    Fuzz {
        /// Only targets whose names contain this.
        target: Option<String>,
        /// Executions of each target.
        #[arg(long, default_value_t = 1_000_000)]
        executions: u64,
        /// Repeats a run.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Keep a database of each engine in the formats of this version, for later ones to read.
    Fixture,
    /// Check dependencies against the advisory database (needs the network).
    Advisories,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Test { arguments } => test::run(&arguments),
        Task::Ci { spec } => ci::run(spec.as_deref()),
        Task::Schema { spec } => schema::run(&spec),
        Task::Bench { what, arguments } => bench::run(what, &arguments),
        Task::Fuzz {
            target,
            executions,
            seed,
        } => fuzz::run(target.as_deref(), executions, seed),
        Task::Fixture => fixture::run(),
        Task::Advisories => ci::advisories(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

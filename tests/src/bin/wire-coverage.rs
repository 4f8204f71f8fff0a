//! Judges the recorded answers of the wire tests: `wire-coverage FOLDER`. Run by `cargo xtask test`.
#![expect(clippy::print_stdout, reason = "a command-line tool talks")]

use std::{path::Path, process::ExitCode};

use homeserver_tests::coverage::Produced;

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1) else {
        println!("usage: wire-coverage FOLDER");
        return ExitCode::FAILURE;
    };
    let produced = match Produced::read(Path::new(&folder)) {
        Ok(produced) => produced,
        Err(error) => {
            println!("{}: {error}", folder.display());
            return ExitCode::FAILURE;
        }
    };
    let faults = produced.faults();
    for fault in &faults {
        println!("{fault}");
    }
    println!("wire tests: {} faults of coverage", faults.len());
    if faults.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

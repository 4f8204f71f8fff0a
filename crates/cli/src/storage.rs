//! Commands on a database that is not being served: check, recover, convert.

use std::path::{Path, PathBuf};

use homeserver::{
    config::{Config, EngineKind as Configured},
    runtime::Runtime,
    storage::maintenance::{self, EngineKind, Progress},
};

use crate::{
    arguments::StorageCommand,
    report::{self, Failed},
};

/// Progress is told once for so many rows.
const TOLD_EVERY: u64 = 100_000;

/// Does what is asked to the configured database.
pub(crate) async fn run(config: Config, command: StorageCommand) -> Result<(), Failed> {
    let kind = match config.storage.engine {
        Configured::Fjall => EngineKind::Fjall,
        Configured::Sled => EngineKind::Sled,
        Configured::Memory => {
            return Err(Failed::because(
                "the memory engine keeps nothing to work on",
            ));
        }
    };
    let folder = config.storage.path;
    match command {
        StorageCommand::Check => check(kind, &place(&folder, kind)).await,
        StorageCommand::Recover => recover(kind, &place(&folder, kind)).await,
        StorageCommand::Convert { to } => {
            let to: EngineKind = to
                .parse()
                .map_err(|error| Failed::new("cannot convert", &error))?;
            convert(&folder, kind, to).await
        }
    }
}

/// Where the database of an engine lies in the data folder.
fn place(folder: &Path, kind: EngineKind) -> PathBuf {
    folder.join(match kind {
        EngineKind::Fjall => "fjall",
        EngineKind::Sled => "sled",
    })
}

fn tell(progress: Progress) {
    if progress.done >= TOLD_EVERY && progress.done % TOLD_EVERY < 500 {
        tracing::info!(done = progress.done, "{}", progress.step);
    }
}

fn tell_check(check: &maintenance::CheckReport) {
    report::line(format_args!("{} rows, {} bytes", check.rows, check.bytes));
    for problem in &check.problems {
        report::line(format_args!("problem: {problem}"));
    }
}

async fn check(kind: EngineKind, path: &Path) -> Result<(), Failed> {
    let check = maintenance::check(kind, path, &mut tell)
        .await
        .map_err(|error| Failed::new("the database cannot be checked", &error))?;
    tell_check(&check);
    if check.is_sound() {
        report::line("The database is sound.");
        Ok(())
    } else {
        let count = check.problem_count;
        Err(Failed::because(format!("{count} problems were found")))
    }
}

async fn recover(kind: EngineKind, path: &Path) -> Result<(), Failed> {
    let runtime = Runtime::system();
    let done = maintenance::recover(kind, path, &*runtime.entropy, &mut tell)
        .await
        .map_err(|error| Failed::new("the database cannot be recovered", &error))?;
    for repair in &done.repairs {
        report::line(format_args!("repaired: {repair}"));
    }
    if done.repairs.is_empty() {
        report::line("There was nothing to repair.");
    }
    tell_check(&done.check);
    Ok(())
}

async fn convert(folder: &Path, from: EngineKind, to: EngineKind) -> Result<(), Failed> {
    if from == to {
        return Err(Failed::because("the database is of this engine already"));
    }
    let runtime = Runtime::system();
    let (source, target) = (place(folder, from), place(folder, to));
    let copied = maintenance::convert((from, &source), (to, &target), &*runtime.entropy, &mut tell)
        .await
        .map_err(|error| Failed::new("the database cannot be converted", &error))?;
    report::line(format_args!(
        "Copied {copied} rows into {}.",
        target.display()
    ));
    report::line(format_args!(
        "Set storage.engine to the new engine; {} is kept and can be removed by hand.",
        source.display()
    ));
    Ok(())
}

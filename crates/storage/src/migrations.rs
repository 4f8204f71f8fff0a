//! Migrations: numbered changes of what is stored, run at start.
//!
//! A migration works in steps. The batch of a step and the place where the next one begins are
//! committed together, so a kill at any moment costs at most the step that was being prepared.

use async_trait::async_trait;
use bytes::Bytes;

use crate::{Batch, CommitError, Direction, ScanRange, StorageError, Store, system::MIGRATIONS};

/// Migrations that a database can have gone through.
const MAX_MIGRATIONS: usize = 1_000;
/// First byte of a migration's row while it runs; what follows is where it stands.
const RUNNING: u8 = 0;
/// A migration's row when it is done.
const DONE: Bytes = Bytes::from_static(&[1]);

/// One numbered change of what is stored.
#[async_trait]
pub trait Migration: std::fmt::Debug + Send + Sync {
    /// Its place in the order; never used again.
    fn number(&self) -> u32;

    /// What it does, for people.
    fn name(&self) -> &'static str;

    /// Prepares the step that begins at `place`: `None` at first, then what the last step said.
    async fn step(&self, store: &Store, place: Option<Bytes>) -> Result<Step, StorageError>;
}

/// What a step writes, and what comes then.
#[derive(Debug)]
pub struct Step {
    /// Its changes. Must leave room for one more operation.
    pub batch: Batch,
    /// Where the next step begins; none when the migration is done.
    pub next: Option<Bytes>,
}

/// A database could not be brought to what this program reads.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// It has gone through a migration that this program does not know.
    #[error("the database is newer than this program (migration {0})")]
    Newer(u32),
    /// Two migrations have one number, or are not in order.
    #[error("migration {0} is out of order")]
    Order(u32),
    /// A step could not be prepared.
    #[error("migration {number}")]
    Step {
        /// Which migration.
        number: u32,
        /// What went wrong.
        source: StorageError,
    },
    /// A step could not be written.
    #[error("migration {number}")]
    Write {
        /// Which migration.
        number: u32,
        /// What went wrong.
        source: CommitError,
    },
    /// What was migrated cannot be read.
    #[error("cannot read the list of migrations")]
    Read(#[source] StorageError),
}

/// How far the migrations are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MigrationProgress {
    /// Number of the one that runs.
    pub number: u32,
    /// Its name.
    pub name: &'static str,
    /// Steps done since the start of this process.
    pub steps: u64,
}

impl Store {
    /// Runs the migrations that the database has not gone through, in order. `migrations` are all
    /// that this program knows, by rising number.
    pub async fn migrate(
        &self,
        migrations: &[&dyn Migration],
        progress: &mut (dyn FnMut(MigrationProgress) + Send),
    ) -> Result<(), MigrationError> {
        let misplaced = migrations
            .windows(2)
            .find(|pair| pair[0].number() >= pair[1].number());
        if let Some(pair) = misplaced {
            return Err(MigrationError::Order(pair[1].number()));
        }
        let gone_through = self
            .scan(
                &MIGRATIONS,
                ScanRange::all(),
                Direction::Forward,
                MAX_MIGRATIONS,
            )
            .await
            .map_err(MigrationError::Read)?;
        let unknown = gone_through
            .iter()
            .find(|(number, _)| migrations.iter().all(|known| known.number() != *number));
        if let Some((number, _)) = unknown {
            return Err(MigrationError::Newer(*number));
        }
        for migration in migrations {
            let row = gone_through
                .iter()
                .find(|(number, _)| *number == migration.number());
            match row {
                Some((_, state)) if *state == DONE => {}
                state => {
                    let place = state.map(|(_, state)| state.slice(1..));
                    self.run_migration(*migration, place, progress).await?;
                }
            }
        }
        Ok(())
    }

    async fn run_migration(
        &self,
        migration: &dyn Migration,
        mut place: Option<Bytes>,
        progress: &mut (dyn FnMut(MigrationProgress) + Send),
    ) -> Result<(), MigrationError> {
        let (number, name) = (migration.number(), migration.name());
        let mut steps = 0;
        loop {
            progress(MigrationProgress {
                number,
                name,
                steps,
            });
            let step = migration.step(self, place).await;
            let Step { mut batch, next } =
                step.map_err(|source| MigrationError::Step { number, source })?;
            let state = match &next {
                Some(next) => Bytes::from([&[RUNNING], next.as_ref()].concat()),
                None => DONE,
            };
            batch.put(&MIGRATIONS, &number, &state);
            let written = self.commit(batch).await;
            written.map_err(|source| MigrationError::Write { number, source })?;
            steps += 1;
            if next.is_none() {
                return Ok(());
            }
            place = next;
        }
    }
}

#[cfg(test)]
mod tests;

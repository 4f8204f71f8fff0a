//! Crashes of the real engines. A child process (this test binary, run again) commits and reports
//! each acknowledgement through a pipe; then it is killed, its unsynced writes are dropped, or its
//! files are cut or flipped, and the database is opened here.
//!
//! After kills and dropped writes every acknowledged batch must be there, whole. After cuts and
//! flips the surviving batches must be whole and a prefix, or opening must fail with an error that
//! names the file and `homeserver storage recover`, after which the same holds. Never a panic.
//!
//! `STORAGE_CRASH_ROUNDS` sets the rounds per engine and fault (100), `STORAGE_CRASH_SEED` the seed.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

#[path = "crash/child.rs"]
mod child;
#[path = "crash/damage.rs"]
mod damage;
#[path = "crash/verify.rs"]
mod verify;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use child::{Acked, Ending, Kind, run_child};
use homeserver_runtime::{Entropy, SeededEntropy, SystemEntropy};
use homeserver_storage::maintenance::{self, MaintenanceError};
use verify::{Unreadable, survivors};

/// Rounds on one database before a fresh one is begun.
const ROUNDS_PER_DATABASE: u64 = 5;

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

fn rounds() -> u64 {
    from_environment("STORAGE_CRASH_ROUNDS", 100)
}

/// Random numbers of one test.
struct Random(SeededEntropy);

impl Random {
    fn new(test: u64) -> Self {
        let seed = from_environment("STORAGE_CRASH_SEED", 1);
        println!("STORAGE_CRASH_SEED={seed}");
        Self(SeededEntropy::new(seed * 1_000 + test))
    }

    fn below(&self, limit: u64) -> u64 {
        let entropy: &dyn Entropy = &self.0;
        entropy.number() % limit
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// Every acknowledged batch must be there.
fn nothing_acked_is_missing(acked: &Acked, path: &Path, kind: Kind, round: u64) {
    let found = runtime().block_on(survivors(kind, path));
    let found = found.unwrap_or_else(|error| panic!("round {round}: {error:?}"));
    let missing: Vec<_> = acked.difference(&found).collect();
    assert!(
        missing.is_empty(),
        "round {round}: acknowledged and lost: {missing:?}"
    );
}

/// Rounds in which all that happens to the database is that its process dies as `ending` says.
fn dies(kind: Kind, ending: Ending, test: u64) {
    let random = Random::new(test);
    let (mut folder, mut acked, mut total) = (tempfile::tempdir().unwrap(), Acked::new(), 0);
    for round in 0..rounds() {
        if round % ROUNDS_PER_DATABASE == 0 {
            folder = tempfile::tempdir().unwrap();
            acked.clear();
        }
        let path = folder.path().join("db");
        let new = run_child(kind, &path, ending, 1 + random.below(60));
        total += new.len();
        acked.extend(new);
        nothing_acked_is_missing(&acked, &path, kind, round);
    }
    println!(
        "{kind:?}, {ending:?}: {} rounds, {total} acknowledged, 0 lost",
        rounds()
    );
    assert!(total as u64 >= rounds());
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The error must say which file and what to do. Afterwards the database is recovered, or the
/// recovery says that a backup is needed.
fn recovered(kind: Kind, path: &Path, error: &str, round: u64) -> Option<BTreeSet<child::Ack>> {
    assert!(
        error.contains(&path.display().to_string()) && error.contains("homeserver storage recover"),
        "round {round}: not a helpful error: {error}"
    );
    let runtime = runtime();
    let mut progress = |_| {};
    let recovery = maintenance::recover(kind.engine(), path, &SystemEntropy, &mut progress);
    match runtime.block_on(recovery) {
        Ok(_) => Some(
            runtime
                .block_on(survivors(kind, path))
                .unwrap_or_else(|error| {
                    panic!("round {round}: after recovery: {error:?}");
                }),
        ),
        Err(error @ MaintenanceError::Lost { .. }) => {
            assert!(error.to_string().contains("restore a backup"));
            None
        }
        Err(error) => panic!("round {round}: recovery: {error}"),
    }
}

/// Rounds in which the files of a killed process are damaged.
fn damaged(kind: Kind, damage: impl Fn(&Path, &Random) -> PathBuf, test: u64) {
    let random = Random::new(test);
    let folder = tempfile::tempdir().unwrap();
    let (original, copy) = (folder.path().join("original"), folder.path().join("copy"));
    let (mut unharmed, mut shortened, mut refused, mut lost) = (0, 0, 0, 0);
    let mut acked = Acked::new();
    for round in 0..rounds() {
        if round % ROUNDS_PER_DATABASE == 0 {
            let _ = std::fs::remove_dir_all(&original);
            acked = run_child(kind, &original, Ending::Kill, 5 + random.below(60));
            damage::trim_reserved(&original);
        }
        let _ = std::fs::remove_dir_all(&copy);
        copy_folder(&original, &copy);
        let file = damage(&copy, &random);
        let round_name = format!("round {round}, {}", file.display());
        match runtime().block_on(survivors(kind, &copy)) {
            Ok(found) if acked.is_subset(&found) => unharmed += 1,
            Ok(_) => shortened += 1,
            Err(Unreadable::Refused(error)) => {
                refused += 1;
                lost += u64::from(recovered(kind, &copy, &error, round).is_none());
            }
            Err(Unreadable::Wrong(why)) => panic!("{round_name}: {why}"),
        }
    }
    println!(
        "{kind:?}: {} rounds; {unharmed} without loss, {shortened} a shorter prefix, {refused} \
         refused with a clear error, of which {lost} need a backup",
        rounds()
    );
    assert!(shortened + refused > 0, "the damage never reached anything");
}

macro_rules! crashes {
    ($($kind:ident = $variant:ident, $number:literal;)*) => {$(
        mod $kind {
            use super::{Ending, Kind, damage, damaged, dies};

            #[test]
            fn survives_kills() {
                dies(Kind::$variant, Ending::Kill, $number);
            }

            #[test]
            fn survives_power_loss() {
                dies(Kind::$variant, Ending::PowerLoss, $number + 1);
            }

            #[test]
            fn a_cut_file_leaves_a_prefix() {
                damaged(Kind::$variant, damage::cut_newest, $number + 2);
            }

            #[test]
            fn flipped_bits_leave_a_prefix() {
                damaged(Kind::$variant, damage::flip_bits, $number + 3);
            }
        }
    )*};
}

crashes! {
    fjall = Fjall, 10;
    sled = Sled, 20;
}

/// The control: without the `fdatasync` of our engine, sled loses acknowledged batches in the same
/// model of power loss, and the same check finds it.
#[test]
fn plain_sled_loses_what_it_acknowledged() {
    let random = Random::new(30);
    let mut lost = 0;
    for _round in 0..10 {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let acked = run_child(
            Kind::PlainSled,
            &path,
            Ending::PowerLoss,
            20 + random.below(40),
        );
        let found = runtime().block_on(survivors(Kind::PlainSled, &path));
        lost += u64::from(found.map_or(true, |found| !acked.is_subset(&found)));
    }
    println!("plain sled: acknowledged batches lost in {lost} of 10 rounds");
    assert!(lost > 0, "the model of power loss drops nothing");
}

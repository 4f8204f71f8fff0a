//! Checks the version files of fjall's keyspaces before fjall reads them.
//!
//! The file `current` of a keyspace names its version file (`v` and a number) and holds a checksum
//! of it, which fjall writes and does not compare: a damaged version file ends in an assertion, and
//! that in an abort, because a destructor asserts too. The layout is that of lsm-tree 3
//! (`version/persist.rs` there); a test damages every byte, so that a new layout is noticed.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use xxhash_rust::xxh3::xxh3_128;

use crate::engine::EngineError;

/// The folder of the keyspaces, and the file in each that names its version.
const KEYSPACES: &str = "keyspaces";
const CURRENT: &str = "current";
/// The number of the kind of checksum in use: XXH3, 128 bits.
const XXH3: u8 = 0;

/// Fails if the version file of a keyspace in the database folder is not what was written. A
/// keyspace without `current` was never finished: fjall makes it anew.
pub(super) fn check(folder: &Path) -> Result<(), EngineError> {
    let keyspaces = folder.join(KEYSPACES);
    let Some(entries) = unless_missing(&keyspaces, fs::read_dir(&keyspaces))? else {
        return Ok(());
    };
    for entry in entries {
        if let Some(entry) = unless_missing(&keyspaces, entry)? {
            check_keyspace(&entry.path())?;
        }
    }
    Ok(())
}

fn check_keyspace(keyspace: &Path) -> Result<(), EngineError> {
    let file = keyspace.join(CURRENT);
    let Some(current) = unless_missing(&file, fs::read(&file))? else {
        return Ok(());
    };
    let Some((version, checksum)) = parse(&current) else {
        return Err(damaged(file, "it does not name a version"));
    };
    let file = keyspace.join(format!("v{version}"));
    match unless_missing(&file, fs::read(&file))? {
        None => Err(damaged(file, "it is missing")),
        Some(bytes) if xxh3_128(&bytes) != checksum => {
            Err(damaged(file, "its checksum is another"))
        }
        Some(_) => Ok(()),
    }
}

/// Number and checksum of the version: 8 and 16 bytes, little-endian, and the kind of checksum.
fn parse(current: &[u8]) -> Option<(u64, u128)> {
    let (version, rest) = current.split_first_chunk()?;
    let (checksum, kind) = rest.split_first_chunk()?;
    (kind == [XXH3]).then(|| (u64::from_le_bytes(*version), u128::from_le_bytes(*checksum)))
}

fn unless_missing<T>(path: &Path, found: io::Result<T>) -> Result<Option<T>, EngineError> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(EngineError::Io {
            what: "cannot read",
            path: path.to_owned(),
            source,
        }),
    }
}

fn damaged(file: PathBuf, why: &str) -> EngineError {
    EngineError::Damaged {
        file,
        why: why.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::fjall::{FjallEngine, FjallOptions};

    #[tokio::test]
    async fn every_flipped_byte_is_seen_before_fjall_sees_it() {
        let folder = tempfile::tempdir().unwrap();
        let engine = FjallEngine::open(folder.path(), FjallOptions::default()).unwrap();
        crate::Engine::close(&engine).await.unwrap();
        drop(engine);
        check(folder.path()).unwrap();

        let mut seen = 0;
        for keyspace in fs::read_dir(folder.path().join(KEYSPACES)).unwrap() {
            let keyspace = keyspace.unwrap().path();
            let (version, _) = parse(&fs::read(keyspace.join(CURRENT)).unwrap()).unwrap();
            for file in [keyspace.join(format!("v{version}")), keyspace.join(CURRENT)] {
                let whole = fs::read(&file).unwrap();
                for at in 0..whole.len() {
                    let mut bytes = whole.clone();
                    bytes[at] ^= 8;
                    fs::write(&file, bytes).unwrap();
                    let outcome = FjallEngine::open(folder.path(), FjallOptions::default());
                    assert!(
                        matches!(outcome, Err(EngineError::Damaged { .. })),
                        "{at} of {file:?}"
                    );
                    seen += 1;
                }
                fs::write(&file, whole).unwrap();
            }
        }
        assert!(seen > 100, "{seen} bytes were damaged");
        FjallEngine::open(folder.path(), FjallOptions::default()).unwrap();
    }
}

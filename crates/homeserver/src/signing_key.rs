//! The key with which this server signs events: made once, kept for ever.
//!
//! With an embedded engine it is a file of its own in the data folder, readable by its owner only,
//! in the form that other homeservers use too. Where there is no such folder it is a row.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use homeserver_events::{KeyError, SigningKey};
use homeserver_runtime::Runtime;
use homeserver_storage::{CommitError, StorageError, Store};

use crate::app::settings;

/// The file in the data folder.
const FILE: &str = "signing.key";
/// The setting that stands in for the file.
const SETTING: &str = "signing_key";

/// The signing key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SigningKeyError {
    /// The file cannot be read or made.
    #[error("cannot read or write {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// What is stored is not a key.
    #[error("{place} holds no signing key")]
    Key {
        /// Where it is stored.
        place: String,
        /// What is wrong with it.
        source: KeyError,
    },
    /// The store could not be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The store could not be written.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// The key in the folder, made now if there is none.
pub(crate) fn in_folder(folder: &Path, runtime: &Runtime) -> Result<SigningKey, SigningKeyError> {
    let path = folder.join(FILE);
    let failed = |source| SigningKeyError::File {
        path: path.clone(),
        source,
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => SigningKey::from_stored(&text).map_err(|source| SigningKeyError::Key {
            place: path.display().to_string(),
            source,
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = generate(runtime)?;
            write_private(folder, &path, &key.to_stored()).map_err(failed)?;
            Ok(key)
        }
        Err(error) => Err(failed(error)),
    }
}

/// The key in the store, made now if there is none.
pub(crate) async fn in_store(
    store: &Store,
    runtime: &Runtime,
) -> Result<SigningKey, SigningKeyError> {
    loop {
        if let Some(text) = settings::read(store, SETTING).await? {
            let place = "the database".to_owned();
            return SigningKey::from_stored(&text)
                .map_err(|source| SigningKeyError::Key { place, source });
        }
        let key = generate(runtime)?;
        let batch = settings::initial(SETTING, &key.to_stored());
        match store.commit(batch).await {
            Ok(_) => return Ok(key),
            // Another node made one; it is read next.
            Err(CommitError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn generate(runtime: &Runtime) -> Result<SigningKey, SigningKeyError> {
    let seed = runtime.entropy.bytes();
    let version = SigningKey::version_for_seed(&seed);
    SigningKey::from_seed(&version, &seed).map_err(|source| SigningKeyError::Key {
        place: "the source of randomness".to_owned(),
        source,
    })
}

/// Writes a file that only its owner may read; all of it or nothing, and on disk.
fn write_private(folder: &Path, path: &Path, text: &str) -> io::Result<()> {
    let unfinished = path.with_extension("new");
    let mut options = std::fs::File::options();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    let mut file = options.open(&unfinished)?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    std::fs::rename(&unfinished, path)?;
    std::fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_is_made_once_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = Runtime::system();
        let made = in_folder(folder.path(), &runtime).unwrap();
        let read = in_folder(folder.path(), &runtime).unwrap();
        assert_eq!(made.to_stored(), read.to_stored());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = folder
                .path()
                .join(FILE)
                .metadata()
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        std::fs::write(folder.path().join(FILE), "nonsense").unwrap();
        let refused = in_folder(folder.path(), &runtime).unwrap_err();
        assert!(refused.to_string().contains("signing.key"), "{refused}");
    }

    #[tokio::test]
    async fn two_servers_have_two_keys() {
        let runtime = Runtime::system();
        let [one, other] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let key = |folder: &tempfile::TempDir| in_folder(folder.path(), &runtime).unwrap();
        assert_ne!(key(&one).to_stored(), key(&other).to_stored());
    }
}

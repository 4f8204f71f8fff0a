//! The key with which this server signs events, made at the first start, and those that it signed with
//! before.
//!
//! With an embedded engine it is a file of its own in the data folder, readable by its owner only,
//! in the form that other homeservers use too; of older keys a second file holds the public halves,
//! one on a line, with the time until which each was used. Where there is no such folder both are
//! rows.
//!
//! Specification: server-server API, "Publishing Keys".

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use homeserver_events::{KeyError, SigningKey, VerifyKey};
use homeserver_federation::keys::{OldKey, document::MAX_KEYS};
use homeserver_runtime::Runtime;
use homeserver_storage::{CommitError, StorageError, Store};

use crate::app::settings;

/// The file in the data folder.
const FILE: &str = "signing.key";
/// The file with the older ones.
const OLD_FILE: &str = "signing.key.old";
/// The settings that stand in for the files.
const SETTING: &str = "signing_key";
const OLD_SETTING: &str = "old_signing_keys";
/// Older keys that are kept: others read no document with more.
const MAX_OLD: usize = MAX_KEYS - 1;

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
    /// What is stored is not a list of older keys.
    #[error("{0} holds something else than older signing keys")]
    OldKeys(String),
    /// There are too many older keys for another one.
    #[error("there are {MAX_OLD} older signing keys already, others would not read more")]
    TooMany,
    /// The store could not be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The store could not be written.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// The keys of this server.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    /// The key that it signs with.
    pub(crate) current: Arc<SigningKey>,
    /// Those that it signed with before, the oldest first.
    pub(crate) old: Vec<OldKey>,
}

/// Where the keys are kept. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct KeyPlace {
    /// The data folder, if the keys are files in it.
    pub(crate) folder: Option<PathBuf>,
    pub(crate) store: Store,
    pub(crate) runtime: Runtime,
}

/// What is stored: the key, and the list of older ones.
struct Texts {
    current: String,
    old: Option<String>,
}

impl KeyPlace {
    /// The keys; one is made now if there is none.
    pub(crate) async fn load(&self) -> Result<Keys, SigningKeyError> {
        let texts = match &self.folder {
            Some(folder) => self.in_folder(folder)?,
            None => self.in_store().await?,
        };
        self.read(&texts)
    }

    /// Makes another key, with which the server signs from its next start on. Gives its id. What was
    /// signed until now stays good.
    pub(crate) async fn rotate(&self) -> Result<String, SigningKeyError> {
        let keys = self.load().await?;
        if keys.old.len() >= MAX_OLD {
            return Err(SigningKeyError::TooMany);
        }
        let before = &keys.current;
        let retired = OldKey {
            id: before.id().to_string(),
            key: before.verify_key(),
            expired: self.runtime.clock.unix_millis(),
        };
        let old: String = keys.old.iter().chain([&retired]).map(line).collect();
        let key = generate(&self.runtime)?;
        if let Some(folder) = &self.folder {
            // In this order: a key that is both is the current one, and nothing is lost between.
            write_file(folder, OLD_FILE, &old)?;
            write_file(folder, FILE, &format!("{}\n", key.to_stored()))?;
        } else {
            let batch = settings::changed(&[
                (SETTING, Some(&before.to_stored()), &key.to_stored()),
                (OLD_SETTING, self.stored_old().await?.as_deref(), &old),
            ]);
            self.store.commit(batch).await?;
        }
        Ok(key.id().to_string())
    }

    fn in_folder(&self, folder: &Path) -> Result<Texts, SigningKeyError> {
        let old = read_file(folder, OLD_FILE)?;
        if let Some(current) = read_file(folder, FILE)? {
            return Ok(Texts { current, old });
        }
        let current = generate(&self.runtime)?.to_stored();
        write_file(folder, FILE, &format!("{current}\n"))?;
        Ok(Texts { current, old })
    }

    async fn in_store(&self) -> Result<Texts, SigningKeyError> {
        loop {
            if let Some(current) = settings::read(&self.store, SETTING).await? {
                let old = self.stored_old().await?;
                return Ok(Texts { current, old });
            }
            let key = generate(&self.runtime)?;
            let batch = settings::initial(SETTING, &key.to_stored());
            match self.store.commit(batch).await {
                // Another node may have made one; it is read next.
                Ok(_) | Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn stored_old(&self) -> Result<Option<String>, StorageError> {
        settings::read(&self.store, OLD_SETTING).await
    }

    fn read(&self, texts: &Texts) -> Result<Keys, SigningKeyError> {
        let place = |file: &str| match &self.folder {
            Some(folder) => folder.join(file).display().to_string(),
            None => "the database".to_owned(),
        };
        let current = SigningKey::from_stored(&texts.current).map_err(|source| {
            let place = place(FILE);
            SigningKeyError::Key { place, source }
        })?;
        let lines = texts.old.as_deref().unwrap_or_default().lines();
        let old: Option<Vec<_>> = lines.map(old_key).collect();
        let mut old = old.ok_or_else(|| SigningKeyError::OldKeys(place(OLD_FILE)))?;
        // It was to be replaced, and was not.
        old.retain(|old| old.id != current.id().as_str());
        Ok(Keys {
            current: Arc::new(current),
            old,
        })
    }
}

/// An older key, as it is stored.
fn line(old: &OldKey) -> String {
    let version = old.id.trim_start_matches("ed25519:");
    let (key, expired) = (old.key.to_base64(), old.expired);
    format!("ed25519 {version} {key} {expired}\n")
}

fn old_key(line: &str) -> Option<OldKey> {
    let mut parts = line.split(' ');
    let mut part = || parts.next();
    let ("ed25519", version, key, expired) = (part()?, part()?, part()?, part()?) else {
        return None;
    };
    Some(OldKey {
        id: format!("ed25519:{version}"),
        key: VerifyKey::from_base64(key).ok()?,
        expired: expired.parse().ok()?,
    })
}

fn read_file(folder: &Path, name: &str) -> Result<Option<String>, SigningKeyError> {
    let path = folder.join(name);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SigningKeyError::File { path, source }),
    }
}

fn write_file(folder: &Path, name: &str, text: &str) -> Result<(), SigningKeyError> {
    let path = folder.join(name);
    let written = write_private(folder, &path, text);
    written.map_err(|source| SigningKeyError::File { path, source })
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
    file.sync_all()?;
    std::fs::rename(&unfinished, path)?;
    std::fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use homeserver_runtime::ManualClock;
    use homeserver_storage::engines::memory::MemoryEngine;

    use super::*;

    async fn place(folder: Option<&Path>) -> (KeyPlace, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::new(1_000));
        let runtime = Runtime::simulated(Arc::clone(&clock), 3);
        let tables: [&[_]; 1] = [&settings::TABLES];
        let store = Store::open(Arc::new(MemoryEngine::new()), &tables, &runtime);
        let place = KeyPlace {
            folder: folder.map(ToOwned::to_owned),
            store: store.await.unwrap(),
            runtime,
        };
        (place, clock)
    }

    #[cfg(unix)]
    fn mode(path: &Path) -> u32 {
        use std::os::unix::fs::PermissionsExt;
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn a_key_is_made_once_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let (place, _) = place(Some(folder.path())).await;
        let made = place.load().await.unwrap();
        let read = place.load().await.unwrap();
        assert_eq!(made.current.to_stored(), read.current.to_stored());
        #[cfg(unix)]
        assert_eq!(mode(&folder.path().join(FILE)), 0o600);
        std::fs::write(folder.path().join(FILE), "nonsense").unwrap();
        let refused = place.load().await.unwrap_err();
        assert!(refused.to_string().contains("signing.key"), "{refused}");
    }

    #[tokio::test]
    async fn two_servers_have_two_keys() {
        let mut keys = Vec::new();
        for _ in 0..2 {
            let (mut place, _) = place(None).await;
            place.runtime = Runtime::system();
            keys.push(place.load().await.unwrap().current.to_stored());
        }
        assert_ne!(keys[0], keys[1]);
    }

    #[tokio::test]
    async fn a_key_that_is_replaced_is_an_older_one_from_then_on() {
        let folder = tempfile::tempdir().unwrap();
        for folder in [None, Some(folder.path())] {
            let (place, clock) = place(folder).await;
            let first = place.load().await.unwrap();
            clock.advance(Duration::from_secs(1));
            let second = place.rotate().await.unwrap();
            clock.advance(Duration::from_secs(1));
            let third = place.rotate().await.unwrap();
            let keys = place.load().await.unwrap();
            assert_eq!(keys.current.id().as_str(), third);
            let old: Vec<_> = keys.old.iter().map(|old| (&*old.id, old.expired)).collect();
            let first_id = first.current.id().as_str();
            assert_eq!(old, [(first_id, 2_000), (&*second, 3_000)]);
            assert_eq!(keys.old[0].key, first.current.verify_key());
        }
        #[cfg(unix)]
        for name in [FILE, OLD_FILE] {
            assert_eq!(mode(&folder.path().join(name)), 0o600);
        }
        let left = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 2, "nothing unfinished is left");
    }

    #[tokio::test]
    async fn a_rotation_that_was_cut_off_leaves_the_key_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let (place, _) = place(Some(folder.path())).await;
        let first = place.load().await.unwrap();
        let stored = std::fs::read(folder.path().join(FILE)).unwrap();
        place.rotate().await.unwrap();
        std::fs::write(folder.path().join(FILE), stored).unwrap();
        let keys = place.load().await.unwrap();
        assert_eq!(keys.current.id(), first.current.id());
        assert_eq!(keys.old, []);
        std::fs::write(folder.path().join(OLD_FILE), "ed25519 a b c\n").unwrap();
        let refused = place.load().await.unwrap_err();
        assert!(refused.to_string().contains("signing.key.old"), "{refused}");
    }

    #[tokio::test]
    async fn there_are_as_many_older_keys_as_others_read() {
        let (place, _) = place(None).await;
        for _ in 0..MAX_OLD {
            place.rotate().await.unwrap();
        }
        let refused = place.rotate().await;
        assert!(matches!(refused, Err(SigningKeyError::TooMany)));
        let keys = place.load().await.unwrap();
        let name = ruma::server_name!("here.example");
        let own = homeserver_federation::OwnKeys::new(name.to_owned(), keys.current, keys.old);
        let document = own.document(1_000);
        homeserver_federation::KeyDocument::read(document.as_bytes(), name, 1_000).unwrap();
    }
}

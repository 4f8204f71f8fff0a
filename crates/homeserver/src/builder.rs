//! Building a homeserver: engine, store, and every component over it.

use std::{fs::DirBuilder, os::unix::fs::DirBuilderExt, path::Path, sync::Arc};

use homeserver_federation::{
    Admission, Federation, FederationOptions, Retry, Sender, SenderError, SenderParts, Transport,
};
use homeserver_media::{Media, MediaOptions};
use homeserver_rooms::{IndexEventRooms, RoomError, Rooms, RoomsOptions};
use homeserver_runtime::{MemoryBudget, Runtime, Tasks};
use homeserver_storage::{
    BlobError, BlobStore, CommitError, Engine, EngineError, FileBlobs, MemoryBlobs, OpenEngine,
    StorageError, Store, TableSpec,
    engines::memory::MemoryEngine,
    migrations::{MigrationError, MigrationProgress},
};
use homeserver_users::{Failure, Users};
use ruma::OwnedServerName;

use crate::{
    Homeserver,
    app::{
        closing, invitation,
        leftovers::Leftovers,
        passwords::{PasswordError, Passwords},
        pushers, reports,
        settings::{self, SERVER_NAME},
        tokens,
        trimming::Trimming,
    },
    config::{Config, EngineKind, StorageConfig},
    engine_folder::{Embedded, EngineFolder},
    http::{Components, Foundation},
    network::{self, NetworkError},
    signing_key::{KeyPlace, Keys, SigningKeyError},
    sync,
};

/// Share of the memory budget for the engine's own cache, in percent.
const ENGINE_CACHE_SHARE: u8 = 50;

/// After so many steps of a migration the log says how far it is: each changes some hundred rows.
const STEPS_TOLD: u64 = 100;

/// Rights on folders that are made: messages and files are nobody else's business.
const FOLDER_MODE: u32 = 0o700;

/// A homeserver could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Not a server name.
    #[error("{0:?} is not a server name")]
    ServerName(String),
    /// The database belongs to another server name, which user ids in it hold for ever.
    #[error("the database was made for {stored}, and cannot become that of {configured}")]
    OtherServerName {
        /// The name in the database.
        stored: String,
        /// The name in the configuration.
        configured: OwnedServerName,
    },
    /// The data folder cannot be made.
    #[error("cannot make the folder {path}")]
    Folder {
        /// The folder.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The engine cannot be opened.
    #[error("cannot open the database in {path}")]
    Engine {
        /// Its folder.
        path: String,
        /// What is wrong.
        source: EngineError,
    },
    /// What is stored could not be changed into what this version reads.
    #[error("cannot bring the database to this version")]
    Migration(#[from] MigrationError),
    /// The data is in the files of another engine.
    #[error("the data is in {stored} files; `homeserver storage convert` makes {configured} ones")]
    OtherEngine {
        /// The configured engine.
        configured: &'static str,
        /// The engine that wrote the data.
        stored: &'static str,
    },
    /// The folder of uploads cannot be used.
    #[error("cannot use the folder of uploads")]
    Uploads(#[from] BlobError),
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] homeserver_storage::OpenError),
    /// The database cannot be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The database cannot be written.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The way to other servers cannot be set up.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The signing key cannot be used.
    #[error(transparent)]
    SigningKey(#[from] SigningKeyError),
    /// The first password hash failed.
    #[error(transparent)]
    Password(PasswordFailure),
    /// Rooms cannot be read.
    #[error(transparent)]
    Rooms(#[from] RoomError),
    /// Accounts cannot be read.
    #[error(transparent)]
    Users(#[from] Failure),
    /// What other servers lack cannot be read.
    #[error(transparent)]
    Sender(#[from] SenderError),
}

/// Why passwords cannot be hashed here.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct PasswordFailure(PasswordError);

impl From<PasswordError> for OpenError {
    fn from(error: PasswordError) -> Self {
        Self::Password(PasswordFailure(error))
    }
}

/// Where the engine comes from.
#[derive(Debug)]
enum Source {
    /// Not opened again when it fails.
    Engine(Arc<dyn Engine>),
    Opener(Arc<dyn OpenEngine>),
}

/// Collects what a homeserver is made of; [`HomeserverBuilder::open`] makes it.
#[derive(Debug)]
pub struct HomeserverBuilder {
    server_name: Option<String>,
    config: Config,
    source: Option<Source>,
    blobs: Option<Arc<dyn BlobStore>>,
    transport: Option<Arc<dyn Transport>>,
    runtime: Option<Runtime>,
}

impl HomeserverBuilder {
    pub(crate) fn new(server_name: &str) -> Self {
        Self {
            server_name: Some(server_name.to_owned()),
            config: Config::default(),
            source: None,
            blobs: None,
            transport: None,
            runtime: None,
        }
    }

    pub(crate) fn configured(config: Config) -> Self {
        Self {
            server_name: None,
            config,
            source: None,
            blobs: None,
            transport: None,
            runtime: None,
        }
    }

    /// Everything but the server name, which the builder was given.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Keeps everything in this engine instead of the configured one. After a commit whose outcome
    /// the engine does not know, the homeserver takes no writes until it is built anew: see
    /// [`HomeserverBuilder::engine_opened_by`].
    #[must_use]
    pub fn engine(mut self, engine: Arc<dyn Engine>) -> Self {
        self.source = Some(Source::Engine(engine));
        self
    }

    /// Keeps everything in the engine that this opens, instead of the configured one; it is opened
    /// again after a commit whose outcome is not known. The database is this homeserver's alone.
    #[must_use]
    pub fn engine_opened_by(mut self, opener: Arc<dyn OpenEngine>) -> Self {
        self.source = Some(Source::Opener(opener));
        self
    }

    /// Keeps uploads in this store instead of files.
    #[must_use]
    pub fn blobs(mut self, blobs: Arc<dyn BlobStore>) -> Self {
        self.blobs = Some(blobs);
        self
    }

    /// Federates over this transport, whatever the configuration says: with other homeservers of
    /// this process, or over a network that is simulated.
    #[must_use]
    pub fn transport(mut self, transport: Arc<dyn Transport>) -> Self {
        self.config.federation.enabled = true;
        self.transport = Some(transport);
        self
    }

    /// Clock, randomness and pools, which several homeservers may share. Background tasks are each
    /// homeserver's own.
    #[must_use]
    pub fn runtime(mut self, runtime: Runtime) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// Opens the database and starts the background tasks. Must be called within a tokio runtime.
    pub async fn open(self) -> Result<Homeserver, OpenError> {
        let mut config = self.config;
        if let Some(name) = self.server_name {
            let parsed = OwnedServerName::try_from(name.as_str());
            config.server_name = parsed.map_err(|_| OpenError::ServerName(name))?;
        }
        let runtime = Runtime {
            tasks: Tasks::default(),
            memory: MemoryBudget::new(config.storage.cache_bytes),
            ..self.runtime.unwrap_or_else(Runtime::system)
        };
        let in_folder = self.source.is_none() && config.storage.engine != EngineKind::Memory;
        let source = match self.source {
            Some(source) => source,
            None => configured_source(&config.storage, &runtime)?,
        };
        let store = open_store(&config.storage, source, &runtime).await?;
        migrate(&store).await?;
        check_server_name(&store, &config.server_name).await?;
        let key_place = KeyPlace {
            folder: in_folder.then(|| config.storage.path.clone()),
            store: store.clone(),
            runtime: runtime.clone(),
        };
        let keys = key_place.load().await?;
        let transport = match self.transport {
            Some(transport) => transport,
            None => network::transport(&config, &runtime)?,
        };
        let signing_key = Arc::clone(&keys.current);
        let federation = federation_options(&config, keys);
        let federation = Federation::open(federation, &store, transport, &runtime).await?;
        let users = Users::open(&store, &runtime);
        let rooms = RoomsOptions {
            server_name: config.server_name.clone(),
            signing_key,
            old_keys: federation.own_keys.retired().collect(),
            default_version: config.rooms.default_version.clone(),
        };
        let media = MediaOptions {
            server_name: config.server_name.clone(),
            max_upload_size: config.media.max_upload_size,
            max_bytes_per_user: config.media.user_quota,
            max_bytes_remote: config.media.remote_quota,
            allow_legacy_unauthenticated: config.media.allow_legacy_unauthenticated,
        };
        let blobs = match self.blobs {
            Some(blobs) => blobs,
            None => open_blobs(&config, in_folder, &runtime)?,
        };
        let foundation = Foundation {
            media: Media::open(&store, blobs, &runtime, media),
            rooms: Rooms::open(store.clone(), &runtime, rooms).await?,
            passwords: Passwords::open(runtime.clone()),
            key_place,
            federation,
            runtime,
            store,
            users,
        };
        let components = Components::assemble(&config, foundation);
        components.inbound.resume().await?;
        components.memberships.resume().await?;
        components.memberships.complete_rooms();
        let leftovers = Leftovers {
            sessions: components.sessions.clone(),
            closing: components.closing.clone(),
            runtime: components.runtime.clone(),
        };
        components.runtime.tasks.spawn(leftovers.hourly());
        let trimming = Trimming {
            store: components.store.clone(),
            device_lists: components.device_lists.clone(),
            runtime: components.runtime.clone(),
        };
        components.runtime.tasks.spawn(trimming.hourly());
        let sender = Sender::start(SenderParts {
            store: components.store.clone(),
            runtime: components.runtime.clone(),
            rooms: Arc::clone(&components.rooms),
            users: components.users.clone(),
            federation: components.federation.clone(),
            remote_users: components.remote_users.clone(),
        });
        Ok(Homeserver::new(config, components, sender.await?))
    }
}

fn federation_options(config: &Config, keys: Keys) -> FederationOptions {
    FederationOptions {
        enabled: config.federation.enabled,
        server_name: config.server_name.clone(),
        signing_key: keys.current,
        old_keys: keys.old,
        admission: Admission::new(
            &config.federation.allowed_servers,
            &config.federation.denied_servers,
        ),
        key_servers: config.federation.key_servers.clone(),
        requests_per_destination: config.federation.requests_per_destination,
        request_timeout: config.federation.request_timeout,
        retry: Retry {
            shortest: config.federation.retry_min,
            longest: config.federation.retry_max,
        },
    }
}

/// The tables of all crates.
const TABLES: &[&[TableSpec]] = &[
    homeserver_federation::TABLES,
    homeserver_rooms::TABLES,
    homeserver_media::TABLES,
    homeserver_users::TABLES,
    reports::TABLES,
    &tokens::TABLES,
    &settings::TABLES,
    pushers::TABLES,
    sync::count::TABLES,
    &closing::TABLES,
    &invitation::TABLES,
];

/// Uploads are files, in the configured folder or beside the database; in memory where nothing
/// says where.
fn open_blobs(
    config: &Config,
    in_folder: bool,
    runtime: &Runtime,
) -> Result<Arc<dyn BlobStore>, OpenError> {
    let folder = match &config.media.path {
        Some(folder) => folder.clone(),
        None if in_folder => config.storage.path.join("media"),
        None => return Ok(Arc::new(MemoryBlobs::new(runtime))),
    };
    make_folder(&folder)?;
    Ok(Arc::new(FileBlobs::open(folder, runtime)?))
}

/// The configured engine. Its folder is made if it is missing.
fn configured_source(config: &StorageConfig, runtime: &Runtime) -> Result<Source, OpenError> {
    let kind = match config.engine {
        EngineKind::Memory => return Ok(Source::Engine(Arc::new(MemoryEngine::new()))),
        EngineKind::Fjall => Embedded::Fjall,
        EngineKind::Sled => Embedded::Sled,
    };
    make_folder(&config.path)?;
    refuse_other_engine(&config.path, kind.name())?;
    Ok(Source::Opener(Arc::new(EngineFolder {
        kind,
        path: config.path.join(kind.name()),
        cache_bytes: runtime.memory.share(ENGINE_CACHE_SHARE),
        runtime: runtime.clone(),
    })))
}

async fn open_store(
    config: &StorageConfig,
    source: Source,
    runtime: &Runtime,
) -> Result<Store, OpenError> {
    let opener = match source {
        Source::Engine(engine) => return Ok(Store::open(engine, TABLES, runtime).await?),
        Source::Opener(opener) => opener,
    };
    let opened = opener.open().await;
    let engine = opened.map_err(|source| OpenError::Engine {
        path: config.path.display().to_string(),
        source,
    })?;
    Ok(Store::open_lasting(engine, opener, TABLES, runtime).await?)
}

/// Changes what earlier versions stored into what this one reads.
async fn migrate(store: &Store) -> Result<(), OpenError> {
    let mut tell = |progress: MigrationProgress| {
        if progress.steps > 0 && progress.steps.is_multiple_of(STEPS_TOLD) {
            let MigrationProgress { name, steps, .. } = progress;
            tracing::info!(%name, steps, "the database is being changed");
        }
    };
    store.migrate(&[&IndexEventRooms], &mut tell).await?;
    Ok(())
}

/// An engine must not start empty beside the data of another.
fn refuse_other_engine(folder: &Path, configured: &'static str) -> Result<(), OpenError> {
    let other = if configured == "fjall" {
        "sled"
    } else {
        "fjall"
    };
    if folder.join(other).exists() && !folder.join(configured).exists() {
        return Err(OpenError::OtherEngine {
            configured,
            stored: other,
        });
    }
    Ok(())
}

/// Makes a folder that nobody but the server's own user can look into; one that exists keeps the
/// rights that it has.
fn make_folder(path: &Path) -> Result<(), OpenError> {
    DirBuilder::new()
        .recursive(true)
        .mode(FOLDER_MODE)
        .create(path)
        .map_err(|source| OpenError::Folder {
            path: path.display().to_string(),
            source,
        })
}

/// The name is written by the first start and compared by all others.
async fn check_server_name(store: &Store, configured: &OwnedServerName) -> Result<(), OpenError> {
    let mut stored = settings::read(store, SERVER_NAME).await?;
    if stored.is_none() {
        let batch = settings::initial(SERVER_NAME, configured.as_str());
        match store.commit(batch).await {
            Ok(_) => return Ok(()),
            // Another node was faster.
            Err(CommitError::Conflict { .. }) => {
                stored = settings::read(store, SERVER_NAME).await?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    let stored = stored.unwrap_or_default();
    if stored == configured.as_str() {
        return Ok(());
    }
    Err(OpenError::OtherServerName {
        stored,
        configured: configured.clone(),
    })
}

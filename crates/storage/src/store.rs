//! The store: what everybody works with. See [`Store`].

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt as _;
use homeserver_runtime::Runtime;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    Batch, CommitError, Committed, Cursor, DecodeError, Direction, Durability, Engine, EngineError,
    Interner, Journal, Key, NumberKind, OpenEngine, Position, Row, ScanRange, Table, TableSpec,
    Ticket, ToKey,
    batch::MAX_KEY,
    committer::{Committer, Work},
    engine::KeyRange,
    handle::Handle,
    numbers::Known,
    system::{META, REGISTERED, TABLES, UNFINISHED},
    table::{Collision, Registry},
};

/// The layout of the tables of this crate. A database of another one is not opened.
pub(crate) const FORMAT: u64 = 1;
/// Scans and reads of up to so many rows are answered on the calling thread.
const SHORT_READ: usize = 64;
/// After so long without a commit the engine is told that it is idle.
const IDLE_AFTER: Duration = Duration::from_secs(30);

/// Reading failed. "Not there" is not a failure.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The engine cannot read.
    #[error("cannot read from the store")]
    Engine(#[from] EngineError),
    /// A row is not what its table says.
    #[error("table {table}")]
    Decode {
        /// Which table.
        table: &'static str,
        /// What is wrong.
        source: DecodeError,
    },
    /// What is read has to be written first (a number, a cursor), and was not.
    #[error("cannot write to the store")]
    Commit(#[from] CommitError),
    /// Others were faster too often.
    #[error("gave up {0} after losing many races")]
    Contended(&'static str),
    /// The pool for blocking work is gone: the process is shutting down.
    #[error("shutting down")]
    ShuttingDown,
}

/// A database cannot be used by this program.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Two crates declare the same table.
    #[error(transparent)]
    Collision(#[from] Collision),
    /// It was written by another version of this program.
    #[error("the database has format {found}; this program reads format {FORMAT}")]
    Format {
        /// Its format.
        found: u64,
    },
    /// A conversion did not come to its end.
    #[error("the database is an unfinished copy: remove it and convert again")]
    Unfinished,
    /// A table number means something else in this program.
    #[error("table {id} is {stored:?} in the database and {declared:?} in this program")]
    OtherTable {
        /// The number.
        id: u8,
        /// What the database calls it.
        stored: String,
        /// What the program calls it.
        declared: &'static str,
    },
    /// It cannot be read or written.
    #[error("cannot open the database")]
    Storage(#[from] StorageError),
}

impl StorageError {
    /// Whether asking again may help: the store is being opened anew, or others were faster.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Engine(error) => matches!(error, EngineError::Closed),
            Self::Commit(error) => error.is_passing(),
            Self::Contended(_) | Self::ShuttingDown => true,
            Self::Decode { .. } => false,
        }
    }
}

impl From<CommitError> for OpenError {
    fn from(error: CommitError) -> Self {
        Self::Storage(error.into())
    }
}

/// Typed tables, batches and the journal over an [`Engine`]. Cheap to clone; clones share all.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    handle: Arc<Handle>,
    committer: Committer,
    runtime: Runtime,
    durable: watch::Receiver<Position>,
    epoch: u64,
    interners: Mutex<HashMap<NumberKind, Arc<Known>>>,
}

/// Whether anything can be stored under a key. Clients ask for ids of any length: what no row can
/// have is not there, and no engine is asked for it.
fn fits(key: &[u8]) -> bool {
    key.len() <= MAX_KEY
}

/// The same range in bounds that an engine takes: no key is as long as what is cut off, so none
/// changes sides.
fn shortened(mut range: KeyRange) -> KeyRange {
    range.start.truncate(MAX_KEY + 1);
    range.end.truncate(MAX_KEY + 1);
    range
}

/// Names the table in which a row could not be read.
pub(crate) fn decoding<K, V>(table: &Table<K, V>) -> impl Fn(DecodeError) -> StorageError {
    let table = table.spec().name;
    move |source| StorageError::Decode { table, source }
}

impl Store {
    /// Opens the database in `engine` (an empty one is set up) with the tables of all crates. After
    /// a commit whose outcome is unknown it stays closed for writing.
    ///
    /// # Errors
    /// When two tables collide, when the database is of another format or gives a table number
    /// another meaning, and when it cannot be read or written.
    pub async fn open(
        engine: Arc<dyn Engine>,
        tables: &[&[TableSpec]],
        runtime: &Runtime,
    ) -> Result<Self, OpenError> {
        Self::over(engine, None, tables, runtime).await
    }

    /// Like [`Store::open`] with an engine that `opener` opened, and that it opens again after a
    /// commit whose outcome is unknown. The engine belongs to this process alone.
    ///
    /// # Errors
    /// Those of [`Store::open`].
    pub async fn open_lasting(
        engine: Arc<dyn Engine>,
        opener: Arc<dyn OpenEngine>,
        tables: &[&[TableSpec]],
        runtime: &Runtime,
    ) -> Result<Self, OpenError> {
        Self::over(engine, Some(opener), tables, runtime).await
    }

    async fn over(
        engine: Arc<dyn Engine>,
        opener: Option<Arc<dyn OpenEngine>>,
        tables: &[&[TableSpec]],
        runtime: &Runtime,
    ) -> Result<Self, OpenError> {
        let named_already = tables.contains(&TABLES);
        let own: &[&[TableSpec]] = if named_already { &[] } else { &[TABLES] };
        let registry = Registry::join(&[tables, own].concat())?;
        let durable = engine.watch();
        let opener = opener.map(|opener| (opener, *durable.borrow()));
        let handle = Arc::new(Handle::new(engine));
        let committer = Committer::new(Arc::clone(&handle), opener, runtime.clone());
        let mut store = Self {
            inner: Arc::new(Inner {
                durable: committer.watch().unwrap_or(durable),
                committer,
                handle,
                runtime: runtime.clone(),
                epoch: 0,
                interners: Mutex::default(),
            }),
        };
        store.set_up().await?;
        store.register(&registry).await?;
        let epoch = store.meta("epoch").await?.unwrap_or_default();
        if let Some(inner) = Arc::get_mut(&mut store.inner) {
            inner.epoch = epoch;
        }
        store.inner.committer.know_epoch(epoch);
        if store.inner.handle.blocks {
            store.tell_when_idle();
        }
        Ok(store)
    }

    /// The row under `key`.
    pub async fn get<K: Key, V: Row>(
        &self,
        table: &Table<K, V>,
        key: &impl ToKey<Key = K>,
    ) -> Result<Option<V>, StorageError> {
        let bytes = table.key_bytes(key);
        if !fits(&bytes) {
            return Ok(None);
        }
        let found = self.inner.handle.engine().await?.get(&bytes).await?;
        let row = found.map(|bytes| V::decode(&bytes)).transpose();
        row.map_err(decoding(table))
    }

    /// The rows under `keys`, in their order.
    pub async fn multi_get<K: Key, V: Row, Q: ToKey<Key = K>>(
        &self,
        table: &Table<K, V>,
        keys: &[Q],
    ) -> Result<Vec<Option<V>>, StorageError> {
        let mut bytes: Vec<_> = keys.iter().map(|key| table.key_bytes(key)).collect();
        let asked: Vec<bool> = bytes.iter().map(|key| fits(key)).collect();
        bytes.retain(|key| fits(key));
        let engine = self.inner.handle.engine().await?;
        let found = if self.reads_here(bytes.len()) {
            engine.multi_get(&bytes).await?
        } else {
            let read = move || engine.multi_get(&bytes).now_or_never();
            self.off_thread(read).await?
        };
        let mut found = found.into_iter();
        let found = asked.into_iter().map(|asked| {
            let row = asked.then(|| found.next());
            row.flatten().flatten()
        });
        let decode = |found: Option<Bytes>| found.map(|bytes| V::decode(&bytes)).transpose();
        let rows: Result<_, _> = found.map(decode).collect();
        rows.map_err(decoding(table))
    }

    /// The first `limit` rows of `range` in `direction`.
    pub async fn scan<K: Key, V: Row>(
        &self,
        table: &Table<K, V>,
        range: ScanRange<K>,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<(K, V)>, StorageError> {
        let range = shortened(range.bytes(table.spec().id));
        if range.is_empty() || limit == 0 {
            return Ok(Vec::new());
        }
        let found = self.scan_bytes(range, direction, limit).await?;
        let decode = |(key, value): (Bytes, Bytes)| Ok((table.read_key(&key)?, V::decode(&value)?));
        let rows: Result<_, _> = found.into_iter().map(decode).collect();
        rows.map_err(decoding(table))
    }

    pub(crate) async fn scan_bytes(
        &self,
        range: KeyRange,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StorageError> {
        let engine = self.inner.handle.engine().await?;
        if self.reads_here(limit) {
            return Ok(engine.scan(&range, direction, limit).await?);
        }
        // Most ranges hold less than was allowed. What goes on is read anew as a whole, so that all
        // its rows are of one moment.
        let found = engine.scan(&range, direction, SHORT_READ).await?;
        if found.len() < SHORT_READ {
            return Ok(found);
        }
        let read = move || engine.scan(&range, direction, limit).now_or_never();
        self.off_thread(read).await
    }

    /// Queues a batch and returns. Batches are committed in the order of their queueing; several of
    /// one submitter may be on their way. Waits only while the queue is full.
    ///
    /// # Errors
    /// When the batch is over a limit or malformed, or the store is closed for writing.
    pub async fn submit(
        &self,
        batch: Batch,
        durability: Durability,
    ) -> Result<Ticket, CommitError> {
        self.inner.committer.submit(batch, durability).await
    }

    /// Commits a batch and waits until it is durable.
    pub async fn commit(&self, batch: Batch) -> Result<Committed, CommitError> {
        self.submit(batch, Durability::Durable).await?.await
    }

    /// The position up to which everything is on disk, here and wherever else is written.
    pub fn durable(&self) -> Position {
        *self.inner.durable.borrow()
    }

    /// Wakes when [`Store::durable`] moves.
    pub fn subscribe(&self) -> watch::Receiver<Position> {
        self.inner.durable.clone()
    }

    /// Everything that happened.
    pub fn journal(&self) -> Journal {
        Journal::new(self.clone())
    }

    /// How far the consumer called `name` has come in the journal.
    pub fn cursor(&self, name: &str) -> Cursor {
        Cursor::new(self.clone(), name)
    }

    /// Numbers for names of `kind`.
    pub fn numbers(&self, kind: NumberKind) -> Interner {
        let mut interners = self.inner.interners.lock();
        let known = interners
            .entry(kind)
            .or_insert_with(|| Arc::new(Known::new(kind)));
        Interner::new(self.clone(), Arc::clone(known))
    }

    /// The database's epoch: another one after a restore or conversion. Tokens given out in another
    /// epoch mean nothing.
    pub fn epoch(&self) -> u64 {
        self.inner.epoch
    }

    /// Counts the times that the engine was opened anew. What was read before may be older than
    /// what is there: rows of a commit whose outcome was unknown.
    pub fn generation(&self) -> u64 {
        self.inner.handle.generation()
    }

    /// Whether commits are accepted. Once false it stays so until the database is opened anew.
    pub fn is_writable(&self) -> bool {
        self.inner.committer.is_open()
    }

    /// Name of the engine.
    pub fn engine_name(&self) -> &'static str {
        self.inner.handle.name
    }

    /// Removes every row of `range`. Not atomic and not ordered with commits: only for ranges that
    /// nothing names any more. After a crash it is called again.
    pub async fn drop_range<K: Key, V: Row>(
        &self,
        table: &Table<K, V>,
        range: ScanRange<K>,
    ) -> Result<(), StorageError> {
        let range = range.bytes(table.spec().id);
        if range.is_empty() {
            return Ok(());
        }
        let engine = self.inner.handle.engine().await?;
        if self.reads_here(usize::MAX) {
            return Ok(engine.drop_range(&range).await?);
        }
        self.off_thread(move || engine.drop_range(&range).now_or_never())
            .await
    }

    /// Copies the database, as of a moment between two commits, into the empty or missing folder
    /// `into`. Commits wait meanwhile.
    pub async fn checkpoint(&self, into: impl Into<PathBuf>) -> Result<(), StorageError> {
        let work = Work::Checkpoint(into.into());
        Ok(self.inner.committer.work(work).await?)
    }

    /// Commits what is queued, makes it durable, prepares a short next start, and refuses all
    /// further commits. Closing twice is no error.
    pub async fn close(&self) -> Result<(), StorageError> {
        match self.inner.committer.work(Work::Close).await {
            Err(EngineError::Closed) => Ok(()),
            closed => Ok(closed?),
        }
    }

    /// Whether a read of `rows` rows may be made on the calling thread.
    fn reads_here(&self, rows: usize) -> bool {
        rows <= SHORT_READ || !self.inner.handle.blocks
    }

    /// Runs a read of an engine that blocks on the pool for such work.
    async fn off_thread<T, F>(&self, read: F) -> Result<T, StorageError>
    where
        T: Send + 'static,
        F: FnOnce() -> Option<Result<T, EngineError>> + Send + 'static,
    {
        match self.inner.runtime.blocking.run(read).await {
            Ok(Some(result)) => Ok(result?),
            Ok(None) => Err(StorageError::Engine(EngineError::Backend {
                engine: self.inner.handle.name,
                message: "suspended in a read although it blocks".to_owned(),
            })),
            Err(_) => Err(StorageError::ShuttingDown),
        }
    }

    pub(crate) async fn meta(&self, name: &str) -> Result<Option<u64>, StorageError> {
        let stored: Option<Bytes> = self.get(&META, &name).await?;
        let number = stored.map(|bytes| u64::decode(&bytes)).transpose();
        number.map_err(decoding(&META))
    }

    /// Writes format and epoch into an empty database, or checks the format of a full one.
    async fn set_up(&self) -> Result<(), OpenError> {
        if self.get(&META, &UNFINISHED).await?.is_some() {
            return Err(OpenError::Unfinished);
        }
        match self.meta("format").await? {
            Some(FORMAT) => return Ok(()),
            Some(found) => return Err(OpenError::Format { found }),
            None => {}
        }
        let epoch = self.inner.runtime.entropy.number();
        let mut batch = Batch::new();
        batch.assert_absent(&META, &"format");
        batch.put(&META, &"format", &Bytes::from(FORMAT.encode()));
        batch.put(&META, &"epoch", &Bytes::from(epoch.encode()));
        match self.commit(batch).await {
            // Another process set it up at the same moment.
            Ok(_) | Err(CommitError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Compares the tables with those the database was written with, and adds new ones.
    async fn register(&self, registry: &Registry) -> Result<(), OpenError> {
        let all = ScanRange::all();
        let stored = self
            .scan(&REGISTERED, all, Direction::Forward, usize::from(u8::MAX))
            .await?;
        let stored: HashMap<u8, Bytes> = stored.into_iter().collect();
        let mut batch = Batch::new();
        for (id, declared) in registry.tables() {
            match stored.get(&id) {
                Some(name) if *name == declared.as_bytes() => {}
                Some(name) => {
                    return Err(OpenError::OtherTable {
                        id,
                        stored: String::from_utf8_lossy(name).into_owned(),
                        declared,
                    });
                }
                None => batch.put(&REGISTERED, &id, &Bytes::from_static(declared.as_bytes())),
            }
        }
        if !batch.is_empty() {
            self.commit(batch).await?;
        }
        Ok(())
    }

    /// Tells the engine when nothing was committed for [`IDLE_AFTER`], once each time.
    fn tell_when_idle(&self) {
        let weak = Arc::downgrade(&self.inner);
        let tasks = self.inner.runtime.tasks.clone();
        let stopping = tasks.clone();
        tasks.spawn(async move {
            let mut worked = false;
            loop {
                tokio::select! {
                    biased;
                    () = stopping.stopping() => return,
                    () = tokio::time::sleep(IDLE_AFTER) => {}
                }
                let Some(inner) = weak.upgrade() else { return };
                if inner.committer.was_busy() {
                    worked = true;
                } else if std::mem::take(&mut worked)
                    && let Err(error) = inner.committer.work(Work::Idle).await
                {
                    tracing::warn!(%error, "the storage engine could not use the quiet");
                }
            }
        });
    }
}

#[cfg(test)]
mod tests;

//! Media of other servers: fetched when somebody here first asks for one, and kept.
//!
//! Specification: server-server API, "Content Repository".

use std::{collections::HashMap, pin::pin, sync::Arc};

use homeserver_federation::{CallError, Peers, is_same_server};
use homeserver_media::{Declared, Failure, Media, MediaId, UploadError};
use homeserver_runtime::Tasks;
use parking_lot::Mutex;
use ruma::{OwnedServerName, ServerName};
use tokio_util::io::StreamReader;

use super::limits::LimitKey;

/// Media that are fetched at once.
const AT_ONCE: usize = 64;
/// Of those, media of one server: a slow one leaves room for the others.
const OF_ONE_SERVER: usize = 16;
/// Of those, media that one user asked for, whatever servers they name.
const OF_ONE_ASKER: usize = 16;
/// Who waits for one medium while it is fetched: each tries again if that fails.
const WAITING: usize = 100;

/// Why a medium of another server is not here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoteMediaError {
    /// It does not give it.
    #[error(transparent)]
    Call(#[from] CallError),
    /// It broke off, is too large, or cannot be kept.
    #[error(transparent)]
    Kept(#[from] UploadError),
    /// What is here cannot be read.
    #[error(transparent)]
    Failure(#[from] Failure),
    /// Too many are being fetched.
    #[error("too many media of other servers are fetched at once")]
    Crowded,
}

type Key = (OwnedServerName, String);

/// A medium that is being fetched.
#[derive(Debug)]
struct Underway {
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Who asked for it first.
    asker: LimitKey,
}

/// A place among those who want one medium. The last one takes it off the list.
struct Place {
    key: Key,
    turn: Arc<tokio::sync::Mutex<()>>,
    underway: Arc<Mutex<HashMap<Key, Underway>>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut underway = self.underway.lock();
        // This one and the map: nobody else waits.
        if Arc::strong_count(&self.turn) <= 2 {
            underway.remove(&self.key);
        }
    }
}

/// Fetches media of other servers. Cheap to clone; clones fetch nothing twice at once.
#[derive(Clone, Debug)]
pub(crate) struct RemoteMedia {
    media: Media,
    peers: Peers,
    tasks: Tasks,
    underway: Arc<Mutex<HashMap<Key, Underway>>>,
}

impl RemoteMedia {
    /// Media to be kept in `media`.
    pub(crate) fn new(media: Media, peers: Peers, tasks: Tasks) -> Self {
        Self {
            media,
            peers,
            tasks,
            underway: Arc::default(),
        }
    }

    /// Sees to it that a medium of another server is here; of those of this one nothing is done.
    /// What was begun is ended, also if nobody waits for it.
    pub(crate) async fn fetch(
        &self,
        server: &ServerName,
        id: &MediaId,
        asker: &LimitKey,
    ) -> Result<(), RemoteMediaError> {
        let own = &self.media.options().server_name;
        if is_same_server(server, own) || self.media.is_here(server, id).await? {
            return Ok(());
        }
        let place = self.place((server, id), asker)?;
        // Whoever hangs up while another fetches it wants it no more.
        let turn = Arc::clone(&place.turn).lock_owned().await;
        // The turn goes first.
        let held = (turn, place);
        let (this, server, id) = (self.clone(), server.to_owned(), id.clone());
        let fetched = async move {
            let fetched = this.fetch_now(&server, &id).await;
            drop(held);
            fetched
        };
        self.tasks.see_through(fetched).await
    }

    /// A place among those that a medium is fetched for, unless there are too many.
    fn place(
        &self,
        (server, id): (&ServerName, &MediaId),
        asker: &LimitKey,
    ) -> Result<Place, RemoteMediaError> {
        let key = (server.to_owned(), id.to_string());
        let mut underway = self.underway.lock();
        let turn = if let Some(one) = underway.get(&key) {
            // The map and all who wait.
            if Arc::strong_count(&one.turn) > WAITING {
                return Err(RemoteMediaError::Crowded);
            }
            Arc::clone(&one.turn)
        } else {
            let of_server = underway.keys().filter(|(of, _)| is_same_server(of, server));
            let of_asker = underway.values().filter(|one| one.asker == *asker);
            if underway.len() >= AT_ONCE
                || of_server.count() >= OF_ONE_SERVER
                || of_asker.count() >= OF_ONE_ASKER
            {
                return Err(RemoteMediaError::Crowded);
            }
            let new = Underway {
                turn: Arc::default(),
                asker: asker.clone(),
            };
            let turn = Arc::clone(&new.turn);
            underway.insert(key.clone(), new);
            turn
        };
        Ok(Place {
            key,
            turn,
            underway: Arc::clone(&self.underway),
        })
    }

    async fn fetch_now(&self, server: &ServerName, id: &MediaId) -> Result<(), RemoteMediaError> {
        if self.media.is_here(server, id).await? {
            return Ok(());
        }
        let largest = self.media.options().max_upload_size;
        let found = self.peers.medium(server, id.as_str(), largest).await?;
        let declared = Declared {
            content_type: found.content_type.clone(),
            file_name: found.file_name.clone(),
            length: None,
        };
        let mut content = pin!(StreamReader::new(found.pieces()));
        self.media
            .keep_remote(server, id, &declared, &mut content)
            .await?;
        Ok(())
    }
}

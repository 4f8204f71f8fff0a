//! Answers of any length, written while they are read: states and auth chains of rooms.
//!
//! A task of its own reads them from the database, so that an answer which nobody takes ends in
//! time: its turn and the numbers of its events are given back then, whatever becomes of the
//! connection. So many are written at once, and not all of them for one server.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, stream};
use homeserver_events::names::canonical_name;
use homeserver_rooms::{RoomError, Section, ServedChain, ServedEvent};
use homeserver_runtime::Tasks;
use parking_lot::Mutex;
use ruma::{OwnedServerName, ServerName};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};

/// Answers of one kind that are written at once: each holds the numbers of its events.
const AT_ONCE: usize = 16;

/// Those for one server: slow readers keep no other server out.
const PER_SERVER: usize = 4;

/// How long one more waits for its turn.
const TURN: Duration = Duration::from_secs(10);

/// How long the writing of one may take.
const WHOLE: Duration = Duration::from_mins(5);

/// How long nothing of it may be taken.
const STALL: Duration = Duration::from_mins(1);

/// Pieces that wait to be taken.
const AHEAD: usize = 2;

/// Writes answers. Clones count together.
#[derive(Clone, Debug)]
pub(crate) struct Writers {
    turns: Arc<Semaphore>,
    by_server: ByServer,
    tasks: Tasks,
}

type ByServer = Arc<Mutex<HashMap<OwnedServerName, Arc<Semaphore>>>>;

/// The right to have an answer written.
#[derive(Debug)]
pub(crate) struct Turn {
    permits: Option<[OwnedSemaphorePermit; 2]>,
    server: OwnedServerName,
    by_server: ByServer,
}

impl Drop for Turn {
    fn drop(&mut self) {
        drop(self.permits.take());
        let mut by_server = self.by_server.lock();
        // Whoever waits or writes has a share in it.
        let is_last = by_server
            .get(&self.server)
            .is_some_and(|turns| Arc::strong_count(turns) == 1);
        if is_last {
            by_server.remove(&self.server);
        }
    }
}

/// What stands around the events of an answer.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    /// Before the state, or nothing where there is none.
    pub(crate) state: String,
    /// Before the auth chain.
    pub(crate) chain: &'static str,
    /// After it.
    pub(crate) end: &'static str,
    /// Whether only the ids of events are written.
    pub(crate) ids: bool,
}

/// What the task hands on.
enum Piece {
    Bytes(Bytes),
    Broken(RoomError),
    /// Nothing is missing.
    End,
}

impl Writers {
    pub(crate) fn new(tasks: Tasks) -> Self {
        Self {
            turns: Arc::new(Semaphore::new(AT_ONCE)),
            by_server: ByServer::default(),
            tasks,
        }
    }

    /// Waits until an answer for this server may be written.
    pub(crate) async fn turn(&self, server: &ServerName) -> Result<Turn, RoomError> {
        let server = canonical_name(server);
        let own = {
            let mut by_server = self.by_server.lock();
            let own = by_server.entry(server.clone());
            Arc::clone(own.or_insert_with(|| Arc::new(Semaphore::new(PER_SERVER))))
        };
        // From here on it is seen to that the entry goes.
        let mut turn = Turn {
            permits: None,
            server,
            by_server: Arc::clone(&self.by_server),
        };
        let both = async {
            let own = own.acquire_owned().await?;
            Ok::<_, tokio::sync::AcquireError>([
                own,
                Arc::clone(&self.turns).acquire_owned().await?,
            ])
        };
        let both = timeout(TURN, both).await.map_err(|_| RoomError::Busy)?;
        turn.permits = Some(both.map_err(|_| RoomError::Stopping)?);
        Ok(turn)
    }

    /// The answer in pieces. It breaks off where the database cannot be read and where it is taken
    /// too slowly, so that nobody takes a part for the whole.
    pub(crate) fn write(
        &self,
        turn: Turn,
        chain: ServedChain,
        frame: Frame,
    ) -> impl Stream<Item = Result<Bytes, RoomError>> + Send + use<> {
        let (sender, receiver) = mpsc::channel(AHEAD);
        let tasks = self.tasks.clone();
        self.tasks.spawn(async move {
            let _turn = turn;
            let writing = hand_on(&sender, chain, frame);
            tokio::select! {
                biased;
                () = tasks.stopping() => {}
                _ = timeout(WHOLE, writing) => {}
            }
        });
        stream::try_unfold(receiver, |mut receiver| async move {
            match receiver.recv().await {
                Some(Piece::Bytes(bytes)) => Ok(Some((bytes, receiver))),
                Some(Piece::Broken(error)) => Err(error),
                Some(Piece::End) => Ok(None),
                // The task has given up on the reader.
                None => Err(RoomError::Busy),
            }
        })
    }
}

/// Hands on all pieces, or as many as are taken in time.
async fn hand_on(sender: &mpsc::Sender<Piece>, chain: ServedChain, frame: Frame) {
    let mut writing = Writing {
        chain,
        frame,
        section: None,
        ended: false,
    };
    loop {
        let piece = match writing.next().await {
            Ok(Some(bytes)) => Piece::Bytes(bytes),
            Ok(None) => Piece::End,
            Err(error) => Piece::Broken(error),
        };
        let is_last = !matches!(piece, Piece::Bytes(_));
        let sent = timeout(STALL, sender.send(piece)).await;
        if is_last || !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
}

/// An answer on its way.
struct Writing {
    chain: ServedChain,
    frame: Frame,
    /// The section that is being written.
    section: Option<Section>,
    ended: bool,
}

impl Writing {
    async fn next(&mut self) -> Result<Option<Bytes>, RoomError> {
        if self.ended {
            return Ok(None);
        }
        let mut piece = Vec::new();
        if let Some((section, events)) = self.chain.next().await? {
            let mut first = self.enter(section, &mut piece);
            for event in &events {
                if !first {
                    piece.push(b',');
                }
                first = false;
                self.event(event, &mut piece);
            }
        } else {
            self.enter(Section::AuthChain, &mut piece);
            piece.extend_from_slice(self.frame.end.as_bytes());
            self.ended = true;
        }
        Ok(Some(Bytes::from(piece)))
    }

    fn event(&self, event: &ServedEvent, to: &mut Vec<u8>) {
        if self.frame.ids {
            let id = serde_json::to_vec(event.id.as_str()).unwrap_or_default();
            to.extend_from_slice(&id);
        } else {
            to.extend_from_slice(&event.json);
        }
    }

    /// Writes what stands before a section, if it is not being written already. Gives whether the
    /// next event is the first of it.
    fn enter(&mut self, section: Section, piece: &mut Vec<u8>) -> bool {
        if self.section == Some(section) {
            return false;
        }
        if self.section.is_none() {
            piece.extend_from_slice(self.frame.state.as_bytes());
        }
        if section == Section::AuthChain {
            piece.extend_from_slice(self.frame.chain.as_bytes());
        }
        self.section = Some(section);
        true
    }
}

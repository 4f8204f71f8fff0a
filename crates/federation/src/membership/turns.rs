//! One membership handshake of a room at a time: who waited finds the room here.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use ruma::{OwnedRoomId, RoomId};
use tokio::sync::watch;

/// Rooms in which something is under way.
#[derive(Clone, Debug, Default)]
pub(super) struct Turns {
    waiting: Arc<Mutex<HashMap<OwnedRoomId, watch::Receiver<()>>>>,
}

/// The right to take a room in; dropping it lets the next one look.
pub(super) struct Turn {
    turns: Turns,
    room: OwnedRoomId,
    _done: watch::Sender<()>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.waiting.lock().remove(&self.room);
    }
}

impl Turns {
    /// Waits until nobody else takes this room in.
    pub(super) async fn turn(&self, room: &RoomId) -> Turn {
        loop {
            let mut first = {
                let mut waiting = self.waiting.lock();
                if let Some(first) = waiting.get(room) {
                    first.clone()
                } else {
                    let (done, waits) = watch::channel(());
                    waiting.insert(room.to_owned(), waits);
                    return Turn {
                        turns: self.clone(),
                        room: room.to_owned(),
                        _done: done,
                    };
                }
            };
            // Nothing is ever sent: this resolves, with an error, when the turn is dropped.
            let _ = first.changed().await;
        }
    }
}

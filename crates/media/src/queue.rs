//! Whose turn it is to have an image made smaller.
//!
//! Of all who wait, each has one image at a time before the others get theirs: who asks for a
//! thousand waits for the thousand, and nobody else does. Who waits holds no image.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::Failure;

/// Requests of one client that wait: a list of rooms or members on a new device.
pub(crate) const MAX_WAITING_OF_ONE: usize = 64;
/// Requests of all clients that wait.
pub(crate) const MAX_WAITING: usize = 1_024;

/// The queue.
pub(crate) struct Queue {
    turns: Semaphore,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    all: usize,
    askers: HashMap<String, Asker>,
}

struct Asker {
    /// One at a time.
    turn: Arc<Semaphore>,
    waiting: usize,
}

/// Too many are waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// A place in the queue, given up when dropped.
pub(crate) struct Place<'a> {
    queue: &'a Queue,
    who: &'a str,
    turn: Arc<Semaphore>,
}

impl Queue {
    /// A queue that lets `at_once` of its clients go on at the same time.
    pub(crate) fn new(at_once: usize) -> Self {
        Self {
            turns: Semaphore::new(at_once.max(1)),
            waiting: Mutex::default(),
        }
    }

    /// Takes a place for `who`.
    pub(crate) fn enter<'a>(&'a self, who: &'a str) -> Result<Place<'a>, Full> {
        let mut waiting = self.waiting.lock();
        if waiting.all >= MAX_WAITING {
            return Err(Full);
        }
        let asker = waiting.askers.entry(who.to_owned());
        let asker = asker.or_insert_with(|| Asker {
            turn: Arc::new(Semaphore::new(1)),
            waiting: 0,
        });
        if asker.waiting >= MAX_WAITING_OF_ONE {
            return Err(Full);
        }
        asker.waiting += 1;
        let turn = Arc::clone(&asker.turn);
        waiting.all += 1;
        Ok(Place {
            queue: self,
            who,
            turn,
        })
    }
}

impl Place<'_> {
    /// Waits until the same client's earlier requests are done.
    pub(crate) async fn own_turn(&self) -> Result<SemaphorePermit<'_>, Failure> {
        self.turn.acquire().await.map_err(|_| Failure::Busy)
    }

    /// Waits for a turn among all clients. To be asked for with one's [`Place::own_turn`] in hand.
    pub(crate) async fn turn(&self) -> Result<SemaphorePermit<'_>, Failure> {
        self.queue.turns.acquire().await.map_err(|_| Failure::Busy)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = self.queue.waiting.lock();
        waiting.all -= 1;
        if let Some(asker) = waiting.askers.get_mut(self.who) {
            asker.waiting -= 1;
            if asker.waiting == 0 {
                waiting.askers.remove(self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn places_are_bounded_and_given_back() {
        let queue = Queue::new(1);
        let mut places: Vec<_> = (0..MAX_WAITING_OF_ONE)
            .map(|_| queue.enter("alice").map_err(|_| "full").unwrap())
            .collect();
        assert!(queue.enter("alice").is_err());
        places.pop();
        places.push(queue.enter("alice").map_err(|_| "full").unwrap());
        let names: Vec<String> = (0..=MAX_WAITING).map(|number| number.to_string()).collect();
        let others = names.iter().map_while(|name| queue.enter(name).ok());
        let others: Vec<_> = others.collect();
        assert_eq!(others.len(), MAX_WAITING - MAX_WAITING_OF_ONE);
        assert!(queue.enter("bob").is_err());
        drop((places, others));
        let waiting = queue.waiting.lock();
        assert_eq!((waiting.all, waiting.askers.len()), (0, 0));
    }

    #[test]
    fn who_asks_for_much_waits_behind_who_asks_for_little() {
        let queue = Queue::new(1);
        let enter = |who| queue.enter(who).map_err(|_| "full").unwrap();
        let [first, second, other] = [enter("alice"), enter("alice"), enter("bob")];
        let own = first.own_turn().now_or_never().unwrap().unwrap();
        let turn = first.turn().now_or_never().unwrap().unwrap();
        assert!(second.own_turn().now_or_never().is_none());
        let _bobs = other.own_turn().now_or_never().unwrap().unwrap();
        let mut bob = Box::pin(other.turn());
        assert!((&mut bob).now_or_never().is_none());
        drop((own, turn));
        let _own = second.own_turn().now_or_never().unwrap().unwrap();
        assert!(second.turn().now_or_never().is_none(), "it is bob's turn");
        assert!(bob.now_or_never().unwrap().is_ok());
    }
}

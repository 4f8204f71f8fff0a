//! Whose turn it is to have an image made smaller.
//!
//! Of all who wait, each has one image at a time before the others get theirs: who asks for a
//! thousand waits for the thousand, and nobody else does. Who waits holds no image.

use std::{collections::HashMap, sync::Arc};

use homeserver_runtime::{PoolClosed, WorkPool};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::Failure;

/// Requests of one client that wait: a list of rooms or members on a new device, of several devices
/// at once, each with as many requests as a connection carries.
pub(crate) const MAX_WAITING_OF_ONE: usize = 512;
/// Requests of all clients that wait.
pub(crate) const MAX_WAITING: usize = 4_096;

/// The queue.
pub(crate) struct Queue {
    turns: Arc<Semaphore>,
    waiting: Arc<Mutex<Waiting>>,
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
pub(crate) struct Place {
    turns: Arc<Semaphore>,
    waiting: Arc<Mutex<Waiting>>,
    who: String,
    turn: Arc<Semaphore>,
}

/// A [`Place`] whose turn it is.
pub(crate) struct Turn {
    _own: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
    _place: Place,
}

impl Queue {
    /// A queue that lets `at_once` of its clients go on at the same time.
    pub(crate) fn new(at_once: usize) -> Self {
        Self {
            turns: Arc::new(Semaphore::new(at_once.max(1))),
            waiting: Arc::default(),
        }
    }

    /// Takes a place for `who`.
    pub(crate) fn enter(&self, who: &str) -> Result<Place, Full> {
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
            turns: Arc::clone(&self.turns),
            waiting: Arc::clone(&self.waiting),
            who: who.to_owned(),
            turn,
        })
    }
}

impl Place {
    /// Waits until the same client's earlier requests are done.
    pub(crate) async fn own_turn(&self) -> Result<OwnedSemaphorePermit, Failure> {
        let turn = Arc::clone(&self.turn);
        turn.acquire_owned().await.map_err(|_| Failure::Busy)
    }

    /// Waits for a turn among all clients, with one's [`Place::own_turn`] in hand.
    pub(crate) async fn turn(self, own: OwnedSemaphorePermit) -> Result<Turn, Failure> {
        let turns = Arc::clone(&self.turns);
        let of_all = turns.acquire_owned().await.map_err(|_| Failure::Busy)?;
        Ok(Turn {
            _own: own,
            _of_all: of_all,
            _place: self,
        })
    }
}

impl Turn {
    /// Has work done by a pool. The turn goes with it and is given back when it ends: work that was
    /// begun goes on when nobody waits for it any more.
    pub(crate) async fn run<T, F>(self, pool: &WorkPool, work: F) -> Result<T, PoolClosed>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let job = move || {
            let done = work();
            drop(self);
            done
        };
        pool.run(job).await
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = self.waiting.lock();
        waiting.all -= 1;
        if let Some(asker) = waiting.askers.get_mut(&self.who) {
            asker.waiting -= 1;
            if asker.waiting == 0 {
                waiting.askers.remove(&self.who);
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
        let turn = first.turn(own).now_or_never().unwrap().unwrap();
        assert!(second.own_turn().now_or_never().is_none());
        let bobs = other.own_turn().now_or_never().unwrap().unwrap();
        let mut bob = Box::pin(other.turn(bobs));
        assert!((&mut bob).now_or_never().is_none());
        drop(turn);
        let own = second.own_turn().now_or_never().unwrap().unwrap();
        let mut second = Box::pin(second.turn(own));
        assert!((&mut second).now_or_never().is_none(), "it is bob's turn");
        assert!(bob.now_or_never().unwrap().is_ok());
    }

    #[tokio::test]
    async fn who_stops_waiting_for_work_that_goes_on_has_not_given_back_the_turn() {
        let (queue, pool) = (Queue::new(1), WorkPool::threads("test", 2));
        let enter = |who| queue.enter(who).map_err(|_| "full").unwrap();
        let place = enter("alice");
        let own = place.own_turn().await.unwrap();
        let turn = place.turn(own).await.unwrap();
        let (tell, mut begun) = tokio::sync::mpsc::channel(1);
        let (finish, finished) = tokio::sync::oneshot::channel();
        let mut work = Box::pin(turn.run(&pool, move || {
            tell.blocking_send(()).unwrap();
            finished.blocking_recv().unwrap();
        }));
        assert!((&mut work).now_or_never().is_none());
        begun.recv().await.unwrap();
        drop(work);
        let [same, other] = [enter("alice"), enter("bob")];
        assert!(same.own_turn().now_or_never().is_none());
        let bobs = other.own_turn().now_or_never().unwrap().unwrap();
        let mut bob = Box::pin(other.turn(bobs));
        assert!((&mut bob).now_or_never().is_none());
        finish.send(()).unwrap();
        assert!(bob.await.is_ok() && same.own_turn().await.is_ok());
    }
}

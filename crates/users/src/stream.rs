//! What the memory streams (typing, presence) are made of: tokens, the order in which things
//! changed, and the timer that lets time change them.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    time::Duration,
};

use homeserver_runtime::Tasks;
use tokio::sync::watch;

/// A place in a memory stream: which start of the process, and how many changes since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct StreamToken {
    /// Drawn at random when the stream was made; another one means that nothing is known of what
    /// the holder was told.
    pub boot: u64,
    /// Counts changes.
    pub counter: u64,
}

/// How a reader's token relates to a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changes<T> {
    /// What changed since the token.
    Since(T),
    /// The token says nothing here (another start of the process, or too old): this is the whole
    /// set, and whatever is not in it is over.
    Whole(T),
}

impl<T> Changes<T> {
    /// What is told either way.
    pub fn into_inner(self) -> T {
        match self {
            Self::Since(changes) | Self::Whole(changes) => changes,
        }
    }
}

/// In which order things last changed.
#[derive(Debug)]
pub(crate) struct ChangeLog<K> {
    boot: u64,
    counter: u64,
    /// Tokens with a lower counter are too old: something that changed since was forgotten.
    floor: u64,
    changed_at: HashMap<K, u64>,
    order: BTreeMap<u64, K>,
}

impl<K: Copy + Eq + Hash> ChangeLog<K> {
    pub(crate) fn new(boot: u64) -> Self {
        Self {
            boot,
            counter: 0,
            floor: 0,
            changed_at: HashMap::new(),
            order: BTreeMap::new(),
        }
    }

    /// Notes that this changed just now.
    pub(crate) fn touch(&mut self, key: K) {
        self.counter += 1;
        if let Some(before) = self.changed_at.insert(key, self.counter) {
            self.order.remove(&before);
        }
        self.order.insert(self.counter, key);
    }

    /// Counts a change that those who read by [`ChangeLog::since`] are not told.
    pub(crate) fn bump(&mut self) {
        self.counter += 1;
    }

    /// Forgets what has been quiet longest, and gives it.
    pub(crate) fn forget_oldest(&mut self) -> Option<K> {
        let (changed_at, key) = self.order.pop_first()?;
        self.changed_at.remove(&key);
        self.floor = changed_at;
        Some(key)
    }

    /// Things that changed, each once.
    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }

    pub(crate) fn counter(&self) -> u64 {
        self.counter
    }

    pub(crate) fn token(&self) -> StreamToken {
        StreamToken {
            boot: self.boot,
            counter: self.counter,
        }
    }

    /// What changed since the token, oldest first; everything that ever did if the token says
    /// nothing here.
    pub(crate) fn since(&self, token: StreamToken) -> Changes<impl Iterator<Item = K>> {
        let too_old = token.boot != self.boot || token.counter < self.floor;
        let after = if too_old { 0 } else { token.counter };
        let keys = self.order.range(after + 1..).map(|(_, key)| *key);
        if too_old {
            Changes::Whole(keys)
        } else {
            Changes::Since(keys)
        }
    }
}

/// Lets time pass in a stream until shutdown. `ring` does what is due and tells how long nothing
/// will be; it is called again then, and whenever somebody announces a change.
pub(crate) async fn let_time_pass(
    changed: watch::Sender<u64>,
    tasks: Tasks,
    mut ring: impl FnMut() -> Option<Duration>,
) {
    let mut changed = changed.subscribe();
    loop {
        let wait = ring();
        changed.mark_unchanged();
        let alarm = async {
            match wait {
                // A little late rather than a little early and again.
                Some(wait) => tokio::time::sleep(wait + Duration::from_millis(1)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = tasks.stopping() => return,
            () = alarm => {}
            _ = changed.changed() => {}
        }
    }
}

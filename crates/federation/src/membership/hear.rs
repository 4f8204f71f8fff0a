//! The state of a room as another server tells it: read, cut and checked as it comes.
//!
//! Neither the answer nor its events are ever held as they came: pieces of it are checked while the
//! next ones arrive, and what is kept of an event is its text. A server that is slow, or that never
//! ends, costs only who asked it, and not longer than the call may take.
//!
//! Specification: server-server API, `send_join`, `state`.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::{BuildHasher as _, RandomState},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use homeserver_events::{Pdu, Rules};
use parking_lot::Mutex;
use ruma::{RoomId, ServerName};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::{Failure, Inner, LARGE, state::Checked};
use crate::{
    Body, Call, CallError, Dropped,
    split::{SplitError, Splitter},
};

/// Entries of the answer at most: beyond, no server could serve the room.
const MAX_EVENTS: usize = 600_000;
/// Events that are there or named by others, at most. Those that are only named are few, unless
/// somebody makes them up.
const MAX_KNOWN: usize = 2 * MAX_EVENTS;
/// Events that are checked together.
const PIECE: usize = 500;
/// Bytes of them at which no more are added.
const PIECE_BYTES: usize = 1024 * 1024;
/// Pieces that are checked at once; the next one is read meanwhile.
const PIECES_AT_ONCE: usize = 2;
/// How long the keys for one piece are waited for while the answer waits to be read further.
const PIECE_PATIENCE: Duration = Duration::from_secs(10);
/// How long they are in all. Events of servers whose keys were not to be had by then wait for the
/// end of the answer.
const PIECES_PATIENCE: Duration = Duration::from_secs(30);
/// How long the keys are waited for when the answer has been read.
const KEY_PATIENCE: Duration = Duration::from_mins(1);

/// How long all of those may take: many servers may have signed them, and each may be slow.
const LATE_PATIENCE: Duration = Duration::from_mins(5);

/// What an answer held.
pub(super) struct Heard {
    /// The events of its two lists.
    pub(super) checked: Checked,
    /// Its object without them.
    pub(super) rest: Bytes,
    /// The place among large states, of a large one. To be held until it is taken in.
    pub(super) place: Option<OwnedSemaphorePermit>,
}

/// The names of the two lists of an answer: the state, and what authorises it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lists([&'static str; 2]);

impl Lists {
    /// Those of `send_join`.
    pub(super) const JOIN: Self = Self(["state", "auth_chain"]);
    /// Those of `state`.
    pub(super) const STATE: Self = Self(["pdus", "auth_chain"]);
}

/// An event as it came, and whether it stood in the list of the state.
type Told = (Bytes, bool);

/// What comes out of an answer.
enum Piece {
    Events(Vec<Told>),
    Rest(Bytes),
}

/// What came of a piece.
enum Outcome {
    Events(Vec<(Result<Pdu, Dropped>, Told)>),
    Rest(Bytes),
}

impl Inner {
    /// Makes a call and takes in the lists of its answer. Events of other rooms, and those that are
    /// not signed as they must be, are left out.
    pub(super) async fn hear(
        &self,
        server: &ServerName,
        call: Call,
        lists: Lists,
        (room, rules): (&RoomId, &'static Rules),
    ) -> Result<Heard, Failure> {
        let body = self.peers.stream(server, call).await?.body;
        let waited = Mutex::new(Duration::ZERO);
        let waited = &waited;
        let check = async |piece: Result<Piece, Failure>| match piece? {
            Piece::Events(told) => {
                let left = PIECES_PATIENCE.saturating_sub(*waited.lock());
                let begun = Instant::now();
                let patience = left.min(PIECE_PATIENCE);
                let checked = self.check(told, rules, patience).await?;
                if checked.iter().any(|(verified, _)| lacks_keys(verified)) {
                    *waited.lock() += begun.elapsed();
                }
                Ok::<_, Failure>(Outcome::Events(checked))
            }
            Piece::Rest(rest) => Ok(Outcome::Rest(rest)),
        };
        let outcomes = pieces(body, lists).map(check).buffered(PIECES_AT_ONCE);
        let mut outcomes = pin!(outcomes);
        let (mut checked, mut rest) = (Checked::default(), None);
        let (mut aside, mut dropped) = (Vec::new(), 0);
        let (mut bytes, mut place) = (0, None);
        while let Some(outcome) = outcomes.next().await {
            if checked.known() > MAX_KNOWN {
                return Err(Failure::answer("too many events are named"));
            }
            match outcome? {
                Outcome::Rest(whole) => rest = Some(whole),
                Outcome::Events(events) => {
                    for (verified, told) in events {
                        bytes += told.0.len();
                        if lacks_keys(&verified) {
                            // A copy: it would hold all that arrived with it.
                            aside.push((Bytes::copy_from_slice(&told.0), told.1));
                        } else {
                            dropped += checked.take(room, verified, told.1);
                        }
                    }
                    if bytes > LARGE && place.is_none() {
                        // It is not read any further before.
                        place = Arc::clone(&self.large).acquire_owned().await.ok();
                    }
                }
            }
        }
        let late = self.check(aside, rules, KEY_PATIENCE);
        let too_slow = |_| Failure::answer("its state could not be checked in time");
        let late = tokio::time::timeout(LATE_PATIENCE, late).await;
        for (verified, told) in late.map_err(too_slow)?? {
            dropped += checked.take(room, verified, told.1);
        }
        if dropped > 0 {
            tracing::info!(%room, dropped, "events of a room's state are not to be used");
        }
        let rest = rest.ok_or_else(|| Failure::answer("it breaks off"))?;
        Ok(Heard {
            checked,
            rest,
            place,
        })
    }

    async fn check(
        &self,
        told: Vec<Told>,
        rules: &'static Rules,
        patience: Duration,
    ) -> Result<Vec<(Result<Pdu, Dropped>, Told)>, Failure> {
        let texts = told.iter().map(|(text, _)| text.clone()).collect();
        let verified = self.verifier.verify(texts, rules, patience).await?;
        Ok(verified.into_iter().zip(told).collect())
    }
}

/// An answer that is being cut.
struct Cutting {
    body: Body,
    splitter: Option<Splitter<2>>,
    /// Cut off, and not given yet.
    ready: Vec<Told>,
    bytes: usize,
    count: usize,
    seen: Seen,
}

/// Cuts an answer into pieces; the last one is the rest.
fn pieces(body: Body, lists: Lists) -> impl Stream<Item = Result<Piece, Failure>> {
    let cutting = Cutting {
        body,
        splitter: Some(Splitter::new(lists.0)),
        ready: Vec::new(),
        bytes: 0,
        count: 0,
        seen: Seen::default(),
    };
    stream::try_unfold(cutting, async |mut cutting| {
        let piece = cutting.next().await?;
        Ok(piece.map(|piece| (piece, cutting)))
    })
}

impl Cutting {
    async fn next(&mut self) -> Result<Option<Piece>, Failure> {
        while let Some(splitter) = &mut self.splitter {
            if self.ready.len() >= PIECE || self.bytes >= PIECE_BYTES {
                break;
            }
            let Some(chunk) = self.body.chunk().await.map_err(CallError::from)? else {
                if !self.ready.is_empty() {
                    break;
                }
                let splitter = self.splitter.take();
                let rest = splitter.map(Splitter::finish).transpose();
                return Ok(rest.map_err(of_answer)?.map(Piece::Rest));
            };
            for (list, event) in splitter.take(&chunk).map_err(of_answer)? {
                self.count += 1;
                if self.count > MAX_EVENTS {
                    return Err(Failure::answer("too many events"));
                }
                let of_state = list == 0;
                if self.seen.is_new(&event, of_state) {
                    self.bytes += event.len();
                    self.ready.push((event, of_state));
                }
            }
        }
        self.bytes = 0;
        let ready = std::mem::take(&mut self.ready);
        Ok((!ready.is_empty()).then_some(Piece::Events(ready)))
    }
}

fn lacks_keys(verified: &Result<Pdu, Dropped>) -> bool {
    matches!(verified, Err(Dropped::KeysUnknown(_)))
}

fn of_answer(error: SplitError) -> Failure {
    Failure::answer(error)
}

/// Texts that came already: most of the auth chain is part of the state, too.
#[derive(Default)]
struct Seen {
    /// By two hashes, so that no two texts are taken for one; whether it was in the state.
    texts: HashMap<(u64, u64), bool>,
    hashes: [RandomState; 2],
}

impl Seen {
    /// Whether anything is said that was not said before.
    fn is_new(&mut self, text: &Bytes, of_state: bool) -> bool {
        let [one, two] = &self.hashes;
        let hashes = (one.hash_one(text), two.hash_one(text));
        match self.texts.entry(hashes) {
            Entry::Vacant(new) => {
                new.insert(of_state);
                true
            }
            Entry::Occupied(mut known) => of_state && !std::mem::replace(known.get_mut(), true),
        }
    }
}

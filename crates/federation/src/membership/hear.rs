//! The state of a room as another server tells it: read, cut and checked as it comes.
//!
//! Neither the answer nor its events are ever held as they came: pieces of it are checked while the
//! next ones arrive, and what is kept of an event is its text. A server that is slow, or that never
//! ends, costs only who asked it, and not longer than the call may take.
//!
//! Specification: server-server API, `send_join`, `state`.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    hash::{BuildHasher as _, RandomState},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use homeserver_events::{Pdu, Rules};
use parking_lot::Mutex;
use ruma::{OwnedServerName, RoomId, ServerName};
use serde::Deserialize;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::{Failure, Inner, LARGE, state::Checked};
use crate::{
    Asking, Body, Call, CallError, Dropped,
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
/// Events that are checked together then.
const LATE_PIECE: usize = 1000;
/// How long all of those may take: many servers may have signed them, and each may be slow.
const LATE_PATIENCE: Duration = Duration::from_mins(5);

/// Servers of the room that are asked for keys which neither the server that told its state knows
/// nor the others that were given.
const MORE_WITNESSES: usize = 4;
/// Servers with users in the room that are remembered for that.
const RESIDENTS: usize = 50;

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

/// The events of an answer while they are checked.
struct Gathering<'a> {
    room: &'a RoomId,
    checked: Checked,
    /// Events whose keys are not known, and the servers whose keys they are.
    aside: Vec<Told>,
    lacking: BTreeSet<OwnedServerName>,
    /// Some servers of users who are joined, by events that hold.
    residents: BTreeSet<OwnedServerName>,
    dropped: usize,
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
    /// not signed as they must be, are left out; also those whose keys are not to be had, if their
    /// servers are gone.
    ///
    /// The server that answers is asked for keys that are not to be had otherwise, and with it
    /// `others` of the room, so that it cannot have events left out by keeping quiet.
    ///
    /// # Errors
    /// Those of the call and the answer; [`Failure::Keys`] when keys are lacking that may be there
    /// later.
    pub(super) async fn hear(
        &self,
        (server, others): (&ServerName, &[OwnedServerName]),
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
                let asking = Asking::for_as_long_as(patience);
                let checked = self.check(told, rules, asking).await?;
                if checked.iter().any(|(verified, _)| lacks_keys(verified)) {
                    *waited.lock() += begun.elapsed();
                }
                Ok::<_, Failure>(Outcome::Events(checked))
            }
            Piece::Rest(rest) => Ok(Outcome::Rest(rest)),
        };
        let outcomes = pieces(body, lists).map(check).buffered(PIECES_AT_ONCE);
        let mut outcomes = pin!(outcomes);
        let (mut gathering, mut rest) = (Gathering::new(room), None);
        let (mut bytes, mut place) = (0, None);
        while let Some(outcome) = outcomes.next().await {
            if gathering.checked.known() > MAX_KNOWN {
                return Err(Failure::answer("too many events are named"));
            }
            match outcome? {
                Outcome::Rest(whole) => rest = Some(whole),
                Outcome::Events(events) => {
                    for (verified, told) in events {
                        bytes += told.0.len();
                        gathering.take(verified, told);
                    }
                    if bytes > LARGE && place.is_none() {
                        // It is not read any further before.
                        place = Arc::clone(&self.large).acquire_owned().await.ok();
                    }
                }
            }
        }
        let rest = rest.ok_or_else(|| Failure::answer("it breaks off"))?;
        let late = self.check_late(&mut gathering, (server, others), rules);
        let too_slow = |_| Failure::answer("its state could not be checked in time");
        let late = tokio::time::timeout(LATE_PATIENCE, late).await;
        late.map_err(too_slow)??;
        Ok(Heard {
            checked: gathering.done(),
            rest,
            place,
        })
    }

    /// Checks what keys were lacking for, with the help of others who know the events.
    async fn check_late(
        &self,
        gathering: &mut Gathering<'_>,
        (server, others): (&ServerName, &[OwnedServerName]),
        rules: &'static Rules,
    ) -> Result<(), Failure> {
        let others = others.iter().filter(|other| **other != *server);
        let first = [server.to_owned()].into_iter().chain(others.cloned());
        let first: Vec<_> = first.collect();
        self.check_aside(gathering, rules, &first).await?;
        let more = gathering.more_witnesses(&first);
        self.check_aside(gathering, rules, &more).await?;
        let mut lacking = gathering.lacking.iter();
        match lacking.find(|server| !self.verifier.is_gone(server)) {
            Some(server) => Err(Failure::Keys(server.clone())),
            None => Ok(()),
        }
    }

    async fn check_aside(
        &self,
        gathering: &mut Gathering<'_>,
        rules: &'static Rules,
        witnesses: &[OwnedServerName],
    ) -> Result<(), Failure> {
        let asking = Asking {
            patience: KEY_PATIENCE,
            witnesses,
        };
        let mut aside = std::mem::take(&mut gathering.aside).into_iter();
        gathering.lacking.clear();
        // It may be all of the answer, which is not to be held as texts and as events.
        loop {
            let some: Vec<_> = aside.by_ref().take(LATE_PIECE).collect();
            if some.is_empty() {
                return Ok(());
            }
            for (verified, told) in self.check(some, rules, asking).await? {
                gathering.take(verified, told);
            }
        }
    }

    async fn check(
        &self,
        told: Vec<Told>,
        rules: &'static Rules,
        asking: Asking<'_>,
    ) -> Result<Vec<(Result<Pdu, Dropped>, Told)>, Failure> {
        let texts = told.iter().map(|(text, _)| text.clone()).collect();
        let verified = self.verifier.verify_told(texts, rules, asking).await?;
        Ok(verified.into_iter().zip(told).collect())
    }
}

impl<'a> Gathering<'a> {
    fn new(room: &'a RoomId) -> Self {
        Self {
            room,
            checked: Checked::default(),
            aside: Vec::new(),
            lacking: BTreeSet::new(),
            residents: BTreeSet::new(),
            dropped: 0,
        }
    }

    fn take(&mut self, verified: Result<Pdu, Dropped>, (text, of_state): Told) {
        if let Err(Dropped::KeysUnknown(server)) = verified {
            self.lacking.insert(server);
            // A copy: it would hold all that arrived with it.
            self.aside.push((Bytes::copy_from_slice(&text), of_state));
            return;
        }
        if let Ok(pdu) = &verified
            && of_state
            && self.residents.len() < RESIDENTS
            && is_joined(pdu)
        {
            let server = pdu.sender().server_name();
            self.residents.insert(server.to_owned());
        }
        self.dropped += self.checked.take(self.room, verified, of_state);
    }

    /// Some servers of the room that were not asked before, and do not lack themselves.
    fn more_witnesses(&self, asked: &[OwnedServerName]) -> Vec<OwnedServerName> {
        let new = self
            .residents
            .iter()
            .filter(|server| !self.lacking.contains(*server) && !asked.contains(server));
        new.take(MORE_WITNESSES).cloned().collect()
    }

    fn done(self) -> Checked {
        let dropped = self.dropped + self.aside.len();
        if dropped > 0 {
            let room = self.room;
            tracing::info!(%room, dropped, "events of a room's state are not to be used");
        }
        self.checked
    }
}

fn is_joined(pdu: &Pdu) -> bool {
    #[derive(Deserialize)]
    struct Content {
        membership: String,
    }
    let content = || pdu.content_as::<Content>();
    pdu.event_type() == "m.room.member"
        && content().is_ok_and(|content| content.membership == "join")
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

//! Spaces: the rooms below a room, depth first, those of other servers as these describe them.
//!
//! Everything is bounded: how deep and how far is walked, how many servers are asked and for how
//! long, and what is kept of their answers. A token is where a walk stood; the next page walks there
//! again, over what is kept.
//!
//! Specification: client-server API, "Spaces"; server-server API, "Spaces".

mod link;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use homeserver_federation::{Call, Limits, Path, Peers};
use homeserver_rooms::{Description, Reader, Room, RoomError, Rooms};
use homeserver_runtime::Clock;
use quick_cache::sync::Cache;
use ruma::{OwnedRoomId, OwnedServerName, RoomId, ServerName};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;

use self::link::Link;
use super::{
    read::{ReadError, RoomReads},
    summary::{RoomSummary, is_open},
};
use crate::app::session::Session;

/// Rooms of a page unless the client says otherwise, and at most.
const DEFAULT_PAGE: usize = 50;
const MAX_PAGE: usize = 100;

/// How deep a walk goes at most, and unless the client says otherwise.
const MAX_DEPTH: usize = 50;

/// Rooms that one walk looks at.
const MAX_ROOMS: usize = 1_000;

/// Children of one room that are looked at.
const MAX_CHILDREN: usize = 500;

/// Servers that are asked for one room.
const MAX_VIA: usize = 3;

/// How long one of them may take, and all of a walk together.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
const WALK_PATIENCE: Duration = Duration::from_secs(20);

/// Bytes of an answer.
const MAX_ANSWER: usize = 2 * 1024 * 1024;

/// Answers that are kept, and for how many milliseconds.
const KEPT: usize = 500;
const KEPT_FOR: u64 = 5 * 60 * 1000;

/// A room of the tree.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct SpaceRoom {
    #[serde(flatten)]
    summary: RoomSummary,
    children_state: Vec<Value>,
}

/// What a client asks of a tree.
#[derive(Clone, Debug, Default)]
pub(crate) struct TreeRequest {
    /// Rooms at most.
    pub(crate) limit: Option<usize>,
    /// How deep.
    pub(crate) max_depth: Option<usize>,
    /// Only rooms that are suggested.
    pub(crate) suggested_only: bool,
    /// The token of an earlier page.
    pub(crate) from: Option<String>,
}

/// A page of a tree.
#[derive(Debug, Serialize)]
pub(crate) struct TreePage {
    rooms: Vec<SpaceRoom>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_batch: Option<String>,
}

/// What another server is told of a room and of the rooms right below it.
#[derive(Debug, Serialize)]
pub(crate) struct TreeForServer {
    room: SpaceRoom,
    children: Vec<RoomSummary>,
    inaccessible_children: Vec<OwnedRoomId>,
}

/// What another server answers. Children that cannot be read are left out.
#[derive(Deserialize)]
struct Answered {
    room: AnsweredRoom,
    #[serde(default)]
    children: Vec<Value>,
    #[serde(default)]
    inaccessible_children: Vec<OwnedRoomId>,
}

#[derive(Deserialize)]
struct AnsweredRoom {
    #[serde(flatten)]
    summary: RoomSummary,
    #[serde(default)]
    children_state: Vec<Value>,
}

/// What is kept of an answer.
#[derive(Debug)]
struct Kept {
    summary: RoomSummary,
    links: Vec<Link>,
    children: Vec<RoomSummary>,
    inaccessible: Vec<OwnedRoomId>,
    since: u64,
}

/// Trees of rooms. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Spaces {
    reads: RoomReads,
    rooms: Arc<Rooms>,
    peers: Peers,
    clock: Arc<dyn Clock>,
    /// By who told it, and of which room.
    kept: Arc<Cache<(OwnedServerName, OwnedRoomId), Arc<Kept>>>,
}

/// What one walk has found out.
struct Walk<'a> {
    reader: &'a Reader,
    until: Instant,
    /// Rooms as the servers of their parents described them.
    told: HashMap<OwnedRoomId, RoomSummary>,
    inaccessible: HashSet<OwnedRoomId>,
}

impl Spaces {
    /// Trees over these rooms, and those of other servers.
    pub(crate) fn new(
        reads: RoomReads,
        rooms: Arc<Rooms>,
        peers: Peers,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            reads,
            rooms,
            peers,
            clock,
            kept: Arc::new(Cache::new(KEPT)),
        }
    }

    /// A page of the tree below a room.
    pub(crate) async fn tree(
        &self,
        session: &Session,
        root: &RoomId,
        wanted: &TreeRequest,
    ) -> Result<TreePage, ReadError> {
        let limit = wanted.limit.unwrap_or(DEFAULT_PAGE).clamp(1, MAX_PAGE);
        let depth = wanted.max_depth.unwrap_or(MAX_DEPTH).min(MAX_DEPTH);
        let pinned = format!("{depth}_{}", u8::from(wanted.suggested_only));
        let skip = match &wanted.from {
            Some(from) => skipped(from, &pinned).ok_or(ReadError::BadToken)?,
            None => 0,
        };
        let position = self.rooms.store().durable();
        let reader = self.rooms.reader(session.user.clone(), position).await?;
        let mut walk = Walk {
            reader: &reader,
            until: Instant::now() + WALK_PATIENCE,
            told: HashMap::new(),
            inaccessible: HashSet::new(),
        };
        let mut ahead = vec![(root.to_owned(), Vec::new(), 0)];
        let (mut seen, mut index, mut page) = (HashSet::new(), 0, Vec::new());
        while let Some((id, via, level)) = ahead.pop() {
            if seen.len() >= MAX_ROOMS {
                break;
            }
            if !seen.insert(id.clone()) {
                continue;
            }
            let Some((summary, mut links)) = self.look(&mut walk, &id, &via).await? else {
                if level == 0 {
                    return Err(ReadError::NotInRoom);
                }
                continue;
            };
            links.retain(|link| link.suggested || !wanted.suggested_only);
            if level < depth && summary.room_type.as_deref() == Some("m.space") {
                let below = links.iter().rev();
                ahead.extend(below.map(|link| (link.room.clone(), link.via.clone(), level + 1)));
            }
            if index >= skip {
                if page.len() == limit {
                    let next_batch = Some(format!("{index}_{pinned}"));
                    return Ok(TreePage {
                        rooms: page,
                        next_batch,
                    });
                }
                page.push(SpaceRoom {
                    summary,
                    children_state: links.into_iter().map(|link| link.shown).collect(),
                });
            }
            index += 1;
        }
        Ok(TreePage {
            rooms: page,
            next_batch: None,
        })
    }

    /// A room for a reader, with the links to its children in order, if the reader may know of it.
    async fn look(
        &self,
        walk: &mut Walk<'_>,
        id: &RoomId,
        via: &[OwnedServerName],
    ) -> Result<Option<(RoomSummary, Vec<Link>)>, ReadError> {
        if let Some((room, described)) = self.here(id).await? {
            let (_, may_know) = self.reads.may_know(walk.reader, &room, &described).await?;
            if !may_know {
                return Ok(None);
            }
            let links = self.links(&room).await?;
            return Ok(Some((RoomSummary::whole(described), links)));
        }
        if walk.inaccessible.contains(id) {
            return Ok(None);
        }
        // Whoever described a room that is no space has said everything of it.
        let told = walk.told.get(id).cloned();
        let found = match told.filter(|told| told.room_type.as_deref() != Some("m.space")) {
            Some(told) => Some((told, Vec::new())),
            None => self.asked(walk, id, via).await,
        };
        let Some((summary, links)) = found else {
            return Ok(None);
        };
        let may_know = summary.is_open()
            || self
                .reads
                .is_admitted(walk.reader, &summary.allowed_room_ids)
                .await?;
        Ok(may_know.then_some((summary, links)))
    }

    /// A room as one of these servers describes it.
    async fn asked(
        &self,
        walk: &mut Walk<'_>,
        id: &RoomId,
        via: &[OwnedServerName],
    ) -> Option<(RoomSummary, Vec<Link>)> {
        let now = self.clock.unix_millis();
        let fresh = |kept: &Arc<Kept>| now.saturating_sub(kept.since) < KEPT_FOR;
        let mut found = None;
        for server in via.iter().take(MAX_VIA) {
            let key = (server.clone(), id.to_owned());
            found = self.kept.get(&key).filter(fresh);
            if found.is_some() || Instant::now() >= walk.until {
                break;
            }
            found = self.ask(server, id).await;
            if found.is_some() {
                break;
            }
        }
        let found = found?;
        let children = found.children.iter();
        walk.told
            .extend(children.map(|child| (child.room_id.clone(), child.clone())));
        walk.inaccessible.extend(found.inaccessible.iter().cloned());
        Some((found.summary.clone(), found.links.clone()))
    }

    async fn ask(&self, server: &ServerName, id: &RoomId) -> Option<Arc<Kept>> {
        let path = Path::v1("hierarchy")
            .segment(id)
            .query("suggested_only", "false");
        let limits = Limits {
            body: MAX_ANSWER,
            deadline: ANSWER_PATIENCE,
            stall: ANSWER_PATIENCE,
        };
        let answer = self.peers.ask(server, Call::get(path).limits(limits)).await;
        let answer = answer.and_then(|answer| answer.read::<Answered>());
        let answered = match answer {
            Ok(answered) if answered.room.summary.room_id == id => answered,
            Ok(_) => return None,
            Err(error) => {
                tracing::debug!(%server, room = %id, %error, "a space is not described");
                return None;
            }
        };
        let links = answered.room.children_state.iter().take(MAX_CHILDREN);
        let mut links: Vec<_> = links.filter_map(Link::read).collect();
        links.sort_by(Link::order);
        // A space says nothing of rooms that are not below it.
        let below: HashSet<_> = links.iter().map(|link| link.room.clone()).collect();
        let inaccessible = answered.inaccessible_children.into_iter();
        let inaccessible = inaccessible.filter(|id| below.contains(id));
        let inaccessible: Vec<_> = inaccessible.take(MAX_CHILDREN).collect();
        let children = answered.children.into_iter().take(MAX_CHILDREN);
        let kept = Arc::new(Kept {
            summary: answered.room.summary,
            links,
            children: children
                .filter_map(|child| serde_json::from_value::<RoomSummary>(child).ok())
                .filter(|child| below.contains(&child.room_id))
                .collect(),
            inaccessible,
            since: self.clock.unix_millis(),
        });
        let key = (server.to_owned(), id.to_owned());
        self.kept.insert(key, Arc::clone(&kept));
        Some(kept)
    }

    /// A room whose state is kept up to date here.
    async fn here(&self, id: &RoomId) -> Result<Option<(Arc<Room>, Description)>, RoomError> {
        let Some(room) = self.rooms.room(id).await? else {
            return Ok(None);
        };
        if !self.rooms.is_resident(&room).await? {
            return Ok(None);
        }
        let position = self.rooms.store().durable();
        let described = self.rooms.description(&room, position).await?;
        Ok(Some((room, described)))
    }

    async fn links(&self, room: &Arc<Room>) -> Result<Vec<Link>, RoomError> {
        let position = self.rooms.store().durable();
        let events = self.rooms.space_children(room, position, MAX_CHILDREN);
        let mut links: Vec<_> = events.await?.iter().filter_map(Link::of).collect();
        links.sort_by(Link::order);
        Ok(links)
    }

    /// A room and the rooms right below it, for another server. `None` if it is not here, or that
    /// server may not know of it.
    pub(crate) async fn for_server(
        &self,
        origin: &ServerName,
        id: &RoomId,
        suggested_only: bool,
    ) -> Result<Option<TreeForServer>, RoomError> {
        let Some((room, described)) = self.here(id).await? else {
            return Ok(None);
        };
        if !self.server_may_know(origin, &room, &described).await? {
            return Ok(None);
        }
        let mut links = self.links(&room).await?;
        links.retain(|link| link.suggested || !suggested_only);
        let (mut children, mut inaccessible_children) = (Vec::new(), Vec::new());
        for link in &links {
            let Some((room, described)) = self.here(&link.room).await? else {
                continue;
            };
            if self.server_may_know(origin, &room, &described).await? {
                children.push(RoomSummary::whole(described));
            } else {
                inaccessible_children.push(link.room.clone());
            }
        }
        let room = SpaceRoom {
            summary: RoomSummary::whole(described),
            children_state: links.into_iter().map(|link| link.shown).collect(),
        };
        Ok(Some(TreeForServer {
            room,
            children,
            inaccessible_children,
        }))
    }

    async fn server_may_know(
        &self,
        server: &ServerName,
        room: &Room,
        described: &Description,
    ) -> Result<bool, RoomError> {
        let at = self.rooms.store().durable();
        if is_open(described) || self.rooms.server_joined(room, server, at).await? {
            return Ok(true);
        }
        for id in described.allowed_rooms.iter().take(MAX_PAGE) {
            if let Some(room) = self.rooms.room(id).await?
                && self.rooms.server_joined(&room, server, at).await?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The summary of a room that is not here, as one of these servers gives it.
    pub(crate) async fn summary_elsewhere(
        &self,
        session: Option<&Session>,
        id: &RoomId,
        via: &[OwnedServerName],
    ) -> Result<Option<RoomSummary>, ReadError> {
        // Strangers have no other servers called.
        if session.is_none() || self.here(id).await?.is_some() {
            return Ok(None);
        }
        let mut found = None;
        for server in via.iter().take(MAX_VIA) {
            found = self.ask(server, id).await;
            if found.is_some() {
                break;
            }
        }
        let Some(summary) = found.map(|found| found.summary.clone()) else {
            return Ok(None);
        };
        let mut may_know = summary.is_open();
        if let (false, Some(session)) = (may_know, session) {
            let position = self.rooms.store().durable();
            let reader = self.rooms.reader(session.user.clone(), position).await?;
            may_know = self
                .reads
                .is_admitted(&reader, &summary.allowed_room_ids)
                .await?;
        }
        Ok(may_know.then_some(summary))
    }
}

/// How many rooms a token passes over, if it is of the same walk.
fn skipped(token: &str, pinned: &str) -> Option<usize> {
    let (skip, rest) = token.split_once('_')?;
    let skip: usize = skip.parse().ok()?;
    (rest == pinned && (1..MAX_ROOMS).contains(&skip)).then_some(skip)
}

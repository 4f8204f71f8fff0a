//! The rooms that this server lists for everybody.
//!
//! Specification: client-server API, "Published room directory".

use std::sync::Arc;

use homeserver_federation::{Call, CallError, Path, Peers};
use homeserver_rooms::{Description, DirectoryPlace, RoomError, RoomNumber, Rooms};
use homeserver_storage::Direction;
use ruma::{OwnedServerName, ServerName, directory::PublicRoomsChunk};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{read::ReadError, summary::RoomSummary};

/// Rooms of a page unless the client says otherwise.
const DEFAULT_PAGE: usize = 50;

/// Rooms of a page at most.
const MAX_PAGE: usize = 500;

/// Rooms up to which they are counted. Of more there is no estimate.
const MAX_COUNTED: usize = 1_000;

/// Rooms looked at for one page. A page that finds too little among so many ends early, with a
/// token to go on.
const LOOKED_AT_PER_PAGE: usize = 1_000;

/// Places of the directory read in one go.
const ROOMS_AT_ONCE: usize = 100;

/// What a client asks of the directory.
#[derive(Clone, Debug, Default)]
pub(crate) struct PublicRoomsRequest {
    /// Rooms at most.
    pub(crate) limit: Option<usize>,
    /// The token of an earlier page.
    pub(crate) since: Option<String>,
    /// A text in name, topic or alias.
    pub(crate) term: Option<String>,
    /// Room types, `None` for rooms without one; empty for all rooms.
    pub(crate) types: Vec<Option<String>>,
}

/// A page of the directory.
#[derive(Debug, Default)]
pub(crate) struct Listed {
    /// The rooms, largest first.
    pub(crate) rooms: Vec<RoomSummary>,
    /// The token of the following page.
    pub(crate) next: Option<String>,
    /// The token of the preceding page.
    pub(crate) previous: Option<String>,
    /// How many rooms are listed, whatever was searched for; `None` if there are very many.
    pub(crate) total: Option<usize>,
}

/// A place between two rooms of the directory. A room that grows or shrinks between two pages may
/// be shown twice or not at all; no other room is touched by that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Since {
    After(DirectoryPlace),
    Before(DirectoryPlace),
}

impl Since {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('_');
        let kind = parts.next()?;
        let joined = parts.next()?.parse().ok()?;
        let room = RoomNumber(parts.next()?.parse().ok()?);
        let place = DirectoryPlace { joined, room };
        match (kind, parts.next()) {
            ("a", None) => Some(Self::After(place)),
            ("b", None) => Some(Self::Before(place)),
            _ => None,
        }
    }

    fn to_token(self) -> String {
        let (kind, DirectoryPlace { joined, room }) = match self {
            Self::After(place) => ("a", place),
            Self::Before(place) => ("b", place),
        };
        format!("{kind}_{joined}_{}", room.0)
    }
}

/// The directory of this server. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct PublicRooms {
    rooms: Arc<Rooms>,
    server_name: OwnedServerName,
    peers: Peers,
}

/// A page of another server's directory.
#[derive(Debug, Default, Serialize)]
pub(crate) struct ListedElsewhere {
    chunk: Vec<PublicRoomsChunk>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_batch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_batch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_room_count_estimate: Option<u64>,
}

/// What another server answers. Rooms that cannot be read are left out.
#[derive(Deserialize)]
struct PageElsewhere {
    chunk: Vec<Value>,
    next_batch: Option<String>,
    prev_batch: Option<String>,
    total_room_count_estimate: Option<u64>,
}

impl PublicRooms {
    /// The directory of these rooms. `peers` are asked for theirs.
    pub(crate) fn new(rooms: Arc<Rooms>, server_name: OwnedServerName, peers: Peers) -> Self {
        Self {
            rooms,
            server_name,
            peers,
        }
    }

    /// A page of the directory of another server.
    pub(crate) async fn list_of(
        &self,
        server: &ServerName,
        wanted: &PublicRoomsRequest,
    ) -> Result<ListedElsewhere, CallError> {
        let limit = wanted.limit.unwrap_or(DEFAULT_PAGE).clamp(1, MAX_PAGE);
        let path = Path::v1("publicRooms");
        let call = if wanted.term.is_none() && wanted.types.is_empty() {
            let path = path.query("limit", limit.to_string());
            Call::get(match &wanted.since {
                Some(since) => path.query("since", since),
                None => path,
            })
        } else {
            let mut body = json!({ "limit": limit, "filter": {} });
            if let Some(since) = &wanted.since {
                body["since"] = since.as_str().into();
            }
            if let Some(term) = &wanted.term {
                body["filter"]["generic_search_term"] = term.as_str().into();
            }
            if !wanted.types.is_empty() {
                body["filter"]["room_types"] = json!(wanted.types);
            }
            Call::post(path, body.to_string())
        };
        let answer = self.peers.ask(server, call.urgent()).await?;
        let page: PageElsewhere = answer.read()?;
        let rooms = page.chunk.into_iter().take(MAX_PAGE);
        Ok(ListedElsewhere {
            chunk: rooms
                .filter_map(|room| serde_json::from_value(room).ok())
                .collect(),
            next_batch: page.next_batch,
            prev_batch: page.prev_batch,
            total_room_count_estimate: page.total_room_count_estimate,
        })
    }

    /// Whose directory it is.
    pub(crate) fn server_name(&self) -> &ServerName {
        &self.server_name
    }

    /// A page.
    pub(crate) async fn list(&self, wanted: &PublicRoomsRequest) -> Result<Listed, ReadError> {
        let limit = wanted.limit.unwrap_or(DEFAULT_PAGE).clamp(1, MAX_PAGE);
        let since = match &wanted.since {
            Some(since) => Some(Since::parse(since).ok_or(ReadError::BadToken)?),
            None => None,
        };
        let counted = self.rooms.count_published(MAX_COUNTED).await?;
        let (mut page, stopped) = self.matching(since, limit, wanted).await?;
        let is_backward = matches!(since, Some(Since::Before(_)));
        if is_backward {
            page.reverse();
        }
        let first = page.first().map(|(place, _)| *place);
        let last = page.last().map(|(place, _)| *place);
        let (before, after) = if is_backward {
            (stopped, last)
        } else {
            (first.filter(|_| since.is_some()), stopped)
        };
        Ok(Listed {
            next: after.map(|place| Since::After(place).to_token()),
            previous: before.map(|place| Since::Before(place).to_token()),
            rooms: page.into_iter().map(|(_, summary)| summary).collect(),
            total: (counted < MAX_COUNTED).then_some(counted),
        })
    }

    /// Up to `limit` matching rooms from a place on, in the direction of `since`, and the place to
    /// go on from if there may be more.
    async fn matching(
        &self,
        since: Option<Since>,
        limit: usize,
        wanted: &PublicRoomsRequest,
    ) -> Result<(Vec<(DirectoryPlace, RoomSummary)>, Option<DirectoryPlace>), RoomError> {
        let (mut at, direction) = match since {
            None => (None, Direction::Forward),
            Some(Since::After(place)) => (Some(place), Direction::Forward),
            Some(Since::Before(place)) => (Some(place), Direction::Backward),
        };
        let position = self.rooms.store().durable();
        let mut page: Vec<(DirectoryPlace, RoomSummary)> = Vec::new();
        for _ in 0..LOOKED_AT_PER_PAGE / ROOMS_AT_ONCE {
            let listed = self.rooms.published(at, direction, ROOMS_AT_ONCE).await?;
            let is_last = listed.len() < ROOMS_AT_ONCE;
            for (place, room) in listed {
                at = Some(place);
                let described = self.rooms.description(&room, position).await?;
                if !matches(&described, wanted) {
                    continue;
                }
                if page.len() == limit {
                    let stopped = page.last().map(|(place, _)| *place);
                    return Ok((page, stopped));
                }
                page.push((place, RoomSummary::listed(described)));
            }
            if is_last {
                return Ok((page, None));
            }
        }
        Ok((page, at))
    }
}

fn matches(described: &Description, wanted: &PublicRoomsRequest) -> bool {
    let type_matches = wanted.types.is_empty() || wanted.types.contains(&described.room_type);
    let Some(term) = &wanted.term else {
        return type_matches;
    };
    let term = term.to_lowercase();
    let alias = described
        .canonical_alias
        .as_ref()
        .map(|alias| alias.as_str());
    let texts = [described.name.as_deref(), described.topic.as_deref(), alias];
    let mut texts = texts.into_iter().flatten();
    type_matches && texts.any(|text| text.to_lowercase().contains(&term))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn tokens_read_back(joined: u64, room: u64, is_before: bool) {
            let place = DirectoryPlace { joined, room: RoomNumber(room) };
            let since = if is_before { Since::Before(place) } else { Since::After(place) };
            prop_assert_eq!(Since::parse(&since.to_token()), Some(since));
        }

        #[test]
        fn any_text_is_answered(text in ".*") {
            if let Some(since) = Since::parse(&text) {
                prop_assert_eq!(Since::parse(&since.to_token()), Some(since));
            }
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "a", "a_1", "a_1_2_3", "c_1_2", "a_x_2", "a_1_-2"] {
            assert_eq!(Since::parse(text), None, "{text}");
        }
    }
}

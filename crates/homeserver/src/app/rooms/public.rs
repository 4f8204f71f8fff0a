//! The rooms that this server lists for everybody.
//!
//! Specification: client-server API, "Published room directory".

use std::{cmp::Reverse, sync::Arc};

use homeserver_rooms::{Description, Room, RoomError, RoomNumber, Rooms};
use ruma::{OwnedServerName, ServerName};

use super::{read::ReadError, summary::RoomSummary};

/// Rooms of a page unless the client says otherwise.
const DEFAULT_PAGE: usize = 50;

/// Rooms of a page at most.
const MAX_PAGE: usize = 500;

/// Rooms that are listed at most; those published first come first.
const MAX_LISTED: usize = 10_000;

/// Numbers of published rooms read in one go.
const ROOMS_AT_ONCE: usize = 500;

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
    /// How many rooms are listed, whatever was searched for.
    pub(crate) total: usize,
}

/// Where a room stands in the directory: the largest first, among equals the older.
type Rank = (Reverse<u64>, u64);

/// A place between two rooms of the directory. A room that grows or shrinks between two pages may
/// be shown twice or not at all; no other room is touched by that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Since {
    After(Rank),
    Before(Rank),
}

impl Since {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('_');
        let kind = parts.next()?;
        let joined = Reverse(parts.next()?.parse().ok()?);
        let rank = (joined, parts.next()?.parse().ok()?);
        match (kind, parts.next()) {
            ("a", None) => Some(Self::After(rank)),
            ("b", None) => Some(Self::Before(rank)),
            _ => None,
        }
    }

    fn to_token(self) -> String {
        match self {
            Self::After((Reverse(joined), room)) => format!("a_{joined}_{room}"),
            Self::Before((Reverse(joined), room)) => format!("b_{joined}_{room}"),
        }
    }
}

/// The directory of this server. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct PublicRooms {
    rooms: Arc<Rooms>,
    server_name: OwnedServerName,
}

impl PublicRooms {
    /// The directory of these rooms.
    pub(crate) fn new(rooms: Arc<Rooms>, server_name: OwnedServerName) -> Self {
        Self { rooms, server_name }
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
        let all = self.ranked().await?;
        let total = all.len();
        let (mut page, more) = self.matching(&all, since, limit, wanted).await?;
        let is_backward = matches!(since, Some(Since::Before(_)));
        if is_backward {
            page.reverse();
        }
        let before = page.first().map(|(rank, _)| Since::Before(*rank));
        let after = page.last().map(|(rank, _)| Since::After(*rank));
        let has_before = if is_backward { more } else { since.is_some() };
        let has_after = is_backward || more;
        Ok(Listed {
            next: after.filter(|_| has_after).map(Since::to_token),
            previous: before.filter(|_| has_before).map(Since::to_token),
            rooms: page.into_iter().map(|(_, summary)| summary).collect(),
            total,
        })
    }

    /// All listed rooms in the order of the directory.
    async fn ranked(&self) -> Result<Vec<(Rank, Arc<Room>)>, RoomError> {
        let position = self.rooms.store().durable();
        let mut ranked: Vec<(Rank, Arc<Room>)> = Vec::new();
        let mut after: Option<RoomNumber> = None;
        while ranked.len() < MAX_LISTED {
            let rooms = self.rooms.published(after, ROOMS_AT_ONCE).await?;
            after = rooms.last().map(|room| room.number);
            let is_last = rooms.len() < ROOMS_AT_ONCE;
            for room in rooms {
                let joined = self.rooms.state_at(room.number, position).await?.joined;
                ranked.push(((Reverse(joined), room.number.0), room));
            }
            if is_last {
                break;
            }
        }
        ranked.sort_unstable_by_key(|(rank, _)| *rank);
        Ok(ranked)
    }

    /// Up to `limit` matching rooms from a place on, in the direction of `since`, and whether there
    /// are more.
    async fn matching(
        &self,
        all: &[(Rank, Arc<Room>)],
        since: Option<Since>,
        limit: usize,
        wanted: &PublicRoomsRequest,
    ) -> Result<(Vec<(Rank, RoomSummary)>, bool), RoomError> {
        let candidates: Vec<&(Rank, Arc<Room>)> = match since {
            None => all.iter().collect(),
            Some(Since::After(place)) => all.iter().filter(|(rank, _)| *rank > place).collect(),
            Some(Since::Before(place)) => {
                let before = all.iter().filter(|(rank, _)| *rank < place);
                before.rev().collect()
            }
        };
        let position = self.rooms.store().durable();
        let mut page = Vec::new();
        for (rank, room) in candidates {
            let described = self.rooms.description(room, position).await?;
            if !matches(&described, wanted) {
                continue;
            }
            if page.len() == limit {
                return Ok((page, true));
            }
            page.push((*rank, RoomSummary::listed(described)));
        }
        Ok((page, false))
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
            let rank = (Reverse(joined), room);
            let since = if is_before { Since::Before(rank) } else { Since::After(rank) };
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

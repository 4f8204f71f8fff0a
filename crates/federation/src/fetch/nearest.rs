//! Which event is nearest to a time, as another server sees it. It says an id only: the event is
//! fetched, checked and judged like any other.
//!
//! Specification: server-server API, `timestamp_to_event`.

use std::time::Duration;

use homeserver_rooms::Towards;
use ruma::{OwnedEventId, RoomId, ServerName};
use serde::Deserialize;

use super::{FetchError, Fetcher, limits};
use crate::{Call, Path};

/// Bytes of an answer: an id and a time.
const BODY: usize = 64 * 1024;

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(8);

/// What a server says is nearest to a time.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct NearestElsewhere {
    /// The event.
    pub event_id: OwnedEventId,
    /// Its time.
    pub origin_server_ts: u64,
}

impl Fetcher {
    /// The event of a room that is nearest to a time, in milliseconds, in a direction.
    ///
    /// # Errors
    /// When the server knows none, or does not answer as asked.
    pub async fn nearest(
        &self,
        server: &ServerName,
        room: &RoomId,
        (time, towards): (u64, Towards),
    ) -> Result<NearestElsewhere, FetchError> {
        let direction = match towards {
            Towards::Newer => "f",
            Towards::Older => "b",
        };
        let path = Path::v1("timestamp_to_event").segment(room);
        let path = path.query("ts", time.to_string()).query("dir", direction);
        let call = Call::get(path).limits(limits(BODY, PATIENCE));
        let nearest: NearestElsewhere = self.peers.ask(server, call).await?.read()?;
        let in_direction = match towards {
            Towards::Newer => nearest.origin_server_ts >= time,
            Towards::Older => nearest.origin_server_ts <= time,
        };
        if in_direction {
            Ok(nearest)
        } else {
            Err(FetchError::NotAsAsked("an event in the other direction"))
        }
    }
}

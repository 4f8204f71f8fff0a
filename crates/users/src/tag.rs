//! Room tags: the `m.tag` account data of a room, changed one tag at a time.
//!
//! Spec: Client-Server API, "Room Tagging".

use homeserver_storage::Position;
use serde_json::{
    Map, Value,
    value::{RawValue, to_raw_value},
};

use crate::{
    Failure, UserNumber,
    account_data::{AccountData, AccountDataError, Scope},
};

/// Tags one room may have.
pub const MAX_TAGS: usize = 100;

/// Bytes of a tag's name.
pub const MAX_TAG_NAME: usize = 255;

const TAGS: &str = "m.tag";

/// A tag was not set.
#[derive(Debug, thiserror::Error)]
pub enum TagError {
    /// The name is longer than [`MAX_TAG_NAME`] bytes.
    #[error("the tag's name is too long")]
    NameTooLong,
    /// The room has [`MAX_TAGS`] tags.
    #[error("the room has too many tags")]
    TooMany,
    /// The account data could not be changed.
    #[error(transparent)]
    AccountData(#[from] AccountDataError),
}

impl AccountData {
    /// The tags of a room, by name; empty if there are none.
    pub async fn tags(&self, user: UserNumber, room: u64) -> Result<Map<String, Value>, Failure> {
        let datum = self.one(user, Scope::Room(room), TAGS).await?;
        Ok(tags_in(datum.as_ref().map(|datum| &*datum.content)))
    }

    /// Sets a tag of a room.
    pub async fn set_tag(
        &self,
        user: UserNumber,
        room: u64,
        tag: &str,
        info: &Map<String, Value>,
    ) -> Result<Option<Position>, TagError> {
        if tag.len() > MAX_TAG_NAME {
            return Err(TagError::NameTooLong);
        }
        let full = std::sync::atomic::AtomicBool::new(false);
        let decide = |content: Option<&RawValue>| {
            let mut tags = tags_in(content);
            tags.insert(tag.to_owned(), Value::Object(info.clone()));
            full.store(tags.len() > MAX_TAGS, std::sync::atomic::Ordering::Relaxed);
            if tags.len() > MAX_TAGS {
                None
            } else {
                content_of(tags)
            }
        };
        let position = self.update(user, Scope::Room(room), TAGS, decide).await?;
        match position {
            None if full.into_inner() => Err(TagError::TooMany),
            position => Ok(position),
        }
    }

    /// Removes a tag of a room. Gives `None` if the room had no such tag.
    pub async fn remove_tag(
        &self,
        user: UserNumber,
        room: u64,
        tag: &str,
    ) -> Result<Option<Position>, AccountDataError> {
        let decide = |content: Option<&RawValue>| {
            let mut tags = tags_in(content);
            tags.remove(tag)?;
            content_of(tags)
        };
        self.update(user, Scope::Room(room), TAGS, decide).await
    }
}

/// Clients may have written anything as `m.tag`; what is not a map of tags counts as none.
fn tags_in(content: Option<&RawValue>) -> Map<String, Value> {
    let content = content.and_then(|content| serde_json::from_str::<Value>(content.get()).ok());
    match content {
        Some(Value::Object(mut content)) => match content.remove("tags") {
            Some(Value::Object(tags)) => tags,
            _ => Map::new(),
        },
        _ => Map::new(),
    }
}

fn content_of(tags: Map<String, Value>) -> Option<Box<RawValue>> {
    let mut content = Map::new();
    content.insert("tags".to_owned(), Value::Object(tags));
    to_raw_value(&content).ok()
}

//! Stored filters: JSON under an id that is made from the JSON, so that storing the same filter
//! again (clients do at every start) gives the same id and writes nothing.
//!
//! Spec: Client-Server API, "Filtering".

use homeserver_storage::Batch;
use serde_json::value::RawValue;
use xxhash_rust::xxh3::xxh3_128;

use crate::{Failure, UserNumber, ground::Ground, tables::FILTERS};

/// Filters one user may store.
pub const MAX_FILTERS: usize = 1_000;

/// Bytes of one filter.
pub const MAX_FILTER: usize = 64 * 1024;

/// A filter was not stored.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The user has [`MAX_FILTERS`] filters.
    #[error("the user has too many filters")]
    TooMany,
    /// The filter is longer than [`MAX_FILTER`] bytes.
    #[error("the filter is too large")]
    TooLarge,
    /// The store could not do it.
    #[error(transparent)]
    Failure(#[from] Failure),
}

/// The stored filters of this server's users. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Filters {
    ground: Ground,
}

impl Filters {
    pub(crate) fn new(ground: Ground) -> Self {
        Self { ground }
    }

    /// Stores a filter and gives its id: 32 hexadecimal digits.
    pub async fn store(&self, user: UserNumber, filter: &RawValue) -> Result<String, FilterError> {
        let json = filter.get();
        if json.len() > MAX_FILTER {
            return Err(FilterError::TooLarge);
        }
        let hash = xxh3_128(json.as_bytes());
        let key = (user.0, hash);
        let stored = self
            .ground
            .store
            .get(&FILTERS, &key)
            .await
            .map_err(Failure::from)?;
        if stored.is_none() {
            let filters = self
                .ground
                .scan_prefix(&FILTERS, &user.0, MAX_FILTERS)
                .await?;
            if filters.len() >= MAX_FILTERS {
                return Err(FilterError::TooMany);
            }
            let mut batch = Batch::new();
            batch.put(&FILTERS, &key, &json.as_bytes().to_vec().into());
            self.ground
                .store
                .commit(batch)
                .await
                .map_err(Failure::from)?;
        }
        Ok(format!("{hash:032x}"))
    }

    /// The filter that was stored under this id by this user.
    pub async fn one(&self, user: UserNumber, id: &str) -> Result<Option<Box<RawValue>>, Failure> {
        let digits_only = id.len() == 32 && !id.starts_with('+');
        let Some(hash) = u128::from_str_radix(id, 16).ok().filter(|_| digits_only) else {
            return Ok(None);
        };
        let Some(json) = self.ground.store.get(&FILTERS, &(user.0, hash)).await? else {
            return Ok(None);
        };
        let filter = serde_json::from_slice(&json).map_err(|_| Failure::Damaged("filter"))?;
        Ok(Some(filter))
    }
}

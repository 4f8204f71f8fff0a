//! Profiles: a user's fields, `displayname` and `avatar_url` among them, each any JSON value.
//!
//! A profile is one row, so that its limit as a whole holds under concurrent changes. Telling
//! rooms about a new name is not done here.
//!
//! Spec: Client-Server API, "Profiles".

use std::collections::BTreeMap;

use homeserver_storage::{Batch, Position};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    Failure, UserNumber,
    ground::{Attempt, Ground, MAX_ATTEMPTS},
    journal,
    tables::PROFILES,
};

/// Bytes of a whole profile, written as one JSON object.
pub const MAX_PROFILE: usize = 64 * 1024;

/// Bytes of a field's name.
pub const MAX_FIELD_NAME: usize = 255;

/// Row of [`PROFILES`]: field name → JSON value as text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProfileRow(BTreeMap<String, String>);
homeserver_storage::row!(ProfileRow, 1);

/// A profile was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The field's name is longer than [`MAX_FIELD_NAME`] bytes, or empty.
    #[error("the name of the profile field is too long or empty")]
    KeyTooLarge,
    /// The whole profile would be [`MAX_PROFILE`] bytes or more.
    #[error("the profile would be too large")]
    ProfileTooLarge,
    /// The store could not do it.
    #[error(transparent)]
    Failure(#[from] Failure),
}

/// All fields of a profile, by name.
pub type Profile = BTreeMap<String, Box<RawValue>>;

/// The profiles of this server's users. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Profiles {
    ground: Ground,
}

impl Profiles {
    pub(crate) fn new(ground: Ground) -> Self {
        Self { ground }
    }

    /// The whole profile; empty if nothing was ever set.
    pub async fn all(&self, user: UserNumber) -> Result<Profile, Failure> {
        let row = self.row(user).await?;
        let fields = row.unwrap_or_default().0.into_iter();
        fields.map(|(name, json)| Ok((name, raw(json)?))).collect()
    }

    /// One field, as JSON.
    pub async fn field(
        &self,
        user: UserNumber,
        name: &str,
    ) -> Result<Option<Box<RawValue>>, Failure> {
        let row = self.row(user).await?;
        row.and_then(|mut row| row.0.remove(name))
            .map(raw)
            .transpose()
    }

    /// One field, if it is a string: `displayname` and `avatar_url` are.
    pub async fn text(&self, user: UserNumber, name: &str) -> Result<Option<String>, Failure> {
        let row = self.row(user).await?;
        let json = row.and_then(|mut row| row.0.remove(name));
        Ok(json.and_then(|json| serde_json::from_str(&json).ok()))
    }

    /// Sets a field. Gives the position of the change, `None` if the field had this value.
    pub async fn set(
        &self,
        user: UserNumber,
        name: &str,
        value: &RawValue,
    ) -> Result<Option<Position>, ProfileError> {
        if name.is_empty() || name.len() > MAX_FIELD_NAME {
            return Err(ProfileError::KeyTooLarge);
        }
        let value = value.get();
        self.change(user, |fields| {
            fields.insert(name.to_owned(), value.to_owned());
        })
        .await
    }

    /// Removes a field. Gives the position of the change, `None` if there was no such field.
    pub async fn remove(
        &self,
        user: UserNumber,
        name: &str,
    ) -> Result<Option<Position>, ProfileError> {
        self.change(user, |fields| {
            fields.remove(name);
        })
        .await
    }

    /// Removes all fields, as for an erased account.
    pub async fn clear(&self, user: UserNumber) -> Result<Option<Position>, ProfileError> {
        self.change(user, BTreeMap::clear).await
    }

    async fn row(&self, user: UserNumber) -> Result<Option<ProfileRow>, Failure> {
        Ok(self.ground.store.get(&PROFILES, &user.0).await?)
    }

    async fn change(
        &self,
        user: UserNumber,
        apply: impl Fn(&mut BTreeMap<String, String>) + Send + Sync,
    ) -> Result<Option<Position>, ProfileError> {
        for _ in 0..MAX_ATTEMPTS {
            let before = self.row(user).await?;
            let mut after = before.clone().unwrap_or_default();
            apply(&mut after.0);
            if after == before.clone().unwrap_or_default() {
                return Ok(None);
            }
            if size(&after.0) >= MAX_PROFILE {
                return Err(ProfileError::ProfileTooLarge);
            }
            let mut batch = Batch::new();
            match &before {
                Some(before) => batch.assert_value(&PROFILES, &user.0, before),
                None => batch.assert_absent(&PROFILES, &user.0),
            };
            batch.put(&PROFILES, &user.0, &after);
            batch.append(
                &journal::entry(journal::PROFILE_CHANGED, &[user.0]),
                &[journal::user(user)],
            );
            if let Attempt::Done(positions) = self.ground.attempt(batch).await? {
                return Ok(Some(positions.first()));
            }
        }
        Err(Failure::Busy.into())
    }
}

/// Bytes of the fields written as one JSON object; escapes in names are not counted.
fn size(fields: &BTreeMap<String, String>) -> usize {
    let quotes_colon_comma = 4;
    let each = fields
        .iter()
        .map(|(name, json)| name.len() + json.len() + quotes_colon_comma);
    each.sum::<usize>() + 1
}

fn raw(json: String) -> Result<Box<RawValue>, Failure> {
    RawValue::from_string(json).map_err(|_| Failure::Damaged("profile field"))
}

//! Profiles of users of other servers, asked for when they are wanted and remembered for a short
//! while.
//!
//! Specification: server-server API, "Querying for information".

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use homeserver_users::{MAX_FIELD_NAME, MAX_PROFILE, Profile};
use http::StatusCode;
use quick_cache::Weighter;
use ruma::{OwnedUserId, UserId};
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::RemoteUsers;
use crate::{Call, CallError, Limits, Path};

/// How long a profile is remembered.
const REMEMBERED: Duration = Duration::from_mins(1);

/// How long a client waits for one, the turn of the call included.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of an answer: of a whole profile, with room for how it is written.
const MAX_ANSWER: usize = 2 * MAX_PROFILE;

/// A profile, or that there is none, and how long that is remembered.
#[derive(Clone, Debug)]
pub(super) struct CachedProfile {
    profile: Option<Arc<BTreeMap<String, String>>>,
    /// On the monotonic clock.
    until: Duration,
}

/// Weighs profiles by their bytes.
#[derive(Clone, Debug)]
pub(super) struct ByBytes;

impl Weighter<OwnedUserId, CachedProfile> for ByBytes {
    fn weight(&self, user: &OwnedUserId, known: &CachedProfile) -> u64 {
        let fields = known.profile.iter().flat_map(|fields| fields.iter());
        let fields = fields.map(|(name, json)| name.len() + json.len() + 100);
        (fields.sum::<usize>() + user.as_str().len() + 200) as u64
    }
}

impl RemoteUsers {
    /// The profile of a user of another server; `None` if that server knows none.
    ///
    /// # Errors
    /// When the server cannot be asked, or does not answer as it should.
    pub async fn profile(&self, user: &UserId) -> Result<Option<Profile>, CallError> {
        let inner = &*self.inner;
        let now = inner.runtime.clock.monotonic();
        let known = inner.profiles.get(user).filter(|known| known.until > now);
        let profile = if let Some(known) = known {
            known.profile
        } else {
            let asked = timeout(PATIENCE, self.ask_profile(user)).await;
            let profile = asked.unwrap_or(Err(CallError::Busy))?.map(Arc::new);
            let known = CachedProfile {
                profile: profile.clone(),
                until: now + REMEMBERED,
            };
            inner.profiles.insert(user.to_owned(), known);
            profile
        };
        let Some(profile) = profile else {
            return Ok(None);
        };
        let raw = |json: &String| RawValue::from_string(json.clone());
        let fields = profile.iter();
        let fields = fields.map(|(name, json)| Ok((name.clone(), raw(json)?)));
        let fields: Result<Profile, serde_json::Error> = fields.collect();
        let fields = fields.map_err(|error| CallError::BadAnswer(error.to_string()))?;
        Ok(Some(fields))
    }

    async fn ask_profile(
        &self,
        user: &UserId,
    ) -> Result<Option<BTreeMap<String, String>>, CallError> {
        let path = Path::v1("query/profile").query("user_id", user.as_str());
        let limits = Limits {
            body: MAX_ANSWER,
            deadline: PATIENCE,
            stall: PATIENCE,
        };
        let call = Call::get(path).limits(limits);
        let answer = match self.inner.peers.ask(user.server_name(), call).await {
            Ok(answer) => answer,
            Err(CallError::Refused {
                status: StatusCode::NOT_FOUND,
                ..
            }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let fields: BTreeMap<String, Box<RawValue>> = answer.read()?;
        let fields = fields
            .into_iter()
            .filter(|(name, _)| !name.is_empty() && name.len() <= MAX_FIELD_NAME)
            .map(|(name, json)| (name, json.get().to_owned()));
        let fields: BTreeMap<String, String> = fields.collect();
        let bytes: usize = fields
            .iter()
            .map(|(name, json)| name.len() + json.len())
            .sum();
        if bytes > MAX_PROFILE {
            let message = "the profile is too large";
            return Err(CallError::BadAnswer(message.to_owned()));
        }
        Ok(Some(fields))
    }
}

#[cfg(test)]
mod tests {
    use quick_cache::sync::Cache;
    use ruma::user_id;

    use super::*;

    #[test]
    fn large_profiles_make_each_other_go() {
        let most = 10 * MAX_PROFILE as u64;
        let cache = Cache::with_weighter(500, most, ByBytes);
        for number in 0..100 {
            let fields = BTreeMap::from([("displayname".to_owned(), "x".repeat(MAX_PROFILE))]);
            let known = CachedProfile {
                profile: Some(Arc::new(fields)),
                until: Duration::ZERO,
            };
            let user = OwnedUserId::try_from(format!("@user{number}:there.example"));
            cache.insert(user.unwrap(), known);
            assert!(cache.weight() <= most);
        }
        let none = CachedProfile {
            profile: None,
            until: Duration::ZERO,
        };
        let weight = ByBytes.weight(&user_id!("@nobody:there.example").to_owned(), &none);
        assert!(weight < 300, "{weight}");
    }
}

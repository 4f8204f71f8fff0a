//! What clients here ask about keys of users of other servers: grouped by server, all servers at once,
//! for no longer than the client waits. Servers that did not answer are named.

use std::{collections::BTreeMap, time::Duration};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use homeserver_rooms::RoomNumber;
use homeserver_users::{
    CrossSigningKeys, Failure, RemoteDevice, RemoteDeviceList, UserNumber, Witness,
};
use ruma::{OwnedDeviceId, OwnedServerName, OwnedUserId, ServerName, UserId};
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::{
    Claims, RemoteUsers, UsersError,
    ask::{self, ClaimedByUser, USERS_IN_CALL},
    met::SeenStates,
};
use crate::CallError;

/// Servers asked at once for one client.
const SERVERS_AT_ONCE: usize = 20;

/// Lists of one server that are fetched one by one, with the numbers of their updates. More are asked
/// for together; the first update of each leads to a fetch.
const FETCHED_SINGLY: usize = 4;

/// Servers that did not answer, and why.
pub type ServerFailures = BTreeMap<OwnedServerName, CallError>;

/// What was found of users' keys.
#[derive(Debug, Default)]
pub struct FoundKeys {
    /// Identity keys by user and device.
    pub devices: BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, Box<RawValue>>>,
    /// Master and self-signing keys by user.
    pub cross_signing: BTreeMap<OwnedUserId, CrossSigningKeys>,
    /// Servers of which nothing new was found out. What was known of their users is there.
    pub failures: ServerFailures,
}

/// Claimed keys.
#[derive(Debug, Default)]
pub struct ClaimedKeys {
    /// Name and key by user and device.
    pub keys: ClaimedByUser,
    /// Servers that did not answer.
    pub failures: ServerFailures,
}

/// Lists that are written at once; their commits share what they cost.
const WRITTEN_AT_ONCE: usize = 50;

/// A list that has to be fetched.
struct Wanted {
    user: OwnedUserId,
    number: UserNumber,
    witness: Option<Witness>,
}

/// What is asked of one server.
#[derive(Default)]
struct Question {
    /// Lists that are followed from now on.
    followed: Vec<Wanted>,
    /// Users with whom no room is shared: asked, and forgotten.
    passing: BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>,
}

/// What one server answered, for what is not stored.
type Passing = BTreeMap<OwnedUserId, RemoteDeviceList>;

impl RemoteUsers {
    /// The keys of users of other servers as a user of this one may see them. What is followed and
    /// holds is known; all else is asked for, within `patience`.
    ///
    /// # Errors
    /// When what is stored cannot be read or written.
    pub async fn query_keys(
        &self,
        (reader, reader_id): (UserNumber, &UserId),
        asked: &BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>,
        patience: Duration,
    ) -> Result<FoundKeys, UsersError> {
        let mut questions: BTreeMap<OwnedServerName, Question> = BTreeMap::new();
        let mut seen = SeenStates::default();
        let at = self.inner.rooms.durable();
        let rooms = self.rooms_of(reader, at).await?;
        let mut known = BTreeMap::new();
        for (user, only) in asked {
            let wanted = self.wanted(user, &rooms, (at, &mut seen)).await?;
            let server = user.server_name().to_owned();
            match wanted {
                Standing::Known(number) => drop(known.insert(user, number)),
                Standing::Wanted(wanted) => {
                    known.insert(user, wanted.number);
                    questions.entry(server).or_default().followed.push(wanted);
                }
                Standing::Stranger => {
                    let passing = &mut questions.entry(server).or_default().passing;
                    passing.insert(user.clone(), only.clone());
                }
            }
        }
        let mut found = FoundKeys::default();
        let asking = questions.into_iter().map(|(server, question)| async move {
            let answer = timeout(patience, self.put_question(&server, question)).await;
            let answer = answer.unwrap_or(Err(UsersError::Call(CallError::Busy)));
            (server, answer)
        });
        let mut answers = stream::iter(asking).buffer_unordered(SERVERS_AT_ONCE);
        while let Some((server, answer)) = answers.next().await {
            match answer {
                Ok(passing) => found.add(passing),
                Err(UsersError::Call(error)) => {
                    // What is followed is fetched later, and its readers are told.
                    self.inner.stale.notify_one();
                    found.failures.insert(server, error);
                }
                Err(error) => return Err(error),
            }
        }
        drop(answers);
        let users = &self.inner.users;
        for (user, number) in known {
            let devices = users.remote_lists.devices(number, &asked[user]).await?;
            let reader = (reader, reader_id);
            let keys = users.cross_signing.keys((number, user), reader).await?;
            found.devices.insert(user.clone(), devices);
            found.cross_signing.insert(user.clone(), keys);
        }
        Ok(found)
    }

    /// How the list of a user stands with a reader who is in these rooms.
    async fn wanted(
        &self,
        user: &OwnedUserId,
        rooms: &[RoomNumber],
        (at, seen): (u64, &mut SeenStates),
    ) -> Result<Standing, UsersError> {
        let users = &self.inner.users;
        if let Some(number) = users.known_number(user).await?
            && let Some(state) = users.remote_lists.state(number).await?
            && self.holds(user, &state, (at, seen)).await?
        {
            return Ok(Standing::Known(number));
        }
        let Some(witness) = self.witness(rooms, user, (at, seen)).await? else {
            return Ok(Standing::Stranger);
        };
        let number = users.number(user).await?;
        Ok(Standing::Wanted(Wanted {
            user: user.clone(),
            number,
            witness: Some(witness),
        }))
    }

    /// Asks one server all that is to be asked.
    async fn put_question(
        &self,
        server: &ServerName,
        question: Question,
    ) -> Result<Passing, UsersError> {
        if question.followed.len() <= FETCHED_SINGLY {
            self.follow(&question.followed).await?;
            for wanted in &question.followed {
                let user = (wanted.number, &*wanted.user);
                self.fetch(user, wanted.witness).await?;
            }
        } else {
            for some in question.followed.chunks(USERS_IN_CALL) {
                let versions = self.follow(some).await?;
                let asked = some.iter().map(|one| (one.user.clone(), Vec::new()));
                let asked = asked.collect();
                let answer = &ask::query(&self.inner.peers, server, &asked).await?;
                let storing = some.iter().zip(versions);
                let storing: Vec<_> = storing
                    .map(|(wanted, version)| self.store_answer(wanted, version, answer))
                    .collect();
                let stored = stream::iter(storing).buffered(WRITTEN_AT_ONCE);
                let stored: Vec<bool> = stored.try_collect().await?;
                if stored.contains(&false) {
                    self.inner.stale.notify_one();
                }
            }
        }
        let mut passing = Passing::new();
        let asked: Vec<_> = question.passing.into_iter().collect();
        for some in asked.chunks(USERS_IN_CALL) {
            let asked = some.iter().cloned().collect();
            passing.extend(ask::query(&self.inner.peers, server, &asked).await?);
        }
        Ok(passing)
    }

    /// Stores what was answered of one user; whether nothing was told in the meantime.
    async fn store_answer(
        &self,
        wanted: &Wanted,
        version: u64,
        answer: &Passing,
    ) -> Result<bool, Failure> {
        let Some(list) = answer.get(&wanted.user) else {
            return Ok(true);
        };
        let user = (wanted.number, &*wanted.user);
        let lists = &self.inner.users.remote_lists;
        lists.store(user, list, (version, wanted.witness)).await
    }

    /// Begins to follow lists, or says that they have to be fetched; gives the versions to begin with.
    async fn follow(&self, wanted: &[Wanted]) -> Result<Vec<u64>, UsersError> {
        let lists = &self.inner.users.remote_lists;
        let following: Vec<_> = wanted
            .iter()
            .map(|wanted| lists.follow(wanted.number))
            .collect();
        let following = stream::iter(following).buffered(WRITTEN_AT_ONCE);
        Ok(following.try_collect().await?)
    }

    /// Claims keys of devices of users of other servers, within `patience`.
    pub async fn claim_keys(&self, asked: Claims, patience: Duration) -> ClaimedKeys {
        let mut by_server: BTreeMap<OwnedServerName, Claims> = BTreeMap::new();
        for (user, devices) in asked {
            let of_server = by_server.entry(user.server_name().to_owned());
            of_server.or_default().insert(user, devices);
        }
        let asking = by_server.into_iter().map(|(server, asked)| async move {
            let call = ask::claim(&self.inner.peers, &server, &asked);
            let answer = timeout(patience, call).await;
            (server, answer.unwrap_or(Err(CallError::Busy)))
        });
        let mut answers = stream::iter(asking).buffer_unordered(SERVERS_AT_ONCE);
        let mut claimed = ClaimedKeys::default();
        while let Some((server, answer)) = answers.next().await {
            match answer {
                Ok(keys) => claimed.keys.extend(keys),
                Err(error) => drop(claimed.failures.insert(server, error)),
            }
        }
        claimed
    }
}

/// How a user's list stands with a reader.
enum Standing {
    /// It is followed, and holds.
    Known(UserNumber),
    /// It is followed from now on, and has to be fetched.
    Wanted(Wanted),
    /// No room is shared.
    Stranger,
}

impl FoundKeys {
    fn add(&mut self, passing: Passing) {
        for (user, list) in passing {
            let shown = list.devices.into_iter().map(|(id, device)| {
                let RemoteDevice { keys, .. } = device;
                (id, keys)
            });
            self.devices.insert(user.clone(), shown.collect());
            let keys = CrossSigningKeys {
                master: list.master,
                self_signing: list.self_signing,
                user_signing: None,
            };
            if let Some(keys) = homeserver_users::checked_cross_signing(&user, &keys) {
                self.cross_signing.insert(user, keys);
            }
        }
    }
}

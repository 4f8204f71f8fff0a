//! Who a request comes from: the check that every request of another server passes first.
//!
//! Specification: server-server API, "Request Authentication".

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use homeserver_events::VerifyKey;
use homeserver_runtime::WorkPool;
use http::{HeaderMap, header};
use parking_lot::Mutex;
use ruma::{OwnedServerName, ServerName};

use crate::{
    Admission, Health, KeyRing, XMatrix, XMatrixError,
    keys::KeyProblem,
    names::{canonical_name, is_same_server},
    signed_request::{Claim, RequestError},
};

/// `Authorization` headers of one request that are looked at.
const MAX_HEADERS: usize = 8;
/// Requests of one server that are worked on at once.
const PER_ORIGIN: usize = 32;
/// Requests of all servers that are worked on at once.
const IN_ALL: usize = 512;
/// Bodies up to this many bytes are checked where they arrive, longer ones on the pool.
const CHECKED_HERE: usize = 16 * 1024;
/// How long the keys of the asking server are waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a request is not let in.
#[derive(Debug, thiserror::Error)]
pub enum FrontError {
    /// The header is malformed.
    #[error(transparent)]
    Header(#[from] XMatrixError),
    /// It is not signed, not for this server, or wrongly signed; or its body is not JSON.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// A key that it was signed with is not to be had.
    #[error(transparent)]
    Key(#[from] KeyProblem),
    /// It claims to come from this server itself.
    #[error("this server does not ask itself")]
    OwnServer,
    /// The configuration does not allow to speak to this server.
    #[error("{0} is not allowed by the configuration")]
    NotAdmitted(OwnedServerName),
    /// Too many requests of this server, or of all, are being worked on.
    #[error("too many requests at once")]
    Busy,
}

/// A request as it arrived, of which nothing is believed yet.
#[derive(Clone, Copy, Debug)]
pub struct Arrived<'a> {
    /// Its method.
    pub method: &'a str,
    /// Path and query, byte for byte as they arrived.
    pub target: &'a str,
    /// Its body.
    pub body: &'a Bytes,
}

/// Keys of a server, by their ids.
pub type RequestKeys = BTreeMap<String, VerifyKey>;

/// Lets requests in. Cheap to clone; clones count together.
#[derive(Clone, Debug)]
pub struct Front {
    ring: KeyRing,
    admission: Admission,
    health: Health,
    cpu: WorkPool,
    working: Arc<Mutex<Working>>,
}

/// Requests that are being worked on.
#[derive(Debug, Default)]
struct Working {
    in_all: usize,
    by_origin: HashMap<OwnedServerName, usize>,
}

/// The right to be worked on; dropping it gives the place back.
#[derive(Debug)]
pub struct Place {
    working: Arc<Mutex<Working>>,
    origin: OwnedServerName,
}

impl Front {
    /// A front that knows servers by this ring, and tells their health of signs of life.
    /// Long bodies are checked on `cpu`.
    pub fn new(ring: KeyRing, admission: Admission, health: Health, cpu: WorkPool) -> Self {
        Self {
            ring,
            admission,
            health,
            cpu,
            working: Arc::default(),
        }
    }

    /// Who a request says that it comes from, of which nothing is believed yet.
    ///
    /// # Errors
    /// When nobody says so who may speak to this server.
    pub fn claim(&self, headers: &HeaderMap) -> Result<Claim, FrontError> {
        let own_name = self.ring.own().server();
        let claim = Claim::new(x_matrix_headers(headers)?, own_name)?;
        let origin = claim.origin();
        if is_same_server(origin, own_name) {
            return Err(FrontError::OwnServer);
        }
        if !self.admission.admits(origin) {
            return Err(FrontError::NotAdmitted(origin.to_owned()));
        }
        Ok(claim)
    }

    /// The keys that a claim is checked by, if they are at hand; else its server has to be asked,
    /// which costs more than a stranger may ask for as often as it likes.
    ///
    /// # Errors
    /// When what is stored cannot be read.
    pub async fn keys_at_hand(&self, claim: &Claim) -> Result<Option<RequestKeys>, FrontError> {
        let ids = claim.key_ids();
        if ids.is_empty() {
            return Ok(Some(RequestKeys::new()));
        }
        Ok(self.ring.known_request_keys(claim.origin(), &ids).await?)
    }

    /// The keys that a claim is checked by, asked for where they are not at hand. One is enough.
    ///
    /// # Errors
    /// When there is none, or none is to be had in time.
    pub async fn keys_of(&self, claim: &Claim) -> Result<RequestKeys, FrontError> {
        let ids = claim.key_ids();
        if ids.is_empty() {
            return Ok(RequestKeys::new());
        }
        let asked = self.ring.request_keys(claim.origin(), &ids);
        let in_time = tokio::time::timeout(PATIENCE, asked).await;
        let unreachable = || Err(KeyProblem::Unreachable(claim.origin().to_owned()));
        Ok(in_time.unwrap_or_else(|_| unreachable())?)
    }

    /// The server that a request comes from: proves a claim.
    ///
    /// # Errors
    /// When it is not proven.
    pub async fn check(
        &self,
        claim: Claim,
        keys: RequestKeys,
        request: Arrived<'_>,
    ) -> Result<OwnedServerName, FrontError> {
        let origin = claim.origin().to_owned();
        let own_name = self.ring.own().server().to_owned();
        let target = request.target.to_owned();
        let (method, body) = (request.method.to_owned(), request.body.clone());
        let check = move || {
            let key = |id: &str| keys.get(id).copied();
            claim.check(&method, &target, &own_name, &body, &key)
        };
        if request.body.len() <= CHECKED_HERE {
            check()?;
        } else {
            self.cpu.run(check).await.map_err(|_| FrontError::Busy)??;
        }
        self.health.alive(&origin);
        Ok(origin)
    }

    /// The server that a request comes from, all at once.
    ///
    /// # Errors
    /// When that is not proven, and when the server is not admitted.
    pub async fn authenticate(
        &self,
        headers: &HeaderMap,
        request: Arrived<'_>,
    ) -> Result<OwnedServerName, FrontError> {
        let claim = self.claim(headers)?;
        let keys = self.keys_of(&claim).await?;
        self.check(claim, keys, request).await
    }

    /// A place for a request of `origin`.
    ///
    /// # Errors
    /// [`FrontError::Busy`] when the server has 32 already, or all have 512.
    pub fn place(&self, origin: &ServerName) -> Result<Place, FrontError> {
        let origin = canonical_name(origin);
        let mut working = self.working.lock();
        let of_origin = working.by_origin.get(&origin).copied().unwrap_or_default();
        if working.in_all >= IN_ALL || of_origin >= PER_ORIGIN {
            return Err(FrontError::Busy);
        }
        working.in_all += 1;
        working.by_origin.insert(origin.clone(), of_origin + 1);
        Ok(Place {
            working: Arc::clone(&self.working),
            origin,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut working = self.working.lock();
        working.in_all -= 1;
        if let Some(count) = working.by_origin.get_mut(&self.origin) {
            *count -= 1;
            if *count == 0 {
                working.by_origin.remove(&self.origin);
            }
        }
    }
}

/// All headers of the scheme; others are not ours.
fn x_matrix_headers(headers: &HeaderMap) -> Result<Vec<XMatrix>, XMatrixError> {
    let values = headers.get_all(header::AUTHORIZATION).iter();
    let read = values
        .take(MAX_HEADERS)
        .map(|value| XMatrix::parse(value.as_bytes()));
    read.filter(|read| !matches!(read, Err(XMatrixError::Scheme)))
        .collect()
}

#[cfg(test)]
mod tests {
    use homeserver_events::SigningKey;
    use http::HeaderValue;
    use ruma::server_name;

    use super::*;
    use crate::{Retry, SignedRequest, keys::ring::tests::World};

    /// The longest that a server which gave a sign of life is left alone.
    const SOON: Duration = Duration::from_secs(10);

    const TARGET: &str = "/_matrix/federation/v1/send/1?a=%2F";

    /// Headers of a request by a server with key `seed`.
    fn headers(origin: &str, seed: u8) -> HeaderMap {
        let request = SignedRequest {
            method: "PUT",
            target: TARGET,
            origin: &ServerName::parse(origin).unwrap(),
            destination: server_name!("here.example"),
            body: b"{}",
        };
        let key = SigningKey::from_seed("a", &[seed; 32]).unwrap();
        let header = request.sign(&key).unwrap().to_string();
        let header = HeaderValue::try_from(header).unwrap();
        [(header::AUTHORIZATION, header)].into_iter().collect()
    }

    async fn ask(front: &Front, headers: &HeaderMap) -> Result<OwnedServerName, FrontError> {
        let arrived = Arrived {
            method: "PUT",
            target: TARGET,
            body: &Bytes::from_static(b"{}"),
        };
        front.authenticate(headers, arrived).await
    }

    async fn front(world: &World) -> Front {
        let denied = ["evil.example".to_owned()];
        let retry = Retry {
            shortest: Duration::from_mins(1),
            longest: Duration::from_hours(1),
        };
        let health = Health::open(retry, world.store.clone(), world.runtime.clone()).await;
        Front::new(
            world.ring.clone(),
            Admission::new(&[], &denied),
            health.unwrap(),
            world.runtime.cpu.clone(),
        )
    }

    #[tokio::test]
    async fn a_server_proves_itself_by_the_key_that_it_publishes() {
        let world = World::with_there(&[]).await;
        let front = front(&world).await;
        // Nobody else's claim to be that server is a sign of life.
        let there = server_name!("there.example");
        front.health.failed(there, Duration::ZERO);
        let left_alone = |front: &Front| front.health.failing(there).unwrap().pause > SOON;
        assert!(ask(&front, &headers("there.example", 2)).await.is_err());
        assert!(left_alone(&front));
        let origin = ask(&front, &headers("there.example", 1)).await.unwrap();
        assert_eq!(origin, "there.example");
        assert!(!left_alone(&front));
        let forged = ask(&front, &headers("there.example", 2)).await;
        assert!(matches!(
            forged,
            Err(FrontError::Request(RequestError::Signature(_)))
        ));
        let unknown = ask(&front, &headers("gone.example", 1)).await;
        assert!(matches!(
            unknown,
            Err(FrontError::Key(KeyProblem::Unreachable(_)))
        ));
        let evil = ask(&front, &headers("evil.example", 1)).await;
        assert!(matches!(evil, Err(FrontError::NotAdmitted(_))));
        for name in ["here.example", "HERE.example."] {
            let ourselves = ask(&front, &headers(name, 9)).await;
            assert!(matches!(ourselves, Err(FrontError::OwnServer)), "{name}");
        }
        let mut bearer = HeaderMap::new();
        bearer.insert(
            header::AUTHORIZATION,
            HeaderValue::from_static("Bearer abc"),
        );
        let unsigned = ask(&front, &bearer).await;
        assert!(matches!(
            unsigned,
            Err(FrontError::Request(RequestError::Unsigned))
        ));
        // Beside others, and beside a signature by a key that is not published.
        let mut several = headers("there.example", 1);
        several.append(header::AUTHORIZATION, bearer[header::AUTHORIZATION].clone());
        let new = "X-Matrix origin=there.example,key=ed25519:new,sig=AAAA";
        several.append(header::AUTHORIZATION, HeaderValue::from_static(new));
        assert!(ask(&front, &several).await.is_ok());
        several.append(
            header::AUTHORIZATION,
            HeaderValue::from_static("X-Matrix x"),
        );
        let malformed = ask(&front, &several).await;
        assert!(matches!(
            malformed,
            Err(FrontError::Header(XMatrixError::Form))
        ));
    }

    #[tokio::test]
    async fn one_server_does_not_take_all_places() {
        let world = World::with_there(&[]).await;
        let front = front(&world).await;
        let there = server_name!("there.example");
        let mut places: Vec<_> = (0..PER_ORIGIN)
            .map(|_| front.place(there).unwrap())
            .collect();
        assert!(matches!(front.place(there), Err(FrontError::Busy)));
        let same = server_name!("THERE.example.");
        assert!(matches!(front.place(same), Err(FrontError::Busy)));
        for number in PER_ORIGIN..IN_ALL {
            let other = ServerName::parse(format!("s{number}.example")).unwrap();
            places.push(front.place(&other).unwrap());
        }
        assert!(front.place(server_name!("late.example")).is_err());
        drop(places);
        assert!(front.place(there).is_ok());
        assert!(front.working.lock().by_origin.is_empty());
    }
}

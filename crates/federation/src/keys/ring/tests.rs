use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use homeserver_events::{KeyLifetime, SigningKey};
use homeserver_runtime::{Clock as _, ManualClock};
use homeserver_storage::engines::memory::MemoryEngine;
use http::{HeaderMap, StatusCode};
use ruma::server_name;

use super::*;
use crate::{
    Body, Outgoing, Reply, TransportError,
    keys::{KeyDocument, OldKey, known::Source},
};

pub(crate) const START: u64 = 1_700_000_000_000;
const HOUR: Duration = Duration::from_hours(1);
const DAY: u64 = 24 * 60 * 60 * 1000;

/// Answers of servers by name and path; a server without any is not reached.
#[derive(Debug, Default)]
struct Servers {
    answers: Mutex<HashMap<(String, String), String>>,
    asked: AtomicUsize,
}

impl Servers {
    fn give(&self, server: &str, path: &str, json: String) {
        let key = (server.to_owned(), path.to_owned());
        self.answers.lock().insert(key, json);
    }

    fn give_keys(&self, keys: &OwnKeys, now: u64) {
        let server = keys.server().as_str();
        self.give(server, "/_matrix/key/v2/server", keys.document(now));
    }

    fn fall_silent(&self) {
        self.answers.lock().clear();
    }

    fn asked(&self) -> usize {
        self.asked.swap(0, Ordering::SeqCst)
    }
}

#[async_trait]
impl Transport for Servers {
    async fn send(&self, outgoing: Outgoing) -> Result<Reply, TransportError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        // Others get the chance to ask as well.
        tokio::task::yield_now().await;
        assert!(!outgoing.request.headers().contains_key("authorization"));
        let path = outgoing.request.uri().path().to_owned();
        let answers = self.answers.lock();
        let Some(json) = answers.get(&(outgoing.destination.to_string(), path)) else {
            return Err(TransportError::Unreachable("nobody is there".to_owned()));
        };
        let chunk = Ok(Bytes::from(json.clone()));
        Ok(Reply {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: Body::new(stream::iter([chunk]), outgoing.limits.body),
        })
    }
}

pub(crate) struct World {
    servers: Arc<Servers>,
    clock: Arc<ManualClock>,
    pub(crate) store: Store,
    pub(crate) runtime: Runtime,
    pub(crate) ring: KeyRing,
}

fn signing_key(seed: u8, version: &str) -> Arc<SigningKey> {
    Arc::new(SigningKey::from_seed(version, &[seed; 32]).unwrap())
}

pub(crate) fn keys_of(server: &str, seed: u8, old: Vec<OldKey>) -> OwnKeys {
    let server = ServerName::parse(server).unwrap();
    OwnKeys::new(server, signing_key(seed, "a"), old)
}

fn there() -> OwnKeys {
    keys_of("there.example", 1, Vec::new())
}

impl World {
    /// A world in which `there.example` publishes key 1.
    pub(crate) async fn with_there(notaries: &[&str]) -> Self {
        let world = Self::new(notaries).await;
        world.servers.give_keys(&there(), START);
        world
    }

    pub(crate) async fn new(notaries: &[&str]) -> Self {
        let clock = Arc::new(ManualClock::new(START));
        let runtime = Runtime::simulated(Arc::clone(&clock), 1);
        let engine = Arc::new(MemoryEngine::new());
        let store = Store::open(engine, &[crate::TABLES], &runtime).await;
        let store = store.unwrap();
        let servers = Arc::new(Servers::default());
        let ring = Self::ring(&servers, notaries, &store, &runtime);
        Self {
            servers,
            clock,
            store,
            runtime,
            ring,
        }
    }

    fn ring(
        servers: &Arc<Servers>,
        notaries: &[&str],
        store: &Store,
        runtime: &Runtime,
    ) -> KeyRing {
        let notaries = notaries.iter().map(|name| ServerName::parse(name).unwrap());
        KeyRing::new(
            keys_of("here.example", 9, Vec::new()),
            Admission::new(&[], &["evil.example".to_owned()]),
            notaries.collect(),
            store.clone(),
            Arc::clone(servers) as _,
            runtime.clone(),
        )
    }

    /// The same database after a restart.
    fn restarted(&self) -> KeyRing {
        let runtime = Runtime::simulated(Arc::clone(&self.clock), 2);
        Self::ring(&self.servers, &[], &self.store, &runtime)
    }

    async fn request_key(&self, server: &ServerName, id: &str) -> Result<VerifyKey, KeyProblem> {
        let keys = self.ring.request_keys(server, &BTreeSet::from([id])).await;
        keys.map(|mut keys| keys.remove(id).unwrap())
    }

    async fn knows(&self) -> bool {
        let asked = self.request_key(server_name!("there.example"), "ed25519:a");
        asked.await.is_ok()
    }
}

/// A document with the signature of another server.
fn vouched_by(witness: &OwnKeys, document: &str) -> String {
    let lenient = homeserver_events::Strictness::Lenient;
    let object = homeserver_events::canonical::parse_object(document.as_bytes(), lenient);
    let mut object = object.unwrap();
    let name = witness.server().as_str();
    homeserver_events::sign_json(&mut object, name, witness.signing_key());
    homeserver_events::canonical::to_string(&object)
}

impl World {
    /// `witness` is there and vouches for this document.
    pub(crate) fn give_word(&self, witness: &OwnKeys, document: &str) {
        self.servers.give_keys(witness, self.clock.unix_millis());
        let answer = format!(r#"{{"server_keys":[{}]}}"#, vouched_by(witness, document));
        let name = witness.server().as_str();
        self.servers.give(name, "/_matrix/key/v2/query", answer);
    }

    /// Whether there is a key for an event of `there.example`, with these witnesses.
    async fn covers(&self, witnesses: &[&str]) -> bool {
        let witnesses: Vec<_> = witnesses
            .iter()
            .map(|name| ServerName::parse(name).unwrap())
            .collect();
        let asking = Asking {
            patience: HOUR,
            witnesses: &witnesses,
        };
        let wanted = [wanted("ed25519:a", START, true)];
        let keys = self.ring.keys_for(&wanted, asking).await.unwrap();
        let there = server_name!("there.example");
        keys.key(there, "ed25519:a").is_some()
    }
}

fn wanted(key_id: &str, time: u64, enforced: bool) -> Wanted {
    Wanted {
        server: server_name!("there.example").to_owned(),
        key_id: key_id.to_owned(),
        time,
        enforced,
    }
}

#[tokio::test]
async fn many_who_want_a_key_make_one_fetch() {
    let world = World::with_there(&[]).await;
    let name = server_name!("there.example");
    let all = (0..MAX_WAITING_FOR_ONE).map(|_| world.request_key(name, "ed25519:a"));
    let keys = futures_util::future::join_all(all).await;
    for key in keys {
        assert_eq!(key.unwrap(), signing_key(1, "a").verify_key());
    }
    assert_eq!(world.servers.asked(), 1);
    assert!(world.ring.inner.turns.lock().is_empty());
    // More than that are not kept waiting.
    world.clock.advance(25 * HOUR);
    let all = (0..=MAX_WAITING_FOR_ONE).map(|_| world.request_key(name, "ed25519:a"));
    let asked = futures_util::future::join_all(all).await;
    let refused = asked
        .iter()
        .filter(|asked| matches!(asked, Err(KeyProblem::Busy)));
    assert_eq!(refused.count(), 1);
    world.servers.asked();
    // One that nobody publishes does not make a fetch each time.
    for _ in 0..3 {
        let unknown = world.request_key(name, "ed25519:other").await;
        assert!(matches!(unknown, Err(KeyProblem::Unknown(_))));
    }
    assert_eq!(world.servers.asked(), 0);
}

#[tokio::test]
async fn a_key_that_is_over_signs_no_request_but_still_its_events() {
    let world = World::with_there(&[]).await;
    assert!(world.knows().await);
    // Of one that only asked nothing is stored.
    assert!(
        world
            .restarted()
            .inner
            .seen(server_name!("there.example"))
            .await
            .unwrap()
            .is_none()
    );
    let event = [wanted("ed25519:a", START, true)];
    world
        .ring
        .keys_for(&event, Asking::for_as_long_as(Duration::ZERO))
        .await
        .unwrap();
    world.servers.fall_silent();
    world.clock.advance(25 * HOUR);
    assert!(!world.knows().await);
    // Also after a restart, and although the server is gone.
    let ring = world.restarted();
    let enforced = [wanted("ed25519:a", START + DAY, true)];
    let keys = ring
        .keys_for(&enforced, Asking::for_as_long_as(Duration::ZERO))
        .await
        .unwrap();
    let key = keys
        .key(server_name!("there.example"), "ed25519:a")
        .unwrap();
    assert_eq!(key.lifetime, KeyLifetime::ValidUntil(START + DAY));
}

#[tokio::test]
async fn a_key_is_replaced_and_the_old_one_keeps_its_events() {
    let world = World::with_there(&[]).await;
    assert!(world.knows().await);
    // It rotates without naming the old key, before the document is over.
    let there = server_name!("there.example");
    let new = OwnKeys::new(there.to_owned(), signing_key(2, "b"), Vec::new());
    world.clock.advance(2 * HOUR);
    world.servers.give_keys(&new, START + DAY / 12);
    assert!(world.request_key(there, "ed25519:b").await.is_ok());
    let both = [
        wanted("ed25519:a", START, true),
        wanted("ed25519:b", START, true),
    ];
    world.servers.asked();
    let keys = world
        .ring
        .keys_for(&both, Asking::for_as_long_as(HOUR))
        .await
        .unwrap();
    assert_eq!(world.servers.asked(), 0);
    assert!(keys.key(there, "ed25519:a").is_some());
    assert!(keys.key(there, "ed25519:b").is_some());
    // Once it says when the old one was last used, that counts.
    let old = OldKey {
        id: "ed25519:a".to_owned(),
        key: signing_key(1, "a").verify_key(),
        expired: START + 5,
    };
    let new = OwnKeys::new(there.to_owned(), signing_key(2, "b"), vec![old]);
    world.clock.advance(25 * HOUR);
    world.servers.give_keys(&new, START + 27 * DAY / 24);
    assert!(world.request_key(there, "ed25519:b").await.is_ok());
    assert!(world.request_key(there, "ed25519:a").await.is_err());
    let keys = world
        .ring
        .keys_for(&both, Asking::for_as_long_as(Duration::ZERO))
        .await
        .unwrap();
    let old = keys.key(there, "ed25519:a").unwrap();
    assert_eq!(old.lifetime, KeyLifetime::ExpiredAt(START + 5));
}

#[tokio::test]
async fn an_event_from_after_the_end_of_a_document_makes_a_fetch_where_that_counts() {
    let world = World::with_there(&[]).await;
    assert!(world.knows().await);
    world.clock.advance(48 * HOUR);
    world.servers.give_keys(&there(), START + 2 * DAY);
    world.servers.asked();
    let late = START + 2 * DAY;
    for (enforced, asked) in [(false, 0), (true, 1)] {
        let wanted = [wanted("ed25519:a", late, enforced)];
        world
            .ring
            .keys_for(&wanted, Asking::for_as_long_as(HOUR))
            .await
            .unwrap();
        assert_eq!(world.servers.asked(), asked, "{enforced}");
    }
    let wanted = [wanted("ed25519:a", late, true)];
    let keys = world
        .ring
        .keys_for(&wanted, Asking::for_as_long_as(HOUR))
        .await
        .unwrap();
    let key = keys.key(server_name!("there.example"), "ed25519:a");
    assert_eq!(
        key.unwrap().lifetime,
        KeyLifetime::ValidUntil(START + 3 * DAY)
    );
}

#[tokio::test]
async fn a_server_that_fails_is_left_alone_for_longer_each_time() {
    let world = World::new(&[]).await;
    assert!(!world.knows().await);
    assert_eq!(world.servers.asked(), 1);
    for (wait, asked) in [(5, 0), (1, 1), (11, 0), (1, 1), (23, 0), (1, 1)] {
        world.clock.advance(Duration::from_secs(wait));
        assert!(!world.knows().await);
        assert_eq!(world.servers.asked(), asked, "{wait}");
    }
    for _ in 0..20 {
        world.clock.advance(HOUR);
        assert!(!world.knows().await);
        assert_eq!(world.servers.asked(), 1);
    }
    world.clock.advance(HOUR);
    world.servers.give_keys(&there(), START + DAY);
    assert!(world.knows().await);
}

#[tokio::test]
async fn keys_are_refreshed_before_they_are_over_without_anybody_waiting() {
    let world = World::with_there(&[]).await;
    assert!(world.knows().await);
    world.clock.advance(13 * HOUR);
    world.servers.give_keys(&there(), START + 13 * DAY / 24);
    world.servers.asked();
    assert!(world.knows().await);
    assert_eq!(world.servers.asked(), 0);
    while world
        .ring
        .inner
        .strangers
        .get(server_name!("there.example"))
        .unwrap()
        .fetched()
        == START
    {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.servers.asked(), 1);
}

#[tokio::test]
async fn a_notary_is_believed_for_what_both_it_and_the_server_signed() {
    let world = World::new(&["notary.example"]).await;
    let notary = keys_of("notary.example", 7, Vec::new());
    let answer = |document: &str| format!(r#"{{"server_keys":[{document}]}}"#);
    let query = "/_matrix/key/v2/query";
    let vouched = |document: String| vouched_by(&notary, &document);
    world.servers.give_keys(&notary, START);
    // Signed by the server alone; by the notary alone; of another server.
    let forged = keys_of("there.example", 3, Vec::new()).document(START);
    let forged = forged.replace(
        &signing_key(3, "a").verify_key().to_base64(),
        &signing_key(1, "a").verify_key().to_base64(),
    );
    let other = keys_of("other.example", 1, Vec::new()).document(START);
    for document in [there().document(START), vouched(forged), vouched(other)] {
        world
            .servers
            .give("notary.example", query, answer(&document));
        assert!(!world.knows().await, "{document}");
        world.clock.advance(2 * HOUR);
        world.servers.give_keys(&notary, START + 4 * DAY / 24);
    }
    let document = vouched(there().document(START + 6 * DAY / 24));
    world
        .servers
        .give("notary.example", query, answer(&document));
    assert!(world.knows().await);
}

#[tokio::test]
async fn our_own_keys_are_fetched_from_nobody_and_denied_servers_are_not_asked() {
    let world = World::new(&[]).await;
    let here = server_name!("here.example");
    let own = Wanted {
        server: here.to_owned(),
        ..wanted("ed25519:a", START, true)
    };
    let keys = world
        .ring
        .keys_for(&[own], Asking::for_as_long_as(HOUR))
        .await
        .unwrap();
    let own = keys.key(here, "ed25519:a").unwrap();
    assert_eq!(own.key, signing_key(9, "a").verify_key());
    let evil = world.request_key(server_name!("evil.example"), "ed25519:a");
    assert!(matches!(evil.await, Err(KeyProblem::NotAdmitted(_))));
    assert_eq!(world.servers.asked(), 0);
}

#[tokio::test]
async fn as_a_notary_we_add_our_signature_to_what_we_know() {
    let world = World::with_there(&[]).await;
    let query = |server: &str, minimum_valid_until| KeyQuery {
        server: ServerName::parse(server).unwrap(),
        minimum_valid_until,
    };
    let asked = [
        query("there.example", 0),
        query("gone.example", 0),
        query("evil.example", 0),
        query("here.example", 0),
    ];
    let vouched = world.ring.vouch(asked.to_vec()).await.unwrap();
    assert_eq!(vouched.len(), 2);
    let here = server_name!("here.example");
    let read =
        KeyDocument::read(vouched[0].as_bytes(), server_name!("there.example"), START).unwrap();
    let own = |id: &str| world.ring.own().published(id).map(|key| key.key);
    assert!(read.is_vouched_for(here, &own));
    assert!(KeyDocument::read(vouched[1].as_bytes(), here, START).is_ok());

    // Fresh: not fetched again for anybody. Later: if the asker needs more, and otherwise not.
    let far = START + 400 * DAY;
    for (later, minimum, asked) in [(1, far, 0), (14, 0, 0), (0, far, 1), (30, 0, 1)] {
        world.clock.advance(later * HOUR);
        world.servers.asked();
        let again = world
            .ring
            .vouch(vec![query("there.example", minimum)])
            .await
            .unwrap();
        assert_eq!(again.len(), 1);
        assert_eq!(world.servers.asked(), asked, "{later} {minimum}");
    }
    // What is known is given even when the server is gone.
    world.servers.fall_silent();
    world.clock.advance(100 * HOUR);
    let again = world
        .ring
        .vouch(vec![query("there.example", far)])
        .await
        .unwrap();
    assert_eq!(again.len(), 1);
}

/// A server that never answers.
#[derive(Debug, Default)]
struct Silence {
    asked: AtomicUsize,
}

#[async_trait]
impl Transport for Silence {
    async fn send(&self, outgoing: Outgoing) -> Result<Reply, TransportError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(outgoing.limits.deadline).await;
        Err(TransportError::Deadline)
    }
}

#[tokio::test(start_paused = true)]
async fn who_hangs_up_does_not_hide_that_a_server_is_silent() {
    let world = World::new(&[]).await;
    let silence = Arc::new(Silence::default());
    let notary = server_name!("notary.example").to_owned();
    let ring = KeyRing::new(
        keys_of("here.example", 9, Vec::new()),
        Admission::default(),
        vec![notary],
        world.store.clone(),
        Arc::clone(&silence) as _,
        world.runtime.clone(),
    );
    let gone = server_name!("gone.example");
    let ids = BTreeSet::from(["ed25519:a"]);
    let asked = tokio::time::timeout(Duration::from_secs(1), ring.request_keys(gone, &ids)).await;
    assert!(asked.is_err());
    while !ring.inner.is_paused(gone) {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // Itself, then the notary.
    assert_eq!(silence.asked.swap(0, Ordering::SeqCst), 2);
    assert!(ring.request_keys(gone, &ids).await.is_err());
    assert_eq!(silence.asked.load(Ordering::SeqCst), 0);
    assert!(ring.inner.turns.lock().is_empty());

    // Many questions to a notary end in time all the same.
    let queries: Vec<_> = (0..MAX_ASKED)
        .map(|number| KeyQuery {
            server: ServerName::parse(format!("s{number}.example")).unwrap(),
            minimum_valid_until: 0,
        })
        .collect();
    let started = tokio::time::Instant::now();
    assert!(ring.vouch(queries).await.unwrap().is_empty());
    assert!(
        started.elapsed() <= Duration::from_secs(9),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn a_notary_neither_shortens_nor_brings_back_a_key() {
    let read = |keys: &OwnKeys, now| {
        KeyDocument::read(keys.document(now).as_bytes(), keys.server(), now).unwrap()
    };
    let (first, later) = (read(&there(), START), read(&there(), START + DAY));
    let known = ServerKeys::after(None, &later, Source::Itself, START + DAY);
    let after = ServerKeys::after(Some(&known), &first, Source::Notary, START + DAY);
    assert!(after.current("ed25519:a", START + 2 * DAY).is_some());

    // The server gave it up; then does not name it at all.
    let old = OldKey {
        id: "ed25519:a".to_owned(),
        key: signing_key(1, "a").verify_key(),
        expired: START,
    };
    let server = server_name!("there.example").to_owned();
    let new = |old| OwnKeys::new(server.clone(), signing_key(2, "b"), old);
    for old in [vec![old], Vec::new()] {
        let given_up = read(&new(old), START + 5);
        let known = ServerKeys::after(Some(&known), &given_up, Source::Itself, START + DAY + 5);
        assert!(known.current("ed25519:a", START + DAY + 6).is_none());
        let after = ServerKeys::after(Some(&known), &first, Source::Notary, START + DAY + 7);
        assert!(after.current("ed25519:a", START + DAY + 7).is_none());
    }
}

#[tokio::test]
async fn who_tells_events_of_a_server_that_is_away_is_asked_for_its_keys() {
    let world = World::new(&[]).await;
    let friend = keys_of("friend.example", 7, Vec::new());
    world.give_word(&friend, &there().document(START));
    assert!(!world.covers(&[]).await);
    assert!(world.covers(&["friend.example"]).await);
    // Its word counts for what it is a witness of, and for nothing else.
    world.servers.asked();
    assert!(world.covers(&["friend.example"]).await);
    assert!(!world.covers(&[]).await);
    assert!(!world.covers(&["other.example"]).await);
    assert!(!world.knows().await);
    let query = KeyQuery {
        server: server_name!("there.example").to_owned(),
        minimum_valid_until: 0,
    };
    assert!(world.ring.vouch(vec![query]).await.unwrap().is_empty());
    // It was a lie: the server is there again, with another key.
    let truth = keys_of("there.example", 3, Vec::new());
    world.clock.advance(4 * HOUR);
    world.servers.give_keys(&truth, START + DAY / 6);
    let wanted = [wanted("ed25519:a", START, true)];
    let witnesses = [server_name!("friend.example").to_owned()];
    let asking = Asking {
        patience: HOUR,
        witnesses: &witnesses,
    };
    let keys = world.ring.keys_for(&wanted, asking).await.unwrap();
    let key = keys.key(server_name!("there.example"), "ed25519:a");
    assert_eq!(key.unwrap().key, signing_key(3, "a").verify_key());
}

#[tokio::test]
async fn witnesses_who_contradict_each_other_are_not_believed() {
    let world = World::new(&[]).await;
    let friend = keys_of("friend.example", 7, Vec::new());
    let liar = keys_of("liar.example", 6, Vec::new());
    world.give_word(&friend, &there().document(START));
    let forged = keys_of("there.example", 3, Vec::new());
    world.give_word(&liar, &forged.document(START));
    assert!(!world.covers(&["liar.example", "friend.example"]).await);
    // What neither the server nor the witness signed is no word at all.
    world.clock.advance(2 * HOUR);
    let document = there().document(START);
    let unsigned = format!(r#"{{"server_keys":[{document}]}}"#);
    world
        .servers
        .give("liar.example", "/_matrix/key/v2/query", unsigned);
    world.servers.give_keys(&liar, START + DAY / 12);
    assert!(!world.covers(&["liar.example"]).await);
    world.servers.give_keys(&friend, START + DAY / 12);
    assert!(world.covers(&["friend.example"]).await);
}

#[tokio::test]
async fn one_witness_alone_cannot_have_a_key_not_be_believed() {
    let world = World::new(&[]).await;
    for (name, seed) in [("friend.example", 7), ("other.example", 8)] {
        let witness = keys_of(name, seed, Vec::new());
        world.give_word(&witness, &there().document(START));
    }
    let forged = keys_of("there.example", 3, Vec::new());
    let liar = keys_of("liar.example", 6, Vec::new());
    world.give_word(&liar, &forged.document(START));
    let witnesses = ["liar.example", "friend.example", "other.example"];
    let witnesses = witnesses.map(|name| ServerName::parse(name).unwrap());
    let asking = Asking {
        patience: HOUR,
        witnesses: &witnesses,
    };
    let wanted = [wanted("ed25519:a", START, true)];
    let keys = world.ring.keys_for(&wanted, asking).await.unwrap();
    let key = keys.key(server_name!("there.example"), "ed25519:a");
    assert_eq!(key.unwrap().key, signing_key(1, "a").verify_key());
}

/// Vouches for any number of servers, whose keys are all made of 1. Nobody else answers, but for
/// those that are slow.
#[derive(Debug)]
struct Voucher(OwnKeys);

#[async_trait]
impl Transport for Voucher {
    async fn send(&self, outgoing: Outgoing) -> Result<Reply, TransportError> {
        let path = outgoing.request.uri().path();
        let body = match (outgoing.destination.as_str(), path) {
            ("friend.example", "/_matrix/key/v2/server") => self.0.document(START),
            ("friend.example", _) => {
                let asked: serde_json::Value =
                    serde_json::from_slice(outgoing.request.body()).unwrap();
                let asked = asked["server_keys"].as_object().unwrap().keys();
                let vouched = asked.map(|server| {
                    let keys = keys_of(server, 1, Vec::new());
                    vouched_by(&self.0, &keys.document(START))
                });
                let vouched: Vec<_> = vouched.collect();
                format!(r#"{{"server_keys":[{}]}}"#, vouched.join(","))
            }
            ("slow.example", _) => {
                tokio::time::sleep(Duration::from_hours(1)).await;
                return Err(TransportError::Deadline);
            }
            _ => return Err(TransportError::Unreachable("nobody is there".to_owned())),
        };
        Ok(Reply {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: Body::new(stream::iter([Ok(Bytes::from(body))]), outgoing.limits.body),
        })
    }
}

/// Of large rooms very many servers are away, more than what is remembered of witnesses.
#[tokio::test(start_paused = true)]
async fn a_witness_is_believed_about_very_many_servers_whoever_else_is_slow() {
    let world = World::new(&[]).await;
    let voucher = Voucher(keys_of("friend.example", 7, Vec::new()));
    let ring = KeyRing::new(
        keys_of("here.example", 9, Vec::new()),
        Admission::default(),
        Vec::new(),
        world.store.clone(),
        Arc::new(voucher),
        world.runtime.clone(),
    );
    let wanted: Vec<_> = (0..WORDS + 300)
        .map(|number| Wanted {
            server: ServerName::parse(format!("s{number}.example")).unwrap(),
            ..wanted("ed25519:a", START, true)
        })
        .collect();
    let witnesses = ["slow.example", "friend.example"];
    let witnesses = witnesses.map(|name| ServerName::parse(name).unwrap());
    let asking = Asking {
        patience: Duration::from_mins(1),
        witnesses: &witnesses,
    };
    let keys = ring.keys_for(&wanted, asking).await.unwrap();
    let lacking = wanted
        .iter()
        .filter(|one| keys.key(&one.server, &one.key_id).is_none());
    assert_eq!(lacking.count(), 0);
}

#[tokio::test]
async fn a_witness_that_answered_is_not_asked_again_at_once() {
    let world = World::new(&[]).await;
    let friend = keys_of("friend.example", 7, Vec::new());
    world.servers.give_keys(&friend, START);
    let nothing = r#"{"server_keys":[]}"#.to_owned();
    world
        .servers
        .give("friend.example", "/_matrix/key/v2/query", nothing);
    assert!(!world.covers(&["friend.example"]).await);
    world.servers.asked();
    assert!(!world.covers(&["friend.example"]).await);
    assert_eq!(world.servers.asked(), 0);
    world.clock.advance(Duration::from_secs(61));
    world.give_word(&friend, &there().document(START));
    assert!(world.covers(&["friend.example"]).await);
}

#[tokio::test]
async fn a_server_is_gone_when_it_failed_for_some_minutes() {
    let world = World::new(&[]).await;
    let there = server_name!("there.example");
    for pause in [0, 6, 12, 24, 48, 96] {
        assert!(!world.ring.is_gone(there), "{pause}");
        world.clock.advance(Duration::from_secs(pause));
        assert!(!world.knows().await);
    }
    assert!(world.ring.is_gone(there));
    assert!(world.ring.is_gone(server_name!("evil.example")));
}

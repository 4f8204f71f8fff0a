//! What other servers ask, between homeservers in one process.

mod acl;
mod asking;
mod elsewhere;
mod handed_over;
mod history;
mod invites;
mod lists;
mod media;
mod partial;
mod peer;
mod resets;
mod resident;
mod rotation;
mod sending;
mod spaces;
mod story;
mod third_party;
mod times;
mod users;
mod within;

use std::collections::{BTreeSet, HashMap};

use async_trait::async_trait;
use futures_util::stream;
use homeserver_federation::{
    Body as ReplyBody, Call, CallError, KeyDocument, Outgoing, Path, Reply, Transport,
    TransportError,
    transport::{Answer as ExchangeAnswer, Exchange, OutboundError},
};
use parking_lot::Mutex;
use ruma::{OwnedServerName, OwnedUserId, ServerName, server_name};

use super::*;

const START: u64 = 1_700_000_000_000;

/// A network of routers. Who is not in it is not reached.
#[derive(Debug, Default)]
struct Network {
    routers: Mutex<HashMap<OwnedServerName, Router>>,
    /// What is at the hosts of URLs.
    hosts: Mutex<HashMap<String, Router>>,
}

#[async_trait]
impl Transport for Network {
    async fn send(&self, outgoing: Outgoing) -> Result<Reply, TransportError> {
        let router = self.routers.lock().get(&outgoing.destination).cloned();
        let nobody = || TransportError::Unreachable("nobody is there".to_owned());
        let router = router.ok_or_else(nobody)?;
        let answer = router.oneshot(outgoing.request.map(Body::from)).await;
        let (head, body) = answer.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Ok(Reply {
            status: head.status,
            headers: head.headers,
            body: ReplyBody::new(stream::iter([Ok(body)]), outgoing.limits.body),
        })
    }

    async fn exchange(&self, exchange: Exchange) -> Result<ExchangeAnswer, OutboundError> {
        assert!(exchange.limits.https_only && exchange.limits.redirects == 0);
        let host = exchange.url.host_str().unwrap_or_default();
        let router = self.hosts.lock().get(host).cloned();
        let router = router.ok_or_else(|| OutboundError::Failed("nobody is there".into()))?;
        let mut request = Request::builder()
            .method(exchange.method)
            .uri(exchange.url.as_str());
        request.headers_mut().unwrap().extend(exchange.headers);
        let request = request.body(Body::from(exchange.body)).unwrap();
        let (head, body) = router.oneshot(request).await.unwrap().into_parts();
        Ok(ExchangeAnswer {
            status: head.status,
            headers: head.headers,
            body: body.collect().await.unwrap().to_bytes(),
            url: exchange.url,
        })
    }
}

/// A homeserver of this name in the network.
async fn join(network: &Arc<Network>, name: &str) -> Fresh {
    join_with(network, name, |_| {}).await
}

/// Like [`join`], configured further.
async fn join_with(network: &Arc<Network>, name: &str, change: impl FnOnce(&mut Config)) -> Fresh {
    let name = ServerName::parse(name).unwrap();
    let mut config = Config {
        server_name: name.clone(),
        ..Config::default()
    };
    config.registration.mode = RegistrationMode::Open;
    config.rate_limits.enabled = false;
    change(&mut config);
    let clock = Arc::new(ManualClock::new(START));
    let seed = name.as_str().len() as u64;
    let homeserver = Homeserver::configured(config)
        .engine(Arc::new(MemoryEngine::new()))
        .transport(Arc::clone(network) as _)
        .runtime(Runtime::simulated(Arc::clone(&clock), seed))
        .open()
        .await
        .unwrap();
    let router = homeserver.router();
    network.routers.lock().insert(name, router.clone());
    Fresh {
        homeserver,
        router,
        clock,
    }
}

async fn get(server: &Fresh, path: &str) -> Answer {
    server.send(Method::GET, path, None, Value::Null).await
}

#[tokio::test]
async fn servers_learn_each_others_keys_from_each_other_and_from_a_third() {
    let network = Arc::new(Network::default());
    let (here, there) = (
        join(&network, "a.example").await,
        join(&network, "bb.example").await,
    );
    let name = server_name!("bb.example");
    let document = get(&there, "/_matrix/key/v2/server").await.ok();
    let json = document.to_string();
    let read = KeyDocument::read(json.as_bytes(), name, START).unwrap();
    assert_eq!(
        get(&there, "/_matrix/key/v2/server/ed25519:any").await.ok(),
        document
    );
    let key_id = read.keys().keys().next().unwrap().clone();
    let ring = &here.homeserver.components().federation.ring;
    let asked = BTreeSet::from([key_id.as_str()]);
    let known = ring.request_keys(name, &asked).await.unwrap();
    assert_eq!(known[&key_id], read.keys()[&key_id].key);

    // From `here` as a notary, with its signature beside that of the server.
    let asked =
        json!({ "server_keys": { "bb.example": { "ed25519:any": {} }, "gone.example": {} } });
    let many = here
        .send(Method::POST, "/_matrix/key/v2/query", None, asked)
        .await
        .ok();
    let one = get(&here, "/_matrix/key/v2/query/bb.example").await.ok();
    let old = get(
        &here,
        "/_matrix/key/v2/query/bb.example/ed25519:any?minimum_valid_until_ts=5",
    );
    let old = old.await.ok();
    for answer in [many, one, old] {
        let documents = answer["server_keys"].as_array().unwrap().clone();
        assert_eq!(documents.len(), 1, "{answer}");
        let read = KeyDocument::read(documents[0].to_string().as_bytes(), name, START).unwrap();
        let own = &here.homeserver.components().federation.own_keys;
        let key = |id: &str| own.published(id).map(|key| key.key);
        assert!(read.is_vouched_for(server_name!("a.example"), &key));
    }
}

#[tokio::test]
async fn questions_for_keys_are_checked() {
    let network = Arc::new(Network::default());
    let here = join(&network, "a.example").await;
    let path = "/_matrix/key/v2/query";
    let wrong = format!("{path}/not%20a%20name");
    get(&here, &wrong).await.refused(400, "M_INVALID_PARAM");
    let wrong = format!("{path}/b.example?minimum_valid_until_ts=soon");
    get(&here, &wrong).await.refused(400, "M_INVALID_PARAM");
    for (body, code) in [
        (json!({}), "M_MISSING_PARAM"),
        (json!({ "server_keys": [] }), "M_BAD_JSON"),
        (json!({ "server_keys": { "no name": {} } }), "M_BAD_JSON"),
    ] {
        let answer = here.send(Method::POST, path, None, body).await;
        answer.refused(400, code);
    }
    let many: HashMap<String, Value> = (0..101)
        .map(|n| (format!("s{n}.example"), json!({})))
        .collect();
    let body = json!({ "server_keys": many });
    let answer = here.send(Method::POST, path, None, body).await;
    answer.refused(400, "M_INVALID_PARAM");
    get(&here, path).await.refused(405, "M_UNRECOGNIZED");
}

#[tokio::test]
async fn a_server_says_what_it_is_and_whom_a_token_speaks_of() {
    let network = Arc::new(Network::default());
    let (here, there) = (
        join(&network, "a.example").await,
        join(&network, "bb.example").await,
    );
    let peers = &there.homeserver.components().federation.peers;
    let ask = |call: Call| peers.ask(server_name!("a.example"), call);
    let version = ask(Call::get(Path::v1("version"))).await.unwrap();
    let version: Value = serde_json::from_slice(&version.body).unwrap();
    assert_eq!(version["server"]["name"], "homeserver");

    let alice = here.register("alice").await;
    let path = format!(
        "/_matrix/client/v3/user/{}/openid/request_token",
        alice.user
    );
    let token = here
        .send(Method::POST, &path, Some(&alice.token), json!({}))
        .await
        .ok();
    let token = token["access_token"].as_str().unwrap().to_owned();
    let userinfo = "/_matrix/federation/v1/openid/userinfo";
    for _ in 0..2 {
        let known = get(&here, &format!("{userinfo}?access_token={token}")).await;
        assert_eq!(known.ok(), json!({ "sub": "@alice:a.example" }));
    }
    get(&here, userinfo).await.refused(401, "M_MISSING_TOKEN");
    let unknown = format!("{userinfo}?access_token={}", alice.token);
    get(&here, &unknown).await.refused(401, "M_UNKNOWN_TOKEN");
    here.clock.advance(std::time::Duration::from_hours(2));
    let late = format!("{userinfo}?access_token={token}");
    get(&here, &late).await.refused(401, "M_UNKNOWN_TOKEN");
}

#[tokio::test]
async fn a_server_that_does_not_federate_serves_none_of_it() {
    let alone = fresh_with(|config| config.federation.enabled = false).await;
    for path in [
        "/_matrix/key/v2/server",
        "/_matrix/key/v2/query/b.example",
        "/_matrix/federation/v1/version",
    ] {
        get(&alone, path).await.refused(404, "M_UNRECOGNIZED");
    }
}

#[tokio::test]
async fn what_is_signed_is_answered_to_servers_only() {
    let network = Arc::new(Network::default());
    let (here, there) = (
        join(&network, "a.example").await,
        join(&network, "bb.example").await,
    );
    let alice = here.register("alice").await;
    let path = format!("/_matrix/client/v3/profile/{}/displayname", alice.user);
    let name = json!({ "displayname": "Alice" });
    here.send(Method::PUT, &path, Some(&alice.token), name)
        .await
        .ok();
    let peers = &there.homeserver.components().federation.peers;
    let ask = async |user: &str, field: Option<&str>| {
        let path = Path::v1("query/profile").query("user_id", user);
        let path = match field {
            Some(field) => path.query("field", field),
            None => path,
        };
        let answer = peers.ask(server_name!("a.example"), Call::get(path)).await;
        answer.map(|answer| serde_json::from_slice::<Value>(&answer.body).unwrap())
    };
    let whole = ask("@alice:a.example", None).await.unwrap();
    assert_eq!(whole, json!({ "displayname": "Alice" }));
    let field = ask("@alice:a.example", Some("displayname")).await.unwrap();
    assert_eq!(field, whole);
    for (user, field) in [
        ("@alice:a.example", Some("avatar_url")),
        ("@nobody:a.example", None),
        ("@alice:bb.example", None),
    ] {
        let refused = ask(user, field).await.unwrap_err();
        let is_not_found =
            matches!(&refused, CallError::Refused { errcode, .. } if errcode == "M_NOT_FOUND");
        assert!(is_not_found, "{user}: {refused}");
    }
    // Neither without a signature nor with a client's token.
    let path = "/_matrix/federation/v1/query/profile?user_id=%40alice%3Aa.example";
    for token in [None, Some(&*alice.token)] {
        let answer = here.send(Method::GET, path, token, Value::Null).await;
        answer.refused(401, "M_UNAUTHORIZED");
    }
}

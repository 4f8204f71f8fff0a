//! People who are invited by their addresses, with an identity server that is played.

use axum::{Json, extract::Query, routing};
use homeserver_events::{SigningKey, canonical, sign_json};

use super::{
    peer::{Peer, object},
    resident::{client_path, encode},
    *,
};

const V3: &str = "/_matrix/client/v3";
const ID_SERVER: &str = "id.example";
const OFFER: &str = "m.room.third_party_invite";
const ADDRESS: &str = "carol@example.org";

/// What an identity server knows, and was asked.
struct Identity {
    key: SigningKey,
    bound: Mutex<Option<String>>,
    refuses: Mutex<Option<(u16, Value)>>,
    revoked: Mutex<bool>,
    asked: Mutex<Vec<(String, Value)>>,
}

impl Identity {
    fn join(network: &Network) -> Arc<Self> {
        let identity = Arc::new(Self {
            key: SigningKey::from_seed("0", &[77; 32]).unwrap(),
            bound: Mutex::default(),
            refuses: Mutex::default(),
            revoked: Mutex::default(),
            asked: Mutex::default(),
        });
        let base = "/_matrix/identity/v2";
        let of = |identity: &Arc<Self>| Arc::clone(identity);
        let (details, look_up, store, valid) =
            (of(&identity), of(&identity), of(&identity), of(&identity));
        let router =
            Router::new()
                .route(
                    &format!("{base}/hash_details"),
                    routing::get(async move |headers: HeaderMap| {
                        assert_eq!(headers["authorization"], "Bearer secret");
                        details.answer("hash_details", Value::Null, |_| {
                        json!({ "lookup_pepper": "pepper", "algorithms": ["none", "sha256"] })
                    })
                    }),
                )
                .route(
                    &format!("{base}/lookup"),
                    routing::post(async move |Json(body): Json<Value>| {
                        look_up.answer("lookup", body, Self::look_up)
                    }),
                )
                .route(
                    &format!("{base}/store-invite"),
                    routing::post(async move |headers: HeaderMap, Json(body): Json<Value>| {
                        assert_eq!(headers["authorization"], "Bearer secret");
                        store.answer("store-invite", body, Self::store)
                    }),
                )
                .route(
                    &format!("{base}/pubkey/isvalid"),
                    routing::get(async move |Query(query): Query<Value>| {
                        valid.answer(
                            "isvalid",
                            query,
                            |identity| json!({ "valid": !*identity.revoked.lock() }),
                        )
                    }),
                );
        network.hosts.lock().insert(ID_SERVER.to_owned(), router);
        identity
    }

    fn answer(
        &self,
        what: &str,
        body: Value,
        answer: impl FnOnce(&Self) -> Value,
    ) -> (http::StatusCode, Json<Value>) {
        self.asked.lock().push((what.to_owned(), body));
        if let Some((status, body)) = self.refuses.lock().clone() {
            return (http::StatusCode::from_u16(status).unwrap(), Json(body));
        }
        (http::StatusCode::OK, Json(answer(self)))
    }

    fn look_up(&self) -> Value {
        let asked = self.asked.lock().last().unwrap().1.clone();
        assert_eq!(asked["algorithm"], "sha256");
        let hashed = asked["addresses"][0].as_str().unwrap();
        assert!(!hashed.contains('@'), "the address itself is not told");
        match &*self.bound.lock() {
            Some(user) => json!({ "mappings": { hashed: user } }),
            None => json!({ "mappings": {} }),
        }
    }

    fn store(&self) -> Value {
        json!({
            "token": "token",
            "display_name": "c...@e...",
            "public_keys": [{
                "public_key": self.key.verify_key().to_base64(),
                "key_validity_url": format!("https://{ID_SERVER}/_matrix/identity/v2/pubkey/isvalid"),
            }],
        })
    }

    /// What it signs for a user, as this server.
    fn signed(user: &str, key: &SigningKey) -> Value {
        Self::sign(&json!({ "mxid": user, "token": "token" }), key)
    }

    fn sign(block: &Value, key: &SigningKey) -> Value {
        let mut signed = object(block);
        sign_json(&mut signed, ID_SERVER, key);
        serde_json::from_str(&canonical::to_string(&signed)).unwrap()
    }

    /// What it tells the server of a user to whom the address belongs now.
    fn on_bind(&self, user: &str, room: &str, inviter: &str) -> Value {
        let invite = json!({
            "medium": "email", "address": ADDRESS, "mxid": user, "room_id": room,
            "sender": inviter, "signed": Self::signed(user, &self.key),
        });
        json!({ "medium": "email", "address": ADDRESS, "mxid": user, "invites": [invite] })
    }

    fn was_asked(&self) -> Vec<String> {
        let asked = self.asked.lock();
        asked.iter().map(|(what, _)| what.clone()).collect()
    }
}

struct World {
    network: Arc<Network>,
    identity: Arc<Identity>,
    here: Fresh,
    there: Fresh,
    alice: LoggedIn,
    carol: LoggedIn,
}

fn by_address() -> Value {
    json!({
        "id_server": ID_SERVER, "id_access_token": "secret", "medium": "email", "address": ADDRESS,
    })
}

async fn told_of_bond(server: &Fresh, body: Value) -> Answer {
    let path = "/_matrix/federation/v1/3pid/onbind";
    server.put(path, None, body).await
}

impl World {
    async fn new() -> Self {
        let network = Arc::new(Network::default());
        let here = join(&network, "a.example").await;
        let there = join(&network, "bb.example").await;
        Self {
            identity: Identity::join(&network),
            alice: here.register("alice").await,
            carol: there.register("carol").await,
            network,
            here,
            there,
        }
    }

    async fn room(&self, wish: Value) -> String {
        let path = format!("{V3}/createRoom");
        let made = self.here.post(&path, Some(&self.alice.token), wish).await;
        made.ok()["room_id"].as_str().unwrap().to_owned()
    }

    async fn invite(&self, room: &str) -> Answer {
        let path = format!("{}/invite", client_path(room));
        self.here
            .post(&path, Some(&self.alice.token), by_address())
            .await
    }

    async fn state(&self, room: &str, kind: &str, key: &str) -> Value {
        let path = format!("{}/state/{kind}/{}", client_path(room), encode(key));
        self.here.get(&path, Some(&self.alice.token)).await.body
    }

    async fn membership(&self, room: &str, user: &str) -> Value {
        self.state(room, "m.room.member", user).await["membership"].clone()
    }

    async fn join(&self, server: &Fresh, who: &LoggedIn, room: &str) -> Answer {
        let path = format!("{V3}/join/{}?via=a.example", encode(room));
        server.post(&path, Some(&who.token), json!({})).await
    }

    fn on_bind(&self, user: &str, room: &str) -> Value {
        self.identity.on_bind(user, room, &self.alice.user)
    }
}

#[tokio::test]
async fn whose_user_is_known_is_simply_invited() {
    let world = World::new().await;
    *world.identity.bound.lock() = Some(world.carol.user.clone());
    let room = world.room(json!({})).await;
    world.invite(&room).await.ok();
    assert_eq!(world.membership(&room, &world.carol.user).await, "invite");
    assert_eq!(world.identity.was_asked(), ["hash_details", "lookup"]);
    world.join(&world.there, &world.carol, &room).await.ok();
    // Into a new room just so.
    let room = world.room(json!({ "invite_3pid": [by_address()] })).await;
    assert_eq!(world.membership(&room, &world.carol.user).await, "invite");
}

#[tokio::test]
async fn who_proves_to_be_meant_is_invited_across_servers() {
    for version in ["6", "11", "12"] {
        let world = World::new().await;
        let room = world
            .room(json!({ "room_version": version, "name": "party" }))
            .await;
        world.invite(&room).await.ok();
        let offer = world.state(&room, OFFER, "token").await;
        assert_eq!(offer["display_name"], "c...@e...", "{offer}");
        assert_eq!(offer["public_key"], offer["public_keys"][0]["public_key"]);
        assert!(!offer.to_string().contains(ADDRESS));
        let stored = world.identity.asked.lock().last().unwrap().1.clone();
        assert_eq!(stored["room_name"], "party");
        assert_eq!(stored["address"], ADDRESS);
        assert_eq!(stored["sender"], *world.alice.user);

        let bond = world.on_bind(&world.carol.user, &room);
        told_of_bond(&world.there, bond).await.ok();
        let member = world.state(&room, "m.room.member", &world.carol.user).await;
        assert_eq!(member["membership"], "invite", "{member}");
        let shown = &member["third_party_invite"]["display_name"];
        assert_eq!(shown, "c...@e...", "as the room knows it");
        assert_eq!(world.identity.was_asked().last().unwrap(), "isvalid");
        let path = format!("{V3}/sync?timeout=0");
        let told = world.there.get(&path, Some(&world.carol.token)).await.ok();
        assert!(told["rooms"]["invite"][&room].is_object(), "{told}");
        world.join(&world.there, &world.carol, &room).await.ok();
        assert_eq!(world.membership(&room, &world.carol.user).await, "join");
        // Once more does not put her out again.
        let bond = world.on_bind(&world.carol.user, &room);
        told_of_bond(&world.there, bond).await.ok();
        assert_eq!(world.membership(&room, &world.carol.user).await, "join");
    }
}

#[tokio::test]
async fn a_server_that_is_in_the_room_makes_the_invite_itself() {
    let world = World::new().await;
    let room = world.room(json!({ "preset": "public_chat" })).await;
    world.invite(&room).await.ok();
    // The room and the user are both here.
    let dave = world.here.register("dave").await;
    let bond = world.on_bind(&dave.user, &room);
    told_of_bond(&world.here, bond).await.ok();
    assert_eq!(world.membership(&room, &dave.user).await, "invite");

    // The user is at a server that is in the room, the inviter elsewhere: it makes the invite in the
    // name of the inviter, whose server hears of it like all others.
    let bob = world.there.register("bob").await;
    world.join(&world.there, &bob, &room).await.ok();
    let bond = world.on_bind(&world.carol.user, &room);
    told_of_bond(&world.there, bond).await.ok();
    let path = format!(
        "{}/state/m.room.member/{}",
        client_path(&room),
        encode(&world.carol.user)
    );
    let member = world.there.get(&path, Some(&bob.token)).await.ok();
    assert_eq!(member["membership"], "invite");
    let look = async {
        while world.membership(&room, &world.carol.user).await != "invite" {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let patience = std::time::Duration::from_mins(1);
    tokio::time::timeout(patience, look).await.unwrap();
}

#[tokio::test]
async fn who_joins_with_a_proof_is_let_in_here_and_elsewhere() {
    let world = World::new().await;
    let room = world.room(json!({})).await;
    world.invite(&room).await.ok();
    let dave = world.here.register("dave").await;
    let proof = |user: &str, sender: &str| {
        let block = json!({ "mxid": user, "token": "token", "sender": sender });
        Identity::sign(&block, &world.identity.key)
    };
    for (server, who) in [(&world.here, &dave), (&world.there, &world.carol)] {
        let join = async |signed: Value| {
            let path = format!("{V3}/join/{}?via=a.example", encode(&room));
            let body = json!({ "third_party_signed": signed });
            server.post(&path, Some(&who.token), body).await
        };
        for wrong in [
            proof("@bob:bb.example", &world.alice.user),
            proof(&who.user, "@mallory:a.example"),
        ] {
            join(wrong).await.refused(403, "M_FORBIDDEN");
            assert_eq!(world.membership(&room, &who.user).await, Value::Null);
        }
        let good = proof(&who.user, &world.alice.user);
        join(good.clone()).await.ok();
        let member = world.state(&room, "m.room.member", &who.user).await;
        assert_eq!(member["membership"], "join", "{member}");
        // Who is there already is so.
        join(good).await.ok();
        assert_eq!(world.membership(&room, &who.user).await, "join");
    }
}

#[tokio::test]
async fn only_so_many_are_asked_for_what_anybody_may_say() {
    let world = World::new().await;
    let asked = Arc::new(Mutex::new(0));
    for name in ["c.example", "dd.example", "eee.example", "ffff.example"] {
        let asked = Arc::clone(&asked);
        let silent = async move || {
            *asked.lock() += 1;
            std::future::pending::<Json<Value>>().await
        };
        let path = "/_matrix/federation/v1/exchange_third_party_invite/{room}";
        Peer::join(
            &world.network,
            name,
            Router::new().route(path, routing::put(silent)),
        );
    }
    let bond = |server: &str| {
        let inviter = format!("@x:{server}");
        let carol = &world.carol.user;
        let bond = world.identity.on_bind(carol, "!x:c.example", &inviter);
        told_of_bond(&world.there, bond)
    };
    let all = futures_util::future::join_all([
        bond("c.example"),
        bond("dd.example"),
        bond("eee.example"),
        bond("ffff.example"),
    ]);
    let one_more = async {
        while *asked.lock() < 4 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        bond("c.example").await
    };
    tokio::select! {
        biased;
        _ = all => panic!("nobody answered them"),
        answer = one_more => answer.refused(429, "M_LIMIT_EXCEEDED"),
    };
}

#[tokio::test]
async fn what_proves_nothing_invites_nobody() {
    let world = World::new().await;
    let room = world.room(json!({})).await;
    world.invite(&room).await.ok();
    let (identity, carol) = (&world.identity, &world.carol.user);
    let other = SigningKey::from_seed("0", &[78; 32]).unwrap();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut body = world.on_bind(carol, &room);
        change(&mut body["invites"][0]);
        body
    };
    let bonds = [
        // By a key that the room does not know.
        with(&|invite| invite["signed"] = Identity::signed(carol, &other)),
        // For somebody else.
        with(&|invite| invite["signed"] = Identity::signed("@bob:bb.example", &identity.key)),
        with(&|invite| invite["signed"]["mxid"] = "@bob:bb.example".into()),
        with(&|invite| invite["mxid"] = "@bob:bb.example".into()),
        // Not signed, or for an offer that is not there.
        with(&|invite| invite["signed"]["signatures"] = json!({})),
        with(&|invite| invite["signed"]["token"] = "other".into()),
        // Sent by nobody there.
        with(&|invite| invite["sender"] = "@mallory:a.example".into()),
        with(&|invite| invite["room_id"] = "!unknown:a.example".into()),
    ];
    for bond in bonds {
        told_of_bond(&world.there, bond.clone()).await.ok();
        let now = world.membership(&room, carol).await;
        assert_eq!(now, Value::Null, "{bond}");
    }
    // The key was revoked, or nobody tells.
    *identity.revoked.lock() = true;
    told_of_bond(&world.there, with(&|_| {})).await.ok();
    *identity.revoked.lock() = false;
    *identity.refuses.lock() = Some((500, json!({})));
    told_of_bond(&world.there, with(&|_| {})).await.ok();
    assert_eq!(world.membership(&room, carol).await, Value::Null);
    *identity.refuses.lock() = None;
    let nobody = world.on_bind("@nobody:bb.example", &room);
    told_of_bond(&world.there, nobody)
        .await
        .refused(400, "M_BAD_JSON");
    told_of_bond(&world.there, json!({ "medium": "email" }))
        .await
        .refused(400, "M_MISSING_PARAM");
    told_of_bond(&world.there, with(&|_| {})).await.ok();
    assert_eq!(world.membership(&room, carol).await, "invite");
}

#[tokio::test]
async fn a_server_exchanges_proofs_of_its_own_users_only_and_of_the_room_that_it_names() {
    let world = World::new().await;
    let room = world.room(json!({})).await;
    world.invite(&room).await.ok();
    let peer = Peer::join(&world.network, "peer.example", Router::new());
    let eve = peer.user("eve");
    let event = |user: &str| {
        json!({
            "type": "m.room.member", "room_id": room, "sender": world.alice.user, "state_key": user,
            "content": { "membership": "invite", "third_party_invite": {
                "display_name": "x", "signed": Identity::signed(user, &world.identity.key),
            } },
        })
    };
    let with = |field: &str, value: Value| {
        let mut event = event(&eve);
        event[field] = value;
        event
    };
    let exchange = async |room: &str, event: &Value| {
        let path = format!(
            "/_matrix/federation/v1/exchange_third_party_invite/{}",
            encode(room)
        );
        peer.put(&world.here, &path, event).await
    };
    let mut joins = event(&eve);
    joins["content"]["membership"] = "join".into();
    let other = world.room(json!({})).await;
    for (room, event, status, code) in [
        (
            &room,
            with("type", "m.room.name".into()),
            400,
            "M_INVALID_PARAM",
        ),
        (
            &room,
            with("room_id", other.as_str().into()),
            400,
            "M_INVALID_PARAM",
        ),
        (&room, joins, 400, "M_INVALID_PARAM"),
        (&room, with("content", json!({})), 400, "M_MISSING_PARAM"),
        (&room, event(&world.carol.user), 403, "M_FORBIDDEN"),
        (
            &room,
            with("state_key", peer.user("mallory").into()),
            403,
            "M_FORBIDDEN",
        ),
        (
            &room,
            with("sender", "@mallory:a.example".into()),
            403,
            "M_FORBIDDEN",
        ),
        (
            &room,
            with("sender", peer.user("mallory").into()),
            403,
            "M_FORBIDDEN",
        ),
        (
            &other,
            with("room_id", other.as_str().into()),
            403,
            "M_FORBIDDEN",
        ),
        (
            &"!unknown:a.example".to_owned(),
            with("room_id", "!unknown:a.example".into()),
            404,
            "M_NOT_FOUND",
        ),
    ] {
        exchange(room, &event).await.refused(status, code);
    }
    // The peer signs no invite: there is none.
    exchange(&room, &event(&eve))
        .await
        .refused(502, "M_UNKNOWN");
    assert_eq!(world.membership(&room, &eve).await, Value::Null);
    let path = "/_matrix/federation/v1/exchange_third_party_invite/!x:a.example";
    let unsigned = world.here.put(path, None, event(&eve)).await;
    unsigned.refused(401, "M_UNAUTHORIZED");
}

#[tokio::test]
async fn what_an_identity_server_refuses_or_garbles_is_told_and_changes_nothing() {
    let world = World::new().await;
    let room = world.room(json!({})).await;
    let refuses = |status, code: &str| Some((status, json!({ "errcode": code, "error": "no" })));
    for (answer, status, code) in [
        (
            refuses(403, "M_TERMS_NOT_SIGNED"),
            403,
            "M_TERMS_NOT_SIGNED",
        ),
        (refuses(401, "M_UNAUTHORIZED"), 403, "M_THREEPID_DENIED"),
        (refuses(400, "M_UNRECOGNIZED"), 400, "M_INVALID_PARAM"),
        (refuses(500, "M_UNKNOWN"), 502, "M_UNKNOWN"),
        (Some((200, json!({ "algorithms": [] }))), 502, "M_UNKNOWN"),
        (refuses(400, "M_INVALID_PEPPER"), 403, "M_THREEPID_DENIED"),
    ] {
        *world.identity.refuses.lock() = answer;
        world.invite(&room).await.refused(status, code);
    }
    *world.identity.refuses.lock() = None;
    // Asked twice with a new pepper, and no further.
    let asked = world.identity.was_asked();
    assert_eq!(asked[asked.len() - 2..], ["hash_details", "hash_details"]);
    for (field, value, status, code) in [
        ("id_server", "nowhere.example", 502, "M_UNKNOWN"),
        ("id_server", "id.example/x", 400, "M_INVALID_PARAM"),
        ("id_access_token", "a\nb", 400, "M_INVALID_PARAM"),
    ] {
        let mut body = by_address();
        body[field] = value.into();
        let path = format!("{}/invite", client_path(&room));
        let answer = world.here.post(&path, Some(&world.alice.token), body);
        answer.await.refused(status, code);
    }
    assert_eq!(
        world.state(&room, OFFER, "token").await["errcode"],
        "M_NOT_FOUND"
    );

    // Who may not invite makes the identity server write to nobody.
    let dave = world.here.register("dave").await;
    let before = world.identity.was_asked().len();
    let path = format!("{}/invite", client_path(&room));
    let answer = world
        .here
        .post(&path, Some(&dave.token), by_address())
        .await;
    answer.refused(403, "M_FORBIDDEN");
    assert_eq!(world.identity.was_asked().len(), before);
    let many = vec![by_address(); 11];
    let path = format!("{V3}/createRoom");
    let answer = world.here.post(
        &path,
        Some(&world.alice.token),
        json!({ "invite_3pid": many }),
    );
    answer.await.refused(400, "M_INVALID_PARAM");
}

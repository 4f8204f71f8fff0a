//! Cross-signing keys and signatures, with real keys.

use std::collections::BTreeMap;

use homeserver_events::{
    SigningKey, Strictness,
    canonical::{parse_object, to_string},
    sign_json,
};
use homeserver_storage::Batch;
use ruma::OwnedUserId;
use serde_json::{Value, json, value::RawValue};

use super::{World, device_id, raw, user_id, value};
use crate::{
    CrossSigningError, CrossSigningUpload, InvalidKey, KeyUpload, KeyUsage, Proved,
    SignatureFailure, UserNumber,
};

/// A client's private key. The server's signer names signatures by a version; a client names them
/// by device id or public key, so the signature is moved under that name.
pub(super) struct Client(SigningKey);

impl Client {
    pub(super) fn new(number: u8) -> Self {
        let mut seed = [7; 32];
        seed[0] = number;
        Self(SigningKey::from_seed("x", &seed).unwrap())
    }

    pub(super) fn public(&self) -> String {
        self.0.verify_key().to_base64()
    }

    pub(super) fn sign(&self, object: &mut Value, user: &str, key_id: &str) {
        let user = user_id(user).to_string();
        let mut bare = object.clone();
        bare.as_object_mut().unwrap().remove("signatures");
        bare.as_object_mut().unwrap().remove("unsigned");
        let mut canonical = parse_object(bare.to_string().as_bytes(), Strictness::Strict).unwrap();
        sign_json(&mut canonical, &user, &self.0);
        let signed: Value = serde_json::from_str(&to_string(&canonical)).unwrap();
        let signature = signed["signatures"][&user]["ed25519:x"].clone();
        object["signatures"][&user][format!("ed25519:{key_id}")] = signature;
    }
}

fn cross_signing_key(user: &str, usage: &str, client: &Client) -> Value {
    let public = client.public();
    json!({
        "user_id": user_id(user),
        "usage": [usage],
        "keys": { format!("ed25519:{public}"): public },
    })
}

/// A user with a device and cross-signing keys, and all private keys.
struct Person {
    name: &'static str,
    number: UserNumber,
    id: OwnedUserId,
    device: Client,
    device_keys: Value,
    master: Client,
    master_key: Value,
    self_signing: Client,
    user_signing: Client,
}

impl Person {
    async fn new(world: &World, name: &'static str, seed: u8) -> Self {
        let number = world.user(name).await;
        world.device(number, "DEVICE").await;
        let device = Client::new(seed);
        let mut device_keys = json!({
            "user_id": user_id(name),
            "device_id": "DEVICE",
            "algorithms": [],
            "keys": { "ed25519:DEVICE": device.public() },
        });
        device.sign(&mut device_keys, name, "DEVICE");
        let master = Client::new(seed + 1);
        let master_key = cross_signing_key(name, "master", &master);
        let person = Self {
            name,
            number,
            id: user_id(name),
            device,
            device_keys,
            master,
            master_key,
            self_signing: Client::new(seed + 2),
            user_signing: Client::new(seed + 3),
        };
        let upload = KeyUpload {
            device_keys: Some(raw(&person.device_keys)),
            ..KeyUpload::default()
        };
        let keys = &world.users.keys;
        keys.upload((number, &person.id), &device_id("DEVICE"), &upload)
            .await
            .unwrap();
        world
            .users
            .cross_signing
            .upload((number, &person.id), &person.upload(), Proved::No)
            .await
            .unwrap();
        person
    }

    fn signed_by_master(&self, usage: &str, client: &Client) -> Value {
        let mut key = cross_signing_key(self.name, usage, client);
        self.master.sign(&mut key, self.name, &self.master.public());
        key
    }

    fn upload(&self) -> CrossSigningUpload {
        CrossSigningUpload {
            master: Some(raw(&self.master_key)),
            self_signing: Some(raw(
                &self.signed_by_master("self_signing", &self.self_signing)
            )),
            user_signing: Some(raw(
                &self.signed_by_master("user_signing", &self.user_signing)
            )),
        }
    }
}

type Signed = BTreeMap<OwnedUserId, BTreeMap<String, Box<RawValue>>>;

fn signed(objects: &[(&Person, &str, &Value)]) -> Signed {
    let mut signed = Signed::new();
    for (owner, key_id, object) in objects {
        let of_owner = signed.entry(owner.id.clone()).or_default();
        of_owner.insert((*key_id).to_owned(), raw(object));
    }
    signed
}

#[tokio::test]
async fn keys_are_stored_and_shown_to_whom_they_concern() {
    let world = World::new().await;
    let alice = Person::new(&world, "alice", 10).await;
    let bob = Person::new(&world, "bob", 20).await;
    let cross_signing = &world.users.cross_signing;
    let owner = (alice.number, &*alice.id);
    let own = cross_signing.keys(owner, owner).await.unwrap();
    assert_eq!(value(&own.master.unwrap()), alice.master_key);
    assert!(own.self_signing.is_some() && own.user_signing.is_some());
    let seen = cross_signing
        .keys(owner, (bob.number, &bob.id))
        .await
        .unwrap();
    assert!(seen.master.is_some() && seen.self_signing.is_some());
    assert!(seen.user_signing.is_none());
}

#[tokio::test]
async fn deleted_keys_are_gone_and_the_list_says_so() {
    let world = World::new().await;
    let alice = Person::new(&world, "alice", 10).await;
    let cross_signing = &world.users.cross_signing;
    let start = world.store.durable();
    cross_signing.delete(alice.number).await.unwrap();
    let end = world.store.durable();
    let lists = &world.users.device_lists;
    assert_eq!(
        lists.changed(start, end).await.unwrap(),
        [alice.number].into()
    );
    let owner = (alice.number, &*alice.id);
    let keys = cross_signing.keys(owner, owner).await.unwrap();
    assert!(keys.master.is_none() && keys.self_signing.is_none() && keys.user_signing.is_none());
    cross_signing.delete(alice.number).await.unwrap();
    assert_eq!(world.store.durable(), end);
}

#[tokio::test]
async fn only_new_keys_need_authentication_and_the_same_again_change_nothing() {
    let world = World::new().await;
    let nobody = (world.user("new").await, user_id("new"));
    let alice = Person::new(&world, "alice", 10).await;
    let cross_signing = &world.users.cross_signing;
    let owner = (alice.number, &*alice.id);
    let first = CrossSigningUpload {
        master: Some(raw(&cross_signing_key("new", "master", &Client::new(99)))),
        ..CrossSigningUpload::default()
    };
    let nobody = (nobody.0, &*nobody.1);
    let uploaded = cross_signing.upload(nobody, &first, Proved::No);
    uploaded.await.unwrap();
    let before = world.store.durable();
    let same = alice.upload();
    let again = cross_signing.upload(owner, &same, Proved::No);
    again.await.unwrap();
    assert_eq!(world.store.durable(), before);
    let other = alice.signed_by_master("self_signing", &Client::new(99));
    let other = CrossSigningUpload {
        self_signing: Some(raw(&other)),
        ..CrossSigningUpload::default()
    };
    let refused = cross_signing.upload(owner, &other, Proved::No).await;
    assert!(matches!(
        refused,
        Err(CrossSigningError::NeedsAuthentication)
    ));
    assert_eq!(world.store.durable(), before);
    let uploaded = cross_signing.upload(owner, &other, Proved::Yes);
    uploaded.await.unwrap();
    let now = world.store.durable();
    let changed = world.users.device_lists.changed(before, now).await.unwrap();
    assert_eq!(changed, [alice.number].into());
}

#[tokio::test]
async fn what_a_stored_key_holds_is_not_rewritten_without_proof() {
    let world = World::new().await;
    let alice = Person::new(&world, "alice", 10).await;
    let cross_signing = &world.users.cross_signing;
    let owner = (alice.number, &*alice.id);
    let master = |key: &Value| CrossSigningUpload {
        master: Some(raw(key)),
        ..CrossSigningUpload::default()
    };
    let before = world.store.durable();
    let mut rewritten = alice.master_key.clone();
    rewritten["usage"] = json!(["master", "self_signing"]);
    let mut added = alice.master_key.clone();
    added["org.example.note"] = "trust me".into();
    for other in [&rewritten, &added] {
        let other = master(other);
        let refused = cross_signing.upload(owner, &other, Proved::No).await;
        assert!(matches!(
            refused,
            Err(CrossSigningError::NeedsAuthentication)
        ));
    }
    // With other signatures it is the same key, and the stored ones stay.
    let mut signed = alice.master_key.clone();
    alice.device.sign(&mut signed, "alice", "DEVICE");
    let signed = master(&signed);
    let again = cross_signing.upload(owner, &signed, Proved::No);
    again.await.unwrap();
    assert_eq!(world.store.durable(), before);
    let shown = cross_signing.keys(owner, owner).await.unwrap();
    assert_eq!(value(&shown.master.unwrap()), alice.master_key);

    let changed = master(&added);
    let proved = cross_signing.upload(owner, &changed, Proved::Yes);
    proved.await.unwrap();
    let shown = cross_signing.keys(owner, owner).await.unwrap();
    assert_eq!(value(&shown.master.unwrap()), added);
}

#[tokio::test]
async fn of_first_uploads_at_once_only_one_passes_without_proof() {
    let world = World::new().await;
    let cross_signing = &world.users.cross_signing;
    for name in ["one", "two", "three", "four", "five"] {
        let (number, id) = (world.user(name).await, user_id(name));
        let owner = (number, &*id);
        let [mine, theirs] = [1, 2].map(|seed| CrossSigningUpload {
            master: Some(raw(&cross_signing_key(name, "master", &Client::new(seed)))),
            ..CrossSigningUpload::default()
        });
        let (mine, theirs) = tokio::join!(
            cross_signing.upload(owner, &mine, Proved::No),
            cross_signing.upload(owner, &theirs, Proved::No),
        );
        let refused = [mine, theirs].into_iter().filter_map(Result::err);
        let refused: Vec<_> = refused.collect();
        assert!(
            matches!(refused[..], [CrossSigningError::NeedsAuthentication]),
            "{refused:?}"
        );
    }
}

#[tokio::test]
async fn wrong_cross_signing_keys_are_refused() {
    let world = World::new().await;
    let alice = Person::new(&world, "alice", 10).await;
    let newcomer = (world.user("new").await, user_id("new"));
    let cross_signing = &world.users.cross_signing;
    let owner = (alice.number, &*alice.id);
    let self_signing = |key: &Value| CrossSigningUpload {
        self_signing: Some(raw(key)),
        ..CrossSigningUpload::default()
    };
    // Unsigned, or signed by something else.
    let mut key = cross_signing_key("alice", "self_signing", &Client::new(99));
    for _ in 0..2 {
        let refused = cross_signing
            .upload(owner, &self_signing(&key), Proved::Yes)
            .await;
        assert!(matches!(
            refused,
            Err(CrossSigningError::BadSignature(KeyUsage::SelfSigning))
        ));
        Client::new(98).sign(&mut key, "alice", &alice.master.public());
    }
    // Signed well, then changed.
    let mut key = alice.signed_by_master("self_signing", &Client::new(99));
    key["extra"] = json!(1);
    let refused = cross_signing
        .upload(owner, &self_signing(&key), Proved::Yes)
        .await;
    assert!(matches!(refused, Err(CrossSigningError::BadSignature(_))));
    // No master key anywhere.
    let key = cross_signing_key("new", "self_signing", &Client::new(99));
    let refused = cross_signing
        .upload((newcomer.0, &newcomer.1), &self_signing(&key), Proved::Yes)
        .await;
    assert!(matches!(refused, Err(CrossSigningError::NoMasterKey)));
    let master = cross_signing_key("alice", "master", &Client::new(99));
    let with = |name: &str, new: Value| {
        let mut key = master.clone();
        key[name] = new;
        key
    };
    let weak = "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let cases = [
        (json!([]), InvalidKey::Form),
        (with("user_id", json!("@bob:localhost")), InvalidKey::NotOwn),
        (
            with("usage", json!(["self_signing"])),
            InvalidKey::Property("usage"),
        ),
        (with("keys", json!({})), InvalidKey::Property("keys")),
        (
            with("keys", json!({ "ed25519:a": "b" })),
            InvalidKey::Property("keys"),
        ),
        (
            with("keys", json!({ format!("ed25519:{weak}"): weak })),
            InvalidKey::Property("keys"),
        ),
        (
            with("signatures", json!(7)),
            InvalidKey::Property("signatures"),
        ),
        (with("x", json!("x".repeat(20_000))), InvalidKey::TooLarge),
    ];
    for (key, expected) in cases {
        let upload = CrossSigningUpload {
            master: Some(raw(&key)),
            ..CrossSigningUpload::default()
        };
        match cross_signing.upload(owner, &upload, Proved::Yes).await {
            Err(CrossSigningError::Invalid(KeyUsage::Master, error)) => {
                assert_eq!(error, expected);
            }
            other => panic!("{expected:?}: {other:?}"),
        }
    }
    // A public key that is also a device id.
    let client = Client::new(97);
    world.device(alice.number, &client.public()).await;
    let upload = CrossSigningUpload {
        master: Some(raw(&cross_signing_key("alice", "master", &client))),
        ..CrossSigningUpload::default()
    };
    let refused = cross_signing.upload(owner, &upload, Proved::Yes).await;
    assert!(matches!(
        refused,
        Err(CrossSigningError::IsDeviceId(KeyUsage::Master))
    ));
}

#[tokio::test]
async fn valid_signatures_are_stored_and_seen_by_the_right_people() {
    let world = World::new().await;
    let alice = Person::new(&world, "alice", 10).await;
    let bob = Person::new(&world, "bob", 20).await;
    let start = world.store.durable();
    let mut device = alice.device_keys.clone();
    device.as_object_mut().unwrap().remove("signatures");
    alice
        .self_signing
        .sign(&mut device, "alice", &alice.self_signing.public());
    let mut master = alice.master_key.clone();
    alice.device.sign(&mut master, "alice", "DEVICE");
    let mut of_bob = bob.master_key.clone();
    alice
        .user_signing
        .sign(&mut of_bob, "alice", &alice.user_signing.public());
    let signed = signed(&[
        (&alice, "DEVICE", &device),
        (&alice, &alice.master.public(), &master),
        (&bob, &bob.master.public(), &of_bob),
    ]);
    let cross_signing = &world.users.cross_signing;
    let signer = (alice.number, &*alice.id);
    let failures = cross_signing.add_signatures(signer, &signed).await.unwrap();
    assert!(failures.is_empty(), "{failures:?}");
    let end = world.store.durable();
    let lists = &world.users.device_lists;
    assert_eq!(
        lists.changed(start, end).await.unwrap(),
        [alice.number].into()
    );
    let told = lists.signed_by(alice.number, start, end).await.unwrap();
    assert_eq!(told, [bob.number].into());
    // The device carries its own signature and that of the self-signing key.
    let keys = world
        .users
        .keys
        .of_user(alice.number, &[], bob.number)
        .await
        .unwrap();
    let shown = value(&keys[&device_id("DEVICE")]);
    assert_eq!(
        shown["signatures"]["@alice:localhost"]
            .as_object()
            .unwrap()
            .len(),
        2
    );
    // Bob's master key: Alice sees what she signed, Bob does not.
    let key_of_bob = async |reader: &Person| {
        let keys = cross_signing.keys((bob.number, &bob.id), (reader.number, &reader.id));
        value(&keys.await.unwrap().master.unwrap())
    };
    assert_eq!(key_of_bob(&alice).await, of_bob);
    assert_eq!(key_of_bob(&bob).await, bob.master_key);
    // With the device its signature goes, also for a later device of that id.
    let devices = &world.users.devices;
    devices
        .delete(alice.number, &[device_id("DEVICE")], Batch::default())
        .await
        .unwrap();
    world.device(alice.number, "DEVICE").await;
    let upload = KeyUpload {
        device_keys: Some(raw(&alice.device_keys)),
        ..KeyUpload::default()
    };
    world
        .users
        .keys
        .upload(signer, &device_id("DEVICE"), &upload)
        .await
        .unwrap();
    let keys = world
        .users
        .keys
        .of_user(alice.number, &[], bob.number)
        .await
        .unwrap();
    assert_eq!(value(&keys[&device_id("DEVICE")]), alice.device_keys);
}

#[tokio::test]
async fn each_wrong_signature_is_listed_and_none_is_stored() {
    let world = World::new().await;
    let alice = Person::new(&world, "alice", 10).await;
    let bob = Person::new(&world, "bob", 20).await;
    let cross_signing = &world.users.cross_signing;
    let failure = async |owner: &Person, key_id: &str, object: &Value| {
        let signed = signed(&[(owner, key_id, object)]);
        let signer = (alice.number, &*alice.id);
        let failures = cross_signing.add_signatures(signer, &signed).await.unwrap();
        failures
            .get(&owner.id)
            .and_then(|of_owner| of_owner.get(key_id))
            .copied()
    };
    let mut forged = alice.device_keys.clone();
    Client::new(99).sign(&mut forged, "alice", &alice.self_signing.public());
    let mut unknown_signer = alice.device_keys.clone();
    Client::new(99).sign(&mut unknown_signer, "alice", &Client::new(99).public());
    let mut changed = alice.device_keys.clone();
    changed["algorithms"] = json!(["other"]);
    alice
        .self_signing
        .sign(&mut changed, "alice", &alice.self_signing.public());
    let mut by_master = alice.device_keys.clone();
    alice
        .master
        .sign(&mut by_master, "alice", &alice.master.public());
    let mut of_bobs_device = bob.device_keys.clone();
    alice
        .user_signing
        .sign(&mut of_bobs_device, "alice", &alice.user_signing.public());
    let mut by_self_signing = bob.master_key.clone();
    alice
        .self_signing
        .sign(&mut by_self_signing, "alice", &alice.self_signing.public());
    let mut in_bobs_name = bob.master_key.clone();
    alice
        .user_signing
        .sign(&mut in_bobs_name, "bob", &alice.user_signing.public());
    let (of_bob, invalid) = (bob.master.public(), SignatureFailure::InvalidSignature);
    let cases = [
        (&alice, "DEVICE", forged, invalid),
        (&alice, "DEVICE", unknown_signer, invalid),
        (&alice, "DEVICE", changed, SignatureFailure::Mismatch),
        (&alice, "DEVICE", by_master, invalid),
        (&alice, "DEVICE", json!({}), SignatureFailure::Malformed),
        (
            &alice,
            "DEVICE",
            json!({ "signatures": [] }),
            SignatureFailure::Malformed,
        ),
        (
            &alice,
            "UNKNOWN",
            alice.device_keys.clone(),
            SignatureFailure::NotFound,
        ),
        (&bob, "DEVICE", of_bobs_device, SignatureFailure::NotFound),
        (&bob, &of_bob, by_self_signing, invalid),
        (&bob, &of_bob, in_bobs_name, invalid),
    ];
    let before = world.store.durable();
    for (owner, key_id, object, expected) in &cases {
        assert_eq!(
            failure(owner, key_id, object).await,
            Some(*expected),
            "{object}"
        );
    }
    assert_eq!(world.store.durable(), before, "nothing was written");
}

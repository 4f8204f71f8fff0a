//! Identity keys, one-time keys, fallback keys.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::StreamExt as _;
use proptest::prelude::*;
use serde_json::{Value, json, value::RawValue};

use super::{World, device_id, raw, user_id, value};
use crate::{
    InvalidKey, KeyUpload, KeyUploadError, MAX_ALGORITHMS, MAX_DEVICE_KEYS,
    MAX_DEVICE_KEYS_OF_USER, MAX_KEYS_IN_UPLOAD, UserNumber,
};

const ALGORITHM: &str = "signed_curve25519";

/// Identity keys of the right form; what is in them nobody checks here.
pub(super) fn device_keys(user: &str, device: &str, key: &str) -> Box<RawValue> {
    raw(&device_keys_json(user, device, key))
}

fn device_keys_json(user: &str, device: &str, key: &str) -> Value {
    json!({
        "user_id": user_id(user),
        "device_id": device,
        "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
        "keys": { format!("curve25519:{device}"): "c", format!("ed25519:{device}"): key },
        "signatures": { user_id(user): { format!("ed25519:{device}"): "s" } },
        "unsigned": { "device_display_name": "forged" },
    })
}

fn one_time(ids: &[&str]) -> KeyUpload {
    let keys = ids.iter().map(|id| {
        let key = json!({ "key": format!("public {id}"), "signatures": {} });
        (format!("{ALGORITHM}:{id}"), raw(&key))
    });
    KeyUpload {
        one_time_keys: keys.collect(),
        ..KeyUpload::default()
    }
}

fn fallback(id: &str) -> KeyUpload {
    let key = json!({ "key": id, "fallback": true, "signatures": {} });
    let keys = BTreeMap::from([(format!("{ALGORITHM}:{id}"), raw(&key))]);
    KeyUpload {
        fallback_keys: keys,
        ..KeyUpload::default()
    }
}

async fn upload(
    world: &World,
    user: UserNumber,
    upload: &KeyUpload,
) -> Result<BTreeMap<String, u64>, KeyUploadError> {
    world
        .users
        .keys
        .upload((user, &user_id("alice")), &device_id("D"), upload)
        .await
}

async fn claim(world: &World, user: UserNumber) -> Option<String> {
    let claimed = world
        .users
        .keys
        .claim(user, &device_id("D"), ALGORITHM)
        .await
        .unwrap();
    claimed.map(|claimed| claimed.name.split_once(':').unwrap().1.to_owned())
}

#[tokio::test]
async fn keys_are_claimed_in_the_order_of_uploads_each_once() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let device = world.device(alice, "D").await;
    upload(&world, alice, &one_time(&["z1", "z2"]))
        .await
        .unwrap();
    let counts = upload(&world, alice, &one_time(&["a1"])).await.unwrap();
    assert_eq!(counts, [(ALGORITHM.to_owned(), 3)].into());
    for expected in ["z1", "z2", "a1"] {
        assert_eq!(claim(&world, alice).await.as_deref(), Some(expected));
    }
    assert_eq!(claim(&world, alice).await, None);
    let counts = world.users.keys.counts(device).await.unwrap();
    assert_eq!(counts, [(ALGORITHM.to_owned(), 0)].into());
}

#[tokio::test]
async fn the_same_key_again_changes_nothing_another_is_refused() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    world.device(alice, "D").await;
    upload(&world, alice, &one_time(&["a", "b"])).await.unwrap();
    let before = world.store.durable();
    let counts = upload(&world, alice, &one_time(&["b", "a"])).await.unwrap();
    assert_eq!(counts[ALGORITHM], 2);
    assert_eq!(world.store.durable(), before);
    let mut other = one_time(&["c"]);
    let key = raw(&json!({ "key": "another", "signatures": {} }));
    other.one_time_keys.insert(format!("{ALGORITHM}:a"), key);
    match upload(&world, alice, &other).await {
        Err(KeyUploadError::Exists(name)) => assert_eq!(name, format!("{ALGORITHM}:a")),
        other => panic!("{other:?}"),
    }
    // Nothing of a refused upload is stored.
    let counts = upload(&world, alice, &KeyUpload::default()).await.unwrap();
    assert_eq!(counts[ALGORITHM], 2);
    // Spelled differently it is still the same key.
    let spaced = RawValue::from_string(r#"{ "signatures" : {}, "key" : "public a" }"#.to_owned());
    let keys = BTreeMap::from([(format!("{ALGORITHM}:a"), spaced.unwrap())]);
    let same = KeyUpload {
        one_time_keys: keys,
        ..KeyUpload::default()
    };
    assert_eq!(upload(&world, alice, &same).await.unwrap()[ALGORITHM], 2);
}

#[tokio::test]
async fn a_fallback_key_is_used_when_nothing_else_is_left() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let device = world.device(alice, "D").await;
    let keys = &world.users.keys;
    upload(&world, alice, &fallback("f1")).await.unwrap();
    upload(&world, alice, &one_time(&["a"])).await.unwrap();
    assert_eq!(
        keys.unused_fallback_types(device).await.unwrap(),
        [ALGORITHM]
    );
    assert_eq!(claim(&world, alice).await.as_deref(), Some("a"));
    assert_eq!(
        keys.unused_fallback_types(device).await.unwrap(),
        [ALGORITHM]
    );
    for _ in 0..3 {
        assert_eq!(claim(&world, alice).await.as_deref(), Some("f1"));
        assert!(keys.unused_fallback_types(device).await.unwrap().is_empty());
    }
    // Uploaded again it stays used; a new one is unused.
    upload(&world, alice, &fallback("f1")).await.unwrap();
    assert!(keys.unused_fallback_types(device).await.unwrap().is_empty());
    upload(&world, alice, &fallback("f2")).await.unwrap();
    assert_eq!(
        keys.unused_fallback_types(device).await.unwrap(),
        [ALGORITHM]
    );
    let mut two = fallback("f3");
    two.fallback_keys.extend(fallback("f4").fallback_keys);
    let two = upload(&world, alice, &two).await;
    assert!(matches!(two, Err(KeyUploadError::TwoFallbackKeys(_))));
}

#[tokio::test]
async fn fallback_keys_of_all_uploads_together_are_bounded() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let device = world.device(alice, "D").await;
    let of = |number: usize| {
        let key = json!({ "key": "k", "signatures": {} });
        KeyUpload {
            fallback_keys: BTreeMap::from([(format!("algorithm{number}:a"), raw(&key))]),
            ..KeyUpload::default()
        }
    };
    for number in 0..MAX_ALGORITHMS {
        upload(&world, alice, &of(number)).await.unwrap();
    }
    let more = upload(&world, alice, &of(MAX_ALGORITHMS)).await;
    assert!(matches!(more, Err(KeyUploadError::TooMany)), "{more:?}");
    // One in the place of another is no more.
    let mut other = of(0);
    let key = raw(&json!({ "key": "l", "signatures": {} }));
    other.fallback_keys = BTreeMap::from([("algorithm0:b".to_owned(), key)]);
    upload(&world, alice, &other).await.unwrap();
    let unused = world.users.keys.unused_fallback_types(device).await;
    assert_eq!(unused.unwrap().len(), MAX_ALGORITHMS);
}

#[tokio::test]
async fn a_claim_wakes_the_device() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let device = world.device(alice, "D").await;
    upload(&world, alice, &one_time(&["a"])).await.unwrap();
    let before = world.store.durable();
    claim(&world, alice).await.unwrap();
    let topic = crate::journal::device(device);
    let entries = world
        .store
        .journal()
        .read(topic, before, u64::MAX, 9)
        .await
        .unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].1.kind, crate::journal::ONE_TIME_KEYS_CHANGED);
}

#[tokio::test]
async fn malformed_uploads_are_refused_and_leave_nothing() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    world.device(alice, "D").await;
    let good = device_keys_json("alice", "D", "key");
    let with = |name: &str, new: Value| {
        let mut object = good.clone();
        object[name] = new;
        object
    };
    let without = |name: &str| {
        let mut object = good.clone();
        object.as_object_mut().unwrap().remove(name);
        object
    };
    let cases = [
        (json!(null), InvalidKey::Form),
        (json!([]), InvalidKey::Form),
        (json!("x"), InvalidKey::Form),
        // Not canonical: no other server could be told of it.
        (with("algorithms", json!([0.5])), InvalidKey::Form),
        (with("more", json!({ "deep": 1.5 })), InvalidKey::Form),
        (with("user_id", json!("@bob:localhost")), InvalidKey::NotOwn),
        (with("device_id", json!("E")), InvalidKey::NotOwn),
        (
            with("device_id", json!(7)),
            InvalidKey::Property("device_id"),
        ),
        (
            with("algorithms", json!([1])),
            InvalidKey::Property("algorithms"),
        ),
        (
            with("keys", json!({ "ed25519:D": 7 })),
            InvalidKey::Property("keys"),
        ),
        (
            with("keys", json!({ "ed25519:E": "k" })),
            InvalidKey::Property("keys"),
        ),
        (
            with("keys", json!({ "curve25519:D": "k" })),
            InvalidKey::Property("keys"),
        ),
        (without("signatures"), InvalidKey::Property("signatures")),
        (
            with("signatures", json!({})),
            InvalidKey::Property("signatures"),
        ),
        (
            with("signatures", json!({ "@a:b": 1 })),
            InvalidKey::Property("signatures"),
        ),
        (
            with("padding", json!("x".repeat(70_000))),
            InvalidKey::TooLarge,
        ),
    ];
    for (keys, expected) in cases {
        let shown: String = keys.to_string().chars().take(200).collect();
        let upload = KeyUpload {
            device_keys: Some(raw(&keys)),
            ..one_time(&["a"])
        };
        let keys = &world.users.keys;
        match keys
            .upload((alice, &user_id("alice")), &device_id("D"), &upload)
            .await
        {
            Err(KeyUploadError::DeviceKeys(error)) => assert_eq!(error, expected, "{shown}"),
            other => panic!("{shown}: {other:?}"),
        }
    }
    assert!(
        upload(&world, alice, &KeyUpload::default())
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn malformed_one_time_keys_are_refused() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    world.device(alice, "D").await;
    let long_id = format!("{ALGORITHM}:{}", "i".repeat(200));
    let bad_keys = [
        ("noalgorithm", json!("k")),
        (":a", json!("k")),
        ("alg:", json!("k")),
        (long_id.as_str(), json!("k")),
        ("alg:a", json!(7)),
        ("alg:a", json!({ "signatures": {} })),
        ("alg:a", json!({ "key": "k" })),
        ("alg:a", json!("k".repeat(5_000))),
    ];
    for (name, key) in bad_keys {
        let keys = BTreeMap::from([(name.to_owned(), raw(&key))]);
        let bad = KeyUpload {
            one_time_keys: keys,
            ..KeyUpload::default()
        };
        let refused = upload(&world, alice, &bad).await;
        assert!(
            matches!(refused, Err(KeyUploadError::Key(..))),
            "{name}: {refused:?}"
        );
    }
    let ids: Vec<String> = (0..=MAX_KEYS_IN_UPLOAD).map(|id| id.to_string()).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let many = upload(&world, alice, &one_time(&ids)).await;
    assert!(matches!(many, Err(KeyUploadError::TooMany)));
    assert!(
        upload(&world, alice, &KeyUpload::default())
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn a_device_has_a_bounded_number_of_keys_and_a_batch_holds_the_largest_upload() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    world.device(alice, "D").await;
    for round in 0..8 {
        let ids: Vec<String> = (0..MAX_KEYS_IN_UPLOAD)
            .map(|id| format!("{round}-{id}"))
            .collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        upload(&world, alice, &one_time(&ids)).await.unwrap();
    }
    let full = upload(&world, alice, &one_time(&["one more"])).await;
    assert!(matches!(full, Err(KeyUploadError::TooMany)));
    claim(&world, alice).await.unwrap();
    upload(&world, alice, &one_time(&["one more"]))
        .await
        .unwrap();
}

#[tokio::test]
async fn the_identity_keys_of_one_user_are_bounded_together() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let (id, keys) = (user_id("alice"), &world.users.keys);
    let large = "x".repeat(MAX_DEVICE_KEYS - 512);
    let mut uploads = Vec::new();
    for number in 0..80 {
        let device = device_id(&format!("D{number}"));
        world.device(alice, device.as_str()).await;
        let keys = device_keys("alice", device.as_str(), &large);
        let keys = KeyUpload {
            device_keys: Some(keys),
            ..KeyUpload::default()
        };
        uploads.push((device, keys));
    }
    let one = async |(device, upload): &(_, KeyUpload)| {
        let device: &ruma::OwnedDeviceId = device;
        keys.upload((alice, &id), device, upload).await
    };
    let all = futures_util::future::join_all(uploads.iter().map(one)).await;
    let refused: Vec<_> = all.iter().filter_map(|one| one.as_ref().err()).collect();
    assert!((1..20).contains(&refused.len()), "{}", refused.len());
    let right = |error: &&KeyUploadError| matches!(error, KeyUploadError::TooManyOfUser);
    assert!(refused.iter().all(right));
    let stored = keys.of_user(alice, &[], alice).await.unwrap();
    let bytes: usize = stored.values().map(|key| key.get().len()).sum();
    assert!(bytes <= MAX_DEVICE_KEYS_OF_USER);
    // The same keys of a device again, and others in their place, count once.
    let again = all.iter().position(Result::is_ok).unwrap();
    one(&uploads[again]).await.unwrap();
    let other = "y".repeat(MAX_DEVICE_KEYS - 512);
    uploads[again].1.device_keys = Some(device_keys("alice", uploads[again].0.as_str(), &other));
    one(&uploads[again]).await.unwrap();
}

#[tokio::test]
async fn a_query_shows_what_was_uploaded_and_the_name() {
    let world = World::new().await;
    let (alice, bob) = (world.user("alice").await, world.user("bob").await);
    world.device(alice, "D").await;
    world.device(alice, "WITHOUT_KEYS").await;
    let keys = Some(device_keys("alice", "D", "key"));
    upload(
        &world,
        alice,
        &KeyUpload {
            device_keys: keys,
            ..KeyUpload::default()
        },
    )
    .await
    .unwrap();
    let shown = async |only: &[&str]| {
        let only: Vec<_> = only.iter().map(|id| device_id(id)).collect();
        world.users.keys.of_user(alice, &only, bob).await.unwrap()
    };
    let all = shown(&[]).await;
    assert_eq!(all.len(), 1);
    let mut expected = device_keys_json("alice", "D", "key");
    expected.as_object_mut().unwrap().remove("unsigned");
    assert_eq!(value(&all[&device_id("D")]), expected);
    world
        .users
        .devices
        .rename(alice, &device_id("D"), Some("Phone"))
        .await
        .unwrap();
    expected["unsigned"] = json!({ "device_display_name": "Phone" });
    assert_eq!(value(&shown(&["D"]).await[&device_id("D")]), expected);
    assert!(shown(&["X"]).await.is_empty());
    let gone = world
        .users
        .keys
        .claim(bob, &device_id("D"), ALGORITHM)
        .await
        .unwrap();
    assert!(gone.is_none());
}

#[tokio::test]
async fn no_key_is_given_twice_to_many_claimants() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let device = world.device(alice, "D").await;
    let ids: Vec<String> = (0..60).map(|id| format!("k{id:02}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    upload(&world, alice, &one_time(&ids)).await.unwrap();
    // Each claimant has locks of its own, as other processes have: the asserts must hold alone.
    let claims = (0..80).map(|_| {
        let keys = crate::keys::Keys::new(world.users.ground.clone());
        async move {
            let claimed = keys.claim(alice, &device_id("D"), ALGORITHM).await;
            claimed.unwrap().map(|key| key.name)
        }
    });
    let claimed = futures_util::stream::iter(claims)
        .buffered(8)
        .collect::<Vec<_>>()
        .await;
    let given: Vec<_> = claimed.iter().flatten().collect();
    assert_eq!((claimed.len(), given.len()), (80, 60));
    assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), 60);
    assert_eq!(world.users.keys.counts(device).await.unwrap()[ALGORITHM], 0);
}

#[derive(Clone, Debug)]
enum Step {
    Upload(BTreeSet<u8>),
    Claim,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let upload = proptest::collection::btree_set(0_u8..30, 1..8).prop_map(Step::Upload);
    proptest::collection::vec(prop_oneof![upload, Just(Step::Claim)], 1..40)
}

proptest! {
    /// Against a model: a queue of waiting ids. Counts, order and idempotence agree.
    #[test]
    fn uploads_and_claims_are_a_queue(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let world = World::new().await;
            let alice = world.user("alice").await;
            world.device(alice, "D").await;
            let mut waiting: Vec<String> = Vec::new();
            for step in steps {
                match step {
                    Step::Upload(ids) => {
                        let ids: Vec<String> =
                            ids.into_iter().map(|id| format!("k{id:02}")).collect();
                        let names: Vec<&str> = ids.iter().map(String::as_str).collect();
                        let counts = upload(&world, alice, &one_time(&names)).await.unwrap();
                        let new = ids.into_iter().filter(|id| !waiting.contains(id));
                        let new: Vec<_> = new.collect();
                        waiting.extend(new);
                        prop_assert_eq!(counts[ALGORITHM], waiting.len() as u64);
                    }
                    Step::Claim => {
                        let expected = (!waiting.is_empty()).then(|| waiting.remove(0));
                        prop_assert_eq!(claim(&world, alice).await, expected);
                    }
                }
            }
            Ok(())
        })?;
    }
}

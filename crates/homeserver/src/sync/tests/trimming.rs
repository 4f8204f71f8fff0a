//! Tokens that are older than what is left of the journal.

use std::time::Duration;

use super::{devices::upload_keys, *};
use crate::app::trimming::{AGE, Trimming};

fn trimming(world: &World) -> Trimming {
    let components = world.fresh.homeserver.components();
    Trimming {
        store: components.store.clone(),
        device_lists: components.device_lists.clone(),
        runtime: components.runtime.clone(),
    }
}

#[tokio::test]
async fn a_token_from_before_the_trim_point_starts_anew() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let bob = world.user("bob").await;
    let stranger = world.user("carol").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await;
    let old = next(&alice.sync("").await);
    // What happens here is in the journal only as long as it is not trimmed.
    upload_keys(&bob, "first").await;
    upload_keys(&stranger, "first").await;
    alice
        .put(
            &format!("user/{}/account_data/org.example.test", encoded(alice.id())),
            json!({ "a": 1 }),
        )
        .await
        .ok();
    let trimming = trimming(&world);
    let store = world.fresh.homeserver.components().store.clone();
    let trimmed = store.durable();
    let at_the_point = next(&alice.since(&old, "").await);
    trimming.run().await.unwrap();
    alice.say(&room, "later").await;

    world
        .fresh
        .clock
        .advance(AGE.saturating_sub(Duration::from_secs(1)));
    trimming.run().await.unwrap();
    assert_eq!(store.journal().trim_point().await.unwrap(), 0);
    world.fresh.clock.advance(Duration::from_secs(1));
    trimming.run().await.unwrap();
    assert_eq!(store.journal().trim_point().await.unwrap(), trimmed);
    let before = store.journal().read_all(0, trimmed, 1_000).await.unwrap();
    trimming.run().await.unwrap();
    let after = store.journal().read_all(0, trimmed, 1_000).await.unwrap();
    assert!(!after.is_empty() && after.len() < before.len());
    assert!(after.iter().all(|(_, entry)| entry.kind.stays()));

    // As a first sync, and everybody whose devices may have changed is named.
    let anew = alice.since(&old, "timeout=60000").await;
    let joined = &anew["rooms"]["join"][&room];
    let texts = events(&joined["timeline"]);
    assert_eq!(texts.last().unwrap()["content"]["body"], "later");
    let known = events(&anew["account_data"]);
    assert!(
        known
            .iter()
            .any(|datum| datum["type"] == "org.example.test")
    );
    assert_eq!(anew["device_lists"]["changed"], json!([bob.id()]));
    let path = format!("keys/changes?from={old}&to={}", next(&anew));
    let changes = alice.get(&path).await.ok();
    assert_eq!(changes["changed"], json!([bob.id()]));

    // From the trim point on nothing is missing, so it goes on.
    let on = alice.since(&at_the_point, "").await;
    let told = events(&on["rooms"]["join"][&room]["timeline"]);
    assert_eq!(told.len(), 1);
    assert_eq!(told[0]["content"]["body"], "later");
    assert!(on.get("device_lists").is_none());
    let path = format!("keys/changes?from={at_the_point}&to={}", next(&anew));
    let changes = alice.get(&path).await.ok();
    assert_eq!(changes["changed"], json!([]));

    // The last change of a device list stays known when its entry is gone.
    upload_keys(&bob, "second").await;
    let news = alice.since(&next(&anew), "").await;
    assert_eq!(news["device_lists"]["changed"], json!([bob.id()]));
}

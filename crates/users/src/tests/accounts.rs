//! Accounts and profiles.

use std::collections::BTreeSet;

use homeserver_storage::Batch;
use serde_json::json;

use super::{World, raw, user_id, value};
use crate::{
    AccountKind, AccountState, Admin, ChangeAccountError, CreateAccountError, Failure, MAX_PROFILE,
    NewAccount, ProfileError,
};

fn person(name: &str, admin: Admin) -> NewAccount {
    NewAccount {
        user_id: user_id(name),
        kind: AccountKind::Person,
        admin,
        password_hash: Some("hash".to_owned()),
    }
}

#[tokio::test]
async fn a_user_id_is_given_once_and_stays_taken() {
    let world = World::new().await;
    let accounts = &world.users.accounts;
    let alice = accounts.create(person("alice", Admin::No)).await.unwrap();
    assert_eq!(
        accounts.by_id(&user_id("alice")).await.unwrap().as_ref(),
        Some(&alice)
    );
    let again = accounts.create(person("alice", Admin::No)).await;
    assert!(matches!(again, Err(CreateAccountError::Taken)));
    accounts
        .deactivate(alice.number, AccountState::Erased, &Batch::new())
        .await
        .unwrap();
    let again = accounts.create(person("alice", Admin::No)).await;
    assert!(matches!(again, Err(CreateAccountError::Taken)));
    assert_eq!(accounts.by_id(&user_id("bob")).await.unwrap(), None);
}

#[tokio::test]
async fn of_many_at_once_one_is_first() {
    let world = World::new().await;
    let creations = (0..20).map(|number| {
        let accounts = world.users.accounts.clone();
        async move {
            accounts
                .create(person(&format!("u{number}"), Admin::IfFirst))
                .await
                .unwrap()
                .admin
        }
    });
    let admins = futures_util::future::join_all(creations).await;
    assert_eq!(admins.iter().filter(|admin| **admin).count(), 1);
}

#[tokio::test]
async fn of_two_for_one_user_id_one_succeeds() {
    let world = World::new().await;
    let create = || world.users.accounts.create(person("alice", Admin::IfFirst));
    let outcomes = futures_util::future::join_all((0..8).map(|_| create())).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
}

#[tokio::test]
async fn a_closed_account_has_no_password_and_no_rights() {
    let world = World::new().await;
    let accounts = &world.users.accounts;
    let alice = accounts
        .create(person("alice", Admin::IfFirst))
        .await
        .unwrap();
    assert!(alice.admin);
    accounts
        .deactivate(alice.number, AccountState::Deactivated, &Batch::new())
        .await
        .unwrap();
    let closed = accounts.by_number(alice.number).await.unwrap().unwrap();
    assert_eq!(
        (closed.admin, closed.password_hash.as_deref()),
        (false, None)
    );
    let refused = accounts
        .set_password_hash(alice.number, closed.generation, Some("new".to_owned()))
        .await;
    assert!(matches!(refused, Err(ChangeAccountError::Deactivated)));
    // Erasing is not undone by deactivating again.
    accounts
        .deactivate(alice.number, AccountState::Erased, &Batch::new())
        .await
        .unwrap();
    accounts
        .deactivate(alice.number, AccountState::Deactivated, &Batch::new())
        .await
        .unwrap();
    let erased = accounts.by_number(alice.number).await.unwrap().unwrap();
    assert_eq!(erased.state, AccountState::Erased);
    accounts.reactivate(alice.number).await.unwrap();
    let ended = accounts
        .set_password_hash(alice.number, alice.generation, Some("old".to_owned()))
        .await;
    assert!(matches!(
        ended,
        Err(ChangeAccountError::Failure(Failure::Refused))
    ));
    accounts
        .set_password_hash(alice.number, closed.generation, Some("new".to_owned()))
        .await
        .unwrap();
    let open = accounts.by_number(alice.number).await.unwrap().unwrap();
    assert!(open.is_active() && open.password_hash.as_deref() == Some("new"));
}

#[tokio::test]
async fn the_list_is_paged() {
    let world = World::new().await;
    for number in 0..7 {
        world.user(&format!("u{number}")).await;
    }
    let mut seen = BTreeSet::new();
    let mut after = None;
    loop {
        let page = world.users.accounts.list(after, 3).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.number);
        seen.extend(page.into_iter().map(|account| account.user_id));
    }
    assert_eq!(seen.len(), 7);
}

#[tokio::test]
async fn profiles_hold_any_field_within_limits() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let profiles = &world.users.profiles;
    let name = raw(&json!("Alice"));
    assert!(
        profiles
            .set(alice, "displayname", &name)
            .await
            .unwrap()
            .is_some()
    );
    assert_eq!(
        profiles.set(alice, "displayname", &name).await.unwrap(),
        None
    );
    let zone = json!({ "zone": ["Europe/Berlin", 1, null] });
    profiles.set(alice, "m.tz", &raw(&zone)).await.unwrap();
    assert_eq!(
        profiles
            .text(alice, "displayname")
            .await
            .unwrap()
            .as_deref(),
        Some("Alice")
    );
    assert_eq!(profiles.text(alice, "m.tz").await.unwrap(), None);
    assert_eq!(
        value(&profiles.field(alice, "m.tz").await.unwrap().unwrap()),
        zone
    );
    assert!(profiles.remove(alice, "m.tz").await.unwrap().is_some());
    assert_eq!(profiles.remove(alice, "m.tz").await.unwrap(), None);
    assert_eq!(profiles.all(alice).await.unwrap().len(), 1);
    let long = profiles.set(alice, &"k".repeat(256), &name).await;
    assert!(matches!(long, Err(ProfileError::KeyTooLarge)));
}

#[tokio::test]
async fn a_profile_is_bounded_as_a_whole_also_under_concurrent_changes() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let profiles = &world.users.profiles;
    let third = raw(&json!("x".repeat(MAX_PROFILE / 3)));
    let sets = ["a", "b", "c", "d"].map(|field| profiles.set(alice, field, &third));
    let outcomes = futures_util::future::join_all(sets).await;
    let refused = outcomes
        .iter()
        .filter(|set| matches!(set, Err(ProfileError::ProfileTooLarge)));
    assert_eq!(refused.count(), 2);
    assert_eq!(profiles.all(alice).await.unwrap().len(), 2);
    profiles.clear(alice).await.unwrap();
    assert!(profiles.all(alice).await.unwrap().is_empty());
}

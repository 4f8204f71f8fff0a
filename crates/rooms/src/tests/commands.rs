//! What commands do and refuse.

use ruma::{RoomAliasId, RoomVersionId};
use serde_json::json;

use super::support::{Server, event, invite, join, kinds, message, user};
use crate::{
    CreateRoom, InitialState, MemberProfile, Membership, MembershipChange, Preset, RoomAction,
    RoomAnswer, RoomError, UpgradeRoom,
};

fn public() -> CreateRoom {
    CreateRoom {
        preset: Some(Preset::PublicChat),
        ..CreateRoom::default()
    }
}

#[tokio::test]
async fn a_room_is_made_in_the_order_of_the_specification() {
    let server = Server::start().await;
    let alice = user("alice");
    let create = CreateRoom {
        preset: Some(Preset::TrustedPrivateChat),
        alias_localpart: Some("tea".to_owned()),
        name: Some("Tea".to_owned()),
        topic: Some("leaves".to_owned()),
        invite: vec![user("bob")],
        initial_state: vec![InitialState {
            event_type: "m.room.guest_access".to_owned(),
            state_key: String::new(),
            content: serde_json::from_value(json!({ "guest_access": "forbidden" })).unwrap(),
        }],
        published: true,
        ..CreateRoom::default()
    };
    let room = server.create(&alice, create).await;
    let timeline = server.timeline(&alice, &room).await;
    let expected = [
        "m.room.create",
        "m.room.member",
        "m.room.power_levels",
        "m.room.canonical_alias",
        "m.room.join_rules",
        "m.room.history_visibility",
        "m.room.guest_access",
        "m.room.name",
        "m.room.topic",
        "m.room.member",
    ];
    assert_eq!(kinds(&timeline), expected);
    let create = server.state(&room, "m.room.create", "").await.unwrap();
    assert_eq!(create["additional_creators"], json!([user("bob")]));
    assert_eq!(create["room_version"], "12");
    let levels = server
        .state(&room, "m.room.power_levels", "")
        .await
        .unwrap();
    assert_eq!(levels["users"], json!({}));
    assert!(levels["events"]["m.room.tombstone"].as_i64() > levels["state_default"].as_i64());
    let alias = RoomAliasId::parse("#tea:here.example").unwrap();
    let target = server.rooms.alias(&alias).await.unwrap().unwrap();
    assert_eq!(target.room.id, room);
    let number = target.room.number;
    assert!(server.rooms.is_published(number).await.unwrap());
    let bob = server.reader(&user("bob")).await;
    let membership = server
        .rooms
        .membership(bob.number.unwrap(), number, bob.position)
        .await;
    let membership = membership.unwrap().unwrap();
    assert_eq!(membership.membership, Membership::Invite);
    let stripped = server.rooms.stripped_state(&membership).await.unwrap();
    assert!(
        stripped[0].contains("m.room.create") && stripped.len() == 7,
        "{stripped:#?}"
    );
    let summary = server.rooms.summary(&bob, &target.room).await.unwrap();
    assert_eq!(
        (summary.joined, summary.invited, summary.heroes),
        (1, 1, vec![alice])
    );
}

#[tokio::test]
async fn an_impossible_room_leaves_nothing_behind() {
    let server = Server::start().await;
    let create = CreateRoom {
        alias_localpart: Some("half".to_owned()),
        power_level_content_override: Some(
            serde_json::from_value(json!({ "users": { "@alice:here.example": 0 } })).unwrap(),
        ),
        version: Some(RoomVersionId::V11),
        name: Some("no".to_owned()),
        ..CreateRoom::default()
    };
    let before = server.rooms.durable();
    let answer = server
        .act(&user("alice"), RoomAction::Create(Box::new(create)))
        .await;
    assert!(
        matches!(answer, Err(RoomError::InvalidRoomState(_))),
        "{answer:?}"
    );
    assert_eq!(server.rooms.durable(), before);
    let alias = RoomAliasId::parse("#half:here.example").unwrap();
    assert!(server.rooms.alias(&alias).await.unwrap().is_none());
    let unknown = CreateRoom {
        version: Some(RoomVersionId::try_from("99").unwrap()),
        ..CreateRoom::default()
    };
    let answer = server
        .act(&user("alice"), RoomAction::Create(Box::new(unknown)))
        .await;
    assert!(matches!(answer, Err(RoomError::UnsupportedRoomVersion(_))));
}

#[tokio::test]
async fn another_profile_makes_a_member_of_nobody() {
    let server = Server::start().await;
    let (alice, bob) = (user("alice"), user("bob"));
    let room = server.create(&alice, public()).await;
    let show = |name: &str| MembershipChange::Show {
        profile: MemberProfile {
            displayname: Some(name.to_owned()),
            avatar_url: None,
        },
    };
    let refused = |answer: Result<_, RoomError>| {
        assert!(matches!(answer, Err(RoomError::Forbidden(_))), "{answer:?}");
    };
    refused(server.member(&bob, &room, show("B")).await);
    let content = json!({ "membership": "join", "displayname": "A", "reason": "x", "org.x": 1 });
    let join = event("m.room.member", Some(bob.as_str()), &content);
    let joined = server.try_send(&bob, &room, join).await.unwrap();
    assert_eq!(
        server.member(&bob, &room, show("A")).await.unwrap(),
        joined,
        "the same profile changes nothing"
    );
    server.member(&bob, &room, show("B")).await.unwrap();
    let shown = server.state(&room, "m.room.member", bob.as_str()).await;
    let expected = json!({ "membership": "join", "displayname": "B", "org.x": 1 });
    assert_eq!(shown.unwrap(), expected);
    let nothing = MembershipChange::Show {
        profile: MemberProfile::default(),
    };
    server.member(&bob, &room, nothing).await.unwrap();
    let shown = server.state(&room, "m.room.member", bob.as_str()).await;
    assert_eq!(shown.unwrap(), json!({ "membership": "join", "org.x": 1 }));
    let leave = MembershipChange::Leave;
    server.member(&bob, &room, leave).await.unwrap();
    refused(server.member(&bob, &room, show("C")).await);
    let shown = server.state(&room, "m.room.member", bob.as_str()).await;
    assert_eq!(shown.unwrap(), json!({ "membership": "leave" }));
}

#[tokio::test]
async fn memberships_go_their_ways() {
    use MembershipChange as Change;
    let server = Server::start().await;
    let (alice, bob) = (user("alice"), user("bob"));
    let room = server.create(&alice, CreateRoom::default()).await;
    let refused = |answer: Result<_, RoomError>| {
        assert!(matches!(answer, Err(RoomError::Forbidden(_))), "{answer:?}");
    };
    refused(server.join(&bob, &room).await);
    refused(server.try_send(&bob, &room, message("hm")).await);
    server.member(&alice, &room, invite("bob")).await.unwrap();
    let first = server.join(&bob, &room).await.unwrap();
    assert_eq!(
        server.join(&bob, &room).await.unwrap(),
        first,
        "joining again changes nothing"
    );
    server.say(&bob, &room, "hello").await;
    refused(
        server
            .member(
                &bob,
                &room,
                Change::Kick {
                    user: alice.clone(),
                },
            )
            .await,
    );
    server
        .member(&alice, &room, Change::Kick { user: bob.clone() })
        .await
        .unwrap();
    refused(server.try_send(&bob, &room, message("hm")).await);
    server
        .member(&alice, &room, Change::Ban { user: bob.clone() })
        .await
        .unwrap();
    refused(server.member(&alice, &room, invite("bob")).await);
    server
        .member(&alice, &room, Change::Unban { user: bob.clone() })
        .await
        .unwrap();
    refused(
        server
            .member(&alice, &room, Change::Unban { user: bob.clone() })
            .await,
    );
    server.member(&alice, &room, invite("bob")).await.unwrap();
    server.member(&bob, &room, Change::Leave).await.unwrap();

    let reader = server.reader(&bob).await;
    let number = server.room(&room).await.number;
    let changes = server
        .rooms
        .membership_changes(reader.number.unwrap(), number, reader.position, 20)
        .await
        .unwrap();
    let seen: Vec<_> = changes
        .iter()
        .rev()
        .map(|m| m.membership.as_str())
        .collect();
    let expected = ["invite", "join", "leave", "ban", "leave", "invite", "leave"];
    assert_eq!(seen, expected);
    for past in &changes {
        let at = server
            .rooms
            .membership(past.user, number, past.since)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&at, past);
    }
    let forget = || RoomAction::Forget { room: room.clone() };
    assert!(matches!(
        server.act(&alice, forget()).await,
        Err(RoomError::StillInRoom)
    ));
    server.act(&bob, forget()).await.unwrap();
    let reader = server.reader(&bob).await;
    let all = server
        .rooms
        .memberships(reader.number.unwrap(), reader.position)
        .await
        .unwrap();
    assert!(all[0].forgotten && all.len() == 1);
}

#[tokio::test]
async fn members_of_another_room_are_let_in_where_the_rules_say_so() {
    let server = Server::start().await;
    let (alice, bob, carol) = (user("alice"), user("bob"), user("carol"));
    let club = server.create(&alice, public()).await;
    let create = CreateRoom {
        initial_state: vec![InitialState {
            event_type: "m.room.join_rules".to_owned(),
            state_key: String::new(),
            content: serde_json::from_value(json!({
                "join_rule": "knock_restricted",
                "allow": [{ "type": "m.room_membership", "room_id": club }],
            }))
            .unwrap(),
        }],
        ..CreateRoom::default()
    };
    let room = server.create(&alice, create).await;
    assert!(matches!(
        server.join(&bob, &room).await,
        Err(RoomError::Forbidden(_))
    ));
    server.join(&bob, &club).await.unwrap();
    server.join(&bob, &room).await.unwrap();
    let member = server
        .state(&room, "m.room.member", bob.as_str())
        .await
        .unwrap();
    assert_eq!(member["join_authorised_via_users_server"], alice.as_str());
    let knock = MembershipChange::Knock {
        profile: crate::MemberProfile::default(),
    };
    server.member(&carol, &room, knock).await.unwrap();
    server.member(&alice, &room, invite("carol")).await.unwrap();
    server.member(&carol, &room, join()).await.unwrap();
    let reader = server.reader(&alice).await;
    let summary = server
        .rooms
        .summary(&reader, &*server.room(&room).await)
        .await
        .unwrap();
    assert_eq!((summary.joined, summary.heroes), (3, vec![bob, carol]));
}

#[tokio::test]
async fn a_redacted_event_loses_its_content_and_its_relation() {
    let server = Server::start().await;
    let (alice, bob) = (user("alice"), user("bob"));
    let room = server.create(&alice, public()).await;
    server.join(&bob, &room).await.unwrap();
    let said = server.say(&alice, &room, "secret").await;
    let reaction = json!({
        "m.relates_to": { "rel_type": "m.annotation", "event_id": said, "key": "+" },
    });
    let react = || event("m.reaction", None, &reaction);
    let reacted = server.try_send(&bob, &room, react()).await.unwrap();
    let twice = server.try_send(&bob, &room, react()).await;
    assert!(matches!(twice, Err(RoomError::DuplicateAnnotation)));
    let redact = |target: &ruma::OwnedEventId| RoomAction::Redact {
        room: room.clone(),
        target: target.clone(),
        reason: Some("why not".to_owned()),
    };
    let refused = server.act(&bob, redact(&said)).await;
    assert!(matches!(refused, Err(RoomError::Forbidden(_))));
    server.act(&bob, redact(&reacted)).await.unwrap();
    let found = server.room(&room).await;
    let number = server
        .rooms
        .events
        .number(found.number, &said)
        .await
        .unwrap()
        .unwrap();
    let count = server
        .rooms
        .count_relations(found.number, number, "m.annotation", 10)
        .await;
    assert_eq!(count.unwrap(), 0);
    server.try_send(&bob, &room, react()).await.unwrap();
    server.act(&alice, redact(&said)).await.unwrap();
    let again = server.restart().await;
    for server in [&server, &again] {
        let reader = server.reader(&bob).await;
        let room = server.room(&room).await;
        let event = server
            .rooms
            .visible_by_id(&reader, &room, &said)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(event.pdu().content_str(), "{}");
        let because = server
            .rooms
            .visible(&reader, &room, &[event.redacted_by().unwrap()])
            .await;
        assert!(because.unwrap()[0].pdu().content_str().contains("why not"));
    }
}

#[tokio::test]
async fn aliases_belong_to_somebody() {
    let server = Server::start().await;
    let (alice, bob) = (user("alice"), user("bob"));
    let room = server.create(&alice, public()).await;
    let other = server.create(&alice, public()).await;
    server.join(&bob, &room).await.unwrap();
    let alias = RoomAliasId::parse("#a:here.example").unwrap();
    let set = |room: &ruma::OwnedRoomId| RoomAction::SetAlias {
        alias: alias.clone(),
        room: room.clone(),
    };
    let canonical = || {
        event(
            "m.room.canonical_alias",
            Some(""),
            &json!({ "alias": alias }),
        )
    };
    let bad = server.try_send(&alice, &room, canonical()).await;
    assert!(matches!(bad, Err(RoomError::BadAlias(_))));
    server.act(&alice, set(&room)).await.unwrap();
    let not_in_it = server.act(&bob, set(&other)).await;
    assert!(matches!(not_in_it, Err(RoomError::Forbidden(_))));
    let in_use = server.act(&alice, set(&other)).await;
    assert!(matches!(in_use, Err(RoomError::AliasInUse(_))));
    server.try_send(&alice, &room, canonical()).await.unwrap();
    let elsewhere = server.try_send(&alice, &other, canonical()).await;
    assert!(matches!(elsewhere, Err(RoomError::BadAlias(_))));
    let delete = || RoomAction::DeleteAlias {
        alias: alias.clone(),
        as_admin: false,
    };
    assert!(matches!(
        server.act(&bob, delete()).await,
        Err(RoomError::Forbidden(_))
    ));
    server.act(&alice, delete()).await.unwrap();
    assert!(matches!(
        server.act(&alice, delete()).await,
        Err(RoomError::UnknownAlias)
    ));
    let foreign = RoomAction::SetAlias {
        alias: RoomAliasId::parse("#a:there.example").unwrap(),
        room: room.clone(),
    };
    assert!(matches!(
        server.act(&alice, foreign).await,
        Err(RoomError::InvalidAlias(_))
    ));
    let publish = || RoomAction::SetDirectoryVisibility {
        room: room.clone(),
        visible: true,
        as_admin: false,
    };
    assert!(matches!(
        server.act(&bob, publish()).await,
        Err(RoomError::Forbidden(_))
    ));
    server.act(&alice, publish()).await.unwrap();
    // Listed where its size puts it, whatever happens to that.
    let listed = async || {
        let forward = homeserver_storage::Direction::Forward;
        let found = server.rooms.published(None, forward, 10).await.unwrap();
        let place = |(place, room): &(crate::DirectoryPlace, std::sync::Arc<crate::Room>)| {
            assert_eq!(place.room, room.number);
            (room.id.clone(), place.joined)
        };
        found.iter().map(place).collect::<Vec<_>>()
    };
    assert_eq!(listed().await, [(room.clone(), 2)]);
    let also = RoomAction::SetDirectoryVisibility {
        room: other.clone(),
        visible: true,
        as_admin: false,
    };
    server.act(&alice, also).await.unwrap();
    assert_eq!(listed().await, [(room.clone(), 2), (other.clone(), 1)]);
    for name in ["carol", "dan"] {
        server.join(&user(name), &other).await.unwrap();
    }
    assert_eq!(listed().await, [(other.clone(), 3), (room.clone(), 2)]);
    let hide = RoomAction::SetDirectoryVisibility {
        room: room.clone(),
        visible: false,
        as_admin: false,
    };
    server.act(&alice, hide.clone()).await.unwrap();
    server.act(&alice, hide).await.unwrap();
    assert_eq!(listed().await, [(other.clone(), 3)]);
    server.join(&user("carol"), &room).await.unwrap();
    assert_eq!(listed().await, [(other, 3)]);
    assert_eq!(server.rooms.count_published(10).await.unwrap(), 1);
}

#[tokio::test]
async fn an_upgrade_moves_a_room() {
    for (from, to) in [("10", "11"), ("11", "12"), ("12", "12"), ("12", "11")] {
        let server = Server::start().await;
        let (alice, bob) = (user("alice"), user("bob"));
        let create = CreateRoom {
            version: Some(RoomVersionId::try_from(from).unwrap()),
            alias_localpart: Some("a".to_owned()),
            name: Some("Moving".to_owned()),
            published: true,
            ..CreateRoom::default()
        };
        let room = server.create(&alice, create).await;
        server.join(&bob, &room).await.unwrap();
        let upgrade = || {
            RoomAction::Upgrade(UpgradeRoom {
                room: room.clone(),
                new_version: RoomVersionId::try_from(to).unwrap(),
                additional_creators: Vec::new(),
                profile: crate::MemberProfile::default(),
            })
        };
        assert!(matches!(
            server.act(&bob, upgrade()).await,
            Err(RoomError::Forbidden(_))
        ));
        let new = match server.act(&alice, upgrade()).await.unwrap() {
            RoomAnswer::Upgraded { replacement, .. } => replacement,
            other => panic!("{other:?}"),
        };
        let create = server.state(&new, "m.room.create", "").await.unwrap();
        assert_eq!(
            create["predecessor"]["room_id"],
            room.as_str(),
            "{from} to {to}"
        );
        let tombstone = server.state(&room, "m.room.tombstone", "").await.unwrap();
        assert_eq!(tombstone["replacement_room"], new.as_str());
        let name = server.state(&new, "m.room.name", "").await.unwrap();
        assert_eq!(name["name"], "Moving");
        let frozen = server
            .state(&room, "m.room.power_levels", "")
            .await
            .unwrap();
        assert_eq!(
            (&frozen["events_default"], &frozen["invite"]),
            (&json!(50), &json!(50))
        );
        let alias = RoomAliasId::parse("#a:here.example").unwrap();
        assert_eq!(
            server.rooms.alias(&alias).await.unwrap().unwrap().room.id,
            new
        );
        assert!(
            server
                .try_send(&bob, &room, message("still here?"))
                .await
                .is_err()
        );
        server.join(&bob, &new).await.unwrap();
        server.say(&bob, &new, "here").await;
    }
}

#[tokio::test]
async fn a_relation_of_a_type_too_long_for_a_key_is_none() {
    let server = Server::start().await;
    let alice = user("alice");
    let room = server.create(&alice, CreateRoom::default()).await;
    let target = server.say(&alice, &room, "target").await;
    let relation = json!({ "rel_type": "x".repeat(1000), "event_id": target });
    let content = json!({ "body": "related", "m.relates_to": relation });
    let related = event("m.room.message", None, &content);
    let related = server.try_send(&alice, &room, related).await.unwrap();
    let timeline = server.timeline(&alice, &room).await;
    assert_eq!(timeline.last().unwrap().pdu().event_id(), related);
}

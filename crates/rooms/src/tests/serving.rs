//! What other servers may ask of a room.

use std::collections::{BTreeMap, BTreeSet};

use homeserver_events::{Pdu, StatusKind};
use homeserver_storage::{Batch, Direction, Position, ScanRange, migrations::Migration as _};
use ruma::{OwnedEventId, OwnedRoomId, ServerName, server_name};
use serde_json::{Value, json};

use super::{
    forks::{Elsewhere, shared_room},
    support::{Server, event, user},
};
use crate::{
    CreateRoom, IndexEventRooms, MembershipChange, MissingAsked, Room, RoomError, Section,
    ServedChain, ServerVisit, Towards, tables,
};

async fn joined(server: &Server, room: &Room, name: &str, at: Position) -> bool {
    let name = ServerName::parse(name).unwrap();
    server.rooms.server_joined(room, &name, at).await.unwrap()
}

#[tokio::test]
async fn the_acl_is_that_of_the_current_state() {
    let server = Server::start().await;
    let (zed, _) = shared_room(&server, "11").await;
    let room = server.room(&zed.room).await;
    let bad = server_name!("bad.example:8448");
    assert!(server.rooms.acl(&room).await.unwrap().allows(bad));
    for (content, allows) in [
        (json!({ "allow": ["*"], "deny": ["bad.example"] }), false),
        (json!({ "allow": ["*"] }), true),
        (json!({}), false),
    ] {
        let acl = event("m.room.server_acl", Some(""), &content);
        let sent = server.try_send(&user("alice"), &zed.room, acl).await;
        sent.unwrap();
        let first = server.rooms.acl(&room).await.unwrap();
        assert_eq!(first.allows(bad), allows, "{content}");
        let again = server.rooms.acl(&room).await.unwrap();
        assert!(std::sync::Arc::ptr_eq(&first, &again), "it is read once");
    }
}

#[tokio::test]
async fn a_server_is_in_a_room_while_one_of_its_users_is() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "12").await;
    let room = server.room(&zed.room).await;
    let with_zed = server.rooms.durable();
    assert!(joined(&server, &room, "there.example", with_zed).await);
    assert!(joined(&server, &room, "THERE.example.", with_zed).await);
    assert!(!joined(&server, &room, "there.example:8448", with_zed).await);
    assert!(!joined(&server, &room, "there.example", with_zed - 1).await);
    assert!(joined(&server, &room, "here.example", with_zed - 1).await);

    let leave = json!({ "membership": "leave" });
    let key = zed.user.to_string();
    let leave = zed.make(&[join], "m.room.member", Some(&key), leave).await;
    zed.receive(&leave).await;
    let without = server.rooms.durable();
    assert!(!joined(&server, &room, "there.example", without).await);
    assert!(joined(&server, &room, "there.example", with_zed).await);
    assert!(!joined(&server, &room, "elsewhere.example", without).await);
    let leave = MembershipChange::Leave;
    server
        .member(&user("alice"), &zed.room, leave)
        .await
        .unwrap();
    assert!(!joined(&server, &room, "here.example", server.rooms.durable()).await);
}

const THERE: &str = "there.example";

async fn enter(server: &Server, name: &str, room: &OwnedRoomId) -> Result<ServerVisit, RoomError> {
    let name = ServerName::parse(name).unwrap();
    server.rooms.enter_as_server(&name, room).await
}

fn ids(events: &[Pdu]) -> Vec<&str> {
    events
        .iter()
        .map(|event| event.event_id().as_str())
        .collect()
}

fn content(event: &Pdu) -> Value {
    event.content_as().unwrap()
}

/// Makes the history visible as named.
async fn visibility(server: &Server, room: &OwnedRoomId, named: &str) -> OwnedEventId {
    let content = json!({ "history_visibility": named });
    let event = event("m.room.history_visibility", Some(""), &content);
    server.try_send(&user("alice"), room, event).await.unwrap()
}

async fn leave(zed: &mut Elsewhere<'_>, prev: &OwnedEventId) -> OwnedEventId {
    let content = json!({ "membership": "leave" });
    let key = zed.user.to_string();
    let prev = std::slice::from_ref(prev);
    let leave = zed.make(prev, "m.room.member", Some(&key), content).await;
    assert_eq!(zed.receive(&leave).await, StatusKind::Accepted);
    leave.event_id().to_owned()
}

/// All of a chain, by section.
async fn whole(mut chain: ServedChain) -> BTreeMap<&'static str, Vec<(String, Value)>> {
    let mut told = BTreeMap::from([("state", Vec::new()), ("auth", Vec::new())]);
    while let Some((section, events)) = chain.next().await.unwrap() {
        let name = match section {
            Section::State => "state",
            Section::AuthChain => "auth",
        };
        let events = events.iter().map(|event| {
            let json = serde_json::from_slice(&event.json).unwrap();
            (event.id.to_string(), json)
        });
        told.get_mut(name).unwrap().extend(events);
    }
    told
}

#[tokio::test]
async fn only_servers_of_the_room_come_in() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "12").await;
    assert!(enter(&server, THERE, &zed.room).await.is_ok());
    let stranger = enter(&server, "stranger.example", &zed.room).await;
    assert!(matches!(stranger, Err(RoomError::Forbidden(_))));
    let unknown = OwnedRoomId::try_from("!unknown:there.example").unwrap();
    let unknown = enter(&server, THERE, &unknown).await;
    assert!(matches!(unknown, Err(RoomError::UnknownRoom)));
    let acl = json!({ "allow": ["*"], "deny": ["there.example"] });
    let acl = event("m.room.server_acl", Some(""), &acl);
    server
        .try_send(&user("alice"), &zed.room, acl)
        .await
        .unwrap();
    let denied = enter(&server, THERE, &zed.room).await;
    assert!(matches!(denied, Err(RoomError::Forbidden(_))));
    let acl = event("m.room.server_acl", Some(""), &json!({ "allow": ["*"] }));
    server
        .try_send(&user("alice"), &zed.room, acl)
        .await
        .unwrap();
    assert!(enter(&server, THERE, &zed.room).await.is_ok());
    leave(&mut zed, &join).await;
    let left = enter(&server, THERE, &zed.room).await;
    assert!(matches!(left, Err(RoomError::Forbidden(_))));
}

#[tokio::test]
async fn backfill_serves_what_came_before_newest_first() {
    let server = Server::start().await;
    let (zed, join) = shared_room(&server, "11").await;
    let mut said = vec![join];
    for number in 0..5 {
        let said_now = server
            .say(&user("alice"), &zed.room, &number.to_string())
            .await;
        said.push(said_now);
    }
    let visit = enter(&server, THERE, &zed.room).await.unwrap();
    let last = said.last().unwrap().clone();
    let some = server
        .rooms
        .serve_backfill(&visit, std::slice::from_ref(&last), 4)
        .await;
    let expected: Vec<_> = said.iter().rev().take(4).map(|id| id.as_str()).collect();
    assert_eq!(ids(&some.unwrap()), expected);
    let all = server
        .rooms
        .serve_backfill(&visit, std::slice::from_ref(&last), 1000)
        .await;
    let all = all.unwrap();
    assert_eq!(all.last().unwrap().event_type(), "m.room.create");
    let once: BTreeSet<_> = ids(&all).into_iter().collect();
    assert_eq!(once.len(), all.len());
    // Unknown ones beside it are passed over.
    let unknown = OwnedEventId::try_from("$unknown").unwrap();
    let both = [unknown.clone(), last];
    let found = server.rooms.serve_backfill(&visit, &both, 1).await.unwrap();
    assert_eq!(ids(&found), [both[1].as_str()]);
    let none = server.rooms.serve_backfill(&visit, &[unknown], 1).await;
    assert!(matches!(none, Err(RoomError::UnknownEvent)));
}

#[tokio::test]
async fn what_a_server_may_not_see_is_served_redacted() {
    for (named, before_it_joined, while_out) in [
        ("world_readable", true, true),
        ("shared", true, true),
        ("invited", false, false),
        ("joined", false, false),
    ] {
        let server = Server::start().await;
        let create = CreateRoom {
            preset: Some(crate::Preset::PublicChat),
            ..CreateRoom::default()
        };
        let alice = user("alice");
        let room = server.create(&alice, create).await;
        let visible = visibility(&server, &room, named).await;
        let before = server.say(&alice, &room, "before").await;
        let mut zed = Elsewhere {
            server: &server,
            room: room.clone(),
            user: ruma::user_id!("@zed:there.example").to_owned(),
            time: 1_700_000_000_000,
        };
        let join = zed.join(&before).await;
        let with = server.say(&alice, &room, "with").await;
        let left = leave(&mut zed, &with).await;
        let out = server.say(&alice, &room, "out").await;
        let again = zed.join(&out).await;

        let visit = enter(&server, THERE, &room).await.unwrap();
        let last = std::slice::from_ref(&again);
        let served = server
            .rooms
            .serve_backfill(&visit, last, 100)
            .await
            .unwrap();
        let by_id: BTreeMap<_, _> = served.iter().map(|pdu| (pdu.event_id(), pdu)).collect();
        for (id, body, seen) in [
            (&before, "before", before_it_joined),
            (&with, "with", true),
            (&out, "out", while_out),
        ] {
            let expected = if seen {
                json!({ "msgtype": "m.text", "body": body })
            } else {
                json!({})
            };
            assert_eq!(content(by_id[&**id]), expected, "{named} {body}");
            let one = server
                .rooms
                .serve_event(server_name!("there.example"), id)
                .await;
            assert_eq!(content(&one.unwrap()), expected, "{named} {body}");
        }
        // Its own coming and going, and the visibility itself.
        for id in [&join, &left, &again] {
            assert_ne!(content(by_id[&**id]), json!({}), "{named}");
        }
        assert_eq!(content(by_id[&*visible])["history_visibility"], named);
        let asked = MissingAsked {
            latest: last,
            earliest: &[],
            min_depth: 0,
            limit: 50,
        };
        let missing = server.rooms.serve_missing(&visit, asked).await.unwrap();
        let hidden = missing
            .iter()
            .filter(|pdu| content(pdu) == json!({}))
            .count();
        let expected = [before_it_joined, while_out]
            .iter()
            .filter(|seen| !**seen)
            .count();
        assert!(hidden >= expected, "{named}");
        assert!(missing.iter().all(|pdu| pdu.event_id() != &*again));
    }
}

#[tokio::test]
async fn an_invitation_shows_an_invited_server_what_came_after_it() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "11").await;
    let (alice, room) = (user("alice"), zed.room.clone());
    visibility(&server, &room, "invited").await;
    let left = leave(&mut zed, &join).await;
    let hidden = server.say(&alice, &room, "hidden").await;
    let invite = MembershipChange::Invite {
        user: zed.user.clone(),
        profile: crate::MemberProfile::default(),
        is_direct: false,
    };
    let invite = server.member(&alice, &room, invite).await.unwrap();
    let shown = server.say(&alice, &room, "shown").await;
    let again = zed.join(&shown).await;
    let visit = enter(&server, THERE, &room).await.unwrap();
    let served = server
        .rooms
        .serve_backfill(&visit, &[again], 100)
        .await
        .unwrap();
    let by_id: BTreeMap<_, _> = served.iter().map(|pdu| (pdu.event_id(), pdu)).collect();
    assert_eq!(content(by_id[&*hidden]), json!({}));
    assert_eq!(content(by_id[&*shown])["body"], "shown");
    assert_eq!(content(by_id[&*invite])["membership"], "invite");
    assert_eq!(content(by_id[&*left])["membership"], "leave");
}

#[tokio::test]
async fn a_server_does_not_see_what_comes_late_on_a_branch_that_is_older_than_its_join() {
    for named in ["joined", "invited"] {
        let server = Server::start().await;
        let (mut yan, _) = shared_room(&server, "12").await;
        let room = yan.room.clone();
        visibility(&server, &room, named).await;
        let base = server.say(&user("alice"), &room, "base").await;
        let mut zoe = yan.other("@zoe:third.example");
        let join = zoe.join(&base).await;
        let body = json!({ "body": "theirs" });
        let aside = yan
            .make(
                std::slice::from_ref(&base),
                "m.room.message",
                None,
                body.clone(),
            )
            .await;
        yan.receive(&aside).await;
        let after = yan
            .make(
                std::slice::from_ref(&join),
                "m.room.message",
                None,
                body.clone(),
            )
            .await;
        yan.receive(&after).await;
        let id = aside.event_id().to_owned();
        let both = [id.clone(), after.event_id().to_owned()];
        let merged = yan.make(&both, "m.room.message", None, body.clone()).await;
        yan.receive(&merged).await;
        let third = server_name!("third.example");
        let mut shown = Vec::new();
        for event in [&aside, &after, &merged] {
            let seen = server.rooms.serve_event(third, event.event_id()).await;
            shown.push(content(&seen.unwrap()) == body);
        }
        assert_eq!(shown, [false, true, true], "{named}");
        // Its own server sees all of them.
        let there = server_name!("there.example");
        let seen = server.rooms.serve_event(there, &id).await.unwrap();
        assert_eq!(content(&seen), body);
    }
}

#[tokio::test]
async fn an_event_is_found_by_its_id_alone_and_by_an_index_that_is_made_later() {
    let server = Server::start().await;
    let (zed, join) = shared_room(&server, "12").await;
    let there = server_name!("there.example");
    let mut ids = vec![join];
    for number in 0..3 {
        ids.push(
            server
                .say(&user("alice"), &zed.room, &number.to_string())
                .await,
        );
    }
    let store = server.rooms.store();
    let found = async |id: &OwnedEventId| server.rooms.serve_event(there, id).await.is_ok();
    for id in &ids {
        assert!(found(id).await);
    }
    // As an earlier version left it.
    let all = || ScanRange::all();
    let rows = store.scan(&tables::EVENT_ROOMS, all(), Direction::Forward, 900);
    let rows = rows.await.unwrap();
    let mut batch = Batch::new();
    for (key, ()) in &rows {
        batch.delete(&tables::EVENT_ROOMS, key);
    }
    store.commit(batch).await.unwrap();
    assert!(!found(&ids[0]).await);
    // By steps that end at any place.
    let step = IndexEventRooms.step(store, None).await.unwrap();
    assert!(step.next.is_none());
    store.commit(step.batch).await.unwrap();
    for id in &ids {
        assert!(found(id).await);
    }
    let again = store.scan(&tables::EVENT_ROOMS, all(), Direction::Forward, 900);
    let again: BTreeSet<_> = again.await.unwrap().into_iter().map(|row| row.0).collect();
    assert!(rows.iter().all(|(key, ())| again.contains(key)));
}

#[tokio::test]
async fn missing_events_lie_between_those_that_are_named() {
    let server = Server::start().await;
    let (zed, join) = shared_room(&server, "12").await;
    let mut said = vec![join];
    for number in 0..30 {
        let now = server
            .say(&user("alice"), &zed.room, &number.to_string())
            .await;
        said.push(now);
    }
    let visit = enter(&server, THERE, &zed.room).await.unwrap();
    let ask = async |earliest: usize, latest: usize, min_depth: u64, limit: usize| {
        let asked = MissingAsked {
            latest: &said[latest..=latest],
            earliest: &said[earliest..=earliest],
            min_depth,
            limit,
        };
        let found = server.rooms.serve_missing(&visit, asked).await.unwrap();
        let place = |pdu: &Pdu| said.iter().position(|id| id == pdu.event_id()).unwrap();
        (found.iter().map(place).collect::<Vec<_>>(), found)
    };
    assert_eq!(ask(3, 8, 0, 10).await.0, [4, 5, 6, 7]);
    assert_eq!(ask(3, 30, 0, 5).await.0, [25, 26, 27, 28, 29]);
    assert_eq!(ask(8, 9, 0, 10).await.0, [] as [usize; 0]);
    let (_, found) = ask(3, 8, 0, 10).await;
    assert_eq!(ask(3, 8, found[2].depth(), 10).await.0, [6, 7]);
}

#[tokio::test]
async fn rejected_events_are_not_served_and_soft_failed_ones_where_they_are_named() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "11").await;
    let (alice, room) = (user("alice"), zed.room.clone());
    let mut yan = zed.other("@yan:there.example");
    let name = json!({ "name": "mine" });
    let yan_join = yan.join(&join).await;
    let after = std::slice::from_ref(&yan_join);
    let rejected = yan.make(after, "m.room.name", Some(""), name).await;
    assert_eq!(yan.receive(&rejected).await, StatusKind::Rejected);
    let text = |body: &str| json!({ "body": body });
    let on_it = [rejected.event_id().to_owned()];
    let follows = zed
        .make(&on_it, "m.room.message", None, text("follows"))
        .await;
    assert_eq!(zed.receive(&follows).await, StatusKind::Accepted);

    let ban = MembershipChange::Ban {
        user: yan.user.clone(),
    };
    server.member(&alice, &room, ban).await.unwrap();
    let late = yan.make(after, "m.room.message", None, text("late")).await;
    assert_eq!(yan.receive(&late).await, StatusKind::SoftFailed);
    let visit = enter(&server, THERE, &room).await.unwrap();
    let rooms = &server.rooms;
    let from_tip = rooms
        .serve_backfill(&visit, &[follows.event_id().to_owned()], 100)
        .await;
    let from_tip = from_tip.unwrap();
    assert!(
        ids(&from_tip).contains(&yan_join.as_str()),
        "over the rejected event"
    );
    for hidden in [&rejected, &late] {
        assert!(!ids(&from_tip).contains(&hidden.event_id().as_str()));
    }
    let named = rooms
        .serve_backfill(&visit, &[late.event_id().to_owned()], 1)
        .await;
    assert_eq!(named.unwrap(), std::slice::from_ref(&late));
    let there = server_name!("there.example");
    assert_eq!(
        rooms.serve_event(there, late.event_id()).await.unwrap(),
        late
    );
    let no = rooms.serve_event(there, rejected.event_id()).await;
    assert!(matches!(no, Err(RoomError::UnknownEvent)));
    let no = rooms.serve_auth_chain(&visit, rejected.event_id()).await;
    assert!(matches!(no, Err(RoomError::UnknownEvent)));
    // The state that it was judged by is told.
    let state = rooms
        .serve_state(&visit, rejected.event_id())
        .await
        .unwrap();
    let state = whole(state).await.remove("state").unwrap();
    assert!(
        state
            .iter()
            .all(|(id, _)| id != rejected.event_id().as_str())
    );
    assert!(!state.is_empty());
}

#[tokio::test]
async fn the_state_before_an_event_comes_with_its_whole_auth_chain() {
    for version in ["1", "11", "12"] {
        let server = Server::start().await;
        let (zed, _) = shared_room(&server, version).await;
        let (alice, room) = (user("alice"), zed.room.clone());
        let name = event("m.room.name", Some(""), &json!({ "name": "second" }));
        let name = server.try_send(&alice, &room, name).await.unwrap();
        let said = server.say(&alice, &room, "later").await;
        let visit = enter(&server, THERE, &room).await.unwrap();
        let at = async |id: &OwnedEventId| {
            let chain = server.rooms.serve_state(&visit, id).await.unwrap();
            whole(chain).await
        };
        let names = |told: &BTreeMap<&str, Vec<(String, Value)>>| {
            let of_type = |(_, json): &&(String, Value)| json["type"] == "m.room.name";
            let name = told["state"].iter().find(of_type).unwrap();
            name.1["content"]["name"].clone()
        };
        let (before, after) = (at(&name).await, at(&said).await);
        assert_eq!(
            (names(&before), names(&after)),
            (json!("first"), json!("second"))
        );
        for told in [&before, &after] {
            let chain: BTreeSet<_> = told["auth"].iter().map(|(id, _)| id.as_str()).collect();
            assert_eq!(chain.len(), told["auth"].len(), "each once");
            for (_, json) in told["state"].iter().chain(&told["auth"]) {
                assert_eq!(json.get("unsigned"), None);
                for auth in json["auth_events"].as_array().unwrap() {
                    let id = auth.as_str().or_else(|| auth[0].as_str()).unwrap();
                    assert!(chain.contains(id), "{version} {id}");
                }
            }
        }
        let chain = server.rooms.serve_auth_chain(&visit, &name).await.unwrap();
        let chain = whole(chain).await;
        assert!(chain["state"].is_empty());
        let kinds = chain["auth"]
            .iter()
            .map(|(_, json)| json["type"].as_str().unwrap());
        let kinds: BTreeSet<_> = kinds.collect();
        assert!(kinds.contains("m.room.power_levels"));
        assert!(!kinds.contains("m.room.name"));
    }
}

/// Continuwuity SEC26, CVE-2022-39335: what is asked for belongs to the room of the question.
#[tokio::test]
async fn an_event_is_served_through_its_own_room_only() {
    let server = Server::start().await;
    let (zed, join) = shared_room(&server, "12").await;
    let alice = user("alice");
    let private = server.create(&alice, CreateRoom::default()).await;
    let secret = server.say(&alice, &private, "secret").await;
    let visit = enter(&server, THERE, &zed.room).await.unwrap();
    let (rooms, there) = (&server.rooms, server_name!("there.example"));
    let unknown = |error: RoomError| matches!(error, RoomError::UnknownEvent);
    assert!(unknown(
        rooms.serve_state(&visit, &secret).await.unwrap_err()
    ));
    assert!(unknown(
        rooms.serve_auth_chain(&visit, &secret).await.unwrap_err()
    ));
    let named = [secret.clone()];
    assert!(unknown(
        rooms.serve_backfill(&visit, &named, 9).await.unwrap_err()
    ));
    let asked = MissingAsked {
        latest: &named,
        earliest: &[],
        min_depth: 0,
        limit: 10,
    };
    assert!(rooms.serve_missing(&visit, asked).await.unwrap().is_empty());
    for (who, id) in [(there, &secret), (server_name!("stranger.example"), &join)] {
        let answer = rooms.serve_event(who, id).await;
        assert!(matches!(answer, Err(RoomError::Forbidden(_))), "{answer:?}");
    }
    let mine = rooms.serve_event(there, &join).await.unwrap();
    assert_eq!(mine.event_id(), &*join);
    let again = rooms.serve_event(there, &secret).await;
    assert!(matches!(again, Err(RoomError::Forbidden(_))), "{again:?}");
}

#[tokio::test]
async fn who_has_left_may_ask_for_what_it_saw() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "11").await;
    let (alice, room) = (user("alice"), zed.room.clone());
    let with = server.say(&alice, &room, "with").await;
    leave(&mut zed, &join).await;
    let without = server.say(&alice, &room, "without").await;
    let there = server_name!("there.example");
    let seen = server.rooms.serve_event(there, &with).await.unwrap();
    assert_eq!(content(&seen)["body"], "with");
    let hidden = server.rooms.serve_event(there, &without).await;
    assert!(matches!(hidden, Err(RoomError::Forbidden(_))), "{hidden:?}");
}

#[tokio::test]
async fn the_event_nearest_to_a_time_is_one_that_the_server_may_see() {
    let server = Server::start().await;
    let (zed, _) = shared_room(&server, "11").await;
    let (alice, room) = (user("alice"), zed.room.clone());
    let at = async |time: u64, towards| {
        let visit = enter(&server, THERE, &room).await.unwrap();
        let near = server.rooms.serve_nearest(&visit, time, towards).await;
        near.unwrap().event
    };
    server.clock.advance(std::time::Duration::from_hours(1));
    let said = server.say(&alice, &room, "an hour later").await;
    let newer = at(1_700_000_000_000 + 60_000, Towards::Newer)
        .await
        .unwrap();
    assert_eq!((newer.event_id, newer.time), (said, 1_700_003_600_000));
    let older = at(1_700_000_000_000 + 60_000, Towards::Older)
        .await
        .unwrap();
    assert!(older.time < 1_700_000_060_000);
    assert_eq!(at(1_800_000_000_000, Towards::Newer).await, None);
    assert_eq!(at(5, Towards::Older).await, None);
}

//! Which events leave, and to whom.

use homeserver_events::{Handshake, Step};
use homeserver_storage::Position;
use ruma::{OwnedEventId, server_name, user_id};
use serde_json::json;

use super::{
    forks::{Elsewhere, shared_room},
    support::{Server, user},
    switches::{allows_joins, joins, part, public_room},
};
use crate::{Admitted, MembershipChange, Room};

async fn servers(server: &Server, room: &Room, at: Position) -> Vec<String> {
    let servers = server.rooms.servers_at(room, at).await.unwrap();
    servers.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn the_servers_of_a_room_are_those_of_a_time() {
    let server = Server::start().await;
    let (zed, _) = shared_room(&server, "11").await;
    let room = server.room(&zed.room).await;
    let joined = server.rooms.durable();
    let both = ["here.example", "there.example"];
    assert_eq!(servers(&server, &room, joined - 1).await, ["here.example"]);
    assert_eq!(servers(&server, &room, joined).await, both);
    server.say(&user("alice"), &zed.room, "said").await;
    assert_eq!(servers(&server, &room, joined + 1).await, both);
    let kick = MembershipChange::Kick {
        user: user_id!("@zed:there.example").to_owned(),
    };
    server
        .member(&user("alice"), &zed.room, kick)
        .await
        .unwrap();
    let now = server.rooms.durable();
    assert_eq!(servers(&server, &room, now - 1).await, both);
    assert_eq!(servers(&server, &room, now).await, ["here.example"]);
    // The same by a process that remembers nothing.
    let again = server.restart().await;
    assert_eq!(servers(&again, &room, now - 1).await, both);
    assert_eq!(servers(&again, &room, 0).await, [""; 0]);
}

#[tokio::test]
async fn a_switch_that_is_not_indexed_yet_counts_from_its_position() {
    let server = Server::start().await;
    let id = public_room(&server).await.unwrap();
    let room = server.room(&id).await;
    let pdus = joins(&room, &allows_joins(&server, &room).await, 3);
    let begun = server.rooms.begin_import(&room).await.unwrap();
    part(&server, begun, 0, &pdus).await.unwrap();
    let before = server.rooms.durable();
    server.rooms.try_switch(begun).await.unwrap().unwrap();
    let after = server.rooms.durable();
    for _ in 0..2 {
        assert_eq!(servers(&server, &room, before).await, ["here.example"]);
        let both = ["here.example", "there.example"];
        assert_eq!(servers(&server, &room, after).await, both);
        server.rooms.pay_debts_of(&room).await.unwrap();
    }
}

#[tokio::test]
async fn a_backlog_is_read_page_by_page() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "12").await;
    let room = server.room(&zed.room).await;
    let start = server.rooms.durable();
    let body = json!({ "body": "theirs" });
    let theirs = zed.make(&[join], "m.room.message", None, body).await;
    zed.receive(&theirs).await;
    let mut sent = Vec::new();
    for number in 0..5 {
        sent.push(
            server
                .say(&user("alice"), &zed.room, &number.to_string())
                .await,
        );
    }
    let (mut after, upto) = (start, server.rooms.durable());
    let there = ruma::server_name!("there.example");
    let mut read = Vec::new();
    while after < upto {
        let page = server.rooms.backlog(&room, there, (after, upto), 2);
        let page = page.await.unwrap();
        assert!(page.events.len() <= 2 && page.upto > after);
        let ids = page.events.iter().map(|one| one.pdu.event_id().to_owned());
        read.extend(ids);
        after = page.upto;
    }
    assert_eq!(read, sent);
    let nobody = ruma::server_name!("nobody.example");
    let none = server.rooms.backlog(&room, nobody, (start, upto), 9);
    assert!(none.await.unwrap().events.is_empty());
    let newest = server.rooms.newest_for(&room, there).await.unwrap();
    assert_eq!(newest.len(), 1);
    assert_eq!(newest[0].event_id(), sent[4]);
    assert!(
        server
            .rooms
            .newest_for(&room, nobody)
            .await
            .unwrap()
            .is_empty()
    );
}

/// A user of a third server joins through this one, or by another way.
async fn third(of: &Elsewhere<'_>, prev: &OwnedEventId, through_us: bool) -> OwnedEventId {
    let (rooms, room) = (&of.server.rooms, of.server.room(&of.room).await);
    let mut uma = of.other("@uma:third.example");
    let body = json!({ "membership": "join" });
    let key = uma.user.to_string();
    let prev = std::slice::from_ref(prev);
    let mut join = uma.make(prev, "m.room.member", Some(&key), body).await;
    if through_us {
        let handshake = Handshake {
            step: Step::Join,
            room: &room.id,
            event: join.event_id(),
            origin: server_name!("third.example"),
            own: server_name!("here.example"),
        };
        let admitted = rooms.admit(&room, &join, &handshake).await.unwrap();
        let Admitted::Signed(signed) = admitted else {
            panic!("{admitted:?}")
        };
        join = signed;
    }
    uma.receive(&join).await;
    join.event_id().to_owned()
}

#[tokio::test]
async fn who_let_a_user_in_tells_what_ended_a_stay_that_others_did_not_know_of() {
    for version in ["11", "12"] {
        // Whether the ban follows the join, and the join came through this server.
        for (knowing, through_us) in [(false, true), (true, true), (false, false)] {
            let server = Server::start().await;
            let (mut zed, join) = shared_room(&server, version).await;
            let room = server.room(&zed.room).await;
            let uma = third(&zed, &join, through_us).await;
            let start = server.rooms.durable();
            let prev = if knowing { &uma } else { &join };
            let key = Some("@uma:third.example");
            let body = json!({ "membership": "ban" });
            let prev = std::slice::from_ref(prev);
            let ban = zed.make(prev, "m.room.member", key, body).await;
            zed.receive(&ban).await;
            let upto = server.rooms.durable();
            assert_eq!(
                servers(&server, &room, upto).await,
                ["here.example", "there.example"]
            );
            let mut told = Vec::new();
            for other in ["third.example", "there.example"] {
                let other = other.try_into().unwrap();
                let backlog = server.rooms.backlog(&room, other, (start, upto), 9);
                for event in backlog.await.unwrap().events {
                    let all = server.rooms.destinations(&room, &event).await.unwrap();
                    assert_eq!(all.iter().collect::<Vec<_>>(), ["third.example"]);
                    told.push(event.pdu.event_id().to_owned());
                }
            }
            let expected = (!knowing && through_us).then(|| ban.event_id().to_owned());
            assert_eq!(told, Vec::from_iter(expected), "{version} {knowing}");
        }
    }
}

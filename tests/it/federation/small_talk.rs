//! What is said in rooms and about users, across servers.

use homeserver_tests::{Client, encode};
use reqwest::Method;
use serde_json::{Value, json};

use super::stage::{Feed, Stage, eventually, sees, unique};

pub(super) async fn redactions(stage: Stage) {
    let (alice, bob) = stage.users().await;
    let room = stage.shared_room(&alice, &bob).await;
    // Her own, and as a moderator his.
    for (author, reader) in [(&alice, &bob), (&bob, &alice)] {
        let said = author.say(&room, "unwise").await;
        sees(reader, &room, &said).await;
        sees(&alice, &room, &said).await;
        let path = format!(
            "/_matrix/client/v3/rooms/{}/redact/{}/{}",
            encode(&room),
            encode(&said),
            alice.transaction()
        );
        alice.put(&path, json!({ "reason": "unwise" })).await.ok();
        eventually("the redaction arrives", async || {
            let event = sees(&bob, &room, &said).await;
            (event["content"] == json!({})).then_some(())
        })
        .await;
    }
}

pub(super) async fn edits_and_reactions(stage: Stage) {
    let (alice, bob) = stage.users().await;
    let room = stage.shared_room(&alice, &bob).await;
    let said = alice.say(&room, "helo").await;
    sees(&bob, &room, &said).await;
    let edit = json!({
        "msgtype": "m.text", "body": "* hello",
        "m.new_content": { "msgtype": "m.text", "body": "hello" },
        "m.relates_to": { "rel_type": "m.replace", "event_id": said },
    });
    let reaction = json!({
        "m.relates_to": { "rel_type": "m.annotation", "event_id": said, "key": "👍" },
    });
    for (author, reader, kind, content) in [
        (&alice, &bob, "m.room.message", edit),
        (&bob, &alice, "m.reaction", reaction),
    ] {
        let sent = author.send_event(&room, kind, content.clone()).await;
        let seen = sees(reader, &room, &sent.text("event_id")).await;
        assert_eq!(seen["content"]["m.relates_to"], content["m.relates_to"]);
        let path = format!(
            "/_matrix/client/v1/rooms/{}/relations/{}/{}",
            encode(&room),
            encode(&said),
            content["m.relates_to"]["rel_type"].as_str().unwrap()
        );
        let related = reader.get(&path).await.ok();
        assert_eq!(related["chunk"].as_array().unwrap().len(), 1, "{related}");
    }
}

pub(super) async fn receipts(stage: Stage) {
    let (alice, bob) = stage.users().await;
    let room = stage.shared_room(&alice, &bob).await;
    for (author, reader) in [(&alice, &bob), (&bob, &alice)] {
        let mut author_hears = Feed::of(author).await;
        let said = author.say(&room, "read this").await;
        sees(reader, &room, &said).await;
        reader
            .act(
                &room,
                &format!("receipt/m.read/{}", encode(&said)),
                json!({}),
            )
            .await
            .ok();
        author_hears
            .ephemeral(&room, |event| {
                event["type"] == "m.receipt"
                    && event["content"][&said]["m.read"][&reader.user]["ts"].is_u64()
            })
            .await;
    }
}

pub(super) async fn typing(stage: Stage) {
    let (alice, bob) = stage.users().await;
    let room = stage.shared_room(&alice, &bob).await;
    for (author, reader) in [(&alice, &bob), (&bob, &alice)] {
        let mut reader_hears = Feed::of(reader).await;
        let path = format!(
            "/_matrix/client/v3/rooms/{}/typing/{}",
            encode(&room),
            encode(&author.user)
        );
        for (body, typing) in [
            (
                json!({ "typing": true, "timeout": 30_000 }),
                json!([author.user]),
            ),
            (json!({ "typing": false }), json!([])),
        ] {
            author.put(&path, body).await.ok();
            reader_hears
                .ephemeral(&room, |event| {
                    event["type"] == "m.typing" && event["content"]["user_ids"] == typing
                })
                .await;
        }
    }
}

pub(super) async fn presence(stage: Stage) {
    let (alice, bob) = stage.users().await;
    stage.shared_room(&alice, &bob).await;
    for (watched, watcher) in [(&alice, &bob), (&bob, &alice)] {
        let mut watcher_hears = Feed::of(watcher).await;
        let path = format!(
            "/_matrix/client/v3/presence/{}/status",
            encode(&watched.user)
        );
        let message = unique("busy");
        let body = json!({ "presence": "online", "status_msg": message });
        watched.put(&path, body).await.ok();
        let is_it = |event: &Value| {
            event["sender"] == watched.user && event["content"]["status_msg"] == message
        };
        watcher_hears
            .until("presence", |sync| {
                let events = sync["presence"]["events"].as_array()?;
                events.iter().any(is_it).then_some(())
            })
            .await;
    }
}

pub(super) async fn profiles(stage: Stage) {
    let (alice, bob) = stage.users().await;
    let room = stage.shared_room(&alice, &bob).await;
    for (named, reader) in [(&alice, &bob), (&bob, &alice)] {
        let name = unique("The Great");
        let path = format!("/_matrix/client/v3/profile/{}", encode(&named.user));
        let body = json!({ "displayname": name });
        named.put(&format!("{path}/displayname"), body).await.ok();
        eventually("the profile shows the name", async || {
            let profile = reader.get(&path).await.ok();
            (profile["displayname"] == name).then_some(())
        })
        .await;
        eventually("the room shows the name", async || {
            let member = reader.state(&room, "m.room.member", &named.user).await;
            (member.ok()["displayname"] == name).then_some(())
        })
        .await;
    }
    let nobody = format!("/_matrix/client/v3/profile/@nobody:{}", stage.near.name());
    bob.get(&nobody).await.expect_error(404, "M_NOT_FOUND");
}

async fn upload(client: &Client, bytes: &[u8]) -> String {
    let path = "/_matrix/media/v3/upload?filename=note.txt";
    let sent = client.send(Method::POST, path, Some("text/plain"), bytes.to_vec());
    sent.await.unwrap().text("content_uri")
}

pub(super) async fn media(stage: Stage) {
    let (alice, bob) = stage.users().await;
    for (owner, reader) in [(&alice, &bob), (&bob, &alice)] {
        let bytes = unique("a note").into_bytes();
        let uri = upload(owner, &bytes).await;
        let place = uri.strip_prefix("mxc://").unwrap();
        let path = format!("/_matrix/client/v1/media/download/{place}");
        let answer = reader.get(&path).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(answer.bytes, bytes);
        let disposition = answer.headers["content-disposition"].to_str().unwrap();
        assert!(disposition.contains("note.txt"), "{disposition}");
    }
}

pub(super) async fn the_directory(stage: Stage) {
    let (alice, bob) = stage.users().await;
    let local = unique("listed");
    let more = json!({
        "preset": "public_chat", "visibility": "public", "name": local, "room_alias_name": local,
    });
    let room = stage.room(&alice, more).await;
    let near = stage.near.name();
    let alias = encode(&format!("#{local}:{near}"));
    let path = format!("/_matrix/client/v3/directory/room/{alias}");
    let found = bob.get(&path).await.ok();
    assert_eq!(found["room_id"], room);
    assert!(found["servers"].as_array().unwrap().contains(&near.into()));
    let path = format!("/_matrix/client/v3/publicRooms?server={}", encode(near));
    let listed = bob
        .post(&path, json!({ "filter": { "generic_search_term": local } }))
        .await
        .ok();
    assert_eq!(listed["chunk"][0]["room_id"], room, "{listed}");
    let nothing = encode(&format!("#nothing:{near}"));
    bob.get(&format!("/_matrix/client/v3/directory/room/{nothing}"))
        .await
        .expect_error(404, "M_NOT_FOUND");
}

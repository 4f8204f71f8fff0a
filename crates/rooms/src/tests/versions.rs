//! Every room version lives.

use homeserver_events::RoomVersion;
use ruma::RoomVersionId;
use serde_json::json;

use super::support::{Server, event, user};
use crate::{CreateRoom, Preset, RoomAction};

#[tokio::test]
async fn a_room_of_every_version_lives() {
    let server = Server::start().await;
    let (alice, bob) = (user("alice"), user("bob"));
    for version in RoomVersion::ALL {
        let create = CreateRoom {
            version: Some(RoomVersionId::try_from(version.as_str()).unwrap()),
            preset: Some(Preset::PublicChat),
            name: Some(version.as_str().to_owned()),
            ..CreateRoom::default()
        };
        let room = server.create(&alice, create).await;
        server.join(&bob, &room).await.unwrap();
        let said = server.say(&bob, &room, "hello").await;
        let topic = event("m.room.topic", Some(""), &json!({ "topic": "t" }));
        server.try_send(&alice, &room, topic).await.unwrap();
        let redact = RoomAction::Redact {
            room: room.clone(),
            target: said.clone(),
            reason: None,
        };
        server.act(&alice, redact).await.unwrap();
        let timeline = server.timeline(&bob, &room).await;
        let last = timeline.last().unwrap().pdu();
        assert_eq!(
            last.redacts(),
            Some(said.as_ref()),
            "version {}",
            version.as_str()
        );
        let message = timeline
            .iter()
            .find(|event| event.pdu().event_id() == said)
            .unwrap();
        assert_eq!(message.pdu().content_str(), "{}");
        assert_eq!(timeline.len(), 11, "version {}", version.as_str());
    }
}

//! Seeds a room offline: two users, `alice` and `bob`, in one room with as many events as asked.
//!
//! Usage: `seed CONFIGURATION EVENTS`. The configuration is that of the server which will serve the
//! room; the password of both users is `a pass phrase for the load`, the room's alias `#seeded`.
//! Every thousandth event changes the topic; the rest are short messages, in turn by the two.

use std::error::Error;

use homeserver::{
    Homeserver,
    config::Config,
    rooms::{CreateRoom, NewEvent, Preset},
};
use ruma::OwnedUserId;
use serde_json::{json, value::to_raw_value};

/// Events handed over in one go.
const AT_ONCE: usize = 10_000;
const PASSWORD: &str = "a pass phrase for the load";

#[expect(clippy::print_stdout, reason = "an example may print")]
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
pub(crate) async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [configuration, events] = arguments.as_slice() else {
        return Err("usage: seed CONFIGURATION EVENTS".into());
    };
    let text = std::fs::read_to_string(configuration)?;
    let config = Config::parse(&text, std::iter::empty::<(String, String)>())?;
    let homeserver = Homeserver::configured(config).open().await?;
    let administration = homeserver.administration();
    let mut users = Vec::new();
    for name in ["alice", "bob"] {
        let account = administration
            .create_user(name, Some(PASSWORD), false)
            .await?;
        users.push(account.user_id);
    }
    let alice = homeserver.user(users[0].as_str()).await?;
    let bob = homeserver.user(users[1].as_str()).await?;
    let room = CreateRoom {
        preset: Some(Preset::PublicChat),
        alias_localpart: Some("seeded".to_owned()),
        ..CreateRoom::default()
    };
    let room = alice.create_room(room).await?;
    bob.join(room.clone()).await?;
    let count: usize = events.parse()?;
    for start in (0..count).step_by(AT_ONCE) {
        let some: Result<Vec<_>, _> = (start..count.min(start + AT_ONCE))
            .map(|number| event(&users, number))
            .collect();
        administration.append_events(&room, &some?).await?;
    }
    println!("{room}");
    assert!(
        homeserver.shutdown().await,
        "the database was not closed cleanly"
    );
    Ok(())
}

fn event(
    users: &[OwnedUserId],
    number: usize,
) -> Result<(OwnedUserId, NewEvent), serde_json::Error> {
    let (sender, event_type, state_key, content) = if number % 1_000 == 999 {
        let topic = json!({ "topic": format!("topic {number}") });
        (0, "m.room.topic", Some(String::new()), topic)
    } else {
        let body = format!("message {number}");
        let message = json!({ "msgtype": "m.text", "body": body });
        (number % 2, "m.room.message", None, message)
    };
    let event = NewEvent {
        event_type: event_type.to_owned(),
        state_key,
        content: to_raw_value(&content)?,
        timestamp: None,
    };
    Ok((users[sender].clone(), event))
}

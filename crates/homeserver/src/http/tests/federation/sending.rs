//! What happens at one homeserver arrives at another, by itself.

use std::time::Duration;

use super::{
    history::{Shared, ask},
    *,
};

const V3: &str = "/_matrix/client/v3";

/// How long something that happens by itself is waited for.
const PATIENCE: Duration = Duration::from_mins(1);

async fn until(mut is_so: impl AsyncFnMut() -> bool) {
    let look = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, look).await.unwrap();
}

async fn send_to_device(from: &Fresh, sender: &LoggedIn, to: &str, text: &str) {
    let path = format!("{V3}/sendToDevice/m.test/{text}");
    let body = json!({ "messages": { to: { "*": { "text": text } } } });
    from.put(&path, Some(&sender.token), body).await.ok();
}

/// The messages that wait for a device.
async fn texts(server: &Fresh, user: &LoggedIn) -> Vec<String> {
    let path = format!("{V3}/sync?timeout=0");
    let told = server.get(&path, Some(&user.token)).await.ok();
    let events = told["to_device"]["events"].as_array().cloned();
    let events = events.unwrap_or_default().into_iter();
    let text = |event: Value| event["content"]["text"].as_str().unwrap().to_owned();
    events.map(text).collect()
}

#[tokio::test]
async fn messages_to_devices_arrive_once_and_in_order_also_after_an_outage() {
    let shared = Shared::new("11").await;
    let bob = shared.there.register("bob").await;
    let (here, there) = (&shared.here, &shared.there);
    send_to_device(here, &shared.alice, &bob.user, "one").await;
    until(async || texts(there, &bob).await == ["one"]).await;

    let cut = shared.cut("bb.example");
    for text in ["two", "three"] {
        send_to_device(here, &shared.alice, &bob.user, text).await;
    }
    let name = server_name!("bb.example");
    until(async || here.homeserver.pending_for(name).failing.is_some()).await;
    shared.mend(cut);
    // It is asked again as soon as it shows that it is there.
    here.clock.advance(Duration::from_secs(5));
    let path = Path::v1("make_join").segment(&shared.room);
    let call = Call::get(path.segment("@bob:bb.example").query("ver", "11"));
    ask(there, call).await.unwrap();
    let all = ["one", "two", "three"];
    until(async || texts(there, &bob).await == all).await;
    until(async || here.homeserver.pending_for(name).is_nothing()).await;
    assert_eq!(texts(there, &bob).await, all);
}

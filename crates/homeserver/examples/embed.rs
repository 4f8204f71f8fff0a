//! Two homeservers inside another program: one is mounted under the program's own server, on the
//! other a user sends itself a message and reads it from the event stream.
//!
//! Run with `cargo run -p homeserver --example embed`. One thread is enough.

use std::{error::Error, sync::Arc};

use axum::{Router, routing::get};
use homeserver::{Homeserver, rooms::CreateRoom, storage::engines::memory::MemoryEngine};
use serde_json::json;
use tower::ServiceExt;

#[expect(clippy::print_stdout, reason = "an example may print")]
#[tokio::main(flavor = "current_thread")]
pub(crate) async fn main() -> Result<(), Box<dyn Error>> {
    let one = Homeserver::builder("one.example")
        .engine(Arc::new(MemoryEngine::new()))
        .open()
        .await?;
    let two = Homeserver::builder("two.example")
        .engine(Arc::new(MemoryEngine::new()))
        .open()
        .await?;

    // The program's own server, with a homeserver under it.
    let app = Router::new()
        .route("/", get(async || "the program's own page"))
        .merge(Router::new().nest_service("/chat", one.router()));
    let request = http::Request::get("/chat/_matrix/client/versions").body(String::new())?;
    let answer = app.oneshot(request).await?;
    assert_eq!(answer.status(), 200);

    // A user of the other one, within the process.
    two.administration().create_user("bot", None, false).await?;
    let bot = two.user("@bot:two.example").await?;
    let mut events = bot.events();
    let room = bot.create_room(CreateRoom::default()).await?;
    let content = json!({ "msgtype": "m.text", "body": "Hello from within" });
    let sent = bot.send(&room, "m.room.message", &content).await?;
    while let Some(event) = events.next().await {
        let event = event?;
        println!("{} {}", event.event_type(), event.content());
        if event.event_id() == sent {
            break;
        }
    }

    assert!(
        one.user("@bot:two.example").await.is_err(),
        "each has its own users"
    );
    assert!(one.shutdown().await && two.shutdown().await);
    Ok(())
}

//! Every endpoint's yes under all of its names: current paths, old ones, unstable aliases. Each area
//! is one story, told once in each dialect on one server.

mod accounts;
mod media;
mod rooms;
mod user_data;

use homeserver_tests::{Client, Server, ServerOptions, table::Dialect};
use reqwest::Method;
use serde_json::{Value, json};

/// What the stories need beside the defaults.
const CONFIGURATION: &str = "\
    [well_known]\n\
    client_base_url = \"https://chat.example.org\"\n\
    support_contact = \"admin@example.org\"\n\
    [media]\n\
    allow_legacy_unauthenticated = true\n";

/// Somebody who is not logged in and speaks a dialect; names are unique to it.
struct Teller {
    nobody: Client,
    dialect: Dialect,
}

impl Teller {
    /// An account of this story.
    async fn register(&self, name: &str) -> Client {
        self.nobody.register(&self.name(name)).await
    }

    /// A name that no other dialect uses.
    fn name(&self, name: &str) -> String {
        format!("{name}_{:?}", self.dialect).to_lowercase()
    }
}

/// A request that asks for the password first.
async fn confirmed(client: &Client, method: Method, path: &str, body: Value) -> Value {
    let asked = client.call(method.clone(), path, Some(body.clone())).await;
    assert_eq!(asked.status, 401, "{method} {path}: {}", asked.body);
    let name = client.user.trim_start_matches('@');
    let name = name.split(':').next().unwrap_or_default();
    let mut body = body;
    body["auth"] = json!({
        "type": "m.login.password", "session": asked.body["session"],
        "identifier": { "type": "m.id.user", "user": client.user },
        "password": format!("{name}'s password"),
    });
    client.call(method, path, Some(body)).await.ok()
}

async fn in_every_dialect(story: impl AsyncFn(&Teller)) {
    let options = ServerOptions {
        configuration: CONFIGURATION.to_owned(),
        ..ServerOptions::default()
    };
    let server = Server::start_with(options).await;
    for dialect in Dialect::ALL {
        let nobody = server.client().in_dialect(dialect);
        story(&Teller { nobody, dialect }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_accounts() {
    in_every_dialect(async |teller| {
        accounts::before_login(teller).await;
        accounts::sessions(teller).await;
        accounts::devices(teller).await;
        accounts::the_own_account(teller).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_rooms() {
    in_every_dialect(async |teller| {
        rooms::memberships(teller).await;
        rooms::directories(teller).await;
        rooms::events(teller).await;
        rooms::reading(teller).await;
        rooms::marks(teller).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_user_data() {
    in_every_dialect(async |teller| {
        user_data::profile(teller).await;
        user_data::account_data(teller).await;
        user_data::push(teller).await;
        user_data::keys(teller).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_media() {
    in_every_dialect(media::content).await;
}

//! Shipped clients against the server: what they do must simply work.

use homeserver_tests::{Peers, Server, ServerOptions, run_peer};
use tokio::process::Command;

#[tokio::test(flavor = "multi_thread")]
async fn matrix_nio_chats() {
    let server = Server::start().await;
    run_peer(
        Peers::installed().nio("chat.py", server.base()),
        async |_| (),
    )
    .await;
}

/// A registration token, encryption, a new password, a room's upgrade.
#[tokio::test(flavor = "multi_thread")]
async fn matrix_nio_keeps_an_account() {
    let server = Server::start_with(ServerOptions {
        registration: "mode = \"token\"\ntoken = \"open sesame\"\n",
        ..ServerOptions::default()
    })
    .await;
    let mut account = Peers::installed().nio("account.py", server.base());
    account.arg("open sesame");
    run_peer(account, async |_| ()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn matrix_js_sdk_chats() {
    let server = Server::start().await;
    run_peer(
        Peers::installed().js_sdk("chat.mjs", server.base()),
        async |_| (),
    )
    .await;
}

/// Runs a burst during which the server is killed and started again.
async fn survives_a_kill(mut server: Server, burst: Command) {
    run_peer(burst, async |line| {
        if line == "bursting" {
            server.kill().await;
            server.restart().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_matrix_nio_survives_a_kill() {
    let server = Server::start().await;
    let burst = Peers::installed().nio("burst.py", server.base());
    survives_a_kill(server, burst).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_matrix_js_sdk_survives_a_kill() {
    let server = Server::start().await;
    let burst = Peers::installed().js_sdk("burst.mjs", server.base());
    survives_a_kill(server, burst).await;
}

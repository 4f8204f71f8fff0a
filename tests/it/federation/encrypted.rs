//! Encrypted rooms of matrix-nio's users across servers.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use homeserver_tests::{Federation, Peers, run_peer};

use super::stage::{Kind, judge};

async fn encrypted(near: Kind, far: Kind) {
    let federation = Federation::new();
    let (mut near, far) = tokio::join!(near.start(&federation), far.start(&federation));
    let mut script = Peers::installed().nio("encrypted.py", near.base());
    script.arg(far.base());
    let played = AssertUnwindSafe(run_peer(script, async |line| match line {
        "outage" => near.kill().await,
        "over" => near.restart().await,
        _ => {}
    }));
    let well = played.catch_unwind().await.is_ok();
    judge(&[&near, &far], well);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_ours_and_synapse() {
    encrypted(Kind::Ours, Kind::Synapse).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_synapse_and_ours() {
    encrypted(Kind::Synapse, Kind::Ours).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_of_ours() {
    encrypted(Kind::Ours, Kind::Ours).await;
}

//! The measurements: durable sends, latency, time to the other user's /sync, CPU, memory, disk,
//! start-up.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::task::JoinSet;

use crate::{
    Error, LoadArguments,
    client::Client,
    disk::bytes_below,
    process::{Prepared, Server},
};

/// Concurrent senders of the measurements with many.
const SENDERS: usize = 16;

type Figures = Vec<(&'static str, String)>;

/// Starts a server on one engine and measures everything, in an order that leaves the idle figures
/// unspoilt.
pub(crate) async fn measure(
    arguments: &LoadArguments,
    engine: &str,
    folder: &Path,
) -> Result<Figures, Error> {
    let prepared = Prepared::new(&arguments.program, engine, &folder.join(engine))?;
    let mut server = prepared.start().await?;
    let mut figures = Figures::new();
    figures.push(("memory, idle", format!("{:.1} MiB", server.resident()?)));
    let alice = server.client()?.register("alice").await?;
    let bob = server.client()?.register("bob").await?;

    round_trip(&mut figures, &alice, arguments.latencies).await?;
    latency(&mut figures, &alice, arguments.latencies).await?;
    to_other_sync(&mut figures, &alice, &bob, arguments.latencies).await?;
    // Before the figures begin: hashing a password costs as much as hundreds of sends.
    let senders = senders(&server).await?;
    let senders: Vec<&Client> = senders.iter().collect();
    let disk_before = bytes_below(&server.data())?;
    let cpu_before = server.cpu()?;
    let many = arguments.messages;
    throughput(&mut figures, "1 sender, 1 room", &[&alice], 1, many / 4).await?;
    throughput(
        &mut figures,
        "16 senders, 16 rooms",
        &senders,
        SENDERS,
        many,
    )
    .await?;
    throughput(
        &mut figures,
        "16 senders, 1 room",
        &[&alice; SENDERS],
        1,
        many,
    )
    .await?;
    let sends = (many / 4 + 2 * many) as f64;
    let cpu = server.cpu()?.saturating_sub(cpu_before).as_secs_f64() * 1e3;
    figures.push((
        "CPU of the server per send",
        format!("{:.3} ms", cpu / sends),
    ));
    figures.push((
        "memory, after the load",
        format!("{:.1} MiB", server.resident()?),
    ));

    server.kill()?;
    let after_kill = server.restart().await?;
    server.stop().await?;
    let disk = (bytes_below(&server.data())?.saturating_sub(disk_before)) as f64 / sends;
    figures.push((
        "disk per short message, after a clean stop",
        format!("{disk:.0} bytes"),
    ));
    let after_stop = server.restart().await?;
    figures.push((
        "start-up after SIGKILL under load",
        milliseconds(after_kill),
    ));
    figures.push(("start-up after a clean stop", milliseconds(after_stop)));
    Ok(figures)
}

async fn senders(server: &Server) -> Result<Vec<Client>, Error> {
    let mut senders = Vec::new();
    for number in 0..SENDERS {
        senders.push(
            server
                .client()?
                .register(&format!("sender-{number}"))
                .await?,
        );
    }
    Ok(senders)
}

/// The least that any request takes here: an answer that needs no work.
async fn round_trip(figures: &mut Figures, client: &Client, count: usize) -> Result<(), Error> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let started = Instant::now();
        client.get("/_matrix/client/versions").await?;
        times.push(started.elapsed());
    }
    let median = milliseconds(percentile(&mut times, 50));
    figures.push(("floor: GET /versions, p50", median));
    Ok(())
}

/// One send after the other.
async fn latency(figures: &mut Figures, client: &Client, count: usize) -> Result<(), Error> {
    let room = client.create_room(&json!({})).await?;
    let mut times = Vec::with_capacity(count);
    for number in 0..count {
        let started = Instant::now();
        client.say(&room, &format!("l{number}")).await?;
        times.push(started.elapsed());
    }
    figures.push((
        "sequential send, p50",
        milliseconds(percentile(&mut times, 50)),
    ));
    figures.push((
        "sequential send, p99",
        milliseconds(percentile(&mut times, 99)),
    ));
    Ok(())
}

/// From the start of a send to the end of the other user's waiting /sync that holds the event.
async fn to_other_sync(
    figures: &mut Figures,
    alice: &Client,
    bob: &Client,
    count: usize,
) -> Result<(), Error> {
    let room = alice
        .create_room(&json!({ "preset": "public_chat" }))
        .await?;
    bob.post(&format!("/_matrix/client/v3/join/{room}"), &json!({}))
        .await?;
    let mut since = next_batch(&bob.sync("timeout=0").await?);
    let mut times = Vec::with_capacity(count);
    for number in 0..count {
        let query = format!("timeout=30000&since={since}");
        let waiting = bob.sync(&query);
        let send = async {
            // The /sync is under way before the send starts: it waits for what comes.
            tokio::time::sleep(Duration::from_millis(2)).await;
            let started = Instant::now();
            alice
                .say(&room, &format!("o{number}"))
                .await
                .map(|event| (event, started))
        };
        let heard = async { waiting.await.map(|answer| (answer, Instant::now())) };
        let (sent, heard) = tokio::join!(send, heard);
        let ((event, started), (answer, ended)) = (sent?, heard?);
        if answer.to_string().contains(&event) {
            times.push(ended - started);
        }
        since = next_batch(&answer);
    }
    if times.len() < count {
        let missed = count - times.len();
        return Err(Error::Server(format!(
            "{missed} waiting /syncs came back without the event"
        )));
    }
    figures.push((
        "send to the other user's /sync, p50",
        milliseconds(percentile(&mut times, 50)),
    ));
    figures.push((
        "send to the other user's /sync, p99",
        milliseconds(percentile(&mut times, 99)),
    ));
    Ok(())
}

pub(crate) fn next_batch(answer: &serde_json::Value) -> String {
    answer["next_batch"].as_str().unwrap_or_default().to_owned()
}

/// All senders at once, `count` messages in all over `rooms` rooms.
async fn throughput(
    figures: &mut Figures,
    what: &'static str,
    senders: &[&Client],
    rooms: usize,
    count: usize,
) -> Result<(), Error> {
    let mut own_rooms = Vec::new();
    for number in 0..rooms {
        own_rooms.push(
            senders[number % senders.len()]
                .create_room(&json!({}))
                .await?,
        );
    }
    let each = count / senders.len();
    let started = Instant::now();
    let mut running = JoinSet::new();
    for (number, client) in senders.iter().enumerate() {
        let (client, room) = ((*client).clone(), own_rooms[number % rooms].clone());
        running.spawn(async move {
            let mut times = Vec::with_capacity(each);
            for message in 0..each {
                let sent = Instant::now();
                client
                    .say(&room, &format!("{rooms}-{number}-{message}"))
                    .await?;
                times.push(sent.elapsed());
            }
            Ok::<_, Error>(times)
        });
    }
    let mut times = Vec::with_capacity(count);
    while let Some(done) = running.join_next().await {
        times.extend(done.map_err(|error| Error::Server(error.to_string()))??);
    }
    let rate = times.len() as f64 / started.elapsed().as_secs_f64();
    let (p50, p99) = (percentile(&mut times, 50), percentile(&mut times, 99));
    let figure = format!(
        "{rate:.0}/s, p50 {}, p99 {}",
        milliseconds(p50),
        milliseconds(p99)
    );
    figures.push((what, figure));
    Ok(())
}

/// The value that `percent` of all values do not exceed.
pub(crate) fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    let last = times.len().saturating_sub(1);
    times.get(last * percent / 100).copied().unwrap_or_default()
}

pub(crate) fn milliseconds(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

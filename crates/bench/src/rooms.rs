//! Whether reading grows with a room: the same questions to a server whose one room holds few
//! events, and to one whose room holds many.

use std::{
    future::Future,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    Error, RoomsArguments,
    client::Client,
    disk::bytes_below,
    load::{milliseconds, next_batch, percentile},
    process::Prepared,
};

/// Pages read towards older events before one is timed.
const PAGES_BACK: usize = 10;
/// What is timed, in the order of the table.
const QUESTIONS: [&str; 12] = [
    "start-up after a clean stop",
    "initial /sync, all read",
    "initial /sync, nothing read",
    "incremental /sync, one new message",
    "/messages, newest 50",
    "/messages, 50 after ten pages back",
    "/messages, oldest 50",
    "/context of one of the oldest",
    "send",
    "start-up after SIGKILL",
    "memory, at the end",
    "disk, before the questions",
];

/// Seeds a room of each size on one engine and prints what each question took.
pub(crate) async fn compare(
    arguments: &RoomsArguments,
    engine: &str,
    folder: &Path,
) -> Result<(), Error> {
    let mut columns = Vec::new();
    for events in &arguments.events {
        let folder = folder.join(format!("{engine}-{events}"));
        columns.push(ask(arguments, engine, *events, &folder).await?);
        std::fs::remove_dir_all(&folder)?;
    }
    let heading: Vec<String> = arguments.events.iter().map(ToString::to_string).collect();
    print_row("events in the room", &heading);
    for (row, question) in QUESTIONS.iter().enumerate() {
        let figures: Vec<String> = columns.iter().map(|column| column[row].clone()).collect();
        print_row(question, &figures);
    }
    Ok(())
}

fn print_row(what: &str, figures: &[String]) {
    let figures: Vec<String> = figures.iter().map(|it| format!("{it:>24}")).collect();
    println!("  {what:<36}{}", figures.concat());
}

/// Seeds one room and asks everything. The answers are in the order of [`QUESTIONS`].
async fn ask(
    arguments: &RoomsArguments,
    engine: &str,
    events: usize,
    folder: &Path,
) -> Result<Vec<String>, Error> {
    let prepared = Prepared::new(&arguments.program, engine, folder)?;
    seed(&arguments.seed_program, folder, events)?;
    let disk = bytes_below(&prepared.data())?;
    let started = Instant::now();
    let mut server = prepared.start().await?;
    let clean = started.elapsed();
    let alice = server.client()?.login("alice").await?;
    let bob = server.client()?.login("bob").await?;
    let room = alice.get("/_matrix/client/v3/joined_rooms").await?;
    let room = room["joined_rooms"][0]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    read_all(&alice, &room).await?;

    let count = arguments.repetitions;
    let mut figures = vec![milliseconds(clean)];
    for reader in [&alice, &bob] {
        figures.push(timed(count, || reader.sync("timeout=0")).await?);
    }
    figures.push(incremental(count, &alice, &bob, &room).await?);
    figures.extend(history(count, &bob, &room).await?);
    figures.push(sends(count, &alice, &room).await?);
    let resident = format!("{:.1} MiB", server.resident()?);
    server.kill()?;
    figures.push(milliseconds(server.restart().await?));
    figures.push(resident);
    figures.push(format!("{:.1} MB", disk as f64 / 1e6));
    server.stop().await?;
    Ok(figures)
}

/// Runs the seeding program in the server's folder, with the server's configuration.
fn seed(program: &Path, folder: &Path, events: usize) -> Result<(), Error> {
    let mut command = Command::new(program);
    command.current_dir(folder);
    let output = command.arg("conduit.toml").arg(events.to_string()).output();
    let output = output.map_err(|error| {
        let program = program.display();
        Error::Server(format!("{program}: {error}"))
    })?;
    if !output.status.success() {
        let log = String::from_utf8_lossy(&output.stderr);
        return Err(Error::Server(format!("seeding failed:\n{log}")));
    }
    Ok(())
}

/// The median time of one question, and the time of the first, which no cache has seen.
async fn timed<T, F>(count: usize, mut question: impl FnMut() -> F) -> Result<String, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let started = Instant::now();
        question().await?;
        times.push(started.elapsed());
    }
    let first = times.first().copied().unwrap_or_default();
    Ok(format!(
        "{} (1st {})",
        median(&mut times),
        milliseconds(first)
    ))
}

fn median(times: &mut [Duration]) -> String {
    milliseconds(percentile(times, 50))
}

/// Marks the newest event as read.
async fn read_all(client: &Client, room: &str) -> Result<(), Error> {
    let path = format!("/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=1");
    let page = client.get(&path).await?;
    let newest = page["chunk"][0]["event_id"].as_str().unwrap_or_default();
    let path = format!("/_matrix/client/v3/rooms/{room}/receipt/m.read/{newest}");
    client.post(&path, &serde_json::json!({})).await.map(drop)
}

/// /sync of what one message changed.
async fn incremental(
    count: usize,
    alice: &Client,
    bob: &Client,
    room: &str,
) -> Result<String, Error> {
    let mut since = next_batch(&bob.sync("timeout=0").await?);
    let mut times = Vec::with_capacity(count);
    for number in 0..count {
        alice.say(room, &format!("i{number}")).await?;
        let started = Instant::now();
        let answer = bob.sync(&format!("timeout=0&since={since}")).await?;
        times.push(started.elapsed());
        since = next_batch(&answer);
    }
    Ok(median(&mut times))
}

/// Pages of history: the newest, one further back, the oldest; and the surroundings of an event of
/// the oldest.
async fn history(count: usize, reader: &Client, room: &str) -> Result<Vec<String>, Error> {
    let pages = format!("/_matrix/client/v3/rooms/{room}/messages?limit=50");
    let newest = format!("{pages}&dir=b");
    let mut further = newest.clone();
    for _ in 0..PAGES_BACK {
        let page = reader.get(&further).await?;
        let Some(end) = page["end"].as_str() else {
            break;
        };
        further = format!("{newest}&from={end}");
    }
    let oldest = format!("{pages}&dir=f");
    let page = reader.get(&oldest).await?;
    let events = page["chunk"].as_array().map_or(&[][..], Vec::as_slice);
    let event = events.last().and_then(|event| event["event_id"].as_str());
    let event = event.unwrap_or_default();
    let context = format!("/_matrix/client/v3/rooms/{room}/context/{event}?limit=10");
    let mut figures = Vec::new();
    for path in [newest, further, oldest, context] {
        figures.push(timed(count, || reader.get(&path)).await?);
    }
    Ok(figures)
}

async fn sends(count: usize, client: &Client, room: &str) -> Result<String, Error> {
    let mut times = Vec::with_capacity(count);
    for number in 0..count {
        let started = Instant::now();
        client.say(room, &format!("s{number}")).await?;
        times.push(started.elapsed());
    }
    Ok(median(&mut times))
}

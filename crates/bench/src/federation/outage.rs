//! An outage: one server is stopped for a minute while the other one's user goes on writing.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use super::{
    PATIENCE,
    pair::{Kind, Pair, Place, Side},
};
use crate::{Error, client::Client};

/// Messages that are written while the other server is away.
const MESSAGES: usize = 250;

/// Pause between two looks at a whole history, which takes servers some time.
const PAUSE: Duration = Duration::from_millis(200);

/// What an outage came to.
struct Outcome {
    /// From the start of the process to its first answer.
    start: Duration,
    /// From there until everything could be read.
    caught_up: Duration,
}

/// Plays outages of both servers of ours with ours, and of ours with Synapse; all at the same time.
pub(super) async fn measure(
    program: &Path,
    engine: &str,
    synapse: Option<&Path>,
    outage: Duration,
    folder: &Path,
) -> Result<(), Error> {
    let place = Place::new(folder)?;
    let ours = Kind::Ours(program, engine);
    let mut pairs = vec![Pair::start(&place, "ours", &ours, &ours).await?];
    if let Some(python) = synapse {
        let synapse = Kind::Synapse(python);
        pairs.push(Pair::start(&place, "Synapse", &ours, &synapse).await?);
    }
    let played = pairs.iter_mut().map(|pair| both(pair, outage));
    for played in futures_util::future::join_all(played).await {
        for line in played? {
            println!("  {line}");
        }
    }
    if synapse.is_none() {
        println!("  outage, ours and Synapse: {}", super::NO_SYNAPSE);
    }
    Ok(())
}

/// First the far server is away, then the near one.
async fn both(pair: &mut Pair, outage: Duration) -> Result<Vec<String>, Error> {
    let mut lines = Vec::new();
    let Pair {
        name,
        near,
        far,
        room,
    } = pair;
    for part in ["far", "near"] {
        let (away, there, which) = match part {
            "far" => (&mut *far, &mut *near, format!("{name} away, ours writes")),
            _ => (&mut *near, &mut *far, format!("ours away, {name} writes")),
        };
        let outcome = play(away, &there.user, (room, part), outage).await?;
        lines.push(format!(
            "outage of {:.0} s, {which} ({part} side away): {MESSAGES} messages there, in order and once, {:.2} s after \
             it answers again (its start took {:.2} s)",
            outage.as_secs_f64(),
            outcome.caught_up.as_secs_f64(),
            outcome.start.as_secs_f64(),
        ));
    }
    Ok(lines)
}

async fn play(
    away: &mut Side,
    writer: &Client,
    (room, part): (&str, &str),
    outage: Duration,
) -> Result<Outcome, Error> {
    let began = Instant::now();
    away.server.stop().await?;
    for number in 0..MESSAGES {
        writer.say(room, &format!("{part}-{number}")).await?;
        let next = outage.mul_f64((number + 1) as f64 / MESSAGES as f64);
        tokio::time::sleep(next.saturating_sub(began.elapsed())).await;
    }
    let start = away.server.restart().await?;
    let answered = Instant::now();
    // Whoever is back says something, as its users do.
    away.user.say(room, &format!("back-{part}")).await?;
    let wanted: Vec<_> = (0..MESSAGES)
        .map(|number| format!("message {part}-{number}"))
        .collect();
    let mut said = Vec::new();
    while answered.elapsed() < PATIENCE {
        said = history(&away.user, room, &format!("message {part}-")).await?;
        if said.len() >= wanted.len() {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    let caught_up = answered.elapsed();
    if said != wanted {
        let text = format!(
            "after an outage {} of {MESSAGES} messages were there, in this order: {said:?}",
            said.len()
        );
        return Err(Error::Server(text));
    }
    Ok(Outcome { start, caught_up })
}

/// The messages of a room that begin so, as a user pages back to them, oldest first.
async fn history(reader: &Client, room: &str, begin: &str) -> Result<Vec<String>, Error> {
    let mut said = Vec::new();
    let mut from = String::new();
    let first = format!("{begin}0");
    loop {
        let path = format!("/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=100{from}");
        let page = reader.get(&path).await?;
        let events = page["chunk"].as_array().into_iter().flatten();
        let bodies = events.filter_map(|event| event["content"]["body"].as_str());
        said.extend(
            bodies
                .filter(|body| body.starts_with(begin))
                .map(str::to_owned),
        );
        match page["end"].as_str() {
            Some(end) if !said.contains(&first) => from = format!("&from={end}"),
            _ => break,
        }
    }
    said.reverse();
    Ok(said)
}

//! How long a message takes from a server to another: between two of ours, and between two Synapses.

use std::{path::Path, time::Duration};

use super::pair::{Kind, Pair, Place};
use crate::{
    Error,
    load::{milliseconds, percentile},
};

/// Turns of each pair, alternating, so that both meet the same moods of the machine.
const TURNS: usize = 2;

/// Messages that are not counted: the first connections, the first compilations of statements.
const FIRST: usize = 10;

/// Measures `count` messages of each pair.
pub(super) async fn measure(
    program: &Path,
    engine: &str,
    synapse: Option<&Path>,
    count: usize,
    folder: &Path,
) -> Result<(), Error> {
    let place = Place::new(folder)?;
    let ours = Kind::Ours(program, engine);
    let mut pairs = vec![Pair::start(&place, "ours", &ours, &ours).await?];
    if let Some(python) = synapse {
        let synapse = Kind::Synapse(python);
        pairs.push(Pair::start(&place, "Synapse", &synapse, &synapse).await?);
    }
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); pairs.len()];
    for pair in &pairs {
        pair.deliver("first", FIRST).await?;
    }
    for turn in 0..TURNS {
        for (pair, times) in pairs.iter().zip(&mut times) {
            times.extend(pair.deliver(&format!("turn-{turn}"), count / TURNS).await?);
        }
    }
    let mut medians = Vec::new();
    for (pair, times) in pairs.iter().zip(&mut times) {
        let (p50, p99) = (percentile(times, 50), percentile(times, 99));
        println!(
            "  delivery, {0} to {0}: send to the other server's /sync, p50 {1}, p99 {2}",
            pair.name,
            milliseconds(p50),
            milliseconds(p99),
        );
        medians.push(p50.as_secs_f64());
    }
    match medians[..] {
        [ours, synapse] => println!("  delivery, ratio of the medians: {:.3}", ours / synapse),
        _ => println!("  delivery, Synapse to Synapse: {}", super::NO_SYNAPSE),
    }
    Ok(())
}

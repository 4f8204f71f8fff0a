//! State resolution of large conflicts, beside `ruma-state-res` on the same graphs.
//!
//! Both have everything in memory. Ours is told where the states differ, as state trees tell it,
//! asks for what else it needs, round by round, and is answered from a list. `ruma-state-res` is
//! handed the whole states, and the auth chains of all their events, which somebody has to find out
//! first. The outcomes must be equal.

mod graph;
mod peer;
mod shapes;

use std::time::{Duration, Instant};

use homeserver_events::RoomVersion;

use self::{graph::Graph, peer::Peer, shapes::SHAPES};
use crate::{Error, load::milliseconds};

/// How often each resolves the same.
const TURNS: u32 = 10;

/// Who takes longer than this has one turn only.
const LONG: Duration = Duration::from_secs(2);

/// Measures conflicts of about so many events.
pub(crate) fn measure(sizes: &[usize]) -> Result<(), Error> {
    println!(
        "\nstate resolution, in memory, the fastest of {TURNS} turns and their CPU on average"
    );
    for size in sizes {
        for version in [RoomVersion::V11, RoomVersion::V12] {
            for (name, make) in SHAPES {
                let graph = make(version, *size)?;
                let figures = beside(&graph)?;
                println!(
                    "  {name:<22} version {:<3}{:>6} in conflict  {figures}",
                    version.as_str(),
                    graph.size()
                );
            }
        }
    }
    Ok(())
}

fn beside(graph: &Graph) -> Result<String, Error> {
    let split = graph.split();
    let ((resolved, usage), ours) = repeated(
        || Ok(split.conflict.clone()),
        |conflict| graph.resolve(&split, conflict),
    )?;
    let mut state = split.common.clone();
    state.extend(resolved);
    let peer = Peer::new(graph);
    let mut chains = Duration::MAX;
    let find_chains = || {
        let begin = Instant::now();
        let found = peer.chains();
        chains = chains.min(begin.elapsed());
        Ok(found)
    };
    let (outcome, theirs) = repeated(find_chains, |chains| peer.resolve(chains))?;
    peer.compare(&state, &outcome)?;
    Ok(format!(
        "{:>9} (CPU {:>9}) in {:>2} rounds; ruma-state-res {:>10} (CPU {:>10}), auth chains before \
         it {}; ratio of CPU {:.2}",
        milliseconds(ours.fastest),
        milliseconds(ours.cpu),
        usage.rounds,
        milliseconds(theirs.fastest),
        milliseconds(theirs.cpu),
        milliseconds(chains),
        ours.cpu.as_secs_f64() / theirs.cpu.as_secs_f64(),
    ))
}

/// What the turns of one resolution took.
struct Took {
    /// The time that passed in the fastest turn.
    fastest: Duration,
    /// The processor's time of a turn, on average: on a busy machine the better figure.
    cpu: Duration,
}

/// Runs the same again and again, each time on what `prepare` gives, which is not measured.
fn repeated<P, T>(
    mut prepare: impl FnMut() -> Result<P, Error>,
    mut run: impl FnMut(P) -> Result<T, Error>,
) -> Result<(T, Took), Error> {
    let mut took = Took {
        fastest: Duration::MAX,
        cpu: Duration::ZERO,
    };
    let mut turns = 0;
    loop {
        let prepared = prepare()?;
        let (cpu, begin) = (cpu_time()?, Instant::now());
        let outcome = run(prepared)?;
        took.fastest = took.fastest.min(begin.elapsed());
        took.cpu += cpu_time()?.saturating_sub(cpu);
        turns += 1;
        if turns == TURNS || took.fastest > LONG {
            took.cpu /= turns;
            return Ok((outcome, took));
        }
    }
}

/// What this thread has used of a processor. Linux counts it anew with every tick of its clock, some
/// milliseconds, so only an average of several turns means something.
fn cpu_time() -> Result<Duration, Error> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds = text.split_whitespace().next().and_then(|n| n.parse().ok());
    Ok(Duration::from_nanos(nanoseconds.unwrap_or_default()))
}

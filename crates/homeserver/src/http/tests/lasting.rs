//! What of a transaction is on disk when it is answered, whatever the disk does meanwhile.

use std::time::Duration;

use homeserver_events::Pdu;
use homeserver_storage::engines::faulty::{Fault, FaultPlan, FaultyDisk, FaultyEngine};
use ruma::OwnedEventId;

use super::{
    inbound::{World, homeserver_with},
    peer::{NewEvent, Peer, Servers},
    *,
};

/// Another database with the same rows.
async fn copy(engine: &Arc<MemoryEngine>) -> MemoryEngine {
    let inner = Arc::clone(engine) as Arc<dyn Engine>;
    FaultyEngine::new(inner, FaultPlan::none(1))
        .crash()
        .await
        .unwrap()
}

/// How a transaction went on a disk with faults.
struct Played {
    /// The calls of the disk when it was sent, and all its commits until its events were there.
    begun: u64,
    commits: Vec<u64>,
    /// Times that it was answered 5xx.
    failed: usize,
}

/// Sends a chain as one transaction until it is taken, on such a disk; with `crash` the power
/// fails right after the answer.
async fn play(world: &World, disk: FaultyDisk, chain: &[Pdu], crash: bool) -> Played {
    let disk = Arc::new(disk);
    let opener = Arc::clone(&disk) as Arc<dyn homeserver_storage::OpenEngine>;
    let here = homeserver_with(&world.servers, |builder| builder.engine_opened_by(opener)).await;
    let mut world = world.with(here);
    let pdus: Vec<_> = chain.iter().map(Pdu::json_str).collect();
    let body = format!(r#"{{"pdus":[{}]}}"#, pdus.join(","));
    let mut played = Played {
        begun: disk.calls(),
        commits: Vec::new(),
        failed: 0,
    };
    loop {
        let answer = world.peer.transaction(&world.here, "1", &body).await;
        if answer.status == 200 {
            for event in chain {
                assert_eq!(answer.body["pdus"][event.event_id().as_str()], json!({}));
            }
            break;
        }
        assert!(answer.status >= 500, "{answer:?}");
        played.failed += 1;
        assert!(played.failed < 100, "it does not recover");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    if crash {
        world.here.homeserver.components().runtime.tasks.stop();
        let left = disk.left().await.unwrap();
        let here = homeserver_with(&world.servers, |builder| builder.engine(left)).await;
        world = world.with(here);
    }
    let last = chain.last().unwrap();
    world.until(last).await;
    for event in chain {
        assert!(world.is_seen(event).await, "{event:?}");
    }
    assert_eq!(world.last().await, last.event_id());
    let commits = disk.commits().into_iter();
    played.commits = commits.filter(|call| *call >= played.begun).collect();
    world.here.homeserver.shutdown().await;
    played
}

/// The commit with the rows and the answer, and those that follow it.
#[tokio::test(start_paused = true)]
async fn what_was_answered_is_judged_whatever_became_of_a_commit() {
    let servers = Arc::new(Servers::default());
    let engine = Arc::new(MemoryEngine::new());
    let world = World::on(&servers, Arc::clone(&engine)).await;
    let chain = world.chain(&world.join, 3);
    world.here.homeserver.shutdown().await;
    let plan = FaultPlan::none(1);
    let smooth = FaultyDisk::memory_on(plan, copy(&engine).await);
    let smooth = play(&world, smooth, &chain, false).await;
    assert_eq!(smooth.failed, 0);
    assert!(smooth.commits.len() >= 2, "the rows, and the events");
    let mut failed = 0;
    for call in smooth.commits.iter().take(4) {
        for fault in [
            Fault::Error,
            Fault::ShortWrite,
            Fault::FailedSync,
            Fault::Panic,
        ] {
            for (seed, crash) in [(1, false), (2, false), (1, true), (2, true)] {
                let plan = FaultPlan::once(seed, *call, fault);
                let disk = FaultyDisk::memory_on(plan, copy(&engine).await);
                failed += play(&world, disk, &chain, crash).await.failed;
            }
        }
    }
    assert!(failed > 0, "no fault met the rows");
}

/// The text of an event with another depth, which is another event and wrongly signed.
fn deeper(event: &Pdu, depth: usize) -> String {
    let text = event.json_str();
    assert!(text.contains(r#""depth":20"#));
    text.replacen(r#""depth":20"#, &format!(r#""depth":{depth}"#), 1)
}

/// Sends fifty events that nobody can check, and gives how many were refused. The requests are signed
/// by a key that is known here; the events are not.
async fn flood(world: &World, by: &Peer, (event, sent): (&Pdu, usize)) -> usize {
    let texts: Vec<_> = (0..50)
        .map(|more| deeper(event, 100 + sent + more))
        .collect();
    let body = format!(r#"{{"pdus":[{}]}}"#, texts.join(","));
    let id = sent.to_string();
    let taken = by.transaction(&world.here, &id, &body).await.ok();
    let taken = taken["pdus"].as_object().unwrap().values();
    assert_eq!(taken.len(), 50);
    taken.filter(|taken| **taken != json!({})).count()
}

#[tokio::test(start_paused = true)]
async fn servers_that_are_not_in_a_room_keep_nobody_out() {
    let servers = Arc::new(Servers::default());
    let world = World::on(&servers, Arc::new(MemoryEngine::new())).await;
    let late = Arc::new(Peer::new("late.example", 3));
    let event = late.event(&NewEvent {
        sender: "late",
        ..world.message(&[world.join.event_id().to_owned()])
    });
    let mut refused = Vec::new();
    for (number, name) in ["a.example", "bb.example", "ccc.example"]
        .iter()
        .enumerate()
    {
        let stranger = servers.add(name, 20 + number as u8);
        for part in 0..5 {
            let sent = 1_000 * number + 50 * part;
            refused.push(flood(&world, &stranger, (&event, sent)).await);
        }
    }
    let none = [0; 10].into_iter().chain([50; 5]).collect::<Vec<_>>();
    assert_eq!(refused, none, "they have one share together");
    let said = world.peer.event(&world.message(&[world.last().await]));
    world.send("said", &[&said]).await;
    world.until(&said).await;
}

/// A server of which nobody has the keys fills its share of a room. What is refused then is fetched
/// when there is room again, also by the next start.
#[tokio::test(start_paused = true)]
async fn what_was_refused_for_want_of_room_comes_later() {
    let servers = Arc::new(Servers::default());
    let engine = Arc::new(MemoryEngine::new());
    let world = World::on(&servers, Arc::clone(&engine)).await;
    let late = Arc::new(Peer::new("late.example", 3));
    let rules = world.state(&["m.room.create", "m.room.join_rules", "m.room.power_levels"]);
    let join = late.event(&NewEvent {
        kind: "m.room.member",
        state_key: Some("@late:late.example"),
        sender: "late",
        content: json!({ "membership": "join" }),
        auth: rules.await,
        ..world.message(&[world.join.event_id().to_owned()])
    });
    let mut sent = 0;
    while sent < homeserver_federation::inbound::MAX_OF_ORIGIN_IN_ROOM {
        assert_eq!(flood(&world, &world.peer, (&join, sent)).await, 0);
        sent += 50;
    }
    let refused = world.send("over", &[&join]).await;
    let refused = refused[join.event_id().as_str()]["error"].as_str();
    assert!(refused.unwrap().contains("too many"), "{refused:?}");
    world.here.homeserver.shutdown().await;

    late.has(&join);
    world.peer.has(&join);
    servers.put(late);
    let here = homeserver_with(&servers, |builder| builder.engine(engine)).await;
    let world = world.with(here);
    world.until(&join).await;
    let ids: Vec<OwnedEventId> = vec![world.last().await];
    assert_eq!(ids, [join.event_id()]);
}

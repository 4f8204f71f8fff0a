//! Killed in the middle of bursts: what was answered is there once, with the same answer.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::future::join_all;
use homeserver_storage::engines::{
    faulty::{Fault, FaultPlan, FaultyEngine},
    memory::MemoryEngine,
};
use ruma::{OwnedEventId, OwnedRoomId};

use super::support::{Server, event, message, user};
use crate::{RoomAction, RoomAnswer, RoomCommand, RoomError};

/// Commands of one burst.
const BURST: usize = 24;

fn command(room: &OwnedRoomId, number: usize) -> RoomCommand {
    // Every fourth one is a state change, so that tips with trees on their way are dropped too.
    let event = if number.is_multiple_of(4) {
        let content = serde_json::json!({ "topic": number.to_string() });
        event("m.room.topic", Some(""), &content)
    } else {
        message(&number.to_string())
    };
    let action = RoomAction::Send {
        room: room.clone(),
        event,
    };
    let command = RoomCommand::new(user("alice"), action);
    command.with_transaction(("D".into(), 1), "send", number.to_string())
}

async fn burst(server: &Server, room: &OwnedRoomId) -> Vec<Result<RoomAnswer, RoomError>> {
    join_all((0..BURST).map(|number| server.rooms.execute(command(room, number)))).await
}

fn event_id(answer: &RoomAnswer) -> OwnedEventId {
    match answer {
        RoomAnswer::Sent { event, .. } => event.clone(),
        other => panic!("{other:?}"),
    }
}

/// One fault at one call of a burst, then the power fails, then everything is asked again.
/// Gives whether the fault hit the burst.
async fn round(seed: u64, call: u64, fault: Fault) -> bool {
    let engine = Arc::new(FaultyEngine::new(
        Arc::new(MemoryEngine::new()),
        FaultPlan::once(seed, call, fault),
    ));
    let context = format!("seed {seed}, {fault:?} at call {call}");
    // Opening and createRoom may be hit as well: then there is nothing to lose.
    let Ok(server) = Server::try_on(engine.clone()).await else {
        return false;
    };
    let create = RoomAction::Create(Box::default());
    let Ok(RoomAnswer::Created { room, .. }) = server.act(&user("alice"), create).await else {
        return false;
    };
    let answers = burst(&server, &room).await;
    let survivor = Server::on(Arc::new(engine.crash().await.unwrap())).await;
    let again = burst(&survivor, &room).await;
    for (number, (before, after)) in answers.iter().zip(&again).enumerate() {
        let after = after
            .as_ref()
            .unwrap_or_else(|e| panic!("{context}: {number}: {e}"));
        if let Ok(before) = before {
            assert_eq!(
                before, after,
                "{context}: {number} was answered and forgotten"
            );
        }
    }
    let mut times: BTreeMap<OwnedEventId, usize> = BTreeMap::new();
    let timeline = survivor.timeline(&user("alice"), &room).await;
    for event in &timeline {
        *times.entry(event.pdu().event_id().to_owned()).or_default() += 1;
    }
    for answer in &again {
        let id = event_id(answer.as_ref().unwrap());
        assert_eq!(times.get(&id), Some(&1), "{context}: {id}");
    }
    assert_eq!(timeline.len(), 6 + BURST, "{context}");
    let last_topic = timeline
        .iter()
        .rev()
        .find(|event| event.pdu().event_type() == "m.room.topic");
    let now = survivor.state(&room, "m.room.topic", "").await.unwrap();
    let told: serde_json::Value = last_topic.unwrap().pdu().content_as().unwrap();
    assert_eq!(now, told, "{context}");
    answers.iter().any(Result::is_err)
}

#[tokio::test]
async fn nothing_answered_is_lost_at_any_call() {
    let mut hit = 0;
    for call in (0..120).step_by(3) {
        for fault in Fault::ALL {
            hit += usize::from(round(call, call, fault).await);
        }
    }
    assert!(hit > 15, "only {hit} bursts were hit by their fault");
}

#[tokio::test]
async fn what_followed_a_failed_commit_is_decided_again() {
    let mut hit = 0;
    for call in 20..200 {
        let plan = FaultPlan::once(call, call, Fault::Full);
        let engine = Arc::new(FaultyEngine::new(Arc::new(MemoryEngine::new()), plan));
        let Ok(server) = Server::try_on(engine).await else {
            continue;
        };
        let create = RoomAction::Create(Box::default());
        let Ok(RoomAnswer::Created { room, .. }) = server.act(&user("alice"), create).await else {
            continue;
        };
        let first = burst(&server, &room).await;
        let failed = first.iter().filter(|answer| answer.is_err()).count();
        // The engine goes on after a full disk, so all that failed can be asked again.
        let second = burst(&server, &room).await;
        for (before, after) in first.iter().zip(&second) {
            let after = after.as_ref().unwrap();
            assert!(before.as_ref().is_ok_and(|before| before == after) || before.is_err());
        }
        assert_eq!(
            server.timeline(&user("alice"), &room).await.len(),
            6 + BURST
        );
        hit += usize::from(failed > 0);
    }
    assert!(hit > 3, "only {hit} bursts were hit");
}

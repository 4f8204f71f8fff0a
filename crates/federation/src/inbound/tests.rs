//! Rows and events that cannot be used cost only themselves.

use std::{sync::Arc, time::Duration};

use homeserver_events::{Draft, EventReference, Pdu, SigningKey};
use homeserver_rooms::{Room, RoomAction, RoomAnswer, RoomCommand, RoomError, Rooms, RoomsOptions};
use homeserver_runtime::{ManualClock, Runtime};
use homeserver_storage::{Batch, Store, Table, engines::memory::MemoryEngine};
use ruma::{
    OwnedEventId, RoomVersionId, owned_event_id, owned_server_name, owned_user_id, user_id,
};
use serde_json::value::to_raw_value;

use super::{
    Inbound, InboundParts, NoEdus, Nobody,
    gap::Gap,
    rows::{AnswerRow, WaitingPdu},
};
use crate::{
    Admission, Federation, FederationOptions, Nowhere, Policies, Retry, tables::INBOUND_PDUS,
};

/// A server with rooms that receives, and that nobody reaches.
struct Here {
    inbound: Inbound,
    rooms: Arc<Rooms>,
    store: Store,
}

impl Here {
    async fn new() -> Self {
        let clock = Arc::new(ManualClock::new(1_700_000_000_000));
        let runtime = Runtime::simulated(clock, 1);
        let tables = [homeserver_rooms::TABLES, crate::TABLES];
        let engine = Arc::new(MemoryEngine::new());
        let store = Store::open(engine, &tables, &runtime).await.unwrap();
        let own = owned_server_name!("here.example");
        let signing_key = Arc::new(SigningKey::from_seed("a", &[5; 32]).unwrap());
        let options = RoomsOptions {
            server_name: own.clone(),
            signing_key: Arc::clone(&signing_key),
            old_keys: Vec::new(),
            default_version: RoomVersionId::V11,
        };
        let rooms = Rooms::open(store.clone(), &runtime, options).await.unwrap();
        let second = Duration::from_secs(1);
        let options = FederationOptions {
            enabled: true,
            server_name: own.clone(),
            signing_key,
            old_keys: Vec::new(),
            admission: Admission::new(&[], &[]),
            key_servers: Vec::new(),
            requests_per_destination: 1,
            request_timeout: second,
            retry: Retry {
                shortest: second,
                longest: second,
            },
        };
        let federation = Federation::open(options, &store, Arc::new(Nowhere), &runtime);
        let federation = federation.await.unwrap();
        let inbound = Inbound::new(InboundParts {
            own,
            rooms: Arc::clone(&rooms),
            store: store.clone(),
            runtime,
            fetcher: federation.fetcher.clone(),
            verifier: federation.verifier.clone(),
            policies: Policies::new(Arc::clone(&rooms), federation.peers.clone()),
            edus: Arc::new(NoEdus),
            outside: Arc::new(Nobody),
        });
        Self {
            inbound,
            rooms,
            store,
        }
    }

    async fn room(&self) -> Arc<Room> {
        let create = RoomAction::Create(Box::default());
        let sender = user_id!("@alice:here.example").to_owned();
        let answer = self.rooms.execute(RoomCommand::new(sender, create)).await;
        let RoomAnswer::Created { room, .. } = answer.unwrap() else {
            panic!("it was not created")
        };
        self.rooms.room(&room).await.unwrap().unwrap()
    }

    async fn last(&self, room: &Room) -> OwnedEventId {
        self.rooms.extremities(room).await.unwrap().remove(0)
    }

    async fn write(&self, room: &Room, rows: &[(u64, WaitingPdu)]) {
        let mut batch = Batch::new();
        for (number, row) in rows {
            batch.put(&INBOUND_PDUS, &(room.number.0, *number), row);
        }
        self.store.commit(batch).await.unwrap();
    }

    /// Waits until no row waits.
    async fn until_empty(&self) {
        let empty = async {
            while !self.inbound.inner.queues.is_empty() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let patience = Duration::from_mins(5);
        tokio::time::timeout(patience, empty).await.unwrap();
    }
}

/// An event that nothing allows.
fn stray(room: &Room, prev: OwnedEventId) -> Pdu {
    let draft = Draft {
        room_id: Some(room.id.clone()),
        sender: owned_user_id!("@zed:there.example"),
        event_type: "m.room.message".to_owned(),
        state_key: None,
        content: to_raw_value(&serde_json::json!({})).unwrap(),
        origin_server_ts: 1,
        prev_events: vec![EventReference::from(prev)],
        auth_events: Vec::new(),
        depth: 9,
        redacts: None,
    };
    let key = SigningKey::from_seed("a", &[6; 32]).unwrap();
    let there = owned_server_name!("there.example");
    draft.seal(room.rules, &there, &key).unwrap()
}

fn row(event: &Pdu) -> WaitingPdu {
    WaitingPdu {
        origin: owned_server_name!("there.example"),
        event_id: event.event_id().to_owned(),
        verified: true,
        attempts: 0,
        json: event.json_str().to_owned(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_row_goes_and_gives_its_place_back() {
    let here = Here::new().await;
    let room = here.room().await;
    let good = stray(&room, here.last(&room).await);
    let damaged = WaitingPdu {
        json: r#"{"room_id":7}"#.to_owned(),
        ..row(&good)
    };
    here.write(
        &room,
        &[(0, damaged.clone()), (1, row(&good)), (2, damaged)],
    )
    .await;
    here.inbound.resume().await.unwrap();
    here.until_empty().await;
    let keys: Vec<_> = (0..3_u64).map(|number| (room.number.0, number)).collect();
    let rows = here.store.multi_get(&INBOUND_PDUS, &keys).await.unwrap();
    assert_eq!(rows, [None, None, None]);
    let ids = [good.event_id().to_owned()];
    let unplaced = here.rooms.unplaced_of(&room, &ids).await.unwrap();
    assert!(unplaced.is_empty(), "the good one was judged");
}

#[tokio::test(start_paused = true)]
async fn a_row_that_cannot_be_decoded_keeps_no_others_from_being_read() {
    let here = Here::new().await;
    let room = here.room().await;
    let good = stray(&room, here.last(&room).await);
    here.write(&room, &[(1, row(&good))]).await;
    // Of another kind, under the same table.
    let other: Table<(u64, u64), AnswerRow> = Table::new(0xa8, "inbound_pdus");
    let mut batch = Batch::new();
    let answer = AnswerRow {
        body: [0xff; 32],
        answer: String::new(),
    };
    batch.put(&other, &(room.number.0, 2_u64), &answer);
    here.store.commit(batch).await.unwrap();
    let read = here.inbound.inner.rows(&room, &[1, 2, 3]).await;
    let numbers: Vec<u64> = read.rows.iter().map(|(number, _)| *number).collect();
    assert_eq!((numbers, read.unread), (vec![1], vec![]));
    assert_eq!(read.gone, [2, 3]);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_cannot_be_judged_keeps_only_those_after_it_from_that() {
    let here = Here::new().await;
    let (room, other) = (here.room().await, here.room().await);
    // Of another room, which is an error.
    let failing = stray(&other, here.last(&other).await);
    let after = stray(&room, failing.event_id().to_owned());
    let later = stray(&room, after.event_id().to_owned());
    let lacking = stray(&room, owned_event_id!("$unknown"));
    let good = stray(&room, here.last(&room).await);
    let mut gap = Gap::new(&here.inbound.inner, &room, Vec::new());
    let mut failed = None;
    let events = vec![failing, after, later, lacking.clone(), good.clone()];
    let left = gap.judge(events, &mut failed).await.unwrap();
    assert!(matches!(failed, Some(RoomError::UnknownRoom)));
    let left: Vec<_> = left.iter().map(|(pdu, ..)| pdu.event_id()).collect();
    assert_eq!(left, [lacking.event_id()]);
    let ids = [good.event_id().to_owned()];
    let unplaced = here.rooms.unplaced_of(&room, &ids).await.unwrap();
    assert!(unplaced.is_empty());
}

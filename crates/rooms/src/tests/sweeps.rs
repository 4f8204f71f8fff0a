//! Nodes of state trees that nothing reaches go, and no others: whatever writers do meanwhile, and
//! wherever the sweep is killed.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use homeserver_events::Pdu;
use homeserver_storage::{Batch, Direction, ScanRange, engines::memory::MemoryEngine};
use serde_json::json;

use super::{
    forks::shared_room,
    mortal::MortalEngine,
    support::{Server, event, user},
    switches::{allows_joins, import, joins, part, public_room},
};
use crate::{
    IMPORT_LIFETIME, ImportId, Room, StateRoot,
    rows::{TreeSweepRow, TreeSweepStep},
    sweep::Swept,
    tables,
    tree::Node,
};

/// The nodes of a room that are stored.
async fn stored(server: &Server, room: &Room) -> BTreeSet<[u8; 16]> {
    let range = ScanRange::prefix(&room.number.0);
    let forward = Direction::Forward;
    let scan = server
        .rooms
        .store
        .scan(&tables::STATE_NODES, range, forward, usize::MAX);
    let nodes = scan.await.unwrap();
    nodes.into_iter().map(|((_, id), _)| id).collect()
}

/// The states that the rows of a room name.
async fn roots(server: &Server, room: &Room) -> BTreeSet<StateRoot> {
    let store = &server.rooms.store;
    let forward = Direction::Forward;
    let within = || ScanRange::prefix(&room.number.0);
    let mut roots = BTreeSet::new();
    let events = store.scan(&tables::EVENTS, within(), forward, usize::MAX);
    for (_, row) in events.await.unwrap() {
        roots.insert(row.value.after);
        roots.extend(row.value.status.before().copied());
    }
    let log = store.scan(&tables::STATE_LOG, within(), forward, usize::MAX);
    roots.extend(log.await.unwrap().into_iter().map(|(_, row)| row.root));
    let imports = store.scan(&tables::IMPORTS, ScanRange::all(), forward, usize::MAX);
    for (_, import) in imports.await.unwrap() {
        roots.extend([import.root, import.base]);
    }
    let head = store
        .get(&tables::HEADS, &room.number.0)
        .await
        .unwrap()
        .unwrap();
    roots.insert(head.root);
    roots.extend(head.extremities.iter().map(|extremity| extremity.after));
    roots.extend(head.apart);
    roots
}

/// The nodes that rows of a room reach, all of which must be stored.
async fn reachable(server: &Server, room: &Room, context: &str) -> BTreeSet<[u8; 16]> {
    let mut found = BTreeSet::new();
    let named = roots(server, room).await;
    let mut next: Vec<_> = named.into_iter().filter_map(StateRoot::node).collect();
    while let Some(id) = next.pop() {
        if found.insert(id.0) {
            let key = (room.number.0, id.0);
            let row = server.rooms.store.get(&tables::STATE_NODES, &key);
            let row = row.await.unwrap();
            let row = row.unwrap_or_else(|| panic!("{context}: a node is gone that is needed"));
            next.extend(Node::decode(&row.encoded).unwrap().below());
        }
    }
    found
}

async fn step_of(server: &Server, room: &Room) -> Option<TreeSweepStep> {
    let row = server.rooms.store.get(&tables::TREE_SWEEPS, &room.number.0);
    row.await.unwrap().map(|row: TreeSweepRow| row.step)
}

async fn ask(server: &Server, room: &Room) {
    let mut batch = Batch::new();
    batch.put(&tables::TREE_SWEEPS, &room.number.0, &TreeSweepRow::ASKED);
    server.rooms.store.commit(batch).await.unwrap();
}

async fn abandon_all(server: &Server) {
    server
        .clock
        .advance(Duration::from_millis(IMPORT_LIFETIME + 1));
    server.rooms.sweep_imports().await.unwrap();
}

#[tokio::test]
async fn what_an_import_leaves_between_its_parts_goes() {
    let memory: Arc<MemoryEngine> = Arc::new(MemoryEngine::new());
    let server = Server::on(memory.clone()).await;
    let id = public_room(&server).await.unwrap();
    let room = server.room(&id).await;
    let pdus = joins(&room, &allows_joins(&server, &room).await, 600);
    let begun = server.rooms.begin_import(&room).await.unwrap();
    for (ordinal, some) in (0_u64..).zip(pdus.chunks(60)) {
        part(&server, begun, ordinal, some).await.unwrap();
        server.rooms.import_row(begun).await.unwrap();
    }
    server.rooms.switch(begun).await.unwrap();
    let before = stored(&server, &room).await;
    let needed = reachable(&server, &room, "before").await;
    assert!(
        before.len() > needed.len() + 50,
        "there is something to sweep"
    );
    // Killed after every durable commit.
    let mut killed = 0;
    loop {
        let process = Server::try_on(MortalEngine::new(memory.clone(), 1)).await;
        let swept = match &process {
            Ok(process) => process.rooms.sweep_nodes().await.is_ok(),
            Err(_) => false,
        };
        let context = format!("killed {killed} times");
        reachable(&server, &room, &context).await;
        if swept && step_of(&server, &room).await.is_none() {
            break;
        }
        killed += 1;
        assert!(killed < 500);
    }
    assert!(killed > 4, "killed only {killed} times");
    assert_eq!(stored(&server, &room).await, needed);
    let marks =
        server
            .rooms
            .store
            .scan(&tables::TREE_MARKS, ScanRange::all(), Direction::Forward, 1);
    assert!(marks.await.unwrap().is_empty());
    // For a process that has no node in its cache, too.
    let again = server.restart().await;
    again.join(&user("bob"), &id).await.unwrap();
    let now = again
        .rooms
        .state_at(room.number, again.rooms.durable())
        .await
        .unwrap();
    let members = again
        .rooms
        .state_of_type(&room, now.root, "m.room.member")
        .await
        .unwrap();
    assert_eq!(members.len(), 602);
}

/// What somebody does to a room while its nodes are swept.
struct Writers<'a> {
    server: &'a Server,
    room: Arc<Room>,
    pdus: Vec<Pdu>,
    open: Option<(ImportId, u64)>,
}

impl Writers<'_> {
    async fn act(&mut self, turn: usize) {
        let rooms = &self.server.rooms;
        match turn % 6 {
            0 | 3 => {
                let content = json!({ "topic": turn.to_string() });
                let topic = event("m.room.topic", Some(""), &content);
                let alice = user("alice");
                let sent = self.server.try_send(&alice, &self.room.id, topic).await;
                sent.unwrap();
            }
            1 | 4 => {
                let (import, ordinal) = match self.open {
                    Some(open) => open,
                    None => (rooms.begin_import(&self.room).await.unwrap(), 0),
                };
                let from = ordinal as usize * 10;
                let pdus = &self.pdus[from..from + 10];
                part(self.server, import, ordinal, pdus).await.unwrap();
                if !turn.is_multiple_of(4) {
                    // Now and then only when it is switched in.
                    rooms.import_row(import).await.unwrap();
                }
                self.open = Some((import, ordinal + 1));
            }
            2 => {
                let name = format!("@w{turn}:here.example");
                let content = json!({ "membership": "invite" });
                let invite = event("m.room.member", Some(&name), &content);
                let alice = user("alice");
                let sent = self.server.try_send(&alice, &self.room.id, invite).await;
                sent.unwrap();
            }
            _ => {
                if let Some((import, _)) = self.open.take_if(|(_, parts)| *parts >= 9) {
                    rooms.switch(import).await.unwrap();
                }
            }
        }
    }
}

#[tokio::test]
async fn writers_lose_no_node_to_a_sweep() {
    let server = Server::start().await;
    let id = public_room(&server).await.unwrap();
    let room = server.room(&id).await;
    let pdus = joins(&room, &allows_joins(&server, &room).await, 100);
    let mut writers = Writers {
        server: &server,
        room: Arc::clone(&room),
        pdus,
        open: None,
    };
    // Something to sweep: an import that comes to nothing.
    for turn in [1, 4, 1] {
        writers.act(turn).await;
    }
    writers.open = None;
    abandon_all(&server).await;
    let garbage = stored(&server, &room).await.len();
    let mut steps = 0;
    let mut turn = 0;
    let mut finished = 0;
    while finished < 3 {
        // A few rows at a time, so that every step is cut into many.
        let mut rows = 7;
        let swept = server
            .rooms
            .sweep_nodes_step(room.number, &mut rows)
            .await
            .unwrap();
        reachable(&server, &room, &format!("after step {steps}")).await;
        steps += 1;
        if swept == Swept::Done {
            finished += 1;
            ask(&server, &room).await;
        }
        // An import that is switched in begins the sweep anew, so writers pause now and then.
        if steps % 2 == 0 && (steps / 60) % 2 == 0 {
            writers.act(turn).await;
            turn += 1;
            reachable(&server, &room, &format!("after turn {turn}")).await;
        }
        assert!(steps < 5000);
    }
    assert!(turn > 20, "only {turn} turns");
    assert!(garbage > 0);
    server.rooms.sweep_nodes().await.unwrap();
    ask(&server, &room).await;
    server.rooms.sweep_nodes().await.unwrap();
    let needed = reachable(&server, &room, "at the end").await;
    assert_eq!(stored(&server, &room).await, needed);
}

#[tokio::test]
async fn a_node_that_is_written_again_while_it_is_swept_stays() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "11").await;
    let room = server.room(&zed.room).await;
    let mut names = Vec::new();
    let mut prev = join;
    for name in ["one", "two"] {
        let content = json!({ "name": name });
        let prev_events = std::slice::from_ref(&prev);
        let pdu = zed
            .make(prev_events, "m.room.name", Some(""), content)
            .await;
        zed.receive(&pdu).await;
        prev = pdu.event_id().to_owned();
        names.push(pdu);
    }
    let topic = event("m.room.topic", Some(""), &json!({ "topic": "t" }));
    server
        .try_send(&user("alice"), &zed.room, topic)
        .await
        .unwrap();
    // An import makes a state that the room never had, and is abandoned.
    let again = async || {
        let import = server.rooms.begin_import(&room).await.unwrap();
        part(&server, import, 0, &names[..1]).await.unwrap();
        server.rooms.import_row(import).await.unwrap();
        import
    };
    let before = stored(&server, &room).await;
    let abandoned = again().await;
    let both = stored(&server, &room).await;
    assert!(both.len() > before.len());
    abandon_all(&server).await;
    assert_eq!(server.rooms.import_progress(abandoned).await.unwrap(), None);
    // Everything is marked, and those nodes are not.
    while !matches!(
        step_of(&server, &room).await,
        Some(TreeSweepStep::Remove(_))
    ) {
        let mut rows = 1000;
        server
            .rooms
            .sweep_nodes_step(room.number, &mut rows)
            .await
            .unwrap();
    }
    let import = again().await;
    assert_eq!(stored(&server, &room).await, both, "the same nodes");
    server.rooms.sweep_nodes().await.unwrap();
    assert_eq!(step_of(&server, &room).await, None);
    assert_eq!(stored(&server, &room).await, both);
    reachable(&server, &room, "written again").await;
    server.rooms.switch(import).await.unwrap();
    let restarted = server.restart().await;
    let name = restarted.state(&zed.room, "m.room.name", "").await.unwrap();
    assert_eq!(name["name"], "one");
    // Had nobody written them, they would be gone.
    let whole = stored(&server, &room).await.len();
    let unused = again().await;
    let content = json!({ "name": "three" });
    let third = zed.make(&[prev], "m.room.name", Some(""), content).await;
    part(&server, unused, 1, &[third]).await.unwrap();
    server.rooms.import_row(unused).await.unwrap();
    assert!(stored(&server, &room).await.len() > whole);
    abandon_all(&server).await;
    server.rooms.sweep_nodes().await.unwrap();
    assert!(stored(&server, &room).await.len() <= whole);
}

/// The marks go before the sweep's row does. A sweep that ends between the two spares what they
/// marked.
#[tokio::test]
async fn a_sweep_that_ends_without_its_marks_removes_nothing_more() {
    let server = Server::start().await;
    let id = public_room(&server).await.unwrap();
    let room = server.room(&id).await;
    let pdus = joins(&room, &allows_joins(&server, &room).await, 100);
    let begun = server.rooms.begin_import(&room).await.unwrap();
    import(&server, begun, &pdus).await.unwrap();
    let mut rows = 100_000;
    while step_of(&server, &room).await != Some(TreeSweepStep::Unmark) {
        let step = server.rooms.sweep_nodes_step(room.number, &mut rows);
        assert_eq!(step.await.unwrap(), Swept::More);
    }
    let needed = reachable(&server, &room, "swept").await;
    let store = &server.rooms.store;
    let dropped = store.drop_range(&tables::TREE_MARKS, ScanRange::all());
    dropped.await.unwrap();
    server.rooms.sweep_nodes().await.unwrap();
    assert_eq!(step_of(&server, &room).await, None);
    assert_eq!(stored(&server, &room).await, needed);
}

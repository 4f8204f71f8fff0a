//! What is on disk, byte for byte. A change here is a change of the format: it needs a new row
//! version and a migration.

use homeserver_events::{EventStatus, RejectReason, SoftFailReason, push::Class};
use homeserver_storage::{At, Bytes, Key, Positioned, Reverse64, Row, Table, ToKey};
use ruma::{RoomVersionId, owned_event_id, owned_room_id, owned_server_name, owned_user_id};
use smallvec::smallvec;

use crate::{
    EventNumber, KeyNumber, Membership, Origin, StateLogRow, StateRoot,
    rows::{
        AliasRow, ArrivalRow, Effect, EventRow, Extremity, GapRow, Head, ImportPartRow, ImportRow,
        ImportStateRow, ImportedState, IndexDebtRow, JoinedUsers, MembershipRow, NodeRow,
        PartialRow, PartialStage, RelationRow, RoomRow, ServersRow, StrippedRow, TransactionRow,
        TreeSweepRow, TreeSweepStep, ViaRow,
    },
    tables,
    tally::Tally,
    tree::KeyHash,
    whereabouts::event_digest,
};

fn hex(bytes: &[u8]) -> String {
    let printable = |byte: &u8| byte.is_ascii_graphic() && *byte != b'\\';
    let shown = bytes.iter().map(|byte| match byte {
        byte if printable(byte) => char::from(*byte).to_string(),
        byte => format!("\\{byte:02x}"),
    });
    shown.collect()
}

fn line<K: Key, V: Row>(table: &Table<K, V>, key: &impl ToKey<Key = K>, row: &V) -> String {
    // What is written must be read back the same, and what is shown is what is written.
    let bytes = row.encode();
    assert_eq!(V::decode(&bytes).unwrap().encode(), bytes);
    let (name, key) = (table.spec().name, hex(&table.key_bytes(key)));
    format!("{name} {key} = {}", hex(&bytes))
}

fn root(fill: u8) -> StateRoot {
    // A root is written as its node's name: sixteen bytes.
    postcard::from_bytes(&[fill; 16]).unwrap()
}

fn tally() -> Tally {
    let mut tally = Tally::default();
    tally.all.add(Class::Message);
    tally.all.add(Class::Call);
    tally.threaded.add(Class::Encrypted);
    tally
}

fn event_row(status: EventStatus<StateRoot>) -> EventRow {
    EventRow {
        id: owned_event_id!("$e"),
        status,
        after: root(b'a'),
        height: 300,
        backfill_tie: None,
        auth_height: 4,
        auth: smallvec![EventNumber(1), EventNumber(2)],
        prev: smallvec![EventNumber(3)],
        over_gap: false,
        replaces: None,
        redacted_by: None,
        origin: None,
        json: Bytes::from_static(b"{}"),
    }
}

#[test]
fn rows_of_events() {
    let before = root(b'b');
    let accepted = EventStatus::Accepted {
        before,
        partial: false,
    };
    let full = EventRow {
        backfill_tie: Some(7),
        over_gap: true,
        replaces: Some(EventNumber(8)),
        redacted_by: Some(EventNumber(9)),
        origin: Some(Origin {
            device: "D".into(),
            transaction: "t".to_owned(),
        }),
        ..event_row(accepted.clone())
    };
    let soft_failed = EventStatus::SoftFailed {
        before,
        why: SoftFailReason::CurrentState,
        partial: true,
    };
    let rejected = EventStatus::Rejected {
        why: RejectReason::AuthEvents,
        partial: false,
    };
    let statuses = [accepted, EventStatus::Outlier, soft_failed, rejected];
    let rows = statuses.map(event_row).into_iter().chain([full]);
    let events = rows.map(|row| {
        let row = Positioned::new(12, row);
        line(&tables::EVENTS, &(3_u64, 5_u64), &row)
    });
    let arrival = ArrivalRow {
        event: EventNumber(5),
        class: 2,
        thread: 4,
        tally: tally(),
        highest: 300,
    };
    let others = [
        line(&tables::EVENT_IDS, &(3_u64, "$e"), &5),
        line(&tables::EVENT_ROOMS, &(event_digest("$e"), 3_u64), &()),
        line(&tables::ARRIVALS, &(3_u64, 12_u64), &arrival),
        line(&tables::MENTIONS, &(7_u64, 3_u64, 12_u64), &arrival),
        line(&tables::UNCOUNTED, &(3_u64, 12_u64), &arrival),
        line(&tables::OWN_READS, &(7_u64, 3_u64, 5_u64), &At::Known(12)),
        line(
            &tables::THREAD_TALLIES,
            &(3_u64, 5_u64, 12_u64),
            &arrival.tally.threaded,
        ),
        line(&tables::HISTORY, &(3_u64, 300_u64, 1_u8, 12_u64), &5),
        line(&tables::THREAD_LOG, &(3_u64, 12_u64), &5),
        line(&tables::WAITING_REDACTIONS, &(3_u64, 5_u64, "b"), &6),
        line(
            &tables::GAPS,
            &(3_u64, 300_u64, 1_u8, 12_u64),
            &GapRow {
                missing: vec![owned_event_id!("$m")],
            },
        ),
        line(
            &tables::RELATIONS,
            &(3_u64, 5_u64, "r", 300_u64, 1_u8, 12_u64),
            &RelationRow {
                event: EventNumber(6),
                rel_type: "r".to_owned(),
                event_type: "t".to_owned(),
                key: Some("k".to_owned()),
                sender: owned_user_id!("@a:b"),
            },
        ),
    ];
    let lines: Vec<_> = events.chain(others).collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn rows_of_rooms_and_their_states() {
    let head = Head {
        sequence: 1,
        extremities: smallvec![Extremity {
            number: EventNumber(5),
            id: owned_event_id!("$e"),
            height: 300,
            reference_hash: Some([b'h'; 32]),
            depth: 301,
            after: root(b'a'),
        }],
        root: root(b'r'),
        joined: 2,
        invited: 1,
        tally: tally(),
        generation: 4,
        listed: true,
        highest: 300,
        apart: Some(root(b'p')),
    };
    let room = RoomRow {
        room_id: owned_room_id!("!r:b"),
        version: RoomVersionId::V12,
        create: EventNumber(1),
    };
    let log = StateLogRow {
        root: root(b'r'),
        joined: 2,
        invited: 1,
    };
    let node = NodeRow {
        generation: 4,
        encoded: Bytes::from_static(b"n"),
    };
    let lines = [
        line(&tables::ROOM_IDS, &"!r:b", &3),
        line(&tables::ROOMS, &3_u64, &room),
        line(&tables::HEADS, &3_u64, &head),
        line(&tables::STATE_LOG, &(3_u64, 12_u64), &log),
        line(&tables::STATE_NODES, &(3_u64, [b'i'; 16]), &node),
        line(&tables::NUMBER_BLOCKS, &1_u8, &65_537),
        line(&tables::SECRETS, &"s", &Bytes::from_static(b"x")),
        line(&tables::TREE_MARKS, &(3_u64, 4_u64, [b'i'; 16]), &()),
    ];
    let steps = [
        TreeSweepStep::Asked,
        TreeSweepStep::Open,
        TreeSweepStep::Log(12),
        TreeSweepStep::Events(5),
        TreeSweepStep::Remove([b'i'; 16]),
        TreeSweepStep::Unmark,
    ];
    let sweeps = steps.map(|step| {
        let generation = 4;
        let row = TreeSweepRow { generation, step };
        line(&tables::TREE_SWEEPS, &3_u64, &row)
    });
    let lines: Vec<_> = lines.into_iter().chain(sweeps).collect();
    insta::assert_snapshot!(lines.join("\n"));
}

fn imported(fill: u8, membership: Option<Membership>) -> ImportedState {
    ImportedState {
        hash: KeyHash::from_bytes([fill; 12]),
        key: KeyNumber(7),
        event: EventNumber(5),
        auth_height: 4,
        membership,
    }
}

/// Before the state events of parts were noted, each part had put its own into the tree.
#[test]
fn imports_of_the_first_row_version_have_their_tree() {
    let row = ImportRow {
        room: 3,
        touched: 1000,
        parts: 2,
        base: root(b'b'),
        root: root(b'r'),
        generation: 4,
        abandoned: false,
        planted: 2,
    };
    let mut bytes = row.encode();
    assert_eq!((bytes[0], bytes.pop()), (2, Some(2)));
    bytes[0] = 1;
    assert_eq!(ImportRow::decode(&bytes).unwrap(), row);
}

#[test]
fn rows_of_imports() {
    let import = ImportRow {
        room: 3,
        touched: 1000,
        parts: 2,
        base: root(b'b'),
        root: root(b'r'),
        generation: 4,
        abandoned: true,
        planted: 1,
    };
    let state = ImportStateRow {
        events: vec![imported(b'k', Some(Membership::Join)), imported(b'l', None)],
    };
    let part = ImportPartRow {
        events: vec![(EventNumber(5), owned_event_id!("$e"))],
    };
    let debt = IndexDebtRow {
        import: 9,
        from: root(b'b'),
        to: root(b'r'),
        done: 100,
    };
    let lines = [
        line(&tables::IMPORTS, &9_u64, &import),
        line(&tables::IMPORT_PARTS, &(9_u64, 1_u64), &part),
        line(&tables::INDEX_DEBTS, &(3_u64, 12_u64), &debt),
        line(&tables::IMPORT_IDS, &(9_u64, "$e"), &5),
        line(&tables::IMPORT_STATES, &(9_u64, 1_u64), &state),
    ];
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn rows_of_members_and_the_directory() {
    use Membership::{Ban, Invite, Join, Knock, Leave};
    let row = |membership| MembershipRow {
        membership,
        event: EventNumber(5),
        forgotten: membership == Leave,
    };
    let history = [Invite, Join, Knock, Leave, Ban].map(|membership| {
        line(
            &tables::MEMBERSHIPS,
            &(7_u64, 3_u64, 12_u64),
            &row(membership),
        )
    });
    let current = Positioned::new(12, row(Join));
    let stripped = StrippedRow {
        events: vec!["{}".to_owned()],
    };
    let alias = AliasRow {
        room: 3,
        creator: owned_user_id!("@a:b"),
    };
    let others = [
        line(&tables::CURRENT_MEMBERSHIPS, &(7_u64, 3_u64), &current),
        line(&tables::LOCAL_MEMBERS, &(3_u64, 7_u64), &current),
        line(&tables::STRIPPED_STATE, &(7_u64, 3_u64, 12_u64), &stripped),
        line(&tables::SERVER_COUNTS, &(3_u64, "b"), &JoinedUsers(2)),
        line(&tables::SERVER_LOG, &(3_u64, "b", 12_u64), &1),
        line(&tables::ALIASES, &"#a:b", &alias),
        line(&tables::ROOM_ALIASES, &(3_u64, "#a:b"), &()),
        line(&tables::DIRECTORY, &(Reverse64(2), 3_u64), &()),
    ];
    let lines: Vec<_> = history.into_iter().chain(others).collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn rows_of_rooms_elsewhere() {
    let via = ViaRow {
        servers: vec![owned_server_name!("b")],
    };
    let lines = [
        line(&tables::OUTSIDE_ROOMS, &("!r:b", "11"), &3),
        line(&tables::OUTSIDE_VIA, &(7_u64, 3_u64), &via),
        line(&tables::ARRIVING, &9_u64, &3),
    ];
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn rows_of_rooms_of_partial_state() {
    let stages = [
        PartialStage::Partial,
        PartialStage::Judging(9),
        PartialStage::Settling,
        PartialStage::Whole,
    ];
    let join = EventNumber(5);
    let rooms = stages.map(|stage| {
        let row = Positioned::new(12, PartialRow { join, stage });
        line(&tables::PARTIAL_ROOMS, &3_u64, &row)
    });
    let told = ServersRow {
        servers: vec![owned_server_name!("b"), owned_server_name!("c:1")],
    };
    let others = [
        line(&tables::PARTIAL_EVENTS, &(3_u64, 300_u64), &5),
        line(&tables::PARTIAL_SERVERS, &(3_u64, 0_u64), &told),
        line(&tables::MADE_WHOLE, &3_u64, &At::Known(14)),
    ];
    let lines: Vec<_> = rooms.into_iter().chain(others).collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn rows_of_transactions() {
    let effects = [
        Effect::Created(owned_room_id!("!r:b")),
        Effect::Sent(owned_event_id!("$e")),
        Effect::Upgraded(owned_room_id!("!r:b")),
        Effect::Stood(owned_event_id!("$e"), 12),
        Effect::Done,
    ];
    let lines = effects.map(|effect| {
        let row = Positioned::new(12, TransactionRow { time: 1000, effect });
        line(&tables::TRANSACTIONS, &([b'u'; 16], [b't'; 16]), &row)
    });
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn tables_have_their_numbers() {
    let specs = tables::TABLES.iter();
    let lines: Vec<_> = specs
        .map(|spec| format!("{:#04x} {}", spec.id, spec.name))
        .collect();
    insta::assert_snapshot!(lines.join("\n"));
    let own = |spec: &homeserver_storage::TableSpec| (0x10..0x40).contains(&spec.id);
    assert!(tables::TABLES.iter().all(own));
}

//! Stored rows, mutated: damaged ones are refused, and what is read has one form.

use homeserver_fuzz::{Target, read_row, rows::of_snapshot};

use crate::{
    HistoryToken,
    tables::{
        ALIASES, ARRIVALS, CURRENT_MEMBERSHIPS, DIRECTORY, EVENT_IDS, EVENTS, GAPS, HEADS, HISTORY,
        IMPORT_IDS, IMPORT_PARTS, IMPORT_STATES, IMPORTS, INDEX_DEBTS, LOCAL_MEMBERS, MADE_WHOLE,
        MEMBERSHIPS, MENTIONS, NUMBER_BLOCKS, OWN_READS, PARTIAL_EVENTS, PARTIAL_ROOMS,
        PARTIAL_SERVERS, RELATIONS, ROOM_ALIASES, ROOM_IDS, ROOMS, SECRETS, SERVER_COUNTS,
        SERVER_LOG, STATE_LOG, STATE_NODES, STRIPPED_STATE, THREAD_LOG, THREAD_TALLIES,
        TRANSACTIONS, TREE_MARKS, TREE_SWEEPS, UNCOUNTED, WAITING_REDACTIONS,
    },
};

#[test]
fn rooms_rows() {
    let snapshots = [
        include_str!("snapshots/homeserver_rooms__tests__rows__rows_of_events.snap"),
        include_str!("snapshots/homeserver_rooms__tests__rows__rows_of_imports.snap"),
        include_str!(
            "snapshots/homeserver_rooms__tests__rows__rows_of_rooms_of_partial_state.snap"
        ),
        include_str!(
            "snapshots/homeserver_rooms__tests__rows__rows_of_members_and_the_directory.snap"
        ),
        include_str!(
            "snapshots/homeserver_rooms__tests__rows__rows_of_rooms_and_their_states.snap"
        ),
        include_str!("snapshots/homeserver_rooms__tests__rows__rows_of_transactions.snap"),
    ];
    let seeds = snapshots.into_iter().flat_map(of_snapshot);
    Target::new("rooms_rows").seeds(seeds).run(|input| {
        read_row!(
            input,
            [
                ROOM_IDS,
                ROOMS,
                HEADS,
                EVENT_IDS,
                EVENTS,
                ARRIVALS,
                HISTORY,
                STATE_LOG,
                STATE_NODES,
                MEMBERSHIPS,
                CURRENT_MEMBERSHIPS,
                LOCAL_MEMBERS,
                STRIPPED_STATE,
                SERVER_COUNTS,
                SERVER_LOG,
                ALIASES,
                ROOM_ALIASES,
                DIRECTORY,
                TRANSACTIONS,
                RELATIONS,
                THREAD_LOG,
                GAPS,
                WAITING_REDACTIONS,
                IMPORTS,
                IMPORT_PARTS,
                IMPORT_IDS,
                IMPORT_STATES,
                NUMBER_BLOCKS,
                SECRETS,
                INDEX_DEBTS,
                THREAD_TALLIES,
                MENTIONS,
                UNCOUNTED,
                OWN_READS,
                TREE_SWEEPS,
                TREE_MARKS,
                PARTIAL_ROOMS,
                PARTIAL_EVENTS,
                PARTIAL_SERVERS,
                MADE_WHOLE
            ]
        )
    });
}

/// Tokens that clients send back, or make up.
#[test]
fn history_tokens() {
    let seeds = [
        "hff_12_s",
        "h1_12_b_3_1_4",
        "h0_0_a_18446744073709551615_0_1",
        "h7_9_e",
    ];
    Target::new("history_tokens")
        .seeds(seeds)
        .words(&["_", "h", "s", "a", "b", "e"])
        .run(|input| {
            let Ok(text) = std::str::from_utf8(input) else {
                return false;
            };
            let Ok(token) = HistoryToken::parse(text) else {
                return false;
            };
            let again = HistoryToken::parse(&token.to_string());
            assert_eq!(again.ok(), Some(token));
            true
        });
}

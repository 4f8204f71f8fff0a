//! Rooms, users and devices across servers: every server is a process of its own, and they speak TLS
//! with each other. Ours with Synapse, and ours with ours.
//!
//! `HOMESERVER_FEDERATION_CONTROL=1` puts a Synapse wherever there is one of ours: what fails then is
//! a fault of the test. `HOMESERVER_SCENARIO` narrows the shared stages to scenarios by name.

mod conflict;
mod conversation;
mod encrypted;
mod membership;
mod partial;
mod small_talk;
mod stage;

use stage::{Kind, Scenario, Stage, judge, scenarios};

/// Scenarios that are played at the same time.
const AT_ONCE: usize = 4;

/// What is tried in rooms of the newest version only.
const NEWEST: &[Scenario] = scenarios![
    small_talk::redactions,
    small_talk::edits_and_reactions,
    small_talk::receipts,
    small_talk::typing,
    small_talk::presence,
    small_talk::profiles,
    small_talk::media,
    small_talk::the_directory,
    partial::a_room_with_a_crowd_is_used_at_once_and_known_whole_later,
];

/// What is tried in rooms of versions 10, 11 and 12.
const EVERY_VERSION: &[Scenario] = scenarios![
    membership::a_room_is_joined_by_its_alias,
    membership::who_comes_back_reads_what_was_missed,
    membership::an_invited_user_joins_or_rejects,
    membership::a_knock_is_answered,
    membership::a_restricted_room_is_joined_by_members_of_another,
    membership::who_is_kicked_or_banned_is_gone,
    membership::an_upgraded_room_is_followed,
];

/// What closes the way between the servers, one at a time.
const CUTS: &[Scenario] = scenarios![
    conflict::a_partition_ends_in_one_state,
    conflict::who_was_banned_meanwhile_stays_out,
];

async fn between(near: Kind, far: Kind) {
    let stage = Stage::of(near, far).await;
    let mut well = true;
    for stage in [stage.clone(), stage.turned()] {
        for version in ["12", "11", "10"] {
            let stage = stage.in_version(version);
            if version == "12" {
                well &= stage.play(NEWEST, AT_ONCE).await;
            }
            well &= stage.play(EVERY_VERSION, AT_ONCE).await;
            well &= stage.play(CUTS, 1).await;
        }
    }
    judge(&[&stage.near, &stage.far], well);
}

#[tokio::test(flavor = "multi_thread")]
async fn rooms_of_ours_and_synapse() {
    between(Kind::Ours, Kind::Synapse).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rooms_of_two_of_ours() {
    between(Kind::Ours, Kind::Ours).await;
}

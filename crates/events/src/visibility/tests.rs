//! The table of the module's documentation, written out, and every combination built from it.

use super::{Around, HistoryVisibility, Later, Membership, Sight, may_see};

const YES: bool = true;
const NO: bool = false;

/// visibility, then: joined, invited & joined later, invited & not, outside & joined later,
/// outside & not.
const TABLE: [(HistoryVisibility, [bool; 5]); 4] = [
    (HistoryVisibility::WorldReadable, [YES, YES, YES, YES, YES]),
    (HistoryVisibility::Shared, [YES, YES, NO, YES, NO]),
    (HistoryVisibility::Invited, [YES, YES, YES, NO, NO]),
    (HistoryVisibility::Joined, [YES, NO, NO, NO, NO]),
];

fn table(visibility: HistoryVisibility, membership: Membership, later: Later) -> bool {
    let column = match (membership, later) {
        (Membership::Join, _) => 0,
        (Membership::Invite, Later::Joined) => 1,
        (Membership::Invite, Later::NeverJoined) => 2,
        (Membership::Outside, Later::Joined) => 3,
        (Membership::Outside, Later::NeverJoined) => 4,
    };
    TABLE.iter().find(|(row, _)| *row == visibility).unwrap().1[column]
}

#[test]
fn unchanged_state_follows_the_table() {
    for visibility in HistoryVisibility::ALL {
        for membership in Membership::ALL {
            for later in [Later::Joined, Later::NeverJoined] {
                let sight = Sight {
                    visibility: Around::unchanged(visibility),
                    membership: Around::unchanged(membership),
                    later,
                };
                assert_eq!(
                    may_see(&sight),
                    table(visibility, membership, later),
                    "{sight:?}"
                );
            }
        }
    }
}

#[test]
fn changed_state_lets_more_be_seen() {
    let mut cases = 0;
    for before in HistoryVisibility::ALL {
        for after in HistoryVisibility::ALL {
            for was in Membership::ALL {
                for is in Membership::ALL {
                    for later in [Later::Joined, Later::NeverJoined] {
                        let sight = Sight {
                            visibility: Around { before, after },
                            membership: Around {
                                before: was,
                                after: is,
                            },
                            later,
                        };
                        let expected = table(before, was, later)
                            || table(before, is, later)
                            || table(after, was, later)
                            || table(after, is, later);
                        assert_eq!(may_see(&sight), expected, "{sight:?}");
                        cases += 1;
                    }
                }
            }
        }
    }
    assert_eq!(cases, 4 * 4 * 3 * 3 * 2);
}

/// The examples in the specification's prose.
#[test]
fn examples_of_the_specification() {
    let joined = Around::unchanged(HistoryVisibility::Joined);
    let sees = |visibility, was, is| {
        let membership = Around {
            before: was,
            after: is,
        };
        may_see(&Sight {
            visibility,
            membership,
            later: Later::NeverJoined,
        })
    };
    assert!(
        sees(joined, Membership::Outside, Membership::Join),
        "one's own join"
    );
    assert!(
        sees(joined, Membership::Join, Membership::Outside),
        "one's own leave"
    );
    assert!(
        !sees(joined, Membership::Invite, Membership::Outside),
        "a rejected invitation"
    );
    let opened = Around {
        before: HistoryVisibility::Joined,
        after: HistoryVisibility::WorldReadable,
    };
    let closed = Around {
        before: HistoryVisibility::WorldReadable,
        after: HistoryVisibility::Joined,
    };
    for change in [opened, closed] {
        assert!(
            sees(change, Membership::Outside, Membership::Outside),
            "a stranger, {change:?}"
        );
    }
}

#[test]
fn values_that_are_not_understood() {
    assert_eq!(
        HistoryVisibility::from_name("m.secret"),
        HistoryVisibility::Shared
    );
    assert_eq!(HistoryVisibility::from_name(""), HistoryVisibility::Shared);
    for name in ["knock", "leave", "ban", "elsewhere"] {
        assert_eq!(Membership::from_name(name), Membership::Outside);
    }
}

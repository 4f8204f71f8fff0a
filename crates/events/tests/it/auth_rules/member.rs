//! Changes of membership (rule 5).

use homeserver_events::canonical;
use homeserver_events::{CanonicalObject, SigningKey, sign_json};
use serde_json::{Value, json};

use super::{before, each, join_rule, since, with_levels};
use crate::room::{self, ALICE, BOB, CAROL, DAVE, Room, key, member, message, state};

#[test]
fn rule_5_1_member_events_have_a_key_and_a_membership() {
    each(|version| {
        let mut room = Room::new(version);
        let join = json!({ "membership": "join" });
        let why = "a member event must have a user id as state key";
        room.refused(&message(BOB, "m.room.member", join.clone()), why);
        room.refused(&state(BOB, "m.room.member", "bob", join), why);
        let why = "a member event must have a membership";
        room.refused(&state(BOB, "m.room.member", BOB, json!({})), why);
        room.refused(&member(BOB, BOB, "visit"), "the membership is not known");
        room.refused(
            &state(BOB, "m.room.member", BOB, json!({ "membership": 1 })),
            "the content of the member event cannot be read",
        );
    });
}

#[test]
fn rule_5_3_join() {
    each(|version| {
        // The creator's first join, and nobody else's.
        let mut room = Room::created(version, &room::create_content(version));
        room.refused(&member(BOB, BOB, "join"), "the sender is not invited");
        room.must(&member(ALICE, ALICE, "join"));

        let mut room = Room::new(version);
        room.refused(
            &member(BOB, CAROL, "join"),
            "nobody can join for another user",
        );
        room.must(&member(BOB, BOB, "join"));
        room.must(&member(ALICE, BOB, "ban"));
        room.refused(
            &member(BOB, BOB, "join"),
            "the sender is banned from the room",
        );
        for rule in ["invite", "knock"] {
            join_rule(&mut room, rule);
            let why = if rule == "knock" && !room.rules.knocking {
                "the join rule lets nobody in"
            } else {
                "the sender is not invited"
            };
            room.refused(&member(DAVE, DAVE, "join"), why);
        }
        join_rule(&mut room, "invite");
        room.must(&member(ALICE, DAVE, "invite"));
        room.must(&member(DAVE, DAVE, "join"));
        room.must(&member(DAVE, DAVE, "join"));
        join_rule(&mut room, "private");
        room.refused(&member(DAVE, DAVE, "join"), "the join rule lets nobody in");
    });
}

#[test]
fn rule_5_3_5_restricted_joins() {
    let via = |user: &str| {
        let content = json!({ "membership": "join", "join_authorised_via_users_server": user });
        state(DAVE, "m.room.member", DAVE, content)
    };
    each(|version| {
        for rule in ["restricted", "knock_restricted"] {
            let mut room = with_levels(version, json!({ "invite": 50, "users": {} }));
            join_rule(&mut room, rule);
            let known = if rule == "restricted" {
                room.rules.restricted_joins
            } else {
                room.rules.knock_restricted
            };
            if !known {
                room.refused(&member(DAVE, DAVE, "join"), "the join rule lets nobody in");
                continue;
            }
            let nobody = "nobody vouches for the restricted join";
            room.refused(&member(DAVE, DAVE, "join"), nobody);
            room.refused(&via("dave"), nobody);
            room.refused(
                &via(DAVE),
                "the user who vouches for the join is not in the room",
            );
            room.refused(
                &via(BOB),
                "the user who vouches for the join may not invite",
            );
            room.clone().must(&via(ALICE));
            room.must(&member(ALICE, DAVE, "invite"));
            room.must(&member(DAVE, DAVE, "join"));
        }
    });
}

#[test]
fn rule_5_4_invite() {
    each(|version| {
        let mut room = with_levels(version, json!({ "invite": 50, "users": { BOB: 50 } }));
        room.refused(
            &member(DAVE, "@eve:one.example", "invite"),
            "the sender is not in the room",
        );
        room.refused(&member(CAROL, DAVE, "invite"), "the sender may not invite");
        let inside = "the invited user is in the room or banned from it";
        room.refused(&member(BOB, CAROL, "invite"), inside);
        room.must(&member(BOB, DAVE, "invite"));
        room.must(&member(ALICE, DAVE, "ban"));
        room.refused(&member(BOB, DAVE, "invite"), inside);
    });
}

fn third_party(sender: &str, target: &str, signed: &Value) -> room::Proposal {
    let content = json!({ "membership": "invite", "third_party_invite": { "signed": signed } });
    state(sender, "m.room.member", target, content)
}

fn signed(mxid: &str, token: &str, key: &SigningKey) -> Value {
    let mut block = CanonicalObject::from([
        ("mxid".to_owned(), mxid.into()),
        ("token".to_owned(), token.into()),
    ]);
    sign_json(&mut block, "id.example", key);
    serde_json::from_str(&canonical::to_string(&block)).unwrap()
}

#[test]
fn rule_5_4_1_third_party_invites() {
    each(|version| {
        for form in ["public_key", "public_keys"] {
            let mut room = Room::new(version);
            let public = key().verify_key().to_base64();
            let content = if form == "public_key" {
                json!({ "public_key": public })
            } else {
                json!({ "public_keys": [{ "public_key": "AAAA" }, { "public_key": public }] })
            };
            room.must(&state(ALICE, "m.room.third_party_invite", "token", content));
            room.must(&member(CAROL, CAROL, "join"));
            let good = signed(DAVE, "token", &key());

            let absent = json!({ "membership": "invite", "third_party_invite": {} });
            let why = "the third-party invite has no signed block";
            room.refused(&state(ALICE, "m.room.member", DAVE, absent), why);
            let null = json!({ "membership": "invite", "third_party_invite": null });
            room.refused(&state(ALICE, "m.room.member", DAVE, null), why);
            let why = "the third-party invite has no mxid or token";
            room.refused(&third_party(ALICE, DAVE, &json!({ "mxid": DAVE })), why);
            room.refused(&third_party(ALICE, DAVE, &json!({ "token": "token" })), why);
            let why = "the third-party invite is for another user";
            room.refused(&third_party(ALICE, BOB, &good), why);
            let why = "there is no third-party invite with this token";
            room.refused(
                &third_party(ALICE, DAVE, &signed(DAVE, "other", &key())),
                why,
            );
            let why = "the third-party invite was sent by another user";
            room.refused(&third_party(CAROL, DAVE, &good), why);
            let why = "the third-party invite is not signed";
            let stranger = SigningKey::from_seed("test", &[8; 32]).unwrap();
            room.refused(
                &third_party(ALICE, DAVE, &signed(DAVE, "token", &stranger)),
                why,
            );
            let mut changed = good.clone();
            changed["extra"] = json!(1);
            room.refused(&third_party(ALICE, DAVE, &changed), why);
            room.refused(
                &third_party(ALICE, DAVE, &json!({ "mxid": DAVE, "token": "token" })),
                why,
            );
            let mut banned = room.clone();
            banned.must(&member(ALICE, DAVE, "ban"));
            let why = "the invited user is banned";
            banned.refused(&third_party(ALICE, DAVE, &good), why);
            room.must(&third_party(ALICE, DAVE, &good));
        }
    });
}

#[test]
fn rule_5_5_leave_and_kick() {
    each(|version| {
        let levels = json!({ "ban": 60, "kick": 50, "users": { BOB: 55 } });
        let mut room = with_levels(version, levels);
        let out = "the sender is not in the room, invited or knocking";
        room.refused(&member(DAVE, DAVE, "leave"), out);
        room.refused(
            &member(DAVE, CAROL, "leave"),
            "the sender is not in the room",
        );
        room.refused(&member(CAROL, BOB, "leave"), "the sender may not kick");
        room.refused(
            &member(BOB, ALICE, "leave"),
            "the sender may not kick this user",
        );
        room.refused(
            &member(BOB, "@b:two.example", "ban"),
            "the sender may not ban",
        );
        room.must(&member(BOB, CAROL, "leave"));
        room.refused(&member(CAROL, CAROL, "leave"), out);
        room.must(&member(ALICE, CAROL, "ban"));
        room.refused(&member(BOB, CAROL, "leave"), "the sender may not unban");
        room.refused(&member(CAROL, CAROL, "leave"), out);
        room.must(&member(ALICE, CAROL, "leave"));
        room.must(&member(ALICE, DAVE, "invite"));
        room.must(&member(DAVE, DAVE, "leave"));
        room.must(&member(BOB, BOB, "leave"));
    });
}

#[test]
fn rule_5_6_ban() {
    each(|version| {
        let mut room = with_levels(
            version,
            json!({ "ban": 50, "users": { BOB: 50, CAROL: 50 } }),
        );
        room.refused(&member(DAVE, BOB, "ban"), "the sender is not in the room");
        room.refused(
            &member(BOB, CAROL, "ban"),
            "the sender may not ban this user",
        );
        room.refused(
            &member(BOB, ALICE, "ban"),
            "the sender may not ban this user",
        );
        room.must(&member(BOB, DAVE, "ban"));
    });
}

#[test]
fn rule_5_7_knock() {
    for version in before(7) {
        let mut room = Room::new(version);
        join_rule(&mut room, "knock");
        room.refused(&member(BOB, BOB, "knock"), "the membership is not known");
    }
    for version in since(7) {
        for rule in ["knock", "knock_restricted"] {
            let mut room = Room::new(*version);
            let not_allowed = "the join rule does not allow knocking";
            room.refused(&member(BOB, BOB, "knock"), not_allowed);
            join_rule(&mut room, rule);
            if rule == "knock_restricted" && !room.rules.knock_restricted {
                room.refused(&member(BOB, BOB, "knock"), not_allowed);
                continue;
            }
            room.refused(
                &member(BOB, DAVE, "knock"),
                "nobody can knock for another user",
            );
            room.must(&member(BOB, BOB, "knock"));
            room.must(&member(BOB, BOB, "leave"));
            let inside = "the sender is in the room, invited or banned";
            room.refused(&member(ALICE, ALICE, "knock"), inside);
            room.must(&member(ALICE, DAVE, "invite"));
            room.refused(&member(DAVE, DAVE, "knock"), inside);
            room.must(&member(ALICE, DAVE, "ban"));
            room.refused(&member(DAVE, DAVE, "knock"), inside);
        }
    }
}

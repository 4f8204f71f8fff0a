//! Who gets what, and in which order.

use homeserver_events::sign_json;
use homeserver_rooms::{MemberProfile, MembershipChange};
use serde_json::json;

use super::support::{Answers, Here, name, user};

const ZED: &str = "@zed:there.example";

fn invite(id: &str) -> MembershipChange {
    MembershipChange::Invite {
        user: user(id),
        profile: MemberProfile::default(),
        is_direct: false,
    }
}

#[tokio::test(start_paused = true)]
async fn messages_arrive_in_order_at_the_servers_of_the_room_and_nowhere_else() {
    let here = Here::start().await;
    let room = here.create().await;
    here.say(&room, "before").await;
    here.remote_member(&room, &user(ZED), "join").await;
    here.remote_member(&room, &user("@eve:evil.example"), "join")
        .await;
    let other = here.create().await;
    here.remote_member(&other, &user("@yan:yonder.example"), "join")
        .await;
    let mut said = Vec::new();
    for number in 0..120 {
        here.say(&room, &format!("m{number}")).await;
        said.push(format!("m{number}"));
    }
    here.until_sent("there.example").await;
    assert_eq!(here.wire.heard("there.example"), said);
    assert_eq!(here.wire.requests("evil.example"), 0, "denied");
    assert_eq!(here.wire.requests("yonder.example"), 0);
    assert_eq!(here.wire.requests("here.example"), 0);
    let sent = here.wire.events("there.example");
    let stored = here.room(&room).await;
    assert_eq!(sent[0]["room_id"], stored.id.as_str());
    // A message that is sent alone goes at once.
    let before = here.wire.transactions("there.example").len();
    here.say(&room, "alone").await;
    here.until_sent("there.example").await;
    let last = &here.wire.transactions("there.example")[before..];
    assert_eq!(last.len(), 1);
    assert_eq!(last[0]["pdus"][0]["content"]["body"], "alone");
}

#[tokio::test(start_paused = true)]
async fn who_is_removed_learns_of_it_and_of_nothing_after() {
    let here = Here::start().await;
    let room = here.create().await;
    here.remote_member(&room, &user(ZED), "join").await;
    here.remote_member(&room, &user("@yan:yonder.example"), "join")
        .await;
    here.say(&room, "one").await;
    let zed = user(ZED);
    here.member(&room, MembershipChange::Kick { user: zed })
        .await;
    here.say(&room, "two").await;
    here.until_sent("there.example").await;
    here.until_sent("yonder.example").await;
    assert_eq!(here.wire.heard("there.example"), ["one", "m.room.member"]);
    let all = ["one", "m.room.member", "two"];
    assert_eq!(here.wire.heard("yonder.example"), all);
    // Who left by themselves said so; others go on.
    here.remote_member(&room, &user("@yan:yonder.example"), "leave")
        .await;
    here.say(&room, "three").await;
    here.remote_member(&room, &user(ZED), "join").await;
    here.say(&room, "four").await;
    here.until_sent("there.example").await;
    assert_eq!(here.wire.heard("yonder.example"), all);
    let heard = here.wire.heard("there.example");
    assert_eq!(heard, ["one", "m.room.member", "four"]);
}

#[tokio::test(start_paused = true)]
async fn an_invitation_that_ends_is_told_to_the_server_of_the_invited() {
    let here = Here::start().await;
    let room = here.create().await;
    here.remote_member(&room, &user(ZED), "join").await;
    here.member(&room, invite("@yan:yonder.example")).await;
    here.say(&room, "said").await;
    here.until_sent("there.example").await;
    // The invitation itself goes by a request of its own.
    assert_eq!(here.wire.requests("yonder.example"), 0);
    let yan = user("@yan:yonder.example");
    here.member(&room, MembershipChange::Kick { user: yan.clone() })
        .await;
    here.member(&room, MembershipChange::Ban { user: yan })
        .await;
    here.until_sent("yonder.example").await;
    here.until_sent("there.example").await;
    let told = here.wire.events("yonder.example");
    assert_eq!(told.len(), 1);
    assert_eq!(told[0]["content"]["membership"], "leave");
    assert_eq!(here.wire.events("there.example").len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_room_that_does_not_federate_stays_here() {
    let here = Here::start().await;
    let room = here.create_with(json!({ "m.federate": false })).await;
    here.member(&room, invite("@yan:yonder.example")).await;
    let yan = user("@yan:yonder.example");
    here.member(&room, MembershipChange::Kick { user: yan })
        .await;
    let open = here.create().await;
    here.remote_member(&open, &user(ZED), "join").await;
    here.say(&open, "open").await;
    here.until_sent("there.example").await;
    assert_eq!(here.wire.requests("yonder.example"), 0);
}

#[tokio::test(start_paused = true)]
async fn what_others_send_is_passed_on_only_if_this_server_let_it_in() {
    let here = Here::start().await;
    let room = here.create().await;
    here.remote_member(&room, &user(ZED), "join").await;
    here.remote_member(&room, &user("@yan:yonder.example"), "join")
        .await;
    let kind = ("m.room.message", None);
    let theirs = here
        .make(&room, &user(ZED), kind, json!({ "body": "theirs" }))
        .await;
    here.receive(&theirs).await;
    let xen = user("@xen:xenia.example");
    let kind = ("m.room.member", Some(xen.as_str()));
    let join = here
        .make(&room, &xen, kind, json!({ "membership": "join" }))
        .await;
    let mut object = join.to_object().unwrap();
    let own = here.federation.own_keys.clone();
    sign_json(&mut object, own.server().as_str(), own.signing_key());
    let join = homeserver_events::Pdu::of_object(&object, join.rules()).unwrap();
    here.receive(&join).await;
    here.until_sent("there.example").await;
    here.until_sent("yonder.example").await;
    for server in ["there.example", "yonder.example"] {
        let events = here.wire.events(server);
        assert_eq!(events.len(), 1, "{server}");
        assert_eq!(events[0]["sender"], xen.as_str());
    }
    assert_eq!(here.wire.requests("xenia.example"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_slow_server_keeps_no_other_waiting() {
    let here = Here::start().await;
    let room = here.create().await;
    here.remote_member(&room, &user(ZED), "join").await;
    here.remote_member(&room, &user("@slow:slow.example"), "join")
        .await;
    here.wire.set("slow.example", Answers::Never);
    for number in 0..10 {
        here.say(&room, &format!("m{number}")).await;
        here.until_sent("there.example").await;
    }
    assert_eq!(here.wire.heard("there.example").len(), 10);
    assert_eq!(here.wire.requests("slow.example"), 1);
    assert_eq!(here.sender.pending(&name("slow.example")).events, 10);
}

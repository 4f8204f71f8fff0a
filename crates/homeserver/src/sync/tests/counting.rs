//! Unread counts: the two ways of counting give the same, whatever happens.
//!
//! Ignoring somebody who is nowhere changes no count, but the way of counting: with an empty list
//! events are counted by class, with a list they are evaluated one by one.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Send(usize, Kind),
    Read(usize, Option<bool>),
    Redact(usize),
    Leave,
    Join,
    Rename(u8),
    Mute(bool),
    Rule(usize, u8),
}

/// What is sent, and the event it relates to.
#[derive(Clone, Debug)]
enum Kind {
    Text,
    Notice,
    Encrypted,
    Call,
    Topic,
    Mention,
    Everybody,
    Crowd,
    Thread(usize),
    MentionInThread(usize),
    Reference(usize),
    Edit(usize),
    Reaction(usize),
    MentioningReaction(usize),
}

fn kind() -> impl Strategy<Value = Kind> {
    let at = || 0..12_usize;
    prop_oneof![
        3 => Just(Kind::Text),
        1 => Just(Kind::Notice),
        1 => Just(Kind::Encrypted),
        1 => Just(Kind::Call),
        1 => Just(Kind::Topic),
        2 => Just(Kind::Mention),
        1 => Just(Kind::Everybody),
        1 => Just(Kind::Crowd),
        3 => at().prop_map(Kind::Thread),
        1 => at().prop_map(Kind::MentionInThread),
        2 => at().prop_map(Kind::Reference),
        1 => at().prop_map(Kind::Edit),
        1 => at().prop_map(Kind::Reaction),
        1 => at().prop_map(Kind::MentioningReaction),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (0..3_usize, kind()).prop_map(|(who, kind)| Step::Send(who, kind)),
        2 => (0..20_usize, any::<Option<bool>>()).prop_map(|(event, how)| Step::Read(event, how)),
        2 => (0..20_usize).prop_map(Step::Redact),
        1 => Just(Step::Leave),
        1 => Just(Step::Join),
        1 => any::<u8>().prop_map(Step::Rename),
        1 => any::<bool>().prop_map(Step::Mute),
        2 => (0..RULES.len(), 0..3_u8).prop_map(|(rule, how)| Step::Rule(rule, how)),
    ]
}

/// Default rules that are changed. Some of the changes need events to be evaluated anyway.
const RULES: [&str; 8] = [
    "override/.m.rule.master",
    "override/.m.rule.is_user_mention",
    "override/.m.rule.is_room_mention",
    "override/.m.rule.reaction",
    "override/.m.rule.suppress_edits",
    "underride/.m.rule.message",
    "underride/.m.rule.room_one_to_one",
    "underride/.m.rule.encrypted",
];

/// A room, its three users, and what was sent there: sender and event.
struct Scene {
    users: [User; 3],
    room: String,
    sent: Vec<(usize, String)>,
    joined: bool,
}

const BOB: usize = 1;

impl Scene {
    async fn new() -> Self {
        let world = World::new().await;
        let users = [
            world.user("alice").await,
            world.user("bob").await,
            world.user("carol").await,
        ];
        let room = users[0]
            .create_room(json!({ "preset": "public_chat" }))
            .await;
        users[BOB].join(&room).await;
        users[2].join(&room).await;
        Self {
            users,
            room,
            sent: Vec::new(),
            joined: true,
        }
    }

    fn event(&self, at: usize) -> Option<&(usize, String)> {
        self.sent.get(at % self.sent.len().max(1))
    }

    async fn take(&mut self, step: &Step) {
        let (bob, room) = (self.users[BOB].clone(), self.room.clone());
        match step {
            Step::Send(who, kind) if *who != BOB || self.joined => self.send(*who, kind).await,
            Step::Read(at, how) if self.joined => {
                let Some((_, event)) = self.event(*at) else {
                    return;
                };
                let root = &self.sent[0].1;
                let body = match how {
                    None => json!({}),
                    Some(true) => json!({ "thread_id": "main" }),
                    Some(false) => json!({ "thread_id": root }),
                };
                // A receipt may name a thread that the event is not in.
                let path = format!("rooms/{}/receipt/m.read/{}", encoded(&room), encoded(event));
                bob.post(&path, body).await;
            }
            Step::Redact(at) => {
                let Some((sender, event)) = self.event(*at) else {
                    return;
                };
                let path = format!("rooms/{}/redact/{}/r{at}", encoded(&room), encoded(event));
                // By a moderator, or by somebody who may have left.
                self.users[if *sender == BOB { BOB } else { 0 }]
                    .put(&path, json!({}))
                    .await;
            }
            Step::Leave if self.joined => {
                bob.leave(&room).await;
                self.joined = false;
            }
            Step::Join if !self.joined => {
                bob.join(&room).await;
                self.joined = true;
            }
            Step::Rename(name) => {
                let path = format!("profile/{}/displayname", encoded(bob.id()));
                bob.put(&path, json!({ "displayname": name.to_string() }))
                    .await
                    .ok();
            }
            Step::Mute(on) => {
                let path = format!("pushrules/global/room/{}", encoded(&room));
                if *on {
                    bob.put(&path, json!({ "actions": [] })).await.ok();
                } else {
                    bob.delete(&path).await;
                }
            }
            Step::Rule(rule, how) => {
                let path = format!("pushrules/global/{}", RULES[*rule]);
                let (what, body) = match how {
                    0 => ("enabled", json!({ "enabled": false })),
                    1 => ("enabled", json!({ "enabled": true })),
                    _ => (
                        "actions",
                        json!({ "actions": ["notify", { "set_tweak": "highlight" }] }),
                    ),
                };
                bob.put(&format!("{path}/{what}"), body).await.ok();
            }
            _ => {}
        }
    }

    async fn send(&mut self, who: usize, kind: &Kind) {
        let bob = self.users[BOB].id().to_owned();
        let message = || json!({ "msgtype": "m.text", "body": "x" });
        let mention = json!({ "user_ids": [bob] });
        let crowd: Vec<_> = (0..250)
            .map(|number| format!("@u{number}:localhost"))
            .collect();
        let crowd: Vec<_> = crowd.into_iter().chain([bob]).collect();
        let (mut event_type, mut content, mut relation) = ("m.room.message", message(), None);
        match kind {
            Kind::Text => {}
            Kind::Notice => content["msgtype"] = "m.notice".into(),
            Kind::Encrypted => event_type = "m.room.encrypted",
            Kind::Call => event_type = "m.call.invite",
            Kind::Topic => event_type = "org.example.other",
            Kind::Mention => content["m.mentions"] = mention,
            Kind::Everybody => content["m.mentions"] = json!({ "room": true }),
            Kind::Crowd => content["m.mentions"] = json!({ "user_ids": crowd }),
            Kind::Thread(at) => relation = Some(("m.thread", at)),
            Kind::MentionInThread(at) => {
                content["m.mentions"] = mention;
                relation = Some(("m.thread", at));
            }
            Kind::Reference(at) => relation = Some(("m.reference", at)),
            Kind::Edit(at) => relation = Some(("m.replace", at)),
            Kind::Reaction(at) => {
                event_type = "m.reaction";
                relation = Some(("m.annotation", at));
            }
            Kind::MentioningReaction(at) => {
                event_type = "m.reaction";
                content["m.mentions"] = mention;
                relation = Some(("m.annotation", at));
            }
        }
        if let Some((rel_type, at)) = relation {
            let Some((_, target)) = self.event(*at) else {
                return;
            };
            content["m.relates_to"] = json!({ "rel_type": rel_type, "event_id": target, "key": self.sent.len().to_string() });
        }
        // The room may refuse it: threads do not start from everything.
        let (room, number) = (encoded(&self.room), self.sent.len());
        let path = format!("rooms/{room}/send/{event_type}/c{number}");
        let answer = self.users[who].put(&path, content).await;
        if let Some(event) = answer.body["event_id"].as_str() {
            self.sent.push((who, event.to_owned()));
        }
    }

    /// Bob's counts, together and by thread.
    async fn counts(&self) -> Value {
        let bob = &self.users[BOB];
        let threaded = json!({ "room": { "timeline": { "unread_thread_notifications": true } } });
        let (whole, apart) = (bob.sync("").await, bob.sync(&filter(&threaded)).await);
        let [whole, apart] = [whole, apart].map(|sync| joined(&sync, &self.room).clone());
        json!([
            whole["unread_notifications"],
            apart["unread_notifications"],
            apart["unread_thread_notifications"],
        ])
    }

    async fn ignore(&self, users: Value) {
        let bob = &self.users[BOB];
        let path = format!(
            "user/{}/account_data/m.ignored_user_list",
            encoded(bob.id())
        );
        bob.put(&path, json!({ "ignored_users": users })).await.ok();
    }
}

async fn check(steps: &[Step]) {
    let mut scene = Scene::new().await;
    for (number, step) in steps.iter().enumerate() {
        scene.take(step).await;
        if number % 5 == 4 || number + 1 == steps.len() {
            scene.ignore(json!({ "@nowhere:localhost": {} })).await;
            let by_event = scene.counts().await;
            scene.ignore(json!({})).await;
            assert_eq!(
                scene.counts().await,
                by_event,
                "after {:?}",
                &steps[..=number]
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(24)
    })]

    #[test]
    fn both_ways_of_counting_agree(steps in prop::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(check(&steps));
    }
}

//! Whatever happens in a room: what `/sync` tells, with paging back from its `prev_batch` to the
//! beginning, is every event that the reader may see, each once.
//!
//! What somebody may see is found by asking for every event by its id; which events there are, by
//! the creator paging forwards.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const MODES: [&str; 4] = ["joined", "invited", "shared", "world_readable"];

#[derive(Clone, Debug)]
enum Step {
    Say(usize),
    Topic,
    Visibility(usize),
    Rules(bool),
    Invite(usize),
    Join(usize),
    Leave(usize),
    Kick(usize),
    Ban(usize),
    Unban(usize),
    Redact(usize),
    /// Who, the limit of the timeline, whether only messages are asked for.
    Sync(usize, usize, bool),
}

fn step() -> impl Strategy<Value = Step> {
    let other = || 1..3_usize;
    prop_oneof![
        8 => (0..3_usize).prop_map(Step::Say),
        1 => Just(Step::Topic),
        2 => (0..MODES.len()).prop_map(Step::Visibility),
        1 => any::<bool>().prop_map(Step::Rules),
        1 => other().prop_map(Step::Invite),
        3 => other().prop_map(Step::Join),
        1 => other().prop_map(Step::Leave),
        1 => other().prop_map(Step::Kick),
        1 => other().prop_map(Step::Ban),
        1 => other().prop_map(Step::Unban),
        2 => any::<usize>().prop_map(Step::Redact),
        6 => (0..3_usize, 1..5_usize, any::<bool>()).prop_map(|(who, limit, messages)| {
            Step::Sync(who, limit, messages)
        }),
    ]
}

/// Event ids and their types, in the order told.
type Told = Vec<(String, String)>;

struct Scene {
    users: [User; 3],
    room: String,
    /// Per user and kind of filter: the token, and all that was seen up to it.
    seen: HashMap<(usize, bool), (String, BTreeSet<String>)>,
    said: Vec<String>,
}

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
        Self {
            users,
            room,
            seen: HashMap::new(),
            said: Vec::new(),
        }
    }

    /// Does something to the room; it may be refused.
    async fn act(&mut self, number: usize, step: &Step) {
        let [alice, ..] = &self.users;
        let room = encoded(&self.room);
        let state = |event_type: &str| format!("rooms/{room}/state/{event_type}/");
        let member = |what: &str| format!("rooms/{room}/{what}");
        let target = |who: &usize| json!({ "user_id": self.users[*who].id() });
        match step {
            Step::Say(who) => {
                let content = json!({ "msgtype": "m.text", "body": "x" });
                let path = format!("rooms/{room}/send/m.room.message/s{number}");
                let sent = self.users[*who].put(&path, content).await;
                self.said
                    .extend(sent.body["event_id"].as_str().map(str::to_owned));
            }
            Step::Topic => {
                alice
                    .put(&state("m.room.topic"), json!({ "topic": number }))
                    .await;
            }
            Step::Visibility(mode) => {
                let content = json!({ "history_visibility": MODES[*mode] });
                alice
                    .put(&state("m.room.history_visibility"), content)
                    .await;
            }
            Step::Rules(public) => {
                let rule = if *public { "public" } else { "invite" };
                alice
                    .put(&state("m.room.join_rules"), json!({ "join_rule": rule }))
                    .await;
            }
            Step::Invite(who) => drop(alice.post(&member("invite"), target(who)).await),
            Step::Kick(who) => drop(alice.post(&member("kick"), target(who)).await),
            Step::Ban(who) => drop(alice.post(&member("ban"), target(who)).await),
            Step::Unban(who) => drop(alice.post(&member("unban"), target(who)).await),
            Step::Join(who) => drop(self.users[*who].post(&member("join"), json!({})).await),
            Step::Leave(who) => drop(self.users[*who].post(&member("leave"), json!({})).await),
            Step::Redact(which) => {
                if let Some(event) = self.said.get(which % self.said.len().max(1)) {
                    let path = format!("rooms/{room}/redact/{}/r{number}", encoded(event));
                    alice.put(&path, json!({})).await;
                }
            }
            Step::Sync(..) => {}
        }
    }

    /// All pages from a token on, to the end.
    async fn pages(&self, user: &User, from: &str, dir: &str, limit: usize, only: bool) -> Told {
        let (mut from, mut found) = (from.to_owned(), Vec::new());
        let filter = if only {
            format!("&{}", filter(&json!({ "types": ["m.room.message"] })))
        } else {
            String::new()
        };
        loop {
            let path = format!(
                "rooms/{}/messages?dir={dir}&limit={limit}{filter}{from}",
                encoded(&self.room)
            );
            let page = user.get(&path).await.ok();
            found.extend(told(page["chunk"].as_array().unwrap()));
            match page["end"].as_str() {
                Some(end) => from = format!("&from={end}"),
                None => return found,
            }
        }
    }

    /// What the user may see now, by asking for each event of the room.
    async fn visible(&self, user: &User, only_messages: bool) -> BTreeSet<String> {
        let all = self.pages(&self.users[0], "", "f", 50, false).await;
        let mut visible = BTreeSet::new();
        for (event, event_type) in all {
            let path = format!("rooms/{}/event/{}", encoded(&self.room), encoded(&event));
            let wanted = !only_messages || event_type == "m.room.message";
            if wanted && user.get(&path).await.status == 200 {
                visible.insert(event);
            }
        }
        visible
    }

    async fn sync(&mut self, who: usize, limit: usize, only_messages: bool) {
        let user = self.users[who].clone();
        let mut definition = json!({ "room": { "timeline": { "limit": limit } } });
        if only_messages {
            definition["room"]["timeline"]["types"] = json!(["m.room.message"]);
        }
        let place = (who, only_messages);
        let (token, before) = self.seen.remove(&place).unwrap_or_default();
        let sync = user.since(&token, &filter(&definition)).await;
        let (here, gone) = (
            &sync["rooms"]["join"][&self.room],
            &sync["rooms"]["leave"][&self.room],
        );
        let is_in = self.is_in(&user).await;
        let mut seen = before;
        if here.is_object() || (gone.is_object() && is_in.is_some()) {
            let shown = if here.is_object() { here } else { gone };
            let timeline = told(&timeline(shown));
            let from = format!(
                "&from={}",
                shown["timeline"]["prev_batch"].as_str().unwrap()
            );
            let past = self.pages(&user, &from, "b", limit, only_messages).await;
            let ids = timeline.iter().chain(&past).map(|(event, _)| event.clone());
            let whole: BTreeSet<String> = ids.collect();
            assert_eq!(
                whole.len(),
                timeline.len() + past.len(),
                "told twice: {timeline:?} {past:?}"
            );
            let visible = self.visible(&user, only_messages).await;
            if gone.is_object() {
                // What everybody may read of the time after leaving is not told; that one is out
                // is, also to who was never in.
                let last = timeline.last().map(|(event, _)| event.clone());
                let but_leaving = |event: &&String| Some(*event) != last.as_ref();
                assert!(
                    whole
                        .iter()
                        .filter(but_leaving)
                        .all(|event| visible.contains(event)),
                    "{who} {shown}"
                );
            } else {
                assert_eq!(whole, visible, "{who} {shown}");
                // Without a gap, what was seen before and the timeline are everything.
                if shown["timeline"]["limited"] == false && !seen.is_empty() {
                    let new = timeline.iter().map(|(event, _)| event.clone());
                    let together: BTreeSet<String> = seen.iter().cloned().chain(new).collect();
                    assert!(
                        together.is_superset(&visible),
                        "{who} lost something: {shown}"
                    );
                }
            }
            seen = whole;
        } else if is_in == Some(true) && !token.is_empty() {
            // Nothing was told, so there is nothing new.
            assert_eq!(
                seen,
                self.visible(&user, only_messages).await,
                "{who} was told nothing"
            );
        }
        self.seen.insert(place, (next(&sync), seen));
    }

    /// Whether the user is in the room; `None` if they never were.
    async fn is_in(&self, user: &User) -> Option<bool> {
        let path = format!(
            "rooms/{}/state/m.room.member/{}",
            encoded(&self.room),
            user.id()
        );
        let mine = user.get(&path).await;
        match (mine.status, mine.body["membership"].as_str()) {
            (200, Some(membership)) => Some(membership == "join"),
            _ => None,
        }
    }
}

fn told(events: &[Value]) -> Told {
    let text = |event: &Value, key: &str| event[key].as_str().unwrap().to_owned();
    events
        .iter()
        .map(|event| (text(event, "event_id"), text(event, "type")))
        .collect()
}

async fn check(steps: &[Step]) {
    let mut scene = Scene::new().await;
    let all = [
        Step::Sync(1, 2, false),
        Step::Sync(2, 1, true),
        Step::Sync(0, 3, false),
    ];
    for (number, step) in steps.iter().chain(&all).enumerate() {
        match step {
            Step::Sync(who, limit, messages) => scene.sync(*who, *limit, *messages).await,
            step => scene.act(number, step).await,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(24)
    })]

    #[test]
    fn sync_and_pages_tell_every_visible_event_once(steps in prop::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(check(&steps));
    }
}

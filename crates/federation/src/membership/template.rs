//! Templates of membership events, as other servers give them, and the event that is made here.
//!
//! Of a template only what a server that is not in the room cannot know is used: the events to
//! follow, the events that authorise, the depth, and who vouches for a restricted join. All else is
//! compared with what was asked for, and written anew.
//!
//! Specification: server-server API, `make_join`, `make_knock`, `make_leave`.

use homeserver_events::{Draft, EventReference, Pdu, RoomVersion, Rules, Step, hash};
use homeserver_events::{
    limits::{MAX_AUTH_EVENTS, MAX_PREV_EVENTS},
    rules::ReferenceShape,
};
use ruma::{EventId, OwnedUserId, RoomVersionId, ServerName, UserId};
use serde::Deserialize;
use serde_json::{Map, Value, value::to_raw_value};

use super::{Failure, Inner, MembershipError, TEMPLATE_BODY, Wanted, usual, word};
use crate::{Call, Path, is_same_server};

/// Who vouches for a restricted join.
const VOUCHER: &str = "join_authorised_via_users_server";

/// What of a template is used.
#[derive(Clone, Debug)]
pub(super) struct Template {
    pub(super) version: RoomVersionId,
    pub(super) rules: &'static Rules,
    prev_events: Vec<EventReference>,
    auth_events: Vec<EventReference>,
    depth: u64,
    /// A user of the server that was asked, who lets the user in.
    pub(super) voucher: Option<OwnedUserId>,
}

#[derive(Deserialize)]
struct Given {
    room_version: Option<String>,
    event: GivenEvent,
}

#[derive(Deserialize)]
struct GivenEvent {
    #[serde(rename = "type")]
    event_type: String,
    room_id: String,
    sender: String,
    state_key: String,
    content: GivenContent,
    prev_events: Vec<Value>,
    auth_events: Vec<Value>,
    depth: u64,
}

#[derive(Deserialize)]
struct GivenContent {
    membership: String,
    #[serde(rename = "join_authorised_via_users_server")]
    voucher: Option<OwnedUserId>,
}

impl Inner {
    /// Asks a server for the template of a step.
    pub(super) async fn template(
        &self,
        server: &ServerName,
        step: Step,
        wanted: &Wanted,
    ) -> Result<Template, Failure> {
        let mut path = Path::v1(&format!("make_{}", word(step)))
            .segment(wanted.room.as_str())
            .segment(wanted.user.as_str());
        if step != Step::Leave {
            for version in RoomVersion::ALL {
                if step == Step::Join || version.rules().knocking {
                    path = path.query("ver", version.as_str());
                }
            }
        }
        let call = Call::get(path).limits(usual(TEMPLATE_BODY)).urgent();
        let answer = self.peers.ask(server, call).await?;
        let given: Given = answer.read()?;
        read(given, server, step, wanted)
    }

    /// The event that a template leads to.
    pub(super) fn seal(
        &self,
        template: &Template,
        step: Step,
        wanted: &Wanted,
    ) -> Result<Pdu, Failure> {
        let draft = Draft {
            room_id: Some(wanted.room.clone()),
            sender: wanted.user.clone(),
            event_type: "m.room.member".to_owned(),
            state_key: Some(wanted.user.to_string()),
            content: content(step, wanted, template.voucher.as_deref())?,
            origin_server_ts: self.runtime.clock.unix_millis(),
            prev_events: template.prev_events.clone(),
            auth_events: template.auth_events.clone(),
            depth: template.depth,
            redacts: None,
        };
        let sealed = draft.seal(template.rules, self.own.server(), self.own.signing_key());
        // What the template names is not as it must be.
        sealed.map_err(Failure::answer)
    }
}

/// The content of a membership event of this server's user.
pub(super) fn content(
    step: Step,
    wanted: &Wanted,
    voucher: Option<&UserId>,
) -> Result<Box<serde_json::value::RawValue>, Failure> {
    let mut content = Map::new();
    let mut put = |key: &str, value: Option<&str>| {
        if let Some(value) = value {
            content.insert(key.to_owned(), value.into());
        }
    };
    put("membership", Some(step.membership()));
    put("displayname", wanted.profile.displayname.as_deref());
    put("avatar_url", wanted.profile.avatar_url.as_deref());
    put("reason", wanted.reason.as_deref());
    put(VOUCHER, voucher.map(UserId::as_str));
    to_raw_value(&content).map_err(Failure::answer)
}

/// Compares a template with what was asked for, and takes what is used of it.
fn read(
    given: Given,
    server: &ServerName,
    step: Step,
    wanted: &Wanted,
) -> Result<Template, Failure> {
    let Given {
        room_version,
        event,
    } = given;
    let version = room_version.as_deref().unwrap_or("1");
    let rules = RoomVersion::parse(version).map(RoomVersion::rules);
    let rules = rules.filter(|rules| step != Step::Knock || rules.knocking);
    let rules = rules.ok_or_else(|| Failure::answer("a room version that was not asked for"))?;
    let differs = [
        ("type", &*event.event_type, "m.room.member"),
        ("room_id", &event.room_id, wanted.room.as_str()),
        ("sender", &event.sender, wanted.user.as_str()),
        ("state_key", &event.state_key, wanted.user.as_str()),
        ("membership", &event.content.membership, step.membership()),
    ]
    .into_iter()
    .find(|(_, given, asked)| given != asked);
    if let Some((field, ..)) = differs {
        return Err(Failure::answer(format!("the template has another {field}")));
    }
    let voucher = event.content.voucher;
    if let Some(voucher) = &voucher {
        let fits = step == Step::Join && rules.restricted_joins;
        // It has to sign the event, and no other server will.
        if !fits || !is_same_server(voucher.server_name(), server) {
            return Err(Failure::answer("somebody vouches who cannot"));
        }
    }
    let references = |given: &[Value], most: usize| {
        if given.len() > most {
            return Err(Failure::answer("the template refers to too many events"));
        }
        let read = given.iter().map(|value| reference(value, rules.references));
        let read: Option<Vec<_>> = read.collect();
        read.ok_or_else(|| Failure::answer("the template refers to what is no event"))
    };
    Ok(Template {
        version: rules.version_id(),
        rules,
        prev_events: references(&event.prev_events, MAX_PREV_EVENTS)?,
        auth_events: references(&event.auth_events, MAX_AUTH_EVENTS)?,
        depth: event.depth,
        voucher,
    })
}

/// An event that a template names, in the form of its room version.
fn reference(value: &Value, shape: ReferenceShape) -> Option<EventReference> {
    match shape {
        ReferenceShape::Ids => {
            let id = EventId::parse(value.as_str()?).ok()?;
            Some(id.into())
        }
        ReferenceShape::Pairs => {
            let [id, hashes] = value.as_array()?.as_slice() else {
                return None;
            };
            let sent = hash::decode_any_base64(hashes.get("sha256")?.as_str()?)?;
            Some(EventReference {
                event_id: EventId::parse(id.as_str()?).ok()?,
                reference_hash: Some(sent.try_into().ok()?),
            })
        }
    }
}

impl From<homeserver_rooms::RoomError> for Failure {
    fn from(error: homeserver_rooms::RoomError) -> Self {
        Self::Own(MembershipError::Room(error))
    }
}

impl From<crate::CheckError> for Failure {
    fn from(error: crate::CheckError) -> Self {
        Self::Own(MembershipError::Check(error))
    }
}

#[cfg(test)]
mod tests {
    use ruma::{owned_room_id, owned_user_id, server_name};
    use serde_json::json;

    use super::*;

    fn wanted() -> Wanted {
        Wanted {
            user: owned_user_id!("@a:here.example"),
            room: owned_room_id!("!r:there.example"),
            via: Vec::new(),
            profile: homeserver_rooms::MemberProfile::default(),
            reason: None,
        }
    }

    fn template(change: impl FnOnce(&mut Value)) -> Result<Template, Failure> {
        let mut given = json!({
            "room_version": "11",
            "event": {
                "type": "m.room.member", "room_id": "!r:there.example",
                "sender": "@a:here.example", "state_key": "@a:here.example",
                "content": { "membership": "join", "displayname": "not ours" },
                "prev_events": ["$p"], "auth_events": ["$a"], "depth": 7,
                "origin_server_ts": 1, "hashes": { "sha256": "x" },
            },
        });
        change(&mut given);
        let given: Given = serde_json::from_value(given).map_err(Failure::answer)?;
        read(given, server_name!("there.example"), Step::Join, &wanted())
    }

    #[test]
    fn a_template_is_what_was_asked_for_or_nothing() {
        let good = template(|_| {}).unwrap();
        assert_eq!((good.depth, good.version.as_str()), (7, "11"));
        let wrong: [(&str, Value); 13] = [
            ("/event/type", json!("m.room.power_levels")),
            ("/event/room_id", json!("!other:there.example")),
            ("/event/sender", json!("@b:here.example")),
            ("/event/state_key", json!("@b:here.example")),
            ("/event/content/membership", json!("ban")),
            ("/event/prev_events", json!([["$p", { "sha256": "AAAA" }]])),
            ("/event/auth_events", json!(["no id"])),
            ("/event/prev_events", json!(vec!["$p"; 21])),
            ("/event/auth_events", json!(vec!["$p"; 11])),
            ("/event/depth", json!(-1)),
            ("/event/depth", json!("1")),
            ("/room_version", json!("org.example.new")),
            ("/event", json!([])),
        ];
        for (pointer, value) in wrong {
            let given = template(|given| *given.pointer_mut(pointer).unwrap() = value.clone());
            assert!(given.is_err(), "{pointer} {value}");
        }
    }

    #[test]
    fn only_a_user_of_the_server_that_is_asked_vouches_where_that_is_possible() {
        let voucher = |version: &str, user: &str| {
            template(|given| {
                given["room_version"] = json!(version);
                given["event"]["content"][VOUCHER] = json!(user);
            })
        };
        let good = voucher("8", "@host:there.example").unwrap();
        assert_eq!(good.voucher.unwrap(), "@host:there.example");
        assert!(voucher("7", "@host:there.example").is_err());
        assert!(voucher("8", "@host:other.example").is_err());
        assert!(voucher("8", "@a:here.example").is_err());
        assert!(voucher("8", "nobody").is_err());
    }
}

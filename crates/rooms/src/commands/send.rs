//! Sending events: messages, state, redactions.

use std::collections::BTreeMap;

use homeserver_events::canonical;
use ruma::{EventId, RoomAliasId, UserId};
use serde::Deserialize;
use serde_json::{Map, Value, json, value::to_raw_value};

use super::sent;
use crate::{
    Rooms,
    command::NewEvent,
    edit::{DeclaredRelation, RoomEdit, declared_in, redact::redacts},
    error::RoomError,
    event::StoredEvent,
    execute::Decision,
    numbers::RoomNumber,
    rows::{Effect, Membership, Origin},
    tables::ALIASES,
};

/// State that no client of this server redacts. Without its content a room would have no version
/// and no owner, and would admit the servers it keeps out.
const NOT_REDACTED: [&str; 2] = ["m.room.create", "m.room.server_acl"];

/// Aliases that one `m.room.canonical_alias` may name.
const MAX_ALT_ALIASES: usize = 100;

/// A redaction, as the endpoint for redactions makes it.
pub(super) fn redaction(target: &EventId, reason: Option<&str>) -> NewEvent {
    let mut content = BTreeMap::from([("redacts", target.as_str())]);
    content.extend(reason.map(|reason| ("reason", reason)));
    NewEvent::of("m.room.redaction", None, &json!(content))
}

impl NewEvent {
    /// An event with this content.
    pub(crate) fn of(event_type: &str, state_key: Option<&str>, content: &Value) -> Self {
        Self {
            event_type: event_type.to_owned(),
            state_key: state_key.map(ToOwned::to_owned),
            // A JSON value always can be written.
            content: to_raw_value(content).unwrap_or_default(),
            timestamp: None,
        }
    }
}

impl Rooms {
    pub(super) async fn decide_send(
        &self,
        edit: &mut RoomEdit<'_>,
        sender: &UserId,
        event: &NewEvent,
        origin: Option<Origin>,
    ) -> Result<Decision, RoomError> {
        if event.event_type == "m.room.create" {
            return Err(RoomError::forbidden("a room has one create event"));
        }
        let content = serde_json::from_str::<Map<String, Value>>(event.content.get())
            .map_err(|_| RoomError::BadContent("the content is not an object".to_owned()))?;
        let own_membership = event.event_type == "m.room.member"
            && event.state_key.as_deref() == Some(sender.as_str());
        // Before anything that is told of the room by how an event is refused.
        if !own_membership && edit.membership(sender).await? != Some(Membership::Join) {
            return Err(RoomError::forbidden("you are not in this room"));
        }
        let vouched = self.vouched(edit, sender, event, content).await?;
        let event = vouched.as_ref().unwrap_or(event);
        if let Some(stood) = self.same_state(edit, sender, event).await? {
            return Ok(stood);
        }
        match (event.event_type.as_str(), event.state_key.as_deref()) {
            ("m.room.canonical_alias", Some("")) => self.check_canonical_alias(edit, event).await?,
            ("m.room.member", Some(target)) => {
                self.check_removal(edit, sender, event, target).await?;
            }
            ("m.room.redaction", _) => self.check_redaction(edit, sender, event).await?,
            (_, None) => self.check_relation(edit, sender, event).await?,
            _ => {}
        }
        let event = edit.append(sender, event, origin).await?;
        Ok(sent(&event))
    }

    /// Setting a state that stands already, by the same user, changes nothing.
    async fn same_state(
        &self,
        edit: &RoomEdit<'_>,
        sender: &UserId,
        event: &NewEvent,
    ) -> Result<Option<Decision>, RoomError> {
        let Some(state_key) = event.state_key.as_deref() else {
            return Ok(None);
        };
        let Some(now) = edit.state(&event.event_type, state_key).await? else {
            return Ok(None);
        };
        let strictness = edit.room().rules.strictness;
        let Ok(wanted) = canonical::parse_object(event.content.get().as_bytes(), strictness) else {
            return Ok(None);
        };
        let same =
            now.pdu.sender() == sender && canonical::to_string(&wanted) == now.pdu.content_str();
        Ok(same.then(|| stood(&now)))
    }

    /// A redaction by a client needs the power to redact, or its own event as target.
    async fn check_redaction(
        &self,
        edit: &RoomEdit<'_>,
        sender: &UserId,
        event: &NewEvent,
    ) -> Result<(), RoomError> {
        let target = redacts(event)?.ok_or(RoomError::UnknownEvent)?;
        let number = self.events.number(edit.room().number, &target).await?;
        let number = number.ok_or(RoomError::UnknownEvent)?;
        let target = self.events.find(edit.room(), number).await?;
        let target = target.ok_or(RoomError::UnknownEvent)?;
        if target.pdu.state_key().is_some() && NOT_REDACTED.contains(&target.pdu.event_type()) {
            return Err(RoomError::forbidden(format!(
                "{} is not redacted",
                target.pdu.event_type()
            )));
        }
        if target.pdu.sender() == sender || edit.levels().await?.may_redact(sender) {
            Ok(())
        } else {
            Err(RoomError::forbidden(
                "you may not redact events of others in this room",
            ))
        }
    }

    /// New aliases in `m.room.canonical_alias` must point at this room.
    async fn check_canonical_alias(
        &self,
        edit: &RoomEdit<'_>,
        event: &NewEvent,
    ) -> Result<(), RoomError> {
        let wanted = Aliases::read(event.content.get())?;
        let now = match edit.state("m.room.canonical_alias", "").await? {
            Some(now) => Aliases::read(now.pdu.content_str()).unwrap_or_default(),
            None => Aliases::default(),
        };
        let known: Vec<_> = now.all().collect();
        for alias in wanted.all().filter(|alias| !known.contains(alias)) {
            let parsed = RoomAliasId::parse(alias);
            if parsed.is_err() {
                return Err(RoomError::InvalidAlias(alias.to_owned()));
            }
            let row = self.store.get(&ALIASES, &alias).await?;
            if row.map(|row| RoomNumber(row.room)) != Some(edit.room().number) {
                return Err(RoomError::BadAlias(alias.to_owned()));
            }
        }
        Ok(())
    }

    /// Threads do not nest, and nobody reacts to an event twice with the same key.
    async fn check_relation(
        &self,
        edit: &RoomEdit<'_>,
        sender: &UserId,
        event: &NewEvent,
    ) -> Result<(), RoomError> {
        let Some(relation) = declared_in(event.content.get()) else {
            return Ok(());
        };
        let Some(target) = self
            .events
            .number(edit.room().number, &relation.target)
            .await?
        else {
            return Ok(());
        };
        match relation.rel_type.as_str() {
            "m.thread" => {
                let root = self.events.find(edit.room(), target).await?;
                let nested = root.is_some_and(|root| declared_in(root.pdu.content_str()).is_some());
                if nested {
                    return Err(RoomError::NestedThread);
                }
                Ok(())
            }
            "m.annotation" => self.check_annotation(edit, sender, target, &relation).await,
            _ => Ok(()),
        }
    }

    async fn check_annotation(
        &self,
        edit: &RoomEdit<'_>,
        sender: &UserId,
        target: crate::numbers::EventNumber,
        relation: &DeclaredRelation,
    ) -> Result<(), RoomError> {
        let room = edit.room().number;
        let same = self.has_annotation(room, target, sender, relation.key.as_deref());
        if same.await? {
            return Err(RoomError::DuplicateAnnotation);
        }
        Ok(())
    }
}

/// The answer to a command that found what it wants.
pub(super) fn stood(event: &StoredEvent) -> Decision {
    let position = event.position.unwrap_or(0);
    Effect::Stood(event.pdu.event_id().to_owned(), position).into()
}

#[derive(Default, Deserialize)]
struct Aliases {
    alias: Option<String>,
    #[serde(default)]
    alt_aliases: Vec<String>,
}

impl Aliases {
    fn read(content: &str) -> Result<Self, RoomError> {
        let aliases: Self = serde_json::from_str(content)
            .map_err(|error| RoomError::BadContent(error.to_string()))?;
        if aliases.alt_aliases.len() > MAX_ALT_ALIASES {
            return Err(RoomError::BadContent("too many aliases".to_owned()));
        }
        Ok(aliases)
    }

    fn all(&self) -> impl Iterator<Item = &str> {
        let main = self.alias.iter().filter(|alias| !alias.is_empty());
        main.chain(&self.alt_aliases).map(String::as_str)
    }
}

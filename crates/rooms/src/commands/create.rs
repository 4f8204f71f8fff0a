//! Making a room: one batch of all its first events, in the specification's order
//! (client-server API, `POST /createRoom`).

use std::sync::Arc;

use homeserver_events::{Rules, rules::RoomIdFormat};
use ruma::{
    OwnedRoomAliasId, OwnedRoomId, OwnedUserId, RoomAliasId, RoomId, RoomVersionId, UserId,
};
use serde_json::{Map, Value, json};

use super::{
    membership::{content, member_event},
    preset::{creators_stand_above, object},
};
use crate::{
    Rooms,
    command::{CreateRoom, NewEvent},
    decide::{AuthState, Proposal},
    edit::{Pending, RoomEdit},
    error::RoomError,
    execute::Decision,
    numbers::EventNumber,
    room::Room,
    rowchange::RowChange,
    rows::{AliasRow, Effect, Membership},
    tables::ALIASES,
};

/// Users that one createRoom may invite: what fits into one batch.
pub const MAX_INVITES: usize = 60;

/// State events that one createRoom may set: what fits into one batch.
pub const MAX_INITIAL_STATE: usize = 60;

/// Rooms with the same content that one user may make in one millisecond.
const MAX_SAME_ROOMS: u64 = 256;

impl Rooms {
    pub(crate) async fn decide_create(
        &self,
        sender: &UserId,
        create: &CreateRoom,
    ) -> Result<Decision, RoomError> {
        if create.invite.len() > MAX_INVITES || create.initial_state.len() > MAX_INITIAL_STATE {
            return Err(RoomError::TooLarge(
                "too many invites or state events".to_owned(),
            ));
        }
        let version = create.version.clone();
        let version = version.unwrap_or_else(|| self.options.default_version.clone());
        let creation = create.creation_content.as_deref().map(object).transpose()?;
        let mut pending = Pending::default();
        let mut edit = self
            .begin_room(
                None,
                (sender, &version),
                creation.unwrap_or_default(),
                create,
                &mut pending,
            )
            .await?;
        let room = Arc::clone(edit.room());
        let mut decision = Decision::from(Effect::Created(room.id.clone()));
        let member = content(Membership::Join, &create.profile, None);
        append(&mut edit, sender, &member_event(sender, member)).await?;
        let creators = self.creators_of(&edit).await?;
        let levels = create.power_levels(room.rules, sender, &creators)?;
        append(
            &mut edit,
            sender,
            &NewEvent::of("m.room.power_levels", Some(""), &levels),
        )
        .await?;
        if let Some(alias) = self.new_alias(create).await? {
            let content = json!({ "alias": alias });
            let event = NewEvent::of("m.room.canonical_alias", Some(""), &content);
            append(&mut edit, sender, &event).await?;
            let row = AliasRow {
                room: room.number.0,
                creator: sender.to_owned(),
            };
            decision.rows.push(RowChange::AddAlias(alias, row));
        }
        for event in first_state(create) {
            append(&mut edit, sender, &event).await?;
        }
        // Users of other servers are invited once there is a room: their servers sign first.
        let own = &self.options.server_name;
        let here = |user: &&OwnedUserId| user.server_name() == own;
        for user in create.invite.iter().filter(here) {
            let profile = create
                .invited_profiles
                .get(user)
                .cloned()
                .unwrap_or_default();
            let mut member = content(Membership::Invite, &profile, None);
            if create.is_direct {
                member.insert("is_direct".to_owned(), true.into());
            }
            append(&mut edit, sender, &member_event(user, member)).await?;
        }
        if create.published {
            edit.delta.head.listed = true;
        }
        decision.beside.push(edit.delta);
        Ok(decision)
    }

    /// A new room with its create event. `id` is taken in versions whose rooms choose their id.
    pub(super) async fn begin_room<'a>(
        &'a self,
        id: Option<OwnedRoomId>,
        (sender, version): (&UserId, &RoomVersionId),
        content: Map<String, Value>,
        create: &CreateRoom,
        pending: &'a mut Pending,
    ) -> Result<RoomEdit<'a>, RoomError> {
        let unsupported = || RoomError::UnsupportedRoomVersion(version.to_string());
        let rules = Rules::for_version(version).ok_or_else(unsupported)?;
        let creators = create.additional_creators(rules, &content, sender)?;
        let mut event = create_event(rules, version, sender, content, &creators);
        // The id of the room may follow from this event, so its time is fixed here.
        let now = self.clock.unix_millis();
        event.timestamp = Some(now);
        let id = match (rules.room_id, id) {
            (RoomIdFormat::Domain, Some(id)) => id,
            (RoomIdFormat::Domain, None) => self.random_room_id()?,
            (RoomIdFormat::CreateEvent, _) => {
                self.free_room_id(rules, sender, &mut event, now).await?
            }
        };
        let room = Room {
            number: self.numbering.new_room().await?,
            id,
            version: version.clone(),
            rules,
            // Known in a moment.
            create: EventNumber(0),
        };
        let mut edit = RoomEdit::new(self, Arc::new(room), None, pending);
        append(&mut edit, sender, &event).await?;
        let number = edit.delta.appended.first().map(|first| first.event.number);
        let room = Room {
            create: number.unwrap_or(EventNumber(0)),
            ..(**edit.room()).clone()
        };
        edit.delta.room = Arc::new(room);
        Ok(edit)
    }

    pub(super) fn random_room_id(&self) -> Result<OwnedRoomId, RoomError> {
        let opaque = self.runtime.entropy.alphanumeric(18);
        let id = RoomId::parse(format!("!{opaque}:{}", self.options.server_name));
        id.map_err(|error| RoomError::damaged(error.to_string()))
    }

    /// The id of the room that a create event makes. Two rooms with the same content made in the
    /// same millisecond would be the same: the later one takes a later time.
    async fn free_room_id(
        &self,
        rules: &'static Rules,
        sender: &UserId,
        event: &mut NewEvent,
        now: u64,
    ) -> Result<OwnedRoomId, RoomError> {
        for later in 0..MAX_SAME_ROOMS {
            event.timestamp = Some(now + later);
            let id = self.room_id_of(rules, sender, event)?;
            if self.room(&id).await?.is_none() {
                return Ok(id);
            }
        }
        Err(RoomError::Contended)
    }

    /// The id of the room that a create event makes. Sealing is pure, so sealing the same event
    /// again, as [`RoomEdit::append`] does, gives the same id; the time is fixed before.
    fn room_id_of(
        &self,
        rules: &'static Rules,
        sender: &UserId,
        event: &NewEvent,
    ) -> Result<OwnedRoomId, RoomError> {
        let proposal = Proposal {
            rules,
            room_id: None,
            sender,
            event,
            redacts: None,
            now: self.clock.unix_millis(),
            extremities: &[],
            state: &AuthState::default(),
        };
        let decided = proposal.decide(&self.options.server_name, &self.signing_key)?;
        Ok(decided.pdu.room_id().to_owned())
    }

    pub(super) async fn creators_of(
        &self,
        edit: &RoomEdit<'_>,
    ) -> Result<Vec<OwnedUserId>, RoomError> {
        let create = edit.state("m.room.create", "").await?;
        let content = create.and_then(|create| {
            let content: Value = create.pdu.content_as().ok()?;
            serde_json::from_value(content.get("additional_creators")?.clone()).ok()
        });
        Ok(content.unwrap_or_default())
    }

    /// The alias that the request wants, if it is free.
    async fn new_alias(&self, create: &CreateRoom) -> Result<Option<OwnedRoomAliasId>, RoomError> {
        let Some(localpart) = &create.alias_localpart else {
            return Ok(None);
        };
        let text = format!("#{localpart}:{}", self.options.server_name);
        let invalid = || RoomError::InvalidAlias(text.clone());
        if localpart.is_empty()
            || localpart.contains([':', '\0'])
            || localpart.contains(char::is_whitespace)
        {
            return Err(invalid());
        }
        let alias = RoomAliasId::parse(&text).map_err(|_| invalid())?;
        self.check_own_alias(&alias)?;
        if self.store.get(&ALIASES, &alias.as_str()).await?.is_some() {
            return Err(RoomError::AliasInUse(text));
        }
        Ok(Some(alias))
    }
}

/// Appends a first event. What the rules forbid here contradicts the request's other parts.
pub(super) async fn append(
    edit: &mut RoomEdit<'_>,
    sender: &UserId,
    event: &NewEvent,
) -> Result<(), RoomError> {
    match edit.append(sender, event, None).await {
        Ok(_) => Ok(()),
        Err(RoomError::Forbidden(why)) => {
            let why = format!("{} is not possible: {why}", event.event_type);
            Err(RoomError::InvalidRoomState(why))
        }
        Err(error) => Err(error),
    }
}

fn create_event(
    rules: &Rules,
    version: &RoomVersionId,
    sender: &UserId,
    mut content: Map<String, Value>,
    creators: &[OwnedUserId],
) -> NewEvent {
    content.insert("room_version".to_owned(), version.as_str().into());
    if rules.creators == homeserver_events::rules::CreatorRule::Content {
        content.insert("creator".to_owned(), sender.as_str().into());
    } else {
        content.remove("creator");
    }
    if creators_stand_above(rules) && !creators.is_empty() {
        content.insert("additional_creators".to_owned(), json!(creators));
    } else {
        content.remove("additional_creators");
    }
    NewEvent::of("m.room.create", Some(""), &Value::Object(content))
}

/// The state after the power levels and the alias: the preset's, `initial_state`, name and topic.
fn first_state(create: &CreateRoom) -> Vec<NewEvent> {
    let mut events = create.preset_state();
    let named = |kind: &str| match kind {
        "m.room.name" => create.name.is_some(),
        "m.room.topic" => create.topic.is_some(),
        _ => false,
    };
    let wanted = |event: &&crate::command::InitialState| {
        !(event.state_key.is_empty() && named(&event.event_type))
    };
    events.extend(
        create
            .initial_state
            .iter()
            .filter(wanted)
            .map(|event| NewEvent {
                event_type: event.event_type.clone(),
                state_key: Some(event.state_key.clone()),
                content: event.content.clone(),
                timestamp: None,
            }),
    );
    if let Some(name) = &create.name {
        events.push(NewEvent::of(
            "m.room.name",
            Some(""),
            &json!({ "name": name }),
        ));
    }
    if let Some(topic) = &create.topic {
        let content = json!({
            "topic": topic,
            "m.topic": { "m.text": [{ "body": topic }] },
        });
        events.push(NewEvent::of("m.room.topic", Some(""), &content));
    }
    events
}

//! What push rules look at beside the event.

use std::{collections::HashMap, sync::Arc};

use homeserver_events::{Pdu, PowerLevel, push::SenderPermission};
use homeserver_rooms::{Room, StateRoot, VisibleEvent};
use ruma::UserId;
use serde::Deserialize;

use crate::sync::{SyncError, pass::Pass};

/// What conditions of rules look at beside the event, by the state before it.
#[derive(Debug, Default)]
pub(super) struct Surroundings {
    known: HashMap<StateRoot, Arc<Around>>,
}

#[derive(Debug)]
pub(super) struct Around {
    pub(super) members: u64,
    pub(super) display_name: Option<String>,
    create: Option<Pdu>,
    power_levels: Option<Pdu>,
}

impl Surroundings {
    pub(super) async fn of(
        &mut self,
        pass: &Pass<'_>,
        room: &Arc<Room>,
        event: &VisibleEvent,
    ) -> Result<Arc<Around>, SyncError> {
        let root = event.state_before();
        if let Some(known) = self.known.get(&root) {
            return Ok(Arc::clone(known));
        }
        let rooms = &pass.engine.rooms;
        let at = event.position().unwrap_or(1).saturating_sub(1);
        let members = rooms.state_at(room.number, at).await?.joined;
        let state = |event_type: &'static str, key: &'static str| async move {
            rooms.state_value(room, root, event_type, key).await
        };
        let create = state("m.room.create", "").await?;
        let power = state("m.room.power_levels", "").await?;
        let user = pass.session.user.as_str();
        let member = rooms.state_value(room, root, "m.room.member", user).await?;
        let wanted: Vec<_> = [create, power, member].into_iter().flatten().collect();
        // The reader was in the room: its state is the reader's to see, also where the history
        // before that is not.
        let events = match rooms.state_root_for(&pass.reader, room).await? {
            Some(state) => rooms.state_events(&state, &wanted).await?,
            None => Vec::new(),
        };
        let found: HashMap<_, _> = events
            .into_iter()
            .map(|event| (event.number(), event))
            .collect();
        let pdu = |number: Option<_>| Some(found.get(&number?)?.pdu());
        let around = Arc::new(Around {
            members,
            display_name: pdu(member).and_then(display_name),
            create: pdu(create).cloned(),
            power_levels: pdu(power).cloned(),
        });
        self.known.insert(root, Arc::clone(&around));
        Ok(around)
    }
}

fn display_name(member: &Pdu) -> Option<String> {
    #[derive(Deserialize)]
    struct Content {
        displayname: Option<String>,
    }
    member.content_as::<Content>().ok()?.displayname
}

impl Around {
    pub(super) fn permission(&self, room: &Room, sender: &UserId) -> SenderPermission {
        match &self.create {
            Some(create) => {
                SenderPermission::new(room.rules, create, self.power_levels.clone(), sender)
            }
            None => SenderPermission {
                sender: PowerLevel::Finite(0),
                power_levels: None,
            },
        }
    }
}

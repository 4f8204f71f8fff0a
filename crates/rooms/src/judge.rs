//! What is decided about an event of another server without the state of its room: whether its own
//! auth events allow it. Pure; what is looked at is handed in.

use std::sync::Arc;

use homeserver_events::{
    Pdu, RejectReason, Rules, StatusKind,
    auth::{self, AuthEvent},
};

use crate::{decide::AuthState, event::StoredEvent};

/// Judges an event by its auth events, all of which are in `named`, and by the create event of its
/// room. (Server-server API, "Checks performed on receipt of a PDU", check 4.)
pub(crate) fn by_auth_events(
    rules: &'static Rules,
    create: &Arc<StoredEvent>,
    pdu: &Pdu,
    named: &[Arc<StoredEvent>],
) -> Result<(), RejectReason> {
    // The rules alone allow any create event of the server that the room id names.
    if pdu.event_type() == "m.room.create" && pdu.event_id() != create.pdu.event_id() {
        return Err(RejectReason::AuthEvents);
    }
    let lookup = |id: &ruma::EventId| {
        let mut events = named.iter().chain([create]);
        let found = events.find(|event| event.pdu.event_id() == id)?;
        Some(match found.status.kind() {
            StatusKind::Rejected | StatusKind::PartialRejected => {
                AuthEvent::Rejected(found.pdu.clone())
            }
            _ => AuthEvent::Allowed(found.pdu.clone()),
        })
    };
    auth::check_auth_events(rules, pdu, &lookup).map_err(|_| RejectReason::AuthEventSelection)?;
    let mut state = AuthState::default();
    for event in named.iter().chain([create]) {
        state.push(Arc::clone(event));
    }
    let checked = state.check(rules, pdu);
    checked.map_err(|_| RejectReason::AuthEvents)
}

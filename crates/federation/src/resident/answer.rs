//! The answers to events that were taken: stored events are copied as they stand.

use homeserver_events::Pdu;
use homeserver_rooms::Handover;
use ruma::ServerName;

use crate::written::Frame;

/// How an answer is wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `[200, {…}]`, of the first version of these endpoints.
    Pair,
    /// The object alone.
    Object,
}

/// What stands around the state and the auth chain in the answer to a join.
pub(super) fn join_frame(handover: &Handover, origin: &ServerName, form: Form) -> Frame {
    let servers = if handover.members_omitted {
        let names: Vec<_> = handover.servers.iter().map(|name| quoted(name)).collect();
        format!(",\"servers_in_room\":[{}]", names.join(","))
    } else {
        String::new()
    };
    let (before, end) = match form {
        Form::Pair => ("[200,", "]}]"),
        Form::Object => ("", "]}"),
    };
    let state = format!(
        "{before}{{\"origin\":{},\"members_omitted\":{}{servers},\"event\":{},\"state\":[",
        quoted(origin),
        handover.members_omitted,
        handover.event.json_str(),
    );
    Frame {
        state,
        chain: "],\"auth_chain\":[",
        end,
        ids: false,
    }
}

/// A server name as JSON: it has no character that would have to be escaped.
fn quoted(server: &ServerName) -> String {
    format!("\"{server}\"")
}

/// The answer to a knock.
pub fn knock_answer(state: &[Pdu]) -> String {
    format!("{{\"knock_room_state\":[{}]}}", listed(state, true))
}

/// Events in a list, after others unless they are the first.
pub(super) fn listed(events: &[Pdu], first: bool) -> String {
    let mut text = String::with_capacity(events.iter().map(|e| e.json().len() + 1).sum());
    for (at, event) in events.iter().enumerate() {
        if !first || at > 0 {
            text.push(',');
        }
        text.push_str(event.json_str());
    }
    text
}

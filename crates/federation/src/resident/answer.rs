//! The answers to events that were taken, written as they are read: stored events are copied as
//! they stand.

use bytes::Bytes;
use futures_util::{Stream, stream};
use homeserver_events::Pdu;
use homeserver_rooms::{Handover, RoomError};
use ruma::ServerName;

/// How an answer is wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `[200, {…}]`, of the first version of these endpoints.
    Pair,
    /// The object alone.
    Object,
}

impl Form {
    /// What stands before the object.
    pub const fn before(self) -> &'static str {
        match self {
            Self::Pair => "[200,",
            Self::Object => "",
        }
    }

    /// What stands after the object.
    pub const fn after(self) -> &'static str {
        match self {
            Self::Pair => "]",
            Self::Object => "",
        }
    }
}

/// What is to be written next.
enum Next {
    Head,
    State { first: bool },
    Chain { first: bool },
    Nothing,
}

/// The answer to a join, in pieces. It breaks off where the database cannot be read.
pub fn join_answer(
    handover: Handover,
    origin: &ServerName,
    form: Form,
) -> impl Stream<Item = Result<Bytes, RoomError>> + Send + use<> {
    let head = head(&handover, origin, form);
    let start = (handover, Next::Head, Some(head));
    stream::try_unfold(start, move |(mut handover, next, mut head)| async move {
        let (piece, next) = match next {
            Next::Head => (head.take().unwrap_or_default(), Next::State { first: true }),
            Next::State { first } => {
                let events = handover.state().await?;
                if events.is_empty() {
                    let between = "],\"auth_chain\":[".to_owned();
                    (between, Next::Chain { first: true })
                } else {
                    (listed(&events, first), Next::State { first: false })
                }
            }
            Next::Chain { first } => {
                let events = handover.auth_chain().await?;
                if events.is_empty() {
                    (format!("]}}{}", form.after()), Next::Nothing)
                } else {
                    (listed(&events, first), Next::Chain { first: false })
                }
            }
            Next::Nothing => return Ok(None),
        };
        Ok(Some((Bytes::from(piece), (handover, next, head))))
    })
}

fn head(handover: &Handover, origin: &ServerName, form: Form) -> String {
    let servers = if handover.members_omitted {
        let names: Vec<_> = handover.servers.iter().map(|name| quoted(name)).collect();
        format!(",\"servers_in_room\":[{}]", names.join(","))
    } else {
        String::new()
    };
    format!(
        "{}{{\"origin\":{},\"members_omitted\":{}{servers},\"event\":{},\"state\":[",
        form.before(),
        quoted(origin),
        handover.members_omitted,
        handover.event.json_str(),
    )
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

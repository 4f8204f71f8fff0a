//! Reading the body of a transaction: how much it may hold, and its parts, each by itself.
//!
//! Specification: server-server API, "Transactions".

use bytes::Bytes;
use homeserver_events::{Pdu, PduError, RoomVersion, Rules};
use ruma::{OwnedEventId, OwnedRoomId, RoomId};
use serde::Deserialize;
use serde_json::value::RawValue;

/// Events in one transaction at most.
pub const MAX_PDUS: usize = 50;
/// EDUs in one transaction at most.
pub const MAX_EDUS: usize = 100;
/// Bytes of the body of one at most: fifty of the largest events with as much again beside them,
/// and a hundred EDUs of ordinary size.
pub const MAX_TRANSACTION: usize = 10 * 1024 * 1024;
/// Bytes of one EDU at most: as much as an event may have. A row holds it.
pub const MAX_EDU: usize = 64 * 1024;

/// Why a body is no transaction.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// Not JSON.
    #[error("the body is not JSON: {0}")]
    NotJson(String),
    /// Not an object with lists.
    #[error("the body is not a transaction: {0}")]
    Form(String),
    /// More than [`MAX_PDUS`].
    #[error("a transaction has at most {MAX_PDUS} PDUs")]
    TooManyPdus,
    /// More than [`MAX_EDUS`].
    #[error("a transaction has at most {MAX_EDUS} EDUs")]
    TooManyEdus,
}

/// The parts of a transaction, each as it came.
#[derive(Debug, Default)]
pub(crate) struct Transaction {
    pub(crate) pdus: Vec<Bytes>,
    pub(crate) edus: Vec<ReceivedEdu>,
}

/// An EDU whose content was not looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReceivedEdu {
    pub(crate) edu_type: String,
    pub(crate) content: Bytes,
}

#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(borrow, default)]
    pdus: Vec<&'a RawValue>,
    #[serde(borrow, default)]
    edus: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct RawEdu<'a> {
    edu_type: String,
    #[serde(borrow)]
    content: &'a RawValue,
}

impl Transaction {
    /// Reads a body. EDUs that are malformed or too large are left out; so is nothing else.
    pub(crate) fn read(body: &Bytes) -> Result<Self, BodyError> {
        let begins = body.iter().find(|byte| !byte.is_ascii_whitespace());
        if begins != Some(&b'{') {
            // A list would be taken for a struct of its entries.
            return match serde_json::from_slice::<serde::de::IgnoredAny>(body) {
                Ok(_) => Err(BodyError::Form("not an object".to_owned())),
                Err(error) => Err(BodyError::NotJson(error.to_string())),
            };
        }
        let raw: Raw<'_> = serde_json::from_slice(body).map_err(|error| {
            if error.is_data() {
                BodyError::Form(error.to_string())
            } else {
                BodyError::NotJson(error.to_string())
            }
        })?;
        if raw.pdus.len() > MAX_PDUS {
            return Err(BodyError::TooManyPdus);
        }
        if raw.edus.len() > MAX_EDUS {
            return Err(BodyError::TooManyEdus);
        }
        let cut = |raw: &RawValue| body.slice_ref(raw.get().as_bytes());
        let edus = raw.edus.into_iter().filter_map(|edu| {
            let edu: RawEdu<'_> = serde_json::from_str(edu.get()).ok()?;
            let size = edu.content.get().len();
            (size <= MAX_EDU).then(|| ReceivedEdu {
                edu_type: edu.edu_type,
                content: cut(edu.content),
            })
        });
        Ok(Self {
            edus: edus.collect(),
            pdus: raw.pdus.into_iter().map(cut).collect(),
        })
    }
}

/// The room that an event says it belongs to. That of a create event without one follows from its
/// id, and such a room is never known before it.
pub(crate) fn room_of(pdu: &[u8]) -> Option<OwnedRoomId> {
    #[derive(Deserialize)]
    struct Header {
        room_id: String,
    }
    let header: Header = serde_json::from_slice(pdu).ok()?;
    RoomId::parse(header.room_id).ok()
}

/// The id of an event, computed as far as it is one of this version.
pub(crate) fn id_of(pdu: &[u8], rules: &'static Rules) -> Result<OwnedEventId, PduError> {
    Ok(Pdu::parse(pdu, rules)?.event_id().to_owned())
}

/// The id of an event of a room that is not known: as the versions that such a room probably has
/// would compute it. Names the event in the answer, and serves for nothing else.
pub(crate) fn probable_id(pdu: &[u8], room: Option<&RoomId>) -> Option<OwnedEventId> {
    #[derive(Deserialize)]
    struct Header {
        event_id: Option<OwnedEventId>,
    }
    let header: Header = serde_json::from_slice(pdu).ok()?;
    if header.event_id.is_some() {
        return header.event_id;
    }
    let with_domain = room.is_some_and(|room| room.server_name().is_some());
    let version = if with_domain {
        RoomVersion::V11
    } else {
        RoomVersion::V12
    };
    id_of(pdu, version.rules()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<Transaction, BodyError> {
        Transaction::read(&Bytes::copy_from_slice(body.as_bytes()))
    }

    fn many(list: &str, count: usize) -> String {
        format!(r#"{{"{list}":[{}]}}"#, vec!["{}"; count].join(","))
    }

    #[test]
    fn the_parts_are_cut_out_as_they_came() {
        let body = r#" {"origin":"a","pdus":[{"a": 1}, 7],"edus":[{"edu_type":"m.x","content":{"b":[2]},"z":0}]}"#;
        let read = read(body).unwrap();
        assert_eq!(read.pdus, [r#"{"a": 1}"#, "7"]);
        let edu = ReceivedEdu {
            edu_type: "m.x".to_owned(),
            content: Bytes::from_static(br#"{"b":[2]}"#),
        };
        assert_eq!(read.edus, [edu]);
    }

    #[test]
    fn there_may_be_so_many_and_no_more() {
        assert_eq!(read(&many("pdus", MAX_PDUS)).unwrap().pdus.len(), MAX_PDUS);
        assert!(read(&many("edus", MAX_EDUS)).is_ok());
        let error = |body: &str| read(body).unwrap_err();
        assert_eq!(error(&many("pdus", MAX_PDUS + 1)), BodyError::TooManyPdus);
        assert_eq!(error(&many("edus", MAX_EDUS + 1)), BodyError::TooManyEdus);
        assert!(read("{}").unwrap().pdus.is_empty());
    }

    #[test]
    fn what_is_no_transaction_is_refused() {
        for body in ["", "{", "nul", r#"{"pdus":[{]}"#] {
            let error = read(body).unwrap_err();
            assert!(matches!(error, BodyError::NotJson(_)), "{body}: {error}");
        }
        for body in [
            "[]",
            "7",
            r#"{"pdus":{}}"#,
            r#"{"edus":null}"#,
            r#"{"pdus":1}"#,
        ] {
            let error = read(body).unwrap_err();
            assert!(matches!(error, BodyError::Form(_)), "{body}: {error}");
        }
    }

    #[test]
    fn a_malformed_edu_costs_only_itself() {
        let large = "x".repeat(MAX_EDU);
        let body = format!(
            r#"{{"pdus":[],"edus":[7,{{}},{{"edu_type":7,"content":{{}}}},
            {{"edu_type":"m.x","content":"{large}"}},{{"edu_type":"m.y","content":{{}}}}]}}"#
        );
        let read = read(&body).unwrap();
        assert_eq!(read.edus.len(), 1);
        assert_eq!(read.edus[0].edu_type, "m.y");
    }

    #[test]
    fn an_event_of_an_unknown_room_is_named_all_the_same() {
        let named = probable_id(br#"{"event_id":"$a:b.example"}"#, None);
        assert_eq!(named.unwrap(), "$a:b.example");
        assert_eq!(probable_id(b"{}", None), None);
        assert_eq!(room_of(br#"{"room_id":"!a:b"}"#).unwrap(), "!a:b");
        for none in ["7", "{}", r#"{"room_id":7}"#, r#"{"room_id":"x"}"#] {
            assert_eq!(room_of(none.as_bytes()), None);
        }
    }
}

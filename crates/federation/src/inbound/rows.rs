//! The rows of what was taken and not worked off yet.

use ruma::{OwnedEventId, OwnedServerName};
use serde::{Deserialize, Serialize};

/// An event that a server was answered for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WaitingPdu {
    /// Who sent it.
    pub(crate) origin: OwnedServerName,
    /// Its id, computed here.
    pub(crate) event_id: OwnedEventId,
    /// Whether its signatures were checked.
    pub(crate) verified: bool,
    /// Times that it could not be judged.
    pub(crate) attempts: u8,
    /// Canonical, without `unsigned`.
    pub(crate) json: String,
}
homeserver_storage::row!(WaitingPdu, 1);

/// An EDU that a server was answered for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WaitingEdu {
    /// `m.direct_to_device` or another of those that are kept.
    pub(crate) edu_type: String,
    /// Its content as it came.
    pub(crate) content: String,
    /// Times that it could not be worked off.
    pub(crate) attempts: u8,
}
homeserver_storage::row!(WaitingEdu, 1);

/// What a transaction was answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AnswerRow {
    /// SHA-256 of its body.
    pub(crate) body: [u8; 32],
    /// The body of the answer.
    pub(crate) answer: String,
}
homeserver_storage::row!(AnswerRow, 1);

/// An event that was refused since too many wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NotedRow {
    /// Who sent it.
    pub(crate) origin: OwnedServerName,
}
homeserver_storage::row!(NotedRow, 1);

#[cfg(test)]
mod tests {
    use homeserver_storage::Row as _;
    use ruma::{owned_event_id, owned_server_name};

    use super::*;

    fn hex(bytes: &[u8]) -> String {
        let byte = |byte: &u8| format!("{byte:02x}");
        bytes.iter().map(byte).collect::<Vec<_>>().concat()
    }

    #[test]
    fn rows_keep_their_form() {
        let pdu = WaitingPdu {
            origin: owned_server_name!("a.example"),
            event_id: owned_event_id!("$e"),
            verified: true,
            attempts: 3,
            json: "{}".to_owned(),
        };
        let edu = WaitingEdu {
            edu_type: "m.x".to_owned(),
            content: "{}".to_owned(),
            attempts: 1,
        };
        let answer = AnswerRow {
            body: [7; 32],
            answer: "{}".to_owned(),
        };
        let noted = NotedRow {
            origin: owned_server_name!("a.example"),
        };
        let rows = [pdu.encode(), edu.encode(), answer.encode(), noted.encode()];
        assert_eq!(WaitingPdu::decode(&rows[0]).unwrap(), pdu);
        assert_eq!(WaitingEdu::decode(&rows[1]).unwrap(), edu);
        assert_eq!(AnswerRow::decode(&rows[2]).unwrap(), answer);
        assert_eq!(NotedRow::decode(&rows[3]).unwrap(), noted);
        let rows = rows.map(|row| hex(&row)).join("\n");
        insta::assert_snapshot!(rows, @r"
        0109612e6578616d706c650224650103027b7d
        01036d2e78027b7d01
        010707070707070707070707070707070707070707070707070707070707070707027b7d
        0109612e6578616d706c65
        ");
    }
}

//! A user of this server has proven that a third-party invite to a room elsewhere is meant for them:
//! the server of whoever sent it makes an invite of that.
//!
//! Specification: server-server API, "Third-party invites".

use ruma::{OwnedRoomId, OwnedUserId};
use serde_json::{json, value::RawValue};

use super::{Memberships, TEMPLATE_BODY, usual};
use crate::{Call, CallError, Path};

/// What an identity server signed for a user.
#[derive(Clone, Debug)]
pub struct Proof {
    /// The room of the third-party invite.
    pub room: OwnedRoomId,
    /// Who sent it.
    pub inviter: OwnedUserId,
    /// The user it is meant for.
    pub user: OwnedUserId,
    /// The signed block.
    pub signed: Box<RawValue>,
}

impl Memberships {
    /// Has the server of the inviter invite the user. The invite comes like any other, before the
    /// answer.
    ///
    /// # Errors
    /// When that server does not.
    pub async fn exchange(&self, proof: &Proof) -> Result<(), CallError> {
        let body = json!({
            "type": "m.room.member",
            "room_id": proof.room,
            "sender": proof.inviter,
            "state_key": proof.user,
            "content": {
                "membership": "invite",
                "third_party_invite": {
                    // The other server knows by which name the user was invited.
                    "display_name": proof.user.localpart(),
                    "signed": proof.signed,
                },
            },
        });
        let path = Path::v1("exchange_third_party_invite").segment(&proof.room);
        let call = Call::put(path, body.to_string()).limits(usual(TEMPLATE_BODY));
        let peers = &self.inner.peers;
        peers
            .ask(proof.inviter.server_name(), call.urgent())
            .await?;
        Ok(())
    }
}

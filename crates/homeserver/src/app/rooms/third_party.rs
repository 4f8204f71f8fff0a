//! Third-party invites: people are invited whose user is not known, and prove later that they are
//! meant.
//!
//! Specification: client-server API, "Third-party invites"; server-server API, "Third-party invites".

use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use homeserver_events::auth::proving_keys;
use homeserver_federation::{
    IdentityError, ResidentError,
    identity::{Addressee, Found, Offer, StoredInvite},
    is_same_server,
    membership::Proof,
};
use homeserver_rooms::{
    Membership, MembershipChange, NewEvent, Room, RoomAction, RoomCommand, RoomError,
};
use homeserver_users::AccountState;
use ruma::{OwnedServerName, OwnedUserId, RoomId, UserId};
use serde::Deserialize;
use serde_json::{
    json,
    value::{RawValue, to_raw_value},
};

use super::change::{ChangeError, RoomChanges};
use crate::app::session::Session;

/// Third-party invites into one new room: each costs some requests to a server that the client names.
pub(crate) const MAX_THIRD_PARTY_INVITES: usize = 10;

/// Third-party invites that one address may have been waiting for: each may cost a request to a server
/// that the identity server names.
const MAX_PROOFS: usize = 20;

/// How many of them are worked on at once.
const PROOFS_AT_ONCE: usize = 4;

/// Addresses at once of which it is said that they belong to somebody here. Anybody may say so without
/// a signature, and each has other servers asked.
pub(super) const BONDS_AT_ONCE: usize = 4;

/// Bytes of a signed block: it becomes part of an event.
const MAX_SIGNED: usize = 8 * 1024;

/// A third-party invite that another server wants to be an invite of one of its users.
#[derive(Debug)]
pub(crate) struct Exchange {
    /// Who asks.
    pub(crate) origin: OwnedServerName,
    /// What it says.
    pub(crate) proof: Proof,
}

impl RoomChanges {
    /// Invites somebody who is known by an address: their user, if the identity server knows one, and
    /// otherwise whoever proves to be meant.
    pub(crate) async fn invite_by_address(
        &self,
        session: &Session,
        room: &RoomId,
        addressee: &Addressee,
        is_direct: bool,
    ) -> Result<(), ChangeError> {
        let here = self.rooms.room(room).await?;
        let here = here.ok_or(RoomError::UnknownRoom)?;
        // The identity server may write to people: not on behalf of those who may not invite.
        self.rooms
            .check_third_party_invite(&here, &session.user)
            .await?;
        let invite = self.stored_invite(&here, &session.user).await?;
        let action = match self.identity.find_or_store(addressee, &invite).await? {
            Found::User(user) => RoomAction::Membership {
                room: room.to_owned(),
                change: MembershipChange::Invite {
                    profile: self.profile_of(&user).await?,
                    user,
                    is_direct,
                },
                reason: None,
            },
            Found::Nobody(offer) => RoomAction::Send {
                room: room.to_owned(),
                event: event_of(offer),
            },
        };
        self.act(session, action).await?;
        Ok(())
    }

    /// Invites people into a room that was just made, which stays whether or not they can be invited.
    pub(crate) async fn invite_by_addresses(
        &self,
        session: &Session,
        room: &RoomId,
        (addressees, is_direct): (&[Addressee], bool),
    ) {
        // One after the other: they change the same room.
        for addressee in addressees {
            let invited = self.invite_by_address(session, room, addressee, is_direct);
            if let Err(error) = invited.await {
                tracing::info!(%room, %error, "somebody was not invited to a new room by an address");
            }
        }
    }

    /// Fails if people cannot be invited so, whatever an identity server says.
    pub(crate) fn check_addressees(&self, addressees: &[Addressee]) -> Result<(), ChangeError> {
        if addressees.len() > MAX_THIRD_PARTY_INVITES {
            let why = "too many people are invited by their addresses";
            return Err(IdentityError::Request(why).into());
        }
        for addressee in addressees {
            self.identity.check(addressee)?;
        }
        Ok(())
    }

    /// What an identity server is told of an invite.
    async fn stored_invite(
        &self,
        room: &Arc<Room>,
        sender: &UserId,
    ) -> Result<StoredInvite, ChangeError> {
        let room = self.rooms.description(room, self.rooms.durable()).await?;
        let profile = self.profile_of(sender).await?;
        Ok(StoredInvite {
            room_id: room.room.id.to_string(),
            sender: sender.to_string(),
            sender_display_name: profile.displayname,
            sender_avatar_url: profile.avatar_url,
            room_alias: room.canonical_alias.map(|alias| alias.to_string()),
            room_name: room.name,
            room_avatar_url: room.avatar_url,
            room_join_rules: room.join_rule,
            room_type: room.room_type,
        })
    }

    /// An identity server says that an address belongs to a user of this server now, for whom these
    /// proofs are. It is believed nothing: each proof has to be signed by a key that its room knows.
    ///
    /// # Errors
    /// When there is no such user, and when too much is said at once.
    pub(crate) async fn bound(&self, user: &UserId, proofs: Vec<Proof>) -> Result<(), ChangeError> {
        let account = self.accounts.by_id(user).await?;
        if account.is_none_or(|account| account.state != AccountState::Active) {
            return Err(ChangeError::BadContent("there is no such user here"));
        }
        let turn = self.bonds.try_acquire();
        let _turn = turn.map_err(|_| IdentityError::Busy)?;
        let proofs = proofs.into_iter().take(MAX_PROOFS);
        let proofs = proofs.filter(|proof| proof.user == user);
        stream::iter(proofs)
            .for_each_concurrent(PROOFS_AT_ONCE, async |proof| {
                if let Err(error) = self.accept_for(&proof).await {
                    let room = &proof.room;
                    tracing::info!(%room, %error, "a third-party invite did not become an invite");
                }
            })
            .await;
        Ok(())
    }

    /// Makes an invite of a proof that a user of this server did not show themselves.
    async fn accept_for(&self, proof: &Proof) -> Result<(), ChangeError> {
        self.check_invite(&proof.user).await?;
        self.accept(proof).await
    }

    /// Makes an invite of a proof that a user shows who joins. Who is in the room shows it in vain.
    pub(super) async fn show_proof(
        &self,
        user: &UserId,
        room: &RoomId,
        signed: Box<RawValue>,
    ) -> Result<(), ChangeError> {
        let standing = self.rooms.standing_of(user, room).await?;
        if standing.is_some_and(|now| now.membership.membership == Membership::Join) {
            return Ok(());
        }
        let inviter = read_signed(&signed)?.sender.ok_or_else(not_proven)?;
        let proof = Proof {
            room: room.to_owned(),
            inviter,
            user: user.to_owned(),
            signed,
        };
        self.accept(&proof).await
    }

    /// Makes an invite of a proof for a user of this server, here or where the inviter is.
    async fn accept(&self, proof: &Proof) -> Result<(), ChangeError> {
        if read_signed(&proof.signed)?.mxid != proof.user {
            return Err(not_proven());
        }
        let here = self.rooms.room(&proof.room).await?;
        if let Some(here) = here
            && self.rooms.is_resident(&here).await?
        {
            return self.prove(proof).await;
        }
        self.memberships
            .exchange(proof)
            .await
            .map_err(|error| ChangeError::Invite(error.into()))
    }

    /// Makes an invite of a proof that another server hands over for one of its users.
    ///
    /// # Errors
    /// When it proves nothing, or is none of that server's business.
    pub(crate) async fn exchange(&self, wanted: Exchange) -> Result<(), ExchangeError> {
        let Exchange { origin, proof } = wanted;
        if !is_same_server(proof.user.server_name(), &origin) {
            return Err(ResidentError::NotYours.into());
        }
        self.resident.room(&origin, &proof.room).await?;
        if !self.rooms.is_local(&proof.inviter) {
            return Err(ResidentError::NotAllowed.into());
        }
        Ok(self.prove(&proof).await?)
    }

    /// Makes an invite of a proof in a room of this server.
    async fn prove(&self, proof: &Proof) -> Result<(), ChangeError> {
        self.check_proof(&proof.room, &proof.user, &proof.signed)
            .await?;
        let change = MembershipChange::Prove {
            user: proof.user.clone(),
            profile: self.profile_of(&proof.user).await?,
            signed: proof.signed.clone(),
        };
        let action = RoomAction::Membership {
            room: proof.room.clone(),
            change,
            reason: None,
        };
        self.carry_out(RoomCommand::new(proof.inviter.clone(), action))
            .await?;
        Ok(())
    }

    /// Fails unless a proof for a user is signed by a key of its third-party invite that still holds:
    /// only the server that lets somebody in asks so, others look at the signature alone.
    ///
    /// # Errors
    /// When it is not, or nobody can tell.
    async fn check_proof(
        &self,
        room: &RoomId,
        user: &UserId,
        signed: &RawValue,
    ) -> Result<(), ChangeError> {
        let here = self.rooms.room(room).await?;
        let here = here.ok_or(RoomError::UnknownRoom)?;
        let block = read_signed(signed)?;
        if block.mxid != user {
            return Err(not_proven());
        }
        let offer = self.rooms.third_party_invite(&here, &block.token).await?;
        let keys = offer.map_or(Vec::new(), |offer| proving_keys(&offer, signed));
        let mut failure = None;
        for key in keys {
            let Some(url) = key.validity_url.filter(|url| !url.is_empty()) else {
                return Ok(());
            };
            match self.identity.is_valid(&url, &key.public_key).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.map_or_else(not_proven, ChangeError::from))
    }
}

/// Why another server's proof is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    /// It is none of its business.
    #[error(transparent)]
    Resident(#[from] ResidentError),
    /// It proves nothing, or the room does not allow it.
    #[error(transparent)]
    Change(#[from] ChangeError),
}

/// What of a signed block is looked at here.
#[derive(Deserialize)]
struct Signed {
    mxid: OwnedUserId,
    token: String,
    /// Who sent the third-party invite, where whoever shows the block does not say so beside it.
    sender: Option<OwnedUserId>,
}

fn read_signed(signed: &RawValue) -> Result<Signed, ChangeError> {
    if signed.get().len() > MAX_SIGNED {
        return Err(ChangeError::BadContent("the signed block is too large"));
    }
    serde_json::from_str(signed.get())
        .map_err(|_| ChangeError::BadContent("the signed block lacks a user or a token"))
}

fn not_proven() -> ChangeError {
    let why = "that the third-party invite is meant for this user is not proven";
    RoomError::Forbidden(why.to_owned()).into()
}

/// The event of a third-party invite.
fn event_of(offer: Offer) -> NewEvent {
    let first = offer.public_keys.first();
    let content = json!({
        "display_name": offer.display_name,
        "public_key": first.map(|key| &key.public_key),
        "key_validity_url": first.map(|key| &key.key_validity_url),
        "public_keys": offer.public_keys,
    });
    NewEvent {
        event_type: "m.room.third_party_invite".to_owned(),
        state_key: Some(offer.token),
        content: to_raw_value(&content).unwrap_or_else(|_| RawValue::NULL.to_owned()),
        timestamp: None,
    }
}

//! Membership events that pass between servers before they are part of a room: templates for users
//! of other servers, whom they may be accepted from, and invites that another server signs first.
//!
//! Everything here is decided on a tip that is on disk; nothing is appended. What comes back signed
//! is received like any other event.
//!
//! Specification: server-server API, "Joining Rooms", "Knocking upon a room", "Inviting to a room",
//! "Leaving Rooms".

use std::sync::Arc;

use homeserver_events::{Handshake, Pdu, StatusKind, Step, canonical};
use ruma::{EventId, UserId};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    Rooms,
    command::{MembershipChange, NewEvent, RoomAction, RoomCommand},
    commands::membership::{VOUCHER, content, member_event},
    edit::{RoomEdit, member::STRIPPED},
    error::RoomError,
    live::Wants,
    members::MEMBER,
    room::Room,
    rows::Membership,
    tables::SERVER_COUNTS,
    visible::membership_of,
};

/// An event of this server that is sealed and not yet part of its room.
#[derive(Clone, Debug)]
pub struct Proposed {
    /// The room.
    pub room: Arc<Room>,
    /// The invite. To be received when the invited user's server has signed it.
    pub event: Pdu,
    /// What the invited user's server is told of the room.
    pub room_state: Vec<Pdu>,
}

/// An action that invites a user of another server.
enum Elsewhere<'a> {
    /// By this event.
    Event(&'a ruma::RoomId, NewEvent),
    /// By the event that follows from a proof.
    Proof(&'a ruma::RoomId),
}

/// A membership event of another server's user that this server stands by.
#[derive(Clone, Debug)]
pub enum Admitted {
    /// It has this server's signature now. The other signatures are not checked yet.
    Signed(Pdu),
    /// It is part of the room already, as this.
    Before(Pdu),
}

impl Rooms {
    /// Whether a user of this server is joined to the room now.
    pub async fn is_resident(&self, room: &Room) -> Result<bool, RoomError> {
        let key = (room.number.0, self.options.server_name.as_str());
        let joined = self.store.get(&SERVER_COUNTS, &key).await?;
        Ok(joined.is_some_and(crate::rows::JoinedUsers::present))
    }

    /// The membership event by which a user of another server joins, leaves or knocks, for that
    /// server to complete and sign: a JSON object.
    ///
    /// # Errors
    /// When the room does not let the user do so now.
    pub async fn membership_template(
        &self,
        room: &Arc<Room>,
        user: &UserId,
        step: Step,
    ) -> Result<String, RoomError> {
        let live = self.live.room(room.number);
        let _place = live.queue()?;
        let mut tip = live.tip(&self.store, Wants::Settled).await?;
        let (head, pending) = tip.parts();
        let edit = RoomEdit::new(self, Arc::clone(room), Some(head), pending);
        let mut content = Map::new();
        content.insert("membership".to_owned(), step.membership().into());
        if step == Step::Join
            && let Some(voucher) = self.voucher_for_guest(&edit, user).await?
        {
            content.insert(VOUCHER.to_owned(), voucher.as_str().into());
        }
        let template = edit.template(user, &member_event(user, content)).await?;
        Ok(canonical::to_string(&template))
    }

    /// Signs the event of a handshake, if the room lets its user do this now, and for a join that
    /// names a user of this server as the one who vouches, if it may be vouched for.
    ///
    /// # Errors
    /// When it is not the event that the handshake says, or not allowed.
    pub async fn admit(
        &self,
        room: &Arc<Room>,
        event: &Pdu,
        handshake: &Handshake<'_>,
    ) -> Result<Admitted, RoomError> {
        let wrong = |why: &dyn std::fmt::Display| RoomError::NotTheEvent(why.to_string());
        handshake.check(event).map_err(|why| wrong(&why))?;
        if let Some(before) = self.accepted(room, event.event_id()).await? {
            // Where servers choose ids, another event may have this one.
            handshake.check(&before).map_err(|why| wrong(&why))?;
            self.still_in(room, &before, handshake.step).await?;
            return Ok(Admitted::Before(before));
        }
        let live = self.live.room(room.number);
        let _place = live.queue()?;
        let mut tip = live.tip(&self.store, Wants::Settled).await?;
        let (head, pending) = tip.parts();
        let edit = RoomEdit::new(self, Arc::clone(room), Some(head), pending);
        edit.check_now(event).await?;
        if handshake.step == Step::Join && self.vouches(room, event) {
            self.voucher_for_guest(&edit, event.sender()).await?;
        }
        drop(tip);
        let signed = handshake.co_sign(event, &self.signing_key);
        signed.map(Admitted::Signed).map_err(|why| wrong(&why))
    }

    /// Whether the room allows an event by its state now, whatever the event follows.
    ///
    /// # Errors
    /// When that cannot be told.
    pub async fn allows_now(&self, room: &Arc<Room>, event: &Pdu) -> Result<bool, RoomError> {
        let live = self.live.room(room.number);
        let _place = live.queue()?;
        let mut tip = live.tip(&self.store, Wants::Settled).await?;
        let (head, pending) = tip.parts();
        let edit = RoomEdit::new(self, Arc::clone(room), Some(head), pending);
        match edit.check_now(event).await {
            Ok(()) => Ok(true),
            Err(RoomError::Forbidden(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Refuses to answer a handshake again whose user was put out of the room since: what the answer
    /// tells is not for them any more.
    async fn still_in(&self, room: &Room, event: &Pdu, step: Step) -> Result<(), RoomError> {
        let root = self.state_at(room.number, self.durable()).await?.root;
        let user = event.sender().as_str();
        let member = self.state_event(room, root, MEMBER, user).await?;
        let now = member.and_then(|member| membership_of(&member));
        let may_hear = match step {
            Step::Join => now == Some(Membership::Join),
            Step::Knock => matches!(
                now,
                Some(Membership::Knock | Membership::Invite | Membership::Join)
            ),
            // The answer tells nothing.
            Step::Leave | Step::Invite => true,
        };
        if may_hear {
            Ok(())
        } else {
            Err(RoomError::forbidden("the user is not in the room any more"))
        }
    }

    /// Whether a join names a user of this server as the one who vouches for it.
    fn vouches(&self, room: &Room, event: &Pdu) -> bool {
        let content = event.content_as::<Map<String, Value>>().unwrap_or_default();
        let voucher = content.get(VOUCHER).and_then(Value::as_str);
        let voucher = voucher.and_then(|voucher| UserId::parse(voucher).ok());
        let ours = |user: &UserId| user.server_name() == self.options.server_name;
        room.rules.restricted_joins && voucher.is_some_and(|user| ours(&user))
    }

    /// An event of the room that was accepted, as it is stored.
    async fn accepted(&self, room: &Room, id: &EventId) -> Result<Option<Pdu>, RoomError> {
        let Some(number) = self.events.number(room.number, id).await? else {
            return Ok(None);
        };
        let event = self.events.find(room, number).await?;
        let accepted = event.filter(|e| e.status.kind() == StatusKind::Accepted && e.is_placed());
        Ok(accepted.map(|event| event.pdu.clone()))
    }

    /// The event of a command that invites a user of another server, sealed for that server to
    /// sign; `None` of any other command, which is simply carried out.
    ///
    /// # Errors
    /// When the room does not let the sender invite.
    pub async fn propose(&self, command: &RoomCommand) -> Result<Option<Proposed>, RoomError> {
        let (room, event) = match self.invite_elsewhere(&command.action) {
            Some(Elsewhere::Event(room, event)) => (room, Some(event)),
            Some(Elsewhere::Proof(room)) => (room, None),
            None => return Ok(None),
        };
        let room = self.room(room).await?.ok_or(RoomError::UnknownRoom)?;
        let live = self.live.room(room.number);
        let _place = live.queue()?;
        let mut tip = live.tip(&self.store, Wants::Settled).await?;
        let (head, pending) = tip.parts();
        let edit = RoomEdit::new(self, Arc::clone(&room), Some(head), pending);
        let sender = &command.sender;
        let event = match event {
            Some(event) if edit.membership(sender).await? == Some(Membership::Join) => event,
            Some(_) => return Err(RoomError::forbidden("you are not in this room")),
            None => self.proven_event(&edit, command).await?,
        };
        let event = edit.propose(sender, &event).await?.pdu;
        let room_state = edit.shown_state(Some(sender)).await?;
        drop(tip);
        Ok(Some(Proposed {
            room,
            event,
            room_state,
        }))
    }

    /// The invite of a proof of a third-party invite.
    async fn proven_event(
        &self,
        edit: &RoomEdit<'_>,
        command: &RoomCommand,
    ) -> Result<NewEvent, RoomError> {
        let RoomAction::Membership {
            change:
                MembershipChange::Prove {
                    user,
                    profile,
                    signed,
                },
            ..
        } = &command.action
        else {
            return Err(RoomError::damaged("a command without a proof"));
        };
        let proven = self.proven_invite(edit, user, (profile, signed)).await?;
        if proven.inviter != command.sender {
            let why = "the third-party invite was sent by another user";
            return Err(RoomError::forbidden(why));
        }
        Ok(member_event(user, proven.content))
    }

    /// What an action does that invites a user of another server.
    fn invite_elsewhere<'a>(&self, action: &'a RoomAction) -> Option<Elsewhere<'a>> {
        let elsewhere = |user: &UserId| user.server_name() != self.options.server_name;
        match action {
            RoomAction::Membership {
                room,
                change:
                    MembershipChange::Invite {
                        user,
                        profile,
                        is_direct,
                    },
                reason,
            } if elsewhere(user) => {
                let mut content = content(Membership::Invite, profile, reason.as_deref());
                if *is_direct {
                    content.insert("is_direct".to_owned(), true.into());
                }
                Some(Elsewhere::Event(room, member_event(user, content)))
            }
            RoomAction::Membership {
                room,
                change: MembershipChange::Prove { user, .. },
                ..
            } if elsewhere(user) => Some(Elsewhere::Proof(room)),
            RoomAction::Send { room, event } if event.event_type == "m.room.member" => {
                #[derive(Deserialize)]
                struct Content {
                    membership: String,
                }
                let target = UserId::parse(event.state_key.as_deref()?).ok()?;
                let content: Content = serde_json::from_str(event.content.get()).ok()?;
                let invites = content.membership == "invite" && elsewhere(&target);
                invites.then(|| Elsewhere::Event(room, event.clone()))
            }
            _ => None,
        }
    }

    /// What the server of somebody who knocks is told of the room.
    pub async fn knock_state(&self, room: &Arc<Room>) -> Result<Vec<Pdu>, RoomError> {
        let live = self.live.room(room.number);
        let _place = live.queue()?;
        let mut tip = live.tip(&self.store, Wants::Settled).await?;
        let (head, pending) = tip.parts();
        let edit = RoomEdit::new(self, Arc::clone(room), Some(head), pending);
        edit.shown_state(None).await
    }
}

impl RoomEdit<'_> {
    /// Refuses an event that the state of the room does not allow.
    async fn check_now(&self, event: &Pdu) -> Result<(), RoomError> {
        let now = self.auth_state_in(self.delta.head.root, event).await?;
        let checked = now.check(self.room().rules, event);
        checked.map_err(|why| RoomError::forbidden(why.to_string()))
    }

    /// The events of the state that somebody who is not in the room is shown, and the member event
    /// of who invites.
    async fn shown_state(&self, inviter: Option<&UserId>) -> Result<Vec<Pdu>, RoomError> {
        let mut shown = Vec::with_capacity(STRIPPED.len() + 1);
        for event_type in STRIPPED {
            let event = self.state(event_type, "").await?;
            shown.extend(event.map(|event| event.pdu.clone()));
        }
        if let Some(inviter) = inviter {
            let member = self.state("m.room.member", inviter.as_str()).await?;
            shown.extend(member.map(|event| event.pdu.clone()));
        }
        Ok(shown)
    }
}

//! Which events of a transaction are taken, before anything is stored: those of rooms that this
//! server is in and that admit the origin, of the right form, not wrongly signed.
//!
//! Signatures count where the keys are at hand; nobody is asked while a server waits for its
//! answer.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use homeserver_events::{Pdu, canonical, hash};
use homeserver_rooms::{Room, RoomNumber};
use ruma::{OwnedEventId, OwnedRoomId, ServerName};

use super::{
    Inner, TransactionError,
    queue::{Place, Standing},
    transaction::{probable_id, room_of},
};
use crate::{Dropped, is_same_server};

/// An event that gets a row.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) room: Arc<Room>,
    pub(super) pdu: Pdu,
    pub(super) verified: bool,
    pub(super) place: Place,
}

/// What becomes of the events of a transaction.
#[derive(Debug, Default)]
pub(super) struct Admitted {
    pub(super) taken: Vec<Taken>,
    /// Refused for want of room, to be fetched later.
    pub(super) noted: Vec<(RoomNumber, OwnedEventId)>,
    /// By event id: nothing, or what is wrong.
    results: BTreeMap<OwnedEventId, Option<String>>,
}

impl Admitted {
    /// The body of the answer.
    pub(super) fn answer(&self) -> String {
        let of = |problem: &Option<String>| match problem {
            Some(problem) => serde_json::json!({ "error": problem }),
            None => serde_json::json!({}),
        };
        let results = self.results.iter().map(|(id, problem)| (id, of(problem)));
        let pdus: BTreeMap<_, _> = results.collect();
        serde_json::json!({ "pdus": pdus }).to_string()
    }

    fn refuse(&mut self, id: Option<OwnedEventId>, why: impl Into<String>) {
        if let Some(id) = id {
            self.results.entry(id).or_insert_with(|| Some(why.into()));
        }
    }
}

impl Inner {
    pub(super) async fn admit(
        &self,
        origin: &ServerName,
        pdus: Vec<Bytes>,
    ) -> Result<Admitted, TransactionError> {
        let mut admitted = Admitted::default();
        let mut by_room: BTreeMap<OwnedRoomId, Vec<Bytes>> = BTreeMap::new();
        for pdu in pdus {
            match room_of(&pdu) {
                Some(room) => by_room.entry(room).or_default().push(pdu),
                None => admitted.refuse(probable_id(&pdu, None), "the event names no room"),
            }
        }
        for (id, pdus) in by_room {
            match self.room_for(origin, &id).await? {
                Ok(room) => self.of_room(origin, &room, pdus, &mut admitted).await?,
                Err(Closed::Outside) => self.outside(origin, &id, pdus, &mut admitted).await,
                Err(Closed::Denied) => {
                    let denied = "the room's ACL does not admit the server";
                    for pdu in pdus {
                        admitted.refuse(probable_id(&pdu, Some(&id)), denied);
                    }
                }
            }
        }
        Ok(admitted)
    }

    /// The room, if its events may come from this origin.
    async fn room_for(
        &self,
        origin: &ServerName,
        id: &OwnedRoomId,
    ) -> Result<Result<Arc<Room>, Closed>, TransactionError> {
        let Some(room) = self.parts.rooms.room(id).await? else {
            return Ok(Err(Closed::Outside));
        };
        // This server comes first, if it has anybody there.
        let servers = self.parts.rooms.servers(room.number, 1).await?;
        if servers.first() != Some(&self.parts.own) {
            return Ok(Err(Closed::Outside));
        }
        if !self.parts.rooms.acl(&room).await?.allows(origin) {
            return Ok(Err(Closed::Denied));
        }
        Ok(Ok(room))
    }

    /// Events of a room in which nobody here is joined.
    async fn outside(
        &self,
        origin: &ServerName,
        room: &OwnedRoomId,
        pdus: Vec<Bytes>,
        admitted: &mut Admitted,
    ) {
        for pdu in pdus {
            let id = probable_id(&pdu, Some(room));
            match self.parts.outside.outside(origin, room, pdu).await {
                Some(Ok(())) => {
                    if let Some(id) = id {
                        admitted.results.insert(id, None);
                    }
                }
                Some(Err(why)) => admitted.refuse(id, why),
                None => admitted.refuse(id, "this server is not in the room"),
            }
        }
    }

    /// What a server is to a room.
    async fn standing(
        &self,
        origin: &ServerName,
        room: &Room,
    ) -> Result<Standing, TransactionError> {
        let (rooms, now) = (&self.parts.rooms, self.parts.store.durable());
        if rooms.server_joined(room, origin, now).await? {
            return Ok(Standing::Member);
        }
        // In a room that came just now not all who are there are known, or written down.
        let servers = rooms.servers_at(room, now).await?;
        let is_there = servers.iter().any(|one| is_same_server(one, origin));
        Ok(if is_there {
            Standing::Member
        } else {
            Standing::Stranger
        })
    }

    async fn of_room(
        &self,
        origin: &ServerName,
        room: &Arc<Room>,
        pdus: Vec<Bytes>,
        admitted: &mut Admitted,
    ) -> Result<(), TransactionError> {
        let verifier = &self.parts.verifier;
        let checked = verifier.verify(pdus.clone(), room.rules, Duration::ZERO);
        let mut good = Vec::with_capacity(pdus.len());
        for (json, checked) in pdus.iter().zip(checked.await?) {
            match checked {
                Ok(pdu) => good.push((pdu, true)),
                Err(Dropped::KeysUnknown(_)) => match Pdu::parse(json, room.rules) {
                    Ok(pdu) => good.push((pdu, false)),
                    Err(error) => admitted.refuse(None, error.to_string()),
                },
                Err(error) => {
                    tracing::debug!(%error, %origin, room = %room.id, "an event is dropped");
                    admitted.refuse(name(json, room), error.to_string());
                }
            }
        }
        let ids: Vec<_> = good
            .iter()
            .map(|(pdu, _)| pdu.event_id().to_owned())
            .collect();
        let new = self.parts.rooms.unplaced_of(room, &ids).await?;
        let standing = self.standing(origin, room).await?;
        for (pdu, verified) in good {
            let id = pdu.event_id().to_owned();
            if pdu.room_id() != room.id {
                admitted.refuse(Some(id), "the event is of another room");
            } else if admitted.results.get(&id).is_some_and(Option::is_none) {
                // Twice in one transaction.
            } else if !new.contains(&id) {
                admitted.results.insert(id, None);
            } else {
                match self.queues.take_place(room.number, (origin, standing)) {
                    Ok(place) => {
                        admitted.results.insert(id, None);
                        admitted.taken.push(Taken {
                            room: Arc::clone(room),
                            pdu,
                            verified,
                            place,
                        });
                    }
                    Err(full) => {
                        let is_member = standing == Standing::Member;
                        if is_member && self.queues.note(room.number, &id, origin) {
                            admitted.noted.push((room.number, id.clone()));
                        }
                        admitted.refuse(Some(id), full.to_string());
                    }
                }
            }
        }
        Ok(())
    }
}

/// Why a room takes no events of a server.
enum Closed {
    /// Nobody here is in it.
    Outside,
    /// Its ACL.
    Denied,
}

/// The id of an event that is dropped, as far as it has one.
fn name(json: &[u8], room: &Room) -> Option<OwnedEventId> {
    if let Ok(pdu) = Pdu::parse(json, room.rules) {
        return Some(pdu.event_id().to_owned());
    }
    let object = canonical::parse_object(json, room.rules.strictness).ok()?;
    let hash = hash::reference_hash(&object, room.rules);
    hash::event_id_of_hash(&hash, room.rules)
}

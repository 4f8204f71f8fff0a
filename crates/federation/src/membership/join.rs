//! Joining a room by way of a server that is in it.
//!
//! Specification: server-server API, "Joining Rooms".

use std::{collections::HashSet, sync::Arc, time::Duration};

use bytes::Bytes;
use homeserver_events::{Pdu, Step, handshake::with_signatures_of};
use homeserver_rooms::{Arriving, MAX_PARTIAL_SERVERS, Room, RoomError};
use http::StatusCode;
use ruma::{OwnedEventId, OwnedServerName, ServerName};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Failure, Failures, Inner, Joined, MembershipError, Memberships, Wanted,
    hear::Lists,
    state::{Checked, EVENT_BODY, Ordered},
    template::Template,
    undo::{did_nothing, undo},
    usual,
};
use crate::{Call, CallError, Limits, Path, is_same_server};

/// Bytes of the state of a room: the largest rooms have some hundred thousand members, of some
/// hundred bytes each.
pub(super) const STATE_BODY: usize = 384 * 1024 * 1024;
/// How long that is waited for: servers take minutes for the largest rooms.
pub(super) const STATE_PATIENCE: Duration = Duration::from_mins(5);
/// How long it may stand still.
pub(super) const STATE_STALL: Duration = Duration::from_mins(1);
/// How long the keys are waited for that our own join is signed with.
const KEY_PATIENCE: Duration = Duration::from_secs(20);

impl Memberships {
    /// Lets a user of this server join a room that is elsewhere. It goes on when the caller does not
    /// wait any longer.
    ///
    /// # Errors
    /// When no server lets the user in; nothing has changed then.
    pub async fn join(&self, wanted: Wanted) -> Result<Joined, MembershipError> {
        let inner = Arc::clone(&self.inner);
        let this = self.clone();
        let joining = async move {
            let joined = match inner.join(&wanted).await {
                Ok(joined) => joined,
                Err(error) => {
                    undo(&inner, wanted.user, wanted.room);
                    return Err(error);
                }
            };
            // The members of this room may follow; of others that is under way.
            this.complete_rooms();
            Ok(joined)
        };
        self.inner.runtime.tasks.see_through(joining).await
    }
}

impl Inner {
    async fn join(&self, wanted: &Wanted) -> Result<Joined, MembershipError> {
        let _turn = self.turns.turn(&wanted.room).await;
        if !self.is_elsewhere(&wanted.room).await? {
            return Ok(Joined::Here);
        }
        let servers = self.candidates(wanted).await?;
        let holding = self.held.hold(&wanted.room);
        let mut failures = Failures::default();
        for server in &servers {
            match self.join_through(server, &servers, wanted).await {
                Ok(()) => {
                    holding.hand_on();
                    self.is_sure(&wanted.user, &wanted.room).await;
                    return Ok(Joined::Yes);
                }
                Err(failure) => failures.note(server, failure)?,
            }
        }
        Err(failures.most_telling())
    }

    /// `servers` are all that may be in the room, and know the keys of others there.
    async fn join_through(
        &self,
        server: &ServerName,
        servers: &[OwnedServerName],
        wanted: &Wanted,
    ) -> Result<(), Failure> {
        let template = self.template(server, Step::Join, wanted).await?;
        let join = self.seal(&template, Step::Join, wanted)?;
        // A room that is here with a state of the past is not taken in with part of the new one.
        let omit = self.rooms.room(&wanted.room).await?.is_none();
        let place = self.states.acquire().await;
        let path = Path::v2("send_join")
            .segment(wanted.room.as_str())
            .segment(join.event_id().as_str())
            .query("omit_members", if omit { "true" } else { "false" });
        let limits = Limits {
            body: STATE_BODY,
            deadline: STATE_PATIENCE,
            stall: STATE_STALL,
        };
        let call = Call::put(path, Bytes::copy_from_slice(join.json()));
        self.is_unsure(wanted, server).await?;
        let call = call.limits(limits).urgent();
        let of_room = (&*wanted.room, template.rules);
        let asked = (server, servers);
        let heard = self.hear(asked, call, Lists::JOIN, of_room).await;
        if matches!(&heard, Err(Failure::Call(error)) if did_nothing(error)) {
            self.was_refused(wanted, server).await;
        }
        let heard = heard?;
        let rest: Rest<'_> = serde_json::from_slice(&heard.rest).map_err(Failure::answer)?;
        if rest.members_omitted && !omit {
            return Err(Failure::answer("members are left out that were asked for"));
        }
        let checked = heard.checked;
        let taken = self
            .take_in(server, (&template, join), (checked, &rest))
            .await;
        drop((heard.place, place));
        taken
    }

    /// Checks what was told of the room, and takes it in.
    async fn take_in(
        &self,
        server: &ServerName,
        (template, join): (&Template, Pdu),
        (checked, rest): (Checked, &Rest<'_>),
    ) -> Result<(), Failure> {
        let room = join.room_id().to_owned();
        let partial = rest.servers().map(|others| of_partial(server, others));
        let join = self
            .signed_by_them(server, (template, join), rest.event)
            .await?;
        let create = checked.create(template)?;
        let completing = self.complete(server, (&room, template.rules), checked);
        let completed = tokio::time::timeout(STATE_PATIENCE, completing).await;
        let too_slow = |_| Failure::answer("its auth chain was not given in time");
        let events = completed.map_err(too_slow)??;
        let begun = self.rooms.begin_arrival(&room, &template.version, &create);
        let begun = begun.await.map_err(of_answer)?;
        let arrived = self.arrive(server, &begun, events, (join, partial)).await;
        if arrived.is_err()
            && let Err(error) = self.rooms.abandon_arrival(begun.import).await
        {
            tracing::warn!(%room, %error, "what a failed join prepared is not removed yet");
        }
        arrived
    }

    async fn arrive(
        &self,
        server: &ServerName,
        begun: &Arriving,
        events: Ordered,
        (join, partial): (Pdu, Option<Vec<OwnedServerName>>),
    ) -> Result<(), Failure> {
        let import = (begun.import, begun.first_part);
        self.import(import, begun.room.rules, events).await?;
        let arrived = if let Some(servers) = partial {
            self.rooms.arrive_partial(begun.import, join, servers).await
        } else {
            let beside = self.unknown_to(server, &begun.room, &join).await?;
            self.rooms.arrive_beside(begun.import, join, beside).await
        };
        arrived.map_err(of_answer)?;
        Ok(())
    }

    /// Of a room that was here before: what nothing follows and the other server does not know, as a
    /// ban that reached only us. Who joins by what it knows would otherwise be in a room of their
    /// own: those who know more see no join that counts, and tell us nothing any more.
    async fn unknown_to(
        &self,
        server: &ServerName,
        room: &Room,
        join: &Pdu,
    ) -> Result<Vec<OwnedEventId>, Failure> {
        let mut unknown = Vec::new();
        for extremity in self.rooms.extremities(room).await? {
            let path = Path::v1("event").segment(extremity.as_str());
            let call = Call::get(path).limits(usual(EVENT_BODY)).urgent();
            match self.peers.ask(server, call).await {
                Ok(answer) => {
                    // The join follows what the server knew when it gave the template, and nothing
                    // that is as high as itself.
                    let depth = depth_of(&answer.body);
                    if depth.is_some_and(|depth| depth >= join.depth()) {
                        unknown.push(extremity);
                    }
                }
                Err(CallError::Refused { status, .. }) if status == StatusCode::NOT_FOUND => {
                    unknown.push(extremity);
                }
                // It knows the event, and does not show it.
                Err(CallError::Refused { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(unknown)
    }

    /// The join with the signature of the server that let the user in, which a restricted room
    /// needs.
    async fn signed_by_them(
        &self,
        server: &ServerName,
        (template, join): (&Template, Pdu),
        theirs: Option<&RawValue>,
    ) -> Result<Pdu, Failure> {
        let needed = template.voucher.is_some();
        let signed = match theirs.map(|json| Pdu::parse(json.get().as_bytes(), template.rules)) {
            Some(Ok(theirs)) => with_signatures_of(&join, &theirs, server),
            _ if needed => return Err(Failure::answer("the join is not signed by the server")),
            _ => return Ok(join),
        };
        let signed = match signed {
            Ok(signed) => signed,
            Err(error) if needed => return Err(Failure::answer(error)),
            Err(_) => return Ok(join),
        };
        if !needed {
            // Nobody needs it, so nobody checks it: what nobody checks is not kept.
            return Ok(join);
        }
        let json = vec![Bytes::copy_from_slice(signed.json())];
        let mut verified = self
            .verifier
            .verify(json, template.rules, KEY_PATIENCE)
            .await?;
        match verified.pop() {
            Some(Ok(verified)) if verified.json() == signed.json() => Ok(signed),
            Some(Err(why)) => Err(Failure::answer(why)),
            _ => Err(Failure::answer("the join comes back changed")),
        }
    }
}

/// What an answer says beside its lists.
#[derive(Deserialize)]
struct Rest<'a> {
    /// The join as the other server signed it.
    #[serde(borrow)]
    event: Option<&'a RawValue>,
    #[serde(default)]
    members_omitted: bool,
    #[serde(borrow)]
    servers_in_room: Option<Vec<&'a RawValue>>,
}

impl Rest<'_> {
    /// The servers that are said to be in the room, if members are left out.
    fn servers(&self) -> Option<Vec<OwnedServerName>> {
        let names = self.servers_in_room.iter().flatten();
        let names = names.take(MAX_PARTIAL_SERVERS);
        let mut seen = HashSet::new();
        let servers = names
            .filter_map(|name| serde_json::from_str::<OwnedServerName>(name.get()).ok())
            .filter(|name| seen.insert(name.clone()));
        self.members_omitted.then(|| servers.collect())
    }
}

/// The servers that are said to be in a room of partial state, first the one that says so.
fn of_partial(server: &ServerName, mut others: Vec<OwnedServerName>) -> Vec<OwnedServerName> {
    others.retain(|other| !is_same_server(other, server));
    others.insert(0, server.to_owned());
    others
}

/// The depth that the event in an answer claims.
fn depth_of(body: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Transaction {
        pdus: [Event; 1],
    }
    #[derive(Deserialize)]
    struct Event {
        depth: u64,
    }
    let read: Transaction = serde_json::from_slice(body).ok()?;
    let [event] = read.pdus;
    Some(event.depth)
}

/// What the rooms do not allow of an answer says something about that answer.
pub(super) fn of_answer(error: RoomError) -> Failure {
    match error {
        RoomError::Forbidden(why) | RoomError::BadContent(why) => Failure::Answer(why),
        error => error.into(),
    }
}

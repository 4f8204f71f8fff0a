//! What goes into the next transaction of a server.

use homeserver_events::Pdu;
use homeserver_rooms::{RoomError, RoomNumber, Rooms};
use homeserver_storage::Position;
use ruma::ServerName;

use super::{
    Inner, SenderError,
    course::Share,
    edus::Told,
    owed::{Next, Passed, Queued, Span},
    transaction::{ENOUGH_BYTES, Edu},
};

/// Pages of backlogs that are looked through for one transaction.
const PAGES: usize = 50;

/// What is sent, and what is done with once it has arrived.
#[derive(Debug, Default)]
pub(super) struct Selection {
    pub(super) events: Vec<Pdu>,
    pub(super) edus: Vec<Edu>,
    told: Told,
    bytes: usize,
    queued: Vec<Queued>,
    passed: Vec<Passed>,
}

impl Selection {
    /// How much it is.
    pub(super) fn share(&self) -> Share {
        Share {
            events: self.events.len(),
            edus: self.edus.len(),
        }
    }

    /// Whether there is nothing to be sent.
    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty() && self.edus.is_empty()
    }

    /// Whether there is nothing in it at all, not even what can be passed over.
    pub(super) fn is_nothing(&self) -> bool {
        self.is_empty() && self.queued.is_empty() && self.passed.is_empty()
    }

    fn add(&mut self, event: Pdu) {
        self.bytes += event.json().len();
        self.events.push(event);
    }

    fn is_full(&self, limit: usize) -> bool {
        self.events.len() >= limit || self.bytes >= ENOUGH_BYTES
    }
}

impl Inner {
    /// What a server is to be sent next.
    pub(super) async fn select(
        &self,
        server: &ServerName,
        share: Share,
    ) -> Result<Selection, SenderError> {
        let mut selection = Selection::default();
        let owed = |limit| {
            let state = self.state.lock();
            state.owed(server).and_then(|owed| owed.next(limit))
        };
        match owed(share.events).filter(|_| share.events > 0) {
            Some(Next::Queue(queue)) => self.add_queue(&queue, &mut selection).await?,
            Some(Next::Backlog(rooms)) => {
                self.add_backlogs(server, &rooms, share.events, &mut selection)
                    .await?;
            }
            None => {}
        }
        match self.choose(server, share.edus).await {
            Ok(chosen) => {
                selection.edus = chosen.edus;
                selection.told = chosen.told;
            }
            // Events are not held up by it.
            Err(error) if !selection.is_nothing() => {
                tracing::warn!(%error, %server, "only events are sent");
            }
            Err(error) => return Err(error),
        }
        Ok(selection)
    }

    async fn add_queue(
        &self,
        queue: &[Queued],
        selection: &mut Selection,
    ) -> Result<(), RoomError> {
        for queued in queue {
            if selection.is_full(queue.len()) {
                break;
            }
            match self.event(queued).await {
                Ok(event) => event.into_iter().for_each(|event| selection.add(event)),
                Err(error) if error.is_passing() => return Err(error),
                Err(error) => tracing::error!(%error, "an event is not sent"),
            }
            selection.queued.push(*queued);
        }
        Ok(())
    }

    /// An event of a queue; none if it does not leave any more.
    async fn event(&self, queued: &Queued) -> Result<Option<Pdu>, RoomError> {
        if let Some(event) = self.at_hand.get(&(queued.room, queued.event)) {
            return Ok(Some(event));
        }
        let room = self.rooms.room_by_number(queued.room).await?;
        let event = self.rooms.outgoing(&room, queued.event).await?;
        Ok(event.map(|event| event.pdu))
    }

    async fn add_backlogs(
        &self,
        server: &ServerName,
        rooms: &[(RoomNumber, Span)],
        limit: usize,
        selection: &mut Selection,
    ) -> Result<(), RoomError> {
        let mut pages = PAGES;
        for (room, span) in rooms {
            if selection.is_full(limit) || pages == 0 {
                break;
            }
            let added = add_backlog(
                &self.rooms,
                (server, *room),
                *span,
                (limit, &mut pages),
                selection,
            );
            match added.await {
                Err(error) if !error.is_passing() => {
                    // A damaged room does not keep others from being sent.
                    tracing::error!(%error, room = room.0, "events of a room are not sent");
                    selection.passed.push(rest_of(*room, *span));
                }
                Err(error) if selection.is_nothing() => return Err(error),
                Err(_) => break,
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// What was sent has arrived, or is given up.
    pub(super) async fn settle(
        &self,
        server: &ServerName,
        selection: &Selection,
    ) -> Result<(), SenderError> {
        if let (Some(upto), 1..) = (selection.told.to_device, selection.told.messages) {
            // First: if that fails they are sent again, which does no harm.
            self.users.outgoing.delivered(server, upto).await?;
        }
        self.state.lock().change(server, |owed| {
            for queued in &selection.queued {
                owed.acknowledge(*queued);
            }
            for passed in &selection.passed {
                owed.pass(*passed);
            }
            owed.edus.told(&selection.told);
        });
        self.acknowledged.notify_one();
        Ok(())
    }
}

/// All that is left of a room's backlog.
fn rest_of(room: RoomNumber, span: Span) -> Passed {
    passed(room, span.last, (0, 0))
}

fn passed(room: RoomNumber, upto: Position, (sent, looked_at): (usize, usize)) -> Passed {
    Passed {
        room,
        upto,
        sent,
        looked_at,
    }
}

/// Adds events of one room that a server lacks.
async fn add_backlog(
    rooms: &Rooms,
    (server, number): (&ServerName, RoomNumber),
    mut span: Span,
    (limit, pages): (usize, &mut usize),
    selection: &mut Selection,
) -> Result<(), RoomError> {
    let room = rooms.room_by_number(number).await?;
    while *pages > 0 && !selection.is_full(limit) && span.from <= span.last {
        if span.is_enough() {
            // They are told last, so that what came before them has arrived.
            let newest = rooms.newest_for(&room, server).await?;
            let left = limit.saturating_sub(selection.events.len());
            for event in newest.into_iter().take(left) {
                selection.add(event);
            }
            selection.passed.push(rest_of(number, span));
            return Ok(());
        }
        *pages -= 1;
        let wanted = limit - selection.events.len();
        let between = (span.from - 1, span.last);
        let backlog = rooms.backlog(&room, server, between, wanted).await?;
        let mut upto = backlog.upto;
        let mut sent = 0;
        for event in backlog.events {
            if selection.is_full(limit) {
                // The rest is for the next transaction.
                upto = event.position - 1;
                break;
            }
            sent += 1;
            selection.add(event.pdu);
        }
        span.sent += sent;
        span.looked_at += backlog.looked_at;
        span.from = upto + 1;
        let part = passed(number, upto, (sent, backlog.looked_at));
        selection.passed.push(part);
    }
    Ok(())
}

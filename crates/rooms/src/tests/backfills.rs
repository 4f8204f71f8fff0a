//! History that is fetched below the gap under a join.

use std::sync::Arc;

use homeserver_events::Pdu;
use ruma::OwnedEventId;

use super::{
    arrivals::{There, prepare},
    support::{Server, message, user},
};
use crate::{Backfilled, HistoryToken, MAX_BACKFILL, Room, Towards, VisibleEvent};

/// Where `alice` has joined the room of another server, over a gap.
struct Joined {
    here: Server,
    there: There,
    room: Arc<Room>,
    /// All events of the room in their order, the join at the end.
    all: Vec<Pdu>,
}

impl Joined {
    async fn after(version: &str, messages: usize) -> Self {
        let (here, there) = (Server::start().await, There::of_version(version).await);
        for number in 0..messages {
            let new = message(&format!("message {number}"));
            there
                .server
                .try_send(&there.host, &there.room, new)
                .await
                .unwrap();
        }
        let begun = prepare(&here, &there).await;
        let alice = user("alice");
        let join = there.member(&alice, &alice, "join").await;
        here.rooms.arrive(begun.import, join.clone()).await.unwrap();
        let mut all = there.all().await;
        all.push(join);
        Self {
            room: here.room(&there.room).await,
            here,
            there,
            all,
        }
    }

    fn pdu(&self, id: &OwnedEventId) -> &Pdu {
        let found = self.all.iter().find(|pdu| pdu.event_id() == id);
        found.unwrap()
    }

    /// As many events as a server gives, from these on downwards, the newest first.
    fn given(&self, from: &[OwnedEventId], limit: usize) -> Vec<Pdu> {
        let mut next: Vec<_> = from.to_vec();
        let mut given: Vec<Pdu> = Vec::new();
        while let Some(id) = next.pop() {
            if given.len() == limit {
                break;
            }
            let pdu = self.pdu(&id).clone();
            next.extend(pdu.prev_events().to_vec());
            given.push(pdu);
        }
        given
    }

    /// Fills the gap at a place with what the other server gives.
    async fn fill(&self, place: &HistoryToken, limit: usize) -> Backfilled {
        let rooms = &self.here.rooms;
        let gap = rooms.gap_at(&self.room, place).await.unwrap().unwrap();
        let given = self.given(&gap.missing, limit);
        let lowest = given.last().unwrap().event_id().to_owned();
        let state = self.there.state_before(&lowest).await;
        let ids: Vec<_> = state.iter().map(|pdu| pdu.event_id().to_owned()).collect();
        rooms.receive_outliers(&self.room, state).await.unwrap();
        let states = vec![(lowest, ids.into())];
        let filled = rooms.backfill(&self.room, &gap, given, states).await;
        filled.unwrap()
    }

    async fn page(&self, from: HistoryToken) -> (Vec<VisibleEvent>, Option<HistoryToken>, bool) {
        let reader = self.here.reader(&user("alice")).await;
        let way = (Towards::Older, 10);
        let rooms = &self.here.rooms;
        let page = rooms.history(&reader, &self.room, Some(from), way, &|_| true);
        let page = page.await.unwrap();
        (page.events, page.next, page.at_gap)
    }
}

/// Pages back from a place to the beginning of the room, with gaps filled on the way.
async fn paged_back(joined: &Joined, from: HistoryToken, limit: usize) -> Vec<OwnedEventId> {
    let (mut seen, mut next) = (Vec::new(), Some(from));
    let mut pages = 0;
    while let Some(from) = next {
        let (events, after, at_gap) = joined.page(from).await;
        seen.extend(events.iter().map(|event| event.pdu().event_id().to_owned()));
        if let (Some(place), true) = (after, at_gap) {
            let filled = joined.fill(&place, limit).await;
            assert!(filled.taken > 0 && filled.closed, "{filled:?}");
            assert_eq!(filled.left_out, [] as [OwnedEventId; 0]);
        }
        next = after;
        pages += 1;
        assert!(pages < 100, "it comes to an end");
    }
    seen
}

#[tokio::test]
async fn all_history_is_paged_back_to_once_and_in_order() {
    for (version, limit) in [("2", 7), ("11", MAX_BACKFILL), ("12", 13)] {
        let joined = Joined::after(version, 60).await;
        let mut wanted: Vec<_> = joined
            .all
            .iter()
            .map(|pdu| pdu.event_id().to_owned())
            .collect();
        wanted.reverse();
        let rooms = &joined.here.rooms;
        let newest = rooms.token_at(rooms.durable());
        assert_eq!(
            paged_back(&joined, newest, limit).await,
            wanted,
            "{version}"
        );
        // Again, without a gap; and from before the join, by a token that was given then.
        assert_eq!(
            paged_back(&joined, newest, limit).await,
            wanted,
            "{version}"
        );
        let join = wanted.remove(0);
        let number = rooms.event_number(joined.room.number, &join).await.unwrap();
        let event = rooms
            .events
            .load(&joined.room, number.unwrap())
            .await
            .unwrap();
        let before = rooms.token_at(event.position.unwrap() - 1);
        assert_eq!(
            paged_back(&joined, before, limit).await,
            wanted,
            "{version}"
        );
    }
}

#[tokio::test]
async fn a_token_from_before_the_gap_was_filled_finds_what_fills_it() {
    let joined = Joined::after("12", 30).await;
    let rooms = &joined.here.rooms;
    let join = joined.all.last().unwrap().event_id().to_owned();
    let number = rooms.event_number(joined.room.number, &join).await.unwrap();
    let event = rooms
        .events
        .load(&joined.room, number.unwrap())
        .await
        .unwrap();
    let before = rooms.token_at(event.position.unwrap() - 1);
    let (events, next, at_gap) = joined.page(before).await;
    assert!(events.is_empty() && at_gap);
    joined.fill(&next.unwrap(), 10).await;
    let (events, _, _) = joined.page(before).await;
    let seen: Vec<_> = events.iter().map(|event| event.pdu().event_id()).collect();
    let wanted: Vec<_> = joined
        .all
        .iter()
        .rev()
        .skip(1)
        .take(10)
        .map(Pdu::event_id)
        .collect();
    assert_eq!(seen, wanted);
}

#[tokio::test]
async fn what_does_not_lead_down_from_the_gap_is_passed_over() {
    let joined = Joined::after("12", 10).await;
    let rooms = &joined.here.rooms;
    let newest = rooms.token_at(rooms.durable());
    let (_, next, at_gap) = joined.page(newest).await;
    assert!(at_gap);
    let place = next.unwrap();
    let gap = rooms.gap_at(&joined.room, &place).await.unwrap().unwrap();
    // The newest of what is missing is not among these, nor is any state known before them.
    let without: Vec<_> = joined.given(&gap.missing, 5).into_iter().skip(1).collect();
    let filled = rooms
        .backfill(&joined.room, &gap, without, Vec::new())
        .await
        .unwrap();
    assert_eq!((filled.taken, filled.closed), (0, false));
    let stateless = joined.given(&gap.missing, 5);
    let filled = rooms
        .backfill(&joined.room, &gap, stateless, Vec::new())
        .await
        .unwrap();
    assert_eq!(
        (filled.taken, filled.closed, filled.left_out.len()),
        (0, false, 5)
    );
    let many = vec![joined.all[0].clone(); MAX_BACKFILL + 1];
    let refused = rooms.backfill(&joined.room, &gap, many, Vec::new()).await;
    assert!(refused.is_err());
}

//! What a room's worker has to come back to: rows that wait for other events, or for a time.
//!
//! No clock, no store: whoever calls says what time it is.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::Duration,
};

use homeserver_events::Pdu;
use ruma::{OwnedEventId, OwnedServerName};

/// How long a row waits for others that wait themselves before it is looked after all the same:
/// in the first room versions ids can name each other in a circle.
const PATIENCE: Duration = Duration::from_mins(10);
/// The same where one of those others came from another server, which may never give what that one
/// lacks: whoever sent the row has more to tell.
const PATIENCE_WITH_OTHERS: Duration = Duration::from_secs(15);

/// What a row waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Waits {
    /// These events are not here.
    For(Vec<OwnedEventId>),
    /// Only for its time.
    Until,
}

/// A row that cannot be judged now.
#[derive(Clone, Debug)]
pub(super) struct Stuck {
    pub(super) id: OwnedEventId,
    pub(super) origin: OwnedServerName,
    pub(super) waits: Waits,
    /// When it is looked after, on the monotonic clock.
    pub(super) due: Duration,
    /// Somebody is looking after it.
    pub(super) busy: bool,
    /// Something that it waits for came meanwhile.
    pub(super) woken: bool,
}

/// The rows of one room that its worker comes back to.
#[derive(Debug, Default)]
pub(super) struct Desk {
    stuck: BTreeMap<u64, Stuck>,
    by_id: HashMap<OwnedEventId, u64>,
    waiting: HashMap<OwnedEventId, BTreeSet<u64>>,
    /// Rows that are to be judged again.
    again: BTreeSet<u64>,
    /// Rows that could not be read, and when that is tried again.
    unread: BTreeMap<u64, Duration>,
}

impl Desk {
    pub(super) fn is_empty(&self) -> bool {
        self.stuck.is_empty() && self.again.is_empty() && self.unread.is_empty()
    }

    /// Puts a row aside that cannot be read.
    pub(super) fn put_unread(&mut self, row: u64, due: Duration) {
        self.remove(row);
        self.unread.insert(row, due);
    }

    /// Puts a row aside.
    pub(super) fn put(&mut self, row: u64, stuck: Stuck) {
        self.remove(row);
        if let Waits::For(ids) = &stuck.waits {
            for id in ids {
                self.waiting.entry(id.clone()).or_default().insert(row);
            }
        }
        self.by_id.insert(stuck.id.clone(), row);
        self.stuck.insert(row, stuck);
    }

    /// Whether a row could not be read.
    pub(super) fn is_unread(&self, row: u64) -> bool {
        self.unread.contains_key(&row)
    }

    /// Forgets a row.
    pub(super) fn remove(&mut self, row: u64) -> Option<Stuck> {
        self.again.remove(&row);
        self.unread.remove(&row);
        let stuck = self.stuck.remove(&row)?;
        if let Waits::For(ids) = &stuck.waits {
            for id in ids {
                if let Some(rows) = self.waiting.get_mut(id) {
                    rows.remove(&row);
                    if rows.is_empty() {
                        self.waiting.remove(id);
                    }
                }
            }
        }
        if self.by_id.get(&stuck.id) == Some(&row) {
            self.by_id.remove(&stuck.id);
        }
        Some(stuck)
    }

    /// An event is here: what waits for it is judged again, and what waits for that.
    pub(super) fn here(&mut self, id: &OwnedEventId) {
        let mut ids = vec![id.clone()];
        while let Some(id) = ids.pop() {
            let Some(rows) = self.waiting.get(&id) else {
                continue;
            };
            for row in rows {
                let Some(stuck) = self.stuck.get_mut(row) else {
                    continue;
                };
                if stuck.busy {
                    stuck.woken = true;
                } else if self.again.insert(*row) {
                    ids.push(stuck.id.clone());
                }
            }
        }
    }

    /// Up to `limit` rows that are to be judged again, the oldest first. They are no longer here.
    pub(super) fn again(&mut self, now: Duration, limit: usize) -> Vec<u64> {
        let due = self
            .stuck
            .iter()
            .filter(|(_, stuck)| stuck.waits == Waits::Until && !stuck.busy && stuck.due <= now);
        self.again.extend(due.map(|(row, _)| *row).take(limit));
        let due = self.unread.iter().filter(|(_, due)| **due <= now);
        self.again.extend(due.map(|(row, _)| *row).take(limit));
        let rows: Vec<u64> = self.again.iter().copied().take(limit).collect();
        for row in &rows {
            self.remove(*row);
        }
        rows
    }

    /// The oldest row that has to be looked after, but of none of these servers. From then on
    /// somebody is looking after it.
    pub(super) fn look_after(
        &mut self,
        now: Duration,
        busy_with: &HashSet<OwnedServerName>,
    ) -> Option<u64> {
        let mut found = None;
        for (row, stuck) in &self.stuck {
            let Waits::For(ids) = &stuck.waits else {
                continue;
            };
            if stuck.busy || busy_with.contains(&stuck.origin) || self.again.contains(row) {
                continue;
            }
            if stuck.due + self.patience(stuck, ids) <= now {
                found = Some(*row);
                break;
            }
        }
        if let Some(stuck) = found.and_then(|row| self.stuck.get_mut(&row)) {
            stuck.busy = true;
        }
        found
    }

    /// How long a row waits for others that are put aside before it is looked after itself.
    fn patience(&self, stuck: &Stuck, ids: &[OwnedEventId]) -> Duration {
        let mut patience = PATIENCE;
        for id in ids {
            let other = self.by_id.get(id).and_then(|row| self.stuck.get(row));
            match other {
                None => return Duration::ZERO,
                Some(other) if other.origin != stuck.origin => patience = PATIENCE_WITH_OTHERS,
                Some(_) => {}
            }
        }
        patience
    }

    /// When the next row is due, if nothing happens before.
    pub(super) fn next_due(&self, now: Duration) -> Option<Duration> {
        let due = self.stuck.values().filter(|stuck| !stuck.busy);
        let due = due.filter_map(|stuck| match &stuck.waits {
            // What is due already waits for its turn, which comes when another ends.
            Waits::For(ids) if stuck.due <= now => {
                let patient = stuck.due + self.patience(stuck, ids);
                Some(patient).filter(|patient| *patient > now)
            }
            Waits::For(_) | Waits::Until => Some(stuck.due),
        });
        due.chain(self.unread.values().copied()).min()
    }

    /// Rows that are put aside.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.stuck.len()
    }
}

/// Puts events in an order in which each comes after those that it names among them; otherwise
/// they stay as they are. In a circle, which the first room versions allow, some come before.
pub(super) fn in_order<T>(items: Vec<T>, event: impl Fn(&T) -> &Pdu) -> Vec<T> {
    let places: HashMap<OwnedEventId, usize> = items
        .iter()
        .enumerate()
        .map(|(place, item)| (event(item).event_id().to_owned(), place))
        .collect();
    let mut before = vec![0_usize; items.len()];
    let mut after: Vec<Vec<usize>> = vec![Vec::new(); items.len()];
    for (place, item) in items.iter().enumerate() {
        let pdu = event(item);
        for named in pdu.prev_events().iter().chain(pdu.auth_events()) {
            if let Some(named) = places.get(named)
                && *named != place
            {
                before[place] += 1;
                after[*named].push(place);
            }
        }
    }
    let mut ready: BTreeSet<usize> = (0..items.len())
        .filter(|place| before[*place] == 0)
        .collect();
    let mut left: BTreeSet<usize> = (0..items.len()).collect();
    let mut order = Vec::with_capacity(items.len());
    while let Some(next) = ready.pop_first().or_else(|| left.first().copied()) {
        if !left.remove(&next) {
            continue;
        }
        order.push(next);
        for later in &after[next] {
            before[*later] = before[*later].saturating_sub(1);
            if before[*later] == 0 {
                ready.insert(*later);
            }
        }
    }
    let mut items: Vec<Option<T>> = items.into_iter().map(Some).collect();
    order
        .into_iter()
        .filter_map(|place| items[place].take())
        .collect()
}

#[cfg(test)]
mod tests {
    use ruma::owned_server_name;

    use super::*;

    #[test]
    fn a_row_that_cannot_be_read_is_put_aside_by_itself() {
        let mut desk = Desk::default();
        desk.put(1, stuck("a", &["x"]));
        desk.put_unread(2, NOW + Duration::from_secs(2));
        assert!(desk.is_unread(2) && !desk.is_unread(1));
        assert_eq!(desk.again(NOW, 9), [] as [u64; 0]);
        assert_eq!(
            desk.look_after(NOW, &HashSet::new()),
            Some(1),
            "others go on"
        );
        let due = desk.next_due(NOW).unwrap();
        assert_eq!(due, NOW + Duration::from_secs(2));
        assert_eq!(desk.again(due, 9), [2]);
        desk.remove(1);
        assert!(desk.is_empty());
    }

    const NOW: Duration = Duration::from_secs(100);

    fn id(name: &str) -> OwnedEventId {
        OwnedEventId::try_from(format!("${name}")).unwrap()
    }

    fn stuck(name: &str, waits_for: &[&str]) -> Stuck {
        let ids = waits_for.iter().map(|name| id(name)).collect();
        Stuck {
            id: id(name),
            origin: owned_server_name!("a.example"),
            waits: Waits::For(ids),
            due: NOW,
            busy: false,
            woken: false,
        }
    }

    fn look(desk: &mut Desk) -> Option<u64> {
        desk.look_after(NOW, &HashSet::new())
    }

    #[test]
    fn what_waits_for_an_event_is_judged_again_and_what_waits_for_that() {
        let mut desk = Desk::default();
        desk.put(1, stuck("b", &["a"]));
        desk.put(2, stuck("c", &["b"]));
        desk.put(3, stuck("d", &["c", "x"]));
        desk.put(4, stuck("e", &["y"]));
        assert!(desk.again(NOW, 10).is_empty());
        desk.here(&id("a"));
        assert_eq!(desk.again(NOW, 2), [1, 2]);
        assert_eq!(desk.again(NOW, 2), [3]);
        assert_eq!(desk.len(), 1);
        assert!(desk.remove(4).is_some() && desk.is_empty());
        assert!(desk.waiting.is_empty() && desk.by_id.is_empty());
    }

    #[test]
    fn only_the_lowest_of_a_chain_is_looked_after() {
        let mut desk = Desk::default();
        desk.put(1, stuck("c", &["b"]));
        desk.put(2, stuck("b", &["a"]));
        assert_eq!(look(&mut desk), Some(2));
        assert_eq!(look(&mut desk), None, "it is looked after");
        desk.remove(2);
        assert_eq!(look(&mut desk), Some(1), "b was dropped");
    }

    #[test]
    fn what_waits_for_a_row_of_another_server_does_not_wait_for_that_server() {
        let mut desk = Desk::default();
        desk.put(1, stuck("a", &["withheld"]));
        let other = Stuck {
            origin: owned_server_name!("b.example"),
            ..stuck("b", &["a"])
        };
        desk.put(2, other);
        assert_eq!(look(&mut desk), Some(1));
        assert_eq!(look(&mut desk), None);
        let later = desk.next_due(NOW).unwrap();
        assert_eq!(later, NOW + PATIENCE_WITH_OTHERS);
        assert_eq!(desk.look_after(later, &HashSet::new()), Some(2));
    }

    #[test]
    fn a_circle_is_looked_after_at_last() {
        let mut desk = Desk::default();
        desk.put(1, stuck("a", &["b"]));
        desk.put(2, stuck("b", &["a"]));
        assert_eq!(look(&mut desk), None);
        let later = desk.next_due(NOW).unwrap();
        assert_eq!(later, NOW + PATIENCE);
        assert_eq!(desk.look_after(later, &HashSet::new()), Some(1));
    }

    #[test]
    fn servers_that_are_busy_keep_only_their_own_rows_waiting() {
        let mut desk = Desk::default();
        desk.put(1, stuck("a", &["x"]));
        let other = Stuck {
            origin: owned_server_name!("b.example"),
            ..stuck("b", &["y"])
        };
        desk.put(2, other);
        let busy = HashSet::from([owned_server_name!("a.example")]);
        assert_eq!(desk.look_after(NOW, &busy), Some(2));
    }

    #[test]
    fn a_row_that_waits_for_its_time_comes_back_then() {
        let mut desk = Desk::default();
        let later = NOW + Duration::from_secs(5);
        let waiting = Stuck {
            waits: Waits::Until,
            due: later,
            ..stuck("a", &[])
        };
        desk.put(1, waiting);
        assert_eq!(look(&mut desk), None);
        assert!(desk.again(NOW, 9).is_empty());
        assert_eq!(desk.next_due(NOW), Some(later));
        assert_eq!(desk.again(later, 9), [1]);
        assert!(desk.is_empty());
    }
}

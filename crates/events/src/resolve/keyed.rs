//! Values by event type and state key that are found without making a key.

use std::collections::HashMap;

use super::StateKey;

/// A map from event type and state key. It has no order: nothing may depend on one.
#[derive(Debug, Clone)]
pub(super) struct Keyed<V>(HashMap<String, HashMap<String, V>>);

impl<V> Default for Keyed<V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<V> Keyed<V> {
    pub(super) fn get(&self, event_type: &str, state_key: &str) -> Option<&V> {
        self.0.get(event_type)?.get(state_key)
    }

    pub(super) fn insert(&mut self, (event_type, state_key): StateKey, value: V) {
        self.0
            .entry(event_type)
            .or_default()
            .insert(state_key, value);
    }

    /// Like [`Self::insert`], with a key made only where there was none.
    pub(super) fn set(&mut self, event_type: &str, state_key: &str, value: V) {
        if let Some(known) = self
            .0
            .get_mut(event_type)
            .and_then(|of_type| of_type.get_mut(state_key))
        {
            *known = value;
        } else {
            self.insert((event_type.to_owned(), state_key.to_owned()), value);
        }
    }

    pub(super) fn remove(&mut self, event_type: &str, state_key: &str) {
        if let Some(of_type) = self.0.get_mut(event_type) {
            of_type.remove(state_key);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = ((&str, &str), &V)> {
        self.0.iter().flat_map(|(event_type, of_type)| {
            let pairs = of_type.iter();
            pairs.map(|(key, value)| ((event_type.as_str(), key.as_str()), value))
        })
    }
}

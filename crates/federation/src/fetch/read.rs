//! Reading answers: lists of events, cut out of the body without copying them.

use bytes::Bytes;
use ruma::OwnedEventId;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{FetchError, StateIds};
use crate::CallError;

/// Which lists an answer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listed {
    /// `pdus`, of a transaction.
    Pdus,
    /// `events`.
    Events,
    /// `auth_chain`.
    AuthChain,
    /// `pdus` and `auth_chain`.
    State,
}

/// The events of an answer, each as it came.
#[derive(Debug, Default)]
pub(super) struct Lists {
    pub(super) first: Vec<Bytes>,
    /// The second list of [`Listed::State`].
    pub(super) second: Vec<Bytes>,
}

#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(borrow)]
    pdus: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    events: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    auth_chain: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
struct RawIds {
    pdu_ids: Vec<OwnedEventId>,
    auth_chain_ids: Vec<OwnedEventId>,
}

impl Listed {
    /// Reads an answer whose lists have `most` entries each at most.
    pub(super) fn read(self, body: &Bytes, most: usize) -> Result<Lists, FetchError> {
        let raw: Raw<'_> = object(body)?;
        let cut = |list: Option<Vec<&RawValue>>| {
            let list = list.ok_or(FetchError::NotAsAsked("a list is missing"))?;
            if list.len() > most {
                return Err(FetchError::NotAsAsked("too many entries"));
            }
            let cut = list
                .into_iter()
                .map(|entry| body.slice_ref(entry.get().as_bytes()));
            Ok(cut.collect())
        };
        let (first, second) = match self {
            Self::Pdus => (raw.pdus, None),
            Self::Events => (raw.events, None),
            Self::AuthChain => (raw.auth_chain, None),
            Self::State => (raw.pdus, raw.auth_chain),
        };
        Ok(Lists {
            first: cut(first)?,
            second: match self {
                Self::State => cut(second)?,
                _ => Vec::new(),
            },
        })
    }
}

/// Reads the answer with the ids of a state.
pub(super) fn ids(body: &Bytes, most: usize) -> Result<StateIds, FetchError> {
    let raw: RawIds = object(body)?;
    if raw.pdu_ids.len().max(raw.auth_chain_ids.len()) > most {
        return Err(FetchError::NotAsAsked("too many entries"));
    }
    Ok(StateIds {
        state: raw.pdu_ids,
        auth_chain: raw.auth_chain_ids,
    })
}

fn object<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, CallError> {
    // A list would be taken for a struct of its entries.
    let begins = body.iter().find(|byte| !byte.is_ascii_whitespace());
    if begins != Some(&b'{') {
        return Err(CallError::BadAnswer("not a JSON object".to_owned()));
    }
    serde_json::from_slice(body).map_err(|error| CallError::BadAnswer(error.to_string()))
}

//! Checking many events of other servers at once: form, signatures, content hash.
//!
//! Each by itself: one bad event among fifty costs only itself. Parsing and checking run on the
//! pool for such work, in pieces, so that other work gets its turns.
//!
//! Specification: server-server API, "Checks performed on receipt of a PDU", 1 to 3.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use homeserver_events::{
    CanonicalObject, CanonicalValue, KeySource as _, Pdu, PduError, Rules, Verified, VerifyError,
    canonical, claimed_keys_in, redact_object, verify_event_in, verify_json,
};
use homeserver_runtime::{PoolClosed, Runtime};
use homeserver_storage::StorageError;
use ruma::{OwnedServerName, ServerName};

use crate::keys::{Asking, KeyRing, Keys, Wanted, document::is_key_id};

/// Events of one job on the pool.
const AT_ONCE: usize = 16;

/// Why an event is not looked at any further.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Dropped {
    /// It is no event of the room's version.
    #[error(transparent)]
    Form(#[from] PduError),
    /// Somebody who must have signed it did not, or wrongly.
    #[error(transparent)]
    Signature(#[from] VerifyError),
    /// A server that must have signed it did so by keys that are not known, and cannot be asked for
    /// them now.
    #[error("the keys of {0} that signed it are not to be had now")]
    KeysUnknown(OwnedServerName),
    /// Checking it panicked.
    #[error("the event could not be checked")]
    Panicked,
}

/// Nothing was checked.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// Stored keys cannot be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The process is shutting down, or the job for the events panicked.
    #[error(transparent)]
    Pool(#[from] PoolClosed),
}

/// Checks events. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Verifier {
    ring: KeyRing,
    runtime: Runtime,
}

/// Events that are held as objects: these are several times as large as their text.
const HELD: usize = 1_000;

/// An event of the right form, and the keys that decide about its signatures.
struct Parsed {
    event: Pdu,
    /// What it was read from, so that it is read once.
    object: CanonicalObject,
    wanted: Vec<Wanted>,
}

impl Verifier {
    /// A verifier that takes its keys from this ring.
    pub fn new(ring: KeyRing, runtime: Runtime) -> Self {
        Self { ring, runtime }
    }

    /// Checks events of a room of this version, each in its place of the result. Missing keys are
    /// fetched within `patience`. An event whose content hash does not match comes back redacted.
    ///
    /// # Errors
    /// When nothing could be checked.
    pub async fn verify(
        &self,
        events: Vec<Bytes>,
        rules: &'static Rules,
        patience: Duration,
    ) -> Result<Vec<Result<Pdu, Dropped>>, CheckError> {
        let asking = Asking::for_as_long_as(patience);
        self.verify_told(events, rules, asking).await
    }

    /// Like [`Self::verify`], of events whose tellers may be asked for keys that are not to be had
    /// from their servers.
    ///
    /// # Errors
    /// When nothing could be checked.
    pub async fn verify_told(
        &self,
        mut events: Vec<Bytes>,
        rules: &'static Rules,
        asking: Asking<'_>,
    ) -> Result<Vec<Result<Pdu, Dropped>>, CheckError> {
        let mut checked = Vec::with_capacity(events.len());
        while !events.is_empty() {
            let some = events.drain(..events.len().min(HELD)).collect();
            checked.extend(self.verify_some(some, rules, asking).await?);
        }
        Ok(checked)
    }

    async fn verify_some(
        &self,
        events: Vec<Bytes>,
        rules: &'static Rules,
        asking: Asking<'_>,
    ) -> Result<Vec<Result<Pdu, Dropped>>, CheckError> {
        let parsed = self.each(events, move |json| parse(&json, rules)).await?;
        let wanted: Vec<Wanted> = parsed
            .iter()
            .flatten()
            .flat_map(|parsed| parsed.wanted.iter().cloned())
            .collect();
        let keys = Arc::new(self.ring.keys_for(&wanted, asking).await?);
        let check = move |parsed: Result<Parsed, Dropped>| check(&parsed?, rules, &keys);
        self.each(parsed, check).await.map_err(CheckError::from)
    }

    /// Whether the keys of a server are not to be had for longer than an outage of the network lasts.
    pub fn is_gone(&self, server: &ServerName) -> bool {
        self.ring.is_gone(server)
    }

    /// Whether an event is signed by this server, beside those that must have signed it. Missing keys
    /// are fetched within `patience`.
    ///
    /// # Errors
    /// When nothing could be checked.
    pub async fn is_signed_by(
        &self,
        event: &Pdu,
        server: &ServerName,
        patience: Duration,
    ) -> Result<bool, CheckError> {
        let rules = event.rules();
        let Ok(object) = event.to_object() else {
            return Ok(false);
        };
        let ids = object
            .get("signatures")
            .and_then(CanonicalValue::as_object)
            .and_then(|signatures| signatures.get(server.as_str()))
            .and_then(CanonicalValue::as_object);
        let wanted: Vec<_> = ids
            .into_iter()
            .flat_map(|ids| ids.keys().filter(|id| is_key_id(id)))
            .map(|id| Wanted {
                server: server.to_owned(),
                key_id: id.clone(),
                time: event.origin_server_ts(),
                enforced: rules.enforces_key_validity,
            })
            .collect();
        let asking = Asking::for_as_long_as(patience);
        let keys = self.ring.keys_for(&wanted, asking).await?;
        let key = |id: &str| keys.key(server, id).map(|published| published.key);
        let redacted = redact_object(&object, rules);
        Ok(verify_json(&redacted, server.as_str(), &key).is_ok())
    }

    /// Does `what` for each, on the pool; the results are in the order of `items`. What panics
    /// costs only itself.
    async fn each<T, R>(
        &self,
        mut items: Vec<T>,
        what: impl Fn(T) -> Result<R, Dropped> + Clone + Send + 'static,
    ) -> Result<Vec<Result<R, Dropped>>, PoolClosed>
    where
        T: Send + 'static,
        R: Send + 'static,
    {
        let mut jobs = Vec::new();
        while !items.is_empty() {
            let some: Vec<T> = items.drain(..items.len().min(AT_ONCE)).collect();
            let what = what.clone();
            let one = move |item| {
                let done = catch_unwind(AssertUnwindSafe(|| what(item)));
                done.unwrap_or_else(|_| {
                    tracing::error!("checking an event panicked");
                    Err(Dropped::Panicked)
                })
            };
            let job = move || some.into_iter().map(one).collect::<Vec<_>>();
            jobs.push(self.runtime.cpu.run(job));
        }
        let done: Result<Vec<Vec<_>>, PoolClosed> = join_all(jobs).await.into_iter().collect();
        Ok(done?.into_iter().flatten().collect())
    }
}

fn parse(json: &[u8], rules: &'static Rules) -> Result<Parsed, Dropped> {
    let object = canonical::parse_object(json, rules.strictness).map_err(PduError::from)?;
    let event = Pdu::of_object(&object, rules)?;
    let mut wanted = Vec::new();
    for (server, ids) in claimed_keys_in(&event, &object, rules)? {
        let ids = ids.into_iter().filter(|id| is_key_id(id));
        wanted.extend(ids.map(|key_id| Wanted {
            server: server.clone(),
            key_id,
            time: event.origin_server_ts(),
            enforced: rules.enforces_key_validity,
        }));
    }
    Ok(Parsed {
        event,
        object,
        wanted,
    })
}

fn check(parsed: &Parsed, rules: &'static Rules, keys: &Keys) -> Result<Pdu, Dropped> {
    let Parsed {
        event,
        object,
        wanted,
    } = parsed;
    match verify_event_in(event, object, rules, keys) {
        Ok(Verified::All) => Ok(event.clone()),
        Ok(Verified::HashMismatch(copy)) => Ok(copy),
        Err(VerifyError::NoUsableSignature(server)) => {
            // It may be signed well by a key that could not be asked for now.
            let unknown = wanted
                .iter()
                .find(|wanted| *wanted.server == *server && keys.is_unavailable(&wanted.server));
            Err(match unknown {
                Some(unknown) => Dropped::KeysUnknown(unknown.server.clone()),
                None => VerifyError::NoUsableSignature(server).into(),
            })
        }
        // What others vouch for refuses nothing.
        Err(VerifyError::WrongSignature(server)) => Err(match vouched(wanted, &server, keys) {
            Some(wanted) => Dropped::KeysUnknown(wanted.server.clone()),
            None => VerifyError::WrongSignature(server).into(),
        }),
        Err(wrong) => Err(wrong.into()),
    }
}

/// A key of this server that signed an event and is only vouched for.
fn vouched<'w>(wanted: &'w [Wanted], server: &str, keys: &Keys) -> Option<&'w Wanted> {
    let mut of_server = wanted.iter().filter(|wanted| *wanted.server == *server);
    of_server.find(|wanted| keys.is_vouched(&wanted.server, &wanted.key_id))
}

#[cfg(test)]
mod tests {
    use homeserver_events::{Draft, RoomVersion, SigningKey, sign_json};
    use ruma::{OwnedUserId, room_id, server_name};
    use serde_json::{json, value::to_raw_value};

    use super::*;
    use crate::keys::ring::tests::{START, World, keys_of};

    const HOUR: Duration = Duration::from_hours(1);

    fn rules() -> &'static Rules {
        RoomVersion::V11.rules()
    }

    /// A message of a user of `server`, signed by key `seed` as `ed25519:a`.
    fn message(server: &str, seed: u8, body: &str, time: u64) -> CanonicalObject {
        let server = ServerName::parse(server).unwrap();
        let draft = Draft {
            room_id: Some(room_id!("!room:there.example").to_owned()),
            sender: OwnedUserId::try_from(format!("@user:{server}")).unwrap(),
            event_type: "m.room.message".to_owned(),
            state_key: None,
            content: to_raw_value(&json!({ "body": body })).unwrap(),
            origin_server_ts: time,
            depth: 1,
            prev_events: Vec::new(),
            auth_events: Vec::new(),
            redacts: None,
        };
        let key = SigningKey::from_seed("a", &[seed; 32]).unwrap();
        draft
            .seal(rules(), &server, &key)
            .unwrap()
            .to_object()
            .unwrap()
    }

    fn json(object: &CanonicalObject) -> Bytes {
        Bytes::from(canonical::to_string(object))
    }

    async fn verify(world: &World, events: Vec<Bytes>) -> Vec<Result<Pdu, Dropped>> {
        let verifier = Verifier::new(world.ring.clone(), world.runtime.clone());
        verifier.verify(events, rules(), HOUR).await.unwrap()
    }

    #[tokio::test]
    async fn an_event_that_cannot_be_checked_costs_only_itself() {
        let world = World::with_there(&[]).await;
        let verifier = Verifier::new(world.ring.clone(), world.runtime.clone());
        let numbers: Vec<usize> = (0..3 * AT_ONCE).collect();
        let checked = verifier.each(numbers, |number| {
            assert!(number != 20, "this one is poison");
            Ok(number)
        });
        for (place, checked) in checked.await.unwrap().into_iter().enumerate() {
            let expected = if place == 20 {
                Err(Dropped::Panicked)
            } else {
                Ok(place)
            };
            assert_eq!(checked, expected);
        }
    }

    #[tokio::test]
    async fn each_event_is_judged_by_itself_and_in_its_place() {
        let world = World::with_there(&[]).await;
        let good = |number: u32| json(&message("there.example", 1, &number.to_string(), START));
        let mut events: Vec<Bytes> = (0..50).map(good).collect();
        let forged = message("there.example", 2, "forged", START);
        let unreachable = message("gone.example", 1, "gone", START);
        let mut unsigned = message("there.example", 1, "unsigned", START);
        unsigned.insert(
            "signatures".to_owned(),
            canonical::CanonicalValue::Object(CanonicalObject::new()),
        );
        let mut changed = message("there.example", 1, "before", START);
        let other = message("there.example", 1, "after", START);
        changed.insert("content".to_owned(), other["content"].clone());
        // A key that its server does not publish beside one that it does.
        let mut twice = message("there.example", 1, "twice", START);
        let new = SigningKey::from_seed("new", &[5; 32]).unwrap();
        sign_json(&mut twice, "there.example", &new);
        events[3] = json(&forged);
        events[17] = Bytes::from_static(b"{}");
        events[20] = json(&unreachable);
        events[31] = json(&unsigned);
        events[32] = json(&changed);
        events[49] = json(&twice);
        let judged = verify(&world, events).await;
        assert_eq!(judged.len(), 50);
        let there = server_name!("there.example").to_owned();
        for (place, judged) in judged.into_iter().enumerate() {
            match (place, judged) {
                (3, Err(Dropped::Signature(VerifyError::WrongSignature(server))))
                | (31, Err(Dropped::Signature(VerifyError::NoUsableSignature(server)))) => {
                    assert_eq!(server, *there);
                }
                (17, Err(Dropped::Form(_))) => {}
                (20, Err(Dropped::KeysUnknown(server))) => assert_eq!(server, "gone.example"),
                (32, Ok(copy)) => assert_eq!(copy.content().get(), "{}"),
                (49, Ok(event)) => assert_eq!(event.content().get(), r#"{"body":"twice"}"#),
                (place, Ok(event)) => {
                    assert_eq!(event.content().get(), format!(r#"{{"body":"{place}"}}"#));
                }
                (place, Err(error)) => panic!("{place}: {error:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_key_that_is_only_vouched_for_refuses_no_event() {
        let world = World::new(&[]).await;
        let forged = keys_of("there.example", 3, Vec::new());
        let liar = keys_of("liar.example", 6, Vec::new());
        world.give_word(&liar, &forged.document(START));
        let witnesses = [server_name!("liar.example").to_owned()];
        let asking = Asking {
            patience: HOUR,
            witnesses: &witnesses,
        };
        let verifier = Verifier::new(world.ring.clone(), world.runtime.clone());
        let events = vec![
            json(&message("there.example", 1, "true", START)),
            json(&message("there.example", 3, "forged", START)),
        ];
        let judged = verifier.verify_told(events, rules(), asking).await.unwrap();
        assert!(
            matches!(&judged[0], Err(Dropped::KeysUnknown(_))),
            "{judged:?}"
        );
        assert!(judged[1].is_ok(), "{judged:?}");
    }
}

//! User-interactive authentication: which stages of a flow a client has completed, for which
//! request.
//!
//! A session belongs to one endpoint and one user, and from its first completed stage to one
//! request body, so that nobody's password is spent on another request than the one they saw. The
//! body is remembered as a hash only: it may hold a new password. Sessions live in memory, are
//! bounded in number and age, and end with the request they allow; a client whose session is gone
//! is asked again.
//!
//! A stage may also be completed on a page in a browser; the client then repeats its request with
//! the session alone.
//!
//! Specification: client-server API, "User-Interactive Authentication API".

use std::{sync::Arc, time::Duration};

use homeserver_runtime::Runtime;
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use ruma::OwnedUserId;

use super::secret::Secret;

/// Sessions that are remembered; the least used are forgotten first.
const MAX_SESSIONS: usize = 10_000;
/// How long a session lasts.
const LIFETIME: Duration = Duration::from_mins(15);
/// Letters of a session id.
const ID_LENGTH: usize = 24;

/// A step of a flow that this server offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The account's password.
    Password,
    /// Nothing at all.
    Dummy,
    /// A token handed out by the operator.
    RegistrationToken,
}

impl Stage {
    /// The name on the wire.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Password => "m.login.password",
            Self::Dummy => "m.login.dummy",
            Self::RegistrationToken => "m.login.registration_token",
        }
    }
}

/// The stages of each flow; completing all of one is enough.
pub(crate) type Flows = &'static [&'static [Stage]];

/// The request that is to be allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Operation {
    /// The endpoint, in any form that tells it from others.
    pub(crate) endpoint: &'static str,
    /// Who asks, where that is known.
    pub(crate) user: Option<OwnedUserId>,
    /// Hash of everything in the request but its `auth`.
    pub(crate) body: [u8; 32],
}

/// What the client has to do before its request is carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Challenge {
    /// Id to be sent back.
    pub(crate) session: String,
    /// What may be done.
    pub(crate) flows: Flows,
    /// What has been done.
    pub(crate) completed: Vec<Stage>,
    /// Why the last attempt at a stage failed, if it did.
    pub(crate) failure: Option<Failure>,
}

/// A stage that was completed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Completed {
    /// Which.
    pub(crate) stage: Stage,
    /// By which registration token, if by one.
    pub(crate) token: Option<Secret>,
}

/// What a completed flow has shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Proven {
    /// The registration token, which is to be spent with the account that it makes.
    pub(crate) token: Option<Secret>,
}

/// Why an attempt at a stage failed; the client may try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Not the password of the user who asks.
    WrongPassword,
    /// Not a registration token in use.
    WrongToken,
    /// Not a stage of any flow offered.
    UnknownStage,
}

#[derive(Debug)]
struct Progress {
    endpoint: &'static str,
    user: Option<OwnedUserId>,
    flows: Flows,
    /// Of the request that was refused last: what a stage completed elsewhere is for.
    asked: [u8; 32],
    /// Set by the first completed stage.
    body: Option<[u8; 32]>,
    /// The registration token that was shown.
    token: Option<Secret>,
    completed: Vec<Stage>,
    begun: Duration,
}

impl Progress {
    /// What the session is for.
    fn operation(&self) -> Operation {
        Operation {
            endpoint: self.endpoint,
            user: self.user.clone(),
            body: self.body.unwrap_or(self.asked),
        }
    }

    /// Whether one flow is complete.
    fn is_done(&self) -> bool {
        let done = |flow: &&[Stage]| flow.iter().all(|stage| self.completed.contains(stage));
        self.flows.iter().any(done)
    }
}

/// The stage of this name, if a flow has it.
pub(crate) fn offered(flows: Flows, name: &str) -> Option<Stage> {
    let mut stages = flows.iter().copied().flatten().copied();
    stages.find(|stage| stage.as_str() == name)
}

/// The sessions of one homeserver. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct InteractiveSessions {
    runtime: Runtime,
    sessions: Arc<Cache<String, Arc<Mutex<Progress>>>>,
}

impl InteractiveSessions {
    /// No sessions.
    pub(crate) fn new(runtime: Runtime) -> Self {
        Self {
            runtime,
            sessions: Arc::new(Cache::new(MAX_SESSIONS)),
        }
    }

    /// The session `id` if it is one of `operation`, else a new one.
    pub(crate) fn resume(
        &self,
        id: Option<&str>,
        operation: &Operation,
        flows: Flows,
    ) -> Challenge {
        if let Some(id) = id
            && let Some(progress) = self.sessions.get(id)
        {
            let mut progress = progress.lock();
            if self.fits(&progress, operation) {
                progress.asked = operation.body;
                return Challenge {
                    session: id.to_owned(),
                    flows,
                    completed: progress.completed.clone(),
                    failure: None,
                };
            }
        }
        self.begin(operation, flows)
    }

    /// Notes that a stage was completed. Once a flow is complete the session has ended, and the
    /// request may be carried out; until then there is more to do.
    pub(crate) fn complete(
        &self,
        mut challenge: Challenge,
        completed: Completed,
        operation: &Operation,
    ) -> Result<Proven, Challenge> {
        if !self.complete_elsewhere(&challenge.session, completed, operation) {
            return Err(self.begin(operation, challenge.flows));
        }
        // Of two requests that complete it at once, one is carried out.
        if let Some(proven) = self.finish(&challenge, operation) {
            return Ok(proven);
        }
        if let Some(progress) = self.sessions.get(&challenge.session) {
            challenge.completed.clone_from(&progress.lock().completed);
        }
        Err(challenge)
    }

    /// What a session has shown if a flow of it is complete; it has ended then, and the request may
    /// be carried out.
    pub(crate) fn finish(&self, challenge: &Challenge, operation: &Operation) -> Option<Proven> {
        let progress = self.sessions.get(&challenge.session)?;
        let progress = progress.lock();
        if !self.fits(&progress, operation) || !progress.is_done() {
            return None;
        }
        self.sessions.remove(&challenge.session)?;
        let token = progress.token.clone();
        Some(Proven { token })
    }

    /// The stage of this name, if session `id` offers it, and what it is for.
    pub(crate) fn offered(&self, id: &str, name: &str) -> Option<(Stage, Operation)> {
        let progress = self.sessions.get(id)?;
        let progress = progress.lock();
        let operation = progress.operation();
        let stage = offered(progress.flows, name)?;
        self.fits(&progress, &operation)
            .then_some((stage, operation))
    }

    /// Notes that a stage was completed elsewhere than with the request, for `operation` as
    /// [`InteractiveSessions::offered`] gave it. Gives whether the session was still there.
    pub(crate) fn complete_elsewhere(
        &self,
        id: &str,
        completed: Completed,
        operation: &Operation,
    ) -> bool {
        let Some(progress) = self.sessions.get(id) else {
            return false;
        };
        let mut progress = progress.lock();
        if !self.fits(&progress, operation) {
            return false;
        }
        progress.body = Some(operation.body);
        progress.token = completed.token.or(progress.token.take());
        if !progress.completed.contains(&completed.stage) {
            progress.completed.push(completed.stage);
        }
        true
    }

    fn begin(&self, operation: &Operation, flows: Flows) -> Challenge {
        let session = self.runtime.entropy.alphanumeric(ID_LENGTH);
        let progress = Progress {
            endpoint: operation.endpoint,
            user: operation.user.clone(),
            flows,
            asked: operation.body,
            body: None,
            token: None,
            completed: Vec::new(),
            begun: self.runtime.clock.monotonic(),
        };
        self.sessions
            .insert(session.clone(), Arc::new(Mutex::new(progress)));
        Challenge {
            session,
            flows,
            completed: Vec::new(),
            failure: None,
        }
    }

    fn fits(&self, progress: &Progress, operation: &Operation) -> bool {
        let age = self
            .runtime
            .clock
            .monotonic()
            .saturating_sub(progress.begun);
        age < LIFETIME
            && progress.endpoint == operation.endpoint
            && progress.user == operation.user
            && progress.body.is_none_or(|body| body == operation.body)
    }
}

#[cfg(test)]
mod tests {
    use homeserver_runtime::ManualClock;
    use ruma::owned_user_id;

    use super::*;

    const TWO: Flows = &[&[Stage::RegistrationToken, Stage::Dummy]];

    fn operation() -> Operation {
        Operation {
            endpoint: "register",
            user: None,
            body: [1; 32],
        }
    }

    fn done(stage: Stage) -> Completed {
        Completed { stage, token: None }
    }

    fn sessions() -> (InteractiveSessions, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::new(0));
        let runtime = Runtime::simulated(Arc::clone(&clock), 1);
        (InteractiveSessions::new(runtime), clock)
    }

    #[test]
    fn a_flow_is_completed_stage_by_stage_and_once() {
        let (sessions, _) = sessions();
        let asked = sessions.resume(None, &operation(), TWO);
        let id = asked.session.clone();
        let asked = sessions
            .complete(asked, done(Stage::RegistrationToken), &operation())
            .err();
        let asked = asked.expect("a stage is missing");
        assert_eq!(asked.completed, [Stage::RegistrationToken]);
        let again = sessions.resume(Some(&id), &operation(), TWO);
        assert_eq!(
            (again.session.as_str(), &again.completed),
            (id.as_str(), &asked.completed)
        );
        assert_eq!(
            sessions
                .complete(again.clone(), done(Stage::Dummy), &operation())
                .err(),
            None
        );
        let spent = sessions
            .complete(again, done(Stage::Dummy), &operation())
            .err();
        assert_ne!(spent.expect("spent").session, id);
    }

    #[test]
    fn a_session_serves_no_other_request() {
        let other_endpoint = Operation {
            endpoint: "password",
            ..operation()
        };
        let other_user = Operation {
            user: Some(owned_user_id!("@b:c")),
            ..operation()
        };
        let other_body = Operation {
            body: [2; 32],
            ..operation()
        };
        for (other, before_a_stage) in [
            (other_endpoint, false),
            (other_user, false),
            (other_body, true),
        ] {
            let (sessions, _) = sessions();
            let asked = sessions.resume(None, &operation(), TWO);
            let id = asked.session.clone();
            // Until a stage is completed, a client may still fill in its form.
            let resumed = sessions.resume(Some(&id), &other, TWO);
            assert_eq!(resumed.session == id, before_a_stage, "{other:?}");
            let _ = sessions.complete(asked.clone(), done(Stage::RegistrationToken), &operation());
            assert_ne!(
                sessions.resume(Some(&id), &other, TWO).session,
                id,
                "{other:?}"
            );
            let refused = sessions.complete(asked, done(Stage::Dummy), &other).err();
            assert_eq!(refused.expect("refused").completed, []);
        }
    }

    #[test]
    fn sessions_end_with_time() {
        let (sessions, clock) = sessions();
        let id = sessions.resume(None, &operation(), TWO).session;
        let almost = LIFETIME.saturating_sub(Duration::from_millis(1));
        clock.advance(almost);
        assert_eq!(sessions.resume(Some(&id), &operation(), TWO).session, id);
        clock.advance(Duration::from_millis(1));
        assert_ne!(sessions.resume(Some(&id), &operation(), TWO).session, id);
    }
}

//! The worker of one server: sends what it is owed, one transaction at a time.

use std::{sync::Arc, time::Duration};

use homeserver_runtime::Entropy;
use ruma::{OwnedServerName, ServerName};
use tokio::sync::SemaphorePermit;

use super::{
    Inner,
    course::{Course, Fate, Outcome},
    select::Selection,
    transaction,
};
use crate::{Call, CallError, Limits, Path};

/// How long the answer to a transaction is waited for: servers look at each event before.
const DEADLINE: Duration = Duration::from_mins(1);

/// Bytes of an answer that are read: an error for each of fifty events.
const ANSWER: usize = 256 * 1024;

/// After so long what could not be noted as arrived is sent again.
const NOTED_AGAIN: Duration = Duration::from_secs(5);

/// How long an answer is still waited for once the server stops.
const LAST_ANSWER: Duration = Duration::from_secs(3);

impl Inner {
    /// Sends a server what it is owed, until that is nothing or this server stops.
    pub(super) async fn work(self: Arc<Self>, server: OwnedServerName) {
        let mut course = Course::default();
        let mut pause = Duration::ZERO;
        while self.is_due(&server, pause).await {
            let Some(_turn) = self.turn(&server).await else {
                break;
            };
            pause = match self.select(&server, course.share).await {
                Err(error) => {
                    tracing::warn!(%error, %server, "rooms cannot be read for a transaction");
                    course.after(Outcome::Unwelcome, course.share);
                    self.pause(&course, Outcome::Unwelcome)
                }
                Ok(selection) if selection.is_empty() => {
                    let pause = self.settled(&server, &selection).await;
                    let was_whole = course.is_whole();
                    course.nothing();
                    if was_whole && self.rest(&server) {
                        return;
                    }
                    pause
                }
                Ok(selection) => self.attempt(&server, selection, &mut course).await,
            };
        }
        self.state.lock().end(&server);
        self.rested.notify_waiters();
    }

    /// Whether the worker ends, for there is nothing more to do.
    fn rest(&self, server: &ServerName) -> bool {
        let rests = self.state.lock().rest(server);
        if rests {
            self.rested.notify_waiters();
        }
        rests
    }

    /// Waits until a server may be sent something. `false` if this server stops before.
    async fn is_due(&self, server: &ServerName, pause: Duration) -> bool {
        let tasks = &self.runtime.tasks;
        tokio::select! {
            biased;
            () = tasks.stopping() => return false,
            () = tokio::time::sleep(pause), if !pause.is_zero() => {}
            () = std::future::ready(()), if pause.is_zero() => {}
        }
        tokio::select! {
            biased;
            () = tasks.stopping() => false,
            () = self.federation.health.due(server) => true,
        }
    }

    /// A place among those who send. `None` if this server stops before.
    async fn turn(&self, server: &ServerName) -> Option<SemaphorePermit<'_>> {
        let is_well = self.federation.health.failing(server).is_none();
        let places = if is_well {
            &self.at_once
        } else {
            &self.tried_at_once
        };
        tokio::select! {
            biased;
            () = self.runtime.tasks.stopping() => None,
            place = places.acquire() => place.ok(),
        }
    }

    /// Sends a transaction. Gives how long to wait before the next.
    async fn attempt(
        &self,
        server: &ServerName,
        selection: Selection,
        course: &mut Course,
    ) -> Duration {
        let Some(outcome) = self.send(server, &selection).await else {
            // Stopping.
            return Duration::ZERO;
        };
        match course.after(outcome, selection.share()) {
            Fate::Over => {
                if outcome != Outcome::Delivered {
                    log_given_up(server, &selection);
                }
                let pause = self.settled(server, &selection).await;
                if !pause.is_zero() {
                    return pause;
                }
            }
            Fate::Again => {
                self.state.lock().change(server, |owed| {
                    owed.fall_behind();
                    owed.edus.fall_behind();
                });
            }
            Fate::Forget => {
                tracing::info!(%server, "nothing more is sent to a server that is not spoken to");
                let owed = self.state.lock().change(server, std::mem::take);
                if let Some(upto) = owed.edus.to_device
                    && let Err(error) = self.users.outgoing.delivered(server, upto).await
                {
                    tracing::warn!(%server, %error, "messages to devices are not deleted");
                }
            }
        }
        self.pause_for(server, course, outcome)
    }

    /// Notes what has arrived. Gives how long to wait if that could not be stored.
    async fn settled(&self, server: &ServerName, selection: &Selection) -> Duration {
        match self.settle(server, selection).await {
            Ok(()) => Duration::ZERO,
            Err(error) => {
                tracing::warn!(%error, %server, "what arrived at another server was not noted");
                NOTED_AGAIN
            }
        }
    }

    /// The pause that is not [`Health`](crate::Health)'s: a sign of life ends that one.
    fn pause_for(&self, server: &ServerName, course: &Course, outcome: Outcome) -> Duration {
        let health = &self.federation.health;
        if outcome == Outcome::Unreachable && health.failing(server).is_some() {
            return Duration::ZERO;
        }
        self.pause(course, outcome)
    }

    fn pause(&self, course: &Course, outcome: Outcome) -> Duration {
        let jitter = <dyn Entropy>::number(&*self.runtime.entropy);
        course.pause(outcome, self.federation.health.retry(), jitter)
    }

    /// Sends a transaction; `None` if this server stops before there is an answer.
    async fn send(&self, server: &ServerName, selection: &Selection) -> Option<Outcome> {
        let body = transaction::body(
            self.federation.own_keys.server(),
            self.runtime.clock.unix_millis(),
            &selection.events,
            &selection.edus,
        );
        let path = Path::v1("send").segment(transaction::id(&body));
        let limits = Limits {
            body: ANSWER,
            deadline: DEADLINE,
            stall: DEADLINE,
        };
        let call = Call::put(path, body).apart().limits(limits);
        let answer = self.federation.peers.ask(server, call);
        let tasks = &self.runtime.tasks;
        let stopped = async {
            tasks.stopping().await;
            tokio::time::sleep(LAST_ANSWER).await;
        };
        let answer = tokio::select! {
            biased;
            answer = answer => answer,
            () = stopped => return None,
        };
        Some(match answer {
            Ok(answer) => {
                transaction::log_refused_events(server, &answer);
                Outcome::Delivered
            }
            Err(error) => {
                log_failure(server, &error);
                Outcome::of(&error)
            }
        })
    }
}

fn log_failure(server: &ServerName, error: &CallError) {
    match error {
        CallError::BackingOff(_) | CallError::Busy => {}
        CallError::Transport(_) => tracing::debug!(%server, %error, "a transaction did not arrive"),
        _ => tracing::info!(%server, %error, "a transaction was refused"),
    }
}

fn log_given_up(server: &ServerName, selection: &Selection) {
    let events = selection
        .events
        .iter()
        .map(homeserver_events::Pdu::event_id);
    let events: Vec<_> = events.collect();
    let edus = selection.edus.iter().map(|(edu_type, _)| *edu_type);
    let edus: Vec<_> = edus.collect();
    tracing::warn!(%server, ?events, ?edus, "another server refuses this: it is given up");
}

//! How a worker goes on after each attempt. Pure.
//!
//! What is wrong with a server is waited out; what is wrong with a transaction is looked for: it is
//! halved until one part is left, which is given up. A server that refuses whatever it is sent is
//! asked less and less often.

use std::time::Duration;

use http::StatusCode;

use super::transaction::{MAX_EDUS, MAX_EVENTS};
use crate::{CallError, Retry, TransportError};

/// Refusals in a row that are not waited for: so many halvings find one part among 150.
const UNPUNISHED: u32 = 10;

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The server has it.
    Delivered,
    /// The server was not reached, or is not well.
    Unreachable,
    /// The server is well and wants nothing of us.
    Unwelcome,
    /// The server does not want these contents.
    Indigestible,
    /// The server is not spoken to.
    Denied,
}

impl Outcome {
    pub(super) fn of(error: &CallError) -> Self {
        match error {
            CallError::Disabled | CallError::OwnServer | CallError::NotAdmitted(_) => Self::Denied,
            // It answered 200.
            CallError::BadAnswer(_) | CallError::Transport(TransportError::TooLarge(_)) => {
                Self::Delivered
            }
            CallError::BackingOff(_) | CallError::Busy | CallError::Transport(_) => {
                Self::Unreachable
            }
            CallError::OwnRequest(_) => Self::Indigestible,
            CallError::Refused { status, .. } => match *status {
                StatusCode::TOO_MANY_REQUESTS => Self::Unreachable,
                StatusCode::UNAUTHORIZED
                | StatusCode::FORBIDDEN
                | StatusCode::NOT_FOUND
                | StatusCode::METHOD_NOT_ALLOWED
                | StatusCode::REQUEST_TIMEOUT => Self::Unwelcome,
                status if status.is_client_error() => Self::Indigestible,
                status if status.is_server_error() => Self::Unreachable,
                _ => Self::Unwelcome,
            },
        }
    }
}

/// What a transaction may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) events: usize,
    pub(super) edus: usize,
}

impl Share {
    pub(super) const WHOLE: Self = Self {
        events: MAX_EVENTS,
        edus: MAX_EDUS,
    };
}

/// Where a worker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Course {
    /// What the next transaction may hold.
    pub(super) share: Share,
    /// Attempts in a row that did not succeed.
    failures: u32,
}

impl Default for Course {
    fn default() -> Self {
        Self {
            share: Share::WHOLE,
            failures: 0,
        }
    }
}

/// What becomes of what was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is done with: it has arrived, or is given up.
    Over,
    /// It is sent again, sooner or later.
    Again,
    /// All that waits for the server is given up.
    Forget,
}

impl Course {
    /// Goes on after an attempt with so many events and ephemeral messages.
    pub(super) fn after(&mut self, outcome: Outcome, sent: Share) -> Fate {
        match outcome {
            Outcome::Delivered => {
                self.failures = 0;
                self.share = self.next_share();
                Fate::Over
            }
            Outcome::Denied => Fate::Forget,
            Outcome::Unreachable | Outcome::Unwelcome => {
                self.failures = self.failures.saturating_add(1);
                Fate::Again
            }
            Outcome::Indigestible => {
                self.failures = self.failures.saturating_add(1);
                if sent.events + sent.edus <= 1 {
                    self.share = Share::WHOLE;
                    return Fate::Over;
                }
                self.share = halved(sent);
                Fate::Again
            }
        }
    }

    /// There was nothing to send within the share.
    pub(super) fn nothing(&mut self) {
        self.share = self.next_share();
    }

    /// After a part of what was refused was taken: the other kind, then both.
    fn next_share(&self) -> Share {
        if self.share.edus == 0 {
            Share {
                events: 0,
                edus: MAX_EDUS,
            }
        } else {
            Share::WHOLE
        }
    }

    /// Whether both kinds may be sent.
    pub(super) fn is_whole(&self) -> bool {
        self.share == Share::WHOLE
    }

    /// How long to wait before the next attempt, beside what the health of the server says.
    pub(super) fn pause(&self, outcome: Outcome, retry: Retry, jitter: u64) -> Duration {
        let counted = match outcome {
            Outcome::Delivered | Outcome::Denied => 0,
            Outcome::Indigestible => self.failures.saturating_sub(UNPUNISHED),
            Outcome::Unreachable | Outcome::Unwelcome => self.failures,
        };
        if counted == 0 {
            return Duration::ZERO;
        }
        retry.pause(counted, jitter)
    }
}

/// Half of what was refused: one kind where there were both, then half of that.
fn halved(sent: Share) -> Share {
    match (sent.events, sent.edus) {
        (events, 0) => Share {
            events: events / 2,
            edus: 0,
        },
        (0, edus) => Share {
            events: 0,
            edus: edus / 2,
        },
        (events, _) => Share { events, edus: 0 },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// Sends numbered events and messages to a server that does not want some; gives what arrived
    /// and how many attempts it took.
    fn send(events: usize, edus: usize, unwanted: &[usize]) -> (Vec<usize>, usize) {
        let mut course = Course::default();
        let mut events: VecDeque<usize> = (0..events).collect();
        let mut edus: VecDeque<usize> = (1_000..1_000 + edus).collect();
        let (mut arrived, mut attempts) = (Vec::new(), 0);
        while !events.is_empty() || !edus.is_empty() {
            let some: Vec<_> = events.iter().take(course.share.events).copied().collect();
            let more: Vec<_> = edus.iter().take(course.share.edus).copied().collect();
            let sent = Share {
                events: some.len(),
                edus: more.len(),
            };
            let all: Vec<_> = some.iter().chain(&more).copied().collect();
            if all.is_empty() {
                assert!(!course.is_whole());
                course.nothing();
                continue;
            }
            attempts += 1;
            assert!(attempts < 1_000, "endless");
            let taken = !all.iter().any(|one| unwanted.contains(one));
            let outcome = if taken {
                Outcome::Delivered
            } else {
                Outcome::Indigestible
            };
            if course.after(outcome, sent) == Fate::Over {
                events.drain(..some.len());
                edus.drain(..more.len());
                if taken {
                    arrived.extend(all);
                }
            }
        }
        arrived.sort_unstable();
        (arrived, attempts)
    }

    #[test]
    fn only_what_is_not_wanted_is_given_up() {
        for unwanted in [
            vec![],
            vec![0],
            vec![49],
            vec![17, 30],
            vec![1_000],
            vec![1_099, 3],
        ] {
            let (arrived, attempts) = send(60, 110, &unwanted);
            let all = (0..60).chain(1_000..1_110);
            let wanted: Vec<_> = all.filter(|one| !unwanted.contains(one)).collect();
            assert_eq!(arrived, wanted, "{unwanted:?}");
            assert!(attempts < 40, "{unwanted:?}: {attempts}");
        }
        let (arrived, _) = send(1, 1, &[0, 1_000]);
        assert_eq!(arrived, [0; 0]);
    }

    #[test]
    fn who_refuses_everything_is_asked_less_and_less() {
        let retry = Retry {
            shortest: Duration::from_secs(1),
            longest: Duration::from_hours(1),
        };
        let mut course = Course::default();
        let one = Share { events: 1, edus: 0 };
        for _ in 0..UNPUNISHED {
            assert_eq!(course.after(Outcome::Indigestible, one), Fate::Over);
            assert_eq!(
                course.pause(Outcome::Indigestible, retry, 0),
                Duration::ZERO
            );
        }
        let mut waited = Duration::ZERO;
        for _ in 0..20 {
            course.after(Outcome::Indigestible, one);
            waited += course.pause(Outcome::Indigestible, retry, 200);
        }
        assert!(waited > Duration::from_hours(7));
        course.after(Outcome::Delivered, one);
        assert_eq!(course, Course::default());
        assert_eq!(course.after(Outcome::Unwelcome, one), Fate::Again);
        let pause = course.pause(Outcome::Unwelcome, retry, 200);
        assert_eq!(pause, Duration::from_secs(1));
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let refused = |status| CallError::Refused {
            status: StatusCode::from_u16(status).unwrap(),
            errcode: String::new(),
            message: String::new(),
            body: bytes::Bytes::new(),
        };
        for (error, outcome) in [
            (CallError::Disabled, Outcome::Denied),
            (CallError::OwnServer, Outcome::Denied),
            (CallError::BadAnswer(String::new()), Outcome::Delivered),
            (CallError::Busy, Outcome::Unreachable),
            (CallError::OwnRequest(String::new()), Outcome::Indigestible),
            (refused(302), Outcome::Unwelcome),
            (refused(400), Outcome::Indigestible),
            (refused(401), Outcome::Unwelcome),
            (refused(403), Outcome::Unwelcome),
            (refused(404), Outcome::Unwelcome),
            (refused(413), Outcome::Indigestible),
            (refused(429), Outcome::Unreachable),
            (refused(502), Outcome::Unreachable),
        ] {
            assert_eq!(Outcome::of(&error), outcome, "{error}");
        }
    }
}

//! The life cycle of an event: what a server has decided about it, and which decisions may follow
//! which.
//!
//! Storing a status, and asserting the old one when it changes, is the task of `rooms`.

use serde::{Deserialize, Serialize};

/// What has been decided about an event. `Before` names the state before the event (in `rooms`,
/// a state root).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventStatus<Before> {
    /// Known only as somebody's auth event or invitation: no state, no position, never a prev
    /// event of ours, never served without its room being checked.
    Outlier,
    /// Allowed by every check.
    Accepted {
        /// The state before the event.
        before: Before,
        /// Judged on incomplete state: to be judged again when the room is whole.
        partial: bool,
    },
    /// Allowed by its own auth events and the state before it, but not by the current state (or
    /// refused by a policy): takes part in resolution, never shown in a timeline, never an extremity.
    SoftFailed {
        /// The state before the event.
        before: Before,
        /// What it failed.
        why: SoftFailReason,
        /// Judged on incomplete state.
        partial: bool,
    },
    /// Not allowed: never shown, never part of a state.
    Rejected {
        /// What it failed.
        why: RejectReason,
        /// Judged on incomplete state.
        partial: bool,
    },
}

/// Which check an event was rejected by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RejectReason {
    /// The choice of its `auth_events`: duplicates, unexpected ones, rejected ones, another room.
    AuthEventSelection,
    /// The authorisation rules with the state of its `auth_events`.
    AuthEvents,
    /// The authorisation rules with the state before it.
    StateBefore,
}

/// Why an event is soft-failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SoftFailReason {
    /// The authorisation rules with the current state of the room.
    CurrentState,
    /// The room's policy server did not sign it.
    PolicyServer,
    /// A hook of the operator refused it.
    Hook,
}

/// A status without its particulars.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StatusKind {
    /// See [`EventStatus::Outlier`].
    Outlier,
    /// See [`EventStatus::Accepted`].
    Accepted,
    /// [`EventStatus::Accepted`] on incomplete state.
    PartialAccepted,
    /// See [`EventStatus::SoftFailed`].
    SoftFailed,
    /// [`EventStatus::SoftFailed`] on incomplete state.
    PartialSoftFailed,
    /// See [`EventStatus::Rejected`].
    Rejected,
    /// [`EventStatus::Rejected`] on incomplete state.
    PartialRejected,
}

impl StatusKind {
    /// Every kind.
    pub const ALL: [StatusKind; 7] = [
        StatusKind::Outlier,
        StatusKind::Accepted,
        StatusKind::PartialAccepted,
        StatusKind::SoftFailed,
        StatusKind::PartialSoftFailed,
        StatusKind::Rejected,
        StatusKind::PartialRejected,
    ];

    /// The statuses that may follow this one. This is the whole table: an event that is not known
    /// yet may get any status, and a status on complete state is final.
    pub const fn allowed_next(self) -> &'static [StatusKind] {
        match self {
            StatusKind::Outlier => &[
                StatusKind::Accepted,
                StatusKind::PartialAccepted,
                StatusKind::SoftFailed,
                StatusKind::PartialSoftFailed,
                StatusKind::Rejected,
                StatusKind::PartialRejected,
            ],
            StatusKind::PartialAccepted
            | StatusKind::PartialSoftFailed
            | StatusKind::PartialRejected => &[
                StatusKind::Accepted,
                StatusKind::SoftFailed,
                StatusKind::Rejected,
            ],
            StatusKind::Accepted | StatusKind::SoftFailed | StatusKind::Rejected => &[],
        }
    }

    /// Whether this status may be replaced by that one.
    pub fn may_become(self, next: StatusKind) -> bool {
        self.allowed_next().contains(&next)
    }
}

impl<Before> EventStatus<Before> {
    /// The status without its particulars.
    pub fn kind(&self) -> StatusKind {
        match self {
            EventStatus::Outlier => StatusKind::Outlier,
            EventStatus::Accepted { partial: false, .. } => StatusKind::Accepted,
            EventStatus::Accepted { partial: true, .. } => StatusKind::PartialAccepted,
            EventStatus::SoftFailed { partial: false, .. } => StatusKind::SoftFailed,
            EventStatus::SoftFailed { partial: true, .. } => StatusKind::PartialSoftFailed,
            EventStatus::Rejected { partial: false, .. } => StatusKind::Rejected,
            EventStatus::Rejected { partial: true, .. } => StatusKind::PartialRejected,
        }
    }

    /// Whether this status may be replaced by that one.
    pub fn may_become(&self, next: &EventStatus<Before>) -> bool {
        self.kind().may_become(next.kind())
    }

    /// The state before the event, if the event has one.
    pub fn before(&self) -> Option<&Before> {
        match self {
            EventStatus::Accepted { before, .. } | EventStatus::SoftFailed { before, .. } => {
                Some(before)
            }
            EventStatus::Outlier | EventStatus::Rejected { .. } => None,
        }
    }

    /// Whether the event must be judged again when the room's state is complete.
    pub fn is_partial(&self) -> bool {
        matches!(
            self,
            EventStatus::Accepted { partial: true, .. }
                | EventStatus::SoftFailed { partial: true, .. }
                | EventStatus::Rejected { partial: true, .. }
        )
    }

    /// The same decision, made on incomplete state or on complete state.
    #[must_use]
    pub fn judged_on(mut self, incomplete: bool) -> Self {
        match &mut self {
            EventStatus::Outlier => {}
            EventStatus::Accepted { partial, .. }
            | EventStatus::SoftFailed { partial, .. }
            | EventStatus::Rejected { partial, .. } => *partial = incomplete,
        }
        self
    }

    /// Whether the event is not allowed, as far as is known.
    pub fn is_rejected(&self) -> bool {
        matches!(self, EventStatus::Rejected { .. })
    }

    /// Whether the event may stand in a timeline.
    pub fn is_shown(&self) -> bool {
        matches!(self, EventStatus::Accepted { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_becomes_an_outlier_and_final_statuses_stay() {
        for kind in StatusKind::ALL {
            assert!(!kind.may_become(StatusKind::Outlier));
            assert!(!kind.may_become(kind));
        }
        for kind in [
            StatusKind::Accepted,
            StatusKind::SoftFailed,
            StatusKind::Rejected,
        ] {
            assert_eq!(kind.allowed_next(), []);
        }
    }

    #[test]
    fn a_partial_judgement_is_replaced_by_a_whole_one_only() {
        let partial: EventStatus<u64> = EventStatus::Accepted {
            before: 1,
            partial: true,
        };
        let rejected = EventStatus::Rejected {
            why: RejectReason::StateBefore,
            partial: false,
        };
        let still = EventStatus::Rejected {
            why: RejectReason::StateBefore,
            partial: true,
        };
        assert!(partial.may_become(&rejected));
        assert!(!partial.may_become(&still));
        assert!(!rejected.may_become(&partial));
        assert!(partial.is_partial() && partial.is_shown());
        assert!(!partial.is_rejected() && still.is_rejected() && rejected.is_rejected());
        assert_eq!(partial.before(), Some(&1));
        assert_eq!(rejected.before(), None);
    }
}

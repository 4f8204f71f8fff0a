//! Push rules: what an event means to one user's notifications.
//!
//! [`Rules`] is a user's ruleset made ready for many events; [`Rules::evaluate`] gives the outcome
//! of the first rule that matches. [`classify`] answers, once per event and without knowing any
//! member, which server-default rule everybody's ruleset would pick, so that unread counts of users
//! with default rules can be added up instead of evaluated.
//!
//! What this deliberately is not: storage of rules (crate `users`), receipts and counts (crate
//! `homeserver`), or sending anything to a gateway. The types that travel on the wire are ruma's;
//! the evaluation is our own because ruma's is asynchronous, compiles a regular expression for each
//! pattern and event, and recurses once per word of a message.
//!
//! Specification: Client-Server API, "Push Notifications", and the appendices "Glob-style matching"
//! and "Dot-separated property paths".

mod class;
mod condition;
mod event;
mod glob;
mod rules;
mod verdict;

#[cfg(test)]
mod tests;

pub use self::{
    class::{
        Class, Classification, MAX_MENTIONED_USERS, MAX_THREAD_HOPS, Mentions, Relation, classify,
        thread_root,
    },
    condition::{Context, DEFAULT_NOTIFICATION_LEVEL, SenderPermission},
    event::{PushEvent, property_path},
    glob::{Glob, MAX_PATTERN_CHARS},
    rules::{MAX_CONDITIONS, MAX_STEPS, Outcome, Rules, default_ruleset},
    verdict::{ClassRules, Verdict, Verdicts},
};

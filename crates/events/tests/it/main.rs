//! Tests of the events crate as its users see it: vectors, properties, comparison with ruma's
//! implementation, and a table of the authorisation rules.
//!
//! Properties run 10,000 cases where a case is cheap; `PROPTEST_CASES` overrides the number.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod advisories;
mod auth_rules;
mod differential;
mod fuzz;
mod properties;
mod room;
mod vectors;

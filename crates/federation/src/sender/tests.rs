//! Sending over a wire that keeps what it is given.

mod backlogs;
mod deliveries;
mod edus;
mod refusals;
mod support;

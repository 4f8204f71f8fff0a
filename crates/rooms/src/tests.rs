//! Rooms on the memory engine: what commands do, and what readers see of it.

mod commands;
mod paging;
mod support;
mod transactions;
mod versions;

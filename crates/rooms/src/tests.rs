//! Rooms on the memory engine: what commands do, and what readers see of it.

mod arrivals;
mod backfills;
mod batches;
mod commands;
mod convergence;
mod counting;
mod crash;
mod fetched;
mod forks;
mod fuzz;
mod imports;
mod member_state;
mod mortal;
mod outgoing;
mod paging;
mod peer;
mod receiving;
mod redactions;
mod rows;
mod serving;
mod support;
mod sweeps;
mod switches;
mod transactions;
mod upgrades;
mod versions;

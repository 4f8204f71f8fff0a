//! All integration tests in one program.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "these are tests, helpers included"
)]

mod advisories;
mod architecture;
mod federation;
mod kill;
mod real_clients;
mod simulation;
mod wire;

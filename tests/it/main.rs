//! All integration tests in one program.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "these are tests, helpers included; what they print shows where they fail"
)]

mod advisories;
mod architecture;
mod federation;
mod kill;
mod real_clients;
mod simulation;
mod wire;

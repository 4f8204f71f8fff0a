//! The homeserver binary.
fn main() {}

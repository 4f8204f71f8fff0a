//! Integration tests: the homeserver over real HTTP, real clients, crash rounds.

//! A Matrix homeserver as a library: sessions, sync, HTTP API, configuration, embedding.

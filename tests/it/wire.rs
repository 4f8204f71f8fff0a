//! The Client-Server API over real HTTP, endpoint by endpoint.

mod accounts;
mod encryption;
mod media;
mod reading;
mod rooms;
mod routes;
mod syncing;
mod user_data;

//! The Client-Server API over real HTTP, endpoint by endpoint.

mod accounts;
mod bodies;
mod encryption;
mod first_minute;
mod limited;
mod media;
mod paths;
mod readers;
mod reading;
mod refusals;
mod rooms;
mod routes;
mod secrets;
mod signing;
mod syncing;
mod user_data;

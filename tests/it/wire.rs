//! The Client-Server API over real HTTP, endpoint by endpoint.

mod routes;

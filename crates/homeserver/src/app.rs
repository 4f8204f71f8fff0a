//! What the server does, without saying how the request came: no axum, no status codes.

pub(crate) mod acquaintance;
pub(crate) mod authentication;
pub(crate) mod closing;
pub(crate) mod ignored;
pub(crate) mod interactive;
pub(crate) mod invitation;
pub(crate) mod leftovers;
pub(crate) mod limits;
pub(crate) mod login;
pub(crate) mod operator;
pub(crate) mod passwords;
pub(crate) mod profiles;
pub(crate) mod push_rules;
pub(crate) mod pushers;
pub(crate) mod receipts;
pub(crate) mod registration;
pub(crate) mod remote_media;
pub(crate) mod reports;
pub(crate) mod rooms;
pub(crate) mod secret;
pub(crate) mod session;
pub(crate) mod settings;
pub(crate) mod tokens;
pub(crate) mod trimming;

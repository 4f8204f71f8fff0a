//! What belongs to a user: filters, account data, push rules, profile, presence, keys, messages to
//! devices.

mod account_data;
mod filter;
mod keys;
mod marks;
mod presence;
mod profile;
mod push_rules;
mod pushers;
mod to_device;

use homeserver_users::UserNumber;
use ruma::UserId;

use super::{ApiError, Routes};
use crate::app::session::Session;

pub(super) fn routes() -> Routes {
    Routes::new()
        .merge(account_data::routes())
        .merge(filter::routes())
        .merge(keys::routes())
        .merge(marks::routes())
        .merge(presence::routes())
        .merge(profile::routes())
        .merge(push_rules::routes())
        .merge(pushers::routes())
        .merge(to_device::routes())
}

/// The number of the session's user, if the path is about that user; 403 otherwise.
fn caller(session: &Session, user: &UserId) -> Result<UserNumber, ApiError> {
    if *user != session.user {
        return Err(ApiError::forbidden("This belongs to another user"));
    }
    Ok(session.user_number)
}

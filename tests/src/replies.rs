//! Every answer that says yes must parse as ruma's response type of its endpoint.

use http::Response;
use ruma::api::{IncomingResponse, IncomingResponseExt as _};

use crate::table::Row;

type Parse = fn(Response<&[u8]>) -> Result<(), String>;

fn parse<T: IncomingResponse>(response: Response<&[u8]>) -> Result<(), String> {
    match T::try_from_http_response(response) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// Names modules below `ruma::api::client` beside the function that parses their `Response`.
macro_rules! responses {
    ($($($segment:ident)::+,)+) => {
        &[$((
            concat!("ruma::api::client" $(, "::", stringify!($segment))+),
            parse::<ruma::api::client::$($segment)::+::Response>,
        ),)+]
    };
}

/// By the name that the endpoints table has.
const RESPONSES: &[(&str, Parse)] = responses![
    account::add_3pid::v3,
    account::bind_3pid::v3,
    account::change_password::v3,
    account::check_registration_token_validity::v1,
    account::deactivate::v3,
    account::delete_3pid::v3,
    account::get_3pids::v3,
    account::get_username_availability::v3,
    account::register::v3,
    account::request_3pid_management_token_via_email::v3,
    account::request_3pid_management_token_via_msisdn::v3,
    account::request_openid_token::v3,
    account::request_password_change_token_via_email::v3,
    account::request_password_change_token_via_msisdn::v3,
    account::request_registration_token_via_email::v3,
    account::request_registration_token_via_msisdn::v3,
    account::unbind_3pid::v3,
    account::whoami::v3,
    admin::get_user_info::v3,
    admin::is_user_locked::v1,
    admin::is_user_suspended::v1,
    admin::lock_user::v1,
    admin::suspend_user::v1,
    alias::create_alias::v3,
    alias::delete_alias::v3,
    alias::get_alias::v3,
    appservice::request_ping::v1,
    appservice::set_room_visibility::v3,
    authenticated_media::get_content::v1,
    authenticated_media::get_content_as_filename::v1,
    authenticated_media::get_content_thumbnail::v1,
    authenticated_media::get_media_config::v1,
    authenticated_media::get_media_preview::v1,
    backup::add_backup_keys::v3,
    backup::add_backup_keys_for_room::v3,
    backup::add_backup_keys_for_session::v3,
    backup::create_backup_version::v3,
    backup::delete_backup_keys::v3,
    backup::delete_backup_keys_for_room::v3,
    backup::delete_backup_keys_for_session::v3,
    backup::delete_backup_version::v3,
    backup::get_backup_info::v3,
    backup::get_backup_keys::v3,
    backup::get_backup_keys_for_room::v3,
    backup::get_backup_keys_for_session::v3,
    backup::get_latest_backup_info::v3,
    backup::update_backup_version::v3,
    config::get_global_account_data::v3,
    config::get_room_account_data::v3,
    config::set_global_account_data::v3,
    config::set_room_account_data::v3,
    context::get_context::v3,
    device::delete_device::v3,
    device::delete_devices::v3,
    device::get_device::v3,
    device::get_devices::v3,
    device::update_device::v3,
    directory::get_public_rooms::v3,
    directory::get_public_rooms_filtered::v3,
    directory::get_room_visibility::v3,
    directory::set_room_visibility::v3,
    discovery::discover_homeserver,
    discovery::discover_policy_server,
    discovery::discover_support,
    discovery::get_authorization_server_metadata::v1,
    discovery::get_capabilities::v3,
    discovery::get_supported_versions,
    filter::create_filter::v3,
    filter::get_filter::v3,
    keys::claim_keys::v3,
    keys::get_key_changes::v3,
    keys::get_keys::v3,
    keys::upload_keys::v3,
    keys::upload_signatures::v3,
    keys::upload_signing_keys::v3,
    knock::knock_room::v3,
    media::create_content::v3,
    media::create_content_async::v3,
    media::create_mxc_uri::v1,
    media::get_content::v3,
    media::get_content_as_filename::v3,
    media::get_content_thumbnail::v3,
    media::get_media_config::v3,
    media::get_media_preview::v3,
    membership::ban_user::v3,
    membership::forget_room::v3,
    membership::get_member_events::v3,
    membership::get_mutual_rooms::v1,
    membership::invite_user::v3,
    membership::join_room_by_id::v3,
    membership::join_room_by_id_or_alias::v3,
    membership::joined_members::v3,
    membership::joined_rooms::v3,
    membership::kick_user::v3,
    membership::leave_room::v3,
    membership::unban_user::v3,
    message::get_message_events::v3,
    message::send_message_event::v3,
    peeking::get_current_state::v3,
    peeking::listen_to_new_events::v3,
    presence::get_presence::v3,
    presence::set_presence::v3,
    profile::delete_profile_field::v3,
    profile::get_avatar_url::v3,
    profile::get_display_name::v3,
    profile::get_profile::v3,
    profile::get_profile_field::v3,
    profile::set_avatar_url::v3,
    profile::set_display_name::v3,
    profile::set_profile_field::v3,
    push::delete_pushrule::v3,
    push::get_notifications::v3,
    push::get_pushers::v3,
    push::get_pushrule::v3,
    push::get_pushrule_actions::v3,
    push::get_pushrule_enabled::v3,
    push::get_pushrules_all::v3,
    push::get_pushrules_global_scope::v3,
    push::set_pusher::v3,
    push::set_pushrule::v3,
    push::set_pushrule_actions::v3,
    push::set_pushrule_enabled::v3,
    read_marker::set_read_marker::v3,
    receipt::create_receipt::v3,
    redact::redact_event::v3,
    relations::get_relating_events::v1,
    relations::get_relating_events_with_rel_type::v1,
    relations::get_relating_events_with_rel_type_and_event_type::v1,
    reporting::report_user::v3,
    room::aliases::v3,
    room::create_room::v3,
    room::get_event_by_timestamp::v1,
    room::get_room_event::v3,
    room::get_summary::v1,
    room::report_content::v3,
    room::report_room::v3,
    room::upgrade_room::v3,
    search::search_events::v3,
    session::get_login_token::v1,
    session::get_login_types::v3,
    session::login::v3,
    session::login_fallback,
    session::logout::v3,
    session::logout_all::v3,
    session::refresh_token::v3,
    session::sso_login::v3,
    session::sso_login_with_provider::v3,
    space::get_hierarchy::v1,
    state::get_state_event_for_key::v3,
    state::get_state_events::v3,
    state::send_state_event::v3,
    sync::sync_events::v3,
    tag::create_tag::v3,
    tag::delete_tag::v3,
    tag::get_tags::v3,
    thirdparty::get_location_for_protocol::v3,
    thirdparty::get_location_for_room_alias::v3,
    thirdparty::get_protocol::v3,
    thirdparty::get_protocols::v3,
    thirdparty::get_user_for_protocol::v3,
    thirdparty::get_user_for_user_id::v3,
    threads::get_threads::v1,
    to_device::send_event_to_device::v3,
    typing::create_typing_event::v3,
    uiaa::get_uiaa_fallback_page::v3,
    user_directory::search_users::v3,
    voip::get_turn_server_info::v3,
];

/// Where `{}` stands for "there is none": clients in use expect it from a server without TURN servers.
const EMPTY_ALLOWED: &[&str] = &["ruma::api::client::voip::get_turn_server_info::v3"];

/// What is wrong with an answer of 2xx to a request of this row, if anything.
pub(crate) fn fault(row: &Row, response: Response<&[u8]>) -> Option<String> {
    if EMPTY_ALLOWED.contains(&row.ruma) && response.body() == b"{}" {
        return None;
    }
    parser(row)?(response).err()
}

fn parser(row: &Row) -> Option<Parse> {
    let found = RESPONSES.iter().find(|(name, _)| *name == row.ruma);
    found.map(|(_, parse)| *parse)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table;

    #[test]
    fn every_endpoint_that_is_built_has_a_type() {
        let missing = table::rows()
            .iter()
            .filter(|row| row.built && parser(row).is_none());
        let missing: Vec<_> = missing
            .map(|row| (&row.method, row.path, row.ruma))
            .collect();
        assert!(missing.is_empty(), "{missing:#?}");
    }

    #[test]
    fn an_answer_without_what_it_must_hold_is_a_fault() {
        let row = table::find("GET", "/_matrix/client/v3/account/whoami").unwrap();
        let answer = |body: &'static str| Response::new(body.as_bytes());
        assert_eq!(fault(row, answer(r#"{"user_id":"@a:b"}"#)), None);
        assert!(fault(row, answer(r#"{"user_id":7}"#)).is_some());
    }
}

//! The table of all keys, with what kind of value each takes. It decides what an unknown key was
//! probably meant to be, and how a variable of the environment is read.

use toml::{Table, Value};

use super::ConfigError;

/// The kind of a key's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Text, taken as it is.
    Text,
    /// A whole number.
    Integer,
    /// A number that may have a fraction.
    Number,
    /// `true` or `false`.
    Bool,
    /// A list of texts.
    Texts,
}

/// Every key; `[]` stands for an index of a list.
pub(super) const KEYS: &[(&str, Kind)] = &[
    ("server_name", Kind::Text),
    ("listeners[].address", Kind::Text),
    ("listeners[].serves", Kind::Texts),
    ("listeners[].tls.certificate", Kind::Text),
    ("listeners[].tls.key", Kind::Text),
    ("http.max_connections", Kind::Integer),
    ("http.max_connections_per_address", Kind::Integer),
    ("http.idle_timeout", Kind::Integer),
    ("http.stall_timeout", Kind::Integer),
    ("http.trusted_proxies", Kind::Texts),
    ("storage.engine", Kind::Text),
    ("storage.path", Kind::Text),
    ("storage.cache_bytes", Kind::Integer),
    ("registration.mode", Kind::Text),
    ("registration.token", Kind::Text),
    ("registration.shared_secret", Kind::Text),
    ("sessions.access_token_lifetime", Kind::Integer),
    ("sessions.allow_token_in_query", Kind::Bool),
    ("profiles.require_login", Kind::Bool),
    ("rooms.default_version", Kind::Text),
    ("federation.enabled", Kind::Bool),
    ("federation.allowed_servers", Kind::Texts),
    ("federation.denied_servers", Kind::Texts),
    ("federation.extra_ca_certificates", Kind::Texts),
    ("federation.allowed_private_ranges", Kind::Texts),
    ("federation.key_servers", Kind::Texts),
    ("federation.requests_per_destination", Kind::Integer),
    ("federation.request_timeout", Kind::Integer),
    ("federation.retry_min", Kind::Integer),
    ("federation.retry_max", Kind::Integer),
    ("rate_limits.enabled", Kind::Bool),
    ("rate_limits.login.per_second", Kind::Number),
    ("rate_limits.login.burst", Kind::Integer),
    ("rate_limits.refresh.per_second", Kind::Number),
    ("rate_limits.refresh.burst", Kind::Integer),
    ("rate_limits.registration.per_second", Kind::Number),
    ("rate_limits.registration.burst", Kind::Integer),
    ("rate_limits.message.per_second", Kind::Number),
    ("rate_limits.message.burst", Kind::Integer),
    ("rate_limits.join.per_second", Kind::Number),
    ("rate_limits.join.burst", Kind::Integer),
    ("rate_limits.invite.per_second", Kind::Number),
    ("rate_limits.invite.burst", Kind::Integer),
    ("rate_limits.media.per_second", Kind::Number),
    ("rate_limits.media.burst", Kind::Integer),
    ("rate_limits.other.per_second", Kind::Number),
    ("rate_limits.other.burst", Kind::Integer),
    ("well_known.client_base_url", Kind::Text),
    ("well_known.server", Kind::Text),
    ("well_known.support_contact", Kind::Text),
    ("dns.servers", Kind::Texts),
    ("media.path", Kind::Text),
    ("media.max_upload_size", Kind::Integer),
    ("media.user_quota", Kind::Integer),
    ("media.remote_quota", Kind::Integer),
    ("media.allow_legacy_unauthenticated", Kind::Bool),
];

/// The kind of the key of this dotted name, if there is such a key.
pub(super) fn kind(name: &str) -> Option<Kind> {
    let found = KEYS.iter().find(|(known, _)| *known == name);
    found.map(|(_, kind)| *kind)
}

/// Whether `name` is a key or a table that holds keys.
fn is_known(name: &str) -> bool {
    KEYS.iter().any(|(known, _)| {
        let rest = known.strip_prefix(name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.') || rest.starts_with("[]"))
    })
}

/// An error for the first key of `table` that is not known.
pub(super) fn refuse_unknown(table: &Table) -> Result<(), ConfigError> {
    walk(table, "")
}

fn walk(table: &Table, prefix: &str) -> Result<(), ConfigError> {
    for (key, value) in table {
        let name = format!("{prefix}{key}");
        if !is_known(&name) {
            return Err(unknown(name));
        }
        match value {
            Value::Table(inner) => walk(inner, &format!("{name}."))?,
            Value::Array(items) => {
                for item in items.iter().filter_map(Value::as_table) {
                    walk(item, &format!("{name}[]."))?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// The error for an unknown key: it names the known key that looks most like it.
pub(super) fn unknown(key: String) -> ConfigError {
    /// Below this likeness a suggestion would confuse more than help.
    const ALIKE: f64 = 0.7;
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    // A key in the wrong section is as likely as a misspelt one: compare whole and last names.
    let likeness = |known: &str| {
        let whole = strsim::jaro_winkler(known, &key);
        whole.max(strsim::jaro_winkler(&last(known), &last(&key)) * 0.99)
    };
    let names = KEYS.iter().map(|(known, _)| *known);
    let sections = names
        .clone()
        .filter_map(|name| name.split(['.', '[']).next());
    let nearest = names
        .chain(sections)
        .map(|known| (likeness(known), known))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, known)| known.to_owned());
    ConfigError::UnknownKey { key, nearest }
}

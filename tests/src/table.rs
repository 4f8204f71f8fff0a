//! The endpoints table (`tests/data/endpoints.tsv`): every path under which the Client-Server API
//! is known, the current ones, the old ones and the unstable aliases, which shipped clients use.

use std::sync::LazyLock;

use reqwest::Method;

const ENDPOINTS: &str = include_str!("../data/endpoints.tsv");
const NOT_BUILT: &str = include_str!("../data/not_built.tsv");

/// Columns of the endpoints table.
mod column {
    pub(super) const API: usize = 0;
    pub(super) const METHOD: usize = 2;
    pub(super) const PATH: usize = 3;
    pub(super) const AUTH: usize = 4;
    pub(super) const RATE_LIMITED: usize = 5;
    pub(super) const RUMA: usize = 8;
    pub(super) const STATUS: usize = 11;
    pub(super) const NOTE: usize = 18;
}

/// One of the names that the endpoints go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// The paths of the specification.
    Current,
    /// The paths of specifications before 1.1: `r0`.
    Old,
    /// The paths of proposals.
    Unstable,
}

impl Dialect {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Current, Self::Old, Self::Unstable];
}

/// A method on a path.
#[derive(Debug)]
pub struct Row {
    /// The method.
    pub method: Method,
    /// The path, `{parameters}` in it.
    pub path: &'static str,
    /// The current path of the same endpoint, often this one.
    pub current: &'static str,
    /// Whether it answers nobody without an access token.
    pub needs_token: bool,
    /// Whether an access token, if there is one, must be good.
    pub reads_token: bool,
    /// Whether the specification says that requests are limited.
    pub rate_limited: bool,
    /// Whether this server has it.
    pub built: bool,
    /// The module of its types in ruma.
    pub ruma: &'static str,
    dialect: Dialect,
}

/// The rows of the Client-Server API that a server answers, each method and path once.
pub fn rows() -> &'static [Row] {
    static ROWS: LazyLock<Vec<Row>> = LazyLock::new(read);
    &ROWS
}

fn read() -> Vec<Row> {
    let lines = ENDPOINTS.lines().skip(1);
    let lines = lines.map(|line| line.split('\t').collect::<Vec<_>>());
    let mut rows: Vec<Row> = Vec::new();
    for fields in lines {
        let (method, path) = (fields[column::METHOD], fields[column::PATH]);
        let is_served = fields[column::API] == "client-server" && method != "OPTIONS";
        // The deprecated way to add a third-party identifier; the path itself can be read.
        let is_adding = [method, path] == ["POST", "/_matrix/client/v3/account/3pid"];
        let is_known = rows
            .iter()
            .any(|row| row.method == method && row.path == path);
        if is_served && !is_adding && !is_known {
            rows.push(row(&fields));
        }
    }
    assert!(rows.len() > 300, "the endpoints table was not read");
    rows
}

fn row(fields: &[&'static str]) -> Row {
    let path = fields[column::PATH];
    Row {
        method: fields[column::METHOD]
            .parse()
            .expect("the table names methods"),
        path,
        current: current(path, fields[column::NOTE]),
        needs_token: fields[column::AUTH] == "user token",
        // Who asks for the public rooms is counted by account.
        reads_token: fields[column::AUTH] != "none" || path.ends_with("/publicRooms"),
        rate_limited: fields[column::RATE_LIMITED] == "y",
        built: !is_missing(path),
        ruma: fields[column::RUMA],
        dialect: match fields[column::STATUS] {
            _ if path.contains("/r0/") => Dialect::Old,
            "unstable alias" => Dialect::Unstable,
            _ => Dialect::Current,
        },
    }
}

/// The current path of the endpoint that a row names.
fn current(path: &'static str, note: &'static str) -> &'static str {
    if is_field(path) {
        return "/_matrix/client/v3/profile/{userId}/{keyName}";
    }
    let note = note.split(" | ").next();
    note.and_then(|note| note.strip_prefix("same as "))
        .unwrap_or(path)
}

/// Whether a path names one field of a profile: once endpoints of their own, now two among others.
fn is_field(path: &str) -> bool {
    path.ends_with("/displayname") || path.ends_with("/avatar_url")
}

fn is_missing(path: &str) -> bool {
    let mut missing = NOT_BUILT
        .lines()
        .skip(1)
        .filter_map(|line| line.split('\t').next());
    missing.any(|part| path.contains(part))
}

/// The row of a request: where several fit, the one that says most.
pub fn find(method: &str, path: &str) -> Option<&'static Row> {
    fitting(method, path).max_by_key(|row| literals(row.path))
}

fn fitting(method: &str, path: &str) -> impl Iterator<Item = &'static Row> {
    rows()
        .iter()
        .filter(move |row| row.method == method && arguments(row.path, path).is_some())
}

fn literals(template: &str) -> usize {
    let segments = template.split('/');
    segments.filter(|segment| !segment.starts_with('{')).count()
}

/// The segments of a path without its query and without a slash at its end.
fn segments(path: &str) -> Vec<&str> {
    let path = path.split('?').next().unwrap_or_default();
    path.trim_end_matches('/').split('/').collect()
}

/// What a path has in the place of a template's parameters, if it fits. An empty state key may be
/// left out.
fn arguments<'a>(template: &str, path: &'a str) -> Option<Vec<&'a str>> {
    let (template, mut path) = (segments(template), segments(path));
    let has_state_key = matches!(template.last(), Some(&("{stateKey}" | "{state_key}")));
    if has_state_key && path.len() + 1 == template.len() {
        path.push("");
    }
    if template.len() != path.len() {
        return None;
    }
    let mut arguments = Vec::new();
    for (expected, given) in template.into_iter().zip(path) {
        if expected.starts_with('{') {
            arguments.push(given);
        } else if expected != given {
            return None;
        }
    }
    Some(arguments)
}

/// The path of a request in a dialect, as long as the dialect has a name for it.
pub fn in_dialect(dialect: Dialect, method: &str, path: &str) -> Option<String> {
    for row in fitting(method, path).filter(|row| !is_field(row.path)) {
        let arguments = arguments(row.path, path)?;
        let other = rows().iter().find(|other| {
            other.method == method
                && other.dialect == dialect
                && other.current == row.current
                && !is_field(other.path)
                && other.path.matches('{').count() == arguments.len()
        });
        if let Some(other) = other {
            let query = path
                .find('?')
                .map_or("", |at| path.get(at..).unwrap_or_default());
            return Some(fill(other.path, &arguments) + query);
        }
    }
    None
}

fn fill(template: &str, arguments: &[&str]) -> String {
    let mut arguments = arguments.iter();
    let filled = template.split('/').map(|segment| {
        if segment.starts_with('{') {
            arguments.next().unwrap_or(&segment)
        } else {
            segment
        }
    });
    filled.collect::<Vec<_>>().join("/")
}

impl Row {
    /// The path with plausible values for its parameters.
    pub fn example(&self) -> String {
        let segments = self.path.split('/').map(|segment| match segment {
            "{roomId}" | "{room_id}" => "!room:localhost",
            "{roomIdOrAlias}" | "{room_id_or_alias}" | "{roomAlias}" | "{room_alias}" => {
                "%23alias:localhost"
            }
            "{userId}" | "{user_id}" => "@user:localhost",
            "{eventId}" | "{event_id}" => "$event",
            "{serverName}" | "{server_name}" => "localhost",
            "{kind}" => "override",
            "{receiptType}" | "{receipt_type}" => "m.read",
            "{stateKey}" | "{state_key}" => "key",
            other if other.starts_with('{') => "value",
            other => other,
        });
        segments.collect::<Vec<_>>().join("/")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_find_their_row() {
        let cases = [
            (
                "GET",
                "/_matrix/client/v3/sync?since=1",
                "/_matrix/client/v3/sync",
            ),
            (
                "GET",
                "/_matrix/client/v3/profile/@a:b/displayname",
                "/_matrix/client/v3/profile/{user_id}/displayname",
            ),
            (
                "GET",
                "/_matrix/client/v3/profile/@a:b/m.tz",
                "/_matrix/client/v3/profile/{userId}/{keyName}",
            ),
            (
                "PUT",
                "/_matrix/client/v3/rooms/!r/state/m.room.topic",
                "/_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}",
            ),
        ];
        for (method, path, row) in cases {
            assert_eq!(find(method, path).map(|row| row.path), Some(row));
        }
        assert!(find("PATCH", "/_matrix/client/v3/sync").is_none());
    }

    #[test]
    fn paths_are_translated() {
        let cases = [
            (
                Dialect::Old,
                "GET",
                "/_matrix/client/v3/sync?timeout=0",
                Some("/_matrix/client/r0/sync?timeout=0"),
            ),
            (
                Dialect::Old,
                "PUT",
                "/_matrix/client/v3/profile/@a:b/displayname",
                Some("/_matrix/client/r0/profile/@a:b/displayname"),
            ),
            (
                Dialect::Unstable,
                "POST",
                "/_matrix/client/v3/knock/!r",
                Some("/_matrix/client/unstable/xyz.amorgan.knock/knock/!r"),
            ),
            (Dialect::Unstable, "GET", "/_matrix/client/v3/sync", None),
        ];
        for (dialect, method, path, translated) in cases {
            let found = in_dialect(dialect, method, path);
            assert_eq!(found.as_deref(), translated);
        }
    }
}

//! Server ACLs: which servers may take part in a room.
//!
//! The content of `m.room.server_acl` is read leniently, because a room lives with whatever was
//! sent: what is not a list counts as an empty one, what is not a text is no entry, and
//! `allow_ip_literals` that is not a boolean counts as `true`. It holds no event back from the
//! graph: it says which servers may ask and tell about the room.
//!
//! Names that lead to the same place are judged alike ([`crate::names`]), and ports do not count.
//!
//! Specification: Client-Server API, "Server Access Control Lists (ACLs) for rooms", and
//! Server-Server API of the same name.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
};

use ruma::ServerName;
use serde_json::Value;

use crate::{names::host_for_comparison, push::Glob};

/// Which servers may take part in a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerAcl {
    /// `None` where the room has no `m.room.server_acl`.
    lists: Option<Lists>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Lists {
    allow_ip_literals: bool,
    allow: Hosts,
    deny: Hosts,
}

/// Hosts that are named, and patterns of hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Hosts {
    named: HashSet<String>,
    globs: Vec<Glob>,
}

impl ServerAcl {
    /// That of a room without `m.room.server_acl`: everybody may.
    pub const fn open() -> Self {
        Self { lists: None }
    }

    /// That of a room with this content, as JSON, of `m.room.server_acl`.
    pub fn from_content(content: &str) -> Self {
        let content: Value = serde_json::from_str(content).unwrap_or_default();
        let allow_ip_literals = content.get("allow_ip_literals").and_then(Value::as_bool);
        Self {
            lists: Some(Lists {
                allow_ip_literals: allow_ip_literals.unwrap_or(true),
                allow: Hosts::of(content.get("allow")),
                deny: Hosts::of(content.get("deny")),
            }),
        }
    }

    /// Whether the server may take part.
    pub fn allows(&self, server: &ServerName) -> bool {
        let Some(lists) = &self.lists else {
            return true;
        };
        let host = host_for_comparison(server.host());
        if !lists.allow_ip_literals && is_ip_literal(&host) {
            return false;
        }
        !lists.deny.has(&host) && lists.allow.has(&host)
    }
}

impl Hosts {
    fn of(list: Option<&Value>) -> Self {
        let entries = list.and_then(Value::as_array).into_iter().flatten();
        let (patterns, named): (BTreeSet<&str>, BTreeSet<&str>) = entries
            .filter_map(Value::as_str)
            .partition(|entry| entry.contains(['*', '?']));
        let globs: BTreeSet<String> = patterns.into_iter().map(without_repeated_stars).collect();
        Self {
            named: named.into_iter().map(host_for_comparison).collect(),
            globs: globs.iter().map(|pattern| Glob::new(pattern)).collect(),
        }
    }

    fn has(&self, host: &str) -> bool {
        self.named.contains(host) || self.globs.iter().any(|glob| glob.matches_whole(host))
    }
}

/// Stars in a row mean what one means; too long a pattern would match nothing.
fn without_repeated_stars(pattern: &str) -> String {
    let mut shorter = String::with_capacity(pattern.len());
    for c in pattern.chars() {
        if c != '*' || !shorter.ends_with('*') {
            shorter.push(c);
        }
    }
    shorter
}

fn is_ip_literal(host: &str) -> bool {
    host.starts_with('[') || host.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests;

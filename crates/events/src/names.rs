//! When two names are of one server, and when a name is on a list: names that are written
//! differently and lead to the same place count as the same.

use std::net::Ipv6Addr;

use ruma::{OwnedServerName, ServerName};

/// A host, or a glob over hosts, as it is compared: in lower case, without the dot at the end that
/// a complete DNS name may have, and an IPv6 literal in its shortest form.
pub fn host_for_comparison(host: &str) -> String {
    let literal = host.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    if let Some(address) = literal.and_then(|it| it.parse::<Ipv6Addr>().ok()) {
        return format!("[{address}]");
    }
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// Whether two names are of one server: the same host, and the same port or none both.
pub fn is_same_server(one: &ServerName, other: &ServerName) -> bool {
    one.port() == other.port()
        && host_for_comparison(one.host()) == host_for_comparison(other.host())
}

/// The name by which a server is remembered: of all names of one server ([`is_same_server`]) the
/// same one. For keys of maps; who is spoken to is called by the name as it was written.
pub fn canonical_name(server: &ServerName) -> OwnedServerName {
    let host = host_for_comparison(server.host());
    let name = match server.port() {
        Some(port) => format!("{host}:{port}"),
        None => host,
    };
    OwnedServerName::try_from(name).unwrap_or_else(|_| server.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(one: &str, other: &str) -> bool {
        let parsed = |name| ServerName::parse(name).unwrap();
        let (one, other) = (parsed(one), parsed(other));
        let same = is_same_server(&one, &other);
        assert_eq!(same, canonical_name(&one) == canonical_name(&other));
        same
    }

    #[test]
    fn spellings_of_one_name_are_one_server() {
        assert!(same("a.example", "A.eXample"));
        assert!(same("a.example", "a.example."));
        assert!(same("a.example.:8448", "a.example:8448"));
        assert!(same("[::1]:80", "[0:0:0:0:0:0:0:1]:80"));
        assert!(same("[2001:DB8::A]", "[2001:db8:0::000a]"));
    }

    #[test]
    fn other_hosts_and_ports_are_other_servers() {
        assert!(!same("a.example", "b.example"));
        assert!(!same("a.example", "a.example:8448"));
        assert!(!same("a.example:1", "a.example:2"));
        assert!(!same("a.example", "a.example.."));
        assert!(!same("[::1]", "[::2]"));
    }
}

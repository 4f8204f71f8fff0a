//! What a server name says by itself.

use std::net::{IpAddr, SocketAddr};

use homeserver_outbound::Dial;
use ruma::ServerName;

/// A server name in its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Name<'a> {
    /// All of it, as the `Host` header has it.
    pub(super) whole: &'a str,
    /// The host; IPv6 addresses with their brackets.
    pub(super) host: &'a str,
    /// The port, if it has one.
    pub(super) port: Option<u16>,
}

impl<'a> Name<'a> {
    pub(super) fn of(name: &'a ServerName) -> Self {
        Self {
            whole: name.as_str(),
            host: name.host(),
            port: name.port(),
        }
    }

    /// What its certificate has to hold: the host, IPv6 addresses without brackets.
    pub(super) fn certificate(&self) -> &'a str {
        let unopened = self.host.strip_prefix('[');
        let bare = unopened.and_then(|rest| rest.strip_suffix(']'));
        bare.unwrap_or(self.host)
    }

    /// What to connect to, if it needs no asking: an address, or a host with its port.
    pub(super) fn dial(&self, default_port: u16) -> Option<Dial> {
        if let Ok(address) = self.certificate().parse::<IpAddr>() {
            let port = self.port.unwrap_or(default_port);
            return Some(Dial::Address(SocketAddr::new(address, port)));
        }
        let port = self.port?;
        Some(Dial::Names(vec![(self.host.to_owned(), port)]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_an_address_or_a_port_needs_no_asking() {
        let check = |text: &str, certificate: &str, dial: Option<Dial>| {
            let server = ServerName::parse(text).unwrap();
            let name = Name::of(&server);
            assert_eq!(name.whole, text);
            assert_eq!(name.certificate(), certificate, "{text}");
            assert_eq!(name.dial(8448), dial, "{text}");
        };
        let address = |text: &str| Some(Dial::Address(text.parse().unwrap()));
        check("1.2.3.4", "1.2.3.4", address("1.2.3.4:8448"));
        check("1.2.3.4:80", "1.2.3.4", address("1.2.3.4:80"));
        check("[1::2]", "1::2", address("[1::2]:8448"));
        check("[1::2]:80", "1::2", address("[1::2]:80"));
        let host = Dial::Names(vec![("a.example".to_owned(), 80)]);
        check("a.example:80", "a.example", Some(host));
        check("a.example", "a.example", None);
        // No address to us; to some resolvers, and the guard judges what they make of it.
        check("127.1", "127.1", None);
    }
}

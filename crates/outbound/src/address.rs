//! Which addresses may be connected to.
//!
//! Denied is everything that is not the public internet: the special-purpose registries of IANA
//! (RFC 6890 and successors), read as "deny unless known to be public". IPv6 forms that carry an
//! IPv4 address inside (mapped, NAT64, 6to4) are judged by the address inside, because that is
//! where the packet ends up.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The address is not one that may be connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{address} is in a range that outgoing requests may not reach")]
pub struct Denied {
    /// The address that was asked for.
    pub address: IpAddr,
}

/// Decides whether an address may be connected to. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct AddressPolicy {
    allowed: Arc<[IpNet]>,
}

/// IPv4 ranges that are not the public internet.
const DENIED_V4: [Ipv4Net; 15] = [
    v4([0, 0, 0, 0], 8),       // this network
    v4([10, 0, 0, 0], 8),      // private
    v4([100, 64, 0, 0], 10),   // carrier-grade NAT
    v4([127, 0, 0, 0], 8),     // loopback
    v4([169, 254, 0, 0], 16),  // link-local, cloud metadata services
    v4([172, 16, 0, 0], 12),   // private
    v4([192, 0, 0, 0], 24),    // protocol assignments
    v4([192, 0, 2, 0], 24),    // documentation
    v4([192, 88, 99, 0], 24),  // 6to4 relays, withdrawn
    v4([192, 168, 0, 0], 16),  // private
    v4([198, 18, 0, 0], 15),   // benchmarking
    v4([198, 51, 100, 0], 24), // documentation
    v4([203, 0, 113, 0], 24),  // documentation
    v4([224, 0, 0, 0], 4),     // multicast
    v4([240, 0, 0, 0], 4),     // reserved and broadcast
];

/// The only IPv6 range that holds public unicast addresses.
const GLOBAL_UNICAST_V6: Ipv6Net = v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3);

/// Ranges within [`GLOBAL_UNICAST_V6`] that are not the public internet.
const DENIED_V6: [Ipv6Net; 3] = [
    v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), // protocol assignments, Teredo, ORCHID
    v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32), // documentation
    v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20), // documentation
];

/// NAT64: the IPv4 destination is the last 32 bits (RFC 6052).
const NAT64: Ipv6Net = v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96);

/// 6to4: the IPv4 destination is the 32 bits after the prefix (RFC 3056).
const SIX_TO_FOUR: Ipv6Net = v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16);

const fn v4(octets: [u8; 4], prefix: u8) -> Ipv4Net {
    let [a, b, c, d] = octets;
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(segments: [u16; 8], prefix: u8) -> Ipv6Net {
    let s = segments;
    let address = Ipv6Addr::new(s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]);
    Ipv6Net::new_assert(address, prefix)
}

impl AddressPolicy {
    /// Public addresses, and besides them the addresses of `allowed`.
    #[must_use]
    pub fn public_and(allowed: impl IntoIterator<Item = IpNet>) -> Self {
        Self {
            allowed: allowed.into_iter().collect(),
        }
    }

    /// Whether `address` may be connected to.
    pub fn check(&self, address: IpAddr) -> Result<(), Denied> {
        let meant = innermost(address);
        let allowed = |net: &IpNet| net.contains(&meant) || net.contains(&address);
        if is_public(meant) || self.allowed.iter().any(allowed) {
            Ok(())
        } else {
            Err(Denied { address })
        }
    }
}

/// The IPv4 address that an IPv6 form carries, else the address itself.
fn innermost(address: IpAddr) -> IpAddr {
    let IpAddr::V6(outer) = address else {
        return address;
    };
    let [_, _, a, b, c, d, ..] = outer.octets();
    if let Some(mapped) = outer.to_ipv4_mapped() {
        mapped.into()
    } else if NAT64.contains(&outer) {
        let [.., a, b, c, d] = outer.octets();
        Ipv4Addr::new(a, b, c, d).into()
    } else if SIX_TO_FOUR.contains(&outer) {
        Ipv4Addr::new(a, b, c, d).into()
    } else {
        address
    }
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !DENIED_V4.iter().any(|net| net.contains(&address)),
        IpAddr::V6(address) => {
            GLOBAL_UNICAST_V6.contains(&address)
                && !DENIED_V6.iter().any(|net| net.contains(&address))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(policy: &AddressPolicy, addresses: &[&str], expected: bool) {
        for text in addresses {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(policy.check(address).is_ok(), expected, "{text}");
        }
    }

    const NOT_PUBLIC: &[&str] = &[
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "127.0.0.1",
        "127.255.255.254",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.8",
        "192.168.1.1",
        "198.18.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2002:a00:1::5",
        "2001::1",
        "2001:db8::1",
        "3fff::1",
        "100::1",
        "fc00::1",
        "fd12:3456::1",
        "fe80::1",
        "fec0::1",
        "ff02::1",
    ];

    const PUBLIC: &[&str] = &[
        "1.1.1.1",
        "9.255.255.255",
        "100.63.255.255",
        "100.128.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "223.255.255.255",
        "2606:4700::1111",
        "2a00:1450::1",
        "::ffff:1.1.1.1",
        "64:ff9b::101:101",
        "2002:101:101::1",
    ];

    #[test]
    fn only_public_addresses_by_default() {
        check(&AddressPolicy::default(), NOT_PUBLIC, false);
        check(&AddressPolicy::default(), PUBLIC, true);
    }

    #[test]
    fn allowed_ranges_open_just_themselves() {
        let policy = AddressPolicy::public_and([
            "127.0.0.0/8".parse().unwrap(),
            "fd00::/8".parse().unwrap(),
        ]);
        check(&policy, &["127.0.0.1", "::ffff:127.0.0.1", "fd12::1"], true);
        check(
            &policy,
            &["10.0.0.1", "::1", "fc00::1", "169.254.1.1"],
            false,
        );
        check(&policy, PUBLIC, true);
    }
}

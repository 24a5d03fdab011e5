//! Which addresses may be connected to. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

type Check = dyn Fn(IpAddr) -> Result<(), &'static str> + Send + Sync;

/// Decides for each address that a name resolves to, and for those that stand in a URL. The address that was
/// looked at is the one that is connected to, so a name that changes in between leads nowhere else.
///
/// A proxy resolves names itself. Behind one, only an address that stands in the URL is looked at.
#[derive(Clone)]
pub struct AddressPolicy(Arc<Check>);

impl AddressPolicy {
    /// Every address.
    pub fn any() -> Self {
        Self::new(|_| Ok(()))
    }

    /// What this says: the reason of a refusal is a part of the error's sentence, as in "is link-local".
    pub fn new(check: impl Fn(IpAddr) -> Result<(), &'static str> + Send + Sync + 'static) -> Self {
        Self(Arc::new(check))
    }

    /// No service of the node or of its cloud: not loopback, link-local, multicast, unspecified, and none of
    /// the addresses under which clouds answer with a machine's own credentials.
    ///
    /// For URLs that another party than the operator may write.
    pub fn no_node_services() -> Self {
        Self::new(|address| node_service(address).map_or(Ok(()), Err))
    }

    pub(crate) fn check(&self, address: IpAddr) -> Result<(), &'static str> {
        let address = address.to_canonical();
        if let Some(inner) = embedded(address) {
            (self.0)(inner)?;
        }
        (self.0)(address)
    }
}

impl fmt::Debug for AddressPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AddressPolicy")
    }
}

/// The IPv4 address that a translator makes of an IPv6 one: NAT64 (RFC 6052) and 6to4 (RFC 3056).
fn embedded(address: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(v6) = address else { return None };
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Some(IpAddr::V4(Ipv4Addr::new(a, b, c, d)))
    };
    match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        [0x2002, high, low, ..] => v4(high, low),
        _ => None,
    }
}

/// Services that give out a machine's credentials, outside of the link-local networks: AWS over IPv6, EKS Pod
/// Identity, Google Cloud over IPv6, Alibaba Cloud, Azure's wire server.
const METADATA: [IpAddr; 5] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
];

fn node_service(address: IpAddr) -> Option<&'static str> {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let first = [
        (address.is_loopback(), "is the node's loopback"),
        (link_local, "is link-local, where clouds have their metadata service"),
        (address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST), "is no single machine's"),
        (address.is_unspecified(), "is no address"),
        (METADATA.contains(&address), "is a cloud's metadata service"),
    ];
    first.into_iter().find_map(|(is, why)| is.then_some(why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_of_the_node_are_refused_however_they_are_written() {
        let policy = AddressPolicy::no_node_services();
        for address in [
            "127.0.0.1",
            "127.8.0.1",
            "::1",
            "169.254.169.254",
            "fe80::1",
            "::ffff:169.254.169.254",
            "::ffff:127.0.0.1",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
            "fd00:ec2::254",
            "fd00:ec2::23",
            "fd20:ce::254",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "2002:7f00:1::",
            "100.100.100.200",
            "168.63.129.16",
        ] {
            assert!(policy.check(address.parse().unwrap()).is_err(), "{address}");
        }
        for address in
            ["10.96.0.1", "192.168.1.1", "fd00::1", "203.0.113.7", "2001:db8::1", "64:ff9b::cb00:7107"]
        {
            assert_eq!(policy.check(address.parse().unwrap()), Ok(()), "{address}");
        }
        assert_eq!(AddressPolicy::any().check("169.254.169.254".parse().unwrap()), Ok(()));
    }
}

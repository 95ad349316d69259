//! Between the addresses of the standard library and those of the maps.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use weft_abi::{Addr, DestKey, FlowKey, IPPROTO_TCP};

/// An address as the maps have it.
#[must_use]
pub fn addr(ip: IpAddr) -> Addr {
    let octets = match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    Addr { words_be: bytemuck::cast(octets) }
}

/// An address of the maps; IPv4 if it is a mapped one.
#[must_use]
pub fn ip(addr: &Addr) -> IpAddr {
    let octets: [u8; 16] = bytemuck::cast(addr.words_be);
    Ipv6Addr::from(octets).to_canonical()
}

/// The key of a destination; `None` stands for every port of the address.
#[must_use]
pub fn dest_key(address: IpAddr, port: Option<u16>) -> DestKey {
    DestKey { addr: addr(address), port: port.unwrap_or(0), protocol: IPPROTO_TCP, pad: 0 }
}

/// The key of a connection in the namespace that accepts it.
#[must_use]
pub fn flow_key(netns_cookie: u64, local: SocketAddr, remote: SocketAddr) -> FlowKey {
    FlowKey {
        netns_cookie,
        local: addr(local.ip()),
        remote: addr(remote.ip()),
        local_port: local.port(),
        remote_port: remote.port(),
        pad: 0,
    }
}

/// The first IPv4 and the first IPv6 address, as `PodConfig` wants them.
#[must_use]
pub fn own_addresses(ips: &[IpAddr]) -> (Addr, Addr) {
    let first =
        |v4: bool| ips.iter().map(IpAddr::to_canonical).find(|ip| ip.is_ipv4() == v4).map_or_else(Addr::default, addr);
    (first(true), first(false))
}

/// The loopback address of a family.
#[must_use]
pub fn loopback(ip_version: u32) -> IpAddr {
    if ip_version == 4 { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_survives_the_way_through_the_maps() {
        for text in ["10.1.2.3", "255.255.255.255", "fd00::1", "fe80::a:b:c:d", "::1"] {
            let address: IpAddr = text.parse().expect(text);
            assert_eq!(ip(&addr(address)), address);
        }
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_address() {
        let mapped: IpAddr = "::ffff:10.1.2.3".parse().expect("mapped");
        let plain: IpAddr = "10.1.2.3".parse().expect("plain");
        assert_eq!(addr(mapped), addr(plain));
        assert_eq!(addr(plain), Addr::v4(u32::from_ne_bytes([10, 1, 2, 3])));
        assert_eq!(ip(&addr(mapped)), plain);
    }

    #[test]
    fn a_destination_without_a_port_has_port_zero() {
        let address: IpAddr = "10.1.2.3".parse().expect("address");
        assert_eq!(dest_key(address, None).port, 0);
        assert_eq!(dest_key(address, Some(80)).port, 80);
    }

    #[test]
    fn own_addresses_are_the_first_of_each_family() {
        let ips: Vec<IpAddr> =
            ["10.0.0.1", "fd00::1", "10.0.0.2"].iter().map(|ip| ip.parse().expect("address")).collect();
        assert_eq!(own_addresses(&ips), (addr(ips[0]), addr(ips[1])));
        assert_eq!(own_addresses(&ips[1..2]), (Addr::default(), addr(ips[1])));
    }
}

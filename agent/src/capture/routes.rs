//! Addresses of a namespace, and the rule and the route that bring answers to transparent sockets back to the agent. All functions
//! work on the namespace that the thread is in.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use weft_abi::{TRANSPARENT_MARK, TRANSPARENT_RULE_PREF, TRANSPARENT_TABLE};

use super::netlink::{Family, Netlink};

/// The loopback interface is always the first of a namespace (`LOOPBACK_IFINDEX` in the kernel).
const LOOPBACK_IFINDEX: u32 = 1;

/// All addresses that are configured here.
pub(crate) fn addresses() -> io::Result<Vec<IpAddr>> {
    let mut netlink = Netlink::open(Family::Route)?;
    let mut found = Vec::new();
    netlink.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()), |message| {
        if let RouteNetlinkMessage::NewAddress(message) = message {
            // On a point-to-point interface `Address` is the peer's, and `Local` ours.
            let local = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(ip) => Some(*ip),
                _ => None,
            });
            let address = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            });
            found.extend(local.or(address));
        }
    })?;
    Ok(found)
}

/// Adds rule and route for both families; those that are there already stay. IPv6 only where the kernel has it.
pub(crate) fn add(ipv6: bool) -> io::Result<()> {
    let mut netlink = Netlink::open(Family::Route)?;
    for family in families(ipv6) {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        unless(libc::EEXIST, netlink.change(RouteNetlinkMessage::NewRoute(route(family)), flags))?;
        unless(libc::EEXIST, netlink.change(RouteNetlinkMessage::NewRule(rule(family)), flags))?;
    }
    Ok(())
}

/// Removes them; whether there was anything to remove.
pub(crate) fn remove(ipv6: bool) -> io::Result<bool> {
    let mut netlink = Netlink::open(Family::Route)?;
    let mut removed = false;
    for family in families(ipv6) {
        let rule_gone = netlink.change(RouteNetlinkMessage::DelRule(rule(family)), 0);
        let route_gone = netlink.change(RouteNetlinkMessage::DelRoute(route(family)), 0);
        removed |= rule_gone.is_ok() || route_gone.is_ok();
        unless(libc::ENOENT, rule_gone)?;
        unless(libc::ESRCH, route_gone)?;
    }
    Ok(removed)
}

fn families(ipv6: bool) -> impl Iterator<Item = AddressFamily> {
    std::iter::once(AddressFamily::Inet).chain(ipv6.then_some(AddressFamily::Inet6))
}

fn unless(expected: i32, result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(expected) => Ok(()),
        other => other,
    }
}

/// `ip rule add fwmark MARK lookup TABLE pref PREF`.
fn rule(family: AddressFamily) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family;
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::Priority(TRANSPARENT_RULE_PREF),
        RuleAttribute::FwMark(TRANSPARENT_MARK),
        RuleAttribute::Table(TRANSPARENT_TABLE),
        RuleAttribute::Protocol(RouteProtocol::Static),
    ];
    rule
}

/// `ip route add local default dev lo table TABLE`: every address is ours, for packets that carry the mark.
fn route(family: AddressFamily) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = family;
    route.header.table = RouteHeader::RT_TABLE_UNSPEC;
    route.header.protocol = RouteProtocol::Static;
    route.header.scope = RouteScope::Host;
    route.header.kind = RouteType::Local;
    let any = if family == AddressFamily::Inet {
        RouteAddress::Inet(Ipv4Addr::UNSPECIFIED)
    } else {
        RouteAddress::Inet6(Ipv6Addr::UNSPECIFIED)
    };
    route.attributes = vec![
        RouteAttribute::Destination(any),
        RouteAttribute::Table(TRANSPARENT_TABLE),
        RouteAttribute::Oif(LOOPBACK_IFINDEX),
    ];
    route
}

//! Which interfaces there are, and which of them to capture.
//!
//! Asks the kernel over rtnetlink(7), not over /sys, because /sys shows the network namespace of whoever mounted it and netlink
//! that of the thread that asks. [`choose`] is pure: interfaces and routes go in, a choice comes out. Sends nothing to any
//! network.

mod netlink;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::filter::{FilterLink, OutgoingPolicy};
use super::socket::SocketError;
use netlink::{
    ADDRESS_HEADER_BYTES, DUMP, LINK_HEADER_BYTES, Netlink, ROUTE_HEADER_BYTES, append_attribute, low_byte,
    parse_address, parse_drops, parse_link, parse_route,
};

/// An address to which a default route must lead where there is one (documentation networks, RFC 5737 and RFC 3849).
const FAR_AWAY: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];

/// Why no interface could be chosen.
#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    /// The kernel did not answer.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Reading or writing the question failed.
    #[error("asking the kernel for its interfaces failed: {0}")]
    Netlink(#[from] io::Error),
    /// No interface has that name.
    #[error("there is no interface \"{name}\" (there are: {available})")]
    Unknown {
        /// The name that was given.
        name: String,
        /// The names that exist.
        available: String,
    },
    /// `auto` found nothing.
    #[error("no interface leads to a target: name one with --interface (there are: {available})")]
    NothingChosen {
        /// The names that exist.
        available: String,
    },
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The address.
    pub ip: IpAddr,
    /// Bits of its network.
    pub prefix: u8,
}

impl InterfaceAddress {
    /// Whether other hosts may know it: neither of this host nor of this link only.
    pub fn is_global(&self) -> bool {
        match self.ip {
            IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local() && !ip.is_unspecified(),
            IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local() && !ip.is_unspecified(),
        }
    }
}

/// What an interface is, as far as it matters for what to capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterfaceKind {
    /// `lo`.
    Loopback,
    /// A network card, or what a virtual machine takes for one.
    Physical,
    /// Enslaved to a bridge, which carries the addresses.
    BridgePort,
    /// Enslaved to a bond or a team, which carries the addresses.
    BondMember,
    /// One end of a veth pair.
    Veth {
        /// Whether the other end is in another network namespace, as between a host and a container.
        peer_elsewhere: bool,
    },
    /// A VLAN of another interface, where its packets are seen as well.
    Vlan {
        /// Number of that interface.
        parent_index: u32,
    },
    /// Holds addresses and carries no packets.
    Dummy,
    /// Any other virtual device: bridge, bond, tunnel, macvlan, ….
    Virtual,
    /// Every interface of the network namespace at once.
    Any,
}

/// An interface of this network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// Number; 0 stands for all interfaces.
    pub index: u32,
    /// Whether it is up.
    pub is_up: bool,
    /// What it is.
    pub kind: InterfaceKind,
    /// Whether its packets begin with an Ethernet header.
    pub is_ethernet: bool,
    /// Largest network packet in bytes (segmentation offload lets greater ones be seen).
    pub mtu_bytes: u32,
    /// Its addresses.
    pub addresses: Vec<InterfaceAddress>,
}

impl Interface {
    /// All interfaces of the network namespace, for one ring. (Before Linux 6.15 it taps those of every namespace.)
    pub fn any() -> Interface {
        Interface {
            name: "any".to_owned(),
            index: 0,
            is_up: true,
            kind: InterfaceKind::Any,
            is_ethernet: false,
            mtu_bytes: 0,
            addresses: Vec::new(),
        }
    }

    /// Whether it is `lo`.
    pub fn is_loopback(&self) -> bool {
        self.kind == InterfaceKind::Loopback
    }

    /// How the filter must read its packets.
    pub fn filter_link(&self) -> FilterLink {
        if self.is_ethernet { FilterLink::Ethernet } else { FilterLink::Mixed }
    }

    /// Which copies the filter must refuse so that each packet is seen once: `lo` shows each going out and coming in.
    pub fn outgoing_policy(&self) -> OutgoingPolicy {
        match self.kind {
            InterfaceKind::Loopback => OutgoingPolicy::Refuse,
            InterfaceKind::Any => OutgoingPolicy::RefuseOnLoopback,
            _ => OutgoingPolicy::Keep,
        }
    }

    fn has_global_address(&self) -> bool {
        self.addresses.iter().any(InterfaceAddress::is_global)
    }
}

/// Every interface of this thread's network namespace, in the order of their numbers.
pub fn enumerate() -> Result<Vec<Interface>, InterfaceError> {
    let mut netlink = Netlink::open()?;
    let mut interfaces = Vec::new();
    netlink.ask(libc::RTM_GETLINK, DUMP, &[0; LINK_HEADER_BYTES], |message| {
        interfaces.extend(parse_link(message));
    })?;
    netlink.ask(libc::RTM_GETADDR, DUMP, &[0; ADDRESS_HEADER_BYTES], |message| {
        let Some((index, address)) = parse_address(message) else { return };
        let holder = interfaces.iter_mut().find(|interface: &&mut Interface| interface.index == index);
        if let Some(holder) = holder {
            holder.addresses.push(address);
        }
    })?;
    interfaces.sort_by_key(|interface| interface.index);
    Ok(interfaces)
}

/// Tells when links or addresses of the network namespace change.
pub struct LinkWatch(Netlink);

impl LinkWatch {
    /// Changes count from now on.
    pub fn open() -> Result<LinkWatch, InterfaceError> {
        let groups = libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR;
        Ok(LinkWatch(Netlink::subscribe(groups.cast_unsigned())?))
    }

    /// Waits for changes, at most so long; says whether there were any. When the kernel had more to tell than fits its queue,
    /// there were.
    pub fn wait(&mut self, timeout: Duration) -> Result<bool, InterfaceError> {
        self.0.wait(timeout)
    }
}

/// The way that packets to an address would take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Interface that they leave by; `lo` for addresses of this host.
    pub interface_index: u32,
    /// Whether the address is this host's own.
    pub is_local: bool,
}

/// Asks the kernel's routing table; nothing when there is no route. Sends nothing.
pub fn route_to(address: IpAddr) -> Result<Option<Route>, InterfaceError> {
    let mut request = [0u8; ROUTE_HEADER_BYTES];
    let (family, octets) = match address {
        IpAddr::V4(ip) => (libc::AF_INET, ip.octets().to_vec()),
        IpAddr::V6(ip) => (libc::AF_INET6, ip.octets().to_vec()),
    };
    request[0] = low_byte(family);
    request[1] = if address.is_ipv4() { 32 } else { 128 };
    let mut request = request.to_vec();
    append_attribute(&mut request, libc::RTA_DST, &octets);
    let mut route = None;
    match Netlink::open()?.ask(libc::RTM_GETROUTE, 0, &request, |message| route = parse_route(message)) {
        Ok(()) => Ok(route),
        Err(InterfaceError::Netlink(error)) if is_no_route(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// No entry of the routing table, or one that says no (unreachable, prohibit, throw, blackhole).
fn is_no_route(error: &io::Error) -> bool {
    let no = [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EAGAIN, libc::EINVAL];
    error.raw_os_error().is_some_and(|number| no.contains(&number))
}

/// Packets that an interface's hardware or driver has lost before anyone could see them, since it was made
/// (`rx_missed_errors` and `rx_fifo_errors`); nothing when there is no such interface.
pub fn nic_packets_dropped(interface_index: u32) -> Result<Option<u64>, InterfaceError> {
    let mut request = [0u8; LINK_HEADER_BYTES];
    request[4..8].copy_from_slice(&interface_index.to_ne_bytes());
    let mut dropped = None;
    match Netlink::open()?.ask(libc::RTM_GETLINK, 0, &request, |message| dropped = parse_drops(message)) {
        Ok(()) => Ok(dropped),
        Err(InterfaceError::Netlink(error)) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether each of these addresses (with the lengths of their prefixes) is one host's that one of the interfaces holds. `targets` as
/// in [`choose`].
pub fn are_own(targets: &[(IpAddr, u8)], interfaces: &[Interface]) -> bool {
    let held =
        |ip: IpAddr| interfaces.iter().flat_map(|interface| &interface.addresses).any(|own| own.ip == ip);
    let is_host = |ip: IpAddr, prefix: u8| prefix == if ip.is_ipv4() { 32 } else { 128 };
    !targets.is_empty() && targets.iter().all(|&(ip, prefix)| is_host(ip, prefix) && held(ip))
}

/// One entry of the operator's list of interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InterfaceRequest {
    /// Those that lead to the targets.
    Auto,
    /// All of them in one ring.
    Any,
    /// The one of that name.
    Named(String),
}

impl From<&str> for InterfaceRequest {
    fn from(text: &str) -> InterfaceRequest {
        match text {
            "auto" => InterfaceRequest::Auto,
            "any" => InterfaceRequest::Any,
            name => InterfaceRequest::Named(name.to_owned()),
        }
    }
}

/// The interfaces to capture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Each once, in the order of their numbers.
    pub interfaces: Vec<Interface>,
    /// Targets to which `auto` found no way; worth a warning.
    pub unrouted: Vec<IpAddr>,
}

/// Chooses the interfaces to capture.
///
/// `targets` are addresses with the lengths of their prefixes; an empty list, or a prefix of 0, stands for every server.
/// `route` tells the way to an address, as [`route_to`] does.
pub fn choose(
    requests: &[InterfaceRequest],
    targets: &[(IpAddr, u8)],
    interfaces: &[Interface],
    mut route: impl FnMut(IpAddr) -> Option<Route>,
) -> Result<Choice, InterfaceError> {
    if requests.contains(&InterfaceRequest::Any) {
        // It covers whatever else is named.
        return Ok(Choice { interfaces: vec![Interface::any()], unrouted: Vec::new() });
    }
    let mut selection = Selection { interfaces, chosen: vec![false; interfaces.len()], unrouted: Vec::new() };
    for request in requests {
        match request {
            InterfaceRequest::Named(name) => {
                let unknown = || InterfaceError::Unknown { name: name.clone(), available: names(interfaces) };
                let at =
                    interfaces.iter().position(|interface| interface.name == *name).ok_or_else(unknown)?;
                selection.chosen[at] = true;
            }
            InterfaceRequest::Auto | InterfaceRequest::Any => selection.add_auto(targets, &mut route),
        }
    }
    let chosen = interfaces.iter().zip(&selection.chosen).filter(|&(_, &is_chosen)| is_chosen);
    let choice = Choice {
        interfaces: chosen.map(|(interface, _)| interface.clone()).collect(),
        unrouted: selection.unrouted,
    };
    if choice.interfaces.is_empty() {
        return Err(InterfaceError::NothingChosen { available: names(interfaces) });
    }
    Ok(choice)
}

fn names(interfaces: &[Interface]) -> String {
    interfaces.iter().map(|interface| interface.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// What has been chosen so far.
struct Selection<'a> {
    interfaces: &'a [Interface],
    /// For each of `interfaces`.
    chosen: Vec<bool>,
    unrouted: Vec<IpAddr>,
}

impl Selection<'_> {
    fn add_auto(&mut self, targets: &[(IpAddr, u8)], route: &mut impl FnMut(IpAddr) -> Option<Route>) {
        if targets.is_empty() {
            self.add_for_every_server(route);
        }
        for &(address, prefix) in targets {
            if prefix == 0 {
                self.add_for_every_server(route)
            } else {
                self.add_for_target(address, prefix, route)
            }
        }
        self.leave_out_vlans_of_chosen_parents();
    }

    /// For the target `*`: `lo`, and whatever is up and carries a global address, itself and for itself.
    fn add_for_every_server(&mut self, route: &mut impl FnMut(IpAddr) -> Option<Route>) {
        let uplinks: Vec<u32> = FAR_AWAY
            .iter()
            .filter_map(|&address| route(address))
            .map(|route| route.interface_index)
            .collect();
        let is_host = self.interfaces.iter().any(|interface| interface.kind == InterfaceKind::Physical);
        for (interface, chosen) in self.interfaces.iter().zip(&mut self.chosen) {
            let is_uplink = uplinks.contains(&interface.index);
            let is_eligible = match interface.kind {
                InterfaceKind::BridgePort | InterfaceKind::BondMember | InterfaceKind::Dummy => false,
                // Within a container its own end looks the same; but there is no card beside it, or it leads out.
                InterfaceKind::Veth { peer_elsewhere: true } => is_uplink || !is_host,
                _ => true,
            };
            // A host that is reached over routes of its own may hold its address on lo and have links without any.
            let is_addressed = interface.has_global_address() || is_uplink;
            *chosen |= interface.is_up && (interface.is_loopback() || (is_eligible && is_addressed));
        }
    }

    fn add_for_target(
        &mut self,
        address: IpAddr,
        prefix: u8,
        route: &mut impl FnMut(IpAddr) -> Option<Route>,
    ) {
        let mut is_local = false;
        for at in 0..self.interfaces.len() {
            let interface = &self.interfaces[at];
            if !interface.addresses.iter().any(|held| is_within(held.ip, address, prefix)) {
                continue;
            }
            is_local = true;
            self.chosen[at] = true;
            let holds_for_others = matches!(interface.kind, InterfaceKind::Loopback | InterfaceKind::Dummy);
            let is_own = |held: &InterfaceAddress| is_within(held.ip, address, prefix) && held.is_global();
            if holds_for_others && interface.addresses.iter().any(is_own) {
                // A service address: its packets come in by any of the links.
                self.add_for_every_server(route);
            }
        }
        if is_local {
            self.add_loopback();
        }
        match route(first_host(address, prefix)) {
            Some(Route { is_local: true, .. }) => self.add_loopback(),
            Some(way) => self.add_index(way.interface_index),
            None if is_local => {}
            None => self.unrouted.push(address),
        }
    }

    fn add_loopback(&mut self) {
        for (interface, chosen) in self.interfaces.iter().zip(&mut self.chosen) {
            *chosen |= interface.is_loopback();
        }
    }

    fn add_index(&mut self, index: u32) {
        for (interface, chosen) in self.interfaces.iter().zip(&mut self.chosen) {
            *chosen |= interface.index == index;
        }
    }

    /// The packets of a VLAN are seen on the interface below it; once is enough.
    fn leave_out_vlans_of_chosen_parents(&mut self) {
        let chosen = self.interfaces.iter().zip(&self.chosen).filter(|&(_, &is_chosen)| is_chosen);
        let indices: Vec<u32> = chosen.map(|(interface, _)| interface.index).collect();
        for (interface, chosen) in self.interfaces.iter().zip(&mut self.chosen) {
            if matches!(interface.kind, InterfaceKind::Vlan { parent_index } if indices.contains(&parent_index))
            {
                *chosen = false;
            }
        }
    }
}

fn is_within(address: IpAddr, network: IpAddr, prefix: u8) -> bool {
    match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            (address.to_bits() ^ network.to_bits()).leading_zeros() >= prefix.into()
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => {
            (address.to_bits() ^ network.to_bits()).leading_zeros() >= prefix.into()
        }
        _ => false,
    }
}

/// An address of the network that may be a host's: itself when it stands alone, else the one behind the network's own.
fn first_host(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(ip) if prefix < 31 => IpAddr::V4(Ipv4Addr::from_bits(ip.to_bits() | 1)),
        IpAddr::V6(ip) if prefix < 127 => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() | 1)),
        single => single,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(index: u32, name: &str, kind: InterfaceKind, addresses: &[&str]) -> Interface {
        let addresses = addresses.iter().map(|text| {
            let (ip, prefix) = text.split_once('/').unwrap();
            InterfaceAddress { ip: ip.parse().unwrap(), prefix: prefix.parse().unwrap() }
        });
        Interface {
            name: name.to_owned(),
            index,
            is_up: true,
            kind,
            is_ethernet: true,
            mtu_bytes: 1500,
            addresses: addresses.collect(),
        }
    }

    /// A host with a card, a bond, a bridge for containers, and a service address.
    fn host() -> Vec<Interface> {
        use InterfaceKind::*;
        vec![
            interface(1, "lo", Loopback, &["127.0.0.1/8", "::1/128"]),
            interface(2, "eth0", Physical, &["10.1.0.5/24", "fe80::1/64"]),
            interface(3, "eth1", BondMember, &[]),
            interface(4, "bond0", Virtual, &["10.2.0.5/24"]),
            interface(5, "docker0", Virtual, &["172.17.0.1/16"]),
            interface(6, "veth1", BridgePort, &[]),
            interface(7, "cali1", Veth { peer_elsewhere: true }, &["169.254.1.1/32"]),
            interface(8, "ptp1", Veth { peer_elsewhere: true }, &["10.9.0.1/32"]),
            interface(9, "vip", Dummy, &["10.50.0.1/32"]),
            interface(10, "eth0.7", Vlan { parent_index: 2 }, &["10.7.0.5/24"]),
            Interface { is_up: false, ..interface(11, "eth2", Physical, &["10.3.0.5/24"]) },
        ]
    }

    fn chosen(requests: &[&str], targets: &[&str], interfaces: &[Interface]) -> Result<String, String> {
        let requests: Vec<_> = requests.iter().map(|&request| InterfaceRequest::from(request)).collect();
        let targets: Vec<_> = targets
            .iter()
            .map(|target| match target.split_once('/') {
                Some((ip, prefix)) => (ip.parse().unwrap(), prefix.parse().unwrap()),
                None => (target.parse().unwrap(), if target.contains(':') { 128 } else { 32 }),
            })
            .collect();
        // A routing table: addresses of the host are local, its networks connected, and the default leads over eth0.
        let route = |address: IpAddr| {
            let holds = |interface: &&Interface| interface.addresses.iter().any(|held| held.ip == address);
            let connects = |interface: &&Interface| {
                interface.addresses.iter().any(|held| is_within(address, held.ip, held.prefix))
            };
            if interfaces.iter().any(|interface| holds(&interface)) {
                return Some(Route { interface_index: 1, is_local: true });
            }
            let way = interfaces.iter().filter(|interface| interface.is_up).find(connects);
            let default =
                interfaces.iter().find(|interface| interface.name == "eth0").filter(|_| address.is_ipv4());
            way.or(default).map(|interface| Route { interface_index: interface.index, is_local: false })
        };
        choose(&requests, &targets, interfaces, route)
            .map(|choice| names(&choice.interfaces))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn auto_for_every_server_takes_what_carries_global_addresses() {
        let expected = Ok("lo, eth0, bond0, docker0".to_owned());
        assert_eq!(chosen(&["auto"], &[], &host()), expected);
        assert_eq!(chosen(&["auto"], &["0.0.0.0/0"], &host()), expected);
    }

    #[test]
    fn own_addresses_are_single_ones_that_an_interface_holds() {
        let (held, other) = (IpAddr::from([10, 1, 0, 5]), IpAddr::from([10, 1, 0, 6]));
        assert!(are_own(&[(held, 32), (IpAddr::from([127, 0, 0, 1]), 32)], &host()));
        assert!(!are_own(&[(held, 32), (other, 32)], &host()));
        assert!(!are_own(&[(held, 31)], &host()), "the other address of the network is not");
        assert!(!are_own(&[], &host()), "any server");
    }

    #[test]
    fn auto_follows_the_routes_to_targets() {
        let host = host();
        assert_eq!(chosen(&["auto"], &["10.1.0.5"], &host).unwrap(), "lo, eth0", "an address of this host");
        assert_eq!(chosen(&["auto"], &["127.0.0.1"], &host).unwrap(), "lo");
        assert_eq!(chosen(&["auto"], &["10.2.0.77"], &host).unwrap(), "bond0", "a neighbour");
        assert_eq!(chosen(&["auto"], &["8.8.8.8"], &host).unwrap(), "eth0", "by the default route");
        assert_eq!(
            chosen(&["auto"], &["10.1.0.0/16", "10.2.0.9"], &host).unwrap(),
            "lo, eth0, bond0",
            "a network"
        );
        assert_eq!(chosen(&["auto"], &["10.7.0.9"], &host).unwrap(), "eth0.7", "a VLAN alone");
        assert_eq!(
            chosen(&["auto"], &["10.7.0.9", "10.1.0.9"], &host).unwrap(),
            "eth0",
            "a VLAN and its parent"
        );
        assert_eq!(
            chosen(&["auto"], &["10.50.0.1"], &host).unwrap(),
            "lo, eth0, bond0, docker0, vip",
            "a service address may be reached over every link"
        );
    }

    #[test]
    fn auto_in_a_container_takes_its_own_veth() {
        let container = vec![
            interface(1, "lo", InterfaceKind::Loopback, &["127.0.0.1/8"]),
            interface(2, "net1", InterfaceKind::Veth { peer_elsewhere: true }, &["172.17.0.2/16"]),
        ];
        assert_eq!(chosen(&["auto"], &[], &container).unwrap(), "lo, net1");
    }

    #[test]
    fn an_unreachable_target_is_named() {
        let requests = [InterfaceRequest::Auto];
        let (near, far): (IpAddr, IpAddr) = ("10.1.0.9".parse().unwrap(), "fd00::9".parse().unwrap());
        let route =
            |address: IpAddr| (address == near).then_some(Route { interface_index: 2, is_local: false });
        let choice = choose(&requests, &[(near, 32), (far, 128)], &host(), route).unwrap();
        assert_eq!((names(&choice.interfaces).as_str(), choice.unrouted), ("eth0", vec![far]));
        let nothing = choose(&requests, &[(far, 128)], &host(), |_| None).unwrap_err().to_string();
        assert!(nothing.contains("--interface") && nothing.contains("docker0"), "{nothing}");
    }

    #[test]
    fn names_are_taken_as_they_are() {
        let host = host();
        assert_eq!(chosen(&["eth2", "veth1", "eth2"], &[], &host).unwrap(), "veth1, eth2");
        assert_eq!(chosen(&["auto", "eth2"], &["10.2.0.9"], &host).unwrap(), "bond0, eth2");
        assert_eq!(chosen(&["eth0", "any"], &[], &host).unwrap(), "any");
        let error = chosen(&["eth9"], &[], &host).unwrap_err();
        assert!(error.starts_with("there is no interface \"eth9\" (there are: lo, eth0, eth1"), "{error}");
    }
}

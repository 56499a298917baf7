//! The kernel's packet filter, generated from the targets' addresses and ports.
//!
//! Promises a *superset* of the wanted traffic: the set of server addresses times the set of ports, so that the program's
//! length grows with the sum of the two and not with their product; which address goes with which port is checked in user
//! space. What does not fit the kernel is widened step by step, and [`FilterForm`] says how far. The value that the program
//! returns is the snap length, which gives each direction its own.
//!
//! The first sixteen bytes of an Ethernet packet are read at fixed offsets, which the kernel compiles to plain loads. Packets
//! with VLAN tags in band, and those of devices without an Ethernet header, take a second copy of the code whose loads are
//! relative to X, each of them a call. Both end in one piece of code for ports.

mod assembler;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use libc::sock_filter;

use assembler::{
    A_TO_X, ADD, ADD_X, AND, Assembler, IF_ANY_BIT, IF_AT_LEAST, IF_EQUAL, IF_GREATER, INDEXED, LOAD_BYTE,
    LOAD_CONSTANT, LOAD_HALF, LOAD_SCRATCH, LOAD_WORD, LOAD_X_CONSTANT, LOAD_X_HEADER_LENGTH, Label, NEXT,
    OR, RETURN, SHIFT_LEFT, STORE_SCRATCH, X_TO_A,
};
pub use assembler::{INSTRUCTIONS_MAX, ProgramTooLong};

/// The whole packet.
pub const SNAPLEN_FULL: u32 = u32::MAX;

/// Nothing of the packet: a direction that is not wanted at all.
pub const SNAPLEN_NONE: u32 = 0;

/// Shortest snap length: Ethernet (14), two VLAN tags (8), IPv6 (40) and the longest TCP header (60) stay whole.
pub const SNAPLEN_MIN: u32 = 128;

/// IPv6 extension headers that the filter steps over; behind more of them nobody sends memcached traffic.
pub const EXTENSION_HEADERS_MAX: usize = 3;

/// UDP destination ports that carry packets within: VXLAN (RFC 7348), VXLAN as Linux numbered it first, Geneve (RFC 8926).
pub const TUNNEL_PORTS: [u16; 3] = [4789, 8472, 6081];

const ETHERTYPE_IPV4: u32 = 0x0800;
const ETHERTYPE_IPV6: u32 = 0x86dd;
/// 802.1Q, 802.1ad, and the number that QinQ had before it had one.
const ETHERTYPES_VLAN: [u32; 3] = [0x8100, 0x88a8, 0x9100];
/// MPLS unicast and multicast (RFC 5332).
const ETHERTYPES_MPLS: [u32; 2] = [0x8847, 0x8848];

const PROTOCOL_TCP: u32 = 6;
const PROTOCOL_UDP: u32 = 17;
/// IPv4 in IP, IPv6 in IP, GRE (also ERSPAN).
const PROTOCOLS_TUNNEL: [u32; 3] = [4, 41, 47];
const PROTOCOL_FRAGMENT: u32 = 44;
/// Hop-by-hop options, routing, destination options: length in units of eight bytes, the first not counted (RFC 8200 §4).
const PROTOCOLS_EXTENSION: [u32; 3] = [0, 43, 60];

/// Bytes of an Ethernet header, and so the place of the network header behind it.
const ETHERNET_BYTES: u32 = 14;

// Loads at these offsets read the packet's metadata; the kernel knows them by their negative sign (linux/filter.h).
const METADATA_PROTOCOL: u32 = metadata(libc::SKF_AD_PROTOCOL);
const METADATA_PACKET_TYPE: u32 = metadata(libc::SKF_AD_PKTTYPE);
const METADATA_HARDWARE_TYPE: u32 = metadata(libc::SKF_AD_HATYPE);
/// Loads from here on are relative to the network header, wherever the device has put it.
const NETWORK_RELATIVE: u32 = libc::SKF_NET_OFF.cast_unsigned();

const PACKET_OUTGOING: u32 = 4; // linux/if_packet.h
const HARDWARE_ETHERNET: u32 = 1; // linux/if_arp.h
const HARDWARE_LOOPBACK: u32 = 772;

// What the program remembers, in the scratch cell `FACTS`.
const TO_SERVER: u32 = 1;
const FROM_SERVER: u32 = 2;
const UDP: u32 = 4;
const FACTS: u32 = 0;
/// Scratch cell that keeps A while X is computed.
const KEPT: u32 = 1;

const fn metadata(field: i32) -> u32 {
    (libc::SKF_AD_OFF + field).cast_unsigned()
}

/// The traffic that is wanted on one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterSpec {
    /// Server addresses, each with the length of its prefix in bits. Empty: any address.
    pub servers: Vec<(IpAddr, u8)>,
    /// Server ports. Empty: any port.
    pub ports: Vec<u16>,
    /// Whether TCP is wanted.
    pub tcp: bool,
    /// Whether UDP is wanted.
    pub udp: bool,
    /// Bytes to keep of a packet to a server, from the link header on; at least [`SNAPLEN_MIN`].
    pub request_snaplen: u32,
    /// Bytes to keep of a packet from a server; at least [`SNAPLEN_MIN`], or [`SNAPLEN_NONE`] to refuse it. IP fragments after the first tell no port and keep
    /// the greater of the two.
    pub response_snaplen: u32,
    /// Which of the copies that this host sends to refuse whatever they are; see [`FilterSpec::outgoing_in_force`].
    pub outgoing: OutgoingPolicy,
    /// All servers are this host's own: what it sends are responses, and all its requests come in.
    pub servers_are_own: bool,
    /// How the packets of the interface begin.
    pub link: FilterLink,
    /// Whether to accept packets that carry others within, as mirror ports deliver them: GRE, IP in IP, VXLAN, Geneve, MPLS.
    /// All UDP is then looked at, wanted or not.
    pub tunnels: bool,
}

impl FilterSpec {
    /// Both directions of TCP and UDP in full, for the given servers and ports on an Ethernet interface.
    pub fn new(servers: Vec<(IpAddr, u8)>, ports: Vec<u16>) -> FilterSpec {
        FilterSpec {
            servers,
            ports,
            tcp: true,
            udp: true,
            request_snaplen: SNAPLEN_FULL,
            response_snaplen: SNAPLEN_FULL,
            outgoing: OutgoingPolicy::Keep,
            servers_are_own: false,
            link: FilterLink::Ethernet,
            tunnels: false,
        }
    }

    /// Which of the copies that this host sends to refuse: all of them as well when they are responses and no response is wanted.
    pub fn outgoing_in_force(&self) -> OutgoingPolicy {
        if self.response_snaplen == SNAPLEN_NONE && self.servers_are_own {
            OutgoingPolicy::Refuse
        } else {
            self.outgoing
        }
    }

    /// The program in the given form.
    pub fn assemble(&self, form: FilterForm) -> Result<Vec<sock_filter>, ProgramTooLong> {
        Generator::new(self, form).finish()
    }
}

/// What to do with the copies of packets that this host sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutgoingPolicy {
    /// Keep them: on a network interface they are half of the traffic.
    Keep,
    /// Refuse them on loopback devices, where each packet is also seen coming in (for a ring on every interface).
    RefuseOnLoopback,
    /// Refuse them.
    Refuse,
}

/// How the packets of an interface begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterLink {
    /// With an Ethernet header.
    Ethernet,
    /// With one or without, told by the device type of each packet (tunnel devices; a ring on every interface).
    Mixed,
}

/// How closely the attached program fits the wanted traffic; what it lets through in excess is dropped in user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterForm {
    /// Server addresses and ports.
    AddressesAndPorts,
    /// Ports only: the addresses did not fit.
    PortsOnly,
    /// All TCP and UDP: not even the ports fitted.
    TransportOnly,
}

impl FilterForm {
    /// The forms from the closest to the widest, in the order in which to try them.
    pub const LADDER: [FilterForm; 3] =
        [FilterForm::AddressesAndPorts, FilterForm::PortsOnly, FilterForm::TransportOnly];

    /// As the start-up message names it.
    pub const fn name(self) -> &'static str {
        match self {
            FilterForm::AddressesAndPorts => "addresses and ports",
            FilterForm::PortsOnly => "ports only",
            FilterForm::TransportOnly => "all TCP and UDP",
        }
    }
}

/// Nothing, or all headers at least. (Requests cannot be refused: a wider form may take for one what is a response.)
fn at_least_headers(snaplen: u32) -> u32 {
    if snaplen == SNAPLEN_NONE { SNAPLEN_NONE } else { snaplen.max(SNAPLEN_MIN) }
}

/// The program that refuses everything: what a socket carries until it has its real filter.
pub fn reject_all() -> Vec<sock_filter> {
    vec![sock_filter { code: RETURN, jt: 0, jf: 0, k: 0 }]
}

/// Where the network header is.
#[derive(Clone, Copy)]
enum Base {
    /// At this offset of the packet.
    Fixed(u32),
    /// Where X points.
    Indexed,
}

/// An address with its mask as 32-bit words in host order: one for IPv4, four for IPv6. Words beyond the mask are cut off.
type MaskedWords = Vec<(u32, u32)>;

/// The labels that code jumps to from more than one place.
struct Labels {
    /// Refuse.
    refuse: Label,
    /// Accept as a request.
    request: Label,
    /// Accept as a response.
    response: Label,
    /// Accept at full length.
    whole: Label,
    /// An IP fragment after the first.
    fragment: Label,
    /// An IPv6 header chain: A is the next header's number, X its place.
    ipv6_chain: Label,
    /// TCP header at X.
    tcp_ports: Label,
    /// UDP header at X.
    udp_ports: Label,
}

struct Generator {
    asm: Assembler,
    labels: Labels,
    servers_ipv4: Vec<MaskedWords>,
    servers_ipv6: Vec<MaskedWords>,
    any_address: bool,
    /// First and last of each run of neighbouring ports. Empty: any port.
    port_runs: Vec<(u16, u16)>,
    tcp: bool,
    udp: bool,
    tunnels: bool,
    request_snaplen: u32,
    response_snaplen: u32,
}

impl Generator {
    fn new(spec: &FilterSpec, form: FilterForm) -> Generator {
        let mut asm = Assembler::default();
        let labels = Labels {
            refuse: asm.label(),
            request: asm.label(),
            response: asm.label(),
            whole: asm.label(),
            fragment: asm.label(),
            ipv6_chain: asm.label(),
            tcp_ports: asm.label(),
            udp_ports: asm.label(),
        };
        let servers = if form == FilterForm::AddressesAndPorts { spec.servers.as_slice() } else { &[] };
        let ports = if form == FilterForm::TransportOnly { &[] } else { spec.ports.as_slice() };
        let (servers_ipv4, servers_ipv6) = masked_words(servers);
        let mut generator = Generator {
            asm,
            labels,
            any_address: servers.is_empty(),
            servers_ipv4,
            servers_ipv6,
            port_runs: port_runs(ports),
            tcp: spec.tcp,
            udp: spec.udp || spec.tunnels,
            tunnels: spec.tunnels,
            request_snaplen: spec.request_snaplen.max(SNAPLEN_MIN),
            response_snaplen: at_least_headers(spec.response_snaplen),
        };
        generator.emit_outgoing(spec.outgoing_in_force());
        generator.emit_link(spec.link);
        generator
    }

    fn finish(mut self) -> Result<Vec<sock_filter>, ProgramTooLong> {
        self.emit_ipv6_chain();
        self.emit_ports();
        self.emit_fragment();
        self.emit_ends();
        self.asm.finish()
    }

    /// Refuses the copies that this host sends, where the policy says so.
    fn emit_outgoing(&mut self, policy: OutgoingPolicy) {
        let keep = self.asm.label();
        match policy {
            OutgoingPolicy::Keep => return,
            OutgoingPolicy::Refuse => {}
            OutgoingPolicy::RefuseOnLoopback => {
                self.asm.plain(LOAD_HALF, METADATA_HARDWARE_TYPE);
                self.asm.branch(IF_EQUAL, HARDWARE_LOOPBACK, NEXT, keep);
            }
        }
        self.asm.plain(LOAD_BYTE, METADATA_PACKET_TYPE);
        self.asm.branch(IF_EQUAL, PACKET_OUTGOING, self.labels.refuse, NEXT);
        self.asm.place(keep);
    }

    /// From the link header to the network header: at its fixed place without tags, through X with them.
    fn emit_link(&mut self, link: FilterLink) {
        let [ipv4_fixed, ipv6_fixed, ipv4_indexed, ipv6_indexed, ethernet, tagged, indexed] =
            std::array::from_fn(|_| self.asm.label());
        let known = if self.any_address { TO_SERVER | FROM_SERVER } else { 0 };
        self.asm.plain(LOAD_CONSTANT, known);
        self.asm.plain(STORE_SCRATCH, FACTS);
        if link == FilterLink::Mixed {
            self.asm.plain(LOAD_HALF, METADATA_HARDWARE_TYPE);
            self.asm.branch(IF_EQUAL, HARDWARE_ETHERNET, ethernet, NEXT);
            self.asm.branch(IF_EQUAL, HARDWARE_LOOPBACK, ethernet, NEXT);
            self.asm.plain(LOAD_X_CONSTANT, NETWORK_RELATIVE);
            self.asm.plain(LOAD_HALF, METADATA_PROTOCOL);
            self.asm.jump(indexed);
        }
        self.asm.place(ethernet);
        self.asm.plain(LOAD_HALF, ETHERNET_BYTES - 2);
        self.asm.branch(IF_EQUAL, ETHERTYPE_IPV4, ipv4_fixed, NEXT);
        self.asm.branch(IF_EQUAL, ETHERTYPE_IPV6, ipv6_fixed, NEXT);
        self.emit_mpls();
        self.branch_to_any(&ETHERTYPES_VLAN, tagged);
        self.asm.jump(self.labels.refuse);

        self.asm.place(tagged);
        let twice_tagged = self.asm.label();
        self.asm.plain(LOAD_X_CONSTANT, ETHERNET_BYTES + 4);
        self.asm.plain(LOAD_HALF, ETHERNET_BYTES + 2);
        self.branch_to_any(&ETHERTYPES_VLAN, twice_tagged);
        self.asm.jump(indexed);
        self.asm.place(twice_tagged);
        self.asm.plain(LOAD_X_CONSTANT, ETHERNET_BYTES + 8);
        self.asm.plain(LOAD_HALF, ETHERNET_BYTES + 6);

        self.asm.place(indexed);
        self.asm.branch(IF_EQUAL, ETHERTYPE_IPV4, ipv4_indexed, NEXT);
        self.asm.branch(IF_EQUAL, ETHERTYPE_IPV6, ipv6_indexed, NEXT);
        self.emit_mpls();
        self.asm.jump(self.labels.refuse);

        self.emit_ipv4(ipv4_fixed, Base::Fixed(ETHERNET_BYTES));
        self.emit_ipv6(ipv6_fixed, Base::Fixed(ETHERNET_BYTES));
        self.emit_ipv4(ipv4_indexed, Base::Indexed);
        self.emit_ipv6(ipv6_indexed, Base::Indexed);
    }

    fn emit_mpls(&mut self) {
        if self.tunnels {
            self.branch_to_any(&ETHERTYPES_MPLS, self.labels.whole);
        }
    }

    fn emit_ipv4(&mut self, entry: Label, base: Base) {
        self.asm.place(entry);
        if self.refuses_family(&self.servers_ipv4) {
            self.asm.jump(self.labels.refuse);
            return;
        }
        let [tcp, udp] = std::array::from_fn(|_| self.asm.label());
        self.load(base, LOAD_BYTE, 9);
        self.emit_protocols(tcp, udp);
        self.asm.jump(self.labels.refuse);

        self.asm.place(udp);
        self.remember(UDP);
        self.asm.place(tcp);
        let servers = std::mem::take(&mut self.servers_ipv4);
        self.emit_membership(base, 16, &servers, TO_SERVER);
        self.emit_membership(base, 12, &servers, FROM_SERVER);
        self.servers_ipv4 = servers;
        self.refuse_strangers();
        self.load(base, LOAD_HALF, 6);
        self.asm.branch(IF_ANY_BIT, 0x1fff, self.labels.fragment, NEXT);
        match base {
            Base::Fixed(offset) => {
                self.asm.plain(LOAD_X_HEADER_LENGTH, offset);
                self.asm.plain(X_TO_A, 0);
                self.asm.plain(ADD, offset);
            }
            Base::Indexed => {
                self.load(base, LOAD_BYTE, 0);
                self.asm.plain(AND, 0x0f);
                self.asm.plain(SHIFT_LEFT, 2);
                self.asm.plain(ADD_X, 0);
            }
        }
        self.asm.plain(A_TO_X, 0);
        // Which of the two it is was remembered; the entry for TCP does not ask again.
        self.asm.jump(self.labels.tcp_ports);
    }

    fn emit_ipv6(&mut self, entry: Label, base: Base) {
        self.asm.place(entry);
        if self.refuses_family(&self.servers_ipv6) {
            self.asm.jump(self.labels.refuse);
            return;
        }
        let servers = std::mem::take(&mut self.servers_ipv6);
        self.emit_membership(base, 24, &servers, TO_SERVER);
        self.emit_membership(base, 8, &servers, FROM_SERVER);
        self.servers_ipv6 = servers;
        // Behind extension headers there may be a tunnel between any two hosts.
        if !self.tunnels {
            self.refuse_strangers();
        }
        self.load(base, LOAD_BYTE, 6);
        match base {
            Base::Fixed(offset) => self.asm.plain(LOAD_X_CONSTANT, offset + 40),
            Base::Indexed => self.advance_x(40),
        }
        self.asm.jump(self.labels.ipv6_chain);
    }

    /// Steps over extension headers. A is the number of the header at X.
    fn emit_ipv6_chain(&mut self) {
        self.asm.place(self.labels.ipv6_chain);
        for _ in 0..EXTENSION_HEADERS_MAX {
            let [fragment, extension, step] = std::array::from_fn(|_| self.asm.label());
            self.emit_protocols(self.labels.tcp_ports, self.labels.udp_ports);
            self.asm.branch(IF_EQUAL, PROTOCOL_FRAGMENT, fragment, NEXT);
            self.branch_to_any(&PROTOCOLS_EXTENSION, extension);
            self.asm.jump(self.labels.refuse);

            self.asm.place(fragment);
            self.load(Base::Indexed, LOAD_HALF, 2);
            self.asm.branch(IF_ANY_BIT, 0xfff8, self.labels.fragment, NEXT);
            self.load(Base::Indexed, LOAD_BYTE, 0);
            self.advance_x(8);
            self.asm.jump(step);

            self.asm.place(extension);
            self.load(Base::Indexed, LOAD_BYTE, 0);
            self.asm.plain(STORE_SCRATCH, KEPT);
            self.load(Base::Indexed, LOAD_BYTE, 1);
            self.asm.plain(ADD, 1);
            self.asm.plain(SHIFT_LEFT, 3);
            self.asm.plain(ADD_X, 0);
            self.asm.plain(A_TO_X, 0);
            self.asm.plain(LOAD_SCRATCH, KEPT);
            self.asm.place(step);
        }
        self.emit_protocols(self.labels.tcp_ports, self.labels.udp_ports);
        self.asm.jump(self.labels.refuse);
    }

    /// Branches on the number of a transport or tunnel in A; goes on when it is none that is wanted.
    fn emit_protocols(&mut self, tcp: Label, udp: Label) {
        if self.tcp {
            self.asm.branch(IF_EQUAL, PROTOCOL_TCP, tcp, NEXT);
        }
        if self.udp {
            self.asm.branch(IF_EQUAL, PROTOCOL_UDP, udp, NEXT);
        }
        if self.tunnels {
            self.branch_to_any(&PROTOCOLS_TUNNEL, self.labels.whole);
        }
    }

    /// Decides by the ports of the transport header at X and by what is known of the addresses.
    fn emit_ports(&mut self) {
        let [not_tunnelled, not_to_server] = std::array::from_fn(|_| self.asm.label());
        self.asm.place(self.labels.udp_ports);
        self.remember(UDP);
        self.asm.place(self.labels.tcp_ports);
        if self.tunnels {
            self.asm.plain(LOAD_SCRATCH, FACTS);
            self.asm.branch(IF_ANY_BIT, UDP, NEXT, not_tunnelled);
            self.load(Base::Indexed, LOAD_HALF, 2);
            self.branch_to_any(&TUNNEL_PORTS.map(u32::from), self.labels.whole);
            self.asm.place(not_tunnelled);
        }
        if self.any_address && self.port_runs.is_empty() {
            // Nothing tells the direction.
            self.asm.jump(self.labels.whole);
            return;
        }
        self.branch_unless_fact(TO_SERVER, not_to_server);
        self.emit_port_runs(2, self.labels.request);
        self.asm.place(not_to_server);
        self.branch_unless_fact(FROM_SERVER, self.labels.refuse);
        self.emit_port_runs(0, self.labels.response);
        self.asm.jump(self.labels.refuse);
    }

    /// Branches to `hit` when the port at X + `offset` is one of ours.
    fn emit_port_runs(&mut self, offset: u32, hit: Label) {
        if self.port_runs.is_empty() {
            self.asm.jump(hit);
            return;
        }
        self.load(Base::Indexed, LOAD_HALF, offset);
        for (first, last) in self.port_runs.clone() {
            if first == last {
                self.asm.branch(IF_EQUAL, first.into(), hit, NEXT);
            } else {
                let beyond = self.asm.label();
                self.asm.branch(IF_AT_LEAST, first.into(), NEXT, beyond);
                self.asm.branch(IF_GREATER, last.into(), NEXT, hit);
                self.asm.place(beyond);
            }
        }
    }

    /// A fragment after the first has no ports: one address that is a server's is enough.
    fn emit_fragment(&mut self) {
        self.asm.place(self.labels.fragment);
        self.branch_unless_fact(TO_SERVER | FROM_SERVER, self.labels.refuse);
        self.asm.jump(self.labels.whole);
    }

    fn emit_ends(&mut self) {
        let whole = self.request_snaplen.max(self.response_snaplen);
        let ends = [
            (self.labels.request, self.request_snaplen),
            (self.labels.response, self.response_snaplen),
            (self.labels.whole, whole),
            (self.labels.refuse, 0),
        ];
        for (label, snaplen) in ends {
            self.asm.place(label);
            self.asm.plain(RETURN, snaplen);
        }
    }

    /// Remembers `fact` when the address at `offset` of the network header is a server's.
    fn emit_membership(&mut self, base: Base, offset: u32, servers: &[MaskedWords], fact: u32) {
        if self.any_address || servers.is_empty() {
            return;
        }
        let [hit, miss] = std::array::from_fn(|_| self.asm.label());
        let servers: Vec<&[(u32, u32)]> = servers.iter().map(Vec::as_slice).collect();
        self.emit_words(base, offset, &servers, hit);
        self.asm.jump(miss);
        self.asm.place(hit);
        self.remember(fact);
        self.asm.place(miss);
    }

    /// Branches to `hit` when the words from `offset` on are among `servers`; goes on otherwise.
    ///
    /// Servers that agree in their first word share the test of it, so that the servers of one network cost an instruction
    /// each. After a match that fails in a later word the search goes on behind it, because a shorter prefix may still match.
    fn emit_words(&mut self, base: Base, offset: u32, servers: &[&[(u32, u32)]], hit: Label) {
        if servers.iter().any(|words| words.is_empty()) {
            self.asm.jump(hit);
            return;
        }
        let mut rest = servers;
        while let [first, ..] = rest {
            let mask = first[0].1;
            let same_mask = rest.iter().take_while(|words| words[0].1 == mask).count();
            let (mut group, others) = rest.split_at(same_mask);
            rest = others;
            let next_mask = self.asm.label();
            self.load(base, LOAD_WORD, offset);
            if mask != u32::MAX {
                self.asm.plain(AND, mask);
            }
            let mut branches = Vec::new();
            while let [first, ..] = group {
                let value = first[0].0;
                let same_value = group.iter().take_while(|words| words[0].0 == value).count();
                let (subgroup, others) = group.split_at(same_value);
                group = others;
                let tails: Vec<&[(u32, u32)]> = subgroup.iter().map(|words| &words[1..]).collect();
                if tails.iter().any(|tail| tail.is_empty()) {
                    self.asm.branch(IF_EQUAL, value, hit, NEXT);
                } else {
                    let deeper = self.asm.label();
                    self.asm.branch(IF_EQUAL, value, deeper, NEXT);
                    branches.push((deeper, tails));
                }
            }
            self.asm.jump(next_mask);
            for (deeper, tails) in branches {
                self.asm.place(deeper);
                self.emit_words(base, offset + 4, &tails, hit);
                self.asm.jump(next_mask);
            }
            self.asm.place(next_mask);
        }
    }

    /// Refuses a packet neither of whose addresses is a server's, unless it may be a tunnel over UDP.
    fn refuse_strangers(&mut self) {
        let interesting = if self.tunnels { TO_SERVER | FROM_SERVER | UDP } else { TO_SERVER | FROM_SERVER };
        self.branch_unless_fact(interesting, self.labels.refuse);
    }

    /// Whether no packet of an address family is wanted, whose servers are given.
    fn refuses_family(&self, servers: &[MaskedWords]) -> bool {
        !self.any_address && servers.is_empty() && !self.tunnels
    }

    /// Branches when none of `facts` is known. When every address is a server's, there is no need to ask for that.
    fn branch_unless_fact(&mut self, facts: u32, label: Label) {
        if self.any_address && facts & (TO_SERVER | FROM_SERVER) != 0 {
            return;
        }
        self.asm.plain(LOAD_SCRATCH, FACTS);
        self.asm.branch(IF_ANY_BIT, facts, NEXT, label);
    }

    /// Adds a fact. That a packet is UDP matters for tunnels only.
    fn remember(&mut self, fact: u32) {
        if fact == UDP && !self.tunnels {
            return;
        }
        self.asm.plain(LOAD_SCRATCH, FACTS);
        self.asm.plain(OR, fact);
        self.asm.plain(STORE_SCRATCH, FACTS);
    }

    /// Loads into A from `offset` of the header at `base`.
    fn load(&mut self, base: Base, code: u16, offset: u32) {
        match base {
            Base::Fixed(start) => self.asm.plain(code, start + offset),
            Base::Indexed => self.asm.plain(code + INDEXED, offset),
        }
    }

    /// X += `bytes`, A stays.
    fn advance_x(&mut self, bytes: u32) {
        self.asm.plain(STORE_SCRATCH, KEPT);
        self.asm.plain(X_TO_A, 0);
        self.asm.plain(ADD, bytes);
        self.asm.plain(A_TO_X, 0);
        self.asm.plain(LOAD_SCRATCH, KEPT);
    }

    fn branch_to_any(&mut self, values: &[u32], label: Label) {
        for &value in values {
            self.asm.branch(IF_EQUAL, value, label, NEXT);
        }
    }
}

/// The addresses as masked words, IPv4 (also the mapped kind) and IPv6 apart; sorted, so that neighbours can share tests.
fn masked_words(servers: &[(IpAddr, u8)]) -> (Vec<MaskedWords>, Vec<MaskedWords>) {
    let (mut ipv4, mut ipv6) = (Vec::new(), Vec::new());
    for &(address, prefix) in servers {
        match address {
            IpAddr::V4(address) => ipv4.push(words_of(&[address.to_bits()], prefix)),
            IpAddr::V6(address) => match address.to_ipv4_mapped() {
                Some(mapped) if prefix >= 96 => ipv4.push(words_of(&[mapped.to_bits()], prefix - 96)),
                _ => ipv6.push(words_of(&ipv6_words(address.to_bits()), prefix)),
            },
        }
    }
    for servers in [&mut ipv4, &mut ipv6] {
        // By mask first, then by value: the order in which `emit_words` forms its groups, word by word.
        servers.sort_by_key(|words| words.iter().map(|&(value, mask)| (mask, value)).collect::<Vec<_>>());
        servers.dedup();
    }
    (ipv4, ipv6)
}

fn ipv6_words(bits: u128) -> [u32; 4] {
    let octets = bits.to_be_bytes();
    std::array::from_fn(|word| u32::from_be_bytes(std::array::from_fn(|byte| octets[4 * word + byte])))
}

/// Each word of an address with its share of the prefix's mask, as far as the prefix goes.
fn words_of(words: &[u32], prefix: u8) -> MaskedWords {
    let mut bits_left = u32::from(prefix);
    let mut masked = Vec::new();
    for &word in words {
        if bits_left == 0 {
            break;
        }
        let bits = bits_left.min(32);
        let mask = u32::MAX << (32 - bits);
        masked.push((word & mask, mask));
        bits_left -= bits;
    }
    masked
}

/// Sorted, without doubles, and neighbours joined.
fn port_runs(ports: &[u16]) -> Vec<(u16, u16)> {
    let mut sorted = ports.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let mut runs: Vec<(u16, u16)> = Vec::new();
    for port in sorted {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == port => *last = port,
            _ => runs.push((port, port)),
        }
    }
    runs
}

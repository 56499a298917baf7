//! The generated programs against a plain predicate, by way of a small interpreter of classic BPF.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

/// A packet with what the kernel knows about it.
#[derive(Clone, Debug)]
struct Seen {
    bytes: Vec<u8>,
    outgoing: bool,
    hardware_type: u16,
    /// EtherType and place of the network header, as the kernel has them.
    protocol: u16,
    network_offset: usize,
}

impl Seen {
    fn ethernet(bytes: Vec<u8>) -> Seen {
        let protocol = half(&bytes, 12).unwrap_or(0);
        Seen { bytes, outgoing: false, hardware_type: 1, protocol, network_offset: 14 }
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Runs a program as the kernel does; a load outside the packet refuses it.
fn run(program: &[sock_filter], seen: &Seen) -> u32 {
    let (mut a, mut x, mut scratch, mut at) = (0u32, 0u32, [None::<u32>; 16], 0usize);
    loop {
        let sock_filter { code, jt, jf, k } = program[at];
        at += 1;
        match code {
            LOAD_WORD | LOAD_HALF | LOAD_BYTE => match load(seen, k, code) {
                Some(value) => a = value,
                None => return 0,
            },
            0x40 | 0x48 | 0x50 => match load(seen, x.wrapping_add(k), code - INDEXED) {
                Some(value) => a = value,
                None => return 0,
            },
            LOAD_X_HEADER_LENGTH => match load(seen, k, LOAD_BYTE) {
                Some(value) => x = 4 * (value & 0x0f),
                None => return 0,
            },
            LOAD_CONSTANT => a = k,
            LOAD_X_CONSTANT => x = k,
            LOAD_SCRATCH => a = scratch[k as usize].expect("a scratch cell is stored before it is loaded"),
            STORE_SCRATCH => scratch[k as usize] = Some(a),
            ADD => a = a.wrapping_add(k),
            ADD_X => a = a.wrapping_add(x),
            OR => a |= k,
            AND => a &= k,
            SHIFT_LEFT => a <<= k,
            A_TO_X => x = a,
            X_TO_A => a = x,
            IF_EQUAL => at += usize::from(if a == k { jt } else { jf }),
            IF_GREATER => at += usize::from(if a > k { jt } else { jf }),
            IF_AT_LEAST => at += usize::from(if a >= k { jt } else { jf }),
            IF_ANY_BIT => at += usize::from(if a & k != 0 { jt } else { jf }),
            0x05 => at += k as usize,
            RETURN => return k,
            other => panic!("unknown operation {other:#x}"),
        }
    }
}

fn load(seen: &Seen, k: u32, code: u16) -> Option<u32> {
    let at = match k {
        METADATA_PROTOCOL => return Some(seen.protocol.into()),
        METADATA_PACKET_TYPE => return Some(if seen.outgoing { PACKET_OUTGOING } else { 0 }),
        METADATA_HARDWARE_TYPE => return Some(seen.hardware_type.into()),
        NETWORK_RELATIVE.. => seen.network_offset + (k - NETWORK_RELATIVE) as usize,
        _ => k as usize,
    };
    let bytes = seen.bytes.get(at..)?;
    match code {
        LOAD_WORD => Some(u32::from_be_bytes(*bytes.first_chunk()?)),
        LOAD_HALF => Some(u16::from_be_bytes(*bytes.first_chunk()?).into()),
        _ => bytes.first().map(|&byte| byte.into()),
    }
}

/// What the filter should return: the plain twin of the generated programs.
fn wanted(spec: &FilterSpec, form: FilterForm, seen: &Seen) -> u32 {
    let refuse_outgoing = match spec.outgoing {
        _ if spec.servers_are_own && spec.response_snaplen == SNAPLEN_NONE => true,
        OutgoingPolicy::Keep => false,
        OutgoingPolicy::RefuseOnLoopback => seen.hardware_type == 772,
        OutgoingPolicy::Refuse => true,
    };
    if refuse_outgoing && seen.outgoing {
        return 0;
    }
    let ethernet = spec.link == FilterLink::Ethernet || [1, 772].contains(&seen.hardware_type);
    let network =
        if ethernet { behind_tags(&seen.bytes) } else { Some((seen.protocol, seen.network_offset)) };
    let verdict = network.and_then(|(ethertype, at)| {
        let bytes = seen.bytes.get(at..)?;
        match ethertype {
            0x0800 => wanted_ipv4(spec, form, bytes),
            0x86dd => wanted_ipv6(spec, form, bytes),
            0x8847 | 0x8848 if spec.tunnels => Some(Verdict::Whole),
            _ => None,
        }
    });
    let kept = |snaplen: u32| if snaplen == SNAPLEN_NONE { 0 } else { snaplen.max(SNAPLEN_MIN) };
    let (request, response) = (spec.request_snaplen.max(SNAPLEN_MIN), kept(spec.response_snaplen));
    match verdict {
        None => 0,
        Some(Verdict::Request) => request,
        Some(Verdict::Response) => response,
        Some(Verdict::Whole) => request.max(response),
    }
}

enum Verdict {
    Request,
    Response,
    Whole,
}

/// EtherType and place of the network header behind at most two tags.
fn behind_tags(bytes: &[u8]) -> Option<(u16, usize)> {
    let mut at = 14;
    while at <= 22 {
        let ethertype = half(bytes, at - 2)?;
        if ![0x8100, 0x88a8, 0x9100].contains(&ethertype) {
            return Some((ethertype, at));
        }
        at += 4;
    }
    None
}

fn wanted_ipv4(spec: &FilterSpec, form: FilterForm, bytes: &[u8]) -> Option<Verdict> {
    let address = |at: usize| Some(IpAddr::V4(Ipv4Addr::from(*bytes.get(at..)?.first_chunk::<4>()?)));
    let protocol = *bytes.get(9)?;
    if !spec.carries(protocol) {
        return (spec.tunnels && [4, 41, 47].contains(&protocol)).then_some(Verdict::Whole);
    }
    let to = spec.is_server(form, true, || address(16))?;
    let from = spec.is_server(form, true, || address(12))?;
    if half(bytes, 6)? & 0x1fff != 0 {
        return (to || from).then_some(Verdict::Whole);
    }
    let may_be_tunnelled = spec.tunnels && protocol == 17;
    if !(to || from || may_be_tunnelled) {
        return None;
    }
    let header = 4 * usize::from(*bytes.first()? & 0x0f);
    wanted_ports(spec, form, bytes.get(header..).unwrap_or_default(), protocol, to, from)
}

fn wanted_ipv6(spec: &FilterSpec, form: FilterForm, bytes: &[u8]) -> Option<Verdict> {
    let address = |at: usize| Some(IpAddr::V6(Ipv6Addr::from(*bytes.get(at..)?.first_chunk::<16>()?)));
    let to = spec.is_server(form, false, || address(24))?;
    let from = spec.is_server(form, false, || address(8))?;
    if !to && !from && !spec.tunnels {
        return None;
    }
    let (mut protocol, mut at) = (*bytes.get(6)?, 40);
    for stepped_over in 0..=EXTENSION_HEADERS_MAX {
        if spec.carries(protocol) {
            return wanted_ports(spec, form, bytes.get(at..).unwrap_or_default(), protocol, to, from);
        }
        match protocol {
            4 | 41 | 47 if spec.tunnels => return Some(Verdict::Whole),
            _ if stepped_over == EXTENSION_HEADERS_MAX => return None,
            44 if half(bytes, at + 2)? & 0xfff8 != 0 => return (to || from).then_some(Verdict::Whole),
            44 => (protocol, at) = (*bytes.get(at)?, at + 8),
            0 | 43 | 60 => {
                (protocol, at) = (*bytes.get(at)?, at + 8 * (1 + usize::from(*bytes.get(at + 1)?)))
            }
            _ => return None,
        }
    }
    None
}

fn wanted_ports(
    spec: &FilterSpec,
    form: FilterForm,
    transport: &[u8],
    protocol: u8,
    to: bool,
    from: bool,
) -> Option<Verdict> {
    if spec.tunnels && protocol == 17 && TUNNEL_PORTS.contains(&half(transport, 2)?) {
        return Some(Verdict::Whole);
    }
    let any_port = form == FilterForm::TransportOnly || spec.ports.is_empty();
    let any_address = form != FilterForm::AddressesAndPorts || spec.servers.is_empty();
    if any_port && any_address {
        return Some(Verdict::Whole);
    }
    if to && (any_port || spec.ports.contains(&half(transport, 2)?)) {
        return Some(Verdict::Request);
    }
    (from && (any_port || spec.ports.contains(&half(transport, 0)?))).then_some(Verdict::Response)
}

impl FilterSpec {
    fn carries(&self, protocol: u8) -> bool {
        (protocol == 6 && self.tcp) || (protocol == 17 && (self.udp || self.tunnels))
    }

    /// Whether an address is a server's; nothing when the packet is cut before it. An address of a family in which there is
    /// nothing to compare it with is not read.
    fn is_server(&self, form: FilterForm, ipv4: bool, address: impl Fn() -> Option<IpAddr>) -> Option<bool> {
        if form != FilterForm::AddressesAndPorts || self.servers.is_empty() {
            return Some(true);
        }
        let prefixes = self.servers.iter().filter_map(|&(server, prefix)| match server {
            IpAddr::V4(_) => ipv4.then_some(prefix),
            IpAddr::V6(server) if prefix >= 96 && server.to_ipv4_mapped().is_some() => {
                ipv4.then_some(prefix - 96)
            }
            IpAddr::V6(_) => (!ipv4).then_some(prefix),
        });
        match prefixes.min() {
            None => Some(false),
            Some(0) => Some(true),
            Some(_) => Some(self.serves(form, address()?)),
        }
    }

    fn serves(&self, form: FilterForm, address: IpAddr) -> bool {
        form != FilterForm::AddressesAndPorts
            || self.servers.is_empty()
            || self.servers.iter().any(|&(server, prefix)| match (server, address) {
                (IpAddr::V4(server), IpAddr::V4(address)) => {
                    (server.to_bits() ^ address.to_bits()).leading_zeros() >= prefix.into()
                }
                (IpAddr::V6(server), IpAddr::V6(address)) => {
                    (server.to_bits() ^ address.to_bits()).leading_zeros() >= prefix.into()
                }
                (IpAddr::V6(server), IpAddr::V4(address)) => server.to_ipv4_mapped().is_some_and(|mapped| {
                    prefix >= 96
                        && (mapped.to_bits() ^ address.to_bits()).leading_zeros() >= u32::from(prefix) - 96
                }),
                _ => false,
            })
    }
}

/// A packet from parts, for the strategies.
#[derive(Clone, Debug)]
struct Recipe {
    tags: Vec<u16>,
    ethertype: u16,
    source: u8,
    destination: u8,
    protocol: u8,
    option_words: u8,
    extensions: Vec<(u8, u8)>,
    fragment: u16,
    source_port: u16,
    destination_port: u16,
}

impl Recipe {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; 12];
        for tag in &self.tags {
            bytes.extend(tag.to_be_bytes());
            bytes.extend([0, 7]);
        }
        bytes.extend(self.ethertype.to_be_bytes());
        if self.ethertype == 0x0800 {
            self.ipv4(&mut bytes)
        } else {
            self.ipv6(&mut bytes)
        }
        bytes.extend(self.source_port.to_be_bytes());
        bytes.extend(self.destination_port.to_be_bytes());
        bytes.extend([0; 16]);
        bytes
    }

    fn ipv4(&self, bytes: &mut Vec<u8>) {
        let start = bytes.len();
        bytes.extend([0x45 + self.option_words, 0, 0, 0, 0, 0]);
        bytes.extend(self.fragment.to_be_bytes());
        bytes.extend([64, self.protocol, 0, 0, 10, 0, 0, self.source, 10, 0, 0, self.destination]);
        bytes.resize(start + 20 + 4 * usize::from(self.option_words), 0);
    }

    fn ipv6(&self, bytes: &mut Vec<u8>) {
        let address =
            |last: u8| Ipv6Addr::new(0xfd00, 0, 0, u16::from(last & 1), 0, 0, 0, last.into()).octets();
        let next = |index: usize| self.extensions.get(index).map_or(self.protocol, |&(number, _)| number);
        bytes.extend([0x60, 0, 0, 0, 0, 0, next(0), 64]);
        bytes.extend(address(self.source));
        bytes.extend(address(self.destination));
        for (index, &(number, units)) in self.extensions.iter().enumerate() {
            let start = bytes.len();
            let units = if number == 44 { 0 } else { units };
            bytes.extend([next(index + 1), units]);
            bytes.extend(if number == 44 { self.fragment << 3 } else { 0 }.to_be_bytes());
            bytes.resize(start + 8 * (1 + usize::from(units)), 0);
        }
    }
}

fn recipe() -> impl Strategy<Value = Recipe> {
    let tags = prop::collection::vec(prop::sample::select(vec![0x8100u16, 0x88a8, 0x9100]), 0..4);
    let ethertype =
        prop_oneof![4 => Just(0x0800u16), 4 => Just(0x86dd), 1 => Just(0x8847), 1 => Just(0x0806)];
    let protocol = prop_oneof![4 => Just(6u8), 4 => Just(17), 1 => Just(47), 1 => Just(4), 1 => Just(1)];
    let extension = (prop::sample::select(vec![0u8, 43, 44, 60, 51]), 0u8..3);
    let fragment = prop_oneof![3 => Just(0u16), 1 => Just(0x2000), 1 => Just(0x4000), 1 => Just(0x2003), 1 => any::<u16>()];
    let port = || prop_oneof![3 => 11210u16..11215, 1 => Just(4789u16), 1 => any::<u16>()];
    (
        tags,
        ethertype,
        0u8..8,
        0u8..8,
        protocol,
        0u8..11,
        prop::collection::vec(extension, 0..5),
        fragment,
        port(),
        port(),
    )
        .prop_map(
            |(
                tags,
                ethertype,
                source,
                destination,
                protocol,
                option_words,
                extensions,
                fragment,
                from,
                to,
            )| Recipe {
                tags,
                ethertype,
                source,
                destination,
                protocol,
                option_words,
                extensions,
                fragment,
                source_port: from,
                destination_port: to,
            },
        )
}

fn seen() -> impl Strategy<Value = Seen> {
    let bytes = prop_oneof![
        8 => recipe().prop_map(|recipe| recipe.bytes()),
        // Cut within the link header only. Cut elsewhere, a program returns what it returns for the whole packet, or 0 at
        // the first load that fails; which loads it does before that is its own affair.
        1 => (recipe(), 0usize..16).prop_map(|(recipe, end)| {
            let mut bytes = recipe.bytes();
            bytes.truncate(end);
            bytes
        }),
        1 => prop::collection::vec(any::<u8>(), 0..100),
    ];
    (bytes, any::<bool>(), prop::sample::select(vec![1u16, 772, 65534])).prop_map(
        |(bytes, outgoing, hardware_type)| {
            // A device without an Ethernet header delivers the same packet from the network header on.
            let mut seen = Seen { outgoing, hardware_type, ..Seen::ethernet(bytes) };
            if hardware_type == 65534 && seen.bytes.len() > 14 {
                seen.bytes.drain(..14);
                seen.network_offset = 0;
            }
            seen
        },
    )
}

fn spec() -> impl Strategy<Value = FilterSpec> {
    let server = prop_oneof![
        (0u8..8).prop_map(|last| (IpAddr::from([10, 0, 0, last]), 32)),
        (0u8..8, 0u8..=32).prop_map(|(last, prefix)| (IpAddr::from([10, 0, 0, last]), prefix)),
        (0u16..8).prop_map(|last| (IpAddr::from([0xfd00, 0, 0, last & 1, 0, 0, 0, last]), 128)),
        (0u16..8, 0u8..=128)
            .prop_map(|(last, prefix)| (IpAddr::from([0xfd00, 0, 0, last & 1, 0, 0, 0, last]), prefix)),
        (0u8..8).prop_map(|last| (IpAddr::V6(Ipv4Addr::new(10, 0, 0, last).to_ipv6_mapped()), 128)),
    ];
    let servers = prop::collection::vec(server, 0..6);
    let ports = prop::collection::vec(prop_oneof![11210u16..11215, any::<u16>()], 0..5);
    let outgoing = prop::sample::select(vec![
        OutgoingPolicy::Keep,
        OutgoingPolicy::RefuseOnLoopback,
        OutgoingPolicy::Refuse,
    ]);
    let link = prop::sample::select(vec![FilterLink::Ethernet, FilterLink::Mixed]);
    let response = prop_oneof![9 => 100u32..2000, 1 => Just(SNAPLEN_NONE)];
    (servers, ports, any::<[bool; 4]>(), outgoing, link, (100u32..2000, response)).prop_map(
        |(
            servers,
            ports,
            [tcp, udp, tunnels, servers_are_own],
            outgoing,
            link,
            (request_snaplen, response_snaplen),
        )| {
            FilterSpec {
                servers,
                ports,
                tcp,
                udp,
                request_snaplen,
                response_snaplen,
                outgoing,
                servers_are_own,
                link,
                tunnels,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn programs_agree_with_the_predicate(spec in spec(), packets in prop::collection::vec(seen(), 60)) {
        for form in FilterForm::LADDER {
            let program = spec.assemble(form).unwrap();
            for seen in &packets {
                // An Ethernet filter is never attached to another kind of device.
                let mut seen = seen.clone();
                if spec.link == FilterLink::Ethernet && seen.hardware_type == 65534 {
                    seen.hardware_type = 1;
                }
                prop_assert_eq!(run(&program, &seen), wanted(&spec, form, &seen), "{:?} {:?}", form, seen);
            }
        }
    }

    #[test]
    fn wider_forms_accept_what_closer_ones_accept(spec in spec(), packets in prop::collection::vec(recipe(), 60)) {
        let programs = FilterForm::LADDER.map(|form| spec.assemble(form).unwrap());
        for recipe in &packets {
            let seen = Seen::ethernet(recipe.bytes());
            let accepted = programs.each_ref().map(|program| run(program, &seen) > 0);
            prop_assert!(accepted.is_sorted(), "{:?} {:?}", accepted, seen);
        }
    }
}

fn target(address: &str) -> (IpAddr, u8) {
    (address.parse().unwrap(), if address.contains(':') { 128 } else { 32 })
}

#[test]
fn each_direction_has_its_snap_length() {
    let mut spec = FilterSpec::new(vec![target("10.0.0.1")], vec![11211]);
    spec.response_snaplen = 256;
    let program = spec.assemble(FilterForm::AddressesAndPorts).unwrap();
    let packet = |source, destination, source_port, destination_port| {
        let recipe = Recipe {
            tags: vec![],
            ethertype: 0x0800,
            source,
            destination,
            protocol: 6,
            option_words: 0,
            extensions: vec![],
            fragment: 0x4000,
            source_port,
            destination_port,
        };
        run(&program, &Seen::ethernet(recipe.bytes()))
    };
    assert_eq!(packet(2, 1, 40000, 11211), SNAPLEN_FULL);
    assert_eq!(packet(1, 2, 11211, 40000), 256);
    assert_eq!(packet(1, 2, 40000, 11211), 0, "the server as a client of another server");
    assert_eq!(packet(2, 3, 40000, 11211), 0, "another server");
    assert_eq!(packet(2, 1, 40000, 80), 0, "another port");
}

#[test]
fn common_filters_are_short() {
    // The figures that README and manual may quote; old kernels hold some hundreds of instructions (optmem_max).
    let lengths =
        |spec: &FilterSpec| FilterForm::LADDER.map(|form| spec.assemble(form).map(|program| program.len()));
    let any = FilterSpec::new(vec![], vec![11211]);
    let [close, ..] = lengths(&any);
    assert!(close.unwrap() <= 160, "{close:?}");
    let servers = (0..200u32).map(|last| (IpAddr::from((0x0a00_0000 + last).to_be_bytes()), 32)).collect();
    let [close, ..] = lengths(&FilterSpec::new(servers, vec![11211]));
    assert!(close.unwrap() <= 1000, "{close:?}");
}

#[test]
fn too_many_addresses_fall_back_to_ports() {
    let servers = (0..3000u32).map(|last| (IpAddr::from((0x0a00_0000 + last).to_be_bytes()), 32)).collect();
    let spec = FilterSpec::new(servers, vec![11211]);
    assert!(spec.assemble(FilterForm::AddressesAndPorts).is_err());
    assert!(spec.assemble(FilterForm::PortsOnly).is_ok());
    let scattered = FilterSpec::new(vec![], (0..8000u16).map(|port| port * 2).collect());
    assert!(scattered.assemble(FilterForm::PortsOnly).is_err());
    assert!(scattered.assemble(FilterForm::TransportOnly).is_ok());
}

#[test]
fn long_filters_still_agree() {
    let servers: Vec<_> =
        (0..400u32).map(|last| (IpAddr::from((0x0a00_0000 + 2 * last).to_be_bytes()), 32)).collect();
    let mut spec = FilterSpec::new(servers, vec![11211]);
    spec.servers.extend((0..200u16).map(|last| (IpAddr::from([0xfd00, 0, 0, last & 1, 0, 0, 0, last]), 128)));
    let program = spec.assemble(FilterForm::AddressesAndPorts).unwrap();
    for (source, destination) in (0..=255).flat_map(|one| [(one, 1), (1, one), (one, 2)]) {
        for ethertype in [0x0800, 0x86dd] {
            let recipe = Recipe {
                tags: if destination == 2 { vec![0x8100] } else { vec![] },
                ethertype,
                source,
                destination,
                protocol: 17,
                option_words: 0,
                extensions: vec![],
                fragment: 0,
                source_port: 11211,
                destination_port: if source % 3 == 0 { 11211 } else { 5 },
            };
            let seen = Seen::ethernet(recipe.bytes());
            assert_eq!(
                run(&program, &seen),
                wanted(&spec, FilterForm::AddressesAndPorts, &seen),
                "{recipe:?}"
            );
        }
    }
}

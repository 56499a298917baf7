//! The ring, its filter and the choice of interfaces against the real kernel, in network namespaces of their own.
//!
//! Needs root; a test that cannot run says so and fails. Packets are injected by the `afpacket` crate, which shares no code with
//! the ring, or come from sockets of the standard library.

mod support {
    pub(crate) mod netns;
}

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use afpacket::sync::RawPacketStream;
use memtap::capture::LinkType;
use memtap::capture::filter::{
    FilterForm, FilterLink, FilterSpec, OutgoingPolicy, SNAPLEN_FULL, SNAPLEN_NONE,
};
use memtap::capture::interface::{self, Interface, InterfaceKind, InterfaceRequest, Route};
use memtap::capture::ring::{self, BLOCK_BYTES_MIN, Ring, RingError, RingOptions, RingShape, RingState};
use memtap::capture::socket::{self, PacketSocket};
use memtap::model::Timestamp;
use support::netns::{CLIENT, Namespace, Pair, SERVER, open_tun};

/// Long enough for a slow machine; reached only by a test that fails.
const PATIENCE: Duration = Duration::from_secs(10);
/// Nothing comes for this long: nothing more will (the rings of these tests hand blocks over after 10 ms).
const QUIET: Duration = Duration::from_millis(150);

const PORT: u16 = 11211;

/// A copy of what the ring lent.
#[derive(Clone, Debug)]
struct Copied {
    timestamp: Timestamp,
    link: LinkType,
    bytes: Vec<u8>,
    wire_bytes: u32,
    outgoing: bool,
    interface_index: u32,
}

fn small_ring() -> RingShape {
    RingShape { blocks: 16, block_bytes: BLOCK_BYTES_MIN, retire_timeout: Duration::from_millis(10) }
}

fn spec() -> FilterSpec {
    FilterSpec::new(vec![], vec![PORT])
}

fn options(interface_name: &str, filter: FilterSpec) -> RingOptions {
    let interface_index = socket::interface_index(interface_name).expect("the interface exists");
    RingOptions { interface_index, shape: small_ring(), filter, promiscuous: false }
}

fn open(namespace: &Namespace, interface_name: &str, filter: FilterSpec) -> Ring {
    namespace.run(|| Ring::open(&options(interface_name, filter)).expect("root may open a ring"))
}

fn find(namespace: &Namespace, name: &str) -> Interface {
    let interfaces = namespace.run(interface::enumerate).expect("the kernel answers");
    interfaces.into_iter().find(|found| found.name == name).expect("the interface exists")
}

/// Everything that can be read at once.
fn drain(ring: &mut Ring, copies: &mut Vec<Copied>) {
    while let Some(mut block) = ring.next_block() {
        block.for_each_packet(|captured| {
            copies.push(Copied {
                timestamp: captured.packet.timestamp,
                link: captured.packet.link,
                bytes: captured.packet.bytes.to_vec(),
                wire_bytes: captured.packet.wire_bytes,
                outgoing: captured.outgoing,
                interface_index: captured.interface_index,
            });
        });
    }
}

/// Reads until `expected` packets have come and then until nothing more comes, so that one too many is seen as well.
fn collect(rings: &mut [Ring], expected: usize) -> Vec<Copied> {
    let (start, mut copies) = (Instant::now(), Vec::new());
    let mut last = Instant::now();
    while start.elapsed() < PATIENCE && (copies.len() < expected || last.elapsed() < QUIET) {
        ring::wait(rings, Duration::from_millis(20)).unwrap();
        let before = copies.len();
        rings.iter_mut().for_each(|ring| drain(ring, &mut copies));
        if copies.len() > before {
            last = Instant::now();
        }
    }
    copies
}

fn collect_one(ring: &mut Ring, expected: usize) -> Vec<Copied> {
    collect(std::slice::from_mut(ring), expected)
}

/// Sends whole packets, link header included, out of an interface.
fn inject(namespace: &Namespace, interface_name: &str, packets: &[Vec<u8>]) {
    namespace.run(|| {
        let mut stream = RawPacketStream::new().expect("root may open a packet socket");
        stream.bind(interface_name).expect("the interface exists");
        for packet in packets {
            assert_eq!(stream.write(packet).expect("the packet is sent"), packet.len());
        }
    });
}

/// Ethernet and what follows it.
fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2];
    bytes.extend(ethertype.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A VLAN tag and what follows it.
fn tagged(vlan: u16, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&vlan.to_be_bytes(), &ethertype.to_be_bytes(), payload].concat()
}

struct Ipv4 {
    source: &'static str,
    destination: &'static str,
    protocol: u8,
    option_words: u8,
    fragment: u16,
}

const TO_SERVER: Ipv4 =
    Ipv4 { source: CLIENT, destination: SERVER, protocol: 17, option_words: 0, fragment: 0x4000 };
const FROM_SERVER: Ipv4 = Ipv4 { source: SERVER, destination: CLIENT, ..TO_SERVER };

fn ipv4(header: &Ipv4, payload: &[u8]) -> Vec<u8> {
    let header_bytes = 20 + 4 * usize::from(header.option_words);
    let total = u16::try_from(header_bytes + payload.len()).unwrap();
    let mut bytes = vec![0x45 + header.option_words, 0];
    bytes.extend(total.to_be_bytes());
    bytes.extend([0, 1]);
    bytes.extend(header.fragment.to_be_bytes());
    bytes.extend([64, header.protocol, 0, 0]);
    bytes.extend(header.source.parse::<Ipv4Addr>().unwrap().octets());
    bytes.extend(header.destination.parse::<Ipv4Addr>().unwrap().octets());
    bytes.resize(header_bytes, 1);
    bytes.extend(payload);
    bytes
}

/// IPv6 with extension headers (number, content behind the first two bytes), from `fd99::2` to `fd99::1`.
fn ipv6(extensions: &[(u8, [u8; 6])], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let next = |index: usize| extensions.get(index).map_or(protocol, |&(number, _)| number);
    let length = u16::try_from(8 * extensions.len() + payload.len()).unwrap();
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend(length.to_be_bytes());
    bytes.extend([next(0), 64]);
    for last in [2, 1] {
        bytes.extend([0xfd, 0x99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    }
    for (index, (_, content)) in extensions.iter().enumerate() {
        bytes.extend([next(index + 1), 0]);
        bytes.extend(content);
    }
    bytes.extend(payload);
    bytes
}

fn udp(source_port: u16, destination_port: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    [&source_port.to_be_bytes(), &destination_port.to_be_bytes(), &length.to_be_bytes(), &[0, 0], payload]
        .concat()
}

/// A request of `bytes` bytes of payload that begins with its number.
fn request(number: u32, bytes: usize) -> Vec<u8> {
    let mut payload = number.to_be_bytes().to_vec();
    payload.resize(bytes.max(4), number as u8);
    ethernet(0x0800, &ipv4(&TO_SERVER, &udp(40000, PORT, &payload)))
}

fn response(bytes: usize) -> Vec<u8> {
    ethernet(0x0800, &ipv4(&FROM_SERVER, &udp(PORT, 40000, &vec![7; bytes])))
}

#[test]
fn injected_packets_are_seen_exactly_once_and_in_order() {
    let pair = Pair::new();
    let mut ring = open(&pair.server, "veth0", spec());
    let packets: Vec<_> =
        (0..1000).map(|number| request(number, 4 + (number as usize * 37) % 1400)).collect();
    inject(&pair.client, "veth0", &packets);
    let seen = collect_one(&mut ring, packets.len());
    assert_eq!(seen.len(), packets.len());
    let index = pair.server.run(|| socket::interface_index("veth0")).unwrap();
    for (seen, sent) in seen.iter().zip(&packets) {
        assert_eq!(seen.link, LinkType::Network { ethertype: 0x0800 });
        assert_eq!(seen.bytes, sent[14..]);
        assert_eq!(seen.wire_bytes as usize, sent.len() - 14);
        assert!(!seen.outgoing);
        assert_eq!(seen.interface_index, index);
    }
    assert!(seen.is_sorted_by_key(|seen| seen.timestamp));
    assert!(seen[0].timestamp > Timestamp::from_parts(1_600_000_000, 0));
    let statistics = ring.statistics().unwrap();
    assert_eq!((statistics.packets, statistics.packets_dropped, statistics.freezes), (1000, 0, 0));
    assert_eq!((statistics.blocks_damaged, statistics.blocks_waiting), (0, 0));
    assert!(statistics.blocks > 0 && statistics.blocks_waiting_max > 0);
    // The sender's side sees the same packets as its own.
    let mut ring = open(&pair.client, "veth0", spec());
    inject(&pair.client, "veth0", &packets[..10]);
    let seen = collect_one(&mut ring, 10);
    assert_eq!(seen.len(), 10);
    assert!(seen.iter().all(|seen| seen.outgoing));
}

#[test]
fn lo_delivers_each_packet_once() {
    let namespace = Namespace::new();
    let lo = find(&namespace, "lo");
    let on_lo = RingOptions { shape: small_ring(), ..RingOptions::new(&lo, spec()) };
    let on_any = RingOptions { shape: small_ring(), ..RingOptions::new(&Interface::any(), spec()) };
    assert_eq!(on_lo.filter.outgoing, OutgoingPolicy::Refuse);
    let send = || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let server = UdpSocket::bind(("127.0.0.1", PORT)).unwrap();
        for number in 0..100u32 {
            socket.send_to(&number.to_be_bytes(), ("127.0.0.1", PORT)).unwrap();
            server.send_to(&number.to_be_bytes(), socket.local_addr().unwrap()).unwrap();
        }
    };
    // Alone, in a group (where the socket option has no effect), and on the ring of every interface.
    let mut alone = [namespace.run(|| Ring::open(&on_lo)).unwrap()];
    namespace.run(send);
    let seen = collect(&mut alone, 200);
    assert_eq!(seen.len(), 200);
    assert!(seen.iter().all(|seen| !seen.outgoing));
    drop(alone);

    let mut group = namespace.run(|| Ring::open_group(&on_lo, 2)).unwrap();
    namespace.run(send);
    assert_eq!(collect(&mut group, 200).len(), 200);
    drop(group);

    let mut every = [namespace.run(|| Ring::open(&on_any)).unwrap()];
    namespace.run(send);
    let seen = collect(&mut every, 200);
    let of_lo = seen.iter().filter(|seen| seen.interface_index == 1).count();
    // Before Linux 6.15 the packets of other namespaces would be here too.
    assert!(of_lo >= 200, "{of_lo}");
    assert!(seen.iter().all(|seen| !seen.outgoing || seen.interface_index != 1));
}

/// The kernel makes no copies of what this host sends while no response is wanted, and makes them again when one is; a host that is
/// a client as well keeps its own requests.
#[test]
fn copies_of_what_this_host_sends_come_and_go_with_the_wish_for_responses() {
    let pair = Pair::new();
    let server = pair.server.run(|| UdpSocket::bind((SERVER, PORT)).unwrap());
    let client = pair.client.run(|| UdpSocket::bind((CLIENT, 0)).unwrap());
    let away = pair.client.run(|| UdpSocket::bind((CLIENT, PORT)).unwrap());
    let exchange = || {
        for number in 0..10u32 {
            client.send_to(&number.to_be_bytes(), (SERVER, PORT)).unwrap();
            let (_, asker) = server.recv_from(&mut [0; 4]).unwrap();
            server.send_to(&number.to_be_bytes(), asker).unwrap();
        }
        // From the server's port as well: by its ports alone it is a request and a response.
        server.send_to(b"asks", away.local_addr().unwrap()).unwrap();
    };
    let full = FilterSpec { servers_are_own: true, ..spec() };
    let requests = FilterSpec { response_snaplen: SNAPLEN_NONE, ..full.clone() };
    let as_a_client = FilterSpec { servers_are_own: false, ..requests.clone() };
    let mut rings = [open(&pair.server, "veth0", full.clone())];
    for (filter, incoming, outgoing) in
        [(&full, 10, 11), (&requests, 10, 0), (&full, 10, 11), (&as_a_client, 10, 1), (&requests, 10, 0)]
    {
        rings[0].set_filter(filter).unwrap();
        exchange();
        let seen = collect(&mut rings, incoming + outgoing);
        let sent = seen.iter().filter(|seen| seen.outgoing).count();
        assert_eq!((seen.len() - sent, sent), (incoming, outgoing), "{filter:?}");
    }
}

#[test]
fn nothing_foreign_enters_while_a_ring_is_opened() {
    let pair = Pair::new();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        pair.client.spawn(scope, || {
            let socket = UdpSocket::bind((CLIENT, 0)).unwrap();
            // Bounded, should the test fail to stop it.
            for _ in 0..2_000_000 {
                let _ = socket.send_to(&[1; 64], (SERVER, 9));
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        let mut seen = Vec::new();
        for workers in [1, 1, 1, 2, 3, 2] {
            let mut rings = pair
                .server
                .run(|| Ring::open_group(&options("veth0", spec()), workers))
                .expect("a group opens");
            inject(&pair.client, "veth0", &[request(5, 100)]);
            seen.push(collect(&mut rings, 1));
            let counted: u64 = rings.iter_mut().map(|ring| ring.statistics().unwrap().packets).sum();
            assert_eq!(counted, 1, "{workers} workers");
        }
        stop.store(true, Ordering::Relaxed);
        for seen in seen {
            assert_eq!(seen.len(), 1);
            assert_eq!(seen[0].bytes, request(5, 100)[14..]);
        }
    });
}

#[test]
fn each_direction_has_its_snap_length_and_filters_are_exchanged_live() {
    let pair = Pair::new();
    let mut ring = open(&pair.server, "veth0", FilterSpec { response_snaplen: 200, ..spec() });
    let packets = [request(1, 1400), response(1400), request(2, 10), response(10)];
    inject(&pair.client, "veth0", &packets);
    let seen = collect_one(&mut ring, 4);
    let lengths: Vec<_> = seen.iter().map(|seen| (seen.bytes.len(), seen.wire_bytes as usize)).collect();
    // Snap lengths count from the link header, packets from the network header on.
    assert_eq!(lengths, [(1428, 1428), (200 - 14, 1428), (38, 38), (38, 38)]);

    let form = ring.set_filter(&FilterSpec { request_snaplen: 300, ..spec() }).unwrap();
    assert_eq!(form, FilterForm::AddressesAndPorts);
    inject(&pair.client, "veth0", &packets);
    let seen = collect_one(&mut ring, 4);
    let lengths: Vec<_> = seen.iter().map(|seen| seen.bytes.len()).collect();
    assert_eq!(lengths, [300 - 14, 1428, 38, 38]);
}

#[test]
fn drops_are_counted_and_add_up() {
    let pair = Pair::new();
    let mut options = pair.server.run(|| options("veth0", spec()));
    options.shape.blocks = 4;
    let mut ring = pair.server.run(|| Ring::open(&options)).unwrap();
    // 1 MiB of ring, 6 MB of packets, and nobody reads.
    let packets: Vec<_> = (0..4000).map(|number| request(number, 1400)).collect();
    inject(&pair.client, "veth0", &packets);
    let before = ring.statistics().unwrap();
    assert_eq!((before.blocks_waiting, before.blocks_waiting_max, before.blocks_total), (4, 4, 4));
    let seen = collect_one(&mut ring, 1);
    let statistics = ring.statistics().unwrap();
    assert_eq!(statistics.packets, 4000);
    assert!(statistics.packets_dropped > 3000, "{statistics:?}");
    assert_eq!(seen.len() as u64 + statistics.packets_dropped, statistics.packets);
    assert!(statistics.freezes >= 1);
    assert_eq!((statistics.blocks_damaged, statistics.blocks_waiting), (0, 0));
    // It goes on as if nothing had been.
    inject(&pair.client, "veth0", &packets[..10]);
    assert_eq!(collect_one(&mut ring, 10).len(), 10);
    assert_eq!(ring.statistics().unwrap().blocks_waiting_max, 1);
}

/// Waits until the ring is in the given state, and says how often `wait` returned meanwhile.
fn wait_for(ring: &mut Ring, state: RingState) -> usize {
    let (start, mut returns) = (Instant::now(), 0);
    while ring.state() != state {
        assert!(start.elapsed() < PATIENCE, "still {:?}", ring.state());
        ring::wait(std::slice::from_mut(ring), Duration::from_millis(20)).unwrap();
        returns += 1;
    }
    returns
}

#[test]
fn a_ring_resumes_when_its_interface_comes_up_again() {
    let pair = Pair::new();
    let mut ring = open(&pair.server, "veth0", spec());
    inject(&pair.client, "veth0", &[request(1, 10)]);
    assert_eq!(collect_one(&mut ring, 1).len(), 1);
    assert_eq!(ring.state(), RingState::Running);

    pair.server.ip("link set veth0 down");
    wait_for(&mut ring, RingState::Down);
    // The error was taken away: waiting sleeps.
    let (start, mut returns) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_millis(400) {
        ring::wait(std::slice::from_mut(&mut ring), Duration::from_millis(100)).unwrap();
        returns += 1;
    }
    assert!(returns <= 8, "{returns} returns in 400 ms");
    assert_eq!(ring.check_state().unwrap(), RingState::Down);

    pair.server.ip("link set veth0 up");
    assert_eq!(ring.check_state().unwrap(), RingState::Running);
    inject(&pair.client, "veth0", &[request(2, 10)]);
    assert_eq!(collect_one(&mut ring, 1).len(), 1);
}

#[test]
fn a_ring_opened_on_an_interface_that_is_down_starts_with_it() {
    let pair = Pair::new();
    pair.server.ip("link set veth0 down");
    let mut ring = open(&pair.server, "veth0", spec());
    assert_eq!(ring.state(), RingState::Down);
    let mut group = pair.server.run(|| Ring::open_group(&options("veth0", spec()), 2)).unwrap();
    pair.server.ip("link set veth0 up");
    inject(&pair.client, "veth0", &[request(1, 10)]);
    assert_eq!(collect_one(&mut ring, 1).len(), 1);
    assert_eq!(ring.state(), RingState::Running);
    assert_eq!(collect(&mut group, 1).len(), 1);
}

#[test]
fn a_deleted_interface_is_recognised_and_its_successor_taken() {
    let pair = Pair::new();
    let mut ring = open(&pair.server, "veth0", spec());
    let mut group = pair.server.run(|| Ring::open_group(&options("veth0", spec()), 2)).unwrap();
    for delete_while_down in [false, true] {
        if delete_while_down {
            pair.server.ip("link set veth0 down");
            wait_for(&mut ring, RingState::Down);
        }
        pair.server.ip("link del veth0");
        if delete_while_down {
            // Nothing tells of it; it has to be looked for.
            assert_eq!(ring.check_state().unwrap(), RingState::Gone);
        } else {
            wait_for(&mut ring, RingState::Gone);
            wait_for(&mut group[0], RingState::Gone);
        }
        ring::wait(std::slice::from_mut(&mut ring), Duration::from_millis(1)).unwrap();
        pair.link();
        let index = pair.server.run(|| socket::interface_index("veth0")).unwrap();
        assert_ne!(index, ring.interface_index());
        ring.rebind(index).unwrap();
        assert_eq!((ring.state(), ring.interface_index()), (RingState::Running, index));
        inject(&pair.client, "veth0", &[request(1, 10), ethernet(0x0806, &[0; 40])]);
        assert_eq!(collect_one(&mut ring, 1).len(), 1);
    }
    assert!(matches!(group[0].rebind(1), Err(RingError::RebindInGroup)));
    assert!(matches!(ring.rebind(9999), Err(RingError::InterfaceGone { index: 9999 })));
    let missing =
        RingOptions { interface_index: 9999, shape: small_ring(), filter: spec(), promiscuous: true };
    assert!(matches!(
        pair.server.run(|| Ring::open(&missing)),
        Err(RingError::InterfaceGone { index: 9999 })
    ));
}

#[test]
fn tags_are_stripped_or_read_from_the_ethernet_header() {
    let pair = Pair::new();
    let ip = ipv4(&TO_SERVER, &udp(40000, PORT, b"tagged"));
    let once = ethernet(0x8100, &tagged(100, 0x0800, &ip));
    let twice = ethernet(0x88a8, &tagged(101, 0x8100, &tagged(102, 0x0800, &ip)));
    let thrice = ethernet(0x88a8, &tagged(1, 0x8100, &tagged(2, 0x8100, &tagged(3, 0x0800, &ip))));
    let foreign = ethernet(0x8100, &tagged(100, 0x0800, &ipv4(&TO_SERVER, &udp(1, 2, b""))));
    let packets = [once, twice, thrice, foreign];

    // Received: the outer tag is stripped, the others are in band.
    let mut ring = open(&pair.server, "veth0", spec());
    inject(&pair.client, "veth0", &packets);
    let seen = collect_one(&mut ring, 3);
    assert_eq!(seen.len(), 3);
    assert_eq!((seen[0].link, &seen[0].bytes), (LinkType::Network { ethertype: 0x0800 }, &ip));
    for (seen, tags) in [(&seen[1], 1), (&seen[2], 2)] {
        assert_eq!(seen.link, LinkType::Ethernet);
        assert_eq!(seen.bytes[12..14], [0x81, 0x00]);
        assert_eq!(seen.bytes[14 + 4 * tags..], ip);
        assert_eq!(seen.wire_bytes as usize, seen.bytes.len());
    }

    // Sent: all tags are in band, and the kernel has put the network header behind them. Three are one too many.
    let mut ring = open(&pair.client, "veth0", spec());
    inject(&pair.client, "veth0", &packets);
    let seen = collect_one(&mut ring, 2);
    assert_eq!(seen.len(), 2);
    for (seen, sent) in seen.iter().zip(&packets) {
        assert_eq!((seen.link, &seen.bytes), (LinkType::Ethernet, sent));
    }
}

#[test]
fn packets_before_segmentation_come_whole() {
    const BYTES: usize = 8 << 20;
    let pair = Pair::new();
    // Room for the whole transfer, however slow the reader.
    let open = |namespace: &Namespace| {
        let options =
            namespace.run(|| RingOptions { shape: RingShape::default(), ..options("veth0", spec()) });
        namespace.run(|| Ring::open(&options)).unwrap()
    };
    let mut rings = [open(&pair.server), open(&pair.client)];
    let seen = thread::scope(|scope| {
        let listener = pair.server.run(|| TcpListener::bind((SERVER, PORT)).unwrap());
        pair.server.spawn(scope, move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(&vec![b'v'; BYTES]).unwrap();
        });
        let reader = pair.client.spawn(scope, || {
            let stream = TcpStream::connect((SERVER, PORT)).unwrap();
            std::io::copy(&mut stream.take(BYTES as u64), &mut std::io::sink()).unwrap()
        });
        let mut seen = Vec::new();
        while !reader.is_finished() {
            ring::wait(&mut rings, Duration::from_millis(10)).unwrap();
            rings.iter_mut().for_each(|ring| drain(ring, &mut seen));
        }
        assert_eq!(reader.join().unwrap(), BYTES as u64);
        seen.extend(collect(&mut rings, 0));
        seen
    });
    for (ring, outgoing_to_client) in rings.iter_mut().zip([true, false]) {
        let statistics = ring.statistics().unwrap();
        assert_eq!((statistics.packets_dropped, statistics.blocks_damaged), (0, 0));
        let index = ring.interface_index();
        // Both ends of the pair may have the same number; the direction tells them apart.
        let ours = seen.iter().filter(|seen| seen.interface_index == index && seen.bytes[0] == 0x45);
        let data = ours
            .filter(|seen| seen.outgoing == outgoing_to_client && seen.bytes[20..22] == PORT.to_be_bytes());
        let (mut payload, mut longest) = (0, 0);
        for seen in data {
            assert_eq!(seen.bytes.len(), seen.wire_bytes as usize, "nothing is cut");
            let total = usize::from(u16::from_be_bytes([seen.bytes[2], seen.bytes[3]]));
            assert!(total == seen.bytes.len() || total == 0, "{total}");
            payload += seen.bytes.len() - 20 - 4 * usize::from(seen.bytes[32] >> 4);
            longest = longest.max(seen.bytes.len());
        }
        assert!(payload >= BYTES, "{payload} of {BYTES} bytes");
        assert!(longest > 60_000, "the longest packet has {longest} bytes");
    }
}

fn tcp(source_port: u16, destination_port: u16, payload: &[u8]) -> Vec<u8> {
    let ports = [source_port.to_be_bytes(), destination_port.to_be_bytes()].concat();
    // Numbers; a header of five words with ACK; window, checksum, urgent pointer.
    [&ports[..], &[0, 0, 0, 1, 0, 0, 0, 1], &[0x50, 0x10, 0x10, 0, 0, 0, 0, 0], payload].concat()
}

/// A request and its answer of one flow.
fn exchange(client_port: u16, is_ipv6: bool, is_tcp: bool) -> [Vec<u8>; 2] {
    let transport = if is_tcp { tcp } else { udp };
    let segments = [transport(client_port, PORT, b"request"), transport(PORT, client_port, b"response")];
    let protocol = if is_tcp { 6 } else { 17 };
    let mut is_response = false;
    segments.map(|segment| {
        let packet = if is_ipv6 {
            let mut bytes = ipv6(&[], protocol, &segment);
            if is_response {
                bytes[8..40].rotate_left(16);
                // Each side chooses its own flow label.
                bytes[2..4].copy_from_slice(&client_port.to_be_bytes());
            }
            ethernet(0x86dd, &bytes)
        } else {
            let direction = if is_response { FROM_SERVER } else { TO_SERVER };
            ethernet(0x0800, &ipv4(&Ipv4 { protocol, ..direction }, &segment))
        };
        is_response = true;
        packet
    })
}

#[test]
fn flows_stay_on_one_ring_of_a_group() {
    let pair = Pair::new();
    let both_families = FilterSpec::new(Vec::new(), vec![PORT]);
    let mut rings = pair.server.run(|| Ring::open_group(&options("veth0", both_families), 4)).unwrap();
    let mut packets = Vec::new();
    for flow in 0..200u16 {
        packets.extend(exchange(40_000 + flow, flow & 1 != 0, flow & 2 != 0));
    }
    inject(&pair.client, "veth0", &packets);
    let mut seen = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
    let start = Instant::now();
    while seen.iter().map(Vec::len).sum::<usize>() < packets.len() && start.elapsed() < PATIENCE {
        ring::wait(&mut rings, Duration::from_millis(20)).unwrap();
        rings.iter_mut().zip(&mut seen).for_each(|(ring, seen)| drain(ring, seen));
    }
    thread::sleep(QUIET);
    rings.iter_mut().zip(&mut seen).for_each(|(ring, seen)| drain(ring, seen));
    assert_eq!(seen.iter().map(Vec::len).sum::<usize>(), packets.len());
    let client_port = |copied: &Copied| {
        let header = if copied.bytes[0] >> 4 == 6 { 40 } else { 20 };
        let port = |at: usize| u16::from_be_bytes([copied.bytes[header + at], copied.bytes[header + at + 1]]);
        if port(0) == PORT { port(2) } else { port(0) }
    };
    for seen in &seen {
        assert!(seen.len() > packets.len() / 10, "the load is spread");
        for one in seen {
            assert_eq!(seen.iter().filter(|other| client_port(other) == client_port(one)).count(), 2);
        }
    }
}

/// Packets with what the kernel should make of them: nothing, or so many bytes at most (from the link header on).
fn judged_packets() -> Vec<(&'static str, Vec<u8>, Option<usize>)> {
    const REQUEST: Option<usize> = Some(400);
    const RESPONSE: Option<usize> = Some(200);
    const FRAGMENT: Option<usize> = Some(400);
    let to_server = |header: &Ipv4| ethernet(0x0800, &ipv4(header, &udp(40000, PORT, &[1; 600])));
    let from_server = |header: &Ipv4| ethernet(0x0800, &ipv4(header, &udp(PORT, 40000, &[2; 600])));
    let segment = [
        &40000u16.to_be_bytes()[..],
        &PORT.to_be_bytes(),
        &[0; 8],
        &[0x50, 0x18, 0, 0, 0, 0, 0, 0],
        &[3; 600],
    ];
    let over_ipv6 =
        |extensions: &[(u8, [u8; 6])]| ethernet(0x86dd, &ipv6(extensions, 17, &udp(40000, PORT, &[4; 600])));
    let stranger = Ipv4 { source: "10.99.0.7", destination: "10.99.0.8", ..TO_SERVER };
    let tag = |packet: &[u8]| ethernet(0x88a8, &tagged(5, 0x8100, &tagged(6, 0x0800, &packet[14..])));
    vec![
        ("request", to_server(&TO_SERVER), REQUEST),
        ("response", from_server(&FROM_SERVER), RESPONSE),
        ("TCP", ethernet(0x0800, &ipv4(&Ipv4 { protocol: 6, ..TO_SERVER }, &segment.concat())), REQUEST),
        ("options", to_server(&Ipv4 { option_words: 3, ..TO_SERVER }), REQUEST),
        ("all options", from_server(&Ipv4 { option_words: 10, ..FROM_SERVER }), RESPONSE),
        ("another port", ethernet(0x0800, &ipv4(&TO_SERVER, &udp(40000, 80, &[0; 600]))), None),
        ("another host", to_server(&stranger), None),
        ("server as client", ethernet(0x0800, &ipv4(&FROM_SERVER, &udp(40000, PORT, &[0; 600]))), None),
        ("another transport", to_server(&Ipv4 { protocol: 1, ..TO_SERVER }), None),
        ("first fragment", to_server(&Ipv4 { fragment: 0x2000, ..TO_SERVER }), REQUEST),
        ("fragment", to_server(&Ipv4 { fragment: 0x2005, ..TO_SERVER }), FRAGMENT),
        ("last fragment", from_server(&Ipv4 { fragment: 0x0005, ..FROM_SERVER }), FRAGMENT),
        ("fragment of others", to_server(&Ipv4 { fragment: 0x0005, ..stranger }), None),
        ("two tags", tag(&to_server(&TO_SERVER)), REQUEST),
        ("two tags back", tag(&from_server(&FROM_SERVER)), RESPONSE),
        ("two tags, another host", tag(&to_server(&stranger)), None),
        ("IPv6", over_ipv6(&[]), REQUEST),
        ("IPv6 hop by hop", over_ipv6(&[(0, [1; 6])]), REQUEST),
        ("IPv6 three headers", over_ipv6(&[(0, [1; 6]), (60, [1; 6]), (43, [0; 6])]), REQUEST),
        ("IPv6 four headers", over_ipv6(&[(0, [1; 6]), (60, [1; 6]), (43, [0; 6]), (60, [1; 6])]), None),
        ("IPv6 first fragment", over_ipv6(&[(44, [0, 1, 0, 0, 0, 9])]), REQUEST),
        ("IPv6 fragment", over_ipv6(&[(44, [0x05, 0xa8, 0, 0, 0, 9])]), FRAGMENT),
        ("IPv6 other transport", ethernet(0x86dd, &ipv6(&[], 58, &[0; 600])), None),
        ("ARP", ethernet(0x0806, &[0; 600]), None),
        ("VXLAN", ethernet(0x0800, &ipv4(&stranger, &udp(1, 4789, &[0; 600]))), None),
        ("GRE", to_server(&Ipv4 { protocol: 47, ..stranger }), None),
    ]
}

#[test]
fn the_kernel_runs_the_filter_as_it_is_meant() {
    let pair = Pair::new();
    let servers = vec![(SERVER.parse().unwrap(), 32), ("fd99::1".parse().unwrap(), 128)];
    let filter =
        FilterSpec { request_snaplen: 400, response_snaplen: 200, ..FilterSpec::new(servers, vec![PORT]) };
    let mixed = FilterSpec { link: FilterLink::Mixed, ..filter.clone() };
    let mut many = filter.clone();
    many.servers.extend((0..150u8).map(|last| (IpAddr::from([10, 77, 0, last]), 32)));
    many.ports.extend((0..50).map(|port| 20_000 + 2 * port));
    for filter in [filter, mixed, many] {
        let mut ring = open(&pair.server, "veth0", filter.clone());
        assert_eq!(ring.filter_form(), FilterForm::AddressesAndPorts);
        for (name, packet, expected) in judged_packets() {
            inject(&pair.client, "veth0", std::slice::from_ref(&packet));
            // A packet that is surely accepted marks the end.
            inject(&pair.client, "veth0", &[request(0xeeee_eeee, 4)]);
            let (start, mut seen) = (Instant::now(), Vec::new());
            while seen.last().is_none_or(|last: &Copied| !last.bytes.ends_with(&[0xee; 4])) {
                assert!(start.elapsed() < PATIENCE, "{name}");
                ring::wait(std::slice::from_mut(&mut ring), Duration::from_millis(20)).unwrap();
                drain(&mut ring, &mut seen);
            }
            seen.pop();
            // From the link header on; of the outer of two tags nothing is left.
            let captured = |seen: &Copied| match seen.link {
                LinkType::Ethernet => seen.bytes.len(),
                _ => seen.bytes.len() + 14,
            };
            let captured: Vec<_> = seen.iter().map(captured).collect();
            assert_eq!(captured, Vec::from_iter(expected), "{name}");
        }
    }
}

#[test]
fn tunnels_are_let_in_where_they_are_asked_for() {
    let pair = Pair::new();
    let filter =
        FilterSpec { tunnels: true, ..FilterSpec::new(vec![(SERVER.parse().unwrap(), 32)], vec![PORT]) };
    let mut ring = open(&pair.server, "veth0", filter);
    let stranger = Ipv4 { source: "10.99.0.7", destination: "10.99.0.8", ..TO_SERVER };
    let wanted = [
        ethernet(0x0800, &ipv4(&stranger, &udp(1, 4789, b"VXLAN"))),
        ethernet(0x0800, &ipv4(&stranger, &udp(1, 6081, b"Geneve"))),
        ethernet(0x0800, &ipv4(&Ipv4 { protocol: 47, ..stranger }, &udp(1, 2, b"GRE"))),
        ethernet(0x0800, &ipv4(&Ipv4 { protocol: 4, ..stranger }, &udp(1, 2, b"IP in IP"))),
        ethernet(0x8847, b"MPLS with a label and more"),
        ethernet(0x86dd, &ipv6(&[], 47, b"GRE over IPv6")),
    ];
    let foreign = ethernet(0x0800, &ipv4(&stranger, &udp(1, PORT, b"another server")));
    inject(&pair.client, "veth0", &wanted);
    inject(&pair.client, "veth0", &[foreign]);
    let seen = collect_one(&mut ring, wanted.len());
    let seen: Vec<_> = seen.iter().map(|seen| seen.bytes.as_slice()).collect();
    assert_eq!(seen, wanted.iter().map(|sent| &sent[14..]).collect::<Vec<_>>());
}

#[test]
fn a_filter_that_does_not_fit_is_widened() {
    let pair = Pair::new();
    let servers =
        (0..3000u16).map(|last| (IpAddr::from([10, 77, last.to_be_bytes()[0], last.to_be_bytes()[1]]), 32));
    let mut ring = open(&pair.server, "veth0", FilterSpec::new(servers.collect(), vec![PORT]));
    assert_eq!(ring.filter_form(), FilterForm::PortsOnly);
    inject(&pair.client, "veth0", &[request(1, 10), ethernet(0x0800, &ipv4(&TO_SERVER, &udp(1, 2, b"")))]);
    assert_eq!(collect_one(&mut ring, 1).len(), 1);
}

#[test]
fn devices_without_an_ethernet_header_are_read_from_the_network_header() {
    let namespace = Namespace::new();
    let mut tun = namespace.run(|| open_tun("tun0"));
    namespace.ip("addr add 10.97.0.1/24 dev tun0");
    namespace.ip("link set tun0 up");
    let found = find(&namespace, "tun0");
    assert!(!found.is_ethernet);
    let filter = FilterSpec::new(vec![("10.97.0.2".parse().unwrap(), 32)], vec![PORT]);
    let options = RingOptions { shape: small_ring(), ..RingOptions::new(&found, filter) };
    assert_eq!(options.filter.link, FilterLink::Mixed);
    let mut ring = namespace.run(|| Ring::open(&options)).unwrap();
    namespace.run(|| {
        let socket = UdpSocket::bind("10.97.0.1:0").unwrap();
        socket.send_to(b"request", ("10.97.0.2", PORT)).unwrap();
        socket.send_to(b"request", ("10.97.0.3", PORT)).unwrap();
    });
    let answer = Ipv4 { source: "10.97.0.2", destination: "10.97.0.1", ..TO_SERVER };
    let answer = ipv4(&answer, &udp(PORT, 40000, b"response"));
    tun.write_all(&answer).unwrap();
    let seen = collect_one(&mut ring, 2);
    assert_eq!(seen.len(), 2);
    assert!(seen.iter().all(|seen| seen.link == LinkType::Network { ethertype: 0x0800 }));
    assert!(seen[0].outgoing && seen[0].bytes.ends_with(b"request"));
    assert_eq!(seen[1].bytes, answer);
}

#[test]
fn only_opening_a_socket_needs_the_privilege() {
    let pair = Pair::new();
    let spare = pair.server.run(PacketSocket::open).unwrap();
    let options =
        pair.server.run(|| options("veth0", FilterSpec { request_snaplen: SNAPLEN_FULL, ..spec() }));
    let mut ring = pair.server.run(move || {
        // Capabilities belong to threads.
        for set in [caps::CapSet::Effective, caps::CapSet::Permitted] {
            caps::clear(None, set).unwrap();
        }
        let error = Ring::open(&options).err().expect("the privilege is gone");
        assert!(error.is_no_privilege() && error.to_string().contains("cap_net_raw"), "{error}");
        let mut ring = Ring::open_on(spare, &RingOptions { promiscuous: true, ..options }).unwrap();
        ring.set_filter(&spec()).unwrap();
        ring
    });
    inject(&pair.client, "veth0", &[request(1, 10)]);
    assert_eq!(collect_one(&mut ring, 1).len(), 1);
}

#[test]
fn interfaces_and_routes_are_those_of_the_namespace() {
    let pair = Pair::new();
    pair.server.ip("link add br0 type bridge");
    pair.server.ip("link add port0 type veth peer name port1");
    pair.server.ip("link set port0 master br0");
    pair.server.ip("addr add fd99::1/64 dev veth0 nodad");
    let interfaces = pair.server.run(interface::enumerate).unwrap();
    let find = |name: &str| interfaces.iter().find(|found| found.name == name).unwrap();
    let (lo, veth) = (find("lo"), find("veth0"));
    assert!(lo.is_loopback() && lo.is_up && lo.is_ethernet && lo.mtu_bytes == 65536);
    assert!(lo.addresses.iter().any(|held| held.ip == IpAddr::from([127, 0, 0, 1]) && held.prefix == 8));
    assert_eq!(veth.kind, InterfaceKind::Veth { peer_elsewhere: true });
    assert!(
        veth.addresses.iter().any(|held| held.ip == SERVER.parse::<IpAddr>().unwrap() && held.prefix == 24)
    );
    assert!(
        veth.addresses.iter().any(|held| held.ip == "fd99::1".parse::<IpAddr>().unwrap() && held.is_global())
    );
    assert_eq!(find("br0").kind, InterfaceKind::Virtual);
    assert_eq!(find("port0").kind, InterfaceKind::BridgePort);
    assert_eq!(find("port1").kind, InterfaceKind::Veth { peer_elsewhere: false });
    assert!(!find("port1").is_up);

    let route = |address: &str| pair.server.run(|| interface::route_to(address.parse().unwrap())).unwrap();
    assert_eq!(route(SERVER), Some(Route { interface_index: 1, is_local: true }));
    assert_eq!(route(CLIENT), Some(Route { interface_index: veth.index, is_local: false }));
    assert_eq!(route("fd99::2"), Some(Route { interface_index: veth.index, is_local: false }));
    assert_eq!((route("8.8.8.8"), route("2001:db8::1")), (None, None));

    let chosen = |targets: &[(IpAddr, u8)]| {
        let choice = pair.server.run(|| {
            interface::choose(&[InterfaceRequest::Auto], targets, &interfaces, |address| {
                interface::route_to(address).unwrap()
            })
        });
        choice.unwrap().interfaces.into_iter().map(|chosen| chosen.name).collect::<Vec<_>>()
    };
    assert_eq!(chosen(&[]), ["lo", "veth0"]);
    assert_eq!(chosen(&[(SERVER.parse().unwrap(), 32)]), ["lo", "veth0"]);
    assert_eq!(chosen(&[(CLIENT.parse().unwrap(), 32)]), ["veth0"]);

    let dropped = |index: u32| pair.server.run(|| interface::nic_packets_dropped(index)).unwrap();
    assert_eq!((dropped(veth.index), dropped(9999)), (Some(0), None));
}

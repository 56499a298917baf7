use proptest::prelude::*;

use crate::anomaly::Anomaly;
use crate::capture::LinkType;
use crate::capture::builder_tests::*;
use crate::capture::decode::{DecodeLimits, Decoder};

/// A decoder with its own clock, so that tests read as a sequence of packets.
struct Wire {
    decoder: Decoder,
    micros: u64,
}

impl Wire {
    fn new() -> Wire {
        Wire::with(small_limits())
    }

    fn with(limits: DecodeLimits) -> Wire {
        Wire { decoder: Decoder::new(limits), micros: 0 }
    }

    /// Decodes an IP packet, one microsecond after the last.
    fn send(&mut self, network: &[u8]) -> Meaning {
        self.send_cut(network, 0)
    }

    fn send_cut(&mut self, network: &[u8], cut: usize) -> Meaning {
        self.micros += 1;
        let mut packet = packet_at(self.micros, LinkType::Raw, network);
        packet.bytes = &network[..network.len() - cut];
        Meaning::of(self.decoder.decode(&packet))
    }

    fn dropped(&mut self) -> u64 {
        self.decoder.take_anomalies().of(Anomaly::FragmentDropped)
    }
}

/// Fragment of `body[start..end]` over IPv4.
fn piece4(protocol: u8, id: u16, body: &[u8], start: usize, end: usize) -> Vec<u8> {
    let more = if end < body.len() { 0x2000 } else { 0 };
    ipv4_with(protocol, &[], id, more | (start / 8) as u16, &body[start..end])
}

fn piece6(protocol: u8, id: u32, body: &[u8], start: usize, end: usize) -> Vec<u8> {
    ipv6_fragment(protocol, id, start as u16, end < body.len(), &body[start..end])
}

/// All fragments of a body, of at most `size` bytes.
fn pieces(size: usize, body: &[u8], piece: impl Fn(usize, usize) -> Vec<u8>) -> Vec<Vec<u8>> {
    (0..body.len()).step_by(size).map(|start| piece(start, (start + size).min(body.len()))).collect()
}

fn value(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|index| (index * 31 % 251) as u8).collect()
}

#[test]
fn datagram_and_segment_in_fragments_mean_what_whole_ones_mean() {
    let value = value(3000);
    for (protocol, body) in [(17, udp(40_000, 11_211, &value)), (6, tcp(&value))] {
        let whole4 = Wire::new().send(&ipv4_with(protocol, &[], 7, 0, &body));
        let whole6 = Wire::new().send(&ipv6(protocol, &body));
        for size in [8, 504, 1480] {
            if body.len() / size >= small_limits().fragment_pieces_max {
                continue;
            }
            let fragments4 = pieces(size, &body, |start, end| piece4(protocol, 7, &body, start, end));
            let fragments6 = pieces(size, &body, |start, end| piece6(protocol, 7, &body, start, end));
            for (fragments, whole) in [(fragments4, &whole4), (fragments6, &whole6)] {
                let mut wire = Wire::new();
                let (last, held) = fragments.split_last().unwrap();
                for fragment in held {
                    assert_eq!(wire.send(fragment), Meaning::Fragment);
                }
                assert_eq!(&wire.send(last), whole);
                // Backwards: the last comes while the first is missing.
                let (first, held) = fragments.split_first().unwrap();
                let mut wire = Wire::new();
                for fragment in held.iter().rev() {
                    assert_eq!(wire.send(fragment), Meaning::Fragment);
                }
                assert_eq!(&wire.send(first), whole);
                assert_eq!(wire.dropped(), 0);
            }
        }
    }
}

#[test]
fn greatest_datagram() {
    let body = udp(40_000, 11_211, &value(65_507));
    let mut wire = Wire::new();
    let mut last = Meaning::Foreign;
    for fragment in pieces(1480, &body, |start, end| piece4(17, 7, &body, start, end)) {
        last = wire.send(&fragment);
    }
    assert_eq!(last.payload(), Some((&body[8..], 65_507)));
}

#[test]
fn first_fragment_without_a_whole_header() {
    let body = tcp(&value(100));
    let mut wire = Wire::new();
    wire.send(&piece4(6, 1, &body, 0, 8));
    assert_eq!(wire.send(&piece4(6, 1, &body, 8, body.len())).payload(), Some((&body[32..], 100)));
}

#[test]
fn atomic_fragment_is_a_whole_packet() {
    let segment = tcp(b"get a\r\n");
    let plain = decode(LinkType::Raw, &ipv6(6, &segment));
    assert_eq!(decode(LinkType::Raw, &ipv6_fragment(6, 9, 0, false, &segment)), plain);
}

#[test]
fn extension_headers_before_and_after_the_fragment_header() {
    let segment = tcp(&value(64));
    let fragmentable = [&[6, 0, 1, 4, 0, 0, 0, 0][..], &segment].concat();
    let fragment = |start: usize, end: usize| {
        let whole = piece6(60, 5, &fragmentable, start, end);
        ipv6(0, &[&[44, 0, 1, 4, 0, 0, 0, 0][..], &whole[40..]].concat())
    };
    let mut wire = Wire::new();
    assert_eq!(wire.send(&fragment(0, 48)), Meaning::Fragment);
    let whole = wire.send(&fragment(48, fragmentable.len()));
    assert_eq!(whole, decode(LinkType::Raw, &ipv6(6, &segment)));
}

#[test]
fn overlap_costs_the_packet_and_its_later_fragments() {
    let body = tcp(&value(200));
    for (start, end) in [(0, 40), (24, 48), (32, 48), (0, 200)] {
        let mut wire = Wire::new();
        wire.send(&piece4(6, 1, &body, 0, 16));
        wire.send(&piece4(6, 1, &body, 16, 40));
        wire.send(&piece4(6, 1, &body, start, end));
        for (start, end) in [(40, 80), (80, body.len())] {
            assert_eq!(wire.send(&piece4(6, 1, &body, start, end)), Meaning::Fragment);
        }
        assert_eq!(wire.dropped(), 5, "overlap of {start}..{end}");
    }
}

#[test]
fn repeated_fragment_is_no_overlap() {
    let body = tcp(&value(200));
    let mut wire = Wire::new();
    for _ in 0..2 {
        assert_eq!(wire.send(&piece4(6, 1, &body, 0, 80)), Meaning::Fragment);
    }
    assert!(wire.send(&piece4(6, 1, &body, 80, body.len())).payload().is_some());
    assert_eq!(wire.dropped(), 0);
}

#[test]
fn repeated_fragment_with_other_bytes_is_an_overlap() {
    let body = tcp(&value(200));
    let mut wire = Wire::new();
    wire.send(&piece4(6, 1, &body, 0, 80));
    let other = body.iter().map(|byte| byte ^ 1).collect::<Vec<_>>();
    wire.send(&piece4(6, 1, &other, 0, 80));
    assert_eq!(wire.send(&piece4(6, 1, &body, 80, body.len())), Meaning::Fragment);
    assert_eq!(wire.dropped(), 3);
}

#[test]
fn contradicting_ends_cost_the_packet() {
    let body = tcp(&value(200));
    let short = &body[..160];
    for second in [piece4(6, 1, short, 80, 160), piece4(6, 1, &body, 224, body.len())] {
        let mut wire = Wire::new();
        wire.send(&piece4(6, 1, &body, 160, body.len()));
        wire.send(&second);
        assert_eq!(wire.send(&piece4(6, 1, &body, 0, 80)), Meaning::Fragment);
        assert_eq!(wire.dropped(), 3);
    }
    let mut wire = Wire::new();
    wire.send(&piece4(6, 1, &body, 160, 200));
    wire.send(&piece4(6, 1, short, 80, 160));
    assert_eq!(wire.dropped(), 2);
}

#[test]
fn impossible_fragments_are_dropped() {
    let mut wire = Wire::new();
    wire.send(&ipv4_with(17, &[], 1, 0x2000, &[1; 13])); // no multiple of eight
    wire.send(&ipv4_with(17, &[], 1, 0x2000, &[])); // empty
    wire.send(&ipv4_with(17, &[], 1, 0x1fff, &[1; 64])); // beyond 64 KiB: "ping of death"
    assert_eq!(wire.dropped(), 3);
}

#[test]
fn fragments_of_other_protocols_are_foreign() {
    assert_eq!(Wire::new().send(&ipv4_with(1, &[], 1, 0x2000, &[0; 64])), Meaning::Foreign);
}

#[test]
fn packets_are_told_apart_by_addresses_protocol_and_id() {
    let body = udp(40_000, 11_211, &value(100));
    let mut elsewhere = piece4(17, 1, &body, 48, body.len());
    elsewhere[15] ^= 1; // source
    let mut wire = Wire::new();
    wire.send(&piece4(17, 1, &body, 0, 48));
    for stranger in [piece4(17, 2, &body, 48, body.len()), piece4(6, 1, &body, 48, body.len()), elsewhere] {
        assert_eq!(wire.send(&stranger), Meaning::Fragment);
    }
    assert!(wire.send(&piece4(17, 1, &body, 48, body.len())).payload().is_some());
}

#[test]
fn incomplete_packets_are_given_up_in_time() {
    let body = udp(40_000, 11_211, &value(100));
    let mut wire = Wire::new();
    wire.send(&piece4(17, 1, &body, 0, 48));
    wire.micros += 2_000_001;
    assert_eq!(wire.send(&piece4(17, 1, &body, 48, body.len())), Meaning::Fragment);
    assert_eq!(wire.dropped(), 1);
    wire.decoder.expire_fragments(packet_at(9_000_000, LinkType::Raw, &[]).timestamp);
    assert_eq!(wire.dropped(), 1);
}

#[test]
fn full_pool_gives_up_the_oldest() {
    let body = udp(40_000, 11_211, &value(100));
    let mut wire = Wire::new();
    for id in 0..5 {
        wire.send(&piece4(17, id, &body, 0, 48)); // room for four
    }
    assert_eq!(wire.dropped(), 1);
    for id in [1, 2, 3, 4] {
        assert!(wire.send(&piece4(17, id, &body, 48, body.len())).payload().is_some(), "packet {id}");
    }
    assert_eq!(wire.dropped(), 0);
}

#[test]
fn more_pieces_than_permitted() {
    let body = udp(40_000, 11_211, &value(3000));
    let mut wire = Wire::with(DecodeLimits { fragment_pieces_max: 3, ..small_limits() });
    for fragment in pieces(504, &body, |start, end| piece4(17, 1, &body, start, end)) {
        assert_eq!(wire.send(&fragment), Meaning::Fragment);
    }
    assert_eq!(wire.dropped(), 6);
}

#[test]
fn decoder_without_room_for_fragments() {
    let body = udp(40_000, 11_211, &value(100));
    let mut wire = Wire::with(DecodeLimits { fragment_datagrams_max: 0, ..small_limits() });
    assert_eq!(wire.send(&piece4(17, 1, &body, 0, 48)), Meaning::Fragment);
    assert_eq!(wire.dropped(), 1);
}

#[test]
fn cut_fragments_yield_what_was_captured_before_the_cut() {
    let body = udp(40_000, 11_211, &value(1000));
    let mut wire = Wire::new();
    wire.send(&piece4(17, 1, &body, 0, 400));
    wire.send_cut(&piece4(17, 1, &body, 400, 800), 300);
    let whole = wire.send(&piece4(17, 1, &body, 800, body.len()));
    assert_eq!(whole.payload(), Some((&body[8..500], 1000)));
}

#[test]
fn mirrored_copies_are_recognised() {
    let body = udp(40_000, 11_211, &value(1000));
    let fragments = pieces(400, &body, |start, end| piece4(17, 1, &body, start, end));
    // Each fragment twice, back to back.
    let mut wire = Wire::new();
    let meanings: Vec<_> = fragments.iter().flat_map(|f| [f, f]).map(|f| wire.send(f)).collect();
    assert_eq!(meanings.iter().filter(|meaning| meaning.payload().is_some()).count(), 1);
    // All of them again, a little later.
    wire.micros += 150;
    assert!(fragments.iter().all(|fragment| wire.send(fragment) == Meaning::Fragment));
    assert_eq!(wire.dropped(), 0);
}

#[test]
fn identification_may_be_used_again() {
    let mut wire = Wire::new();
    for round in 0..3u8 {
        let body = udp(40_000, 11_211, &[round; 100]);
        wire.send(&piece4(17, 1, &body, 0, 48));
        let whole = wire.send(&piece4(17, 1, &body, 48, body.len()));
        assert_eq!(whole.payload(), Some((&[round; 100][..], 100)));
    }
    // The same bytes once more, later than any mirror.
    wire.micros += 3_000;
    let body = udp(40_000, 11_211, &[2; 100]);
    wire.send(&piece4(17, 1, &body, 0, 48));
    assert!(wire.send(&piece4(17, 1, &body, 48, body.len())).payload().is_some());
    assert_eq!(wire.dropped(), 0);
}

/// Found by `ipfrag_shuffled`: two packets with one identification, whose middles are equal.
#[test]
fn identification_used_again_with_a_fragment_like_one_before() {
    let [first, second] = [1, 2].map(|port| udp(port, 11_211, &[b'x'; 100]));
    let mut wire = Wire::new();
    for body in [&first, &second] {
        wire.send(&piece4(17, 1, body, 48, 96));
        wire.send(&piece4(17, 1, body, 96, body.len()));
        let whole = wire.send(&piece4(17, 1, body, 0, 48));
        assert_eq!(whole.payload(), Some((&[b'x'; 100][..], 100)));
    }
    assert_eq!(wire.dropped(), 0);
}

#[test]
fn fragments_inside_and_outside_of_tunnels() {
    let body = udp(40_000, 11_211, &value(2000));
    let whole = Wire::new().send(&ipv4_with(17, &[], 1, 0, &body));
    let vxlan =
        |network: &[u8]| udp(50_000, 4789, &[&[8, 0, 0, 0, 0, 0, 42, 0][..], &framed(network)].concat());
    // The tunnel's packet is fragmented.
    let tunnelled = vxlan(&ipv4_with(17, &[], 1, 0, &body));
    let outer = pieces(1480, &tunnelled, |start, end| piece4(17, 77, &tunnelled, start, end));
    let mut wire = Wire::new();
    assert_eq!(wire.send(&outer[0]), Meaning::Fragment);
    assert_eq!(wire.send(&outer[1]), whole);
    // The packet in the tunnel is; and the tunnel's too, for the first of its fragments.
    let inner = pieces(1480, &body, |start, end| vxlan(&piece4(17, 1, &body, start, end)));
    let mut wire = Wire::new();
    let mut meanings = vec![];
    for (index, tunnelled) in inner.iter().enumerate() {
        let id = 100 + index as u16;
        for fragment in pieces(1480, tunnelled, |start, end| piece4(17, id, tunnelled, start, end)) {
            meanings.push(wire.send(&fragment));
        }
    }
    assert_eq!(meanings, [Meaning::Fragment, Meaning::Fragment, whole]);
    assert_eq!(wire.dropped(), 0);
}

#[test]
fn fragments_of_fragments_are_refused() {
    let nested = ipv6_fragment(6, 2, 0, true, &tcp(&value(100)))[40..].to_vec();
    let mut wire = Wire::new();
    wire.send(&piece6(44, 1, &nested, 0, 48));
    assert_eq!(wire.send(&piece6(44, 1, &nested, 48, nested.len())), Meaning::Foreign);
}

/// The plain twin of a pool for one packet: a byte each, and every fragment ever seen.
#[derive(Default)]
struct PlainTwin {
    seen: Vec<(usize, Vec<u8>, bool)>,
    is_refused: bool,
}

impl PlainTwin {
    /// The payload, when this fragment makes it whole.
    fn insert(&mut self, start: usize, bytes: &[u8], is_last: bool) -> Option<Vec<u8>> {
        if self.seen.iter().any(|(at, old, _)| (*at, old.as_slice()) == (start, bytes)) && !self.is_refused {
            return None;
        }
        let end = start + bytes.len();
        self.is_refused |= self.seen.iter().any(|(at, old, _)| *at < end && start < at + old.len());
        self.seen.push((start, bytes.to_vec(), is_last));
        let ends: Vec<_> =
            self.seen.iter().filter(|piece| piece.2).map(|(at, old, _)| at + old.len()).collect();
        let reach = self.seen.iter().map(|(at, old, _)| at + old.len()).max().unwrap_or(0);
        self.is_refused |= ends.len() > 1 || ends.iter().any(|&end| end < reach);
        let filled: usize = self.seen.iter().map(|(_, old, _)| old.len()).sum();
        if self.is_refused || ends.first() != Some(&filled) {
            return None;
        }
        let mut payload = vec![0; filled];
        for (at, old, _) in &self.seen {
            payload[*at..at + old.len()].copy_from_slice(old);
        }
        Some(payload)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    /// Fragments of a few sizes at a few places, so that they meet, repeat, overlap and contradict each other.
    #[test]
    fn pool_agrees_with_its_plain_twin(
        fragments in proptest::collection::vec((0usize..5, 1usize..4, 0u8..2, prop::bool::weighted(0.3)), 1..12),
    ) {
        let mut wire = Wire::new();
        let mut twin = PlainTwin::default();
        for (at, units, fill, is_last) in fragments {
            let (start, bytes) = (at * 8, vec![if at == 0 { 0x11 } else { fill }; units * 8]);
            let more = if is_last { 0 } else { 0x2000 };
            if start == 0 && is_last {
                continue; // no fragment
            }
            let meaning = wire.send(&ipv4_with(17, &[], 1, more | at as u16, &bytes));
            let whole = twin.insert(start, &bytes, is_last);
            prop_assert_eq!(meaning != Meaning::Fragment, whole.is_some());
            if whole.is_some() {
                break;
            }
        }
    }

    #[test]
    fn any_order_and_any_sizes_make_the_same_packet(
        bytes in 40usize..4000,
        cuts in proptest::collection::btree_set(1usize..500, 1..12),
        order in any::<u64>(),
        repeats in proptest::collection::vec(any::<prop::sample::Index>(), 0..4),
        is_ipv6 in any::<bool>(),
    ) {
        let body = udp(40_000, 11_211, &value(bytes));
        let mut starts: Vec<usize> = cuts.into_iter().map(|cut| cut * 8).filter(|&cut| cut < body.len()).collect();
        prop_assume!(!starts.is_empty());
        starts.insert(0, 0);
        let ends: Vec<usize> = starts[1..].iter().copied().chain([body.len()]).collect();
        let fragment = |start, end| {
            if is_ipv6 { piece6(17, 7, &body, start, end) } else { piece4(17, IP_ID, &body, start, end) }
        };
        let mut fragments: Vec<_> = starts.iter().zip(ends).map(|(&start, end)| fragment(start, end)).collect();
        for repeat in repeats {
            fragments.push(fragments[repeat.index(fragments.len())].clone());
        }
        fragments.sort_by_cached_key(|fragment| {
            fragment.iter().fold(order, |hash, &byte| hash.rotate_left(5).wrapping_mul(0x9e37_79b9) ^ u64::from(byte))
        });
        let mut wire = Wire::new();
        let yields: Vec<_> = fragments.iter().map(|f| wire.send(f)).filter(|m| *m != Meaning::Fragment).collect();
        let whole = if is_ipv6 { ipv6(17, &body) } else { ipv4(17, &body) };
        prop_assert_eq!(yields, [decode(LinkType::Raw, &whole)]);
        prop_assert_eq!(wire.dropped(), 0);
    }
}

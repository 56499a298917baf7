use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::*;
use crate::capture::builder_tests::*;

const GET: &[u8] = b"get user:1:profile\r\n";

fn segment_of(payload: &[u8], wire_bytes: u32) -> Meaning {
    Meaning::Segment {
        from: "10.2.0.17:51422".into(),
        to: "10.1.0.5:11211".into(),
        seq: 0xdead_beef,
        ack: 0x0bad_cafe,
        flags: 0x18,
        payload: payload.into(),
        wire_bytes,
    }
}

#[test]
fn segment_over_ipv4() {
    assert_eq!(decode_frame(&framed(&ipv4(6, &tcp(GET)))), segment_of(GET, 20));
}

#[test]
fn segment_over_ipv6() {
    let Meaning::Segment { from, to, payload, .. } = decode_frame(&framed(&ipv6(6, &tcp(GET)))) else {
        panic!("no segment");
    };
    assert_eq!((from.as_str(), to.as_str(), &payload[..]), ("[fd00::17]:51422", "[fd00::5]:11211", GET));
}

#[test]
fn datagram_identity_is_ip_id_checksum_and_length() {
    let identity = |frame: &[u8]| match decode_frame(frame) {
        Meaning::Datagram { identity, .. } => identity,
        other => panic!("{other:?}"),
    };
    let datagram = udp(40_000, 11_211, GET);
    assert_eq!(identity(&framed(&ipv4(17, &datagram))), 0x1234_abcd_0000_001c);
    assert_eq!(identity(&framed(&ipv6(17, &datagram))), 0x0000_abcd_0000_001c);
}

#[test]
fn ethernet_padding_is_not_payload() {
    for network in [ipv4(6, &tcp_with(&[], 0x10, b"")), ipv6(17, &udp(1, 11_211, b""))] {
        let mut frame = framed(&network);
        frame.extend([0xaa; 40]);
        let meaning = decode_frame(&frame);
        assert_eq!(meaning.payload(), Some((&[][..], 0)), "{meaning:?}");
    }
}

#[test]
fn big_tcp_takes_its_length_from_the_frame() {
    let payload = vec![b'x'; 150_000];
    for network in [ipv4(6, &tcp(&payload)), ipv6(6, &tcp(&payload))] {
        let meaning = decode_frame(&framed(&network));
        assert_eq!(meaning.payload(), Some((&payload[..], 150_000)));
        let cut = decode_cut(LinkType::Ethernet, &framed(&network), 200);
        assert_eq!(cut.payload().map(|(_, wire_bytes)| wire_bytes), Some(150_000));
    }
}

#[test]
fn jumbogram_with_its_option() {
    let payload = vec![b'x'; 70_000];
    let mut body = vec![6, 0, 0xc2, 4];
    body.extend((8 + 32 + 70_000u32).to_be_bytes());
    body.extend(tcp(&payload));
    assert_eq!(decode_frame(&framed(&ipv6(0, &body))).payload(), Some((&payload[..], 70_000)));
}

#[test]
fn ecn_bits_are_masked() {
    let mut segment = tcp_with(&[], 0xc2, b"");
    segment[12] |= 1; // AE, once NS
    let Meaning::Segment { flags, .. } = decode_frame(&framed(&ipv4(6, &segment))) else {
        panic!("no segment");
    };
    assert_eq!(flags, TcpFlags::SYN.0);
}

#[test]
fn snapped_packets_keep_their_wire_length() {
    let payload = vec![b'v'; 1000];
    for (network, head) in [(ipv4(6, &tcp(&payload)), 14 + 20 + 32), (ipv6(6, &tcp(&payload)), 14 + 40 + 32)]
    {
        let meaning = decode_cut(LinkType::Ethernet, &framed(&network), head + 10);
        assert_eq!(meaning.payload(), Some((&payload[..10], 1000)));
    }
    let meaning = decode_cut(LinkType::Ethernet, &framed(&ipv4(17, &udp(1, 11_211, &payload))), 14 + 28 + 3);
    assert_eq!(meaning.payload(), Some((&payload[..3], 1000)));
}

#[test]
fn header_cut_in_tcp_options_leaves_the_length() {
    let frame = framed(&ipv4(6, &tcp(GET)));
    for captured in 14 + 20 + 14..=14 + 20 + 32 {
        assert_eq!(decode_cut(LinkType::Ethernet, &frame, captured), segment_of(b"", 20));
    }
    assert_eq!(decode_cut(LinkType::Ethernet, &frame, 14 + 20 + 13), Meaning::Malformed);
}

#[test]
fn mirror_that_cuts_without_a_record_of_it() {
    let frame = framed(&ipv4(6, &tcp(GET)));
    assert_eq!(decode_frame(&frame[..frame.len() - 15]), segment_of(&GET[..5], 20));
}

#[test]
fn recorder_with_a_wire_length_below_the_captured() {
    let frame = framed(&ipv4(6, &tcp(GET)));
    let odd = Packet { wire_bytes: 0, ..packet(LinkType::Ethernet, &frame) };
    assert_eq!(Meaning::of(Decoder::new(small_limits()).decode(&odd)), segment_of(GET, 20));
}

#[test]
fn contradictions_are_malformed() {
    let mut short_offset = tcp(GET);
    short_offset[12] = 0x40;
    let mut long_offset = tcp_with(&[], 0x10, b"");
    long_offset[12] = 0xf0;
    let mut long_udp = udp(1, 11_211, GET);
    long_udp[4] = 0xff;
    let mut short_udp = udp(1, 11_211, GET);
    short_udp[4..6].copy_from_slice(&[0, 7]);
    let mut short_total = ipv4(6, &tcp(GET));
    short_total[2..4].copy_from_slice(&[0, 19]);
    let mut wrong_version = ipv4(6, &tcp(GET));
    wrong_version[0] = 0x65;
    let mut short_header = ipv4(6, &tcp(GET));
    short_header[0] = 0x44;
    for network in [
        ipv4(6, &short_offset),
        ipv6(6, &short_offset),
        ipv4(6, &long_offset),
        ipv4(17, &long_udp),
        ipv6(17, &short_udp),
        short_total,
        short_header,
    ] {
        assert_eq!(decode_frame(&framed(&network)), Meaning::Malformed);
    }
    assert_eq!(decode_frame(&ethernet(ETHERTYPE_IPV4, &wrong_version)), Meaning::Malformed);
}

#[test]
fn what_is_neither_tcp_nor_udp_is_foreign() {
    let mut icmp_echo_of_a_segment = vec![3, 3, 0, 0, 0, 0, 0, 0];
    icmp_echo_of_a_segment.extend(ipv4(6, &tcp(GET)));
    assert_eq!(decode_frame(&framed(&ipv4(1, &icmp_echo_of_a_segment))), Meaning::Foreign);
    assert_eq!(decode_frame(&framed(&ipv6(58, &icmp_echo_of_a_segment))), Meaning::Foreign);
    assert_eq!(decode_frame(&framed(&ipv6(59, b""))), Meaning::Foreign);
    assert_eq!(decode_frame(&ethernet(0x0806, &[0; 28])), Meaning::Foreign);
    assert_eq!(decode_frame(&ethernet(0x0026, &[0x42, 0x42, 3, 0])), Meaning::Foreign);
    assert_eq!(decode_frame(&framed(&ipv4(132, &[0; 12]))), Meaning::Foreign);
}

#[test]
fn every_link_type_means_the_same() {
    for network in plain_packets() {
        let plain = decode_frame(&framed(&network));
        assert!(plain.payload().is_some());
        let ethertype = ethertype(&network);
        let with_head = |head: &[u8]| [head, &network].concat();
        let tagged = [&[0, 5][..], &ethertype.to_be_bytes(), &network].concat();
        let sll = |protocol: u16| {
            [&[0, 0, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0][..], &protocol.to_be_bytes()].concat()
        };
        let sll2 =
            |protocol: u16| [&protocol.to_be_bytes()[..], &[0, 0, 0, 0, 0, 3, 0, 1, 0, 6], &[7; 8]].concat();
        for (link, bytes) in [
            (LinkType::Raw, network.clone()),
            (LinkType::Network { ethertype }, network.clone()),
            (LinkType::Network { ethertype: 0x8100 }, tagged.clone()),
            (LinkType::LinuxSll, with_head(&sll(ethertype))),
            (LinkType::LinuxSll, [sll(0x8100), tagged.clone()].concat()),
            (LinkType::LinuxSll2, with_head(&sll2(ethertype))),
            (LinkType::LinuxSll2, [sll2(0x8100), tagged].concat()),
        ] {
            assert_eq!(decode(link, &bytes), plain, "{link:?}");
        }
        let families: &[u32] = if ethertype == ETHERTYPE_IPV4 { &[2] } else { &[10, 24, 28, 30] };
        for family in families {
            assert_eq!(decode(LinkType::Null, &with_head(&family.to_le_bytes())), plain);
            assert_eq!(decode(LinkType::Null, &with_head(&family.to_be_bytes())), plain);
        }
    }
    assert_eq!(decode(LinkType::Null, &[7, 0, 0, 0, 0x45]), Meaning::Foreign);
    assert_eq!(decode(LinkType::Raw, &[0x15; 60]), Meaning::Foreign);
    for link in [LinkType::Raw, LinkType::Null, LinkType::Ethernet, LinkType::LinuxSll, LinkType::LinuxSll2] {
        assert_eq!(decode(link, &[]), Meaning::Malformed);
    }
}

#[test]
fn common_packets_take_the_fast_path() {
    for network in plain_packets() {
        for tags in 0..=FAST_VLAN_TAGS_MAX {
            let mut frame = framed(&network);
            for _ in 0..tags {
                frame.splice(12..12, [0x81, 0, 0, 5]);
            }
            assert!(decode_plain(&packet(LinkType::Ethernet, &frame)).is_some());
        }
    }
}

#[test]
fn nothing_counts_as_an_anomaly_of_ours_without_fragments() {
    let mut decoder = Decoder::new(DecodeLimits::default());
    decoder.decode(&packet(LinkType::Ethernet, &[0; 60]));
    assert_eq!(decoder.take_anomalies(), AnomalyCounts::default());
}

/// A frame of random structure: tags, options, extension headers, either transport. Without fragments and tunnels, which
/// etherparse does not follow.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let body = prop_oneof![
        (proptest::collection::vec(any::<u8>(), 0..11), any::<u8>(), any::<bool>()).prop_map(
            |(payload, flags, has_options)| {
                let options: &[u8] = if has_options { &[1, 1, 1, 0, 1, 1, 1, 0] } else { &[] };
                (6, tcp_with(options, flags, &payload))
            }
        ),
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(|payload| (17, udp(40_000, 11_211, &payload))),
    ];
    let extensions = proptest::collection::vec(prop_oneof![Just(60u8), Just(43), Just(51)], 0..4);
    (body, any::<bool>(), 0usize..4, extensions, 0usize..4).prop_map(
        |((protocol, body), is_ipv6, tags, extensions, pad)| {
            let network = if is_ipv6 {
                let (mut next, mut bytes) = (protocol, body);
                for kind in extensions {
                    let mut header = if kind == 51 { vec![next, 2] } else { vec![next, 1] };
                    header.resize(16, 0);
                    (next, bytes) = (kind, [header, bytes].concat());
                }
                ipv6(next, &bytes)
            } else {
                ipv4_with(protocol, &[1, 1, 1, 0][..4 * (extensions.len() % 2)], IP_ID, 0, &body)
            };
            let mut frame = framed(&network);
            for _ in 0..tags {
                frame.splice(12..12, [0x81, 0, 0, 5]);
            }
            frame.extend(std::iter::repeat_n(0xee, pad));
            frame
        },
    )
}

/// etherparse's opinion of a frame, when it sees a whole transport header.
fn oracle(frame: &[u8]) -> Option<Meaning> {
    let packet = LaxSlicedPacket::from_ethernet(frame).ok()?;
    let (addresses, ip_id) = match packet.net.as_ref()? {
        LaxNetSlice::Ipv4(ip) => {
            let (source, destination) = (ip.header().source(), ip.header().destination());
            (AddressPair::V4 { source, destination }, ip.header().identification())
        }
        LaxNetSlice::Ipv6(ip) => {
            let (source, destination) = (ip.header().source(), ip.header().destination());
            (AddressPair::V6 { source, destination }, 0)
        }
        LaxNetSlice::Arp(_) => return None,
    };
    let endpoints = |from, to| {
        let (source, destination) = addresses.endpoints(from, to);
        (source.to_string(), destination.to_string())
    };
    match packet.transport? {
        TransportSlice::Tcp(tcp) => {
            let (from, to) = endpoints(tcp.source_port(), tcp.destination_port());
            let bits = [tcp.fin(), tcp.syn(), tcp.rst(), tcp.psh(), tcp.ack(), tcp.urg()];
            Some(Meaning::Segment {
                from,
                to,
                seq: tcp.sequence_number(),
                ack: tcp.acknowledgment_number(),
                flags: bits.iter().rev().fold(0, |flags, &bit| flags << 1 | u8::from(bit)),
                payload: tcp.payload().to_vec(),
                wire_bytes: tcp.payload().len() as u32,
            })
        }
        TransportSlice::Udp(udp) => {
            let (from, to) = endpoints(udp.source_port(), udp.destination_port());
            let length = u64::from(udp.length());
            Some(Meaning::Datagram {
                from,
                to,
                payload: udp.payload().to_vec(),
                wire_bytes: udp.payload().len() as u32,
                identity: u64::from(ip_id) << 48 | u64::from(udp.checksum()) << 32 | length,
            })
        }
        _ => None,
    }
}

/// Decodes on both paths; they have to agree, and payloads have to lie within the packet.
fn check_safe(bytes: &[u8], wire_bytes: u32) -> Meaning {
    let packet = Packet { wire_bytes, ..packet(LinkType::Ethernet, bytes) };
    let mut decoder = Decoder::new(small_limits());
    let decoded = decoder.decode(&packet);
    let (payload, payload_wire_bytes) = match decoded {
        Decoded::Segment(segment) => (segment.payload, segment.payload_wire_bytes),
        Decoded::Datagram(datagram) => (datagram.payload, datagram.payload_wire_bytes),
        _ => (&[][..], 0),
    };
    assert!(payload.len() <= payload_wire_bytes as usize);
    assert!(payload.is_empty() || bytes.as_ptr_range().contains(&payload.as_ptr()));
    assert!(payload.as_ptr_range().end <= bytes.as_ptr_range().end || payload.is_empty());
    let meaning = Meaning::of(decoded);
    let layered = Meaning::of(Decoder::new(small_limits()).decode_layered(&packet));
    assert_eq!(meaning, layered, "fast path and walk differ");
    meaning
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whole_frames_mean_what_etherparse_says(frame in any_frame()) {
        let meaning = check_safe(&frame, frame.len() as u32);
        prop_assert!(meaning.payload().is_some(), "{meaning:?}");
        prop_assert_eq!(Some(meaning), oracle(&frame));
    }

    #[test]
    fn cut_frames_keep_headers_and_lengths(frame in any_frame(), cut in 0usize..200) {
        let whole = check_safe(&frame, frame.len() as u32);
        let captured = frame.len().saturating_sub(cut);
        let meaning = check_safe(&frame[..captured], frame.len() as u32);
        match (meaning.payload(), whole.payload()) {
            (Some((payload, wire_bytes)), Some((whole_payload, whole_wire_bytes))) => {
                prop_assert_eq!(wire_bytes, whole_wire_bytes);
                prop_assert!(whole_payload.starts_with(payload));
            }
            _ => prop_assert_eq!(meaning, Meaning::Malformed),
        }
    }

    #[test]
    fn damaged_frames_are_harmless(
        mut frame in any_frame(),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..6),
        cut in 0usize..60,
        wire_bytes in prop_oneof![Just(0u32), 0u32..2000, Just(u32::MAX)],
    ) {
        for (index, bit) in flips {
            let index = index.index(frame.len());
            frame[index] ^= 1 << bit;
        }
        frame.truncate(frame.len().saturating_sub(cut));
        check_safe(&frame, wire_bytes);
    }

    #[test]
    fn noise_is_harmless(bytes in proptest::collection::vec(any::<u8>(), 0..200), link in 0usize..7) {
        let links = [
            LinkType::Ethernet, LinkType::Raw, LinkType::Null, LinkType::LinuxSll, LinkType::LinuxSll2,
            LinkType::Network { ethertype: ETHERTYPE_IPV4 }, LinkType::Network { ethertype: ETHERTYPE_IPV6 },
        ];
        decode(links[link], &bytes);
    }
}

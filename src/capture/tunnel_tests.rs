use proptest::prelude::*;

use super::*;
use crate::capture::builder_tests::*;
use crate::capture::decode::Decoder;

/// The outer Ethernet and IPv4 around a tunnel's own header.
fn outer(protocol: u8, body: &[u8]) -> Vec<u8> {
    framed(&ipv4(protocol, body))
}

fn gre_with(flags: [u8; 2], protocol: u16, options: &[u8], inner: &[u8]) -> Vec<u8> {
    outer(47, &[&flags, &protocol.to_be_bytes()[..], options, inner].concat())
}

/// A frame with tags put before its EtherType.
fn tagged(frame: &[u8], tags: &[u8]) -> Vec<u8> {
    [&frame[..12], tags, &frame[12..]].concat()
}

const VXLAN: [u8; 8] = [8, 0, 0, 0, 0, 0, 42, 0];

fn vxlan(port: u16, frame: &[u8]) -> Vec<u8> {
    outer(17, &udp(50_000, port, &[&VXLAN, frame].concat()))
}

fn geneve(protocol: u16, options: &[u8], inner: &[u8]) -> Vec<u8> {
    let [high, low] = protocol.to_be_bytes();
    let header = [options.len() as u8 / 4, 0, high, low, 0, 0, 42, 0];
    outer(17, &udp(50_000, 6081, &[&header, options, inner].concat()))
}

fn ipip(network: &[u8]) -> Vec<u8> {
    outer(if network[0] >> 4 == 4 { 4 } else { 41 }, network)
}

/// Every encapsulation of an IP packet that we read, by name.
fn encapsulations(network: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let frame = framed(network);
    let ethertype = ethertype(network);
    let protocol = if ethertype == ETHERTYPE_IPV4 { 4 } else { 41 };
    let with = |head: &[u8], rest: &[u8]| [head, rest].concat();
    let gre = |flags, protocol, options: &[u8], inner: &[u8]| gre_with([flags, 0], protocol, options, inner);
    let erspan2 = with(&[0x10, 0x7b, 0, 5, 0, 0, 0, 7], &frame);
    let erspan3_head = [0x20, 0x7b, 0, 5, 0, 0, 0, 1, 0, 0, 0, 0];
    let erspan3_sub = [0x20, 0x7b, 0, 5, 0, 0, 0, 1, 0, 0, 0, 1, 9, 9, 9, 9, 9, 9, 9, 9];
    let erspan3_ip = [0x20, 0x7b, 0, 5, 0, 0, 0, 1, 0, 0, 2 << 2, 0];
    let sequence = &[0, 0, 0, 1][..];
    vec![
        ("802.1Q", tagged(&frame, &[0x81, 0, 0x60, 0x7b])),
        ("802.1ad", tagged(&frame, &[0x88, 0xa8, 0, 0x4d, 0x81, 0, 0, 0x7b])),
        ("QinQ 9100", tagged(&frame, &[0x91, 0, 0, 0x4d, 0x81, 0, 0, 0x7b])),
        ("three tags", tagged(&frame, &[0x81, 0, 0, 1, 0x81, 0, 0, 2, 0x81, 0, 0, 3])),
        ("MPLS", ethernet(0x8847, &with(&[0, 1, 1, 64], network))),
        ("MPLS two labels", ethernet(0x8847, &with(&[0, 1, 0, 64, 0, 1, 0x11, 64], network))),
        ("MPLS multicast", ethernet(0x8848, &with(&[0, 1, 1, 64], network))),
        ("MPLS in a VLAN", tagged(&ethernet(0x8847, &with(&[0, 1, 1, 64], network)), &[0x81, 0, 0, 9])),
        ("GRE IP", gre(0, ethertype, b"", network)),
        ("GRE IP checksum", gre(0x80, ethertype, &[1; 4], network)),
        ("GRE Ethernet", gre(0, 0x6558, b"", &frame)),
        ("GRE key and sequence", gre(0x30, 0x6558, &[1; 8], &frame)),
        ("GRE checksum, key and sequence", gre(0xb0, ethertype, &[1; 12], network)),
        ("GRE MPLS", gre(0, 0x8847, &[0, 1, 1, 64], network)),
        ("GRE over IPv6", framed(&ipv6(47, &with(&[0, 0, 0x65, 0x58], &frame)))),
        ("ERSPAN I", gre(0, 0x88be, b"", &frame)),
        ("ERSPAN II", gre(0x10, 0x88be, sequence, &erspan2)),
        ("ERSPAN III", gre(0x10, 0x22eb, sequence, &with(&erspan3_head, &frame))),
        ("ERSPAN III subheader", gre(0x10, 0x22eb, sequence, &with(&erspan3_sub, &frame))),
        ("ERSPAN III IP frame", gre(0x10, 0x22eb, sequence, &with(&erspan3_ip, network))),
        ("VXLAN", vxlan(4789, &frame)),
        ("VXLAN on Linux' old port", vxlan(8472, &frame)),
        ("VXLAN of a tagged frame", vxlan(4789, &tagged(&frame, &[0x81, 0, 0, 9]))),
        ("Geneve", geneve(0x6558, b"", &frame)),
        ("Geneve options", geneve(0x6558, &[1, 2, 0x80, 1, 5, 5, 5, 5], &frame)),
        ("Geneve IP", geneve(ethertype, b"", network)),
        ("IP in IPv4", outer(protocol, network)),
        ("IP in IPv6", framed(&ipv6(protocol, network))),
        (
            "VXLAN in ERSPAN",
            gre(0x10, 0x88be, sequence, &with(&[0x10, 0, 0, 0, 0, 0, 0, 0], &vxlan(4789, &frame))),
        ),
    ]
}

#[test]
fn encapsulated_packets_mean_what_plain_ones_mean() {
    for network in plain_packets() {
        let plain = decode_frame(&framed(&network));
        for (name, frame) in encapsulations(&network) {
            assert_eq!(decode_frame(&frame), plain, "{name}");
        }
    }
}

#[test]
fn encapsulated_padding_is_not_payload() {
    let network = ipv4(6, &tcp_with(&[], 0x10, b""));
    let mut frame = framed(&network);
    frame.extend([0xaa; 6]);
    for encapsulated in [vxlan(4789, &frame), gre_with([0, 0], 0x6558, b"", &frame)] {
        assert_eq!(decode_frame(&encapsulated).payload(), Some((&[][..], 0)));
    }
}

#[test]
fn encapsulated_packets_cut_anywhere() {
    for network in plain_packets() {
        let plain = decode_frame(&framed(&network));
        let (payload, wire_bytes) = plain.payload().unwrap();
        for (name, frame) in encapsulations(&network) {
            for captured in 0..frame.len() {
                let cut = decode_cut(LinkType::Ethernet, &frame, captured);
                match cut.payload() {
                    Some((part, part_wire_bytes)) => {
                        assert_eq!(part_wire_bytes, wire_bytes, "{name} cut at {captured}");
                        assert!(payload.starts_with(part));
                    }
                    None => assert_eq!(cut, Meaning::Malformed, "{name} cut at {captured}"),
                }
            }
        }
    }
}

#[test]
fn big_tcp_inside_a_tunnel() {
    let payload = vec![b'x'; 100_000];
    let network = ipv4(6, &tcp(&payload));
    assert_eq!(decode_frame(&ipip(&network)).payload(), Some((&payload[..], 100_000)));
}

#[test]
fn tunnels_are_followed_to_their_bound() {
    let mut network = ipv4(6, &tcp(b"get a\r\n"));
    for _ in 0..TUNNELS_MAX {
        network = ipv4(4, &network);
    }
    assert!(decode_frame(&framed(&network)).payload().is_some());
    assert_eq!(decode_frame(&framed(&ipv4(4, &network))), Meaning::Foreign);
}

#[test]
fn tags_and_labels_are_followed_to_their_bound() {
    let network = ipv4(6, &tcp(b"get a\r\n"));
    let four_tags = tagged(&framed(&network), &[0x81, 0, 0, 1].repeat(VLAN_TAGS_MAX + 1));
    assert_eq!(decode_frame(&four_tags), Meaning::Foreign);
    let labels = |count| [[0, 1, 0, 64].repeat(count), vec![0, 1, 1, 64], network.clone()].concat();
    assert!(decode_frame(&ethernet(0x8847, &labels(MPLS_LABELS_MAX - 1))).payload().is_some());
    assert_eq!(decode_frame(&ethernet(0x8847, &labels(MPLS_LABELS_MAX))), Meaning::Foreign);
    assert_eq!(decode_frame(&ethernet(0x8847, &[0, 1, 1, 64, 0, 0, 0, 0])), Meaning::Foreign); // pseudowire
}

#[test]
fn other_generations_of_gre_are_foreign() {
    let network = ipv4(6, &tcp(b"get a\r\n"));
    let gre = |flags| decode_frame(&gre_with(flags, 0x0800, b"", &network));
    assert_eq!(gre([0x40, 0]), Meaning::Foreign); // source routes
    assert_eq!(gre([0, 1]), Meaning::Foreign); // PPTP
    assert_eq!(decode_frame(&gre_with([0, 0], 0, b"", b"")), Meaning::Foreign); // keep-alive
}

#[test]
fn memcached_answer_to_a_tunnels_port_is_no_tunnel() {
    // Every byte as VXLAN would have it: request 0x0800, sequence 0, one datagram.
    let answer = [&[8, 0, 0, 0, 0, 1, 0, 0], framed(&ipv4(6, &tcp(b"x"))).as_slice()].concat();
    for port in [4789, 8472, 6081] {
        let frame = framed(&ipv4(17, &udp(11_211, port, &answer)));
        assert_eq!(decode_frame(&frame).payload(), Some((&answer[..], answer.len() as u32)));
    }
    let request = framed(&ipv4(17, &udp(40_000, 8472, &answer)));
    let mut decoder = Decoder::new(small_limits());
    assert!(matches!(decoder.decode(&packet(LinkType::Ethernet, &request)), Decoded::Segment(_)));
    decoder.keep_from_tunnels(&[8472]);
    assert!(matches!(decoder.decode(&packet(LinkType::Ethernet, &request)), Decoded::Datagram(_)));
}

#[test]
fn datagram_that_is_no_tunnel_in_spite_of_its_port() {
    let without_network_id = [0u8; 60];
    let version_1 = [0x40; 60];
    for (port, payload) in [(4789, without_network_id), (6081, version_1)] {
        let meaning = decode_frame(&framed(&ipv4(17, &udp(50_000, port, &payload))));
        assert_eq!(meaning.payload(), Some((&payload[..], 60)));
    }
    let short = decode_frame(&framed(&ipv4(17, &udp(50_000, 4789, &[8; 7]))));
    assert_eq!(short.payload(), Some((&[8; 7][..], 7)));
}

#[test]
fn tunnels_are_told_by_their_destination_port_only() {
    let frame = framed(&ipv4(17, &udp(4789, 40_000, &[&VXLAN[..], &[0; 60]].concat())));
    assert!(matches!(decode_frame(&frame), Meaning::Datagram { .. }));
}

#[test]
fn ip_options_and_extension_headers() {
    let segment = tcp(b"get a\r\n");
    let plain4 = decode_frame(&framed(&ipv4(6, &segment)));
    let options = [7, 7, 4, 0, 0, 0, 0, 1];
    assert_eq!(decode_frame(&framed(&ipv4_with(6, &options, IP_ID, 0x4000, &segment))), plain4);
    let authentication = [&[6, 4, 0, 0][..], &[1; 20], &segment].concat();
    assert_eq!(decode_frame(&framed(&ipv4(51, &authentication))), plain4);

    let plain6 = decode_frame(&framed(&ipv6(6, &segment)));
    let destination = [&[6, 0, 1, 4, 0, 0, 0, 0][..], &segment].concat();
    let routing = [&[60, 0, 4, 0, 0, 0, 0, 0][..], &destination].concat();
    let hop_by_hop = [&[43, 0, 1, 4, 0, 0, 0, 0][..], &routing].concat();
    assert_eq!(decode_frame(&framed(&ipv6(0, &hop_by_hop))), plain6);
    let unending = [60, 0, 1, 4, 0, 0, 0, 0].repeat(EXTENSION_HEADERS_MAX + 1);
    assert_eq!(decode_frame(&framed(&ipv6(60, &unending))), Meaning::Malformed);
    // The numbers of extension headers mean nothing in IPv4.
    assert_eq!(decode_frame(&framed(&ipv4(60, &destination))), Meaning::Foreign);
}

#[test]
fn encrypted_packets_are_foreign() {
    assert_eq!(decode_frame(&framed(&ipv4(50, &[0x11; 80]))), Meaning::Foreign);
    assert_eq!(decode_frame(&framed(&ipv6(50, &[0x11; 80]))), Meaning::Foreign);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn damaged_tunnels_are_harmless(
        plain in 0usize..5,
        kind in any::<prop::sample::Index>(),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..8),
        cut in 0usize..150,
    ) {
        let all = encapsulations(&plain_packets()[plain]);
        let mut frame = all[kind.index(all.len())].1.clone();
        for (index, bit) in flips {
            let index = index.index(frame.len());
            frame[index] ^= 1 << bit;
        }
        let captured = frame.len().saturating_sub(cut);
        let meaning = decode_cut(LinkType::Ethernet, &frame, captured);
        if let Some((payload, wire_bytes)) = meaning.payload() {
            prop_assert!(payload.len() <= captured && payload.len() <= wire_bytes as usize);
        }
    }
}

//! Targets that take frames: blocks of the ring, link layers and tunnels, and the whole machine.

use super::Input;
use super::stage::{SERVER_PORT, check_books, check_observation, small_limits, small_parser_limits};
use memtap::capture::block::Packets;
use memtap::capture::decode::{DecodeLimits, Decoder};
use memtap::capture::{Decoded, LinkType, Packet};
use memtap::model::{TargetId, Timestamp};
use memtap::network::Network;
use memtap::pipeline::{Pipeline, PipelineLimits, TargetMap, TargetMatch};
use std::time::Duration;

const LINKS: [LinkType; 8] = [
    LinkType::Ethernet,
    LinkType::Raw,
    LinkType::LinuxSll,
    LinkType::LinuxSll2,
    LinkType::Null,
    LinkType::Network { ethertype: 0x0800 },
    LinkType::Network { ethertype: 0x86dd },
    LinkType::Network { ethertype: 0x8100 },
];

fn decode_limits() -> DecodeLimits {
    DecodeLimits {
        fragment_datagrams_max: 3,
        fragment_datagram_bytes_max: 4096,
        fragment_pieces_max: 6,
        ..DecodeLimits::default()
    }
}

/// The bytes of a ring block behind its first twelve, walked, and each packet decoded.
pub fn block_walk(data: &[u8]) {
    let mut decoder = Decoder::new(decode_limits());
    let mut packets = Packets::new(data);
    let mut count = 0;
    let block = data.as_ptr_range();
    for captured in packets.by_ref() {
        let bytes = captured.packet.bytes.as_ptr_range();
        let within =
            captured.packet.bytes.is_empty() || (block.start <= bytes.start && bytes.end <= block.end);
        assert!(within, "a packet outside of its block");
        check_decoded(&mut decoder, &captured.packet);
        // A packet's header has 68 bytes.
        count += 1;
        assert!(count <= data.len() / 68 + 1, "more packets than have room");
    }
    assert!(packets.next().is_none(), "a walk that goes on after its end");
}

/// Frames of any link type, each with its length before it.
pub fn decode(data: &[u8]) {
    let mut decoder = Decoder::new(decode_limits());
    for_each_packet(data, |packet| check_decoded(&mut decoder, packet));
    decoder.expire_fragments(Timestamp::from_parts(u32::MAX.into(), 0));
    let anomalies = decoder.take_anomalies();
    assert!(anomalies.iter().count() <= 1, "only fragments are counted here");
}

fn check_decoded(decoder: &mut Decoder, packet: &Packet<'_>) {
    match decoder.decode(packet) {
        Decoded::Segment(segment) => {
            assert!(segment.payload.len() as u64 <= u64::from(segment.payload_wire_bytes));
            assert_eq!(segment.flags.0 & 0xc0, 0, "ECN bits are masked");
        }
        Decoded::Datagram(datagram) => {
            assert!(datagram.payload.len() as u64 <= u64::from(datagram.payload_wire_bytes));
        }
        Decoded::Fragment | Decoded::Foreign | Decoded::Malformed => {}
    }
}

/// Frames through the whole machine.
pub fn pipeline(data: &[u8]) {
    let target = TargetMatch { network: Network::Any, port: SERVER_PORT, tcp: true, udp: true };
    let limits =
        PipelineLimits { decode: decode_limits(), reassembly: small_limits(), parser: small_parser_limits() };
    let mut pipeline = Pipeline::new(TargetMap::new(vec![target]), limits);
    let mut packets = 0;
    for_each_packet(data, |packet| {
        packets += 1;
        pipeline.handle_packet(packet, &mut |_, observation| check_observation(observation));
    });
    pipeline.finish(&mut |_, observation| check_observation(observation));
    check_books(&pipeline.take_tally(TargetId(0)));
    let capture = pipeline.take_capture_tally();
    assert_eq!(capture.packets, packets);
    assert!(capture.target_packets <= packets);
}

/// Each packet of an input: link type and time, captured share, two bytes of length, frame.
fn for_each_packet(data: &[u8], mut take: impl FnMut(&Packet<'_>)) {
    let mut input = Input::new(data);
    let mut now = Timestamp::from_parts(1_700_000_000, 0);
    while !input.is_empty() {
        let (what, captured) = (input.byte(), input.byte());
        let length = usize::from(input.word());
        let frame = input.bytes(length);
        now = now.plus(Duration::from_micros(1 << (what >> 4)));
        let kept = if captured < 240 { frame.len() } else { frame.len() * usize::from(captured & 15) / 16 };
        take(&Packet {
            timestamp: now,
            link: LINKS[usize::from(what & 7)],
            bytes: &frame[..kept],
            wire_bytes: frame.len() as u32,
        });
    }
}

//! Packets made for the tests of this folder, and decoded packets in a form that can be compared.

use std::time::Duration;

use super::decode::{DecodeLimits, Decoder};
use super::{Decoded, LinkType, Packet};
use crate::model::Timestamp;

pub(super) const CLIENT4: [u8; 4] = [10, 2, 0, 17];
pub(super) const SERVER4: [u8; 4] = [10, 1, 0, 5];
pub(super) const CLIENT6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x17];
pub(super) const SERVER6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x05];
pub(super) const IP_ID: u16 = 0x1234;

/// What a packet decoded to, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    Segment { from: String, to: String, seq: u32, ack: u32, flags: u8, payload: Vec<u8>, wire_bytes: u32 },
    Datagram { from: String, to: String, payload: Vec<u8>, wire_bytes: u32, identity: u64 },
    Fragment,
    Foreign,
    Malformed,
}

impl Meaning {
    pub(super) fn of(decoded: Decoded<'_>) -> Meaning {
        match decoded {
            Decoded::Segment(s) => Meaning::Segment {
                from: s.source.to_string(),
                to: s.destination.to_string(),
                seq: s.seq,
                ack: s.ack,
                flags: s.flags.0,
                payload: s.payload.to_vec(),
                wire_bytes: s.payload_wire_bytes,
            },
            Decoded::Datagram(d) => Meaning::Datagram {
                from: d.source.to_string(),
                to: d.destination.to_string(),
                payload: d.payload.to_vec(),
                wire_bytes: d.payload_wire_bytes,
                identity: d.identity,
            },
            Decoded::Fragment => Meaning::Fragment,
            Decoded::Foreign => Meaning::Foreign,
            Decoded::Malformed => Meaning::Malformed,
        }
    }

    /// Captured payload and its length on the wire.
    pub(super) fn payload(&self) -> Option<(&[u8], u32)> {
        match self {
            Meaning::Segment { payload, wire_bytes, .. } | Meaning::Datagram { payload, wire_bytes, .. } => {
                Some((payload, *wire_bytes))
            }
            _ => None,
        }
    }
}

pub(super) fn packet(link: LinkType, bytes: &[u8]) -> Packet<'_> {
    packet_at(0, link, bytes)
}

pub(super) fn packet_at(micros: u64, link: LinkType, bytes: &[u8]) -> Packet<'_> {
    let timestamp = Timestamp::from_parts(1_700_000_000, 0).plus(Duration::from_micros(micros));
    Packet { timestamp, link, bytes, wire_bytes: bytes.len() as u32 }
}

/// Decodes one packet with a fresh decoder, and makes sure that the general path agrees.
pub(super) fn decode(link: LinkType, bytes: &[u8]) -> Meaning {
    decode_cut(link, bytes, bytes.len())
}

/// The same for a packet of which only the first `captured` bytes were recorded.
pub(super) fn decode_cut(link: LinkType, bytes: &[u8], captured: usize) -> Meaning {
    let cut = Packet { bytes: &bytes[..captured], wire_bytes: bytes.len() as u32, ..packet(link, bytes) };
    let meaning = Meaning::of(Decoder::new(small_limits()).decode(&cut));
    let layered = Meaning::of(Decoder::new(small_limits()).decode_layered(&cut));
    assert_eq!(meaning, layered, "fast path and walk differ");
    meaning
}

pub(super) fn decode_frame(frame: &[u8]) -> Meaning {
    decode(LinkType::Ethernet, frame)
}

/// Small pools: most tests make a decoder for each packet.
pub(super) fn small_limits() -> DecodeLimits {
    DecodeLimits { fragment_datagrams_max: 4, ..DecodeLimits::default() }
}

/// A segment from client to server.
pub(super) fn tcp(payload: &[u8]) -> Vec<u8> {
    tcp_with(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2], 0x18, payload)
}

pub(super) fn tcp_with(options: &[u8], flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![];
    bytes.extend(51_422u16.to_be_bytes());
    bytes.extend(11_211u16.to_be_bytes());
    bytes.extend(0xdead_beefu32.to_be_bytes());
    bytes.extend(0x0bad_cafeu32.to_be_bytes());
    bytes.extend([(5 + options.len() as u8 / 4) << 4, flags]);
    bytes.extend([0x20, 0, 0xbb, 0xbb, 0, 0]); // window, a wrong checksum, urgent pointer
    bytes.extend(options);
    bytes.extend(payload);
    bytes
}

pub(super) fn udp(source_port: u16, destination_port: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![];
    bytes.extend(source_port.to_be_bytes());
    bytes.extend(destination_port.to_be_bytes());
    bytes.extend((8 + payload.len() as u16).to_be_bytes());
    bytes.extend([0xab, 0xcd]);
    bytes.extend(payload);
    bytes
}

pub(super) fn ipv4(protocol: u8, body: &[u8]) -> Vec<u8> {
    ipv4_with(protocol, &[], IP_ID, 0x4000, body)
}

/// `fragment` holds the three flags and the offset, as in the header.
pub(super) fn ipv4_with(protocol: u8, options: &[u8], id: u16, fragment: u16, body: &[u8]) -> Vec<u8> {
    let total = 20 + options.len() + body.len();
    let mut bytes = vec![0x45 + options.len() as u8 / 4, 0];
    bytes.extend(u16::try_from(total).unwrap_or(0).to_be_bytes());
    bytes.extend(id.to_be_bytes());
    bytes.extend(fragment.to_be_bytes());
    bytes.extend([64, protocol, 0, 0]);
    bytes.extend(CLIENT4);
    bytes.extend(SERVER4);
    bytes.extend(options);
    bytes.extend(body);
    bytes
}

pub(super) fn ipv6(next_header: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend(u16::try_from(body.len()).unwrap_or(0).to_be_bytes());
    bytes.extend([next_header, 64]);
    bytes.extend(CLIENT6);
    bytes.extend(SERVER6);
    bytes.extend(body);
    bytes
}

/// IPv6 fragment header before `body`.
pub(super) fn ipv6_fragment(next: u8, id: u32, offset: u16, more: bool, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![next, 0];
    bytes.extend((offset | u16::from(more)).to_be_bytes());
    bytes.extend(id.to_be_bytes());
    bytes.extend(body);
    ipv6(44, &bytes)
}

pub(super) fn ethernet(ethertype: u16, network: &[u8]) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    bytes.extend(ethertype.to_be_bytes());
    bytes.extend(network);
    bytes
}

/// EtherType of an IP packet.
pub(super) fn ethertype(network: &[u8]) -> u16 {
    if network[0] >> 4 == 4 { 0x0800 } else { 0x86dd }
}

/// An IP packet as an Ethernet frame.
pub(super) fn framed(network: &[u8]) -> Vec<u8> {
    ethernet(ethertype(network), network)
}

/// `get key` over each transport and IP version: the plain packets that encapsulations are held against.
pub(super) fn plain_packets() -> Vec<Vec<u8>> {
    let get = b"get user:1:profile\r\n";
    let datagram = [&[0, 7, 0, 0, 0, 1, 0, 0], get.as_slice()].concat();
    vec![
        ipv4(6, &tcp(get)),
        ipv6(6, &tcp(get)),
        ipv4(17, &udp(40_000, 11_211, &datagram)),
        ipv6(17, &udp(40_000, 11_211, &datagram)),
        ipv4(6, &tcp_with(&[], 0x10, b"")),
    ]
}

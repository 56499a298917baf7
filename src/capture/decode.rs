//! Headers to segments and datagrams.
//!
//! Two paths give one answer. The fast path reads Ethernet (or a bare network layer), at most two VLAN tags, IPv4 without
//! options, IPv6 without extension headers, TCP and UDP, all at fixed offsets; whatever it does not know it leaves to the
//! walk in `tunnel.rs`, which knows options, extension headers, MPLS, tunnels and fragments. Tests hold the
//! two against each other and both against etherparse.
//!
//! Lengths come from the IP header and never from the frame, because short frames are padded and mirrors cut packets; the
//! frame is believed only where the header says 0 (BIG TCP: frames over 64 KiB on the host itself). Checksums are never
//! verified: those of locally sent packets are wrong until the card has seen them. Nothing here allocates after `new`.
//!
//! The fast path is `inline(always)` throughout: 13.5 ns a packet against 18 with mere hints and 50 for etherparse's lax
//! slicing (`benches/decode.rs`, 64-byte frames in cache, 2-core virtual machine, Rust 1.95).

use std::time::Duration;

use super::fragment::{FragmentPool, FragmentPools};
use super::tunnel;
use super::{Datagram, Decoded, LinkType, Packet, Segment, TcpFlags};
use crate::anomaly::{Anomaly, AnomalyCounts};
use crate::model::{Endpoint, Timestamp};

/// EtherType of IPv4.
pub(super) const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub(super) const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Protocol number of TCP.
pub(super) const PROTOCOL_TCP: u8 = 6;
/// Protocol number of UDP.
pub(super) const PROTOCOL_UDP: u8 = 17;

/// VLAN tags that the fast path steps over; the walk takes one more.
const FAST_VLAN_TAGS_MAX: usize = 2;

/// Bytes of a TCP header that are needed: up to and with the flags.
const TCP_NEEDED_BYTES: usize = 14;

/// Greatest payload of an IP packet that can have been fragmented.
const DATAGRAM_BYTES_MAX: usize = 65_535;

/// The bounds of a [`Decoder`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Fragmented IP packets held at once, outside of tunnels, and as many again inside of tunnels.
    pub fragment_datagrams_max: usize,
    /// Payload bytes of one fragmented IP packet; larger ones are dropped. At most 65,535 have an effect.
    pub fragment_datagram_bytes_max: usize,
    /// Fragments of one IP packet; a packet in more pieces is dropped.
    pub fragment_pieces_max: usize,
    /// Time on the capture's clock after which an incomplete packet is given up.
    pub fragment_idle_max: Duration,
}

impl Default for DecodeLimits {
    /// 64 packets of 64 KiB in 128 pieces each (4 MiB, in two pools), given up after 2 s. Linux itself waits 30 s, but on
    /// the networks where memcached lives the pieces of a packet follow each other within a millisecond.
    fn default() -> DecodeLimits {
        DecodeLimits {
            fragment_datagrams_max: 64,
            fragment_datagram_bytes_max: DATAGRAM_BYTES_MAX,
            fragment_pieces_max: 128,
            fragment_idle_max: Duration::from_secs(2),
        }
    }
}

/// Turns packets into segments and datagrams. Holds the fragments of unfinished packets and nothing else.
#[derive(Debug)]
pub struct Decoder {
    /// Fragments of the packets on the wire.
    outer_fragments: FragmentPool,
    /// Fragments of packets inside tunnels. A pool of their own, because a tunnel packet can be fragmented as well, and its
    /// bytes then lie in the first pool while the second one takes them.
    inner_fragments: FragmentPool,
    /// UDP ports that belong to memcached: a datagram from or to them is never taken for a tunnel.
    memcached_ports: Vec<u16>,
}

impl Decoder {
    /// A decoder with everything allocated that it will ever hold.
    pub fn new(limits: DecodeLimits) -> Decoder {
        Decoder {
            outer_fragments: FragmentPool::new(&limits),
            inner_fragments: FragmentPool::new(&limits),
            memcached_ports: vec![11211],
        }
    }

    /// Names the UDP ports of memcached (11211 until told otherwise): datagrams from or to them are never read as VXLAN or
    /// Geneve, so that a target on port 8472, or a client whose port happens to be 4789, is heard.
    pub fn keep_from_tunnels(&mut self, memcached_ports: &[u16]) {
        self.memcached_ports.clear();
        self.memcached_ports.extend_from_slice(memcached_ports);
    }

    /// The segment or datagram in `packet`. Its payload borrows from the packet, or from the decoder when it was put
    /// together from fragments; it always lies within what was captured.
    #[inline(always)]
    pub fn decode<'a>(&'a mut self, packet: &Packet<'a>) -> Decoded<'a> {
        decode_plain(packet).unwrap_or_else(|| self.decode_layered(packet))
    }

    /// Lends what [`Decoder::decode`] returns to `take`. What comes from the fast path can stay in registers all the way.
    #[inline(always)]
    pub fn decode_to(&mut self, packet: &Packet<'_>, take: impl FnOnce(Decoded<'_>)) {
        match decode_plain(packet) {
            Some(decoded) => take(decoded),
            None => {
                // A copy, so that only such packets have to lie in memory: a call that takes an address forces that on all.
                let packet = *packet;
                self.decode_layered_to(&packet, take);
            }
        }
    }

    #[inline(never)]
    fn decode_layered_to(&mut self, packet: &Packet<'_>, take: impl FnOnce(Decoded<'_>)) {
        take(self.decode_layered(packet));
    }

    /// Gives up the fragments that have waited too long at `now`. Arriving fragments do the same; this is for the end of an
    /// interval, so that losses stand in the report of the interval in which they occurred.
    pub fn expire_fragments(&mut self, now: Timestamp) {
        self.outer_fragments.expire(now);
        self.inner_fragments.expire(now);
    }

    /// Takes the counts since the last call: [`Anomaly::FragmentDropped`], one for each fragment that came to nothing.
    /// `Foreign` and `Malformed` packets are counted by the caller, who sees them.
    pub fn take_anomalies(&mut self) -> AnomalyCounts {
        let mut counts = AnomalyCounts::default();
        let dropped = self.outer_fragments.take_dropped() + self.inner_fragments.take_dropped();
        counts.add(Anomaly::FragmentDropped, dropped);
        counts
    }

    /// The general path; also right for packets that the fast path takes.
    #[inline(never)]
    pub(super) fn decode_layered<'a>(&'a mut self, packet: &Packet<'a>) -> Decoded<'a> {
        let pools = FragmentPools::new(&mut self.outer_fragments, &mut self.inner_fragments);
        tunnel::walk(packet, pools, &self.memcached_ports).unwrap_or_else(Decoded::from)
    }
}

/// Captured bytes, and the length that they had on the wire. `bytes.len() <= wire_bytes` always.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) wire_bytes: u32,
}

impl<'a> Extent<'a> {
    /// The whole packet. A wire length below the captured length is a recorder's slip.
    #[inline(always)]
    pub(super) fn of_packet(packet: &Packet<'a>) -> Extent<'a> {
        let captured = u32::try_from(packet.bytes.len()).unwrap_or(u32::MAX);
        Extent { bytes: packet.bytes, wire_bytes: packet.wire_bytes.max(captured) }
    }

    /// What follows the first `count` bytes, when those were captured.
    #[inline(always)]
    pub(super) fn after(self, count: usize) -> Option<Extent<'a>> {
        let bytes = self.bytes.get(count..)?;
        let skipped = u32::try_from(count).ok()?;
        Some(Extent { bytes, wire_bytes: self.wire_bytes.saturating_sub(skipped) })
    }

    /// The same start with the length that a header declares. More than there was means that the packet was cut on its way
    /// to us without a record of it, as truncating mirrors do.
    #[inline(always)]
    pub(super) fn with_wire_bytes(self, wire_bytes: u32) -> Extent<'a> {
        let end = usize::try_from(wire_bytes).map_or(self.bytes.len(), |end| end.min(self.bytes.len()));
        Extent { bytes: self.bytes.get(..end).unwrap_or_default(), wire_bytes }
    }

    /// The first `N` bytes, when those were captured.
    #[inline(always)]
    pub(super) fn head<const N: usize>(self) -> Option<&'a [u8; N]> {
        self.bytes.first_chunk()
    }
}

/// Source and destination address of an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AddressPair {
    V4 { source: [u8; 4], destination: [u8; 4] },
    V6 { source: [u8; 16], destination: [u8; 16] },
}

impl AddressPair {
    #[inline(always)]
    fn endpoints(self, source_port: u16, destination_port: u16) -> (Endpoint, Endpoint) {
        match self {
            AddressPair::V4 { source, destination } => {
                (Endpoint::from_ipv4(source, source_port), Endpoint::from_ipv4(destination, destination_port))
            }
            AddressPair::V6 { source, destination } => {
                (Endpoint::from_ipv6(source, source_port), Endpoint::from_ipv6(destination, destination_port))
            }
        }
    }
}

/// Why there is neither a segment nor a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    Fragment,
    Foreign,
    Malformed,
}

impl From<Stop> for Decoded<'_> {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Fragment => Decoded::Fragment,
            Stop::Foreign => Decoded::Foreign,
            Stop::Malformed => Decoded::Malformed,
        }
    }
}

/// The fast path; `None` for everything that is not plainly a segment or a datagram.
#[inline(always)]
fn decode_plain<'a>(packet: &Packet<'a>) -> Option<Decoded<'a>> {
    let (mut ethertype, header_bytes) = link_header(packet.link, packet.bytes).ok()?;
    let mut network = Extent::of_packet(packet).after(header_bytes)?;
    let mut tags = 0;
    while is_vlan(ethertype) {
        if tags == FAST_VLAN_TAGS_MAX {
            return None;
        }
        tags += 1;
        (ethertype, network) = after_vlan_tag(network)?;
    }
    match ethertype {
        ETHERTYPE_IPV4 => plain_ipv4(packet.timestamp, network),
        ETHERTYPE_IPV6 => plain_ipv6(packet.timestamp, network),
        _ => None,
    }
}

#[inline(always)]
fn plain_ipv4(timestamp: Timestamp, network: Extent<'_>) -> Option<Decoded<'_>> {
    let h: &[u8; 20] = network.head()?;
    let fragment_bits = u16::from_be_bytes([h[6], h[7]]) & 0x3fff; // more fragments, offset
    if h[0] != 0x45 || fragment_bits != 0 {
        return None;
    }
    let total_bytes = match u16::from_be_bytes([h[2], h[3]]) {
        0 => network.wire_bytes,
        declared => u32::from(declared),
    };
    if total_bytes < 20 {
        return None;
    }
    let addresses =
        AddressPair::V4 { source: *h[12..16].first_chunk()?, destination: *h[16..20].first_chunk()? };
    let body = network.with_wire_bytes(total_bytes).after(20)?;
    plain_transport(timestamp, addresses, h[9], u16::from_be_bytes([h[4], h[5]]), body)
}

#[inline(always)]
fn plain_ipv6(timestamp: Timestamp, network: Extent<'_>) -> Option<Decoded<'_>> {
    let h: &[u8; 40] = network.head()?;
    if h[0] >> 4 != 6 {
        return None;
    }
    let body = network.after(40)?;
    let body = match u16::from_be_bytes([h[4], h[5]]) {
        0 => body,
        declared => body.with_wire_bytes(u32::from(declared)),
    };
    let addresses =
        AddressPair::V6 { source: *h[8..24].first_chunk()?, destination: *h[24..40].first_chunk()? };
    plain_transport(timestamp, addresses, h[6], 0, body)
}

#[inline(always)]
fn plain_transport(
    timestamp: Timestamp,
    addresses: AddressPair,
    protocol: u8,
    ip_id: u16,
    body: Extent<'_>,
) -> Option<Decoded<'_>> {
    match protocol {
        PROTOCOL_TCP => segment(timestamp, addresses, body).map(Decoded::Segment),
        PROTOCOL_UDP => {
            let datagram = datagram(timestamp, addresses, ip_id, body)?;
            let maybe_tunnel = tunnel::is_tunnel_port(datagram.destination.port());
            (!maybe_tunnel).then_some(Decoded::Datagram(datagram))
        }
        _ => None,
    }
}

/// EtherType of the network layer and length of the link header before it.
#[inline(always)]
pub(super) fn link_header(link: LinkType, bytes: &[u8]) -> Result<(u16, usize), Stop> {
    match link {
        LinkType::Ethernet => match bytes.first_chunk::<14>() {
            Some(h) => Ok((u16::from_be_bytes([h[12], h[13]]), 14)),
            None => Err(Stop::Malformed),
        },
        LinkType::Network { ethertype } => Ok((ethertype, 0)),
        LinkType::Raw => Ok((ethertype_of_ip(bytes)?, 0)),
        LinkType::LinuxSll => match bytes.first_chunk::<16>() {
            Some(h) => Ok((u16::from_be_bytes([h[14], h[15]]), 16)),
            None => Err(Stop::Malformed),
        },
        LinkType::LinuxSll2 => match bytes.first_chunk::<20>() {
            Some(h) => Ok((u16::from_be_bytes([h[0], h[1]]), 20)),
            None => Err(Stop::Malformed),
        },
        LinkType::Null => match bytes.first_chunk::<4>() {
            Some(&family) => Ok((ethertype_of_family(family)?, 4)),
            None => Err(Stop::Malformed),
        },
    }
}

/// EtherType of bytes that begin with an IP header, from the version in their first nibble.
pub(super) fn ethertype_of_ip(bytes: &[u8]) -> Result<u16, Stop> {
    match bytes.first().map(|first| first >> 4) {
        Some(4) => Ok(ETHERTYPE_IPV4),
        Some(6) => Ok(ETHERTYPE_IPV6),
        Some(_) => Err(Stop::Foreign),
        None => Err(Stop::Malformed),
    }
}

/// EtherType of an address family in either byte order: families are small, so the order shows. AF_INET6 differs between
/// Linux (10), NetBSD and OpenBSD (24), FreeBSD (28) and macOS (30).
fn ethertype_of_family(family: [u8; 4]) -> Result<u16, Stop> {
    match u32::from_le_bytes(family).min(u32::from_be_bytes(family)) {
        2 => Ok(ETHERTYPE_IPV4),
        10 | 24 | 28 | 30 => Ok(ETHERTYPE_IPV6),
        _ => Err(Stop::Foreign),
    }
}

/// Whether an EtherType announces a VLAN tag: 802.1Q, 802.1ad, and the older mark of stacked tags.
#[inline(always)]
pub(super) fn is_vlan(ethertype: u16) -> bool {
    matches!(ethertype, 0x8100 | 0x88a8 | 0x9100)
}

/// EtherType and bytes after a VLAN tag.
#[inline(always)]
pub(super) fn after_vlan_tag(network: Extent<'_>) -> Option<(u16, Extent<'_>)> {
    let h: &[u8; 4] = network.head()?;
    Some((u16::from_be_bytes([h[2], h[3]]), network.after(4)?))
}

/// The segment in an IP packet's payload. A header that is cut after its flags still yields the segment, without captured
/// payload: its length on the wire is known, which is what reassembly needs.
#[inline(always)]
pub(super) fn segment<'a>(
    timestamp: Timestamp,
    addresses: AddressPair,
    body: Extent<'a>,
) -> Option<Segment<'a>> {
    let h: &[u8; TCP_NEEDED_BYTES] = body.head()?;
    let header_bytes = u32::from(h[12] >> 4) * 4;
    if header_bytes < 20 {
        return None;
    }
    let payload_wire_bytes = body.wire_bytes.checked_sub(header_bytes)?;
    let payload = body.bytes.get(header_bytes as usize..).unwrap_or_default();
    let (source, destination) =
        addresses.endpoints(u16::from_be_bytes([h[0], h[1]]), u16::from_be_bytes([h[2], h[3]]));
    Some(Segment {
        timestamp,
        source,
        destination,
        seq: u32::from_be_bytes([h[4], h[5], h[6], h[7]]),
        ack: u32::from_be_bytes([h[8], h[9], h[10], h[11]]),
        flags: TcpFlags(h[13] & 0x3f), // without ECE and CWR; AE (NS) is in the byte before
        payload,
        payload_wire_bytes,
    })
}

/// The datagram in an IP packet's payload. A length of 0 stands for "up to the end" (jumbograms, RFC 2675 §4).
#[inline(always)]
pub(super) fn datagram<'a>(
    timestamp: Timestamp,
    addresses: AddressPair,
    ip_id: u16,
    body: Extent<'a>,
) -> Option<Datagram<'a>> {
    let h: &[u8; 8] = body.head()?;
    let length = match u16::from_be_bytes([h[4], h[5]]) {
        0 => body.wire_bytes,
        declared => u32::from(declared),
    };
    if length < 8 || length > body.wire_bytes {
        return None;
    }
    let payload = body.with_wire_bytes(length).after(8)?;
    let (source, destination) =
        addresses.endpoints(u16::from_be_bytes([h[0], h[1]]), u16::from_be_bytes([h[2], h[3]]));
    let checksum = u16::from_be_bytes([h[6], h[7]]);
    Some(Datagram {
        timestamp,
        source,
        destination,
        payload: payload.bytes,
        payload_wire_bytes: payload.wire_bytes,
        identity: u64::from(ip_id) << 48 | u64::from(checksum) << 32 | u64::from(length),
    })
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;

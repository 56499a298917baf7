//! The walk through everything that can stand before a TCP or UDP header.
//!
//! VLAN tags, MPLS labels, IPv4 options, IPv6 extension headers, and the tunnels by which mirror ports and cloud networks
//! carry whole packets: GRE, ERSPAN, VXLAN, Geneve, IP in IP. Every loop has a bound. Nothing is believed that was not
//! captured, and a header that is cut ends the walk. ICMP is left alone although it can echo the headers of others.

use etherparse::{
    IpAuthHeaderSlice, IpNumber, Ipv4HeaderSlice, Ipv6FragmentHeaderSlice, Ipv6RawExtHeaderSlice,
};

use super::decode::{
    AddressPair, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Extent, PROTOCOL_TCP, PROTOCOL_UDP, Stop, after_vlan_tag,
    datagram, ethertype_of_ip, is_vlan, link_header, segment,
};
use super::fragment::{FragmentKey, FragmentPiece, FragmentPools};
use super::{Datagram, Decoded, LinkType, Packet};

/// Tunnels within one another. A mirrored packet of an overlay network has two; four are nobody's intent.
const TUNNELS_MAX: usize = 4;
/// VLAN tags of one frame.
const VLAN_TAGS_MAX: usize = 3;
/// MPLS labels of one packet.
const MPLS_LABELS_MAX: usize = 8;
/// IPv6 extension headers of one packet. RFC 8200 §4.1 knows six kinds that occur once, one of them twice.
const EXTENSION_HEADERS_MAX: usize = 8;

const ETHERTYPE_MPLS: u16 = 0x8847;
const ETHERTYPE_MPLS_MULTICAST: u16 = 0x8848;
const ETHERTYPE_ETHERNET: u16 = 0x6558;
const ETHERTYPE_ERSPAN: u16 = 0x88be;
const ETHERTYPE_ERSPAN3: u16 = 0x22eb;

const PROTOCOL_IPV4: u8 = 4;
const PROTOCOL_IPV6: u8 = 41;
const PROTOCOL_GRE: u8 = 47;

const PORT_VXLAN: u16 = 4789;
const PORT_VXLAN_LINUX: u16 = 8472;
const PORT_GENEVE: u16 = 6081;

/// Whether a UDP destination port is that of a tunnel. The source port says nothing: tunnels put a hash of the inner flow
/// there.
#[inline]
pub(super) fn is_tunnel_port(port: u16) -> bool {
    matches!(port, PORT_VXLAN | PORT_VXLAN_LINUX | PORT_GENEVE)
}

/// Decodes `packet` layer by layer.
pub(super) fn walk<'a>(
    packet: &Packet<'a>,
    mut pools: FragmentPools<'a>,
    memcached_ports: &[u16],
) -> Result<Decoded<'a>, Stop> {
    let (ethertype, header_bytes) = link_header(packet.link, packet.bytes)?;
    let mut layer = Layer { ethertype, extent: after(Extent::of_packet(packet), header_bytes)? };
    for depth in 0..=TUNNELS_MAX {
        let mut ip = IpPacket::read(to_ip(layer)?)?;
        if let Some(piece) = ip.fragment.take() {
            ip = reassemble(packet, &mut pools, depth, ip, piece)?;
        }
        layer = match ip.protocol {
            PROTOCOL_TCP => {
                let segment = segment(packet.timestamp, ip.addresses, ip.body);
                return segment.map(Decoded::Segment).ok_or(Stop::Malformed);
            }
            PROTOCOL_UDP => {
                let datagram =
                    datagram(packet.timestamp, ip.addresses, ip.id, ip.body).ok_or(Stop::Malformed)?;
                match udp_tunnel(&datagram, memcached_ports)? {
                    Some(inner) => inner,
                    None => return Ok(Decoded::Datagram(datagram)),
                }
            }
            PROTOCOL_GRE => gre(ip.body)?,
            PROTOCOL_IPV4 => Layer { ethertype: ETHERTYPE_IPV4, extent: ip.body },
            PROTOCOL_IPV6 => Layer { ethertype: ETHERTYPE_IPV6, extent: ip.body },
            _ => return Err(Stop::Foreign),
        };
    }
    Err(Stop::Foreign)
}

/// Bytes of the network layer, and the EtherType that says what they are.
#[derive(Clone, Copy, Debug)]
struct Layer<'a> {
    ethertype: u16,
    extent: Extent<'a>,
}

/// One IP packet: who, what, and the payload after every header of the IP layer that could be read.
struct IpPacket<'a> {
    addresses: AddressPair,
    protocol: u8,
    /// IPv4 identification; 0 for IPv6.
    id: u16,
    /// Set when `body` is but a piece of the payload.
    fragment: Option<FragmentPiece>,
    body: Extent<'a>,
}

impl<'a> IpPacket<'a> {
    fn read(layer: Layer<'a>) -> Result<IpPacket<'a>, Stop> {
        match layer.ethertype {
            ETHERTYPE_IPV4 => IpPacket::read_ipv4(layer.extent),
            _ => IpPacket::read_ipv6(layer.extent),
        }
    }

    fn read_ipv4(extent: Extent<'a>) -> Result<IpPacket<'a>, Stop> {
        let header = Ipv4HeaderSlice::from_slice(extent.bytes).map_err(|_| Stop::Malformed)?;
        let header_bytes = header.slice().len();
        let total_bytes = match header.total_len() {
            0 => extent.wire_bytes,
            declared => u32::from(declared),
        };
        if (total_bytes as usize) < header_bytes {
            return Err(Stop::Malformed);
        }
        let piece = FragmentPiece {
            id: u32::from(header.identification()),
            offset: u32::from(header.fragments_offset().value()) * 8,
            is_last: !header.more_fragments(),
        };
        let ip = IpPacket {
            addresses: AddressPair::V4 { source: header.source(), destination: header.destination() },
            protocol: header.protocol().0,
            id: header.identification(),
            fragment: header.is_fragmenting_payload().then_some(piece),
            body: after(extent.with_wire_bytes(total_bytes), header_bytes)?,
        };
        ip.past_extensions()
    }

    fn read_ipv6(extent: Extent<'a>) -> Result<IpPacket<'a>, Stop> {
        let h: &[u8; 40] = extent.head().ok_or(Stop::Malformed)?;
        if h[0] >> 4 != 6 {
            return Err(Stop::Malformed);
        }
        let body = after(extent, 40)?;
        let address = |start: usize| h[start..].first_chunk().copied().ok_or(Stop::Malformed);
        let ip = IpPacket {
            addresses: AddressPair::V6 { source: address(8)?, destination: address(24)? },
            protocol: h[6],
            id: 0,
            fragment: None,
            // Zero stands for a jumbogram. Its option (RFC 2675) repeats the frame's length, and Linux leaves it out
            // for its own BIG TCP packets; so the frame is asked.
            body: match u16::from_be_bytes([h[4], h[5]]) {
                0 => body,
                declared => body.with_wire_bytes(u32::from(declared)),
            },
        };
        ip.past_extensions()
    }

    /// Steps over extension headers, as far as a fragment's own: what follows one may be the middle of anything.
    fn past_extensions(mut self) -> Result<IpPacket<'a>, Stop> {
        for _ in 0..EXTENSION_HEADERS_MAX {
            if self.fragment.is_some() {
                return Ok(self);
            }
            let is_ipv6 = matches!(self.addresses, AddressPair::V6 { .. });
            let bytes = self.body.bytes;
            let (next, header_bytes) = match IpNumber(self.protocol) {
                IpNumber::IPV6_HEADER_HOP_BY_HOP
                | IpNumber::IPV6_ROUTE_HEADER
                | IpNumber::IPV6_DESTINATION_OPTIONS
                    if is_ipv6 =>
                {
                    let header = Ipv6RawExtHeaderSlice::from_slice(bytes).map_err(|_| Stop::Malformed)?;
                    (header.next_header(), header.slice().len())
                }
                IpNumber::IPV6_FRAGMENTATION_HEADER if is_ipv6 => {
                    let header = Ipv6FragmentHeaderSlice::from_slice(bytes).map_err(|_| Stop::Malformed)?;
                    let piece = FragmentPiece {
                        id: header.identification(),
                        offset: u32::from(header.fragment_offset().value()) * 8,
                        is_last: !header.more_fragments(),
                    };
                    // A fragment that is the whole packet is no fragment (RFC 6946).
                    self.fragment = header.is_fragmenting_payload().then_some(piece);
                    (header.next_header(), header.slice().len())
                }
                IpNumber::AUTHENTICATION_HEADER => {
                    let header = IpAuthHeaderSlice::from_slice(bytes).map_err(|_| Stop::Malformed)?;
                    (header.next_header(), header.slice().len())
                }
                _ => return Ok(self),
            };
            self.protocol = next.0;
            self.body = after(self.body, header_bytes)?;
        }
        Err(Stop::Malformed)
    }
}

/// Holds a fragment, or yields the packet that it makes whole.
fn reassemble<'a>(
    packet: &Packet<'a>,
    pools: &mut FragmentPools<'a>,
    depth: usize,
    ip: IpPacket<'a>,
    piece: FragmentPiece,
) -> Result<IpPacket<'a>, Stop> {
    if !may_carry_traffic(ip.protocol) {
        return Err(Stop::Foreign);
    }
    let pool = pools.take(depth).ok_or(Stop::Foreign)?;
    let key = FragmentKey { addresses: ip.addresses, protocol: ip.protocol, id: piece.id };
    let body = pool.insert(packet.timestamp, key, piece, ip.body).ok_or(Stop::Fragment)?;
    let whole = IpPacket { body, ..ip }.past_extensions()?;
    // A fragment header behind a fragment header is a contradiction.
    if whole.fragment.is_some() { Err(Stop::Malformed) } else { Ok(whole) }
}

/// Whether fragments of a protocol are worth holding: those that the walk can read once whole.
fn may_carry_traffic(protocol: u8) -> bool {
    matches!(protocol, PROTOCOL_TCP | PROTOCOL_UDP | PROTOCOL_GRE | PROTOCOL_IPV4 | PROTOCOL_IPV6)
        || matches!(
            IpNumber(protocol),
            IpNumber::IPV6_DESTINATION_OPTIONS
                | IpNumber::IPV6_ROUTE_HEADER
                | IpNumber::AUTHENTICATION_HEADER
        )
}

/// Steps over VLAN tags and MPLS labels to an IP header.
fn to_ip(mut layer: Layer<'_>) -> Result<Layer<'_>, Stop> {
    let mut tags = 0;
    while is_vlan(layer.ethertype) {
        if tags == VLAN_TAGS_MAX {
            return Err(Stop::Foreign);
        }
        tags += 1;
        let (ethertype, extent) = after_vlan_tag(layer.extent).ok_or(Stop::Malformed)?;
        layer = Layer { ethertype, extent };
    }
    match layer.ethertype {
        ETHERTYPE_IPV4 | ETHERTYPE_IPV6 => Ok(layer),
        ETHERTYPE_MPLS | ETHERTYPE_MPLS_MULTICAST => after_labels(layer.extent),
        _ => Err(Stop::Foreign),
    }
}

/// Steps over an MPLS label stack. The labels do not say what they carry; the first nibble does.
fn after_labels(mut extent: Extent<'_>) -> Result<Layer<'_>, Stop> {
    for _ in 0..MPLS_LABELS_MAX {
        let label: &[u8; 4] = extent.head().ok_or(Stop::Malformed)?;
        extent = after(extent, 4)?;
        let is_bottom_of_stack = label[2] & 1 == 1;
        if is_bottom_of_stack {
            return Ok(Layer { ethertype: ethertype_of_ip(extent.bytes)?, extent });
        }
    }
    Err(Stop::Foreign)
}

/// The network layer within an Ethernet frame.
fn ethernet(extent: Extent<'_>) -> Result<Layer<'_>, Stop> {
    let (ethertype, header_bytes) = link_header(LinkType::Ethernet, extent.bytes)?;
    Ok(Layer { ethertype, extent: after(extent, header_bytes)? })
}

/// What a GRE packet carries (RFC 2784, RFC 2890).
fn gre(extent: Extent<'_>) -> Result<Layer<'_>, Stop> {
    let h: &[u8; 4] = extent.head().ok_or(Stop::Malformed)?;
    let (has_checksum, has_routing) = (h[0] & 0x80 != 0, h[0] & 0x40 != 0);
    let (has_key, has_sequence) = (h[0] & 0x20 != 0, h[0] & 0x10 != 0);
    let version = h[1] & 7;
    if has_routing || version != 0 {
        return Err(Stop::Foreign); // RFC 1701's source routes; PPTP
    }
    let options = [has_checksum, has_key, has_sequence].into_iter().filter(|&has| has).count();
    let inner = after(extent, 4 + 4 * options)?;
    match u16::from_be_bytes([h[2], h[3]]) {
        ETHERTYPE_ETHERNET => ethernet(inner),
        // Type I has no header of its own, and no sequence number to tell that it has not.
        ETHERTYPE_ERSPAN if has_sequence => ethernet(after(inner, 8)?),
        ETHERTYPE_ERSPAN => ethernet(inner),
        ETHERTYPE_ERSPAN3 => erspan3(inner),
        ethertype => Ok(Layer { ethertype, extent: inner }),
    }
}

/// What an ERSPAN type III packet carries: twelve bytes of header, eight more when its last bit announces a subheader; a
/// frame type of 2 stands for an IP packet without Ethernet (draft-foschiano-erspan §4.4).
fn erspan3(extent: Extent<'_>) -> Result<Layer<'_>, Stop> {
    let h: &[u8; 12] = extent.head().ok_or(Stop::Malformed)?;
    let has_subheader = h[11] & 1 == 1;
    let frame_type = (h[10] >> 2) & 0x1f;
    let inner = after(extent, if has_subheader { 20 } else { 12 })?;
    match frame_type {
        2 => Ok(Layer { ethertype: ethertype_of_ip(inner.bytes)?, extent: inner }),
        _ => ethernet(inner),
    }
}

/// What a datagram to a tunnel's port carries; `None` when it is an ordinary datagram.
fn udp_tunnel<'a>(datagram: &Datagram<'a>, memcached_ports: &[u16]) -> Result<Option<Layer<'a>>, Stop> {
    let port = datagram.destination.port();
    let is_memcached = |port: u16| memcached_ports.contains(&port);
    if !is_tunnel_port(port) || is_memcached(port) || is_memcached(datagram.source.port()) {
        return Ok(None);
    }
    let extent = Extent { bytes: datagram.payload, wire_bytes: datagram.payload_wire_bytes };
    let Some(h) = extent.head::<8>() else { return Ok(None) };
    if port == PORT_GENEVE {
        let is_version_0 = h[0] >> 6 == 0;
        let option_bytes = usize::from(h[0] & 0x3f) * 4;
        return if is_version_0 { geneve(extent, option_bytes).map(Some) } else { Ok(None) };
    }
    let has_network_id = h[0] & 0x08 != 0; // required by RFC 7348 §5
    if has_network_id { ethernet(after(extent, 8)?).map(Some) } else { Ok(None) }
}

/// What a Geneve packet carries (RFC 8926 §3.4).
fn geneve(extent: Extent<'_>, option_bytes: usize) -> Result<Layer<'_>, Stop> {
    let h: &[u8; 8] = extent.head().ok_or(Stop::Malformed)?;
    let inner = after(extent, 8 + option_bytes)?;
    match u16::from_be_bytes([h[2], h[3]]) {
        ETHERTYPE_ETHERNET => ethernet(inner),
        ethertype => Ok(Layer { ethertype, extent: inner }),
    }
}

/// What follows a header; a header that was not captured to its end stops the walk.
fn after(extent: Extent<'_>, count: usize) -> Result<Extent<'_>, Stop> {
    extent.after(count).ok_or(Stop::Malformed)
}

#[cfg(test)]
#[path = "tunnel_tests.rs"]
mod tests;

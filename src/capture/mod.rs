//! From the wire, or from a recording, to headers.
//!
//! A packet source (`ring` for live traffic, `pcap` for recordings) lends [`Packet`]s; [`decode`] turns each into a
//! [`Segment`], a [`Datagram`] or a counted reason why it is neither. Nothing here knows what memcached is, except that the
//! kernel filter is generated from the targets' addresses and ports.

pub mod block;
#[cfg(test)]
mod builder_tests;
pub mod decode;
pub mod filter;
mod fragment;
pub mod interface;
pub mod ladder;
pub mod pcap;
pub mod ring;
pub mod socket;
mod tunnel;

use crate::model::{Endpoint, Timestamp};

/// How the bytes of a packet begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkType {
    /// Ethernet II (DLT 1).
    Ethernet,
    /// An IP header at once, version told by its first nibble (DLT 101, 12, 228, 229).
    Raw,
    /// BSD loopback: four bytes of address family in the writer's byte order (DLT 0; 108 in network order).
    Null,
    /// Linux cooked capture, sixteen bytes (DLT 113).
    LinuxSll,
    /// Linux cooked capture version 2, twenty bytes (DLT 276).
    LinuxSll2,
    /// No link header: the bytes begin at the network layer, whose EtherType the source knows (the live ring at `tp_net`).
    Network {
        /// EtherType of the network layer.
        ethertype: u16,
    },
}

/// Link-layer bytes from ring or recording, lent for the time of one call.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Capture time.
    pub timestamp: Timestamp,
    /// How `bytes` begin.
    pub link: LinkType,
    /// The captured bytes.
    pub bytes: &'a [u8],
    /// Length on the wire of what `bytes` is the head of; at least `bytes.len()`.
    pub wire_bytes: u32,
}

/// TCP payload of one packet with the header fields that reassembly needs.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Capture time.
    pub timestamp: Timestamp,
    /// Who sent it.
    pub source: Endpoint,
    /// To whom.
    pub destination: Endpoint,
    /// Sequence number of the first payload byte (of the SYN itself, when SYN is set).
    pub seq: u32,
    /// Acknowledgement number; meaningless unless `flags` has ACK.
    pub ack: u32,
    /// FIN SYN RST PSH ACK URG bits as on the wire (ECN bits masked off).
    pub flags: TcpFlags,
    /// The captured payload bytes.
    pub payload: &'a [u8],
    /// Payload length on the wire; more than `payload.len()` when the packet was snapped.
    pub payload_wire_bytes: u32,
}

/// The six classic TCP flags (RFC 9293 §3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: TcpFlags = TcpFlags(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: TcpFlags = TcpFlags(0x02);
    /// Reset.
    pub const RST: TcpFlags = TcpFlags(0x04);
    /// Push.
    pub const PSH: TcpFlags = TcpFlags(0x08);
    /// The acknowledgement number is meant.
    pub const ACK: TcpFlags = TcpFlags(0x10);
    /// The urgent pointer is meant.
    pub const URG: TcpFlags = TcpFlags(0x20);

    /// Whether every flag of `other` is set.
    pub const fn has(self, other: TcpFlags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets.
    pub const fn and(self, other: TcpFlags) -> TcpFlags {
        TcpFlags(self.0 | other.0)
    }
}

/// UDP payload of one packet (or of one reassembled set of IP fragments).
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// Capture time.
    pub timestamp: Timestamp,
    /// Who sent it.
    pub source: Endpoint,
    /// To whom.
    pub destination: Endpoint,
    /// The captured payload bytes, memcached's frame header included.
    pub payload: &'a [u8],
    /// Payload length on the wire.
    pub payload_wire_bytes: u32,
    /// IP identification and UDP checksum in one number: equal in two copies of the same packet (mirror ports), so that
    /// a copy within a millisecond or two can be told from a new datagram.
    pub identity: u64,
}

/// What [`decode`] made of a packet.
#[derive(Clone, Copy, Debug)]
pub enum Decoded<'a> {
    /// TCP.
    Segment(Segment<'a>),
    /// UDP.
    Datagram(Datagram<'a>),
    /// A fragment that is being held until its datagram is whole, or was the one that tells so.
    Fragment,
    /// Not TCP or UDP over IP.
    Foreign,
    /// Headers cut or contradictory.
    Malformed,
}

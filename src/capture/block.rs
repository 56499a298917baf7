//! A retired block of the ring, walked as plain bytes.
//!
//! Promises that no block, however damaged, makes it read outside the bytes it was given, loop, or panic: the walk ends, and
//! says that it ended early. Pure and safe; mapping and returning blocks is the business of `ring`.
//!
//! Layout after linux/if_packet.h: `tpacket_block_desc` at the head of the block, then a chain of `tpacket3_hdr`, each followed
//! by a `sockaddr_ll` and by the packet. All numbers are in the machine's byte order but for `sll_protocol`.

use super::{LinkType, Packet};
use crate::model::Timestamp;

/// Bytes at the head of a block that a walk is not given: version, offset of private data, and the status word that the
/// kernel shares with us and that is read and written by atomic operations only.
pub const BLOCK_PREFIX_BYTES: usize = 12;

/// Bytes of the block's header, prefix included (`tpacket_block_desc`).
pub const BLOCK_HEADER_BYTES: usize = 48;

/// Bytes of a packet's header in the ring, with the link-layer address behind it.
const PACKET_HEADER_BYTES: usize = 68;

/// Ring bytes that a packet takes besides its captured bytes on an Ethernet interface, alignment included
/// (measured: align8(82 + captured)).
pub const PACKET_OVERHEAD_BYTES: u64 = 86;

// Offsets in the block, prefix included.
const PACKETS: usize = 12;
const FIRST_PACKET: usize = 16;
const BLOCK_BYTES_USED: usize = 20;
const SEQUENCE: usize = 24;
const LAST_SECONDS: usize = 40;
const LAST_NANOS: usize = 44;

const ETHERTYPES_VLAN: [u16; 3] = [0x8100, 0x88a8, 0x9100];
const HARDWARE_ETHERNET: u16 = 1; // linux/if_arp.h
const HARDWARE_LOOPBACK: u16 = 772;
const PACKET_OUTGOING: u8 = 4; // linux/if_packet.h

/// A packet with what the kernel knows about its way.
#[derive(Clone, Copy, Debug)]
pub struct Captured<'a> {
    /// The packet.
    pub packet: Packet<'a>,
    /// Whether this host sent it.
    pub outgoing: bool,
    /// Interface that it crossed; of interest on a ring that covers every interface.
    pub interface_index: u32,
}

/// What a block says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHeader {
    /// Packets in it.
    pub packets: u32,
    /// Its number in the order in which the kernel filled blocks.
    pub sequence: u64,
    /// When its last packet came.
    pub last_packet: Timestamp,
    first_packet: u32,
    bytes_used: u32,
}

impl BlockHeader {
    /// Reads the header of a block that is given without its prefix; nothing when the bytes are too few.
    pub fn read(bytes: &[u8]) -> Option<BlockHeader> {
        let header: &[u8; BLOCK_HEADER_BYTES - BLOCK_PREFIX_BYTES] = bytes.first_chunk()?;
        let word = |offset: usize| u32_at(header, offset - BLOCK_PREFIX_BYTES);
        let sequence =
            u64::from_ne_bytes(std::array::from_fn(|byte| header[SEQUENCE - BLOCK_PREFIX_BYTES + byte]));
        Some(BlockHeader {
            packets: word(PACKETS),
            sequence,
            last_packet: Timestamp::from_parts(word(LAST_SECONDS).into(), word(LAST_NANOS)),
            first_packet: word(FIRST_PACKET),
            bytes_used: word(BLOCK_BYTES_USED),
        })
    }
}

/// How far a block has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where the next packet's header is, in the block with its prefix.
    next: usize,
    /// Packets that have not been seen.
    pub packets_left: u32,
}

/// The packets of a block, in the order of their capture.
#[derive(Clone, Debug)]
pub struct Packets<'a> {
    /// The block without its prefix, up to the last byte that is used.
    bytes: &'a [u8],
    place: Place,
    is_damaged: bool,
}

impl<'a> Packets<'a> {
    /// A walk over a retired block, given without its first [`BLOCK_PREFIX_BYTES`].
    pub fn new(bytes: &'a [u8]) -> Packets<'a> {
        let damaged = Packets { bytes: &[], place: Place { next: 0, packets_left: 0 }, is_damaged: true };
        let Some(header) = BlockHeader::read(bytes) else { return damaged };
        let used =
            (header.bytes_used as usize).checked_sub(BLOCK_PREFIX_BYTES).and_then(|end| bytes.get(..end));
        match used {
            Some(bytes) => Packets {
                bytes,
                place: Place { next: header.first_packet as usize, packets_left: header.packets },
                is_damaged: false,
            },
            None => damaged,
        }
    }

    /// The rest of a walk over the same block.
    pub fn resume(bytes: &'a [u8], place: Place) -> Packets<'a> {
        Packets { place, ..Packets::new(bytes) }
    }

    /// How far the walk has come.
    pub fn place(&self) -> Place {
        self.place
    }

    /// The bytes from the next packet's header on.
    #[inline]
    pub fn rest(&self) -> &'a [u8] {
        self.place
            .next
            .checked_sub(BLOCK_PREFIX_BYTES)
            .and_then(|next| self.bytes.get(next..))
            .unwrap_or_default()
    }

    /// When the next packet came; nothing when the walk is over, or cannot go on.
    pub fn next_timestamp(&self) -> Option<Timestamp> {
        if self.is_over() { None } else { self.read().map(|(captured, _)| captured.packet.timestamp) }
    }

    /// Whether there is nothing more to come.
    pub fn is_over(&self) -> bool {
        self.place.packets_left == 0
    }

    /// Whether the walk ended before its time, because a length or an offset contradicts the block.
    pub fn is_damaged(&self) -> bool {
        self.is_damaged
    }

    /// The packet whose header is at `next`, and the distance to the one behind it.
    #[inline(always)]
    fn read(&self) -> Option<(Captured<'a>, usize)> {
        let entry = self.rest();
        let header: &[u8; PACKET_HEADER_BYTES] = entry.first_chunk()?;
        let captured_bytes = u32_at(header, 12) as usize;
        let wire_bytes = u32_at(header, 16);
        let link_start = usize::from(u16_at(header, 24));
        let network_start = usize::from(u16_at(header, 26));
        let ethertype = u16::from_be(u16_at(header, 50));
        let hardware_type = u16_at(header, 56);

        let link_header_bytes = network_start.checked_sub(link_start)?;
        let from_link = entry.get(link_start..)?.get(..captured_bytes)?;
        // The kernel puts the network header of a packet that this host sends with a tag in band behind the tag, and of one
        // that it receives before it. The Ethernet header tells them apart; the place does not.
        let is_ethernet = hardware_type == HARDWARE_ETHERNET || hardware_type == HARDWARE_LOOPBACK;
        let (link, bytes, skipped) = if is_ethernet && ETHERTYPES_VLAN.contains(&ethertype) {
            (LinkType::Ethernet, from_link, 0)
        } else {
            let network = from_link.get(link_header_bytes..).unwrap_or_default();
            (LinkType::Network { ethertype }, network, link_header_bytes)
        };
        // Both lengths fit: a header's offsets are 16 bits wide, and a packet is no longer than its block.
        let wire_bytes =
            wire_bytes.saturating_sub(u32::try_from(skipped).ok()?).max(u32::try_from(bytes.len()).ok()?);
        let packet = Packet {
            timestamp: Timestamp::from_parts(u32_at(header, 4).into(), u32_at(header, 8)),
            link,
            bytes,
            wire_bytes,
        };
        let captured =
            Captured { packet, outgoing: header[58] == PACKET_OUTGOING, interface_index: u32_at(header, 52) };
        Some((captured, u32_at(header, 0) as usize))
    }
}

impl<'a> Packets<'a> {
    /// The next packet, if it came until then.
    #[inline]
    pub fn next_until(&mut self, last: Timestamp) -> Option<Captured<'a>> {
        if self.is_over() {
            return None;
        }
        let Some((captured, distance)) = self.read() else {
            self.place.packets_left = 0;
            self.is_damaged = true;
            return None;
        };
        if captured.packet.timestamp > last {
            return None;
        }
        self.place.packets_left -= 1;
        // The last packet's distance is 0. Anywhere else it would walk in a circle.
        if self.place.packets_left > 0 && distance < PACKET_HEADER_BYTES {
            self.place.packets_left = 0;
            self.is_damaged = true;
        }
        self.place.next = self.place.next.saturating_add(distance);
        Some(captured)
    }
}

impl<'a> Iterator for Packets<'a> {
    type Item = Captured<'a>;

    #[inline]
    fn next(&mut self) -> Option<Captured<'a>> {
        self.next_until(Timestamp::MAX)
    }
}

fn u32_at<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u16_at<const N: usize>(bytes: &[u8; N], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A packet as the kernel would write it: header, address, 14 bytes of Ethernet, payload.
    #[derive(Clone, Debug)]
    struct Written {
        ethertype: u16,
        hardware_type: u16,
        packet_type: u8,
        captured: Vec<u8>,
        wire_bytes: u32,
        link_header_bytes: u16,
    }

    impl Written {
        fn ipv4(captured: Vec<u8>) -> Written {
            let wire_bytes = captured.len() as u32;
            Written {
                ethertype: 0x0800,
                hardware_type: 1,
                packet_type: 0,
                captured,
                wire_bytes,
                link_header_bytes: 14,
            }
        }
    }

    const FIRST: usize = BLOCK_HEADER_BYTES;

    /// A block without its prefix.
    fn block(packets: &[Written]) -> Vec<u8> {
        let mut block = vec![0u8; FIRST];
        for (index, written) in packets.iter().enumerate() {
            let start = block.len();
            // As the kernel does it: the network header aligned to 16, behind the headers and the link header (or 16 bytes).
            let network = (68 + written.link_header_bytes.max(16)).next_multiple_of(16);
            let link = network - written.link_header_bytes;
            let mut entry = vec![0u8; usize::from(link)];
            entry[4..8].copy_from_slice(&(1000 + index as u32).to_ne_bytes());
            entry[8..12].copy_from_slice(&7u32.to_ne_bytes());
            entry[12..16].copy_from_slice(&(written.captured.len() as u32).to_ne_bytes());
            entry[16..20].copy_from_slice(&written.wire_bytes.to_ne_bytes());
            entry[24..26].copy_from_slice(&link.to_ne_bytes());
            entry[26..28].copy_from_slice(&network.to_ne_bytes());
            entry.resize(usize::from(link).max(68), 0);
            entry[50..52].copy_from_slice(&written.ethertype.to_be_bytes());
            entry[52..56].copy_from_slice(&3u32.to_ne_bytes());
            entry[56..58].copy_from_slice(&written.hardware_type.to_ne_bytes());
            entry[58] = written.packet_type;
            entry.truncate(usize::from(link));
            entry.extend(&written.captured);
            entry.resize(entry.len().next_multiple_of(8), 0);
            if index + 1 < packets.len() {
                let distance = entry.len() as u32;
                entry[0..4].copy_from_slice(&distance.to_ne_bytes());
            }
            block.extend(entry);
            assert!(block.len() > start);
        }
        let used = block.len() as u32;
        block[PACKETS..PACKETS + 4].copy_from_slice(&(packets.len() as u32).to_ne_bytes());
        block[FIRST_PACKET..FIRST_PACKET + 4].copy_from_slice(&(FIRST as u32).to_ne_bytes());
        block[BLOCK_BYTES_USED..BLOCK_BYTES_USED + 4].copy_from_slice(&used.to_ne_bytes());
        block[SEQUENCE..SEQUENCE + 8].copy_from_slice(&42u64.to_ne_bytes());
        block.resize(block.len().next_multiple_of(4096), 0xee);
        block.split_off(BLOCK_PREFIX_BYTES)
    }

    fn walk(bytes: &[u8]) -> (Vec<Captured<'_>>, bool) {
        let mut packets = Packets::new(bytes);
        let seen = packets.by_ref().collect();
        (seen, packets.is_damaged())
    }

    #[test]
    fn packets_begin_at_the_network_header() {
        let mut captured = vec![0xaa; 14];
        captured.extend(b"network");
        let mut snapped = Written::ipv4(captured.clone());
        snapped.wire_bytes = 1514;
        snapped.packet_type = PACKET_OUTGOING;
        let bytes = block(&[Written::ipv4(captured), snapped]);
        let (seen, damaged) = walk(&bytes);
        assert!(!damaged);
        assert_eq!(seen.len(), 2);
        assert_eq!(seen[0].packet.bytes, b"network");
        assert_eq!(seen[0].packet.link, LinkType::Network { ethertype: 0x0800 });
        assert_eq!(seen[0].packet.wire_bytes, 7);
        assert_eq!(seen[0].packet.timestamp, Timestamp::from_parts(1000, 7));
        assert_eq!((seen[0].outgoing, seen[0].interface_index), (false, 3));
        assert_eq!(seen[1].packet.wire_bytes, 1500);
        assert!(seen[1].outgoing);
        assert_eq!(BlockHeader::read(&bytes).unwrap().sequence, 42);
    }

    #[test]
    fn tags_in_band_are_read_from_the_ethernet_header() {
        // Received with the network header before the tag, sent with it behind: the same bytes either way.
        for link_header_bytes in [14, 18] {
            let captured = vec![0x11; 60];
            let written = Written { ethertype: 0x8100, link_header_bytes, ..Written::ipv4(captured.clone()) };
            let bytes = block(&[written]);
            let (seen, damaged) = walk(&bytes);
            assert!(!damaged);
            assert_eq!(seen[0].packet.link, LinkType::Ethernet);
            assert_eq!(seen[0].packet.bytes, captured);
            assert_eq!(seen[0].packet.wire_bytes, 60);
        }
    }

    #[test]
    fn a_packet_cut_within_its_link_header_has_no_bytes() {
        let written = Written { wire_bytes: 100, ..Written::ipv4(vec![0; 6]) };
        let bytes = block(&[written]);
        let (seen, damaged) = walk(&bytes);
        assert!(!damaged);
        assert_eq!((seen[0].packet.bytes.len(), seen[0].packet.wire_bytes), (0, 86));
    }

    #[test]
    fn an_empty_block_is_not_damaged() {
        let bytes = block(&[]);
        assert_eq!(walk(&bytes).0.len(), 0);
        assert!(!walk(&bytes).1);
        assert!(walk(&bytes[..20]).1);
    }

    #[test]
    fn a_circle_ends_the_walk() {
        let mut bytes = block(&[Written::ipv4(vec![1; 100]), Written::ipv4(vec![2; 100])]);
        let distance = FIRST - BLOCK_PREFIX_BYTES;
        bytes[distance..distance + 4].copy_from_slice(&0u32.to_ne_bytes());
        let (seen, damaged) = walk(&bytes);
        assert_eq!((seen.len(), damaged), (1, true));
    }

    fn written() -> impl Strategy<Value = Written> {
        (
            prop::sample::select(vec![0x0800u16, 0x86dd, 0x8100]),
            prop::collection::vec(any::<u8>(), 0..200),
            0u32..3000,
        )
            .prop_map(|(ethertype, captured, more)| Written {
                ethertype,
                wire_bytes: captured.len() as u32 + more,
                ..Written::ipv4(captured)
            })
    }

    proptest! {
        #[test]
        fn whole_blocks_come_back_whole(packets in prop::collection::vec(written(), 0..20)) {
            let bytes = block(&packets);
            let (seen, damaged) = walk(&bytes);
            prop_assert!(!damaged);
            prop_assert_eq!(seen.len(), packets.len());
            for (seen, written) in seen.iter().zip(&packets) {
                let skipped = if written.ethertype == 0x8100 { 0 } else { 14 };
                prop_assert_eq!(seen.packet.bytes, written.captured.get(skipped..).unwrap_or_default());
                prop_assert!(seen.packet.wire_bytes as usize >= seen.packet.bytes.len());
            }
        }

        #[test]
        fn damaged_blocks_end_the_walk(
            packets in prop::collection::vec(written(), 0..20),
            // Offsets where headers are likely hit, as well as any other.
            hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
            near in prop::collection::vec((0usize..120, any::<u8>()), 0..8),
            end in any::<prop::sample::Index>(),
        ) {
            let mut bytes = block(&packets);
            let promised = packets.len();
            for (index, value) in hits {
                let at = index.index(bytes.len());
                bytes[at] = value;
            }
            for (at, value) in near {
                bytes[at] = value;
            }
            bytes.truncate(end.index(bytes.len() + 1));
            let (seen, _) = walk(&bytes);
            // No circle: every step goes forwards by a header at least.
            prop_assert!(seen.len() <= 1 + bytes.len() / PACKET_HEADER_BYTES, "{} of {promised}", seen.len());
            for seen in seen {
                prop_assert!(seen.packet.wire_bytes as usize >= seen.packet.bytes.len());
            }
        }
    }
}

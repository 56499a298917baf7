//! Records of pcap and blocks of pcapng to packets.
//!
//! <https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-05.html>,
//! <https://www.ietf.org/archive/id/draft-ietf-opsawg-pcapng-03.html>

use std::ops::Range;

use pcap_parser::{
    BOM_MAGIC, EPB_MAGIC, IDB_MAGIC, InterfaceDescriptionBlock, OptionCode, PcapHeader, SHB_MAGIC, SPB_MAGIC,
    parse_interfacedescriptionblock_be, parse_interfacedescriptionblock_le, parse_pcap_header,
};

use super::source::Source;
use super::{Damage, Flaw, PACKET_BYTES_MAX, RecordingError};
use crate::capture::LinkType;
use crate::model::Timestamp;

/// Longest block that is read as a whole: a packet with room for its options.
const BLOCK_BYTES_MAX: usize = PACKET_BYTES_MAX + (1 << 20);

/// Interfaces in a section of pcapng. Bounds memory against a hostile file.
const INTERFACES_MAX: usize = 65_536;

const PCAP_HEADER_BYTES: usize = 24;
/// Type of the obsolete packet block, which pcap-parser does not name.
const OBSOLETE_PACKET_BLOCK: u32 = 2;

/// One packet's place in the buffer and what its record says of it.
#[derive(Debug)]
pub(super) struct Record {
    /// Where its bytes lie in the buffer.
    pub(super) bytes: Range<usize>,
    pub(super) timestamp: Timestamp,
    pub(super) wire_bytes: u32,
    pub(super) link: LinkType,
}

/// What the next record of a file is.
pub(super) enum Step {
    Packet(Record),
    /// A packet of the link type with this number.
    Unsupported(u32),
    End,
}

#[derive(Debug)]
pub(super) enum Format {
    Pcap(PcapFormat),
    PcapNg(PcapNgFormat),
}

impl Format {
    /// Tells the format by its first bytes and reads its head.
    pub(super) fn read(source: &mut Source, name: &str) -> Result<Format, RecordingError> {
        let damaged = |flaw: Flaw| flaw.into_error(name, 0, 0);
        if !source.fill(4).map_err(damaged)? {
            let found = if source.bytes().is_empty() { "it is empty" } else { "it has less than four bytes" };
            return Err(RecordingError::NotARecording { path: name.to_owned(), found: found.to_owned() });
        }
        let magic = source.bytes().first_chunk::<4>().copied().unwrap_or_default();
        if u32::from_le_bytes(magic) == SHB_MAGIC {
            let mut format = PcapNgFormat::default();
            format.read_section(source).map_err(damaged)?;
            return Ok(Format::PcapNg(format));
        }
        // Before asking for a whole header: what has no known magic may well be shorter than one.
        if !is_pcap_magic(magic) {
            let found = describe_magic(magic);
            return Err(RecordingError::NotARecording { path: name.to_owned(), found });
        }
        PcapFormat::read(source).map(Format::Pcap).map_err(damaged)
    }

    #[inline]
    pub(super) fn next_step(&mut self, source: &mut Source) -> Result<Step, Flaw> {
        match self {
            Format::Pcap(format) => format.next_step(source),
            Format::PcapNg(format) => format.next_step(source),
        }
    }
}

/// A pcap file: one link type, one resolution.
#[derive(Debug)]
pub(super) struct PcapFormat {
    is_big_endian: bool,
    /// 16; 24 in the variant of A. Kuznetzov.
    record_header_bytes: usize,
    nanos_per_fraction: u32,
    link: Result<LinkType, u32>,
}

impl PcapFormat {
    fn read(source: &mut Source) -> Result<PcapFormat, Flaw> {
        if !source.fill(PCAP_HEADER_BYTES)? {
            return Err(source.cut_short(PCAP_HEADER_BYTES));
        }
        let Ok((_, header)) = parse_pcap_header(source.bytes()) else {
            return Err(Damage::Header { what: "the head of the file" }.into());
        };
        source.consume(PCAP_HEADER_BYTES);
        Ok(PcapFormat::of(&header))
    }

    fn of(header: &PcapHeader) -> PcapFormat {
        PcapFormat {
            is_big_endian: header.is_bigendian(),
            record_header_bytes: if header.is_modified_format() { 24 } else { 16 },
            nanos_per_fraction: if header.is_nanosecond_precision() { 1 } else { 1000 },
            // The upper half tells whether frames end with their checksum, which the IP length excludes anyway.
            link: link_type(header.network.0.cast_unsigned() & 0xffff),
        }
    }

    #[inline]
    fn next_step(&mut self, source: &mut Source) -> Result<Step, Flaw> {
        let header_bytes = self.record_header_bytes;
        if !source.begin_record(header_bytes)? {
            return Ok(Step::End);
        }
        let Some(header) = source.bytes().first_chunk::<16>() else {
            return Err(source.cut_short(header_bytes));
        };
        if *header == [0; 16] {
            return Err(Damage::Zeros.into());
        }
        let number = |index: usize| number(header, index, self.is_big_endian);
        let (secs, fraction, captured, wire_bytes) = (number(0), number(4), number(8), number(12));
        let captured_bytes = captured as usize;
        if captured_bytes > PACKET_BYTES_MAX {
            let bytes_max = PACKET_BYTES_MAX as u64;
            return Err(Damage::PacketLength { claimed_bytes: u64::from(captured), bytes_max }.into());
        }
        if !source.fill(header_bytes + captured_bytes)? {
            return Err(source.cut_short(header_bytes + captured_bytes));
        }
        let bytes = source.start() + header_bytes..source.start() + header_bytes + captured_bytes;
        source.consume(header_bytes + captured_bytes);
        let nanos =
            u64::from(secs) * 1_000_000_000 + u64::from(fraction) * u64::from(self.nanos_per_fraction);
        let timestamp = Timestamp::from_nanos(nanos);
        Ok(match self.link {
            Ok(link) => Step::Packet(Record { bytes, timestamp, wire_bytes: wire_bytes.max(captured), link }),
            Err(number) => Step::Unsupported(number),
        })
    }
}

/// A pcapng file: what its current section has told so far.
#[derive(Debug, Default)]
pub(super) struct PcapNgFormat {
    is_big_endian: bool,
    interfaces: Vec<Interface>,
    /// Time of the last packet, which stands in for that of simple packets: they carry none.
    last_timestamp: Timestamp,
}

#[derive(Clone, Copy, Debug)]
struct Interface {
    link: Result<LinkType, u32>,
    clock: Clock,
    /// Greatest captured length; 0 for no limit.
    snap_bytes: u32,
}

impl PcapNgFormat {
    fn next_step(&mut self, source: &mut Source) -> Result<Step, Flaw> {
        while source.begin_record(8)? {
            let kind = number(source.bytes(), 0, self.is_big_endian);
            match kind {
                SHB_MAGIC => self.read_section(source)?,
                IDB_MAGIC => self.read_interface(source)?,
                EPB_MAGIC | SPB_MAGIC | OBSOLETE_PACKET_BLOCK => {
                    return self.read_packet(source, kind);
                }
                _ => self.skip_block(source)?,
            }
        }
        Ok(Step::End)
    }

    /// Reads a section header, which sets the byte order and forgets the interfaces.
    fn read_section(&mut self, source: &mut Source) -> Result<(), Flaw> {
        if !source.fill(12)? {
            return Err(source.cut_short(12));
        }
        self.is_big_endian = match number(source.bytes(), 8, false) {
            BOM_MAGIC => false,
            swapped if swapped.swap_bytes() == BOM_MAGIC => true,
            _ => return Err(Damage::Header { what: "the byte order of a section" }.into()),
        };
        let block_bytes = self.whole_block(source, 28)?;
        let major_version = number(source.bytes(), 12, self.is_big_endian);
        let major_version = if self.is_big_endian { major_version >> 16 } else { major_version & 0xffff };
        if major_version != 1 {
            return Err(Damage::Header { what: "a section of an unknown version of pcapng" }.into());
        }
        self.interfaces.clear();
        source.consume(block_bytes);
        Ok(())
    }

    fn read_interface(&mut self, source: &mut Source) -> Result<(), Flaw> {
        let block_bytes = self.whole_block(source, 20)?;
        let block = &source.bytes()[..block_bytes];
        let parsed = if self.is_big_endian {
            parse_interfacedescriptionblock_be(block)
        } else {
            parse_interfacedescriptionblock_le(block)
        };
        let what = "the description of an interface";
        let (_, description) = parsed.map_err(|_| Damage::Header { what })?;
        if self.interfaces.len() == INTERFACES_MAX {
            return Err(Damage::Header { what: "one interface more than 65,536" }.into());
        }
        let interface = self.interface(&description);
        self.interfaces.push(interface);
        source.consume(block_bytes);
        Ok(())
    }

    /// Options are read from their raw values: pcap-parser takes a time offset for little-endian always, and knows no
    /// resolution in powers of two.
    fn interface(&self, description: &InterfaceDescriptionBlock<'_>) -> Interface {
        let value = |code: OptionCode| {
            let option = description.options.iter().find(|option| option.code == code)?;
            option.as_bytes().ok()
        };
        let resolution = value(OptionCode::IfTsresol).and_then(|value| value.first().copied());
        let offset_secs = value(OptionCode::IfTsoffset).and_then(|value| value.first_chunk()).map(|&bytes| {
            if self.is_big_endian { i64::from_be_bytes(bytes) } else { i64::from_le_bytes(bytes) }
        });
        Interface {
            link: link_type(description.linktype.0.cast_unsigned() & 0xffff),
            clock: Clock::new(resolution, offset_secs.unwrap_or(0)),
            snap_bytes: description.snaplen,
        }
    }

    fn read_packet(&mut self, source: &mut Source, kind: u32) -> Result<Step, Flaw> {
        let fixed_bytes = if kind == SPB_MAGIC { 12 } else { 28 };
        let block_bytes = self.whole_block(source, fixed_bytes + 4)?;
        let block = &source.bytes()[..block_bytes];
        let number = |index: usize| number(block, index, self.is_big_endian);
        let interface_index = match kind {
            EPB_MAGIC => number(8),
            SPB_MAGIC => 0,
            _ if self.is_big_endian => number(8) >> 16, // sixteen bits, then a count of drops
            _ => number(8) & 0xffff,
        };
        let described = self.interfaces.len();
        let Some(interface) = self.interfaces.get(interface_index as usize) else {
            return Err(Damage::Interface { interface: interface_index, described }.into());
        };
        let room = block_bytes - fixed_bytes - 4;
        let (captured, wire_bytes) = if kind == SPB_MAGIC {
            (interface.snapped(number(8), room), number(8))
        } else {
            (number(20), number(24))
        };
        if captured as usize > room.min(PACKET_BYTES_MAX) {
            let bytes_max = room.min(PACKET_BYTES_MAX) as u64;
            return Err(Damage::PacketLength { claimed_bytes: u64::from(captured), bytes_max }.into());
        }
        if kind != SPB_MAGIC {
            let ticks = u64::from(number(12)) << 32 | u64::from(number(16));
            self.last_timestamp = interface.clock.timestamp(ticks);
        }
        let start = source.start() + fixed_bytes;
        let bytes = start..start + captured as usize;
        let (timestamp, wire_bytes) = (self.last_timestamp, wire_bytes.max(captured));
        let step = match interface.link {
            Ok(link) => Step::Packet(Record { bytes, timestamp, wire_bytes, link }),
            Err(number) => Step::Unsupported(number),
        };
        source.consume(block_bytes);
        Ok(step)
    }

    /// Makes the block at hand present as a whole, and checks its length against the repetition at its end. The block's
    /// length, at least `bytes_min`.
    #[inline]
    fn whole_block(&self, source: &mut Source, bytes_min: usize) -> Result<usize, Flaw> {
        let claimed = self.block_length(source)?;
        let block_bytes = claimed as usize;
        let damage = Damage::BlockLength { claimed_bytes: u64::from(claimed) };
        if block_bytes < bytes_min || block_bytes > BLOCK_BYTES_MAX {
            return Err(damage.into());
        }
        if !source.fill(block_bytes)? {
            return Err(source.cut_short(block_bytes));
        }
        if number(source.bytes(), block_bytes - 4, self.is_big_endian) != claimed {
            return Err(damage.into());
        }
        Ok(block_bytes)
    }

    /// Steps over a block of a kind that we do not read, however long it is.
    fn skip_block(&self, source: &mut Source) -> Result<(), Flaw> {
        let claimed = self.block_length(source)?;
        if !source.skip(u64::from(claimed) - 4)? || !source.fill(4)? {
            let present_bytes = source.record_bytes();
            return Err(Damage::CutShort { present_bytes, expected_bytes: u64::from(claimed) }.into());
        }
        if number(source.bytes(), 0, self.is_big_endian) != claimed {
            return Err(Damage::BlockLength { claimed_bytes: u64::from(claimed) }.into());
        }
        source.consume(4);
        Ok(())
    }

    #[inline]
    fn block_length(&self, source: &Source) -> Result<u32, Flaw> {
        let claimed = number(source.bytes(), 4, self.is_big_endian);
        if claimed < 12 || !claimed.is_multiple_of(4) {
            return Err(Damage::BlockLength { claimed_bytes: u64::from(claimed) }.into());
        }
        Ok(claimed)
    }
}

impl Interface {
    /// Captured length of a simple packet, which only tells its length on the wire. Without a limit of the interface it
    /// is as long as its block has room for.
    fn snapped(&self, wire_bytes: u32, room: usize) -> u32 {
        let limit = if self.snap_bytes == 0 { u32::MAX } else { self.snap_bytes };
        wire_bytes.min(limit).min(u32::try_from(room).unwrap_or(u32::MAX))
    }
}

/// How an interface of pcapng counts time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Clock {
    tick: Tick,
    offset_nanos: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tick {
    /// So many nanoseconds.
    Nanos(u64),
    /// So many to the nanosecond.
    PerNano(u64),
    /// Two to the power of this many to the second.
    PowerOfTwo(u32),
}

impl Clock {
    /// From the options `if_tsresol` (microseconds when it is missing) and `if_tsoffset`.
    fn new(resolution: Option<u8>, offset_secs: i64) -> Clock {
        let resolution = resolution.unwrap_or(6);
        let exponent = u32::from(resolution & 0x7f);
        let tick = match exponent {
            _ if resolution & 0x80 != 0 => Tick::PowerOfTwo(exponent),
            0..=9 => Tick::Nanos(10u64.pow(9 - exponent)),
            _ => Tick::PerNano(10u64.checked_pow(exponent - 9).unwrap_or(u64::MAX)),
        };
        Clock { tick, offset_nanos: offset_secs.saturating_mul(1_000_000_000) }
    }

    #[inline]
    fn timestamp(self, ticks: u64) -> Timestamp {
        let nanos = match self.tick {
            Tick::Nanos(nanos) => ticks.saturating_mul(nanos),
            Tick::PerNano(count) => ticks / count,
            Tick::PowerOfTwo(exponent) => {
                let nanos = (u128::from(ticks) * 1_000_000_000) >> exponent;
                u64::try_from(nanos).unwrap_or(u64::MAX)
            }
        };
        Timestamp::from_nanos(nanos.saturating_add_signed(self.offset_nanos))
    }
}

/// The number in the four bytes at `index`, 0 when they are not there (callers have made sure that they are).
#[inline]
fn number(bytes: &[u8], index: usize, is_big_endian: bool) -> u32 {
    let four = bytes.get(index..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default();
    if is_big_endian { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) }
}

/// The link type of a number in a file's header, or the number again when we do not read it.
fn link_type(number: u32) -> Result<LinkType, u32> {
    match number {
        0 | 108 => Ok(LinkType::Null),
        1 => Ok(LinkType::Ethernet),
        12 | 14 | 101 | 228 | 229 => Ok(LinkType::Raw), // 12 and 14 are what some systems write for 101
        113 => Ok(LinkType::LinuxSll),
        276 => Ok(LinkType::LinuxSll2),
        _ => Err(number),
    }
}

fn is_pcap_magic(magic: [u8; 4]) -> bool {
    let (little, big) = (u32::from_le_bytes(magic), u32::from_be_bytes(magic));
    let is_standard = |magic| matches!(magic, 0xa1b2_c3d4 | 0xa1b2_3c4d);
    is_standard(little) || is_standard(big) || little == 0xa1b2_cd34
}

/// What a file is that is not a recording, as far as its first bytes tell.
fn describe_magic(magic: [u8; 4]) -> String {
    let known = match magic {
        [0xfd, b'7', b'z', b'X'] => Some("xz"),
        [b'B', b'Z', b'h', _] => Some("bzip2"),
        [0x04, 0x22, 0x4d, 0x18] => Some("lz4"),
        [b'P', b'K', ..] => Some("zip"),
        _ => None,
    };
    match known {
        Some(name) => format!("it is compressed with {name}, decompress it first"),
        None if magic.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace()) => {
            format!("it is text that begins with {:?}", String::from_utf8_lossy(&magic))
        }
        None => {
            let [a, b, c, d] = magic;
            format!("it begins with the bytes {a:02x} {b:02x} {c:02x} {d:02x}")
        }
    }
}

//! Recordings: pcap and pcapng, plain or compressed, as a source of packets.
//!
//! Reads every byte order, resolution and link type that [`LinkType`] names; steps over blocks and options that it does not
//! know; accepts packets that were cut when recorded. What was readable before a damage is yielded first, then an error
//! that says where and what. Headers of files and interfaces are read by `pcap-parser`; packet records, of which there
//! are millions, by the few lines here, because its blocks allocate their options. Nothing is allocated per packet.
//!
//! Left out: seeking, writing, and guessing where the next packet might begin after a damage.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pcap_parser::{
    BOM_MAGIC, EPB_MAGIC, IDB_MAGIC, InterfaceDescriptionBlock, OptionCode, PcapHeader, SHB_MAGIC, SPB_MAGIC,
    parse_interfacedescriptionblock_be, parse_interfacedescriptionblock_le, parse_pcap_header,
};
use thiserror::Error;

use super::{LinkType, Packet};
use crate::model::Timestamp;

/// Longest packet that is believed. BIG TCP makes frames of 512 KiB; a length beyond this is a damaged one.
pub const PACKET_BYTES_MAX: usize = 64 << 20;

/// Longest block that is read as a whole: a packet with room for its options.
const BLOCK_BYTES_MAX: usize = PACKET_BYTES_MAX + (1 << 20);

/// Interfaces in a section of pcapng. Bounds memory against a hostile file.
const INTERFACES_MAX: usize = 65_536;

/// Buffer between file and packets: small enough to stay in the second-level cache, large enough to make reads cheap.
const BUFFER_BYTES: usize = 256 << 10;

/// What is read at first, so that a thousand recordings waiting for their turn hold little memory.
const FIRST_READ_BYTES: usize = 4 << 10;

/// Buffer of compressed bytes.
const COMPRESSED_BUFFER_BYTES: usize = 64 << 10;

const PCAP_HEADER_BYTES: usize = 24;
/// Type of the obsolete packet block, which pcap-parser does not name.
const OBSOLETE_PACKET_BLOCK: u32 = 2;

/// Why a recording cannot be read, or not to its end.
#[derive(Debug, Error)]
pub enum RecordingError {
    /// The file cannot be opened.
    #[error("cannot open {path}: {source}; check the name and whether you may read the file")]
    Open {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The system failed to deliver bytes.
    #[error("cannot read {path} at byte {offset}: {source}")]
    Read {
        /// The file.
        path: String,
        /// Offset in the recording, after decompression.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The file begins like nothing that we read.
    #[error(
        "{path} is not a recording: {found}; memtap reads pcap and pcapng, also compressed with gzip or zstd"
    )]
    NotARecording {
        /// The file.
        path: String,
        /// What was found instead.
        found: String,
    },
    /// The file contradicts itself or ends too soon. Every packet before the damage was yielded.
    #[error("{path} is damaged at byte {offset}, after {packets} packets: {damage}; {}", damage.advice())]
    Damaged {
        /// The file.
        path: String,
        /// Offset of the record or block that cannot be read; in the recording, after decompression.
        offset: u64,
        /// Packets that were yielded before.
        packets: u64,
        /// What is wrong.
        damage: Damage,
    },
}

/// What is wrong with a recording.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Damage {
    /// The last record or block is incomplete.
    #[error("it ends in the middle of a record ({present_bytes} of {expected_bytes} bytes)")]
    CutShort {
        /// Bytes that are there.
        present_bytes: u64,
        /// Bytes that there should be, as far as they are known.
        expected_bytes: u64,
    },
    /// A packet's length is impossible.
    #[error("a packet claims {claimed_bytes} bytes where at most {bytes_max} are possible")]
    PacketLength {
        /// What its header says.
        claimed_bytes: u64,
        /// What it could be at most.
        bytes_max: u64,
    },
    /// A block's length is impossible, or differs from its repetition at the block's end.
    #[error("a block claims {claimed_bytes} bytes, which is impossible or contradicted at its end")]
    BlockLength {
        /// What its header says.
        claimed_bytes: u64,
    },
    /// A packet names an interface that was not described.
    #[error("a packet names interface {interface} where {described} are described")]
    Interface {
        /// The interface named.
        interface: u32,
        /// Number of interfaces described so far.
        described: usize,
    },
    /// The head of a section or the description of an interface cannot be read.
    #[error("{what} cannot be read")]
    Header {
        /// Which.
        what: &'static str,
    },
    /// Zeros where a record should begin: space that was reserved and never written.
    #[error("there are only zeros where a packet should begin")]
    Zeros,
    /// The compressed data are damaged or end too soon.
    #[error("decompression failed ({message})")]
    Compression {
        /// What the decompressor said.
        message: String,
    },
}

impl Damage {
    /// What to do about it.
    fn advice(&self) -> &'static str {
        match self {
            Damage::CutShort { .. } => {
                "the recorder was interrupted, or is still writing: wait for it or copy the file again"
            }
            Damage::Zeros => "the recorder was interrupted: the figures cover what precedes",
            Damage::Compression { .. } => {
                "copy the file again, or decompress it by hand to see how far it goes"
            }
            _ => "copy the file again; the figures cover what precedes",
        }
    }
}

/// How far a recording was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes taken from the file (compressed ones, when it is compressed); runs ahead of the packets by a buffer.
    pub read_bytes: u64,
    /// Size of the file; `None` for standard input and pipes.
    pub total_bytes: Option<u64>,
}

/// Packets that were skipped because their link type is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnsupportedLinkType {
    /// Number of the link type (<https://www.tcpdump.org/linktypes.html>).
    pub number: u32,
    /// Packets of that type.
    pub packets: u64,
}

impl fmt::Display for UnsupportedLinkType {
    /// `12 packets of link type 127 (802.11 with radiotap header) skipped`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} packets of link type {}", self.packets, self.number)?;
        if let Some(name) = link_type_name(self.number) {
            write!(f, " ({name})")?;
        }
        write!(f, " skipped; memtap reads Ethernet, Linux cooked, raw IP and BSD loopback")
    }
}

/// One recording, read from its beginning to its end.
#[derive(Debug)]
pub struct Recording {
    path: String,
    source: Source,
    format: Format,
    packets: u64,
    unsupported: Vec<UnsupportedLinkType>,
    /// After the end or an error there is nothing more.
    is_finished: bool,
    read_bytes: Arc<AtomicU64>,
    total_bytes: Option<u64>,
}

impl Recording {
    /// Opens a recording and reads its head; `-` is standard input. Compression and format are told by the first bytes, not
    /// by the name.
    pub fn open(path: impl AsRef<Path>) -> Result<Recording, RecordingError> {
        let path = path.as_ref();
        if path == Path::new("-") {
            return Recording::from_reader(io::stdin(), "standard input", None);
        }
        let name = path.display().to_string();
        let open = || {
            let file = File::open(path)?;
            let metadata = file.metadata()?;
            Ok((file, metadata.is_file().then_some(metadata.len())))
        };
        match open() {
            Ok((file, total_bytes)) => Recording::from_reader(file, &name, total_bytes),
            Err(source) => Err(RecordingError::Open { path: name, source }),
        }
    }

    /// Reads a recording from any source of bytes; `name` stands in messages.
    pub fn from_reader(
        reader: impl Read + Send + 'static,
        name: &str,
        total_bytes: Option<u64>,
    ) -> Result<Recording, RecordingError> {
        let read_bytes = Arc::new(AtomicU64::new(0));
        let counted = CountedReader { reader, count: Arc::clone(&read_bytes) };
        let mut source = Source::open(counted, name)?;
        let format = Format::read(&mut source, name)?;
        Ok(Recording {
            path: name.to_owned(),
            source,
            format,
            packets: 0,
            unsupported: Vec::new(),
            is_finished: false,
            read_bytes,
            total_bytes,
        })
    }

    /// The next packet, lent until the next call; `None` at the end, and after an error.
    pub fn next_packet(&mut self) -> Result<Option<Packet<'_>>, RecordingError> {
        let record = self.advance()?;
        Ok(record.map(|record| self.packet(&record)))
    }

    /// Packets yielded so far.
    pub fn packets(&self) -> u64 {
        self.packets
    }

    /// How much of the file was read.
    pub fn progress(&self) -> Progress {
        Progress { read_bytes: self.read_bytes.load(Ordering::Relaxed), total_bytes: self.total_bytes }
    }

    /// The link types met so far that are not read, with the number of packets skipped for each.
    pub fn unsupported_link_types(&self) -> &[UnsupportedLinkType] {
        &self.unsupported
    }

    /// Name of the file, for messages.
    pub fn name(&self) -> &str {
        &self.path
    }

    fn advance(&mut self) -> Result<Option<Record>, RecordingError> {
        while !self.is_finished {
            match self.format.next_step(&mut self.source) {
                Ok(Step::Packet(record)) => {
                    self.packets += 1;
                    return Ok(Some(record));
                }
                Ok(Step::Unsupported(number)) => self.count_unsupported(number),
                Ok(Step::End) => self.is_finished = true,
                Err(flaw) => {
                    self.is_finished = true;
                    return Err(flaw.into_error(&self.path, self.source.record_offset, self.packets));
                }
            }
        }
        Ok(None)
    }

    fn packet(&self, record: &Record) -> Packet<'_> {
        Packet {
            timestamp: record.timestamp,
            link: record.link,
            bytes: self.source.buffer.get(record.bytes.clone()).unwrap_or_default(),
            wire_bytes: record.wire_bytes,
        }
    }

    #[cold]
    fn count_unsupported(&mut self, number: u32) {
        match self.unsupported.iter_mut().find(|known| known.number == number) {
            Some(known) => known.packets += 1,
            None => self.unsupported.push(UnsupportedLinkType { number, packets: 1 }),
        }
    }
}

/// Several recordings as one, their packets in order of time.
#[derive(Debug)]
pub struct Recordings {
    files: Vec<Recording>,
    /// The next packet of each file.
    records: Vec<Option<Record>>,
    /// Files whose next packet is known, earliest first; at equal times in the order of their names.
    heads: BinaryHeap<Reverse<(Timestamp, usize)>>,
    /// Files whose next packet has to be found before one can be chosen.
    pending: Vec<usize>,
}

impl Recordings {
    /// Opens them all; the first that cannot be opened is the error.
    pub fn open<P: AsRef<Path>>(paths: &[P]) -> Result<Recordings, RecordingError> {
        let files = paths.iter().map(Recording::open).collect::<Result<Vec<_>, _>>()?;
        Ok(Recordings {
            records: files.iter().map(|_| None).collect(),
            heads: BinaryHeap::with_capacity(files.len()),
            pending: (0..files.len()).rev().collect(),
            files,
        })
    }

    /// The earliest packet that is next in any file, lent until the next call. An error ends the file that it names; the
    /// caller may go on with the others.
    pub fn next_packet(&mut self) -> Result<Option<Packet<'_>>, RecordingError> {
        while let Some(index) = self.pending.pop() {
            if let Some(record) = self.files[index].advance()? {
                self.heads.push(Reverse((record.timestamp, index)));
                self.records[index] = Some(record);
            }
        }
        let Some(Reverse((_, index))) = self.heads.pop() else {
            return Ok(None);
        };
        self.pending.push(index);
        Ok(self.records[index].as_ref().map(|record| self.files[index].packet(record)))
    }

    /// Packets read so far; one for each file may still be waiting for its turn.
    pub fn packets(&self) -> u64 {
        self.files.iter().map(Recording::packets).sum()
    }

    /// How much was read of all files together. The total is unknown when it is for one of them.
    pub fn progress(&self) -> Progress {
        let mut sum = Progress { read_bytes: 0, total_bytes: Some(0) };
        for progress in self.files.iter().map(Recording::progress) {
            sum.read_bytes += progress.read_bytes;
            sum.total_bytes = sum.total_bytes.zip(progress.total_bytes).map(|(a, b)| a + b);
        }
        sum
    }

    /// The link types that are not read, for each file with such packets: its name, the type, the number.
    pub fn unsupported_link_types(&self) -> impl Iterator<Item = (&str, UnsupportedLinkType)> {
        self.files.iter().flat_map(|file| file.unsupported.iter().map(|&skipped| (file.name(), skipped)))
    }
}

/// One packet's place in the buffer and what its record says of it.
#[derive(Debug)]
struct Record {
    bytes: Range<usize>,
    timestamp: Timestamp,
    wire_bytes: u32,
    link: LinkType,
}

/// What the next record of a file is.
enum Step {
    Packet(Record),
    /// A packet of the link type with this number.
    Unsupported(u32),
    End,
}

/// Why a step failed, before file and place are named.
#[derive(Debug)]
enum Flaw {
    Read(io::Error),
    Damage(Damage),
}

impl Flaw {
    #[cold]
    fn into_error(self, path: &str, offset: u64, packets: u64) -> RecordingError {
        let path = path.to_owned();
        match self {
            Flaw::Read(source) => RecordingError::Read { path, offset, source },
            Flaw::Damage(damage) => RecordingError::Damaged { path, offset, packets, damage },
        }
    }
}

impl From<Damage> for Flaw {
    fn from(damage: Damage) -> Flaw {
        Flaw::Damage(damage)
    }
}

/// Counts what is taken from the file.
struct CountedReader<R> {
    reader: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for CountedReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.count.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// Bytes of a recording, decompressed, in one buffer that is refilled from behind.
struct Source {
    reader: Box<dyn Read + Send>,
    is_compressed: bool,
    buffer: Vec<u8>,
    /// Read and not yet consumed: `buffer[start..end]`.
    start: usize,
    end: usize,
    /// Offset in the recording of `buffer[start]`.
    offset: u64,
    /// Offset of the record or block at hand, for messages.
    record_offset: u64,
    is_at_end: bool,
    /// An error of the reader, kept until the bytes before it are used up.
    failure: Option<io::Error>,
}

impl Source {
    /// Looks at the first bytes and puts a decompressor between when they ask for one.
    fn open(mut reader: impl Read + Send + 'static, name: &str) -> Result<Source, RecordingError> {
        let mut head = Vec::with_capacity(4);
        if let Err(source) = reader.by_ref().take(4).read_to_end(&mut head) {
            return Err(RecordingError::Read { path: name.to_owned(), offset: 0, source });
        }
        let magic = head.first_chunk::<4>().copied();
        let whole = Cursor::new(head).chain(reader);
        let compressed = |reader| BufReader::with_capacity(COMPRESSED_BUFFER_BYTES, reader);
        let (reader, is_compressed): (Box<dyn Read + Send>, bool) = match magic {
            Some([0x1f, 0x8b, ..]) => {
                (Box::new(flate2::bufread::MultiGzDecoder::new(compressed(whole))), true)
            }
            // A frame, or a frame to be skipped, with which parallel compressors begin.
            Some([0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18]) => {
                match zstd::stream::read::Decoder::with_buffer(compressed(whole)) {
                    Ok(decoder) => (Box::new(decoder), true),
                    Err(source) => {
                        return Err(RecordingError::Read { path: name.to_owned(), offset: 0, source });
                    }
                }
            }
            _ => (Box::new(whole), false),
        };
        Ok(Source {
            reader,
            is_compressed,
            buffer: vec![0; BUFFER_BYTES],
            start: 0,
            end: 0,
            offset: 0,
            record_offset: 0,
            is_at_end: false,
            failure: None,
        })
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Whether there are `needed` bytes, after reading as many as that takes.
    #[inline]
    fn fill(&mut self, needed: usize) -> Result<bool, Flaw> {
        if self.end - self.start >= needed { Ok(true) } else { self.refill(needed) }
    }

    /// Fills for the fixed part of a record or block that begins here; false at the end of the recording.
    #[inline]
    fn begin_record(&mut self, header_bytes: usize) -> Result<bool, Flaw> {
        self.record_offset = self.offset;
        if self.fill(header_bytes)? {
            Ok(true)
        } else if self.bytes().is_empty() {
            Ok(false)
        } else {
            Err(self.cut_short(header_bytes))
        }
    }

    #[inline]
    fn consume(&mut self, count: usize) {
        self.start += count;
        self.offset += count as u64;
    }

    #[cold]
    fn refill(&mut self, needed: usize) -> Result<bool, Flaw> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        while self.end < needed && !self.is_at_end && self.failure.is_none() {
            self.read_once(needed);
        }
        match self.failure.take() {
            Some(error) if self.end < needed => Err(self.read_flaw(error)),
            failure => {
                self.failure = failure;
                Ok(self.end >= needed)
            }
        }
    }

    /// Reads what the reader has. The buffer grows by doubling and only when it is full of bytes that exist, so that a
    /// length in a damaged file does not make us allocate it.
    fn read_once(&mut self, needed: usize) {
        if self.end == self.buffer.len() {
            let bytes = needed.min(self.buffer.len() * 2);
            self.buffer.resize(bytes, 0);
        }
        let is_first = self.offset == 0 && self.end < FIRST_READ_BYTES;
        let limit = if is_first { FIRST_READ_BYTES.max(needed) } else { usize::MAX };
        let limit = limit.min(self.buffer.len());
        match self.reader.read(&mut self.buffer[self.end..limit]) {
            Ok(0) => self.is_at_end = true,
            Ok(count) => self.end += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => self.failure = Some(error),
        }
    }

    /// A failing decompressor is a damage; a failing system is not.
    fn read_flaw(&self, error: io::Error) -> Flaw {
        if self.is_compressed && error.raw_os_error().is_none() {
            Flaw::Damage(Damage::Compression { message: error.to_string() })
        } else {
            Flaw::Read(error)
        }
    }

    /// Steps over `count` bytes without holding them all; false when they are not all there.
    fn skip(&mut self, count: u64) -> Result<bool, Flaw> {
        let mut left = count;
        while left > 0 {
            if !self.fill(1)? {
                return Ok(false);
            }
            let step = usize::try_from(left).unwrap_or(usize::MAX).min(self.end - self.start);
            self.consume(step);
            left -= step as u64;
        }
        Ok(true)
    }

    /// The flaw of a record of which only a part is there.
    #[cold]
    fn cut_short(&self, expected_bytes: usize) -> Flaw {
        let present_bytes = (self.end - self.start) as u64;
        Damage::CutShort { present_bytes, expected_bytes: expected_bytes as u64 }.into()
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("offset", &self.offset).finish_non_exhaustive()
    }
}

#[derive(Debug)]
enum Format {
    Pcap(PcapFormat),
    PcapNg(PcapNgFormat),
}

impl Format {
    /// Tells the format by its first bytes and reads its head.
    fn read(source: &mut Source, name: &str) -> Result<Format, RecordingError> {
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
    fn next_step(&mut self, source: &mut Source) -> Result<Step, Flaw> {
        match self {
            Format::Pcap(format) => format.next_step(source),
            Format::PcapNg(format) => format.next_step(source),
        }
    }
}

/// A pcap file: one link type, one resolution.
#[derive(Debug)]
struct PcapFormat {
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
        let bytes = source.start + header_bytes..source.start + header_bytes + captured_bytes;
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
struct PcapNgFormat {
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
        let start = source.start + fixed_bytes;
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
            let present_bytes = source.offset - source.record_offset + source.bytes().len() as u64;
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

/// Name of a link type that is likely to be met and is not read.
fn link_type_name(number: u32) -> Option<&'static str> {
    match number {
        9 => Some("PPP"),
        50 | 51 => Some("PPP in HDLC or PPPoE"),
        105 | 127 => Some("802.11"),
        147..=162 => Some("private use"),
        189 | 220 | 249 => Some("USB"),
        239 => Some("NFLOG"),
        247 => Some("InfiniBand"),
        252 => Some("Wireshark upper-layer export"),
        253 => Some("netlink"),
        _ => None,
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

#[cfg(test)]
#[path = "pcap_tests.rs"]
mod tests;

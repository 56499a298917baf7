//! Recordings: pcap and pcapng, plain or compressed, as a source of packets.
//!
//! Reads every byte order, resolution and link type that [`LinkType`](super::LinkType) names; steps over blocks and options that it does not
//! know; accepts packets that were cut when recorded. What was readable before a damage is yielded first, then an error
//! that says where and what. Headers of files and interfaces are read by `pcap-parser`; packet records, of which there
//! are millions, by the few lines here, because its blocks allocate their options. Nothing is allocated per packet.
//!
//! Left out: seeking, writing, and guessing where the next packet might begin after a damage.

mod format;
mod source;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;

use self::format::{Format, Record, Step};
use self::source::{CountedReader, Source};
use super::Packet;
use crate::model::Timestamp;

/// Longest packet that is believed. BIG TCP makes frames of 512 KiB; a length beyond this is a damaged one.
pub const PACKET_BYTES_MAX: usize = 64 << 20;

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
        let counted = CountedReader::new(reader, Arc::clone(&read_bytes));
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
                    return Err(flaw.into_error(&self.path, self.source.record_offset(), self.packets));
                }
            }
        }
        Ok(None)
    }

    fn packet(&self, record: &Record) -> Packet<'_> {
        Packet {
            timestamp: record.timestamp,
            link: record.link,
            bytes: self.source.lend(&record.bytes),
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
        paths.iter().map(Recording::open).collect::<Result<_, _>>().map(Recordings::new)
    }

    /// Of recordings that are open, none of whose packets was asked for yet.
    pub fn new(files: Vec<Recording>) -> Recordings {
        Recordings {
            records: files.iter().map(|_| None).collect(),
            heads: BinaryHeap::with_capacity(files.len()),
            pending: (0..files.len()).rev().collect(),
            files,
        }
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

#[cfg(test)]
#[path = "pcap_tests.rs"]
mod tests;

//! The bytes of a recording, decompressed, through one buffer.

use std::fmt;
use std::io::{self, BufReader, Cursor, Read};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Damage, Flaw, RecordingError};

/// Buffer between file and packets: small enough to stay in the second-level cache, large enough to make reads cheap.
const BUFFER_BYTES: usize = 256 << 10;

/// What is read at first, so that a thousand recordings waiting for their turn hold little memory.
const FIRST_READ_BYTES: usize = 4 << 10;

/// Buffer of compressed bytes.
const COMPRESSED_BUFFER_BYTES: usize = 64 << 10;

/// Counts what is taken from the file.
pub(super) struct CountedReader<R> {
    reader: R,
    count: Arc<AtomicU64>,
}

impl<R> CountedReader<R> {
    pub(super) fn new(reader: R, count: Arc<AtomicU64>) -> CountedReader<R> {
        CountedReader { reader, count }
    }
}

impl<R: Read> Read for CountedReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.count.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// Bytes of a recording, decompressed, in one buffer that is refilled from behind.
pub(super) struct Source {
    reader: Box<dyn Read + Send>,
    is_compressed: bool,
    buffer: Vec<u8>,
    /// Read and not yet consumed: `buffer[start..end]`.
    start: usize,
    end: usize,
    /// Offset in the recording of `buffer[start]`.
    pub(super) offset: u64,
    /// Offset of the record or block at hand, for messages.
    record_offset: u64,
    is_at_end: bool,
    /// An error of the reader, kept until the bytes before it are used up.
    failure: Option<io::Error>,
}

impl Source {
    /// Looks at the first bytes and puts a decompressor between when they ask for one.
    pub(super) fn open(mut reader: impl Read + Send + 'static, name: &str) -> Result<Source, RecordingError> {
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

    /// What was read and not yet consumed.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Where [`bytes`](Source::bytes) begin in the buffer.
    pub(super) fn start(&self) -> usize {
        self.start
    }

    /// Bytes of the buffer, consumed or not; they stay in their place until the next `fill`.
    pub(super) fn lend(&self, range: &Range<usize>) -> &[u8] {
        self.buffer.get(range.clone()).unwrap_or_default()
    }

    /// Offset of the record or block at hand.
    pub(super) fn record_offset(&self) -> u64 {
        self.record_offset
    }

    /// Bytes of the record or block at hand that are there, consumed or not.
    pub(super) fn record_bytes(&self) -> u64 {
        self.offset - self.record_offset + self.bytes().len() as u64
    }

    /// Whether there are `needed` bytes, after reading as many as that takes.
    #[inline]
    pub(super) fn fill(&mut self, needed: usize) -> Result<bool, Flaw> {
        if self.end - self.start >= needed { Ok(true) } else { self.refill(needed) }
    }

    /// Fills for the fixed part of a record or block that begins here; false at the end of the recording.
    #[inline]
    pub(super) fn begin_record(&mut self, header_bytes: usize) -> Result<bool, Flaw> {
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
    pub(super) fn consume(&mut self, count: usize) {
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
    pub(super) fn skip(&mut self, count: u64) -> Result<bool, Flaw> {
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
    pub(super) fn cut_short(&self, expected_bytes: usize) -> Flaw {
        let present_bytes = (self.end - self.start) as u64;
        Damage::CutShort { present_bytes, expected_bytes: expected_bytes as u64 }.into()
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("offset", &self.offset).finish_non_exhaustive()
    }
}

//! From segments to streams.
//!
//! Nobody needs the stream; we need the starts of messages. So a stream is a parser position: the next sequence number, a
//! count of bytes to skip, and a small carry for a message head that a segment's edge cut. In-order bytes are lent to
//! the parser in place. See [`StreamEvent`] and [`Demand`] for the conversation between the two stages: reassembly calls
//! `emit` with an event, and the answer tells it what to do with the bytes that follow.

pub mod datagram;
pub mod flow;
pub mod limits;
pub mod sequence;

mod assembler;
mod control;
mod pool;
mod stream;
mod table;
mod waiting;

use crate::anomaly::AnomalyCounts;
use crate::model::{Direction, Timestamp};

/// One thing that happened to one direction of a flow, in stream order, lent to the parser.
#[derive(Clone, Copy, Debug)]
pub enum StreamEvent<'a> {
    /// The next bytes of the stream.
    Bytes(StreamBytes<'a>),
    /// Stream bytes that we will never see and that were not inside a skipped body. Framing of this direction is lost;
    /// until a [`Demand::framed`] answer, its segments are offered one by one as they come. A stream that was met in
    /// the middle, without its SYN, begins with one.
    Gap {
        /// Which way.
        direction: Direction,
        /// How many (0 when the parser asked for the loss itself, or when the number is unknowable).
        bytes: u64,
    },
    /// The last byte of a skipped body was captured. Not sent when it was lost.
    BodyEnd {
        /// Which way.
        direction: Direction,
        /// Capture time of the packet that brought it.
        timestamp: Timestamp,
        /// Stream position just after it; see [`StreamBytes::position`].
        position: u32,
    },
    /// No more bytes of this direction: FIN consumed, RST, or the flow was replaced, evicted or has expired. Sent for
    /// `ToServer` and then for `ToClient` when a whole flow ends.
    Close {
        /// Which way.
        direction: Direction,
    },
}

/// Bytes of one direction with what the parser must know about the segment that brought them.
#[derive(Clone, Copy, Debug)]
pub struct StreamBytes<'a> {
    /// Which way.
    pub direction: Direction,
    /// The bytes: what was carried over from earlier segments, then this segment's. Never empty.
    pub bytes: &'a [u8],
    /// Capture time of the packet that brought the last of them.
    pub timestamp: Timestamp,
    /// Whether `bytes` begins where a segment's payload begins. Clients write whole commands, so a message often starts here.
    pub segment_start: bool,
    /// Only for `ToServer`: this segment acknowledges every byte that the server has been seen to send, so the client
    /// is waiting for nothing that we have not seen. With lost framing this is the anchor at which both directions can be
    /// taken up again: this one at these bytes, the server's exactly at this segment's acknowledgement number.
    pub idle: bool,
    /// Only with `idle`, and stricter: the server had nothing left to answer either. The last segment with payload that it was
    /// seen to send acknowledged exactly the bytes before this segment. When it was never seen to send any: these are the
    /// first bytes of the client's that were seen, or so much has been acknowledged that the server is plainly not captured.
    pub quiescent: bool,
    /// Stream position (bytes since the flow was first seen, modulo 2^32) of the first of `bytes`.
    pub position: u32,
    /// Position in the other direction's stream up to which the sender of this segment had received when it sent
    /// it. An answer cannot acknowledge less than the request that it answers.
    pub acknowledged: u32,
}

/// The parser's answer to [`StreamEvent::Bytes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Bytes used from the front. What is left is an incomplete head: it is carried and offered again together with
    /// the next bytes. The parser must use what it can: a long key list is used key by key.
    pub used: usize,
    /// Bytes to skip after the used ones without offering them: a value's body and its line end. Loss inside is free.
    pub skip: u64,
    /// Whether the direction is framed. `false` means: offer me each segment as it comes, I am searching.
    pub framed: bool,
    /// Only in answer to `idle` bytes of the client, when they were taken up: continue the server's stream at
    /// this segment's acknowledgement number, framed, and drop what is held of it.
    pub anchored: bool,
}

impl Demand {
    /// Everything was used and the stream is in step.
    pub const fn used(used: usize) -> Demand {
        Demand { used, skip: 0, framed: true, anchored: false }
    }

    /// Used, then skip.
    pub const fn skip(used: usize, skip: u64) -> Demand {
        Demand { used, skip, framed: true, anchored: false }
    }

    /// The first `used` bytes were read, the rest is no message that is known here: the direction is not framed, and the rest
    /// counts as unparsed.
    pub const fn lost(used: usize) -> Demand {
        Demand { used, skip: 0, framed: false, anchored: false }
    }
}

/// What reassembly counts for one target between two interval closes, beside the events that it emits.
///
/// Accounting identity, once all flows are closed: `payload_bytes` = `parsed_bytes` + `skipped_bytes` + the anomaly
/// `UnparsedBytes` (which has no direction). While flows are open, unfinished message heads are in the first only.
/// Gaps are not in it; nor are duplicates. It is counted by wire length, each stream byte once; bytes that are missing
/// inside skipped bodies are in it. Bytes that wait for others are counted when they are delivered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetTally {
    /// Anomalies of this target's flows.
    pub anomalies: AnomalyCounts,
    /// Payload bytes [to server, to client], duplicates and gaps excluded, UDP frame headers excluded.
    pub payload_bytes: [u64; 2],
    /// Of these, bytes that the parser used: heads of messages, and bodies that lay whole in what it was lent.
    pub parsed_bytes: [u64; 2],
    /// Of these, bytes of bodies that were passed over by count, missing ones included.
    pub skipped_bytes: [u64; 2],
    /// Packets [to server, to client], with or without payload, copies included.
    pub packets: [u64; 2],
    /// Packets with payload [to server, to client].
    pub payload_packets: [u64; 2],
    /// Directions of TCP connections whose first payload byte was seen.
    pub streams: u64,
    /// Directions of TCP connections whose first hole outside of bodies was declared.
    pub streams_with_gaps: u64,
}

impl TargetTally {
    /// Adds another table's.
    pub fn merge(&mut self, other: &TargetTally) {
        self.anomalies.merge(&other.anomalies);
        for direction in 0..2 {
            self.payload_bytes[direction] += other.payload_bytes[direction];
            self.parsed_bytes[direction] += other.parsed_bytes[direction];
            self.skipped_bytes[direction] += other.skipped_bytes[direction];
            self.packets[direction] += other.packets[direction];
            self.payload_packets[direction] += other.payload_packets[direction];
        }
        self.streams += other.streams;
        self.streams_with_gaps += other.streams_with_gaps;
    }
}

#[cfg(test)]
mod datagram_tests;
#[cfg(test)]
mod flow_tests;
#[cfg(test)]
mod toy_parser;

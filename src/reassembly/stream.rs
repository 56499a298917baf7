//! One direction of a flow as a parser position, and the conversation with the parser about it.
//!
//! A [`Stream`] is where the parser stands. A [`Listener`] lends bytes to the parser and obeys its
//! [`Demand`]. Which bytes come next is not decided here but in [`assembler`](super::assembler).

use super::pool::{CARRY_BYTES, CarryPool, NIL};
use super::sequence::SeqNumber;
use super::{Demand, StreamBytes, StreamEvent, TargetTally};
use crate::anomaly::Anomaly;
use crate::model::{Direction, FlowTuple, Timestamp, Transport};

/// How many bytes a carry is lengthened by at first; doubled until the parser finds the end of its message head.
const CARRY_STEP: usize = 256;

/// What is known of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing.
    Unseen,
    /// Where its bytes are, and not where its messages start.
    Lost,
    /// Where the next message starts or goes on.
    Framed,
    /// That nothing follows.
    Closed,
}

/// The parser's position in one direction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stream {
    /// Number of the first byte that has not been taken from the wire. What lies before it is old, whoever sends it.
    pub(super) next: SeqNumber,
    /// Position 0: just after the SYN, or where the stream was first met.
    pub(super) origin: SeqNumber,
    /// Bytes from `next` on that belong to a skipped body; at most `skip_bytes_max`. Zero unless `Framed`.
    pub(super) skip: u32,
    /// The highest number that the peer has acknowledged, when `acked_seen`.
    pub(super) acked: SeqNumber,
    /// The unfinished message head that ends at `next`, or `NIL`. Never empty; `skip` is zero beside it.
    pub(super) carry: u32,
    /// First of the early segments, in sequence order without overlaps that one of them covers; or `NIL`.
    pub(super) held: u32,
    /// Blocks and segments in that list.
    pub(super) held_blocks: u16,
    pub(super) held_segments: u8,
    /// Segments in a row that were too far away to be believed.
    pub(super) strays: u8,
    pub(super) phase: Phase,
    /// Whether the peer has acknowledged anything of it.
    pub(super) acked_seen: bool,
    /// Whether a payload byte of it was seen.
    pub(super) data_seen: bool,
    /// Whether a hole was declared in it, outside of bodies.
    gap_seen: bool,
}

const _: () = assert!(size_of::<Stream>() == 32);

impl Stream {
    pub(super) const UNSEEN: Stream = Stream {
        next: SeqNumber(0),
        origin: SeqNumber(0),
        skip: 0,
        acked: SeqNumber(0),
        carry: NIL,
        held: NIL,
        held_blocks: 0,
        held_segments: 0,
        strays: 0,
        phase: Phase::Unseen,
        acked_seen: false,
        data_seen: false,
        gap_seen: false,
    };

    /// A stream whose next byte is at `next`, which is its position 0.
    pub(super) const fn starting(next: SeqNumber, phase: Phase) -> Stream {
        Stream { next, origin: next, phase, ..Stream::UNSEEN }
    }

    /// Just after the bytes that the parser does not want to see.
    #[inline(always)]
    pub(super) const fn reach(&self) -> SeqNumber {
        self.next.plus(self.skip)
    }

    #[inline(always)]
    pub(super) fn is_framed(&self) -> bool {
        self.phase == Phase::Framed
    }

    pub(super) fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }
}

/// What the bytes of one segment have in common, and what became of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Passage {
    pub(super) direction: Direction,
    /// Capture time of the segment.
    pub(super) timestamp: Timestamp,
    /// See [`StreamBytes::acknowledged`].
    pub(super) acknowledged: u32,
    /// See [`StreamBytes::idle`]; said of the segment's first bytes only.
    pub(super) idle: bool,
    /// See [`StreamBytes::quiescent`]; said of the segment's first bytes only.
    pub(super) quiescent: bool,
    /// Whether the bytes to come are the first of the segment's payload.
    pub(super) at_start: bool,
    /// Whether framing is to be given up before bytes are offered: they may answer requests that we have not seen.
    pub(super) give_up: bool,
    /// Out: where framing was lost, if it was.
    pub(super) lost_at: Option<SeqNumber>,
    /// Out: whether the parser has anchored the flow at this segment.
    pub(super) anchored: bool,
}

impl Passage {
    /// The start of a segment of which nothing else is known.
    pub(super) const fn starting(direction: Direction, timestamp: Timestamp) -> Passage {
        Passage {
            direction,
            timestamp,
            acknowledged: 0,
            idle: false,
            quiescent: false,
            at_start: true,
            give_up: false,
            lost_at: None,
            anchored: false,
        }
    }
}

/// The parser's side of one flow, lent for one call: `emit` with the parser's state, and what is counted.
pub(super) struct Listener<'a, S, E> {
    pub(super) tuple: FlowTuple,
    pub(super) state: &'a mut S,
    pub(super) tally: &'a mut TargetTally,
    pub(super) emit: &'a mut E,
    pub(super) carries: &'a mut CarryPool,
    pub(super) skip_bytes_max: u32,
}

impl<S, E: FnMut(&FlowTuple, &mut S, StreamEvent<'_>) -> Demand> Listener<'_, S, E> {
    /// Takes the bytes at the stream's position: skips, offers, carries, until none is left. Every byte is counted
    /// once, as used, skipped or unparsed.
    #[inline(always)]
    pub(super) fn consume(&mut self, stream: &mut Stream, passage: &mut Passage, bytes: &[u8]) {
        self.tally.payload_bytes[passage.direction.index()] += bytes.len() as u64;
        let mut rest = bytes;
        // Each round either shortens `rest` or empties it: bytes are skipped, used, carried, or given up.
        while !rest.is_empty() {
            if stream.skip > 0 {
                let skipped = rest.len().min(stream.skip as usize);
                self.count_skipped(passage.direction, skipped);
                stream.skip -= narrow(skipped);
                stream.next = stream.next.plus(narrow(skipped));
                passage.at_start = false;
                rest = &rest[skipped..];
                if stream.skip == 0 {
                    self.tell_body_end(stream, passage);
                }
                continue;
            }
            if passage.give_up {
                passage.give_up = false;
                self.lose(stream, passage, stream.next);
            }
            rest = if stream.carry == NIL {
                self.offer_in_place(stream, passage, rest)
            } else {
                self.complete_carry(stream, passage, rest)
            };
            passage.at_start = false;
        }
    }

    /// Takes bytes that are not worth an offer.
    pub(super) fn refuse(&mut self, stream: &mut Stream, direction: Direction, bytes: usize) {
        self.tally.payload_bytes[direction.index()] += bytes as u64;
        self.give_up_bytes(bytes);
        stream.next = stream.next.plus(narrow(bytes));
    }

    /// Passes over bytes that will not come. Free inside a skipped body; beyond it framing is lost.
    #[inline(never)]
    pub(super) fn pass_hole(&mut self, stream: &mut Stream, passage: &mut Passage, hole: u32) {
        let free = hole.min(stream.skip);
        if free > 0 {
            stream.skip -= free;
            stream.next = stream.next.plus(free);
            self.tally.payload_bytes[passage.direction.index()] += u64::from(free);
            self.count_skipped(passage.direction, free as usize);
            self.tally.anomalies.add(Anomaly::BodyHoleBytes, u64::from(free));
        }
        let missing = hole - free;
        if missing == 0 {
            return;
        }
        self.tally.anomalies.add(Anomaly::GapBytes, u64::from(missing));
        self.tally.streams_with_gaps += u64::from(!std::mem::replace(&mut stream.gap_seen, true));
        self.drop_carry(stream);
        if stream.is_framed() {
            self.tally.anomalies.count(Anomaly::Gap);
            self.unframe(stream, passage, stream.next, u64::from(missing));
        }
        stream.next = stream.next.plus(missing);
    }

    /// Ends a stream.
    pub(super) fn close(&mut self, stream: &mut Stream, direction: Direction) {
        self.drop_carry(stream);
        stream.skip = 0;
        stream.phase = Phase::Closed;
        (self.emit)(&self.tuple, self.state, StreamEvent::Close { direction });
    }

    /// Forgets the unfinished message head.
    pub(super) fn drop_carry(&mut self, stream: &mut Stream) {
        if stream.carry != NIL {
            self.give_up_bytes(self.carries.len(stream.carry));
            self.carries.release(stream.carry);
            stream.carry = NIL;
        }
    }

    /// Counts captured bytes that nobody could read.
    pub(super) fn give_up_bytes(&mut self, bytes: usize) {
        self.tally.anomalies.add(Anomaly::UnparsedBytes, bytes as u64);
    }

    #[inline(always)]
    fn count_parsed(&mut self, direction: Direction, bytes: usize) {
        self.tally.parsed_bytes[direction.index()] += bytes as u64;
    }

    #[inline(always)]
    fn count_skipped(&mut self, direction: Direction, bytes: usize) {
        self.tally.skipped_bytes[direction.index()] += bytes as u64;
    }

    /// Framing is lost at `at` for another reason than missing bytes.
    #[inline(never)]
    pub(super) fn lose(&mut self, stream: &mut Stream, passage: &mut Passage, at: SeqNumber) {
        self.drop_carry(stream);
        stream.skip = 0;
        if stream.is_framed() {
            self.unframe(stream, passage, at, 0);
        }
    }

    fn unframe(&mut self, stream: &mut Stream, passage: &mut Passage, at: SeqNumber, bytes: u64) {
        let direction = passage.direction;
        stream.phase = Phase::Lost;
        passage.lost_at = passage.lost_at.or(Some(at));
        self.tell_gap(direction, bytes);
    }

    /// Tells the parser that framing is lost.
    pub(super) fn tell_gap(&mut self, direction: Direction, bytes: u64) {
        (self.emit)(&self.tuple, self.state, StreamEvent::Gap { direction, bytes });
    }

    fn tell_body_end(&mut self, stream: &Stream, passage: &Passage) {
        let position = self.position(stream, stream.next);
        let Passage { direction, timestamp, .. } = *passage;
        (self.emit)(&self.tuple, self.state, StreamEvent::BodyEnd { direction, timestamp, position });
    }

    /// Offers bytes where they lie. Returns what is still to be taken.
    #[inline(always)]
    fn offer_in_place<'b>(&mut self, stream: &mut Stream, passage: &mut Passage, rest: &'b [u8]) -> &'b [u8] {
        let demand = {
            let position = self.position(stream, stream.next);
            let event = stream_bytes(passage, rest, position, passage.at_start);
            (self.emit)(&self.tuple, self.state, event)
        };
        debug_assert!(demand.used <= rest.len(), "the parser used bytes that it was not lent");
        let used = demand.used.min(rest.len());
        self.count_parsed(passage.direction, used);
        let rest = &rest[used..];
        stream.next = stream.next.plus(narrow(used));
        if !self.obey(stream, passage, demand, stream.next) {
            self.give_up_bytes(rest.len());
            stream.next = stream.next.plus(narrow(rest.len()));
            return &[];
        }
        if used == 0 && stream.skip == 0 {
            self.carry(stream, passage, rest);
            return &[];
        }
        rest
    }

    /// Lengthens the carried message head until the parser has used what was carried, then lets go of it. Returns
    /// what is still to be taken, in place.
    #[inline(never)]
    fn complete_carry<'b>(&mut self, stream: &mut Stream, passage: &mut Passage, rest: &'b [u8]) -> &'b [u8] {
        let carry = stream.carry;
        let mut appended = 0;
        let mut step = CARRY_STEP;
        loop {
            let wanted = step.min(rest.len() - appended);
            appended += self.carries.append(carry, &rest[appended..appended + wanted]);
            step *= 2;
            let length = self.carries.len(carry);
            // `next` stays at the first byte of `rest` until the end: this many bytes of the carry lie before it.
            let carried = length - appended;
            let start = stream.next.minus(narrow(carried));
            let demand = {
                let position = self.position(stream, start);
                let event = stream_bytes(passage, self.carries.bytes(carry), position, false);
                (self.emit)(&self.tuple, self.state, event)
            };
            let used = demand.used.min(length);
            self.count_parsed(passage.direction, used);
            self.carries.remove_front(carry, used);
            if !self.obey(stream, passage, demand, start.plus(narrow(used))) {
                // `obey` has dropped the carry with all that was left in it.
                self.give_up_bytes(rest.len() - appended);
                stream.next = stream.next.plus(narrow(rest.len()));
                return &[];
            }
            let skipped = (length - used).min(stream.skip as usize);
            self.count_skipped(passage.direction, skipped);
            let gone = used + skipped;
            if gone >= carried {
                stream.skip -= narrow(skipped);
                let taken = gone - carried;
                stream.next = stream.next.plus(narrow(taken));
                self.carries.release(carry);
                stream.carry = NIL;
                return &rest[taken..];
            }
            stream.skip = 0; // a body that ended inside the carry
            self.carries.remove_front(carry, skipped);
            if gone > 0 {
                continue;
            }
            if length == CARRY_BYTES {
                self.tally.anomalies.count(Anomaly::LineTooLong);
                self.lose(stream, passage, start);
                self.give_up_bytes(rest.len() - appended);
                stream.next = stream.next.plus(narrow(rest.len()));
                return &[];
            }
            if appended == rest.len() {
                stream.next = stream.next.plus(narrow(rest.len()));
                return &[];
            }
        }
    }

    /// Sets the stream as the parser demands; `false` when it is not framed.
    #[inline(always)]
    fn obey(&mut self, stream: &mut Stream, passage: &mut Passage, demand: Demand, at: SeqNumber) -> bool {
        if !demand.framed {
            self.lose(stream, passage, at);
            return false;
        }
        match u32::try_from(demand.skip) {
            Ok(skip) if skip <= self.skip_bytes_max => stream.skip = skip,
            _ => {
                self.tally.anomalies.count(Anomaly::Resynchronised);
                self.lose(stream, passage, at);
                return false;
            }
        }
        stream.phase = Phase::Framed;
        passage.anchored |= demand.anchored && passage.idle && passage.at_start;
        true
    }

    /// Keeps an incomplete message head for the segment that completes it.
    #[inline(never)]
    fn carry(&mut self, stream: &mut Stream, passage: &mut Passage, head: &[u8]) {
        let anomaly = if head.len() > CARRY_BYTES {
            Anomaly::LineTooLong
        } else if let Some(carry) = self.carries.take() {
            self.carries.append(carry, head);
            stream.carry = carry;
            stream.next = stream.next.plus(narrow(head.len()));
            return;
        } else {
            Anomaly::SegmentShed
        };
        self.tally.anomalies.count(anomaly);
        self.lose(stream, passage, stream.next);
        self.give_up_bytes(head.len());
        stream.next = stream.next.plus(narrow(head.len()));
    }

    /// Position of `at`; datagrams have none.
    #[inline(always)]
    fn position(&self, stream: &Stream, at: SeqNumber) -> u32 {
        match self.tuple.transport {
            Transport::Tcp => at.offset_from(stream.origin),
            Transport::Udp => 0,
        }
    }
}

#[inline(always)]
fn stream_bytes<'a>(
    passage: &Passage,
    bytes: &'a [u8],
    position: u32,
    segment_start: bool,
) -> StreamEvent<'a> {
    StreamEvent::Bytes(StreamBytes {
        direction: passage.direction,
        bytes,
        timestamp: passage.timestamp,
        segment_start,
        idle: segment_start && passage.idle,
        quiescent: segment_start && passage.quiescent,
        position,
        acknowledged: passage.acknowledged,
    })
}

/// A length inside one packet (far below 4 GiB) as sequence numbers count it: modulo 2^32.
#[inline(always)]
pub(super) const fn narrow(bytes: usize) -> u32 {
    bytes as u32
}

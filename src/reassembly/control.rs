//! Segments that open and reset connections, on flows that are known.
//!
//! Anyone can send a SYN or a RST with our endpoints on it, and the network repeats old ones, so neither is obeyed on
//! sight. A SYN that does not fit becomes a candidate, which its own side's next segment or the other side's SYN-ACK confirms
//! (RFC 9293 §3.10.7.4 answers such a SYN with a challenge ACK and keeps the connection). A RST must be exactly in place
//! (RFC 5961 §3.2).

use super::assembler::{Flow, Life};
use super::flow::{FlowTable, handshake};
use super::sequence::SeqNumber;
use super::stream::{Phase, Stream};
use super::{Demand, StreamEvent, TargetTally};
use crate::anomaly::Anomaly;
use crate::capture::{Segment, TcpFlags};
use crate::model::{Direction, FlowTuple};

/// Bytes that a SYN may carry (RFC 7413) and its SYN-ACK acknowledge: far less than what two sequence numbers drawn at
/// random lie apart.
const FAST_OPEN_BYTES_MAX: u32 = 1 << 16;

/// What a SYN or SYN-ACK means for a flow that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opening {
    /// The one that began this flow, again.
    Repeated,
    /// The server's answer to the SYN that began this flow.
    Answer,
    /// A new connection between the same endpoints.
    New,
    /// Perhaps a new connection; the number of its client's first byte.
    Candidate(SeqNumber),
    /// Neither.
    Misfit,
}

impl<S: Default> FlowTable<S> {
    /// Takes a segment with SYN or RST, or one of a flow that a candidate may replace.
    #[cold]
    pub(super) fn control<E: FnMut(&FlowTuple, &mut S, StreamEvent<'_>) -> Demand>(
        &mut self,
        slot: u32,
        segment: &Segment<'_>,
        direction: Direction,
        tallies: &mut [TargetTally],
        emit: &mut E,
    ) {
        if segment.flags.has(TcpFlags::RST) {
            self.reset(slot, segment, direction, tallies, emit);
            return;
        }
        let opens = segment.flags.has(TcpFlags::SYN);
        if opens {
            if !self.open_again(slot, segment, direction, tallies, emit) {
                return;
            }
        } else {
            let flow = &self.flows[slot as usize];
            let confirms = direction == Direction::ToServer
                && segment.flags.has(TcpFlags::ACK)
                && flow.candidate == SeqNumber(segment.seq);
            if confirms {
                self.replace(slot, segment, direction, tallies, emit);
            } else if direction == Direction::ToServer
                && SeqNumber(segment.seq) == flow.stream(Direction::ToServer).next
            {
                self.flows[slot as usize].candidate_seen = false; // the client goes on as before
            }
        }
        let seq = SeqNumber(segment.seq).plus(u32::from(opens));
        let mut assembler = self.assembler(slot, segment.timestamp, tallies, emit);
        assembler.flow.touch(segment.timestamp);
        assembler.handle(segment, direction, seq);
    }

    /// Obeys a SYN as far as it deserves; `false` when its payload means nothing.
    fn open_again<E: FnMut(&FlowTuple, &mut S, StreamEvent<'_>) -> Demand>(
        &mut self,
        slot: u32,
        segment: &Segment<'_>,
        direction: Direction,
        tallies: &mut [TargetTally],
        emit: &mut E,
    ) -> bool {
        let flow = &self.flows[slot as usize];
        let unanswered = flow.life == Life::Embryonic && direction == Direction::ToServer;
        let gives_way = unanswered
            || flow.is_closing()
            || segment.timestamp.since(flow.last_seen) > self.limits.syn_replaces_idle;
        match opening(flow, gives_way, segment, direction) {
            Opening::Repeated => true,
            Opening::Answer => {
                let server = Stream::starting(SeqNumber(segment.seq).plus(1), Phase::Framed);
                self.flows[slot as usize].streams[Direction::ToClient.index()] = server;
                true
            }
            Opening::New => {
                self.replace(slot, segment, direction, tallies, emit);
                true
            }
            Opening::Candidate(first) => {
                let flow = &mut self.flows[slot as usize];
                flow.candidate = first;
                flow.candidate_seen = true;
                false
            }
            Opening::Misfit => {
                tallies[flow.tuple.target.index()].anomalies.count(Anomaly::BadControl);
                false
            }
        }
    }

    /// Ends the flow and begins, between the same endpoints, the one that `segment` opens or confirms.
    fn replace<E: FnMut(&FlowTuple, &mut S, StreamEvent<'_>) -> Demand>(
        &mut self,
        slot: u32,
        segment: &Segment<'_>,
        direction: Direction,
        tallies: &mut [TargetTally],
        emit: &mut E,
    ) {
        self.assembler(slot, segment.timestamp, tallies, emit).finish();
        let Flow { tuple, candidate, candidate_seen, .. } = self.flows[slot as usize];
        let server = match segment.flags.has(TcpFlags::SYN) {
            true => SeqNumber(segment.seq).plus(1),
            false => SeqNumber(segment.ack),
        };
        let beginning = match direction {
            Direction::ToServer if segment.flags.has(TcpFlags::SYN) => handshake(segment, direction),
            _ if candidate_seen => {
                Some([candidate, server].map(|first| Stream::starting(first, Phase::Framed)))
            }
            _ => handshake(segment, direction),
        };
        self.begin(slot, tuple, segment.timestamp, beginning);
    }

    /// Obeys a RST that is in place.
    fn reset<E: FnMut(&FlowTuple, &mut S, StreamEvent<'_>) -> Demand>(
        &mut self,
        slot: u32,
        segment: &Segment<'_>,
        direction: Direction,
        tallies: &mut [TargetTally],
        emit: &mut E,
    ) {
        let mut assembler = self.assembler(slot, segment.timestamp, tallies, emit);
        if assembler.flow.is_closed() {
            return;
        }
        let own = assembler.flow.stream(direction);
        let peer = assembler.flow.stream(direction.opposite());
        let seq = SeqNumber(segment.seq);
        let in_place =
            own.phase != Phase::Unseen && (seq == own.next || seq == assembler.held_end(direction));
        let awaited = own.acked_seen && seq == own.acked;
        // A server that refuses a connection has no sequence number of its own yet.
        let refuses = assembler.flow.life == Life::Embryonic
            && segment.flags.has(TcpFlags::ACK)
            && SeqNumber(segment.ack) == peer.next;
        if in_place || awaited || refuses {
            assembler.flow.last_seen = segment.timestamp;
            assembler.finish();
        } else {
            assembler.listener.tally.anomalies.count(Anomaly::BadControl);
        }
    }
}

/// What a SYN means for a flow; `gives_way` when the flow is as good as over.
fn opening(flow: &Flow, gives_way: bool, segment: &Segment<'_>, direction: Direction) -> Opening {
    let next = SeqNumber(segment.seq).plus(1);
    let own = flow.stream(direction);
    if flow.handshake && own.phase != Phase::Unseen && own.origin == next {
        return Opening::Repeated;
    }
    let client = flow.stream(Direction::ToServer);
    let acknowledges = |first: SeqNumber| {
        segment.flags.has(TcpFlags::ACK) && SeqNumber(segment.ack).offset_from(first) <= FAST_OPEN_BYTES_MAX
    };
    match (direction, segment.flags.has(TcpFlags::ACK)) {
        (Direction::ToServer, false) if gives_way => Opening::New,
        (Direction::ToServer, false) => Opening::Candidate(next),
        (Direction::ToClient, true) if flow.candidate_seen && acknowledges(flow.candidate) => Opening::New,
        (Direction::ToClient, true)
            if flow.handshake && own.phase == Phase::Unseen && acknowledges(client.origin) =>
        {
            Opening::Answer
        }
        (Direction::ToClient, true) if gives_way => Opening::New,
        (Direction::ToClient, true) => Opening::Candidate(SeqNumber(segment.ack)),
        (Direction::ToServer, true) | (Direction::ToClient, false) => Opening::Misfit,
    }
}

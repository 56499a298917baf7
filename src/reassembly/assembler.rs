//! The two streams of a flow in causal order.
//!
//! A segment is *delivered* (its bytes go to the parser) when nothing stands in its way:
//!
//! * in its own direction, everything before it has been taken, or lies inside a body that is being skipped;
//! * the other direction has been taken up to what the segment acknowledges. Its sender had received that when it sent
//!   the segment, so it goes before; the capture order of the two directions proves nothing.
//!
//! A direction without framing makes nobody wait. What must wait is held. A wait ends when the missing bytes come, or
//! when they are declared a gap: after [`hold`](ReassemblyLimits::hold) when the peer has acknowledged them (then it
//! was we who lost them), after the retransmission wait otherwise, or when a limit is reached. Two segments that
//! wait for each other cannot both be right about the order; the client's goes first.
//!
//! The way of a segment that nothing stands in the way of is `inline(always)` throughout, from the flow table to the parser, and
//! what leaves that way is a call: so what is known of the segment can stay in registers (1,164 instructions a packet against
//! 1,229 with mere hints, `tests/cost.sh`).

use super::limits::ReassemblyLimits;
use super::pool::{Arrival, HeldPool, NIL};
use super::sequence::SeqNumber;
use super::stream::{Listener, Passage, Phase, Stream, narrow};
use super::{Demand, StreamEvent};
use crate::anomaly::Anomaly;
use crate::capture::{Segment, TcpFlags};
use crate::model::{Direction, Endpoint, FlowTuple, TargetId, Timestamp, Transport};

/// Answers that the client has received and we have not, from the first one on, after which it is plain that the server's
/// direction is not captured at all.
const UNSEEN_BYTES_ONE_SIDED: u32 = 16 << 10;

/// How far a flow has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// The slot is free.
    Free,
    /// Without payload so far.
    Embryonic,
    /// With payload.
    Established,
}

/// What is known to be missing of the client's stream, as far as the server's is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientLoss {
    /// Nothing.
    None,
    /// The stream was lost at `client_lost_at`. The server's is lost with it from the first bytes that acknowledge more.
    Lost,
    /// The server has answered what precedes `client_lost_at`, and we have waited for that in vain. Nothing of the client's
    /// that lies behind it was seen, so it may still come, late, and in order: the stream stays framed.
    Overdue,
}

/// A connection: two neighbouring cache lines, which processors fetch in pairs, beside the parser's state.
#[derive(Clone, Copy, Debug)]
#[repr(align(128))]
pub(super) struct Flow {
    /// Capture time of its last packet.
    pub(super) last_seen: Timestamp,
    /// Indexed by [`Direction::index`].
    pub(super) streams: [Stream; 2],
    /// What the last data segment of the server that was delivered acknowledged.
    pub(super) server_data_ack: SeqNumber,
    /// See [`ClientLoss`].
    pub(super) client_lost_at: SeqNumber,
    /// When `candidate_seen`: the first sequence number of a SYN that did not fit this flow. The flow gives way when
    /// the other side, or the sender's data, confirms it.
    pub(super) candidate: SeqNumber,
    pub(super) candidate_seen: bool,
    pub(super) client_loss: ClientLoss,
    /// Whether its beginning was seen, so that the streams' origins are the ends of their SYNs.
    pub(super) handshake: bool,
    pub(super) life: Life,
    pub(super) tuple: FlowTuple,
}

const _: () = assert!(size_of::<Flow>() == 128);

impl Flow {
    pub(super) const FREE: Flow = Flow {
        last_seen: Timestamp::ZERO,
        streams: [Stream::UNSEEN; 2],
        server_data_ack: SeqNumber(0),
        client_lost_at: SeqNumber(0),
        candidate: SeqNumber(0),
        candidate_seen: false,
        client_loss: ClientLoss::None,
        handshake: false,
        life: Life::Free,
        tuple: FlowTuple {
            target: TargetId(0),
            server: Endpoint::from_ipv4([0; 4], 0),
            client: Endpoint::from_ipv4([0; 4], 0),
            transport: Transport::Tcp,
        },
    };

    pub(super) fn stream(&self, direction: Direction) -> &Stream {
        &self.streams[direction.index()]
    }

    pub(super) fn is_closed(&self) -> bool {
        self.streams.iter().all(Stream::is_closed)
    }

    pub(super) fn is_closing(&self) -> bool {
        self.streams.iter().any(Stream::is_closed)
    }

    /// Notes a packet. What still comes for a closed flow does not keep it: should it be alive after all, it will be
    /// met anew.
    #[inline(always)]
    pub(super) fn touch(&mut self, timestamp: Timestamp) {
        if !self.is_closed() {
            self.last_seen = timestamp;
        }
    }
}

/// Why a segment cannot be delivered yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// Bytes before it are missing.
    Hole,
    /// Segments before it are held.
    Behind,
    /// The other direction must be taken up to this number first.
    Peer(SeqNumber),
}

/// One flow with everything that its segments need, lent for one call.
pub(super) struct Assembler<'a, S, E> {
    pub(super) flow: &'a mut Flow,
    pub(super) slot: u32,
    pub(super) listener: Listener<'a, S, E>,
    pub(super) held: &'a mut HeldPool,
    pub(super) limits: &'a ReassemblyLimits,
    pub(super) now: Timestamp,
}

impl<S, E: FnMut(&FlowTuple, &mut S, StreamEvent<'_>) -> Demand> Assembler<'_, S, E> {
    /// Takes a segment that neither opens nor resets; `seq` is that of its first payload byte.
    #[inline(always)]
    pub(super) fn handle(&mut self, segment: &Segment<'_>, direction: Direction, seq: SeqNumber) {
        let ack = segment.flags.has(TcpFlags::ACK).then_some(SeqNumber(segment.ack));
        self.start_streams(direction, seq, ack);
        let ack = ack.filter(|&ack| self.note_ack(direction, ack));
        let arrival = Arrival {
            seq,
            wire_bytes: segment.payload_wire_bytes.max(narrow(segment.payload.len())),
            captured_bytes: narrow(segment.payload.len()),
            ack,
            fin: segment.flags.has(TcpFlags::FIN),
            whole: true,
            timestamp: segment.timestamp,
            slot: self.slot,
            direction,
        };
        if arrival.wire_bytes > self.limits.window_bytes_max {
            // Only a forged recording says so; what follows may add lengths without a thought.
            self.listener.tally.anomalies.count(Anomaly::OutOfWindow);
        } else if arrival.wire_bytes > 0 || arrival.fin {
            self.accept(arrival, segment.payload);
        }
        if self.holds_any() {
            self.pump();
        }
    }

    /// Declares gaps until nothing is held, then closes what is open: the flow ends here.
    pub(super) fn finish(&mut self) {
        for direction in [Direction::ToServer, Direction::ToClient] {
            while self.flow.stream(direction).held != NIL {
                self.settle(direction);
            }
        }
        if self.flow.client_loss == ClientLoss::Overdue && !self.flow.stream(Direction::ToServer).is_closed()
        {
            self.gap(Direction::ToServer, self.flow.client_lost_at);
        }
        for direction in [Direction::ToServer, Direction::ToClient] {
            let stream = &mut self.flow.streams[direction.index()];
            if !stream.is_closed() {
                self.listener.close(stream, direction);
            }
        }
    }

    /// The first segment of a stream, or the first word of the other side about it, tells where it is.
    #[inline(always)]
    fn start_streams(&mut self, direction: Direction, seq: SeqNumber, ack: Option<SeqNumber>) {
        if self.flow.stream(direction).phase == Phase::Unseen {
            self.start_stream(direction, seq, Phase::Lost);
        }
        if let Some(ack) = ack
            && self.flow.stream(direction.opposite()).phase == Phase::Unseen
        {
            // The client's first segment after its SYN acknowledges the server's SYN, whether we saw that or not.
            let first = self.flow.handshake && seq == self.flow.stream(direction).origin;
            let phase = if first { Phase::Framed } else { Phase::Lost };
            self.start_stream(direction.opposite(), ack, phase);
        }
    }

    /// A stream that is met in the middle begins with a gap of unknown length, so that the parser knows.
    #[cold]
    fn start_stream(&mut self, direction: Direction, next: SeqNumber, phase: Phase) {
        self.flow.streams[direction.index()] = Stream::starting(next, phase);
        if phase == Phase::Lost {
            self.listener.tell_gap(direction, 0);
        }
    }

    /// Notes how far the sender has received; `false` when that cannot be.
    #[inline]
    fn note_ack(&mut self, direction: Direction, ack: SeqNumber) -> bool {
        let peer = &mut self.flow.streams[direction.opposite().index()];
        let distance = ack.distance_from(peer.next);
        if distance.unsigned_abs() > self.limits.window_bytes_max.saturating_add(peer.skip) {
            return false;
        }
        if peer.phase == Phase::Lost && distance > (self.limits.window_bytes_max / 2).cast_signed() {
            // Most likely that side is not captured at all: keep up with it, or it leaves the window.
            peer.next = ack;
        }
        if !peer.acked_seen || ack.is_after(peer.acked) {
            peer.acked = ack;
            peer.acked_seen = true;
        }
        true
    }

    /// Takes what is new of a segment.
    #[inline(always)]
    fn accept(&mut self, mut arrival: Arrival, payload: &[u8]) {
        let Some(cut) = self.admit(&mut arrival) else { return };
        let payload = &payload[cut..];
        if self.flow.stream(arrival.direction).held == NIL {
            self.place(arrival, payload);
        } else {
            self.place_between(arrival, payload);
        }
    }

    /// Delivers a segment or holds it.
    #[inline(always)]
    pub(super) fn place(&mut self, arrival: Arrival, payload: &[u8]) {
        match self.obstacle(&arrival) {
            None => self.deliver(&arrival, std::iter::once(payload)),
            Some(obstacle) => self.place_behind(obstacle, arrival, payload),
        }
    }

    /// Does what can be done about a segment with something in its way.
    #[inline(never)]
    fn place_behind(&mut self, obstacle: Obstacle, arrival: Arrival, payload: &[u8]) {
        let to_server = arrival.direction == Direction::ToServer;
        if obstacle == Obstacle::Hole && to_server && self.is_overdue(arrival.seq) {
            // An answer has waited for these bytes already. Without them the direction is lost and has no holes.
            self.gap(Direction::ToServer, arrival.seq);
            self.place(arrival, payload);
        } else if !self.hold(arrival, payload, obstacle) {
            self.listener.tally.anomalies.count(Anomaly::SegmentShed);
            self.force(&arrival, payload);
        }
    }

    /// Cuts off what is old and refuses what cannot be: the number of captured bytes to cut off the front, if anything
    /// is left.
    #[inline(always)]
    fn admit(&mut self, arrival: &mut Arrival) -> Option<usize> {
        let stream = &mut self.flow.streams[arrival.direction.index()];
        let distance = arrival.seq.distance_from(stream.next);
        if distance == 0 && !stream.is_closed() {
            stream.strays = 0;
            return Some(0);
        }
        let reach = i64::from(self.limits.window_bytes_max) + i64::from(stream.skip);
        if i64::from(distance).abs() > reach {
            return self.stray(*arrival);
        }
        stream.strays = 0;
        let old = distance.min(0).unsigned_abs();
        // A keep-alive repeats the last byte, or sends any byte in its place (RFC 9293 §3.8.4): nothing to count.
        let keep_alive = old == 1 && arrival.wire_bytes <= 1 && !arrival.fin;
        if old > 0 && arrival.wire_bytes > 0 && !keep_alive {
            self.listener.tally.anomalies.count(Anomaly::DuplicateSegment);
        }
        if old >= arrival.wire_bytes + u32::from(arrival.fin) {
            return None;
        }
        if stream.is_closed() {
            self.listener.tally.anomalies.count(Anomaly::OutOfWindow);
            return None;
        }
        Some(arrival.cut_front(old))
    }

    /// A sequence number that is too far away: not believed, until so many in a row say the same that it is our
    /// position that must be wrong.
    #[cold]
    fn stray(&mut self, arrival: Arrival) -> Option<usize> {
        self.listener.tally.anomalies.count(Anomaly::OutOfWindow);
        let own = arrival.direction.index();
        self.flow.streams[own].strays = self.flow.streams[own].strays.saturating_add(1);
        if self.flow.streams[own].is_closed() || self.flow.streams[own].strays < self.limits.strays_max {
            return None;
        }
        while self.flow.streams[own].held != NIL {
            self.settle(arrival.direction);
        }
        let mut passage = self.passage(&arrival);
        let stream = &mut self.flow.streams[own];
        self.listener.lose(stream, &mut passage, stream.next);
        stream.next = arrival.seq;
        stream.acked_seen = false;
        stream.strays = 0;
        self.note_passage(&passage);
        Some(0)
    }

    /// What stands in the way of a segment that is not old.
    #[inline(always)]
    pub(super) fn obstacle(&self, arrival: &Arrival) -> Option<Obstacle> {
        let own = self.flow.stream(arrival.direction);
        if own.held != NIL && self.held.arrival(own.held).seq.is_before(arrival.seq) {
            return Some(Obstacle::Behind);
        }
        if own.is_framed() {
            if arrival.seq.is_after(own.reach()) {
                return Some(Obstacle::Hole);
            }
            if !arrival.fin && !arrival.end().is_after(own.reach()) {
                return None; // all of it will be skipped
            }
        }
        let peer = self.flow.stream(arrival.direction.opposite());
        match arrival.ack {
            Some(ack) if peer.is_framed() && ack.is_after(peer.reach()) => {
                let waited = arrival.direction == Direction::ToClient && self.is_overdue(ack);
                (!waited).then_some(Obstacle::Peer(ack))
            }
            _ => None,
        }
    }

    /// Lends a segment that nothing stands in the way of to the parser, piece by piece.
    #[inline(always)]
    pub(super) fn deliver<'b>(&mut self, arrival: &Arrival, pieces: impl Iterator<Item = &'b [u8]>) {
        let mut passage = self.passage(arrival);
        deliver(self.flow, &mut self.listener, &mut passage, arrival, pieces);
        self.note_passage(&passage);
        if passage.anchored
            && let Some(ack) = arrival.ack
        {
            self.anchor(ack);
        }
    }

    /// What the parser must know about a segment.
    #[inline(always)]
    pub(super) fn passage(&self, arrival: &Arrival) -> Passage {
        let flow = &*self.flow;
        let to_server = arrival.direction == Direction::ToServer;
        let peer = flow.stream(arrival.direction.opposite());
        let idle = to_server && arrival.whole && self.is_idle(arrival);
        Passage {
            direction: arrival.direction,
            timestamp: arrival.timestamp,
            acknowledged: arrival.ack.map_or(0, |ack| ack.offset_from(peer.origin)),
            idle,
            quiescent: idle && self.is_quiescent(arrival),
            at_start: arrival.whole,
            give_up: !to_server && arrival.ack.is_some_and(|ack| self.may_answer_unseen(ack)),
            lost_at: None,
            anchored: false,
        }
    }

    /// Whether the client, when it sent this segment, had received all that the server sends before it receives the
    /// segment. Server segments that acknowledge part of it are later and prove nothing.
    #[inline(always)]
    fn is_idle(&self, arrival: &Arrival) -> bool {
        let server = self.flow.stream(Direction::ToClient);
        let Some(ack) = arrival.ack else { return false };
        server.carry == NIL
            && !ack.is_before(server.reach())
            && (server.held == NIL || self.holds_only_later_answers(arrival.seq, ack))
    }

    /// Whether all that is held of the server lies before `ack`, or answers what the client sends from `seq` on.
    #[cold]
    fn holds_only_later_answers(&self, seq: SeqNumber, ack: SeqNumber) -> bool {
        self.held.list(self.flow.stream(Direction::ToClient).held).all(|id| {
            let held = self.held.arrival(id);
            !held.end().is_after(ack) || held.ack.is_some_and(|ack| ack.is_after(seq))
        })
    }

    /// Whether the server, too, had nothing left to answer before this segment: see
    /// [`StreamBytes::quiescent`](super::StreamBytes::quiescent).
    #[inline(always)]
    fn is_quiescent(&self, arrival: &Arrival) -> bool {
        let server = self.flow.stream(Direction::ToClient);
        if server.data_seen {
            return self.flow.server_data_ack == arrival.seq;
        }
        let first = arrival.seq == self.flow.stream(Direction::ToServer).origin;
        first || arrival.ack.is_some_and(|ack| self.is_server_uncaptured(ack))
    }

    /// Whether so much of the server's stream has been acknowledged unseen that it must go another way.
    fn is_server_uncaptured(&self, ack: SeqNumber) -> bool {
        let server = self.flow.stream(Direction::ToClient);
        !server.data_seen && ack.offset_from(server.origin) >= UNSEEN_BYTES_ONE_SIDED
    }

    /// Whether what precedes this number in the client's stream has been waited for long enough.
    fn is_overdue(&self, upto: SeqNumber) -> bool {
        self.flow.client_loss == ClientLoss::Overdue && !upto.is_after(self.flow.client_lost_at)
    }

    /// Whether server bytes that acknowledge this much may answer requests that we have not seen.
    fn may_answer_unseen(&self, ack: SeqNumber) -> bool {
        match self.flow.client_loss {
            ClientLoss::None => false,
            ClientLoss::Lost => ack.is_after(self.flow.client_lost_at),
            ClientLoss::Overdue => ack.is_after(self.flow.stream(Direction::ToServer).next),
        }
    }

    /// Draws the consequences of a direction's loss for the other.
    #[inline]
    pub(super) fn note_passage(&mut self, passage: &Passage) {
        let Some(lost_at) = passage.lost_at else { return };
        let flow = &mut *self.flow;
        match passage.direction {
            Direction::ToServer => {
                if flow.client_loss != ClientLoss::Lost {
                    let spreads = flow.stream(Direction::ToClient).phase != Phase::Lost;
                    flow.client_loss = if spreads { ClientLoss::Lost } else { ClientLoss::None };
                    flow.client_lost_at = lost_at;
                }
            }
            Direction::ToClient if flow.client_loss == ClientLoss::Lost => {
                flow.client_loss = ClientLoss::None
            }
            Direction::ToClient => {}
        }
    }

    /// The server's stream goes on at `ack`, framed. What lies before it can no longer be told apart.
    #[cold]
    pub(super) fn anchor(&mut self, ack: SeqNumber) {
        self.flow.client_loss = ClientLoss::None;
        let uncaptured = self.is_server_uncaptured(ack);
        let own = Direction::ToClient.index();
        match self.flow.streams[own].phase {
            Phase::Closed => return,
            Phase::Unseen => self.flow.streams[own] = Stream::starting(ack, Phase::Framed),
            Phase::Lost | Phase::Framed => {}
        }
        self.listener.drop_carry(&mut self.flow.streams[own]);
        loop {
            let id = self.flow.streams[own].held;
            if id == NIL || self.held.arrival(id).end().is_after(ack) {
                break;
            }
            let arrival = self.unlink_head(Direction::ToClient);
            self.held.release(id);
            self.gap(Direction::ToClient, arrival.seq);
            let stream = &mut self.flow.streams[own];
            let old = stream.next.offset_from(arrival.seq).min(arrival.captured_bytes);
            self.listener.refuse(stream, Direction::ToClient, (arrival.captured_bytes - old) as usize);
            self.gap(Direction::ToClient, arrival.end());
        }
        self.gap(Direction::ToClient, ack);
        let stream = &mut self.flow.streams[own];
        stream.next = ack;
        stream.skip = 0;
        stream.phase = Phase::Framed;
        if uncaptured {
            // Were it framed, every request would wait for an answer that nobody will see.
            stream.phase = Phase::Lost;
            self.listener.tell_gap(Direction::ToClient, 0);
        }
    }

    /// The bytes before `upto`, if there are any, will not come.
    pub(super) fn gap(&mut self, direction: Direction, upto: SeqNumber) {
        let mut passage = Passage::starting(direction, self.now);
        let stream = &mut self.flow.streams[direction.index()];
        let hole = upto.distance_from(stream.next).max(0).unsigned_abs();
        self.listener.pass_hole(stream, &mut passage, hole);
        self.note_passage(&passage);
    }
}

/// Takes one segment's bytes, hole, missing tail and FIN.
#[inline(always)]
pub(super) fn deliver<'b, S, E: FnMut(&FlowTuple, &mut S, StreamEvent<'_>) -> Demand>(
    flow: &mut Flow,
    listener: &mut Listener<'_, S, E>,
    passage: &mut Passage,
    arrival: &Arrival,
    pieces: impl Iterator<Item = &'b [u8]>,
) {
    let own = arrival.direction.index();
    let stream = &mut flow.streams[own];
    let distance = arrival.seq.distance_from(stream.next);
    let old = distance.min(0).unsigned_abs();
    if old >= arrival.wire_bytes + u32::from(arrival.fin) || stream.is_closed() {
        listener.tally.anomalies.count(Anomaly::DuplicateSegment);
        return;
    }
    if distance > 0 {
        listener.pass_hole(stream, passage, distance.unsigned_abs());
    }
    passage.at_start &= old == 0;
    if arrival.wire_bytes > 0 {
        listener.tally.streams += u64::from(!std::mem::replace(&mut stream.data_seen, true));
        flow.life = Life::Established;
        if let (Direction::ToClient, Some(ack)) = (arrival.direction, arrival.ack) {
            flow.server_data_ack = ack;
        }
    }
    let mut cut = old as usize;
    for (number, piece) in pieces.enumerate() {
        let piece_cut = cut.min(piece.len());
        cut -= piece_cut;
        if number > 0 && stream.phase == Phase::Lost {
            listener.refuse(stream, arrival.direction, piece.len() - piece_cut);
        } else {
            listener.consume(stream, passage, &piece[piece_cut..]);
        }
    }
    let uncaptured = arrival.wire_bytes - arrival.captured_bytes;
    if uncaptured > 0 {
        listener.pass_hole(stream, passage, uncaptured - narrow(cut).min(uncaptured));
    }
    if arrival.fin {
        listener.close(stream, arrival.direction);
        stream.next = stream.next.plus(1);
    }
    if arrival.direction == Direction::ToServer
        && flow.client_loss == ClientLoss::Overdue
        && !stream.next.is_before(flow.client_lost_at)
    {
        flow.client_loss = ClientLoss::None;
    }
}

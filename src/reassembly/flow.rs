//! The flow table: every TCP connection of a worker, with the parser's state beside it.
//!
//! A worker owns both directions of its flows. The table is built at full size: a slab of flows, a bounded index from
//! endpoint pairs to slots, and pools for the bytes that must be kept. When it is full a new flow pushes out the least
//! recently used of its neighbours, scanners and closed flows first. Time comes with the packets; a clock hand goes around the
//! slab and frees what has been quiet for too long.
//!
//! No handle to a flow outlives the flow: held segments name their slot and leave with it, so slots need no
//! generation.

use super::assembler::{Assembler, Flow, Life};
use super::limits::ReassemblyLimits;
use super::pool::{CarryPool, HeldPool, Patience, free_list};
use super::sequence::SeqNumber;
use super::stream::{Listener, Phase, Stream, narrow};
use super::table::{ClockHand, SlotIndex};
use super::{Demand, StreamEvent, TargetTally};
use crate::anomaly::Anomaly;
use crate::capture::{Segment, TcpFlags};
use crate::model::{Direction, Endpoint, FlowTuple, TargetId, Timestamp, Transport};
use foldhash::quality::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::ops::Range;
use std::time::Duration;

/// Steps back of the clock that are no disorder of packets.
const CLOCK_SET_BACK_MIN: Duration = Duration::from_secs(10);

/// Which of two endpoints is a server of a target, if any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Orientation {
    /// The target that the sender is a server of.
    pub source: Option<TargetId>,
    /// The target that the receiver is a server of.
    pub destination: Option<TargetId>,
}

impl Orientation {
    /// Where a segment goes, and to or from whose server; `None` when neither side is one.
    ///
    /// When both sides are (a proxy, or a client whose ephemeral port is the server's) a SYN tells: its sender is the
    /// client, that of a SYN-ACK the server. Without either the receiver is taken for the server; a wrong guess lasts until
    /// the connection is opened anew.
    pub fn decide(self, flags: TcpFlags) -> Option<(Direction, TargetId)> {
        match (self.source, self.destination) {
            (Some(server), None) => Some((Direction::ToClient, server)),
            (Some(server), Some(_)) if flags.has(TcpFlags::SYN.and(TcpFlags::ACK)) => {
                Some((Direction::ToClient, server))
            }
            (_, Some(server)) => Some((Direction::ToServer, server)),
            (None, None) => None,
        }
    }
}

/// What a table holds at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Occupancy {
    /// Live flows, or UDP exchanges.
    pub flows: usize,
    /// Segments that wait for what goes before them.
    pub held_segments: usize,
    /// Blocks with their payloads.
    pub held_blocks: usize,
    /// Unfinished message heads.
    pub carries: usize,
}

/// The TCP connections of one worker; `S` is what the parser remembers of each.
pub struct FlowTable<S> {
    /// Slot for slot with `states`.
    pub(super) flows: Box<[Flow]>,
    /// The state in a slot is `S::default()` whenever a flow begins there.
    pub(super) states: Box<[S]>,
    /// Slots whose flow is `Life::Free`.
    free: Vec<u32>,
    /// Has each flow that is not free under the hash of its endpoints, and no other.
    index: SlotIndex,
    hasher: RandomState,
    carries: CarryPool,
    held: HeldPool,
    pub(super) limits: ReassemblyLimits,
    hand: ClockHand,
    /// The shortest of the idle limits: nearly every packet belongs to a flow that was busy more recently.
    idle_nanos_min: u64,
}

impl<S: Default> FlowTable<S> {
    /// An empty table at full size.
    ///
    /// # Panics
    ///
    /// When a limit is out of the range that the data structures allow: no flows, 2^32 of anything, or a window or skip
    /// of 2^31 bytes or more.
    pub fn new(limits: ReassemblyLimits) -> FlowTable<S> {
        assert!(limits.flows_max > 0, "a flow table needs at least one slot");
        let sequence_span = u64::from(limits.window_bytes_max) + u64::from(limits.skip_bytes_max);
        assert!(sequence_span < 1 << 31, "window and skip must stay within half of the sequence space");
        let idle_min = limits.closed_idle_max.min(limits.embryonic_idle_max).min(limits.flow_idle_max);
        FlowTable {
            flows: vec![Flow::FREE; limits.flows_max].into_boxed_slice(),
            states: (0..limits.flows_max).map(|_| S::default()).collect(),
            free: free_list(limits.flows_max),
            index: SlotIndex::new(limits.flows_max),
            hasher: RandomState::default(),
            carries: CarryPool::new(limits.carries_max),
            held: HeldPool::new(limits.held_segments_max, limits.held_blocks_max),
            hand: ClockHand::new(limits.flows_max, limits.sweep_period),
            idle_nanos_min: Timestamp::ZERO.plus(idle_min).nanos(),
            limits,
        }
    }

    /// What the table holds.
    pub fn occupancy(&self) -> Occupancy {
        Occupancy {
            flows: self.flows.len() - self.free.len(),
            held_segments: self.held.segments_in_use(),
            held_blocks: self.held.blocks_in_use(),
            carries: self.carries.in_use(),
        }
    }

    /// Takes a segment and emits the stream events that follow from it, of its own flow and of flows whose patience has
    /// ended by its time.
    ///
    /// `classify` is asked only about segments of unknown flows, with source and destination. `tallies` is indexed by
    /// [`TargetId::index`]. The answer of `emit` matters for [`StreamEvent::Bytes`] only.
    #[inline]
    pub fn handle_segment<E: FnMut(&FlowTuple, &mut S, StreamEvent<'_>) -> Demand>(
        &mut self,
        segment: &Segment<'_>,
        classify: impl FnOnce(&Endpoint, &Endpoint) -> Orientation,
        tallies: &mut [TargetTally],
        emit: &mut E,
    ) {
        self.held.count_packet();
        self.tick(segment.timestamp, tallies, emit);
        let hash = self.hash(&segment.source, &segment.destination);
        let found = self.find(hash, segment).filter(|&(slot, _)| {
            let expired = self.is_expired(slot, segment.timestamp);
            if expired {
                self.remove(slot, segment.timestamp, tallies, emit);
            }
            !expired
        });
        let (slot, direction) = match found {
            Some(found) => found,
            None => {
                let orientation = classify(&segment.source, &segment.destination);
                let Some((direction, target)) = orientation.decide(segment.flags) else { return };
                let Some(slot) = self.open(hash, segment, direction, target, tallies, emit) else {
                    count_packet(&mut tallies[target.index()], direction, segment);
                    return;
                };
                (slot, direction)
            }
        };
        let mut assembler = self.assembler(slot, segment.timestamp, tallies, emit);
        count_packet(assembler.listener.tally, direction, segment);
        let opens_or_resets = segment.flags.0 & (TcpFlags::SYN.0 | TcpFlags::RST.0) != 0;
        if opens_or_resets || assembler.flow.candidate_seen {
            self.control(slot, segment, direction, tallies, emit);
        } else {
            assembler.flow.touch(segment.timestamp);
            assembler.handle(segment, direction, SeqNumber(segment.seq));
        }
    }

    /// Lets time pass without a packet: ends waits that have lasted too long and forgets flows that have been quiet too
    /// long. Work is bounded; what one call leaves undone the next ones do.
    #[inline]
    pub fn tick<E: FnMut(&FlowTuple, &mut S, StreamEvent<'_>) -> Demand>(
        &mut self,
        now: Timestamp,
        tallies: &mut [TargetTally],
        emit: &mut E,
    ) {
        if !self.held.is_empty() {
            self.end_waits(now, tallies, emit);
        }
        if self.hand.is_due(now) {
            self.sweep(now, tallies, emit);
        }
    }

    /// Ends every flow: what is held is delivered behind declared gaps, then both directions are closed. For the end of
    /// a recording.
    pub fn close_all<E: FnMut(&FlowTuple, &mut S, StreamEvent<'_>) -> Demand>(
        &mut self,
        tallies: &mut [TargetTally],
        emit: &mut E,
    ) {
        self.close(0..self.flows.len(), |_| true, tallies, emit);
    }

    /// Number of slots.
    pub fn slots(&self) -> usize {
        self.flows.len()
    }

    /// Ends the flows of a target in these slots, as [`FlowTable::close_all`] does.
    pub fn close_target<E: FnMut(&FlowTuple, &mut S, StreamEvent<'_>) -> Demand>(
        &mut self,
        target: TargetId,
        slots: Range<usize>,
        tallies: &mut [TargetTally],
        emit: &mut E,
    ) {
        self.close(slots, |tuple| tuple.target == target, tallies, emit);
    }

    fn close<E: FnMut(&FlowTuple, &mut S, StreamEvent<'_>) -> Demand>(
        &mut self,
        slots: Range<usize>,
        ends: impl Fn(&FlowTuple) -> bool,
        tallies: &mut [TargetTally],
        emit: &mut E,
    ) {
        for slot in slots {
            let flow = &self.flows[slot];
            if flow.life != Life::Free && ends(&flow.tuple) {
                let last_seen = flow.last_seen;
                self.remove(narrow(slot), last_seen, tallies, emit);
            }
        }
    }

    /// Lends a flow with its surroundings.
    #[inline(always)]
    pub(super) fn assembler<'a, E>(
        &'a mut self,
        slot: u32,
        now: Timestamp,
        tallies: &'a mut [TargetTally],
        emit: &'a mut E,
    ) -> Assembler<'a, S, E> {
        let flow = &mut self.flows[slot as usize];
        let listener = Listener {
            tuple: flow.tuple,
            state: &mut self.states[slot as usize],
            tally: &mut tallies[flow.tuple.target.index()],
            emit,
            carries: &mut self.carries,
            skip_bytes_max: self.limits.skip_bytes_max,
        };
        Assembler { flow, slot, listener, held: &mut self.held, limits: &self.limits, now }
    }

    /// The same for both directions of a connection. Each endpoint is hashed with the secret seed, so that no choice
    /// of addresses makes equal sums.
    #[inline(always)]
    fn hash(&self, one: &Endpoint, other: &Endpoint) -> u64 {
        hash_endpoint(&self.hasher, one).wrapping_add(hash_endpoint(&self.hasher, other))
    }

    /// The flow of a segment, and which way the segment goes.
    #[inline(always)]
    fn find(&self, hash: u64, segment: &Segment<'_>) -> Option<(u32, Direction)> {
        let mut direction = Direction::ToServer;
        let slot = self.index.find(hash, |slot| {
            let FlowTuple { server, client, .. } = &self.flows[slot as usize].tuple;
            if *server == segment.destination && *client == segment.source {
                direction = Direction::ToServer;
                return true;
            }
            direction = Direction::ToClient;
            *server == segment.source && *client == segment.destination
        })?;
        Some((slot, direction))
    }

    /// A slot for the flow that a segment belongs to, or `None` when the segment is no reason to follow one: nothing is
    /// to be learnt from the last acknowledgements of a connection that is over.
    fn open<E: FnMut(&FlowTuple, &mut S, StreamEvent<'_>) -> Demand>(
        &mut self,
        hash: u64,
        segment: &Segment<'_>,
        direction: Direction,
        target: TargetId,
        tallies: &mut [TargetTally],
        emit: &mut E,
    ) -> Option<u32> {
        let beginning = handshake(segment, direction);
        let carries_on = segment.payload_wire_bytes > 0 && !segment.flags.has(TcpFlags::SYN);
        if segment.flags.has(TcpFlags::RST) || !(beginning.is_some() || carries_on) {
            return None;
        }
        let slot = self.vacate(hash, segment.timestamp, tallies, emit);
        let (server, client) = match direction {
            Direction::ToServer => (segment.destination, segment.source),
            Direction::ToClient => (segment.source, segment.destination),
        };
        let tuple = FlowTuple { target, server, client, transport: Transport::Tcp };
        self.begin(slot, tuple, segment.timestamp, beginning);
        if beginning.is_none() {
            tallies[target.index()].anomalies.count(Anomaly::MidStream);
        }
        let entered = self.index.insert(hash, slot);
        debug_assert!(entered, "room was made");
        Some(slot)
    }

    /// Makes room in the index and takes a free slot.
    fn vacate<E: FnMut(&FlowTuple, &mut S, StreamEvent<'_>) -> Demand>(
        &mut self,
        hash: u64,
        now: Timestamp,
        tallies: &mut [TargetTally],
        emit: &mut E,
    ) -> u32 {
        while self.free.is_empty() || !self.index.has_room(hash) {
            let neighbour = self.index.neighbours(hash).min_by_key(|&slot| {
                let flow = &self.flows[slot as usize];
                (!flow.is_closed(), flow.life == Life::Established, flow.last_seen)
            });
            // A full slab whose index has nobody here: the hand's choice is as good as any.
            let victim = neighbour.unwrap_or_else(|| self.hand.pass());
            let flow = &self.flows[victim as usize];
            if !flow.is_closed() {
                tallies[flow.tuple.target.index()].anomalies.count(Anomaly::FlowShed);
            }
            self.remove(victim, now, tallies, emit);
        }
        self.free.pop().expect("a slot was freed")
    }

    /// Sets a slot up for a flow, with its streams when its beginning was seen.
    pub(super) fn begin(
        &mut self,
        slot: u32,
        tuple: FlowTuple,
        timestamp: Timestamp,
        beginning: Option<[Stream; 2]>,
    ) {
        self.flows[slot as usize] = Flow {
            tuple,
            life: Life::Embryonic,
            last_seen: timestamp,
            handshake: beginning.is_some(),
            streams: beginning.unwrap_or([Stream::UNSEEN; 2]),
            ..Flow::FREE
        };
        self.states[slot as usize] = S::default();
    }

    /// Ends a flow and frees its slot.
    fn remove<E: FnMut(&FlowTuple, &mut S, StreamEvent<'_>) -> Demand>(
        &mut self,
        slot: u32,
        now: Timestamp,
        tallies: &mut [TargetTally],
        emit: &mut E,
    ) {
        self.assembler(slot, now, tallies, emit).finish();
        let tuple = self.flows[slot as usize].tuple;
        self.index.remove(self.hash(&tuple.server, &tuple.client), slot);
        self.flows[slot as usize].life = Life::Free;
        self.free.push(slot);
    }

    /// Settles the flows whose first held segment has waited long enough.
    #[cold]
    fn end_waits<E: FnMut(&FlowTuple, &mut S, StreamEvent<'_>) -> Demand>(
        &mut self,
        now: Timestamp,
        tallies: &mut [TargetTally],
        emit: &mut E,
    ) {
        for patience in Patience::ALL {
            // Ends: settling always delivers a segment, declares bytes a gap, or starts a segment's patience anew. What
            // came long after now came before the clock was set back.
            while let Some((id, since, packets)) = self.held.front(patience)
                && (now >= since.plus(self.wait_max(patience, packets))
                    || since > now.plus(CLOCK_SET_BACK_MIN))
            {
                let arrival = *self.held.arrival(id);
                self.assembler(arrival.slot, now, tallies, emit).settle(arrival.direction);
            }
        }
    }

    /// How long a held segment may wait when so many packets have come since.
    fn wait_max(&self, patience: Patience, packets: u64) -> Duration {
        match patience {
            Patience::Reordering if packets < self.limits.hold_packets => self.limits.hold_max,
            Patience::Reordering => self.limits.hold,
            Patience::Retransmission => self.limits.retransmission_wait,
            Patience::RetransmissionUnacknowledged => self.limits.retransmission_wait_unacknowledged,
        }
    }

    /// Moves the clock hand on, and removes the quiet flows that it passes.
    #[cold]
    fn sweep<E: FnMut(&FlowTuple, &mut S, StreamEvent<'_>) -> Demand>(
        &mut self,
        now: Timestamp,
        tallies: &mut [TargetTally],
        emit: &mut E,
    ) {
        for _ in 0..self.hand.begin_move(now) {
            let slot = self.hand.pass();
            if self.flows[slot as usize].life != Life::Free && self.is_expired(slot, now) {
                self.remove(slot, now, tallies, emit);
            }
        }
    }

    /// Whether a flow has been quiet for longer than one of its kind may be.
    #[inline]
    fn is_expired(&self, slot: u32, now: Timestamp) -> bool {
        let flow = &self.flows[slot as usize];
        if now.nanos().saturating_sub(flow.last_seen.nanos()) <= self.idle_nanos_min {
            return false;
        }
        let idle_max = match flow.life {
            _ if flow.is_closed() => self.limits.closed_idle_max,
            Life::Established if !flow.is_closing() => self.limits.flow_idle_max,
            _ => self.limits.embryonic_idle_max,
        };
        now > flow.last_seen.plus(idle_max)
    }
}

/// The streams of a flow that begins with this segment: with a SYN of the client's, or, where that was missed, with the server's
/// answer to it.
pub(super) fn handshake(segment: &Segment<'_>, direction: Direction) -> Option<[Stream; 2]> {
    let own = Stream::starting(SeqNumber(segment.seq).plus(1), Phase::Framed);
    match (direction, segment.flags.has(TcpFlags::SYN), segment.flags.has(TcpFlags::ACK)) {
        (Direction::ToServer, true, false) => Some([own, Stream::UNSEEN]),
        (Direction::ToClient, true, true) => {
            Some([Stream::starting(SeqNumber(segment.ack), Phase::Framed), own])
        }
        _ => None,
    }
}

/// The address as one number, so that the hasher takes it in one step; and step by step, because `hash_one` would be a call.
#[inline(always)]
fn hash_endpoint(hasher: &RandomState, endpoint: &Endpoint) -> u64 {
    let mut hasher = hasher.build_hasher();
    hasher.write_u128(u128::from_ne_bytes(*endpoint.octets()));
    hasher.write_u16(endpoint.port());
    hasher.finish()
}

#[inline(always)]
fn count_packet(tally: &mut TargetTally, direction: Direction, segment: &Segment<'_>) {
    tally.packets[direction.index()] += 1;
    tally.payload_packets[direction.index()] += u64::from(segment.payload_wire_bytes > 0);
}

//! Memcached over UDP: exchanges instead of flows.
//!
//! Every datagram begins with a frame header of eight bytes: request id, number of the datagram in its message, number
//! of datagrams of the message, zero (memcached `doc/protocol.txt`, "UDP protocol"). A request is one datagram; memcached
//! drops others unread (`memcached.c`, `try_read_udp`). A response is any number of messages with the request's id, each hit of
//! a multi-key get being one of its own: they are lent to the parser one after the other, so that numbers beginning
//! anew are nothing special.
//!
//! Nothing is sized by a number from the wire. An exchange keeps one stream for its response; an early datagram is held for
//! a moment in a fixed pool. A datagram that does not come is a hole of known length when it is in the middle of a message,
//! and free inside a body.

use super::flow::{Occupancy, Orientation};
use super::limits::ReassemblyLimits;
use super::pool::{Arrival, CarryPool, HeldPool, NIL, Patience, free_list};
use super::sequence::SeqNumber;
use super::stream::{Listener, Passage, Phase, Stream, narrow};
use super::table::{ClockHand, SlotIndex};
use super::{Demand, StreamEvent, TargetTally};
use crate::anomaly::Anomaly;
use crate::capture::{Datagram, TcpFlags};
use crate::model::{Direction, Endpoint, FlowTuple, TargetId, Timestamp, Transport};
use foldhash::quality::RandomState;
use std::hash::BuildHasher;
use std::ops::Range;

/// Length of the frame header.
pub const FRAME_HEADER_BYTES: usize = 8;

/// Payload of each but the last datagram of a message: `UDP_MAX_PAYLOAD_SIZE` less the frame header (memcached.h).
const FULL_DATAGRAM_BYTES: u32 = 1400 - 8;

/// The frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FrameHeader {
    request_id: u16,
    /// Number of this datagram in its message, from 0.
    number: u16,
    /// Datagrams of the message.
    total: u16,
}

impl FrameHeader {
    fn parse(payload: &[u8]) -> Option<FrameHeader> {
        let (header, _) = payload.split_first_chunk::<FRAME_HEADER_BYTES>()?;
        let [id_high, id_low, number_high, number_low, total_high, total_low, _, _] = *header;
        Some(FrameHeader {
            request_id: u16::from_be_bytes([id_high, id_low]),
            number: u16::from_be_bytes([number_high, number_low]),
            total: u16::from_be_bytes([total_high, total_low]),
        })
    }
}

/// A request id of a client with a server, and how far its response has come.
#[derive(Clone, Copy, Debug)]
struct Exchange {
    last_seen: Timestamp,
    /// The response; its numbers count payload bytes and mean nothing else.
    response: Stream,
    tuple: FlowTuple,
    request_id: u16,
    /// The message that is being received: its datagrams, and the number of the next. Equal between messages.
    total: u16,
    next: u16,
    live: bool,
    /// Whether a request, or a response, was seen.
    asked: bool,
    answered: bool,
}

impl Exchange {
    const FREE: Exchange = Exchange {
        last_seen: Timestamp::ZERO,
        response: Stream::starting(SeqNumber(0), Phase::Framed),
        tuple: FlowTuple {
            target: TargetId(0),
            server: Endpoint::from_ipv4([0; 4], 0),
            client: Endpoint::from_ipv4([0; 4], 0),
            transport: Transport::Udp,
        },
        request_id: 0,
        total: 0,
        next: 0,
        live: false,
        asked: false,
        answered: false,
    };

    /// Whether a datagram continues the message that is being received, or begins one when none is.
    fn is_next(&self, number: u16, total: u16) -> bool {
        if self.next == self.total { number == 0 } else { number == self.next && total == self.total }
    }

    /// Whether a datagram can belong to the rest of the message that is being received.
    fn continues(&self, number: u16, total: u16) -> bool {
        self.next != self.total && total == self.total && number >= self.next
    }

    /// Whether something of it was still to come.
    fn is_unfinished(&self) -> bool {
        self.next != self.total || self.response.held != NIL || (self.asked && !self.answered)
    }
}

/// A datagram seen a moment ago.
#[derive(Clone, Copy, Debug)]
struct Recent {
    fingerprint: u64,
    timestamp: Timestamp,
}

/// The UDP exchanges of one worker; `S` is what the parser remembers of each.
pub struct DatagramTable<S> {
    exchanges: Box<[Exchange]>,
    /// The state in a slot is `S::default()` whenever an exchange begins there.
    states: Box<[S]>,
    /// Slots whose exchange is not live.
    free: Vec<u32>,
    /// Has each live exchange, and no other.
    index: SlotIndex,
    hasher: RandomState,
    /// Direct-mapped by fingerprint; its length is a power of two.
    recent: Box<[Recent]>,
    carries: CarryPool,
    /// Early datagrams; their lists are in the order of arrival.
    held: HeldPool,
    hand: ClockHand,
    limits: ReassemblyLimits,
}

impl<S: Default> DatagramTable<S> {
    /// An empty table at full size.
    ///
    /// # Panics
    ///
    /// When a limit is out of the range that the data structures allow: no exchanges, or 2^32 of anything.
    pub fn new(limits: ReassemblyLimits) -> DatagramTable<S> {
        assert!(limits.exchanges_max > 0, "a datagram table needs at least one slot");
        let recent = limits.recent_datagrams_max.max(1).next_power_of_two();
        DatagramTable {
            exchanges: vec![Exchange::FREE; limits.exchanges_max].into_boxed_slice(),
            states: (0..limits.exchanges_max).map(|_| S::default()).collect(),
            free: free_list(limits.exchanges_max),
            index: SlotIndex::new(limits.exchanges_max),
            hasher: RandomState::default(),
            recent: vec![Recent { fingerprint: 0, timestamp: Timestamp::ZERO }; recent].into_boxed_slice(),
            carries: CarryPool::new(limits.datagram_carries_max),
            held: HeldPool::new(limits.held_datagrams_max, limits.held_datagrams_max),
            hand: ClockHand::new(limits.exchanges_max, limits.exchange_idle_max),
            limits,
        }
    }

    /// What the table holds.
    pub fn occupancy(&self) -> Occupancy {
        Occupancy {
            flows: self.exchanges.len() - self.free.len(),
            held_segments: self.held.segments_in_use(),
            held_blocks: self.held.blocks_in_use(),
            carries: self.carries.in_use(),
        }
    }

    /// Takes a datagram and emits the stream events that follow from it. `classify` is asked about every datagram; `tallies` is
    /// indexed by [`TargetId::index`].
    pub fn handle_datagram<E: FnMut(&FlowTuple, &mut S, StreamEvent<'_>) -> Demand>(
        &mut self,
        datagram: &Datagram<'_>,
        classify: impl FnOnce(&Endpoint, &Endpoint) -> Orientation,
        tallies: &mut [TargetTally],
        emit: &mut E,
    ) {
        self.tick(datagram.timestamp, tallies, emit);
        let orientation = classify(&datagram.source, &datagram.destination);
        let header = FrameHeader::parse(datagram.payload);
        let Some((direction, target)) = self.decide(orientation, header, datagram) else { return };
        let tally = &mut tallies[target.index()];
        tally.packets[direction.index()] += 1;
        let has_payload = datagram.payload_wire_bytes as usize > FRAME_HEADER_BYTES;
        tally.payload_packets[direction.index()] += u64::from(has_payload);
        if self.is_copy(datagram) {
            tally.anomalies.count(Anomaly::DuplicateSegment);
            return;
        }
        let Some(header) = header else {
            tally.anomalies.count(Anomaly::DatagramMalformed);
            return;
        };
        match direction {
            Direction::ToServer if !has_payload => {} // memcached ignores it as well
            Direction::ToServer if header.total != 1 => tally.anomalies.count(Anomaly::DatagramMalformed),
            Direction::ToServer => self.request(datagram, header, target, tallies, emit),
            // What a miss in the midst of a multi-key get makes: no message at all.
            Direction::ToClient if header.total == 0 && !has_payload => {
                if let Some(slot) = self.find(&datagram.destination, &datagram.source, header.request_id) {
                    self.exchanges[slot as usize].answered = true;
                    self.exchanges[slot as usize].last_seen = datagram.timestamp;
                }
            }
            Direction::ToClient if header.number >= header.total => {
                tally.anomalies.count(Anomaly::DatagramMalformed);
            }
            Direction::ToClient => self.response(datagram, header, target, tallies, emit),
        }
    }

    /// Lets time pass without a packet: ends waits that have lasted too long and forgets exchanges that are over.
    #[inline]
    pub fn tick<E: FnMut(&FlowTuple, &mut S, StreamEvent<'_>) -> Demand>(
        &mut self,
        now: Timestamp,
        tallies: &mut [TargetTally],
        emit: &mut E,
    ) {
        // Ends: each time round delivers what is held in one exchange.
        while let Some((id, since, _)) = self.held.front(Patience::Reordering)
            && since.plus(self.limits.hold) <= now
        {
            let slot = self.held.arrival(id).slot;
            self.receiver(slot, tallies, emit).settle();
        }
        if self.hand.is_due(now) {
            for _ in 0..self.hand.begin_move(now) {
                let slot = self.hand.pass();
                let exchange = &self.exchanges[slot as usize];
                if exchange.live && now.since(exchange.last_seen) > self.limits.exchange_idle_max {
                    self.remove(slot, tallies, emit);
                }
            }
        }
    }

    /// Ends every exchange, for the end of a recording.
    pub fn close_all<E: FnMut(&FlowTuple, &mut S, StreamEvent<'_>) -> Demand>(
        &mut self,
        tallies: &mut [TargetTally],
        emit: &mut E,
    ) {
        self.close(0..self.exchanges.len(), |_| true, tallies, emit);
    }

    /// Number of slots.
    pub fn slots(&self) -> usize {
        self.exchanges.len()
    }

    /// Ends the exchanges of a target in these slots.
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
            let exchange = &self.exchanges[slot];
            if exchange.live && ends(&exchange.tuple) {
                self.remove(narrow(slot), tallies, emit);
            }
        }
    }

    /// Which way a datagram goes. Between two servers, one that answers a known request is a response.
    fn decide(
        &self,
        orientation: Orientation,
        header: Option<FrameHeader>,
        datagram: &Datagram<'_>,
    ) -> Option<(Direction, TargetId)> {
        if let Orientation { source: Some(target), destination: Some(_) } = orientation
            && let Some(FrameHeader { request_id, .. }) = header
            && self.find(&datagram.destination, &datagram.source, request_id).is_some()
        {
            return Some((Direction::ToClient, target));
        }
        orientation.decide(TcpFlags::default())
    }

    /// Whether an equal datagram was seen a moment ago: a mirror port's copy.
    fn is_copy(&mut self, datagram: &Datagram<'_>) -> bool {
        let sender = hash_endpoint(&self.hasher, &datagram.source);
        let receiver = hash_endpoint(&self.hasher, &datagram.destination);
        let fingerprint =
            self.hasher.hash_one((datagram.identity, sender, receiver, datagram.payload_wire_bytes));
        let place = (fingerprint & (self.recent.len() as u64 - 1)) as usize;
        let recent = &mut self.recent[place];
        let copy = recent.fingerprint == fingerprint
            && datagram.timestamp.since(recent.timestamp) <= self.limits.copy_window;
        *recent = Recent { fingerprint, timestamp: datagram.timestamp };
        copy
    }

    fn hash(&self, client: &Endpoint, server: &Endpoint, request_id: u16) -> u64 {
        let client = hash_endpoint(&self.hasher, client);
        let server = hash_endpoint(&self.hasher, server);
        self.hasher.hash_one((client, server, request_id))
    }

    fn find(&self, client: &Endpoint, server: &Endpoint, request_id: u16) -> Option<u32> {
        self.index.find(self.hash(client, server, request_id), |slot| {
            let exchange = &self.exchanges[slot as usize];
            exchange.request_id == request_id
                && exchange.tuple.client == *client
                && exchange.tuple.server == *server
        })
    }

    /// The newest request with an id wins: an older exchange with it is over.
    fn request<E: FnMut(&FlowTuple, &mut S, StreamEvent<'_>) -> Demand>(
        &mut self,
        datagram: &Datagram<'_>,
        header: FrameHeader,
        target: TargetId,
        tallies: &mut [TargetTally],
        emit: &mut E,
    ) {
        let (client, server) = (datagram.source, datagram.destination);
        if let Some(slot) = self.find(&client, &server, header.request_id) {
            self.remove(slot, tallies, emit);
        }
        let tuple = FlowTuple { target, server, client, transport: Transport::Udp };
        let slot = self.open(tuple, header.request_id, datagram.timestamp, tallies, emit);
        self.exchanges[slot as usize].asked = true;
        self.receiver(slot, tallies, emit).take_request(datagram);
    }

    /// A response finds its exchange, or begins one whose request was not seen.
    fn response<E: FnMut(&FlowTuple, &mut S, StreamEvent<'_>) -> Demand>(
        &mut self,
        datagram: &Datagram<'_>,
        header: FrameHeader,
        target: TargetId,
        tallies: &mut [TargetTally],
        emit: &mut E,
    ) {
        let (client, server) = (datagram.destination, datagram.source);
        let slot = match self.find(&client, &server, header.request_id) {
            Some(slot) => slot,
            None => {
                let tuple = FlowTuple { target, server, client, transport: Transport::Udp };
                self.open(tuple, header.request_id, datagram.timestamp, tallies, emit)
            }
        };
        let exchange = &mut self.exchanges[slot as usize];
        exchange.answered = true;
        exchange.last_seen = datagram.timestamp;
        let payload = &datagram.payload[FRAME_HEADER_BYTES..];
        let arrival = Arrival {
            seq: SeqNumber(u32::from(header.number)),
            wire_bytes: datagram.payload_wire_bytes.max(narrow(datagram.payload.len()))
                - narrow(FRAME_HEADER_BYTES),
            captured_bytes: narrow(payload.len()),
            ack: Some(SeqNumber(u32::from(header.total))),
            fin: false,
            whole: true,
            timestamp: datagram.timestamp,
            slot,
            direction: Direction::ToClient,
        };
        self.receiver(slot, tallies, emit).take_response(&arrival, payload);
    }

    /// A slot for a new exchange, made by pushing out the least recently used of its neighbours if need be.
    fn open<E: FnMut(&FlowTuple, &mut S, StreamEvent<'_>) -> Demand>(
        &mut self,
        tuple: FlowTuple,
        request_id: u16,
        timestamp: Timestamp,
        tallies: &mut [TargetTally],
        emit: &mut E,
    ) -> u32 {
        let hash = self.hash(&tuple.client, &tuple.server, request_id);
        while self.free.is_empty() || !self.index.has_room(hash) {
            let last_seen = |slot: &u32| self.exchanges[*slot as usize].last_seen;
            let neighbour = self.index.neighbours(hash).min_by_key(last_seen);
            let victim = neighbour.unwrap_or_else(|| self.hand.pass());
            let exchange = &self.exchanges[victim as usize];
            if exchange.is_unfinished() {
                tallies[exchange.tuple.target.index()].anomalies.count(Anomaly::DatagramShed);
            }
            self.remove(victim, tallies, emit);
        }
        let slot = self.free.pop().expect("a slot was freed");
        let entered = self.index.insert(hash, slot);
        debug_assert!(entered, "room was made");
        self.exchanges[slot as usize] =
            Exchange { tuple, request_id, last_seen: timestamp, live: true, ..Exchange::FREE };
        self.states[slot as usize] = S::default();
        slot
    }

    /// Ends an exchange and frees its slot.
    fn remove<E: FnMut(&FlowTuple, &mut S, StreamEvent<'_>) -> Demand>(
        &mut self,
        slot: u32,
        tallies: &mut [TargetTally],
        emit: &mut E,
    ) {
        self.receiver(slot, tallies, emit).finish();
        let Exchange { tuple, request_id, .. } = self.exchanges[slot as usize];
        self.index.remove(self.hash(&tuple.client, &tuple.server, request_id), slot);
        self.exchanges[slot as usize].live = false;
        self.free.push(slot);
    }

    /// Lends an exchange with its surroundings.
    fn receiver<'a, E>(
        &'a mut self,
        slot: u32,
        tallies: &'a mut [TargetTally],
        emit: &'a mut E,
    ) -> Receiver<'a, S, E> {
        let exchange = &mut self.exchanges[slot as usize];
        let listener = Listener {
            tuple: exchange.tuple,
            state: &mut self.states[slot as usize],
            tally: &mut tallies[exchange.tuple.target.index()],
            emit,
            carries: &mut self.carries,
            skip_bytes_max: self.limits.skip_bytes_max,
        };
        Receiver {
            exchange,
            listener,
            held: &mut self.held,
            held_max: self.limits.held_datagrams_exchange_max,
        }
    }
}

/// One exchange with everything that its datagrams need, lent for one call.
struct Receiver<'a, S, E> {
    exchange: &'a mut Exchange,
    listener: Listener<'a, S, E>,
    held: &'a mut HeldPool,
    held_max: u8,
}

impl<S, E: FnMut(&FlowTuple, &mut S, StreamEvent<'_>) -> Demand> Receiver<'_, S, E> {
    /// A request is complete or worthless: what the parser leaves of it is not kept.
    fn take_request(&mut self, datagram: &Datagram<'_>) {
        let mut stream = Stream::starting(SeqNumber(0), Phase::Framed);
        let mut passage = Passage::starting(Direction::ToServer, datagram.timestamp);
        self.listener.consume(&mut stream, &mut passage, &datagram.payload[FRAME_HEADER_BYTES..]);
        let uncaptured = datagram.payload_wire_bytes.saturating_sub(narrow(datagram.payload.len()));
        self.listener.pass_hole(&mut stream, &mut passage, uncaptured);
        self.listener.drop_carry(&mut stream);
    }

    /// Delivers a datagram of the response when it is its turn, and what was waiting for it; holds it otherwise.
    fn take_response(&mut self, arrival: &Arrival, payload: &[u8]) {
        let (number, total) = numbers(arrival);
        if self.exchange.is_next(number, total) {
            self.deliver(arrival, std::iter::once(payload));
            self.pump();
        } else if !self.hold(arrival, payload) {
            self.listener.tally.anomalies.count(Anomaly::DatagramShed);
            while self.exchange.response.held != NIL {
                self.settle();
            }
            self.pass_missing(number, total);
            self.deliver(arrival, std::iter::once(payload));
        }
    }

    fn hold(&mut self, arrival: &Arrival, payload: &[u8]) -> bool {
        let stream = &mut self.exchange.response;
        if stream.held_segments >= self.held_max {
            return false;
        }
        let Some(id) = self.held.hold(*arrival, payload, Patience::Reordering) else { return false };
        let last = self.held.last(stream.held);
        stream.held = self.held.link(stream.held, last, id);
        stream.held_segments += 1;
        self.listener.tally.anomalies.count(Anomaly::OutOfOrderSegment);
        true
    }

    /// Delivers held datagrams as long as it is the turn of one.
    fn pump(&mut self) {
        while let Some((before, id)) =
            self.find_held(|exchange, number, total| exchange.is_next(number, total))
        {
            self.deliver_held(before, id);
        }
    }

    /// Stops waiting: goes on with the rest of the message that is being received, or else with the next one.
    fn settle(&mut self) {
        // Within a class the lowest number goes first, and of equal ones the first to arrive.
        let rank = |exchange: &Exchange, (number, total): (u16, u16)| {
            let class = if exchange.continues(number, total) { 0 } else { 1 };
            (class, number)
        };
        let mut first: Option<((u8, u16), u32, u32)> = None;
        let mut before = NIL;
        for id in self.held.list(self.exchange.response.held) {
            let rank = rank(self.exchange, numbers(self.held.arrival(id)));
            if first.is_none_or(|(least, ..)| rank < least) {
                first = Some((rank, before, id));
            }
            before = id;
        }
        let Some((_, before, id)) = first else { return };
        let (number, total) = numbers(self.held.arrival(id));
        self.pass_missing(number, total);
        self.deliver_held(before, id);
        self.pump();
    }

    /// Gives up the datagrams that go before this one.
    fn pass_missing(&mut self, number: u16, total: u16) {
        let mut passage = Passage::starting(Direction::ToClient, self.exchange.last_seen);
        if !self.exchange.continues(number, total) {
            self.end_message(&mut passage);
            self.exchange.total = total;
            self.exchange.next = 0;
        }
        let missing = u32::from(number - self.exchange.next) * FULL_DATAGRAM_BYTES;
        self.listener.pass_hole(&mut self.exchange.response, &mut passage, missing);
        self.exchange.next = number;
    }

    /// The rest of the message that is being received will not come. Its length is unknown, because the last datagram's is.
    fn end_message(&mut self, passage: &mut Passage) {
        if self.exchange.next == self.exchange.total {
            return;
        }
        let rest_max = u32::from(self.exchange.total - self.exchange.next) * FULL_DATAGRAM_BYTES;
        let stream = &mut self.exchange.response;
        if stream.is_framed() {
            self.listener.tally.anomalies.count(Anomaly::Gap);
        }
        let body = stream.skip.min(rest_max);
        self.listener.pass_hole(stream, passage, body);
        self.listener.lose(stream, passage, stream.next);
        self.exchange.next = self.exchange.total;
    }

    fn find_held(&self, wanted: impl Fn(&Exchange, u16, u16) -> bool) -> Option<(u32, u32)> {
        let mut before = NIL;
        for id in self.held.list(self.exchange.response.held) {
            let (number, total) = numbers(self.held.arrival(id));
            if wanted(self.exchange, number, total) {
                return Some((before, id));
            }
            before = id;
        }
        None
    }

    fn deliver_held(&mut self, before: u32, id: u32) {
        let stream = &mut self.exchange.response;
        stream.held = self.held.unlink(stream.held, before, id);
        stream.held_segments -= 1;
        let arrival = *self.held.arrival(id);
        deliver(self.exchange, &mut self.listener, &arrival, self.held.payload(id));
        self.held.release(id);
    }

    fn deliver<'b>(&mut self, arrival: &Arrival, pieces: impl Iterator<Item = &'b [u8]>) {
        deliver(self.exchange, &mut self.listener, arrival, pieces);
    }

    /// Delivers what is held behind declared gaps, and closes both directions.
    fn finish(&mut self) {
        while self.exchange.response.held != NIL {
            self.settle();
        }
        let mut request = Stream::starting(SeqNumber(0), Phase::Framed);
        self.listener.close(&mut request, Direction::ToServer);
        self.listener.close(&mut self.exchange.response, Direction::ToClient);
    }
}

/// Takes the bytes of a datagram of the response whose turn it is.
fn deliver<'b, S, E: FnMut(&FlowTuple, &mut S, StreamEvent<'_>) -> Demand>(
    exchange: &mut Exchange,
    listener: &mut Listener<'_, S, E>,
    arrival: &Arrival,
    pieces: impl Iterator<Item = &'b [u8]>,
) {
    let (number, total) = numbers(arrival);
    exchange.total = total;
    exchange.next = number + 1;
    let mut passage = Passage::starting(Direction::ToClient, arrival.timestamp);
    for piece in pieces {
        listener.consume(&mut exchange.response, &mut passage, piece);
    }
    let uncaptured = arrival.wire_bytes - arrival.captured_bytes;
    listener.pass_hole(&mut exchange.response, &mut passage, uncaptured);
}

/// Number in the message, and datagrams of the message, of a held datagram; both came from 16 bits.
fn numbers(arrival: &Arrival) -> (u16, u16) {
    let low = |number: SeqNumber| u16::try_from(number.0).unwrap_or(u16::MAX);
    (low(arrival.seq), arrival.ack.map_or(0, low))
}

fn hash_endpoint(hasher: &RandomState, endpoint: &Endpoint) -> u64 {
    hasher.hash_one((u128::from_ne_bytes(*endpoint.octets()), endpoint.port()))
}

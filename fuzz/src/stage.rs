//! Reassembly and parser as the pipeline joins them, with a listener between the two that remembers what the parser was lent.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use memtap::anomaly::{Anomaly, AnomalyCounts};
use memtap::capture::{Datagram, Segment};
use memtap::model::{Command, Endpoint, FlowTuple, Outcome, TargetId, Timestamp};
use memtap::parser::{Connection, Observation, ParserLimits, Transactions};
use memtap::reassembly::datagram::DatagramTable;
use memtap::reassembly::flow::{FlowTable, Occupancy, Orientation};
use memtap::reassembly::limits::ReassemblyLimits;
use memtap::reassembly::{Demand, StreamEvent, TargetTally};

/// Port of the one target.
pub(crate) const SERVER_PORT: u16 = 11211;

/// An observation without what cuts between packets may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) command: Command,
    pub(crate) outcome: Outcome,
    pub(crate) key: Vec<u8>,
    pub(crate) bytes: [u64; 2],
}

/// Tables so small that a short input reaches their limits.
pub(crate) fn small_limits() -> ReassemblyLimits {
    ReassemblyLimits {
        flows_max: 4,
        held_segments_max: 24,
        held_blocks_max: 32,
        held_blocks_stream_max: 12,
        held_segments_stream_max: 8,
        held_segments_unacknowledged_max: 4,
        carries_max: 3,
        exchanges_max: 4,
        held_datagrams_max: 6,
        datagram_carries_max: 2,
        recent_datagrams_max: 8,
        held_datagrams_exchange_max: 4,
        ..ReassemblyLimits::default()
    }
}

pub(crate) fn small_parser_limits() -> ParserLimits {
    ParserLimits {
        requests_max: 48,
        connection_requests_max: 40,
        lookahead_max: 8,
        held_max: 4,
        ..ParserLimits::default()
    }
}

/// Both tables, the parser, and what came out of them.
pub(crate) struct Stage {
    flows: FlowTable<Connection>,
    datagrams: DatagramTable<Connection>,
    limits: ReassemblyLimits,
    transactions: Transactions,
    requests_max: u32,
    pub(crate) tally: TargetTally,
    pub(crate) parser_anomalies: AnomalyCounts,
    heard: Heard,
}

/// What the parser was lent, and what it made of it.
#[derive(Default)]
struct Heard {
    /// Every slice that was lent, one after the other, each behind a byte that is in no key.
    lent: Vec<u8>,
    seen: Vec<Seen>,
    /// An answer was taken that had begun before the last byte of its request.
    answered_early: bool,
}

impl Heard {
    fn lend(&mut self, event: &StreamEvent<'_>) {
        if let StreamEvent::Bytes(bytes) = event {
            assert!(!bytes.bytes.is_empty(), "an empty offer");
            self.lent.push(b' ');
            self.lent.extend(bytes.bytes);
        }
    }

    fn observe(&mut self, observation: &Observation<'_>) {
        let Observation { command, outcome, key, request_bytes, response_bytes, latency, notes, .. } =
            *observation;
        check_observation(observation);
        self.answered_early |= outcome != Outcome::Unseen && latency.is_none() && !notes.quiet;
        if !key.is_empty() {
            let is_meta = is_meta(command);
            let stood = contains(&self.lent, key)
                || (is_meta && contains(&self.lent, STANDARD.encode(key).as_bytes()));
            assert!(stood, "{} names a key that nobody sent: {}", command.name(), key.escape_ascii());
        }
        self.seen.push(Seen { command, outcome, key: key.to_vec(), bytes: [request_bytes, response_bytes] });
    }
}

/// What must hold for any observation.
pub(crate) fn check_observation(observation: &Observation<'_>) {
    let Observation { command, outcome, key, latency, .. } = *observation;
    assert!(key.len() <= 250, "a key of {} bytes", key.len());
    assert_eq!(command.is_keyed(), !key.is_empty(), "{} with key {}", command.name(), key.escape_ascii());
    assert!(outcome != Outcome::Unseen || latency.is_none(), "an answer that was not seen has no time");
}

fn is_meta(command: Command) -> bool {
    // A meta set that compares is counted as the server counts it.
    command == Command::Cas || command.name().starts_with('m')
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

impl Stage {
    pub(crate) fn new() -> Stage {
        let (limits, parser) = (small_limits(), small_parser_limits());
        Stage {
            flows: FlowTable::new(limits.clone()),
            datagrams: DatagramTable::new(limits.clone()),
            limits,
            requests_max: parser.requests_max,
            transactions: Transactions::new(parser),
            tally: TargetTally::default(),
            parser_anomalies: AnomalyCounts::default(),
            heard: Heard::default(),
        }
    }

    pub(crate) fn segment(&mut self, segment: &Segment<'_>) {
        let Stage { flows, transactions, tally, parser_anomalies, heard, .. } = self;
        let mut forward = forward(transactions, parser_anomalies, heard);
        flows.handle_segment(segment, orient, std::slice::from_mut(tally), &mut forward);
        drop(forward);
        self.check_bounds();
    }

    pub(crate) fn datagram(&mut self, datagram: &Datagram<'_>) {
        let Stage { datagrams, transactions, tally, parser_anomalies, heard, .. } = self;
        let mut forward = forward(transactions, parser_anomalies, heard);
        datagrams.handle_datagram(datagram, orient, std::slice::from_mut(tally), &mut forward);
        drop(forward);
        self.check_bounds();
    }

    pub(crate) fn tick(&mut self, now: Timestamp) {
        let Stage { flows, datagrams, transactions, tally, parser_anomalies, heard, .. } = self;
        let mut forward = forward(transactions, parser_anomalies, heard);
        flows.tick(now, std::slice::from_mut(tally), &mut forward);
        datagrams.tick(now, std::slice::from_mut(tally), &mut forward);
    }

    /// Whether an answer had begun before its request was complete. No server does that, but for refusals before the body.
    pub(crate) fn was_answered_early(&self) -> bool {
        self.heard.answered_early
    }

    /// Closes every flow and checks the books.
    pub(crate) fn finish(mut self) -> (Vec<Seen>, TargetTally, AnomalyCounts) {
        let Stage { flows, datagrams, transactions, tally, parser_anomalies, heard, .. } = &mut self;
        {
            let mut forward = forward(transactions, parser_anomalies, heard);
            flows.close_all(std::slice::from_mut(tally), &mut forward);
            datagrams.close_all(std::slice::from_mut(tally), &mut forward);
        }
        for left in [self.flows.occupancy(), self.datagrams.occupancy()] {
            assert_eq!(left, Occupancy::default(), "something outlived its flow");
        }
        assert_eq!(self.transactions.outstanding(), 0, "a request outlived its flow");
        check_books(&self.tally);
        (self.heard.seen, self.tally, self.parser_anomalies)
    }

    fn check_bounds(&self) {
        let (flows, datagrams, limits) = (self.flows.occupancy(), self.datagrams.occupancy(), &self.limits);
        assert!(flows.flows <= limits.flows_max && datagrams.flows <= limits.exchanges_max);
        assert!(
            flows.held_segments <= limits.held_segments_max && flows.held_blocks <= limits.held_blocks_max
        );
        assert!(datagrams.held_segments <= limits.held_datagrams_max);
        assert!(flows.carries <= limits.carries_max && datagrams.carries <= limits.datagram_carries_max);
        assert!(self.transactions.outstanding() <= self.requests_max);
    }
}

/// Bytes in = parsed + skipped + unparsed, once every flow is closed.
pub(crate) fn check_books(tally: &TargetTally) {
    let sum = |bytes: [u64; 2]| bytes[0] + bytes[1];
    let unparsed = tally.anomalies.of(Anomaly::UnparsedBytes);
    let accounted = sum(tally.parsed_bytes) + sum(tally.skipped_bytes) + unparsed;
    assert_eq!(sum(tally.payload_bytes), accounted, "{tally:?}");
    for direction in 0..2 {
        let known = tally.parsed_bytes[direction] + tally.skipped_bytes[direction];
        assert!(known <= tally.payload_bytes[direction], "{tally:?}");
    }
}

fn orient(source: &Endpoint, destination: &Endpoint) -> Orientation {
    let target = |end: &Endpoint| (end.port() == SERVER_PORT).then_some(TargetId(0));
    Orientation { source: target(source), destination: target(destination) }
}

fn forward<'a>(
    transactions: &'a mut Transactions,
    anomalies: &'a mut AnomalyCounts,
    heard: &'a mut Heard,
) -> impl FnMut(&FlowTuple, &mut Connection, StreamEvent<'_>) -> Demand + use<'a> {
    |tuple, connection, event| {
        heard.lend(&event);
        let offered = if let StreamEvent::Bytes(bytes) = event { bytes.bytes.len() } else { 0 };
        let demand = transactions.handle_event(connection, event, tuple, anomalies, &mut |seen| {
            heard.observe(seen);
        });
        assert!(demand.used <= offered, "used {} of {offered} bytes", demand.used);
        assert!(demand.skip == 0 || demand.used > 0, "a skip without a head");
        demand
    }
}

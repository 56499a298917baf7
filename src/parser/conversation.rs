//! The tests' door: a conversation goes in, observations come out.
//!
//! Between the two stands a plain twin of reassembly: it carries, skips, offers and anchors as [`Demand`] asks, and checks that
//! the parser keeps its side of the bargain.

use super::{Connection, Observation, ObservationNotes, ParserLimits, Transactions};
use crate::anomaly::{Anomaly, AnomalyCounts};
use crate::model::{Command, Direction, Endpoint, FlowTuple, Outcome, TargetId, Timestamp, Transport};
use crate::reassembly::{Demand, StreamBytes, StreamEvent};
use std::fmt::Write as _;
use std::time::Duration;

/// An observation that owns its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) command: Command,
    pub(super) outcome: Outcome,
    pub(super) key: Vec<u8>,
    pub(super) request_bytes: u64,
    pub(super) response_bytes: u64,
    pub(super) latency: Option<Duration>,
    pub(super) timestamp: Timestamp,
    pub(super) notes: ObservationNotes,
}

#[derive(Default)]
struct Stream {
    carry: Vec<u8>,
    carry_is_start: bool,
    skip: u64,
    lost: bool,
    /// Bytes received, parsed or not.
    position: u32,
}

/// One flow on its way through the parser.
pub(super) struct Wire {
    pub(super) transactions: Transactions,
    pub(super) connection: Connection,
    pub(super) anomalies: AnomalyCounts,
    pub(super) seen: Vec<Seen>,
    pub(super) tuple: FlowTuple,
    streams: [Stream; 2],
    /// What the last segment of the server acknowledged.
    server_acknowledged: Option<u32>,
    now: u64,
    pub(super) carry_max: usize,
}

/// A flow to the server with this number.
pub(super) fn tuple(server: u8) -> FlowTuple {
    FlowTuple {
        target: TargetId(0),
        server: Endpoint::from_ipv4([10, 0, 0, server], 11211),
        client: Endpoint::from_ipv4([10, 0, 1, 1], 40_000),
        transport: Transport::Tcp,
    }
}

/// What a segment says about the other direction; by default it has received everything.
#[derive(Clone, Copy, Default)]
pub(super) struct Knowledge {
    /// Bytes of the other direction that it has not received.
    pub(super) behind: u32,
}

impl Wire {
    /// A flow seen from its first packet.
    pub(super) fn new() -> Wire {
        Wire::with_limits(ParserLimits { requests_max: 512, ..ParserLimits::default() })
    }

    pub(super) fn with_limits(limits: ParserLimits) -> Wire {
        Wire {
            transactions: Transactions::new(limits),
            connection: Connection::default(),
            anomalies: AnomalyCounts::default(),
            seen: Vec::new(),
            tuple: tuple(1),
            streams: Default::default(),
            server_acknowledged: None,
            now: 1_000_000,
            carry_max: 0,
        }
    }

    /// The next connection, to the server with this number.
    pub(super) fn reconnect(&mut self, server: u8) -> &mut Wire {
        self.close();
        (self.connection, self.streams, self.server_acknowledged) = Default::default();
        self.tuple = tuple(server);
        self
    }

    /// A flow found in mid-stream.
    pub(super) fn midstream() -> Wire {
        let mut wire = Wire::new();
        wire.gap(Direction::ToServer, 0);
        wire.gap(Direction::ToClient, 0);
        wire
    }

    pub(super) fn advance(&mut self, micros: u64) {
        self.now += micros * 1000;
    }

    pub(super) fn client(&mut self, bytes: &[u8]) -> &mut Wire {
        self.segment(Direction::ToServer, bytes, Knowledge::default())
    }

    pub(super) fn server(&mut self, bytes: &[u8]) -> &mut Wire {
        self.segment(Direction::ToClient, bytes, Knowledge::default())
    }

    fn emit(&mut self, event: StreamEvent<'_>) -> Demand {
        let Wire { transactions, connection, anomalies, seen, tuple, .. } = self;
        transactions.handle_event(connection, event, tuple, anomalies, &mut |o: &Observation<'_>| {
            seen.push(Seen {
                command: o.command,
                outcome: o.outcome,
                key: o.key.to_vec(),
                request_bytes: o.request_bytes,
                response_bytes: o.response_bytes,
                latency: o.latency,
                timestamp: o.timestamp,
                notes: o.notes,
            });
        })
    }

    /// One packet.
    pub(super) fn segment(&mut self, direction: Direction, bytes: &[u8], knowledge: Knowledge) -> &mut Wire {
        self.advance(10);
        let side = direction.index();
        let other = &self.streams[1 - side];
        let acknowledged = other.position.wrapping_sub(knowledge.behind);
        let here = self.streams[side].position;
        let idle = direction == Direction::ToServer && knowledge.behind == 0;
        let quiescent = idle && self.server_acknowledged.is_none_or(|ack| ack == here);
        if direction == Direction::ToClient {
            self.server_acknowledged = Some(acknowledged);
        }
        let stream = &mut self.streams[side];
        let skipped = stream.skip.min(bytes.len() as u64) as usize;
        stream.skip -= skipped as u64;
        let body_end = (skipped > 0 && stream.skip == 0).then(|| here.wrapping_add(skipped as u32));
        stream.position = here.wrapping_add(bytes.len() as u32);
        let mut start = skipped == 0;
        let mut rest = bytes[skipped..].to_vec();
        if !stream.carry.is_empty() {
            rest.splice(0..0, stream.carry.drain(..));
            start = stream.carry_is_start;
        }
        let end = stream.position;
        if let Some(position) = body_end {
            let timestamp = Timestamp::from_nanos(self.now);
            self.emit(StreamEvent::BodyEnd { direction, timestamp, position });
        }
        self.offer(direction, rest, end, start, |bytes, position, segment_start| StreamBytes {
            direction,
            bytes,
            timestamp: Timestamp::ZERO,
            segment_start,
            idle,
            position,
            acknowledged,
            quiescent,
        });
        self
    }

    fn offer(
        &mut self,
        direction: Direction,
        mut rest: Vec<u8>,
        end: u32,
        mut start: bool,
        event: impl Fn(&[u8], u32, bool) -> StreamBytes<'_>,
    ) {
        let side = direction.index();
        let timestamp = Timestamp::from_nanos(self.now);
        while !rest.is_empty() {
            let position = end.wrapping_sub(rest.len() as u32);
            let bytes = StreamBytes { timestamp, ..event(&rest, position, start) };
            let demand = self.emit(StreamEvent::Bytes(bytes));
            assert!(demand.used <= rest.len());
            assert!(!demand.anchored || (bytes.idle && demand.used > 0 && demand.framed));
            if demand.anchored {
                let server = &mut self.streams[Direction::ToClient.index()];
                (server.lost, server.skip) = (false, 0);
                server.carry.clear();
            }
            if !demand.framed {
                assert_eq!(demand.skip, 0);
                self.anomalies.add(Anomaly::UnparsedBytes, (rest.len() - demand.used) as u64);
                if !std::mem::replace(&mut self.streams[side].lost, true) {
                    self.emit(StreamEvent::Gap { direction, bytes: 0 });
                }
                return;
            }
            self.streams[side].lost = false;
            start = start && demand.used == 0;
            rest.drain(..demand.used);
            let skipped = demand.skip.min(rest.len() as u64) as usize;
            rest.drain(..skipped);
            self.streams[side].skip = demand.skip - skipped as u64;
            if demand.skip == 0 {
                // What is left is an incomplete head.
                self.carry_max = self.carry_max.max(rest.len());
                self.streams[side].carry_is_start = start;
                self.streams[side].carry = rest;
                return;
            }
        }
    }

    /// Bytes that were never seen.
    pub(super) fn gap(&mut self, direction: Direction, bytes: u32) -> &mut Wire {
        let stream = &mut self.streams[direction.index()];
        stream.position = stream.position.wrapping_add(bytes);
        if u64::from(bytes) <= stream.skip && bytes > 0 {
            stream.skip -= u64::from(bytes);
            return self;
        }
        stream.skip = 0;
        stream.carry.clear();
        stream.lost = true;
        self.emit(StreamEvent::Gap { direction, bytes: u64::from(bytes) });
        self
    }

    /// One side says no more.
    pub(super) fn end(&mut self, direction: Direction) -> &mut Wire {
        self.emit(StreamEvent::Close { direction });
        self
    }

    pub(super) fn close(&mut self) -> &mut Wire {
        self.end(Direction::ToServer).end(Direction::ToClient);
        assert_eq!(self.transactions.outstanding(), 0, "slots leaked");
        self
    }

    /// Observations as text, one a line: `get a hit 7/16`, where the numbers are bytes asked and answered, then notes.
    pub(super) fn report(&self) -> String {
        let mut text = String::new();
        for seen in &self.seen {
            let key = seen.key.escape_ascii().to_string();
            let key = if key.is_empty() { "-" } else { &key };
            let (command, outcome) = (seen.command.name(), seen.outcome.name());
            let _ = write!(text, "{command} {key} {outcome} {}/{}", seen.request_bytes, seen.response_bytes);
            let notes = seen.notes;
            for (is_set, name) in [
                (notes.quiet, "quiet"),
                (notes.lease_won, "won"),
                (notes.lease_stale, "stale"),
                (notes.lease_lost, "lost"),
                (notes.request_unseen, "unasked"),
            ] {
                if is_set {
                    let _ = write!(text, " {name}");
                }
            }
            text.push('\n');
        }
        text
    }

    /// Anomalies as text, in one line.
    pub(super) fn confessions(&self) -> String {
        let counts: Vec<String> =
            self.anomalies.iter().map(|(anomaly, count)| format!("{}={count}", anomaly.name())).collect();
        counts.join(" ")
    }

    pub(super) fn count_of(&self, anomaly: Anomaly) -> u64 {
        self.anomalies.of(anomaly)
    }
}

/// One side's turn in a conversation.
#[derive(Clone, Debug)]
pub(super) enum Turn {
    Client(Vec<u8>),
    Server(Vec<u8>),
}

/// A client's turn. Line ends are written `\n` and become CRLF.
pub(super) fn c(text: &str) -> Turn {
    Turn::Client(text.replace('\n', "\r\n").into_bytes())
}

/// A server's turn.
pub(super) fn s(text: &str) -> Turn {
    Turn::Server(text.replace('\n', "\r\n").into_bytes())
}

/// Feeds a conversation with each turn cut into pieces of at most `piece` bytes, and closes the flow.
pub(super) fn converse(turns: &[Turn], mut piece: impl FnMut() -> usize) -> Wire {
    let mut wire = Wire::new();
    for turn in turns {
        let (direction, bytes) = match turn {
            Turn::Client(bytes) => (Direction::ToServer, bytes),
            Turn::Server(bytes) => (Direction::ToClient, bytes),
        };
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (segment, later) = rest.split_at(piece().clamp(1, rest.len()));
            wire.segment(direction, segment, Knowledge::default());
            rest = later;
        }
    }
    wire.close();
    wire
}

/// The one check: the conversation gives these observations whole and in pieces of one, two, three, seven and 64 bytes.
#[track_caller]
pub(super) fn check(turns: &[Turn], expected: &str) {
    check_with(turns, expected, "");
}

/// The same, with the anomalies that are expected.
#[track_caller]
pub(super) fn check_with(turns: &[Turn], expected: &str, confessions: &str) {
    let expected: String =
        expected.lines().map(str::trim).filter(|l| !l.is_empty()).flat_map(|l| [l, "\n"]).collect();
    for piece in [usize::MAX, 1, 2, 3, 7, 64] {
        let wire = converse(turns, || piece);
        assert_eq!(wire.report(), expected, "in pieces of {piece}");
        assert_eq!(wire.confessions(), confessions, "in pieces of {piece}");
        assert!(wire.carry_max < 400, "carry of {}", wire.carry_max);
    }
}

//! A connection's conversation: which protocol, whether each direction is framed, and which requests wait for which answers.
//!
//! The one property that everything here serves: never a wrong hit or miss, never a forged key. What cannot be known is
//! `Unseen`. So bytes are only read as messages where framing is proved, answers are only paired while no loss lies
//! between, and after a loss both directions are taken up again at a boundary on which client and server agree.

use super::queue::{Queue, Request, RequestPool};
use super::{Observation, ObservationNotes, binary, text};
use crate::anomaly::{Anomaly, AnomalyCounts};
use crate::model::{Direction, Outcome, Transport};
use crate::reassembly::{Demand, StreamBytes, StreamEvent};

/// Sizes and thresholds of the parser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParserLimits {
    /// Requests of all connections that may wait for their answers.
    pub requests_max: usize,
    /// Requests of one connection that may wait; a multi-get counts each key. Clients pipeline thousands.
    pub requests_per_connection_max: u32,
    /// Requests that may wait where no answer was ever seen: one direction is missing, and waiting serves nothing.
    pub requests_without_answers_max: u32,
    /// Requests looked at for one that an answer fits.
    pub look_ahead_max: usize,
    /// memcached's `item_size_max` in bytes: tells which noreply stores were refused.
    pub item_size_max: u64,
    /// Segments in a row that begin with nothing known before a connection is taken for another protocol.
    pub failures_max: u8,
    /// Client segments after which requests are taken up without an answer ever seen: only one direction is captured.
    pub one_way_after: u8,
    /// Exchanges without pipelining after which a client is trusted to wait for its answers.
    pub exchanges_to_trust: u8,
}

impl Default for ParserLimits {
    fn default() -> ParserLimits {
        ParserLimits {
            requests_max: 1 << 16,
            requests_per_connection_max: 1 << 15,
            requests_without_answers_max: 64,
            look_ahead_max: 64,
            item_size_max: 1 << 20,
            failures_max: 64,
            one_way_after: 4,
            exchanges_to_trust: 4,
        }
    }
}

/// The protocol of a connection, fixed by the client's first byte (`memcached.c`: `try_read_command_negotiate`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Protocol {
    #[default]
    Undecided,
    Text,
    Binary,
    /// TLS, or nothing that memcached speaks: not looked at any more.
    Opaque,
}

/// Where a direction stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Framing {
    /// No byte of it was seen yet.
    #[default]
    New,
    Framed,
    Lost,
}

/// What the parser keeps of a flow.
#[derive(Clone, Debug, Default)]
pub struct Connection {
    pub(super) protocol: Protocol,
    /// [to server, to client].
    pub(super) framing: [Framing; 2],
    pub(super) queue: Queue,
    /// Inside a line of keys.
    pub(super) keys: Option<text::KeysLine>,
    /// Inside an answer of several lines or frames; else at its start.
    pub(super) in_answer: bool,
    /// An endless stream of log lines has begun.
    pub(super) is_watch: bool,
    /// The server is memcached 1.6.40 or later: its text parser has other rules.
    pub(super) is_new_server: bool,
    /// `CLIENT_ERROR unauthenticated` was seen: the next `set` is a login.
    pub(super) awaits_login: bool,
    /// The client sent a request while another waited.
    pub(super) is_pipelining: bool,
    /// Answers that were paired while the client waited for each; saturates.
    pub(super) exchanges: u8,
    /// The server's direction was seen to carry something.
    pub(super) saw_answers: bool,
    /// A UDP exchange: no positions, no acknowledgements, no order to prove.
    pub(super) is_datagram: bool,
    /// Segments in a row in which nothing was found.
    pub(super) failures: u8,
}

/// Where counts and observations go.
pub(super) struct Sink<'a, E> {
    pub(super) anomalies: &'a mut AnomalyCounts,
    pub(super) emit: &'a mut E,
}

/// The parser of a worker: the places of all outstanding requests.
#[derive(Debug)]
pub struct Transactions {
    pub(super) pool: RequestPool,
    pub(super) limits: ParserLimits,
}

impl Transactions {
    /// Allocates everything.
    pub fn new(limits: ParserLimits) -> Transactions {
        Transactions { pool: RequestPool::new(limits.requests_max), limits }
    }

    /// Takes one event of a connection. Observations come out through `emit`.
    pub fn handle_event<E: FnMut(&Observation<'_>)>(
        &mut self,
        connection: &mut Connection,
        event: StreamEvent<'_>,
        transport: Transport,
        anomalies: &mut AnomalyCounts,
        emit: &mut E,
    ) -> Demand {
        let mut sink = Sink { anomalies, emit };
        match event {
            StreamEvent::Bytes(bytes) => self.handle_bytes(connection, &bytes, transport, &mut sink),
            StreamEvent::Gap { direction, .. } => {
                self.lose(connection, direction, &mut sink);
                Demand::lost(0)
            }
            StreamEvent::Close { direction } => {
                if direction == Direction::ToClient {
                    self.give_up_all(connection, &mut sink);
                }
                Demand::used(0)
            }
        }
    }

    fn handle_bytes<E: FnMut(&Observation<'_>)>(
        &mut self,
        connection: &mut Connection,
        bytes: &StreamBytes<'_>,
        transport: Transport,
        sink: &mut Sink<'_, E>,
    ) -> Demand {
        if connection.protocol == Protocol::Opaque {
            return Demand::lost(bytes.bytes.len());
        }
        match bytes.direction {
            Direction::ToServer => self.handle_client(connection, bytes, transport, sink),
            Direction::ToClient => self.handle_server(connection, bytes, transport, sink),
        }
    }

    fn handle_client<E: FnMut(&Observation<'_>)>(
        &mut self,
        connection: &mut Connection,
        bytes: &StreamBytes<'_>,
        transport: Transport,
        sink: &mut Sink<'_, E>,
    ) -> Demand {
        let mut anchored = false;
        // A connection that has only been lost so far (mid-stream) or lost its way takes a strict start.
        if self.is_lost(connection, Direction::ToServer) {
            if !(bytes.segment_start
                && self.both_wait_for_nothing(connection, bytes)
                && is_request(bytes.bytes))
            {
                return self.not_found(connection, bytes, sink);
            }
            anchored = true;
        } else if self.is_lost(connection, Direction::ToClient)
            && bytes.segment_start
            && connection.keys.is_none()
            && self.both_wait_for_nothing(connection, bytes)
        {
            anchored = true;
        }
        if anchored {
            self.give_up_all(connection, sink);
            connection.framing = [Framing::Framed; 2];
            connection.keys = None;
            connection.in_answer = false;
            connection.failures = 0;
            sink.anomalies.count(Anomaly::Resynchronised);
        }
        if connection.protocol == Protocol::Undecided && !self.decide(connection, bytes.bytes, sink) {
            return Demand::lost(bytes.bytes.len());
        }
        connection.framing[0] = Framing::Framed;
        if transport == Transport::Udp {
            connection.is_datagram = true;
            connection.framing[1] = Framing::Framed;
        }
        if !connection.queue.is_empty() && bytes.segment_start && connection.framing[1] == Framing::Framed {
            connection.is_pipelining = true;
        }
        let demand = match connection.protocol {
            Protocol::Binary => self.binary_requests(connection, bytes, sink),
            _ => self.text_requests(connection, bytes, sink),
        };
        if !demand.framed {
            connection.framing = [Framing::Lost; 2];
        }
        Demand { anchored, ..demand }
    }

    fn handle_server<E: FnMut(&Observation<'_>)>(
        &mut self,
        connection: &mut Connection,
        bytes: &StreamBytes<'_>,
        transport: Transport,
        sink: &mut Sink<'_, E>,
    ) -> Demand {
        connection.saw_answers = true;
        if connection.is_watch {
            return Demand::used(bytes.bytes.len());
        }
        if self.is_lost(connection, Direction::ToClient)
            || (connection.protocol == Protocol::Undecided && connection.framing[0] != Framing::New)
        {
            return self.not_found(connection, bytes, sink);
        }
        connection.framing[1] = Framing::Framed;
        let demand = match connection.protocol {
            Protocol::Binary => self.binary_responses(connection, bytes, sink),
            Protocol::Undecided if bytes.bytes[0] == 0x81 => self.binary_responses(connection, bytes, sink),
            _ => self.text_responses(connection, bytes, transport, sink),
        };
        if !demand.framed {
            self.lose(connection, Direction::ToClient, sink);
        }
        demand
    }

    fn is_lost(&self, connection: &Connection, direction: Direction) -> bool {
        connection.framing[direction.index()] == Framing::Lost
    }

    /// Whether the client, at the start of this segment, waits for nothing that was not seen: either both sides acknowledge each
    /// other's every byte, or a client that has shown that it waits for each answer has received all that was sent.
    fn both_wait_for_nothing(&self, connection: &Connection, bytes: &StreamBytes<'_>) -> bool {
        // Where no answer was ever seen, nothing tells a request from the inside of a value.
        let agreed =
            bytes.quiescent && (connection.saw_answers || connection.failures >= self.limits.one_way_after);
        let trusted = !connection.is_pipelining && connection.exchanges >= self.limits.exchanges_to_trust;
        bytes.idle && (agreed || trusted)
    }

    fn not_found<E: FnMut(&Observation<'_>)>(
        &mut self,
        connection: &mut Connection,
        bytes: &StreamBytes<'_>,
        sink: &mut Sink<'_, E>,
    ) -> Demand {
        if bytes.direction == Direction::ToServer && bytes.segment_start {
            let foreign = connection.protocol == Protocol::Undecided && !is_request(bytes.bytes);
            connection.failures = connection.failures.saturating_add(1);
            if foreign && is_tls(bytes.bytes) {
                self.turn_opaque(connection, Anomaly::TlsFlow, sink);
            } else if foreign && connection.failures >= self.limits.failures_max {
                self.turn_opaque(connection, Anomaly::UnknownProtocolFlow, sink);
            }
        }
        Demand::lost(bytes.bytes.len())
    }

    fn turn_opaque<E: FnMut(&Observation<'_>)>(
        &mut self,
        connection: &mut Connection,
        anomaly: Anomaly,
        sink: &mut Sink<'_, E>,
    ) {
        self.give_up_all(connection, sink);
        connection.protocol = Protocol::Opaque;
        sink.anomalies.count(anomaly);
    }

    /// Chooses the protocol by the first byte from the client. `false`: nothing that memcached speaks.
    fn decide<E: FnMut(&Observation<'_>)>(
        &mut self,
        connection: &mut Connection,
        bytes: &[u8],
        sink: &mut Sink<'_, E>,
    ) -> bool {
        if bytes[0] == 0x80 {
            connection.protocol = Protocol::Binary;
        } else if is_tls(bytes) {
            self.turn_opaque(connection, Anomaly::TlsFlow, sink);
            return false;
        } else {
            connection.protocol = Protocol::Text;
        }
        true
    }

    fn lose<E: FnMut(&Observation<'_>)>(
        &mut self,
        connection: &mut Connection,
        direction: Direction,
        sink: &mut Sink<'_, E>,
    ) {
        connection.framing[direction.index()] = Framing::Lost;
        if direction == Direction::ToServer {
            connection.keys = None;
            // The requests before the gap keep their answers, as far as these come before the server is lost as well.
        } else {
            connection.in_answer = false;
            self.give_up_all(connection, sink);
        }
    }

    /// Every outstanding request is counted without its outcome.
    pub(super) fn give_up_all<E: FnMut(&Observation<'_>)>(
        &mut self,
        connection: &mut Connection,
        sink: &mut Sink<'_, E>,
    ) {
        while !connection.queue.is_empty() {
            self.finish_front(connection, Outcome::Unseen, sink);
        }
    }

    /// Adds a request that waits for an answer. Without room the oldest is counted without its outcome.
    pub(super) fn push<E: FnMut(&Observation<'_>)>(
        &mut self,
        connection: &mut Connection,
        request: &Request,
        sink: &mut Sink<'_, E>,
    ) {
        let mut request = *request;
        if connection.is_datagram {
            request.end = 0;
        }
        let request = &request;
        let limit = if connection.saw_answers {
            self.limits.requests_per_connection_max
        } else {
            self.limits.requests_without_answers_max
        };
        let lost = connection.framing[1] == Framing::Lost;
        // A line of keys is answered as a whole: none of it is given up while it is read.
        let in_line = self.pool.back_mut(&connection.queue).is_some_and(|last| !last.is_last_of_line);
        let limit = if in_line { self.limits.requests_per_connection_max } else { limit };
        if lost || connection.queue.len() >= limit || !self.pool.has_room() {
            // Where the server's direction is lost an answer cannot be paired anyway.
            let full = !lost && connection.saw_answers;
            if full {
                sink.anomalies.count(Anomaly::RequestShed);
            }
            if connection.queue.is_empty() || lost {
                emit_request(request, Outcome::Unseen, sink);
                return;
            }
            if full {
                // The order is void once one is missing.
                self.lose(connection, Direction::ToClient, sink);
                emit_request(request, Outcome::Unseen, sink);
                return;
            }
            self.finish_front(connection, Outcome::Unseen, sink);
        }
        self.pool.push(&mut connection.queue, request);
    }

    /// Takes the oldest request off the queue and counts it.
    pub(super) fn finish_front<E: FnMut(&Observation<'_>)>(
        &mut self,
        connection: &mut Connection,
        outcome: Outcome,
        sink: &mut Sink<'_, E>,
    ) {
        let Some(request) = self.pool.pop(&mut connection.queue) else { return };
        let outcome = if request.is_hit && outcome == Outcome::Unseen { Outcome::Hit } else { outcome };
        if outcome == Outcome::Unseen && !request.is_quiet {
            sink.anomalies.count(Anomaly::UnmatchedRequest);
        } else if !connection.is_pipelining {
            connection.exchanges = connection.exchanges.saturating_add(1);
        }
        emit_request(request, outcome, sink);
    }
}

/// Counts a request with its outcome.
pub(super) fn emit_request<E: FnMut(&Observation<'_>)>(
    request: &Request,
    outcome: Outcome,
    sink: &mut Sink<'_, E>,
) {
    let latency = match request.answered {
        Some(answered) if !request.is_quiet && answered >= request.completed => {
            Some(answered.since(request.completed))
        }
        _ => None,
    };
    (sink.emit)(&Observation {
        timestamp: request.completed,
        command: request.command,
        outcome,
        key: request.key(),
        request_bytes: request.request_bytes,
        response_bytes: request.response_bytes,
        latency,
        notes: ObservationNotes { quiet: request.is_quiet, ..request.notes },
    });
}

/// Counts a request that nobody will answer.
pub(super) fn emit_silent<E: FnMut(&Observation<'_>)>(
    request: &Request,
    outcome: Outcome,
    sink: &mut Sink<'_, E>,
) {
    let mut silent = *request;
    silent.is_quiet = true;
    emit_request(&silent, outcome, sink);
}

/// A response line or frame whose request was not seen; its bytes are counted with the target's totals.
pub(super) fn unmatched<E>(sink: &mut Sink<'_, E>) {
    sink.anomalies.count(Anomaly::UnmatchedResponse);
}

/// Whether bytes begin with a request beyond doubt.
fn is_request(bytes: &[u8]) -> bool {
    if bytes[0] == 0x80 { binary::is_request(bytes) } else { text::is_request(bytes) }
}

/// A TLS record: content type 20 to 23, version 3.0 to 3.4 (RFC 8446 §5.1).
fn is_tls(bytes: &[u8]) -> bool {
    matches!(bytes, [0x14..=0x17, 0x03, 0x00..=0x04, ..])
}

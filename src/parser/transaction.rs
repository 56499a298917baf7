//! Requests paired with their responses: the parser's state, and what becomes of each outstanding request.
//!
//! Every key of every request makes exactly one [`Observation`]: when its answer has come, or as [`Outcome::Unseen`] when the
//! answer is known to be lost. A wrong outcome is worse than none, so any contradiction between the two directions gives up
//! what is outstanding and searches for a new anchor. `requests.rs` reads the client's stream, `answers.rs` the server's.

use super::queue::{Line, NONE, Queue, Reply, Request, Traits};
use super::servers::Servers;
use super::{Observation, ObservationNotes};
use crate::anomaly::{Anomaly, AnomalyCounts};
use crate::model::{Command, Direction, FlowTuple, Outcome, Timestamp, Transport};
use crate::reassembly::{Demand, StreamBytes, StreamEvent};
use std::time::Duration;

/// What the parser may hold, and where it gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParserLimits {
    /// Outstanding keys of one worker, over all its connections; 320 bytes each, touched only when needed.
    pub requests_max: u32,
    /// Outstanding keys of one connection. Multigets of more than 7,000 keys have been seen at work.
    pub connection_requests_max: u32,
    /// `item_size_max` of the servers (`-I`): a quiet store of more is known to be refused.
    pub item_size_max: u64,
    /// Longest head of a message, key lists of retrievals excepted. The server itself gives up after 2,048 bytes
    /// without a line end (`try_read_command_ascii`).
    pub head_bytes_max: usize,
    /// How many requests an answer may pass over to find its own.
    pub lookahead_max: u32,
    /// Resolved outcomes of one connection that wait for their pairing to be confirmed.
    pub held_max: u32,
    /// Lines that are no command before a connection that never sent one is taken for another protocol's.
    pub unknown_lines_max: u16,
    /// Servers of 1.6.40 or newer whose version is remembered for all their connections; 24 bytes each.
    pub servers_max: u32,
    /// Requests that wait this long on a connection whose server was never seen show that it will not be seen.
    pub one_sided_after: Duration,
}

impl Default for ParserLimits {
    fn default() -> ParserLimits {
        ParserLimits {
            requests_max: 65_536,
            connection_requests_max: 16_384,
            item_size_max: 1 << 20,
            head_bytes_max: 2_048,
            lookahead_max: 64,
            held_max: 64,
            unknown_lines_max: 8,
            servers_max: 1_024,
            one_sided_after: Duration::from_secs(1),
        }
    }
}

/// So many requests must wait before a connection is taken for one-sided.
const ONE_SIDED_REQUESTS: u32 = 4;

/// What a connection speaks; decided by the client's first byte, as the server does (`try_read_network`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Protocol {
    #[default]
    Undecided,
    Text,
    Binary,
    /// Encrypted: nothing to read.
    Tls,
    /// Not memcached's.
    Foreign,
    /// A text connection after `watch`: a log stream, no conversation.
    Watch,
}

/// Where in a `get` line the client's stream stands.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct KeyList {
    /// The verb; `None` between requests.
    pub(super) command: Option<Command>,
    /// Bytes of the line that no key has been charged with yet.
    pub(super) pending_bytes: u32,
    /// Keys so far.
    pub(super) keys: u32,
    /// The next token is an expiry, not a key (`gat`).
    pub(super) expiry_next: bool,
    /// Inside a token that is too long for a key.
    pub(super) overlong: bool,
    /// The server reads no further in this line: a NUL was passed.
    pub(super) ended: bool,
    /// A packet edge was passed since the line began.
    pub(super) spans_packets: bool,
}

/// The packet that began the answer now arriving.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beginning {
    pub(super) timestamp: Timestamp,
    /// Only of an answer that begins where its segment does: where offloading has joined segments, the later ones knew more than the
    /// header tells, which is the first one's.
    pub(super) acknowledged: Option<u32>,
}

/// What the parser remembers of one flow. Small, because there may be a million idle ones.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    pub(super) line: Line,
    /// First slot of the request whose line has not ended.
    pub(super) open: u32,
    /// Where in the answered retrieval's keys the next `VALUE` is expected.
    pub(super) cursor: u32,
    pub(super) answer: Option<Beginning>,
    pub(super) keys: KeyList,
    pub(super) protocol: Protocol,
    pub(super) client_lost: bool,
    pub(super) server_lost: bool,
    /// Bytes of the client were offered.
    pub(super) client_seen: bool,
    /// Bytes of the server were offered.
    pub(super) server_seen: bool,
    /// The server acknowledged requests of a client of which nothing was ever captured.
    pub(super) requests_missed: bool,
    /// When they were first.
    pub(super) server_since: Timestamp,
    /// The server's direction is not captured at all: nothing is worth waiting for.
    pub(super) one_sided: bool,
    /// The pairing may be off: outcomes wait until something proves it.
    pub(super) provisional: bool,
    /// The front request has part of its answer.
    pub(super) answering: bool,
    /// Errors that may still come for bytes that were no request of their own: an old server answers a refused body as one more
    /// command, and any server the lines of a PROXY header.
    pub(super) stray_errors: u8,
    /// The server said, here or on another connection, that it is 1.6.40 or newer: the text parser was replaced then.
    pub(super) is_new_server: bool,
    /// The client quit: the server reads no further, and what the client still sends is no request.
    pub(super) has_quit: bool,
    /// Taken up in mid-stream before the server was heard: until an answer fits, what looks like requests may be the inside of a value.
    pub(super) unproven: bool,
    /// Lines that were no command since the last one that was.
    pub(super) unknown_lines: u16,
}

const _: () = assert!(size_of::<Connection>() <= 192);

impl Default for Connection {
    fn default() -> Connection {
        Connection {
            line: Line::default(),
            open: NONE,
            cursor: NONE,
            answer: None,
            keys: KeyList::default(),
            protocol: Protocol::Undecided,
            client_lost: false,
            server_lost: false,
            client_seen: false,
            server_seen: false,
            requests_missed: false,
            server_since: Timestamp::ZERO,
            one_sided: false,
            provisional: false,
            answering: false,
            stray_errors: 0,
            is_new_server: false,
            has_quit: false,
            unproven: false,
            unknown_lines: 0,
        }
    }
}

/// The parser of one worker.
#[derive(Debug)]
pub struct Transactions {
    limits: ParserLimits,
    queue: Queue,
    servers: Servers,
    /// Where keys of meta commands are decoded.
    scratch: [u8; 256],
}

impl Transactions {
    /// Allocates everything that it will ever use.
    pub fn new(limits: ParserLimits) -> Transactions {
        Transactions {
            limits,
            queue: Queue::new(limits.requests_max),
            servers: Servers::new(limits.servers_max),
            scratch: [0; 256],
        }
    }

    /// The parser of another worker, under the same limits: it knows what servers told this one of their versions, and the other way round.
    pub fn beside(&self) -> Transactions {
        Transactions { servers: self.servers.clone(), ..Transactions::new(self.limits) }
    }

    /// Keys that wait for an answer, over all connections.
    pub fn outstanding(&self) -> u32 {
        self.queue.in_use()
    }

    /// Takes one event of a connection and says what to do with the bytes that follow. The answer to `Gap` and `Close`
    /// means nothing.
    pub fn handle_event(
        &mut self,
        connection: &mut Connection,
        event: StreamEvent<'_>,
        tuple: &FlowTuple,
        anomalies: &mut AnomalyCounts,
        emit: &mut impl FnMut(&Observation<'_>),
    ) -> Demand {
        let Transactions { limits, queue, servers, scratch } = self;
        let mut session = Session { limits, queue, servers, connection, tuple, anomalies, emit };
        match event {
            StreamEvent::Bytes(bytes) if bytes.bytes.is_empty() => Demand::used(0),
            StreamEvent::Bytes(bytes) => {
                session.inherit_version();
                match bytes.direction {
                    Direction::ToServer => session.handle_requests(&bytes, scratch),
                    Direction::ToClient => session.handle_answers(&bytes),
                }
            }
            StreamEvent::Gap { direction, bytes } => session.handle_gap(direction, bytes),
            StreamEvent::BodyEnd { direction: Direction::ToServer, timestamp, position } => {
                session.end_body(timestamp, position)
            }
            StreamEvent::BodyEnd { .. } => Demand::used(0),
            StreamEvent::Close { direction } => session.handle_close(direction),
        }
    }
}

/// One event's view of everything that it may change.
pub(super) struct Session<'s, E> {
    pub(super) limits: &'s ParserLimits,
    pub(super) queue: &'s mut Queue,
    pub(super) servers: &'s Servers,
    pub(super) connection: &'s mut Connection,
    pub(super) tuple: &'s FlowTuple,
    pub(super) anomalies: &'s mut AnomalyCounts,
    pub(super) emit: &'s mut E,
}

impl<E: FnMut(&Observation<'_>)> Session<'_, E> {
    /// A connection begins with what its server said on earlier ones.
    fn inherit_version(&mut self) {
        if !self.connection.client_seen && !self.connection.server_seen {
            self.connection.is_new_server = self.servers.is_new(&self.tuple.server);
        }
    }

    /// The server told its version, and a request for it was there.
    pub(super) fn note_version(&mut self, is_new: bool) {
        self.connection.is_new_server = is_new;
        // Until the pairing is proved, it may be the inside of a value, which must not speak for the server.
        if !self.connection.provisional && !self.connection.unproven {
            self.servers.note(&self.tuple.server, is_new, self.anomalies);
        }
    }

    fn handle_gap(&mut self, direction: Direction, bytes: u64) -> Demand {
        // A client that goes on may be the next one on these ports.
        self.connection.has_quit &= bytes == 0;
        match direction {
            Direction::ToServer => {
                self.connection.requests_missed |= bytes > 0 && !self.connection.client_seen;
                self.connection.client_lost = true;
                self.cut_open_request();
            }
            Direction::ToClient => {
                // A second loss with nothing seen in between: that direction is not captured.
                if self.connection.server_lost || self.connection.line.count > 0 {
                    self.connection.one_sided = self.connection.client_seen && !self.connection.server_seen;
                }
                self.connection.server_lost = true;
                self.abandon();
            }
        }
        Demand::lost(0)
    }

    /// A request is complete with its body: the last in the queue, if its answer did not come before that.
    fn end_body(&mut self, timestamp: Timestamp, position: u32) -> Demand {
        let tail = self.connection.line.tail;
        if tail != NONE {
            let request = self.queue.request_mut(tail);
            if request.traits.has(Traits::UNTIMED) && request.end == position {
                request.timestamp = timestamp;
                request.traits = request.traits.without(Traits::UNTIMED);
            }
        }
        Demand::used(0)
    }

    fn handle_close(&mut self, direction: Direction) -> Demand {
        match direction {
            Direction::ToServer => {
                self.cut_open_request();
                if self.connection.server_lost {
                    self.abandon();
                }
            }
            // Requests may still come, and none of them waits for an answer.
            Direction::ToClient => {
                self.abandon();
                self.connection.server_lost = true;
                self.connection.one_sided = true;
            }
        }
        Demand::used(0)
    }

    /// The rest of a key list will never be seen.
    pub(super) fn cut_open_request(&mut self) {
        self.connection.keys = KeyList::default();
        let open = std::mem::replace(&mut self.connection.open, NONE);
        if open == NONE {
            return;
        }
        let traits = self.queue.request(open).traits.without(Traits::OPEN);
        self.queue.request_mut(open).traits = traits;
        let last = self.queue.request_mut(self.connection.line.tail);
        last.traits = last.traits.with(Traits::LAST);
        let mut slot = open;
        while slot != NONE {
            let request = self.queue.request_mut(slot);
            request.traits = request.traits.with(Traits::CUT);
            slot = self.queue.next(slot);
        }
    }

    /// Nothing that is outstanding will get its answer. Slots go back.
    pub(super) fn abandon(&mut self) {
        let connection = &mut *self.connection;
        connection.open = NONE;
        connection.cursor = NONE;
        connection.answer = None;
        connection.answering = false;
        connection.stray_errors = 0;
        while self.connection.line.head != NONE {
            let held = self.connection.line.held > 0;
            self.release(held);
        }
        self.connection.provisional = false;
    }

    /// Framing of the server's direction is lost, by our own judgement. A pairing that was never confirmed takes the
    /// client's direction with it: its anchor was wrong.
    pub(super) fn lose_server(&mut self) {
        self.anomalies.count(Anomaly::Resynchronised);
        if self.connection.provisional {
            self.connection.client_lost = true;
            self.connection.keys = KeyList::default();
        }
        self.connection.server_lost = true;
        // A server that talks on was not told to close.
        self.connection.has_quit = false;
        self.abandon();
    }

    /// The pairing is right: what was held back is true.
    pub(super) fn confirm(&mut self) {
        self.connection.unproven = false;
        if self.connection.provisional {
            self.connection.provisional = false;
            while self.connection.line.held > 0 {
                self.release(false);
            }
        }
    }

    /// Takes the head off the queue and reports it.
    fn release(&mut self, as_unseen: bool) {
        let Some(slot) = self.queue.pop(&mut self.connection.line) else { return };
        let request = self.queue.request(slot);
        let outcome = match request.outcome {
            Some(outcome) if !as_unseen => outcome,
            _ => Outcome::Unseen,
        };
        if outcome == Outcome::Unseen && (request.is_promised() || self.connection.unproven) {
            self.anomalies.count(Anomaly::UnmatchedRequest);
        }
        if outcome == Outcome::Unseen && self.connection.unproven && !self.connection.one_sided {
            return;
        }
        let timed = outcome != Outcome::Unseen
            && request.answered != Timestamp::ZERO
            && request.answered >= request.timestamp
            && !request.traits.has(Traits::UNTIMED);
        (self.emit)(&Observation {
            timestamp: request.timestamp,
            command: request.command,
            outcome,
            key: self.queue.key(slot),
            request_bytes: request.request_bytes,
            response_bytes: request.response_bytes,
            latency: timed.then(|| request.answered.since(request.timestamp)),
            notes: request.notes,
        });
    }

    /// Appends a slot. When there is no room, everything outstanding is given up, for the answers can no longer be paired.
    pub(super) fn push(&mut self, request: Request, key: &[u8]) -> Option<u32> {
        let full = self.connection.line.count >= self.limits.connection_requests_max;
        if !full && let Some(slot) = self.queue.push(&mut self.connection.line, request, key) {
            return Some(slot);
        }
        self.anomalies.add(Anomaly::RequestShed, u64::from(self.connection.line.count) + 1);
        self.connection.server_lost = true;
        self.abandon();
        self.report(&request, key, Outcome::Unseen);
        None
    }

    /// Reports a request that never waits.
    pub(super) fn report(&mut self, request: &Request, key: &[u8], outcome: Outcome) {
        (self.emit)(&Observation {
            timestamp: request.timestamp,
            command: request.command,
            outcome,
            key,
            request_bytes: request.request_bytes,
            response_bytes: 0,
            latency: None,
            notes: request.notes,
        });
    }

    /// A hit of which only the answer was captured.
    pub(super) fn report_unseen_hit(
        &mut self,
        command: Command,
        key: &[u8],
        bytes: u64,
        timestamp: Timestamp,
    ) {
        (self.emit)(&Observation {
            timestamp,
            command,
            outcome: Outcome::Hit,
            key,
            request_bytes: 0,
            response_bytes: bytes,
            latency: None,
            notes: ObservationNotes { request_unseen: true, ..ObservationNotes::default() },
        });
    }

    /// The front request has its answer: `outcome` for every key that has none yet. `bytes` is charged to its last key.
    pub(super) fn finish_front(&mut self, outcome: Outcome, bytes: u64) {
        let began = self.connection.answer.take().map_or(Timestamp::ZERO, |answer| answer.timestamp);
        self.connection.answering = false;
        self.connection.cursor = NONE;
        self.settle_front(outcome, bytes, began);
    }

    /// The front request has none of its own and is passed over: silence is its answer, or its answer is lost.
    pub(super) fn pass_front(&mut self) {
        let request = self.queue.request(self.connection.line.front);
        let outcome = if request.traits.has(Traits::QUIET) && !request.traits.has(Traits::INVALID) {
            super::binary::silent_outcome(request)
        } else {
            Outcome::Unseen
        };
        self.settle_front(outcome, 0, Timestamp::ZERO);
    }

    fn settle_front(&mut self, outcome: Outcome, bytes: u64, answered: Timestamp) {
        loop {
            let front = self.connection.line.front;
            if front == NONE {
                return;
            }
            let request = self.queue.request_mut(front);
            request.outcome.get_or_insert(outcome);
            request.answered = answered;
            let last = request.traits.has(Traits::LAST);
            if last {
                request.response_bytes += bytes;
            }
            if self.connection.provisional {
                self.queue.hold(&mut self.connection.line);
                if self.connection.line.held > self.limits.held_max {
                    self.release(true);
                }
            } else {
                self.release(false);
            }
            if last {
                return;
            }
        }
    }

    /// Whether waiting for the server has become pointless: nothing of it was ever seen.
    pub(super) fn give_up_waiting(&mut self, now: Timestamp) {
        let connection = &*self.connection;
        if connection.server_lost {
            self.abandon();
            return;
        }
        if connection.server_seen || connection.line.count < ONE_SIDED_REQUESTS {
            return;
        }
        let oldest = self.queue.request(connection.line.head).timestamp;
        if now.since(oldest) >= self.limits.one_sided_after {
            self.connection.one_sided = true;
            self.connection.server_lost = true;
            self.abandon();
            self.connection.unproven = false;
        }
    }

    /// Whether the packet that began the answer had seen the whole of this request, or, for a refusal, its line.
    pub(super) fn is_acknowledged(&self, slot: u32, refused: bool) -> bool {
        let Some(acknowledged) = self.connection.answer.and_then(|answer| answer.acknowledged) else {
            return true;
        };
        if self.tuple.transport == Transport::Udp {
            return true;
        }
        let request = self.queue.request(slot);
        let stores = request.traits.has(Traits::STORES);
        let body = if refused && stores { request.extra as u32 } else { 0 };
        acknowledged.wrapping_sub(request.end.wrapping_sub(body)) as i32 >= 0
    }

    /// Notes when and with which knowledge an answer began, unless one is under way.
    pub(super) fn begin_answer(&mut self, bytes: &StreamBytes<'_>, used: usize) {
        self.connection.answer.get_or_insert(Beginning {
            timestamp: bytes.timestamp,
            acknowledged: (bytes.segment_start && used == 0).then_some(bytes.acknowledged),
        });
    }

    /// Whether an answer to a request that we do not know is nothing to wonder about.
    pub(super) fn is_client_unseen(&self) -> bool {
        !self.connection.client_seen
    }

    /// A request that never gets an answer, and says so.
    pub(super) fn is_silent(reply: Reply, command: Command) -> bool {
        reply == Reply::Nothing && command == Command::Quit
    }
}

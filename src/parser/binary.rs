//! The binary protocol (memcached `protocol_binary.h`, `proto_bin.c`): opcodes, statuses, pairing by opcode, opaque and key.
//!
//! Many clients send opaque 0 on everything, so the opaque alone names no request: the first in order whose opcode, opaque and, where the
//! answer carries one, key agree is the one. Quiet requests before it were silent.

use super::Observation;
use super::queue::{Answer, KEY_BYTES_MAX, Request};
use super::text::{VALUE_BYTES_MAX, acknowledges};
use super::transaction::{Connection, Framing, Sink, Transactions, emit_request, emit_silent, unmatched};
use crate::anomaly::Anomaly;
use crate::model::{Command, Outcome};
use crate::parser::ObservationNotes;
use crate::reassembly::{Demand, StreamBytes};

const HEADER_BYTES: usize = 24;
const MAGIC_REQUEST: u8 = 0x80;
const MAGIC_RESPONSE: u8 = 0x81;
/// An increment with this expiry does not create a missing item.
const NEVER_CREATE: u32 = u32::MAX;

/// What is known of an opcode.
#[derive(Clone, Copy, Debug)]
struct Operation {
    command: Command,
    is_quiet: bool,
    /// Lengths of the extras that a request may have.
    extras: &'static [u8],
    has_key: bool,
}

/// The one table of opcodes; none for those that memcached answers with "unknown command".
fn operation(opcode: u8) -> Option<Operation> {
    use Command::{
        Add, Append, Decr, Delete, FlushAll, Gat, Get, Incr, Noop, Prepend, Quit, Replace, Sasl, Set, Stat,
        Touch, Version,
    };
    let (command, is_quiet, extras, has_key): (Command, bool, &[u8], bool) = match opcode {
        0x00 | 0x0c => (Get, false, &[0], true),
        0x09 | 0x0d => (Get, true, &[0], true),
        0x01 => (Set, false, &[8], true),
        0x11 => (Set, true, &[8], true),
        0x02 => (Add, false, &[8], true),
        0x12 => (Add, true, &[8], true),
        0x03 => (Replace, false, &[8], true),
        0x13 => (Replace, true, &[8], true),
        0x04 => (Delete, false, &[0], true),
        0x14 => (Delete, true, &[0], true),
        0x05 => (Incr, false, &[20], true),
        0x15 => (Incr, true, &[20], true),
        0x06 => (Decr, false, &[20], true),
        0x16 => (Decr, true, &[20], true),
        0x07 => (Quit, false, &[0], false),
        0x17 => (Quit, true, &[0], false),
        0x08 => (FlushAll, false, &[0, 4], false),
        0x18 => (FlushAll, true, &[0, 4], false),
        0x0a => (Noop, false, &[0], false),
        0x0b => (Version, false, &[0], false),
        0x0e => (Append, false, &[0], true),
        0x19 => (Append, true, &[0], true),
        0x0f => (Prepend, false, &[0], true),
        0x1a => (Prepend, true, &[0], true),
        0x10 => (Stat, false, &[0], false),
        0x1c => (Touch, false, &[4], true),
        0x1d | 0x23 => (Gat, false, &[4], true),
        0x1e | 0x24 => (Gat, true, &[4], true),
        0x20..=0x22 => (Sasl, false, &[0], false),
        _ => return None,
    };
    Some(Operation { command, is_quiet, extras, has_key })
}

/// The header of a request or a response.
#[derive(Clone, Copy, Debug)]
struct Header {
    opcode: u8,
    key_bytes: usize,
    extras_bytes: usize,
    status: u16,
    body_bytes: u64,
    opaque: u32,
    cas: u64,
}

impl Header {
    /// The header at the start of `bytes`, which has at least its length; none when it contradicts itself.
    fn read(bytes: &[u8], magic: u8) -> Option<Header> {
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
        let be16 = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let be32 =
            |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let read = Header {
            opcode: header[1],
            key_bytes: usize::from(be16(2)),
            extras_bytes: usize::from(header[4]),
            status: be16(6),
            body_bytes: u64::from(be32(8)),
            opaque: be32(12),
            cas: (u64::from(be32(16)) << 32) | u64::from(be32(20)),
        };
        let fits = (read.key_bytes + read.extras_bytes) as u64 <= read.body_bytes;
        let is_sane =
            header[0] == magic && header[5] == 0 && fits && read.body_bytes <= VALUE_BYTES_MAX + 1024;
        (is_sane && read.key_bytes <= KEY_BYTES_MAX).then_some(read)
    }

    /// Header, extras and key: what has to be looked at.
    fn head_bytes(&self) -> usize {
        HEADER_BYTES + self.extras_bytes + self.key_bytes
    }

    /// Header and body.
    fn wire_bytes(&self) -> u64 {
        HEADER_BYTES as u64 + self.body_bytes
    }

    /// What is skipped behind the head: the value.
    fn value_bytes(&self) -> u64 {
        self.wire_bytes() - self.head_bytes() as u64
    }
}

/// Whether bytes begin with a binary request beyond doubt: a header whose lengths are legal for its opcode and, as far as it is in
/// sight, another behind it.
pub(super) fn is_request(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    for _ in 0..2 {
        if rest.len() < HEADER_BYTES {
            return rest.len() < bytes.len();
        }
        let Some(header) = Header::read(rest, MAGIC_REQUEST) else { return false };
        let is_legal = operation(header.opcode).is_some_and(|operation| {
            operation.extras.contains(&(header.extras_bytes as u8))
                && (!operation.has_key || header.key_bytes > 0)
                && header.status == 0
        });
        if !is_legal {
            return false;
        }
        match usize::try_from(header.wire_bytes()).ok().and_then(|length| rest.get(length..)) {
            Some([]) | None => return true,
            Some(behind) => rest = behind,
        }
    }
    true
}

impl Transactions {
    pub(super) fn binary_requests<E: FnMut(&Observation<'_>)>(
        &mut self,
        connection: &mut Connection,
        bytes: &StreamBytes<'_>,
        sink: &mut Sink<'_, E>,
    ) -> Demand {
        let data = bytes.bytes;
        let mut at = 0;
        while at < data.len() {
            let rest = &data[at..];
            if rest[0] != MAGIC_REQUEST {
                // The server closes such a connection.
                sink.anomalies.count(Anomaly::Resynchronised);
                self.give_up_all(connection, sink);
                return Demand::lost(data.len());
            }
            if rest.len() < HEADER_BYTES {
                return Demand::used(at);
            }
            let Some(header) = Header::read(rest, MAGIC_REQUEST) else {
                sink.anomalies.count(Anomaly::Resynchronised);
                self.give_up_all(connection, sink);
                return Demand::lost(data.len());
            };
            let head = header.head_bytes();
            if rest.len() < head {
                return Demand::used(at);
            }
            self.binary_request(connection, bytes, &header, &rest[HEADER_BYTES..head], at, sink);
            at += head;
            let skip = header.value_bytes();
            if skip > 0 {
                return Demand::skip(at, skip);
            }
        }
        Demand::used(at)
    }

    fn binary_request<E: FnMut(&Observation<'_>)>(
        &mut self,
        connection: &mut Connection,
        bytes: &StreamBytes<'_>,
        header: &Header,
        extras_and_key: &[u8],
        at: usize,
        sink: &mut Sink<'_, E>,
    ) {
        let (extras, key) = extras_and_key.split_at(header.extras_bytes);
        let end = bytes.position.wrapping_add(at as u32).wrapping_add(header.wire_bytes() as u32);
        let answer = Answer::Binary { opcode: header.opcode, opaque: header.opaque };
        let known = operation(header.opcode);
        let command = known.map_or(Command::Unknown, |known| match known.command {
            Command::Set | Command::Replace if header.cas != 0 => Command::Cas,
            command => command,
        });
        let mut request = Request::new(command, answer, end, bytes.timestamp);
        request.request_bytes = header.wire_bytes();
        request.value_bytes = header.value_bytes();
        request.is_quiet = known.is_some_and(|known| known.is_quiet);
        if known.is_some_and(|known| known.has_key) {
            request.set_key(key);
        }
        if let (
            Command::Incr | Command::Decr,
            &[_, _, _, _, _, _, _, _, a, b, c, d, e, f, g, h, i, j, k, l],
        ) = (command, extras)
        {
            let creates = u32::from_be_bytes([i, j, k, l]) != NEVER_CREATE;
            request.initial = creates.then(|| u64::from_be_bytes([a, b, c, d, e, f, g, h]));
        }
        if command == Command::Quit && request.is_quiet {
            emit_silent(&request, Outcome::Ok, sink);
        } else {
            self.push(connection, &request, sink);
        }
    }

    pub(super) fn binary_responses<E: FnMut(&Observation<'_>)>(
        &mut self,
        connection: &mut Connection,
        bytes: &StreamBytes<'_>,
        sink: &mut Sink<'_, E>,
    ) -> Demand {
        /// Value of an increment: read, since it tells whether the item was created.
        const NUMBER_BYTES: usize = 8;
        let data = bytes.bytes;
        let mut at = 0;
        while at < data.len() {
            let rest = &data[at..];
            if rest.len() < HEADER_BYTES && rest[0] == MAGIC_RESPONSE {
                return Demand::used(at);
            }
            let Some(header) = Header::read(rest, MAGIC_RESPONSE) else {
                sink.anomalies.count(Anomaly::Resynchronised);
                return Demand::lost(data.len());
            };
            let is_number = matches!(header.opcode, 0x05 | 0x06 | 0x15 | 0x16)
                && header.status == 0
                && header.value_bytes() == NUMBER_BYTES as u64;
            let look = header.head_bytes() + if is_number { NUMBER_BYTES } else { 0 };
            let Some(head) = rest.get(..look) else { return Demand::used(at) };
            let key = &head[HEADER_BYTES + header.extras_bytes..header.head_bytes()];
            let value =
                is_number.then(|| head[header.head_bytes()..].try_into().map_or(0, u64::from_be_bytes));
            self.binary_response(connection, bytes, &header, key, value, sink);
            if connection.framing[1] == Framing::Lost {
                return Demand::lost(data.len());
            }
            at += look;
            let skip = header.wire_bytes() - look as u64;
            if skip > 0 {
                return Demand::skip(at, skip);
            }
        }
        Demand::used(at)
    }

    fn binary_response<E: FnMut(&Observation<'_>)>(
        &mut self,
        connection: &mut Connection,
        bytes: &StreamBytes<'_>,
        header: &Header,
        key: &[u8],
        value: Option<u64>,
        sink: &mut Sink<'_, E>,
    ) {
        let names_key = matches!(header.opcode, 0x0c | 0x0d | 0x23 | 0x24) && !key.is_empty();
        if connection.queue.is_empty() {
            let is_unseen_hit = names_key && header.status == 0 && connection.framing[0] != Framing::Framed;
            if is_unseen_hit {
                let mut request = Request::new(Command::Get, Answer::Line, 0, bytes.timestamp);
                request.set_key(key);
                request.response_bytes = header.wire_bytes();
                request.notes = ObservationNotes { request_unseen: true, ..ObservationNotes::default() };
                emit_request(&request, Outcome::Hit, sink);
            } else {
                unmatched(sink);
            }
            return;
        }
        let wanted = Answer::Binary { opcode: header.opcode, opaque: header.opaque };
        let place = self.pool.iter(&connection.queue).position(|request| {
            request.answer == wanted && (!names_key || request.key() == key) && acknowledges(bytes, request)
        });
        let Some(place) = place else {
            unmatched(sink);
            return;
        };
        for _ in 0..place {
            let outcome = match self.pool.front(&connection.queue) {
                Some(front) if front.is_quiet => front.silent_outcome(),
                _ => Outcome::Unseen,
            };
            self.finish_front(connection, outcome, sink);
        }
        let Some(front) = self.pool.front_mut(&connection.queue) else { return };
        front.answered.get_or_insert(bytes.timestamp);
        front.response_bytes += header.wire_bytes();
        // STAT sends a frame for each figure and an empty one at the end.
        if front.command == Command::Stat && header.status == 0 && header.body_bytes > 0 {
            return;
        }
        let outcome = outcome_of(front, header.status, value);
        front.is_quiet = false;
        self.finish_front(connection, outcome, sink);
    }
}

/// The outcome that a status means for a request (`protocol_binary.h`: `protocol_binary_response_status`).
fn outcome_of(request: &Request, status: u16, value: Option<u64>) -> Outcome {
    use crate::model::CommandClass::{Arithmetic, Deletion, Retrieval, Storage, Touch};
    let class = request.command.class();
    match (status, class) {
        (0, Arithmetic) if value.is_some() && request.initial == value => Outcome::Stored,
        (0, Retrieval | Deletion | Touch | Arithmetic) => Outcome::Hit,
        (0, Storage) => Outcome::Stored,
        (0, _) => Outcome::Ok,
        (1, Retrieval | Deletion | Touch | Arithmetic) => Outcome::Miss,
        (1, Storage) if request.command == Command::Add || request.command == Command::Replace => {
            Outcome::NotStored
        }
        (1, Storage) => Outcome::NotFound,
        (2, Storage) if request.command == Command::Add => Outcome::NotStored,
        (2, _) => Outcome::Exists,
        (3, Storage) => Outcome::TooLarge,
        (5, Storage) => Outcome::NotStored,
        // SASL: more steps follow.
        (0x21, _) => Outcome::Ok,
        _ => Outcome::Error,
    }
}

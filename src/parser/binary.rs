//! Binary protocol: request and response headers, and how an answer fits a request.
//!
//! Sources: `protocol_binary.h` and `proto_bin.c`. A frame is always 24 + body length bytes, so its end is known from its
//! header alone; only extras and key are looked at.

use super::command::Head;
use super::queue::{KEY_MAX, Reply, Request, Traits};
use crate::model::{Command, Outcome};

/// First byte of a request.
pub(super) const REQUEST_MAGIC: u8 = 0x80;
/// First byte of a response.
pub(super) const RESPONSE_MAGIC: u8 = 0x81;
const HEADER_BYTES: usize = 24;
/// An arithmetic request with this expiry never creates its item.
const NEVER_CREATE: u32 = u32::MAX;

const GETK: u8 = 0x0c;
const GETKQ: u8 = 0x0d;
const GATK: u8 = 0x23;
const GATKQ: u8 = 0x24;
const STAT: u8 = 0x10;
const VERSION: u8 = 0x0b;
/// A longer one is not looked at.
const VERSION_BYTES_MAX: u64 = 64;

/// Whether the request is a retrieval that is silent on a miss, rather than a change that is silent on success.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Keyless,
    Retrieval,
    Storage,
    Deletion,
    Arithmetic,
    Touch,
}

/// What is known about an opcode. A new one is one line in [`find_opcode`].
#[derive(Clone, Copy)]
struct Opcode {
    command: Command,
    kind: Kind,
    quiet: bool,
    /// Length of a request's extras.
    extras: u8,
}

const fn opcode(command: Command, kind: Kind, extras: u8) -> Opcode {
    Opcode { command, kind, quiet: false, extras }
}

const fn quiet(command: Command, kind: Kind, extras: u8) -> Opcode {
    Opcode { command, kind, quiet: true, extras }
}

const fn find_opcode(code: u8) -> Option<Opcode> {
    use Kind::{Arithmetic, Deletion, Keyless, Retrieval, Storage, Touch};
    Some(match code {
        0x00 | GETK => opcode(Command::Get, Retrieval, 0),
        0x09 | GETKQ => quiet(Command::Get, Retrieval, 0),
        0x1d | GATK => opcode(Command::Gat, Retrieval, 4),
        0x1e | GATKQ => quiet(Command::Gat, Retrieval, 4),
        0x01 => opcode(Command::Set, Storage, 8),
        0x11 => quiet(Command::Set, Storage, 8),
        0x02 => opcode(Command::Add, Storage, 8),
        0x12 => quiet(Command::Add, Storage, 8),
        0x03 => opcode(Command::Replace, Storage, 8),
        0x13 => quiet(Command::Replace, Storage, 8),
        0x0e => opcode(Command::Append, Storage, 0),
        0x19 => quiet(Command::Append, Storage, 0),
        0x0f => opcode(Command::Prepend, Storage, 0),
        0x1a => quiet(Command::Prepend, Storage, 0),
        0x04 => opcode(Command::Delete, Deletion, 0),
        0x14 => quiet(Command::Delete, Deletion, 0),
        0x05 => opcode(Command::Incr, Arithmetic, 20),
        0x15 => quiet(Command::Incr, Arithmetic, 20),
        0x06 => opcode(Command::Decr, Arithmetic, 20),
        0x16 => quiet(Command::Decr, Arithmetic, 20),
        0x1c => opcode(Command::Touch, Touch, 4),
        0x07 => opcode(Command::Quit, Keyless, 0),
        0x17 => quiet(Command::Quit, Keyless, 0),
        0x08 => opcode(Command::FlushAll, Keyless, 4),
        0x18 => quiet(Command::FlushAll, Keyless, 4),
        0x0a => opcode(Command::Noop, Keyless, 0),
        VERSION => opcode(Command::Version, Keyless, 0),
        STAT => opcode(Command::Stat, Keyless, 0),
        0x1b => opcode(Command::Verbosity, Keyless, 4),
        0x20..=0x22 => opcode(Command::Sasl, Keyless, 0),
        _ => return None,
    })
}

/// Whether an answer to this opcode names the key.
const fn names_key(code: u8) -> bool {
    matches!(code, GETK | GETKQ | GATK | GATKQ)
}

/// The fields of a header that we need, in host order.
#[derive(Clone, Copy, Debug)]
struct Header {
    opcode: u8,
    key_bytes: usize,
    extras_bytes: usize,
    data_type: u8,
    status: u16,
    body_bytes: u64,
    opaque: u32,
    cas: u64,
}

fn parse_header(bytes: &[u8]) -> Option<Header> {
    let header: &[u8; HEADER_BYTES] = bytes.get(..HEADER_BYTES)?.try_into().ok()?;
    let [_, opcode, k0, k1, extras, data_type, s0, s1, b0, b1, b2, b3, o0, o1, o2, o3, cas @ ..] = *header;
    Some(Header {
        opcode,
        key_bytes: usize::from(u16::from_be_bytes([k0, k1])),
        extras_bytes: usize::from(extras),
        data_type,
        status: u16::from_be_bytes([s0, s1]),
        body_bytes: u64::from(u32::from_be_bytes([b0, b1, b2, b3])),
        opaque: u32::from_be_bytes([o0, o1, o2, o3]),
        cas: u64::from_be_bytes(cas),
    })
}

/// What the front of a stream holds.
pub(super) enum Parsed<T> {
    /// A message whose head takes so many bytes.
    Message(T, usize),
    /// Not enough bytes yet.
    Incomplete,
    /// No message of this protocol.
    Foreign,
}

/// Reads the head of a request.
pub(super) fn parse_request(bytes: &[u8]) -> Parsed<Head<'_>> {
    if bytes.first().is_some_and(|&magic| magic != REQUEST_MAGIC) {
        return Parsed::Foreign;
    }
    let Some(header) = parse_header(bytes) else {
        return Parsed::Incomplete;
    };
    let prefix = header.key_bytes + header.extras_bytes;
    if (prefix as u64) > header.body_bytes || header.key_bytes > KEY_MAX || header.data_type != 0 {
        return Parsed::Foreign;
    }
    let frame = Head {
        opaque: header.opaque,
        opcode: header.opcode,
        body: header.body_bytes,
        ..Head::keyless(Command::Unknown, Reply::Binary)
    };
    let Some(known) = find_opcode(header.opcode) else {
        return Parsed::Message(frame, HEADER_BYTES);
    };
    if known.kind == Kind::Keyless {
        let traits = Traits::default().with_if(known.quiet, Traits::QUIET);
        return Parsed::Message(Head { command: known.command, traits, ..frame }, HEADER_BYTES);
    }
    if header.extras_bytes != usize::from(known.extras) || header.key_bytes == 0 {
        return Parsed::Foreign;
    }
    let used = HEADER_BYTES + prefix;
    let Some(head) = bytes.get(HEADER_BYTES..used) else {
        return Parsed::Incomplete;
    };
    let (extras, key) = head.split_at(header.extras_bytes);
    let compares = header.cas != 0;
    let command = match known.command {
        Command::Set | Command::Replace if compares => Command::Cas,
        other => other,
    };
    let initial = initial_value(extras);
    let traits = Traits::default()
        .with_if(known.quiet, Traits::QUIET)
        .with_if(compares, Traits::COMPARES)
        .with_if(initial.is_some(), Traits::VIVIFY)
        .with_if(initial.is_some() && known.quiet, Traits::CREATES_SILENTLY)
        .with_if(names_key(header.opcode), Traits::WANTS_KEY)
        .with_if(known.kind == Kind::Storage, Traits::STORES);
    let body = header.body_bytes - prefix as u64;
    let extra = initial.unwrap_or(if known.kind == Kind::Storage { body } else { 0 });
    Parsed::Message(Head { command, key, traits, body, extra, ..frame }, used)
}

/// Longest value that memcached stores (`ITEM_SIZE_MAX_UPPER_LIMIT`).
const VALUE_BYTES_MAX: u64 = 1 << 30;

/// Whether `bytes` begin with a request that a client would send. Values hold headers too, so everything that a header says must be
/// legal for its opcode, and what follows the frame, where it can be seen, must be a frame.
pub(super) fn is_strict_request(bytes: &[u8]) -> bool {
    let (Some(header), Parsed::Message(head, used)) = (parse_header(bytes), parse_request(bytes)) else {
        return false;
    };
    let Some(known) = find_opcode(header.opcode) else { return false };
    let body_fits = match known.kind {
        Kind::Storage => head.body <= VALUE_BYTES_MAX,
        // Statistics and SASL have a key, and the latter a short value.
        Kind::Keyless if matches!(known.command, Command::Stat | Command::Sasl) => {
            head.body <= 4 * KEY_MAX as u64
        }
        Kind::Keyless => {
            head.body == header.extras_bytes as u64 && header.extras_bytes <= usize::from(known.extras)
        }
        Kind::Retrieval | Kind::Deletion | Kind::Arithmetic | Kind::Touch => head.body == 0,
    };
    let end = usize::try_from(head.body).map_or(usize::MAX, |body| used.saturating_add(body));
    // The status of an answer stands where a request has its bucket, which no client of memcached uses.
    body_fits && header.status == 0 && bytes.get(end).is_none_or(|&magic| magic == REQUEST_MAGIC)
}

/// The value with which an arithmetic request creates its item, if it may. No other request has twenty bytes of extras.
fn initial_value(extras: &[u8]) -> Option<u64> {
    let extras: &[u8; 20] = extras.try_into().ok()?;
    let [_, _, _, _, _, _, _, _, initial @ .., e0, e1, e2, e3] = *extras;
    (u32::from_be_bytes([e0, e1, e2, e3]) != NEVER_CREATE).then(|| u64::from_be_bytes(initial))
}

/// The head of a response.
#[derive(Clone, Copy, Debug)]
pub(super) struct Response<'a> {
    pub(super) opcode: u8,
    pub(super) opaque: u32,
    pub(super) status: u16,
    /// Bytes of the frame after the used ones.
    pub(super) body: u64,
    /// Only where the opcode names its key.
    pub(super) key: Option<&'a [u8]>,
    /// The result of an arithmetic request.
    pub(super) number: Option<u64>,
    /// What a server says to be.
    pub(super) version: Option<&'a [u8]>,
    /// Neither key nor value: ends a series of `STAT` frames.
    is_empty: bool,
}

/// Reads the head of a response.
pub(super) fn parse_response(bytes: &[u8]) -> Parsed<Response<'_>> {
    if bytes.first().is_some_and(|&magic| magic != RESPONSE_MAGIC) {
        return Parsed::Foreign;
    }
    let Some(header) = parse_header(bytes) else {
        return Parsed::Incomplete;
    };
    let prefix = header.key_bytes + header.extras_bytes;
    if prefix as u64 > header.body_bytes || header.data_type != 0 || header.extras_bytes > 20 {
        return Parsed::Foreign;
    }
    let with_key = names_key(header.opcode) && header.key_bytes > 0;
    if with_key && header.key_bytes > KEY_MAX {
        return Parsed::Foreign;
    }
    let arithmetic = matches!(find_opcode(header.opcode), Some(known) if known.kind == Kind::Arithmetic);
    let with_number = arithmetic && header.status == 0 && header.body_bytes == 8;
    let with_version = header.opcode == VERSION
        && header.status == 0
        && prefix == 0
        && (1..=VERSION_BYTES_MAX).contains(&header.body_bytes);
    let looked_at = match (with_key, with_number) {
        (true, _) => prefix,
        (_, true) => 8,
        _ if with_version => header.body_bytes as usize,
        _ => 0,
    };
    let used = HEADER_BYTES + looked_at;
    let Some(head) = bytes.get(HEADER_BYTES..used) else {
        return Parsed::Incomplete;
    };
    let response = Response {
        opcode: header.opcode,
        opaque: header.opaque,
        status: header.status,
        body: header.body_bytes - looked_at as u64,
        key: with_key.then(|| &head[header.extras_bytes..]),
        number: if with_number { head.try_into().ok().map(u64::from_be_bytes) } else { None },
        version: with_version.then_some(head),
        is_empty: header.body_bytes == 0,
    };
    Parsed::Message(response, used)
}

impl Response<'_> {
    /// A hit that names its key.
    pub(super) fn is_named_hit(&self) -> bool {
        self.status == 0 && self.key.is_some()
    }

    /// The command of a named hit.
    pub(super) fn command(&self) -> Command {
        find_opcode(self.opcode).map_or(Command::Unknown, |known| known.command)
    }
}

/// Whether `response` answers `request`, and whether it ends the answer: `None` no, `Some(None)` more comes.
#[expect(
    clippy::option_option,
    reason = "the two levels are two questions, and the caller asks both at once"
)]
pub(super) fn judge(request: &Request, key: &[u8], response: &Response<'_>) -> Option<Option<Outcome>> {
    if request.reply != Reply::Binary
        || request.opcode != response.opcode
        || request.opaque != response.opaque
        || response.key.is_some_and(|named| named != key)
    {
        return None;
    }
    let Some(known) = find_opcode(request.opcode) else {
        return Some(Some(Outcome::Error));
    };
    // A hit of GETK always names its key: without one it is another's.
    if request.traits.has(Traits::WANTS_KEY) && response.status == 0 && response.key.is_none() {
        return None;
    }
    if known.quiet {
        let silent = if known.kind == Kind::Retrieval { 1 } else { 0 };
        if response.status == silent {
            return None;
        }
    }
    if request.opcode == STAT && response.status == 0 && !response.is_empty {
        return Some(None);
    }
    Some(Some(outcome_of(request, known, response)))
}

/// Statuses of `protocol_binary_response_status`.
fn outcome_of(request: &Request, known: Opcode, response: &Response<'_>) -> Outcome {
    let compares = request.traits.has(Traits::COMPARES);
    match (known.kind, response.status) {
        (Kind::Keyless, 0) => Outcome::Ok,
        // SASL goes on for another step.
        (Kind::Keyless, 0x21) if known.command as u8 == Command::Sasl as u8 => Outcome::Ok,
        (Kind::Storage, 0) => Outcome::Stored,
        (Kind::Storage, 1) if compares => Outcome::NotFound,
        (Kind::Storage, 2) if compares => Outcome::Exists,
        (Kind::Storage, 1 | 2 | 5) => Outcome::NotStored,
        (Kind::Storage, 3) => Outcome::TooLarge,
        (Kind::Arithmetic, 0) if is_created(request, response) => Outcome::Stored,
        (Kind::Arithmetic, 5) => Outcome::NotStored,
        (Kind::Retrieval | Kind::Deletion | Kind::Arithmetic | Kind::Touch, 0) => Outcome::Hit,
        (Kind::Retrieval | Kind::Deletion | Kind::Arithmetic | Kind::Touch, 1) => Outcome::Miss,
        (Kind::Deletion | Kind::Arithmetic, 2) => Outcome::Exists,
        _ => Outcome::Error,
    }
}

/// The server does not say whether it created the item; a result equal to the initial value is the best evidence.
fn is_created(request: &Request, response: &Response<'_>) -> bool {
    request.traits.has(Traits::VIVIFY) && response.number == Some(request.extra)
}

/// What silence means for a quiet request of either protocol once a later answer has come.
pub(super) fn silent_outcome(request: &Request) -> Outcome {
    if request.traits.has(Traits::CREATES_SILENTLY) {
        return Outcome::Unseen;
    }
    use crate::model::CommandClass::{Arithmetic, Deletion, Retrieval, Storage, Touch};
    match request.command.class() {
        Retrieval => Outcome::Miss,
        Storage => Outcome::Stored,
        Deletion if request.traits.has(Traits::INVALIDATES) => Outcome::Ok,
        Deletion | Arithmetic | Touch => Outcome::Hit,
        _ => Outcome::Ok,
    }
}

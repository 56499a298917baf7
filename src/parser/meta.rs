//! The meta commands (memcached `doc/protocol.txt`, `proto_text.c`): `mg ms md ma mn me`.
//!
//! Flags are tokens: the first letter is the flag, the rest its argument. Keys that came base64-encoded (`b`) count under the bytes
//! that they stand for.

use super::Observation;
use super::command::Shape;
use super::queue::{Answer, KEY_BYTES_MAX, Request};
use super::text::{VALUE_BYTES_MAX, Words, acknowledges};
use super::token::{Tokens, number};
use super::transaction::{Connection, Framing, Sink, Transactions, emit_request};
use crate::model::{Command, Outcome};
use crate::parser::ObservationNotes;
use crate::reassembly::StreamBytes;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Whether a token can be a meta flag.
pub(super) fn is_flag(token: &[u8]) -> bool {
    token.first().is_some_and(u8::is_ascii_alphabetic)
        && token.iter().all(|&byte| (b'!'..0x7f).contains(&byte))
}

/// Whether a token can be the length of `ms`; before 1.6.10 it was written `S<length>`.
pub(super) fn is_length(token: &[u8]) -> bool {
    number(token.strip_prefix(b"S").unwrap_or(token)).is_some_and(|length| length <= VALUE_BYTES_MAX)
}

/// What an answer may echo, hashed (FNV-1a): two opaques of one connection that agree by chance cost an attribution, no more.
fn hash_of(opaque: &[u8]) -> u64 {
    opaque
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
        | 1
}

/// Decodes a base64 key; the length, or none when it is not base64 of a key.
fn decode_key(token: &[u8], into: &mut [u8; KEY_BYTES_MAX]) -> Option<usize> {
    STANDARD.decode_slice(token, into).ok()
}

/// What the flags of a request say.
#[derive(Default)]
struct RequestFlags {
    is_quiet: bool,
    is_base64: bool,
    touches: bool,
    compares: bool,
    mode: Option<u8>,
    opaque_hash: u64,
}

impl RequestFlags {
    fn read<'a>(flags: impl Iterator<Item = &'a [u8]>) -> RequestFlags {
        let mut read = RequestFlags::default();
        for flag in flags {
            match flag {
                [b'q'] => read.is_quiet = true,
                [b'b'] => read.is_base64 = true,
                [b'T', ..] => read.touches = true,
                [b'C', ..] => read.compares = true,
                [b'M', mode, ..] => read.mode = Some(*mode),
                [b'O', opaque @ ..] => read.opaque_hash = hash_of(opaque),
                _ => {}
            }
        }
        read
    }

    /// The command as memcached counts it.
    fn command(&self, command: Command) -> Command {
        match command {
            Command::MetaGet if self.touches => Command::MetaGetTouch,
            Command::MetaSet
                if self.compares && matches!(self.mode, None | Some(b'S' | b's' | b'R' | b'r')) =>
            {
                Command::Cas
            }
            Command::MetaArithmetic if matches!(self.mode, Some(b'D' | b'd' | b'-')) => {
                Command::MetaDecrement
            }
            other => other,
        }
    }
}

impl Transactions {
    /// A meta request line; answers with the length of the body that follows.
    pub(super) fn meta_request<E: FnMut(&Observation<'_>)>(
        &mut self,
        connection: &mut Connection,
        shape: Shape,
        words: &Words<'_>,
        mut request: Request,
        sink: &mut Sink<'_, E>,
    ) -> u64 {
        request.answer = Answer::Meta;
        let first_flag = if shape == Shape::MetaStore { 2 } else { 1 };
        let flags = RequestFlags::read(words.from(first_flag));
        let key = words.get(0).filter(|key| key.len() <= KEY_BYTES_MAX);
        let length = match shape {
            Shape::MetaStore => words.get(1).filter(|token| is_length(token)),
            _ => Some(&b"0"[..]),
        };
        let (Some(key), Some(length)) = (key, length) else {
            // An error line is the answer, and no body is swallowed.
            request.command = Command::Unknown;
            request.answer = Answer::Line;
            self.push(connection, &request, sink);
            return 0;
        };
        let mut decoded = [0; KEY_BYTES_MAX];
        match decode_key(key, &mut decoded).filter(|_| flags.is_base64) {
            Some(bytes) => request.set_key(&decoded[..bytes]),
            None => request.set_key(key),
        }
        request.command = flags.command(request.command);
        request.is_quiet = flags.is_quiet;
        request.opaque_hash = flags.opaque_hash;
        let body = if shape == Shape::MetaStore {
            request.value_bytes = number(length.strip_prefix(b"S").unwrap_or(length)).unwrap_or(0);
            request.value_bytes + 2
        } else {
            0
        };
        request.request_bytes += body;
        request.end = request.end.wrapping_add(body as u32);
        self.push(connection, &request, sink);
        body
    }

    /// A meta response line; answers with the length of the body that follows, or none when it answers no request.
    pub(super) fn meta_response<E: FnMut(&Observation<'_>)>(
        &mut self,
        connection: &mut Connection,
        bytes: &StreamBytes<'_>,
        content: &[u8],
        line_bytes: usize,
        sink: &mut Sink<'_, E>,
    ) -> Option<u64> {
        let reply = MetaReply::read(content)?;
        let body = reply.value_bytes.map_or(0, |length| length + 2);
        if connection.queue.is_empty() && connection.framing[0] != Framing::Framed {
            return reply.as_unseen_request(bytes, line_bytes as u64 + body, sink).then_some(body);
        }
        let place = self.meta_place(connection, &reply, bytes)?;
        for _ in 0..place {
            let outcome = match self.pool.front(&connection.queue) {
                Some(front) if front.is_quiet => front.silent_outcome(),
                _ => Outcome::Unseen,
            };
            self.finish_front(connection, outcome, sink);
        }
        let front = self.pool.front_mut(&connection.queue)?;
        front.answered = Some(bytes.timestamp);
        front.response_bytes += line_bytes as u64 + body;
        front.notes.lease_won = reply.won;
        front.notes.lease_stale = reply.stale;
        front.notes.lease_lost = reply.lost;
        // A value proves that the request was answered, quiet or not.
        front.is_quiet = false;
        let outcome = reply.outcome_for(front.command).unwrap_or(Outcome::Error);
        self.finish_front(connection, outcome, sink);
        Some(body)
    }

    /// How many requests stand before the one that this answers: the first that it can answer and whose echo agrees. Only
    /// quiet ones may be passed over.
    fn meta_place(
        &self,
        connection: &Connection,
        reply: &MetaReply<'_>,
        bytes: &StreamBytes<'_>,
    ) -> Option<usize> {
        let mut passed_loud = 0;
        for (place, request) in self.pool.iter(&connection.queue).enumerate() {
            if !acknowledges(bytes, request) {
                return None;
            }
            let is_silent =
                request.is_quiet && reply.outcome_for(request.command) == Some(request.silent_outcome());
            let fits = request.answer == Answer::Meta
                && reply.outcome_for(request.command).is_some()
                && !is_silent
                && reply.echoes(request);
            if fits {
                return Some(place);
            }
            passed_loud += usize::from(!request.is_quiet);
            if passed_loud > self.limits.look_ahead_max {
                return None;
            }
        }
        None
    }
}

/// A meta response.
struct MetaReply<'a> {
    code: [u8; 2],
    /// `VA`: length of the value.
    value_bytes: Option<u64>,
    /// The key that it names, decoded when it came as base64.
    key: Option<([u8; KEY_BYTES_MAX], usize)>,
    opaque_hash: u64,
    won: bool,
    stale: bool,
    lost: bool,
    _content: std::marker::PhantomData<&'a [u8]>,
}

impl<'a> MetaReply<'a> {
    fn read(content: &'a [u8]) -> Option<MetaReply<'a>> {
        let mut tokens = Tokens::of(content);
        let [a, b] = *tokens.next()? else { return None };
        let mut reply = MetaReply {
            code: [a, b],
            value_bytes: None,
            key: None,
            opaque_hash: 0,
            won: false,
            stale: false,
            lost: false,
            _content: std::marker::PhantomData,
        };
        if reply.code == *b"VA" {
            reply.value_bytes =
                Some(tokens.next().and_then(number).filter(|&length| length <= VALUE_BYTES_MAX)?);
        }
        if reply.code == *b"ME" {
            return Some(reply);
        }
        let (mut key, mut is_base64) = (None, false);
        for flag in tokens {
            match flag {
                [b'k', rest @ ..] => key = Some(rest),
                [b'O', opaque @ ..] => reply.opaque_hash = hash_of(opaque),
                [b'b'] => is_base64 = true,
                [b'W'] => reply.won = true,
                [b'X'] => reply.stale = true,
                [b'Z'] => reply.lost = true,
                _ => {}
            }
        }
        reply.key = key.and_then(|key| {
            let mut bytes = [0; KEY_BYTES_MAX];
            if is_base64 {
                decode_key(key, &mut bytes).map(|length| (bytes, length))
            } else {
                bytes.get_mut(..key.len()).map(|place| place.copy_from_slice(key))?;
                Some((bytes, key.len()))
            }
        });
        Some(reply)
    }

    fn key(&self) -> Option<&[u8]> {
        self.key.as_ref().map(|(bytes, length)| &bytes[..*length])
    }

    /// Whether key and opaque agree, as far as they are there.
    fn echoes(&self, request: &Request) -> bool {
        let same_opaque =
            self.opaque_hash == request.opaque_hash || (self.opaque_hash == 0 && self.code == *b"MN");
        // On a miss the key comes back as the request wrote it; a key that was asked for in base64 is compared decoded then.
        let same_key = match self.key() {
            None => true,
            Some(key) => {
                key == request.key() || {
                    let mut bytes = [0; KEY_BYTES_MAX];
                    decode_key(key, &mut bytes).is_some_and(|length| &bytes[..length] == request.key())
                }
            }
        };
        same_opaque && same_key
    }

    /// The outcome that the code means for a command; none when it cannot be its answer.
    fn outcome_for(&self, command: Command) -> Option<Outcome> {
        use Command::{
            Cas, MetaArithmetic, MetaDebug, MetaDecrement, MetaDelete, MetaGet, MetaGetTouch, MetaNoop,
            MetaSet,
        };
        let outcome = match (command, &self.code) {
            (MetaGet | MetaGetTouch, b"VA" | b"HD" | b"OK") => Outcome::Hit,
            (MetaGet | MetaGetTouch, b"EN") => Outcome::Miss,
            (MetaSet | Cas, b"HD" | b"OK") => Outcome::Stored,
            (MetaSet | Cas, b"NS") => Outcome::NotStored,
            (MetaSet | Cas, b"EX") => Outcome::Exists,
            (MetaSet | Cas, b"NF") => Outcome::NotFound,
            (MetaDelete, b"HD" | b"OK") => Outcome::Hit,
            (MetaDelete, b"NF") => Outcome::Miss,
            (MetaDelete, b"EX") => Outcome::Exists,
            (MetaArithmetic | MetaDecrement, b"HD" | b"VA" | b"OK") => Outcome::Hit,
            (MetaArithmetic | MetaDecrement, b"NF") => Outcome::Miss,
            (MetaArithmetic | MetaDecrement, b"NS") => Outcome::NotStored,
            (MetaArithmetic | MetaDecrement, b"EX") => Outcome::Exists,
            (MetaNoop, b"MN") => Outcome::Ok,
            (MetaDebug, b"ME") => Outcome::Hit,
            (MetaDebug, b"EN") => Outcome::Miss,
            _ => return None,
        };
        Some(outcome)
    }

    /// With only responses in sight: a value that names its key is a hit of a request that was not seen.
    fn as_unseen_request<E: FnMut(&Observation<'_>)>(
        &self,
        bytes: &StreamBytes<'_>,
        response_bytes: u64,
        sink: &mut Sink<'_, E>,
    ) -> bool {
        let (Some(key), Some(_)) = (self.key(), self.value_bytes) else {
            super::transaction::unmatched(sink);
            return true;
        };
        let mut request = Request::new(Command::MetaGet, Answer::Meta, 0, bytes.timestamp);
        request.set_key(key);
        request.response_bytes = response_bytes;
        request.notes = ObservationNotes { request_unseen: true, ..ObservationNotes::default() };
        emit_request(&request, Outcome::Hit, sink);
        true
    }
}

//! Meta commands: `mg ms md ma me mn`, their flags, and their two-letter answers.
//!
//! Sources: `doc/protocol.txt` ("Meta Commands"), `proto_text.c` and `proto_parser.c` (`_meta_flag_preparse`). A code
//! is compared as a whole token: `EX` is not `EXISTS`, `EN` is not `END`.

use super::ObservationNotes;
use super::command::{Head, Syntax, Verb};
use super::queue::{KEY_MAX, Reply, Request, Traits};
use super::token::{Tokens, parse_body};
use crate::model::{Command, Outcome};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// A base64 key decodes to at most this many bytes before the length check.
const BASE64_KEY_MAX: usize = KEY_MAX.div_ceil(3) * 4;

/// What the flags of a request say.
#[derive(Default)]
struct Flags {
    traits: Traits,
    base64: bool,
    touches: bool,
    mode: u8,
    opaque: u32,
}

/// Reads a keyed meta command after its verb.
pub(super) fn parse_request<'a>(verb: Verb, mut tokens: Tokens<'a>, scratch: &'a mut [u8; 256]) -> Head<'a> {
    let token = tokens.next().unwrap_or_default();
    let mut body = 0;
    if verb.syntax == Syntax::MetaSet {
        // Before 1.6.10 the length came as a flag: `S5`.
        let length = tokens.next().unwrap_or_default();
        match parse_body(length.strip_prefix(b"S").unwrap_or(length)) {
            Some(length) => body = length,
            None => return Head::invalid(verb.command, token),
        }
    }
    let flags = parse_flags(tokens);
    let Some(key) = decode_key(token, flags.base64, scratch) else {
        let head = Head::invalid(verb.command, &[]);
        return Head { body, traits: head.traits.with_if(body > 0, Traits::STRAY_BODY), ..head };
    };
    Head {
        key,
        traits: flags.traits.with_if(body > 0, Traits::STORES),
        body,
        extra: body,
        opaque: flags.opaque,
        ..Head::keyless(effective_command(verb.command, &flags), verb.reply)
    }
}

/// The command under which memcached itself counts this one.
fn effective_command(command: Command, flags: &Flags) -> Command {
    match command {
        Command::MetaGet if flags.touches => Command::MetaGetTouch,
        Command::MetaArithmetic if matches!(flags.mode, b'D' | b'd' | b'-') => Command::MetaDecrement,
        // Modes set (default) and replace compare; append, prepend and add only look alike.
        Command::MetaSet
            if flags.traits.has(Traits::COMPARES) && matches!(flags.mode, 0 | b'S' | b's' | b'R' | b'r') =>
        {
            Command::Cas
        }
        other => other,
    }
}

fn parse_flags(tokens: Tokens<'_>) -> Flags {
    let mut flags = Flags::default();
    for token in tokens {
        let (flag, argument) = (token[0], &token[1..]);
        match flag {
            b'b' => flags.base64 = true,
            b'q' => flags.traits = flags.traits.with(Traits::QUIET),
            b'k' => flags.traits = flags.traits.with(Traits::WANTS_KEY),
            b'N' => flags.traits = flags.traits.with(Traits::VIVIFY),
            b'I' => flags.traits = flags.traits.with(Traits::INVALIDATES),
            b'R' => flags.traits = flags.traits.with(Traits::RECACHE),
            b'C' => flags.traits = flags.traits.with(Traits::COMPARES),
            b'T' => flags.touches = true,
            b'M' => flags.mode = argument.first().copied().unwrap_or(0),
            b'O' => {
                flags.traits = flags.traits.with(Traits::WANTS_OPAQUE);
                flags.opaque = digest(argument);
            }
            _ => {}
        }
    }
    flags
}

fn decode_key<'a>(token: &'a [u8], base64: bool, scratch: &'a mut [u8; 256]) -> Option<&'a [u8]> {
    if !base64 {
        return (!token.is_empty() && token.len() <= KEY_MAX).then_some(token);
    }
    if token.len() > BASE64_KEY_MAX {
        return None;
    }
    let length = STANDARD.decode_slice(token, scratch).ok()?;
    (length > 0 && length <= KEY_MAX).then(|| &scratch[..length])
}

/// Opaque tokens are compared by digest (FNV-1a), so that no copy is kept.
fn digest(token: &[u8]) -> u32 {
    token.iter().fold(0x811c_9dc5, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// The two letters that begin a meta answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    /// `HD`
    Done,
    /// `VA`
    Value,
    /// `EN`
    Absent,
    /// `NF`
    NotFound,
    /// `NS`
    NotStored,
    /// `EX`
    Exists,
    /// `MN`
    Noop,
    /// `ME`
    Debug,
}

/// One meta answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct MetaAnswer<'a> {
    pub(super) code: Code,
    /// Length of the body with its line end; 0 without one.
    pub(super) body: u64,
    /// The key token, perhaps base64.
    pub(super) key: Option<&'a [u8]>,
    base64: bool,
    opaque: Option<u32>,
    won: bool,
    stale: bool,
    lost: bool,
}

/// Reads an answer line; `None` if it is none of ours.
pub(super) fn parse_answer(line: &[u8]) -> Option<MetaAnswer<'_>> {
    let code = match line.get(..2)? {
        b"HD" => Code::Done,
        b"VA" => Code::Value,
        b"EN" => Code::Absent,
        b"NF" => Code::NotFound,
        b"NS" => Code::NotStored,
        b"EX" => Code::Exists,
        b"MN" => Code::Noop,
        b"ME" => Code::Debug,
        _ => return None,
    };
    let mut answer = MetaAnswer {
        code,
        body: 0,
        key: None,
        base64: false,
        opaque: None,
        won: false,
        stale: false,
        lost: false,
    };
    let mut tokens = Tokens::new(&line[2..]);
    match code {
        Code::Value => answer.body = parse_body(tokens.next()?)?,
        Code::Debug => {
            answer.key = tokens.next();
            return Some(answer);
        }
        _ => {}
    }
    for token in tokens {
        match token[0] {
            b'k' => answer.key = Some(&token[1..]),
            b'O' => answer.opaque = Some(digest(&token[1..])),
            b'b' => answer.base64 = true,
            b'W' => answer.won = true,
            b'X' => answer.stale = true,
            b'Z' => answer.lost = true,
            _ => {}
        }
    }
    Some(answer)
}

impl MetaAnswer<'_> {
    /// `W` also goes to the winner of a recache, whose item was there: only an empty, fresh item was created just now.
    fn is_vivified(&self, request: &Request) -> bool {
        let empty = match self.code {
            Code::Value => self.body == 2,
            Code::Done => !request.traits.has(Traits::RECACHE),
            _ => false,
        };
        request.traits.has(Traits::VIVIFY) && self.won && !self.stale && empty
    }

    /// The key that the answer names, decoded.
    pub(super) fn decoded_key<'s>(&'s self, scratch: &'s mut [u8; 256]) -> Option<&'s [u8]> {
        decode_key(self.key?, self.base64, scratch)
    }

    /// Whether the answer names this request's key or opaque token: a wrong request would not fit.
    pub(super) fn identifies(&self, request: &Request) -> bool {
        let key = request.traits.has(Traits::WANTS_KEY) && self.key.is_some();
        key || (request.traits.has(Traits::WANTS_OPAQUE) && self.opaque.is_some())
    }

    /// What the flags say about a request's lease.
    pub(super) fn notes(&self, request: &Request) -> ObservationNotes {
        let vivified = self.is_vivified(request);
        ObservationNotes {
            lease_won: vivified,
            lease_stale: self.stale,
            lease_lost: self.lost,
            ..request.notes
        }
    }
}

/// How `request` ends if `answer` is its answer; `None` if it cannot be.
pub(super) fn judge(request: &Request, key: &[u8], answer: &MetaAnswer<'_>) -> Option<Outcome> {
    let quiet = request.traits.has(Traits::QUIET);
    let outcome = match (request.reply, answer.code) {
        (Reply::MetaGet, Code::Value | Code::Done) => Outcome::Hit,
        (Reply::MetaGet, Code::Absent) if !quiet => Outcome::Miss,
        (Reply::MetaSet, Code::Done) if !quiet => Outcome::Stored,
        (Reply::MetaSet | Reply::MetaArithmetic, Code::NotStored) => Outcome::NotStored,
        (Reply::MetaSet, Code::NotFound) => Outcome::NotFound,
        (Reply::MetaSet | Reply::MetaDelete | Reply::MetaArithmetic, Code::Exists) => Outcome::Exists,
        // Marked stale: nothing is deleted, and memcached counts nothing.
        (Reply::MetaDelete, Code::Done) if !quiet && request.traits.has(Traits::INVALIDATES) => Outcome::Ok,
        (Reply::MetaDelete, Code::Done) if !quiet => Outcome::Hit,
        (Reply::MetaDelete | Reply::MetaArithmetic, Code::NotFound) => Outcome::Miss,
        // Servers before 1.6.40 answer a quiet increment that created its item.
        (Reply::MetaArithmetic, Code::Value | Code::Done)
            if quiet
                && request.traits.has(Traits::VIVIFY)
                && !request.traits.has(Traits::CREATES_SILENTLY) =>
        {
            Outcome::Stored
        }
        (Reply::MetaArithmetic, Code::Value | Code::Done) if !quiet => Outcome::Hit,
        (Reply::MetaNoop, Code::Noop) => Outcome::Ok,
        (Reply::MetaDebug, Code::Debug) => Outcome::Hit,
        (Reply::MetaDebug, Code::Absent) => Outcome::Miss,
        _ => return None,
    };
    answers_to(request, key, answer).then_some(outcome)
}

/// Whether the answer repeats what this request wanted repeated.
fn answers_to(request: &Request, key: &[u8], answer: &MetaAnswer<'_>) -> bool {
    // `MN` takes no flags; debug lines carry the key as they like.
    if matches!(answer.code, Code::Noop | Code::Debug) {
        return true;
    }
    // Early servers did not repeat anything beside the codes of failure.
    let bare = !matches!(answer.code, Code::Value | Code::Done);
    let opaque_fits = match answer.opaque {
        Some(opaque) => request.traits.has(Traits::WANTS_OPAQUE) && opaque == request.opaque,
        None => bare || !request.traits.has(Traits::WANTS_OPAQUE),
    };
    let key_fits = match answer.key {
        Some(token) if !answer.base64 => request.traits.has(Traits::WANTS_KEY) && token == key,
        Some(_) => request.traits.has(Traits::WANTS_KEY) && answer.decoded_key(&mut [0; 256]) == Some(key),
        None => bare || !request.traits.has(Traits::WANTS_KEY),
    };
    opaque_fits && key_fits
}

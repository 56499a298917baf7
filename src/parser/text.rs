//! Classic text protocol: request lines with all but long key lists, and response lines.
//!
//! Sources: memcached's `doc/protocol.txt`, `process_update_command` and its neighbours in `proto_text.c`. Nothing here keeps
//! state; key lists of `get` and its kin are read key by key in `transaction.rs`.

use super::command::{Head, Syntax, Verb};
use super::meta::{self, MetaAnswer};
use super::queue::{KEY_MAX, Reply, Request, Traits};
use super::token::{
    Tokens, body_of, is_integer, leading_word, parse_body, parse_unsigned, split_short_number,
};
use crate::model::{Command, Outcome};

/// Room that an item takes beside its key and value: `sizeof(item)`, the CAS value and two line ends, as measured on live
/// servers (largest value accepted for a one-byte key: 1,048,516).
const ITEM_OVERHEAD_BYTES: u64 = 59;

/// Client flags other than zero take this many bytes of the item.
const CLIENT_FLAGS_BYTES: u64 = 4;

/// Whether the server refuses an item of this size (`item_size_ok` in `items.c`). `body` includes the line end.
pub(super) fn is_too_large(body: u64, key_bytes: usize, has_client_flags: bool, item_size_max: u64) -> bool {
    let flags = if has_client_flags { CLIENT_FLAGS_BYTES } else { 0 };
    body.saturating_sub(2) + key_bytes as u64 + ITEM_OVERHEAD_BYTES + flags > item_size_max
}

/// Reads the tokens after a verb. `scratch` takes a decoded key.
pub(super) fn parse_arguments<'a>(
    verb: Verb,
    mut tokens: Tokens<'a>,
    line: &[u8],
    scratch: &'a mut [u8; 256],
) -> Head<'a> {
    match verb.syntax {
        Syntax::Storage => parse_storage(verb, tokens, 4),
        Syntax::StorageCas => parse_storage(verb, tokens, 5),
        Syntax::Deletion => parse_keyed(verb, tokens, 0),
        Syntax::KeyNumber => parse_keyed(verb, tokens, 1),
        Syntax::Meta | Syntax::MetaSet => meta::parse_request(verb, tokens, scratch),
        Syntax::Keyless => parse_keyless(verb, tokens, line),
        // Their keys are read elsewhere; what comes here is a line without any.
        Syntax::Keys | Syntax::KeysAfterExpiry => {
            Head::invalid(verb.command, tokens.next().unwrap_or_default())
        }
    }
}

fn parse_storage<'a>(verb: Verb, tokens: Tokens<'a>, arguments: usize) -> Head<'a> {
    let mut found = [&[][..]; 7];
    let mut count = 0;
    for (place, token) in found.iter_mut().zip(tokens) {
        *place = token;
        count += 1;
    }
    let key = found[0];
    if count < arguments {
        return Head::invalid(verb.command, key);
    }
    let Some(body) = parse_body(found[3]) else {
        return Head::invalid(verb.command, key);
    };
    let numbers_right = parse_unsigned(found[1]).is_some()
        && is_integer(found[2])
        && (arguments == 4 || parse_unsigned(found[4]).is_some());
    let silent = found[count - 1] == b"noreply";
    let surplus = count > arguments + usize::from(silent);
    let traits = Traits::STORES.with_if(surplus, Traits::STRAY_BODY);
    if key.len() > KEY_MAX || !numbers_right {
        let head = Head::invalid(verb.command, key);
        return Head { body, silent, traits: head.traits.with(Traits::STRAY_BODY), ..head };
    }
    Head {
        key,
        traits,
        silent,
        body,
        extra: body,
        has_client_flags: found[1] != b"0",
        ..Head::keyless(verb.command, verb.reply)
    }
}

/// `delete`, `incr`, `decr`, `touch`: a key, `numbers` more arguments, perhaps `noreply`.
fn parse_keyed<'a>(verb: Verb, mut tokens: Tokens<'a>, numbers: usize) -> Head<'a> {
    let key = tokens.next().unwrap_or_default();
    let (mut count, mut last) = (0, &[][..]);
    for token in tokens {
        count += 1;
        last = token;
    }
    if key.is_empty() || key.len() > KEY_MAX || count < numbers {
        return Head::invalid(verb.command, key);
    }
    Head { key, silent: last == b"noreply" && count > numbers, ..Head::keyless(verb.command, verb.reply) }
}

fn parse_keyless<'a>(verb: Verb, mut tokens: Tokens<'a>, line: &[u8]) -> Head<'a> {
    let argument = tokens.next();
    let reply = match (verb.command, argument) {
        (Command::LruCrawler, Some(b"metadump" | b"mgdump")) => Reply::Dump,
        _ => verb.reply,
    };
    let accepts_noreply = matches!(
        verb.command,
        Command::FlushAll
            | Command::Verbosity
            | Command::CacheMemlimit
            | Command::Slabs
            | Command::Lru
            | Command::LruCrawler
    );
    let silent = accepts_noreply && line.trim_ascii_end().ends_with(b" noreply");
    Head { silent, ..Head::keyless(verb.command, reply) }
}

/// Why the server says no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// `ERROR`: no such command, wrong number of tokens.
    Plain,
    /// `CLIENT_ERROR` about the request's form.
    Client,
    /// `CLIENT_ERROR bad data chunk`.
    BadChunk,
    /// `CLIENT_ERROR cannot increment or decrement non-numeric value`.
    NonNumeric,
    /// `SERVER_ERROR object too large for cache`.
    TooLarge,
    /// `SERVER_ERROR out of memory storing object`.
    NoMemoryToStore,
    /// `SERVER_ERROR` otherwise.
    Server,
}

/// One line from the server.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answer<'a> {
    /// `VALUE K flags LEN [CAS]`, with the length of the body and its line end.
    Value {
        key: &'a [u8],
        body: u64,
    },
    End,
    Stored,
    NotStored,
    Exists,
    NotFound,
    Deleted,
    Touched,
    Number,
    Okay,
    /// `VERSION x.y.z`: what follows the word.
    Version(&'a [u8]),
    /// `STAT`, `ITEM`, `PREFIX`.
    Stat,
    Reset,
    Refused(Refusal),
    /// A line of a dump or of a log stream.
    Dump,
    Meta(MetaAnswer<'a>),
    Empty,
    /// Text that is none of the above: answers of rare administrative commands.
    Other,
}

impl Answer<'_> {
    /// Bytes of body that follow the line.
    pub(super) fn body(&self) -> u64 {
        match self {
            Answer::Value { body, .. } => *body,
            Answer::Meta(answer) => answer.body,
            _ => 0,
        }
    }
}

/// A `get` of one key at the front of `bytes`, as clients write it, whole: the key, and the bytes of the line.
#[inline]
pub(super) fn read_plain_get(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let rest = bytes.strip_prefix(b"get ")?;
    let key = leading_word(rest);
    let rest = rest[key.len()..].strip_prefix(b"\r\n")?;
    let is_key = !key.is_empty() && key.len() <= KEY_MAX;
    is_key.then_some((key, bytes.len() - rest.len()))
}

/// A hit at the front of `bytes` as servers write it, whole, with a line end and without a CAS value: the key, the bytes of the
/// line, and those of the body behind it. What is not plainly that is left to [`parse_answer`].
#[inline]
pub(super) fn read_plain_value(bytes: &[u8]) -> Option<(&[u8], usize, u64)> {
    let rest = bytes.strip_prefix(b"VALUE ")?;
    let key = leading_word(rest);
    let (_flags, rest) = split_short_number(rest[key.len()..].strip_prefix(b" ")?)?;
    let (length, rest) = split_short_number(rest.strip_prefix(b" ")?)?;
    let rest = rest.strip_prefix(b"\r\n")?;
    let is_key = !key.is_empty() && key.len() <= KEY_MAX;
    is_key.then_some((key, bytes.len() - rest.len(), body_of(length)?))
}

/// Reads one line without its end.
pub(super) fn parse_answer(line: &[u8]) -> Answer<'_> {
    if let Some(rest) = line.strip_prefix(b"VALUE ") {
        return parse_value(rest).map_or(Answer::Other, |(key, body)| Answer::Value { key, body });
    }
    match line {
        b"END" => return Answer::End,
        b"STORED" => return Answer::Stored,
        b"" => return Answer::Empty,
        _ => {}
    }
    if matches!(line.get(2), None | Some(b' '))
        && let Some(answer) = meta::parse_answer(line)
    {
        return Answer::Meta(answer);
    }
    parse_rare_answer(line)
}

fn parse_value(rest: &[u8]) -> Option<(&[u8], u64)> {
    let space = memchr::memchr(b' ', rest)?;
    let (key, rest) = rest.split_at(space);
    let mut tokens = rest[1..].split(|&byte| byte == b' ');
    parse_unsigned(tokens.next()?)?;
    let body = parse_body(tokens.next()?)?;
    if let Some(cas) = tokens.next() {
        parse_unsigned(cas)?;
    }
    let whole = tokens.next().is_none() && !key.is_empty() && key.len() <= KEY_MAX;
    whole.then_some((key, body))
}

fn parse_rare_answer(line: &[u8]) -> Answer<'_> {
    let word_end = line.iter().position(|&byte| byte == b' ').unwrap_or(line.len());
    match &line[..word_end] {
        b"NOT_STORED" => Answer::NotStored,
        b"EXISTS" => Answer::Exists,
        b"NOT_FOUND" => Answer::NotFound,
        b"DELETED" => Answer::Deleted,
        b"TOUCHED" => Answer::Touched,
        b"OK" => Answer::Okay,
        b"VERSION" => Answer::Version(line[word_end..].trim_ascii()),
        b"STAT" | b"ITEM" | b"PREFIX" => Answer::Stat,
        b"RESET" => Answer::Reset,
        b"ERROR" => Answer::Refused(Refusal::Plain),
        b"CLIENT_ERROR" => Answer::Refused(client_refusal(&line[word_end..])),
        b"SERVER_ERROR" => Answer::Refused(server_refusal(&line[word_end..])),
        b"mg" => Answer::Dump,
        _ if line.starts_with(b"key=") || line.starts_with(b"ts=") => Answer::Dump,
        _ if parse_unsigned(line).is_some() => Answer::Number,
        _ => Answer::Other,
    }
}

/// Whether `x.y.z` is a server of 1.6.40 or newer, whose text parser follows other rules in what is malformed.
pub(super) fn is_new_version(version: &[u8]) -> bool {
    const FIRST_NEW: [u64; 3] = [1, 6, 40];
    let mut numbers =
        version.split(|&byte| !byte.is_ascii_digit()).map(|part| parse_unsigned(part).unwrap_or(0));
    let version = std::array::from_fn(|_| numbers.next().unwrap_or(0));
    version >= FIRST_NEW
}

fn client_refusal(text: &[u8]) -> Refusal {
    match text {
        b" bad data chunk" => Refusal::BadChunk,
        _ if text.starts_with(b" cannot increment") => Refusal::NonNumeric,
        _ => Refusal::Client,
    }
}

fn server_refusal(text: &[u8]) -> Refusal {
    match text {
        b" object too large for cache" => Refusal::TooLarge,
        b" out of memory storing object" => Refusal::NoMemoryToStore,
        _ => Refusal::Server,
    }
}

/// What an answer means for a request that can get it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is part of the answer; more comes.
    More,
    /// It ends the answer.
    Done(Outcome),
}

/// Whether `request` can be answered by `answer`, and what that means. `VALUE` lines are matched to keys by the
/// caller.
pub(super) fn judge(
    request: &Request,
    key: &[u8],
    answer: &Answer<'_>,
    item_size_max: u64,
) -> Option<Verdict> {
    if request.traits.has(Traits::OPEN) || request.reply == Reply::Binary {
        return None;
    }
    if let Answer::Refused(refusal) = *answer {
        return judge_refusal(request, key, refusal, item_size_max);
    }
    if request.traits.has(Traits::INVALID) {
        let end = matches!(answer, Answer::End) && request.traits.has(Traits::EMPTY_LIST);
        return end.then_some(Verdict::Done(Outcome::Error));
    }
    if let Answer::Meta(answer) = answer {
        return match (request.reply, answer.code) {
            (Reply::Dump, meta::Code::Absent) => Some(Verdict::Done(Outcome::Ok)),
            _ => meta::judge(request, key, answer).map(Verdict::Done),
        };
    }
    judge_line(request.reply, answer)
}

fn judge_line(reply: Reply, answer: &Answer<'_>) -> Option<Verdict> {
    use Verdict::{Done, More};
    Some(match (reply, answer) {
        (Reply::Values, Answer::End) => Done(Outcome::Miss),
        (Reply::Storage, Answer::Stored) => Done(Outcome::Stored),
        (Reply::Storage, Answer::NotStored) => Done(Outcome::NotStored),
        (Reply::Storage, Answer::Exists) => Done(Outcome::Exists),
        (Reply::Storage, Answer::NotFound) => Done(Outcome::NotFound),
        (Reply::Deletion, Answer::Deleted) => Done(Outcome::Hit),
        (Reply::Touch, Answer::Touched) => Done(Outcome::Hit),
        (Reply::Arithmetic, Answer::Number) => Done(Outcome::Hit),
        (Reply::Deletion | Reply::Touch | Reply::Arithmetic, Answer::NotFound) => Done(Outcome::Miss),
        (Reply::Version, Answer::Version(_)) => Done(Outcome::Ok),
        (Reply::Stats | Reply::Dump, Answer::End) => Done(Outcome::Ok),
        (Reply::Stats, Answer::Stat) => More,
        (Reply::Stats, Answer::Okay | Answer::Reset) => Done(Outcome::Ok),
        (Reply::Dump, Answer::Dump | Answer::Okay) => More,
        (Reply::Watch, Answer::Okay) => Done(Outcome::Ok),
        (Reply::Line | Reply::Dump, Answer::Other) => Done(Outcome::Ok),
        (Reply::Line, Answer::Okay | Answer::Reset | Answer::Version(_)) => Done(Outcome::Ok),
        // Servers before 1.6.10 said so for stored meta sets.
        (Reply::MetaSet, Answer::Okay) => Done(Outcome::Stored),
        _ => return None,
    })
}

/// Errors are sent for any request that gets answers. A quiet one gets only those that it can cause itself.
fn judge_refusal(request: &Request, key: &[u8], refusal: Refusal, item_size_max: u64) -> Option<Verdict> {
    let stores = matches!(request.reply, Reply::Storage | Reply::MetaSet);
    let counts = matches!(request.reply, Reply::Arithmetic | Reply::MetaArithmetic);
    let invalid = request.traits.has(Traits::INVALID);
    let quiet = request.traits.has(Traits::QUIET);
    let possible = match refusal {
        Refusal::Plain | Refusal::Client => invalid || !quiet,
        // Also said of a length that is no number.
        Refusal::BadChunk => stores || invalid,
        Refusal::NonNumeric => counts,
        Refusal::TooLarge => {
            stores && (!quiet || is_too_large(request.extra, key.len(), false, item_size_max))
        }
        Refusal::NoMemoryToStore => stores || counts,
        Refusal::Server => request.reply != Reply::Nothing,
    };
    // `quit` and `shutdown` say nothing, but `ERROR: shutdown not enabled` is an answer.
    let possible = possible && request.command != Command::Quit;
    let outcome = if refusal == Refusal::TooLarge { Outcome::TooLarge } else { Outcome::Error };
    possible.then_some(Verdict::Done(outcome))
}

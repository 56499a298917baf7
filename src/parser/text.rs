//! The classic text protocol (memcached `doc/protocol.txt`, `proto_text.c`): requests to outstanding ones, responses to outcomes.

use super::command::{Shape, VERBS, verb};
use super::meta;
use super::queue::{Answer, KEY_BYTES_MAX, Request};
use super::token::{Line, Tokens, is_number, line, number};
use super::transaction::{Connection, Framing, Sink, Transactions, emit_request, emit_silent, unmatched};
use super::{Observation, ObservationNotes};
use crate::anomaly::Anomaly;
use crate::model::{Command, Outcome, Timestamp, Transport};
use crate::reassembly::{Demand, StreamBytes};

/// Longest value: memcached's `ITEM_SIZE_MAX_UPPER_LIMIT`, 1 GiB.
pub(super) const VALUE_BYTES_MAX: u64 = 1 << 30;

/// Bytes of an item beside key and value (`sizeof(item)` with CAS and line end), found by bisection on a real server.
const ITEM_OVERHEAD_BYTES: u64 = 59;

/// Lines of keys are read key by key, so that a line of any length needs no more than one key at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeysLine {
    command: Command,
    /// Bytes of the line that belong to no key yet: verb, exptime, extra spaces.
    loose_bytes: u32,
    /// Keys pushed of this line.
    keys: u32,
    /// End of the line's stream position, when it was in sight at its start.
    end: Option<u32>,
    /// A key longer than 250 bytes was among them: the server answers the whole line with an error.
    is_overlong: bool,
    /// In the middle of such a key.
    in_overlong: bool,
}

/// What a response line makes of the bytes after it.
enum Step {
    Next,
    /// A body follows.
    Skip(u64),
    /// It fits nothing: the direction has lost its way.
    Lost,
}

impl Transactions {
    pub(super) fn text_requests<E: FnMut(&Observation<'_>)>(
        &mut self,
        connection: &mut Connection,
        bytes: &StreamBytes<'_>,
        sink: &mut Sink<'_, E>,
    ) -> Demand {
        let data = bytes.bytes;
        let mut at = 0;
        while at < data.len() {
            if let Some(keys) = connection.keys {
                match self.read_keys(connection, keys, bytes, at, sink) {
                    Some(after) => at = after,
                    None => return Demand::used(data.len() - connection_tail(connection, &data[at..])),
                }
                continue;
            }
            if let Some((command, used)) = keys_line_start(&data[at..]) {
                let end = memchr::memchr(b'\n', &data[at..])
                    .map(|newline| bytes.position.wrapping_add((at + newline + 1) as u32));
                connection.keys = Some(KeysLine {
                    command,
                    loose_bytes: used as u32,
                    keys: 0,
                    end,
                    is_overlong: false,
                    in_overlong: false,
                });
                at += used;
                continue;
            }
            let Some(line) = line(&data[at..]) else { return Demand::used(at) };
            let end = bytes.position.wrapping_add((at + line.wire_bytes) as u32);
            let skip = self.request_line(connection, line, end, bytes.timestamp, sink);
            at += line.wire_bytes;
            if skip > 0 {
                return Demand::skip(at, skip);
            }
        }
        Demand::used(at)
    }

    /// Reads keys from `at`; the place behind the line, or none while the line goes on.
    fn read_keys<E: FnMut(&Observation<'_>)>(
        &mut self,
        connection: &mut Connection,
        mut keys: KeysLine,
        bytes: &StreamBytes<'_>,
        mut at: usize,
        sink: &mut Sink<'_, E>,
    ) -> Option<usize> {
        let data = bytes.bytes;
        loop {
            while data.get(at) == Some(&b' ') {
                at += 1;
                keys.loose_bytes += 1;
                keys.in_overlong = false;
            }
            connection.keys = Some(keys);
            let rest = &data[at..];
            let Some(length) = memchr::memchr2(b' ', b'\n', rest) else {
                if keys.in_overlong || rest.len() > KEY_BYTES_MAX + 1 {
                    keys.loose_bytes += rest.len() as u32;
                    (keys.is_overlong, keys.in_overlong) = (true, true);
                    connection.keys = Some(keys);
                }
                return None;
            };
            let is_end = rest[length] == b'\n';
            let token = if is_end {
                rest[..length].strip_suffix(b"\r").unwrap_or(&rest[..length])
            } else {
                &rest[..length]
            };
            at += length + usize::from(is_end);
            let wire_bytes = (length + usize::from(is_end)) as u32;
            if token.is_empty() || keys.in_overlong || token.len() > KEY_BYTES_MAX {
                keys.is_overlong |= token.len() > KEY_BYTES_MAX;
                keys.in_overlong = false;
                keys.loose_bytes += wire_bytes;
            } else {
                // While the line's end is not in sight its keys carry no time; see `end_keys`.
                let completed = if keys.end.is_some() { bytes.timestamp } else { Timestamp::ZERO };
                let mut request =
                    Request::new(keys.command, Answer::Values, keys.end.unwrap_or(0), completed);
                request.is_last_of_line = false;
                request.set_key(token);
                request.request_bytes = u64::from(wire_bytes + std::mem::take(&mut keys.loose_bytes));
                keys.keys += 1;
                self.push(connection, &request, sink);
            }
            if is_end {
                let end = bytes.position.wrapping_add(at as u32);
                self.end_keys(connection, keys, end, bytes.timestamp, sink);
                return Some(at);
            }
        }
    }

    fn end_keys<E: FnMut(&Observation<'_>)>(
        &mut self,
        connection: &mut Connection,
        keys: KeysLine,
        end: u32,
        now: Timestamp,
        sink: &mut Sink<'_, E>,
    ) {
        connection.keys = None;
        if keys.keys == 0 {
            let mut request = Request::new(Command::Unknown, Answer::Line, end, now);
            request.request_bytes = u64::from(keys.loose_bytes);
            request.is_overlong = keys.is_overlong;
            self.push(connection, &request, sink);
            return;
        }
        if keys.end.is_none() || keys.is_overlong {
            self.pool.for_each_mut(&connection.queue, |request| {
                if request.completed == Timestamp::ZERO {
                    (request.end, request.completed) = (end, now);
                }
            });
        }
        if let Some(last) = self.pool.back_mut(&connection.queue) {
            last.is_last_of_line = true;
            last.is_overlong = keys.is_overlong;
            last.request_bytes += u64::from(keys.loose_bytes);
        }
    }

    /// One request line that is not a list of keys; answers with the length of the body that follows.
    fn request_line<E: FnMut(&Observation<'_>)>(
        &mut self,
        connection: &mut Connection,
        line: Line<'_>,
        end: u32,
        now: Timestamp,
        sink: &mut Sink<'_, E>,
    ) -> u64 {
        // memcached before 1.6.40 does not see what is behind a NUL.
        let seen = line.content.split(|&byte| byte == 0).next().unwrap_or(line.content);
        let mut tokens = Tokens::of(seen);
        let verb = tokens.next().and_then(verb);
        let (command, shape) = verb.unwrap_or((Command::Unknown, Shape::Admin));
        let mut request = Request::new(command, Answer::Line, end, now);
        request.request_bytes = line.wire_bytes as u64;
        let words: Words<'_> = Words::of(tokens);
        match shape {
            Shape::Store | Shape::StoreCas => {
                return self.store_line(connection, shape, &words, request, sink);
            }
            Shape::Meta | Shape::MetaStore => {
                return self.meta_request(connection, shape, &words, request, sink);
            }
            Shape::MetaNoop => request.answer = Answer::Meta,
            // Only lines without a key get here: the server answers with an error or END.
            Shape::Keys | Shape::ExptimeKeys => request.command = Command::Unknown,
            Shape::Keyed => match words.get(0).filter(|key| key.len() <= KEY_BYTES_MAX) {
                Some(key) => request.set_key(key),
                None => request.command = Command::Unknown,
            },
            Shape::Admin => {}
            Shape::Stats => request.answer = Answer::Lines,
            Shape::LruCrawler => {
                if matches!(words.get(0), Some(b"metadump" | b"mgdump")) {
                    request.answer = Answer::Dump;
                }
            }
            Shape::Watch => request.answer = Answer::Watch,
            Shape::Quit => {
                emit_silent(&request, Outcome::Ok, sink);
                return 0;
            }
        }
        let may_be_silent =
            matches!(shape, Shape::Keyed | Shape::Admin) && request.command != Command::Unknown;
        if may_be_silent && words.last() == Some(b"noreply") {
            emit_silent(&request, Outcome::Unseen, sink);
        } else {
            self.push(connection, &request, sink);
        }
        0
    }

    /// `set` and its kin; answers with the length of the body and its line end.
    fn store_line<E: FnMut(&Observation<'_>)>(
        &mut self,
        connection: &mut Connection,
        shape: Shape,
        words: &Words<'_>,
        mut request: Request,
        sink: &mut Sink<'_, E>,
    ) -> u64 {
        let fields = if shape == Shape::StoreCas { 5 } else { 4 };
        let length = words.get(3).and_then(number).filter(|&length| length <= VALUE_BYTES_MAX);
        let key = words.get(0).filter(|key| key.len() <= KEY_BYTES_MAX);
        let flags = words.get(1).and_then(number);
        let is_valid = words.len() >= fields
            && (words.len() <= fields + 1 || connection.is_new_server)
            && flags.is_some()
            && words.get(2).is_some_and(is_number)
            && (shape == Shape::Store || words.get(4).is_some_and(is_number));
        let (Some(key), Some(length), true) = (key, length, is_valid) else {
            request.command = Command::Unknown;
            // Newer servers swallow the body of a line whose length they could read.
            let swallowed = length
                .filter(|_| connection.is_new_server && words.len() >= fields)
                .map_or(0, |length| length + 2);
            request.request_bytes += swallowed;
            self.push(connection, &request, sink);
            return swallowed;
        };
        request.set_key(key);
        request.value_bytes = length;
        request.request_bytes += length + 2;
        request.end = request.end.wrapping_add((length + 2) as u32);
        if std::mem::take(&mut connection.awaits_login) && request.command == Command::Set {
            // The body holds user and password; nothing of it is ever looked at.
            request.command = Command::Sasl;
            request.set_key(b"");
        }
        if words.len() > fields && words.last() == Some(b"noreply") {
            let flag_bytes = if flags == Some(0) { 0 } else { 4 };
            let item_bytes = length + key.len() as u64 + ITEM_OVERHEAD_BYTES + flag_bytes;
            let is_refused = item_bytes > self.limits.item_size_max;
            emit_silent(&request, if is_refused { Outcome::TooLarge } else { Outcome::Unseen }, sink);
        } else {
            self.push(connection, &request, sink);
        }
        length + 2
    }

    pub(super) fn text_responses<E: FnMut(&Observation<'_>)>(
        &mut self,
        connection: &mut Connection,
        bytes: &StreamBytes<'_>,
        transport: Transport,
        sink: &mut Sink<'_, E>,
    ) -> Demand {
        let data = bytes.bytes;
        let mut at = 0;
        while at < data.len() {
            let Some(line) = line(&data[at..]) else { return Demand::used(at) };
            let step = self.response_line(connection, bytes, line, transport, sink);
            at += line.wire_bytes;
            match step {
                Step::Next if connection.is_watch => return Demand::used(data.len()),
                Step::Next => {}
                Step::Skip(length) => return Demand::skip(at, length),
                Step::Lost => {
                    sink.anomalies.count(Anomaly::Resynchronised);
                    return Demand::lost(data.len());
                }
            }
        }
        Demand::used(at)
    }

    fn response_line<E: FnMut(&Observation<'_>)>(
        &mut self,
        connection: &mut Connection,
        bytes: &StreamBytes<'_>,
        line: Line<'_>,
        transport: Transport,
        sink: &mut Sink<'_, E>,
    ) -> Step {
        let content = line.content;
        if content.is_empty() {
            // Newer servers send an empty line behind some errors.
            return Step::Next;
        }
        if let Some(front) = self.pool.front_mut(&connection.queue)
            && front.answer == Answer::Dump
            && !content.starts_with(b"ERROR")
        {
            front.answered.get_or_insert(bytes.timestamp);
            front.response_bytes += line.wire_bytes as u64;
            let is_busy = content.starts_with(b"BUSY") || content.starts_with(b"BADCLASS");
            if matches!(content, b"END" | b"EN") || is_busy {
                self.finish_front(connection, if is_busy { Outcome::Error } else { Outcome::Ok }, sink);
            }
            return Step::Next;
        }
        let reply = Reply::read(content);
        match reply {
            Reply::Value { key, length } => self.value_line(connection, bytes, key, length, line, sink),
            Reply::Meta { .. } if transport == Transport::Tcp || !connection.queue.is_empty() => {
                match self.meta_response(connection, bytes, content, line.wire_bytes, sink) {
                    Some(0) => Step::Next,
                    Some(length) => Step::Skip(length),
                    None => self.other_line(connection, bytes, &reply, line, sink),
                }
            }
            _ => self.other_line(connection, bytes, &reply, line, sink),
        }
    }

    fn value_line<E: FnMut(&Observation<'_>)>(
        &mut self,
        connection: &mut Connection,
        bytes: &StreamBytes<'_>,
        key: &[u8],
        length: u64,
        line: Line<'_>,
        sink: &mut Sink<'_, E>,
    ) -> Step {
        let response_bytes = line.wire_bytes as u64 + length + 2;
        if connection.queue.is_empty() && connection.framing[0] != Framing::Framed {
            let mut request = Request::new(Command::Get, Answer::Values, 0, bytes.timestamp);
            request.set_key(key);
            request.response_bytes = response_bytes;
            request.notes = ObservationNotes { request_unseen: true, ..ObservationNotes::default() };
            emit_request(&request, Outcome::Hit, sink);
            return Step::Skip(length + 2);
        }
        if !self.was_asked(connection, key, bytes) {
            unmatched(sink);
            return Step::Lost;
        }
        loop {
            let Some(front) = self.pool.front_mut(&connection.queue) else { return Step::Lost };
            if !front.is_hit && front.key() == key {
                front.is_hit = true;
                front.response_bytes += response_bytes;
                front.answered = Some(bytes.timestamp);
                connection.in_answer = true;
                return Step::Skip(length + 2);
            }
            front.answered.get_or_insert(bytes.timestamp);
            let outcome = if front.is_hit { Outcome::Hit } else { Outcome::Miss };
            self.finish_front(connection, outcome, sink);
        }
    }

    /// Whether the line of keys at the front, from where its answer stands, asks for the key, and could have been received when this was sent.
    fn was_asked(&self, connection: &Connection, key: &[u8], bytes: &StreamBytes<'_>) -> bool {
        for request in self.pool.iter(&connection.queue) {
            if request.answer != Answer::Values || !acknowledges(bytes, request) {
                return false;
            }
            if !request.is_hit && request.key() == key {
                return true;
            }
            if request.is_last_of_line {
                return false;
            }
        }
        false
    }

    /// A line that is neither VALUE nor a meta response.
    fn other_line<E: FnMut(&Observation<'_>)>(
        &mut self,
        connection: &mut Connection,
        bytes: &StreamBytes<'_>,
        reply: &Reply<'_>,
        line: Line<'_>,
        sink: &mut Sink<'_, E>,
    ) -> Step {
        // An answer to a request of which nothing is known.
        if connection.queue.is_empty() {
            unmatched(sink);
            return if connection.framing[0] == Framing::Framed && !matches!(reply, Reply::Error(_)) {
                Step::Lost
            } else {
                Step::Next
            };
        }
        let Some(place) = self.place_of(connection, reply, bytes) else {
            unmatched(sink);
            return Step::Lost;
        };
        for _ in 0..place {
            // Quiet ones were silent; of the others the answer is missing.
            let outcome = match self.pool.front(&connection.queue) {
                Some(front) if front.is_quiet => front.silent_outcome(),
                _ => Outcome::Unseen,
            };
            self.finish_front(connection, outcome, sink);
        }
        let Some(front) = self.pool.front_mut(&connection.queue) else { return Step::Lost };
        front.answered.get_or_insert(bytes.timestamp);
        if matches!(reply, Reply::Error(Fault::Unauthenticated)) {
            connection.awaits_login = true;
        }
        match front.answer {
            Answer::Values => self.end_of_values(connection, reply, line, bytes.timestamp, sink),
            Answer::Lines if matches!(reply, Reply::Item) => {
                front.response_bytes += line.wire_bytes as u64;
                connection.in_answer = true;
            }
            Answer::Watch if matches!(reply, Reply::Ok) => {
                front.response_bytes += line.wire_bytes as u64;
                connection.is_watch = true;
                self.finish_front(connection, Outcome::Ok, sink);
            }
            _ => {
                front.response_bytes += line.wire_bytes as u64;
                if let Reply::Version(version) = reply {
                    connection.is_new_server = is_new(version);
                }
                let outcome = outcome_of(front, reply).unwrap_or(Outcome::Error);
                connection.in_answer = false;
                self.finish_front(connection, outcome, sink);
            }
        }
        Step::Next
    }

    /// END, or an error in its place: the whole line of keys is answered.
    fn end_of_values<E: FnMut(&Observation<'_>)>(
        &mut self,
        connection: &mut Connection,
        reply: &Reply<'_>,
        line: Line<'_>,
        now: Timestamp,
        sink: &mut Sink<'_, E>,
    ) {
        connection.in_answer = false;
        while let Some(front) = self.pool.front_mut(&connection.queue) {
            let is_last = front.is_last_of_line;
            if is_last {
                front.response_bytes += line.wire_bytes as u64;
            }
            front.answered.get_or_insert(now);
            let outcome = match reply {
                Reply::End if front.is_hit => Outcome::Hit,
                Reply::End => Outcome::Miss,
                _ => Outcome::Error,
            };
            if outcome == Outcome::Error {
                front.is_hit = false;
            }
            self.finish_front(connection, outcome, sink);
            if is_last {
                break;
            }
        }
    }

    /// How many requests stand before the one that the line answers.
    fn place_of(&self, connection: &Connection, reply: &Reply<'_>, bytes: &StreamBytes<'_>) -> Option<usize> {
        let is_refusal = matches!(reply, Reply::Error(_));
        let candidates = self.pool.iter(&connection.queue).take(self.limits.look_ahead_max);
        let mut strays = 0;
        for (place, request) in candidates.enumerate() {
            // A store can be refused before its body has been received.
            if !(acknowledges(bytes, request) || is_refusal && request.value_bytes > 0) {
                return None;
            }
            let fits = match request.answer {
                Answer::Values => match reply {
                    Reply::End => true,
                    Reply::Error(Fault::Client) => is_overlong_line(self, connection, place),
                    Reply::Error(_) => true,
                    _ => false,
                },
                Answer::Lines => matches!(reply, Reply::Item) || outcome_of(request, reply).is_some(),
                _ => {
                    outcome_of(request, reply).is_some()
                        && (!request.is_quiet || can_answer_quiet(request, reply))
                }
            };
            if fits && request.answer != Answer::Values {
                return Some(place);
            }
            if fits {
                // The whole line answers, from its first key that is still there.
                return Some(place);
            }
            strays += usize::from(!request.is_quiet);
            if strays > 0 && connection.in_answer {
                return None;
            }
        }
        None
    }
}

/// Whether the sender of these bytes had received the request when it sent them: an answer cannot acknowledge less.
pub(super) fn acknowledges(bytes: &StreamBytes<'_>, request: &Request) -> bool {
    bytes.acknowledged.wrapping_sub(request.end).cast_signed() >= 0
}

/// Whether the line of keys that begins at a place of the queue holds one that is too long.
fn is_overlong_line(transactions: &Transactions, connection: &Connection, place: usize) -> bool {
    let line = transactions.pool.iter(&connection.queue).skip(place);
    line.into_iter().find(|request| request.is_last_of_line).is_some_and(|last| last.is_overlong)
}

/// Bytes at the end of the data that have to come again with what follows: an unfinished key.
fn connection_tail(connection: &Connection, rest: &[u8]) -> usize {
    match connection.keys {
        Some(keys) if !keys.in_overlong => {
            let start = rest.iter().rposition(|&byte| byte == b' ').map_or(0, |space| space + 1);
            rest.len() - start
        }
        _ => 0,
    }
}

/// Command and length of the start of a line of keys: verb, and exptime where there is one, with the spaces behind.
fn keys_line_start(rest: &[u8]) -> Option<(Command, usize)> {
    let verb_bytes = memchr::memchr(b' ', &rest[..rest.len().min(8)])?;
    let (command, shape) = verb(&rest[..verb_bytes])?;
    let mut at = verb_bytes + spaces(&rest[verb_bytes..]);
    match shape {
        Shape::Keys => {}
        Shape::ExptimeKeys => {
            let length = memchr::memchr2(b' ', b'\n', &rest[at..])?;
            if rest[at + length] == b'\n' || !is_number(&rest[at..at + length]) {
                return None;
            }
            at += length;
            at += spaces(&rest[at..]);
        }
        _ => return None,
    }
    // Not a line without a key.
    let first = rest.get(at)?;
    (*first != b'\r' && *first != b'\n').then_some((command, at))
}

fn spaces(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|&&byte| byte == b' ').count()
}

/// memcached's token limit for lines that are not lists of keys, with room to spare.
const WORDS_MAX: usize = 24;

/// The tokens of a line behind its verb; of more than memcached reads only the count is kept.
pub(super) struct Words<'a> {
    words: [&'a [u8]; WORDS_MAX],
    count: usize,
    last: &'a [u8],
}

impl<'a> Words<'a> {
    fn of(tokens: Tokens<'a>) -> Words<'a> {
        let mut words = Words { words: [b""; WORDS_MAX], count: 0, last: b"" };
        for token in tokens {
            if let Some(place) = words.words.get_mut(words.count) {
                *place = token;
            }
            words.count += 1;
            words.last = token;
        }
        words
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn get(&self, index: usize) -> Option<&'a [u8]> {
        (index < self.count).then(|| self.words.get(index).copied()).flatten()
    }

    fn last(&self) -> Option<&'a [u8]> {
        (self.count > 0).then_some(self.last)
    }

    pub(super) fn from(&self, index: usize) -> impl Iterator<Item = &'a [u8]> + use<'_, 'a> {
        self.words[..self.count.min(WORDS_MAX)].iter().skip(index).copied()
    }
}

/// What an error line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// `ERROR`: the command is not known, or not so.
    Command,
    Client,
    /// `CLIENT_ERROR bad data chunk`.
    BadChunk,
    NotNumeric,
    Unauthenticated,
    Server,
    /// `SERVER_ERROR object too large for cache`.
    TooLarge,
    /// `SERVER_ERROR out of memory storing object`.
    NoMemory,
}

/// A response line by its first token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply<'a> {
    Value {
        key: &'a [u8],
        length: u64,
    },
    End,
    Stored,
    NotStored,
    Exists,
    NotFound,
    Deleted,
    Touched,
    Number,
    Ok,
    Version(&'a [u8]),
    Reset,
    /// STAT, ITEM or PREFIX.
    Item,
    Error(Fault),
    Meta {
        code: [u8; 2],
    },
    /// Answers of admin commands: BUSY, BADCLASS, NOSPARE, SAME, NOTSTARTED, MEMLIMIT_….
    Notice,
    Other,
}

impl<'a> Reply<'a> {
    pub(super) fn read(content: &'a [u8]) -> Reply<'a> {
        let mut tokens = Tokens::of(content);
        let first = tokens.next().unwrap_or(b"");
        match first {
            b"VALUE" => {
                let key = tokens.next().filter(|key| key.len() <= KEY_BYTES_MAX);
                let flags = tokens.next().and_then(number);
                let length = tokens.next().and_then(number).filter(|&length| length <= VALUE_BYTES_MAX);
                match (key, flags, length) {
                    (Some(key), Some(_), Some(length)) => Reply::Value { key, length },
                    _ => Reply::Other,
                }
            }
            b"END" => Reply::End,
            b"STORED" => Reply::Stored,
            b"NOT_STORED" => Reply::NotStored,
            b"EXISTS" => Reply::Exists,
            b"NOT_FOUND" => Reply::NotFound,
            b"DELETED" => Reply::Deleted,
            b"TOUCHED" => Reply::Touched,
            b"OK" => Reply::Ok,
            b"VERSION" => Reply::Version(tokens.next().unwrap_or(b"")),
            b"RESET" => Reply::Reset,
            b"STAT" | b"ITEM" | b"PREFIX" => Reply::Item,
            b"ERROR" => Reply::Error(Fault::Command),
            b"CLIENT_ERROR" => Reply::Error(client_fault(content)),
            b"SERVER_ERROR" => Reply::Error(server_fault(content)),
            b"BUSY" | b"BADCLASS" | b"NOSPARE" | b"SAME" | b"NOTSTARTED" | b"UNSAFE" => Reply::Notice,
            [a, b] if matches!(first, b"HD" | b"VA" | b"EN" | b"NF" | b"NS" | b"EX" | b"MN" | b"ME") => {
                Reply::Meta { code: [*a, *b] }
            }
            _ if number(first).is_some() => Reply::Number,
            _ if first.starts_with(b"MEMLIMIT_") => Reply::Notice,
            _ => Reply::Other,
        }
    }
}

fn client_fault(content: &[u8]) -> Fault {
    if content.ends_with(b"bad data chunk") {
        Fault::BadChunk
    } else if content.ends_with(b"non-numeric value") {
        Fault::NotNumeric
    } else if content.ends_with(b"unauthenticated") {
        Fault::Unauthenticated
    } else {
        Fault::Client
    }
}

fn server_fault(content: &[u8]) -> Fault {
    if content.ends_with(b"object too large for cache") {
        Fault::TooLarge
    } else if content.ends_with(b"out of memory storing object") {
        Fault::NoMemory
    } else {
        Fault::Server
    }
}

/// The outcome that a line means for a request with an answer of one line; none when it cannot be its answer.
pub(super) fn outcome_of(request: &Request, reply: &Reply<'_>) -> Option<Outcome> {
    use crate::model::CommandClass::{Arithmetic, Deletion, Keyless, Storage, Touch};
    if let Reply::Error(fault) = reply {
        return Some(if *fault == Fault::TooLarge { Outcome::TooLarge } else { Outcome::Error });
    }
    let outcome = match (request.command.class(), reply) {
        (Storage, Reply::Stored) => Outcome::Stored,
        (Storage, Reply::NotStored) => Outcome::NotStored,
        (Storage, Reply::Exists) => Outcome::Exists,
        (Storage, Reply::NotFound) => Outcome::NotFound,
        (Deletion, Reply::Deleted) | (Touch, Reply::Touched) | (Arithmetic, Reply::Number) => Outcome::Hit,
        (Deletion | Touch | Arithmetic, Reply::NotFound) => Outcome::Miss,
        (Keyless, _) => return keyless_outcome(request, reply),
        _ => return None,
    };
    Some(outcome)
}

fn keyless_outcome(request: &Request, reply: &Reply<'_>) -> Option<Outcome> {
    match (request.command, reply) {
        (Command::Version, Reply::Version(_)) => Some(Outcome::Ok),
        (Command::Version, _) => None,
        (Command::Sasl, Reply::Stored) => Some(Outcome::Ok),
        (Command::Stats, Reply::End | Reply::Reset | Reply::Ok) => Some(Outcome::Ok),
        (Command::Stats | Command::MetaNoop | Command::Sasl, _) => None,
        // Only errors, which were dealt with, and the END of a `gat` without a key.
        (Command::Unknown, Reply::End) => Some(Outcome::Ok),
        (Command::Unknown, _) => None,
        (_, Reply::Notice) => Some(Outcome::Error),
        (_, Reply::Ok) => Some(Outcome::Ok),
        _ => None,
    }
}

/// An error line while the front is quiet belongs to it only if that request can produce it.
fn can_answer_quiet(request: &Request, reply: &Reply<'_>) -> bool {
    match reply {
        Reply::Error(Fault::BadChunk | Fault::TooLarge | Fault::NoMemory) => request.value_bytes > 0,
        Reply::Error(Fault::NotNumeric) => {
            matches!(request.command, Command::MetaArithmetic | Command::MetaDecrement)
        }
        Reply::Error(_) => false,
        _ => true,
    }
}

fn is_new(version: &[u8]) -> bool {
    let mut parts = version.split(|&byte| byte == b'.').map(|part| {
        let digits = part.iter().take_while(|byte| byte.is_ascii_digit()).count();
        number(&part[..digits]).unwrap_or(0)
    });
    let version = [parts.next().unwrap_or(0), parts.next().unwrap_or(0), parts.next().unwrap_or(0)];
    version >= [1, 6, 40]
}

/// Whether bytes begin with a text request beyond doubt: a known verb, its tokens in their shapes, in a whole line or, for a long
/// list of keys, as far as can be seen.
pub(super) fn is_request(bytes: &[u8]) -> bool {
    let whole = line(bytes);
    let content = whole.map_or(bytes, |line| line.content);
    let mut tokens = Tokens::of(content);
    let Some(first) = tokens.next().filter(|_| content.first() != Some(&b' ')) else { return false };
    let Some(&(_, _, shape)) = VERBS.iter().find(|(name, _, _)| *name == first) else { return false };
    let is_key = |key: &[u8]| {
        !key.is_empty() && key.len() <= KEY_BYTES_MAX && key.iter().all(|&byte| byte > b' ' && byte != 0x7f)
    };
    let words = Words::of(tokens);
    if whole.is_none() && !matches!(shape, Shape::Keys | Shape::ExptimeKeys) {
        return false;
    }
    let starts_with_key = words.get(0).is_some_and(is_key);
    match shape {
        Shape::Keys => words.from(0).take(WORDS_MAX).all(is_key) && words.len() > 0,
        Shape::ExptimeKeys => {
            words.get(0).is_some_and(is_number) && words.from(1).all(is_key) && words.len() > 1
        }
        Shape::Store | Shape::StoreCas => {
            let fields = if shape == Shape::Store { 4 } else { 5 };
            let numbers = (1..fields).all(|index| words.get(index).is_some_and(is_number));
            starts_with_key && numbers && (words.len() == fields || words.len() == fields + 1)
        }
        Shape::Keyed => starts_with_key && words.len() <= 3,
        Shape::Meta => starts_with_key && words.from(1).all(meta::is_flag),
        Shape::MetaStore => {
            starts_with_key && words.get(1).is_some_and(meta::is_length) && words.from(2).all(meta::is_flag)
        }
        Shape::MetaNoop => words.len() == 0,
        Shape::Admin | Shape::Stats | Shape::LruCrawler | Shape::Watch | Shape::Quit => {
            words.len() <= 4 && content.iter().all(|&byte| (b' '..0x7f).contains(&byte))
        }
    }
}

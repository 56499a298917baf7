//! The client's stream: requests as they come, into the queue.
//!
//! Lines are read as the server reads them, tolerantly. A key list is used key by key, so that a line of any length needs no more
//! carry than one key. With framing lost, only a segment that begins with a strictly valid request is believed.

use super::binary::{self, Parsed};
use super::command::{Head, Syntax, find_verb};
use super::queue::{KEY_MAX, NONE, Reply, Request, Traits};
use super::token::{Tokens, before_nul, is_plausible_key, split_line};
use super::transaction::{KeyList, Protocol, Session};
use super::{Observation, ObservationNotes, proxy, text};
use crate::anomaly::Anomaly;
use crate::model::{Command, Outcome, Timestamp, Transport};
use crate::reassembly::{Demand, StreamBytes};
use memchr::{memchr, memchr2, memchr3};

/// Content types of TLS records: change of cipher, alert, handshake, application data (RFC 8446, 5.1).
const TLS_CONTENT: std::ops::RangeInclusive<u8> = 0x14..=0x17;
/// The handshake that begins a connection.
const TLS_HANDSHAKE: u8 = 0x16;
/// First byte of every TLS version.
const TLS_MAJOR: u8 = 3;

/// What one step over the stream did.
enum Step {
    /// Used so many bytes.
    Used(usize),
    /// Used so many bytes, and then comes a body.
    Body(usize, u64),
    /// Needs more bytes.
    Incomplete,
    /// There is nothing to read here.
    Lost,
}

/// Where a step stands.
#[derive(Clone, Copy)]
struct Place {
    /// Stream position of the first byte.
    position: u32,
    timestamp: Timestamp,
}

impl<E: FnMut(&Observation<'_>)> Session<'_, E> {
    /// Takes bytes of the client.
    pub(super) fn handle_requests(&mut self, bytes: &StreamBytes<'_>, scratch: &mut [u8; 256]) -> Demand {
        self.connection.client_seen = true;
        if self.tuple.transport == Transport::Udp
            && bytes.segment_start
            && self.connection.keys.command.is_none()
        {
            // Each datagram chooses its protocol, and to quit means to leave the rest of its datagram unread.
            self.connection.protocol = Protocol::Undecided;
            self.connection.has_quit = false;
        }
        if self.connection.protocol == Protocol::Undecided {
            if let Some(demand) = self.pass_proxy_header(bytes, scratch) {
                return demand;
            }
            if !self.decide_protocol(bytes) {
                return Demand::used(0);
            }
        }
        match self.connection.protocol {
            Protocol::Tls | Protocol::Foreign => return Demand::lost(0),
            Protocol::Watch => return Demand::used(bytes.bytes.len()),
            _ if self.connection.has_quit => return Demand::used(bytes.bytes.len()),
            _ => {}
        }
        if self.connection.client_lost {
            return self.take_anchor(bytes, scratch);
        }
        let at_start = bytes.segment_start && self.connection.keys.command.is_none();
        if at_start && bytes.idle {
            if self.connection.server_lost && !self.connection.one_sided {
                return self.rejoin_server(bytes, scratch);
            }
            if self.connection.provisional {
                self.confirm_if_all_is_answered();
            }
        }
        self.read_requests(bytes, scratch)
    }

    /// Both directions are taken up at a segment that begins with a request of a client that waits for nothing.
    fn take_anchor(&mut self, bytes: &StreamBytes<'_>, scratch: &mut [u8; 256]) -> Demand {
        let anchor = bytes.segment_start
            && bytes.idle
            && is_strict_request(bytes.bytes, self.connection.protocol, scratch);
        if !anchor {
            return Demand::lost(0);
        }
        self.abandon();
        self.connection.client_lost = false;
        self.connection.keys = KeyList::default();
        self.connection.unproven = !self.connection.server_seen;
        if self.connection.protocol == Protocol::Undecided {
            self.connection.protocol = Protocol::Text;
        }
        if self.connection.one_sided {
            return self.read_requests(bytes, scratch);
        }
        self.rejoin_server(bytes, scratch)
    }

    /// The client is framed and waits for nothing: the server's stream goes on at what this segment acknowledges.
    fn rejoin_server(&mut self, bytes: &StreamBytes<'_>, scratch: &mut [u8; 256]) -> Demand {
        self.abandon();
        self.connection.server_lost = false;
        self.connection.provisional = !bytes.quiescent || self.connection.unproven;
        let demand = self.read_requests(bytes, scratch);
        if demand.used == 0 || !demand.framed {
            self.connection.server_lost = true;
            self.connection.provisional = false;
            return demand;
        }
        Demand { anchored: !self.connection.server_lost, ..demand }
    }

    /// The client waits for nothing more: the pairing was right if there is nothing that it should wait for.
    fn confirm_if_all_is_answered(&mut self) {
        if self.connection.unproven && !self.connection.server_seen {
            return;
        }
        let front = |connection: &super::Connection| connection.line.front;
        while front(self.connection) != NONE
            && self.queue.request(front(self.connection)).reply == Reply::Nothing
        {
            self.pass_front();
        }
        if front(self.connection) == NONE {
            self.confirm();
        }
    }

    fn read_requests(&mut self, bytes: &StreamBytes<'_>, scratch: &mut [u8; 256]) -> Demand {
        self.connection.keys.spans_packets = true;
        let whole = bytes.bytes;
        let mut used = 0;
        while used < whole.len() {
            if self.connection.has_quit {
                // `process_quit_command`: earlier answers are flushed, then the server closes and reads no further.
                return Demand::used(whole.len());
            }
            let rest = &whole[used..];
            let place =
                Place { position: bytes.position.wrapping_add(used as u32), timestamp: bytes.timestamp };
            let step = match self.connection.protocol {
                Protocol::Binary => self.step_binary(rest, place),
                _ if self.connection.keys.command.is_some() => self.step_keys(rest, place),
                _ => self.step_text(rest, place, scratch),
            };
            match step {
                Step::Used(bytes) => used += bytes,
                Step::Body(head, body) if body <= (rest.len() - head) as u64 => used += head + body as usize,
                Step::Body(head, body) => return Demand::skip(used + head, body),
                Step::Incomplete => break,
                Step::Lost => return self.lose_client(whole.len() - used, whole.len()),
            }
        }
        Demand::used(used)
    }

    /// What comes is no request. The answers to earlier ones can still be paired.
    fn lose_client(&mut self, unread: usize, whole: usize) -> Demand {
        if !matches!(self.connection.protocol, Protocol::Tls | Protocol::Foreign) {
            self.anomalies.count(Anomaly::Resynchronised);
        }
        self.connection.client_lost = true;
        self.cut_open_request();
        Demand::lost(whole - unread)
    }

    /// Passes over a header of the PROXY protocol before the connection's first request.
    fn pass_proxy_header(&mut self, bytes: &StreamBytes<'_>, scratch: &mut [u8; 256]) -> Option<Demand> {
        if self.connection.client_lost || self.tuple.transport == Transport::Udp {
            return None;
        }
        match proxy::read(bytes.bytes) {
            proxy::Front::Header { head, addresses, lines } => {
                self.anomalies.count(Anomaly::ProxyHeader);
                self.connection.stray_errors = lines;
                let rest = bytes.bytes.get(head + addresses as usize..).unwrap_or_default();
                if rest.is_empty() {
                    return Some(Demand::skip(head, addresses));
                }
                let passed = bytes.bytes.len() - rest.len();
                let position = bytes.position.wrapping_add(passed as u32);
                let rest = StreamBytes { bytes: rest, position, segment_start: false, ..*bytes };
                // Whatever comes, it is no second header: recursion ends here.
                self.decide_protocol(&rest);
                let demand = self.handle_requests(&rest, scratch);
                Some(Demand { used: passed + demand.used, ..demand })
            }
            proxy::Front::Incomplete => Some(Demand::used(0)),
            proxy::Front::Other => None,
        }
    }

    /// Decides by the first byte, as the server does. `false` if one byte is not enough.
    fn decide_protocol(&mut self, bytes: &StreamBytes<'_>) -> bool {
        let lost = self.connection.client_lost;
        self.connection.protocol = match *bytes.bytes {
            [binary::REQUEST_MAGIC, ..] => Protocol::Binary,
            [TLS_HANDSHAKE] if !lost => return false,
            [TLS_HANDSHAKE, TLS_MAJOR, ..] if !lost => self.foreign(Protocol::Tls),
            [content, TLS_MAJOR, 0..=4, ..] if bytes.segment_start && TLS_CONTENT.contains(&content) => {
                self.foreign(Protocol::Tls)
            }
            // In mid-stream anything may be the middle of a value.
            _ if lost => Protocol::Undecided,
            _ => Protocol::Text,
        };
        true
    }

    fn foreign(&mut self, protocol: Protocol) -> Protocol {
        self.anomalies.count(match protocol {
            Protocol::Tls => Anomaly::TlsFlow,
            _ => Anomaly::UnknownProtocolFlow,
        });
        protocol
    }

    fn step_binary(&mut self, rest: &[u8], place: Place) -> Step {
        match binary::parse_request(rest) {
            Parsed::Message(head, used) => {
                self.queue_request(&head, used, rest.len(), place);
                if head.body > 0 { Step::Body(used, head.body) } else { Step::Used(used) }
            }
            Parsed::Incomplete => Step::Incomplete,
            Parsed::Foreign => Step::Lost,
        }
    }

    fn step_text(&mut self, rest: &[u8], place: Place, scratch: &mut [u8; 256]) -> Step {
        if let Some(used) = self.take_plain_get(rest, place) {
            return Step::Used(used);
        }
        if let Some(step) = self.begin_keys(rest) {
            return step;
        }
        let Some((line, used)) = split_line(rest) else {
            if rest.len() <= self.limits.head_bytes_max {
                return Step::Incomplete;
            }
            self.anomalies.count(Anomaly::LineTooLong);
            return Step::Lost;
        };
        let line = if self.connection.is_new_server { line } else { before_nul(line) };
        let mut tokens = Tokens::new(line);
        let head = match tokens.next().map(find_verb) {
            // Servers of 1.6.40 and newer read no command behind a space.
            Some(_) if self.connection.is_new_server && line.first() == Some(&b' ') => {
                Head::invalid(Command::Unknown, &[])
            }
            Some(Some(verb)) => {
                self.connection.unknown_lines = 0;
                let head = text::parse_arguments(verb, tokens, line, scratch);
                let quiet_creation = head.reply == Reply::MetaArithmetic
                    && head.traits.has(Traits::QUIET.with(Traits::VIVIFY))
                    && self.connection.is_new_server;
                Head { traits: head.traits.with_if(quiet_creation, Traits::CREATES_SILENTLY), ..head }
            }
            unknown => {
                if self.is_foreign_line(line) {
                    self.connection.protocol = self.foreign(Protocol::Foreign);
                    self.abandon();
                    return Step::Lost;
                }
                let head = Head::keyless(Command::Unknown, Reply::Line);
                if unknown.is_none() { Head::invalid(Command::Unknown, &[]) } else { head }
            }
        };
        self.queue_request(&head, used, rest.len(), place);
        if head.body > 0 { Step::Body(used, head.body) } else { Step::Used(used) }
    }

    /// Whether an unknown line shows that this is no memcached connection.
    fn is_foreign_line(&mut self, line: &[u8]) -> bool {
        self.connection.unknown_lines = self.connection.unknown_lines.saturating_add(1);
        let last = line.rsplit(|&byte| byte == b' ').next().unwrap_or_default();
        // `process_command_ascii` closes such connections without a word.
        last.starts_with(b"HTTP/") || self.connection.unknown_lines >= self.limits.unknown_lines_max
    }

    /// A `get` of one key whose line has come whole, which is what most requests are: the same that `begin_keys`, `step_keys` and
    /// `end_keys` make of it, without the steps between. Takes nothing that is not plainly that.
    #[inline]
    fn take_plain_get(&mut self, rest: &[u8], place: Place) -> Option<usize> {
        let (key, used) = text::read_plain_get(rest)?;
        self.connection.unknown_lines = 0;
        let request = Request {
            timestamp: place.timestamp,
            end: place.position.wrapping_add(used as u32),
            request_bytes: used as u64,
            command: Command::Get,
            reply: Reply::Values,
            traits: Traits::LAST,
            ..Request::EMPTY
        };
        if self.push(request, key).is_some() {
            self.give_up_waiting(place.timestamp);
        }
        Some(used)
    }

    /// The verb of a key list, used as soon as the space after it is there.
    fn begin_keys(&mut self, rest: &[u8]) -> Option<Step> {
        let spaces = rest.iter().take_while(|&&byte| byte == b' ').count();
        if spaces > 0 && self.connection.is_new_server {
            return None;
        }
        let rest = &rest[spaces..];
        let (command, verb_bytes, expiry_next) = if rest.starts_with(b"get ") {
            (Command::Get, 4, false)
        } else {
            let end = rest.iter().take(6).position(|&byte| byte == b' ')?;
            let verb = find_verb(&rest[..end])?;
            match verb.syntax {
                Syntax::Keys => (verb.command, end + 1, false),
                Syntax::KeysAfterExpiry => (verb.command, end + 1, true),
                _ => return None,
            }
        };
        self.connection.unknown_lines = 0;
        self.connection.keys = KeyList {
            command: Some(command),
            pending_bytes: (spaces + verb_bytes) as u32,
            expiry_next,
            ..KeyList::default()
        };
        Some(Step::Used(spaces + verb_bytes))
    }

    /// One token of a key list.
    fn step_keys(&mut self, rest: &[u8], place: Place) -> Step {
        if self.connection.keys.ended {
            let Some(end) = memchr(b'\n', rest) else {
                self.charge(rest.len());
                return Step::Used(rest.len());
            };
            self.charge(end + 1);
            self.end_keys(Place { position: place.position.wrapping_add(end as u32 + 1), ..place });
            return Step::Used(end + 1);
        }
        if rest[0] == b' ' {
            self.connection.keys.overlong = false;
            let spaces = rest.iter().take_while(|&&byte| byte == b' ').count();
            self.charge(spaces);
            return Step::Used(spaces);
        }
        let end = match self.connection.is_new_server {
            true => memchr2(b' ', b'\n', rest),
            false => memchr3(b' ', b'\n', 0, rest),
        };
        let Some(end) = end else {
            // A carriage return may stand behind the longest key.
            if rest.len() <= KEY_MAX + 1 && !self.connection.keys.overlong {
                return Step::Incomplete;
            }
            self.connection.keys.overlong = true;
            self.charge(rest.len());
            return Step::Used(rest.len());
        };
        let ends_line = rest[end] == b'\n';
        let ends_keys = rest[end] == 0;
        let used = end + usize::from(ends_line || ends_keys);
        let token = &rest[..end];
        let token = if ends_line { token.strip_suffix(b"\r").unwrap_or(token) } else { token };
        let keys = &mut self.connection.keys;
        if keys.overlong || token.is_empty() || token.len() > KEY_MAX {
            self.charge(used);
        } else if keys.expiry_next {
            keys.expiry_next = false;
            self.charge(used);
        } else {
            self.queue_key(token, used, place);
        }
        self.connection.keys.overlong = false;
        self.connection.keys.ended = ends_keys;
        if ends_line {
            self.end_keys(Place { position: place.position.wrapping_add(used as u32), ..place });
        }
        Step::Used(used)
    }

    fn charge(&mut self, bytes: usize) {
        let pending = &mut self.connection.keys.pending_bytes;
        *pending = pending.saturating_add(bytes as u32);
    }

    fn queue_key(&mut self, key: &[u8], used: usize, place: Place) {
        let keys = &mut self.connection.keys;
        keys.keys = keys.keys.saturating_add(1);
        let request_bytes = u64::from(std::mem::take(&mut keys.pending_bytes)) + used as u64;
        let first = self.connection.open == NONE;
        let request = Request {
            timestamp: place.timestamp,
            request_bytes,
            command: keys.command.unwrap_or(Command::Get),
            reply: Reply::Values,
            traits: Traits::default().with_if(first, Traits::OPEN),
            ..Request::EMPTY
        };
        if let Some(slot) = self.push(request, key)
            && first
        {
            self.connection.open = slot;
        }
    }

    /// The line is complete, and so is the request.
    fn end_keys(&mut self, end: Place) {
        let keys = std::mem::take(&mut self.connection.keys);
        let open = std::mem::replace(&mut self.connection.open, NONE);
        if open == NONE {
            // Without a key it is an error; keys that found no room were reported.
            if keys.keys == 0 {
                let command = keys.command.unwrap_or(Command::Unknown);
                let mut head = Head::invalid(Command::Unknown, &[]);
                // Old servers answer `gat EXP` without a key with `END`.
                head.traits =
                    head.traits.with_if(matches!(command, Command::Gat | Command::Gats), Traits::EMPTY_LIST);
                let request = Request {
                    request_bytes: u64::from(keys.pending_bytes),
                    ..new_request(&head, end.timestamp, end.position)
                };
                self.push(request, &[]);
                self.give_up_waiting(end.timestamp);
            }
            return;
        }
        let last = self.queue.request_mut(self.connection.line.tail);
        last.traits = last.traits.with(Traits::LAST);
        last.request_bytes += u64::from(keys.pending_bytes);
        let first = self.queue.request_mut(open);
        first.traits = first.traits.without(Traits::OPEN);
        first.end = end.position;
        if keys.spans_packets {
            let mut slot = open;
            while slot != NONE {
                self.queue.request_mut(slot).timestamp = end.timestamp;
                slot = self.queue.next(slot);
            }
        }
        self.give_up_waiting(end.timestamp);
    }

    /// Takes a request of one slot. `available` is how many bytes of it and what follows were in hand.
    fn queue_request(&mut self, head: &Head<'_>, used: usize, available: usize, place: Place) {
        if head.command == Command::Quit && !self.connection.unproven && !self.connection.provisional {
            self.connection.has_quit = true;
        }
        let whole = used as u64 + head.body;
        let invalid = head.traits.has(Traits::INVALID);
        // A refusal of the line does not wait for its body.
        let length = if invalid { used as u32 } else { whole as u32 };
        let mut request = new_request(head, place.timestamp, place.position.wrapping_add(length));
        request.request_bytes = whole;
        request.traits = request.traits.with_if(whole > available as u64, Traits::UNTIMED);
        let silent = head.silent || Self::is_silent(head.reply, head.command);
        if silent && invalid && head.traits.has(Traits::STRAY_BODY) && !self.connection.is_new_server {
            // Servers before 1.6.40 read its body as one more command, which is answered.
            request.notes.quiet = true;
            request.traits = request.traits.with(Traits::QUIET);
            self.push(request, head.key);
            self.give_up_waiting(place.timestamp);
            return;
        }
        if silent {
            request.notes.quiet = true;
            let too_large = head.traits.has(Traits::STORES)
                && text::is_too_large(
                    head.body,
                    head.key.len(),
                    head.has_client_flags,
                    self.limits.item_size_max,
                );
            let outcome = if too_large { Outcome::TooLarge } else { Outcome::Unseen };
            if self.connection.unproven && !self.connection.one_sided {
                // It waits with the others until an answer proves them.
                request.outcome = Some(outcome);
                request.reply = Reply::Nothing;
                request.traits = Traits::LAST.with(Traits::QUIET);
                self.push(request, head.key);
                self.give_up_waiting(place.timestamp);
                return;
            }
            self.report(&request, head.key, outcome);
            return;
        }
        self.push(request, head.key);
        self.give_up_waiting(place.timestamp);
    }
}

fn new_request(head: &Head<'_>, timestamp: Timestamp, end: u32) -> Request {
    Request {
        timestamp,
        extra: head.extra,
        end,
        opaque: head.opaque,
        traits: head.traits.with(Traits::LAST),
        command: head.command,
        reply: head.reply,
        opcode: head.opcode,
        notes: ObservationNotes {
            quiet: head.traits.has(Traits::QUIET) || head.reply == Reply::Nothing,
            ..ObservationNotes::default()
        },
        ..Request::EMPTY
    }
}

/// Whether `bytes` begin with a request that nobody could take for something else.
fn is_strict_request(bytes: &[u8], protocol: Protocol, scratch: &mut [u8; 256]) -> bool {
    let binary = match protocol {
        Protocol::Undecided => bytes[0] == binary::REQUEST_MAGIC,
        protocol => protocol == Protocol::Binary,
    };
    if binary {
        return binary::is_strict_request(bytes);
    }
    if let Some((key, _)) = text::read_plain_get(bytes) {
        return is_plausible_key(key);
    }
    let Some((line, used)) = split_line(bytes) else { return false };
    if !bytes[..used].ends_with(b"\r\n") || line.first().is_none_or(|byte| !byte.is_ascii_lowercase()) {
        return false;
    }
    let mut tokens = Tokens::new(line);
    let Some(verb) = tokens.next().and_then(find_verb) else { return false };
    // A loop: as `all` the compiler makes a call of it, and lines that look like requests cost 8 % more (`tests/cost.sh`, lookalikes).
    for token in tokens.clone() {
        if !is_plausible_key(token) {
            return false;
        }
    }
    match verb.syntax {
        Syntax::Keys => tokens.next().is_some(),
        Syntax::KeysAfterExpiry => tokens.nth(1).is_some(),
        Syntax::Keyless => tokens.count() <= 5,
        _ => {
            let head = text::parse_arguments(verb, tokens, line, scratch);
            let sound = !head.traits.has(Traits::INVALID) && !head.traits.has(Traits::STRAY_BODY);
            sound && is_body_plausible(&bytes[used..], head.body)
        }
    }
}

/// Whether the body, as far as it can be seen to its end, ends as bodies do.
pub(super) fn is_body_plausible(rest: &[u8], body: u64) -> bool {
    match usize::try_from(body).ok().and_then(|body| rest.get(..body)) {
        Some(body) => body.is_empty() || body.ends_with(b"\r\n"),
        None => true,
    }
}

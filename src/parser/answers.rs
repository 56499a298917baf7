//! The server's stream: answers as they come, each to the request that it answers.
//!
//! Answers keep the order of their requests, in both protocols. An answer that the front request cannot get is looked for
//! further back, within bounds; one that nobody asked for means that the pairing is wrong, and then nothing is guessed.

use super::Observation;
use super::binary::{self, Parsed, Response};
use super::queue::{NONE, Reply, Traits};
use super::requests::is_body_plausible;
use super::text::{self, Answer, Refusal, Verdict};
use super::token::{is_plausible_key, split_line};
use super::transaction::{Protocol, Session};
use crate::anomaly::Anomaly;
use crate::model::{Command, Outcome};
use crate::reassembly::{Demand, StreamBytes};

/// How many keys before the expected one are searched for an answer that came out of order (a proxy may reorder).
const OUT_OF_ORDER_KEYS_MAX: usize = 1024;

/// The lines that most answers end with, or are; which requests they answer, and how.
const PLAIN_ENDS: [(&[u8], Reply, Outcome); 2] =
    [(b"END\r\n", Reply::Values, Outcome::Miss), (b"STORED\r\n", Reply::Storage, Outcome::Stored)];

/// A message of the server whose end is known.
struct Extent {
    /// Bytes of its head.
    head: usize,
    /// Bytes after it that are never looked at.
    body: u64,
}

impl Extent {
    fn bytes(&self) -> u64 {
        self.head as u64 + self.body
    }
}

impl<E: FnMut(&Observation<'_>)> Session<'_, E> {
    /// Takes bytes of the server.
    pub(super) fn handle_answers(&mut self, bytes: &StreamBytes<'_>) -> Demand {
        if !std::mem::replace(&mut self.connection.server_seen, true) {
            self.connection.server_since = bytes.timestamp;
        }
        self.connection.one_sided = false;
        let whole = bytes.bytes;
        if self.connection.protocol == Protocol::Undecided {
            // A server that speaks first, or whose client is not captured.
            match whole[0] {
                binary::RESPONSE_MAGIC => self.connection.protocol = Protocol::Binary,
                byte if byte.is_ascii_uppercase() => self.connection.protocol = Protocol::Text,
                _ => return self.lose_answers(whole.len(), whole.len()),
            }
        }
        match self.connection.protocol {
            Protocol::Tls | Protocol::Foreign => return Demand::lost(0),
            Protocol::Watch => return Demand::used(whole.len()),
            _ => {}
        }
        if self.connection.server_lost {
            // A server that answers what was not captured, or talks for long without a word of the client's, has a client that is
            // not captured. Before that, this may be the inside of a long value.
            let heard_alone = self.connection.requests_missed
                || bytes.timestamp.since(self.connection.server_since) >= self.limits.one_sided_after;
            let believed = !self.connection.client_seen && heard_alone && bytes.segment_start;
            if !believed || !self.is_strict_hit(whole) {
                return Demand::lost(0);
            }
            self.connection.server_lost = false;
        }
        self.read_answers(bytes)
    }

    fn read_answers(&mut self, bytes: &StreamBytes<'_>) -> Demand {
        let whole = bytes.bytes;
        let mut used = 0;
        while used < whole.len() {
            self.begin_answer(bytes, used);
            let rest = &whole[used..];
            let extent = match self.connection.protocol {
                Protocol::Binary => self.read_frame(rest, bytes),
                _ => self.read_line(rest, bytes),
            };
            match extent {
                Parsed::Incomplete => break,
                Parsed::Foreign => return self.lose_answers(whole.len() - used, whole.len()),
                Parsed::Message(Extent { head, body }, _) if body > (rest.len() - head) as u64 => {
                    return Demand::skip(used + head, body);
                }
                Parsed::Message(extent, _) => used += extent.bytes() as usize,
            }
            if self.connection.protocol == Protocol::Watch {
                return Demand::used(whole.len());
            }
        }
        Demand::used(used)
    }

    /// Framing is lost here: the rest of these bytes was not read.
    fn lose_answers(&mut self, unread: usize, whole: usize) -> Demand {
        if !self.connection.server_lost {
            self.lose_server();
        }
        Demand::lost(whole - unread)
    }

    fn read_line(&mut self, rest: &[u8], bytes: &StreamBytes<'_>) -> Parsed<Extent> {
        if let Some((key, head, body)) = text::read_plain_value(rest) {
            let extent = Extent { head, body };
            let taken = self.take_value(key, &extent, bytes);
            return if taken { Parsed::Message(extent, head) } else { Parsed::Foreign };
        }
        for (line, reply, outcome) in PLAIN_ENDS {
            if rest.starts_with(line) && self.take_plain_end(reply, outcome, line.len()) {
                return Parsed::Message(Extent { head: line.len(), body: 0 }, line.len());
            }
        }
        let Some((line, head)) = split_line(rest) else {
            if rest.len() <= self.limits.head_bytes_max {
                return Parsed::Incomplete;
            }
            self.anomalies.count(Anomaly::LineTooLong);
            return Parsed::Foreign;
        };
        let answer = text::parse_answer(line);
        let extent = Extent { head, body: answer.body() };
        let taken = match answer {
            Answer::Value { key, .. } => self.take_value(key, &extent, bytes),
            _ => self.take_line(&answer, &extent, bytes),
        };
        if taken { Parsed::Message(extent, head) } else { Parsed::Foreign }
    }

    /// `VALUE`: a hit for one of the keys that were asked.
    fn take_value(&mut self, key: &[u8], extent: &Extent, bytes: &StreamBytes<'_>) -> bool {
        let front = self.connection.line.front;
        let Some((first, slot)) = self.find_key(front, key) else {
            // Of a line that lost a part to a gap, not even this is believed: with requests missing, nothing proves that these
            // bytes are not the inside of a value.
            if front == NONE && self.is_client_unseen() {
                self.report_unseen_hit(Command::Get, key, extent.bytes(), bytes.timestamp);
                return true;
            }
            self.anomalies.count(Anomaly::UnmatchedResponse);
            return false;
        };
        if !self.advance_to(first) {
            return false;
        }
        // That the key was asked for proves nothing: values hold such lines, with their own keys.
        let request = self.queue.request_mut(slot);
        request.outcome = Some(Outcome::Hit);
        request.response_bytes += extent.bytes();
        let last = request.traits.has(Traits::LAST);
        self.connection.cursor = if last { NONE } else { self.queue.next(slot) };
        self.connection.answering = true;
        true
    }

    /// The request that asked for `key`, and the slot of the key in it.
    fn find_key(&self, front: u32, key: &[u8]) -> Option<(u32, u32)> {
        if self.connection.answering {
            let slot = self.find_key_in(front, self.connection.cursor, key)?;
            return Some((front, slot));
        }
        let mut first = front;
        let mut passed = 0;
        // Only silent requests may be passed over: an error that makes the server forget answers has come before.
        while first != NONE && passed == 0 {
            let request = self.queue.request(first);
            let open = request.traits.has(Traits::OPEN);
            if request.reply == Reply::Values
                && !open
                && let Some(slot) = self.find_key_in(first, first, key)
            {
                return self.is_acknowledged(first, false).then_some((first, slot));
            }
            passed += u32::from(!request.traits.has(Traits::QUIET));
            first = self.queue.next_request(first);
        }
        None
    }

    /// A slot of the request at `first` that holds `key` and has no answer: from `cursor` on, or else before it.
    #[inline(always)]
    fn find_key_in(&self, first: u32, cursor: u32, key: &[u8]) -> Option<u32> {
        let fits = |slot: u32| self.queue.request(slot).outcome.is_none() && self.queue.key(slot) == key;
        let mut slot = cursor;
        while slot != NONE {
            if fits(slot) {
                return Some(slot);
            }
            slot = self.next_key(slot);
        }
        let mut slot = first;
        for _ in 0..OUT_OF_ORDER_KEYS_MAX {
            if slot == NONE || slot == cursor {
                return None;
            }
            if fits(slot) {
                return Some(slot);
            }
            slot = self.next_key(slot);
        }
        None
    }

    /// The next slot of the same request.
    fn next_key(&self, slot: u32) -> u32 {
        if self.queue.request(slot).traits.has(Traits::LAST) { NONE } else { self.queue.next(slot) }
    }

    /// The end of the front request's answer, if that is what asked for such a one: the same that `take_line` makes of it.
    #[inline]
    fn take_plain_end(&mut self, reply: Reply, outcome: Outcome, bytes: usize) -> bool {
        let front = self.connection.line.front;
        if front == NONE {
            return false;
        }
        let request = self.queue.request(front);
        let unfit = request.traits.has(Traits::OPEN) || request.traits.has(Traits::INVALID);
        if request.reply != reply || unfit || !self.is_acknowledged(front, false) {
            return false;
        }
        self.connection.stray_errors = 0;
        self.finish_front(outcome, bytes as u64);
        true
    }

    /// Any other line.
    fn take_line(&mut self, answer: &Answer<'_>, extent: &Extent, bytes: &StreamBytes<'_>) -> bool {
        // New servers send one after refusing an overlong key.
        if matches!(answer, Answer::Empty) && !self.connection.answering {
            self.connection.answer = None;
            return true;
        }
        let plain = matches!(answer, Answer::Refused(Refusal::Plain));
        let strays = std::mem::take(&mut self.connection.stray_errors);
        if strays > 0 && plain && !self.is_front_invalid() {
            self.connection.stray_errors = strays - 1;
            self.connection.answer = None;
            return true;
        }
        let Some((first, verdict)) = self.find_request(answer) else {
            return self.take_stray(answer, extent, bytes);
        };
        if !self.advance_to(first) {
            return false;
        }
        let request = self.queue.request_mut(first);
        let (traits, reply, command) = (request.traits, request.reply, request.command);
        if let Answer::Meta(meta) = answer {
            request.notes = meta.notes(request);
            if meta.identifies(self.queue.request(first)) {
                self.confirm();
            }
        }
        match verdict {
            Verdict::More => {
                self.queue.request_mut(first).response_bytes += extent.bytes();
                self.connection.answering = true;
            }
            Verdict::Done(outcome) => {
                self.finish_front(outcome, extent.bytes());
                let refused_body = traits.has(Traits::STRAY_BODY) && matches!(answer, Answer::Refused(_));
                // The body of a request that was to be silent is what this answers.
                let stray = refused_body && !traits.has(Traits::QUIET) && !self.connection.is_new_server;
                self.connection.stray_errors = u8::from(stray);
                if let (Answer::Version(version), Command::Version) = (answer, command) {
                    self.note_version(text::is_new_version(version));
                }
                if reply == Reply::Watch && outcome == Outcome::Ok {
                    debug_assert_eq!(command, Command::Watch);
                    self.connection.protocol = Protocol::Watch;
                    self.abandon();
                }
            }
        }
        true
    }

    fn is_front_invalid(&self) -> bool {
        let front = self.connection.line.front;
        front != NONE && self.queue.request(front).traits.has(Traits::INVALID)
    }

    /// The first request that can get this answer.
    fn find_request(&self, answer: &Answer<'_>) -> Option<(u32, Verdict)> {
        let refused = matches!(answer, Answer::Refused(_));
        self.search(refused, |slot| {
            text::judge(self.queue.request(slot), self.queue.key(slot), answer, self.limits.item_size_max)
        })
    }

    /// Walks over the outstanding requests: past any number of quiet ones, and a few of the others.
    fn search<V>(&self, refused: bool, judge: impl Fn(u32) -> Option<V>) -> Option<(u32, V)> {
        let mut first = self.connection.line.front;
        let mut passed = 0;
        while first != NONE && passed <= self.limits.lookahead_max {
            if let Some(verdict) = judge(first) {
                return self.is_acknowledged(first, refused).then_some((first, verdict));
            }
            if self.connection.answering {
                return None;
            }
            passed += u32::from(!self.queue.request(first).traits.has(Traits::QUIET));
            first = self.queue.next_request(first);
        }
        None
    }

    /// Makes the request at `first` the front one. What lies before is quiet and was silent, or its answer is lost.
    fn advance_to(&mut self, first: u32) -> bool {
        while self.connection.line.front != first {
            let promised = self.queue.request(self.connection.line.front).is_promised();
            if promised && self.connection.provisional {
                return false;
            }
            self.pass_front();
        }
        true
    }

    /// A line that answers nothing we know of. `false` if that means that the pairing is wrong.
    fn take_stray(&mut self, answer: &Answer<'_>, extent: &Extent, bytes: &StreamBytes<'_>) -> bool {
        let waiting = self.connection.line.front != NONE;
        if !waiting && self.is_client_unseen() && !matches!(answer, Answer::Other) {
            self.connection.answer = None;
            self.take_unasked(answer, extent, bytes);
            return true;
        }
        self.anomalies.count(Anomaly::UnmatchedResponse);
        // An error may come unasked (too many connections), and a line that stands alone does no harm.
        let harmless = !waiting && matches!(answer, Answer::Refused(_)) && !self.connection.provisional;
        self.connection.answer = None;
        harmless
    }

    /// An answer whose request was not captured: it may still name its key.
    fn take_unasked(&mut self, answer: &Answer<'_>, extent: &Extent, bytes: &StreamBytes<'_>) {
        match answer {
            Answer::Meta(meta) if meta.body > 0 && meta.key.is_some() => {
                let mut scratch = [0; 256];
                if let Some(key) = meta.decoded_key(&mut scratch) {
                    self.report_unseen_hit(Command::MetaGet, key, extent.bytes(), bytes.timestamp);
                }
            }
            Answer::Stat | Answer::Dump | Answer::Empty => {}
            _ => self.anomalies.count(Anomaly::UnmatchedResponse),
        }
    }

    fn read_frame(&mut self, rest: &[u8], bytes: &StreamBytes<'_>) -> Parsed<Extent> {
        let (response, head) = match binary::parse_response(rest) {
            Parsed::Message(response, head) => (response, head),
            Parsed::Incomplete => return Parsed::Incomplete,
            Parsed::Foreign => return Parsed::Foreign,
        };
        let extent = Extent { head, body: response.body };
        if self.take_frame(&response, &extent, bytes) {
            Parsed::Message(extent, head)
        } else {
            Parsed::Foreign
        }
    }

    fn take_frame(&mut self, response: &Response<'_>, extent: &Extent, bytes: &StreamBytes<'_>) -> bool {
        let found = self.search(response.status != 0, |slot| {
            binary::judge(self.queue.request(slot), self.queue.key(slot), response)
        });
        let Some((first, outcome)) = found else {
            self.connection.answer = None;
            let unasked = self.connection.line.front == NONE && self.is_client_unseen();
            match response.key {
                Some(key) if unasked && response.is_named_hit() => {
                    self.report_unseen_hit(response.command(), key, extent.bytes(), bytes.timestamp);
                }
                _ => self.anomalies.count(Anomaly::UnmatchedResponse),
            }
            return unasked;
        };
        if !self.advance_to(first) {
            return false;
        }
        // A key, or a number that the client chose, proves the pairing; a constant zero does not.
        if response.is_named_hit() || response.opaque != 0 {
            self.confirm();
        }
        match outcome {
            None => {
                self.queue.request_mut(first).response_bytes += extent.bytes();
                self.connection.answering = true;
            }
            Some(outcome) => self.finish_front(outcome, extent.bytes()),
        }
        if let Some(version) = response.version {
            self.note_version(text::is_new_version(version));
        }
        true
    }

    /// Whether a segment begins with a hit that names its key, and with nothing that only looks like one.
    fn is_strict_hit(&self, whole: &[u8]) -> bool {
        if self.connection.protocol == Protocol::Binary {
            return matches!(
                binary::parse_response(whole),
                Parsed::Message(response, _) if response.is_named_hit()
            );
        }
        let Some((line, used)) = split_line(whole) else { return false };
        match text::parse_answer(line) {
            Answer::Value { key, body } => {
                whole[..used].ends_with(b"\r\n")
                    && is_plausible_key(key)
                    && is_body_plausible(&whole[used..], body)
            }
            _ => false,
        }
    }
}

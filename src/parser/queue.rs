//! Requests that wait for their answers, in the order in which they were sent.
//!
//! The pool of a worker is allocated at start-up; a connection's queue is a list in it, so an idle connection holds nothing.

use crate::model::{Command, Outcome, Timestamp};
use crate::parser::ObservationNotes;

/// Longest key of memcached (`KEY_MAX_LENGTH`).
pub(super) const KEY_BYTES_MAX: usize = 250;

const NONE: u32 = u32::MAX;

/// What form the answer to a request has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Text retrieval: VALUE lines for the hits of the whole line of keys, then END.
    Values,
    /// One text line.
    Line,
    /// STAT, ITEM or PREFIX lines up to END, or one other line.
    Lines,
    /// Lines of any form up to END or EN, after an optional OK.
    Dump,
    /// A stream of log lines that never ends.
    Watch,
    /// A meta response.
    Meta,
    /// A binary response with this opcode and opaque.
    Binary { opcode: u8, opaque: u32 },
}

/// A request that was seen and not answered yet; one for each key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) command: Command,
    pub(super) answer: Answer,
    /// No answer is promised.
    pub(super) is_quiet: bool,
    /// The last key of its line; other answers than `Values` have one key a request.
    pub(super) is_last_of_line: bool,
    /// For `Values`: its VALUE line has been seen; counted when the line after its body shows that all is well.
    pub(super) is_hit: bool,
    /// For the last key of a line: a key of the line was too long, so that the server answers all of it with an error.
    pub(super) is_overlong: bool,
    /// Stream position behind the request.
    pub(super) end: u32,
    /// Capture time of the packet that completed it.
    pub(super) completed: Timestamp,
    pub(super) request_bytes: u64,
    pub(super) response_bytes: u64,
    /// First packet of the answer.
    pub(super) answered: Option<Timestamp>,
    /// Length of the value that a store announced.
    pub(super) value_bytes: u64,
    /// Binary arithmetic: the value with which the item is created when it is missing, if it is.
    pub(super) initial: Option<u64>,
    /// The opaque token of a meta request, hashed, which its answer echoes; 0 for none.
    pub(super) opaque_hash: u64,
    pub(super) notes: ObservationNotes,
    key_bytes: u8,
    key: [u8; KEY_BYTES_MAX],
    next: u32,
}

impl Request {
    pub(super) fn new(command: Command, answer: Answer, end: u32, completed: Timestamp) -> Request {
        Request {
            command,
            answer,
            is_quiet: false,
            is_last_of_line: true,
            is_hit: false,
            is_overlong: false,
            end,
            completed,
            request_bytes: 0,
            response_bytes: 0,
            answered: None,
            value_bytes: 0,
            initial: None,
            opaque_hash: 0,
            notes: ObservationNotes::default(),
            key_bytes: 0,
            key: [0; KEY_BYTES_MAX],
            next: NONE,
        }
    }

    pub(super) fn key(&self) -> &[u8] {
        &self.key[..usize::from(self.key_bytes)]
    }

    /// Copies the key; the caller has checked its length.
    pub(super) fn set_key(&mut self, key: &[u8]) {
        let length = key.len().min(KEY_BYTES_MAX);
        self.key[..length].copy_from_slice(&key[..length]);
        // At most 250.
        self.key_bytes = length as u8;
    }

    /// The outcome of a quiet request about which the server kept silent although it answered a later one.
    pub(super) fn silent_outcome(&self) -> Outcome {
        use crate::model::CommandClass::{Arithmetic, Deletion, Retrieval, Storage, Touch};
        match self.command.class() {
            Retrieval => Outcome::Miss,
            Storage => Outcome::Stored,
            Deletion | Arithmetic | Touch => Outcome::Hit,
            _ => Outcome::Ok,
        }
    }
}

/// A connection's requests, oldest first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Queue {
    head: u32,
    tail: u32,
    count: u32,
}

impl Default for Queue {
    fn default() -> Queue {
        Queue { head: NONE, tail: NONE, count: 0 }
    }
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn len(&self) -> u32 {
        self.count
    }
}

/// All queues' places.
#[derive(Debug)]
pub(super) struct RequestPool {
    requests: Vec<Request>,
    free: u32,
}

impl RequestPool {
    pub(super) fn new(places: usize) -> RequestPool {
        let mut requests = Vec::with_capacity(places);
        for place in 1..=places {
            let mut request = Request::new(Command::Unknown, Answer::Line, 0, Timestamp::ZERO);
            request.next = if place == places { NONE } else { place as u32 };
            requests.push(request);
        }
        RequestPool { requests, free: if places == 0 { NONE } else { 0 } }
    }

    /// Whether a request can be added.
    pub(super) fn has_room(&self) -> bool {
        self.free != NONE
    }

    /// Adds at the end; the request comes back when there is no room.
    pub(super) fn push(&mut self, queue: &mut Queue, request: &Request) -> bool {
        let index = self.free;
        if index == NONE {
            return false;
        }
        let place = &mut self.requests[index as usize];
        self.free = place.next;
        *place = *request;
        place.next = NONE;
        if queue.tail == NONE {
            queue.head = index
        } else {
            self.requests[queue.tail as usize].next = index
        }
        queue.tail = index;
        queue.count += 1;
        true
    }

    pub(super) fn front(&self, queue: &Queue) -> Option<&Request> {
        (queue.head != NONE).then(|| &self.requests[queue.head as usize])
    }

    pub(super) fn front_mut(&mut self, queue: &Queue) -> Option<&mut Request> {
        if queue.head == NONE { None } else { Some(&mut self.requests[queue.head as usize]) }
    }

    pub(super) fn back_mut(&mut self, queue: &Queue) -> Option<&mut Request> {
        if queue.tail == NONE { None } else { Some(&mut self.requests[queue.tail as usize]) }
    }

    pub(super) fn iter<'a>(&'a self, queue: &Queue) -> impl Iterator<Item = &'a Request> + use<'a> {
        let mut at = queue.head;
        std::iter::from_fn(move || {
            let request = (at != NONE).then(|| &self.requests[at as usize])?;
            at = request.next;
            Some(request)
        })
    }

    /// Calls `change` for each, oldest first.
    pub(super) fn for_each_mut(&mut self, queue: &Queue, mut change: impl FnMut(&mut Request)) {
        let mut at = queue.head;
        while at != NONE {
            let request = &mut self.requests[at as usize];
            change(request);
            at = request.next;
        }
    }

    /// Takes the oldest off.
    pub(super) fn pop(&mut self, queue: &mut Queue) -> Option<&Request> {
        let index = queue.head;
        if index == NONE {
            return None;
        }
        let next = std::mem::replace(&mut self.requests[index as usize].next, self.free);
        self.free = index;
        queue.head = next;
        if next == NONE {
            queue.tail = NONE;
        }
        queue.count -= 1;
        Some(&self.requests[index as usize])
    }
}

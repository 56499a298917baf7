//! Outstanding requests: what was asked and has not been answered yet, in order, per connection.
//!
//! One slot holds one key's share of a request; a get of five keys takes five slots that follow each other, the last of them
//! marked. All slots of a worker lie in one pool that is allocated once. A connection holds only the ends of its own
//! list, so an idle connection costs no slot.

use super::ObservationNotes;
use crate::model::{Command, Outcome, Timestamp};

/// Longest key that memcached takes (`KEY_MAX_LENGTH` in `memcached.h`).
pub(super) const KEY_MAX: usize = 250;

/// No slot.
pub(super) const NONE: u32 = u32::MAX;

/// Which answers a request can get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// `VALUE …` lines, then `END`.
    Values,
    /// `STORED` and its kin.
    Storage,
    /// `DELETED` or `NOT_FOUND`.
    Deletion,
    /// A number or `NOT_FOUND`.
    Arithmetic,
    /// `TOUCHED` or `NOT_FOUND`.
    Touch,
    /// One line of any kind.
    Line,
    /// `VERSION x`.
    Version,
    /// `STAT …` lines, then `END`; or one line.
    Stats,
    /// `OK`, lines of a cache dump, then `END` or `EN`; or one line.
    Dump,
    /// `OK`, and from then on no conversation at all.
    Watch,
    /// `mg`.
    MetaGet,
    /// `ms`.
    MetaSet,
    /// `md`.
    MetaDelete,
    /// `ma`.
    MetaArithmetic,
    /// `me`.
    MetaDebug,
    /// `mn`.
    MetaNoop,
    /// Closes the connection without a word.
    Nothing,
    /// Frames of the binary protocol, told apart by opcode.
    Binary,
}

/// Properties of a request that decide how it is paired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Traits(u16);

impl Traits {
    /// Some answers are suppressed (meta `q`, binary quiet opcodes).
    pub(super) const QUIET: Traits = Traits(1);
    /// The last slot of its request.
    pub(super) const LAST: Traits = Traits(1 << 1);
    /// The first slot of a request whose line has not ended yet: nothing can answer it.
    pub(super) const OPEN: Traits = Traits(1 << 2);
    /// The server refuses it whatever it holds.
    pub(super) const INVALID: Traits = Traits(1 << 3);
    /// A loss cut the request: it may have asked for more keys than we know.
    pub(super) const CUT: Traits = Traits(1 << 4);
    /// The answer repeats the key.
    pub(super) const WANTS_KEY: Traits = Traits(1 << 5);
    /// The answer repeats the opaque token.
    pub(super) const WANTS_OPAQUE: Traits = Traits(1 << 6);
    /// `N`: a miss creates the item.
    pub(super) const VIVIFY: Traits = Traits(1 << 7);
    /// `R`: the winner may be a hit.
    pub(super) const RECACHE: Traits = Traits(1 << 8);
    /// It completed in a packet that was not shown to us, so no latency can be told.
    pub(super) const UNTIMED: Traits = Traits(1 << 9);
    /// Old servers do not swallow the body of this refused line and answer it as one more command.
    pub(super) const STRAY_BODY: Traits = Traits(1 << 10);
    /// Compares a CAS value.
    pub(super) const COMPARES: Traits = Traits(1 << 11);
    /// Has a body: `extra` is its length, and a refusal may come before it.
    pub(super) const STORES: Traits = Traits(1 << 12);
    /// A key list without keys that old servers answer with `END`.
    pub(super) const EMPTY_LIST: Traits = Traits(1 << 13);
    /// `I` on `md`: marks the item stale instead of deleting it.
    pub(super) const INVALIDATES: Traits = Traits(1 << 14);
    /// Quiet arithmetic whose silence may mean that it created its item, or that it changed it.
    pub(super) const CREATES_SILENTLY: Traits = Traits(1 << 15);

    /// Whether all of `other` are set.
    pub(super) const fn has(self, other: Traits) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets.
    pub(super) const fn with(self, other: Traits) -> Traits {
        Traits(self.0 | other.0)
    }

    /// `self`, and `other` if `condition`.
    pub(super) const fn with_if(self, condition: bool, other: Traits) -> Traits {
        if condition { self.with(other) } else { self }
    }

    /// `self` without `other`.
    pub(super) const fn without(self, other: Traits) -> Traits {
        Traits(self.0 & !other.0)
    }
}

/// One key's share of an outstanding request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    /// The packet that completed the request.
    pub(super) timestamp: Timestamp,
    /// The first packet of its answer; zero before there is one.
    pub(super) answered: Timestamp,
    /// Storage: length of the body with its line end. Binary arithmetic: the initial value.
    pub(super) extra: u64,
    /// Share of the request's bytes.
    pub(super) request_bytes: u64,
    /// Share of the answer's bytes so far.
    pub(super) response_bytes: u64,
    /// Stream position after the request's last byte. Binding in the first slot of a request.
    pub(super) end: u32,
    /// Binary opaque, or a digest of a meta opaque token.
    pub(super) opaque: u32,
    /// Properties that decide how it is paired.
    pub(super) traits: Traits,
    /// The verb.
    pub(super) command: Command,
    /// Which answers it can get.
    pub(super) reply: Reply,
    /// Known outcome.
    pub(super) outcome: Option<Outcome>,
    /// Binary opcode.
    pub(super) opcode: u8,
    /// What else is known.
    pub(super) notes: ObservationNotes,
}

impl Request {
    /// An empty slot's content.
    pub(super) const EMPTY: Request = Request {
        timestamp: Timestamp::ZERO,
        answered: Timestamp::ZERO,
        extra: 0,
        request_bytes: 0,
        response_bytes: 0,
        end: 0,
        opaque: 0,
        traits: Traits(0),
        command: Command::Unknown,
        reply: Reply::Nothing,
        outcome: None,
        opcode: 0,
        notes: ObservationNotes {
            quiet: false,
            lease_won: false,
            lease_stale: false,
            lease_lost: false,
            request_unseen: false,
        },
    };

    /// Whether an answer is promised.
    pub(super) fn is_promised(&self) -> bool {
        !self.traits.has(Traits::QUIET) && self.reply != Reply::Nothing
    }
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    request: Request,
    next: u32,
    key_bytes: u8,
}

/// A connection's list. From `head` to `front` lie requests that are resolved and held back, from `front` to `tail` those
/// that wait for an answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    pub(super) head: u32,
    pub(super) front: u32,
    pub(super) tail: u32,
    /// Slots in the list.
    pub(super) count: u32,
    /// Slots between `head` and `front`.
    pub(super) held: u32,
}

impl Default for Line {
    fn default() -> Line {
        Line { head: NONE, front: NONE, tail: NONE, count: 0, held: 0 }
    }
}

/// The pool of slots of one worker.
#[derive(Debug)]
pub(super) struct Queue {
    slots: Box<[Slot]>,
    /// Apart from the slots, so that walking does not touch them.
    keys: Box<[[u8; 256]]>,
    /// Head of the list of slots that were used and given back.
    free: u32,
    /// First slot that was never used: pages that nobody needs are never touched.
    fresh: u32,
    in_use: u32,
}

impl Queue {
    /// Allocates `slots` slots.
    pub(super) fn new(slots: u32) -> Queue {
        let empty = Slot { request: Request::EMPTY, next: NONE, key_bytes: 0 };
        Queue {
            slots: vec![empty; slots as usize].into_boxed_slice(),
            keys: vec![[0; 256]; slots as usize].into_boxed_slice(),
            free: NONE,
            fresh: 0,
            in_use: 0,
        }
    }

    /// Slots in use, over all connections.
    pub(super) fn in_use(&self) -> u32 {
        self.in_use
    }

    #[inline]
    fn acquire(&mut self) -> Option<u32> {
        let index = if self.free != NONE {
            let index = self.free;
            self.free = self.slots[index as usize].next;
            index
        } else if (self.fresh as usize) < self.slots.len() {
            self.fresh += 1;
            self.fresh - 1
        } else {
            return None;
        };
        self.in_use += 1;
        Some(index)
    }

    /// Appends a request; `None` when no slot is left. The key is at most [`KEY_MAX`] bytes.
    #[inline]
    pub(super) fn push(&mut self, line: &mut Line, request: Request, key: &[u8]) -> Option<u32> {
        debug_assert!(key.len() <= KEY_MAX);
        let index = self.acquire()?;
        self.slots[index as usize] = Slot { request, next: NONE, key_bytes: key.len() as u8 };
        self.keys[index as usize][..key.len()].copy_from_slice(key);
        if line.tail == NONE {
            line.head = index;
        } else {
            self.slots[line.tail as usize].next = index;
        }
        line.tail = index;
        if line.front == NONE {
            line.front = index;
        }
        line.count += 1;
        Some(index)
    }

    /// Takes the head off the list. Its content stays readable until the next push.
    pub(super) fn pop(&mut self, line: &mut Line) -> Option<u32> {
        if line.head == NONE {
            return None;
        }
        let index = line.head;
        let next = self.slots[index as usize].next;
        if line.front == index {
            line.front = next;
        } else {
            line.held -= 1;
        }
        line.head = next;
        if next == NONE {
            line.tail = NONE;
        }
        line.count -= 1;
        self.slots[index as usize].next = self.free;
        self.free = index;
        self.in_use -= 1;
        Some(index)
    }

    /// Moves the front over one resolved slot and holds it back.
    pub(super) fn hold(&mut self, line: &mut Line) {
        line.front = self.slots[line.front as usize].next;
        line.held += 1;
    }

    /// What a slot holds.
    pub(super) fn request(&self, index: u32) -> &Request {
        &self.slots[index as usize].request
    }

    /// The same, to change it.
    pub(super) fn request_mut(&mut self, index: u32) -> &mut Request {
        &mut self.slots[index as usize].request
    }

    /// The key of a slot.
    pub(super) fn key(&self, index: u32) -> &[u8] {
        &self.keys[index as usize][..self.slots[index as usize].key_bytes as usize]
    }

    /// The slot after this one, of the same request or of the next.
    pub(super) fn next(&self, index: u32) -> u32 {
        self.slots[index as usize].next
    }

    /// The first slot of the request after this one's.
    pub(super) fn next_request(&self, mut index: u32) -> u32 {
        while index != NONE && !self.request(index).traits.has(Traits::LAST) {
            index = self.next(index);
        }
        if index == NONE { NONE } else { self.next(index) }
    }
}

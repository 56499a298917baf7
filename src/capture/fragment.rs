//! IP fragments to whole IP payloads, in memory that is fixed at start-up.
//!
//! TCP practically never arrives in fragments and memcached's own answers do not either, but large requests over UDP and
//! mirror tunnels do. Any overlap costs the whole packet (RFC 5722 for IPv6, and what Linux does for IPv4 since 2018):
//! choosing between two versions of the same bytes is how reassemblers are lied to. What is not made whole is counted.
//!
//! Left out on purpose: guessing. A packet with a missing piece yields nothing.

use std::time::Duration;

use super::decode::{AddressPair, DecodeLimits, Extent};
use crate::model::Timestamp;

/// Copies of a packet from two mirror ports are at most this far apart. A finished packet is remembered for as long, so
/// that the copies of its fragments are recognised; any longer, and a reused identification would be mistaken for a copy.
const MIRROR_COPY_MAX: Duration = Duration::from_millis(2);

/// Fragments that are not the last carry a multiple of this many bytes, because offsets count in these units.
const OFFSET_UNIT_BYTES: usize = 8;

/// The two pools, lent to the decoding of one packet. Each can be used once, for what it yields is borrowed from it.
pub(super) struct FragmentPools<'a> {
    outer: Option<&'a mut FragmentPool>,
    inner: Option<&'a mut FragmentPool>,
}

impl<'a> FragmentPools<'a> {
    pub(super) fn new(outer: &'a mut FragmentPool, inner: &'a mut FragmentPool) -> FragmentPools<'a> {
        FragmentPools { outer: Some(outer), inner: Some(inner) }
    }

    /// The pool for packets inside of `tunnels` tunnels. `None` when fragments within fragments have used it up.
    pub(super) fn take(&mut self, tunnels: usize) -> Option<&'a mut FragmentPool> {
        if tunnels == 0 { self.outer.take() } else { self.inner.take() }
    }
}

/// What the fragments of one packet have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FragmentKey {
    pub(super) addresses: AddressPair,
    pub(super) protocol: u8,
    pub(super) id: u32,
}

/// Which part of its packet a fragment is.
#[derive(Clone, Copy, Debug)]
pub(super) struct FragmentPiece {
    /// Identification that the sender gave the packet.
    pub(super) id: u32,
    /// Offset in bytes of the fragment in the packet's payload.
    pub(super) offset: u32,
    /// Whether the packet ends with it.
    pub(super) is_last: bool,
}

/// A fixed number of packets in the making.
#[derive(Debug)]
pub(super) struct FragmentPool {
    slots: Box<[Slot]>,
    /// The payloads, `datagram_bytes_max` for each slot.
    buffer: Box<[u8]>,
    datagram_bytes_max: usize,
    pieces_max: usize,
    idle_max: Duration,
    dropped: u64,
}

impl FragmentPool {
    pub(super) fn new(limits: &DecodeLimits) -> FragmentPool {
        let slot = || Slot { pieces: Vec::with_capacity(limits.fragment_pieces_max), ..Slot::default() };
        let datagram_bytes_max = limits.fragment_datagram_bytes_max.min(usize::from(u16::MAX));
        FragmentPool {
            slots: std::iter::repeat_with(slot).take(limits.fragment_datagrams_max).collect(),
            buffer: vec![0; datagram_bytes_max * limits.fragment_datagrams_max].into_boxed_slice(),
            datagram_bytes_max,
            pieces_max: limits.fragment_pieces_max,
            idle_max: limits.fragment_idle_max,
            dropped: 0,
        }
    }

    /// Takes the number of fragments that came to nothing since the last call.
    pub(super) fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// Gives up what has waited longer than permitted.
    pub(super) fn expire(&mut self, now: Timestamp) {
        for slot in &mut self.slots {
            if slot.state != SlotState::Free && now.since(slot.begun) > self.idle_max {
                self.dropped += slot.clear();
            }
        }
    }

    /// Holds a fragment. Yields the payload of the packet that it makes whole: what was captured from its start without a
    /// break, and its length on the wire.
    pub(super) fn insert(
        &mut self,
        now: Timestamp,
        key: FragmentKey,
        piece: FragmentPiece,
        body: Extent<'_>,
    ) -> Option<Extent<'_>> {
        let Some(range) = self.range_of(piece, body) else {
            self.dropped += 1;
            return None;
        };
        self.expire(now);
        let index = self.slot_for(now, key)?;
        let slot = &mut self.slots[index];
        let buffer = &mut self.buffer[index * self.datagram_bytes_max..][..self.datagram_bytes_max];
        if slot.state == SlotState::Whole {
            if slot.is_copy(now, buffer, range, body.bytes) {
                return None;
            }
            slot.begin(now, key);
        }
        match slot.add(range, piece.is_last, self.pieces_max) {
            Added::Held | Added::Whole => {
                let start = usize::from(range.start);
                buffer[start..start + body.bytes.len()].copy_from_slice(body.bytes);
            }
            Added::Copy => return None,
            Added::Refused(dropped) => {
                self.dropped += dropped;
                return None;
            }
        }
        if slot.state != SlotState::Whole {
            return None;
        }
        slot.begun = now;
        let captured = usize::from(slot.captured_end());
        Some(Extent { bytes: &buffer[..captured], wire_bytes: u32::from(slot.end.unwrap_or(0)) })
    }

    /// Where a fragment lies, if it is possible at all: not empty, not beyond the greatest packet, whole units unless last.
    fn range_of(&self, piece: FragmentPiece, body: Extent<'_>) -> Option<PieceRange> {
        let end = piece.offset.checked_add(body.wire_bytes)?;
        let is_whole_units = (body.wire_bytes as usize).is_multiple_of(OFFSET_UNIT_BYTES);
        if body.wire_bytes == 0
            || end as usize > self.datagram_bytes_max
            || !(is_whole_units || piece.is_last)
        {
            return None;
        }
        let captured_end = piece.offset + u32::try_from(body.bytes.len()).ok()?;
        Some(PieceRange {
            start: u16::try_from(piece.offset).ok()?,
            end: u16::try_from(end).ok()?,
            captured_end: u16::try_from(captured_end).ok()?,
        })
    }

    /// The slot of `key`, begun if there is none: in a free place, else in that of a finished or refused packet, else in
    /// that of the packet that has waited longest. `None` when the pool has no slots.
    fn slot_for(&mut self, now: Timestamp, key: FragmentKey) -> Option<usize> {
        let is_ours = |slot: &Slot| slot.state != SlotState::Free && slot.key == Some(key);
        if let Some(index) = self.slots.iter().position(is_ours) {
            return Some(index);
        }
        let cost = |slot: &Slot| (slot.state, slot.begun);
        let victim = (0..self.slots.len()).min_by_key(|&index| cost(&self.slots[index]));
        let Some(index) = victim else {
            self.dropped += 1;
            return None;
        };
        self.dropped += self.slots[index].clear();
        self.slots[index].begin(now, key);
        Some(index)
    }
}

/// In the order in which slots are given away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum SlotState {
    #[default]
    Free,
    /// Handed out; remembered for its copies.
    Whole,
    /// Contradicted itself. Kept, because its later fragments have to be refused as well (RFC 5722 §4).
    Refused,
    /// Waiting for more.
    Filling,
}

/// Bytes `start..end` of a packet's payload, of which `start..captured_end` were captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PieceRange {
    start: u16,
    end: u16,
    captured_end: u16,
}

/// What became of a fragment.
enum Added {
    Held,
    Whole,
    /// The same piece a second time; the first stays.
    Copy,
    /// The packet is given up, with so many fragments.
    Refused(u64),
}

/// One packet in the making.
#[derive(Debug, Default)]
struct Slot {
    state: SlotState,
    key: Option<FragmentKey>,
    /// Time of the first fragment; once whole, of the last.
    begun: Timestamp,
    /// In order, without overlap; never more than its capacity.
    pieces: Vec<PieceRange>,
    /// Bytes in `pieces`. Since they do not overlap, the packet is whole when this equals `end`.
    filled: u16,
    /// Length of the packet's payload, once the last piece is here.
    end: Option<u16>,
}

impl Slot {
    fn begin(&mut self, now: Timestamp, key: FragmentKey) {
        self.clear();
        self.key = Some(key);
        self.begun = now;
        self.state = SlotState::Filling;
    }

    /// Frees the slot; the number of fragments that are lost by it.
    fn clear(&mut self) -> u64 {
        let lost = if self.state == SlotState::Filling { self.pieces.len() as u64 } else { 0 };
        self.state = SlotState::Free;
        self.pieces.clear();
        self.filled = 0;
        self.end = None;
        lost
    }

    fn add(&mut self, range: PieceRange, is_last: bool, pieces_max: usize) -> Added {
        let index = self.pieces.partition_point(|piece| piece.start < range.start);
        let before = index.checked_sub(1).and_then(|before| self.pieces.get(before));
        let behind = self.pieces.get(index);
        if behind.is_some_and(|piece| (piece.start, piece.end) == (range.start, range.end)) {
            return Added::Copy;
        }
        let overlaps = before.is_some_and(|piece| piece.end > range.start)
            || behind.is_some_and(|piece| piece.start < range.end);
        let contradicts_end = match self.end {
            Some(end) => is_last || range.end > end,
            None => is_last && self.pieces.last().is_some_and(|piece| piece.end > range.end),
        };
        let is_refused = self.state == SlotState::Refused;
        if is_refused || overlaps || contradicts_end || self.pieces.len() >= pieces_max {
            let dropped = self.clear() + 1;
            self.state = SlotState::Refused;
            return Added::Refused(dropped);
        }
        self.pieces.insert(index, range);
        self.filled += range.end - range.start;
        if is_last {
            self.end = Some(range.end);
        }
        if self.end != Some(self.filled) {
            return Added::Held;
        }
        self.state = SlotState::Whole;
        Added::Whole
    }

    /// Whether a fragment repeats one of a packet that was just finished: same place, same bytes, soon after.
    fn is_copy(&self, now: Timestamp, buffer: &[u8], range: PieceRange, bytes: &[u8]) -> bool {
        now.since(self.begun) <= MIRROR_COPY_MAX
            && self.pieces.contains(&range)
            && buffer[usize::from(range.start)..usize::from(range.captured_end)] == *bytes
    }

    /// End of the bytes that were captured from the start without a break.
    fn captured_end(&self) -> u16 {
        let mut end = 0;
        for piece in &self.pieces {
            end = piece.captured_end;
            if piece.captured_end < piece.end {
                break;
            }
        }
        end
    }
}

#[cfg(test)]
#[path = "fragment_tests.rs"]
mod tests;

//! Fixed memory for the two kinds of bytes that must outlive their packet: unfinished message heads, and early segments.
//!
//! Both pools are built at full size and never grow. The pool of early segments is also the timer of reassembly: each
//! held segment stands in one of a few queues in the order of the moment from which its patience runs, so that the
//! one to give up first is at a queue's front, and a segment that leaves takes its deadline with it.

use super::sequence::SeqNumber;
use crate::model::{Direction, Timestamp};

/// No slot, block or carry.
pub(super) const NIL: u32 = u32::MAX;

/// Longest unfinished message head that is carried. memcached closes a connection that sends 2,048 bytes without a line
/// end (`proto_text.c`, `try_read_command_ascii`), except in key lists, which the parser uses key by key.
pub(super) const CARRY_BYTES: usize = 2048;

/// Size of the blocks that hold early payloads; one block takes an MTU segment, thirty-two a GSO segment.
pub(super) const BLOCK_BYTES: usize = 2048;

/// Buffers of [`CARRY_BYTES`] for unfinished message heads.
pub(super) struct CarryPool {
    bytes: Box<[u8]>,
    /// Bytes in use of each buffer; at most `CARRY_BYTES`.
    lengths: Box<[usize]>,
    free: Vec<u32>,
}

impl CarryPool {
    pub(super) fn new(carries: usize) -> CarryPool {
        CarryPool {
            bytes: vec![0; carries * CARRY_BYTES].into_boxed_slice(),
            lengths: vec![0; carries].into_boxed_slice(),
            free: free_list(carries),
        }
    }

    /// An empty buffer, or `None` when all are in use.
    pub(super) fn take(&mut self) -> Option<u32> {
        let carry = self.free.pop()?;
        self.lengths[carry as usize] = 0;
        Some(carry)
    }

    pub(super) fn release(&mut self, carry: u32) {
        self.free.push(carry);
    }

    pub(super) fn len(&self, carry: u32) -> usize {
        self.lengths[carry as usize]
    }

    pub(super) fn bytes(&self, carry: u32) -> &[u8] {
        let start = carry as usize * CARRY_BYTES;
        &self.bytes[start..start + self.lengths[carry as usize]]
    }

    /// Appends as much of `bytes` as there is room for; returns how much that was.
    pub(super) fn append(&mut self, carry: u32, bytes: &[u8]) -> usize {
        let length = &mut self.lengths[carry as usize];
        let taken = bytes.len().min(CARRY_BYTES - *length);
        let start = carry as usize * CARRY_BYTES + *length;
        self.bytes[start..start + taken].copy_from_slice(&bytes[..taken]);
        *length += taken;
        taken
    }

    /// Removes `count` bytes from the front.
    pub(super) fn remove_front(&mut self, carry: u32, count: usize) {
        let start = carry as usize * CARRY_BYTES;
        let length = &mut self.lengths[carry as usize];
        self.bytes.copy_within(start + count..start + *length, start);
        *length -= count;
    }

    pub(super) fn in_use(&self) -> usize {
        self.lengths.len() - self.free.len()
    }
}

/// How long a held segment may wait; the pool keeps one queue of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// What it waits for has been acknowledged: only capture order can still bring it.
    Reordering,
    /// A retransmission may come, and acknowledgements are seen.
    Retransmission,
    /// The same, and none is seen.
    RetransmissionUnacknowledged,
}

impl Patience {
    pub(super) const ALL: [Patience; 3] =
        [Patience::Reordering, Patience::Retransmission, Patience::RetransmissionUnacknowledged];
}

/// What must be known of a segment when its turn comes, beside its bytes. Datagrams use `seq` for their number in the
/// message and `ack` for its total.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    /// Of the first payload byte.
    pub(super) seq: SeqNumber,
    /// Payload length on the wire.
    pub(super) wire_bytes: u32,
    /// Payload bytes that we have; at most `wire_bytes`.
    pub(super) captured_bytes: u32,
    /// What its sender had received, when it said so.
    pub(super) ack: Option<SeqNumber>,
    /// Whether its sender sends nothing after it.
    pub(super) fin: bool,
    /// Whether `seq` is where the segment's payload began on the wire.
    pub(super) whole: bool,
    /// Capture time.
    pub(super) timestamp: Timestamp,
    /// Slot of its flow.
    pub(super) slot: u32,
    /// Which way it goes.
    pub(super) direction: Direction,
}

impl Arrival {
    /// Just after its last payload byte.
    pub(super) const fn end(&self) -> SeqNumber {
        self.seq.plus(self.wire_bytes)
    }

    /// Without its first `bytes` payload bytes (at most `wire_bytes`); tells how many of those were captured.
    #[inline(always)]
    pub(super) fn cut_front(&mut self, bytes: u32) -> usize {
        if bytes == 0 {
            return 0;
        }
        let captured = bytes.min(self.captured_bytes);
        self.seq = self.seq.plus(bytes);
        self.wire_bytes -= bytes;
        self.captured_bytes -= captured;
        self.whole = false;
        captured as usize
    }
}

struct Place {
    arrival: Arrival,
    /// First of the blocks with its payload; `NIL` when it has none.
    block: u32,
    /// Next of the same stream's list, and, in the list's first place only, the list's last.
    after: u32,
    last: u32,
    /// The queue that it stands in, and its neighbours there.
    patience: Patience,
    earlier: u32,
    later: u32,
    /// From when its patience runs, in time and in packets.
    since: Timestamp,
    since_packet: u64,
}

#[derive(Clone, Copy)]
struct Queue {
    front: u32,
    back: u32,
}

/// Early segments with their payloads in chained blocks.
pub(super) struct HeldPool {
    places: Box<[Place]>,
    free: Vec<u32>,
    bytes: Box<[u8]>,
    /// Next block of the same payload.
    chain: Box<[u32]>,
    blocks_free: Vec<u32>,
    /// Each held segment is in exactly one of them.
    queues: [Queue; Patience::ALL.len()],
    /// Packets that the owner has handled.
    packets: u64,
}

impl HeldPool {
    pub(super) fn new(segments: usize, blocks: usize) -> HeldPool {
        let arrival = Arrival {
            seq: SeqNumber(0),
            wire_bytes: 0,
            captured_bytes: 0,
            ack: None,
            fin: false,
            whole: true,
            timestamp: Timestamp::ZERO,
            slot: NIL,
            direction: Direction::ToServer,
        };
        let place = || Place {
            arrival,
            block: NIL,
            after: NIL,
            last: NIL,
            patience: Patience::Retransmission,
            earlier: NIL,
            later: NIL,
            since: Timestamp::ZERO,
            since_packet: 0,
        };
        HeldPool {
            places: (0..segments).map(|_| place()).collect(),
            free: free_list(segments),
            bytes: vec![0; blocks * BLOCK_BYTES].into_boxed_slice(),
            chain: vec![NIL; blocks].into_boxed_slice(),
            blocks_free: free_list(blocks),
            queues: [Queue { front: NIL, back: NIL }; Patience::ALL.len()],
            packets: 0,
        }
    }

    /// Blocks that a payload of this length takes.
    pub(super) const fn blocks_for(captured_bytes: usize) -> usize {
        captured_bytes.div_ceil(BLOCK_BYTES)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.places.len()
    }

    pub(super) fn segments_in_use(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn blocks_in_use(&self) -> usize {
        self.chain.len() - self.blocks_free.len()
    }

    /// Copies a segment in; `None` when there is no room for all of it.
    pub(super) fn hold(&mut self, arrival: Arrival, payload: &[u8], patience: Patience) -> Option<u32> {
        debug_assert_eq!(arrival.captured_bytes as usize, payload.len());
        if self.free.is_empty() || self.blocks_free.len() < HeldPool::blocks_for(payload.len()) {
            return None;
        }
        let id = self.free.pop()?;
        let mut first = NIL;
        // From the last block to the first, so that each knows its successor.
        for part in payload.chunks(BLOCK_BYTES).rev() {
            let block = self.blocks_free.pop()?;
            let start = block as usize * BLOCK_BYTES;
            self.bytes[start..start + part.len()].copy_from_slice(part);
            self.chain[block as usize] = first;
            first = block;
        }
        let place = &mut self.places[id as usize];
        place.arrival = arrival;
        place.block = first;
        place.after = NIL;
        place.last = id;
        self.enqueue(id, patience, arrival.timestamp);
        Some(id)
    }

    /// Gives a segment and its blocks back.
    pub(super) fn release(&mut self, id: u32) {
        self.dequeue(id);
        let mut block = self.places[id as usize].block;
        while block != NIL {
            self.blocks_free.push(block);
            block = self.chain[block as usize];
        }
        self.free.push(id);
    }

    pub(super) fn arrival(&self, id: u32) -> &Arrival {
        &self.places[id as usize].arrival
    }

    /// The last of the list that begins at `head`; `NIL` of an empty list.
    pub(super) fn last(&self, head: u32) -> u32 {
        if head == NIL { NIL } else { self.places[head as usize].last }
    }

    /// The list that begins at `head`, in its order.
    pub(super) fn list(&self, head: u32) -> impl Iterator<Item = u32> {
        let mut next = head;
        std::iter::from_fn(move || {
            let id = next;
            (id != NIL).then(|| {
                next = self.places[id as usize].after;
                id
            })
        })
    }

    /// Puts `id` into the list that begins at `head`, behind `before` (`NIL`: in front). Returns the list's new head.
    pub(super) fn link(&mut self, head: u32, before: u32, id: u32) -> u32 {
        let last = self.last(head);
        if before == NIL {
            let place = &mut self.places[id as usize];
            place.after = head;
            place.last = if head == NIL { id } else { last };
            return id;
        }
        let after = std::mem::replace(&mut self.places[before as usize].after, id);
        self.places[id as usize].after = after;
        if before == last {
            self.places[head as usize].last = id;
        }
        head
    }

    /// Takes `id`, which follows `before` (`NIL`: the first), out of the list that begins at `head`; it stays held.
    /// Returns the list's new head.
    pub(super) fn unlink(&mut self, head: u32, before: u32, id: u32) -> u32 {
        let after = self.places[id as usize].after;
        let last = self.places[head as usize].last;
        if before == NIL {
            if after != NIL {
                self.places[after as usize].last = last;
            }
            return after;
        }
        self.places[before as usize].after = after;
        if last == id {
            self.places[head as usize].last = before;
        }
        head
    }

    pub(super) fn patience(&self, id: u32) -> Patience {
        self.places[id as usize].patience
    }

    /// The payload, block by block.
    pub(super) fn payload(&self, id: u32) -> impl Iterator<Item = &[u8]> {
        let place = &self.places[id as usize];
        let (mut block, mut left) = (place.block, place.arrival.captured_bytes as usize);
        std::iter::from_fn(move || {
            if block == NIL {
                return None;
            }
            let start = block as usize * BLOCK_BYTES;
            let length = left.min(BLOCK_BYTES);
            left -= length;
            block = self.chain[block as usize];
            Some(&self.bytes[start..start + length])
        })
    }

    /// Moves a segment to the back of a queue: its patience runs from `since`.
    pub(super) fn requeue(&mut self, id: u32, patience: Patience, since: Timestamp) {
        self.dequeue(id);
        self.enqueue(id, patience, since);
    }

    /// Another packet is being handled.
    #[inline(always)]
    pub(super) fn count_packet(&mut self) {
        self.packets += 1;
    }

    /// The segment whose patience ends first in this queue, from when it runs, and how many packets have been handled since.
    pub(super) fn front(&self, patience: Patience) -> Option<(u32, Timestamp, u64)> {
        let id = self.queues[patience as usize].front;
        (id != NIL).then(|| {
            let place = &self.places[id as usize];
            (id, place.since, self.packets - place.since_packet)
        })
    }

    fn enqueue(&mut self, id: u32, patience: Patience, since: Timestamp) {
        let queue = &mut self.queues[patience as usize];
        let earlier = queue.back;
        queue.back = id;
        if earlier == NIL {
            queue.front = id;
        } else {
            self.places[earlier as usize].later = id;
        }
        let place = &mut self.places[id as usize];
        place.patience = patience;
        place.since = since;
        place.since_packet = self.packets;
        place.earlier = earlier;
        place.later = NIL;
    }

    fn dequeue(&mut self, id: u32) {
        let Place { patience, earlier, later, .. } = self.places[id as usize];
        let queue = &mut self.queues[patience as usize];
        if earlier == NIL {
            queue.front = later;
        }
        if later == NIL {
            queue.back = earlier;
        }
        if earlier != NIL {
            self.places[earlier as usize].later = later;
        }
        if later != NIL {
            self.places[later as usize].earlier = earlier;
        }
    }
}

/// All of `count` numbers, the lowest to be taken first.
pub(super) fn free_list(count: usize) -> Vec<u32> {
    let count = u32::try_from(count).expect("limits of pools and tables are below 2^32");
    (0..count).rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival(timestamp: u64, captured_bytes: u32) -> Arrival {
        Arrival {
            seq: SeqNumber(0),
            wire_bytes: captured_bytes,
            captured_bytes,
            ack: None,
            fin: false,
            whole: true,
            timestamp: Timestamp::from_nanos(timestamp),
            slot: 0,
            direction: Direction::ToClient,
        }
    }

    #[test]
    fn a_payload_comes_back_whole_and_its_blocks_return() {
        let mut pool = HeldPool::new(4, 40);
        for length in [0u32, 1, 2047, 2048, 2049, 65_536] {
            let payload: Vec<u8> = (0..length).map(|byte| (byte % 251) as u8).collect();
            let id = pool.hold(arrival(1, length), &payload, Patience::Retransmission).unwrap();
            assert_eq!(pool.blocks_in_use(), HeldPool::blocks_for(payload.len()));
            assert_eq!(pool.payload(id).collect::<Vec<_>>().concat(), payload);
            pool.release(id);
            assert!(pool.is_empty() && pool.blocks_in_use() == 0);
        }
        assert!(pool.hold(arrival(1, 2048 * 41), &[0; 2048 * 41], Patience::Retransmission).is_none());
        assert!(pool.is_empty() && pool.blocks_in_use() == 0);
    }

    #[test]
    fn queues_keep_order_through_moves_and_releases() {
        let mut pool = HeldPool::new(4, 4);
        let [a, b, c] =
            [1, 2, 3].map(|at| pool.hold(arrival(at, 1), b"x", Patience::Retransmission).unwrap());
        pool.requeue(a, Patience::Reordering, Timestamp::from_nanos(9));
        assert_eq!(pool.front(Patience::Retransmission), Some((b, Timestamp::from_nanos(2), 0)));
        assert_eq!(pool.front(Patience::Reordering), Some((a, Timestamp::from_nanos(9), 0)));
        pool.release(b);
        assert_eq!(pool.front(Patience::Retransmission), Some((c, Timestamp::from_nanos(3), 0)));
        pool.release(c);
        pool.release(a);
        assert!(Patience::ALL.iter().all(|&patience| pool.front(patience).is_none()));
    }

    #[test]
    fn a_carry_is_filled_and_emptied_from_the_front() {
        let mut pool = CarryPool::new(1);
        let carry = pool.take().unwrap();
        assert!(pool.take().is_none());
        assert_eq!(pool.append(carry, &[b'a'; 2000]), 2000);
        assert_eq!(pool.append(carry, &[b'b'; 100]), 48);
        pool.remove_front(carry, 1999);
        assert_eq!(pool.bytes(carry)[..3], *b"abb");
        pool.release(carry);
        assert_eq!(pool.in_use(), 0);
    }
}

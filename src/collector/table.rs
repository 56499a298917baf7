//! The table of hot things: 8-way set-associative Space-Saving over byte strings, keys and clients alike.
//!
//! Exact while it fits; afterwards every row carries `err` with `own requests <= truth <= own requests + err`, and whatever is not
//! in the table had at most `floor()` requests. `err == 0` means that every figure of the row is exact. An update
//! touches one header line and one slot (two header lines for some), never allocates, and never takes longer than that.
//!
//! A key lives in one of its two buckets. The second one is tried only when the first is getting full and has never evicted;
//! the first remembers in `filter` that some key of it went there. What is evicted is the row of least *weight*, which is
//! requests plus shares of bytes, misses and errors, so that the hottest by any of them stay. Bounds do not hang
//! on the weight: `Bucket::floor` is the most requests that an evicted row of the bucket can have had, and a key that
//! comes (back) gets the floors of the buckets where it may have been before as its `err`.

use super::arena::{Arena, Region, prefetch};
use super::snapshot::Counters;
use super::spill::Chunks;
use crate::model::{CommandClass, Outcome};
use crate::parser::Observation;

/// Slots in a bucket.
pub(super) const WAYS: usize = 8;

/// Rows in the first bucket from which on a new key prefers an emptier second one.
const SPREAD_FROM: u32 = 5;

/// Weight of one request.
pub(super) const REQUEST_WEIGHT: u32 = 16;

/// Key bytes inside a slot.
pub(super) const INLINE_BYTES: usize = 43;

/// Longest key. memcached has no longer ones.
pub(super) const KEY_BYTES_MAX: usize = 250;

/// `Slot::next` of a key whose end found no chunk.
const TRUNCATED: u32 = u32::MAX;

/// Where the counts stand in `Slot::counts`; the first six sum to the requests.
const GETS: usize = 0;
const STORES: usize = 1;
const DELETES: usize = 2;
const TOUCHES: usize = 3;
const ARITHMETIC: usize = 4;
const OTHER: usize = 5;
const HITS: usize = 6;
const MISSES: usize = 7;
const ERRORS: usize = 8;
const SAMPLES: usize = 9;
const COUNTS: usize = 10;

/// The first line of a bucket.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Bucket {
    /// 0: the way is empty. Otherwise at least `REQUEST_WEIGHT` times the row's upper bound of requests (or saturated).
    weight: [u32; WAYS],
    /// 16 bits of each row's hash.
    tag: [u16; WAYS],
    /// The bucket is empty, whatever it says, unless this is the table's epoch.
    epoch: u32,
    /// Most requests that a row evicted from here can have had; 0: none was, and only then may a way be empty.
    floor: u32,
    /// A bit for each key of this bucket that went to its second one. Never cleared within an epoch.
    filter: u32,
    unused: u32,
}

/// A row.
#[derive(Clone, Copy)]
#[repr(C, align(128))]
pub(super) struct Slot {
    /// The key's whole hash.
    pub(super) hash: u64,
    bytes_in: u64,
    bytes_out: u64,
    latency_sum: u64,
    /// Most requests of this key before it came here.
    pub(super) err: u32,
    counts: [u32; COUNTS],
    latency_max: u32,
    /// 0 or the chain of the key's bytes after the first [`INLINE_BYTES`]. In a harvest: where they start.
    next: u32,
    /// Of the whole key.
    length: u8,
    key: [u8; INLINE_BYTES],
}

const _: () = assert!(size_of::<Bucket>() == 64 && size_of::<Slot>() == 128);

/// What one observation adds to a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Delta {
    bytes_in: u64,
    bytes_out: u64,
    /// Microseconds, when `timed`.
    latency: u32,
    class: u8,
    hit: bool,
    miss: bool,
    error: bool,
    timed: bool,
}

impl Delta {
    /// Of nothing.
    pub(super) const NONE: Delta = Delta {
        bytes_in: 0,
        bytes_out: 0,
        latency: 0,
        class: 0,
        hit: false,
        miss: false,
        error: false,
        timed: false,
    };

    /// Of a keyed observation.
    #[inline]
    pub(super) fn of(observation: &Observation<'_>) -> Delta {
        let class = match observation.command.class() {
            CommandClass::Retrieval => GETS,
            CommandClass::Storage => STORES,
            CommandClass::Deletion => DELETES,
            CommandClass::Touch => TOUCHES,
            CommandClass::Arithmetic => ARITHMETIC,
            CommandClass::Other | CommandClass::Keyless => OTHER,
        };
        let get = class == GETS;
        let micros =
            observation.latency.map(|latency| u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
        Delta {
            bytes_in: observation.request_bytes,
            bytes_out: observation.response_bytes,
            latency: micros.unwrap_or(0),
            class: class as u8,
            hit: get && observation.outcome == Outcome::Hit,
            miss: get && observation.outcome == Outcome::Miss,
            error: matches!(observation.outcome, Outcome::Error | Outcome::TooLarge),
            timed: micros.is_some(),
        }
    }

    /// What it weighs for staying in the table, at a given weight of 2^16 bytes.
    #[inline]
    pub(super) fn weight(&self, weight_of_64k: u64) -> u32 {
        let bytes = self.bytes_in.saturating_add(self.bytes_out).min(1 << 32);
        let share = (bytes * weight_of_64k) >> 16;
        let rare = u32::from(self.miss) * REQUEST_WEIGHT + u32::from(self.error) * 4 * REQUEST_WEIGHT;
        // One enormous value must not outweigh a million requests.
        REQUEST_WEIGHT + rare + share.min(1 << 20) as u32
    }
}

#[inline(always)]
fn bump(count: &mut u32, by: bool) {
    *count = count.saturating_add(u32::from(by));
}

impl Slot {
    #[inline(always)]
    fn apply(&mut self, delta: &Delta) {
        bump(&mut self.counts[delta.class as usize % COUNTS], true);
        bump(&mut self.counts[HITS], delta.hit);
        bump(&mut self.counts[MISSES], delta.miss);
        bump(&mut self.counts[ERRORS], delta.error);
        bump(&mut self.counts[SAMPLES], delta.timed);
        self.latency_max = self.latency_max.max(delta.latency);
        self.latency_sum += u64::from(delta.latency);
        self.bytes_in = self.bytes_in.saturating_add(delta.bytes_in);
        self.bytes_out = self.bytes_out.saturating_add(delta.bytes_out);
    }

    /// Upper bound of the key's requests.
    #[inline(always)]
    fn upper(&self) -> u32 {
        self.counts[..HITS].iter().fold(self.err, |sum, &count| sum.saturating_add(count))
    }

    /// The row's own figures: exact since the key came, lower bounds of the whole.
    pub(super) fn counters(&self) -> Counters {
        let count = |at: usize| u64::from(self.counts[at]);
        Counters {
            gets: count(GETS),
            hits: count(HITS),
            misses: count(MISSES),
            stores: count(STORES),
            deletes: count(DELETES),
            touches: count(TOUCHES),
            arithmetic: count(ARITHMETIC),
            other: count(OTHER),
            errors: count(ERRORS),
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            latency_sum_us: self.latency_sum,
            latency_samples: count(SAMPLES),
            latency_max_us: u64::from(self.latency_max),
        }
    }

    /// The key's bytes in a harvested row (all, or those that were kept) and whether some are missing.
    pub(super) fn key<'a>(&'a self, tails: &'a [u8]) -> (&'a [u8], &'a [u8], bool) {
        let length = usize::from(self.length);
        let inline = &self.key[..length.min(INLINE_BYTES)];
        if length <= INLINE_BYTES {
            return (inline, &[], false);
        }
        if self.next == TRUNCATED {
            return (inline, &[], true);
        }
        let start = self.next as usize;
        (inline, &tails[start..start + length - INLINE_BYTES], false)
    }

    /// Length of the whole key, also where not all of it is held.
    pub(super) fn key_length(&self) -> usize {
        usize::from(self.length)
    }
}

impl Bucket {
    #[inline(always)]
    fn filled(&self) -> u32 {
        self.weight.iter().map(|&weight| u32::from(weight != 0)).sum()
    }

    /// The way of least weight; an empty one if there is one.
    #[inline(always)]
    fn lightest(&self) -> usize {
        let packed = |way: usize| (u64::from(self.weight[way]) << 3) | way as u64;
        ((1..WAYS).fold(packed(0), |least, way| least.min(packed(way))) & 7) as usize
    }

    /// A bit for each way with this tag.
    #[inline(always)]
    fn matching(&self, tag: u16) -> u32 {
        (0..WAYS).fold(0, |mask, way| mask | (u32::from(self.tag[way] == tag) << way))
    }
}

/// Never 0, which is the tag of an empty way.
#[inline(always)]
fn tag_of(hash: u64) -> u16 {
    hash as u16 | 1
}

#[inline(always)]
fn filter_bit(hash: u64) -> u32 {
    1 << ((hash >> 16) & 31)
}

/// Spreads a hash over `count` places by its upper bits.
#[inline(always)]
pub(super) fn place(hash: u64, count: usize) -> usize {
    ((u128::from(hash) * count as u128) >> 64) as usize
}

#[inline(always)]
fn second_place(hash: u64, count: usize) -> usize {
    place(hash.wrapping_mul(0xd6e8_feb8_6659_fd93).rotate_left(29), count)
}

/// Where a row is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place(usize);

/// Bytes that a table of `buckets` buckets takes of an arena, chunks aside.
pub(super) const BUCKET_BYTES: usize = size_of::<Bucket>() + WAYS * size_of::<Slot>();

/// The table.
pub(super) struct Table {
    buckets: Region<Bucket>,
    /// `WAYS` for each bucket. Meaningless where the bucket is of another epoch or the way's weight is 0.
    slots: Region<Slot>,
    /// Every used chunk belongs to the chain of one row of this epoch.
    chunks: Chunks,
    /// Never 0.
    epoch: u32,
    /// Rows of this epoch.
    live: u64,
    /// Rows pushed out in this epoch.
    evictions: u64,
    /// Greatest `Bucket::floor` of this epoch.
    floor: u32,
}

impl Table {
    /// A table in an arena that has room for it.
    pub(super) fn new(arena: &mut Arena, buckets: usize, chunks: usize) -> Option<Table> {
        let slots = arena.carve(buckets * WAYS)?;
        let buckets = arena.carve(buckets)?;
        let chunks = Chunks::new(arena, chunks)?;
        Some(Table { buckets, slots, chunks, epoch: 1, live: 0, evictions: 0, floor: 0 })
    }

    /// Rows that it can hold.
    pub(super) fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Forgets every row, in no time: buckets find out when they are used.
    pub(super) fn next_epoch(&mut self) {
        if self.epoch == u32::MAX {
            // What was written in the first epochs of this run must not look like new.
            self.buckets.iter_mut().for_each(|bucket| bucket.epoch = 0);
            self.epoch = 0;
        }
        self.epoch += 1;
        self.chunks.clear();
        (self.live, self.evictions, self.floor) = (0, 0, 0);
    }

    /// Counts one request of a key of at most [`KEY_BYTES_MAX`] bytes; returns where its row is until the next update.
    #[inline]
    pub(super) fn update(&mut self, hash: u64, key: &[u8], delta: &Delta, weight: u32) -> Place {
        debug_assert!(key.len() <= KEY_BYTES_MAX);
        let first = place(hash, self.buckets.len());
        self.refresh(first);
        match self.find(first, hash, key) {
            Some(way) => self.again(Place(first * WAYS + way), delta, weight),
            None => self.miss(first, hash, key, delta, weight),
        }
    }

    /// Counts one more request of the key whose row the last update left in this place.
    #[inline(always)]
    pub(super) fn again(&mut self, place: Place, delta: &Delta, weight: u32) -> Place {
        let sum = &mut self.buckets[place.0 / WAYS].weight[place.0 % WAYS];
        *sum = sum.saturating_add(weight);
        self.slots[place.0].apply(delta);
        place
    }

    /// Upper bound of the requests of the key whose row the last update left in this place.
    #[inline(always)]
    pub(super) fn requests(&self, place: Place) -> u32 {
        self.slots[place.0].upper()
    }

    /// Makes a bucket one of this epoch.
    #[inline(always)]
    fn refresh(&mut self, at: usize) {
        let epoch = self.epoch;
        let bucket = &mut self.buckets[at];
        if bucket.epoch != epoch {
            *bucket = Bucket { weight: [0; WAYS], tag: [0; WAYS], epoch, floor: 0, filter: 0, unused: 0 };
        }
    }

    #[inline(always)]
    fn find(&self, at: usize, hash: u64, key: &[u8]) -> Option<usize> {
        let mut mask = self.buckets[at].matching(tag_of(hash));
        while mask != 0 {
            let way = mask.trailing_zeros() as usize;
            let slot = &self.slots[at * WAYS + way];
            if slot.hash == hash && self.holds(slot, key) {
                return Some(way);
            }
            mask &= mask - 1;
        }
        None
    }

    /// Whether a slot with the key's hash is the key's: by all bytes that it has.
    #[inline(always)]
    fn holds(&self, slot: &Slot, key: &[u8]) -> bool {
        if usize::from(slot.length) != key.len() {
            return false;
        }
        match key.split_at_checked(INLINE_BYTES) {
            None => slot.key[..key.len()] == *key,
            Some((head, tail)) => {
                slot.key == *head && (slot.next == TRUNCATED || self.chunks.equals(slot.next, tail))
            }
        }
    }

    /// The key is not in its first bucket.
    fn miss(&mut self, first: usize, hash: u64, key: &[u8], delta: &Delta, weight: u32) -> Place {
        let bit = filter_bit(hash);
        let bucket = &self.buckets[first];
        let (filled, mut err) = (bucket.filled(), bucket.floor);
        let went_there = bucket.filter & bit != 0;
        let spread = filled >= SPREAD_FROM && bucket.floor == 0;
        let mut at = first;
        if went_there || spread {
            let second = second_place(hash, self.buckets.len());
            self.refresh(second);
            if went_there {
                if let Some(way) = self.find(second, hash, key) {
                    return self.again(Place(second * WAYS + way), delta, weight);
                }
                err = err.max(self.buckets[second].floor);
            }
            if spread && self.buckets[second].filled() < filled {
                at = second;
                self.buckets[first].filter |= bit;
            }
        }
        self.insert(at, hash, key, err, delta, weight)
    }

    /// Puts a key in place of the lightest row of a bucket.
    fn insert(&mut self, at: usize, hash: u64, key: &[u8], err: u32, delta: &Delta, weight: u32) -> Place {
        let way = self.buckets[at].lightest();
        let least = self.buckets[at].weight[way];
        if least == 0 {
            self.live += 1;
        } else {
            self.evict(at, way);
        }
        let next = self.store_tail(key);
        let slot = &mut self.slots[at * WAYS + way];
        let inline = key.len().min(INLINE_BYTES);
        *slot = Slot { hash, err, next, length: key.len() as u8, ..EMPTY };
        slot.key[..inline].copy_from_slice(&key[..inline]);
        slot.apply(delta);
        let bucket = &mut self.buckets[at];
        bucket.tag[way] = tag_of(hash);
        // Space-Saving's rule: a newcomer weighs what it may have weighed before, so that it is not the next to go.
        bucket.weight[way] = least.max(err.saturating_mul(REQUEST_WEIGHT)).saturating_add(weight);
        Place(at * WAYS + way)
    }

    fn evict(&mut self, at: usize, way: usize) {
        let slot = &self.slots[at * WAYS + way];
        let (upper, chain) = (slot.upper(), slot.next);
        if chain != TRUNCATED {
            self.chunks.release(chain);
        }
        let bucket = &mut self.buckets[at];
        bucket.floor = bucket.floor.max(upper);
        self.floor = self.floor.max(upper);
        self.evictions += 1;
    }

    fn store_tail(&mut self, key: &[u8]) -> u32 {
        match key.split_at_checked(INLINE_BYTES) {
            None | Some((_, [])) => 0,
            Some((_, tail)) => self.chunks.store(tail).unwrap_or(TRUNCATED),
        }
    }

    /// First step towards a quick update: fetches the header.
    #[inline(always)]
    pub(super) fn prefetch_bucket(&self, hash: u64) {
        prefetch(&self.buckets[place(hash, self.buckets.len())]);
    }

    /// Second step, when the header has come: fetches the likely slot, or the second header. True: a third step is needed.
    #[inline(always)]
    pub(super) fn prefetch_slot(&self, hash: u64) -> bool {
        let at = place(hash, self.buckets.len());
        let bucket = &self.buckets[at];
        if bucket.epoch != self.epoch {
            prefetch(&self.slots[at * WAYS]);
            return false;
        }
        let mask = bucket.matching(tag_of(hash));
        if mask != 0 {
            prefetch(&self.slots[at * WAYS + mask.trailing_zeros() as usize]);
            return false;
        }
        if bucket.filter & filter_bit(hash) != 0 || (bucket.floor == 0 && bucket.filled() >= SPREAD_FROM) {
            prefetch(&self.buckets[second_place(hash, self.buckets.len())]);
            return true;
        }
        prefetch(&self.slots[at * WAYS + bucket.lightest()]);
        false
    }

    /// Third step: fetches the slot of a key that may be in its second bucket.
    #[inline(always)]
    pub(super) fn prefetch_second(&self, hash: u64) {
        let first = place(hash, self.buckets.len());
        let second = second_place(hash, self.buckets.len());
        let bucket = &self.buckets[second];
        let fresh = bucket.epoch != self.epoch;
        let mask = bucket.matching(tag_of(hash));
        let slot = if fresh {
            second * WAYS
        } else if mask != 0 {
            second * WAYS + mask.trailing_zeros() as usize
        } else if self.buckets[first].floor == 0 && bucket.filled() < self.buckets[first].filled() {
            second * WAYS + bucket.lightest()
        } else {
            first * WAYS + self.buckets[first].lightest()
        };
        prefetch(&self.slots[slot]);
    }

    /// Chooses the `limit` heaviest rows (all without one) as (weight, slot), in the order of their slots. Returns the most
    /// requests that one of the others can have.
    fn choose(&self, limit: Option<usize>, chosen: &mut Vec<(u32, u32)>) -> u32 {
        chosen.clear();
        if self.live == 0 {
            return 0;
        }
        let (limit, mut least) = (limit.unwrap_or(usize::MAX), 0);
        let full = limit.saturating_mul(2).saturating_add(WAYS);
        for (at, bucket) in self.buckets.iter().enumerate().filter(|(_, bucket)| bucket.epoch == self.epoch) {
            for (way, &weight) in bucket.weight.iter().enumerate().filter(|&(_, &weight)| weight > least) {
                chosen.push((weight, (at * WAYS + way) as u32));
            }
            if chosen.len() + WAYS > full {
                least = cut(chosen, limit);
            }
        }
        if chosen.len() > limit {
            least = cut(chosen, limit);
        }
        chosen.sort_unstable_by_key(|&(_, slot)| slot);
        // A saturated weight says nothing about the row any more.
        if least == u32::MAX { u32::MAX } else { least / REQUEST_WEIGHT }
    }

    /// Copies the heaviest rows out.
    pub(super) fn harvest(&self, limit: Option<usize>, into: &mut Rows) {
        into.rows.clear();
        into.tails.clear();
        let left_behind = self.choose(limit, &mut into.chosen);
        for (index, &(_, at)) in into.chosen.iter().enumerate() {
            if let Some(&(_, ahead)) = into.chosen.get(index + 16) {
                prefetch(&self.slots[ahead as usize]);
            }
            let mut slot = self.slots[at as usize];
            if slot.next != 0 && slot.next != TRUNCATED {
                let start = into.tails.len() as u32;
                self.chunks.copy(slot.next, usize::from(slot.length) - INLINE_BYTES, &mut into.tails);
                slot.next = start;
            }
            into.rows.push(slot);
        }
        (into.live, into.evictions) = (self.live, self.evictions);
        into.bound = u64::from(self.floor.max(left_behind));
    }
}

/// A slot without a row.
const EMPTY: Slot = Slot {
    hash: 0,
    bytes_in: 0,
    bytes_out: 0,
    latency_sum: 0,
    err: 0,
    counts: [0; COUNTS],
    latency_max: 0,
    next: 0,
    length: 0,
    key: [0; INLINE_BYTES],
};

/// Keeps the `limit` greatest of more than that; returns the greatest that went.
pub(super) fn cut<T: Copy>(chosen: &mut Vec<(u32, T)>, limit: usize) -> u32 {
    let (_, &mut (least, _), _) = chosen.select_nth_unstable_by(limit, |a, b| b.0.cmp(&a.0));
    chosen.truncate(limit);
    least
}

/// A table's rows of one interval, copied out.
#[derive(Default)]
pub(super) struct Rows {
    /// In no particular order.
    pub(super) rows: Vec<Slot>,
    /// The ends of long keys, one after the other.
    pub(super) tails: Vec<u8>,
    /// Rows that the table held.
    pub(super) live: u64,
    /// Rows that it pushed out.
    pub(super) evictions: u64,
    /// Most requests of a key that is not among the rows.
    pub(super) bound: u64,
    chosen: Vec<(u32, u32)>,
}

impl Rows {
    /// With room for `limit` rows, so that harvests do not allocate (but for the ends of long keys).
    pub(super) fn new(limit: Option<usize>) -> Rows {
        let limit = limit.unwrap_or(0);
        Rows {
            rows: Vec::with_capacity(limit),
            chosen: Vec::with_capacity(2 * limit + 2 * WAYS),
            ..Rows::default()
        }
    }

    /// Of a table that there is not.
    pub(super) fn clear(&mut self) {
        self.rows.clear();
        self.tails.clear();
        (self.live, self.evictions, self.bound) = (0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    impl Table {
        /// A table of its own, in the given epoch.
        pub(in crate::collector) fn alone(buckets: usize, chunks: usize, epoch: u32) -> Table {
            let mut arena = Arena::new(buckets * BUCKET_BYTES + chunks * 64 + 256).unwrap();
            Table { epoch, ..Table::new(&mut arena, buckets, chunks).unwrap() }
        }

        fn rows(&self) -> Rows {
            let mut rows = Rows::default();
            self.harvest(None, &mut rows);
            rows
        }

        /// Most requests of a key that is not in the table, by its own buckets.
        fn floor_of(&self, hash: u64) -> u32 {
            let bucket = |at: usize| Some(&self.buckets[at]).filter(|bucket| bucket.epoch == self.epoch);
            let Some(first) = bucket(place(hash, self.buckets.len())) else { return 0 };
            let second = bucket(second_place(hash, self.buckets.len())).map_or(0, |bucket| bucket.floor);
            if first.filter & filter_bit(hash) != 0 { first.floor.max(second) } else { first.floor }
        }

        /// The invariants that stand beside the fields.
        fn check(&self) {
            let live = self.buckets.iter().enumerate().filter(|(_, bucket)| bucket.epoch == self.epoch);
            let (mut rows, mut chunks) = (0, 0);
            for (at, bucket) in live {
                assert!(bucket.floor == 0 || bucket.filled() == WAYS as u32);
                assert!(bucket.floor <= self.floor);
                for way in (0..WAYS).filter(|&way| bucket.weight[way] != 0) {
                    let slot = &self.slots[at * WAYS + way];
                    rows += 1;
                    if slot.length as usize > INLINE_BYTES && slot.next != TRUNCATED {
                        chunks += (slot.length as usize - INLINE_BYTES).div_ceil(60);
                    }
                    assert!(bucket.weight[way] >= slot.upper().saturating_mul(REQUEST_WEIGHT));
                    assert_eq!(bucket.tag[way], tag_of(slot.hash));
                    let (first, second) =
                        (place(slot.hash, self.buckets.len()), second_place(slot.hash, self.buckets.len()));
                    let went_there = self.buckets[first].filter & filter_bit(slot.hash) != 0;
                    assert!(at == first || (at == second && went_there));
                }
            }
            assert_eq!(rows, self.live);
            assert_eq!(chunks + self.chunks.available(), self.chunks.len());
        }
    }

    fn mix(number: u64, seed: u64) -> u64 {
        let mixed = (number ^ seed).wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 29)).wrapping_mul(0x94d0_49bb_1331_11eb) ^ (mixed >> 32)
    }

    fn key_of(number: u16) -> Vec<u8> {
        let length = [2, 42, 43, 44, 59, 60, 103, 104, 250][usize::from(number) % 9];
        let mut key = vec![0; length];
        key[length - 2..].copy_from_slice(&number.to_be_bytes());
        key
    }

    fn delta(class: usize, bytes: u64) -> Delta {
        Delta {
            class: class as u8,
            bytes_in: bytes,
            hit: class == GETS,
            timed: true,
            latency: 3,
            ..Delta::NONE
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 96,
            max_shrink_iters: 200,
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        /// One to six buckets, a few chunks, several epochs over the wrap: against a map.
        #[test]
        fn rows_hold_their_bounds(
            epochs in prop::collection::vec(
                prop::collection::vec((0u16..150, 0u16..150, 0usize..6, 0u64..5_000), 0..900), 1..5),
            buckets in 1usize..7,
            chunks in 0usize..12,
            seed: u64,
            same_bucket: bool,
        ) {
            let mut table = Table::alone(buckets, chunks, u32::MAX - 2);
            // Only the lowest bits differ: everything goes to the first bucket, and much of it has the same tag.
            let hash = |number: u16| if same_bucket { u64::from(number) } else { mix(u64::from(number), seed) };
            for asks in epochs {
                let mut model: BTreeMap<u16, Counters> = BTreeMap::new();
                for (a, b, class, bytes) in asks {
                    let (number, delta) = (a.min(b), delta(class, bytes));
                    let place = table.update(hash(number), &key_of(number), &delta, delta.weight(2_000));
                    let upper = table.requests(place);
                    let truth = model.entry(number).or_default();
                    let mut slot = EMPTY;
                    slot.apply(&delta);
                    truth.merge(&slot.counters());
                    prop_assert!(u64::from(upper) >= truth.requests());
                }
                table.check();
                let harvest = table.rows();
                let mut certain = 0;
                for slot in &harvest.rows {
                    let number = (0..150).find(|&number| {
                        let (head, tail, truncated) = slot.key(&harvest.tails);
                        let key = key_of(number);
                        let whole = [head, tail].concat();
                        slot.hash == hash(number)
                            && slot.key_length() == key.len()
                            && if truncated { key.starts_with(&whole) } else { key == whole }
                    }).expect("a key that was asked for");
                    let truth = model.remove(&number).expect("no key is listed twice");
                    let own = slot.counters();
                    certain += own.requests();
                    prop_assert!(own.requests() <= truth.requests());
                    prop_assert!(truth.requests() <= own.requests() + u64::from(slot.err));
                    prop_assert!(slot.err != 0 || own == truth);
                }
                prop_assert!(table.evictions == 0 || table.floor > 0);
                for (number, truth) in &model {
                    prop_assert!(truth.requests() <= u64::from(table.floor_of(hash(*number))));
                    prop_assert!(truth.requests() <= harvest.bound);
                }
                prop_assert!(table.evictions > 0 || model.is_empty());
                prop_assert!(certain <= 900);
                table.next_epoch();
                prop_assert!(table.rows().rows.is_empty());
            }
        }

        /// What is left behind by a short harvest is bounded.
        #[test]
        fn short_harvests_are_bounded(
            asks in prop::collection::vec((0u16..200, 0u64..50_000), 1..800),
            limit in 1usize..50,
        ) {
            let mut table = Table::alone(8, 64, 1);
            let mut model: BTreeMap<u16, u64> = BTreeMap::new();
            for (number, bytes) in asks {
                let delta = delta(GETS, bytes);
                table.update(mix(u64::from(number), 1), &key_of(number), &delta, delta.weight(2_000));
                *model.entry(number).or_default() += 1;
            }
            let mut rows = Rows::default();
            table.harvest(Some(limit), &mut rows);
            prop_assert_eq!(rows.rows.len(), limit.min(table.live as usize));
            let listed: Vec<u64> = rows.rows.iter().map(|slot| slot.hash).collect();
            for (number, requests) in model {
                if !listed.contains(&mix(u64::from(number), 1)) {
                    prop_assert!(requests <= rows.bound);
                }
            }
        }
    }

    #[test]
    fn counts_stick_at_their_greatest() {
        let mut table = Table::alone(1, 0, 1);
        let once = delta(GETS, u64::MAX);
        table.update(9, b"k", &once, 1);
        table.slots[0].counts[GETS] = u32::MAX;
        table.buckets[0].weight[0] = u32::MAX - 1;
        let place = table.update(9, b"k", &once, 16);
        assert_eq!(table.requests(place), u32::MAX);
        assert_eq!((table.slots[0].counts[GETS], table.slots[0].bytes_in), (u32::MAX, u64::MAX));
        assert_eq!(table.buckets[0].weight[0], u32::MAX);
        assert!(once.weight(u64::from(u32::MAX)) <= (1 << 20) + 6 * REQUEST_WEIGHT);
    }
}

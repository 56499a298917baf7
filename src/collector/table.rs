//! The table of hot things: 8-way set-associative Space-Saving over byte strings, keys and clients alike.
//!
//! Exact while it fits; afterwards every row carries `err` with `own requests <= truth <= own requests + err`, and whatever is not
//! in the table had at most `floor()` requests. `err == 0` means that every figure of the row is exact. An update
//! touches one header line and one slot (two header lines for some), never allocates, and never takes longer than that.
//!
//! A key lives in one of its two buckets. The second one is tried only when the first is getting full and has never evicted;
//! the first remembers in `filter` that some key of it went there. What is evicted is the row of least *weight*, to which each
//! request adds what it is most of, be it request, bytes or error, so that the hottest by any of them stay. Bounds do not hang
//! on the weight: `Header::floor` is the most requests that an evicted row of the bucket can have had, and a key that
//! comes (back) gets the floors of the buckets where it may have been before as its `err`.

mod companion;

pub(super) use companion::COMPANION_BYTES;

use super::arena::{Arena, Region, equal_lanes, prefetch};
use super::kept::{Kept, rank, sample_places};
use super::short;
use super::snapshot::Counters;
use super::spill::Chunks;
use super::touched::Touched;
use crate::model::{Command, CommandClass, Outcome};
use crate::parser::Observation;
use std::ops::Range;

/// Slots in a bucket.
pub(super) const WAYS: usize = 8;

/// Rows in the first bucket from which on a new key prefers an emptier second one.
const SPREAD_FROM: u8 = 4;

/// Weight of one request.
pub(super) const REQUEST_WEIGHT: u32 = 16;

/// Key bytes inside a slot.
pub(super) const INLINE_BYTES: usize = 43;

/// Longest key. memcached has no longer ones.
pub(super) const KEY_BYTES_MAX: usize = 250;

/// `Slot::next` of a key whose end found no chunk.
const TRUNCATED: u32 = u32::MAX;

/// Where the counts stand in `Sums::counts`: requests by kind, each of one only, and what some of them were besides.
const HITS: usize = 0;
const MISSES: usize = 1;
const OTHER_GETS: usize = 2;
const STORES: usize = 3;
const DELETES: usize = 4;
const TOUCHES: usize = 5;
const ARITHMETIC: usize = 6;
const OTHER: usize = 7;
const KINDS: usize = 8;
const ERRORS: usize = 8;
const SAMPLES: usize = 9;
const COUNTS: usize = 10;

/// The kind of a request by its command and its outcome: looked up, since what comes next cannot be foreseen.
static KIND_OF: [[u8; Outcome::COUNT]; Command::COUNT] = {
    let mut kinds = [[OTHER as u8; Outcome::COUNT]; Command::COUNT];
    let mut command = 0;
    while command < Command::COUNT {
        let kind = match Command::ALL[command].class() {
            CommandClass::Retrieval => OTHER_GETS,
            CommandClass::Storage => STORES,
            CommandClass::Deletion => DELETES,
            CommandClass::Touch => TOUCHES,
            CommandClass::Arithmetic => ARITHMETIC,
            CommandClass::Other | CommandClass::Keyless => OTHER,
        };
        kinds[command] = [kind as u8; Outcome::COUNT];
        if kind == OTHER_GETS {
            kinds[command][Outcome::Hit.index()] = HITS as u8;
            kinds[command][Outcome::Miss.index()] = MISSES as u8;
        }
        command += 1;
    }
    kinds
};

/// What there is to know of a bucket's rows without a look at them.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Header {
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
    /// A bit for each way whose key has a chain of chunks.
    chained: u8,
    /// Ways that hold a row: the first ones. Never sinks within an epoch.
    filled: u8,
    _unused: u16,
}

/// What requests add up to.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Sums {
    bytes_in: u64,
    bytes_out: u64,
    latency_sum: u64,
    counts: [u32; COUNTS],
    latency_max: u32,
    /// Most requests that came before these and are not among them.
    pub(super) err: u32,
}

/// A row.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Slot {
    /// The key's whole hash.
    pub(super) hash: u64,
    pub(super) sums: Sums,
    /// 0 or the chain of the key's bytes after the first [`INLINE_BYTES`]. In a harvest: where they start.
    next: u32,
    /// Of the whole key.
    length: u8,
    /// And the row's companion behind it, in a table of such.
    key: [u8; INLINE_BYTES],
}

/// A bucket with its rows, side by side: whoever has fetched the header has its address translation, and that of the rows as well
/// nearly always. (Apart, the second translation was a third of what the table cost.)
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Bucket {
    header: Header,
    /// Meaningless where the bucket is of another epoch or the way's weight is 0.
    slots: [Slot; WAYS],
}

const _: () = assert!(size_of::<Header>() == 64 && size_of::<Slot>() == 128);

/// What one observation adds to a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Delta {
    bytes_in: u64,
    bytes_out: u64,
    /// Microseconds, when `timed`.
    latency: u32,
    /// Below [`KINDS`].
    kind: u8,
    error: bool,
    timed: bool,
}

impl Delta {
    /// Of nothing.
    pub(super) const NONE: Delta =
        Delta { bytes_in: 0, bytes_out: 0, latency: 0, kind: OTHER as u8, error: false, timed: false };

    /// Of a keyed observation, whose response time is given in microseconds.
    #[inline(always)]
    pub(super) fn of(observation: &Observation<'_>, micros: Option<u64>) -> Delta {
        Delta {
            bytes_in: observation.request_bytes,
            bytes_out: observation.response_bytes,
            latency: micros.map_or(0, |micros| u32::try_from(micros).unwrap_or(u32::MAX)),
            kind: KIND_OF[observation.command.index()][observation.outcome.index()],
            error: matches!(observation.outcome, Outcome::Error | Outcome::TooLarge),
            timed: micros.is_some(),
        }
    }

    /// What it weighs for staying in the table, at a given weight of 2^16 bytes: what it is most of, a request, so many bytes, or
    /// an error. (The sum would keep the heads of all rankings just as well, and would cost up to twice the error.)
    #[inline]
    pub(super) fn weight(&self, weight_of_64k: u64) -> u32 {
        let bytes = self.bytes_in.saturating_add(self.bytes_out).min(1 << 32);
        let share = (bytes * weight_of_64k) >> 16;
        // One enormous value must not outweigh a million requests. Errors are rare, and their keys are to survive.
        (REQUEST_WEIGHT << (2 * u32::from(self.error))).max(share.min(1 << 24) as u32)
    }
}

/// What can be added to sums.
pub(super) trait Addend {
    /// Adds it.
    fn add_to(&self, sums: &mut Sums);
}

impl Addend for Delta {
    #[inline(always)]
    fn add_to(&self, sums: &mut Sums) {
        bump(&mut sums.counts[usize::from(self.kind) % KINDS], true);
        if self.error {
            bump(&mut sums.counts[ERRORS], true);
        }
        bump(&mut sums.counts[SAMPLES], self.timed);
        sums.latency_max = sums.latency_max.max(self.latency);
        sums.latency_sum += u64::from(self.latency);
        sums.bytes_in = sums.bytes_in.saturating_add(self.bytes_in);
        sums.bytes_out = sums.bytes_out.saturating_add(self.bytes_out);
    }
}

/// All but `err`, which is about one row only.
impl Addend for Sums {
    fn add_to(&self, sums: &mut Sums) {
        for (mine, theirs) in sums.counts.iter_mut().zip(self.counts) {
            *mine = mine.saturating_add(theirs);
        }
        sums.latency_max = sums.latency_max.max(self.latency_max);
        sums.latency_sum += self.latency_sum;
        sums.bytes_in = sums.bytes_in.saturating_add(self.bytes_in);
        sums.bytes_out = sums.bytes_out.saturating_add(self.bytes_out);
    }
}

#[inline(always)]
fn bump(count: &mut u32, by: bool) {
    *count = count.saturating_add(u32::from(by));
}

impl Sums {
    /// Of nothing.
    pub(super) const NONE: Sums =
        Sums { bytes_in: 0, bytes_out: 0, latency_sum: 0, counts: [0; COUNTS], latency_max: 0, err: 0 };

    /// Upper bound of the requests.
    #[inline(always)]
    pub(super) fn upper(&self) -> u32 {
        self.counts[..KINDS].iter().fold(self.err, |sum, &count| sum.saturating_add(count))
    }

    /// Bytes both ways.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes_in.saturating_add(self.bytes_out)
    }

    /// The row's own figures: exact since the key came, lower bounds of the whole.
    pub(super) fn counters(&self) -> Counters {
        let count = |at: usize| u64::from(self.counts[at]);
        Counters {
            gets: count(HITS) + count(MISSES) + count(OTHER_GETS),
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
}

impl Slot {
    /// Whether the row is the key's, whose hash it has: by all bytes that it holds.
    #[inline(always)]
    fn holds(&self, key: &[u8], chunks: &Chunks) -> bool {
        if usize::from(self.length) != key.len() {
            return false;
        }
        match key.split_at_checked(INLINE_BYTES) {
            None => short::equal(&self.key[..key.len()], key),
            Some((head, tail)) => {
                self.key == *head && (self.next == TRUNCATED || chunks.equals(self.next, tail))
            }
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

impl Header {
    /// Without a row.
    fn empty(epoch: u32) -> Header {
        Header {
            weight: [0; WAYS],
            tag: [0; WAYS],
            epoch,
            floor: 0,
            filter: 0,
            chained: 0,
            filled: 0,
            _unused: 0,
        }
    }

    /// The way for a new row: an empty one if there is one, or that of least weight.
    #[inline(always)]
    fn lightest(&self) -> usize {
        if usize::from(self.filled) < WAYS {
            return usize::from(self.filled);
        }
        let packed = |way: usize| (u64::from(self.weight[way]) << 3) | way as u64;
        ((1..WAYS).fold(packed(0), |least, way| least.min(packed(way))) & 7) as usize
    }

    /// A bit for each way with this tag.
    #[inline(always)]
    fn matching(&self, tag: u16) -> u32 {
        equal_lanes(&self.tag, tag)
    }
}

impl Bucket {
    /// The way of a key that is here.
    #[inline(always)]
    fn find(&self, hash: u64, key: &[u8], chunks: &Chunks) -> Option<usize> {
        let mut mask = self.header.matching(tag_of(hash));
        while mask != 0 {
            let way = mask.trailing_zeros() as usize % WAYS;
            let slot = &self.slots[way];
            if slot.hash == hash && slot.holds(key, chunks) {
                return Some(way);
            }
            mask &= mask - 1;
        }
        None
    }

    /// Counts more of the key that has this way.
    #[inline(always)]
    fn add(&mut self, way: usize, delta: &impl Addend, weight: u32) {
        let sum = &mut self.header.weight[way];
        *sum = sum.saturating_add(weight);
        delta.add_to(&mut self.slots[way].sums);
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
pub(super) const BUCKET_BYTES: usize = size_of::<Bucket>();

/// The table.
pub(super) struct Table {
    buckets: Region<Bucket>,
    /// Every used chunk belongs to the chain of one row of this epoch, or of one that has yet to be copied out.
    chunks: Chunks,
    /// Never 0.
    epoch: u32,
    /// Rows of this epoch.
    live: u64,
    /// Rows pushed out in this epoch.
    evictions: u64,
    /// Greatest `Header::floor` of this epoch.
    floor: u32,
    /// The epoch before, while it is copied out.
    closing: Option<Closing>,
    /// Buckets, in parts.
    touched: Touched,
}

/// An epoch that has ended and whose rows are being copied out.
struct Closing {
    epoch: u32,
    rows: Rows,
}

impl Closing {
    /// Copies the closed epoch's rows out of these buckets.
    fn copy(&mut self, places: Range<usize>, buckets: &mut [Bucket], chunks: &mut Chunks) {
        let end = places.end;
        for at in places {
            // Headers are far apart: they are fetched first, and those rows that may be wanted when it is known which these are.
            const HEADERS_AHEAD: usize = 12;
            const ROWS_AHEAD: usize = 6;
            if let Some(ahead) = buckets[..end].get(at + HEADERS_AHEAD) {
                prefetch(&ahead.header);
            }
            if let Some(Bucket { header, slots }) = buckets[..end].get(at + ROWS_AHEAD)
                && header.epoch == self.epoch
            {
                for way in (0..WAYS).filter(|&way| self.rows.kept.may_want(header.weight[way])) {
                    prefetch(&slots[way]);
                }
            }
            if buckets[at].header.epoch == self.epoch {
                self.rows.take(at, &buckets[at], chunks);
                if self.epoch == u32::MAX {
                    buckets[at].header.epoch = 0;
                }
            }
        }
    }
}

impl Table {
    /// A table in an arena that has room for it.
    pub(super) fn new(arena: &mut Arena, buckets: usize, chunks: usize) -> Option<Table> {
        // So many are terabytes.
        u32::try_from(buckets).ok()?;
        let buckets = arena.carve(buckets)?;
        let chunks = Chunks::new(arena, chunks)?;
        let touched = Touched::new(buckets.len());
        Some(Table { buckets, chunks, epoch: 1, live: 0, evictions: 0, floor: 0, closing: None, touched })
    }

    /// Rows that it can hold.
    pub(super) fn capacity(&self) -> usize {
        self.buckets.len() * WAYS
    }

    /// Ends the epoch in no time: its rows are copied into `rows` by [`Table::sweep`], or before an update takes their place.
    pub(super) fn begin_close(&mut self, mut rows: Rows) {
        debug_assert!(self.closing.is_none(), "one epoch is closed at a time");
        rows.tails.clear();
        (rows.live, rows.evictions, rows.floor) = (self.live, self.evictions, self.floor);
        rows.kept.begin(self.live, self.sample());
        self.touched.begin_close();
        self.closing = Some(Closing { epoch: self.epoch, rows });
        if self.epoch == u32::MAX {
            // What was written in the first epochs must not look like new; the sweep does the same to the last one's.
            self.buckets
                .iter_mut()
                .filter(|bucket| bucket.header.epoch != u32::MAX)
                .for_each(|bucket| bucket.header.epoch = 0);
            self.epoch = 0;
        }
        self.epoch += 1;
        (self.live, self.evictions, self.floor) = (0, 0, 0);
    }

    /// Ranks of some rows, evenly spread.
    fn sample(&self) -> impl Iterator<Item = u64> {
        let buckets = sample_places(self.buckets.len()).map(|at| (at, &self.buckets[at].header));
        buckets.filter(|(_, bucket)| bucket.epoch == self.epoch).flat_map(|(at, bucket)| {
            let ways = (0..WAYS).filter(|&way| bucket.weight[way] != 0);
            ways.map(move |way| rank(bucket.weight[way], at * WAYS + way))
        })
    }

    /// Copies the closed epoch's rows out of the next `count` buckets that may have any. True: none is left to copy.
    pub(super) fn sweep(&mut self, count: usize) -> bool {
        let Table { buckets, chunks, closing, touched, .. } = self;
        let Some(closing) = closing else { return true };
        touched.sweep(count, |places| closing.copy(places, buckets, chunks))
    }

    /// The closed epoch's rows, where one was closed; copies what is left to copy.
    pub(super) fn end_close(&mut self) -> Option<Rows> {
        self.sweep(usize::MAX);
        let mut rows = self.closing.take()?.rows;
        rows.kept.end();
        // A saturated weight says nothing about the row any more.
        let left_behind = match rows.kept.weight_left_behind() {
            u32::MAX => u32::MAX,
            weight => weight / REQUEST_WEIGHT,
        };
        rows.bound = u64::from(rows.floor.max(left_behind));
        Some(rows)
    }

    /// Counts a request, or several at once, of a key of at most [`KEY_BYTES_MAX`] bytes; returns where its row is until the next update.
    pub(super) fn update(&mut self, hash: u64, key: &[u8], delta: &impl Addend, weight: u32) -> Place {
        self.update_in(self.bucket_of(hash), hash, key, delta, weight)
    }

    /// The bucket where a key belongs.
    #[inline(always)]
    pub(super) fn bucket_of(&self, hash: u64) -> u32 {
        place(hash, self.buckets.len()) as u32
    }

    /// [`Table::update`] for whoever knows [`Table::bucket_of`] the hash.
    #[inline]
    pub(super) fn update_in(
        &mut self,
        first: u32,
        hash: u64,
        key: &[u8],
        delta: &impl Addend,
        weight: u32,
    ) -> Place {
        debug_assert!(key.len() <= KEY_BYTES_MAX && first == self.bucket_of(hash));
        let first = first as usize;
        let bucket = &mut self.buckets[first];
        if bucket.header.epoch == self.epoch
            && let Some(way) = bucket.find(hash, key, &self.chunks)
        {
            bucket.add(way, delta, weight);
            return Place(first * WAYS + way);
        }
        self.miss(first, hash, key, delta, weight)
    }

    /// Upper bound of the requests of the key whose row the last update left in this place.
    #[inline(always)]
    pub(super) fn requests(&self, place: Place) -> u32 {
        self.buckets[place.0 / WAYS].slots[place.0 % WAYS].sums.upper()
    }

    /// Makes a bucket one of this epoch.
    #[inline(always)]
    fn refresh(&mut self, at: usize) {
        if self.buckets[at].header.epoch != self.epoch {
            self.renew(at);
        }
    }

    /// Empties a bucket of a former epoch, whose rows are copied out first if that is not done yet.
    fn renew(&mut self, at: usize) {
        let Table { buckets, chunks, closing, touched, .. } = self;
        if let Some(closing) = closing
            && buckets[at].header.epoch == closing.epoch
            && touched.is_ahead(at)
        {
            closing.rows.take(at, &buckets[at], chunks);
        }
        let epoch = self.epoch;
        buckets[at].header = Header::empty(epoch);
        self.touched.mark(at);
    }

    /// The key is not in its first bucket. Apart, so that keys that are need not make way in the registers.
    #[inline(never)]
    fn miss(&mut self, first: usize, hash: u64, key: &[u8], delta: &impl Addend, weight: u32) -> Place {
        self.refresh(first);
        let bit = filter_bit(hash);
        let bucket = &self.buckets[first].header;
        let (filled, mut err) = (bucket.filled, bucket.floor);
        let went_there = bucket.filter & bit != 0;
        let spread = filled >= SPREAD_FROM && bucket.floor == 0;
        let mut at = first;
        if went_there || spread {
            let second = second_place(hash, self.buckets.len());
            self.refresh(second);
            if went_there {
                let bucket = &mut self.buckets[second];
                if let Some(way) = bucket.find(hash, key, &self.chunks) {
                    bucket.add(way, delta, weight);
                    return Place(second * WAYS + way);
                }
                err = err.max(bucket.header.floor);
            }
            if spread && self.buckets[second].header.filled < filled {
                at = second;
                self.buckets[first].header.filter |= bit;
            }
        }
        self.insert(at, hash, key, err, delta, weight)
    }

    /// Puts a key in place of the lightest row of a bucket.
    fn insert(
        &mut self,
        at: usize,
        hash: u64,
        key: &[u8],
        err: u32,
        delta: &impl Addend,
        weight: u32,
    ) -> Place {
        let way = self.buckets[at].header.lightest();
        let least = self.buckets[at].header.weight[way];
        if least == 0 {
            self.live += 1;
            self.buckets[at].header.filled += 1;
        } else {
            self.evict(at, way);
        }
        let next = self.store_tail(key);
        let slot = &mut self.buckets[at].slots[way];
        let inline = key.len().min(INLINE_BYTES);
        let sums = Sums { err, ..Sums::NONE };
        *slot = Slot { hash, sums, next, length: key.len() as u8, ..EMPTY };
        short::copy(&mut slot.key, &key[..inline]);
        delta.add_to(&mut slot.sums);
        let bucket = &mut self.buckets[at].header;
        bucket.tag[way] = tag_of(hash);
        let has_chain = next != 0 && next != TRUNCATED;
        bucket.chained = bucket.chained & !(1 << way) | u8::from(has_chain) << way;
        // Space-Saving's rule: a newcomer weighs what it may have weighed before, so that it is not the next to go.
        bucket.weight[way] = least.max(err.saturating_mul(REQUEST_WEIGHT)).saturating_add(weight);
        Place(at * WAYS + way)
    }

    fn evict(&mut self, at: usize, way: usize) {
        let slot = &self.buckets[at].slots[way];
        let (upper, chain) = (slot.sums.upper(), slot.next);
        if chain != TRUNCATED {
            self.chunks.release(chain);
        }
        let bucket = &mut self.buckets[at].header;
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
    pub(super) fn prefetch_bucket(&self, bucket: u32) {
        prefetch(&self.buckets[bucket as usize].header);
    }

    /// Second step, when the header has come: fetches the likely slot, or the second header. True: a third step is needed.
    #[inline(always)]
    pub(super) fn prefetch_slot(&self, bucket: u32, hash: u64) -> bool {
        let Bucket { header, slots } = &self.buckets[bucket as usize];
        if header.epoch != self.epoch {
            prefetch(&slots[0]);
            return false;
        }
        let mask = header.matching(tag_of(hash));
        if mask != 0 {
            prefetch(&slots[mask.trailing_zeros() as usize % WAYS]);
            return false;
        }
        if header.filter & filter_bit(hash) != 0 || (header.floor == 0 && header.filled >= SPREAD_FROM) {
            prefetch(&self.buckets[second_place(hash, self.buckets.len())].header);
            return true;
        }
        prefetch(&slots[header.lightest()]);
        false
    }

    /// Third step: fetches the slot of a key that may be in its second bucket.
    #[inline(always)]
    pub(super) fn prefetch_second(&self, hash: u64) {
        let first = &self.buckets[place(hash, self.buckets.len())];
        let second = &self.buckets[second_place(hash, self.buckets.len())];
        let mask = second.header.matching(tag_of(hash));
        let slot = if second.header.epoch != self.epoch {
            &second.slots[0]
        } else if mask != 0 {
            &second.slots[mask.trailing_zeros() as usize % WAYS]
        } else if first.header.floor == 0 && second.header.filled < first.header.filled {
            &second.slots[second.header.lightest()]
        } else {
            &first.slots[first.header.lightest()]
        };
        prefetch(slot);
    }
}

/// A slot without a row.
const EMPTY: Slot = Slot { hash: 0, sums: Sums::NONE, next: 0, length: 0, key: [0; INLINE_BYTES] };

/// A table's rows of one interval, copied out.
#[derive(Default)]
pub(super) struct Rows {
    kept: Kept<Slot>,
    /// The ends of long keys, one after the other.
    pub(super) tails: Vec<u8>,
    /// Rows that the table held.
    pub(super) live: u64,
    /// Rows that it pushed out.
    pub(super) evictions: u64,
    /// Most requests of a key that is not among the rows.
    pub(super) bound: u64,
    /// Most requests of a key that the table did not hold.
    floor: u32,
}

impl Rows {
    /// With room for about `limit` rows (`None`: all) of a table of `capacity`, so that closing does not allocate.
    pub(super) fn new(limit: Option<usize>, capacity: usize) -> Rows {
        let kept = Kept::new(limit, capacity, EMPTY);
        let tails =
            if limit.is_some() { kept.room().min(capacity) * (KEY_BYTES_MAX - INLINE_BYTES) } else { 0 };
        Rows { kept, tails: Vec::with_capacity(tails), ..Rows::default() }
    }

    /// In no particular order.
    pub(super) fn rows(&self) -> &[Slot] {
        self.kept.rows()
    }

    /// Of a table that there is not.
    pub(super) fn clear(&mut self) {
        self.kept.clear();
        self.tails.clear();
        (self.live, self.evictions, self.bound, self.floor) = (0, 0, 0, 0);
    }

    /// Copies a bucket's rows, as far as they are wanted, and gives their chunks back.
    fn take(&mut self, at: usize, bucket: &Bucket, chunks: &mut Chunks) {
        let Bucket { header, slots } = bucket;
        for way in (0..WAYS).filter(|&way| header.weight[way] != 0) {
            let rank = rank(header.weight[way], at * WAYS + way);
            if !self.kept.wants(rank) {
                continue;
            }
            let mut slot = slots[way];
            if header.chained >> way & 1 != 0 {
                let start = self.tails.len() as u32;
                chunks.copy(slot.next, usize::from(slot.length) - INLINE_BYTES, &mut self.tails);
                slot.next = start;
            }
            self.kept.push(rank, slot);
        }
        let mut chained = header.chained;
        while chained != 0 {
            chunks.release(slots[chained.trailing_zeros() as usize].next);
            chained &= chained - 1;
        }
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;

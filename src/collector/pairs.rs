//! The flat table of (key, client) pairs: five to a cache line, Space-Saving within the line.
//!
//! A key is known here by 32 bits of its hash and by the line that its pairs fall into; rows are joined with the key table's when
//! they are harvested. While no line evicts and the gate is 0, every count is exact. Afterwards the truth of a pair lies
//! in `[count - err, count + gate]`, and a pair that is not here had at most `bound()`.
//!
//! The gate keeps out the first requests of each key once the table is half full: cold keys have no hot clients to show, and
//! would push out those of the others.

use super::arena::{Arena, Region, prefetch};
use super::table::{cut, place};

/// Pairs in a line.
pub(super) const PAIRS_PER_LINE: usize = 5;

/// Marks a line that has evicted.
const EVICTED: u32 = 1 << 31;

/// The gate grows no further than this.
const GATE_MAX: u32 = 4096;

/// A cache line of pairs.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line {
    key: [u32; PAIRS_PER_LINE],
    client: [u32; PAIRS_PER_LINE],
    /// 0: empty.
    count: [u32; PAIRS_PER_LINE],
    /// The epoch, and [`EVICTED`]. The line is empty unless the epoch is the table's.
    epoch: u32,
}

const _: () = assert!(size_of::<Line>() == 64);

/// A harvested pair.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair {
    /// The lower half of the key's hash.
    pub(super) key: u32,
    /// As it was given to `update`.
    pub(super) client: u32,
    /// At most so many of the count belong to others.
    pub(super) err: u32,
    /// Where it was: must be `line_of` the key's whole hash and the client's.
    pub(super) line: u32,
}

/// The place of a pair among `lines` lines. `client` is what identifies the client, 64 bits of it.
#[inline(always)]
pub(super) fn line_of(key_hash: u64, client: u64, lines: usize) -> usize {
    let mixed = (key_hash ^ client.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .wrapping_mul(0xd6e8_feb8_6659_fd93)
        .rotate_left(32)
        .wrapping_mul(0xd6e8_feb8_6659_fd93);
    place(mixed, lines)
}

/// The table.
pub(super) struct Pairs {
    lines: Region<Line>,
    /// In `1..EVICTED`.
    epoch: u32,
    live: u64,
    evictions: u64,
    /// Greatest count pushed out in this epoch.
    floor: u32,
    /// Requests that were not counted because their client has no number: each may be any pair's.
    unnumbered: u64,
    /// Keys with at most so many requests stay out. Never sinks within an epoch.
    gate: u32,
    /// New pairs, in place of others or not, that make the gate grow, and those seen so far.
    gate_step: u64,
    arrivals: u64,
}

impl Pairs {
    /// A table in an arena that has room for it.
    pub(super) fn new(arena: &mut Arena, lines: usize) -> Option<Pairs> {
        let lines = arena.carve(lines)?;
        let mut pairs = Pairs {
            lines,
            epoch: 1,
            live: 0,
            evictions: 0,
            floor: 0,
            unnumbered: 0,
            gate: 0,
            gate_step: 0,
            arrivals: 0,
        };
        pairs.gate_step = pairs.capacity() as u64 / 2;
        Some(pairs)
    }

    /// Pairs that it can hold.
    pub(super) fn capacity(&self) -> usize {
        self.lines.len() * PAIRS_PER_LINE
    }

    /// Pairs of keys with at most so many requests (this one included) are not to be counted.
    #[inline(always)]
    pub(super) fn gate(&self) -> u32 {
        self.gate
    }

    /// Counts a request that cannot be counted as any pair's.
    pub(super) fn skip_unnumbered(&mut self) {
        self.unnumbered += 1;
    }

    /// Forgets all pairs. The gate starts from where it was, or lower when the table was far from full.
    pub(super) fn next_epoch(&mut self) {
        if self.epoch == EVICTED - 1 {
            self.lines.iter_mut().for_each(|line| line.epoch = 0);
            self.epoch = 0;
        }
        self.epoch += 1;
        let capacity = self.capacity() as u64;
        if self.arrivals < capacity / 2 {
            self.gate = if self.arrivals < capacity / 8 { 0 } else { self.gate / 2 };
        }
        (self.live, self.evictions, self.floor, self.unnumbered, self.arrivals) = (0, 0, 0, 0, 0);
        self.gate_step = capacity / 2;
    }

    #[inline(always)]
    pub(super) fn prefetch(&self, key_hash: u64, client: u64) {
        prefetch(&self.lines[line_of(key_hash, client, self.lines.len())]);
    }

    /// Counts one request. The lower half of `client` is what is kept of it.
    #[inline]
    pub(super) fn update(&mut self, key_hash: u64, client: u64) {
        let epoch = self.epoch;
        let at = line_of(key_hash, client, self.lines.len());
        let line = &mut self.lines[at];
        if line.epoch & !EVICTED != epoch {
            let none = [0; PAIRS_PER_LINE];
            *line = Line { key: none, client: none, count: none, epoch };
        }
        let (key, client) = (key_hash as u32, client as u32);
        let mut least = 0;
        for way in 0..PAIRS_PER_LINE {
            if line.key[way] == key && line.client[way] == client && line.count[way] != 0 {
                line.count[way] = line.count[way].saturating_add(1);
                return;
            }
            if line.count[way] < line.count[least] {
                least = way;
            }
        }
        let pushed_out = line.count[least];
        if pushed_out == 0 {
            self.live += 1;
        } else {
            line.epoch |= EVICTED;
            self.evictions += 1;
            self.floor = self.floor.max(pushed_out);
        }
        (line.key[least], line.client[least]) = (key, client);
        line.count[least] = pushed_out.saturating_add(1);
        self.arrive();
    }

    #[inline(always)]
    fn arrive(&mut self) {
        self.arrivals += 1;
        if self.arrivals > self.gate_step {
            self.gate = (self.gate * 2).clamp(1, GATE_MAX);
            self.gate_step += self.capacity() as u64 / 8;
        }
    }

    /// Copies out the `limit` greatest pairs (all without one) whose keys `wanted` lets pass.
    pub(super) fn harvest(&self, limit: Option<usize>, wanted: &Wanted, into: &mut PairRows) {
        into.pairs.clear();
        (into.lines, into.gate, into.evictions) = (self.lines.len(), u64::from(self.gate), self.evictions);
        let (limit, mut left_behind) = (limit.unwrap_or(usize::MAX), 0);
        let full = limit.saturating_mul(2).saturating_add(PAIRS_PER_LINE);
        if self.live > 0 {
            for (at, line) in self.lines.iter().enumerate() {
                if line.epoch & !EVICTED != self.epoch {
                    continue;
                }
                left_behind = left_behind.max(line.harvest(at, wanted, into));
                if into.pairs.len() + PAIRS_PER_LINE > full {
                    left_behind = left_behind.max(cut(&mut into.pairs, limit));
                }
            }
        }
        if into.pairs.len() > limit {
            left_behind = left_behind.max(cut(&mut into.pairs, limit));
        }
        into.bound = u64::from(self.floor.max(left_behind)) + into.gate + self.unnumbered;
        into.missing = into.gate + self.unnumbered;
    }
}

impl Line {
    /// Copies out; returns the greatest count of those that are not wanted.
    #[inline(always)]
    fn harvest(&self, at: usize, wanted: &Wanted, into: &mut PairRows) -> u32 {
        let mut left_behind = 0;
        let least = || self.count.iter().copied().min().unwrap_or(0);
        let err = if self.epoch & EVICTED != 0 { least() } else { 0 };
        for way in 0..PAIRS_PER_LINE {
            let (key, client, count) = (self.key[way], self.client[way], self.count[way]);
            if count == 0 {
                continue;
            }
            if wanted.may_contain(key) {
                into.pairs.push((count, Pair { key, client, err, line: at as u32 }));
            } else {
                left_behind = left_behind.max(count);
            }
        }
        left_behind
    }
}

/// A set of keys that errs on the side of yes: 32 KiB of bits over 18 bits of each key's hash.
pub(super) struct Wanted(Vec<u64>);

/// Bits of a key's hash that tell.
const WANTED_BITS: u32 = 18;

impl Wanted {
    pub(super) fn new() -> Wanted {
        Wanted(vec![0; 1 << (WANTED_BITS - 6)])
    }

    pub(super) fn clear(&mut self) {
        self.0.fill(0);
    }

    pub(super) fn insert(&mut self, key: u32) {
        let bit = key >> (32 - WANTED_BITS);
        self.0[(bit >> 6) as usize] |= 1 << (bit & 63);
    }

    #[inline(always)]
    fn may_contain(&self, key: u32) -> bool {
        let bit = key >> (32 - WANTED_BITS);
        self.0[(bit >> 6) as usize] >> (bit & 63) & 1 != 0
    }
}

/// A table's pairs of one interval, copied out.
#[derive(Default)]
pub(super) struct PairRows {
    /// Count and pair.
    pub(super) pairs: Vec<(u32, Pair)>,
    /// Lines of the table.
    pub(super) lines: usize,
    /// The gate at the end.
    gate: u64,
    /// Pairs pushed out.
    pub(super) evictions: u64,
    /// Most requests of a pair that is not among them.
    pub(super) bound: u64,
    /// Most requests that can be missing from the count of one that is.
    pub(super) missing: u64,
}

impl PairRows {
    /// With room for `limit` pairs.
    pub(super) fn new(limit: Option<usize>) -> PairRows {
        let room = limit.map_or(0, |limit| 2 * limit + 2 * PAIRS_PER_LINE);
        PairRows { pairs: Vec::with_capacity(room), ..PairRows::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn hash(key: u32) -> u64 {
        u64::from(key).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn table(lines: usize, epoch: u32) -> Pairs {
        Pairs { epoch, ..Pairs::new(&mut Arena::new(lines * 64).unwrap(), lines).unwrap() }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Against a map, over the wrap of the epoch, with the gate as the collector applies it.
        #[test]
        fn pairs_hold_their_bounds(
            epochs in prop::collection::vec(prop::collection::vec((0u32..40, 0u32..20), 0..600), 1..5),
            lines in 1usize..60,
            limit in prop::option::of(1usize..50),
        ) {
            let mut pairs = table(lines, EVICTED - 3);
            let mut wanted = Wanted::new();
            for key in 0..30 {
                wanted.insert(hash(key) as u32);
            }
            let mut rows = PairRows::default();
            for asks in epochs {
                let (mut model, mut keys) = (BTreeMap::<(u32, u32), u64>::new(), BTreeMap::<u32, u32>::new());
                for (key, client) in asks {
                    *model.entry((key, client)).or_default() += 1;
                    let requests = keys.entry(key).or_default();
                    *requests += 1;
                    if *requests > pairs.gate() {
                        pairs.update(hash(key), u64::from(client));
                    }
                }
                pairs.harvest(limit, &wanted, &mut rows);
                prop_assert!(limit.is_none_or(|limit| rows.pairs.len() <= limit));
                for &(count, pair) in &rows.pairs {
                    let key = (0..40).find(|&key| hash(key) as u32 == pair.key).unwrap();
                    prop_assert_eq!(line_of(hash(key), u64::from(pair.client), lines), pair.line as usize);
                    let truth = model.remove(&(key, pair.client)).expect("no pair is listed twice");
                    prop_assert!(u64::from(count - pair.err) <= truth);
                    prop_assert!(truth <= u64::from(count) + rows.missing);
                }
                for truth in model.values() {
                    prop_assert!(*truth <= rows.bound, "{} {}", truth, rows.bound);
                }
                pairs.next_epoch();
                pairs.harvest(None, &wanted, &mut rows);
                prop_assert!(rows.pairs.is_empty());
            }
        }
    }

    #[test]
    fn the_gate_rises_in_a_full_table_and_sinks_in_an_empty_one() {
        let mut pairs = table(100, 1);
        for client in 0..240 {
            pairs.update(hash(1), client);
        }
        assert_eq!(pairs.gate(), 0);
        for client in 240..2_000 {
            pairs.update(hash(1), client);
        }
        assert_eq!(pairs.gate(), GATE_MAX);
        let mut gates = Vec::new();
        for _ in 0..3 {
            for client in 0..100 {
                pairs.update(hash(1), client);
            }
            pairs.next_epoch();
            gates.push(pairs.gate());
        }
        assert_eq!(gates, [GATE_MAX, GATE_MAX / 2, GATE_MAX / 4]);
        pairs.next_epoch();
        assert_eq!(pairs.gate(), 0);
    }
}

//! The flat table of (key, client) pairs: five to a cache line, Space-Saving within the line.
//!
//! A key is known here by 32 bits of its hash and by the line that its pairs fall into; rows are joined with the key table's when
//! they are harvested. While no line evicts and the gate is 0, every count is exact. Afterwards the truth of a pair lies
//! in `[count - err, count + gate]`, and a pair that is not here had at most `bound()`.
//!
//! The gate keeps out the first requests of each key once the table is half full: cold keys have no hot clients to show, and
//! would push out those of the others.

use super::arena::{Arena, Region, prefetch};
use super::kept::{Kept, rank, sample_places};
use super::table::place;
use super::touched::Touched;
use std::ops::Range;

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
    /// The epoch before, while it is copied out.
    closing: Option<Closing>,
    /// Lines, in parts.
    touched: Touched,
}

/// An epoch that has ended and whose pairs are being copied out.
struct Closing {
    epoch: u32,
    rows: PairRows,
}

impl Closing {
    /// Copies the closed epoch's pairs out of these lines.
    fn copy(&mut self, places: Range<usize>, lines: &mut [Line]) {
        for at in places {
            if lines[at].epoch & !EVICTED == self.epoch {
                self.rows.take(at, &lines[at]);
                if self.epoch == EVICTED - 1 {
                    lines[at].epoch = 0;
                }
            }
        }
    }
}

impl Pairs {
    /// A table in an arena that has room for it.
    pub(super) fn new(arena: &mut Arena, lines: usize) -> Option<Pairs> {
        let lines = arena.carve(lines)?;
        let touched = Touched::new(lines.len());
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
            closing: None,
            touched,
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

    /// Ends the epoch in no time: its pairs are copied into `rows` by [`Pairs::sweep`], or before an update takes their place.
    /// The gate starts from where it was, or lower when the table was far from full.
    pub(super) fn begin_close(&mut self, mut rows: PairRows) {
        debug_assert!(self.closing.is_none(), "one epoch is closed at a time");
        (rows.lines, rows.evictions) = (self.lines.len(), self.evictions);
        rows.missing = u64::from(self.gate) + self.unnumbered;
        rows.floor = self.floor;
        rows.kept.begin(self.live, self.sample());
        self.touched.begin_close();
        self.closing = Some(Closing { epoch: self.epoch, rows });
        if self.epoch == EVICTED - 1 {
            // As in the other tables: the sweep does the same to the last epoch's.
            self.lines
                .iter_mut()
                .filter(|line| line.epoch & !EVICTED != EVICTED - 1)
                .for_each(|line| line.epoch = 0);
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

    /// Ranks of some pairs, evenly spread.
    fn sample(&self) -> impl Iterator<Item = u64> {
        let lines = sample_places(self.lines.len()).map(|at| (at, &self.lines[at]));
        lines.filter(|(_, line)| line.epoch & !EVICTED == self.epoch).flat_map(|(at, line)| {
            let ways = (0..PAIRS_PER_LINE).filter(|&way| line.count[way] != 0);
            ways.map(move |way| rank(line.count[way], at * PAIRS_PER_LINE + way))
        })
    }

    /// Copies the closed epoch's pairs out of the next `count` lines that may have any. True: none is left to copy.
    pub(super) fn sweep(&mut self, count: usize) -> bool {
        let Pairs { lines, closing, touched, .. } = self;
        let Some(closing) = closing else { return true };
        touched.sweep(count, |places| closing.copy(places, lines))
    }

    /// The closed epoch's pairs, where one was closed; copies what is left to copy.
    pub(super) fn end_close(&mut self) -> Option<PairRows> {
        self.sweep(usize::MAX);
        let mut rows = self.closing.take()?.rows;
        rows.kept.end();
        rows.bound = u64::from(rows.floor.max(rows.kept.weight_left_behind())) + rows.missing;
        Some(rows)
    }

    /// Empties a line of a former epoch, whose pairs are copied out first if that is not done yet.
    fn renew(&mut self, at: usize) {
        let Pairs { lines, closing, touched, .. } = self;
        if let Some(closing) = closing
            && lines[at].epoch & !EVICTED == closing.epoch
            && touched.is_ahead(at)
        {
            closing.rows.take(at, &lines[at]);
        }
        let none = [0; PAIRS_PER_LINE];
        lines[at] = Line { key: none, client: none, count: none, epoch: self.epoch };
        self.touched.mark(at);
    }

    #[inline(always)]
    pub(super) fn prefetch(&self, key_hash: u64, client: u64) {
        prefetch(&self.lines[line_of(key_hash, client, self.lines.len())]);
    }

    /// Counts one request. The lower half of `client` is what is kept of it.
    #[inline]
    pub(super) fn update(&mut self, key_hash: u64, client: u64) {
        let at = line_of(key_hash, client, self.lines.len());
        if self.lines[at].epoch & !EVICTED != self.epoch {
            self.renew(at);
        }
        let line = &mut self.lines[at];
        let (key, client) = (key_hash as u32, client as u32);
        // All ways are looked at, without a branch between them: where a pair is cannot be foreseen.
        let is_there =
            |way: usize| (line.key[way] == key) & (line.client[way] == client) & (line.count[way] != 0);
        let there = (0..PAIRS_PER_LINE).fold(0_u32, |mask, way| mask | u32::from(is_there(way)) << way);
        if there != 0 {
            let count = &mut line.count[there.trailing_zeros() as usize];
            *count = count.saturating_add(1);
            return;
        }
        let weighed = |way: usize| (u64::from(line.count[way]) << 3) | way as u64;
        let least = ((1..PAIRS_PER_LINE).fold(weighed(0), |least, way| least.min(weighed(way))) & 7) as usize;
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
}

/// A table's pairs of one interval, copied out.
#[derive(Default)]
pub(super) struct PairRows {
    kept: Kept<Pair>,
    /// Lines of the table.
    pub(super) lines: usize,
    /// Pairs pushed out.
    pub(super) evictions: u64,
    /// Most requests of a pair that is not among them.
    pub(super) bound: u64,
    /// Most requests that can be missing from the count of one that is.
    pub(super) missing: u64,
    /// Greatest count that was pushed out.
    floor: u32,
}

impl PairRows {
    /// With room for about `limit` pairs (`None`: all) of a table of `capacity`.
    pub(super) fn new(limit: Option<usize>, capacity: usize) -> PairRows {
        const NONE: Pair = Pair { key: 0, client: 0, err: 0, line: 0 };
        PairRows { kept: Kept::new(limit, capacity, NONE), ..PairRows::default() }
    }

    /// Count and pair, in no particular order.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (u32, Pair)> {
        self.kept.weights().zip(self.kept.rows().iter().copied())
    }

    /// Copies a line's pairs, as far as they are wanted.
    fn take(&mut self, at: usize, line: &Line) {
        let least = if line.epoch & EVICTED == 0 { 0 } else { line.count.iter().copied().min().unwrap_or(0) };
        for way in (0..PAIRS_PER_LINE).filter(|&way| line.count[way] != 0) {
            let rank = rank(line.count[way], at * PAIRS_PER_LINE + way);
            if self.kept.wants(rank) {
                let (key, client) = (line.key[way], line.client[way]);
                self.kept.push(rank, Pair { key, client, err: least, line: at as u32 });
            }
        }
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

    fn close(pairs: &mut Pairs) -> PairRows {
        pairs.begin_close(PairRows::default());
        pairs.end_close().unwrap()
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
            let capacity = pairs.capacity();
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
                pairs.begin_close(PairRows::new(limit, capacity));
                let rows = pairs.end_close().unwrap();
                prop_assert!(limit.is_none_or(|limit| rows.pairs().count() <= rows.kept.room().min(2 * limit + 64)));
                for (count, pair) in rows.pairs() {
                    let key = (0..40).find(|&key| hash(key) as u32 == pair.key).unwrap();
                    prop_assert_eq!(line_of(hash(key), u64::from(pair.client), lines), pair.line as usize);
                    let truth = model.remove(&(key, pair.client)).expect("no pair is listed twice");
                    prop_assert!(u64::from(count - pair.err) <= truth);
                    prop_assert!(truth <= u64::from(count) + rows.missing);
                }
                for truth in model.values() {
                    prop_assert!(*truth <= rows.bound, "{} {}", truth, rows.bound);
                }
                pairs.begin_close(PairRows::default());
                prop_assert_eq!(pairs.end_close().unwrap().pairs().count(), 0);
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
            close(&mut pairs);
            gates.push(pairs.gate());
        }
        assert_eq!(gates, [GATE_MAX, GATE_MAX / 2, GATE_MAX / 4]);
        close(&mut pairs);
        assert_eq!(pairs.gate(), 0);
    }
}

//! The rows of a closed epoch that are taken along: the heaviest, whatever the order in which they are offered.
//!
//! Rows are copied out bucket by bucket, some by the sweep and some because an update is about to overwrite them, and that order must not
//! decide which are kept. So rows have a *rank*, no two the same, and a threshold is set once, when the epoch ends, from a
//! sample of all ranks: it lets somewhat more than the wanted number pass. Should it let more pass than there is room for, the
//! least are dropped, and in the end exactly the wanted number is left, again in no dependence on the order.

/// Places that a sample looks at, at most; each has a few rows.
pub(super) const SAMPLE_PLACES: usize = 512;

/// Ranks of a sample, at most.
const SAMPLE_MAX: usize = 4096;

/// Rows by weight, and by place where weights are equal; places in no useful order, so that equals are cut evenly over a table.
#[inline(always)]
pub(super) fn rank(weight: u32, place: usize) -> u64 {
    // An odd factor: no two places get the same number.
    u64::from(weight) << 32 | u64::from((place as u32).wrapping_mul(0x9e37_79b1))
}

/// The places of a sample of `count` places, evenly spread.
pub(super) fn sample_places(count: usize) -> impl Iterator<Item = usize> {
    let taken = count.min(SAMPLE_PLACES);
    (0..taken).map(move |index| index * count / taken)
}

/// Rows, each with its rank.
#[derive(Debug)]
pub(super) struct Kept<T> {
    rows: Vec<T>,
    /// By index of `rows`.
    ranks: Vec<u64>,
    /// For choosing among the ranks.
    scratch: Vec<u64>,
    /// Rows that are wanted; there is room for [`Kept::room`].
    limit: usize,
    /// Rows of no higher rank are left behind.
    threshold: u64,
    /// Highest rank of a row that was left behind; 0: none was.
    left_behind: u64,
    /// More rows passed than there is room for.
    overflowed: bool,
}

impl<T> Default for Kept<T> {
    /// For all rows of a table.
    fn default() -> Kept<T> {
        Kept {
            rows: Vec::new(),
            ranks: Vec::new(),
            scratch: Vec::new(),
            limit: usize::MAX,
            threshold: 0,
            left_behind: 0,
            overflowed: false,
        }
    }
}

impl<T: Copy> Kept<T> {
    /// For `limit` rows of a table that has `capacity` of them; `None`: for all. Memory is touched here, so that it is there when
    /// it is wanted.
    pub(super) fn new(limit: Option<usize>, capacity: usize, empty: T) -> Kept<T> {
        let Some(limit) = limit else { return Kept::default() };
        let mut kept = Kept { limit, ..Kept::default() };
        let room = kept.room().min(capacity);
        kept.rows.resize(room, empty);
        kept.ranks.resize(room, u64::MAX);
        kept.scratch.resize(room, u64::MAX);
        kept.clear();
        kept
    }
}

impl<T> Kept<T> {
    /// Rows that there is room for: a sample's error above those that are wanted.
    pub(super) fn room(&self) -> usize {
        self.limit.saturating_add(self.limit / 4 * 3).saturating_add(64)
    }

    /// Forgets all rows.
    pub(super) fn clear(&mut self) {
        self.rows.clear();
        self.ranks.clear();
        (self.threshold, self.left_behind, self.overflowed) = (0, 0, false);
    }

    /// Begins anew with the rows of a table that holds `live` of them, a sample of whose ranks is given.
    pub(super) fn begin(&mut self, live: u64, sample: impl Iterator<Item = u64>) {
        self.clear();
        if live <= self.room() as u64 {
            return;
        }
        let (mut ranks, mut count) = ([0; SAMPLE_MAX], 0);
        for (place, rank) in ranks.iter_mut().zip(sample) {
            (*place, count) = (rank, count + 1);
        }
        let share = count as f64 * self.limit as f64 / live as f64;
        // Four standard deviations more than are wanted.
        let passing = (share + 4.0 * share.sqrt() + 4.0) as usize;
        if passing < count {
            let (_, &mut threshold, _) = ranks[..count].select_nth_unstable_by(passing, |a, b| b.cmp(a));
            self.threshold = threshold;
        }
    }

    /// Whether a row is to be offered; otherwise it is left behind.
    #[inline(always)]
    pub(super) fn wants(&mut self, rank: u64) -> bool {
        if rank > self.threshold {
            return true;
        }
        self.left_behind = self.left_behind.max(rank);
        false
    }

    /// Whether a row of this weight could be wanted: 0 is no row's.
    #[inline(always)]
    pub(super) fn may_want(&self, weight: u32) -> bool {
        weight != 0 && u64::from(weight) >= self.threshold >> 32
    }

    /// Takes a row that is wanted.
    #[inline(always)]
    pub(super) fn push(&mut self, rank: u64, row: T) {
        if self.rows.len() >= self.room() {
            self.cut();
            if !self.wants(rank) {
                return;
            }
        }
        self.rows.push(row);
        self.ranks.push(rank);
    }

    /// No row is offered any more.
    pub(super) fn end(&mut self) {
        if self.overflowed && self.rows.len() > self.limit {
            self.cut();
        }
    }

    /// Keeps the `limit` rows of highest rank of more than that.
    #[cold]
    fn cut(&mut self) {
        self.overflowed = true;
        self.scratch.clear();
        self.scratch.extend_from_slice(&self.ranks);
        let (_, &mut threshold, _) = self.scratch.select_nth_unstable_by(self.limit, |a, b| b.cmp(a));
        self.threshold = threshold;
        self.left_behind = self.left_behind.max(threshold);
        let mut at = 0;
        while at < self.rows.len() {
            if self.ranks[at] > threshold {
                at += 1;
            } else {
                self.rows.swap_remove(at);
                self.ranks.swap_remove(at);
            }
        }
    }

    /// In no particular order.
    pub(super) fn rows(&self) -> &[T] {
        &self.rows
    }

    /// The weight of each of `rows`.
    pub(super) fn weights(&self) -> impl Iterator<Item = u32> {
        self.ranks.iter().map(|rank| (rank >> 32) as u32)
    }

    /// Greatest weight of a row that was left behind.
    pub(super) fn weight_left_behind(&self) -> u32 {
        (self.left_behind >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Any order of the same rows leaves the same, and the heaviest of them.
        #[test]
        fn the_heaviest_are_kept_in_any_order(
            weights in prop::collection::vec(1u32..20, 0..800),
            limit in 1usize..200,
            sampled in 0usize..800,
            seed: u64,
        ) {
            let ranks: Vec<u64> = weights.iter().enumerate().map(|(place, &weight)| rank(weight, place)).collect();
            let mut shuffled = ranks.clone();
            shuffled.sort_by_key(|rank| (rank ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let sample = || ranks.iter().copied().take(sampled);
            let outcomes = [&ranks, &shuffled].map(|order| {
                let mut kept = Kept::new(Some(limit), ranks.len(), 0);
                kept.begin(ranks.len() as u64, sample());
                for &rank in order {
                    if kept.wants(rank) {
                        kept.push(rank, rank);
                    }
                }
                kept.end();
                let mut rows = kept.rows().to_vec();
                rows.sort_unstable();
                (rows, kept.left_behind)
            });
            prop_assert_eq!(&outcomes[0], &outcomes[1]);
            let (rows, left_behind) = &outcomes[0];
            let mut sorted = ranks.clone();
            sorted.sort_unstable();
            prop_assert_eq!(rows, &sorted[ranks.len() - rows.len()..]);
            let next = sorted[..ranks.len() - rows.len()].last().copied().unwrap_or(0);
            prop_assert_eq!(*left_behind, next);
            prop_assert!(rows.len() <= limit + limit / 4 * 3 + 64);
        }
    }

    #[test]
    fn a_sample_of_many_rows_lets_about_the_wanted_number_pass() {
        for limit in [10, 1_000, 60_000] {
            let mut kept = Kept::new(Some(limit), 0, ());
            let ranks = || (0..1_000_000usize).map(|place| rank((place % 7) as u32 + 1, place));
            kept.begin(1_000_000, ranks().step_by(244));
            let passing = ranks().filter(|&rank| kept.wants(rank)).count();
            assert!(passing >= limit && passing <= 2 * limit + 5_000, "{limit}: {passing}");
        }
    }
}

//! Which parts of a table an interval touched, so that copying its rows out looks at no other: a table that held little is
//! closed in no time, however large it is.

use std::ops::Range;

/// Places of a part: one bit stands for all of them.
pub(super) const PART: usize = 64;

/// A bit for each part: of the interval that runs, and of the one that is being copied out; and how far that has come.
#[derive(Debug)]
pub(super) struct Touched {
    now: Box<[u64]>,
    closing: Box<[u64]>,
    /// The last part need not be a whole one.
    places: usize,
    /// Places before this one have been copied out.
    next: usize,
}

impl Touched {
    /// Nothing of a table with so many places.
    pub(super) fn new(places: usize) -> Touched {
        let words = vec![0; places.div_ceil(PART * u64::BITS as usize)];
        Touched { now: words.clone().into(), closing: words.into(), places, next: 0 }
    }

    /// Marks a place's part.
    #[inline(always)]
    pub(super) fn mark(&mut self, place: usize) {
        let part = place / PART;
        self.now[part / u64::BITS as usize] |= 1 << (part % u64::BITS as usize);
    }

    /// Ends the interval; the one before has been copied out.
    pub(super) fn begin_close(&mut self) {
        std::mem::swap(&mut self.now, &mut self.closing);
        self.now.fill(0);
        self.next = 0;
    }

    /// Whether a place of the closed interval has yet to be copied out.
    #[inline(always)]
    pub(super) fn is_ahead(&self, place: usize) -> bool {
        place >= self.next
    }

    /// Lends the next `count` places that the closed interval may have touched to `copy`, in runs. True: none is left.
    pub(super) fn sweep(&mut self, mut count: usize, mut copy: impl FnMut(Range<usize>)) -> bool {
        while let Some(from) = self.next_touched() {
            if count == 0 {
                return false;
            }
            let end = ((from / PART + 1) * PART).min(self.places).min(from.saturating_add(count));
            copy(from..end);
            self.next = end;
            count -= end - from;
        }
        true
    }

    /// The next place that lies in a part which the closed interval touched.
    fn next_touched(&self) -> Option<usize> {
        let part = self.next / PART;
        let bits = u64::BITS as usize;
        let first = *self.closing.get(part / bits)? & (u64::MAX << (part % bits));
        let rest = self.closing[part / bits + 1..].iter().copied();
        let (index, word) = std::iter::once(first).chain(rest).enumerate().find(|(_, word)| *word != 0)?;
        let found = (part / bits + index) * bits + word.trailing_zeros() as usize;
        Some(self.next.max(found * PART)).filter(|&place| place < self.places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Against a set of parts, over several intervals.
        #[test]
        fn places_of_touched_parts_are_found_and_no_others(
            places in 1_usize..20_000,
            intervals in prop::collection::vec(prop::collection::vec(any::<prop::sample::Index>(), 0..20), 1..4),
        ) {
            let mut touched = Touched::new(places);
            for marks in intervals {
                let marks: Vec<usize> = marks.iter().map(|mark| mark.index(places)).collect();
                marks.iter().for_each(|&place| touched.mark(place));
                touched.begin_close();
                let parts: BTreeSet<usize> = marks.iter().map(|place| place / PART).collect();
                let mut found = BTreeSet::new();
                let (mut next, mut count) = (0, 0);
                loop {
                    let mut left = count;
                    let is_over = touched.sweep(count, |run| {
                        assert!(next <= run.start && run.start < run.end && run.end <= places, "{run:?}");
                        assert_eq!(run.start / PART, (run.end - 1) / PART);
                        found.insert(run.start / PART);
                        next = run.end;
                        left -= run.len();
                    });
                    prop_assert!((0..places).step_by(97).all(|place| touched.is_ahead(place) == (place >= next)));
                    if is_over {
                        break;
                    }
                    prop_assert_eq!(left, 0);
                    count += 1 + next % 7;
                }
                let copied: usize = parts.iter().map(|part| PART.min(places - part * PART)).sum();
                prop_assert_eq!(touched.sweep(copied, |_| panic!("nothing comes twice")), true);
                prop_assert_eq!(found, parts);
            }
        }
    }
}

//! Which parts of a table an interval touched, so that copying its rows out looks at no other: a table that held little is
//! closed in no time, however large it is.

/// Places of a part: one bit stands for all of them.
pub(super) const PART: usize = 64;

/// A bit for each part: of the interval that runs, and of the one that is being copied out.
#[derive(Debug)]
pub(super) struct Touched {
    now: Box<[u64]>,
    closing: Box<[u64]>,
    /// The last part need not be a whole one.
    places: usize,
}

impl Touched {
    /// Nothing of a table with so many places.
    pub(super) fn new(places: usize) -> Touched {
        let words = vec![0; places.div_ceil(PART * u64::BITS as usize)];
        Touched { now: words.clone().into(), closing: words.into(), places }
    }

    /// Marks a place's part.
    #[inline(always)]
    pub(super) fn mark(&mut self, place: usize) {
        let part = place / PART;
        self.now[part / u64::BITS as usize] |= 1 << (part % u64::BITS as usize);
    }

    /// Ends the interval.
    pub(super) fn begin_close(&mut self) {
        std::mem::swap(&mut self.now, &mut self.closing);
        self.now.fill(0);
    }

    /// The first place from this one on that lies in a part which the closed interval touched.
    #[inline]
    pub(super) fn next(&self, place: usize) -> Option<usize> {
        let part = place / PART;
        let bits = u64::BITS as usize;
        let first = *self.closing.get(part / bits)? & (u64::MAX << (part % bits));
        let rest = self.closing[part / bits + 1..].iter().copied();
        let (index, word) = std::iter::once(first).chain(rest).enumerate().find(|(_, word)| *word != 0)?;
        let found = (part / bits + index) * bits + word.trailing_zeros() as usize;
        Some(place.max(found * PART)).filter(|&place| place < self.places)
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
                let mut next = 0;
                while let Some(place) = touched.next(next) {
                    prop_assert!(next <= place && place < places);
                    found.insert(place / PART);
                    prop_assert_eq!(touched.next(place), Some(place));
                    next = place + 1 + place % 7;
                }
                prop_assert_eq!(found, parts);
            }
        }
    }
}

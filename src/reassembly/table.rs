//! The bounded index from a hash to the slots of a slab, and the clock hand that goes around them.
//!
//! Buckets of one cache line hold eight 16-bit tags and eight slot numbers. A hash has two candidate buckets, so a look-up
//! reads at most two lines and compares at most sixteen slots, however hostile the hashes are. The index never
//! grows and never moves an entry: when both candidates are full the caller evicts one of them.

use crate::model::Timestamp;
use std::time::Duration;

/// Tag of an empty place.
const EMPTY: u16 = 0;
const PLACES: usize = 8;
/// Free places with which an entry's first bucket is good enough, so that most look-ups read one line; with fewer the
/// emptier of the two takes it.
const SPARE_PLACES: u32 = 5;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Bucket {
    /// `EMPTY`, or the upper bits of the entry's hash.
    tags: [u16; PLACES],
    /// Meaningful where the tag is not `EMPTY`.
    slots: [u32; PLACES],
}

const _: () = assert!(size_of::<Bucket>() == 64);

impl Bucket {
    /// A bit for each place where no entry is.
    fn empty_places(&self) -> u32 {
        let places = self.tags.iter().enumerate();
        places.fold(0, |empty, (place, &tag)| empty | u32::from(tag == EMPTY) << place)
    }
}

/// The highest of the sixteen bits of each tag that is `tag`.
#[inline(always)]
fn marks_of(tags: &[u16; 4], tag: u16) -> u64 {
    const ONES: u64 = 0x0001_0001_0001_0001;
    const LOWER_BITS: u64 = ONES * 0x7fff;
    let tags = tags.iter().rev().fold(0, |word, &tag| word << 16 | u64::from(tag));
    let differences = tags ^ (ONES * u64::from(tag));
    // The sums' highest bits tell of differences in the lower ones; no sum reaches into the next tag's bits.
    let sums = (differences & LOWER_BITS) + LOWER_BITS;
    !(sums | differences | LOWER_BITS)
}

/// Index of a slab with a fixed number of slots. Slot numbers are the caller's.
pub(super) struct SlotIndex {
    buckets: Box<[Bucket]>,
    /// Number of buckets less one; the number is a power of two and at least two.
    mask: usize,
}

impl SlotIndex {
    /// Room for `slots` entries with at most 70 % of the places in use: then, while slots are free, two full buckets are met
    /// by fewer than one entry in a million (simulated; at 85 % it is one in five hundred).
    pub(super) fn new(slots: usize) -> SlotIndex {
        let buckets = (slots * 100 / 70 / PLACES + 1).next_power_of_two().max(2);
        let bucket = Bucket { tags: [EMPTY; PLACES], slots: [0; PLACES] };
        SlotIndex { buckets: vec![bucket; buckets].into_boxed_slice(), mask: buckets - 1 }
    }

    /// Bytes that the index takes.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.buckets)
    }

    /// The slot with this hash for which `matches` holds.
    #[inline]
    pub(super) fn find(&self, hash: u64, mut matches: impl FnMut(u32) -> bool) -> Option<u32> {
        let tag = tag_of(hash);
        let [first, second] = self.candidates_of(hash);
        for bucket in [first, second] {
            let Bucket { tags, slots } = &self.buckets[bucket];
            // Four at a time, because most entries are in the first places.
            for (tags, slots) in tags.as_chunks().0.iter().zip(slots.as_chunks::<4>().0) {
                let mut marks = marks_of(tags, tag);
                while marks != 0 {
                    let slot = slots[marks.trailing_zeros() as usize / 16];
                    if matches(slot) {
                        return Some(slot);
                    }
                    marks &= marks - 1;
                }
            }
        }
        None
    }

    /// Enters `slot` in one of its candidate buckets; `false` when both are full.
    pub(super) fn insert(&mut self, hash: u64, slot: u32) -> bool {
        let [first, second] = self.candidates_of(hash);
        let room = |bucket: usize| self.buckets[bucket].empty_places();
        let in_first = room(first);
        let (bucket, places) = if in_first.count_ones() >= SPARE_PLACES {
            (first, in_first)
        } else {
            let in_second = room(second);
            let second_is_emptier = in_second.count_ones() > in_first.count_ones();
            if second_is_emptier { (second, in_second) } else { (first, in_first) }
        };
        if places == 0 {
            return false;
        }
        let place = places.trailing_zeros() as usize;
        self.buckets[bucket].tags[place] = tag_of(hash);
        self.buckets[bucket].slots[place] = slot;
        true
    }

    /// Whether `insert` would find room.
    pub(super) fn has_room(&self, hash: u64) -> bool {
        self.candidates_of(hash).iter().any(|&bucket| self.buckets[bucket].empty_places() != 0)
    }

    /// Removes `slot`, which was entered with `hash`.
    pub(super) fn remove(&mut self, hash: u64, slot: u32) {
        let tag = tag_of(hash);
        for bucket in self.candidates_of(hash) {
            let bucket = &mut self.buckets[bucket];
            for place in 0..PLACES {
                if bucket.tags[place] == tag && bucket.slots[place] == slot {
                    bucket.tags[place] = EMPTY;
                    return;
                }
            }
        }
        debug_assert!(false, "slot {slot} is not in the index");
    }

    /// The slots, at most sixteen, one of which must go when an entry with this hash finds no room.
    pub(super) fn neighbours(&self, hash: u64) -> impl Iterator<Item = u32> + '_ {
        self.candidates_of(hash).into_iter().flat_map(|bucket| {
            let bucket = &self.buckets[bucket];
            bucket.tags.iter().zip(bucket.slots).filter(|&(&tag, _)| tag != EMPTY).map(|(_, slot)| slot)
        })
    }

    /// The two buckets of a hash; they differ.
    #[inline(always)]
    fn candidates_of(&self, hash: u64) -> [usize; 2] {
        let first = low_bits(hash) & self.mask;
        // An odd number is never zero under a mask of at least one bit.
        let step = low_bits(hash >> 24) | 1;
        [first, first ^ (step & self.mask)]
    }
}

/// The tag of a hash, from bits that do not choose the bucket; never `EMPTY`.
#[inline(always)]
fn tag_of(hash: u64) -> u16 {
    let [.., low, high] = hash.to_le_bytes();
    u16::from_le_bytes([low, high]).max(1)
}

#[inline(always)]
fn low_bits(hash: u64) -> usize {
    (hash & 0xffff_ffff) as usize
}

/// Slots that a clock hand passes in one move, at most.
const MOVE_SLOTS_MAX: usize = 1024;

/// A hand that goes around the slots of a slab once in a period of packet time, a few slots at a move, to find what has
/// been quiet for too long. Nothing needs a timer of its own, and a packet pays for at most one move.
pub(super) struct ClockHand {
    slots: usize,
    /// The slot that it comes to next; below `slots`.
    next: usize,
    period: Duration,
    /// Packet time between two moves, and when the next one is due. A time long before `due` means that the clock was set back.
    step: Duration,
    due: Timestamp,
    long_before: Timestamp,
}

impl ClockHand {
    /// Around `slots` slots (at least one) in `period`.
    pub(super) fn new(slots: usize, period: Duration) -> ClockHand {
        let moves = u32::try_from(slots.div_ceil(MOVE_SLOTS_MAX)).unwrap_or(u32::MAX);
        ClockHand {
            slots,
            next: 0,
            period,
            step: period / moves.max(1),
            due: Timestamp::ZERO,
            long_before: Timestamp::ZERO,
        }
    }

    /// Whether it is time for a move.
    #[inline(always)]
    pub(super) fn is_due(&self, now: Timestamp) -> bool {
        now >= self.due || now < self.long_before
    }

    /// The number of slots to pass now. After a leap in time the hand does not try to catch up.
    pub(super) fn begin_move(&mut self, now: Timestamp) -> usize {
        let leapt = now < self.long_before || now.since(self.due) > self.period;
        self.due = if leapt { now } else { self.due }.plus(self.step);
        let slack = 2 * u64::try_from(self.period.as_nanos()).unwrap_or(u64::MAX / 2);
        self.long_before = Timestamp::from_nanos(self.due.nanos().saturating_sub(slack));
        self.slots.min(MOVE_SLOTS_MAX)
    }

    /// The slot that it comes to, and on to the next.
    pub(super) fn pass(&mut self) -> u32 {
        let slot = self.next;
        self.next = if slot + 1 == self.slots { 0 } else { slot + 1 };
        u32::try_from(slot).expect("slots are numbered in 32 bits")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn a_flood_of_equal_hashes_is_refused_after_two_buckets() {
        let mut index = SlotIndex::new(10_000);
        let taken = (0..10_000).filter(|&slot| index.insert(0x1234_5678_9abc_def0, slot)).count();
        assert_eq!(taken, 16);
        assert_eq!(index.neighbours(0x1234_5678_9abc_def0).count(), 16);
    }

    #[test]
    fn the_hand_passes_every_slot_once_in_a_period() {
        let mut hand = ClockHand::new(3000, Duration::from_secs(3));
        let mut passed = vec![0; 3000];
        let mut now = Timestamp::from_parts(1_000_000, 0);
        for _ in 0..3 {
            assert!(hand.is_due(now));
            for _ in 0..hand.begin_move(now) {
                passed[hand.pass() as usize] += 1;
            }
            assert!(!hand.is_due(now));
            now = now.plus(Duration::from_secs(1));
        }
        assert_eq!(passed.iter().filter(|&&times| times >= 1).count(), 3000);
    }

    proptest! {
        /// The index against a map: what went in is found under its hash and nowhere else.
        #[test]
        fn holds_what_a_map_holds(steps in proptest::collection::vec((any::<bool>(), 0u32..200), 0..400)) {
            let mut index = SlotIndex::new(200);
            let mut twin = HashMap::new();
            let hash = |slot: u32| u64::from(slot).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            for (enter, slot) in steps {
                if enter {
                    if let std::collections::hash_map::Entry::Vacant(vacant) = twin.entry(slot)
                        && index.insert(hash(slot), slot)
                    {
                        vacant.insert(());
                    }
                } else if twin.remove(&slot).is_some() {
                    index.remove(hash(slot), slot);
                }
            }
            for slot in 0..200 {
                prop_assert_eq!(index.find(hash(slot), |found| found == slot).is_some(), twin.contains_key(&slot));
            }
        }
    }
}

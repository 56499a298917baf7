//! The table against maps that forget nothing.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

impl Table {
    /// A table of its own, in the given epoch.
    pub(in crate::collector) fn alone(buckets: usize, chunks: usize, epoch: u32) -> Table {
        let mut arena = Arena::new(buckets * BUCKET_BYTES + chunks * 64 + 256).unwrap();
        Table { epoch, ..Table::new(&mut arena, buckets, chunks).unwrap() }
    }

    pub(in crate::collector) fn close(&mut self, limit: Option<usize>) -> Rows {
        let capacity = self.capacity();
        self.begin_close(Rows::new(limit, capacity));
        self.end_close().unwrap()
    }

    /// Most requests of a key that is not in the table, by its own buckets.
    fn floor_of(&self, hash: u64) -> u32 {
        let bucket = |at: usize| Some(&self.buckets[at].header).filter(|bucket| bucket.epoch == self.epoch);
        let Some(first) = bucket(place(hash, self.buckets.len())) else { return 0 };
        let second = bucket(second_place(hash, self.buckets.len())).map_or(0, |bucket| bucket.floor);
        if first.filter & filter_bit(hash) != 0 { first.floor.max(second) } else { first.floor }
    }

    /// The invariants that stand beside the fields.
    fn check(&self) {
        let live = self.buckets.iter().enumerate().filter(|(_, bucket)| bucket.header.epoch == self.epoch);
        let (mut rows, mut chunks) = (0, 0);
        for (at, Bucket { header, slots }) in live {
            assert!(header.floor == 0 || usize::from(header.filled) == WAYS);
            assert!(header.floor <= self.floor);
            for way in (0..WAYS).filter(|&way| header.weight[way] != 0) {
                let slot = &slots[way];
                rows += 1;
                if slot.length as usize > INLINE_BYTES && slot.next != TRUNCATED {
                    chunks += (slot.length as usize - INLINE_BYTES).div_ceil(60);
                }
                assert!(header.weight[way] >= slot.sums.upper().saturating_mul(REQUEST_WEIGHT));
                assert_eq!(header.tag[way], tag_of(slot.hash));
                let (first, second) =
                    (place(slot.hash, self.buckets.len()), second_place(slot.hash, self.buckets.len()));
                let went_there = self.buckets[first].header.filter & filter_bit(slot.hash) != 0;
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

fn delta(kind: usize, bytes: u64) -> Delta {
    Delta { kind: kind as u8, bytes_in: bytes, timed: true, latency: 3, ..Delta::NONE }
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
            prop::collection::vec((0u16..150, 0u16..150, 0..KINDS, 0u64..5_000), 0..900), 1..5),
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
            for (a, b, kind, bytes) in asks {
                let (number, delta) = (a.min(b), delta(kind, bytes));
                let place = table.update(hash(number), &key_of(number), &delta, delta.weight(2_000));
                let upper = table.requests(place);
                let truth = model.entry(number).or_default();
                let mut sums = Sums::NONE;
                delta.add_to(&mut sums);
                truth.merge(&sums.counters());
                prop_assert!(u64::from(upper) >= truth.requests());
            }
            table.check();
            let (floor, evictions) = (table.floor, table.evictions);
            let floors: Vec<u32> = (0..150).map(|number| table.floor_of(hash(number))).collect();
            let harvest = table.close(None);
            prop_assert_eq!(table.chunks.available(), table.chunks.len());
            let mut certain = 0;
            for slot in harvest.rows() {
                let number = (0..150).find(|&number| {
                    let (head, tail, truncated) = slot.key(&harvest.tails);
                    let key = key_of(number);
                    let whole = [head, tail].concat();
                    slot.hash == hash(number)
                        && slot.key_length() == key.len()
                        && if truncated { key.starts_with(&whole) } else { key == whole }
                }).expect("a key that was asked for");
                let truth = model.remove(&number).expect("no key is listed twice");
                let own = slot.sums.counters();
                certain += own.requests();
                prop_assert!(own.requests() <= truth.requests());
                prop_assert!(truth.requests() <= own.requests() + u64::from(slot.sums.err));
                prop_assert!(slot.sums.err != 0 || own == truth);
            }
            prop_assert!(evictions == 0 || floor > 0);
            for (number, truth) in &model {
                prop_assert!(truth.requests() <= u64::from(floors[usize::from(*number)]));
                prop_assert!(truth.requests() <= harvest.bound);
            }
            prop_assert!(evictions > 0 || model.is_empty());
            prop_assert!(certain <= 900);
            prop_assert!(table.close(None).rows().is_empty());
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
            let delta = delta(HITS, bytes);
            table.update(mix(u64::from(number), 1), &key_of(number), &delta, delta.weight(2_000));
            *model.entry(number).or_default() += 1;
        }
        let live = table.live as usize;
        let rows = table.close(Some(limit));
        prop_assert!(rows.rows().len() >= limit.min(live) && rows.rows().len() <= 2 * limit + 64);
        let listed: Vec<u64> = rows.rows().iter().map(|slot| slot.hash).collect();
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
    let once = delta(HITS, u64::MAX);
    table.update(9, b"k", &once, 1);
    table.buckets[0].slots[0].sums.counts[HITS] = u32::MAX;
    table.buckets[0].header.weight[0] = u32::MAX - 1;
    let place = table.update(9, b"k", &once, 16);
    assert_eq!(table.requests(place), u32::MAX);
    assert_eq!(
        (table.buckets[0].slots[0].sums.counts[HITS], table.buckets[0].slots[0].sums.bytes_in),
        (u32::MAX, u64::MAX)
    );
    assert_eq!(table.buckets[0].header.weight[0], u32::MAX);
    assert_eq!(once.weight(1 << 30), 1 << 24);
}

//! Observations that wait to be counted, so that what they will touch is fetched before.
//!
//! Two batches follow one another. One is gathered; when it is full, its flows are counted and what it will touch of the tables is fetched,
//! which comes while the next one is gathered. Then it is counted in the tables.
//!
//! How much is fetched at a time decides what it is worth: a processor has places for some two dozen lines on their way, and what is
//! asked for beyond them is dropped or waits. So headers, rows and pairs are fetched between other work, one observation at a time.

use super::Parts;
use super::flows::{Flows, Number};
use super::short;
use super::table::{Delta, KEY_BYTES_MAX};
use super::target::Target;
use crate::model::TargetId;

/// Observations of a batch. With two batches all that they touch stays in a first-level cache of 32 KiB.
pub(super) const BATCH: usize = 16;

/// The targets' tables, by `TargetId`.
type Targets = [Option<Box<Target>>];

/// A waiting observation, a cache line of it. Its key is in `Batch::keys`, at its own index.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Waiting {
    pub(super) key_hash: u64,
    pub(super) delta: Delta,
    pub(super) weight: u32,
    /// The flow's place, until it is counted there.
    pub(super) flow: u32,
    pub(super) target: TargetId,
    key_length: u8,
    /// The key's in the key table; like the rest known when it was counted in its flow.
    pub(super) bucket: u32,
    pub(super) client_hash: u64,
    pub(super) number: Number,
}

const _: () = assert!(size_of::<Waiting>() == 64);

/// Of nothing.
const NOTHING: Waiting = Waiting {
    key_hash: 0,
    delta: Delta::NONE,
    weight: 0,
    flow: 0,
    target: TargetId(0),
    key_length: 0,
    bucket: 0,
    client_hash: 0,
    number: Number::NONE,
};

/// Observations of any targets. Whoever takes a target away empties the batches before.
pub(super) struct Batch {
    /// The first `count` are waiting.
    waiting: [Waiting; BATCH],
    keys: [[u8; KEY_BYTES_MAX]; BATCH],
    count: usize,
    /// The first ones, which are counted in their flows.
    counted: usize,
    /// Indices of those whose key may be in its second bucket: the first `late_count`.
    late: [u8; BATCH],
    late_count: usize,
}

impl Batch {
    pub(super) fn new() -> Box<Batch> {
        Box::new(Batch {
            waiting: [NOTHING; BATCH],
            keys: [[0; KEY_BYTES_MAX]; BATCH],
            count: 0,
            counted: 0,
            late: [0; BATCH],
            late_count: 0,
        })
    }

    /// Adds an observation of a key of at most [`KEY_BYTES_MAX`] bytes. True: the batch is full.
    #[inline(always)]
    pub(super) fn push(
        &mut self,
        target: TargetId,
        flow: usize,
        key: &[u8],
        key_hash: u64,
        delta: Delta,
        weight: u32,
    ) -> bool {
        short::copy(&mut self.keys[self.count], key);
        self.waiting[self.count] = Waiting {
            key_hash,
            delta,
            weight,
            flow: flow as u32,
            target,
            key_length: key.len() as u8,
            ..NOTHING
        };
        self.count += 1;
        self.count == BATCH
    }

    /// What has yet to be counted in its flow, and is from now on.
    #[inline(always)]
    pub(super) fn take_uncounted(&mut self) -> &mut [Waiting] {
        let from = std::mem::replace(&mut self.counted, self.count);
        &mut self.waiting[from..self.count]
    }

    /// Fetches the flows.
    pub(super) fn prefetch_flows(&self, flows: &Flows) {
        for waiting in &self.waiting[self.counted..self.count] {
            flows.prefetch(waiting.flow as usize);
        }
    }

    /// Fetches what a header points to.
    #[inline(always)]
    fn prefetch_row(&mut self, index: usize, targets: &Targets) {
        let waiting = &self.waiting[index];
        // Without a branch: which keys want a third step cannot be foreseen.
        self.late[self.late_count] = index as u8;
        let target = &targets[waiting.target.index()];
        let is_late =
            target.as_ref().is_some_and(|target| target.prefetch_slot(waiting.bucket, waiting.key_hash));
        self.late_count += usize::from(is_late);
    }

    /// Fetches what second headers point to.
    pub(super) fn prefetch_late(&self, targets: &Targets) {
        for &index in &self.late[..self.late_count] {
            let waiting = &self.waiting[usize::from(index)];
            if let Some(target) = &targets[waiting.target.index()] {
                target.prefetch_second(waiting.key_hash);
            }
        }
    }

    /// Counts everything in the tables of keys and pairs, and empties the batch. In between fetches the rows of the batch after it.
    pub(super) fn count_rows(&mut self, targets: &mut Targets, parts: Parts, after: &mut Batch) {
        let mut ahead = 0..if parts.prefetch { after.count } else { 0 };
        for (waiting, key) in self.waiting[..self.count].iter().zip(&self.keys) {
            if let Some(target) = &mut targets[waiting.target.index()] {
                let key = &key[..usize::from(waiting.key_length)];
                let Waiting { bucket, key_hash, client_hash, number, .. } = *waiting;
                let place = target.update_key(bucket, key_hash, key, &waiting.delta, waiting.weight);
                if parts.pairs {
                    target.update_pairs(place, key_hash, client_hash, number);
                }
            }
            if let Some(index) = ahead.next() {
                after.prefetch_row(index, targets);
            }
        }
        ahead.for_each(|index| after.prefetch_row(index, targets));
        (self.count, self.counted, self.late_count) = (0, 0, 0);
    }
}

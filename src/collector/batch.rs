//! Observations that wait to be counted, so that what they will touch is fetched before.
//!
//! Two batches follow one another. One is gathered; when it is full, its flows are counted and what it will touch of the tables is fetched,
//! which comes while the next one is gathered. Then it is counted in the tables.
//!
//! How much is fetched at a time decides what it is worth: a processor has places for some two dozen lines on their way, and what is
//! asked for beyond them is dropped or waits. So headers, rows and pairs are fetched between other work, one observation at a time.

use super::Parts;
use super::flows::{Flows, NOBODY, Spot};
use super::short;
use super::table::{Delta, KEY_BYTES_MAX};
use super::target::{Request, Target};
use crate::model::FlowTuple;

/// Observations of a batch. With two batches all that they touch stays in a first-level cache of 32 KiB.
pub(super) const BATCH: usize = 16;

/// The targets' tables, by `TargetId`.
type Targets = [Option<Box<Target>>];

/// A waiting observation. Its key is in `Batch::keys`, at its own index.
#[derive(Clone, Copy)]
pub(super) struct Waiting {
    pub(super) tuple: FlowTuple,
    pub(super) spot: Spot,
    pub(super) key_hash: u64,
    pub(super) delta: Delta,
    pub(super) weight: u32,
    /// Known when the flow was found.
    pub(super) client_hash: u64,
    pub(super) number: Option<u32>,
    key_length: u8,
}

/// Observations of any targets. Whoever takes a target away empties the batches before.
pub(super) struct Batch {
    /// The first `count` are waiting.
    waiting: [Waiting; BATCH],
    keys: [[u8; KEY_BYTES_MAX]; BATCH],
    count: usize,
    /// Indices of those whose key may be in its second bucket: the first `late_count`.
    late: [u8; BATCH],
    late_count: usize,
}

impl Batch {
    pub(super) fn new() -> Box<Batch> {
        const NOTHING: Waiting = Waiting {
            tuple: NOBODY,
            spot: Spot::NOWHERE,
            key_hash: 0,
            delta: Delta::NONE,
            weight: 0,
            client_hash: 0,
            number: None,
            key_length: 0,
        };
        Box::new(Batch {
            waiting: [NOTHING; BATCH],
            keys: [[0; KEY_BYTES_MAX]; BATCH],
            count: 0,
            late: [0; BATCH],
            late_count: 0,
        })
    }

    /// Adds an observation of a key of at most [`KEY_BYTES_MAX`] bytes. True: the batch is full.
    #[inline(always)]
    pub(super) fn push(
        &mut self,
        tuple: &FlowTuple,
        key: &[u8],
        key_hash: u64,
        delta: Delta,
        weight: u32,
    ) -> bool {
        short::copy(&mut self.keys[self.count], key);
        self.waiting[self.count] = Waiting {
            tuple: *tuple,
            spot: Spot::of(tuple),
            key_hash,
            delta,
            weight,
            client_hash: 0,
            number: None,
            key_length: key.len() as u8,
        };
        self.count += 1;
        self.count == BATCH
    }

    /// What is waiting.
    #[inline(always)]
    pub(super) fn waiting_mut(&mut self) -> &mut [Waiting] {
        &mut self.waiting[..self.count]
    }

    /// Fetches the flows.
    pub(super) fn prefetch_flows(&self, flows: &Flows) {
        for waiting in &self.waiting[..self.count] {
            flows.prefetch(waiting.spot);
        }
    }

    /// Fetches what a header points to.
    #[inline(always)]
    fn prefetch_row(&mut self, index: usize, targets: &Targets) {
        let waiting = &self.waiting[index];
        // Without a branch: which keys want a third step cannot be foreseen.
        self.late[self.late_count] = index as u8;
        let target = &targets[waiting.tuple.target.index()];
        let is_late = target.as_ref().is_some_and(|target| target.prefetch_slot(waiting.key_hash));
        self.late_count += usize::from(is_late);
    }

    /// Fetches what second headers point to.
    pub(super) fn prefetch_late(&self, targets: &Targets) {
        for &index in &self.late[..self.late_count] {
            let waiting = &self.waiting[usize::from(index)];
            if let Some(target) = &targets[waiting.tuple.target.index()] {
                target.prefetch_second(waiting.key_hash);
            }
        }
    }

    /// Counts everything in the tables of keys and pairs, and empties the batch. In between fetches the rows of the batch after it.
    pub(super) fn count_rows(&mut self, targets: &mut Targets, parts: Parts, after: &mut Batch) {
        for index in 0..self.count.max(after.count) {
            if index < self.count {
                self.count_row(index, targets, parts.pairs);
            }
            if index < after.count && parts.prefetch {
                after.prefetch_row(index, targets);
            }
        }
        (self.count, self.late_count) = (0, 0);
    }

    #[inline(always)]
    fn count_row(&self, index: usize, targets: &mut Targets, pairs: bool) {
        let waiting = &self.waiting[index];
        let request = Request {
            key: &self.keys[index][..usize::from(waiting.key_length)],
            key_hash: waiting.key_hash,
            client_hash: waiting.client_hash,
            number: waiting.number,
            delta: &waiting.delta,
            weight: waiting.weight,
        };
        if let Some(target) = &mut targets[waiting.tuple.target.index()] {
            target.update(&request, pairs);
        }
    }
}

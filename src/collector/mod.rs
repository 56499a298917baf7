//! From observations to rankings: per target, tables with a byte budget, and the snapshots that reports are made of.
//!
//! Each worker owns a [`Collector`] and nobody else touches it: all memory is taken at the start, an observation costs a fixed
//! amount of work, and nothing on the way allocates, locks or waits. When an interval closes, its rows are copied into
//! a [`Harvest`], which travels to the reporter, where [`merge()`] makes a [`snapshot::Snapshot`] of all workers' harvests.
//! Closing does not stop the observations: tables count in a new epoch at once, a bucket of the old one is copied before an
//! update takes its place, and a sweep copies the others slice by slice. [`window`] adds a target's snapshots of consecutive intervals
//! up, and [`Union`] the reports of several machines.
//!
//! Figures are exact while the tables have room. When they have not, every row says by how much it can be wrong
//! (`err`), and every snapshot what an unlisted row can have had ([`snapshot::Bounds`]). The requests in doubt, `err` of them, stand among a
//! row's `gets` as gets of unknown outcome; every other figure of such a row is a lower bound.

mod arena;
mod batch;
mod flows;
mod harvest;
mod kept;
mod latency;
mod merge;
mod numbers;
mod pairs;
mod short;
pub mod snapshot;
mod spill;
mod table;
mod target;
mod totals;
mod touched;
mod union;
pub mod window;

pub use harvest::Harvest;
pub use latency::ResponseTimes;
pub use merge::merge;
pub use union::{Union, Unlisted};

use crate::model::{FlowTuple, TargetId};
use crate::parser::Observation;
use crate::reassembly::TargetTally;
use batch::Batch;
use flows::{Flow, FlowId, Flows};
use foldhash::SharedSeed;
use foldhash::quality::SeedableRandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::OnceLock;
use std::time::Duration;
use table::{Delta, KEY_BYTES_MAX};
use target::{Origin, Target};

/// Least budget of a target's tables; some two thousand keys fit.
pub const BUDGET_MIN: u64 = 512 << 10;

/// What a collector is made of.
#[derive(Clone, Debug, Default)]
pub struct CollectorOptions {
    /// By `TargetId`.
    pub targets: Vec<TargetOptions>,
    /// Targets that there may ever be, these included: a `TargetId` is not used twice. Fewer than there are: no more than these.
    pub targets_max: usize,
    /// Of the hash functions; `None`: random, the same for all collectors of the process.
    pub seed: Option<u64>,
}

/// What one target is given.
#[derive(Clone, Debug)]
pub struct TargetOptions {
    /// Memory of its tables, taken at once.
    pub budget_bytes: u64,
    /// Keep a table of servers (a CIDR or `*`).
    pub servers: bool,
}

/// What a bench may leave out, to see what it costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Count pairs of key and client.
    pub pairs: bool,
    /// Fetch what a batch of observations will touch before it is touched.
    pub prefetch: bool,
}

impl Parts {
    /// Nothing is left out.
    pub const ALL: Parts = Parts { pairs: true, prefetch: true };
}

/// Why there is no collector.
#[derive(Debug, thiserror::Error)]
pub enum CollectorError {
    /// The budget does not hold tables of any use.
    #[error("a budget of {bytes} bytes is too small: a target's tables need at least {least}")]
    BudgetTooSmall {
        /// What was given.
        bytes: u64,
        /// What is needed.
        least: u64,
    },
    /// The system does not give the memory.
    #[error("cannot reserve {bytes} bytes for tables: {source}")]
    Memory {
        /// What was asked for.
        bytes: u64,
        /// What the system says.
        source: std::io::Error,
    },
}

/// Rows that a target's tables hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Keys.
    pub keys: usize,
    /// (key, client IP) pairs.
    pub pairs: usize,
    /// Clients by IP.
    pub clients: usize,
    /// Clients by IP and port.
    pub sockets: usize,
    /// Servers; 0 without a table of them.
    pub servers: usize,
}

impl Capacity {
    /// Adds another worker's.
    pub fn add(&mut self, other: &Capacity) {
        self.keys += other.keys;
        self.pairs += other.pairs;
        self.clients += other.clients;
        self.sockets += other.sockets;
        self.servers += other.servers;
    }
}

impl std::fmt::Display for Capacity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Capacity { keys, pairs, clients, sockets, servers } = *self;
        let thousands = [(keys, "keys"), (pairs, "pairs"), (clients, "clients"), (sockets, "connections")];
        for (count, noun) in thousands {
            write!(f, "{} {noun}, ", grouped(count))?;
        }
        write!(f, "{} servers", grouped(servers))
    }
}

/// A number with commas between its thousands.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|g| std::str::from_utf8(g).unwrap_or("")).collect();
    groups.join(",")
}

/// The tables of one target at one worker, on their way into a collector or out of one: made and emptied wherever there is time.
pub struct TargetTables {
    target: Box<Target>,
    /// Of the hashes in there, once they come from a collector.
    seed: u64,
}

impl TargetTables {
    /// Takes all memory that they will ever use, populated.
    pub fn new(options: &TargetOptions) -> Result<TargetTables, CollectorError> {
        if options.budget_bytes < BUDGET_MIN {
            return Err(CollectorError::BudgetTooSmall { bytes: options.budget_bytes, least: BUDGET_MIN });
        }
        TargetTables::of_any_size(options)
    }

    fn of_any_size(options: &TargetOptions) -> Result<TargetTables, CollectorError> {
        Ok(TargetTables { target: Box::new(Target::new(options)?), seed: 0 })
    }

    /// What they hold.
    pub fn capacity(&self) -> Capacity {
        self.target.capacity()
    }

    /// Copies what was counted since the last interval was closed into `harvest`.
    pub fn close(&mut self, harvest: &mut Harvest) {
        self.target.begin_close(harvest);
        self.target.end_close(harvest);
        harvest.seed = self.seed;
    }
}

impl std::fmt::Debug for TargetTables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TargetTables").field("capacity", &self.capacity()).finish_non_exhaustive()
    }
}

/// One worker's figures of all targets.
pub struct Collector {
    /// By `TargetId`; nothing where a target is not there yet, or not any more.
    targets: Vec<Option<Box<Target>>>,
    hasher: SeedableRandomState,
    /// As secret, and quicker: flows are told apart by it and never travel.
    flow_hasher: foldhash::fast::SeedableRandomState,
    /// Names the hash function: harvests with the same seed can be joined by hash.
    seed: u64,
    gathered: Box<Batch>,
    /// The batch before: counted in its flows, not yet in the tables.
    fetched: Box<Batch>,
    flows: Flows,
    /// Some target's closed interval has yet to be copied out.
    unswept: bool,
    parts: Parts,
}

impl Collector {
    /// Takes all memory that the tables will ever use.
    pub fn new(options: &CollectorOptions) -> Result<Collector, CollectorError> {
        Collector::with_tables(options, TargetTables::new)
    }

    #[cfg(test)]
    fn of_any_size(options: &CollectorOptions) -> Result<Collector, CollectorError> {
        Collector::with_tables(options, TargetTables::of_any_size)
    }

    fn with_tables(
        options: &CollectorOptions,
        tables: impl Fn(&TargetOptions) -> Result<TargetTables, CollectorError>,
    ) -> Result<Collector, CollectorError> {
        let targets_max = options.targets.len().max(options.targets_max);
        let mut targets = Vec::with_capacity(targets_max);
        for target in &options.targets {
            targets.push(Some(tables(target)?.target));
        }
        targets.resize_with(targets_max, || None);
        let (seed, shared) = match options.seed {
            Some(seed) => (seed, SharedSeed::global_fixed()),
            None => (process_seed(), SharedSeed::global_random()),
        };
        let hasher = SeedableRandomState::with_seed(seed, shared);
        let flow_hasher = foldhash::fast::SeedableRandomState::with_seed(seed, shared);
        let flows = Flows::new().map_err(|source| CollectorError::Memory { bytes: flows::BYTES, source })?;
        Ok(Collector {
            targets,
            hasher,
            flow_hasher,
            seed,
            gathered: Batch::new(),
            fetched: Batch::new(),
            flows,
            unswept: false,
            parts: Parts::ALL,
        })
    }

    /// Leaves parts out, for a bench: what reports state of pairs is not true then.
    pub fn count_only(&mut self, parts: Parts) {
        self.parts = parts;
    }

    /// What a target's tables hold.
    pub fn capacity(&self, target: TargetId) -> Capacity {
        self.targets
            .get(target.index())
            .and_then(Option::as_ref)
            .map_or(Capacity::default(), |target| target.capacity())
    }

    /// Begins to count a target that was not there before.
    ///
    /// # Panics
    /// When there may be no target of this number, or there is one already.
    pub fn install(&mut self, target: TargetId, tables: TargetTables) {
        let slot = &mut self.targets[target.index()];
        assert!(slot.is_none(), "a number is not given twice");
        *slot = Some(tables.target);
    }

    /// Takes a target out, with what was counted since its last interval was closed. What is observed of it from now on is not counted.
    /// Its last interval's rows have to be copied out before, with [`Collector::end_close`].
    pub fn remove(&mut self, target: TargetId) -> Option<TargetTables> {
        self.flush();
        let (flows, hasher) = (self.flows.take(target), &self.hasher);
        let mut removed = self.targets.get_mut(target.index())?.take()?;
        flows.for_each(|flow| removed.update_origin(flow, |bytes| hash(hasher, bytes)));
        Some(TargetTables { target: removed, seed: self.seed })
    }

    /// Counts an observation. Tables learn of it when its batch and the next one are full, at the latest when the interval is closed.
    #[inline]
    pub fn observe(&mut self, tuple: &FlowTuple, observation: &Observation<'_>) {
        let Some(Some(target)) = self.targets.get_mut(tuple.target.index()) else {
            return;
        };
        let micros = observation.latency.map(micros);
        target.count(observation, micros);
        if !observation.command.is_keyed() {
            return;
        }
        let delta = Delta::of(observation, micros);
        let weight = target.weight(&delta);
        let key = &observation.key[..observation.key.len().min(KEY_BYTES_MAX)];
        let key_hash = hash(&self.hasher, key);
        let id = FlowId::of(tuple, &self.flow_hasher);
        let flow = self.flows.find(id).unwrap_or_else(|| self.meet(id, tuple));
        if self.gathered.push(tuple.target, flow, key, key_hash, delta, weight) {
            self.advance();
            self.sweep_slice();
        }
    }

    /// Applies what is waiting, and copies a slice of what was closed.
    pub fn flush(&mut self) {
        // The batch that is gathered, and the one before.
        self.advance();
        self.advance();
        self.sweep_slice();
    }

    /// Counts the batch that was gathered in its flows and the one before it in the tables.
    fn advance(&mut self) {
        let Collector { targets, gathered, fetched, flows, parts, .. } = self;
        if parts.prefetch {
            fetched.prefetch_late(targets);
            gathered.prefetch_flows(flows);
        }
        self.count_flows();
        let Collector { targets, gathered, fetched, parts, .. } = self;
        fetched.count_rows(targets, *parts, gathered);
        std::mem::swap(gathered, fetched);
    }

    /// Adds what was gathered to the sums of its flows, which know their clients' places among the pairs. In between fetches headers and pairs.
    fn count_flows(&mut self) {
        let Collector { targets, gathered, flows, parts, .. } = self;
        for waiting in gathered.take_uncounted() {
            if let Some(target) = &targets[waiting.target.index()] {
                waiting.bucket = target.bucket_of(waiting.key_hash);
                if parts.prefetch {
                    target.prefetch_bucket(waiting.bucket);
                }
            }
            let flow = flows.at(waiting.flow as usize);
            flow.count(&waiting.delta, waiting.weight);
            (waiting.client_hash, waiting.number) = (flow.client_hash, flow.number);
            if parts.pairs
                && parts.prefetch
                && let Some(target) = &targets[waiting.target.index()]
            {
                target.prefetch_pairs(waiting.key_hash, waiting.client_hash, waiting.number);
            }
        }
    }

    /// Gives a flow a place, and writes what the one before it asked for.
    #[cold]
    fn meet(&mut self, id: FlowId, tuple: &FlowTuple) -> usize {
        if !self.flows.has_room(id) {
            // One that waits may be of the flow that goes.
            self.count_flows();
        }
        let Collector { targets, hasher, flows, .. } = self;
        let hash = |bytes: &[u8]| hash(hasher, bytes);
        let origin = Origin::of(tuple, hash);
        let number = targets[tuple.target.index()].as_mut().and_then(|target| target.number(&origin));
        let (at, former) = flows.insert(id, Flow::new(tuple, origin.client_hash, number));
        if let Some(former) = former
            && let Some(target) = &mut targets[former.tuple.target.index()]
        {
            target.update_origin(&former, hash);
        }
        at
    }

    fn sweep_slice(&mut self) {
        if self.unswept {
            self.sweep();
        }
    }

    /// Adds what reassembly counted for a target.
    pub fn add_tally(&mut self, target: TargetId, tally: &TargetTally) {
        if let Some(Some(target)) = self.targets.get_mut(target.index()) {
            target.add_tally(tally);
        }
    }

    /// Ends a target's interval and begins its next one, without a stop: rows are copied out by [`Collector::sweep`] and by the way.
    /// The old contents of `harvest` are lost; its new ones are complete after [`Collector::end_close`], which has to come before the
    /// next interval is ended.
    pub fn begin_close(&mut self, target: TargetId, harvest: &mut Harvest) {
        self.flush();
        let (flows, hasher) = (self.flows.take(target), &self.hasher);
        if let Some(Some(target)) = self.targets.get_mut(target.index()) {
            flows.for_each(|flow| target.update_origin(flow, |bytes| hash(hasher, bytes)));
            target.begin_close(harvest);
            harvest.seed = self.seed;
            self.unswept = true;
        }
    }

    /// Copies a slice of the intervals that were ended: as much work as a batch of observations is, each of which does the
    /// same. True: nothing is left to copy.
    pub fn sweep(&mut self) -> bool {
        // Target by target; those that are done answer at once.
        self.unswept = self.unswept && !self.targets.iter_mut().flatten().all(|target| target.sweep());
        !self.unswept
    }

    /// Hands over the rows of a target's interval that was ended by [`Collector::begin_close`] with the same harvest.
    pub fn end_close(&mut self, target: TargetId, harvest: &mut Harvest) {
        if let Some(Some(target)) = self.targets.get_mut(target.index()) {
            target.end_close(harvest);
        }
    }

    /// Ends a target's interval and copies it into `harvest` at once.
    pub fn close_interval(&mut self, target: TargetId, harvest: &mut Harvest) {
        self.begin_close(target, harvest);
        self.end_close(target, harvest);
    }
}

#[inline(always)]
fn hash(hasher: &SeedableRandomState, bytes: &[u8]) -> u64 {
    let mut hasher = hasher.build_hasher();
    hasher.write(bytes);
    hasher.finish()
}

/// Whole microseconds, by which times are counted everywhere.
#[inline(always)]
fn micros(time: Duration) -> u64 {
    time.as_secs().saturating_mul(1_000_000).saturating_add(u64::from(time.subsec_micros()))
}

/// A random number that stays the same until the process ends.
fn process_seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| std::hash::RandomState::new().build_hasher().finish())
}

#[cfg(test)]
mod tests;

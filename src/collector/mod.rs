//! From observations to rankings: per target, tables with a byte budget, and the snapshots that reports are made of.
//!
//! A [`Collector`] belongs to one worker and is private to it; the reporter merges the workers' [`Harvest`]s with [`merge`].
//! Tables are allocated at start-up from the target's budget and never grow. While an interval's traffic fits, every figure is exact; a
//! key that finds no room is counted (`Anomaly::Eviction`) and bounds what an unlisted key can have had ([`snapshot::Bounds`]).

pub mod harvest;
pub mod snapshot;
mod table;
pub mod window;

pub use harvest::{Harvest, merge};

use crate::anomaly::{Anomaly, AnomalyCounts};
use crate::model::{Command, FlowTuple, TargetId};
use crate::parser::Observation;
use crate::reassembly::TargetTally;
use harvest::TargetHarvest;
use hdrhistogram::Histogram;
use snapshot::{Counters, Totals};
use table::{ByteKeys, CountTable, EndpointKeys, IdPairs};

/// What to set aside for whom.
#[derive(Clone, Debug, Default)]
pub struct CollectorOptions {
    /// In the order of the targets' numbers.
    pub targets: Vec<TargetOptions>,
    /// Seed of the keyed hash; drawn at random when there is none.
    pub seed: Option<u64>,
}

/// One target's part.
#[derive(Clone, Copy, Debug)]
pub struct TargetOptions {
    /// Bytes of all its tables together.
    pub budget_bytes: u64,
    /// Whether to keep a table of its servers (a network or `*`).
    pub servers: bool,
}

/// Why tables cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CollectorError {
    /// The budget is too small for any table.
    #[error("a budget of {0} bytes a target is too small: at least {BUDGET_BYTES_MIN} are needed")]
    BudgetTooSmall(u64),
    /// There is no memory.
    #[error("no memory for tables of {0} bytes: lower --budget-mb or the number of targets")]
    NoMemory(u64),
}

/// Below this, tables would hold less than a small cache's hot keys.
pub const BUDGET_BYTES_MIN: u64 = 1_000_000;

/// How many rows a target's tables hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Keys.
    pub keys: usize,
    /// (Key, client) pairs.
    pub pairs: usize,
    /// Clients by IP, and by IP:port.
    pub clients: usize,
}

impl Capacity {
    /// Shares of the budget: half of it for keys with their bytes, three tenths for pairs by IP and by socket, the rest for clients.
    fn of(budget_bytes: u64) -> Capacity {
        /// Counters, hash, index and 40 key bytes, the mean of production caches (Twitter's cluster traces, 2020).
        const KEY_BYTES: u64 = 220;
        const PAIR_BYTES: u64 = 48;
        const CLIENT_BYTES: u64 = 180;
        let rows = |share: u64, bytes: u64| {
            usize::try_from(budget_bytes / 100 * share / bytes).unwrap_or(usize::MAX).max(64)
        };
        Capacity { keys: rows(50, KEY_BYTES), pairs: rows(15, PAIR_BYTES), clients: rows(6, CLIENT_BYTES) }
    }
}

/// Response times from 1 µs to a minute with two significant digits: 13 KB each, no allocation when recording.
fn histogram() -> Histogram<u64> {
    /// Longest response time told apart, microseconds.
    const LONGEST_US: u64 = 60_000_000;
    Histogram::new_with_bounds(1, LONGEST_US, 2).expect("the bounds are in order")
}

struct TargetTables {
    capacity: Capacity,
    totals: Totals,
    anomalies: AnomalyCounts,
    packets: [u64; 2],
    payload_packets: [u64; 2],
    latency: Histogram<u64>,
    /// By `Command::index`.
    command_latency: Vec<Histogram<u64>>,
    keys: CountTable<ByteKeys, Counters>,
    clients: CountTable<EndpointKeys, Counters>,
    sockets: CountTable<EndpointKeys, Counters>,
    servers: Option<CountTable<EndpointKeys, Counters>>,
    /// (Row of key, row of client) → requests.
    pairs: CountTable<IdPairs, u64>,
    /// (Row of key, row of socket) → requests.
    socket_pairs: CountTable<IdPairs, u64>,
}

/// The tables of one worker, for every target.
pub struct Collector {
    targets: Vec<TargetTables>,
}

impl Collector {
    /// Allocates everything, so that it cannot fail later.
    pub fn new(options: &CollectorOptions) -> Result<Collector, CollectorError> {
        let targets = options.targets.iter().map(|target| TargetTables::new(target, options.seed));
        Ok(Collector { targets: targets.collect::<Result<_, _>>()? })
    }

    /// What a target's tables hold.
    pub fn capacity(&self, target: TargetId) -> Capacity {
        self.targets[target.index()].capacity
    }

    /// Counts one observation. Never allocates.
    #[inline]
    pub fn observe(&mut self, tuple: &FlowTuple, observation: &Observation<'_>) {
        self.targets[tuple.target.index()].observe(tuple, observation);
    }

    /// Applies what waits to be applied in a batch.
    pub fn flush(&mut self) {}

    /// Adds what reassembly and parser counted for a target.
    pub fn add_tally(&mut self, target: TargetId, tally: &TargetTally) {
        let tables = &mut self.targets[target.index()];
        tables.totals.add_payload(tally.payload_bytes[0], tally.payload_bytes[1]);
        tables.anomalies.merge(&tally.anomalies);
        for direction in 0..2 {
            tables.packets[direction] += tally.packets[direction];
            tables.payload_packets[direction] += tally.payload_packets[direction];
        }
    }

    /// Copies a target's rows into `harvest` and begins a new interval.
    pub fn close_interval(&mut self, target: TargetId, harvest: &mut Harvest) {
        let tables = &mut self.targets[target.index()];
        harvest.fill(TargetHarvest {
            totals: &tables.totals,
            anomalies: &tables.anomalies,
            packets: tables.packets,
            payload_packets: tables.payload_packets,
            latency: &tables.latency,
            command_latency: &tables.command_latency,
            keys: &tables.keys,
            clients: &tables.clients,
            sockets: &tables.sockets,
            servers: tables.servers.as_ref(),
            pairs: &tables.pairs,
            socket_pairs: &tables.socket_pairs,
        });
        tables.clear();
    }
}

impl TargetTables {
    fn new(options: &TargetOptions, seed: Option<u64>) -> Result<TargetTables, CollectorError> {
        if options.budget_bytes < BUDGET_BYTES_MIN {
            return Err(CollectorError::BudgetTooSmall(options.budget_bytes));
        }
        let capacity = Capacity::of(options.budget_bytes);
        let no_memory = |_| CollectorError::NoMemory(options.budget_bytes);
        let servers = options.servers.then(|| CountTable::new(capacity.clients / 8, seed)).transpose();
        Ok(TargetTables {
            capacity,
            totals: Totals::default(),
            anomalies: AnomalyCounts::default(),
            packets: [0; 2],
            payload_packets: [0; 2],
            latency: histogram(),
            command_latency: (0..Command::COUNT).map(|_| histogram()).collect(),
            keys: CountTable::new(capacity.keys, seed).map_err(no_memory)?,
            clients: CountTable::new(capacity.clients, seed).map_err(no_memory)?,
            sockets: CountTable::new(capacity.clients, seed).map_err(no_memory)?,
            servers: servers.map_err(no_memory)?,
            pairs: CountTable::new(capacity.pairs, seed).map_err(no_memory)?,
            socket_pairs: CountTable::new(capacity.pairs, seed).map_err(no_memory)?,
        })
    }

    #[inline]
    fn observe(&mut self, tuple: &FlowTuple, observation: &Observation<'_>) {
        self.totals.observe(observation);
        if let Some(latency) = observation.latency {
            let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1);
            self.latency.saturating_record(micros);
            self.command_latency[observation.command.index()].saturating_record(micros);
        }
        if !observation.command.is_keyed() {
            return;
        }
        let count = |counters: &mut Counters| counters.observe(observation);
        let key = self.keys.update(observation.key, count);
        let client = self.clients.update(&tuple.client.without_port(), count);
        let socket = self.sockets.update(&tuple.client, count);
        if let Some(servers) = &mut self.servers {
            let server = servers.update(&tuple.server, count);
            self.count_eviction(server.is_none());
        }
        if let (Some(key), Some(client)) = (key, client) {
            let pair = self.pairs.update(&(key, client), |requests| *requests += 1);
            self.count_eviction(pair.is_none());
        }
        if let (Some(key), Some(socket)) = (key, socket) {
            let pair = self.socket_pairs.update(&(key, socket), |requests| *requests += 1);
            self.count_eviction(pair.is_none());
        }
        self.count_eviction(key.is_none());
        self.count_eviction(client.is_none());
        self.count_eviction(socket.is_none());
    }

    #[inline]
    fn count_eviction(&mut self, evicted: bool) {
        if evicted {
            self.anomalies.count(Anomaly::Eviction);
        }
    }

    fn clear(&mut self) {
        self.totals = Totals::default();
        self.anomalies = AnomalyCounts::default();
        (self.packets, self.payload_packets) = ([0; 2], [0; 2]);
        self.latency.reset();
        self.command_latency.iter_mut().for_each(Histogram::reset);
        self.keys.clear();
        self.clients.clear();
        self.sockets.clear();
        if let Some(servers) = &mut self.servers {
            servers.clear();
        }
        self.pairs.clear();
        self.socket_pairs.clear();
    }
}

//! The rows of one target's interval, copied out of one worker's tables: what travels from a worker to the reporter.
//!
//! A harvest is used again and again: after the first few intervals, filling it allocates nothing. What it left behind is bounded
//! by its own figures.

use super::Capacity;
use super::latency::Latencies;
use super::pairs::PairRows;
use super::snapshot::Totals;
use super::table::Rows;
use crate::anomaly::AnomalyCounts;

/// Pairs that are taken along for each row of a key.
const PAIRS_PER_ROW: usize = 4;
const SOCKET_PAIRS_PER_ROW: usize = 2;

/// Rows of keys for each row of a client that is taken along.
const KEYS_PER_CLIENT: usize = 4;

/// A buffer for one target's interval.
pub struct Harvest {
    /// Of the hashes in here.
    pub(super) seed: u64,
    pub(super) keys: Rows,
    pub(super) clients: Rows,
    pub(super) sockets: Rows,
    pub(super) servers: Rows,
    pub(super) pairs: PairRows,
    pub(super) socket_pairs: PairRows,
    /// Of the clients in `pairs` that are not their own numbers.
    pub(super) addresses: Vec<[u8; 16]>,
    pub(super) totals: Totals,
    pub(super) latencies: Latencies,
    pub(super) anomalies: AnomalyCounts,
    pub(super) packets: u64,
    pub(super) payload_packets: [u64; 2],
}

impl Harvest {
    /// An empty one that takes along about `rows_max` keys (`None`: every row of every table), the heaviest, and clients and pairs
    /// in proportion. `capacity` is the collector's for its target: there is no need of more room.
    pub fn new(rows_max: Option<usize>, capacity: Capacity) -> Harvest {
        let times = |factor: usize| rows_max.map(|rows| rows.saturating_mul(factor));
        // A small number is one that somebody wants to see all of.
        let clients_max = rows_max.map(|rows| (rows / KEYS_PER_CLIENT).max(rows.min(1024)));
        Harvest {
            seed: 0,
            keys: Rows::new(rows_max, capacity.keys),
            clients: Rows::new(clients_max, capacity.clients),
            sockets: Rows::new(clients_max, capacity.sockets),
            servers: Rows::new(clients_max, capacity.servers),
            pairs: PairRows::new(times(PAIRS_PER_ROW), capacity.pairs),
            socket_pairs: PairRows::new(times(SOCKET_PAIRS_PER_ROW), capacity.pairs),
            addresses: Vec::new(),
            totals: Totals::default(),
            latencies: Latencies::new(),
            anomalies: AnomalyCounts::default(),
            packets: 0,
            payload_packets: [0; 2],
        }
    }
}

impl std::fmt::Debug for Harvest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Harvest").field("keys", &self.keys.rows().len()).finish_non_exhaustive()
    }
}

//! The rows of one target's interval, copied out of one worker's tables: what travels from a worker to the reporter.
//!
//! A harvest is used again and again: after the first few intervals, filling it allocates nothing. What it left behind is bounded
//! by its own figures.

use super::latency::Latencies;
use super::pairs::{PairRows, Wanted};
use super::snapshot::Totals;
use super::table::Rows;
use crate::anomaly::AnomalyCounts;

/// Pairs that are taken along for each row.
const PAIRS_PER_ROW: usize = 8;

/// A buffer for one target's interval.
pub struct Harvest {
    /// Rows of each table; `None`: all of them.
    pub(super) rows_max: Option<usize>,
    pub(super) pairs_max: Option<usize>,
    /// Of the hashes in here.
    pub(super) seed: u64,
    pub(super) keys: Rows,
    pub(super) clients: Rows,
    pub(super) sockets: Rows,
    pub(super) servers: Rows,
    /// The keys, for choosing pairs.
    pub(super) wanted: Wanted,
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
    /// An empty one that takes along at most `rows_max` rows of each table (`None`: every row).
    pub fn new(rows_max: Option<usize>) -> Harvest {
        let pairs_max = rows_max.map(|rows| rows.saturating_mul(PAIRS_PER_ROW));
        Harvest {
            rows_max,
            pairs_max,
            seed: 0,
            keys: Rows::new(rows_max),
            clients: Rows::new(rows_max),
            sockets: Rows::new(rows_max),
            servers: Rows::default(),
            wanted: Wanted::new(),
            pairs: PairRows::new(pairs_max),
            socket_pairs: PairRows::new(pairs_max),
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
        f.debug_struct("Harvest").field("keys", &self.keys.rows.len()).finish_non_exhaustive()
    }
}

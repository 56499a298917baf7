//! The shape of a line: fields of the contract, and those that were added since, which may be absent.

use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Deserialize)]
pub(super) struct Line {
    pub(super) host: String,
    pub(super) target: String,
    #[serde(default)]
    pub(super) address: String,
    pub(super) start: String,
    pub(super) end: String,
    pub(super) requests: u64,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    #[serde(flatten)]
    pub(super) classes: Classes,
    #[serde(default)]
    pub(super) commands: BTreeMap<String, BTreeMap<String, u64>>,
    #[serde(default)]
    pub(super) latency_us: Quantiles,
    #[serde(default)]
    pub(super) clients_seen: u64,
    #[serde(default)]
    pub(super) connections_seen: u64,
    #[serde(default)]
    pub(super) keys_seen: u64,
    pub(super) loss: BTreeMap<String, u64>,
    pub(super) bounds: BoundsLine,
    pub(super) hot_keys: Vec<KeyLine>,
    pub(super) hot_clients: Vec<ClientLine>,
    #[serde(default)]
    pub(super) findings: Vec<FindingLine>,
    #[serde(default)]
    pub(super) partial: bool,
    #[serde(default)]
    pub(super) missed_keys: Vec<KeyLine>,
    #[serde(default)]
    pub(super) servers: Vec<ServerLine>,
    #[serde(default)]
    pub(super) command_latency_us: BTreeMap<String, Quantiles>,
    #[serde(default)]
    pub(super) leases: Leases,
    pub(super) capture: Option<Capture>,
    pub(super) unlisted: Option<UnlistedLine>,
    #[serde(default)]
    pub(super) histograms_us: BTreeMap<String, HistogramLine>,
    pub(super) privacy: Option<String>,
    pub(super) key_secret: Option<String>,
    pub(super) merged: Option<MergedLine>,
}

#[derive(Deserialize)]
pub(super) struct Classes {
    pub(super) gets: u64,
    pub(super) hits: u64,
    pub(super) misses: u64,
    pub(super) stores: u64,
    pub(super) deletes: Option<u64>,
    pub(super) touches: Option<u64>,
    pub(super) arithmetic: Option<u64>,
    pub(super) other: Option<u64>,
    #[serde(default)]
    pub(super) errors: u64,
}

#[derive(Deserialize, Default)]
pub(super) struct Quantiles {
    pub(super) p50: u64,
    pub(super) p90: u64,
    pub(super) p99: u64,
    pub(super) max: u64,
    pub(super) samples: u64,
}

#[derive(Deserialize)]
pub(super) struct BoundsLine {
    pub(super) key: u64,
    pub(super) client: u64,
    pub(super) pair: u64,
}

#[derive(Deserialize)]
pub(super) struct UnlistedLine {
    pub(super) key: u64,
    pub(super) client: u64,
    pub(super) pair: u64,
    pub(super) server: u64,
}

#[derive(Deserialize)]
pub(super) struct HistogramLine {
    pub(super) max: u64,
    pub(super) cells: Vec<(u64, u64)>,
}

#[derive(Deserialize)]
pub(super) struct MergedLine {
    pub(super) sources: Vec<SourceLine>,
}

#[derive(Deserialize)]
pub(super) struct SourceLine {
    pub(super) host: String,
    pub(super) reports: u64,
    pub(super) start: String,
    pub(super) end: String,
    pub(super) covered_us: u64,
}

#[derive(Deserialize, Default)]
pub(super) struct Leases {
    pub(super) won: u64,
    pub(super) stale: u64,
    pub(super) lost: u64,
}

#[derive(Deserialize)]
pub(super) struct Capture {
    pub(super) detail: String,
    pub(super) ring_blocks_peak: u32,
    pub(super) ring_blocks: u32,
    pub(super) freezes: u64,
    pub(super) worker_restarts: u64,
}

#[derive(Deserialize)]
pub(super) struct FindingLine {
    pub(super) id: String,
    pub(super) text: String,
}

#[derive(Deserialize, Default)]
pub(super) struct Mean {
    pub(super) mean: u64,
    pub(super) max: u64,
}

#[derive(Deserialize)]
pub(super) struct KeyLine {
    pub(super) key: String,
    pub(super) key_b64: Option<String>,
    #[serde(default)]
    pub(super) key_truncated: bool,
    #[serde(default)]
    pub(super) clients: Vec<PairLine>,
    #[serde(flatten)]
    pub(super) figures: Figures,
}

#[derive(Deserialize)]
pub(super) struct Figures {
    pub(super) requests: u64,
    pub(super) err: u64,
    #[serde(default)]
    pub(super) bytes_in: u64,
    #[serde(default)]
    pub(super) bytes_out: u64,
    #[serde(default)]
    pub(super) latency_us: Mean,
    pub(super) latency_samples: Option<u64>,
    #[serde(flatten)]
    pub(super) classes: Classes,
}

#[derive(Deserialize)]
pub(super) struct PairLine {
    pub(super) client: String,
    pub(super) requests: u64,
    pub(super) err: u64,
}

#[derive(Deserialize)]
pub(super) struct ClientLine {
    pub(super) client: String,
    #[serde(flatten)]
    pub(super) figures: Figures,
    #[serde(flatten)]
    pub(super) top: TopLine,
}

#[derive(Deserialize)]
pub(super) struct ServerLine {
    pub(super) server: String,
    #[serde(flatten)]
    pub(super) figures: Figures,
    #[serde(flatten)]
    pub(super) top: TopLine,
}

#[derive(Deserialize)]
pub(super) struct TopLine {
    pub(super) top_key: Option<String>,
    pub(super) top_key_b64: Option<String>,
    #[serde(default)]
    pub(super) top_key_requests: u64,
}

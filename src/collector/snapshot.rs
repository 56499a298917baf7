//! The unchanging figures of a closed interval, merged over workers: what every report is made of.
//!
//! A snapshot owns its rows. Rows come ranked by nothing in particular; `ranking` puts questions to them.

use super::latency::ResponseTimes;
use crate::anomaly::AnomalyCounts;
use crate::capture::ladder::Rung;
use crate::model::{Command, CommandClass, Endpoint, Outcome, Timestamp};
use crate::parser::Observation;
use std::time::Duration;

/// The counters that a total, a key and a client have in common. Counts are requests; one request is one key's share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Keys asked for.
    pub gets: u64,
    /// Of these, found.
    pub hits: u64,
    /// Of these, not found. `gets - hits - misses` had no known outcome.
    pub misses: u64,
    /// Writes tried.
    pub stores: u64,
    /// Deletions tried.
    pub deletes: u64,
    /// Touches tried.
    pub touches: u64,
    /// Increments and decrements tried.
    pub arithmetic: u64,
    /// Keyed commands of no other class.
    pub other: u64,
    /// Requests answered by an error.
    pub errors: u64,
    /// Request bytes on the wire.
    pub bytes_in: u64,
    /// Response bytes on the wire.
    pub bytes_out: u64,
    /// Sum of response times, microseconds.
    pub latency_sum_us: u64,
    /// Number of response times.
    pub latency_samples: u64,
    /// Longest response time, microseconds.
    pub latency_max_us: u64,
}

impl Counters {
    /// `gets + stores + deletes + touches + arithmetic + other`.
    pub fn requests(&self) -> u64 {
        self.gets + self.stores + self.deletes + self.touches + self.arithmetic + self.other
    }

    /// Counts one observation. Keyless commands add bytes, errors and response times, and no request.
    pub fn observe(&mut self, observation: &Observation<'_>) {
        match observation.command.class() {
            CommandClass::Retrieval => {
                self.gets += 1;
                match observation.outcome {
                    Outcome::Hit => self.hits += 1,
                    Outcome::Miss => self.misses += 1,
                    _ => {}
                }
            }
            CommandClass::Storage => self.stores += 1,
            CommandClass::Deletion => self.deletes += 1,
            CommandClass::Touch => self.touches += 1,
            CommandClass::Arithmetic => self.arithmetic += 1,
            CommandClass::Other => self.other += 1,
            CommandClass::Keyless => {}
        }
        self.errors += u64::from(matches!(observation.outcome, Outcome::Error | Outcome::TooLarge));
        self.bytes_in += observation.request_bytes;
        self.bytes_out += observation.response_bytes;
        if let Some(latency) = observation.latency {
            let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
            self.latency_sum_us += micros;
            self.latency_samples += 1;
            self.latency_max_us = self.latency_max_us.max(micros);
        }
    }

    /// Adds another set of counters to this one.
    pub fn merge(&mut self, other: &Counters) {
        self.gets += other.gets;
        self.hits += other.hits;
        self.misses += other.misses;
        self.stores += other.stores;
        self.deletes += other.deletes;
        self.touches += other.touches;
        self.arithmetic += other.arithmetic;
        self.other += other.other;
        self.errors += other.errors;
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.latency_sum_us += other.latency_sum_us;
        self.latency_samples += other.latency_samples;
        self.latency_max_us = self.latency_max_us.max(other.latency_max_us);
    }

    /// Mean response time in microseconds, when there was one.
    pub fn latency_mean_us(&self) -> Option<u64> {
        self.latency_sum_us.checked_div(self.latency_samples)
    }

    /// `hits / (hits + misses)`, when either is known.
    pub fn hit_ratio(&self) -> Option<f64> {
        let known = self.hits + self.misses;
        (known > 0).then(|| self.hits as f64 / known as f64)
    }
}

/// Requests of one command by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommandOutcomes {
    /// Requests: keys for keyed commands, commands for keyless ones.
    pub requests: u64,
    /// By `Outcome::index`; they sum to `requests`.
    pub outcomes: [u64; Outcome::COUNT],
}

/// Exact sums over everything that was parsed, whatever the tables had to evict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Totals {
    /// Sums over keyed and keyless commands. `bytes_in` and `bytes_out` here count every payload byte, undecoded ones
    /// included, and are therefore not the sums over rows.
    pub counters: Counters,
    /// By `Command::index`.
    pub commands: [CommandOutcomes; Command::COUNT],
    /// `mg` that won a lease, met a stale item, lost a lease.
    pub leases: [u64; 3],
    /// Response times by command, so that those of several intervals can be put together.
    pub response_times: ResponseTimes,
}

impl Default for Totals {
    fn default() -> Totals {
        Totals {
            counters: Counters::default(),
            commands: [CommandOutcomes::default(); Command::COUNT],
            leases: [0; 3],
            response_times: ResponseTimes::default(),
        }
    }
}

impl Totals {
    /// Adds another set of totals to this one.
    pub fn merge(&mut self, other: &Totals) {
        self.counters.merge(&other.counters);
        for (mine, theirs) in self.commands.iter_mut().zip(&other.commands) {
            mine.requests += theirs.requests;
            for (outcome, count) in mine.outcomes.iter_mut().zip(theirs.outcomes) {
                *outcome += count;
            }
        }
        for (mine, theirs) in self.leases.iter_mut().zip(other.leases) {
            *mine += theirs;
        }
        self.response_times.merge(&other.response_times);
    }
}

/// A key's figures. The truth of its requests lies in `[requests - err, requests]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRow {
    /// The exact bytes; the first of them, when `truncated`.
    pub key: Box<[u8]>,
    /// The table had no room for all of the key's bytes; its identity is exact all the same.
    pub truncated: bool,
    /// Greatest number of requests that belong to keys which held this row before. 0: every figure is exact.
    pub err: u64,
    /// The figures.
    pub counters: Counters,
    /// Clients of this key, by IP (port 0), most requests first, as far as the pair table holds them.
    pub clients: Vec<PairRow>,
}

/// One client's share of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairRow {
    /// The client; port 0.
    pub client: Endpoint,
    /// Requests.
    pub requests: u64,
    /// As in [`KeyRow::err`].
    pub err: u64,
}

/// A client's figures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientRow {
    /// The client; port 0 in rankings by IP.
    pub client: Endpoint,
    /// As in [`KeyRow::err`].
    pub err: u64,
    /// The figures.
    pub counters: Counters,
    /// The key that it asked for most and how often, where the pair table knows.
    pub top_key: Option<(Box<[u8]>, u64)>,
}

/// A server's figures, where a target is a CIDR or `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerRow {
    /// The server.
    pub server: Endpoint,
    /// As in [`KeyRow::err`].
    pub err: u64,
    /// The figures.
    pub counters: Counters,
    /// The key that its connections asked for most, and so often at least: of connections whose address another server saw too, and of
    /// requests that the pair table left out, nothing counts here. Where one server was all there was, keys tell it by themselves. A
    /// missing key means that nothing is certain.
    pub top_key: Option<(Box<[u8]>, u64)>,
}

/// Response times, microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LatencySummary {
    /// Median.
    pub p50: u64,
    /// 90th percentile.
    pub p90: u64,
    /// 99th percentile.
    pub p99: u64,
    /// Longest.
    pub max: u64,
    /// Number of response times.
    pub samples: u64,
}

/// What could be missing from the figures, by cause.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Packets that the capture handed to us in this interval and that belong to the target.
    pub packets: u64,
    /// Packets that the kernel dropped because the ring was full. Of the whole capture: nobody knows whose they were.
    pub ring_dropped: u64,
    /// Packets that the network card dropped, of the whole capture.
    pub nic_dropped: u64,
    /// Packets that a worker had taken but not parsed when it failed, of the whole capture.
    pub worker_lost: u64,
    /// Everything else, of this target.
    pub anomalies: AnomalyCounts,
}

/// How the capture fared over the interval. Of the whole capture, not of one target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CaptureHealth {
    /// Most blocks of a ring that waited to be read at once: the best early warning of drops.
    pub ring_blocks_peak: u32,
    /// Blocks of that ring; 0 when packets came from a recording.
    pub ring_blocks: u32,
    /// Times that a ring was found full.
    pub freezes: u64,
    /// Times that a worker failed and began anew, having forgotten its connections.
    pub worker_restarts: u64,
    /// The lowest rung of the load ladder that was in force.
    pub rung: Rung,
}

impl CaptureHealth {
    /// Takes another worker's or another interval's in.
    pub fn merge(&mut self, other: &CaptureHealth) {
        let share = |health: &CaptureHealth| {
            (u64::from(health.ring_blocks_peak) << 32) / u64::from(health.ring_blocks.max(1))
        };
        if (share(other), other.ring_blocks) > (share(self), self.ring_blocks) {
            (self.ring_blocks_peak, self.ring_blocks) = (other.ring_blocks_peak, other.ring_blocks);
        }
        self.freezes += other.freezes;
        self.worker_restarts += other.worker_restarts;
        self.rung = self.rung.max(other.rung);
    }
}

/// What a key or client that is not listed can have had at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Requests of an unlisted key.
    pub key: u64,
    /// Requests of an unlisted client.
    pub client: u64,
    /// Requests of an unlisted (key, client) pair.
    pub pair: u64,
}

/// The figures of one target over one interval.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// The target's name.
    pub target: String,
    /// Its address as configured, with the port.
    pub address: String,
    /// Start of the interval.
    pub start: Timestamp,
    /// End of the interval.
    pub end: Timestamp,
    /// The interval is shorter than its nominal length (first and last of a run).
    pub partial: bool,
    /// Exact sums.
    pub totals: Totals,
    /// Response times of all commands.
    pub latency: LatencySummary,
    /// Response times by command, those that had any.
    pub command_latency: Vec<(Command, LatencySummary)>,
    /// Distinct client IPs seen.
    pub clients_seen: u64,
    /// Distinct client sockets seen.
    pub connections_seen: u64,
    /// Distinct keys held (a lower bound once the table evicts).
    pub keys_seen: u64,
    /// What could be missing.
    pub loss: Loss,
    /// How the capture fared.
    pub health: CaptureHealth,
    /// Bounds for what is not listed.
    pub bounds: Bounds,
    /// Keys held: all of them, or at least those that any ranking could list.
    pub keys: Vec<KeyRow>,
    /// Clients by IP.
    pub clients: Vec<ClientRow>,
    /// Clients by IP:port.
    pub sockets: Vec<ClientRow>,
    /// Servers of a CIDR or `*` target; empty for a single address.
    pub servers: Vec<ServerRow>,
    /// Payload seen in each direction ([to server, to client]) in packets, to find out when one is missing.
    pub packets_by_direction: [u64; 2],
}

impl Snapshot {
    /// Length of the interval.
    pub fn length(&self) -> Duration {
        self.end.since(self.start)
    }
}

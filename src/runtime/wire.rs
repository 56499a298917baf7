//! Version 1 of what travels over the control socket: lines of JSON, one object each, with `v` and `type` first.
//!
//! A line that is no object, is too long, or names what is not known here is refused by name. Fields are only ever added. Rows are
//! the heaviest of an interval, already as the daemon's privacy shows them; bounds say what was left behind.

use crate::anomaly::{Anomaly, AnomalyCounts};
use crate::capture::ladder::Rung;
use crate::collector::snapshot::{
    Bounds, CaptureHealth, ClientRow, CommandOutcomes, Counters, KeyRow, LatencySummary, Loss, PairRow,
    ServerRow, Snapshot,
};
use crate::config::TargetConfig;
use crate::model::{Command, Endpoint, Outcome, Timestamp, Transport};
use crate::report::{EndpointSeen, SeenElsewhere, SourceSeen};
use crate::top::Frame;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// The version of everything here.
pub(super) const VERSION: u32 = 1;

/// Rows of a kind that a line carries of each target.
pub(super) const ROWS_MAX: usize = 2048;

/// What a client asks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Request {
    /// To be told of every interval from now on.
    Watch,
    /// Which targets there are.
    Targets,
    /// To watch one more.
    AddTarget(NewTarget),
    /// To watch one no more.
    RemoveTarget {
        /// Which.
        name: String,
    },
}

/// A target as the configuration file describes it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct NewTarget {
    pub(super) name: String,
    pub(super) address: String,
    pub(super) port: u16,
    /// "tcp", "udp", or both.
    pub(super) protocols: Vec<String>,
    pub(super) budget_bytes: u64,
}

impl NewTarget {
    pub(super) fn of(target: &TargetConfig) -> NewTarget {
        let protocols = [(target.tcp, "tcp"), (target.udp, "udp")];
        NewTarget {
            name: target.name.clone(),
            address: target.network.to_string(),
            port: target.port,
            protocols: protocols.iter().filter(|(is, _)| *is).map(|(_, name)| (*name).to_string()).collect(),
            budget_bytes: target.budget_bytes,
        }
    }

    /// Judged as the file's are.
    pub(super) fn read(&self) -> Result<TargetConfig, String> {
        TargetConfig::from_values(&self.name, &self.address, self.port, &self.protocols, self.budget_bytes)
    }
}

/// What a daemon says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Answer {
    /// Its first line.
    Hello {
        /// The program's own version.
        program: String,
        /// The machine.
        host: String,
        /// How keys are shown.
        privacy: String,
    },
    /// A closed interval.
    Interval(Box<IntervalWire>),
    /// So many intervals were not sent because the client was slow.
    Skipped {
        /// Number of them since the last such line.
        intervals: u64,
    },
    /// The targets.
    Targets {
        /// In the order of the reports.
        targets: Vec<TargetWire>,
    },
    /// What was asked for is done: the target is watched, or is not any more.
    Changed {
        /// Which.
        target: TargetWire,
    },
    /// What was asked for is not done.
    Error {
        /// Why.
        text: String,
    },
}

/// A line: the version beside what is said.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Line<T> {
    pub(super) v: u32,
    #[serde(flatten)]
    pub(super) says: T,
}

/// A line of bytes, with its end.
pub(super) fn encode<T: Serialize>(says: T) -> Vec<u8> {
    let mut line =
        serde_json::to_vec(&Line { v: VERSION, says }).expect("these types have no map but of texts");
    line.push(b'\n');
    line
}

/// What a line says, or what is wrong with it.
pub(super) fn decode<T: for<'de> Deserialize<'de>>(line: &[u8]) -> Result<T, String> {
    #[derive(Deserialize)]
    struct Version {
        v: u32,
    }
    let version: Version =
        serde_json::from_slice(line).map_err(|_| "not an object with a version \"v\"".to_string())?;
    if version.v != VERSION {
        return Err(format!("version {} is spoken there, and {VERSION} here", version.v));
    }
    let line: Line<T> = serde_json::from_slice(line).map_err(|error| format!("not understood: {error}"))?;
    Ok(line.says)
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct TargetWire {
    pub(super) name: String,
    pub(super) address: String,
    pub(super) budget_bytes: u64,
    /// "adding", "watched", "removing"; "removed" of one that has gone.
    #[serde(default)]
    pub(super) state: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct IntervalWire {
    targets: Vec<SnapshotWire>,
    seen: SeenWire,
}

#[derive(Debug, Serialize, Deserialize)]
struct SeenWire {
    sources: Vec<(String, u64)>,
    packets_matched: u64,
    packets_foreign: u64,
    /// Address, "tcp" or "udp", packets.
    busiest: Vec<(SocketAddr, String, u64)>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SnapshotWire {
    target: String,
    address: String,
    start_ns: u64,
    end_ns: u64,
    partial: bool,
    counters: CountersWire,
    commands: Vec<CommandWire>,
    leases: [u64; 3],
    latency: LatencyWire,
    clients_seen: u64,
    connections_seen: u64,
    keys_seen: u64,
    packets: u64,
    ring_dropped: u64,
    nic_dropped: u64,
    worker_lost: u64,
    health: HealthWire,
    anomalies: Vec<(String, u64)>,
    bounds: [u64; 3],
    packets_by_direction: [u64; 2],
    keys: Vec<KeyWire>,
    clients: Vec<ClientWire>,
    sockets: Vec<ClientWire>,
    servers: Vec<ClientWire>,
}

#[derive(Debug, Serialize, Deserialize)]
struct HealthWire {
    ring_blocks_peak: u32,
    ring_blocks: u32,
    freezes: u64,
    worker_restarts: u64,
    rung: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct CommandWire {
    name: String,
    requests: u64,
    outcomes: Vec<(String, u64)>,
    latency: Option<LatencyWire>,
    longest_us: u64,
    /// Of its histogram: microseconds, count.
    times: Vec<(u64, u64)>,
}

#[derive(Debug, Serialize, Deserialize)]
struct LatencyWire {
    p50: u64,
    p90: u64,
    p99: u64,
    max: u64,
    samples: u64,
}

/// From the one list of the counters: their array, and the way there and back. One that is missing here is missing in a literal of
/// [`Counters`].
macro_rules! counters_wire {
    ($($counter:ident),* $(,)?) => {
        type CountersWire = [u64; [$(stringify!($counter)),*].len()];

        fn counters(counters: &Counters) -> CountersWire {
            [$(counters.$counter),*]
        }

        fn read_counters([$($counter),*]: CountersWire) -> Counters {
            Counters { $($counter),* }
        }
    };
}

// Their order is the protocol's: one that is new stands at the end, and is another version.
counters_wire!(
    gets,
    hits,
    misses,
    stores,
    deletes,
    touches,
    arithmetic,
    other,
    errors,
    bytes_in,
    bytes_out,
    latency_sum_us,
    latency_samples,
    latency_max_us,
);

#[derive(Debug, Serialize, Deserialize)]
struct KeyWire {
    key_b64: String,
    #[serde(default)]
    truncated: bool,
    err: u64,
    counters: CountersWire,
    /// Client, requests, error.
    clients: Vec<(SocketAddr, u64, u64)>,
}

/// A client's row, or a server's.
#[derive(Debug, Serialize, Deserialize)]
struct ClientWire {
    address: SocketAddr,
    err: u64,
    counters: CountersWire,
    /// Key in base64, requests.
    top_key: Option<(String, u64)>,
}

/// The interval as it may be sent: `frame` is masked and cut to its heaviest rows.
pub(super) fn interval(frame: &Frame) -> Answer {
    let seen = &frame.seen;
    Answer::Interval(Box::new(IntervalWire {
        targets: frame.snapshots.iter().map(snapshot).collect(),
        seen: SeenWire {
            sources: seen.sources.iter().map(|source| (source.name.clone(), source.packets)).collect(),
            packets_matched: seen.packets_matched,
            packets_foreign: seen.packets_foreign,
            busiest: seen
                .busiest
                .iter()
                .map(|busy| {
                    let transport = match busy.transport {
                        Transport::Tcp => "tcp",
                        Transport::Udp => "udp",
                    };
                    (socket(&busy.endpoint), transport.to_string(), busy.packets)
                })
                .collect(),
        },
    }))
}

fn socket(endpoint: &Endpoint) -> SocketAddr {
    SocketAddr::new(endpoint.ip(), endpoint.port())
}

fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint::new(address.ip(), address.port())
}

fn snapshot(snapshot: &Snapshot) -> SnapshotWire {
    let client =
        |client: &Endpoint, err, figures: &Counters, top_key: &Option<(Box<[u8]>, u64)>| ClientWire {
            address: socket(client),
            err,
            counters: counters(figures),
            top_key: top_key.as_ref().map(|(key, requests)| (STANDARD.encode(key), *requests)),
        };
    let clients = |rows: &[ClientRow]| -> Vec<ClientWire> {
        rows.iter().map(|row| client(&row.client, row.err, &row.counters, &row.top_key)).collect()
    };
    let servers =
        snapshot.servers.iter().map(|row| client(&row.server, row.err, &row.counters, &row.top_key));
    SnapshotWire {
        target: snapshot.target.clone(),
        address: snapshot.address.clone(),
        start_ns: snapshot.start.nanos(),
        end_ns: snapshot.end.nanos(),
        partial: snapshot.partial,
        counters: counters(&snapshot.totals.counters),
        commands: commands(snapshot),
        leases: snapshot.totals.leases,
        latency: latency(&snapshot.latency),
        clients_seen: snapshot.clients_seen,
        connections_seen: snapshot.connections_seen,
        keys_seen: snapshot.keys_seen,
        packets: snapshot.loss.packets,
        ring_dropped: snapshot.loss.ring_dropped,
        nic_dropped: snapshot.loss.nic_dropped,
        worker_lost: snapshot.loss.worker_lost,
        health: health(&snapshot.health),
        anomalies: snapshot
            .loss
            .anomalies
            .iter()
            .map(|(anomaly, count)| (anomaly.name().to_string(), count))
            .collect(),
        bounds: [snapshot.bounds.key, snapshot.bounds.client, snapshot.bounds.pair],
        packets_by_direction: snapshot.packets_by_direction,
        keys: snapshot.keys.iter().map(key).collect(),
        clients: clients(&snapshot.clients),
        sockets: clients(&snapshot.sockets),
        servers: servers.collect(),
    }
}

fn commands(snapshot: &Snapshot) -> Vec<CommandWire> {
    let mut times: Vec<_> = snapshot.totals.response_times.cells().collect();
    let commands = Command::ALL.iter().filter_map(|&command| {
        let figures = &snapshot.totals.commands[command.index()];
        let cells = times.iter().position(|(of, ..)| *of == command).map(|at| times.swap_remove(at));
        if figures.requests == 0 && cells.is_none() {
            return None;
        }
        let outcomes = Outcome::ALL.iter().map(|outcome| (outcome.name(), figures.outcomes[outcome.index()]));
        let summary = snapshot.command_latency.iter().find(|(of, _)| *of == command);
        let (longest_us, times) = cells.map_or((0, Vec::new()), |(_, longest, cells)| (longest, cells));
        Some(CommandWire {
            name: command.name().to_string(),
            requests: figures.requests,
            outcomes: outcomes
                .filter(|(_, count)| *count > 0)
                .map(|(name, count)| (name.to_string(), count))
                .collect(),
            latency: summary.map(|(_, summary)| latency(summary)),
            longest_us,
            times,
        })
    });
    commands.collect()
}

fn key(row: &KeyRow) -> KeyWire {
    KeyWire {
        key_b64: STANDARD.encode(&row.key),
        truncated: row.truncated,
        err: row.err,
        counters: counters(&row.counters),
        clients: row.clients.iter().map(|pair| (socket(&pair.client), pair.requests, pair.err)).collect(),
    }
}

fn health(health: &CaptureHealth) -> HealthWire {
    let CaptureHealth { ring_blocks_peak, ring_blocks, freezes, worker_restarts, rung } = *health;
    HealthWire { ring_blocks_peak, ring_blocks, freezes, worker_restarts, rung: rung.name().to_string() }
}

fn read_health(wire: &HealthWire) -> CaptureHealth {
    let HealthWire { ring_blocks_peak, ring_blocks, freezes, worker_restarts, ref rung } = *wire;
    let rung = Rung::ALL.iter().find(|known| known.name() == rung).copied().unwrap_or_default();
    CaptureHealth { ring_blocks_peak, ring_blocks, freezes, worker_restarts, rung }
}

fn latency(summary: &LatencySummary) -> LatencyWire {
    let LatencySummary { p50, p90, p99, max, samples } = *summary;
    LatencyWire { p50, p90, p99, max, samples }
}

fn read_latency(wire: &LatencyWire) -> LatencySummary {
    let LatencyWire { p50, p90, p99, max, samples } = *wire;
    LatencySummary { p50, p90, p99, max, samples }
}

/// The interval that a line holds. Names that are not known here (a newer daemon's) are passed over.
pub(super) fn read_interval(wire: IntervalWire) -> Result<Frame, String> {
    let SeenWire { sources, packets_matched, packets_foreign, busiest } = wire.seen;
    let seen = SeenElsewhere {
        sources: sources.into_iter().map(|(name, packets)| SourceSeen { name, packets }).collect(),
        packets_matched,
        packets_foreign,
        busiest: busiest
            .into_iter()
            .map(|(address, transport, packets)| EndpointSeen {
                endpoint: endpoint(address),
                transport: if transport == "udp" { Transport::Udp } else { Transport::Tcp },
                packets,
            })
            .collect(),
    };
    let snapshots = wire.targets.into_iter().map(read_snapshot).collect::<Result<_, _>>()?;
    Ok(Frame { snapshots, seen })
}

fn read_snapshot(wire: SnapshotWire) -> Result<Snapshot, String> {
    let mut snapshot = Snapshot {
        target: wire.target,
        address: wire.address,
        start: Timestamp::from_nanos(wire.start_ns),
        end: Timestamp::from_nanos(wire.end_ns),
        partial: wire.partial,
        latency: read_latency(&wire.latency),
        clients_seen: wire.clients_seen,
        connections_seen: wire.connections_seen,
        keys_seen: wire.keys_seen,
        loss: Loss {
            packets: wire.packets,
            ring_dropped: wire.ring_dropped,
            nic_dropped: wire.nic_dropped,
            worker_lost: wire.worker_lost,
            anomalies: AnomalyCounts::default(),
        },
        health: read_health(&wire.health),
        bounds: Bounds { key: wire.bounds[0], client: wire.bounds[1], pair: wire.bounds[2] },
        packets_by_direction: wire.packets_by_direction,
        keys: wire.keys.into_iter().map(read_key).collect::<Result<_, _>>()?,
        clients: wire.clients.into_iter().map(read_client).collect::<Result<_, _>>()?,
        sockets: wire.sockets.into_iter().map(read_client).collect::<Result<_, _>>()?,
        servers: wire.servers.into_iter().map(read_server).collect::<Result<_, _>>()?,
        ..Snapshot::default()
    };
    snapshot.totals.counters = read_counters(wire.counters);
    snapshot.totals.leases = wire.leases;
    for (name, count) in wire.anomalies {
        if let Some(anomaly) = Anomaly::ALL.iter().find(|anomaly| anomaly.name() == name) {
            snapshot.loss.anomalies.add(*anomaly, count);
        }
    }
    for command in wire.commands {
        read_command(command, &mut snapshot);
    }
    Ok(snapshot)
}

fn read_command(wire: CommandWire, snapshot: &mut Snapshot) {
    let Some(&command) = Command::ALL.iter().find(|command| command.name() == wire.name) else { return };
    let mut figures = CommandOutcomes { requests: wire.requests, ..CommandOutcomes::default() };
    for (name, count) in wire.outcomes {
        if let Some(outcome) = Outcome::ALL.iter().find(|outcome| outcome.name() == name) {
            figures.outcomes[outcome.index()] = count;
        }
    }
    snapshot.totals.commands[command.index()] = figures;
    if !wire.times.is_empty() {
        snapshot.totals.response_times.add_cells(command, wire.longest_us, &wire.times);
    }
    if let Some(summary) = &wire.latency {
        snapshot.command_latency.push((command, read_latency(summary)));
    }
}

fn read_bytes(text: &str) -> Result<Box<[u8]>, String> {
    STANDARD.decode(text).map(Vec::into_boxed_slice).map_err(|error| format!("a key is not base64: {error}"))
}

fn read_key(wire: KeyWire) -> Result<KeyRow, String> {
    let pairs = wire.clients.into_iter();
    Ok(KeyRow {
        key: read_bytes(&wire.key_b64)?,
        truncated: wire.truncated,
        err: wire.err,
        counters: read_counters(wire.counters),
        clients: pairs
            .map(|(client, requests, err)| PairRow { client: endpoint(client), requests, err })
            .collect(),
    })
}

/// A row's hottest key and its requests.
type TopKey = Option<(Box<[u8]>, u64)>;

fn read_top_key(top: Option<(String, u64)>) -> Result<TopKey, String> {
    top.map(|(key, requests)| Ok((read_bytes(&key)?, requests))).transpose()
}

fn read_client(wire: ClientWire) -> Result<ClientRow, String> {
    Ok(ClientRow {
        client: endpoint(wire.address),
        err: wire.err,
        counters: read_counters(wire.counters),
        top_key: read_top_key(wire.top_key)?,
    })
}

fn read_server(wire: ClientWire) -> Result<ServerRow, String> {
    Ok(ServerRow {
        server: endpoint(wire.address),
        err: wire.err,
        counters: read_counters(wire.counters),
        top_key: read_top_key(wire.top_key)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example() -> Frame {
        let mut counters = 0;
        let mut next = || {
            counters += 1;
            let mut wire = [0; 14];
            wire.iter_mut().enumerate().for_each(|(index, value)| *value = counters * 100 + index as u64);
            read_counters(wire)
        };
        let client = Endpoint::from_ipv4([10, 0, 0, 1], 4000);
        let top_key = Some((b"a\xff\0".as_slice().into(), 3));
        let mut snapshot = Snapshot {
            target: "cache".to_string(),
            address: "*:11211".to_string(),
            start: Timestamp::from_parts(10, 1),
            end: Timestamp::from_parts(20, 2),
            partial: true,
            latency: LatencySummary { p50: 1, p90: 2, p99: 3, max: 4, samples: 5 },
            command_latency: vec![(
                Command::Set,
                LatencySummary { p50: 5, p90: 5, p99: 5, max: 5, samples: 1 },
            )],
            clients_seen: 1,
            connections_seen: 2,
            keys_seen: 3,
            loss: Loss {
                packets: 7,
                ring_dropped: 8,
                nic_dropped: 9,
                worker_lost: 10,
                anomalies: AnomalyCounts::default(),
            },
            health: CaptureHealth {
                ring_blocks_peak: 3,
                ring_blocks: 64,
                freezes: 1,
                worker_restarts: 2,
                rung: Rung::Heads,
            },
            bounds: Bounds { key: 1, client: 2, pair: 3 },
            keys: vec![KeyRow {
                key: b"a\xff\0".as_slice().into(),
                truncated: true,
                err: 4,
                counters: next(),
                clients: vec![PairRow { client: client.without_port(), requests: 6, err: 1 }],
            }],
            clients: vec![ClientRow { client: client.without_port(), err: 1, counters: next(), top_key }],
            sockets: vec![ClientRow { client, err: 0, counters: next(), top_key: None }],
            servers: vec![ServerRow {
                server: Endpoint::from_ipv6([0xfd; 16], 11211),
                err: 2,
                counters: next(),
                top_key: None,
            }],
            packets_by_direction: [5, 6],
            ..Snapshot::default()
        };
        snapshot.totals.counters = next();
        snapshot.totals.leases = [1, 2, 3];
        snapshot.totals.commands[Command::Set.index()].requests = 11;
        snapshot.totals.commands[Command::Set.index()].outcomes[Outcome::Stored.index()] = 11;
        snapshot.totals.response_times.add_cells(Command::Set, 70, &[(5, 2), (63, 1)]);
        snapshot.loss.anomalies.add(Anomaly::Gap, 2);
        let busiest = vec![EndpointSeen { endpoint: client, transport: Transport::Udp, packets: 4 }];
        let sources = vec![SourceSeen { name: "lo".to_string(), packets: 99 }];
        let seen = SeenElsewhere { sources, packets_matched: 98, packets_foreign: 1, busiest };
        Frame { snapshots: vec![snapshot], seen }
    }

    #[test]
    fn an_interval_survives_its_way() {
        let frame = example();
        let line = encode(interval(&frame));
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1, "one line");
        let Ok(Answer::Interval(wire)) = decode::<Answer>(&line) else { panic!("not an interval") };
        let back = read_interval(*wire).unwrap();
        assert_eq!(back.snapshots, frame.snapshots);
        assert_eq!(back.seen, frame.seen);
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        let check = |line: &str, expected: &str| {
            let error = decode::<Request>(line.as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{line}: {error}");
        };
        check("get a", "not an object");
        check("{}", "not an object");
        check(r#"{"v":2,"type":"watch"}"#, "version 2 is spoken there, and 1 here");
        check(r#"{"v":1,"type":"fly"}"#, "fly");
        assert!(matches!(decode(br#"{"v":1,"type":"watch","later":true}"#), Ok(Request::Watch)));
    }
    proptest! {
        /// Lines that were cut, mixed up or never were one are refused, and nothing else happens.
        #[test]
        fn a_damaged_line_is_refused(at in any::<prop::sample::Index>(), byte: u8, noise in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut line = encode(interval(&example()));
            let at = at.index(line.len());
            line[at] = byte;
            if let Ok(Answer::Interval(wire)) = decode::<Answer>(&line) {
                drop(read_interval(*wire));
            }
            // Without its last brace at least.
            prop_assert!(decode::<Answer>(&line[..at.saturating_sub(1)]).is_err());
            prop_assert!(decode::<Request>(&noise).is_err());
        }
    }
}

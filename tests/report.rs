//! Reports as their readers see them: the four forms of one snapshot, at several widths, with tame and with hostile keys.

use memtap::anomaly::Anomaly;
use memtap::collector::snapshot::{
    Bounds, ClientRow, CommandOutcomes, Counters, KeyRow, LatencySummary, Loss, PairRow, ServerRow, Snapshot,
    Totals,
};
use memtap::model::{Command, Endpoint, Outcome, Timestamp, Transport};
use memtap::report::{
    ClientView, EndpointSeen, KeyGroup, Metric, OutputFormat, Privacy, PrivacyMode, ReportOptions, Reporter,
    SeenElsewhere, SourceSeen, unescape,
};
use proptest::prelude::*;
use serde_json::Value;

/// 2026-11-22T12:00:00Z.
const START_SECS: u64 = 1_795_348_800;

fn client(last: u8, port: u16) -> Endpoint {
    Endpoint::from_ipv4([10, 2, 0, last], port)
}

fn counters(gets: u64, misses: u64, stores: u64) -> Counters {
    Counters {
        gets,
        hits: gets - misses,
        misses,
        stores,
        bytes_in: gets * 34 + stores * 400,
        bytes_out: (gets - misses) * 512,
        latency_sum_us: (gets + stores) * 120,
        latency_samples: gets + stores,
        latency_max_us: 9_200,
        ..Counters::default()
    }
}

fn pair(last: u8, requests: u64) -> PairRow {
    PairRow { client: client(last, 0), requests, err: 0 }
}

fn key_row(key: &[u8], counters: Counters, clients: Vec<PairRow>) -> KeyRow {
    KeyRow { key: key.into(), truncated: false, err: 0, counters, clients }
}

fn client_row(client: Endpoint, counters: Counters, top_key: &[u8], requests: u64) -> ClientRow {
    ClientRow { client, err: 0, counters, top_key: Some((top_key.into(), requests)) }
}

fn keys() -> Vec<KeyRow> {
    let hot = vec![
        pair(17, 280_232),
        pair(43, 71_900),
        pair(5, 30_000),
        pair(6, 20_000),
        pair(7, 9_973),
        pair(8, 7),
    ];
    let mut rows = vec![
        key_row(b"user:1:profile", counters(411_000, 1_130, 1_105), hot),
        key_row(b"user:2:profile", counters(90_000, 200, 10_000), vec![pair(17, 99_000), pair(5, 1_000)]),
        key_row(
            b"session:550e8400-e29b-41d4-a716-446655440000",
            counters(60_000, 59_000, 0),
            vec![pair(43, 60_000)],
        ),
        key_row(
            b"weird \x1b[2J|`<b>\\=1",
            counters(40_000, 0, 7),
            vec![PairRow { err: 3, ..pair(5, 40_007) }],
        ),
        key_row("schlüssel".as_bytes(), counters(10_000, 10_000, 0), Vec::new()),
    ];
    rows[1].err = 12;
    rows
}

fn totals() -> Totals {
    let mut totals = Totals {
        counters: Counters {
            gets: 611_000,
            hits: 540_670,
            misses: 70_330,
            stores: 20_112,
            deletes: 1_000,
            touches: 1_000,
            arithmetic: 1_000,
            other: 0,
            errors: 3,
            bytes_in: 31_000_000,
            bytes_out: 912_000_000,
            latency_sum_us: 633_000 * 120,
            latency_samples: 633_000,
            latency_max_us: 9_200,
        },
        leases: [3, 0, 1],
        ..Totals::default()
    };
    let mut command = |command: Command, requests: u64, outcomes: &[(Outcome, u64)]| {
        let mut figures = CommandOutcomes { requests, ..CommandOutcomes::default() };
        for (outcome, count) in outcomes {
            figures.outcomes[outcome.index()] = *count;
        }
        totals.commands[command.index()] = figures;
    };
    command(Command::Get, 611_000, &[(Outcome::Hit, 540_670), (Outcome::Miss, 70_330)]);
    command(Command::Set, 20_112, &[(Outcome::Stored, 20_109), (Outcome::TooLarge, 3)]);
    command(Command::Delete, 1_000, &[(Outcome::Hit, 900), (Outcome::Unseen, 100)]);
    command(Command::Touch, 1_000, &[(Outcome::Hit, 1_000)]);
    command(Command::Incr, 1_000, &[(Outcome::Hit, 1_000)]);
    command(Command::Version, 4, &[(Outcome::Ok, 4)]);
    totals
}

fn snapshot() -> Snapshot {
    let mut loss = Loss { packets: 1_281_000, ..Loss::default() };
    loss.anomalies.add(Anomaly::DuplicateSegment, 12);
    Snapshot {
        target: "cache-a".to_string(),
        address: "10.1.0.5:11211".to_string(),
        start: Timestamp::from_parts(START_SECS, 0),
        end: Timestamp::from_parts(START_SECS + 10, 0),
        partial: false,
        totals: totals(),
        latency: LatencySummary { p50: 110, p90: 240, p99: 840, max: 9_200, samples: 633_000 },
        command_latency: vec![(
            Command::Get,
            LatencySummary { p50: 110, p90: 230, p99: 800, max: 9_200, samples: 611_000 },
        )],
        clients_seen: 6,
        connections_seen: 1_904,
        keys_seen: 5,
        loss,
        bounds: Bounds::default(),
        keys: keys(),
        clients: vec![
            client_row(client(17, 0), counters(370_000, 2_000, 9_232), b"user:1:profile", 280_232),
            client_row(client(43, 0), counters(131_900, 60_000, 0), b"user:1:profile", 71_900),
        ],
        sockets: vec![
            client_row(client(17, 51_422), counters(188_000, 1_000, 1), b"user:1:profile", 171_081),
            client_row(client(43, 40_000), counters(60_000, 59_000, 0), b"weird \x1b[2J|`<b>\\=1", 60_000),
        ],
        servers: Vec::new(),
        packets_by_direction: [640_000, 641_000],
    }
}

/// With every kind of loss, bounds, servers, and a name that no terminal should obey.
fn lossy() -> Snapshot {
    let mut snapshot = snapshot();
    snapshot.target = "fleet \x1b]0;x\x07".to_string();
    snapshot.address = "10.1.0.0/16:11211".to_string();
    snapshot.end = Timestamp::from_parts(START_SECS + 7, 312_000_000);
    snapshot.partial = true;
    snapshot.loss.ring_dropped = 4_000;
    snapshot.loss.nic_dropped = 20;
    for &anomaly in Anomaly::ALL {
        snapshot.loss.anomalies.add(anomaly, 1_000 + anomaly as u64);
    }
    snapshot.bounds = Bounds { key: 120, client: 7, pair: 3 };
    snapshot.servers = vec![
        ServerRow {
            server: Endpoint::from_ipv4([10, 1, 0, 5], 11_211),
            err: 0,
            counters: counters(500_000, 1_000, 20_000),
            top_key: Some((b"user:1:profile"[..].into(), 300_000)),
        },
        ServerRow {
            server: Endpoint::from_ipv4([10, 1, 0, 6], 11_211),
            err: 2,
            counters: counters(111_000, 69_330, 112),
            top_key: None,
        },
    ];
    snapshot
}

/// A target whose traffic does not pass here.
fn empty() -> Snapshot {
    Snapshot {
        totals: Totals::default(),
        latency: LatencySummary::default(),
        command_latency: Vec::new(),
        clients_seen: 0,
        connections_seen: 0,
        keys_seen: 0,
        loss: Loss::default(),
        keys: Vec::new(),
        clients: Vec::new(),
        sockets: Vec::new(),
        packets_by_direction: [0, 0],
        ..snapshot()
    }
}

fn options(format: OutputFormat, width: usize) -> ReportOptions {
    ReportOptions { host: "mc029".to_string(), format, width, ..ReportOptions::default() }
}

fn report(options: ReportOptions, snapshots: &[Snapshot]) -> String {
    let mut out = Vec::new();
    Reporter::new(options).write_interval(&mut out, snapshots).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn tables_at_four_widths() {
    for width in [60, 80, 120, 200] {
        let text = report(options(OutputFormat::Table, width), &[snapshot()]);
        insta::assert_snapshot!(format!("table-{width}"), text);
    }
}

#[test]
fn table_with_losses_and_servers() {
    insta::assert_snapshot!("table-lossy", report(options(OutputFormat::Table, 120), &[lossy()]));
}

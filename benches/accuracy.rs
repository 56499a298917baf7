//! What the collector says, against the truth, with about ten times as many keys as it has room for.
//!
//! Recall is of the first 10, 100 and 1000 of the true ranking: a reported row counts when its truth is at least that of the true row
//! in the last place. `broken` counts rows, pairs and absent keys whose truth lies outside of what is stated; the program fails
//! when it is not 0, or when recall falls below what a case demands. `exact` are rows among the first 1000 without error.
//!
//!     cargo bench --bench accuracy                    every case, tables of 30 MB
//!     cargo bench --bench accuracy -- --only zipf     cases whose name begins so
//!     cargo bench --bench accuracy -- --only full     tables of 300 MB, 13 million keys and more (6 GB of memory)
//!     cargo bench --bench accuracy -- --only memory   the size of the process over 50 million keys
//!
//! Without `--bench`, which cargo adds, tables and traces are ten times smaller: `./check` runs that.
#![expect(clippy::print_stdout, reason = "a bench talks to its reader")]

#[expect(dead_code, reason = "each bench takes what it needs")]
mod support;

use memtap::collector::snapshot::{Bounds, KeyRow, Snapshot};
use memtap::collector::window::Window;
use memtap::collector::{Collector, CollectorOptions, Harvest, TargetOptions, merge};
use memtap::model::{Command, Endpoint, FlowTuple, Outcome, TargetId, Timestamp, Transport};
use memtap::parser::{Observation, ObservationNotes};
use std::collections::HashMap;
use std::time::Duration;
use support::{Random, Zipf, is_bench, text_argument, write_key};

/// Rows that a worker hands over, as `memtap run` has it.
const HARVEST_ROWS: usize = 65_536;

/// Pairs are checked for the keys below this number: the hottest.
const PAIR_KEYS: u64 = 2_000;

/// Clients of every case.
const CLIENTS: u64 = 200;

fn main() {
    let shrink = if is_bench() { 1 } else { 10 };
    let only = text_argument("only");
    let mut failed = Vec::new();
    for case in cases(shrink) {
        let chosen = match &only {
            Some(name) => case.name.starts_with(name.as_str()),
            None => case.budget_bytes < 100_000_000,
        };
        if chosen && !case.run() {
            failed.push(case.name);
        }
    }
    let names = ["flood 1/100", "flood 1/10,000", "flood 1/100,000"];
    for (name, every) in names.into_iter().zip([100, 10_000, 100_000 / shrink]) {
        if only.as_ref().is_none_or(|only| name.starts_with(only.as_str())) && !flood(name, shrink, every) {
            failed.push(name);
        }
    }
    if only.as_deref().is_none_or(|only| only == "exact") && !exact() {
        failed.push("exact");
    }
    if only.as_deref() == Some("memory") && !memory() {
        failed.push("memory");
    }
    assert!(failed.is_empty(), "bounds were broken, or recall was too low: {failed:?}");
}

fn cases(shrink: u64) -> Vec<Case> {
    // Small tables cannot list the first 1000 of anything surely; the bounds hold in tables of any size.
    let recall_least = if shrink == 1 { [1.0, 1.0, 0.999] } else { [1.0, 0.95, 0.0] };
    let case = Case {
        name: "",
        zipf: Zipf::new(1, 1.0),
        observations: 10_000_000 / shrink,
        budget_bytes: 30_000_000 / shrink,
        rows_max: Some(HARVEST_ROWS / shrink as usize),
        workers: 1,
        intervals: 1,
        recall_least,
        bytes_recall_least: recall_least,
    };
    let zipf = |keys: u64, exponent| Zipf::new(keys / shrink, exponent);
    // Uniform: all keys are alike, and chance makes the ranking, so nothing is asked of the recall.
    let (none, some) = ([0.0; 3], if shrink == 1 { [1.0, 0.95, 0.95] } else { [0.9, 0.5, 0.0] });
    let millions = 1_000_000;
    let full = Case { budget_bytes: 300 * millions, rows_max: Some(HARVEST_ROWS), ..case };
    vec![
        Case { name: "zipf 0.6", zipf: zipf(1_370_000, 0.6), ..case },
        Case { name: "zipf 0.8", zipf: zipf(1_550_000, 0.8), ..case },
        Case { name: "zipf 0.99", zipf: zipf(3_200_000, 0.99), ..case },
        Case { name: "zipf 1.2", zipf: zipf(100_000_000, 1.2), observations: 20 * millions / shrink, ..case },
        Case {
            name: "uniform",
            zipf: zipf(1_320_000, 0.0),
            recall_least: none,
            bytes_recall_least: none,
            ..case
        },
        // Each of the workers has a quarter of the room, and most of the keys.
        Case {
            name: "workers",
            zipf: zipf(4_000_000, 0.99),
            workers: 4,
            recall_least: some,
            bytes_recall_least: some,
            ..case
        },
        Case {
            name: "window",
            zipf: zipf(1_550_000, 0.8),
            intervals: 6,
            recall_least: some,
            bytes_recall_least: some,
            ..case
        },
        Case { name: "full 0.6", zipf: zipf(13_700_000, 0.6), observations: 100 * millions, ..full },
        Case { name: "full 0.8", zipf: zipf(15_500_000, 0.8), observations: 100 * millions, ..full },
        Case { name: "full 0.99", zipf: zipf(32 * millions, 0.99), observations: 100 * millions, ..full },
        Case { name: "full 1.2", zipf: zipf(1000 * millions, 1.2), observations: 320 * millions, ..full },
    ]
}

#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    zipf: Zipf,
    observations: u64,
    /// Of all workers together.
    budget_bytes: u64,
    rows_max: Option<usize>,
    workers: u64,
    /// More than one: what is looked at is a window over all of them.
    intervals: u64,
    /// At 10, 100, 1000.
    recall_least: [f64; 3],
    bytes_recall_least: [f64; 3],
}

/// What really happened.
struct Truth {
    /// Requests by key number.
    requests: Vec<u32>,
    /// Requests by key number and client, of the first [`PAIR_KEYS`].
    pairs: Vec<[u32; CLIENTS as usize]>,
}

impl Case {
    fn run(&self) -> bool {
        let budget_bytes = self.budget_bytes / self.workers;
        let mut collectors: Vec<Collector> = (0..self.workers).map(|_| collector(budget_bytes)).collect();
        let held: usize = collectors.iter().map(|collector| collector.capacity(TargetId(0)).keys).sum();
        let clients = Zipf::new(CLIENTS, 1.0);
        let mut random = Random(5);
        let mut truth = Truth {
            requests: vec![0; self.zipf.keys() as usize],
            pairs: vec![[0; CLIENTS as usize]; PAIR_KEYS as usize],
        };
        let mut window = Window::new(None);
        let mut snapshot = Snapshot::default();
        for interval in 0..self.intervals {
            for _ in 0..self.observations / self.intervals {
                // The hottest of one interval are not the hottest of the next.
                let number = (self.zipf.sample(&mut random) + interval * 317) % self.zipf.keys();
                let client = (clients.sample(&mut random) + number * 7) % CLIENTS;
                let key = write_key(number);
                collectors[(client % self.workers) as usize]
                    .observe(&tuple(client as u32), &observation(&key, value_bytes(number)));
                truth.requests[number as usize] += 1;
                if let Some(pairs) = truth.pairs.get_mut(number as usize) {
                    pairs[client as usize] += 1;
                }
            }
            let harvests: Vec<Harvest> =
                collectors.iter_mut().map(|collector| close(collector, self.rows_max)).collect();
            snapshot = merge(&harvests.iter().collect::<Vec<_>>());
            if self.intervals > 1 {
                snapshot.start = Timestamp::ZERO.plus(Duration::from_secs(10 * interval));
                snapshot.end = snapshot.start.plus(Duration::from_secs(10));
                snapshot = window.fold(snapshot);
            }
        }
        self.judge(&snapshot, &truth, held)
    }

    fn judge(&self, snapshot: &Snapshot, truth: &Truth, held: usize) -> bool {
        let distinct = truth.requests.iter().filter(|&&requests| requests > 0).count();
        let broken = truth.broken_bounds(snapshot);
        let certain = |row: &KeyRow| row.counters.requests() - row.err;
        let by_requests = Recall::new(snapshot, truth, certain, |_, requests| requests);
        let most = |row: &KeyRow| row.counters.requests();
        let by_most = Recall::new(snapshot, truth, most, |_, requests| requests);
        let by_bytes = Recall::new(
            snapshot,
            truth,
            |row| row.counters.bytes_in + row.counters.bytes_out,
            |number, requests| requests * value_bytes(number),
        );
        let Bounds { key, pair, .. } = snapshot.bounds;
        println!(
            "{:9} {distinct} keys on {held} places ({:.1} x), {} listed; requests {by_requests}, by their upper bounds {by_most}; bytes {by_bytes}; unlisted at most {key}, pair {pair}; broken {broken}",
            self.name,
            distinct as f64 / held as f64,
            snapshot.keys.len(),
        );
        let enough =
            |recall: &Recall, least: [f64; 3]| recall.at.iter().zip(least).all(|(at, least)| *at >= least);
        broken == 0 && enough(&by_requests, self.recall_least) && enough(&by_bytes, self.bytes_recall_least)
    }
}

/// Recall at 10, 100 and 1000, and the rows among the first 1000 whose error is 0.
struct Recall {
    at: [f64; 3],
    exact: usize,
}

impl Recall {
    fn new(
        snapshot: &Snapshot,
        truth: &Truth,
        stated: impl Fn(&KeyRow) -> u64,
        measure: impl Fn(u64, u64) -> u64,
    ) -> Recall {
        let asked_for = (0..).zip(&truth.requests).filter(|(_, requests)| **requests > 0);
        let mut ranked: Vec<u64> = asked_for.map(|(number, &n)| measure(number, n.into())).collect();
        ranked.sort_unstable_by(|a, b| b.cmp(a));
        let mut rows: Vec<&KeyRow> = snapshot.keys.iter().collect();
        rows.sort_unstable_by_key(|row| std::cmp::Reverse(stated(row)));
        let at = [10, 100, 1000].map(|n| {
            let least = ranked[n.min(ranked.len()) - 1];
            let true_measure = |row: &&&KeyRow| {
                let number = number_of(&row.key);
                truth.requests.get(number as usize).map_or(0, |&n| measure(number, n.into()))
            };
            let found = rows.iter().take(n).filter(|row| true_measure(row) >= least).count();
            found as f64 / n.min(ranked.len()) as f64
        });
        Recall { at, exact: rows.iter().take(1000).filter(|row| row.err == 0).count() }
    }
}

impl std::fmt::Display for Recall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [ten, hundred, thousand] = self.at;
        write!(f, "{ten:.3} {hundred:.3} {thousand:.3} ({} exact)", self.exact)
    }
}

impl Truth {
    /// Rows, absent keys and pairs whose truth is not where the snapshot says.
    fn broken_bounds(&self, snapshot: &Snapshot) -> u64 {
        let mut rows: HashMap<u64, &KeyRow> = HashMap::with_capacity(snapshot.keys.len());
        // A row of a key that nobody asked for, or listed twice.
        let mut broken = 0;
        for row in &snapshot.keys {
            let number = number_of(&row.key);
            let known = self.requests.get(number as usize).is_some_and(|&requests| requests > 0);
            broken += u64::from(!known || row.truncated || rows.insert(number, row).is_some());
        }
        for (number, &requests) in (0..).zip(&self.requests) {
            let requests = u64::from(requests);
            broken += u64::from(match rows.get(&number) {
                Some(row) => !is_true(row, requests, requests * value_bytes(number)),
                None => requests > snapshot.bounds.key,
            });
        }
        for (number, clients) in (0..).zip(&self.pairs) {
            let Some(row) = rows.get(&number) else { continue };
            let mut listed = [None; CLIENTS as usize];
            for pair in &row.clients {
                let client = pair.client.ipv4().expect("all clients speak IPv4");
                broken += u64::from(listed[client as usize].replace(pair).is_some());
            }
            for (listed, &truth) in listed.iter().zip(clients) {
                let truth = u64::from(truth);
                broken += u64::from(match listed {
                    Some(pair) => truth > pair.requests || truth < pair.requests - pair.err,
                    None => truth > snapshot.bounds.pair,
                });
            }
        }
        broken
    }
}

fn is_true(row: &KeyRow, requests: u64, bytes: u64) -> bool {
    let (most, least) = (row.counters.requests(), row.counters.requests() - row.err);
    let counted = row.counters.bytes_in + row.counters.bytes_out;
    (least..=most).contains(&requests) && counted <= bytes && (row.err > 0 || counted == bytes)
}

/// A key that becomes hot amid keys that are asked for once: is it held from its first request on?
fn flood(name: &str, shrink: u64, every: u64) -> bool {
    let mut collector = collector(30_000_000 / shrink);
    let (mut random, zipf, mut hot) = (Random(6), Zipf::new(100_000 / shrink, 0.99), 0u64);
    for _ in 0..1_000_000 / shrink {
        collector.observe(&tuple(0), &observation(&write_key(zipf.sample(&mut random)), 100));
    }
    for number in 0..40_000_000 / shrink {
        collector.observe(&tuple(0), &observation(&write_key(1 << 40 | number), 100));
        if number % every == every - 1 {
            collector.observe(&tuple(1), &observation(b"late", 100));
            hot += 1;
        }
    }
    let snapshot = merge(&[&close(&mut collector, Some(HARVEST_ROWS))]);
    let unlisted = snapshot.bounds.key;
    let row = snapshot.keys.iter().find(|row| &*row.key == b"late");
    let (least, most) =
        row.map_or((0, unlisted), |row| (row.counters.requests() - row.err, row.counters.requests()));
    println!("{name}: {hot} requests, stated {least} to {most}; unlisted at most {unlisted}");
    row.is_some() && (least..=most).contains(&hot)
}

/// As many different keys as a target's tables of 300 MB are to hold without error.
fn exact() -> bool {
    const KEYS: u64 = 900_000;
    let mut collector = collector(300_000_000);
    for number in (0..KEYS).chain(0..KEYS / 2) {
        collector.observe(&tuple(0), &observation(&write_key(number), 100));
    }
    let snapshot = merge(&[&close(&mut collector, None)]);
    let in_doubt = snapshot.keys.iter().filter(|row| row.err > 0 || row.counters.requests() > 2).count();
    let sum: u64 = snapshot.keys.iter().map(|row| row.counters.requests()).sum();
    println!(
        "exact: {} of {KEYS} keys listed, {in_doubt} in doubt, {sum} requests, unlisted at most {}",
        snapshot.keys.len(),
        snapshot.bounds.key
    );
    snapshot.keys.len() as u64 == KEYS && in_doubt == 0 && sum == KEYS / 2 * 3 && snapshot.bounds.key == 0
}

/// The process after 50 million keys and a million clients is as large as it was at the start.
fn memory() -> bool {
    let mut collector = collector(300_000_000);
    let mut harvest = Harvest::new(Some(HARVEST_ROWS), collector.capacity(TargetId(0)));
    let (start, mut most) = (resident_bytes(), 0);
    for number in 0..50_000_000u64 {
        collector.observe(&tuple((number % 1_000_000) as u32), &observation(&write_key(number), 100));
        if number % 5_000_000 == 4_999_999 {
            collector.end_close(TargetId(0), &mut harvest);
            collector.begin_close(TargetId(0), &mut harvest);
            most = most.max(resident_bytes());
        }
    }
    println!("memory: {start} bytes resident at the start, {most} at most over 50 M keys and 1 M clients");
    most <= start + start / 100
}

/// Memory of this process.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("a system with /proc");
    let pages: u64 = text.split(' ').nth(1).and_then(|field| field.parse().ok()).expect("a number of pages");
    pages * 4096
}

fn collector(budget_bytes: u64) -> Collector {
    let targets = vec![TargetOptions { budget_bytes, servers: false }];
    Collector::new(&CollectorOptions { targets, seed: Some(3), ..CollectorOptions::default() })
        .expect("memory for the bench")
}

fn close(collector: &mut Collector, rows_max: Option<usize>) -> Harvest {
    let mut harvest = Harvest::new(rows_max, collector.capacity(TargetId(0)));
    collector.close_interval(TargetId(0), &mut harvest);
    harvest
}

fn tuple(client: u32) -> FlowTuple {
    FlowTuple {
        target: TargetId(0),
        server: Endpoint::from_ipv4([10, 0, 0, 1], 11211),
        client: Endpoint::from_ipv4(client.to_be_bytes(), 1024),
        transport: Transport::Tcp,
    }
}

fn observation(key: &[u8], response_bytes: u64) -> Observation<'_> {
    Observation {
        timestamp: Timestamp::ZERO,
        command: Command::Get,
        outcome: Outcome::Hit,
        key,
        request_bytes: 0,
        response_bytes,
        latency: None,
        notes: ObservationNotes::default(),
    }
}

/// Lognormal with a deviation of 2, fixed for a key.
fn value_bytes(number: u64) -> u64 {
    let mut random = Random(number);
    let normal =
        (-2.0 * random.unit().max(1e-12).ln()).sqrt() * (std::f64::consts::TAU * random.unit()).cos();
    (100.0 * (2.0 * normal).exp()) as u64 + 30
}

/// The number that `write_key` wrote.
fn number_of(key: &[u8]) -> u64 {
    let digits = key.get(5..21).and_then(|digits| std::str::from_utf8(digits).ok());
    digits.and_then(|digits| u64::from_str_radix(digits, 16).ok()).map_or(u64::MAX, support::unmix)
}

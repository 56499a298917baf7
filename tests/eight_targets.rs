//! Eight targets in one recording: each has tables and a report of its own, the table of the targets says where the hottest keys live,
//! and budgets are what was asked for.

mod support;

use memtap::collector::{Capacity, Collector, CollectorOptions, TargetOptions};
use memtap::model::TargetId;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use support::scenario::{self, Frame, pcap};
use support::{figure, memtap, succeed};

const TARGETS: u8 = 8;

/// Bytes of the server's address in a frame to it, and in one from it.
const SERVER: [u8; 4] = [10, 9, 0, 1];

/// Requests of a target's own key, of the key that all share, and in all: the higher the number, the hotter.
fn asked(target: u8) -> (u64, u64, u64) {
    let (own, shared) = (u64::from(target) * 3, 2);
    (own, shared, own + shared)
}

/// What client A asks one server. Keys `own:N` are asked for at one server only.
fn script(target: u8) -> String {
    let (own, shared, _) = asked(target);
    let mut script = "connect A\n".to_string();
    for _ in 0..own {
        script += &format!("A> get own:{target}\\r\\n\nA< VALUE own:{target} 0 2\\r\\nab\\r\\nEND\\r\\n\n");
    }
    for _ in 0..shared {
        script += "A> get shared\\r\\n\nA< END\\r\\n\n";
    }
    script
}

/// The frames of a scenario, moved to another server.
fn at_server(frames: Vec<Frame>, target: u8) -> Vec<Frame> {
    let moved = frames.into_iter().map(|mut frame| {
        let address = if frame.bytes[26..30] == SERVER { 26 } else { 30 };
        assert_eq!(frame.bytes[address..address + 4], SERVER);
        frame.bytes[address + 3] = target;
        frame
    });
    moved.collect()
}

fn recording() -> (tempfile::TempDir, PathBuf) {
    let mut frames: Vec<Frame> =
        (1..=TARGETS).flat_map(|target| at_server(scenario::read(&script(target)).frames, target)).collect();
    // All at the same time, as at a mirror port.
    frames.sort_by_key(|frame| frame.timestamp);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("eight.pcap");
    fs::write(&path, pcap(&frames)).unwrap();
    (folder, path)
}

fn targets() -> Vec<String> {
    (1..=TARGETS).map(|target| format!("cache-{target}=10.9.0.{target}:11211")).collect()
}

fn replay(path: &PathBuf, form: &str) -> String {
    let mut command = memtap();
    command.arg("replay").arg(path).args(["-w", "all", "--budget-mb", "4", "-o", form]);
    for target in targets() {
        command.args(["-t", &target]);
    }
    String::from_utf8(succeed(&mut command).stdout).unwrap()
}

#[test]
fn each_has_its_own_report() {
    let (_folder, path) = recording();
    let text = replay(&path, "jsonl");
    let reports: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(reports.len(), usize::from(TARGETS));
    for (target, report) in (1..=TARGETS).zip(&reports) {
        let (own, shared, all) = asked(target);
        assert_eq!(report["target"], format!("cache-{target}"));
        assert_eq!(report["address"], format!("10.9.0.{target}:11211"));
        let number = |path: &[&str]| u64::try_from(figure(report, path)).unwrap();
        assert_eq!(number(&["requests"]), all);
        assert_eq!((number(&["hits"]), number(&["misses"])), (own, shared));
        assert_eq!(number(&["commands", "get", "requests"]), all);
        assert_eq!(number(&["keys_seen"]), 2);
        // The tables of one know nothing of the others' keys.
        let rows: Vec<(&str, u64, u64)> = report["hot_keys"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| {
                let of = |name: &str| row[name].as_u64().unwrap();
                (row["key"].as_str().unwrap(), of("requests"), of("err"))
            })
            .collect();
        let name = format!("own:{target}");
        assert_eq!(rows, [(name.as_str(), own, 0), ("shared", shared, 0)]);
        let clients = report["hot_clients"].as_array().unwrap();
        assert_eq!(clients.len(), 1);
        assert_eq!(clients[0]["requests"].as_u64(), Some(all));
        assert_eq!(clients[0]["top_key"], name);
        assert_eq!(number(&["bounds", "key"]), 0);
    }
    let sum: u64 = reports.iter().map(|report| report["requests"].as_u64().unwrap()).sum();
    assert_eq!(sum, (1..=TARGETS).map(|target| asked(target).2).sum::<u64>());
    let packets: i64 = reports.iter().map(|report| figure(report, &["loss", "packets"])).sum();
    let frames = (fs::read(&path).unwrap().len(), scenario::read(&script(1)).frames.len());
    assert!(packets > i64::try_from(frames.1).unwrap() * 8, "{packets} {frames:?}");
}

#[test]
fn side_by_side_says_where_the_hottest_keys_live() {
    let (_folder, path) = recording();
    let text = replay(&path, "table");
    let (_, table) = text.split_once("\nTARGETS ").expect("a table of the targets");
    let all: u64 = (1..=TARGETS).map(|target| asked(target).2).sum();
    let rows: Vec<Vec<&str>> = table.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    for (target, row) in (1..=TARGETS).zip(&rows) {
        let (own, _, requests) = asked(target);
        let share = format!("{:.1}%", requests as f64 * 100.0 / all as f64);
        assert_eq!(row[..3], [format!("cache-{target}"), requests.to_string(), share]);
        let key = format!("own:{target}");
        let at = row.iter().position(|cell| *cell == key).unwrap_or_else(|| panic!("{row:?}"));
        assert_eq!(row[at + 1], format!("({:.0}%)", own as f64 * 100.0 / requests as f64));
        assert_eq!(row[at + 2..], ["10.0.0.1:40001", "(100%)"]);
    }
    assert_eq!(rows.iter().filter(|row| !row.is_empty()).count(), usize::from(TARGETS));
}

/// Each target is given its budget and no other's: equal budgets hold equally much, and shares of workers add up to no more than
/// the whole.
#[test]
fn budgets_add_up() {
    const BUDGET: u64 = 16_000_000;
    let options = |budget_bytes| CollectorOptions {
        targets: (0..TARGETS).map(|_| TargetOptions { budget_bytes, servers: false }).collect(),
        ..CollectorOptions::default()
    };
    let capacities = |options: &CollectorOptions| -> Vec<Capacity> {
        let collector = Collector::new(options).unwrap();
        (0..u16::from(TARGETS)).map(|target| collector.capacity(TargetId(target))).collect()
    };
    let whole = capacities(&options(BUDGET));
    assert!(whole.iter().all(|capacity| *capacity == whole[0]), "{whole:?}");
    let least = |capacity: &Capacity| {
        // A key, a pair, and a client take no less than these bytes (`collector`).
        (capacity.keys * 136 + capacity.pairs * 12 + (capacity.clients + capacity.sockets) * 136) as u64
    };
    for capacity in &whole {
        let bytes = least(capacity);
        assert!(
            (BUDGET * 7 / 10..=BUDGET).contains(&bytes),
            "{bytes} of {BUDGET} bytes are in rows: {capacity}"
        );
    }
    let quarter = capacities(&options(BUDGET / 4))[0];
    let mut four = Capacity::default();
    (0..4).for_each(|_| four.add(&quarter));
    assert!(four.keys <= whole[0].keys && four.keys * 100 >= whole[0].keys * 99, "{four} {}", whole[0]);
    assert!(four.pairs <= whole[0].pairs && four.pairs * 100 >= whole[0].pairs * 99);
}

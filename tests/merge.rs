//! `memtap merge`: what several machines reported, as one report.

mod support;

use memtap::capture::pcap::Recording;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use support::scenario::{Frame, pcap};
use support::{fixture, memtap, replay_all, succeed};

const RECORDING: &str = "peers/peer-small.pcap.zst";

fn frames() -> Vec<Frame> {
    let mut recording = Recording::open(fixture(RECORDING)).unwrap();
    let mut frames = Vec::new();
    while let Some(packet) = recording.next_packet().unwrap() {
        frames.push(Frame {
            timestamp: packet.timestamp,
            bytes: packet.bytes.to_vec(),
            wire_bytes: packet.wire_bytes,
        });
    }
    frames
}

/// The recording in two: the clients with an even address, and everything else.
fn parts(folder: &Path) -> [PathBuf; 2] {
    let is_even = |frame: &Frame| {
        let (source, destination) = (&frame.bytes[26..30], &frame.bytes[30..34]);
        let client = if source == [10, 77, 0, 1] { destination } else { source };
        frame.bytes[12..14] == [8, 0] && client[3] % 2 == 0
    };
    let (even, odd): (Vec<Frame>, Vec<Frame>) = frames().into_iter().partition(is_even);
    assert!(even.len() > 5_000 && odd.len() > 5_000, "{} {}", even.len(), odd.len());
    [("even.pcap", even), ("odd.pcap", odd)].map(|(name, frames)| {
        let path = folder.join(name);
        fs::write(&path, pcap(&frames)).unwrap();
        path
    })
}

/// Replays into JSON Lines and returns their file.
fn exported(recording: &Path, arguments: &[&str]) -> PathBuf {
    let name = format!("{}.jsonl", recording.file_stem().unwrap().to_str().unwrap());
    let out = recording.with_file_name(name);
    let mut command = memtap();
    command.arg("replay").arg(recording).args(["-t", "cache=*:11211", "-o", "jsonl", "--out"]).arg(&out);
    succeed(command.args(arguments));
    out
}

const ALL: [&str; 6] = ["-w", "all", "-k", "0", "--clients-per-key", "0"];

fn merged(files: &[&Path], arguments: &[&str]) -> Vec<Value> {
    let output = succeed(memtap().arg("merge").args(files).args(["-o", "jsonl"]).args(arguments));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What standard error says about files that cannot be merged.
fn refused(files: &[&Path]) -> String {
    let output = memtap().arg("merge").args(files).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

/// Rows by name, without what only the order decides.
fn rows(report: &Value, list: &str, name: &str) -> BTreeMap<String, Value> {
    let rows = report[list].as_array().unwrap().iter().map(|row| {
        let mut row = row.clone();
        let fields = row.as_object_mut().unwrap();
        fields.remove("rank");
        // Of equal keys any may lead, and a part of the traffic knows its own leader only.
        fields.retain(|field, _| !field.starts_with("top_key"));
        let mean = fields["latency_us"]["mean"].take();
        (row[name].as_str().unwrap().to_string(), row, mean.as_u64().unwrap())
    });
    rows.map(|(name, row, _)| (name, row)).collect()
}

fn means(report: &Value, list: &str) -> Vec<u64> {
    report[list].as_array().unwrap().iter().map(|row| row["latency_us"]["mean"].as_u64().unwrap()).collect()
}

/// Figures that a merge of parts has in common with a report of the whole.
const TOTALS: [&str; 18] = [
    "start",
    "end",
    "requests",
    "bytes_in",
    "bytes_out",
    "gets",
    "hits",
    "misses",
    "stores",
    "deletes",
    "touches",
    "arithmetic",
    "errors",
    "commands",
    "latency_us",
    "command_latency_us",
    "histograms_us",
    "unlisted",
];

#[test]
fn parts_by_client_make_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let whole_recording = folder.path().join("whole.pcap");
    fs::write(&whole_recording, pcap(&frames())).unwrap();
    let whole = replay_all(&whole_recording, &["-t", "cache=*:11211"]).remove(0);
    let [even, odd] = parts(folder.path()).map(|part| exported(&part, &ALL));
    let mut one = merged(&[&even, &odd], &["-k", "0", "--clients-per-key", "0"]);
    assert_eq!(one.len(), 1);
    let one = one.remove(0);
    for figure in TOTALS {
        assert_eq!(one[figure], whole[figure], "{figure}");
    }
    assert_eq!(one["bounds"], json!({"key": 0, "client": 0, "pair": 0}));
    for (list, name) in [("hot_keys", "key"), ("missed_keys", "key"), ("hot_clients", "client")] {
        let (ours, theirs) = (rows(&one, list, name), rows(&whole, list, name));
        assert!(ours.len() > 3 && ours.values().all(|row| row["err"] == 0));
        assert_eq!(ours, theirs, "{list}");
    }
    for (ours, theirs) in means(&one, "hot_keys").iter().zip(means(&whole, "hot_keys")) {
        assert!(ours.abs_diff(theirs) <= 2, "means are cut to microseconds twice: {ours} {theirs}");
    }
    let sum = |name: &str| one["loss"][name].as_u64().unwrap();
    for cause in ["packets", "gaps", "unparsed_bytes", "unmatched_requests", "evictions"] {
        assert_eq!(sum(cause), whole["loss"][cause].as_u64().unwrap(), "{cause}");
    }
    assert_eq!(one["merged"]["reports"], 2);
    // The order of files decides nothing, and neither does an address of the machine.
    assert_eq!(merged(&[&odd, &even], &["-k", "0", "--clients-per-key", "0"]), [one]);
}

#[test]
fn what_was_merged_merges_again_with_bounds_that_hold() {
    let folder = tempfile::tempdir().unwrap();
    let whole = replay_all(&fixture(RECORDING), &["-t", "cache=*:11211"]).remove(0);
    // A few rows of each report: bounds have to make up for the others.
    let [even, odd] = parts(folder.path()).map(|part| exported(&part, &["-w", "1s", "-k", "15"]));
    let again = folder.path().join("again.jsonl");
    succeed(memtap().args(["merge", "-o", "jsonl", "-k", "12", "--out"]).args([&again, &even]));
    let one = merged(&[&again, &odd], &["-k", "0", "--clients-per-key", "0"]).remove(0);
    assert_eq!(one["requests"], whole["requests"]);
    assert_eq!(one["merged"]["sources"][0]["reports"], 4);
    let truths = rows(&whole, "hot_keys", "key");
    let ours = rows(&one, "hot_keys", "key");
    let number = |value: &Value| value.as_u64().unwrap();
    let mut widened = 0;
    for (key, truth) in &truths {
        let requests = number(&truth["requests"]);
        let Some(row) = ours.get(key) else {
            assert!(requests <= number(&one["bounds"]["key"]), "{key}");
            continue;
        };
        let (upper, err) = (number(&row["requests"]), number(&row["err"]));
        widened += usize::from(err > 0);
        assert!(upper - err <= requests && requests <= upper, "{key}: {requests} in {upper} - {err}");
        for pair in truth["clients"].as_array().unwrap() {
            let listed =
                row["clients"].as_array().unwrap().iter().find(|row| row["client"] == pair["client"]);
            let requests = number(&pair["requests"]);
            match listed {
                Some(row) => {
                    let (upper, err) = (number(&row["requests"]), number(&row["err"]));
                    assert!(upper - err <= requests && requests <= upper, "{key} {pair}: {row}");
                }
                None => assert!(requests <= number(&one["bounds"]["pair"]), "{key} {pair}"),
            }
        }
    }
    assert!(widened > 0 && ours.len() >= 15, "{widened} {}", ours.len());
    let hottest = whole["hot_keys"][0]["key"].as_str().unwrap();
    assert_eq!(one["hot_keys"][0]["key"], hottest);
}

#[test]
fn every_form_says_what_was_merged_and_what_the_reports_lost() {
    let folder = tempfile::tempdir().unwrap();
    let [even, odd] = parts(folder.path()).map(|part| exported(&part, &ALL));
    let line = fs::read_to_string(&odd).unwrap();
    let mut report: Value = serde_json::from_str(&line).unwrap();
    report["host"] = json!("mc\x1b[2J");
    report["loss"]["ring_dropped"] = json!(1234);
    report["loss"]["cosmic_rays"] = json!(77);
    report["findings"] = json!([{"id": "capture-loss", "text": "lost \x1b[31m some"}]);
    fs::write(&odd, format!("{report}\n{}", &line[..500])).unwrap();
    let form = |name: &str| {
        let output = succeed(memtap().arg("merge").args([&even, &odd]).args(["-k", "3", "-o", name]));
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains("odd.jsonl, line 2: it breaks off after 500 bytes"), "{error}");
        String::from_utf8(output.stdout).unwrap()
    };
    let table = form("table");
    for expected in [
        "merged from 2 reports of 2 machines (",
        "mc\\x1b[2J",
        "ring dropped 1,234",
        "in 1 of 2 reports, first mc\\x1b[2J",
        "lost \\x1b[31m some",
        "77 loss cosmic_rays of a newer memtap",
        "merge-cut-line",
        "merge-distinct",
    ] {
        assert!(table.contains(expected), "{expected} is not in\n{table}");
    }
    assert!(!table.contains('\x1b'));
    assert!(form("markdown").contains("merged from 2 reports of 2 machines"));
    assert!(form("csv").contains("ring_dropped,,1234,"));
    assert!(form("jsonl").contains(r#""merged":{"reports":2,"#));
    let shapes = succeed(memtap().args(["merge", "--privacy", "shape"]).args([&even, &odd]));
    let shapes = String::from_utf8(shapes.stdout).unwrap();
    assert!(!shapes.contains("31m"), "sentences of others may hold keys:\n{shapes}");
}

#[test]
fn clients_come_together_by_machine() {
    let folder = tempfile::tempdir().unwrap();
    let whole = replay_all(&fixture(RECORDING), &["-t", "cache=*:11211", "--client", "ip"]).remove(0);
    let [even, odd] = parts(folder.path());
    let even = exported(&even, &ALL);
    let odd = exported(&odd, &[ALL.as_slice(), &["--client", "ip"]].concat());
    // One report tells no ports: nobody has to ask.
    let one = merged(&[&even, &odd], &["-k", "0"]).remove(0);
    assert_eq!(rows(&one, "hot_clients", "client"), rows(&whole, "hot_clients", "client"));
    let asked = memtap().args(["merge", "--client", "ip:port"]).args([&even, &odd]).output().unwrap();
    assert!(String::from_utf8_lossy(&asked.stderr).contains("some of the reports tell no ports"));
}

#[test]
fn what_would_count_twice_or_not_meet_is_refused_by_line() {
    let folder = tempfile::tempdir().unwrap();
    let [even, odd] = parts(folder.path());
    let [even_file, odd_file] = [&even, &odd].map(|part| exported(part, &ALL));
    let twice = refused(&[&even_file, &odd_file, &even_file]);
    assert!(
        twice.contains("even.jsonl, line 1: the same line stands in")
            && twice.contains("even.jsonl, line 1, and")
    );
    let windows = folder.path().join("windows.jsonl");
    succeed(
        memtap().args(["replay", "-w", "1s", "--over", "1m", "-o", "jsonl", "--out"]).args([&windows, &odd]),
    );
    let overlap = refused(&[&windows]);
    assert!(overlap.contains("windows.jsonl, line 2:") && overlap.contains("overlaps line 1"), "{overlap}");
    assert!(overlap.contains("--over"), "{overlap}");
    let hashed = |name: &str, secret: &str| {
        let out = folder.path().join(name);
        let config = folder.path().join(format!("{name}.toml"));
        fs::write(&config, format!("[keys]\nhash_secret = \"{secret}\"\nprivacy = \"hash\"\n")).unwrap();
        succeed(
            memtap()
                .args(["replay", "-w", "all", "-o", "jsonl", "-c"])
                .args([&config, &odd])
                .arg("--out")
                .arg(&out),
        );
        out
    };
    let (one, two) =
        (hashed("one.jsonl", "the first secret of ours"), hashed("two.jsonl", "another secret of ours"));
    let secrets = refused(&[&one, &two]);
    assert!(secrets.contains("hash (secret ") && secrets.contains("the same keys.hash_secret"), "{secrets}");
    let modes = refused(&[&one, &even_file]);
    assert!(modes.contains("its keys are shown as full, those of"), "{modes}");
    // Hashes of one secret meet, and the sum says so.
    let sum = merged(&[&one], &[]).remove(0);
    let original: Value = serde_json::from_str(fs::read_to_string(&one).unwrap().trim()).unwrap();
    assert_eq!((&sum["privacy"], &sum["key_secret"]), (&json!("hash"), &original["key_secret"]));
}

#[test]
fn what_is_no_report_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    assert!(refused(&[&file("noise", "\nhello\n")]).contains("noise, line 2: expected value, at column 1"));
    assert!(refused(&[&file("empty", "\n")]).contains("no report in "));
    assert!(refused(&[&folder.path().join("absent")]).contains("cannot read "));
    assert!(refused(&[&file("cut", "{\"v\":1,\n")]).contains("line 1: it breaks off after 7 bytes"));
    let output = memtap().arg("merge").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

/// Many targets in one file stay apart, in their order.
#[test]
fn targets_stay_apart() {
    let folder = tempfile::tempdir().unwrap();
    let [even, odd] = parts(folder.path());
    let targets = ["-t", "two=*:11212", "-w", "1s"];
    let [even, odd] = [even, odd].map(|part| exported(&part, &targets));
    let reports = merged(&[&even, &odd], &[]);
    let names: Vec<&str> = reports.iter().map(|report| report["target"].as_str().unwrap()).collect();
    assert_eq!(names, ["cache", "two"]);
    assert_eq!(reports[1]["requests"], 0);
    let table = succeed(memtap().arg("merge").args([&even, &odd])).stdout;
    assert!(String::from_utf8(table).unwrap().contains("\nTARGETS "));
}

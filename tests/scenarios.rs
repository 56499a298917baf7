//! Scenario files: conversations with their losses, retransmissions and splits, and the report that they must give.
//!
//! `UPDATE_SCENARIOS=1 cargo test --test scenarios` writes the expectations anew; review them like any product output. A failing
//! scenario leaves a recording beside its name in the system's folder for temporary files.

mod support;

use memtap::anomaly::Anomaly;
use memtap::capture::LinkType;
use memtap::collector::snapshot::Counters;
use memtap::model::{Command, Outcome};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use support::exact::{Exact, run_frames};
use support::scenario;

/// Anomalies that tell nothing about a scenario's outcome.
const NOT_SHOWN: [Anomaly; 1] = [Anomaly::OutOfOrderSegment];

fn describe(exact: &Exact) -> String {
    let mut text = String::new();
    for (index, command) in Command::ALL.iter().enumerate() {
        let counts = &exact.totals.commands[index];
        if counts.requests > 0 {
            write!(text, "{} {}", command.name(), counts.requests).unwrap();
            for outcome in Outcome::ALL {
                let count = counts.outcomes[outcome.index()];
                if count > 0 {
                    write!(text, " {}={count}", outcome.name()).unwrap();
                }
            }
            text.push('\n');
        }
    }
    for (key, counters) in &exact.keys {
        writeln!(text, "key {} {}", key.escape_ascii(), counters_text(counters)).unwrap();
    }
    for (client, counters) in &exact.clients {
        writeln!(text, "client {client} {}", counters_text(counters)).unwrap();
    }
    let [to_server, to_client] = exact.tally.payload_bytes;
    writeln!(text, "payload in={to_server} out={to_client}").unwrap();
    for (anomaly, count) in exact.tally.anomalies.iter().filter(|(anomaly, _)| !NOT_SHOWN.contains(anomaly)) {
        writeln!(text, "anomaly {} {count}", anomaly.name()).unwrap();
    }
    text
}

fn counters_text(counters: &Counters) -> String {
    let latency = counters.latency_mean_us().map_or(String::new(), |mean| format!(" mean={mean}us"));
    format!(
        "requests={} gets={} hits={} misses={} errors={} in={} out={}{latency}",
        counters.requests(),
        counters.gets,
        counters.hits,
        counters.misses,
        counters.errors,
        counters.bytes_in,
        counters.bytes_out
    )
}

fn check(path: &Path) -> Result<(), String> {
    let text = std::fs::read_to_string(path).expect("a scenario is text");
    let scenario = scenario::read(&text);
    let found = describe(&run_frames(&scenario.frames, LinkType::Ethernet));
    if found == scenario.expected {
        return Ok(());
    }
    if std::env::var_os("UPDATE_SCENARIOS").is_some() {
        std::fs::write(path, format!("{}---\n{found}", scenario.script))
            .expect("the scenario can be written");
        return Ok(());
    }
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let recording = std::env::temp_dir().join(format!("memtap-scenario-{name}.pcap"));
    std::fs::write(&recording, scenario::pcap(&scenario.frames)).expect("the recording can be written");
    let expected = &scenario.expected;
    Err(format!("{name} (packets: {})\n--- expected\n{expected}--- found\n{found}", recording.display()))
}

#[test]
fn scenarios_give_their_reports() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("tests/scenarios exists")
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(paths.len() >= 20, "{} scenarios", paths.len());
    let failures: Vec<String> = paths.iter().filter_map(|path| check(path).err()).collect();
    assert!(failures.is_empty(), "{} of {} scenarios:\n{}", failures.len(), paths.len(), failures.join("\n"));
}

//! Scenario files: conversations with their losses, retransmissions and splits, and the report that they must give.
//!
//! `UPDATE_SCENARIOS=1 cargo test --test scenarios` writes the expectations anew; review them like any product output. A failing
//! scenario leaves a recording beside its name in the system's folder for temporary files.

mod support;

use memtap::anomaly::Anomaly;
use memtap::capture::LinkType;
use memtap::collector::snapshot::Counters;
use memtap::model::{Command, FlowTuple, Outcome, TargetId};
use memtap::parser::Observation;
use memtap::pipeline::{Pipeline, PipelineLimits, TargetMap};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use support::exact::{Exact, port_target, run_frames};
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

/// A target goes while a request of each transport is outstanding; then one of the same address comes, and goes on with the connection
/// that it finds.
#[test]
fn a_target_takes_its_flows_along_and_the_next_one_meets_them_anew() {
    let before = "connect A\nA> get one\\r\\n\nA< END\\r\\n\nA> get two\\r\\n\nU> 7/0/1 get udp\\r\\n\n";
    let after = "A< END\\r\\n\nA> get three\\r\\n\nA< END\\r\\n\n";
    let frames = scenario::read(&format!("{before}{after}")).frames;
    let (before, after) = frames.split_at(scenario::read(before).frames.len());
    let slots = |targets: [bool; 2]| {
        TargetMap::with_slots(targets.map(|is_there| is_there.then(|| port_target(11211))).to_vec())
    };
    let mut pipeline = Pipeline::new(slots([true, false]), PipelineLimits::default());
    let mut seen = Vec::new();
    let mut note = |tuple: &FlowTuple, observation: &Observation<'_>| {
        let key = String::from_utf8_lossy(observation.key).into_owned();
        seen.push((tuple.target.0, key, observation.outcome));
    };
    for frame in before {
        pipeline.handle_packet(&frame.packet(), &mut note);
    }
    pipeline.set_targets(slots([false, false]));
    let mut from = Some(0);
    while let Some(at) = from {
        from = pipeline.close_target(TargetId(0), at, &mut note);
    }
    pipeline.set_targets(slots([false, true]));
    for frame in after {
        pipeline.handle_packet(&frame.packet(), &mut note);
    }
    pipeline.finish(&mut note);
    let expected = [
        (0, "one", Outcome::Miss),
        (0, "two", Outcome::Unseen),
        (0, "udp", Outcome::Unseen),
        (1, "three", Outcome::Miss),
    ];
    assert_eq!(seen, expected.map(|(target, key, outcome)| (target, key.to_string(), outcome)));
    let [first, second] = [0, 1].map(|number| pipeline.take_tally(TargetId(number)));
    assert_eq!(first.anomalies.of(Anomaly::UnmatchedRequest), 2);
    assert_eq!((first.anomalies.of(Anomaly::MidStream), second.anomalies.of(Anomaly::MidStream)), (0, 1));
}

//! `stat`, `report`, `doctor` and `--out` against a real memcached in a network namespace.
//!
//! Needs root, memcached and python3-pymemcache (`./check` installs them); a test that cannot run says so and fails.

#[path = "support/netns.rs"]
mod netns;
#[path = "support/session.rs"]
mod session;
mod support;

use netns::{CLIENT, Pair};
use serde_json::Value;
use session::{PATIENCE, interrupt, start_load, start_memcached};
use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const NOBODY: u32 = 65534;
const HOTTEST: &str = "user:0001:profile~";

fn memtap(pair: &Pair, arguments: &[&str]) -> Command {
    let mut command = pair.server.command(env!("CARGO_BIN_EXE_memtap"));
    command.args(arguments).args(["--budget-mb", "20", "--ring-mb", "8"]).env("NO_COLOR", "1");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn stat_shows_the_planted_key_second_by_second() {
    let pair = Pair::new();
    let _server = start_memcached(&pair, 11211, &[]);
    let _load = start_load(&pair, &["--seconds", "5", "--sources", CLIENT]);
    let mut command = memtap(&pair, &["stat", "-i", "veth0"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    thread::sleep(Duration::from_millis(3500));
    interrupt(&child, "-INT");
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = text(&output.stdout);
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with("UTC") && (4..=7).contains(&lines.len()), "{said}");
    let with_key = lines.iter().filter(|line| line.contains(HOTTEST)).count();
    assert!(with_key >= 2, "{said}");
}

#[test]
fn report_gives_whole_intervals_and_the_verdict() {
    let pair = Pair::new();
    let _server = start_memcached(&pair, 11211, &[]);
    let _load = start_load(&pair, &["--seconds", "12", "--sources", CLIENT]);
    let report = |conditions: &[&str]| -> Output {
        let base = ["report", "-i", "veth0", "-w", "1s", "-n", "2", "-o", "jsonl", "-q"];
        memtap(&pair, &[&base, conditions].concat()).output().unwrap()
    };
    // Until the client has begun.
    thread::sleep(Duration::from_millis(1500));
    let held = report(&["--fail-if", "key_share > 0.5%"]);
    assert_eq!(held.status.code(), Some(3), "{held:?}");
    let reports: Vec<Value> =
        text(&held.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(reports.len(), 2);
    for report in &reports {
        assert_eq!(report.get("partial"), None, "{report}");
        assert!(report["start"].as_str().unwrap().ends_with(".000000Z"), "{report}");
        assert_eq!(report["hot_keys"][0]["key"], HOTTEST);
    }
    assert!(!text(&held.stderr).contains(HOTTEST), "{held:?}");
    let fine = report(&["--fail-if", "key_share > 99%", "--fail-if", "loss > 50%"]);
    assert_eq!(fine.status.code(), Some(0), "{fine:?}");
}

#[test]
fn doctor_finds_server_directions_and_protocol() {
    let pair = Pair::new();
    let _server = start_memcached(&pair, 11211, &[]);
    let _other = start_memcached(&pair, 11311, &[]);
    let _load = start_load(&pair, &["--seconds", "8", "--sources", CLIENT]);
    thread::sleep(Duration::from_millis(1500));
    // Six interfaces, two seconds: all are listened to at once, or this would take twelve.
    for name in ["a", "b"] {
        pair.server.ip(&format!("link add {name}0 type veth peer name {name}1"));
    }
    let started = Instant::now();
    let interfaces = ["veth0", "lo", "a0", "a1", "b0", "b1"];
    let output = memtap(&pair, &[&["doctor", "--json", "-i"], &interfaces[..]].concat()).output().unwrap();
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let lines = report["lines"].as_array().unwrap();
    let has = |verdict: &str, topic: &str, part: &str| {
        let found = lines.iter().any(|line| {
            line["verdict"] == verdict
                && line["topic"] == topic
                && line["text"].as_str().unwrap().contains(part)
        });
        assert!(found, "no {verdict} {topic} with {part:?} in {report:#}");
    };
    has("ok", "privilege", "");
    has("ok", "listeners", "port 11211: ");
    has("ok", "listeners", "(memcached, process ");
    has("warn", "listeners", ":11311 (memcached, process ");
    has("ok", "traffic", "veth0: ");
    has("ok", "traffic", "lo: ");
    // Whether its size suffices is up to the machine of the moment.
    assert!(
        lines
            .iter()
            .any(|line| line["topic"] == "ring" && line["text"].as_str().unwrap().starts_with("veth0: "))
    );
    has("ok", "offloads", "veth0: ");
    has("ok", "directions", "packets of requests");
    has("ok", "protocols", "text 100%");
    has("warn", "interfaces", "a0: down");
    has("ok", "clock", "times of the system's clock");
    has("ok", "memory", "MiB for tables");
    // Everything that is not as it should be comes with what to do.
    assert!(lines.iter().all(|line| line["verdict"] == "ok" || line["advice"].is_string()), "{report:#}");
    let spoken = text(&memtap(&pair, &["doctor", "-i", "veth0"]).output().unwrap().stdout);
    assert!(spoken.lines().all(|line| ["ok  ", "warn", "fail"].contains(&&line[..4])), "{spoken}");
}

fn wait_for_change(path: &Path, before: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = fs::read_to_string(path).unwrap_or_default();
        if !now.is_empty() && now != before {
            return now;
        }
        assert!(Instant::now() < deadline, "{} does not change: {now}", path.display());
        thread::sleep(Duration::from_millis(20));
    }
}

/// The user changes, files are out of reach, and the report is replaced all the same: in its directory alone.
#[test]
fn a_file_is_replaced_from_within_the_sandbox() {
    let pair = Pair::new();
    let _server = start_memcached(&pair, 11211, &[]);
    let _load = start_load(&pair, &["--seconds", "6", "--sources", CLIENT]);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("report.json");
    let start = |mode: &str| {
        let out = out.to_str().unwrap();
        let arguments =
            ["run", "-i", "veth0", "-w", "500ms", "-o", "jsonl", "--out", out, "--out-mode", mode];
        let mut command = memtap(&pair, &arguments);
        command.env("MEMTAP_USER", "nobody").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    // A directory of root's is no place for nobody's files, and that is said at the start.
    let refused = start("replace").wait_with_output().unwrap();
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let said = text(&refused.stderr);
    assert!(said.contains("cannot write") && said.contains(folder.path().to_str().unwrap()), "{said}");

    chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let child = start("replace");
    let first = wait_for_change(&out, "");
    let second = wait_for_change(&out, &first);
    for report in [&first, &second] {
        assert_eq!(report.lines().count(), 1, "{report}");
        serde_json::from_str::<Value>(report).expect("a whole report");
    }
    interrupt(&child, "-INT");
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(text(&output.stderr).contains("sandbox: capabilities none"), "{output:?}");
    let names: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["report.json"], "a draft is left behind");

    // A file that grows was opened before, and needs no right to the directory.
    chown(folder.path(), Some(0), Some(0)).unwrap();
    let child = start("append");
    let last = wait_for_change(&out, &fs::read_to_string(&out).unwrap());
    assert!(last.lines().count() > 1);
    interrupt(&child, "-INT");
    assert!(child.wait_with_output().unwrap().status.success());
}

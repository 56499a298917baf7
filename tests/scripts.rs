//! What scripts and terminals beside other work use: `stat`, `report --fail-if`, `--out` in both ways.

mod support;

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Output;
use support::{fixture, memtap, succeed};

const RECORDING: &str = "peers/peer-small.pcap.zst";
const SMALL: [&str; 2] = ["--budget-mb", "20"];

fn run(arguments: &[&str]) -> Output {
    memtap().args(arguments).args(SMALL).output().expect("memtap starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text is UTF-8")
}

fn recording() -> String {
    fixture(RECORDING).display().to_string()
}

/// Reports as JSON, one for each interval.
fn intervals(arguments: &[&str]) -> Vec<Value> {
    let mut command = memtap();
    command.args(["replay", &recording(), "-o", "jsonl"]).args(arguments).args(SMALL);
    text(&succeed(&mut command).stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn stat_is_one_line_for_each_interval_with_the_figures_of_the_report() {
    let reports = intervals(&["-w", "100ms"]);
    let output = run(&["stat", &recording(), "-w", "100ms"]);
    let lines = text(&output.stdout);
    let (headers, lines): (Vec<&str>, Vec<&str>) = lines.lines().partition(|line| line.starts_with("UTC"));
    assert_eq!(lines.len(), reports.len());
    assert_eq!(headers.len(), reports.len().div_ceil(20));
    assert!(headers[0].ends_with("HOTTEST KEY"), "{}", headers[0]);
    for (line, report) in lines.iter().zip(&reports) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let end = report["end"].as_str().unwrap();
        let time = &end["2026-11-22T".len()..];
        assert!(words[0].len() == "00:00:00.000".len() && time.starts_with(words[0]), "{end}: {line}");
        let hits = report["hits"].as_f64().unwrap();
        let known = hits + report["misses"].as_f64().unwrap();
        let expected = if known > 0.0 { hits * 100.0 / known } else { f64::NAN };
        let close = words[2].parse::<f64>().map_or(known == 0.0, |ratio| (ratio - expected).abs() <= 0.1);
        assert!(close, "{expected}: {line}");
        match report["hot_keys"].get(0) {
            Some(row) => assert_eq!(words[8], row["key"].as_str().unwrap(), "{line}"),
            None => assert_eq!(words[8], "-"),
        }
    }
    // Names stand above their figures: every line is cut at the same columns.
    for line in &lines {
        let loss = headers[0].find("LOSS%").unwrap() + "LOSS%".len();
        let figure = line.split_whitespace().nth(7).unwrap();
        assert!(line[..loss].ends_with(figure) && line[loss..].starts_with("  "), "{line}");
    }
}

#[test]
fn stat_tells_targets_apart_and_fits_its_key_into_the_terminal() {
    let mut command = memtap();
    command.env("COLUMNS", "90").args(["stat", &recording(), "-w", "1s", "-t", "all=*:11211", "other=*:1"]);
    // Recordings follow flags that would otherwise take them.
    assert_eq!(command.output().unwrap().status.code(), Some(1), "a flag took a file or a file a flag");
    let mut command = memtap();
    command.env("COLUMNS", "90").args([
        "stat",
        "-w",
        "1s",
        "-t",
        "all=*:11211",
        "-t",
        "other=*:1",
        &recording(),
    ]);
    let lines = text(&succeed(command.args(SMALL)).stdout);
    assert!(lines.lines().next().unwrap().contains("TARGET"));
    let lines = lines.lines().filter(|line| !line.starts_with("UTC"));
    for (line, name) in lines.zip(["all", "other"].into_iter().cycle()) {
        assert_eq!(line.split_whitespace().nth(1), Some(name));
        assert!(line.chars().count() <= 90, "{line}");
    }
}

#[test]
fn the_file_that_run_is_written_for_does_not_lead_stat_and_report_astray() {
    let folder = tempfile::tempdir().unwrap();
    let (config, out) = (folder.path().join("memtap.toml"), folder.path().join("daemon.jsonl"));
    let file = format!(
        "[report]\ninterval = \"10s\"\nintervals = 7\noutput = \"jsonl\"\nout = {:?}\n",
        out.display().to_string()
    );
    fs::write(&config, file).unwrap();
    let config = config.to_str().unwrap();
    let stat = run(&["stat", "-c", config, &recording()]);
    assert!(text(&stat.stdout).starts_with("UTC"), "{stat:?}");
    let report = run(&["report", "-c", config, &recording(), "-w", "all"]);
    assert!(text(&report.stdout).starts_with("{\"v\":1"), "{report:?}");
    assert!(!out.exists());
    // Asked for here and now it is written all the same.
    run(&["stat", "-c", config, "--out", out.to_str().unwrap(), &recording()]);
    assert!(fs::read_to_string(&out).unwrap().starts_with("UTC"));
}

#[test]
fn conditions_decide_the_exit_code() {
    let whole = &intervals(&["-w", "all"])[0];
    let requests = whole["requests"].as_f64().unwrap();
    let share = whole["hot_keys"][0]["requests"].as_f64().unwrap() / requests;
    let (below, above) = (format!("{:.6}", share - 0.001), format!("{:.6}", share + 0.001));
    let report = |conditions: &[&str]| {
        let flags: Vec<&str> = conditions.iter().flat_map(|condition| ["--fail-if", condition]).collect();
        let recording = recording();
        let all = [&["report", "-w", "all", "-o", "csv", &recording], flags.as_slice()].concat();
        let output = run(&all);
        assert!(text(&output.stdout).starts_with("start,interval_s"), "the report is written whatever holds");
        (output.status.code(), text(&output.stderr))
    };
    assert_eq!(report(&[]), (Some(0), String::new()));
    assert_eq!(report(&[&format!("key_share > {above}")]), (Some(0), String::new()));
    let (code, said) = report(&[&format!("key_share > {below} and requests >= {requests}")]);
    assert_eq!(code, Some(3));
    assert!(
        said.contains("*:11211 at ") && said.contains("key_share is ") && said.contains("requests is "),
        "{said}"
    );
    // Figures, and no key: this may end in a mail.
    assert!(!said.contains(whole["hot_keys"][0]["key"].as_str().unwrap()), "{said}");
    assert_eq!(report(&["requests = 0", "loss < 1%"]).0, Some(3), "any of several suffices");
    assert_eq!(report(&["requests = 0", "loss > 1%"]).0, Some(0));
}

#[test]
fn conditions_look_at_every_interval_and_the_first_ten_are_told() {
    let arguments = ["report", "-w", "100ms", "--fail-if", "requests > 0", "-o", "stat"];
    let count = intervals(&["-w", "100ms"]).iter().filter(|report| report["requests"] != 0).count();
    assert!(count > 10);
    let output = run(&[&arguments[..], &[&recording()]].concat());
    assert_eq!(output.status.code(), Some(3));
    let said = text(&output.stderr);
    assert_eq!(said.matches("requests > 0").count(), 10, "{said}");
    assert!(said.contains(&format!("and {} more", count - 10)), "{said}");
    let limited = run(&[&arguments[..], &["-n", "2", &recording()]].concat());
    assert_eq!(text(&limited.stdout).lines().count(), 3, "{limited:?}");
}

#[test]
fn a_wrong_condition_is_wrong_usage_and_is_pointed_at() {
    let output = run(&["report", "--fail-if", "key_share > 0.3 and erors > 1", &recording()]);
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stderr);
    assert!(said.contains("--fail-if: unknown figure \"erors\"; did you mean errors?"), "{said}");
    assert!(said.contains("\n  key_share > 0.3 and erors > 1\n                      ^^^^^\n"), "{said}");
    assert!(output.stdout.is_empty());
}

// ---- --out ---------------------------------------------------------------------------------------------------------

fn replay_to(path: &Path, arguments: &[&str]) -> Output {
    let recording = recording();
    let all = [&["replay", &recording, "--out", path.to_str().unwrap()], arguments].concat();
    run(&all)
}

#[test]
fn a_file_grows_and_csv_names_its_columns_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.csv");
    for _ in 0..2 {
        assert!(replay_to(&path, &["-w", "all", "-o", "csv"]).status.success());
    }
    let written = fs::read_to_string(&path).unwrap();
    assert_eq!(written.matches("start,interval_s").count(), 1);
    assert_eq!(written.matches(",total,").count(), 2);
}

#[test]
fn a_replaced_file_holds_the_last_interval_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.csv");
    fs::write(&path, "something else").unwrap();
    let output = replay_to(&path, &["-w", "100ms", "-o", "csv", "--out-mode", "replace"]);
    assert!(output.status.success(), "{output:?}");
    let written = fs::read_to_string(&path).unwrap();
    assert!(written.starts_with("start,interval_s"), "{written}");
    assert_eq!(written.matches(",total,").count(), 1);
    let last = intervals(&["-w", "100ms"]).pop().unwrap();
    assert!(written.contains(last["start"].as_str().unwrap()));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "a draft is left behind");
}

#[test]
fn readers_of_a_replaced_file_always_see_a_whole_report() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.json");
    let mut command = memtap();
    command.args([
        "replay",
        &recording(),
        "-w",
        "100ms",
        "-k",
        "0",
        "-o",
        "jsonl",
        "--out-mode",
        "replace",
        "--out",
    ]);
    let mut child = command.arg(&path).args(SMALL).spawn().unwrap();
    let mut seen = std::collections::BTreeSet::new();
    loop {
        let ended = child.try_wait().unwrap();
        if let Ok(written) = fs::read_to_string(&path) {
            let report: Value = serde_json::from_str(&written).expect("a whole report");
            seen.insert(report["start"].as_str().unwrap().to_string());
        }
        if let Some(status) = ended {
            assert!(status.success());
            break;
        }
    }
    assert!(!seen.is_empty());
}

#[test]
fn what_cannot_be_written_is_74_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("no/such/directory/report");
    for mode in ["append", "replace"] {
        let output = replay_to(&missing, &["-w", "all", "--out-mode", mode]);
        assert_eq!(output.status.code(), Some(74), "{mode}: {output:?}");
        assert!(text(&output.stderr).contains(missing.to_str().unwrap()), "{output:?}");
    }
    let full = replay_to(Path::new("/dev/full"), &["-w", "all"]);
    assert_eq!(full.status.code(), Some(74), "{full:?}");
    assert!(text(&full.stderr).contains("/dev/full"), "{full:?}");
    let device = replay_to(Path::new("/dev/null"), &["-w", "all", "--out-mode", "replace"]);
    assert_eq!(device.status.code(), Some(74), "{device:?}");
    assert!(text(&device.stderr).contains("append"), "{device:?}");
}

//! The program as its users run it: exit codes, messages, pipes.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Output, Stdio};
use support::{fixture, memtap, replay_all};

const RECORDING: &str = "peers/peer-edge-v4.pcap.zst";

fn run(arguments: &[&str]) -> Output {
    memtap().args(arguments).output().expect("memtap starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn expect(output: &Output, code: i32, needles: &[&str]) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for needle in needles {
        assert!(said.contains(needle), "no {needle:?} in: {said}");
    }
}

#[test]
fn wrong_usage_is_2() {
    expect(&run(&["replay"]), 2, &["FILE"]);
    expect(&run(&["fly"]), 2, &["fly"]);
    expect(&run(&["replay", "x.pcap", "--top", "many"]), 2, &["--top", "many"]);
}

#[test]
fn bad_configuration_is_78_and_says_where() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("memtap.toml");
    fs::write(&path, "[report]\ntop = 10\nintervall = \"10s\"\n").unwrap();
    let path = path.to_str().unwrap();
    for arguments in [["config", "check", path], ["run", "-c", path]] {
        let output = run(&arguments);
        expect(&output, 78, &[path, "3", "intervall", "interval"]);
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn the_sample_is_good_and_is_what_config_default_prints() {
    let output = run(&["config", "default"]);
    expect(&output, 0, &[]);
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/config/memtap.toml");
    assert_eq!(output.stdout, fs::read(sample).unwrap());
    let checked = run(&["config", "check", sample]);
    expect(&checked, 0, &[]);
    assert!(String::from_utf8_lossy(&checked.stdout).contains("good"));
}

#[test]
fn a_file_that_is_not_there_is_1() {
    expect(&run(&["replay", "/nowhere/x.pcap"]), 1, &["/nowhere/x.pcap"]);
}

#[test]
fn a_damaged_recording_gives_what_was_readable_and_1() {
    let folder = tempfile::tempdir().unwrap();
    let whole = zstd::decode_all(fs::File::open(fixture(RECORDING)).unwrap()).unwrap();
    let path = folder.path().join("cut.pcap");
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let path = path.to_str().unwrap();
    let output = run(&["replay", path, "-w", "all", "-k", "0", "-o", "jsonl"]);
    expect(&output, 1, &[path]);
    let report: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("one report of what was readable");
    assert!(report["requests"].as_i64().unwrap() > 10, "{report}");
}

#[test]
fn a_closed_pipe_is_a_quiet_success() {
    let mut child = memtap()
        .arg("replay")
        .arg(fixture("peers/peer-small.pcap.zst"))
        .args(["-w", "100ms", "-k", "0", "-o", "jsonl"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    expect(&output, 0, &[]);
    assert_eq!(stderr(&output), "");
}

#[test]
fn a_full_disk_is_74() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full exists on Linux");
    let mut command = memtap();
    command.arg("replay").arg(fixture(RECORDING)).args(["-w", "all"]).stdout(full).stderr(Stdio::piped());
    expect(&command.spawn().unwrap().wait_with_output().unwrap(), 74, &["write"]);
}

#[test]
fn without_the_capability_run_is_77_and_says_how_to_get_it() {
    // The program must be reachable for the user that it becomes.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("memtap");
    fs::copy(env!("CARGO_BIN_EXE_memtap"), &program).unwrap();
    let mut command = std::process::Command::new(&program);
    command.args(["run", "-i", "lo"]).current_dir("/").uid(65534).gid(65534);
    let output = command.output().expect("this test needs root, to give it up");
    expect(&output, 77, &["CAP_NET_RAW", "setcap"]);
}

#[test]
fn an_unknown_interface_is_named_with_those_that_there_are() {
    expect(&run(&["run", "-i", "nosuch0"]), 1, &["nosuch0", "lo"]);
}

#[test]
fn intervals_can_be_limited() {
    let all = replay_intervals(&["-w", "100ms"]);
    assert!(all > 3, "{all} intervals");
    assert_eq!(replay_intervals(&["-w", "100ms", "-n", "2"]), 2);
}

fn replay_intervals(arguments: &[&str]) -> usize {
    let mut command = memtap();
    command.arg("replay").arg(fixture("peers/peer-small.pcap.zst")).args(["-o", "jsonl"]).args(arguments);
    let output = command.output().unwrap();
    expect(&output, 0, &[]);
    output.stdout.iter().filter(|&&byte| byte == b'\n').count()
}

#[test]
fn intervals_add_up_to_the_whole() {
    let path = fixture("peers/peer-small.pcap.zst");
    let whole = replay_all(&path, &[]);
    let mut command = memtap();
    command.arg("replay").arg(&path).args(["-o", "jsonl", "-w", "100ms", "-k", "0"]);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let parts: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for figure in ["requests", "gets", "hits", "misses", "stores", "bytes_in", "bytes_out"] {
        let sum: i64 = parts.iter().map(|part| part[figure].as_i64().unwrap()).sum();
        assert_eq!(sum, whole[0][figure].as_i64().unwrap(), "{figure}");
    }
}

#[test]
fn out_writes_to_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.jsonl");
    let mut command = memtap();
    command.arg("replay").arg(fixture(RECORDING)).args(["-w", "all", "-o", "jsonl", "--out"]).arg(&path);
    let output = command.output().unwrap();
    expect(&output, 0, &[]);
    assert!(output.stdout.is_empty());
    let report: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(report["type"], "interval");
}

//! What several tests share: fixtures, the program as its users run it, scenario text.
#![allow(
    dead_code,
    unused_imports,
    missing_docs,
    unreachable_pub,
    reason = "each test binary uses its own part"
)]

pub mod exact;
pub mod long;
pub mod readback;
pub mod scenario;
pub mod transform;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A file under `tests/fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    assert!(path.exists(), "fixture {} is missing", path.display());
    path
}

/// What memcached itself counted: `tests/fixtures/NAME.truth.json.zst`.
pub fn truth(name: &str) -> Value {
    let file = std::fs::File::open(fixture(&format!("{name}.truth.json.zst"))).expect("truth file opens");
    let decoder = zstd::stream::read::Decoder::new(file).expect("truth file is zstd");
    serde_json::from_reader(decoder).expect("truth file is JSON")
}

/// The program under test, with nothing of the caller's environment that would configure it.
pub fn memtap() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_memtap"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MEMTAP_")) {
        command.env_remove(name);
    }
    command.env("NO_COLOR", "1");
    command
}

/// Runs and insists on exit code 0.
pub fn succeed(command: &mut Command) -> Output {
    let output = command.output().expect("memtap starts");
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// `memtap replay FILE -w all -k 0 --clients-per-key 0 -o jsonl` with further arguments: one object per target.
pub fn replay_all(recording: &Path, arguments: &[&str]) -> Vec<Value> {
    let mut command = memtap();
    command.arg("replay").arg(recording).args([
        "-w",
        "all",
        "-k",
        "0",
        "--clients-per-key",
        "0",
        "-o",
        "jsonl",
    ]);
    let output = succeed(command.args(arguments));
    String::from_utf8(output.stdout)
        .expect("JSON Lines are UTF-8")
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line is a JSON object"))
        .collect()
}

/// A number of bytes as reports write it: `1.2 MB`.
pub fn readable_bytes(bytes: u64) -> String {
    let (unit, name) = [(1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")]
        .into_iter()
        .find(|(unit, _)| bytes as f64 >= *unit)
        .expect("more than nothing");
    format!("{:.1} {name}", bytes as f64 / unit)
}

/// The figure at a path of names, 0 where it is absent (outcomes that did not occur are left out).
pub fn figure(report: &Value, path: &[&str]) -> i64 {
    path.iter().try_fold(report, |value, name| value.get(name)).and_then(Value::as_i64).unwrap_or(0)
}

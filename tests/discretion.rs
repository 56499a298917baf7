//! Keys are private: a canary in every key, looked for in everything that the program says.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use support::memtap;
use support::scenario::{pcap, read};

/// The part of every key that both a shape and a hash take away.
const NUMBER: &str = "91827364";
/// The part that a shape keeps.
const NAME: &str = "xyzzycanary";

const FORMATS: [&str; 5] = ["table", "markdown", "jsonl", "csv", "stat"];

/// Hits, misses, an error, a line that is no command, and a connection found in the middle of an answer: whatever names a key.
fn recording(folder: &Path) -> PathBuf {
    let key = format!("{NAME}:{NUMBER}");
    let text = format!(
        "B< VALUE {key} 0 3\\r\\nabc\\r\\nEND\\r\\n\n\
         connect A\n\
         A> set {key} 0 0 3\\r\\nabc\\r\\n\n\
         A< STORED\\r\\n\n\
         A> get {key}\\r\\n\n\
         A< VALUE {key} 0 3\\r\\nabc\\r\\nEND\\r\\n\n\
         A> get {key}0\\r\\n\n\
         A< END\\r\\n\n\
         A> {key} {key} {key}\\r\\n\n\
         A< ERROR\\r\\n\n\
         A> mg {key} v q\\r\\nmn\\r\\n\n\
         A< MN\\r\\n\n"
    );
    let path = folder.join("recording.pcap");
    fs::write(&path, pcap(&read(&text).frames)).unwrap();
    path
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn run(command: &str, recording: &Path, arguments: &[&str]) -> Output {
    let mut run = memtap();
    run.arg(command).args(arguments).args(["-w", "all", "--budget-mb", "20"]).arg(recording);
    run.output().expect("memtap starts")
}

#[test]
fn a_masked_key_is_in_no_output_at_no_level() {
    let folder = tempfile::tempdir().unwrap();
    let recording = recording(folder.path());
    for privacy in ["shape", "hash"] {
        for format in FORMATS {
            for log in ["text", "json"] {
                let arguments = ["--privacy", privacy, "-o", format, "--log-format", log, "-vv"];
                let scripted = [&arguments[..], &["--fail-if", "requests > 0 and key_share > 0"]].concat();
                for output in [run("replay", &recording, &arguments), run("report", &recording, &scripted)] {
                    let said = said(&output);
                    assert!(said.len() > 100, "{said}");
                    assert!(!said.contains(NUMBER), "{privacy} {format} {log}: {said}");
                    assert!(privacy == "shape" || !said.contains(NAME), "{privacy} {format} {log}: {said}");
                }
            }
        }
    }
    // Without a mask it is there, or this test would see nothing.
    for format in FORMATS {
        assert!(said(&run("replay", &recording, &["-o", format])).contains(NUMBER), "{format}");
    }
}

#[test]
fn the_log_names_no_key_above_debug_whatever_the_privacy() {
    let folder = tempfile::tempdir().unwrap();
    let recording = recording(folder.path());
    let damaged = folder.path().join("damaged.pcap");
    let bytes = fs::read(&recording).unwrap();
    fs::write(&damaged, &bytes[..bytes.len() - 5]).unwrap();
    for recording in [&recording, &damaged] {
        for arguments in [&["-o", "table"][..], &["--fail-if", "requests > 0"], &["--out", "/nowhere/x"]] {
            let output = run("report", recording, arguments);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!said.contains(NAME) && !said.contains(NUMBER), "{said}");
        }
    }
}

//! Rules of the house that a test can hold: the arrows between stages, the files that may hold `unsafe`, stray prints,
//! unfinished marks, a reason beside each dependency, the size of the fixtures.

use std::fs;
use std::path::{Path, PathBuf};

/// The only files under `src` that may hold `unsafe`.
const UNSAFE_FILES: [&str; 3] = ["src/capture/socket.rs", "src/capture/ring.rs", "src/collector/arena.rs"];

/// Stages in the order of the arrows: a stage may import itself, the stages before it, `model` and `anomaly`.
const STAGES: [&str; 5] = ["capture", "reassembly", "parser", "collector", "report"];

/// Greatest total size of `tests/fixtures`.
const FIXTURE_BYTES_MAX: u64 = 20 << 20;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files_under(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_under(&path, extension));
        } else if extension.is_empty() || path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().to_string_lossy().into_owned()
}

/// Lines without comments, numbered from 1. Good enough for code that rustfmt has laid out.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().filter_map(|(index, line)| {
        let code = line.split("//").next().unwrap_or("");
        (!code.trim().is_empty()).then_some((index + 1, code))
    })
}

/// The word as a whole word of code.
fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        !is_word(before) && !is_word(after)
    })
}

#[test]
fn stages_import_only_what_lies_before_them() {
    let mut wrong = Vec::new();
    for (position, stage) in STAGES.iter().enumerate() {
        let later = STAGES[position + 1..].iter().copied();
        let forbidden: Vec<&str> = later.chain(["pipeline", "runtime", "cli"]).collect();
        for path in files_under(&root().join("src").join(stage), "rs") {
            let text = fs::read_to_string(&path).unwrap();
            for (number, line) in code_lines(&text) {
                for other in &forbidden {
                    if line.contains(&format!("crate::{other}::"))
                        || line.contains(&format!("crate::{other};"))
                    {
                        wrong.push(format!("{}:{number} imports {other}: {}", relative(&path), line.trim()));
                    }
                }
            }
        }
    }
    for shared in ["model", "anomaly"] {
        let text = fs::read_to_string(root().join(format!("src/{shared}.rs"))).unwrap();
        for (number, line) in code_lines(&text).filter(|(_, line)| line.contains("crate::")) {
            wrong.push(format!("src/{shared}.rs:{number} imports something of ours: {}", line.trim()));
        }
    }
    assert!(wrong.is_empty(), "arrows against the order {STAGES:?}:\n{}", wrong.join("\n"));
}

#[test]
fn unsafe_stays_in_its_files() {
    let mut wrong = Vec::new();
    for path in files_under(&root().join("src"), "rs") {
        let name = relative(&path);
        if UNSAFE_FILES.contains(&name.as_str()) {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for (number, line) in code_lines(&text).filter(|(_, line)| has_word(line, "unsafe")) {
            wrong.push(format!("{name}:{number}: {}", line.trim()));
        }
    }
    assert!(wrong.is_empty(), "unsafe outside {UNSAFE_FILES:?}:\n{}", wrong.join("\n"));
}

/// Answers of rtnetlink wait for a lock that others may hold for seconds; a worker that asked lost half a million packets. See `src/runtime/links.rs`.
#[test]
fn workers_do_not_ask_for_interfaces() {
    let worker = ["src/runtime/capture.rs", "src/runtime/capture/orders.rs", "src/runtime/worker.rs"];
    let asks =
        ["interface::{self", "interface::enumerate", "interface::nic_packets_dropped", "interface::route_to"];
    let mut wrong = Vec::new();
    for name in worker {
        let text = fs::read_to_string(root().join(name)).unwrap();
        let lines = code_lines(&text).filter(|(_, line)| asks.iter().any(|ask| line.contains(ask)));
        wrong.extend(lines.map(|(number, line)| format!("{name}:{number}: {}", line.trim())));
    }
    assert!(wrong.is_empty(), "workers ask the kernel for interfaces:\n{}", wrong.join("\n"));
}

#[test]
fn nothing_unfinished_and_no_stray_prints() {
    // Spelled in two halves so that this list does not find itself.
    let marks: Vec<String> = [("TO", "DO"), ("FIX", "ME"), ("XX", "X"), ("HA", "CK")]
        .iter()
        .map(|(a, b)| format!("{a}{b}"))
        .collect();
    let prints = ["println!", "eprintln!", "print!", "eprint!", "dbg!"];
    let mut wrong = Vec::new();
    for folder in ["src", "tests", "benches"] {
        for path in files_under(&root().join(folder), "rs") {
            let text = fs::read_to_string(&path).unwrap();
            for (index, line) in text.lines().enumerate() {
                if marks.iter().any(|mark| has_word(line, mark)) {
                    wrong.push(format!("{}:{}: unfinished: {}", relative(&path), index + 1, line.trim()));
                }
            }
            if folder == "src" && relative(&path) != "src/main.rs" {
                for (number, line) in code_lines(&text) {
                    if prints.iter().any(|print| line.contains(print)) {
                        wrong.push(format!("{}:{number}: print: {}", relative(&path), line.trim()));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_dependency_has_its_reason() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let mut section = "";
    let mut wrong = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            section = line;
        } else if section.ends_with("dependencies]") && line.contains('=') && !line.starts_with('#') {
            let reason = line.rsplit_once("# ").map_or("", |(_, reason)| reason);
            if reason.split_whitespace().count() < 3 {
                wrong.push(line);
            }
        }
    }
    assert!(wrong.is_empty(), "dependencies without a line of reason:\n{}", wrong.join("\n"));
}

#[test]
fn fixtures_stay_small() {
    let total: u64 =
        files_under(&root().join("tests/fixtures"), "").iter().map(|p| fs::metadata(p).unwrap().len()).sum();
    assert!(total <= FIXTURE_BYTES_MAX, "tests/fixtures holds {total} bytes, more than {FIXTURE_BYTES_MAX}");
}

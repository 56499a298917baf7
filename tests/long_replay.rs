//! Replay at scale: a long recording made by repeating a short one, its progress, its memory, its interruption; several files,
//! standard input, and the recorded pace.
//!
//! `MEMTAP_TEST_REPLAY_PACKETS` sets the length (10,000,000 is what an operator may bring; the default keeps `./check` short).

mod support;

use serde_json::Value;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use support::long::{frames_of, write_long};
use support::scenario::{Frame, pcap};
use support::{fixture, memtap, succeed};

const PACKETS_DEFAULT: u64 = 400_000;
const SMALL: [&str; 4] = ["--budget-mb", "20", "-o", "jsonl"];
const PATIENCE: Duration = Duration::from_secs(600);

fn packets_wanted() -> u64 {
    std::env::var("MEMTAP_TEST_REPLAY_PACKETS")
        .map_or(PACKETS_DEFAULT, |text| text.parse().expect("a number of packets"))
}

fn frames() -> Vec<Frame> {
    frames_of(fixture("peers/peer-small.pcap.zst"))
}

fn report_of(output: &Output) -> Value {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    serde_json::from_str(text.lines().last().unwrap_or_else(|| panic!("no report: {output:?}"))).unwrap()
}

fn replay(path: &Path, arguments: &[&str]) -> Command {
    let mut command = memtap();
    command.arg("replay").arg(path).args(["-w", "all", "--top", "5"]).args(SMALL).args(arguments);
    command
}

/// A terminal: what a program is given, and what its user sees.
fn terminal() -> (File, File) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let user: OwnedFd =
        openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a pseudo-terminal");
    grantpt(&user).unwrap();
    unlockpt(&user).unwrap();
    let name = ptsname(&user, Vec::new()).unwrap().into_string().unwrap();
    let program = File::options().read(true).write(true).open(name).unwrap();
    (File::from(user), program)
}

/// Everything shown until the last program lets go of the terminal, which Linux tells by an error.
fn shown(mut user: File) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
        while let Ok(count @ 1..) = user.read(&mut buffer) {
            text.extend_from_slice(&buffer[..count]);
        }
        String::from_utf8_lossy(&text).into_owned()
    })
}

/// Most memory that the program held, in KiB, read until it ends.
fn peak_kib(child: &mut Child) -> u64 {
    let path = format!("/proc/{}/status", child.id());
    let until = Instant::now() + PATIENCE;
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < until, "the replay does not end");
        let status = fs::read_to_string(&path).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak = line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(peak);
        thread::sleep(Duration::from_millis(5));
    }
    peak
}

fn interrupt(child: &Child, signal: &str) {
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill runs");
    assert!(sent.success());
}

#[test]
fn a_long_recording_shows_its_progress_holds_its_memory_and_counts_every_packet() {
    let folder = tempfile::tempdir().unwrap();
    let frames = frames();
    let (short, long) = (folder.path().join("short.pcap"), folder.path().join("long.pcap"));
    write_long(&short, &frames, packets_wanted() / 10);
    let packets = write_long(&long, &frames, packets_wanted());
    let peak_of = |path: &Path| {
        let mut child = replay(path, &[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let peak = peak_kib(&mut child);
        assert!(child.wait().unwrap().success());
        peak
    };
    let (peak_short, peak_long) = (peak_of(&short), peak_of(&long));
    // Ten times the packets, and no more memory than the pages of the flow table that flows touch for the first time: it is
    // as large at the start as ever, but the kernel gives pages when they are used.
    assert!(peak_long <= peak_short + peak_short / 4, "{peak_short} KiB, then {peak_long} KiB");

    let (user, program) = terminal();
    let seen = shown(user);
    let started = Instant::now();
    let mut command = replay(&long, &[]);
    command.stderr(program).stdout(Stdio::piped());
    let output = command.spawn().unwrap().wait_with_output().unwrap();
    let passed = started.elapsed();
    drop(command);
    let seen = seen.join().unwrap();
    assert!(output.status.success(), "{seen}");
    let report = report_of(&output);
    assert_eq!(report["loss"]["packets"].as_u64(), Some(packets));
    let copies = packets / frames.len() as u64;
    let single = report_of(&succeed(&mut replay(&fixture("peers/peer-small.pcap.zst"), &[])));
    for figure in ["requests", "gets", "hits", "misses", "stores", "bytes_in", "bytes_out"] {
        let (of_one, of_all) = (single[figure].as_u64().unwrap(), report[figure].as_u64().unwrap());
        assert_eq!(of_all, of_one * copies, "{figure}");
    }
    // Longer than the half second after which an operator wonders, or it would have said nothing by right.
    if passed > Duration::from_secs(2) {
        let total = support::readable_bytes(fs::metadata(&long).unwrap().len());
        assert!(seen.contains(&format!(" of {total} (")) && seen.contains("/s, "), "{seen:?}");
        assert!(seen.contains(" left"), "{seen:?}");
    }
    assert!(seen.is_empty() || seen.ends_with("\r\x1b[K"), "the line is left behind: {seen:?}");
    assert!(!seen.contains('\n'), "{seen:?}");
}

/// The packets of a file, the first so many.
fn head(path: &Path, to: &Path, packets: u64) {
    let bytes = fs::read(path).unwrap();
    let mut at = 24;
    for _ in 0..packets {
        let captured = u32::from_le_bytes(bytes[at + 8..at + 12].try_into().unwrap());
        at += 16 + captured as usize;
    }
    fs::write(to, &bytes[..at]).unwrap();
}

/// Leaves out who asked for which key: these tables may be full, and what is left out then hangs on a seed of the process.
fn without_pairs(report: &mut Value) {
    report["bounds"]["pair"] = 0.into();
    report["loss"]["evictions"] = 0.into();
    report["findings"].as_array_mut().unwrap().retain(|finding| finding["id"] != "evictions");
    for (rows, field) in [("hot_keys", "clients"), ("missed_keys", "clients"), ("hot_clients", "top_key")] {
        for row in report[rows].as_array_mut().unwrap() {
            row.as_object_mut().unwrap().remove(field);
            row.as_object_mut().unwrap().remove("top_key_requests");
        }
    }
}

#[test]
fn an_interrupted_replay_reports_exactly_what_it_read() {
    let folder = tempfile::tempdir().unwrap();
    let (long, part) = (folder.path().join("long.pcap"), folder.path().join("part.pcap"));
    let packets = write_long(&long, &frames(), 2 * packets_wanted());
    // The handlers are there before the tables, and the tables before the packets; how long either takes hangs on the machine.
    let interrupted = [200, 150, 100, 70, 300, 500, 800].into_iter().find_map(|delay| {
        let mut command = replay(&long, &[]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        thread::sleep(Duration::from_millis(delay));
        // Whoever has ended already cannot be interrupted.
        let _ = Command::new("kill").args(["-INT", &child.id().to_string()]).stderr(Stdio::null()).status();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let read: u64 = said.split("stopped after ").nth(1)?.split(' ').next()?.parse().ok()?;
        (read > 0 && read < packets).then_some((output, read))
    });
    let (output, read) = interrupted.expect("no delay met the time when packets are read");
    let mut report = report_of(&output);
    assert_eq!(report["partial"], true);
    head(&long, &part, read);
    let mut expected = report_of(&succeed(&mut replay(&part, &[])));
    report.as_object_mut().unwrap().remove("partial");
    for report in [&mut report, &mut expected] {
        without_pairs(report);
    }
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(&report[field], value, "{field}");
    }
}

#[test]
fn standard_input_is_read_and_a_signal_is_heard_while_it_is_silent() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("whole.pcap");
    write_long(&path, &frames(), 1);
    let expected = report_of(&succeed(&mut replay(&path, &[])));
    let bytes = fs::read(&path).unwrap();
    // Once to the end, once with a writer that falls silent in the middle of a packet.
    for stop in [false, true] {
        let mut command = replay(Path::new("-"), &[]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        let until = if stop { bytes.len() - 7 } else { bytes.len() };
        input.write_all(&bytes[..until]).unwrap();
        input.flush().unwrap();
        if stop {
            thread::sleep(Duration::from_millis(500));
            interrupt(&child, "-INT");
        } else {
            drop(input);
        }
        let asked = Instant::now();
        let output = child.wait_with_output().unwrap();
        assert!(asked.elapsed() < Duration::from_secs(20));
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let report = report_of(&output);
        let lacking = i64::from(stop);
        let packets = |report: &Value| report["loss"]["packets"].as_i64().unwrap();
        assert_eq!(packets(&report), packets(&expected) - lacking);
        if !stop {
            assert_eq!(report, expected);
        }
    }
}

#[test]
fn tcpdump_can_be_read_from() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("whole.pcap");
    write_long(&path, &frames(), 1);
    let expected = report_of(&succeed(&mut replay(&path, &[])));
    let mut tcpdump = Command::new("tcpdump")
        .arg("-r")
        .arg(&path)
        .args(["-w", "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("this test needs tcpdump");
    let mut command = replay(Path::new("-"), &[]);
    let output = command.stdin(tcpdump.stdout.take().unwrap()).output().unwrap();
    assert!(tcpdump.wait().unwrap().success());
    assert_eq!(report_of(&output), expected);
}

#[test]
fn several_files_are_read_in_order_of_time() {
    let folder = tempfile::tempdir().unwrap();
    let frames = frames();
    let whole = folder.path().join("whole.pcap");
    fs::write(&whole, pcap(&frames)).unwrap();
    let names = ["a.pcap", "b.pcap", "c.pcap"].map(|name| folder.path().join(name));
    // Interleaved as by three interfaces, and named in any order.
    for (index, name) in names.iter().enumerate() {
        let mine: Vec<Frame> = frames.iter().skip(index).step_by(3).cloned().collect();
        fs::write(name, pcap(&mine)).unwrap();
    }
    let expected = report_of(&succeed(&mut replay(&whole, &[])));
    let others = [names[0].to_str().unwrap(), names[1].to_str().unwrap()];
    let mut merged = report_of(&succeed(&mut replay(&names[2], &others)));
    // Packets of one time, microseconds as they are, may change places; nothing else may.
    for report in [&mut merged] {
        assert_eq!(report["loss"]["packets"], expected["loss"]["packets"]);
        for figure in ["requests", "hits", "misses", "start", "end"] {
            assert_eq!(report[figure], expected[figure], "{figure}");
        }
    }
}

#[test]
fn a_replay_in_real_time_takes_as_long_as_the_recording_and_shows_its_intervals_on_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("whole.pcap");
    // Every tenth packet of a second: enough to see that time passes.
    let mut frames = frames();
    let first = frames[0].timestamp;
    let last = frames.len() - 1;
    for (index, frame) in frames.iter_mut().enumerate() {
        frame.timestamp = first
            .plus(Duration::from_millis(1500) * u32::try_from(index).unwrap() / u32::try_from(last).unwrap());
    }
    fs::write(&path, pcap(&frames)).unwrap();
    let expected = report_of(&succeed(&mut replay(&path, &[])));
    let (user, program) = terminal();
    let seen = shown(user);
    let started = Instant::now();
    let mut command = replay(&path, &["--realtime"]);
    let output = command.stderr(program).stdout(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    let passed = started.elapsed();
    drop(command);
    assert!(passed >= Duration::from_millis(1500), "{passed:?}");
    assert_eq!(report_of(&output), expected);
    let seen = seen.join().unwrap();
    assert!(seen.contains("packets/s") && seen.ends_with("\r\x1b[K"), "{seen:?}");
}

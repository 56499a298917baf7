//! A recording through all of memtap, next to those who only copy it: processor time a packet.
//!
//! `tcpdump -r FILE -w /dev/null` reads each packet and writes it: what a program costs that looks at nothing. The packet side
//! is decode, reassembly and parser, recording read from its file as `memtap replay` does it; the rest up to `memtap replay` is
//! the collector's. Contenders take turns; what a start costs, tables above all, is measured with a short recording and subtracted.
//!
//!     cargo bench --bench replay -- --packets 1000000 --rounds 7

#![expect(clippy::print_stdout, reason = "a bench talks to its reader")]

#[expect(unreachable_pub, reason = "tests have it as a part of their support")]
#[path = "../tests/support/long.rs"]
mod long;
#[expect(dead_code, unreachable_pub, reason = "tests have it as a part of their support")]
#[path = "../tests/support/scenario.rs"]
mod scenario;
#[expect(dead_code, reason = "each bench takes what it needs")]
mod support;

use memtap::capture::pcap::Recording;
use memtap::network::Network;
use memtap::pipeline::{Pipeline, PipelineLimits, TargetMap, TargetMatch};
use std::hint::black_box;
use std::path::Path;
use std::process::{Command, Stdio};
use support::{argument, is_bench};

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/peers/peer-small.pcap.zst");
const MEMTAP: &str = env!("CARGO_BIN_EXE_memtap");

/// Nanoseconds of processor time that so far went to us, or to those of our children that have ended.
fn processor_nanos(whose: libc::c_int) -> f64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `getrusage` writes a whole `rusage`, of which zeros are a value, and keeps nothing of it.
    let usage = unsafe {
        assert_eq!(libc::getrusage(whose, usage.as_mut_ptr()), 0, "the arguments are right");
        usage.assume_init()
    };
    let nanos = |time: libc::timeval| time.tv_sec as f64 * 1e9 + time.tv_usec as f64 * 1e3;
    nanos(usage.ru_utime) + nanos(usage.ru_stime)
}

/// What it costs to run a program to its end.
fn program(arguments: &[&str], file: &Path) -> f64 {
    let mut command = Command::new(arguments[0]);
    for argument in &arguments[1..] {
        if *argument == "FILE" {
            command.arg(file)
        } else {
            command.arg(argument)
        };
    }
    let before = processor_nanos(libc::RUSAGE_CHILDREN);
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(status.expect("the program is installed").success(), "{arguments:?}");
    processor_nanos(libc::RUSAGE_CHILDREN) - before
}

/// Decode, reassembly and parser alone.
fn packet_side(file: &Path) -> f64 {
    let before = processor_nanos(libc::RUSAGE_SELF);
    let target = TargetMatch { network: Network::Any, port: 11211, tcp: true, udp: true };
    let mut pipeline = Pipeline::new(TargetMap::new(vec![target]), PipelineLimits::default());
    let mut recording = Recording::open(file).expect("it has just been written");
    while let Some(packet) = recording.next_packet().expect("it has just been written") {
        pipeline.handle_packet(&packet, &mut |_, observation| {
            black_box(observation);
        });
    }
    processor_nanos(libc::RUSAGE_SELF) - before
}

fn main() {
    let quick = !is_bench();
    let packets = argument("packets", if quick { 10_000 } else { 1_000_000 });
    let rounds = argument("rounds", if quick { 1 } else { 7 }) as usize;
    let folder = std::env::temp_dir();
    let (long, short) = [("long", packets), ("short", 1)]
        .map(|(name, packets)| {
            let file = folder.join(format!("memtap-bench-replay-{}-{name}.pcap", std::process::id()));
            let written = long::write_long(&file, &long::frames_of(FIXTURE), packets);
            (file, written)
        })
        .into();
    let programs: [(&str, &[&str]); 3] = [
        ("tcpdump -r FILE -w /dev/null", &["tcpdump", "-r", "FILE", "-w", "/dev/null"]),
        ("memtap replay FILE", &[MEMTAP, "replay", "FILE", "-w", "all", "-o", "jsonl"]),
        ("tshark -r FILE -w /dev/null", &["tshark", "-r", "FILE", "-w", "/dev/null"]),
    ];
    let mut times: Vec<(&str, Vec<f64>)> = programs.iter().map(|(name, _)| (*name, Vec::new())).collect();
    times.push(("packet side alone", Vec::new()));
    for round in 0..rounds {
        for (index, (name, arguments)) in programs.iter().enumerate() {
            // tshark dissects, which takes minutes: once, and not in `./check`, which does not install it.
            if name.starts_with("tshark") && (quick || round > 0) {
                continue;
            }
            let per_packet = |file: &(std::path::PathBuf, u64)| (program(arguments, &file.0), file.1 as f64);
            let ((whole, all), (start, few)) = (per_packet(&long), per_packet(&short));
            times[index].1.push((whole - start) / (all - few));
        }
        let (whole, start) = (packet_side(&long.0), packet_side(&short.0));
        times[programs.len()].1.push((whole - start) / (long.1 - short.1) as f64);
    }
    [long.0, short.0].iter().for_each(|file| drop(std::fs::remove_file(file)));
    times.iter_mut().for_each(|(_, times)| times.sort_by(f64::total_cmp));
    let tcpdump = times[0].1[rounds / 2];
    println!(
        "{packets} packets, {rounds} rounds\n| program | processor time, ns a packet | to tcpdump |\n| --- | --- | --- |"
    );
    for (name, times) in times.iter().filter(|(_, times)| !times.is_empty()) {
        let median = times[times.len() / 2];
        println!(
            "| {name} | {median:.0} [{:.0} to {:.0}] | {:.2} |",
            times[0],
            times[times.len() - 1],
            median / tcpdump
        );
    }
}

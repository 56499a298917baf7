//! A recording through all of memtap, next to those who only copy it: processor time a packet.
//!
//! `tcpdump -r FILE -w /dev/null` reads each packet and writes it: what a program costs that looks at nothing. The packet side
//! is decode, reassembly and parser; the rest up to `memtap replay` is the collector's. It is measured twice: with the packets in
//! memory before the clock starts, which is what the design's goal is about, and with the recording read from its file as
//! `memtap replay` does it. Contenders take turns; what a start costs, tables above all, is measured with a short recording and
//! subtracted.
//!
//!     cargo bench --bench replay -- --packets 1000000 --rounds 7

#![expect(clippy::print_stdout, reason = "a bench talks to its reader")]

#[path = "support/figures.rs"]
mod figures;
#[expect(unreachable_pub, reason = "tests have it as a part of their support")]
#[path = "../tests/support/long.rs"]
mod long;
#[path = "support/programs.rs"]
mod programs;
#[expect(dead_code, unreachable_pub, reason = "tests have it as a part of their support")]
#[path = "../tests/support/scenario.rs"]
mod scenario;
#[expect(dead_code, reason = "each bench takes what it needs")]
mod support;

use figures::Spread;
use memtap::capture::pcap::Recording;
use memtap::capture::{LinkType, Packet};
use memtap::model::Timestamp;
use memtap::network::Network;
use memtap::pipeline::{Pipeline, PipelineLimits, TargetMap, TargetMatch};
use programs::is_installed;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use support::{argument, give_up, is_bench, wrong_usage};

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/peers/peer-small.pcap.zst");
const MEMTAP: &str = env!("CARGO_BIN_EXE_memtap");

/// A recording in memory: its packets one behind the other, and what there is to know of each.
struct Stored {
    bytes: Vec<u8>,
    packets: Vec<StoredPacket>,
}

struct StoredPacket {
    timestamp: Timestamp,
    link: LinkType,
    wire_bytes: u32,
    captured_bytes: u32,
}

impl Stored {
    fn read(file: &Path) -> Stored {
        let mut stored = Stored { bytes: Vec::new(), packets: Vec::new() };
        let mut recording = Recording::open(file).expect("it has just been written");
        while let Some(packet) = recording.next_packet().expect("it has just been written") {
            let Packet { timestamp, link, bytes, wire_bytes } = packet;
            let captured_bytes = u32::try_from(bytes.len()).expect("packets are short");
            stored.bytes.extend_from_slice(bytes);
            stored.packets.push(StoredPacket { timestamp, link, wire_bytes, captured_bytes });
        }
        stored
    }

    fn packets(&self) -> impl Iterator<Item = Packet<'_>> {
        let mut rest = self.bytes.as_slice();
        self.packets.iter().map(move |packet| {
            let StoredPacket { timestamp, link, wire_bytes, captured_bytes } = *packet;
            let (bytes, behind) = rest.split_at(captured_bytes as usize);
            rest = behind;
            Packet { timestamp, link, bytes, wire_bytes }
        })
    }

    fn megabytes(&self) -> f64 {
        (self.bytes.len() + size_of_val(self.packets.as_slice())) as f64 / 1e6
    }
}

/// A recording of so many packets, as a file and in memory.
struct Input {
    file: PathBuf,
    stored: Stored,
}

impl Input {
    fn write(name: &str, packets: u64) -> Input {
        let name = format!("memtap-bench-replay-{}-{name}.pcap", std::process::id());
        let file = std::env::temp_dir().join(name);
        let written = long::write_long(&file, &long::frames_of(FIXTURE), packets);
        let stored = Stored::read(&file);
        assert_eq!(stored.packets.len() as u64, written, "every packet is read again");
        Input { file, stored }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        // It is in a folder for what may be lost.
        let _ = std::fs::remove_file(&self.file);
    }
}

/// Who reads the recording.
enum Reader {
    /// A program with its arguments.
    Program(&'static [&'static str]),
    /// Decode, reassembly and parser, of packets in memory.
    PacketSideInMemory,
    /// The same of the file.
    PacketSide,
}

struct Contender {
    title: &'static str,
    reader: Reader,
    /// The goal of the design for its ratio to tcpdump.
    goal: &'static str,
}

/// The first is what the others are compared with.
const CONTENDERS: [Contender; 5] = [
    Contender {
        title: "tcpdump -r FILE -w /dev/null",
        reader: Reader::Program(&["tcpdump", "-r", "FILE", "-w", "/dev/null"]),
        goal: "-",
    },
    Contender {
        title: "packet side, recording in memory",
        reader: Reader::PacketSideInMemory,
        goal: "at most 1.0",
    },
    Contender { title: "packet side, recording read from its file", reader: Reader::PacketSide, goal: "-" },
    Contender {
        title: "memtap replay FILE",
        reader: Reader::Program(&[MEMTAP, "replay", "FILE", "-w", "all", "-o", "jsonl"]),
        goal: "-",
    },
    Contender {
        title: "tshark -r FILE -w /dev/null",
        reader: Reader::Program(&["tshark", "-r", "FILE", "-w", "/dev/null"]),
        goal: "-",
    },
];

impl Contender {
    /// Nanoseconds of processor time for all of a recording, its own start included.
    fn nanos(&self, input: &Input) -> f64 {
        match self.reader {
            Reader::Program(arguments) => program(arguments, &input.file),
            Reader::PacketSideInMemory => in_memory(&input.stored),
            Reader::PacketSide => from_file(&input.file),
        }
    }

    /// Whether it takes part in a round. tshark dissects, which takes minutes: once, and not in `./check`, which does not install it.
    fn takes_part(&self, round: usize, quick: bool) -> bool {
        match self.reader {
            Reader::Program(["tshark", ..]) => !quick && round == 0,
            _ => true,
        }
    }
}

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

fn new_pipeline() -> Pipeline {
    let target = TargetMatch { network: Network::Any, port: 11211, tcp: true, udp: true };
    Pipeline::new(TargetMap::new(vec![target]), PipelineLimits::default())
}

/// Decode, reassembly and parser alone.
fn in_memory(stored: &Stored) -> f64 {
    let before = processor_nanos(libc::RUSAGE_SELF);
    let mut pipeline = new_pipeline();
    for packet in stored.packets() {
        pipeline.handle_packet(&packet, &mut |_, observation| {
            black_box(observation);
        });
    }
    processor_nanos(libc::RUSAGE_SELF) - before
}

/// The same, and the file read.
fn from_file(file: &Path) -> f64 {
    let before = processor_nanos(libc::RUSAGE_SELF);
    let mut pipeline = new_pipeline();
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
    let packets = argument("packets", if quick { 50_000 } else { 1_000_000 });
    let rounds = argument("rounds", if quick { 1 } else { 7 }).max(1) as usize;
    if !is_installed("tcpdump") {
        give_up("there is no tcpdump on the search path, which is what all are compared with");
    }
    let is_there = |contender: &&Contender| match contender.reader {
        Reader::Program([program, ..]) => *program == MEMTAP || is_installed(program),
        _ => true,
    };
    let contenders: Vec<&Contender> = CONTENDERS.iter().filter(is_there).collect();
    for missing in CONTENDERS.iter().filter(|contender| !is_there(contender)) {
        println!("{} is left out: it is not on the search path", missing.title);
    }
    let (long, short) = (Input::write("long", packets), Input::write("short", 1));
    let (all, few) = (long.stored.packets.len(), short.stored.packets.len());
    if all == few {
        drop((long, short)); // and their files with them
        wrong_usage(&format!("--packets {packets}: a start is measured with {few}, so more are needed"));
    }
    let more_packets = (all - few) as f64;
    let mut times: Vec<Vec<f64>> = contenders.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        for (contender, times) in contenders.iter().zip(&mut times) {
            if contender.takes_part(round, quick) {
                times.push((contender.nanos(&long) - contender.nanos(&short)) / more_packets);
            }
        }
    }
    println!("{all} packets, {:.0} MB in memory; rounds: {rounds}", long.stored.megabytes());
    println!("| program | processor time, ns a packet | to tcpdump | goal |\n| --- | --- | --- | --- |");
    let tcpdump = Spread::of(times[0].iter().copied()).median;
    for (contender, times) in contenders.iter().zip(&times).filter(|(_, times)| !times.is_empty()) {
        let spread = Spread::of(times.iter().copied());
        println!(
            "| {} | {spread:.0} | {:.2} | {} |",
            contender.title,
            spread.median / tcpdump,
            contender.goal
        );
    }
}

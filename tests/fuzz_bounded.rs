//! The fuzz targets of `fuzz/` on the stable toolchain: a bounded, repeatable run over mutated corpus inputs.
//!
//! * `cargo test --test fuzz_bounded` takes every input of the corpora and of the regressions as it is, and then a fixed number of
//!   mutants of each, the same ones every time.
//! * `FUZZ_SECONDS=600 FUZZ_TARGET=text cargo test --test fuzz_bounded` goes on with new mutants for so long (every target
//!   without `FUZZ_TARGET`), and keeps inputs that do harm under `fuzz/artifacts`.
//! * `UPDATE_FUZZ_CORPUS=1 cargo test --test fuzz_bounded` cuts the corpora out of the recordings anew.
//!
//! With a nightly toolchain `./check fuzz` runs the same functions under libFuzzer, with coverage.

#[allow(unreachable_pub, reason = "a library for cargo-fuzz, a module here")]
#[path = "../fuzz/src/lib.rs"]
mod fuzz;
mod support;

use memtap::capture::pcap::Recording;
use memtap::capture::{Datagram, Decoded, Segment};
use std::collections::BTreeMap;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use support::scenario::Frame;
use support::transform;

/// Mutants of a target's corpus in the bounded run; all targets together stay well below a minute.
const MUTANTS: u32 = 30_000;

/// No input of a few kilobytes takes this long, on however busy a machine.
const HANG: Duration = Duration::from_secs(10);

/// Longest mutant.
const INPUT_BYTES_MAX: usize = 4096;

fn folder(kind: &str, target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(kind).join(target)
}

/// The files of a folder, in the order of their names.
fn inputs(kind: &str, target: &str) -> Vec<Vec<u8>> {
    let Ok(entries) = fs::read_dir(folder(kind, target)) else { return Vec::new() };
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.expect("the folder can be read").path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("the input can be read")).collect()
}

/// Xorshift: the same mutants on every machine.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % sides.max(1)
    }
}

/// What the protocols are made of, and numbers at edges.
const WORDS: [&[u8]; 44] = [
    b"get ",
    b"gets a b\r\n",
    b"gat 1 k\r\n",
    b"set k 0 0 3\r\nabc\r\n",
    b"set k 0 0 2147483647\r\n",
    b"cas k 0 0 1 7\r\nx\r\n",
    b"delete k\r\n",
    b"incr k 1\r\n",
    b"touch k 0\r\n",
    b" noreply\r\n",
    b"VALUE k 0 3\r\nabc\r\n",
    b"END\r\n",
    b"STORED\r\n",
    b"NOT_FOUND\r\n",
    b"CLIENT_ERROR bad data chunk\r\n",
    b"SERVER_ERROR object too large for cache\r\n",
    b"ERROR\r\n",
    b"mg k v k q O1\r\n",
    b"mg Zm9v b k v\r\n",
    b"ms k 3 q\r\nabc\r\n",
    b"md k I q\r\n",
    b"ma k N0 J1 MD\r\n",
    b"mn\r\n",
    b"MN\r\n",
    b"VA 3 kk O1\r\nabc\r\n",
    b"HD\r\n",
    b"EN\r\n",
    b"NS\r\n",
    b"EX\r\n",
    b"NF k b\r\n",
    b"HD W X Z\r\n",
    b"watch\r\n",
    b"stats\r\n",
    b"STAT a 1\r\n",
    b"lru_crawler metadump all\r\n",
    b"verbosity 1\r\n",
    b"quit\r\n",
    b"\r\n",
    b"\n",
    b"\0",
    b"\x80\x0d\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0k",
    b"\x81\x0d\0\x01\x04\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0kval",
    b"\xff\xff\xff\xf0",
    b"\x16\x03\x01",
];

/// One to four changes to an input.
fn mutate(input: &[u8], corpus: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=dice.roll(4) {
        let at = dice.roll(bytes.len() + 1);
        let end = (at + 1 + dice.roll(32)).min(bytes.len());
        match dice.roll(9) {
            0 if !bytes.is_empty() => {
                let at = at.min(bytes.len() - 1);
                bytes[at] ^= 1 << dice.roll(8);
            }
            1 if !bytes.is_empty() => {
                let at = at.min(bytes.len() - 1);
                bytes[at] = [0, 1, 0x7f, 0x80, 0xff, b' ', b'\n', b'9'][dice.roll(8)];
            }
            2 if at < end => drop(bytes.drain(at..end)),
            3 => {
                let copy = bytes[at.min(end)..end].to_vec();
                let place = dice.roll(bytes.len() + 1);
                bytes.splice(place..place, copy);
            }
            4 | 5 => drop(bytes.splice(at..at, WORDS[dice.roll(WORDS.len())].iter().copied())),
            6 => {
                let other = &corpus[dice.roll(corpus.len())];
                let from = dice.roll(other.len() + 1);
                bytes.truncate(at);
                bytes.extend(&other[from..]);
            }
            7 => bytes.truncate(at),
            _ => {
                let random = dice.roll(256) as u8;
                bytes.insert(at, random);
            }
        }
    }
    bytes.truncate(INPUT_BYTES_MAX);
    bytes
}

/// Runs one input. One that does harm is kept, and named.
fn run(target: fuzz::Target, input: &[u8]) {
    let (name, function) = target;
    let began = Instant::now();
    let panicked = catch_unwind(|| function(input)).is_err();
    let hung = began.elapsed() > HANG;
    if panicked || hung {
        let folder = folder("artifacts", name);
        fs::create_dir_all(&folder).expect("artifacts can be kept");
        let digest = input.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        let path = folder.join(format!("{digest:016x}"));
        fs::write(&path, input).expect("the artifact can be written");
        let what = if panicked { "panics" } else { "hangs" };
        panic!("{name} {what}: {}", path.display());
    }
}

#[expect(clippy::print_stdout, reason = "the long run tells how far it came")]
fn fuzz_target(name: &str) {
    let target = *fuzz::TARGETS.iter().find(|target| target.0 == name).expect("the target exists");
    let corpus = inputs("corpus", name);
    assert!(corpus.len() >= 4, "{name}: {} inputs", corpus.len());
    let regressions = inputs("regressions", name);
    for input in corpus.iter().chain(&regressions) {
        run(target, input);
    }
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for _ in 0..MUTANTS {
        let input = &corpus[dice.roll(corpus.len())];
        run(target, &mutate(input, &corpus, &mut dice));
    }
    let chosen = std::env::var("FUZZ_TARGET").map_or(true, |chosen| chosen == name);
    let seconds = std::env::var("FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(0);
    if !chosen || seconds == 0 {
        return;
    }
    let (began, mut runs) = (Instant::now(), 0u64);
    // Mutants of mutants, from a pool that is renewed all the time.
    let mut pool = corpus.clone();
    dice.0 ^= u64::from(std::process::id()) << 20;
    while began.elapsed() < Duration::from_secs(seconds) {
        let input = mutate(&pool[dice.roll(pool.len())], &corpus, &mut dice);
        run(target, &input);
        runs += 1;
        if dice.roll(16) == 0 {
            let place = dice.roll(256);
            if place < pool.len() && pool.len() >= 128 {
                pool[place] = input;
            } else if pool.len() < 256 {
                pool.push(input);
            }
        }
    }
    println!("{name}: {runs} inputs in {seconds} s");
}

macro_rules! bounded {
    ($($name:ident)*) => { $(#[test] fn $name() { fuzz_target(stringify!($name)); })* };
}

bounded! { block_walk decode reassembly text meta binary udp pipeline }

/// Every target of the library has its test, its program and its corpus.
#[test]
fn every_target_is_run() {
    let manifest =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/Cargo.toml")).expect("manifest");
    let tests = include_str!("fuzz_bounded.rs");
    let line = tests.lines().find(|line| line.starts_with("bounded! {")).expect("the list of targets");
    for (name, _) in fuzz::TARGETS {
        assert!(line.split(' ').any(|word| word == name), "{name} has no test");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} has no program");
    }
}

// Cutting the corpora out of the recordings.

/// Seeds of one recording and kind, at most.
const SEEDS: usize = 5;

/// Payload of a seed, about.
const SEED_BYTES: usize = 900;

fn frames_of(name: &str) -> Vec<Frame> {
    let mut recording = Recording::open(support::fixture(name)).expect("the recording opens");
    let mut frames = Vec::new();
    while let Some(packet) = recording.next_packet().expect("the recording is whole") {
        let (timestamp, bytes, wire_bytes) = (packet.timestamp, packet.bytes.to_vec(), packet.wire_bytes);
        frames.push(Frame { timestamp, bytes, wire_bytes });
    }
    frames
}

fn decoded<'a>(decoder: &'a mut memtap::capture::decode::Decoder, frame: &'a Frame) -> Decoded<'a> {
    decoder.decode(&frame.packet())
}

/// Short stretches of conversations: (to client, payload) of consecutive segments of one connection.
fn conversations(name: &str) -> Vec<Vec<(bool, Vec<u8>)>> {
    let mut decoder = memtap::capture::decode::Decoder::new(memtap::capture::decode::DecodeLimits::default());
    let mut flows: BTreeMap<_, Vec<(bool, Vec<u8>)>> = BTreeMap::new();
    for frame in &frames_of(name) {
        if let Decoded::Segment(Segment { source, destination, payload, .. }) = decoded(&mut decoder, frame)
            && !payload.is_empty()
        {
            let to_client = source.port() == 11211;
            let client = if to_client { destination } else { source };
            flows.entry((client.port(), client.ip())).or_default().push((to_client, payload.to_vec()));
        }
    }
    let mut found = Vec::new();
    for segments in flows.values() {
        let mut start = 0;
        while start < segments.len() && found.len() < 400 {
            let mut bytes = 0;
            let stretch: Vec<_> = segments[start..]
                .iter()
                .take_while(|(_, payload)| {
                    bytes += payload.len();
                    bytes <= SEED_BYTES
                })
                .cloned()
                .collect();
            start += stretch.len().max(1);
            if stretch.len() >= 4 && !stretch[0].0 {
                found.push(stretch);
            }
        }
    }
    // Spread over the recording.
    let step = found.len().div_ceil(SEEDS).max(1);
    found.into_iter().step_by(step).collect()
}

fn turn_seed(stretch: &[(bool, Vec<u8>)]) -> Vec<u8> {
    let mut seed = Vec::new();
    for (to_client, payload) in stretch {
        seed.push(u8::from(*to_client));
        seed.extend((payload.len() as u16).to_le_bytes());
        seed.extend(payload);
    }
    seed
}

fn segment_seed(stretch: &[(bool, Vec<u8>)]) -> Vec<u8> {
    // A handshake, then the segments.
    let mut seed = vec![0x20, 1, 0, 0, 0, 0, 0, 0x2f, 1, 0, 0, 0, 0, 0];
    for (to_client, payload) in stretch {
        seed.extend([u8::from(*to_client), 1, 0, 0, 0]);
        seed.extend((payload.len() as u16).to_le_bytes());
        seed.extend(payload);
    }
    seed
}

fn datagram_seeds(name: &str) -> Vec<Vec<u8>> {
    let mut decoder = memtap::capture::decode::Decoder::new(memtap::capture::decode::DecodeLimits::default());
    let (mut seeds, mut seed) = (Vec::new(), Vec::new());
    for frame in &frames_of(name) {
        if let Decoded::Datagram(Datagram { source, payload, .. }) = decoded(&mut decoder, frame)
            && payload.len() >= 8
            && payload.len() < 700
        {
            seed.extend([u8::from(source.port() == 11211), 0, payload[1], payload[3], payload[5]]);
            seed.extend(((payload.len() - 8) as u16).to_le_bytes());
            seed.extend(&payload[8..]);
            if seed.len() > SEED_BYTES {
                seeds.push(std::mem::take(&mut seed));
            }
        }
    }
    let step = seeds.len().div_ceil(SEEDS).max(1);
    seeds.into_iter().step_by(step).collect()
}

/// A few frames one after the other as a packet target takes them.
fn frame_seeds(frames: &[Frame], link: u8) -> Vec<Vec<u8>> {
    let (mut seeds, mut seed) = (Vec::new(), Vec::new());
    for frame in frames.iter().filter(|frame| frame.bytes.len() < 500) {
        seed.extend([link, 0]);
        seed.extend((frame.bytes.len() as u16).to_le_bytes());
        seed.extend(&frame.bytes);
        if seed.len() > SEED_BYTES {
            seeds.push(std::mem::take(&mut seed));
        }
    }
    let step = seeds.len().div_ceil(2).max(1);
    seeds.into_iter().step_by(step).collect()
}

/// A block as the kernel writes it, without its prefix: see `capture/block.rs`.
fn block_seed(frames: &[Frame]) -> Vec<u8> {
    let mut block = vec![0u8; 48];
    for (index, frame) in frames.iter().enumerate() {
        let mut entry = vec![0u8; 82];
        entry[12..16].copy_from_slice(&(frame.bytes.len() as u32).to_ne_bytes());
        entry[16..20].copy_from_slice(&frame.wire_bytes.to_ne_bytes());
        entry[24..26].copy_from_slice(&82u16.to_ne_bytes());
        entry[26..28].copy_from_slice(&96u16.to_ne_bytes());
        entry[50..52].copy_from_slice(&frame.bytes[12..14]);
        entry[56..58].copy_from_slice(&1u16.to_ne_bytes());
        entry.extend(&frame.bytes);
        entry.resize(entry.len().next_multiple_of(8), 0);
        if index + 1 < frames.len() {
            let distance = entry.len() as u32;
            entry[0..4].copy_from_slice(&distance.to_ne_bytes());
        }
        block.extend(entry);
    }
    let used = block.len() as u32;
    block[12..16].copy_from_slice(&(frames.len() as u32).to_ne_bytes());
    block[16..20].copy_from_slice(&48u32.to_ne_bytes());
    block[20..24].copy_from_slice(&used.to_ne_bytes());
    block.split_off(12)
}

#[test]
fn corpora_are_cut_from_the_recordings() {
    if std::env::var_os("UPDATE_FUZZ_CORPUS").is_none() {
        for (name, _) in fuzz::TARGETS {
            let bytes: usize = inputs("corpus", name).iter().map(Vec::len).sum();
            assert!((1_000..200_000).contains(&bytes), "the corpus of {name} holds {bytes} bytes");
        }
        return;
    }
    let mut corpora: BTreeMap<&str, Vec<Vec<u8>>> = BTreeMap::new();
    let speakers = [
        ("text", ["clients/pymemcache_text_v4", "extra/raw_admin", "extra/quirk_raw_text_nooffload"]),
        ("meta", ["clients/rust_async_meta", "clients/metamemcache_meta_nooffload", "testsuite/metaget"]),
        ("binary", ["clients/bmemcached_bin", "extra/raw_bin", "extra/sasl_bmemcached"]),
    ];
    for (target, recordings) in speakers {
        for recording in recordings {
            for stretch in conversations(&format!("{recording}.pcap.zst")) {
                corpora.entry(target).or_default().push(turn_seed(&stretch));
                corpora.entry("reassembly").or_default().push(segment_seed(&stretch));
            }
        }
    }
    corpora.insert("udp", datagram_seeds("extra/raw_udp.pcap.zst"));
    let mut packets = Vec::new();
    for recording in ["peers/peer-edge", "extra/lo", "extra/raw_udp", "extra/vlan123", "extra/tls_pymemcache"]
    {
        packets.extend(frame_seeds(&frames_of(&format!("{recording}.pcap.zst")), 0));
    }
    let base: Vec<Frame> = frames_of("peers/peer-edge.pcap.zst")
        .into_iter()
        .filter(|frame| frame.bytes.len() < 300)
        .take(40)
        .collect();
    for name in transform::ENCAPSULATIONS {
        packets.extend(frame_seeds(&transform::encapsulate(&base, name), 0).into_iter().take(1));
    }
    packets.extend(frame_seeds(&transform::fragment(&base, None), 0));
    packets.extend(frame_seeds(&transform::link_raw(&base), 1));
    packets.extend(frame_seeds(&transform::link_sll(&base), 2));
    corpora.insert("block_walk", base.chunks(5).take(6).map(block_seed).collect());
    corpora.insert("decode", packets.clone());
    corpora.insert("pipeline", packets);
    for (target, seeds) in corpora {
        let folder = folder("corpus", target);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("the corpus can be made");
        for (number, seed) in seeds.iter().enumerate() {
            fs::write(folder.join(format!("{number:02}")), seed).expect("a seed can be written");
        }
    }
}

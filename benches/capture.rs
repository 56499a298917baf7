//! What a capture costs: the side of the kernel (processor time of whoever sends), the side of the reader, the rate without loss,
//! and how long a ring bears a reader that does not come.
//!
//! `cargo bench --bench capture` makes its own network namespaces (root) and prints ratios; absolute figures move with the
//! machine. All variants of a round run after one another, the next round the other way round; medians, with least and most.
//! Frames go over a veth pair to an address that is nobody's, so that the tap is all that the kernel does with them.

#![expect(clippy::print_stdout, reason = "a table is what this program is for")]

#[path = "support/figures.rs"]
mod figures;
#[path = "../tests/support/netns.rs"]
mod netns;
#[path = "support/raw.rs"]
mod raw;

use figures::Spread;
use memtap::capture::Decoded;
use memtap::capture::block::BlockHeader;
use memtap::capture::decode::{DecodeLimits, Decoder};
use memtap::capture::filter::FilterSpec;
use memtap::capture::interface;
use memtap::capture::ring::{
    self, RETIRE_TIMEOUT, Ring, RingOptions, RingShape, RingStatistics, ring_byte_rate,
};
use memtap::collector::{Collector, CollectorOptions, TargetOptions};
use memtap::model::Endpoint;
use memtap::network::Network;
use memtap::pipeline::{Pipeline, PipelineLimits, TargetMap, TargetMatch};
use netns::Pair;
use raw::{BATCH, FrameSender, pin, thread_time};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How a reader spends its blocks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reader {
    /// There is none: what sending costs by itself.
    None,
    /// Reads how many packets a block holds, and nothing else: the least that any ring can cost.
    Count,
    /// Walks the frames and sums the first 64 bytes of each: the least that any reader of packets can do.
    Walk,
    /// memtap's ring and decode.
    Decode,
    /// memtap whole, up to the tables.
    Memtap,
}

const READERS: [(Reader, &str); 5] = [
    (Reader::None, "no tap"),
    (Reader::Count, "ring, blocks counted"),
    (Reader::Walk, "ring, headers walked"),
    (Reader::Decode, "memtap: ring and decode"),
    (Reader::Memtap, "memtap, whole"),
];

/// What one run came to.
#[derive(Clone, Copy, Default)]
struct Run {
    sender_nanos: f64,
    reader_nanos: f64,
    packets_per_second: f64,
    lost: u64,
}

const FLOWS: usize = 64;
const PORT: u16 = 11211;

/// A request on a flow, as an Ethernet frame of so many bytes in all; the key fills it up to its 250 bytes, and what is left belongs
/// to further requests.
struct Frames {
    frames: Vec<Vec<u8>>,
    sequences: Vec<u32>,
    payload_bytes: u32,
}

const TCP_SEQUENCE_AT: usize = 14 + 20 + 4;
const HEADER_BYTES: usize = 14 + 20 + 20;

impl Frames {
    fn new(bytes: usize) -> Frames {
        let frames = (0..FLOWS).map(|flow| frame(flow, bytes)).collect();
        Frames {
            frames,
            sequences: vec![1; FLOWS],
            payload_bytes: u32::try_from(bytes - HEADER_BYTES).expect("frames are short"),
        }
    }

    /// The next segment of each flow.
    fn advance(&mut self) -> &[Vec<u8>] {
        for (frame, sequence) in self.frames.iter_mut().zip(&mut self.sequences) {
            frame[TCP_SEQUENCE_AT..TCP_SEQUENCE_AT + 4].copy_from_slice(&sequence.to_be_bytes());
            *sequence = sequence.wrapping_add(self.payload_bytes);
        }
        &self.frames
    }
}

fn frame(flow: usize, bytes: usize) -> Vec<u8> {
    let payload_bytes = bytes - HEADER_BYTES;
    let mut payload = Vec::with_capacity(payload_bytes);
    while payload.len() < payload_bytes {
        let room = payload_bytes - payload.len();
        let key_bytes = (room - "get \r\n".len()).min(200);
        // The last request takes what is left, so that no frame ends within one.
        let key_bytes = if room - key_bytes - 6 < 20 { room - 6 } else { key_bytes };
        payload.extend(b"get ");
        payload.extend(format!("{flow:x}").bytes().chain(std::iter::repeat(b'k')).take(key_bytes));
        payload.extend(b"\r\n");
    }
    let builder = etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4([10, 99, 0, 2], [10, 99, 0, 1], 64)
        .tcp(40_000 + u16::try_from(flow).expect("few flows"), PORT, 1, 64_000)
        .ack(1);
    let mut frame = Vec::with_capacity(bytes);
    builder.write(&mut frame, &payload).expect("a vector takes everything");
    assert_eq!(frame.len(), bytes);
    frame
}

fn options(pair: &Pair) -> RingOptions {
    let found = pair.server.run(interface::enumerate).expect("the kernel tells its interfaces");
    let veth = found.iter().find(|interface| interface.name == "veth0").expect("the pair has a veth0");
    RingOptions::new(veth, FilterSpec::new(vec![([10, 99, 0, 1].into(), 32)], vec![PORT]))
}

fn sender(pair: &Pair) -> FrameSender {
    pair.client.run(|| {
        let found = interface::enumerate().expect("the kernel tells its interfaces");
        let veth = found.iter().find(|interface| interface.name == "veth0").expect("the pair has a veth0");
        FrameSender::open(veth.index).expect("the bench needs root")
    })
}

/// Sends as fast as it goes for so long; what it costs and how much it was.
fn flood(sender: &FrameSender, frames: &mut Frames, length: Duration) -> (Duration, Duration, u64) {
    let (began, busy_before, mut sent) = (Instant::now(), thread_time(), 0u64);
    while began.elapsed() < length {
        for batch in frames.advance().chunks(BATCH) {
            sent += sender.send(batch).expect("the pair is up") as u64;
        }
    }
    (began.elapsed(), thread_time() - busy_before, sent)
}

/// memtap's own work on a packet, up to the given depth.
struct Depth {
    reader: Reader,
    decoder: Decoder,
    pipeline: Pipeline,
    collector: Collector,
}

impl Depth {
    fn new(reader: Reader) -> Depth {
        let target = TargetMatch { network: Network::Any, port: PORT, tcp: true, udp: true };
        let options = CollectorOptions {
            targets: vec![TargetOptions { budget_bytes: 64 << 20, servers: true }],
            ..CollectorOptions::default()
        };
        Depth {
            reader,
            decoder: Decoder::new(DecodeLimits::default()),
            pipeline: Pipeline::new(TargetMap::new(vec![target]), PipelineLimits::default()),
            collector: Collector::new(&options).expect("there is memory"),
        }
    }

    fn read(&mut self, ring: &mut Ring) -> bool {
        let Some(mut block) = ring.next_block() else { return false };
        match self.reader {
            Reader::None | Reader::Count => {
                black_box(block.packets_left());
            }
            Reader::Walk => {
                black_box(walk(block.bytes()));
            }
            Reader::Decode => {
                let (decoder, mut sum) = (&mut self.decoder, 0);
                block.for_each_packet(|captured| {
                    decoder.decode_to(&captured.packet, |decoded| sum ^= sum_of(&decoded));
                });
                black_box(sum);
            }
            Reader::Memtap => {
                let (pipeline, collector) = (&mut self.pipeline, &mut self.collector);
                block.for_each_packet(|captured| {
                    pipeline.handle_packet(&captured.packet, &mut |tuple, observation| {
                        collector.observe(tuple, observation);
                    });
                });
                collector.flush();
            }
        }
        true
    }
}

/// Of all that was decoded, as the walk sums all that it reads.
fn sum_of(decoded: &Decoded<'_>) -> u64 {
    let endpoint = |endpoint: &Endpoint| {
        let address = u128::from_ne_bytes(*endpoint.octets());
        address as u64 ^ (address >> 64) as u64 ^ u64::from(endpoint.port())
    };
    let ends = |source, destination| endpoint(source) ^ endpoint(destination).rotate_left(8);
    let lengths = |payload: &[u8], wire_bytes| payload.len() as u64 ^ u64::from(wire_bytes) << 32;
    match decoded {
        Decoded::Segment(segment) => {
            let numbers = u64::from(segment.seq) << 32 ^ u64::from(segment.ack) ^ u64::from(segment.flags.0);
            segment.timestamp.nanos()
                ^ numbers
                ^ lengths(segment.payload, segment.payload_wire_bytes)
                ^ ends(&segment.source, &segment.destination)
        }
        Decoded::Datagram(datagram) => {
            datagram.timestamp.nanos()
                ^ datagram.identity
                ^ lengths(datagram.payload, datagram.payload_wire_bytes)
                ^ ends(&datagram.source, &datagram.destination)
        }
        Decoded::Fragment | Decoded::Foreign | Decoded::Malformed => 1,
    }
}

/// The chain of frames by the two numbers that it takes, and the head of each frame.
fn walk(block: &[u8]) -> u64 {
    // Offsets are from the start of the block, of which the first bytes are kept from us (see `Block::bytes`).
    const PREFIX: usize = memtap::capture::block::BLOCK_PREFIX_BYTES;
    let number = |at: usize| -> usize {
        block.get(at..at + 4).map_or(0, |bytes| u32::from_ne_bytes(bytes.try_into().expect("four")) as usize)
    };
    let packets = BlockHeader::read(block).map_or(0, |header| header.packets);
    // `offset_to_first_pkt` of `tpacket_hdr_v1`, `tp_next_offset` and `tp_mac` of `tpacket3_hdr` (linux/if_packet.h).
    let mut at = number(16 - PREFIX) - PREFIX;
    let mut sum = 0u64;
    for _ in 0..packets {
        let mac = block.get(at + 24..at + 26).map_or(0, |bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
        let head = block.get(at + usize::from(mac)..).unwrap_or_default();
        for word in head[..head.len().min(64)].chunks_exact(8) {
            sum = sum.wrapping_add(u64::from_ne_bytes(word.try_into().expect("eight")));
        }
        at += number(at);
    }
    sum
}

/// One run of one variant.
fn run(pair: &Pair, reader: Reader, frame_bytes: usize, length: Duration) -> Run {
    let sender = sender(pair);
    let mut frames = Frames::new(frame_bytes);
    let options = options(pair);
    let stop = AtomicBool::new(false);
    let mut rings: Vec<Ring> = match reader {
        Reader::None => Vec::new(),
        _ => vec![pair.server.run(|| Ring::open(&options)).expect("the bench needs root")],
    };
    thread::scope(|scope| {
        let reading = scope.spawn(|| {
            pin(1);
            let mut depth = Depth::new(reader);
            let busy_before = thread_time();
            if !rings.is_empty() {
                while !stop.load(Ordering::Relaxed) {
                    if !depth.read(&mut rings[0]) {
                        ring::wait(&mut rings, Duration::from_millis(50)).expect("the pair is up");
                    }
                }
                while depth.read(&mut rings[0]) {}
            }
            let busy = thread_time() - busy_before;
            (
                busy,
                rings
                    .first_mut()
                    .map_or(RingStatistics::default(), |ring| ring.statistics().expect("counts")),
            )
        });
        pin(0);
        let (elapsed, busy, sent) = flood(&sender, &mut frames, length);
        thread::sleep(2 * RETIRE_TIMEOUT);
        stop.store(true, Ordering::Relaxed);
        let (read, statistics) = reading.join().expect("the reader ends");
        Run {
            sender_nanos: busy.as_nanos() as f64 / sent as f64,
            reader_nanos: read.as_nanos() as f64 / statistics.packets.max(1) as f64,
            packets_per_second: sent as f64 / elapsed.as_secs_f64(),
            lost: statistics.packets_dropped,
        }
    })
}

/// The ratios of one frame size.
fn costs(pair: &Pair, frame_bytes: usize, rounds: usize, length: Duration) {
    let mut results: Vec<Vec<Run>> = READERS.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        let mut order: Vec<usize> = (0..READERS.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for at in order {
            results[at].push(run(pair, READERS[at].0, frame_bytes, length));
        }
    }
    println!("\nframes of {frame_bytes} bytes, {rounds} rounds of {} ms", length.as_millis());
    println!("| reader | sender, ns a packet | reader, ns a packet | packets a second, thousands | lost |");
    println!("| --- | --- | --- | --- | --- |");
    for ((reader, name), runs) in READERS.iter().zip(&results) {
        println!(
            "| {name} | {:.0} | {} | {:.0} | {} |",
            Spread::of(runs.iter().map(|run| run.sender_nanos)),
            if *reader == Reader::None {
                "-".to_owned()
            } else {
                format!("{:.0}", Spread::of(runs.iter().map(|run| run.reader_nanos)))
            },
            Spread::of(runs.iter().map(|run| run.packets_per_second / 1e3)),
            runs.iter().map(|run| run.lost).sum::<u64>()
        );
    }
    let of =
        |reader: Reader| &results[READERS.iter().position(|(other, _)| *other == reader).expect("listed")];
    let pairs = |over: Reader, under: Reader, figure: fn(&Run) -> f64, floor: fn(&Run) -> f64| {
        let rounds = of(over).iter().zip(of(under)).zip(of(Reader::None));
        Spread::of(
            rounds.map(|((over, under), none)| (figure(over) - floor(none)) / (figure(under) - floor(none))),
        )
    };
    let kernel = pairs(Reader::Memtap, Reader::Count, |run| run.sender_nanos, |none| none.sender_nanos);
    println!("kernel side K, memtap / counted ring: {kernel:.2}");
    let user = pairs(Reader::Decode, Reader::Walk, |run| run.reader_nanos, |_| 0.0);
    println!("reader's side U, ring and decode / headers walked: {user:.2}");
    let rate = pairs(Reader::Memtap, Reader::Count, |run| run.packets_per_second, |_| 0.0);
    let lost: u64 = of(Reader::Memtap).iter().map(|run| run.lost).sum();
    println!("rate, memtap / counted ring: {rate:.2} with {lost} packets lost");
}

/// Sends at a steady rate while the reader stays away; how long the ring bore it, beside the formula.
fn hold(pair: &Pair, blocks: u32, frame_bytes: usize, rate: u64, stall: Duration) -> (f64, f64) {
    let sender = sender(pair);
    let mut frames = Frames::new(frame_bytes);
    let mut options = options(pair);
    options.shape = RingShape { blocks, ..RingShape::default() };
    let mut ring = pair.server.run(|| Ring::open(&options)).expect("the bench needs root");
    pin(0);
    let (began, mut sent) = (Instant::now(), 0u64);
    while began.elapsed() < stall {
        let due = (began.elapsed().as_secs_f64() * rate as f64) as u64;
        if sent < due {
            sent += sender.send(&frames.advance()[..BATCH]).expect("the pair is up") as u64;
        } else {
            std::hint::spin_loop();
        }
    }
    let elapsed = began.elapsed();
    let dropped = ring.statistics().expect("counts").packets_dropped;
    let real_rate = sent as f64 / elapsed.as_secs_f64();
    let bore = elapsed.as_secs_f64() - dropped as f64 / real_rate;
    let byte_rate = ring_byte_rate(real_rate as u64, (real_rate * frame_bytes as f64) as u64);
    let formula = ring.shape().hold_time(byte_rate).as_secs_f64();
    (bore * 1e3, formula.min(elapsed.as_secs_f64()) * 1e3)
}

fn main() {
    // `cargo test` runs every bench once, to see that it can.
    let quick = !std::env::args().any(|argument| argument == "--bench");
    let (rounds, length) =
        if quick { (1, Duration::from_millis(50)) } else { (9, Duration::from_millis(500)) };
    let pair = Pair::new();
    println!(
        "{} processors, Linux {}, {}",
        thread::available_parallelism().map_or(0, usize::from),
        std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
        std::env::consts::ARCH
    );
    for frame_bytes in [96, 1500] {
        costs(&pair, frame_bytes, rounds, length);
    }
    if std::env::args().any(|argument| argument == "--no-stalls") {
        return;
    }
    println!(
        "\n| blocks of 1 MiB | frames | packets a second | reader away, ms | borne, ms | formula, ms | borne / formula |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let stalls: &[(u32, usize, u64, u64)] = if quick {
        &[(8, 1500, 50_000, 100)]
    } else {
        &[
            (8, 1500, 50_000, 300),
            (16, 1500, 100_000, 300),
            (16, 96, 100_000, 1_000),
            (64, 1500, 100_000, 1_000),
            (64, 96, 50_000, 1_000),
            (64, 1500, 50_000, 100),
            (64, 1500, 50_000, 10),
        ]
    };
    for &(blocks, frame_bytes, rate, stall) in stalls {
        let runs = if quick { 1 } else { 3 };
        let results: Vec<(f64, f64)> =
            (0..runs).map(|_| hold(&pair, blocks, frame_bytes, rate, Duration::from_millis(stall))).collect();
        let (bore, formula) =
            (Spread::of(results.iter().map(|run| run.0)), Spread::of(results.iter().map(|run| run.1)));
        let ratio = Spread::of(results.iter().map(|(bore, formula)| bore / formula));
        println!(
            "| {blocks} | {frame_bytes} | {rate} | {stall} | {:.0} | {:.0} | {ratio:.2} |",
            bore.median, formula.median
        );
    }
}

//! What it costs to count many keys beside few, end to end: requests and their answers as packets, through decode, reassembly,
//! parser and collector, with an interval closed every ten seconds of their time.
//!
//! Every key of a key space is asked for once before any is asked for again, in no order, so that 50 million requests are of
//! 50 million keys. Making the packets is measured alone and subtracted. Contenders take turns.
//!
//!     cargo bench --bench keyspace -- --requests 50000000 --rounds 1

#![expect(clippy::print_stdout, reason = "a bench talks to its reader")]

#[expect(dead_code, reason = "each bench takes what it needs")]
mod support;

use memtap::capture::{LinkType, Packet};
use memtap::collector::{Collector, CollectorOptions, Harvest, TargetOptions};
use memtap::model::{Outcome, TargetId, Timestamp};
use memtap::network::Network;
use memtap::pipeline::{Pipeline, PipelineLimits, TargetMap, TargetMatch};
use std::hint::black_box;
use std::time::Duration;
use support::{argument, is_bench, write_key};

const FLOWS: usize = 64;
const PORT: u16 = 11211;
const SERVER: [u8; 4] = [10, 99, 0, 1];
const VALUE_BYTES: usize = 100;

/// Requests a second, by the packets' time; an interval is ten seconds.
const RATE: u64 = 1_000_000;
const INTERVAL: Duration = Duration::from_secs(10);

const ETHERNET_AND_IP: usize = 14 + 20;
const SEQUENCE_AT: usize = ETHERNET_AND_IP + 4;
const ACKNOWLEDGED_AT: usize = ETHERNET_AND_IP + 8;
const PAYLOAD_AT: usize = ETHERNET_AND_IP + 20;

/// A flow's request and answer as frames, of which each time only the key and the numbers are new.
struct Flow {
    request: Vec<u8>,
    answer: Vec<u8>,
    sent: [u32; 2],
}

impl Flow {
    fn new(index: usize) -> Flow {
        let client = ([10, 99, 1, (index % 16) as u8], 40_000 + index as u16);
        let server = (SERVER, PORT);
        let key = String::from_utf8(write_key(0).to_vec()).expect("ASCII");
        let value = "v".repeat(VALUE_BYTES);
        Flow {
            request: frame(client, server, format!("get {key}\r\n").as_bytes()),
            answer: frame(
                server,
                client,
                format!("VALUE {key} 0 {VALUE_BYTES}\r\n{value}\r\nEND\r\n").as_bytes(),
            ),
            sent: [1, 1],
        }
    }

    /// Makes the next request and its answer.
    fn advance(&mut self, key: u64) {
        let key = write_key(key);
        let [to_server, to_client] = self.sent;
        let request_bytes = (self.request.len() - PAYLOAD_AT) as u32;
        let answer_bytes = (self.answer.len() - PAYLOAD_AT) as u32;
        put(&mut self.request, SEQUENCE_AT, &to_server.to_be_bytes());
        put(&mut self.request, ACKNOWLEDGED_AT, &to_client.to_be_bytes());
        put(&mut self.request, PAYLOAD_AT + "get ".len(), &key);
        self.sent = [to_server.wrapping_add(request_bytes), to_client.wrapping_add(answer_bytes)];
        put(&mut self.answer, SEQUENCE_AT, &to_client.to_be_bytes());
        put(&mut self.answer, ACKNOWLEDGED_AT, &self.sent[0].to_be_bytes());
        put(&mut self.answer, PAYLOAD_AT + "VALUE ".len(), &key);
    }
}

fn put(frame: &mut [u8], at: usize, bytes: &[u8]) {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
}

fn frame(from: ([u8; 4], u16), to: ([u8; 4], u16), payload: &[u8]) -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4(from.0, to.0, 64)
        .tcp(from.1, to.1, 1, 64_000)
        .ack(1);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).expect("a vector takes everything");
    frame
}

/// Makes all requests on so many keys and lends each packet; returns nanoseconds of CPU for each request.
fn run(keys: u64, requests: u64, mut take: impl FnMut(&Packet<'_>)) -> f64 {
    // Coprime to every key space here: all keys come before one comes again, far from its neighbours.
    const STEP: u64 = 2_654_435_761;
    let mut flows: Vec<Flow> = (0..FLOWS).map(Flow::new).collect();
    let before = support::cpu_nanos();
    for index in 0..requests {
        let flow = &mut flows[(support::mix(index) % FLOWS as u64) as usize];
        flow.advance(index.wrapping_mul(STEP) % keys);
        let timestamp = Timestamp::from_nanos(1_000_000_000_000 + index * (1_000_000_000 / RATE));
        for (bytes, delay) in [(&flow.request, 0), (&flow.answer, 300)] {
            let timestamp = timestamp.plus(Duration::from_nanos(delay));
            take(&Packet { timestamp, link: LinkType::Ethernet, bytes, wire_bytes: bytes.len() as u32 });
        }
    }
    (support::cpu_nanos() - before) as f64 / requests as f64
}

/// All of memtap but capture and report.
struct Memtap {
    pipeline: Pipeline,
    collector: Collector,
    harvest: Harvest,
}

impl Memtap {
    fn new() -> Memtap {
        let target = TargetMatch { network: Network::Any, port: PORT, tcp: true, udp: true };
        let targets = vec![TargetOptions { budget_bytes: 300_000_000, servers: false }];
        let options = CollectorOptions { targets, ..CollectorOptions::default() };
        let collector = Collector::new(&options).expect("memory for the bench");
        let harvest = Harvest::new(Some(65_536), collector.capacity(TargetId(0)));
        let pipeline = Pipeline::new(TargetMap::new(vec![target]), PipelineLimits::default());
        Memtap { pipeline, collector, harvest }
    }

    fn run(&mut self, keys: u64, requests: u64) -> f64 {
        let Memtap { pipeline, collector, harvest } = self;
        let (mut end, mut hits) = (Timestamp::ZERO, 0);
        let nanos = run(keys, requests, |packet| {
            if packet.timestamp > end {
                end = packet.timestamp.plus(INTERVAL);
                collector.end_close(TargetId(0), harvest);
                collector.begin_close(TargetId(0), harvest);
            }
            pipeline.handle_packet(packet, &mut |tuple, observation| {
                hits += u64::from(observation.outcome == Outcome::Hit);
                collector.observe(tuple, observation);
            });
        });
        assert_eq!(hits, requests, "each was answered by a value");
        nanos
    }
}

fn main() {
    let quick = !is_bench();
    let requests = argument("requests", if quick { 20_000 } else { 50_000_000 });
    let rounds = argument("rounds", if quick { 1 } else { 3 }) as usize;
    let mut ratios = Vec::new();
    println!("{requests} requests and answers; ns of CPU for each request");
    println!("| keys | making the packets | memtap |\n| --- | --- | --- |");
    for _ in 0..rounds {
        let costs = [10_000, 50_000_000].map(|keys| {
            let null = run(keys, requests, |packet| {
                black_box(packet);
            });
            // Anew each time: the flows begin from the start.
            let whole = Memtap::new().run(keys, requests);
            println!("| {keys} | {null:.0} | {:.0} |", whole - null);
            whole - null
        });
        ratios.push(costs[1] / costs[0]);
    }
    ratios.sort_by(f64::total_cmp);
    println!("50 M keys cost {:.2} x 10 k (median)", ratios[rounds / 2]);
}

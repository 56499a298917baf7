//! Nanoseconds a segment through the flow table with a parser that only finds line ends: in order on 1, 10,000 and
//! 1,000,000 flows, and on damaged traffic.
//!
//! The flows take turns, as do the directions: a request of one segment and an answer with a body of 400 bytes, so every segment
//! of a bench with many flows finds its flow, and the parser's state, cold. Subtract `segments_only`, the cost of making them.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use memtap::capture::{Segment, TcpFlags};
use memtap::model::{Direction, Endpoint, FlowTuple, TargetId, Timestamp};
use memtap::reassembly::flow::{FlowTable, Orientation};
use memtap::reassembly::limits::ReassemblyLimits;
use memtap::reassembly::{Demand, StreamEvent, TargetTally};
use std::hint::black_box;
use std::time::Duration;

const SERVER: Endpoint = Endpoint::from_ipv4([10, 0, 0, 1], 11211);
const REQUEST: &[u8] = b"get some:key:of:usual:length:0123\r\n";
const ROUNDS_A_PASS: u32 = 4096;

/// What the stand-in for the parser remembers: about as much as a parser would.
#[derive(Default)]
struct State([u64; 12]);

/// Finds line ends; a line that begins with `VALUE` is followed by a body.
fn listen(_: &FlowTuple, state: &mut State, event: StreamEvent<'_>) -> Demand {
    let StreamEvent::Bytes(offer) = event else { return Demand::used(0) };
    let mut used = 0;
    while let Some(end) = memchr::memchr(b'\n', &offer.bytes[used..]) {
        let line = &offer.bytes[used..used + end];
        used += end + 1;
        state.0[offer.direction.index()] += 1;
        if line.starts_with(b"VALUE") {
            return Demand::skip(used, 402);
        }
    }
    Demand::used(used)
}

fn classify(_: &Endpoint, destination: &Endpoint) -> Orientation {
    let to_server = destination.port() == 11211;
    Orientation { source: (!to_server).then_some(TargetId(0)), destination: to_server.then_some(TargetId(0)) }
}

/// Traffic without end, made as it is consumed: sequence numbers follow from the round.
struct Traffic {
    table: FlowTable<State>,
    tallies: Vec<TargetTally>,
    flows: u32,
    answer: Vec<u8>,
    /// Only make the segments: what to subtract.
    skim: bool,
    /// Every so many rounds the request comes after its answer; 0 for never.
    reorder_every: u32,
    /// Every so many rounds the request is not captured.
    lose_every: u32,
    now: Timestamp,
    round: u32,
}

impl Traffic {
    fn new(flows: u32) -> Traffic {
        let mut answer = b"VALUE some:key:of:usual:length:0123 0 400\r\n".to_vec();
        answer.extend_from_slice(&[b'x'; 400]);
        answer.extend_from_slice(b"\r\nEND\r\n");
        let limits =
            ReassemblyLimits { flows_max: flows as usize * 5 / 4 + 64, ..ReassemblyLimits::default() };
        Traffic {
            table: FlowTable::new(limits),
            tallies: vec![TargetTally::default()],
            flows,
            answer,
            skim: false,
            reorder_every: 0,
            lose_every: 0,
            now: Timestamp::from_parts(1_700_000_000, 0),
            round: 0,
        }
    }

    fn client(flow: u32) -> Endpoint {
        let [_, high, middle, low] = (flow / 50_000).to_be_bytes();
        Endpoint::from_ipv4([172, 16 + high, middle, low], u16::try_from(10_000 + flow % 50_000).unwrap())
    }

    fn send(&mut self, flow: u32, direction: Direction, flags: TcpFlags, numbers: (u32, u32), with: bool) {
        let client = Traffic::client(flow);
        let (source, destination, payload) = match direction {
            Direction::ToServer => (client, SERVER, REQUEST),
            Direction::ToClient => (SERVER, client, &self.answer[..]),
        };
        let payload = if with { payload } else { &[] };
        self.now = self.now.plus(Duration::from_nanos(500));
        let segment = Segment {
            timestamp: self.now,
            source,
            destination,
            seq: numbers.0,
            ack: numbers.1,
            flags,
            payload,
            payload_wire_bytes: payload.len() as u32,
        };
        let segment = black_box(&segment);
        if self.skim {
            black_box((segment.source, segment.destination, segment.seq));
        } else {
            self.table.handle_segment(segment, classify, &mut self.tallies, &mut listen);
        }
    }

    fn open_all(&mut self) {
        for flow in 0..self.flows {
            self.send(flow, Direction::ToServer, TcpFlags::SYN, (0, 0), false);
            self.send(flow, Direction::ToClient, TcpFlags::SYN.and(TcpFlags::ACK), (0, 1), false);
        }
    }

    /// One byte that never fits: every second one is before its neighbour, and each lot of 64 is then covered by one segment.
    fn hole(&mut self) {
        let number = self.round % 65;
        let base = 1000 + self.round / 65 * 200;
        let (seq, payload) = match number {
            64 => (base, &[b'x'; 128][..]),
            _ => (base + 2 * (number ^ 1), &b"x"[..]),
        };
        self.now = self.now.plus(Duration::from_nanos(500));
        let segment = Segment {
            timestamp: self.now,
            source: Traffic::client(0),
            destination: SERVER,
            seq,
            ack: 1,
            flags: TcpFlags::ACK,
            payload,
            payload_wire_bytes: payload.len() as u32,
        };
        self.table.handle_segment(black_box(&segment), classify, &mut self.tallies, &mut listen);
        self.round = self.round.wrapping_add(1);
    }

    /// A request and its answer on one flow.
    fn round(&mut self) {
        let (turn, flow) = (self.round / self.flows, self.round % self.flows);
        // Neighbouring rounds must not use neighbouring slots.
        let flow = (u64::from(flow) * 7_368_787 % u64::from(self.flows)) as u32;
        let client = 1u32.wrapping_add(turn.wrapping_mul(REQUEST.len() as u32));
        let server = 1u32.wrapping_add(turn.wrapping_mul(self.answer.len() as u32));
        let request = (client, server);
        let answer = (server, client.wrapping_add(REQUEST.len() as u32));
        let every = |step: u32| step > 0 && self.round % step == step - 1;
        let (reordered, lost) = (every(self.reorder_every), every(self.lose_every));
        if reordered {
            self.send(flow, Direction::ToClient, TcpFlags::ACK, answer, true);
        }
        if !lost {
            self.send(flow, Direction::ToServer, TcpFlags::ACK, request, true);
        }
        if !reordered {
            self.send(flow, Direction::ToClient, TcpFlags::ACK, answer, true);
        }
        self.round = self.round.wrapping_add(1);
    }
}

fn segments(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("reassembly");
    group.throughput(Throughput::Elements(u64::from(2 * ROUNDS_A_PASS)));
    let mut traffic = Traffic { skim: true, ..Traffic::new(10_000) };
    group.bench_function("segments_only", |bencher| {
        bencher.iter(|| (0..ROUNDS_A_PASS).for_each(|_| traffic.round()));
    });
    for flows in [1, 10_000, 1_000_000] {
        let mut traffic = Traffic::new(flows);
        traffic.open_all();
        group.bench_function(BenchmarkId::new("in_order", flows), |bencher| {
            bencher.iter(|| (0..ROUNDS_A_PASS).for_each(|_| traffic.round()));
        });
        assert_eq!(traffic.tallies[0].anomalies.iter().count(), 0, "clean traffic: {:?}", traffic.tallies);
    }
    for (name, reorder_every, lose_every) in [("reordered_5_percent", 20, 0), ("lost_1_percent", 0, 100)] {
        let mut traffic = Traffic { reorder_every, lose_every, ..Traffic::new(10_000) };
        traffic.open_all();
        group.bench_function(BenchmarkId::new(name, 10_000), |bencher| {
            bencher.iter(|| (0..ROUNDS_A_PASS).for_each(|_| traffic.round()));
        });
    }
    let mut traffic = Traffic::new(10_000);
    traffic.open_all();
    group.bench_function("hostile_holes", |bencher| {
        bencher.iter(|| (0..2 * ROUNDS_A_PASS).for_each(|_| traffic.hole()));
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(2));
    targets = segments
}
criterion_main!(benches);

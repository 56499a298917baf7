//! The whole packet side, recording in memory: time per packet of decode, reassembly and parser, with and without the
//! collector.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use memtap::capture::pcap::Recording;
use memtap::capture::{LinkType, Packet};
use memtap::collector::{Collector, CollectorOptions, TargetOptions};
use memtap::model::Timestamp;
use memtap::network::Network;
use memtap::pipeline::{Pipeline, PipelineLimits, TargetMap, TargetMatch};
use std::hint::black_box;
use std::path::Path;

struct Stored {
    timestamp: Timestamp,
    bytes: Vec<u8>,
    wire_bytes: u32,
}

fn stored(name: &str) -> Vec<Stored> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let mut recording = Recording::open(path).expect("the fixture opens");
    let mut packets = Vec::new();
    while let Some(packet) = recording.next_packet().expect("the fixture is whole") {
        let Packet { timestamp, bytes, wire_bytes, .. } = packet;
        packets.push(Stored { timestamp, bytes: bytes.to_vec(), wire_bytes });
    }
    packets
}

fn new_pipeline() -> Pipeline {
    let target = TargetMatch { network: Network::Any, port: 11211, tcp: true, udp: true };
    Pipeline::new(TargetMap::new(vec![target]), PipelineLimits::default())
}

fn packets_of(packets: &[Stored]) -> impl Iterator<Item = Packet<'_>> {
    packets.iter().map(|stored| Packet {
        timestamp: stored.timestamp,
        link: LinkType::Ethernet,
        bytes: &stored.bytes,
        wire_bytes: stored.wire_bytes,
    })
}

fn pipeline(criterion: &mut Criterion) {
    let packets = stored("peers/peer-small.pcap.zst");
    let mut group = criterion.benchmark_group("text, small packets");
    group.throughput(Throughput::Elements(packets.len() as u64)).sample_size(20);
    group.bench_function("packet side", |bencher| {
        bencher.iter_batched_ref(
            new_pipeline,
            |pipeline| {
                for packet in packets_of(&packets) {
                    pipeline.handle_packet(&packet, &mut |_, observation| {
                        black_box(observation);
                    });
                }
            },
            BatchSize::PerIteration,
        );
    });
    let options = CollectorOptions {
        targets: vec![TargetOptions { budget_bytes: 300_000_000, servers: true }],
        ..CollectorOptions::default()
    };
    let mut collector = Collector::new(&options).expect("memory for the tables");
    group.bench_function("with collector", |bencher| {
        bencher.iter_batched_ref(
            new_pipeline,
            |pipeline| {
                for packet in packets_of(&packets) {
                    pipeline.handle_packet(&packet, &mut |tuple, observation| {
                        collector.observe(tuple, observation);
                    });
                }
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, pipeline);
criterion_main!(benches);

//! Headers to segments: the fast path, the walk, and etherparse's lax slicing of the same frames.
//!
//! Nanoseconds a packet; the frames lie in the cache, so this is the work and not the memory.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use etherparse::{LaxSlicedPacket, PacketBuilder};
use memtap::capture::decode::{DecodeLimits, Decoder};
use memtap::capture::{LinkType, Packet};
use memtap::model::Timestamp;

const MACS: ([u8; 6], [u8; 6]) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
const CLIENT: [u8; 4] = [10, 2, 0, 17];
const SERVER: [u8; 4] = [10, 1, 0, 5];

/// A TCP frame of `frame_bytes` in all.
fn ipv4_frame(frame_bytes: usize) -> Vec<u8> {
    let builder =
        PacketBuilder::ethernet2(MACS.0, MACS.1).ipv4(CLIENT, SERVER, 64).tcp(51_422, 11_211, 1, 64_000);
    let mut frame = Vec::new();
    builder.write(&mut frame, &vec![b'x'; frame_bytes - 54]).expect("a vector takes every byte");
    frame
}

fn ipv6_frame(frame_bytes: usize) -> Vec<u8> {
    let [client, server] = [1, 2].map(|last| [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    let builder =
        PacketBuilder::ethernet2(MACS.0, MACS.1).ipv6(client, server, 64).tcp(51_422, 11_211, 1, 64_000);
    let mut frame = Vec::new();
    builder.write(&mut frame, &vec![b'x'; frame_bytes - 74]).expect("a vector takes every byte");
    frame
}

/// The frame as a mirror port sends it.
fn erspan_frame(frame: &[u8]) -> Vec<u8> {
    let gre = [0x10, 0, 0x88, 0xbe, 0, 0, 0, 1];
    let erspan = [0x10, 0x7b, 0, 5, 0, 0, 0, 7];
    let body = [&gre, &erspan, frame].concat();
    let builder = PacketBuilder::ethernet2(MACS.0, MACS.1).ipv4(CLIENT, SERVER, 64);
    let mut outer = Vec::new();
    builder.write(&mut outer, etherparse::IpNumber::GRE, &body).expect("a vector takes every byte");
    outer
}

fn decode(criterion: &mut Criterion) {
    let tagged = |frame: Vec<u8>| [&frame[..12], &[0x81, 0, 0, 5], &frame[12..]].concat();
    let cases = [
        ("ipv4_64B", ipv4_frame(64)),
        ("ipv4_1500B", ipv4_frame(1500)),
        ("ipv4_vlan_64B", tagged(ipv4_frame(64))),
        ("ipv6_1500B", ipv6_frame(1500)),
        ("erspan_ipv4_64B", erspan_frame(&ipv4_frame(64))),
    ];
    let mut group = criterion.benchmark_group("decode");
    for (name, frame) in &cases {
        let mut decoder = Decoder::new(DecodeLimits::default());
        group.bench_function(BenchmarkId::new("memtap", name), |bencher| {
            bencher.iter(|| {
                let packet = Packet {
                    timestamp: Timestamp::ZERO,
                    link: LinkType::Ethernet,
                    bytes: black_box(frame),
                    wire_bytes: frame.len() as u32,
                };
                black_box(decoder.decode(&packet));
            });
        });
        group.bench_function(BenchmarkId::new("etherparse_lax", name), |bencher| {
            bencher.iter(|| black_box(LaxSlicedPacket::from_ethernet(black_box(frame)).is_ok()));
        });
    }
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);

//! After warm-up no packet allocates: a recording is run three times through one pipeline with its collector, under an
//! allocator that counts, and the third run must not allocate at all, closing an interval included.

mod support;

use memtap::capture::Packet;
use memtap::capture::pcap::Recording;
use memtap::collector::{Collector, CollectorOptions, Harvest, TargetOptions};
use memtap::model::TargetId;
use memtap::pipeline::{Pipeline, PipelineLimits, TargetMap};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use support::exact::port_target;
use support::scenario::Frame;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: passes everything on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn frames(name: &str) -> Vec<Frame> {
    let mut recording = Recording::open(support::fixture(name)).expect("the recording opens");
    let mut frames = Vec::new();
    while let Some(packet) = recording.next_packet().expect("the recording is whole") {
        let Packet { timestamp, bytes, wire_bytes, .. } = packet;
        frames.push(Frame { timestamp, bytes: bytes.to_vec(), wire_bytes });
    }
    frames
}

// One test in this binary: the count is of the whole process.
#[test]
fn no_packet_allocates_after_warm_up() {
    let mut all = frames("clients/base_small_nooffload.pcap.zst");
    all.extend(frames("extra/raw_udp.pcap.zst"));
    all.extend(frames("clients/metamemcache_meta_nooffload.pcap.zst"));
    let mut pipeline = Pipeline::new(TargetMap::new(vec![port_target(11211)]), PipelineLimits::default());
    let options = CollectorOptions {
        targets: vec![TargetOptions { budget_bytes: 32_000_000, servers: true }],
        ..CollectorOptions::default()
    };
    let mut collector = Collector::new(&options).expect("memory for the tables");
    let mut harvests = [0; 2].map(|_| Harvest::new(Some(1000), collector.capacity(TargetId(0))));
    let mut observations = 0u64;
    let mut counts = Vec::new();
    // The first two rounds fill each of the two buffers once.
    for round in 0..3u32 {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        for (index, frame) in all.iter().enumerate() {
            if index == all.len() / 2 {
                // An interval ends in the middle, and is copied out between the packets of the next one.
                collector.begin_close(TargetId(0), &mut harvests[round as usize % 2]);
            }
            let mut packet = frame.packet();
            packet.timestamp = packet.timestamp.plus(Duration::from_secs(u64::from(round) * 86_400));
            pipeline.handle_packet(&packet, &mut |tuple, observation| {
                observations += 1;
                collector.observe(tuple, observation);
            });
        }
        collector.flush();
        collector.end_close(TargetId(0), &mut harvests[round as usize % 2]);
        counts.push(ALLOCATIONS.load(Ordering::Relaxed) - before);
    }
    assert!(observations > 10_000, "the recordings hold requests: {observations}");
    assert_eq!(
        counts[2],
        0,
        "allocations in the third run over {} packets (first run: {})",
        all.len(),
        counts[0]
    );
}

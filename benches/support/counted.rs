//! The least that a capture by a packet ring can be: memtap's ring, of whose blocks only the number of packets is read.
//!
//! As a process of its own, as memtap is one: the bench starts itself again with [`ARGUMENT`] in the network namespace to look into.

use memtap::capture::filter::FilterSpec;
use memtap::capture::interface;
use memtap::capture::ring::{self, RETIRE_TIMEOUT, Ring, RingOptions, RingShape};
use memtap::config::{CaptureConfig, TargetConfig};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// First argument of a bench that is to be this capture; the name of the interface follows.
pub(crate) const ARGUMENT: &str = "count-blocks";

/// As long as memtap's worker sleeps at most.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// Counts until it is interrupted, and then says how many packets there were. Fails when there were none.
pub(crate) fn run(interface: &str) {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).expect("a signal that can be caught");
    }
    let mut rings = [Ring::open(&options(interface)).expect("the bench needs root")];
    let mut counted = 0;
    while !stop.load(Ordering::Relaxed) {
        counted += count_blocks(&mut rings[0]);
        ring::wait(&mut rings, WAIT_MAX).expect("the interface is there");
    }
    // The kernel still holds the last block until its time is over.
    let until = Instant::now() + 2 * RETIRE_TIMEOUT;
    while Instant::now() < until {
        counted += count_blocks(&mut rings[0]);
        ring::wait(&mut rings, RETIRE_TIMEOUT / 4).expect("the interface is there");
    }
    let statistics = rings[0].statistics().expect("the kernel's counts");
    assert!(counted > 0, "the ring whose blocks are counted saw no packet on {interface}");
    println!("{counted} packets captured\n{} packets dropped by kernel", statistics.packets_dropped);
}

/// Of all blocks that are there; each goes back at once.
fn count_blocks(ring: &mut Ring) -> u64 {
    let mut packets = 0;
    while let Some(block) = ring.next_block() {
        packets += u64::from(block.packets_left());
    }
    packets
}

/// The ring that `memtap run -i INTERFACE` opens without further options.
fn options(interface: &str) -> RingOptions {
    let (capture, target) = (CaptureConfig::default(), TargetConfig::default());
    let found = interface::enumerate().expect("the kernel tells its interfaces");
    let found = found.iter().find(|found| found.name == interface).expect("the interface is there");
    // No addresses: the default target is its port on any of them.
    let filter =
        FilterSpec { tcp: target.tcp, udp: target.udp, ..FilterSpec::new(vec![], vec![target.port]) };
    RingOptions {
        shape: RingShape::with_bytes(capture.ring_bytes),
        promiscuous: capture.promiscuous,
        ..RingOptions::new(found, filter)
    }
}

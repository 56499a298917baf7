//! The arithmetic of rings; the rings themselves are tested against the kernel in `tests/live_ring.rs`.

use super::*;

fn shape(blocks: u32, block_mib: u32, timeout_ms: u64) -> RingShape {
    RingShape { blocks, block_bytes: block_mib << 20, retire_timeout: Duration::from_millis(timeout_ms) }
}

/// Bytes of the ring a second, for so many packets of so many bytes.
fn rate(packets: u64, captured_bytes: u64) -> u64 {
    packets * (82 + captured_bytes).next_multiple_of(8)
}

#[test]
fn hold_time_agrees_with_measured_stalls() {
    // (ring, rate, milliseconds that a stall of a second cost, as measured)
    let measured = [
        (shape(64, 1, 10), rate(250_000, 64), 370),
        (shape(64, 1, 10), rate(200_000, 1500), 837),
        (shape(64, 1, 10), rate(200_000, 128), 370),
        (shape(64, 4, 10), rate(250_000, 64), 370),
        (shape(16, 1, 10), rate(200_000, 1500), 964),
        (shape(16, 1, 10), rate(250_000, 64), 850),
    ];
    for (shape, rate, lost_ms) in measured {
        let predicted = 1000 - shape.hold_time(rate).as_millis() as i64;
        assert!((predicted - lost_ms).abs() <= 15, "{shape:?}: {predicted} predicted, {lost_ms} measured");
    }
    assert_eq!(RingShape::default().hold_time(0), Duration::from_millis(63 * 60));
}

#[test]
fn a_ring_shrinks_to_a_quarter_and_no_further() {
    let asked = RingShape::default();
    let mut shape = asked;
    let mut steps = 0;
    while let Some(smaller) = shape.shrunk(&asked) {
        assert!(smaller.blocks < shape.blocks && shape.blocks - smaller.blocks <= 3);
        shape = smaller;
        steps += 1;
    }
    assert_eq!(shape.blocks, 16);
    assert!(steps < 40, "{steps}");
    assert_eq!(RingShape { blocks: BLOCKS_MIN, ..asked }.shrunk(&asked), None);
}

#[test]
fn ring_sizes_are_honoured_within_a_block() {
    assert_eq!(RingShape::with_bytes(64 << 20), RingShape::default());
    assert_eq!(RingShape::with_bytes(1 << 20).bytes(), 1 << 20);
    assert_eq!(RingShape::with_bytes(0).blocks, BLOCKS_MIN);
    assert_eq!(RingShape::with_bytes(10_000_000).blocks, 9);
}

#[test]
fn rings_can_be_given_to_threads() {
    fn is_send<T: Send>() {}
    is_send::<Ring>();
}

//! One named test for each trap that reassembly must not fall into (the numbers are those of the trap list in the
//! research notes), and the flow table and assembler against plain twins on random input.

use super::assembler::Flow;
use super::flow::{FlowTable, Occupancy, Orientation};
use super::limits::ReassemblyLimits;
use super::table::SlotIndex;
use super::toy_parser::{Recorder, Toy};
use super::{Demand, StreamEvent, TargetTally};
use crate::anomaly::Anomaly;
use crate::capture::{Segment, TcpFlags};
use crate::model::{Endpoint, FlowTuple, TargetId, Timestamp};
use proptest::prelude::*;
use std::time::Duration;

const SYN: TcpFlags = TcpFlags::SYN;
const ACK: TcpFlags = TcpFlags::ACK;
const FIN_ACK: TcpFlags = TcpFlags::FIN.and(TcpFlags::ACK);
const SYN_ACK: TcpFlags = TcpFlags::SYN.and(TcpFlags::ACK);
const RST: TcpFlags = TcpFlags::RST;
const SERVER: Endpoint = Endpoint::from_ipv4([10, 0, 0, 1], 11211);
const CLIENT: Endpoint = Endpoint::from_ipv4([10, 0, 0, 2], 40_000);

/// One worker, one target, and a clock.
struct World {
    table: FlowTable<Toy>,
    recorder: Recorder,
    tallies: Vec<TargetTally>,
    now: Timestamp,
}

fn limits() -> ReassemblyLimits {
    ReassemblyLimits {
        flows_max: 64,
        hold_packets: 0, // the tests send few packets; the rule has a test of its own
        held_segments_max: 128,
        held_blocks_max: 256,
        carries_max: 64,
        hold: Duration::from_millis(2),
        ..ReassemblyLimits::default()
    }
}

fn classify(source: &Endpoint, destination: &Endpoint) -> Orientation {
    let target = |endpoint: &Endpoint| {
        (endpoint.ip() == SERVER.ip() && endpoint.port() == 11211).then_some(TargetId(0))
    };
    Orientation { source: target(source), destination: target(destination) }
}

impl World {
    fn with(limits: ReassemblyLimits) -> World {
        World {
            table: FlowTable::new(limits),
            recorder: Recorder::default(),
            tallies: vec![TargetTally::default()],
            now: Timestamp::from_parts(1_700_000_000, 0),
        }
    }

    fn new() -> World {
        World::with(limits())
    }

    /// A connection whose handshake was seen.
    fn open(client_isn: u32, server_isn: u32) -> World {
        let mut world = World::new();
        world.handshake(client_isn, server_isn);
        world
    }

    fn handshake(&mut self, client_isn: u32, server_isn: u32) {
        self.client(SYN, client_isn, 0, b"");
        self.server(SYN_ACK, server_isn, client_isn.wrapping_add(1), b"");
        self.client(ACK, client_isn.wrapping_add(1), server_isn.wrapping_add(1), b"");
    }

    fn segment(&mut self, segment: &Segment<'_>) {
        let recorder = &mut self.recorder;
        let mut emit = |_: &FlowTuple, toy: &mut Toy, event: StreamEvent<'_>| recorder.hear(toy, event);
        self.table.handle_segment(segment, classify, &mut self.tallies, &mut emit);
    }

    /// A segment with a payload of which the last `cut` bytes were not captured.
    fn snapped(&mut self, from: Endpoint, flags: TcpFlags, seq: u32, ack: u32, payload: &[u8], cut: u32) {
        self.now = self.now.plus(Duration::from_micros(10));
        self.segment(&Segment {
            timestamp: self.now,
            source: from,
            destination: if from == SERVER { CLIENT } else { SERVER },
            seq,
            ack,
            flags,
            payload,
            payload_wire_bytes: payload.len() as u32 + cut,
        });
    }

    fn client(&mut self, flags: TcpFlags, seq: u32, ack: u32, payload: &[u8]) {
        self.snapped(CLIENT, flags, seq, ack, payload, 0);
    }

    fn server(&mut self, flags: TcpFlags, seq: u32, ack: u32, payload: &[u8]) {
        self.snapped(SERVER, flags, seq, ack, payload, 0);
    }

    /// Client data, server data.
    fn c(&mut self, seq: u32, ack: u32, payload: &[u8]) {
        self.client(ACK, seq, ack, payload);
    }

    fn s(&mut self, seq: u32, ack: u32, payload: &[u8]) {
        self.server(ACK, seq, ack, payload);
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now.plus(time);
        let recorder = &mut self.recorder;
        let mut emit = |_: &FlowTuple, toy: &mut Toy, event: StreamEvent<'_>| recorder.hear(toy, event);
        self.table.tick(self.now, &mut self.tallies, &mut emit);
    }

    fn close_all(&mut self) {
        let recorder = &mut self.recorder;
        let mut emit = |_: &FlowTuple, toy: &mut Toy, event: StreamEvent<'_>| recorder.hear(toy, event);
        self.table.close_all(&mut self.tallies, &mut emit);
        assert_eq!(self.table.occupancy(), Occupancy::default());
    }

    fn count(&self, anomaly: Anomaly) -> u64 {
        self.tallies[0].anomalies.of(anomaly)
    }

    #[track_caller]
    fn heard(&self, expected: &[&str]) {
        assert_eq!(self.recorder.log, expected);
    }

    /// Nothing is kept for anybody, and the accounting identity holds for both directions together.
    #[track_caller]
    fn clean(&self) {
        let Occupancy { held_segments, held_blocks, carries, .. } = self.table.occupancy();
        assert_eq!((held_segments, held_blocks, carries), (0, 0, 0));
        let Recorder { used, skipped, .. } = &self.recorder;
        let read: u64 = used.iter().chain(skipped).sum();
        assert_eq!(
            self.tallies[0].payload_bytes.iter().sum::<u64>(),
            read + self.count(Anomaly::UnparsedBytes),
            "payload bytes = used + skipped + unparsed"
        );
    }
}

const HOLD: Duration = Duration::from_millis(3);

#[test]
fn in_order_segments_are_offered_in_place() {
    let mut w = World::open(99, 499);
    w.c(100, 500, b"a 0\n");
    w.s(500, 104, b"b 3\nxyz");
    w.c(104, 507, b"c 0\nd 0\n");
    w.heard(&[">a", "<b", ">c", ">d"]);
    assert_eq!(w.recorder.places, [(0, 0), (0, 4), (4, 7), (8, 7)]);
    assert_eq!(w.tallies[0].payload_bytes, [12, 7]);
    assert_eq!(w.tallies[0].packets, [4, 2]);
    assert_eq!(w.tallies[0].payload_packets, [2, 1]);
    w.clean();
}

#[test]
fn trap01_zero_is_a_sequence_number_like_any_other() {
    let mut w = World::open(u32::MAX - 4, 499);
    w.c(u32::MAX - 3, 500, b"a 0\n");
    w.c(0, 500, b"b 0\n");
    w.c(0, 500, b"b 0\n");
    w.c(4, 500, b"c 0\n");
    w.heard(&[">a", ">b", ">c"]);
    w.clean();
}

#[test]
fn trap02_acknowledgements_wrap() {
    let base = 0u32.wrapping_sub(6);
    let mut w = World::open(base.wrapping_sub(1), 499);
    w.c(base.wrapping_add(4), 500, b"b 0\n");
    w.c(base.wrapping_add(12), 500, b"d 0\n");
    w.c(base.wrapping_add(8), 500, b"c 0\n");
    w.heard(&[]);
    w.s(500, base.wrapping_add(16), b"");
    w.pass(HOLD);
    w.heard(&[">gap 4", ">b", ">c", ">d"]);
    w.clean();
}

#[test]
fn trap04_a_head_is_cut_at_every_byte() {
    let stream = b"alpha 0\nbody 5\nx\ny\nzq 0\nlast 0\n";
    for one_by_one in [false, true] {
        for first in 1..stream.len() {
            for second in first..stream.len() {
                let mut w = World::open(99, 499);
                w.recorder.one_by_one = one_by_one;
                w.c(100, 500, &stream[..first]);
                w.c(100 + first as u32, 500, &stream[first..second]);
                w.c(100 + second as u32, 500, &stream[second..]);
                w.heard(&[">alpha", ">body", ">q", ">last"]);
                assert_eq!(w.recorder.places.iter().map(|place| place.0).collect::<Vec<_>>(), [0, 8, 20, 24]);
                w.clean();
            }
        }
    }
}

#[test]
fn trap05_a_retransmission_with_other_text_loses_and_its_new_tail_counts() {
    let mut w = World::open(99, 499);
    w.c(100, 500, b"a 0\n");
    w.c(100, 500, b"z 0\n");
    w.c(100, 500, b"z 0\nb 0\n");
    w.heard(&[">a", ">b"]);
    assert_eq!(w.count(Anomaly::DuplicateSegment), 2);
    // The same among segments that are held: the first copy wins.
    w.c(112, 500, b"d 0\n");
    w.c(112, 500, b"y 0\n");
    w.c(112, 500, b"y 0\ne 0\n");
    w.c(108, 500, b"c 0\ny 0\n");
    w.heard(&[">a", ">b", ">c", ">d", ">e"]);
    w.clean();
}

#[test]
fn trap06_a_hole_inside_a_body_is_free_and_its_late_original_ignored() {
    let mut w = World::open(99, 499);
    w.c(100, 500, b"a 3000\n");
    w.c(107, 500, &[b'x'; 1000]);
    let mut tail = vec![b'x'; 1000];
    tail.extend_from_slice(b"b 0\n");
    w.c(2107, 500, &tail);
    w.c(1107, 500, &[b'\n'; 1000]);
    w.heard(&[">a", ">b"]);
    assert_eq!(w.count(Anomaly::BodyHoleBytes), 1000);
    assert_eq!((w.count(Anomaly::Gap), w.count(Anomaly::OutOfOrderSegment)), (0, 0));
    assert_eq!(w.tallies[0].payload_bytes[0], 7 + 3000 + 4);
    w.clean();
}

#[test]
fn trap07_capture_loss_is_told_by_the_acknowledgement_after_the_hold_time() {
    let mut w = World::open(99, 499);
    w.s(500, 104, b"lost 0\n"); // answers 100..104, which was not captured
    w.heard(&[]);
    w.pass(Duration::from_micros(1900));
    w.heard(&[]);
    w.pass(Duration::from_micros(200));
    w.heard(&["<gap 0"]);
    w.c(104, 507, b"b 0\n"); // idle: both are taken up again
    assert_eq!((w.count(Anomaly::Gap), w.count(Anomaly::GapBytes)), (1, 4));
    w.s(507, 108, b"c 0\n");
    w.heard(&["<gap 0", ">gap 4", ">b", "<c"]);
    w.clean();
}

#[test]
fn trap09_a_request_that_comes_long_after_its_answer_counts() {
    let mut w = World::open(99, 499);
    w.s(500, 104, b"b 0\n");
    w.s(504, 104, b"more 0\n");
    w.pass(HOLD);
    w.heard(&["<gap 0"]);
    w.c(100, 500, b"a 0\n");
    w.c(104, 511, b"c 0\n");
    w.s(511, 108, b"d 0\n");
    w.heard(&["<gap 0", ">a", ">c", "<d"]);
    assert_eq!(w.count(Anomaly::Gap), 0);
    // A second one in a row that is missing is a gap.
    w.s(515, 112, b"e 0\n");
    w.pass(HOLD);
    w.s(519, 116, b"f 0\n");
    w.pass(HOLD);
    assert_eq!(w.recorder.log[4..], ["<gap 0", ">gap 8"]);
    w.clean();
    // So is one that never comes.
    let mut w = World::open(99, 499);
    w.s(500, 104, b"b 0\n");
    w.close_all();
    w.heard(&["<gap 0", ">gap 4", ">close", "<close"]);
    assert_eq!((w.count(Anomaly::Gap), w.count(Anomaly::GapBytes)), (1, 4));
    w.clean();
}

#[test]
fn the_hold_time_takes_some_packets_too() {
    let mut w = World::with(ReassemblyLimits { hold_packets: 3, ..limits() });
    w.handshake(99, 499);
    w.s(500, 104, b"b 0\n");
    w.pass(Duration::from_millis(90)); // nothing came: neighbours may be as far apart
    w.c(100, 500, b"a 0\n");
    w.heard(&[">a", "<b"]);
    w.s(504, 108, b"d 0\n");
    w.pass(Duration::from_millis(10));
    for _ in 0..3 {
        w.heard(&[">a", "<b"]);
        w.client(ACK, 104, 504, b"");
    }
    w.heard(&[">a", "<b", "<gap 0"]);
    let mut w = World::with(ReassemblyLimits { hold_packets: 3, ..limits() });
    w.handshake(99, 499);
    w.s(500, 104, b"b 0\n");
    w.pass(Duration::from_millis(101));
    w.heard(&["<gap 0"]);
}

#[test]
fn trap08_network_loss_waits_for_the_retransmission() {
    let mut w = World::open(99, 499);
    w.c(104, 500, b"b 0\n");
    w.s(500, 100, b"");
    w.s(500, 100, b"");
    w.pass(Duration::from_millis(900));
    w.heard(&[]);
    w.c(100, 500, b"a 0\n");
    w.heard(&[">a", ">b"]);
    assert_eq!(w.count(Anomaly::Gap), 0);
    w.clean();
}

#[test]
fn trap08_network_loss_without_retransmission_ends_after_three_seconds() {
    let mut w = World::open(99, 499);
    w.c(104, 500, b"b 0\n");
    w.s(500, 100, b"");
    w.pass(Duration::from_millis(2900));
    w.heard(&[]);
    w.pass(Duration::from_millis(200));
    w.heard(&[">gap 4", ">b"]);
    w.clean();
}

#[test]
fn trap09_an_acknowledgement_before_its_data_declares_nothing() {
    let mut w = World::open(99, 499);
    w.s(500, 104, b"");
    w.pass(Duration::from_secs(1));
    w.c(100, 500, b"a 0\n");
    w.heard(&[">a"]);
    // An answer before its request is held until the request comes.
    w.s(500, 108, b"c 0\n");
    w.c(104, 500, b"b 0\n");
    w.heard(&[">a", ">b", "<c"]);
    assert_eq!(w.count(Anomaly::Gap), 0);
    w.clean();
}

#[test]
fn trap10_one_sided_capture_goes_on_after_sixteen_segments_or_a_second() {
    for limit_by_time in [false, true] {
        let mut w = World::new();
        w.client(SYN, 99, 0, b"");
        w.c(104, 500, b"b 0\n");
        for number in 0..15 {
            w.c(108 + 4 * number, 500, b"c 0\n");
        }
        w.heard(&["<gap 0"]); // the server's stream was met by an acknowledgement only
        if limit_by_time {
            w.pass(Duration::from_millis(1100));
        } else {
            w.c(108 + 60, 500, b"d 0\n");
        }
        assert_eq!(w.recorder.log[1..3], [">gap 4", ">b"]);
        assert_eq!(w.recorder.log.len(), if limit_by_time { 18 } else { 19 });
        w.clean();
    }
}

#[test]
fn trap10_one_sided_capture_of_requests_gives_up_the_server() {
    let mut w = World::open(99, 499);
    let mut seq = 100;
    for number in 0..50u32 {
        w.c(seq, 500 + 1000 * number, b"a 0\n");
        seq += 4;
        w.pass(if number < 20 { HOLD } else { Duration::ZERO });
    }
    // While answers may still come, every request waits for those that it acknowledges; after 16 KiB none does.
    assert_eq!(w.recorder.log.iter().filter(|line| *line == ">a").count(), 50);
    assert_eq!(w.count(Anomaly::Gap), 17);
    w.clean();
}

#[test]
fn trap10_one_sided_capture_of_answers_gives_up_the_client() {
    let mut w = World::new();
    w.server(SYN_ACK, 499, 100, b"");
    for number in 0..50u32 {
        w.s(500 + 4 * number, 104 + 4 * number, b"a 0\n");
        w.pass(if number < 2 { HOLD } else { Duration::ZERO });
    }
    assert_eq!(w.recorder.log, ["<gap 0", ">gap 8"]);
    assert_eq!(w.recorder.offers.len(), 50);
    w.clean();
}

#[test]
fn a_clock_that_is_set_back_stops_nothing() {
    let mut w = World::open(99, 499);
    w.c(104, 500, b"b 0\n");
    w.now = Timestamp::from_parts(1_600_000_000, 0);
    w.pass(Duration::ZERO);
    w.heard(&[">gap 4", ">b"]);
    for _ in 0..70 {
        w.pass(Duration::from_secs(60));
    }
    w.now = Timestamp::from_parts(1_700_009_000, 0);
    w.pass(Duration::from_secs(1));
    w.heard(&[">gap 4", ">b", ">close", "<close"]);
}

#[test]
fn without_room_for_a_carry_the_head_is_given_up() {
    let mut w = World::with(ReassemblyLimits { carries_max: 0, ..limits() });
    w.handshake(99, 499);
    w.c(100, 500, b"a 0\nunfin");
    w.c(109, 500, b"b 0\n");
    w.heard(&[">a", ">gap 0", ">b"]);
    assert_eq!(w.count(Anomaly::SegmentShed), 1);
    w.clean();
}

#[test]
fn a_flow_takes_at_most_160_bytes_beside_the_parsers_state() {
    let flows = 1 << 20;
    let index = SlotIndex::new(flows);
    let free_list = 4;
    assert!(size_of::<Flow>() + index.bytes() / flows + free_list <= 160);
}

#[test]
fn trap11_mid_stream_begins_at_the_first_provable_message() {
    let mut w = World::new();
    w.c(1000, 500, &[b'X'; 1000]);
    w.c(2000, 500, b"XX\nfake 0\n");
    w.heard(&[">gap 0", "<gap 0"]);
    w.c(2010, 500, b"a 0\n");
    w.s(500, 2014, b"b 0\n");
    w.heard(&[">gap 0", "<gap 0", ">a", "<b"]);
    assert_eq!(w.count(Anomaly::MidStream), 1);
    assert_eq!(w.count(Anomaly::UnparsedBytes), 1010);
    assert_eq!(w.recorder.places, [(1010, 0), (0, 1014)]);
    w.clean();
}

#[test]
fn trap11_a_pipelining_client_in_mid_stream_is_not_idle() {
    let mut w = World::new();
    w.s(500, 1000, b"XXXX");
    w.c(1000, 500, b"a 0\n"); // sent before the server's four bytes were received
    w.heard(&["<gap 0", ">gap 0"]);
    w.c(1004, 504, b"b 0\n"); // has received them, but the server has not answered a
    assert_eq!(w.recorder.offers[1..], [(true, false, false), (true, true, false)]);
    w.s(504, 1008, b"c 0\n");
    w.c(1008, 508, b"d 0\n");
    assert_eq!(w.recorder.offers.last(), Some(&(true, true, true)));
    w.clean();
}

#[test]
fn trap12_keep_alives_window_probes_and_updates() {
    let mut w = World::open(99, 499);
    w.c(100, 500, b"a 0\n");
    w.c(103, 500, b"\0");
    w.c(103, 500, b"");
    assert_eq!(w.count(Anomaly::DuplicateSegment), 0);
    w.c(104, 500, b"b"); // a zero-window probe carries a real byte
    w.c(104, 500, b"b 0\n");
    w.c(108, 500, b"");
    w.heard(&[">a", ">b"]);
    w.clean();
}

#[test]
fn trap13_fast_open_data_counts_once() {
    for accepted in [true, false] {
        let mut w = World::new();
        w.client(SYN, 99, 0, b"a 0\n");
        w.server(SYN_ACK, 499, if accepted { 104 } else { 100 }, b"");
        if !accepted {
            w.c(100, 500, b"a 0\n");
        }
        w.c(104, 500, b"b 0\n");
        w.heard(&[">a", ">b"]);
        w.clean();
    }
}

#[test]
fn trap14_port_reuse_finishes_the_old_flow_and_begins_a_new_one() {
    let mut w = World::open(99, 499);
    w.c(100, 500, b"a 0\n");
    w.client(FIN_ACK, 104, 500, b"");
    w.handshake(5_000_000, 7_000_000);
    w.c(5_000_001, 7_000_001, b"b 0\n");
    w.heard(&[">a", ">close", "<close", ">b"]);
    assert_eq!(w.recorder.places, [(0, 0), (0, 0)]);
    w.clean();
}

#[test]
fn trap14_repeated_syns_change_nothing() {
    let mut w = World::open(99, 499);
    w.client(SYN, 99, 0, b"");
    w.c(100, 500, b"a 0\n");
    w.client(SYN, 99, 0, b"");
    w.server(SYN_ACK, 499, 100, b"");
    w.c(104, 500, b"b 0\n");
    w.heard(&[">a", ">b"]);
    assert_eq!(w.count(Anomaly::BadControl), 0);
    w.clean();
}

#[test]
fn trap14_a_spoofed_syn_is_ignored_until_it_is_confirmed() {
    let mut w = World::open(99, 499);
    w.c(100, 500, b"a 0\n");
    w.client(SYN, 77_000_000, 0, b"");
    w.s(500, 104, b"b 0\n");
    w.c(104, 504, b"c 0\n");
    w.heard(&[">a", "<b", ">c"]);
    // The real thing: the old connection was gone without our knowledge.
    w.client(SYN, 88_000_000, 0, b"");
    w.server(SYN_ACK, 99_000_000, 88_000_001, b"");
    w.c(88_000_001, 99_000_001, b"d 0\n");
    w.s(99_000_001, 88_000_005, b"e 0\n");
    w.heard(&[">a", "<b", ">c", ">close", "<close", ">d", "<e"]);
    assert_eq!(w.count(Anomaly::MidStream), 0);
    w.clean();
}

#[test]
fn trap14_a_new_connection_is_confirmed_by_its_data_when_the_answer_was_missed() {
    let mut w = World::open(99, 499);
    w.c(100, 500, b"a 0\n");
    w.client(SYN, 88_000_000, 0, b"");
    w.c(88_000_001, 99_000_001, b"d 0\n");
    w.s(99_000_001, 88_000_005, b"e 0\n");
    w.heard(&[">a", ">close", "<close", ">d", "<e"]);
    // And when the SYN itself was missed.
    w.server(SYN_ACK, 5000, 6001, b"");
    w.c(6001, 5001, b"f 0\n");
    assert_eq!(w.recorder.log[5..], [">close", "<close", ">f"]);
    w.clean();
}

#[test]
fn trap15_a_blind_rst_is_ignored_and_one_in_place_ends_the_flow() {
    let mut w = World::open(99, 499);
    w.c(100, 500, b"a 0\n");
    w.client(RST, 999_999, 0, b"");
    w.c(104, 500, b"b 0\n");
    assert_eq!(w.count(Anomaly::BadControl), 1);
    w.client(RST, 108, 0, b"reason of death");
    w.client(RST, 108, 0, b"");
    w.s(500, 108, b"late 0\n");
    w.heard(&[">a", ">b", ">close", "<close"]);
    w.close_all();
    assert_eq!(w.recorder.closes, 2);
    w.clean();
}

#[test]
fn trap15_a_rst_behind_held_bytes_delivers_them_first() {
    let mut w = World::open(99, 499);
    w.c(104, 500, b"b 0\n");
    w.client(RST, 108, 0, b"");
    w.heard(&[">gap 4", ">b", ">close", "<close"]);
    w.clean();
}

#[test]
fn trap15_a_refused_connection_ends() {
    let mut w = World::new();
    w.client(SYN, 99, 0, b"");
    w.server(RST.and(ACK), 0, 100, b"");
    w.heard(&[">close", "<close"]);
}

#[test]
fn trap15_fin_with_data_repeated_and_followed() {
    let mut w = World::open(99, 499);
    w.client(FIN_ACK, 104, 500, b"b 0\n"); // early
    w.c(100, 500, b"a 0\n");
    w.client(FIN_ACK, 104, 500, b"b 0\n");
    w.client(FIN_ACK, 108, 500, b"");
    w.c(109, 500, b"evil 0\n");
    w.s(500, 109, b"c 0\n"); // the other half goes on
    w.server(FIN_ACK, 504, 109, b"");
    w.c(109, 505, b"");
    w.heard(&[">a", ">b", ">close", "<c", "<close"]);
    assert_eq!((w.count(Anomaly::Gap), w.count(Anomaly::OutOfWindow)), (0, 1));
    w.close_all();
    assert_eq!(w.recorder.closes, 2);
}

#[test]
fn trap16_a_snapped_tail_is_free_in_a_body_and_a_gap_elsewhere() {
    let mut w = World::open(99, 499);
    w.snapped(CLIENT, ACK, 100, 500, b"a 1000\nxxxx", 996);
    w.c(1107, 500, b"b 0\n");
    w.heard(&[">a", ">b"]);
    assert_eq!((w.count(Anomaly::Gap), w.count(Anomaly::BodyHoleBytes)), (0, 996));
    w.snapped(CLIENT, ACK, 1111, 500, b"c 0\ntru", 20);
    assert_eq!(w.recorder.log[2..], [">c", ">gap 20"]);
    assert_eq!(w.count(Anomaly::UnparsedBytes), 3);
    // Held and then delivered: the same.
    w.c(1138, 500, b"d 0\n");
    w.snapped(CLIENT, ACK, 1146, 500, b"f 500\n", 500);
    w.c(1652, 500, b"g 0\n");
    w.c(1142, 500, b"e 0\n");
    assert_eq!(w.recorder.log[4..], [">d", ">e", ">f", ">g"]);
    w.clean();
}

#[test]
fn trap17_a_body_longer_than_any_value_is_refused() {
    for length in ["1073807361", "4294967295", "18446744073709551615"] {
        let mut w = World::open(99, 499);
        w.c(100, 500, format!("a {length}\n").as_bytes());
        assert_eq!(w.recorder.log, [">a", ">gap 0"]);
        assert_eq!(w.count(Anomaly::Resynchronised), 1);
    }
    let mut w = World::open(99, 499);
    w.c(100, 500, b"a 1073741824\n");
    w.heard(&[">a"]);
    w.c(113 + (60 << 20), 500, b"x");
    assert_eq!(w.count(Anomaly::BodyHoleBytes), 60 << 20);
}

#[test]
fn trap18_a_line_without_end_is_given_up_at_the_size_of_a_carry() {
    for piece in [1usize, 7, 1000, 2048, 5000] {
        let mut w = World::open(99, 499);
        let mut seq = 100;
        while seq < 10_000 {
            w.c(seq, 500, &vec![b'a'; piece]);
            assert!(w.table.occupancy().carries <= 1);
            seq += piece as u32;
        }
        w.c(seq, 500, b"b 0\n");
        w.heard(&[">gap 0", ">b"]);
        assert_eq!(w.count(Anomaly::LineTooLong), 1);
        w.clean();
    }
}

#[test]
fn trap19_an_out_of_order_flood_stays_within_its_limits() {
    for length in [1u32, 4, 1448, 65_000] {
        let mut w = World::open(99, 499);
        let payload = vec![b'a'; length as usize];
        for number in 0..5000u32 {
            w.c(200 + number * (length + 1), 500, &payload);
            let Occupancy { held_segments, held_blocks, .. } = w.table.occupancy();
            assert!(held_segments <= 32 && held_blocks <= 256);
        }
        w.close_all();
        w.clean();
    }
}

#[test]
fn trap19_a_full_pool_declares_the_gap_and_goes_on() {
    let mut w = World::with(ReassemblyLimits { held_segments_max: 2, ..limits() });
    w.handshake(99, 499);
    w.c(104, 500, b"b 0\n");
    w.c(108, 500, b"c 0\n");
    w.c(112, 500, b"d 0\n");
    w.heard(&[">gap 4", ">b", ">c", ">d"]);
    assert_eq!(w.count(Anomaly::SegmentShed), 1);
    w.clean();
}

#[test]
fn trap21_a_client_on_the_servers_port_is_told_apart_by_its_syn() {
    let both = |_: &Endpoint, _: &Endpoint| Orientation {
        source: Some(TargetId(0)),
        destination: Some(TargetId(0)),
    };
    for from_syn in [true, false] {
        let mut w = World::new();
        let mut servers = Vec::new();
        let mut send = |source: Endpoint, destination, flags, seq, ack| {
            let segment = Segment {
                timestamp: w.now,
                source,
                destination,
                seq,
                ack,
                flags,
                payload: b"",
                payload_wire_bytes: 0,
            };
            let mut emit = |tuple: &FlowTuple, _: &mut Toy, _: StreamEvent<'_>| {
                servers.push(tuple.server);
                Demand::used(0)
            };
            w.table.handle_segment(&segment, both, &mut w.tallies, &mut emit);
        };
        if from_syn {
            send(CLIENT, SERVER, SYN, 99, 0);
        } else {
            send(SERVER, CLIENT, SYN_ACK, 499, 100);
        }
        send(CLIENT, SERVER, ACK.and(TcpFlags::FIN), 100, 500);
        assert_eq!(servers, [SERVER]);
        assert_eq!(w.tallies[0].packets, if from_syn { [2, 0] } else { [1, 1] });
    }
}

#[test]
fn trap23_urgent_data_is_inline() {
    let mut w = World::open(99, 499);
    w.client(ACK.and(TcpFlags::URG), 100, 500, b"a 0\n");
    w.heard(&[">a"]);
}

#[test]
fn trap24_numbers_from_far_away_are_ignored_until_they_are_many() {
    let mut w = World::open(99, 499);
    w.c(100, 500, b"a 0\n");
    w.c(104 + (65 << 20), 500, b"z 0\n");
    w.c(104u32.wrapping_sub(65 << 20), 500, b"z 0\n");
    w.c(104, 500, b"b 0\n");
    w.heard(&[">a", ">b"]);
    assert_eq!(w.count(Anomaly::OutOfWindow), 2);
    // A burst of lost packets was longer than the window: the stream must not be deaf for ever.
    for number in 0..20 {
        w.c(500_000_000 + 4 * number, 500, b"c 0\n");
    }
    assert_eq!(w.recorder.log[2], ">gap 0");
    assert_eq!(w.recorder.log.iter().filter(|line| *line == ">c").count(), 5);
    w.clean();
}

#[test]
fn trap26_a_giant_segment_is_held_whole() {
    let mut body = b"b 65000\n".to_vec();
    body.extend_from_slice(&[b'x'; 65_000]);
    body.extend_from_slice(b"c 0\n");
    let mut w = World::open(99, 499);
    w.c(104, 500, &body);
    assert_eq!(w.table.occupancy().held_blocks, 32);
    w.c(100, 500, b"a 0\n");
    w.heard(&[">a", ">b", ">c"]);
    w.clean();
}

#[test]
fn trap28_every_packet_twice_counts_once() {
    let mut w = World::new();
    for _ in 0..2 {
        w.client(SYN, 99, 0, b"");
    }
    for _ in 0..2 {
        w.server(SYN_ACK, 499, 100, b"");
    }
    for number in 0..10 {
        for _ in 0..2 {
            w.c(100 + 4 * number, 500 + 4 * number, b"a 0\n");
        }
        for _ in 0..2 {
            w.s(500 + 4 * number, 104 + 4 * number, b"b 0\n");
        }
    }
    assert_eq!(w.recorder.log.len(), 20);
    assert_eq!(w.count(Anomaly::DuplicateSegment), 20);
    assert_eq!(w.tallies[0].payload_bytes, [40, 40]);
    w.clean();
}

#[test]
fn trap31_a_full_table_evicts_the_least_recently_used_and_leaks_nothing() {
    let mut w = World::with(ReassemblyLimits { flows_max: 8, ..limits() });
    for port in 1..=100u16 {
        for (seq, payload) in [(100u32, &b"a 0\nunfin"[..]), (200, b"b 0\n")] {
            w.now = w.now.plus(Duration::from_micros(1));
            w.segment(&Segment {
                timestamp: w.now,
                source: Endpoint::from_ipv4([10, 0, 0, 3], port),
                destination: SERVER,
                seq,
                ack: 500,
                flags: ACK,
                payload,
                payload_wire_bytes: payload.len() as u32,
            });
        }
        assert!(w.table.occupancy().flows <= 8);
        assert!(w.table.occupancy().held_segments <= 8);
    }
    assert_eq!(w.count(Anomaly::FlowShed), 92);
    w.close_all();
    assert_eq!(w.recorder.closes, 200);
    w.clean();
}

#[test]
fn a_table_takes_all_the_flows_that_it_has_slots_for() {
    let flows = 45_000;
    let mut w = World::with(ReassemblyLimits { flows_max: flows, ..limits() });
    for number in 0..flows as u32 {
        let [_, _, high, low] = number.to_be_bytes();
        w.segment(&Segment {
            timestamp: w.now,
            source: Endpoint::from_ipv4([172, 16, high, low], 5000),
            destination: SERVER,
            seq: number,
            ack: 0,
            flags: SYN,
            payload: b"",
            payload_wire_bytes: 0,
        });
    }
    assert!(w.count(Anomaly::FlowShed) <= 1, "{}", w.count(Anomaly::FlowShed));
}

#[test]
fn trap31_scanners_are_evicted_before_flows_with_payload() {
    let mut w = World::with(ReassemblyLimits { flows_max: 8, ..limits() });
    w.handshake(99, 499);
    w.c(100, 500, b"a 0\n");
    for port in 1..=1000u16 {
        w.now = w.now.plus(Duration::from_micros(1));
        w.segment(&Segment {
            timestamp: w.now,
            source: Endpoint::from_ipv4([10, 0, 0, 3], port),
            destination: SERVER,
            seq: 1,
            ack: 0,
            flags: SYN,
            payload: b"",
            payload_wire_bytes: 0,
        });
    }
    w.c(104, 500, b"b 0\n");
    assert_eq!(
        w.recorder.log.iter().filter(|line| !line.ends_with("close")).collect::<Vec<_>>(),
        [">a", ">b"]
    );
}

#[test]
fn flows_expire_by_packet_time_and_pooled_connections_do_not() {
    let mut w = World::open(99, 499);
    w.c(100, 500, b"a 0\n");
    for _ in 0..50 {
        w.pass(Duration::from_secs(60));
    }
    w.c(104, 500, b"b 0\n");
    w.heard(&[">a", ">b"]);
    for _ in 0..70 {
        w.pass(Duration::from_secs(60));
    }
    w.heard(&[">a", ">b", ">close", "<close"]);
    assert_eq!(w.table.occupancy().flows, 0);
    // Without ticks in between, a look-up sees for itself.
    w.handshake(99, 499);
    w.c(100, 500, b"c 0\n");
    w.now = w.now.plus(Duration::from_secs(4000));
    w.c(104, 500, b"d 0\n");
    assert_eq!(w.recorder.log[4..], [">c", ">close", "<close", ">gap 0", "<gap 0", ">d"]);
}

#[test]
fn causal_order_holds_an_answer_until_its_request_and_resolves_a_cycle_at_once() {
    let mut w = World::open(99, 499);
    w.s(500, 104, b"b 0\n");
    w.s(504, 108, b"d 0\n");
    w.c(104, 504, b"c 0\n");
    w.heard(&[]);
    w.c(100, 500, b"a 0\n");
    w.heard(&[">a", "<b", ">c", "<d"]);
    // The answer was captured only as a retransmission, whose acknowledgement is newer than the next request.
    w.c(112, 512, b"f 0\n");
    w.heard(&[">a", "<b", ">c", "<d"]);
    w.c(108, 508, b"e 0\n");
    w.s(508, 116, b"g 0\n");
    w.heard(&[">a", "<b", ">c", "<d", ">e", ">f", "<g"]);
    assert_eq!(w.count(Anomaly::Gap), 0);
    w.clean();
}

#[test]
fn a_lost_client_stream_keeps_the_answers_to_what_was_seen_before() {
    let mut w = World::open(99, 499);
    w.recorder.strict = true; // c has not been sent by an idle client, but only the server's silence tells
    w.c(100, 500, b"a 0\n");
    w.c(108, 500, b"c 0\n");
    w.s(500, 108, b"");
    w.pass(HOLD);
    w.s(500, 104, b"b 0\n"); // had received a only
    w.s(504, 112, b"d 0\n");
    w.heard(&[">a", ">gap 4", "<b", "<gap 0"]);
    w.clean();
}

#[test]
fn a_lost_server_stream_leaves_the_client_framed_and_anchors_at_an_idle_request() {
    let mut w = World::open(99, 499);
    w.c(100, 500, b"a 0\n");
    w.c(104, 504, b"c 0\n"); // the answer 500..504 was not captured
    w.pass(HOLD);
    w.heard(&[">a", "<gap 4", ">c"]);
    w.s(504, 108, b"d 0\n");
    w.c(108, 508, b"e 0\n");
    w.heard(&[">a", "<gap 4", ">c", "<d", ">e"]);
    w.clean();
}

#[test]
fn an_anchor_drops_what_lies_before_it_and_keeps_what_lies_behind() {
    let mut w = World::open(99, 499);
    w.s(500, 104, b"b 0\n"); // the request 100..104 is lost
    w.s(508, 108, b"d 0\n"); // 504..508 is lost as well; this answers c
    w.c(104, 508, b"c 0\n");
    w.pass(HOLD);
    w.pass(HOLD);
    assert_eq!(w.recorder.log.last().unwrap(), "<d");
    assert!(w.recorder.log.contains(&">c".to_owned()));
    w.clean();
}

#[test]
fn a_body_whose_head_was_framed_survives_the_clients_gap() {
    let mut w = World::open(99, 499);
    w.c(100, 500, b"a 0\n");
    w.s(500, 104, b"b 3000\n");
    w.s(507, 108, &[b'x'; 1000]); // acknowledges a request that was lost, and is free
    w.heard(&[">a", "<b"]);
    w.c(112, 500, b"e 0\n");
    w.s(1507, 112, &[b'x'; 1000]);
    w.pass(HOLD);
    w.heard(&[">a", "<b", ">gap 8"]);
    w.s(2507, 112, &[b'x'; 1000]);
    w.c(116, 3507, b"f 0\n");
    w.s(3507, 120, b"g 0\n");
    w.heard(&[">a", "<b", ">gap 8", ">f", "<g"]);
    w.clean();
}

#[test]
fn nobody_waits_for_a_body_that_will_be_skipped() {
    let mut w = World::open(99, 499);
    w.c(100, 500, b"a 0\n");
    w.s(500, 104, b"b 3000\n");
    w.s(507, 104, &[b'x'; 1000]); // the rest was not captured
    w.c(104, 3507, b"c 0\n");
    w.heard(&[">a", "<b", ">c"]);
    w.s(3507, 108, b"d 0\n");
    w.heard(&[">a", "<b", ">c", "<d"]);
    w.clean();
}

#[test]
fn a_client_is_not_idle_in_the_midst_of_an_answer() {
    for (answer, acknowledged) in [(&b"b 3"[..], 503), (b"b 3000\nxxxx", 511)] {
        let mut w = World::open(99, 499);
        w.s(500, 100, answer);
        w.c(100, acknowledged, b"c 0\n");
        assert_eq!(w.recorder.offers.last(), Some(&(true, false, false)));
    }
}

#[test]
fn a_message_behind_a_body_in_its_segment_is_no_anchor() {
    let mut w = World::open(99, 499);
    w.c(100, 500, b"a 3\n");
    w.c(104, 500, b"xyzb 0\n");
    w.c(111, 500, b"c");
    w.c(112, 500, b" 0\nd 0\n");
    w.heard(&[">a", ">b", ">c", ">d"]);
    let starts: Vec<_> = w.recorder.offers.iter().map(|offer| offer.0).collect();
    assert_eq!(starts, [true, false, true, false]);
    assert!(w.recorder.offers.iter().all(|&(start, idle, _)| idle == start));
}

#[test]
fn the_clients_loss_is_told_to_the_server_stream_once() {
    let mut w = World::open(99, 499);
    w.recorder.credulous = true;
    w.c(100, 500, b"a 0\n");
    w.c(108, 500, b"c 0\n");
    w.s(500, 104, b"");
    w.s(504, 108, b"d 0\n"); // 500..504 was not captured either; c was sent before this came
    w.client(ACK, 112, 508, b"");
    w.pass(HOLD);
    w.s(508, 112, b"e 0\n");
    w.s(512, 112, b"f 0\n");
    w.heard(&[">a", ">gap 4", ">c", "<gap 4", "<d", "<e", "<f"]);
    w.clean();
}

#[test]
fn patience_is_not_renewed_by_other_packets() {
    let mut w = World::open(99, 499);
    w.s(500, 104, b"b 0\n");
    for _ in 0..3 {
        w.now = w.now.plus(Duration::from_millis(1));
        w.client(ACK, 100, 500, b"");
    }
    w.heard(&["<gap 0"]);
}

#[test]
fn a_long_segment_that_nobody_can_read_is_offered_once() {
    let mut w = World::open(99, 499);
    w.c(104, 500, &[b'X'; 9000]);
    w.s(500, 104, b"");
    w.pass(HOLD);
    assert_eq!(w.recorder.offers.len(), 1);
    assert_eq!(w.count(Anomaly::UnparsedBytes), 9000);
    w.clean();
}

#[test]
fn a_fin_on_the_copy_of_a_held_segment_counts() {
    let mut w = World::open(99, 499);
    w.c(104, 500, b"b 0\n");
    w.client(FIN_ACK, 104, 500, b"b 0\n");
    w.client(FIN_ACK, 104, 500, b"b 0\n");
    w.c(100, 500, b"a 0\n");
    w.heard(&[">a", ">b", ">close"]);
    w.clean();
}

#[test]
fn a_side_that_is_not_captured_does_not_leave_the_window() {
    let mut w = World::new();
    for number in 0..8u32 {
        let payload = if number < 7 { b"XXXX" } else { b"a 0\n" };
        w.c(1000 + 4 * number, 500 + number * (20 << 20), payload);
    }
    assert_eq!(w.recorder.places, [(28, 7 * (20 << 20))]);
}

#[test]
fn trap14_a_syn_on_a_closing_connection_needs_no_confirmation() {
    let mut w = World::open(99, 499);
    w.client(FIN_ACK, 100, 500, b"a 0\n");
    w.client(SYN, 5_000_000, 0, b"");
    w.heard(&[">a", ">close", "<close"]);
    // Nor on one that has been quiet for long.
    let mut w = World::open(99, 499);
    w.c(100, 500, b"a 0\n");
    w.pass(Duration::from_secs(61));
    w.client(SYN, 5_000_000, 0, b"");
    w.heard(&[">a", ">close", "<close"]);
}

#[test]
fn trap14_a_candidate_is_forgotten_when_the_client_goes_on() {
    let mut w = World::open(99, 499);
    w.c(100, 500, b"a 0\n");
    w.client(SYN, 77_000_000, 0, b"");
    w.c(104, 500, b"b 0\n");
    w.server(SYN_ACK, 88_000_000, 77_000_001, b"");
    w.c(108, 500, b"c 0\n");
    w.heard(&[">a", ">b", ">c"]);
}

#[test]
fn trap15_a_rst_where_the_peer_has_got_to_is_in_place() {
    let mut w = World::open(99, 499);
    w.c(100, 500, b"a 0\n");
    w.s(500, 108, b""); // 104..108 was not captured
    w.client(RST, 108, 0, b"");
    w.heard(&[">a", ">close", "<close"]);
}

#[test]
fn packets_of_a_closed_flow_do_not_keep_it() {
    let mut w = World::open(99, 499);
    w.client(FIN_ACK, 100, 500, b"");
    w.server(FIN_ACK, 500, 101, b"");
    for _ in 0..5 {
        w.pass(Duration::from_secs(4));
        w.client(ACK, 101, 501, b"");
    }
    assert_eq!(w.table.occupancy().flows, 0);
}

/// A stream of toy messages, its segments in some order, and what the other side acknowledges on the way.
fn render(messages: &[(u8, u16)]) -> (Vec<u8>, Vec<String>) {
    let (mut bytes, mut names) = (Vec::new(), Vec::new());
    for &(name, body) in messages {
        let name = format!("m{name}");
        bytes.extend_from_slice(format!("{name} {body}\n").as_bytes());
        bytes.extend((0..body).map(|at| b"\nfake 0\n"[usize::from(at) % 8]));
        names.push(format!(">{name}"));
    }
    (bytes, names)
}

fn sequence() -> impl Strategy<Value = u32> {
    prop_oneof![any::<u32>(), (0u32..30_000).prop_map(|back| 0u32.wrapping_sub(back))]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// Trap 3: any segmentation, duplicates, overlaps and reordering give the original stream.
    #[test]
    fn trap03_any_order_of_segments_gives_the_original_stream(
        messages in proptest::collection::vec((any::<u8>(), prop_oneof![Just(0), 0u16..5000]), 1..20),
        isn in sequence(),
        cuts in proptest::collection::vec(1usize..1448, 1..40),
        swaps in proptest::collection::vec((0usize..200, 1usize..6), 0..30),
        copies in proptest::collection::vec((0usize..200, 0usize..300, 0usize..200), 0..15),
        one_by_one in any::<bool>(),
    ) {
        let (bytes, names) = render(&messages);
        let mut segments = Vec::new();
        let mut at = 0;
        for cut in cuts.iter().cycle() {
            if at == bytes.len() { break; }
            let end = (at + cut).min(bytes.len());
            segments.push((at, end));
            at = end;
        }
        for (which, back, place) in copies {
            let (start, end) = segments[which % segments.len()];
            let place = place % (segments.len() + 1);
            segments.insert(place, (start.saturating_sub(back), end));
        }
        let count = segments.len();
        for (which, step) in swaps {
            segments.swap(which % count, (which % count + step).min(count - 1));
        }
        let mut w = World::open(isn, 499);
        w.recorder.one_by_one = one_by_one;
        let first = isn.wrapping_add(1);
        for (start, end) in segments {
            w.c(first.wrapping_add(start as u32), 500, &bytes[start..end]);
        }
        prop_assert_eq!(&w.recorder.log, &names);
        prop_assert_eq!(w.tallies[0].payload_bytes[0] , bytes.len() as u64);
        w.clean();
    }

    /// Two directions that answer each other, each segment reordered across both: the log is the causal order.
    #[test]
    fn the_causal_rule_restores_the_order_of_a_conversation(
        rounds in 1u32..40, isn in sequence(), swaps in proptest::collection::vec((0usize..200, 1usize..4), 0..30),
        body in 0u32..3000,
    ) {
        let head = format!("b {body}\n");
        let answer: Vec<u8> = head.bytes().chain(std::iter::repeat_n(b'x', body as usize)).collect();
        let length = answer.len() as u32;
        let mut segments: Vec<(bool, u32)> = (0..rounds).flat_map(|round| [(true, round), (false, round)]).collect();
        let count = segments.len();
        for (which, step) in swaps {
            segments.swap(which % count, (which % count + step).min(count - 1));
        }
        let mut w = World::open(isn, isn);
        let first = isn.wrapping_add(1);
        for (to_server, round) in segments {
            let (client, server) = (first.wrapping_add(4 * round), first.wrapping_add(length * round));
            if to_server {
                w.c(client, server, b"a 0\n");
            } else {
                w.s(server, client.wrapping_add(4), &answer);
            }
        }
        let expected: Vec<&str> = (0..rounds).flat_map(|_| [">a", "<b"]).collect();
        prop_assert_eq!(&w.recorder.log, &expected);
        prop_assert_eq!(w.count(Anomaly::Gap), 0);
        w.clean();
    }

    /// Loss in both directions: what is heard is heard in order, nothing is invented, and the identity holds.
    #[test]
    fn loss_invents_nothing_and_the_identity_holds(
        lost in proptest::collection::vec(any::<bool>(), 60..120), isn in sequence(), strict in any::<bool>(),
    ) {
        let mut w = World::open(isn, 499);
        w.recorder.strict = strict;
        let (mut client, mut server) = (isn.wrapping_add(1), 500u32);
        for (round, lost) in lost.chunks(4).enumerate() {
            let request = format!("q{round} 0\n");
            let answer = format!("q{round} 10\n0123456789");
            if !lost[0] { w.c(client, server, request.as_bytes()); }
            client = client.wrapping_add(request.len() as u32);
            if !lost.get(1).copied().unwrap_or(false) { w.s(server, client, answer.as_bytes()); }
            server = server.wrapping_add(answer.len() as u32);
            w.now = w.now.plus(Duration::from_micros(700));
        }
        w.close_all();
        // An answer that was framed follows its own request, never another.
        let mut asked = String::new();
        for line in &w.recorder.log {
            if let Some(name) = line.strip_prefix(">q") {
                asked = name.to_owned();
            } else if let Some(name) = line.strip_prefix("<q") {
                prop_assert_eq!(name, &asked, "log {:?}", w.recorder.log);
            }
        }
        prop_assert_eq!(w.recorder.closes, 2);
        w.clean();
    }

    /// Traps 20, 22, 33: garbage in any shape neither panics nor leaks.
    #[test]
    fn trap20_garbage_neither_panics_nor_leaks(
        segments in proptest::collection::vec(
            (any::<bool>(), any::<u8>(), any::<u32>(), any::<u32>(), 0usize..400, 0u32..60, any::<bool>(), 1u16..12),
            0..300),
        text in proptest::collection::vec(prop_oneof![Just(b'a'), Just(b' '), Just(b'0'), Just(b'3'), Just(b'\n'), any::<u8>()], 400),
        hold_ms in 0u64..3,
    ) {
        let mut w = World::with(ReassemblyLimits {
            flows_max: 8, held_segments_max: 24, held_blocks_max: 24, carries_max: 4,
            hold: Duration::from_millis(hold_ms), ..limits()
        });
        let mut positions = [[0u32; 2]; 12];
        for (from_client, flags, seq, ack, length, cut, near, port) in segments {
            let own = usize::from(!from_client);
            let place = &mut positions[usize::from(port)];
            let seq = if near { place[own].wrapping_add(seq % 2000).wrapping_sub(500) } else { seq };
            let ack = if near { place[1 - own].wrapping_add(ack % 2000).wrapping_sub(500) } else { ack };
            let client = Endpoint::from_ipv4([10, 0, 0, 9], port);
            w.now = w.now.plus(Duration::from_micros(u64::from(cut) * 20));
            let payload = &text[..length];
            w.segment(&Segment {
                timestamp: w.now,
                source: if from_client { client } else { SERVER },
                destination: if from_client { SERVER } else { client },
                seq, ack,
                flags: TcpFlags(if near { flags & 0x37 | 0x10 } else { flags & 0x3f }),
                payload,
                payload_wire_bytes: match cut { 0 => u32::MAX, 51.. => length as u32 + cut, _ => length as u32 },
            });
            place[own] = seq.wrapping_add(length as u32);
        }
        w.close_all();
        prop_assert_eq!(w.table.occupancy(), Occupancy::default());
        prop_assert_eq!(w.recorder.closes % 2, 0);
    }

    /// The table against an ordered map: with room for all, every flow keeps its own state.
    #[test]
    fn the_table_keeps_flows_apart_as_a_map_does(
        steps in proptest::collection::vec((1u16..40, any::<bool>()), 1..300),
    ) {
        let mut table: FlowTable<u32> = FlowTable::new(ReassemblyLimits { flows_max: 64, ..limits() });
        let mut tallies = vec![TargetTally::default()];
        let mut twin = std::collections::BTreeMap::new();
        let now = Timestamp::from_parts(1, 0);
        for (port, from_client) in steps {
            let client = Endpoint::from_ipv4([10, 0, 0, 9], port);
            let (seen, sent) = twin.entry(port).or_insert((0u32, [0u32; 2]));
            let own = usize::from(!from_client);
            let mut heard = None;
            let mut emit = |tuple: &FlowTuple, state: &mut u32, event: StreamEvent<'_>| {
                assert_eq!((tuple.client, tuple.server), (client, SERVER));
                if let StreamEvent::Bytes(_) = event { *state += 1; heard = Some(*state); }
                Demand::used(1)
            };
            table.handle_segment(&Segment {
                timestamp: now,
                source: if from_client { client } else { SERVER },
                destination: if from_client { SERVER } else { client },
                seq: sent[own], ack: sent[1 - own], flags: ACK, payload: b"x", payload_wire_bytes: 1,
            }, classify, &mut tallies, &mut emit);
            *seen += 1;
            sent[own] += 1;
            prop_assert_eq!(heard, Some(*seen));
        }
        prop_assert_eq!(table.occupancy().flows, twin.len());
        prop_assert_eq!(tallies[0].anomalies.of(Anomaly::MidStream), twin.len() as u64);
    }
}

//! Named tests for the traps of UDP, and the datagram table on random input.

use super::datagram::DatagramTable;
use super::flow::{Occupancy, Orientation};
use super::limits::ReassemblyLimits;
use super::toy_parser::{Recorder, Toy};
use super::{StreamEvent, TargetTally};
use crate::anomaly::Anomaly;
use crate::capture::Datagram;
use crate::model::{Endpoint, FlowTuple, TargetId, Timestamp};
use proptest::prelude::*;
use std::time::Duration;

const SERVER: Endpoint = Endpoint::from_ipv4([10, 0, 0, 1], 11211);
const CLIENT: Endpoint = Endpoint::from_ipv4([10, 0, 0, 2], 40_000);
const FULL: usize = 1392;

fn limits() -> ReassemblyLimits {
    ReassemblyLimits {
        exchanges_max: 64,
        held_datagrams_max: 32,
        datagram_carries_max: 8,
        hold: Duration::from_millis(2),
        ..ReassemblyLimits::default()
    }
}

fn classify(source: &Endpoint, destination: &Endpoint) -> Orientation {
    let target = |endpoint: &Endpoint| (endpoint.port() == 11211).then_some(TargetId(0));
    Orientation { source: target(source), destination: target(destination) }
}

struct World {
    table: DatagramTable<Toy>,
    recorder: Recorder,
    tallies: Vec<TargetTally>,
    now: Timestamp,
    identity: u64,
}

impl World {
    fn with(limits: ReassemblyLimits) -> World {
        World {
            table: DatagramTable::new(limits),
            recorder: Recorder::default(),
            tallies: vec![TargetTally::default()],
            now: Timestamp::from_parts(1_700_000_000, 0),
            identity: 0,
        }
    }

    fn new() -> World {
        World::with(limits())
    }

    fn datagram(&mut self, source: Endpoint, destination: Endpoint, payload: &[u8], cut: u32) {
        self.now = self.now.plus(Duration::from_micros(10));
        let recorder = &mut self.recorder;
        let mut emit = |_: &FlowTuple, toy: &mut Toy, event: StreamEvent<'_>| recorder.hear(toy, event);
        let datagram = Datagram {
            timestamp: self.now,
            source,
            destination,
            payload,
            payload_wire_bytes: payload.len() as u32 + cut,
            identity: self.identity,
        };
        self.table.handle_datagram(&datagram, classify, &mut self.tallies, &mut emit);
    }

    fn framed(id: u16, number: u16, total: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for field in [id, number, total, 0] {
            bytes.extend_from_slice(&field.to_be_bytes());
        }
        bytes.extend_from_slice(payload);
        bytes
    }

    fn ask(&mut self, id: u16, payload: &[u8]) {
        self.identity += 1;
        self.datagram(CLIENT, SERVER, &World::framed(id, 0, 1, payload), 0);
    }

    fn answer(&mut self, id: u16, number: u16, total: u16, payload: &[u8]) {
        self.identity += 1;
        self.datagram(SERVER, CLIENT, &World::framed(id, number, total, payload), 0);
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
        let Recorder { used, skipped, .. } = &self.recorder;
        let read: u64 = used.iter().chain(skipped).sum();
        let counted: u64 = self.tallies[0].payload_bytes.iter().sum();
        assert!(counted <= read + self.count(Anomaly::UnparsedBytes));
    }

    fn count(&self, anomaly: Anomaly) -> u64 {
        self.tallies[0].anomalies.of(anomaly)
    }

    #[track_caller]
    fn heard(&self, expected: &[&str]) {
        assert_eq!(self.recorder.log, expected);
    }
}

/// A message of one head and a body, cut as memcached cuts it.
fn message(name: &str, body: usize) -> Vec<Vec<u8>> {
    let mut bytes = format!("{name} {body}\n").into_bytes();
    bytes.extend((0..body).map(|at| b"\nfake 0\n"[at % 8]));
    bytes.chunks(FULL).map(<[u8]>::to_vec).collect()
}

#[test]
fn a_request_and_the_messages_of_its_response() {
    let mut w = World::new();
    w.ask(7, b"a 0\nb 0\n");
    w.answer(7, 0, 1, b"c 3\nxyz");
    w.answer(7, 0, 0, b""); // a miss in the midst
    w.answer(7, 0, 1, b"d 0\n");
    w.heard(&[">a", ">b", "<c", "<d"]);
    assert_eq!(w.tallies[0].payload_bytes, [8, 11]);
    assert_eq!((w.tallies[0].packets, w.tallies[0].payload_packets), ([1, 3], [1, 2]));
    w.close_all();
    w.heard(&[">a", ">b", "<c", "<d", ">close", "<close"]);
}

#[test]
fn trap34_frame_headers_that_memcached_refuses() {
    let mut w = World::new();
    w.datagram(CLIENT, SERVER, &World::framed(1, 0, 2, b"a 0\n"), 0);
    w.answer(1, 1, 1, b"b 0\n");
    w.answer(1, 5, 2, b"b 0\n");
    w.answer(1, 0, 0, b"b 0\n");
    w.datagram(SERVER, CLIENT, b"short", 0);
    assert_eq!(w.count(Anomaly::DatagramMalformed), 5);
    w.datagram(CLIENT, SERVER, &World::framed(1, 0, 1, b""), 0);
    w.datagram(CLIENT, SERVER, b"", 0);
    assert_eq!(w.count(Anomaly::DatagramMalformed), 6);
    w.answer(1, 65_534, 65_535, b"b 0\n"); // legal, and costs nothing
    assert_eq!(w.table.occupancy().held_segments, 1);
    w.close_all();
    w.heard(&[&format!("<gap {}", 65_534u64 * 1392), ">close", "<close"]);
}

#[test]
fn trap34_the_newest_request_with_an_id_wins() {
    let mut w = World::new();
    w.ask(7, b"a 0\n");
    w.ask(7, b"b 0\n");
    w.answer(7, 0, 1, b"c 0\n");
    w.heard(&[">a", ">close", "<close", ">b", "<c"]);
}

#[test]
fn a_response_to_an_unseen_request_is_lent() {
    let mut w = World::new();
    w.answer(7, 0, 1, b"c 0\n");
    w.heard(&["<c"]);
}

#[test]
fn datagrams_of_a_message_are_put_in_order() {
    let parts = message("b", 5000);
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [0, 2, 1, 3], [1, 0, 3, 2]] {
        let mut w = World::new();
        w.ask(7, b"a 0\n");
        for number in order {
            w.answer(7, number as u16, 4, &parts[number]);
        }
        w.answer(7, 0, 1, b"c 0\n");
        w.heard(&[">a", "<b", "<c"]);
        assert_eq!(w.count(Anomaly::Gap) + w.count(Anomaly::BodyHoleBytes), 0, "{order:?}");
        w.close_all();
    }
}

#[test]
fn a_lost_datagram_inside_a_body_is_free() {
    let parts = message("b", 5000);
    let mut w = World::new();
    w.ask(7, b"a 0\n");
    for number in [0, 1, 3] {
        w.answer(7, number as u16, 4, &parts[number]);
    }
    w.pass(Duration::from_millis(3));
    w.answer(7, 0, 1, b"c 0\n");
    w.heard(&[">a", "<b", "<c"]);
    assert_eq!(w.count(Anomaly::BodyHoleBytes), 1392);
    assert_eq!(w.count(Anomaly::Gap), 0);
}

#[test]
fn messages_that_are_mixed_up_are_told_apart_by_their_totals() {
    let (long, short) = (message("b", 4000), message("c", 2000));
    assert_eq!((long.len(), short.len()), (3, 2));
    let mut w = World::new();
    w.answer(7, 0, 3, &long[0]);
    w.answer(7, 1, 2, &short[1]);
    w.answer(7, 1, 3, &long[1]);
    w.answer(7, 2, 3, &long[2]);
    w.answer(7, 0, 2, &short[0]);
    w.answer(7, 0, 1, b"d 0\n");
    w.heard(&["<b", "<c", "<d"]);
    assert_eq!(w.count(Anomaly::Gap) + w.count(Anomaly::BodyHoleBytes) + w.count(Anomaly::UnparsedBytes), 0);
    // A message that has begun is finished, with its hole, before the next.
    let mut w = World::new();
    w.answer(7, 0, 3, &long[0]);
    w.answer(7, 0, 1, b"d 0\n");
    w.answer(7, 2, 3, &long[2]);
    w.pass(Duration::from_millis(3));
    w.heard(&["<b", "<d"]);
    assert_eq!(w.count(Anomaly::BodyHoleBytes), 1392);
}

#[test]
fn a_lost_first_or_last_datagram_is_a_gap() {
    let parts = message("b", 5000);
    let mut w = World::new();
    w.answer(7, 1, 4, &parts[1]);
    w.pass(Duration::from_millis(3));
    w.heard(&["<gap 1392"]);
    let mut w = World::new();
    w.answer(7, 0, 4, &parts[0]);
    w.answer(7, 0, 1, b"c 0\n"); // perhaps only early
    w.heard(&["<b"]);
    w.pass(Duration::from_millis(3));
    w.heard(&["<b", "<gap 0"]);
    assert_eq!(w.count(Anomaly::Gap), 1);
}

#[test]
fn trap28_copies_of_a_datagram_are_dropped_and_repetitions_are_not() {
    let mut w = World::new();
    w.identity = 5;
    let request = World::framed(7, 0, 1, b"a 0\n");
    w.datagram(CLIENT, SERVER, &request, 0);
    w.datagram(CLIENT, SERVER, &request, 0);
    w.heard(&[">a"]);
    assert_eq!(w.count(Anomaly::DuplicateSegment), 1);
    w.pass(Duration::from_millis(5));
    w.datagram(CLIENT, SERVER, &request, 0);
    w.heard(&[">a", ">close", "<close", ">a"]);
}

#[test]
fn trap16_snapped_datagrams() {
    let mut w = World::new();
    w.identity = 1;
    w.datagram(CLIENT, SERVER, &World::framed(7, 0, 1, b"a 500\nxx"), 498);
    w.identity = 2;
    w.datagram(SERVER, CLIENT, &World::framed(7, 0, 1, b"b 0\ntrunc"), 100);
    w.heard(&[">a", "<b", "<gap 100"]);
    assert_eq!(w.count(Anomaly::BodyHoleBytes), 498);
    assert_eq!(w.tallies[0].payload_bytes, [506, 9]);
    w.close_all();
}

#[test]
fn trap21_a_response_between_two_servers_finds_its_request() {
    let proxy = Endpoint::from_ipv4([10, 0, 0, 3], 11211);
    let mut w = World::new();
    w.datagram(proxy, SERVER, &World::framed(7, 0, 1, b"a 0\n"), 0);
    w.identity = 9;
    w.datagram(SERVER, proxy, &World::framed(7, 0, 1, b"b 0\n"), 0);
    w.heard(&[">a", "<b"]);
}

#[test]
fn a_request_that_ends_in_the_midst_is_not_kept() {
    let mut w = World::new();
    w.ask(7, b"a 0\nunfinished");
    assert_eq!(w.table.occupancy().carries, 0);
    assert_eq!(w.count(Anomaly::UnparsedBytes), 10);
    w.answer(7, 0, 1, b"b 0\n");
    w.heard(&[">a", "<b"]);
}

#[test]
fn exchanges_expire_and_a_full_table_pushes_out_the_oldest() {
    let mut w = World::new();
    w.ask(1, b"a 0\n");
    w.answer(1, 0, 1, b"b 0\n");
    w.pass(Duration::from_secs(4));
    assert_eq!(w.table.occupancy().flows, 1);
    for _ in 0..3 {
        w.pass(Duration::from_secs(4));
    }
    assert_eq!(w.table.occupancy().flows, 0);
    for id in 0..1000 {
        w.ask(id, b"a 0\n");
    }
    assert!(w.table.occupancy().flows <= 64);
    assert!(w.count(Anomaly::DatagramShed) >= 936);
    w.close_all();
    assert_eq!(w.recorder.closes, 2 * 1001);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// The messages of a response, each in some order of its datagrams, are heard as they were sent.
    #[test]
    fn any_order_within_messages_gives_the_original_response(
        bodies in proptest::collection::vec(0usize..9000, 1..6), seeds in proptest::collection::vec(any::<prop::sample::Index>(), 64),
    ) {
        let mut w = World::new();
        w.ask(7, b"a 0\n");
        let mut expected = vec![">a".to_owned()];
        let mut seeds = seeds.iter().cycle();
        for (which, body) in bodies.iter().enumerate() {
            expected.push(format!("<m{which}"));
            let parts = message(&format!("m{which}"), *body);
            let mut order: Vec<usize> = (0..parts.len()).collect();
            for at in 0..order.len() {
                let other = seeds.next().unwrap().index(order.len());
                order.swap(at, other);
            }
            for number in order {
                w.answer(7, number as u16, parts.len() as u16, &parts[number]);
            }
        }
        prop_assert_eq!(&w.recorder.log, &expected);
        prop_assert_eq!(w.count(Anomaly::Gap) + w.count(Anomaly::BodyHoleBytes) + w.count(Anomaly::UnparsedBytes), 0);
        w.close_all();
    }

    /// Garbage neither panics nor leaks.
    #[test]
    fn trap20_garbage_neither_panics_nor_leaks(
        datagrams in proptest::collection::vec((any::<bool>(), 0u16..4, 0u16..6, 0u16..6, 0usize..60, 0u32..40, 0u64..9), 0..300),
        text in proptest::collection::vec(prop_oneof![Just(b'a'), Just(b' '), Just(b'9'), Just(b'\n'), any::<u8>()], 60),
    ) {
        let mut w = World::with(ReassemblyLimits {
            exchanges_max: 4, held_datagrams_max: 6, datagram_carries_max: 2, held_datagrams_exchange_max: 4, ..limits()
        });
        for (to_server, id, number, total, length, cut, identity) in datagrams {
            w.identity = identity;
            w.now = w.now.plus(Duration::from_micros(u64::from(cut) * 40));
            let mut payload = World::framed(id, number, total, &text[..length]);
            if cut == 39 { payload.truncate(5); }
            let (source, destination) = if to_server { (CLIENT, SERVER) } else { (SERVER, CLIENT) };
            w.datagram(source, destination, &payload, if cut > 30 { cut } else { 0 });
        }
        w.close_all();
    }
}

//! Workers on packets out of order, without packets, and side by side.

use super::*;
use crate::capture::LinkType;
use crate::collector::snapshot::Snapshot;
use crate::collector::{CollectorOptions, TargetOptions, merge};
use crate::model::TargetId;
use crate::network::Network;
use crate::pipeline::{TargetMap, TargetMatch};
use crate::runtime::clock::IntervalLength;
use crate::runtime::pipelines;
use std::time::Duration;

const PORT: u16 = 11211;

fn at(secs: u64, millis: u32) -> Timestamp {
    Timestamp::from_parts(secs, millis * 1_000_000)
}

/// A worker with intervals of ten seconds, and the reporter's end of its channels.
struct Bench {
    worker: Worker,
    reports: Receiver<ToReporter>,
    buffers: Sender<Vec<TargetHarvest>>,
}

impl Bench {
    fn new(index: usize, when_late: WhenLate, length: IntervalLength) -> Bench {
        let target = TargetMatch { network: Network::Any, port: PORT, tcp: true, udp: true };
        let targets = TargetMap::new(vec![target]);
        let options = TargetOptions { budget_bytes: 1 << 20, servers: true };
        let collector =
            Collector::new(&CollectorOptions { targets: vec![options], ..CollectorOptions::default() })
                .unwrap();
        let harvest = || {
            let harvest = Harvest::new(None, collector.capacity(TargetId(0)));
            vec![TargetHarvest::new(TargetId(0), harvest)]
        };
        let (report_sender, reports) = crossbeam_channel::unbounded();
        let (buffers, buffer_receiver) = crossbeam_channel::unbounded();
        for _ in 0..8 {
            buffers.send(harvest()).unwrap();
        }
        let channels = WorkerChannels { reports: report_sender, buffers: buffer_receiver };
        let clock = IntervalClock::new(length);
        let pipeline = Pipeline::new(targets, pipeline_limits());
        let worker = Worker::new(index, pipeline, collector, clock, when_late, channels);
        Bench { worker, reports, buffers }
    }

    fn of_ten_seconds(when_late: WhenLate) -> Bench {
        Bench::new(0, when_late, IntervalLength::Fixed(Duration::from_secs(10)))
    }

    /// A request for `key` over UDP and its answer 1 ms later, from a client of its own.
    fn ask(&mut self, time: Timestamp, client: u8, key: &str) {
        let value = format!("VALUE {key} 0 1\r\nx\r\nEND\r\n");
        self.datagram(time, client, false, &format!("get {key}\r\n"));
        self.datagram(time.plus(Duration::from_millis(1)), client, true, &value);
    }

    fn datagram(&mut self, timestamp: Timestamp, client: u8, from_server: bool, text: &str) {
        let (server, client) = (([10, 0, 0, 1], PORT), ([10, 0, 1, client], 40_000));
        let (source, destination) = if from_server { (server, client) } else { (client, server) };
        let mut bytes = Vec::new();
        let payload = [&[0, 7, 0, 0, 0, 1, 0, 0], text.as_bytes()].concat();
        etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ipv4(source.0, destination.0, 64)
            .udp(source.1, destination.1)
            .write(&mut bytes, &payload)
            .unwrap();
        let wire_bytes = bytes.len() as u32;
        let packet = Packet { timestamp, link: LinkType::Ethernet, bytes: &bytes, wire_bytes };
        self.worker.handle_packet(&packet, |_| CaptureFigures::default());
    }

    fn advance(&mut self, now: Timestamp) {
        self.worker.advance(now, |_| CaptureFigures::default());
        while self.worker.idle() {}
    }

    /// Ends the run; all reports that were sent.
    fn finish(self) -> Vec<WorkerReport> {
        let Bench { worker, reports, .. } = self;
        worker.finish(None, |_| CaptureFigures::default());
        intervals(&reports).collect()
    }
}

/// What the reporter is told of intervals; nothing else is told here.
fn intervals(reports: &Receiver<ToReporter>) -> impl Iterator<Item = WorkerReport> + '_ {
    reports.try_iter().map(|told| match told {
        ToReporter::Interval(report) => report,
        ToReporter::Change(..) => panic!("nobody changes anything"),
    })
}

/// One target's figures of an interval of some workers, rows in the order of their names.
fn merged(reports: &[&WorkerReport]) -> Snapshot {
    let harvests: Vec<&Harvest> = reports.iter().map(|report| &report.harvests[0].harvest).collect();
    let mut snapshot = merge(&harvests);
    snapshot.keys.sort_by(|a, b| a.key.cmp(&b.key));
    snapshot.clients.sort_by_key(|row| row.client);
    snapshot.sockets.sort_by_key(|row| row.client);
    snapshot
}

fn requests(report: &WorkerReport) -> Vec<(String, u64)> {
    let name = |key: &[u8]| String::from_utf8(key.to_vec()).unwrap();
    merged(&[report]).keys.iter().map(|row| (name(&row.key), row.counters.requests())).collect()
}

fn expected(rows: &[(&str, u64)]) -> Vec<(String, u64)> {
    rows.iter().map(|(key, count)| ((*key).to_string(), *count)).collect()
}

/// A packet that comes late counts in the interval that is open: nothing is lost, and nothing is opened again.
#[test]
fn late_packets_count_in_the_open_interval() {
    let mut bench = Bench::of_ten_seconds(WhenLate::Lengthen);
    bench.ask(at(105, 0), 1, "before");
    bench.ask(at(110, 5), 2, "after");
    // Two rings are read by turns: this one was captured before the boundary.
    bench.ask(at(109, 990), 3, "late");
    bench.ask(at(102, 0), 4, "very_late");
    bench.ask(at(119, 0), 5, "after");
    bench.ask(at(120, 0), 6, "next");
    let reports = bench.finish();
    let spans: Vec<(Timestamp, Timestamp)> =
        reports.iter().map(|report| (report.interval.start, report.interval.end)).collect();
    assert_eq!(spans, [(at(105, 0), at(110, 0)), (at(110, 0), at(120, 0)), (at(120, 0), at(120, 1))]);
    let rows: Vec<_> = reports.iter().map(requests).collect();
    assert_eq!(rows[0], expected(&[("before", 1)]));
    assert_eq!(rows[1], expected(&[("after", 2), ("late", 1), ("very_late", 1)]));
    assert_eq!(rows[2], expected(&[("next", 1)]));
}

/// A request counts where its answer came: in one interval, once.
#[test]
fn an_answer_on_the_other_side_of_a_boundary_counts_once() {
    let mut bench = Bench::of_ten_seconds(WhenLate::Lengthen);
    bench.ask(at(105, 0), 1, "a");
    bench.datagram(at(109, 999), 2, false, "get b\r\n");
    bench.datagram(at(110, 1), 2, true, "END\r\n");
    // And in the order in which two rings may give them.
    bench.datagram(at(119, 999), 3, false, "get c\r\n");
    bench.ask(at(120, 2), 4, "d");
    bench.datagram(at(119, 999), 3, true, "END\r\n");
    let reports = bench.finish();
    let rows: Vec<_> = reports.iter().map(requests).collect();
    assert_eq!(rows, [expected(&[("a", 1)]), expected(&[("b", 1)]), expected(&[("c", 1), ("d", 1)])]);
    let misses: u64 = reports.iter().map(|report| merged(&[report]).totals.counters.misses).sum();
    assert_eq!(misses, 2);
}

#[test]
fn an_idle_worker_closes_on_the_clock() {
    let mut bench = Bench::of_ten_seconds(WhenLate::Lengthen);
    bench.worker.clock.start_at(at(103, 0));
    bench.advance(at(109, 999));
    assert!(bench.reports.is_empty());
    bench.advance(at(110, 0));
    bench.advance(at(130, 1));
    bench.advance(at(130, 2));
    let reports: Vec<WorkerReport> = intervals(&bench.reports).collect();
    let spans: Vec<_> = reports
        .iter()
        .map(|report| (report.interval.start, report.interval.end, report.interval.partial))
        .collect();
    assert_eq!(
        spans,
        [(at(103, 0), at(110, 0), true), (at(110, 0), at(120, 0), false), (at(120, 0), at(130, 0), false)]
    );
    assert!(reports.iter().all(|report| requests(report).is_empty() && !report.last));
}

fn spans(reports: &[WorkerReport]) -> Vec<(Timestamp, Timestamp)> {
    reports.iter().map(|report| (report.interval.start, report.interval.end)).collect()
}

/// A lengthened interval ended where it was to end before, whatever had been counted in it since.
#[test]
fn an_interval_is_lengthened_while_the_reporter_is_late_and_covers_what_it_counts() {
    let mut bench = Bench::of_ten_seconds(WhenLate::Lengthen);
    let taken: Vec<Vec<TargetHarvest>> = bench.worker.buffers.try_iter().collect();
    bench.ask(at(105, 0), 1, "a");
    bench.ask(at(111, 0), 2, "b");
    bench.advance(at(112, 0));
    assert_eq!(bench.worker.clock.open().end, at(112, 0), "a target that goes now is reported up to now");
    bench.ask(at(125, 0), 3, "c");
    assert!(bench.reports.is_empty());
    for buffer in taken {
        bench.buffers.send(buffer).unwrap();
    }
    // Intervals stay aligned: this one ends at the next boundary, and not when the buffer comes.
    bench.ask(at(126, 0), 3, "d");
    bench.ask(at(131, 0), 3, "e");
    let reports = bench.finish();
    assert_eq!(spans(&reports), [(at(105, 0), at(130, 0)), (at(130, 0), at(131, 1))]);
    assert_eq!(requests(&reports[0]), expected(&[("a", 1), ("b", 1), ("c", 1), ("d", 1)]));
    assert_eq!(requests(&reports[1]), expected(&[("e", 1)]));
}

/// A packet after a silence that nobody noticed counted in the first interval of the silence.
#[test]
fn the_interval_of_a_packet_is_open_when_it_is_counted() {
    for when_late in [WhenLate::Lengthen, WhenLate::Wait] {
        for silence in 1..60 {
            let mut bench = Bench::of_ten_seconds(when_late);
            let after = at(105 + silence, 0);
            bench.ask(at(105, 0), 1, "a");
            bench.ask(after, 2, "b");
            let reports = bench.finish();
            let counted: Vec<&WorkerReport> =
                reports.iter().filter(|report| requests(report).iter().any(|(key, _)| key == "b")).collect();
            let [one] = counted[..] else { panic!("counted {} times", counted.len()) };
            assert!(one.interval.start <= after && after < one.interval.end, "{silence}: {:?}", one.interval);
            let spans = spans(&reports);
            assert!(
                when_late == WhenLate::Wait || spans.windows(2).all(|two| two[0].1 == two[1].0),
                "{spans:?}"
            );
        }
    }
}

/// One is asked for its version on one connection of a pool, and the next worker has another; also after it had to begin anew. What the
/// key is hangs on the version.
#[test]
fn workers_share_what_servers_tell_of_their_versions() {
    let mut benches = [(); 2].map(|()| Bench::of_ten_seconds(WhenLate::Wait));
    let targets = benches[0].worker.pipeline.targets().clone();
    for (bench, pipeline) in benches.iter_mut().zip(pipelines(targets, 2)) {
        bench.worker.pipeline = pipeline;
    }
    let [told, other] = &mut benches;
    other.ask(at(105, 0), 1, "a\0b");
    told.datagram(at(106, 0), 2, false, "version\r\n");
    told.datagram(at(106, 1), 2, true, "VERSION 1.6.45\r\n");
    other.worker.begin_anew();
    other.ask(at(107, 0), 3, "a\0b");
    let [_, other] = benches;
    assert_eq!(requests(&other.finish()[0]), expected(&[("a", 1), ("a\0b", 1)]));
}

/// What one worker has seen is the same whether others beside it, one of them idle, had a part of it.
#[test]
fn workers_with_an_idle_one_are_one_worker() {
    let all = || Bench::new(0, WhenLate::Wait, IntervalLength::Fixed(Duration::from_secs(10)));
    let (mut alone, mut first, mut second, mut idle) = (all(), all(), all(), all());
    idle.worker.clock.start_at(at(100, 0));
    for number in 0..200u32 {
        let client = (number % 9) as u8;
        let key = format!("key:{}", number % 13);
        let time = at(100 + u64::from(number / 10), number % 10 * 99);
        alone.ask(time, client, &key);
        // A flow belongs to one worker.
        if client.is_multiple_of(2) { first.ask(time, client, &key) } else { second.ask(time, client, &key) }
    }
    for bench in [&mut alone, &mut first, &mut second, &mut idle] {
        bench.advance(at(110, 0));
        bench.advance(at(120, 0));
    }
    let [alone, first, second, idle] = [alone, first, second, idle].map(Bench::finish);
    let of = |reports: &[WorkerReport]| reports.len();
    assert_eq!([of(&alone), of(&first), of(&second), of(&idle)], [3; 4]);
    let mut counted = 0;
    for index in 0..3 {
        let intervals = [&first, &second, &idle].map(|reports| reports[index].interval.end);
        assert_eq!(intervals, [alone[index].interval.end; 3]);
        let several = merged(&[&first[index], &second[index], &idle[index]]);
        assert_eq!(several, merged(&[&alone[index]]));
        counted += several.totals.counters.requests();
    }
    assert_eq!(counted, 200);
}

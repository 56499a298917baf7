//! A worker whose targets come and go.

use super::*;
use crate::collector::{BUDGET_MIN, Capacity, CollectorOptions, TargetOptions};
use crate::network::Network;
use crate::pipeline::TargetMatch;
use crate::runtime::clock::IntervalLength;
use std::time::Duration;

fn at(secs: u64, nanos: u32) -> Timestamp {
    Timestamp::from_parts(secs, nanos)
}

fn targets(ids: &[usize]) -> TargetMap {
    let target = |id: usize| TargetMatch {
        network: Network::Any,
        port: if id == 0 { 11211 } else { 11212 },
        tcp: true,
        udp: true,
    };
    TargetMap::with_slots((0..3).map(|id| ids.contains(&id).then(|| target(id))).collect())
}

fn empty() -> Harvest {
    Harvest::new(Some(10), Capacity::default())
}

fn ids(report: &WorkerReport) -> Vec<u16> {
    report.harvests.iter().map(|harvest| harvest.target.0).collect()
}

#[test]
fn buffers_follow_the_targets() {
    let options = TargetOptions { budget_bytes: BUDGET_MIN, servers: false };
    let collector = Collector::new(&CollectorOptions {
        targets: vec![options.clone()],
        targets_max: 3,
        ..CollectorOptions::default()
    });
    let (report_sender, reports) = crossbeam_channel::unbounded();
    let (give_back, buffers) = crossbeam_channel::bounded(BUFFERS_PER_WORKER);
    let give_back = |harvests| give_back.send(harvests).expect("there is room");
    (0..BUFFERS_PER_WORKER).for_each(|_| give_back(vec![TargetHarvest::new(TargetId(0), empty())]));
    let mut clock = IntervalClock::new(IntervalLength::Fixed(Duration::from_secs(10)));
    clock.start_at(at(100, 0));
    let channels = WorkerChannels { reports: report_sender, buffers };
    let collector = collector.expect("there is memory");
    let pipeline = Pipeline::new(targets(&[0]), pipeline_limits());
    let mut worker = Worker::new(0, pipeline, collector, clock, WhenLate::Lengthen, channels);
    let interval = |worker: &mut Worker, end: u64| {
        worker.advance(at(end, 5), |_| CaptureFigures::default());
        while worker.idle() {}
        let Ok(ToReporter::Interval(report)) = reports.try_recv() else { panic!("no report at {end}") };
        report
    };

    let first = interval(&mut worker, 110);
    assert_eq!((ids(&first), first.spent.len()), (vec![0], 0));
    for (id, all) in [(1, &[0, 1][..]), (2, &[0, 1, 2])] {
        let tables = TargetTables::new(&options).expect("there is memory");
        worker.watch(TargetId(id), tables, vec![empty(), empty()], targets(all));
    }
    let second = interval(&mut worker, 120);
    assert_eq!((ids(&second), second.spent.len()), (vec![0, 1, 2], 0));
    let start = |report: &WorkerReport, id| report.harvest_of(TargetId(id)).map(|harvest| harvest.start);
    assert_eq!((start(&second, 0), start(&second, 1)), (Some(at(110, 0)), Some(at(110, 5))));
    give_back(second.harvests);
    let third = interval(&mut worker, 130);
    assert_eq!(start(&third, 1), Some(at(120, 0)), "the whole interval");

    // Both buffers are away, and one of them has never had a part for the target that goes.
    worker.set_targets(targets(&[0, 2]));
    let retired = worker.retire(TargetId(1), CaptureFigures::default()).expect("it is there");
    assert_eq!((retired.interval.start, retired.interval.end), (at(130, 0), at(130, 5)));
    assert!(retired.interval.partial && retired.spent.len() == 1);
    assert!(worker.retire(TargetId(1), CaptureFigures::default()).is_none());
    give_back(first.harvests);
    give_back(third.harvests);
    let fourth = interval(&mut worker, 140);
    assert_eq!((ids(&fourth), fourth.spent.len()), (vec![0, 2], 0));
    assert_eq!(start(&fourth, 0), Some(at(130, 0)), "the interval of the others was not cut");
    let fifth = interval(&mut worker, 150);
    assert_eq!((ids(&fifth), fifth.spent.len()), (vec![0, 2], 1));

    // One that is at hand gives its part at once.
    give_back(fourth.harvests);
    let retired = worker.retire(TargetId(2), CaptureFigures::default()).expect("it is there");
    assert_eq!(retired.spent.len(), 1);
    assert_eq!(ids(&interval(&mut worker, 160)), [0]);
}

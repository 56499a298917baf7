//! `memtap replay`: recordings through the same machine, on their own time.

use crate::capture::pcap::Recordings;
use crate::cli::{Exit, ReplayArgs};
use crate::collector::Collector;
use crate::pipeline::Pipeline;
use crate::runtime::clock::IntervalClock;
use crate::runtime::failure::Failure;
use crate::runtime::message::CaptureFigures;
use crate::runtime::reporter::ReporterThread;
use crate::runtime::signals::Requests;
use crate::runtime::worker::{WhenLate, Worker, WorkerChannels};
use crate::runtime::{
    collector_options, describe_tables, harvests, interval_length, load, pipeline_limits, target_map,
};
use std::thread;

/// Packets between two looks at the operator's wishes.
const PACKETS_PER_CHECK: u64 = 1024;

/// Buffers in flight: one being filled, one being reported.
pub(super) const BUFFERS_PER_WORKER: usize = 2;

/// Reads the recordings from start to end and reports on them.
pub fn replay(arguments: &ReplayArgs) -> Result<(), Failure> {
    let config = load(&arguments.options)?;
    let requests = Requests::from_signals().map_err(|error| Failure::new(Exit::Failure, error))?;
    let mut recordings =
        Recordings::open(&arguments.files).map_err(|error| Failure::new(Exit::Failure, error))?;
    let options = collector_options(&config, 1);
    let collector = Collector::new(&options).map_err(|error| Failure::new(Exit::Failure, error))?;
    describe_tables(&config, std::slice::from_ref(&collector));
    let pipeline = Pipeline::new(target_map(&config), pipeline_limits());
    let clock = IntervalClock::new(interval_length(&config));

    let (report_sender, reports) = crossbeam_channel::bounded(BUFFERS_PER_WORKER);
    let (buffer_sender, buffers) = crossbeam_channel::bounded(BUFFERS_PER_WORKER);
    for _ in 0..BUFFERS_PER_WORKER {
        // The channel has room for exactly these.
        drop(buffer_sender.send(harvests(&config, &collector)));
    }
    let sources = arguments.files.iter().map(|file| file.display().to_string()).collect();
    let reporter = ReporterThread::new(&config, sources, vec![buffer_sender], requests.clone(), None)?;
    let channels = WorkerChannels { reports: report_sender, buffers };
    let worker = Worker::new(0, pipeline, collector, clock, WhenLate::Wait, channels);

    thread::scope(|scope| {
        let reporter = scope.spawn(move || reporter.run(&reports));
        let read = feed(worker, &mut recordings, &requests);
        let reported = reporter.join().unwrap_or_else(|_| {
            Err(Failure::new(Exit::Failure, "the reporter thread failed; please report this as a bug"))
        });
        reported.and(read)
    })
}

/// Every packet of the recordings, or those before the first damage.
fn feed(mut worker: Worker, recordings: &mut Recordings, requests: &Requests) -> Result<(), Failure> {
    let mut packets = 0u64;
    let mut ended = Ok(());
    loop {
        match recordings.next_packet() {
            Ok(Some(packet)) => worker.handle_packet(&packet, CaptureFigures::default),
            Ok(None) => break,
            Err(error) => {
                ended = Err(Failure::new(Exit::Failure, error));
                break;
            }
        }
        packets += 1;
        if packets.is_multiple_of(PACKETS_PER_CHECK) {
            if requests.must_stop() {
                break;
            }
            worker.flush();
            worker.print_on_demand(requests.prints(), None, CaptureFigures::default);
        }
    }
    if packets == 0 && ended.is_ok() {
        tracing::warn!("no packet in the recording");
    }
    for (file, skipped) in recordings.unsupported_link_types() {
        tracing::warn!(
            "{file}: {} packets passed over: link type {} is not read",
            skipped.packets,
            skipped.number
        );
    }
    worker.finish(None, CaptureFigures::default);
    ended
}

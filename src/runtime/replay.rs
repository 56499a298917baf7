//! `memtap replay`: recordings through the same machine, on their own time.

use crate::capture::pcap::{Progress, Recording, RecordingError, Recordings};
use crate::cli::{Exit, ReplayArgs};
use crate::collector::Collector;
use crate::config::Config;
use crate::model::Timestamp;
use crate::pipeline::Pipeline;
use crate::runtime::clock::IntervalClock;
use crate::runtime::failure::Failure;
use crate::runtime::message::CaptureFigures;
use crate::runtime::progress::ProgressLine;
use crate::runtime::reporter::{ReporterThread, Sink};
use crate::runtime::signals::Requests;
use crate::runtime::stat::Script;
use crate::runtime::worker::{WhenLate, Worker, WorkerChannels};
use crate::runtime::{collector_options, harvests, interval_length, load, pipeline_limits, target_map};
use rustix::event::{PollFd, PollFlags, poll};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Packets between two looks at the operator's wishes.
const PACKETS_PER_CHECK: u64 = 1024;

/// Longest time for which the operator's wishes go unheard while there is no packet.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// Buffers in flight: one being filled, one being reported.
pub(super) const BUFFERS_PER_WORKER: usize = 2;

/// How fast a recording is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// As fast as it can be.
    AsFast,
    /// As it was recorded.
    Recorded,
}

/// Reads the recordings from start to end and reports on them.
pub fn replay(arguments: &ReplayArgs) -> Result<(), Failure> {
    let pace = if arguments.realtime { Pace::Recorded } else { Pace::AsFast };
    read(&load(&arguments.options)?, &arguments.files, pace, Script::default())
}

/// As [`replay`], with the configuration in hand.
pub(super) fn read(config: &Config, files: &[PathBuf], pace: Pace, script: Script) -> Result<(), Failure> {
    let requests = Requests::from_signals().map_err(|error| Failure::new(Exit::Failure, error))?;
    let Some(replay) = Replay::open(config, files, pace, requests)? else { return Ok(()) };
    replay.run(Sink::report(config, script)?, || Ok(()))
}

/// Recordings with the machine that reads them.
pub(super) struct Replay<'a> {
    config: &'a Config,
    recordings: Recordings,
    sources: Vec<String>,
    pace: Pace,
    collector: Collector,
    requests: Requests,
}

impl<'a> Replay<'a> {
    /// Opens the recordings; nothing when the operator did not wait for one to begin.
    pub(super) fn open(
        config: &'a Config,
        files: &[PathBuf],
        pace: Pace,
        requests: Requests,
    ) -> Result<Option<Replay<'a>>, Failure> {
        let opened = files.iter().map(|file| open(file, &requests)).collect::<Result<Vec<_>, _>>();
        let recordings = match opened {
            Ok(recordings) => Recordings::new(recordings),
            // Whoever stops a recorder that has not written anything wants no message about it.
            Err(_) if requests.was_interrupted() => return Ok(None),
            Err(error) => return Err(Failure::new(Exit::Failure, error)),
        };
        let collector = Collector::new(&collector_options(config, 1, 0))
            .map_err(|error| Failure::new(Exit::Failure, error))?;
        let sources = files.iter().map(|file| file.display().to_string()).collect();
        Ok(Some(Replay { config, recordings, sources, pace, collector, requests }))
    }

    /// Reads to the end, with `beside` at the same time on this thread.
    pub(super) fn run(self, sink: Sink, beside: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
        let Replay { config, recordings, sources, pace, collector, requests } = self;
        let clock = IntervalClock::new(interval_length(config));
        let (report_sender, reports) = crossbeam_channel::bounded(BUFFERS_PER_WORKER);
        let (buffer_sender, buffers) = crossbeam_channel::bounded(BUFFERS_PER_WORKER);
        for _ in 0..BUFFERS_PER_WORKER {
            // The channel has room for exactly these.
            drop(buffer_sender.send(harvests(config, &collector)));
        }
        // A screen has the terminal to itself.
        let line = ProgressLine::new(matches!(sink, Sink::Report(_)));
        let reporter = ReporterThread::new(config, sources, vec![buffer_sender], requests.clone(), sink);
        let channels = WorkerChannels { reports: report_sender, buffers };
        let pipeline = Pipeline::new(target_map(config), pipeline_limits());
        let worker = Worker::new(0, pipeline, collector, clock, WhenLate::Wait, channels);
        let pacer = (pace == Pace::Recorded).then(Pacer::default);
        let stopping = requests.clone();
        let reading = Reading { worker, recordings, requests, pacer, line };
        let bug =
            |thread| Failure::new(Exit::Failure, format!("the {thread} failed; please report this as a bug"));
        thread::scope(|scope| {
            let reporter = scope.spawn(move || reporter.run(&reports));
            let reader = scope.spawn(move || reading.run());
            let shown = catch_unwind(AssertUnwindSafe(beside)).unwrap_or_else(|_| {
                stopping.stop();
                Err(bug("thread of the screen"))
            });
            let read = reader.join().unwrap_or_else(|_| Err(bug("thread that reads")));
            let reported = reporter.join().unwrap_or_else(|_| Err(bug("reporter thread")));
            shown.and(reported).and(read)
        })
    }
}

/// Opens a recording; what may keep us waiting for bytes (standard input, pipes) is read so that a signal is heard.
fn open(path: &Path, requests: &Requests) -> Result<Recording, RecordingError> {
    let (name, file) = if path == Path::new("-") {
        ("standard input".to_string(), io::stdin().as_fd().try_clone_to_owned().map(File::from))
    } else if path.metadata().is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir()) {
        (path.display().to_string(), File::open(path))
    } else {
        return Recording::open(path);
    };
    let file = file.map_err(|source| RecordingError::Open { path: name.clone(), source })?;
    Recording::from_reader(PatientFile { file, requests: requests.clone() }, &name, None)
}

/// A file that ends when the operator wants no more of it.
struct PatientFile {
    file: File,
    requests: Requests,
}

impl Read for PatientFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // `WAIT_MAX` is far below what a timespec holds.
        let timeout = WAIT_MAX.try_into().ok();
        while !self.requests.must_stop() {
            let mut fds = [PollFd::new(&self.file, PollFlags::IN)];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return self.file.read(buffer),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(0)
    }
}

/// Holds packets back until as much time has passed as between their capture.
#[derive(Debug, Default)]
struct Pacer {
    /// When we began, and with what time of capture.
    began: Option<(Instant, Timestamp)>,
}

impl Pacer {
    /// Waits until it is the turn of a packet of this time; meanwhile time passes for the worker as well.
    fn wait(
        &mut self,
        timestamp: Timestamp,
        worker: &mut Worker,
        requests: &Requests,
        mut tell: impl FnMut(),
    ) {
        let (instant, first) = *self.began.get_or_insert_with(|| (Instant::now(), timestamp));
        let due = timestamp.since(first);
        loop {
            let passed = instant.elapsed();
            if passed >= due || requests.must_stop() {
                return;
            }
            worker.flush();
            let now = Timestamp::from_nanos(first.nanos().saturating_add(nanos(passed)));
            worker.advance(now, |_| CaptureFigures::default());
            worker.print_on_demand(requests.prints(), Some(now), |_| CaptureFigures::default());
            tell();
            thread::sleep((due - passed).min(WAIT_MAX));
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A replay on its way.
struct Reading {
    worker: Worker,
    recordings: Recordings,
    requests: Requests,
    pacer: Option<Pacer>,
    line: ProgressLine,
}

impl Reading {
    /// Every packet of the recordings, or those before the first damage or the operator's signal.
    fn run(mut self) -> Result<(), Failure> {
        let mut packets = 0u64;
        let mut ended = Ok(());
        let mut progress = Progress::default();
        loop {
            if self.pacer.is_some() {
                progress = self.recordings.progress();
            }
            match self.recordings.next_packet() {
                Ok(Some(packet)) => {
                    if let Some(pacer) = &mut self.pacer {
                        let line = &mut self.line;
                        let tell = || line.update(progress, packets);
                        pacer.wait(packet.timestamp, &mut self.worker, &self.requests, tell);
                        if self.requests.must_stop() {
                            break;
                        }
                    }
                    self.worker.handle_packet(&packet, |_| CaptureFigures::default());
                }
                Ok(None) => break,
                // The last record of a recorder that we stopped waiting for is as incomplete as it should be.
                Err(_) if self.requests.was_interrupted() => break,
                Err(error) => {
                    ended = Err(Failure::new(Exit::Failure, error));
                    break;
                }
            }
            packets += 1;
            if packets.is_multiple_of(PACKETS_PER_CHECK) && !self.goes_on(packets) {
                break;
            }
        }
        self.tell_what_was_not_read(packets, ended.is_ok());
        if self.requests.was_interrupted() {
            self.worker.mark_partial();
        }
        self.worker.finish(None, |_| CaptureFigures::default());
        ended
    }

    /// Looks at the operator's wishes.
    fn goes_on(&mut self, packets: u64) -> bool {
        if self.requests.must_stop() {
            return false;
        }
        self.worker.print_on_demand(self.requests.prints(), None, |_| CaptureFigures::default());
        self.line.update(self.recordings.progress(), packets);
        true
    }

    fn tell_what_was_not_read(&self, packets: u64, is_good: bool) {
        if self.requests.was_interrupted() {
            tracing::warn!("stopped after {packets} packets: the last report covers what precedes");
        } else if packets == 0 && is_good {
            tracing::warn!("no packet in the recording");
        }
        for (file, skipped) in self.recordings.unsupported_link_types() {
            tracing::warn!("{}: {skipped}", crate::report::escape_name(file));
        }
    }
}

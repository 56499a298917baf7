//! The reporter thread: merges the workers' rows of an interval into snapshots, and writes the reports.

use crate::cli::Exit;
use crate::collector::snapshot::Snapshot;
use crate::collector::window::Window;
use crate::collector::{Harvest, merge};
use crate::config::{Config, OutMode, Over, TargetConfig};
use crate::model::TargetId;
use crate::report::{Condition, EndpointSeen, Filter, Reporter, SeenElsewhere, SourceSeen};
use crate::runtime::clock::Interval;
use crate::runtime::control::Publisher;
use crate::runtime::failure::Failure;
use crate::runtime::message::{CaptureFigures, Change, Retirement, TargetHarvest, ToReporter, WorkerReport};
use crate::runtime::output::{self, Output, OutputEnd};
use crate::runtime::signals::Requests;
use crate::runtime::stat::Script;
use crate::runtime::target_id;
use crate::top::Frame;
use crossbeam_channel::{Receiver, Sender};
use dashmap::DashMap;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// The newest snapshot of each target, by name, for readers beside the reporter.
pub(super) type Newest = Arc<DashMap<String, Arc<Snapshot>>>;

pub(super) struct ReporterThread {
    /// In the order of their numbers.
    targets: Vec<Reported>,
    /// Last figures of targets that wait for intervals before them.
    retiring: Vec<Retirement>,
    /// Targets that went since the last interval: for those to whom only whole intervals are of use.
    parted: Vec<Parted>,
    /// What a capture's packets come from, as an empty report names it.
    sources: Vec<String>,
    over: Over,
    sink: Sink,
    /// To those who watch over the control socket.
    publisher: Option<Publisher>,
    newest: Newest,
    /// Where merged buffers go back to, by worker.
    buffers: Vec<Sender<Vec<TargetHarvest>>>,
    /// Intervals that some workers have yet to report or to pass, oldest first.
    open: BTreeMap<u64, OpenInterval>,
    /// The end of each worker's newest interval: the earlier ones have nothing to wait for from it.
    reached: Vec<u64>,
    intervals: u64,
    intervals_max: u64,
    requests: Requests,
}

/// A target that is reported on.
struct Reported {
    id: TargetId,
    config: TargetConfig,
    window: Window,
}

/// The last snapshot of a target that has gone: of its interval, and through the window.
struct Parted {
    snapshot: Snapshot,
    windowed: Snapshot,
}

/// Where a closed interval goes.
pub(super) enum Sink {
    /// Out, in the form that the configuration asks for.
    Report(Box<Report>),
    /// To the live screen. A screen that is busy makes the reporter wait.
    Screen(Sender<Frame>),
}

/// Reports on their way out.
pub(super) struct Report {
    reporter: Reporter,
    output: Output,
    /// Where `output` writes, and how.
    out: (Option<PathBuf>, OutMode),
    script: Script,
    /// Conditions of the script that held.
    held: Held,
}

impl Sink {
    /// Opens the output that the configuration names.
    pub(super) fn report(config: &Config, script: Script) -> Result<Sink, Failure> {
        let out = config.report.out.as_deref();
        let mut reporter = Reporter::new(report_options(config));
        // Before it is opened, which creates it.
        reporter.begin_output(!out.is_some_and(output::has_content));
        let output = Output::open(out, config.report.out_mode).map_err(|error| {
            let path = out.unwrap_or_else(|| "standard output".as_ref());
            Failure::new(Exit::OutputFailed, format!("cannot open {}: {error}", path.display()))
        })?;
        let out = (config.report.out.clone(), config.report.out_mode);
        Ok(Sink::Report(Box::new(Report { reporter, output, out, script, held: Held::default() })))
    }

    fn write(&mut self, snapshots: Vec<Snapshot>, seen: SeenElsewhere) -> Result<(), OutputEnd> {
        match self {
            Sink::Report(report) => report.write(&snapshots, seen),
            // A screen that was left is a reader that has gone.
            Sink::Screen(screen) => screen.send(Frame { snapshots, seen }).map_err(|_| OutputEnd::ClosedPipe),
        }
    }

    /// Writes the last figures of a target, in the midst of an interval of the others, whose names these are.
    fn write_last(
        &mut self,
        snapshot: &Snapshot,
        seen: SeenElsewhere,
        others: &[String],
    ) -> Result<(), OutputEnd> {
        match self {
            Sink::Report(report) => report.write_last(snapshot, seen, others),
            Sink::Screen(_) => Ok(()),
        }
    }

    /// Whether each report takes the place of the one before.
    fn replaces(&self) -> bool {
        match self {
            Sink::Report(report) => report.out.0.is_some() && report.out.1 == OutMode::Replace,
            Sink::Screen(_) => true,
        }
    }

    /// A failure of its own code when a condition of a script held.
    fn verdict(&self) -> Result<(), Failure> {
        match self {
            Sink::Report(report) => report.held.verdict(),
            Sink::Screen(_) => Ok(()),
        }
    }

    fn cannot_write(&self, error: &io::Error) -> Failure {
        let out = match self {
            Sink::Report(report) => report.out.0.as_deref(),
            Sink::Screen(_) => None,
        };
        let path = out.unwrap_or_else(|| "standard output".as_ref());
        Failure::new(Exit::OutputFailed, format!("cannot write the report to {}: {error}", path.display()))
    }
}

impl Report {
    fn write(&mut self, snapshots: &[Snapshot], seen: SeenElsewhere) -> Result<(), OutputEnd> {
        self.prepare(snapshots, seen);
        let reporter = &mut self.reporter;
        self.output.write(|mut out| reporter.write_interval(&mut out, snapshots))
    }

    fn write_last(
        &mut self,
        snapshot: &Snapshot,
        seen: SeenElsewhere,
        others: &[String],
    ) -> Result<(), OutputEnd> {
        self.prepare(std::slice::from_ref(snapshot), seen);
        let reporter = &mut self.reporter;
        self.output.write(|mut out| reporter.write_beside(&mut out, snapshot, others))
    }

    fn prepare(&mut self, snapshots: &[Snapshot], seen: SeenElsewhere) {
        let options = self.reporter.options_mut();
        options.seen_elsewhere = Some(seen);
        options.width = width(self.out.0.as_deref());
        if self.output.begins_anew() {
            self.reporter.begin_output(true);
        }
        self.held.check(&self.script.conditions, snapshots, self.reporter.options().filter.as_ref());
    }

    /// Takes over the report settings of a configuration that was changed.
    fn take_over(&mut self, config: &Config) {
        if (&config.report.out, config.report.out_mode) != (&self.out.0, self.out.1) {
            tracing::warn!("reload: the output has changed; it is taken over at the next start");
        }
        *self.reporter.options_mut() = report_options(config);
    }
}

struct OpenInterval {
    interval: Interval,
    reports: Vec<WorkerReport>,
}

impl ReporterThread {
    pub(super) fn new(
        config: &Config,
        sources: Vec<String>,
        buffers: Vec<Sender<Vec<TargetHarvest>>>,
        requests: Requests,
        sink: Sink,
    ) -> ReporterThread {
        let targets = config.targets.iter().enumerate().map(|(index, target)| Reported {
            id: target_id(index),
            config: target.clone(),
            window: Window::new(config.report.over.window()),
        });
        ReporterThread {
            targets: targets.collect(),
            retiring: Vec::new(),
            parted: Vec::new(),
            sources,
            over: config.report.over,
            sink,
            publisher: None,
            newest: Newest::default(),
            reached: vec![0; buffers.len()],
            buffers,
            open: BTreeMap::new(),
            intervals: 0,
            intervals_max: config.report.intervals,
            requests,
        }
    }

    /// Hands every interval to this end of the control socket, too.
    pub(super) fn with_publisher(self, publisher: Option<Publisher>) -> ReporterThread {
        ReporterThread { publisher, ..self }
    }

    /// Runs until everybody who has something to report has ended, or the output has.
    pub(super) fn run(mut self, reports: &Receiver<ToReporter>) -> Result<(), Failure> {
        while let Ok(message) = reports.recv() {
            let taken = match message {
                ToReporter::Interval(report) => self.take(report),
                ToReporter::Change(change, done) => {
                    let changed = self.change(change);
                    drop(done);
                    changed
                }
            };
            match taken.and_then(|()| self.part_with_retired(false)) {
                Ok(()) => {}
                Err(OutputEnd::ClosedPipe) => {
                    self.requests.stop();
                    return self.sink.verdict();
                }
                Err(OutputEnd::Failed(error)) => {
                    self.requests.stop();
                    return Err(self.sink.cannot_write(&error));
                }
            }
        }
        // Workers that ended early leave intervals to which not all contributed.
        let rest: Vec<OpenInterval> = std::mem::take(&mut self.open).into_values().collect();
        let mut written = rest.into_iter().try_for_each(|open| self.report(open));
        written = written.and_then(|()| self.part_with_retired(true));
        if let Err(OutputEnd::Failed(error)) = written {
            return Err(self.sink.cannot_write(&error));
        }
        for parted in self.parted.drain(..).filter(|_| self.sink.replaces()) {
            // What it would replace is the last report of the others.
            tracing::warn!("{}: removed too late for the last report", parted.snapshot.target);
        }
        self.sink.verdict()
    }

    fn change(&mut self, change: Change) -> Result<(), OutputEnd> {
        match change {
            Change::Watch(id, config) => {
                self.targets.push(Reported { id, config, window: Window::new(self.over.window()) });
            }
            Change::Retire(retirement) => self.retiring.push(*retirement),
            Change::Settings(config) => {
                if let Sink::Report(report) = &mut self.sink {
                    report.take_over(&config);
                }
            }
        }
        Ok(())
    }

    /// Reports the last figures of targets that have gone, unless intervals with figures of theirs are still open (`all`: whatever is).
    fn part_with_retired(&mut self, all: bool) -> Result<(), OutputEnd> {
        let awaited = |open: &BTreeMap<u64, OpenInterval>, target| {
            let mut reports = open.values().flat_map(|open| &open.reports);
            reports.any(|report| report.harvest_of(target).is_some())
        };
        while let Some(at) = self.retiring.iter().position(|one| all || !awaited(&self.open, one.target)) {
            let retirement = self.retiring.remove(at);
            self.part_with(&retirement)?;
        }
        Ok(())
    }

    fn part_with(&mut self, retirement: &Retirement) -> Result<(), OutputEnd> {
        let Some(at) = self.targets.iter().position(|target| target.id == retirement.target) else {
            return Ok(());
        };
        let mut target = self.targets.remove(at);
        self.newest.remove(&target.config.name);
        if self.has_said_all() {
            return Ok(());
        }
        let mut interval = retirement.interval;
        interval.partial = true;
        let harvests: Vec<&Harvest> = retirement.harvests.iter().collect();
        let snapshot = snapshot(&target.config, &harvests, interval, &retirement.capture);
        let windowed = match self.over {
            Over::Interval => snapshot.clone(),
            _ => target.window.fold(snapshot.clone()),
        };
        let written = if self.sink.replaces() {
            Ok(())
        } else {
            let others: Vec<String> = self.targets.iter().map(|target| target.config.name.clone()).collect();
            self.sink.write_last(&windowed, seen_elsewhere(&self.sources, &retirement.capture), &others)
        };
        self.parted.push(Parted { snapshot, windowed });
        written
    }

    /// It was to report a number of intervals, and has.
    fn has_said_all(&self) -> bool {
        self.intervals_max > 0 && self.intervals >= self.intervals_max
    }

    fn take(&mut self, report: WorkerReport) -> Result<(), OutputEnd> {
        // Workers cut their intervals at the same aligned moments; only the ends of the last ones differ.
        let key = if report.last { u64::MAX } else { report.interval.end.nanos() };
        let open = self
            .open
            .entry(key)
            .or_insert_with(|| OpenInterval { interval: report.interval, reports: Vec::new() });
        open.interval.start = open.interval.start.min(report.interval.start);
        open.interval.end = open.interval.end.max(report.interval.end);
        open.interval.partial |= report.interval.partial;
        self.reached[report.worker] = key;
        open.reports.push(report);
        // A worker that was late has lengthened its interval: it passes ends that others have. Whoever waited for it there would
        // keep their buffers, and they would wait for these.
        let passed = self.reached.iter().copied().min().unwrap_or(u64::MAX);
        while let Some(first) = self.open.first_entry().filter(|first| *first.key() <= passed) {
            let complete = first.remove();
            self.report(complete)?;
        }
        Ok(())
    }

    fn report(&mut self, open: OpenInterval) -> Result<(), OutputEnd> {
        let OpenInterval { interval, mut reports } = open;
        reports.iter_mut().for_each(|report| report.spent.clear());
        // The buffers go back all the same: a worker that has not heard of the end yet may wait for one.
        if self.has_said_all() || self.leaves_out(interval, &reports) {
            self.give_back(reports);
            return Ok(());
        }
        let mut capture = CaptureFigures::default();
        for report in &reports {
            capture.merge(&report.capture);
        }
        let (ids, snapshots) = self.snapshots(interval, &reports, &capture);
        self.give_back(reports);
        let seen = seen_elsewhere(&self.sources, &capture);
        let (parted, parted_windowed): (Vec<_>, Vec<_>) =
            self.parted.drain(..).map(|parted| (parted.snapshot, parted.windowed)).unzip();
        if let (Some(publisher), Sink::Report(report)) = (&self.publisher, &self.sink) {
            let privacy = &report.reporter.options().privacy;
            let shown = match parted.is_empty() {
                true => Cow::Borrowed(&snapshots),
                false => Cow::Owned(with_parted(snapshots.clone(), parted)),
            };
            publisher.publish(&shown, &seen, privacy);
        }
        let mut snapshots = self.through_windows(&ids, snapshots);
        if self.sink.replaces() {
            snapshots = with_parted(snapshots, parted_windowed);
        }
        self.sink.write(snapshots, seen)?;
        self.intervals += 1;
        if self.has_said_all() {
            self.requests.stop();
        }
        Ok(())
    }

    fn give_back(&self, reports: Vec<WorkerReport>) {
        for report in reports {
            // A worker that has ended does not take its buffer back.
            drop(self.buffers[report.worker].send(report.harvests));
        }
    }

    /// A script asked for whole intervals, and this is the one that had begun before us. What is captured in it is in no report.
    fn leaves_out(&mut self, interval: Interval, reports: &[WorkerReport]) -> bool {
        let Sink::Report(report) = &mut self.sink else { return false };
        let is_first = std::mem::take(&mut report.script.whole_intervals);
        let is_last = reports.iter().any(|report| report.last);
        is_first && interval.partial && !is_last
    }

    /// Of the targets that some worker watched when the interval ended.
    fn snapshots(
        &self,
        interval: Interval,
        reports: &[WorkerReport],
        capture: &CaptureFigures,
    ) -> (Vec<TargetId>, Vec<Snapshot>) {
        let of_target = |target: &Reported| {
            let parts: Vec<&TargetHarvest> =
                reports.iter().filter_map(|report| report.harvest_of(target.id)).collect();
            let start = parts.iter().map(|part| part.start).min()?.max(interval.start);
            let harvests: Vec<&Harvest> = parts.iter().map(|part| &part.harvest).collect();
            let partial = interval.partial || start > interval.start;
            let interval = Interval { start, partial, ..interval };
            let snapshot = snapshot(&target.config, &harvests, interval, capture);
            self.newest.insert(snapshot.target.clone(), Arc::new(snapshot.clone()));
            Some((target.id, snapshot))
        };
        self.targets.iter().filter_map(of_target).unzip()
    }

    fn through_windows(&mut self, ids: &[TargetId], snapshots: Vec<Snapshot>) -> Vec<Snapshot> {
        if self.over == Over::Interval {
            return snapshots;
        }
        // In the same order; some targets may have no snapshot.
        let mut targets = self.targets.iter_mut();
        let fold = |(id, snapshot): (&TargetId, Snapshot)| {
            let target = targets.find(|target| target.id == *id)?;
            Some(target.window.fold(snapshot))
        };
        ids.iter().zip(snapshots).filter_map(fold).collect()
    }
}

/// Snapshots with those of targets that went in the same interval: each before one of its name that came in its place.
fn with_parted(mut snapshots: Vec<Snapshot>, parted: Vec<Snapshot>) -> Vec<Snapshot> {
    for snapshot in parted.into_iter().rev() {
        let successor = snapshots.iter().position(|other| other.target == snapshot.target);
        snapshots.insert(successor.unwrap_or(snapshots.len()), snapshot);
    }
    snapshots
}

/// What workers harvested of a target in an interval, as one.
fn snapshot(
    target: &TargetConfig,
    harvests: &[&Harvest],
    interval: Interval,
    capture: &CaptureFigures,
) -> Snapshot {
    let mut snapshot = merge(harvests);
    snapshot.target.clone_from(&target.name);
    snapshot.address = target.address();
    (snapshot.start, snapshot.end, snapshot.partial) = (interval.start, interval.end, interval.partial);
    snapshot.loss.ring_dropped = capture.ring_dropped;
    snapshot.loss.nic_dropped = capture.nic_dropped;
    snapshot.loss.worker_lost = capture.worker_lost;
    snapshot.health = capture.health;
    snapshot
}

/// Conditions that held, for the end: the first few tell the story.
#[derive(Debug, Default)]
struct Held {
    told: Vec<String>,
    more: u64,
}

impl Held {
    fn check(&mut self, conditions: &[Condition], snapshots: &[Snapshot], filter: Option<&Filter>) {
        const TOLD_MAX: usize = 10;
        if conditions.is_empty() {
            return;
        }
        for snapshot in snapshots {
            let shown = Condition::of_shown_rows(snapshot, filter);
            for held in conditions.iter().filter_map(|condition| condition.check(&shown)) {
                if self.told.len() < TOLD_MAX {
                    self.told.push(held);
                } else {
                    self.more += 1;
                }
            }
        }
    }

    /// A failure of its own code when anything held.
    fn verdict(&self) -> Result<(), Failure> {
        if self.told.is_empty() {
            return Ok(());
        }
        let more = if self.more > 0 { format!("\n  and {} more", self.more) } else { String::new() };
        let told = self.told.join("\n  ");
        Err(Failure::new(Exit::ConditionHeld, format!("held:\n  {told}{more}")))
    }
}

pub(super) fn report_options(config: &Config) -> crate::report::ReportOptions {
    let is_terminal = output::is_terminal(config.report.out.as_deref());
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    crate::report::ReportOptions {
        host: host().to_string(),
        color: config.report.color.enabled(is_terminal, no_color),
        ..config.report_options()
    }
}

/// The machine's name. Asked once: a reload happens within the sandbox, which does not permit the question.
pub(super) fn host() -> &'static str {
    static HOST: OnceLock<String> = OnceLock::new();
    HOST.get_or_init(|| gethostname::gethostname().to_string_lossy().into_owned())
}

/// Columns of the terminal, looked up for each report because windows are resized; wide where there is none. `COLUMNS` wins.
pub(super) fn width(out: Option<&Path>) -> usize {
    /// Wide enough for every column of every table.
    const WIDTH_OF_A_FILE: usize = 160;
    if let Some(columns) = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok()) {
        return columns;
    }
    match terminal_size::terminal_size() {
        Some((terminal_size::Width(columns), _)) if output::is_terminal(out) => usize::from(columns),
        _ => WIDTH_OF_A_FILE,
    }
}

/// Busiest strangers that an empty report names.
const STRANGERS_SHOWN: usize = 5;

fn seen_elsewhere(sources: &[String], capture: &CaptureFigures) -> SeenElsewhere {
    let tally = &capture.tally;
    let busiest = tally.strangers.ranked().into_iter().take(STRANGERS_SHOWN);
    SeenElsewhere {
        sources: vec![SourceSeen { name: sources.join(", "), packets: tally.packets }],
        packets_matched: tally.target_packets,
        packets_foreign: tally.anomalies.iter().map(|(_, count)| count).sum(),
        busiest: busiest
            .map(|stranger| EndpointSeen {
                endpoint: stranger.endpoint,
                transport: stranger.transport,
                packets: stranger.packets,
            })
            .collect(),
    }
}

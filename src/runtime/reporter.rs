//! The reporter thread: merges the workers' rows of an interval into snapshots, and writes the reports.

use crate::cli::Exit;
use crate::collector::snapshot::Snapshot;
use crate::collector::window::Window;
use crate::collector::{Harvest, merge};
use crate::config::{Config, ConfigError, OutMode, Over, TargetConfig};
use crate::report::{Condition, EndpointSeen, Filter, Reporter, SeenElsewhere, SourceSeen};
use crate::runtime::clock::Interval;
use crate::runtime::control::Publisher;
use crate::runtime::failure::Failure;
use crate::runtime::message::{CaptureFigures, WorkerReport};
use crate::runtime::output::{self, Output, OutputEnd};
use crate::runtime::signals::Requests;
use crate::runtime::stat::Script;
use crate::top::Frame;
use crossbeam_channel::{Receiver, Sender};
use dashmap::DashMap;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The newest snapshot of each target, by name, for readers beside the reporter.
pub(super) type Newest = Arc<DashMap<String, Arc<Snapshot>>>;

pub(super) struct ReporterThread {
    targets: Vec<TargetConfig>,
    /// What a capture's packets come from, as an empty report names it.
    sources: Vec<String>,
    windows: Vec<Window>,
    over: Over,
    sink: Sink,
    /// To those who watch over the control socket.
    publisher: Option<Publisher>,
    newest: Newest,
    /// Where merged buffers go back to, by worker.
    buffers: Vec<Sender<Vec<Harvest>>>,
    /// Intervals of which some workers have reported, oldest first.
    open: BTreeMap<u64, OpenInterval>,
    workers_done: usize,
    intervals: u64,
    intervals_max: u64,
    requests: Requests,
    /// Reads the configuration again, for SIGHUP; none for recordings.
    reload: Option<Reload>,
}

/// Reads file, environment and flags again.
pub(super) type Reload = Box<dyn Fn() -> Result<Config, ConfigError> + Send>;

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
        let options = self.reporter.options_mut();
        options.seen_elsewhere = Some(seen);
        options.width = width(self.out.0.as_deref());
        if self.output.begins_anew() {
            self.reporter.begin_output(true);
        }
        self.held.check(&self.script.conditions, snapshots, self.reporter.options().filter.as_ref());
        let reporter = &mut self.reporter;
        self.output.write(|mut out| reporter.write_interval(&mut out, snapshots))
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
        buffers: Vec<Sender<Vec<Harvest>>>,
        requests: Requests,
        reload: Option<Reload>,
        sink: Sink,
    ) -> ReporterThread {
        ReporterThread {
            windows: config.targets.iter().map(|_| Window::new(config.report.over.window())).collect(),
            targets: config.targets.clone(),
            sources,
            over: config.report.over,
            sink,
            publisher: None,
            newest: Newest::default(),
            buffers,
            open: BTreeMap::new(),
            workers_done: 0,
            intervals: 0,
            intervals_max: config.report.intervals,
            requests,
            reload,
        }
    }

    /// Hands every interval to this end of the control socket, too.
    pub(super) fn with_publisher(self, publisher: Option<Publisher>) -> ReporterThread {
        ReporterThread { publisher, ..self }
    }

    /// Runs until every worker has sent its last report, or the output has ended.
    pub(super) fn run(mut self, reports: &Receiver<WorkerReport>) -> Result<(), Failure> {
        while self.workers_done < self.buffers.len() {
            let Ok(report) = reports.recv() else { break };
            self.workers_done += usize::from(report.last);
            match self.take(report) {
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
        for open in rest {
            if let Err(OutputEnd::Failed(error)) = self.report(open) {
                return Err(self.sink.cannot_write(&error));
            }
        }
        self.sink.verdict()
    }

    /// Takes over the report settings of a configuration that was changed; keeps the old ones when it is wrong.
    fn reload(&mut self) {
        let Some(reload) = &self.reload else { return };
        match reload() {
            Ok(config) => {
                if config.targets != self.targets {
                    tracing::warn!("reload: the targets have changed; they are taken over at the next start");
                }
                if let Sink::Report(report) = &mut self.sink {
                    report.take_over(&config);
                }
                tracing::info!("reload: report settings, key groups and privacy taken over");
            }
            Err(error) => {
                tracing::error!("reload: the configuration is wrong, the old one stays in force: {error}")
            }
        }
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
        open.reports.push(report);
        if open.reports.len() < self.buffers.len() {
            return Ok(());
        }
        match self.open.remove(&key) {
            Some(complete) => self.report(complete),
            None => Ok(()),
        }
    }

    fn report(&mut self, open: OpenInterval) -> Result<(), OutputEnd> {
        let OpenInterval { interval, reports } = open;
        let has_said_all = self.intervals_max > 0 && self.intervals >= self.intervals_max;
        // The buffers go back all the same: a worker that has not heard of the end yet may wait for one.
        if has_said_all || self.leaves_out(interval, &reports) {
            for report in reports {
                drop(self.buffers[report.worker].send(report.harvests));
            }
            return Ok(());
        }
        let mut capture = CaptureFigures::default();
        for report in &reports {
            capture.merge(&report.capture);
        }
        let snapshots: Vec<Snapshot> = (0..self.targets.len())
            .map(|index| {
                let harvests: Vec<&Harvest> = reports.iter().map(|report| &report.harvests[index]).collect();
                self.snapshot(index, &harvests, interval, &capture)
            })
            .collect();
        let seen = seen_elsewhere(&self.sources, &capture);
        if let (Some(publisher), Sink::Report(report)) = (&self.publisher, &self.sink) {
            publisher.publish(&snapshots, &seen, &report.reporter.options().privacy);
        }
        let snapshots = self.through_windows(snapshots);
        for report in reports {
            // A worker that has ended does not take its buffer back.
            drop(self.buffers[report.worker].send(report.harvests));
        }
        // Elsewhere the signal means something else, and somebody else looks for it.
        if self.reload.is_some() && self.requests.take_reload() {
            self.reload();
        }
        self.sink.write(snapshots, seen)?;
        self.intervals += 1;
        if self.intervals_max > 0 && self.intervals >= self.intervals_max {
            self.requests.stop();
        }
        Ok(())
    }

    /// A script asked for whole intervals, and this is the one that had begun before us. What is captured in it is in no report.
    fn leaves_out(&mut self, interval: Interval, reports: &[WorkerReport]) -> bool {
        let Sink::Report(report) = &mut self.sink else { return false };
        let is_first = std::mem::take(&mut report.script.whole_intervals);
        let is_last = reports.iter().any(|report| report.last);
        is_first && interval.partial && !is_last
    }

    fn snapshot(
        &mut self,
        index: usize,
        harvests: &[&Harvest],
        interval: Interval,
        capture: &CaptureFigures,
    ) -> Snapshot {
        let target = &self.targets[index];
        let mut snapshot = merge(harvests);
        snapshot.target.clone_from(&target.name);
        snapshot.address = target.address();
        (snapshot.start, snapshot.end, snapshot.partial) = (interval.start, interval.end, interval.partial);
        snapshot.loss.ring_dropped = capture.ring_dropped;
        snapshot.loss.nic_dropped = capture.nic_dropped;
        snapshot.loss.worker_lost = capture.worker_lost;
        snapshot.health = capture.health;
        self.newest.insert(target.name.clone(), Arc::new(snapshot.clone()));
        snapshot
    }

    fn through_windows(&mut self, snapshots: Vec<Snapshot>) -> Vec<Snapshot> {
        match self.over {
            Over::Interval => snapshots,
            _ => self
                .windows
                .iter_mut()
                .zip(snapshots)
                .map(|(window, snapshot)| window.fold(snapshot))
                .collect(),
        }
    }
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
        host: gethostname::gethostname().to_string_lossy().into_owned(),
        color: config.report.color.enabled(is_terminal, no_color),
        ..config.report_options()
    }
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

//! The reporter thread: merges the workers' rows of an interval into snapshots, and writes the reports.

use crate::cli::Exit;
use crate::collector::snapshot::Snapshot;
use crate::collector::window::Window;
use crate::collector::{Harvest, merge};
use crate::config::{Config, ConfigError, Over, TargetConfig};
use crate::report::{EndpointSeen, Reporter, SeenElsewhere, SourceSeen};
use crate::runtime::clock::Interval;
use crate::runtime::failure::Failure;
use crate::runtime::message::{CaptureFigures, WorkerReport};
use crate::runtime::output::{Output, OutputEnd};
use crate::runtime::signals::Requests;
use crossbeam_channel::{Receiver, Sender};
use dashmap::DashMap;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::Arc;

/// The newest snapshot of each target, by name, for readers beside the reporter.
pub(super) type Newest = Arc<DashMap<String, Arc<Snapshot>>>;

pub(super) struct ReporterThread {
    targets: Vec<TargetConfig>,
    /// What a capture's packets come from, as an empty report names it.
    sources: Vec<String>,
    windows: Vec<Window>,
    over: Over,
    reporter: Reporter,
    output: Output,
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
    ) -> Result<ReporterThread, Failure> {
        let output = Output::open(config.report.out.as_ref()).map_err(|error| {
            let path = config.report.out.as_deref().unwrap_or_else(|| "standard output".as_ref());
            Failure::new(Exit::OutputFailed, format!("cannot open {}: {error}", path.display()))
        })?;
        Ok(ReporterThread {
            windows: config.targets.iter().map(|_| Window::new(config.report.over.window())).collect(),
            targets: config.targets.clone(),
            sources,
            over: config.report.over,
            reporter: Reporter::new(report_options(config)),
            output,
            newest: Newest::default(),
            buffers,
            open: BTreeMap::new(),
            workers_done: 0,
            intervals: 0,
            intervals_max: config.report.intervals,
            requests,
            reload,
        })
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
                    return Ok(());
                }
                Err(OutputEnd::Failed(error)) => {
                    self.requests.stop();
                    return Err(Failure::new(
                        Exit::OutputFailed,
                        format!("cannot write the report: {error}"),
                    ));
                }
            }
        }
        // Workers that ended early leave intervals to which not all contributed.
        let rest: Vec<OpenInterval> = std::mem::take(&mut self.open).into_values().collect();
        for open in rest {
            if let Err(OutputEnd::Failed(error)) = self.report(open) {
                return Err(Failure::new(Exit::OutputFailed, format!("cannot write the report: {error}")));
            }
        }
        Ok(())
    }

    /// Takes over the report settings of a configuration that was changed; keeps the old ones when it is wrong.
    fn reload(&mut self) {
        let Some(reload) = &self.reload else { return };
        match reload() {
            Ok(config) => {
                if config.targets != self.targets {
                    tracing::warn!("reload: the targets have changed; they are taken over at the next start");
                }
                *self.reporter.options_mut() = report_options(&config);
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
        if self.intervals_max > 0 && self.intervals >= self.intervals_max {
            return Ok(());
        }
        let OpenInterval { interval, reports } = open;
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
        for report in reports {
            // A worker that has ended does not take its buffer back.
            drop(self.buffers[report.worker].send(report.harvests));
        }
        self.write(&snapshots, &capture)?;
        self.intervals += 1;
        if self.intervals_max > 0 && self.intervals >= self.intervals_max {
            self.requests.stop();
        }
        Ok(())
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
        match self.over {
            Over::Interval => snapshot,
            _ => self.windows[index].fold(snapshot),
        }
    }

    fn write(&mut self, snapshots: &[Snapshot], capture: &CaptureFigures) -> Result<(), OutputEnd> {
        if self.requests.take_reload() {
            self.reload();
        }
        let options = self.reporter.options_mut();
        options.seen_elsewhere = Some(seen_elsewhere(&self.sources, capture));
        options.width = width();
        let reporter = &mut self.reporter;
        self.output.write(|mut out| reporter.write_interval(&mut out, snapshots))
    }
}

fn report_options(config: &Config) -> crate::report::ReportOptions {
    let is_terminal = config.report.out.is_none() && std::io::stdout().is_terminal();
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    crate::report::ReportOptions {
        host: gethostname::gethostname().to_string_lossy().into_owned(),
        color: config.report.color.enabled(is_terminal, no_color),
        ..config.report_options()
    }
}

/// Columns of the terminal, looked up for each report because windows are resized; wide where there is none. `COLUMNS` wins.
fn width() -> usize {
    /// Wide enough for every column of every table.
    const WIDTH_OF_A_FILE: usize = 160;
    if let Some(columns) = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok()) {
        return columns;
    }
    match terminal_size::terminal_size() {
        Some((terminal_size::Width(columns), _)) if std::io::stdout().is_terminal() => usize::from(columns),
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

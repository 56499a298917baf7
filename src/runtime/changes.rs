//! Targets that come and go while the capture goes on: asked for over the control socket, or by a configuration that is read again
//! (SIGHUP).
//!
//! One thread makes all changes, one after the other. It takes the memory of a new target and populates it, and copies the last figures
//! of one that goes and gives its memory back; workers only put tables in or hand them out, between two blocks. The order of a new
//! target: memory, reporter, workers with the kernel's filter, interfaces; only then is it said to be watched. Of one that goes: filter,
//! last packets, flows, tables, reporter.

use crate::capture::filter::FilterSpec;
use crate::collector::{Harvest, TargetTables};
use crate::config::{Config, ConfigError, Interfaces, TargetConfig};
use crate::model::TargetId;
use crate::report::escape_name;
use crate::runtime::control::{Board, target_wire};
use crate::runtime::interfaces::NewTargets;
use crate::runtime::live::{choose_interfaces, filter_spec};
use crate::runtime::message::{
    CaptureFigures, Change, Order, Retire, Retired, Retirement, ToReporter, Watch,
};
use crate::runtime::replay::BUFFERS_PER_WORKER;
use crate::runtime::roster::{Entry, Roster, TargetState};
use crate::runtime::signals::{HEARD_WITHIN, Requests};
use crate::runtime::wire::TargetWire;
use crate::runtime::{describe_tables, harvest, target_options};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

/// A change that somebody asks for, and where the answer goes.
pub(super) struct Ask {
    pub(super) wish: Wish,
    pub(super) answer: Sender<Result<TargetWire, String>>,
}

/// What is asked for.
pub(super) enum Wish {
    /// To watch one more.
    Add(TargetConfig),
    /// To watch the one of this name no more.
    Remove(String),
}

/// Reads file, environment and flags again.
pub(super) type Reload = Box<dyn Fn() -> Result<Config, ConfigError> + Send>;

/// Whom the changes concern.
pub(super) struct Concerned {
    pub(super) workers: Vec<Sender<Order>>,
    pub(super) reporter: ReporterLine,
    pub(super) interfaces: Sender<NewTargets>,
    /// Clients of the control socket, where there is one.
    pub(super) clients: Option<(Receiver<Ask>, Board)>,
}

pub(super) struct Changes {
    /// Of its targets, see `roster`.
    config: Config,
    roster: Roster,
    reload: Reload,
    workers: Vec<Sender<Order>>,
    reporter: ReporterLine,
    interfaces: Sender<NewTargets>,
    asks: Receiver<Ask>,
    board: Option<Board>,
    requests: Requests,
}

const ENDING: &str = "memtap is ending";

impl Changes {
    pub(super) fn new(
        config: &Config,
        roster: Roster,
        reload: Reload,
        concerned: Concerned,
        requests: Requests,
    ) -> Changes {
        let Concerned { workers, reporter, interfaces, clients } = concerned;
        let (asks, board) = match clients {
            Some((asks, board)) => (asks, Some(board)),
            None => (crossbeam_channel::never(), None),
        };
        let config = config.clone();
        let changes =
            Changes { config, roster, reload, workers, reporter, interfaces, asks, board, requests };
        changes.show();
        changes
    }

    /// Makes changes until the capture ends.
    pub(super) fn run(mut self) {
        while !self.requests.must_stop() {
            match self.asks.recv_timeout(HEARD_WITHIN) {
                Ok(Ask { wish, answer }) => {
                    let changed = match wish {
                        Wish::Add(target) => self.add(target),
                        Wish::Remove(name) => self.remove(&name),
                    };
                    // Whoever asked may have gone.
                    drop(answer.send(changed));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => self.asks = crossbeam_channel::never(),
            }
            if self.requests.take_reload() {
                self.reload();
            }
        }
    }

    fn show(&self) {
        if let Some(board) = &self.board {
            board.show(self.roster.entries());
        }
    }

    fn add(&mut self, target: TargetConfig) -> Result<TargetWire, String> {
        self.check_route(&target)?;
        let id = self.roster.admit(target.clone())?;
        self.show();
        let added = self.carry_in(id, &target);
        match added {
            Ok(()) => {
                self.roster.settle(id);
                tracing::info!("target {} added: {}", escape_name(&target.name), target.address());
            }
            Err(_) => self.roster.forget(id),
        }
        self.show();
        let entry = Entry { id, target, state: TargetState::Watched };
        added.map(|()| target_wire(&entry, entry.state.name()))
    }

    fn remove(&mut self, name: &str) -> Result<TargetWire, String> {
        let entry = self.roster.dismiss(name)?;
        self.take_out(&entry)
    }

    /// A target to which no interface leads would be empty for ever.
    fn check_route(&self, target: &TargetConfig) -> Result<(), String> {
        if self.config.capture.interfaces != Interfaces::Auto {
            return Ok(());
        }
        let alone = Config { targets: vec![target.clone()], ..self.config.clone() };
        match choose_interfaces(&alone) {
            Ok(choice) if choice.unrouted.is_empty() => Ok(()),
            _ => {
                Err(format!("no interface leads to {}, and interfaces are chosen by that", target.address()))
            }
        }
    }

    /// Gives a target its memory, and has it watched.
    fn carry_in(&mut self, id: TargetId, target: &TargetConfig) -> Result<(), String> {
        let (tables, harvests) = self.take_memory(target)?;
        self.reporter.tell(Change::Watch(id, target.clone()), &self.requests)?;
        let filter = self.filter(self.roster.targets());
        let (done, watched) = crossbeam_channel::bounded(self.workers.len());
        for ((worker, tables), harvests) in self.workers.iter().zip(tables).zip(harvests) {
            let (targets, filter, done) = (self.roster.map(), filter.clone(), done.clone());
            let watch = Watch { target: id, tables, harvests, targets, filter, done };
            worker.send(Order::Watch(Box::new(watch))).map_err(|_| ENDING)?;
        }
        drop(done);
        let answers: Vec<Result<(), String>> = watched.iter().collect();
        if answers.len() < self.workers.len() {
            return Err(ENDING.to_string());
        }
        let watched = answers
            .into_iter()
            .collect::<Result<(), String>>()
            .and_then(|()| self.tell_interfaces(self.roster.targets()));
        if watched.is_err() {
            // What was counted by then is reported like the rest of any target that goes.
            let entry = Entry { id, target: target.clone(), state: TargetState::Removing };
            drop(self.take_out(&entry));
        }
        watched
    }

    /// Tables for each worker, and the buffers that their rows travel in.
    fn take_memory(&self, target: &TargetConfig) -> Result<(Vec<TargetTables>, Vec<Vec<Harvest>>), String> {
        let workers = self.workers.len();
        let options = target_options(target, workers);
        let tables: Vec<TargetTables> = (0..workers)
            .map(|_| TargetTables::new(&options))
            .collect::<Result<_, _>>()
            .map_err(|error| error.to_string())?;
        describe_tables(target, tables.iter().map(TargetTables::capacity));
        let buffers = |tables: &TargetTables| {
            (0..BUFFERS_PER_WORKER).map(|_| harvest(&self.config, tables.capacity())).collect()
        };
        let harvests = tables.iter().map(buffers).collect();
        Ok((tables, harvests))
    }

    /// The kernel's filter for these targets.
    fn filter(&self, targets: Vec<TargetConfig>) -> FilterSpec {
        filter_spec(&Config { targets, ..self.config.clone() })
    }

    fn tell_interfaces(&self, targets: Vec<TargetConfig>) -> Result<(), String> {
        let (done, answer) = crossbeam_channel::bounded(1);
        self.interfaces.send(NewTargets { targets, done }).map_err(|_| ENDING)?;
        answer.recv().unwrap_or_else(|_| Err(ENDING.to_string()))
    }

    /// Has a target watched no more, its last figures reported, and its memory given back.
    fn take_out(&mut self, entry: &Entry) -> Result<TargetWire, String> {
        let id = entry.id;
        self.show();
        let others = self.roster.targets_without(id);
        // Without targets there is no filter that lets nothing through; others are about to come.
        let filter = (!others.is_empty()).then(|| self.filter(others.clone()));
        if !others.is_empty() {
            // An interface that cannot be captured was said to be so when its target came.
            drop(self.tell_interfaces(others));
        }
        let (done, retired) = crossbeam_channel::bounded(self.workers.len());
        for worker in &self.workers {
            let (targets, filter, done) = (self.roster.map_without(id), filter.clone(), done.clone());
            // A worker that has ended has reported it with all others.
            drop(worker.send(Order::Retire(Box::new(Retire { target: id, targets, filter, done }))));
        }
        drop(done);
        let mut retirement: Option<Retirement> = None;
        // Kept until its last figures are on their way: the system may take seconds to get memory back, or to give some.
        let spent: Vec<_> = retired.iter().map(|one| self.gather(id, one, &mut retirement)).collect();
        self.roster.forget(id);
        self.show();
        let Some(retirement) = retirement else { return Err(ENDING.to_string()) };
        let name = escape_name(&entry.target.name);
        self.reporter.tell(Change::Retire(Box::new(retirement)), &self.requests)?;
        drop(spent);
        tracing::info!("target {name} removed: {} bytes given back", entry.target.budget_bytes);
        Ok(target_wire(entry, "removed"))
    }

    /// Adds what one worker had of a target; returns the memory that this took.
    fn gather(
        &self,
        target: TargetId,
        retired: Retired,
        into: &mut Option<Retirement>,
    ) -> (TargetTables, Vec<Harvest>) {
        let Retired { mut tables, interval, capture, mut spent } = retired;
        // One of its own, unless both are on their way.
        let mut rows = spent.pop().unwrap_or_else(|| harvest(&self.config, tables.capacity()));
        tables.close(&mut rows);
        let all = into.get_or_insert_with(|| Retirement {
            target,
            interval,
            harvests: Vec::new(),
            capture: CaptureFigures::default(),
        });
        all.interval.start = all.interval.start.min(interval.start);
        all.interval.end = all.interval.end.max(interval.end);
        all.harvests.push(rows);
        all.capture.merge(&capture);
        (tables, spent)
    }

    /// Takes over what may change of a configuration; keeps the old one when the new one is wrong.
    fn reload(&mut self) {
        let config = match (self.reload)() {
            Ok(config) => config,
            Err(error) => {
                tracing::error!("reload: the configuration is wrong, the old one stays in force: {error}");
                return;
            }
        };
        if let Err(reason) = self.take_over_targets(&config) {
            tracing::error!("reload: {reason}");
        }
        if self.reporter.tell(Change::Settings(Box::new(config)), &self.requests).is_ok() {
            tracing::info!("reload: report settings, key groups and privacy taken over");
        }
    }

    /// Watches the configuration's targets and no others. All of it is checked before any of it is done.
    fn take_over_targets(&mut self, config: &Config) -> Result<(), String> {
        let stay = |reason: String| format!("the targets stay as they are: {reason}");
        let plan = self.roster.plan(&config.targets).map_err(stay)?;
        plan.add.iter().try_for_each(|target| self.check_route(target)).map_err(stay)?;
        for name in &plan.remove {
            let entry = self.roster.begin_removing(name)?;
            self.take_out(&entry)?;
        }
        let added = plan.add.into_iter().map(|target| {
            let name = escape_name(&target.name);
            self.add(target).map_err(|reason| format!("target {name} is not watched: {reason}"))
        });
        // One that cannot be added is no reason to leave out the next.
        let failed: Vec<String> = added.filter_map(Result::err).collect();
        if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
    }
}

/// The way to the reporter thread. Not more than one message is on it, so that workers, which have room for their own in the same
/// channel, never wait.
pub(super) struct ReporterLine {
    sender: Sender<ToReporter>,
    /// Ends when the last message was taken.
    last: Option<Receiver<()>>,
}

impl ReporterLine {
    pub(super) fn new(sender: Sender<ToReporter>) -> ReporterLine {
        ReporterLine { sender, last: None }
    }

    /// Waits until the message before was taken; at the end, when nobody may be there any more to take it, not for long.
    fn tell(&mut self, change: Change, requests: &Requests) -> Result<(), String> {
        if let Some(last) = self.last.take() {
            while last.recv_timeout(HEARD_WITHIN) == Err(RecvTimeoutError::Timeout) && !requests.must_stop() {
            }
        }
        let (done, taken) = crossbeam_channel::bounded(0);
        self.last = Some(taken);
        self.sender.send(ToReporter::Change(change, done)).map_err(|_| ENDING.to_string())
    }
}

//! What the threads of a capture say to each other: workers and whoever changes their targets to the reporter, and the latter to
//! workers.

use crate::capture::filter::FilterSpec;
use crate::collector::snapshot::CaptureHealth;
use crate::collector::{Harvest, TargetTables};
use crate::config::{Config, TargetConfig};
use crate::model::{TargetId, Timestamp};
use crate::pipeline::{CaptureTally, TargetMap};
use crate::runtime::clock::Interval;
use crossbeam_channel::Sender;

/// One worker's figures of one interval, for all targets that it watched when the interval ended.
pub(super) struct WorkerReport {
    /// Which worker.
    pub(super) worker: usize,
    /// The interval that it closed.
    pub(super) interval: Interval,
    /// Rows, in the order of the targets' numbers; go back to the worker when they have been merged.
    pub(super) harvests: Vec<TargetHarvest>,
    /// Buffers of targets that are not watched any more; to be dropped where it costs no packets.
    pub(super) spent: Vec<Harvest>,
    /// What the capture itself saw and lost in the interval.
    pub(super) capture: CaptureFigures,
    /// It is the worker's last.
    pub(super) last: bool,
}

impl WorkerReport {
    /// The rows of a target, where it was watched.
    pub(super) fn harvest_of(&self, target: TargetId) -> Option<&TargetHarvest> {
        let at = self.harvests.binary_search_by_key(&target, |harvest| harvest.target).ok()?;
        Some(&self.harvests[at])
    }
}

/// A buffer for the rows of one target's interval.
pub(super) struct TargetHarvest {
    /// Whose.
    pub(super) target: TargetId,
    /// Since when it was watched in the interval: later than its start where the target was added in its midst.
    pub(super) start: Timestamp,
    /// The rows.
    pub(super) harvest: Harvest,
}

impl TargetHarvest {
    /// An empty one.
    pub(super) fn new(target: TargetId, harvest: Harvest) -> TargetHarvest {
        TargetHarvest { target, start: Timestamp::ZERO, harvest }
    }
}

/// A capture's own figures over an interval.
#[derive(Clone, Debug, Default)]
pub(super) struct CaptureFigures {
    /// Packets and strangers.
    pub(super) tally: CaptureTally,
    /// Packets that the kernel dropped because a ring was full.
    pub(super) ring_dropped: u64,
    /// Packets that network cards dropped.
    pub(super) nic_dropped: u64,
    /// Packets that this worker had taken but not parsed when it failed.
    pub(super) worker_lost: u64,
    /// How the capture fared otherwise.
    pub(super) health: CaptureHealth,
}

impl CaptureFigures {
    /// Adds another worker's figures.
    pub(super) fn merge(&mut self, other: &CaptureFigures) {
        self.tally.merge(&other.tally);
        self.ring_dropped += other.ring_dropped;
        self.nic_dropped = self.nic_dropped.max(other.nic_dropped);
        self.worker_lost += other.worker_lost;
        self.health.merge(&other.health);
    }
}

/// What the reporter thread is told.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every message is an interval, and a box costs the worker an allocation"
)]
pub(super) enum ToReporter {
    /// An interval of a worker's.
    Interval(WorkerReport),
    /// Something is different from now on. The sender is dropped when it is done.
    Change(Change, Sender<()>),
}

/// What may change while a capture goes on.
pub(super) enum Change {
    /// Workers will watch another target.
    Watch(TargetId, TargetConfig),
    /// No worker watches this target any more: the rest of its figures.
    Retire(Box<Retirement>),
    /// The report settings of another configuration.
    Settings(Box<Config>),
}

/// The last figures of a target: those of its open interval at each worker.
pub(super) struct Retirement {
    pub(super) target: TargetId,
    /// From the start of its open interval to the moment at which it was not watched any more. Workers that take the order in
    /// different intervals make it span both: it then overlaps the target's report before, and no request is in two.
    pub(super) interval: Interval,
    pub(super) harvests: Vec<Harvest>,
    /// Of the open interval, which goes on.
    pub(super) capture: CaptureFigures,
}

/// What a worker is told to do about its targets.
pub(super) enum Order {
    /// To watch one more. Answers when it does, or why it cannot.
    Watch(Box<Watch>),
    /// To watch one no more. Answers with what it has of it, when all that was captured before the order is counted.
    Retire(Box<Retire>),
}

/// One more target.
pub(super) struct Watch {
    pub(super) target: TargetId,
    pub(super) tables: TargetTables,
    /// As many as a worker has buffers in flight.
    pub(super) harvests: Vec<Harvest>,
    /// All targets, this one included.
    pub(super) targets: TargetMap,
    /// The traffic of all targets.
    pub(super) filter: FilterSpec,
    pub(super) done: Sender<Result<(), String>>,
}

/// One target less.
pub(super) struct Retire {
    pub(super) target: TargetId,
    /// The other targets.
    pub(super) targets: TargetMap,
    /// Their traffic; none where the filter is to stay as it is.
    pub(super) filter: Option<FilterSpec>,
    pub(super) done: Sender<Retired>,
}

/// What a worker had of a target.
pub(super) struct Retired {
    /// With what was counted since its last interval was closed.
    pub(super) tables: TargetTables,
    pub(super) interval: Interval,
    /// A copy: the interval of the others goes on.
    pub(super) capture: CaptureFigures,
    /// Its buffers that were at hand.
    pub(super) spent: Vec<Harvest>,
}

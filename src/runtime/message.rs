//! What workers and the reporter thread say to each other.

use crate::collector::Harvest;
use crate::collector::snapshot::CaptureHealth;
use crate::pipeline::CaptureTally;
use crate::runtime::clock::Interval;

/// One worker's figures of one interval, for all targets.
pub(super) struct WorkerReport {
    /// Which worker.
    pub(super) worker: usize,
    /// The interval that it closed.
    pub(super) interval: Interval,
    /// Rows, in the order of the targets; go back to the worker when they have been merged.
    pub(super) harvests: Vec<Harvest>,
    /// What the capture itself saw and lost in the interval.
    pub(super) capture: CaptureFigures,
    /// It is the worker's last.
    pub(super) last: bool,
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

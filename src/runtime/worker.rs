//! One worker: a pipeline, its private tables, and the clock that closes its intervals.
//!
//! Packets come from a ring or from a recording; time comes with them. When an interval is over the worker copies the rows
//! that a report could need into a recycled buffer and sends it to the reporter thread; it never waits for a report to be written.

use crate::capture::Packet;
use crate::collector::{Collector, Harvest};
use crate::model::Timestamp;
use crate::pipeline::Pipeline;
use crate::runtime::clock::{Interval, IntervalClock};
use crate::runtime::message::{CaptureFigures, WorkerReport};
use crate::runtime::target_id;
use crossbeam_channel::{Receiver, Sender};

/// What to do when the reporter has not given back a buffer yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WhenLate {
    /// A recording can wait.
    Wait,
    /// A ring cannot: the interval is lengthened instead, and its report says so by its times.
    Lengthen,
}

/// Makes the machine, at the start and after a failure.
pub(super) type NewPipeline = Box<dyn Fn() -> Pipeline + Send>;

pub(super) struct Worker {
    index: usize,
    new_pipeline: NewPipeline,
    pipeline: Pipeline,
    collector: Collector,
    clock: IntervalClock,
    when_late: WhenLate,
    reports: Sender<WorkerReport>,
    /// Buffers that the reporter has done with.
    buffers: Receiver<Vec<Harvest>>,
    /// Reports on demand that were answered.
    prints: u64,
    /// A part of the open interval was reported on demand, so the rest of it is partial.
    cut: bool,
}

/// Where a worker's reports go and its buffers come from.
pub(super) struct WorkerChannels {
    pub(super) reports: Sender<WorkerReport>,
    pub(super) buffers: Receiver<Vec<Harvest>>,
}

impl Worker {
    pub(super) fn new(
        index: usize,
        new_pipeline: NewPipeline,
        collector: Collector,
        clock: IntervalClock,
        when_late: WhenLate,
        channels: WorkerChannels,
    ) -> Worker {
        let WorkerChannels { reports, buffers } = channels;
        let pipeline = new_pipeline();
        Worker {
            index,
            new_pipeline,
            pipeline,
            collector,
            clock,
            when_late,
            reports,
            buffers,
            prints: 0,
            cut: false,
        }
    }

    /// Forgets every connection after a failure in their midst. What was counted stays counted.
    pub(super) fn begin_anew(&mut self) {
        let failed = std::mem::replace(&mut self.pipeline, (self.new_pipeline)());
        self.pipeline.take_over_counts(failed);
    }

    /// Takes one packet in. `figures` is asked for what the capture itself saw when an interval ends before this packet.
    #[inline]
    pub(super) fn handle_packet(&mut self, packet: &Packet<'_>, figures: impl FnOnce() -> CaptureFigures) {
        if packet.timestamp >= self.clock.end() || !self.clock.is_started() {
            self.advance(packet.timestamp, figures);
        } else {
            self.clock.note(packet.timestamp);
        }
        let collector = &mut self.collector;
        self.pipeline.handle_packet(packet, &mut |tuple, observation| collector.observe(tuple, observation));
    }

    /// Time has passed, with or without packets.
    pub(super) fn advance(&mut self, now: Timestamp, figures: impl FnOnce() -> CaptureFigures) {
        let collector = &mut self.collector;
        self.pipeline.tick(now, &mut |tuple, observation| collector.observe(tuple, observation));
        if self.clock.is_started() && now >= self.clock.end() {
            let Some(buffer) = self.take_buffer() else { return };
            if let Some(interval) = self.clock.advance(now, self.when_late == WhenLate::Wait) {
                self.send(interval, buffer, figures(), false);
            }
        } else {
            self.clock.advance(now, true);
        }
    }

    /// Answers a report on demand (`prints` is the number of those asked for so far) by ending the open interval early.
    pub(super) fn print_on_demand(
        &mut self,
        prints: u64,
        now: Option<Timestamp>,
        figures: impl FnOnce() -> CaptureFigures,
    ) {
        if prints <= self.prints {
            return;
        }
        if let Some(buffer) = self.take_buffer()
            && let Some(interval) = self.clock.cut(now)
        {
            self.send(interval, buffer, figures(), false);
            self.cut = true;
            // Only now: without a buffer the demand is answered in the next round.
            self.prints = prints;
        }
    }

    /// The end of the packets: what is outstanding is given up as unseen, and the last interval is sent.
    pub(super) fn finish(mut self, now: Option<Timestamp>, figures: impl FnOnce() -> CaptureFigures) {
        let collector = &mut self.collector;
        self.pipeline.finish(&mut |tuple, observation| collector.observe(tuple, observation));
        // The last report waits for a buffer: nothing comes after it.
        if let Some(interval) = self.clock.cut(now)
            && let Ok(buffer) = self.buffers.recv()
        {
            self.send(interval, buffer, figures(), true);
        }
    }

    /// The open interval will not be whole, whatever its length says.
    pub(super) fn mark_partial(&mut self) {
        self.cut = true;
    }

    /// Applies what is waiting in the collector's batch: at the end of a block, or before a pause.
    pub(super) fn flush(&mut self) {
        self.collector.flush();
    }

    fn take_buffer(&self) -> Option<Vec<Harvest>> {
        match self.when_late {
            WhenLate::Wait => self.buffers.recv().ok(),
            WhenLate::Lengthen => self.buffers.try_recv().ok(),
        }
    }

    fn send(
        &mut self,
        mut interval: Interval,
        mut harvests: Vec<Harvest>,
        mut capture: CaptureFigures,
        last: bool,
    ) {
        interval.partial |= std::mem::take(&mut self.cut);
        self.collector.flush();
        for (index, harvest) in harvests.iter_mut().enumerate() {
            let target = target_id(index);
            self.collector.add_tally(target, &self.pipeline.take_tally(target));
            self.collector.close_interval(target, harvest);
        }
        capture.tally = self.pipeline.take_capture_tally();
        let report = WorkerReport { worker: self.index, interval, harvests, capture, last };
        // The reporter goes away only when the output has ended, and then nobody wants this.
        drop(self.reports.send(report));
    }
}

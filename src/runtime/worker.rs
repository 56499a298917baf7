//! One worker: a pipeline, its private tables, and the clock that closes its intervals.
//!
//! Packets come from a ring or from a recording; time comes with them. When an interval is over the worker copies the rows
//! that a report could need into a recycled buffer, slice by slice between the packets of the next interval, and sends it to
//! the reporter thread; it never waits for a report to be written.

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

/// Slices of a closed interval that are copied at the end of a block, and in one go while there are no packets: a slice
/// takes some microseconds.
const SLICES_PER_BLOCK: usize = 4;
const SLICES_WHILE_IDLE: usize = 100;

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
    /// The interval that was ended last, until its rows are copied.
    closing: Option<WorkerReport>,
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
            closing: None,
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
            self.complete();
            let Some(buffer) = self.take_buffer() else { return };
            if let Some(interval) = self.clock.advance(now, self.when_late == WhenLate::Wait) {
                self.begin_close(interval, buffer, figures(), false);
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
        self.complete();
        if let Some(buffer) = self.take_buffer()
            && let Some(interval) = self.clock.cut(now)
        {
            self.begin_close(interval, buffer, figures(), false);
            self.cut = true;
            // Only now: without a buffer the demand is answered in the next round.
            self.prints = prints;
        }
    }

    /// The end of the packets: what is outstanding is given up as unseen, and the last interval is sent.
    pub(super) fn finish(mut self, now: Option<Timestamp>, figures: impl FnOnce() -> CaptureFigures) {
        let collector = &mut self.collector;
        self.pipeline.finish(&mut |tuple, observation| collector.observe(tuple, observation));
        self.complete();
        // The last report waits for a buffer: nothing comes after it.
        if let Some(interval) = self.clock.cut(now)
            && let Ok(buffer) = self.buffers.recv()
        {
            self.begin_close(interval, buffer, figures(), true);
            self.complete();
        }
    }

    /// The open interval will not be whole, whatever its length says.
    pub(super) fn mark_partial(&mut self) {
        self.cut = true;
    }

    /// The end of a block, or a pause: applies what is waiting in the collector's batch.
    pub(super) fn flush(&mut self) {
        self.collector.flush();
        self.sweep(SLICES_PER_BLOCK);
    }

    /// Uses a moment without packets. False: there is nothing to do.
    pub(super) fn idle(&mut self) -> bool {
        let closing = self.closing.is_some();
        self.sweep(SLICES_WHILE_IDLE);
        closing
    }

    /// Copies slices of the interval that was ended last, and sends it when it is complete.
    fn sweep(&mut self, slices: usize) {
        if self.closing.is_some() && (0..slices).any(|_| self.collector.sweep()) {
            self.complete();
        }
    }

    /// Sends the interval that was ended last, after copying what is left of it.
    fn complete(&mut self) {
        let Some(mut report) = self.closing.take() else { return };
        for (index, harvest) in report.harvests.iter_mut().enumerate() {
            self.collector.end_close(target_id(index), harvest);
        }
        // The reporter goes away only when the output has ended, and then nobody wants this.
        drop(self.reports.send(report));
    }

    fn take_buffer(&self) -> Option<Vec<Harvest>> {
        match self.when_late {
            WhenLate::Wait => self.buffers.recv().ok(),
            WhenLate::Lengthen => self.buffers.try_recv().ok(),
        }
    }

    /// Ends the interval in the tables.
    fn begin_close(
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
            self.collector.begin_close(target, harvest);
        }
        capture.tally = self.pipeline.take_capture_tally();
        self.closing = Some(WorkerReport { worker: self.index, interval, harvests, capture, last });
    }
}

#[cfg(test)]
mod tests;

//! One worker: a pipeline, its private tables, and the clock that closes its intervals.
//!
//! Packets come from a ring or from a recording; time comes with them. When an interval is over the worker copies the rows
//! that a report could need into a recycled buffer, slice by slice between the packets of the next interval, and sends it to
//! the reporter thread; it never waits for a report to be written.

use crate::capture::Packet;
use crate::collector::{Collector, Harvest, TargetTables};
use crate::model::{TargetId, Timestamp};
use crate::pipeline::{Pipeline, TargetMap};
use crate::runtime::clock::{Interval, IntervalClock};
use crate::runtime::message::{CaptureFigures, Retired, TargetHarvest, ToReporter, WorkerReport};
use crate::runtime::pipeline_limits;
use crate::runtime::replay::BUFFERS_PER_WORKER;
use crossbeam_channel::{Receiver, Sender};

/// What to do when the reporter has not given back a buffer yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WhenLate {
    /// A recording can wait.
    Wait,
    /// A ring cannot: the interval is lengthened instead, to the next boundary, and its report says so by its times.
    Lengthen,
}

/// Slices of a closed interval that are copied at the end of a block, and in one go while there are no packets: a slice
/// takes some microseconds.
const SLICES_PER_BLOCK: usize = 4;
const SLICES_WHILE_IDLE: usize = 100;

pub(super) struct Worker {
    index: usize,
    pipeline: Pipeline,
    collector: Collector,
    clock: IntervalClock,
    when_late: WhenLate,
    reports: Sender<ToReporter>,
    /// Buffers that the reporter has done with.
    buffers: Receiver<Vec<TargetHarvest>>,
    /// Some of these, to be used first.
    at_hand: Vec<Vec<TargetHarvest>>,
    /// In the order of their numbers.
    watched: Vec<Watched>,
    /// Reports on demand that were answered.
    prints: u64,
    /// A part of the open interval was reported on demand, so the rest of it is partial.
    cut: bool,
    /// The interval that was ended last, until its rows are copied.
    closing: Option<WorkerReport>,
}

/// Where a worker's reports go and its buffers come from.
pub(super) struct WorkerChannels {
    pub(super) reports: Sender<ToReporter>,
    pub(super) buffers: Receiver<Vec<TargetHarvest>>,
}

/// A target that is watched.
struct Watched {
    target: TargetId,
    /// The beginning, for those that were there before.
    since: Timestamp,
    /// Buffers that are not in flight yet: each that flies takes one along.
    harvests: Vec<Harvest>,
}

impl Worker {
    pub(super) fn new(
        index: usize,
        pipeline: Pipeline,
        collector: Collector,
        clock: IntervalClock,
        when_late: WhenLate,
        channels: WorkerChannels,
    ) -> Worker {
        let WorkerChannels { reports, buffers } = channels;
        let watched = pipeline.targets().ids().map(|target| Watched {
            target,
            since: Timestamp::ZERO,
            harvests: Vec::new(),
        });
        Worker {
            index,
            watched: watched.collect(),
            pipeline,
            collector,
            clock,
            when_late,
            reports,
            buffers,
            at_hand: Vec::with_capacity(BUFFERS_PER_WORKER),
            prints: 0,
            cut: false,
            closing: None,
        }
    }

    /// Forgets every connection after a failure in their midst. What was counted stays counted, and what servers told stays known.
    pub(super) fn begin_anew(&mut self) {
        let anew = self.pipeline.beside(pipeline_limits());
        let failed = std::mem::replace(&mut self.pipeline, anew);
        self.pipeline.take_over_counts(failed);
    }

    /// When the open interval ends, as far as that is known.
    pub(super) fn interval_end(&self) -> Timestamp {
        self.clock.end()
    }

    /// Takes one packet in. `figures` is asked for what the capture itself saw when an interval ends before this packet, and told when
    /// that was.
    #[inline]
    pub(super) fn handle_packet(
        &mut self,
        packet: &Packet<'_>,
        figures: impl FnMut(Timestamp) -> CaptureFigures,
    ) {
        if packet.timestamp >= self.clock.end() || !self.clock.is_started() {
            self.advance(packet.timestamp, figures);
        } else {
            self.clock.note(packet.timestamp);
        }
        let collector = &mut self.collector;
        self.pipeline.handle_packet(packet, &mut |tuple, observation| collector.observe(tuple, observation));
    }

    /// Time has passed, with or without packets. Whatever is counted next, up to `now`, is of the interval that is open then.
    pub(super) fn advance(&mut self, now: Timestamp, mut figures: impl FnMut(Timestamp) -> CaptureFigures) {
        let collector = &mut self.collector;
        self.pipeline.tick(now, &mut |tuple, observation| collector.observe(tuple, observation));
        // After a silence, several intervals are over; not more of them than there can be buffers for are reported one by one.
        for _ in 0..BUFFERS_PER_WORKER {
            if !self.clock.is_started() || now < self.clock.end() {
                break;
            }
            self.complete();
            let Some(buffer) = self.take_buffer() else { break };
            if let Some(interval) = self.clock.advance(now, self.when_late == WhenLate::Wait) {
                self.begin_close(interval, buffer, figures(interval.end), false);
            }
        }
        self.clock.lengthen(now);
    }

    /// Whether a report on demand has yet to be answered; `prints` as in [`Worker::print_on_demand`].
    pub(super) fn owes_print(&self, prints: u64) -> bool {
        prints > self.prints
    }

    /// Answers a report on demand (`prints` is the number of those asked for so far) by ending the open interval early.
    pub(super) fn print_on_demand(
        &mut self,
        prints: u64,
        now: Option<Timestamp>,
        figures: impl FnOnce(Timestamp) -> CaptureFigures,
    ) {
        if !self.owes_print(prints) {
            return;
        }
        self.complete();
        if let Some(buffer) = self.take_buffer()
            && let Some(interval) = self.clock.cut(now)
        {
            self.begin_close(interval, buffer, figures(interval.end), false);
            self.cut = true;
            // Only now: without a buffer the demand is answered in the next round.
            self.prints = prints;
        }
    }

    /// The end of the packets: what is outstanding is given up as unseen, and the last interval is sent.
    pub(super) fn finish(
        mut self,
        now: Option<Timestamp>,
        figures: impl FnOnce(Timestamp) -> CaptureFigures,
    ) {
        let collector = &mut self.collector;
        self.pipeline.finish(&mut |tuple, observation| collector.observe(tuple, observation));
        self.complete();
        // The last report waits for a buffer: nothing comes after it.
        if let Some(interval) = self.clock.cut(now)
            && let Some(buffer) = self.at_hand.pop().or_else(|| self.buffers.recv().ok())
        {
            self.begin_close(interval, buffer, figures(interval.end), true);
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
        for entry in &mut report.harvests {
            self.collector.end_close(entry.target, &mut entry.harvest);
        }
        // The reporter goes away only when the output has ended, and then nobody wants this.
        drop(self.reports.send(ToReporter::Interval(report)));
    }

    fn take_buffer(&mut self) -> Option<Vec<TargetHarvest>> {
        self.at_hand.pop().or_else(|| match self.when_late {
            WhenLate::Wait => self.buffers.recv().ok(),
            WhenLate::Lengthen => self.buffers.try_recv().ok(),
        })
    }

    /// Makes a buffer one of the targets that are watched now; returns what it held of others.
    fn fit(&mut self, buffer: &mut Vec<TargetHarvest>) -> Vec<Harvest> {
        let mut spent = Vec::new();
        let watched = self.watched.iter().map(|watched| watched.target);
        if watched.eq(buffer.iter().map(|entry| entry.target)) {
            return spent;
        }
        let mut entries = std::mem::take(buffer).into_iter().peekable();
        for watched in &mut self.watched {
            while let Some(gone) = entries.next_if(|entry| entry.target < watched.target) {
                spent.push(gone.harvest);
            }
            let known = entries.next_if(|entry| entry.target == watched.target);
            let new = || watched.harvests.pop().map(|harvest| TargetHarvest::new(watched.target, harvest));
            buffer.extend(known.or_else(new));
        }
        spent.extend(entries.map(|gone| gone.harvest));
        spent
    }

    /// Ends the interval in the tables.
    fn begin_close(
        &mut self,
        mut interval: Interval,
        mut harvests: Vec<TargetHarvest>,
        mut capture: CaptureFigures,
        last: bool,
    ) {
        interval.partial |= std::mem::take(&mut self.cut);
        let spent = self.fit(&mut harvests);
        self.collector.flush();
        for entry in &mut harvests {
            let target = entry.target;
            let at = self.watched.binary_search_by_key(&target, |watched| watched.target);
            entry.start = interval.start.max(at.map_or(Timestamp::ZERO, |at| self.watched[at].since));
            self.collector.add_tally(target, &self.pipeline.take_tally(target));
            self.collector.begin_close(target, &mut entry.harvest);
        }
        capture.tally = self.pipeline.take_capture_tally();
        self.closing = Some(WorkerReport { worker: self.index, interval, harvests, spent, capture, last });
    }

    /// Watches one more target from now on. `targets` are all of them, and `harvests` a buffer for each that is in flight.
    pub(super) fn watch(
        &mut self,
        target: TargetId,
        tables: TargetTables,
        harvests: Vec<Harvest>,
        targets: TargetMap,
    ) {
        debug_assert!(self.watched.last().is_none_or(|last| last.target < target), "numbers rise");
        self.collector.install(target, tables);
        self.pipeline.set_targets(targets);
        // What was noted for every target, before there was this one.
        self.pipeline.take_tally(target);
        self.watched.push(Watched { target, since: self.clock.now(), harvests });
    }

    /// Up to when everything that was captured has been counted, and time has passed.
    pub(super) fn seen_until(&self) -> Timestamp {
        self.clock.now()
    }

    /// Meets no more flows of a target that is not among these.
    pub(super) fn set_targets(&mut self, targets: TargetMap) {
        self.pipeline.set_targets(targets);
    }

    /// A step of ending a target's flows; see [`Pipeline::close_target`].
    pub(super) fn close_target(&mut self, target: TargetId, from: usize) -> Option<usize> {
        let collector = &mut self.collector;
        self.pipeline
            .close_target(target, from, &mut |tuple, observation| collector.observe(tuple, observation))
    }

    /// Whether rows of an ended interval have yet to be copied.
    pub(super) fn is_closing(&self) -> bool {
        self.closing.is_some()
    }

    /// Watches a target no more, and hands over what there is of it. Its flows are to be ended before. `capture` are the figures of the
    /// open interval so far, which goes on for the others.
    pub(super) fn retire(&mut self, target: TargetId, mut capture: CaptureFigures) -> Option<Retired> {
        self.complete();
        let at = self.watched.iter().position(|watched| watched.target == target)?;
        self.collector.add_tally(target, &self.pipeline.take_tally(target));
        let tables = self.collector.remove(target)?;
        let Watched { since, harvests: mut spent, .. } = self.watched.remove(at);
        let mut interval = self.clock.open();
        interval.start = interval.start.max(since);
        interval.end = interval.end.max(interval.start);
        capture.tally = self.pipeline.capture_tally().clone();
        // Those at the reporter's, if any, are sorted out when they are used next.
        self.at_hand.extend(self.buffers.try_iter());
        for buffer in &mut self.at_hand {
            if let Some(at) = buffer.iter().position(|entry| entry.target == target) {
                spent.push(buffer.remove(at).harvest);
            }
        }
        Some(Retired { tables, interval, capture, spent })
    }
}

#[cfg(test)]
mod target_tests;
#[cfg(test)]
mod tests;

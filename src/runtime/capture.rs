//! The thread of one worker: its rings on all interfaces, read until somebody says stop.
//!
//! Interfaces come and go: new rings arrive over a channel, and a ring whose interface was deleted is handed back. A failure of
//! our own (a panic) costs the packets of one block and what was remembered of connections, not the capture.

mod orders;

use crate::capture::filter::{FilterSpec, SNAPLEN_NONE};
use crate::capture::interface::Interface;
use crate::capture::ladder::{Ladder, RingLook, Rung};
use crate::capture::ring::{self, Block, RINGS_PER_WORKER_MAX, Ring, RingState, RingStatistics};
use crate::cli::Exit;
use crate::config::LoadLadder;
use crate::model::Timestamp;
use crate::runtime::failure::Failure;
use crate::runtime::fault::Fault;
use crate::runtime::links::LinkBoard;
use crate::runtime::message::{CaptureFigures, Order};
use crate::runtime::signals::Requests;
use crate::runtime::worker::Worker;
use crossbeam_channel::{Receiver, Sender};
use orders::Retiring;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Longest sleep of a worker without packets: ten wake-ups a second cost 0.1 % of a core and bound the time to stop.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// A block waits up to its retire timeout (60 ms) before we see its packets; time passes for an idle worker only this much later,
/// so that packets on their way still find their interval open.
const GRACE: Duration = Duration::from_millis(250);

/// A ring that shows no block holds nothing that came longer ago: the retire timeout, and some time for the timer of older kernels
/// and for us.
const SETTLED_AFTER: Duration = Duration::from_millis(90);

/// Sleep of a worker that has packets on one ring and waits whether another has earlier ones.
const NAP: Duration = Duration::from_millis(5);

/// Kernel counters are 32 bits wide and tell of drops: they are read this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// So many failures of a worker …
const RESTARTS_MAX: usize = 3;

/// … within this time, and it is not bad luck.
const RESTARTS_WITHIN: Duration = Duration::from_secs(60);

/// A ring that a worker is to read from now on.
pub(super) struct Arrival {
    pub(super) interface: Interface,
    pub(super) ring: Ring,
}

/// A ring whose interface was deleted.
pub(super) struct Departure {
    pub(super) interface_index: u32,
    pub(super) ring: Ring,
}

/// What there was to read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// Packets, and there may be more.
    Some,
    /// Packets that may have predecessors on another ring.
    Waiting,
    Nothing,
}

/// What a worker's thread is connected to.
pub(super) struct CaptureChannels {
    pub(super) arrivals: Receiver<Arrival>,
    pub(super) departures: Sender<Departure>,
    pub(super) orders: Receiver<Order>,
    pub(super) links: Arc<LinkBoard>,
}

/// A worker with its rings.
pub(super) struct Capture {
    worker: Worker,
    rings: Vec<Ring>,
    /// What is known beside each ring, in the same order.
    taps: Vec<Tap>,
    load_ladder: LoadLadder,
    channels: CaptureChannels,
    requests: Requests,
    book: Book,
    looked: Instant,
    /// When the kernel's counters were last read.
    counted: Timestamp,
    /// The traffic that is wanted since the targets changed.
    wanted: Option<FilterSpec>,
    retiring: Option<Retiring>,
    /// Packets of the block that is being read, and how many of them were taken.
    in_block: Option<(u32, u32)>,
    /// When the worker failed of late.
    failures: VecDeque<Instant>,
    fault: Fault,
}

/// What is known of a ring.
struct Tap {
    interface: Interface,
    /// The traffic that is wanted when there is no hurry.
    wanted: FilterSpec,
    ladder: Ladder,
    /// State that the operator was last told of.
    told: RingState,
    /// The totals when they were last read, to tell what is new.
    seen: RingStatistics,
    /// What came to them since the ladder's last look.
    since_look: RingLook,
    nic_seen: Option<u64>,
}

/// Figures of the open interval, with what holds beyond its end.
#[derive(Default)]
struct Book {
    figures: CaptureFigures,
    rung: Rung,
    /// The rung before the last step up, and when that was: what was captured until then was kept by it.
    left: (Rung, Timestamp),
}

impl Book {
    /// The figures of an interval that ended then; those of the next one begin.
    fn take(&mut self, end: Timestamp) -> CaptureFigures {
        let mut next = CaptureFigures::default();
        next.health.rung = self.rung;
        // An interval is ended some time after its end, and the filter may have been exchanged meanwhile.
        let (left, until) = self.left;
        if end < until {
            next.health.rung = self.rung.max(left);
        }
        next.health.ring_blocks = self.figures.health.ring_blocks;
        std::mem::replace(&mut self.figures, next)
    }

    /// The lowest rung in force from now on.
    fn note_rung(&mut self, rung: Rung, now: Timestamp) {
        if rung < self.rung {
            self.left = (self.rung, now);
        }
        self.rung = rung;
        let lowest = &mut self.figures.health.rung;
        *lowest = rung.max(*lowest);
    }
}

impl Capture {
    pub(super) fn new(
        worker: Worker,
        load_ladder: LoadLadder,
        channels: CaptureChannels,
        requests: Requests,
    ) -> Capture {
        let mut book = Book { rung: load_ladder.rung(), ..Book::default() };
        book.figures.health.rung = book.rung;
        Capture {
            worker,
            rings: Vec::with_capacity(RINGS_PER_WORKER_MAX),
            taps: Vec::with_capacity(RINGS_PER_WORKER_MAX),
            load_ladder,
            channels,
            requests,
            book,
            looked: Instant::now(),
            counted: Timestamp::ZERO,
            wanted: None,
            retiring: None,
            in_block: None,
            failures: VecDeque::with_capacity(RESTARTS_MAX),
            fault: Fault::from_environment(),
        }
    }

    pub(super) fn run(mut self) -> Result<(), Failure> {
        self.take_arrivals();
        let mut ended = Ok(());
        while !self.requests.must_stop() && ended.is_ok() {
            ended = match catch_unwind(AssertUnwindSafe(|| self.turn())) {
                Ok(turned) => turned,
                Err(_) => self.begin_anew(),
            };
        }
        self.requests.stop();
        if catch_unwind(AssertUnwindSafe(|| self.drain())).is_err() {
            // There is no next time to fail; the last report tells.
            drop(self.begin_anew());
        }
        let last = AssertUnwindSafe(|| {
            // No packet waits any more.
            self.channels.links.ask_dropped(self.taps.iter().map(|tap| tap.interface.index));
            self.look();
            let Capture { worker, mut book, .. } = self;
            worker.finish(Some(now()), |end| book.take(end));
        });
        let finished = catch_unwind(last).map_err(|_| Failure::new(Exit::Failure, "the last report failed"));
        ended.and(finished)
    }

    /// One round: a block of each ring; what is due each second; the clock. Sleeps when there was nothing to read.
    fn turn(&mut self) -> Result<(), Failure> {
        self.take_arrivals();
        let is_busy = self.mind_orders();
        self.count_before_close();
        let reading = self.read();
        if self.looked.elapsed() >= LOOK_EVERY {
            self.look();
            self.mind_interfaces()?;
        }
        let prints = self.requests.prints();
        if self.worker.owes_print(prints) {
            // What was dropped until now belongs to what is printed now.
            self.count();
        }
        let book = &mut self.book;
        self.worker.print_on_demand(prints, Some(now()), |end| book.take(end));
        if reading != Reading::Some {
            self.worker.advance(now().minus(GRACE), |end| self.book.take(end));
            if self.worker.idle() || is_busy {
                // An interval is being closed, or a target is: there may be packets by now.
                return Ok(());
            }
        }
        match reading {
            Reading::Some => Ok(()),
            Reading::Waiting => {
                thread::sleep(NAP);
                Ok(())
            }
            Reading::Nothing => {
                ring::wait(&mut self.rings, WAIT_MAX).map_err(|error| Failure::new(Exit::Failure, error))
            }
        }
    }

    /// Packets of the rings in the order of their capture, up to the end of a block.
    ///
    /// A connection may show its requests on one interface and its answers on another (a mirror with a port for each direction,
    /// asymmetric routes), and what an answer means depends on what was asked before. A block is seen when it is full or its time is
    /// over; so a ring that shows nothing has nothing older than that.
    fn read(&mut self) -> Reading {
        if let [ring] = &mut self.rings[..] {
            let Some(block) = ring.next_block() else { return Reading::Nothing };
            Capture::read_until(
                block,
                Timestamp::MAX,
                &mut self.worker,
                &mut self.book,
                &mut self.in_block,
                &self.fault,
            );
            return Reading::Some;
        }
        let now = now();
        let settled = now.minus(SETTLED_AFTER);
        let mut earliest: Option<(usize, Timestamp)> = None;
        let mut limit = Timestamp::MAX;
        for (at, ring) in self.rings.iter_mut().enumerate() {
            let Some(next) = ring.next_timestamp() else {
                if ring.has_block() {
                    // It is empty or damaged; what there is to be said of it is said when it is read.
                    earliest = Some((at, Timestamp::from_nanos(0)));
                    break;
                }
                limit = limit.min(settled);
                continue;
            };
            match earliest {
                Some((_, other)) if other <= next => limit = limit.min(next),
                _ => {
                    limit = limit.min(earliest.map_or(Timestamp::MAX, |(_, other)| other));
                    earliest = Some((at, next));
                }
            }
        }
        let Some((at, next)) = earliest else { return Reading::Nothing };
        // A packet of the future comes from before the clock was set back: nothing is to be waited for.
        if next > limit && next <= now {
            return Reading::Waiting;
        }
        let limit = limit.max(next);
        let Some(block) = self.rings[at].next_block() else { return Reading::Nothing };
        Capture::read_until(block, limit, &mut self.worker, &mut self.book, &mut self.in_block, &self.fault);
        Reading::Some
    }

    fn read_until(
        mut block: Block<'_>,
        limit: Timestamp,
        worker: &mut Worker,
        book: &mut Book,
        in_block: &mut Option<(u32, u32)>,
        fault: &Fault,
    ) {
        let (_, taken) = in_block.insert((block.packets_left(), 0));
        block.for_each_packet_until(limit, |captured| {
            *taken += 1;
            fault.strike(captured.packet.bytes);
            worker.handle_packet(&captured.packet, |end| book.take(end));
        });
        worker.flush();
        *in_block = None;
    }

    /// The worker has failed. The block went back to the kernel when its guard was dropped; what was remembered of connections may
    /// contradict itself and is dropped as well. The tables stay: what they hold was counted before.
    fn begin_anew(&mut self) -> Result<(), Failure> {
        // The packet at fault was taken and not counted.
        let lost = self.in_block.take().map_or(0, |(packets, taken)| packets.saturating_sub(taken) + 1);
        self.worker.begin_anew();
        self.book.figures.worker_lost += u64::from(lost);
        self.book.figures.health.worker_restarts += 1;
        tracing::error!(
            "a worker failed and began anew; {lost} packets of its block are lost; please report this as a bug"
        );
        let now = Instant::now();
        self.failures.retain(|failure| now - *failure < RESTARTS_WITHIN);
        self.failures.push_back(now);
        if self.failures.len() < RESTARTS_MAX {
            return Ok(());
        }
        Err(Failure::new(
            Exit::Failure,
            format!(
                "a worker failed {RESTARTS_MAX} times within {} s; please report this as a bug",
                RESTARTS_WITHIN.as_secs()
            ),
        ))
    }

    /// The kernel keeps the last, partly filled block for its retire timeout; a capture stopped at once would lose its tail.
    fn drain(&mut self) {
        self.take_arrivals();
        let until = Instant::now() + GRACE;
        while Instant::now() < until {
            match self.read() {
                Reading::Some => {}
                Reading::Waiting => thread::sleep(NAP),
                Reading::Nothing if ring::wait(&mut self.rings, 4 * NAP).is_err() => break,
                Reading::Nothing => {}
            }
        }
    }

    /// What is due each second.
    fn look(&mut self) {
        self.looked = Instant::now();
        self.count();
        if self.load_ladder == LoadLadder::Auto {
            self.mind_ladder();
        }
        // After a step, which may have led to where addresses matter.
        self.mind_addresses();
    }

    /// Keeps less or more of the traffic by the kernel's counters.
    fn mind_ladder(&mut self) {
        for (ring, tap) in self.rings.iter_mut().zip(&mut self.taps) {
            if let Some(rung) = tap.ladder.look(std::mem::take(&mut tap.since_look)) {
                tap.step(ring, rung);
            }
        }
        let rung = self.taps.iter().map(|tap| tap.ladder.rung()).max().unwrap_or_default();
        self.book.note_rung(rung, now());
    }

    /// An address may have moved to another host, as when a server is replaced: what this one sends there are requests.
    fn mind_addresses(&mut self) {
        let Some(tap) = self.taps.iter().find(|tap| tap.wanted.servers_are_own) else { return };
        // Otherwise it makes no difference.
        let relies_on_it = |ring: &Ring| ring.filter().response_snaplen == SNAPLEN_NONE;
        if !self.rings.iter().any(relies_on_it) || self.channels.links.are_own(&tap.wanted.servers) {
            return;
        }
        for (ring, tap) in self.rings.iter_mut().zip(&mut self.taps) {
            let wanted = FilterSpec { servers_are_own: false, ..tap.wanted.clone() };
            let widened = tap.want(ring, &wanted);
            let name = &tap.interface.name;
            match widened {
                Ok(()) => tracing::info!(
                    "{name}: what this host sends is kept: not all servers that were here still are"
                ),
                Err(error) => {
                    tracing::warn!("{name}: requests to servers that were here are not seen: {error}")
                }
            }
        }
    }

    /// What the kernel dropped until an interval ended belongs to that interval: so it is counted before a packet from after the end closes
    /// it.
    fn count_before_close(&mut self) {
        let end = self.worker.interval_end();
        if self.counted < end && now() >= end {
            self.count();
        }
    }

    /// Adds what the kernel counted since the last time to the figures of the open interval.
    fn count(&mut self) {
        self.counted = now();
        let health = &mut self.book.figures.health;
        for (ring, tap) in self.rings.iter_mut().zip(&mut self.taps) {
            let Ok(statistics) = ring.statistics() else { continue };
            let dropped = statistics.packets_dropped - tap.seen.packets_dropped;
            self.book.figures.ring_dropped += dropped;
            health.freezes += statistics.freezes - tap.seen.freezes;
            if statistics.blocks_waiting_max >= health.ring_blocks_peak {
                (health.ring_blocks_peak, health.ring_blocks) =
                    (statistics.blocks_waiting_max, statistics.blocks_total);
            }
            tap.since_look.add(RingLook {
                packets: statistics.packets - tap.seen.packets,
                packets_dropped: dropped,
                blocks_waiting_max: statistics.blocks_waiting_max,
                blocks: statistics.blocks_total,
            });
            tap.seen = statistics;
            let nic_drops = self.channels.links.dropped(tap.interface.index);
            if let (Some(now), Some(before)) = (nic_drops, tap.nic_seen) {
                self.book.figures.nic_dropped += now.saturating_sub(before);
            }
            tap.nic_seen = nic_drops.or(tap.nic_seen);
        }
    }

    /// New rings.
    fn take_arrivals(&mut self) {
        while self.rings.len() < RINGS_PER_WORKER_MAX
            && let Ok(Arrival { interface, mut ring }) = self.channels.arrivals.try_recv()
        {
            let mut tap = Tap {
                wanted: ring.filter().clone(),
                ladder: Ladder::default(),
                told: ring.state(),
                // Packets may have come, and been dropped, since it was opened: those are counted next.
                seen: ring.statistics_before(),
                since_look: RingLook::default(),
                nic_seen: self.channels.links.dropped(interface.index),
                interface,
            };
            // It may have been opened before the targets changed.
            if let Some(wanted) = &self.wanted
                && let Err(error) = tap.want(&mut ring, wanted)
            {
                tracing::warn!("{}: {error}", tap.interface.name);
            }
            self.taps.push(tap);
            let health = &mut self.book.figures.health;
            health.ring_blocks = health.ring_blocks.max(ring.shape().blocks);
            self.rings.push(ring);
        }
    }

    /// Tells of interfaces that went down or came up, and hands back the rings of those that are no more. (One that was deleted
    /// never speaks again; one of the same name is another.)
    fn mind_interfaces(&mut self) -> Result<(), Failure> {
        let mut at = 0;
        while at < self.rings.len() {
            let (ring, tap) = (&mut self.rings[at], &mut self.taps[at]);
            let state = ring.check_state().map_err(|error| Failure::new(Exit::Failure, error))?;
            let before = std::mem::replace(&mut tap.told, state);
            if before != state {
                tracing::warn!("{} is {}", tap.interface.name, state_text(state));
            } else if state == RingState::Gone {
                // Gone since the last look, so that what had come before was read and counted.
                let (ring, tap) = (self.rings.swap_remove(at), self.taps.swap_remove(at));
                let departure = Departure { interface_index: tap.interface.index, ring };
                // Without anybody to take it, it is closed.
                drop(self.channels.departures.try_send(departure));
                continue;
            }
            at += 1;
        }
        Ok(())
    }
}

impl Tap {
    /// Exchanges the filter for another rung's, and says what came of it.
    fn step(&mut self, ring: &mut Ring, rung: Rung) {
        let name = &self.interface.name;
        match ring.set_filter(&rung.apply(&self.wanted)) {
            Ok(_) => {
                tracing::warn!("{name}: load ladder: keeping {}; {}", rung.name(), rung.cost());
                self.ladder.step(rung);
            }
            Err(error) => {
                let kept = self.ladder.rung().name();
                tracing::warn!("{name}: load ladder: still keeping {kept}: {error}");
            }
        }
    }
}

/// The wall clock. Packets of the ring carry the same clock, so the two can be compared.
pub(super) fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_parts(since_epoch.as_secs(), since_epoch.subsec_nanos())
}

fn state_text(state: RingState) -> &'static str {
    match state {
        RingState::Running => "up, capture goes on",
        RingState::Down => "down, waiting for it to come up",
        RingState::Gone => "gone, waiting for one of its name",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64, millis: u32) -> Timestamp {
        Timestamp::from_parts(secs, millis * 1_000_000)
    }

    #[test]
    fn an_interval_tells_the_lowest_rung_that_its_packets_were_kept_by() {
        let mut book = Book::default();
        book.note_rung(Rung::Heads, at(7, 500));
        assert_eq!(book.take(at(8, 0)).health.rung, Rung::Heads, "stepped down in its midst");
        // The next interval has begun, and the one before is open yet for packets on their way.
        book.note_rung(Rung::Full, at(9, 100));
        assert_eq!(book.take(at(9, 0)).health.rung, Rung::Heads, "heads all the time");
        assert_eq!(book.take(at(10, 0)).health.rung, Rung::Heads, "heads in its first tenth");
        assert_eq!(book.take(at(11, 0)).health.rung, Rung::Full);
    }
}

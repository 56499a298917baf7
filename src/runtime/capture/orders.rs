//! What a worker does when its targets change, between two blocks: one more is watched, or one less. The others notice nothing.
//!
//! A new target's tables come ready to use. Of one that goes, everything is counted that was captured until the order came: the kernel's
//! filter is narrowed at once, the target's flows are ended when its last packets have been read, a step for each block, and its
//! tables are handed over as they are.

use super::{Capture, Tap, now};
use crate::capture::filter::FilterSpec;
use crate::capture::ring::{Ring, RingError};
use crate::model::{TargetId, Timestamp};
use crate::pipeline::TargetMap;
use crate::runtime::message::{Order, Retire, Retired, Watch};
use crossbeam_channel::Sender;
use std::time::{Duration, Instant};

/// Longest wait for a target's last packets: where the reporter does not take intervals any more, time stands still.
const LAST_PACKETS_MAX: Duration = Duration::from_secs(5);

/// A target on its way out.
pub(super) struct Retiring {
    target: TargetId,
    /// When the order came; what was captured before is counted.
    asked: Timestamp,
    asked_at: Instant,
    done: Sender<Retired>,
    stage: Stage,
}

enum Stage {
    /// Its last packets may still be in a ring.
    LastPackets(TargetMap),
    /// Its flows are ended, from this slot on.
    Flows(usize),
    /// Its tables are to be taken out.
    Tables,
}

impl Capture {
    /// Takes orders and goes on with what was begun. True: there is more to do without any packet.
    pub(super) fn mind_orders(&mut self) -> bool {
        while self.retiring.is_none()
            && let Ok(order) = self.channels.orders.try_recv()
        {
            match order {
                Order::Watch(watch) => self.watch(*watch),
                Order::Retire(retire) => self.begin_retiring(*retire),
            }
        }
        self.go_on_retiring()
    }

    fn watch(&mut self, watch: Watch) {
        let Watch { target, tables, harvests, targets, filter, done } = watch;
        // Before a packet of it can come.
        self.worker.watch(target, tables, harvests, targets);
        let widened = self.want(filter);
        // Nobody waits any more when everything ends.
        drop(done.send(widened.map_err(|error| error.to_string())));
    }

    fn begin_retiring(&mut self, retire: Retire) {
        let Retire { target, targets, filter, done } = retire;
        if let Some(filter) = filter
            && let Err(error) = self.want(filter)
        {
            tracing::warn!("the kernel's filter keeps more than it should: {error}");
        }
        let stage = Stage::LastPackets(targets);
        self.retiring = Some(Retiring { target, asked: now(), asked_at: Instant::now(), done, stage });
    }

    fn go_on_retiring(&mut self) -> bool {
        let Some(mut retiring) = self.retiring.take() else { return false };
        let target = retiring.target;
        retiring.stage = match retiring.stage {
            Stage::LastPackets(targets) => {
                let seen_all = self.worker.seen_until() >= retiring.asked;
                if seen_all || retiring.asked_at.elapsed() >= LAST_PACKETS_MAX {
                    self.worker.set_targets(targets);
                    Stage::Flows(0)
                } else {
                    retiring.stage = Stage::LastPackets(targets);
                    self.retiring = Some(retiring);
                    return false;
                }
            }
            Stage::Flows(from) => self.worker.close_target(target, from).map_or(Stage::Tables, Stage::Flows),
            // Two intervals at a time would have to be copied at once.
            Stage::Tables if self.worker.is_closing() => Stage::Tables,
            Stage::Tables => {
                if let Some(retired) = self.worker.retire(target, self.book.figures.clone()) {
                    drop(retiring.done.send(retired));
                }
                return true;
            }
        };
        self.retiring = Some(retiring);
        true
    }

    /// Exchanges the filters of all rings, and of those to come.
    fn want(&mut self, filter: FilterSpec) -> Result<(), RingError> {
        let wanted = self.rings.iter_mut().zip(&mut self.taps);
        let result = wanted.map(|(ring, tap)| tap.want(ring, &filter)).fold(Ok(()), Result::and);
        self.wanted = Some(filter);
        result
    }
}

impl Tap {
    /// Exchanges the filter of a ring, whatever its ladder's rung. How packets begin and which copies are refused is the interface's.
    pub(super) fn want(&mut self, ring: &mut Ring, filter: &FilterSpec) -> Result<(), RingError> {
        let FilterSpec { link, outgoing, .. } = self.wanted;
        self.wanted = FilterSpec { link, outgoing, ..filter.clone() };
        ring.set_filter(&self.ladder.rung().apply(&self.wanted)).map(drop)
    }
}

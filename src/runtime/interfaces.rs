//! Interfaces that come, go, and come back while we capture.
//!
//! One thread is told by the kernel (rtnetlink(7)) when links or addresses change, chooses anew as at the start, and opens rings on
//! what is new: on sockets that were opened before privileges were given up, or with rings that an interface has left behind.

use crate::capture::interface::{self, Interface, LinkWatch};
use crate::capture::ring::{RINGS_PER_WORKER_MAX, Ring, RingError, RingOptions};
use crate::capture::socket::PacketSocket;
use crate::cli::Exit;
use crate::config::{Config, Interfaces, TargetConfig};
use crate::runtime::capture::{Arrival, Departure};
use crate::runtime::failure::Failure;
use crate::runtime::links::LinkBoard;
use crate::runtime::live::{choose_interfaces, describe, filter_spec, ring_options};
use crate::runtime::signals::{HEARD_WITHIN, Requests};
use crossbeam_channel::{Receiver, Sender};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The kernel may have had more to tell than fits its queue, so we look without being told as well.
const EXAMINE_EVERY: Duration = Duration::from_secs(10);

/// How long all interfaces may be gone before the program gives up.
const GONE_MAX: Duration = Duration::from_secs(10);

/// Interfaces that can appear, beyond those that only came back, once privileges are given up. A socket without a ring costs
/// a file descriptor.
const SPARES: usize = 8;

/// The targets are others from now on.
pub(super) struct NewTargets {
    pub(super) targets: Vec<TargetConfig>,
    /// Whether all interfaces are captured that lead to them; their names where they are not.
    pub(super) done: Sender<Result<(), String>>,
}

/// What the watch is connected to.
pub(super) struct WatchChannels {
    /// Where new rings go to, by worker.
    pub(super) arrivals: Vec<Sender<Arrival>>,
    pub(super) departures: Receiver<Departure>,
    pub(super) changes: Receiver<NewTargets>,
    /// Where workers read what the kernel tells.
    pub(super) links: Arc<LinkBoard>,
}

pub(super) struct InterfaceWatch {
    config: Config,
    watch: LinkWatch,
    requests: Requests,
    channels: WatchChannels,
    /// Numbers of the interfaces that are captured.
    captured: Vec<u32>,
    /// Sockets that have no ring yet, one for each worker.
    spares: Vec<Vec<PacketSocket>>,
    /// Rings without an interface, where there is one worker. (The members of a group cannot move.)
    idle: Vec<Ring>,
    /// What could not be captured, so that it is said once.
    failed: Vec<u32>,
    gone_since: Option<Instant>,
    examined: Instant,
}

impl InterfaceWatch {
    /// Opens what it will need while it may.
    pub(super) fn new(
        config: &Config,
        captured: &[Interface],
        channels: WatchChannels,
        requests: Requests,
    ) -> Result<InterfaceWatch, Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure::new(Exit::Failure, error);
        let watch = LinkWatch::open().map_err(|error| failed(&error))?;
        let spares = (0..SPARES)
            .map(|_| (0..channels.arrivals.len()).map(|_| PacketSocket::open()).collect())
            .collect::<Result<_, _>>()
            .map_err(|error| failed(&error))?;
        Ok(InterfaceWatch {
            config: config.clone(),
            watch,
            requests,
            channels,
            captured: captured.iter().map(|interface| interface.index).collect(),
            spares,
            idle: Vec::new(),
            failed: Vec::new(),
            gone_since: None,
            examined: Instant::now(),
        })
    }

    /// Runs until somebody says stop, or there is no interface any more.
    pub(super) fn run(mut self) -> Result<(), Failure> {
        while !self.requests.must_stop() {
            let changed =
                self.watch.wait(HEARD_WITHIN).map_err(|error| Failure::new(Exit::Failure, error))?;
            let mut left = false;
            while let Ok(departure) = self.channels.departures.try_recv() {
                left = true;
                self.captured.retain(|index| *index != departure.interface_index);
                self.channels.links.forget(departure.interface_index);
                if self.channels.arrivals.len() == 1 {
                    self.idle.push(departure.ring);
                }
            }
            if changed || left || self.gone_since.is_some() || self.examined.elapsed() >= EXAMINE_EVERY {
                let ended = self.examine();
                if ended.is_err() {
                    self.requests.stop();
                    return ended;
                }
            }
            self.channels.links.ask_dropped(self.captured.iter().copied());
            while let Ok(NewTargets { targets, done }) = self.channels.changes.try_recv() {
                drop(done.send(self.take_over(targets)));
            }
        }
        Ok(())
    }

    /// Captures what leads to these targets; what led to others alone stays, and shows nothing. Says what cannot be captured.
    fn take_over(&mut self, targets: Vec<TargetConfig>) -> Result<(), String> {
        self.config.targets = targets;
        if self.config.capture.interfaces != Interfaces::Auto {
            return Ok(());
        }
        // What was not possible may be by now, and it matters more.
        self.failed.clear();
        let present = interface::enumerate().map_err(|error| error.to_string())?;
        let wanted = self.wanted(&present);
        let is_captured = |captured: &[u32], interface: &Interface| captured.contains(&interface.index);
        for interface in &wanted {
            if !is_captured(&self.captured, interface) {
                self.capture(interface.clone());
            }
        }
        let missing: Vec<&str> = wanted
            .iter()
            .filter(|interface| !is_captured(&self.captured, interface))
            .map(|interface| interface.name.as_str())
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(format!("{} would have to be captured and cannot be; restart memtap", missing.join(", ")))
    }

    /// Captures what is wanted and there.
    fn examine(&mut self) -> Result<(), Failure> {
        self.examined = Instant::now();
        let Ok(present) = interface::enumerate() else { return Ok(()) };
        for wanted in self.wanted(&present) {
            if !self.captured.contains(&wanted.index) && !self.failed.contains(&wanted.index) {
                self.capture(wanted);
            }
        }
        let is_there = |index: &u32| *index == 0 || present.iter().any(|interface| interface.index == *index);
        self.failed.retain(is_there);
        let any_is_there = self.captured.iter().any(is_there);
        self.channels.links.post(present);
        if any_is_there {
            self.gone_since = None;
            return Ok(());
        }
        if self.gone_since.get_or_insert_with(Instant::now).elapsed() < GONE_MAX {
            return Ok(());
        }
        let names = self.config.capture.interfaces.names().join(", ");
        Err(Failure::new(Exit::InterfaceGone, format!("every interface is gone for good: {names}")))
    }

    /// What should be captured of what is there: `auto` is chosen anew, and a name may not be there at the moment.
    fn wanted(&self, present: &[Interface]) -> Vec<Interface> {
        match &self.config.capture.interfaces {
            Interfaces::Named(names) => {
                present.iter().filter(|interface| names.contains(&interface.name)).cloned().collect()
            }
            Interfaces::Any => Vec::new(),
            Interfaces::Auto => {
                choose_interfaces(&self.config).map_or_else(|_| Vec::new(), |choice| choice.interfaces)
            }
        }
    }

    fn capture(&mut self, interface: Interface) {
        if self.captured.len() >= RINGS_PER_WORKER_MAX {
            tracing::error!("{}: {RINGS_PER_WORKER_MAX} interfaces are captured already", interface.name);
            self.failed.push(interface.index);
            return;
        }
        let options = ring_options(&self.config.capture, &interface, &filter_spec(&self.config));
        match self.open(&options) {
            Ok(rings) => {
                describe(&interface, &rings, &options);
                self.captured.push(interface.index);
                // Before a worker meets it.
                self.channels.links.ask_dropped([interface.index]);
                for (sender, ring) in self.channels.arrivals.iter().zip(rings) {
                    // A worker that has ended takes none.
                    drop(sender.send(Arrival { interface: interface.clone(), ring }));
                }
            }
            // It has vanished again; if it returns it has another number.
            Err(RingError::InterfaceGone { .. }) => {}
            Err(error) if error.is_no_privilege() => {
                tracing::error!("{}: no spare socket is left to capture it; restart memtap", interface.name);
                self.failed.push(interface.index);
            }
            Err(error) => {
                tracing::error!("cannot capture on {}: {error}", interface.name);
                self.failed.push(interface.index);
            }
        }
    }

    /// Rings for all workers: one that is idle, else on spare sockets, else on new ones where there is still the privilege.
    fn open(&mut self, options: &RingOptions) -> Result<Vec<Ring>, RingError> {
        if let Some(mut ring) = self.idle.pop() {
            ring.set_filter(&options.filter)?;
            ring.rebind(options.interface_index)?;
            return Ok(vec![ring]);
        }
        match self.spares.pop() {
            Some(sockets) => Ring::open_group_on(sockets, options),
            None => Ring::open_group(options, self.channels.arrivals.len()),
        }
    }
}

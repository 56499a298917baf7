//! `memtap run`: rings on the chosen interfaces, workers that read them, until somebody says stop.

use crate::capture::filter::FilterSpec;
use crate::capture::interface::{self, Choice, Interface, InterfaceRequest};
use crate::capture::ring::{self, Ring, RingError, RingOptions, RingShape, RingState, ring_byte_rate};
use crate::cli::{Exit, Options};
use crate::collector::Collector;
use crate::config::{CaptureConfig, Config, Snaplen};
use crate::model::Timestamp;
use crate::network::Network;
use crate::pipeline::Pipeline;
use crate::runtime::clock::IntervalClock;
use crate::runtime::failure::Failure;
use crate::runtime::message::CaptureFigures;
use crate::runtime::replay::BUFFERS_PER_WORKER;
use crate::runtime::reporter::{Reload, ReporterThread};
use crate::runtime::signals::Requests;
use crate::runtime::worker::{WhenLate, Worker, WorkerChannels};
use crate::runtime::{
    collector_options, describe_tables, harvests, interval_length, load, pipeline_limits, target_map,
};
use crate::sandbox::{self, SandboxMode, SandboxOptions};
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Longest sleep of a worker without packets: ten wake-ups a second cost 0.1 % of a core and bound the time to stop.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// A block waits up to its retire timeout (60 ms) before we see its packets; time passes for an idle worker only this much later,
/// so that packets on their way still find their interval open.
const GRACE: Duration = Duration::from_millis(250);

/// Kernel counters are 32 bits wide and tell of drops: they are read this often.
const STATISTICS_EVERY: Duration = Duration::from_secs(1);

/// How long all interfaces may be gone before the program gives up.
const GONE_MAX: Duration = Duration::from_secs(10);

/// Captures live and reports every interval, until stopped.
pub fn run(options: &Options) -> Result<(), Failure> {
    let config = load(options)?;
    let choice = choose_interfaces(&config)?;
    for address in &choice.unrouted {
        tracing::warn!("no route to target {address}: no interface was chosen for it");
    }
    let rings_by_worker = open_rings(&config, &choice.interfaces)?;
    let requests = Requests::from_signals().map_err(|error| Failure::new(Exit::Failure, error))?;

    let workers = rings_by_worker.len();
    let (report_sender, reports) = crossbeam_channel::bounded(BUFFERS_PER_WORKER * workers);
    let mut buffer_senders = Vec::with_capacity(workers);
    let mut captures = Vec::with_capacity(workers);
    let collectors: Vec<Collector> = (0..workers)
        .map(|_| Collector::new(&collector_options(&config, workers)))
        .collect::<Result<_, _>>()
        .map_err(|error| Failure::new(Exit::Failure, error))?;
    describe_tables(&config, &collectors);
    for (index, (rings, collector)) in rings_by_worker.into_iter().zip(collectors).enumerate() {
        let (buffer_sender, buffers) = crossbeam_channel::bounded(BUFFERS_PER_WORKER);
        for _ in 0..BUFFERS_PER_WORKER {
            // The channel has room for exactly these.
            drop(buffer_sender.send(harvests(&config, &collector)));
        }
        buffer_senders.push(buffer_sender);
        let pipeline = Pipeline::new(target_map(&config), pipeline_limits());
        let mut clock = IntervalClock::new(interval_length(&config));
        clock.start_at(now());
        let channels = WorkerChannels { reports: report_sender.clone(), buffers };
        let worker = Worker::new(index, pipeline, collector, clock, WhenLate::Lengthen, channels);
        captures.push(Capture::new(worker, rings, choice.interfaces.clone(), requests.clone()));
    }
    drop(report_sender);
    let sources = choice.interfaces.iter().map(|interface| interface.name.clone()).collect();
    let again = options.clone();
    let reload: Reload = Box::new(move || Ok(again.load(&|name| std::env::var(name).ok())?.config));
    let reporter = ReporterThread::new(&config, sources, buffer_senders, requests.clone(), Some(reload))?;

    give_up_privileges(&config, options)?;
    thread::scope(|scope| {
        let reporter = scope.spawn(move || reporter.run(&reports));
        let captures: Vec<_> =
            captures.into_iter().map(|capture| scope.spawn(move || capture.run())).collect();
        let bug = || Failure::new(Exit::Failure, "a thread failed; please report this as a bug");
        let captured = captures
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(bug())))
            .fold(Ok(()), Result::and);
        let reported = reporter.join().unwrap_or_else(|_| Err(bug()));
        reported.and(captured)
    })
}

/// With a user to become, everything that is not needed any more is given up: sockets, rings and the output are open by now, and no
/// thread runs yet (capabilities, Landlock and seccomp hold for each thread).
fn give_up_privileges(config: &Config, options: &Options) -> Result<(), Failure> {
    let Some(user) = &config.capture.user else { return Ok(()) };
    let folder = |path: &std::path::PathBuf| path.parent().map(std::path::Path::to_path_buf);
    let report = sandbox::enter(&SandboxOptions {
        mode: SandboxMode::BestEffort,
        user: Some(user.clone()),
        writable_paths: Vec::new(),
        readable_paths: options.config.as_ref().and_then(folder).into_iter().collect(),
    })
    .map_err(|error| Failure::new(Exit::Failure, error))?;
    for warning in &report.warnings {
        tracing::warn!("{warning}");
    }
    tracing::info!("{report}");
    Ok(())
}

/// The number of the interface of a name, asked of the kernel in a way that a sandbox permits.
fn interface_index(name: &str) -> Option<u32> {
    let known = interface::enumerate().ok()?;
    known.into_iter().find(|interface| interface.name == name).map(|interface| interface.index)
}

/// The wall clock. Packets of the ring carry the same clock, so the two can be compared.
fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_parts(since_epoch.as_secs(), since_epoch.subsec_nanos())
}

/// The targets' addresses as capture takes them; empty when any address is wanted.
pub(super) fn server_networks(config: &Config) -> Vec<(IpAddr, u8)> {
    let mut networks = Vec::new();
    for target in &config.targets {
        match target.network {
            Network::Any => return Vec::new(),
            Network::Net(ip, prefix) => networks.push((ip, prefix)),
        }
    }
    networks.sort_unstable();
    networks.dedup();
    networks
}

pub(super) fn choose_interfaces(config: &Config) -> Result<Choice, Failure> {
    let failed = |error| Failure::new(Exit::Failure, error);
    let known = interface::enumerate().map_err(failed)?;
    let requests: Vec<InterfaceRequest> =
        config.capture.interfaces.names().into_iter().map(InterfaceRequest::from).collect();
    interface::choose(&requests, &server_networks(config), &known, |address| {
        interface::route_to(address).ok().flatten()
    })
    .map_err(failed)
}

/// The kernel filter's wishes for all interfaces alike.
pub(super) fn filter_spec(config: &Config) -> FilterSpec {
    let mut ports: Vec<u16> = config.targets.iter().map(|target| target.port).collect();
    ports.sort_unstable();
    ports.dedup();
    let mut spec = FilterSpec::new(server_networks(config), ports);
    spec.tcp = config.targets.iter().any(|target| target.tcp);
    spec.udp = config.targets.iter().any(|target| target.udp);
    spec.tunnels = config.capture.promiscuous;
    if let Snaplen::Bytes(bytes) = config.capture.response_snaplen {
        spec.response_snaplen = bytes;
    }
    spec
}

fn ring_options(capture: &CaptureConfig, interface: &Interface, filter: &FilterSpec) -> RingOptions {
    let mut options = RingOptions::new(interface, filter.clone());
    options.shape = RingShape::with_bytes(capture.ring_bytes);
    options.promiscuous = capture.promiscuous;
    options
}

/// What the operator is told when the kernel refuses a packet socket.
pub(super) const PRIVILEGE_ADVICE: &str = "no permission to capture packets: CAP_NET_RAW is missing. \
     Run as root (sudo memtap run), or give the program the capability once: sudo setcap cap_net_raw+ep $(command -v memtap)";

pub(super) fn ring_failure(interface: &str, error: &RingError) -> Failure {
    if error.is_no_privilege() {
        Failure::new(Exit::NoPermission, PRIVILEGE_ADVICE)
    } else {
        Failure::new(Exit::Failure, format!("cannot capture on {interface}: {error}"))
    }
}

/// For each worker the rings of all interfaces.
fn open_rings(config: &Config, interfaces: &[Interface]) -> Result<Vec<Vec<Ring>>, Failure> {
    let filter = filter_spec(config);
    let mut by_worker: Vec<Vec<Ring>> = (0..config.capture.workers).map(|_| Vec::new()).collect();
    for interface in interfaces {
        let options = ring_options(&config.capture, interface, &filter);
        let rings = Ring::open_group(&options, config.capture.workers)
            .map_err(|error| ring_failure(&interface.name, &error))?;
        describe(interface, &rings, &options);
        for (mine, ring) in by_worker.iter_mut().zip(rings) {
            mine.push(ring);
        }
    }
    Ok(by_worker)
}

/// Says how a ring was opened, and what it can bear.
fn describe(interface: &Interface, rings: &[Ring], asked: &RingOptions) {
    /// A gigabit a second in packets of 1,500 bytes.
    const GIGABIT: (u64, u64) = (83_333, 125_000_000);
    let Some(ring) = rings.first() else { return };
    let shape = ring.shape();
    let hold = shape.hold_time(ring_byte_rate(GIGABIT.0, GIGABIT.1));
    tracing::info!(
        "capturing on {}: {} ring(s) of {} MiB, filter by {}, a ring bears a stall of {} ms at 1 Gbit/s",
        interface.name,
        rings.len(),
        shape.bytes() >> 20,
        ring.filter_form().name(),
        hold.as_millis()
    );
    if shape.bytes() < asked.shape.bytes() {
        let (got, wanted) = (shape.bytes() >> 20, asked.shape.bytes() >> 20);
        tracing::warn!("{}: memory sufficed for a ring of {got} MiB instead of {wanted}", interface.name);
    }
    if !interface.is_up {
        tracing::warn!("{} is down; capture begins when it comes up", interface.name);
    }
}

/// A worker with its rings.
struct Capture {
    worker: Worker,
    rings: Vec<Ring>,
    /// What the rings are on, in the same order.
    interfaces: Vec<Interface>,
    requests: Requests,
    figures: CaptureFigures,
    /// State of each ring that the operator was last told of.
    told: Vec<RingState>,
    /// Totals at the last look, to tell what is new: by ring.
    seen: Vec<(u64, u64)>,
    nic_seen: Vec<Option<u64>>,
    looked: Instant,
    gone_since: Option<Instant>,
}

impl Capture {
    fn new(worker: Worker, rings: Vec<Ring>, interfaces: Vec<Interface>, requests: Requests) -> Capture {
        let nic_seen = interfaces.iter().map(nic_drops).collect();
        Capture {
            worker,
            told: rings.iter().map(Ring::state).collect(),
            seen: vec![(0, 0); rings.len()],
            rings,
            interfaces,
            requests,
            figures: CaptureFigures::default(),
            nic_seen,
            looked: Instant::now(),
            gone_since: None,
        }
    }

    fn run(mut self) -> Result<(), Failure> {
        let mut ended = Ok(());
        while !self.requests.must_stop() {
            let busy = self.read_blocks();
            if self.looked.elapsed() >= STATISTICS_EVERY {
                self.look();
                if let Err(failure) = self.mend_interfaces() {
                    ended = Err(failure);
                    break;
                }
            }
            let prints = self.requests.prints();
            let figures = &mut self.figures;
            self.worker.print_on_demand(prints, Some(now()), || std::mem::take(figures));
            if !busy {
                let passed = Timestamp::from_nanos(
                    now().since(Timestamp::from_nanos(0)).saturating_sub(GRACE).as_nanos() as u64,
                );
                self.worker.advance(passed, || std::mem::take(&mut self.figures));
                if self.worker.idle() {
                    continue;
                }
                if let Err(error) = ring::wait(&mut self.rings, WAIT_MAX) {
                    ended = Err(Failure::new(Exit::Failure, error));
                    break;
                }
            }
        }
        self.requests.stop();
        self.drain();
        self.look();
        let Capture { worker, mut figures, .. } = self;
        worker.finish(Some(now()), || std::mem::take(&mut figures));
        ended
    }

    /// One block of each ring that has one.
    fn read_blocks(&mut self) -> bool {
        let mut busy = false;
        for ring in &mut self.rings {
            if let Some(mut block) = ring.next_block() {
                busy = true;
                let (worker, figures) = (&mut self.worker, &mut self.figures);
                block.for_each_packet(|captured| {
                    worker.handle_packet(&captured.packet, || std::mem::take(figures));
                });
                worker.flush();
            }
        }
        busy
    }

    /// The kernel keeps the last, partly filled block for its retire timeout; a capture stopped at once would lose its tail.
    fn drain(&mut self) {
        let until = Instant::now() + GRACE;
        while Instant::now() < until {
            if !self.read_blocks() && ring::wait(&mut self.rings, Duration::from_millis(20)).is_err() {
                break;
            }
        }
    }

    /// Reads the kernel's counters.
    fn look(&mut self) {
        self.looked = Instant::now();
        for (ring, seen) in self.rings.iter_mut().zip(&mut self.seen) {
            let Ok(statistics) = ring.statistics() else { continue };
            self.figures.ring_dropped += statistics.packets_dropped - seen.0;
            self.figures.freezes += statistics.freezes - seen.1;
            *seen = (statistics.packets_dropped, statistics.freezes);
            if statistics.blocks_waiting_max >= self.figures.blocks_used.0 {
                self.figures.blocks_used = (statistics.blocks_waiting_max, statistics.blocks_total);
            }
        }
        for (interface, seen) in self.interfaces.iter().zip(&mut self.nic_seen) {
            let drops = nic_drops(interface);
            if let (Some(now), Some(before)) = (drops, *seen) {
                self.figures.nic_dropped += now.saturating_sub(before);
            }
            *seen = drops.or(*seen);
        }
    }

    /// A deleted interface never speaks again; one of the same name is another, to which the ring is bound anew.
    fn mend_interfaces(&mut self) -> Result<(), Failure> {
        let mut alive = 0;
        for ((ring, interface), told) in self.rings.iter_mut().zip(&self.interfaces).zip(&mut self.told) {
            let state = ring.check_state().map_err(|error| Failure::new(Exit::Failure, error))?;
            if std::mem::replace(told, state) != state {
                tracing::warn!("{} is {}", interface.name, state_text(state));
            }
            if state == RingState::Gone
                && let Some(index) = interface_index(&interface.name)
            {
                match ring.rebind(index) {
                    Ok(()) => {
                        *told = ring.state();
                        tracing::info!("{} is back: capture goes on", interface.name);
                    }
                    Err(error) => tracing::warn!("{} is back, but: {error}", interface.name),
                }
            }
            alive += usize::from(ring.state() != RingState::Gone);
        }
        if alive > 0 {
            self.gone_since = None;
            return Ok(());
        }
        if self.gone_since.get_or_insert_with(Instant::now).elapsed() < GONE_MAX {
            return Ok(());
        }
        let names: Vec<&str> = self.interfaces.iter().map(|interface| interface.name.as_str()).collect();
        Err(Failure::new(Exit::InterfaceGone, format!("gone for good: {}", names.join(", "))))
    }
}

fn nic_drops(interface: &Interface) -> Option<u64> {
    interface::nic_packets_dropped(interface.index).ok().flatten()
}

fn state_text(state: RingState) -> &'static str {
    match state {
        RingState::Running => "up, capture goes on",
        RingState::Down => "down, waiting for it to come up",
        RingState::Gone => "gone, waiting for one of its name",
    }
}

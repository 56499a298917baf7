//! `memtap run`: rings on the chosen interfaces, workers that read them, until somebody says stop.

use crate::capture::filter::FilterSpec;
use crate::capture::interface::{self, Choice, Interface, InterfaceRequest};
use crate::capture::ring::{RINGS_PER_WORKER_MAX, Ring, RingError, RingOptions, RingShape, ring_byte_rate};
use crate::cli::{Exit, Options};
use crate::collector::Collector;
use crate::config::{CaptureConfig, Config, OutMode, Snaplen};
use crate::network::Network;
use crate::runtime::capture::{Arrival, Capture, CaptureChannels, now};
use crate::runtime::changes::{Changes, Concerned, Reload, ReporterLine};
use crate::runtime::clock::IntervalClock;
use crate::runtime::control::Listener;
use crate::runtime::failure::Failure;
use crate::runtime::interfaces::{InterfaceWatch, WatchChannels};
use crate::runtime::links::LinkBoard;
use crate::runtime::message::ToReporter;
use crate::runtime::output;
use crate::runtime::replay::BUFFERS_PER_WORKER;
use crate::runtime::reporter::{ReporterThread, Sink};
use crate::runtime::roster::Roster;
use crate::runtime::signals::Requests;
use crate::runtime::stat::Script;
use crate::runtime::worker::{WhenLate, Worker, WorkerChannels};
use crate::runtime::{
    Presets, collector_options, describe_tables, fault, harvests, interval_length, load, load_layers,
    namespace, pipelines, target_id,
};
use crate::sandbox::{self, SandboxOptions};
use crossbeam_channel::Receiver;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

/// Rings that may be on their way to a worker.
const ARRIVALS: usize = RINGS_PER_WORKER_MAX;

/// Captures live and reports every interval, until stopped; meanwhile screens may attach.
pub fn run(options: &Options) -> Result<(), Failure> {
    let config = load(options)?;
    let listener = Listener::open(&config.control)?;
    capture_beside(&config, options, &[], Script::default(), listener.as_ref())
}

/// As [`run`], with the configuration in hand, and without screens; `options` and `presets` are what it was made of, for when it is
/// reloaded.
pub(super) fn capture(
    config: &Config,
    options: &Options,
    presets: Presets,
    script: Script,
) -> Result<(), Failure> {
    capture_beside(config, options, presets, script, None)
}

fn capture_beside(
    config: &Config,
    options: &Options,
    presets: Presets,
    script: Script,
    listener: Option<&Listener>,
) -> Result<(), Failure> {
    fault::hide_panic_texts();
    let wire = Wire::open(config)?;
    let requests = Requests::from_signals().map_err(|error| Failure::new(Exit::Failure, error))?;
    let again = options.clone();
    let reload: Reload = Box::new(move || Ok(load_layers(&again, presets)?.config));
    let sink = Sink::report(config, script)?;
    let session = Session::new(config, wire, requests.clone(), Some((reload, listener)), sink)?;
    give_up_privileges(config, options)?;
    session.run(|| {
        if let Some(listener) = listener {
            listener.serve(&requests);
        }
        Ok(())
    })
}

/// The open rings.
pub(super) struct Wire {
    interfaces: Vec<Interface>,
    rings_by_worker: Vec<Vec<Ring>>,
}

impl Wire {
    /// Goes into the namespace that is wanted, chooses the interfaces and opens rings on them, which takes the privilege.
    pub(super) fn open(config: &Config) -> Result<Wire, Failure> {
        if let Some(netns) = &config.capture.netns {
            namespace::enter(netns)?;
        }
        let choice = choose_interfaces(config)?;
        for address in &choice.unrouted {
            tracing::warn!("no route to target {address}: no interface was chosen for it");
        }
        if config.capture.workers > 1 && config.capture.promiscuous {
            tracing::info!(
                "packets within tunnels, and fragments, go to workers by their outer addresses: where the two directions of a \
                 connection differ in these, use one worker"
            );
        }
        let rings_by_worker = open_rings(config, &choice.interfaces)?;
        Ok(Wire { interfaces: choice.interfaces, rings_by_worker })
    }
}

/// A capture that is ready to run: everything is open and allocated, no thread has started.
pub(super) struct Session {
    captures: Vec<Capture>,
    reporter: ReporterThread,
    reports: Receiver<ToReporter>,
    watch: InterfaceWatch,
    /// Where targets may come and go.
    changes: Option<Changes>,
    requests: Requests,
}

impl Session {
    /// `changeable`: how to read the configuration again, and the clients that may ask for changes; none where nothing changes until the end.
    pub(super) fn new(
        config: &Config,
        wire: Wire,
        requests: Requests,
        changeable: Option<(Reload, Option<&Listener>)>,
        sink: Sink,
    ) -> Result<Session, Failure> {
        let Wire { interfaces, rings_by_worker } = wire;
        let workers = rings_by_worker.len();
        let roster = Roster::new(&config.targets);
        // One more for whoever makes changes.
        let (report_sender, reports) = crossbeam_channel::bounded(BUFFERS_PER_WORKER * workers + 1);
        let (departure_sender, departures) = crossbeam_channel::bounded(ARRIVALS * workers);
        let mut buffer_senders = Vec::with_capacity(workers);
        let mut arrival_senders = Vec::with_capacity(workers);
        let mut captures = Vec::with_capacity(workers);
        let collectors: Vec<Collector> = (0..workers)
            .map(|_| Collector::new(&collector_options(config, workers, roster.slots())))
            .collect::<Result<_, _>>()
            .map_err(|error| Failure::new(Exit::Failure, error))?;
        for (index, target) in config.targets.iter().enumerate() {
            describe_tables(target, collectors.iter().map(|collector| collector.capacity(target_id(index))));
        }
        let mut order_senders = Vec::with_capacity(workers);
        let links = Arc::<LinkBoard>::default();
        links.post(interface::enumerate().map_err(|error| Failure::new(Exit::Failure, error))?);
        links.ask_dropped(interfaces.iter().map(|interface| interface.index));
        // The same for all: intervals are put together by their ends, and a boundary may pass while workers are made.
        let start = now();
        let parts = rings_by_worker.into_iter().zip(collectors).zip(pipelines(roster.map(), workers));
        for (index, ((rings, collector), pipeline)) in parts.enumerate() {
            let (buffer_sender, buffers) = crossbeam_channel::bounded(BUFFERS_PER_WORKER);
            for _ in 0..BUFFERS_PER_WORKER {
                // The channel has room for exactly these.
                drop(buffer_sender.send(harvests(config, &collector)));
            }
            buffer_senders.push(buffer_sender);
            let (arrival_sender, arrivals) = crossbeam_channel::bounded(ARRIVALS);
            for (interface, ring) in interfaces.iter().cloned().zip(rings) {
                // Not more than the channel has room for; see `open_rings`.
                drop(arrival_sender.send(Arrival { interface, ring }));
            }
            arrival_senders.push(arrival_sender);
            let channels = WorkerChannels { reports: report_sender.clone(), buffers };
            let mut clock = IntervalClock::new(interval_length(config));
            clock.start_at(start);
            let worker = Worker::new(index, pipeline, collector, clock, WhenLate::Lengthen, channels);
            // One at a time is on its way. Whoever waits for the answer is woken when the worker ends: an unbounded channel
            // then drops what is in it, a bounded one would keep it.
            let (order_sender, orders) = crossbeam_channel::unbounded();
            order_senders.push(order_sender);
            let departures = departure_sender.clone();
            let channels = CaptureChannels { arrivals, departures, orders, links: Arc::clone(&links) };
            captures.push(Capture::new(worker, config.capture.load_ladder, channels, requests.clone()));
        }
        let sources = interfaces.iter().map(|interface| interface.name.clone()).collect();
        let reporter = ReporterThread::new(config, sources, buffer_senders, requests.clone(), sink);
        let (interfaces_sender, changed) = crossbeam_channel::unbounded(); // as for the orders
        let channels = WatchChannels { arrivals: arrival_senders, departures, changes: changed, links };
        let watch = InterfaceWatch::new(config, &interfaces, channels, requests.clone())?;
        let mut session = Session { captures, reporter, reports, watch, changes: None, requests };
        if let Some((reload, listener)) = changeable {
            session.reporter = session.reporter.with_publisher(listener.map(Listener::publisher));
            let concerned = Concerned {
                workers: order_senders,
                reporter: ReporterLine::new(report_sender),
                interfaces: interfaces_sender,
                clients: listener.map(Listener::board),
            };
            let requests = session.requests.clone();
            session.changes = Some(Changes::new(config, roster, reload, concerned, requests));
        }
        Ok(session)
    }

    /// Captures until stopped, with `beside` at the same time on this thread.
    pub(super) fn run(self, beside: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
        let Session { captures, reporter, reports, watch, changes, requests } = self;
        thread::scope(|scope| {
            let reporter = {
                let requests = requests.clone();
                spawn(scope, "reporter", move || {
                    let reported = catch_unwind(AssertUnwindSafe(|| reporter.run(&reports)));
                    // Nobody captures for nothing.
                    requests.stop();
                    reported.unwrap_or_else(|_| Err(bug()))
                })
            };
            let watch = spawn(scope, "interfaces", move || watch.run());
            let changes = changes.map(|changes| {
                spawn(scope, "targets", move || {
                    changes.run();
                    Ok(())
                })
            });
            let captures: Vec<_> = (0..)
                .zip(captures)
                .map(|(index, capture)| spawn(scope, &format!("worker-{index}"), move || capture.run()))
                .collect();
            let joined = |thread: thread::ScopedJoinHandle<'_, Result<(), Failure>>| {
                thread.join().unwrap_or_else(|_| Err(bug()))
            };
            let shown = catch_unwind(AssertUnwindSafe(beside)).unwrap_or_else(|_| {
                requests.stop();
                Err(bug())
            });
            let captured = captures.into_iter().map(joined).fold(Ok(()), Result::and);
            // Workers that end by themselves take everybody with them.
            requests.stop();
            // It may still have figures for the reporter, which waits for them.
            let changed = changes.map_or(Ok(()), joined);
            let reported = joined(reporter);
            shown.and(reported).and(captured).and(changed).and(joined(watch))
        })
    }
}

/// A thread with a name, which `top -H` shows.
///
/// # Panics
/// When the system has no more threads to give, as `Scope::spawn` does.
fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> thread::ScopedJoinHandle<'scope, T> {
    let thread = thread::Builder::new().name(name.to_string());
    thread.spawn_scoped(scope, work).expect("the system gives a thread")
}

pub(super) fn bug() -> Failure {
    Failure::new(Exit::Failure, "a thread failed; please report this as a bug")
}

/// Everything that is not needed any more is given up: sockets, rings and the output are open by now, and no thread runs yet
/// (capabilities, Landlock and seccomp hold for each thread).
fn give_up_privileges(config: &Config, options: &Options) -> Result<(), Failure> {
    // Editors put a new file in the place of the old one, so it is the folder that stays readable. That of a mere name is where we are.
    let folder = |path: PathBuf| match path.parent()? {
        here if here.as_os_str().is_empty() => Some(PathBuf::from(".")),
        folder => Some(folder.to_path_buf()),
    };
    let file = options.file(&|name| std::env::var(name).ok());
    // A file that grows is open; one that is replaced needs its directory.
    let replaced = config.report.out.as_deref().filter(|_| config.report.out_mode == OutMode::Replace);
    let report = sandbox::enter(&SandboxOptions {
        mode: config.capture.sandbox,
        user: config.capture.user.clone(),
        writable_paths: replaced.map(output::replaced_in).into_iter().collect(),
        readable_paths: file.and_then(folder).into_iter().collect(),
    })
    .map_err(|error| Failure::new(Exit::Failure, error))?;
    for warning in &report.warnings {
        tracing::warn!("{warning}");
    }
    tracing::info!("{report}");
    Ok(())
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

/// Whether all servers are this host's, as far as it can be told.
fn are_own(servers: &[(IpAddr, u8)]) -> bool {
    interface::enumerate().is_ok_and(|known| interface::are_own(servers, &known))
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
    // What a mirror delivers is nobody's own.
    spec.servers_are_own = !spec.tunnels && are_own(&spec.servers);
    if let Snaplen::Bytes(bytes) = config.capture.response_snaplen {
        spec.response_snaplen = bytes;
    }
    config.capture.load_ladder.rung().apply(&spec)
}

pub(super) fn ring_options(
    capture: &CaptureConfig,
    interface: &Interface,
    filter: &FilterSpec,
) -> RingOptions {
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
    if interfaces.len() > RINGS_PER_WORKER_MAX {
        let most = format!(
            "{} interfaces are more than {RINGS_PER_WORKER_MAX}: name some, or \"any\"",
            interfaces.len()
        );
        return Err(Failure::new(Exit::Failure, most));
    }
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
pub(super) fn describe(interface: &Interface, rings: &[Ring], asked: &RingOptions) {
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

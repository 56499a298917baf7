//! The sandbox against the real kernel: what is in force on every thread, what is refused, and what works on.
//!
//! A sandbox is for good, so each scenario runs in a process of its own: this program again, told by an environment variable
//! which one to play. It plays on its main thread, where no other thread runs beside; hence a small harness instead of libtest.
//! Needs root; a test that cannot run says so and fails. Runs with the product's allocator.

mod support {
    pub(crate) mod netns;
}

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use caps::{CapSet, Capability};
use memtap::capture::filter::{FilterSpec, OutgoingPolicy};
use memtap::capture::interface;
use memtap::capture::ring::{self, BLOCK_BYTES_MIN, Ring, RingError, RingOptions, RingShape, RingState};
use memtap::capture::socket::{self, PacketSocket, SocketError};
use memtap::sandbox::{SandboxError, SandboxMode, SandboxOptions, SandboxReport, enter};
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use support::netns::Namespace;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Says which scenario to play, and where its directory is.
const SCENARIO: &str = "MEMTAP_SANDBOX_SCENARIO";
const DIRECTORY: &str = "MEMTAP_SANDBOX_DIRECTORY";

const NOBODY: u32 = 65534;
const PORT: u16 = 11211;
const OTHER_PORT: u16 = 11212;
const THREADS: usize = 3;
/// Long enough for a slow machine; reached only by a test that fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// A name, what this process does, and what the process in the sandbox does.
type Test = (&'static str, fn(&str), fn());

const TESTS: [Test; 11] = [
    ("every_thread_has_given_up_everything", watch_threads, play_threads),
    ("what_is_not_needed_is_refused", play_elsewhere, play_refusals),
    ("threads_panics_and_logging_work_on", play_elsewhere, play_daily_life),
    ("a_ring_works_on", watch_ring, play_ring),
    ("files_are_within_reach_where_allowed", watch_files, play_files),
    ("a_user_without_rights_to_a_path_is_told", watch_files, play_path_without_rights),
    ("a_kernel_without_landlock_is_told_of", play_elsewhere, play_without_landlock),
    ("a_kernel_without_seccomp_is_told_of", play_elsewhere, play_without_seccomp),
    ("few_capabilities_are_enough_to_give_them_up", play_elsewhere, play_few_capabilities),
    ("a_kernel_without_memory_for_a_ring_is_told_of", play_elsewhere, play_without_ring_memory),
    ("no_sandbox_changes_the_user_only", play_elsewhere, play_off),
];

fn main() {
    if let Ok(wanted) = std::env::var(SCENARIO) {
        let (_, _, play) = TESTS.iter().find(|(name, ..)| *name == wanted).expect("a scenario of that name");
        return play();
    }
    assert!(rustix::process::geteuid().is_root(), "sandbox tests need root, to have something to give up");
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let (mut out, mut passed) = (io::stdout(), 0);
    for (name, watch, _) in TESTS {
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        write!(out, "test {name} ... ").and_then(|()| out.flush()).expect("stdout is open");
        watch(name);
        writeln!(out, "ok").expect("stdout is open");
        passed += 1;
    }
    // An option's value is taken for part of a name ("--test-threads 1"), so say how many ran.
    writeln!(out, "{passed} of {} sandbox tests ran and passed", TESTS.len()).expect("stdout is open");
}

/// The process that plays a scenario.
struct Player {
    child: Child,
    says: BufReader<ChildStdout>,
    hears: ChildStdin,
}

impl Player {
    fn start(scenario: &str, directory: &Path) -> Player {
        let mut child = Command::new(std::env::current_exe().expect("this program has a path"))
            .env(SCENARIO, scenario)
            .env(DIRECTORY, directory)
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program starts again");
        let says = BufReader::new(child.stdout.take().expect("it is piped"));
        let hears = child.stdin.take().expect("it is piped");
        Player { child, says, hears }
    }

    /// Waits until it has said that it is ready for the next act.
    fn wait_for(&mut self, act: &str) {
        let mut line = String::new();
        self.says.read_line(&mut line).expect("it can be read");
        if line.trim_end() != act {
            let ended = self.child.wait();
            panic!("expected {act:?}, but the process said {line:?} and ended with {ended:?}");
        }
    }

    fn go_on(&mut self) {
        writeln!(self.hears).expect("it listens");
    }

    fn finish(mut self) {
        let status = self.child.wait().expect("it is our child");
        assert!(status.success(), "the process in the sandbox failed: {status}");
    }
}

/// Says that an act begins, and waits until the other process has done its part.
fn act(name: &str) {
    writeln!(io::stdout(), "{name}").expect("the pipe is open");
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).expect("the pipe is open");
}

fn play_elsewhere(scenario: &str) {
    Player::start(scenario, Path::new("/")).finish();
}

fn strict(user: Option<&str>) -> SandboxOptions {
    SandboxOptions { mode: SandboxMode::Strict, user: user.map(str::to_owned), ..SandboxOptions::default() }
}

fn enter_strict() -> SandboxReport {
    enter(&strict(Some("nobody"))).unwrap_or_else(|error| panic!("{error}"))
}

/// The call was refused with this number.
#[track_caller]
fn refused<T>(number: i32, result: io::Result<T>) {
    let error = result.err().expect("the call is refused");
    assert_eq!(error.raw_os_error(), Some(number), "{error}");
}

// Threads.

fn watch_threads(scenario: &str) {
    let mut player = Player::start(scenario, Path::new("/"));
    player.wait_for("threads");
    let tasks = format!("/proc/{}/task", player.child.id());
    let mut names = Vec::new();
    for task in fs::read_dir(tasks).expect("it runs") {
        let status = fs::read_to_string(task.expect("it runs").path().join("status")).expect("it runs");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
            line.unwrap_or_else(|| panic!("no {name} in {status}")).trim()
        };
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(field(set), "0000000000000000", "{set} of {status}");
        }
        assert_eq!((field("NoNewPrivs"), field("Seccomp")), ("1", "2"), "{status}");
        assert_eq!(field("Uid"), "65534\t65534\t65534\t65534");
        assert_eq!(field("Gid"), "65534\t65534\t65534\t65534");
        assert_eq!(field("Groups"), "", "{status}");
        names.push(field("Name").to_owned());
    }
    assert_eq!(names.len(), THREADS + 1, "{names:?}");
    assert_eq!(names.iter().filter(|name| name.starts_with("worker-")).count(), THREADS, "{names:?}");
    let limits = fs::read_to_string(format!("/proc/{}/limits", player.child.id())).expect("it runs");
    let core =
        limits.lines().find(|line| line.starts_with("Max core file size")).expect("there is such a limit");
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"]);
    player.go_on();
    player.finish();
}

fn play_threads() {
    let report = enter_strict();
    assert_eq!(report.user, "nobody");
    assert!(report.bounding_set_empty);
    assert!(report.warnings.is_empty(), "{:?}", report.warnings);
    let text = report.to_string();
    assert!(text.starts_with("sandbox: capabilities none, landlock ABI "), "{text}");
    assert!(text.ends_with(" calls, user nobody"), "{text}");
    writeln!(io::stderr(), "{text}").expect("stderr is open");
    let end = Arc::new(Barrier::new(THREADS + 1));
    let started = Arc::new(Barrier::new(THREADS + 1));
    for number in 0..THREADS {
        let (started, end) = (Arc::clone(&started), Arc::clone(&end));
        let body = move || {
            started.wait();
            end.wait();
        };
        thread::Builder::new().name(format!("worker-{number}")).spawn(body).expect("threads can be started");
    }
    started.wait();
    act("threads");
    end.wait();
}

// Refusals.

fn play_refusals() {
    let connected = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("there is a loopback address");
    let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("there is a loopback address");
    let receiver_address = receiver.local_addr().expect("it is bound");
    connected.connect(receiver_address).expect("it is open");
    let kept_open = File::open("/etc/passwd").expect("everybody may");
    let mapped = memmap2::MmapMut::map_anon(4096).expect("there is memory");
    enter_strict();
    thread::scope(|scope| {
        // The main thread and another one.
        for _ in 0..2 {
            scope
                .spawn(|| everything_is_refused(&connected, receiver_address))
                .join()
                .expect("it is refused");
        }
        everything_is_refused(&connected, receiver_address);
    });
    refused(libc::EPERM, mapped.make_exec());
    // What was open is usable.
    connected.send(b"x").expect("the connection was made before");
    assert_eq!(receiver.recv(&mut [0; 8]).expect("it was sent"), 1);
    assert!(io::read_to_string(kept_open).expect("it is open").contains("root"));
    assert!(interface::enumerate().expect("anybody may ask").iter().any(|found| found.name == "lo"));
}

fn everything_is_refused(socket: &UdpSocket, address: std::net::SocketAddr) {
    refused(libc::EPERM, File::open("/etc/passwd"));
    refused(libc::EPERM, File::open("/proc/self/status"));
    refused(libc::EPERM, File::create("/tmp/memtap-sandbox-test"));
    refused(libc::EPERM, fs::read_dir("/"));
    refused(libc::EPERM, fs::remove_file("/tmp/memtap-sandbox-test"));
    refused(libc::EPERM, Command::new("/bin/true").status());
    let exec: io::Result<()> = Err(Command::new("/bin/true").exec());
    refused(libc::EPERM, exec);
    refused(libc::EPERM, TcpStream::connect((Ipv4Addr::LOCALHOST, 1)));
    refused(libc::EPERM, TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    refused(libc::EPERM, UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)));
    refused(libc::EPERM, std::os::unix::net::UnixStream::connect("/run/nothing"));
    refused(libc::EPERM, std::os::unix::net::UnixDatagram::unbound());
    refused(libc::EPERM, socket.connect(address));
    refused(libc::EPERM, socket.send_to(b"x", address));
    let opened = PacketSocket::open();
    assert!(matches!(opened, Err(SocketError::NoPrivilege)), "{opened:?}");
    // Through an AF_UNIX socket of the C library.
    assert_eq!(socket::interface_index("lo"), None);
    assert!(
        rustix::process::setrlimit(
            rustix::process::Resource::Core,
            rustix::process::Rlimit { current: None, maximum: None }
        )
        .is_err()
    );
}

// Threads that come and go.

fn play_daily_life() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("there is a loopback address");
    let mut client =
        TcpStream::connect(listener.local_addr().expect("it is bound")).expect("somebody listens");
    tracing_subscriber::fmt().with_writer(io::sink).init();
    enter_strict();
    for round in 0..20usize {
        let threads: Vec<_> = (0..4)
            .map(|_| thread::spawn(move || vec![round; 1 << 18].into_iter().map(|n| n % 7).sum::<usize>()))
            .collect();
        for thread in threads {
            assert_eq!(thread.join().expect("it has not panicked"), (round % 7) << 18);
        }
    }
    // With a backtrace, for which the program would like to read its own file.
    let panicked = thread::spawn(|| std::hint::black_box(&[0u8; 3][..])[std::hint::black_box(3)]).join();
    assert!(panicked.is_err());
    tracing::info!("logging works");
    thread::sleep(Duration::from_millis(1));
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    assert!(receiver.recv_timeout(Duration::from_millis(1)).is_err());
    drop(sender);
    // A listener that was opened before still takes clients.
    let (mut served, _) = listener.accept().expect("a client has come");
    served.set_read_timeout(Some(PATIENCE)).expect("it is open");
    served.set_nodelay(true).expect("it is open");
    client.write_all(b"GET\n").expect("it is connected");
    let mut line = String::new();
    BufReader::new(&served).read_line(&mut line).expect("a line has come");
    assert_eq!(line, "GET\n");
    served.write_all(b"200\n").and_then(|()| served.shutdown(std::net::Shutdown::Both)).expect("it is open");
}

// The ring.

fn watch_ring(scenario: &str) {
    let namespace = Namespace::new();
    // Children are born into the network namespace of the thread that makes them.
    let mut player = namespace.run(|| Player::start(scenario, Path::new("/")));
    player.wait_for("up");
    namespace.ip("link set lo down");
    player.go_on();
    player.wait_for("down");
    namespace.ip("link set lo up");
    player.go_on();
    player.finish();
}

fn port_filter(port: u16) -> FilterSpec {
    FilterSpec { outgoing: OutgoingPolicy::Refuse, ..FilterSpec::new(vec![], vec![port]) }
}

fn ring_options() -> RingOptions {
    let shape =
        RingShape { blocks: 16, block_bytes: BLOCK_BYTES_MIN, retire_timeout: Duration::from_millis(10) };
    let interface_index = socket::interface_index("lo").expect("there is a loopback interface");
    RingOptions { interface_index, shape, filter: port_filter(PORT), promiscuous: false }
}

fn play_ring() {
    let sender = |port| {
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("lo is up");
        sender.connect((Ipv4Addr::LOCALHOST, port)).expect("lo is up");
        sender
    };
    let (sender, other_sender) = (sender(PORT), sender(OTHER_PORT));
    let options = ring_options();
    let lo = options.interface_index;
    let mut ring = Ring::open(&options).expect("root may open a ring");
    let spare = PacketSocket::open().expect("root may open a packet socket");
    enter_strict();

    let worker = thread::spawn(move || {
        let delivered = |ring: &mut Ring| deliver(ring, &sender, &other_sender);
        assert_eq!(delivered(&mut ring), (1, 0));
        ring.set_filter(&port_filter(OTHER_PORT)).expect("filters can be exchanged");
        assert_eq!(delivered(&mut ring), (0, 1));
        ring.rebind(lo).expect("rings can be bound anew");
        assert_eq!(delivered(&mut ring), (0, 1));
        let statistics = ring.statistics().expect("the kernel counts");
        assert_eq!(statistics.packets_dropped, 0);
        drop(ring);

        let mut ring = Ring::open_on(spare, &options).expect("a spare socket takes a ring");
        assert_eq!(delivered(&mut ring), (1, 0));
        assert_eq!(interface::nic_packets_dropped(lo).expect("anybody may ask"), Some(0));

        act("up");
        assert_eq!(wait_for_state(&mut ring, RingState::Down), RingState::Down);
        act("down");
        assert_eq!(wait_for_state(&mut ring, RingState::Running), RingState::Running);
        assert_eq!(delivered(&mut ring), (1, 0));
    });
    worker.join().expect("the worker has not panicked");
}

/// Sends a packet to each port and counts those that come, by port.
fn deliver(ring: &mut Ring, sender: &UdpSocket, other_sender: &UdpSocket) -> (usize, usize) {
    // An earlier packet was answered by "port unreachable", which the socket tells at the next call, once.
    let send = |socket: &UdpSocket| socket.send(b"x").or_else(|_| socket.send(b"x")).expect("lo is up");
    send(sender);
    send(other_sender);
    let (start, mut last, mut counts) = (Instant::now(), Instant::now(), (0, 0));
    while start.elapsed() < PATIENCE && (counts == (0, 0) || last.elapsed() < Duration::from_millis(100)) {
        ring::wait(std::slice::from_mut(ring), Duration::from_millis(20))
            .expect("the ring can be waited for");
        while let Some(mut block) = ring.next_block() {
            block.for_each_packet(|captured| {
                last = Instant::now();
                // After IPv4 and the source port of UDP; the ring lends packets of lo without a link header.
                match captured.packet.bytes.get(22..24).map(|port| u16::from_be_bytes([port[0], port[1]])) {
                    Some(PORT) => counts.0 += 1,
                    Some(OTHER_PORT) => counts.1 += 1,
                    other => panic!("a packet to port {other:?}: {:x?}", captured.packet),
                }
            });
        }
    }
    counts
}

fn wait_for_state(ring: &mut Ring, wanted: RingState) -> RingState {
    let start = Instant::now();
    loop {
        let state = ring.check_state().expect("the state can be looked at");
        if state == wanted || start.elapsed() > PATIENCE {
            return state;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

// Files.

/// A directory with `out` and `elsewhere` of nobody, `config` of root, which everybody may read, and `secret` of root.
fn watch_files(scenario: &str) {
    let directory = tempfile::tempdir().expect("there is room");
    let path = |name: &str| directory.path().join(name);
    for name in ["out", "elsewhere", "config", "secret"] {
        fs::create_dir(path(name)).expect("there is room");
    }
    for name in ["", "out", "elsewhere"] {
        chown(path(name), Some(NOBODY), Some(NOBODY)).expect("root may give files away");
    }
    fs::write(path("config/memtap.toml"), "[capture]\n").expect("there is room");
    fs::write(path("elsewhere/old"), "old\n").expect("there is room");
    chown(path("elsewhere/old"), Some(NOBODY), Some(NOBODY)).expect("root may give files away");
    fs::set_permissions(path("secret"), std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .expect("it is ours");
    Player::start(scenario, directory.path()).finish();
    let made = fs::read_to_string(path("out/report")).unwrap_or_default();
    assert_eq!(made, if scenario.starts_with("files") { "second\n" } else { "" });
    assert_eq!(fs::read_to_string(path("elsewhere/old")).expect("it is still there"), "old\n");
}

fn path(name: &str) -> PathBuf {
    Path::new(&std::env::var_os(DIRECTORY).expect("it is set")).join(name)
}

fn play_files() {
    let [out, elsewhere, config] = ["out", "elsewhere", "config"].map(path);
    let options = SandboxOptions {
        writable_paths: vec![out.clone()],
        readable_paths: vec![config.clone()],
        ..strict(Some("nobody"))
    };
    let report = enter(&options).unwrap_or_else(|error| panic!("{error}"));
    assert!(report.warnings.is_empty(), "{:?}", report.warnings);
    thread::spawn(move || {
        for text in ["first\n", "second\n"] {
            let mut file = File::create(out.join("report.new")).expect("files can be made");
            file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).expect("they can be written");
            fs::rename(out.join("report.new"), out.join("report")).expect("they can be replaced");
        }
        fs::write(out.join("superfluous"), "x").expect("files can be made");
        fs::remove_file(out.join("superfluous")).expect("files can be deleted");
        let text = fs::read_to_string(config.join("memtap.toml")).expect("the configuration can be read");
        assert_eq!(text, "[capture]\n");

        refused(libc::EACCES, fs::write(config.join("memtap.toml"), "x"));
        refused(libc::EACCES, File::open("/etc/passwd"));
        refused(libc::EACCES, fs::write(elsewhere.join("old"), "x"));
        refused(libc::EACCES, fs::write(elsewhere.join("new"), "x"));
        refused(libc::EACCES, fs::remove_file(elsewhere.join("old")));
        let moved = fs::rename(out.join("report"), elsewhere.join("report"));
        assert!(moved.is_err(), "files stay where they may be");
        refused(libc::EPERM, fs::create_dir(out.join("deeper")));
        refused(libc::EPERM, std::os::unix::fs::symlink("/etc/passwd", out.join("link")));
        refused(libc::EPERM, Command::new("/bin/true").status());
    })
    .join()
    .expect("the thread has not panicked");
}

fn play_path_without_rights() {
    let options = SandboxOptions { writable_paths: vec![path("missing")], ..strict(Some("nobody")) };
    let error = enter(&options).expect_err("there is no such path").to_string();
    assert!(error.contains("user nobody cannot write") && error.contains("missing: No such file"), "{error}");
    let options = SandboxOptions { writable_paths: vec![path("secret")], ..strict(Some("nobody")) };
    let error = enter(&options).expect_err("the user has no right to it").to_string();
    assert!(error.contains("secret: Permission denied"), "{error}");
    assert!(error.ends_with("give that user the right to, or choose another path"), "{error}");
}

// Kernels that lack something.

/// Lets a system call fail as on a kernel that does not know it.
fn forget_call(call: i64, errno: i32) {
    fail_call(call, vec![], errno);
}

/// Lets a system call fail, where its arguments are as in one of the rules.
fn fail_call(call: i64, rules: Vec<SeccompRule>, errno: i32) {
    let architecture = std::env::consts::ARCH.try_into().expect("it is one that we test on");
    let action = SeccompAction::Errno(errno.cast_unsigned());
    let filter = SeccompFilter::new([(call, rules)].into(), SeccompAction::Allow, action, architecture);
    let program: seccompiler::BpfProgram = filter.and_then(TryInto::try_into).expect("it is a filter");
    seccompiler::apply_filter(&program).expect("filters can be installed");
}

fn play_without_landlock() {
    forget_call(libc::SYS_landlock_create_ruleset, libc::ENOSYS);
    // Both in one process: what the first one has given up is given up.
    let error = enter(&strict(Some("nobody"))).expect_err("the kernel has no Landlock");
    assert!(matches!(error, SandboxError::Missing { .. }), "{error}");
    assert!(
        error.to_string().contains("no Landlock") && error.to_string().contains("best-effort"),
        "{error}"
    );
    let report = enter(&SandboxOptions::default()).expect("it does its best");
    assert_eq!((report.landlock_abi, report.warnings.len()), (None, 1), "{:?}", report.warnings);
    assert!(report.to_string().starts_with("sandbox: capabilities none, no landlock, seccomp "), "{report}");
    refused(libc::EPERM, File::open("/etc/passwd"));
}

fn play_without_seccomp() {
    forget_call(libc::SYS_seccomp, libc::ENOSYS);
    let error = enter(&strict(Some("nobody"))).expect_err("the kernel has no seccomp");
    assert!(matches!(error, SandboxError::Missing { .. }), "{error}");
    let report = enter(&SandboxOptions::default()).expect("it does its best");
    assert_eq!((report.seccomp_calls, report.warnings.len()), (None, 1), "{:?}", report.warnings);
    // Landlock alone.
    refused(libc::EACCES, File::open("/etc/passwd"));
    refused(libc::EACCES, Command::new("/bin/true").status());
    refused(libc::EACCES, TcpStream::connect((Ipv4Addr::LOCALHOST, 1)));
    refused(libc::EACCES, TcpListener::bind((Ipv4Addr::LOCALHOST, 1024)));
}

fn play_without_ring_memory() {
    let argument = |index, value: i32| {
        SeccompCondition::new(
            index,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::Eq,
            u64::from(value.cast_unsigned()),
        )
        .expect("arguments have numbers up to five")
    };
    let conditions = vec![argument(1, libc::SOL_PACKET), argument(2, libc::PACKET_RX_RING)];
    let rule = SeccompRule::new(conditions).expect("there are conditions");
    fail_call(libc::SYS_setsockopt, vec![rule], libc::ENOMEM);
    let Err(error) = Ring::open(&ring_options()) else { panic!("the kernel has no memory") };
    assert!(matches!(error, RingError::NoMemory { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("no memory for a ring") && text.contains("--ring-mb"), "{text}");
}

// Starting with less than root has.

fn play_few_capabilities() {
    for set in [CapSet::Effective, CapSet::Permitted] {
        let few = [Capability::CAP_NET_RAW].into_iter().collect();
        caps::set(None, set, &few).expect("capabilities can be given up");
    }
    let error = enter(&strict(Some("nobody"))).expect_err("CAP_SETUID is missing").to_string();
    assert!(
        error.contains("cannot become user \"nobody\"") && error.contains("leave capture.user empty"),
        "{error}"
    );
    let report = enter(&strict(None)).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(report.user, "root");
    assert!(!report.bounding_set_empty && report.warnings.is_empty(), "{report:?}");
    refused(libc::EPERM, File::open("/etc/shadow"));
    let error = PacketSocket::open().expect_err("CAP_NET_RAW is gone");
    assert!(matches!(error, SocketError::NoPrivilege), "{error}");
}

fn play_off() {
    let options = SandboxOptions {
        mode: SandboxMode::Off,
        user: Some(NOBODY.to_string()),
        ..SandboxOptions::default()
    };
    let report = enter(&options).expect("root may become anybody");
    assert_eq!(report.to_string(), "sandbox: off, user nobody");
    assert_eq!(rustix::process::getuid().as_raw(), NOBODY);
    File::open("/etc/passwd").expect("everybody may");
    refused(libc::EACCES, File::open("/etc/shadow"));
}

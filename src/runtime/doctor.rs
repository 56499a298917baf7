//! `memtap doctor`: what would be seen, and why not. Each line is ok, warn or fail, and says what to do.

use crate::anomaly::Anomaly;
use crate::capture::interface::{Interface, enumerate};
use crate::capture::ring::{self, Ring, RingOptions, RingShape, ring_byte_rate};
use crate::capture::socket::PacketSocket;
use crate::cli::{Exit, Options};
use crate::config::Config;
use crate::model::Transport;
use crate::pipeline::{CaptureTally, Pipeline};
use crate::reassembly::TargetTally;
use crate::runtime::failure::Failure;
use crate::runtime::live::{PRIVILEGE_ADVICE, choose_interfaces, filter_spec};
use crate::runtime::output::{Output, OutputEnd};
use crate::runtime::{load, pipeline_limits, target_id, target_map};
use std::fs;
use std::time::{Duration, Instant};

/// How long the interfaces are listened to.
const LISTEN: Duration = Duration::from_secs(2);

/// A ring for listening: small, since nothing is lost by losing here.
const LISTEN_RING_BYTES: u64 = 8 << 20;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// Lines of the examination.
#[derive(Default)]
struct Findings {
    lines: Vec<(Option<Verdict>, String)>,
}

impl Findings {
    fn ok(&mut self, text: impl Into<String>) {
        self.lines.push((Some(Verdict::Ok), text.into()));
    }

    fn warn(&mut self, text: impl Into<String>) {
        self.lines.push((Some(Verdict::Warn), text.into()));
    }

    fn fail(&mut self, text: impl Into<String>) {
        self.lines.push((Some(Verdict::Fail), text.into()));
    }

    fn failed(&self) -> bool {
        self.lines.iter().any(|(verdict, _)| *verdict == Some(Verdict::Fail))
    }

    fn text(&self) -> String {
        let word = |verdict: &Option<Verdict>| match verdict {
            Some(Verdict::Ok) => "ok  ",
            Some(Verdict::Warn) => "warn",
            Some(Verdict::Fail) => "fail",
            None => "    ",
        };
        self.lines.iter().map(|(verdict, text)| format!("{}  {text}\n", word(verdict))).collect()
    }
}

/// Examines the machine and listens for two seconds. Fails (exit code 1) when something would keep `run` from working.
pub fn doctor(options: &Options) -> Result<(), Failure> {
    let config = load(options)?;
    let mut findings = Findings::default();
    let privileged = examine_privilege(&mut findings);
    examine_memory(&config, &mut findings);
    examine_listeners(&config, &mut findings);
    match choose_interfaces(&config) {
        Err(failure) => findings.fail(failure.message),
        Ok(choice) => {
            examine_interfaces(&choice.interfaces, &mut findings);
            for address in &choice.unrouted {
                findings.warn(format!("no route to target {address}: name an interface with -i"));
            }
            if privileged {
                listen(&config, &choice.interfaces, &mut findings);
            }
        }
    }
    write(&findings.text())?;
    if findings.failed() {
        let exit = if privileged { Exit::Failure } else { Exit::NoPermission };
        return Err(Failure::new(
            exit,
            "something would keep memtap from working; see the lines marked fail",
        ));
    }
    Ok(())
}

fn write(text: &str) -> Result<(), Failure> {
    let mut output = Output::open(None).map_err(|error| Failure::new(Exit::OutputFailed, error))?;
    match output.write(|out| out.write_all(text.as_bytes())) {
        Ok(()) | Err(OutputEnd::ClosedPipe) => Ok(()),
        Err(OutputEnd::Failed(error)) => Err(Failure::new(Exit::OutputFailed, error)),
    }
}

fn examine_privilege(findings: &mut Findings) -> bool {
    match PacketSocket::open() {
        Ok(_) => {
            findings.ok("privilege: packet sockets can be opened");
            true
        }
        Err(_) => {
            findings.fail(PRIVILEGE_ADVICE);
            false
        }
    }
}

fn examine_memory(config: &Config, findings: &mut Findings) {
    let tables: u64 = config.targets.iter().map(|target| target.budget_bytes).sum();
    let rings = config.capture.ring_bytes * config.capture.workers as u64;
    let wanted = (tables + rings) >> 20;
    match available_mib() {
        Some(available) if available < wanted => findings.fail(format!(
            "memory: {wanted} MiB wanted for tables and rings, {available} MiB available; lower --budget-mb or --ring-mb"
        )),
        Some(available) => {
            findings.ok(format!("memory: {wanted} MiB for tables and rings of {available} MiB available"));
        }
        None => findings.warn("memory: /proc/meminfo cannot be read"),
    }
}

fn available_mib() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? >> 10)
}

/// Listeners on the targets' ports, as /proc/net shows them for this network namespace.
fn examine_listeners(config: &Config, findings: &mut Findings) {
    /// TCP_LISTEN of linux/tcp_states.h; UDP sockets stand in state 7 when not connected.
    const STATES: [(&str, Transport, &str); 4] = [
        ("/proc/net/tcp", Transport::Tcp, "0A"),
        ("/proc/net/tcp6", Transport::Tcp, "0A"),
        ("/proc/net/udp", Transport::Udp, "07"),
        ("/proc/net/udp6", Transport::Udp, "07"),
    ];
    let mut ports: Vec<u16> = config.targets.iter().map(|target| target.port).collect();
    ports.sort_unstable();
    ports.dedup();
    for port in ports {
        let mut found = Vec::new();
        for (file, transport, state) in STATES {
            let name = if transport == Transport::Tcp { "TCP" } else { "UDP" };
            if listens(file, port, state) && !found.contains(&name) {
                found.push(name);
            }
        }
        if found.is_empty() {
            findings.warn(format!(
                "port {port}: nothing listens on this machine; right at a mirror port, wrong on a memcached host"
            ));
        } else {
            findings.ok(format!("port {port}: listeners on this machine for {}", found.join(" and ")));
        }
    }
}

fn listens(file: &str, port: u16, state: &str) -> bool {
    let Ok(text) = fs::read_to_string(file) else { return false };
    text.lines().skip(1).any(|line| {
        let mut words = line.split_whitespace().skip(1);
        let local = words.next().and_then(|address| address.rsplit(':').next());
        let is_port = local.is_some_and(|hex| u16::from_str_radix(hex, 16) == Ok(port));
        is_port && words.nth(1) == Some(state)
    })
}

fn examine_interfaces(chosen: &[Interface], findings: &mut Findings) {
    for interface in chosen {
        if interface.is_up {
            findings.ok(format!("interface {}: up, MTU {}", interface.name, interface.mtu_bytes));
        } else {
            findings.warn(format!("interface {}: down; ip link set {} up", interface.name, interface.name));
        }
    }
    let others: Vec<String> = enumerate()
        .unwrap_or_default()
        .into_iter()
        .filter(|known| known.is_up && chosen.iter().all(|one| one.index != known.index && one.index != 0))
        .map(|interface| interface.name)
        .collect();
    if !others.is_empty() {
        findings
            .lines
            .push((None, format!("not captured: {} (name them with -i to change that)", others.join(", "))));
    }
}

/// Captures for [`LISTEN`] on each interface and tells what came.
fn listen(config: &Config, interfaces: &[Interface], findings: &mut Findings) {
    for interface in interfaces {
        let mut options = RingOptions::new(interface, filter_spec(config));
        options.shape = RingShape::with_bytes(LISTEN_RING_BYTES);
        options.promiscuous = config.capture.promiscuous;
        let ring = match Ring::open(&options) {
            Ok(ring) => ring,
            Err(error) => {
                findings.fail(format!("interface {}: {error}", interface.name));
                continue;
            }
        };
        let heard = hear(config, ring);
        judge(config, &interface.name, &heard, findings);
    }
}

/// What an interface carried while we listened.
struct Heard {
    capture: CaptureTally,
    targets: Vec<TargetTally>,
    captured_bytes: u64,
    dropped: u64,
}

fn hear(config: &Config, ring: Ring) -> Heard {
    let mut pipeline = Pipeline::new(target_map(config), pipeline_limits());
    let mut rings = [ring];
    let mut captured_bytes = 0;
    let until = Instant::now() + LISTEN;
    while Instant::now() < until {
        while let Some(mut block) = rings[0].next_block() {
            block.for_each_packet(|captured| {
                captured_bytes += captured.packet.bytes.len() as u64;
                pipeline.handle_packet(&captured.packet, &mut |_, _| {});
            });
        }
        if ring::wait(&mut rings, Duration::from_millis(50)).is_err() {
            break;
        }
    }
    let dropped = rings[0].statistics().map_or(0, |statistics| statistics.packets_dropped);
    pipeline.finish(&mut |_, _| {});
    Heard {
        targets: (0..config.targets.len()).map(|index| pipeline.take_tally(target_id(index))).collect(),
        capture: pipeline.take_capture_tally(),
        captured_bytes,
        dropped,
    }
}

fn judge(config: &Config, interface: &str, heard: &Heard, findings: &mut Findings) {
    if heard.capture.target_packets == 0 {
        findings.warn(format!(
            "traffic on {interface}: {} packets passed the filter in {} s, none of them of a target",
            heard.capture.packets,
            LISTEN.as_secs()
        ));
        return;
    }
    let seconds = LISTEN.as_secs();
    let (packets, bytes) = (heard.capture.packets / seconds, heard.captured_bytes / seconds);
    let shape = RingShape::with_bytes(config.capture.ring_bytes);
    let hold = shape.hold_time(ring_byte_rate(packets, bytes));
    findings.ok(format!(
        "traffic on {interface}: {packets} packets/s, {} KB/s; the configured ring bears a stall of {} ms of it",
        bytes / 1000,
        hold.as_millis()
    ));
    if heard.dropped > 0 {
        findings
            .warn(format!("{interface}: {} packets dropped while listening; raise --ring-mb", heard.dropped));
    }
    for (target, tally) in config.targets.iter().zip(&heard.targets) {
        judge_target(&target.name, tally, findings);
    }
}

fn judge_target(name: &str, tally: &TargetTally, findings: &mut Findings) {
    match tally.payload_packets {
        [0, 0] => {}
        [0, _] => findings.warn(format!("{name}: only responses are seen; requests take another way")),
        [_, 0] => findings.warn(format!("{name}: only requests are seen; responses take another way")),
        [requests, responses] => {
            findings.ok(format!("{name}: {requests} packets of requests, {responses} of responses"))
        }
    }
    let explanations = [
        (Anomaly::TlsFlow, "speak TLS: their requests cannot be read"),
        (Anomaly::UnknownProtocolFlow, "speak another protocol than memcached's"),
        (Anomaly::ProxyHeader, "begin with a PROXY header, which memcached does not know"),
        (Anomaly::MidStream, "were found in mid-stream; they are read from their next request on"),
    ];
    for (anomaly, text) in explanations {
        let count = tally.anomalies.of(anomaly);
        match anomaly {
            _ if count == 0 => {}
            Anomaly::MidStream => findings.lines.push((None, format!("{name}: {count} connections {text}"))),
            _ => findings.warn(format!("{name}: {count} connections {text}")),
        }
    }
}

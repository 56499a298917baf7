//! `memtap doctor`: what would be seen, and why not. Each line is ok, warn or fail, and says what to do.

mod lines;
mod machine;
mod traffic;

use crate::capture::interface::{Interface, enumerate};
use crate::capture::ring::{self, Ring, RingOptions, RingShape};
use crate::capture::socket::PacketSocket;
use crate::cli::{DoctorArgs, Exit};
use crate::config::Config;
use crate::report::escape_name;
use crate::runtime::failure::Failure;
use crate::runtime::live::{PRIVILEGE_ADVICE, choose_interfaces, filter_spec};
use crate::runtime::output::{Output, OutputEnd};
use crate::runtime::{load, namespace, target_map};
use lines::{Lines, Verdict};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use traffic::Traffic;

/// How long the interfaces are listened to, all at once.
const LISTEN: Duration = Duration::from_secs(2);

/// Rings for listening are as large as those of `run` would be, up to this: many interfaces must not cost gigabytes here.
const LISTEN_RING_BYTES_MAX: u64 = 64 << 20;

/// Examines the machine and listens for two seconds. Fails when something would keep `run` from working: exit code 77 without
/// the privilege, 1 otherwise.
pub fn doctor(arguments: &DoctorArgs) -> Result<(), Failure> {
    let config = load(&arguments.options)?;
    if let Some(netns) = &config.capture.netns {
        namespace::enter(netns)?;
    }
    let targets = target_map(&config);
    let mut lines = Lines::default();
    let privileged = examine_privilege(&mut lines);
    machine::examine_kernel(&mut lines);
    machine::examine_clock_source(&mut lines);
    let choice = choose_interfaces(&config);
    let interfaces = choice.as_ref().map_or(1, |choice| choice.interfaces.len());
    machine::examine_memory(&config, interfaces, &mut lines);
    machine::examine_listeners(&config, &targets, &mut lines);
    match choice {
        Err(failure) => lines.fail("interfaces", failure.message, "name interfaces with -i"),
        Ok(choice) => {
            examine_interfaces(&choice.interfaces, &mut lines);
            for address in &choice.unrouted {
                let text = format!("no route to target {address}");
                lines.warn("interfaces", text, "name the interface that its traffic passes with -i");
            }
            if privileged {
                listen(&config, &choice.interfaces, &mut lines);
            }
        }
    }
    write(&if arguments.json { lines.json() } else { lines.text() })?;
    if lines.verdict() == Verdict::Fail {
        let exit = if privileged { Exit::Failure } else { Exit::NoPermission };
        return Err(Failure::new(
            exit,
            "something would keep memtap from working; see the lines marked fail",
        ));
    }
    Ok(())
}

fn write(text: &str) -> Result<(), Failure> {
    match Output::standard().write(|out| out.write_all(text.as_bytes())) {
        Ok(()) | Err(OutputEnd::ClosedPipe) => Ok(()),
        Err(OutputEnd::Failed(error)) => Err(Failure::new(Exit::OutputFailed, error)),
    }
}

fn examine_privilege(lines: &mut Lines) -> bool {
    match PacketSocket::open() {
        Ok(_) => {
            lines.ok("privilege", "packet sockets can be opened");
            true
        }
        Err(error) => {
            lines.fail("privilege", error.to_string(), PRIVILEGE_ADVICE);
            false
        }
    }
}

fn examine_interfaces(chosen: &[Interface], lines: &mut Lines) {
    for interface in chosen {
        let name = escape_name(&interface.name);
        if interface.is_up {
            lines.ok("interfaces", format!("{name}: up, MTU {}", interface.mtu_bytes));
        } else {
            lines.warn("interfaces", format!("{name}: down"), format!("ip link set {name} up"));
        }
    }
    let all = chosen.iter().any(|one| one.index == 0);
    let others: Vec<String> = enumerate()
        .unwrap_or_default()
        .into_iter()
        .filter(|known| known.is_up && !all && chosen.iter().all(|one| one.index != known.index))
        .map(|interface| escape_name(&interface.name))
        .collect();
    if !others.is_empty() {
        lines.ok("interfaces", format!("not captured: {} (-i captures them)", others.join(", ")));
    }
}

/// Captures for [`LISTEN`] on every interface and tells what came.
fn listen(config: &Config, interfaces: &[Interface], lines: &mut Lines) {
    let mut rings = Vec::new();
    let mut heard_on = Vec::new();
    // Asks the kernel for this host's addresses: once for all interfaces.
    let filter = filter_spec(config);
    for interface in interfaces {
        let mut options = RingOptions::new(interface, filter.clone());
        options.shape = RingShape::with_bytes(config.capture.ring_bytes.min(LISTEN_RING_BYTES_MAX));
        options.promiscuous = config.capture.promiscuous;
        match Ring::open(&options) {
            Ok(ring) => {
                rings.push(ring);
                heard_on.push(interface.clone());
            }
            Err(error) => {
                let advice = "leave the interface out with -i, or look at dmesg";
                lines.fail("traffic", format!("{}: {error}", escape_name(&interface.name)), advice);
            }
        }
    }
    let mut traffic = Traffic::new(config, heard_on);
    hear(&mut rings, &mut traffic);
    for (index, ring) in rings.iter_mut().enumerate() {
        traffic.note_drops(index, ring.statistics().map_or(0, |statistics| statistics.packets_dropped));
    }
    traffic.judge(config, LISTEN, lines);
}

fn hear(rings: &mut [Ring], traffic: &mut Traffic) {
    let until = Instant::now() + LISTEN;
    while Instant::now() < until {
        for (index, ring) in rings.iter_mut().enumerate() {
            while let Some(mut block) = ring.next_block() {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                block.for_each_packet(|captured| traffic.take(index, &captured.packet, now));
            }
        }
        if ring::wait(rings, Duration::from_millis(50)).is_err() {
            break;
        }
    }
}

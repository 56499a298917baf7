//! What the machine has for us, as its files tell: kernel, memory, clock, and who listens.

use super::lines::Lines;
use crate::config::Config;
use crate::model::{Endpoint, Transport};
use crate::pipeline::TargetMap;
use crate::report::escape_name;
use landlock::{AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr};
use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// A line of a file of /proc or /sys, without its newline.
fn first_line(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.lines().next().unwrap_or_default().trim().to_string())
}

/// What the kernel offers. Nothing of it is needed but the packet socket, which is examined by opening one.
pub(super) fn examine_kernel(lines: &mut Lines) {
    let release = first_line("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_string());
    match first_line("/proc/sys/net/core/bpf_jit_enable").as_deref() {
        Some("0") => lines.warn(
            "kernel",
            format!("Linux {release}: the packet filter is interpreted"),
            "sysctl -w net.core.bpf_jit_enable=1 makes it cheaper",
        ),
        _ => lines.ok("kernel", format!("Linux {release}, packet filter compiled")),
    }
    let landlock = has_landlock();
    let seccomp = Path::new("/proc/sys/kernel/seccomp/actions_avail").exists();
    let has = |name: &str, has: bool| format!("{name} {}", if has { "yes" } else { "no" });
    let text = format!("{}, {}", has("landlock", landlock), has("seccomp", seccomp));
    if landlock && seccomp {
        lines.ok("sandbox", text);
    } else {
        let advice = "capture.user takes away what it can without; a kernel with both takes away more";
        lines.warn("sandbox", text, advice);
    }
    let huge = first_line("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    match huge.split('[').nth(1).and_then(|rest| rest.split(']').next()) {
        Some(mode @ ("always" | "madvise")) => {
            lines.ok("hugepages", format!("transparent huge pages: {mode}"))
        }
        _ => lines.warn(
            "hugepages",
            "tables lie in small pages",
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled makes large tables faster",
        ),
    }
}

fn has_landlock() -> bool {
    let strict = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    strict.handle_access(AccessFs::ReadFile).is_ok()
}

/// Tables and rings against what is free, for the machine and for the group of processes that we are in.
pub(super) fn examine_memory(config: &Config, interfaces: usize, lines: &mut Lines) {
    let tables: u64 = config.targets.iter().map(|target| target.budget_bytes).sum();
    // Each worker has a ring on each interface.
    let rings = config.capture.ring_bytes * (config.capture.workers * interfaces.max(1)) as u64;
    let wanted = (tables + rings) >> 20;
    let text = format!("{wanted} MiB for tables ({} MiB) and rings ({} MiB)", tables >> 20, rings >> 20);
    let advice = "lower --budget-mb or --ring-mb";
    let free = [("available", available_mib()), ("left of the cgroup's limit", cgroup_mib())];
    let least =
        free.into_iter().filter_map(|(name, mib)| mib.map(|mib| (name, mib))).min_by_key(|(_, mib)| *mib);
    match least {
        Some((name, mib)) if mib < wanted => {
            lines.fail("memory", format!("{text}, {mib} MiB {name}"), advice)
        }
        Some((name, mib)) if mib < wanted * 2 => {
            lines.warn("memory", format!("{text}, {mib} MiB {name}: more than half"), advice);
        }
        Some((name, mib)) => lines.ok("memory", format!("{text}, {mib} MiB {name}")),
        None => lines.warn("memory", format!("{text}; /proc/meminfo cannot be read"), "look with free -m"),
    }
}

fn available_mib() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? >> 10)
}

/// What the group's limit leaves (cgroup 2); nothing without a limit.
fn cgroup_mib() -> Option<u64> {
    let group = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = group.lines().find_map(|line| line.strip_prefix("0::"))?;
    let number = |name: &str| {
        let inside = format!("/sys/fs/cgroup{}/{name}", path.trim_end_matches('/'));
        first_line(&inside)?.parse::<u64>().ok()
    };
    let limit = number("memory.max")?;
    Some(limit.saturating_sub(number("memory.current").unwrap_or(0)) >> 20)
}

/// What the system's clock is made of.
pub(super) fn examine_clock_source(lines: &mut Lines) {
    match first_line("/sys/devices/system/clocksource/clocksource0/current_clocksource").as_deref() {
        Some(slow @ ("hpet" | "acpi_pm" | "jiffies" | "refined-jiffies")) => lines.warn(
            "clock",
            format!("the kernel reads its clock from {slow}, which is slow: each packet's time costs it a microsecond"),
            "look at dmesg for why tsc was given up",
        ),
        Some(source) => lines.ok("clock", format!("read from {}", escape_name(source))),
        None => lines.warn("clock", "the kernel does not tell its clock source", "nothing, when /sys is hidden on purpose"),
    }
}

/// A socket that waits for clients.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Listener {
    address: IpAddr,
    port: u16,
    transport: Transport,
    inode: u64,
}

/// Sockets on the targets' ports, and memcacheds on others, in this network namespace.
pub(super) fn examine_listeners(config: &Config, targets: &TargetMap, lines: &mut Lines) {
    let all = listeners();
    let owners = owners(&all);
    for port in targets.ports() {
        let mine: Vec<&Listener> = all.iter().filter(|listener| listener.port == port).collect();
        if mine.is_empty() {
            lines.warn(
                "listeners",
                format!("port {port}: nothing listens on this machine"),
                "right at a mirror port or in front of servers; on a memcached host the port is wrong, or it is in another network namespace",
            );
            continue;
        }
        let texts: Vec<String> = mine.iter().map(|listener| describe(listener, &owners)).collect();
        lines.ok("listeners", format!("port {port}: {}", texts.join(", ")));
        for listener in mine {
            judge_listener(config, listener, lines);
        }
    }
    let mut missed: Vec<&Listener> = all
        .iter()
        .filter(|listener| !targets.has_port(listener.port))
        .filter(|listener| owners.get(&listener.inode).is_some_and(|owner| owner.name == "memcached"))
        .collect();
    missed.sort_by_key(|listener| listener.port);
    missed.dedup_by_key(|listener| listener.port);
    for listener in missed {
        let port = listener.port;
        let text = format!("{} is no target", describe(listener, &owners));
        lines.warn("listeners", text, format!("add it: -t '*:{port}'"));
    }
}

/// A protocol that a server offers and no target watches is traffic that nobody sees.
fn judge_listener(config: &Config, listener: &Listener, lines: &mut Lines) {
    let watched = |target: &&crate::config::TargetConfig| {
        target.port == listener.port
            && match listener.transport {
                Transport::Tcp => target.tcp,
                Transport::Udp => target.udp,
            }
    };
    if config.targets.iter().find(watched).is_none() {
        let (port, transport) = (listener.port, name(listener.transport));
        let text = format!("port {port}: {transport} is listened on and not watched");
        lines.warn(
            "listeners",
            text,
            format!("add \"{}\" to the target's protocols", transport.to_lowercase()),
        );
    }
}

fn name(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "TCP",
        Transport::Udp => "UDP",
    }
}

fn describe(listener: &Listener, owners: &HashMap<u64, Owner>) -> String {
    let endpoint = Endpoint::new(listener.address, listener.port);
    let owner = owners.get(&listener.inode).map_or_else(String::new, |owner| {
        format!(" ({}, process {})", escape_name(&owner.name), owner.process)
    });
    format!("{} {endpoint}{owner}", name(listener.transport))
}

fn listeners() -> Vec<Listener> {
    /// TCP_LISTEN of linux/tcp_states.h; UDP sockets stand in state 7 when not connected.
    const FILES: [(&str, Transport, &str); 4] = [
        ("/proc/net/tcp", Transport::Tcp, "0A"),
        ("/proc/net/tcp6", Transport::Tcp, "0A"),
        ("/proc/net/udp", Transport::Udp, "07"),
        ("/proc/net/udp6", Transport::Udp, "07"),
    ];
    let mut found = Vec::new();
    for (file, transport, state) in FILES {
        let text = fs::read_to_string(file).unwrap_or_default();
        found.extend(text.lines().skip(1).filter_map(|line| read_listener(line, transport, state)));
    }
    found
}

/// `sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode …` (proc_net_tcp(5)).
fn read_listener(line: &str, transport: Transport, state: &str) -> Option<Listener> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [_, local, _, of, _, _, _, _, _, inode, ..] = words.as_slice() else { return None };
    if *of != state {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    Some(Listener {
        address: read_address(address)?,
        port: u16::from_str_radix(port, 16).ok()?,
        transport,
        inode: inode.parse().ok()?,
    })
}

/// Words of 32 bits, each printed as a number of this machine.
fn read_address(text: &str) -> Option<IpAddr> {
    let words =
        (0..text.len() / 8).map(|index| u32::from_str_radix(text.get(index * 8..index * 8 + 8)?, 16).ok());
    let bytes: Vec<u8> =
        words.collect::<Option<Vec<u32>>>()?.into_iter().flat_map(u32::to_ne_bytes).collect();
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes))),
        16 => <[u8; 16]>::try_from(bytes).ok().map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes))),
        _ => None,
    }
}

/// A process that holds a socket.
#[derive(Clone, Debug)]
struct Owner {
    name: String,
    process: u32,
}

/// Who holds these sockets, as far as we may look.
fn owners(listeners: &[Listener]) -> HashMap<u64, Owner> {
    let mut owners = HashMap::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(number) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        for fd in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            let Ok(link) = fs::read_link(fd.path()) else { continue };
            let inode =
                link.to_str().and_then(|link| link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            let Some(inode) = inode.filter(|inode| listeners.iter().any(|listener| listener.inode == *inode))
            else {
                continue;
            };
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            owners.entry(inode).or_insert(Owner { name: name.trim().to_string(), process: number });
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_read_as_the_kernel_prints_them() {
        let line = "   0: 0100007F:2BCB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 56012 1 0 100 0";
        let expected = Listener {
            address: "127.0.0.1".parse().unwrap(),
            port: 11211,
            transport: Transport::Tcp,
            inode: 56012,
        };
        if cfg!(target_endian = "little") {
            assert_eq!(read_listener(line, Transport::Tcp, "0A"), Some(expected));
            let v6 = read_address("0000000000000000FFFF00000100007F").unwrap();
            assert_eq!(v6, "::ffff:127.0.0.1".parse::<IpAddr>().unwrap());
        }
        assert_eq!(read_listener(line, Transport::Tcp, "07"), None);
        for damaged in ["", "0: x", "   0: 0100007F 0 0A 0 0 0 0 0 1", "   0: 01:2BCB 0 0A 0 0 0 0 0 1"] {
            assert_eq!(read_listener(damaged, Transport::Tcp, "0A"), None, "{damaged}");
        }
    }

    #[test]
    fn our_own_listener_is_found_with_its_owner() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let all = listeners();
        let ours = all
            .iter()
            .find(|listener| listener.port == port && listener.transport == Transport::Tcp)
            .unwrap();
        assert_eq!(ours.address, "127.0.0.1".parse::<IpAddr>().unwrap());
        assert_eq!(owners(&all)[&ours.inode].process, std::process::id());
    }
}

//! Targets: the servers to watch, one budget and one report each.

use super::units;
use crate::model::{Endpoint, Transport};
use crate::network::Network;
use crate::report::nearest;
use std::net::Ipv6Addr;

/// memcached's own port.
pub const PORT_DEFAULT: u16 = 11211;

/// Bytes of tables for a target, unless told otherwise. The original reporter took as much.
pub const BUDGET_BYTES_DEFAULT: u64 = 300_000_000;

/// Below this, tables of a few thousand rows could not hold even the hot keys of a small cache.
pub const BUDGET_BYTES_MIN: u64 = 4_000_000;

/// Most targets. Each takes memory for tables of its own (in all 40 GB at the least budget) and prints a report of its own;
/// with so many servers, they belong together in one network.
pub const TARGETS_MAX: usize = 10_000;

/// What `protocols` may hold.
const PROTOCOLS: &[&str] = &["tcp", "udp"];

/// A server to watch, or a network of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetConfig {
    /// Its name in reports.
    pub name: String,
    /// Its address or addresses.
    pub network: Network,
    /// Its port.
    pub port: u16,
    /// Whether to watch TCP.
    pub tcp: bool,
    /// Whether to watch UDP.
    pub udp: bool,
    /// Bytes of tables.
    pub budget_bytes: u64,
}

impl Default for TargetConfig {
    /// memcached's port on any address.
    fn default() -> TargetConfig {
        TargetConfig::new(Network::Any, PORT_DEFAULT)
    }
}

impl TargetConfig {
    /// Named after its address, both transports, default budget.
    pub fn new(network: Network, port: u16) -> TargetConfig {
        TargetConfig {
            name: address_text(&network, port),
            network,
            port,
            tcp: true,
            udp: true,
            budget_bytes: BUDGET_BYTES_DEFAULT,
        }
    }

    /// From `[NAME=]ADDR[:PORT]`, the form of `--target`.
    pub fn parse(text: &str) -> Result<TargetConfig, String> {
        let (name, address) = match text.split_once('=') {
            Some((name, address)) => (Some(name), address),
            None => (None, text),
        };
        let (network, port) = parse_address(address)?;
        let mut target = TargetConfig::new(network, port.unwrap_or(PORT_DEFAULT));
        if let Some(name) = name {
            target.name = check_name(name)?;
        }
        Ok(target)
    }

    /// From the values of a `[[target]]`, under the same rules.
    pub fn from_values(
        name: &str,
        address: &str,
        port: u16,
        protocols: &[String],
        budget_bytes: u64,
    ) -> Result<TargetConfig, String> {
        let (tcp, udp) = parse_protocols(protocols)?;
        Ok(TargetConfig {
            name: check_name(name)?,
            network: parse_network(address)?,
            port: check_port(port)?,
            tcp,
            udp,
            budget_bytes: check_budget(budget_bytes)?,
        })
    }

    /// Its address with the port, as configured: `10.1.0.5:11211`, `10.0.0.0/8:11211`, `*:11211`.
    pub fn address(&self) -> String {
        address_text(&self.network, self.port)
    }

    /// Whether it can stand for several servers, so that its report has a table of them.
    pub fn is_fleet(&self) -> bool {
        self.network.single().is_none()
    }

    /// Whether a packet to or from this server endpoint is of this target.
    pub fn matches(&self, server: &Endpoint, transport: Transport) -> bool {
        let watched = match transport {
            Transport::Tcp => self.tcp,
            Transport::Udp => self.udp,
        };
        watched && server.port() == self.port && self.network.contains(server)
    }

    /// Whether some packet would match both.
    pub fn overlaps(&self, other: &TargetConfig) -> bool {
        let shares_transport = (self.tcp && other.tcp) || (self.udp && other.udp);
        let nested = self.network.covers(&other.network) || other.network.covers(&self.network);
        self.port == other.port && shares_transport && nested
    }
}

fn address_text(network: &Network, port: u16) -> String {
    match network {
        Network::Net(ip, _) if ip.is_ipv6() => format!("[{network}]:{port}"),
        _ => format!("{network}:{port}"),
    }
}

/// `ADDR`, `ADDR:PORT`, `[ADDR]:PORT`; ADDR may be a CIDR or `*`.
fn parse_address(text: &str) -> Result<(Network, Option<u16>), String> {
    if let Some(rest) = text.strip_prefix('[') {
        let Some((address, rest)) = rest.split_once(']') else {
            return Err(format!("{text:?} opens a bracket and never closes it; write [::1]:11211"));
        };
        let port = match rest.strip_prefix(':') {
            Some(port) => Some(parse_port(port)?),
            None if rest.is_empty() => None,
            None => return Err(format!("{rest:?} after the bracket is no port; write [::1]:11211")),
        };
        return Ok((parse_network(address)?, port));
    }
    // Without brackets, several colons are an IPv6 address and no port.
    let is_ipv6 = text.split('/').next().is_some_and(|address| address.parse::<Ipv6Addr>().is_ok());
    match text.rsplit_once(':') {
        Some((address, port)) if !is_ipv6 => Ok((parse_network(address)?, Some(parse_port(port)?))),
        _ => Ok((parse_network(text)?, None)),
    }
}

pub(super) fn parse_network(text: &str) -> Result<Network, String> {
    text.parse::<Network>().map_err(|error| match text {
        "localhost" => "names are not resolved; write 127.0.0.1".to_string(),
        _ => error.to_string(),
    })
}

fn check_port(port: u16) -> Result<u16, String> {
    if port > 0 { Ok(port) } else { Err("0 is not a port from 1 to 65535".to_string()) }
}

fn parse_port(text: &str) -> Result<u16, String> {
    let port = text.parse().ok().filter(|port| *port > 0);
    port.ok_or_else(|| format!("{text:?} is not a port from 1 to 65535"))
}

pub(super) fn check_name(name: &str) -> Result<String, String> {
    let printable = |character: char| !character.is_control();
    if name.is_empty() || name.chars().count() > 100 || !name.chars().all(printable) || name.trim() != name {
        return Err(format!("{name:?} is no name; allowed are 1 to 100 printable characters"));
    }
    Ok(name.to_string())
}

/// From the list of `protocols`: whether TCP, whether UDP.
pub(super) fn parse_protocols(list: &[String]) -> Result<(bool, bool), String> {
    if list.is_empty() {
        return Err("protocols is empty; allowed are \"tcp\" and \"udp\", one or both".to_string());
    }
    if let Some(wrong) = list.iter().find(|name| !PROTOCOLS.contains(&name.as_str())) {
        let meant =
            nearest(wrong, PROTOCOLS).map_or_else(String::new, |name| format!("; did you mean {name:?}?"));
        return Err(format!("{wrong:?} is no protocol; allowed are \"tcp\" and \"udp\"{meant}"));
    }
    let has = |protocol: &str| list.iter().any(|name| name == protocol);
    Ok((has("tcp"), has("udp")))
}

pub(super) fn parse_budget(text: &str) -> Result<u64, String> {
    let bytes = units::parse_bytes(text)
        .ok_or_else(|| format!("{text:?} is not a size; write {}", units::BYTES_SYNTAX))?;
    check_budget(bytes)
}

pub(super) fn check_budget(bytes: u64) -> Result<u64, String> {
    const BUDGET_BYTES_MAX: u64 = 1_000_000_000_000;
    if (BUDGET_BYTES_MIN..=BUDGET_BYTES_MAX).contains(&bytes) {
        return Ok(bytes);
    }
    let [min, max] = [BUDGET_BYTES_MIN, BUDGET_BYTES_MAX].map(units::show_bytes);
    Err(format!("{} is out of range; allowed are {min} to {max}", units::show_bytes(bytes)))
}

/// What the operator should know about targets that share traffic: a packet is counted for the one with the most specific network,
/// and among equals for the first.
pub(super) fn overlap_warnings(targets: &[TargetConfig]) -> Vec<String> {
    let mut warnings = Vec::new();
    for (index, later) in targets.iter().enumerate() {
        for earlier in targets[..index].iter().filter(|earlier| earlier.overlaps(later)) {
            let is_equal = earlier.network == later.network;
            let shadowed = is_equal && (earlier.tcp || !later.tcp) && (earlier.udp || !later.udp);
            warnings.push(if shadowed {
                format!(
                    "target {:?} can never match: all of {} belongs to target {:?} before it",
                    later.name,
                    later.address(),
                    earlier.name,
                )
            } else {
                let (winner, why) = match is_equal || later.network.covers(&earlier.network) {
                    true if is_equal => (earlier, "the first of them"),
                    true => (earlier, "the more specific of them"),
                    false => (later, "the more specific of them"),
                };
                format!(
                    "targets {:?} and {:?} overlap; what both match is counted for {:?}, {why}",
                    earlier.name, later.name, winner.name
                )
            });
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_syntax() {
        let check = |text: &str, name: &str, address: &str| {
            let target = TargetConfig::parse(text).unwrap();
            assert_eq!((target.name.as_str(), target.address().as_str()), (name, address), "{text}");
        };
        check("10.1.0.5", "10.1.0.5:11211", "10.1.0.5:11211");
        check("cache-a=10.1.0.5:11212", "cache-a", "10.1.0.5:11212");
        check("*", "*:11211", "*:11211");
        check("*:11212", "*:11212", "*:11212");
        check("10.0.0.0/8", "10.0.0.0/8:11211", "10.0.0.0/8:11211");
        check("fleet=10.0.0.0/8:11212", "fleet", "10.0.0.0/8:11212");
        check("[::1]:11211", "[::1]:11211", "[::1]:11211");
        check("::1", "[::1]:11211", "[::1]:11211");
        check("fd00::/8", "[fd00::/8]:11211", "[fd00::/8]:11211");
        check("six=[fd00::/8]:1", "six", "[fd00::/8]:1");
    }

    #[test]
    fn target_mistakes() {
        let check = |text: &str, expected: &str| {
            let error = TargetConfig::parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        };
        check("", "is not an IP address");
        check("localhost", "write 127.0.0.1");
        check("10.1.0.5:0", "is not a port from 1 to 65535");
        check("10.1.0.5:99999", "is not a port");
        check("=10.1.0.5", "is no name");
        check("[::1", "never closes it");
        check("[::1]11211", "after the bracket");
        check("10.1.2.3/8", "write 10.0.0.0/8");
    }

    #[test]
    fn values_are_judged_as_in_a_file() {
        let protocols = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let both = protocols(&["tcp", "udp"]);
        let target = TargetConfig::from_values("a", "10.0.0.0/8", 11212, &both, BUDGET_BYTES_DEFAULT);
        let expected = TargetConfig::parse("a=10.0.0.0/8:11212");
        assert_eq!(target, expected);
        let check = |name: &str, address: &str, port, names: &[&str], budget, expected: &str| {
            let error =
                TargetConfig::from_values(name, address, port, &protocols(names), budget).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        check("", "10.0.0.1", 1, &["tcp"], BUDGET_BYTES_MIN, "is no name");
        check("a", "localhost", 1, &["tcp"], BUDGET_BYTES_MIN, "write 127.0.0.1");
        check("a", "10.0.0.1", 0, &["tcp"], BUDGET_BYTES_MIN, "is not a port");
        check("a", "10.0.0.1", 1, &["tpc"], BUDGET_BYTES_MIN, "did you mean \"tcp\"");
        check("a", "10.0.0.1", 1, &["tcp"], BUDGET_BYTES_MIN - 1, "out of range");
    }

    #[test]
    fn matching() {
        let target = TargetConfig { udp: false, ..TargetConfig::parse("10.0.0.0/8").unwrap() };
        let server = Endpoint::from_ipv4([10, 1, 2, 3], 11211);
        assert!(target.matches(&server, Transport::Tcp));
        assert!(!target.matches(&server, Transport::Udp));
        assert!(!target.matches(&Endpoint::from_ipv4([10, 1, 2, 3], 11212), Transport::Tcp));
        assert!(!target.matches(&Endpoint::from_ipv4([11, 1, 2, 3], 11211), Transport::Tcp));
    }

    #[test]
    fn overlaps_are_told() {
        let targets = |texts: &[&str]| -> Vec<TargetConfig> {
            texts.iter().map(|text| TargetConfig::parse(text).unwrap()).collect()
        };
        assert!(overlap_warnings(&targets(&["10.1.0.5", "10.1.0.6", "*:11212"])).is_empty());
        // As `pipeline::TargetMap` finds them: whatever their order, the address wins over the network.
        for order in [["*", "a=10.1.0.5"], ["a=10.1.0.5", "*"]] {
            let warning = &overlap_warnings(&targets(&order))[0];
            assert!(warning.ends_with("counted for \"a\", the more specific of them"), "{warning}");
        }
        let warning = &overlap_warnings(&targets(&["a=10.1.0.0/16", "b=10.1.0.0/16"]))[0];
        assert!(warning.starts_with("target \"b\" can never match"), "{warning}");
        let mut split = targets(&["a=10.1.0.5", "b=10.1.0.5"]);
        split[0].udp = false;
        let warning = &overlap_warnings(&split)[0];
        assert!(warning.ends_with("counted for \"a\", the first of them"), "{warning}");
    }
}

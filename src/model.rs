//! The nouns that every stage shares: time, endpoints, targets, directions, commands, outcomes.
//!
//! Imports nothing of ours. Names on the wire and in reports (`Command::name`, `Outcome::name`) have their one home here.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// A moment on the capture's clock, in nanoseconds since the Unix epoch (reaches to the year 2554).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The Unix epoch; stands for "never" where a time has not been set.
    pub const ZERO: Timestamp = Timestamp(0);

    /// Later than any other.
    pub const MAX: Timestamp = Timestamp(u64::MAX);

    /// From nanoseconds since the Unix epoch.
    pub const fn from_nanos(nanos: u64) -> Timestamp {
        Timestamp(nanos)
    }

    /// From seconds and nanoseconds since the Unix epoch; saturates.
    pub const fn from_parts(secs: u64, nanos: u32) -> Timestamp {
        Timestamp(secs.saturating_mul(1_000_000_000).saturating_add(nanos as u64))
    }

    /// Nanoseconds since the Unix epoch.
    pub const fn nanos(self) -> u64 {
        self.0
    }

    /// Time from `earlier` to `self`; zero when the clock ran backwards.
    pub const fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// So much earlier; the epoch when there is no such time.
    pub const fn minus(self, duration: Duration) -> Timestamp {
        Timestamp(self.0.saturating_sub(nanos_of(duration)))
    }

    /// `self` plus `duration`; saturates.
    pub const fn plus(self, duration: Duration) -> Timestamp {
        Timestamp(self.0.saturating_add(nanos_of(duration)))
    }
}

/// The nanoseconds of a duration; saturates. Packets are compared with deadlines, and `Duration::as_nanos` counts in 128 bits.
const fn nanos_of(duration: Duration) -> u64 {
    Timestamp::from_parts(duration.as_secs(), duration.subsec_nanos()).0
}

/// An IP address and a port. IPv4 addresses are held in their IPv6-mapped form, so that one layout serves both.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    address: [u8; 16],
    port: u16,
}

impl Endpoint {
    /// From an address and a port.
    pub fn new(ip: IpAddr, port: u16) -> Endpoint {
        match ip {
            IpAddr::V4(ip) => Endpoint::from_ipv4(ip.octets(), port),
            IpAddr::V6(ip) => Endpoint::from_ipv6(ip.octets(), port),
        }
    }

    /// From the four bytes of an IPv4 header.
    pub const fn from_ipv4(octets: [u8; 4], port: u16) -> Endpoint {
        // By way of a number: compilers carry an array that was made byte by byte through the packet path byte by byte.
        let mapped = 0xffff << 32 | u32::from_be_bytes(octets) as u128;
        Endpoint { address: mapped.to_be_bytes(), port }
    }

    /// From the sixteen bytes of an IPv6 header.
    pub const fn from_ipv6(octets: [u8; 16], port: u16) -> Endpoint {
        Endpoint { address: octets, port }
    }

    /// The address, as IPv4 when it is one.
    pub fn ip(&self) -> IpAddr {
        Ipv6Addr::from(self.address).to_canonical()
    }

    /// The port.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The address in IPv6 form (IPv4 mapped), for hashing and comparison.
    pub const fn octets(&self) -> &[u8; 16] {
        &self.address
    }

    /// The IPv4 address as a number, when it is one.
    pub const fn ipv4(&self) -> Option<u32> {
        match self.address {
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => Some(u32::from_be_bytes([a, b, c, d])),
            _ => None,
        }
    }

    /// The same address with port 0: the key of rankings by IP.
    pub const fn without_port(&self) -> Endpoint {
        Endpoint { address: self.address, port: 0 }
    }
}

impl fmt::Display for Endpoint {
    /// `10.0.0.1:11211`, `[fd00::1]:11211`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.ip(), self.port).fmt(f)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Index of a configured server in `Config::targets`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetId(pub u16);

impl TargetId {
    /// As an index into per-target arrays.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// A stream of segments.
    Tcp,
    /// Datagrams with memcached's frame header.
    Udp,
}

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From client to server: requests.
    ToServer,
    /// From server to client: responses.
    ToClient,
}

impl Direction {
    /// The other way.
    pub const fn opposite(self) -> Direction {
        match self {
            Direction::ToServer => Direction::ToClient,
            Direction::ToClient => Direction::ToServer,
        }
    }

    /// 0 for `ToServer`, 1 for `ToClient`: index into per-direction pairs.
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// Who talks to whom about which target; the same for every packet of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowTuple {
    /// The configured server that this flow belongs to.
    pub target: TargetId,
    /// The server's own address (a target may be a CIDR).
    pub server: Endpoint,
    /// The client.
    pub client: Endpoint,
    /// TCP or UDP.
    pub transport: Transport,
}

/// What a command does to its keys; the report's columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CommandClass {
    /// Asks for values: get gets gat gats bget mg.
    Retrieval,
    /// Writes values: set add replace append prepend cas ms.
    Storage,
    /// delete md.
    Deletion,
    /// touch.
    Touch,
    /// incr decr ma.
    Arithmetic,
    /// A keyed command of no other class (me).
    Other,
    /// Names no key; counted in `commands` only.
    Keyless,
}

macro_rules! commands {
    ($($(#[$doc:meta])* $variant:ident $name:literal $class:ident),* $(,)?) => {
        /// The verb of a request. Binary and meta commands whose effect memcached counts as another verb's stand
        /// apart (`MetaGetTouch`, `MetaDecrement`, `Cas`), so that our sums can be laid beside its counters.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Command { $($(#[$doc])* $variant),* }

        impl Command {
            /// Every command, in the order of their numbers.
            pub const ALL: &'static [Command] = &[$(Command::$variant),*];

            /// The name in reports.
            pub const fn name(self) -> &'static str {
                match self { $(Command::$variant => $name),* }
            }

            /// What it does to its keys.
            pub const fn class(self) -> CommandClass {
                match self { $(Command::$variant => CommandClass::$class),* }
            }
        }
    };
}

commands! {
    /// `get`; binary GET, GETQ, GETK, GETKQ.
    Get "get" Retrieval,
    /// `gets`.
    Gets "gets" Retrieval,
    /// `gat`; binary GAT, GATQ, GATK, GATKQ.
    Gat "gat" Retrieval,
    /// `gats`.
    Gats "gats" Retrieval,
    /// `bget` (servers before 1.6.40).
    Bget "bget" Retrieval,
    /// `mg` without `T`.
    MetaGet "mg" Retrieval,
    /// `mg` with `T`: memcached counts a hit of it as a touch.
    MetaGetTouch "mg_touch" Retrieval,
    /// `set`; binary SET without a compare value.
    Set "set" Storage,
    /// `add`.
    Add "add" Storage,
    /// `replace`; binary REPLACE without a compare value.
    Replace "replace" Storage,
    /// `append`.
    Append "append" Storage,
    /// `prepend`.
    Prepend "prepend" Storage,
    /// `cas`; binary SET and REPLACE with a compare value; `ms` with `C` in mode set or replace.
    Cas "cas" Storage,
    /// `ms` otherwise.
    MetaSet "ms" Storage,
    /// `delete`.
    Delete "delete" Deletion,
    /// `md`.
    MetaDelete "md" Deletion,
    /// `incr`.
    Incr "incr" Arithmetic,
    /// `decr`.
    Decr "decr" Arithmetic,
    /// `ma` in increment mode.
    MetaArithmetic "ma" Arithmetic,
    /// `ma` in decrement mode.
    MetaDecrement "ma_decr" Arithmetic,
    /// `touch`.
    Touch "touch" Touch,
    /// `me`: debug output about one key.
    MetaDebug "me" Other,
    /// `mn`: the fence of a quiet pipeline.
    MetaNoop "mn" Keyless,
    /// Binary NOOP.
    Noop "noop" Keyless,
    /// `flush_all`.
    FlushAll "flush_all" Keyless,
    /// `version`.
    Version "version" Keyless,
    /// `stats` in text.
    Stats "stats" Keyless,
    /// Binary STAT.
    Stat "stat" Keyless,
    /// `verbosity`.
    Verbosity "verbosity" Keyless,
    /// `quit`.
    Quit "quit" Keyless,
    /// `watch`.
    Watch "watch" Keyless,
    /// `lru_crawler`.
    LruCrawler "lru_crawler" Keyless,
    /// `lru`.
    Lru "lru" Keyless,
    /// `slabs`.
    Slabs "slabs" Keyless,
    /// `cache_memlimit`.
    CacheMemlimit "cache_memlimit" Keyless,
    /// `extstore`.
    Extstore "extstore" Keyless,
    /// `refresh_certs`.
    RefreshCerts "refresh_certs" Keyless,
    /// `shutdown`.
    Shutdown "shutdown" Keyless,
    /// Binary SASL list, auth and step; ASCII logins. Never with a credential.
    Sasl "sasl" Keyless,
    /// A line or header that is no command of memcached's.
    Unknown "unknown" Keyless,
}

impl Command {
    /// Number of commands.
    pub const COUNT: usize = Command::ALL.len();

    /// As an index into per-command arrays.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Whether each request of it names a key.
    pub const fn is_keyed(self) -> bool {
        !matches!(self.class(), CommandClass::Keyless)
    }
}

macro_rules! outcomes {
    ($($(#[$doc:meta])* $variant:ident $name:literal),* $(,)?) => {
        /// How a request ended.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Outcome { $($(#[$doc])* $variant),* }

        impl Outcome {
            /// Every outcome, in the order of their numbers.
            pub const ALL: &'static [Outcome] = &[$(Outcome::$variant),*];

            /// The name in reports.
            pub const fn name(self) -> &'static str {
                match self { $(Outcome::$variant => $name),* }
            }
        }
    };
}

outcomes! {
    /// Retrieval, deletion, arithmetic, touch: the key was there.
    Hit "hit",
    /// Retrieval, deletion, arithmetic, touch: it was not.
    Miss "miss",
    /// Storage: written. Arithmetic: the item was created by the command.
    Stored "stored",
    /// Storage: the condition of add, replace, append, prepend failed.
    NotStored "not_stored",
    /// Storage with a compare value: the item had changed.
    Exists "exists",
    /// Storage with a compare value: there was no item.
    NotFound "not_found",
    /// Storage: refused for its size.
    TooLarge "too_large",
    /// A keyless command was answered.
    Ok "ok",
    /// Answered by an error line or status.
    Error "error",
    /// Not known: no answer is promised (noreply), or it was not captured.
    Unseen "unseen",
}

impl Outcome {
    /// Number of outcomes.
    pub const COUNT: usize = Outcome::ALL.len();

    /// As an index into per-outcome arrays.
    pub const fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_display_in_canonical_form() {
        assert_eq!(Endpoint::from_ipv4([10, 0, 0, 1], 11211).to_string(), "10.0.0.1:11211");
        let v6 = Endpoint::new("fd00::1".parse().unwrap(), 1);
        assert_eq!(v6.to_string(), "[fd00::1]:1");
        assert_eq!(v6.ipv4(), None);
        assert_eq!(Endpoint::from_ipv4([1, 2, 3, 4], 9).ipv4(), Some(0x0102_0304));
    }

    #[test]
    fn names_are_distinct() {
        let names: std::collections::HashSet<_> = Command::ALL.iter().map(|c| c.name()).collect();
        assert_eq!(names.len(), Command::COUNT);
        for (index, command) in Command::ALL.iter().enumerate() {
            assert_eq!(command.index(), index);
        }
    }
}

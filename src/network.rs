//! IP networks as operators write them: an address, a CIDR, or `*`.

use crate::model::Endpoint;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// A set of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Every address of either family.
    Any,
    /// The addresses that share the first bits of this one. The bits behind them are zero.
    Net(IpAddr, u8),
}

impl Network {
    /// One address.
    pub fn of(ip: IpAddr) -> Network {
        let ip = ip.to_canonical();
        Network::Net(ip, family_bits(ip))
    }

    /// Whether the endpoint's address is in it.
    pub fn contains(&self, endpoint: &Endpoint) -> bool {
        match self {
            Network::Any => true,
            Network::Net(ip, prefix) => {
                let (mine, prefix) = mapped(*ip, *prefix);
                same_prefix(&mine, endpoint.octets(), prefix)
            }
        }
    }

    /// Whether every address of `other` is in it.
    pub fn covers(&self, other: &Network) -> bool {
        match (self, other) {
            (Network::Any, _) => true,
            (Network::Net(..), Network::Any) => false,
            (Network::Net(ip, prefix), Network::Net(other_ip, other_prefix)) => {
                let (mine, prefix) = mapped(*ip, *prefix);
                let (theirs, other_prefix) = mapped(*other_ip, *other_prefix);
                prefix <= other_prefix && same_prefix(&mine, &theirs, prefix)
            }
        }
    }

    /// The address, when it is only one.
    pub fn single(&self) -> Option<IpAddr> {
        match self {
            Network::Net(ip, prefix) if *prefix == family_bits(*ip) => Some(*ip),
            _ => None,
        }
    }
}

impl fmt::Display for Network {
    /// `*`, `10.1.0.5`, `10.0.0.0/8`, `fd00::/8`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, self.single()) {
            (Network::Any, _) => f.write_str("*"),
            (_, Some(ip)) => ip.fmt(f),
            (Network::Net(ip, prefix), None) => write!(f, "{ip}/{prefix}"),
        }
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Network, NetworkError> {
        if text == "*" {
            return Ok(Network::Any);
        }
        let Some((address, prefix)) = text.split_once('/') else {
            return text.parse().map(Network::of).map_err(|_| NetworkError::NoAddress(text.to_string()));
        };
        let ip: IpAddr = address.parse().map_err(|_| NetworkError::NoAddress(address.to_string()))?;
        let bits = family_bits(ip);
        let prefix: u8 = prefix
            .parse()
            .ok()
            .filter(|prefix| *prefix <= bits)
            .ok_or_else(|| NetworkError::BadPrefix(prefix.to_string(), bits))?;
        let network = masked(ip, prefix);
        if network != ip {
            return Err(NetworkError::HostBits(text.to_string(), format!("{network}/{prefix}")));
        }
        Ok(Network::Net(network, prefix))
    }
}

/// Why a text is no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// Not an address at all.
    #[error(
        "{0:?} is not an IP address; write an address such as 10.1.0.5, a CIDR such as 10.1.0.0/16, or *"
    )]
    NoAddress(String),
    /// A prefix length that the family does not have.
    #[error("{0:?} is not a prefix length from 0 to {1}")]
    BadPrefix(String, u8),
    /// An address with bits behind the prefix: a slip more often than not.
    #[error("{0} has bits beyond its prefix; write {1}")]
    HostBits(String, String),
}

fn family_bits(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// In IPv6-mapped form, the form of [`Endpoint::octets`].
fn mapped(ip: IpAddr, prefix: u8) -> ([u8; 16], u8) {
    match ip {
        IpAddr::V4(ip) => (ip.to_ipv6_mapped().octets(), prefix + 96),
        IpAddr::V6(ip) => (ip.octets(), prefix),
    }
}

fn same_prefix(a: &[u8; 16], b: &[u8; 16], prefix: u8) -> bool {
    let difference = u128::from_be_bytes(*a) ^ u128::from_be_bytes(*b);
    difference.leading_zeros() >= u32::from(prefix)
}

fn masked(ip: IpAddr, prefix: u8) -> IpAddr {
    let (octets, prefix) = mapped(ip, prefix);
    let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
    let bits = u128::from_be_bytes(octets) & mask;
    match ip {
        IpAddr::V4(_) => {
            IpAddr::V4(std::net::Ipv4Addr::from_bits(u32::try_from(bits & 0xffff_ffff).unwrap_or(0)))
        }
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(bits)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    fn endpoint(text: &str) -> Endpoint {
        Endpoint::new(text.parse().unwrap(), 11211)
    }

    #[test]
    fn contains_and_covers() {
        assert!(network("*").contains(&endpoint("10.1.2.3")));
        assert!(network("10.0.0.0/8").contains(&endpoint("10.1.2.3")));
        assert!(!network("10.0.0.0/8").contains(&endpoint("11.1.2.3")));
        assert!(!network("10.1.0.5").contains(&endpoint("10.1.0.6")));
        assert!(network("0.0.0.0/0").contains(&endpoint("1.2.3.4")));
        assert!(!network("0.0.0.0/0").contains(&endpoint("fd00::1")));
        assert!(network("fd00::/8").contains(&endpoint("fd00::1")));
        assert!(network("::/0").contains(&endpoint("::1")));
        assert!(network("::ffff:10.0.0.1").contains(&endpoint("10.0.0.1")));
        assert!(network("10.0.0.0/8").covers(&network("10.1.0.0/16")));
        assert!(!network("10.1.0.0/16").covers(&network("10.0.0.0/8")));
        assert!(!network("10.0.0.0/8").covers(&Network::Any));
    }

    #[test]
    fn texts() {
        for text in ["*", "10.1.0.5", "10.0.0.0/8", "fd00::/8", "::1", "0.0.0.0/0", "::/0"] {
            assert_eq!(network(text).to_string(), text);
        }
        let refused = |text: &str| text.parse::<Network>().unwrap_err().to_string();
        assert_eq!(refused("10.1.2.3/8"), "10.1.2.3/8 has bits beyond its prefix; write 10.0.0.0/8");
        assert_eq!(refused("10.0.0.0/33"), "\"33\" is not a prefix length from 0 to 32");
        assert!(refused("localhost").contains("is not an IP address"));
    }
}

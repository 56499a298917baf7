//! Questions to the kernel about interfaces, addresses and routes, and the reading of its answers (rtnetlink(7)).
//!
//! Promises that no answer, however damaged, makes it read outside of it, loop, or panic. Messages and attributes after
//! linux/netlink.h and linux/rtnetlink.h: all in the machine's byte order, aligned to four bytes.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::time::Duration;

use super::{Interface, InterfaceAddress, InterfaceError, InterfaceKind, Route};
use crate::capture::socket;

/// Room for one answer; the kernel fills at most 32 KiB at a time.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Changes that follow each other as fast as this are one: an interface comes with its state and its addresses.
const SETTLE: Duration = Duration::from_millis(20);

const MESSAGE_HEADER_BYTES: usize = 16;
const ATTRIBUTE_HEADER_BYTES: usize = 4;
/// `ifinfomsg`.
pub(super) const LINK_HEADER_BYTES: usize = 16;
/// `ifaddrmsg`.
pub(super) const ADDRESS_HEADER_BYTES: usize = 8;
/// `rtmsg`.
pub(super) const ROUTE_HEADER_BYTES: usize = 12;
/// The two high bits of an attribute's number are flags.
const ATTRIBUTE_NUMBER_MASK: u16 = 0x3fff;
/// Flag of a request for every object of its kind.
pub(super) const DUMP: u16 = 0x300;
const FLAG_REQUEST: u16 = 1;
const MESSAGE_ERROR: u16 = 2;
const MESSAGE_DONE: u16 = 3;
const FLAG_MULTIPART: u16 = 2;

// Attributes of a link (linux/if_link.h).
const LINK_NAME: u16 = 3;
const LINK_MTU: u16 = 4;
const LINK_PARENT: u16 = 5;
const LINK_INFO: u16 = 18;
const LINK_STATISTICS: u16 = 23;
const LINK_PEER_NAMESPACE: u16 = 37;
const LINK_INFO_KIND: u16 = 1;
const LINK_INFO_MASTER_KIND: u16 = 4;

// Places in `rtnl_link_stats64`, in units of eight bytes.
const STATISTICS_RX_FIFO_ERRORS: usize = 14;
const STATISTICS_RX_MISSED_ERRORS: usize = 15;

// Hardware types (linux/if_arp.h).
const HARDWARE_ETHERNET: u16 = 1;
const HARDWARE_LOOPBACK: u16 = 772;

/// A socket and the room for its answers.
pub(super) struct Netlink {
    socket: File,
    answer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket in the network namespace of this thread.
    pub(super) fn open() -> Result<Netlink, InterfaceError> {
        Ok(Netlink { socket: socket::open_route_netlink()?, answer: vec![0; ANSWER_BYTES_MAX] })
    }

    /// Opens a socket to which the kernel tells of changes, of the kinds in `groups`.
    pub(super) fn subscribe(groups: u32) -> Result<Netlink, InterfaceError> {
        let netlink = Netlink::open()?;
        socket::join_netlink_groups(&netlink.socket, groups)?;
        Ok(netlink)
    }

    /// Waits for changes and drops their texts: whoever wants to know asks.
    pub(super) fn wait(&mut self, timeout: Duration) -> Result<bool, InterfaceError> {
        let mut told = false;
        let mut timeout = timeout;
        loop {
            let mut entries =
                [libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
            if socket::poll(&mut entries, timeout)? == 0 {
                return Ok(told);
            }
            match self.socket.read(&mut self.answer) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
            told = true;
            // What belongs together comes within moments.
            timeout = SETTLE;
        }
    }

    /// Sends a request and lends each message of the answer, without its header, to `emit`.
    pub(super) fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
        mut emit: impl FnMut(&[u8]),
    ) -> Result<(), InterfaceError> {
        let mut request = vec![0u8; MESSAGE_HEADER_BYTES];
        request.extend(body);
        let length = u32::try_from(request.len()).expect("requests are short");
        request[0..4].copy_from_slice(&length.to_ne_bytes());
        request[4..6].copy_from_slice(&kind.to_ne_bytes());
        request[6..8].copy_from_slice(&(FLAG_REQUEST | flags).to_ne_bytes());
        self.socket.write_all(&request)?;
        loop {
            let length = self.socket.read(&mut self.answer)?;
            if self.answer[..length].is_empty() {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            let mut is_last = false;
            for (header, body) in Messages(&self.answer[..length]) {
                match header.kind {
                    MESSAGE_DONE => is_last = true,
                    MESSAGE_ERROR => {
                        let code = body.first_chunk().map_or(-libc::EPROTO, |code| i32::from_ne_bytes(*code));
                        if code != 0 {
                            return Err(io::Error::from_raw_os_error(code.saturating_neg()).into());
                        }
                        is_last = true;
                    }
                    _ => {
                        emit(body);
                        is_last |= header.flags & FLAG_MULTIPART == 0;
                    }
                }
            }
            if is_last {
                return Ok(());
            }
        }
    }
}

struct MessageHeader {
    kind: u16,
    flags: u16,
}

/// The messages of an answer; ends at the first whose length is wrong.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (MessageHeader, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header: &[u8; MESSAGE_HEADER_BYTES] = self.0.first_chunk()?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let body = self.0.get(MESSAGE_HEADER_BYTES..length)?;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let flags = u16::from_ne_bytes([header[6], header[7]]);
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((MessageHeader { kind, flags }, body))
    }
}

/// Attributes with their numbers; ends at the first whose length is wrong.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header: &[u8; ATTRIBUTE_HEADER_BYTES] = self.0.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = self.0.get(ATTRIBUTE_HEADER_BYTES..length)?;
        let number = u16::from_ne_bytes([header[2], header[3]]) & ATTRIBUTE_NUMBER_MASK;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((number, value))
    }
}

/// Adds an attribute to a request.
pub(super) fn append_attribute(message: &mut Vec<u8>, number: u16, value: &[u8]) {
    let length = u16::try_from(ATTRIBUTE_HEADER_BYTES + value.len()).expect("attributes are short");
    message.extend(length.to_ne_bytes());
    message.extend(number.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// An address family as the byte that it is in requests.
pub(super) fn low_byte(number: i32) -> u8 {
    u8::try_from(number).expect("address families are small numbers")
}

fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.first_chunk()?))
}

/// A name without the zero at its end.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// An interface, without addresses, from a message about a link.
pub(super) fn parse_link(message: &[u8]) -> Option<Interface> {
    let header: &[u8; LINK_HEADER_BYTES] = message.first_chunk()?;
    let hardware_type = u16::from_ne_bytes([header[2], header[3]]);
    let index = number(&header[4..])?;
    let flags = number(&header[8..])?;
    let (mut name, mut mtu_bytes, mut parent_index, mut peer_elsewhere) = (String::new(), 0, 0, false);
    let (mut own_kind, mut master_kind) = (String::new(), String::new());
    for (attribute, value) in Attributes(&message[LINK_HEADER_BYTES..]) {
        match attribute {
            LINK_NAME => name = text(value),
            LINK_MTU => mtu_bytes = number(value)?,
            LINK_PARENT => parent_index = number(value)?,
            LINK_PEER_NAMESPACE => peer_elsewhere = true,
            LINK_INFO => {
                for (attribute, value) in Attributes(value) {
                    match attribute {
                        LINK_INFO_KIND => own_kind = text(value),
                        LINK_INFO_MASTER_KIND => master_kind = text(value),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let is_loopback = flags & libc::IFF_LOOPBACK.cast_unsigned() != 0;
    let kind = match (master_kind.as_str(), own_kind.as_str()) {
        _ if is_loopback => InterfaceKind::Loopback,
        ("bridge" | "openvswitch", _) => InterfaceKind::BridgePort,
        ("bond" | "team", _) => InterfaceKind::BondMember,
        (_, "veth") => InterfaceKind::Veth { peer_elsewhere },
        (_, "vlan") => InterfaceKind::Vlan { parent_index },
        (_, "dummy") => InterfaceKind::Dummy,
        (_, "") => InterfaceKind::Physical,
        _ => InterfaceKind::Virtual,
    };
    Some(Interface {
        name,
        index,
        is_up: flags & libc::IFF_UP.cast_unsigned() != 0,
        kind,
        is_ethernet: hardware_type == HARDWARE_ETHERNET || hardware_type == HARDWARE_LOOPBACK,
        mtu_bytes,
        addresses: Vec::new(),
    })
}

/// An address and the number of its interface.
pub(super) fn parse_address(message: &[u8]) -> Option<(u32, InterfaceAddress)> {
    let header: &[u8; ADDRESS_HEADER_BYTES] = message.first_chunk()?;
    let (family, prefix) = (i32::from(header[0]), header[1]);
    let index = number(&header[4..])?;
    let mut ip = None;
    for (attribute, value) in Attributes(&message[ADDRESS_HEADER_BYTES..]) {
        let is_local = attribute == libc::IFA_LOCAL;
        // On a point-to-point link the local address stands apart from the peer's; elsewhere they are the same.
        if is_local || (attribute == libc::IFA_ADDRESS && ip.is_none()) {
            ip = match family {
                libc::AF_INET => Some(IpAddr::from(*value.first_chunk::<4>()?)),
                libc::AF_INET6 => Some(IpAddr::from(*value.first_chunk::<16>()?)),
                _ => return None,
            };
        }
    }
    Some((index, InterfaceAddress { ip: ip?, prefix }))
}

/// The way that an answer tells.
pub(super) fn parse_route(message: &[u8]) -> Option<Route> {
    let header: &[u8; ROUTE_HEADER_BYTES] = message.first_chunk()?;
    let is_local = header[7] == libc::RTN_LOCAL;
    let (_, interface) =
        Attributes(&message[ROUTE_HEADER_BYTES..]).find(|&(attribute, _)| attribute == libc::RTA_OIF)?;
    Some(Route { interface_index: number(interface)?, is_local })
}

/// Packets lost before the tap, from a message about a link.
pub(super) fn parse_drops(message: &[u8]) -> Option<u64> {
    let attributes = message.get(LINK_HEADER_BYTES..)?;
    let (_, statistics) = Attributes(attributes).find(|&(attribute, _)| attribute == LINK_STATISTICS)?;
    let counter = |place: usize| Some(u64::from_ne_bytes(*statistics.get(8 * place..)?.first_chunk()?));
    Some(counter(STATISTICS_RX_FIFO_ERRORS)?.saturating_add(counter(STATISTICS_RX_MISSED_ERRORS)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A message about a link with a name, and within its information a kind and that of its master.
    fn link(hardware_type: u16, flags: i32, own_kind: &str, master_kind: &str) -> Vec<u8> {
        let mut message = vec![0u8; LINK_HEADER_BYTES];
        message[2..4].copy_from_slice(&hardware_type.to_ne_bytes());
        message[4..8].copy_from_slice(&9u32.to_ne_bytes());
        message[8..12].copy_from_slice(&flags.to_ne_bytes());
        append_attribute(&mut message, LINK_NAME, b"name\0");
        append_attribute(&mut message, LINK_MTU, &1500u32.to_ne_bytes());
        append_attribute(&mut message, LINK_PARENT, &3u32.to_ne_bytes());
        let mut information = Vec::new();
        for (number, kind) in [(LINK_INFO_KIND, own_kind), (LINK_INFO_MASTER_KIND, master_kind)] {
            if !kind.is_empty() {
                append_attribute(&mut information, number, format!("{kind}\0").as_bytes());
            }
        }
        append_attribute(&mut message, LINK_INFO | 0x8000, &information);
        let mut statistics = vec![0u8; 25 * 8];
        statistics[8 * STATISTICS_RX_FIFO_ERRORS] = 2;
        statistics[8 * STATISTICS_RX_MISSED_ERRORS] = 40;
        append_attribute(&mut message, LINK_STATISTICS, &statistics);
        message
    }

    #[test]
    fn links_are_known_by_their_kinds() {
        let kind =
            |own, master| parse_link(&link(HARDWARE_ETHERNET, libc::IFF_UP, own, master)).unwrap().kind;
        assert_eq!(kind("", ""), InterfaceKind::Physical);
        assert_eq!(kind("veth", "bridge"), InterfaceKind::BridgePort);
        assert_eq!(kind("", "bond"), InterfaceKind::BondMember);
        assert_eq!(kind("bond", ""), InterfaceKind::Virtual);
        assert_eq!(kind("vlan", ""), InterfaceKind::Vlan { parent_index: 3 });
        assert_eq!(kind("dummy", "vrf"), InterfaceKind::Dummy);
        let message = link(65534, libc::IFF_UP, "tun", "");
        let found = parse_link(&message).unwrap();
        assert_eq!((found.name.as_str(), found.index, found.mtu_bytes), ("name", 9, 1500));
        assert!(found.is_up && !found.is_ethernet);
        assert!(!parse_link(&link(1, 0, "", "")).unwrap().is_up);
        assert_eq!(parse_drops(&message), Some(42));
        assert_eq!(parse_drops(&message[..60]), None);
    }

    proptest! {
        #[test]
        fn damaged_answers_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for (_, body) in Messages(&bytes) {
                let _ = (parse_link(body), parse_address(body), parse_route(body), parse_drops(body));
            }
            let _ = (parse_link(&bytes), parse_address(&bytes), parse_route(&bytes), parse_drops(&bytes));
        }
    }
}

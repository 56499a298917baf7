//! Thin, safe wrappers over the system calls of live capture: packet sockets, `poll`, and a netlink socket.
//!
//! Promises no policy: each method is one call with its arguments checked by types, and an error that names the call. The order
//! of the calls is the business of `ring`. One of the two files of capture that may hold `unsafe`.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use libc::{c_int, c_void, sock_filter, socklen_t};

/// The version of the ring's layout that we read: blocks of packets of any length.
const TPACKET_V3: c_int = 2;

/// What went wrong with a socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The process may not open packet sockets.
    #[error(
        "no permission to open a packet socket: run as root, or grant the capability with \
         `setcap cap_net_raw+ep` on the program or `AmbientCapabilities=CAP_NET_RAW` in its systemd unit"
    )]
    NoPrivilege,
    /// A call failed.
    #[error("{call} failed: {source}")]
    System {
        /// The call, with the option that it set or read.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl SocketError {
    /// What the kernel said last about this thread's call.
    fn last(call: &'static str) -> SocketError {
        SocketError::System { call, source: io::Error::last_os_error() }
    }

    /// The kernel's number of the error, where it gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            SocketError::NoPrivilege => Some(libc::EPERM),
            SocketError::System { source, .. } => source.raw_os_error(),
        }
    }
}

/// Turns the return value of a call into a result.
fn check(returned: c_int, call: &'static str) -> Result<c_int, SocketError> {
    if returned < 0 { Err(SocketError::last(call)) } else { Ok(returned) }
}

/// The kernel's counters of one socket since they were last read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketStatistics {
    /// Packets that passed the filter, dropped ones included.
    pub packets: u32,
    /// Packets for which the ring had no room.
    pub packets_dropped: u32,
    /// Times that the ring was found full, however many packets each of them cost.
    pub freezes: u32,
}

/// The size of a ring and of its blocks, as the kernel is asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingRequest {
    /// Blocks.
    pub blocks: u32,
    /// Bytes of a block; a multiple of the page size and of `slot_bytes`.
    pub block_bytes: u32,
    /// Size of a slot. It has no effect in this version of the ring except that the kernel checks its arithmetic.
    pub slot_bytes: u32,
    /// After this time a block that holds a packet is handed over even if it is not full. In milliseconds for the kernel.
    pub retire_timeout: Duration,
}

/// Which way the members of a fanout group share the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FanoutGroup {
    /// Number of the group in its network namespace.
    id: u16,
    /// Mode and flags; equal in all members.
    mode: u32,
}

/// A packet socket (packet(7)), closed on drop.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
}

impl PacketSocket {
    /// Opens a socket that is not attached to any protocol and so receives nothing. This is the only call of live capture
    /// that needs a privilege: a socket opened now can be given its ring, filter and interface when the privilege is gone.
    pub fn open() -> Result<PacketSocket, SocketError> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: takes and returns numbers only.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        match check(fd, "socket(AF_PACKET)") {
            // SAFETY: the descriptor was opened just now and nobody else knows it.
            Ok(fd) => Ok(PacketSocket { fd: unsafe { OwnedFd::from_raw_fd(fd) } }),
            Err(error) if error.errno() == Some(libc::EPERM) => Err(SocketError::NoPrivilege),
            Err(error) => Err(error),
        }
    }

    /// Chooses the version of the ring's layout; must precede the ring.
    pub fn use_blocks(&self) -> Result<(), SocketError> {
        self.set(libc::SOL_PACKET, libc::PACKET_VERSION, &TPACKET_V3, "setsockopt(PACKET_VERSION)")
    }

    /// Asks for a receive ring. `ENOMEM` means that it is too large at the moment.
    pub fn request_ring(&self, request: &RingRequest) -> Result<(), SocketError> {
        let slots = u64::from(request.block_bytes / request.slot_bytes) * u64::from(request.blocks);
        let milliseconds = request.retire_timeout.as_millis();
        let (Ok(slots), Ok(milliseconds)) = (u32::try_from(slots), u32::try_from(milliseconds)) else {
            return Err(SocketError::System {
                call: "setsockopt(PACKET_RX_RING)",
                source: io::Error::from_raw_os_error(libc::EINVAL),
            });
        };
        let request = libc::tpacket_req3 {
            tp_block_size: request.block_bytes,
            tp_block_nr: request.blocks,
            tp_frame_size: request.slot_bytes,
            tp_frame_nr: slots,
            // 0 would let the kernel guess it from the link speed.
            tp_retire_blk_tov: milliseconds.max(1),
            tp_sizeof_priv: 0,
            // Asking for the receive hash costs 100 to 200 ns a packet.
            tp_feature_req_word: 0,
        };
        self.set(libc::SOL_PACKET, libc::PACKET_RX_RING, &request, "setsockopt(PACKET_RX_RING)")
    }

    /// Attaches a filter, or replaces the one that is attached without a moment between the two. `ENOMEM` means that it does
    /// not fit `net.core.optmem_max`.
    pub fn attach_filter(&self, program: &[sock_filter]) -> Result<(), SocketError> {
        let len = u16::try_from(program.len()).map_err(|_| SocketError::System {
            call: "setsockopt(SO_ATTACH_FILTER)",
            source: io::Error::from_raw_os_error(libc::EINVAL),
        })?;
        let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
        // The kernel reads the instructions through the pointer and does not keep it.
        self.set(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program, "setsockopt(SO_ATTACH_FILTER)")
    }

    /// Whether copies of what this host sends are left out. Without effect in a fanout group.
    pub fn ignore_outgoing(&self, ignored: bool) -> Result<(), SocketError> {
        let value = i32::from(ignored);
        self.set(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &value, "setsockopt(PACKET_IGNORE_OUTGOING)")
    }

    /// Puts an interface into promiscuous mode for as long as the socket lives. Counted by the kernel, so that several
    /// programs do not disturb one another.
    pub fn join_promiscuous(&self, interface_index: u32) -> Result<(), SocketError> {
        let membership = libc::packet_mreq {
            mr_ifindex: signed_index(interface_index)?,
            mr_type: libc::PACKET_MR_PROMISC as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        let call = "setsockopt(PACKET_ADD_MEMBERSHIP)";
        self.set(libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &membership, call)
    }

    /// Starts to receive every protocol on an interface; 0 stands for all of them.
    pub fn bind(&self, interface_index: u32) -> Result<(), SocketError> {
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
            sll_ifindex: signed_index(interface_index)?,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let length = size_of::<libc::sockaddr_ll>() as socklen_t;
        // SAFETY: the pointer is to a `sockaddr_ll` of the given length, alive during the call, which only reads it.
        let returned = unsafe { libc::bind(self.fd.as_raw_fd(), (&raw const address).cast(), length) };
        check(returned, "bind(AF_PACKET)").map(drop)
    }

    /// Interface that the socket is bound to, 0 for all of them; nothing once that interface has been deleted.
    pub fn interface_index(&self) -> Result<Option<u32>, SocketError> {
        let mut address = libc::sockaddr_ll {
            sll_family: 0,
            sll_protocol: 0,
            sll_ifindex: 0,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let mut length = size_of::<libc::sockaddr_ll>() as socklen_t;
        // SAFETY: both pointers are to live values; the kernel writes at most `length` bytes, all of whose patterns are valid.
        let returned =
            unsafe { libc::getsockname(self.fd.as_raw_fd(), (&raw mut address).cast(), &raw mut length) };
        check(returned, "getsockname(AF_PACKET)")?;
        Ok(u32::try_from(address.sll_ifindex).ok())
    }

    /// Whether an interface of the socket's network namespace is up; not if there is none of that number.
    pub fn interface_is_up(&self, interface_index: u32) -> Result<bool, SocketError> {
        // SAFETY: `ifreq` is made of integers and of a union of such; zeros are a value of it.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_ifru.ifru_ifindex = signed_index(interface_index)?;
        // SAFETY: the kernel reads the index from the request and writes the name into it, both within its size.
        let named = unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::SIOCGIFNAME, &raw mut request) };
        if named < 0 {
            return Ok(false);
        }
        // SAFETY: as above, with the name as input and the flags as output.
        let returned = unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) };
        check(returned, "ioctl(SIOCGIFFLAGS)")?;
        // SAFETY: the flags were written by the call above.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        Ok(c_int::from(flags) & libc::IFF_UP != 0)
    }

    /// Founds a fanout group with a number that no other program uses. Flows are told apart by a hash of addresses and ports
    /// that is the same in both directions.
    pub fn found_fanout(&self, ignore_outgoing: bool) -> Result<FanoutGroup, SocketError> {
        let flags = if ignore_outgoing { libc::PACKET_FANOUT_FLAG_IGNORE_OUTGOING } else { 0 };
        let mode = libc::PACKET_FANOUT_HASH | flags;
        self.set_fanout((mode | libc::PACKET_FANOUT_FLAG_UNIQUEID) << 16)?;
        let mut value: c_int = 0;
        let mut length = size_of::<c_int>() as socklen_t;
        self.read(libc::PACKET_FANOUT, (&raw mut value).cast(), &mut length, "getsockopt(PACKET_FANOUT)")?;
        // The low half is the number.
        Ok(FanoutGroup { id: (value & 0xffff) as u16, mode })
    }

    /// Joins a group. The socket must be bound to the same interface as its members.
    pub fn join_fanout(&self, group: FanoutGroup) -> Result<(), SocketError> {
        self.set_fanout((group.mode << 16) | u32::from(group.id))
    }

    fn set_fanout(&self, value: u32) -> Result<(), SocketError> {
        self.set(libc::SOL_PACKET, libc::PACKET_FANOUT, &value, "setsockopt(PACKET_FANOUT)")
    }

    /// The counters since the last call, which the call sets back to zero.
    pub fn take_statistics(&self) -> Result<SocketStatistics, SocketError> {
        let mut counters = libc::tpacket_stats_v3 { tp_packets: 0, tp_drops: 0, tp_freeze_q_cnt: 0 };
        let mut length = size_of::<libc::tpacket_stats_v3>() as socklen_t;
        let call = "getsockopt(PACKET_STATISTICS)";
        self.read(libc::PACKET_STATISTICS, (&raw mut counters).cast(), &mut length, call)?;
        Ok(SocketStatistics {
            packets: counters.tp_packets,
            packets_dropped: counters.tp_drops,
            freezes: counters.tp_freeze_q_cnt,
        })
    }

    /// The error that is pending on the socket, which the call takes away. While one is pending, `poll` returns at once.
    pub fn take_error(&self) -> Result<Option<i32>, SocketError> {
        let mut error: c_int = 0;
        let mut length = size_of::<c_int>() as socklen_t;
        // SAFETY: both pointers are to live values; the kernel writes at most `length` bytes, an integer.
        let returned = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ERROR,
                (&raw mut error).cast(),
                &raw mut length,
            )
        };
        check(returned, "getsockopt(SO_ERROR)")?;
        Ok((error != 0).then_some(error))
    }

    /// Sets an option to a value of plain C data.
    fn set<T: Copy>(
        &self,
        level: c_int,
        option: c_int,
        value: &T,
        call: &'static str,
    ) -> Result<(), SocketError> {
        let pointer: *const c_void = std::ptr::from_ref(value).cast();
        // SAFETY: the pointer is to `size_of::<T>()` bytes that live during the call, and the kernel only reads them. (What a
        // value points to in turn, as `sock_fprog` does, its caller keeps alive as well.)
        let returned = unsafe {
            libc::setsockopt(self.fd.as_raw_fd(), level, option, pointer, size_of::<T>() as socklen_t)
        };
        check(returned, call).map(drop)
    }

    /// Reads a packet option into `value`, which has room for `length` bytes and may hold any pattern of them.
    fn read(
        &self,
        option: c_int,
        value: *mut c_void,
        length: &mut socklen_t,
        call: &'static str,
    ) -> Result<(), SocketError> {
        // SAFETY: the callers, all in this type, pass a pointer to a live value of plain integers and its size.
        let returned =
            unsafe { libc::getsockopt(self.fd.as_raw_fd(), libc::SOL_PACKET, option, value, length) };
        check(returned, call).map(drop)
    }
}

impl AsRawFd for PacketSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// The kernel counts interfaces in signed integers.
fn signed_index(interface_index: u32) -> Result<c_int, SocketError> {
    c_int::try_from(interface_index)
        .map_err(|_| SocketError::System { call: "bind", source: io::Error::from_raw_os_error(libc::ENODEV) })
}

/// Waits until one of the descriptors is readable or has an error pending, or until the time is over. Says how many are; none
/// also when a signal came in between.
pub fn poll(entries: &mut [libc::pollfd], timeout: Duration) -> Result<usize, SocketError> {
    // Rounded up: half a millisecond is not to become a loop that never sleeps.
    let milliseconds = c_int::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(c_int::MAX);
    let count = entries.len() as libc::nfds_t;
    // SAFETY: the pointer is to `count` live entries, of which the kernel writes `revents`.
    let returned = unsafe { libc::poll(entries.as_mut_ptr(), count, milliseconds) };
    match check(returned, "poll") {
        Ok(ready) => Ok(ready as usize),
        Err(error) if error.errno() == Some(libc::EINTR) => Ok(0),
        Err(error) => Err(error),
    }
}

/// Number of the interface of that name in the network namespace of this thread.
pub fn interface_index(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: the pointer is to a string that ends in zero and lives during the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index != 0).then_some(index)
}

/// A socket for questions about interfaces, addresses and routes (rtnetlink(7)) of this thread's network namespace. Written
/// and read like a file; needs no privilege.
pub fn open_route_netlink() -> Result<File, SocketError> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: takes and returns numbers only.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
    let fd = check(fd, "socket(AF_NETLINK)")?;
    // SAFETY: the descriptor was opened just now and nobody else knows it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Lets the kernel tell a netlink socket of changes; `groups` is a set of `RTMGRP_…`.
pub fn join_netlink_groups(socket: &File, groups: u32) -> Result<(), SocketError> {
    // SAFETY: the structure consists of numbers, for which zero is a value.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    address.nl_groups = groups;
    let length = size_of::<libc::sockaddr_nl>() as socklen_t;
    // SAFETY: the pointer is to a live address of that length.
    let returned = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    check(returned, "bind(AF_NETLINK)").map(drop)
}

//! What the capture bench needs of the system: frames sent many at a time, a thread's own processor time, a thread on one processor.

#![allow(dead_code, reason = "each program uses its own part")]

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Frames of one system call.
pub(crate) const BATCH: usize = 64;

/// Sends whole Ethernet frames on one interface of the network namespace in which it was opened.
pub(crate) struct FrameSender {
    socket: OwnedFd,
}

impl FrameSender {
    /// On the interface of that number. Its frames pass no queue of the kernel on their way to the device.
    pub(crate) fn open(interface_index: u32) -> io::Result<FrameSender> {
        // SAFETY: takes and returns numbers only.
        let fd = check(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
        // SAFETY: the descriptor was opened just now and nobody else knows it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: the structure consists of integers, for which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = i32::try_from(interface_index).expect("interfaces have small numbers");
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the pointer is to a live address of that length.
        check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
        let (one, length) = (1i32, size_of::<i32>() as libc::socklen_t);
        // SAFETY: the pointer is to a live integer of that length.
        check(unsafe {
            let value = (&raw const one).cast();
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, value, length)
        })?;
        Ok(FrameSender { socket })
    }

    /// Sends the frames, at most [`BATCH`] of them; says how many were taken.
    pub(crate) fn send(&self, frames: &[Vec<u8>]) -> io::Result<usize> {
        assert!(frames.len() <= BATCH);
        // SAFETY: both structures consist of integers and pointers, for which zero is a value.
        let mut parts: [libc::iovec; BATCH] = unsafe { zeroed() };
        // SAFETY: as above.
        let mut messages: [libc::mmsghdr; BATCH] = unsafe { zeroed() };
        for ((part, message), frame) in parts.iter_mut().zip(&mut messages).zip(frames) {
            *part = libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() };
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: the first `frames.len()` messages point at live parts, and these at live frames, which the kernel only reads.
        let sent = unsafe {
            libc::sendmmsg(self.socket.as_raw_fd(), messages.as_mut_ptr(), frames.len() as libc::c_uint, 0)
        };
        match check(sent) {
            Ok(sent) => Ok(usize::try_from(sent).expect("a count")),
            // The device's queue is full for the moment.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(0),
            Err(error) => Err(error),
        }
    }
}

/// Processor time of this thread, system calls and what the kernel does within them included.
pub(crate) fn thread_time() -> Duration {
    // SAFETY: the structure consists of integers, for which zero is a value.
    let mut time: libc::timespec = unsafe { zeroed() };
    // SAFETY: the pointer is to a live structure.
    check(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) })
        .expect("the clock exists");
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).expect("below a second"))
}

/// Keeps this thread on one processor; where there is no such one it stays free.
pub(crate) fn pin(processor: usize) {
    // SAFETY: the set consists of integers, for which zero is a value.
    let mut set: libc::cpu_set_t = unsafe { zeroed() };
    // SAFETY: the set is live and the number is below its size; the kernel only reads it.
    unsafe {
        libc::CPU_SET(processor, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
    }
}

fn check(returned: i32) -> io::Result<i32> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

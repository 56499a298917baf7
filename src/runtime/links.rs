//! What the kernel tells of interfaces, posted by one thread for all workers.
//!
//! An answer of rtnetlink(7) waits for the lock of all network configuration, and whoever holds it may do so for seconds: the end of a
//! container was seen to take six. Packets do not wait so long. So a worker reads here and never asks.

use crate::capture::interface::{self, Interface};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The newest answers. Nobody holds a lock while the kernel is asked.
#[derive(Default)]
pub(super) struct LinkBoard {
    /// All interfaces with their addresses.
    interfaces: Mutex<Vec<Interface>>,
    /// Packets that an interface's hardware or driver has lost, by the interface's number; those without such a count are not here.
    dropped: Mutex<BTreeMap<u32, u64>>,
}

impl LinkBoard {
    /// Posts the interfaces that there are.
    pub(super) fn post(&self, present: Vec<Interface>) {
        *locked(&self.interfaces) = present;
    }

    /// Asks the kernel what these interfaces have lost, and posts it. May wait for seconds.
    pub(super) fn ask_dropped(&self, interfaces: impl IntoIterator<Item = u32>) {
        for index in interfaces {
            if let Ok(Some(dropped)) = interface::nic_packets_dropped(index) {
                locked(&self.dropped).insert(index, dropped);
            }
        }
    }

    /// Forgets an interface that is not captured any more: its number is not given again.
    pub(super) fn forget(&self, index: u32) {
        locked(&self.dropped).remove(&index);
    }

    /// What was last told of an interface's losses.
    pub(super) fn dropped(&self, index: u32) -> Option<u64> {
        locked(&self.dropped).get(&index).copied()
    }

    /// Whether all these servers are this host's, as far as it was told.
    pub(super) fn are_own(&self, servers: &[(IpAddr, u8)]) -> bool {
        interface::are_own(servers, &locked(&self.interfaces))
    }
}

/// Nothing is left half done by whoever panics with the lock.
fn locked<T>(posted: &Mutex<T>) -> MutexGuard<'_, T> {
    posted.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_posted_is_read() {
        let board = LinkBoard::default();
        let local = [(IpAddr::from([127, 0, 0, 1]), 32)];
        assert!(!board.are_own(&local), "nothing was told yet");
        let present = interface::enumerate().expect("anybody may ask");
        let lo = present.iter().find(|interface| interface.name == "lo").expect("every host has it").index;
        board.post(present);
        assert!(board.are_own(&local));

        assert_eq!(board.dropped(lo), None);
        // One that is there, and one that is not.
        board.ask_dropped([lo, 9999]);
        assert_eq!((board.dropped(lo), board.dropped(9999)), (Some(0), None));
        board.forget(lo);
        assert_eq!(board.dropped(lo), None);
    }
}

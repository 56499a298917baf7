//! Numbers of 32 bits for clients' addresses in the pair table: an IPv4 address is its own number; every other address gets
//! one from 240.0.0.0 upwards, where no client's IPv4 address should be, and one that is there gets a number like the others.

use super::arena::{Arena, Region};
use super::table::place;
use crate::model::Endpoint;

/// The first number that is not an IPv4 address.
const FIRST: u32 = 0xf000_0000;

/// Places in the index for each address, so that it stays sparse.
const PLACES: usize = 2;

/// Bytes of an arena for each address.
pub(super) const NUMBER_BYTES: usize = size_of::<[u8; 16]>() + PLACES * size_of::<u32>();

/// Addresses that are not their own numbers. They keep their numbers from interval to interval, until half of the numbers are used.
pub(super) struct Numbers {
    /// By number, from [`FIRST`]; the first `used` are meant.
    addresses: Region<[u8; 16]>,
    /// Open addressing by hash: 0, or 1 + the place of an address. At most half full.
    index: Region<u32>,
    used: usize,
    /// Of these, those that were used when the last interval ended.
    closing: usize,
}

impl Numbers {
    pub(super) fn new(arena: &mut Arena, count: usize) -> Option<Numbers> {
        let count = count.min((u32::MAX - FIRST) as usize);
        Some(Numbers {
            addresses: arena.carve(count)?,
            index: arena.carve(PLACES * count)?,
            used: 0,
            closing: 0,
        })
    }

    /// The number of a client, whose address has this hash. `None`: no number is left.
    #[inline]
    pub(super) fn of(&mut self, octets: &[u8; 16], hash: u64) -> Option<u32> {
        match Endpoint::from_ipv6(*octets, 0).ipv4() {
            Some(number) if number < FIRST => Some(number),
            _ => self.assigned(octets, hash),
        }
    }

    fn assigned(&mut self, octets: &[u8; 16], hash: u64) -> Option<u32> {
        if self.index.is_empty() {
            return None;
        }
        let mut at = place(hash, self.index.len());
        loop {
            match self.index[at] {
                0 => break,
                known if self.addresses[known as usize - 1] == *octets => return Some(FIRST + known - 1),
                _ => at = if at + 1 == self.index.len() { 0 } else { at + 1 },
            }
        }
        if self.used == self.addresses.len() {
            return None;
        }
        self.addresses[self.used] = *octets;
        self.used += 1;
        self.index[at] = self.used as u32;
        Some(FIRST + self.used as u32 - 1)
    }

    /// Ends an interval, whose addresses [`Numbers::sweep`] copies. Where half of the numbers are used, all are taken back, which cannot
    /// be done piece by piece: once in as many new addresses.
    pub(super) fn begin_close(&mut self, into: &mut Vec<[u8; 16]>) {
        into.clear();
        self.closing = self.used;
        if self.used > self.addresses.len() / 2 {
            self.sweep(usize::MAX, into);
            self.index.fill(0);
            (self.used, self.closing) = (0, 0);
        }
    }

    /// Copies the next `count` addresses of the closed interval for [`address`]. True: none is left.
    pub(super) fn sweep(&self, count: usize, into: &mut Vec<[u8; 16]>) -> bool {
        let end = into.len().saturating_add(count).min(self.closing).max(into.len());
        into.extend_from_slice(&self.addresses[into.len()..end]);
        end >= self.closing
    }
}

/// The client of a number, given the harvested addresses.
pub(super) fn address(number: u32, addresses: &[[u8; 16]]) -> Endpoint {
    match number.checked_sub(FIRST) {
        None => Endpoint::from_ipv4(number.to_be_bytes(), 0),
        Some(at) => Endpoint::from_ipv6(addresses[at as usize], 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    #[test]
    fn addresses_come_back_from_their_numbers() {
        let mut numbers = Numbers::new(&mut Arena::new(3 * NUMBER_BYTES).unwrap(), 3).unwrap();
        let clients: Vec<Endpoint> = ["10.0.0.1", "fd00::1", "240.0.0.0", "::", "fd00::1"]
            .map(|text| Endpoint::new(text.parse::<IpAddr>().unwrap(), 0))
            .into();
        // All of them in the same place of the index.
        let given: Vec<u32> =
            clients.iter().map(|client| numbers.of(client.octets(), u64::MAX).unwrap()).collect();
        assert_eq!(given[1], given[4]);
        let mut addresses = Vec::new();
        numbers.begin_close(&mut addresses);
        assert_eq!(addresses.len(), 3);
        for (client, number) in clients.iter().zip(given) {
            assert_eq!(address(number, &addresses), *client);
        }
        assert_eq!(numbers.of(&[9; 16], 1), Some(FIRST), "all were taken back");
    }

    #[test]
    fn numbers_outlive_an_interval_and_run_out() {
        let mut numbers = Numbers::new(&mut Arena::new(9 * NUMBER_BYTES).unwrap(), 9).unwrap();
        let first = numbers.of(&[9; 16], 1);
        let mut addresses = Vec::new();
        numbers.begin_close(&mut addresses);
        assert_eq!(numbers.of(&[8; 16], 2), Some(FIRST + 1));
        assert!(!numbers.sweep(0, &mut addresses) && numbers.sweep(5, &mut addresses));
        assert_eq!((first, addresses.len()), (Some(FIRST), 1), "the second one came later");
        assert_eq!(numbers.of(&[9; 16], 1), first);
        for number in 2..9 {
            assert!(numbers.of(&[10 + number; 16], u64::from(number)).is_some());
        }
        assert_eq!(numbers.of(&[7; 16], 1), None);
    }
}

//! The flows that were seen last: each with what it asked for since that was written to the tables of clients and servers.
//!
//! Most observations are of a flow that was seen a moment ago. They are summed here, in one place, where the tables would cost
//! a row each; sums are written when another flow needs the place, and when the interval ends.

use super::arena::{Arena, Region, prefetch};
use super::table::{Addend, Delta, Sums};
use crate::model::{Endpoint, FlowTuple, TargetId, Transport};
use std::io;

/// Ways of a set, in which a flow has any place.
const WAYS: usize = 4;

/// Sets; with the flows, two megabytes. What is not used is not touched.
const SETS: usize = 4096;

const _: () = assert!(SETS.is_power_of_two());

/// What all flows take.
pub(super) const BYTES: u64 = (SETS * WAYS * size_of::<Flow>()) as u64;

/// A client without a number in the pair table. As a number it would be an address of IPv6, of which there are not so many.
const NO_NUMBER: u32 = u32::MAX;

/// A flow and its sums: two cache lines.
#[derive(Clone, Copy)]
#[repr(C, align(128))]
pub(super) struct Flow {
    pub(super) tuple: FlowTuple,
    /// The client's in the pair table, or [`NO_NUMBER`].
    number: u32,
    /// What `sums` weigh.
    pub(super) weight: u32,
    pub(super) client_hash: u64,
    /// What was asked for and is not written yet.
    pub(super) sums: Sums,
}

const _: () = assert!(size_of::<Flow>() == 128);

impl Flow {
    pub(super) fn new(tuple: &FlowTuple, client_hash: u64, number: Option<u32>) -> Flow {
        let number = number.unwrap_or(NO_NUMBER);
        Flow { tuple: *tuple, number, weight: 0, client_hash, sums: Sums::NONE }
    }

    /// Counts an observation.
    #[inline(always)]
    pub(super) fn count(&mut self, delta: &Delta, weight: u32) {
        delta.add_to(&mut self.sums);
        self.weight = self.weight.saturating_add(weight);
    }

    /// The client's number in the pair table; `None`: none was left for it.
    #[inline(always)]
    pub(super) fn number(&self) -> Option<u32> {
        (self.number != NO_NUMBER).then_some(self.number)
    }
}

/// No flow.
pub(super) const NOBODY: FlowTuple = FlowTuple {
    target: TargetId(0),
    server: Endpoint::from_ipv4([0; 4], 0),
    client: Endpoint::from_ipv4([0; 4], 0),
    transport: Transport::Tcp,
};

/// Where a flow may be, and what marks it there.
#[derive(Clone, Copy)]
pub(super) struct Spot {
    set: u32,
    mark: u32,
}

impl Spot {
    /// Of no flow.
    pub(super) const NOWHERE: Spot = Spot { set: 0, mark: 0 };

    /// Collisions cost time and nothing else, and not more than a place in the tables: any mixing will do.
    #[inline(always)]
    pub(super) fn of(tuple: &FlowTuple) -> Spot {
        const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
        let fold = |octets: &[u8; 16]| {
            let number = u128::from_ne_bytes(*octets);
            (number as u64).rotate_left(17) ^ (number >> 64) as u64
        };
        let ends = u64::from(tuple.client.port()) << 32 | u64::from(tuple.server.port());
        let mixed = (fold(tuple.client.octets()) ^ ends).wrapping_mul(ODD) ^ fold(tuple.server.octets());
        let mixed = (mixed ^ mixed >> 32).wrapping_mul(ODD);
        let set = (mixed >> 40) as u32 & (SETS as u32 - 1);
        // Never 0, which marks an unused way.
        Spot { set, mark: u32::from(tuple.target.0) << 16 | (mixed >> 24) as u32 & 0xffff | 1 }
    }
}

/// Set-associative; the ways of a set are given away in turn.
pub(super) struct Flows {
    /// By set and way: the target above 16 bits of the flow's hash; 0: unused.
    marks: Box<[[u32; WAYS]]>,
    /// By set and way, one after the other. Meaningless where the mark is 0.
    flows: Region<Flow>,
    turn: usize,
}

impl Flows {
    /// Fails when the system has no memory left.
    pub(super) fn new() -> io::Result<Flows> {
        // Of its own, so that all flows lie in one huge page.
        let flows = Arena::new(BYTES as usize)?.carve(SETS * WAYS);
        let flows = flows.ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Flows { marks: vec![[0; WAYS]; SETS].into(), flows, turn: 0 })
    }

    /// First step before a flow is found: fetches what has its mark.
    #[inline(always)]
    pub(super) fn prefetch(&self, spot: Spot) {
        let marked = self.marked(spot);
        if marked != 0 {
            prefetch(&self.flows[spot.set as usize * WAYS + marked.trailing_zeros() as usize]);
        }
    }

    /// A bit for each way with this mark.
    #[inline(always)]
    fn marked(&self, spot: Spot) -> u32 {
        let marks = &self.marks[spot.set as usize];
        (0..WAYS).fold(0, |mask, way| mask | u32::from(marks[way] == spot.mark) << way)
    }

    /// The place of a flow that is here.
    #[inline(always)]
    pub(super) fn find(&self, spot: Spot, tuple: &FlowTuple) -> Option<usize> {
        let mut marked = self.marked(spot);
        while marked != 0 {
            let at = spot.set as usize * WAYS + marked.trailing_zeros() as usize;
            if self.flows[at].tuple == *tuple {
                return Some(at);
            }
            marked &= marked - 1;
        }
        None
    }

    #[inline(always)]
    pub(super) fn at(&mut self, at: usize) -> &mut Flow {
        &mut self.flows[at]
    }

    /// Gives a flow a place; returns it, and the flow that had it.
    pub(super) fn insert(&mut self, spot: Spot, flow: Flow) -> (usize, Option<Flow>) {
        let marks = &mut self.marks[spot.set as usize];
        let way = marks.iter().position(|&mark| mark == 0).unwrap_or_else(|| {
            self.turn += 1;
            self.turn % WAYS
        });
        let at = spot.set as usize * WAYS + way;
        let former = std::mem::replace(&mut self.flows[at], flow);
        (at, (std::mem::replace(&mut marks[way], spot.mark) != 0).then_some(former))
    }

    /// Takes all flows of a target out.
    pub(super) fn take(&mut self, target: TargetId) -> impl Iterator<Item = &Flow> {
        let Flows { marks, flows, .. } = self;
        let places = marks.as_flattened_mut().iter_mut().zip(flows.iter());
        places.filter(move |(mark, _)| **mark != 0 && **mark >> 16 == u32::from(target.0)).map(
            |(mark, flow)| {
                *mark = 0;
                flow
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashMap, HashSet};

    fn tuple(client: u32) -> FlowTuple {
        FlowTuple {
            target: TargetId(client as u16 % 3),
            server: Endpoint::from_ipv4([10, 0, 0, 1], 11211),
            client: Endpoint::from_ipv4(
                (0x0a00_0000 + client / 16).to_be_bytes(),
                40_000 + client as u16 % 16,
            ),
            transport: Transport::Tcp,
        }
    }

    #[test]
    fn flows_are_spread() {
        let sets: HashSet<u32> = (0..1000).map(|client| Spot::of(&tuple(client)).set).collect();
        assert!(sets.len() > 800, "{}", sets.len());
    }

    /// More flows than there is room for: what is pushed out and what is taken out at the end is all that came, each once.
    #[test]
    fn nothing_is_lost_of_flows_that_are_pushed_out() {
        const CLIENTS: u32 = 3 * (SETS * WAYS) as u32;
        let mut flows = Flows::new().unwrap();
        let mut written: HashMap<FlowTuple, u32> = HashMap::new();
        let mut write = |flow: &Flow| *written.entry(flow.tuple).or_default() += flow.weight;
        for client in (0..CLIENTS).chain(CLIENTS - 100..CLIENTS) {
            let (tuple, spot) = (tuple(client), Spot::of(&tuple(client)));
            let at = flows.find(spot, &tuple).unwrap_or_else(|| {
                let (at, former) = flows.insert(spot, Flow::new(&tuple, 0, None));
                former.iter().for_each(&mut write);
                at
            });
            assert_eq!(flows.find(spot, &tuple), Some(at));
            flows.at(at).weight += 1;
        }
        for target in 0..3 {
            flows.take(TargetId(target)).for_each(|flow| {
                assert_eq!(flow.tuple.target, TargetId(target));
                write(flow);
            });
            assert_eq!(flows.take(TargetId(target)).count(), 0);
        }
        assert_eq!(written.len(), CLIENTS as usize);
        for client in 0..CLIENTS {
            assert_eq!(written[&tuple(client)], 1 + u32::from(client >= CLIENTS - 100), "{client}");
        }
    }
}

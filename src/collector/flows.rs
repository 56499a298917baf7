//! The flows that were seen last: each with its hashes, and with what it asked for since that was written to the tables of clients
//! and servers.
//!
//! Most observations are of a flow that was seen a moment ago. They are summed here, in one place, where the tables would cost
//! a row each; sums are written when another flow needs the place, and when the interval ends.

use super::table::{Delta, Slot};
use super::target::Origin;
use crate::model::{Endpoint, FlowTuple, TargetId, Transport};

/// Flows that are remembered; half a megabyte.
const FLOWS: usize = 2048;

const _: () = assert!(FLOWS.is_power_of_two());

/// A flow and its sums.
#[derive(Clone, Copy)]
pub(super) struct Flow {
    /// Meaningless while `used` is false.
    tuple: FlowTuple,
    pub(super) origin: Origin,
    /// The client's number in the pair table; none was left for it.
    pub(super) number: Option<u32>,
    /// What was asked for and is not written yet, and what it weighs.
    pub(super) sum: Slot,
    pub(super) weight: u32,
    used: bool,
}

impl Flow {
    pub(super) fn new(tuple: &FlowTuple, origin: Origin, number: Option<u32>) -> Flow {
        Flow { tuple: *tuple, origin, number, sum: Slot::EMPTY, weight: 0, used: true }
    }

    /// Counts an observation.
    #[inline(always)]
    pub(super) fn count(&mut self, delta: &Delta, weight: u32) {
        self.sum.apply(delta);
        self.weight = self.weight.saturating_add(weight);
    }

    pub(super) fn target(&self) -> TargetId {
        self.tuple.target
    }
}

/// Direct-mapped: a flow has one place.
pub(super) struct Flows(Box<[Flow]>);

impl Flows {
    pub(super) fn new() -> Flows {
        let nobody = Endpoint::from_ipv4([0; 4], 0);
        let tuple =
            FlowTuple { target: TargetId(0), server: nobody, client: nobody, transport: Transport::Tcp };
        let unused = Flow { used: false, ..Flow::new(&tuple, Origin::NONE, None) };
        Flows(vec![unused; FLOWS].into())
    }

    /// The place of a flow, and whether it is there.
    #[inline(always)]
    pub(super) fn find(&self, tuple: &FlowTuple) -> (usize, bool) {
        let at = place(tuple);
        (at, self.0[at].used && self.0[at].tuple == *tuple)
    }

    #[inline(always)]
    pub(super) fn at(&mut self, at: usize) -> &mut Flow {
        &mut self.0[at]
    }

    /// Puts a flow in its place; returns the one that was there.
    pub(super) fn replace(&mut self, at: usize, flow: Flow) -> Option<Flow> {
        let former = std::mem::replace(&mut self.0[at], flow);
        former.used.then_some(former)
    }

    /// Takes all flows of a target out.
    pub(super) fn take(&mut self, target: TargetId) -> impl Iterator<Item = &Flow> {
        self.0.iter_mut().filter(move |flow| flow.used && flow.tuple.target == target).map(|flow| {
            flow.used = false;
            &*flow
        })
    }
}

/// Collisions cost time and nothing else, and not more than a place in the tables: any mixing will do.
#[inline(always)]
fn place(tuple: &FlowTuple) -> usize {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let halves = |endpoint: &Endpoint| {
        let number = u128::from_ne_bytes(*endpoint.octets());
        (number as u64).rotate_left(17) ^ (number >> 64) as u64
    };
    let ends = u64::from(tuple.client.port()) << 32 | u64::from(tuple.target.0);
    let mixed = (halves(&tuple.client) ^ ends).wrapping_mul(ODD) ^ halves(&tuple.server);
    ((mixed ^ mixed >> 32).wrapping_mul(ODD) >> 40) as usize & (FLOWS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn flows_are_spread() {
        let tuple = |client: u32| FlowTuple {
            target: TargetId(0),
            server: Endpoint::from_ipv4([10, 0, 0, 1], 11211),
            client: Endpoint::from_ipv4(
                (0x0a00_0000 + client / 16).to_be_bytes(),
                40_000 + client as u16 % 16,
            ),
            transport: Transport::Tcp,
        };
        let places: HashSet<usize> = (0..1000).map(|client| place(&tuple(client))).collect();
        assert!(places.len() > 700, "{}", places.len());
    }
}

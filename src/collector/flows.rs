//! The flows that were seen last: each with what it asked for since that was written to the tables of clients and servers.
//!
//! Most observations are of a flow that was seen a moment ago. They are summed here, in one place, where the tables would cost
//! a row each; sums are written when another flow needs the place, and when the interval ends.

use super::arena::{Arena, Region, prefetch};
use super::table::{Addend, Delta, Sums};
use crate::model::{FlowTuple, TargetId};
use std::hash::{BuildHasher, Hasher};
use std::io;

/// Flows that have a place. With them come two megabytes, of which what is not used is not touched.
const PLACES: usize = 1 << PLACE_BITS;
const PLACE_BITS: u32 = 14;

/// What all flows take.
pub(super) const BYTES: u64 = (PLACES * size_of::<Flow>()) as u64;

/// A client's number in the pair table, where one was left for it. The greatest stands for none: as a number it would be an address of
/// IPv6, of which there are not so many.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Number(u32);

impl Number {
    pub(super) const NONE: Number = Number(u32::MAX);

    #[inline(always)]
    pub(super) fn get(self) -> Option<u32> {
        (self.0 != Number::NONE.0).then_some(self.0)
    }
}

impl From<Option<u32>> for Number {
    fn from(number: Option<u32>) -> Number {
        number.map_or(Number::NONE, Number)
    }
}

/// A flow and its sums: two cache lines.
#[derive(Clone, Copy)]
#[repr(C, align(128))]
pub(super) struct Flow {
    pub(super) tuple: FlowTuple,
    /// The client's.
    pub(super) number: Number,
    /// What `sums` weigh.
    pub(super) weight: u32,
    pub(super) client_hash: u64,
    /// What was asked for and is not written yet.
    pub(super) sums: Sums,
}

const _: () = assert!(size_of::<Flow>() == 128);

impl Flow {
    pub(super) fn new(tuple: &FlowTuple, client_hash: u64, number: Option<u32>) -> Flow {
        Flow { tuple: *tuple, number: number.into(), weight: 0, client_hash, sums: Sums::NONE }
    }

    /// Counts an observation.
    #[inline(always)]
    pub(super) fn count(&mut self, delta: &Delta, weight: u32) {
        delta.add_to(&mut self.sums);
        self.weight = self.weight.saturating_add(weight);
    }
}

/// What a flow is known by: 63 bits of a secret hash above a 1, so that it is never 0. Two flows are taken for one when these bits are the
/// same while both are here: for a flow that begins, a chance of some ten thousand in 2^63, which no choice of addresses improves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FlowId(u64);

impl FlowId {
    #[inline(always)]
    pub(super) fn of(tuple: &FlowTuple, secret: &impl BuildHasher) -> FlowId {
        let mut hasher = secret.build_hasher();
        hasher.write_u128(u128::from_ne_bytes(*tuple.client.octets()));
        hasher.write_u128(u128::from_ne_bytes(*tuple.server.octets()));
        let ports = u64::from(tuple.client.port()) << 16 | u64::from(tuple.server.port());
        hasher.write_u64(ports << 32 | u64::from(tuple.target.0) << 1 | tuple.transport as u64);
        FlowId(hasher.finish() | 1)
    }

    /// The two places where the flow can be.
    #[inline(always)]
    fn places(self) -> [usize; 2] {
        let at = |shift: u32| (self.0 >> shift) as usize % PLACES;
        [at(u64::BITS - PLACE_BITS), at(u64::BITS - 2 * PLACE_BITS)]
    }
}

/// Each flow has two places where it can be; when others have them, one of these goes.
pub(super) struct Flows {
    /// By place: whose it is; 0: nobody's.
    ids: Box<[u64; PLACES]>,
    /// By place: that flow's target.
    targets: Box<[TargetId; PLACES]>,
    /// By place. Meaningless where it is nobody's.
    flows: Region<Flow>,
    turn: usize,
}

impl Flows {
    /// Fails when the system has no memory left.
    pub(super) fn new() -> io::Result<Flows> {
        // Of its own, so that all flows lie in one huge page.
        let flows = Arena::new(BYTES as usize)?.carve(PLACES);
        let flows = flows.ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Flows { ids: Box::new([0; PLACES]), targets: Box::new([TargetId(0); PLACES]), flows, turn: 0 })
    }

    /// The place of a flow that is here.
    #[inline(always)]
    pub(super) fn find(&self, id: FlowId) -> Option<usize> {
        // Nearly all are in their first place.
        let [first, second] = id.places();
        if self.ids[first] == id.0 {
            return Some(first);
        }
        (self.ids[second] == id.0).then_some(second)
    }

    /// Fetches the flow of a place.
    #[inline(always)]
    pub(super) fn prefetch(&self, at: usize) {
        prefetch(&self.flows[at]);
    }

    #[inline(always)]
    pub(super) fn at(&mut self, at: usize) -> &mut Flow {
        &mut self.flows[at]
    }

    /// Whether a flow that is not here finds a place that is nobody's.
    pub(super) fn has_room(&self, id: FlowId) -> bool {
        id.places().iter().any(|&at| self.ids[at] == 0)
    }

    /// Gives a flow that is not here a place; returns it, and the flow that had it.
    pub(super) fn insert(&mut self, id: FlowId, flow: Flow) -> (usize, Option<Flow>) {
        let places = id.places();
        let at = places.into_iter().find(|&at| self.ids[at] == 0).unwrap_or_else(|| {
            self.turn += 1;
            places[self.turn % places.len()]
        });
        self.targets[at] = flow.tuple.target;
        let former = std::mem::replace(&mut self.flows[at], flow);
        (at, (std::mem::replace(&mut self.ids[at], id.0) != 0).then_some(former))
    }

    /// Takes all flows of a target out.
    pub(super) fn take(&mut self, target: TargetId) -> impl Iterator<Item = &Flow> {
        let Flows { ids, targets, flows, .. } = self;
        let places = ids.iter_mut().zip(targets.iter()).zip(flows.iter());
        places.filter(move |((id, of), _)| **of == target && **id != 0).map(|((id, _), flow)| {
            *id = 0;
            flow
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Endpoint, Transport};
    use foldhash::fast::FixedState;
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

    fn id(tuple: &FlowTuple) -> FlowId {
        FlowId::of(tuple, &FixedState::with_seed(1))
    }

    #[test]
    fn flows_are_spread() {
        let places: HashSet<usize> = (0..1000).map(|client| id(&tuple(client)).places()[0]).collect();
        assert!(places.len() > 900, "{}", places.len());
    }

    #[test]
    fn everything_about_a_flow_is_in_its_id() {
        let flow = tuple(0);
        let others = [
            FlowTuple { target: TargetId(1), ..flow },
            FlowTuple { transport: Transport::Udp, ..flow },
            FlowTuple { client: Endpoint::from_ipv4([10, 0, 0, 0], 40_001), ..flow },
            FlowTuple { client: Endpoint::from_ipv4([10, 0, 0, 2], 40_000), ..flow },
            FlowTuple { server: Endpoint::from_ipv4([10, 0, 0, 1], 11212), ..flow },
            FlowTuple { server: Endpoint::from_ipv4([10, 0, 0, 2], 11211), ..flow },
            FlowTuple { server: flow.client, client: flow.server, ..flow },
        ];
        for other in others {
            assert_ne!(id(&other), id(&flow), "{other:?}");
        }
    }

    /// More flows than there is room for: what is pushed out and what is taken out at the end is all that came, each once.
    #[test]
    fn nothing_is_lost_of_flows_that_are_pushed_out() {
        const CLIENTS: u32 = 3 * PLACES as u32;
        let mut flows = Flows::new().unwrap();
        let mut written: HashMap<FlowTuple, u32> = HashMap::new();
        let mut write = |flow: &Flow| *written.entry(flow.tuple).or_default() += flow.weight;
        for client in (0..CLIENTS).chain(CLIENTS - 100..CLIENTS) {
            let (tuple, id) = (tuple(client), id(&tuple(client)));
            let at = flows.find(id).unwrap_or_else(|| {
                let had_room = flows.has_room(id);
                let (at, former) = flows.insert(id, Flow::new(&tuple, 0, None));
                assert_eq!(former.is_none(), had_room);
                former.iter().for_each(&mut write);
                at
            });
            assert_eq!(flows.find(id), Some(at));
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

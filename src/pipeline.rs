//! One worker's machine: packet in, observations out.
//!
//! The same machine is fed by the live ring and by a recording. It knows no clock, no socket, no thread and no
//! configuration file: time comes with the packets, limits come as values.

use crate::anomaly::{Anomaly, AnomalyCounts};
use crate::capture::decode::{DecodeLimits, Decoder};
use crate::capture::{Datagram, Decoded, Packet, Segment};
use crate::model::{Endpoint, FlowTuple, TargetId, Timestamp, Transport};
use crate::network::Network;
use crate::parser::Observation;
use crate::parser::{Connection, ParserLimits, Transactions};
use crate::reassembly::datagram::DatagramTable;
use crate::reassembly::flow::{FlowTable, Orientation};
use crate::reassembly::limits::ReassemblyLimits;
use crate::reassembly::{Demand, StreamEvent, TargetTally};
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

/// One configured server, or network of servers, as the pipeline matches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetMatch {
    /// Server addresses.
    pub network: Network,
    /// Server port.
    pub port: u16,
    /// Whether TCP is watched.
    pub tcp: bool,
    /// Whether UDP is watched.
    pub udp: bool,
}

impl TargetMatch {
    fn watches(&self, transport: Transport) -> bool {
        match transport {
            Transport::Tcp => self.tcp,
            Transport::Udp => self.udp,
        }
    }
}

/// Which target an endpoint is a server of. The most specific network wins; among equals the first.
#[derive(Clone, Debug)]
pub struct TargetMap {
    /// By `TargetId`; nothing where there is no target yet, or not any more.
    targets: Vec<Option<TargetMatch>>,
    /// A bit per port that some target has: turns away foreign packets before any lookup.
    ports: Box<[u64; 1024]>,
    /// Targets of a single address.
    single: HashMap<(IpAddr, u16), Vec<TargetId>>,
    /// The other targets, longest prefix first.
    networks: Vec<TargetId>,
}

impl TargetMap {
    /// # Panics
    /// With more targets than a `TargetId` can number (65,536); the configuration permits fewer ([`TARGETS_MAX`](crate::config::TARGETS_MAX)).
    pub fn new(targets: Vec<TargetMatch>) -> TargetMap {
        TargetMap::with_slots(targets.into_iter().map(Some).collect())
    }

    /// Targets by their `TargetId`, with room for those that may come.
    ///
    /// # Panics
    /// As [`TargetMap::new`], with the number of slots.
    pub fn with_slots(targets: Vec<Option<TargetMatch>>) -> TargetMap {
        let mut ports = Box::new([0u64; 1024]);
        let mut single: HashMap<_, Vec<TargetId>> = HashMap::new();
        let mut networks = Vec::new();
        for (index, target) in targets.iter().enumerate() {
            let Some(target) = target else { continue };
            let id = TargetId(u16::try_from(index).expect("the configuration limits the number of targets"));
            ports[usize::from(target.port >> 6)] |= 1 << (target.port & 63);
            match target.network.single() {
                Some(ip) => single.entry((ip, target.port)).or_default().push(id),
                None => networks.push(id),
            }
        }
        let prefix = |id: &TargetId| match targets[id.index()].map(|target| target.network) {
            Some(Network::Net(_, prefix)) => prefix,
            Some(Network::Any) | None => 0,
        };
        networks.sort_by_key(|id| std::cmp::Reverse(prefix(id)));
        TargetMap { targets, ports, single, networks }
    }

    /// Number of slots: of targets, and of such that may come or have gone.
    pub fn len(&self) -> usize {
        self.targets.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    /// The numbers of the targets that there are.
    pub fn ids(&self) -> impl Iterator<Item = TargetId> + '_ {
        let id = |(index, target): (usize, &Option<TargetMatch>)| {
            target.as_ref().map(|_| TargetId(u16::try_from(index).expect("checked when the map was made")))
        };
        self.targets.iter().enumerate().filter_map(id)
    }

    /// Every port that some target has.
    pub fn ports(&self) -> Vec<u16> {
        (0..=u16::MAX).filter(|&port| self.has_port(port)).collect()
    }

    /// Whether some target has this port.
    #[inline]
    pub fn has_port(&self, port: u16) -> bool {
        self.ports[usize::from(port >> 6)] & (1 << (port & 63)) != 0
    }

    /// The target that this endpoint is a server of.
    pub fn find(&self, endpoint: &Endpoint, transport: Transport) -> Option<TargetId> {
        if !self.has_port(endpoint.port()) {
            return None;
        }
        let of = |id: &TargetId| self.targets[id.index()].as_ref();
        let watches = |id: &TargetId| of(id).is_some_and(|target| target.watches(transport));
        let mut single = self.single.get(&(endpoint.ip(), endpoint.port())).into_iter().flatten().copied();
        single.find(watches).or_else(|| {
            let matches =
                |target: &TargetMatch| target.port == endpoint.port() && target.network.contains(endpoint);
            self.networks.iter().copied().find(|id| watches(id) && of(id).is_some_and(matches))
        })
    }
}

/// Fixed sizes of a pipeline's parts.
#[derive(Clone, Debug, Default)]
pub struct PipelineLimits {
    /// Headers and fragments.
    pub decode: DecodeLimits,
    /// Flows, held segments, UDP exchanges.
    pub reassembly: ReassemblyLimits,
    /// Outstanding requests.
    pub parser: ParserLimits,
}

/// An endpoint that was seen and belongs to no target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stranger {
    /// The one of the two ends with the lower port: probably the server.
    pub endpoint: Endpoint,
    /// TCP or UDP.
    pub transport: Transport,
    /// Packets to and from it.
    pub packets: u64,
}

/// Servers that were seen but belong to no target: what an empty report tells instead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strangers {
    seen: Vec<Stranger>,
}

/// Greatest number of [`Strangers`] remembered; the first come stay.
const STRANGERS_MAX: usize = 16;

impl Strangers {
    fn count(&mut self, source: &Endpoint, destination: &Endpoint, transport: Transport) {
        let endpoint = *if source.port() < destination.port() { source } else { destination };
        let known =
            self.seen.iter_mut().find(|seen| seen.endpoint == endpoint && seen.transport == transport);
        if let Some(stranger) = known {
            stranger.packets += 1;
        } else if self.seen.len() < STRANGERS_MAX {
            self.seen.push(Stranger { endpoint, transport, packets: 1 });
        }
    }

    /// Most packets first.
    pub fn ranked(&self) -> Vec<Stranger> {
        let mut ranked = self.seen.clone();
        ranked.sort_by_key(|stranger| std::cmp::Reverse(stranger.packets));
        ranked
    }

    fn merge(&mut self, other: &Strangers) {
        for theirs in &other.seen {
            let mine = self
                .seen
                .iter_mut()
                .find(|mine| mine.endpoint == theirs.endpoint && mine.transport == theirs.transport);
            match mine {
                Some(mine) => mine.packets += theirs.packets,
                None => self.seen.push(*theirs),
            }
        }
    }
}

/// What a pipeline saw of the wire as a whole, whatever the target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaptureTally {
    /// Packets handed to the pipeline.
    pub packets: u64,
    /// Of these, packets of a target.
    pub target_packets: u64,
    /// Packets that could not be decoded or are neither TCP nor UDP.
    pub anomalies: AnomalyCounts,
    /// Whom the others belong to.
    pub strangers: Strangers,
}

impl CaptureTally {
    /// Adds another worker's.
    pub fn merge(&mut self, other: &CaptureTally) {
        self.packets += other.packets;
        self.target_packets += other.target_packets;
        self.anomalies.merge(&other.anomalies);
        self.strangers.merge(&other.strangers);
    }
}

/// Decode, reassembly and parser of one worker.
pub struct Pipeline {
    decoder: Decoder,
    stage: Stage,
    flows: FlowTable<Connection>,
    datagrams: DatagramTable<Connection>,
    /// Packets until the tables are looked at for what has become old.
    packets_to_tick: u32,
    /// When they were looked at last.
    last_tick: Timestamp,
}

/// What segments and datagrams share on their way from the tables to the observations.
struct Stage {
    targets: TargetMap,
    transactions: Transactions,
    tallies: Vec<TargetTally>,
    /// Anomalies of the parser, by target; added to the tallies when these are taken.
    parser_anomalies: Vec<AnomalyCounts>,
    capture: CaptureTally,
}

/// Packets between two looks at what has become old: often enough to spread the work, seldom enough to cost nothing.
const PACKETS_PER_TICK: u32 = 256;

/// Slots of the tables that are looked at in one step of closing a target's flows: some ten microseconds' work.
const SLOTS_PER_STEP: usize = 4096;

/// Steps back of the clock that are no disorder of packets, nor of recordings that overlap.
const CLOCK_SET_BACK_MIN: Duration = Duration::from_secs(10);

impl Pipeline {
    /// Allocates everything; afterwards no packet allocates.
    pub fn new(targets: TargetMap, limits: PipelineLimits) -> Pipeline {
        let transactions = Transactions::new(limits.parser);
        Pipeline::with_parser(targets, limits, transactions)
    }

    /// The pipeline of another worker, with the same targets as now. They share what servers tell of their versions, and nothing else.
    pub fn beside(&self, limits: PipelineLimits) -> Pipeline {
        Pipeline::with_parser(self.targets().clone(), limits, self.stage.transactions.beside())
    }

    fn with_parser(targets: TargetMap, limits: PipelineLimits, transactions: Transactions) -> Pipeline {
        let mut decoder = Decoder::new(limits.decode);
        decoder.keep_from_tunnels(&targets.ports());
        let stage = Stage {
            transactions,
            tallies: vec![TargetTally::default(); targets.len()],
            parser_anomalies: vec![AnomalyCounts::default(); targets.len()],
            capture: CaptureTally::default(),
            targets,
        };
        Pipeline {
            decoder,
            stage,
            flows: FlowTable::new(limits.reassembly.clone()),
            datagrams: DatagramTable::new(limits.reassembly),
            packets_to_tick: PACKETS_PER_TICK,
            last_tick: Timestamp::ZERO,
        }
    }

    /// Takes one packet in; observations that it completes come out through `emit`.
    #[inline]
    pub fn handle_packet(
        &mut self,
        packet: &Packet<'_>,
        emit: &mut impl FnMut(&FlowTuple, &Observation<'_>),
    ) {
        let Pipeline { decoder, stage, flows, datagrams, .. } = self;
        stage.capture.packets += 1;
        decoder.decode_to(packet, |decoded| match decoded {
            Decoded::Segment(segment) => stage.handle_segment(flows, &segment, emit),
            Decoded::Datagram(datagram) => stage.handle_datagram(datagrams, &datagram, emit),
            Decoded::Fragment => {}
            Decoded::Foreign => stage.capture.anomalies.count(Anomaly::PacketForeign),
            Decoded::Malformed => stage.capture.anomalies.count(Anomaly::PacketMalformed),
        });
        self.packets_to_tick -= 1;
        if self.packets_to_tick == 0 {
            self.tick(packet.timestamp, emit);
        }
    }

    /// Time has passed, with or without packets: what waited long enough is resolved, what is old is forgotten.
    pub fn tick(&mut self, now: Timestamp, emit: &mut impl FnMut(&FlowTuple, &Observation<'_>)) {
        self.packets_to_tick = PACKETS_PER_TICK;
        if now.plus(CLOCK_SET_BACK_MIN) < self.last_tick {
            // It touches the figures of every target.
            self.stage
                .parser_anomalies
                .iter_mut()
                .for_each(|anomalies| anomalies.count(Anomaly::ClockSetBack));
        }
        self.last_tick = now;
        self.decoder.expire_fragments(now);
        self.stage.capture.anomalies.merge(&self.decoder.take_anomalies());
        let Stage { transactions, tallies, parser_anomalies, .. } = &mut self.stage;
        let mut forward = to_parser(transactions, parser_anomalies, emit);
        self.flows.tick(now, tallies, &mut forward);
        self.datagrams.tick(now, tallies, &mut forward);
    }

    /// The end of the packets: what is held is delivered, what is outstanding is given up as unseen.
    pub fn finish(&mut self, emit: &mut impl FnMut(&FlowTuple, &Observation<'_>)) {
        let Stage { transactions, tallies, parser_anomalies, .. } = &mut self.stage;
        let mut forward = to_parser(transactions, parser_anomalies, emit);
        self.flows.close_all(tallies, &mut forward);
        self.datagrams.close_all(tallies, &mut forward);
    }

    /// Which endpoints are servers of which targets.
    pub fn targets(&self) -> &TargetMap {
        &self.stage.targets
    }

    /// Goes by another map from now on; flows that are followed keep their targets. Does not belong on the packet path.
    ///
    /// # Panics
    /// When the map has another number of slots.
    pub fn set_targets(&mut self, targets: TargetMap) {
        assert_eq!(targets.len(), self.stage.targets.len(), "slots are given at the start");
        self.decoder.keep_from_tunnels(&targets.ports());
        self.stage.targets = targets;
    }

    /// Ends flows and exchanges of a target that the map does not have any more, a step at a time: begin with 0 and go on with what comes back
    /// until nothing does. What is outstanding is given up as unseen.
    pub fn close_target(
        &mut self,
        target: TargetId,
        from: usize,
        emit: &mut impl FnMut(&FlowTuple, &Observation<'_>),
    ) -> Option<usize> {
        let Stage { transactions, tallies, parser_anomalies, .. } = &mut self.stage;
        let mut forward = to_parser(transactions, parser_anomalies, emit);
        let flows = self.flows.slots();
        let to = from + SLOTS_PER_STEP;
        self.flows.close_target(target, from.min(flows)..to.min(flows), tallies, &mut forward);
        let exchanges = self.datagrams.slots();
        let among_exchanges = |at: usize| at.saturating_sub(flows).min(exchanges);
        let range = among_exchanges(from)..among_exchanges(to);
        self.datagrams.close_target(target, range, tallies, &mut forward);
        (to < flows + exchanges).then_some(to)
    }

    /// Goes on with the counts of another that failed, and with nothing else of it.
    pub fn take_over_counts(&mut self, failed: Pipeline) {
        for (mine, theirs) in self.stage.tallies.iter_mut().zip(&failed.stage.tallies) {
            mine.merge(theirs);
        }
        for (mine, theirs) in self.stage.parser_anomalies.iter_mut().zip(&failed.stage.parser_anomalies) {
            mine.merge(theirs);
        }
        self.stage.capture.merge(&failed.stage.capture);
    }

    /// What was counted for a target since the last call.
    pub fn take_tally(&mut self, target: TargetId) -> TargetTally {
        let mut tally = std::mem::take(&mut self.stage.tallies[target.index()]);
        tally.anomalies.merge(&self.stage.parser_anomalies[target.index()].take());
        tally
    }

    /// What was seen of the wire as a whole so far, since the last call of [`Pipeline::take_capture_tally`].
    pub fn capture_tally(&self) -> &CaptureTally {
        &self.stage.capture
    }

    /// What was seen of the wire as a whole since the last call.
    pub fn take_capture_tally(&mut self) -> CaptureTally {
        std::mem::take(&mut self.stage.capture)
    }
}

/// Hands stream events to the parser, and what it observes on with the flow's ends.
fn to_parser<'a, E: FnMut(&FlowTuple, &Observation<'_>)>(
    transactions: &'a mut Transactions,
    anomalies: &'a mut [AnomalyCounts],
    emit: &'a mut E,
) -> impl FnMut(&FlowTuple, &mut Connection, StreamEvent<'_>) -> Demand + use<'a, E> {
    |tuple, connection, event| {
        let anomalies = &mut anomalies[tuple.target.index()];
        let mut with_tuple = |observation: &Observation<'_>| emit(tuple, observation);
        transactions.handle_event(connection, event, tuple, anomalies, &mut with_tuple)
    }
}

impl Stage {
    #[inline]
    fn handle_segment(
        &mut self,
        flows: &mut FlowTable<Connection>,
        segment: &Segment<'_>,
        emit: &mut impl FnMut(&FlowTuple, &Observation<'_>),
    ) {
        let (source, destination) = (&segment.source, &segment.destination);
        if self.is_foreign(source, destination, Transport::Tcp) {
            return;
        }
        let Stage { targets, transactions, tallies, parser_anomalies, .. } = self;
        // Asked only for what is not known yet; for the rest the answer stays that it is a target's.
        let mut is_ours = true;
        let classify = |a: &Endpoint, b: &Endpoint| {
            let orientation = orient(targets, a, b, Transport::Tcp);
            is_ours = orientation != Orientation::default();
            orientation
        };
        flows.handle_segment(
            segment,
            classify,
            tallies,
            &mut to_parser(transactions, parser_anomalies, emit),
        );
        self.count(is_ours, source, destination, Transport::Tcp);
    }

    fn handle_datagram(
        &mut self,
        datagrams: &mut DatagramTable<Connection>,
        datagram: &Datagram<'_>,
        emit: &mut impl FnMut(&FlowTuple, &Observation<'_>),
    ) {
        let (source, destination) = (&datagram.source, &datagram.destination);
        if self.is_foreign(source, destination, Transport::Udp) {
            return;
        }
        let Stage { targets, transactions, tallies, parser_anomalies, .. } = self;
        // Asked only for what is not known yet; for the rest the answer stays that it is a target's.
        let mut is_ours = true;
        let classify = |a: &Endpoint, b: &Endpoint| {
            let orientation = orient(targets, a, b, Transport::Udp);
            is_ours = orientation != Orientation::default();
            orientation
        };
        datagrams.handle_datagram(
            datagram,
            classify,
            tallies,
            &mut to_parser(transactions, parser_anomalies, emit),
        );
        self.count(is_ours, source, destination, Transport::Udp);
    }

    /// Turns away, before any lookup, what cannot be a target's.
    #[inline]
    fn is_foreign(&mut self, source: &Endpoint, destination: &Endpoint, transport: Transport) -> bool {
        let foreign = !self.targets.has_port(source.port()) && !self.targets.has_port(destination.port());
        if foreign {
            self.capture.strangers.count(source, destination, transport);
        }
        foreign
    }

    #[inline]
    fn count(&mut self, is_ours: bool, source: &Endpoint, destination: &Endpoint, transport: Transport) {
        if is_ours {
            self.capture.target_packets += 1;
        } else {
            self.capture.strangers.count(source, destination, transport);
        }
    }
}

fn orient(
    targets: &TargetMap,
    source: &Endpoint,
    destination: &Endpoint,
    transport: Transport,
) -> Orientation {
    Orientation { source: targets.find(source, transport), destination: targets.find(destination, transport) }
}

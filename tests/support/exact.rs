//! The pipeline's plain twin of a collector: ordered maps of everything that was observed, however much it is.

use super::scenario::Frame;
use memtap::capture::{LinkType, Packet};
use memtap::collector::snapshot::{Counters, Totals};
use memtap::model::{Command, Endpoint, FlowTuple, Outcome, TargetId};
use memtap::network::Network;
use memtap::parser::Observation;
use memtap::pipeline::{Pipeline, PipelineLimits, TargetMap, TargetMatch};
use memtap::reassembly::TargetTally;
use std::collections::{BTreeMap, BTreeSet};

/// Everything that a run of packets told.
#[derive(Clone, Debug, Default)]
pub struct Exact {
    pub totals: Totals,
    pub keys: BTreeMap<Vec<u8>, Counters>,
    pub clients: BTreeMap<Endpoint, Counters>,
    /// By client socket, key and command: requests by outcome.
    pub outcomes: BTreeMap<(Endpoint, Vec<u8>, u8), [u64; Outcome::COUNT]>,
    pub tally: TargetTally,
}

impl Exact {
    pub fn observe(&mut self, tuple: &FlowTuple, observation: &Observation<'_>) {
        self.totals.counters.observe(&Observation { request_bytes: 0, response_bytes: 0, ..*observation });
        let command = &mut self.totals.commands[observation.command.index()];
        command.requests += 1;
        command.outcomes[observation.outcome.index()] += 1;
        let notes = observation.notes;
        let leases = [notes.lease_won, notes.lease_stale, notes.lease_lost];
        for (count, noted) in self.totals.leases.iter_mut().zip(leases) {
            *count += u64::from(noted);
        }
        if observation.command.is_keyed() {
            self.keys.entry(observation.key.to_vec()).or_default().observe(observation);
            self.clients.entry(tuple.client).or_default().observe(observation);
        }
        let place = (tuple.client, observation.key.to_vec(), observation.command as u8);
        self.outcomes.entry(place).or_default()[observation.outcome.index()] += 1;
    }

    /// Requests by command and outcome.
    pub fn count(&self, commands: &[Command], outcome: Option<Outcome>) -> u64 {
        let of = |command: &Command| {
            let counts = &self.totals.commands[command.index()];
            outcome.map_or(counts.requests, |outcome| counts.outcomes[outcome.index()])
        };
        commands.iter().map(of).sum()
    }

    /// Keys of which we say that they were asked for and `base` does not know.
    pub fn forged_keys(&self, base: &Exact) -> Vec<String> {
        let known: BTreeSet<&Vec<u8>> = base.keys.keys().collect();
        let forged = self.keys.keys().filter(|key| !known.contains(key));
        forged.map(|key| String::from_utf8_lossy(key).into_owned()).collect()
    }

    /// Places (client socket, key, command) of which we claim more of an outcome, other than `unseen`, than `base` knows.
    pub fn wrong_outcomes(&self, base: &Exact) -> Vec<String> {
        let mut wrong = Vec::new();
        for (place, ours) in &self.outcomes {
            let theirs = base.outcomes.get(place).copied().unwrap_or_default();
            for outcome in Outcome::ALL.iter().filter(|&&outcome| outcome != Outcome::Unseen) {
                let (ours, theirs) = (ours[outcome.index()], theirs[outcome.index()]);
                if ours > theirs {
                    let (client, key, command) = place;
                    let (key, command) =
                        (String::from_utf8_lossy(key), Command::ALL[usize::from(*command)].name());
                    let outcome = outcome.name();
                    wrong.push(format!("{client} {command} {key}: {ours} {outcome}, in truth {theirs}"));
                }
            }
        }
        wrong
    }

    /// Where two runs differ, at most `limit` lines.
    pub fn differences(&self, base: &Exact, limit: usize) -> Vec<String> {
        let places: BTreeSet<_> = self.outcomes.keys().chain(base.outcomes.keys()).collect();
        let differing =
            places.into_iter().filter(|place| self.outcomes.get(*place) != base.outcomes.get(*place));
        differing
            .take(limit)
            .map(|place| {
                let (client, key, command) = place;
                let (key, command) =
                    (String::from_utf8_lossy(key), Command::ALL[usize::from(*command)].name());
                let (ours, theirs) = (self.outcomes.get(place), base.outcomes.get(place));
                format!("{client} {command} {key}: ours {ours:?}, base {theirs:?}")
            })
            .collect()
    }
}

/// One target: any address, this port, TCP and UDP.
pub fn port_target(port: u16) -> TargetMatch {
    TargetMatch { network: Network::Any, port, tcp: true, udp: true }
}

/// Runs packets through a pipeline with the targets.
pub fn run<'a>(packets: impl Iterator<Item = Packet<'a>>, targets: Vec<TargetMatch>) -> Exact {
    let mut pipeline = Pipeline::new(TargetMap::new(targets), PipelineLimits::default());
    let mut exact = Exact::default();
    for packet in packets {
        pipeline.handle_packet(&packet, &mut |tuple, observation| exact.observe(tuple, observation));
    }
    pipeline.finish(&mut |tuple, observation| exact.observe(tuple, observation));
    exact.tally = pipeline.take_tally(TargetId(0));
    exact
}

/// Runs frames of one link type against port 11211.
pub fn run_frames(frames: &[Frame], link: LinkType) -> Exact {
    run(frames.iter().map(|frame| Packet { link, ..frame.packet() }), vec![port_target(11211)])
}

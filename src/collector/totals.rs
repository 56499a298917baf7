//! What is counted of every observation outside of the tables: exact, and as little as the totals can be made of afterwards.

use super::latency::Latencies;
use super::snapshot::{CommandOutcomes, Counters, Totals};
use crate::model::{Command, CommandClass, Outcome};
use crate::parser::Observation;

/// An interval's, while it runs. All other totals follow from these when it ends.
pub(super) struct RunningTotals {
    /// By `Command::index` and `Outcome::index`.
    outcomes: [[u64; Outcome::COUNT]; Command::COUNT],
    /// Microseconds.
    latency_sum: u64,
    latencies: Latencies,
    leases: [u64; 3],
    /// To the target and from it.
    payload_bytes: [u64; 2],
}

impl RunningTotals {
    pub(super) fn new() -> RunningTotals {
        RunningTotals {
            outcomes: [[0; Outcome::COUNT]; Command::COUNT],
            latency_sum: 0,
            latencies: Latencies::new(),
            leases: [0; 3],
            payload_bytes: [0; 2],
        }
    }

    /// Counts an observation whose response time is given in microseconds. Its bytes are among those of
    /// [`RunningTotals::add_payload`].
    #[inline(always)]
    pub(super) fn observe(&mut self, observation: &Observation<'_>, micros: Option<u64>) {
        let Observation { command, outcome, notes, .. } = *observation;
        self.outcomes[command.index()][outcome.index()] += 1;
        if let Some(micros) = micros {
            self.latency_sum += micros;
            self.latencies.record(command, micros);
        }
        self.leases[0] += u64::from(notes.lease_won);
        self.leases[1] += u64::from(notes.lease_stale);
        self.leases[2] += u64::from(notes.lease_lost);
    }

    /// Counts payload bytes to and from the target.
    pub(super) fn add_payload(&mut self, bytes: [u64; 2]) {
        for (mine, more) in self.payload_bytes.iter_mut().zip(bytes) {
            *mine += more;
        }
    }

    /// Hands everything over, response times to `latencies`, whose contents are lost, and starts anew.
    pub(super) fn hand_over(&mut self, latencies: &mut Latencies) -> Totals {
        self.latencies.hand_over(latencies);
        let [bytes_in, bytes_out] = std::mem::take(&mut self.payload_bytes);
        let mut totals = Totals {
            counters: Counters { bytes_in, bytes_out, ..Counters::default() },
            leases: std::mem::take(&mut self.leases),
            ..Totals::default()
        };
        let Totals { counters, commands, .. } = &mut totals;
        counters.latency_sum_us = std::mem::take(&mut self.latency_sum);
        counters.latency_samples = latencies.samples();
        counters.latency_max_us = latencies.longest();
        for ((command, outcomes), into) in Command::ALL.iter().zip(&mut self.outcomes).zip(commands) {
            let outcomes = std::mem::take(outcomes);
            let of = |outcome: Outcome| outcomes[outcome.index()];
            let requests = outcomes.iter().sum();
            match command.class() {
                CommandClass::Retrieval => {
                    counters.gets += requests;
                    counters.hits += of(Outcome::Hit);
                    counters.misses += of(Outcome::Miss);
                }
                CommandClass::Storage => counters.stores += requests,
                CommandClass::Deletion => counters.deletes += requests,
                CommandClass::Touch => counters.touches += requests,
                CommandClass::Arithmetic => counters.arithmetic += requests,
                CommandClass::Other => counters.other += requests,
                // They have errors and response times, and are no requests of keys.
                CommandClass::Keyless => {}
            }
            counters.errors += of(Outcome::Error) + of(Outcome::TooLarge);
            *into = CommandOutcomes { requests, outcomes };
        }
        totals
    }
}

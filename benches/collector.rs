//! What an observation costs, as ratios inside one run.
//!
//! Every contender gets the same trace: it builds the same observation from a key number, and hashes the key where it needs a
//! hash. `null` does only that, and is subtracted from the others. `three lines` replays the trace against slots whose
//! addresses are known beforehand: what the memory itself takes for a header, a row and a key. Times are the thread's
//! CPU time as the scheduler counts it; contenders take turns, and the least and the median of the rounds are printed.
//! `sums only` counts the same observations as keyless commands, which stay out of the tables, and hashes the key as all others
//! do. At last an interval is closed while observations go on: how long one slice of that takes, and how long it would stop them
//! all at once.
//!
//!     cargo bench --bench collector -- --observations 4000000 --rounds 7
//!
//! Without `--bench`, which cargo adds, it only shows that it still runs. `--only N` takes the Nth case, `--contender NAME` one
//! contender beside null (for a profiler).

#![expect(clippy::print_stdout, reason = "a bench talks to its reader")]

#[expect(dead_code, reason = "each bench takes what it needs")]
mod support;

use dashmap::DashMap;
use memtap::collector::snapshot::Counters;
use memtap::collector::{Collector, CollectorOptions, Harvest, Parts, TargetOptions};
use memtap::model::{Command, Endpoint, FlowTuple, Outcome, TargetId, Timestamp, Transport};
use memtap::parser::{Observation, ObservationNotes};
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::hint::black_box;
use std::time::{Duration, Instant};
use support::{Random, Zipf, argument, is_bench, write_key};

/// Bytes of a target's tables, as they are by default.
const BUDGET_BYTES: u64 = 300_000_000;

const GROUP: usize = 32;

fn main() {
    let quick = !is_bench();
    let observations = argument("observations", if quick { 20_000 } else { 4_000_000 }) as usize;
    let rounds = argument("rounds", if quick { 1 } else { 7 }) as usize;
    println!("{observations} observations, {rounds} rounds; ns of CPU for each beyond null: least / median");
    let only = argument("only", u64::MAX);
    let cases =
        [(10_000_000, 0.99, 1000), (50_000_000, 0.99, 1000), (50_000_000, 0.0, 1000), (1_000_000, 0.0, 1000)];
    let cases = cases.into_iter().chain([(1_000_000, 0.99, 1000), (10_000, 0.99, 1000)]);
    for (number, (keys, exponent, flows)) in (0..).zip(cases) {
        if only == u64::MAX || only == number {
            let zipf = Zipf::new(keys, exponent);
            let trace = Trace::new(zipf, flows, observations);
            println!("\n{zipf}, {} distinct, {flows} flows", trace.distinct);
            compare(&trace, rounds);
        }
    }
    if only == u64::MAX || only == 6 {
        closing(observations, rounds);
    }
}

/// The numbers that observations are built from.
struct Trace {
    /// Key and flow.
    numbers: Vec<(u32, u32)>,
    /// By observation: its key's place in order of first appearance.
    places: Vec<u32>,
    distinct: usize,
}

impl Trace {
    fn new(zipf: Zipf, flows: u64, observations: usize) -> Trace {
        let mut random = Random(1);
        let numbers: Vec<(u32, u32)> = (0..observations)
            .map(|_| (zipf.sample(&mut random) as u32, random.below(flows) as u32))
            .collect();
        let mut known: HashMap<u32, u32> = HashMap::new();
        let places = numbers
            .iter()
            .map(|&(key, _)| {
                let next = known.len() as u32;
                *known.entry(key).or_insert(next)
            })
            .collect();
        Trace { numbers, places, distinct: known.len() }
    }

    /// Builds each observation and lends it.
    fn replay(&self, mut take: impl FnMut(usize, &FlowTuple, &Observation<'_>)) {
        for (index, &(number, flow)) in self.numbers.iter().enumerate() {
            let key = write_key(number.into());
            take(index, &tuple(flow), &observation(&key, number));
        }
    }
}

fn tuple(flow: u32) -> FlowTuple {
    let [_, b, c, d] = (flow / 4).to_be_bytes();
    FlowTuple {
        target: TargetId(0),
        server: Endpoint::from_ipv4([10, 0, 0, 1], 11211),
        client: Endpoint::from_ipv4([10, b, c, d], 1024 + flow as u16),
        transport: Transport::Tcp,
    }
}

fn observation(key: &[u8], number: u32) -> Observation<'_> {
    Observation {
        timestamp: Timestamp::ZERO,
        command: if number.is_multiple_of(16) { Command::Set } else { Command::Get },
        outcome: if number.is_multiple_of(16) { Outcome::Stored } else { Outcome::Hit },
        key,
        request_bytes: 40,
        response_bytes: 100 + u64::from(number % 1000),
        latency: Some(Duration::from_micros(50 + u64::from(number % 100))),
        notes: ObservationNotes::default(),
    }
}

/// Replays the trace; returns nanoseconds of CPU.
type Contender = Box<dyn FnMut(&Trace) -> u64>;

fn timed(mut work: impl FnMut()) -> u64 {
    let before = support::cpu_nanos();
    work();
    support::cpu_nanos() - before
}

fn compare(trace: &Trace, rounds: usize) {
    let mut contenders: Vec<(&str, Contender)> = vec![
        ("null", Box::new(|trace| timed(|| null(trace)))),
        ("three lines", three_lines(trace)),
        ("sums only", sums_only()),
        ("keys", collector(Parts { pairs: false, ..Parts::ALL })),
        ("keys, no prefetch", collector(Parts { pairs: false, prefetch: false })),
        ("keys and pairs", collector(Parts::ALL)),
        ("dashmap", Box::new(dashmap)),
    ];
    let named = std::env::args().skip_while(|argument| argument != "--contender").nth(1);
    if let Some(named) = named {
        contenders.retain(|(name, _)| *name == "null" || *name == named);
    }
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); contenders.len()];
    for _ in 0..rounds {
        for ((_, contender), times) in contenders.iter_mut().zip(&mut times) {
            times.push(contender(trace) as f64 / trace.numbers.len() as f64);
        }
    }
    times.iter_mut().for_each(|times| times.sort_by(f64::total_cmp));
    let beyond_null =
        |index: usize, round: usize| times[index][round] - if index > 0 { times[0][round] } else { 0.0 };
    let results: Vec<(&str, f64)> = contenders
        .iter()
        .enumerate()
        .map(|(index, (name, _))| (*name, beyond_null(index, rounds / 2)))
        .collect();
    for (index, (name, median)) in results.iter().enumerate() {
        println!("  {name:20} {:7.1} / {median:7.1}", beyond_null(index, 0));
    }
    let [_, (_, lines), (_, sums), (_, keys), (_, scalar), (_, pairs), (_, dashmap)] = results[..] else {
        return;
    };
    println!(
        "  the key table is {:.2} x three lines, with the sums {:.2} x; prefetch gains {:.2} x; dashmap takes {:.1} x, with pairs {:.1} x",
        (keys - sums) / lines,
        keys / lines,
        scalar / keys,
        dashmap / keys,
        dashmap / pairs
    );
}

/// Builds and hashes.
fn null(trace: &Trace) {
    let hash = hasher();
    trace.replay(|_, tuple, observation| {
        black_box(hash(observation.key));
        black_box((tuple, observation));
    });
}

/// The hash function that the collector has.
fn hasher() -> impl Fn(&[u8]) -> u64 {
    let state = foldhash::quality::FixedState::with_seed(7);
    move |key| {
        let mut hasher = state.build_hasher();
        hasher.write(key);
        hasher.finish()
    }
}

/// The memory traffic of a perfect table: header, row and key of each observation, addresses known, fetched in groups.
fn three_lines(trace: &Trace) -> Contender {
    let rows = 1 << 20;
    let mut headers = memmap2::MmapMut::map_anon(rows / 8 * 64 + (4 << 20)).expect("memory for headers");
    let mut slots = memmap2::MmapMut::map_anon(rows * 128 + (4 << 20)).expect("memory for rows");
    for mapping in [&mut headers, &mut slots] {
        let _ = mapping.advise(memmap2::Advice::HugePage);
        mapping.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    }
    let places: Vec<u32> =
        trace.places.iter().map(|&place| support::mix(place.into()) as u32 % rows as u32).collect();
    Box::new(move |trace| {
        let (mut group, mut len) = ([(0_u32, 0_u64); GROUP], 0);
        let hash = hasher();
        timed(|| {
            trace.replay(|index, _, observation| {
                group[len] = (places[index], hash(observation.key) ^ observation.response_bytes);
                len += 1;
                if len == GROUP {
                    replay_group(&group, &mut headers, &mut slots);
                    len = 0;
                }
            });
        })
    })
}

fn replay_group(group: &[(u32, u64); GROUP], headers: &mut [u8], slots: &mut [u8]) {
    for &(place, _) in group {
        prefetch(&headers[place as usize / 8 * 64]);
        prefetch(&slots[place as usize * 128]);
        prefetch(&slots[place as usize * 128 + 64]);
    }
    for &(place, value) in group {
        let header = headers[place as usize / 8 * 64..][..64].as_chunks_mut::<8>().0;
        let way = place as usize % 8;
        header[way] = (u64::from_ne_bytes(header[way]) + 1).to_ne_bytes();
        let (row, key) = slots[place as usize * 128..][..128].split_at_mut(64);
        for word in row.as_chunks_mut::<8>().0 {
            *word = u64::from_ne_bytes(*word).wrapping_add(value).to_ne_bytes();
        }
        black_box(&key[..32] == b"user:0123456789abcdef:profile:v2");
    }
}

fn prefetch<T>(place: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: prefetching reads nothing architecturally and cannot fault.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(
            std::ptr::from_ref(place).cast(),
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

fn new_collector(parts: Parts) -> Collector {
    let targets = vec![TargetOptions { budget_bytes: BUDGET_BYTES, servers: false }];
    let options = CollectorOptions { targets, ..CollectorOptions::default() };
    let mut collector = Collector::new(&options).expect("memory for the bench");
    collector.count_only(parts);
    collector
}

fn new_harvest(collector: &Collector) -> Harvest {
    // As `memtap run` has it.
    Harvest::new(Some(65_536), collector.capacity(TargetId(0)))
}

fn collector(parts: Parts) -> Contender {
    let mut collector = new_collector(parts);
    let mut harvest = new_harvest(&collector);
    Box::new(move |trace| {
        let nanos = timed(|| {
            trace.replay(|_, tuple, observation| collector.observe(tuple, observation));
            collector.flush();
        });
        collector.close_interval(TargetId(0), &mut harvest);
        nanos
    })
}

/// What is counted of every observation outside of the tables: totals and response times.
fn sums_only() -> Contender {
    let mut collector = new_collector(Parts::ALL);
    Box::new(move |trace| {
        let hash = hasher();
        timed(|| {
            trace.replay(|_, tuple, observation| {
                black_box(hash(observation.key));
                collector.observe(tuple, &Observation { command: Command::Version, ..*observation });
            });
        })
    })
}

fn dashmap(trace: &Trace) -> u64 {
    let map: DashMap<Box<[u8]>, Counters> = DashMap::new();
    // Freeing millions of keys is not timed: the table frees nothing either.
    timed(|| {
        trace.replay(|_, _, observation| match map.get_mut(observation.key) {
            Some(mut counters) => counters.observe(observation),
            None => map.entry(observation.key.into()).or_default().observe(observation),
        })
    })
}

/// How long one slice of closing an interval takes while observations go on, and how long a stop would take.
fn closing(observations: usize, rounds: usize) {
    println!("\nclosing an interval of {observations} observations, \u{b5}s of wall time:");
    for zipf in [Zipf::new(10_000_000, 0.99), Zipf::new(50_000_000, 0.0)] {
        let trace = Trace::new(zipf, 1000, observations);
        let mut collector = new_collector(Parts::ALL);
        let (mut harvest, mut slices, mut begins) = (new_harvest(&collector), Vec::new(), Vec::new());
        let micros = |since: Instant| since.elapsed().as_nanos() as f64 / 1e3;
        for round in 0..=rounds {
            let mut swept = round == 0;
            trace.replay(|index, tuple, observation| {
                collector.observe(tuple, observation);
                if !swept && index % GROUP == 0 {
                    let begin = Instant::now();
                    swept = collector.sweep();
                    slices.push(micros(begin));
                }
            });
            collector.end_close(TargetId(0), &mut harvest);
            let begin = Instant::now();
            collector.begin_close(TargetId(0), &mut harvest);
            begins.push(micros(begin));
        }
        let begin = Instant::now();
        collector.end_close(TargetId(0), &mut harvest);
        let stop = micros(begin);
        slices.sort_by(f64::total_cmp);
        begins.sort_by(f64::total_cmp);
        let at = |share: f64| slices[((slices.len() - 1) as f64 * share) as usize];
        println!(
            "  {zipf}: {} slices, p50 {:.1}, p99 {:.1}, p99.9 {:.1}, longest {:.1}; begin, median {:.1}; at once {stop:.0}",
            slices.len(),
            at(0.5),
            at(0.99),
            at(0.999),
            at(1.0),
            begins[begins.len() / 2],
        );
    }
}

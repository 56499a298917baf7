//! What a capture costs a memcached that is busy, with and without a capture beside it: throughput of a closed loop, then processor
//! time and response times at a fixed rate of half of that.
//!
//! `cargo bench --bench overhead` starts Debian's memcached in a network namespace of its own (root), drives it from another, and
//! puts every capture between two runs without: machines drift, and a comparison with a run of some minutes ago shows the drift.
//! Ratios; medians, with least and most. A run is as long as memtap's interval is by default, so that one interval's close and
//! report are in it. memcached has the first processor for itself; the client and whoever captures share the second.
//!
//! The floor is a ring as memtap opens it, in a process of its own, of whose blocks only the number of packets is read: no capture
//! by a packet ring costs the server less.
//!
//!     cargo bench --bench overhead -- --rounds 5 --seconds 10
//!
//! `--only A,B` measures some captures, `--value-bytes N` one size of values, `--rate N` sets the fixed rate, in requests a second.

#![expect(clippy::print_stdout, reason = "a table is what this program is for")]

#[path = "support/captures.rs"]
mod captures;
#[path = "support/counted.rs"]
mod counted;
#[path = "support/figures.rs"]
mod figures;
#[path = "support/load.rs"]
mod load;
#[path = "../tests/support/netns.rs"]
mod netns;
#[path = "support/programs.rs"]
mod programs;
#[path = "support/raw.rs"]
mod raw;
#[expect(dead_code, reason = "each bench takes what it needs")]
mod support;

use captures::{Capture, Seen};
use figures::{Spread, percentile};
use load::{CONNECTIONS, Driven, Load};
use netns::{Pair, SERVER};
use programs::{Running, is_installed};
use raw::{pin, thread_time};
use std::process::Command;
use std::thread;
use std::time::Duration;
use support::{argument, give_up, is_bench, wrong_usage};

/// Where memcached runs, and where everybody else does.
const SERVER_PROCESSOR: usize = 0;
const CLIENT_PROCESSOR: usize = 1;

/// The largest values of which memcached's usual 64 MB hold one for each key, so that every get is a hit.
const VALUE_BYTES_MAX: u64 = 32_000;

/// The fixed rate as a share of what the closed loop reaches: low enough that a capture does not change whether it is reached.
const FIXED_SHARE: f64 = 0.5;

/// Pause after a capture has ended, because freeing its memory may go on: a virtual machine that gives memory back to its host begins with
/// that two seconds later (`PAGE_REPORTING_DELAY`, mm/page_reporting.c).
const PAUSE: Duration = Duration::from_secs(4);

/// What precedes every run under the same load and is not measured. Without it the 99th percentile was 3 ms with a capture and 12 to 20 ms
/// without, since the runs without came behind a longer pause.
const WARM_UP: Duration = Duration::from_millis(500);

/// After this time nothing waits in a ring any more: memtap's retire timeout is 60 ms.
const DRAIN: Duration = Duration::from_millis(150);

/// Processor time of those who take part, microseconds a request.
#[derive(Clone, Copy)]
struct Cost {
    server: f64,
    client: f64,
    capture: f64,
}

impl Cost {
    fn all(&self) -> f64 {
        self.server + self.client + self.capture
    }
}

/// One run of the load.
#[derive(Clone, Copy)]
struct Run {
    /// All that a capture could see, those of the warm-up as well.
    requests: u64,
    /// Requests a second.
    rate: f64,
    cost: Cost,
    /// Median and 99th percentile of the response times in microseconds, where they were measured.
    response_micros: [f64; 2],
}

/// A run with a capture, and those without before and after it.
struct Sandwich {
    before: Run,
    with: Run,
    after: Run,
    seen: Seen,
}

impl Sandwich {
    /// Without a capture, as far as the drift between the two can be told.
    fn without(&self, figure: impl Fn(&Run) -> f64) -> f64 {
        (figure(&self.before) + figure(&self.after)) / 2.0
    }

    fn ratio(&self, figure: impl Fn(&Run) -> f64) -> f64 {
        figure(&self.with) / self.without(figure)
    }

    /// What the ratio of two runs is when neither has a capture: nothing less can be told from a ratio.
    fn noise(&self, figure: impl Fn(&Run) -> f64) -> f64 {
        figure(&self.after) / figure(&self.before)
    }
}

/// A memcached with values of one size, its client, and the captures to put beside it.
struct Bench {
    // Dropped before the namespaces that they are in.
    load: Load,
    server: Running,
    pair: Pair,
    captures: Vec<&'static Capture>,
    rounds: usize,
    length: Duration,
    pause: Duration,
}

impl Bench {
    /// Drives the load as fast as answers come, or at a rate.
    fn drive(&mut self, rate: Option<f64>, length: Duration) -> Driven {
        match rate {
            None => self.load.run(length),
            Some(rate) => self.load.run_at(rate, length),
        }
    }

    /// A run, with the warm-up before it.
    fn run(&mut self, rate: Option<f64>, capture: Option<&Running>) -> Run {
        let warm_up = self.drive(rate, WARM_UP.min(self.length));
        thread::sleep(DRAIN);
        let time = |capture: Option<&Running>| capture.map_or(Duration::ZERO, Running::processor_time);
        let before = [self.server.processor_time(), thread_time(), time(capture)];
        let Driven { requests, elapsed, mut response_micros } = self.drive(rate, self.length);
        let client_after = thread_time();
        // What waits in the ring belongs to this run.
        thread::sleep(DRAIN);
        let after = [self.server.processor_time(), client_after, time(capture)];
        let micros = |at: usize| after[at].saturating_sub(before[at]).as_secs_f64() * 1e6 / requests as f64;
        Run {
            requests: warm_up.requests + requests,
            rate: requests as f64 / elapsed.as_secs_f64(),
            cost: Cost { server: micros(0), client: micros(1), capture: micros(2) },
            response_micros: [50.0, 99.0].map(|percent| percentile(&mut response_micros, percent)),
        }
    }

    /// Every capture between two runs without, in every round, and the next round the other way round.
    fn measure(&mut self, rate: Option<f64>) -> Vec<Vec<Sandwich>> {
        // The first run after a pause, or after another kind of load, is not like those that follow.
        self.run(rate, None);
        let captures = self.captures.clone();
        let mut measured: Vec<Vec<Sandwich>> = captures.iter().map(|_| Vec::new()).collect();
        for round in 0..self.rounds {
            let mut order: Vec<usize> = (0..captures.len()).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            let mut before = self.run(rate, None);
            for at in order {
                let running = captures[at].start(&self.pair);
                let with = self.run(rate, Some(&running));
                let seen = captures[at].end(running);
                thread::sleep(self.pause);
                let after = self.run(rate, None);
                measured[at].push(Sandwich { before, with, after, seen });
                before = after;
            }
        }
        measured
    }

    fn print_closed(&self, measured: &[Vec<Sandwich>]) {
        println!(
            "\nclosed loop, one request and one answer on each connection at a time; without: {:.0} requests a second",
            rate_without(measured)
        );
        println!(
            "| capture | throughput | server's processor time a request | capture's own, microseconds a request | packets seen a \
             request | packets lost |"
        );
        println!("| --- | --- | --- | --- | --- | --- |");
        println!(
            "| none, the run after to the one before | {:.3} | {:.3} | - | - | - |",
            noise(measured, |run| run.rate),
            noise(measured, |run| run.cost.server)
        );
        for (capture, measured) in self.captures.iter().zip(measured) {
            println!(
                "| {} | {:.3} | {:.3} | {:.3} | {} |",
                capture.title,
                spread(measured, |run| run.ratio(|run| run.rate)),
                spread(measured, |run| run.ratio(|run| run.cost.server)),
                spread(measured, |run| run.with.cost.capture),
                seen(measured)
            );
        }
        println!("goal for throughput: memtap at least 0.97, requests only at least 0.99");
    }

    fn print_fixed(&self, rate: f64, measured: &[Vec<Sandwich>]) {
        let share = |run: &Run| 100.0 * (1.0 - run.rate / rate).max(0.0);
        println!(
            "\nfixed rate of {rate:.0} requests a second, sent whether answers come or not; without: {:.1} us of the server a request",
            spread_without(measured, |run| run.cost.server)
        );
        println!(
            "| capture | server's processor time a request | server, client and capture together | capture's own, microseconds a \
             request | packets seen a request | packets lost | p50, us, with / without | p99, us, with / without | rate missed by, %, with \
             / without |"
        );
        println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
        println!(
            "| none, the run after to the one before | {:.3} | {:.3} | - | - | - | - | - | - |",
            noise(measured, |run| run.cost.server),
            noise(measured, |run| run.cost.all())
        );
        for (capture, measured) in self.captures.iter().zip(measured) {
            let both = |figure: &dyn Fn(&Run) -> f64, digits: usize| {
                let with = spread(measured, |run| figure(&run.with));
                let without = spread(measured, |run| run.without(figure));
                format!("{with:.digits$} / {without:.digits$}")
            };
            println!(
                "| {} | {:.3} | {:.3} | {:.3} | {} | {} | {} | {} |",
                capture.title,
                spread(measured, |run| run.ratio(|run| run.cost.server)),
                spread(measured, |run| run.ratio(|run| run.cost.all())),
                spread(measured, |run| run.with.cost.capture),
                seen(measured),
                both(&|run| run.response_micros[0], 0),
                both(&|run| run.response_micros[1], 0),
                both(&share, 1)
            );
        }
        println!(
            "response times from when a request was due, so that whatever holds up the client counts, to when its answer was read"
        );
    }
}

fn spread(measured: &[Sandwich], figure: impl Fn(&Sandwich) -> f64) -> Spread {
    Spread::of(measured.iter().map(figure))
}

/// Of all runs without a capture that stand beside one.
fn spread_without(measured: &[Vec<Sandwich>], figure: impl Fn(&Run) -> f64) -> Spread {
    Spread::of(measured.iter().flatten().map(|run| run.without(&figure)))
}

fn noise(measured: &[Vec<Sandwich>], figure: impl Fn(&Run) -> f64) -> Spread {
    Spread::of(measured.iter().flatten().map(|run| run.noise(&figure)))
}

fn rate_without(measured: &[Vec<Sandwich>]) -> Spread {
    spread_without(measured, |run| run.rate)
}

/// Two columns. Answers are packets as well, and long ones are cut into several where the interface does not do that.
fn seen(measured: &[Sandwich]) -> String {
    let packets = spread(measured, |run| run.seen.packets as f64 / run.with.requests as f64);
    format!("{:.2} | {}", packets.median, measured.iter().map(|run| run.seen.lost).sum::<u64>())
}

/// memcached on its own processor.
fn memcached(pair: &Pair) -> Running {
    let start = || {
        pin(SERVER_PROCESSOR);
        let mut command: Command = pair.server.command("memcached");
        command.args(["-u", "nobody", "-l", SERVER, "-p", "11211", "-U", "0", "-t", "1"]);
        Running::start("memcached", &mut command)
    };
    // A process begins where the thread was that started it.
    thread::scope(|scope| scope.spawn(start).join()).expect("memcached starts")
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(counted::ARGUMENT) {
        return counted::run(&arguments.next().expect("the name of an interface follows"));
    }
    // `cargo test` runs every bench once, to see that it can.
    let quick = !is_bench();
    let rounds = argument("rounds", if quick { 1 } else { 5 }).max(1) as usize;
    let length = match argument("seconds", if quick { 0 } else { 10 }) {
        0 => Duration::from_millis(100),
        seconds => Duration::from_secs(seconds),
    };
    let pause = if quick { Duration::ZERO } else { PAUSE };
    let (value_bytes, wanted_rate) = (argument("value-bytes", 0), argument("rate", 0));
    if value_bytes > VALUE_BYTES_MAX {
        wrong_usage(&format!("--value-bytes {value_bytes}: allowed: 1 to {VALUE_BYTES_MAX}"));
    }
    let sizes: &[u64] = match value_bytes {
        0 if quick => &[100],
        0 => &[100, 4096],
        _ => &[value_bytes],
    };
    let captures = captures::chosen(quick);
    if !is_installed("memcached") {
        give_up(
            "there is no memcached on the search path, which is what is measured (Debian's package memcached)",
        );
    }
    if captures.is_empty() {
        give_up("none of the captures that are wanted is there");
    }
    pin(CLIENT_PROCESSOR);
    for &value_bytes in sizes {
        let pair = Pair::new();
        let server = memcached(&pair);
        let address = format!("{SERVER}:11211").parse().expect("an address");
        let value_bytes = usize::try_from(value_bytes).expect("it was compared with the greatest");
        let load = pair.client.run(|| Load::open(address, value_bytes));
        let captures = captures.clone();
        let mut bench = Bench { load, server, pair, captures, rounds, length, pause };
        println!(
            "\nvalues of {value_bytes} bytes, {CONNECTIONS} connections, rounds: {rounds}; ratios to the runs without"
        );
        let closed = bench.measure(None);
        bench.print_closed(&closed);
        let rate = match wanted_rate {
            0 => FIXED_SHARE * rate_without(&closed).median,
            rate => rate as f64,
        };
        let fixed = bench.measure(Some(rate));
        bench.print_fixed(rate, &fixed);
    }
}

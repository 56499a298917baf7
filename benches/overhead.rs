//! What a capture costs a memcached that is busy: throughput of a closed loop, and the server's processor time per request, with
//! and without a capture beside it.
//!
//! `cargo bench --bench overhead` starts Debian's memcached in a network namespace of its own (root), drives it from another, and
//! puts every variant between two runs without: machines drift, and a comparison with a run of some minutes ago shows the drift.
//! Ratios; medians, with least and most. A run is as long as memtap's interval is by default, so that one interval's close and
//! report are in it. `--rounds N`, `--seconds N` and `--only NAME` (a variant) do less.

#![expect(clippy::print_stdout, reason = "a table is what this program is for")]

#[path = "../tests/support/netns.rs"]
mod netns;
#[path = "support/raw.rs"]
mod raw;
#[expect(dead_code, reason = "each bench takes what it needs")]
mod support;

use netns::{Pair, SERVER};
use raw::pin;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use support::{argument, is_bench, text_argument};

const CONNECTIONS: usize = 16;
const KEYS: usize = 1000;

/// A program that is ended with its owner, by its id.
struct Running(Child);

impl Running {
    /// Processor time so far of it and of the programs that it started (tshark has another one capture); zero when it has ended.
    fn processor_time(&self) -> Duration {
        processor_time(self.0.id())
    }
}

/// Of all threads of a process, and of its children.
fn processor_time(process: u32) -> Duration {
    let tasks = || fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let nanos = tasks().filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    let children = tasks().filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let children: Vec<u32> = children
        .flat_map(|text| text.split(' ').filter_map(|id| id.trim().parse().ok()).collect::<Vec<_>>())
        .collect();
    Duration::from_nanos(nanos.sum()) + children.into_iter().map(processor_time).sum::<Duration>()
}

impl Drop for Running {
    fn drop(&mut self) {
        // Politely, so that memtap's last report costs what it costs; already gone is fine.
        let _ = Command::new("kill").args(["-INT", &self.0.id().to_string()]).status();
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline && matches!(self.0.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn memcached(pair: &Pair) -> Running {
    let mut command = pair.server.command("taskset");
    command.args(["-c", "0", "memcached", "-u", "nobody", "-l", SERVER, "-p", "11211", "-U", "0", "-t", "1"]);
    Running(command.spawn().expect("the bench needs memcached and taskset"))
}

/// The connections of the load, with their keys set.
struct Load {
    streams: Vec<TcpStream>,
    answer_bytes: usize,
    buffer: Vec<u8>,
    next_key: usize,
}

impl Load {
    fn open(pair: &Pair, value_bytes: usize) -> Load {
        let address: SocketAddr = format!("{SERVER}:11211").parse().expect("an address");
        let deadline = Instant::now() + Duration::from_secs(10);
        let connect = || loop {
            match TcpStream::connect(address) {
                Ok(stream) => break stream,
                Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
                Err(error) => panic!("memcached does not answer: {error}"),
            }
        };
        let mut streams: Vec<TcpStream> = pair.client.run(|| (0..CONNECTIONS).map(|_| connect()).collect());
        for stream in &streams {
            stream.set_nodelay(true).expect("a TCP socket");
        }
        let value = "v".repeat(value_bytes);
        let mut stored = [0; 8];
        for key in 0..KEYS {
            let command = format!("set key:{key:06} 0 0 {value_bytes}\r\n{value}\r\n");
            streams[0].write_all(command.as_bytes()).expect("memcached reads");
            streams[0].read_exact(&mut stored).expect("memcached answers");
            assert_eq!(&stored, b"STORED\r\n");
        }
        let answer_bytes =
            format!("VALUE key:000000 0 {value_bytes}\r\n").len() + value_bytes + "\r\nEND\r\n".len();
        Load { streams, answer_bytes, buffer: vec![0; answer_bytes], next_key: 0 }
    }

    /// Asks on every connection and reads every answer, over and over; says how many there were.
    fn run(&mut self, length: Duration) -> u64 {
        let (began, mut requests) = (Instant::now(), 0);
        while began.elapsed() < length {
            for stream in &mut self.streams {
                self.next_key = (self.next_key + 7) % KEYS;
                let request = format!("get key:{:06}\r\n", self.next_key);
                stream.write_all(request.as_bytes()).expect("memcached reads");
            }
            for stream in &mut self.streams {
                stream.read_exact(&mut self.buffer[..self.answer_bytes]).expect("memcached answers");
                requests += 1;
            }
        }
        requests
    }
}

#[derive(Clone, Copy)]
struct Variant {
    name: &'static str,
    program: &'static [&'static str],
    memtap: bool,
}

const VARIANTS: [Variant; 4] = [
    Variant { name: "memtap", program: &["-i", "veth0"], memtap: true },
    Variant {
        name: "memtap, requests only",
        program: &["-i", "veth0", "--load-ladder", "requests"],
        memtap: true,
    },
    Variant {
        name: "tcpdump -w /dev/null",
        program: &["tcpdump", "-i", "veth0", "-s", "0", "-B", "65536", "-w", "/dev/null", "port 11211"],
        memtap: false,
    },
    Variant {
        name: "tshark -w /dev/null",
        program: &["tshark", "-q", "-i", "veth0", "-B", "64", "-w", "/dev/null", "-f", "port 11211"],
        memtap: false,
    },
];

fn start(pair: &Pair, variant: &Variant) -> Running {
    let mut command = if variant.memtap {
        let mut command = pair.server.command(env!("CARGO_BIN_EXE_memtap"));
        command.args(["run", "-o", "jsonl", "-q"]).args(variant.program);
        command
    } else {
        let mut command = pair.server.command(variant.program[0]);
        command.args(&variant.program[1..]);
        command
    };
    let child =
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program is installed");
    // Until its ring is there, and the tables of memtap have their memory.
    thread::sleep(Duration::from_millis(1500));
    Running(child)
}

/// Requests a second; the server's and the capture's processor time, microseconds a request.
#[derive(Clone, Copy)]
struct Run {
    rate: f64,
    server_micros: f64,
    capture_micros: f64,
}

fn run(load: &mut Load, server: &Running, capture: Option<&Running>, length: Duration) -> Run {
    let time = |capture: Option<&Running>| capture.map_or(Duration::ZERO, Running::processor_time);
    let (server_before, capture_before, began) = (server.processor_time(), time(capture), Instant::now());
    let requests = load.run(length) as f64;
    let elapsed = began.elapsed().as_secs_f64();
    // What waits in the ring belongs to this run.
    thread::sleep(Duration::from_millis(150));
    Run {
        rate: requests / elapsed,
        server_micros: (server.processor_time() - server_before).as_secs_f64() * 1e6 / requests,
        capture_micros: time(capture).saturating_sub(capture_before).as_secs_f64() * 1e6 / requests,
    }
}

fn shown(values: impl Iterator<Item = f64>, digits: usize) -> String {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let (median, least, most) = (values[values.len() / 2], values[0], values[values.len() - 1]);
    format!("{median:.digits$} [{least:.digits$} to {most:.digits$}]")
}

fn main() {
    // `cargo test` runs every bench once, to see that it can.
    let quick = !is_bench();
    let rounds = argument("rounds", if quick { 1 } else { 5 }) as usize;
    let length = match argument("seconds", if quick { 0 } else { 10 }) {
        0 => Duration::from_millis(100),
        seconds => Duration::from_secs(seconds),
    };
    let only = text_argument("only");
    let wanted = |variant: &&Variant| only.as_ref().is_none_or(|only| only == variant.name);
    let variants: Vec<Variant> =
        VARIANTS.iter().filter(wanted).take(if quick { 2 } else { VARIANTS.len() }).copied().collect();
    println!(
        "closed loop, {CONNECTIONS} connections, one request and one answer each at a time; ratios to the runs without"
    );
    for value_bytes in [100, 4096] {
        let pair = Pair::new();
        let server = memcached(&pair);
        pin(1);
        let mut load = Load::open(&pair, value_bytes);
        run(&mut load, &server, None, length);
        let mut ratios: Vec<Vec<(f64, f64, f64)>> = variants.iter().map(|_| Vec::new()).collect();
        let mut rates = Vec::new();
        for round in 0..rounds {
            let mut order: Vec<usize> = (0..variants.len()).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            let mut before = run(&mut load, &server, None, length);
            for at in order {
                let capture = start(&pair, &variants[at]);
                let with = run(&mut load, &server, Some(&capture), length);
                drop(capture);
                let after = run(&mut load, &server, None, length);
                let rate = (before.rate + after.rate) / 2.0;
                let server_micros = (before.server_micros + after.server_micros) / 2.0;
                rates.push(rate);
                ratios[at].push((with.rate / rate, with.server_micros / server_micros, with.capture_micros));
                before = after;
            }
        }
        println!(
            "\nvalues of {value_bytes} bytes; without: {} requests a second",
            shown(rates.into_iter(), 0)
        );
        println!(
            "| capture | throughput | server's processor time a request | capture's own, microseconds a request |"
        );
        println!("| --- | --- | --- | --- |");
        for (variant, ratios) in variants.iter().zip(&ratios) {
            println!(
                "| {} | {} | {} | {} |",
                variant.name,
                shown(ratios.iter().map(|ratio| ratio.0), 3),
                shown(ratios.iter().map(|ratio| ratio.1), 3),
                shown(ratios.iter().map(|ratio| ratio.2), 3)
            );
        }
    }
}

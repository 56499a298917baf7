//! What hostile traffic costs: traces that make the most work for their packets, fed to the whole machine.
//!
//! `cost TRACE PACKETS` feeds that many packets and tells the resident memory after a tenth of them and at the end;
//! `tests/cost.sh` counts the instructions of [`feed`] for each trace under callgrind and compares them with those of `clean`.
//! Without arguments (`cargo bench`, `cargo test --benches`) every trace is fed a few packets.

#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use memtap::capture::{LinkType, Packet};
use memtap::model::Timestamp;
use memtap::network::Network;
use memtap::pipeline::{Pipeline, PipelineLimits, TargetMap, TargetMatch};
use std::time::Duration;

/// Builds the packets of a trace one after the other.
struct Wire {
    pipeline: Pipeline,
    now: Timestamp,
    frame: Vec<u8>,
    sent: u64,
    observations: u64,
}

/// The one function whose instructions are counted.
#[inline(never)]
fn feed(pipeline: &mut Pipeline, packet: &Packet<'_>, observations: &mut u64) {
    pipeline.handle_packet(packet, &mut |_, _| *observations += 1);
}

impl Wire {
    fn new() -> Wire {
        let target = TargetMatch { network: Network::Any, port: 11211, tcp: true, udp: true };
        Wire {
            pipeline: Pipeline::new(TargetMap::new(vec![target]), PipelineLimits::default()),
            now: Timestamp::from_parts(1_700_000_000, 0),
            frame: Vec::new(),
            sent: 0,
            observations: 0,
        }
    }

    /// A TCP segment of a client, known by its number, or to it.
    fn segment(&mut self, client: u32, to_client: bool, flags: u8, seq: u32, ack: u32, payload: &[u8]) {
        let [a, b, c, d] = client.to_be_bytes();
        let (address, port) = ([10, a & 0x7f, b, c], 20_000 + u16::from(d));
        let server = [192, 168, 0, 1];
        self.frame.clear();
        self.frame.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0]);
        self.frame.extend((40 + payload.len() as u16).to_be_bytes());
        self.frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
        let ends = [(address, port), (server, 11211)];
        let [(source, source_port), (destination, destination_port)] =
            if to_client { [ends[1], ends[0]] } else { ends };
        self.frame.extend(source);
        self.frame.extend(destination);
        self.frame.extend(source_port.to_be_bytes());
        self.frame.extend(destination_port.to_be_bytes());
        self.frame.extend(seq.to_be_bytes());
        self.frame.extend(ack.to_be_bytes());
        self.frame.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        self.frame.extend(payload);
        self.now = self.now.plus(Duration::from_micros(2));
        let wire_bytes = self.frame.len() as u32;
        let packet = Packet { timestamp: self.now, link: LinkType::Ethernet, bytes: &self.frame, wire_bytes };
        feed(&mut self.pipeline, &packet, &mut self.observations);
        self.sent += 1;
    }

    fn connect(&mut self, client: u32) {
        self.segment(client, false, SYN, 999, 0, &[]);
        self.segment(client, true, SYN | ACK, 1999, 1000, &[]);
        self.segment(client, false, ACK, 1000, 2000, &[]);
    }
}

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Connections of the traces that have many.
const CLIENTS: u32 = 64;

type Trace = (&'static str, fn(&mut Wire, u64));

const TRACES: [Trace; 13] = [
    ("clean", clean),
    ("holes", holes),
    ("one_byte", one_byte),
    ("overlaps", overlaps),
    ("garbage", garbage),
    ("lookalikes", lookalikes),
    ("unanswered", unanswered),
    ("reversed_values", reversed_values),
    ("endless_list", endless_list),
    ("many_lines", many_lines),
    ("waiting_answers", waiting_answers),
    ("syn_flood", syn_flood),
    ("tuples", tuples),
];

/// Gets and hits of a hundred bytes, in turn, on a few connections.
fn clean(wire: &mut Wire, packets: u64) {
    (0..CLIENTS).for_each(|client| wire.connect(client));
    let request = b"get user:000123:profile\r\n";
    let answer = [&b"VALUE user:000123:profile 0 100\r\n"[..], &[b'v'; 100], b"\r\nEND\r\n"].concat();
    let mut round = 0;
    while wire.sent < packets {
        for client in 0..CLIENTS {
            let seq = 1000 + round * request.len() as u32;
            let ack = 2000 + round * answer.len() as u32;
            wire.segment(client, false, ACK, seq, ack, request);
            wire.segment(client, true, ACK, ack, seq + request.len() as u32, &answer);
        }
        round += 1;
    }
}

/// Every segment leaves a hole before it that nothing fills.
fn holes(wire: &mut Wire, packets: u64) {
    (0..CLIENTS).for_each(|client| wire.connect(client));
    let mut seq = 1000u32;
    while wire.sent < packets {
        seq = seq.wrapping_add(200);
        for client in 0..CLIENTS {
            wire.segment(client, false, ACK, seq, 2000, b"get user:000123:profile\r\n");
        }
    }
}

/// One byte in each segment, in the order that is worst: pairs exchanged.
fn one_byte(wire: &mut Wire, packets: u64) {
    (0..CLIENTS).for_each(|client| wire.connect(client));
    let text = b"get user:000123:profile\r\n";
    let mut at = 0u32;
    while wire.sent < packets {
        for client in 0..CLIENTS {
            for position in [at + 1, at] {
                let byte = text[position as usize % text.len()];
                wire.segment(client, false, ACK, 1000 + position, 2000, &[byte]);
            }
        }
        at += 2;
    }
}

/// Early segments that overlap each other in all ways.
fn overlaps(wire: &mut Wire, packets: u64) {
    (0..CLIENTS).for_each(|client| wire.connect(client));
    let payload = [b'x'; 200];
    let mut step = 0u32;
    while wire.sent < packets {
        for client in 0..CLIENTS {
            let seq = 1100 + step / 16 * 300 + step.wrapping_mul(7919) % 1000;
            wire.segment(client, false, ACK, seq, 2000, &payload[..50 + (step % 150) as usize]);
        }
        step += 1;
    }
}

/// Bytes that are no protocol, on connections without a SYN.
fn garbage(wire: &mut Wire, packets: u64) {
    let mut state = 1u64;
    let mut payload = [0u8; 200];
    let mut seq = 1000;
    while wire.sent < packets {
        for client in 0..CLIENTS {
            for byte in &mut payload {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                *byte = state as u8;
            }
            wire.segment(client, false, ACK, seq, 2000, &payload);
        }
        seq += 200;
    }
}

/// With framing lost, segments that nearly begin with a request, of a client that seems idle.
fn lookalikes(wire: &mut Wire, packets: u64) {
    let payload = [&b"get "[..], &b"kkkkkkk ".repeat(22), b"\x01\r\nget k\r\n"].concat();
    let mut seq = 1000;
    while wire.sent < packets {
        for client in 0..CLIENTS {
            wire.segment(client, false, ACK, seq, 2000, &payload);
        }
        seq += payload.len() as u32;
    }
}

/// Quiet requests that are never answered, and answers that fit none of them.
fn unanswered(wire: &mut Wire, packets: u64) {
    (0..CLIENTS).for_each(|client| wire.connect(client));
    let (request, answer) = (b"mg key v q Oaaaa\r\n", b"VA 1 Obbbb\r\nx\r\n");
    let mut round = 0;
    while wire.sent < packets {
        for client in 0..CLIENTS {
            let seq = 1000 + round * request.len() as u32;
            wire.segment(client, false, ACK, seq, 2000 + round * answer.len() as u32, request);
            wire.segment(
                client,
                true,
                ACK,
                2000 + round * answer.len() as u32,
                seq + request.len() as u32,
                answer,
            );
        }
        round += 1;
    }
}

/// A get of many keys whose hits come in the reverse order.
fn reversed_values(wire: &mut Wire, packets: u64) {
    (0..CLIENTS).for_each(|client| wire.connect(client));
    let keys: Vec<String> = (0..100).map(|key| format!("k{key}")).collect();
    let request = format!("get {}\r\n", keys.join(" "));
    let (mut seq, mut ack) = (1000u32, 2000u32);
    while wire.sent < packets {
        let next = seq.wrapping_add(request.len() as u32);
        for client in 0..CLIENTS {
            wire.segment(client, false, ACK, seq, ack, request.as_bytes());
        }
        for key in keys.iter().rev() {
            let answer = format!("VALUE {key} 0 1\r\nx\r\n");
            for client in 0..CLIENTS {
                wire.segment(client, true, ACK, ack, next, answer.as_bytes());
            }
            ack = ack.wrapping_add(answer.len() as u32);
        }
        for client in 0..CLIENTS {
            wire.segment(client, true, ACK, ack, next, b"END\r\n");
        }
        ack = ack.wrapping_add(5);
        seq = next;
    }
}

/// A key list without end: two keys in each segment.
fn endless_list(wire: &mut Wire, packets: u64) {
    wire.connect(0);
    wire.segment(0, false, ACK, 1000, 2000, b"get");
    let mut seq = 1003u32;
    while wire.sent < packets {
        wire.segment(0, false, ACK, seq, 2000, b" key1 key2");
        seq = seq.wrapping_add(10);
    }
}

/// Segments full of the shortest lines. The work is that of their lines, of which a segment holds 700.
fn many_lines(wire: &mut Wire, packets: u64) {
    (0..CLIENTS).for_each(|client| wire.connect(client));
    let payload = b"x\n".repeat(700);
    let mut seq = 1000u32;
    while wire.sent < packets {
        for client in 0..CLIENTS {
            wire.segment(client, false, ACK, seq, 2000, &payload);
        }
        seq = seq.wrapping_add(payload.len() as u32);
    }
}

/// Answers that acknowledge requests which do not come.
fn waiting_answers(wire: &mut Wire, packets: u64) {
    (0..CLIENTS).for_each(|client| wire.connect(client));
    let mut round = 0u32;
    while wire.sent < packets {
        for client in 0..CLIENTS {
            wire.segment(client, true, ACK, 2000 + round * 5, 1000 + (round + 1) * 100, b"END\r\n");
        }
        round += 1;
    }
}

/// SYNs of ever new clients.
fn syn_flood(wire: &mut Wire, packets: u64) {
    while wire.sent < packets {
        wire.segment(wire.sent as u32, false, SYN, 999, 0, &[]);
    }
}

/// Requests of ever new clients, far more than the table holds: each pushes another out.
fn tuples(wire: &mut Wire, packets: u64) {
    while wire.sent < packets {
        wire.segment(wire.sent as u32, false, ACK, 1000, 2000, b"get user:000123:profile\r\n");
    }
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

fn run(trace: Trace, packets: u64) {
    let (name, generate) = trace;
    let mut wire = Wire::new();
    generate(&mut wire, packets / 10);
    let early = resident_kib();
    wire.sent = 0;
    generate(&mut wire, packets);
    let late = resident_kib();
    println!(
        "{name}: {packets} packets, {} observations, {early} KiB after a tenth, {late} KiB at the end",
        wire.observations
    );
}

fn main() {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    match &arguments[..] {
        [name, packets] => {
            let trace = TRACES.iter().find(|trace| trace.0 == name).expect("a trace of that name");
            run(*trace, packets.parse().expect("a number of packets"));
        }
        _ => TRACES.iter().for_each(|trace| run(*trace, 2_000)),
    }
}

//! Targets that speak: segments and datagrams built from a script of operations, so that mutations stay inside of conversations.

use super::Input;
use super::stage::{SERVER_PORT, Seen, Stage};
use memtap::anomaly::Anomaly;
use memtap::capture::{Datagram, Segment, TcpFlags};
use memtap::model::{Endpoint, Timestamp};
use std::time::Duration;

const START: Timestamp = Timestamp::from_parts(1_700_000_000, 0);
const STEP: Duration = Duration::from_micros(100);

/// Greatest number of operations that are read from one input.
const OPERATIONS_MAX: usize = 400;

fn server() -> Endpoint {
    Endpoint::from_ipv4([10, 9, 0, 1], SERVER_PORT)
}

fn client(number: u8) -> Endpoint {
    match number {
        3 => Endpoint::from_ipv6([0x20; 16], 40_003),
        // A client whose own port is the server's.
        4 => Endpoint::from_ipv4([10, 0, 0, 4], SERVER_PORT),
        number => Endpoint::from_ipv4([10, 0, 0, number], 40_000 + u16::from(number)),
    }
}

/// Any operations over the segments of five flows: sequence numbers, acknowledgements, flags, times and captured lengths are
/// the input's.
///
/// An operation: direction and flags, flow and time, distance of the sequence number, distance of the acknowledgement, captured
/// share, two bytes of length, payload.
pub fn reassembly(data: &[u8]) {
    let mut input = Input::new(data);
    let mut stage = Stage::new();
    // Starts just before the wrap.
    let mut next = [[0xffff_ff00_u32; 2]; 8];
    let mut now = START;
    for _ in 0..OPERATIONS_MAX {
        if input.is_empty() {
            break;
        }
        let (what, which) = (input.byte(), input.byte());
        let (ahead, behind, captured) = (input.byte(), input.byte(), input.byte());
        let length = usize::from(input.word() % 4096);
        let payload = input.bytes(length);
        now = now.plus(Duration::from_micros(1 << (which >> 4)));
        let flow = usize::from(which & 7) % 5;
        let to_client = usize::from(what & 1);
        let flags = flags_of(what);
        let seq = next[flow][to_client].wrapping_add(distance(ahead));
        let ack = next[flow][1 - to_client].wrapping_add(distance(behind));
        // Most segments are captured whole.
        let kept =
            if captured < 224 { payload.len() } else { payload.len() * usize::from(captured & 31) / 32 };
        let (source, destination) =
            if to_client == 1 { (server(), client(flow as u8)) } else { (client(flow as u8), server()) };
        stage.segment(&Segment {
            timestamp: now,
            source,
            destination,
            seq,
            ack,
            flags,
            payload: &payload[..kept],
            payload_wire_bytes: payload.len() as u32,
        });
        let controls = u32::from(flags.has(TcpFlags::SYN)) + u32::from(flags.has(TcpFlags::FIN));
        let end = seq.wrapping_add(payload.len() as u32).wrapping_add(controls);
        if end.wrapping_sub(next[flow][to_client]) < 1 << 20 {
            next[flow][to_client] = end;
        }
        if which & 8 != 0 {
            stage.tick(now);
        }
    }
    stage.finish();
}

fn flags_of(what: u8) -> TcpFlags {
    let base = match what >> 1 & 31 {
        0..16 => TcpFlags::ACK.and(TcpFlags::PSH),
        16..20 => TcpFlags::ACK,
        20..23 => TcpFlags::SYN,
        23..26 => TcpFlags::SYN.and(TcpFlags::ACK),
        26..28 => TcpFlags::FIN.and(TcpFlags::ACK),
        28 => TcpFlags::RST,
        29 => TcpFlags::RST.and(TcpFlags::ACK),
        30 => TcpFlags::PSH,
        _ => TcpFlags(0x3f),
    };
    if what & 0x40 != 0 { base.and(TcpFlags::URG) } else { base }
}

/// Mostly 0; near misses in both directions; far ones.
fn distance(byte: u8) -> u32 {
    match byte {
        0..128 => 0,
        128..192 => u32::from(byte - 128),
        192..224 => u32::from(byte - 191).wrapping_neg(),
        224..240 => u32::from(byte - 223) * 1460,
        240..248 => (u32::from(byte - 239) * 1460).wrapping_neg(),
        _ => 1 << (byte - 248 + 24),
    }
}

/// One turn of a conversation.
#[derive(Clone, Copy)]
struct Turn<'a> {
    to_client: bool,
    lost: bool,
    twice: bool,
    early: bool,
    pieces: usize,
    payload: &'a [u8],
}

impl<'a> Turn<'a> {
    /// Direction and fate, two bytes of length, payload.
    fn read(input: &mut Input<'a>) -> Turn<'a> {
        let what = input.byte();
        let length = usize::from(input.word() % 4096);
        Turn {
            to_client: what & 1 != 0,
            lost: what & 0xe0 == 0xe0,
            twice: what & 0xe0 == 0xc0,
            early: what & 0xe0 == 0xa0,
            pieces: [1, 2, 7, usize::MAX][usize::from(what >> 1 & 3)],
            payload: input.bytes(length),
        }
    }
}

/// A conversation in the classic text protocol.
pub fn text(data: &[u8]) {
    converse(data);
}

/// A conversation in meta commands.
pub fn meta(data: &[u8]) {
    converse(data);
}

/// A conversation in the binary protocol.
pub fn binary(data: &[u8]) {
    converse(data);
}

/// One connection from its SYN on: turns in order, some of them lost, sent twice, too early, or in pieces. Where nothing went wrong, the
/// same turns in other pieces must give the same observations. An answer that began before its request is wrong only where a
/// segment begins with it, for then its acknowledgement tells.
fn converse(data: &[u8]) {
    let mut input = Input::new(data);
    let mut turns = Vec::new();
    while !input.is_empty() && turns.len() < OPERATIONS_MAX {
        turns.push(Turn::read(&mut input));
    }
    let (seen, clean) = run(&turns);
    let in_order = turns.iter().all(|turn| !turn.lost && !turn.twice && !turn.early);
    if clean && in_order {
        let cut: Vec<Turn<'_>> = turns.iter().map(|turn| Turn { pieces: 3, ..*turn }).collect();
        let (seen_cut, clean_cut) = run(&cut);
        assert!(clean_cut, "cuts did harm");
        assert_eq!(seen, seen_cut, "cuts changed the observations");
    }
}

/// What was observed, and whether nothing was wrong.
fn run(turns: &[Turn<'_>]) -> (Vec<Seen>, bool) {
    let mut wire = Wire { stage: Stage::new(), next: [1000, 5000], now: START };
    wire.send(false, TcpFlags::SYN, &[]);
    wire.send(true, TcpFlags::SYN.and(TcpFlags::ACK), &[]);
    wire.send(false, TcpFlags::ACK, &[]);
    let mut turns = turns.to_vec();
    for index in 1..turns.len() {
        if turns[index].early {
            turns.swap(index - 1, index);
        }
    }
    for turn in &turns {
        let piece = turn.payload.len().div_ceil(turn.pieces).max(1);
        for payload in turn.payload.chunks(piece) {
            let from = wire.next;
            if turn.lost {
                let own = usize::from(turn.to_client);
                wire.next[own] = wire.next[own].wrapping_add(payload.len() as u32);
                continue;
            }
            wire.send(turn.to_client, TcpFlags::ACK.and(TcpFlags::PSH), payload);
            if turn.twice {
                wire.next = from;
                wire.send(turn.to_client, TcpFlags::ACK.and(TcpFlags::PSH), payload);
            }
        }
    }
    let answered_early = wire.stage.was_answered_early();
    let (seen, tally, parser) = wire.stage.finish();
    let harmless = [Anomaly::UnmatchedRequest, Anomaly::UnmatchedResponse];
    let clean = !answered_early
        && tally.anomalies.iter().count() == 0
        && parser.iter().all(|(anomaly, _)| harmless.contains(&anomaly));
    (seen, clean)
}

struct Wire {
    stage: Stage,
    /// Next sequence number of [client, server].
    next: [u32; 2],
    now: Timestamp,
}

impl Wire {
    fn send(&mut self, to_client: bool, flags: TcpFlags, payload: &[u8]) {
        self.now = self.now.plus(STEP);
        let own = usize::from(to_client);
        let (source, destination) = if to_client { (server(), client(1)) } else { (client(1), server()) };
        self.stage.segment(&Segment {
            timestamp: self.now,
            source,
            destination,
            seq: self.next[own],
            ack: self.next[1 - own],
            flags,
            payload,
            payload_wire_bytes: payload.len() as u32,
        });
        let opens = u32::from(flags.has(TcpFlags::SYN));
        self.next[own] = self.next[own].wrapping_add(payload.len() as u32).wrapping_add(opens);
    }
}

/// Datagrams of four clients: direction and time, client and captured share, request id, number and total, length, payload.
pub fn udp(data: &[u8]) {
    let mut input = Input::new(data);
    let mut stage = Stage::new();
    let mut now = START;
    for identity in 0..OPERATIONS_MAX as u64 {
        if input.is_empty() {
            break;
        }
        let (what, which) = (input.byte(), input.byte());
        let (request_id, number, total) = (input.byte(), input.byte(), input.byte());
        let length = usize::from(input.word() % 2048);
        let mut payload = Vec::with_capacity(length + 8);
        // Small numbers as they are; the largest byte stands for the largest number.
        for field in [request_id, number, total, 0] {
            payload.extend(if field == 255 { u16::MAX } else { u16::from(field) }.to_be_bytes());
        }
        payload.extend(input.bytes(length));
        now = now.plus(Duration::from_micros(1 << (what >> 3)).min(Duration::from_secs(10)));
        let (source, destination) =
            if what & 1 != 0 { (server(), client(which & 3)) } else { (client(which & 3), server()) };
        let wire_bytes = payload.len() as u32;
        match which >> 5 {
            6 => payload.truncate(payload.len() / 2),
            7 => payload.truncate(usize::from(which & 7)),
            _ => {}
        }
        // Of two datagrams with one identity the second is a copy.
        let identity = if what & 2 != 0 { 0 } else { identity };
        stage.datagram(&Datagram {
            timestamp: now,
            source,
            destination,
            payload: &payload,
            payload_wire_bytes: wire_bytes,
            identity,
        });
    }
    stage.finish();
}

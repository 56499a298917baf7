//! Trap recordings derived from a clean one: what networks and capture points do to packets.
//!
//! Every variant keeps the truth of its base; what differs is what a passive listener is given to see. All are made by fixed
//! seeds, so a failure can be repeated. Input frames are plain Ethernet (no tags, no tunnels).

use super::scenario::Frame;
use memtap::model::Timestamp;
use std::collections::HashMap;
use std::time::Duration;

/// The server's port in the base recordings.
const SERVER_PORT: u16 = 11211;
const ETHERNET: usize = 14;

/// A small generator (xorshift64*, Vigna 2014): enough to choose victims.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn chance(&mut self, probability: f64) -> bool {
        ((self.next() >> 11) as f64) < probability * (1u64 << 53) as f64
    }

    pub fn below(&mut self, limit: usize) -> usize {
        ((u128::from(self.next()) * limit as u128) >> 64) as usize
    }
}

/// Offsets and fields of a plain Ethernet TCP frame.
#[derive(Clone)]
struct Tcp {
    version: u8,
    /// Where the TCP header begins.
    header: usize,
    /// Where the payload begins and ends.
    payload: std::ops::Range<usize>,
    source_port: u16,
    destination_port: u16,
    seq: u32,
    flags: u8,
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn put16(bytes: &mut [u8], at: usize, value: usize) {
    bytes[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes());
}

fn tcp(bytes: &[u8]) -> Option<Tcp> {
    let (version, header, end) = match be16(bytes, 12) {
        0x0800 if bytes[23] == 6 => {
            (4, ETHERNET + usize::from(bytes[14] & 15) * 4, ETHERNET + usize::from(be16(bytes, 16)))
        }
        0x86dd if bytes[20] == 6 => (6, 54, 54 + usize::from(be16(bytes, 18))),
        _ => return None,
    };
    let payload = header + usize::from(bytes[header + 12] >> 4) * 4;
    Some(Tcp {
        version,
        header,
        payload: payload..end,
        source_port: be16(bytes, header),
        destination_port: be16(bytes, header + 2),
        seq: be32(bytes, header + 4),
        flags: bytes[header + 13],
    })
}

/// The flow and direction of a frame, as bytes to key a map with.
fn stream_of(bytes: &[u8], tcp: &Tcp) -> Vec<u8> {
    let addresses = if tcp.version == 4 { 26..34 } else { 22..54 };
    [&bytes[addresses], &bytes[tcp.header..tcp.header + 4]].concat()
}

fn set_ip_length(bytes: &mut [u8], tcp: &Tcp, total: usize) {
    let length = if tcp.version == 4 { total - ETHERNET } else { total - 54 };
    let length = if length > 0xffff { 0 } else { length };
    put16(bytes, if tcp.version == 4 { 16 } else { 18 }, length);
}

fn with_bytes(frame: &Frame, bytes: Vec<u8>) -> Frame {
    let wire_bytes = bytes.len() as u32;
    Frame { timestamp: frame.timestamp, bytes, wire_bytes }
}

fn later(frame: &Frame, by: Duration) -> Frame {
    Frame { timestamp: frame.timestamp.plus(by), ..frame.clone() }
}

fn micros(count: u64) -> Duration {
    Duration::from_micros(count)
}

// --- loss, duplicates, order ---

/// Each frame is lost with this probability.
pub fn drop_random(frames: &[Frame], probability: f64, seed: u64) -> Vec<Frame> {
    let mut dice = Dice::new(seed);
    frames.iter().filter(|_| !dice.chance(probability)).cloned().collect()
}

/// 25 bursts of 3 to 200 frames are lost.
pub fn drop_bursts(frames: &[Frame], seed: u64) -> Vec<Frame> {
    let mut dice = Dice::new(seed);
    let mut lost = vec![false; frames.len()];
    for _ in 0..25 {
        let start = dice.below(frames.len());
        let length = [3, 20, 80, 200][dice.below(4)];
        lost.iter_mut().skip(start).take(length).for_each(|lost| *lost = true);
    }
    frames.iter().zip(lost).filter(|(_, lost)| !lost).map(|(frame, _)| frame.clone()).collect()
}

/// Every frame twice, back to back.
pub fn duplicate_adjacent(frames: &[Frame]) -> Vec<Frame> {
    frames.iter().flat_map(|frame| [frame.clone(), frame.clone()]).collect()
}

/// A second copy 150 µs later: two mirror sources.
pub fn duplicate_late(frames: &[Frame]) -> Vec<Frame> {
    let mut all: Vec<Frame> =
        frames.iter().cloned().chain(frames.iter().map(|frame| later(frame, micros(150)))).collect();
    all.sort_by_key(|frame| frame.timestamp);
    all
}

/// A second copy carries a VLAN tag.
pub fn duplicate_tagged(frames: &[Frame]) -> Vec<Frame> {
    frames
        .iter()
        .flat_map(|frame| {
            [frame.clone(), later(&with_bytes(frame, tagged(&frame.bytes, &[(0x8100, 123)])), micros(2))]
        })
        .collect()
}

/// A second copy has passed a router: other MAC addresses, TTL one less.
pub fn duplicate_routed(frames: &[Frame]) -> Vec<Frame> {
    let routed = |frame: &Frame| {
        let mut bytes = frame.bytes.clone();
        bytes[..12].copy_from_slice(&[2, 0x11, 0x11, 0x11, 0x11, 0x11, 2, 0x22, 0x22, 0x22, 0x22, 0x22]);
        if be16(&bytes, 12) == 0x0800 {
            bytes[22] -= 1;
        }
        later(&with_bytes(frame, bytes), micros(3))
    };
    frames.iter().flat_map(|frame| [frame.clone(), routed(frame)]).collect()
}

/// 2 % of the frames change places with one of the next three; the times stay in order.
pub fn reorder(frames: &[Frame], seed: u64) -> Vec<Frame> {
    let mut dice = Dice::new(seed);
    let mut frames = frames.to_vec();
    for first in 0..frames.len().saturating_sub(4) {
        if dice.chance(0.02) {
            let second = first + 1 + dice.below(3);
            frames.swap(first, second);
            let times = (frames[first].timestamp, frames[second].timestamp);
            (frames[second].timestamp, frames[first].timestamp) = times;
        }
    }
    frames
}

// --- visibility ---

/// The capture starts when this share of the frames has passed.
pub fn midstream(frames: &[Frame], share: f64) -> Vec<Frame> {
    frames[(frames.len() as f64 * share) as usize..].to_vec()
}

/// Only TCP to the server, or only from it.
pub fn one_way(frames: &[Frame], to_server: bool) -> Vec<Frame> {
    let wanted = |frame: &&Frame| {
        tcp(&frame.bytes).is_some_and(|tcp| {
            (if to_server { tcp.destination_port } else { tcp.source_port }) == SERVER_PORT
        })
    };
    frames.iter().filter(wanted).cloned().collect()
}

/// Frames are cut to this length.
pub fn snap(frames: &[Frame], length: usize) -> Vec<Frame> {
    frames
        .iter()
        .map(|frame| Frame { bytes: frame.bytes[..frame.bytes.len().min(length)].to_vec(), ..frame.clone() })
        .collect()
}

// --- encapsulation ---

fn tagged(bytes: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let mut out = bytes[..12].to_vec();
    for (ethertype, tag) in tags {
        out.extend(ethertype.to_be_bytes());
        out.extend(tag.to_be_bytes());
    }
    out.extend(&bytes[12..]);
    out
}

fn checksum(header: &[u8]) -> u16 {
    let mut sum: u32 = header.chunks(2).map(|pair| u32::from(be16(pair, 0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// An outer Ethernet and IPv4 header in front.
fn outer(protocol: u8, inner: &[u8]) -> Vec<u8> {
    let mut header = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, protocol, 0, 0, 198, 19, 0, 1, 198, 19, 0, 2];
    put16(&mut header, 2, 20 + inner.len());
    let sum = checksum(&header);
    put16(&mut header, 10, usize::from(sum));
    let mut out = vec![2, 0xaa, 0xaa, 0xaa, 0xaa, 1, 2, 0xbb, 0xbb, 0xbb, 0xbb, 2, 8, 0];
    out.extend(header);
    out.extend(inner);
    out
}

fn outer_udp(source: u16, destination: u16, inner: &[&[u8]]) -> Vec<u8> {
    let inner = inner.concat();
    let mut datagram = Vec::new();
    for number in [source, destination, (8 + inner.len()) as u16, 0] {
        datagram.extend(number.to_be_bytes());
    }
    datagram.extend(inner);
    outer(17, &datagram)
}

/// The encapsulations of mirror ports and overlays, by name.
pub const ENCAPSULATIONS: [&str; 15] = [
    "vlan",
    "qinq_88a8",
    "qinq_9100",
    "triple_vlan",
    "mpls2",
    "gre_ip",
    "gretap",
    "gre_key_seq",
    "erspan1",
    "erspan2",
    "erspan3",
    "erspan3_subheader",
    "vxlan",
    "geneve_options",
    "ip_in_ip",
];

/// Every frame inside an encapsulation.
///
/// # Panics
/// On a name that is not in [`ENCAPSULATIONS`].
pub fn encapsulate(frames: &[Frame], name: &str) -> Vec<Frame> {
    frames
        .iter()
        .enumerate()
        .map(|(i, frame)| with_bytes(frame, encapsulated(&frame.bytes, i as u32, name)))
        .collect()
}

fn encapsulated(d: &[u8], index: u32, name: &str) -> Vec<u8> {
    let number = index.to_be_bytes();
    let gre = |parts: &[&[u8]]| outer(47, &parts.concat());
    match name {
        "vlan" => tagged(d, &[(0x8100, 0x607b)]),
        "qinq_88a8" => tagged(d, &[(0x88a8, 77), (0x8100, 123)]),
        "qinq_9100" => tagged(d, &[(0x9100, 77), (0x8100, 123)]),
        "triple_vlan" => tagged(d, &[(0x8100, 1), (0x8100, 2), (0x8100, 3)]),
        "mpls2" => {
            let labels = [(16u32 << 12) | 64, (17 << 12) | 0x100 | 64].map(u32::to_be_bytes).concat();
            [&d[..12], &[0x88, 0x47], &labels, &d[14..]].concat()
        }
        "gre_ip" => gre(&[&[0, 0], &d[12..14], &d[14..]]),
        "gretap" => gre(&[&[0, 0, 0x65, 0x58], d]),
        "gre_key_seq" => gre(&[&[0x30, 0, 0x65, 0x58, 0, 0, 0, 99], &number, d]),
        "erspan1" => gre(&[&[0, 0, 0x88, 0xbe], d]),
        "erspan2" => gre(&[&[0x10, 0, 0x88, 0xbe], &number, &[0x10, 123, 0, 5, 0, 0, 0, 7], d]),
        "erspan3" => gre(&[&[0x10, 0, 0x22, 0xeb], &number, &[0x20, 123, 0, 5], &number, &[0, 0, 0, 0], d]),
        "erspan3_subheader" => {
            gre(&[&[0x10, 0, 0x22, 0xeb], &number, &[0x20, 123, 0, 5], &number, &[0, 0, 0, 1], &[0; 8], d])
        }
        "vxlan" => outer_udp(50_000 + (index % 1000) as u16, 4789, &[&[8, 0, 0, 0, 0, 0, 42, 0], d]),
        "geneve_options" => {
            let header = [2, 0, 0x65, 0x58, 0, 0, 42, 0, 1, 2, 0x80, 1, b'a', b'b', b'c', b'd'];
            outer_udp(50_000 + (index % 1000) as u16, 6081, &[&header, d])
        }
        "ip_in_ip" => outer(if be16(d, 12) == 0x0800 { 4 } else { 41 }, &d[14..]),
        other => panic!("no encapsulation is called {other}"),
    }
}

/// Segments over 512 bytes of TCP as IP fragments, in order or shuffled.
pub fn fragment(frames: &[Frame], shuffle: Option<u64>) -> Vec<Frame> {
    const SIZE: usize = 512;
    let mut dice = shuffle.map(Dice::new);
    let mut out = Vec::new();
    for frame in frames {
        let d = &frame.bytes;
        let Some(tcp) = tcp(d).filter(|tcp| tcp.payload.end - tcp.header > SIZE) else {
            out.push(frame.clone());
            continue;
        };
        let body = &d[tcp.header..tcp.payload.end];
        let identification = be32(d, tcp.header + 4);
        let mut pieces: Vec<Frame> = (0..body.len())
            .step_by(SIZE)
            .map(|at| {
                let piece = &body[at..(at + SIZE).min(body.len())];
                let more = at + SIZE < body.len();
                with_bytes(frame, one_fragment(d, &tcp, piece, at, more, identification))
            })
            .collect();
        if let Some(dice) = &mut dice {
            for last in (1..pieces.len()).rev() {
                pieces.swap(last, dice.below(last + 1));
            }
        }
        out.extend(pieces);
    }
    out
}

fn one_fragment(d: &[u8], tcp: &Tcp, piece: &[u8], at: usize, more: bool, identification: u32) -> Vec<u8> {
    let mut out = d[..tcp.header].to_vec();
    if tcp.version == 4 {
        let header = tcp.header - ETHERNET;
        put16(&mut out, 16, header + piece.len());
        put16(&mut out, 18, (identification & 0xffff) as usize);
        put16(&mut out, 20, (usize::from(more) << 13) | (at / 8));
    } else {
        put16(&mut out, 18, 8 + piece.len());
        out[20] = 44;
        out.extend([6, 0]);
        out.extend(((at | usize::from(more)) as u16).to_be_bytes());
        out.extend(identification.to_be_bytes());
    }
    out.extend(piece);
    out
}

// --- TCP oddities ---

/// Keep-alive probes with a garbage byte, plain retransmissions, and retransmissions that join two segments.
pub fn keepalive_retransmit_overlap(frames: &[Frame], seed: u64) -> Vec<Frame> {
    let mut dice = Dice::new(seed);
    let mut out = Vec::new();
    let mut last: HashMap<Vec<u8>, (u32, u32, Vec<u8>)> = HashMap::new();
    for frame in frames {
        let d = &frame.bytes;
        out.push(frame.clone());
        let Some(tcp) = tcp(d) else { continue };
        let payload = &d[tcp.payload.clone()];
        if payload.is_empty() {
            continue;
        }
        let next = tcp.seq.wrapping_add(payload.len() as u32);
        if dice.chance(0.02) {
            out.push(later(&resent(frame, &tcp, next.wrapping_sub(1), &[0]), micros(1)));
        }
        if dice.chance(0.02) {
            out.push(later(frame, micros(2)));
        }
        let stream = stream_of(d, &tcp);
        if let Some((seq, end, before)) = last.get(&stream)
            && dice.chance(0.02)
            && *end == tcp.seq
            && before.len() + payload.len() < 1400
        {
            out.push(later(&resent(frame, &tcp, *seq, &[before, payload].concat()), micros(3)));
        }
        last.insert(stream, (tcp.seq, next, payload.to_vec()));
    }
    out
}

fn resent(frame: &Frame, tcp: &Tcp, seq: u32, payload: &[u8]) -> Frame {
    let mut bytes = frame.bytes[..tcp.payload.start].to_vec();
    bytes[tcp.header + 4..tcp.header + 8].copy_from_slice(&seq.to_be_bytes());
    bytes.extend(payload);
    let total = bytes.len();
    set_ip_length(&mut bytes, tcp, total);
    with_bytes(frame, bytes)
}

/// Each segment cut into segments of at most `size` bytes of payload.
pub fn tiny_segments(frames: &[Frame], size: usize) -> Vec<Frame> {
    let mut out = Vec::new();
    for frame in frames {
        match tcp(&frame.bytes) {
            Some(tcp) if tcp.payload.len() > size && tcp.flags & 0x07 == 0 => {
                let payload = &frame.bytes[tcp.payload.clone()];
                let pieces = payload.chunks(size).enumerate();
                out.extend(
                    pieces.map(|(i, piece)| {
                        resent(frame, &tcp, tcp.seq.wrapping_add((i * size) as u32), piece)
                    }),
                );
            }
            _ => out.push(frame.clone()),
        }
    }
    out
}

/// Consecutive segments of one direction joined up to 180 KB, with an IP length of 0 above 64 KiB (BIG TCP).
pub fn big_tcp(frames: &[Frame]) -> Vec<Frame> {
    let mut out: Vec<Frame> = Vec::new();
    let mut open: Option<(Frame, Tcp, Vec<u8>)> = None;
    let close = |open: &mut Option<(Frame, Tcp, Vec<u8>)>, out: &mut Vec<Frame>| {
        if let Some((frame, tcp, payload)) = open.take() {
            out.push(resent(&frame, &tcp, tcp.seq, &payload));
        }
    };
    for frame in frames {
        let parsed = tcp(&frame.bytes).filter(|tcp| tcp.flags & 7 == 0 && !tcp.payload.is_empty());
        let Some(next) = parsed else {
            close(&mut open, &mut out);
            out.push(frame.clone());
            continue;
        };
        let bytes = &frame.bytes[next.payload.clone()];
        if let Some((first, tcp, payload)) = &mut open
            && stream_of(&first.bytes, tcp) == stream_of(&frame.bytes, &next)
            && tcp.seq.wrapping_add(payload.len() as u32) == next.seq
            && payload.len() < 180_000
        {
            payload.extend(bytes);
        } else {
            close(&mut open, &mut out);
            open = Some((frame.clone(), next.clone(), bytes.to_vec()));
        }
    }
    close(&mut open, &mut out);
    out
}

// --- link types ---

/// Link type 101: IP at once.
pub fn link_raw(frames: &[Frame]) -> Vec<Frame> {
    frames
        .iter()
        .filter(|frame| matches!(be16(&frame.bytes, 12), 0x0800 | 0x86dd))
        .map(|frame| with_bytes(frame, frame.bytes[ETHERNET..].to_vec()))
        .collect()
}

/// Link type 113: Linux cooked capture.
pub fn link_sll(frames: &[Frame]) -> Vec<Frame> {
    frames
        .iter()
        .map(|frame| {
            let d = &frame.bytes;
            with_bytes(frame, [&[0, 0, 0, 1, 0, 6], &d[6..12], &[0, 0], &d[12..14], &d[14..]].concat())
        })
        .collect()
}

/// Start of time for helpers that need one.
pub fn first_time(frames: &[Frame]) -> Timestamp {
    frames.first().map_or(Timestamp::ZERO, |frame| frame.timestamp)
}

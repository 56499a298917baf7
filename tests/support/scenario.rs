//! Scenario text: conversations written as lines, turned into packets, run through the one door, compared as a report.
//!
//! ```text
//! # a comment
//! connect A                         SYN, SYN-ACK, ACK of client A (10.0.0.1:40001); without it A is found in mid-stream
//! A> get foo\r\n                    a segment from A; `|` splits it into several; {1000} stands for 1000 bytes of a value
//! A< VALUE foo 0 3\r\nbar\r\nEND\r\n
//! lose A< END\r\n                   was on the wire (later packets acknowledge it), but not captured
//! again                             the packet before this line once more
//! swap                              the two packets before this line change places
//! wait 5s                           capture time passes (ns, us, ms, s)
//! ack A>                            a packet without payload
//! fin A>   reset A<                 the end of a direction, or of all
//! snap 64                           from here on packets are cut to so many payload bytes; `snap full` ends it
//! U> 7/0/1 get foo\r\n              a datagram of UDP client U: request id / sequence / total, then payload
//! isn A 4294967290 100              initial sequence numbers (client, server) for what follows
//! ---
//! expected report; written anew by UPDATE_SCENARIOS=1, to be reviewed like any product output
//! ```
//!
//! Clients are the letters A to T (TCP, ports 40001…) and U to Z (UDP). The server is 10.9.0.1:11211. A packet comes 100 µs
//! after the one before it.

use memtap::capture::{LinkType, Packet};
use memtap::model::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

/// A captured packet: time and Ethernet bytes, with the length on the wire.
#[derive(Clone, Debug)]
pub struct Frame {
    pub timestamp: Timestamp,
    pub bytes: Vec<u8>,
    pub wire_bytes: u32,
}

impl Frame {
    pub fn packet(&self) -> Packet<'_> {
        Packet {
            timestamp: self.timestamp,
            link: LinkType::Ethernet,
            bytes: &self.bytes,
            wire_bytes: self.wire_bytes,
        }
    }
}

/// A scenario file taken apart.
pub struct Scenario {
    pub frames: Vec<Frame>,
    pub expected: String,
    pub script: String,
}

const SERVER: [u8; 4] = [10, 9, 0, 1];
const SERVER_PORT: u16 = 11211;
const STEP: Duration = Duration::from_micros(100);
const START: Timestamp = Timestamp::from_parts(1_700_000_000, 0);

struct Flow {
    /// Next sequence number of [client, server].
    next: [u32; 2],
}

struct Builder {
    now: Timestamp,
    frames: Vec<Frame>,
    flows: BTreeMap<char, Flow>,
    initial: BTreeMap<char, [u32; 2]>,
    snap: Option<usize>,
}

/// Reads a scenario.
///
/// # Panics
/// On a line that is not understood, naming it.
pub fn read(text: &str) -> Scenario {
    let (script, expected) = text.split_once("---\n").unwrap_or((text, ""));
    let mut builder = Builder {
        now: START,
        frames: Vec::new(),
        flows: BTreeMap::new(),
        initial: BTreeMap::new(),
        snap: None,
    };
    for (index, line) in script.lines().enumerate() {
        let line = line.trim_start();
        if !line.is_empty() && !line.starts_with('#') {
            builder
                .line(line)
                .unwrap_or_else(|| panic!("scenario line {} not understood: {line}", index + 1));
        }
    }
    Scenario { frames: builder.frames, expected: expected.to_string(), script: script.to_string() }
}

impl Builder {
    fn line(&mut self, line: &str) -> Option<()> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "connect" => self.connect(rest.chars().next()?),
            "wait" => self.now = self.now.plus(duration(rest)?),
            "again" => {
                let mut last = self.frames.last()?.clone();
                last.timestamp = self.tick();
                self.frames.push(last);
            }
            "swap" => {
                let count = self.frames.len();
                let [first, second] = self.frames.get_mut(count.checked_sub(2)?..)? else { return None };
                std::mem::swap(first, second);
                std::mem::swap(&mut first.timestamp, &mut second.timestamp);
            }
            "snap" => self.snap = if rest == "full" { None } else { Some(rest.parse().ok()?) },
            "isn" => {
                let mut words = rest.split(' ');
                let name = words.next()?.chars().next()?;
                self.initial.insert(name, [words.next()?.parse().ok()?, words.next()?.parse().ok()?]);
            }
            "lose" => {
                let kept = self.frames.len();
                self.line(rest)?;
                self.frames.truncate(kept);
            }
            "ack" | "fin" | "reset" => {
                let flags = match word {
                    "ack" => "A",
                    "fin" => "AF",
                    _ => "AR",
                };
                let (name, from_server) = side(rest)?;
                self.segment(name, from_server, flags, b"");
            }
            _ => {
                let (name, from_server) = side(word)?;
                if name < 'U' {
                    for part in split_unescaped(rest) {
                        self.segment(name, from_server, "AP", &unescape(part)?);
                    }
                } else {
                    self.datagram(name, from_server, rest)?;
                }
            }
        }
        Some(())
    }

    fn tick(&mut self) -> Timestamp {
        self.now = self.now.plus(STEP);
        self.now
    }

    fn flow(&mut self, name: char) -> &mut Flow {
        let initial = self.initial.get(&name).copied().unwrap_or([1000, 2000]);
        self.flows.entry(name).or_insert(Flow { next: initial })
    }

    fn connect(&mut self, name: char) {
        self.flows.remove(&name);
        self.segment(name, false, "S", b"");
        self.segment(name, true, "SA", b"");
        self.segment(name, false, "A", b"");
    }

    fn segment(&mut self, name: char, from_server: bool, flags: &str, payload: &[u8]) {
        let timestamp = self.tick();
        let flow = self.flow(name);
        let (seq, ack) = (flow.next[usize::from(from_server)], flow.next[usize::from(!from_server)]);
        let consumed = payload.len() as u32 + u32::from(flags.contains(['S', 'F']));
        flow.next[usize::from(from_server)] = seq.wrapping_add(consumed);
        let (source, destination, source_port, destination_port) = ends(name, from_server);
        let mut builder = etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ipv4(source, destination, 64)
            .tcp(source_port, destination_port, seq, 65000);
        for flag in flags.chars() {
            builder = match flag {
                'S' => builder.syn(),
                'F' => builder.fin(),
                'R' => builder.rst(),
                'P' => builder.psh(),
                _ => builder.ack(ack),
            };
        }
        let mut bytes = Vec::new();
        builder.write(&mut bytes, payload).expect("a packet of the scenario can be built");
        self.push(timestamp, bytes, payload.len());
    }

    fn datagram(&mut self, name: char, from_server: bool, rest: &str) -> Option<()> {
        let timestamp = self.tick();
        let (header, text) = rest.split_once(' ').unwrap_or((rest, ""));
        let mut payload = Vec::new();
        for number in header.split('/') {
            payload.extend(number.parse::<u16>().ok()?.to_be_bytes());
        }
        payload.extend([0, 0]);
        payload.extend(unescape(text)?);
        let (source, destination, source_port, destination_port) = ends(name, from_server);
        let builder = etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ipv4(source, destination, 64)
            .udp(source_port, destination_port);
        let mut bytes = Vec::new();
        builder.write(&mut bytes, &payload).expect("a packet of the scenario can be built");
        self.push(timestamp, bytes, payload.len());
        Some(())
    }

    fn push(&mut self, timestamp: Timestamp, mut bytes: Vec<u8>, payload_bytes: usize) {
        let wire_bytes = bytes.len() as u32;
        if let Some(snap) = self.snap {
            bytes.truncate(bytes.len() - payload_bytes + payload_bytes.min(snap));
        }
        self.frames.push(Frame { timestamp, bytes, wire_bytes });
    }
}

/// `A>` is from client A, `A<` to it.
fn side(word: &str) -> Option<(char, bool)> {
    let mut chars = word.chars();
    let name = chars.next().filter(char::is_ascii_uppercase)?;
    match chars.as_str() {
        ">" => Some((name, false)),
        "<" => Some((name, true)),
        _ => None,
    }
}

fn ends(name: char, from_server: bool) -> ([u8; 4], [u8; 4], u16, u16) {
    let number = name as u8 - b'A' + 1;
    let (client, port) = ([10, 0, 0, number], 40_000 + u16::from(number));
    if from_server { (SERVER, client, SERVER_PORT, port) } else { (client, SERVER, port, SERVER_PORT) }
}

fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok()?;
    Some(match &text[digits..] {
        "ns" => Duration::from_nanos(number),
        "us" => Duration::from_micros(number),
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        _ => return None,
    })
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut start = 0;
    for (at, _) in text.match_indices('|') {
        if !text[..at].ends_with('\\') {
            parts.push(&text[start..at]);
            start = at + 1;
        }
    }
    parts.push(&text[start..]);
    parts
}

/// `\r \n \0 \\ \| \{ \xNN`, and `{N}` for N bytes of a value (the letters of the alphabet over and over).
pub fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next()? {
                'r' => bytes.push(b'\r'),
                'n' => bytes.push(b'\n'),
                '0' => bytes.push(0),
                'x' => {
                    bytes.push(u8::from_str_radix(&format!("{}{}", chars.next()?, chars.next()?), 16).ok()?)
                }
                other => bytes.push(u8::try_from(other).ok()?),
            },
            '{' => {
                let (count, rest) = chars.as_str().split_once('}')?;
                let count: usize = count.parse().ok()?;
                bytes.extend((b'a'..=b'z').cycle().take(count));
                chars = rest.chars();
            }
            other => bytes.extend(other.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
    Some(bytes)
}

/// A microsecond pcap of the frames, which any packet viewer opens.
pub fn pcap(frames: &[Frame]) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend(0xa1b2_c3d4_u32.to_le_bytes());
    file.extend(2u16.to_le_bytes());
    file.extend(4u16.to_le_bytes());
    file.extend([0; 8]);
    file.extend(262_144u32.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    for frame in frames {
        let nanos = frame.timestamp.nanos();
        file.extend(u32::try_from(nanos / 1_000_000_000).unwrap_or(u32::MAX).to_le_bytes());
        file.extend(((nanos % 1_000_000_000 / 1000) as u32).to_le_bytes());
        file.extend((frame.bytes.len() as u32).to_le_bytes());
        file.extend(frame.wire_bytes.to_le_bytes());
        file.extend(&frame.bytes);
    }
    file
}

//! What came by while we listened: by interface, by target, by protocol.

use super::lines::Lines;
use crate::anomaly::Anomaly;
use crate::capture::decode::{DecodeLimits, Decoder};
use crate::capture::interface::Interface;
use crate::capture::ring::{RingShape, ring_byte_rate};
use crate::capture::{Decoded, Packet};
use crate::config::Config;
use crate::model::{TargetId, Transport};
use crate::pipeline::{CaptureTally, Pipeline, TargetMap};
use crate::reassembly::TargetTally;
use crate::report::escape_name;
use crate::report::units;
use crate::runtime::{pipeline_limits, target_id, target_map};
use std::time::Duration;

/// A ring that cannot bear a stall of this length loses packets whenever the machine is busy for a moment.
const HOLD_MIN: Duration = Duration::from_millis(250);
/// Packets whose times differ more than this from the system's clock carry those of another one.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(1);
/// Times of packets that go back, or ahead of the time that has passed, by more than this were set: an interface delivers in order.
const CLOCK_STEP_MAX: Duration = Duration::from_secs(1);
/// A greater share of streams with missing bytes makes figures that cannot be compared.
const GAP_SHARE_MAX: f64 = 0.01;
/// Strangers that are named.
const STRANGERS_SHOWN: usize = 3;
/// Ethernet header and VLAN tags on top of what the MTU limits.
const LINK_BYTES_MAX: u32 = 22;

/// What a payload to a server begins like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opening {
    Text,
    Meta,
    Binary,
    Tls,
}

impl Opening {
    const ALL: [(Opening, &'static str); 4] = [
        (Opening::Text, "text"),
        (Opening::Meta, "meta"),
        (Opening::Binary, "binary"),
        (Opening::Tls, "TLS"),
    ];

    /// Nothing where the payload begins inside a message: a value's middle looks like anything.
    fn of(payload: &[u8]) -> Option<Opening> {
        const VERBS: [&[u8]; 24] = [
            b"get",
            b"gets",
            b"gat",
            b"gats",
            b"set",
            b"add",
            b"replace",
            b"append",
            b"prepend",
            b"cas",
            b"delete",
            b"incr",
            b"decr",
            b"touch",
            b"stats",
            b"version",
            b"flush_all",
            b"verbosity",
            b"quit",
            b"watch",
            b"lru",
            b"lru_crawler",
            b"slabs",
            b"shutdown",
        ];
        match payload {
            // Request magic, and header bytes that a request leaves zero: data type, and vbucket's upper half.
            [0x80, _, _, _, _, 0, ..] => return Some(Opening::Binary),
            // A handshake or data record of TLS 1.0 to 1.3.
            [0x14..=0x17, 3, 0..=4, ..] => return Some(Opening::Tls),
            _ => {}
        }
        let line = payload.split(|&byte| byte == b'\n').next()?;
        let verb = line.split(|&byte| byte == b' ' || byte == b'\r').next()?;
        match verb {
            [b'm', b'g' | b's' | b'd' | b'a' | b'e' | b'n'] => Some(Opening::Meta),
            _ if VERBS.contains(&verb) => Some(Opening::Text),
            _ => None,
        }
    }
}

/// What an interface carried.
#[derive(Clone, Debug, Default)]
struct Carried {
    packets: u64,
    target_packets: u64,
    captured_bytes: u64,
    /// Longest packet of a target on the wire.
    wire_bytes_max: u32,
    dropped: u64,
    /// Greatest difference between a packet's time and ours.
    skew: Duration,
    /// How the times of its packets go on.
    pace: Pace,
}

/// The times of packets that follow each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pace {
    first: Option<Duration>,
    newest: Duration,
    /// Greatest step back.
    back: Duration,
}

impl Pace {
    fn take(&mut self, time: Duration) {
        self.first.get_or_insert(time);
        self.back = self.back.max(self.newest.saturating_sub(time));
        self.newest = self.newest.max(time);
    }

    /// By how much the packets' times went on beyond the time that we listened.
    fn ahead(&self, listened: Duration) -> Duration {
        let first = self.first.unwrap_or(self.newest);
        self.newest.saturating_sub(first).saturating_sub(listened)
    }
}

/// What was heard.
pub(super) struct Traffic {
    interfaces: Vec<Interface>,
    carried: Vec<Carried>,
    targets: TargetMap,
    /// Looks at packets on its own: the pipeline does not tell what it saw in each.
    decoder: Decoder,
    pipeline: Pipeline,
    /// By target, in the order of [`Opening::ALL`].
    openings: Vec<[u64; Opening::ALL.len()]>,
}

impl Traffic {
    pub(super) fn new(config: &Config, interfaces: Vec<Interface>) -> Traffic {
        let targets = target_map(config);
        let mut decoder = Decoder::new(DecodeLimits::default());
        decoder.keep_from_tunnels(&targets.ports());
        Traffic {
            carried: vec![Carried::default(); interfaces.len()],
            interfaces,
            decoder,
            // One for all interfaces, as when capturing: a flow that crosses two of them is one.
            pipeline: Pipeline::new(target_map(config), pipeline_limits()),
            openings: vec![[0; Opening::ALL.len()]; targets.len()],
            targets,
        }
    }

    /// Takes a packet of the interface at an index in; `now` is the wall clock since the epoch.
    pub(super) fn take(&mut self, index: usize, packet: &Packet<'_>, now: Duration) {
        let carried = &mut self.carried[index];
        carried.packets += 1;
        carried.captured_bytes += packet.bytes.len() as u64;
        let time = Duration::from_nanos(packet.timestamp.nanos());
        carried.skew = carried.skew.max(now.abs_diff(time));
        carried.pace.take(time);
        let seen = match self.decoder.decode(packet) {
            Decoded::Segment(segment) => {
                Some((Transport::Tcp, segment.source, segment.destination, segment.payload))
            }
            // The frame header of memcached on UDP stands before the request.
            Decoded::Datagram(datagram) => {
                let payload = datagram.payload.get(8..).unwrap_or_default();
                Some((Transport::Udp, datagram.source, datagram.destination, payload))
            }
            _ => None,
        };
        if let Some((transport, source, destination, payload)) = seen {
            let to_server = self.targets.find(&destination, transport);
            if to_server.is_some() || self.targets.find(&source, transport).is_some() {
                carried.target_packets += 1;
                carried.wire_bytes_max = carried.wire_bytes_max.max(packet.wire_bytes);
            }
            if let (Some(TargetId(target)), Some(opening)) = (to_server, Opening::of(payload)) {
                self.openings[usize::from(target)][opening as usize] += 1;
            }
        }
        self.pipeline.handle_packet(packet, &mut |_, _| {});
    }

    pub(super) fn note_drops(&mut self, index: usize, packets: u64) {
        self.carried[index].dropped = packets;
    }

    /// Says what it means.
    pub(super) fn judge(mut self, config: &Config, listened: Duration, lines: &mut Lines) {
        self.pipeline.finish(&mut |_, _| {});
        let tallies: Vec<TargetTally> =
            (0..config.targets.len()).map(|index| self.pipeline.take_tally(target_id(index))).collect();
        let capture = self.pipeline.take_capture_tally();
        for (interface, carried) in self.interfaces.iter().zip(&self.carried) {
            judge_interface(config, interface, carried, listened, lines);
        }
        judge_clock(&self.carried, listened, lines);
        if self.carried.iter().all(|carried| carried.target_packets == 0) {
            judge_silence(&capture, listened, lines);
            return;
        }
        for ((target, tally), openings) in config.targets.iter().zip(&tallies).zip(&self.openings) {
            judge_target(&escape_name(&target.name), tally, openings, lines);
        }
    }
}

fn judge_clock(carried: &[Carried], listened: Duration, lines: &mut Lines) {
    if carried.iter().all(|carried| carried.packets == 0) {
        return;
    }
    let greatest = |of: &dyn Fn(&Carried) -> Duration| carried.iter().map(of).max().unwrap_or_default();
    let (back, ahead) =
        (greatest(&|carried| carried.pace.back), greatest(&|carried| carried.pace.ahead(listened)));
    // A block waits a little before we see it: only what is far beyond that is another clock.
    let skew = greatest(&|carried| carried.skew);
    let slew = "let the time service slew the clock instead of setting it (chrony: makestep only at start): an interval that the \
                step falls in is longer or shorter than it says, and so are its rates";
    if back > CLOCK_STEP_MAX {
        lines.warn("clock", format!("the times of packets went back by {}", units::length(back)), slew);
    } else if ahead > CLOCK_STEP_MAX {
        let text = format!("the times of packets jumped ahead by {}", units::length(ahead));
        lines.warn("clock", text, slew);
    } else if skew > CLOCK_SKEW_MAX {
        let text = format!(
            "packets carry times that differ by up to {} from the system's clock",
            units::length(skew)
        );
        lines.warn("clock", text, "was the clock set just now? Intervals follow the packets' times");
    } else {
        lines.ok("clock", "packets carry the times of the system's clock, one after the other");
    }
}

fn judge_interface(
    config: &Config,
    interface: &Interface,
    carried: &Carried,
    listened: Duration,
    lines: &mut Lines,
) {
    let name = escape_name(&interface.name);
    let seconds = listened.as_secs().max(1);
    let (packets, bytes) = (carried.packets / seconds, carried.captured_bytes / seconds);
    let rates = format!("{} packets/s, {}/s", units::rate(carried.packets, listened), units::bytes(bytes));
    if carried.target_packets == 0 {
        let text = format!("{name}: {rates} passed the filter, none of a target");
        lines.ok("traffic", text);
        return;
    }
    let of_targets = units::percent(carried.target_packets, carried.packets, 0);
    lines.ok("traffic", format!("{name}: {rates}, {of_targets}% of the packets of a target"));

    let hold = RingShape::with_bytes(config.capture.ring_bytes).hold_time(ring_byte_rate(packets, bytes));
    let text = format!("{name}: at this rate the configured ring bears a stall of {} ms", hold.as_millis());
    if carried.dropped > 0 {
        let dropped = units::count(carried.dropped);
        let text = format!("{text}; {dropped} packets were dropped while listening");
        lines.warn("ring", text, "raise --ring-mb, and see whether the machine has a core to spare");
    } else if hold < HOLD_MIN {
        lines.warn("ring", text, "raise --ring-mb");
    } else {
        lines.ok("ring", text);
    }

    if interface.mtu_bytes > 0 && carried.wire_bytes_max > interface.mtu_bytes + LINK_BYTES_MAX {
        let longest = units::count(u64::from(carried.wire_bytes_max));
        let text = format!(
            "{name}: packets of up to {longest} bytes at an MTU of {}: segmentation is offloaded (GRO, TSO), which spares \
             packets and costs no figure",
            interface.mtu_bytes
        );
        lines.ok("offloads", text);
    } else {
        lines.ok("offloads", format!("{name}: no packet longer than the MTU was seen"));
    }
}

/// Nothing of any target: say what there is instead.
fn judge_silence(capture: &CaptureTally, listened: Duration, lines: &mut Lines) {
    let strangers: Vec<String> = capture
        .strangers
        .ranked()
        .iter()
        .take(STRANGERS_SHOWN)
        .map(|stranger| format!("{} ({} packets)", stranger.endpoint, units::count(stranger.packets)))
        .collect();
    let seen = match strangers.as_slice() {
        [] => String::new(),
        strangers => format!("; seen instead: {}", strangers.join(", ")),
    };
    let text = format!("no packet of a target in {}{seen}", units::length(listened));
    lines.warn(
        "traffic",
        text,
        "if there should be some: are address and port right, is it this network namespace, does a mirror port need --promisc?",
    );
}

fn judge_target(name: &str, tally: &TargetTally, openings: &[u64; Opening::ALL.len()], lines: &mut Lines) {
    let advice =
        "capture where both directions pass: hits, misses, sizes and response times need the answers";
    match tally.payload_packets {
        [0, 0] => lines.ok("directions", format!("{name}: nothing with payload was seen")),
        [0, answers] => {
            let text = format!("{name}: only responses are seen ({} packets)", units::count(answers));
            lines.warn("directions", text, advice);
        }
        [requests, 0] => {
            let text = format!("{name}: only requests are seen ({} packets)", units::count(requests));
            lines.warn("directions", text, advice);
        }
        [requests, answers] => {
            let (requests, answers) = (units::count(requests), units::count(answers));
            lines.ok("directions", format!("{name}: {requests} packets of requests, {answers} of responses"));
        }
    }
    let known: u64 = openings.iter().sum();
    if known > 0 {
        let shares = Opening::ALL.iter().zip(openings).filter(|(_, count)| **count > 0);
        let shares: Vec<String> = shares
            .map(|((_, opening), count)| format!("{opening} {}%", units::percent(*count, known, 0)))
            .collect();
        lines.ok("protocols", format!("{name}: requests begin like {}", shares.join(", ")));
    }
    judge_flows(name, tally, lines);
}

fn judge_flows(name: &str, tally: &TargetTally, lines: &mut Lines) {
    let of = |anomaly| units::count(tally.anomalies.of(anomaly));
    let has = |anomaly| tally.anomalies.of(anomaly) > 0;
    if has(Anomaly::TlsFlow) {
        let text =
            format!("{name}: {} connections speak TLS: their requests cannot be read", of(Anomaly::TlsFlow));
        lines.warn(
            "protocols",
            text,
            "capture behind the point where TLS ends, or at clients that speak to it in the clear",
        );
    }
    if has(Anomaly::UnknownProtocolFlow) {
        let text = format!(
            "{name}: {} connections speak no protocol of memcached's",
            of(Anomaly::UnknownProtocolFlow)
        );
        lines.warn("protocols", text, "is it memcached that listens on this port?");
    }
    if has(Anomaly::ProxyHeader) {
        let text = format!(
            "{name}: {} connections begin with a PROXY header, which memcached does not know",
            of(Anomaly::ProxyHeader)
        );
        lines.warn("protocols", text, "turn it off at the load balancer in front");
    }
    if has(Anomaly::MidStream) {
        let text = format!(
            "{name}: {} connections were found in mid-stream, and are read from their next request on",
            of(Anomaly::MidStream)
        );
        lines.ok("protocols", text);
    }
    judge_gaps(name, tally, lines);
}

/// Bytes of streams that never came, though the other side acknowledged them.
fn judge_gaps(name: &str, tally: &TargetTally, lines: &mut Lines) {
    // A stream may have had its first payload before, or none that was captured.
    let streams = tally.streams.max(tally.streams_with_gaps);
    if streams == 0 {
        return;
    }
    let (with_gaps, bytes) = (tally.streams_with_gaps, tally.anomalies.of(Anomaly::GapBytes));
    if with_gaps == 0 {
        let text = format!("{name}: none of {} streams has a gap", units::count(streams));
        return lines.ok("gaps", text);
    }
    let payload: u64 = tally.payload_bytes.iter().sum();
    let text = format!(
        "{name}: {} of {} streams ({}%) have gaps, {} bytes in all ({}% of the payload)",
        units::count(with_gaps),
        units::count(streams),
        units::percent(with_gaps, streams, 1),
        units::count(bytes),
        units::percent(bytes, payload.saturating_add(bytes), 2),
    );
    let share = with_gaps as f64 / streams as f64;
    if share > GAP_SHARE_MAX {
        let advice = "outcomes around them are unseen: look at ring drops above (--ring-mb); at a mirror port, whether the switch \
                      drops copies; on several paths, whether all of them are captured";
        lines.warn("gaps", text, advice);
    } else {
        lines.ok("gaps", text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(judge: impl FnOnce(&mut Lines)) -> String {
        let mut lines = Lines::default();
        judge(&mut lines);
        lines.text()
    }

    fn clock_of(seconds: &[u64]) -> String {
        let mut carried = Carried { packets: seconds.len() as u64, ..Carried::default() };
        for &second in seconds {
            carried.pace.take(Duration::from_secs(second));
        }
        judged(|lines| judge_clock(&[Carried::default(), carried], Duration::from_secs(2), lines))
    }

    #[test]
    fn a_clock_that_is_set_while_we_listen_is_told() {
        assert_eq!(clock_of(&[]), "");
        assert!(clock_of(&[1_000, 1_001, 1_002]).starts_with("ok "));
        let back = clock_of(&[1_000, 940, 941]);
        assert!(back.starts_with("warn  clock  the times of packets went back by 1m"), "{back}");
        assert!(back.contains("slew"), "{back}");
        // Of two steps the greatest, against the newest time that there was.
        assert!(clock_of(&[1_000, 999, 990, 1_001]).contains("back by 10s"));
        let ahead = clock_of(&[1_000, 1_001, 4_602]);
        assert!(ahead.starts_with("warn  clock  the times of packets jumped ahead by 1h"), "{ahead}");
        let other = Carried { packets: 1, skew: Duration::from_secs(90), ..Carried::default() };
        let other = judged(|lines| judge_clock(&[other], Duration::from_secs(2), lines));
        assert!(other.starts_with("warn  clock  packets carry times that differ by up to 1m30s"), "{other}");
    }

    #[test]
    fn the_share_of_streams_with_gaps_is_told() {
        let gaps = |streams, streams_with_gaps, bytes| {
            let mut tally =
                TargetTally { streams, streams_with_gaps, payload_bytes: [900, 0], ..TargetTally::default() };
            tally.anomalies.add(Anomaly::GapBytes, bytes);
            judged(|lines| judge_gaps("t", &tally, lines))
        };
        assert_eq!(gaps(0, 0, 0), "");
        assert_eq!(gaps(40, 0, 0), "ok    gaps  t: none of 40 streams has a gap\n");
        let few = "t: 1 of 400 streams (0.2%) have gaps, 100 bytes in all (10.00% of the payload)";
        assert!(gaps(400, 1, 100).starts_with(&format!("ok    gaps  {few}")), "{}", gaps(400, 1, 100));
        let many = gaps(40, 10, 100);
        assert!(
            many.starts_with("warn  gaps  t: 10 of 40 streams (25.0%)") && many.contains("--ring-mb"),
            "{many}"
        );
    }

    #[test]
    fn openings_are_told_and_the_middle_of_a_value_is_none() {
        for (payload, opening) in [
            (&b"get a\r\n"[..], Some(Opening::Text)),
            (b"flush_all\r\n", Some(Opening::Text)),
            (b"mg a v\r\n", Some(Opening::Meta)),
            (b"mn\r\n", Some(Opening::Meta)),
            (b"\x80\x00\x00\x01\x00\x00\x00\x00", Some(Opening::Binary)),
            (b"\x16\x03\x01\x02\x00", Some(Opening::Tls)),
            (b"", None),
            (b"my value", None),
            (b"\x80", None),
            (b"getaway", None),
        ] {
            assert_eq!(Opening::of(payload), opening, "{payload:?}");
        }
        for (index, (opening, _)) in Opening::ALL.iter().enumerate() {
            assert_eq!(*opening as usize, index);
        }
    }
}

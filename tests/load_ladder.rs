//! The load ladder in mode `auto` on a ring that really loses packets: one rung down at a time while the loss lasts, up again when it
//! is over, and on each rung exactly the knowledge that it promises.
//!
//! memtap is stopped by a signal while more is sent than its ring holds, so what is lost does not depend on the machine's speed. The
//! packets are injected whole and no server runs, so all that the filter lets pass was sent by the test: the packets that memtap
//! read and those that the kernel dropped add up to it. Needs root; without it the test says so and fails.

#[path = "support/netns.rs"]
mod netns;
#[path = "support/session.rs"]
mod session;
mod support;

use afpacket::sync::RawPacketStream;
use etherparse::PacketBuilder;
use jiff::Timestamp;
use memtap::capture::ladder::{HEAD_BYTES, Rung};
use netns::{CLIENT, Pair, SERVER};
use serde_json::Value;
use session::{Memtap, PATIENCE};
use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};
use support::figure;

/// The smallest ring that may be configured: four blocks.
const RING_BYTES: &str = "4MiB";

/// Packets of this many bytes of payload fill that ring long before there are …
const BURST_PAYLOAD_BYTES: usize = 60_000;
/// … so many of them, and whatever queues lie before it hold them all: none is lost on its way there.
const BURST_PACKETS: usize = 200;

/// Longer than the second between two looks at the ring's counts: when memtap goes on, a look is due at once, and the next one
/// comes after the next burst.
const STOPPED: Duration = Duration::from_millis(1_100);
/// Until memtap has had its look and said what came of it; well below a second, so that no look without loss comes between two bursts.
const LOOKING: Duration = Duration::from_millis(300);
/// Two looks in a row are to see loss; more bursts than two are needed only when somebody stopped us for a second.
const BURSTS_MAX: u32 = 10;

/// Requests of each connection in a measurement, with two keys each.
const EXCHANGES: i64 = 100;
/// Requests on a connection that began while only requests were kept, before it is measured.
const TAKING_UP: i64 = 2;
/// One value fills the head of a response, so that the next value's line lies behind it.
const VALUE_BYTES: usize = 600;
const _: () = assert!(VALUE_BYTES > HEAD_BYTES as usize);

/// Between two exchanges while the ladder climbs: seldom enough that no two blocks of the ring wait at once, which would not be calm.
const PACE: Duration = Duration::from_millis(250);
/// Ten calm looks lead one rung up, and a machine with other things to do may begin them anew.
const CLIMB_MAX: Duration = Duration::from_secs(40);

/// What was sent, and the connection to the interface.
struct Wire {
    stream: RawPacketStream,
    /// The rung in force, which says what the filter lets pass.
    rung: Rung,
    /// Packets sent that the filter lets pass.
    passing: i64,
}

impl Wire {
    /// On the client's side, with packets of any size.
    fn open(pair: &Pair) -> Wire {
        for side in [&pair.server, &pair.client] {
            side.ip("link set veth0 mtu 65535");
        }
        let stream = pair.client.run(|| {
            let mut stream = RawPacketStream::new().expect("root may open a packet socket");
            stream.bind("veth0").expect("the interface exists");
            stream
        });
        Wire { stream, rung: Rung::Full, passing: 0 }
    }

    fn send(&mut self, packet: &[u8], is_request: bool) {
        assert_eq!(self.stream.write(packet).expect("the packet is sent"), packet.len());
        self.passing += i64::from(is_request || self.rung != Rung::Requests);
    }
}

/// A TCP connection of which both ends are played. Its packets are for another machine's link address, so no kernel answers them.
struct Connection {
    client_port: u16,
    /// The next byte of the client's, and of the server's.
    next: [u32; 2],
}

impl Connection {
    /// Without a word so far.
    fn new(client_port: u16) -> Connection {
        Connection { client_port, next: [1_000_000, 2_000_000] }
    }

    fn open(wire: &mut Wire, client_port: u16) -> Connection {
        let mut connection = Connection::new(client_port);
        connection.packet(wire, true, "syn", &[]);
        connection.packet(wire, false, "syn ack", &[]);
        connection.packet(wire, true, "ack", &[]);
        connection
    }

    /// One packet, sent by the client or else by the server.
    fn packet(&mut self, wire: &mut Wire, by_client: bool, flags: &str, payload: &[u8]) {
        const PORT: u16 = 11211;
        let [client, server] =
            [CLIENT, SERVER].map(|text| text.parse::<Ipv4Addr>().expect("an address").octets());
        let own = usize::from(!by_client);
        let ends = [(client, self.client_port), (server, PORT)];
        let (source, destination) = (ends[own], ends[1 - own]);
        let mut builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ipv4(source.0, destination.0, 64)
            .tcp(source.1, destination.1, self.next[own], u16::MAX);
        let mut taken = u32::try_from(payload.len()).expect("a packet is short");
        for flag in flags.split(' ') {
            builder = match flag {
                "syn" => builder.syn(),
                "fin" => builder.fin(),
                "ack" => builder.ack(self.next[1 - own]),
                other => panic!("no flag {other}"),
            };
            taken += u32::from(flag != "ack");
        }
        let mut bytes = Vec::with_capacity(builder.size(payload.len()));
        builder.write(&mut bytes, payload).expect("the packet can be built");
        self.next[own] = self.next[own].wrapping_add(taken);
        wire.send(&bytes, by_client);
    }

    /// Asks for two keys, and is answered with both values in one packet.
    fn exchange(&mut self, wire: &mut Wire, name: &str) {
        let keys = [key(name, "first"), key(name, "second")];
        self.packet(wire, true, "ack", format!("get {}\r\n", keys.join(" ")).as_bytes());
        let value = "v".repeat(VALUE_BYTES);
        let values = keys.map(|key| format!("VALUE {key} 0 {VALUE_BYTES}\r\n{value}\r\n"));
        self.packet(wire, false, "ack", format!("{}END\r\n", values.concat()).as_bytes());
    }

    /// Sends more than the ring holds: stores, which no rung cuts.
    fn burst(&mut self, wire: &mut Wire) {
        let value = "b".repeat(BURST_PAYLOAD_BYTES);
        let store = format!("set burst 0 0 {BURST_PAYLOAD_BYTES} noreply\r\n{value}\r\n");
        for _ in 0..BURST_PACKETS {
            self.packet(wire, true, "ack", store.as_bytes());
        }
    }

    fn close(mut self, wire: &mut Wire) {
        self.packet(wire, true, "fin ack", &[]);
        self.packet(wire, false, "fin ack", &[]);
        self.packet(wire, true, "ack", &[]);
    }
}

fn key(name: &str, place: &str) -> String {
    format!("{name}:{place}")
}

/// A capture that may step, and the load that makes it.
struct Bench {
    wire: Wire,
    memtap: Memtap,
    reports: PathBuf,
    /// A connection that lives as long as the test, as those of a client's pool do.
    pooled: Connection,
    /// The port of the newest connection.
    client_port: u16,
    /// The times from which on packets were lost, and how long that was.
    losses: Vec<[Timestamp; 2]>,
}

impl Bench {
    fn start(pair: &Pair, reports: PathBuf) -> Bench {
        let mut wire = Wire::open(pair);
        let target = format!("ladder={SERVER}:11211");
        let path = reports.to_str().expect("the path is UTF-8");
        let arguments = ["-i", "veth0", "-t", &target, "-w", "1s", "-k", "0", "-o", "jsonl", "--out", path];
        let ladder = ["--load-ladder", "auto", "--ring-mb", RING_BYTES, "--sandbox", "strict"];
        let memtap = Memtap::start(pair, &[&arguments[..], &ladder].concat());
        let client_port = 40_000;
        let pooled = Connection::open(&mut wire, client_port);
        Bench { wire, memtap, reports, pooled, client_port, losses: Vec::new() }
    }

    fn connect(&mut self) -> Connection {
        self.client_port += 1;
        Connection::open(&mut self.wire, self.client_port)
    }

    fn wait_for_report(&self, what: &str, is_it: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !read_reports(&self.reports).last().is_some_and(&is_it) {
            assert!(Instant::now() < deadline, "no report {what}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Until everything that was captured so far has been reported.
    fn wait_until_counted(&self) {
        let now = Timestamp::now();
        self.wait_for_report("of an interval that ends from now on", |report| moment(report, "end") > now);
    }

    /// Until what the kernel dropped so far has been reported, too: a whole interval is as long as the time between two looks.
    fn wait_until_quiet(&self) {
        let now = Timestamp::now();
        self.wait_for_report("of an interval that begins from now on", |report| {
            moment(report, "start") >= now
        });
    }

    /// Stops memtap, overflows its ring, and lets it go on.
    fn lose(&mut self) {
        let began = Timestamp::now();
        self.memtap.process.interrupt("-STOP");
        let deadline = Instant::now() + PATIENCE;
        while !is_stopped(self.memtap.process.0.id()) {
            assert!(Instant::now() < deadline, "memtap does not stop");
            thread::sleep(Duration::from_millis(1));
        }
        let stopped = Instant::now();
        self.client_port += 1;
        // Without a handshake: should memtap have stepped already and not said so yet, all of this passes none the less.
        Connection::new(self.client_port).burst(&mut self.wire);
        self.losses.push([began, Timestamp::now()]);
        thread::sleep(STOPPED.saturating_sub(stopped.elapsed()));
        self.memtap.process.interrupt("-CONT");
    }

    /// Loses packets until the ladder is stepped, which it must be to this rung and not by the first loss.
    fn lose_until_stepped_to(&mut self, rung: Rung) {
        for burst in 1..=BURSTS_MAX {
            self.lose();
            if let Ok(line) = self.memtap.listen("load ladder", LOOKING) {
                self.note_step(&line, rung);
                assert!(burst > 1, "one burst passes by itself: {line}");
                return;
            }
        }
        panic!("{BURSTS_MAX} bursts were lost, and memtap kept as much as before");
    }

    /// Waits until the ladder is stepped up, with a request now and then where there is a connection.
    fn climb_to(&mut self, rung: Rung, mut asking: Option<(&mut Connection, &str)>) -> i64 {
        let (deadline, mut asked) = (Instant::now() + CLIMB_MAX, 0);
        loop {
            assert!(Instant::now() < deadline, "the ladder stays below {}", rung.name());
            if let Some((connection, name)) = &mut asking {
                connection.exchange(&mut self.wire, name);
                asked += 1;
            }
            if let Ok(line) = self.memtap.listen("load ladder", PACE) {
                self.note_step(&line, rung);
                return asked;
            }
        }
    }

    fn note_step(&mut self, line: &str, rung: Rung) {
        let said = format!("veth0: load ladder: keeping {}; {}", rung.name(), rung.cost());
        assert!(line.contains(&said), "{line}");
        self.wire.rung = rung;
    }

    /// Requests and their answers without any loss, on the connection that is as old as the test and on a newer one.
    fn measure_on(&mut self, newer: &mut Connection, name: &str) {
        for _ in 0..EXCHANGES {
            newer.exchange(&mut self.wire, &format!("{name}:newer"));
            self.pooled.exchange(&mut self.wire, &format!("{name}:pooled"));
        }
    }

    /// The same on a connection that is opened and closed for it.
    fn measure(&mut self, name: &str) {
        self.wait_until_quiet();
        let mut newer = self.connect();
        self.measure_on(&mut newer, name);
        newer.close(&mut self.wire);
        self.wait_until_counted();
    }
}

/// The reports so far. The file is opened some time after the rings, and its last line may not be whole yet.
fn read_reports(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).expect("a line is a JSON object")).collect()
}

fn moment(report: &Value, field: &str) -> Timestamp {
    report[field].as_str().and_then(|text| text.parse().ok()).expect("a moment")
}

/// Whether every thread of a process is stopped.
fn is_stopped(process: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("memtap runs");
    tasks.map(|task| task.expect("tasks can be listed").path().join("stat")).all(|stat| {
        // One that has just ended has no state; the name before the state may hold anything.
        let text = fs::read_to_string(stat).unwrap_or_default();
        text.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T'))
    })
}

/// A figure of a key, added up over reports.
fn of_key(reports: &[&Value], key: &str, name: &str) -> i64 {
    let rows = reports.iter().flat_map(|report| report["hot_keys"].as_array().expect("hot_keys is a list"));
    rows.filter(|row| row["key"] == key).map(|row| figure(row, &[name])).sum()
}

fn finding<'a>(report: &'a Value, id: &str) -> Option<&'a str> {
    let findings = report["findings"].as_array().expect("findings is a list");
    findings.iter().find(|finding| finding["id"] == id).and_then(|finding| finding["text"].as_str())
}

/// What was measured on a rung is in reports without loss that say so, every request is counted, and of the outcomes those are known
/// that the rung leaves.
fn check_measurement(reports: &[Value], name: &str, rung: Rung) {
    let [newer, pooled] = ["newer", "pooled"].map(|kind| {
        let place = |place| key(&format!("{name}:{kind}"), place);
        ["first", "second"].map(place)
    });
    let all: Vec<&Value> = reports.iter().collect();
    let has_newer = |report: &&Value| newer.iter().any(|key| of_key(&[report], key, "requests") > 0);
    let own: Vec<&Value> = reports.iter().filter(has_newer).collect();
    own.iter().for_each(|report| check_kept(report, name, rung));
    let hits = match rung {
        Rung::Full => [EXCHANGES, EXCHANGES],
        Rung::Heads => [EXCHANGES, 0],
        Rung::Requests => [0, 0],
    };
    // Where answers were seen before, each request waits a moment for the one that does not come, and the last one until its client
    // asks again: they are counted, though some of them in later reports.
    let with_pooled = if rung == Rung::Requests { &all } else { &own };
    for (keys, reports) in [(newer, &own), (pooled, with_pooled)] {
        for (key, hits) in keys.iter().zip(hits) {
            assert_eq!(of_key(reports, key, "requests"), EXCHANGES, "{key}");
            assert_eq!(of_key(reports, key, "hits"), hits, "{key}");
            assert_eq!(of_key(reports, key, "misses"), 0, "{key}: nothing is made up");
        }
    }
}

/// A report without loss of what was captured on this rung.
fn check_kept(report: &Value, name: &str, rung: Rung) {
    assert_eq!(report["capture"]["detail"], rung.name(), "{name}");
    for cause in ["ring_dropped", "nic_dropped"] {
        assert_eq!(figure(report, &["loss", cause]), 0, "{name}: {cause}");
    }
    for wrong in ["capture-loss", "one-direction"] {
        assert_eq!(finding(report, wrong), None, "{name}: nothing was lost but what is left out on purpose");
    }
    let said = finding(report, "load-ladder");
    match rung {
        Rung::Full => assert_eq!(said, None, "{name}"),
        Rung::Heads | Rung::Requests => {
            let text = said.expect("the report says what it lacks");
            assert!(text.contains(rung.name()) && text.ends_with(rung.cost()), "{name}: {text}");
        }
    }
    assert_eq!(figure(report, &["bytes_out"]) > 0, rung != Rung::Requests, "{name}");
}

/// Of what was asked while the filter was exchanged no report knows less than it says, whichever interval that was in.
fn check_climb(reports: &[Value], name: &str, asked: i64) {
    let all: Vec<&Value> = reports.iter().collect();
    for (place, promised) in [("first", [Rung::Full, Rung::Heads].as_slice()), ("second", &[Rung::Full])] {
        let key = key(name, place);
        assert_eq!(of_key(&all, &key, "requests"), asked, "{key}");
        for report in reports {
            let detail = report["capture"]["detail"].as_str().expect("a text");
            if promised.iter().any(|rung| rung.name() == detail) {
                let [requests, hits] = ["requests", "hits"].map(|name| of_key(&[report], &key, name));
                assert_eq!(hits, requests, "{key} in a report that kept {detail}: {}", report["start"]);
            }
        }
    }
}

/// What was dropped stands in the report of its time, though memtap learnt of it after that was over.
fn check_times_of_loss(reports: &[Value], losses: &[[Timestamp; 2]]) {
    let mut dropped_in = vec![0; losses.len()];
    for (index, report) in reports.iter().enumerate() {
        // The first one also tells what was dropped between the opening of the ring and its own start.
        let start = if index == 0 { Timestamp::MIN } else { moment(report, "start") };
        let end = moment(report, "end");
        let dropped = figure(report, &["loss", "ring_dropped"]);
        let met: Vec<usize> =
            (0..losses.len()).filter(|&loss| start < losses[loss][1] && losses[loss][0] < end).collect();
        assert!(!met.is_empty() || dropped == 0, "{start} to {end}: {dropped} dropped when nothing was lost");
        met.into_iter().for_each(|loss| dropped_in[loss] += dropped);
    }
    assert!(dropped_in.iter().all(|&dropped| dropped > 0), "of {losses:?} these were told: {dropped_in:?}");
}

/// Packets read and packets dropped are those that were sent, and wherever some were dropped it is told in words.
fn check_balance(reports: &[Value], passing: i64) {
    let sum = |field: &str| reports.iter().map(|report| figure(report, &["loss", field])).sum::<i64>();
    let (read, dropped) = (sum("packets"), sum("ring_dropped"));
    assert_eq!(read + dropped, passing, "{read} read and {dropped} dropped: nothing is lost in silence");
    assert!(dropped > 5 * BURST_PACKETS as i64 / 2, "half of each of five bursts, at least: {dropped}");
    for report in reports.iter().filter(|report| figure(report, &["loss", "ring_dropped"]) > 0) {
        assert!(finding(report, "capture-loss").is_some(), "{}", report["start"]);
    }
}

#[test]
fn auto_steps_down_while_the_ring_loses_packets_and_up_when_it_is_over() {
    let pair = Pair::new();
    let folder = tempfile::tempdir().expect("a folder");
    let mut bench = Bench::start(&pair, folder.path().join("reports.jsonl"));

    // At once: what is dropped before memtap has had its first look at the ring counts as well.
    bench.lose();
    bench.wait_for_report("at all", |_| true);
    bench.measure("full");
    bench.lose_until_stepped_to(Rung::Heads);
    bench.measure("heads");
    bench.lose_until_stepped_to(Rung::Requests);
    bench.wait_until_quiet();
    let mut begun_unanswered = bench.connect();
    bench.measure_on(&mut begun_unanswered, "requests");
    bench.wait_until_counted();
    bench.climb_to(Rung::Heads, None);
    bench.measure("heads-again");
    let mut climbing = bench.connect();
    let asked = bench.climb_to(Rung::Full, Some((&mut climbing, "climb")));
    // Nobody has heard the server on it so far: one exchange shows where both sides are, and from the next one on it is followed.
    for _ in 0..TAKING_UP {
        begun_unanswered.exchange(&mut bench.wire, "taking-up");
    }
    bench.wait_until_quiet();
    bench.measure_on(&mut begun_unanswered, "full-again");
    begun_unanswered.close(&mut bench.wire);
    climbing.close(&mut bench.wire);
    bench.wait_until_quiet();

    let Bench { wire, memtap, reports, losses, .. } = bench;
    let (status, _) = memtap.stop();
    assert!(status.success(), "{status}");
    let reports = read_reports(&reports);
    for (name, rung) in [
        ("full", Rung::Full),
        ("heads", Rung::Heads),
        ("requests", Rung::Requests),
        ("heads-again", Rung::Heads),
        ("full-again", Rung::Full),
    ] {
        check_measurement(&reports, name, rung);
    }
    check_climb(&reports, "climb", asked);
    let all: Vec<&Value> = reports.iter().collect();
    let hits = of_key(&all, &key("taking-up", "first"), "hits");
    assert!((1..=TAKING_UP).contains(&hits), "{hits} of {TAKING_UP}");
    let of_gets =
        |field| reports.iter().map(|report| figure(report, &["commands", "get", field])).sum::<i64>();
    // Two keys; five measurements on two connections.
    assert_eq!(of_gets("requests"), 2 * (5 * 2 * EXCHANGES + asked + TAKING_UP));
    assert_eq!(of_gets("miss"), 0);

    let mut details: Vec<&str> =
        reports.iter().map(|report| report["capture"]["detail"].as_str().expect("a text")).collect();
    details.dedup();
    assert_eq!(details, ["full", "heads", "requests", "heads", "full"], "one rung at a time");

    check_times_of_loss(&reports, &losses);
    check_balance(&reports, wire.passing);
}

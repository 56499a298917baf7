//! What happens to a capture in the long run: interfaces that come and go, workers, failures of our own, and what a running
//! memtap may still do.

#[path = "support/netns.rs"]
mod netns;
#[path = "support/session.rs"]
mod session;
mod support;

use memtap::cli::Exit;
use netns::{CLIENT, Pair, SERVER};
use serde_json::Value;
use session::{Memcached, Memtap, PATIENCE, command, load, only_line};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};
use std::{fs, thread};
use support::figure;

const WHOLE: [&str; 4] = ["-w", "all", "-o", "jsonl"];

fn start(pair: &Pair, arguments: &[&str]) -> Memtap {
    Memtap::start(pair, &[&WHOLE[..], arguments].concat())
}

fn finish(memtap: Memtap) -> Value {
    let (status, text) = memtap.stop();
    assert!(status.success(), "{status}");
    only_line(&text)
}

fn some_load(pair: &Pair) {
    load(pair, &["--seconds", "0.5", "--sources", CLIENT]);
}

fn gets(report: &Value) -> i64 {
    command(report, &["get", "gets"], "requests")
}

/// Gets and their hits are those that the server counted.
fn assert_gets_equal(report: &Value, stats: &BTreeMap<String, i64>) {
    for (name, ours) in [("cmd_get", gets(report)), ("get_hits", command(report, &["get", "gets"], "hit"))] {
        assert_eq!(ours, stats[name], "{name}: {}", report["loss"]);
    }
}

/// One connection of the client, for commands of our own.
struct Connection(BufReader<TcpStream>);

impl Connection {
    fn open(pair: &Pair) -> Connection {
        let address: SocketAddr = format!("{SERVER}:11211").parse().expect("an address");
        let stream =
            pair.client.run(|| TcpStream::connect_timeout(&address, PATIENCE)).expect("memcached answers");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket takes a timeout");
        Connection(BufReader::new(stream))
    }

    /// A get of a key that is not there.
    fn miss(&mut self, key: &str) {
        self.0.get_mut().write_all(format!("get {key}\r\n").as_bytes()).expect("memcached reads");
        let mut line = String::new();
        self.0.read_line(&mut line).expect("memcached answers");
        assert_eq!(line, "END\r\n", "{key}");
    }
}

/// Until memtap has read what was sent: a block waits up to 60 ms.
fn settle() {
    thread::sleep(Duration::from_millis(300));
}

#[test]
fn an_interface_that_goes_down_and_up_is_captured_on() {
    let pair = Pair::new();
    let server = Memcached::start(&pair, &[]);
    let memtap = start(&pair, &["-i", "veth0"]);
    some_load(&pair);
    pair.server.ip("link set veth0 down");
    memtap.wait_for("veth0 is down");
    pair.server.ip("link set veth0 up");
    memtap.wait_for("veth0 is up");
    some_load(&pair);
    assert_eq!(gets(&finish(memtap)), server.stats(&pair)["cmd_get"]);
}

#[test]
fn the_size_of_packets_may_change() {
    let pair = Pair::new();
    let server = Memcached::start(&pair, &[]);
    let memtap = start(&pair, &["-i", "veth0"]);
    some_load(&pair);
    for mtu in ["9000", "600", "1500"] {
        for side in [&pair.server, &pair.client] {
            side.ip(&format!("link set veth0 mtu {mtu}"));
        }
        some_load(&pair);
    }
    let report = finish(memtap);
    assert_eq!(gets(&report), server.stats(&pair)["cmd_get"]);
    assert_eq!(figure(&report, &["loss", "gaps"]), 0);
}

#[test]
fn with_several_workers_an_interface_comes_back_on_spare_sockets() {
    let pair = Pair::new();
    let server = Memcached::start(&pair, &[]);
    let memtap = start(&pair, &["-i", "veth0", "--workers", "2", "--sandbox", "strict"]);
    for _ in 0..2 {
        some_load(&pair);
        settle();
        pair.server.ip("link del veth0");
        memtap.wait_for("gone");
        pair.link();
        memtap.wait_for("capturing on veth0");
    }
    some_load(&pair);
    assert_eq!(gets(&finish(memtap)), server.stats(&pair)["cmd_get"], "nothing was lost or counted twice");
}

#[test]
fn auto_takes_an_interface_that_appears() {
    let pair = Pair::new();
    pair.server.ip("link del veth0");
    let memtap = start(&pair, &["-i", "auto", "--sandbox", "strict"]);
    pair.link();
    memtap.wait_for("capturing on veth0");
    let server = Memcached::start(&pair, &[]);
    some_load(&pair);
    let report = finish(memtap);
    // Our own questions over loopback are seen as well, and hold no get.
    assert_eq!(gets(&report), server.stats(&pair)["cmd_get"]);
}

#[test]
fn the_last_interface_gone_for_good_ends_it() {
    let pair = Pair::new();
    let mut memtap = start(&pair, &["-i", "veth0"]);
    pair.server.ip("link del veth0");
    let began = Instant::now();
    memtap.wait_for("gone for good");
    assert!(began.elapsed() >= Duration::from_secs(5), "an interface has time to come back");
    let status = memtap.process.0.wait().expect("memtap ends");
    assert_eq!(status.code(), Some(Exit::InterfaceGone as i32));
}

#[test]
fn a_capture_in_another_namespace_sees_it() {
    let pair = Pair::new();
    let server = Memcached::start(&pair, &[]);
    // Started in the client's namespace, whose own veth0 is not told apart by its name: it listens where it is sent to, on lo.
    let arguments = [&WHOLE[..], &["-i", "lo", "--netns", pair.server.name()]].concat();
    let memtap = Memtap::start_in(&pair.client, &arguments);
    pair.server.run(|| {
        let mut stream = TcpStream::connect("127.0.0.1:11211").expect("memcached answers");
        stream.write_all(b"get within\r\n").expect("memcached reads");
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).expect("memcached answers");
        assert_eq!(line, "END\r\n");
    });
    settle();
    let report = finish(memtap);
    assert_eq!(report["hot_keys"][0]["key"], "within");
    assert_eq!((gets(&report), server.stats(&pair)["cmd_get"]), (1, 1));
}

#[test]
fn a_worker_that_fails_begins_anew_and_says_so() {
    let pair = Pair::new();
    let _server = Memcached::start(&pair, &[]);
    let arguments = [&WHOLE[..], &["-i", "veth0", "-k", "0"]].concat();
    let memtap = Memtap::start_with(&pair, &arguments, &[("MEMTAP_FAULT_AT_BYTES", "get poison")]);
    let mut connection = Connection::open(&pair);
    for number in 0..100 {
        connection.miss(&format!("before:{number}"));
    }
    settle();
    connection.miss("poison");
    let said = memtap.wait_for("began anew");
    assert!(!said.contains("poison"), "{said}");
    settle();
    for number in 0..100 {
        connection.miss(&format!("after:{number}"));
    }
    settle();
    let report = finish(memtap);
    assert_eq!(figure(&report, &["capture", "worker_restarts"]), 1);
    assert!((1..10).contains(&figure(&report, &["loss", "worker_lost"])), "{}", report["loss"]);
    assert!(report["findings"].to_string().contains("worker-restart"));
    let rows = report["hot_keys"].as_array().expect("rows");
    let with = |prefix: &str| {
        let mine = rows.iter().filter(|row| row["key"].as_str().is_some_and(|key| key.starts_with(prefix)));
        mine.map(|row| figure(row, &["requests"])).sum::<i64>()
    };
    assert_eq!(with("before:"), 100, "what was counted stays counted, and only once");
    assert!(with("after:") >= 98, "the connection is taken up again: {}", with("after:"));
}

#[test]
fn three_failures_within_a_minute_end_it() {
    let pair = Pair::new();
    let _server = Memcached::start(&pair, &[]);
    let arguments = [&WHOLE[..], &["-i", "veth0"]].concat();
    let mut memtap = Memtap::start_with(&pair, &arguments, &[("MEMTAP_FAULT_AT_BYTES", "get poison")]);
    let mut connection = Connection::open(&pair);
    for _ in 0..3 {
        connection.miss("poison");
        memtap.wait_for("began anew");
    }
    memtap.wait_for("3 times within");
    assert_eq!(memtap.process.0.wait().expect("memtap ends").code(), Some(Exit::Failure as i32));
}

#[test]
fn the_load_ladder_keeps_what_it_is_told_to() {
    let pair = Pair::new();
    let server = Memcached::start(&pair, &[]);
    let requests = start(&pair, &["-i", "veth0", "--load-ladder", "requests"]);
    some_load(&pair);
    let report = finish(requests);
    let asked = server.stats(&pair)["cmd_get"];
    assert_eq!(gets(&report), asked, "no request is lost");
    assert_eq!(command(&report, &["get", "gets"], "hit"), 0, "and nothing is made up");
    assert_eq!(figure(&report, &["bytes_out"]), 0);
    assert_eq!(report["capture"]["detail"], "requests");
    assert!(report["findings"].to_string().contains("load-ladder"));

    let heads = start(&pair, &["-i", "veth0", "--load-ladder", "heads"]);
    let before = server.stats(&pair);
    load(&pair, &["--seconds", "0.5", "--sources", CLIENT]);
    let (after, report) = (server.stats(&pair), finish(heads));
    // Of an answer with many values the later ones lie behind what is kept.
    for (outcome, counter) in [("hit", "get_hits"), ("miss", "get_misses")] {
        let (ours, theirs) = (command(&report, &["get", "gets"], outcome), after[counter] - before[counter]);
        assert!(ours <= theirs && ours * 2 > theirs, "{outcome}: {ours} of {theirs}");
    }
    assert_eq!(gets(&report), after["cmd_get"] - before["cmd_get"]);
    assert_eq!(report["capture"]["detail"], "heads");
}

/// A server that is replaced by one elsewhere while only requests are kept, and whose host goes on as a client of the new one.
#[test]
fn requests_to_a_server_that_has_moved_are_seen() {
    let pair = Pair::new();
    let server = format!("{SERVER}:11211");
    let memtap = start(&pair, &["-i", "veth0", "--load-ladder", "requests", "-t", &server]);
    let ask = |from: &str| {
        let asks = UdpSocket::bind((from, 0)).expect("an address of this host");
        asks.send_to(b"\0\x01\0\0\0\x01\0\0get moved\r\n", (SERVER, 11211)).expect("it is sent");
    };
    pair.client.run(|| ask(CLIENT));
    pair.server.ip("addr add 10.99.0.7/24 dev veth0");
    pair.server.ip(&format!("addr del {SERVER}/24 dev veth0"));
    pair.server.ip("addr replace 10.99.0.7/24 dev veth0");
    pair.client.ip(&format!("addr add {SERVER}/24 dev veth0"));
    memtap.wait_for("servers that were here");
    pair.server.run(|| ask("10.99.0.7"));
    settle();
    let report = finish(memtap);
    assert_eq!(gets(&report), 2, "{report}");
}

/// Fields of `/proc/PID/task/TID/status`, of every thread.
fn threads(memtap: &Memtap) -> Vec<BTreeMap<String, String>> {
    let tasks = fs::read_dir(format!("/proc/{}/task", memtap.process.0.id())).expect("memtap runs");
    let read = |path: std::path::PathBuf| {
        let text = fs::read_to_string(path.join("status")).expect("a thread has a status");
        let field =
            |line: &str| line.split_once(":\t").map(|(name, value)| (name.to_string(), value.to_string()));
        text.lines().filter_map(field).collect()
    };
    tasks.map(|task| read(task.expect("tasks can be listed").path())).collect()
}

#[test]
fn every_thread_has_given_up_its_privileges() {
    let pair = Pair::new();
    for user in ["", "nobody"] {
        let memtap = Memtap::start_with(
            &pair,
            &["-i", "veth0", "--workers", "2", "--sandbox", "strict"],
            &[("MEMTAP_USER", user)],
        );
        memtap.wait_for("landlock ABI");
        thread::sleep(Duration::from_millis(200));
        let threads = threads(&memtap);
        assert!(threads.len() >= 5, "main, reporter, interfaces, two workers: {}", threads.len());
        for status in threads {
            for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                assert_eq!(u64::from_str_radix(&status[set], 16), Ok(0), "{set}");
            }
            assert_eq!((status["NoNewPrivs"].as_str(), status["Seccomp"].as_str()), ("1", "2"));
            assert_eq!(status["Uid"].starts_with("0\t"), user.is_empty(), "{}", status["Uid"]);
        }
        memtap.stop();
    }
}

#[test]
fn four_workers_count_what_one_counts() {
    let pair = Pair::new();
    let server = Memcached::start(&pair, &["-c", "1024"]);
    let one = start(&pair, &["-i", "veth0", "-k", "0"]);
    let four = start(&pair, &["-i", "veth0", "-k", "0", "--workers", "4"]);
    let mut connections: Vec<Connection> = (0..100).map(|_| Connection::open(&pair)).collect();
    for round in 0..20 {
        for (number, connection) in connections.iter_mut().enumerate() {
            connection.miss(&format!("key:{}", (number + round) % 37));
        }
    }
    drop(connections);
    settle();
    let (one, four) = (finish(one), finish(four));
    assert_eq!(gets(&four), server.stats(&pair)["cmd_get"]);
    for field in [
        "requests",
        "hits",
        "misses",
        "bytes_in",
        "bytes_out",
        "clients_seen",
        "connections_seen",
        "keys_seen",
    ] {
        assert_eq!(four[field], one[field], "{field}");
    }
    let by_key = |report: &Value| -> BTreeMap<String, i64> {
        let rows = report["hot_keys"].as_array().expect("rows");
        rows.iter().map(|row| (row["key"].to_string(), figure(row, &["requests"]))).collect()
    };
    assert_eq!(by_key(&four), by_key(&one));
    assert_eq!(figure(&four, &["loss", "gaps"]), 0, "no flow is split");
}

/// A second link between the two, over which the server's answers go while requests come over the first.
fn answers_elsewhere(pair: &Pair) {
    pair.server.ip(&format!("link add veth1 type veth peer name veth1 netns {}", pair.client.name()));
    for (side, address) in [(&pair.server, "10.98.0.1/24"), (&pair.client, "10.98.0.2/24")] {
        side.ip(&format!("addr add {address} dev veth1"));
        side.ip("link set veth1 up");
        for name in ["all", "veth0", "veth1"] {
            let path = format!("/proc/sys/net/ipv4/conf/{name}/rp_filter");
            let script = format!("echo 0 > {path}");
            let status = side.command("sh").args(["-c", &script]).status().expect("sh runs");
            assert!(status.success(), "{path}");
        }
    }
    pair.server.ip(&format!("route add {CLIENT}/32 dev veth1"));
}

#[test]
fn requests_and_answers_may_pass_on_different_interfaces() {
    let pair = Pair::new();
    answers_elsewhere(&pair);
    let server = Memcached::start(&pair, &[]);
    let memtap = start(&pair, &["-i", "veth0,veth1"]);
    some_load(&pair);
    let report = finish(memtap);
    assert_gets_equal(&report, &server.stats(&pair));
    assert_eq!(figure(&report, &["loss", "gaps"]), 0);
}

#[test]
fn a_flow_that_crosses_two_interfaces_is_counted_once() {
    let pair = Pair::new();
    for command in [
        "link add br0 type bridge",
        "link set br0 up",
        "addr del 10.99.0.1/24 dev veth0",
        "link set veth0 master br0",
        "addr add 10.99.0.1/24 dev br0",
    ] {
        pair.server.ip(command);
    }
    let server = Memcached::start(&pair, &[]);
    let memtap = start(&pair, &["-i", "veth0,br0"]);
    some_load(&pair);
    let report = finish(memtap);
    assert_gets_equal(&report, &server.stats(&pair));
    assert!(figure(&report, &["loss", "duplicate_segments"]) > 1000, "{}", report["loss"]);
}

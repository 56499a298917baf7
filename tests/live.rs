//! The main job, end to end: a real memcached in a network namespace, a real client, `memtap run` on the server's interface, and
//! memcached's own counters to compare with.
//!
//! Needs root, memcached and python3-pymemcache (`./check` installs them); a test that cannot run says so and fails.
//! `MEMTAP_TEST_LIVE_SECONDS` lengthens the load.

#[path = "support/netns.rs"]
mod netns;
mod support;

use netns::{CLIENT, Pair, SERVER};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};
use support::figure;

const PATIENCE: Duration = Duration::from_secs(20);

/// A program that is ended with the test, by its id.
struct Running(Child);

impl Running {
    fn interrupt(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.0.id().to_string()]).status().expect("kill runs");
        assert!(sent.success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Already gone is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Memcached {
    _process: Running,
}

impl Memcached {
    /// On the pair's server side and on its loopback, which serves as the control connection that no capture sees.
    fn start(pair: &Pair, arguments: &[&str]) -> Memcached {
        let listen = format!("{SERVER},127.0.0.1");
        let child = pair
            .server
            .command("memcached")
            .args(["-u", "nobody", "-l", &listen, "-p", "11211", "-U", "11211", "-D", "~", "-t", "2"])
            .args(arguments)
            .stderr(Stdio::inherit())
            .spawn()
            .expect("live tests need memcached");
        let deadline = Instant::now() + PATIENCE;
        while pair.server.run(|| TcpStream::connect("127.0.0.1:11211").is_err()) {
            assert!(Instant::now() < deadline, "memcached does not answer");
            thread::sleep(Duration::from_millis(20));
        }
        Memcached { _process: Running(child) }
    }

    /// Sends one command over loopback and reads up to the line that ends its answer.
    fn ask(&self, pair: &Pair, command: &str) -> Vec<String> {
        pair.server.run(|| {
            let mut stream = TcpStream::connect("127.0.0.1:11211").expect("memcached answers");
            stream.write_all(format!("{command}\r\n").as_bytes()).expect("memcached reads");
            let lines = BufReader::new(stream).lines().map(|line| line.expect("memcached answers in text"));
            lines.take_while(|line| line != "END" && line != "OK").collect()
        })
    }

    fn stats(&self, pair: &Pair) -> BTreeMap<String, i64> {
        let lines = self.ask(pair, "stats");
        let pairs = lines.iter().filter_map(|line| line.strip_prefix("STAT ")?.split_once(' '));
        pairs.filter_map(|(name, value)| Some((name.to_string(), value.parse().ok()?))).collect()
    }

    /// get/hit/set/del by key without its final `~`.
    fn details(&self, pair: &Pair) -> BTreeMap<String, [i64; 4]> {
        let lines = self.ask(pair, "stats detail dump");
        lines
            .iter()
            .filter_map(|line| {
                let words: Vec<&str> = line.strip_prefix("PREFIX ")?.split(' ').collect();
                let [key, "get", get, "hit", hit, "set", set, "del", del] = words[..] else { return None };
                let numbers = [get, hit, set, del].map(|number| number.parse().expect("a count"));
                Some((key.to_string(), numbers))
            })
            .collect()
    }
}

/// `memtap run` on an interface of the server's namespace, once it says that it captures.
struct Memtap {
    process: Running,
    said: mpsc::Receiver<String>,
}

impl Memtap {
    fn start(pair: &Pair, arguments: &[&str]) -> Memtap {
        let mut command = pair.server.command(env!("CARGO_BIN_EXE_memtap"));
        command.arg("run").args(arguments).env("NO_COLOR", "1");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("memtap starts");
        let stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let (sender, said) = mpsc::channel();
        thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let memtap = Memtap { process: Running(child), said };
        memtap.wait_for("capturing on");
        memtap
    }

    fn wait_for(&self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut heard = Vec::new();
        while let Ok(line) = self.said.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            if line.contains(text) {
                return line;
            }
            heard.push(line);
        }
        panic!("memtap never said {text:?}, but {heard:#?}");
    }

    /// Asks it to stop and reads what it printed.
    fn stop(mut self) -> (ExitStatus, String) {
        self.process.interrupt("-INT");
        let mut text = String::new();
        let stdout = self.process.0.stdout.as_mut().expect("stdout is piped");
        stdout.read_to_string(&mut text).expect("the report is UTF-8");
        (self.process.0.wait().expect("memtap ends"), text)
    }
}

fn load(pair: &Pair, arguments: &[&str]) -> Value {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/load.py");
    let output = pair
        .client
        .command("/usr/bin/python3")
        .args([script, &format!("{SERVER}:11211"), "--suffix", "~"])
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()
        .expect("live tests need python3");
    assert!(output.status.success(), "the load client failed; live tests need python3-pymemcache");
    serde_json::from_slice(&output.stdout).expect("the load client prints JSON")
}

fn seconds() -> String {
    std::env::var("MEMTAP_TEST_LIVE_SECONDS").unwrap_or_else(|_| "4".into())
}

fn only_line(text: &str) -> Value {
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 1, "one interval, one target: {text}");
    serde_json::from_str(lines[0]).expect("a line is a JSON object")
}

fn command(report: &Value, names: &[&str], outcome: &str) -> i64 {
    names.iter().map(|name| figure(report, &["commands", name, outcome])).sum()
}

#[test]
fn counts_equal_those_of_memcached_and_of_the_client() {
    let pair = Pair::new();
    pair.client.ip("addr add 10.99.0.3/24 dev veth0");
    let server = Memcached::start(&pair, &[]);
    let memtap = Memtap::start(
        &pair,
        &[
            "-i",
            "veth0",
            "-t",
            "live=10.99.0.1:11211",
            "-w",
            "all",
            "-k",
            "0",
            "--clients-per-key",
            "0",
            "-o",
            "jsonl",
        ],
    );
    let before = server.stats(&pair);
    let sent = load(&pair, &["--seconds", &seconds(), "--sources", &format!("{CLIENT},10.99.0.3/0.3")]);
    let after = server.stats(&pair);
    let (status, text) = memtap.stop();
    assert!(status.success(), "{status}");
    let report = only_line(&text);

    assert_eq!(figure(&report, &["loss", "ring_dropped"]), 0);
    assert_eq!(figure(&report, &["loss", "gaps"]), 0, "{}", report["loss"]);
    let delta = |name: &str| after[name] - before[name];
    let stores = ["set", "add", "replace", "append", "prepend", "cas"];
    for (name, ours) in [
        ("cmd_get", command(&report, &["get", "gets"], "requests")),
        ("get_hits", command(&report, &["get", "gets"], "hit")),
        ("get_misses", command(&report, &["get", "gets"], "miss")),
        ("cmd_set", command(&report, &stores, "requests")),
        ("cmd_touch", command(&report, &["touch"], "requests")),
        ("touch_hits", command(&report, &["touch"], "hit")),
        ("delete_hits", command(&report, &["delete"], "hit")),
        ("delete_misses", command(&report, &["delete"], "miss")),
    ] {
        assert_eq!(ours, delta(name), "{name}: ours, memcached's");
    }

    let rows = report["hot_keys"].as_array().expect("hot_keys is a list");
    let ours: BTreeMap<String, [i64; 4]> = rows
        .iter()
        .filter_map(|row| {
            let key = row["key"].as_str()?.trim_end_matches('~').to_string();
            let counts = ["gets", "hits", "stores", "deletes"].map(|name| figure(row, &[name]));
            Some((key, counts)).filter(|(_, counts)| counts.iter().sum::<i64>() > 0)
        })
        .collect();
    let theirs: BTreeMap<String, [i64; 4]> =
        server.details(&pair).into_iter().filter(|(_, counts)| counts.iter().sum::<i64>() > 0).collect();
    assert_eq!(ours, theirs, "per key: gets, hits, sets, deletes");

    for (client, requests) in sent["clients"].as_object().expect("clients is an object") {
        let prefix = format!("{client}:");
        let rows = report["hot_clients"].as_array().expect("hot_clients is a list");
        let mine =
            rows.iter().filter(|row| row["client"].as_str().is_some_and(|name| name.starts_with(&prefix)));
        let counted: i64 = mine.map(|row| figure(row, &["requests"])).sum();
        assert_eq!(Some(counted), requests.as_i64(), "requests of {client}");
    }
    assert_eq!(rows[0]["key"], "user:0001:profile~", "the planted key is the hottest");
}

#[test]
fn intervals_come_in_time_and_demand_is_answered() {
    let pair = Pair::new();
    let _server = Memcached::start(&pair, &[]);
    let memtap = Memtap::start(&pair, &["-i", "veth0", "-w", "1s", "-o", "jsonl"]);
    load(&pair, &["--seconds", "2.5", "--sources", CLIENT]);
    memtap.process.interrupt("-USR1");
    thread::sleep(Duration::from_millis(600));
    let (status, text) = memtap.stop();
    assert!(status.success(), "{status}");
    let reports: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("a line is a JSON object")).collect();
    assert!(reports.len() >= 4, "{} reports in some three seconds", reports.len());
    for pair in reports.windows(2) {
        assert_eq!(pair[0]["end"], pair[1]["start"], "intervals follow each other without a hole");
    }
    let partial = reports.iter().filter(|report| report["partial"] == true).count();
    assert!(partial >= 2, "at least the first and the last are partial: {partial}");
    assert!(reports.iter().any(|report| figure(report, &["requests"]) > 0));
}

#[test]
fn an_interface_that_goes_and_comes_is_captured_again() {
    let pair = Pair::new();
    let server = Memcached::start(&pair, &[]);
    let memtap = Memtap::start(&pair, &["-i", "veth0", "-w", "all", "-o", "jsonl"]);
    load(&pair, &["--seconds", "0.5", "--sources", CLIENT]);
    pair.server.ip("link del veth0");
    memtap.wait_for("gone");
    pair.link();
    memtap.wait_for("is back");
    load(&pair, &["--seconds", "0.5", "--sources", CLIENT]);
    let stats = server.stats(&pair);
    let (status, text) = memtap.stop();
    assert!(status.success(), "{status}");
    let report = only_line(&text);
    assert_eq!(command(&report, &["get", "gets"], "requests"), stats["cmd_get"], "all but nothing was lost");
}

#[test]
fn without_a_target_in_sight_the_report_says_what_is_seen() {
    let pair = Pair::new();
    let _server = Memcached::start(&pair, &[]);
    let memtap = Memtap::start(&pair, &["-i", "veth0", "-t", "other=10.99.0.77:11211", "-w", "all"]);
    load(&pair, &["--seconds", "0.3", "--sources", CLIENT]);
    let (status, text) = memtap.stop();
    assert!(status.success(), "{status}");
    assert!(text.contains("other") && text.contains("veth0"), "{text}");
}

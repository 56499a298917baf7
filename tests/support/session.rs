//! A real memcached in a network namespace, a real client in another, and `memtap run` beside the server.
//!
//! Needs root, memcached and python3-pymemcache (`./check` installs them); what cannot run says so and fails.

#![allow(dead_code, reason = "each test binary uses its own part")]

use crate::netns::{CLIENT, Namespace, Pair, SERVER};
use crate::support::figure;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A program that is ended with the test, by its id.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    pub(crate) fn interrupt(&self, signal: &str) {
        interrupt(&self.0, signal);
    }
}

/// Sends a signal to a program that runs.
pub(crate) fn interrupt(child: &Child, signal: &str) {
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill runs");
    assert!(sent.success());
}

impl Drop for Running {
    fn drop(&mut self) {
        // Already gone is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A memcached on the pair's server side and on its loopback, once it answers. No capture of the pair's link sees the loopback.
pub(crate) fn start_memcached(pair: &Pair, port: u16, arguments: &[&str]) -> Running {
    let (listen, port_text) = (format!("{SERVER},127.0.0.1"), port.to_string());
    let child = pair
        .server
        .command("memcached")
        .args(["-u", "nobody", "-l", &listen, "-p", &port_text, "-U", &port_text, "-t", "2"])
        .args(arguments)
        .stderr(Stdio::inherit())
        .spawn()
        .expect("live tests need memcached");
    let running = Running(child);
    let deadline = Instant::now() + PATIENCE;
    while pair.server.run(|| TcpStream::connect(("127.0.0.1", port)).is_err()) {
        assert!(Instant::now() < deadline, "memcached does not answer");
        thread::sleep(Duration::from_millis(20));
    }
    running
}

/// A memcached that can be asked what it counted.
pub(crate) struct Memcached {
    _process: Running,
    port: u16,
}

impl Memcached {
    pub(crate) fn start(pair: &Pair, arguments: &[&str]) -> Memcached {
        Memcached::start_at(pair, 11211, arguments)
    }

    pub(crate) fn start_at(pair: &Pair, port: u16, arguments: &[&str]) -> Memcached {
        Memcached { _process: start_memcached(pair, port, &[&["-D", "~"], arguments].concat()), port }
    }

    /// Sends one command over loopback and reads up to the line that ends its answer.
    pub(crate) fn ask(&self, pair: &Pair, command: &str) -> Vec<String> {
        pair.server.run(|| {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("memcached answers");
            stream.write_all(format!("{command}\r\n").as_bytes()).expect("memcached reads");
            let lines = BufReader::new(stream).lines().map(|line| line.expect("memcached answers in text"));
            lines.take_while(|line| line != "END" && line != "OK").collect()
        })
    }

    pub(crate) fn stats(&self, pair: &Pair) -> BTreeMap<String, i64> {
        let lines = self.ask(pair, "stats");
        let pairs = lines.iter().filter_map(|line| line.strip_prefix("STAT ")?.split_once(' '));
        pairs.filter_map(|(name, value)| Some((name.to_string(), value.parse().ok()?))).collect()
    }

    /// get/hit/set/del by key without its final `~`.
    pub(crate) fn details(&self, pair: &Pair) -> BTreeMap<String, [i64; 4]> {
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
pub(crate) struct Memtap {
    pub(crate) process: Running,
    said: mpsc::Receiver<String>,
}

impl Memtap {
    pub(crate) fn start(pair: &Pair, arguments: &[&str]) -> Memtap {
        Memtap::spawn(&pair.server, arguments, &[])
    }

    pub(crate) fn start_in(namespace: &Namespace, arguments: &[&str]) -> Memtap {
        Memtap::spawn(namespace, arguments, &[])
    }

    pub(crate) fn start_with(pair: &Pair, arguments: &[&str], environment: &[(&str, &str)]) -> Memtap {
        Memtap::spawn(&pair.server, arguments, environment)
    }

    fn spawn(namespace: &Namespace, arguments: &[&str], environment: &[(&str, &str)]) -> Memtap {
        let mut command = namespace.command(env!("CARGO_BIN_EXE_memtap"));
        command.arg("run").args(arguments).env("NO_COLOR", "1").envs(environment.iter().copied());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("memtap starts");
        let stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let (sender, said) = mpsc::channel();
        thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let memtap = Memtap { process: Running(child), said };
        memtap.wait_for("capturing on");
        memtap
    }

    pub(crate) fn wait_for(&self, text: &str) -> String {
        self.listen(text, PATIENCE)
            .unwrap_or_else(|heard| panic!("memtap never said {text:?}, but {heard:#?}"))
    }

    /// The next line with that text, or what else was said in that time.
    pub(crate) fn listen(&self, text: &str, patience: Duration) -> Result<String, Vec<String>> {
        let deadline = Instant::now() + patience;
        let mut heard = Vec::new();
        while let Ok(line) = self.said.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            if line.contains(text) {
                return Ok(line);
            }
            heard.push(line);
        }
        Err(heard)
    }

    /// Asks it to stop and reads what it printed.
    pub(crate) fn stop(mut self) -> (ExitStatus, String) {
        self.process.interrupt("-INT");
        let mut text = String::new();
        let stdout = self.process.0.stdout.as_mut().expect("stdout is piped");
        stdout.read_to_string(&mut text).expect("the report is UTF-8");
        (self.process.0.wait().expect("memtap ends"), text)
    }
}

fn load_command(pair: &Pair, port: u16, arguments: &[&str]) -> Command {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/load.py");
    let mut command = pair.client.command("/usr/bin/python3");
    command.args([script, &format!("{SERVER}:{port}"), "--suffix", "~"]).args(arguments);
    command
}

/// Load to its end; what the client says it sent.
pub(crate) fn load(pair: &Pair, arguments: &[&str]) -> Value {
    load_at(pair, 11211, arguments)
}

/// The same on another port of the server's.
pub(crate) fn load_at(pair: &Pair, port: u16, arguments: &[&str]) -> Value {
    let output = load_command(pair, port, arguments)
        .stderr(Stdio::inherit())
        .output()
        .expect("live tests need python3");
    assert!(output.status.success(), "the load client failed; live tests need python3-pymemcache");
    serde_json::from_slice(&output.stdout).expect("the load client prints JSON")
}

/// Load beside the test, until it is dropped.
pub(crate) fn start_load(pair: &Pair, arguments: &[&str]) -> Running {
    Running(
        load_command(pair, 11211, arguments).stdout(Stdio::null()).spawn().expect("live tests need python3"),
    )
}

/// Load from two clients, the first of which asks three times as much.
pub(crate) fn start_load_of_two(pair: &Pair) -> Running {
    pair.client.ip("addr add 10.99.0.3/24 dev veth0");
    start_load(pair, &["--seconds", "120", "--sources", &format!("{CLIENT},10.99.0.3/0.3")])
}

pub(crate) fn only_line(text: &str) -> Value {
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 1, "one interval, one target: {text}");
    serde_json::from_str(lines[0]).expect("a line is a JSON object")
}

pub(crate) fn command(report: &Value, names: &[&str], outcome: &str) -> i64 {
    names.iter().map(|name| figure(report, &["commands", name, outcome])).sum()
}

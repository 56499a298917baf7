//! A memcached and its load in a pair of namespaces, for tests of the live screen and of the control socket.
#![allow(dead_code, reason = "each test binary uses its own part")]

use crate::netns::{CLIENT, Pair, SERVER};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// A program that is ended with the test, by its id.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Already gone is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn start_memcached(pair: &Pair) -> Running {
    let child = pair
        .server
        .command("memcached")
        .args(["-u", "nobody", "-l", SERVER, "-p", "11211", "-U", "0", "-t", "2"])
        .spawn()
        .expect("live tests need memcached");
    let running = Running(child);
    let deadline = Instant::now() + PATIENCE;
    while pair.server.run(|| std::net::TcpStream::connect((SERVER, 11211)).is_err()) {
        assert!(Instant::now() < deadline, "memcached does not answer");
        std::thread::sleep(Duration::from_millis(20));
    }
    running
}

/// Load from two clients, the first of which asks three times as much, until it is dropped.
pub(crate) fn start_load(pair: &Pair) -> Running {
    pair.client.ip("addr add 10.99.0.3/24 dev veth0");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/load.py");
    let child = pair
        .client
        .command("/usr/bin/python3")
        .args([script, &format!("{SERVER}:11211"), "--suffix", "~", "--seconds", "120"])
        .args(["--sources", &format!("{CLIENT},10.99.0.3/0.3")])
        .stdout(Stdio::null())
        .spawn()
        .expect("live tests need python3");
    Running(child)
}

/// The first words of the rows of the table that is on the screen.
pub(crate) fn first_words(screen: &str, title: &str) -> Vec<String> {
    let rows = screen.lines().skip_while(|line| !line.starts_with(title)).skip(1);
    let words = rows.map_while(|line| line.split_whitespace().next());
    words.filter(|word| *word != "?").map(str::to_string).collect()
}

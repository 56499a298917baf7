//! The captures that are put beside a memcached: how each is started on the server's interface, and what it says that it saw.

use crate::counted;
use crate::netns::{Pair, SERVER};
use crate::programs::{Running, Said, is_installed};
use crate::support::{text_argument, wrong_usage};
use std::fs;

/// A way to capture.
pub(crate) struct Capture {
    /// For `--only`.
    pub(crate) name: &'static str,
    /// For tables.
    pub(crate) title: &'static str,
    program: Program,
    arguments: &'static [&'static str],
}

/// Who captures.
enum Program {
    /// This bench again, as [`counted`].
    CountedRing,
    /// `memtap run`.
    Memtap,
    /// Another's program of that name, which need not be there.
    Other(&'static str),
}

/// All of them; the first two are those of a quick run.
static CAPTURES: [Capture; 5] = [
    Capture {
        name: "counted-ring",
        title: "ring, blocks only counted",
        program: Program::CountedRing,
        arguments: &[],
    },
    Capture { name: "memtap", title: "memtap", program: Program::Memtap, arguments: &[] },
    Capture {
        name: "memtap-requests",
        title: "memtap, requests only",
        program: Program::Memtap,
        arguments: &["--load-ladder", "requests"],
    },
    Capture {
        name: "tcpdump",
        title: "tcpdump -w /dev/null",
        program: Program::Other("tcpdump"),
        arguments: &["-i", "veth0", "-s", "0", "-B", "65536", "-w", "/dev/null", "port 11211"],
    },
    Capture {
        name: "tshark",
        title: "tshark -w /dev/null",
        program: Program::Other("tshark"),
        arguments: &["-q", "-i", "veth0", "-B", "64", "-w", "/dev/null", "-f", "port 11211"],
    },
];

/// Those that `--only` names, or all, as far as they are there; says which are not.
pub(crate) fn chosen(quick: bool) -> Vec<&'static Capture> {
    let all = CAPTURES.iter().map(|capture| capture.name);
    let only = text_argument("only");
    let wanted: Vec<&str> = match &only {
        Some(only) => only.split(',').map(str::trim).collect(),
        None => all.clone().take(if quick { 2 } else { CAPTURES.len() }).collect(),
    };
    if let Some(unknown) = wanted.iter().find(|name| !all.clone().any(|known| known == **name)) {
        let allowed = all.collect::<Vec<_>>().join(",");
        wrong_usage(&format!(
            "--only: nothing here is called {unknown:?}; allowed, one or more of: {allowed}"
        ));
    }
    let wanted = CAPTURES.iter().filter(|capture| wanted.contains(&capture.name));
    let is_there = |capture: &&Capture| match capture.program {
        Program::Other(program) if !is_installed(program) => {
            println!("{} is left out: there is no {program} on the search path", capture.title);
            false
        }
        _ => true,
    };
    wanted.filter(is_there).collect()
}

impl Capture {
    /// Starts it in the server's namespace; returns when its ring is there and it has come to rest.
    pub(crate) fn start(&self, pair: &Pair) -> Running {
        let mut command = match self.program {
            Program::CountedRing => {
                let own = std::env::current_exe().expect("a program has a file");
                let mut command = pair.server.command(own.to_str().expect("a path in UTF-8"));
                command.args([counted::ARGUMENT, "veth0"]);
                command
            }
            Program::Memtap => {
                let mut command = pair.server.command(env!("CARGO_BIN_EXE_memtap"));
                command.args(["run", "-i", "veth0", "-t", SERVER, "-o", "jsonl", "-q"]);
                // Another memtap of this machine may have the usual place.
                command.env("MEMTAP_CONTROL_SOCKET", "off");
                command
            }
            Program::Other(program) => pair.server.command(program),
        };
        let mut running = Running::start(self.title, command.args(self.arguments));
        running.settle(|| pair.server.run(is_captured));
        running
    }

    /// Ends it, and reads what it saw. A capture that saw nothing would be a cheap one.
    pub(crate) fn end(&self, running: Running) -> Seen {
        let said = running.end();
        let seen = match self.program {
            Program::Memtap => Seen::from_reports(&said.output),
            Program::CountedRing | Program::Other(_) => Seen::from_words(&said),
        };
        assert!(seen.packets > 0, "{} saw no packet: {}", self.title, said.errors);
        seen
    }
}

/// Whether somebody captures in this thread's network namespace: a packet socket runs there that is bound to an interface.
fn is_captured() -> bool {
    let sockets = fs::read_to_string("/proc/thread-self/net/packet").unwrap_or_default();
    sockets.lines().skip(1).any(|line| {
        // sk, references, type, protocol, interface, whether it runs (net/packet/af_packet.c, `packet_seq_show`).
        let fields: Vec<&str> = line.split_whitespace().collect();
        matches!(fields[..], [_, _, _, _, interface, "1", ..] if interface != "0")
    })
}

/// What a capture says that it saw.
#[derive(Clone, Copy, Default)]
pub(crate) struct Seen {
    pub(crate) packets: u64,
    pub(crate) lost: u64,
}

impl Seen {
    fn from_reports(reports: &str) -> Seen {
        let mut seen = Seen::default();
        for line in reports.lines() {
            let report: serde_json::Value = serde_json::from_str(line).expect("memtap writes JSON Lines");
            let count = |name: &str| report["loss"][name].as_u64().expect("a count of every report");
            seen.packets += count("packets");
            seen.lost += count("ring_dropped");
        }
        seen
    }

    /// As tcpdump says it at its end, and others do after it: `4711 packets captured`, `0 packets dropped by kernel`.
    fn from_words(said: &Said) -> Seen {
        let mut seen = Seen::default();
        for line in said.output.lines().chain(said.errors.lines()) {
            let Some((count, words)) = line.trim().split_once(' ') else { continue };
            let Ok(count) = count.parse::<u64>() else { continue };
            match words {
                "packet captured" | "packets captured" => seen.packets += count,
                _ if words.starts_with("packet") && words.contains("dropped") => seen.lost += count,
                _ => {}
            }
        }
        seen
    }
}

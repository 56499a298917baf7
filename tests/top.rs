//! The live screen: what it looks like at three sizes, whatever keys hold, and driven by key presses in a real terminal
//! (tmux) on a recording and on a live capture.
//!
//! The live part needs root, tmux, memcached and python3-pymemcache (`./check` installs them); a test that cannot run says so
//! and fails.

#[path = "support/netns.rs"]
mod netns;
#[path = "support/session.rs"]
mod session;
mod support;
#[path = "support/tmux.rs"]
mod tmux;

use memtap::anomaly::Anomaly;
use memtap::collector::snapshot::{
    ClientRow, CommandOutcomes, Counters, KeyRow, LatencySummary, PairRow, ServerRow, Snapshot,
};
use memtap::config::Over;
use memtap::model::{Command, Endpoint, Outcome, Timestamp, Transport};
use memtap::report::{ClientView, EndpointSeen, KeyGroup, ReportOptions, SeenElsewhere, SourceSeen};
use memtap::top::page::View;
use memtap::top::state::{Effect, Input, Source, State};
use memtap::top::{Frame, screen};
use netns::{CLIENT, Pair, SERVER};
use proptest::prelude::*;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::Modifier;
use session::{start_load_of_two, start_memcached};
use std::fmt::Write;
use std::process::Stdio;
use std::time::Duration;
use tmux::{Tmux, first_words};

/// 2026-11-22T12:00:00Z.
const START_SECS: u64 = 1_795_348_800;

fn client(last: u8, port: u16) -> Endpoint {
    Endpoint::from_ipv4([10, 2, 0, last], port)
}

fn counters(gets: u64, misses: u64) -> Counters {
    Counters {
        gets,
        hits: gets - misses,
        misses,
        bytes_in: gets * 34,
        bytes_out: (gets - misses) * 512,
        latency_sum_us: gets * 120,
        latency_samples: gets,
        latency_max_us: 9_200,
        ..Counters::default()
    }
}

fn key_row(key: &[u8], gets: u64, misses: u64) -> KeyRow {
    let pair = |last, requests| PairRow { client: client(last, 0), requests, err: 0 };
    let clients = vec![pair(17, gets - gets / 3), pair(43, gets / 3)];
    KeyRow { key: key.into(), truncated: false, err: 0, counters: counters(gets, misses), clients }
}

fn snapshot(target: &str, second: u64, mut keys: Vec<KeyRow>) -> Snapshot {
    for number in 0..60u64 {
        keys.push(key_row(format!("item:{:08x}:page", number * 7919).as_bytes(), 900 - number, number));
    }
    let total: u64 = keys.iter().map(|row| row.counters.gets).sum();
    let top_key = keys.first().map(|row| (row.key.clone(), row.counters.gets / 2));
    let row = |last, port, gets| ClientRow {
        client: client(last, port),
        err: 0,
        counters: counters(gets, gets / 50),
        top_key: top_key.clone(),
    };
    let mut snapshot = Snapshot {
        target: target.to_string(),
        address: "10.1.0.5:11211".to_string(),
        start: Timestamp::from_parts(START_SECS + second, 0),
        end: Timestamp::from_parts(START_SECS + second + 2, 0),
        latency: LatencySummary { p50: 110, p90: 240, p99: 840, max: 9_200, samples: total },
        clients_seen: 2,
        connections_seen: 3,
        keys_seen: keys.len() as u64,
        clients: vec![row(17, 0, total - total / 3), row(43, 0, total / 3)],
        sockets: vec![row(17, 51422, total / 3), row(17, 51423, total / 3), row(43, 40000, total / 3)],
        keys,
        packets_by_direction: [total, total],
        ..Snapshot::default()
    };
    snapshot.totals.counters = counters(total, total / 50);
    let get = &mut snapshot.totals.commands[Command::Get.index()];
    *get = CommandOutcomes { requests: total, ..CommandOutcomes::default() };
    get.outcomes[Outcome::Hit.index()] = total - total / 50;
    get.outcomes[Outcome::Miss.index()] = total / 50;
    snapshot.loss.packets = total * 2;
    snapshot
}

fn frame(second: u64) -> Frame {
    let keys = vec![
        key_row(b"user:1:profile", 412_105, 1_130),
        key_row(b"weird \x1b[2J|`<b>\\=1", 40_007, 39_000),
        key_row("schlüssel".as_bytes(), 10_000, 10_000),
    ];
    let mut cold = snapshot("cache-b", second, vec![key_row(b"cold:1", 2_000, 2)]);
    cold.loss.ring_dropped = 77;
    (cold.health.ring_blocks_peak, cold.health.ring_blocks) = (12, 64);
    cold.loss.anomalies.add(Anomaly::GapBytes, 4_242);
    let server = |last, gets| ServerRow {
        server: Endpoint::from_ipv4([10, 1, 0, last], 11211),
        err: 0,
        counters: counters(gets, gets / 50),
        top_key: Some((b"cold:1"[..].into(), gets / 20)),
    };
    cold.servers = vec![server(6, 14_230), server(5, 40_000)];
    let seen = SeenElsewhere {
        sources: vec![SourceSeen { name: "eth0".to_string(), packets: 1_500_000 }],
        packets_matched: 1_281_000,
        packets_foreign: 12,
        busiest: vec![EndpointSeen { endpoint: client(1, 443), transport: Transport::Tcp, packets: 1_000 }],
    };
    Frame { snapshots: vec![snapshot("cache-a", second, keys), cold], seen }
}

fn state() -> State {
    let group = |name: &str, pattern: &str| KeyGroup {
        name: name.to_string(),
        pattern: regex::bytes::Regex::new(pattern).expect("a regular expression"),
    };
    let groups = vec![group("users", "^user:"), group("pages", ":page$")];
    let options = ReportOptions { groups, ..ReportOptions::default() };
    let mut state = State::new(options, Over::Interval, Source::Capture);
    state.take(frame(0));
    state.take(frame(2));
    state
}

fn drawn(state: &mut State, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a test backend opens");
    terminal.draw(|frame| screen::draw(frame, state)).expect("a test backend draws");
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    for line in 0..height {
        let cells = (0..width).map(|column| buffer[(column, line)].symbol());
        let cells: String = cells.collect();
        text.push_str(cells.trim_end());
        // The selected row, not the tab: its line is all in the colours reversed.
        let last = &buffer[(width - 1, line)];
        if last.modifier.contains(Modifier::REVERSED) {
            text.push_str(" ◀");
        }
        text.push('\n');
    }
    text
}

fn press(state: &mut State, inputs: &[Input]) {
    for input in inputs {
        assert_eq!(state.handle(*input), Effect::None, "{input:?}");
    }
}

fn type_text(state: &mut State, text: &str) {
    for character in text.chars() {
        press(state, &[Input::Type(character)]);
    }
}

/// One file for each size; each screen is reached from the one before it.
#[test]
fn screens_at_three_sizes() {
    for (width, height) in [(80, 24), (120, 40), (200, 50)] {
        let mut state = state();
        let mut screens = String::new();
        let mut show = |name: &str, state: &mut State| {
            let text = drawn(state, width, height);
            for line in text.lines() {
                assert!(line.trim_end_matches(" ◀").chars().count() <= usize::from(width));
            }
            writeln!(screens, "──── {name}\n{text}").expect("strings grow");
        };
        show("keys", &mut state);
        press(&mut state, &[Input::Down, Input::Enter]);
        show("clients of the second key", &mut state);
        press(&mut state, &[Input::Enter]);
        show("keys of its first client", &mut state);
        press(&mut state, &[Input::Show(1)]);
        show("clients by IP and port", &mut state);
        press(&mut state, &[Input::ClientView]);
        show("clients by IP", &mut state);
        press(&mut state, &[Input::Show(2)]);
        show("shapes", &mut state);
        press(&mut state, &[Input::Show(3)]);
        show("groups", &mut state);
        press(&mut state, &[Input::Show(4)]);
        show("servers of a single address", &mut state);
        press(&mut state, &[Input::NextTarget]);
        show("servers of the second target", &mut state);
        press(&mut state, &[Input::PreviousTarget, Input::Show(5)]);
        show("targets", &mut state);
        press(&mut state, &[Input::Show(6)]);
        show("commands", &mut state);
        press(&mut state, &[Input::Show(7), Input::NextTarget, Input::Older]);
        show("health of the second target, one interval back", &mut state);
        press(&mut state, &[Input::Freeze, Input::PreviousTarget, Input::Show(0), Input::AskFilter]);
        type_text(&mut state, "kye ~ x");
        press(&mut state, &[Input::Enter]);
        show("a filter that is none", &mut state);
        press(&mut state, &[Input::EraseLine]);
        type_text(&mut state, "^item:0000");
        press(&mut state, &[Input::Enter, Input::SortAfter, Input::SortAfter, Input::Last]);
        show("filtered, by misses, at the last row", &mut state);
        press(&mut state, &[Input::AskExport]);
        show("export", &mut state);
        press(&mut state, &[Input::Back, Input::Help]);
        show("help", &mut state);
        insta::assert_snapshot!(format!("top-{width}"), screens);
    }
}

#[test]
fn a_screen_of_any_size_is_drawn() {
    let mut state = state();
    for width in [1, 2, 7, 20, 39, 60, 500] {
        for height in [1, 2, 3, 5, 9] {
            for tab in 0..View::TABS.len() {
                press(&mut state, &[Input::Show(tab)]);
                drawn(&mut state, width, height);
            }
            press(&mut state, &[Input::Help]);
            drawn(&mut state, width, height);
            press(&mut state, &[Input::Help]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_key_drives_the_terminal(
        keys in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..250), 1..20),
        width in 40u16..160,
    ) {
        let rows = keys.iter().map(|key| key_row(key, 50_000, 7)).collect();
        let mut state = State::new(
            ReportOptions { client: ClientView::Ip, ..ReportOptions::default() },
            Over::Interval,
            Source::Capture,
        );
        state.take(Frame { snapshots: vec![snapshot("t", 0, rows)], ..Frame::default() });
        for inputs in [&[][..], &[Input::Enter], &[Input::Show(1)], &[Input::Enter], &[Input::Show(2)], &[Input::Show(3)], &[Input::Show(5)]] {
            press(&mut state, inputs);
            let text = drawn(&mut state, width, 30);
            let harmless = |character: char| {
                character == '\n' || (' '..='~').contains(&character) || "…·±◀".contains(character)
            };
            prop_assert!(text.chars().all(harmless), "{text:?}");
        }
    }
}

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_recording_is_shown_in_a_terminal_that_is_given_back() {
    let recording = support::fixture("clients/pymemcache_text_v4.pcap.zst");
    let program = env!("CARGO_BIN_EXE_memtap");
    let command = format!("{program} top --replay {} -w 1s; echo ENDED=$?", recording.display());
    let tmux = Tmux::start(100, 30, &["sh"]);
    tmux.keys(&[&command, "Enter"]);
    let screen =
        tmux.wait_for(PATIENCE, |screen| screen.contains("HOT KEYS") && screen.contains("recording"));
    assert!(screen.contains("1 keys"), "{screen}");
    assert_eq!(tmux.ask("#{alternate_on}"), "1");
    tmux.keys(&["?"]);
    tmux.wait_for(PATIENCE, |screen| screen.contains("any key goes on"));
    tmux.keys(&["x", "q"]);
    tmux.wait_for(PATIENCE, |screen| screen.contains("ENDED=0"));
    assert_eq!(tmux.ask("#{alternate_on}"), "0", "the terminal is given back");

    // On a signal, too.
    tmux.keys(&["clear", "Enter", &command, "Enter"]);
    tmux.wait_for(PATIENCE, |screen| screen.contains("HOT KEYS"));
    let shell = tmux.ask("#{pane_pid}");
    let children = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).expect("/proc");
    let signalled = std::process::Command::new("kill").args(["-TERM", children.trim()]).status();
    assert!(signalled.expect("kill runs").success());
    tmux.wait_for(PATIENCE, |screen| screen.contains("ENDED=0"));
    assert_eq!(tmux.ask("#{alternate_on}"), "0", "the terminal is given back");
}

/// A closed window or a broken connection must not leave a program behind.
#[test]
fn a_terminal_that_hangs_up_ends_the_program() {
    let recording = support::fixture("clients/pymemcache_text_v4.pcap.zst").display().to_string();
    let program = env!("CARGO_BIN_EXE_memtap");
    let tmux = Tmux::start(100, 30, &[program, "top", "--replay", &recording, "-w", "1s"]);
    tmux.wait_for(PATIENCE, |screen| screen.contains("HOT KEYS"));
    let process = format!("/proc/{}", tmux.ask("#{pane_pid}"));
    let exists = || std::fs::exists(&process).expect("/proc is there");
    assert!(exists());
    drop(tmux);
    let deadline = std::time::Instant::now() + PATIENCE;
    while exists() {
        assert!(std::time::Instant::now() < deadline, "it runs on without a terminal");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn without_a_terminal_top_says_what_to_use_instead() {
    let output =
        support::memtap().args(["top", "--no-attach"]).stdin(Stdio::null()).output().expect("memtap starts");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("memtap run"));
}

#[test]
fn the_planted_key_and_client_are_found_live() {
    let pair = Pair::new();
    let _server = start_memcached(&pair, 11211, &[]);
    let _load = start_load_of_two(&pair);
    let folder = tempfile::tempdir().expect("a folder");
    let program = env!("CARGO_BIN_EXE_memtap");
    let command =
        format!("{program} top --no-attach -i veth0 -t live={SERVER} -w 1s --budget-mb 20; echo ENDED=$?");
    let tmux = Tmux::start(120, 40, &["ip", "netns", "exec", pair.server.name(), "sh"]);
    tmux.keys(&[&command, "Enter"]);
    let hottest = "user:0001:profile~";
    tmux.wait_for(PATIENCE, |screen| {
        first_words(screen, "HOT KEYS").first().is_some_and(|key| key == hottest)
    });

    let screen = tmux.open("CLIENTS OF KEY", PATIENCE);
    assert_eq!(first_words(&screen, "CLIENTS OF KEY")[0], CLIENT, "{screen}");
    let screen = tmux.open("KEYS OF CLIENT", PATIENCE);
    assert_eq!(first_words(&screen, "KEYS OF CLIENT")[0], hottest, "{screen}");
    tmux.keys(&["1", "Space"]);
    let frozen = tmux.wait_for(PATIENCE, |screen| screen.contains("FROZEN") && screen.contains("HOT KEYS"));
    let later = tmux.wait_for(PATIENCE, |screen| screen.contains("FROZEN, 2 newer"));
    // All but the line that says how many are newer.
    let held = |screen: &str| {
        screen
            .lines()
            .enumerate()
            .filter(|(at, _)| *at != 1)
            .map(|(_, line)| line.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(held(&later), held(&frozen), "what is frozen holds");

    tmux.keys(&["/", "^cfg", "Enter"]);
    let filtered = tmux.wait_for(PATIENCE, |screen| screen.contains("filter key ~ ^cfg"));
    let keys = first_words(&filtered, "HOT KEYS");
    assert!(!keys.is_empty() && keys.iter().all(|key| key.starts_with("cfg.")), "{filtered}");

    let file = folder.path().join("seen.md");
    tmux.keys(&["e", "C-u"]);
    tmux.keys(&[&file.display().to_string(), "Enter"]);
    tmux.wait_for(PATIENCE, |screen| screen.contains("written: "));
    let exported = std::fs::read_to_string(&file).expect("the export is there");
    let rows: Vec<&str> =
        exported.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert!(rows.len() >= keys.len());
    assert_eq!(rows[..keys.len()], keys, "what is on the screen, in its order");

    tmux.keys(&["c", "Space", "q"]);
    tmux.wait_for(PATIENCE, |screen| screen.contains("ENDED=0"));
}

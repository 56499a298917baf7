//! The control socket of a running `memtap run`: who may use it, what it answers, and a screen that attaches to it.
//!
//! Needs root, tmux, memcached and python3-pymemcache (`./check` installs them); a test that cannot run says so and fails.

#[path = "support/netns.rs"]
mod netns;
#[path = "support/session.rs"]
mod session;
mod support;
#[path = "support/tmux.rs"]
mod tmux;

use netns::{CLIENT, Pair, SERVER};
use serde_json::{Value, json};
use session::{Running, start_load_of_two, start_memcached};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tmux::{Tmux, first_words};

const PATIENCE: Duration = Duration::from_secs(60);

/// `memtap run` in the server's namespace, listening on a socket of its own.
struct Daemon {
    process: Running,
    socket: PathBuf,
    folder: tempfile::TempDir,
}

impl Daemon {
    fn start(pair: &Pair, arguments: &[&str], environment: &[(&str, &str)]) -> Daemon {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("control.sock");
        let child = pair
            .server
            .command(env!("CARGO_BIN_EXE_memtap"))
            .args(["run", "-i", "veth0", "-w", "1s", "--budget-mb", "20"])
            .args(arguments)
            .env("MEMTAP_CONTROL_SOCKET", &socket)
            .envs(environment.iter().copied())
            .stdout(Stdio::null())
            .spawn()
            .expect("memtap starts");
        let daemon = Daemon { process: Running(child), socket, folder };
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(&daemon.socket).is_err() {
            assert!(Instant::now() < deadline, "memtap does not listen on its socket");
            std::thread::sleep(Duration::from_millis(20));
        }
        daemon
    }

    fn connect(&self) -> Conversation {
        Conversation::with(&self.socket)
    }

    fn interrupt(&mut self) -> std::process::ExitStatus {
        let id = self.process.0.id().to_string();
        let sent = std::process::Command::new("kill").args(["-INT", &id]).status().expect("kill runs");
        assert!(sent.success());
        self.process.0.wait().expect("memtap ends")
    }
}

struct Conversation {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Conversation {
    fn with(socket: &Path) -> Conversation {
        let stream = UnixStream::connect(socket).expect("memtap listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout is set");
        let lines = BufReader::new(stream.try_clone().expect("a stream is cloned"));
        Conversation { stream, lines }
    }

    fn say(&mut self, line: &str) {
        self.stream.write_all(format!("{line}\n").as_bytes()).expect("memtap reads");
    }

    /// The next answer; nothing when the other end has closed.
    fn hear(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).expect("an answer is a JSON object")),
            // What was still unread when it closed makes the kernel say so.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("no answer: {error}"),
        }
    }
}

#[test]
fn the_socket_is_its_owners_and_answers_in_version_1() {
    let pair = Pair::new();
    let mut daemon = Daemon::start(&pair, &["-t", &format!("one={SERVER},two={CLIENT}:11212")], &[]);
    let mode = std::fs::metadata(&daemon.socket).expect("the socket is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let mut talk = daemon.connect();
    let hello = talk.hear().expect("it says hello");
    assert_eq!(
        (&hello["v"], &hello["type"], &hello["privacy"]),
        (&json!(1), &json!("hello"), &json!("full"))
    );
    talk.say(r#"{"v":1,"type":"targets"}"#);
    let targets = talk.hear().expect("it answers");
    assert_eq!(
        targets["targets"],
        json!([
            {"name": "one", "address": format!("{SERVER}:11211"), "budget_bytes": 20_000_000, "state": "watched"},
            {"name": "two", "address": format!("{CLIENT}:11212"), "budget_bytes": 20_000_000, "state": "watched"},
        ])
    );
    for (wrong, expected) in [
        ("stats", "not an object"),
        (r#"{"v":9,"type":"targets"}"#, "version 9"),
        (r#"{"v":1,"type":"shutdown"}"#, "shutdown"),
    ] {
        talk.say(wrong);
        let answer = talk.hear().expect("it answers");
        assert_eq!(answer["type"], "error");
        assert!(answer["text"].as_str().is_some_and(|text| text.contains(expected)), "{answer}");
    }

    // What is too long ends the conversation, and nobody else's.
    let mut flood = daemon.connect();
    flood.hear();
    // It may have closed before it was sent all.
    let _ = flood.stream.write_all(&[b'x'; 100_000]);
    assert_eq!(flood.hear(), None);
    talk.say(r#"{"v":1,"type":"targets"}"#);
    assert_eq!(talk.hear().expect("it still answers")["type"], "targets");

    // Sixteen at a time.
    let deadline = Instant::now() + PATIENCE;
    let mut others: Vec<Conversation> = Vec::new();
    while others.len() < 15 {
        let mut other = daemon.connect();
        if other.hear().is_some_and(|hello| hello["type"] == "hello") {
            others.push(other);
            continue;
        }
        // Whoever saw whether somebody listens has gone, but memtap may not have had the time to notice.
        assert!(Instant::now() < deadline, "{} of 15 are let in", others.len());
        std::thread::sleep(Duration::from_millis(20));
    }
    let refused = daemon.connect().hear().expect("it says why");
    assert!(refused["text"].as_str().is_some_and(|text| text.contains("16 clients")), "{refused}");

    assert!(daemon.interrupt().success());
    assert!(UnixStream::connect(&daemon.socket).is_err(), "nobody listens any more");
}

#[test]
fn a_place_that_is_taken_is_refused_and_one_that_was_left_is_taken_over() {
    let pair = Pair::new();
    let mut first = Daemon::start(&pair, &[], &[]);
    let second = |socket: &Path| {
        pair.server
            .command(env!("CARGO_BIN_EXE_memtap"))
            .args(["run", "-i", "veth0", "-n", "1", "-w", "100ms", "--budget-mb", "20"])
            .env("MEMTAP_CONTROL_SOCKET", socket)
            .output()
            .expect("memtap starts")
    };
    let refused = second(&first.socket);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("another memtap listens there"));
    first.process.0.kill().expect("it is killed");
    first.process.0.wait().expect("it ends");
    assert!(first.socket.exists(), "nobody was left to take it away");
    let taken = second(&first.socket);
    assert!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
    let file = first.folder.path().join("file");
    std::fs::write(&file, "mine").expect("a file is written");
    assert_eq!(second(&file).status.code(), Some(1));
    assert_eq!(std::fs::read_to_string(&file).expect("it is still there"), "mine");
}

/// From inside the sandbox, as another user, and with keys that nobody may see.
#[test]
fn a_screen_attaches_to_a_daemon_that_has_given_up_its_privileges() {
    let pair = Pair::new();
    let _server = start_memcached(&pair, 11211, &[]);
    let _load = start_load_of_two(&pair);
    let environment = [("MEMTAP_USER", "nobody"), ("MEMTAP_HASH_SECRET", "a secret of sixteen")];
    let target = format!("live={SERVER}");
    let mut daemon = Daemon::start(&pair, &["-t", &target, "--privacy", "hash"], &environment);

    let mut watcher = daemon.connect();
    watcher.hear();
    watcher.say(r#"{"v":1,"type":"watch"}"#);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let line = watcher.hear().expect("intervals come");
        assert!(!line.to_string().contains("user:0001") && !line.to_string().contains("dXNlcjowMDAx"));
        assert_eq!(line["type"], "interval");
        if line["targets"][0]["keys"].as_array().is_some_and(|keys| !keys.is_empty()) {
            break;
        }
        assert!(Instant::now() < deadline, "no keys come");
    }

    let program = env!("CARGO_BIN_EXE_memtap");
    let socket = daemon.socket.display();
    let command = format!("MEMTAP_CONTROL_SOCKET={socket} {program} top; echo ENDED=$?");
    let tmux = Tmux::start(120, 40, &["sh"]);
    tmux.keys(&[&command, "Enter"]);
    // On a busy machine the load may leave a second out.
    let has_keys = |screen: &str| screen.contains("attached") && !first_words(screen, "HOT KEYS").is_empty();
    let screen = tmux.wait_for(PATIENCE, has_keys);
    assert!(screen.contains("privacy hash"), "{screen}");
    let keys = first_words(&screen, "HOT KEYS");
    assert!(keys[0].starts_with('#') && keys[0].len() == 17, "{screen}");
    tmux.open("CLIENTS OF KEY", PATIENCE);
    // The planted client, over the socket; in the first interval, which is short, another may be ahead of it.
    tmux.wait_for(PATIENCE, |screen| {
        first_words(screen, "CLIENTS OF KEY").first().is_some_and(|client| client == CLIENT)
    });

    // No capture of its own is needed for a second one.
    let second = Tmux::start(80, 24, &["sh"]);
    second.keys(&[&command, "Enter"]);
    let screen = second.wait_for(PATIENCE, has_keys);
    assert!(first_words(&screen, "HOT KEYS")[0].starts_with('#'), "{screen}");
    second.keys(&["q"]);
    second.wait_for(PATIENCE, |screen| screen.contains("ENDED=0"));

    assert!(daemon.interrupt().success());
    tmux.wait_for(PATIENCE, |screen| screen.contains("NO LONGER FED"));
    tmux.keys(&["q"]);
    tmux.wait_for(PATIENCE, |screen| screen.contains("ENDED=0"));
}

#[test]
fn targets_are_listed_by_name() {
    let pair = Pair::new();
    let daemon = Daemon::start(&pair, &["-t", &format!("one={SERVER},two=10.0.0.0/8:11212")], &[]);
    let mut list = support::memtap();
    let output = support::succeed(list.args(["target", "list"]).env("MEMTAP_CONTROL_SOCKET", &daemon.socket));
    let expected = format!("one\t{SERVER}:11211\t20 MB\twatched\ntwo\t10.0.0.0/8:11212\t20 MB\twatched\n");
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);

    let nowhere = daemon.folder.path().join("nowhere");
    let mut list = support::memtap();
    let output =
        list.args(["target", "list"]).env("MEMTAP_CONTROL_SOCKET", nowhere).output().expect("it starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is memtap run running"));
}

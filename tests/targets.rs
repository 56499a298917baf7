//! Targets that come and go while memtap runs, over the control socket and by SIGHUP: the others lose no count, a new one has its memory
//! before it is announced, and one that goes reports its last interval and gives its memory back.
//!
//! Needs root, memcached and python3-pymemcache (`./check` installs them); a test that cannot run says so and fails.

#[path = "support/netns.rs"]
mod netns;
#[path = "support/session.rs"]
mod session;
mod support;

use netns::{CLIENT, Pair, SERVER};
use serde_json::Value;
use session::{Memcached, Memtap, PATIENCE, command, load_at};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use support::figure;

const MB: i64 = 1_000_000;

/// `memtap run` in the strictest sandbox, with a control socket and an output of its own.
struct Daemon {
    memtap: Memtap,
    folder: tempfile::TempDir,
}

impl Daemon {
    fn start(pair: &Pair, arguments: &[&str]) -> Daemon {
        Daemon::start_in(tempfile::tempdir().expect("a folder"), pair, arguments)
    }

    fn start_in(folder: tempfile::TempDir, pair: &Pair, arguments: &[&str]) -> Daemon {
        let path = |name: &str| folder.path().join(name).display().to_string();
        let (out, socket) = (path("out"), path("control.sock"));
        // This is about counts; on a machine that builds something else meanwhile memtap may have no turn for long.
        let common = ["-w", "1s", "-o", "jsonl", "--sandbox", "strict", "--ring-mb", "256", "--out", &out];
        let environment = [("MEMTAP_CONTROL_SOCKET", socket.as_str())];
        let memtap = Memtap::start_with(pair, &[&common, arguments].concat(), &environment);
        memtap.wait_for("sandbox: capabilities none");
        Daemon { memtap, folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `memtap target …`.
    fn target(&self, arguments: &[&str]) -> Output {
        let mut command = support::memtap();
        command.arg("target").args(arguments).env("MEMTAP_CONTROL_SOCKET", self.file("control.sock"));
        command.output().expect("memtap starts")
    }

    /// The same, which has to succeed; what it prints.
    fn done(&self, arguments: &[&str]) -> String {
        let output = self.target(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text is UTF-8")
    }

    /// The same, which has to be refused.
    fn refused(&self, arguments: &[&str], code: i32, expected: &str) {
        let output = self.target(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(expected), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty());
    }

    /// Names and states.
    fn list(&self) -> Vec<(String, String)> {
        let listed = self.done(&["list"]);
        let fields = listed.lines().map(|line| line.split('\t').collect::<Vec<_>>());
        fields.map(|fields| (fields[0].to_string(), fields[3].to_string())).collect()
    }

    fn names(&self) -> Vec<String> {
        self.list().into_iter().map(|(name, _)| name).collect()
    }

    /// Bytes of the process's memory that are there.
    fn resident(&self) -> i64 {
        let path = format!("/proc/{}/status", self.memtap.process.0.id());
        let status = fs::read_to_string(path).expect("memtap runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
        line.trim().trim_end_matches(" kB").parse::<i64>().expect("a number") * 1024
    }

    /// Ends it; all that it reported.
    fn stop(self) -> Reports {
        let (status, _) = self.memtap.stop();
        assert!(status.success(), "{status}");
        let text = fs::read_to_string(self.folder.path().join("out")).expect("it reported");
        let lines = text.lines().map(|line| serde_json::from_str(line).expect("a line is a JSON object"));
        Reports(lines.collect())
    }
}

struct Reports(Vec<Value>);

impl Reports {
    fn of(&self, target: &str) -> Vec<&Value> {
        self.0.iter().filter(|report| report["target"] == target).collect()
    }

    fn sum(&self, target: &str, names: &[&str], outcome: &str) -> i64 {
        self.of(target).into_iter().map(|report| command(report, names, outcome)).sum()
    }

    /// What memtap counted of a target's gets.
    fn gets(&self, target: &str) -> i64 {
        self.sum(target, &["get", "gets"], "requests")
    }

    /// All intervals of a target together are what its memcached counted, and nothing was lost on the way.
    fn assert_equal(&self, target: &str, stats: &BTreeMap<String, i64>) {
        for report in self.of(target) {
            let lost = figure(report, &["loss", "ring_dropped"]) + figure(report, &["loss", "gaps"]);
            assert_eq!(lost, 0, "this machine was too busy for a test of counts: {}", report["loss"]);
        }
        let stores = ["set", "add", "replace", "append", "prepend", "cas"];
        for (name, ours) in [
            ("cmd_get", self.gets(target)),
            ("get_hits", self.sum(target, &["get", "gets"], "hit")),
            ("get_misses", self.sum(target, &["get", "gets"], "miss")),
            ("cmd_set", self.sum(target, &stores, "requests")),
            ("cmd_touch", self.sum(target, &["touch"], "requests")),
            ("delete_hits", self.sum(target, &["delete"], "hit")),
            ("delete_misses", self.sum(target, &["delete"], "miss")),
        ] {
            assert_eq!(ours, stats[name], "{name} of {target}: ours, memcached's");
        }
    }

    /// Which of a target's intervals are partial.
    fn partial(&self, target: &str) -> Vec<bool> {
        self.of(target).iter().map(|report| report["partial"] == true).collect()
    }

    /// A target's intervals follow each other without a hole.
    fn assert_without_hole(&self, target: &str) {
        for pair in self.of(target).windows(2) {
            assert_eq!(pair[0]["end"], pair[1]["start"], "intervals of {target} follow each other");
        }
    }
}

/// Load on a port for so many seconds, beside the test.
fn start_load<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    pair: &'scope Pair,
    port: u16,
    seconds: &'scope str,
) -> thread::ScopedJoinHandle<'scope, Value> {
    scope.spawn(move || load_at(pair, port, &["--seconds", seconds, "--sources", CLIENT]))
}

fn pause(seconds: f64) {
    thread::sleep(Duration::from_secs_f64(seconds));
}

#[test]
fn targets_come_and_go_under_load_and_the_others_lose_no_count() {
    for workers in ["1", "2"] {
        come_and_go(workers);
    }
}

fn come_and_go(workers: &str) {
    let pair = Pair::new();
    let [a, b, c] = [11211, 11212, 11213].map(|port| Memcached::start_at(&pair, port, &[]));
    let gets = |server: &Memcached| server.stats(&pair)["cmd_get"];
    let target = format!("a={SERVER}");
    let daemon =
        Daemon::start(&pair, &["-i", "veth0", "-t", &target, "--budget-mb", "40", "--workers", workers]);
    let before = daemon.resident();
    let (b_since, b_until) = thread::scope(|scope| {
        let loads = [start_load(scope, &pair, 11211, "14"), start_load(scope, &pair, 11212, "12")];
        // Python takes its time where others build.
        let load_goes_on = |from: i64| {
            let deadline = Instant::now() + PATIENCE;
            while gets(&b) <= from + 50 {
                assert!(Instant::now() < deadline, "nothing is asked of b");
                pause(0.05);
            }
        };
        load_goes_on(0);
        let asked = gets(&b);
        let added = daemon.done(&["add", &format!("b={SERVER}:11212")]);
        let since = (asked, gets(&b));
        assert_eq!(added, format!("b\t{SERVER}:11212\t300 MB\twatched\n"));
        let grown = daemon.resident() - before;
        assert!(grown > 290 * MB, "its memory is taken when it is announced: {grown} bytes");
        pause(2.5);
        load_goes_on(since.1);
        let (asked, full) = (gets(&b), daemon.resident());
        let removed = daemon.done(&["remove", "b"]);
        let until = (asked, gets(&b));
        assert_eq!(removed, format!("b\t{SERVER}:11212\t300 MB\tremoved\n"));
        // What the report took goes back with the next interval; what others took meanwhile is theirs.
        let given_back = || full - daemon.resident();
        let deadline = Instant::now() + Duration::from_secs(5);
        while given_back() < 270 * MB && Instant::now() < deadline {
            pause(0.1);
        }
        assert!(given_back() > 250 * MB, "its memory is given back: {} of {full} bytes", given_back());

        // Of this one nothing is asked while it comes and goes, so all that is asked has to be counted.
        daemon.done(&["add", &format!("c={SERVER}:11213"), "--budget-mb", "20"]);
        load_at(&pair, 11213, &["--seconds", "1.5", "--sources", CLIENT]);
        daemon.done(&["remove", "c"]);
        assert_eq!(daemon.list(), [("a".to_string(), "watched".to_string())]);
        for load in loads {
            load.join().expect("the load ends well");
        }
        (since, until)
    });
    pause(0.5);
    let reports = daemon.stop();
    reports.assert_equal("a", &a.stats(&pair));
    reports.assert_equal("c", &c.stats(&pair));
    let (b_gets, least, most) = (reports.gets("b"), b_until.0 - b_since.1, b_until.1 - b_since.0);
    assert!((least..=most).contains(&b_gets), "{least} <= {b_gets} <= {most}");
    assert!(least > 0, "it was asked for something while it was watched");

    let whole = |partial: &[bool]| partial[1..partial.len() - 1].iter().all(|partial| !partial);
    reports.assert_without_hole("a");
    if workers == "1" {
        // Of several, one may take the order in another interval than the others; the last report then spans both.
        reports.assert_without_hole("b");
    }
    let partial = reports.partial("a");
    assert!(partial.len() >= 8 && whole(&partial), "the intervals of the others are not cut: {partial:?}");
    let partial = reports.partial("b");
    assert!(partial.len() >= 3 && whole(&partial), "{partial:?}");
    assert!(partial[0] && partial[partial.len() - 1], "it came and went in the midst of one: {partial:?}");
    // Reported when it went, and not at the end; an interval of the others may close in between.
    let last_of_b = reports.0.iter().rposition(|report| report["target"] == "b").expect("b was reported");
    let end = |report: &Value| report["end"].as_str().map(str::to_string);
    let last_end = end(&reports.0[last_of_b]);
    let later = reports.0[..last_of_b].iter().filter(|report| end(report) > last_end).count();
    assert!(later <= 1, "{later} reports of later intervals came before b's last");
}

#[test]
fn what_cannot_be_added_or_removed_is_refused_and_changes_nothing() {
    let pair = Pair::new();
    let target = format!("a={SERVER},fleet=10.7.0.0/16");
    // Without a default route; the fleet is reached over the link.
    pair.server.ip("route add 10.7.0.0/16 dev veth0");
    let daemon = Daemon::start(&pair, &["-i", "auto", "-t", &target, "--budget-mb", "20"]);
    let known = daemon.done(&["list"]);
    for (arguments, code, expected) in [
        (&["add", "a=10.99.0.9"][..], 1, "there is a target \"a\" already"),
        (&["add", "b=10.99.0.1"], 1, "overlaps target \"a\" (10.99.0.1:11211)"),
        (&["add", "10.7.1.2:11211"], 1, "overlaps target \"fleet\""),
        (&["add", "b=10.99.0.9", "--budget-mb", "900000"], 1, "cannot reserve 900000000000 bytes"),
        (&["add", "b=192.0.2.7"], 1, "no interface leads to 192.0.2.7:11211"),
        (&["add", "b=nonsense"], 2, "is not an IP address"),
        (&["add", "b=10.99.0.9", "--budget-mb", "1"], 2, "out of range"),
        (&["add", "b=10.99.0.9,c=10.99.0.8"], 2, "one target at a time"),
        (&["add"], 2, "[NAME=]ADDR[:PORT]"),
        (&["remove", "x"], 1, "there is no target \"x\"; there are \"a\", \"fleet\""),
    ] {
        daemon.refused(arguments, code, expected);
        assert_eq!(daemon.done(&["list"]), known, "{arguments:?}");
    }
    daemon.done(&["remove", "a"]);
    daemon.refused(&["remove", "fleet"], 1, "the last target");
    daemon.done(&["add", "10.99.0.9:11211"]);
    assert_eq!(daemon.names(), ["fleet", "10.99.0.9:11211"]);

    // Clients speak for themselves: what they say is judged here as well.
    let mut stream =
        std::os::unix::net::UnixStream::connect(daemon.file("control.sock")).expect("it listens");
    let mut lines = BufReader::new(stream.try_clone().expect("a stream is cloned")).lines();
    lines.next();
    for (values, expected) in [
        (
            r#""name":"","address":"10.99.0.8","port":1,"protocols":["tcp"],"budget_bytes":20000000"#,
            "no name",
        ),
        (r#""name":"b","address":"*","port":1,"protocols":[],"budget_bytes":20000000"#, "protocols is empty"),
        (r#""name":"b","address":"10.99.0.8","port":1,"protocols":["tcp"],"budget_bytes":1"#, "out of range"),
        (r#""name":"b","address":"10.99.0.8""#, "not understood"),
    ] {
        writeln!(stream, r#"{{"v":1,"type":"add_target",{values}}}"#).expect("memtap reads");
        let answer = lines.next().expect("it answers").expect("in text");
        assert!(answer.contains(r#""type":"error""#) && answer.contains(expected), "{answer}");
    }
    daemon.stop();
}

#[test]
fn a_configuration_that_is_read_again_changes_the_targets() {
    let pair = Pair::new();
    let [a, b, c] = [11211, 11212, 11213].map(|port| Memcached::start_at(&pair, port, &[]));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("memtap.toml");
    let write = |targets: &[(&str, u16, &str)], more: &str| {
        let target = |(name, port, budget): &(&str, u16, &str)| {
            format!(
                "[[target]]\nname = \"{name}\"\naddress = \"{SERVER}\"\nport = {port}\nbudget = \"{budget}\"\n"
            )
        };
        fs::write(&path, targets.iter().map(target).collect::<String>() + more).expect("a file is written");
    };
    write(&[("a", 11211, "20MB"), ("b", 11212, "20MB")], "");
    let config = path.display().to_string();
    let daemon = Daemon::start_in(folder, &pair, &["-i", "veth0", "-c", &config]);
    let reload = |expected: &str| {
        daemon.memtap.process.interrupt("-HUP");
        daemon.memtap.wait_for(expected)
    };
    let counted = thread::scope(|scope| {
        // Three reloads have taken 10 s where memory was slow to come.
        let loads = [start_load(scope, &pair, 11211, "25"), start_load(scope, &pair, 11212, "25")];
        pause(1.5);
        write(&[("a", 11211, "20MB")], "[report\n");
        reload("the old one stays in force");
        write(&[("a", 11211, "20MB"), ("d", 11211, "20MB")], "");
        assert!(reload("the targets stay as they are").contains("overlaps target \"a\""));
        daemon.memtap.wait_for("taken over");
        assert_eq!(daemon.names(), ["a", "b"]);

        // One stays, one is different, one is new.
        write(&[("c", 11213, "20MB"), ("b", 11212, "30MB"), ("a", 11211, "20MB")], "[report]\ntop = 3\n");
        reload("report settings, key groups and privacy taken over");
        assert_eq!(daemon.names(), ["a", "c", "b"]);
        let since = b.stats(&pair)["cmd_get"];
        load_at(&pair, 11213, &["--seconds", "1", "--sources", CLIENT]);
        let counted = b.stats(&pair)["cmd_get"] - since;
        assert!(counted > 10, "the load goes on: {counted}");

        // What was added over the socket is not in the configuration.
        daemon.done(&["add", "e=10.99.0.9", "--budget-mb", "20"]);
        write(&[("a", 11211, "20MB"), ("c", 11213, "20MB")], "");
        daemon.memtap.process.interrupt("-HUP");
        daemon.memtap.wait_for("target b removed");
        daemon.memtap.wait_for("target e removed");
        daemon.memtap.wait_for("taken over");
        assert_eq!(daemon.names(), ["a", "c"]);
        for load in loads {
            load.join().expect("the load ends well");
        }
        counted
    });
    pause(0.5);
    let reports = daemon.stop();
    reports.assert_equal("a", &a.stats(&pair));
    reports.assert_equal("c", &c.stats(&pair));
    assert!(
        reports.0.iter().all(|report| report["host"] == reports.0[0]["host"]),
        "what is asked once stays known"
    );
    let of_b = reports.of("b");
    let anew = of_b.windows(2).position(|pair| pair[0]["end"] != pair[1]["start"]).expect("it went and came");
    assert_eq!((&of_b[anew]["partial"], &of_b[anew + 1]["partial"]), (&true.into(), &true.into()));
    // Its client's one connection was open all the time, and the target that came in its place went on with it.
    let gets: i64 = of_b[anew + 1..].iter().map(|report| command(report, &["get", "gets"], "requests")).sum();
    assert!(gets >= counted, "{gets} of {counted} and more");
}

/// The target's link is not captured until it comes; the sandbox lets nothing be opened, but a socket is kept for that.
#[test]
fn a_target_on_another_link_is_captured_there() {
    let pair = Pair::new();
    pair.server.ip(&format!("link add veth1 type veth peer name veth1 netns {}", pair.client.name()));
    for (side, address) in [(&pair.server, "10.98.0.1/24"), (&pair.client, "10.98.0.2/24")] {
        side.ip(&format!("addr add {address} dev veth1"));
        side.ip("link set veth1 up");
    }
    let daemon = Daemon::start(&pair, &["-i", "auto", "-t", &format!("a={SERVER}"), "--budget-mb", "20"]);
    let ended = AtomicBool::new(false);
    let listener = pair.server.run(|| TcpListener::bind("10.98.0.1:11211").expect("it listens"));
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut client, _) = listener.accept().expect("a client comes");
            for line in BufReader::new(client.try_clone().expect("a stream is cloned")).lines() {
                line.expect("it asks in text");
                client.write_all(b"END\r\n").expect("the client reads");
            }
            ended.store(true, Ordering::Relaxed);
        });
        daemon.done(&["add", "b=10.98.0.1", "--budget-mb", "20"]);
        daemon.memtap.wait_for("capturing on veth1");
        pair.client.run(|| {
            let mut stream = TcpStream::connect("10.98.0.1:11211").expect("it connects");
            let mut answers = BufReader::new(stream.try_clone().expect("a stream is cloned")).lines();
            for _ in 0..50 {
                stream.write_all(b"get key\r\n").expect("it is read");
                assert_eq!(answers.next().expect("it answers").expect("in text"), "END");
            }
        });
    });
    assert!(ended.load(Ordering::Relaxed));
    pause(0.5);
    let reports = daemon.stop();
    assert_eq!((reports.gets("b"), reports.sum("b", &["get"], "miss")), (50, 50));
}

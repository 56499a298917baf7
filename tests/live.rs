//! The main job, end to end: a real memcached in a network namespace, a real client, `memtap run` on the server's interface, and
//! memcached's own counters to compare with.
//!
//! `MEMTAP_TEST_LIVE_SECONDS` lengthens the load.

#[path = "support/netns.rs"]
mod netns;
#[path = "support/session.rs"]
mod session;
mod support;

use netns::{CLIENT, Pair};
use serde_json::Value;
use session::{Memcached, Memtap, command, load, only_line};
use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;
use support::figure;

fn seconds() -> String {
    std::env::var("MEMTAP_TEST_LIVE_SECONDS").unwrap_or_else(|_| "4".into())
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
            // This is about counts; on a machine that builds something else meanwhile memtap may have no turn for long.
            "--ring-mb",
            "256",
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
    memtap.wait_for("capturing on veth0");
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

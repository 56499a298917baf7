//! Recordings of real clients against memcached's own counters.
//!
//! The rules of reconciliation are those of memcached's source: which commands move which counter (`proto_text.c`,
//! `proto_bin.c`, `items.c`). What cannot be known from the wire is named in each test with its reason.

mod support;

use serde_json::Value;
use std::collections::BTreeMap;
use support::{figure, fixture, replay_all, truth};

/// `commands.NAME.OUTCOME` summed over names.
fn sum(report: &Value, commands: &[&str], outcome: &str) -> i64 {
    commands.iter().map(|command| figure(report, &["commands", command, outcome])).sum()
}

const STORES: [&str; 7] = ["set", "add", "replace", "append", "prepend", "cas", "ms"];

/// Our sums, under the names of memcached's counters.
fn server_counters(report: &Value) -> BTreeMap<&'static str, i64> {
    let refused = sum(report, &STORES, "too_large");
    BTreeMap::from([
        ("cmd_get", sum(report, &["get", "gets", "mg"], "requests") + sum(report, &["mg_touch"], "miss")),
        ("get_hits", sum(report, &["get", "gets", "mg"], "hit")),
        ("get_misses", sum(report, &["get", "gets", "mg", "mg_touch"], "miss")),
        ("cmd_touch", sum(report, &["touch", "gat", "gats"], "requests") + sum(report, &["mg_touch"], "hit")),
        ("touch_hits", sum(report, &["touch", "gat", "gats", "mg_touch"], "hit")),
        ("touch_misses", sum(report, &["touch", "gat", "gats"], "miss")),
        ("cmd_set", sum(report, &STORES, "requests") - refused),
        ("delete_hits", sum(report, &["delete", "md"], "hit")),
        ("delete_misses", sum(report, &["delete", "md"], "miss") + sum(report, &["md"], "exists")),
        ("incr_hits", sum(report, &["incr", "ma"], "hit")),
        ("incr_misses", sum(report, &["incr", "ma"], "miss")),
        ("decr_hits", sum(report, &["decr", "ma_decr"], "hit")),
        ("decr_misses", sum(report, &["decr", "ma_decr"], "miss")),
        ("cas_hits", sum(report, &["cas"], "stored")),
        ("cas_badval", sum(report, &["cas"], "exists")),
        ("cas_misses", sum(report, &["cas"], "not_found")),
        ("cmd_flush", sum(report, &["flush_all"], "requests")),
        ("cmd_meta", sum(report, &["me"], "requests")),
    ])
}

/// Counters that differ, except those that `known` names with the difference that the recording's own nature explains.
fn differing_counters(report: &Value, truth: &Value, known: &[(&str, i64)]) -> Vec<String> {
    server_counters(report)
        .into_iter()
        .filter_map(|(name, ours)| {
            let theirs = figure(truth, &["stats_delta", name]);
            let explained =
                known.iter().find(|(known, _)| *known == name).map_or(0, |&(_, difference)| difference);
            (ours - theirs != explained).then(|| format!("{name}: ours {ours}, memcached's {theirs}"))
        })
        .collect()
}

/// get/hit/set/del per key as in `stats detail dump`, where keys lose their final `~`.
fn details(report: &Value) -> BTreeMap<String, [i64; 4]> {
    let rows = report["hot_keys"].as_array().expect("hot_keys is a list");
    rows.iter()
        .filter_map(|row| {
            let key = row["key"].as_str()?.strip_suffix('~')?.to_string();
            let counts = ["gets", "hits", "stores", "deletes"].map(|name| figure(row, &[name]));
            Some((key, counts)).filter(|(_, counts)| counts.iter().sum::<i64>() > 0)
        })
        .collect()
}

fn server_details(truth: &Value) -> BTreeMap<String, [i64; 4]> {
    let keys = truth["stats_detail_per_key"].as_object().expect("stats_detail_per_key is an object");
    keys.iter()
        .map(|(key, counts)| (key.clone(), ["get", "hit", "set", "del"].map(|name| figure(counts, &[name]))))
        .filter(|(_, counts)| counts.iter().sum::<i64>() > 0)
        .collect()
}

fn differing_keys(report: &Value, truth: &Value) -> Vec<String> {
    let (ours, theirs) = (details(report), server_details(truth));
    let keys: std::collections::BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
    keys.into_iter()
        .filter(|key| ours.get(*key) != theirs.get(*key))
        .map(|key| format!("{key}: ours {:?}, memcached's {:?}", ours.get(key), theirs.get(key)))
        .collect()
}

/// Payload that was neither gap nor control connection: [to the server, to the clients].
fn server_payload(truth: &Value) -> [i64; 2] {
    [
        figure(truth, &["stats_delta", "bytes_read"])
            - figure(truth, &["control", "ctl_tx_before_final_stats"]),
        figure(truth, &["stats_delta", "bytes_written"])
            - figure(truth, &["control", "ctl_rx_between_snapshots"]),
    ]
}

fn only(reports: Vec<Value>) -> Value {
    assert_eq!(reports.len(), 1, "one target, one interval");
    reports.into_iter().next().unwrap()
}

/// As [`check`], for a client whose writes ask for no answer: of these, hits and misses (and stored, exists, not found) have no
/// known outcome on the wire, and their requests must equal what memcached counted in all.
#[track_caller]
fn check_with_noreply(name: &str) -> Value {
    let truth = truth(name);
    let report = only(replay_all(&fixture(&format!("{name}.pcap.zst")), &["-t", "*:11211"]));
    let requests = |commands: &[&str]| sum(&report, commands, "requests");
    let theirs =
        |names: &[&str]| names.iter().map(|name| figure(&truth, &["stats_delta", name])).sum::<i64>();
    assert_eq!(requests(&["delete"]), theirs(&["delete_hits", "delete_misses"]));
    assert_eq!(requests(&["incr"]), theirs(&["incr_hits", "incr_misses"]));
    assert_eq!(requests(&["decr"]), theirs(&["decr_hits", "decr_misses"]));
    assert_eq!(requests(&["cas"]), theirs(&["cas_hits", "cas_badval", "cas_misses"]));
    let split = [
        "delete_hits",
        "delete_misses",
        "incr_hits",
        "incr_misses",
        "decr_hits",
        "decr_misses",
        "cas_hits",
        "cas_badval",
        "cas_misses",
    ];
    let known: Vec<(&str, i64)> = split.map(|name| (name, -theirs(&[name]))).to_vec();
    check(name, &known)
}

#[track_caller]
fn check(name: &str, known: &[(&str, i64)]) -> Value {
    let truth = truth(name);
    let report = only(replay_all(&fixture(&format!("{name}.pcap.zst")), &["-t", "*:11211"]));
    let counters = differing_counters(&report, &truth, known);
    let keys = differing_keys(&report, &truth);
    assert!(
        counters.is_empty() && keys.is_empty(),
        "{name}: counters {counters:#?}\n{} keys differ, the first of them {:#?}\nloss {}\ncommands {}",
        keys.len(),
        &keys[..keys.len().min(8)],
        report["loss"],
        report["commands"]
    );
    assert_eq!(
        [figure(&report, &["bytes_in"]), figure(&report, &["bytes_out"])],
        server_payload(&truth),
        "{name}"
    );
    report
}

/// Mutations of which the server was told to say nothing: hits and misses together are known, not which.
#[test]
fn php_noreply_equals_memcached() {
    let report = check_with_noreply("clients/php_noreply");
    assert_eq!(figure(&report, &["commands", "set", "stored"]), 0, "everything was noreply");
}

macro_rules! equals_memcached {
    ($($(#[$doc:meta])* $test:ident $recording:literal $known:expr;)*) => {
        $($(#[$doc])* #[test] fn $test() { check($recording, &$known); })*
    };
}

equals_memcached! {
    pymemcache_text "clients/pymemcache_text_v4" [];
}

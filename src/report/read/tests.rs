//! What is written is read back, and what was not written by us is refused by name.

use super::*;
use crate::report::{OutputFormat, Privacy, ReportOptions, Reporter};
use proptest::prelude::*;
use serde_json::{Value, json};

fn counters(gets: u64) -> Counters {
    Counters {
        gets,
        hits: gets / 2,
        misses: gets / 4,
        stores: 3,
        deletes: 2,
        touches: 1,
        arithmetic: 5,
        other: 4,
        errors: 1,
        bytes_in: gets * 30,
        bytes_out: gets * 500,
        latency_sum_us: gets * 100,
        latency_samples: gets,
        latency_max_us: 200,
    }
}

fn example() -> Snapshot {
    let socket = Endpoint::from_ipv4([10, 0, 0, 1], 4000);
    let client = |client, top_key: &[u8]| ClientRow {
        client,
        err: 2,
        counters: counters(60),
        top_key: Some((top_key.into(), 9)),
    };
    let mut snapshot = Snapshot {
        target: "cache".to_string(),
        address: "10.1.0.5:11211".to_string(),
        start: Timestamp::from_parts(1_795_348_800, 1_000),
        end: Timestamp::from_parts(1_795_348_810, 0),
        partial: true,
        clients_seen: 1,
        connections_seen: 2,
        keys_seen: 2,
        health: CaptureHealth {
            ring_blocks_peak: 3,
            ring_blocks: 64,
            freezes: 1,
            worker_restarts: 2,
            rung: Rung::Heads,
        },
        bounds: Bounds { key: 2, client: 2, pair: 1 },
        keys: vec![
            KeyRow {
                key: b"a\xff\0".as_slice().into(),
                truncated: true,
                err: 0,
                counters: counters(100),
                clients: vec![PairRow { client: socket.without_port(), requests: 60, err: 1 }],
            },
            KeyRow {
                key: b"b".as_slice().into(),
                truncated: false,
                err: 2,
                counters: counters(9),
                clients: Vec::new(),
            },
        ],
        sockets: vec![client(socket, b"a\xff\0"), client(Endpoint::from_ipv6([0xfd; 16], 1), b"b")],
        servers: vec![ServerRow { server: socket, err: 0, counters: counters(109), top_key: None }],
        ..Snapshot::default()
    };
    snapshot.totals.counters = Counters { latency_sum_us: 0, latency_samples: 0, ..counters(200) };
    snapshot.totals.leases = [1, 2, 3];
    let set = &mut snapshot.totals.commands[Command::Set.index()];
    set.requests = 11;
    set.outcomes[Outcome::Stored.index()] = 11;
    snapshot.totals.response_times.add_cells(Command::Set, 200, &[(5, 2), (63, 1)]);
    snapshot.latency = snapshot.totals.response_times.summary();
    snapshot.command_latency = snapshot.totals.response_times.summaries();
    snapshot.loss.packets = 7;
    snapshot.loss.ring_dropped = 8;
    snapshot.loss.nic_dropped = 9;
    snapshot.loss.worker_lost = 10;
    snapshot.loss.anomalies.add(Anomaly::Gap, 2);
    snapshot.loss.anomalies.add(Anomaly::MidStream, 4);
    snapshot
}

fn written(snapshot: &Snapshot, options: ReportOptions) -> Vec<u8> {
    let mut out = Vec::new();
    let options = ReportOptions { host: "mc029".to_string(), format: OutputFormat::Jsonl, ..options };
    Reporter::new(options).write_snapshot(&mut out, snapshot).unwrap();
    out
}

fn everything() -> ReportOptions {
    ReportOptions { top: 0, clients_per_key: 0, ..ReportOptions::default() }
}

/// A line in which one thing was changed.
fn changed(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut value: Value = serde_json::from_slice(&written(&example(), everything())).unwrap();
    change(&mut value);
    serde_json::to_vec(&value).unwrap()
}

#[test]
fn what_is_written_is_read_back() {
    let snapshot = example();
    let read = read_report(&written(&snapshot, everything())).unwrap();
    let clients = read.snapshot.clients.clone();
    assert_eq!(Snapshot { clients: Vec::new(), ..read.snapshot }, snapshot);
    assert_eq!(
        (read.host.as_str(), read.view, read.privacy),
        ("mc029", Some(ClientView::Socket), PrivacyMode::Full)
    );
    assert!(read.findings.iter().any(|(id, text)| id == "load-ladder" && text.contains("heads")));
    assert_eq!(clients.len(), 2);
    assert_eq!(
        (read.unlisted.key, read.unlisted.socket, read.unlisted.server, read.unlisted.pair),
        (2, 2, 2, 1)
    );
    // Connections that are not listed may all be of one machine.
    assert_eq!(read.unlisted.client, 215 - 2 * 73);
    assert_eq!(clients[0].err, 2 + read.unlisted.client);
}

#[test]
fn what_is_not_listed_is_bounded() {
    let mut snapshot = example();
    snapshot.bounds = Bounds::default();
    snapshot.keys[0].truncated = false;
    let options = |text: Option<&str>| ReportOptions {
        top: 1,
        clients_per_key: 1,
        filter: text.map(|text| text.parse().unwrap()),
        ..ReportOptions::default()
    };
    let unlisted = |options| read_report(&written(&snapshot, options)).unwrap().unlisted;
    // The second key is the second of those that were missed, too.
    assert_eq!((unlisted(options(None)).key, unlisted(options(None)).socket), (24, 75));
    assert_eq!(unlisted(options(Some("key = b"))).key, 115, "the filter left the hottest out");
    let hashed = Privacy::new(PrivacyMode::Hash, Some("a long secret of mine"));
    let read = read_report(&written(&snapshot, ReportOptions { privacy: hashed, ..options(None) })).unwrap();
    assert_eq!((read.privacy, read.unlisted.key), (PrivacyMode::Hash, 24));
    assert_eq!(read.key_secret.map(|secret| secret.len()), Some(8));
    let shapes = ReportOptions { privacy: Privacy::Shape, ..options(Some("key = b")) };
    assert_eq!(unlisted(shapes).key, 215 - 22, "any number of keys of one shape may have been left out");
}

/// Of the contract's own example, without anything that was added since.
#[test]
fn an_old_line_is_read() {
    let line = changed(|value| {
        for added in
            ["unlisted", "histograms_us", "privacy", "capture", "servers", "missed_keys", "ranked_by"]
        {
            value.as_object_mut().unwrap().remove(added);
        }
        for row in value["hot_clients"].as_array_mut().unwrap() {
            for added in ["deletes", "touches", "arithmetic", "other", "errors", "latency_samples"] {
                row.as_object_mut().unwrap().remove(added);
            }
        }
    });
    let read = read_report(&line).unwrap();
    let counters = read.snapshot.sockets[0].counters;
    assert_eq!((counters.other, counters.latency_samples), (2 + 1 + 5 + 4, 75));
    assert_eq!((read.unlisted.key, read.unlisted.pair), (215 - 115 - 22, 215));
}

#[test]
fn what_a_newer_version_adds_is_passed_over_and_said() {
    let line = changed(|value| {
        value["later"] = json!({"deep": [1, 2.5]});
        value["hot_keys"][0]["later"] = json!("x");
        value["loss"]["cosmic_rays"] = json!(3);
        value["commands"]["mx"] = json!({"requests": 4, "hit": 4});
        value["commands"]["set"]["lent"] = json!(1);
    });
    let expected = [("command mx", 4), ("outcome lent of set", 1), ("loss cosmic_rays", 3)];
    let read = read_report(&line).unwrap();
    assert_eq!(read.not_understood, expected.map(|(name, count)| (name.to_string(), count)));
}

#[test]
fn what_is_wrong_is_named_with_what_is_allowed() {
    let check = |line: &[u8], expected: &str| {
        let error = read_report(line).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains(['\n', '\x1b']), "{error:?}");
    };
    check(b"hello", "at column 1; expected an object as `-o jsonl` writes it");
    check(b"{}", "missing field `v`");
    check(br#"{"v":2,"type":"interval"}"#, "\"v\" is 2, and only 1 is understood");
    check(br#"{"v":1,"type":"hello\u001b"}"#, r#""type" is "hello\\x1b", and only "interval" is a report"#);
    check(&changed(|value| value["requests"] = json!(-1)), "invalid value: integer `-1`, expected u64");
    check(
        &changed(|value| value["requests"] = json!(5)),
        "of the totals 5 requests are named, and 215 by their classes",
    );
    check(&changed(|value| value["bytes_in"] = json!(u64::MAX)), "no figure is above 9007199254740992");
    check(&changed(|value| value["hot_keys"][1]["err"] = json!(1000)), "a key has an err above its requests");
    check(&changed(|value| value["hot_keys"][1]["hits"] = json!(10)), "more hits and misses than gets");
    check(
        &changed(|value| value["hot_keys"][1]["key"] = json!(null)),
        "invalid type: null, expected a string",
    );
    check(&changed(|value| value["hot_keys"][0]["key_b64"] = json!("=")), "a key is not base64");
    check(
        &changed(|value| value["hot_keys"][0]["latency_us"]["mean"] = json!(201)),
        "a mean above its longest",
    );
    check(&changed(|value| value["hot_clients"][0]["client"] = json!("me")), "\"me\" is not IP or IP:port");
    check(
        &changed(|value| value["hot_clients"][0]["client"] = json!("10.0.0.9")),
        "partly by IP and partly by IP:port",
    );
    check(&changed(|value| value["hot_clients"][1] = value["hot_clients"][0].clone()), "hot_clients lists");
    check(&changed(|value| value["start"] = json!("today")), r#""start" is "today", not a time such as"#);
    check(&changed(|value| value["end"] = json!("2020-01-01T00:00:00Z")), "\"end\" lies before \"start\"");
    check(
        &changed(|value| value["privacy"] = json!("none")),
        "privacy is \"none\"; known are full shape hash",
    );
    check(&changed(|value| value["capture"]["detail"] = json!("tails")), "known are full heads requests");
    check(&changed(|value| value["findings"][0]["id"] = json!("\x1b[2J")), "is no id of a finding");
    check(&changed(|value| drop(value.as_object_mut().unwrap().remove("loss"))), "missing field `loss`");
    let twice = changed(|value| value["missed_keys"][1]["gets"] = json!(10));
    check(&twice, "requests are named");
    let twice = changed(|value| {
        value["missed_keys"][1]["gets"] = json!(10);
        value["missed_keys"][1]["requests"] = json!(25);
    });
    check(&twice, "key b is listed twice, with different figures");
    let line = written(&example(), everything());
    assert_eq!(read_report(&line[..99]).unwrap_err(), ReadError::Cut { bytes: 99 });
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Lines that were cut, mixed up or never were one are refused or give figures that add up without a wrap, and nothing
    /// else happens.
    #[test]
    fn a_damaged_line_does_no_harm(
        at in any::<prop::sample::Index>(),
        byte: u8,
        digits in "[0-9]{0,20}",
        noise in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let line = written(&example(), everything());
        let at = at.index(line.len());
        let mut damaged = line.clone();
        damaged[at] = byte;
        let mut swollen = line.clone();
        swollen.splice(at..at, digits.bytes());
        for line in [&damaged, &swollen] {
            if let Ok(read) = read_report(line) {
                let mut union = crate::collector::Union::of(read.snapshot, &read.unlisted);
                union.merge(union.clone());
                prop_assert!(union.snapshot().totals.counters.requests() <= 2 * FIGURE_MAX);
            }
        }
        prop_assert!(read_report(&line[..at.min(line.len() - 2)]).is_err());
        prop_assert!(read_report(&noise).is_err());
    }
}

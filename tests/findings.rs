//! What a report says about how well it could see, from packets to sentences.

mod support;

use std::fmt::Write;
use support::scenario;

/// The findings of a scenario: id and sentence.
fn findings(script: &str) -> Vec<(String, String)> {
    let folder = tempfile::tempdir().expect("a folder for the recording");
    let recording = folder.path().join("scenario.pcap");
    std::fs::write(&recording, scenario::pcap(&scenario::read(script).frames))
        .expect("the recording is written");
    let reports = support::replay_all(&recording, &["-t", "*:11211"]);
    let text = |value: &serde_json::Value| value.as_str().expect("a text").to_string();
    let findings = reports[0]["findings"].as_array().expect("a list of findings");
    findings.iter().map(|finding| (text(&finding["id"]), text(&finding["text"]))).collect()
}

#[track_caller]
fn check(script: &str, id: &str, words: &[&str]) {
    let found = findings(script);
    let finding = found.iter().find(|finding| finding.0 == id);
    let (_, text) = finding.unwrap_or_else(|| panic!("no {id} in {found:#?}"));
    for word in words {
        assert!(text.contains(word), "{text}");
    }
}

/// So many exchanges of client A.
fn exchanges(count: usize) -> String {
    let mut script = String::new();
    for number in 0..count {
        writeln!(script, "A> get k{number}\\r\\n\nA< END\\r\\n").expect("a text grows");
    }
    script
}

#[test]
fn nothing_is_found_where_all_is_well() {
    let script = format!("connect A\n{}", exchanges(20));
    let of_sight = [
        "no-packets",
        "no-requests",
        "one-direction",
        "capture-loss",
        "tls",
        "unknown-protocol",
        "unparsed",
        "mid-stream",
    ];
    let found = findings(&script);
    assert!(found.iter().all(|(id, _)| !of_sight.contains(&id.as_str())), "{found:#?}");
}

#[test]
fn one_direction() {
    let requests: String =
        (0..12).fold(String::new(), |script, number| format!("{script}A> get k{number}\\r\\n\n"));
    check(&requests, "one-direction", &["only requests", "no responses", "capture both directions"]);
    let responses: String =
        (0..12).fold(String::new(), |script, _| script + "A< VALUE k 0 1\\r\\nx\\r\\nEND\\r\\n\n");
    check(&responses, "one-direction", &["only responses", "no requests"]);
}

#[test]
fn tls_and_other_protocols() {
    check(
        "connect A\nA> \\x16\\x03\\x01\\x02\\0\\x01\nA< \\x16\\x03\\x03\\0\\x01\\x02\n",
        "tls",
        &["1 connections speak TLS"],
    );
    let redis =
        "connect A\nA> *1\\r\\n$4\\r\\nPING\\r\\n*1\\r\\n$4\\r\\nPING\\r\\n*1\\r\\n$4\\r\\nPING\\r\\n\n";
    check(redis, "unknown-protocol", &["not memcached's"]);
    check("connect A\nA> GET / HTTP/1.1\\r\\n\\r\\n\n", "unknown-protocol", &["not memcached's"]);
    check("connect A\nA> PROXY UNKNOWN\\r\\nget a\\r\\n\nA< END\\r\\n\n", "proxy-header", &["load balancer"]);
}

#[test]
fn connections_met_in_mid_stream() {
    check(&exchanges(5), "mid-stream", &["1 of 1 connections", "first exchange"]);
}

#[test]
fn bytes_that_were_lost_on_the_way() {
    let script = format!(
        "connect A\n{}lose A< VALUE x 0 1\\r\\ny\\r\\nEND\\r\\n\n{}wait 5s\nA> get z\\r\\n\n",
        exchanges(10),
        exchanges(10)
    );
    check(&script, "capture-loss", &["of the traffic was lost"]);
}

#[test]
fn bytes_that_nobody_could_read() {
    // In mid-stream, in the middle of a long value.
    let script = format!("A> {{1400}}\nA> {{1400}}\n{}", exchanges(5));
    check(&script, "unparsed", &["could not be parsed"]);
}

#[test]
fn a_clock_that_is_set_back() {
    // The clock is looked at every 256 packets.
    let mut frames = scenario::read(&format!("connect A\n{}", exchanges(300))).frames;
    let hour = std::time::Duration::from_secs(3600);
    for frame in &mut frames[..300] {
        frame.timestamp = frame.timestamp.plus(hour);
    }
    let folder = tempfile::tempdir().expect("a folder for the recording");
    let recording = folder.path().join("clock.pcap");
    std::fs::write(&recording, scenario::pcap(&frames)).expect("the recording is written");
    let reports = support::replay_all(&recording, &["-t", "*:11211"]);
    assert!(
        reports[0]["findings"].to_string().contains("the clock was set back, 1 times"),
        "{}",
        reports[0]["findings"]
    );
    assert_eq!(support::figure(&reports[0], &["gets"]), 300);
}

#[test]
fn a_target_whose_packets_do_not_come() {
    let folder = tempfile::tempdir().expect("a folder for the recording");
    let recording = folder.path().join("elsewhere.pcap");
    std::fs::write(&recording, scenario::pcap(&scenario::read(&exchanges(3)).frames))
        .expect("the recording is written");
    let reports = support::replay_all(&recording, &["-t", "*:11311"]);
    assert!(reports[0]["findings"].to_string().contains("no packet of"), "{}", reports[0]["findings"]);
}

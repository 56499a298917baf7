//! The four forms of a report agree in every figure: recordings through the program, each form read back, at four widths.

mod support;

use std::path::Path;
use support::readback::{Claims, Truth, from_csv, from_json, from_markdown, from_table};
use support::{fixture, memtap, succeed};

const WIDTHS: [usize; 4] = [60, 80, 120, 200];

/// One report of the recording, as the program writes it.
fn report(recording: &Path, format: &str, width: usize, arguments: &[&str]) -> String {
    let mut command = memtap();
    command.env("COLUMNS", width.to_string()).arg("replay").arg(recording);
    // Enough that nothing is evicted: what is depends on a seed, and each form is made by a run of its own.
    command.args(["-w", "all", "--budget-mb", "100", "-o", format]).args(arguments);
    String::from_utf8(succeed(&mut command).stdout).expect("reports are UTF-8")
}

#[track_caller]
fn check(form: &str, claims: &Claims, truth: &Truth, expected_rows: &[(&'static str, usize)]) {
    let wrong = claims.disagreements(truth);
    assert!(wrong.is_empty(), "{form}:\n{}", wrong.join("\n"));
    for (kind, rows) in expected_rows {
        assert_eq!(claims.rows.get(kind).copied().unwrap_or(0), *rows, "{kind} rows in {form}");
    }
}

/// Rows of a kind, as JSON has them.
fn rows(truth: &Truth, kind: &str) -> usize {
    (1..).take_while(|rank| truth.figures.contains_key(&format!("{kind}/{rank}/requests"))).count()
}

fn all_forms_agree(recording: &str, arguments: &[&str]) -> usize {
    let path = fixture(recording);
    let json = report(&path, "jsonl", 80, arguments);
    let truth = from_json(json.lines().next().unwrap());
    let kinds = ["key", "client", "missed_key", "server", "group"];
    let expected = kinds.map(|kind| (kind, rows(&truth, kind)));
    check("csv", &from_csv(&report(&path, "csv", 80, arguments)), &truth, &expected);
    let markdown = report(&path, "markdown", 80, arguments);
    let of_markdown = from_markdown(&markdown, &truth);
    check("markdown", &of_markdown, &truth, &expected);
    let mut figures = of_markdown.figures.len();
    for width in WIDTHS {
        let table = report(&path, "table", width, arguments);
        let claims = from_table(&table, &truth);
        check(&format!("table at {width}"), &claims, &truth, &expected);
        // Lists are never dropped, and of rows the requests and their error stay.
        let least: usize = expected.iter().map(|(_, rows)| rows * 2).sum();
        assert!(claims.figures.len() >= least, "{} figures at width {width}", claims.figures.len());
        figures += claims.figures.len();
    }
    figures
}

#[test]
fn recordings_of_every_protocol() {
    let recordings = [
        "peers/peer-edge.pcap.zst",
        "peers/peer-small-loss1pct.pcap.zst",
        "clients/bmemcached_bin.pcap.zst",
        "clients/rust_async_meta.pcap.zst",
        "extra/raw_udp.pcap.zst",
        "extra/tls_pymemcache.pcap.zst",
        "extra/lo.pcap.zst",
    ];
    let mut figures = 0;
    for recording in recordings {
        figures += all_forms_agree(recording, &[]);
    }
    assert!(figures > 10_000, "only {figures} figures were compared");
}

#[test]
fn every_row_and_every_client_of_a_key() {
    all_forms_agree("peers/peer-small.pcap.zst", &["-k", "0", "--clients-per-key", "0", "--client", "ip"]);
}

#[test]
fn other_rankings_and_privacy() {
    for arguments in [
        &["--by", "bytes", "-k", "7"] as &[&str],
        &["--by", "latency", "--client", "ip", "--clients-per-key", "1"],
        &["--by", "misses", "--privacy", "shape"],
        &["--privacy", "hash"],
    ] {
        // Hashes agree between runs under one secret.
        let path = "peers/peer-small-dup.pcap.zst";
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("memtap.toml");
        let text = "[keys]\nhash_secret = \"0123456789abcdef\"\n[[keys.group]]\nname = \"all | of `them`\"\nmatch = \"e\"\n";
        std::fs::write(&config, text).unwrap();
        let config = ["-c", config.to_str().unwrap()];
        all_forms_agree(path, &[&config, arguments].concat());
    }
}

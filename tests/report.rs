//! Reports as their readers see them: the four forms of one snapshot, at several widths, with tame and with hostile keys.

mod support;

use memtap::anomaly::Anomaly;
use memtap::collector::snapshot::{
    Bounds, CaptureHealth, ClientRow, CommandOutcomes, Counters, KeyRow, LatencySummary, Loss, PairRow,
    ServerRow, Snapshot, Totals,
};
use memtap::model::{Command, Endpoint, Outcome, Timestamp, Transport};
use memtap::report::{
    ClientView, EndpointSeen, KeyGroup, Metric, OutputFormat, Privacy, PrivacyMode, ReportOptions, Reporter,
    SeenElsewhere, SourceSeen, unescape,
};
use proptest::prelude::*;
use serde_json::Value;
use support::readback::{from_csv, from_json, from_markdown, from_table, json_key, shown, split_cells};

/// 2026-11-22T12:00:00Z.
const START_SECS: u64 = 1_795_348_800;

fn client(last: u8, port: u16) -> Endpoint {
    Endpoint::from_ipv4([10, 2, 0, last], port)
}

fn counters(gets: u64, misses: u64, stores: u64) -> Counters {
    Counters {
        gets,
        hits: gets - misses,
        misses,
        stores,
        bytes_in: gets * 34 + stores * 400,
        bytes_out: (gets - misses) * 512,
        latency_sum_us: (gets + stores) * 120,
        latency_samples: gets + stores,
        latency_max_us: 9_200,
        ..Counters::default()
    }
}

fn pair(last: u8, requests: u64) -> PairRow {
    PairRow { client: client(last, 0), requests, err: 0 }
}

fn key_row(key: &[u8], counters: Counters, clients: Vec<PairRow>) -> KeyRow {
    KeyRow { key: key.into(), truncated: false, err: 0, counters, clients }
}

fn client_row(client: Endpoint, counters: Counters, top_key: &[u8], requests: u64) -> ClientRow {
    ClientRow { client, err: 0, counters, top_key: Some((top_key.into(), requests)) }
}

fn keys() -> Vec<KeyRow> {
    let hot = vec![
        pair(17, 280_232),
        pair(43, 71_900),
        pair(5, 30_000),
        pair(6, 20_000),
        pair(7, 9_973),
        pair(8, 7),
    ];
    let mut rows = vec![
        key_row(b"user:1:profile", counters(411_000, 1_130, 1_105), hot),
        key_row(b"user:2:profile", counters(90_000, 200, 10_000), vec![pair(17, 99_000), pair(5, 1_000)]),
        key_row(
            b"session:550e8400-e29b-41d4-a716-446655440000",
            counters(60_000, 59_000, 0),
            vec![pair(43, 60_000)],
        ),
        key_row(
            b"weird \x1b[2J|`<b>\\=1",
            counters(40_000, 0, 7),
            vec![PairRow { err: 3, ..pair(5, 40_007) }],
        ),
        key_row("schlüssel".as_bytes(), counters(10_000, 10_000, 0), Vec::new()),
    ];
    rows[1].err = 12;
    rows
}

fn totals() -> Totals {
    let mut totals = Totals {
        counters: Counters {
            gets: 611_000,
            hits: 540_670,
            misses: 70_330,
            stores: 20_112,
            deletes: 1_000,
            touches: 1_000,
            arithmetic: 1_000,
            other: 0,
            errors: 3,
            bytes_in: 31_000_000,
            bytes_out: 912_000_000,
            latency_sum_us: 633_000 * 120,
            latency_samples: 633_000,
            latency_max_us: 9_200,
        },
        leases: [3, 0, 1],
        ..Totals::default()
    };
    let mut command = |command: Command, requests: u64, outcomes: &[(Outcome, u64)]| {
        let mut figures = CommandOutcomes { requests, ..CommandOutcomes::default() };
        for (outcome, count) in outcomes {
            figures.outcomes[outcome.index()] = *count;
        }
        totals.commands[command.index()] = figures;
    };
    command(Command::Get, 611_000, &[(Outcome::Hit, 540_670), (Outcome::Miss, 70_330)]);
    command(Command::Set, 20_112, &[(Outcome::Stored, 20_109), (Outcome::TooLarge, 3)]);
    command(Command::Delete, 1_000, &[(Outcome::Hit, 900), (Outcome::Unseen, 100)]);
    command(Command::Touch, 1_000, &[(Outcome::Hit, 1_000)]);
    command(Command::Incr, 1_000, &[(Outcome::Hit, 1_000)]);
    command(Command::Version, 4, &[(Outcome::Ok, 4)]);
    totals
}

fn snapshot() -> Snapshot {
    let mut loss = Loss { packets: 1_281_000, ..Loss::default() };
    loss.anomalies.add(Anomaly::DuplicateSegment, 12);
    Snapshot {
        target: "cache-a".to_string(),
        address: "10.1.0.5:11211".to_string(),
        start: Timestamp::from_parts(START_SECS, 0),
        end: Timestamp::from_parts(START_SECS + 10, 0),
        partial: false,
        totals: totals(),
        latency: LatencySummary { p50: 110, p90: 240, p99: 840, max: 9_200, samples: 633_000 },
        command_latency: vec![(
            Command::Get,
            LatencySummary { p50: 110, p90: 230, p99: 800, max: 9_200, samples: 611_000 },
        )],
        clients_seen: 6,
        connections_seen: 1_904,
        keys_seen: 5,
        loss,
        bounds: Bounds::default(),
        keys: keys(),
        clients: vec![
            client_row(client(17, 0), counters(370_000, 2_000, 9_232), b"user:1:profile", 280_232),
            client_row(client(43, 0), counters(131_900, 60_000, 0), b"user:1:profile", 71_900),
        ],
        sockets: vec![
            client_row(client(17, 51_422), counters(188_000, 1_000, 1), b"user:1:profile", 171_081),
            client_row(client(43, 40_000), counters(60_000, 59_000, 0), b"weird \x1b[2J|`<b>\\=1", 60_000),
        ],
        servers: Vec::new(),
        health: CaptureHealth::default(),
        packets_by_direction: [640_000, 641_000],
    }
}

/// With every kind of loss, bounds, servers, and a name that no terminal should obey.
fn lossy() -> Snapshot {
    let mut snapshot = snapshot();
    snapshot.target = "fleet \x1b]0;x\x07".to_string();
    snapshot.address = "10.1.0.0/16:11211".to_string();
    snapshot.end = Timestamp::from_parts(START_SECS + 7, 312_000_000);
    snapshot.partial = true;
    snapshot.loss.ring_dropped = 4_000;
    snapshot.loss.nic_dropped = 20;
    snapshot.loss.worker_lost = 5;
    snapshot.health = CaptureHealth {
        ring_blocks_peak: 50,
        ring_blocks: 64,
        freezes: 2,
        worker_restarts: 1,
        ..CaptureHealth::default()
    };
    for &anomaly in Anomaly::ALL {
        snapshot.loss.anomalies.add(anomaly, 1_000 + anomaly as u64);
    }
    snapshot.bounds = Bounds { key: 120, client: 7, pair: 3 };
    snapshot.servers = vec![
        ServerRow {
            server: Endpoint::from_ipv4([10, 1, 0, 5], 11_211),
            err: 0,
            counters: counters(500_000, 1_000, 20_000),
            top_key: Some((b"user:1:profile"[..].into(), 300_000)),
        },
        ServerRow {
            server: Endpoint::from_ipv4([10, 1, 0, 6], 11_211),
            err: 2,
            counters: counters(111_000, 69_330, 112),
            top_key: None,
        },
    ];
    snapshot
}

/// A target whose traffic does not pass here.
fn empty() -> Snapshot {
    Snapshot {
        totals: Totals::default(),
        latency: LatencySummary::default(),
        command_latency: Vec::new(),
        clients_seen: 0,
        connections_seen: 0,
        keys_seen: 0,
        loss: Loss::default(),
        keys: Vec::new(),
        clients: Vec::new(),
        sockets: Vec::new(),
        packets_by_direction: [0, 0],
        ..snapshot()
    }
}

fn options(format: OutputFormat, width: usize) -> ReportOptions {
    ReportOptions { host: "mc029".to_string(), format, width, ..ReportOptions::default() }
}

fn report(options: ReportOptions, snapshots: &[Snapshot]) -> String {
    let mut out = Vec::new();
    Reporter::new(options).write_interval(&mut out, snapshots).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn tables_at_four_widths() {
    for width in [60, 80, 120, 200] {
        let text = report(options(OutputFormat::Table, width), &[snapshot()]);
        insta::assert_snapshot!(format!("table-{width}"), text);
    }
}

#[test]
fn table_with_losses_and_servers() {
    insta::assert_snapshot!("table-lossy", report(options(OutputFormat::Table, 120), &[lossy()]));
}

#[test]
fn markdown() {
    insta::assert_snapshot!("markdown", report(options(OutputFormat::Markdown, 80), &[snapshot()]));
}

#[test]
fn json_lines() {
    insta::assert_snapshot!("jsonl", report(options(OutputFormat::Jsonl, 80), &[snapshot(), lossy()]));
}

#[test]
fn csv() {
    insta::assert_snapshot!("csv", report(options(OutputFormat::Csv, 80), &[snapshot(), lossy()]));
}

#[test]
fn an_empty_target_says_what_is_seen_instead() {
    let mut options = options(OutputFormat::Table, 100);
    options.seen_elsewhere = Some(SeenElsewhere {
        sources: vec![
            SourceSeen { name: "eth0".to_string(), packets: 48_211 },
            SourceSeen { name: "lo".to_string(), packets: 12 },
        ],
        packets_matched: 0,
        packets_foreign: 311,
        busiest: vec![
            EndpointSeen {
                endpoint: Endpoint::from_ipv4([10, 1, 0, 5], 11_212),
                transport: Transport::Tcp,
                packets: 40_000,
            },
            EndpointSeen {
                endpoint: Endpoint::from_ipv4([10, 1, 0, 5], 53),
                transport: Transport::Udp,
                packets: 900,
            },
        ],
    });
    insta::assert_snapshot!("empty-target", report(options.clone(), &[empty()]));
    options.seen_elsewhere = Some(SeenElsewhere::default());
    insta::assert_snapshot!("empty-machine", report(options, &[empty()]));
}

#[test]
fn targets_side_by_side() {
    let all = [snapshot(), lossy(), empty()];
    for (format, name) in
        [(OutputFormat::Table, "targets-table"), (OutputFormat::Markdown, "targets-markdown")]
    {
        let mut out = Vec::new();
        Reporter::new(options(format, 120)).write_targets(&mut out, &all).unwrap();
        insta::assert_snapshot!(name, String::from_utf8(out).unwrap());
    }
}

#[test]
fn groups_filter_clients_and_colour() {
    let mut options = options(OutputFormat::Table, 120);
    options.groups = vec![
        KeyGroup { name: "profiles".to_string(), pattern: r"^user:\d+:profile$".parse().unwrap() },
        KeyGroup { name: "sessions".to_string(), pattern: "^session:".parse().unwrap() },
    ];
    options.filter = Some("key !~ ^sch and client = 10.2.0.17".parse().unwrap());
    options.client = ClientView::Ip;
    options.clients_per_key = 1;
    options.by = Metric::Misses;
    options.top = 3;
    options.color = true;
    insta::assert_snapshot!("groups-filter-colour", report(options, &[snapshot()]).replace('\x1b', "ESC"));
}

/// They were shown as bytes of a key are: `gro\xc3\x9fe\x20Werte`.
#[test]
fn names_of_groups_stand_as_the_operator_wrote_them() {
    let written = r#"große "Werte" a\b 5%"#;
    let forms = [
        (OutputFormat::Table, written.to_string()),
        (OutputFormat::Markdown, format!("`{written}`")),
        (OutputFormat::Csv, r#""große ""Werte"" a\b 5%""#.to_string()),
        (OutputFormat::Jsonl, r#""name":"große \"Werte\" a\\b 5%""#.to_string()),
    ];
    for (format, expected) in forms {
        let mut options = options(format, 120);
        options.groups = vec![
            KeyGroup { name: written.to_string(), pattern: "^user:".parse().unwrap() },
            // No configuration lets it through.
            KeyGroup { name: "\x1b[2J\u{202e}".to_string(), pattern: "^session:".parse().unwrap() },
        ];
        let text = report(options, &[snapshot()]);
        assert!(text.contains(&expected), "{text}");
        assert!(text.contains("(none of the groups)"), "{text}");
        assert!(!text.contains('\x1b') && !text.contains('\u{202e}'), "{text}");
    }
}

#[test]
fn privacy_reaches_every_output() {
    // No output may hold a part of a key that tells keys of one shape apart.
    let canaries = ["user:1", "user:2", "550e8400", "weird", "schl"];
    for format in [OutputFormat::Table, OutputFormat::Jsonl, OutputFormat::Csv, OutputFormat::Markdown] {
        let all = [snapshot(), lossy()];
        let hashed = ReportOptions {
            privacy: Privacy::new(PrivacyMode::Hash, Some("0123456789abcdef")),
            ..options(format, 80)
        };
        let text = report(hashed, &all);
        assert!(canaries.iter().all(|canary| !text.contains(canary)), "{text}");
        assert!(text.contains('#'), "{text}");
        let shaped = ReportOptions { privacy: Privacy::Shape, ..options(format, 80) };
        let text = report(shaped, &all);
        assert!(canaries[..3].iter().all(|canary| !text.contains(canary)), "{text}");
    }
    let shaped = ReportOptions { privacy: Privacy::Shape, ..options(OutputFormat::Table, 120) };
    insta::assert_snapshot!("privacy-shape", report(shaped, &[snapshot()]));
}

#[test]
fn csv_header_is_written_once_per_output() {
    let mut reporter = Reporter::new(options(OutputFormat::Csv, 80));
    let mut out = Vec::new();
    for _ in 0..3 {
        reporter.write_interval(&mut out, &[snapshot(), lossy()]).unwrap();
    }
    let text = String::from_utf8(out).unwrap();
    let header = "start,interval_s,host,target,kind,rank,key,client,requests,err,bound,gets,hits,misses,stores,\
                  deletes,errors,bytes_in,bytes_out,latency_mean_us,latency_max_us";
    assert_eq!(text.lines().next(), Some(header));
    assert_eq!(text.matches("start,interval_s").count(), 1);
}

#[test]
fn a_closed_pipe_stays_a_closed_pipe() {
    struct Closed;
    impl std::io::Write for Closed {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    for format in [OutputFormat::Table, OutputFormat::Jsonl, OutputFormat::Csv, OutputFormat::Markdown] {
        let error = Reporter::new(options(format, 80)).write_snapshot(&mut Closed, &snapshot()).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe, "{format:?}");
    }
}

// ---- The four forms of a report, read back -------------------------------------------------------------------------

/// Whatever another form than JSON claims and JSON does not bear out.
fn disagreements(snapshot: &Snapshot, options: &ReportOptions) -> Vec<String> {
    let form = |format, width| {
        report(ReportOptions { format, width, ..options.clone() }, std::slice::from_ref(snapshot))
    };
    let truth = from_json(&form(OutputFormat::Jsonl, 80));
    let mut wrong = from_csv(&form(OutputFormat::Csv, 80)).disagreements(&truth);
    wrong.extend(from_markdown(&form(OutputFormat::Markdown, 80), &truth).disagreements(&truth));
    for width in [60, 80, 120, 200, usize::MAX] {
        let claims = from_table(&form(OutputFormat::Table, width), &truth);
        assert_eq!(claims.rows.get("key").copied().unwrap_or(0), snapshot.keys.len().min(options.top));
        wrong.extend(claims.disagreements(&truth).into_iter().map(|text| format!("at {width}: {text}")));
    }
    wrong
}

#[test]
fn all_forms_agree_in_every_figure() {
    let options = ReportOptions {
        groups: vec![KeyGroup { name: "a | `group` <b>".to_string(), pattern: "user".parse().unwrap() }],
        ..options(OutputFormat::Jsonl, 80)
    };
    for snapshot in [snapshot(), lossy()] {
        assert_eq!(disagreements(&snapshot, &options), Vec::<String>::new());
    }
}

// ---- Hostile keys --------------------------------------------------------------------------------------------------

fn hostile_key() -> impl Strategy<Value = Vec<u8>> {
    let nasty = prop::sample::select(vec![
        b"\x1b]0;pwned\x07".to_vec(),
        b"=cmd|' /C calc'!A0".to_vec(),
        b"a\",\"b\r\nc".to_vec(),
        b"<script>alert(1)</script>|`x`".to_vec(),
        "\u{202e}desrever\u{200b}\u{feff}\u{85}".as_bytes().to_vec(),
        b"\\x00\\\\".to_vec(),
        b"\xff\xfe\x00".to_vec(),
        b"  ".to_vec(),
        b"".to_vec(),
        vec![b'\\'; 250],
        vec![0xff; 250],
    ]);
    prop_oneof![3 => prop::collection::vec(any::<u8>(), 0..250), 1 => nasty, 1 => "[ -~]{0,60}".prop_map(String::into_bytes)]
}

fn hostile() -> impl Strategy<Value = Snapshot> {
    let row = (hostile_key(), any::<u32>(), any::<u32>(), any::<bool>());
    (prop::collection::vec(row, 1..8), "\\PC{0,12}").prop_map(|(rows, name)| {
        let mut snapshot = lossy();
        snapshot.target = name;
        for row in snapshot.sockets.iter_mut().chain(&mut snapshot.clients) {
            row.top_key = Some((rows[0].0.clone().into(), 3));
        }
        snapshot.keys = rows
            .into_iter()
            .map(|(key, gets, misses, truncated)| KeyRow {
                truncated,
                ..key_row(
                    &key,
                    counters(gets.into(), misses.min(gets).into(), 0),
                    vec![pair(1, 7), pair(2, 5)],
                )
            })
            .collect();
        snapshot
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn hostile_keys_leave_every_form_parseable_and_agreeing(mut snapshot in hostile()) {
        // No protocol has an empty key; the parser refuses it.
        snapshot.keys.retain(|row| !row.key.is_empty());
        prop_assume!(!snapshot.keys.is_empty() && snapshot.sockets.iter().all(|row| row.top_key.as_ref().is_some_and(|(key, _)| !key.is_empty())));
        // A name of the operator's with blanks, bars and quotes in a row is printed, and read back by nobody.
        snapshot.target = snapshot.target.replace([' ', ','], "-");
        prop_assert_eq!(disagreements(&snapshot, &options(OutputFormat::Jsonl, 80)), Vec::<String>::new());
    }

    #[test]
    fn hostile_keys_leave_the_terminal_alone(snapshot in hostile(), width in 1usize..250) {
        let text = report(options(OutputFormat::Table, width), std::slice::from_ref(&snapshot));
        let names = snapshot.target.as_str();
        for character in text.chars() {
            let ours = matches!(character, ' '..='~' | '\n' | '±' | '…' | '·');
            let of_the_operator = character.is_alphanumeric() && names.contains(character);
            prop_assert!(ours || of_the_operator, "{character:?}");
        }
    }

    #[test]
    fn hostile_keys_survive_json(snapshot in hostile()) {
        let text = report(options(OutputFormat::Jsonl, 80), std::slice::from_ref(&snapshot));
        prop_assert_eq!(text.matches('\n').count(), 1);
        prop_assert!(text.trim_end().chars().all(|character| !character.is_control()));
        let misleading = text.contains(['\u{202e}', '\u{200b}', '\u{feff}']);
        prop_assert!(!misleading);
        let parsed: Value = serde_json::from_str(&text).unwrap();
        let mut read: Vec<Vec<u8>> =
            parsed["hot_keys"].as_array().unwrap().iter().map(|row| json_key(row, "key")).collect();
        let mut expected: Vec<Vec<u8>> = snapshot.keys.iter().map(|row| row.key.to_vec()).collect();
        read.sort();
        expected.sort();
        prop_assert_eq!(read, expected);
        check_schema(&parsed);
    }

    #[test]
    fn hostile_keys_survive_csv(snapshot in hostile()) {
        let text = report(options(OutputFormat::Csv, 80), std::slice::from_ref(&snapshot));
        let mut read = Vec::new();
        for record in csv::Reader::from_reader(text.as_bytes()).records() {
            let record = record.unwrap();
            prop_assert_eq!(record.len(), 21);
            if &record[4] == "key" {
                read.push(unescape(&record[6]).unwrap());
            }
        }
        let mut expected: Vec<Vec<u8>> = snapshot.keys.iter().map(|row| row.key.to_vec()).collect();
        read.sort();
        expected.sort();
        prop_assert_eq!(read, expected);
    }

    #[test]
    fn hostile_keys_stay_in_their_markdown_cells(snapshot in hostile()) {
        let text = report(options(OutputFormat::Markdown, 80), std::slice::from_ref(&snapshot));
        prop_assert!(!text.contains(['<', '>', '\x1b', '\r']));
        let mut columns = 0;
        let mut read = Vec::new();
        let mut in_keys = false;
        for line in text.lines() {
            if !line.starts_with("| ") {
                columns = 0;
                continue;
            }
            let cells = split_cells(&line[2..line.len() - 2]);
            if columns == 0 {
                columns = cells.len();
                in_keys = cells[0] == "HOT KEYS";
            } else if in_keys && !cells[0].starts_with("---") {
                read.push(unescape(shown(&cells[0]).trim_end_matches('…')).unwrap());
            }
            prop_assert_eq!(cells.len(), columns, "{}", line);
        }
        let mut expected: Vec<Vec<u8>> = snapshot.keys.iter().map(|row| row.key.to_vec()).collect();
        read.sort();
        expected.sort();
        prop_assert_eq!(read, expected);
    }

    #[test]
    fn no_snapshot_makes_a_report_fail(
        mut snapshot in hostile(),
        figures in prop::array::uniform14(prop_oneof![Just(0u64), Just(u64::MAX / 64), any::<u32>().prop_map(u64::from)]),
        backwards in any::<bool>(),
        width in prop_oneof![Just(0usize), Just(usize::MAX), 0usize..300],
    ) {
        let [gets, hits, misses, stores, deletes, touches, arithmetic, other, errors, bytes_in, bytes_out, sum, samples, max] = figures;
        let wild = Counters {
            gets, hits, misses, stores, deletes, touches, arithmetic, other, errors, bytes_in, bytes_out,
            latency_sum_us: sum, latency_samples: samples, latency_max_us: max,
        };
        snapshot.totals.counters = wild;
        snapshot.keys[0].counters = wild;
        snapshot.sockets[0].counters = wild;
        if backwards {
            std::mem::swap(&mut snapshot.start, &mut snapshot.end);
        }
        for format in [OutputFormat::Table, OutputFormat::Jsonl, OutputFormat::Csv, OutputFormat::Markdown] {
            for privacy in [Privacy::Full, Privacy::Shape] {
                let options = ReportOptions { privacy, ..options(format, width) };
                prop_assert!(!report(options, std::slice::from_ref(&snapshot)).is_empty());
            }
        }
    }
}

// ---- The schema ----------------------------------------------------------------------------------------------------

/// Checks a report against `docs/report.schema.json` with the part of JSON Schema that the file uses.
fn check_schema(report: &Value) {
    let schema: Value = serde_json::from_str(include_str!("../docs/report.schema.json")).unwrap();
    check_value(&schema, &schema, report, "$");
}

fn check_value(root: &Value, schema: &Value, value: &Value, path: &str) {
    if let Some(reference) = schema["$ref"].as_str() {
        let definition =
            root.pointer(reference.trim_start_matches('#')).unwrap_or_else(|| panic!("{reference}"));
        return check_value(root, definition, value, path);
    }
    let known =
        ["$schema", "$id", "$defs", "title", "description", "type", "const", "properties", "required"];
    let known = [known.as_slice(), &["additionalProperties", "items", "minimum", "pattern", "enum"]].concat();
    for keyword in schema.as_object().unwrap().keys() {
        assert!(known.contains(&keyword.as_str()), "the checker does not know {keyword}");
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(several) => several.iter().map(|one| one.as_str().unwrap()).collect(),
        _ => Vec::new(),
    };
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_u64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    assert!(types.is_empty() || types.contains(&found), "{path} is {found}");
    if let Some(expected) = schema.get("const") {
        assert_eq!(expected, value, "{path}");
    }
    if let Some(allowed) = schema["enum"].as_array() {
        assert!(allowed.contains(value), "{path} is {value}");
    }
    if let (Some(pattern), Some(text)) = (schema["pattern"].as_str(), value.as_str()) {
        assert!(regex::Regex::new(pattern).unwrap().is_match(text), "{path} is {text:?}");
    }
    if let (Some(items), Some(values)) = (schema.get("items"), value.as_array()) {
        for (index, value) in values.iter().enumerate() {
            check_value(root, items, value, &format!("{path}[{index}]"));
        }
    }
    if let Some(object) = value.as_object() {
        check_object(root, schema, object, path);
    }
}

fn check_object(root: &Value, schema: &Value, object: &serde_json::Map<String, Value>, path: &str) {
    for name in schema["required"].as_array().into_iter().flatten() {
        assert!(object.contains_key(name.as_str().unwrap()), "{path} has no {name}");
    }
    for (name, value) in object {
        let path = format!("{path}.{name}");
        match (schema["properties"].get(name), schema.get("additionalProperties")) {
            (Some(property), _) => check_value(root, property, value, &path),
            (None, Some(Value::Bool(false))) => panic!("{path} is not in the schema"),
            (None, Some(more @ Value::Object(_))) => check_value(root, more, value, &path),
            (None, _) => {}
        }
    }
}

#[test]
fn reports_follow_the_schema() {
    for snapshot in [snapshot(), lossy(), empty()] {
        let options = ReportOptions {
            groups: vec![KeyGroup { name: "all".to_string(), pattern: ".".parse().unwrap() }],
            ..options(OutputFormat::Jsonl, 80)
        };
        check_schema(&serde_json::from_str(&report(options, &[snapshot])).unwrap());
    }
}

/// The sample of the contract: the same fields, in the same order, with the same types.
#[test]
fn json_holds_the_fields_of_the_contract_in_their_order() {
    let text = report(options(OutputFormat::Jsonl, 80), &[snapshot()]);
    let order = [
        "\"v\":1",
        "\"type\":\"interval\"",
        "\"host\":\"mc029\"",
        "\"target\":",
        "\"address\":",
        "\"start\":\"2026-11-22T12:00:00.000000Z\"",
        "\"end\":\"2026-11-22T12:00:10.000000Z\"",
        "\"requests\":",
        "\"bytes_in\":",
        "\"bytes_out\":",
        "\"gets\":",
        "\"hits\":",
        "\"misses\":",
        "\"stores\":",
        "\"deletes\":",
        "\"touches\":",
        "\"arithmetic\":",
        "\"other\":",
        "\"errors\":",
        "\"commands\":{\"get\":{\"requests\":611000,\"hit\":",
        "\"latency_us\":{\"p50\":110,\"p90\":240,\"p99\":840,\"max\":9200,\"samples\":633000}",
        "\"clients_seen\":",
        "\"connections_seen\":",
        "\"keys_seen\":",
        "\"loss\":{\"packets\":1281000,\"ring_dropped\":0,\"nic_dropped\":0,\"gaps\":0,\"gap_bytes\":0,\
         \"unparsed_bytes\":0,\"unmatched_requests\":0,\"unmatched_responses\":0,\"evictions\":0,\"flows_shed\":0",
        "\"bounds\":{\"key\":0,\"client\":0,\"pair\":0}",
        "\"hot_keys\":[{\"rank\":1,\"key\":\"user:1:profile\",\"requests\":412105,\"err\":0,\"gets\":411000,\
         \"hits\":409870,\"misses\":1130,\"stores\":1105,\"deletes\":0,\"touches\":0,\"arithmetic\":0,\"other\":0,\
         \"errors\":0,\"bytes_in\":",
        "\"latency_us\":{\"mean\":120,\"max\":9200},\"clients\":[{\"client\":\"10.2.0.17\",\"requests\":280232,\"err\":0}",
        "\"hot_clients\":[{\"rank\":1,\"client\":\"10.2.0.17:51422\",\"requests\":188001,\"err\":0,\"gets\":188000,\
         \"hits\":187000,\"misses\":1000,\"stores\":1,\"bytes_in\":",
        "\"top_key\":\"user:1:profile\"",
        "\"findings\":[{\"id\":\"hot-key-share\",\"text\":\"user:1:profile takes 65.0% of all requests\"}",
    ];
    let mut at = 0;
    for part in order {
        let found =
            text[at..].find(part).unwrap_or_else(|| panic!("{part} does not follow: {}", &text[at..]));
        at += found + part.len();
    }
    assert!(!text.contains("\"partial\""));
}

//! Reads reports back: JSON Lines as the truth, and every figure of the other forms as what they claim about it.
//!
//! JSON holds exact integers. A table holds `41.2k`, which claims only that the truth lies within half of its last digit. So a
//! figure read back is a range, and it agrees when the truth lies in it. A figure that nothing in JSON stands behind is an error.

use memtap::report::{escape, unescape};
use serde_json::Value;
use std::collections::BTreeMap;

/// What a report says, by path: `key/1/requests`, `loss/ring_dropped`.
#[derive(Debug, Default)]
pub struct Truth {
    pub figures: BTreeMap<String, f64>,
    pub texts: BTreeMap<String, String>,
}

/// What a form claims.
#[derive(Debug, Default)]
pub struct Claims {
    /// Ranges in which the truth should lie; nothing where the form says that there is none (`-`).
    pub figures: Vec<(String, Option<(f64, f64)>)>,
    /// Texts as they stand, possibly shortened in their middle.
    pub texts: Vec<(String, String)>,
    /// Rows by table, in their order.
    pub rows: BTreeMap<&'static str, usize>,
}

impl Claims {
    fn exact(&mut self, path: String, value: u64) {
        // Counts in reports stay far below 2^53; where a test makes wild ones, both sides lose the same bits.
        self.figures.push((path, Some((value as f64, value as f64))));
    }

    fn range(&mut self, path: String, range: Option<(f64, f64)>) {
        self.figures.push((path, range));
    }

    fn text(&mut self, path: String, text: &str) {
        self.texts.push((path, text.to_string()));
    }

    /// Everything that disagrees with the truth.
    pub fn disagreements(&self, truth: &Truth) -> Vec<String> {
        let mut wrong = Vec::new();
        for (path, claim) in &self.figures {
            match (claim, truth.figures.get(path)) {
                (Some((low, high)), Some(value)) => {
                    let slack = value.abs() * 1e-9 + 1e-9;
                    if *value < low - slack || *value > high + slack {
                        wrong.push(format!("{path}: {value} is not in {low}..{high}"));
                    }
                }
                (None, None) => {}
                (claim, value) => wrong.push(format!("{path}: claim {claim:?}, truth {value:?}")),
            }
        }
        for (path, text) in &self.texts {
            match truth.texts.get(path) {
                Some(full) if is_shortening(text, full) => {}
                full => wrong.push(format!("{path}: {text:?} against {full:?}")),
            }
        }
        wrong
    }
}

/// Whether `text` is `full`, or `full` with its middle replaced by an ellipsis.
fn is_shortening(text: &str, full: &str) -> bool {
    if text == full {
        return true;
    }
    text.match_indices('…').any(|(at, ellipsis)| {
        let (head, tail) = (&text[..at], &text[at + ellipsis.len()..]);
        head.len() + tail.len() < full.len() && full.starts_with(head) && full.ends_with(tail)
    })
}

// ---- JSON Lines ----------------------------------------------------------------------------------------------------

const COUNTERS: [&str; 12] = [
    "requests",
    "gets",
    "hits",
    "misses",
    "stores",
    "deletes",
    "touches",
    "arithmetic",
    "other",
    "errors",
    "bytes_in",
    "bytes_out",
];

/// Anomalies that cost no figure, and what is no loss at all; kept apart here as the table keeps them apart.
const NOTED: [&str; 5] =
    ["duplicate_segments", "out_of_order_segments", "mid_stream_flows", "body_hole_bytes", "packet_foreign"];

/// The display form of the exact bytes behind a key in JSON.
pub fn json_key(row: &Value, name: &str) -> Vec<u8> {
    use base64::Engine;
    match row[format!("{name}_b64")].as_str() {
        Some(text) => base64::engine::general_purpose::STANDARD.decode(text).unwrap(),
        None => row[name].as_str().unwrap().as_bytes().to_vec(),
    }
}

/// The truth of one target's report.
pub fn from_json(line: &str) -> Truth {
    let report: Value = serde_json::from_str(line).unwrap();
    let mut truth = Truth::default();
    let seconds = seconds_between(&report);
    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("{value} is no count")) as f64;
    let (requests, misses) = (number(&report["requests"]), number(&report["misses"]));
    truth.row("total", &report, requests, seconds);
    for (rank, row) in ranked(&report["hot_keys"]) {
        let path = format!("key/{rank}");
        truth.row(&path, row, requests, seconds);
        truth.key(&path, row, "key");
        let clients = row["clients"].as_array().unwrap();
        for (index, pair) in (1..).zip(clients) {
            truth.text(format!("pair/{rank}/{index}"), pair["client"].as_str().unwrap());
            for name in ["requests", "err"] {
                truth.set(format!("pair/{rank}/{index}/{name}"), number(&pair[name]));
            }
            truth.share(
                format!("pair/{rank}/{index}/share"),
                number(&pair["requests"]),
                number(&row["requests"]),
            );
        }
        truth.top_client(&path, row);
    }
    for (rank, row) in ranked(&report["missed_keys"]) {
        let path = format!("missed_key/{rank}");
        truth.row(&path, row, requests, seconds);
        truth.key(&path, row, "key");
        truth.share(format!("{path}/of_all"), number(&row["misses"]), misses);
        truth.top_client(&path, row);
    }
    for (kind, rows, name) in [
        ("client", "hot_clients", "client"),
        ("server", "servers", "server"),
        ("group", "groups", "name"),
        ("shape", "shapes", "name"),
    ] {
        for (rank, row) in ranked(&report[rows]) {
            let path = format!("{kind}/{rank}");
            truth.row(&path, row, requests, seconds);
            match name {
                "name" => truth.key(&path, row, name),
                _ => truth.text(format!("{path}/name"), row[name].as_str().unwrap()),
            }
            if !row["top_key"].is_null() {
                truth.text(format!("{path}/top_key"), &escape(&json_key(row, "top_key")));
                truth.share(
                    format!("{path}/top_key_share"),
                    number(&row["top_key_requests"]),
                    number(&row["requests"]),
                );
            }
            if let Some(keys) = row["keys"].as_u64() {
                truth.set(format!("{path}/keys"), keys as f64);
            }
        }
    }
    for (name, figures) in report["commands"].as_object().unwrap() {
        for (outcome, count) in figures.as_object().unwrap() {
            truth.set(format!("command/{name}/{outcome}"), number(count));
        }
        let summary = &report["command_latency_us"][name];
        for percentile in ["p50", "p99"].iter().filter(|_| !summary.is_null()) {
            truth.set(format!("command/{name}/{percentile}"), number(&summary[percentile]));
        }
    }
    for name in ["clients_seen", "connections_seen", "keys_seen"] {
        truth.set(format!("total/{name}"), number(&report[name]));
    }
    for (group, prefix) in
        [("leases", "leases"), ("bounds", "bounds"), ("latency_us", "times"), ("loss", "loss")]
    {
        for (name, value) in report[group].as_object().unwrap() {
            truth.set(format!("{prefix}/{name}"), number(value));
        }
    }
    truth.loss_share(&report);
    for (index, finding) in (1..).zip(report["findings"].as_array().unwrap()) {
        truth.text(format!("finding/{index}/id"), finding["id"].as_str().unwrap());
        truth.text(format!("finding/{index}/text"), finding["text"].as_str().unwrap());
    }
    truth.set("interval/seconds".to_string(), seconds);
    truth
}

fn ranked(rows: &Value) -> impl Iterator<Item = (usize, &Value)> {
    let rows = rows.as_array().unwrap();
    for (rank, row) in (1..).zip(rows) {
        assert_eq!(row["rank"].as_u64(), Some(rank));
    }
    (1..).zip(rows)
}

fn seconds_between(report: &Value) -> f64 {
    let at = |name: &str| report[name].as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_microsecond();
    (at("end") - at("start")).max(0) as f64 / 1e6
}

impl Truth {
    fn set(&mut self, path: String, value: f64) {
        self.figures.insert(path, value);
    }

    fn text(&mut self, path: String, text: &str) {
        self.texts.insert(path, text.to_string());
    }

    /// In per cent; nothing where there is no whole.
    fn share(&mut self, path: String, part: f64, whole: f64) {
        if whole > 0.0 {
            self.set(path, part * 100.0 / whole);
        }
    }

    /// The figures that rows of every kind have, and what follows from them.
    fn row(&mut self, path: &str, row: &Value, requests: f64, seconds: f64) {
        let of = |name: &str| row[name].as_u64().unwrap_or(0) as f64;
        for name in COUNTERS.into_iter().chain(["err"]).filter(|name| !row[name].is_null()) {
            self.set(format!("{path}/{name}"), of(name));
        }
        self.share(format!("{path}/share"), of("requests"), requests);
        self.share(format!("{path}/hit_ratio"), of("hits"), of("hits") + of("misses"));
        if seconds > 0.0 {
            self.set(format!("{path}/rate"), of("requests") / seconds);
            self.set(format!("{path}/bytes_rate"), of("bytes_out") / seconds);
        }
        for name in ["mean", "max"] {
            if let Some(value) = row["latency_us"][name].as_u64() {
                self.set(format!("{path}/latency_{name}"), value as f64);
            }
        }
    }

    fn key(&mut self, path: &str, row: &Value, name: &str) {
        let text = escape(&json_key(row, name));
        let goes_on = if row["key_truncated"] == Value::Bool(true) { "…" } else { "" };
        self.text(format!("{path}/name"), &format!("{text}{goes_on}"));
        self.text(format!("{path}/key"), &text);
    }

    fn top_client(&mut self, path: &str, row: &Value) {
        let Some(first) = row["clients"].as_array().unwrap().first() else { return };
        self.text(format!("{path}/top_client"), first["client"].as_str().unwrap());
        let of = |value: &Value| value["requests"].as_u64().unwrap() as f64;
        self.share(format!("{path}/top_client_share"), of(first), of(row));
    }

    /// By the manual: the greater of gap bytes / (payload + gap bytes) and drops / (packets + drops).
    fn loss_share(&mut self, report: &Value) {
        let loss = |name: &str| report["loss"][name].as_u64().unwrap_or(0) as f64;
        let payload =
            report["bytes_in"].as_u64().unwrap() as f64 + report["bytes_out"].as_u64().unwrap() as f64;
        let dropped = loss("ring_dropped") + loss("nic_dropped");
        let shares = [(loss("gap_bytes"), payload), (dropped, loss("packets"))];
        let share = shares.map(|(part, rest)| if part > 0.0 { part * 100.0 / (part + rest) } else { 0.0 });
        self.set("interval/loss_share".to_string(), share[0].max(share[1]));
    }
}

// ---- CSV -----------------------------------------------------------------------------------------------------------

pub fn from_csv(text: &str) -> Claims {
    let mut claims = Claims::default();
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let columns: Vec<String> = reader.headers().unwrap().iter().map(str::to_string).collect();
    let mut key_ranks: BTreeMap<String, usize> = BTreeMap::new();
    for record in reader.records() {
        let record = record.unwrap();
        assert_eq!(record.len(), columns.len());
        let of = |name: &str| &record[columns.iter().position(|column| column == name).unwrap()];
        let number = |name: &str| of(name).parse::<u64>().unwrap_or_else(|_| panic!("{name} in {record:?}"));
        let interval: f64 = of("interval_s").parse().unwrap();
        claims.range("interval/seconds".to_string(), Some((interval, interval)));
        let (key, client, rank) = (of("key"), of("client"), number("rank"));
        let (kind, path, row_kind) = match of("kind") {
            "total" => ("total", "total".to_string(), None),
            "key" => {
                key_ranks.insert(key.to_string(), usize::try_from(rank).unwrap());
                claims.text(format!("key/{rank}/key"), key);
                ("key", format!("key/{rank}"), Some("key"))
            }
            "pair" => {
                let path = format!("pair/{}/{rank}", key_ranks[key]);
                claims.text(path.clone(), client);
                ("pair", path, None)
            }
            "missed_key" => {
                claims.text(format!("missed_key/{rank}/key"), key);
                ("missed_key", format!("missed_key/{rank}"), Some("key"))
            }
            "client" => {
                claims.text(format!("client/{rank}/name"), client);
                ("client", format!("client/{rank}"), Some("client"))
            }
            "server" => {
                claims.text(format!("server/{rank}/name"), key);
                ("server", format!("server/{rank}"), None)
            }
            "group" => ("group", format!("group/{rank}"), None),
            "shape" => {
                claims.text(format!("shape/{rank}/key"), key);
                ("shape", format!("shape/{rank}"), None)
            }
            "command" => ("command", format!("command/{key}"), None),
            "loss" => {
                let path = format!("loss/{key}");
                claims.exact(path, number("requests"));
                continue;
            }
            other => panic!("unknown kind {other}"),
        };
        *claims.rows.entry(kind).or_default() += 1;
        claims.exact(format!("{path}/requests"), number("requests"));
        match kind {
            "command" => continue,
            "total" => {}
            _ => claims.exact(format!("{path}/err"), number("err")),
        }
        if kind == "pair" {
            claims.exact("bounds/pair".to_string(), number("bound"));
            continue;
        }
        if let Some(row_kind) = row_kind {
            claims.exact(format!("bounds/{row_kind}"), number("bound"));
        }
        for name in ["gets", "hits", "misses", "stores", "deletes", "errors", "bytes_in", "bytes_out"] {
            claims.exact(format!("{path}/{name}"), number(name));
        }
        if kind != "total" {
            claims.exact(format!("{path}/latency_mean"), number("latency_mean_us"));
            claims.exact(format!("{path}/latency_max"), number("latency_max_us"));
        }
    }
    claims
}

// ---- What tables and Markdown have in common: sections of cells -----------------------------------------------------------

/// A section as it was read: its title and its rows, each with its label first.
#[derive(Debug, Default)]
struct Section {
    title: &'static str,
    /// Names of the columns; empty for a list.
    columns: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

/// Titles of tables with the kind of their rows.
const TABLES: [(&str, &str); 6] = [
    ("HOT KEYS", "key"),
    ("HOT CLIENTS", "client"),
    ("MISSED KEYS", "missed_key"),
    ("SERVERS", "server"),
    ("KEY GROUPS", "group"),
    ("KEY SHAPES", "shape"),
];
const LISTS: [&str; 4] = ["HOT CLIENTS PER KEY", "COMMANDS", "TOTALS", "FINDINGS"];

/// Names of columns behind the first; those at the left edge of their column are marked.
const COLUMNS: [(&str, bool); 13] = [
    ("REQUESTS", false),
    ("±", false),
    ("REQ/S", false),
    ("SHARE", false),
    ("HIT%", false),
    ("OUT/S", false),
    ("MEAN/MAX ms", false),
    ("ERRORS", false),
    ("MISSES", false),
    ("OF ALL", false),
    ("KEYS", false),
    ("TOP CLIENT", true),
    ("TOP KEY", true),
];
const HOTTEST_KEY: (&str, bool) = ("HOTTEST KEY", true);

fn claims_of(heading: &[String], sections: &[Section], truth: &Truth) -> Claims {
    let mut claims = Claims::default();
    read_heading(&mut claims, heading);
    for section in sections {
        match TABLES.iter().find(|(title, _)| *title == section.title) {
            Some((_, kind)) => read_table(&mut claims, kind, section),
            None => match section.title {
                "HOT CLIENTS PER KEY" => read_pairs(&mut claims, section, truth),
                "COMMANDS" => read_commands(&mut claims, section),
                "TOTALS" => read_totals(&mut claims, section),
                "FINDINGS" => {
                    for (index, row) in (1..).zip(&section.rows) {
                        claims.text(format!("finding/{index}/id"), &row[0]);
                        claims.text(format!("finding/{index}/text"), &row[1]);
                    }
                    claims.rows.insert("finding", section.rows.len());
                }
                other => panic!("unknown section {other}"),
            },
        }
    }
    claims
}

/// The last pieces; those before them are the operator's words.
fn read_heading(claims: &mut Claims, pieces: &[String]) {
    let [.., length, requests, out, hit, loss] = pieces else { panic!("{pieces:?}") };
    let length = length.trim_end_matches(" (partial)");
    if let Some(seconds) = length.strip_suffix('s').and_then(|text| text.parse::<f64>().ok()) {
        claims.range("interval/seconds".to_string(), Some((seconds - 0.0005, seconds + 0.001)));
    }
    claims.exact("total/requests".to_string(), count(requests.strip_suffix(" requests").unwrap()));
    let out = out.strip_suffix(" out").unwrap();
    match out.strip_suffix("B/s") {
        Some(rate) => claims.range("total/bytes_rate".to_string(), scaled(rate.trim_end())),
        None => {
            claims.range("total/bytes_out".to_string(), scaled(out.strip_suffix('B').unwrap().trim_end()))
        }
    }
    claims.range("total/hit_ratio".to_string(), percent(hit.strip_prefix("hit ").unwrap()));
    claims.range("interval/loss_share".to_string(), percent(loss.strip_prefix("loss ").unwrap()));
}

fn read_table(claims: &mut Claims, kind: &'static str, section: &Section) {
    claims.rows.insert(kind, section.rows.len());
    for (rank, row) in (1..).zip(&section.rows) {
        let path = format!("{kind}/{rank}");
        claims.text(format!("{path}/name"), &row[0]);
        for (column, cell) in section.columns.iter().zip(&row[1..]) {
            let at = |name: &str| format!("{path}/{name}");
            match *column {
                "REQUESTS" => claims.exact(at("requests"), count(cell)),
                "±" => claims.exact(at("err"), count(cell)),
                "ERRORS" => claims.exact(at("errors"), count(cell)),
                "MISSES" => claims.exact(at("misses"), count(cell)),
                "KEYS" => claims.exact(at("keys"), count(cell)),
                "REQ/S" => claims.range(at("rate"), scaled(cell)),
                "OUT/S" => claims.range(at("bytes_rate"), scaled(cell)),
                "SHARE" => claims.range(at("share"), percent(cell)),
                "OF ALL" => claims.range(at("of_all"), percent(cell)),
                "HIT%" => claims.range(at("hit_ratio"), percent(cell)),
                "MEAN/MAX ms" => match cell.split_once(" / ") {
                    Some((mean, max)) => {
                        claims.range(at("latency_mean"), Some(micros(mean)));
                        claims.range(at("latency_max"), Some(micros(max)));
                    }
                    None => assert_eq!(cell, "-"),
                },
                "TOP CLIENT" => read_top(claims, &at("top_client"), cell),
                "TOP KEY" | "HOTTEST KEY" => read_top(claims, &at("top_key"), cell),
                other => panic!("unknown column {other}"),
            }
        }
    }
}

/// `10.2.0.17 (68%)`
fn read_top(claims: &mut Claims, path: &str, cell: &str) {
    match cell.rsplit_once(" (") {
        Some((name, share)) => {
            claims.text(path.to_string(), name);
            claims.range(format!("{path}_share"), percent(share.strip_suffix(')').unwrap()));
        }
        None => claims.range(format!("{path}_share"), if cell == "-" { None } else { panic!("{cell:?}") }),
    }
}

/// `10.2.0.17  280,232 ±3 (68%)`. Keys without clients have no line.
fn read_pairs(claims: &mut Claims, section: &Section, truth: &Truth) {
    let with_clients = (1..).take_while(|rank| truth.texts.contains_key(&format!("key/{rank}/name")));
    let with_clients = with_clients.filter(|rank| truth.texts.contains_key(&format!("pair/{rank}/1")));
    let ranks: Vec<usize> = with_clients.collect();
    assert_eq!(ranks.len(), section.rows.len(), "{section:?}");
    let mut pairs = 0;
    for (rank, row) in ranks.into_iter().zip(&section.rows) {
        claims.text(format!("key/{rank}/name"), &row[0]);
        for (index, item) in (1..).zip(row[1].split(" · ")).filter(|(_, item)| *item != "…") {
            let path = format!("pair/{rank}/{index}");
            let words: Vec<&str> = item.split_whitespace().collect();
            let [client, requests, err @ .., share] = words.as_slice() else { panic!("{item:?}") };
            claims.text(path.clone(), client);
            claims.exact(format!("{path}/requests"), count(requests));
            let err = err.first().map_or(0, |err| count(err.strip_prefix('±').unwrap()));
            claims.exact(format!("{path}/err"), err);
            claims.range(format!("{path}/share"), percent(share.trim_matches(['(', ')'])));
            pairs += 1;
        }
    }
    claims.rows.insert("pair", pairs);
}

fn read_commands(claims: &mut Claims, section: &Section) {
    claims.rows.insert("command", section.rows.len());
    for row in &section.rows {
        let path = format!("command/{}", row[0]);
        let mut items = row[1].split(" · ");
        claims.exact(format!("{path}/requests"), count(items.next().unwrap()));
        for item in items {
            if let Some(times) = item.strip_suffix(" ms") {
                let words: Vec<&str> = times.split(' ').collect();
                for pair in words.chunks(2) {
                    claims.range(format!("{path}/{}", pair[0]), Some(micros(pair[1])));
                }
            } else {
                let (outcome, number) = item.rsplit_once(' ').unwrap();
                claims.exact(format!("{path}/{}", outcome.replace(' ', "_")), count(number));
            }
        }
    }
}

fn read_totals(claims: &mut Claims, section: &Section) {
    for row in &section.rows {
        for item in row[1].split(" · ") {
            let (name, number) = item.rsplit_once(' ').unwrap_or(("", item));
            let joined = name.replace(' ', "_");
            match (row[0].as_str(), name) {
                ("requests", "") => claims.exact("total/requests".to_string(), count(number)),
                ("requests", _) => claims.exact(format!("total/{joined}"), count(number)),
                ("bytes", _) => claims.exact(format!("total/bytes_{joined}"), count(number)),
                ("times ms", "none") => claims.exact("times/samples".to_string(), 0),
                ("times ms", "samples") => claims.exact("times/samples".to_string(), count(number)),
                ("times ms", _) => claims.range(format!("times/{joined}"), Some(micros(number))),
                ("seen", _) => claims.exact(format!("total/{joined}_seen"), count(number)),
                ("leases", _) => claims.exact(format!("leases/{joined}"), count(number)),
                ("bounds", _) => {
                    let of = if name.contains("client of a key") {
                        "pair"
                    } else if name.contains("client") {
                        "client"
                    } else {
                        "key"
                    };
                    claims.exact(format!("bounds/{of}"), count(number));
                }
                ("loss", "") => assert_eq!(number, "none"),
                ("loss" | "noted", _) => {
                    assert_eq!(
                        NOTED.contains(&joined.as_str()),
                        row[0] == "noted",
                        "{item:?} under {:?}",
                        row[0]
                    );
                    claims.exact(format!("loss/{joined}"), count(number));
                }
                other => panic!("unknown total {other:?}"),
            }
        }
    }
}

// ---- Figures ---------------------------------------------------------------------------------------------------------

fn count(text: &str) -> u64 {
    text.replace(',', "").parse().unwrap_or_else(|_| panic!("{text:?} is no count"))
}

/// What a decimal claims: everything that rounds to it.
fn decimal(text: &str) -> (f64, f64) {
    let plain = text.replace(',', "");
    let value: f64 = plain.parse().unwrap_or_else(|_| panic!("{text:?} is no figure"));
    let decimals = plain.split_once('.').map_or(0, |(_, decimals)| decimals.len());
    let half = 0.5 * 0.1_f64.powi(i32::try_from(decimals).unwrap());
    (value - half, value + half)
}

/// `18.8k`, `21.1 M`, `<0.1`, `412`, `-`.
fn scaled(text: &str) -> Option<(f64, f64)> {
    if text == "-" {
        return None;
    }
    if let Some(limit) = text.strip_prefix('<') {
        return Some((f64::MIN_POSITIVE, limit.parse().unwrap()));
    }
    let unit = match text.chars().last().unwrap() {
        'k' => 1e3,
        'M' => 1e6,
        'G' => 1e9,
        'T' => 1e12,
        'P' => 1e15,
        _ => 1.0,
    };
    let (low, high) = decimal(text.trim_end_matches(['k', 'M', 'G', 'T', 'P']).trim_end());
    Some((low * unit, high * unit))
}

/// `65.0%`, `<0.01`, `99.9`, `-`. What is not nothing never shows as nothing, and what is not all never as all.
fn percent(text: &str) -> Option<(f64, f64)> {
    let text = text.strip_suffix('%').unwrap_or(text);
    if text == "-" {
        return None;
    }
    if let Some(limit) = text.strip_prefix('<') {
        return Some((f64::MIN_POSITIVE, limit.parse().unwrap()));
    }
    let (low, high) = decimal(text);
    let step = high - low;
    let value = f64::midpoint(low, high);
    // Nothing and all are exact; the figure next to all stands for everything up to it.
    Some(match value {
        _ if value.abs() < step / 4.0 => (0.0, 0.0),
        _ if (value - 100.0).abs() < step / 4.0 => (100.0, 100.0),
        _ if (value - (100.0 - step)).abs() < step / 4.0 => (low, 100.0 - 1e-12),
        _ => (low, high),
    })
}

/// Milliseconds as microseconds.
fn micros(text: &str) -> (f64, f64) {
    let (low, high) = decimal(text);
    (low * 1000.0, high * 1000.0)
}

// ---- Tables ----------------------------------------------------------------------------------------------------------

/// A report as a table, at any width. `truth` is asked only which keys have clients.
pub fn from_table(text: &str, truth: &Truth) -> Claims {
    let mut heading = String::new();
    let mut sections: Vec<Section> = Vec::new();
    let mut layout: Vec<Edge> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some((title, edges)) = table_header(line) {
            let columns = edges.iter().skip(1).map(|edge| edge.name).collect();
            sections.push(Section { title, columns, rows: Vec::new() });
            layout = edges;
        } else if let Some(title) = LISTS.iter().find(|title| **title == line) {
            sections.push(Section { title, ..Section::default() });
        } else if let Some(section) = sections.last_mut() {
            match section.columns.is_empty() {
                true => take_list_line(section, line),
                false => section.rows.push(cells(line, &layout)),
            }
        } else {
            heading.push_str(if heading.is_empty() { "" } else { "  " });
            heading.push_str(line);
        }
    }
    let heading: Vec<String> = heading.split("  ").map(str::to_string).collect();
    claims_of(&heading, &sections, truth)
}

/// A column: where its figures end, or where its text begins.
#[derive(Debug)]
struct Edge {
    name: &'static str,
    left: bool,
    start: usize,
    end: usize,
}

fn table_header(line: &str) -> Option<(&'static str, Vec<Edge>)> {
    let (title, _) = TABLES.iter().find(|(title, _)| {
        line.starts_with(title) && line.contains("  REQUESTS")
            || line.starts_with(title) && line.contains("  MISSES")
    })?;
    let mut edges = vec![Edge { name: title, left: true, start: 0, end: title.len() }];
    let mut at = title.len();
    let characters: Vec<char> = line.chars().collect();
    while let Some(start) = (at..characters.len()).find(|&at| characters[at] != ' ') {
        let rest: String = characters[start..].iter().collect();
        let known = COLUMNS.iter().chain([&HOTTEST_KEY]).filter(|(name, _)| rest.starts_with(name));
        let (name, left) =
            known.max_by_key(|(name, _)| name.len()).unwrap_or_else(|| panic!("{rest:?} in {line:?}"));
        at = start + name.chars().count();
        edges.push(Edge { name, left: *left, start, end: at });
    }
    Some((title, edges))
}

/// A row's cells by the places of its columns: the figures of a column end where its name ends.
fn cells(line: &str, layout: &[Edge]) -> Vec<String> {
    let characters: Vec<char> = line.chars().collect();
    let slice = |from: usize, to: usize| -> String {
        let to = to.min(characters.len());
        characters[from.min(to)..to].iter().collect()
    };
    // The first figure ends at its column's end, and two blanks stand before it; keys hold none.
    let first = slice(0, layout[1].end);
    let (name, figure) = first.rsplit_once("  ").unwrap_or_else(|| panic!("{line:?}"));
    let mut cells = vec![name.trim_end().to_string(), figure.trim().to_string()];
    for (before, edge) in layout[1..].iter().zip(&layout[2..]) {
        let cell = match edge.left {
            true => slice(edge.start, usize::MAX),
            false => slice(before.end, edge.end),
        };
        cells.push(cell.trim().to_string());
    }
    cells
}

/// A label with its first items, or more of the items before.
fn take_list_line(section: &mut Section, line: &str) {
    match (section.rows.last_mut(), line.strip_prefix("  ")) {
        (Some(row), Some(more)) => {
            let separator = if section.title == "FINDINGS" { " " } else { " · " };
            row[1].push_str(separator);
            row[1].push_str(more.trim_start());
        }
        _ => {
            let (label, items) = line.split_once("  ").unwrap_or_else(|| panic!("{line:?}"));
            section.rows.push(vec![label.to_string(), items.trim_start().to_string()]);
        }
    }
}

// ---- Markdown --------------------------------------------------------------------------------------------------------

pub fn from_markdown(text: &str, truth: &Truth) -> Claims {
    let mut heading = Vec::new();
    let mut sections: Vec<Section> = Vec::new();
    let mut in_table = false;
    for line in text.lines() {
        let Some(inner) = line.strip_prefix("| ").and_then(|line| line.strip_suffix(" |")) else {
            in_table = false;
            if sections.is_empty() && heading.is_empty() && !line.is_empty() && !line.starts_with('#') {
                heading = line.split(", ").map(shown).collect();
            }
            continue;
        };
        let cells: Vec<String> = split_cells(inner).iter().map(|cell| shown(cell)).collect();
        if !std::mem::replace(&mut in_table, true) {
            let titles = TABLES.iter().map(|(title, _)| title).chain(&LISTS);
            let title =
                titles.copied().find(|title| *title == cells[0]).unwrap_or_else(|| panic!("{line:?}"));
            let known = COLUMNS.iter().chain([&HOTTEST_KEY]).map(|(name, _)| *name);
            let columns = cells[1..].iter().map(|cell| known.clone().find(|name| name == cell));
            let columns = columns.map(Option::unwrap_or_default).filter(|name| !name.is_empty()).collect();
            sections.push(Section { title, columns, rows: Vec::new() });
        } else if !cells[0].starts_with("---") {
            let section = sections.last_mut().unwrap();
            assert_eq!(cells.len(), section.columns.len().max(1) + 1, "{line:?}");
            section.rows.push(cells);
        }
    }
    claims_of(&heading, &sections, truth)
}

/// Splits at bars that no backslash takes away.
pub fn split_cells(line: &str) -> Vec<String> {
    let mut cells = vec![String::new()];
    let mut escaped = false;
    for character in line.chars() {
        match character {
            '|' if !escaped => cells.push(String::new()),
            other => cells.last_mut().unwrap().push(other),
        }
        escaped = character == '\\' && !escaped;
    }
    cells.iter().map(|cell| cell.trim_matches(' ').to_string()).collect()
}

/// What a reader of the rendered page sees, keys in their display form: code spans hold what they hold, outside of them
/// backslashes and names of characters are taken away.
pub fn shown(cell: &str) -> String {
    let mut text = String::new();
    let mut rest = cell;
    while let Some(first) = rest.chars().next() {
        rest = &rest[first.len_utf8()..];
        match first {
            '`' => {
                let end = rest.find('`').unwrap_or_else(|| panic!("a code span without an end in {cell:?}"));
                // A span of one blank stands for nothing: an empty one would be none.
                let span = if &rest[..end] == " " { String::new() } else { rest[..end].replace("\\|", "|") };
                // Signs of HTML stand in code spans as bytes of the key: the same bytes, escaped anew.
                let parts: Vec<String> = span
                    .split('…')
                    .map(|part| unescape(part).map_or_else(|| part.to_string(), |bytes| escape(&bytes)))
                    .collect();
                text.push_str(parts.join("…").trim_matches(' '));
                rest = &rest[end + 1..];
            }
            '\\' => {
                let next = rest.chars().next().unwrap_or('\\');
                text.push(next);
                rest = &rest[next.len_utf8().min(rest.len())..];
            }
            '&' => {
                let end = rest.find(';').unwrap_or_else(|| panic!("a bare & in {cell:?}"));
                text.push(match &rest[..end] {
                    "lt" => '<',
                    "gt" => '>',
                    "amp" => '&',
                    "#64" => '@',
                    other => panic!("unknown character {other:?} in {cell:?}"),
                });
                rest = &rest[end + 1..];
            }
            other => text.push(other),
        }
    }
    text
}

//! Reads reports back: JSON Lines as the truth, and every figure of the other forms as what they claim about it.
//!
//! JSON holds exact integers. A table holds `41.2k`, which claims only that the truth lies within half of its last digit. So a
//! figure read back is a range, and it agrees when the truth lies in it. A figure that nothing in JSON stands behind is an error.

mod sections;

pub use sections::{from_markdown, from_table, shown, split_cells};

use memtap::report::{escape, escape_name};
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
const NOTED: [&str; 8] = [
    "duplicate_segments",
    "out_of_order_segments",
    "mid_stream_flows",
    "body_hole_bytes",
    "packet_foreign",
    "proxy_headers",
    "server_versions_shed",
    "clock_set_back",
];

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
            match kind {
                "shape" => truth.key(&path, row, name),
                "group" => truth.text(format!("{path}/name"), &escape_name(row[name].as_str().unwrap())),
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
    for (name, value) in report["capture"].as_object().unwrap() {
        match value.as_str() {
            Some(text) => truth.text(format!("capture/{name}"), text),
            None => truth.set(format!("capture/{name}"), number(value)),
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
        let dropped = loss("ring_dropped") + loss("nic_dropped") + loss("worker_lost");
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
            "group" => {
                claims.text(format!("group/{rank}/name"), key);
                ("group", format!("group/{rank}"), None)
            }
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

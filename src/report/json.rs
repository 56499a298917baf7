//! JSON Lines, version 1: one object per interval and target. Fields are only ever added, behind those of the contract.

use super::contents::{Contents, Ranked};
use super::escape::escape;
use super::groups::Tally;
use super::merged::Merged;
use super::options::ClientView;
use super::privacy::PrivacyMode;
use super::units;
use super::unlisted::unlisted;
use crate::anomaly::Anomaly;
use crate::collector::Unlisted;
use crate::collector::snapshot::{
    CaptureHealth, ClientRow, Counters, KeyRow, LatencySummary, PairRow, ServerRow, Snapshot,
};
use crate::model::{Command, Endpoint, Outcome};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use std::borrow::Cow;
use std::io::{self, Write};

/// The version of the shape.
const VERSION: u32 = 1;

/// Writes the object and a newline.
pub(crate) fn write(out: &mut impl Write, contents: &Contents<'_>) -> io::Result<()> {
    let mut serializer = serde_json::Serializer::with_formatter(&mut *out, TerminalSafe);
    interval(contents).serialize(&mut serializer)?;
    out.write_all(b"\n")
}

fn interval<'a>(contents: &'a Contents<'a>) -> impl Serialize + 'a {
    let snapshot = contents.snapshot;
    let counters = &snapshot.totals.counters;
    IntervalJson {
        v: VERSION,
        r#type: "interval",
        host: contents.host(),
        target: &snapshot.target,
        address: &snapshot.address,
        start: units::instant(snapshot.start),
        end: units::instant(snapshot.end),
        requests: counters.requests(),
        bytes_in: counters.bytes_in,
        bytes_out: counters.bytes_out,
        classes: ClassesJson::new(counters),
        commands: CommandsJson(snapshot),
        latency_us: SummaryJson::new(&snapshot.latency),
        clients_seen: snapshot.clients_seen,
        connections_seen: snapshot.connections_seen,
        keys_seen: snapshot.keys_seen,
        loss: LossJson(snapshot),
        bounds: BoundsJson {
            key: snapshot.bounds.key,
            client: snapshot.bounds.client,
            pair: snapshot.bounds.pair,
        },
        hot_keys: rows(&contents.hot_keys, |rank, row| KeyJson::new(rank, row, contents)),
        hot_clients: rows(&contents.hot_clients, ClientJson::new),
        findings: contents
            .findings
            .iter()
            .map(|finding| FindingJson { id: &finding.id, text: &finding.text })
            .collect(),
        partial: snapshot.partial,
        ranked_by: contents.options.by.name(),
        missed_keys: rows(&contents.missed_keys, |rank, row| KeyJson::new(rank, row, contents)),
        servers: rows(&contents.servers, ServerJson::new),
        groups: rows(&contents.groups, TallyJson::new),
        shapes: rows(&contents.shapes, TallyJson::new),
        command_latency_us: CommandLatencyJson(snapshot),
        leases: LeasesJson::new(snapshot),
        capture: CaptureJson::new(&snapshot.health),
        unlisted: UnlistedJson::new(contents),
        histograms_us: HistogramsJson(snapshot),
        privacy: privacy_of(contents).0,
        key_secret: privacy_of(contents).1,
        merged: contents.merged().map(MergedJson::new),
    }
}

/// How the keys are shown: as those of the reports that were merged, unless these showed them as they are.
fn privacy_of(contents: &Contents<'_>) -> (&'static str, Option<String>) {
    let ours = &contents.options.privacy;
    match contents.merged() {
        Some(merged) if ours.mode() == PrivacyMode::Full => {
            (merged.privacy.name(), merged.key_secret.clone())
        }
        _ => (ours.mode().name(), ours.secret_name()),
    }
}

#[derive(Serialize)]
struct IntervalJson<'a, K, C, M, S, G, H> {
    v: u32,
    r#type: &'static str,
    host: Cow<'a, str>,
    target: &'a str,
    address: &'a str,
    start: String,
    end: String,
    requests: u64,
    bytes_in: u64,
    bytes_out: u64,
    #[serde(flatten)]
    classes: ClassesJson,
    commands: CommandsJson<'a>,
    latency_us: SummaryJson,
    clients_seen: u64,
    connections_seen: u64,
    keys_seen: u64,
    loss: LossJson<'a>,
    bounds: BoundsJson,
    hot_keys: K,
    hot_clients: C,
    findings: Vec<FindingJson<'a>>,
    // Added to the contract's own.
    #[serde(skip_serializing_if = "is_false")]
    partial: bool,
    ranked_by: &'static str,
    missed_keys: M,
    servers: S,
    groups: G,
    shapes: H,
    command_latency_us: CommandLatencyJson<'a>,
    leases: LeasesJson,
    capture: CaptureJson,
    // What merging takes.
    unlisted: UnlistedJson,
    histograms_us: HistogramsJson<'a>,
    privacy: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_secret: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    merged: Option<MergedJson<'a>>,
}

#[derive(Serialize)]
struct UnlistedJson {
    key: u64,
    client: u64,
    pair: u64,
    server: u64,
}

impl UnlistedJson {
    fn new(contents: &Contents<'_>) -> UnlistedJson {
        let Unlisted { key, client, socket, server, pair } = unlisted(contents);
        let client = match contents.options.client {
            ClientView::Ip => client,
            ClientView::Socket => socket,
        };
        UnlistedJson { key, client, pair, server }
    }
}

/// By verb the longest time and the cells of the histogram.
struct HistogramsJson<'a>(&'a Snapshot);

impl Serialize for HistogramsJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let cells = self.0.totals.response_times.cells();
        serializer
            .collect_map(cells.map(|(command, max, cells)| (command.name(), HistogramJson { max, cells })))
    }
}

#[derive(Serialize)]
struct HistogramJson {
    max: u64,
    /// Microseconds, count.
    cells: Vec<(u64, u64)>,
}

#[derive(Serialize)]
struct MergedJson<'a> {
    reports: u64,
    sources: Vec<MergedSourceJson<'a>>,
}

#[derive(Serialize)]
struct MergedSourceJson<'a> {
    host: &'a str,
    reports: u64,
    start: String,
    end: String,
    covered_us: u64,
}

impl MergedJson<'_> {
    fn new(merged: &Merged) -> MergedJson<'_> {
        let sources = merged.sources.iter().map(|source| MergedSourceJson {
            host: &source.host,
            reports: source.reports,
            start: units::instant(source.start),
            end: units::instant(source.end),
            covered_us: u64::try_from(source.covered.as_micros()).unwrap_or(u64::MAX),
        });
        MergedJson { reports: merged.reports(), sources: sources.collect() }
    }
}

#[derive(Serialize)]
struct CaptureJson {
    detail: &'static str,
    ring_blocks_peak: u32,
    ring_blocks: u32,
    freezes: u64,
    worker_restarts: u64,
}

impl CaptureJson {
    fn new(health: &CaptureHealth) -> CaptureJson {
        CaptureJson {
            detail: health.rung.name(),
            ring_blocks_peak: health.ring_blocks_peak,
            ring_blocks: health.ring_blocks,
            freezes: health.freezes,
            worker_restarts: health.worker_restarts,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

/// A sequence that is made while it is written, so that a report of every row needs no second copy of the rows.
struct Lazy<F>(F);

impl<F, I> Serialize for Lazy<F>
where
    F: Fn() -> I,
    I: Iterator<Item: Serialize>,
{
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq((self.0)())
    }
}

/// Ranked rows, made while they are written.
fn rows<'a, R, J: Serialize>(
    rows: &'a [&'a R],
    make: impl Fn(usize, &'a R) -> J + Copy + 'a,
) -> impl Serialize + 'a {
    Lazy(move || (1..).zip(rows).map(move |(rank, row)| make(rank, row)))
}

#[derive(Serialize)]
struct ClassesJson {
    gets: u64,
    hits: u64,
    misses: u64,
    stores: u64,
    deletes: u64,
    touches: u64,
    arithmetic: u64,
    other: u64,
    errors: u64,
}

impl ClassesJson {
    fn new(counters: &Counters) -> ClassesJson {
        ClassesJson {
            gets: counters.gets,
            hits: counters.hits,
            misses: counters.misses,
            stores: counters.stores,
            deletes: counters.deletes,
            touches: counters.touches,
            arithmetic: counters.arithmetic,
            other: counters.other,
            errors: counters.errors,
        }
    }
}

struct CommandsJson<'a>(&'a Snapshot);

impl Serialize for CommandsJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let seen = Command::ALL.iter().map(|command| (command, &self.0.totals.commands[command.index()]));
        serializer.collect_map(seen.filter(|(_, figures)| figures.requests > 0).map(|(command, figures)| {
            (command.name(), OutcomesJson { requests: figures.requests, outcomes: &figures.outcomes })
        }))
    }
}

struct OutcomesJson<'a> {
    requests: u64,
    outcomes: &'a [u64; Outcome::COUNT],
}

impl Serialize for OutcomesJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("requests", &self.requests)?;
        for outcome in Outcome::ALL.iter().filter(|outcome| self.outcomes[outcome.index()] > 0) {
            map.serialize_entry(outcome.name(), &self.outcomes[outcome.index()])?;
        }
        map.end()
    }
}

#[derive(Serialize)]
struct SummaryJson {
    p50: u64,
    p90: u64,
    p99: u64,
    max: u64,
    samples: u64,
}

impl SummaryJson {
    fn new(summary: &LatencySummary) -> SummaryJson {
        let LatencySummary { p50, p90, p99, max, samples } = *summary;
        SummaryJson { p50, p90, p99, max, samples }
    }
}

struct CommandLatencyJson<'a>(&'a Snapshot);

impl Serialize for CommandLatencyJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let entries = self.0.command_latency.iter();
        serializer.collect_map(entries.map(|(command, summary)| (command.name(), SummaryJson::new(summary))))
    }
}

struct LossJson<'a>(&'a Snapshot);

impl LossJson<'_> {
    /// Those of the contract, in its order; the others follow when they occurred.
    const CONTRACT: [Anomaly; 7] = [
        Anomaly::Gap,
        Anomaly::GapBytes,
        Anomaly::UnparsedBytes,
        Anomaly::UnmatchedRequest,
        Anomaly::UnmatchedResponse,
        Anomaly::Eviction,
        Anomaly::FlowShed,
    ];
}

impl Serialize for LossJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let loss = &self.0.loss;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("packets", &loss.packets)?;
        map.serialize_entry("ring_dropped", &loss.ring_dropped)?;
        map.serialize_entry("nic_dropped", &loss.nic_dropped)?;
        for anomaly in LossJson::CONTRACT {
            map.serialize_entry(anomaly.name(), &loss.anomalies.of(anomaly))?;
        }
        map.serialize_entry("worker_lost", &loss.worker_lost)?;
        for (anomaly, count) in
            loss.anomalies.iter().filter(|(anomaly, _)| !LossJson::CONTRACT.contains(anomaly))
        {
            map.serialize_entry(anomaly.name(), &count)?;
        }
        map.end()
    }
}

#[derive(Serialize)]
struct BoundsJson {
    key: u64,
    client: u64,
    pair: u64,
}

#[derive(Serialize)]
struct LeasesJson {
    won: u64,
    stale: u64,
    lost: u64,
}

impl LeasesJson {
    fn new(snapshot: &Snapshot) -> LeasesJson {
        let [won, stale, lost] = snapshot.totals.leases;
        LeasesJson { won, stale, lost }
    }
}

#[derive(Serialize)]
struct FindingJson<'a> {
    id: &'a str,
    text: &'a str,
}

#[derive(Serialize)]
struct MeanJson {
    mean: u64,
    max: u64,
}

impl MeanJson {
    fn new(counters: &Counters) -> MeanJson {
        MeanJson { mean: counters.latency_mean_us().unwrap_or(0), max: counters.latency_max_us }
    }
}

/// What rows have in common, but for those of clients, whose order the contract gave before there was more to say of them.
#[derive(Serialize)]
struct FiguresJson {
    requests: u64,
    err: u64,
    #[serde(flatten)]
    classes: ClassesJson,
    bytes_in: u64,
    bytes_out: u64,
    latency_us: MeanJson,
}

impl FiguresJson {
    fn new(row: &impl Ranked) -> FiguresJson {
        let counters = row.counters();
        FiguresJson {
            requests: counters.requests(),
            err: row.err(),
            classes: ClassesJson::new(counters),
            bytes_in: counters.bytes_in,
            bytes_out: counters.bytes_out,
            latency_us: MeanJson::new(counters),
        }
    }
}

/// A key as text where it is one, and its exact bytes where it is not.
struct KeyText<'a> {
    text: Cow<'a, str>,
    base64: Option<String>,
}

impl KeyText<'_> {
    fn new(key: &[u8]) -> KeyText<'_> {
        match std::str::from_utf8(key) {
            Ok(text) if !text.chars().any(char::is_control) => {
                KeyText { text: Cow::Borrowed(text), base64: None }
            }
            _ => KeyText { text: Cow::Owned(escape(key)), base64: Some(STANDARD.encode(key)) },
        }
    }
}

#[derive(Serialize)]
struct KeyJson<'a, P> {
    rank: usize,
    key: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_b64: Option<String>,
    #[serde(flatten)]
    figures: FiguresJson,
    clients: P,
    // Added: the table held only the first bytes of the key.
    #[serde(skip_serializing_if = "is_false")]
    key_truncated: bool,
    /// What a mean of several reports takes, here as in the other rows.
    latency_samples: u64,
}

impl<'a> KeyJson<'a, ()> {
    #[expect(clippy::new_ret_no_self, reason = "the type of the lazy clients cannot be written")]
    fn new(rank: usize, row: &'a KeyRow, contents: &'a Contents<'a>) -> impl Serialize + 'a {
        let key = KeyText::new(&row.key);
        KeyJson {
            rank,
            key: key.text,
            key_b64: key.base64,
            figures: FiguresJson::new(row),
            clients: Lazy(move || contents.clients_of(row).iter().map(PairJson::new)),
            key_truncated: row.truncated,
            latency_samples: row.counters.latency_samples,
        }
    }
}

#[derive(Serialize)]
struct PairJson {
    client: String,
    requests: u64,
    err: u64,
}

impl PairJson {
    fn new(pair: &PairRow) -> PairJson {
        PairJson { client: pair.client.ip().to_string(), requests: pair.requests, err: pair.err }
    }
}

#[derive(Serialize)]
struct ClientJson<'a> {
    rank: usize,
    client: String,
    requests: u64,
    err: u64,
    gets: u64,
    hits: u64,
    misses: u64,
    stores: u64,
    bytes_in: u64,
    bytes_out: u64,
    latency_us: MeanJson,
    #[serde(flatten)]
    top: TopKeyJson<'a>,
    // Added to the contract's own.
    deletes: u64,
    touches: u64,
    arithmetic: u64,
    other: u64,
    errors: u64,
    latency_samples: u64,
}

impl<'a> ClientJson<'a> {
    fn new(rank: usize, row: &'a ClientRow) -> ClientJson<'a> {
        let counters = &row.counters;
        ClientJson {
            rank,
            client: client_text(&row.client),
            requests: counters.requests(),
            err: row.err,
            gets: counters.gets,
            hits: counters.hits,
            misses: counters.misses,
            stores: counters.stores,
            bytes_in: counters.bytes_in,
            bytes_out: counters.bytes_out,
            latency_us: MeanJson::new(counters),
            top: TopKeyJson::new(row.top_key.as_ref()),
            deletes: counters.deletes,
            touches: counters.touches,
            arithmetic: counters.arithmetic,
            other: counters.other,
            errors: counters.errors,
            latency_samples: counters.latency_samples,
        }
    }
}

/// A row's hottest key.
#[derive(Serialize)]
struct TopKeyJson<'a> {
    top_key: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_key_b64: Option<String>,
    top_key_requests: u64,
}

impl<'a> TopKeyJson<'a> {
    fn new(top: Option<&'a (Box<[u8]>, u64)>) -> TopKeyJson<'a> {
        let (key, top_key_requests) = match top {
            Some((key, requests)) => (Some(KeyText::new(key)), *requests),
            None => (None, 0),
        };
        let (top_key, top_key_b64) = key.map(|key| (key.text, key.base64)).unzip();
        TopKeyJson { top_key, top_key_b64: top_key_b64.flatten(), top_key_requests }
    }
}

/// A client as rankings name it: without a port where they count by address.
pub(super) fn client_text(client: &Endpoint) -> String {
    if client.port() == 0 { client.ip().to_string() } else { client.to_string() }
}

#[derive(Serialize)]
struct ServerJson<'a> {
    rank: usize,
    server: String,
    #[serde(flatten)]
    figures: FiguresJson,
    #[serde(flatten)]
    top: TopKeyJson<'a>,
    latency_samples: u64,
}

impl<'a> ServerJson<'a> {
    fn new(rank: usize, row: &'a ServerRow) -> ServerJson<'a> {
        ServerJson {
            rank,
            server: row.server.to_string(),
            figures: FiguresJson::new(row),
            top: TopKeyJson::new(row.top_key.as_ref()),
            latency_samples: row.counters.latency_samples,
        }
    }
}

#[derive(Serialize)]
struct TallyJson<'a> {
    rank: usize,
    name: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name_b64: Option<String>,
    keys: u64,
    #[serde(flatten)]
    figures: FiguresJson,
    #[serde(flatten)]
    top: TopKeyJson<'a>,
}

impl<'a> TallyJson<'a> {
    fn new(rank: usize, tally: &'a Tally) -> TallyJson<'a> {
        let name = KeyText::new(&tally.name);
        TallyJson {
            rank,
            name: name.text,
            name_b64: name.base64,
            keys: tally.keys,
            figures: FiguresJson::new(tally),
            top: TopKeyJson::new(tally.top_key.as_ref()),
        }
    }
}

/// Compact JSON in which characters that reorder or hide text on a terminal are written as `\uNNNN`. The strings that
/// a parser reads are the same.
struct TerminalSafe;

impl serde_json::ser::Formatter for TerminalSafe {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(misleads) {
            writer.write_all(&rest.as_bytes()[..at])?;
            let character = rest[at..].chars().next().unwrap_or_default();
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                write!(writer, "\\u{unit:04x}")?;
            }
            rest = &rest[at + character.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }
}

/// Controls (serde_json escapes only the first 32), line separators, direction marks, and what takes no room.
fn misleads(character: char) -> bool {
    matches!(
        character,
        '\u{7f}'..='\u{9f}'
            | '\u{ad}'
            | '\u{61c}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{e0000}'..='\u{e007f}'
    )
}

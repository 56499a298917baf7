//! Reads a line of JSON Lines back: what `json` wrote, this version's or an earlier one's of the same shape. Fields that are not known
//! here are passed over, for fields are only ever added. A line may come from anywhere: every figure is judged before it is used.

mod line;

use super::merged::MergedSource;
use super::options::ClientView;
use super::privacy::PrivacyMode;
use crate::anomaly::Anomaly;
use crate::capture::ladder::Rung;
use crate::collector::Unlisted;
use crate::collector::snapshot::{
    Bounds, CaptureHealth, ClientRow, CommandOutcomes, Counters, KeyRow, LatencySummary, PairRow, ServerRow,
    Snapshot,
};
use crate::model::{Command, Endpoint, Outcome, Timestamp};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use line::{
    Capture, ClientLine, Figures, FindingLine, HistogramLine, KeyLine, Leases, Line, Mean, MergedLine,
    Quantiles, ServerLine, TopLine, UnlistedLine,
};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The version that is read here.
const VERSION: u64 = 1;

/// No figure is greater: the integers that every reader of JSON tells apart.
const FIGURE_MAX: u64 = 1 << 53;

/// A response time is no longer: some two weeks, in microseconds.
const LATENCY_MAX_US: u64 = 1 << 40;

/// A report as it was printed.
#[derive(Clone, Debug)]
pub struct ReadReport {
    /// The machine that captured, or those that did.
    pub host: String,
    /// The figures. Clients by IP are added up from those by IP and port where the report lists these.
    pub snapshot: Snapshot,
    /// What a row that the report does not list had at most.
    pub unlisted: Unlisted,
    /// What its hot clients are; nothing when it lists none.
    pub view: Option<ClientView>,
    /// How its keys are shown.
    pub privacy: PrivacyMode,
    /// The name of the secret that they are hashed with.
    pub key_secret: Option<String>,
    /// What it found: id and sentence.
    pub findings: Vec<(String, String)>,
    /// Causes of loss, commands and outcomes that are not known here, with their counts.
    pub not_understood: Vec<(String, u64)>,
    /// What it was merged from; nothing for the report of one machine.
    pub(crate) sources: Vec<MergedSource>,
    /// No figure of it, nor a sum over its rows, is greater.
    pub(crate) greatest: u64,
}

/// Why a line is no report.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// It ends before the object does.
    #[error("it breaks off after {bytes} bytes")]
    Cut {
        /// Its length.
        bytes: usize,
    },
    /// It is something else.
    #[error("{0}")]
    Wrong(String),
}

fn wrong(what: impl Into<String>) -> ReadError {
    ReadError::Wrong(what.into())
}

/// Reads one line, with or without its end.
pub fn read_report(line: &[u8]) -> Result<ReadReport, ReadError> {
    #[derive(Deserialize)]
    struct Head {
        v: u64,
        r#type: String,
    }
    let refuse = |error: serde_json::Error| match error.classify() {
        serde_json::error::Category::Eof => ReadError::Cut { bytes: line.len() },
        _ => {
            // One line: where it stands is a column.
            let text = error.to_string().replace(" at line 1 column ", ", at column ");
            wrong(format!("{text}; expected an object as `-o jsonl` writes it"))
        }
    };
    let head: Head = serde_json::from_slice(line).map_err(refuse)?;
    if head.v != VERSION {
        return Err(wrong(format!("\"v\" is {}, and only {VERSION} is understood", head.v)));
    }
    if head.r#type != "interval" {
        let kind = super::escape::escape_name(&head.r#type);
        return Err(wrong(format!("\"type\" is {kind:?}, and only \"interval\" is a report")));
    }
    let line: Line = serde_json::from_slice(line).map_err(refuse)?;
    Reading::default().report(line)
}

/// A line on its way to a report.
#[derive(Default)]
struct Reading {
    /// The greatest figure that was met.
    greatest: u64,
    not_understood: Vec<(String, u64)>,
}

impl Reading {
    fn report(mut self, line: Line) -> Result<ReadReport, ReadError> {
        let (start, end) = (instant("start", &line.start)?, instant("end", &line.end)?);
        if end < start {
            return Err(wrong("\"end\" lies before \"start\""));
        }
        let totals = Figures {
            requests: line.requests,
            err: 0,
            bytes_in: line.bytes_in,
            bytes_out: line.bytes_out,
            latency_us: Mean::default(),
            latency_samples: None,
            classes: line.classes,
        };
        let counters = self.counters("the totals", &totals)?;
        let privacy = match line.privacy.as_deref() {
            None => PrivacyMode::Full,
            Some(name) => {
                PrivacyMode::from_name(name).ok_or_else(|| unknown("privacy", name, PrivacyMode::NAMES))?
            }
        };
        let keys = self.keys(line.hot_keys, line.missed_keys)?;
        let (view, clients) = self.clients(line.hot_clients)?;
        let mut snapshot = Snapshot {
            target: line.target,
            address: line.address,
            start,
            end,
            partial: line.partial,
            latency: self.quantiles(&line.latency_us)?,
            clients_seen: self.figure("clients_seen", line.clients_seen)?,
            connections_seen: self.figure("connections_seen", line.connections_seen)?,
            keys_seen: self.figure("keys_seen", line.keys_seen)?,
            bounds: Bounds {
                key: self.figure("bounds.key", line.bounds.key)?,
                client: self.figure("bounds.client", line.bounds.client)?,
                pair: self.figure("bounds.pair", line.bounds.pair)?,
            },
            keys,
            servers: self.servers(line.servers)?,
            health: line.capture.map_or(Ok(CaptureHealth::default()), |capture| self.health(&capture))?,
            ..Snapshot::default()
        };
        snapshot.totals.counters = Counters { latency_max_us: snapshot.latency.max, ..counters };
        let Leases { won, stale, lost } = line.leases;
        for (into, count) in snapshot.totals.leases.iter_mut().zip([won, stale, lost]) {
            *into = self.figure("leases", count)?;
        }
        self.commands(&mut snapshot, &line.commands, &line.command_latency_us)?;
        self.histograms(&mut snapshot, &line.histograms_us)?;
        self.losses(&mut snapshot, line.loss)?;
        let unlisted = self.unlisted(&snapshot, line.unlisted, view, &clients)?;
        match view {
            Some(ClientView::Socket) => {
                snapshot.clients = by_ip(&clients, unlisted.client);
                snapshot.sockets = clients;
            }
            _ => snapshot.clients = clients,
        }
        Ok(ReadReport {
            host: line.host,
            snapshot,
            unlisted,
            view,
            privacy,
            key_secret: line.key_secret,
            findings: line.findings.into_iter().map(finding).collect::<Result<_, _>>()?,
            sources: line.merged.map_or(Ok(Vec::new()), |merged| self.sources(merged))?,
            not_understood: self.not_understood,
            greatest: self.greatest,
        })
    }

    /// A figure that is not too great to be added up.
    fn figure(&mut self, name: &str, value: u64) -> Result<u64, ReadError> {
        if value > FIGURE_MAX {
            return Err(wrong(format!("{name} is {value}, and no figure is above {FIGURE_MAX}")));
        }
        self.greatest = self.greatest.max(value);
        Ok(value)
    }

    fn counters(&mut self, of: &str, figures: &Figures) -> Result<Counters, ReadError> {
        let classes = &figures.classes;
        let optional = [classes.deletes, classes.touches, classes.arithmetic, classes.other];
        let all = [classes.gets, classes.hits, classes.misses, classes.stores, classes.errors];
        for &value in all.iter().chain(optional.iter().flatten()) {
            self.figure(of, value)?;
        }
        for value in [figures.requests, figures.bytes_in, figures.bytes_out] {
            self.figure(of, value)?;
        }
        let [deletes, touches, arithmetic, other] = optional.map(|value| value.unwrap_or(0));
        let known = classes.gets + classes.stores + deletes + touches + arithmetic + other;
        // The contract's own rows of clients do not name every class.
        let rest = figures.requests.checked_sub(known);
        let rest = rest.filter(|&rest| rest == 0 || optional.contains(&None));
        let Some(rest) = rest else {
            let requests = figures.requests;
            return Err(wrong(format!(
                "of {of} {requests} requests are named, and {known} by their classes"
            )));
        };
        if classes.hits + classes.misses > classes.gets {
            return Err(wrong(format!("{of} has more hits and misses than gets")));
        }
        if figures.err > figures.requests {
            return Err(wrong(format!("{of} has an err above its requests")));
        }
        let Mean { mean, max } = figures.latency_us;
        // Without the number of response times, that of requests is the best guess.
        let samples = figures.latency_samples.unwrap_or(if mean > 0 { figures.requests } else { 0 });
        if max > LATENCY_MAX_US || mean > max {
            return Err(wrong(format!(
                "{of} has a response time above {LATENCY_MAX_US} µs, or a mean above its longest"
            )));
        }
        self.figure(of, samples)?;
        let latency_sum_us = mean.saturating_mul(samples);
        self.greatest = self.greatest.max(latency_sum_us);
        Ok(Counters {
            gets: classes.gets,
            hits: classes.hits,
            misses: classes.misses,
            stores: classes.stores,
            deletes,
            touches,
            arithmetic,
            other: other + rest,
            errors: classes.errors,
            bytes_in: figures.bytes_in,
            bytes_out: figures.bytes_out,
            latency_sum_us,
            latency_samples: samples,
            latency_max_us: max,
        })
    }

    fn quantiles(&mut self, quantiles: &Quantiles) -> Result<LatencySummary, ReadError> {
        let Quantiles { p50, p90, p99, max, samples } = *quantiles;
        for value in [p50, p90, p99, max, samples] {
            self.figure("latency_us", value)?;
        }
        Ok(LatencySummary { p50, p90, p99, max, samples })
    }

    /// The rows of both lists, each key once.
    fn keys(&mut self, hot: Vec<KeyLine>, missed: Vec<KeyLine>) -> Result<Vec<KeyRow>, ReadError> {
        let mut rows: Vec<KeyRow> = Vec::with_capacity(hot.len());
        let mut places: HashMap<(Box<[u8]>, bool), Vec<usize>> = HashMap::with_capacity(hot.len());
        let mut sum = 0u64;
        for line in hot.into_iter().chain(missed) {
            let row = self.key(line)?;
            let known = places.entry((row.key.clone(), row.truncated)).or_default();
            if known.iter().any(|&at| rows[at] == row) {
                continue;
            }
            // Cut keys of the same beginning are several.
            if !known.is_empty() && !row.truncated {
                let key = super::escape::escape(&row.key);
                return Err(wrong(format!("key {key} is listed twice, with different figures")));
            }
            known.push(rows.len());
            sum = sum.saturating_add(row.counters.requests());
            rows.push(row);
        }
        self.greatest = self.greatest.max(sum);
        Ok(rows)
    }

    fn key(&mut self, line: KeyLine) -> Result<KeyRow, ReadError> {
        let key = bytes(&line.key, line.key_b64.as_deref())?;
        let counters = self.counters("a key", &line.figures)?;
        let mut clients = Vec::with_capacity(line.clients.len());
        for pair in line.clients {
            let requests = self.figure("a client of a key", pair.requests)?;
            if pair.err > requests {
                return Err(wrong("a client of a key has an err above its requests"));
            }
            let client: IpAddr = pair.client.parse().map_err(|_| no_client(&pair.client, "an IP address"))?;
            clients.push(PairRow { client: Endpoint::new(client, 0), requests, err: pair.err });
        }
        let distinct: HashSet<Endpoint> = clients.iter().map(|pair| pair.client).collect();
        if distinct.len() < clients.len() {
            return Err(wrong("a client is listed twice for the same key"));
        }
        Ok(KeyRow { key, truncated: line.key_truncated, err: line.figures.err, counters, clients })
    }

    fn clients(&mut self, lines: Vec<ClientLine>) -> Result<(Option<ClientView>, Vec<ClientRow>), ReadError> {
        let mut view = None;
        let mut rows = Vec::with_capacity(lines.len());
        for line in lines {
            let text = line.client.as_str();
            let (of, client) = match (text.parse::<SocketAddr>(), text.parse::<IpAddr>()) {
                (Ok(socket), _) => (ClientView::Socket, Endpoint::new(socket.ip(), socket.port())),
                (_, Ok(ip)) => (ClientView::Ip, Endpoint::new(ip, 0)),
                _ => return Err(no_client(text, "IP or IP:port")),
            };
            if *view.get_or_insert(of) != of {
                return Err(wrong("hot_clients are partly by IP and partly by IP:port"));
            }
            let counters = self.counters("a client", &line.figures)?;
            let top_key = self.top_key(line.top)?;
            rows.push(ClientRow { client, err: line.figures.err, counters, top_key });
        }
        distinct("hot_clients", rows.iter().map(|row| row.client))?;
        Ok((view, rows))
    }

    fn servers(&mut self, lines: Vec<ServerLine>) -> Result<Vec<ServerRow>, ReadError> {
        let mut rows = Vec::with_capacity(lines.len());
        for line in lines {
            let server: SocketAddr =
                line.server.parse().map_err(|_| no_client(&line.server, "IP:port of a server"))?;
            rows.push(ServerRow {
                server: Endpoint::new(server.ip(), server.port()),
                err: line.figures.err,
                counters: self.counters("a server", &line.figures)?,
                top_key: self.top_key(line.top)?,
            });
        }
        distinct("servers", rows.iter().map(|row| row.server))?;
        Ok(rows)
    }

    fn top_key(&mut self, top: TopLine) -> Result<TopKey, ReadError> {
        let requests = self.figure("top_key_requests", top.top_key_requests)?;
        top.top_key.map(|key| Ok((bytes(&key, top.top_key_b64.as_deref())?, requests))).transpose()
    }

    fn health(&mut self, capture: &Capture) -> Result<CaptureHealth, ReadError> {
        let rung = Rung::ALL.into_iter().find(|rung| rung.name() == capture.detail);
        let names = Rung::ALL.map(Rung::name);
        Ok(CaptureHealth {
            ring_blocks_peak: capture.ring_blocks_peak,
            ring_blocks: capture.ring_blocks,
            freezes: self.figure("freezes", capture.freezes)?,
            worker_restarts: self.figure("worker_restarts", capture.worker_restarts)?,
            rung: rung.ok_or_else(|| unknown("capture.detail", &capture.detail, &names))?,
        })
    }

    fn commands(
        &mut self,
        snapshot: &mut Snapshot,
        commands: &BTreeMap<String, BTreeMap<String, u64>>,
        latencies: &BTreeMap<String, Quantiles>,
    ) -> Result<(), ReadError> {
        for (name, counts) in commands {
            let Some(command) = command(name) else {
                self.not_understood(&format!("command {name}"), counts.get("requests").copied())?;
                continue;
            };
            let mut figures = CommandOutcomes::default();
            for (outcome, &count) in counts {
                let count = self.figure(name, count)?;
                match Outcome::ALL.iter().find(|known| known.name() == outcome) {
                    _ if outcome == "requests" => figures.requests = count,
                    Some(outcome) => figures.outcomes[outcome.index()] = count,
                    None => self.not_understood(&format!("outcome {outcome} of {name}"), Some(count))?,
                }
            }
            snapshot.totals.commands[command.index()] = figures;
        }
        for (name, quantiles) in latencies {
            let summary = self.quantiles(quantiles)?;
            snapshot.command_latency.extend(command(name).map(|command| (command, summary)));
        }
        snapshot.command_latency.sort_by_key(|(command, _)| command.index());
        Ok(())
    }

    fn histograms(
        &mut self,
        snapshot: &mut Snapshot,
        histograms: &BTreeMap<String, HistogramLine>,
    ) -> Result<(), ReadError> {
        let mut sum = 0u64;
        for (name, histogram) in histograms {
            // What is left out of a newer version's times makes its percentiles unknown, and that is said.
            let Some(command) = command(name) else { continue };
            for &(_, count) in &histogram.cells {
                sum = sum.saturating_add(self.figure("histograms_us", count)?);
            }
            let longest = self.figure("histograms_us", histogram.max)?;
            snapshot.totals.response_times.add_cells(command, longest, &histogram.cells);
        }
        self.greatest = self.greatest.max(sum);
        Ok(())
    }

    fn losses(&mut self, snapshot: &mut Snapshot, losses: BTreeMap<String, u64>) -> Result<(), ReadError> {
        for (name, count) in losses {
            let count = self.figure("loss", count)?;
            let loss = &mut snapshot.loss;
            match (name.as_str(), Anomaly::ALL.iter().find(|anomaly| anomaly.name() == name)) {
                ("packets", _) => loss.packets = count,
                ("ring_dropped", _) => loss.ring_dropped = count,
                ("nic_dropped", _) => loss.nic_dropped = count,
                ("worker_lost", _) => loss.worker_lost = count,
                (_, Some(&anomaly)) => loss.anomalies.add(anomaly, count),
                (_, None) => self.not_understood(&format!("loss {name}"), Some(count))?,
            }
        }
        Ok(())
    }

    fn not_understood(&mut self, name: &str, count: Option<u64>) -> Result<(), ReadError> {
        let count = self.figure(name, count.unwrap_or(0))?;
        if count > 0 {
            self.not_understood.push((name.to_string(), count));
        }
        Ok(())
    }

    /// What the report says of rows that it does not list, or what its totals leave for them.
    fn unlisted(
        &mut self,
        snapshot: &Snapshot,
        line: Option<UnlistedLine>,
        view: Option<ClientView>,
        clients: &[ClientRow],
    ) -> Result<Unlisted, ReadError> {
        let total = snapshot.totals.counters.requests();
        let left = |certain: u64| total.saturating_sub(certain);
        let mut unlisted = Unlisted {
            key: left(certain(snapshot.keys.iter().map(|row| (&row.counters, row.err)))),
            client: left(certain(clients.iter().map(|row| (&row.counters, row.err)))),
            socket: left(certain(clients.iter().map(|row| (&row.counters, row.err)))),
            server: left(certain(snapshot.servers.iter().map(|row| (&row.counters, row.err)))),
            pair: total,
        };
        if let Some(line) = line {
            for value in [line.key, line.client, line.pair, line.server] {
                self.figure("unlisted", value)?;
            }
            unlisted.key = unlisted.key.min(line.key);
            unlisted.pair = unlisted.pair.min(line.pair);
            unlisted.server = unlisted.server.min(line.server);
            match view {
                Some(ClientView::Socket) => unlisted.socket = unlisted.socket.min(line.client),
                Some(ClientView::Ip) => unlisted.client = unlisted.client.min(line.client),
                None => {}
            }
        }
        if view == Some(ClientView::Ip) {
            // One connection may have sent all that its machine did.
            unlisted.socket = total;
        }
        Ok(unlisted)
    }

    fn sources(&mut self, merged: MergedLine) -> Result<Vec<MergedSource>, ReadError> {
        let sources = merged.sources.into_iter().map(|source| {
            let reports = self.figure("merged.sources", source.reports)?;
            let (start, end) = (instant("start", &source.start)?, instant("end", &source.end)?);
            let covered = Duration::from_micros(self.figure("merged.sources", source.covered_us)?);
            Ok(MergedSource { host: source.host, reports, start, end, covered })
        });
        sources.collect()
    }
}

/// A row's hottest key and its requests.
type TopKey = Option<(Box<[u8]>, u64)>;

/// Requests that the rows certainly had, all together.
fn certain<'a>(rows: impl Iterator<Item = (&'a Counters, u64)>) -> u64 {
    rows.map(|(counters, err)| counters.requests().saturating_sub(err)).fold(0, u64::saturating_add)
}

/// Clients by IP from those by IP and port. `unlisted` is what all connections that are not listed had together.
fn by_ip(sockets: &[ClientRow], unlisted: u64) -> Vec<ClientRow> {
    let mut rows: HashMap<Endpoint, ClientRow> = HashMap::new();
    for socket in sockets {
        let client = socket.client.without_port();
        let row = rows.entry(client).or_insert_with(|| ClientRow {
            client,
            err: unlisted,
            counters: Counters { gets: unlisted, ..Counters::default() },
            top_key: None,
        });
        row.err = row.err.saturating_add(socket.err);
        row.counters.merge(&socket.counters);
        let most = row.top_key.as_ref().map_or(0, |(_, most)| *most);
        if socket.top_key.as_ref().is_some_and(|(_, requests)| *requests > most) {
            row.top_key.clone_from(&socket.top_key);
        }
    }
    rows.into_values().collect()
}

fn distinct(list: &str, names: impl Iterator<Item = Endpoint>) -> Result<(), ReadError> {
    let mut known = HashSet::new();
    for name in names {
        if !known.insert(name) {
            return Err(wrong(format!("{list} lists {name} twice")));
        }
    }
    Ok(())
}

fn finding(line: FindingLine) -> Result<(String, String), ReadError> {
    const ID_LENGTH_MAX: usize = 64;
    let is_id = |id: &str| id.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    if line.id.is_empty() || line.id.len() > ID_LENGTH_MAX || !is_id(&line.id) {
        let id = super::escape::escape_name(&line.id);
        return Err(wrong(format!("{id:?} is no id of a finding; those are small letters and hyphens")));
    }
    Ok((line.id, line.text))
}

/// The exact bytes of a key.
fn bytes(text: &str, base64: Option<&str>) -> Result<Box<[u8]>, ReadError> {
    match base64 {
        None => Ok(text.as_bytes().into()),
        Some(base64) => STANDARD
            .decode(base64)
            .map(Vec::into_boxed_slice)
            .map_err(|error| wrong(format!("a key is not base64: {error}"))),
    }
}

fn command(name: &str) -> Option<Command> {
    Command::ALL.iter().copied().find(|command| command.name() == name)
}

fn instant(name: &str, text: &str) -> Result<Timestamp, ReadError> {
    let refused = || {
        let text = super::escape::escape_name(text);
        wrong(format!("{name:?} is {text:?}, not a time such as 2026-11-22T12:00:00.000000Z"))
    };
    let time: jiff::Timestamp = text.parse().map_err(|_| refused())?;
    u64::try_from(time.as_nanosecond()).map(Timestamp::from_nanos).map_err(|_| refused())
}

fn no_client(text: &str, expected: &str) -> ReadError {
    wrong(format!("{:?} is not {expected}", super::escape::escape_name(text)))
}

fn unknown(field: &str, value: &str, known: &[&str]) -> ReadError {
    let value = super::escape::escape_name(value);
    wrong(format!("{field} is {value:?}; known are {}", known.join(" ")))
}

#[cfg(test)]
mod tests;

//! What the tables say: sections with their columns, for terminal and Markdown alike. To add a column, add an entry to its
//! section's list; to add a section, add it to [`sections`].

use super::contents::{Contents, Ranked, is_loss};
use super::escape::{escape, escape_name};
use super::groups::Tally;
use super::json::client_text;
use super::units;
use crate::collector::snapshot::{CaptureHealth, ClientRow, KeyRow, LatencySummary, ServerRow, Snapshot};
use crate::model::{Command, Outcome};
use std::time::Duration;

/// A part of a report.
pub(crate) enum Section<'a> {
    /// Rows of figures under a line of names.
    Table(Table<'a>),
    /// Labels, each with the items that belong to it.
    List(List<'a>),
}

/// Rows of figures. They are made when they are written: a report of every row needs no second copy of the rows.
pub(crate) struct Table<'a> {
    /// The columns; the title is the name of the first.
    pub columns: Vec<Column>,
    /// Number of rows.
    pub rows: usize,
    /// Makes a row's cells, one for each column.
    pub row: Box<dyn Fn(usize) -> Vec<Cell> + 'a>,
}

/// Labels with items.
pub(crate) struct List<'a> {
    /// The line above them.
    pub title: &'static str,
    /// How much it matters, for its colour.
    pub tone: Tone,
    /// Number of labels.
    pub rows: usize,
    /// Makes a label and its items.
    pub row: Box<dyn Fn(usize) -> (Cell, Vec<String>) + 'a>,
}

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    Warning,
}

/// A column's name and how it behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    /// The name above it.
    pub name: &'static str,
    /// Figures stand at the right.
    pub right: bool,
    /// 0 stays; of the others, the greatest goes first where the terminal is narrow.
    pub priority: u8,
}

/// What stands in a column of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cell {
    /// Never shortened.
    Figure(String),
    /// A key or a name, escaped, which may be shortened, and a figure behind it.
    Key {
        /// The key or name, escaped.
        text: String,
        /// What follows it, never shortened.
        suffix: String,
    },
}

impl Cell {
    pub(super) fn key(bytes: &[u8]) -> Cell {
        Cell::Key { text: escape(bytes), suffix: String::new() }
    }

    pub(super) fn key_of(row: &KeyRow) -> Cell {
        // An ellipsis at the end: the key goes on, but the table held no more of it.
        let suffix = if row.truncated { "…".to_string() } else { String::new() };
        Cell::Key { text: escape(&row.key), suffix }
    }

    /// A key with its share of `whole` requests.
    fn top_key(top: Option<&(Box<[u8]>, u64)>, whole: u64) -> Cell {
        match top {
            Some((key, requests)) => {
                let suffix = format!(" ({}%)", percent_short(*requests, whole));
                Cell::Key { text: escape(key), suffix }
            }
            None => Cell::Figure("-".to_string()),
        }
    }
}

/// A column of a row type: its behaviour and how its cells are made.
pub(super) struct Spec<R> {
    pub(super) column: Column,
    pub(super) cell: fn(&Frame, &R) -> Cell,
}

/// What cells need to know beside their row.
#[derive(Clone, Copy)]
pub(super) struct Frame {
    pub(super) requests: u64,
    misses: u64,
    pub(super) length: Duration,
}

impl Frame {
    pub(super) fn of(contents: &Contents<'_>) -> Frame {
        Frame {
            requests: contents.requests(),
            misses: contents.snapshot.totals.counters.misses,
            length: contents.snapshot.length(),
        }
    }
}

pub(super) const fn name<R>(name: &'static str, cell: fn(&Frame, &R) -> Cell) -> Spec<R> {
    Spec { column: Column { name, right: false, priority: 0 }, cell }
}

pub(super) const fn figure<R>(name: &'static str, priority: u8, cell: fn(&Frame, &R) -> Cell) -> Spec<R> {
    Spec { column: Column { name, right: true, priority }, cell }
}

const fn text<R>(name: &'static str, priority: u8, cell: fn(&Frame, &R) -> Cell) -> Spec<R> {
    Spec { column: Column { name, right: false, priority }, cell }
}

// The columns that every kind of row has.

const fn requests<R: Ranked>() -> Spec<R> {
    figure("REQUESTS", 0, |_, row| Cell::Figure(units::count(row.counters().requests())))
}

/// A figure without its error would claim more than we know: it stays on the narrowest terminal.
const fn error<R: Ranked>() -> Spec<R> {
    figure("±", 0, |_, row| Cell::Figure(units::count(row.err())))
}

const fn rate<R: Ranked>() -> Spec<R> {
    figure("REQ/S", 5, |frame, row| Cell::Figure(units::rate(row.counters().requests(), frame.length)))
}

const fn share<R: Ranked>() -> Spec<R> {
    figure("SHARE", 2, |frame, row| Cell::Figure(percent_text(row.counters().requests(), frame.requests)))
}

pub(super) const fn hit_ratio<R: Ranked>() -> Spec<R> {
    figure("HIT%", 3, |_, row| {
        let counters = row.counters();
        Cell::Figure(units::percent(counters.hits, counters.hits + counters.misses, 1))
    })
}

const fn bytes_rate<R: Ranked>() -> Spec<R> {
    figure("OUT/S", 6, |frame, row| Cell::Figure(units::byte_rate(row.counters().bytes_out, frame.length)))
}

pub(super) const fn latency<R: Ranked>() -> Spec<R> {
    figure("MEAN/MAX ms", 7, |_, row| {
        let counters = row.counters();
        Cell::Figure(match counters.latency_mean_us() {
            Some(mean) => format!("{} / {}", units::millis(mean), units::millis(counters.latency_max_us)),
            None => "-".to_string(),
        })
    })
}

/// Only where rows are ranked by errors, or some row has any, does the column earn its place; it stands in JSON anyhow.
pub(super) const fn errors<R: Ranked>() -> Spec<R> {
    figure("ERRORS", 8, |_, row| Cell::Figure(units::count(row.counters().errors)))
}

const fn top_client() -> Spec<KeyRow> {
    text("TOP CLIENT", 4, |_, row| match row.clients.first() {
        Some(pair) => {
            let share = percent_short(pair.requests, row.counters.requests());
            Cell::Figure(format!("{} ({share}%)", pair.client.ip()))
        }
        None => Cell::Figure("-".to_string()),
    })
}

pub(super) fn hot_keys() -> Vec<Spec<KeyRow>> {
    vec![
        name("HOT KEYS", |_, row| Cell::key_of(row)),
        requests(),
        error(),
        rate(),
        share(),
        hit_ratio(),
        bytes_rate(),
        latency(),
        errors(),
        top_client(),
    ]
}

fn missed_keys() -> Vec<Spec<KeyRow>> {
    vec![
        name("MISSED KEYS", |_, row| Cell::key_of(row)),
        figure("MISSES", 0, |_, row| Cell::Figure(units::count(row.counters.misses))),
        figure("OF ALL", 2, |frame, row| Cell::Figure(percent_text(row.counters.misses, frame.misses))),
        requests(),
        error(),
        hit_ratio(),
        top_client(),
    ]
}

pub(super) fn hot_clients() -> Vec<Spec<ClientRow>> {
    vec![
        name("HOT CLIENTS", |_, row| Cell::Figure(client_text(&row.client))),
        requests(),
        error(),
        rate(),
        share(),
        hit_ratio(),
        bytes_rate(),
        latency(),
        errors(),
        text("TOP KEY", 4, |_, row| Cell::top_key(row.top_key.as_ref(), row.counters.requests())),
    ]
}

pub(super) fn servers() -> Vec<Spec<ServerRow>> {
    vec![
        name("SERVERS", |_, row| Cell::Figure(row.server.to_string())),
        requests(),
        error(),
        rate(),
        share(),
        hit_ratio(),
        bytes_rate(),
        latency(),
        text("HOTTEST KEY", 4, |_, row| Cell::top_key(row.top_key.as_ref(), row.counters.requests())),
    ]
}

pub(super) fn groups() -> Vec<Spec<Tally>> {
    let cell = |_: &Frame, row: &Tally| Cell::Key { text: row.group_name(), suffix: String::new() };
    tallies(name("KEY GROUPS", cell))
}

pub(super) fn shapes() -> Vec<Spec<Tally>> {
    tallies(name("KEY SHAPES", |_, row: &Tally| Cell::key(&row.name)))
}

fn tallies(name: Spec<Tally>) -> Vec<Spec<Tally>> {
    vec![
        name,
        requests(),
        error(),
        rate(),
        share(),
        hit_ratio(),
        bytes_rate(),
        figure("KEYS", 6, |_, row| Cell::Figure(units::count(row.keys))),
        text("HOTTEST KEY", 4, |_, row| Cell::top_key(row.top_key.as_ref(), row.counters.requests())),
    ]
}

/// The sections of a report, in their order; those with nothing to say are left out.
pub(crate) fn sections<'a>(contents: &'a Contents<'a>) -> Vec<Section<'a>> {
    let frame = Frame::of(contents);
    // Shapes that add nothing up would repeat the table of keys.
    let adds_up = contents.shapes.iter().any(|tally| tally.keys > 1);
    let shapes: &[&Tally] = if adds_up { &contents.shapes } else { &[] };
    let mut sections = vec![
        table(hot_keys(), frame, &contents.hot_keys),
        table(hot_clients(), frame, &contents.hot_clients),
        clients_per_key(contents),
        table(missed_keys(), frame, &contents.missed_keys),
        table(servers(), frame, &contents.servers),
        table(groups(), frame, &contents.groups),
        table(self::shapes(), frame, shapes),
        commands(contents.snapshot),
        totals(contents),
        findings(contents),
    ];
    sections.retain(|section| match section {
        Section::Table(table) => table.rows > 0,
        Section::List(list) => list.rows > 0,
    });
    sections
}

fn table<'a, R: Ranked>(specs: Vec<Spec<R>>, frame: Frame, rows: &'a [&'a R]) -> Section<'a> {
    Section::Table(ranked_table(specs, frame, rows))
}

pub(super) fn ranked_table<'a, R: Ranked>(specs: Vec<Spec<R>>, frame: Frame, rows: &'a [&'a R]) -> Table<'a> {
    let has_errors = rows.iter().any(|row| row.counters().errors > 0);
    let specs: Vec<Spec<R>> = specs
        .into_iter()
        .filter(|spec| has_errors || spec.column.priority == 0 || spec.column.name != "ERRORS")
        .collect();
    Table {
        columns: specs.iter().map(|spec| spec.column).collect(),
        rows: rows.len(),
        row: Box::new(move |index| specs.iter().map(|spec| (spec.cell)(&frame, rows[index])).collect()),
    }
}

fn clients_per_key<'a>(contents: &'a Contents<'a>) -> Section<'a> {
    let known = contents.hot_keys.iter().filter(|row| !row.clients.is_empty());
    let rows: Vec<&KeyRow> = known.copied().collect();
    Section::List(List {
        title: "HOT CLIENTS PER KEY",
        tone: Tone::Plain,
        rows: rows.len(),
        row: Box::new(move |index| {
            let row = rows[index];
            let shown = contents.clients_of(row);
            let requests = row.counters.requests();
            let mut items: Vec<String> = shown
                .iter()
                .map(|pair| {
                    let error =
                        if pair.err > 0 { format!(" ±{}", units::count(pair.err)) } else { String::new() };
                    let share = percent_short(pair.requests, requests);
                    format!("{}  {}{error} ({share}%)", pair.client.ip(), units::count(pair.requests))
                })
                .collect();
            if shown.len() < row.clients.len() {
                items.push("…".to_string());
            }
            (Cell::key_of(row), items)
        }),
    })
}

pub(crate) fn commands(snapshot: &Snapshot) -> Section<'_> {
    let seen = Command::ALL.iter().filter(|command| snapshot.totals.commands[command.index()].requests > 0);
    let seen: Vec<Command> = seen.copied().collect();
    Section::List(List {
        title: "COMMANDS",
        tone: Tone::Plain,
        rows: seen.len(),
        row: Box::new(move |index| {
            let command = seen[index];
            let figures = &snapshot.totals.commands[command.index()];
            let mut items = vec![units::count(figures.requests)];
            let outcomes = Outcome::ALL.iter().map(|outcome| (outcome, figures.outcomes[outcome.index()]));
            items.extend(
                outcomes
                    .filter(|(_, count)| *count > 0)
                    .map(|(outcome, count)| format!("{} {}", words(outcome.name()), units::count(count))),
            );
            let latency = snapshot.command_latency.iter().find(|(of, _)| *of == command);
            items.extend(latency.map(|(_, summary)| {
                format!("p50 {} p99 {} ms", units::millis(summary.p50), units::millis(summary.p99))
            }));
            (Cell::Figure(command.name().to_string()), items)
        }),
    })
}

pub(crate) fn totals<'a>(contents: &'a Contents<'a>) -> Section<'a> {
    let snapshot = contents.snapshot;
    let mut rows: Vec<(&'static str, Vec<String>)> = vec![
        ("requests", class_items(contents)),
        ("bytes", byte_items(snapshot)),
        ("times ms", latency_items(&snapshot.latency)),
        ("seen", seen_items(snapshot)),
        ("leases", lease_items(snapshot)),
        ("bounds", bound_items(snapshot)),
        ("loss", loss_items(snapshot)),
        ("capture", capture_items(&snapshot.health)),
        ("noted", noted_items(snapshot)),
    ];
    rows.retain(|(_, items)| !items.is_empty());
    Section::List(List {
        title: "TOTALS",
        tone: Tone::Plain,
        rows: rows.len(),
        row: Box::new(move |index| {
            let (label, items) = &rows[index];
            (Cell::Figure((*label).to_string()), items.clone())
        }),
    })
}

fn class_items(contents: &Contents<'_>) -> Vec<String> {
    let counters = &contents.snapshot.totals.counters;
    let classes = [
        ("gets", counters.gets),
        ("hits", counters.hits),
        ("misses", counters.misses),
        ("stores", counters.stores),
        ("deletes", counters.deletes),
        ("touches", counters.touches),
        ("arithmetic", counters.arithmetic),
        ("other", counters.other),
        ("errors", counters.errors),
    ];
    let seen = classes.into_iter().filter(|(_, count)| *count > 0);
    let seen = seen.map(|(class, count)| format!("{class} {}", units::count(count)));
    std::iter::once(units::count(counters.requests())).chain(seen).collect()
}

fn byte_items(snapshot: &Snapshot) -> Vec<String> {
    let counters = &snapshot.totals.counters;
    vec![
        format!("in {}", units::count(counters.bytes_in)),
        format!("out {}", units::count(counters.bytes_out)),
    ]
}

fn latency_items(summary: &LatencySummary) -> Vec<String> {
    if summary.samples == 0 {
        return vec!["none seen".to_string()];
    }
    let named = [("p50", summary.p50), ("p90", summary.p90), ("p99", summary.p99), ("max", summary.max)];
    let mut items: Vec<String> =
        named.into_iter().map(|(name, micros)| format!("{name} {}", units::millis(micros))).collect();
    items.push(format!("samples {}", units::count(summary.samples)));
    items
}

fn seen_items(snapshot: &Snapshot) -> Vec<String> {
    vec![
        format!("clients {}", units::count(snapshot.clients_seen)),
        format!("connections {}", units::count(snapshot.connections_seen)),
        format!("keys {}", units::count(snapshot.keys_seen)),
    ]
}

fn lease_items(snapshot: &Snapshot) -> Vec<String> {
    let [won, stale, lost] = snapshot.totals.leases;
    let leases = [("won", won), ("stale", stale), ("lost", lost)];
    let seen = leases.into_iter().filter(|(_, count)| *count > 0);
    seen.map(|(name, count)| format!("{name} {}", units::count(count))).collect()
}

/// What is not listed: nothing to say as long as every row is exact. Whatever the rows are ranked by, bounds count requests.
fn bound_items(snapshot: &Snapshot) -> Vec<String> {
    let bounds = snapshot.bounds;
    let named = [("key", bounds.key), ("client", bounds.client), ("client of a key", bounds.pair)];
    let inexact = named.into_iter().filter(|(_, bound)| *bound > 0);
    let item = |(name, bound): (&str, u64)| {
        let requests = if bound == 1 { "request" } else { "requests" };
        format!("an unlisted {name} had at most {} {requests}", units::count(bound))
    };
    inexact.map(item).collect()
}

/// Every cause apart; "none" says that somebody looked.
fn loss_items(snapshot: &Snapshot) -> Vec<String> {
    let loss = &snapshot.loss;
    let drops = [
        ("ring_dropped", loss.ring_dropped),
        ("nic_dropped", loss.nic_dropped),
        ("worker_lost", loss.worker_lost),
    ];
    let anomalies = loss.anomalies.iter().filter(|(anomaly, _)| is_loss(*anomaly));
    let causes = drops.into_iter().chain(anomalies.map(|(anomaly, count)| (anomaly.name(), count)));
    let mut items: Vec<String> = causes
        .filter(|(_, count)| *count > 0)
        .map(|(cause, count)| format!("{} {}", words(cause), units::count(count)))
        .collect();
    if items.is_empty() {
        items.push("none".to_string());
    }
    items.push(format!("packets {}", units::count(loss.packets)));
    items
}

/// How full the ring was, and what it came to; nothing for a recording.
fn capture_items(health: &CaptureHealth) -> Vec<String> {
    if health.ring_blocks == 0 {
        return Vec::new();
    }
    let mut items = vec![
        format!("kept {}", health.rung.name()),
        format!("ring peak {} of {} blocks", health.ring_blocks_peak, health.ring_blocks),
    ];
    for (name, count) in [("freezes", health.freezes), ("worker restarts", health.worker_restarts)] {
        if count > 0 {
            items.push(format!("{name} {}", units::count(count)));
        }
    }
    items
}

/// What happened to the traffic and cost no figure.
fn noted_items(snapshot: &Snapshot) -> Vec<String> {
    let noted = snapshot.loss.anomalies.iter().filter(|(anomaly, _)| !is_loss(*anomaly));
    noted.map(|(anomaly, count)| format!("{} {}", words(anomaly.name()), units::count(count))).collect()
}

pub(crate) fn findings<'a>(contents: &'a Contents<'a>) -> Section<'a> {
    Section::List(List {
        title: "FINDINGS",
        tone: Tone::Warning,
        rows: contents.findings.len(),
        row: Box::new(|index| {
            let finding = &contents.findings[index];
            (Cell::Figure(finding.id.to_string()), vec![finding.text.clone()])
        }),
    })
}

/// The targets side by side.
pub(crate) fn targets<'a>(all: &'a [Contents<'a>]) -> Section<'a> {
    let requests: u64 = all.iter().map(Contents::requests).sum();
    let figure = |name, priority| Column { name, right: true, priority };
    let text = |name, priority| Column { name, right: false, priority };
    Section::Table(Table {
        columns: vec![
            text("TARGETS", 0),
            figure("REQUESTS", 0),
            figure("SHARE", 2),
            figure("HIT%", 3),
            figure("OUT/S", 5),
            figure("LOSS%", 1),
            text("HOTTEST KEY", 4),
            text("HOTTEST CLIENT", 6),
        ],
        rows: all.len(),
        row: Box::new(move |index| target_row(&all[index], requests)),
    })
}

fn target_row(contents: &Contents<'_>, requests_of_all: u64) -> Vec<Cell> {
    let snapshot = contents.snapshot;
    let counters = &snapshot.totals.counters;
    let requests = contents.requests();
    let (lost, whole) = super::contents::loss_share(snapshot);
    let hottest_key = contents.hot_keys.first().map(|row| (row.key.clone(), row.counters.requests()));
    let hottest_client = contents.hot_clients.first().map_or_else(
        || "-".to_string(),
        |row| format!("{} ({}%)", client_text(&row.client), percent_short(row.counters.requests(), requests)),
    );
    vec![
        Cell::Figure(escape_name(&snapshot.target)),
        Cell::Figure(units::count(requests)),
        Cell::Figure(percent_text(requests, requests_of_all)),
        Cell::Figure(units::percent(counters.hits, counters.hits + counters.misses, 1)),
        Cell::Figure(units::byte_rate(counters.bytes_out, snapshot.length())),
        Cell::Figure(units::percent(lost, whole.max(1), 2)),
        Cell::top_key(hottest_key.as_ref(), requests),
        Cell::Figure(hottest_client),
    ]
}

/// What is seen, where the target saw nothing.
pub(crate) fn seen_elsewhere(contents: &Contents<'_>) -> Vec<String> {
    let Some(seen) = &contents.options.seen_elsewhere else { return Vec::new() };
    let sources: Vec<String> = seen
        .sources
        .iter()
        .map(|source| format!("{} {}", escape_name(&source.name), units::count(source.packets)))
        .collect();
    let mut lines = vec![match sources.is_empty() {
        true => "seen instead: nothing, no interface delivered a packet".to_string(),
        false => format!("seen instead, in packets: {}", sources.join(" · ")),
    }];
    if seen.packets_captured() > 0 {
        lines.push(format!(
            "of these {} belong to another target and {} are not TCP or UDP over IP",
            units::count(seen.packets_matched),
            units::count(seen.packets_foreign)
        ));
    }
    if !seen.busiest.is_empty() {
        let busiest: Vec<String> = seen
            .busiest
            .iter()
            .map(|busy| {
                let transport = match busy.transport {
                    crate::model::Transport::Tcp => "tcp",
                    crate::model::Transport::Udp => "udp",
                };
                format!("{} {transport} {}", busy.endpoint, units::count(busy.packets))
            })
            .collect();
        lines.push(format!("busiest endpoints of no target: {}", busiest.join(" · ")));
    }
    lines
}

pub(super) fn percent_text(part: u64, whole: u64) -> String {
    let percent = units::percent(part, whole, 1);
    if whole == 0 { percent } else { format!("{percent}%") }
}

/// Without decimals, for shares in running text.
fn percent_short(part: u64, whole: u64) -> String {
    units::percent(part, whole, 0)
}

/// `ring_dropped` as people write it.
fn words(name: &str) -> String {
    name.replace('_', " ")
}

/// The pieces of the line above a report, and of a Markdown heading.
pub(crate) fn heading(contents: &Contents<'_>) -> Vec<String> {
    let snapshot = contents.snapshot;
    let counters = &snapshot.totals.counters;
    let (target, address) = (escape_name(&snapshot.target), escape_name(&snapshot.address));
    let name = if target == address { target } else { format!("{target} {address}") };
    let partial = if snapshot.partial { " (partial)" } else { "" };
    let out = match units::byte_rate(counters.bytes_out, snapshot.length()).as_str() {
        "-" => format!("{} out", units::bytes(counters.bytes_out)),
        rate if rate.ends_with(char::is_alphabetic) => format!("{rate}B/s out"),
        rate => format!("{rate} B/s out"),
    };
    let hit = match units::percent(counters.hits, counters.hits + counters.misses, 1).as_str() {
        "-" => "hit -".to_string(),
        percent => format!("hit {percent}%"),
    };
    let (lost, whole) = super::contents::loss_share(snapshot);
    vec![
        units::instant_short(snapshot.end),
        name,
        format!("{}{partial}", units::length(snapshot.length())),
        format!("{} requests", units::count(contents.requests())),
        out,
        hit,
        format!("loss {}%", units::percent(lost, whole.max(1), 2)),
    ]
}

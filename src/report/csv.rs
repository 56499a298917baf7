//! CSV in long form: one ranked item a line, RFC 4180.
//!
//! `kind` is `total`, `key`, `client`, `pair` (a client of a hot key), `missed_key`, `server`, `group`, `shape`, `command`
//! or `loss`. `key` holds the item's name: a key escaped as in the tables, a server's address, the name of a
//! group, shape, command, or cause of loss (whose amount stands in `requests`). `bound` is the most
//! requests that an unlisted item of the kind can have had. Where nothing is known about a figure it is 0.

use super::contents::{Contents, Ranked};
use super::escape::{escape, escape_name};
use super::json::client_text;
use super::units;
use crate::collector::snapshot::{CommandOutcomes, Counters};
use crate::model::{Command, CommandClass, Outcome};
use serde::Serialize;
use std::io::{self, Write};

/// Writes the line of column names.
pub(super) fn write_header(out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{}", COLUMNS.join(","))
}

/// The columns, in order.
const COLUMNS: [&str; 21] = [
    "start",
    "interval_s",
    "host",
    "target",
    "kind",
    "rank",
    "key",
    "client",
    "requests",
    "err",
    "bound",
    "gets",
    "hits",
    "misses",
    "stores",
    "deletes",
    "errors",
    "bytes_in",
    "bytes_out",
    "latency_mean_us",
    "latency_max_us",
];

/// Writes the lines of a report, without the line of column names.
pub(super) fn write(out: &mut impl Write, contents: &Contents<'_>) -> io::Result<()> {
    let snapshot = contents.snapshot;
    let bounds = snapshot.bounds;
    let mut lines = Lines {
        writer: ::csv::WriterBuilder::new().has_headers(false).from_writer(out),
        start: units::instant(snapshot.start),
        interval_s: units::seconds(snapshot.length()),
        host: escape_name(&contents.host()),
        target: escape_name(&snapshot.target),
    };
    lines.write(&Item { kind: "total", ..Item::of_counters(&snapshot.totals.counters) })?;
    for (rank, row) in (1..).zip(&contents.hot_keys) {
        let item = Item { kind: "key", rank, bound: bounds.key, ..Item::of_row(*row, escape(&row.key)) };
        lines.write(&item)?;
    }
    for row in &contents.hot_keys {
        lines.write_pairs(contents, row)?;
    }
    for (rank, row) in (1..).zip(&contents.hot_clients) {
        let client = client_text(&row.client);
        let item =
            Item { kind: "client", rank, client, bound: bounds.client, ..Item::of_row(*row, String::new()) };
        lines.write(&item)?;
    }
    for (rank, row) in (1..).zip(&contents.missed_keys) {
        let item =
            Item { kind: "missed_key", rank, bound: bounds.key, ..Item::of_row(*row, escape(&row.key)) };
        lines.write(&item)?;
    }
    for (rank, row) in (1..).zip(&contents.servers) {
        lines.write(&Item { kind: "server", rank, ..Item::of_row(*row, row.server.to_string()) })?;
    }
    for (rank, row) in (1..).zip(&contents.groups) {
        lines.write(&Item { kind: "group", rank, ..Item::of_row(*row, row.group_name()) })?;
    }
    for (rank, row) in (1..).zip(&contents.shapes) {
        lines.write(&Item { kind: "shape", rank, ..Item::of_row(*row, escape(&row.name)) })?;
    }
    lines.write_commands(contents)?;
    lines.write_loss(contents)?;
    lines.writer.flush()
}

struct Lines<W: Write> {
    writer: ::csv::Writer<W>,
    start: String,
    interval_s: String,
    host: String,
    target: String,
}

impl<W: Write> Lines<W> {
    fn write(&mut self, item: &Item) -> io::Result<()> {
        let line = (&self.start, &self.interval_s, &self.host, &self.target, item);
        self.writer.serialize(line).map_err(io_error)
    }

    fn write_pairs(
        &mut self,
        contents: &Contents<'_>,
        row: &crate::collector::snapshot::KeyRow,
    ) -> io::Result<()> {
        let key = escape(&row.key);
        for (rank, pair) in (1..).zip(contents.clients_of(row)) {
            self.write(&Item {
                kind: "pair",
                rank,
                key: key.clone(),
                client: client_text(&pair.client),
                requests: pair.requests,
                err: pair.err,
                bound: contents.snapshot.bounds.pair,
                ..Item::default()
            })?;
        }
        Ok(())
    }

    fn write_commands(&mut self, contents: &Contents<'_>) -> io::Result<()> {
        let seen =
            Command::ALL.iter().map(|command| (command, &contents.snapshot.totals.commands[command.index()]));
        for (rank, (command, outcomes)) in (1..).zip(seen.filter(|(_, outcomes)| outcomes.requests > 0)) {
            self.write(&Item { rank, ..Item::of_command(*command, outcomes) })?;
        }
        Ok(())
    }

    fn write_loss(&mut self, contents: &Contents<'_>) -> io::Result<()> {
        let loss = &contents.snapshot.loss;
        let drops = [
            ("ring_dropped", loss.ring_dropped),
            ("nic_dropped", loss.nic_dropped),
            ("worker_lost", loss.worker_lost),
        ];
        let anomalies = loss.anomalies.iter().map(|(anomaly, count)| (anomaly.name(), count));
        for (rank, (cause, count)) in (1..).zip(drops.into_iter().chain(anomalies)) {
            self.write(&Item {
                kind: "loss",
                rank,
                key: cause.to_string(),
                requests: count,
                ..Item::default()
            })?;
        }
        Ok(())
    }
}

/// A closed pipe must stay recognisable: it is a quiet end.
fn io_error(error: ::csv::Error) -> io::Error {
    match error.into_kind() {
        ::csv::ErrorKind::Io(error) => error,
        other => io::Error::other(format!("{other:?}")),
    }
}

/// The columns that belong to an item.
#[derive(Default, Serialize)]
struct Item {
    kind: &'static str,
    rank: u64,
    key: String,
    client: String,
    requests: u64,
    err: u64,
    bound: u64,
    gets: u64,
    hits: u64,
    misses: u64,
    stores: u64,
    deletes: u64,
    errors: u64,
    bytes_in: u64,
    bytes_out: u64,
    latency_mean_us: u64,
    latency_max_us: u64,
}

impl Item {
    fn of_counters(counters: &Counters) -> Item {
        Item {
            requests: counters.requests(),
            gets: counters.gets,
            hits: counters.hits,
            misses: counters.misses,
            stores: counters.stores,
            deletes: counters.deletes,
            errors: counters.errors,
            bytes_in: counters.bytes_in,
            bytes_out: counters.bytes_out,
            latency_mean_us: counters.latency_mean_us().unwrap_or(0),
            latency_max_us: counters.latency_max_us,
            ..Item::default()
        }
    }

    fn of_row(row: &impl Ranked, name: String) -> Item {
        Item { key: name, err: row.err(), ..Item::of_counters(row.counters()) }
    }

    fn of_command(command: Command, outcomes: &CommandOutcomes) -> Item {
        let of = |outcome: Outcome| outcomes.outcomes[outcome.index()];
        let of_class = |class: CommandClass| if command.class() == class { outcomes.requests } else { 0 };
        Item {
            kind: "command",
            key: command.name().to_string(),
            requests: outcomes.requests,
            gets: of_class(CommandClass::Retrieval),
            hits: of(Outcome::Hit),
            misses: of(Outcome::Miss),
            stores: of_class(CommandClass::Storage),
            deletes: of_class(CommandClass::Deletion),
            errors: of(Outcome::Error) + of(Outcome::TooLarge),
            ..Item::default()
        }
    }
}

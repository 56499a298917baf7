//! The tables of the live screen: the report's own columns over rows that the operator ordered, and one level deeper the
//! clients of one key and the keys of one client.

use super::contents::{Contents, Ranked};
use super::groups::Tally;
use super::options::Metric;
use super::sections::{self, Cell, Column, Frame, Spec, Table, figure, name, percent_text};
use super::units;
use crate::choices::choices;
use crate::collector::snapshot::{ClientRow, Counters, KeyRow, PairRow, ServerRow};
use crate::model::Endpoint;

choices! {
    /// What rows are ordered by.
    Sort {
        /// Most requests first.
        Requests = "requests",
        /// Most bytes on the wire first.
        Bytes = "bytes",
        /// Most misses first.
        Misses = "misses",
        /// Best hit ratio first; reversed, the worst.
        HitRatio = "hit%",
        /// Most errors first.
        Errors = "errors",
        /// Longest mean response time first.
        Latency = "latency",
        /// Alphabetically.
        Name = "name",
    }
}

impl Sort {
    /// All of them, in the order of `<` and `>`.
    pub const ALL: [Sort; 7] =
        [Sort::Requests, Sort::Bytes, Sort::Misses, Sort::HitRatio, Sort::Errors, Sort::Latency, Sort::Name];

    /// The order that a configuration asks for.
    pub fn by(metric: Metric) -> Sort {
        match metric {
            Metric::Requests => Sort::Requests,
            Metric::Bytes => Sort::Bytes,
            Metric::Misses => Sort::Misses,
            Metric::Errors => Sort::Errors,
            Metric::Latency => Sort::Latency,
        }
    }

    /// The nearest that a report can rank by.
    pub(crate) fn metric(self) -> Metric {
        match self {
            Sort::Requests | Sort::HitRatio | Sort::Name => Metric::Requests,
            Sort::Bytes => Metric::Bytes,
            Sort::Misses => Metric::Misses,
            Sort::Errors => Metric::Errors,
            Sort::Latency => Metric::Latency,
        }
    }

    /// Rows without a score come last in either direction.
    pub(crate) fn score(self, counters: &Counters) -> Option<u64> {
        match self {
            Sort::Requests => Some(counters.requests()),
            Sort::Bytes => Some(counters.bytes_in.saturating_add(counters.bytes_out)),
            Sort::Misses => Some(counters.misses),
            // Millionths: finer than any difference that shows.
            Sort::HitRatio => counters.hit_ratio().map(|ratio| (ratio * 1e6) as u64),
            Sort::Errors => Some(counters.errors),
            Sort::Latency => counters.latency_mean_us(),
            Sort::Name => None,
        }
    }
}

/// A key's row for a client, or a client's for a key, with what each of the two had in all.
pub(crate) struct Share<'a> {
    /// The key.
    pub(crate) key: &'a KeyRow,
    /// The client, by IP.
    pub(crate) pair: &'a PairRow,
    /// Requests of the client, where it is listed.
    pub(crate) of_client: Option<u64>,
}

impl Share<'_> {
    fn of_key(&self) -> u64 {
        self.key.counters.requests()
    }
}

/// Keys.
pub(crate) fn keys<'a>(contents: &Contents<'_>, rows: &'a [&'a KeyRow], by: Sort) -> Table<'a> {
    sections::ranked_table(sorted_by(by, sections::hot_keys()), Frame::of(contents), rows)
}

/// Clients by IP or by IP and port.
pub(crate) fn clients<'a>(contents: &Contents<'_>, rows: &'a [&'a ClientRow], by: Sort) -> Table<'a> {
    sections::ranked_table(sorted_by(by, sections::hot_clients()), Frame::of(contents), rows)
}

/// Key shapes.
pub(crate) fn shapes<'a>(contents: &Contents<'_>, rows: &'a [&'a Tally], by: Sort) -> Table<'a> {
    sections::ranked_table(sorted_by(by, sections::shapes()), Frame::of(contents), rows)
}

/// Key groups.
pub(crate) fn groups<'a>(contents: &Contents<'_>, rows: &'a [&'a Tally], by: Sort) -> Table<'a> {
    sections::ranked_table(sorted_by(by, sections::groups()), Frame::of(contents), rows)
}

/// Servers.
pub(crate) fn servers<'a>(contents: &Contents<'_>, rows: &'a [&'a ServerRow], by: Sort) -> Table<'a> {
    sections::ranked_table(sorted_by(by, sections::servers()), Frame::of(contents), rows)
}

/// The figure that rows are sorted by stands behind their requests and never gives way.
fn sorted_by<R: Ranked>(by: Sort, mut specs: Vec<Spec<R>>) -> Vec<Spec<R>> {
    let own = match by {
        Sort::Requests | Sort::Name => return specs,
        Sort::Bytes => figure("BYTES", 0, |_, row: &R| {
            let counters = row.counters();
            Cell::Figure(units::count(counters.bytes_in.saturating_add(counters.bytes_out)))
        }),
        Sort::Misses => figure("MISSES", 0, |_, row: &R| Cell::Figure(units::count(row.counters().misses))),
        Sort::HitRatio => sections::hit_ratio(),
        Sort::Errors => sections::errors(),
        Sort::Latency => sections::latency(),
    };
    let own = Spec { column: Column { priority: 0, ..own.column }, ..own };
    specs.retain(|spec| spec.column.name != own.column.name);
    let behind = specs.iter().position(|spec| spec.column.name == "±").map_or(specs.len(), |at| at + 1);
    specs.insert(behind, own);
    specs
}

/// The clients of one key.
pub(crate) fn clients_of_key<'a>(contents: &Contents<'_>, rows: &'a [Share<'a>]) -> Table<'a> {
    shares(name("CLIENTS OF KEY", |_, row: &Share<'_>| client_cell(&row.pair.client)), contents, rows)
}

/// The keys of one client.
pub(crate) fn keys_of_client<'a>(contents: &Contents<'_>, rows: &'a [Share<'a>]) -> Table<'a> {
    shares(name("KEYS OF CLIENT", |_, row: &Share<'_>| Cell::key_of(row.key)), contents, rows)
}

fn client_cell(client: &Endpoint) -> Cell {
    Cell::Figure(client.ip().to_string())
}

fn shares<'a>(first: Spec<Share<'a>>, contents: &Contents<'_>, rows: &'a [Share<'a>]) -> Table<'a> {
    let specs: Vec<Spec<Share<'a>>> = vec![
        first,
        figure("REQUESTS", 0, |_, row| Cell::Figure(units::count(row.pair.requests))),
        figure("±", 0, |_, row| Cell::Figure(units::count(row.pair.err))),
        figure("REQ/S", 3, |frame, row| Cell::Figure(units::rate(row.pair.requests, frame.length))),
        figure("OF KEY", 1, |_, row| Cell::Figure(percent_text(row.pair.requests, row.of_key()))),
        figure("OF CLIENT", 2, |_, row| {
            Cell::Figure(match row.of_client {
                Some(requests) => percent_text(row.pair.requests, requests),
                None => "-".to_string(),
            })
        }),
        figure("OF ALL", 4, |frame, row| Cell::Figure(percent_text(row.pair.requests, frame.requests))),
    ];
    let frame = Frame::of(contents);
    Table {
        columns: specs.iter().map(|spec| spec.column).collect(),
        rows: rows.len(),
        row: Box::new(move |index| specs.iter().map(|spec| (spec.cell)(&frame, &rows[index])).collect()),
    }
}

//! What a report says, before it takes a form: the rows that the operator may see, ranked. Every writer reads it from here,
//! so that all forms agree.

use super::findings::{self, Finding};
use super::groups::{Tally, by_group, by_shape};
use super::merged::Merged;
use super::options::{ClientView, Metric, ReportOptions};
use super::privacy::PrivacyMode;
use crate::anomaly::Anomaly;
use crate::capture::ladder::Rung;
use crate::collector::snapshot::{ClientRow, Counters, KeyRow, ServerRow, Snapshot};
use crate::model::Endpoint;
use std::borrow::Cow;
use std::cmp::Ordering;

/// A snapshot as it may be shown: filtered, grouped, and masked, in this order, for groups and filters look at the keys
/// themselves.
pub(crate) struct Shown<'a> {
    snapshot: Cow<'a, Snapshot>,
    /// As it was before the filter, where there is one.
    unfiltered: Option<&'a Snapshot>,
    groups: Vec<Tally>,
    shapes: Vec<Tally>,
    options: &'a ReportOptions,
}

impl<'a> Shown<'a> {
    pub(crate) fn new(snapshot: &'a Snapshot, options: &'a ReportOptions) -> Shown<'a> {
        let filtered = filtered(snapshot, options);
        let mut groups = by_group(&filtered.keys, &options.groups);
        // A shape tells much of what a hash is to hide.
        let hides_shapes = options.privacy.mode() == PrivacyMode::Hash;
        let mut shapes = if hides_shapes { Vec::new() } else { by_shape(&filtered.keys) };
        for (key, _) in groups.iter_mut().chain(&mut shapes).filter_map(|tally| tally.top_key.as_mut()) {
            *key = options.privacy.mask(key);
        }
        let unfiltered = options.filter.is_some().then_some(snapshot);
        Shown { snapshot: options.privacy.apply(filtered), unfiltered, groups, shapes, options }
    }

    /// Without the sums over groups and shapes, for where only the hottest rows are asked for.
    pub(crate) fn rows_only(snapshot: &'a Snapshot, options: &'a ReportOptions) -> Shown<'a> {
        let filtered = filtered(snapshot, options);
        Shown {
            snapshot: options.privacy.apply(filtered),
            unfiltered: options.filter.is_some().then_some(snapshot),
            groups: Vec::new(),
            shapes: Vec::new(),
            options,
        }
    }

    /// The sums over the operator's groups in their order; none where only rows were asked for.
    pub(crate) fn groups(&self) -> &[Tally] {
        &self.groups
    }

    /// The sums over shapes, in no particular order; none where only rows were asked for.
    pub(crate) fn shapes(&self) -> &[Tally] {
        &self.shapes
    }

    /// Leaves one key's row, or what one client (by IP) had, and what is of it.
    pub(crate) fn narrow(&mut self, key: Option<&[u8]>, client: Option<&Endpoint>) {
        let snapshot = self.snapshot.to_mut();
        if let Some(key) = key {
            snapshot.keys.retain(|row| *row.key == *key);
            let asked: Vec<Endpoint> =
                snapshot.keys.iter().flat_map(|row| row.clients.iter().map(|pair| pair.client)).collect();
            snapshot.clients.retain(|row| asked.contains(&row.client));
            snapshot.sockets.clear();
        }
        if let Some(client) = client {
            for row in &mut snapshot.keys {
                row.clients.retain(|pair| pair.client == *client);
            }
            snapshot.keys.retain(|row| !row.clients.is_empty());
            snapshot.clients.retain(|row| row.client == *client);
            snapshot.sockets.retain(|row| row.client.ip() == client.ip());
        }
        self.shapes.clear();
        self.groups.clear();
    }

    /// The ranked contents.
    pub(crate) fn contents(&self) -> Contents<'_> {
        let snapshot = &*self.snapshot;
        let options = self.options;
        let clients = match options.client {
            ClientView::Ip => &snapshot.clients,
            ClientView::Socket => &snapshot.sockets,
        };
        let missed = snapshot.keys.iter().filter(|row| row.counters.misses > 0);
        let mut contents = Contents {
            snapshot,
            unfiltered: self.unfiltered,
            options,
            hot_keys: rank(&snapshot.keys, options.by, options.top),
            missed_keys: rank(missed, Metric::Misses, options.top),
            hot_clients: rank(clients, options.by, options.top),
            servers: rank(&snapshot.servers, options.by, options.top),
            // Groups keep the operator's order: it is theirs, and it is short.
            groups: self.groups.iter().collect(),
            shapes: rank(&self.shapes, options.by, options.top),
            findings: Vec::new(),
        };
        contents.findings = findings::find(&contents);
        contents
    }
}

fn filtered<'a>(snapshot: &'a Snapshot, options: &ReportOptions) -> Cow<'a, Snapshot> {
    match &options.filter {
        Some(filter) => filter.apply(snapshot),
        None => Cow::Borrowed(snapshot),
    }
}

/// What a report says.
pub(crate) struct Contents<'a> {
    /// The figures, as they may be shown.
    pub snapshot: &'a Snapshot,
    /// The figures before the filter, keys as they are; not to be shown.
    pub unfiltered: Option<&'a Snapshot>,
    /// What was asked for.
    pub options: &'a ReportOptions,
    /// Keys by the chosen metric.
    pub hot_keys: Vec<&'a KeyRow>,
    /// Keys that were missed, by misses.
    pub missed_keys: Vec<&'a KeyRow>,
    /// Clients by the chosen metric.
    pub hot_clients: Vec<&'a ClientRow>,
    /// Servers of a CIDR or `*` target by the chosen metric.
    pub servers: Vec<&'a ServerRow>,
    /// The operator's groups in their order.
    pub groups: Vec<&'a Tally>,
    /// Shapes by the chosen metric.
    pub shapes: Vec<&'a Tally>,
    /// What stands out.
    pub findings: Vec<Finding>,
}

impl<'a> Contents<'a> {
    /// Requests of the target.
    pub(crate) fn requests(&self) -> u64 {
        self.snapshot.totals.counters.requests()
    }

    /// The clients to list for a key.
    pub(crate) fn clients_of<'r>(&self, row: &'r KeyRow) -> &'r [crate::collector::snapshot::PairRow] {
        match self.options.clients_per_key {
            0 => &row.clients,
            n => &row.clients[..n.min(row.clients.len())],
        }
    }

    /// The machine that captured, or those whose reports were merged.
    pub(crate) fn host(&self) -> Cow<'a, str> {
        match self.merged() {
            Some(merged) => Cow::Owned(merged.hosts()),
            None => Cow::Borrowed(&self.options.host),
        }
    }

    /// What the report was merged from, when it was.
    pub(crate) fn merged(&self) -> Option<&'a Merged> {
        self.options.merged.iter().find(|merged| merged.target == self.snapshot.target)
    }

    /// Whether nothing at all was captured of the target.
    pub(crate) fn saw_nothing(&self) -> bool {
        self.snapshot.loss.packets == 0 && self.requests() == 0
    }
}

/// The share of the target's traffic that was lost, as part and whole: the greater of
/// gap bytes / (payload bytes + gap bytes), of the target, and
/// (ring + NIC drops) / (packets of the target + these drops).
/// Drops are of the whole capture, and nobody knows whose they were: laying all of them at this target's door makes the
/// second figure an upper bound. Of an interval in which the load ladder kept less than all it is the second figure alone: what the
/// ladder leaves out are gaps in the responses' streams, and no row is short by them.
pub(crate) fn loss_share(snapshot: &Snapshot) -> (u64, u64) {
    let counters = &snapshot.totals.counters;
    let gap_bytes = snapshot.loss.anomalies.of(Anomaly::GapBytes);
    let payload = counters.bytes_in.saturating_add(counters.bytes_out);
    let gaps = (gap_bytes, payload.saturating_add(gap_bytes));
    let loss = &snapshot.loss;
    let dropped = loss.ring_dropped.saturating_add(loss.nic_dropped).saturating_add(loss.worker_lost);
    let drops = (dropped, loss.packets.saturating_add(dropped));
    if snapshot.health.rung != Rung::Full || ratio(drops) > ratio(gaps) { drops } else { gaps }
}

/// A part of a whole; zero when there is no whole.
pub(crate) fn ratio((part, whole): (u64, u64)) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Whether figures may be missing because of it. The others tell about the traffic, or cost no figure.
pub(crate) fn is_loss(anomaly: Anomaly) -> bool {
    !matches!(
        anomaly,
        Anomaly::DuplicateSegment
            | Anomaly::OutOfOrderSegment
            | Anomaly::MidStream
            | Anomaly::BodyHoleBytes
            | Anomaly::PacketForeign
            | Anomaly::ProxyHeader
            | Anomaly::ServerVersionShed
            | Anomaly::ClockSetBack
    )
}

/// A row that can be ranked.
pub(crate) trait Ranked {
    /// Its figures.
    fn counters(&self) -> &Counters;
    /// Greatest error of its requests.
    fn err(&self) -> u64;
    /// What decides between equals: the bytes of its name.
    fn tie(&self) -> (&[u8], u16);
}

impl Ranked for KeyRow {
    fn counters(&self) -> &Counters {
        &self.counters
    }
    fn err(&self) -> u64 {
        self.err
    }
    fn tie(&self) -> (&[u8], u16) {
        (&self.key, 0)
    }
}

impl Ranked for ClientRow {
    fn counters(&self) -> &Counters {
        &self.counters
    }
    fn err(&self) -> u64 {
        self.err
    }
    fn tie(&self) -> (&[u8], u16) {
        (self.client.octets(), self.client.port())
    }
}

impl Ranked for ServerRow {
    fn counters(&self) -> &Counters {
        &self.counters
    }
    fn err(&self) -> u64 {
        self.err
    }
    fn tie(&self) -> (&[u8], u16) {
        (self.server.octets(), self.server.port())
    }
}

impl Ranked for Tally {
    fn counters(&self) -> &Counters {
        &self.counters
    }
    fn err(&self) -> u64 {
        self.err
    }
    fn tie(&self) -> (&[u8], u16) {
        (&self.name, 0)
    }
}

/// The `n` rows with the highest scores, highest first, equals by the bytes of their names; every row when `n` is 0.
pub(crate) fn rank<'a, R: Ranked + 'a>(
    rows: impl IntoIterator<Item = &'a R>,
    by: Metric,
    n: usize,
) -> Vec<&'a R> {
    let mut rows: Vec<&R> = rows.into_iter().collect();
    let order = |a: &&R, b: &&R| -> Ordering {
        let by_score = score(*b, by).cmp(&score(*a, by));
        by_score.then_with(|| a.tie().cmp(&b.tie()))
    };
    if n > 0 && n < rows.len() {
        rows.select_nth_unstable_by(n - 1, order);
        rows.truncate(n);
    }
    rows.sort_unstable_by(order);
    rows
}

/// What a row scores by a metric, as far as it is certain: requests in doubt would put keys of an overflowing table first.
fn score<R: Ranked>(row: &R, by: Metric) -> u64 {
    let counters = row.counters();
    match by {
        Metric::Requests => counters.requests().saturating_sub(row.err()),
        Metric::Bytes => counters.bytes_in.saturating_add(counters.bytes_out),
        Metric::Misses => counters.misses,
        Metric::Errors => counters.errors,
        Metric::Latency => counters.latency_mean_us().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row(key: u8, gets: u64) -> KeyRow {
        let counters = Counters { gets, ..Counters::default() };
        KeyRow { key: [key].into(), truncated: false, err: 0, counters, clients: Vec::new() }
    }

    proptest! {
        #[test]
        fn top_n_is_the_head_of_a_full_sort(gets in proptest::collection::vec(0u64..5, 0..40), n in 0usize..50) {
            let rows: Vec<KeyRow> = (0u8..).zip(&gets).map(|(key, &gets)| row(key, gets)).collect();
            let mut sorted: Vec<&KeyRow> = rows.iter().collect();
            sorted.sort_by_key(|row| (std::cmp::Reverse(row.counters.gets), row.key.clone()));
            let expected = if n == 0 { sorted.len() } else { n.min(sorted.len()) };
            prop_assert_eq!(rank(&rows, Metric::Requests, n), &sorted[..expected]);
        }
    }
}

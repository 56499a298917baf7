//! Reports that cover more than one interval: the last minute, ten minutes, hour, or everything since the start.
//!
//! Intervals are never decayed; a window is the sum of the snapshots that lie in it. A row is missing from a snapshot when it
//! had at most `bounds.key` requests in it, and so a window's bounds are the sums of its snapshots' bounds, and the error of
//! a row grows by the bound of each snapshot that does not list it.

use super::snapshot::{ClientRow, KeyRow, PairRow, ServerRow, Snapshot};
use crate::model::Endpoint;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// Snapshots that a window keeps; an hour of intervals of a second. A longer list loses its oldest, and says so by its start.
const SNAPSHOTS_MAX: usize = 3600;

/// Rows of each table that a window since the start keeps; those with the fewest requests go, and raise the bound.
const ROWS_MAX: usize = 131_072;

/// Folds the snapshots of one target.
#[derive(Debug)]
pub struct Window {
    /// How far back the window reaches; none for everything since the start.
    length: Option<Duration>,
    /// What lies in the window, oldest first; for everything since the start one sum.
    snapshots: VecDeque<Snapshot>,
}

impl Window {
    /// A window of this length that ends with the newest snapshot, or one that never forgets.
    pub fn new(length: Option<Duration>) -> Window {
        Window { length, snapshots: VecDeque::new() }
    }

    /// Takes the newest snapshot in and answers with the sum of all that lie in the window.
    pub fn fold(&mut self, snapshot: Snapshot) -> Snapshot {
        match self.length {
            Some(length) => {
                let end = snapshot.end;
                self.snapshots.push_back(snapshot);
                let outside = |old: &Snapshot| end.since(old.start) > length;
                while self.snapshots.len() > 1
                    && (self.snapshots.len() > SNAPSHOTS_MAX || self.snapshots.front().is_some_and(outside))
                {
                    self.snapshots.pop_front();
                }
                sum(self.snapshots.iter())
            }
            None => {
                self.snapshots.push_back(snapshot);
                let mut all = sum(self.snapshots.iter());
                keep_most_requested(&mut all);
                self.snapshots.clear();
                self.snapshots.push_back(all.clone());
                all
            }
        }
    }
}

/// The sum of snapshots of one target, oldest first.
fn sum<'a>(snapshots: impl Iterator<Item = &'a Snapshot> + Clone) -> Snapshot {
    let mut all = Snapshot::default();
    all.start = snapshots.clone().next().map_or(all.start, |first| first.start);
    for snapshot in snapshots.clone() {
        all.target.clone_from(&snapshot.target);
        all.address.clone_from(&snapshot.address);
        all.end = snapshot.end;
        all.partial = snapshot.partial;
        all.add(snapshot);
    }
    all.keys = sum_keys(snapshots.clone());
    all.clients = sum_clients(snapshots.clone().map(|snapshot| (&snapshot.clients, snapshot.bounds.client)));
    all.sockets = sum_clients(snapshots.clone().map(|snapshot| (&snapshot.sockets, snapshot.bounds.client)));
    all.servers = sum_servers(snapshots);
    // Distinct things seen in a window are those of its rows, or at least those of its richest interval.
    all.keys_seen = all.keys_seen.max(all.keys.len() as u64);
    all.clients_seen = all.clients_seen.max(all.clients.len() as u64);
    all.connections_seen = all.connections_seen.max(all.sockets.len() as u64);
    all
}

impl Snapshot {
    /// Adds the figures that are not rows.
    fn add(&mut self, other: &Snapshot) {
        self.totals.merge(&other.totals);
        self.loss.packets += other.loss.packets;
        self.loss.ring_dropped += other.loss.ring_dropped;
        self.loss.nic_dropped += other.loss.nic_dropped;
        self.loss.anomalies.merge(&other.loss.anomalies);
        self.bounds.key += other.bounds.key;
        self.bounds.client += other.bounds.client;
        self.bounds.pair += other.bounds.pair;
        for direction in 0..2 {
            self.packets_by_direction[direction] += other.packets_by_direction[direction];
        }
        self.histograms.merge(&other.histograms);
        (self.latency, self.command_latency) = self.histograms.summaries();
        self.keys_seen = self.keys_seen.max(other.keys_seen);
        self.clients_seen = self.clients_seen.max(other.clients_seen);
        self.connections_seen = self.connections_seen.max(other.connections_seen);
    }
}

/// A row on its way: what it summed up to, and the snapshots' bounds that it was there for.
struct Summed<R> {
    row: R,
    /// Sum of the bounds of the snapshots that listed it.
    listed_bounds: u64,
}

fn sum_keys<'a>(snapshots: impl Iterator<Item = &'a Snapshot> + Clone) -> Vec<KeyRow> {
    let bounds: u64 = snapshots.clone().map(|snapshot| snapshot.bounds.key).sum();
    let mut sums: HashMap<&[u8], Summed<KeyRow>> = HashMap::new();
    for snapshot in snapshots {
        for row in &snapshot.keys {
            let summed = sums.entry(&row.key).or_insert_with(|| Summed {
                row: KeyRow { counters: Default::default(), err: 0, clients: Vec::new(), ..row.clone() },
                listed_bounds: 0,
            });
            summed.row.counters.merge(&row.counters);
            summed.row.err += row.err;
            summed.listed_bounds += snapshot.bounds.key;
            add_pairs(&mut summed.row.clients, &row.clients);
        }
    }
    sums.into_values()
        .map(|Summed { mut row, listed_bounds }| {
            row.err += bounds - listed_bounds;
            row.clients.sort_unstable_by_key(|pair| (std::cmp::Reverse(pair.requests), pair.client));
            row
        })
        .collect()
}

fn add_pairs(sum: &mut Vec<PairRow>, more: &[PairRow]) {
    for pair in more {
        match sum.iter_mut().find(|known| known.client == pair.client) {
            Some(known) => {
                known.requests += pair.requests;
                known.err += pair.err;
            }
            None => sum.push(*pair),
        }
    }
}

fn sum_clients<'a>(tables: impl Iterator<Item = (&'a Vec<ClientRow>, u64)> + Clone) -> Vec<ClientRow> {
    let bounds: u64 = tables.clone().map(|(_, bound)| bound).sum();
    let mut sums: HashMap<Endpoint, Summed<ClientRow>> = HashMap::new();
    for (rows, bound) in tables {
        for row in rows {
            let summed = sums.entry(row.client).or_insert_with(|| Summed {
                row: ClientRow { counters: Default::default(), err: 0, top_key: None, ..row.clone() },
                listed_bounds: 0,
            });
            summed.row.counters.merge(&row.counters);
            summed.row.err += row.err;
            summed.listed_bounds += bound;
            add_top_key(&mut summed.row.top_key, &row.top_key);
        }
    }
    sums.into_values()
        .map(|Summed { mut row, listed_bounds }| {
            row.err += bounds - listed_bounds;
            row
        })
        .collect()
}

/// The top key of a window: the same key's requests add up; of two different ones the greater stays.
fn add_top_key(sum: &mut Option<(Box<[u8]>, u64)>, more: &Option<(Box<[u8]>, u64)>) {
    match (sum.as_mut(), more) {
        (Some((key, requests)), Some((other, more))) if key == other => *requests += more,
        (Some((_, requests)), Some((_, more))) if *requests >= *more => {}
        (_, Some(more)) => *sum = Some(more.clone()),
        (_, None) => {}
    }
}

fn sum_servers<'a>(snapshots: impl Iterator<Item = &'a Snapshot>) -> Vec<ServerRow> {
    let mut sums: HashMap<Endpoint, ServerRow> = HashMap::new();
    for row in snapshots.flat_map(|snapshot| &snapshot.servers) {
        match sums.get_mut(&row.server) {
            Some(sum) => {
                sum.counters.merge(&row.counters);
                sum.err += row.err;
                add_top_key(&mut sum.top_key, &row.top_key);
            }
            None => drop(sums.insert(row.server, row.clone())),
        }
    }
    sums.into_values().collect()
}

/// Keeps a window that never forgets within its limit.
fn keep_most_requested(all: &mut Snapshot) {
    if all.keys.len() > ROWS_MAX {
        all.keys.select_nth_unstable_by_key(ROWS_MAX, |row| std::cmp::Reverse(row.counters.requests()));
        let greatest = all.keys[ROWS_MAX..].iter().map(|row| row.counters.requests()).max().unwrap_or(0);
        all.bounds.key = all.bounds.key.max(greatest);
        all.keys.truncate(ROWS_MAX);
    }
    for clients in [&mut all.clients, &mut all.sockets] {
        if clients.len() > ROWS_MAX {
            clients.select_nth_unstable_by_key(ROWS_MAX, |row| std::cmp::Reverse(row.counters.requests()));
            let greatest = clients[ROWS_MAX..].iter().map(|row| row.counters.requests()).max().unwrap_or(0);
            all.bounds.client = all.bounds.client.max(greatest);
            clients.truncate(ROWS_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collector::snapshot::{Bounds, Counters};
    use crate::model::Timestamp;

    fn snapshot(second: u64, keys: &[(&str, u64)], bound: u64) -> Snapshot {
        let row = |&(key, gets): &(&str, u64)| KeyRow {
            key: key.as_bytes().into(),
            truncated: false,
            err: 0,
            counters: Counters { gets, ..Counters::default() },
            clients: Vec::new(),
        };
        Snapshot {
            start: Timestamp::from_parts(second, 0),
            end: Timestamp::from_parts(second + 10, 0),
            keys: keys.iter().map(row).collect(),
            bounds: Bounds { key: bound, ..Bounds::default() },
            ..Snapshot::default()
        }
    }

    fn figures(snapshot: &Snapshot, key: &str) -> Option<(u64, u64)> {
        let row = snapshot.keys.iter().find(|row| &*row.key == key.as_bytes())?;
        Some((row.counters.requests(), row.err))
    }

    #[test]
    fn a_window_forgets_what_lies_outside() {
        let mut window = Window::new(Some(Duration::from_secs(20)));
        window.fold(snapshot(0, &[("a", 1)], 0));
        let two = window.fold(snapshot(10, &[("a", 2), ("b", 5)], 0));
        assert_eq!((figures(&two, "a"), figures(&two, "b")), (Some((3, 0)), Some((5, 0))));
        let three = window.fold(snapshot(20, &[("b", 1)], 0));
        assert_eq!((figures(&three, "a"), figures(&three, "b")), (Some((2, 0)), Some((6, 0))));
        assert_eq!((three.start, three.end), (Timestamp::from_parts(10, 0), Timestamp::from_parts(30, 0)));
    }

    #[test]
    fn a_row_is_uncertain_by_the_bounds_of_the_snapshots_that_do_not_list_it() {
        let mut window = Window::new(None);
        window.fold(snapshot(0, &[("a", 9)], 4));
        let all = window.fold(snapshot(10, &[("b", 7)], 3));
        assert_eq!(figures(&all, "a"), Some((9, 3)));
        assert_eq!(figures(&all, "b"), Some((7, 4)));
        assert_eq!(all.bounds.key, 7);
    }
}

//! Snapshots of consecutive intervals as one: the last minute, the last hour, everything since the start.
//!
//! What is certain adds up, and so do bounds: a row that an interval does not list may have had that interval's bound. So a
//! folded row's truth still lies in `[requests - err, requests]`. Memory is limited: what a window keeps of an interval is cut
//! to its heaviest rows, which raises the bounds and nothing else.

use super::merge::{Share, join_shares, settle_pairs};
use super::snapshot::{Bounds, ClientRow, Counters, KeyRow, ServerRow, Snapshot};
use crate::model::Endpoint;
use foldhash::quality::RandomState;
use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

/// Parts that a window of any length is kept in. Its end slides by whole intervals, its start by these.
const SLOTS: u32 = 60;

/// Rows of a kind that a window keeps in all of its slots together.
const ROWS_KEPT: usize = 131_072;

/// Pairs that it keeps for each row.
const PAIRS_PER_ROW: usize = 4;

/// The last `length` of a target's snapshots.
#[derive(Debug)]
pub struct Window {
    /// `None`: since the start.
    length: Option<Duration>,
    /// In the order of time; one, since the start.
    slots: VecDeque<Snapshot>,
    /// Rows kept of a slot.
    rows_max: usize,
}

impl Window {
    /// A window that ends with the newest snapshot; `None`: one that began with the first.
    pub fn new(length: Option<Duration>) -> Window {
        Window { length, slots: VecDeque::new(), rows_max: ROWS_KEPT }
    }

    /// A window that keeps fewer rows.
    #[cfg(test)]
    pub(super) fn keeping(self, rows_max: usize) -> Window {
        Window { rows_max, ..self }
    }

    /// Takes an interval's snapshot and returns the window's that ends with it.
    pub fn fold(&mut self, snapshot: Snapshot) -> Snapshot {
        let (newest_length, newest_partial) = (snapshot.length(), snapshot.partial);
        self.expire(&snapshot);
        self.push(snapshot);
        let parts: Vec<&Snapshot> = self.slots.iter().collect();
        let mut folded = match parts.as_slice() {
            [] => Snapshot::default(),
            [only] => (*only).clone(),
            parts => combine(parts),
        };
        folded.partial = newest_partial
            || self.length.is_some_and(|length| {
                // A window begins where a slot does, and that may be later than it should by less than a slot.
                folded.length() + newest_length.max(length / SLOTS) <= length
            });
        folded
    }

    /// Forgets slots that began before the window does.
    fn expire(&mut self, newest: &Snapshot) {
        let Some(length) = self.length else { return };
        while self.slots.front().is_some_and(|slot| newest.end.since(slot.start) > length) {
            self.slots.pop_front();
        }
    }

    fn push(&mut self, snapshot: Snapshot) {
        let joins = self.slots.back().is_some_and(|last| match self.length {
            None => true,
            Some(length) => snapshot.end.since(last.start) <= length / SLOTS,
        });
        let mut slot = match self.slots.pop_back() {
            Some(last) if joins => combine(&[&last, &snapshot]),
            Some(last) => {
                self.slots.push_back(last);
                snapshot
            }
            None => snapshot,
        };
        let slots = match self.length {
            None => 1,
            Some(length) => slots_of(length, slot.length()),
        };
        prune(&mut slot, self.rows_max / slots);
        self.slots.push_back(slot);
    }
}

/// Slots that a window will have when its newest is as long as `slot`.
fn slots_of(length: Duration, slot: Duration) -> usize {
    let count = length.as_nanos() / slot.as_nanos().max(1);
    usize::try_from(count).unwrap_or(usize::MAX).clamp(1, SLOTS as usize)
}

/// One row out of those of several snapshots.
struct Folded<'a, R> {
    /// Those of the snapshots that list it, with the snapshots' numbers.
    rows: Vec<(usize, &'a R)>,
    err: u64,
    counters: Counters,
}

/// What rows of any kind have.
trait Figures {
    fn err(&self) -> u64;
    fn counters(&self) -> &Counters;
}

macro_rules! figures {
    ($($row:ty),*) => {$(
        impl Figures for $row {
            fn err(&self) -> u64 {
                self.err
            }

            fn counters(&self) -> &Counters {
                &self.counters
            }
        }
    )*};
}

figures!(KeyRow, ClientRow, ServerRow);

/// Joins the rows of several snapshots. `bounds[i]` is what a row that snapshot `i` does not list can have had there.
fn join<'a, R: Figures, K: Hash + Eq>(
    parts: &[&'a Snapshot],
    bounds: &[u64],
    rows: impl Fn(&'a Snapshot) -> &'a [R],
    key: impl Fn(&'a R) -> K,
) -> Vec<Folded<'a, R>> {
    let mut index: HashMap<K, usize, RandomState> = HashMap::default();
    let mut folded: Vec<Folded<'a, R>> = Vec::new();
    for (number, part) in parts.iter().enumerate() {
        for row in rows(part) {
            let at = *index.entry(key(row)).or_insert_with(|| {
                folded.push(Folded { rows: Vec::new(), err: 0, counters: Counters::default() });
                folded.len() - 1
            });
            let into = &mut folded[at];
            into.rows.push((number, row));
            into.err += row.err();
            into.counters.merge(row.counters());
        }
    }
    let total: u64 = bounds.iter().sum();
    for row in &mut folded {
        // Truncated rows of the same beginning may come several from one snapshot.
        let once = row.rows.chunk_by(|a, b| a.0 == b.0).map(|rows| bounds[rows[0].0]);
        let missing = total - once.sum::<u64>();
        row.err += missing;
        // As in a single snapshot, requests in doubt are gets of unknown outcome.
        row.counters.gets += missing;
    }
    folded
}

/// Several snapshots, in the order of time, as one.
fn combine(parts: &[&Snapshot]) -> Snapshot {
    let (key_bounds, pair_bounds) = (key_bounds(parts), pair_bounds(parts));
    let client_bounds: Vec<u64> = parts.iter().map(|part| part.bounds.client).collect();
    let keys = fold_keys(parts, &key_bounds, &pair_bounds);
    let by_client = top_keys(&keys);
    let clients =
        fold_clients(join(parts, &client_bounds, |part| &part.clients, |row| row.client), |client, _| {
            by_client.get(&client).map(|&(key, requests)| (keys[key].key.clone(), requests))
        });
    let sockets =
        fold_clients(join(parts, &client_bounds, |part| &part.sockets, |row| row.client), |_, rows| {
            most_asked(rows.iter().filter_map(|(_, row)| row.top_key.as_ref()))
        });
    let servers = fold_servers(join(parts, &client_bounds, |part| &part.servers, |row| row.server));
    let mut combined = sums(parts);
    let seen = |rows: usize, counts: fn(&Snapshot) -> u64| {
        parts.iter().map(|part| counts(part)).max().unwrap_or(0).max(rows as u64)
    };
    combined.clients_seen = seen(clients.len(), |part| part.clients_seen);
    combined.connections_seen = seen(sockets.len(), |part| part.connections_seen);
    combined.keys_seen = seen(keys.len(), |part| part.keys_seen);
    combined.bounds = Bounds {
        key: key_bounds.iter().sum(),
        client: client_bounds.iter().sum(),
        pair: pair_bounds.iter().sum(),
    };
    Snapshot { keys, clients, sockets, servers, ..combined }
}

/// Everything but rows and their bounds.
fn sums(parts: &[&Snapshot]) -> Snapshot {
    let mut sum = Snapshot::default();
    for part in parts {
        sum.totals.merge(&part.totals);
        sum.loss.packets += part.loss.packets;
        sum.loss.ring_dropped += part.loss.ring_dropped;
        sum.loss.nic_dropped += part.loss.nic_dropped;
        sum.loss.worker_lost += part.loss.worker_lost;
        sum.health.merge(&part.health);
        sum.loss.anomalies.merge(&part.loss.anomalies);
        for (packets, more) in sum.packets_by_direction.iter_mut().zip(part.packets_by_direction) {
            *packets += more;
        }
    }
    if let ([first, ..], [.., last]) = (parts, parts) {
        (sum.start, sum.end, sum.partial) = (first.start, last.end, last.partial);
        (sum.target, sum.address) = (last.target.clone(), last.address.clone());
    }
    sum.latency = sum.totals.response_times.summary();
    sum.command_latency = sum.totals.response_times.summaries();
    sum
}

/// What an unlisted key can have had in each snapshot. A truncated row counts as unlisted: elsewhere it may be whole.
fn key_bounds(parts: &[&Snapshot]) -> Vec<u64> {
    let bound = |part: &&Snapshot| {
        let truncated = part.keys.iter().filter(|row| row.truncated).map(|row| row.counters.requests());
        truncated.fold(part.bounds.key, u64::max)
    };
    parts.iter().map(bound).collect()
}

/// The same for pairs.
fn pair_bounds(parts: &[&Snapshot]) -> Vec<u64> {
    let bound = |part: &&Snapshot| {
        let truncated = part.keys.iter().filter(|row| row.truncated).flat_map(|row| &row.clients);
        truncated.map(|pair| pair.requests).fold(part.bounds.pair, u64::max)
    };
    parts.iter().map(bound).collect()
}

/// For each beginning of a truncated key the requests of all whole keys that begin like it.
fn whole_keys<'a>(parts: &[&'a Snapshot]) -> HashMap<&'a [u8], u64, RandomState> {
    let rows = || parts.iter().flat_map(|part| &part.keys);
    let mut sums: HashMap<&[u8], u64, RandomState> = HashMap::default();
    sums.extend(rows().filter(|row| row.truncated).map(|row| (&*row.key, 0)));
    let Some(length) = sums.keys().next().map(|key| key.len()) else { return sums };
    for row in rows().filter(|row| !row.truncated) {
        if let Some(sum) = row.key.get(..length).and_then(|head| sums.get_mut(head)) {
            *sum += row.counters.requests();
        }
    }
    sums
}

fn fold_keys(parts: &[&Snapshot], key_bounds: &[u64], pair_bounds: &[u64]) -> Vec<KeyRow> {
    let total: u64 = pair_bounds.iter().sum();
    let whole = whole_keys(parts);
    let row = |mut folded: Folded<'_, KeyRow>| {
        let first = folded.rows[0].1;
        if first.truncated {
            // Rows of the same beginning may be of several keys: nothing is certain of any, and all may be of one.
            folded.counters.gets += whole.get(&*first.key).copied().unwrap_or(0);
            folded.err = folded.counters.requests();
        }
        let requests = folded.counters.requests();
        let listed = folded.rows.iter().filter(|(_, row)| !row.truncated);
        let mut shares: Vec<Share> = listed
            .flat_map(|&(number, row)| {
                row.clients.iter().map(move |pair| Share {
                    client: pair.client,
                    requests: pair.requests,
                    err: pair.err,
                    covered: pair_bounds[number],
                })
            })
            .collect();
        join_shares(&mut shares);
        KeyRow {
            key: first.key.clone(),
            truncated: first.truncated,
            err: folded.err,
            clients: settle_pairs(shares, requests, total),
            counters: folded.counters,
        }
    };
    join(parts, key_bounds, |part| &part.keys, |row| (&row.key, row.truncated)).into_iter().map(row).collect()
}

/// For each client by IP the key that it asked for most, as an index, and how often.
fn top_keys(keys: &[KeyRow]) -> HashMap<Endpoint, (usize, u64), RandomState> {
    let mut top: HashMap<Endpoint, (usize, u64), RandomState> = HashMap::default();
    for (at, key) in keys.iter().enumerate() {
        for pair in &key.clients {
            let most = top.entry(pair.client).or_insert((at, pair.requests));
            // As in a merge: between equals the bytes of the keys decide.
            let equal = pair.requests == most.1 && key.key < keys[most.0].key;
            if pair.requests > most.1 || equal {
                *most = (at, pair.requests);
            }
        }
    }
    top
}

type TopKey = Option<(Box<[u8]>, u64)>;

fn fold_clients(
    folded: Vec<Folded<'_, ClientRow>>,
    top_key: impl Fn(Endpoint, &[(usize, &ClientRow)]) -> TopKey,
) -> Vec<ClientRow> {
    let row = |folded: Folded<'_, ClientRow>| {
        let client = folded.rows[0].1.client;
        let top_key = top_key(client, &folded.rows);
        ClientRow { client, err: folded.err, counters: folded.counters, top_key }
    };
    folded.into_iter().map(row).collect()
}

fn fold_servers(folded: Vec<Folded<'_, ServerRow>>) -> Vec<ServerRow> {
    let row = |folded: Folded<'_, ServerRow>| ServerRow {
        server: folded.rows[0].1.server,
        err: folded.err,
        top_key: most_asked(folded.rows.iter().filter_map(|(_, row)| row.top_key.as_ref())),
        counters: folded.counters,
    };
    folded.into_iter().map(row).collect()
}

/// The key that was most asked for over several intervals, by those that led one of them.
fn most_asked<'a>(leaders: impl Iterator<Item = &'a (Box<[u8]>, u64)>) -> TopKey {
    let mut sums: Vec<(&Box<[u8]>, u64)> = Vec::new();
    for (key, requests) in leaders {
        match sums.iter_mut().find(|(known, _)| *known == key) {
            Some((_, sum)) => *sum += requests,
            None => sums.push((key, *requests)),
        }
    }
    sums.into_iter().max_by_key(|&(key, sum)| (sum, Reverse(key))).map(|(key, sum)| (key.clone(), sum))
}

/// Cuts a snapshot to its heaviest rows and pairs; its bounds rise with what they cover.
pub(crate) fn prune(snapshot: &mut Snapshot, rows_max: usize) {
    let totals = &snapshot.totals.counters;
    let requests = totals.requests().max(1) as u128;
    let bytes = u128::from(totals.bytes_in + totals.bytes_out).max(1);
    // As in the tables: requests, bytes and misses keep a row alike.
    let weight = |counters: &Counters| {
        let share = u128::from(counters.bytes_in + counters.bytes_out) * requests / bytes;
        u128::from(counters.requests() + counters.misses) + share
    };
    let key_bound = cut(&mut snapshot.keys, rows_max, weight);
    let client_bound = cut(&mut snapshot.clients, rows_max, weight)
        .max(cut(&mut snapshot.sockets, rows_max, weight))
        .max(cut(&mut snapshot.servers, rows_max, weight));
    snapshot.bounds.key = snapshot.bounds.key.max(key_bound);
    snapshot.bounds.client = snapshot.bounds.client.max(client_bound);
    // A dropped key's pairs are unlisted as well, and had no more requests than the key.
    snapshot.bounds.pair = snapshot.bounds.pair.max(key_bound);
    prune_pairs(snapshot, rows_max.saturating_mul(PAIRS_PER_ROW));
}

/// Keeps the `rows_max` heaviest rows; returns the most requests among the others.
fn cut<R: Figures>(rows: &mut Vec<R>, rows_max: usize, weight: impl Fn(&Counters) -> u128) -> u64 {
    if rows.len() <= rows_max {
        return 0;
    }
    rows.select_nth_unstable_by_key(rows_max, |row| Reverse(weight(row.counters())));
    rows.drain(rows_max..).map(|row| row.counters().requests()).max().unwrap_or(0)
}

/// Keeps at most `pairs_max` pairs, those of most requests.
fn prune_pairs(snapshot: &mut Snapshot, pairs_max: usize) {
    let mut requests: Vec<u64> =
        snapshot.keys.iter().flat_map(|row| &row.clients).map(|pair| pair.requests).collect();
    if requests.len() <= pairs_max {
        return;
    }
    let (_, &mut least, _) = requests.select_nth_unstable_by(pairs_max, |a, b| b.cmp(a));
    for row in &mut snapshot.keys {
        row.clients.retain(|pair| pair.requests > least);
    }
    snapshot.bounds.pair = snapshot.bounds.pair.max(least);
}

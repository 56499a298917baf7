//! What leaves a worker when an interval closes, and how several workers' become one snapshot.

use super::snapshot::{
    Bounds, ClientRow, Counters, Histograms, KeyRow, PairRow, ServerRow, Snapshot, Totals,
};
use super::table::{ByteKeys, CountTable, EndpointKeys, IdPairs};
use crate::anomaly::AnomalyCounts;
use crate::model::{Command, Endpoint};
use hdrhistogram::Histogram;
use std::collections::HashMap;
use std::hash::Hash;

/// A target's tables as they stand.
pub(super) struct TargetHarvest<'a> {
    pub(super) totals: &'a Totals,
    pub(super) anomalies: &'a AnomalyCounts,
    pub(super) packets: [u64; 2],
    pub(super) payload_packets: [u64; 2],
    pub(super) latency: &'a Histogram<u64>,
    pub(super) command_latency: &'a [Histogram<u64>],
    pub(super) keys: &'a CountTable<ByteKeys, Counters>,
    pub(super) clients: &'a CountTable<EndpointKeys, Counters>,
    pub(super) sockets: &'a CountTable<EndpointKeys, Counters>,
    pub(super) servers: Option<&'a CountTable<EndpointKeys, Counters>>,
    pub(super) pairs: &'a CountTable<IdPairs, u64>,
    pub(super) socket_pairs: &'a CountTable<IdPairs, u64>,
}

/// One worker's rows of one target over one interval. Goes back to the worker when it has been merged, and keeps its memory.
pub struct Harvest {
    /// Most rows of each table that are taken along; none for all.
    rows_max: Option<usize>,
    totals: Totals,
    anomalies: AnomalyCounts,
    packets: [u64; 2],
    payload_packets: [u64; 2],
    histograms: Histograms,
    seen: [u64; 3],
    bounds: Bounds,
    /// Keys with the rows that they had in the table.
    keys: Vec<(Box<[u8]>, Counters)>,
    clients: Vec<(Endpoint, Counters)>,
    sockets: Vec<(Endpoint, Counters)>,
    servers: Vec<(Endpoint, Counters)>,
    /// (Place in `keys`, client, requests).
    pairs: Vec<(u32, Endpoint, u64)>,
    /// For each of `clients` and of `sockets`: place of its top key in `keys`, and requests.
    top_keys: [HashMap<Endpoint, (u32, u64)>; 2],
}

impl Harvest {
    /// An empty buffer for at most so many rows of each table, or for all.
    pub fn new(rows_max: Option<usize>) -> Harvest {
        Harvest {
            rows_max,
            totals: Totals::default(),
            anomalies: AnomalyCounts::default(),
            packets: [0; 2],
            payload_packets: [0; 2],
            histograms: Histograms::default(),
            seen: [0; 3],
            bounds: Bounds::default(),
            keys: Vec::new(),
            clients: Vec::new(),
            sockets: Vec::new(),
            servers: Vec::new(),
            pairs: Vec::new(),
            top_keys: [HashMap::new(), HashMap::new()],
        }
    }

    pub(super) fn fill(&mut self, tables: TargetHarvest<'_>) {
        self.totals.clone_from(tables.totals);
        self.anomalies.clone_from(tables.anomalies);
        (self.packets, self.payload_packets) = (tables.packets, tables.payload_packets);
        self.histograms.clear();
        self.histograms.add(tables.latency);
        for (command, histogram) in Command::ALL.iter().zip(tables.command_latency) {
            if !histogram.is_empty() {
                self.histograms.add_command(*command, histogram);
            }
        }
        self.seen = [tables.clients.len() as u64, tables.sockets.len() as u64, tables.keys.len() as u64];
        self.bounds = Bounds {
            key: tables.keys.shed,
            client: tables.clients.shed.max(tables.sockets.shed),
            // A pair is lost with its key or its client, too.
            pair: tables.pairs.shed + tables.keys.shed + tables.clients.shed,
        };
        let (key_places, unlisted) = self.fill_keys(tables.keys);
        self.bounds.key = self.bounds.key.max(unlisted);
        self.bounds.pair = self.bounds.pair.max(unlisted);
        let rows_max = self.rows_max;
        let mut fill_endpoints =
            |into: &mut Vec<(Endpoint, Counters)>, table: &CountTable<EndpointKeys, Counters>| {
                let rows = (0..table.len()).map(|row| (table.keys.get(row), table.values[row]));
                let unlisted = keep_greatest(into, rows, rows_max, |(_, counters)| counters.requests());
                self.bounds.client = self.bounds.client.max(unlisted);
            };
        fill_endpoints(&mut self.clients, tables.clients);
        fill_endpoints(&mut self.sockets, tables.sockets);
        self.servers.clear();
        if let Some(servers) = tables.servers {
            fill_endpoints(&mut self.servers, servers);
        }
        self.fill_pairs(&tables, &key_places);
    }

    /// Answers with the place in `keys` of each row of the table, and the most requests of a row that was left behind.
    fn fill_keys(&mut self, table: &CountTable<ByteKeys, Counters>) -> (Vec<u32>, u64) {
        let mut order: Vec<u32> = (0..table.len() as u32).collect();
        let requests = |row: &u32| std::cmp::Reverse(weight(&table.values[*row as usize]));
        let mut unlisted = 0;
        if let Some(rows_max) = self.rows_max.filter(|&rows_max| order.len() > rows_max) {
            order.select_nth_unstable_by_key(rows_max, requests);
            unlisted =
                order[rows_max..].iter().map(|&row| table.values[row as usize].requests()).max().unwrap_or(0);
            order.truncate(rows_max);
        }
        let mut places = vec![u32::MAX; table.len()];
        self.keys.clear();
        for (place, &row) in order.iter().enumerate() {
            places[row as usize] = place as u32;
            self.keys.push((table.keys.get(row as usize).into(), table.values[row as usize]));
        }
        (places, unlisted)
    }

    fn fill_pairs(&mut self, tables: &TargetHarvest<'_>, key_places: &[u32]) {
        self.pairs.clear();
        let of = [(tables.pairs, tables.clients), (tables.socket_pairs, tables.sockets)];
        for (top_keys, (pairs, clients)) in self.top_keys.iter_mut().zip(of) {
            top_keys.clear();
            for row in 0..pairs.len() {
                let (key, client) = pairs.keys.get(row);
                let (place, client) = (key_places[key as usize], clients.keys.get(client as usize));
                let requests = pairs.values[row];
                if place == u32::MAX {
                    continue;
                }
                let top = top_keys.entry(client).or_insert((place, 0));
                if requests > top.1 {
                    *top = (place, requests);
                }
            }
        }
        for row in 0..tables.pairs.len() {
            let (key, client) = tables.pairs.keys.get(row);
            let place = key_places[key as usize];
            if place != u32::MAX {
                self.pairs.push((place, tables.clients.keys.get(client as usize), tables.pairs.values[row]));
            }
        }
    }
}

/// What keeps a row in a harvest that cannot take all: requests, and bytes in units of a kilobyte, so that rankings by either are served.
fn weight(counters: &Counters) -> u64 {
    counters.requests() + (counters.bytes_in + counters.bytes_out) / 1024
}

/// Fills `into` with the rows that weigh most; answers with the most requests of those left behind.
fn keep_greatest<T: Copy>(
    into: &mut Vec<T>,
    rows: impl Iterator<Item = T>,
    rows_max: Option<usize>,
    requests: impl Fn(&T) -> u64,
) -> u64 {
    into.clear();
    into.extend(rows);
    match rows_max.filter(|&rows_max| into.len() > rows_max) {
        Some(rows_max) => {
            into.select_nth_unstable_by_key(rows_max, |row| std::cmp::Reverse(requests(row)));
            let unlisted = into[rows_max..].iter().map(&requests).max().unwrap_or(0);
            into.truncate(rows_max);
            unlisted
        }
        None => 0,
    }
}

/// Joins the workers' rows of one target. Name, times and the capture's own losses are the runtime's to fill in.
pub fn merge(harvests: &[&Harvest]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for harvest in harvests {
        snapshot.totals.merge(&harvest.totals);
        snapshot.loss.anomalies.merge(&harvest.anomalies);
        for direction in 0..2 {
            snapshot.packets_by_direction[direction] += harvest.payload_packets[direction];
            snapshot.loss.packets += harvest.packets[direction];
        }
        snapshot.bounds.key += harvest.bounds.key;
        snapshot.bounds.client += harvest.bounds.client;
        snapshot.bounds.pair += harvest.bounds.pair;
        snapshot.histograms.merge(&harvest.histograms);
    }
    (snapshot.latency, snapshot.command_latency) = snapshot.histograms.summaries();
    merge_rows(&mut snapshot, harvests);
    snapshot
}

fn merge_rows(snapshot: &mut Snapshot, harvests: &[&Harvest]) {
    let mut places: HashMap<&[u8], usize> = HashMap::new();
    for harvest in harvests {
        for (key, counters) in &harvest.keys {
            let place = *places.entry(key).or_insert_with(|| {
                snapshot.keys.push(KeyRow {
                    key: key.clone(),
                    truncated: false,
                    err: 0,
                    counters: Counters::default(),
                    clients: Vec::new(),
                });
                snapshot.keys.len() - 1
            });
            snapshot.keys[place].counters.merge(counters);
        }
    }
    let mut pairs: HashMap<(usize, Endpoint), u64> = HashMap::new();
    for harvest in harvests {
        for &(key, client, requests) in &harvest.pairs {
            let place = places[&*harvest.keys[key as usize].0];
            *pairs.entry((place, client)).or_default() += requests;
        }
    }
    for ((place, client), requests) in pairs {
        snapshot.keys[place].clients.push(PairRow { client, requests, err: 0 });
    }
    for row in &mut snapshot.keys {
        row.clients.sort_unstable_by_key(|pair| (std::cmp::Reverse(pair.requests), pair.client));
    }
    snapshot.clients = merge_clients(harvests, 0);
    snapshot.sockets = merge_clients(harvests, 1);
    let servers = join(harvests.iter().flat_map(|harvest| harvest.servers.iter().copied()));
    snapshot.servers = servers
        .into_iter()
        .map(|(server, counters)| ServerRow { server, err: 0, counters, top_key: None })
        .collect();
    // With one worker the tables' own counts are exact even where rows were left behind.
    let seen = |index: usize, rows: usize| match harvests {
        [only] => only.seen[index],
        _ => rows as u64,
    };
    snapshot.clients_seen = seen(0, snapshot.clients.len());
    snapshot.connections_seen = seen(1, snapshot.sockets.len());
    snapshot.keys_seen = seen(2, snapshot.keys.len());
}

fn merge_clients(harvests: &[&Harvest], kind: usize) -> Vec<ClientRow> {
    let rows =
        |harvest: &'_ &Harvest| if kind == 0 { harvest.clients.clone() } else { harvest.sockets.clone() };
    let joined = join(harvests.iter().flat_map(rows));
    let top_key = |client: &Endpoint| {
        let of = harvests.iter().filter_map(|harvest| {
            let &(key, requests) = harvest.top_keys[kind].get(client)?;
            Some((harvest.keys[key as usize].0.clone(), requests))
        });
        of.max_by_key(|&(_, requests)| requests)
    };
    joined
        .into_iter()
        .map(|(client, counters)| ClientRow { client, err: 0, counters, top_key: top_key(&client) })
        .collect()
}

fn join<K: Eq + Hash + Copy>(rows: impl Iterator<Item = (K, Counters)>) -> Vec<(K, Counters)> {
    let mut sums: HashMap<K, Counters> = HashMap::new();
    for (key, counters) in rows {
        sums.entry(key).or_default().merge(&counters);
    }
    sums.into_iter().collect()
}

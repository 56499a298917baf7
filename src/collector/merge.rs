//! From the harvests of one target's workers to the snapshot of its interval.
//!
//! Rows are joined by the bytes of their keys, and pairs with the rows that they belong to. What is certain adds up; a row that a
//! worker did not hand over may have had that worker's bound there, which goes to the row's `err`.

use super::harvest::Harvest;
use super::numbers::address;
use super::pairs::{PairRows, line_of};
use super::snapshot::{Bounds, ClientRow, Counters, KeyRow, Loss, PairRow, ServerRow, Snapshot, Totals};
use super::table::{Rows, Slot};
use super::target::decode;
use crate::anomaly::{Anomaly, AnomalyCounts};
use crate::model::Endpoint;
use foldhash::quality::FixedState;
use hashbrown::HashTable;
use std::collections::HashMap;
use std::hash::BuildHasher;

/// Merges one target's harvests of the same interval. Target, address, times and the capture's losses are the caller's to
/// fill in. The collectors should have the same seed, as they do by default: without it, rows of truncated keys do not meet.
pub fn merge(harvests: &[&Harvest]) -> Snapshot {
    let same_seed = harvests.windows(2).all(|pair| pair[0].seed == pair[1].seed);
    let join = |rows: fn(&Harvest) -> &Rows| Joined::new(harvests.iter().map(|h| rows(h)), same_seed);
    let mut keys = join(|harvest| &harvest.keys);
    let mut clients = join(|harvest| &harvest.clients);
    let mut sockets = join(|harvest| &harvest.sockets);
    let mut servers = join(|harvest| &harvest.servers);
    for joined in [&mut keys, &mut clients, &mut sockets, &mut servers] {
        joined.settle();
    }
    let (pairs, pair_bound) = pairs_of_keys(harvests, &keys);
    let client_keys = top_keys_of_clients(&clients, &keys, &pairs);
    let socket_pairs = pairs_of_sockets(harvests, &keys, &sockets);
    let socket_keys = top_keys_of_sockets(&socket_pairs, &keys, &sockets);
    let server_keys = top_keys_of_servers(&socket_pairs, &keys, &servers);
    let (totals, loss, packets_by_direction) = sums(harvests);
    Snapshot {
        latency: totals.response_times.summary(),
        command_latency: totals.response_times.summaries(),
        totals,
        clients_seen: clients.seen(),
        connections_seen: sockets.seen_apart(),
        keys_seen: keys.seen(),
        loss,
        bounds: Bounds {
            key: keys.bound,
            client: clients.bound.max(sockets.bound).max(servers.bound),
            pair: pair_bound,
        },
        clients: client_rows(clients, client_keys, &keys),
        sockets: client_rows(sockets, socket_keys, &keys),
        servers: server_rows(servers, server_keys, &keys),
        keys: key_rows(keys, pairs),
        packets_by_direction,
        ..Snapshot::default()
    }
}

fn sums(harvests: &[&Harvest]) -> (Totals, Loss, [u64; 2]) {
    let mut totals = Totals::default();
    let (mut loss, mut directions) = (Loss::default(), [0; 2]);
    let mut anomalies = AnomalyCounts::default();
    for harvest in harvests {
        totals.merge(&harvest.totals);
        totals.response_times.add(&harvest.latencies);
        anomalies.merge(&harvest.anomalies);
        let tables = [&harvest.keys, &harvest.clients, &harvest.sockets, &harvest.servers];
        let evictions = tables.iter().map(|rows| rows.evictions).sum::<u64>() + harvest.pairs.evictions;
        anomalies.add(Anomaly::Eviction, evictions);
        loss.packets += harvest.packets;
        for (sum, packets) in directions.iter_mut().zip(harvest.payload_packets) {
            *sum += packets;
        }
    }
    loss.anomalies = anomalies;
    (totals, loss, directions)
}

/// One kind of rows of all workers.
struct Joined {
    rows: Vec<Row>,
    /// For each harvest, for each of its rows: the index in `rows`.
    places: Vec<Vec<u32>>,
    /// Most requests of a key that is not among the rows: the sum over harvests.
    bound: u64,
    /// Rows that each worker's table held.
    live: Vec<u64>,
    /// Every worker handed all of its rows over.
    complete: bool,
}

struct Row {
    key: Box<[u8]>,
    /// Of the whole key.
    length: usize,
    /// By a function that all harvests share.
    hash: u64,
    truncated: bool,
    err: u64,
    /// Sum of the bounds of the harvests that had this row.
    covered: u64,
    counters: Counters,
}

impl Row {
    /// Upper bound of the requests, once settled.
    fn requests(&self) -> u64 {
        self.counters.requests()
    }

    /// Requests that were certainly seen.
    fn certain(&self) -> u64 {
        self.requests().saturating_sub(self.err)
    }

    fn of(slot: &Slot, rows: &Rows) -> Row {
        let (head, tail, truncated) = slot.key(&rows.tails);
        Row {
            key: [head, tail].concat().into(),
            length: slot.key_length(),
            hash: slot.hash,
            truncated,
            err: u64::from(slot.sums.err),
            covered: 0,
            counters: slot.sums.counters(),
        }
    }

    /// Whether a row with the same hash is of the same key, by all bytes that both have.
    fn is_same(&self, other: &Row) -> bool {
        let held = self.key.len().min(other.key.len());
        self.length == other.length && self.key[..held] == other.key[..held]
    }

    fn add(&mut self, other: Row) {
        self.err += other.err;
        self.covered += other.covered;
        self.counters.merge(&other.counters);
        if self.truncated && !other.truncated {
            (self.key, self.truncated) = (other.key, false);
        }
    }
}

impl Joined {
    fn new<'a>(harvests: impl ExactSizeIterator<Item = &'a Rows>, same_seed: bool) -> Joined {
        let mut joined = Joined {
            rows: Vec::new(),
            places: Vec::with_capacity(harvests.len()),
            bound: 0,
            live: Vec::new(),
            complete: true,
        };
        let alone = harvests.len() == 1;
        let mut index = HashTable::new();
        for rows in harvests {
            joined.add(rows, same_seed, (!alone).then_some(&mut index));
        }
        joined
    }

    /// Adds a harvest's rows; without an index they cannot meet others.
    fn add(&mut self, rows: &Rows, same_seed: bool, mut index: Option<&mut HashTable<u32>>) {
        let mut bound = rows.bound;
        let mut places = Vec::with_capacity(rows.rows().len());
        self.rows.reserve(rows.rows().len());
        for slot in rows.rows() {
            let mut row = Row::of(slot, rows);
            if !same_seed {
                row.hash = FixedState::default().hash_one(&row.key);
                if row.truncated {
                    // It does not meet its like elsewhere, and then its requests are those of an unlisted key.
                    bound = bound.max(row.err + row.counters.requests());
                }
            }
            places.push(match index.as_deref_mut() {
                Some(index) if same_seed || !row.truncated => self.place(row, index),
                _ => self.push(row),
            });
        }
        for &place in &places {
            self.rows[place as usize].covered += bound;
        }
        self.places.push(places);
        self.bound += bound;
        self.live.push(rows.live);
        self.complete &= rows.live == rows.rows().len() as u64;
    }

    fn push(&mut self, row: Row) -> u32 {
        self.rows.push(row);
        self.rows.len() as u32 - 1
    }

    fn place(&mut self, row: Row, index: &mut HashTable<u32>) -> u32 {
        let rows = &mut self.rows;
        let known = index.find(row.hash, |&at| {
            let other = &rows[at as usize];
            other.hash == row.hash && other.is_same(&row)
        });
        if let Some(&at) = known {
            rows[at as usize].add(row);
            return at;
        }
        let (at, hash) = (rows.len() as u32, row.hash);
        rows.push(row);
        index.insert_unique(hash, at, |&at| rows[at as usize].hash);
        at
    }

    /// Raises every row to its upper bound: what it may have had before it came, and in the harvests that do not list it.
    fn settle(&mut self) {
        for row in &mut self.rows {
            row.err += self.bound - row.covered;
            row.counters.gets += row.err;
        }
    }

    /// Distinct keys that the tables held, or what is certain of their number where they did not hand over all.
    fn seen(&self) -> u64 {
        let held = self.live.iter().copied().max().unwrap_or(0);
        held.max(self.rows.len() as u64)
    }

    /// The same for what is never seen by two workers.
    fn seen_apart(&self) -> u64 {
        if self.complete { self.rows.len() as u64 } else { self.live.iter().sum() }
    }
}

/// For looking rows of one harvest up by the lower half of their hashes.
struct ByHash {
    first: HashMap<u32, u32, FixedState>,
    /// For each row the next one with the same half hash; `u32::MAX`: none.
    next: Vec<u32>,
}

impl ByHash {
    fn new(rows: &Rows) -> ByHash {
        let mut by_hash = ByHash { first: HashMap::default(), next: Vec::with_capacity(rows.rows().len()) };
        by_hash.first.reserve(rows.rows().len());
        for (at, slot) in rows.rows().iter().enumerate() {
            let former = by_hash.first.insert(slot.hash as u32, at as u32);
            by_hash.next.push(former.unwrap_or(u32::MAX));
        }
        by_hash
    }

    fn rows(&self, half: u32) -> impl Iterator<Item = usize> + '_ {
        let mut at = self.first.get(&half).copied().unwrap_or(u32::MAX);
        std::iter::from_fn(move || {
            let row = at as usize;
            at = *self.next.get(row)?;
            Some(row)
        })
    }
}

/// A pair's figures while they are being put together.
#[derive(Clone, Copy)]
pub(super) struct Share {
    pub(super) client: Endpoint,
    /// Upper bound where it was seen.
    pub(super) requests: u64,
    pub(super) err: u64,
    /// Sum of the bounds of the harvests (intervals, workers) that had it.
    pub(super) covered: u64,
}

/// For each key its pairs, most requests first; and the most requests of any other pair.
fn pairs_of_keys(harvests: &[&Harvest], keys: &Joined) -> (Vec<Vec<PairRow>>, u64) {
    let mut shares: Vec<Vec<Share>> = Vec::new();
    shares.resize_with(keys.rows.len(), Vec::new);
    let mut total_bound = 0;
    for (harvest, places) in harvests.iter().zip(&keys.places) {
        let by_hash = ByHash::new(&harvest.keys);
        let PairRows { lines, missing, .. } = &harvest.pairs;
        let mut bound = harvest.pairs.bound;
        let mut found = Vec::new();
        for (count, pair) in harvest.pairs.pairs() {
            let belongs = |&row: &usize| {
                let hash = harvest.keys.rows()[row].hash;
                line_of(hash, u64::from(pair.client), *lines) == pair.line as usize
            };
            match by_hash.rows(pair.key).find(belongs) {
                Some(row) => found.push((row, count, pair)),
                None => bound = bound.max(u64::from(count) + missing),
            }
        }
        for (row, count, pair) in found {
            shares[places[row] as usize].push(Share {
                client: address(pair.client, &harvest.addresses),
                requests: u64::from(count) + missing,
                err: u64::from(pair.err) + missing,
                covered: bound,
            });
        }
        total_bound += bound;
    }
    let rows = shares.into_iter().zip(&keys.rows);
    let settle = |(mut shares, key): (Vec<Share>, &Row)| {
        if harvests.len() > 1 {
            join_shares(&mut shares);
        }
        settle_pairs(shares, key.requests(), total_bound)
    };
    let pairs = rows.map(settle).collect();
    (pairs, total_bound)
}

/// Raises a key's shares to their upper bounds.
pub(super) fn settle_pairs(shares: Vec<Share>, key_requests: u64, total_bound: u64) -> Vec<PairRow> {
    let row = |share: Share| {
        let missing = total_bound - share.covered;
        bounded(share.client, share.requests + missing, share.err + missing, key_requests)
    };
    let mut rows: Vec<PairRow> = shares.into_iter().map(row).collect();
    rows.sort_by(|a, b| b.requests.cmp(&a.requests).then(a.client.cmp(&b.client)));
    rows
}

/// Puts the same client's shares of a key together.
pub(super) fn join_shares(shares: &mut Vec<Share>) {
    shares.sort_unstable_by_key(|share| share.client);
    shares.dedup_by(|share, kept| {
        let same = share.client == kept.client;
        if same {
            kept.requests += share.requests;
            kept.err += share.err;
            kept.covered += share.covered;
        }
        same
    });
}

/// A pair whose requests lie in `[requests - err, requests]` and are not more than its key's.
fn bounded(client: Endpoint, requests: u64, err: u64, key_requests: u64) -> PairRow {
    let certain = requests - err.min(requests);
    let requests = requests.min(key_requests);
    PairRow { client, requests, err: requests.saturating_sub(certain) }
}

/// A key's bytes, and the requests of it.
type TopKey = Option<(Box<[u8]>, u64)>;

/// The hottest key of each row of clients or servers: its row, and the requests.
type TopKeys = Vec<Option<(u32, u64)>>;

fn top_keys_of_clients(clients: &Joined, keys: &Joined, pairs: &[Vec<PairRow>]) -> TopKeys {
    let at: HashMap<Endpoint, usize, FixedState> =
        clients.rows.iter().enumerate().map(|(at, row)| (decode(&row.key), at)).collect();
    let mut top: TopKeys = vec![None; clients.rows.len()];
    for (key, shares) in pairs.iter().enumerate() {
        for share in shares {
            if let Some(&client) = at.get(&share.client) {
                raise(&mut top[client], key as u32, share.requests, keys);
            }
        }
    }
    top
}

/// Of keys asked for alike often the first by its bytes, its length and its hash, so that the order of the rows decides nothing (of
/// keys that were cut the bytes can be equal). A key has no more requests of one client than in all.
fn raise(top: &mut Option<(u32, u64)>, key: u32, requests: u64, keys: &Joined) {
    let row = |key: u32| &keys.rows[key as usize];
    let name = |key: u32| (&row(key).key, row(key).length, row(key).hash);
    let requests = requests.min(row(key).requests());
    let is_higher =
        |(known, most): (u32, u64)| requests.cmp(&most).then_with(|| name(known).cmp(&name(key))).is_gt();
    if top.is_none_or(is_higher) {
        *top = Some((key, requests));
    }
}

/// What one connection asked of one key at one worker.
struct SocketPair {
    /// Rows of the joined sockets and keys.
    socket: u32,
    key: u32,
    /// Upper bound where it was seen.
    requests: u64,
    /// So many were certainly of this key and this connection.
    certain: u64,
    /// The one server that the connection spoke to; `None`: several, or it is not certain.
    server: Option<Endpoint>,
}

fn pairs_of_sockets(harvests: &[&Harvest], keys: &Joined, sockets: &Joined) -> Vec<SocketPair> {
    let mut pairs = Vec::new();
    for (index, harvest) in harvests.iter().enumerate() {
        let (by_key, by_socket) = (ByHash::new(&harvest.keys), ByHash::new(&harvest.sockets));
        let (key_rows, socket_rows) = (harvest.keys.rows(), harvest.sockets.rows());
        let PairRows { lines, missing, .. } = &harvest.socket_pairs;
        for (count, pair) in harvest.socket_pairs.pairs() {
            let candidates = by_key
                .rows(pair.key)
                .flat_map(|key| by_socket.rows(pair.client).map(move |socket| (key, socket)));
            let found = candidates.into_iter().find(|&(key, socket)| {
                line_of(key_rows[key].hash, socket_rows[socket].hash, *lines) == pair.line as usize
            });
            if let Some((key, socket)) = found {
                pairs.push(SocketPair {
                    socket: sockets.places[index][socket],
                    key: keys.places[index][key],
                    requests: u64::from(count) + missing,
                    certain: u64::from(count.saturating_sub(pair.err)),
                    server: socket_rows[socket].companion().map(|server| decode(server)),
                });
            }
        }
    }
    pairs
}

fn top_keys_of_sockets(pairs: &[SocketPair], keys: &Joined, sockets: &Joined) -> TopKeys {
    hottest(pairs.iter().map(|pair| (pair.socket, pair.key, pair.requests)), keys, sockets)
}

/// Keys are counted by target and not by server; what its connections asked for tells a server's hottest one. Only what is
/// certain counts: a connection's address that several servers saw is nobody's, and what the pair tables
/// left out is missing. So the requests are a lower bound, and exact while neither has happened. The only server there was got all
/// requests, and is asked for what the keys' own table knows.
fn top_keys_of_servers(pairs: &[SocketPair], keys: &Joined, servers: &Joined) -> TopKeys {
    if servers.rows.len() == 1 && servers.complete && servers.bound == 0 {
        let mut top = None;
        for (key, at) in keys.rows.iter().zip(0..).filter(|(key, _)| key.certain() > 0) {
            raise(&mut top, at, key.certain(), keys);
        }
        return vec![top];
    }
    let at: HashMap<Endpoint, u32, FixedState> =
        servers.rows.iter().zip(0..).map(|(row, at)| (decode(&row.key), at)).collect();
    let certain = pairs.iter().filter(|pair| pair.certain > 0);
    let counts = certain.filter_map(|pair| Some((*at.get(&pair.server?)?, pair.key, pair.certain)));
    hottest(counts, keys, servers)
}

/// For each of `rows` the key with the most requests of all (row, key, requests), the same row and key of which can come several times.
fn hottest(counts: impl Iterator<Item = (u32, u32, u64)>, keys: &Joined, rows: &Joined) -> TopKeys {
    let mut counts: Vec<(u32, u32, u64)> = counts.collect();
    counts.sort_unstable();
    counts.dedup_by(|pair, kept| {
        let same = (pair.0, pair.1) == (kept.0, kept.1);
        if same {
            kept.2 += pair.2;
        }
        same
    });
    let mut top: TopKeys = vec![None; rows.rows.len()];
    for (row, key, requests) in counts {
        raise(&mut top[row as usize], key, requests, keys);
    }
    top
}

/// Each row with its hottest key, which has no more requests than the row.
fn with_keys(rows: Joined, top: TopKeys, keys: &Joined) -> impl Iterator<Item = (Row, TopKey)> {
    rows.rows.into_iter().zip(top).map(|(row, top)| {
        let top_key = top.map(|(key, requests)| {
            let key = &keys.rows[key as usize];
            (key.key.clone(), requests.min(row.requests()))
        });
        (row, top_key)
    })
}

fn client_rows(clients: Joined, top: TopKeys, keys: &Joined) -> Vec<ClientRow> {
    let row = |(row, top_key): (Row, _)| ClientRow {
        client: decode(&row.key),
        err: row.err,
        counters: row.counters,
        top_key,
    };
    with_keys(clients, top, keys).map(row).collect()
}

fn server_rows(servers: Joined, top: TopKeys, keys: &Joined) -> Vec<ServerRow> {
    let row = |(row, top_key): (Row, _)| ServerRow {
        server: decode(&row.key),
        err: row.err,
        counters: row.counters,
        top_key,
    };
    with_keys(servers, top, keys).map(row).collect()
}

fn key_rows(keys: Joined, pairs: Vec<Vec<PairRow>>) -> Vec<KeyRow> {
    let row = |(row, clients): (Row, Vec<PairRow>)| KeyRow {
        key: row.key,
        truncated: row.truncated,
        err: row.err,
        counters: row.counters,
        clients,
    };
    keys.rows.into_iter().zip(pairs).map(row).collect()
}

//! Reports of several machines as one, from what they printed.
//!
//! A report lists some rows and says what one that it does not list can have had at most ([`Unlisted`]). So for every key there is
//! in every report an interval that holds the truth: `[requests - err, requests]`, or `[0, unlisted]`. A union adds these intervals.
//! It is closed (what comes out has the same shape), commutative and associative, and a report of nothing changes nothing;
//! only [`Union::prune`], which bounds its memory, makes it depend on the order, and then it widens bounds and breaks none.

use super::snapshot::{Bounds, ClientRow, Counters, KeyRow, LatencySummary, PairRow, ServerRow, Snapshot};
use crate::model::{Command, Endpoint};
use foldhash::quality::RandomState;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// What a row that a report does not list had at most, in requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unlisted {
    /// A key.
    pub key: u64,
    /// A client by IP.
    pub client: u64,
    /// A client by IP and port.
    pub socket: u64,
    /// A server of a CIDR or `*` target.
    pub server: u64,
    /// A client of a key.
    pub pair: u64,
}

/// One row, and how much of the union's bound it already covers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Row {
    /// Rows of reports that were added up here.
    listed: u64,
    err: u64,
    counters: Counters,
    /// Sum of the bounds of the reports that list it.
    covered: u64,
    /// Keys alone have these.
    pairs: Pairs,
    /// Keys that led this client or server in some report, with their requests there.
    leaders: BTreeMap<Box<[u8]>, u64>,
}

/// The clients of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Pairs {
    shares: BTreeMap<Endpoint, Share>,
    /// What an unlisted client of this key had in the reports that list the key: the sum.
    bound: u64,
    /// Sum of these reports' bounds for clients of unlisted keys.
    covered: u64,
}

impl Pairs {
    /// Most requests of a client that no report lists for this key, where reports that do not list the key leave `pair_bound` to its
    /// clients.
    fn unlisted(&self, pair_bound: u64) -> u64 {
        self.bound + pair_bound - self.covered
    }

    /// Most requests of any client of this key.
    fn most(&self, pair_bound: u64) -> u64 {
        let unlisted = self.unlisted(pair_bound);
        let listed = self.shares.values().map(|share| share.requests + unlisted - share.covered);
        listed.fold(unlisted, u64::max)
    }
}

/// One client's part of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Share {
    requests: u64,
    err: u64,
    /// Sum of the key's bounds in the reports that list the pair.
    covered: u64,
}

impl Row {
    fn of(err: u64, counters: &Counters, covered: u64) -> Row {
        Row { listed: 1, err, counters: *counters, covered, ..Row::default() }
    }

    fn add(&mut self, other: Row) {
        self.listed += other.listed;
        self.err += other.err;
        self.covered += other.covered;
        self.counters.merge(&other.counters);
        self.pairs.bound += other.pairs.bound;
        self.pairs.covered += other.pairs.covered;
        for (client, share) in other.pairs.shares {
            let mine = self.pairs.shares.entry(client).or_default();
            mine.requests += share.requests;
            mine.err += share.err;
            mine.covered += share.covered;
        }
        for (key, requests) in other.leaders {
            *self.leaders.entry(key).or_default() += requests;
        }
    }

    /// Upper bound of the requests, and error, where the reports that do not list it are known to have had `bound` in all.
    fn settled(&self, bound: u64) -> (u64, Counters) {
        let missing = bound - self.covered;
        // As in a single snapshot, requests in doubt are gets of unknown outcome.
        let counters = Counters { gets: self.counters.gets + missing, ..self.counters };
        (self.err + missing, counters)
    }

    fn leader(&self, requests: u64) -> Option<(Box<[u8]>, u64)> {
        let most = self.leaders.iter().max_by_key(|&(key, asked)| (asked, Reverse(key)));
        most.map(|(key, &asked)| (key.clone(), asked.min(requests)))
    }
}

/// Rows of one kind by name.
#[derive(Clone, Debug, PartialEq)]
struct Rows<K: Hash + Eq> {
    rows: HashMap<K, Row, RandomState>,
    /// What an unlisted row had at most, in all reports together.
    bound: u64,
}

impl<K: Hash + Eq> Default for Rows<K> {
    fn default() -> Rows<K> {
        Rows { rows: HashMap::default(), bound: 0 }
    }
}

impl<K: Hash + Eq> Rows<K> {
    fn merge(&mut self, other: Rows<K>) {
        self.bound += other.bound;
        for (name, row) in other.rows {
            self.rows.entry(name).or_default().add(row);
        }
    }

    /// Keeps the `rows_max` rows of most certain requests and, next, bytes. What an unlisted row can have had rises to what is left
    /// out, each of which `left_out` is told of, with the most requests that it had.
    fn prune(&mut self, rows_max: usize, mut left_out: impl FnMut(&K, &Row, u64)) {
        if self.rows.len() <= rows_max {
            return;
        }
        let weight = |row: &Row| {
            let counters = &row.counters;
            (
                counters.requests().saturating_sub(row.err),
                counters.bytes_in.saturating_add(counters.bytes_out),
            )
        };
        let mut weights: Vec<_> = self.rows.values().map(weight).collect();
        let (_, &mut least, _) = weights.select_nth_unstable_by_key(rows_max, |&weight| Reverse(weight));
        let (before, mut bound) = (self.bound, self.bound);
        self.rows.retain(|name, row| {
            let stays = weight(row) > least;
            if !stays {
                let requests = row.counters.requests() + before - row.covered;
                bound = bound.max(requests);
                left_out(name, row, requests);
            }
            stays
        });
        self.bound = bound;
        let raised = bound - before;
        self.rows.values_mut().for_each(|row| row.covered += raised);
    }
}

/// A key's name: its bytes, and whether they are only the first ones.
type KeyName = (Box<[u8]>, bool);

/// The figures of one target in several reports.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Union {
    reports: u64,
    keys: Rows<KeyName>,
    clients: Rows<Endpoint>,
    sockets: Rows<Endpoint>,
    servers: Rows<Endpoint>,
    /// Requests of reports that tell no servers apart; where another one does, any server may have had them.
    without_servers: u64,
    /// What a client of an unlisted key had at most.
    pair_bound: u64,
    /// Everything but rows, their bounds, and response times.
    sums: Snapshot,
    /// Reports that had response times and no histogram of them.
    without_histogram: u64,
    /// Of all reports the worst figures, in the place of what only histograms can tell.
    worst: LatencySummary,
    worst_of_commands: BTreeMap<usize, LatencySummary>,
}

impl Union {
    /// Of one report. Its rows are what it lists, whatever its snapshot could.
    pub fn of(report: Snapshot, unlisted: &Unlisted) -> Union {
        let truncated = || report.keys.iter().filter(|row| row.truncated);
        // The whole of a truncated key may stand in another report, where this row does not meet it.
        let key_bound = truncated().map(|row| row.counters.requests()).fold(unlisted.key, u64::max);
        let cut_pairs = truncated().flat_map(|row| &row.clients).map(|pair| pair.requests);
        let pair_bound = cut_pairs.fold(unlisted.pair, u64::max).min(key_bound);
        let mut union = Union { reports: 1, pair_bound, ..Union::default() };
        union.keys.bound = key_bound;
        (union.clients.bound, union.sockets.bound) = (unlisted.client, unlisted.socket);
        if report.servers.is_empty() {
            union.without_servers = report.totals.counters.requests();
        } else {
            union.servers.bound = unlisted.server;
        }
        for row in &report.keys {
            let entry = union.keys.rows.entry((row.key.clone(), row.truncated)).or_default();
            // Truncated rows of the same beginning are several, and the report's bound counts once.
            let covered = key_bound - entry.covered;
            let pairs_covered = pair_bound - entry.pairs.covered;
            entry.add(Row {
                pairs: pairs(row, unlisted.pair, pairs_covered),
                ..Row::of(row.err, &row.counters, covered)
            });
        }
        let client = |row: &ClientRow, covered: u64| Row {
            leaders: row.top_key.iter().cloned().collect(),
            ..Row::of(row.err, &row.counters, covered)
        };
        let clients = report.clients.iter().map(|row| (row.client, client(row, unlisted.client)));
        union.clients.rows.extend(clients);
        let sockets = report.sockets.iter().map(|row| (row.client, client(row, unlisted.socket)));
        union.sockets.rows.extend(sockets);
        union.servers.rows.extend(report.servers.iter().map(|row| {
            let leaders = row.top_key.iter().cloned().collect();
            (row.server, Row { leaders, ..Row::of(row.err, &row.counters, unlisted.server) })
        }));
        union.worst = report.latency;
        union.worst_of_commands =
            report.command_latency.iter().map(|&(command, summary)| (command.index(), summary)).collect();
        let is_timed = report.totals.response_times.summary().samples >= report.latency.samples;
        union.without_histogram = u64::from(!is_timed);
        union.sums = Snapshot {
            keys: Vec::new(),
            clients: Vec::new(),
            sockets: Vec::new(),
            servers: Vec::new(),
            bounds: Bounds::default(),
            ..report
        };
        union
    }

    /// Adds another union.
    pub fn merge(&mut self, other: Union) {
        self.keys.merge(other.keys);
        self.clients.merge(other.clients);
        self.sockets.merge(other.sockets);
        self.servers.merge(other.servers);
        self.pair_bound += other.pair_bound;
        self.without_servers += other.without_servers;
        self.without_histogram += other.without_histogram;
        worse(&mut self.worst, &other.worst);
        for (command, summary) in &other.worst_of_commands {
            worse(self.worst_of_commands.entry(*command).or_default(), summary);
        }
        match (self.reports, other.reports) {
            (_, 0) => {}
            (0, _) => self.sums = other.sums,
            _ => add_sums(&mut self.sums, &other.sums),
        }
        self.reports += other.reports;
    }

    /// Reports in it.
    pub fn reports(&self) -> u64 {
        self.reports
    }

    /// Reports with response times of which percentiles alone are known: where it is not 0, the percentiles of
    /// [`Union::snapshot`] are those of the worst report, and those of all together are not above them.
    pub fn without_histogram(&self) -> u64 {
        self.without_histogram
    }

    /// What a row that none of the reports lists had at most. Of pairs: one of a key that none lists.
    pub fn unlisted(&self) -> Unlisted {
        let without_servers = if self.servers.rows.is_empty() { 0 } else { self.without_servers };
        Unlisted {
            key: self.keys.bound,
            client: self.clients.bound,
            socket: self.sockets.bound,
            server: self.servers.bound + without_servers,
            pair: self.pair_bound,
        }
    }

    /// Rows of all kinds.
    pub fn rows(&self) -> usize {
        self.keys.rows.len() + self.clients.rows.len() + self.sockets.rows.len() + self.servers.rows.len()
    }

    /// Keeps at most `rows_max` rows of a kind, the heaviest; what an unlisted one can have had rises.
    pub fn prune(&mut self, rows_max: usize) {
        let (before, mut pair_bound) = (self.pair_bound, self.pair_bound);
        self.keys.prune(rows_max, |(_, truncated), row, requests| {
            // Its clients are those of an unlisted key from now on. A beginning may be that of several keys with clients of their own.
            let most = if *truncated { requests } else { row.pairs.most(before).min(requests) };
            pair_bound = pair_bound.max(most);
        });
        self.pair_bound = pair_bound;
        let raised = pair_bound - before;
        self.keys.rows.values_mut().for_each(|row| row.pairs.covered += raised);
        let nothing = |_: &Endpoint, _: &Row, _| {};
        self.clients.prune(rows_max, nothing);
        self.sockets.prune(rows_max, nothing);
        self.servers.prune(rows_max, nothing);
    }

    /// The figures of all reports, every row with its bounds.
    pub fn snapshot(&self) -> Snapshot {
        let (keys, pair_bound) = self.key_rows();
        let clients = |rows: &Rows<Endpoint>| -> Vec<ClientRow> {
            let rows = rows.rows.iter().map(|(&client, row)| {
                let (err, counters) = row.settled(rows.bound);
                ClientRow { client, err, top_key: row.leader(counters.requests()), counters }
            });
            rows.collect()
        };
        let unlisted = self.unlisted();
        let servers = self.servers.rows.iter().map(|(&server, row)| {
            let (err, counters) = row.settled(unlisted.server);
            ServerRow { server, err, top_key: row.leader(counters.requests()), counters }
        });
        let mut snapshot = Snapshot {
            clients: clients(&self.clients),
            sockets: clients(&self.sockets),
            servers: servers.collect(),
            keys,
            bounds: Bounds {
                key: unlisted.key,
                client: unlisted.client.max(unlisted.socket).max(unlisted.server),
                pair: pair_bound,
            },
            ..self.sums.clone()
        };
        snapshot.keys_seen = snapshot.keys_seen.max(snapshot.keys.len() as u64);
        snapshot.clients_seen = snapshot.clients_seen.max(snapshot.clients.len() as u64);
        snapshot.connections_seen = snapshot.connections_seen.max(snapshot.sockets.len() as u64);
        self.summarise(&mut snapshot);
        snapshot
    }

    fn summarise(&self, snapshot: &mut Snapshot) {
        if self.reports > 1 && self.without_histogram == 0 {
            let times = &snapshot.totals.response_times;
            (snapshot.latency, snapshot.command_latency) = (times.summary(), times.summaries());
            return;
        }
        snapshot.latency = self.worst;
        let commands = self.worst_of_commands.iter();
        snapshot.command_latency =
            commands.filter_map(|(&index, &summary)| Some((*Command::ALL.get(index)?, summary))).collect();
    }

    /// The keys, and the most requests of an unlisted client of any key.
    fn key_rows(&self) -> (Vec<KeyRow>, u64) {
        let whole = self.whole_keys();
        let mut most = self.pair_bound;
        let row = |((key, truncated), row): (&KeyName, &Row)| {
            let (mut err, mut counters) = row.settled(self.keys.bound);
            let joined = *truncated && (self.reports > 1 || row.listed > 1);
            if joined {
                // Rows of the same beginning may be of several keys: nothing is certain of any, and all may be of one.
                counters.gets += whole.get(&**key).copied().unwrap_or(0);
                err = counters.requests();
            }
            let requests = counters.requests();
            let bound = row.pairs.unlisted(self.pair_bound);
            most = most.max(bound.min(requests));
            let clients = if joined { Vec::new() } else { settle_pairs(row, bound, requests) };
            KeyRow { key: key.clone(), truncated: *truncated, err, counters, clients }
        };
        let rows = self.keys.rows.iter().map(row).collect();
        (rows, most)
    }

    /// For each beginning of a truncated key the requests of all whole keys that begin like it.
    fn whole_keys(&self) -> HashMap<&[u8], u64, RandomState> {
        let mut sums: HashMap<&[u8], u64, RandomState> = HashMap::default();
        sums.extend(self.keys.rows.keys().filter(|(_, truncated)| *truncated).map(|(key, _)| (&**key, 0)));
        let mut lengths: Vec<usize> = sums.keys().map(|key| key.len()).collect();
        lengths.sort_unstable();
        lengths.dedup();
        for ((key, _), row) in self.keys.rows.iter().filter(|((_, truncated), _)| !truncated) {
            for head in lengths.iter().filter_map(|&length| key.get(..length)) {
                if let Some(sum) = sums.get_mut(head) {
                    *sum = sum.saturating_add(row.counters.requests());
                }
            }
        }
        sums
    }
}

/// The clients of a key that one report lists. An unlisted one had no more than what the listed ones leave.
fn pairs(row: &KeyRow, unlisted: u64, covered: u64) -> Pairs {
    let certain: u64 = row.clients.iter().map(|pair| pair.requests.saturating_sub(pair.err)).sum();
    let bound = row.counters.requests().saturating_sub(certain).min(unlisted);
    let share =
        |pair: &PairRow| (pair.client, Share { requests: pair.requests, err: pair.err, covered: bound });
    Pairs { shares: row.clients.iter().map(share).collect(), bound, covered }
}

/// The clients of a key, most requests first; `bound` is what an unlisted one had in all reports.
fn settle_pairs(row: &Row, bound: u64, key_requests: u64) -> Vec<PairRow> {
    // A report that lists the key and not the client had at most its own bound for this key; one that does not list the key
    // had the bound for clients of unlisted keys. `bound` is the sum of both.
    let settled = row.pairs.shares.iter().map(|(&client, share)| {
        let certain = share.requests.saturating_sub(share.err);
        let requests = (share.requests + bound - share.covered).min(key_requests);
        PairRow { client, requests, err: requests.saturating_sub(certain) }
    });
    let mut rows: Vec<PairRow> = settled.collect();
    rows.sort_by(|a, b| b.requests.cmp(&a.requests).then(a.client.cmp(&b.client)));
    rows
}

/// What a percentile of both together is not above.
fn worse(mine: &mut LatencySummary, other: &LatencySummary) {
    mine.p50 = mine.p50.max(other.p50);
    mine.p90 = mine.p90.max(other.p90);
    mine.p99 = mine.p99.max(other.p99);
    mine.max = mine.max.max(other.max);
    mine.samples += other.samples;
}

/// Adds what is not in rows. Distinct counts of two reports are those of the greater one at least.
fn add_sums(mine: &mut Snapshot, other: &Snapshot) {
    (mine.start, mine.end) = (mine.start.min(other.start), mine.end.max(other.end));
    mine.partial |= other.partial;
    mine.target = mine.target.clone().min(other.target.clone());
    mine.address = mine.address.clone().min(other.address.clone());
    mine.totals.merge(&other.totals);
    mine.clients_seen = mine.clients_seen.max(other.clients_seen);
    mine.connections_seen = mine.connections_seen.max(other.connections_seen);
    mine.keys_seen = mine.keys_seen.max(other.keys_seen);
    mine.loss.packets += other.loss.packets;
    mine.loss.ring_dropped += other.loss.ring_dropped;
    mine.loss.nic_dropped += other.loss.nic_dropped;
    mine.loss.worker_lost += other.loss.worker_lost;
    mine.loss.anomalies.merge(&other.loss.anomalies);
    mine.health.merge(&other.health);
    for (packets, more) in mine.packets_by_direction.iter_mut().zip(other.packets_by_direction) {
        *packets += more;
    }
}

#[cfg(test)]
mod tests;

//! Unions against ordered maps of what every machine truly saw.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

/// Requests by key and client.
type Truth = BTreeMap<(u8, u8), u64>;

/// A machine's truth and what its report lets see of it.
#[derive(Clone, Debug)]
struct Machine {
    truth: Truth,
    report: Snapshot,
    unlisted: Unlisted,
}

fn endpoint(client: u8) -> Endpoint {
    Endpoint::from_ipv4([10, 0, 0, client], 0)
}

fn key_bytes(key: u8) -> Box<[u8]> {
    format!("key:{key}").into_bytes().into()
}

fn sum(truth: &Truth, of: impl Fn(u8, u8) -> bool) -> u64 {
    truth.iter().filter(|((key, client), _)| of(*key, *client)).map(|(_, count)| count).sum()
}

fn gets(requests: u64, truth: u64) -> Counters {
    Counters { gets: requests, hits: truth / 2, bytes_out: truth * 100, ..Counters::default() }
}

impl Machine {
    /// `widths` says by how much the interval of a row is wider than the truth on both sides, `hidden` which rows are not listed.
    fn new(
        truth: Truth,
        widths: &[(u8, u8)],
        hidden: &BTreeSet<u8>,
        hidden_pairs: &BTreeSet<(u8, u8)>,
        slack: u64,
    ) -> Machine {
        let width = |of: usize| widths.get(of % widths.len().max(1)).copied().unwrap_or((0, 0));
        let mut unlisted = Unlisted { key: slack, client: slack, socket: slack, server: slack, pair: slack };
        let keys: BTreeSet<u8> = truth.keys().map(|(key, _)| *key).collect();
        let clients: BTreeSet<u8> = truth.keys().map(|(_, client)| *client).collect();
        let mut report = Snapshot::default();
        for &key in &keys {
            let requests = sum(&truth, |of, _| of == key);
            if hidden.contains(&key) {
                unlisted.key = unlisted.key.max(requests);
                let pairs = truth.iter().filter(|((of, _), _)| *of == key).map(|(_, count)| *count);
                unlisted.pair = unlisted.pair.max(pairs.max().unwrap_or(0));
                continue;
            }
            let (below, above) = width(usize::from(key));
            let (below, above) = (u64::from(below).min(requests), u64::from(above));
            let mut row = KeyRow {
                key: key_bytes(key),
                truncated: false,
                err: below + above,
                counters: gets(requests + above, requests - below),
                clients: Vec::new(),
            };
            for (&(_, client), &count) in truth.iter().filter(|((of, _), _)| *of == key) {
                if hidden_pairs.contains(&(key, client)) {
                    unlisted.pair = unlisted.pair.max(count);
                } else {
                    let err = u64::from(below > 0);
                    row.clients.push(PairRow { client: endpoint(client), requests: count, err });
                }
            }
            report.keys.push(row);
        }
        for &client in &clients {
            let requests = sum(&truth, |_, of| of == client);
            if hidden.contains(&client) {
                unlisted.client = unlisted.client.max(requests);
                continue;
            }
            let above = u64::from(width(usize::from(client)).1);
            report.clients.push(ClientRow {
                client: endpoint(client),
                err: above,
                counters: gets(requests + above, requests),
                top_key: Some((key_bytes(client % 3), requests / 2)),
            });
        }
        report.totals.counters = gets(sum(&truth, |_, _| true), 0);
        report.loss.ring_dropped = slack;
        Machine { truth, report, unlisted }
    }

    fn union(&self) -> Union {
        Union::of(self.report.clone(), &self.unlisted)
    }
}

fn any_machine() -> impl Strategy<Value = Machine> {
    (
        prop::collection::btree_map((0u8..12, 0u8..6), 1u64..200, 0..40),
        prop::collection::vec((0u8..20, 0u8..20), 1..8),
        prop::collection::btree_set(0u8..12, 0..5),
        prop::collection::btree_set((0u8..12, 0u8..6), 0..20),
        0u64..30,
    )
        .prop_map(|(truth, widths, hidden, pairs, slack)| {
            Machine::new(truth, &widths, &hidden, &pairs, slack)
        })
}

fn holds(err: u64, requests: u64, truth: u64) -> bool {
    requests.saturating_sub(err) <= truth && truth <= requests
}

/// What every report claims against what all machines together saw.
fn check(snapshot: &Snapshot, machines: &[Machine]) {
    let mut truth = Truth::new();
    for machine in machines {
        machine.truth.iter().for_each(|(pair, count)| *truth.entry(*pair).or_default() += count);
    }
    for key in 0..12 {
        let requests = sum(&truth, |of, _| of == key);
        let Some(row) = snapshot.keys.iter().find(|row| row.key == key_bytes(key)) else {
            assert!(requests <= snapshot.bounds.key, "unlisted key {key}");
            continue;
        };
        assert!(holds(row.err, row.counters.requests(), requests), "{row:?} {requests}");
        assert!(row.counters.hits <= requests && row.counters.bytes_out <= requests * 100);
        for client in 0..6 {
            let requests = truth.get(&(key, client)).copied().unwrap_or(0);
            match row.clients.iter().find(|pair| pair.client == endpoint(client)) {
                Some(pair) => assert!(holds(pair.err, pair.requests, requests), "{pair:?} {requests}"),
                None => assert!(requests <= snapshot.bounds.pair, "unlisted pair {key} {client}"),
            }
        }
    }
    for client in 0..6 {
        let requests = sum(&truth, |_, of| of == client);
        match snapshot.clients.iter().find(|row| row.client == endpoint(client)) {
            Some(row) => assert!(holds(row.err, row.counters.requests(), requests), "{row:?} {requests}"),
            None => assert!(requests <= snapshot.bounds.client, "unlisted client {client}"),
        }
    }
    assert_eq!(snapshot.totals.counters.requests(), sum(&truth, |_, _| true));
    assert_eq!(
        snapshot.loss.ring_dropped,
        machines.iter().map(|of| of.report.loss.ring_dropped).sum::<u64>()
    );
}

fn all(machines: &[Machine]) -> Union {
    let mut all = Union::default();
    machines.iter().for_each(|machine| all.merge(machine.union()));
    all
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bounds_hold(machines in prop::collection::vec(any_machine(), 1..6)) {
        check(&all(&machines).snapshot(), &machines);
    }

    /// However often what was merged is taken for a report again.
    #[test]
    fn it_is_closed(machines in prop::collection::vec(any_machine(), 2..6)) {
        let (first, rest) = machines.split_at(machines.len() / 2);
        let part = all(first);
        let unlisted = Unlisted { pair: part.snapshot().bounds.pair, ..part.unlisted() };
        let mut again = Union::of(part.snapshot(), &unlisted);
        again.merge(all(rest));
        check(&again.snapshot(), &machines);
    }

    #[test]
    fn order_and_grouping_do_not_matter(a in any_machine(), b in any_machine(), c in any_machine()) {
        let of = |machines: &[&Machine]| {
            let machines: Vec<Machine> = machines.iter().map(|machine| (*machine).clone()).collect();
            all(&machines)
        };
        prop_assert_eq!(of(&[&a, &b]), of(&[&b, &a]));
        let mut left = of(&[&a, &b]);
        left.merge(of(&[&c]));
        let mut right = of(&[&a]);
        right.merge(of(&[&b, &c]));
        prop_assert_eq!(left, right);
    }

    #[test]
    fn nothing_changes_nothing(a in any_machine()) {
        let mut before = a.union();
        before.merge(Union::default());
        prop_assert_eq!(&before, &a.union());
        let mut behind = Union::default();
        behind.merge(a.union());
        prop_assert_eq!(behind, a.union());
    }

    /// What is left out stands in the bounds, also of what comes afterwards.
    #[test]
    fn pruning_raises_bounds(machines in prop::collection::vec(any_machine(), 1..6), rows_max in 0usize..8) {
        let mut pruned = Union::default();
        for machine in &machines {
            pruned.merge(machine.union());
            pruned.prune(rows_max);
            prop_assert!(pruned.rows() <= 4 * rows_max);
        }
        check(&pruned.snapshot(), &machines);
    }

    /// Where every row is exact and nothing is left out, so is the union.
    #[test]
    fn exact_and_exact_is_exact(truths in prop::collection::vec(prop::collection::btree_map((0u8..12, 0u8..6), 1u64..200, 0..40), 1..5)) {
        let machines: Vec<Machine> = truths
            .into_iter()
            .map(|truth| Machine::new(truth, &[], &BTreeSet::new(), &BTreeSet::new(), 0))
            .collect();
        let snapshot = all(&machines).snapshot();
        prop_assert_eq!(snapshot.bounds, Bounds::default());
        prop_assert!(snapshot.keys.iter().all(|row| row.err == 0 && row.clients.iter().all(|pair| pair.err == 0)));
        prop_assert!(snapshot.clients.iter().all(|row| row.err == 0));
        check(&snapshot, &machines);
    }
}

#[test]
fn of_cut_keys_nothing_is_certain() {
    let row = |key: &[u8], truncated, requests| KeyRow {
        key: key.into(),
        truncated,
        err: 0,
        counters: gets(requests, 0),
        clients: Vec::new(),
    };
    // The first machine holds the head of a key alone, the second one the whole.
    let report = |rows| Union::of(Snapshot { keys: rows, ..Snapshot::default() }, &Unlisted::default());
    let cut = report(vec![row(b"head", true, 5), row(b"head", true, 2)]);
    assert_eq!(cut.snapshot().keys[0].err, 7, "two keys of the same beginning are not told apart");
    let mut both = cut;
    both.merge(report(vec![row(b"headtail", false, 10)]));
    let snapshot = both.snapshot();
    let find = |key: &[u8]| snapshot.keys.iter().find(|row| *row.key == *key).unwrap();
    assert_eq!(
        (find(b"headtail").counters.requests(), find(b"headtail").err),
        (15, 5),
        "one key is one row, and at most the greater of them"
    );
    assert_eq!((find(b"head").counters.requests(), find(b"head").err), (17, 17));
}

#[test]
fn percentiles_come_from_histograms_or_are_the_worst() {
    let report = |micros: u64, with_histogram: bool| {
        let mut snapshot = Snapshot::default();
        snapshot.totals.response_times.add_cells(Command::Get, micros, &[(micros, 10)]);
        snapshot.latency = snapshot.totals.response_times.summary();
        snapshot.command_latency = snapshot.totals.response_times.summaries();
        if !with_histogram {
            snapshot.totals.response_times = crate::collector::ResponseTimes::default();
        }
        Union::of(snapshot, &Unlisted::default())
    };
    let mut exact = report(5, true);
    exact.merge(report(50, true));
    exact.merge(report(50, true));
    let summary = exact.snapshot().latency;
    assert_eq!((summary.p50, summary.max, summary.samples), (50, 50, 30));
    let mut vague = report(5, true);
    vague.merge(report(50, false));
    assert_eq!(vague.without_histogram(), 1);
    let (summary, commands) = (vague.snapshot().latency, vague.snapshot().command_latency);
    assert_eq!((summary.p50, summary.max, summary.samples), (50, 50, 20));
    assert_eq!(commands, [(Command::Get, summary)]);
}

#[test]
fn servers_that_a_report_does_not_tell_apart_may_have_had_all() {
    let server = ServerRow { server: endpoint(1), err: 0, counters: gets(5, 0), top_key: None };
    let mut fleet = Snapshot { servers: vec![server], ..Snapshot::default() };
    fleet.totals.counters = gets(5, 0);
    let mut single = Snapshot::default();
    single.totals.counters = gets(7, 0);
    let mut union = Union::of(single, &Unlisted::default());
    assert_eq!(union.unlisted().server, 0);
    union.merge(Union::of(fleet, &Unlisted::default()));
    let servers = union.snapshot().servers;
    assert_eq!((servers[0].counters.requests(), servers[0].err), (12, 7));
}

//! Short sentences about what stands out in a snapshot. To add one: a function here, and its line in [`RULES`].

use super::contents::{Contents, loss_share, ratio};
use super::escape::{escape, shorten};
use super::privacy::PrivacyMode;
use super::units;
use crate::anomaly::Anomaly;
use crate::capture::ladder::Rung;
use crate::model::Outcome;
use std::borrow::Cow;

/// What stands out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Its stable name.
    pub id: Cow<'static, str>,
    /// The sentence.
    pub text: String,
}

/// A key above this share of all requests is one that a single server cannot spread.
const KEY_SHARE_MAX: f64 = 0.25;
/// A client above this share is one to talk to.
const CLIENT_SHARE_MAX: f64 = 0.50;
/// A hot key that is found less often than this does not cache anything.
const HIT_RATIO_MIN: f64 = 0.10;
/// Bytes of an answer with one value, above which a hot key loads the network more than the server.
const VALUE_BYTES_MAX: u64 = 100_000;
/// Loss above this share makes small differences between rows meaningless.
const LOSS_SHARE_MAX: f64 = 0.001;
/// Below this many gets a ratio says nothing.
const GETS_MIN: u64 = 10;
/// Below this many requests (or packets) a share says nothing.
const REQUESTS_MIN: u64 = 10;
/// A key that takes less than this share of the requests is not hot, however high it stands in a flat ranking.
const HOT_SHARE_MIN: f64 = 0.001;
/// Findings of one kind: the first few tell the story.
const SAME_KIND_MAX: usize = 5;
/// Characters of a key in a sentence.
const KEY_WIDTH_MAX: usize = 80;

type Rule = fn(&Contents<'_>, &mut Vec<Finding>);

/// Every rule, in the order of their importance.
const RULES: &[Rule] = &[
    no_packets,
    no_requests,
    one_direction,
    capture_loss,
    kept_less,
    worker_restarts,
    ring_nearly_full,
    tls,
    unknown_protocol,
    proxy_headers,
    clock_set_back,
    hot_key_share,
    hot_key_misses,
    hot_client_share,
    large_values,
    errors,
    refused_values,
    unparsed,
    mid_stream,
    flows_shed,
    evictions,
];

/// All findings of a report.
pub(crate) fn find(contents: &Contents<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for rule in RULES {
        rule(contents, &mut findings);
    }
    if let Some(merged) = contents.merged() {
        let shows_keys = contents.options.privacy.mode() == PrivacyMode::Full;
        findings.extend(merged.findings(shows_keys));
    }
    findings
}

fn anomaly(contents: &Contents<'_>, anomaly: Anomaly) -> u64 {
    contents.snapshot.loss.anomalies.of(anomaly)
}

fn key_text(key: &[u8]) -> String {
    shorten(&escape(key), KEY_WIDTH_MAX)
}

fn no_packets(contents: &Contents<'_>, findings: &mut Vec<Finding>) {
    if contents.saw_nothing() {
        let text = format!(
            "no packet of {} was captured: are address, port and interface right, and does its traffic pass here?",
            contents.snapshot.address
        );
        findings.push(Finding { id: "no-packets".into(), text });
    }
}

fn no_requests(contents: &Contents<'_>, findings: &mut Vec<Finding>) {
    let packets = contents.snapshot.loss.packets;
    let commands = contents.snapshot.totals.commands.iter().any(|command| command.requests > 0);
    let payload: u64 = contents.snapshot.packets_by_direction.iter().sum();
    if packets > 0 && payload > 0 && contents.requests() == 0 && !commands {
        let text = format!(
            "{} packets were captured, {} of them with payload, and none held a request",
            units::count(packets),
            units::count(payload)
        );
        findings.push(Finding { id: "no-requests".into(), text });
    }
}

fn one_direction(contents: &Contents<'_>, findings: &mut Vec<Finding>) {
    let [to_server, to_client] = contents.snapshot.packets_by_direction;
    let (seen, missing, cost) = match (to_server, to_client) {
        // As the load ladder has it.
        (_, 0) if contents.snapshot.health.rung == Rung::Requests => return,
        (REQUESTS_MIN.., 0) => {
            ("requests", "responses", "hits, misses, sizes and response times are unknown")
        }
        (0, REQUESTS_MIN..) => ("responses", "requests", "only keys that responses name are counted"),
        _ => return,
    };
    let text = format!("only {seen} are seen, no {missing}: {cost}; capture both directions");
    findings.push(Finding { id: "one-direction".into(), text });
}

fn capture_loss(contents: &Contents<'_>, findings: &mut Vec<Finding>) {
    let (lost, whole) = loss_share(contents.snapshot);
    if ratio((lost, whole)) > LOSS_SHARE_MAX {
        let advice = match contents.snapshot.loss.ring_dropped {
            0 => "rows may be short by as much",
            _ => "rows may be short by as much; a bigger ring (--ring-mb) or more --workers may help",
        };
        let text = format!("{}% of the traffic was lost: {advice}", units::percent(lost, whole, 2));
        findings.push(Finding { id: "capture-loss".into(), text });
    }
}

fn kept_less(contents: &Contents<'_>, findings: &mut Vec<Finding>) {
    let rung = contents.snapshot.health.rung;
    if rung != Rung::Full {
        let text = format!("the load ladder kept {} only: {}", rung.name(), rung.cost());
        findings.push(Finding { id: "load-ladder".into(), text });
    }
}

fn worker_restarts(contents: &Contents<'_>, findings: &mut Vec<Finding>) {
    let restarts = contents.snapshot.health.worker_restarts;
    if restarts > 0 {
        let text = format!(
            "a worker failed and began anew, {} times, {} packets lost: please report this as a bug",
            units::count(restarts),
            units::count(contents.snapshot.loss.worker_lost)
        );
        findings.push(Finding { id: "worker-restart".into(), text });
    }
}

fn ring_nearly_full(contents: &Contents<'_>, findings: &mut Vec<Finding>) {
    /// From here on a little more load means loss.
    const FILL_MAX: f64 = 0.75;
    let health = &contents.snapshot.health;
    let fill = (u64::from(health.ring_blocks_peak), u64::from(health.ring_blocks));
    if contents.snapshot.loss.ring_dropped == 0 && ratio(fill) > FILL_MAX {
        let text = format!(
            "the ring was {}% full: a bigger one (--ring-mb) keeps what comes while memtap has no turn",
            units::percent(fill.0, fill.1, 0)
        );
        findings.push(Finding { id: "ring-nearly-full".into(), text });
    }
}

fn tls(contents: &Contents<'_>, findings: &mut Vec<Finding>) {
    let flows = anomaly(contents, Anomaly::TlsFlow);
    if flows > 0 {
        let text = format!("{} connections speak TLS: what is inside cannot be seen", units::count(flows));
        findings.push(Finding { id: "tls".into(), text });
    }
}

fn unknown_protocol(contents: &Contents<'_>, findings: &mut Vec<Finding>) {
    let flows = anomaly(contents, Anomaly::UnknownProtocolFlow);
    if flows > 0 {
        let text = format!("{} connections speak a protocol that is not memcached's", units::count(flows));
        findings.push(Finding { id: "unknown-protocol".into(), text });
    }
}

fn proxy_headers(contents: &Contents<'_>, findings: &mut Vec<Finding>) {
    let flows = anomaly(contents, Anomaly::ProxyHeader);
    if flows > 0 {
        let text = format!(
            "{} connections begin with a PROXY header, which memcached does not know: their clients are a load balancer's",
            units::count(flows)
        );
        findings.push(Finding { id: "proxy-header".into(), text });
    }
}

fn clock_set_back(contents: &Contents<'_>, findings: &mut Vec<Finding>) {
    let times = anomaly(contents, Anomaly::ClockSetBack);
    if times > 0 {
        let text = format!(
            "the clock was set back, {} times: rates and response times around that moment mean little",
            units::count(times)
        );
        findings.push(Finding { id: "clock-set-back".into(), text });
    }
}

fn hot_key_share(contents: &Contents<'_>, findings: &mut Vec<Finding>) {
    let requests = contents.requests();
    for row in &contents.hot_keys {
        // Only what the key certainly had.
        let certain = row.counters.requests().saturating_sub(row.err);
        if requests >= REQUESTS_MIN && ratio((certain, requests)) > KEY_SHARE_MAX {
            let share = units::percent(row.counters.requests(), requests, 1);
            let text = format!("{} takes {share}% of all requests", key_text(&row.key));
            findings.push(Finding { id: "hot-key-share".into(), text });
        }
    }
}

fn hot_key_misses(contents: &Contents<'_>, findings: &mut Vec<Finding>) {
    let cold = contents.hot_keys.iter().filter(|row| {
        let counters = &row.counters;
        is_hot(contents, counters.requests())
            && counters.hits + counters.misses >= GETS_MIN
            && counters.hit_ratio().is_some_and(|ratio| ratio < HIT_RATIO_MIN)
    });
    for row in cold.take(SAME_KIND_MAX) {
        let known = row.counters.hits + row.counters.misses;
        let text = format!(
            "{} is asked for {} times and found in {}% of them",
            key_text(&row.key),
            units::count(row.counters.gets),
            units::percent(row.counters.hits, known, 1)
        );
        findings.push(Finding { id: "hot-key-misses".into(), text });
    }
}

fn is_hot(contents: &Contents<'_>, requests: u64) -> bool {
    ratio((requests, contents.requests())) >= HOT_SHARE_MIN
}

fn hot_client_share(contents: &Contents<'_>, findings: &mut Vec<Finding>) {
    let requests = contents.requests();
    for row in &contents.snapshot.clients {
        let certain = row.counters.requests().saturating_sub(row.err);
        if requests >= REQUESTS_MIN && ratio((certain, requests)) > CLIENT_SHARE_MAX {
            let share = units::percent(row.counters.requests(), requests, 1);
            let text = format!("{} sends {share}% of all requests", row.client.ip());
            findings.push(Finding { id: "hot-client-share".into(), text });
        }
    }
}

fn large_values(contents: &Contents<'_>, findings: &mut Vec<Finding>) {
    let large = contents.hot_keys.iter().filter_map(|row| {
        let mean = row.counters.bytes_out.checked_div(row.counters.hits)?;
        (is_hot(contents, row.counters.requests()) && mean > VALUE_BYTES_MAX).then_some((row, mean))
    });
    for (row, mean) in large.take(SAME_KIND_MAX) {
        let text = format!("{} is answered with {} for each hit", key_text(&row.key), units::bytes(mean));
        findings.push(Finding { id: "large-value".into(), text });
    }
}

fn errors(contents: &Contents<'_>, findings: &mut Vec<Finding>) {
    const ERROR_SHARE_MAX: f64 = 0.01;
    let (errors, requests) = (contents.snapshot.totals.counters.errors, contents.requests());
    if requests >= REQUESTS_MIN && ratio((errors, requests)) > ERROR_SHARE_MAX {
        let text = format!("{} requests are answered by an error", units::count(errors));
        findings.push(Finding { id: "errors".into(), text });
    }
}

fn refused_values(contents: &Contents<'_>, findings: &mut Vec<Finding>) {
    let commands = contents.snapshot.totals.commands.iter();
    let refused: u64 = commands.map(|command| command.outcomes[Outcome::TooLarge.index()]).sum();
    if refused > 0 {
        let text = format!("{} values were refused for their size", units::count(refused));
        findings.push(Finding { id: "value-too-large".into(), text });
    }
}

fn unparsed(contents: &Contents<'_>, findings: &mut Vec<Finding>) {
    const UNPARSED_SHARE_MAX: f64 = 0.01;
    let counters = &contents.snapshot.totals.counters;
    let part =
        (anomaly(contents, Anomaly::UnparsedBytes), counters.bytes_in.saturating_add(counters.bytes_out));
    if ratio(part) > UNPARSED_SHARE_MAX {
        let share = units::percent(part.0, part.1, 1);
        let text =
            format!("{share}% of the captured bytes could not be parsed: rows may be short by as much");
        findings.push(Finding { id: "unparsed".into(), text });
    }
}

fn mid_stream(contents: &Contents<'_>, findings: &mut Vec<Finding>) {
    const MID_STREAM_SHARE_MAX: f64 = 0.5;
    let (flows, connections) = (anomaly(contents, Anomaly::MidStream), contents.snapshot.connections_seen);
    if flows > 0 && ratio((flows, connections)) > MID_STREAM_SHARE_MAX {
        let text = format!(
            "{} of {} connections were found in mid-stream: the first exchange of each may be missing",
            units::count(flows),
            units::count(connections)
        );
        findings.push(Finding { id: "mid-stream".into(), text });
    }
}

fn flows_shed(contents: &Contents<'_>, findings: &mut Vec<Finding>) {
    let flows = anomaly(contents, Anomaly::FlowShed);
    if flows > 0 {
        let text = format!("{} connections were let go because the flow table was full", units::count(flows));
        findings.push(Finding { id: "flows-shed".into(), text });
    }
}

fn evictions(contents: &Contents<'_>, findings: &mut Vec<Finding>) {
    let evictions = anomaly(contents, Anomaly::Eviction);
    if evictions > 0 {
        let bounds = contents.snapshot.bounds;
        let text = format!(
            "the tables are full ({} evictions): a key that is not listed had at most {} requests, a client {}, \
             a client of a key {}; \
             a bigger budget (--budget-mb) makes them exact",
            units::count(evictions),
            units::count(bounds.key),
            units::count(bounds.client),
            units::count(bounds.pair)
        );
        findings.push(Finding { id: "evictions".into(), text });
    }
}

//! Conditions on a report's figures, for scripts: `key_share > 0.3 and requests >= 1000`.
//!
//! ```text
//! CONDITION := TERM { "and" TERM }
//! TERM      := FIGURE OPERATOR NUMBER
//! OPERATOR  := ">" | ">=" | "<" | "<=" | "=" | "!="
//! NUMBER    := digits with or without a fraction, and with "%" for hundredths
//! ```
//!
//! A figure without a value (the hit ratio where nothing was asked for) makes no term true, whatever the operator: a quiet
//! interval is no alarm. Ask for `requests = 0` to be told of one.

use super::contents::{loss_share, ratio};
use super::filter::{Filter, FilterError, Word, words};
use super::units;
use crate::choices::choices;
use crate::collector::snapshot::{Counters, Snapshot};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

choices! {
    /// A figure of one target's report that a condition may name. Shares and ratios are parts of one; times are microseconds.
    Figure {
        /// Requests of the interval.
        Requests = "requests",
        /// Requests a second.
        RequestRate = "requests_per_s",
        /// Share of the hottest key in all requests: what it had at least, where the table is not exact.
        KeyShare = "key_share",
        /// Share of the hottest client, by IP: what it had at least.
        ClientShare = "client_share",
        /// Hits of hits and misses.
        HitRatio = "hit_ratio",
        /// Misses of hits and misses.
        MissRatio = "miss_ratio",
        /// Requests answered by an error.
        Errors = "errors",
        /// Share of these in all requests.
        ErrorRatio = "error_ratio",
        /// Bytes a second to the servers.
        BytesInRate = "bytes_in_per_s",
        /// Bytes a second to the clients.
        BytesOutRate = "bytes_out_per_s",
        /// Median response time.
        P50 = "p50_us",
        /// 90th percentile of the response times.
        P90 = "p90_us",
        /// 99th percentile of the response times.
        P99 = "p99_us",
        /// Longest response time.
        Max = "max_us",
        /// Share of the traffic that was lost, as in the first line of a report.
        Loss = "loss",
        /// Packets of the target.
        Packets = "packets",
        /// Clients seen, by IP.
        Clients = "clients",
        /// Connections seen.
        Connections = "connections",
        /// Distinct keys seen; a lower bound where the table is full.
        Keys = "keys",
    }
}

impl Figure {
    /// The figure of a snapshot; nothing where it has none.
    pub fn value(self, snapshot: &Snapshot) -> Option<f64> {
        let counters = &snapshot.totals.counters;
        let seconds = snapshot.length().as_secs_f64();
        let known = counters.hits.saturating_add(counters.misses);
        let latency = |micros: u64| (snapshot.latency.samples > 0).then_some(micros as f64);
        let rate = |count: u64| (seconds > 0.0).then(|| count as f64 / seconds);
        let share = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
        let hottest = |rows: &mut dyn Iterator<Item = (&Counters, u64)>| {
            let certain = rows.map(|(counters, err)| counters.requests().saturating_sub(err)).max();
            share(certain.unwrap_or(0), counters.requests())
        };
        match self {
            Figure::Requests => Some(counters.requests() as f64),
            Figure::RequestRate => rate(counters.requests()),
            Figure::KeyShare => hottest(&mut snapshot.keys.iter().map(|row| (&row.counters, row.err))),
            Figure::ClientShare => hottest(&mut snapshot.clients.iter().map(|row| (&row.counters, row.err))),
            Figure::HitRatio => share(counters.hits, known),
            Figure::MissRatio => share(counters.misses, known),
            Figure::Errors => Some(counters.errors as f64),
            Figure::ErrorRatio => share(counters.errors, counters.requests()),
            Figure::BytesInRate => rate(counters.bytes_in),
            Figure::BytesOutRate => rate(counters.bytes_out),
            Figure::P50 => latency(snapshot.latency.p50),
            Figure::P90 => latency(snapshot.latency.p90),
            Figure::P99 => latency(snapshot.latency.p99),
            Figure::Max => latency(snapshot.latency.max),
            Figure::Loss => Some(ratio(loss_share(snapshot))),
            Figure::Packets => Some(snapshot.loss.packets as f64),
            Figure::Clients => Some(snapshot.clients_seen as f64),
            Figure::Connections => Some(snapshot.connections_seen as f64),
            Figure::Keys => Some(snapshot.keys_seen as f64),
        }
    }
}

choices! {
    /// How a figure is compared.
    Comparison {
        /// Greater.
        Greater = ">",
        /// Greater or equal.
        AtLeast = ">=",
        /// Less.
        Less = "<",
        /// Less or equal.
        AtMost = "<=",
        /// Equal.
        Equal = "=",
        /// Not equal.
        NotEqual = "!=",
    }
}

impl Comparison {
    #[expect(
        clippy::float_cmp,
        reason = "counts are whole, and equality of ratios is the operator's question"
    )]
    fn holds(self, value: f64, limit: f64) -> bool {
        match self {
            Comparison::Greater => value > limit,
            Comparison::AtLeast => value >= limit,
            Comparison::Less => value < limit,
            Comparison::AtMost => value <= limit,
            Comparison::Equal => value == limit,
            Comparison::NotEqual => value != limit,
        }
    }
}

/// What a script wants to be told of. Holds when each of its terms does.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    text: String,
    terms: Vec<Term>,
}

#[derive(Clone, Debug, PartialEq)]
struct Term {
    figure: Figure,
    comparison: Comparison,
    limit: f64,
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Condition {
    /// The snapshot that conditions are asked of: with the rows that the report shows.
    pub fn of_shown_rows<'a>(snapshot: &'a Snapshot, filter: Option<&Filter>) -> Cow<'a, Snapshot> {
        filter.map_or(Cow::Borrowed(snapshot), |filter| filter.apply(snapshot))
    }

    /// Where it holds: what held and when, in one line without any key. Nothing where it does not hold.
    pub fn check(&self, snapshot: &Snapshot) -> Option<String> {
        let mut figures = Vec::with_capacity(self.terms.len());
        for term in &self.terms {
            let value =
                term.figure.value(snapshot).filter(|value| term.comparison.holds(*value, term.limit))?;
            figures.push(format!("{} is {}", term.figure.name(), number(value)));
        }
        let target = super::escape::escape_name(&snapshot.target);
        let end = units::instant_short(snapshot.end);
        Some(format!("{target} at {end}: {} ({})", self.text, figures.join(", ")))
    }
}

/// With what precision is left when noise is cut off.
fn number(value: f64) -> String {
    let text = format!("{value:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

impl FromStr for Condition {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Condition, FilterError> {
        // `key_share>0.3` is what people type.
        let spaced = spaced(text);
        let text = spaced.as_str();
        let words = words(text).map_err(|(word, message)| word.refuse(text, message))?;
        let mut terms = Vec::new();
        let mut rest = words.as_slice();
        loop {
            let [figure, comparison, limit, tail @ ..] = rest else {
                let message = "expected FIGURE OPERATOR NUMBER, such as key_share > 0.3 and requests >= 1000";
                return Err(rest.last().unwrap_or(&Word::at_end(text)).refuse(text, message));
            };
            terms.push(term(text, figure, comparison, limit)?);
            match tail {
                [] => return Ok(Condition { text: text.trim().to_string(), terms }),
                [and, tail @ ..] if and.text == "and" => rest = tail,
                [other, ..] => {
                    let message = "expected \"and\" or the end; write --fail-if twice for \"or\"";
                    return Err(other.refuse(text, message));
                }
            }
        }
    }
}

/// Operators with a blank on either side.
fn spaced(text: &str) -> String {
    let mut spaced = String::with_capacity(text.len() + 8);
    let is_operator = |character: char| matches!(character, '<' | '>' | '=' | '!');
    let mut before = None;
    for character in text.chars() {
        let boundary = before.is_some_and(|before| is_operator(before) != is_operator(character));
        let touches =
            before.is_some_and(|before: char| !before.is_whitespace()) && !character.is_whitespace();
        if boundary && touches {
            spaced.push(' ');
        }
        spaced.push(character);
        before = Some(character);
    }
    spaced
}

fn term(text: &str, figure: &Word, comparison: &Word, limit: &Word) -> Result<Term, FilterError> {
    let Some(known) = Figure::from_name(&figure.text) else {
        let meant = crate::report::nearest(&figure.text, Figure::NAMES)
            .map_or_else(String::new, |name| format!("; did you mean {name}?"));
        let message =
            format!("unknown figure {:?}{meant}\n  known are {}", figure.text, Figure::NAMES.join(" "));
        return Err(figure.refuse(text, message));
    };
    let Some(operator) = Comparison::from_name(&comparison.text) else {
        let message =
            format!("{:?} is no operator; allowed are {}", comparison.text, Comparison::NAMES.join(" "));
        return Err(comparison.refuse(text, message));
    };
    let (digits, factor) = match limit.text.strip_suffix('%') {
        Some(digits) => (digits, 0.01),
        None => (limit.text.as_str(), 1.0),
    };
    // `f64` would also take "inf", "nan" and "1e9".
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    match digits.parse::<f64>().ok().filter(|_| plain) {
        Some(value) => Ok(Term { figure: known, comparison: operator, limit: value * factor }),
        None => {
            let message = format!("{:?} is not a number; write 1000, 0.3 or 30%", limit.text);
            Err(limit.refuse(text, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::anomaly::Anomaly;
    use crate::capture::ladder::Rung;
    use crate::collector::snapshot::{KeyRow, LatencySummary};
    use crate::model::Timestamp;

    fn snapshot() -> Snapshot {
        let mut snapshot = Snapshot {
            target: "cache\x1b[2J".to_string(),
            start: Timestamp::from_parts(1_795_348_800, 0),
            end: Timestamp::from_parts(1_795_348_810, 0),
            latency: LatencySummary { p50: 100, p90: 200, p99: 900, max: 1_000, samples: 10 },
            ..Snapshot::default()
        };
        let of = |gets, hits| Counters { gets, hits, misses: gets - hits, ..Counters::default() };
        snapshot.totals.counters = Counters { errors: 5, bytes_out: 1_000, ..of(1_000, 750) };
        for (key, gets, err) in [("canary", 500, 100), ("b", 350, 0)] {
            let counters = of(gets, gets);
            snapshot.keys.push(KeyRow {
                key: key.as_bytes().into(),
                truncated: false,
                err,
                counters,
                clients: Vec::new(),
            });
        }
        snapshot
    }

    fn holds(text: &str) -> bool {
        text.parse::<Condition>().unwrap_or_else(|error| panic!("{error}")).check(&snapshot()).is_some()
    }

    #[test]
    fn conditions_hold_or_not() {
        // What the key certainly had: 400 of 1,000.
        for text in [
            "key_share > 0.3",
            "key_share>0.3",
            "key_share > 30% and requests >= 1000",
            "key_share = 0.4",
            "key_share<=40%",
            "hit_ratio = 0.75",
            "miss_ratio < 0.26",
            "errors != 0",
            "error_ratio = 0.5%",
            "p99_us >= 900",
            "bytes_out_per_s = 100",
            "requests_per_s = 100",
            "client_share = 0",
            "loss = 0",
        ] {
            assert!(holds(text), "{text}");
        }
        for text in
            ["key_share > 0.4", "requests > 1000", "key_share > 0.3 and requests > 1000", "packets > 0"]
        {
            assert!(!holds(text), "{text}");
        }
    }

    /// Half of the bytes are gaps, and a tenth of the packets were dropped.
    #[test]
    fn what_the_load_ladder_leaves_out_is_no_loss() {
        let mut lossy = snapshot();
        lossy.loss.anomalies.add(Anomaly::GapBytes, 1_000);
        (lossy.loss.packets, lossy.loss.ring_dropped) = (900, 100);
        for (rung, condition) in
            [(Rung::Full, "loss = 50%"), (Rung::Heads, "loss = 10%"), (Rung::Requests, "loss = 10%")]
        {
            lossy.health.rung = rung;
            assert!(condition.parse::<Condition>().unwrap().check(&lossy).is_some(), "{condition}");
        }
    }

    #[test]
    fn what_has_no_value_makes_no_condition_true() {
        let empty = Snapshot::default();
        for figure in ["hit_ratio", "miss_ratio", "p99_us", "key_share", "error_ratio", "requests_per_s"] {
            for operator in Comparison::NAMES {
                let condition: Condition = format!("{figure} {operator} 0").parse().unwrap();
                assert_eq!(condition.check(&empty), None, "{condition}");
            }
        }
        assert!("requests = 0".parse::<Condition>().unwrap().check(&empty).is_some());
    }

    #[test]
    fn what_held_is_told_without_a_key_and_without_driving_a_terminal() {
        let condition: Condition = " key_share>0.3 and p99_us > 1 ".parse().unwrap();
        assert_eq!(
            condition.check(&snapshot()).unwrap(),
            "cache\\x1b[2J at 2026-11-22T12:00:10Z: key_share > 0.3 and p99_us > 1 (key_share is 0.4, p99_us is 900)"
        );
    }

    #[test]
    fn wrong_conditions_are_explained() {
        let error = |text: &str| text.parse::<Condition>().expect_err(text).to_string();
        assert_eq!(
            error("key_shar > 0.3"),
            format!(
                "unknown figure \"key_shar\"; did you mean key_share?\n  known are {}\n  key_shar > 0.3\n  ^^^^^^^^",
                Figure::NAMES.join(" ")
            )
        );
        for (text, part) in [
            ("", "expected FIGURE OPERATOR NUMBER"),
            ("key_share", "expected FIGURE OPERATOR NUMBER"),
            ("key_share >", "expected FIGURE OPERATOR NUMBER"),
            ("key_share => 1", "\"=>\" is no operator; allowed are > >= < <= = !="),
            ("key_share ~ 1", "\"~\" is no operator"),
            ("key_share > much", "\"much\" is not a number; write 1000, 0.3 or 30%"),
            ("key_share > -1", "is not a number"),
            ("key_share > inf", "is not a number"),
            ("key_share > 1.2.3", "is not a number"),
            ("key_share > %", "is not a number"),
            ("key_share > 1 or errors > 1", "--fail-if twice for \"or\""),
            ("key_share > 1 and", "expected FIGURE OPERATOR NUMBER"),
            ("key_share > 'x", "the quote is never closed"),
        ] {
            assert!(error(text).contains(part), "{text}: {}", error(text));
        }
    }
}

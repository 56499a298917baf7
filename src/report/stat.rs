//! One line for each interval and target, after the manner of vmstat: to be left running beside other work.

use super::contents::{Contents, loss_share};
use super::escape::{escape, escape_name, shorten};
use super::units;
use crate::collector::snapshot::KeyRow;
use std::io::{self, Write};
use std::time::Duration;

/// Lines under one header: those of a small terminal.
const LINES_PER_HEADER: usize = 20;
/// A key keeps this much of itself on the narrowest terminal.
const KEY_WIDTH_MIN: usize = 12;

/// The columns between name and key, with their widths: room for the greatest figures that `units` writes. Units stand in the
/// names, or, as k, M and G (powers of ten), beside the figures.
const COLUMNS: [(&str, usize); 7] =
    [("REQ/S", 7), ("HIT%", 5), ("IN B/S", 7), ("OUT B/S", 7), ("ERR/S", 6), ("P99 ms", 7), ("LOSS%", 5)];

/// What the lines so far decide about the next.
#[derive(Debug, Default)]
pub(super) struct StatLines {
    since_header: Option<usize>,
    /// Width of the names' column under the last header; 0 where there is one target only.
    name_width: usize,
    /// Whether intervals end between seconds.
    with_millis: bool,
}

impl StatLines {
    /// Writes the line of one target of an interval; `names` are those of all targets.
    pub(super) fn write(
        &mut self,
        out: &mut impl Write,
        contents: &Contents<'_>,
        names: &[String],
    ) -> io::Result<()> {
        let name_width = match names {
            [] | [_] => 0,
            names => names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max("TARGET".len()),
        };
        let is_due = self.since_header.is_none_or(|lines| lines >= LINES_PER_HEADER);
        if is_due || name_width != self.name_width {
            (self.name_width, self.with_millis) = (name_width, ends_between_seconds(contents));
            self.since_header = Some(0);
            let names = COLUMNS.map(|(name, _)| name.to_string());
            writeln!(out, "{}", self.line("UTC", "TARGET", &names, "HOTTEST KEY"))?;
        }
        let time = self.time_of_day(contents);
        self.since_header = self.since_header.map(|lines| lines + 1);
        let line = self.line(&time, &escape_name(&contents.snapshot.target), &figures(contents), "");
        let room = contents.options.width.saturating_sub(line.chars().count() + 2).max(KEY_WIDTH_MIN);
        writeln!(out, "{line}  {}", hottest_key(contents, room))
    }

    fn line(&self, time: &str, name: &str, figures: &[String; COLUMNS.len()], key: &str) -> String {
        let time_width = if self.with_millis { "00:00:00.000".len() } else { "00:00:00".len() };
        let mut line = format!("{time:<time_width$}");
        if self.name_width > 0 {
            line.push_str(&format!("  {name:<0$}", self.name_width));
        }
        for (figure, (_, width)) in figures.iter().zip(COLUMNS) {
            line.push_str(&format!("  {figure:>width$}"));
        }
        if !key.is_empty() {
            line.push_str(&format!("  {key}"));
        }
        line
    }

    /// The end of the interval: hours, minutes and seconds in UTC.
    fn time_of_day(&self, contents: &Contents<'_>) -> String {
        let instant = units::instant(contents.snapshot.end);
        let time = instant.split_once('T').map_or(instant.as_str(), |(_, time)| time);
        let characters = if self.with_millis { "00:00:00.000".len() } else { "00:00:00".len() };
        time.chars().take(characters).collect()
    }
}

fn figures(contents: &Contents<'_>) -> [String; COLUMNS.len()] {
    let snapshot = contents.snapshot;
    let (counters, length) = (&snapshot.totals.counters, snapshot.length());
    let (lost, whole) = loss_share(snapshot);
    let known = counters.hits.saturating_add(counters.misses);
    [
        units::rate(contents.requests(), length),
        units::percent(counters.hits, known, 1),
        units::rate(counters.bytes_in, length),
        units::rate(counters.bytes_out, length),
        units::rate(counters.errors, length),
        if snapshot.latency.samples > 0 { units::millis(snapshot.latency.p99) } else { "-".to_string() },
        units::percent(lost, whole.max(1), 2),
    ]
}

/// With its share of the requests; `-` where nothing was asked for.
fn hottest_key(contents: &Contents<'_>, room: usize) -> String {
    let Some(row) = contents.hot_keys.first() else { return "-".to_string() };
    let KeyRow { key, truncated, counters, .. } = row;
    let goes_on = if *truncated { "…" } else { "" };
    let share = units::percent(counters.requests(), contents.requests(), 0);
    let suffix = format!("{goes_on} ({share}%)");
    let room = room.saturating_sub(suffix.chars().count()).max(1);
    format!("{}{suffix}", shorten(&escape(key), room))
}

/// Whether this interval, and so probably the next ones, end between seconds.
fn ends_between_seconds(contents: &Contents<'_>) -> bool {
    let snapshot = contents.snapshot;
    let is_short = snapshot.length() < Duration::from_secs(1) && !snapshot.partial;
    is_short || !snapshot.end.nanos().is_multiple_of(1_000_000_000)
}

//! Figures as people read them. Nothing here rounds a difference away: what is not nothing never shows as nothing, and
//! what is not all never shows as all.

use crate::model::Timestamp;
use std::time::Duration;

/// A count with its thousands apart: `634,112`.
pub(crate) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `part` of `whole` in per cent without the sign, with `decimals` digits; `-` when there is no whole.
pub(crate) fn percent(part: u64, whole: u64, decimals: usize) -> String {
    if whole == 0 {
        return "-".to_string();
    }
    let value = part as f64 * 100.0 / whole as f64;
    let step = 0.1_f64.powi(i32::try_from(decimals).unwrap_or(1));
    if part > 0 && value < step {
        format!("<{step:.decimals$}")
    } else if part < whole && value > 100.0 - step {
        format!("{:.decimals$}", 100.0 - step)
    } else {
        format!("{value:.decimals$}")
    }
}

/// A number a second: `18.8k`, `412`, `0.3`; `-` for an interval of no length.
pub(crate) fn rate(value: u64, length: Duration) -> String {
    if length.is_zero() {
        return "-".to_string();
    }
    let (number, unit) = scale(value as f64 / length.as_secs_f64());
    if unit.is_empty() { number } else { format!("{number}{unit}") }
}

/// Bytes a second: `21.1 M`, `3.2 k`, `912`; `-` for an interval of no length.
pub(crate) fn byte_rate(bytes: u64, length: Duration) -> String {
    if length.is_zero() {
        return "-".to_string();
    }
    let (number, unit) = scale(bytes as f64 / length.as_secs_f64());
    if unit.is_empty() { number } else { format!("{number} {unit}") }
}

/// A number of bytes: `1.2 MB`.
pub(crate) fn bytes(bytes: u64) -> String {
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let (number, unit) = scale(bytes as f64);
    format!("{number} {unit}B")
}

/// Three or four digits and a decimal prefix. Below ten thousand there is none, so that small numbers stay exact.
fn scale(value: f64) -> (String, &'static str) {
    const PREFIXES: [(f64, &str); 5] = [(1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    // 999,950 would be written as 1000.0k.
    let prefix = PREFIXES.iter().find(|(unit, _)| value >= unit * 0.99995 && value >= 1000.0);
    match prefix {
        Some((unit, name)) => (format!("{:.1}", value / unit), name),
        None if value > 0.0 && value < 0.1 => ("<0.1".to_string(), ""),
        None if value < 10.0 && value.fract() > 0.0 => (format!("{value:.1}"), ""),
        None => (format!("{value:.0}"), ""),
    }
}

/// Microseconds as milliseconds: `0.12`, `9.2`, `1,204`.
pub(crate) fn millis(micros: u64) -> String {
    let value = micros as f64 / 1000.0;
    match micros {
        0..1_000 => format!("{value:.2}"),
        1_000..100_000 => format!("{value:.1}"),
        _ => count((micros + 500) / 1000),
    }
}

/// The length of an interval: `10s`, `7.312s`, `2m05s`, `3h02m05s`.
pub(crate) fn length(length: Duration) -> String {
    let seconds = length.as_secs();
    if seconds < 60 {
        return match length.subsec_millis() {
            0 if length.subsec_nanos() > 0 && seconds == 0 => format!("{}us", length.subsec_micros()),
            0 => format!("{seconds}s"),
            millis => format!("{seconds}.{millis:03}s"),
        };
    }
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes, seconds) {
        (0, minutes, 0) => format!("{minutes}m"),
        (0, minutes, seconds) => format!("{minutes}m{seconds:02}s"),
        (hours, 0, 0) => format!("{hours}h"),
        (hours, minutes, seconds) => format!("{hours}h{minutes:02}m{seconds:02}s"),
    }
}

/// RFC 3339 in UTC with six fractional digits: `2026-11-22T12:00:00.000000Z`.
pub(crate) fn instant(timestamp: Timestamp) -> String {
    format!("{:.6}", moment(timestamp))
}

/// RFC 3339 in UTC, to the second where that is exact and to the millisecond otherwise.
pub(crate) fn instant_short(timestamp: Timestamp) -> String {
    if timestamp.nanos().is_multiple_of(1_000_000_000) {
        format!("{:.0}", moment(timestamp))
    } else {
        format!("{:.3}", moment(timestamp))
    }
}

fn moment(timestamp: Timestamp) -> jiff::Timestamp {
    // 64 bits of nanoseconds end in 2554, well inside jiff's range, so the epoch is never shown.
    jiff::Timestamp::from_nanosecond(i128::from(timestamp.nanos())).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
}

/// Seconds without needless zeros, for columns that machines read: `10`, `7.312`.
pub(crate) fn seconds(length: Duration) -> String {
    let micros = length.subsec_micros();
    if micros == 0 {
        return length.as_secs().to_string();
    }
    format!("{}.{micros:06}", length.as_secs()).trim_end_matches('0').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_rates() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(634_112), "634,112");
        assert_eq!(count(u64::MAX), "18,446,744,073,709,551,615");
        let ten = Duration::from_secs(10);
        assert_eq!(rate(412_105, ten), "41.2k");
        assert_eq!(rate(9_999_999, ten), "1.0M");
        assert_eq!(rate(3, ten), "0.3");
        assert_eq!(rate(0, ten), "0");
        assert_eq!(rate(5, Duration::ZERO), "-");
        assert_eq!(byte_rate(211_000_000, ten), "21.1 M");
        assert_eq!(bytes(912), "912 B");
        assert_eq!(bytes(1_250_000), "1.2 MB");
    }

    #[test]
    fn percentages_never_round_a_difference_away() {
        assert_eq!(percent(412_105, 634_112, 1), "65.0");
        assert_eq!(percent(1, 1_000_000, 2), "<0.01");
        assert_eq!(percent(0, 10, 2), "0.00");
        assert_eq!(percent(999_999, 1_000_000, 1), "99.9");
        assert_eq!(percent(10, 10, 1), "100.0");
        assert_eq!(percent(0, 0, 1), "-");
    }

    #[test]
    fn times() {
        assert_eq!(millis(120), "0.12");
        assert_eq!(millis(9_200), "9.2");
        assert_eq!(millis(1_204_400), "1,204");
        assert_eq!(length(Duration::from_secs(10)), "10s");
        assert_eq!(length(Duration::from_millis(7_312)), "7.312s");
        assert_eq!(length(Duration::from_secs(125)), "2m05s");
        assert_eq!(length(Duration::from_secs(3600)), "1h");
        assert_eq!(length(Duration::from_secs(3605)), "1h00m05s");
        let noon = Timestamp::from_parts(1_795_348_810, 0);
        assert_eq!(instant(noon), "2026-11-22T12:00:10.000000Z");
        assert_eq!(instant_short(noon), "2026-11-22T12:00:10Z");
        assert_eq!(seconds(Duration::from_millis(7_310)), "7.31");
    }
}

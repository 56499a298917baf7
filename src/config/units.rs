//! Sizes and durations with their units, read and written.

use std::time::Duration;

const BYTE_UNITS: &[(&str, u64)] = &[
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("B", 1),
];

const TIME_UNITS: &[(&str, u64)] =
    &[("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// What a size looks like, for error messages.
pub(super) const BYTES_SYNTAX: &str = "a number with its unit, such as \"300MB\" or \"64MiB\"";

/// What a duration looks like, for error messages.
pub(super) const DURATION_SYNTAX: &str = "a number with its unit, such as \"10s\", \"2m\" or \"1h\"";

/// `300MB`, `64 MiB`; MB are millions of bytes, MiB are 2^20. Case is forgiven where it is not needed to tell units apart.
pub(super) fn parse_bytes(text: &str) -> Option<u64> {
    parse(text, BYTE_UNITS)
}

/// `10s`, `2m`, `500ms`.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    parse(text, TIME_UNITS).map(Duration::from_millis)
}

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|character: char| !character.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit.trim_start()))?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// With the greatest unit that leaves a whole number; of two such, the shorter number.
pub(super) fn show_bytes(bytes: u64) -> String {
    let exact = BYTE_UNITS.iter().filter(|(_, factor)| bytes.is_multiple_of(*factor));
    let best = exact.min_by_key(|(_, factor)| (bytes / factor).max(1));
    best.map_or_else(|| format!("{bytes}B"), |(name, factor)| format!("{}{name}", bytes / factor))
}

/// With the greatest unit that leaves a whole number.
pub(super) fn show_duration(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let exact = TIME_UNITS.iter().find(|(_, factor)| millis.is_multiple_of(*factor));
    exact.map_or_else(|| format!("{millis}ms"), |(name, factor)| format!("{}{name}", millis / factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_bytes("300MB"), Some(300_000_000));
        assert_eq!(parse_bytes("64 MiB"), Some(64 << 20));
        assert_eq!(parse_bytes("64mib"), Some(64 << 20));
        for wrong in ["", "64", "64M", "MB", "-1MB", "1.5MB", "99999999999999999999MB", "99999999999GB"] {
            assert_eq!(parse_bytes(wrong), None, "{wrong}");
        }
        for text in ["300MB", "64MiB", "62MiB", "4MB", "1B", "1GB", "1GiB"] {
            assert_eq!(show_bytes(parse_bytes(text).unwrap()), text);
        }
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("10s"), Some(Duration::from_secs(10)));
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_duration("10"), None);
        for text in ["10s", "2m", "1h", "1d", "90s", "500ms"] {
            assert_eq!(show_duration(parse_duration(text).unwrap()), text);
        }
    }
}

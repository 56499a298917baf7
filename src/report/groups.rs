//! Key groups and key shapes: many keys of one kind, added up.
//!
//! A group is named by the operator, with a regular expression; the first that matches wins. A shape is found without
//! being told: the parts of a key that look like an identifier become `*`.

use super::escape::escape_name;
use crate::collector::snapshot::{Counters, KeyRow};
use regex::bytes::Regex;
use std::borrow::Cow;
use std::collections::HashMap;

/// The name of what no group matches.
pub(crate) const UNGROUPED: &str = "(none of the groups)";

/// A name for the keys that a regular expression matches.
#[derive(Clone, Debug)]
pub struct KeyGroup {
    /// The name in reports.
    pub name: String,
    /// What the keys look like; matched against their exact bytes.
    pub pattern: Regex,
}

impl PartialEq for KeyGroup {
    fn eq(&self, other: &KeyGroup) -> bool {
        self.name == other.name && self.pattern.as_str() == other.pattern.as_str()
    }
}

/// The sums over the keys of one group or shape.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// The group's name, or the shape's bytes.
    pub name: Vec<u8>,
    /// Keys held that belong to it.
    pub keys: u64,
    /// Sum of the keys' error bounds.
    pub err: u64,
    /// Sum of the keys' figures.
    pub counters: Counters,
    /// Its hottest key and that key's requests.
    pub top_key: Option<(Box<[u8]>, u64)>,
}

impl Tally {
    /// The name of a group: the operator's text, unlike a shape, which is made of clients' bytes.
    pub(crate) fn group_name(&self) -> String {
        escape_name(&String::from_utf8_lossy(&self.name))
    }

    fn add(&mut self, row: &KeyRow) {
        let requests = row.counters.requests();
        self.keys += 1;
        self.err = self.err.saturating_add(row.err);
        self.counters.merge(&row.counters);
        let hotter = self
            .top_key
            .as_ref()
            .is_none_or(|(key, most)| requests > *most || (requests == *most && row.key < *key));
        if hotter {
            self.top_key = Some((row.key.clone(), requests));
        }
    }
}

/// Sums by the operator's groups, the unmatched rest last; empty when there are no groups.
pub(crate) fn by_group(keys: &[KeyRow], groups: &[KeyGroup]) -> Vec<Tally> {
    if groups.is_empty() {
        return Vec::new();
    }
    let names = groups.iter().map(|group| group.name.as_str()).chain([UNGROUPED]);
    let mut tallies: Vec<Tally> =
        names.map(|name| Tally { name: name.as_bytes().to_vec(), ..Tally::default() }).collect();
    for row in keys {
        let index = groups.iter().position(|group| group.pattern.is_match(&row.key)).unwrap_or(groups.len());
        tallies[index].add(row);
    }
    tallies.retain(|tally| tally.keys > 0);
    tallies
}

/// Sums by shape, in no particular order.
pub(crate) fn by_shape(keys: &[KeyRow]) -> Vec<Tally> {
    let mut tallies: HashMap<Vec<u8>, Tally> = HashMap::new();
    for row in keys {
        let shape = shape(&row.key);
        // The shape is copied once for each distinct one, not for each key.
        if let Some(tally) = tallies.get_mut(shape.as_ref()) {
            tally.add(row);
        } else {
            let name = shape.into_owned();
            tallies.entry(name.clone()).or_insert(Tally { name, ..Tally::default() }).add(row);
        }
    }
    tallies.into_values().collect()
}

/// The shape of a key: runs of digits, UUIDs and runs of eight or more hexadecimal digits (with a digit among them,
/// or "deadbeef" and "facade" would be identifiers) become `*`.
pub fn shape(key: &[u8]) -> Cow<'_, [u8]> {
    if !key.iter().any(u8::is_ascii_digit) {
        return Cow::Borrowed(key);
    }
    let mut shape = Vec::with_capacity(key.len());
    let mut at = 0;
    while at < key.len() {
        match identifier_length(key, at) {
            0 => {
                shape.push(key[at]);
                at += 1;
            }
            length => {
                shape.push(b'*');
                at += length;
            }
        }
    }
    Cow::Owned(shape)
}

/// Length of the identifier that starts at `at`; 0 when none does.
fn identifier_length(key: &[u8], at: usize) -> usize {
    const HEX_RUN_MIN: usize = 8;
    let rest = &key[at..];
    // Hexadecimal runs begin where a word does: the "ded12345" of "decided12345" is none.
    if at == 0 || !key[at - 1].is_ascii_alphanumeric() {
        if is_uuid(rest) {
            return UUID_LENGTH;
        }
        let hex = rest.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let whole_word = rest.get(hex).is_none_or(|byte| !byte.is_ascii_alphanumeric());
        if hex >= HEX_RUN_MIN && whole_word && rest[..hex].iter().any(u8::is_ascii_digit) {
            return hex;
        }
    }
    rest.iter().take_while(|byte| byte.is_ascii_digit()).count()
}

const UUID_LENGTH: usize = 36;

fn is_uuid(bytes: &[u8]) -> bool {
    bytes.len() >= UUID_LENGTH
        && bytes[..UUID_LENGTH].iter().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape_text(key: &str) -> String {
        String::from_utf8(shape(key.as_bytes()).into_owned()).unwrap()
    }

    #[test]
    fn shapes() {
        assert_eq!(shape_text("user:123:profile"), "user:*:profile");
        assert_eq!(shape_text("session:deadbeef01"), "session:*");
        assert_eq!(shape_text("obj:550e8400-e29b-41d4-a716-446655440000:meta"), "obj:*:meta");
        assert_eq!(shape_text("decided12345"), "decided*");
        assert_eq!(shape_text("facade:deadbeef"), "facade:deadbeef");
        assert_eq!(shape_text("v2.item_7"), "v*.item_*");
        assert_eq!(shape_text("000"), "*");
        assert_eq!(shape_text(""), "");
    }

    #[test]
    fn the_first_group_that_matches_wins() {
        let group = |name: &str, pattern: &str| KeyGroup {
            name: name.to_string(),
            pattern: Regex::new(pattern).unwrap(),
        };
        let groups = [group("users", "^user:"), group("all", ".")];
        let row = |key: &str, gets: u64| KeyRow {
            key: key.as_bytes().into(),
            truncated: false,
            err: 1,
            counters: Counters { gets, ..Counters::default() },
            clients: Vec::new(),
        };
        let keys = [row("user:1", 5), row("x", 2), row("user:2", 7)];
        let tallies = by_group(&keys, &groups);
        assert_eq!(tallies[0].name, b"users");
        assert_eq!((tallies[0].keys, tallies[0].err, tallies[0].counters.gets), (2, 2, 12));
        assert_eq!(tallies[0].top_key, Some((b"user:2"[..].into(), 7)));
        assert_eq!(tallies[1].keys, 1);
        assert!(by_group(&keys, &[]).is_empty());
    }
}

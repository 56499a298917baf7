//! What a row of short key is always seen with, kept behind the key: of a connection, the server at its other end.

use super::{INLINE_BYTES, Place, Slot, Table, WAYS};

/// Bytes of a companion.
pub(in crate::collector) const COMPANION_BYTES: usize = 18;

/// Where it stands in `Slot::key`, behind any key of at most so many bytes. A new row has zeros there.
const START: usize = INLINE_BYTES - COMPANION_BYTES;

/// Not known yet.
const NONE: [u8; COMPANION_BYTES] = [0; COMPANION_BYTES];

/// Not always the same one.
const SEVERAL: [u8; COMPANION_BYTES] = [u8::MAX; COMPANION_BYTES];

impl Table {
    /// Notes with what the row of the last update was seen. Its key, like all of such a table, has at most 25 bytes.
    pub(in crate::collector) fn attach(&mut self, place: Place, companion: &[u8; COMPANION_BYTES]) {
        let slot = &mut self.buckets[place.0 / WAYS].slots[place.0 % WAYS];
        debug_assert!(usize::from(slot.length) <= START);
        let known = slot.key.last_chunk_mut().expect("a slot has room for a companion");
        if *known == NONE {
            *known = *companion;
        } else if known != companion {
            *known = SEVERAL;
        }
    }
}

impl Slot {
    /// The only companion that the key had in this interval. `None`: it had several, or may have had one while it had no row.
    pub(in crate::collector) fn companion(&self) -> Option<&[u8; COMPANION_BYTES]> {
        let companion = self.key.last_chunk()?;
        (self.sums.err == 0 && *companion != NONE && *companion != SEVERAL).then_some(companion)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Delta, Rows};
    use super::*;
    use crate::collector::arena::Arena;

    /// The companions of the rows of a table of one bucket that sees these keys with these companions.
    fn companions(seen: &[(u8, u8)]) -> Vec<(u8, Option<u8>)> {
        let mut table = Table::new(&mut Arena::new(1 << 20).unwrap(), 1, 1).unwrap();
        for &(key, companion) in seen {
            let place = table.update(u64::from(key), &[key], &Delta::NONE, 16);
            table.attach(place, &[companion; COMPANION_BYTES]);
        }
        table.begin_close(Rows::default());
        let rows = table.end_close().unwrap();
        let mut found: Vec<_> =
            rows.rows().iter().map(|slot| (slot.key[0], slot.companion().map(|bytes| bytes[0]))).collect();
        found.sort_unstable();
        found
    }

    #[test]
    fn a_row_has_one_companion_or_none() {
        let seen = [(1, 7), (2, 7), (1, 7), (2, 8), (2, 7), (3, 9)];
        assert_eq!(companions(&seen), [(1, Some(7)), (2, None), (3, Some(9))]);
    }

    /// Key 1 was there with another companion, and nothing of that is left in its row.
    #[test]
    fn a_row_that_was_pushed_out_is_not_certain_of_its_companion() {
        let mut seen: Vec<(u8, u8)> = (1..=9).map(|key| (key, 7)).collect();
        let full = companions(&seen);
        // The ninth one took its place.
        assert_eq!(full, (2..=9).map(|key| (key, Some(7))).collect::<Vec<_>>());
        seen.push((1, 8));
        assert!(companions(&seen).contains(&(1, None)));
    }
}

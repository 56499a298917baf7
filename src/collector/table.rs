//! A table of rows that is allocated once: find or add a row, never grow, and count what finds no room.

use crate::model::Endpoint;
use foldhash::quality::FixedState;
use hashbrown::HashTable;
use std::collections::TryReserveError;
use std::hash::{BuildHasher, RandomState};

/// How the keys of a table are stored.
pub(super) trait KeyStore: Sized {
    /// A key as it is looked up.
    type Key: ?Sized + std::hash::Hash;

    /// Room for so many keys.
    fn with_capacity(rows: usize) -> Result<Self, TryReserveError>;
    /// Whether the key of a row is this one.
    fn is(&self, row: usize, key: &Self::Key) -> bool;
    /// Stores the key of the next row; `false` when there is no room for it.
    fn push(&mut self, key: &Self::Key) -> bool;
    fn clear(&mut self);
}

/// Byte strings, one behind the other.
pub(super) struct ByteKeys {
    bytes: Vec<u8>,
    bytes_max: usize,
    ends: Vec<u32>,
}

/// Mean key length that room is made for; with longer keys the bytes run out before the rows.
const KEY_BYTES_MEAN: usize = 64;

impl ByteKeys {
    pub(super) fn get(&self, row: usize) -> &[u8] {
        let start = if row == 0 { 0 } else { self.ends[row - 1] as usize };
        &self.bytes[start..self.ends[row] as usize]
    }
}

impl KeyStore for ByteKeys {
    type Key = [u8];

    fn with_capacity(rows: usize) -> Result<ByteKeys, TryReserveError> {
        let bytes_max = (rows * KEY_BYTES_MEAN).min(u32::MAX as usize);
        let mut store = ByteKeys { bytes: Vec::new(), bytes_max, ends: Vec::new() };
        store.bytes.try_reserve_exact(bytes_max)?;
        store.ends.try_reserve_exact(rows)?;
        Ok(store)
    }

    #[inline]
    fn is(&self, row: usize, key: &[u8]) -> bool {
        self.get(row) == key
    }

    fn push(&mut self, key: &[u8]) -> bool {
        let fits = self.bytes.len() + key.len() <= self.bytes_max;
        if fits {
            self.bytes.extend_from_slice(key);
            // `bytes_max` is no more than what 32 bits can say.
            self.ends.push(self.bytes.len() as u32);
        }
        fits
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }
}

/// Keys of fixed size.
pub(super) struct PlainKeys<K>(Vec<K>);

pub(super) type EndpointKeys = PlainKeys<Endpoint>;
/// Pairs of row numbers in two other tables.
pub(super) type IdPairs = PlainKeys<(u32, u32)>;

impl<K: Copy> PlainKeys<K> {
    pub(super) fn get(&self, row: usize) -> K {
        self.0[row]
    }
}

impl<K: Copy + PartialEq + std::hash::Hash> KeyStore for PlainKeys<K> {
    type Key = K;

    fn with_capacity(rows: usize) -> Result<PlainKeys<K>, TryReserveError> {
        let mut keys = Vec::new();
        keys.try_reserve_exact(rows)?;
        Ok(PlainKeys(keys))
    }

    #[inline]
    fn is(&self, row: usize, key: &K) -> bool {
        self.0[row] == *key
    }

    fn push(&mut self, key: &K) -> bool {
        self.0.push(*key);
        true
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

/// Rows with a value `V` each, found by key.
pub(super) struct CountTable<S: KeyStore, V> {
    index: HashTable<u32>,
    hasher: FixedState,
    pub(super) keys: S,
    pub(super) values: Vec<V>,
    /// Low bits of each row's hash are not kept: rows are few enough to be hashed again, which never happens, since
    /// the index never grows.
    rows_max: usize,
    /// Updates that found no room since the table was cleared: no key that is not listed can have had more.
    pub(super) shed: u64,
}

impl<S: KeyStore, V: Default> CountTable<S, V> {
    pub(super) fn new(rows_max: usize, seed: Option<u64>) -> Result<CountTable<S, V>, TryReserveError> {
        let seed = seed.unwrap_or_else(|| RandomState::new().hash_one(0x6d65_6d74_6170_u64));
        let mut index = HashTable::new();
        index.try_reserve(rows_max, |_| 0).map_err(|_| overflow())?;
        let mut values = Vec::new();
        values.try_reserve_exact(rows_max)?;
        Ok(CountTable {
            index,
            hasher: FixedState::with_seed(seed),
            keys: S::with_capacity(rows_max)?,
            values,
            rows_max,
            shed: 0,
        })
    }

    /// Rows in use.
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    /// Changes the value of a key's row, which is added when it is not there; the row's number, or none when there is no room.
    #[inline]
    pub(super) fn update(&mut self, key: &S::Key, change: impl FnOnce(&mut V)) -> Option<u32> {
        let hash = self.hasher.hash_one(key);
        if let Some(&row) = self.index.find(hash, |&row| self.keys.is(row as usize, key)) {
            change(&mut self.values[row as usize]);
            return Some(row);
        }
        self.add(hash, key, change)
    }

    fn add(&mut self, hash: u64, key: &S::Key, change: impl FnOnce(&mut V)) -> Option<u32> {
        if self.values.len() >= self.rows_max || !self.keys.push(key) {
            self.shed += 1;
            return None;
        }
        let row = u32::try_from(self.values.len()).ok()?;
        let mut value = V::default();
        change(&mut value);
        self.values.push(value);
        self.index.insert_unique(hash, row, |_| unreachable!("the index was made for every row"));
        Some(row)
    }

    /// Forgets every row; keeps the memory.
    pub(super) fn clear(&mut self) {
        self.index.clear();
        self.keys.clear();
        self.values.clear();
        self.shed = 0;
    }
}

/// The error of a reservation that is too large for this machine's addresses.
fn overflow() -> TryReserveError {
    let mut impossible: Vec<u64> = Vec::new();
    impossible.try_reserve_exact(usize::MAX).expect_err("no machine has so much memory")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn agrees_with_an_ordered_map(keys in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..250), 0..200)) {
            let mut table: CountTable<ByteKeys, u64> = CountTable::new(4096, Some(1)).unwrap();
            for _ in 0..2 {
                let mut model = BTreeMap::new();
                for key in &keys {
                    *model.entry(key.clone()).or_insert(0u64) += 1;
                    prop_assert!(table.update(key.as_slice(), |count| *count += 1).is_some());
                }
                let rows: BTreeMap<Vec<u8>, u64> =
                    (0..table.len()).map(|row| (table.keys.get(row).to_vec(), table.values[row])).collect();
                prop_assert_eq!(rows, model);
                table.clear();
            }
        }

        #[test]
        fn what_finds_no_room_is_counted(keys in prop::collection::vec(0u32..40, 0..300)) {
            let mut table: CountTable<IdPairs, u64> = CountTable::new(16, Some(1)).unwrap();
            for &key in &keys {
                table.update(&(key, 0), |count| *count += 1);
            }
            let listed: u64 = table.values.iter().sum();
            prop_assert_eq!(listed + table.shed, keys.len() as u64);
            prop_assert!(table.len() <= 16);
            for key in 0..40 {
                let truth = keys.iter().filter(|&&k| k == key).count() as u64;
                let row = (0..table.len()).find(|&row| table.keys.get(row) == (key, 0));
                match row {
                    Some(row) => prop_assert_eq!(table.values[row], truth, "a listed key is exact"),
                    None => prop_assert!(truth <= table.shed, "an unlisted key is bounded"),
                }
            }
        }
    }

    #[test]
    fn long_keys_run_out_of_bytes_before_rows() {
        let mut table: CountTable<ByteKeys, u64> = CountTable::new(4, Some(1)).unwrap();
        assert!(table.update([b'a'; 250].as_slice(), |_| ()).is_some());
        assert!(table.update([b'b'; 250].as_slice(), |_| ()).is_none());
        assert_eq!(table.shed, 1);
    }
}

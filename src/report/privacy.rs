//! Keys are private data. Before any row reaches a writer, `shape` and `hash` replace every key in it; what the writers
//! never see they cannot leak.

use super::groups::shape;
use crate::choices::choices;
use crate::collector::snapshot::{KeyRow, PairRow, Snapshot};
use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::sync::OnceLock;

choices! {
    /// How keys may be shown.
    PrivacyMode {
        /// As they are.
        Full = "full",
        /// With identifiers replaced by `*`; keys of one shape are added up.
        Shape = "shape",
        /// As a keyed hash: the same key has the same hash, and nobody without the secret can tell whose it is.
        Hash = "hash",
    }
}

/// How keys may be shown, with what that takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Privacy {
    /// As they are.
    Full,
    /// As shapes.
    Shape,
    /// As keyed hashes.
    Hash(HashSecret),
}

impl Privacy {
    /// From the configuration. Without a secret, hashes are stable for the life of this process and no longer.
    pub fn new(mode: PrivacyMode, secret: Option<&str>) -> Privacy {
        match mode {
            PrivacyMode::Full => Privacy::Full,
            PrivacyMode::Shape => Privacy::Shape,
            PrivacyMode::Hash => Privacy::Hash(secret.map_or_else(HashSecret::of_this_run, HashSecret::new)),
        }
    }

    /// The name in reports and in the configuration.
    pub fn mode(&self) -> PrivacyMode {
        match self {
            Privacy::Full => PrivacyMode::Full,
            Privacy::Shape => PrivacyMode::Shape,
            Privacy::Hash(_) => PrivacyMode::Hash,
        }
    }

    /// Names the secret of the hashes, where there is one.
    pub(super) fn secret_name(&self) -> Option<String> {
        match self {
            Privacy::Hash(secret) => Some(secret.name()),
            Privacy::Full | Privacy::Shape => None,
        }
    }

    /// The snapshot as it may be shown. Nothing is copied for [`Privacy::Full`].
    pub(crate) fn apply<'a>(&self, snapshot: Cow<'a, Snapshot>) -> Cow<'a, Snapshot> {
        if *self == Privacy::Full {
            return snapshot;
        }
        let mut masked = snapshot.into_owned();
        for row in &mut masked.keys {
            row.key = self.mask(&row.key);
            row.truncated = false;
        }
        if *self == Privacy::Shape {
            masked.keys = add_up(masked.keys);
        }
        let clients = masked.clients.iter_mut().chain(&mut masked.sockets).map(|row| &mut row.top_key);
        let servers = masked.servers.iter_mut().map(|row| &mut row.top_key);
        for (key, _) in clients.chain(servers).flatten() {
            *key = self.mask(key);
        }
        Cow::Owned(masked)
    }

    /// A key as it may be shown.
    pub fn mask(&self, key: &[u8]) -> Box<[u8]> {
        match self {
            Privacy::Full => key.into(),
            Privacy::Shape => shape(key).into(),
            Privacy::Hash(secret) => format!("#{:016x}", secret.hash(key)).into_bytes().into(),
        }
    }
}

/// Adds up the rows that masking has made equal.
fn add_up(rows: Vec<KeyRow>) -> Vec<KeyRow> {
    let mut by_key: HashMap<Box<[u8]>, KeyRow> = HashMap::with_capacity(rows.len() / 4);
    for mut row in rows {
        let Some(sum) = by_key.get_mut(&row.key) else {
            by_key.insert(row.key.clone(), row);
            continue;
        };
        sum.err = sum.err.saturating_add(row.err);
        sum.counters.merge(&row.counters);
        sum.clients.append(&mut row.clients);
    }
    let mut rows: Vec<KeyRow> = by_key.into_values().collect();
    for row in &mut rows {
        add_up_clients(&mut row.clients);
    }
    rows
}

fn add_up_clients(clients: &mut Vec<PairRow>) {
    clients.sort_unstable_by_key(|pair| pair.client);
    clients.dedup_by(|later, kept| {
        let same = later.client == kept.client;
        if same {
            kept.requests += later.requests;
            kept.err = kept.err.saturating_add(later.err);
        }
        same
    });
    clients.sort_by(|a, b| b.requests.cmp(&a.requests).then(a.client.cmp(&b.client)));
}

/// The secret of [`PrivacyMode::Hash`]: the two words that key SipHash. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct HashSecret([u64; 2]);

impl HashSecret {
    /// From the operator's secret, so that several machines and runs agree. The words are two hashes of it; its
    /// strength is the secret's own, which is why the configuration demands a long one.
    pub fn new(secret: &str) -> HashSecret {
        let word = |number: u64| sip_hash([number, 0x6d65_6d74_6170], secret.as_bytes());
        HashSecret([word(1), word(2)])
    }

    /// Drawn at random once in the life of the process.
    pub fn of_this_run() -> HashSecret {
        static SECRET: OnceLock<[u64; 2]> = OnceLock::new();
        // The standard library seeds its maps from the operating system; their hash of nothing is a function of that seed.
        let draw = || RandomState::new().build_hasher().finish();
        HashSecret(*SECRET.get_or_init(|| [draw(), draw()]))
    }

    fn hash(&self, key: &[u8]) -> u64 {
        sip_hash(self.0, key)
    }

    /// Half a hash of a text that is no key: reports of the same secret name the same one, and it tells no more of the secret than
    /// any hashed key does.
    pub(super) fn name(&self) -> String {
        format!("{:08x}", self.hash(b"\0name of the secret") as u32)
    }
}

impl fmt::Debug for HashSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashSecret")
    }
}

/// SipHash-2-4. The standard library's is deprecated for maps, where its successor may change; here the fixed algorithm
/// is what is wanted, and a test holds it to the published vectors.
fn sip_hash(words: [u64; 2], bytes: &[u8]) -> u64 {
    #[expect(deprecated, reason = "the fixed algorithm is wanted")]
    let mut hasher = std::hash::SipHasher::new_with_keys(words[0], words[1]);
    hasher.write(bytes);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Endpoint;

    #[test]
    fn hashes_are_siphash_2_4() {
        // The vectors of the reference implementation: key 00 01 … 0f, input 00 01 … of growing length.
        let words = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        assert_eq!(sip_hash(words, &[]), 0x726f_db47_dd0e_0e31);
        assert_eq!(sip_hash(words, &(0..15).collect::<Vec<u8>>()), 0xa129_ca61_49be_45e5);
    }

    #[test]
    fn hashes_depend_on_the_secret_and_hide_the_key() {
        let one = Privacy::new(PrivacyMode::Hash, Some("a long secret of mine"));
        let two = Privacy::new(PrivacyMode::Hash, Some("a long secret of yours"));
        assert_eq!(one.mask(b"user:1"), one.mask(b"user:1"));
        assert_ne!(one.mask(b"user:1"), two.mask(b"user:1"));
        assert_eq!(one.mask(b"user:1").len(), 17);
        assert_eq!(Privacy::new(PrivacyMode::Hash, None), Privacy::new(PrivacyMode::Hash, None));
        assert!(!format!("{one:?}").contains("secret of"));
    }

    #[test]
    fn rows_of_one_shape_are_added_up() {
        let client = |last: u8| Endpoint::from_ipv4([10, 0, 0, last], 0);
        let pair = |last, requests| PairRow { client: client(last), requests, err: 1 };
        let row = |key: &[u8], clients: Vec<PairRow>| KeyRow {
            key: key.into(),
            truncated: false,
            err: 2,
            counters: crate::collector::snapshot::Counters { gets: 10, ..Default::default() },
            clients,
        };
        let rows = add_up(vec![
            row(b"user:*", vec![pair(1, 6), pair(2, 4)]),
            row(b"user:*", vec![pair(2, 10)]),
            row(b"other", Vec::new()),
        ]);
        let sum = rows.iter().find(|row| &*row.key == b"user:*").unwrap();
        assert_eq!((sum.err, sum.counters.gets, rows.len()), (4, 20, 2));
        assert_eq!(sum.clients[0], PairRow { client: client(2), requests: 14, err: 2 });
    }
}

//! Everything that is kept of one target within an interval.

use super::arena::Arena;
use super::flows::{Flow, Number};
use super::harvest::Harvest;
use super::numbers::{NUMBER_BYTES, Numbers};
use super::pairs::{Line, Pairs};
use super::table::{BUCKET_BYTES, COMPANION_BYTES, Delta, Place, REQUEST_WEIGHT, Rows, Table};
use super::totals::RunningTotals;
use super::{Capacity, CollectorError, TargetOptions};
use crate::anomaly::AnomalyCounts;
use crate::model::{Endpoint, FlowTuple};
use crate::parser::Observation;
use crate::reassembly::TargetTally;

/// Chunks for the ends of long keys, to each bucket of the key table: enough for a quarter of the keys.
const CHUNKS_PER_BUCKET: usize = 2;
const CHUNK_BYTES: usize = 64;

/// Bytes of a request and its response before the first requests have told, and how many of these it takes.
const MEAN_BYTES_GUESS: u64 = 512;
const MEASURED_AFTER: u64 = 4096;

/// The parts of a budget, in percent; what is left covers rounding. The servers' part goes to the keys without such a table.
const CLIENTS_PERCENT: u64 = 2;
const SOCKETS_PERCENT: u64 = 5;
const SERVERS_PERCENT: u64 = 1;
const NUMBERS_PERCENT: u64 = 1;
const PAIRS_PERCENT: u64 = 18;
const SOCKET_PAIRS_PERCENT: u64 = 6;
const KEYS_PERCENT: u64 = 66;

/// What one slice of a sweep looks at: about as much work as a batch of observations.
const SLICE_BUCKETS: usize = 64;
const SLICE_LINES: usize = 128;
const SLICE_ADDRESSES: usize = 512;

/// Bytes of an endpoint as a table's key: address and port; the address alone for clients by IP.
pub(super) const ENDPOINT_BYTES: usize = 18;
pub(super) const ADDRESS_BYTES: usize = 16;

/// A connection's row has its server beside it.
const _: () = assert!(ENDPOINT_BYTES == COMPANION_BYTES);

/// Who asked whom, in the form that the tables want.
#[derive(Clone, Copy)]
pub(super) struct Origin {
    client: [u8; ENDPOINT_BYTES],
    server: [u8; ENDPOINT_BYTES],
    address_hash: u64,
    pub(super) client_hash: u64,
    server_hash: u64,
}

impl Origin {
    pub(super) fn of(tuple: &FlowTuple, hash: impl Fn(&[u8]) -> u64) -> Origin {
        let (client, server) = (encode(&tuple.client), encode(&tuple.server));
        // Sixteen bytes or fewer at a time: longer ones take a hash function's slow way.
        let of = |endpoint: &[u8; ENDPOINT_BYTES]| {
            let address = hash(&endpoint[..ADDRESS_BYTES]);
            let mut rest = [0; 10];
            rest[..8].copy_from_slice(&address.to_le_bytes());
            rest[8..].copy_from_slice(&endpoint[ADDRESS_BYTES..]);
            (address, hash(&rest))
        };
        let ((address_hash, client_hash), (_, server_hash)) = (of(&client), of(&server));
        Origin { client, server, address_hash, client_hash, server_hash }
    }

    #[inline(always)]
    fn address(&self) -> &[u8; ADDRESS_BYTES] {
        self.client.first_chunk().expect("an address is shorter than an endpoint")
    }
}

fn encode(endpoint: &Endpoint) -> [u8; ENDPOINT_BYTES] {
    let mut bytes = [0; ENDPOINT_BYTES];
    bytes[..ADDRESS_BYTES].copy_from_slice(endpoint.octets());
    bytes[ADDRESS_BYTES..].copy_from_slice(&endpoint.port().to_be_bytes());
    bytes
}

/// The endpoint of a row of clients or servers.
pub(super) fn decode(key: &[u8]) -> Endpoint {
    let mut bytes = [0; ENDPOINT_BYTES];
    bytes[..key.len()].copy_from_slice(key);
    let [address @ .., high, low] = bytes;
    Endpoint::from_ipv6(address, u16::from_be_bytes([high, low]))
}

/// A target's figures since its interval began.
pub(super) struct Target {
    keys: Table,
    clients: Table,
    sockets: Table,
    servers: Option<Table>,
    pairs: Pairs,
    socket_pairs: Pairs,
    numbers: Numbers,
    totals: RunningTotals,
    anomalies: AnomalyCounts,
    packets: u64,
    payload_packets: [u64; 2],
    /// Weight of 65,536 bytes in the tables: such that an average request's bytes weigh as much as the request. Constant
    /// within an interval, but for the first one's beginning.
    weight_of_64k: u64,
    /// An average was measured: from then on by what flows asked for, before by each observation.
    measured: bool,
    keyed_requests: u64,
    keyed_bytes: u64,
    /// Of the interval that was ended last, while it is copied out.
    addresses: Vec<[u8; 16]>,
    /// Rows of the interval that was ended last have yet to be copied.
    unswept: bool,
}

impl Target {
    pub(super) fn new(options: &TargetOptions) -> Result<Target, CollectorError> {
        let budget = options.budget_bytes;
        let bytes = usize::try_from(budget).unwrap_or(usize::MAX);
        let memory = |source| CollectorError::Memory { bytes: budget, source };
        let mut arena = Arena::new(bytes).map_err(memory)?;
        Target::carve(&mut arena, options).ok_or_else(|| CollectorError::Memory {
            bytes: budget,
            source: std::io::ErrorKind::OutOfMemory.into(),
        })
    }

    fn carve(arena: &mut Arena, options: &TargetOptions) -> Option<Target> {
        let part = |percent: u64, unit: usize| {
            let bytes = u128::from(options.budget_bytes) * u128::from(percent) / 100;
            usize::try_from(bytes / unit as u128).unwrap_or(usize::MAX).max(1)
        };
        let keys_percent = KEYS_PERCENT + if options.servers { 0 } else { SERVERS_PERCENT };
        let key_buckets = part(keys_percent, BUCKET_BYTES + CHUNKS_PER_BUCKET * CHUNK_BYTES);
        let line = size_of::<Line>();
        let servers = match options.servers {
            true => Some(Table::new(arena, part(SERVERS_PERCENT, BUCKET_BYTES), 0)?),
            false => None,
        };
        Some(Target {
            keys: Table::new(arena, key_buckets, key_buckets * CHUNKS_PER_BUCKET)?,
            clients: Table::new(arena, part(CLIENTS_PERCENT, BUCKET_BYTES), 0)?,
            sockets: Table::new(arena, part(SOCKETS_PERCENT, BUCKET_BYTES), 0)?,
            servers,
            pairs: Pairs::new(arena, part(PAIRS_PERCENT, line))?,
            socket_pairs: Pairs::new(arena, part(SOCKET_PAIRS_PERCENT, line))?,
            numbers: Numbers::new(arena, part(NUMBERS_PERCENT, NUMBER_BYTES))?,
            totals: RunningTotals::new(),
            anomalies: AnomalyCounts::default(),
            packets: 0,
            payload_packets: [0; 2],
            weight_of_64k: weight_of_64k(MEAN_BYTES_GUESS),
            measured: false,
            keyed_requests: 0,
            keyed_bytes: 0,
            addresses: Vec::new(),
            unswept: false,
        })
    }

    pub(super) fn capacity(&self) -> Capacity {
        Capacity {
            keys: self.keys.capacity(),
            pairs: self.pairs.capacity(),
            clients: self.clients.capacity(),
            sockets: self.sockets.capacity(),
            servers: self.servers.as_ref().map_or(0, Table::capacity),
        }
    }

    /// Counts what is exact whatever happens: totals and response times, of which this observation's is given in microseconds.
    #[inline(always)]
    pub(super) fn count(&mut self, observation: &Observation<'_>, micros: Option<u64>) {
        self.totals.observe(observation, micros);
        if !self.measured && observation.command.is_keyed() {
            self.gauge(observation);
        }
    }

    /// Takes the first keyed requests into account for the weight of bytes.
    #[cold]
    fn gauge(&mut self, observation: &Observation<'_>) {
        self.add_keyed(1, observation.request_bytes.saturating_add(observation.response_bytes));
        if self.keyed_requests == MEASURED_AFTER {
            self.measure();
        }
    }

    fn add_keyed(&mut self, requests: u64, bytes: u64) {
        self.keyed_requests += requests;
        self.keyed_bytes = self.keyed_bytes.saturating_add(bytes);
    }

    /// Sets the weight of bytes by the average since the last time, where there is one.
    fn measure(&mut self) {
        if let Some(mean) = self.keyed_bytes.checked_div(self.keyed_requests) {
            self.weight_of_64k = weight_of_64k(mean);
            self.measured = true;
        }
        (self.keyed_requests, self.keyed_bytes) = (0, 0);
    }

    /// What an observation weighs in the tables.
    #[inline(always)]
    pub(super) fn weight(&self, delta: &Delta) -> u32 {
        delta.weight(self.weight_of_64k)
    }

    /// The number of a client in the pair table.
    pub(super) fn number(&mut self, origin: &Origin) -> Option<u32> {
        self.numbers.of(origin.address(), origin.address_hash)
    }

    /// Counts a keyed request in the table of keys. Returns the row's place until the next one.
    #[inline(always)]
    pub(super) fn update_key(
        &mut self,
        bucket: u32,
        key_hash: u64,
        key: &[u8],
        delta: &Delta,
        weight: u32,
    ) -> Place {
        self.keys.update_in(bucket, key_hash, key, delta, weight)
    }

    /// Counts the request that was counted in this place of the table of keys in those of pairs.
    #[inline(never)]
    pub(super) fn update_pairs(&mut self, place: Place, key_hash: u64, client_hash: u64, number: Number) {
        let key_requests = self.keys.requests(place);
        if key_requests > self.pairs.gate() {
            match number.get() {
                Some(number) => self.pairs.update(key_hash, u64::from(number)),
                None => self.pairs.skip_unnumbered(),
            }
        }
        if key_requests > self.socket_pairs.gate() {
            self.socket_pairs.update(key_hash, client_hash);
        }
    }

    /// Counts what a flow asked for in the tables of clients and servers.
    pub(super) fn update_origin(&mut self, flow: &Flow, hash: impl Fn(&[u8]) -> u64) {
        let (origin, Flow { sums, weight, .. }) = (Origin::of(&flow.tuple, hash), flow);
        if self.measured {
            self.add_keyed(u64::from(sums.upper()), sums.bytes());
        }
        self.clients.update(origin.address_hash, origin.address(), sums, *weight);
        let socket = self.sockets.update(origin.client_hash, &origin.client, sums, *weight);
        if let Some(servers) = &mut self.servers {
            self.sockets.attach(socket, &origin.server);
            servers.update(origin.server_hash, &origin.server, sums, *weight);
        }
    }

    /// The bucket of the key table where a key belongs.
    #[inline(always)]
    pub(super) fn bucket_of(&self, key_hash: u64) -> u32 {
        self.keys.bucket_of(key_hash)
    }

    /// First step before an update: the header.
    #[inline(always)]
    pub(super) fn prefetch_bucket(&self, bucket: u32) {
        self.keys.prefetch_bucket(bucket);
    }

    /// Second step, when the header has come: the slot. True: the key wants the third.
    #[inline(always)]
    pub(super) fn prefetch_slot(&self, bucket: u32, key_hash: u64) -> bool {
        self.keys.prefetch_slot(bucket, key_hash)
    }

    /// Beside the second step: the lines of the pairs.
    #[inline(always)]
    pub(super) fn prefetch_pairs(&self, key_hash: u64, client_hash: u64, number: Number) {
        self.socket_pairs.prefetch(key_hash, client_hash);
        if let Some(number) = number.get() {
            self.pairs.prefetch(key_hash, u64::from(number));
        }
    }

    /// Third step: the slot of a key that may be in its second bucket.
    #[inline(always)]
    pub(super) fn prefetch_second(&self, key_hash: u64) {
        self.keys.prefetch_second(key_hash);
    }

    pub(super) fn add_tally(&mut self, tally: &TargetTally) {
        self.totals.add_payload(tally.payload_bytes);
        self.anomalies.merge(&tally.anomalies);
        self.packets += tally.packets.iter().sum::<u64>();
        for (mine, theirs) in self.payload_packets.iter_mut().zip(tally.payload_packets) {
            *mine += theirs;
        }
    }

    /// Ends the interval and begins the next one. Sums are handed over at once; rows are copied by [`Target::sweep`], or before an
    /// update takes their place, and handed over by [`Target::end_close`].
    pub(super) fn begin_close(&mut self, into: &mut Harvest) {
        let take = |rows: &mut Rows| std::mem::take(rows);
        self.keys.begin_close(take(&mut into.keys));
        self.clients.begin_close(take(&mut into.clients));
        self.sockets.begin_close(take(&mut into.sockets));
        into.servers.clear();
        if let Some(servers) = &mut self.servers {
            servers.begin_close(take(&mut into.servers));
        }
        self.pairs.begin_close(std::mem::take(&mut into.pairs));
        self.socket_pairs.begin_close(std::mem::take(&mut into.socket_pairs));
        self.addresses = std::mem::take(&mut into.addresses);
        self.numbers.begin_close(&mut self.addresses);
        into.totals = self.totals.hand_over(&mut into.latencies);
        into.anomalies = self.anomalies.take();
        into.packets = std::mem::take(&mut self.packets);
        into.payload_packets = std::mem::take(&mut self.payload_packets);
        self.measure();
        self.unswept = true;
    }

    /// Copies a slice of the interval that was ended last: some microseconds' work. True: nothing is left to copy.
    pub(super) fn sweep(&mut self) -> bool {
        let done = !self.unswept
            || (self.keys.sweep(SLICE_BUCKETS)
                && self.clients.sweep(SLICE_BUCKETS)
                && self.sockets.sweep(SLICE_BUCKETS)
                && self.servers.as_mut().is_none_or(|servers| servers.sweep(SLICE_BUCKETS))
                && self.pairs.sweep(SLICE_LINES)
                && self.socket_pairs.sweep(SLICE_LINES)
                && self.numbers.sweep(SLICE_ADDRESSES, &mut self.addresses));
        self.unswept = !done;
        done
    }

    /// Hands over the rows of the interval that was ended last, after copying those that are left.
    pub(super) fn end_close(&mut self, into: &mut Harvest) {
        let hand_over = |table: &mut Table, rows: &mut Rows| {
            if let Some(closed) = table.end_close() {
                *rows = closed;
            }
        };
        hand_over(&mut self.keys, &mut into.keys);
        hand_over(&mut self.clients, &mut into.clients);
        hand_over(&mut self.sockets, &mut into.sockets);
        if let Some(servers) = &mut self.servers {
            hand_over(servers, &mut into.servers);
        }
        if let Some(closed) = self.pairs.end_close() {
            into.pairs = closed;
        }
        if let Some(closed) = self.socket_pairs.end_close() {
            into.socket_pairs = closed;
        }
        self.numbers.sweep(usize::MAX, &mut self.addresses);
        into.addresses = std::mem::take(&mut self.addresses);
        self.unswept = false;
    }
}

/// The weight of 65,536 bytes where requests and their responses take `mean` bytes.
fn weight_of_64k(mean: u64) -> u64 {
    u64::from(REQUEST_WEIGHT) * 65_536 / mean.max(64)
}

//! Recordings against the log that memcached itself wrote meanwhile (`watch fetchers mutations connevents`): how often each client
//! socket made the server look a key up, socket by socket and key by key.
//!
//! The server logs every internal lookup, not only those of gets: one for each key of a retrieval, and one for each store, delete,
//! touch, arithmetic and meta command; a second one where arithmetic creates its item (`items.c`, `memcached.c`). What the wire does
//! not tell makes a range of what is expected, named where it is made. UDP has no sockets in the log: its clients are one.

mod support;

use memtap::capture::LinkType;
use memtap::capture::pcap::Recording;
use memtap::model::{Command, CommandClass, Outcome};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use support::exact::{Exact, run_frames};
use support::scenario::Frame;
use support::{fixture, truth};

/// Lookups, least and most that fit what was seen, by socket and key.
type Lookups = BTreeMap<(String, String), (i64, i64)>;

fn exact(name: &str) -> Exact {
    let mut recording = Recording::open(fixture(&format!("{name}.pcap.zst"))).expect("the recording opens");
    let mut frames = Vec::new();
    while let Some(packet) = recording.next_packet().expect("the recording is whole") {
        let (timestamp, bytes, wire_bytes) = (packet.timestamp, packet.bytes.to_vec(), packet.wire_bytes);
        frames.push(Frame { timestamp, bytes, wire_bytes });
    }
    run_frames(&frames, LinkType::Ethernet)
}

fn ours(name: &str, sockets: &BTreeSet<String>) -> Lookups {
    let mut lookups = Lookups::new();
    for ((client, key, command), outcomes) in &exact(name).outcomes {
        let command = Command::ALL[usize::from(*command)];
        if !command.is_keyed() {
            continue;
        }
        let requests = outcomes.iter().sum::<u64>() as i64;
        let socket = format!("{}|{}", client.ip(), client.port());
        let socket = if sockets.contains(&socket) { socket } else { "UDP".to_string() };
        let place = (socket, String::from_utf8_lossy(key).into_owned());
        let (least, most) = lookups.entry(place).or_default();
        // A refusal comes before the lookup or after it, by its reason: bad numbers and keys before it, a value of a wrong size or
        // an operand that is no number after it. Of a get that holds an over-long key, the keys behind that are never looked up.
        let refused = [Outcome::Error, Outcome::TooLarge].map(|outcome| outcomes[outcome.index()] as i64);
        *least += requests - refused.iter().sum::<i64>();
        *most += requests;
        if command.class() == CommandClass::Storage {
            // A store without an answer may have been refused as well.
            *least -= outcomes[Outcome::Unseen.index()] as i64;
        }
        if command.class() == CommandClass::Arithmetic {
            // Whether it created its item: a quiet one does not say, and a result may equal the initial value by chance.
            let perhaps = [Outcome::Stored, Outcome::Unseen, Outcome::Hit];
            *most += perhaps.map(|outcome| outcomes[outcome.index()] as i64).iter().sum::<i64>();
        }
    }
    lookups
}

fn theirs(truth: &Value) -> BTreeMap<(String, String), i64> {
    let mut lookups: BTreeMap<_, i64> = BTreeMap::new();
    let sockets = truth["watch"]["per_socket_key"].as_object().expect("a log by socket");
    for (socket, keys) in sockets {
        for (key, counts) in keys.as_object().expect("a log by key") {
            let counts = counts.as_object().expect("counts by event");
            let of_lookups = counts.iter().filter(|(event, _)| event.starts_with("lookup_"));
            let sum: i64 = of_lookups.filter_map(|(_, count)| count.as_i64()).sum();
            let socket = if socket.starts_with('?') { "UDP" } else { socket };
            *lookups.entry((socket.to_string(), key.clone())).or_default() += sum;
        }
    }
    lookups
}

#[track_caller]
fn check(name: &str, places: usize) {
    let truth = truth(name);
    for lost in ["skipped", "server_dropped"] {
        let lost = &truth["watch"][lost];
        assert!(
            lost == 0 || lost.as_object().is_some_and(|by| by.values().all(|count| count == 0)),
            "{lost}"
        );
    }
    let theirs = theirs(&truth);
    let sockets = theirs.keys().map(|(socket, _)| socket.clone()).collect();
    let ours = ours(name, &sockets);
    let mut differing = Vec::new();
    for (place, &count) in &theirs {
        let (least, most) = ours.get(place).copied().unwrap_or_default();
        if !(least..=most).contains(&count) {
            differing.push(format!("{place:?}: ours {least} to {most}, the server's {count}"));
        }
    }
    let unknown =
        |(place, counts): &(&(String, String), &(i64, i64))| counts.0 > 0 && !theirs.contains_key(*place);
    for (place, counts) in ours.iter().filter(unknown) {
        differing.push(format!("{place:?}: ours {counts:?}, the server's none"));
    }
    assert!(theirs.len() >= places, "the log holds {} sockets and keys", theirs.len());
    assert!(
        differing.is_empty(),
        "{name}: {} of {} differ: {:#?}",
        differing.len(),
        theirs.len(),
        &differing[..differing.len().min(12)]
    );
}

macro_rules! equals_the_log {
    ($($test:ident $recording:literal $places:literal;)*) => {
        $(#[test] fn $test() { check($recording, $places); })*
    };
}

equals_the_log! {
    pymemcache_text "clients/pymemcache_text_v4" 100;
    php_noreply "clients/php_noreply" 100;
    bmemcached_binary "clients/bmemcached_bin" 100;
    meta_memcache "clients/metamemcache_meta_nooffload" 100;
    async_memcached_meta "clients/rust_async_meta" 100;
    five_clients_at_once "clients/base_small_nooffload" 100;
    loopback_with_udp "extra/lo" 1;
    binary_with_every_quiet_opcode "extra/raw_bin" 1;
    connections_that_reuse_their_ports "extra/raw_churn_portreuse" 1;
    administration "extra/raw_admin" 1;
    udp "extra/raw_udp" 1;
    tagged_packets "extra/vlan123" 1;
    over_long_keys "extra/quirk_raw_text_nooffload" 1;
}

//! Recordings as files: what is in the fixtures, names that say nothing, several files as one, and no allocation.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use memtap::anomaly::AnomalyCounts;
use memtap::capture::Decoded;
use memtap::capture::decode::{DecodeLimits, Decoder};
use memtap::capture::pcap::{Recording, RecordingError, Recordings};

/// Counts the allocations of the thread that asks.
struct CountingAllocator;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged; the counter is a plain cell of the thread.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`, which is the system's as well.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `alloc` above, hence from the system.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn decompressed(name: &str) -> Vec<u8> {
    let mut bytes = vec![];
    let file = fs::File::open(fixture(name)).unwrap();
    zstd::stream::read::Decoder::new(file).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// What a recording holds.
#[derive(Debug, Default, PartialEq, Eq)]
struct Inventory {
    segments: u64,
    datagrams: u64,
    other: u64,
    payload_bytes: u64,
}

fn take_inventory(name: &str) -> Inventory {
    let mut recording = Recording::open(fixture(name)).unwrap();
    let mut decoder = Decoder::new(DecodeLimits::default());
    let mut inventory = Inventory::default();
    while let Some(packet) = recording.next_packet().unwrap() {
        let payload_bytes = match decoder.decode(&packet) {
            Decoded::Segment(segment) => {
                inventory.segments += 1;
                segment.payload_wire_bytes
            }
            Decoded::Datagram(datagram) => {
                inventory.datagrams += 1;
                datagram.payload_wire_bytes
            }
            Decoded::Fragment | Decoded::Foreign | Decoded::Malformed => {
                inventory.other += 1;
                0
            }
        };
        inventory.payload_bytes += u64::from(payload_bytes);
    }
    assert_eq!(decoder.take_anomalies(), AnomalyCounts::default());
    inventory
}

#[test]
fn fixtures_hold_what_they_hold() {
    let cases = [
        ("testsuite/touch.pcap.zst", [20, 0, 0, 128]),
        ("testsuite/udp.pcap.zst", [22, 50, 0, 69_518]),
        ("extra/raw_udp.pcap.zst", [76, 13_809, 0, 8_860_741]),
        ("extra/lo.pcap.zst", [24_646, 8_218, 0, 85_332_874]),
        ("extra/vlan123.pcap.zst", [41_721, 0, 0, 79_937_110]),
        ("peers/peer-edge.pcap.zst", [839, 13, 2, 362_269]),
    ];
    for (name, [segments, datagrams, other, payload_bytes]) in cases {
        assert_eq!(take_inventory(name), Inventory { segments, datagrams, other, payload_bytes }, "{name}");
    }
}

/// Time and bytes of every packet.
fn packets(mut recordings: Recordings) -> Vec<(u64, Vec<u8>)> {
    let mut packets = vec![];
    while let Some(packet) = recordings.next_packet().unwrap() {
        packets.push((packet.timestamp.nanos(), packet.bytes.to_vec()));
    }
    assert_eq!(recordings.packets(), packets.len() as u64);
    packets
}

#[test]
fn compression_is_told_by_magic_and_not_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let plain = decompressed("testsuite/cas.pcap.zst");
    let misnamed = folder.path().join("plain.gz");
    fs::write(&misnamed, &plain).unwrap();
    let misnamed_zstd = folder.path().join("compressed.pcap");
    fs::copy(fixture("testsuite/cas.pcap.zst"), &misnamed_zstd).unwrap();
    let whole = packets(Recordings::open(&[fixture("testsuite/cas.pcap.zst")]).unwrap());
    assert_eq!(whole.len(), 116);
    assert_eq!(packets(Recordings::open(&[misnamed]).unwrap()), whole);
    assert_eq!(packets(Recordings::open(&[misnamed_zstd]).unwrap()), whole);
}

/// Deals the records of a little-endian pcap file out to several.
fn deal(file: &[u8], hands: usize, choose: impl Fn(usize) -> usize) -> Vec<Vec<u8>> {
    let (header, mut records) = file.split_at(24);
    let mut files = vec![header.to_vec(); hands];
    let mut index = 0;
    while let Some(length) = records.get(8..12) {
        let length = 16 + u32::from_le_bytes(length.try_into().unwrap()) as usize;
        files[choose(index)].extend(&records[..length]);
        records = &records[length..];
        index += 1;
    }
    files
}

fn write_all(folder: &Path, files: &[Vec<u8>]) -> Vec<PathBuf> {
    let path = |index: usize| folder.join(format!("{index}.pcap"));
    files
        .iter()
        .enumerate()
        .map(|(index, file)| (path(index), file))
        .for_each(|(p, f)| fs::write(p, f).unwrap());
    (0..files.len()).map(path).collect()
}

#[test]
fn several_recordings_are_one_in_order_of_time() {
    let folder = tempfile::tempdir().unwrap();
    let file = decompressed("peers/peer-small.pcap.zst");
    let whole = packets(Recordings::open(&[fixture("peers/peer-small.pcap.zst")]).unwrap());
    // Interleaved, as two mirror ports would have it; and one after the other, as a rotating recorder.
    let interleaved = write_all(folder.path(), &deal(&file, 3, |index| index * index % 3));
    let mut merged = packets(Recordings::open(&interleaved).unwrap());
    assert!(merged.is_sorted_by_key(|(nanos, _)| *nanos));
    merged.sort();
    let mut sorted = whole.clone();
    sorted.sort();
    assert!(merged == sorted);
    let mut rotated = write_all(folder.path(), &deal(&file, 5, |index| (index / 9_000).min(4)));
    rotated.reverse();
    let merged = packets(Recordings::open(&rotated).unwrap());
    assert_eq!(merged.len(), whole.len());
    assert!(merged.is_sorted_by_key(|(nanos, _)| *nanos));
}

#[test]
fn one_damaged_recording_does_not_end_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = deal(&decompressed("testsuite/cas.pcap.zst"), 2, |index| index % 2);
    let cut = files[0].len() - 5;
    files[0].truncate(cut);
    let mut recordings = Recordings::open(&write_all(folder.path(), &files)).unwrap();
    let (mut count, mut errors) = (0, vec![]);
    loop {
        match recordings.next_packet() {
            Ok(Some(_)) => count += 1,
            Ok(None) => break,
            Err(error) => errors.push(error),
        }
    }
    assert_eq!(count, 115);
    let [RecordingError::Damaged { path, packets: 57, .. }] = &errors[..] else { panic!("{errors:?}") };
    assert!(path.ends_with("0.pcap"));
}

#[test]
fn progress_and_totals_of_several_recordings() {
    let names = ["testsuite/cas.pcap.zst", "testsuite/touch.pcap.zst"].map(fixture);
    let size: u64 = names.iter().map(|name| fs::metadata(name).unwrap().len()).sum();
    let mut recordings = Recordings::open(&names).unwrap();
    assert_eq!(recordings.progress().total_bytes, Some(size));
    while recordings.next_packet().unwrap().is_some() {}
    assert_eq!(recordings.progress().read_bytes, size);
    assert_eq!(recordings.unsupported_link_types().count(), 0);
}

#[test]
fn nothing_is_allocated_for_a_packet() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain.pcap");
    fs::write(&plain, decompressed("peers/peer-small.pcap.zst")).unwrap();
    for path in [plain, fixture("peers/peer-small.pcap.zst")] {
        let mut recordings = Recordings::open(&[path]).unwrap();
        let mut decoder = Decoder::new(DecodeLimits::default());
        let mut segments = 0u64;
        let mut before = 0;
        while let Some(packet) = recordings.next_packet().unwrap() {
            segments += u64::from(matches!(decoder.decode(&packet), Decoded::Segment(_)));
            if segments == 1_000 {
                before = ALLOCATIONS.with(Cell::get);
            }
        }
        assert_eq!(segments, 40_170);
        assert_eq!(ALLOCATIONS.with(Cell::get), before);
    }
}

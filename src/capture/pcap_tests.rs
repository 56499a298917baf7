use std::io::{Cursor, Write};

use proptest::prelude::*;

use super::*;
use crate::capture::LinkType;

/// A packet as a test expects it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Expected {
    nanos: u64,
    link: LinkType,
    bytes: Vec<u8>,
    wire_bytes: u32,
}

fn expected(nanos: u64, bytes: &[u8], wire_bytes: u32) -> Expected {
    Expected { nanos, link: LinkType::Ethernet, bytes: bytes.into(), wire_bytes }
}

const SECOND: u64 = 1_000_000_000;
const START: u64 = 1_700_000_000 * SECOND;

/// Three packets: ordinary, empty, snapped.
fn sample() -> Vec<Expected> {
    vec![
        expected(START + 1_000, b"first packet", 12),
        expected(START + 2_000, b"", 0),
        expected(START + SECOND + 3_000, b"cut", 1500),
    ]
}

/// Writes numbers in either byte order.
#[derive(Clone, Copy, Debug)]
struct Order {
    is_big_endian: bool,
}

const LITTLE: Order = Order { is_big_endian: false };
const BIG: Order = Order { is_big_endian: true };

impl Order {
    fn u16(self, number: u16) -> [u8; 2] {
        if self.is_big_endian { number.to_be_bytes() } else { number.to_le_bytes() }
    }

    fn u32(self, number: u32) -> [u8; 4] {
        if self.is_big_endian { number.to_be_bytes() } else { number.to_le_bytes() }
    }

    fn words(self, numbers: &[u32]) -> Vec<u8> {
        numbers.iter().flat_map(|&number| self.u32(number)).collect()
    }
}

const MICROS: u32 = 0xa1b2_c3d4;
const NANOS: u32 = 0xa1b2_3c4d;
const KUZNETZOV: u32 = 0xa1b2_cd34;

fn pcap(order: Order, magic: u32, link: u32, packets: &[Expected]) -> Vec<u8> {
    let mut file = order.u32(magic).to_vec();
    file.extend([order.u16(2), order.u16(4)].concat());
    file.extend(order.words(&[0, 0, 262_144, link]));
    for packet in packets {
        let fraction = (packet.nanos % SECOND) as u32 / if magic == NANOS { 1 } else { 1000 };
        let captured = packet.bytes.len() as u32;
        file.extend(order.words(&[(packet.nanos / SECOND) as u32, fraction, captured, packet.wire_bytes]));
        if magic == KUZNETZOV {
            file.extend([0; 8]);
        }
        file.extend(&packet.bytes);
    }
    file
}

fn block(order: Order, kind: u32, body: &[u8]) -> Vec<u8> {
    let padding = body.len().next_multiple_of(4) - body.len();
    let length = (12 + body.len() + padding) as u32;
    [&order.words(&[kind, length]), body, &vec![0; padding], &order.u32(length)[..]].concat()
}

fn option(order: Order, code: u16, value: &[u8]) -> Vec<u8> {
    let padding = value.len().next_multiple_of(4) - value.len();
    [&order.u16(code), &order.u16(value.len() as u16), value, &vec![0; padding]].concat()
}

fn section(order: Order) -> Vec<u8> {
    let version = [order.u16(1), order.u16(0)].concat();
    block(order, 0x0a0d_0d0a, &[&order.u32(0x1a2b_3c4d)[..], &version, &[0xff; 8]].concat())
}

fn interface(order: Order, link: u16, snap_bytes: u32, options: &[u8]) -> Vec<u8> {
    let fixed = [&order.u16(link)[..], &[0, 0], &order.u32(snap_bytes)].concat();
    let end = if options.is_empty() { &[][..] } else { &[0; 4] };
    block(order, 1, &[&fixed, options, end].concat())
}

fn enhanced_packet(order: Order, interface: u32, ticks: u64, bytes: &[u8], wire_bytes: u32) -> Vec<u8> {
    let (high, low) = ((ticks >> 32) as u32, ticks as u32);
    let fixed = order.words(&[interface, high, low, bytes.len() as u32, wire_bytes]);
    let padding = vec![0; bytes.len().next_multiple_of(4) - bytes.len()];
    let comment = [option(order, 1, b"a comment"), vec![0; 4]].concat();
    block(order, 6, &[&fixed, bytes, &padding, &comment].concat())
}

fn pcapng(order: Order, packets: &[Expected]) -> Vec<u8> {
    let mut file = [section(order), interface(order, 1, 0, &option(order, 9, &[9]))].concat();
    for packet in packets {
        file.extend(enhanced_packet(order, 0, packet.nanos, &packet.bytes, packet.wire_bytes));
    }
    file
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

fn open(file: &[u8]) -> Result<Recording, RecordingError> {
    Recording::from_reader(Cursor::new(file.to_vec()), "test.pcap", Some(file.len() as u64))
}

/// Reads to the end or to the first error.
fn drain(recording: &mut Recording) -> (Vec<Expected>, Option<RecordingError>) {
    let mut packets = vec![];
    loop {
        match recording.next_packet() {
            Ok(Some(packet)) => packets.push(Expected {
                nanos: packet.timestamp.nanos(),
                link: packet.link,
                bytes: packet.bytes.to_vec(),
                wire_bytes: packet.wire_bytes,
            }),
            Ok(None) => return (packets, None),
            Err(error) => return (packets, Some(error)),
        }
    }
}

fn read(file: &[u8]) -> (Vec<Expected>, Option<RecordingError>) {
    match open(file) {
        Ok(mut recording) => drain(&mut recording),
        Err(error) => (vec![], Some(error)),
    }
}

/// Reads a file that has nothing wrong with it.
#[track_caller]
fn read_whole(file: &[u8]) -> Vec<Expected> {
    let (packets, error) = read(file);
    assert!(error.is_none(), "{error:?}");
    packets
}

/// Every format, with what its resolution leaves of the times of `packets`.
fn every_format(packets: &[Expected]) -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("pcap micros little", pcap(LITTLE, MICROS, 1, packets)),
        ("pcap micros big", pcap(BIG, MICROS, 1, packets)),
        ("pcap nanos little", pcap(LITTLE, NANOS, 1, packets)),
        ("pcap nanos big", pcap(BIG, NANOS, 1, packets)),
        ("pcap Kuznetzov", pcap(LITTLE, KUZNETZOV, 1, packets)),
        ("pcapng little", pcapng(LITTLE, packets)),
        ("pcapng big", pcapng(BIG, packets)),
    ]
}

#[test]
fn every_format_round_trips() {
    for (name, file) in every_format(&sample()) {
        assert_eq!(read_whole(&file), sample(), "{name}");
        assert_eq!(read_whole(&gzip(&file)), sample(), "{name} gzip");
        assert_eq!(read_whole(&zstd(&file)), sample(), "{name} zstd");
    }
}

#[test]
fn nanoseconds_are_kept() {
    let packets = [expected(START + 123_456_789, b"x", 1)];
    for file in [pcap(LITTLE, NANOS, 1, &packets), pcap(BIG, NANOS, 1, &packets), pcapng(BIG, &packets)] {
        assert_eq!(read_whole(&file), packets);
    }
}

#[test]
fn compressed_in_several_members() {
    let file = pcap(LITTLE, MICROS, 1, &sample());
    let (head, tail) = file.split_at(50);
    assert_eq!(read_whole(&[gzip(head), gzip(b""), gzip(tail)].concat()), sample());
    let skippable = [&[0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
    assert_eq!(read_whole(&[zstd(head), skippable.clone(), zstd(tail)].concat()), sample());
    assert_eq!(read_whole(&[skippable, zstd(&file)].concat()), sample());
}

#[test]
fn link_types() {
    let expected_links = [
        (1, LinkType::Ethernet),
        (0x1000_0001, LinkType::Ethernet), // with the length of a frame check sequence
        (0, LinkType::Null),
        (108, LinkType::Null),
        (12, LinkType::Raw),
        (14, LinkType::Raw),
        (101, LinkType::Raw),
        (228, LinkType::Raw),
        (229, LinkType::Raw),
        (113, LinkType::LinuxSll),
        (276, LinkType::LinuxSll2),
    ];
    for (number, link) in expected_links {
        let packets = read_whole(&pcap(LITTLE, MICROS, number, &sample()));
        assert!(packets.iter().all(|packet| packet.link == link), "{number}");
        assert_eq!(packets.len(), 3);
    }
}

#[test]
fn unsupported_link_types_are_skipped_and_counted() {
    let mut file = [section(LITTLE), interface(LITTLE, 127, 0, b""), interface(LITTLE, 1, 0, b"")].concat();
    for interface in [0, 1, 0] {
        file.extend(enhanced_packet(LITTLE, interface, 0, b"data", 4));
    }
    let mut recording = open(&file).unwrap();
    assert_eq!(drain(&mut recording).0.len(), 1);
    assert_eq!(recording.packets(), 1);
    let [skipped] = recording.unsupported_link_types() else { panic!("not one") };
    assert_eq!(
        skipped.to_string(),
        "2 packets of link type 127 (802.11) skipped; memtap reads Ethernet, Linux cooked, raw IP and BSD loopback"
    );
}

#[test]
fn interfaces_have_their_own_link_types_and_clocks() {
    let option = |code, value: &[u8]| option(LITTLE, code, value);
    let interfaces = [
        interface(LITTLE, 1, 0, b""), // microseconds
        interface(LITTLE, 101, 0, &option(9, &[3])),
        interface(LITTLE, 113, 0, &option(9, &[12])),
        interface(LITTLE, 276, 0, &option(9, &[0x80 | 10])),
        interface(
            LITTLE,
            0,
            0,
            &[option(2, b"eth0"), option(9, &[0]), option(14, &60i64.to_le_bytes())].concat(),
        ),
        interface(LITTLE, 1, 0, &option(14, &(-10i64).to_le_bytes())),
        interface(LITTLE, 1, 0, &option(9, &[127])), // finer than we can count
    ];
    let mut file = [section(LITTLE), interfaces.concat()].concat();
    let ticks = [5_000_001, 5_001, 5_000_000_000_999, 5 * 1024 + 512, 7, 15_000_000, 42];
    for (index, ticks) in ticks.into_iter().enumerate() {
        file.extend(enhanced_packet(LITTLE, index as u32, ticks, b"data", 4));
    }
    let found: Vec<_> = read_whole(&file).iter().map(|packet| (packet.link, packet.nanos)).collect();
    let expected = [
        (LinkType::Ethernet, 5_000_001_000),
        (LinkType::Raw, 5_001_000_000),
        (LinkType::LinuxSll, 5_000_000_000),
        (LinkType::LinuxSll2, 5_500_000_000),
        (LinkType::Null, 67_000_000_000),
        (LinkType::Ethernet, 5_000_000_000),
        (LinkType::Ethernet, 0),
    ];
    assert_eq!(found, expected);
}

#[test]
fn time_offset_in_either_byte_order() {
    for (order, seconds) in [(LITTLE, 9i64.to_le_bytes()), (BIG, 9i64.to_be_bytes())] {
        let interface = interface(order, 1, 0, &option(order, 14, &seconds));
        let packet = enhanced_packet(order, 0, 1, b"data", 4);
        let packets = read_whole(&[section(order), interface, packet].concat());
        assert_eq!(packets[0].nanos, 9_000_001_000);
    }
}

#[test]
fn simple_and_obsolete_packets() {
    for order in [LITTLE, BIG] {
        let mut file = [section(order), interface(order, 1, 6, b"")].concat();
        file.extend(enhanced_packet(order, 0, 3, b"data", 4));
        // Cut by the interface's limit to six bytes; its time is that of the packet before.
        file.extend(block(order, 3, &[&order.u32(1000)[..], b"simple"].concat()));
        let interface_and_drops = [order.u16(0), order.u16(17)].concat();
        let fixed = [interface_and_drops, order.words(&[0, 9, 3, 60])].concat();
        file.extend(block(order, 2, &[&fixed, &b"old"[..]].concat()));
        let packets = read_whole(&file);
        let expected =
            [expected(3_000, b"data", 4), expected(3_000, b"simple", 1000), expected(9_000, b"old", 60)];
        assert_eq!(packets, expected);
    }
}

#[test]
fn sections_of_different_byte_order() {
    let file = [pcapng(LITTLE, &sample()), pcapng(BIG, &sample()), pcapng(LITTLE, &sample())].concat();
    assert_eq!(read_whole(&file), [sample(), sample(), sample()].concat());
}

#[test]
fn interfaces_end_with_their_section() {
    let file = [pcapng(LITTLE, &sample()), section(LITTLE), enhanced_packet(LITTLE, 0, 0, b"x", 1)].concat();
    let (packets, error) = read(&file);
    assert_eq!(packets, sample());
    let Some(RecordingError::Damaged { damage, packets: 3, .. }) = error else { panic!("{error:?}") };
    assert_eq!(damage, Damage::Interface { interface: 0, described: 0 });
}

#[test]
fn unknown_blocks_are_skipped_however_long() {
    let name_resolution = block(LITTLE, 4, &[0; 8]);
    let statistics = block(LITTLE, 5, &[0; 12]);
    let custom = block(LITTLE, 0x0bad, &vec![7; 2 * 1024 * 1024]);
    let file = pcapng(LITTLE, &sample());
    let (head, packets) = file.split_at(section(LITTLE).len());
    let file = [head, &name_resolution, &custom, packets, &statistics, &custom].concat();
    assert_eq!(read_whole(&file), sample());
}

#[test]
fn packets_longer_than_the_buffer() {
    let long = vec![0x5a; 3 << 20];
    let packets = [sample(), vec![expected(START, &long, long.len() as u32)], sample()].concat();
    for (name, file) in every_format(&packets) {
        assert!(read_whole(&file) == packets, "{name}");
    }
}

#[test]
fn recorders_slip_in_the_wire_length() {
    let packets = [expected(START, b"longer than told", 3)];
    for (_, file) in every_format(&packets) {
        assert_eq!(read_whole(&file), [expected(START, b"longer than told", 16)]);
    }
}

#[test]
fn recordings_cut_anywhere() {
    for (name, file) in every_format(&sample()) {
        let boundaries = record_boundaries(&file);
        for length in 0..file.len() {
            let (packets, error) = read(&file[..length]);
            assert!(sample().starts_with(&packets), "{name} cut to {length}");
            let is_boundary = boundaries.contains(&length);
            assert_eq!(error.is_none(), is_boundary, "{name} cut to {length}: {error:?}");
            if let Some(RecordingError::Damaged { offset, packets: count, damage, .. }) = error {
                let start = boundaries.iter().rev().find(|&&start| start <= length).copied().unwrap_or(0);
                assert_eq!((offset, count), (start as u64, packets.len() as u64), "{name} cut to {length}");
                assert!(matches!(damage, Damage::CutShort { .. }), "{name} cut to {length}: {damage:?}");
            }
        }
    }
}

/// Lengths at which a file may end without a damage.
fn record_boundaries(file: &[u8]) -> Vec<usize> {
    let mut recording = open(file).unwrap();
    let mut boundaries = vec![recording.source.offset as usize];
    while let Some(_packet) = recording.next_packet().unwrap() {
        boundaries.push(recording.source.record_offset() as usize);
        boundaries.push(recording.source.offset as usize);
    }
    boundaries
}

#[test]
fn compressed_recordings_cut_anywhere() {
    let file = pcap(LITTLE, MICROS, 1, &sample());
    for compressed in [gzip(&file), zstd(&file)] {
        for length in 4..compressed.len() {
            let (packets, error) = read(&compressed[..length]);
            assert!(sample().starts_with(&packets));
            assert!(matches!(error, Some(RecordingError::Damaged { .. })), "cut to {length}: {error:?}");
        }
    }
}

#[test]
fn what_precedes_a_damaged_member_is_read() {
    let file = pcap(LITTLE, MICROS, 1, &sample());
    let mut damaged = gzip(b"more");
    damaged[12] ^= 0xff;
    let (packets, error) = read(&[gzip(&file), damaged].concat());
    assert_eq!(packets, sample());
    let Some(RecordingError::Damaged { damage: Damage::Compression { .. }, .. }) = error else {
        panic!("{error:?}");
    };
}

#[test]
fn damages_say_where_and_what() {
    let whole = pcap(LITTLE, MICROS, 1, &sample());
    let mut huge = whole.clone();
    huge.extend(LITTLE.words(&[1, 1, 0x8000_0000, 0x8000_0000]));
    let zeros = [&whole[..], &[0; 512]].concat();
    let ng = pcapng(LITTLE, &sample());
    let short_block = [&ng[..], &LITTLE.words(&[6, 8, 8])].concat();
    let mut contradicted = ng.clone();
    contradicted.extend(enhanced_packet(LITTLE, 0, 0, b"data", 4));
    *contradicted.last_mut().unwrap() ^= 1;
    let mut overlong = enhanced_packet(LITTLE, 0, 0, b"data", 4);
    overlong[20..24].copy_from_slice(&LITTLE.u32(500));
    let unknown = [&ng[..], &LITTLE.words(&[0x0bad, 4096, 1, 2])].concat();
    let cases = [
        (
            whole[..60].to_vec(),
            "test.pcap is damaged at byte 52, after 1 packets: it ends in the middle of a record (8 of 16 bytes); \
             the recorder was interrupted, or is still writing: wait for it or copy the file again",
        ),
        (
            huge,
            "test.pcap is damaged at byte 87, after 3 packets: a packet claims 2147483648 bytes where at most \
             67108864 are possible; copy the file again; the figures cover what precedes",
        ),
        (
            zeros,
            "test.pcap is damaged at byte 87, after 3 packets: there are only zeros where a packet should begin; \
             the recorder was interrupted: the figures cover what precedes",
        ),
        (
            short_block,
            "test.pcap is damaged at byte 232, after 3 packets: a block claims 8 bytes, which is impossible or \
             contradicted at its end; copy the file again; the figures cover what precedes",
        ),
        (
            contradicted,
            "test.pcap is damaged at byte 232, after 3 packets: a block claims 56 bytes, which is impossible or \
             contradicted at its end; copy the file again; the figures cover what precedes",
        ),
        (
            [&ng[..], &overlong].concat(),
            "test.pcap is damaged at byte 232, after 3 packets: a packet claims 500 bytes where at most 24 are \
             possible; copy the file again; the figures cover what precedes",
        ),
        (
            unknown,
            "test.pcap is damaged at byte 232, after 3 packets: it ends in the middle of a record (16 of 4096 \
             bytes); the recorder was interrupted, or is still writing: wait for it or copy the file again",
        ),
    ];
    for (file, message) in cases {
        assert_eq!(read(&file).1.map(|error| error.to_string()).as_deref(), Some(message));
    }
}

#[test]
fn what_is_no_recording() {
    let cases = [
        (&b""[..], "it is empty"),
        (b"ab", "it has less than four bytes"),
        (b"get user:1\r\n", "it is text that begins with \"get \""),
        (b"\xfd7zXZ\0", "it is compressed with xz, decompress it first"),
        (b"\x7fELF\x02", "it begins with the bytes 7f 45 4c 46"),
    ];
    for (file, found) in cases {
        let message = open(file).map(|_| ()).unwrap_err().to_string();
        let advice = "memtap reads pcap and pcapng, also compressed with gzip or zstd";
        assert_eq!(message, format!("test.pcap is not a recording: {found}; {advice}"));
    }
}

#[test]
fn missing_file() {
    let error = Recording::open("/nonexistent/recording.pcap").unwrap_err().to_string();
    assert!(error.starts_with("cannot open /nonexistent/recording.pcap: No such file"), "{error}");
}

/// Delivers a file in small reads, and fails at its end when told to.
struct Trickle {
    bytes: Vec<u8>,
    at: usize,
    step: usize,
    failure: Option<i32>,
}

impl Read for Trickle {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.step.min(buffer.len()).min(self.bytes.len() - self.at);
        if count == 0
            && let Some(code) = self.failure
        {
            return Err(io::Error::from_raw_os_error(code));
        }
        buffer[..count].copy_from_slice(&self.bytes[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

#[test]
fn failing_disk_after_what_was_readable() {
    for file in [pcap(LITTLE, MICROS, 1, &sample()), gzip(&pcap(LITTLE, MICROS, 1, &sample()))] {
        let bytes = [&file[..], &file[..10]].concat(); // a part of something more
        let trickle = Trickle { bytes, at: 0, step: 7, failure: Some(5) };
        let mut recording = Recording::from_reader(trickle, "disk", None).unwrap();
        let (packets, error) = drain(&mut recording);
        assert_eq!(packets, sample());
        let Some(RecordingError::Read { source, .. }) = error else { panic!("{error:?}") };
        assert_eq!(source.raw_os_error(), Some(5));
        assert!(matches!(recording.next_packet(), Ok(None)), "nothing comes after an error");
    }
}

#[test]
fn progress_runs_to_the_files_size() {
    let file = gzip(&pcap(LITTLE, MICROS, 1, &sample()));
    let mut recording = open(&file).unwrap();
    assert!(recording.progress().read_bytes > 0);
    drain(&mut recording);
    let size = file.len() as u64;
    assert_eq!(recording.progress(), Progress { read_bytes: size, total_bytes: Some(size) });
    assert_eq!(recording.packets(), 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn size_of_reads_does_not_matter(
        lengths in proptest::collection::vec(0usize..3000, 1..60),
        step in 1usize..5000,
        format in any::<prop::sample::Index>(),
    ) {
        let packets: Vec<_> = lengths.iter().enumerate().map(|(index, &length)| {
            expected(START + 1000 * index as u64, &vec![index as u8; length], length as u32 + 1)
        }).collect();
        let formats = every_format(&packets);
        let bytes = formats[format.index(formats.len())].1.clone();
        let trickle = Trickle { bytes, at: 0, step, failure: None };
        let mut recording = Recording::from_reader(trickle, "trickle", None).unwrap();
        let (found, error) = drain(&mut recording);
        prop_assert!(error.is_none());
        prop_assert!(found == packets);
    }

    #[test]
    fn damaged_recordings_are_harmless(
        format in any::<prop::sample::Index>(),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..8),
    ) {
        let formats = every_format(&sample());
        let mut file = formats[format.index(formats.len())].1.clone();
        for (index, bit) in flips {
            let index = index.index(file.len());
            file[index] ^= 1 << bit;
        }
        for packet in read(&file).0 {
            prop_assert!(packet.bytes.len() <= file.len() && packet.wire_bytes as usize >= packet.bytes.len());
        }
    }
}

#[test]
fn every_single_flipped_bit_leaves_what_precedes() {
    for (name, file) in every_format(&sample()) {
        let boundaries = record_boundaries(&file);
        for index in 0..file.len() {
            for bit in 0..8 {
                let mut damaged = file.clone();
                damaged[index] ^= 1 << bit;
                let (packets, _) = read(&damaged);
                // The head counts twice (as boundary and as start of the first record); a packet twice as well.
                let before = boundaries.iter().skip(1).filter(|&&end| end <= index).count() / 2;
                assert!(packets.len() >= before, "{name} byte {index} bit {bit}");
                assert_eq!(packets[..before], sample()[..before], "{name} byte {index} bit {bit}");
            }
        }
    }
}

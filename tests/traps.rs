//! What networks and capture points do to packets, on a recording of five client libraries.
//!
//! Where nothing is lost the figures equal those of the clean recording, to the last (client socket, key, command, outcome).
//! Where something is lost, at least the share that the measurements of the reference decoder promise is counted, no hit and no
//! miss is claimed that did not happen, and no key appears that was never sent.

mod support;

use memtap::capture::LinkType;
use memtap::capture::pcap::Recording;
use memtap::model::{Command, Outcome};
use std::sync::OnceLock;
use support::exact::{Exact, run_frames};
use support::scenario::Frame;
use support::transform as t;

const GETS: [Command; 3] = [Command::Get, Command::Gets, Command::MetaGet];

fn base() -> &'static (Vec<Frame>, Exact) {
    static BASE: OnceLock<(Vec<Frame>, Exact)> = OnceLock::new();
    BASE.get_or_init(|| {
        let path = support::fixture("clients/base_small_nooffload.pcap.zst");
        let mut recording = Recording::open(&path).expect("the base recording opens");
        let mut frames = Vec::new();
        while let Some(packet) = recording.next_packet().expect("the base recording is whole") {
            frames.push(Frame {
                timestamp: packet.timestamp,
                bytes: packet.bytes.to_vec(),
                wire_bytes: packet.wire_bytes,
            });
        }
        let exact = run_frames(&frames, LinkType::Ethernet);
        (frames, exact)
    })
}

#[track_caller]
fn check_exact(frames: &[Frame], link: LinkType) {
    let (_, base) = base();
    let found = run_frames(frames, link);
    let differences = found.differences(base, 8);
    assert!(differences.is_empty(), "{differences:#?}\n{:?}", found.tally);
    assert_eq!(found.tally.payload_bytes, base.tally.payload_bytes, "{:?}", found.tally);
}

/// At least these shares of the base's gets counted, and of them with their outcome known.
#[track_caller]
fn check_lossy(frames: &[Frame], link: LinkType, counted: f64, known: f64) -> (f64, f64) {
    let (_, base) = base();
    let found = run_frames(frames, link);
    let (wrong, forged) = (found.wrong_outcomes(base), found.forged_keys(base));
    assert!(wrong.is_empty(), "{} wrong outcomes: {:#?}", wrong.len(), &wrong[..wrong.len().min(8)]);
    assert!(forged.is_empty(), "forged keys: {forged:?}");
    let gets = base.count(&GETS, None) as f64;
    let seen = found.count(&GETS, None) as f64;
    let outcomes = (found.count(&GETS, Some(Outcome::Hit)) + found.count(&GETS, Some(Outcome::Miss))) as f64;
    let shares = format!("gets counted {:.4}, outcomes known {:.4}", seen / gets, outcomes / gets);
    assert!(seen / gets >= counted && outcomes / gets >= known, "{shares}; {:?}", found.tally);
    assert!(seen <= gets, "{shares}");
    (seen / gets, outcomes / gets)
}

const ETHERNET: LinkType = LinkType::Ethernet;

#[test]
fn loss_of_a_hundredth_of_a_percent() {
    check_lossy(&t::drop_random(&base().0, 0.0001, 1), ETHERNET, 0.9999, 0.99985);
}

#[test]
fn loss_of_a_tenth_of_a_percent() {
    check_lossy(&t::drop_random(&base().0, 0.001, 2), ETHERNET, 0.998, 0.986);
}

#[test]
fn loss_of_one_percent() {
    // Which packets are lost moves the shares by a percent either way: all runs must hold, and their mean is the promise.
    let (mut counted, mut known) = (0.0, 0.0);
    for seed in [3, 10, 11, 12, 13] {
        let shares = check_lossy(&t::drop_random(&base().0, 0.01, seed), ETHERNET, 0.97, 0.89);
        counted += shares.0 / 5.0;
        known += shares.1 / 5.0;
    }
    assert!(counted >= 0.982 && known >= 0.91, "mean: counted {counted:.4}, known {known:.4}");
}

#[test]
fn loss_in_bursts() {
    check_lossy(&t::drop_bursts(&base().0, 5), ETHERNET, 0.974, 0.969);
}

#[test]
fn every_frame_twice() {
    check_exact(&t::duplicate_adjacent(&base().0), ETHERNET);
}

#[test]
fn every_frame_again_later() {
    check_exact(&t::duplicate_late(&base().0), ETHERNET);
}

#[test]
fn every_frame_again_with_a_tag() {
    check_exact(&t::duplicate_tagged(&base().0), ETHERNET);
}

#[test]
fn every_frame_again_behind_a_router() {
    check_exact(&t::duplicate_routed(&base().0), ETHERNET);
}

#[test]
fn reordered() {
    check_lossy(&t::reorder(&base().0, 7), ETHERNET, 1.0, 0.9998);
}

#[test]
fn one_direction_only_requests() {
    let (frames, base) = base();
    let found = run_frames(&t::one_way(frames, true), ETHERNET);
    assert!(found.wrong_outcomes(base).is_empty() && found.forged_keys(base).is_empty());
    let tcp_gets = found.count(&GETS, None) as f64 / base.count(&GETS, None) as f64;
    assert!(tcp_gets > 0.99, "gets counted {tcp_gets:.4}");
    assert_eq!(found.count(&GETS, Some(Outcome::Hit)) + found.count(&GETS, Some(Outcome::Miss)), 0);
}

#[test]
fn one_direction_only_responses() {
    let (frames, base) = base();
    let found = run_frames(&t::one_way(frames, false), ETHERNET);
    assert!(found.forged_keys(base).is_empty());
    let hits = found.count(&GETS, Some(Outcome::Hit)) as f64 / base.count(&GETS, Some(Outcome::Hit)) as f64;
    assert!(hits > 0.4 && hits <= 1.0, "hits known {hits:.4}: those of text and of GETK name their key");
    assert_eq!(found.count(&GETS, Some(Outcome::Miss)), 0);
}

#[test]
fn found_in_mid_stream() {
    for share in [0.3, 0.7] {
        let late = t::midstream(&base().0, share);
        let found = run_frames(&late, ETHERNET);
        assert!(found.wrong_outcomes(&base().1).is_empty(), "{:#?}", found.wrong_outcomes(&base().1));
        assert!(found.forged_keys(&base().1).is_empty());
        let unseen = found.count(&GETS, Some(Outcome::Unseen));
        assert!(
            unseen <= 260,
            "{unseen} gets without outcome, more than a multi-get for each open connection"
        );
        assert!(found.count(&GETS, None) as f64 > base().1.count(&GETS, None) as f64 * (1.0 - share) * 0.8);
    }
}

#[test]
fn snapped() {
    check_exact(&t::snap(&base().0, 1514), ETHERNET);
    for length in [68, 96, 128, 256] {
        let found = run_frames(&t::snap(&base().0, length), ETHERNET);
        let wrong = found.wrong_outcomes(&base().1);
        assert!(wrong.is_empty(), "snapped to {length}: {:#?}", &wrong[..wrong.len().min(8)]);
        let forged = found.forged_keys(&base().1);
        assert!(forged.is_empty(), "snapped to {length}: {:?}", &forged[..forged.len().min(4)]);
    }
}

#[test]
fn encapsulated() {
    for name in t::ENCAPSULATIONS {
        let found = run_frames(&t::encapsulate(&base().0, name), ETHERNET);
        let differences = found.differences(&base().1, 4);
        assert!(differences.is_empty(), "{name}: {differences:#?}");
    }
}

#[test]
fn fragmented() {
    check_exact(&t::fragment(&base().0, None), ETHERNET);
    check_exact(&t::fragment(&base().0, Some(11)), ETHERNET);
}

#[test]
fn keepalives_retransmissions_overlaps() {
    check_exact(&t::keepalive_retransmit_overlap(&base().0, 13), ETHERNET);
}

#[test]
fn tiny_segments() {
    check_exact(&t::tiny_segments(&base().0, 7), ETHERNET);
}

#[test]
fn big_tcp() {
    check_exact(&t::big_tcp(&base().0), ETHERNET);
}

#[test]
fn other_link_types() {
    check_exact(&t::link_raw(&base().0), LinkType::Raw);
    check_exact(&t::link_sll(&base().0), LinkType::LinuxSll);
}

#[test]
fn checksums_are_never_verified() {
    let mut frames = base().0.clone();
    for frame in &mut frames {
        let ipv4 = frame.bytes[12..14] == [8, 0];
        let (ip_checksum, tcp_checksum) = if ipv4 { (Some(24), 34 + 16) } else { (None, 54 + 16) };
        for at in ip_checksum.into_iter().chain([tcp_checksum]) {
            if let Some(checksum) = frame.bytes.get_mut(at..at + 2) {
                checksum.fill(0xee);
            }
        }
    }
    check_exact(&frames, ETHERNET);
}

#[test]
fn one_direction_tagged() {
    let tagged = t::encapsulate(&base().0, "vlan");
    let frames: Vec<Frame> =
        base()
            .0
            .iter()
            .zip(tagged)
            .map(|(plain, tagged)| {
                if t::one_way(std::slice::from_ref(plain), true).is_empty() { plain.clone() } else { tagged }
            })
            .collect();
    check_exact(&frames, ETHERNET);
}

/// "Port unreachable" and its kin quote the packet that they answer.
#[test]
fn errors_that_quote_packets_are_foreign() {
    let mut frames = Vec::new();
    for frame in &base().0 {
        frames.push(frame.clone());
        if frame.bytes[12..14] == [8, 0] {
            let quoted = &frame.bytes[14..frame.bytes.len().min(14 + 576)];
            let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
                .ipv4([10, 0, 0, 9], [10, 0, 0, 8], 64)
                .icmpv4_raw(3, 3, [0; 4]);
            let mut bytes = Vec::new();
            builder.write(&mut bytes, quoted).expect("the error can be built");
            let wire_bytes = bytes.len() as u32;
            frames.push(Frame { timestamp: frame.timestamp, bytes, wire_bytes });
        }
    }
    check_exact(&frames, ETHERNET);
}

/// The table in `docs/traps.md` names tests and scenarios that there are, and leaves no number out.
#[test]
fn every_trap_has_its_test() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = std::fs::read_to_string(root.join("docs/traps.md")).expect("the table of traps");
    let mut sources = String::new();
    let mut folders = vec![root.join("src"), root.join("tests")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                sources.push_str(&std::fs::read_to_string(path).expect("a source file"));
            }
        }
    }
    let exists = |name: &str| {
        let macro_line = |line: &str| line.trim_start().starts_with(&format!("{name} \""));
        sources.contains(&format!("fn {name}("))
            || sources.lines().any(macro_line)
            || root.join(format!("tests/scenarios/{name}.txt")).exists()
            || root.join(name).exists()
    };
    let (network, protocol) = table.split_once("## The protocol").expect("two tables");
    for (part, last) in [(network, 36), (protocol, 35)] {
        for number in 1..=last {
            let start = format!("| {number} | ");
            let line = part
                .lines()
                .find(|line| line.starts_with(&start))
                .unwrap_or_else(|| panic!("no line {number}"));
            let tests = line.rsplit('|').nth(1).expect("a column of tests");
            let names: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
            assert!(!names.is_empty(), "line {number} names no test");
            for name in names {
                assert!(exists(name), "line {number} names {name}, which is nowhere");
            }
        }
    }
}

/// The rules that `tests/mutants.py` takes out one by one are still where it looks for them.
#[test]
fn every_mutation_fits_the_source() {
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mutants.py");
    let output = std::process::Command::new("python3").arg(script).arg("--check").output();
    let output = output.expect("python3 runs (./check installs it)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

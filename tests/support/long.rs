//! A long recording, made by repeating a short one.

use super::scenario::{Frame, pcap};
use memtap::capture::pcap::Recording;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Duration;

/// The packets of a recording.
pub fn frames_of(path: impl AsRef<Path>) -> Vec<Frame> {
    let mut recording = Recording::open(path).unwrap();
    let mut frames = Vec::new();
    while let Some(packet) = recording.next_packet().unwrap() {
        let (timestamp, bytes, wire_bytes) = (packet.timestamp, packet.bytes.to_vec(), packet.wire_bytes);
        frames.push(Frame { timestamp, bytes, wire_bytes });
    }
    frames
}

/// The same packets again would be retransmissions, and are counted once: each copy comes from a network of its own.
/// Ethernet and IPv4 without options; the server's port tells the client's address.
fn move_client(frame: &mut [u8], copy: u32) {
    const SOURCE: usize = 26;
    const DESTINATION: usize = 30;
    const DESTINATION_PORT: usize = 36;
    let to_server = frame[DESTINATION_PORT..DESTINATION_PORT + 2] == 11211u16.to_be_bytes();
    let client = if to_server { SOURCE } else { DESTINATION };
    frame[client + 1..client + 3].copy_from_slice(&u16::try_from(copy).unwrap().to_be_bytes());
}

/// Writes the frames over and over, each time later, until there are so many packets; says how many there are.
pub fn write_long(path: &Path, frames: &[Frame], packets: u64) -> u64 {
    let (first, last) = (frames[0].timestamp, frames[frames.len() - 1].timestamp);
    // A pause between the copies, so that the connections of one are closed before the next begins.
    let period = last.since(first) + Duration::from_millis(100);
    let mut file = BufWriter::new(File::create(path).unwrap());
    let head_bytes = 24;
    let mut written = 0;
    for copy in 0.. {
        if written >= packets {
            break;
        }
        let shifted: Vec<Frame> = frames
            .iter()
            .map(|frame| {
                let mut frame = Frame { timestamp: frame.timestamp.plus(period * copy), ..frame.clone() };
                move_client(&mut frame.bytes, copy);
                frame
            })
            .collect();
        let bytes = pcap(&shifted);
        file.write_all(if copy == 0 { &bytes } else { &bytes[head_bytes..] }).unwrap();
        written += frames.len() as u64;
    }
    file.flush().unwrap();
    written
}

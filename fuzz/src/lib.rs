//! What memtap does with bytes that nobody meant for it. One function for each target, each from input bytes to nothing, or a panic.
//!
//! `cargo fuzz run TARGET` drives them with coverage on a nightly toolchain; `tests/fuzz_bounded.rs` drives the same functions
//! over mutated corpus inputs on the stable one. What every target asserts:
//!
//! * nothing panics, overflows, or reads outside of what it was lent;
//! * a key has 1 to 250 bytes for keyed commands, none for others, and stood in a request or an answer that was lent to the parser
//!   (decoded, where a meta command sent it in base64);
//! * bytes in = parsed + skipped + unparsed, by the counters of [`TargetTally`]; gaps are beside it;
//! * no growth: tables stay within their limits at every step, and are empty when every flow is closed.

mod conversation;
mod packets;
mod stage;

pub use conversation::{binary, meta, reassembly, text, udp};
pub use packets::{block_walk, decode, pipeline};

/// A target: its name, which is also the name of its corpus, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 8] = [
    ("block_walk", block_walk),
    ("decode", decode),
    ("reassembly", reassembly),
    ("text", text),
    ("meta", meta),
    ("binary", binary),
    ("udp", udp),
    ("pipeline", pipeline),
];

/// Input bytes, taken from the front. What is not there reads as zero or as nothing.
struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    fn new(rest: &'a [u8]) -> Input<'a> {
        Input { rest }
    }

    fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(count.min(self.rest.len()));
        self.rest = rest;
        taken
    }
}

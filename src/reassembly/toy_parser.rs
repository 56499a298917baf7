//! The parser of reassembly's tests.
//!
//! Its protocol: a message is a line `NAME LENGTH`, where the name has lower-case letters and digits only, followed by LENGTH
//! bytes of body. The log that it writes is what the tests look at: `>a` is a client's message named a, `<b` a server's,
//! `>gap 7` a gap of seven bytes, `>close` an end.

use super::{Demand, StreamBytes, StreamEvent};
use crate::model::Direction;

/// What the toy parser remembers of a flow.
#[derive(Default)]
pub(super) struct Toy {
    lost: [bool; 2],
}

/// What the toy parser has seen, over all flows.
#[derive(Default)]
pub(super) struct Recorder {
    pub(super) log: Vec<String>,
    /// Bytes used and asked to be skipped, per direction.
    pub(super) used: [u64; 2],
    pub(super) skipped: [u64; 2],
    /// For each message: its position and what its segment acknowledged.
    pub(super) places: Vec<(u32, u32)>,
    /// For each offer: `segment_start`, `idle`, `quiescent`.
    pub(super) offers: Vec<(bool, bool, bool)>,
    /// Whether a client's message is an anchor only when the server agrees.
    pub(super) strict: bool,
    /// Whether any message at the start of a segment ends a search, in both directions.
    pub(super) credulous: bool,
    /// Use one message at a time, or all.
    pub(super) one_by_one: bool,
    pub(super) closes: usize,
}

/// Name, head length and body length of the message at the front; `None` when it is incomplete, an error when it is none.
fn toy_message(bytes: &[u8]) -> Result<Option<(String, usize, u64)>, ()> {
    let end = memchr::memchr(b'\n', bytes);
    let line = std::str::from_utf8(&bytes[..end.unwrap_or(bytes.len())]).map_err(|_| ())?;
    let name_end = line.find(' ').unwrap_or(line.len());
    let valid = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    if line.starts_with(' ') || !line[..name_end].bytes().all(valid) {
        return Err(());
    }
    let Some(end) = end else { return Ok(None) };
    let body = line.get(name_end + 1..).and_then(|length| length.parse().ok()).ok_or(())?;
    Ok(Some((line[..name_end].to_owned(), end + 1, body)))
}

fn sign(direction: Direction) -> &'static str {
    match direction {
        Direction::ToServer => ">",
        Direction::ToClient => "<",
    }
}

impl Recorder {
    pub(super) fn hear(&mut self, toy: &mut Toy, event: StreamEvent<'_>) -> Demand {
        match event {
            StreamEvent::Bytes(offer) => return self.read(toy, offer),
            StreamEvent::Gap { direction, bytes } => {
                toy.lost[direction.index()] = true;
                self.log.push(format!("{}gap {bytes}", sign(direction)));
            }
            StreamEvent::BodyEnd { .. } => {}
            StreamEvent::Close { direction } => {
                self.closes += 1;
                self.log.push(format!("{}close", sign(direction)));
            }
        }
        Demand::used(0)
    }

    fn read(&mut self, toy: &mut Toy, offer: StreamBytes<'_>) -> Demand {
        let own = offer.direction.index();
        self.offers.push((offer.segment_start, offer.idle, offer.quiescent));
        assert!(!offer.bytes.is_empty());
        let mut anchored = false;
        if toy.lost[own] {
            let message = toy_message(offer.bytes);
            let anchor = if self.strict { offer.quiescent } else { offer.idle };
            if !offer.segment_start || !matches!(message, Ok(Some(_))) || !(anchor || self.credulous) {
                return Demand::lost(0);
            }
            toy.lost[own] = false;
            anchored = own == 0 && anchor;
        }
        if own == 0 && toy.lost[1] && offer.idle {
            toy.lost[1] = false;
            anchored = true;
        }
        let mut used = 0;
        let demand = loop {
            match toy_message(&offer.bytes[used..]) {
                Ok(Some((name, head, body))) => {
                    self.log.push(format!("{}{name}", sign(offer.direction)));
                    self.places.push((offer.position.wrapping_add(used as u32), offer.acknowledged));
                    used += head;
                    if body > 0 || self.one_by_one {
                        break Demand::skip(used, body);
                    }
                }
                Ok(None) => break Demand::used(used),
                Err(()) => {
                    toy.lost[own] = true;
                    break Demand::lost(used);
                }
            }
        };
        self.used[own] += demand.used as u64;
        self.skipped[own] += demand.skip;
        Demand { anchored, ..demand }
    }
}

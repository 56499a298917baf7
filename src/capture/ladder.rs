//! The load ladder: to keep less of the traffic on purpose, before the ring loses it at random.
//!
//! A packet lost at random costs the exchange that it belongs to and leaves a hole in its connection. The tails of big responses
//! cost nothing but the kernel's copying, and responses as a whole cost outcomes and response times but no request. So while a
//! ring loses packets its filter keeps less, one rung after the other, and more again when the load has passed.
//!
//! A pure state machine over figures of the ring, one look a second; whoever owns the ring exchanges the filter.

use super::filter::{FilterSpec, SNAPLEN_NONE};

/// What is kept of the traffic. The greater, the less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rung {
    /// As configured.
    #[default]
    Full,
    /// Of each packet of a response the first [`HEAD_BYTES`].
    Heads,
    /// Requests alone.
    Requests,
}

impl Rung {
    /// All, from the top.
    pub const ALL: [Rung; 3] = [Rung::Full, Rung::Heads, Rung::Requests];

    /// As reports name it.
    pub const fn name(self) -> &'static str {
        match self {
            Rung::Full => "full",
            Rung::Heads => "heads",
            Rung::Requests => "requests",
        }
    }

    /// What is not known on this rung; nothing on the top one.
    pub const fn cost(self) -> &'static str {
        match self {
            Rung::Full => "nothing is unseen",
            Rung::Heads => "outcomes behind the first bytes of a packet are unseen",
            Rung::Requests => "outcomes, response times and bytes out are unseen",
        }
    }

    /// The filter of this rung for traffic that is wanted like that.
    pub fn apply(self, wanted: &FilterSpec) -> FilterSpec {
        let response_snaplen = match self {
            Rung::Full => wanted.response_snaplen,
            Rung::Heads => wanted.response_snaplen.min(HEAD_BYTES),
            Rung::Requests => SNAPLEN_NONE,
        };
        FilterSpec { response_snaplen, ..wanted.clone() }
    }

    fn below(self) -> Option<Rung> {
        Rung::ALL.get(self as usize + 1).copied()
    }

    fn above(self) -> Option<Rung> {
        Rung::ALL.get((self as usize).wrapping_sub(1)).copied()
    }
}

/// Of a response packet on the rung of heads: all headers, the answer's first line with a key of the longest kind, and more lines
/// where values are short.
pub const HEAD_BYTES: u32 = 384;

/// Lost packets of a thousand that are borne: below, holes cost less than a rung does.
const LOSS_BORNE_PER_THOUSAND: u64 = 1;

/// Looks in a row with loss before the ladder is stepped down: a single burst passes by itself.
const LOOKS_BEFORE_DOWN: u32 = 2;

/// Looks in a row without loss, and with the ring less than half full, before it is stepped up; at first, …
const LOOKS_BEFORE_UP: u32 = 10;

/// … and at most. Each step up that does not last doubles the number, so that the ladder does not swing.
const LOOKS_BEFORE_UP_MAX: u32 = 320;

/// What a ring has seen since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingLook {
    /// Packets that passed the filter, dropped ones included.
    pub packets: u64,
    /// Of these, what the ring had no room for.
    pub packets_dropped: u64,
    /// Most blocks that waited at once.
    pub blocks_waiting_max: u32,
    /// Blocks of the ring.
    pub blocks: u32,
}

impl RingLook {
    /// Adds what was seen after it.
    pub fn add(&mut self, later: RingLook) {
        self.packets += later.packets;
        self.packets_dropped += later.packets_dropped;
        self.blocks_waiting_max = self.blocks_waiting_max.max(later.blocks_waiting_max);
        self.blocks = later.blocks;
    }
}

/// Where one worker stands.
#[derive(Clone, Debug)]
pub struct Ladder {
    rung: Rung,
    looks_lossy: u32,
    looks_calm: u32,
    looks_before_up: u32,
    /// Looks since the last step up, while it is not certain to last.
    since_up: Option<u32>,
}

impl Default for Ladder {
    fn default() -> Ladder {
        Ladder {
            rung: Rung::Full,
            looks_lossy: 0,
            looks_calm: 0,
            looks_before_up: LOOKS_BEFORE_UP,
            since_up: None,
        }
    }
}

impl Ladder {
    /// The rung in force.
    pub fn rung(&self) -> Rung {
        self.rung
    }

    /// Takes a second's figures; advises another rung when it is time for one. It is in force after [`Ladder::step`]; without that, as many
    /// looks as before lead to the next advice.
    pub fn look(&mut self, look: RingLook) -> Option<Rung> {
        let lossy = look.packets_dropped * 1_000 > look.packets * LOSS_BORNE_PER_THOUSAND;
        let calm = look.packets_dropped == 0 && look.blocks_waiting_max * 2 < look.blocks.max(1);
        self.looks_lossy = if lossy { self.looks_lossy + 1 } else { 0 };
        self.looks_calm = if calm { self.looks_calm + 1 } else { 0 };
        if let Some(looks) = &mut self.since_up {
            *looks += 1;
            if *looks > self.looks_before_up {
                // It has lasted: the next load is another one.
                self.since_up = None;
                self.looks_before_up = LOOKS_BEFORE_UP;
            }
        }
        let next = if self.looks_lossy >= LOOKS_BEFORE_DOWN {
            self.rung.below()
        } else if self.looks_calm >= self.looks_before_up {
            self.rung.above()
        } else {
            None
        }?;
        (self.looks_lossy, self.looks_calm) = (0, 0);
        Some(next)
    }

    /// This rung is in force from now on.
    pub fn step(&mut self, rung: Rung) {
        if rung > self.rung && self.since_up.take().is_some() {
            self.looks_before_up = (self.looks_before_up * 2).min(LOOKS_BEFORE_UP_MAX);
        } else if rung < self.rung {
            self.since_up = Some(0);
        }
        self.rung = rung;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALM: RingLook =
        RingLook { packets: 100_000, packets_dropped: 0, blocks_waiting_max: 3, blocks: 64 };
    const LOSSY: RingLook = RingLook { packets_dropped: 500, blocks_waiting_max: 64, ..CALM };
    const FULLISH: RingLook = RingLook { blocks_waiting_max: 40, ..CALM };

    /// Rungs that so many looks lead to, each step made when it is advised.
    fn looks(ladder: &mut Ladder, look: RingLook, count: u32) -> Vec<Rung> {
        let mut step = || ladder.look(look).inspect(|&rung| ladder.step(rung));
        (0..count).filter_map(|_| step()).collect()
    }

    #[test]
    fn sustained_loss_steps_down_to_the_last_rung_and_no_further() {
        let mut ladder = Ladder::default();
        assert_eq!(looks(&mut ladder, LOSSY, 1), [], "a burst passes");
        assert_eq!(looks(&mut ladder, CALM, 1), []);
        assert_eq!(looks(&mut ladder, LOSSY, 20), [Rung::Heads, Rung::Requests]);
        let borne = RingLook { packets_dropped: 100, ..LOSSY };
        assert_eq!(looks(&mut Ladder::default(), borne, 20), [], "one in a thousand is borne");
    }

    #[test]
    fn calm_steps_up_again_one_rung_at_a_time() {
        let mut ladder = Ladder::default();
        looks(&mut ladder, LOSSY, 4);
        assert_eq!(looks(&mut ladder, CALM, LOOKS_BEFORE_UP - 1), []);
        assert_eq!(looks(&mut ladder, CALM, 1), [Rung::Heads]);
        assert_eq!(looks(&mut ladder, CALM, LOOKS_BEFORE_UP), [Rung::Full]);
        assert_eq!(looks(&mut ladder, CALM, 100), [], "nothing is above");
    }

    #[test]
    fn a_step_that_was_not_made_is_advised_again() {
        let mut ladder = Ladder::default();
        for _ in 0..3 {
            assert_eq!(looks(&mut ladder, LOSSY, LOOKS_BEFORE_DOWN - 1), []);
            assert_eq!(ladder.look(LOSSY), Some(Rung::Heads));
            assert_eq!(ladder.rung(), Rung::Full);
        }
        looks(&mut ladder, LOSSY, LOOKS_BEFORE_DOWN);
        for _ in 0..3 {
            assert_eq!(looks(&mut ladder, CALM, LOOKS_BEFORE_UP - 1), [], "no more patience than before");
            assert_eq!(ladder.look(CALM), Some(Rung::Full));
            assert_eq!(ladder.rung(), Rung::Heads);
        }
    }

    #[test]
    fn a_ring_that_is_half_full_is_not_calm() {
        let mut ladder = Ladder::default();
        looks(&mut ladder, LOSSY, 2);
        assert_eq!(looks(&mut ladder, FULLISH, 1000), []);
        assert_eq!(ladder.rung(), Rung::Heads);
    }

    #[test]
    fn a_step_up_that_does_not_last_doubles_the_patience() {
        let mut ladder = Ladder::default();
        looks(&mut ladder, LOSSY, 2);
        let mut patience = Vec::new();
        for _ in 0..7 {
            patience.push((1..).find(|_| !looks(&mut ladder, CALM, 1).is_empty()).unwrap());
            assert_eq!(ladder.rung(), Rung::Full);
            assert_eq!(looks(&mut ladder, LOSSY, 2), [Rung::Heads]);
        }
        assert_eq!(patience, [10, 20, 40, 80, 160, 320, 320]);
        looks(&mut ladder, CALM, LOOKS_BEFORE_UP_MAX);
        looks(&mut ladder, CALM, LOOKS_BEFORE_UP_MAX + 1);
        looks(&mut ladder, LOSSY, 2);
        assert_eq!(
            looks(&mut ladder, CALM, LOOKS_BEFORE_UP),
            [Rung::Full],
            "one that lasted makes it short again"
        );
    }

    #[test]
    fn rungs_only_ever_take_away() {
        let mut wanted = FilterSpec::new(Vec::new(), vec![11211]);
        let kept = |wanted: &FilterSpec| Rung::ALL.map(|rung| rung.apply(wanted).response_snaplen);
        assert_eq!(kept(&wanted), [u32::MAX, HEAD_BYTES, SNAPLEN_NONE]);
        wanted.response_snaplen = 200;
        assert_eq!(kept(&wanted), [200, 200, SNAPLEN_NONE]);
        assert_eq!(Rung::Requests.apply(&wanted).request_snaplen, wanted.request_snaplen);
    }
}

//! Intervals: where they begin and end on the clock of the packets.
//!
//! Intervals are aligned to multiples of their length in UTC, so that reports of several machines line up. The first and
//! the last of a run may be shorter; they are then partial.

use crate::model::Timestamp;
use std::time::Duration;

/// How long an interval is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntervalLength {
    /// Aligned intervals of this length.
    Fixed(Duration),
    /// One interval: everything.
    All,
}

/// A stretch of time that a report covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// First moment.
    pub start: Timestamp,
    /// First moment after it.
    pub end: Timestamp,
    /// It is shorter than its nominal length.
    pub partial: bool,
}

/// Says when an interval is over. Fed with capture time by packets and with wall-clock time while idle.
#[derive(Clone, Debug)]
pub struct IntervalClock {
    length: IntervalLength,
    /// Start of the open interval; none before the first packet of a recording.
    start: Option<Timestamp>,
    /// End of the open interval; `Timestamp` of the far future for `All`.
    end: Timestamp,
    /// Latest time seen.
    now: Timestamp,
}

const NEVER: Timestamp = Timestamp::from_nanos(u64::MAX);

impl IntervalClock {
    /// A clock whose first interval begins at the first time that it is told.
    pub fn new(length: IntervalLength) -> IntervalClock {
        IntervalClock { length, start: None, end: NEVER, now: Timestamp::ZERO }
    }

    /// Begins the first interval now: for live runs, which start before their first packet.
    pub fn start_at(&mut self, now: Timestamp) {
        self.start = Some(now);
        self.end = self.boundary_after(now);
        self.now = now;
    }

    /// End of the open interval; the far future before the first.
    #[inline]
    pub fn end(&self) -> Timestamp {
        self.end
    }

    /// Whether an interval is open.
    #[inline]
    pub fn is_started(&self) -> bool {
        self.start.is_some()
    }

    /// The latest time seen.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// What has passed of the open interval.
    pub fn open(&self) -> Interval {
        let start = self.start.unwrap_or(self.now);
        Interval { start, end: self.now.max(start), partial: true }
    }

    /// Takes note of a time inside the open interval.
    #[inline]
    pub fn note(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
    }

    /// Takes note of the time; answers with the interval that ended before it, if one did. The next interval begins at the
    /// boundary before `now`: intervals in which nothing at all was captured are passed over when `skip_empty`, and
    /// otherwise come out one by one, one a call.
    pub fn advance(&mut self, now: Timestamp, skip_empty: bool) -> Option<Interval> {
        if self.start.is_none() {
            self.start_at(now);
            return None;
        }
        if now < self.end {
            self.now = self.now.max(now);
            return None;
        }
        let closed = self.close_at(self.end);
        if skip_empty && now >= self.end {
            self.start = Some(self.boundary_before(now));
            self.end = self.boundary_after(now);
        }
        if now < self.end {
            self.now = now;
        }
        closed
    }

    /// Takes note of the time; an interval that is over and could not be closed goes on to the boundary after `now`, so that it stays
    /// aligned and covers what is counted in it. Begins the first one.
    pub fn lengthen(&mut self, now: Timestamp) {
        if self.start.is_none() {
            return self.start_at(now);
        }
        if now >= self.end {
            self.end = self.boundary_after(now);
        }
        self.note(now);
    }

    /// Ends the open interval at the latest time seen (or `now`, where the caller has a clock): the end of a run, or a report on demand.
    pub fn cut(&mut self, now: Option<Timestamp>) -> Option<Interval> {
        let at = now.unwrap_or(self.now).max(self.now);
        self.start.and_then(|_| self.close_at(at.min(self.end)))
    }

    fn close_at(&mut self, end: Timestamp) -> Option<Interval> {
        let start = self.start?;
        let partial = match self.length {
            IntervalLength::Fixed(length) => end.since(start) < length,
            IntervalLength::All => false,
        };
        self.start = Some(end);
        self.end = self.boundary_after(end);
        self.now = self.now.max(end);
        Some(Interval { start, end, partial })
    }

    fn boundary_before(&self, now: Timestamp) -> Timestamp {
        match self.length {
            IntervalLength::Fixed(length) => {
                let length = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX).max(1);
                Timestamp::from_nanos(now.nanos() / length * length)
            }
            IntervalLength::All => now,
        }
    }

    fn boundary_after(&self, now: Timestamp) -> Timestamp {
        match self.length {
            IntervalLength::Fixed(length) => self.boundary_before(now).plus(length),
            IntervalLength::All => NEVER,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64, millis: u32) -> Timestamp {
        Timestamp::from_parts(secs, millis * 1_000_000)
    }

    fn clock() -> IntervalClock {
        IntervalClock::new(IntervalLength::Fixed(Duration::from_secs(10)))
    }

    #[test]
    fn intervals_are_aligned_and_the_first_and_last_are_partial() {
        let mut clock = clock();
        assert_eq!(clock.advance(at(103, 0), true), None);
        assert_eq!(clock.advance(at(109, 999), true), None);
        let first = Interval { start: at(103, 0), end: at(110, 0), partial: true };
        assert_eq!(clock.advance(at(110, 0), true), Some(first));
        let second = Interval { start: at(110, 0), end: at(120, 0), partial: false };
        assert_eq!(clock.advance(at(121, 0), true), Some(second));
        assert_eq!(clock.cut(None), Some(Interval { start: at(120, 0), end: at(121, 0), partial: true }));
    }

    #[test]
    fn silence_is_passed_over_or_reported_as_asked() {
        let mut recording = clock();
        recording.advance(at(100, 0), true);
        assert_eq!(recording.advance(at(155, 0), true).map(|i| i.end), Some(at(110, 0)));
        assert_eq!(recording.cut(None), Some(Interval { start: at(150, 0), end: at(155, 0), partial: true }));

        let mut live = clock();
        live.advance(at(100, 0), false);
        let ends: Vec<_> = std::iter::from_fn(|| live.advance(at(135, 0), false)).map(|i| i.end).collect();
        assert_eq!(ends, [at(110, 0), at(120, 0), at(130, 0)]);
    }

    #[test]
    fn an_interval_that_cannot_be_closed_goes_on_to_a_boundary() {
        let mut clock = clock();
        clock.lengthen(at(103, 0));
        assert_eq!(clock.end(), at(110, 0));
        clock.lengthen(at(109, 0));
        assert_eq!((clock.end(), clock.open().end), (at(110, 0), at(109, 0)));
        clock.lengthen(at(110, 0));
        clock.lengthen(at(134, 0));
        assert_eq!((clock.end(), clock.open().end), (at(140, 0), at(134, 0)));
        let long = Interval { start: at(103, 0), end: at(140, 0), partial: false };
        assert_eq!(clock.advance(at(141, 0), false), Some(long));
        assert_eq!(clock.end(), at(150, 0));
    }

    #[test]
    fn time_that_runs_backwards_stays_in_the_open_interval() {
        let mut clock = clock();
        clock.advance(at(100, 0), true);
        clock.advance(at(112, 0), true);
        assert_eq!(clock.advance(at(108, 0), true), None);
        assert_eq!(clock.cut(None), Some(Interval { start: at(110, 0), end: at(112, 0), partial: true }));
    }

    #[test]
    fn the_whole_recording_is_one_interval_and_never_partial() {
        let mut clock = IntervalClock::new(IntervalLength::All);
        clock.advance(at(3, 0), true);
        assert_eq!(clock.advance(at(1_000_000, 0), true), None);
        assert_eq!(
            clock.cut(None),
            Some(Interval { start: at(3, 0), end: at(1_000_000, 0), partial: false })
        );
    }
}

//! Response times by command, in histograms of fixed size: 1 µs to 60 s at two significant digits, longest times exact.

use super::snapshot::LatencySummary;
use crate::model::Command;
use hdrhistogram::Histogram;

/// Longest time that the histograms tell apart, microseconds.
const LONGEST_US: u64 = 60_000_000;

/// Significant digits: a value is at most 1 % off.
const DIGITS: u8 = 2;

/// An empty histogram of our bounds.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_US, DIGITS).expect("the bounds are constants that suit")
}

/// Bits of a time that its cell tells apart: with one of them always set, a cell is less than 1 % wide.
const CELL_BITS: u32 = 8;

/// Cells of a power of two, but of the first.
const CELLS_PER_OCTAVE: usize = 1 << (CELL_BITS - 1);

/// Cells of all times.
const CELLS: usize = cell(LONGEST_US) + 1;

/// The cell of a time in microseconds: the first [`CELL_BITS`] bits of the number, and how many follow.
#[inline(always)]
const fn cell(micros: u64) -> usize {
    let shift = u64::BITS - CELL_BITS - (micros | ((1 << CELL_BITS) - 1)).leading_zeros();
    shift as usize * CELLS_PER_OCTAVE + (micros >> shift) as usize
}

/// The least time of a cell.
const fn first_of(cell: usize) -> u64 {
    match (cell / CELLS_PER_OCTAVE).checked_sub(1) {
        None => cell as u64,
        Some(shift) => ((cell - shift * CELLS_PER_OCTAVE) as u64) << shift,
    }
}

/// A target's times by command, 10 KB each, allocated once: plain cells, where a histogram's record would cost several
/// times as much. The reporter makes histograms of them.
pub(super) struct Latencies(Vec<Times>);

/// One command's.
#[derive(Clone)]
struct Times {
    /// Counts.
    cells: Box<[u32]>,
    samples: u64,
    /// Microseconds.
    longest: u64,
}

impl Latencies {
    pub(super) fn new() -> Latencies {
        let none = Times { cells: [0; CELLS].into(), samples: 0, longest: 0 };
        Latencies(vec![none; Command::COUNT])
    }

    /// Counts a response time.
    #[inline(always)]
    pub(super) fn record(&mut self, command: Command, micros: u64) {
        let times = &mut self.0[command.index()];
        let count = &mut times.cells[cell(micros.min(LONGEST_US))];
        *count = count.saturating_add(1);
        times.samples += 1;
        times.longest = times.longest.max(micros);
    }

    /// Response times that were counted.
    pub(super) fn samples(&self) -> u64 {
        self.0.iter().map(|times| times.samples).sum()
    }

    /// The longest of all, microseconds.
    pub(super) fn longest(&self) -> u64 {
        self.0.iter().map(|times| times.longest).max().unwrap_or(0)
    }

    /// Hands everything over to `into`, whose contents are lost, and starts anew.
    pub(super) fn hand_over(&mut self, into: &mut Latencies) {
        for (mine, theirs) in self.0.iter_mut().zip(&mut into.0) {
            if theirs.samples > 0 {
                theirs.cells.fill(0);
                (theirs.samples, theirs.longest) = (0, 0);
            }
            if mine.samples > 0 {
                std::mem::swap(mine, theirs);
            }
        }
    }
}

/// Response times of an interval by command, those commands that had any, in the order of their numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResponseTimes(Vec<CommandTimes>);

// Counts, and no floating point among them.
impl Eq for ResponseTimes {}

/// One command's.
#[derive(Clone, Debug, PartialEq)]
struct CommandTimes {
    command: Command,
    /// Never empty.
    histogram: Histogram<u64>,
    /// Longest time, microseconds.
    longest: u64,
}

impl ResponseTimes {
    /// Adds those of another worker or interval.
    pub fn merge(&mut self, other: &ResponseTimes) {
        for times in &other.0 {
            let mine = self.of(times.command);
            mine.histogram.add(&times.histogram).expect("histograms of the same bounds add up");
            mine.longest = mine.longest.max(times.longest);
        }
    }

    /// Adds a worker's.
    pub(super) fn add(&mut self, latencies: &Latencies) {
        for (&command, times) in Command::ALL.iter().zip(&latencies.0).filter(|(_, times)| times.samples > 0)
        {
            let mine = self.of(command);
            for (cell, &count) in times.cells.iter().enumerate().filter(|(_, count)| **count > 0) {
                mine.histogram.saturating_record_n(first_of(cell), u64::from(count));
            }
            mine.longest = mine.longest.max(times.longest);
        }
    }

    /// Of each command the longest time and the cells of its histogram, as time and count: all that it is made of.
    pub(crate) fn cells(&self) -> impl Iterator<Item = (Command, u64, Vec<(u64, u64)>)> + '_ {
        self.0.iter().map(|times| {
            let recorded = times.histogram.iter_recorded();
            let cells = recorded.map(|cell| (cell.value_iterated_to(), cell.count_at_value())).collect();
            (times.command, times.longest, cells)
        })
    }

    /// Adds what [`ResponseTimes::cells`] gave out.
    pub(crate) fn add_cells(&mut self, command: Command, longest: u64, cells: &[(u64, u64)]) {
        let mine = self.of(command);
        for &(micros, count) in cells {
            mine.histogram.saturating_record_n(micros.min(LONGEST_US), count);
        }
        mine.longest = mine.longest.max(longest);
    }

    fn of(&mut self, command: Command) -> &mut CommandTimes {
        let at = match self.0.binary_search_by_key(&command.index(), |times| times.command.index()) {
            Ok(at) => at,
            Err(at) => {
                self.0.insert(at, CommandTimes { command, histogram: histogram(), longest: 0 });
                at
            }
        };
        &mut self.0[at]
    }

    /// Figures of all commands together.
    pub fn summary(&self) -> LatencySummary {
        let mut total = histogram();
        for times in &self.0 {
            total.add(&times.histogram).expect("histograms of the same bounds add up");
        }
        summary(&total, self.0.iter().map(|times| times.longest).max().unwrap_or(0))
    }

    /// Figures of each command that had any.
    pub fn summaries(&self) -> Vec<(Command, LatencySummary)> {
        self.0.iter().map(|times| (times.command, summary(&times.histogram, times.longest))).collect()
    }
}

/// The figures of a histogram whose longest time is known exactly.
fn summary(histogram: &Histogram<u64>, longest: u64) -> LatencySummary {
    if histogram.is_empty() {
        return LatencySummary::default();
    }
    let quantile = |quantile: f64| histogram.value_at_quantile(quantile).min(longest);
    LatencySummary {
        p50: quantile(0.5),
        p90: quantile(0.9),
        p99: quantile(0.99),
        max: longest,
        samples: histogram.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a histogram of our bounds has them, so that nothing is lost on the way into one.
    #[test]
    fn cells_are_those_of_the_histograms() {
        let histogram = histogram();
        for micros in (0..3000).chain((3000..=LONGEST_US).step_by(99_991)).chain([LONGEST_US]) {
            let first = first_of(cell(micros));
            assert_eq!(cell(first), cell(micros));
            assert!(histogram.equivalent(first, micros), "{first} {micros}");
            assert!(first == micros || cell(micros - 1) <= cell(micros));
            assert!(micros - first <= micros / 100, "{first} {micros}");
        }
        assert_eq!(first_of(CELLS - 1), first_of(cell(LONGEST_US)));
    }

    #[test]
    fn times_are_summed_over_workers_and_handed_over_once() {
        let (mut one, mut two) = (Latencies::new(), Latencies::new());
        for micros in 0..=100 {
            one.record(Command::Get, micros);
        }
        two.record(Command::Get, 90_000_123);
        two.record(Command::Set, 5);
        let (mut first, mut second) = (Latencies::new(), Latencies::new());
        first.record(Command::Delete, 1);
        one.hand_over(&mut first);
        two.hand_over(&mut second);
        let mut times = ResponseTimes::default();
        times.add(&second);
        times.add(&first);
        let summaries = times.summaries();
        let names: Vec<_> = summaries.iter().map(|(command, _)| *command).collect();
        assert_eq!(names, [Command::Get, Command::Set]);
        let get = summaries[0].1;
        assert_eq!((get.samples, get.max), (102, 90_000_123));
        assert!((49..=51).contains(&get.p50), "{get:?}");
        assert_eq!(times.summary().samples, 103);
        let mut twice = times.clone();
        twice.merge(&times);
        assert_eq!((twice.summary().samples, twice.summary().p50), (206, times.summary().p50));
        one.hand_over(&mut first);
        let mut none = ResponseTimes::default();
        none.add(&first);
        assert_eq!(none, ResponseTimes::default());
    }
}

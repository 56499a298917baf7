//! Response times by command, in histograms of fixed size: 1 µs to 60 s at two significant digits, longest times exact.

use super::snapshot::LatencySummary;
use crate::model::Command;
use hdrhistogram::{Counter, Histogram};

/// Longest time that the histograms tell apart, microseconds.
const LONGEST_US: u64 = 60_000_000;

/// Significant digits: a value is at most 1 % off.
const DIGITS: u8 = 2;

/// An empty histogram of our bounds.
pub(super) fn histogram<T: Counter>() -> Histogram<T> {
    Histogram::new_with_bounds(1, LONGEST_US, DIGITS).expect("the bounds are constants that suit")
}

/// A target's histograms: 10 KB for each command, allocated once.
pub(super) struct Latencies {
    /// By `Command::index`.
    commands: Vec<Histogram<u32>>,
    /// Longest time by `Command::index`.
    longest: [u64; Command::COUNT],
}

impl Latencies {
    pub(super) fn new() -> Latencies {
        Latencies {
            commands: (0..Command::COUNT).map(|_| histogram()).collect(),
            longest: [0; Command::COUNT],
        }
    }

    /// Counts a response time.
    #[inline]
    pub(super) fn record(&mut self, command: Command, micros: u64) {
        let index = command.index();
        self.commands[index].saturating_record(micros.min(LONGEST_US));
        self.longest[index] = self.longest[index].max(micros);
    }

    /// Hands everything over to `into`, whose contents are lost, and starts anew.
    pub(super) fn hand_over(&mut self, into: &mut Latencies) {
        for (mine, theirs) in self.commands.iter_mut().zip(&mut into.commands) {
            if !theirs.is_empty() {
                theirs.reset();
            }
            if !mine.is_empty() {
                std::mem::swap(mine, theirs);
            }
        }
        into.longest = std::mem::replace(&mut self.longest, [0; Command::COUNT]);
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
        for (&command, part) in
            Command::ALL.iter().zip(&latencies.commands).filter(|(_, part)| !part.is_empty())
        {
            let mine = self.of(command);
            for cell in part.iter_recorded() {
                mine.histogram
                    .saturating_record_n(cell.value_iterated_to(), u64::from(cell.count_at_value()));
            }
            mine.longest = mine.longest.max(latencies.longest[command.index()]);
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

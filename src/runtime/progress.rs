//! One line on a terminal that says how far a recording was read, and that gets out of the way of everything else written there.

use crate::capture::pcap::Progress;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Shorter replays need no progress.
const QUIET: Duration = Duration::from_millis(500);
/// Five times a second is as often as one reads.
const EVERY: Duration = Duration::from_millis(200);
/// Returns to the start of the line and empties it.
const CLEAR: &[u8] = b"\r\x1b[K";

/// Whether the line is on the terminal now. The terminal is one for the whole process, and so is this.
static SHOWN: Mutex<bool> = Mutex::new(false);

fn lock() -> MutexGuard<'static, bool> {
    // A thread that failed while it held the lock has left at worst a line on the screen.
    SHOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the line away, and keeps it away while `write` writes to the terminal.
pub(super) fn undisturbed<T>(write: impl FnOnce() -> T) -> T {
    let mut shown = lock();
    if std::mem::take(&mut *shown) {
        // Who cannot write to stderr cannot be told so.
        drop(io::stderr().write_all(CLEAR));
    }
    write()
}

/// Shows how far a replay has come, where standard error is a terminal.
#[derive(Debug)]
pub(super) struct ProgressLine {
    enabled: bool,
    started: Instant,
    next: Instant,
}

impl ProgressLine {
    /// Nothing is shown unless `wanted` and unless standard error is a terminal.
    pub(super) fn new(wanted: bool) -> ProgressLine {
        let now = Instant::now();
        ProgressLine { enabled: wanted && io::stderr().is_terminal(), started: now, next: now + QUIET }
    }

    /// To be called now and then.
    pub(super) fn update(&mut self, progress: Progress, packets: u64) {
        let now = Instant::now();
        if !self.enabled || now < self.next {
            return;
        }
        self.next = now + EVERY;
        let columns =
            terminal_size::terminal_size_of(io::stderr()).map_or(80, |(width, _)| usize::from(width.0));
        let text = describe(progress, packets, now - self.started);
        // A line that wraps could not be taken away.
        let text: String = text.chars().take(columns.saturating_sub(1)).collect();
        let mut shown = lock();
        *shown = true;
        drop(io::stderr().write_all(&[CLEAR, text.as_bytes()].concat()));
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        undisturbed(|| {});
    }
}

/// `1.2 GB of 4.0 GB (30%), 310.0 MB/s, 412.0k packets/s, 9s left`
fn describe(progress: Progress, packets: u64, passed: Duration) -> String {
    use crate::report::units::{bytes, length, percent, rate};
    let read = progress.read_bytes;
    let bytes_per_second = read as f64 / passed.as_secs_f64().max(1e-3);
    let mut text = bytes(read);
    if let Some(total) = progress.total_bytes {
        text.push_str(&format!(" of {} ({}%)", bytes(total), percent(read, total.max(1), 0)));
    }
    text.push_str(&format!(", {}/s, {} packets/s", bytes(bytes_per_second as u64), rate(packets, passed)));
    if let Some(left) = progress.total_bytes.map(|total| total.saturating_sub(read))
        && bytes_per_second >= 1.0
    {
        let left = Duration::from_secs((left as f64 / bytes_per_second).ceil() as u64);
        text.push_str(&format!(", {} left", length(left)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_how_far_how_fast_and_how_long_still() {
        let progress = Progress { read_bytes: 1_200_000_000, total_bytes: Some(4_000_000_000) };
        let text = describe(progress, 1_648_000, Duration::from_secs(4));
        assert_eq!(text, "1.2 GB of 4.0 GB (30%), 300.0 MB/s, 412.0k packets/s, 10s left");
        let piped = Progress { total_bytes: None, ..progress };
        assert_eq!(describe(piped, 4_000, Duration::from_secs(4)), "1.2 GB, 300.0 MB/s, 1.0k packets/s");
        describe(Progress::default(), 0, Duration::ZERO);
    }
}

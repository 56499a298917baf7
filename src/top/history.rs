//! The intervals that one can step back to, and the windows over them. Bounded: an older interval keeps its heaviest rows,
//! and those that no longer fit are counted as forgotten.

use super::Frame;
use crate::collector::snapshot::Snapshot;
use crate::collector::window::{Window, prune};
use crate::config::Over;
use std::collections::VecDeque;
use std::sync::Arc;

/// Intervals kept: twenty minutes of ten seconds.
pub const INTERVALS_MAX: usize = 120;

/// Rows of a kind that all intervals but the newest keep together: some 100 MB with the longest keys.
const ROWS_KEPT: usize = 131_072;

/// And at least so many in each, whatever the number of targets.
const ROWS_OF_A_TARGET_MIN: usize = 64;

/// The newest intervals, oldest first.
#[derive(Debug)]
pub struct History {
    frames: VecDeque<Arc<Frame>>,
    forgotten: u64,
    over: Over,
    /// By target, fed with every interval since the window was chosen and with those that were kept then.
    windows: Vec<(String, Window)>,
    /// The newest interval through the windows.
    newest: Arc<Frame>,
}

impl History {
    /// An empty one.
    pub fn new(over: Over) -> History {
        History {
            frames: VecDeque::with_capacity(INTERVALS_MAX),
            forgotten: 0,
            over,
            windows: Vec::new(),
            newest: Arc::default(),
        }
    }

    /// Takes an interval.
    pub fn push(&mut self, frame: Frame) {
        if let Some(last) = self.frames.back_mut() {
            let rows = ROWS_KEPT / INTERVALS_MAX / last.snapshots.len().max(1);
            let rows = rows.max(ROWS_OF_A_TARGET_MIN);
            for snapshot in &mut Arc::make_mut(last).snapshots {
                prune(snapshot, rows);
            }
        }
        if self.frames.len() == INTERVALS_MAX {
            self.frames.pop_front();
            self.forgotten += 1;
        }
        let frame = Arc::new(frame);
        self.newest = fold(&frame, self.over, &mut self.windows);
        self.frames.push_back(frame);
    }

    /// Number of intervals that can be stepped to.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether none has come yet.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Intervals that had to go.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// What each figure covers.
    pub fn over(&self) -> Over {
        self.over
    }

    /// Chooses another window: it begins with the intervals that are kept.
    pub fn set_over(&mut self, over: Over) {
        self.over = over;
        self.windows.clear();
        for frame in &self.frames {
            self.newest = fold(frame, over, &mut self.windows);
        }
    }

    /// The newest interval, through the window.
    pub fn newest(&self) -> Arc<Frame> {
        Arc::clone(&self.newest)
    }

    /// The interval that lies `back` before the newest, through the window; the oldest when there are not so many.
    pub fn back(&self, back: usize) -> Arc<Frame> {
        let at = self.frames.len().saturating_sub(back + 1);
        if at + 1 >= self.frames.len() {
            return self.newest();
        }
        let mut windows = Vec::new();
        let from = if self.over == Over::Interval { at } else { 0 };
        let parts = self.frames.range(from..=at);
        parts.fold(Arc::default(), |_, frame| fold(frame, self.over, &mut windows))
    }
}

fn fold(frame: &Arc<Frame>, over: Over, windows: &mut Vec<(String, Window)>) -> Arc<Frame> {
    if over == Over::Interval {
        return Arc::clone(frame);
    }
    windows.retain(|(name, _)| frame.snapshots.iter().any(|snapshot| snapshot.target == *name));
    let snapshots: Vec<Snapshot> = frame
        .snapshots
        .iter()
        .map(|snapshot| {
            let known = windows.iter().position(|(name, _)| *name == snapshot.target);
            let at = known.unwrap_or_else(|| {
                windows.push((snapshot.target.clone(), Window::new(over.window())));
                windows.len() - 1
            });
            windows[at].1.fold(snapshot.clone())
        })
        .collect();
    Arc::new(Frame { snapshots, seen: frame.seen.clone() })
}

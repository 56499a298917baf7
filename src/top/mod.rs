//! The live screen: what `memtap top` shows and how keys move through it.
//!
//! [`state::State`] is a pure machine: intervals and the operator's wishes go in, a [`page::Page`] comes out. It opens nothing,
//! reads no clock and knows no terminal, so tests drive it. [`screen`] draws a state on any of ratatui's backends, and
//! [`keys`] names the key of each wish. Threads, sockets and the terminal itself belong to `runtime`.
//!
//! Rows come from the report's own contents, so the screen agrees with every other form, escapes what is hostile and shows
//! what privacy permits.

pub mod history;
pub mod keys;
pub mod page;
pub mod screen;
pub mod state;

use crate::collector::snapshot::Snapshot;
use crate::report::SeenElsewhere;

/// One closed interval: the targets' snapshots, and what the capture saw besides.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    /// In the order of the configuration.
    pub snapshots: Vec<Snapshot>,
    /// What the capture saw, whoever it was for.
    pub seen: SeenElsewhere,
}

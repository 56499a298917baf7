//! From observations to rankings: per target, tables with a byte budget, and the snapshots that reports are made of.

pub mod snapshot;

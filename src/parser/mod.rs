//! From stream bytes to observations: memcached's protocols, and the pairing of requests with responses.
//!
//! The sources for every rule are named beside it: memcached's `doc/protocol.txt` and `protocol_binary.h`, and the server's
//! own parsers (`proto_text.c`, `proto_bin.c`). A parser returns a value with the bytes that it used, or says
//! incomplete and uses none. Values are never looked at, never copied, never kept.

mod answers;
mod binary;
mod command;
mod meta;
mod proxy;
mod queue;
mod requests;
mod servers;
mod text;
mod token;
mod transaction;

#[cfg(test)]
mod binary_tests;
#[cfg(test)]
mod conversation;
#[cfg(test)]
mod loss_tests;
#[cfg(test)]
mod meta_tests;
#[cfg(test)]
mod property_tests;
#[cfg(test)]
mod servers_tests;
#[cfg(test)]
mod text_tests;

use crate::model::{Command, Outcome, Timestamp};
use std::time::Duration;

pub use transaction::{Connection, ParserLimits, Transactions};

/// One key's share of a transaction; a get of five keys makes five. Keyless commands make one with an empty key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation<'a> {
    /// Capture time of the packet that completed the request (of the response, where no request was seen).
    pub timestamp: Timestamp,
    /// The verb.
    pub command: Command,
    /// How it ended.
    pub outcome: Outcome,
    /// The key's exact bytes (base64 of meta commands decoded); empty for keyless commands; at most 250 bytes.
    pub key: &'a [u8],
    /// This key's share of the request's bytes on the wire, value included.
    pub request_bytes: u64,
    /// This key's share of the response's bytes on the wire, value included.
    pub response_bytes: u64,
    /// From the packet that completed the request to the first packet of its answer; `None` where no answer was seen,
    /// none is promised, or the answer came first (refused bodies).
    pub latency: Option<Duration>,
    /// What else is known.
    pub notes: ObservationNotes,
}

/// Properties of a transaction that reports and reconciliation need beside its outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ObservationNotes {
    /// No answer is promised (noreply, quiet).
    pub quiet: bool,
    /// `mg` with vivify won the lease (`W`): a miss that memcached counts as a hit.
    pub lease_won: bool,
    /// The item was stale (`X`).
    pub lease_stale: bool,
    /// Another client holds the lease (`Z`).
    pub lease_lost: bool,
    /// Only the response was captured.
    pub request_unseen: bool,
}

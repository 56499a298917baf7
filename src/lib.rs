//! memtap: a passive reporter for memcached. This page is the map of the program.
//!
//! ```text
//!  NIC / lo / veth                          recording (.pcap, .pcapng, .gz, .zst)
//!       │ TPACKET_V3 ring, cBPF filter              │
//!       ▼                                           ▼
//!    capture ── Packet ──► decode ── Segment | Datagram ──► reassembly ── StreamEvent ──► parser ── Observation ──► collector
//!       one worker serves its rings on all interfaces; everything left of the collector is one pure `Pipeline`         │
//!                                                                                      rows, once per interval (Harvest)
//!                                                                                                                      ▼
//!                                       report ◄── Snapshot (merged, immutable) ◄── reporter thread (crossbeam-channel)
//! ```
//!
//! # Three ideas
//!
//! 1. **One pure machine.** [`pipeline::Pipeline`] is fed by the live ring and by a recording alike: it knows no clock, no
//!    socket and no thread, so that everything after the socket is tested from bytes.
//! 2. **Loss is a value.** We only listen; what we missed is gone. Gaps, drops and evictions are counted ([`anomaly`]) and travel
//!    with the figures of their interval into every report.
//! 3. **Every limit has a name.** It is allocated at start-up (`…Limits`; a target's tables before it is announced), counted when it is reached, and printed.
//!
//! # Where things are
//!
//! | module | from | to | home of |
//! | --- | --- | --- | --- |
//! | [`model`], [`network`], [`anomaly`] | | | nouns that all stages share; names of commands, outcomes and losses |
//! | [`capture`] | ring or file | headers | sockets, rings, kernel filter, recordings, decode, tunnels, fragments |
//! | [`reassembly`] | segments, datagrams | stream events | flow table, holes, acknowledgements, UDP exchanges |
//! | [`parser`] | stream events | observations | memcached's protocols, pairing of requests and responses |
//! | [`collector`] | observations | snapshots | tables with a byte budget, harvest, merge, rankings |
//! | [`report`] | snapshots | text | tables, JSON Lines (both ways), CSV, Markdown, lines, findings, conditions, escaping, privacy, merging of reports |
//! | [`pipeline`] | packets | observations | composes decode, reassembly and parser |
//! | [`runtime`] | configuration | reports | threads, clock, signals, interfaces and targets that come and go, log; one file for each command |
//! | [`top`] | snapshots, key presses | a screen | the live screen: state machine, views, drawing |
//! | [`sandbox`] | options | | giving up user, capabilities, files and system calls once the rings are open |
//! | [`config`], [`cli`] | operator | `Config` | every default, every flag |
//!
//! Imports run one way: capture ← reassembly ← parser ← collector ← report. `tests/tidy.rs` keeps the arrows and the list of
//! files that may hold `unsafe`: `capture/socket.rs`, `capture/ring.rs`, `collector/arena.rs`.
//!
//! # How one packet becomes a figure
//!
//! A retired ring block is ordinary bytes until it goes back to the kernel; [`capture`] walks it and lends one packet after the
//! other. Decode finds the TCP payload without copying. Reassembly looks up the flow and, when the segment is the next one,
//! lends its bytes to the parser in place; the parser answers how many it used and how many to skip (a value's body is never
//! looked at, so a loss inside it costs nothing). Requests wait in a bounded queue until their answer comes; each key's share of
//! a request becomes one [`parser::Observation`], which the collector adds to the target's tables. When an interval closes,
//! the worker copies the rows that a report could need into a recycled buffer and hands it to the reporter thread, which
//! merges the workers into a [`collector::snapshot::Snapshot`] and writes it.
//!
//! # What can go wrong, and what then
//!
//! The ring is full: counted, and by the load ladder ([`capture::ladder`]) less is kept. An interface is deleted: a thread that listens
//! to the kernel opens rings on its successor, on sockets that were opened while that was allowed. A worker panics: its block goes
//! back, its pipeline is made anew, its tables stay. A target is added or removed: one thread takes or gives back its memory, and workers only
//! put its tables in or hand them out, between two blocks. The reporter is late: the interval is lengthened, and its times say so.
//!
//! # What holds it
//!
//! `docs/traps.md` lists what goes wrong on networks and in the protocol, with the test for each. `fuzz/` has the targets that
//! `tests/fuzz_bounded.rs` (stable, in `./check`) and `cargo fuzz` (`./check fuzz`) drive; `tests/cost.sh` counts what hostile
//! traffic costs; `tests/mutants.py` takes rules out one by one; `./check sanitize` runs the tables under AddressSanitizer.
//!
//! # To add …
//!
//! * a command of the protocol: one line in [`model::Command`], one in the parser's verb table;
//! * an anomaly: one line in [`anomaly::Anomaly`];
//! * a ranking, a column, a finding, a figure of a condition, an output format: the module of that name under [`collector`] or [`report`];
//! * an option: [`config`], where every default is written once, and [`cli`].

pub mod anomaly;
pub mod capture;
mod choices;
pub mod cli;
pub mod collector;
pub mod config;
pub mod model;
pub mod network;
pub mod parser;
pub mod pipeline;
pub mod reassembly;
pub mod report;
pub mod runtime;
pub mod sandbox;
pub mod top;

//! What the operator may choose about a report: what to rank by, how much to show, in which form.

use super::filter::Filter;
use super::groups::KeyGroup;
use super::merged::Merged;
use super::privacy::Privacy;
use crate::choices::choices;
use crate::model::{Endpoint, Transport};

choices! {
    /// What rows are ranked by.
    Metric {
        /// Most requests.
        Requests = "requests",
        /// Most bytes on the wire, both directions together.
        Bytes = "bytes",
        /// Most misses.
        Misses = "misses",
        /// Most requests answered by an error.
        Errors = "errors",
        /// Longest mean response time.
        Latency = "latency",
    }
}

choices! {
    /// Form of the output.
    OutputFormat {
        /// Aligned text for people.
        Table = "table",
        /// One JSON object per interval and target.
        Jsonl = "jsonl",
        /// One ranked item a line.
        Csv = "csv",
        /// Tables that paste into a ticket.
        Markdown = "markdown",
        /// One line per interval and target, for people.
        Stat = "stat",
    }
}

choices! {
    /// What the table of hot clients tells apart.
    ClientView {
        /// Machines: connections of one address together.
        Ip = "ip",
        /// Connections.
        Socket = "ip:port",
    }
}

/// Everything a report needs beside the snapshot.
#[derive(Clone, Debug)]
pub struct ReportOptions {
    /// Name of the machine that captured.
    pub host: String,
    /// Form of the output.
    pub format: OutputFormat,
    /// Rows of each ranking; 0 for every row.
    pub top: usize,
    /// What rows are ranked by.
    pub by: Metric,
    /// What the table of hot clients tells apart.
    pub client: ClientView,
    /// Clients listed for each hot key; 0 for every one.
    pub clients_per_key: usize,
    /// Columns of the terminal; `usize::MAX` where the output is not a terminal.
    pub width: usize,
    /// Whether tables may use colour.
    pub color: bool,
    /// Which rows to show; `None` for all.
    pub filter: Option<Filter>,
    /// Key groups in the order of the configuration; the first that matches wins.
    pub groups: Vec<KeyGroup>,
    /// How keys may be shown.
    pub privacy: Privacy,
    /// What the capture saw beside the targets, for the report of a target that saw nothing.
    pub seen_elsewhere: Option<SeenElsewhere>,
    /// What the reports were merged from, by target; empty for reports of a capture.
    pub merged: Vec<Merged>,
}

impl Default for ReportOptions {
    fn default() -> ReportOptions {
        ReportOptions {
            host: String::new(),
            format: OutputFormat::Table,
            top: 20,
            by: Metric::Requests,
            client: ClientView::Socket,
            clients_per_key: 5,
            width: usize::MAX,
            color: false,
            filter: None,
            groups: Vec::new(),
            privacy: Privacy::Full,
            seen_elsewhere: None,
            merged: Vec::new(),
        }
    }
}

/// What the whole capture saw in an interval, whoever it was for. Printed where a target saw nothing, so that the
/// operator learns whether the interface, the port or the direction is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenElsewhere {
    /// Packets captured on each interface or read from each recording.
    pub sources: Vec<SourceSeen>,
    /// Of all packets, those that belong to some target.
    pub packets_matched: u64,
    /// Of all packets, those that are not TCP or UDP over IP, or whose headers are damaged.
    pub packets_foreign: u64,
    /// The busiest endpoints that belong to no target, most packets first.
    pub busiest: Vec<EndpointSeen>,
}

impl SeenElsewhere {
    /// Packets of all sources.
    pub fn packets_captured(&self) -> u64 {
        self.sources.iter().map(|source| source.packets).sum()
    }
}

/// Packets of one interface or recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceSeen {
    /// Name of the interface or of the file.
    pub name: String,
    /// Packets.
    pub packets: u64,
}

/// Packets to and from one endpoint that belongs to no target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointSeen {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// TCP or UDP.
    pub transport: Transport,
    /// Packets.
    pub packets: u64,
}

//! What the operator sees: rankings, losses and findings of a snapshot, as tables, JSON Lines, CSV or Markdown.
//!
//! A [`Reporter`] turns snapshots into bytes on an `io::Write`; it opens nothing and reads no clock. `contents` decides
//! what is said (filter, privacy, ranking, findings), and one file for each form says it. Keys are hostile: each
//! writer escapes what it is given (`escape`).

mod condition;
pub(crate) mod contents;
mod csv;
mod escape;
mod filter;
mod findings;
pub(crate) mod groups;
pub(crate) mod json;
pub(crate) mod markdown;
mod merged;
mod nearest;
mod options;
mod privacy;
mod read;
pub(crate) mod sections;
mod stat;
pub(crate) mod table;
pub(crate) mod units;
mod unlisted;
pub(crate) mod views;

pub use condition::{Comparison, Condition, Figure};
pub use escape::{escape, escape_name, shorten, unescape};
pub(crate) use filter::regex_reason;
pub use filter::{Filter, FilterError};
pub use groups::{KeyGroup, shape};
pub use merged::{MergeError, Merged, MergedSource, ReportMerge};
pub(crate) use nearest::nearest;
pub use options::{ClientView, EndpointSeen, Metric, OutputFormat, ReportOptions, SeenElsewhere, SourceSeen};
pub use privacy::{HashSecret, Privacy, PrivacyMode};
pub use read::{ReadError, ReadReport, read_report};
pub use views::Sort;

use crate::collector::snapshot::Snapshot;
use contents::Shown;
use stat::StatLines;
use std::io::{self, Write};

/// Writes reports in the form that its options ask for.
#[derive(Debug)]
pub struct Reporter {
    options: ReportOptions,
    csv_header_written: bool,
    stat_lines: StatLines,
}

impl Reporter {
    /// For one output.
    pub fn new(options: ReportOptions) -> Reporter {
        Reporter { options, csv_header_written: false, stat_lines: StatLines::default() }
    }

    /// What is written next stands in an output of its own: at its head (`true`), or behind what another run wrote there.
    pub fn begin_output(&mut self, at_its_head: bool) {
        self.csv_header_written = !at_its_head;
        self.stat_lines = StatLines::default();
    }

    /// The options.
    pub fn options(&self) -> &ReportOptions {
        &self.options
    }

    /// The options, to be changed between reports (terminal width, reloaded configuration, what is seen elsewhere).
    pub fn options_mut(&mut self) -> &mut ReportOptions {
        &mut self.options
    }

    /// The report of one interval: a block for each target, and the targets side by side where there are several.
    pub fn write_interval(&mut self, out: &mut impl Write, snapshots: &[Snapshot]) -> io::Result<()> {
        let names: Vec<String> = snapshots.iter().map(|snapshot| escape_name(&snapshot.target)).collect();
        for snapshot in snapshots {
            self.write_one(out, snapshot, &names)?;
        }
        if snapshots.len() > 1 { self.write_targets(out, snapshots) } else { Ok(()) }
    }

    /// The block of one target, written apart from those of the others of these names.
    pub fn write_beside(
        &mut self,
        out: &mut impl Write,
        snapshot: &Snapshot,
        others: &[String],
    ) -> io::Result<()> {
        let names: Vec<String> =
            others.iter().chain([&snapshot.target]).map(|name| escape_name(name)).collect();
        self.write_one(out, snapshot, &names)
    }

    /// The block of one target.
    pub fn write_snapshot(&mut self, out: &mut impl Write, snapshot: &Snapshot) -> io::Result<()> {
        self.write_one(out, snapshot, &[])
    }

    fn write_one(&mut self, out: &mut impl Write, snapshot: &Snapshot, names: &[String]) -> io::Result<()> {
        let shown = match self.options.format {
            // The hottest key is all that a line shows of the rows.
            OutputFormat::Stat => Shown::rows_only(snapshot, &self.options),
            _ => Shown::new(snapshot, &self.options),
        };
        let contents = shown.contents();
        match self.options.format {
            OutputFormat::Jsonl => json::write(out, &contents),
            OutputFormat::Csv => {
                if !std::mem::replace(&mut self.csv_header_written, true) {
                    csv::write_header(out)?;
                }
                csv::write(out, &contents)
            }
            OutputFormat::Table => table::write(out, &contents),
            OutputFormat::Stat => self.stat_lines.write(out, &contents, names),
            OutputFormat::Markdown => markdown::write(out, &contents),
        }
    }

    /// The targets side by side. In the other forms each target's own figures already stand beside the others'.
    pub fn write_targets(&mut self, out: &mut impl Write, snapshots: &[Snapshot]) -> io::Result<()> {
        if matches!(self.options.format, OutputFormat::Jsonl | OutputFormat::Csv | OutputFormat::Stat) {
            return Ok(());
        }
        // The hottest rows are all that this table shows.
        let options = ReportOptions { top: 1, ..self.options.clone() };
        let shown: Vec<Shown<'_>> =
            snapshots.iter().map(|snapshot| Shown::rows_only(snapshot, &options)).collect();
        let contents: Vec<_> = shown.iter().map(Shown::contents).collect();
        match self.options.format {
            OutputFormat::Markdown => markdown::write_targets(out, &contents),
            _ => table::write_targets(out, &contents),
        }
    }
}

//! Many reports as one for each target: which may be added up, what they were, and what they found.
//!
//! All reports of a target are added, whatever their time and machine: the same minutes of several machines, several
//! intervals of one, or both. What would count a request twice is refused: a line that was given twice, and intervals of one file that
//! overlap, as those of `--over` do. Keys that were masked in different ways are refused, too: they would not meet.

use super::escape::{escape_name, shorten};
use super::findings::Finding;
use super::options::ClientView;
use super::privacy::PrivacyMode;
use super::read::ReadReport;
use super::units;
use crate::collector::Union;
use crate::collector::snapshot::Snapshot;
use crate::model::Timestamp;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// Rows of a kind of one target, above which the lightest are left out, and how many stay.
const ROWS_MAX: usize = 1 << 20;
const ROWS_KEPT: usize = 1 << 19;

/// Sum of the greatest figures of all reports: whatever is added, nothing wraps below it.
const SUM_MAX: u64 = 1 << 60;

/// Reports of all targets.
const REPORTS_MAX: usize = 1 << 22;

/// Kinds of findings and names that are not understood, of each target.
const KINDS_MAX: usize = 64;

/// Characters of a sentence of another machine, and of the list of machines.
const SENTENCE_MAX: usize = 300;
const HOSTS_NAMED: usize = 8;

/// Where a report stood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    file: usize,
    line: u64,
}

/// Why a report cannot be added to the others.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// Another line says the very same.
    #[error("the same line stands in {0}, and would count twice")]
    Twice(String),
    /// The interval of another report of this file, target and machine overlaps.
    #[error(
        "{target} of {host} from {from} overlaps {other}: requests would count twice. Reports over a window \
         (--over) cannot be added up; give those of --over interval, or the last line of each target alone"
    )]
    Overlap {
        /// The target.
        target: String,
        /// The machine.
        host: String,
        /// When the interval begins.
        from: String,
        /// The other report's place.
        other: String,
    },
    /// Keys are shown in another way than in the reports before.
    #[error("its keys are shown as {these}, those of {other} as {those}: they would not meet{advice}")]
    Privacy {
        /// How keys are shown here.
        these: String,
        /// The other report's place.
        other: String,
        /// How keys are shown there.
        those: String,
        /// What helps the next time.
        advice: &'static str,
    },
    /// The figures are greater than anything that was ever captured.
    #[error("the figures are too great to be added up")]
    TooGreat,
    /// More than are kept in mind.
    #[error(
        "more than {REPORTS_MAX} reports; merge some of them first, with -o jsonl -k 0, and then the results"
    )]
    TooMany,
}

/// What a report was merged from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// The target.
    pub target: String,
    /// The machines, by name.
    pub sources: Vec<MergedSource>,
    /// How the reports show keys.
    pub privacy: PrivacyMode,
    /// The name of the secret that keys are hashed with.
    pub key_secret: Option<String>,
    /// Reports with response times and no histogram of them.
    pub without_histogram: u64,
    /// Lines that broke off, in all files.
    pub lines_cut: u64,
    start: Timestamp,
    end: Timestamp,
    found: BTreeMap<String, Found>,
    kinds_left_out: u64,
    not_understood: BTreeMap<String, u64>,
}

/// One machine's part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergedSource {
    /// Its name.
    pub host: String,
    /// Its reports.
    pub reports: u64,
    /// Start of the first one.
    pub start: Timestamp,
    /// End of the last one.
    pub end: Timestamp,
    /// Time that they cover; what two of them cover counts once.
    pub covered: Duration,
}

/// Findings of one kind in the reports.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    reports: u64,
    /// Of the earliest, by end, machine and sentence.
    first: (Timestamp, String, String),
}

impl Merged {
    /// Reports of all machines.
    pub fn reports(&self) -> u64 {
        self.sources.iter().map(|source| source.reports).sum()
    }

    /// The machines' names, the first few of many.
    pub fn hosts(&self) -> String {
        let named: Vec<&str> =
            self.sources.iter().take(HOSTS_NAMED).map(|source| source.host.as_str()).collect();
        let more = self.sources.len() - named.len();
        let names = named.join(", ");
        if more > 0 { format!("{names} and {more} more") } else { names }
    }

    /// The line that says what stands in the report.
    pub(crate) fn heading(&self) -> String {
        let reports = match self.reports() {
            1 => "1 report".to_string(),
            reports => format!("{} reports", units::count(reports)),
        };
        let hosts = match self.sources.len() {
            1 => "1 machine".to_string(),
            hosts => format!("{hosts} machines"),
        };
        let covered = self.sources.iter().map(|source| source.covered);
        let (least, most) = (covered.clone().min().unwrap_or_default(), covered.max().unwrap_or_default());
        let (least, most) = (units::length(least), units::length(most));
        let covered = if least == most { most } else { format!("{least} to {most}") };
        let (start, end) = (units::instant_short(self.start), units::instant_short(self.end));
        let each = if self.sources.len() == 1 { "" } else { " each" };
        format!(
            "merged from {reports} of {hosts} ({}), {start} to {end}, {covered} covered{each}",
            escape_name(&self.hosts())
        )
    }

    /// What stands out about the reports themselves, and what they found. Sentences may name keys.
    pub(crate) fn findings(&self, shows_keys: bool) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut add = |id: &str, text: String| findings.push(Finding { id: id.to_string().into(), text });
        let span = self.end.since(self.start);
        if let Some(short) =
            self.sources.iter().filter(|source| source.covered < span).min_by_key(|of| of.covered)
        {
            let text = format!(
                "{} covers {} of the {} between the first report and the last: rates are over all of that time",
                escape_name(&short.host),
                units::length(short.covered),
                units::length(span)
            );
            add("merge-coverage", text);
        }
        if self.without_histogram > 0 && self.reports() > 1 {
            let text = format!(
                "{} of {} reports hold no histogram of response times: percentiles are those of the slowest report, \
                 and of all together they are not above these",
                units::count(self.without_histogram),
                units::count(self.reports())
            );
            add("merge-percentiles", text);
        }
        if self.reports() > 1 {
            let text = "clients, connections and keys seen by several reports cannot be told apart: the counts of \
                        distinct ones are lower bounds";
            add("merge-distinct", text.to_string());
        }
        if self.lines_cut > 0 {
            let lines = units::count(self.lines_cut);
            add("merge-cut-line", format!("{lines} lines at the end of files broke off and are left out"));
        }
        for (name, count) in &self.not_understood {
            let text = format!(
                "{} {} of a newer memtap are in no figure here",
                units::count(*count),
                escape_name(name)
            );
            add("merge-not-understood", text);
        }
        for (id, found) in &self.found {
            let (at, host, sentence) = &found.first;
            let (of, all) = (units::count(found.reports), units::count(self.reports()));
            let sentence = if shows_keys {
                format!(": {}", shorten(&escape_name(sentence), SENTENCE_MAX))
            } else {
                String::new()
            };
            let first = format!("first {} {}", escape_name(host), units::instant_short(*at));
            add(id, format!("in {of} of {all} reports, {first}{sentence}"));
        }
        if self.kinds_left_out > 0 {
            let text = format!(
                "{} more findings of other kinds stand in the reports",
                units::count(self.kinds_left_out)
            );
            add("merge-findings", text);
        }
        findings
    }
}

/// Spans of one machine's reports, apart from each other, by their start.
#[derive(Clone, Debug, Default)]
struct Covered {
    reports: u64,
    spans: BTreeMap<Timestamp, Timestamp>,
    /// Of reports that were merged already, of which the spans are not known.
    more: Duration,
    ends: Option<(Timestamp, Timestamp)>,
}

impl Covered {
    fn add(&mut self, start: Timestamp, end: Timestamp) {
        self.stretch(start, end);
        let (mut start, mut end) = (start, end);
        // Joins what it touches.
        while let Some((&other_start, &other_end)) = self.spans.range(..=end).next_back() {
            if other_end < start {
                break;
            }
            self.spans.remove(&other_start);
            (start, end) = (start.min(other_start), end.max(other_end));
        }
        self.spans.insert(start, end);
    }

    fn stretch(&mut self, start: Timestamp, end: Timestamp) {
        let (first, last) = self.ends.unwrap_or((start, end));
        self.ends = Some((first.min(start), last.max(end)));
    }

    fn source(&self, host: &str) -> MergedSource {
        let (start, end) = self.ends.unwrap_or_default();
        let spans: Duration = self.spans.iter().map(|(start, end)| end.since(*start)).sum();
        let covered = (spans + self.more).min(end.since(start));
        MergedSource { host: host.to_string(), reports: self.reports, start, end, covered }
    }
}

#[derive(Debug, Default)]
struct TargetMerge {
    union: Union,
    addresses: Vec<String>,
    hosts: BTreeMap<String, Covered>,
    found: BTreeMap<String, Found>,
    kinds_left_out: u64,
    not_understood: BTreeMap<String, u64>,
}

/// Takes reports in and makes one of each target.
#[derive(Debug, Default)]
pub struct ReportMerge {
    files: Vec<String>,
    /// In the order of their first reports.
    targets: Vec<(String, TargetMerge)>,
    by_ip: bool,
    privacy: Option<(PrivacyMode, Option<String>, Place)>,
    sum: u64,
    lines_cut: u64,
    lines: HashMap<Vec<u8>, Place>,
    /// Intervals of the newest file by target and machine: end and line, by start.
    intervals: HashMap<(String, String), BTreeMap<Timestamp, (Timestamp, u64)>>,
}

impl ReportMerge {
    /// Of nothing.
    pub fn new() -> ReportMerge {
        ReportMerge::default()
    }

    /// What is added next stands in a file of this name.
    pub fn begin_file(&mut self, name: &str) {
        self.files.push(name.to_string());
        self.intervals.clear();
    }

    /// A line broke off and is in no report.
    pub fn count_cut_line(&mut self) {
        self.lines_cut += 1;
    }

    /// Adds the report that stood in a line (the first is 1), with a digest of its bytes.
    pub fn add(&mut self, report: ReadReport, line: u64, digest: &[u8]) -> Result<(), MergeError> {
        let place = Place { file: self.files.len().saturating_sub(1), line };
        self.check_twice(&report, place, digest)?;
        self.check_overlap(&report, place)?;
        self.check_privacy(&report, place)?;
        self.sum = self.sum.saturating_add(report.greatest);
        if self.sum > SUM_MAX {
            return Err(MergeError::TooGreat);
        }
        self.by_ip |= report.view == Some(ClientView::Ip);
        let name = &report.snapshot.target;
        let at = match self.targets.iter().position(|(target, _)| target == name) {
            Some(at) => at,
            None => {
                self.targets.push((name.clone(), TargetMerge::default()));
                self.targets.len() - 1
            }
        };
        self.targets[at].1.add(report);
        Ok(())
    }

    fn name(&self, place: Place) -> String {
        let file = self.files.get(place.file).map_or("", String::as_str);
        format!("{}, line {}", escape_name(file), place.line)
    }

    fn check_twice(&mut self, report: &ReadReport, place: Place, digest: &[u8]) -> Result<(), MergeError> {
        let counts = report.snapshot.loss.packets > 0 || report.snapshot.totals.counters.requests() > 0;
        if !counts {
            return Ok(());
        }
        if self.lines.len() >= REPORTS_MAX {
            return Err(MergeError::TooMany);
        }
        match self.lines.insert(digest.to_vec(), place) {
            Some(other) => Err(MergeError::Twice(self.name(other))),
            None => Ok(()),
        }
    }

    fn check_overlap(&mut self, report: &ReadReport, place: Place) -> Result<(), MergeError> {
        let snapshot = &report.snapshot;
        let intervals = self.intervals.entry((snapshot.target.clone(), report.host.clone())).or_default();
        let before = intervals.range(..snapshot.end).next_back();
        if let Some((_, &(end, line))) = before
            && end > snapshot.start
        {
            return Err(MergeError::Overlap {
                target: escape_name(&snapshot.target),
                host: escape_name(&report.host),
                from: units::instant_short(snapshot.start),
                other: format!("line {line}"),
            });
        }
        intervals.insert(snapshot.start, (snapshot.end, place.line));
        Ok(())
    }

    fn check_privacy(&mut self, report: &ReadReport, place: Place) -> Result<(), MergeError> {
        let these = (report.privacy, report.key_secret.clone());
        let Some((mode, secret, other)) = &self.privacy else {
            self.privacy = Some((these.0, these.1, place));
            return Ok(());
        };
        if (*mode, secret) == (these.0, &these.1) {
            return Ok(());
        }
        let shown = |mode: PrivacyMode, secret: &Option<String>| match secret {
            Some(secret) => format!("{} (secret {})", mode.name(), escape_name(secret)),
            None => mode.name().to_string(),
        };
        let advice = match (*mode, these.0) {
            (PrivacyMode::Hash, PrivacyMode::Hash) => {
                "; the same keys.hash_secret on all machines makes them meet"
            }
            _ => "",
        };
        Err(MergeError::Privacy {
            these: shown(these.0, &these.1),
            those: shown(*mode, secret),
            other: self.name(*other),
            advice,
        })
    }

    /// What the hot clients of all reports can be shown as, given what is asked for: by IP where any report lists them so.
    pub fn view(&self, asked: Option<ClientView>) -> ClientView {
        if self.by_ip { ClientView::Ip } else { asked.unwrap_or(ClientView::Socket) }
    }

    /// The reports, one for each target, with clients in a view that [`ReportMerge::view`] allows.
    pub fn finish(self, view: ClientView) -> Vec<(Snapshot, Merged)> {
        let (privacy, key_secret) =
            self.privacy.map_or((PrivacyMode::Full, None), |(mode, secret, _)| (mode, secret));
        let finish = |(target, merge): (String, TargetMerge)| {
            let snapshot = merge.snapshot(view);
            let merged = Merged {
                target,
                sources: merge.hosts.iter().map(|(host, covered)| covered.source(host)).collect(),
                privacy,
                key_secret: key_secret.clone(),
                without_histogram: merge.union.without_histogram(),
                lines_cut: self.lines_cut,
                start: snapshot.start,
                end: snapshot.end,
                found: merge.found,
                kinds_left_out: merge.kinds_left_out,
                not_understood: merge.not_understood,
            };
            (snapshot, merged)
        };
        self.targets.into_iter().map(finish).collect()
    }
}

impl TargetMerge {
    fn add(&mut self, report: ReadReport) {
        let (start, end) = (report.snapshot.start, report.snapshot.end);
        let address = &report.snapshot.address;
        if !self.addresses.contains(address) {
            self.addresses.push(address.clone());
        }
        if report.sources.is_empty() {
            let covered = self.hosts.entry(report.host.clone()).or_default();
            covered.reports += 1;
            covered.add(start, end);
        }
        for source in report.sources {
            let covered = self.hosts.entry(source.host).or_default();
            covered.reports = covered.reports.saturating_add(source.reports);
            covered.stretch(source.start, source.end);
            covered.more = covered.more.saturating_add(source.covered);
        }
        self.add_findings(report.findings, end, &report.host);
        for (name, count) in report.not_understood {
            if self.not_understood.len() < KINDS_MAX || self.not_understood.contains_key(&name) {
                *self.not_understood.entry(name).or_default() += count;
            } else {
                self.kinds_left_out += 1;
            }
        }
        self.union.merge(Union::of(report.snapshot, &report.unlisted));
        if self.union.rows() > ROWS_MAX {
            self.union.prune(ROWS_KEPT);
        }
    }

    fn add_findings(&mut self, findings: Vec<(String, String)>, end: Timestamp, host: &str) {
        let mut counted: Vec<String> = Vec::new();
        for (id, text) in findings {
            if !self.found.contains_key(&id) && self.found.len() >= KINDS_MAX {
                self.kinds_left_out += 1;
                continue;
            }
            let first = (end, host.to_string(), text);
            let found =
                self.found.entry(id.clone()).or_insert_with(|| Found { reports: 0, first: first.clone() });
            if first < found.first {
                found.first = first;
            }
            // Several findings of a kind in one report are one report.
            if !counted.contains(&id) {
                found.reports += 1;
                counted.push(id);
            }
        }
    }

    fn snapshot(&self, view: ClientView) -> Snapshot {
        let mut snapshot = self.union.snapshot();
        let unlisted = self.union.unlisted();
        let client = match view {
            ClientView::Ip => unlisted.client,
            ClientView::Socket => unlisted.socket,
        };
        snapshot.bounds.client = client.max(unlisted.server);
        let mut addresses = self.addresses.clone();
        addresses.sort();
        let more = addresses.len().saturating_sub(HOSTS_NAMED);
        addresses.truncate(HOSTS_NAMED);
        snapshot.address = addresses.join(", ");
        if more > 0 {
            snapshot.address.push_str(&format!(" and {more} more"));
        }
        snapshot
    }
}

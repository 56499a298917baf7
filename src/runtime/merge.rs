//! `memtap merge`: reports of several machines or intervals, as JSON Lines, into one report of each target.

use crate::cli::{Exit, MergeArgs};
use crate::collector::snapshot::Snapshot;
use crate::config::Config;
use crate::report::{ClientView, Merged, ReadError, ReportMerge, Reporter, escape_name, read_report};
use crate::runtime::failure::Failure;
use crate::runtime::load_with;
use crate::runtime::output::{self, Output, OutputEnd};
use crate::runtime::reporter::{report_options, width};
use crate::runtime::stat::forget_out_of_file;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// A line is not longer: some three million rows of ordinary keys.
const LINE_BYTES_MAX: u64 = 1 << 30;

/// Reads the reports, adds them up, and writes one for each target.
pub fn merge(arguments: &MergeArgs) -> Result<(), Failure> {
    let mut config = load_with(&arguments.options, &[])?;
    forget_out_of_file(&mut config, &arguments.options);
    let mut reading =
        Reading { merge: ReportMerge::new(), hashers: [RandomState::new(), RandomState::new()] };
    for file in &arguments.files {
        reading.file(file)?;
    }
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let asked = arguments.options.client.is_some() || is_set("MEMTAP_CLIENT");
    let asked = asked.then_some(config.report.client);
    let view = reading.merge.view(asked);
    if asked == Some(ClientView::Socket) && view == ClientView::Ip {
        tracing::warn!("clients are shown by IP: some of the reports tell no ports");
    }
    let reports = reading.merge.finish(view);
    if reports.is_empty() {
        return Err(Failure::new(Exit::Failure, format!("no report in {}", names(&arguments.files))));
    }
    write(&config, view, reports)
}

fn names(files: &[PathBuf]) -> String {
    files.iter().map(|file| name(file)).collect::<Vec<_>>().join(", ")
}

fn name(file: &Path) -> String {
    match file.to_str() {
        Some("-") => "standard input".to_string(),
        _ => escape_name(&file.display().to_string()),
    }
}

/// Files on their way into a merge.
struct Reading {
    merge: ReportMerge,
    /// Together they tell lines apart.
    hashers: [RandomState; 2],
}

impl Reading {
    fn file(&mut self, path: &Path) -> Result<(), Failure> {
        let name = name(path);
        let input: Box<dyn Read> = if path == Path::new("-") {
            Box::new(io::stdin())
        } else {
            Box::new(File::open(path).map_err(|error| cannot_read(&name, &error))?)
        };
        self.merge.begin_file(&name);
        let mut input = BufReader::new(input);
        let (mut line, mut number) = (Vec::new(), 0);
        loop {
            line.clear();
            number += 1;
            let read = input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
            if read.map_err(|error| cannot_read(&name, &error))? == 0 {
                break;
            }
            let fail = |what: &dyn std::fmt::Display| {
                Failure::new(Exit::Failure, format!("{name}, line {number}: {what}"))
            };
            let is_whole = line.ends_with(b"\n");
            if !is_whole && line.len() as u64 == LINE_BYTES_MAX {
                return Err(fail(&format!("longer than {LINE_BYTES_MAX} bytes, which no report is")));
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            match read_report(line.trim_ascii()) {
                Ok(report) => {
                    let digest = self.hashers.each_ref().map(|hasher| hasher.hash_one(line.trim_ascii()));
                    let digest = digest.map(u64::to_le_bytes).concat();
                    self.merge.add(report, number, &digest).map_err(|error| fail(&error))?;
                }
                // A file that is being written, or that outgrew its disk.
                Err(error @ ReadError::Cut { .. }) if !is_whole => {
                    tracing::warn!("{name}, line {number}: {error}; the report that it began is left out");
                    self.merge.count_cut_line();
                }
                Err(error) => return Err(fail(&error)),
            }
        }
        Ok(())
    }
}

fn cannot_read(name: &str, error: &io::Error) -> Failure {
    Failure::new(Exit::Failure, format!("cannot read {name}: {error}"))
}

fn write(config: &Config, view: ClientView, reports: Vec<(Snapshot, Merged)>) -> Result<(), Failure> {
    let out = config.report.out.as_deref();
    let mut reporter = Reporter::new(report_options(config));
    let (snapshots, merged): (Vec<Snapshot>, Vec<Merged>) = reports.into_iter().unzip();
    let options = reporter.options_mut();
    options.merged = merged;
    options.client = view;
    options.width = width(out);
    // Before it is opened, which creates it.
    reporter.begin_output(!out.is_some_and(output::has_content));
    let failed = |error: &io::Error| {
        let path = out.unwrap_or_else(|| "standard output".as_ref());
        Failure::new(Exit::OutputFailed, format!("cannot write the report to {}: {error}", path.display()))
    };
    let mut output = Output::open(out, config.report.out_mode).map_err(|error| failed(&error))?;
    if output.begins_anew() {
        reporter.begin_output(true);
    }
    match output.write(|mut out| reporter.write_interval(&mut out, &snapshots)) {
        Ok(()) | Err(OutputEnd::ClosedPipe) => Ok(()),
        Err(OutputEnd::Failed(error)) => Err(failed(&error)),
    }
}

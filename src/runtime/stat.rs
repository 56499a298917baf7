//! `memtap stat` and `memtap report`: the machine of `run` and `replay` with other defaults, for a look beside other work and
//! for scripts.

use crate::cli::{Exit, Options, ReportArgs, StatArgs};
use crate::config::Config;
use crate::report::Condition;
use crate::runtime::failure::Failure;
use crate::runtime::live;
use crate::runtime::replay::{self, Pace};
use crate::runtime::{Presets, load_with};
use std::path::PathBuf;

/// One line a second until stopped.
const STAT: Presets = &[
    ("MEMTAP_INTERVAL", "1s"),
    ("MEMTAP_INTERVALS", "0"),
    ("MEMTAP_OVER", "interval"),
    ("MEMTAP_OUTPUT", "stat"),
];

/// One report of what is captured, and all of a recording.
const REPORT: Presets = &[("MEMTAP_INTERVALS", "1")];
const REPORT_OF_FILES: Presets = &[("MEMTAP_INTERVALS", "0")];

/// What a script wants beside the reports.
#[derive(Clone, Debug, Default)]
pub(super) struct Script {
    /// Of which the end is to tell whether any held.
    pub(super) conditions: Vec<Condition>,
    /// An interval that had begun before us says little: it is left out.
    pub(super) whole_intervals: bool,
}

/// One line for each interval, live or of recordings.
pub fn stat(arguments: &StatArgs) -> Result<(), Failure> {
    start(&arguments.options, STAT, &arguments.files, Script::default())
}

/// Reports for scripts, live or of recordings; exit code 3 when a condition held.
pub fn report(arguments: &ReportArgs) -> Result<(), Failure> {
    let conditions = arguments.fail_if.iter().map(|text| {
        text.parse::<Condition>().map_err(|error| Failure::new(Exit::Usage, format!("--fail-if: {error}")))
    });
    let script = Script {
        conditions: conditions.collect::<Result<_, _>>()?,
        whole_intervals: arguments.files.is_empty(),
    };
    let presets = if arguments.files.is_empty() { REPORT } else { REPORT_OF_FILES };
    start(&arguments.options, presets, &arguments.files, script)
}

fn start(options: &Options, presets: Presets, files: &[PathBuf], script: Script) -> Result<(), Failure> {
    let mut config = load_with(options, presets)?;
    forget_out_of_file(&mut config, options);
    if files.is_empty() {
        live::capture(&config, options, presets, script)
    } else {
        replay::read(&config, files, Pace::AsFast, script)
    }
}

/// The file's `report.out` is where `run` reports to: what is asked for here and now goes where one looks.
pub(super) fn forget_out_of_file(config: &mut Config, options: &Options) {
    let asked = options.out.is_some() || std::env::var_os("MEMTAP_OUT").is_some_and(|path| !path.is_empty());
    if !asked {
        config.report.out = None;
    }
}

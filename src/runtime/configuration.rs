//! `memtap config`: print the sample, check a file, show what is in force.

use crate::cli::{Exit, Options, ShowArgs};
use crate::config::SAMPLE;
use crate::runtime::Failure;
use crate::runtime::output::{Output, OutputEnd};
use std::path::Path;

/// `memtap config default`: the commented sample, every key at its default.
pub fn print_default_config() -> Result<(), Failure> {
    print(SAMPLE)
}

/// `memtap config check FILE`.
pub fn check_config(file: &Path) -> Result<(), Failure> {
    let options = Options { config: Some(file.to_path_buf()), ..Options::default() };
    let loaded = options.load(&|_| None)?;
    let warnings: String = loaded.warnings.iter().map(|warning| format!("warning: {warning}\n")).collect();
    let targets = loaded.config.targets.len();
    let noun = if targets == 1 { "target" } else { "targets" };
    print(&format!("{warnings}{}: good, {targets} {noun}\n", file.display()))
}

/// `memtap config show [--origin]`: defaults, file, environment and flags together.
pub fn show_config(arguments: &ShowArgs) -> Result<(), Failure> {
    let loaded = arguments.options.load(&|name| std::env::var(name).ok())?;
    print(&loaded.show(arguments.origin))
}

fn print(text: &str) -> Result<(), Failure> {
    match Output::standard().write(|out| out.write_all(text.as_bytes())) {
        Ok(()) | Err(OutputEnd::ClosedPipe) => Ok(()),
        Err(OutputEnd::Failed(error)) => {
            Err(Failure::new(Exit::OutputFailed, format!("cannot write to standard output: {error}")))
        }
    }
}

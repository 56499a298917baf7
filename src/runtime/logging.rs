//! What the program says on stderr: events by `tracing`, as text or JSON. stdout is data.

use crate::config::{LogConfig, LogFormat, LogLevel};
use std::io::{self, IsTerminal};
use tracing::level_filters::LevelFilter;

/// Starts logging. A second start in one process is ignored.
pub(super) fn start(config: &LogConfig) {
    let level = match config.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let builder = tracing_subscriber::fmt().with_max_level(level).with_target(false).with_writer(io::stderr);
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let started = match config.format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal() && !no_color).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    // Only a test that runs two commands in one process gets here twice.
    drop(started);
}

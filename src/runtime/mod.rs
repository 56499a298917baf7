//! Threads, channels, clock, signals, stopping: the one place that sees them, and that turns configuration into limits.
//!
//! `run` and `replay` differ in where packets come from; the worker, the reporter thread and everything between are the same.
//! `top` is either of them with a screen in the place of the output, or a screen that a running `run` feeds.

mod capture;
mod changes;
mod clock;
mod configuration;
mod control;
mod doctor;
mod failure;
mod fault;
mod generate;
mod interfaces;
mod links;
mod live;
mod logging;
mod merge;
mod message;
mod namespace;
mod output;
mod progress;
mod replay;
mod reporter;
mod roster;
mod signals;
mod stat;
mod target;
mod top;
mod wire;
mod worker;

pub use clock::{Interval, IntervalClock, IntervalLength};
pub use configuration::{check_config, print_default_config, show_config};
pub use doctor::doctor;
pub use failure::Failure;
pub use generate::{print_completions, print_man};
pub use live::run;
pub use merge::merge;
pub use replay::replay;
pub use stat::{report, stat};
pub use target::target;
pub use top::top;

use crate::cli::Options;
use crate::collector::{Capacity, Collector, CollectorOptions, Harvest, TargetOptions};
use crate::config::{Config, ConfigError, Interval as ConfiguredInterval, Loaded, TargetConfig};
use crate::model::TargetId;
use crate::pipeline::{Pipeline, PipelineLimits, TargetMap, TargetMatch};
use crate::runtime::message::TargetHarvest;

/// What a subcommand sets unless variables or flags say otherwise: variable and value. It stands above the file, which is written
/// for `run`.
type Presets = &'static [(&'static str, &'static str)];

/// Loads what the operator configured, starts logging, and says what is probably not meant.
fn load(options: &Options) -> Result<Config, Failure> {
    load_with(options, &[])
}

fn load_with(options: &Options, presets: Presets) -> Result<Config, Failure> {
    let loaded = load_layers(options, presets)?;
    logging::start(&loaded.config.log)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    Ok(loaded.config)
}

fn load_layers(options: &Options, presets: Presets) -> Result<Loaded, ConfigError> {
    let preset =
        |name: &str| presets.iter().find(|(of, _)| *of == name).map(|(_, value)| (*value).to_string());
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    options.load(&|name| set(name).or_else(|| preset(name)))
}

fn interval_length(config: &Config) -> IntervalLength {
    match config.report.interval {
        ConfiguredInterval::Every(length) => IntervalLength::Fixed(length),
        ConfiguredInterval::All => IntervalLength::All,
    }
}

fn target_map(config: &Config) -> TargetMap {
    TargetMap::new(config.targets.iter().map(target_match).collect())
}

fn target_match(target: &TargetConfig) -> TargetMatch {
    let TargetConfig { network, port, tcp, udp, .. } = *target;
    TargetMatch { network, port, tcp, udp }
}

fn pipeline_limits() -> PipelineLimits {
    PipelineLimits::default()
}

/// A pipeline for each worker.
fn pipelines(targets: TargetMap, workers: usize) -> Vec<Pipeline> {
    let first = Pipeline::new(targets, pipeline_limits());
    let mut pipelines: Vec<Pipeline> = (1..workers).map(|_| first.beside(pipeline_limits())).collect();
    pipelines.push(first);
    pipelines
}

/// The targets of the configuration, among so many that there may ever be.
fn collector_options(config: &Config, workers: usize, targets_max: usize) -> CollectorOptions {
    let targets = config.targets.iter().map(|target| target_options(target, workers));
    CollectorOptions { targets: targets.collect(), targets_max, ..CollectorOptions::default() }
}

/// Each worker holds its part of every target's budget.
fn target_options(target: &TargetConfig, workers: usize) -> TargetOptions {
    TargetOptions { budget_bytes: target.budget_bytes / workers.max(1) as u64, servers: target.is_fleet() }
}

/// Rows of each table that go to the reporter when the report asks for a top N: enough for every ranking, and for key groups and
/// shapes to be of use. What is left behind has fewer requests than any of them.
const HARVEST_ROWS: usize = 65_536;

/// Empty buffers for the rows of a collector's targets.
fn harvests(config: &Config, collector: &Collector) -> Vec<TargetHarvest> {
    let new = |index| {
        let target = target_id(index);
        TargetHarvest::new(target, harvest(config, collector.capacity(target)))
    };
    (0..config.targets.len()).map(new).collect()
}

/// An empty buffer for the rows of tables that hold so many.
fn harvest(config: &Config, capacity: Capacity) -> Harvest {
    let all = config.report.top == 0 || config.report.clients_per_key == 0;
    Harvest::new((!all).then_some(HARVEST_ROWS), capacity)
}

/// Says what the tables of all workers together hold.
fn describe_tables(target: &TargetConfig, workers: impl Iterator<Item = Capacity>) {
    let mut sum = Capacity::default();
    workers.for_each(|capacity| sum.add(&capacity));
    tracing::info!("{}: {} bytes of tables, capacity: {sum}", target.name, target.budget_bytes);
}

/// The number of the target at an index of the configuration, which limits their number to what fits.
fn target_id(index: usize) -> TargetId {
    TargetId(u16::try_from(index).unwrap_or(u16::MAX))
}

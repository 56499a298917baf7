//! The command line: subcommands and flags, described by their doc comments, and the exit codes.
//!
//! Flags hold texts. What a value may be is judged in one place for file, environment and flags alike: the table of
//! settings in [`crate::config`]. From there, too, help shows each flag's variable, key and default.

use crate::config::{
    ColorChoice, Config, ConfigError, FlagValue, LoadLadder, Loaded, LogFormat, LogLevel, OutMode, Over,
    SETTINGS,
};
use crate::report::{ClientView, Metric, OutputFormat, PrivacyMode};
use crate::sandbox::SandboxMode;
use clap::builder::PossibleValuesParser;
use clap::{ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;

/// The variable that names the configuration file.
pub const CONFIG_VARIABLE: &str = "MEMTAP_CONFIG";

/// Passive reporter for memcached: hot keys, hot clients and the hot clients of each key, from packets.
#[derive(Clone, Debug, Parser)]
#[command(name = "memtap", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "Start here: sudo memtap run\nStandard output is data, standard error is talk.")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Action {
    /// Capture live and print top-N tables every interval, until stopped.
    ///
    /// Needs CAP_NET_RAW. With no target and no file, memtap watches port 11211, TCP and UDP.
    Run(Options),
    /// Report on recordings, at file speed, on capture time.
    ///
    /// Reads pcap and pcapng, also compressed as .gz and .zst.
    Replay(ReplayArgs),
    /// One line a second, after the manner of vmstat: rates, hit ratio, loss, the hottest key.
    ///
    /// Live, or of recordings. Figures are per second in powers of ten; the time is UTC. The defaults are -w 1s -n 0 -o stat
    /// --over interval to standard output, whatever the file says; variables and flags change them.
    Stat(StatArgs),
    /// For scripts: N whole intervals, then the end; exit code 3 when a condition held.
    ///
    /// Live, or of recordings. Live the default is -n 1, and the interval that has begun already is left out. Reports go to standard
    /// output, whatever the file says.
    Report(ReportArgs),
    /// Add reports of several machines or intervals up, each figure with its bound.
    ///
    /// Reads what `run`, `replay` and `report` wrote with -o jsonl, and prints one report for each target. Best exported with -k 0:
    /// a row that a report does not list may have had as much as that report's bound for unlisted rows. Reports go to standard
    /// output, whatever the file says; options of capture have no meaning here.
    Merge(MergeArgs),
    /// Watch live: hot keys, hot clients and one level deeper, on a screen that can be searched.
    ///
    /// Attaches to a running `memtap run` where one listens on its control socket, unless options say what to
    /// capture or how long an interval is; otherwise it captures itself, which needs CAP_NET_RAW. Unless told otherwise, intervals
    /// of an own capture last 2 seconds. Keys are listed under `?`.
    Top(TopArgs),
    /// See and change the targets of a running `memtap run`, over its control socket.
    Target(TargetArgs),
    /// Say what would be seen and why not: privileges, interfaces, listeners, directions, protocols.
    Doctor(DoctorArgs),
    /// Check, show or print a configuration.
    Config(ConfigArgs),
    /// Print the completions of a shell.
    ///
    /// For bash: memtap completions bash > /etc/bash_completion.d/memtap
    Completions {
        /// The shell.
        #[arg(value_name = "SHELL")]
        shell: clap_complete::Shell,
    },
    /// Print the manual page of memtap or of a subcommand, in roff; or write them all.
    ///
    /// To read it: memtap man run | man -l -
    Man(ManArgs),
}

/// What `replay` takes.
#[derive(Clone, Debug, Args)]
pub struct ReplayArgs {
    /// Recordings; the packets of several are put in order of time. "-" is standard input.
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Go through them no faster than they were recorded.
    #[arg(long)]
    pub realtime: bool,
    /// The common options.
    #[command(flatten)]
    pub options: Options,
}

/// What `stat` takes.
#[derive(Clone, Debug, Args)]
pub struct StatArgs {
    /// Recordings to read instead of capturing.
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// The common options.
    #[command(flatten)]
    pub options: Options,
}

/// What `report` takes.
#[derive(Clone, Debug, Args)]
pub struct ReportArgs {
    /// Recordings to read instead of capturing.
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// End with exit code 3 when this holds in any report: 'key_share > 0.3 and requests >= 1000'. May be given several times.
    #[arg(long, value_name = "CONDITION")]
    pub fail_if: Vec<String>,
    /// The common options.
    #[command(flatten)]
    pub options: Options,
}

/// What `merge` takes.
#[derive(Clone, Debug, Args)]
pub struct MergeArgs {
    /// Reports in JSON Lines. "-" is standard input.
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// The common options.
    #[command(flatten)]
    pub options: Options,
}

/// What `doctor` takes.
#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    /// Print one JSON object instead of lines.
    #[arg(long)]
    pub json: bool,
    /// The common options.
    #[command(flatten)]
    pub options: Options,
}

/// What `man` takes.
#[derive(Clone, Debug, Args)]
pub struct ManArgs {
    /// The subcommand; without one, the page of memtap itself.
    #[arg(value_name = "COMMAND", conflicts_with = "dir")]
    pub command: Vec<String>,
    /// Write every page into this directory.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// What `top` takes.
#[derive(Clone, Debug, Args)]
pub struct TopArgs {
    /// Show recordings instead of a capture.
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["attach", "no_attach"])]
    pub replay: Vec<PathBuf>,
    /// Attach to a running memtap or fail.
    #[arg(long, conflicts_with = "no_attach")]
    pub attach: bool,
    /// Capture also where a running memtap listens.
    #[arg(long)]
    pub no_attach: bool,
    /// The common options.
    #[command(flatten)]
    pub options: Options,
}

/// What `target` takes.
#[derive(Clone, Debug, Args)]
pub struct TargetArgs {
    /// What to do.
    #[command(subcommand)]
    pub action: TargetAction,
    /// Configuration file, which names the control socket.
    #[arg(short, long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
}

/// What to do with the targets of a running memtap.
#[derive(Clone, Debug, Subcommand)]
pub enum TargetAction {
    /// List them: name, address, budget, state.
    List,
    /// Watch one more. Ends when it is watched: its memory is taken by then, and the others have lost no count.
    Add {
        /// The server. ADDR is an address, a CIDR, or * for every one; it may not overlap another target.
        #[arg(value_name = "[NAME=]ADDR[:PORT]")]
        target: String,
        /// Memory for its tables, in megabytes.
        #[arg(long, value_name = "N")]
        budget_mb: Option<String>,
    },
    /// Watch one no more. Its last interval is reported there, and its memory given back.
    Remove {
        /// The target's name, as `list` shows it.
        #[arg(value_name = "NAME")]
        name: String,
    },
}

/// What `config` takes.
#[derive(Clone, Debug, Args)]
pub struct ConfigArgs {
    /// What to do with it.
    #[command(subcommand)]
    pub action: ConfigAction,
}

/// What to do with a configuration.
#[expect(clippy::large_enum_variant, reason = "clap's derive takes no box here, and there is one of it")]
#[derive(Clone, Debug, Subcommand)]
pub enum ConfigAction {
    /// Check a file and say everything that is wrong with it.
    Check {
        /// The file.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Print the configuration in force: defaults, file, environment and flags together.
    Show(ShowArgs),
    /// Print the commented sample file with every key at its default.
    Default,
}

/// What `config show` takes.
#[derive(Clone, Debug, Args)]
pub struct ShowArgs {
    /// Say beside each key where its value comes from.
    #[arg(long)]
    pub origin: bool,
    /// The common options.
    #[command(flatten)]
    pub options: Options,
}

/// The common options. Each has an environment variable and, but for `--config`, a key in the file.
#[derive(Clone, Debug, Default, Args)]
pub struct Options {
    /// Configuration file.
    #[arg(short, long, value_name = "FILE", help_heading = "Configuration")]
    pub config: Option<PathBuf>,

    /// Interfaces to listen on: names, "any", or "auto" for those that route to the targets.
    #[arg(short, long, value_name = "IF", value_delimiter = ',', num_args = 1.., help_heading = "Capture")]
    pub interface: Vec<String>,
    /// Servers to watch. ADDR is an address, a CIDR, or * for every one.
    #[arg(short, long, value_name = "[NAME=]ADDR[:PORT]", value_delimiter = ',', num_args = 1..)]
    #[arg(help_heading = "Capture")]
    pub target: Vec<String>,
    /// Memory for the tables of each target, in megabytes.
    #[arg(long, value_name = "N", help_heading = "Capture")]
    pub budget_mb: Option<String>,
    /// Threads that capture.
    #[arg(long, value_name = "N", help_heading = "Capture")]
    pub workers: Option<String>,
    /// Size of each worker's ring, in megabytes.
    #[arg(long, value_name = "N", help_heading = "Capture")]
    pub ring_mb: Option<String>,
    /// Bytes of each response packet to keep, or "full".
    #[arg(long, value_name = "N|full", help_heading = "Capture")]
    pub response_snaplen: Option<String>,
    /// Take packets that are not for this machine, as a mirror port needs.
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, help_heading = "Capture")]
    #[arg(default_missing_value = "true")]
    pub promisc: Option<String>,
    /// What to do when the ring loses packets: nothing, keep less while it does, or always keep less.
    #[arg(long, value_name = "MODE", value_parser = PossibleValuesParser::new(LoadLadder::NAMES))]
    #[arg(help_heading = "Capture")]
    pub load_ladder: Option<String>,
    /// Network namespace to listen in.
    #[arg(long, value_name = "NAME|PID", help_heading = "Capture")]
    pub netns: Option<String>,
    /// What to do where the kernel cannot take away every privilege once the sockets are open.
    #[arg(long, value_name = "MODE", value_parser = PossibleValuesParser::new(SandboxMode::NAMES))]
    #[arg(help_heading = "Capture")]
    pub sandbox: Option<String>,

    /// Length of an interval, or "all" for one report at the end.
    #[arg(short = 'w', long, value_name = "10s|all", help_heading = "Report")]
    pub interval: Option<String>,
    /// Stop after N intervals; 0 goes on until stopped.
    #[arg(short = 'n', long, value_name = "N", help_heading = "Report")]
    pub intervals: Option<String>,
    /// Rows of each ranking; 0 for every row.
    #[arg(short = 'k', long, value_name = "N", help_heading = "Report")]
    pub top: Option<String>,
    /// What each report covers.
    #[arg(long, value_name = "WINDOW", value_parser = PossibleValuesParser::new(Over::NAMES))]
    #[arg(help_heading = "Report")]
    pub over: Option<String>,
    /// What rows are ranked by.
    #[arg(long, value_name = "METRIC", value_parser = PossibleValuesParser::new(Metric::NAMES))]
    #[arg(help_heading = "Report")]
    pub by: Option<String>,
    /// What the table of hot clients tells apart: machines or connections.
    #[arg(long, value_name = "VIEW", value_parser = PossibleValuesParser::new(ClientView::NAMES))]
    #[arg(help_heading = "Report")]
    pub client: Option<String>,
    /// Clients listed for each hot key; 0 for every one.
    #[arg(long, value_name = "N", help_heading = "Report")]
    pub clients_per_key: Option<String>,
    /// Which keys, clients and commands to show: 'key ~ ^user: and client = 10.2.0.0/16'.
    #[arg(long, value_name = "FILTER", help_heading = "Report")]
    pub filter: Option<String>,
    /// How keys may be shown: as they are, as shapes, or as keyed hashes.
    #[arg(long, value_name = "MODE", value_parser = PossibleValuesParser::new(PrivacyMode::NAMES))]
    #[arg(help_heading = "Report")]
    pub privacy: Option<String>,

    /// Form of the output.
    #[arg(short, long, value_name = "FORMAT", value_parser = PossibleValuesParser::new(OutputFormat::NAMES))]
    #[arg(help_heading = "Output")]
    pub output: Option<String>,
    /// File to write to instead of standard output.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub out: Option<String>,
    /// Whether that file grows, or is replaced as a whole by each report.
    #[arg(long, value_name = "MODE", value_parser = PossibleValuesParser::new(OutMode::NAMES))]
    #[arg(help_heading = "Output")]
    pub out_mode: Option<String>,
    /// Colour in tables; "auto" means on a terminal, unless NO_COLOR is set.
    #[arg(long, value_name = "WHEN", value_parser = PossibleValuesParser::new(ColorChoice::NAMES))]
    #[arg(help_heading = "Output")]
    pub color: Option<String>,
    /// Form of the log: lines on standard error, or systemd's journal.
    #[arg(long, value_name = "FORMAT", value_parser = PossibleValuesParser::new(LogFormat::NAMES))]
    #[arg(help_heading = "Output")]
    pub log_format: Option<String>,
    /// Say more on standard error; twice for everything.
    #[arg(short, long, action = ArgAction::Count, help_heading = "Output")]
    pub verbose: u8,
    /// Say less on standard error; twice for errors only.
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "verbose", help_heading = "Output")]
    pub quiet: u8,
}

impl Options {
    /// The configuration that file, environment and these flags make.
    pub fn load(&self, environment: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, ConfigError> {
        Config::load(self.file(environment).as_deref(), environment, &self.flags())
    }

    /// The configuration file that is read.
    pub fn file(&self, environment: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
        let from_environment =
            || environment(CONFIG_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
        self.config.clone().or_else(from_environment)
    }

    /// The flags that were given, by the key of their setting.
    pub fn flags(&self) -> Vec<FlagValue> {
        let one = |key, flag: &str, value: &Option<String>| {
            let flag = flag.to_string();
            value.clone().map(|value| FlagValue { key, flag, values: vec![value] })
        };
        let many = |key, flag: &str, values: &Vec<String>| {
            let flag = flag.to_string();
            (!values.is_empty()).then(|| FlagValue { key, flag, values: values.clone() })
        };
        let flags = [
            many("capture.interfaces", "--interface", &self.interface),
            many("target", "--target", &self.target),
            one("target.budget", "--budget-mb", &self.budget_mb),
            one("capture.workers", "--workers", &self.workers),
            one("capture.ring", "--ring-mb", &self.ring_mb),
            one("capture.response_snaplen", "--response-snaplen", &self.response_snaplen),
            one("capture.promiscuous", "--promisc", &self.promisc),
            one("capture.load_ladder", "--load-ladder", &self.load_ladder),
            one("capture.netns", "--netns", &self.netns),
            one("capture.sandbox", "--sandbox", &self.sandbox),
            one("report.interval", "--interval", &self.interval),
            one("report.intervals", "--intervals", &self.intervals),
            one("report.top", "--top", &self.top),
            one("report.over", "--over", &self.over),
            one("report.by", "--by", &self.by),
            one("report.client", "--client", &self.client),
            one("report.clients_per_key", "--clients-per-key", &self.clients_per_key),
            one("report.filter", "--filter", &self.filter),
            one("keys.privacy", "--privacy", &self.privacy),
            one("report.output", "--output", &self.output),
            one("report.out", "--out", &self.out),
            one("report.out_mode", "--out-mode", &self.out_mode),
            one("report.color", "--color", &self.color),
            one("log.format", "--log-format", &self.log_format),
            self.log_level(),
        ];
        flags.into_iter().flatten().collect()
    }

    fn log_level(&self) -> Option<FlagValue> {
        let (flag, level) = match (self.verbose, self.quiet) {
            (0, 0) => return None,
            (1, _) => ("--verbose", LogLevel::Debug),
            (2.., _) => ("--verbose", LogLevel::Trace),
            (_, 1) => ("--quiet", LogLevel::Warn),
            (_, 2..) => ("--quiet", LogLevel::Error),
        };
        let values = vec![level.name().to_string()];
        Some(FlagValue { key: "log.level", flag: flag.to_string(), values })
    }
}

impl Cli {
    /// Reads the arguments, the program's name first. The error knows whether it is one (help and version are not), and
    /// where it is to be printed.
    pub fn parse_from_arguments(
        arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    ) -> Result<Cli, clap::Error> {
        let matches = command().try_get_matches_from(arguments)?;
        Cli::from_arg_matches(&matches)
    }
}

/// The command line's definition, each flag with its variable, key and default: what help, completions and man pages show.
pub fn command() -> clap::Command {
    // Where recordings follow, a flag that took every word after it would swallow them.
    let one_at_a_time = |arg: clap::Arg| arg.num_args(1);
    let with_files =
        |command: clap::Command| command.mut_arg("interface", one_at_a_time).mut_arg("target", one_at_a_time);
    let command = ["replay", "stat", "report", "merge"]
        .into_iter()
        .fold(Cli::command(), |command, name| command.mut_subcommand(name, with_files));
    describe(command)
}

fn describe(command: clap::Command) -> clap::Command {
    let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_string()).collect();
    let command = names.into_iter().fold(command, |command, name| command.mut_subcommand(name, describe));
    command.mut_args(|arg| match arg.get_long().and_then(facts) {
        Some(facts) => {
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            arg.help(format!("{help} {facts}"))
        }
        None => arg,
    })
}

/// What help adds to the description of a flag.
fn facts(flag: &str) -> Option<String> {
    if flag == "config" {
        return Some(format!("[env: {CONFIG_VARIABLE}]"));
    }
    let key = match flag {
        "verbose" | "quiet" => "log.level",
        _ => SETTINGS.iter().find(|setting| setting.flag == Some(flag))?.key,
    };
    let setting = crate::config::setting(key)?;
    let default = setting.default_text().map(|default| format!("[default: {default}]"));
    let environment = setting.environment.map(|name| format!("[env: {name}]"));
    let facts = [default, environment, Some(format!("[key: {key}]"))];
    Some(facts.into_iter().flatten().collect::<Vec<_>>().join(" "))
}

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done; also after SIGINT or SIGTERM, and when the reader of the output has gone.
    Done = 0,
    /// Failure while running.
    Failure = 1,
    /// Wrong usage.
    Usage = 2,
    /// A condition of `report --fail-if` held.
    ConditionHeld = 3,
    /// The interface is gone for good (EX_UNAVAILABLE).
    InterfaceGone = 69,
    /// The output could not be written (EX_IOERR).
    OutputFailed = 74,
    /// CAP_NET_RAW is missing (EX_NOPERM).
    NoPermission = 77,
    /// The configuration is wrong (EX_CONFIG).
    BadConfig = 78,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> std::process::ExitCode {
        std::process::ExitCode::from(exit as u8)
    }
}

impl From<&ConfigError> for Exit {
    fn from(error: &ConfigError) -> Exit {
        if error.is_usage() { Exit::Usage } else { Exit::BadConfig }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn targets_do_not_swallow_recordings() {
        let parse = |arguments: &[&str]| Cli::parse_from_arguments(arguments).unwrap().action;
        let Action::Replay(replay) = parse(&["memtap", "replay", "-t", "*:1", "-t", "*:2", "a.pcap"]) else {
            panic!("not replay");
        };
        assert_eq!(replay.files, [PathBuf::from("a.pcap")]);
        assert_eq!(replay.options.target, ["*:1", "*:2"]);
        let Action::Run(options) =
            parse(&["memtap", "run", "-i", "eth0", "lo", "-t", "a=*:1,b=*:2", "--promisc"])
        else {
            panic!("not run");
        };
        assert_eq!(options.interface, ["eth0", "lo"]);
        assert_eq!(options.target, ["a=*:1", "b=*:2"]);
        assert_eq!(options.promisc.as_deref(), Some("true"));
    }
}

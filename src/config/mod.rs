//! What the operator wants, read once: file model, then a validated [`Config`]. The one home of defaults.
//!
//! Precedence: flag, environment (`MEMTAP_…`), file, default. Each default is written once, in the `Default` of its section;
//! the sample `config/memtap.toml` says the same by test. Nothing here opens a socket, looks at the machine's interfaces
//! or resolves a name.

mod error;
mod file;
mod setting;
mod show;
mod target;
mod units;

pub use crate::report::KeyGroup;
pub use error::{ConfigError, Origin, Place, Problem, Spot};
pub use setting::{SETTINGS, Setting, setting};
pub use target::{BUDGET_BYTES_DEFAULT, BUDGET_BYTES_MIN, PORT_DEFAULT, TARGETS_MAX, TargetConfig};

use crate::capture::ladder::Rung;
use crate::choices::choices;
use crate::report::{ClientView, Filter, Metric, OutputFormat, Privacy, PrivacyMode, ReportOptions};
use crate::sandbox::SandboxMode;
use setting::{RING_BLOCK_BYTES, Refusal, Value};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The commented sample file with every key at its default: the text of `memtap config default`.
pub const SAMPLE: &str = include_str!("../../config/memtap.toml");

/// Everything that can be configured, validated.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where and how to capture.
    pub capture: CaptureConfig,
    /// What to watch; at least one and at most [`TARGETS_MAX`]. A packet belongs to the most specific that matches, and among equals to
    /// the first.
    pub targets: Vec<TargetConfig>,
    /// What to report, when and where.
    pub report: ReportConfig,
    /// How to treat keys.
    pub keys: KeysConfig,
    /// Who may ask a running memtap.
    pub control: ControlConfig,
    /// What to say on stderr.
    pub log: LogConfig,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            capture: CaptureConfig::default(),
            targets: vec![TargetConfig::default()],
            report: ReportConfig::default(),
            keys: KeysConfig::default(),
            control: ControlConfig::default(),
            log: LogConfig::default(),
        }
    }
}

/// Section `[capture]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureConfig {
    /// Where to listen.
    pub interfaces: Interfaces,
    /// Bytes of each ring; whole blocks of 1 MiB.
    pub ring_bytes: u64,
    /// Threads that capture.
    pub workers: usize,
    /// Whether to take packets that are not for this machine.
    pub promiscuous: bool,
    /// How much of each response packet to keep.
    pub response_snaplen: Snaplen,
    /// When to keep less of the traffic so as not to lose it at random.
    pub load_ladder: LoadLadder,
    /// The network namespace to listen in: a name of /run/netns, or the number of a process; nothing for our own.
    pub netns: Option<String>,
    /// The user to become once the sockets are open.
    pub user: Option<String>,
    /// How much to insist on giving up everything else.
    pub sandbox: SandboxMode,
}

impl Default for CaptureConfig {
    fn default() -> CaptureConfig {
        CaptureConfig {
            interfaces: Interfaces::Auto,
            ring_bytes: (RING_MB_DEFAULT * 1_000_000).next_multiple_of(RING_BLOCK_BYTES),
            workers: 1,
            promiscuous: false,
            response_snaplen: Snaplen::Full,
            load_ladder: LoadLadder::Off,
            netns: None,
            user: None,
            sandbox: SandboxMode::BestEffort,
        }
    }
}

/// Megabytes of a ring: about half a second of a full gigabit link.
const RING_MB_DEFAULT: u64 = 64;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interfaces {
    /// Where the targets' traffic should pass.
    Auto,
    /// Every interface, with one socket.
    Any,
    /// These.
    Named(Vec<String>),
}

impl Interfaces {
    /// As written in the file.
    pub fn names(&self) -> Vec<&str> {
        match self {
            Interfaces::Auto => vec!["auto"],
            Interfaces::Any => vec!["any"],
            Interfaces::Named(names) => names.iter().map(String::as_str).collect(),
        }
    }
}

/// How much of a packet to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Snaplen {
    /// All of it.
    Full,
    /// The first bytes.
    Bytes(u32),
}

choices! {
    /// When to keep less of the traffic so as not to lose it at random.
    LoadLadder {
        /// Never: what the ring cannot hold is lost.
        Off = "off",
        /// While the ring loses packets, one rung after the other; and back.
        Auto = "auto",
        /// Heads of responses, always.
        Heads = "heads",
        /// Requests alone, always.
        Requests = "requests",
    }
}

impl LoadLadder {
    /// The rung to begin with; the only one, unless it is chosen by the load.
    pub fn rung(self) -> Rung {
        match self {
            LoadLadder::Off | LoadLadder::Auto => Rung::Full,
            LoadLadder::Heads => Rung::Heads,
            LoadLadder::Requests => Rung::Requests,
        }
    }
}

/// Section `[report]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ReportConfig {
    /// When to report.
    pub interval: Interval,
    /// Intervals after which to stop; 0 for never.
    pub intervals: u64,
    /// What each report covers.
    pub over: Over,
    /// Rows of each ranking; 0 for every row.
    pub top: usize,
    /// What rows are ranked by.
    pub by: Metric,
    /// What the table of hot clients tells apart.
    pub client: ClientView,
    /// Clients listed for each hot key; 0 for every one.
    pub clients_per_key: usize,
    /// Which requests or rows to show.
    pub filter: Option<Filter>,
    /// Form of the output.
    pub output: OutputFormat,
    /// File to write to instead of stdout.
    pub out: Option<PathBuf>,
    /// What becomes of the reports before in that file.
    pub out_mode: OutMode,
    /// When to use colour.
    pub color: ColorChoice,
}

impl Default for ReportConfig {
    fn default() -> ReportConfig {
        ReportConfig {
            interval: Interval::Every(Duration::from_secs(10)),
            intervals: 0,
            over: Over::Interval,
            top: 20,
            by: Metric::Requests,
            client: ClientView::Socket,
            clients_per_key: 5,
            filter: None,
            output: OutputFormat::Table,
            out: None,
            out_mode: OutMode::Append,
            color: ColorChoice::Auto,
        }
    }
}

/// When to report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interval {
    /// At every multiple of this length in UTC.
    Every(Duration),
    /// Once, at the end.
    All,
}

choices! {
    /// What each report covers.
    Over {
        /// The interval that just closed.
        Interval = "interval",
        /// The last minute.
        Minute = "1m",
        /// The last ten minutes.
        TenMinutes = "10m",
        /// The last hour.
        Hour = "1h",
        /// Everything since the start.
        Start = "start",
    }
}

impl Over {
    /// The length of the window; `None` where it is not a fixed one.
    pub const fn window(self) -> Option<Duration> {
        match self {
            Over::Minute => Some(Duration::from_secs(60)),
            Over::TenMinutes => Some(Duration::from_secs(600)),
            Over::Hour => Some(Duration::from_secs(3600)),
            Over::Interval | Over::Start => None,
        }
    }
}

choices! {
    /// How reports are written to a file.
    OutMode {
        /// Behind what is there.
        Append = "append",
        /// The newest report alone, the file replaced as a whole.
        Replace = "replace",
    }
}

choices! {
    /// When to use colour.
    ColorChoice {
        /// On a terminal, unless NO_COLOR is set.
        Auto = "auto",
        /// Always.
        Always = "always",
        /// Never.
        Never = "never",
    }
}

impl ColorChoice {
    /// Whether to use colour, given whether the output is a terminal and whether NO_COLOR is set and not empty.
    pub const fn enabled(self, is_terminal: bool, no_color: bool) -> bool {
        match self {
            ColorChoice::Auto => is_terminal && !no_color,
            ColorChoice::Always => true,
            ColorChoice::Never => false,
        }
    }
}

/// Section `[keys]`.
#[derive(Clone, Debug, PartialEq)]
pub struct KeysConfig {
    /// How keys may be shown.
    pub privacy: PrivacyMode,
    /// What keys the hashes, so that they agree between machines and runs. Drawn at each start when there is none.
    pub hash_secret: Option<Secret>,
    /// Key groups; the first that matches a key wins.
    pub groups: Vec<KeyGroup>,
}

impl Default for KeysConfig {
    fn default() -> KeysConfig {
        KeysConfig { privacy: PrivacyMode::Full, hash_secret: None, groups: Vec::new() }
    }
}

/// A text that no output may show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Section `[control]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControlConfig {
    /// Where `memtap run` listens for `memtap top` and `memtap target`.
    pub socket: ControlSocket,
}

/// Where a running memtap listens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ControlSocket {
    /// At the usual place of the user: `/run/memtap/control.sock` of root, `memtap/control.sock` in `$XDG_RUNTIME_DIR` of others.
    #[default]
    Auto,
    /// Nowhere.
    Off,
    /// There.
    Path(PathBuf),
}

/// Section `[log]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Form of the lines.
    pub format: LogFormat,
    /// How much to say.
    pub level: LogLevel,
}

impl Default for LogConfig {
    fn default() -> LogConfig {
        LogConfig { format: LogFormat::Text, level: LogLevel::Info }
    }
}

choices! {
    /// Form of the log, and where it goes.
    LogFormat {
        /// For people, on stderr.
        Text = "text",
        /// For machines, on stderr.
        Json = "json",
        /// To systemd's journal.
        Journald = "journald",
    }
}

choices! {
    /// How much to say on stderr.
    LogLevel {
        /// What makes the program stop.
        Error = "error",
        /// What the operator should look at.
        Warn = "warn",
        /// What the program does.
        Info = "info",
        /// What it decides.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

/// A flag of the command line with its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlagValue {
    /// The key of its setting.
    pub key: &'static str,
    /// As the operator wrote it: `--top`.
    pub flag: String,
    /// Its values.
    pub values: Vec<String>,
}

/// A configuration with all that is worth knowing about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What is allowed and probably not meant.
    pub warnings: Vec<String>,
    /// Where each setting came from, by key; a default when it is not there.
    origins: BTreeMap<&'static str, Origin>,
}

impl Loaded {
    /// Where a setting came from.
    pub fn origin(&self, key: &str) -> &Origin {
        self.origins.get(key).unwrap_or(&Origin::Default)
    }

    /// The configuration as a file; with the origin of each setting beside it when asked for.
    pub fn show(&self, with_origin: bool) -> String {
        show::show(self, with_origin)
    }
}

impl Config {
    /// Reads `file` (when there is one), the environment and the flags.
    pub fn load(
        file: Option<&Path>,
        environment: &dyn Fn(&str) -> Option<String>,
        flags: &[FlagValue],
    ) -> Result<Loaded, ConfigError> {
        let Some(path) = file else { return Config::from_layers(None, environment, flags) };
        let name = path.to_string_lossy();
        let text = std::fs::read(path).map_err(|error| error.to_string()).and_then(|bytes| {
            String::from_utf8(bytes).map_err(|error| {
                format!(
                    "not a text in UTF-8 (byte {} is the first that is none)",
                    error.utf8_error().valid_up_to()
                )
            })
        });
        let text = text.map_err(|error| Problem {
            message: format!("cannot read the configuration: {error}"),
            place: Place::WholeFile(name.to_string()),
            help: None,
        })?;
        Config::from_layers(Some((&name, &text)), environment, flags)
    }

    /// As [`Config::load`], with the file's name and text in hand.
    pub fn from_layers(
        file: Option<(&str, &str)>,
        environment: &dyn Fn(&str) -> Option<String>,
        flags: &[FlagValue],
    ) -> Result<Loaded, ConfigError> {
        let model = file.map(|(name, text)| file::read(name, text)).unwrap_or_default();
        let mut loading = Loading::default();
        loading.take_file(model);
        for setting in SETTINGS {
            if let Some(name) = setting.environment
                && let Some(text) = environment(name).filter(|text| !text.is_empty())
            {
                loading.take(setting.key, &Value::Text(text), Place::Environment(name.to_string()));
            }
            for flag in flags.iter().filter(|flag| flag.key == setting.key) {
                let value = match flag.values.as_slice() {
                    [one] => Value::Text(one.clone()),
                    several => Value::List(several.to_vec()),
                };
                loading.take(setting.key, &value, Place::Flag(flag.flag.clone()));
            }
        }
        loading.finish()
    }

    /// What the reports need of it. Host, width and colour depend on the machine and stay at their defaults.
    pub fn report_options(&self) -> ReportOptions {
        ReportOptions {
            format: self.report.output,
            top: self.report.top,
            by: self.report.by,
            client: self.report.client,
            clients_per_key: self.report.clients_per_key,
            filter: self.report.filter.clone(),
            groups: self.keys.groups.clone(),
            privacy: Privacy::new(self.keys.privacy, self.keys.hash_secret.as_ref().map(Secret::reveal)),
            ..ReportOptions::default()
        }
    }
}

/// The line of a refused secret is not for the screen either.
fn hide_secret(key: &str, place: Place) -> Place {
    match place {
        Place::File(spot) if key == "keys.hash_secret" => {
            let shown: String = spot.text.chars().take(spot.column - 1).collect();
            Place::File(Spot { text: format!("{shown}..."), marked: 3, ..spot })
        }
        other => other,
    }
}

/// A configuration on its way from the layers, lowest first, with its problems so far.
#[derive(Default)]
struct Loading {
    config: Config,
    origins: BTreeMap<&'static str, Origin>,
    places: HashMap<&'static str, Place>,
    /// Where each target stands in the file, when they come from there.
    target_spots: Vec<Spot>,
    problems: Vec<Problem>,
}

impl Loading {
    fn take_file(&mut self, model: file::FileModel) {
        self.problems = model.problems;
        for (key, value, spot) in model.entries {
            self.take(key, &value, Place::File(spot));
        }
        if let Some((targets, spots)) =
            model.targets.map(|targets| targets.into_iter().unzip::<_, _, Vec<_>, Vec<_>>())
        {
            self.config.targets = targets;
            self.target_spots = spots;
            if let Some(spot) = self.target_spots.first() {
                self.note("target", Place::File(spot.clone()));
            }
        }
        for (group, spot) in model.groups {
            if self.config.keys.groups.iter().any(|known| known.name == group.name) {
                let message = format!("two groups are named {:?}", group.name);
                self.refuse(Place::File(spot), message, Some("give each group its own name".to_string()));
                continue;
            }
            self.note("keys.group", Place::File(spot));
            self.config.keys.groups.push(group);
        }
    }

    fn take(&mut self, key: &'static str, value: &Value, place: Place) {
        let Some(setting) = setting(key) else { return };
        match (setting.apply)(&mut self.config, value) {
            Ok(()) => {
                if key == "target" {
                    self.target_spots.clear();
                }
                self.note(key, place);
            }
            Err(Refusal { value, message, help }) => {
                // A place in the file names no key; a flag or variable is one.
                let message = match (&place, value) {
                    (Place::File(_), Some(value)) => format!("{key} = {value} {message}"),
                    (Place::File(_), None) => format!("{key}: {message}"),
                    (_, Some(value)) => format!("{value} {message}"),
                    (_, None) => message,
                };
                self.refuse(hide_secret(key, place), message, help);
            }
        }
    }

    fn note(&mut self, key: &'static str, place: Place) {
        let origin = match &place {
            Place::WholeFile(file) => Origin::File { file: file.clone(), line: 1 },
            Place::File(spot) => Origin::File { file: spot.file.clone(), line: spot.line },
            Place::Environment(name) => Origin::Environment(name.clone()),
            Place::Flag(flag) => Origin::Flag(flag.clone()),
        };
        self.origins.insert(key, origin);
        self.places.insert(key, place);
    }

    fn refuse(&mut self, place: Place, message: String, help: Option<String>) {
        self.problems.push(Problem { message, place, help });
    }

    fn finish(mut self) -> Result<Loaded, ConfigError> {
        self.check_targets();
        self.check_window();
        if !self.problems.is_empty() {
            return Err(ConfigError { problems: self.problems });
        }
        let mut warnings = target::overlap_warnings(&self.config.targets);
        if self.config.keys.hash_secret.is_some() && self.config.keys.privacy != PrivacyMode::Hash {
            warnings.push("keys.hash_secret has no effect unless keys.privacy is \"hash\"".to_string());
        }
        Ok(Loaded { config: self.config, warnings, origins: self.origins })
    }

    fn check_targets(&mut self) {
        let targets = &self.config.targets;
        if let Some(place) = self.places.get("target").filter(|_| targets.is_empty()) {
            let problem = (place.clone(), "no target is left to watch".to_string());
            return self.refuse(problem.0, problem.1, Some("write -t 10.1.0.5".to_string()));
        }
        if targets.len() > TARGETS_MAX {
            // Comparing so many with each other would take long, too.
            let message = format!("{} targets are too many", targets.len());
            let help = format!(
                "allowed: 1 to {TARGETS_MAX}; servers of one network can be one target, such as \"10.1.0.0/16\""
            );
            return self.refuse(self.place_of_target(TARGETS_MAX), message, Some(help));
        }
        let twice = (1..targets.len())
            .find(|&index| targets[..index].iter().any(|earlier| earlier.name == targets[index].name));
        let Some(index) = twice else { return };
        let message = format!("two targets are named {:?}", targets[index].name);
        self.refuse(self.place_of_target(index), message, Some("give each target its own name".to_string()));
    }

    fn place_of_target(&self, index: usize) -> Place {
        let spot = self.target_spots.get(index).cloned().map(Place::File);
        let place = spot.or_else(|| self.places.get("target").cloned());
        place.unwrap_or_else(|| Place::Flag("--target".to_string()))
    }

    fn check_window(&mut self) {
        let (Interval::Every(interval), Some(window)) =
            (self.config.report.interval, self.config.report.over.window())
        else {
            return;
        };
        if window >= interval && window.as_nanos() % interval.as_nanos() == 0 {
            return;
        }
        let message = format!(
            "over = {:?} is not a multiple of the interval of {}",
            self.config.report.over.name(),
            units::show_duration(interval)
        );
        let place = self.places.get("report.over").or_else(|| self.places.get("report.interval")).cloned();
        if let Some(place) = place {
            self.refuse(place, message, Some("choose an interval that divides the window".to_string()));
        }
    }
}

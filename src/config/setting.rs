//! Every setting in one table: its key in the file, its flag, its environment variable, how it is read and shown.
//!
//! To add a setting: a field in its section of [`Config`] with its default, an entry here, a line in
//! `config/memtap.toml`, and, where it is a common option, a flag in `cli`. Tests hold the four together.

use super::target::{self, TargetConfig};
use super::{
    ColorChoice, Config, ControlSocket, Interfaces, Interval, LoadLadder, LogFormat, LogLevel, OutMode, Over,
    Secret, Snaplen, units,
};
use crate::report::{ClientView, Metric, OutputFormat, PrivacyMode, escape_name, nearest};
use crate::sandbox::SandboxMode;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// A ring consists of blocks of this size.
pub(super) const RING_BLOCK_BYTES: u64 = 1 << 20;
/// Fewer blocks than this, and the kernel waits for us while we read one.
const RING_BYTES: RangeInclusive<u64> = 4 << 20..=16 << 30;
/// More rings than a machine has cores only cost memory; no machine of today has more.
const WORKERS: RangeInclusive<i64> = 1..=512;
/// Shorter intervals hold too little to rank; longer ones than a day no longer line up.
const INTERVAL: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(86_400);
/// Rows of a ranking: more than any budget holds would be a slip.
const TOP: RangeInclusive<i64> = 0..=1_000_000_000;
/// Room for every header before the payload, and for the head of a response; at most the largest frame.
const SNAPLEN: RangeInclusive<i64> = 160..=262_144;
/// IFNAMSIZ without its NUL.
const INTERFACE_NAME_BYTES_MAX: usize = 15;
/// sun_path of a Unix socket's address, with its NUL.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// A short secret could be guessed, and with it the keys.
const SECRET_CHARACTERS_MIN: usize = 16;

/// One setting.
pub struct Setting {
    /// Its key in the file, with its section: `report.top`.
    pub key: &'static str,
    /// Its long flag without the dashes, where it has one.
    pub flag: Option<&'static str>,
    /// Its environment variable, where it has one.
    pub environment: Option<&'static str>,
    /// What the file may hold.
    pub(super) takes: Takes,
    /// Takes a value over into the configuration.
    pub(super) apply: fn(&mut Config, &Value) -> Result<(), Refusal>,
    /// The value in TOML; `None` where it is not set or not to be shown.
    pub(super) show: fn(&Config) -> Option<String>,
}

impl Setting {
    /// The default, as help shows it; `None` where nothing is set by default.
    pub fn default_text(&self) -> Option<String> {
        let default = Config::default();
        let text = match self.key {
            "target" => Some(default.targets[0].address()),
            "target.budget" => Some((target::BUDGET_BYTES_DEFAULT / 1_000_000).to_string()),
            "capture.ring" => Some(super::RING_MB_DEFAULT.to_string()),
            _ => (self.show)(&default),
        };
        text.map(|text| text.trim_matches(['"', '[', ']']).to_string()).filter(|text| !text.is_empty())
    }
}

/// What the file may hold for a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    Text,
    Number,
    TextOrNumber,
    Switch,
    List,
    /// An array of tables, read by its own code.
    Tables,
}

/// A value as it was written. Environment and flags hold texts only; lists of them are separated by commas.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Text(String),
    Number(i64),
    Switch(bool),
    List(Vec<String>),
}

impl Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Text(text) => write!(f, "{text:?}"),
            Value::Number(number) => number.fmt(f),
            Value::Switch(switch) => switch.fmt(f),
            Value::List(list) => write!(f, "{list:?}"),
        }
    }
}

impl Value {
    fn text(&self) -> String {
        match self {
            Value::Text(text) => text.clone(),
            Value::List(list) => list.join(","),
            other => other.to_string(),
        }
    }

    fn list(&self) -> Vec<String> {
        match self {
            Value::List(list) => list.clone(),
            other => other.text().split(',').map(|item| item.trim().to_string()).collect(),
        }
    }

    fn number(&self, range: RangeInclusive<i64>) -> Result<i64, Refusal> {
        let allowed = format!("allowed: {} to {}", range.start(), range.end());
        let number = match self {
            Value::Number(number) => Some(*number),
            other => other.text().parse().ok(),
        };
        let Some(number) = number else { return refuse(self, "is not a whole number", allowed) };
        if range.contains(&number) { Ok(number) } else { refuse(self, "is out of range", allowed) }
    }

    fn switch(&self) -> Result<bool, Refusal> {
        match self.text().as_str() {
            "true" | "1" | "yes" | "on" => Ok(true),
            "false" | "0" | "no" | "off" => Ok(false),
            _ => refuse(self, "is neither true nor false", "allowed: true, false"),
        }
    }

    fn choice<T>(&self, names: &[&'static str], from_name: fn(&str) -> Option<T>) -> Result<T, Refusal> {
        let text = self.text();
        from_name(&text).map_or_else(
            || {
                let meant = nearest(&text, names)
                    .map_or_else(String::new, |name| format!("; did you mean {name:?}?"));
                refuse(self, "is not one of the choices", format!("allowed: {}{meant}", names.join(", ")))
            },
            Ok,
        )
    }

    /// A size; the flags in megabytes hold the number alone.
    fn bytes(&self) -> Result<u64, Refusal> {
        let text = self.text();
        let text = if text.bytes().all(|byte| byte.is_ascii_digit()) { format!("{text}MB") } else { text };
        units::parse_bytes(&text)
            .map_or_else(|| refuse(self, "is not a size", format!("write {}", units::BYTES_SYNTAX)), Ok)
    }
}

/// Why a value is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The value, where it is what is wrong.
    pub value: Option<String>,
    /// What is wrong.
    pub message: String,
    /// What is allowed.
    pub help: Option<String>,
}

impl From<String> for Refusal {
    fn from(message: String) -> Refusal {
        Refusal { value: None, message, help: None }
    }
}

fn refuse<T>(value: &Value, message: &str, help: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { value: Some(value.to_string()), message: message.to_string(), help: Some(help.into()) })
}

/// The setting of that key.
pub fn setting(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

/// Every setting, in the order of the file. `target` stands before `target.budget`, which changes every target.
pub const SETTINGS: &[Setting] = &[
    Setting {
        key: "capture.interfaces",
        flag: Some("interface"),
        environment: Some("MEMTAP_INTERFACE"),
        takes: Takes::List,
        apply: |config, value| set(&mut config.capture.interfaces, interfaces(value)),
        show: |config| Some(quoted_list(config.capture.interfaces.names())),
    },
    Setting {
        key: "capture.ring",
        flag: Some("ring-mb"),
        environment: Some("MEMTAP_RING_MB"),
        takes: Takes::Text,
        apply: |config, value| set(&mut config.capture.ring_bytes, ring_bytes(value)),
        show: |config| Some(quoted(units::show_bytes(config.capture.ring_bytes))),
    },
    Setting {
        key: "capture.workers",
        flag: Some("workers"),
        environment: Some("MEMTAP_WORKERS"),
        takes: Takes::Number,
        apply: |config, value| set(&mut config.capture.workers, count(value, WORKERS)),
        show: |config| Some(config.capture.workers.to_string()),
    },
    Setting {
        key: "capture.promiscuous",
        flag: Some("promisc"),
        environment: Some("MEMTAP_PROMISC"),
        takes: Takes::Switch,
        apply: |config, value| set(&mut config.capture.promiscuous, value.switch()),
        show: |config| Some(config.capture.promiscuous.to_string()),
    },
    Setting {
        key: "capture.response_snaplen",
        flag: Some("response-snaplen"),
        environment: Some("MEMTAP_RESPONSE_SNAPLEN"),
        takes: Takes::TextOrNumber,
        apply: |config, value| set(&mut config.capture.response_snaplen, snaplen(value)),
        show: |config| {
            Some(match config.capture.response_snaplen {
                Snaplen::Full => quoted("full"),
                Snaplen::Bytes(bytes) => bytes.to_string(),
            })
        },
    },
    Setting {
        key: "capture.load_ladder",
        flag: Some("load-ladder"),
        environment: Some("MEMTAP_LOAD_LADDER"),
        takes: Takes::Text,
        apply: |config, value| {
            set(&mut config.capture.load_ladder, value.choice(LoadLadder::NAMES, LoadLadder::from_name))
        },
        show: |config| Some(quoted(config.capture.load_ladder.name())),
    },
    Setting {
        key: "capture.netns",
        flag: Some("netns"),
        environment: Some("MEMTAP_NETNS"),
        takes: Takes::Text,
        apply: |config, value| set(&mut config.capture.netns, netns(value)),
        show: |config| Some(quoted(config.capture.netns.as_deref().unwrap_or_default())),
    },
    Setting {
        key: "capture.user",
        flag: None,
        environment: Some("MEMTAP_USER"),
        takes: Takes::Text,
        apply: |config, value| set(&mut config.capture.user, Ok(optional(value))),
        show: |config| Some(quoted(config.capture.user.as_deref().unwrap_or_default())),
    },
    Setting {
        key: "capture.sandbox",
        flag: Some("sandbox"),
        environment: Some("MEMTAP_SANDBOX"),
        takes: Takes::Text,
        apply: |config, value| {
            set(&mut config.capture.sandbox, value.choice(SandboxMode::NAMES, SandboxMode::from_name))
        },
        show: |config| Some(quoted(config.capture.sandbox.name())),
    },
    Setting {
        key: "target",
        flag: Some("target"),
        environment: Some("MEMTAP_TARGET"),
        takes: Takes::Tables,
        apply: |config, value| set(&mut config.targets, targets(value)),
        show: |_| None,
    },
    Setting {
        key: "target.budget",
        flag: Some("budget-mb"),
        environment: Some("MEMTAP_BUDGET_MB"),
        takes: Takes::Tables,
        apply: |config, value| {
            let bytes = target::check_budget(value.bytes()?)?;
            config.targets.iter_mut().for_each(|target| target.budget_bytes = bytes);
            Ok(())
        },
        show: |_| None,
    },
    Setting {
        key: "report.interval",
        flag: Some("interval"),
        environment: Some("MEMTAP_INTERVAL"),
        takes: Takes::Text,
        apply: |config, value| set(&mut config.report.interval, interval(value)),
        show: |config| {
            Some(match config.report.interval {
                Interval::All => quoted("all"),
                Interval::Every(length) => quoted(units::show_duration(length)),
            })
        },
    },
    Setting {
        key: "report.intervals",
        flag: Some("intervals"),
        environment: Some("MEMTAP_INTERVALS"),
        takes: Takes::Number,
        apply: |config, value| set(&mut config.report.intervals, value.number(TOP).map(i64::unsigned_abs)),
        show: |config| Some(config.report.intervals.to_string()),
    },
    Setting {
        key: "report.over",
        flag: Some("over"),
        environment: Some("MEMTAP_OVER"),
        takes: Takes::Text,
        apply: |config, value| set(&mut config.report.over, value.choice(Over::NAMES, Over::from_name)),
        show: |config| Some(quoted(config.report.over.name())),
    },
    Setting {
        key: "report.top",
        flag: Some("top"),
        environment: Some("MEMTAP_TOP"),
        takes: Takes::Number,
        apply: |config, value| set(&mut config.report.top, count(value, TOP)),
        show: |config| Some(config.report.top.to_string()),
    },
    Setting {
        key: "report.by",
        flag: Some("by"),
        environment: Some("MEMTAP_BY"),
        takes: Takes::Text,
        apply: |config, value| set(&mut config.report.by, value.choice(Metric::NAMES, Metric::from_name)),
        show: |config| Some(quoted(config.report.by.name())),
    },
    Setting {
        key: "report.client",
        flag: Some("client"),
        environment: Some("MEMTAP_CLIENT"),
        takes: Takes::Text,
        apply: |config, value| {
            set(&mut config.report.client, value.choice(ClientView::NAMES, ClientView::from_name))
        },
        show: |config| Some(quoted(config.report.client.name())),
    },
    Setting {
        key: "report.clients_per_key",
        flag: Some("clients-per-key"),
        environment: Some("MEMTAP_CLIENTS_PER_KEY"),
        takes: Takes::Number,
        apply: |config, value| set(&mut config.report.clients_per_key, count(value, TOP)),
        show: |config| Some(config.report.clients_per_key.to_string()),
    },
    Setting {
        key: "report.filter",
        flag: Some("filter"),
        environment: Some("MEMTAP_FILTER"),
        takes: Takes::Text,
        apply: |config, value| {
            let parse = |text: String| text.parse().map_err(|error| Refusal::from(format!("{error}")));
            set(&mut config.report.filter, optional(value).map(parse).transpose())
        },
        show: |config| {
            Some(quoted(config.report.filter.as_ref().map(ToString::to_string).unwrap_or_default()))
        },
    },
    Setting {
        key: "report.output",
        flag: Some("output"),
        environment: Some("MEMTAP_OUTPUT"),
        takes: Takes::Text,
        apply: |config, value| {
            set(&mut config.report.output, value.choice(OutputFormat::NAMES, OutputFormat::from_name))
        },
        show: |config| Some(quoted(config.report.output.name())),
    },
    Setting {
        key: "report.out",
        flag: Some("out"),
        environment: Some("MEMTAP_OUT"),
        takes: Takes::Text,
        apply: |config, value| set(&mut config.report.out, Ok(optional(value).map(PathBuf::from))),
        show: |config| {
            let path = config.report.out.as_ref().map(|path| path.to_string_lossy().into_owned());
            Some(quoted(path.unwrap_or_default()))
        },
    },
    Setting {
        key: "report.out_mode",
        flag: Some("out-mode"),
        environment: Some("MEMTAP_OUT_MODE"),
        takes: Takes::Text,
        apply: |config, value| {
            set(&mut config.report.out_mode, value.choice(OutMode::NAMES, OutMode::from_name))
        },
        show: |config| Some(quoted(config.report.out_mode.name())),
    },
    Setting {
        key: "report.color",
        flag: Some("color"),
        environment: Some("MEMTAP_COLOR"),
        takes: Takes::Text,
        apply: |config, value| {
            set(&mut config.report.color, value.choice(ColorChoice::NAMES, ColorChoice::from_name))
        },
        show: |config| Some(quoted(config.report.color.name())),
    },
    Setting {
        key: "keys.privacy",
        flag: Some("privacy"),
        environment: Some("MEMTAP_PRIVACY"),
        takes: Takes::Text,
        apply: |config, value| {
            set(&mut config.keys.privacy, value.choice(PrivacyMode::NAMES, PrivacyMode::from_name))
        },
        show: |config| Some(quoted(config.keys.privacy.name())),
    },
    Setting {
        key: "keys.hash_secret",
        flag: None,
        environment: Some("MEMTAP_HASH_SECRET"),
        takes: Takes::Text,
        apply: |config, value| set(&mut config.keys.hash_secret, secret(value)),
        show: |config| config.keys.hash_secret.is_none().then(|| quoted("")),
    },
    Setting {
        key: "keys.group",
        flag: None,
        environment: None,
        takes: Takes::Tables,
        apply: |_, _| Ok(()),
        show: |_| None,
    },
    Setting {
        key: "control.socket",
        flag: None,
        environment: Some("MEMTAP_CONTROL_SOCKET"),
        takes: Takes::Text,
        apply: |config, value| set(&mut config.control.socket, control_socket(value)),
        show: |config| {
            Some(quoted(match &config.control.socket {
                ControlSocket::Auto => "auto".into(),
                ControlSocket::Off => "off".into(),
                ControlSocket::Path(path) => path.to_string_lossy(),
            }))
        },
    },
    Setting {
        key: "log.format",
        flag: Some("log-format"),
        environment: Some("MEMTAP_LOG_FORMAT"),
        takes: Takes::Text,
        apply: |config, value| {
            set(&mut config.log.format, value.choice(LogFormat::NAMES, LogFormat::from_name))
        },
        show: |config| Some(quoted(config.log.format.name())),
    },
    Setting {
        key: "log.level",
        flag: None,
        environment: Some("MEMTAP_LOG_LEVEL"),
        takes: Takes::Text,
        apply: |config, value| set(&mut config.log.level, value.choice(LogLevel::NAMES, LogLevel::from_name)),
        show: |config| Some(quoted(config.log.level.name())),
    },
];

fn set<T>(place: &mut T, value: Result<T, Refusal>) -> Result<(), Refusal> {
    *place = value?;
    Ok(())
}

fn count(value: &Value, range: RangeInclusive<i64>) -> Result<usize, Refusal> {
    let number = value.number(range)?;
    usize::try_from(number).or_else(|_| refuse(value, "is out of range", "allowed: a smaller number"))
}

/// An empty text stands for "not set", so that the sample can show the key.
fn optional(value: &Value) -> Option<String> {
    Some(value.text()).filter(|text| !text.is_empty())
}

fn control_socket(value: &Value) -> Result<ControlSocket, Refusal> {
    match value.text().as_str() {
        "auto" => Ok(ControlSocket::Auto),
        "off" => Ok(ControlSocket::Off),
        path if path.starts_with('/') && path.len() <= SOCKET_PATH_BYTES_MAX => {
            Ok(ControlSocket::Path(PathBuf::from(path)))
        }
        _ => refuse(
            value,
            "is no place for a socket",
            format!("allowed: auto, off, or an absolute path of at most {SOCKET_PATH_BYTES_MAX} bytes"),
        ),
    }
}

fn secret(value: &Value) -> Result<Option<Secret>, Refusal> {
    match optional(value) {
        Some(text) if text.chars().count() < SECRET_CHARACTERS_MIN => Err(Refusal {
            value: None, // and never shown
            message: "the secret is too short".to_string(),
            help: Some(format!("allowed: {SECRET_CHARACTERS_MIN} characters or more")),
        }),
        other => Ok(other.map(Secret)),
    }
}

fn interfaces(value: &Value) -> Result<Interfaces, Refusal> {
    const ALLOWED: &str = "allowed: names of interfaces, or \"auto\" or \"any\" alone";
    let names = value.list();
    match names.as_slice() {
        [name] if name == "auto" => return Ok(Interfaces::Auto),
        [name] if name == "any" => return Ok(Interfaces::Any),
        [] => return refuse(value, "names no interface", ALLOWED),
        _ => {}
    }
    let is_name = |name: &String| {
        let fits = (1..=INTERFACE_NAME_BYTES_MAX).contains(&name.len());
        fits && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/')
            && name != "auto"
            && name != "any"
    };
    match names.iter().find(|name| !is_name(name)) {
        Some(wrong) => refuse(&Value::Text(wrong.clone()), "is no name of an interface here", ALLOWED),
        None => Ok(Interfaces::Named(names)),
    }
}

/// Rounded up to whole blocks.
fn ring_bytes(value: &Value) -> Result<u64, Refusal> {
    let bytes = value.bytes()?;
    if RING_BYTES.contains(&bytes) {
        return Ok(bytes.next_multiple_of(RING_BLOCK_BYTES));
    }
    let [min, max] = [*RING_BYTES.start(), *RING_BYTES.end()].map(units::show_bytes);
    refuse(value, "is out of range", format!("allowed: {min} to {max}"))
}

fn snaplen(value: &Value) -> Result<Snaplen, Refusal> {
    if value.text() == "full" {
        return Ok(Snaplen::Full);
    }
    let bytes = value.number(SNAPLEN).map_err(|refusal| Refusal {
        help: Some(format!("allowed: \"full\", or {} to {} bytes", SNAPLEN.start(), SNAPLEN.end())),
        ..refusal
    })?;
    Ok(Snaplen::Bytes(u32::try_from(bytes).unwrap_or(u32::MAX)))
}

fn interval(value: &Value) -> Result<Interval, Refusal> {
    let text = value.text();
    if text == "all" {
        return Ok(Interval::All);
    }
    let [min, max] = [*INTERVAL.start(), *INTERVAL.end()].map(units::show_duration);
    let allowed = format!("allowed: {min} to {max}, or \"all\"");
    match units::parse_duration(&text) {
        None => refuse(value, "is not a duration", format!("write {}, or \"all\"", units::DURATION_SYNTAX)),
        Some(length) if INTERVAL.contains(&length) => Ok(Interval::Every(length)),
        Some(_) => refuse(value, "is out of range", allowed),
    }
}

/// The targets of flags and environment.
fn targets(value: &Value) -> Result<Vec<TargetConfig>, Refusal> {
    let parse = |text: String| {
        TargetConfig::parse(&text).map_err(|message| Refusal {
            value: None,
            message,
            help: Some("write [NAME=]ADDR[:PORT]; ADDR is an address, a CIDR, or *".to_string()),
        })
    };
    value.list().into_iter().map(parse).collect()
}

/// A TOML string.
pub(super) fn quoted(text: impl AsRef<str>) -> String {
    toml::Value::String(text.as_ref().to_string()).to_string()
}

pub(super) fn quoted_list(items: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let items: Vec<String> = items.into_iter().map(quoted).collect();
    format!("[{}]", items.join(", "))
}

/// A namespace of /run/netns, or the number of a process.
fn netns(value: &Value) -> Result<Option<String>, Refusal> {
    const ALLOWED: &str = "allowed: a name of `ip netns list`, or the number of a process";
    let Some(name) = optional(value) else { return Ok(None) };
    let is_file = name.len() <= 255 && name != "." && name != ".." && !name.contains(['/', '\0']);
    if is_file { Ok(Some(name)) } else { refuse(value, "is not a network namespace", ALLOWED) }
}

/// A name that the operator wrote, safe to print.
pub(super) fn printable(name: &str) -> String {
    escape_name(name)
}

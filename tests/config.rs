//! The configuration as operators meet it: the sample, precedence, error messages, help.

use clap::Command;
use memtap::cli::{self, Action, Cli, ConfigAction, Exit, Options};
use memtap::config::{
    Config, FlagValue, Interfaces, Interval, Loaded, Origin, Over, SAMPLE, SETTINGS, Snaplen, TARGETS_MAX,
};
use memtap::report::{ClientView, Metric, OutputFormat, PrivacyMode};
use std::time::Duration;

fn no_environment(_: &str) -> Option<String> {
    None
}

fn load(text: &str) -> Result<Loaded, String> {
    Config::from_layers(Some(("memtap.toml", text)), &no_environment, &[]).map_err(|error| error.to_string())
}

fn options(arguments: &[&str]) -> Options {
    let all = ["memtap", "run"].iter().chain(arguments);
    match Cli::parse_from_arguments(all).unwrap_or_else(|error| panic!("{error}")).action {
        Action::Run(options) => options,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_sample_equals_the_defaults() {
    let loaded = load(SAMPLE).unwrap();
    assert_eq!(loaded.config, Config::default());
    assert!(loaded.warnings.is_empty());
}

#[test]
fn the_sample_has_every_key() {
    // Keys of tables that have no default stand in comments.
    let text: String = SAMPLE.lines().map(|line| line.trim_start_matches("# ").to_string() + "\n").collect();
    for setting in SETTINGS {
        match setting.key.split_once('.') {
            _ if setting.key == "target.budget" => {}
            _ if setting.key == "keys.group" => assert!(text.contains("\n[[keys.group]]\n")),
            None => assert!(text.contains("\n[[target]]\n")),
            Some((section, key)) => {
                let body =
                    text.split(&format!("\n[{section}]\n")).nth(1).unwrap_or_else(|| panic!("[{section}]"));
                let body = body.split("\n[").next().unwrap();
                assert!(body.contains(&format!("\n{key} = ")) || body.starts_with(key), "{}", setting.key);
                // And a comment says what for, unless the key is plain.
                assert!(SAMPLE.contains(&format!("\n{key} = ")), "{} is only a comment", setting.key);
            }
        }
    }
    for key in ["name", "address", "port", "protocols", "budget", "match"] {
        assert!(text.contains(&format!("\n{key} = ")), "{key}");
    }
}

#[test]
fn the_example_of_the_manual_is_read_as_it_says() {
    let text = r#"
[capture]
interfaces = ["eth0", "lo"]
ring = "64MB"
workers = 2
promiscuous = true
response_snaplen = 256
user = "nobody"

[[target]]
name = "cache-a"
address = "10.1.0.5"
port = 11212
protocols = ["tcp"]
budget = "100MB"

[[target]]
address = "10.2.0.0/16"

[report]
interval = "all"
top = 0
by = "bytes"
client = "ip"
output = "jsonl"

[keys]
privacy = "hash"
[[keys.group]]
name = "profile"
match = '^user:\d+:profile$'
"#;
    let config = load(text).unwrap().config;
    assert_eq!(config.capture.interfaces, Interfaces::Named(vec!["eth0".to_string(), "lo".to_string()]));
    assert_eq!(config.capture.ring_bytes % (1 << 20), 0);
    assert!(config.capture.ring_bytes >= 64_000_000);
    assert_eq!((config.capture.workers, config.capture.promiscuous), (2, true));
    assert_eq!(config.capture.response_snaplen, Snaplen::Bytes(256));
    assert_eq!(config.capture.user.as_deref(), Some("nobody"));
    assert_eq!(config.targets[0].address(), "10.1.0.5:11212");
    assert_eq!((config.targets[0].tcp, config.targets[0].udp), (true, false));
    assert_eq!(config.targets[0].budget_bytes, 100_000_000);
    assert_eq!(config.targets[1].name, "10.2.0.0/16:11211");
    assert!(config.targets[1].is_fleet() && !config.targets[0].is_fleet());
    assert_eq!((config.report.interval, config.report.top), (Interval::All, 0));
    assert_eq!((config.report.by, config.report.client), (Metric::Bytes, ClientView::Ip));
    assert_eq!((config.report.output, config.keys.privacy), (OutputFormat::Jsonl, PrivacyMode::Hash));
    assert_eq!(config.keys.groups[0].name, "profile");
    assert!(config.keys.groups[0].pattern.is_match(b"user:17:profile"));
}

#[test]
fn a_flag_beats_the_environment_beats_the_file_beats_the_default() {
    let environment = |name: &str| match name {
        "MEMTAP_TOP" => Some("7".to_string()),
        "MEMTAP_BY" => Some("misses".to_string()),
        "MEMTAP_TARGET" => Some("a=10.0.0.1,b=10.0.0.2:11212".to_string()),
        "MEMTAP_BUDGET_MB" => Some("50".to_string()),
        "MEMTAP_WORKERS" => Some(String::new()), // as good as not set
        _ => None,
    };
    let file = "[report]\ntop = 5\nby = \"bytes\"\ninterval = \"2m\"\n[[target]]\naddress = \"*\"\nbudget = \"90MB\"\n";
    let options = options(&["-k", "3", "--ring-mb", "8", "-vv"]);
    let loaded = Config::from_layers(Some(("f.toml", file)), &environment, &options.flags()).unwrap();
    let config = &loaded.config;
    assert_eq!((config.report.top, config.report.by), (3, Metric::Misses));
    assert_eq!(config.report.interval, Interval::Every(Duration::from_secs(120)));
    assert_eq!(config.report.over, Over::Interval);
    assert_eq!(config.capture.ring_bytes, 8 << 20);
    assert_eq!(config.log.level.name(), "trace");
    let targets: Vec<_> =
        config.targets.iter().map(|target| (target.name.as_str(), target.budget_bytes)).collect();
    assert_eq!(targets, [("a", 50_000_000), ("b", 50_000_000)]);
    assert_eq!(*loaded.origin("report.top"), Origin::Flag("--top".to_string()));
    assert_eq!(*loaded.origin("report.by"), Origin::Environment("MEMTAP_BY".to_string()));
    assert_eq!(*loaded.origin("report.interval"), Origin::File { file: "f.toml".to_string(), line: 4 });
    assert_eq!(*loaded.origin("capture.workers"), Origin::Default);
    insta::assert_snapshot!("show-origin", loaded.show(true));
}

#[test]
fn what_is_shown_can_be_read_again() {
    let flags =
        options(&["-t", "a=10.0.0.1", "b=[fd00::/8]:11212", "--filter", "key ~ 'a b'", "--over", "1m"])
            .flags();
    let file = "[[keys.group]]\nname = \"g\"\nmatch = '\\d \"x\"'\n";
    let loaded = Config::from_layers(Some(("f.toml", file)), &no_environment, &flags).unwrap();
    for shown in [loaded.show(false), loaded.show(true)] {
        assert_eq!(load(&shown).unwrap().config, loaded.config, "{shown}");
    }
}

#[test]
fn secrets_are_never_shown() {
    let secret = "a very long secret";
    let text = format!("[keys]\nprivacy = \"hash\"\nhash_secret = \"{secret}\"\n");
    let loaded = load(&text).unwrap();
    assert!(!loaded.show(true).contains(secret));
    assert!(!format!("{loaded:?}").contains(secret));
    assert!(!format!("{:?}", loaded.config.report_options()).contains(secret));
    let short = load("[keys]\nhash_secret = \"hunter2\"\n").unwrap_err();
    assert!(!short.contains("hunter2") && short.contains("hash_secret"), "{short}");
}

/// Every message that a wrong file can cause, as the operator reads it.
#[test]
fn messages_of_wrong_files() {
    let cases = [
        "[report]\nintervall = \"10s\"\n",
        "[reprot]\ntop = 3\n",
        "[capture]\ntop = 3\n",
        "verbose = true\n",
        "[report]\ntop = -3\n",
        "[report]\ntop = \"20\"\n",
        "[report]\ninterval = \"10\"\n",
        "[report]\ninterval = \"1ms\"\n",
        "[report]\nby = \"request\"\n",
        "[report]\nfilter = \"kye ~ x\"\n",
        "[report]\ninterval = \"45s\"\nover = \"1m\"\n",
        "[capture]\nring = \"64M\"\n",
        "[capture]\nring = \"1MB\"\n",
        "[capture]\nworkers = 0\n",
        "[capture]\ninterfaces = [\"auto\", \"eth0\"]\n",
        "[capture]\ninterfaces = \"eth0\"\n",
        "[capture]\nresponse_snaplen = 10\n",
        "[capture]\npromiscuous = \"yes\"\n",
        "capture = 3\n",
        "[[target]]\nname = \"a\"\n",
        "[[target]]\naddress = \"10.1.2.3/8\"\n",
        "[[target]]\naddress = \"10.1.0.5:11211\"\n",
        "[[target]]\naddress = \"localhost\"\n",
        "[[target]]\naddress = \"*\"\nport = 70000\n",
        "[[target]]\naddress = \"*\"\nprotocols = [\"tpc\"]\n",
        "[[target]]\naddress = \"*\"\nbudget = \"1MB\"\n",
        "[[target]]\naddress = \"*\"\nadress = \"*\"\n",
        "[[target]]\naddress = \"10.0.0.1\"\n\n[[target]]\naddress = \"10.0.0.1\"\n",
        "[target]\naddress = \"*\"\n",
        "[keys]\nprivacy = \"none\"\n",
        "[[keys.group]]\nname = \"a\"\nmatch = \"(\"\n",
        "[[keys.group]]\nname = \"a\"\n",
        "[[keys.group]]\nname = \"a\"\nmatch = \"a\"\n[[keys.group]]\nname = \"a\"\nmatch = \"b\"\n",
        "[report]\ntop = \n",
        "[report]\ntop = 1\ntop = 2\n",
        "[report]\n\ttop = [1]\nby = 3\n[log]\nformat = \"xml\"\n",
    ];
    let mut text = String::new();
    for case in cases {
        let error = load(case).expect_err(case);
        text.push_str(&format!("{error}\n\n"));
    }
    insta::assert_snapshot!("messages", text);
}

#[test]
fn messages_of_wrong_flags_and_variables() {
    let flag = |arguments: &[&str]| {
        Config::from_layers(None, &no_environment, &options(arguments).flags()).unwrap_err()
    };
    let variable = |name: &str, value: &str| {
        let environment = |asked: &str| (asked == name).then(|| value.to_string());
        Config::from_layers(None, &environment, &[]).unwrap_err()
    };
    let errors = [
        flag(&["-k", "many"]),
        flag(&["-t", "here"]),
        flag(&["-t", "a=10.0.0.1", "-t", "a=10.0.0.2"]),
        flag(&["--budget-mb", "1"]),
        flag(&["-w", "10"]),
        flag(&["--filter", "key ~ ("]),
        flag(&["--ring-mb", "1", "--workers", "0"]),
        variable("MEMTAP_TOP", "many"),
        variable("MEMTAP_PROMISC", "perhaps"),
    ];
    let codes: Vec<Exit> = errors.iter().map(Exit::from).collect();
    assert_eq!(codes[..7], [Exit::Usage; 7]);
    assert_eq!(codes[7..], [Exit::BadConfig; 2]);
    let text: Vec<String> = errors.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!("messages-flags", text.join("\n\n"));
}

/// There was no limit, and above 65,536 targets a panic.
#[test]
fn the_number_of_targets_is_limited() {
    let many = |count: usize| -> String {
        (0..count)
            .map(|number| format!("[[target]]\naddress = \"10.0.{}.{}\"\n", number / 200, number % 200))
            .collect()
    };
    let error = load(&many(TARGETS_MAX + 2)).unwrap_err();
    assert!(error.starts_with("memtap.toml:20001:1: 10002 targets are too many"), "{error}");
    assert!(error.contains("20001 | [[target]]"), "{error}");
    assert!(error.contains("  = allowed: 1 to 10000; "), "{error}");

    let mut arguments = vec!["-t".to_string(); 2 * TARGETS_MAX + 2];
    for (number, argument) in arguments.iter_mut().skip(1).step_by(2).enumerate() {
        *argument = format!("10.0.{}.{}", number / 200, number % 200);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let error = Config::from_layers(None, &no_environment, &options(&arguments).flags()).unwrap_err();
    assert_eq!(Exit::from(&error), Exit::Usage);
    assert!(error.to_string().starts_with("--target: 10001 targets are too many"), "{error}");
}

#[test]
fn a_missing_file_is_a_bad_configuration() {
    let missing = options(&["-c", "no/such/file.toml"]).load(&no_environment).unwrap_err();
    assert_eq!(Exit::from(&missing), Exit::BadConfig);
    assert!(missing.to_string().starts_with("no/such/file.toml: cannot read the configuration"), "{missing}");
    let named = |name: &str| (name == cli::CONFIG_VARIABLE).then(|| "no/other.toml".to_string());
    assert!(options(&[]).load(&named).unwrap_err().to_string().starts_with("no/other.toml"));
}

#[test]
fn overlapping_targets_are_allowed_and_told() {
    let loaded =
        load("[[target]]\naddress = \"*\"\n[[target]]\nname = \"a\"\naddress = \"10.0.0.1\"\n").unwrap();
    assert_eq!(
        loaded.warnings,
        [
            "targets \"*:11211\" and \"a\" overlap; what both match is counted for \"a\", the more specific of them"
        ]
    );
}

fn subcommand<'a>(command: &'a Command, name: &str) -> &'a Command {
    command.find_subcommand(name).unwrap_or_else(|| panic!("no subcommand {name}"))
}

/// The contract's options: each in the help of `run`, with a variable, and with a key that a file may hold.
#[test]
fn every_flag_has_help_a_variable_and_a_key() {
    let command = cli::command();
    let run = subcommand(&command, "run");
    let mut flags = Vec::new();
    for arg in run.get_arguments() {
        let Some(long) = arg.get_long().filter(|long| !matches!(*long, "help" | "version")) else { continue };
        flags.push(long);
        let help = arg.get_help().unwrap_or_else(|| panic!("--{long} has no help")).to_string();
        assert!(help.contains("[env: MEMTAP_"), "--{long}: {help}");
        assert!(long == "config" || help.contains("[key: "), "--{long}: {help}");
    }
    for (short, long) in [
        (Some('c'), "config"),
        (Some('i'), "interface"),
        (Some('t'), "target"),
        (Some('w'), "interval"),
        (Some('n'), "intervals"),
        (Some('k'), "top"),
        (None, "over"),
        (None, "by"),
        (None, "client"),
        (None, "clients-per-key"),
        (None, "filter"),
        (Some('o'), "output"),
        (None, "out"),
        (None, "privacy"),
        (None, "workers"),
        (None, "ring-mb"),
        (None, "response-snaplen"),
        (None, "promisc"),
        (None, "budget-mb"),
        (None, "log-format"),
        (Some('v'), "verbose"),
        (Some('q'), "quiet"),
        (None, "color"),
    ] {
        let arg = run
            .get_arguments()
            .find(|arg| arg.get_long() == Some(long))
            .unwrap_or_else(|| panic!("--{long}"));
        assert_eq!(arg.get_short(), short, "--{long}");
    }
    // No setting names a flag that is not there, and no flag is without its setting.
    for setting in SETTINGS {
        assert!(setting.flag.is_none_or(|flag| flags.contains(&flag)), "{}", setting.key);
    }
    for flag in flags.into_iter().filter(|flag| !matches!(*flag, "config" | "verbose" | "quiet")) {
        assert!(SETTINGS.iter().any(|setting| setting.flag == Some(flag)), "--{flag}");
    }
}

#[test]
fn the_manual_has_every_setting() {
    let manual = include_str!("../docs/configuration.md");
    for setting in SETTINGS {
        let line = manual.lines().find(|line| line.starts_with(&format!("| `{}` |", setting.key)));
        let line = line.unwrap_or_else(|| panic!("{} is not in the manual", setting.key));
        assert!(setting.flag.is_none_or(|flag| line.contains(&format!("`--{flag}`"))), "{line}");
        assert!(setting.environment.is_none_or(|name| line.contains(&format!("`{name}`"))), "{line}");
    }
    assert!(manual.contains(cli::CONFIG_VARIABLE));
}

#[test]
fn every_flag_reaches_its_setting() {
    let given = options(&[
        "-i",
        "eth0",
        "-t",
        "*:1",
        "--budget-mb",
        "9",
        "--workers",
        "2",
        "--ring-mb",
        "9",
        "--response-snaplen",
        "200",
        "--promisc",
        "--load-ladder",
        "auto",
        "--netns",
        "cache",
        "--sandbox",
        "strict",
        "-w",
        "1s",
        "-n",
        "1",
        "-k",
        "1",
        "--over",
        "start",
        "--by",
        "bytes",
        "--client",
        "ip",
        "--clients-per-key",
        "1",
        "--filter",
        "key ~ a",
        "--privacy",
        "shape",
        "-o",
        "csv",
        "--out",
        "f",
        "--out-mode",
        "replace",
        "--color",
        "never",
        "--log-format",
        "json",
        "-q",
    ]);
    let flags: Vec<FlagValue> = given.flags();
    for setting in SETTINGS.iter().filter(|setting| setting.flag.is_some()) {
        let value =
            flags.iter().find(|flag| flag.key == setting.key).unwrap_or_else(|| panic!("{}", setting.key));
        assert_eq!(value.flag.trim_start_matches("--"), setting.flag.unwrap());
    }
    let loaded = Config::from_layers(None, &no_environment, &flags).unwrap();
    assert_eq!(loaded.config.log.level.name(), "warn");
    for flag in &flags {
        assert_eq!(*loaded.origin(flag.key), Origin::Flag(flag.flag.clone()));
    }
}

#[test]
fn help_of_run() {
    let command = cli::command().term_width(100);
    let mut run = subcommand(&command, "run").clone().bin_name("memtap run").term_width(100);
    insta::assert_snapshot!("help-run", run.render_help());
    let mut top = command.clone();
    insta::assert_snapshot!("help", top.render_help());
}

#[test]
fn subcommands() {
    let action = |arguments: &[&str]| Cli::parse_from_arguments(arguments).unwrap().action;
    assert!(matches!(action(&["memtap", "doctor", "-i", "lo"]), Action::Doctor(_)));
    let Action::Config(config) = action(&["memtap", "config", "check", "f.toml"]) else {
        panic!("not config")
    };
    assert!(matches!(config.action, ConfigAction::Check { .. }));
    let Action::Config(config) = action(&["memtap", "config", "show", "--origin", "-k", "1"]) else {
        panic!("not config")
    };
    assert!(matches!(config.action, ConfigAction::Show(show) if show.origin && show.options.top.is_some()));
    let refused = |arguments: &[&str]| Cli::parse_from_arguments(arguments).unwrap_err();
    assert_eq!(refused(&["memtap", "run", "--nonsense"]).exit_code(), 2);
    assert_eq!(refused(&["memtap", "replay"]).exit_code(), 2);
    assert_eq!(refused(&["memtap", "run", "--by", "nonsense"]).exit_code(), 2);
    assert_eq!(refused(&["memtap", "--version"]).exit_code(), 0);
}

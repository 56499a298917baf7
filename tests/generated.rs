//! What is made from the command line's definition, and what people wrote beside it: neither may drift from it.

mod support;

use clap::Command;
use memtap::cli;
use memtap::config::SETTINGS;
use memtap::report::Figure;
use std::fs;
use support::{memtap, succeed};

const CONFIGURATION: &str = include_str!("../docs/configuration.md");
const COMMANDS: &str = include_str!("../docs/commands.md");

fn stdout(arguments: &[&str]) -> String {
    String::from_utf8(succeed(memtap().args(arguments)).stdout).expect("text is UTF-8")
}

/// Every command that does something, by the words that call it.
fn commands() -> Vec<(Vec<String>, Command)> {
    fn collect(command: &Command, words: &[String], found: &mut Vec<(Vec<String>, Command)>) {
        found.push((words.to_vec(), command.clone()));
        for subcommand in command.get_subcommands().filter(|command| command.get_name() != "help") {
            let words = [words, &[subcommand.get_name().to_string()]].concat();
            collect(subcommand, &words, found);
        }
    }
    let mut command = cli::command();
    command.build();
    let mut found = Vec::new();
    collect(&command, &[], &mut found);
    found
}

fn words<'a>(words: &'a [String], first: &'a str) -> Vec<&'a str> {
    [first].into_iter().chain(words.iter().map(String::as_str)).collect()
}

/// As a reader of the page sees it.
fn shown(roff: &str) -> String {
    roff.replace("\\-", "-").replace("\\fB", "").replace("\\fI", "").replace("\\fR", "")
}

#[test]
fn every_flag_is_in_help_in_its_man_page_and_in_the_manual() {
    let mut flags = 0;
    for (path, command) in commands() {
        let help = if path.is_empty() {
            stdout(&["--help"])
        } else {
            stdout(&[words(&path[1..], &path[0]), vec!["--help"]].concat())
        };
        let page = shown(&stdout(&words(&path, "man")));
        for arg in command.get_arguments() {
            let Some(long) = arg.get_long() else { continue };
            let flag = format!("--{long}");
            assert!(help.contains(&flag), "{flag} is not in the help of {path:?}");
            assert!(page.contains(&flag), "{flag} is not in the man page of {path:?}");
            if !matches!(long, "help" | "version") {
                let quoted = format!("`{flag}");
                let short = arg.get_short().map(|short| format!("`-{short}`"));
                let documented = CONFIGURATION.contains(&quoted)
                    || COMMANDS.contains(&quoted)
                    || short.is_some_and(|short| CONFIGURATION.contains(&short));
                assert!(
                    documented,
                    "{flag} of {path:?} is neither in docs/configuration.md nor in docs/commands.md"
                );
                flags += 1;
            }
        }
        let heading = format!("memtap {}", path.join(" "));
        let is_leaf = command.get_subcommands().next().is_none();
        assert!(!is_leaf || COMMANDS.contains(&heading), "{heading} is not in docs/commands.md");
    }
    assert!(flags > 60, "only {flags} flags were looked at");
}

#[test]
fn the_manual_promises_no_flag_that_is_not_there() {
    let known: Vec<String> = commands()
        .iter()
        .flat_map(|(_, command)| {
            command.get_arguments().filter_map(|arg| arg.get_long().map(str::to_string)).collect::<Vec<_>>()
        })
        .collect();
    let readme = include_str!("../README.md");
    // Programs of others that these texts tell to call have flags of their own.
    let foreign = ["--dir", "--locked", "--release", "--path", "--test", "--bench", "--help", "--version"];
    let flag = regex::Regex::new(r"`(--[a-z][a-z-]+)").unwrap();
    for text in [CONFIGURATION, COMMANDS, readme] {
        for found in flag.captures_iter(text) {
            let flag = &found[1];
            assert!(foreign.contains(&flag) || known.iter().any(|long| flag[2..] == *long), "{flag}");
        }
    }
}

#[test]
fn every_variable_is_in_the_help_of_run_and_in_the_manual() {
    // Lines break between words, and so do the brackets.
    let help = stdout(&["run", "--help"]).split_whitespace().collect::<Vec<_>>().join(" ");
    for setting in SETTINGS {
        let Some(variable) = setting.environment else { continue };
        assert!(CONFIGURATION.contains(&format!("`{variable}`")), "{variable}");
        assert!(setting.flag.is_none() || help.contains(&format!("[env: {variable}]")), "{variable}");
    }
}

#[test]
fn every_figure_of_a_condition_is_in_the_manual() {
    for name in Figure::NAMES {
        assert!(COMMANDS.contains(&format!("`{name}`")), "{name} is not in docs/commands.md");
    }
}

#[test]
fn exit_codes_are_in_the_manual() {
    use cli::Exit;
    for exit in [
        Exit::Done,
        Exit::Failure,
        Exit::Usage,
        Exit::ConditionHeld,
        Exit::InterfaceGone,
        Exit::OutputFailed,
        Exit::NoPermission,
        Exit::BadConfig,
    ] {
        assert!(COMMANDS.contains(&format!("\n| {} | ", exit as u8)), "{exit:?}");
    }
}

#[test]
fn completions_know_commands_and_flags() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = stdout(&["completions", shell]);
        for word in ["replay", "merge", "doctor", "fail-if", "clients-per-key", "out-mode"] {
            assert!(script.contains(word), "{word} is not in the completions for {shell}");
        }
        // The generators for the other shells leave values out.
        let with_values = matches!(shell, "bash" | "zsh" | "fish");
        assert!(!with_values || script.contains("markdown"), "the completions for {shell} know no values");
    }
    assert_eq!(memtap().args(["completions", "tcsh"]).output().unwrap().status.code(), Some(2));
}

/// The script completes in a real bash what the definition offers.
#[test]
fn bash_completes() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("memtap.bash");
    fs::write(&script, stdout(&["completions", "bash"])).unwrap();
    let ask = format!(
        "source {}; COMP_WORDS=(memtap replay --fil); COMP_CWORD=2; _memtap memtap --fil replay; echo \"${{COMPREPLY[@]}}\"",
        script.display()
    );
    let output =
        std::process::Command::new("bash").args(["--norc", "-c", &ask]).output().expect("bash starts");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "--filter", "{output:?}");
}

#[test]
fn man_pages_are_written_as_files_and_rendered_without_complaint() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("man1");
    stdout(&["man", "--dir", directory.to_str().unwrap()]);
    let mut names: Vec<String> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    for expected in ["memtap.1", "memtap-run.1", "memtap-config-show.1", "memtap-report.1"] {
        assert!(names.contains(&expected.to_string()), "{names:?}");
    }
    let page = fs::read_to_string(directory.join("memtap-run.1")).unwrap();
    assert!(page.contains(".TH memtap-run 1"), "{page}");
    assert_eq!(page, stdout(&["man", "run"]));
    let unknown = memtap().args(["man", "fly"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("run"), "{unknown:?}");
}

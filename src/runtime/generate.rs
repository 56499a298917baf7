//! `memtap completions` and `memtap man`: made from the same definitions as the help.

use crate::cli::{self, Exit, ManArgs};
use crate::runtime::failure::Failure;
use crate::runtime::output::{Output, OutputEnd};
use clap::Command;
use std::io;
use std::path::Path;

/// Completions for a shell, to standard output.
pub fn print_completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut cli::command(), "memtap", &mut text);
    print(&text)
}

/// One manual page to standard output, or all of them into a directory.
pub fn print_man(arguments: &ManArgs) -> Result<(), Failure> {
    let pages = pages(cli::command());
    if let Some(directory) = &arguments.dir {
        return write_all(directory, &pages);
    }
    let wanted: Vec<&str> =
        std::iter::once("memtap").chain(arguments.command.iter().map(String::as_str)).collect();
    let wanted = wanted.join("-");
    let Some((_, command)) = pages.iter().find(|(name, _)| *name == wanted) else {
        let known: Vec<&str> = pages.iter().filter_map(|(name, _)| name.strip_prefix("memtap-")).collect();
        let known = known.join(", ").replace('-', " ");
        let asked = crate::report::escape_name(&arguments.command.join(" "));
        return Err(Failure::new(
            Exit::Usage,
            format!("there is no page of \"{asked}\"; there are pages of {known}"),
        ));
    };
    print(&render(command).map_err(failed)?)
}

/// The command and its subcommands, each with the name of its page.
fn pages(command: Command) -> Vec<(String, Command)> {
    let mut command = command.disable_help_subcommand(true);
    // Fills in what subcommands inherit: version, help and the names of their usage lines.
    command.build();
    let mut pages = Vec::new();
    collect(&command, "memtap", &mut pages);
    pages
}

fn collect(command: &Command, name: &str, pages: &mut Vec<(String, Command)>) {
    // The page of `memtap run` is `memtap-run(1)`, as git's are.
    pages.push((name.to_string(), command.clone().display_name(name)));
    for subcommand in command.get_subcommands() {
        collect(subcommand, &format!("{name}-{}", subcommand.get_name()), pages);
    }
}

fn render(command: &Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    Ok(page)
}

fn write_all(directory: &Path, pages: &[(String, Command)]) -> Result<(), Failure> {
    let failed = |path: &Path, error: io::Error| {
        Failure::new(Exit::OutputFailed, format!("cannot write {}: {error}", path.display()))
    };
    std::fs::create_dir_all(directory).map_err(|error| failed(directory, error))?;
    for (name, command) in pages {
        let path = directory.join(format!("{name}.1"));
        render(command).and_then(|page| std::fs::write(&path, page)).map_err(|error| failed(&path, error))?;
    }
    Ok(())
}

fn print(text: &[u8]) -> Result<(), Failure> {
    match Output::standard().write(|out| out.write_all(text)) {
        Ok(()) | Err(OutputEnd::ClosedPipe) => Ok(()),
        Err(OutputEnd::Failed(error)) => Err(failed(error)),
    }
}

fn failed(error: io::Error) -> Failure {
    Failure::new(Exit::OutputFailed, format!("cannot write to standard output: {error}"))
}

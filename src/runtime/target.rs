//! `memtap target`: the targets of a running memtap, over its control socket.

use crate::cli::{Exit, Options, TargetAction, TargetArgs};
use crate::config::{Config, FlagValue};
use crate::report::escape_name;
use crate::runtime::control::Client;
use crate::runtime::failure::Failure;
use crate::runtime::output::{Output, OutputEnd};
use crate::runtime::wire::{Answer, NewTarget, Request, TargetWire};

/// Does what was asked for and says so.
pub fn target(arguments: &TargetArgs) -> Result<(), Failure> {
    let config = load(arguments)?;
    let request = match &arguments.action {
        TargetAction::List => Request::Targets,
        // A comma would make it several, of which the others would be forgotten.
        TargetAction::Add { .. } if config.targets.len() > 1 => {
            return Err(Failure::new(Exit::Usage, "one target at a time"));
        }
        TargetAction::Add { .. } => Request::AddTarget(NewTarget::of(&config.targets[0])),
        TargetAction::Remove { name } => Request::RemoveTarget { name: name.clone() },
    };
    let answer = Client::connect(&config.control)?.ask(&request)?;
    match answer {
        Answer::Targets { targets } => print(&targets.iter().map(line).collect::<String>()),
        Answer::Changed { target } => print(&line(&target)),
        _ => Err(Failure::new(Exit::Failure, "the answer is none to what was asked")),
    }
}

/// The configuration that names the control socket; with the new target, where one is to be added, so that it is judged like any other.
fn load(arguments: &TargetArgs) -> Result<Config, Failure> {
    let environment = |name: &str| std::env::var(name).ok();
    let options = Options { config: arguments.config.clone(), ..Options::default() };
    let file = options.file(&environment);
    let mut flags = Vec::new();
    if let TargetAction::Add { target, budget_mb } = &arguments.action {
        let flag = |key, flag: &str, value: &String| FlagValue {
            key,
            flag: flag.to_string(),
            values: vec![value.clone()],
        };
        flags.push(flag("target", "target add", target));
        flags.extend(budget_mb.as_ref().map(|budget| flag("target.budget", "--budget-mb", budget)));
    }
    Ok(Config::load(file.as_deref(), &environment, &flags)?.config)
}

fn line(target: &TargetWire) -> String {
    let TargetWire { name, address, budget_bytes, state } = target;
    let (name, address) = (escape_name(name), escape_name(address));
    format!("{name}\t{address}\t{} MB\t{}\n", budget_bytes / 1_000_000, escape_name(state))
}

fn print(text: &str) -> Result<(), Failure> {
    match Output::standard().write(|out| out.write_all(text.as_bytes())) {
        Ok(()) | Err(OutputEnd::ClosedPipe) => Ok(()),
        Err(OutputEnd::Failed(error)) => Err(Failure::new(Exit::OutputFailed, error)),
    }
}

//! `memtap target`: the targets of a running memtap, over its control socket.

use crate::cli::{Exit, Options, TargetAction, TargetArgs};
use crate::report::escape_name;
use crate::runtime::control::Client;
use crate::runtime::failure::Failure;
use crate::runtime::output::{Output, OutputEnd};
use crate::runtime::wire::{Answer, Request};

/// Does what was asked for and says so.
pub fn target(arguments: &TargetArgs) -> Result<(), Failure> {
    let options = Options { config: arguments.config.clone(), ..Options::default() };
    let config = options.load(&|name| std::env::var(name).ok())?.config;
    let mut client = Client::connect(&config.control)?;
    let request = match arguments.action {
        TargetAction::List => Request::Targets,
    };
    match client.ask(&request)? {
        Answer::Targets { targets } => {
            let lines = targets.iter().map(|target| {
                let (name, address) = (escape_name(&target.name), escape_name(&target.address));
                format!("{name}\t{address}\t{} MB\n", target.budget_bytes / 1_000_000)
            });
            print(&lines.collect::<String>())
        }
        _ => Err(Failure::new(Exit::Failure, "the answer is none to what was asked")),
    }
}

fn print(text: &str) -> Result<(), Failure> {
    match Output::standard().write(|out| out.write_all(text.as_bytes())) {
        Ok(()) | Err(OutputEnd::ClosedPipe) => Ok(()),
        Err(OutputEnd::Failed(error)) => Err(Failure::new(Exit::OutputFailed, error)),
    }
}

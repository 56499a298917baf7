//! The `memtap` program: allocator, arguments, library, exit code.

use memtap::cli::{Action, Cli, ConfigAction, Exit};
use memtap::runtime::{self, Failure};
use std::process::ExitCode;

// The allocator belongs to the product, not to the library: tests may install one that counts.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match Cli::parse_from_arguments(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Done };
            // A closed pipe under --help is nothing to complain about.
            let _ = error.print();
            return exit.into();
        }
    };
    let ended = match cli.action {
        Action::Run(options) => runtime::run(&options),
        Action::Replay(arguments) => runtime::replay(&arguments),
        Action::Stat(arguments) => runtime::stat(&arguments),
        Action::Report(arguments) => runtime::report(&arguments),
        Action::Merge(arguments) => runtime::merge(&arguments),
        Action::Top(arguments) => runtime::top(&arguments),
        Action::Target(arguments) => runtime::target(&arguments),
        Action::Doctor(arguments) => runtime::doctor(&arguments),
        Action::Config(arguments) => match arguments.action {
            ConfigAction::Default => runtime::print_default_config(),
            ConfigAction::Check { file } => runtime::check_config(&file),
            ConfigAction::Show(arguments) => runtime::show_config(&arguments),
        },
        Action::Completions { shell } => runtime::print_completions(shell),
        Action::Man(arguments) => runtime::print_man(&arguments),
    };
    match ended {
        Ok(()) => Exit::Done.into(),
        Err(Failure { exit, message }) => {
            if !message.is_empty() {
                anstream::eprintln!("memtap: {message}");
            }
            exit.into()
        }
    }
}

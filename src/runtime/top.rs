//! `memtap top`: the terminal, and the loop between key presses and intervals.
//!
//! The terminal is given back however the program ends: at the end, on a failure, on a signal, and on a panic of any thread.

use crate::cli::{Exit, TopArgs};
use crate::config::{Config, FlagValue, Interval, Loaded, Origin, Over};
use crate::report::ReportOptions;
use crate::runtime::control::Client;
use crate::runtime::failure::Failure;
use crate::runtime::fault;
use crate::runtime::live::{Session, Wire, bug};
use crate::runtime::logging::{self, ScreenLog};
use crate::runtime::replay::{Pace, Replay};
use crate::runtime::reporter::{Sink, report_options};
use crate::runtime::signals::Requests;
use crate::sandbox::{self, SandboxMode, SandboxOptions};
use crate::top::Frame;
use crate::top::state::{Effect, Source, State};
use crate::top::{keys, screen};
use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError};
use ratatui::DefaultTerminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event, KeyEvent};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use rustix::event::{PollFd, PollFlags};
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::thread;
use std::time::Duration;

/// Length of an interval where nobody asked for another: an operator waits no longer for the first figures.
const INTERVAL_DEFAULT: Duration = Duration::from_secs(2);

/// Longest wait for a key press: an interval or a signal is noticed this much later.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// Key presses that wait while the screen is drawn.
const KEYS_WAITING: usize = 64;

/// Intervals on their way to the screen.
const FRAMES_WAITING: usize = 2;

/// Shows what is captured, recorded, or reported by a running `memtap run`, until somebody quits.
pub fn top(arguments: &TopArgs) -> Result<(), Failure> {
    let loaded = arguments.options.load(&|name| std::env::var(name).ok())?;
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(Failure::new(
            Exit::Usage,
            "top needs a terminal; for a file or a pipe use memtap run or memtap replay",
        ));
    }
    let log = logging::start_beside_screen(&loaded.config.log)?;
    fault::hide_panic_texts();
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let ended = show(arguments, loaded, &log);
    // The terminal is ours again only now; a closed stderr leaves nobody to tell.
    drop(log.write_to(&mut io::stderr()));
    ended
}

fn show(arguments: &TopArgs, loaded: Loaded, log: &ScreenLog) -> Result<(), Failure> {
    let is_default = *loaded.origin("report.interval") == Origin::Default;
    let mut config = loaded.config;
    let over = std::mem::replace(&mut config.report.over, Over::Interval);
    let options = ReportOptions { color: use_color(&config), ..report_options(&config) };
    let requests = Requests::from_signals().map_err(|error| Failure::new(Exit::Failure, error))?;
    let (sender, frames) = crossbeam_channel::bounded(FRAMES_WAITING);
    if !arguments.replay.is_empty() {
        let opened = Replay::open(&config, &arguments.replay, Pace::AsFast, requests.clone())?;
        let Some(replay) = opened else { return Ok(()) };
        let state = State::new(options, over, Source::Recording);
        return replay.run(Sink::Screen(sender), move || Screen { state, frames, requests, log }.run());
    }
    let attached = attach(arguments, &config)?;
    if let Some(client) = attached {
        let options = ReportOptions { host: client.host.clone(), ..options };
        let state = State::new(options, over, Source::Attached).with_keys_shown(client.privacy);
        return thread::scope(|scope| {
            let screen = Screen { state, frames, requests: requests.clone(), log };
            let stopping = requests.clone();
            scope.spawn(move || client.watch(&sender, &requests));
            catch_unwind(AssertUnwindSafe(|| screen.run())).unwrap_or_else(|_| {
                stopping.stop();
                Err(bug())
            })
        });
    }
    if is_default {
        config.report.interval = Interval::Every(INTERVAL_DEFAULT);
    }
    let wire = Wire::open(&config)?;
    let session = Session::new(&config, wire, requests.clone(), None, Sink::Screen(sender))?;
    become_user(&config)?;
    let state = State::new(options, over, Source::Capture);
    session.run(move || Screen { state, frames, requests, log }.run())
}

/// A running memtap to be fed by; none where an own capture is wanted. Options that say what to capture, and how often to look, ask for one, for a running memtap
/// would not heed them.
fn attach(arguments: &TopArgs, config: &Config) -> Result<Option<Client>, Failure> {
    if arguments.attach {
        return Client::connect(&config.control).map(Some);
    }
    let flags = arguments.options.flags();
    let says_what = |flag: &FlagValue| {
        flag.key.starts_with("capture.") || flag.key.starts_with("target") || flag.key == "report.interval"
    };
    if arguments.no_attach || flags.iter().any(says_what) {
        return Ok(None);
    }
    Ok(Client::connect(&config.control).ok())
}

fn use_color(config: &Config) -> bool {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    config.report.color.enabled(io::stdout().is_terminal(), no_color)
}

/// A screen works with the terminal and writes exports, so only the user is given up; a daemon to which screens attach gives
/// up the rest.
fn become_user(config: &Config) -> Result<(), Failure> {
    let Some(user) = &config.capture.user else { return Ok(()) };
    let options =
        SandboxOptions { mode: SandboxMode::Off, user: Some(user.clone()), ..SandboxOptions::default() };
    let report = sandbox::enter(&options).map_err(|error| Failure::new(Exit::Failure, error))?;
    tracing::info!("{report}");
    Ok(())
}

/// The screen and what it listens to.
struct Screen<'a> {
    state: State,
    frames: Receiver<Frame>,
    requests: Requests,
    log: &'a ScreenLog,
}

impl Screen<'_> {
    /// Until somebody quits, or nothing can come any more. Ends the capture, too.
    fn run(mut self) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::new(Exit::OutputFailed, format!("terminal: {error}"));
        let shown = Terminal::take().and_then(|mut terminal| self.show(&mut terminal.0)).map_err(failed);
        // Without a reader the reporter ends as it does when a pipe is closed.
        self.requests.stop();
        shown
    }

    fn show(&mut self, terminal: &mut DefaultTerminal) -> io::Result<()> {
        let key_presses = key_presses()?;
        let mut size = terminal.size()?;
        let mut is_new = true;
        loop {
            is_new |= match self.take_frames() {
                Some(some) => some,
                None => return Ok(()),
            };
            if let Some(line) = self.log.take_newest() {
                self.state.say(line);
                is_new = true;
            }
            // A terminal that has hung up (SIGHUP) is no use any more.
            if self.requests.must_stop() || self.requests.take_reload() {
                return Ok(());
            }
            is_new |= std::mem::replace(&mut size, terminal.size()?) != size;
            if std::mem::take(&mut is_new) {
                terminal.draw(|frame| screen::draw(frame, &mut self.state))?;
            }
            match key_presses.recv_timeout(WAIT_MAX) {
                Ok(key) => {
                    is_new = true;
                    if self.handle(key) == Effect::Quit {
                        return Ok(());
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    /// Whether there is anything new to show. Nothing: an own capture has ended, and so has the screen; elsewhere what was shown stays.
    fn take_frames(&mut self) -> Option<bool> {
        let mut some = false;
        loop {
            match self.frames.try_recv() {
                Ok(frame) => {
                    self.state.take(frame);
                    some = true;
                }
                Err(TryRecvError::Disconnected) if self.state.source() == Source::Capture => return None,
                Err(TryRecvError::Disconnected) if self.state.source() == Source::Attached => {
                    return Some(self.state.end() || some);
                }
                Err(_) => return Some(some),
            }
        }
    }

    fn handle(&mut self, key: KeyEvent) -> Effect {
        let Some(input) = keys::input(key, self.state.prompt().is_some()) else { return Effect::None };
        let effect = self.state.handle(input);
        if let Effect::Write { path, contents } = &effect {
            let said = match write_new(path, contents) {
                Ok(()) => format!("written: {}", path.display()),
                Err(error) => format!("cannot write {}: {error}", path.display()),
            };
            self.state.say(said);
        }
        effect
    }
}

/// Key presses, until the terminal hangs up. On a thread of their own that nobody waits for: crossterm 0.29, when the terminal hangs up
/// while it reads, reads on for ever. We look first, which leaves it next to no chance, and the screen ends without it.
fn key_presses() -> io::Result<Receiver<KeyEvent>> {
    let (sender, key_presses) = crossbeam_channel::bounded(KEYS_WAITING);
    let listen = move || {
        let stdin = io::stdin();
        loop {
            let mut input = [PollFd::new(&stdin, PollFlags::IN)];
            match rustix::event::poll(&mut input, None) {
                Ok(_) if input[0].revents() == PollFlags::IN => {}
                Err(rustix::io::Errno::INTR) => continue,
                _ => return,
            }
            while event::poll(Duration::ZERO).unwrap_or(false) {
                match event::read() {
                    Ok(Event::Key(key)) if sender.send(key).is_err() => return,
                    Ok(_) => {}
                    Err(_) => return,
                }
            }
        }
    };
    thread::Builder::new().name("keys".to_string()).spawn(listen)?;
    Ok(key_presses)
}

/// Never over what is there already.
fn write_new(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(contents)?;
    file.sync_all()
}

/// The terminal while it is ours; given back on drop, and so on a panic of this thread, too. (A worker's panic is none of the
/// screen's: the worker begins anew.)
struct Terminal(DefaultTerminal);

impl Terminal {
    fn take() -> io::Result<Terminal> {
        enable_raw_mode()?;
        // From here on there is something to give back.
        let entered = execute!(io::stdout(), EnterAlternateScreen)
            .and_then(|()| ratatui::Terminal::new(CrosstermBackend::new(io::stdout())));
        entered.map(Terminal).inspect_err(|_| give_back())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        give_back();
    }
}

/// A terminal that has gone away needs nothing back.
fn give_back() {
    drop(execute!(io::stdout(), LeaveAlternateScreen, Show));
    drop(disable_raw_mode());
}

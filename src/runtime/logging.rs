//! What the program says: events by `tracing`, as text or JSON on stderr, or to systemd's journal. stdout is data.
//!
//! While the live screen has the terminal, lines wait in a [`ScreenLog`]: the screen shows the newest, and all that were kept
//! are written to stderr when the terminal is given back.
//!
//! Each place in the code that speaks is a cause, and speaks a limited number of times in a while; what is left out is counted
//! and said. No event names a key: those that could are in reports, which privacy governs.

use crate::cli::Exit;
use crate::config::{LogConfig, LogFormat, LogLevel};
use crate::runtime::failure::Failure;
use crate::runtime::progress;
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tracing::callsite::Identifier;
use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// Lines of one cause within [`WHILE`]; an operator has understood by then.
const LINES_MAX: u32 = 10;
/// The while of [`LINES_MAX`].
const WHILE: Duration = Duration::from_secs(10);

/// Where systemd's journal listens: <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>.
const JOURNAL_SOCKET: &str = "/run/systemd/journal/socket";

/// Starts logging. A second start in one process is ignored.
pub(super) fn start(config: &LogConfig) -> Result<(), Failure> {
    start_at(config, None)
}

/// Starts logging for a program that draws on the terminal: there where lines would go to that terminal, too.
pub(super) fn start_beside_screen(config: &LogConfig) -> Result<ScreenLog, Failure> {
    let log = ScreenLog::default();
    let in_the_way = config.format != LogFormat::Journald && io::stderr().is_terminal();
    start_at(config, in_the_way.then(|| log.clone()))?;
    Ok(log)
}

fn start_at(config: &LogConfig, screen: Option<ScreenLog>) -> Result<(), Failure> {
    let level = match config.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let colored = screen.is_none();
    let place = match (screen, config.format) {
        (Some(screen), _) => Place::Screen(screen),
        (None, LogFormat::Text | LogFormat::Json) => Place::Stderr,
        (None, LogFormat::Journald) => {
            Place::Journal(Journal::open(Path::new(JOURNAL_SOCKET)).map_err(|error| {
                let message = format!(
                    "cannot reach systemd's journal at {JOURNAL_SOCKET}: {error}; use --log-format text"
                );
                Failure::new(Exit::Failure, message)
            })?)
        }
    };
    let log = Log { format: config.format, place, limiter: Mutex::default() };
    let builder = tracing_subscriber::fmt().with_max_level(level).with_target(false).with_writer(log);
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let started = match config.format {
        LogFormat::Text => builder.with_ansi(colored && io::stderr().is_terminal() && !no_color).try_init(),
        LogFormat::Json => builder.json().try_init(),
        // The journal notes time and level itself.
        LogFormat::Journald => builder.with_ansi(false).without_time().with_level(false).try_init(),
    };
    // Only a test that runs two commands in one process gets here twice.
    drop(started);
    Ok(())
}

/// Makes a writer for each event.
struct Log {
    format: LogFormat,
    place: Place,
    limiter: Mutex<Limiter>,
}

enum Place {
    Stderr,
    Journal(Journal),
    Screen(ScreenLog),
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { log: self, level: Level::INFO, admission: Admission::Whole { left_out: 0, is_last: false } }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line<'a> {
        let mut limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        let admission = limiter.admit(metadata.callsite(), Instant::now());
        Line { log: self, level: *metadata.level(), admission }
    }
}

/// One event on its way out. The formatter hands it over in one call.
struct Line<'a> {
    log: &'a Log,
    level: Level,
    admission: Admission,
}

impl Write for Line<'_> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let Admission::Whole { left_out, is_last } = self.admission else { return Ok(text.len()) };
        if left_out > 0 {
            self.log
                .write_own(self.level, &format!("{left_out} more lines like the next one were left out"))?;
        }
        self.log.write(self.level, text)?;
        if is_last {
            let seconds = WHILE.as_secs();
            self.log.write_own(
                self.level,
                &format!("further lines like this one are left out for {seconds} s"),
            )?;
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn write(&self, level: Level, text: &[u8]) -> io::Result<()> {
        match &self.place {
            Place::Stderr => progress::undisturbed(|| io::stderr().write_all(text)),
            Place::Journal(journal) => journal.send(level, text),
            Place::Screen(screen) => {
                screen.keep(text);
                Ok(())
            }
        }
    }

    /// A line of the log about itself.
    fn write_own(&self, level: Level, message: &str) -> io::Result<()> {
        let text = match self.format {
            LogFormat::Json => {
                let line = serde_json::json!({ "level": level.as_str(), "fields": { "message": message } });
                format!("{line}\n")
            }
            LogFormat::Text | LogFormat::Journald => format!("({message})\n"),
        };
        self.write(level, text.as_bytes())
    }
}

/// Lines that are kept.
const LINES_KEPT: usize = 100;

/// Longest line that is kept whole.
const LINE_BYTES_KEPT: usize = 1000;

/// The newest lines of the log. All clones are one.
#[derive(Clone, Debug, Default)]
pub(super) struct ScreenLog(Arc<Mutex<KeptLines>>);

#[derive(Debug, Default)]
struct KeptLines {
    kept: VecDeque<String>,
    forgotten: u64,
    /// The newest has not been shown.
    is_new: bool,
}

impl ScreenLog {
    /// The newest line, when it has not been asked for before.
    pub(super) fn take_newest(&self) -> Option<String> {
        let mut lines = self.lines();
        if std::mem::take(&mut lines.is_new) { lines.kept.back().cloned() } else { None }
    }

    /// Takes a line.
    fn keep(&self, text: &[u8]) {
        let text = String::from_utf8_lossy(&text[..text.len().min(LINE_BYTES_KEPT)]);
        let mut lines = self.lines();
        if lines.kept.len() == LINES_KEPT {
            lines.kept.pop_front();
            lines.forgotten += 1;
        }
        lines.kept.push_back(text.trim().to_string());
        lines.is_new = true;
    }

    /// Writes out what was kept.
    pub(super) fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        let mut lines = self.lines();
        if lines.forgotten > 0 {
            writeln!(out, "({} earlier lines of the log were not kept)", lines.forgotten)?;
        }
        for line in lines.kept.drain(..) {
            writeln!(out, "{line}")?;
        }
        Ok(())
    }

    fn lines(&self) -> MutexGuard<'_, KeptLines> {
        // Lines are whole whoever panicked meanwhile.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an event is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admission {
    Whole {
        /// Events of the cause that were not, since the last that was.
        left_out: u64,
        /// The next ones will not be.
        is_last: bool,
    },
    LeftOut,
}

/// Counts lines by cause. Causes are places in the code, so there are few.
#[derive(Debug, Default)]
struct Limiter {
    causes: HashMap<Identifier, Cause>,
}

#[derive(Debug)]
struct Cause {
    since: Instant,
    lines: u32,
    left_out: u64,
}

impl Limiter {
    fn admit(&mut self, cause: Identifier, now: Instant) -> Admission {
        let cause = self.causes.entry(cause).or_insert(Cause { since: now, lines: 0, left_out: 0 });
        if now.saturating_duration_since(cause.since) >= WHILE {
            (cause.since, cause.lines) = (now, 0);
        }
        if cause.lines >= LINES_MAX {
            cause.left_out += 1;
            return Admission::LeftOut;
        }
        cause.lines += 1;
        Admission::Whole { left_out: std::mem::take(&mut cause.left_out), is_last: cause.lines == LINES_MAX }
    }
}

/// The journal's socket, connected. Written to as a file, which a sandbox permits.
struct Journal(File);

impl Journal {
    fn open(path: &Path) -> io::Result<Journal> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        // A journal that is slow must not hold up a capture: what it cannot take at once is lost to it.
        socket.set_nonblocking(true)?;
        Ok(Journal(File::from(OwnedFd::from(socket))))
    }

    fn send(&self, level: Level, text: &[u8]) -> io::Result<()> {
        // By syslog: error 3, warning 4, informational 6, debug 7.
        let priority = match level {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        let message = text.trim_ascii_end();
        let mut datagram = format!("PRIORITY={priority}\nSYSLOG_IDENTIFIER=memtap\nMESSAGE\n").into_bytes();
        // A message of several lines needs its length in front.
        datagram.extend_from_slice(&(message.len() as u64).to_le_bytes());
        datagram.extend_from_slice(message);
        datagram.push(b'\n');
        (&self.0).write_all(&datagram)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::callsite::{Callsite, DefaultCallsite};

    fn identifier() -> Identifier {
        static CALLSITE: DefaultCallsite = {
            static METADATA: Metadata<'static> = tracing::metadata! {
                name: "test",
                target: "test",
                level: Level::WARN,
                fields: &[],
                callsite: &CALLSITE,
                kind: tracing::metadata::Kind::EVENT,
            };
            DefaultCallsite::new(&METADATA)
        };
        CALLSITE.metadata().callsite()
    }

    #[test]
    fn the_log_beside_a_screen_is_bounded_and_says_what_it_forgot() {
        let log = ScreenLog::default();
        for number in 0..LINES_KEPT + 2 {
            log.keep(format!("line {number}\n").as_bytes());
        }
        assert_eq!(log.take_newest(), Some("line 101".to_string()));
        assert_eq!(log.take_newest(), None);
        let mut out = Vec::new();
        log.write_to(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("(2 earlier lines of the log were not kept)\nline 2\n"), "{text}");
        assert_eq!(text.lines().count(), LINES_KEPT + 1);
    }

    #[test]
    fn a_cause_speaks_ten_times_in_a_while_and_what_is_left_out_is_counted() {
        let mut limiter = Limiter::default();
        let began = Instant::now();
        for line in 1..=LINES_MAX {
            let is_last = line == LINES_MAX;
            assert_eq!(limiter.admit(identifier(), began), Admission::Whole { left_out: 0, is_last });
        }
        for _ in 0..7 {
            assert_eq!(limiter.admit(identifier(), began + WHILE / 2), Admission::LeftOut);
        }
        let later = began + WHILE;
        assert_eq!(limiter.admit(identifier(), later), Admission::Whole { left_out: 7, is_last: false });
        assert_eq!(limiter.admit(identifier(), later), Admission::Whole { left_out: 0, is_last: false });
    }

    #[test]
    fn the_journal_gets_its_own_protocol() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::open(&path).unwrap();
        journal.send(Level::WARN, b"two\nlines\n").unwrap();
        let mut datagram = [0; 256];
        let length = listener.recv(&mut datagram).unwrap();
        let expected = b"PRIORITY=4\nSYSLOG_IDENTIFIER=memtap\nMESSAGE\n\x09\0\0\0\0\0\0\0two\nlines\n";
        assert_eq!(&datagram[..length], expected);
        assert!(Journal::open(&folder.path().join("nothing")).is_err());
    }
}

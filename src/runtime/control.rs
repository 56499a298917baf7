//! The control socket: a running `memtap run` listens on it, `memtap top` and `memtap target` connect to it.
//!
//! A local socket that only its owner may use: file mode 0600, in a directory that is made with 0700. Lines of JSON, version 1
//! (`wire`). Everything is bounded: clients, their requests, the intervals that wait for a slow one (it is told how many it
//! missed), the changes that wait for their turn. What is sent is what the reports may show, cut to the heaviest rows.
//!
//! The socket is opened before the sandbox is entered; serving it takes nothing that the sandbox forbids.

use crate::cli::Exit;
use crate::collector::snapshot::Snapshot;
use crate::collector::window::prune;
use crate::config::{ControlConfig, ControlSocket};
use crate::report::{Privacy, PrivacyMode, SeenElsewhere};
use crate::runtime::changes::{Ask, Wish};
use crate::runtime::failure::Failure;
use crate::runtime::reporter::host;
use crate::runtime::roster::Entry;
use crate::runtime::signals::{HEARD_WITHIN, Requests};
use crate::runtime::wire::{self, Answer, Request, TargetWire};
use crate::top::Frame;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Mode;
use std::borrow::Cow;
use std::fs::{self, DirBuilder};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Clients at a time: a few screens and a script.
const CLIENTS_MAX: usize = 16;

/// Longest request.
const REQUEST_BYTES_MAX: usize = 4096;

/// Longest answer that a client takes.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Rows of a kind that an interval carries in all, and at least of each target.
const ROWS_OF_ALL: usize = 16_384;
const ROWS_OF_A_TARGET_MIN: usize = 16;

/// Intervals that wait for a client.
const INTERVALS_WAITING: usize = 2;

/// How often somebody who waits looks whether it is over.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A client that takes nothing for so long is let go: it may be on a machine that is busier than its operator likes. At the end of the
/// capture nobody waits that long for it.
const WRITE_MAX: Duration = Duration::from_secs(10);
const WRITE_MAX_AT_END: Duration = Duration::from_secs(2);

/// So is one that asks nothing.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// How long one may take for which memory has to be found and last packets to be waited for: a terabyte is populated at some
/// gigabytes a second.
const CHANGE_MAX: Duration = Duration::from_secs(600);

/// Changes that wait for their turn.
const CHANGES_WAITING: usize = 4;

/// The place of the socket; `None` where there is to be none.
fn place(config: &ControlConfig) -> Option<PathBuf> {
    match &config.socket {
        ControlSocket::Off => None,
        ControlSocket::Path(path) => Some(path.clone()),
        ControlSocket::Auto if rustix::process::geteuid().is_root() => {
            Some("/run/memtap/control.sock".into())
        }
        ControlSocket::Auto => {
            let folder = std::env::var_os("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty())?;
            Some(PathBuf::from(folder).join("memtap/control.sock"))
        }
    }
}

/// An open socket with those who watch.
pub(super) struct Listener {
    socket: UnixListener,
    path: PathBuf,
    host: String,
    shared: Arc<Shared>,
    clients: AtomicUsize,
    /// To whoever makes the changes.
    asks: Sender<Ask>,
    /// Their end, until they take it.
    asked: Receiver<Ask>,
}

/// What the reporter and the clients' threads have in common.
#[derive(Default)]
struct Shared {
    watchers: Mutex<Watchers>,
    targets: Mutex<Vec<TargetWire>>,
    privacy: Mutex<Option<PrivacyMode>>,
}

#[derive(Default)]
struct Watchers {
    all: Vec<Watcher>,
    /// For those who come between two intervals.
    newest: Option<Arc<Frame>>,
    /// Nothing comes any more.
    ended: bool,
}

struct Watcher {
    lines: Sender<Arc<[u8]>>,
    skipped: Arc<AtomicU64>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half done under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Listener {
    /// Opens the socket. At the usual place, not being able to is a warning: the capture is the main thing.
    pub(super) fn open(config: &ControlConfig) -> Result<Option<Listener>, Failure> {
        let Some(path) = place(config) else { return Ok(None) };
        match listen(&path) {
            Ok(socket) => {
                tracing::debug!("listening on {}", path.display());
                let shared = Arc::new(Shared::default());
                let host = host().to_string();
                let clients = AtomicUsize::new(0);
                let (asks, asked) = crossbeam_channel::bounded(CHANGES_WAITING);
                Ok(Some(Listener { socket, path, host, shared, clients, asks, asked }))
            }
            Err(error) if config.socket == ControlSocket::Auto => {
                tracing::warn!("memtap top cannot attach here: {}: {error}", path.display());
                Ok(None)
            }
            Err(error) => {
                Err(Failure::new(Exit::Failure, format!("control socket {}: {error}", path.display())))
            }
        }
    }

    /// The reporter's end.
    pub(super) fn publisher(&self) -> Publisher {
        Publisher(Arc::clone(&self.shared))
    }

    /// The end of whoever makes the changes: what is asked for, and where the targets are shown.
    pub(super) fn board(&self) -> (Receiver<Ask>, Board) {
        (self.asked.clone(), Board(Arc::clone(&self.shared)))
    }

    /// Serves clients until the capture ends.
    pub(super) fn serve(&self, requests: &Requests) {
        thread::scope(|scope| {
            while !requests.must_stop() {
                match self.socket.accept() {
                    Ok((client, _)) => {
                        if self.clients.fetch_add(1, Ordering::Relaxed) < CLIENTS_MAX {
                            scope.spawn(|| self.serve_client(client, requests));
                        } else {
                            self.clients.fetch_sub(1, Ordering::Relaxed);
                            refuse(client);
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait_for_client(),
                    Err(error) => {
                        tracing::warn!("control socket: {error}");
                        thread::sleep(Duration::from_secs(1));
                    }
                }
            }
        });
    }

    /// Until somebody comes, or a signal may have.
    fn wait_for_client(&self) {
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        // It is far below what a timespec holds.
        let timeout = HEARD_WITHIN.try_into().ok();
        // What failed here fails at the next `accept` as well, where it is told.
        if poll(&mut fds, timeout.as_ref()).is_err() {
            thread::sleep(HEARD_WITHIN);
        }
    }

    fn serve_client(&self, mut client: UnixStream, requests: &Requests) {
        if let Err(error) = self.converse(&mut client, requests) {
            tracing::debug!("control client: {error}");
        }
        // Before it is closed: whoever hears of that finds a place free.
        self.clients.fetch_sub(1, Ordering::Relaxed);
    }

    fn converse(&self, client: &mut UnixStream, requests: &Requests) -> io::Result<()> {
        client.set_read_timeout(Some(LOOK_EVERY))?;
        client.set_write_timeout(Some(LOOK_EVERY))?;
        let privacy = locked(&self.shared.privacy).unwrap_or(PrivacyMode::Full);
        let hello = Answer::Hello {
            program: env!("CARGO_PKG_VERSION").to_string(),
            host: self.host.clone(),
            privacy: privacy.name().to_string(),
        };
        send(client, &wire::encode(hello), requests)?;
        let mut lines = Lines::new(client.try_clone()?, REQUEST_BYTES_MAX);
        let mut heard = Instant::now();
        while !requests.must_stop() && heard.elapsed() < IDLE_MAX {
            let Some(line) = lines.next()? else { continue };
            let answer = match wire::decode(&line) {
                Ok(Request::Watch) => return self.feed(client, requests),
                Ok(Request::Targets) => Answer::Targets { targets: locked(&self.shared.targets).clone() },
                Ok(Request::AddTarget(target)) => self.change(target.read().map(Wish::Add), requests),
                Ok(Request::RemoveTarget { name }) => self.change(Ok(Wish::Remove(name)), requests),
                Err(text) => Answer::Error { text },
            };
            send(client, &wire::encode(answer), requests)?;
            heard = Instant::now();
        }
        Ok(())
    }

    /// Has a change made, and waits until it is.
    fn change(&self, wish: Result<Wish, String>, requests: &Requests) -> Answer {
        let changed = wish.and_then(|wish| {
            let (answer, answered) = crossbeam_channel::bounded(1);
            let busy = format!("{CHANGES_WAITING} changes are waiting already");
            self.asks.try_send(Ask { wish, answer }).map_err(|_| busy)?;
            loop {
                match answered.recv_timeout(LOOK_EVERY) {
                    Ok(changed) => return changed,
                    Err(RecvTimeoutError::Timeout) if !requests.must_stop() => {}
                    Err(_) => return Err("memtap is ending".to_string()),
                }
            }
        });
        match changed {
            Ok(target) => Answer::Changed { target },
            Err(text) => Answer::Error { text },
        }
    }

    /// Sends every interval to a client that asks nothing more.
    fn feed(&self, client: &mut UnixStream, requests: &Requests) -> io::Result<()> {
        let (sender, lines) = crossbeam_channel::bounded(INTERVALS_WAITING);
        let skipped = Arc::new(AtomicU64::new(0));
        let newest = {
            let mut watchers = locked(&self.shared.watchers);
            if !watchers.ended {
                watchers.all.push(Watcher { lines: sender, skipped: Arc::clone(&skipped) });
            }
            watchers.newest.clone()
        };
        if let Some(frame) = newest {
            send(client, &wire::encode(wire::interval(&frame)), requests)?;
        }
        // Ends when the reporter drops its end.
        for line in lines {
            let intervals = skipped.swap(0, Ordering::Relaxed);
            if intervals > 0 {
                send(client, &wire::encode(Answer::Skipped { intervals }), requests)?;
            }
            send(client, &line, requests)?;
        }
        Ok(())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // A sandbox may forbid it; the next to listen there finds that nobody answers, and takes the place.
        let _ = fs::remove_file(&self.path);
    }
}

/// Where the targets are shown to those who ask for them.
pub(super) struct Board(Arc<Shared>);

impl Board {
    pub(super) fn show(&self, entries: &[Entry]) {
        *locked(&self.0.targets) =
            entries.iter().map(|entry| target_wire(entry, entry.state.name())).collect();
    }
}

/// Writes all of it to a client whose write timeout is short, unless the client takes nothing for too long.
fn send(client: &mut UnixStream, mut bytes: &[u8], requests: &Requests) -> io::Result<()> {
    let mut taken = Instant::now();
    while !bytes.is_empty() {
        match client.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(length) => (bytes, taken) = (&bytes[length..], Instant::now()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let most = if requests.must_stop() { WRITE_MAX_AT_END } else { WRITE_MAX };
                if taken.elapsed() > most {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A target as clients are told of it.
pub(super) fn target_wire(entry: &Entry, state: &str) -> TargetWire {
    let target = &entry.target;
    TargetWire {
        name: target.name.clone(),
        address: target.address(),
        budget_bytes: target.budget_bytes,
        state: state.to_string(),
    }
}

/// One too many. Its answer is worth no waiting.
fn refuse(mut client: UnixStream) {
    let text = format!("{CLIENTS_MAX} clients are connected already");
    if client.set_write_timeout(Some(LOOK_EVERY)).is_ok() {
        let _ = client.write_all(&wire::encode(Answer::Error { text }));
    }
}

/// Binds the socket, in the place of one at which nobody answers any more.
fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent()
        && !folder.exists()
    {
        DirBuilder::new().mode(0o700).create(folder)?;
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::other("something else is there"));
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(io::Error::other("another memtap listens there"));
        }
        Ok(_) => fs::remove_file(path)?,
        Err(_) => {}
    }
    // The mode is that of the socket's birth; changed afterwards, it would come too late for the quickest. One thread runs.
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(path);
    rustix::process::umask(before);
    let socket = bound?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Where the reporter leaves intervals.
pub(super) struct Publisher(Arc<Shared>);

impl Publisher {
    /// Hands an interval to all who watch, as `privacy` permits. Never waits.
    pub(super) fn publish(&self, snapshots: &[Snapshot], seen: &SeenElsewhere, privacy: &Privacy) {
        *locked(&self.0.privacy) = Some(privacy.mode());
        let rows = (ROWS_OF_ALL / snapshots.len().max(1)).clamp(ROWS_OF_A_TARGET_MIN, wire::ROWS_MAX);
        let shown = |snapshot| {
            let mut shown = privacy.apply(Cow::Borrowed(snapshot)).into_owned();
            prune(&mut shown, rows);
            shown
        };
        let frame = Arc::new(Frame { snapshots: snapshots.iter().map(shown).collect(), seen: seen.clone() });
        let mut watchers = locked(&self.0.watchers);
        watchers.newest = Some(Arc::clone(&frame));
        if watchers.all.is_empty() {
            return;
        }
        let line: Arc<[u8]> = wire::encode(wire::interval(&frame)).into();
        watchers.all.retain(|watcher| match watcher.lines.try_send(Arc::clone(&line)) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                watcher.skipped.fetch_add(1, Ordering::Relaxed);
                true
            }
            Err(TrySendError::Disconnected(_)) => false,
        });
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        let mut watchers = locked(&self.0.watchers);
        watchers.ended = true;
        watchers.all.clear();
    }
}

/// Lines of a stream, none longer than permitted.
struct Lines {
    stream: UnixStream,
    waiting: Vec<u8>,
    /// Bytes of `waiting` that hold no end of a line.
    searched: usize,
    line_max: usize,
}

impl Lines {
    fn new(stream: UnixStream, line_max: usize) -> Lines {
        Lines { stream, waiting: Vec::new(), searched: 0, line_max }
    }

    /// The next line without its end; nothing while none is complete within the stream's read timeout.
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut chunk = [0; 1 << 16];
        loop {
            if let Some(at) = memchr::memchr(b'\n', &self.waiting[self.searched..]) {
                let mut line: Vec<u8> = self.waiting.drain(..=self.searched + at).collect();
                line.pop();
                self.searched = 0;
                return Ok(Some(line));
            }
            self.searched = self.waiting.len();
            if self.waiting.len() > self.line_max {
                return Err(io::Error::other(format!("a line of more than {} bytes", self.line_max)));
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.waiting.extend_from_slice(&chunk[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// A connection to a running memtap.
pub(super) struct Client {
    stream: UnixStream,
    lines: Lines,
    /// How keys are shown there.
    pub(super) privacy: PrivacyMode,
    /// The machine.
    pub(super) host: String,
    /// The socket.
    pub(super) path: PathBuf,
}

impl Client {
    /// Connects; an answer for people where nobody listens.
    pub(super) fn connect(config: &ControlConfig) -> Result<Client, Failure> {
        let Some(path) = place(config) else {
            let text = "no control socket: control.socket is off, or XDG_RUNTIME_DIR is not set";
            return Err(Failure::new(Exit::Failure, text));
        };
        let failed = |error: String| {
            let advice = "is memtap run running, as this user and with the same control.socket?";
            Failure::new(Exit::Failure, format!("cannot ask {}: {error}; {advice}", path.display()))
        };
        let connected = UnixStream::connect(&path).and_then(|stream| {
            stream.set_read_timeout(Some(LOOK_EVERY))?;
            stream.set_write_timeout(Some(WRITE_MAX))?;
            let lines = Lines::new(stream.try_clone()?, ANSWER_BYTES_MAX);
            Ok((stream, lines))
        });
        let (stream, mut lines) = connected.map_err(|error| failed(error.to_string()))?;
        match answer(&mut lines, ANSWER_MAX).map_err(&failed)? {
            Answer::Hello { privacy, host, .. } => {
                let privacy = PrivacyMode::from_name(&privacy).unwrap_or(PrivacyMode::Hash);
                Ok(Client { stream, lines, privacy, host, path })
            }
            Answer::Error { text } => Err(failed(text)),
            _ => Err(failed("it does not say hello".to_string())),
        }
    }

    /// Asks once and waits for the answer. An error that is answered is an error.
    pub(super) fn ask(&mut self, request: &Request) -> Result<Answer, Failure> {
        let failed = |text: String| Failure::new(Exit::Failure, text);
        self.stream.write_all(&wire::encode(request)).map_err(|error| failed(error.to_string()))?;
        let patience = match request {
            Request::AddTarget(_) | Request::RemoveTarget { .. } => CHANGE_MAX,
            Request::Watch | Request::Targets => ANSWER_MAX,
        };
        match answer(&mut self.lines, patience).map_err(failed)? {
            Answer::Error { text } => Err(failed(text)),
            answer => Ok(answer),
        }
    }

    /// Passes every interval on, until `requests` says stop, nobody takes them any more, or the other end ends.
    pub(super) fn watch(mut self, frames: &Sender<Frame>, requests: &Requests) {
        let ended = self.pass_on(frames, requests);
        if let Err(error) = ended {
            tracing::warn!("the memtap at {} feeds this screen no longer: {error}", self.path.display());
        }
    }

    fn pass_on(&mut self, frames: &Sender<Frame>, requests: &Requests) -> Result<(), String> {
        self.stream.write_all(&wire::encode(Request::Watch)).map_err(|error| error.to_string())?;
        while !requests.must_stop() {
            let Some(line) = self.lines.next().map_err(|error| words(&error))? else { continue };
            match wire::decode(&line)? {
                Answer::Interval(interval) => {
                    if frames.send(wire::read_interval(*interval)?).is_err() {
                        return Ok(());
                    }
                }
                Answer::Skipped { intervals } => {
                    tracing::warn!(
                        "this screen was too slow for {intervals} intervals, which it did not get"
                    );
                }
                Answer::Error { text } => return Err(text),
                Answer::Hello { .. } | Answer::Targets { .. } | Answer::Changed { .. } => {}
            }
        }
        Ok(())
    }
}

fn words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "it has ended".to_string(),
        _ => error.to_string(),
    }
}

fn answer(lines: &mut Lines, patience: Duration) -> Result<Answer, String> {
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if let Some(line) = lines.next().map_err(|error| words(&error))? {
            return wire::decode(&line);
        }
    }
    Err("no answer comes".to_string())
}

//! Signals as flags: stop (TERM, INT), print now (USR1), reload (HUP).

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Longest that a thread sleeps which waits for something else than packets: a signal is heard within it. Each wake-up of an idle
/// thread costs some ten microseconds, so that four a second are hardly seen, and the tens that would hear sooner are.
pub(super) const HEARD_WITHIN: Duration = Duration::from_millis(250);

/// What the operator, or the end of the output, asks of the running program. Cheap to clone: all clones are one.
#[derive(Clone, Debug, Default)]
pub(super) struct Requests {
    stop: Arc<AtomicBool>,
    /// The operator asked to stop, rather than the program itself.
    interrupted: Arc<AtomicBool>,
    print: Arc<AtomicBool>,
    reload: Arc<AtomicBool>,
    /// Counts print requests, so that each worker answers each once.
    prints: Arc<AtomicU64>,
}

impl Requests {
    /// Listens to the signals of this process. A second INT or TERM ends it at once: an operator who asks twice means it.
    pub(super) fn from_signals() -> io::Result<Requests> {
        let requests = Requests::default();
        for signal in [SIGTERM, SIGINT] {
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&requests.stop))?;
            flag::register(signal, Arc::clone(&requests.stop))?;
            flag::register(signal, Arc::clone(&requests.interrupted))?;
        }
        flag::register(SIGUSR1, Arc::clone(&requests.print))?;
        flag::register(SIGHUP, Arc::clone(&requests.reload))?;
        Ok(requests)
    }

    /// Asks to stop.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether to stop.
    pub(super) fn must_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Whether a signal asked to stop.
    pub(super) fn was_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// Number of reports on demand that were asked for so far.
    pub(super) fn prints(&self) -> u64 {
        if self.print.swap(false, Ordering::Relaxed) {
            self.prints.fetch_add(1, Ordering::Relaxed);
        }
        self.prints.load(Ordering::Relaxed)
    }

    /// Whether a reload was asked for since the last call.
    pub(super) fn take_reload(&self) -> bool {
        self.reload.swap(false, Ordering::Relaxed)
    }
}

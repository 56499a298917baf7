//! Programs that a bench runs beside itself: whether they are there, what they spend, what they say, and that they end.

#![allow(dead_code, reason = "each program uses its own part")]

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long a program may take to get ready, or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program is at rest when it spent no more than this share of a processor between each of so many looks. An idle memtap wakes up some
/// tens of times a second, for tens of microseconds each.
const REST: f64 = 0.04;
const LOOKS: u32 = 3;
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Whether a program of that name is on the search path.
pub(crate) fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| {
        fs::metadata(folder.join(program))
            .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    })
}

/// A program that is ended with its owner, by its id.
pub(crate) struct Running {
    name: String,
    child: Child,
    output: File,
    errors: File,
}

/// What a program wrote until its end.
pub(crate) struct Said {
    pub(crate) output: String,
    pub(crate) errors: String,
}

impl Running {
    /// Starts it. What it writes goes to files without a name, which cost it no more than `/dev/null` does and whose readers cannot be late.
    pub(crate) fn start(name: &str, command: &mut Command) -> Running {
        let file = || tempfile::tempfile().expect("a folder for temporary files");
        let (output, errors) = (file(), file());
        let to = |file: &File| Stdio::from(file.try_clone().expect("a descriptor to spare"));
        let child = command.stdin(Stdio::null()).stdout(to(&output)).stderr(to(&errors)).spawn();
        let child = child.unwrap_or_else(|error| panic!("{name} cannot be started: {error}"));
        Running { name: name.to_owned(), child, output, errors }
    }

    /// Processor time so far of it and of the programs that it started (tshark has another one capture); zero when it has ended.
    pub(crate) fn processor_time(&self) -> Duration {
        processor_time(self.child.id())
    }

    /// Waits until it is ready by the given test, and until it has done what it does at first (memtap populates its tables).
    pub(crate) fn settle(&mut self, is_ready: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        let (mut looked, mut spent, mut at_rest) = (Instant::now(), self.processor_time(), 0);
        while at_rest < LOOKS {
            thread::sleep(LOOK_EVERY);
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("{} ended at once, {status}: {}", self.name, self.said().errors);
            }
            let (now, time) = (Instant::now(), self.processor_time());
            let share = time.saturating_sub(spent).as_secs_f64() / (now - looked).as_secs_f64();
            let is_ready = is_ready();
            at_rest = if share <= REST && is_ready { at_rest + 1 } else { 0 };
            (looked, spent) = (now, time);
            assert!(
                now < deadline,
                "{} does not get ready: ready: {is_ready}, spends {share:.3} of a processor: {}",
                self.name,
                self.said().errors
            );
        }
    }

    /// Ends it as its user would, with an interrupt, so that it says what it says at the end. Fails when it does.
    pub(crate) fn end(mut self) -> Said {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args(["-INT", &id]).status().expect("there is a kill");
        assert!(sent.success(), "{} ended before it was told to: {}", self.name, self.said().errors);
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match self.child.try_wait().expect("it is our child") {
                Some(status) => break status,
                None => assert!(Instant::now() < deadline, "{} does not end", self.name),
            }
            thread::sleep(Duration::from_millis(10));
        };
        let said = self.said();
        assert!(status.success(), "{} failed, {status}: {}", self.name, said.errors);
        said
    }

    fn said(&self) -> Said {
        let text = |mut file: &File| {
            let mut bytes = Vec::new();
            file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("a file that is open");
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Said { output: text(&self.output), errors: text(&self.errors) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Already gone is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Of all threads of a process, and of its children.
fn processor_time(process: u32) -> Duration {
    let tasks = || fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let nanos = tasks().filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    let children = tasks().filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let children: Vec<u32> = children
        .flat_map(|text| text.split(' ').filter_map(|id| id.trim().parse().ok()).collect::<Vec<_>>())
        .collect();
    Duration::from_nanos(nanos.sum()) + children.into_iter().map(processor_time).sum::<Duration>()
}

//! A terminal of its own for a test: a tmux server on a private socket, ended with the test.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::process::Command;
use std::time::{Duration, Instant};

/// One session of one window.
pub(crate) struct Tmux {
    folder: tempfile::TempDir,
}

impl Tmux {
    /// Starts a program in a terminal of this size.
    pub(crate) fn start(width: u16, height: u16, program: &[&str]) -> Tmux {
        let tmux = Tmux { folder: tempfile::tempdir().expect("a folder for the socket") };
        let (width, height) = (width.to_string(), height.to_string());
        let mut arguments = vec!["-f", "/dev/null", "new-session", "-d", "-x", &width, "-y", &height, "--"];
        arguments.extend(program);
        tmux.run(&arguments);
        tmux
    }

    /// Types keys, by tmux's names for them.
    pub(crate) fn keys(&self, keys: &[&str]) {
        let mut arguments = vec!["send-keys"];
        arguments.extend(keys);
        self.run(&arguments);
    }

    /// What is on the screen.
    pub(crate) fn screen(&self) -> String {
        self.run(&["capture-pane", "-p"])
    }

    /// A figure of tmux's about the window.
    pub(crate) fn ask(&self, format: &str) -> String {
        self.run(&["display-message", "-p", format]).trim().to_string()
    }

    /// The screen, once it is as wanted.
    pub(crate) fn wait_for(&self, patience: Duration, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + patience;
        loop {
            let screen = self.screen();
            if wanted(&screen) {
                return screen;
            }
            assert!(Instant::now() < deadline, "the screen never became what was wanted:\n{screen}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Opens what is under the cursor, and waits for rows below this title. On a busy machine a second may be without rows: then there is
    /// nothing to open, nor to see.
    pub(crate) fn open(&self, title: &str, patience: Duration) -> String {
        // Long enough that a key which did open something is not pressed again: that would open the next thing.
        const HEED_MAX: Duration = Duration::from_secs(5);
        let (deadline, mut pressed) = (Instant::now() + patience, None);
        while !self.screen().contains(title) {
            assert!(Instant::now() < deadline, "{title} is not opened:\n{}", self.screen());
            if pressed.is_none_or(|at: Instant| at.elapsed() > HEED_MAX) {
                self.keys(&["Enter"]);
                pressed = Some(Instant::now());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.wait_for(patience, |screen| !first_words(screen, title).is_empty())
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = Command::new("tmux")
            .arg("-S")
            .arg(self.folder.path().join("socket"))
            .args(arguments)
            .env_remove("TMUX")
            .env("TERM", "screen-256color")
            .env("LC_ALL", "C.UTF-8")
            .env("NO_COLOR", "1")
            .output()
            .expect("tests of the live screen need tmux");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "tmux {arguments:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        // Ends the server on this socket and what runs in it; already gone is fine.
        let socket = self.folder.path().join("socket");
        let _ = Command::new("tmux").arg("-S").arg(socket).arg("kill-server").output();
    }
}

/// The first words of the rows of the table that is on the screen.
pub(crate) fn first_words(screen: &str, title: &str) -> Vec<String> {
    let rows = screen.lines().skip_while(|line| !line.starts_with(title)).skip(1);
    let words = rows.map_while(|line| line.split_whitespace().next());
    words.filter(|word| *word != "?").map(str::to_string).collect()
}

//! Gives up, for good, everything that a running capture does not need.
//!
//! Promises that after [`enter`] this process and every thread it starts hold no capability, cannot regain any, leave no core
//! dump, and can neither open files, start programs, connect, nor make sockets (rtnetlink sockets for questions about
//! interfaces apart). A forbidden call fails with `EPERM`; it kills nobody. What is open stays usable: a packet ring works on,
//! takes new filters, and is bound to other interfaces, and a packet socket opened before can be given its ring after.
//!
//! Leaves out: whoever holds a packet socket that is bound can send packets with it, and the kernel has no means to forbid it.
//! Choosing what to open beforehand is the caller's task, and so is reading files once that are read lazily elsewhere (time
//! zones, the number of processors).
//!
//! The order of the steps is that of their needs: each step takes away what an earlier one used.

mod calls;
mod paths;
mod user;

use crate::choices::choices;
use std::fmt;
use std::io;
use std::path::PathBuf;

use caps::{CapSet, CapsHashSet};
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread;

use user::User;

choices! {
    /// What to do where the kernel cannot do its part.
    SandboxMode {
        /// All of it, or an error.
        Strict = "strict",
        /// What the kernel offers; what is missing becomes a warning.
        BestEffort = "best-effort",
        /// No sandbox. The user is changed all the same, if one is named.
        Off = "off",
    }
}

#[expect(clippy::derivable_impls, reason = "the macro has the derives, and knows no default")]
impl Default for SandboxMode {
    fn default() -> SandboxMode {
        SandboxMode::BestEffort
    }
}

/// What is wanted of the sandbox.
#[derive(Clone, Debug, Default)]
pub struct SandboxOptions {
    /// What to do where the kernel cannot do its part.
    pub mode: SandboxMode,
    /// The user to become: a name of /etc/passwd or a number. Without one the user stays.
    pub user: Option<String>,
    /// Files that may still be opened for writing, and directories in which files may be made, replaced and deleted.
    /// A file that is open already needs no entry. Empty in the common case: then opening is refused altogether.
    pub writable_paths: Vec<PathBuf>,
    /// Files, and directories of files, that may still be opened for reading: that of the configuration, if it is to be
    /// reloaded. (A rule holds for a file itself and not for its successor of the same name, so name the directory.)
    pub readable_paths: Vec<PathBuf>,
}

/// What is in force. Its text is the line for the start-up log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxReport {
    /// The mode that was asked for.
    pub mode: SandboxMode,
    /// Name of the user that the process now is, or its number.
    pub user: String,
    /// Whether the bounding set is empty as well. Emptying it takes CAP_SETPCAP, which a program with CAP_NET_RAW alone does
    /// not have; without new privileges (`no_new_privs`) the set allows nothing.
    pub bounding_set_empty: bool,
    /// Version of Landlock whose restrictions hold; nothing where the kernel has none.
    pub landlock_abi: Option<u32>,
    /// Number of system calls that are permitted, some of them for certain arguments only; nothing where there is no filter.
    pub seccomp_calls: Option<usize>,
    /// What the operator should know, one line each.
    pub warnings: Vec<String>,
}

impl fmt::Display for SandboxReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.mode == SandboxMode::Off {
            return write!(f, "sandbox: off, user {}", self.user);
        }
        f.write_str("sandbox: capabilities none, ")?;
        match self.landlock_abi {
            Some(abi) => write!(f, "landlock ABI {abi}, ")?,
            None => f.write_str("no landlock, ")?,
        }
        match self.seccomp_calls {
            Some(calls) => write!(f, "seccomp {calls} calls, ")?,
            None => f.write_str("no seccomp, ")?,
        }
        write!(f, "user {}", self.user)
    }
}

/// Why the sandbox could not be entered. Some privileges may be gone by then: the process is to end.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// There is no such user.
    #[error("there is no user \"{name}\" in /etc/passwd: create it, or name another one in capture.user")]
    UnknownUser {
        /// The name that was given.
        name: String,
    },
    /// /etc/passwd cannot be read.
    #[error("cannot look up user \"{name}\" in /etc/passwd: {source}; name its number instead")]
    Passwd {
        /// The name that was given.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The user may not be changed.
    #[error("cannot become user \"{name}\": {source}; start as root, or leave capture.user empty")]
    BecomeUser {
        /// The name that was given.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// Threads are running, to which some of the steps would not apply.
    #[error(
        "the sandbox was entered with {threads} threads running instead of one; please report this as a bug"
    )]
    Threads {
        /// Threads of the process.
        threads: usize,
    },
    /// A path that must stay accessible is not.
    #[error(
        "user {user} cannot {access} {path}: {source}; give that user the right to, or choose another path"
    )]
    Path {
        /// The user that the process has become.
        user: String,
        /// "read" or "write".
        access: &'static str,
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A step that every kernel knows was refused.
    #[error("cannot give up privileges: {step} failed: {reason}")]
    Step {
        /// The step.
        step: &'static str,
        /// Why.
        reason: String,
    },
    /// The kernel cannot do its part, and the mode is strict.
    #[error("the sandbox is incomplete: {missing}; use --sandbox best-effort to go on without")]
    Missing {
        /// What is missing, and why.
        missing: String,
    },
}

impl SandboxError {
    fn step(step: &'static str, reason: impl fmt::Display) -> SandboxError {
        SandboxError::Step { step, reason: reason.to_string() }
    }
}

/// Enters the sandbox. To be called by the main thread, when everything is open that will be used, and before any other thread
/// is started: threads inherit what their parent has given up.
pub fn enter(options: &SandboxOptions) -> Result<SandboxReport, SandboxError> {
    let new_user = options.user.as_deref().map(User::find).transpose()?;
    require_one_thread()?;
    let mut report = SandboxReport {
        mode: options.mode,
        user: new_user.as_ref().map_or_else(user::current_name, |user| user.name.clone()),
        bounding_set_empty: false,
        landlock_abi: None,
        seccomp_calls: None,
        warnings: Vec::new(),
    };
    if options.mode == SandboxMode::Off {
        if let Some(user) = &new_user {
            user.become_it()?;
        }
        return Ok(report);
    }
    // Found while we may still look everywhere; used when we may not.
    let rules = paths::Rules::find(options, &report.user)?;
    report.bounding_set_empty = empty_outer_sets()?;
    if let Some(user) = &new_user {
        user.become_it()?;
    }
    empty_inner_sets()?;
    forbid_gains_and_dumps()?;
    // As the user we are now: whoever takes away its own rights should learn it at once.
    rules.check_access(&report.user)?;

    match rules.enforce()? {
        Ok(abi) => report.landlock_abi = Some(abi),
        Err(missing) => report.lacks(missing)?,
    }
    if report.landlock_abi.is_none() && (rules.may_read() || rules.may_write()) {
        report.warnings.push(format!("files are guarded by the rights of user {} only", report.user));
    }
    match calls::enforce(rules.may_read(), rules.may_write())? {
        Ok(calls) => report.seccomp_calls = Some(calls),
        Err(missing) => report.lacks(missing)?,
    }
    Ok(report)
}

impl SandboxReport {
    /// A kernel feature is missing.
    fn lacks(&mut self, missing: String) -> Result<(), SandboxError> {
        match self.mode {
            SandboxMode::Strict => Err(SandboxError::Missing { missing }),
            SandboxMode::BestEffort | SandboxMode::Off => {
                self.warnings.push(missing);
                Ok(())
            }
        }
    }
}

/// Capabilities and Landlock belong to a thread, so threads that run already would keep theirs.
fn require_one_thread() -> Result<(), SandboxError> {
    // Without /proc nothing can be said; the caller's promise has to do.
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads > 1 { Err(SandboxError::Threads { threads }) } else { Ok(()) }
}

/// Empties the ambient and the bounding set; says whether the latter is empty now. Before the change of user, which takes away
/// the capability that this needs.
fn empty_outer_sets() -> Result<bool, SandboxError> {
    if caps::runtime::ambient_set_supported().is_ok() {
        caps::clear(None, CapSet::Ambient).map_err(|error| SandboxError::step("the ambient set", error))?;
    }
    Ok(caps::clear(None, CapSet::Bounding).is_ok())
}

/// Empties what is left: inheritable, permitted, effective.
fn empty_inner_sets() -> Result<(), SandboxError> {
    for (set, name) in [
        (CapSet::Inheritable, "the inheritable set"),
        (CapSet::Effective, "the effective set"),
        (CapSet::Permitted, "the permitted set"),
    ] {
        caps::clear(None, set).map_err(|error| SandboxError::step(name, error))?;
        let left: CapsHashSet = caps::read(None, set).map_err(|error| SandboxError::step(name, error))?;
        assert!(left.is_empty(), "the kernel keeps {left:?} in {name}");
    }
    Ok(())
}

/// No program that is run gains privileges, nobody traces us, no core holds keys.
fn forbid_gains_and_dumps() -> Result<(), SandboxError> {
    thread::set_no_new_privs(true).map_err(|error| SandboxError::step("no_new_privs", error))?;
    // A core that goes to a program through a pipe is not bounded by the limit, so both.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| SandboxError::step("forbidding core dumps", error))?;
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(Resource::Core, none)
        .map_err(|error| SandboxError::step("the limit of core dumps", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_one_line() {
        let mut report = SandboxReport {
            mode: SandboxMode::Strict,
            user: "nobody".to_owned(),
            bounding_set_empty: true,
            landlock_abi: Some(6),
            seccomp_calls: Some(41),
            warnings: Vec::new(),
        };
        let line = "sandbox: capabilities none, landlock ABI 6, seccomp 41 calls, user nobody";
        assert_eq!(report.to_string(), line);
        (report.landlock_abi, report.seccomp_calls) = (None, None);
        assert_eq!(report.to_string(), "sandbox: capabilities none, no landlock, no seccomp, user nobody");
        report.mode = SandboxMode::Off;
        assert_eq!(report.to_string(), "sandbox: off, user nobody");
    }

    #[test]
    fn a_process_with_threads_is_refused() {
        // libtest has a thread beside this one.
        let refused = enter(&SandboxOptions::default());
        assert!(matches!(refused, Err(SandboxError::Threads { threads: 2.. })), "{refused:?}");
    }

    #[test]
    fn modes_have_names() {
        for &name in SandboxMode::NAMES {
            assert_eq!(SandboxMode::from_name(name).map(SandboxMode::name), Some(name));
        }
    }
}

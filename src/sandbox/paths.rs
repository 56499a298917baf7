//! Which files stay within reach: none but those named, by Landlock.
//!
//! Landlock also forbids TCP connections and listening, signals to other processes, and abstract Unix sockets outside, where
//! the kernel has it. The seccomp filter forbids most of that as well; the two do not lean on one another.

use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use rustix::fs::Access as Wanted;

use super::{SandboxError, SandboxOptions};

/// The version whose restrictions we ask for (Linux 6.12); an older kernel gives what it has. Each version adds kinds of access
/// that are forbidden, so a newer one goes in with a test on a kernel that has it.
const ABI_WANTED: ABI = ABI::V6;

/// For what a path stays accessible.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Read,
    Write,
}

struct Rule {
    path: PathBuf,
    /// The path as it was found, whatever is put in its place later.
    fd: PathFd,
    is_directory: bool,
    used_for: Use,
}

/// The paths that stay accessible.
pub(super) struct Rules(Vec<Rule>);

impl Rules {
    /// Looks the paths up. `user` is the name to blame.
    pub(super) fn find(options: &SandboxOptions, user: &str) -> Result<Rules, SandboxError> {
        let read = options.readable_paths.iter().map(|path| (path, Use::Read));
        let write = options.writable_paths.iter().map(|path| (path, Use::Write));
        read.chain(write)
            .map(|(path, used_for)| {
                let failed = |source| failure(user, path, used_for, source);
                let is_directory = std::fs::metadata(path).map_err(failed)?.is_dir();
                let fd = PathFd::new(path).map_err(|error| failed(std::io::Error::other(error)))?;
                Ok(Rule { path: path.clone(), fd, is_directory, used_for })
            })
            .collect::<Result<_, _>>()
            .map(Rules)
    }

    /// Whether anything may be read.
    pub(super) fn may_read(&self) -> bool {
        self.0.iter().any(|rule| rule.used_for == Use::Read)
    }

    /// Whether anything may be written.
    pub(super) fn may_write(&self) -> bool {
        self.0.iter().any(|rule| rule.used_for == Use::Write)
    }

    /// Whether the user that we are now has the ordinary rights to the paths.
    pub(super) fn check_access(&self, user: &str) -> Result<(), SandboxError> {
        for rule in &self.0 {
            let wanted = match (rule.used_for, rule.is_directory) {
                (Use::Read, false) => Wanted::READ_OK,
                (Use::Read, true) => Wanted::EXEC_OK,
                (Use::Write, false) => Wanted::WRITE_OK,
                (Use::Write, true) => Wanted::WRITE_OK | Wanted::EXEC_OK,
            };
            rustix::fs::access(&rule.path, wanted)
                .map_err(|error| failure(user, &rule.path, rule.used_for, error.into()))?;
        }
        Ok(())
    }

    /// Forbids the rest. Says which version is in force, or what is missing.
    pub(super) fn enforce(&self) -> Result<Result<u32, String>, SandboxError> {
        let status = self.restrict().map_err(|error| SandboxError::step("Landlock", error))?;
        if status.ruleset == RulesetStatus::NotEnforced {
            return Ok(Err(match status.landlock {
                LandlockStatus::NotEnabled => {
                    "Landlock is switched off: add it to the kernel's lsm= parameter".into()
                }
                _ => "the kernel has no Landlock (it came with Linux 5.13)".into(),
            }));
        }
        Ok(Ok(match status.landlock {
            LandlockStatus::Available { effective_abi, .. } => effective_abi.min(ABI_WANTED) as u32,
            LandlockStatus::NotEnabled | LandlockStatus::NotImplemented => 0,
        }))
    }

    fn restrict(&self) -> Result<landlock::RestrictionStatus, RulesetError> {
        let mut ruleset = Ruleset::default()
            .handle_access(AccessFs::from_all(ABI_WANTED))?
            .handle_access(AccessNet::from_all(ABI_WANTED))?
            .scope(Scope::from_all(ABI_WANTED))?
            .create()?;
        for rule in &self.0 {
            ruleset = ruleset.add_rule(PathBeneath::new(&rule.fd, rule.access()))?;
        }
        ruleset.restrict_self()
    }
}

impl Rule {
    /// Enough to read a file, or to write a new one and put it in the place of the old; no making of anything but files.
    fn access(&self) -> BitFlags<AccessFs> {
        match (self.used_for, self.is_directory) {
            (Use::Read, _) => AccessFs::ReadFile.into(),
            (Use::Write, false) => AccessFs::WriteFile | AccessFs::Truncate,
            (Use::Write, true) => {
                AccessFs::WriteFile | AccessFs::Truncate | AccessFs::MakeReg | AccessFs::RemoveFile
            }
        }
    }
}

fn failure(user: &str, path: &std::path::Path, used_for: Use, source: std::io::Error) -> SandboxError {
    let access = match used_for {
        Use::Read => "read",
        Use::Write => "write",
    };
    SandboxError::Path { user: user.to_owned(), access, path: path.to_owned(), source }
}

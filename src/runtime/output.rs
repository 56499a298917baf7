//! Where reports go: standard output, a file that grows, or a file that is replaced as a whole. A closed pipe is a quiet end.

use crate::config::OutMode;
use crate::runtime::progress;
use rustix::fs::{AtFlags, Mode, OFlags};
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Bytes that gather before they are written: most reports in one call.
const BUFFER_BYTES: usize = 1 << 16;

/// Why nothing more can be written.
#[derive(Debug)]
pub(super) enum OutputEnd {
    /// The reader went away: a quiet success.
    ClosedPipe,
    /// Anything else: exit code 74.
    Failed(io::Error),
}

impl From<io::Error> for OutputEnd {
    fn from(error: io::Error) -> OutputEnd {
        if error.kind() == io::ErrorKind::BrokenPipe {
            OutputEnd::ClosedPipe
        } else {
            OutputEnd::Failed(error)
        }
    }
}

/// A report's destination. Every report is written out when it is complete.
pub(super) enum Output {
    /// Standard output, or a file that grows.
    Stream(BufWriter<Box<dyn Write + Send>>),
    /// A file that holds the newest report only.
    Replaced(ReplacedFile),
}

impl Output {
    /// Standard output, or `path` in the way of `mode`.
    pub(super) fn open(path: Option<&Path>, mode: OutMode) -> io::Result<Output> {
        let writer: Box<dyn Write + Send> = match (path, mode) {
            (None, _) => Box::new(io::stdout()),
            // The kernel appends each write at the end of the file, wherever a rotation has put that.
            (Some(path), OutMode::Append) => {
                Box::new(OpenOptions::new().append(true).create(true).open(path)?)
            }
            (Some(path), OutMode::Replace) => return ReplacedFile::open(path).map(Output::Replaced),
        };
        Ok(Output::Stream(BufWriter::with_capacity(BUFFER_BYTES, writer)))
    }

    /// Standard output.
    pub(super) fn standard() -> Output {
        Output::Stream(BufWriter::with_capacity(BUFFER_BYTES, Box::new(io::stdout())))
    }

    /// Whether each report begins a file of its own, and so needs whatever stands at the head of one.
    pub(super) fn begins_anew(&self) -> bool {
        matches!(self, Output::Replaced(_))
    }

    /// Writes one report as a whole.
    pub(super) fn write(
        &mut self,
        report: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), OutputEnd> {
        match self {
            Output::Stream(writer) => progress::undisturbed(|| {
                report(writer)?;
                writer.flush()
            })?,
            Output::Replaced(file) => file.replace(report)?,
        }
        Ok(())
    }
}

/// Whether the file at `path` holds something already, so that what stands at the head of one is there.
pub(super) fn has_content(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0)
}

/// Whether reports go to a terminal.
pub(super) fn is_terminal(path: Option<&Path>) -> bool {
    path.is_none() && io::stdout().is_terminal()
}

/// A file whose readers always see one whole report: each is written beside it, brought to the disk, and renamed over it.
///
/// The directory is held open, so that it stays the same one whatever happens to its name, and so that a sandbox needs to
/// permit nothing outside it.
pub(super) struct ReplacedFile {
    directory: OwnedFd,
    name: OsString,
    /// Where the next report is written; a name that no other process of this machine uses.
    draft: OsString,
}

impl ReplacedFile {
    fn open(path: &Path) -> io::Result<ReplacedFile> {
        let path = behind_links(path)?;
        if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
            // Renaming over a device or a pipe would take it away from everybody.
            return Err(io::Error::other(
                "not a regular file, which cannot be replaced; use --out-mode append",
            ));
        }
        let name = path.file_name().ok_or_else(|| io::Error::other("not the name of a file"))?.to_os_string();
        let directory =
            rustix::fs::open(directory_of(&path), OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let mut draft = OsString::from(".");
        draft.push(&name);
        draft.push(format!(".{}.draft", std::process::id()));
        let file = ReplacedFile { directory, name, draft };
        // Whether files can be made here is better known now than at the end of the first interval.
        drop(file.create()?);
        file.discard();
        Ok(file)
    }

    fn create(&self) -> io::Result<File> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let create =
            |name: &OsStr| rustix::fs::openat(&self.directory, name, flags, Mode::from_raw_mode(0o666));
        match create(&self.draft) {
            // Left behind by a process that had our number and was killed.
            Err(rustix::io::Errno::EXIST) => {
                self.discard();
                Ok(File::from(create(&self.draft)?))
            }
            created => Ok(File::from(created?)),
        }
    }

    fn discard(&self) {
        // What cannot be deleted is no loss of figures, and the next report deletes it.
        rustix::fs::unlinkat(&self.directory, &self.draft, AtFlags::empty()).ok();
    }

    fn replace(&self, report: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        let written = self.create().and_then(|file| {
            let mut writer = BufWriter::with_capacity(BUFFER_BYTES, file);
            report(&mut writer)?;
            // Before the name points to it: after a crash there is the old report or the new one, and never half of one.
            writer.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
            Ok(rustix::fs::renameat(&self.directory, &self.draft, &self.directory, &self.name)?)
        });
        if written.is_err() {
            self.discard();
        }
        written
    }
}

/// The directory in which `path` is replaced.
pub(super) fn replaced_in(path: &Path) -> PathBuf {
    directory_of(&behind_links(path).unwrap_or_else(|_| path.to_path_buf()))
}

/// A link stays a link: what it points to is replaced.
fn behind_links(path: &Path) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(path.to_path_buf()),
        found => found,
    }
}

/// The directory that a file lies in.
fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn names(directory: &Path) -> Vec<OsString> {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_replaced_file_holds_the_newest_report_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report");
        let mut output = Output::open(Some(&path), OutMode::Replace).unwrap();
        assert!(output.begins_anew() && !path.exists());
        for text in ["first and long", "second"] {
            output.write(|out| out.write_all(text.as_bytes())).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        let reader = File::open(&path).unwrap();
        output.write(|out| out.write_all(b"third")).unwrap();
        // Whoever reads while we write reads a whole report.
        assert_eq!(io::read_to_string(reader).unwrap(), "second");
        assert_eq!(names(folder.path()), ["report"]);
    }

    #[test]
    fn a_report_that_fails_leaves_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report");
        fs::write(&path, "before").unwrap();
        let mut output = Output::open(Some(&path), OutMode::Replace).unwrap();
        let failed = output.write(|out| {
            out.write_all(b"half of a rep")?;
            Err(io::Error::other("no more"))
        });
        assert!(matches!(failed, Err(OutputEnd::Failed(_))), "{failed:?}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "before");
        assert_eq!(names(folder.path()), ["report"]);
    }

    #[test]
    fn a_draft_left_behind_is_no_obstacle_and_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("report"), folder.path().join("other"));
        fs::write(&other, "not ours").unwrap();
        let draft = folder.path().join(format!(".report.{}.draft", std::process::id()));
        symlink(&other, &draft).unwrap();
        let mut output = Output::open(Some(&path), OutMode::Replace).unwrap();
        symlink(&other, &draft).unwrap();
        output.write(|out| out.write_all(b"ours")).unwrap();
        assert_eq!(fs::read_to_string(&other).unwrap(), "not ours");
        assert_eq!(fs::read_to_string(&path).unwrap(), "ours");
    }

    #[test]
    fn links_are_kept_and_devices_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("report"), folder.path().join("link"));
        fs::write(&path, "").unwrap();
        symlink(&path, &link).unwrap();
        Output::open(Some(&link), OutMode::Replace).unwrap().write(|out| out.write_all(b"new")).unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        for path in ["/dev/null", "/"] {
            assert!(Output::open(Some(Path::new(path)), OutMode::Replace).is_err(), "{path}");
        }
    }

    #[test]
    fn appending_keeps_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report");
        for text in ["one\n", "two\n"] {
            assert_eq!(has_content(&path), text != "one\n");
            Output::open(Some(&path), OutMode::Append)
                .unwrap()
                .write(|out| out.write_all(text.as_bytes()))
                .unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n");
    }
}

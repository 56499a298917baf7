//! Where reports go: standard output or a file, with a closed pipe as a quiet end.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

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

/// A report's destination. Every report is flushed when it is complete.
pub(super) struct Output {
    writer: BufWriter<Box<dyn Write + Send>>,
}

impl Output {
    /// Standard output, or `path`, which is created anew.
    pub(super) fn open(path: Option<&PathBuf>) -> io::Result<Output> {
        let writer: Box<dyn Write + Send> = match path {
            Some(path) => Box::new(File::create(path)?),
            None => Box::new(io::stdout()),
        };
        Ok(Output { writer: BufWriter::with_capacity(1 << 16, writer) })
    }

    /// Writes one report and flushes it.
    pub(super) fn write(
        &mut self,
        report: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), OutputEnd> {
        report(&mut self.writer)?;
        self.writer.flush()?;
        Ok(())
    }
}

//! What is wrong with a configuration, and where: file, line, column, a caret under the value, what is allowed.

use std::fmt;
use std::ops::Range;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// The configuration file, at this line.
    File {
        /// Name of the file.
        file: String,
        /// Line, counted from 1.
        line: usize,
    },
    /// An environment variable.
    Environment(String),
    /// A flag of the command line.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { file, line } => write!(f, "{file}:{line}"),
            Origin::Environment(name) => write!(f, "environment {name}"),
            Origin::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// Everything that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// At least one problem, in the order of their places.
    pub problems: Vec<Problem>,
}

impl ConfigError {
    /// Whether the command line is to blame (exit code 2) rather than file or environment (78).
    pub fn is_usage(&self) -> bool {
        self.problems.iter().all(|problem| matches!(problem.place, Place::Flag(_)))
    }
}

impl From<Problem> for ConfigError {
    fn from(problem: Problem) -> ConfigError {
        ConfigError { problems: vec![problem] }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong, naming key and value.
    pub message: String,
    /// Where.
    pub place: Place,
    /// What is allowed, or what was probably meant.
    pub help: Option<String>,
}

/// Where a problem is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The file as a whole: it cannot be read.
    WholeFile(String),
    /// Some bytes of the file.
    File(Spot),
    /// An environment variable.
    Environment(String),
    /// A flag.
    Flag(String),
}

/// Some bytes of a file, with the line that they stand in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spot {
    /// Name of the file.
    pub file: String,
    /// Line, counted from 1.
    pub line: usize,
    /// Column in characters, counted from 1.
    pub column: usize,
    /// The line, control characters replaced by blanks.
    pub text: String,
    /// Characters to mark.
    pub marked: usize,
}

impl Spot {
    /// The place of `span` in `text`. Of a span over several lines, its first line is shown.
    pub(super) fn new(file: &str, text: &str, span: Range<usize>) -> Spot {
        let start = floor_boundary(text, span.start);
        let end = floor_boundary(text, span.end).max(start);
        let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |newline| start + newline);
        let printable = |character: char| if character.is_control() { ' ' } else { character };
        Spot {
            file: file.to_string(),
            line: text[..start].matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            text: text[line_start..line_end].chars().map(printable).collect(),
            marked: text[start..end.min(line_end)].chars().count().max(1),
        }
    }
}

fn floor_boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::WholeFile(file) => write!(f, "{file}: {}", self.message)?,
            Place::Environment(name) => write!(f, "environment {name}: {}", self.message)?,
            Place::Flag(flag) => write!(f, "{flag}: {}", self.message)?,
            Place::File(spot) => {
                let margin = " ".repeat(spot.line.to_string().len());
                let indent = " ".repeat(spot.column - 1);
                writeln!(f, "{}:{}:{}: {}", spot.file, spot.line, spot.column, self.message)?;
                writeln!(f, "{margin} |")?;
                writeln!(f, "{} | {}", spot.line, spot.text)?;
                write!(f, "{margin} | {indent}{}", "^".repeat(spot.marked))?;
            }
        }
        match &self.help {
            Some(help) => write!(f, "\n  = {help}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spots_count_lines_and_columns() {
        let spot = Spot::new("f", "a = 1\nü = \"x\"\n", 11..14);
        assert_eq!((spot.line, spot.column, spot.marked), (2, 5, 3));
        assert_eq!(Spot::new("f", "", 9..12).marked, 1);
    }
}

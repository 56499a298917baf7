//! Aligned text for a terminal. Columns go by priority where it is narrow, keys are shortened in their middle, figures are
//! never touched: a line longer than the terminal is better than a wrong number.

use super::contents::{Contents, loss_share};
use super::escape::shorten;
use super::sections::{self, Cell, Column, List, Section, Table, Tone};
use anstyle::{AnsiColor, Style};
use std::io::{self, Write};

/// Blanks between columns.
const GAP: usize = 2;
/// A key keeps this much of itself before any column goes.
const KEY_WIDTH_MIN: usize = 20;
/// And this much when no more columns can go.
const KEY_WIDTH_LAST: usize = 8;
/// What stands between the items of a list.
const SEPARATOR: &str = " · ";

const TITLE: Style = Style::new().bold();
const HEADING: Style = Style::new().bold().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Cyan)));
const WARNING: Style = Style::new().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Yellow)));
const LOSS: Style = Style::new().bold().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Red)));

/// Writes the block of one target.
pub(super) fn write(out: &mut impl Write, contents: &Contents<'_>) -> io::Result<()> {
    let screen = Screen { width: contents.options.width, color: contents.options.color };
    let lossy = loss_share(contents.snapshot).0 > 0;
    let heading_style = if lossy { LOSS } else { HEADING };
    screen.wrapped(out, &sections::heading(contents), "  ", 0, heading_style)?;
    if let Some(merged) = contents.merged() {
        screen.wrapped(out, &words(&merged.heading()), " ", 2, Style::new())?;
    }
    if let Some(filter) = &contents.options.filter {
        let text =
            format!("filter {} (rows only: totals, commands and losses are of all traffic)", filter.shown());
        screen.line(out, &text, Style::new())?;
    }
    if contents.saw_nothing() {
        for line in sections::seen_elsewhere(contents) {
            screen.wrapped(out, &words(&line), " ", 2, WARNING)?;
        }
    }
    for section in sections::sections(contents) {
        screen.section(out, &section)?;
    }
    writeln!(out)
}

/// Writes the targets side by side.
pub(super) fn write_targets(out: &mut impl Write, all: &[Contents<'_>]) -> io::Result<()> {
    let Some(first) = all.first() else { return Ok(()) };
    let screen = Screen { width: first.options.width, color: first.options.color };
    screen.section(out, &sections::targets(all))?;
    writeln!(out)
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_string).collect()
}

#[derive(Clone, Copy)]
pub(crate) struct Screen {
    pub(crate) width: usize,
    pub(crate) color: bool,
}

impl Screen {
    fn line(self, out: &mut impl Write, text: &str, style: Style) -> io::Result<()> {
        let text = text.trim_end();
        if self.color && style != Style::new() {
            writeln!(out, "{style}{text}{style:#}")
        } else {
            writeln!(out, "{text}")
        }
    }

    /// Pieces in lines that fit, the later ones indented.
    fn wrapped(
        self,
        out: &mut impl Write,
        pieces: &[String],
        separator: &str,
        indent: usize,
        style: Style,
    ) -> io::Result<()> {
        let mut line = String::new();
        let mut used = false;
        for piece in pieces {
            let fits = width(&line) + width(separator) + width(piece) <= self.width;
            if used && !fits {
                self.line(out, &line, style)?;
                line = " ".repeat(indent);
                used = false;
            }
            if used {
                line.push_str(separator);
            }
            line.push_str(piece);
            used = true;
        }
        self.line(out, &line, style)
    }

    /// Writes a section.
    pub(crate) fn section(self, out: &mut impl Write, section: &Section<'_>) -> io::Result<()> {
        match section {
            Section::Table(table) => self.table(out, table),
            Section::List(list) => self.list(out, list),
        }
    }

    fn table(self, out: &mut impl Write, table: &Table<'_>) -> io::Result<()> {
        let layout = Layout::new(table, self.width);
        let names =
            table.columns.iter().map(|column| Cell::Figure(column.name.to_string())).collect::<Vec<_>>();
        self.line(out, &layout.line(&table.columns, &names), TITLE)?;
        for index in 0..table.rows {
            self.line(out, &layout.line(&table.columns, &(table.row)(index)), Style::new())?;
        }
        Ok(())
    }

    /// Labels in one column, their items behind them, wrapped.
    fn list(self, out: &mut impl Write, list: &List<'_>) -> io::Result<()> {
        let style = match list.tone {
            Tone::Plain => Style::new(),
            Tone::Warning => WARNING,
        };
        let longest = (0..list.rows).map(|index| natural(&(list.row)(index).0).0).max().unwrap_or(0);
        // A third of the terminal for labels leaves room for two items beside them.
        let label_width = longest.min((self.width / 3).max(KEY_WIDTH_LAST));
        self.line(out, list.title, TITLE)?;
        for index in 0..list.rows {
            let (label, items) = (list.row)(index);
            let label = pad(&fit(&label, label_width), label_width, false);
            let pieces: Vec<String> = match list.tone {
                // A sentence wraps between its words.
                Tone::Warning => items.iter().flat_map(|item| words(item)).collect(),
                Tone::Plain => items,
            };
            let separator = if list.tone == Tone::Warning { " " } else { SEPARATOR };
            let first = pieces.first().map(String::as_str).unwrap_or_default();
            let mut pieces_with_label = vec![format!("{label}  {first}")];
            pieces_with_label.extend(pieces.into_iter().skip(1));
            self.wrapped(out, &pieces_with_label, separator, label_width + GAP, style)?;
        }
        Ok(())
    }
}

/// Which columns are shown, and how wide.
pub(crate) struct Layout {
    /// Width of each column; `None` for those that had to go.
    widths: Vec<Option<usize>>,
}

impl Layout {
    /// For all rows of a table, on a terminal of `width` columns.
    pub(crate) fn new(table: &Table<'_>, width: usize) -> Layout {
        let mut wanted: Vec<(usize, usize)> =
            table.columns.iter().map(|column| (self::width(column.name), 0)).collect();
        for index in 0..table.rows {
            for (wanted, cell) in wanted.iter_mut().zip((table.row)(index)) {
                let (natural, rigid) = natural(&cell);
                *wanted = (wanted.0.max(natural), wanted.1.max(rigid));
            }
        }
        let names = table.columns.iter().map(|column| self::width(column.name));
        let columns = wanted.iter().zip(names).map(|(&(natural, rigid), name)| Room {
            natural,
            least: natural.min(rigid + KEY_WIDTH_MIN).max(name).max(rigid),
            last: natural.min(rigid + KEY_WIDTH_LAST).max(name).max(rigid),
        });
        let columns: Vec<Room> = columns.collect();
        let kept = keep(&table.columns, &columns, width);
        Layout { widths: distribute(&columns, &kept, width) }
    }

    /// A row's cells in their columns.
    pub(crate) fn line(&self, columns: &[Column], cells: &[Cell]) -> String {
        let mut line = String::new();
        for ((column, cell), width) in columns.iter().zip(cells).zip(&self.widths) {
            let Some(width) = *width else { continue };
            if !line.is_empty() {
                line.push_str(&" ".repeat(GAP));
            }
            line.push_str(&pad(&fit(cell, width), width, column.right));
        }
        line
    }
}

/// How wide a column would be, should at least be, and can be at the least.
#[derive(Clone, Copy)]
struct Room {
    natural: usize,
    least: usize,
    last: usize,
}

/// Drops columns, the greatest priority first, until the rest fits or nothing more may go.
fn keep(columns: &[Column], rooms: &[Room], width: usize) -> Vec<bool> {
    let mut kept = vec![true; columns.len()];
    while needed(rooms, &kept, |room| room.least) > width {
        let candidates = (0..columns.len()).filter(|&index| kept[index] && columns[index].priority > 0);
        let Some(victim) = candidates.max_by_key(|&index| columns[index].priority) else { break };
        kept[victim] = false;
    }
    kept
}

fn needed(rooms: &[Room], kept: &[bool], of: impl Fn(&Room) -> usize) -> usize {
    let widths = rooms.iter().zip(kept).filter(|(_, kept)| **kept).map(|(room, _)| of(room) + GAP);
    widths.sum::<usize>().saturating_sub(GAP)
}

/// Gives what is left to the columns that want more, first come first served.
fn distribute(rooms: &[Room], kept: &[bool], width: usize) -> Vec<Option<usize>> {
    let fits = needed(rooms, kept, |room| room.least) <= width;
    let start = |room: &Room| if fits { room.least } else { room.last };
    let mut left = width.saturating_sub(needed(rooms, kept, start));
    let widths = rooms.iter().zip(kept).map(|(room, kept)| {
        kept.then(|| {
            let more = left.min(room.natural.saturating_sub(start(room)));
            left -= more;
            start(room) + more
        })
    });
    widths.collect()
}

/// Width of a cell in full, and of the part that may not be shortened.
fn natural(cell: &Cell) -> (usize, usize) {
    match cell {
        Cell::Figure(text) => (width(text), width(text)),
        Cell::Key { text, suffix } => (width(text) + width(suffix), width(suffix)),
    }
}

/// The cell's text in at most `room` columns, unless its figures need more.
fn fit(cell: &Cell, room: usize) -> String {
    match cell {
        Cell::Figure(text) => text.clone(),
        Cell::Key { text, suffix } => {
            let room = room.saturating_sub(width(suffix)).max(1);
            format!("{}{suffix}", shorten(text, room))
        }
    }
}

fn pad(text: &str, room: usize, right: bool) -> String {
    let blanks = " ".repeat(room.saturating_sub(width(text)));
    if right { blanks + text } else { text.to_string() + &blanks }
}

/// Columns on the screen. Escaped text is ASCII, and the few signs of our own take one column each; names that the
/// operator chose in wide alphabets may take more, and cost only alignment.
fn width(text: &str) -> usize {
    text.chars().count()
}

//! Draws a state. Lines are the report's own: columns go by priority, keys are shortened in their middle, figures never;
//! what is hostile is escaped before it gets here, and the buffer takes no control character besides.

use super::keys::HELP;
use super::page::{Body, Rows, View};
use super::state::{Asks, State};
use crate::report::escape_name;
use crate::report::sections::{Cell, Section};
use crate::report::table::{Layout, Screen};
use crate::report::units;
use ratatui::Frame;
use ratatui::style::{Color, Modifier, Style};

/// What the last line says when it has nothing else to say.
const HINTS: &str = "? help  q quit  Enter deeper  Esc back  / filter  < > sort  r reverse  Space freeze  [ ] step  w window  e export";

/// Lines of findings that are shown above the rows; the view of the capture's health has all of them.
const NOTES_MAX: usize = 2;

/// Screens of fewer lines show one.
const LINES_FOR_NOTES: u16 = 30;

const PLAIN: Style = Style::new();
const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const SELECTED: Style = Style::new().add_modifier(Modifier::REVERSED);

/// Draws the state on the whole of a frame.
pub fn draw(frame: &mut Frame<'_>, state: &mut State) {
    let area = frame.area();
    if area.width == 0 || area.height == 0 {
        return;
    }
    let mut paper =
        Paper { frame, width: usize::from(area.width), line: 0, end: area.height - 1, color: state.color() };
    if state.shows_help() {
        return paper.help();
    }
    paper.above(state);
    state.set_height(paper.rows_left(&state.page().body));
    match &state.page().body {
        Body::Rows(rows) => paper.rows(rows, state),
        Body::Lists(_) => paper.lists(state),
    }
    paper.last_line(state);
}

/// A frame that is written on from the top.
struct Paper<'a, 'f> {
    frame: &'a mut Frame<'f>,
    width: usize,
    /// The next line.
    line: u16,
    /// The last line, which is for messages.
    end: u16,
    color: bool,
}

impl Paper<'_, '_> {
    fn put(&mut self, text: &str, style: Style) {
        if self.line < self.end {
            self.put_at(0, self.line, text, style);
            self.line += 1;
        }
    }

    fn put_at(&mut self, column: usize, line: u16, text: &str, style: Style) {
        let Ok(at) = u16::try_from(column) else { return };
        let room = self.width.saturating_sub(column);
        self.frame.buffer_mut().set_stringn(at, line, text, room, style);
    }

    fn colored(&self, style: Style, color: Color) -> Style {
        if self.color { style.fg(color) } else { style }
    }

    /// Everything above the rows.
    fn above(&mut self, state: &State) {
        let page = state.page();
        let style = match page.lossy {
            true => self.colored(BOLD, Color::Red),
            false => self.colored(BOLD, Color::Cyan),
        };
        for line in wrap(&page.heading, "  ", self.width, 2) {
            self.put(&line, style);
        }
        self.tabs(state);
        self.put(&order_line(state), PLAIN);
        let notes = if self.end < LINES_FOR_NOTES { 1 } else { NOTES_MAX };
        let warning = self.colored(PLAIN, Color::Yellow);
        for note in page.notes.iter().take(notes) {
            self.put(&cut(note, self.width), warning);
        }
        if page.notes.len() > notes && !matches!(state.view(), View::Health) {
            let health =
                View::TABS.iter().position(|(view, _)| *view == View::Health).map_or(0, |tab| tab + 1);
            let more = format!(" … {} more: {health}", page.notes.len() - notes);
            let at = self.width.saturating_sub(more.chars().count());
            let line = self.line.saturating_sub(1);
            self.put_at(at, line, &more, warning);
        }
    }

    /// The tabs at the left, how the figures stand to the present at the right: below, where there is no room beside.
    fn tabs(&mut self, state: &State) {
        let names =
            || View::TABS.iter().enumerate().map(|(index, (_, name))| format!("{} {name}", index + 1));
        // Two blanks between names where there is room, one where there is not.
        let roomy = names().map(|name| name.len() + 2).sum::<usize>() <= self.width;
        let (before, after) = if roomy { (" ", " ") } else { ("", " ") };
        let mut column = 0;
        for (index, name) in names().enumerate() {
            let style = if state.tab() == Some(index) { SELECTED } else { PLAIN };
            let text = format!("{before}{name}{after}");
            self.put_at(column, self.line, &text, style);
            column += text.len();
        }
        self.line += 1;
        let standing = state.standing().join(" · ");
        let at = self.width.saturating_sub(standing.chars().count());
        if at > column {
            self.put_at(at, self.line - 1, &standing, BOLD);
        } else {
            self.put(&standing, BOLD);
        }
    }

    fn rows_left(&self, body: &Body) -> usize {
        let names = usize::from(matches!(body, Body::Rows(_)));
        usize::from(self.end.saturating_sub(self.line)).saturating_sub(names)
    }

    fn rows(&mut self, rows: &Rows, state: &State) {
        let table = rows.table();
        let layout = Layout::new(&table, self.width);
        let names: Vec<Cell> =
            table.columns.iter().map(|column| Cell::Figure(column.name.to_string())).collect();
        self.put(&layout.line(&table.columns, &names), BOLD);
        let cursor = state.cursor();
        let shown = rows.cells.iter().enumerate().skip(cursor.top);
        for (index, cells) in shown {
            if self.line >= self.end {
                break;
            }
            let selected = index == cursor.index && !cursor.gone;
            let line = layout.line(&table.columns, cells);
            // The whole line, so that the selection is seen as one.
            let line = if selected { format!("{line:<width$}", width = self.width) } else { line };
            self.put(&line, if selected { SELECTED } else { PLAIN });
        }
    }

    fn lists(&mut self, state: &mut State) {
        let Body::Lists(lists) = &state.page().body else { return };
        let mut lines: Vec<(String, Style)> = Vec::new();
        for section in lists.sections() {
            let Section::List(list) = &section else { continue };
            let mut text = Vec::new();
            let screen = Screen { width: self.width, color: false };
            // Writing into memory does not fail.
            drop(screen.section(&mut text, &section));
            let text = String::from_utf8_lossy(&text).into_owned();
            let style = |line: &str| if line == list.title { BOLD } else { PLAIN };
            lines.extend(text.lines().map(|line| (line.to_string(), style(line))));
            lines.push((String::new(), PLAIN));
        }
        state.limit_scroll(lines.len());
        for (line, style) in lines.into_iter().skip(state.cursor().top) {
            self.put(&line, style);
        }
    }

    fn last_line(&mut self, state: &State) {
        let end = self.end;
        let (text, style) = match (state.prompt(), state.message()) {
            (_, Some(message)) => (escape_name(message), self.colored(BOLD, Color::Yellow)),
            (Some(prompt), None) => {
                let asks = match prompt.asks {
                    Asks::Filter => "filter: ",
                    Asks::Export => "export to: ",
                };
                // The end of a long line is where one types.
                let text = escape_name(&prompt.text);
                let room = self.width.saturating_sub(asks.len() + 1);
                let hidden = text.chars().count().saturating_sub(room);
                (format!("{asks}{}_", text.chars().skip(hidden).collect::<String>()), BOLD)
            }
            (None, None) => (HINTS.to_string(), PLAIN),
        };
        self.put_at(0, end, &text, style);
    }

    fn help(&mut self) {
        self.put("memtap top: keys", BOLD);
        self.put("", PLAIN);
        let width = HELP.iter().map(|(key, _)| key.chars().count()).max().unwrap_or(0);
        for (key, meaning) in HELP {
            self.put(&format!("{key:<width$}  {meaning}"), PLAIN);
        }
        let end = self.end;
        self.put_at(0, end, "any key goes on", PLAIN);
    }
}

/// Order, number of rows, what they are, filter.
fn order_line(state: &State) -> String {
    let order = state.order();
    let mut parts = Vec::new();
    parts.extend(state.page().title.clone());
    if let Body::Rows(rows) = &state.page().body {
        let direction = if order.reversed { "reversed" } else { "first" };
        parts.push(format!("{} {direction}", order.sort.name()));
        let (listed, held) = (rows.ids.len() as u64, rows.held as u64);
        parts.push(match listed == held {
            true if held == 1 => "1 row".to_string(),
            true => format!("{} rows", units::count(held)),
            false => format!("{} of {} rows", units::count(listed), units::count(held)),
        });
    }
    parts.extend(state.filter().map(|filter| format!("filter {filter}")));
    if state.cursor().gone {
        parts.push("the selected row is not in this interval".to_string());
    }
    parts.join(" · ")
}

/// Pieces in at most `lines` lines.
fn wrap(pieces: &[String], separator: &str, width: usize, lines: usize) -> Vec<String> {
    let mut wrapped: Vec<String> = Vec::new();
    for piece in pieces {
        match wrapped.last_mut() {
            Some(line) if line.chars().count() + separator.len() + piece.chars().count() <= width => {
                line.push_str(separator);
                line.push_str(piece);
            }
            _ => wrapped.push(piece.clone()),
        }
    }
    wrapped.truncate(lines);
    wrapped
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_string();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

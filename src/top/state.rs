//! What the live screen knows and how it answers: intervals and inputs in, a page and effects out. Pure.

use super::Frame;
use super::history::History;
use super::page::{Body, Order, Page, Question, RowId, View, export, page};
use crate::choices::choices;
use crate::config::Over;
use crate::report::{
    ClientView, Filter, OutputFormat, Privacy, PrivacyMode, ReportOptions, Sort, escape_name,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Longest line that can be typed.
const LINE_MAX: usize = 500;

/// Levels that Esc leads back through; deeper ones forget the oldest.
const TRAIL_MAX: usize = 32;

/// What the operator says, by key press.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Stop.
    Quit,
    /// Show the tab of this number, from 0.
    Show(usize),
    /// The next tab.
    NextView,
    /// The tab before.
    PreviousView,
    /// One row up.
    Up,
    /// One row down.
    Down,
    /// One screen up.
    PageUp,
    /// One screen down.
    PageDown,
    /// To the first row.
    First,
    /// To the last row.
    Last,
    /// One level deeper; or the line is complete.
    Enter,
    /// One level back; or never mind the line.
    Back,
    /// Sort by the next column.
    SortAfter,
    /// Sort by the column before.
    SortBefore,
    /// Reverse the order.
    Reverse,
    /// Ask for a filter.
    AskFilter,
    /// Show every row again.
    ClearFilter,
    /// Tell clients apart by IP, or by IP and port.
    ClientView,
    /// The next window.
    Window,
    /// The next target.
    NextTarget,
    /// The target before.
    PreviousTarget,
    /// Freeze, or go on.
    Freeze,
    /// One interval back.
    Older,
    /// One interval forward.
    Newer,
    /// Ask for the name of a file to export to.
    AskExport,
    /// Show or hide the help.
    Help,
    /// A character of a line.
    Type(char),
    /// Take back the last character of a line.
    Erase,
    /// Take back the whole line.
    EraseLine,
}

/// What the outside is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// End.
    Quit,
    /// Write a new file.
    Write {
        /// Its name.
        path: PathBuf,
        /// What is on the screen.
        contents: Vec<u8>,
    },
}

choices! {
    /// Where intervals come from.
    Source {
        /// An own capture.
        Capture = "live",
        /// A running `memtap run`.
        Attached = "attached",
        /// A recording.
        Recording = "recording",
    }
}

/// A line that is being asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// What for.
    pub asks: Asks,
    /// What was typed so far.
    pub text: String,
}

/// What a line is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    /// A filter.
    Filter,
    /// The name of a file to export to.
    Export,
}

/// The row of the selection, and the part of the rows that is on the screen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// What is selected; nothing until the operator moves: then the first row is.
    pub row: Option<RowId>,
    /// Where it is, or was last.
    pub index: usize,
    /// It is not among the rows any more.
    pub gone: bool,
    /// First row on the screen. Of lists: first line.
    pub top: usize,
}

/// Where one was before going a level deeper.
#[derive(Clone, Debug)]
struct Place {
    view: View,
    cursor: Cursor,
    target: Option<String>,
}

/// A frozen interval.
#[derive(Clone, Debug)]
struct Held {
    frame: Arc<Frame>,
    /// How many are newer.
    back: usize,
}

/// The live screen.
#[derive(Debug)]
pub struct State {
    options: ReportOptions,
    source: Source,
    /// The one that it is attached to feeds it no longer.
    has_ended: bool,
    /// How keys are shown; where intervals come from a daemon, it has seen to that.
    privacy: PrivacyMode,
    history: History,
    held: Option<Held>,
    view: View,
    trail: Vec<Place>,
    order: Order,
    target: Option<String>,
    cursor: Cursor,
    /// Rows that the screen has room for.
    height: usize,
    prompt: Option<Prompt>,
    message: Option<String>,
    help: bool,
    page: Page,
}

impl State {
    /// Before the first interval.
    pub fn new(options: ReportOptions, over: Over, source: Source) -> State {
        State {
            order: Order { sort: Sort::by(options.by), reversed: false },
            privacy: options.privacy.mode(),
            options,
            source,
            has_ended: false,
            history: History::new(over),
            held: None,
            view: View::Keys,
            trail: Vec::new(),
            target: None,
            cursor: Cursor::default(),
            height: 1,
            prompt: None,
            message: None,
            help: false,
            page: Page { heading: vec!["waiting for the first interval".to_string()], ..Page::default() },
        }
    }

    /// Keys arrive as they may be shown there. Where they arrive as they are, it is for us to mask them.
    #[must_use]
    pub fn with_keys_shown(mut self, privacy: PrivacyMode) -> State {
        if privacy != PrivacyMode::Full {
            self.privacy = privacy;
            self.options.privacy = Privacy::Full;
        }
        self
    }

    /// Takes a closed interval. What is frozen stays on the screen.
    pub fn take(&mut self, frame: Frame) {
        self.history.push(frame);
        match &mut self.held {
            Some(held) => held.back += 1,
            None => self.renew(),
        }
    }

    /// The screen has room for so many rows.
    pub fn set_height(&mut self, rows: usize) {
        self.height = rows.max(1);
        self.keep_in_sight();
    }

    /// Says something on the message line, until the next key press.
    pub fn say(&mut self, message: impl Into<String>) {
        self.message = Some(message.into());
    }

    /// Takes a key press.
    pub fn handle(&mut self, input: Input) -> Effect {
        self.message = None;
        if input == Input::Quit {
            return Effect::Quit;
        }
        if self.prompt.is_some() {
            return self.handle_line(input);
        }
        if self.help {
            self.help = false;
            return Effect::None;
        }
        match input {
            Input::Show(tab) => self.show(tab),
            Input::NextView => self.show((self.tab().unwrap_or(0) + 1) % View::TABS.len()),
            Input::PreviousView => {
                self.show((self.tab().unwrap_or(0) + View::TABS.len() - 1) % View::TABS.len());
            }
            Input::Up => self.go(self.place().saturating_sub(1)),
            Input::Down => self.go(self.place_below()),
            Input::PageUp => self.go(self.place().saturating_sub(self.height)),
            Input::PageDown => self.go(self.place().saturating_add(self.height)),
            Input::First => self.go(0),
            Input::Last => self.go(usize::MAX),
            Input::Enter => self.enter(),
            Input::Back => self.back(),
            Input::SortAfter => self.sort(1),
            Input::SortBefore => self.sort(Sort::ALL.len() - 1),
            Input::Reverse => {
                self.order.reversed = !self.order.reversed;
                self.renew();
            }
            Input::AskFilter => {
                let text = self.options.filter.as_ref().map(ToString::to_string).unwrap_or_default();
                self.prompt = Some(Prompt { asks: Asks::Filter, text });
            }
            Input::ClearFilter => self.set_filter(None),
            Input::ClientView => self.switch_client_view(),
            Input::Window => self.next_window(),
            Input::NextTarget => self.switch_target(1),
            Input::PreviousTarget => self.switch_target(usize::MAX),
            Input::Freeze => self.freeze(),
            Input::Older => self.step_back(),
            Input::Newer => self.step_forward(),
            Input::AskExport => {
                let text = format!("memtap-{}.md", self.view.name());
                self.prompt = Some(Prompt { asks: Asks::Export, text });
            }
            Input::Help => self.help = true,
            Input::Quit | Input::Type(_) | Input::Erase | Input::EraseLine => {}
        }
        Effect::None
    }

    fn handle_line(&mut self, input: Input) -> Effect {
        let Some(prompt) = &mut self.prompt else { return Effect::None };
        match input {
            Input::Type(character) if prompt.text.len() < LINE_MAX => prompt.text.push(character),
            Input::Erase => drop(prompt.text.pop()),
            Input::EraseLine => prompt.text.clear(),
            Input::Back => self.prompt = None,
            Input::Enter => {
                let (asks, text) = (prompt.asks, prompt.text.trim().to_string());
                return match asks {
                    Asks::Filter => self.take_filter(&text),
                    Asks::Export => self.take_export(&text),
                };
            }
            _ => {}
        }
        Effect::None
    }

    /// A single word is a regular expression for keys; anything longer is the grammar of `--filter`.
    fn take_filter(&mut self, text: &str) -> Effect {
        let parsed = match text {
            "" => Ok(None),
            word if !word.contains(char::is_whitespace) => format!("key ~ {word}").parse().map(Some),
            terms => terms.parse().map(Some),
        };
        match parsed {
            Ok(filter) => {
                self.prompt = None;
                self.set_filter(filter);
            }
            // The line stays, to be mended.
            Err(error) => self.say(escape_name(&error.message)),
        }
        Effect::None
    }

    fn take_export(&mut self, text: &str) -> Effect {
        let path = Path::new(text);
        let format = match path.extension().and_then(|extension| extension.to_str()) {
            Some("md") => OutputFormat::Markdown,
            Some("jsonl") => OutputFormat::Jsonl,
            _ => {
                self.say("name a file that ends in .md or .jsonl");
                return Effect::None;
            }
        };
        self.prompt = None;
        match export(&self.frame(), self.question(), format) {
            Ok(contents) => Effect::Write { path: path.to_path_buf(), contents },
            Err(error) => {
                self.say(format!("cannot export: {error}"));
                Effect::None
            }
        }
    }

    fn set_filter(&mut self, filter: Option<Filter>) {
        self.options.filter = filter;
        self.renew();
    }

    /// The tab that is shown, also beneath a drill-down.
    pub fn tab(&self) -> Option<usize> {
        let view = self.trail.first().map_or(&self.view, |place| &place.view);
        View::TABS.iter().position(|(tab, _)| tab == view)
    }

    fn show(&mut self, tab: usize) {
        let Some((view, _)) = View::TABS.get(tab) else { return };
        self.view = view.clone();
        self.trail.clear();
        self.cursor = Cursor::default();
        self.renew();
    }

    /// Where the selection is; of lists, the first line.
    fn place(&self) -> usize {
        match &self.page.body {
            Body::Rows(_) => self.cursor.index,
            Body::Lists(_) => self.cursor.top,
        }
    }

    /// A selection that is gone left its place to the row below it.
    fn place_below(&self) -> usize {
        if self.cursor.gone { self.place() } else { self.place() + 1 }
    }

    fn go(&mut self, index: usize) {
        match &self.page.body {
            Body::Rows(rows) => {
                self.cursor.index = index.min(rows.ids.len().saturating_sub(1));
                self.cursor.row = rows.ids.get(self.cursor.index).cloned();
                self.cursor.gone = false;
                self.keep_in_sight();
            }
            // How many lines there are depends on the width: the screen says when it was too far.
            Body::Lists(_) => self.cursor.top = index,
        }
    }

    /// Of lists, which may not be scrolled beyond their last line.
    pub fn limit_scroll(&mut self, lines: usize) {
        if matches!(self.page.body, Body::Lists(_)) {
            self.cursor.top = self.cursor.top.min(lines.saturating_sub(self.height));
        }
    }

    fn keep_in_sight(&mut self) {
        let Body::Rows(rows) = &self.page.body else { return };
        let cursor = &mut self.cursor;
        cursor.top = cursor.top.min(rows.ids.len().saturating_sub(self.height));
        cursor.top = cursor.top.min(cursor.index).max((cursor.index + 1).saturating_sub(self.height));
    }

    fn enter(&mut self) {
        let Body::Rows(rows) = &self.page.body else { return };
        if self.cursor.gone {
            return self.say("the selected row is not in this interval");
        }
        // What is on the screen is what was meant, also where nothing was selected yet.
        let Some(row) = rows.ids.get(self.cursor.index).cloned() else { return };
        self.cursor.row = Some(row.clone());
        let mut target = self.target.clone();
        let view = match row {
            RowId::Key(key) => View::ClientsOfKey(key),
            RowId::Client(client) => View::KeysOfClient(client.without_port()),
            RowId::Target(name) => {
                target = Some(name);
                View::Keys
            }
            RowId::Shape(_) => {
                return self.say("a shape has nothing beneath it; filter by a regular expression");
            }
            RowId::Group(_) => {
                return self.say("a group has nothing beneath it; filter by its regular expression");
            }
            RowId::Server(_) => {
                return self.say("a server has nothing beneath it: its keys are those of the whole target");
            }
        };
        if self.trail.len() == TRAIL_MAX {
            self.trail.remove(0);
        }
        self.trail.push(Place {
            view: std::mem::replace(&mut self.view, view),
            cursor: std::mem::take(&mut self.cursor),
            target: std::mem::replace(&mut self.target, target),
        });
        self.renew();
    }

    fn back(&mut self) {
        let Some(place) = self.trail.pop() else { return };
        (self.view, self.cursor, self.target) = (place.view, place.cursor, place.target);
        self.renew();
    }

    fn sort(&mut self, step: usize) {
        let at = Sort::ALL.iter().position(|sort| *sort == self.order.sort).unwrap_or(0);
        self.order.sort = Sort::ALL[(at + step) % Sort::ALL.len()];
        self.renew();
    }

    fn switch_client_view(&mut self) {
        self.options.client = match self.options.client {
            ClientView::Ip => ClientView::Socket,
            ClientView::Socket => ClientView::Ip,
        };
        self.renew();
    }

    fn next_window(&mut self) {
        const WINDOWS: [Over; 5] = [Over::Interval, Over::Minute, Over::TenMinutes, Over::Hour, Over::Start];
        let at = WINDOWS.iter().position(|over| *over == self.history.over()).unwrap_or(0);
        self.history.set_over(WINDOWS[(at + 1) % WINDOWS.len()]);
        if let Some(held) = &mut self.held {
            held.frame = self.history.back(held.back);
        }
        self.renew();
    }

    fn switch_target(&mut self, step: usize) {
        let frame = self.frame();
        let names: Vec<&String> = frame.snapshots.iter().map(|snapshot| &snapshot.target).collect();
        if names.is_empty() {
            return;
        }
        let at = self.target.as_ref().and_then(|name| names.iter().position(|known| *known == name));
        let next = match step {
            usize::MAX => at.unwrap_or(0) + names.len() - 1,
            step => at.unwrap_or(0) + step,
        };
        self.target = Some(names[next % names.len()].clone());
        self.renew();
    }

    fn freeze(&mut self) {
        match self.held.take() {
            Some(_) => self.renew(),
            None => self.held = Some(Held { frame: self.history.newest(), back: 0 }),
        }
    }

    fn step_back(&mut self) {
        let back = self.held.as_ref().map_or(0, |held| held.back) + 1;
        if back >= self.history.len() {
            return self.say("no older interval is kept");
        }
        self.held = Some(Held { frame: self.history.back(back), back });
        self.renew();
    }

    /// Forward from the newest interval is going on.
    fn step_forward(&mut self) {
        let Some(held) = &self.held else { return };
        self.held = match held.back.checked_sub(1) {
            Some(back) => Some(Held { frame: self.history.back(back), back }),
            None => None,
        };
        self.renew();
    }

    fn frame(&self) -> Arc<Frame> {
        match &self.held {
            Some(held) => Arc::clone(&held.frame),
            None => self.history.newest(),
        }
    }

    fn question(&self) -> Question<'_> {
        Question {
            options: &self.options,
            view: &self.view,
            order: self.order,
            target: self.target.as_deref(),
        }
    }

    /// Makes the page anew; the selection stays with its row.
    fn renew(&mut self) {
        if self.history.is_empty() {
            return;
        }
        self.page = page(&self.frame(), self.question());
        let Body::Rows(rows) = &self.page.body else { return };
        if let Some(row) = &self.cursor.row {
            match rows.ids.iter().position(|id| id == row) {
                Some(index) => (self.cursor.index, self.cursor.gone) = (index, false),
                None => self.cursor.gone = true,
            }
        }
        self.cursor.index = self.cursor.index.min(rows.ids.len().saturating_sub(1));
        self.keep_in_sight();
    }

    /// Nothing more comes from there, which is said as long as it is so. True: it was not known before.
    pub fn end(&mut self) -> bool {
        !std::mem::replace(&mut self.has_ended, true)
    }

    /// Where intervals come from.
    pub fn source(&self) -> Source {
        self.source
    }

    /// What to draw.
    pub fn page(&self) -> &Page {
        &self.page
    }

    /// The selection.
    pub fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// What is shown.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// In which order.
    pub fn order(&self) -> Order {
        self.order
    }

    /// The line that is being asked for.
    pub fn prompt(&self) -> Option<&Prompt> {
        self.prompt.as_ref()
    }

    /// What is to be said.
    pub fn message(&self) -> Option<&str> {
        self.message.as_deref()
    }

    /// Whether the help is to be shown.
    pub fn shows_help(&self) -> bool {
        self.help
    }

    /// Whether lines may be coloured.
    pub fn color(&self) -> bool {
        self.options.color
    }

    /// The filter, as it may be shown.
    pub fn filter(&self) -> Option<String> {
        self.options.filter.as_ref().map(Filter::shown)
    }

    /// How the figures stand to the present, their window, and how keys are shown.
    pub fn standing(&self) -> Vec<String> {
        let mut standing = vec![match &self.held {
            None if self.has_ended => "NO LONGER FED".to_string(),
            None => self.source.name().to_string(),
            Some(Held { back: 0, .. }) => "FROZEN".to_string(),
            Some(Held { back, .. }) => format!("FROZEN, {back} newer"),
        }];
        standing.push(match self.history.over() {
            Over::Interval => "interval".to_string(),
            Over::Start => "all kept".to_string(),
            over => format!("last {}", over.name()),
        });
        if self.options.client == ClientView::Ip {
            standing.push("by IP".to_string());
        }
        if self.privacy != PrivacyMode::Full {
            standing.push(format!("privacy {}", self.privacy.name()));
        }
        if self.history.forgotten() > 0 {
            standing.push(format!("{} older forgotten", self.history.forgotten()));
        }
        standing
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;

//! One view of one interval as rows of cells: what the screen draws and what an export writes.

use super::Frame;
use crate::collector::snapshot::{Counters, Snapshot};
use crate::model::Endpoint;
use crate::report::contents::{Contents, Ranked, Shown, loss_share};
use crate::report::sections::{self, Cell, Column, List, Section, Table, Tone};
use crate::report::views::{self, Share};
use crate::report::{
    ClientView, OutputFormat, ReportOptions, SeenElsewhere, Sort, escape, escape_name, json, markdown,
    shorten, units,
};
use std::cmp::Ordering;
use std::collections::HashMap;
use std::io;

/// Rows of a view: more than anybody scrolls through, few enough to be made at every key press.
pub const ROWS_MAX: usize = 1000;

/// Longest name in a title.
const TITLE_NAME_MAX: usize = 60;

/// What is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum View {
    /// Hot keys.
    Keys,
    /// Hot clients.
    Clients,
    /// Key shapes.
    Shapes,
    /// The operator's key groups.
    Groups,
    /// The servers of a target that has many.
    Servers,
    /// The targets side by side.
    Targets,
    /// Commands with their outcomes.
    Commands,
    /// The capture's losses and totals.
    Health,
    /// The clients of one key.
    ClientsOfKey(Box<[u8]>),
    /// The keys of one client, by IP.
    KeysOfClient(Endpoint),
}

impl View {
    /// Those that have a tab, in their order.
    pub const TABS: [(View, &'static str); 8] = [
        (View::Keys, "keys"),
        (View::Clients, "clients"),
        (View::Shapes, "shapes"),
        (View::Groups, "groups"),
        (View::Servers, "servers"),
        (View::Targets, "targets"),
        (View::Commands, "commands"),
        (View::Health, "health"),
    ];

    /// A word for it, also in the name of an exported file.
    pub fn name(&self) -> &'static str {
        match self {
            View::ClientsOfKey(_) => "clients-of-key",
            View::KeysOfClient(_) => "keys-of-client",
            other => View::TABS.iter().find(|(view, _)| view == other).map_or("", |(_, name)| name),
        }
    }
}

/// An order: what by, and in which direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// What by.
    pub sort: Sort,
    /// The other way round.
    pub reversed: bool,
}

impl Order {
    fn compare(self, a: (&Counters, (&[u8], u16)), b: (&Counters, (&[u8], u16))) -> Ordering {
        let direct = |ordering: Ordering| if self.reversed { ordering.reverse() } else { ordering };
        if self.sort == Sort::Name {
            return direct(a.1.cmp(&b.1));
        }
        let scores = match (self.sort.score(a.0), self.sort.score(b.0)) {
            (Some(a), Some(b)) => direct(b.cmp(&a)),
            (a, b) => b.is_some().cmp(&a.is_some()),
        };
        scores.then_with(|| a.1.cmp(&b.1))
    }

    /// The first [`ROWS_MAX`] rows in this order.
    pub(crate) fn arrange<'a, R: Ranked>(self, rows: impl IntoIterator<Item = &'a R>) -> Vec<&'a R> {
        let mut rows: Vec<&R> = rows.into_iter().collect();
        let order = |a: &&R, b: &&R| self.compare((a.counters(), a.tie()), (b.counters(), b.tie()));
        if rows.len() > ROWS_MAX {
            rows.select_nth_unstable_by(ROWS_MAX, order);
            rows.truncate(ROWS_MAX);
        }
        rows.sort_unstable_by(order);
        rows
    }
}

/// What is wanted of an interval.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Filter, privacy, client view, groups.
    pub options: &'a ReportOptions,
    /// What to show.
    pub view: &'a View,
    /// In which order.
    pub order: Order,
    /// Of which target; the first when it is not there.
    pub target: Option<&'a str>,
}

/// What a row stands for. The selection follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowId {
    /// A key, as it is shown.
    Key(Box<[u8]>),
    /// A client.
    Client(Endpoint),
    /// A key shape.
    Shape(Vec<u8>),
    /// A key group.
    Group(Vec<u8>),
    /// A server.
    Server(Endpoint),
    /// A target.
    Target(String),
}

/// A view of an interval.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Target, window, totals.
    pub heading: Vec<String>,
    /// Something of the interval was lost.
    pub lossy: bool,
    /// What the rows are, where a tab does not say it.
    pub title: Option<String>,
    /// What the operator should know: findings, or what is seen where the target saw nothing.
    pub notes: Vec<String>,
    /// The rows.
    pub body: Body,
}

/// The rows of a page.
#[derive(Clone, Debug)]
pub enum Body {
    /// Under columns; one can be selected.
    Rows(Rows),
    /// Labels with items.
    Lists(Lists),
}

impl Default for Body {
    fn default() -> Body {
        Body::Lists(Lists(Vec::new()))
    }
}

/// Rows under columns.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    pub(crate) columns: Vec<Column>,
    pub(crate) cells: Vec<Vec<Cell>>,
    /// What each row stands for.
    pub ids: Vec<RowId>,
    /// Rows that there are; more than are listed, where they are many.
    pub held: usize,
}

impl Rows {
    fn new(table: &Table<'_>, ids: Vec<RowId>, held: usize) -> Rows {
        let cells = (0..table.rows).map(|index| (table.row)(index)).collect();
        Rows { columns: table.columns.clone(), cells, ids, held }
    }

    /// As a section of a report.
    pub(crate) fn table(&self) -> Table<'_> {
        Table {
            columns: self.columns.clone(),
            rows: self.cells.len(),
            row: Box::new(|index| self.cells[index].clone()),
        }
    }
}

/// Labels with items, under titles.
#[derive(Clone, Debug)]
pub struct Lists(Vec<Lines>);

#[derive(Clone, Debug)]
struct Lines {
    title: &'static str,
    tone: Tone,
    rows: Vec<(Cell, Vec<String>)>,
}

impl Lists {
    fn new(sections: Vec<Section<'_>>) -> Lists {
        let lists = sections.into_iter().filter_map(|section| match section {
            Section::List(list) if list.rows > 0 => Some(Lines {
                title: list.title,
                tone: list.tone,
                rows: (0..list.rows).map(|index| (list.row)(index)).collect(),
            }),
            _ => None,
        });
        Lists(lists.collect())
    }

    /// As sections of a report.
    pub(crate) fn sections(&self) -> impl Iterator<Item = Section<'_>> {
        self.0.iter().map(|lines| {
            Section::List(List {
                title: lines.title,
                tone: lines.tone,
                rows: lines.rows.len(),
                row: Box::new(|index| lines.rows[index].clone()),
            })
        })
    }
}

/// The snapshot of the wanted target.
pub fn snapshot_of<'a>(frame: &'a Frame, target: Option<&str>) -> Option<&'a Snapshot> {
    match target {
        Some(name) => frame.snapshots.iter().find(|snapshot| snapshot.target == name),
        None => frame.snapshots.first(),
    }
}

/// The page that answers a question.
pub fn page(frame: &Frame, question: Question<'_>) -> Page {
    let Some(snapshot) = snapshot_of(frame, question.target) else {
        let name = question.target.map_or_else(|| "no target".to_string(), escape_name);
        return Page { heading: vec![format!("{name}: nothing in this interval")], ..Page::default() };
    };
    let options = report_options(frame, question);
    let shown = match question.view {
        View::Shapes | View::Groups => Shown::new(snapshot, &options),
        _ => Shown::rows_only(snapshot, &options),
    };
    let contents = shown.contents();
    let mut notes = Vec::new();
    if contents.saw_nothing() {
        notes = sections::seen_elsewhere(&contents);
    } else {
        notes.extend(why_empty(question, &contents));
        notes.extend(contents.findings.iter().map(|finding| finding.text.clone()));
    }
    Page {
        heading: sections::heading(&contents),
        lossy: loss_share(snapshot).0 > 0,
        title: title(question),
        notes,
        body: body(frame, question, &shown, &contents),
    }
}

/// What is to be done about a view that has no rows whatever the traffic.
fn why_empty(question: Question<'_>, contents: &Contents<'_>) -> Option<String> {
    let reason = match question.view {
        View::Groups if question.options.groups.is_empty() => {
            "no key groups are configured: [[keys.group]] in the configuration names some"
        }
        View::Servers if contents.snapshot.servers.is_empty() => {
            "one server only: the servers of a target are listed where it is a network or *"
        }
        _ => return None,
    };
    Some(reason.to_string())
}

fn report_options(frame: &Frame, question: Question<'_>) -> ReportOptions {
    ReportOptions {
        by: question.order.sort.metric(),
        seen_elsewhere: Some(frame.seen.clone()),
        ..question.options.clone()
    }
}

fn title(question: Question<'_>) -> Option<String> {
    match question.view {
        View::ClientsOfKey(key) => Some(format!("clients of {}", shorten(&escape(key), TITLE_NAME_MAX))),
        View::KeysOfClient(client) => Some(format!("keys of {}, by IP", client.ip())),
        _ => None,
    }
}

fn body(frame: &Frame, question: Question<'_>, shown: &Shown<'_>, contents: &Contents<'_>) -> Body {
    let snapshot = contents.snapshot;
    let order = question.order;
    Body::Rows(match question.view {
        View::Keys => {
            let rows = order.arrange(&snapshot.keys);
            let ids = rows.iter().map(|row| RowId::Key(row.key.clone())).collect();
            Rows::new(&views::keys(contents, &rows, order.sort), ids, snapshot.keys.len())
        }
        View::Clients => {
            let all = match question.options.client {
                ClientView::Ip => &snapshot.clients,
                ClientView::Socket => &snapshot.sockets,
            };
            let rows = order.arrange(all);
            let ids = rows.iter().map(|row| RowId::Client(row.client)).collect();
            Rows::new(&views::clients(contents, &rows, order.sort), ids, all.len())
        }
        View::Shapes => {
            let rows = order.arrange(shown.shapes());
            let ids = rows.iter().map(|row| RowId::Shape(row.name.clone())).collect();
            Rows::new(&views::shapes(contents, &rows, order.sort), ids, shown.shapes().len())
        }
        View::Groups => {
            let rows = order.arrange(shown.groups());
            let ids = rows.iter().map(|row| RowId::Group(row.name.clone())).collect();
            Rows::new(&views::groups(contents, &rows, order.sort), ids, shown.groups().len())
        }
        View::Servers => {
            let rows = order.arrange(&snapshot.servers);
            let ids = rows.iter().map(|row| RowId::Server(row.server)).collect();
            Rows::new(&views::servers(contents, &rows, order.sort), ids, snapshot.servers.len())
        }
        View::Targets => targets(frame, question),
        View::ClientsOfKey(_) | View::KeysOfClient(_) => drilled(question, contents),
        View::Commands => return Body::Lists(Lists::new(vec![sections::commands(snapshot)])),
        View::Health => {
            let sections =
                vec![capture(&frame.seen), sections::totals(contents), sections::findings(contents)];
            return Body::Lists(Lists::new(sections));
        }
    })
}

fn targets(frame: &Frame, question: Question<'_>) -> Rows {
    // The hottest rows are all that this table shows.
    let options = ReportOptions { top: 1, ..report_options(frame, question) };
    let mut snapshots: Vec<&Snapshot> = frame.snapshots.iter().collect();
    snapshots.sort_by(|a, b| {
        let of = |snapshot: &Snapshot| snapshot.totals.counters;
        question.order.compare((&of(a), (a.target.as_bytes(), 0)), (&of(b), (b.target.as_bytes(), 0)))
    });
    let shown: Vec<Shown<'_>> =
        snapshots.iter().map(|snapshot| Shown::rows_only(snapshot, &options)).collect();
    let contents: Vec<Contents<'_>> = shown.iter().map(Shown::contents).collect();
    let ids = snapshots.iter().map(|snapshot| RowId::Target(snapshot.target.clone())).collect();
    match sections::targets(&contents) {
        Section::Table(table) => Rows::new(&table, ids, snapshots.len()),
        Section::List(_) => Rows::default(),
    }
}

/// The clients of a key, or the keys of a client.
fn drilled(question: Question<'_>, contents: &Contents<'_>) -> Rows {
    let snapshot = contents.snapshot;
    let by_client: HashMap<Endpoint, u64> =
        snapshot.clients.iter().map(|row| (row.client, row.counters.requests())).collect();
    let is_wanted = |share: &Share<'_>| match question.view {
        View::ClientsOfKey(key) => share.key.key == *key,
        View::KeysOfClient(client) => share.pair.client == *client,
        _ => false,
    };
    let all = snapshot.keys.iter().flat_map(|key| {
        let share = |pair| Share { key, pair, of_client: None };
        key.clients.iter().map(share)
    });
    let mut rows: Vec<Share<'_>> = all.filter(is_wanted).collect();
    for share in &mut rows {
        share.of_client = by_client.get(&share.pair.client).copied();
    }
    let of_key = matches!(question.view, View::ClientsOfKey(_));
    let name = |share: &Share<'_>| match of_key {
        true => share.pair.client.octets().to_vec(),
        false => share.key.key.to_vec(),
    };
    rows.sort_by(|a, b| {
        let by_name = name(a).cmp(&name(b));
        let ordering = match question.order.sort {
            Sort::Name => by_name,
            // A pair's requests are all that is known of it.
            _ => b.pair.requests.cmp(&a.pair.requests).then(by_name),
        };
        if question.order.reversed { ordering.reverse() } else { ordering }
    });
    let held = rows.len();
    rows.truncate(ROWS_MAX);
    let id = |share: &Share<'_>| match of_key {
        true => RowId::Client(share.pair.client),
        false => RowId::Key(share.key.key.clone()),
    };
    let ids = rows.iter().map(id).collect();
    match of_key {
        true => Rows::new(&views::clients_of_key(contents, &rows), ids, held),
        false => Rows::new(&views::keys_of_client(contents, &rows), ids, held),
    }
}

/// What the capture saw, whoever it was for. How it fared stands in the target's totals.
fn capture(seen: &SeenElsewhere) -> Section<'static> {
    let count = units::count;
    let mut rows = vec![(
        "packets",
        vec![
            format!("captured {}", count(seen.packets_captured())),
            format!("of a target {}", count(seen.packets_matched)),
            format!("neither TCP nor UDP {}", count(seen.packets_foreign)),
        ],
    )];
    let sources =
        seen.sources.iter().map(|source| format!("{} {}", escape_name(&source.name), count(source.packets)));
    rows.push(("sources", sources.collect()));
    let strangers = seen.busiest.iter().map(|busy| format!("{} {}", busy.endpoint, count(busy.packets)));
    rows.push(("no target's", strangers.collect()));
    rows.retain(|(_, items)| !items.is_empty());
    Section::List(List {
        title: "CAPTURE",
        tone: Tone::Plain,
        rows: rows.len(),
        row: Box::new(move |index| {
            let (label, items) = &rows[index];
            (Cell::Figure((*label).to_string()), items.clone())
        }),
    })
}

/// What a file of this form says of the page: Markdown holds the heading and the rows as they are shown; JSON Lines the
/// interval's object with the rows that the filter, and the key or client that was chosen, leave.
pub fn export(frame: &Frame, question: Question<'_>, format: OutputFormat) -> io::Result<Vec<u8>> {
    let Some(snapshot) = snapshot_of(frame, question.target) else {
        return Err(io::Error::other("there is nothing to export yet"));
    };
    let options =
        ReportOptions { format, top: ROWS_MAX, clients_per_key: 0, ..report_options(frame, question) };
    let mut out = Vec::new();
    let mut shown = Shown::new(snapshot, &options);
    if format == OutputFormat::Jsonl {
        match question.view {
            View::ClientsOfKey(key) => shown.narrow(Some(key), None),
            View::KeysOfClient(client) => shown.narrow(None, Some(client)),
            _ => {}
        }
        json::write(&mut out, &shown.contents())?;
        return Ok(out);
    }
    markdown::write_heading(&mut out, &shown.contents())?;
    let page = page(frame, question);
    if let Some(title) = &page.title {
        markdown::write_line(&mut out, title)?;
    }
    match &page.body {
        Body::Rows(rows) => markdown::write_section(&mut out, &Section::Table(rows.table()))?,
        Body::Lists(lists) => {
            lists.sections().try_for_each(|list| markdown::write_section(&mut out, &list))?
        }
    }
    Ok(out)
}

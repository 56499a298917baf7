//! What tables and Markdown have in common: sections of cells, read from either.

use super::{Claims, Truth, count, micros, percent, scaled};
use memtap::report::{escape, escape_name, unescape};

/// A section as it was read: its title and its rows, each with its label first.
#[derive(Debug, Default)]
struct Section {
    title: &'static str,
    /// Names of the columns; empty for a list.
    columns: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

/// Titles of tables with the kind of their rows.
const TABLES: [(&str, &str); 6] = [
    ("HOT KEYS", "key"),
    ("HOT CLIENTS", "client"),
    ("MISSED KEYS", "missed_key"),
    ("SERVERS", "server"),
    ("KEY GROUPS", "group"),
    ("KEY SHAPES", "shape"),
];
const LISTS: [&str; 4] = ["HOT CLIENTS PER KEY", "COMMANDS", "TOTALS", "FINDINGS"];

/// Names of columns behind the first; those at the left edge of their column are marked.
const COLUMNS: [(&str, bool); 13] = [
    ("REQUESTS", false),
    ("±", false),
    ("REQ/S", false),
    ("SHARE", false),
    ("HIT%", false),
    ("OUT/S", false),
    ("MEAN/MAX ms", false),
    ("ERRORS", false),
    ("MISSES", false),
    ("OF ALL", false),
    ("KEYS", false),
    ("TOP CLIENT", true),
    ("TOP KEY", true),
];
const HOTTEST_KEY: (&str, bool) = ("HOTTEST KEY", true);

fn claims_of(heading: &[String], sections: &[Section], truth: &Truth) -> Claims {
    let mut claims = Claims::default();
    read_heading(&mut claims, heading);
    for section in sections {
        match TABLES.iter().find(|(title, _)| *title == section.title) {
            Some((_, kind)) => read_table(&mut claims, kind, section),
            None => match section.title {
                "HOT CLIENTS PER KEY" => read_pairs(&mut claims, section, truth),
                "COMMANDS" => read_commands(&mut claims, section),
                "TOTALS" => read_totals(&mut claims, section),
                "FINDINGS" => {
                    for (index, row) in (1..).zip(&section.rows) {
                        claims.text(format!("finding/{index}/id"), &row[0]);
                        claims.text(format!("finding/{index}/text"), &row[1]);
                    }
                    claims.rows.insert("finding", section.rows.len());
                }
                other => panic!("unknown section {other}"),
            },
        }
    }
    claims
}

/// The last pieces; those before them are the operator's words.
fn read_heading(claims: &mut Claims, pieces: &[String]) {
    let [.., length, requests, out, hit, loss] = pieces else { panic!("{pieces:?}") };
    let length = length.trim_end_matches(" (partial)");
    if let Some(seconds) = length.strip_suffix('s').and_then(|text| text.parse::<f64>().ok()) {
        claims.range("interval/seconds".to_string(), Some((seconds - 0.0005, seconds + 0.001)));
    }
    claims.exact("total/requests".to_string(), count(requests.strip_suffix(" requests").unwrap()));
    let out = out.strip_suffix(" out").unwrap();
    match out.strip_suffix("B/s") {
        Some(rate) => claims.range("total/bytes_rate".to_string(), scaled(rate.trim_end())),
        None => {
            claims.range("total/bytes_out".to_string(), scaled(out.strip_suffix('B').unwrap().trim_end()))
        }
    }
    claims.range("total/hit_ratio".to_string(), percent(hit.strip_prefix("hit ").unwrap()));
    claims.range("interval/loss_share".to_string(), percent(loss.strip_prefix("loss ").unwrap()));
}

fn read_table(claims: &mut Claims, kind: &'static str, section: &Section) {
    claims.rows.insert(kind, section.rows.len());
    for (rank, row) in (1..).zip(&section.rows) {
        let path = format!("{kind}/{rank}");
        match kind {
            // Not a key: what Markdown escaped stands as it is.
            "group" => claims.text(format!("{path}/name"), &group_name(&row[0])),
            _ => claims.text(format!("{path}/name"), &row[0]),
        }
        for (column, cell) in section.columns.iter().zip(&row[1..]) {
            let at = |name: &str| format!("{path}/{name}");
            match *column {
                "REQUESTS" => claims.exact(at("requests"), count(cell)),
                "±" => claims.exact(at("err"), count(cell)),
                "ERRORS" => claims.exact(at("errors"), count(cell)),
                "MISSES" => claims.exact(at("misses"), count(cell)),
                "KEYS" => claims.exact(at("keys"), count(cell)),
                "REQ/S" => claims.range(at("rate"), scaled(cell)),
                "OUT/S" => claims.range(at("bytes_rate"), scaled(cell)),
                "SHARE" => claims.range(at("share"), percent(cell)),
                "OF ALL" => claims.range(at("of_all"), percent(cell)),
                "HIT%" => claims.range(at("hit_ratio"), percent(cell)),
                "MEAN/MAX ms" => match cell.split_once(" / ") {
                    Some((mean, max)) => {
                        claims.range(at("latency_mean"), Some(micros(mean)));
                        claims.range(at("latency_max"), Some(micros(max)));
                    }
                    None => assert_eq!(cell, "-"),
                },
                "TOP CLIENT" => read_top(claims, &at("top_client"), cell),
                "TOP KEY" | "HOTTEST KEY" => read_top(claims, &at("top_key"), cell),
                other => panic!("unknown column {other}"),
            }
        }
    }
}

fn group_name(text: &str) -> String {
    unescape(text).map_or_else(|| text.to_string(), |bytes| escape_name(&String::from_utf8_lossy(&bytes)))
}

/// `10.2.0.17 (68%)`
fn read_top(claims: &mut Claims, path: &str, cell: &str) {
    match cell.rsplit_once(" (") {
        Some((name, share)) => {
            claims.text(path.to_string(), name);
            claims.range(format!("{path}_share"), percent(share.strip_suffix(')').unwrap()));
        }
        None => claims.range(format!("{path}_share"), if cell == "-" { None } else { panic!("{cell:?}") }),
    }
}

/// `10.2.0.17  280,232 ±3 (68%)`. Keys without clients have no line.
fn read_pairs(claims: &mut Claims, section: &Section, truth: &Truth) {
    let with_clients = (1..).take_while(|rank| truth.texts.contains_key(&format!("key/{rank}/name")));
    let with_clients = with_clients.filter(|rank| truth.texts.contains_key(&format!("pair/{rank}/1")));
    let ranks: Vec<usize> = with_clients.collect();
    assert_eq!(ranks.len(), section.rows.len(), "{section:?}");
    let mut pairs = 0;
    for (rank, row) in ranks.into_iter().zip(&section.rows) {
        claims.text(format!("key/{rank}/name"), &row[0]);
        for (index, item) in (1..).zip(row[1].split(" · ")).filter(|(_, item)| *item != "…") {
            let path = format!("pair/{rank}/{index}");
            let words: Vec<&str> = item.split_whitespace().collect();
            let [client, requests, err @ .., share] = words.as_slice() else { panic!("{item:?}") };
            claims.text(path.clone(), client);
            claims.exact(format!("{path}/requests"), count(requests));
            let err = err.first().map_or(0, |err| count(err.strip_prefix('±').unwrap()));
            claims.exact(format!("{path}/err"), err);
            claims.range(format!("{path}/share"), percent(share.trim_matches(['(', ')'])));
            pairs += 1;
        }
    }
    claims.rows.insert("pair", pairs);
}

fn read_commands(claims: &mut Claims, section: &Section) {
    claims.rows.insert("command", section.rows.len());
    for row in &section.rows {
        let path = format!("command/{}", row[0]);
        let mut items = row[1].split(" · ");
        claims.exact(format!("{path}/requests"), count(items.next().unwrap()));
        for item in items {
            if let Some(times) = item.strip_suffix(" ms") {
                let words: Vec<&str> = times.split(' ').collect();
                for pair in words.chunks(2) {
                    claims.range(format!("{path}/{}", pair[0]), Some(micros(pair[1])));
                }
            } else {
                let (outcome, number) = item.rsplit_once(' ').unwrap();
                claims.exact(format!("{path}/{}", outcome.replace(' ', "_")), count(number));
            }
        }
    }
}

fn read_totals(claims: &mut Claims, section: &Section) {
    for row in &section.rows {
        for item in row[1].split(" · ") {
            if row[0] == "capture" {
                read_capture(claims, item);
                continue;
            }
            let item = match row[0].as_str() {
                "bounds" => item
                    .strip_suffix(" requests")
                    .or_else(|| item.strip_suffix(" request"))
                    .unwrap_or_else(|| panic!("{item:?} does not say what it counts")),
                _ => item,
            };
            let (name, number) = item.rsplit_once(' ').unwrap_or(("", item));
            let joined = name.replace(' ', "_");
            match (row[0].as_str(), name) {
                ("requests", "") => claims.exact("total/requests".to_string(), count(number)),
                ("requests", _) => claims.exact(format!("total/{joined}"), count(number)),
                ("bytes", _) => claims.exact(format!("total/bytes_{joined}"), count(number)),
                ("times ms", "none") => claims.exact("times/samples".to_string(), 0),
                ("times ms", "samples") => claims.exact("times/samples".to_string(), count(number)),
                ("times ms", _) => claims.range(format!("times/{joined}"), Some(micros(number))),
                ("seen", _) => claims.exact(format!("total/{joined}_seen"), count(number)),
                ("leases", _) => claims.exact(format!("leases/{joined}"), count(number)),
                ("bounds", _) => {
                    let of = if name.contains("client of a key") {
                        "pair"
                    } else if name.contains("client") {
                        "client"
                    } else {
                        "key"
                    };
                    claims.exact(format!("bounds/{of}"), count(number));
                }
                ("loss", "") => assert_eq!(number, "none"),
                ("loss" | "noted", _) => {
                    assert_eq!(
                        super::NOTED.contains(&joined.as_str()),
                        row[0] == "noted",
                        "{item:?} under {:?}",
                        row[0]
                    );
                    claims.exact(format!("loss/{joined}"), count(number));
                }
                other => panic!("unknown total {other:?}"),
            }
        }
    }
}

/// `kept everything`, `ring peak 3 of 64 blocks`, `worker restarts 1`.
fn read_capture(claims: &mut Claims, item: &str) {
    if let Some(detail) = item.strip_prefix("kept ") {
        claims.text("capture/detail".to_string(), detail);
    } else if let Some(peak) = item.strip_prefix("ring peak ").and_then(|item| item.strip_suffix(" blocks")) {
        let (peak, blocks) = peak.split_once(" of ").unwrap();
        claims.exact("capture/ring_blocks_peak".to_string(), count(peak));
        claims.exact("capture/ring_blocks".to_string(), count(blocks));
    } else {
        let (name, number) = item.rsplit_once(' ').unwrap();
        claims.exact(format!("capture/{}", name.replace(' ', "_")), count(number));
    }
}

// ---- Tables ----------------------------------------------------------------------------------------------------------

/// A report as a table, at any width. `truth` is asked only which keys have clients.
pub fn from_table(text: &str, truth: &Truth) -> Claims {
    let mut heading = String::new();
    let mut sections: Vec<Section> = Vec::new();
    let mut layout: Vec<Edge> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some((title, edges)) = table_header(line) {
            let columns = edges.iter().skip(1).map(|edge| edge.name).collect();
            sections.push(Section { title, columns, rows: Vec::new() });
            layout = edges;
        } else if let Some(title) = LISTS.iter().find(|title| **title == line) {
            sections.push(Section { title, ..Section::default() });
        } else if let Some(section) = sections.last_mut() {
            match section.columns.is_empty() {
                true => take_list_line(section, line),
                false => section.rows.push(cells(line, &layout)),
            }
        } else {
            heading.push_str(if heading.is_empty() { "" } else { "  " });
            heading.push_str(line);
        }
    }
    let heading: Vec<String> = heading.split("  ").map(str::to_string).collect();
    claims_of(&heading, &sections, truth)
}

/// A column: where its figures end, or where its text begins.
#[derive(Debug)]
struct Edge {
    name: &'static str,
    left: bool,
    start: usize,
    end: usize,
}

fn table_header(line: &str) -> Option<(&'static str, Vec<Edge>)> {
    let (title, _) = TABLES.iter().find(|(title, _)| {
        line.starts_with(title) && line.contains("  REQUESTS")
            || line.starts_with(title) && line.contains("  MISSES")
    })?;
    let mut edges = vec![Edge { name: title, left: true, start: 0, end: title.len() }];
    let mut at = title.len();
    let characters: Vec<char> = line.chars().collect();
    while let Some(start) = (at..characters.len()).find(|&at| characters[at] != ' ') {
        let rest: String = characters[start..].iter().collect();
        let known = COLUMNS.iter().chain([&HOTTEST_KEY]).filter(|(name, _)| rest.starts_with(name));
        let (name, left) =
            known.max_by_key(|(name, _)| name.len()).unwrap_or_else(|| panic!("{rest:?} in {line:?}"));
        at = start + name.chars().count();
        edges.push(Edge { name, left: *left, start, end: at });
    }
    Some((title, edges))
}

/// A row's cells by the places of its columns: the figures of a column end where its name ends.
fn cells(line: &str, layout: &[Edge]) -> Vec<String> {
    let characters: Vec<char> = line.chars().collect();
    let slice = |from: usize, to: usize| -> String {
        let to = to.min(characters.len());
        characters[from.min(to)..to].iter().collect()
    };
    // The first figure ends at its column's end, and two blanks stand before it; keys hold none.
    let first = slice(0, layout[1].end);
    let (name, figure) = first.rsplit_once("  ").unwrap_or_else(|| panic!("{line:?}"));
    let mut cells = vec![name.trim_end().to_string(), figure.trim().to_string()];
    for (before, edge) in layout[1..].iter().zip(&layout[2..]) {
        let cell = match edge.left {
            true => slice(edge.start, usize::MAX),
            false => slice(before.end, edge.end),
        };
        cells.push(cell.trim().to_string());
    }
    cells
}

/// A label with its first items, or more of the items before.
fn take_list_line(section: &mut Section, line: &str) {
    match (section.rows.last_mut(), line.strip_prefix("  ")) {
        (Some(row), Some(more)) => {
            let separator = if section.title == "FINDINGS" { " " } else { " · " };
            row[1].push_str(separator);
            row[1].push_str(more.trim_start());
        }
        _ => {
            let (label, items) = line.split_once("  ").unwrap_or_else(|| panic!("{line:?}"));
            section.rows.push(vec![label.to_string(), items.trim_start().to_string()]);
        }
    }
}

// ---- Markdown --------------------------------------------------------------------------------------------------------

pub fn from_markdown(text: &str, truth: &Truth) -> Claims {
    let mut heading = Vec::new();
    let mut sections: Vec<Section> = Vec::new();
    let mut in_table = false;
    for line in text.lines() {
        let Some(inner) = line.strip_prefix("| ").and_then(|line| line.strip_suffix(" |")) else {
            in_table = false;
            if sections.is_empty() && heading.is_empty() && !line.is_empty() && !line.starts_with('#') {
                heading = line.split(", ").map(shown).collect();
            }
            continue;
        };
        let cells: Vec<String> = split_cells(inner).iter().map(|cell| shown(cell)).collect();
        if !std::mem::replace(&mut in_table, true) {
            let titles = TABLES.iter().map(|(title, _)| title).chain(&LISTS);
            let title =
                titles.copied().find(|title| *title == cells[0]).unwrap_or_else(|| panic!("{line:?}"));
            let known = COLUMNS.iter().chain([&HOTTEST_KEY]).map(|(name, _)| *name);
            let columns = cells[1..].iter().map(|cell| known.clone().find(|name| name == cell));
            let columns = columns.map(Option::unwrap_or_default).filter(|name| !name.is_empty()).collect();
            sections.push(Section { title, columns, rows: Vec::new() });
        } else if !cells[0].starts_with("---") {
            let section = sections.last_mut().unwrap();
            assert_eq!(cells.len(), section.columns.len().max(1) + 1, "{line:?}");
            section.rows.push(cells);
        }
    }
    claims_of(&heading, &sections, truth)
}

/// Splits at bars that no backslash takes away.
pub fn split_cells(line: &str) -> Vec<String> {
    let mut cells = vec![String::new()];
    let mut escaped = false;
    for character in line.chars() {
        match character {
            '|' if !escaped => cells.push(String::new()),
            other => cells.last_mut().unwrap().push(other),
        }
        escaped = character == '\\' && !escaped;
    }
    cells.iter().map(|cell| cell.trim_matches(' ').to_string()).collect()
}

/// What a reader of the rendered page sees, keys in their display form: code spans hold what they hold, outside of them
/// backslashes and names of characters are taken away.
pub fn shown(cell: &str) -> String {
    let mut text = String::new();
    let mut rest = cell;
    while let Some(first) = rest.chars().next() {
        rest = &rest[first.len_utf8()..];
        match first {
            '`' => {
                let end = rest.find('`').unwrap_or_else(|| panic!("a code span without an end in {cell:?}"));
                // A span of one blank stands for nothing: an empty one would be none.
                let span = if &rest[..end] == " " { String::new() } else { rest[..end].replace("\\|", "|") };
                // Signs of HTML stand in code spans as bytes of the key: the same bytes, escaped anew.
                let parts: Vec<String> = span
                    .split('…')
                    .map(|part| unescape(part).map_or_else(|| part.to_string(), |bytes| escape(&bytes)))
                    .collect();
                text.push_str(parts.join("…").trim_matches(' '));
                rest = &rest[end + 1..];
            }
            '\\' => {
                let next = rest.chars().next().unwrap_or('\\');
                text.push(next);
                rest = &rest[next.len_utf8().min(rest.len())..];
            }
            '&' => {
                let end = rest.find(';').unwrap_or_else(|| panic!("a bare & in {cell:?}"));
                text.push(match &rest[..end] {
                    "lt" => '<',
                    "gt" => '>',
                    "amp" => '&',
                    "#64" => '@',
                    other => panic!("unknown character {other:?} in {cell:?}"),
                });
                rest = &rest[end + 1..];
            }
            other => text.push(other),
        }
    }
    text
}

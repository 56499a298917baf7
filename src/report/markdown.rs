//! Tables that paste into a ticket. Keys stand in code spans, where nothing is a link, a mention or emphasis; what could
//! end a code span, a cell, or start HTML is written as `\xNN` or with a backslash.

use super::contents::Contents;
use super::sections::{self, Cell, List, Section, Table};
use std::io::{self, Write};

/// Writes the block of one target.
pub(super) fn write(out: &mut impl Write, contents: &Contents<'_>) -> io::Result<()> {
    write_heading(out, contents)?;
    for section in sections::sections(contents) {
        write_section(out, &section)?;
    }
    Ok(())
}

/// Writes what stands above the sections: target, window, totals, loss, filter.
pub(crate) fn write_heading(out: &mut impl Write, contents: &Contents<'_>) -> io::Result<()> {
    let heading = sections::heading(contents);
    let (first, rest) = heading.split_at(heading.len().min(2));
    let first: Vec<String> = first.iter().rev().map(|piece| plain(piece)).collect();
    writeln!(out, "### {}\n", first.join(", "))?;
    let rest: Vec<String> = rest.iter().map(|piece| plain(piece)).collect();
    writeln!(out, "{}\n", rest.join(", "))?;
    if let Some(merged) = contents.merged() {
        write_line(out, &merged.heading())?;
    }
    if let Some(filter) = &contents.options.filter {
        let filter = code(&filter.shown());
        writeln!(out, "Filter {filter} (rows only: totals, commands and losses are of all traffic)\n")?;
    }
    if contents.saw_nothing() {
        for line in sections::seen_elsewhere(contents) {
            writeln!(out, "- {}", plain(&line))?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// Writes the targets side by side.
pub(super) fn write_targets(out: &mut impl Write, all: &[Contents<'_>]) -> io::Result<()> {
    write_section(out, &sections::targets(all))
}

/// Writes a line of plain text and the blank line behind it.
pub(crate) fn write_line(out: &mut impl Write, text: &str) -> io::Result<()> {
    writeln!(out, "{}\n", plain(text))
}

/// Writes one section and the blank line behind it.
pub(crate) fn write_section(out: &mut impl Write, section: &Section<'_>) -> io::Result<()> {
    match section {
        Section::Table(table) => write_table(out, table)?,
        Section::List(list) => write_list(out, list)?,
    }
    writeln!(out)
}

fn write_table(out: &mut impl Write, table: &Table<'_>) -> io::Result<()> {
    let names: Vec<&str> = table.columns.iter().map(|column| column.name).collect();
    let rules: Vec<&str> =
        table.columns.iter().map(|column| if column.right { "---:" } else { "---" }).collect();
    writeln!(out, "| {} |", names.join(" | "))?;
    writeln!(out, "| {} |", rules.join(" | "))?;
    for index in 0..table.rows {
        let cells: Vec<String> = (table.row)(index).iter().map(cell_text).collect();
        writeln!(out, "| {} |", cells.join(" | "))?;
    }
    Ok(())
}

fn write_list(out: &mut impl Write, list: &List<'_>) -> io::Result<()> {
    writeln!(out, "| {} | |\n| --- | --- |", list.title)?;
    for index in 0..list.rows {
        let (label, items) = (list.row)(index);
        let items: Vec<String> = items.iter().map(|item| plain(item)).collect();
        writeln!(out, "| {} | {} |", cell_text(&label), items.join(" · "))?;
    }
    Ok(())
}

fn cell_text(cell: &Cell) -> String {
    match cell {
        Cell::Figure(text) => plain(text),
        Cell::Key { text, suffix } => format!("{}{}", code(text), plain(suffix)),
    }
}

/// A code span. The text is escaped already; what Markdown would still take for its own is escaped the same way.
fn code(text: &str) -> String {
    let mut span = String::with_capacity(text.len() + 2);
    span.push('`');
    let mut rest = text.chars();
    while let Some(character) = rest.next() {
        match character {
            '`' | '<' | '>' | '&' => span.push_str(&format!("\\x{:02x}", u32::from(character))),
            '|' => span.push_str("\\|"),
            // A span loses blanks at its ends, and a page all but one of several; a name may hold one.
            ' ' if span.ends_with(['`', ' ']) || rest.as_str().is_empty() => span.push_str("\\x20"),
            other => span.push(other),
        }
    }
    if text.is_empty() {
        span.push(' ');
    }
    span.push('`');
    span
}

/// Text of ours that may hold names or keys: every sign that Markdown might take for its own gets a backslash, and
/// every sign of HTML its name.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' => plain.push_str("&lt;"),
            '>' => plain.push_str("&gt;"),
            '&' => plain.push_str("&amp;"),
            '@' => plain.push_str("&#64;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '#' | '~' => {
                plain.push('\\');
                plain.push(character);
            }
            other => plain.push(other),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_key_is_markdown() {
        assert_eq!(code("a|b`c<script>"), "`a\\|b\\x60c\\x3cscript\\x3e`");
        assert_eq!(code(" a "), "`\\x20a\\x20`");
        assert_eq!(code("a name  of three"), "`a name \\x20of three`");
        assert_eq!(plain("<b>*a*|@me"), "&lt;b&gt;\\*a\\*\\|&#64;me");
    }
}

//! The configuration file: TOML to entries with their places. Knows the shape of the file from the table of settings; what
//! a value may be is judged there.

use super::KeyGroup;
use super::error::{Place, Problem, Spot};
use super::setting::{Refusal, SETTINGS, Takes, Value};
use super::target::{self, PORT_DEFAULT, TargetConfig};
use crate::report::{nearest, regex_reason};
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The keys of a `[[target]]`.
pub(super) const TARGET_KEYS: &[&str] = &["name", "address", "port", "protocols", "budget"];

/// The keys of a `[[keys.group]]`.
pub(super) const GROUP_KEYS: &[&str] = &["name", "match"];

/// What a file says.
#[derive(Default)]
pub(super) struct FileModel {
    /// Plain settings: key, value, place.
    pub entries: Vec<(&'static str, Value, Spot)>,
    /// Targets in their order, with the place of each; `None` when the file has no `[[target]]`.
    pub targets: Option<Vec<(TargetConfig, Spot)>>,
    /// Groups in their order, with the place of each.
    pub groups: Vec<(KeyGroup, Spot)>,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// Reads a file's text. Everything that is wrong with it is found at once.
pub(super) fn read(file: &str, text: &str) -> FileModel {
    let mut reader = Reader { file, text, model: FileModel::default() };
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let message = error.message().trim_end().to_string();
        reader.refuse(error.span().unwrap_or(0..0), Refusal::from(message));
    }
    if reader.model.problems.is_empty() {
        reader.read_sections(table.get_ref());
    }
    reader.model.problems.sort_by_key(|problem| match &problem.place {
        Place::File(spot) => (spot.line, spot.column),
        _ => (0, 0),
    });
    reader.model
}

struct Reader<'a> {
    file: &'a str,
    text: &'a str,
    model: FileModel,
}

impl Reader<'_> {
    fn spot(&self, span: Range<usize>) -> Spot {
        Spot::new(self.file, self.text, span)
    }

    fn refuse(&mut self, span: Range<usize>, refusal: Refusal) {
        debug_assert!(refusal.value.is_none(), "only the table of settings names values apart");
        let place = Place::File(self.spot(span));
        self.model.problems.push(Problem { message: refusal.message, place, help: refusal.help });
    }

    fn read_sections(&mut self, table: &DeTable<'_>) {
        for (key, value) in table.iter() {
            let section = key.get_ref().as_ref();
            match value.get_ref() {
                _ if section == "target" => self.read_targets(value),
                DeValue::Table(table) if sections().contains(&section) => self.read_section(section, table),
                _ if sections().contains(&section) => {
                    self.refuse(
                        value.span(),
                        wrong_type(section, &format!("a section; write [{section}]"), value),
                    );
                }
                _ => self.refuse(key.span(), unknown(section, "", &sections())),
            }
        }
    }

    fn read_section(&mut self, section: &str, table: &DeTable<'_>) {
        for (key, value) in table.iter() {
            let name = key.get_ref().as_ref();
            let full = format!("{section}.{name}");
            match SETTINGS.iter().find(|setting| setting.key == full) {
                Some(setting) if setting.key == "keys.group" => self.read_groups(value),
                Some(setting) => match read_value(setting.takes, &full, value) {
                    Ok(value_read) => {
                        let spot = self.spot(value.span());
                        self.model.entries.push((setting.key, value_read, spot));
                    }
                    Err(refusal) => self.refuse(value.span(), refusal),
                },
                None => self.refuse(key.span(), unknown(name, section, &keys_of(section))),
            }
        }
    }

    fn read_targets(&mut self, value: &Spanned<DeValue<'_>>) {
        let mut targets = Vec::new();
        for table in self.tables("target", value) {
            let before = self.model.problems.len();
            let DeValue::Table(entries) = table.get_ref() else { continue };
            let target = self.read_target(table.span(), entries);
            if self.model.problems.len() == before {
                targets.push((target, self.spot(table.span())));
            }
        }
        self.model.targets = Some(targets);
    }

    fn read_target(&mut self, span: Range<usize>, table: &DeTable<'_>) -> TargetConfig {
        let mut target = TargetConfig::default();
        for (key, value) in table.iter() {
            match take_target_key(&mut target, key.get_ref(), value) {
                Some(Ok(())) => {}
                Some(Err(refusal)) => self.refuse(value.span(), refusal),
                None => self.refuse(key.span(), unknown(key.get_ref(), "[target]", TARGET_KEYS)),
            }
        }
        let has = |name: &str| table.iter().any(|(key, _)| key.get_ref() == name);
        if !has("address") {
            self.refuse(span, missing("target", "address", "address = \"10.1.0.5\""));
        }
        if !has("name") {
            target.name = target.address();
        }
        target
    }

    fn read_groups(&mut self, value: &Spanned<DeValue<'_>>) {
        for table in self.tables("keys.group", value) {
            let DeValue::Table(entries) = table.get_ref() else { continue };
            if let Some(group) = self.read_group(table.span(), entries) {
                let spot = self.spot(table.span());
                self.model.groups.push((group, spot));
            }
        }
    }

    fn read_group(&mut self, span: Range<usize>, table: &DeTable<'_>) -> Option<KeyGroup> {
        let (mut name, mut pattern) = (None, None);
        let before = self.model.problems.len();
        for (key, value) in table.iter() {
            let result = match key.get_ref().as_ref() {
                "name" => group_name(value).map(|value| name = Some(value)),
                "match" => group_pattern(value).map(|value| pattern = Some(value)),
                other => {
                    self.refuse(key.span(), unknown(other, "[keys.group]", GROUP_KEYS));
                    continue;
                }
            };
            if let Err(refusal) = result {
                self.refuse(value.span(), refusal);
            }
        }
        match (name, pattern) {
            (Some(name), Some(pattern)) => return Some(KeyGroup { name, pattern }),
            _ if self.model.problems.len() > before => {}
            (None, _) => self.refuse(span, missing("keys.group", "name", "name = \"profile\"")),
            (_, None) => self.refuse(span, missing("keys.group", "match", "match = '^user:\\d+:profile$'")),
        }
        None
    }

    /// The tables of an array of tables; what is none is refused.
    fn tables<'t, 'i>(
        &mut self,
        key: &str,
        value: &'t Spanned<DeValue<'i>>,
    ) -> Vec<&'t Spanned<DeValue<'i>>> {
        let expected = format!("an array of tables; write [[{key}]]");
        let DeValue::Array(array) = value.get_ref() else {
            self.refuse(value.span(), wrong_type(key, &expected, value));
            return Vec::new();
        };
        let (tables, others): (Vec<_>, Vec<_>) =
            array.iter().partition(|item| matches!(item.get_ref(), DeValue::Table(_)));
        for other in others {
            self.refuse(other.span(), wrong_type(key, &expected, other));
        }
        tables
    }
}

/// Takes one key of a `[[target]]`; `None` when there is no such key.
fn take_target_key(
    target: &mut TargetConfig,
    key: &str,
    value: &Spanned<DeValue<'_>>,
) -> Option<Result<(), Refusal>> {
    Some(match key {
        "name" => text("target.name", value)
            .and_then(|text| Ok(target::check_name(&text)?))
            .map(|name| target.name = name),
        "address" => text("target.address", value)
            .and_then(|text| Ok(read_network(&text)?))
            .map(|network| target.network = network),
        "port" => port(value).map(|port| target.port = port),
        "protocols" => protocols(value).map(|protocols| (target.tcp, target.udp) = protocols),
        "budget" => text("target.budget", value)
            .and_then(|text| Ok(target::parse_budget(&text)?))
            .map(|bytes| target.budget_bytes = bytes),
        _ => return None,
    })
}

fn protocols(value: &Spanned<DeValue<'_>>) -> Result<(bool, bool), Refusal> {
    match read_value(Takes::List, "target.protocols", value)? {
        Value::List(list) => Ok(target::parse_protocols(&list)?),
        _ => Err(wrong_type("target.protocols", "a list", value)),
    }
}

fn group_name(value: &Spanned<DeValue<'_>>) -> Result<String, Refusal> {
    Ok(target::check_name(&text("keys.group.name", value)?)?)
}

fn group_pattern(value: &Spanned<DeValue<'_>>) -> Result<regex::bytes::Regex, Refusal> {
    let pattern = text("keys.group.match", value)?;
    Ok(regex::bytes::Regex::new(&pattern).map_err(|error| regex_reason(&error))?)
}

fn sections() -> Vec<&'static str> {
    let mut sections: Vec<&str> =
        SETTINGS.iter().filter_map(|setting| setting.key.split('.').next()).collect();
    sections.dedup();
    sections
}

fn keys_of(section: &str) -> Vec<&'static str> {
    let keys = SETTINGS.iter().filter_map(|setting| setting.key.split_once('.'));
    keys.filter(|(of, _)| *of == section).map(|(_, key)| key).collect()
}

fn read_network(text: &str) -> Result<crate::network::Network, String> {
    target::parse_network(text).map_err(|error| match TargetConfig::parse(text) {
        Ok(target) => format!(
            "{text:?} has a port in it; write address = \"{}\" and port = {}",
            target.network, target.port
        ),
        Err(_) => error,
    })
}

fn port(value: &Spanned<DeValue<'_>>) -> Result<u16, Refusal> {
    let Value::Number(number) = read_value(Takes::Number, "target.port", value)? else {
        return Ok(PORT_DEFAULT);
    };
    u16::try_from(number).ok().filter(|port| *port > 0).ok_or_else(|| Refusal {
        value: None,
        message: format!("target.port = {number} is out of range"),
        help: Some("allowed: 1 to 65535".to_string()),
    })
}

fn text(key: &str, value: &Spanned<DeValue<'_>>) -> Result<String, Refusal> {
    match value.get_ref() {
        DeValue::String(text) => Ok(text.to_string()),
        _ => Err(wrong_type(key, "text in quotes", value)),
    }
}

fn read_value(takes: Takes, key: &str, value: &Spanned<DeValue<'_>>) -> Result<Value, Refusal> {
    let expected = match takes {
        Takes::Text => "text in quotes",
        Takes::Number => "a whole number",
        Takes::TextOrNumber => "text in quotes or a whole number",
        Takes::Switch => "true or false",
        Takes::List => "a list of texts, such as [\"one\", \"two\"]",
        Takes::Tables => "an array of tables",
    };
    let refusal = || wrong_type(key, expected, value);
    match (takes, value.get_ref()) {
        (Takes::Text | Takes::TextOrNumber, DeValue::String(text)) => Ok(Value::Text(text.to_string())),
        (Takes::Number | Takes::TextOrNumber, DeValue::Integer(integer)) => {
            let number = i64::from_str_radix(&integer.as_str().replace('_', ""), integer.radix());
            number.map(Value::Number).map_err(|_| refusal())
        }
        (Takes::Switch, DeValue::Boolean(switch)) => Ok(Value::Switch(*switch)),
        (Takes::List, DeValue::Array(items)) => {
            let texts = items.iter().map(|item| match item.get_ref() {
                DeValue::String(text) => Ok(text.to_string()),
                _ => Err(refusal()),
            });
            texts.collect::<Result<_, _>>().map(Value::List)
        }
        _ => Err(refusal()),
    }
}

fn wrong_type(key: &str, expected: &str, found: &Spanned<DeValue<'_>>) -> Refusal {
    let found = match found.get_ref() {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    };
    Refusal { value: None, message: format!("{key} is {found}"), help: Some(format!("allowed: {expected}")) }
}

fn missing(table: &str, key: &str, example: &str) -> Refusal {
    Refusal {
        value: None,
        message: format!("[[{table}]] has no {key}"),
        help: Some(format!("write {example}")),
    }
}

/// An unknown key of a section; an unknown section when `section` is empty.
fn unknown(name: &str, section: &str, known: &[&'static str]) -> Refusal {
    let elsewhere = SETTINGS.iter().filter_map(|setting| setting.key.split_once('.'));
    let elsewhere = elsewhere.filter(|(_, key)| *key == name).map(|(section, _)| section).next();
    let help = match (nearest(name, known), elsewhere) {
        (Some(near), _) => format!("did you mean {near}?"),
        (None, Some("target")) => format!("{name} belongs to [[target]]"),
        (None, Some(home)) => format!("{name} belongs to [{home}]"),
        (None, None) => format!("allowed: {}", known.join(", ")),
    };
    let place = match section {
        "" => String::new(),
        table if table.starts_with('[') => format!(" in [{table}]"),
        section => format!(" in [{section}]"),
    };
    let what = if section.is_empty() { "section or key" } else { "key" };
    Refusal {
        value: None,
        message: format!("unknown {what} {}{place}", super::setting::printable(name)),
        help: Some(help),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_of_the_file_comes_from_the_settings() {
        assert_eq!(sections(), ["capture", "target", "report", "keys", "control", "log"]);
        assert_eq!(keys_of("log"), ["format", "level"]);
    }
}

//! The configuration in force, as a file that says the same.

use super::setting::{SETTINGS, quoted, quoted_list};
use super::target::TargetConfig;
use super::{Loaded, Origin, units};

/// Width up to which origins stand in one column.
const ORIGIN_COLUMN: usize = 36;

pub(super) fn show(loaded: &Loaded, with_origin: bool) -> String {
    let mut text = String::new();
    let mut section = "";
    for setting in SETTINGS {
        let Some((of, key)) = setting.key.split_once('.').or(Some((setting.key, ""))) else { continue };
        if of != section && of != "target" {
            text.push_str(&format!("{}[{of}]\n", if text.is_empty() { "" } else { "\n" }));
        }
        section = of;
        match setting.key {
            "target" => push_targets(&mut text, loaded, with_origin),
            "target.budget" => {}
            "keys.group" => push_groups(&mut text, loaded, with_origin),
            "keys.hash_secret" if loaded.config.keys.hash_secret.is_some() => {
                push(
                    &mut text,
                    "# hash_secret is set, and not shown",
                    origin(loaded, setting.key, with_origin),
                );
            }
            _ => {
                let value = (setting.show)(&loaded.config).unwrap_or_default();
                push(&mut text, &format!("{key} = {value}"), origin(loaded, setting.key, with_origin));
            }
        }
    }
    text
}

fn origin<'a>(loaded: &'a Loaded, key: &str, with_origin: bool) -> Option<&'a Origin> {
    with_origin.then(|| loaded.origin(key))
}

fn push(text: &mut String, line: &str, origin: Option<&Origin>) {
    match origin {
        Some(origin) => text.push_str(&format!("{line:<ORIGIN_COLUMN$} # {origin}\n")),
        None => text.push_str(&format!("{line}\n")),
    }
}

fn push_targets(text: &mut String, loaded: &Loaded, with_origin: bool) {
    let budget = loaded.origins.get("target.budget").filter(|_| with_origin);
    for target in &loaded.config.targets {
        text.push('\n');
        push(text, "[[target]]", origin(loaded, "target", with_origin));
        for line in target_lines(target) {
            let origin = budget.filter(|_| line.starts_with("budget"));
            push(text, &line, origin);
        }
    }
}

fn target_lines(target: &TargetConfig) -> [String; 5] {
    let protocols = [("tcp", target.tcp), ("udp", target.udp)];
    let protocols = protocols.iter().filter(|(_, watched)| *watched).map(|(name, _)| name);
    [
        format!("name = {}", quoted(&target.name)),
        format!("address = {}", quoted(target.network.to_string())),
        format!("port = {}", target.port),
        format!("protocols = {}", quoted_list(protocols)),
        format!("budget = {}", quoted(units::show_bytes(target.budget_bytes))),
    ]
}

fn push_groups(text: &mut String, loaded: &Loaded, with_origin: bool) {
    for group in &loaded.config.keys.groups {
        text.push('\n');
        push(text, "[[keys.group]]", origin(loaded, "keys.group", with_origin));
        push(text, &format!("name = {}", quoted(&group.name)), None);
        push(text, &format!("match = {}", quoted(group.pattern.as_str())), None);
    }
}

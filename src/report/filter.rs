//! The one filter grammar: terms joined by `and`.
//!
//! ```text
//! key ~ REGEX       key !~ REGEX      key = KEY         key != KEY
//! client = IP[:PORT] or CIDR          client != …
//! command = NAME    command != NAME
//! ```
//!
//! A value with a space in it stands in single or double quotes. [`Filter::admits`] judges single requests, with every
//! term. Rows are sums over requests, so [`Filter::apply`] judges them by what they know: a row of a key by its key, by
//! the clients in it, and by whether any request was of the command's class; a row of a client by its address and class.

use super::escape::unescape;
use crate::collector::snapshot::{ClientRow, Counters, KeyRow, Snapshot};
use crate::model::{Command, CommandClass, Endpoint};
use crate::network::Network;
use regex::bytes::Regex;
use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// Which requests, keys and clients to show.
#[derive(Clone, Debug)]
pub struct Filter {
    text: String,
    terms: Vec<Term>,
}

#[derive(Clone, Debug)]
struct Term {
    negated: bool,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    KeyMatches(Regex),
    KeyIs(Vec<u8>),
    Client(Network, Option<u16>),
    Command(Command),
}

impl PartialEq for Filter {
    fn eq(&self, other: &Filter) -> bool {
        self.text == other.text
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Filter {
    /// As it may be printed: what the operator wrote, without what could drive a terminal.
    pub(crate) fn shown(&self) -> String {
        super::escape::escape_name(&self.text)
    }

    /// Whether a single request passes.
    pub fn admits(&self, key: &[u8], client: &Endpoint, command: Command) -> bool {
        self.terms.iter().all(|term| {
            let holds = match &term.test {
                Test::KeyMatches(regex) => regex.is_match(key),
                Test::KeyIs(expected) => expected == key,
                Test::Client(network, port) => holds_for_client(network, *port, client),
                Test::Command(expected) => *expected == command,
            };
            holds != term.negated
        })
    }

    /// The snapshot with the rows that pass. Its totals stay those of all traffic.
    pub(crate) fn apply<'a>(&self, snapshot: &'a Snapshot) -> Cow<'a, Snapshot> {
        let clients = |rows: &[ClientRow]| -> Vec<ClientRow> {
            rows.iter().filter(|row| self.admits_client_row(row)).cloned().collect()
        };
        Cow::Owned(Snapshot {
            keys: snapshot.keys.iter().filter_map(|row| self.narrow_key_row(row)).collect(),
            clients: clients(&snapshot.clients),
            sockets: clients(&snapshot.sockets),
            servers: snapshot.servers.clone(),
            target: snapshot.target.clone(),
            address: snapshot.address.clone(),
            totals: snapshot.totals.clone(),
            command_latency: snapshot.command_latency.clone(),
            loss: snapshot.loss.clone(),
            ..*snapshot
        })
    }

    /// The row with those of its clients that pass; `None` when it does not pass itself.
    fn narrow_key_row(&self, row: &KeyRow) -> Option<KeyRow> {
        let key_passes = self.terms.iter().all(|term| match &term.test {
            Test::KeyMatches(regex) => regex.is_match(&row.key) != term.negated,
            Test::KeyIs(expected) => (**expected == *row.key) != term.negated,
            Test::Command(command) => has_class(&row.counters, *command, term.negated),
            Test::Client(..) => true,
        });
        if !key_passes {
            return None;
        }
        let mut row = row.clone();
        row.clients.retain(|pair| self.admits_client(&pair.client));
        let names_clients = self.terms.iter().any(|term| matches!(term.test, Test::Client(..)));
        (!names_clients || !row.clients.is_empty()).then_some(row)
    }

    fn admits_client_row(&self, row: &ClientRow) -> bool {
        let class_passes = self.terms.iter().all(|term| match &term.test {
            Test::Command(command) => has_class(&row.counters, *command, term.negated),
            _ => true,
        });
        class_passes && self.admits_client(&row.client)
    }

    fn admits_client(&self, client: &Endpoint) -> bool {
        self.terms.iter().all(|term| match &term.test {
            Test::Client(network, port) => holds_for_client(network, *port, client) != term.negated,
            _ => true,
        })
    }
}

/// A row by IP has port 0, and passes for a term that names one of its connections.
fn holds_for_client(network: &Network, port: Option<u16>, client: &Endpoint) -> bool {
    network.contains(client) && port.is_none_or(|port| port == client.port() || client.port() == 0)
}

/// Whether any request of the row can have been of the command (or, negated, of another one).
fn has_class(counters: &Counters, command: Command, negated: bool) -> bool {
    let of_class = match command.class() {
        CommandClass::Retrieval => counters.gets,
        CommandClass::Storage => counters.stores,
        CommandClass::Deletion => counters.deletes,
        CommandClass::Touch => counters.touches,
        CommandClass::Arithmetic => counters.arithmetic,
        CommandClass::Other => counters.other,
        CommandClass::Keyless => 0,
    };
    // Other commands of the same class may be among them, so a class alone never excludes a row for `!=`.
    if negated { counters.requests() > 0 } else { of_class > 0 }
}

/// Why a text is no filter (or no condition), and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}\n  {text}\n  {}{}", " ".repeat(self.column), "^".repeat(self.length.max(1)))]
pub struct FilterError {
    /// What is wrong and what is allowed.
    pub message: String,
    /// The filter.
    pub text: String,
    /// Where the wrong part begins, in characters.
    pub column: usize,
    /// Its length in characters.
    pub length: usize,
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Filter, FilterError> {
        let words = words(text).map_err(|(word, message)| word.refuse(text, message))?;
        let mut terms = Vec::new();
        let mut rest = words.as_slice();
        loop {
            let [field, operator, value, tail @ ..] = rest else {
                let message = "expected FIELD OPERATOR VALUE, such as key ~ ^user: and client = 10.0.0.0/8";
                return Err(rest.last().unwrap_or(&Word::at_end(text)).refuse(text, message));
            };
            terms.push(term(text, field, operator, value)?);
            match tail {
                [] => return Ok(Filter { text: text.trim().to_string(), terms }),
                [and, tail @ ..] if and.text == "and" && !and.quoted => rest = tail,
                [other, ..] => {
                    let message = "expected \"and\" or the end; put a value with spaces into quotes";
                    return Err(other.refuse(text, message));
                }
            }
        }
    }
}

/// A word of a filter, with its place in bytes.
#[derive(Clone, Debug)]
pub(super) struct Word {
    pub(super) text: String,
    start: usize,
    end: usize,
    quoted: bool,
}

impl Word {
    /// What is missing at the end of `text`.
    pub(super) fn at_end(text: &str) -> Word {
        Word { text: String::new(), start: text.len(), end: text.len(), quoted: false }
    }

    pub(super) fn refuse(&self, filter: &str, message: impl Into<String>) -> FilterError {
        // One printed line, whatever the text holds: every control character becomes one column.
        let text =
            filter.chars().map(|character| if character.is_control() { ' ' } else { character }).collect();
        FilterError {
            message: message.into(),
            text,
            column: filter[..self.start].chars().count(),
            length: filter[self.start..self.end].chars().count(),
        }
    }
}

/// Splits at spaces outside quotes.
pub(super) fn words(text: &str) -> Result<Vec<Word>, (Word, &'static str)> {
    let mut words = Vec::new();
    let mut at = 0;
    loop {
        at += text[at..].len() - text[at..].trim_start().len();
        let Some(first) = text[at..].chars().next() else { return Ok(words) };
        if matches!(first, '\'' | '"') {
            let Some(length) = text[at + 1..].find(first) else {
                let word = Word { text: String::new(), start: at, end: text.len(), quoted: true };
                return Err((word, "the quote is never closed"));
            };
            let end = at + length + 2;
            words.push(Word { text: text[at + 1..end - 1].to_string(), start: at, end, quoted: true });
            at = end;
        } else {
            let end = text[at..].find(char::is_whitespace).map_or(text.len(), |length| at + length);
            words.push(Word { text: text[at..end].to_string(), start: at, end, quoted: false });
            at = end;
        }
    }
}

fn term(text: &str, field: &Word, operator: &Word, value: &Word) -> Result<Term, FilterError> {
    let allowed: &[&str] = match field.text.as_str() {
        "key" => &["~", "!~", "=", "!="],
        "client" | "command" => &["=", "!="],
        other => {
            let message = format!("unknown field {other:?}; allowed are key, client, command");
            return Err(field.refuse(text, message));
        }
    };
    if !allowed.contains(&operator.text.as_str()) {
        let message = format!("{} takes one of {}, not {:?}", field.text, allowed.join(" "), operator.text);
        return Err(operator.refuse(text, message));
    }
    let test = match (field.text.as_str(), operator.text.trim_start_matches('!')) {
        ("key", "~") => Regex::new(&value.text).map(Test::KeyMatches).map_err(|error| regex_reason(&error)),
        ("key", _) => unescape(&value.text).map(Test::KeyIs).ok_or_else(|| {
            "not a key as reports show it: printable ASCII, \\xNN for other bytes, \\\\ for a backslash"
                .to_string()
        }),
        ("client", _) => client_test(&value.text),
        _ => command_test(&value.text),
    };
    let test = test.map_err(|message| value.refuse(text, message))?;
    Ok(Term { negated: operator.text.starts_with('!'), test })
}

/// The last line of a regex error says what is wrong; the lines before it repeat the pattern.
pub(crate) fn regex_reason(error: &regex::Error) -> String {
    let text = error.to_string();
    let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
    format!("not a regular expression: {reason}")
}

fn client_test(text: &str) -> Result<Test, String> {
    if let Ok(socket) = text.parse::<SocketAddr>() {
        return Ok(Test::Client(Network::of(socket.ip()), Some(socket.port())));
    }
    text.parse().map(|network| Test::Client(network, None)).map_err(|_| {
        format!("{text:?} is not a client; write IP, IP:PORT, [IPV6]:PORT or a CIDR such as 10.2.0.0/16")
    })
}

fn command_test(text: &str) -> Result<Test, String> {
    let command = Command::ALL.iter().find(|command| command.name() == text);
    command.copied().map(Test::Command).ok_or_else(|| {
        let names: Vec<&str> = Command::ALL.iter().map(|command| command.name()).collect();
        format!("{text:?} is not a command; known are {}", names.join(" "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(text: &str) -> Filter {
        text.parse().unwrap()
    }

    fn client(text: &str) -> Endpoint {
        let socket: SocketAddr = text.parse().unwrap();
        Endpoint::new(socket.ip(), socket.port())
    }

    #[test]
    fn judges_requests() {
        let joined = filter("key ~ ^user: and client = 10.2.0.0/16 and command != set");
        assert!(joined.admits(b"user:1", &client("10.2.0.17:5"), Command::Get));
        assert!(!joined.admits(b"user:1", &client("10.2.0.17:5"), Command::Set));
        assert!(!joined.admits(b"user:1", &client("10.3.0.17:5"), Command::Get));
        assert!(!joined.admits(b"item:1", &client("10.2.0.17:5"), Command::Get));
        assert!(filter("key !~ ^user:").admits(b"item", &client("1.1.1.1:1"), Command::Get));
        assert!(filter("key = a\\x00b").admits(b"a\0b", &client("1.1.1.1:1"), Command::Get));
        assert!(filter("client = 1.1.1.1:7").admits(b"a", &client("1.1.1.1:7"), Command::Get));
        assert!(!filter("client = 1.1.1.1:7").admits(b"a", &client("1.1.1.1:8"), Command::Get));
        assert!(filter("key ~ 'a b'").admits(b"xa bx", &client("1.1.1.1:1"), Command::Get));
        assert!(filter("client = [fd00::1]:7").admits(b"a", &client("[fd00::1]:7"), Command::Get));
    }

    #[test]
    fn errors_point_at_the_mistake() {
        let check = |text: &str, expected: &str| {
            assert_eq!(text.parse::<Filter>().unwrap_err().to_string(), expected, "{text}");
        };
        check("kye ~ x", "unknown field \"kye\"; allowed are key, client, command\n  kye ~ x\n  ^^^");
        check("client ~ x", "client takes one of = !=, not \"~\"\n  client ~ x\n         ^");
        check(
            "key ~ a b",
            "expected \"and\" or the end; put a value with spaces into quotes\n  key ~ a b\n          ^",
        );
        check("key ~ (a", "not a regular expression: unclosed group\n  key ~ (a\n        ^^");
        check("key ~ 'a", "the quote is never closed\n  key ~ 'a\n        ^^");
        let client = "\"here\" is not a client; write IP, IP:PORT, [IPV6]:PORT or a CIDR such as 10.2.0.0/16";
        check("client = here", &format!("{client}\n  client = here\n           ^^^^"));
        let short = "expected FIELD OPERATOR VALUE, such as key ~ ^user: and client = 10.0.0.0/8";
        check("", &format!("{short}\n  \n  ^"));
        check("key ~ x and", &format!("{short}\n  key ~ x and\n             ^"));
    }
}

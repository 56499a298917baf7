//! Which key says what. One table: the help screen and the footer read from it too.

use super::state::Input;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// Keys and what they do, as help shows them.
pub const HELP: &[(&str, &str)] = &[
    ("1 … 8, Tab", "keys, clients, shapes, groups, servers, targets, commands, health"),
    ("↑ ↓ PgUp PgDn Home End, j k", "move the selection, which stays with its row"),
    ("Enter", "deeper: clients of a key, keys of a client"),
    ("Esc, Backspace", "back"),
    ("< >", "sort by the figure before, after"),
    ("r", "reverse the order"),
    ("/", "filter: a regular expression for keys, or"),
    ("", "key ~ … and client = … and command = …"),
    ("c", "clear the filter"),
    ("i", "clients by IP, or by IP and port"),
    ("w", "window: interval, 1m, 10m, 1h, all kept"),
    ("t T", "next, previous target"),
    ("Space", "freeze, and go on"),
    ("[ ]", "step back, forward through past intervals"),
    ("e", "export what is shown: NAME.md or NAME.jsonl"),
    ("?", "this help"),
    ("q, Ctrl-C", "quit"),
];

/// What a key press says; nothing for keys without a meaning. `typing`: a line of text is being asked for.
pub fn input(event: KeyEvent, typing: bool) -> Option<Input> {
    if event.kind == KeyEventKind::Release {
        return None;
    }
    if event.modifiers.contains(KeyModifiers::CONTROL) {
        return match event.code {
            KeyCode::Char('c') => Some(Input::Quit),
            KeyCode::Char('u') if typing => Some(Input::EraseLine),
            _ => None,
        };
    }
    if typing { line_input(event.code) } else { screen_input(event.code) }
}

fn line_input(code: KeyCode) -> Option<Input> {
    Some(match code {
        KeyCode::Char(character) if !character.is_control() => Input::Type(character),
        KeyCode::Backspace => Input::Erase,
        KeyCode::Enter => Input::Enter,
        KeyCode::Esc => Input::Back,
        _ => return None,
    })
}

fn screen_input(code: KeyCode) -> Option<Input> {
    Some(match code {
        KeyCode::Char('q') => Input::Quit,
        KeyCode::Char(digit @ '1'..='8') => Input::Show(usize::from(digit as u8 - b'1')),
        KeyCode::Tab => Input::NextView,
        KeyCode::BackTab => Input::PreviousView,
        KeyCode::Up | KeyCode::Char('k') => Input::Up,
        KeyCode::Down | KeyCode::Char('j') => Input::Down,
        KeyCode::PageUp => Input::PageUp,
        KeyCode::PageDown => Input::PageDown,
        KeyCode::Home | KeyCode::Char('g') => Input::First,
        KeyCode::End | KeyCode::Char('G') => Input::Last,
        KeyCode::Enter => Input::Enter,
        KeyCode::Esc | KeyCode::Backspace => Input::Back,
        KeyCode::Char('<' | ',') => Input::SortBefore,
        KeyCode::Char('>' | '.') => Input::SortAfter,
        KeyCode::Char('r') => Input::Reverse,
        KeyCode::Char('/') => Input::AskFilter,
        KeyCode::Char('c') => Input::ClearFilter,
        KeyCode::Char('i') => Input::ClientView,
        KeyCode::Char('w') => Input::Window,
        KeyCode::Char('t') => Input::NextTarget,
        KeyCode::Char('T') => Input::PreviousTarget,
        KeyCode::Char(' ') => Input::Freeze,
        KeyCode::Char('[') | KeyCode::Left => Input::Older,
        KeyCode::Char(']') | KeyCode::Right => Input::Newer,
        KeyCode::Char('e') => Input::AskExport,
        KeyCode::Char('?' | 'h') => Input::Help,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_text_while_a_line_is_asked_for() {
        let press = |code| KeyEvent::new(code, KeyModifiers::NONE);
        assert_eq!(input(press(KeyCode::Char('q')), false), Some(Input::Quit));
        assert_eq!(input(press(KeyCode::Char('q')), true), Some(Input::Type('q')));
        assert_eq!(input(press(KeyCode::Char('\u{1b}')), true), None);
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(input(interrupt, true), Some(Input::Quit));
    }
}

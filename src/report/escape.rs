//! Showing hostile bytes. A key may hold any byte, and a client chooses it: an unescaped one could drive the operator's
//! terminal. Raw bytes are kept everywhere and escaped once, by the writer of a format.

/// The display form of a key: visible ASCII as it is, a backslash doubled, every other byte as `\xNN`. Reversible (see
/// [`unescape`]), the same in every format, and as wide on the screen as it is long. Blanks are among the others: a key of
/// the binary protocol that holds some could draw columns and figures of its own into a table.
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'\\' => text.push_str("\\\\"),
            b'!'..=b'~' => text.push(char::from(byte)),
            _ => push_hex(&mut text, byte),
        }
    }
    text
}

/// Names that the operator chose (targets, groups, hosts): other alphabets are welcome, but nothing that could drive
/// a terminal, reorder text, or take no room.
pub fn escape_name(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for character in name.chars() {
        if character.is_ascii_graphic() || character == ' ' || character.is_alphanumeric() {
            text.push(character);
        } else {
            let mut buffer = [0; 4];
            for &byte in character.encode_utf8(&mut buffer).as_bytes() {
                push_hex(&mut text, byte);
            }
        }
    }
    text
}

/// The bytes that [`escape`] made `text` of; `None` when it cannot have made it. A blank is forgiven: people write them.
pub fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = match (first, tail) {
            (b'\\', [b'\\', tail @ ..]) => {
                bytes.push(b'\\');
                tail
            }
            (b'\\', [b'x', high, low, tail @ ..]) => {
                bytes.push(hex_value(*high)? << 4 | hex_value(*low)?);
                tail
            }
            (b' '..=b'~', tail) if first != b'\\' => {
                bytes.push(first);
                tail
            }
            _ => return None,
        };
    }
    Some(bytes)
}

/// Shortens escaped text in its middle to at most `width` characters. Never cuts an escape in two.
pub fn shorten(text: &str, width: usize) -> String {
    let characters: Vec<char> = text.chars().collect();
    if characters.len() <= width {
        return text.to_string();
    }
    let kept = width.saturating_sub(1);
    let head = whole_escapes(&characters, kept - kept / 2);
    let tail = (characters.len() - kept / 2..=characters.len()).find(|&at| starts_whole(&characters, at));
    let tail = tail.unwrap_or(characters.len());
    characters[..head].iter().chain(&['…']).chain(&characters[tail..]).collect()
}

/// The greatest end at or before `end` that does not stand inside an escape.
fn whole_escapes(characters: &[char], end: usize) -> usize {
    (0..=end).rev().find(|&at| starts_whole(characters, at)).unwrap_or(0)
}

/// Whether `at` is not inside an escape. Looks back at most to the run of backslashes before it.
fn starts_whole(characters: &[char], at: usize) -> bool {
    (1..=3).all(|back| {
        let Some(start) = at.checked_sub(back) else { return true };
        if characters[start] != '\\' || !leads_escape(characters, start) {
            return true;
        }
        let length = if characters.get(start + 1) == Some(&'x') { 4 } else { 2 };
        start + length <= at
    })
}

/// Whether the backslash at `start` begins an escape, rather than being the second one of a doubled backslash.
fn leads_escape(characters: &[char], start: usize) -> bool {
    let run = characters[..start].iter().rev().take_while(|&&character| character == '\\').count();
    run % 2 == 0
}

fn push_hex(text: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    text.push_str("\\x");
    text.push(char::from(DIGITS[usize::from(byte >> 4)]));
    text.push(char::from(DIGITS[usize::from(byte & 15)]));
}

fn hex_value(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn shows_what_a_terminal_must_not_obey() {
        assert_eq!(escape(b"user:1:profile"), "user:1:profile");
        assert_eq!(escape(b"a\x1b[2Jb"), "a\\x1b[2Jb");
        assert_eq!(escape(b"back\\slash"), "back\\\\slash");
        assert_eq!(escape(b"a  9,999"), "a\\x20\\x209,999");
        assert_eq!(escape("ü".as_bytes()), "\\xc3\\xbc");
        assert_eq!(escape_name("cache-é\u{202e}\n"), "cache-é\\xe2\\x80\\xae\\x0a");
    }

    #[test]
    fn shortens_in_the_middle_and_never_inside_an_escape() {
        assert_eq!(shorten("user:1:profile", 14), "user:1:profile");
        assert_eq!(shorten("user:1:profile", 9), "user…file");
        assert_eq!(shorten("ab\\x00cd\\x01ef", 9), "ab…ef");
        assert_eq!(shorten("\\\\\\\\\\\\", 5), "\\\\…\\\\");
        assert_eq!(shorten("abc", 0), "…");
    }

    proptest! {
        #[test]
        fn escaping_is_reversible(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let text = escape(&bytes);
            prop_assert!(text.bytes().all(|byte| byte.is_ascii_graphic()));
            prop_assert_eq!(unescape(&text), Some(bytes));
        }

        #[test]
        fn shortened_parts_are_whole(bytes in proptest::collection::vec(any::<u8>(), 0..40), width in 1usize..60) {
            let text = shorten(&escape(&bytes), width);
            prop_assert!(text.chars().count() <= width);
            for part in text.split('…') {
                prop_assert!(unescape(part).is_some(), "{part}");
            }
        }
    }
}

//! Lines and tokens of the text protocol, cut as memcached cuts them (`proto_text.c`: `tokenize_command`, `try_read_command_ascii`).
//!
//! A line ends at `\n`; one `\r` directly before it is dropped. Only spaces separate tokens, runs of them are one, and
//! everything from the first NUL on is not seen by the server.

/// A complete line: its content, and the bytes that it takes with its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    /// Without line end, cut at the first NUL.
    pub(super) content: &'a [u8],
    /// With line end.
    pub(super) wire_bytes: usize,
}

/// The first line of `bytes`, when its end is there.
pub(super) fn line(bytes: &[u8]) -> Option<Line<'_>> {
    let end = memchr::memchr(b'\n', bytes)?;
    let content = &bytes[..end];
    let content = content.strip_suffix(b"\r").unwrap_or(content);
    Some(Line { content, wire_bytes: end + 1 })
}

/// Tokens of a line's content.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tokens<'a>(&'a [u8]);

impl<'a> Tokens<'a> {
    pub(super) fn of(content: &'a [u8]) -> Tokens<'a> {
        Tokens(content)
    }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let start = self.0.iter().position(|&byte| byte != b' ')?;
        let rest = &self.0[start..];
        let end = memchr::memchr(b' ', rest).unwrap_or(rest.len());
        let (token, rest) = rest.split_at(end);
        self.0 = rest;
        Some(token)
    }
}

/// A decimal number without sign.
pub(super) fn number(token: &[u8]) -> Option<u64> {
    if token.is_empty() || token.len() > 20 {
        return None;
    }
    token.iter().try_fold(0u64, |value, &byte| {
        let digit = byte.wrapping_sub(b'0');
        (digit <= 9).then(|| value.checked_mul(10)?.checked_add(u64::from(digit)))?
    })
}

/// Whether the token is a decimal number, with a sign or without.
pub(super) fn is_number(token: &[u8]) -> bool {
    number(token.strip_prefix(b"-").unwrap_or(token)).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_at_the_newline_with_or_without_return() {
        assert_eq!(line(b"get a\r\nx"), Some(Line { content: b"get a", wire_bytes: 7 }));
        assert_eq!(line(b"get a\nx"), Some(Line { content: b"get a", wire_bytes: 6 }));
        assert_eq!(line(b"\r\n"), Some(Line { content: b"", wire_bytes: 2 }));
        assert_eq!(line(b"get a\r"), None);
    }

    #[test]
    fn only_spaces_separate() {
        let tokens: Vec<_> = Tokens::of(b"  get   a\tb c ").collect();
        assert_eq!(tokens, [&b"get"[..], b"a\tb", b"c"]);
    }

    #[test]
    fn numbers_do_not_wrap() {
        assert_eq!(number(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(number(b"18446744073709551616"), None);
        assert_eq!(number(b"99999999999999999999999"), None);
        assert_eq!(number(b""), None);
        assert_eq!(number(b"-1"), None);
        assert!(is_number(b"-1") && !is_number(b"-"));
    }
}

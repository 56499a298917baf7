//! Lexical rules of the text protocol: lines, tokens, numbers.
//!
//! As the server does it (`tokenize_command` and `try_read_command_ascii` in `proto_text.c`): a line ends at LF, one CR before
//! it is dropped, only SPACE separates tokens.

use memchr::memchr;

/// The line at the front of `bytes` without its end, and the bytes that it takes with it; `None` while it has no end.
pub(super) fn split_line(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let newline = memchr(b'\n', bytes)?;
    let line = &bytes[..newline];
    Some((line.strip_suffix(b"\r").unwrap_or(line), newline + 1))
}

/// What servers before 1.6.40 see of a line: what stands before the first NUL (`process_command_ascii` takes it for a C string).
pub(super) fn before_nul(line: &[u8]) -> &[u8] {
    memchr(0, line).map_or(line, |end| &line[..end])
}

/// The tokens of a line, in order.
#[derive(Clone, Debug)]
pub(super) struct Tokens<'a> {
    rest: &'a [u8],
}

impl<'a> Tokens<'a> {
    /// The tokens of `line`.
    pub(super) fn new(line: &'a [u8]) -> Tokens<'a> {
        Tokens { rest: line }
    }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let start = self.rest.iter().position(|&byte| byte != b' ')?;
        let rest = &self.rest[start..];
        let end = rest.iter().position(|&byte| byte == b' ').unwrap_or(rest.len());
        self.rest = &rest[end..];
        Some(&rest[..end])
    }
}

/// An unsigned decimal number and nothing else.
pub(super) fn parse_unsigned(token: &[u8]) -> Option<u64> {
    if token.is_empty() || token.len() > 20 {
        return None;
    }
    token.iter().try_fold(0u64, |value, &byte| {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 { None } else { value.checked_mul(10)?.checked_add(u64::from(digit)) }
    })
}

/// Whether the token is a decimal number, perhaps negative.
pub(super) fn is_integer(token: &[u8]) -> bool {
    parse_unsigned(token.strip_prefix(b"-").unwrap_or(token)).is_some()
}

/// A value's length on the wire with its line end. The server reads lengths as `int32_t` (`process_update_command`).
pub(super) fn parse_body(token: &[u8]) -> Option<u64> {
    parse_unsigned(token).filter(|&length| length <= i32::MAX as u64 - 2).map(|length| length + 2)
}

/// Whether a key could have been sent on purpose: not empty, not too long, no control characters.
pub(super) fn is_plausible_key(key: &[u8]) -> bool {
    !key.is_empty()
        && key.len() <= super::queue::KEY_MAX
        && key.iter().all(|&byte| byte > b' ' && byte != 0x7f)
}

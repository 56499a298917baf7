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

/// The bytes at the front of `bytes` before the first that is a space or a control character, or all of them.
///
/// Keys are short, and `memchr` takes some fifty instructions before and after it reads: eight bytes at a time, here, costs half of
/// that for a key of twenty bytes.
#[inline]
pub(super) fn leading_word(bytes: &[u8]) -> &[u8] {
    let mut start = 0;
    while let Some(eight) = bytes[start..].first_chunk() {
        if let Some(end) = word_end_in(*eight) {
            return &bytes[..start + end];
        }
        start += 8;
    }
    // Those of the last eight that were looked at already have no end in them.
    let end = match bytes.last_chunk() {
        Some(eight) => word_end_in(*eight).map(|end| bytes.len() - 8 + end),
        None => bytes.iter().position(|&byte| byte <= b' '),
    };
    &bytes[..end.unwrap_or(bytes.len())]
}

/// Where the first space or control character is.
#[inline(always)]
fn word_end_in(eight: [u8; 8]) -> Option<usize> {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGHEST_BITS: u64 = ONES << 7;
    const BEHIND_SPACE: u64 = ONES * (b' ' + 1) as u64;
    let word = u64::from_le_bytes(eight);
    // The highest bit of each byte below the bound, and perhaps of some behind the first such byte, to which a borrow went.
    let below = word.wrapping_sub(BEHIND_SPACE) & !word & HIGHEST_BITS;
    (below != 0).then(|| below.trailing_zeros() as usize / 8)
}

/// The decimal number at the front of `bytes`, if it is short enough to need no care, and what follows it.
#[inline(always)]
pub(super) fn split_short_number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    const DIGITS_MAX: usize = 10; // of 32 bits
    let mut number = 0;
    let mut rest = bytes;
    while let [byte, behind @ ..] = rest
        && byte.is_ascii_digit()
    {
        number = number * 10 + u64::from(byte - b'0');
        rest = behind;
        if bytes.len() - rest.len() > DIGITS_MAX {
            return None;
        }
    }
    (!rest.is_empty() && rest.len() < bytes.len()).then_some((number, rest))
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
    parse_unsigned(token).and_then(body_of)
}

/// A body with its line end, of a value with this length.
#[inline]
pub(super) fn body_of(length: u64) -> Option<u64> {
    (length <= i32::MAX as u64 - 2).then(|| length + 2)
}

/// Whether a key could have been sent on purpose: not empty, not too long, no control characters.
pub(super) fn is_plausible_key(key: &[u8]) -> bool {
    !key.is_empty()
        && key.len() <= super::queue::KEY_MAX
        && key.iter().all(|&byte| byte > b' ' && byte != 0x7f)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_leading_word_ends_where_its_plain_twin_ends(
            bytes in prop::collection::vec(prop_oneof![9 => b'!'..=u8::MAX, 1 => any::<u8>()], 0..40),
        ) {
            let end = bytes.iter().position(|&byte| byte <= b' ').unwrap_or(bytes.len());
            prop_assert_eq!(leading_word(&bytes), &bytes[..end]);
        }

        #[test]
        fn a_short_number_is_what_its_token_says(text in "[0-9]{0,12}[ \r]?") {
            let digits = text.trim_ascii_end();
            let expected = parse_unsigned(digits.as_bytes())
                .filter(|_| digits.len() <= 10 && digits.len() < text.len())
                .map(|number| (number, &text.as_bytes()[digits.len()..]));
            prop_assert_eq!(split_short_number(text.as_bytes()), expected);
        }
    }
}

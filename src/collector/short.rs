//! Copying and comparing strings as short as most keys are: in a few words that overlap, without a call.

/// Bytes of a word.
const WORD: usize = 16;

/// Three words cover any string of this length, and of any between it and one word.
const LENGTH_MAX: usize = 3 * WORD;

/// Where the words of a string of such a length begin: its beginning, its middle and its end.
#[inline(always)]
fn places(length: usize) -> Option<[usize; 3]> {
    (WORD..=LENGTH_MAX).contains(&length).then(|| [0, (length - WORD) / 2, length - WORD])
}

#[inline(always)]
fn word(bytes: &[u8], at: usize) -> &[u8; WORD] {
    bytes[at..].first_chunk().expect("words lie within the string")
}

/// Whether two strings are the same.
#[inline(always)]
pub(super) fn equal(a: &[u8], b: &[u8]) -> bool {
    match places(a.len()) {
        Some(places) if a.len() == b.len() => places.into_iter().all(|at| word(a, at) == word(b, at)),
        _ => a == b,
    }
}

/// Copies a string over the first bytes of `to`, which has to be as long at least.
#[inline(always)]
pub(super) fn copy(to: &mut [u8], from: &[u8]) {
    let to = &mut to[..from.len()];
    match places(from.len()) {
        Some(places) => {
            for at in places {
                let chunk = to[at..].first_chunk_mut().expect("words lie within the string");
                *chunk = *word(from, at);
            }
        }
        None => to.copy_from_slice(from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_of_all_lengths_are_copied_and_compared_whole() {
        for length in 0..=70 {
            let from: Vec<u8> = (1..=length).collect();
            let mut to = [0; 80];
            copy(&mut to, &from);
            assert_eq!(to[..from.len()], from);
            assert!(to[from.len()..].iter().all(|&byte| byte == 0), "{length}: nothing behind it");
            assert!(equal(&to[..from.len()], &from));
            for at in 0..from.len() {
                to[at] ^= 0x80;
                assert!(!equal(&to[..from.len()], &from), "{length}: differs at {at}");
                to[at] ^= 0x80;
            }
            assert!(!equal(&to[..from.len() + 1], &from), "{length}: longer");
        }
    }
}

//! Chunks for the part of a key that its slot has no room for: a chain per key, taken from a fixed pool and given back when the
//! key is evicted, or copied out after its epoch. `taken + available == len`, always.

use super::arena::{Arena, Region};

/// Key bytes in a chunk.
const CHUNK_BYTES: usize = 60;

/// One cache line of a chain.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Chunk {
    bytes: [u8; CHUNK_BYTES],
    /// Number of the next chunk of this chain, or of the free list; 0: none. Chunks are numbered from 1.
    next: u32,
}

const _: () = assert!(size_of::<Chunk>() == 64);

/// The pool.
pub(super) struct Chunks {
    cells: Region<Chunk>,
    /// Chunks before this one (from 0) have been used; later ones are free and on no list.
    fresh: u32,
    /// First of the chunks that were given back; 0: none.
    free: u32,
    /// Chunks on the free list and fresh ones.
    available: u32,
}

impl Chunks {
    pub(super) fn new(arena: &mut Arena, count: usize) -> Option<Chunks> {
        let cells = arena.carve(count)?;
        Some(Chunks { cells, fresh: 0, free: 0, available: u32::try_from(count).ok()? })
    }

    fn take(&mut self) -> usize {
        self.available -= 1;
        let at = if self.free != 0 {
            let at = self.free as usize - 1;
            self.free = self.cells[at].next;
            at
        } else {
            self.fresh += 1;
            self.fresh as usize - 1
        };
        self.cells[at].next = 0;
        at
    }

    /// Stores `bytes` (not empty) in a chain; the number of its first chunk, or `None` when there is no room for all of them.
    pub(super) fn store(&mut self, bytes: &[u8]) -> Option<u32> {
        if bytes.len().div_ceil(CHUNK_BYTES) > self.available as usize {
            return None;
        }
        let mut following = 0;
        // From the last piece to the first, so that each is linked to the one behind it.
        for piece in bytes.chunks(CHUNK_BYTES).rev() {
            let at = self.take();
            self.cells[at].bytes[..piece.len()].copy_from_slice(piece);
            self.cells[at].next = following;
            following = at as u32 + 1;
        }
        Some(following)
    }

    /// Gives a chain back.
    pub(super) fn release(&mut self, mut number: u32) {
        while number != 0 {
            let chunk = &mut self.cells[number as usize - 1];
            let next = chunk.next;
            chunk.next = self.free;
            self.free = number;
            self.available += 1;
            number = next;
        }
    }

    /// Whether the chain holds `bytes`, given that it holds as many.
    pub(super) fn equals(&self, mut number: u32, bytes: &[u8]) -> bool {
        for piece in bytes.chunks(CHUNK_BYTES) {
            let chunk = &self.cells[number as usize - 1];
            if chunk.bytes[..piece.len()] != *piece {
                return false;
            }
            number = chunk.next;
        }
        true
    }

    /// Appends the `length` bytes of a chain to `into`.
    pub(super) fn copy(&self, mut number: u32, mut length: usize, into: &mut Vec<u8>) {
        while length > 0 {
            let chunk = &self.cells[number as usize - 1];
            let piece = length.min(CHUNK_BYTES);
            into.extend_from_slice(&chunk.bytes[..piece]);
            length -= piece;
            number = chunk.next;
        }
    }

    /// All chunks.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.cells.len()
    }

    /// Free chunks.
    #[cfg(test)]
    pub(super) fn available(&self) -> usize {
        self.available as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(count: usize) -> Chunks {
        Chunks::new(&mut Arena::new(count * 64).unwrap(), count).unwrap()
    }

    #[test]
    fn chains_round_trip_and_return() {
        let mut chunks = chunks(5);
        let (long, short) = ((0..=200).collect::<Vec<u8>>(), [0u8; 60]);
        let first = chunks.store(&long).unwrap();
        let second = chunks.store(&short).unwrap();
        assert_eq!(chunks.available(), 0);
        assert_eq!(chunks.store(b"x"), None);
        assert!(chunks.equals(first, &long) && chunks.equals(second, &short));
        assert!(!chunks.equals(second, &[1; 60]));
        let mut copy = Vec::new();
        chunks.copy(first, 201, &mut copy);
        assert_eq!(copy, long);
        chunks.release(first);
        assert_eq!(chunks.available(), 4);
        let again = chunks.store(&long[1..]).unwrap();
        assert!(chunks.equals(again, &long[1..]) && chunks.equals(second, &short));
        chunks.release(again);
        chunks.release(second);
        assert_eq!(chunks.available(), 5);
    }

    #[test]
    fn a_key_that_does_not_fit_takes_nothing() {
        let mut chunks = chunks(2);
        assert_eq!(chunks.store(&[7; 121]), None);
        assert_eq!(chunks.available(), 2);
        assert!(chunks.store(&[7; 120]).is_some());
    }
}

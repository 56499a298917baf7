//! One mapping of memory for a target's tables: taken, populated and backed by huge pages where the system has them before
//! the first packet, and carved into typed slices that never move, grow or overlap.
//!
//! This is the collector's only file with unsafe code. It promises its callers plain slices: a [`Region`] is a `[T]` that
//! starts as zeros, and is as long as was asked for.

use memmap2::MmapMut;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// A type of which every pattern of zero bytes is a value, without padding that matters, references or `Drop`.
///
/// # Safety
/// An implementor must be valid when all its bytes are zero, must not own anything, and must not be aligned to more than
/// a page.
pub(super) unsafe trait Plain: Copy + Send {}

// SAFETY: all of these are numbers and arrays of numbers, aligned to at most two cache lines.
unsafe impl Plain for super::table::Bucket {}
// SAFETY: as above.
unsafe impl Plain for super::spill::Chunk {}
// SAFETY: as above.
unsafe impl Plain for super::pairs::Line {}
// SAFETY: as above, and enumerations whose first variant is 0.
unsafe impl Plain for super::flows::Flow {}
// SAFETY: a number.
unsafe impl Plain for u32 {}
// SAFETY: an array of numbers.
unsafe impl Plain for [u8; 16] {}

/// Smallest page that we rely on; the start of a mapping is aligned to it.
const PAGE: usize = 4096;

/// Memory to carve regions from. Regions keep it alive; what is not carved stays unused.
pub(super) struct Arena {
    /// Unmapped when the last region and the arena itself are gone.
    mapping: Arc<MmapMut>,
    /// Start of the mapping.
    base: NonNull<u8>,
    /// Bytes given away from the front; never more than the mapping's length.
    used: usize,
}

impl Arena {
    /// Maps, asks for huge pages, and touches every page, so that no page fault is left for the packet path.
    /// Fails when the system has not that much to give: it would promise it all the same, and end the process later.
    pub(super) fn new(bytes: usize) -> io::Result<Arena> {
        let length = bytes.max(PAGE).checked_next_multiple_of(PAGE).ok_or(io::ErrorKind::OutOfMemory)?;
        if let Some(available) = available_bytes()
            && length as u64 > available
        {
            return Err(io::Error::new(
                io::ErrorKind::OutOfMemory,
                format!("the system has {available} bytes available"),
            ));
        }
        let mut mapping = MmapMut::map_anon(length)?;
        populate(&mut mapping)?;
        let base = NonNull::new(mapping.as_mut_ptr()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Arena { mapping: Arc::new(mapping), base, used: 0 })
    }

    /// The next `count` values of `T`, all zero; `None` when that many are not left.
    pub(super) fn carve<T: Plain>(&mut self, count: usize) -> Option<Region<T>> {
        debug_assert!(align_of::<T>() <= PAGE);
        let start = self.used.checked_next_multiple_of(align_of::<T>())?;
        let end = count.checked_mul(size_of::<T>()).and_then(|bytes| start.checked_add(bytes))?;
        if end > self.mapping.len() {
            return None;
        }
        self.used = end;
        // SAFETY: start <= end <= the mapping's length, so the result lies within it or one past its end.
        let first = unsafe { self.base.add(start) }.cast::<T>();
        Some(Region { first, count, _mapping: Arc::clone(&self.mapping) })
    }
}

/// What the system could give without swapping; `None` where it does not say. The file stays open from the first time on: a
/// target that is added later needs the answer as well, when no file can be opened any more.
fn available_bytes() -> Option<u64> {
    static MEMORY: OnceLock<Option<Mutex<File>>> = OnceLock::new();
    let memory = MEMORY.get_or_init(|| File::open("/proc/meminfo").ok().map(Mutex::new)).as_ref()?;
    let mut file = memory.lock().unwrap_or_else(PoisonError::into_inner);
    let mut text = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut text).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Bytes that are populated at a time: the kernel keeps the lock of the address space meanwhile, and some system calls of other
/// threads, workers among them, wait for it. Where a host has to find the pages first, 300 MB took seven seconds.
const POPULATED_AT_ONCE: usize = 4 << 20;

/// A kernel without huge pages leaves small ones, and one before 5.14 pages that are touched by hand.
fn populate(mapping: &mut MmapMut) -> io::Result<()> {
    // SAFETY: the range is exactly our own fresh anonymous mapping; the advice does not change its contents.
    unsafe { libc::madvise(mapping.as_mut_ptr().cast(), mapping.len(), libc::MADV_HUGEPAGE) };
    for part in mapping.chunks_mut(POPULATED_AT_ONCE) {
        // SAFETY: the range lies within our own fresh anonymous mapping and begins at a page; the advice does not change its contents.
        let populated =
            unsafe { libc::madvise(part.as_mut_ptr().cast(), part.len(), libc::MADV_POPULATE_WRITE) };
        if populated == 0 {
            continue;
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINVAL) {
            return Err(error);
        }
        for page in part.chunks_mut(PAGE) {
            // A plain store of zero to zeroed memory could be dropped by the compiler.
            page[0] = std::hint::black_box(0);
        }
    }
    Ok(())
}

/// A slice of an arena; used as `[T]`.
pub(super) struct Region<T> {
    /// Aligned for `T`; `count` values of `T` follow that belong to no other region.
    first: NonNull<T>,
    count: usize,
    _mapping: Arc<MmapMut>,
}

// SAFETY: a region is the only way to its values, which are `Send` and plain; the mapping is not tied to a thread.
unsafe impl<T: Plain> Send for Region<T> {}

impl<T: Plain> Deref for Region<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: `carve` checked that `count` aligned values lie within the mapping, which `_mapping` keeps alive; they
        // began as zeros, which `Plain` makes valid; only this region reaches them.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.count) }
    }
}

impl<T: Plain> DerefMut for Region<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; `&mut self` makes it the only borrow.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.count) }
    }
}

/// A bit for each of eight numbers that is this one.
#[inline(always)]
pub(super) fn equal_lanes(lanes: &[u16; 8], wanted: u16) -> u32 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE2 is part of x86_64; the load, which need not be aligned, is of the 16 bytes of `lanes`.
    unsafe {
        use std::arch::x86_64::*;
        let lanes = _mm_loadu_si128(lanes.as_ptr().cast());
        let equal = _mm_cmpeq_epi16(lanes, _mm_set1_epi16(wanted.cast_signed()));
        // From two bytes a lane to one, of which the mask takes a bit each.
        _mm_movemask_epi8(_mm_packs_epi16(equal, _mm_setzero_si128())).cast_unsigned()
    }
    #[cfg(not(target_arch = "x86_64"))]
    (0..8).fold(0, |mask, lane| mask | u32::from(lanes[lane] == wanted) << lane)
}

/// Asks the processor to fetch each cache line of a value. Does nothing where we know no instruction for it.
#[inline(always)]
pub(super) fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    for offset in (0..size_of::<T>()).step_by(64) {
        // SAFETY: a prefetch reads nothing, and the address lies within `value`; SSE is part of x86_64.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>((&raw const *value).cast::<i8>().add(offset));
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_lanes_are_found() {
        let mut lanes = [7, 0xffff, 7, 0, 0x8000, 7, 1, 7];
        assert_eq!(equal_lanes(&lanes, 7), 0b1010_0101);
        assert_eq!(equal_lanes(&lanes, 0xffff), 0b10);
        assert_eq!(equal_lanes(&lanes, 0x8000), 0b1_0000);
        assert_eq!(equal_lanes(&lanes, 2), 0);
        for lane in 0..8 {
            lanes[lane] = 2;
            assert_eq!(equal_lanes(&lanes, 2), (2 << lane) - 1);
        }
    }

    #[test]
    fn regions_are_zero_aligned_and_apart() {
        let mut arena = Arena::new(3 * PAGE).unwrap();
        let mut small = arena.carve::<u32>(3).unwrap();
        let mut large = arena.carve::<super::super::flows::Flow>(4).unwrap();
        assert_eq!(large.as_ptr() as usize % 128, 0);
        assert_eq!((small.len(), large.len()), (3, 4));
        assert!(small.iter().all(|&n| n == 0));
        small.fill(u32::MAX);
        assert!(large.iter().all(|flow| flow.weight == 0));
        large[3].weight = 7;
        drop(arena);
        assert_eq!((small[2], large[3].weight), (u32::MAX, 7));
    }

    #[test]
    fn memory_that_is_not_there_is_refused() {
        let error = Arena::new(1 << 45).err().expect("no machine has 32 TiB");
        assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
        assert!(Arena::new(usize::MAX).is_err());
    }

    #[test]
    fn a_spent_arena_refuses() {
        let mut arena = Arena::new(1).unwrap();
        assert!(arena.carve::<u32>(PAGE).is_none());
        assert!(arena.carve::<u32>(usize::MAX / 2).is_none());
        assert!(arena.carve::<u32>(PAGE / 4).is_some());
        assert!(arena.carve::<u32>(1).is_none());
        assert!(arena.carve::<u32>(0).is_some());
    }
}

//! The ring that the kernel writes packets into and we read them from (TPACKET_V3, packet(7), packet_mmap.rst).
//!
//! Promises that nothing but what the filter accepts ever enters, from the first packet on; that a block is read only while it
//! is ours and goes back to the kernel when its guard is dropped; and that every loss is counted. Does not look into packets:
//! that is `block`. One of the two files of capture that may hold `unsafe`.

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use memmap2::{MmapOptions, MmapRaw};

use super::block::{
    BLOCK_HEADER_BYTES, BLOCK_PREFIX_BYTES, BlockHeader, Captured, PACKET_OVERHEAD_BYTES, Packets, Place,
};
use super::filter::{FilterForm, FilterSpec, OutgoingPolicy, reject_all};
use super::interface::Interface;
use super::socket::{self, FanoutGroup, PacketSocket, RingRequest, SocketError};
use crate::model::Timestamp;

/// Bytes of a block. Smaller ones cost a wake-up each (64 KiB: 250 ns a packet of 1,500 bytes, 1 MiB: 158 ns).
pub const BLOCK_BYTES: u32 = 1 << 20;

/// Smallest block: a packet of this host may be 195,730 bytes long before it is segmented (BIG TCP), and the kernel cuts
/// packets that do not fit a block.
pub const BLOCK_BYTES_MIN: u32 = 256 << 10;

/// Blocks of a ring: with [`RETIRE_TIMEOUT`] a stall of 3.8 seconds at a low rate, and of 0.2 seconds at 2.4 Gbit/s.
pub const BLOCKS: u32 = 64;

/// Fewest blocks of a ring that is asked for: one is read while another is written.
pub const BLOCKS_MIN: u32 = 4;

/// A block with at least one packet is handed over after this time even if it is not full. It bounds the delay of a packet, and
/// because such a block is used up whatever it holds, also the stall that a ring survives; rankings do not mind the delay.
pub const RETIRE_TIMEOUT: Duration = Duration::from_millis(60);

/// When memory is short, a ring shrinks by this share of its blocks at a time …
const SHRINK_PERCENT: u32 = 5;

/// … down to this share of what was asked for.
const SHRINK_FLOOR_DIVISOR: u32 = 4;

/// Size of a slot. Without meaning in this version of the ring; the kernel checks that it divides a block.
const SLOT_BYTES: u32 = 2048;

/// Most rings that one worker waits for together.
pub const RINGS_PER_WORKER_MAX: usize = 64;

/// Blocks that follow each other faster than this are collected by sleeping instead of by `poll`, which would be woken for each of
/// them (packets of 65 KB: 2,245 ns of our time a packet with `poll`, 542 ns with sleep).
const NAP: Duration = Duration::from_millis(1);

/// Where the status word of a block is.
const STATUS_OFFSET: usize = 8;

const _: () = assert!(BLOCK_BYTES >= BLOCK_BYTES_MIN && BLOCK_BYTES.is_multiple_of(SLOT_BYTES));
const _: () = assert!(BLOCK_BYTES_MIN.is_multiple_of(64 << 10), "a multiple of every page size");
const _: () = assert!(BLOCKS >= BLOCKS_MIN && BLOCKS_MIN >= 2);
const _: () = assert!(STATUS_OFFSET + size_of::<u32>() == BLOCK_PREFIX_BYTES);
const _: () = assert!(BLOCK_PREFIX_BYTES < BLOCK_HEADER_BYTES);

/// What went wrong with a ring.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The socket refused; `NoPrivilege` among it.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// There is no such interface (any more).
    #[error("interface {index} does not exist")]
    InterfaceGone {
        /// Its number.
        index: u32,
    },
    /// Not even a quarter of the ring could be had.
    #[error(
        "no memory for a ring of {blocks} blocks of {block_bytes} bytes: ask for a smaller one with --ring-mb"
    )]
    NoMemory {
        /// Blocks that were asked for last.
        blocks: u32,
        /// Bytes of each.
        block_bytes: u32,
    },
    /// The ring's memory could not be mapped.
    #[error("the ring could not be mapped: {0}")]
    Map(#[source] io::Error),
    /// Not even the widest filter was accepted.
    #[error("no packet filter fits: raise net.core.optmem_max (sysctl)")]
    FilterRefused,
    /// A member of a fanout group cannot move to another interface.
    #[error("a ring that shares its interface with other workers cannot be bound again: open new ones")]
    RebindInGroup,
}

impl RingError {
    /// Whether the process lacks the privilege to capture.
    pub fn is_no_privilege(&self) -> bool {
        matches!(self, RingError::Socket(SocketError::NoPrivilege))
    }
}

/// The size of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingShape {
    /// Blocks.
    pub blocks: u32,
    /// Bytes of each; a multiple of the page size.
    pub block_bytes: u32,
    /// Longest time that a packet waits for its block to be handed over.
    pub retire_timeout: Duration,
}

impl Default for RingShape {
    fn default() -> RingShape {
        RingShape { blocks: BLOCKS, block_bytes: BLOCK_BYTES, retire_timeout: RETIRE_TIMEOUT }
    }
}

impl RingShape {
    /// The shape of a ring of about so many bytes: smaller blocks when it would have too few of the usual size, and never less
    /// than [`BLOCKS_MIN`] of [`BLOCK_BYTES_MIN`].
    pub fn with_bytes(ring_bytes: u64) -> RingShape {
        let usual = u64::from(BLOCKS_MIN) * u64::from(BLOCK_BYTES);
        let block_bytes = if ring_bytes >= usual { BLOCK_BYTES } else { BLOCK_BYTES_MIN };
        let blocks = u32::try_from(ring_bytes / u64::from(block_bytes)).unwrap_or(u32::MAX).max(BLOCKS_MIN);
        RingShape { blocks, block_bytes, retire_timeout: RETIRE_TIMEOUT }
    }

    /// Bytes of the whole ring.
    pub const fn bytes(&self) -> u64 {
        self.blocks as u64 * self.block_bytes as u64
    }

    /// The longest stall of the reader that costs no packet, at `byte_rate` bytes of the ring a second (see [`ring_byte_rate`]).
    ///
    /// A block is used up when it is full and also when its time is over, whatever it holds; so the time counts in whole blocks:
    /// (blocks − 1) × timeout / ceil(rate × timeout / block bytes). Agrees with every stall that was measured (630 ms predicted
    /// and measured; 157 and 163; 38 and 37); the plain quotient of sizes is up to twenty times too optimistic.
    pub fn hold_time(&self, byte_rate: u64) -> Duration {
        let timeout_nanos = self.retire_timeout.as_nanos();
        let bytes_per_timeout = (u128::from(byte_rate) * timeout_nanos).div_ceil(1_000_000_000);
        let blocks_per_timeout = bytes_per_timeout.div_ceil(u128::from(self.block_bytes)).max(1);
        let nanos = u128::from(self.blocks.saturating_sub(1)) * timeout_nanos / blocks_per_timeout;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// The next smaller shape to try when there is no memory for one; none below a quarter of `asked`.
    fn shrunk(&self, asked: &RingShape) -> Option<RingShape> {
        let step = (self.blocks * SHRINK_PERCENT / 100).max(1);
        let floor = asked.blocks.div_ceil(SHRINK_FLOOR_DIVISOR).max(BLOCKS_MIN);
        let blocks = self.blocks.saturating_sub(step).max(floor);
        (blocks < self.blocks).then_some(RingShape { blocks, ..*self })
    }
}

/// Bytes of the ring that so many packets with so many captured bytes take: the headers of the ring count too.
pub const fn ring_byte_rate(packets: u64, captured_bytes: u64) -> u64 {
    captured_bytes.saturating_add(packets.saturating_mul(PACKET_OVERHEAD_BYTES))
}

/// How to open a ring.
#[derive(Clone, Debug)]
pub struct RingOptions {
    /// Number of the interface; 0 for all of them.
    pub interface_index: u32,
    /// Size.
    pub shape: RingShape,
    /// The wanted traffic.
    pub filter: FilterSpec,
    /// Whether to receive what is addressed to other hosts, as at a mirror port.
    pub promiscuous: bool,
}

impl RingOptions {
    /// A ring of the usual size on an interface. The filter is told how the interface's packets begin and which of their copies
    /// to refuse.
    pub fn new(interface: &Interface, filter: FilterSpec) -> RingOptions {
        RingOptions {
            interface_index: interface.index,
            shape: RingShape::default(),
            filter: FilterSpec {
                link: interface.filter_link(),
                outgoing: interface.outgoing_policy(),
                ..filter
            },
            promiscuous: false,
        }
    }
}

/// Whether packets can come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingState {
    /// The interface is up.
    Running,
    /// The interface is down. When it comes up, so does the ring, by itself.
    Down,
    /// The interface was deleted. Another of the same name is another interface: see [`Ring::rebind`].
    Gone,
}

/// What a ring has counted since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingStatistics {
    /// Packets that passed the filter, dropped ones included.
    pub packets: u64,
    /// Packets for which the ring had no room.
    pub packets_dropped: u64,
    /// Times that the ring was found full.
    pub freezes: u64,
    /// Blocks that were read.
    pub blocks: u64,
    /// Blocks whose contents contradicted themselves, or that were not the next in the kernel's count.
    pub blocks_damaged: u64,
    /// Blocks that wait to be read.
    pub blocks_waiting: u32,
    /// Most blocks that were waiting at once since the statistics were last read; the best early warning of drops.
    pub blocks_waiting_max: u32,
    /// Blocks of the ring.
    pub blocks_total: u32,
}

/// A socket with its ring, on one interface.
pub struct Ring {
    /// The mapping, of `shape.bytes()` bytes. Each block belongs to the kernel while the user bit of its status word is unset; we
    /// touch nothing of it then except that word, and that by atomic operations only.
    map: MmapRaw,
    socket: PacketSocket,
    shape: RingShape,
    /// Index of the block that the kernel hands over next. Blocks are read strictly in order: `poll` looks at the last one.
    cursor: u32,
    /// How far that block has been read, when it was left in the middle.
    unread: Option<Place>,
    interface_index: u32,
    promiscuous: bool,
    in_group: bool,
    /// The kernel was told to make no copies of what this host sends.
    ignores_outgoing: bool,
    state: RingState,
    filter: FilterSpec,
    form: FilterForm,
    statistics: RingStatistics,
    /// Number of the last block, and when its last packet came.
    last_block: Option<(u64, Timestamp)>,
    /// Whether the last block followed its predecessor within [`NAP`], and nobody has slept on it yet.
    nap_due: bool,
}

impl Ring {
    /// Opens a ring for one worker.
    pub fn open(options: &RingOptions) -> Result<Ring, RingError> {
        Ring::open_on(PacketSocket::open()?, options)
    }

    /// Opens a ring on a socket that was opened before, when there was still the privilege to do so.
    pub fn open_on(socket: PacketSocket, options: &RingOptions) -> Result<Ring, RingError> {
        let mut ring = Ring::prepare(socket, options)?;
        ring.set_filter(&options.filter)?;
        ring.bind(options.interface_index)?;
        ring.discard_statistics()?;
        Ok(ring)
    }

    /// Opens rings on one interface for several workers. The kernel spreads flows over them, both directions of each to the same
    /// ring. With one worker there is no group, because its demultiplexer costs 180 to 300 ns for every packet of the interface.
    pub fn open_group(options: &RingOptions, workers: usize) -> Result<Vec<Ring>, RingError> {
        let sockets = (0..workers).map(|_| PacketSocket::open()).collect::<Result<_, _>>()?;
        Ring::open_group_on(sockets, options)
    }

    /// As [`Ring::open_group`], on sockets that were opened before.
    pub fn open_group_on(sockets: Vec<PacketSocket>, options: &RingOptions) -> Result<Vec<Ring>, RingError> {
        assert!(!sockets.is_empty(), "a group has members");
        if sockets.len() == 1 {
            return sockets.into_iter().map(|socket| Ring::open_on(socket, options)).collect();
        }
        let mut rings: Vec<Ring> = Vec::with_capacity(sockets.len());
        let mut group = None;
        for socket in sockets {
            // Until it has joined, a member would see every packet: it refuses all until the group is whole.
            let mut ring = Ring::prepare(socket, options)?;
            ring.socket.attach_filter(&reject_all())?;
            ring.bind(options.interface_index)?;
            match group {
                None => group = Some(found_group(&ring.socket, options.filter.outgoing)?),
                Some(group) => ring.socket.join_fanout(group)?,
            }
            ring.in_group = true;
            rings.push(ring);
        }
        for ring in &mut rings {
            ring.set_filter(&options.filter)?;
            ring.discard_statistics()?;
        }
        Ok(rings)
    }

    /// Gives the socket its ring and maps it; nothing can enter yet.
    fn prepare(socket: PacketSocket, options: &RingOptions) -> Result<Ring, RingError> {
        socket.use_blocks()?;
        let shape = request_ring(&socket, &options.shape)?;
        let length = usize::try_from(shape.bytes()).map_err(|_| no_memory(&shape))?;
        let map = MmapOptions::new().len(length).map_raw(socket.as_raw_fd()).map_err(RingError::Map)?;
        Ok(Ring {
            map,
            socket,
            shape,
            cursor: 0,
            unread: None,
            interface_index: options.interface_index,
            promiscuous: options.promiscuous,
            in_group: false,
            ignores_outgoing: false,
            state: RingState::Running,
            filter: options.filter.clone(),
            form: FilterForm::AddressesAndPorts,
            statistics: RingStatistics { blocks_total: shape.blocks, ..RingStatistics::default() },
            last_block: None,
            nap_due: false,
        })
    }

    /// Joins the interface: promiscuous mode first, then packets.
    fn bind(&mut self, interface_index: u32) -> Result<(), RingError> {
        let gone = |error: SocketError| match error.errno() {
            Some(libc::ENODEV | libc::ENXIO) => RingError::InterfaceGone { index: interface_index },
            _ => RingError::Socket(error),
        };
        if self.promiscuous && interface_index != 0 {
            self.socket.join_promiscuous(interface_index).map_err(gone)?;
        }
        self.socket.bind(interface_index).map_err(gone)?;
        self.interface_index = interface_index;
        self.state = RingState::Running;
        // A socket bound to an interface that is down has an error pending at once.
        self.check_state()?;
        Ok(())
    }

    /// Moves the ring to another interface, as when one was deleted and made anew. Keeps the memory, the filter and the counts.
    /// Not possible for a ring that was opened in a group of several.
    pub fn rebind(&mut self, interface_index: u32) -> Result<(), RingError> {
        if self.in_group {
            return Err(RingError::RebindInGroup);
        }
        self.bind(interface_index)
    }

    /// Replaces the filter; the kernel exchanges the two in one step. Says which form is attached now.
    pub fn set_filter(&mut self, filter: &FilterSpec) -> Result<FilterForm, RingError> {
        for form in FilterForm::LADDER {
            let Ok(program) = filter.assemble(form) else { continue };
            match self.socket.attach_filter(&program) {
                Ok(()) => {
                    self.filter = filter.clone();
                    self.form = form;
                    self.ignore_outgoing()?;
                    return Ok(form);
                }
                Err(error) if error.errno() == Some(libc::ENOMEM) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(RingError::FilterRefused)
    }

    /// What the filter refuses of this host's own packets need not be copied for it, which is work of whoever sends them. In a group the
    /// kernel would ignore this.
    fn ignore_outgoing(&mut self) -> Result<(), RingError> {
        let ignored = self.filter.outgoing_in_force() == OutgoingPolicy::Refuse;
        if self.in_group || ignored == self.ignores_outgoing {
            return Ok(());
        }
        match self.socket.ignore_outgoing(ignored) {
            // Before Linux 4.20 there is no such option.
            Err(error) if error.errno() == Some(libc::ENOPROTOOPT) => return Ok(()),
            answered => answered?,
        }
        self.ignores_outgoing = ignored;
        Ok(())
    }

    /// The wanted traffic, as it was last set.
    pub fn filter(&self) -> &FilterSpec {
        &self.filter
    }

    /// How closely the attached filter fits it.
    pub fn filter_form(&self) -> FilterForm {
        self.form
    }

    /// The size that the kernel granted; fewer blocks than asked for when memory was short.
    pub fn shape(&self) -> &RingShape {
        &self.shape
    }

    /// Number of the interface, 0 for all of them.
    pub fn interface_index(&self) -> u32 {
        self.interface_index
    }

    /// Whether packets could come when this was last looked at: by [`wait`] after an error and while the interface is down, or
    /// by [`Ring::check_state`].
    pub fn state(&self) -> RingState {
        self.state
    }

    /// Looks whether packets can come.
    pub fn check_state(&mut self) -> Result<RingState, RingError> {
        let error = self.socket.take_error()?;
        if let Some(number) = error.filter(|&number| number != libc::ENETDOWN) {
            let source = io::Error::from_raw_os_error(number);
            return Err(SocketError::System { call: "receiving from the packet socket", source }.into());
        }
        self.state = match self.socket.interface_index()? {
            None => RingState::Gone,
            Some(0) => RingState::Running,
            Some(index) if error.is_some() || self.state != RingState::Running => {
                match self.socket.interface_is_up(index) {
                    Ok(true) => RingState::Running,
                    Ok(false) => RingState::Down,
                    // It was deleted between the two questions.
                    Err(error) if error.errno() == Some(libc::ENODEV) => RingState::Gone,
                    Err(error) => return Err(error.into()),
                }
            }
            Some(_) => RingState::Running,
        };
        Ok(self.state)
    }

    /// The next block, if the kernel has handed it over. It goes back when the guard is dropped; while it is held, the ring
    /// fills up behind it.
    #[inline]
    pub fn next_block(&mut self) -> Option<Block<'_>> {
        if !self.is_ready(0) {
            return None;
        }
        self.note_waiting();
        Some(Block { ring: self, is_kept: false })
    }

    /// When the next packet came, if its block was handed over.
    pub fn next_timestamp(&mut self) -> Option<Timestamp> {
        let mut block = self.next_block()?;
        // This is a look only.
        block.is_kept = true;
        block.unread().next_timestamp()
    }

    /// Whether a block can be read at once.
    #[inline]
    pub fn has_block(&self) -> bool {
        self.is_ready(0)
    }

    /// The counts since the ring was opened; the kernel's are fetched, so this should be called at least once a minute (they are
    /// 32 bits wide).
    pub fn statistics(&mut self) -> Result<RingStatistics, RingError> {
        let counted = self.socket.take_statistics()?;
        self.statistics.packets += u64::from(counted.packets);
        self.statistics.packets_dropped += u64::from(counted.packets_dropped);
        self.statistics.freezes += u64::from(counted.freezes);
        self.note_waiting();
        let waiting = (0..self.shape.blocks).take_while(|&ahead| self.is_ready(ahead)).count();
        // There are no more of them than blocks.
        self.statistics.blocks_waiting = u32::try_from(waiting).unwrap_or(self.shape.blocks);
        let statistics = self.statistics;
        self.statistics.blocks_waiting_max = 0;
        Ok(statistics)
    }

    /// The counts as [`Ring::statistics`] returned them last; zeros before it was called.
    pub fn statistics_before(&self) -> RingStatistics {
        self.statistics
    }

    fn discard_statistics(&mut self) -> Result<(), RingError> {
        self.socket.take_statistics()?;
        Ok(())
    }

    /// Raises the high-water mark. The kernel hands blocks over in order, so one look beyond the mark per block is enough.
    fn note_waiting(&mut self) {
        while self.statistics.blocks_waiting_max < self.shape.blocks
            && self.is_ready(self.statistics.blocks_waiting_max)
        {
            self.statistics.blocks_waiting_max += 1;
        }
    }

    /// Whether the block `ahead` of the cursor is ours. What the kernel wrote before it said so is then visible to us.
    fn is_ready(&self, ahead: u32) -> bool {
        let index = (self.cursor + ahead) % self.shape.blocks;
        self.status(index).load(Ordering::Acquire) & libc::TP_STATUS_USER != 0
    }

    /// The status word of a block.
    fn status(&self, index: u32) -> &AtomicU32 {
        // SAFETY: the word is within the mapping, because `block_start` is and a block is longer than its header; it is aligned,
        // because blocks begin on pages; it lives as long as `self`; and we access it through this function only.
        unsafe { AtomicU32::from_ptr(self.block_start(index).add(STATUS_OFFSET).cast()) }
    }

    /// The first byte of a block, of which `shape.block_bytes` are mapped.
    fn block_start(&self, index: u32) -> *mut u8 {
        assert!(index < self.shape.blocks, "block {index} of {}", self.shape.blocks);
        let offset = index as usize * self.shape.block_bytes as usize;
        // SAFETY: the mapping is `blocks * block_bytes` long (kept by `prepare`), and the index is below `blocks`.
        unsafe { self.map.as_mut_ptr().add(offset) }
    }

    /// Gives the block at the cursor back to the kernel.
    fn return_block(&mut self) {
        self.unread = None;
        // Everything we read of it stays before this store.
        self.status(self.cursor).store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.cursor = (self.cursor + 1) % self.shape.blocks;
    }

    /// Takes note of a block that was read: its place in the kernel's count, its distance in time from the one before.
    fn note_block(&mut self, header: Option<BlockHeader>, is_damaged: bool) {
        self.statistics.blocks += 1;
        let mut damaged = is_damaged || header.is_none();
        if let Some(header) = header {
            if let Some((sequence, last_packet)) = self.last_block {
                damaged |= header.sequence != sequence.wrapping_add(1);
                self.nap_due = header.last_packet.since(last_packet) < NAP;
            }
            self.last_block = Some((header.sequence, header.last_packet));
        }
        self.statistics.blocks_damaged += u64::from(damaged);
    }
}

/// A block that is ours. It goes back to the kernel on drop, unless it was read in part.
pub struct Block<'ring> {
    /// Borrowed for as long as the block is held, so that there is one guard at a time.
    ring: &'ring mut Ring,
    /// It is to be read on.
    is_kept: bool,
}

impl Block<'_> {
    /// The block without its first [`BLOCK_PREFIX_BYTES`], which hold the word that we share with the kernel.
    pub fn bytes(&self) -> &[u8] {
        let start = self.ring.block_start(self.ring.cursor);
        let length = self.ring.shape.block_bytes as usize - BLOCK_PREFIX_BYTES;
        // SAFETY: `next_block` saw the user bit of this block by an acquire load, so the kernel has written it and leaves it alone
        // until `return_block`, which only our drop calls, after every borrow of `self`. The bytes are within the mapping, which
        // is zeroed memory at first, and the word that others may write is not among them.
        unsafe { std::slice::from_raw_parts(start.add(BLOCK_PREFIX_BYTES), length) }
    }

    /// Number of packets that have not been read, as the kernel says.
    pub fn packets_left(&self) -> u32 {
        self.unread().place().packets_left
    }

    fn unread(&self) -> Packets<'_> {
        match self.ring.unread {
            Some(place) => Packets::resume(self.bytes(), place),
            None => Packets::new(self.bytes()),
        }
    }

    /// Lends each packet to `emit`, in the order of their capture.
    #[inline]
    pub fn for_each_packet(&mut self, emit: impl FnMut(Captured<'_>)) {
        self.for_each_packet_until(Timestamp::MAX, emit);
    }

    /// Lends each packet that came until then to `emit`. What is left keeps the block; if `emit` panics, nothing is left.
    #[inline]
    pub fn for_each_packet_until(&mut self, last: Timestamp, mut emit: impl FnMut(Captured<'_>)) {
        let place = self.ring.unread.take();
        let bytes = self.bytes();
        let mut packets = match place {
            Some(place) => Packets::resume(bytes, place),
            None => Packets::new(bytes),
        };
        while let Some(captured) = packets.next_until(last) {
            // The next packet comes from another core's cache while this one is worked on.
            prefetch(packets.rest());
            emit(captured);
        }
        if !packets.is_over() {
            self.ring.unread = Some(packets.place());
            self.is_kept = true;
            return;
        }
        let is_damaged = packets.is_damaged();
        let header = BlockHeader::read(bytes);
        self.ring.note_block(header, is_damaged);
    }
}

/// Asks the processor to fetch the headers of the packet that begins here. Does nothing where we know no instruction for it.
#[inline(always)]
fn prefetch(packet: &[u8]) {
    /// Header of the ring, and those of link, network and transport.
    const HEADERS_BYTES: usize = 192;
    #[cfg(target_arch = "x86_64")]
    if let Some(headers) = packet.first_chunk::<HEADERS_BYTES>() {
        for line in headers.as_chunks::<64>().0 {
            // SAFETY: a prefetch reads nothing, and the address is that of a borrowed array; SSE is part of x86_64.
            unsafe {
                std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.as_ptr().cast());
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = packet;
}

impl Drop for Block<'_> {
    fn drop(&mut self) {
        if !self.is_kept {
            self.ring.return_block();
        }
    }
}

/// Waits until one of the rings has a block or has changed its state, or until the time is over.
///
/// Returns at once when a block is ready: `poll` alone may miss it, as it looks at the last block of a ring and not at the next.
/// At most [`RINGS_PER_WORKER_MAX`] rings.
pub fn wait(rings: &mut [Ring], timeout: Duration) -> Result<(), RingError> {
    assert!(rings.len() <= RINGS_PER_WORKER_MAX, "{} rings in one worker", rings.len());
    for ring in rings.iter_mut() {
        // Neither coming up nor being deleted while down raises an error. Blocks tell nothing either: they may be old.
        if ring.state == RingState::Down {
            ring.check_state()?;
        }
    }
    if rings.iter().any(Ring::has_block) {
        return Ok(());
    }
    let mut nap_due = false;
    for ring in rings.iter_mut() {
        nap_due |= std::mem::take(&mut ring.nap_due);
    }
    if nap_due {
        thread::sleep(NAP.min(timeout));
        return Ok(());
    }
    let mut entries = [libc::pollfd { fd: -1, events: 0, revents: 0 }; RINGS_PER_WORKER_MAX];
    for (entry, ring) in entries.iter_mut().zip(rings.iter()) {
        // A deleted interface never has anything to say again; a negative number is skipped.
        if ring.state != RingState::Gone {
            *entry = libc::pollfd { fd: ring.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        }
    }
    socket::poll(&mut entries[..rings.len()], timeout)?;
    for (entry, ring) in entries.iter().zip(rings) {
        if entry.revents & libc::POLLERR != 0 {
            // Reading the error takes it away; left alone, it would make every poll return at once.
            ring.check_state()?;
        }
    }
    Ok(())
}

/// Founds the group of a set of rings.
fn found_group(socket: &PacketSocket, outgoing: OutgoingPolicy) -> Result<FanoutGroup, SocketError> {
    if outgoing == OutgoingPolicy::Refuse {
        match socket.found_fanout(true) {
            // Before Linux 6.2 there is no such flag; the filter refuses these packets as well.
            Err(error) if error.errno() == Some(libc::EINVAL) => {}
            founded => return founded,
        }
    }
    socket.found_fanout(false)
}

/// Asks for a ring, and for smaller ones while there is no memory.
fn request_ring(socket: &PacketSocket, asked: &RingShape) -> Result<RingShape, RingError> {
    let mut shape = *asked;
    loop {
        let request = RingRequest {
            blocks: shape.blocks,
            block_bytes: shape.block_bytes,
            slot_bytes: SLOT_BYTES,
            retire_timeout: shape.retire_timeout,
        };
        match socket.request_ring(&request) {
            Ok(()) => return Ok(shape),
            Err(error) if error.errno() == Some(libc::ENOMEM) => {
                shape = shape.shrunk(asked).ok_or_else(|| no_memory(&shape))?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn no_memory(shape: &RingShape) -> RingError {
    RingError::NoMemory { blocks: shape.blocks, block_bytes: shape.block_bytes }
}

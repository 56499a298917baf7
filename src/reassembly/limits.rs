//! The limits of reassembly, each with its reason. Everything here is allocated at start-up and counted when reached.

use std::time::Duration;

/// Sizes and times that bound the flow table, its pools and the UDP side table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReassemblyLimits {
    /// Flows that are followed at once; a new one pushes out the least recently used of its neighbours.
    pub flows_max: usize,
    /// Early segments that wait for what goes before them, over all flows.
    pub held_segments_max: usize,
    /// Blocks of 2 KiB that hold their payloads, over all flows.
    pub held_blocks_max: usize,
    /// Such blocks that one direction of one flow may use: a few of the largest segments that offloading makes.
    pub held_blocks_stream_max: u16,
    /// Early segments behind one hole. Receivers answer each with a duplicate ACK, so after this many the sender
    /// has long retransmitted.
    pub held_segments_stream_max: u8,
    /// The same where no acknowledgement of that direction was ever seen: nothing says that it is worth the wait.
    pub held_segments_unacknowledged_max: u8,
    /// Unfinished message heads, over all flows.
    pub carries_max: usize,
    /// Packet time that a hole which the peer has acknowledged may stay open: covers the capture order of two queues. With
    /// 1 % of the packets lost, 10 ms instead of 2 leave 0.4 % more of the outcomes unknown.
    pub hold: Duration,
    /// Packets, of any flow, that must have come in that time: where little comes, neighbours may lie far apart. With 2 % of
    /// the packets reordered, 2 ms alone leave 0.13 % of the outcomes unknown; with 8 packets none, and loss costs no more.
    pub hold_packets: u64,
    /// Packet time after which no more packets are waited for.
    pub hold_max: Duration,
    /// Packet time that an unacknowledged hole may stay open: three retransmissions from 400 ms on.
    pub retransmission_wait: Duration,
    /// The same where no acknowledgement of that direction was ever seen.
    pub retransmission_wait_unacknowledged: Duration,
    /// Furthest distance from a stream's position at which a sequence number is believed.
    pub window_bytes_max: u32,
    /// Segments in a row outside that window after which the stream is taken up where they are: a burst of lost packets
    /// may be longer than the window.
    pub strays_max: u8,
    /// Longest body that a parser may ask to skip; memcached's `ITEM_SIZE_MAX_UPPER_LIMIT` is 1 GiB.
    pub skip_bytes_max: u32,
    /// Packet time after which a quiet flow is forgotten. Pooled connections are quiet for hours.
    pub flow_idle_max: Duration,
    /// The same for a flow that has not carried payload (a SYN flood's, a scanner's).
    pub embryonic_idle_max: Duration,
    /// The same for a closed flow, kept so that late copies of its packets do not open a new one.
    pub closed_idle_max: Duration,
    /// Packet time after which a SYN replaces a quiet flow at once.
    pub syn_replaces_idle: Duration,
    /// Packet time in which the clock hand goes once around the flow table.
    pub sweep_period: Duration,
    /// UDP exchanges (request ids) that are followed at once.
    pub exchanges_max: usize,
    /// Packet time after which a UDP exchange is forgotten.
    pub exchange_idle_max: Duration,
    /// Early datagrams that wait for the ones before them, over all exchanges.
    pub held_datagrams_max: usize,
    /// Unfinished message heads of UDP exchanges, over all of them.
    pub datagram_carries_max: usize,
    /// Datagrams that are remembered for a moment to tell their copies.
    pub recent_datagrams_max: usize,
    /// Packet time in which an equal datagram is a copy.
    pub copy_window: Duration,
    /// Early datagrams of one exchange that wait for the ones before them.
    pub held_datagrams_exchange_max: u8,
}

impl Default for ReassemblyLimits {
    fn default() -> ReassemblyLimits {
        ReassemblyLimits {
            flows_max: 1 << 17,
            held_segments_max: 4096,
            held_blocks_max: 4096,
            held_blocks_stream_max: 512,
            held_segments_stream_max: 32,
            held_segments_unacknowledged_max: 16,
            carries_max: 2048,
            hold: Duration::from_millis(2),
            hold_packets: 8,
            hold_max: Duration::from_millis(100),
            retransmission_wait: Duration::from_secs(3),
            retransmission_wait_unacknowledged: Duration::from_secs(1),
            window_bytes_max: 64 << 20,
            strays_max: 16,
            skip_bytes_max: (1 << 30) + (1 << 16),
            flow_idle_max: Duration::from_secs(3600),
            embryonic_idle_max: Duration::from_secs(60),
            closed_idle_max: Duration::from_secs(10),
            syn_replaces_idle: Duration::from_secs(60),
            sweep_period: Duration::from_secs(30),
            exchanges_max: 1 << 14,
            exchange_idle_max: Duration::from_secs(5),
            held_datagrams_max: 512,
            datagram_carries_max: 256,
            recent_datagrams_max: 1 << 12,
            copy_window: Duration::from_millis(2),
            held_datagrams_exchange_max: 16,
        }
    }
}

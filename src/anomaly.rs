//! The ways in which traffic disappoints us, and their counters.
//!
//! Bad traffic is never an error and never a log line on the packet path: it is counted here, per target where a target
//! is known, and the counts travel with the figures of their interval. Imports nothing of ours.

macro_rules! anomalies {
    ($($(#[$doc:meta])* $variant:ident $name:literal),* $(,)?) => {
        /// A counted reason why some traffic could not be used, or was used only in part.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Anomaly { $($(#[$doc])* $variant),* }

        impl Anomaly {
            /// Every anomaly, in the order of their numbers.
            pub const ALL: &'static [Anomaly] = &[$(Anomaly::$variant),*];

            /// The name in reports.
            pub const fn name(self) -> &'static str {
                match self { $(Anomaly::$variant => $name),* }
            }
        }
    };
}

anomalies! {
    // Decode
    /// A frame whose headers are cut or contradict themselves.
    PacketMalformed "packet_malformed",
    /// A frame that is neither TCP nor UDP over IP, or a link type that we do not read.
    PacketForeign "packet_foreign",
    /// An IP fragment that never became whole (table full, overlap, timeout).
    FragmentDropped "fragment_dropped",
    // Reassembly
    /// A hole in a stream that we will never see, outside a value's body.
    Gap "gaps",
    /// Stream bytes in such holes.
    GapBytes "gap_bytes",
    /// Bytes missing inside value bodies: they cost no figure.
    BodyHoleBytes "body_hole_bytes",
    /// A segment (or part of one) that had been seen before.
    DuplicateSegment "duplicate_segments",
    /// A segment that came early and was held.
    OutOfOrderSegment "out_of_order_segments",
    /// A segment that could not be held: the pool or the flow's share of it was full.
    SegmentShed "segments_shed",
    /// A flow evicted from a full flow table.
    FlowShed "flows_shed",
    /// A flow picked up in mid-stream, without its SYN.
    MidStream "mid_stream_flows",
    /// A RST or SYN that does not fit its flow.
    BadControl "bad_control_segments",
    /// A sequence number too far from the window to be believed.
    OutOfWindow "out_of_window_segments",
    // Parser
    /// Stream bytes that were captured and could not be parsed (resynchronisation, unknown protocols).
    UnparsedBytes "unparsed_bytes",
    /// A request whose answer was never seen although one was promised.
    UnmatchedRequest "unmatched_requests",
    /// A response for which no request was known.
    UnmatchedResponse "unmatched_responses",
    /// A request counted without its answer, because the queue of outstanding requests was full.
    RequestShed "requests_shed",
    /// Framing lost or contradicted, and searched for anew.
    Resynchronised "resynchronised",
    /// A line longer than memcached accepts or we hold.
    LineTooLong "lines_too_long",
    /// A connection that speaks TLS.
    TlsFlow "tls_flows",
    /// A connection that speaks a protocol that is not memcached's.
    UnknownProtocolFlow "unknown_protocol_flows",
    /// A connection that begins with a header of the PROXY protocol: its client's address is a proxy's.
    ProxyHeader "proxy_headers",
    /// A server's version that was not remembered for its other connections: too many servers told one.
    ServerVersionShed "server_versions_shed",
    /// A UDP datagram with a frame header that memcached refuses.
    DatagramMalformed "datagrams_malformed",
    /// A UDP datagram that could not be held or whose exchange was evicted.
    DatagramShed "datagrams_shed",
    // Pipeline
    /// The clock of the capture went back by more than disorder explains.
    ClockSetBack "clock_set_back",
    // Collector
    /// A row pushed out of a full table.
    Eviction "evictions",
}

impl Anomaly {
    /// Number of anomalies.
    pub const COUNT: usize = Anomaly::ALL.len();
}

/// A counter for each anomaly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnomalyCounts([u64; Anomaly::COUNT]);

impl Default for AnomalyCounts {
    fn default() -> AnomalyCounts {
        AnomalyCounts([0; Anomaly::COUNT])
    }
}

impl AnomalyCounts {
    /// Counts one.
    pub fn count(&mut self, anomaly: Anomaly) {
        self.add(anomaly, 1);
    }

    /// Counts `amount` (events, or bytes for the `…Bytes` anomalies).
    pub fn add(&mut self, anomaly: Anomaly, amount: u64) {
        self.0[anomaly as usize] += amount;
    }

    /// The count of one.
    pub fn of(&self, anomaly: Anomaly) -> u64 {
        self.0[anomaly as usize]
    }

    /// Adds another set of counts to this one.
    pub fn merge(&mut self, other: &AnomalyCounts) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }

    /// Takes the counts and leaves zeros.
    pub fn take(&mut self) -> AnomalyCounts {
        std::mem::take(self)
    }

    /// Each anomaly that occurred, with its count.
    pub fn iter(&self) -> impl Iterator<Item = (Anomaly, u64)> + '_ {
        Anomaly::ALL.iter().map(|&anomaly| (anomaly, self.of(anomaly))).filter(|&(_, count)| count > 0)
    }
}

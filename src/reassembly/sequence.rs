//! Sequence numbers of TCP: 32 bits that wrap (RFC 9293 §3.4).
//!
//! Order and distance of sequence numbers live here and nowhere else. Two numbers compare rightly as long as they lie less
//! than 2^31 apart; reassembly refuses what lies further from a stream's position than
//! [`window_bytes_max`](super::limits::ReassemblyLimits::window_bytes_max) before it compares anything.

/// A TCP sequence or acknowledgement number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeqNumber(pub u32);

impl SeqNumber {
    /// The number `bytes` later in the stream.
    #[inline(always)]
    pub const fn plus(self, bytes: u32) -> SeqNumber {
        SeqNumber(self.0.wrapping_add(bytes))
    }

    /// The number `bytes` earlier in the stream.
    #[inline(always)]
    pub const fn minus(self, bytes: u32) -> SeqNumber {
        SeqNumber(self.0.wrapping_sub(bytes))
    }

    /// Bytes from `origin` to `self`, negative when `self` lies before it.
    #[inline(always)]
    pub const fn distance_from(self, origin: SeqNumber) -> i32 {
        self.0.wrapping_sub(origin.0).cast_signed()
    }

    /// Bytes from `origin` to `self` modulo 2^32, where the order is known or does not matter.
    #[inline(always)]
    pub const fn offset_from(self, origin: SeqNumber) -> u32 {
        self.0.wrapping_sub(origin.0)
    }

    /// Whether `self` lies before `other`.
    #[inline(always)]
    pub const fn is_before(self, other: SeqNumber) -> bool {
        self.distance_from(other) < 0
    }

    /// Whether `self` lies after `other`.
    #[inline(always)]
    pub const fn is_after(self, other: SeqNumber) -> bool {
        other.is_before(self)
    }

    /// The later of two.
    #[inline(always)]
    pub const fn max(self, other: SeqNumber) -> SeqNumber {
        if self.is_before(other) { other } else { self }
    }

    /// The earlier of two.
    #[inline(always)]
    pub const fn min(self, other: SeqNumber) -> SeqNumber {
        if other.is_before(self) { other } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A number as 64-bit arithmetic knows it, near a wrap more often than not.
    fn wide() -> impl Strategy<Value = u64> {
        prop_oneof![(1u64 << 40)..(1u64 << 50), (1u64 << 40) - 70_000..(1u64 << 40) + 70_000]
    }

    fn narrow(number: u64) -> SeqNumber {
        SeqNumber(u32::try_from(number & 0xffff_ffff).unwrap())
    }

    #[test]
    fn trap01_zero_follows_the_greatest_number() {
        assert_eq!(SeqNumber(u32::MAX).plus(1), SeqNumber(0));
        assert_eq!(SeqNumber(0).distance_from(SeqNumber(u32::MAX)), 1);
        assert!(SeqNumber(u32::MAX).is_before(SeqNumber(0)));
        assert!(!SeqNumber(7).is_before(SeqNumber(7)) && !SeqNumber(7).is_after(SeqNumber(7)));
    }

    proptest! {
        #[test]
        fn trap01_order_is_that_of_64_bit_arithmetic(a in wide(), step in -(1i64 << 31) + 1..(1i64 << 31)) {
            let b = a.checked_add_signed(step).unwrap();
            let (x, y) = (narrow(a), narrow(b));
            prop_assert_eq!(i64::from(y.distance_from(x)), step);
            prop_assert_eq!(x.is_before(y), a < b);
            prop_assert_eq!(x.is_after(y), a > b);
            prop_assert_eq!(x.max(y), narrow(a.max(b)));
            prop_assert_eq!(x.min(y), narrow(a.min(b)));
        }

        #[test]
        fn plus_and_minus_undo_each_other(a in any::<u32>(), bytes in any::<u32>()) {
            let a = SeqNumber(a);
            prop_assert_eq!(a.plus(bytes).minus(bytes), a);
            prop_assert_eq!(a.plus(bytes).offset_from(a), bytes);
        }
    }
}

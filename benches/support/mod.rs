//! Traces for the benches of the collector: key numbers by a known distribution, and keys for the numbers.

use std::fmt;

/// splitmix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    /// Between 0 and 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// A bijection that leaves no order.
pub(crate) fn mix(number: u64) -> u64 {
    let mut z = number;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// The number that `mix` made this of.
pub(crate) fn unmix(mixed: u64) -> u64 {
    let mut z = mixed;
    z = (z ^ z >> 31 ^ z >> 62).wrapping_mul(0x3196_42b2_d24d_8ec3);
    z = (z ^ z >> 27 ^ z >> 54).wrapping_mul(0x96de_1b17_3f11_9089);
    z ^ z >> 30 ^ z >> 60
}

/// Zipf's distribution over `0..keys` by rejection inversion (Hörmann and Derflinger 1996); exponent 0 is uniform.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Zipf {
    keys: u64,
    exponent: f64,
}

impl Zipf {
    /// Of so many keys; an exponent of 1 exactly is moved by a hair.
    pub(crate) fn new(keys: u64, exponent: f64) -> Zipf {
        Zipf { keys, exponent: if exponent == 1.0 { 1.000_001 } else { exponent } }
    }

    /// Number of keys.
    pub(crate) fn keys(&self) -> u64 {
        self.keys
    }

    /// A key's number; 0 is the hottest.
    pub(crate) fn sample(&self, random: &mut Random) -> u64 {
        if self.exponent == 0.0 {
            return random.below(self.keys);
        }
        let (low, high) = (self.integral(1.5) - 1.0, self.integral(self.keys as f64 + 0.5));
        loop {
            let u = high + random.unit() * (low - high);
            let x = self.inverse(u);
            let k = x.round().clamp(1.0, self.keys as f64);
            if k - x <= 0.5 - 1e-9 && u >= self.integral(k + 0.5) - k.powf(-self.exponent) {
                return k as u64 - 1;
            }
        }
    }

    fn integral(&self, x: f64) -> f64 {
        (x.powf(1.0 - self.exponent) - 1.0) / (1.0 - self.exponent)
    }

    fn inverse(&self, u: f64) -> f64 {
        (1.0 + u * (1.0 - self.exponent)).powf(1.0 / (1.0 - self.exponent))
    }
}

impl fmt::Display for Zipf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "zipf {} of {} keys", self.exponent, self.keys)
    }
}

/// A key of 32 bytes, as they are in practice: `user:`, sixteen hexadecimal digits, `:profile:v2`.
pub(crate) fn write_key(number: u64) -> [u8; 32] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut key = [0; 32];
    key[..5].copy_from_slice(b"user:");
    key[21..].copy_from_slice(b":profile:v2");
    for (digit, byte) in
        mix(number).to_be_bytes().iter().zip(key[5..21].as_chunks_mut::<2>().0).flat_map(|(byte, two)| {
            let [high, low] = two;
            [(byte >> 4, high), (byte & 15, low)]
        })
    {
        *byte = DIGITS[usize::from(digit)];
    }
    key
}

/// The value of `--name value` among the arguments, which come through `cargo bench`.
pub(crate) fn text_argument(name: &str) -> Option<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument != &format!("--{name}"));
    arguments.next()?;
    Some(arguments.next().unwrap_or_else(|| wrong_usage(&format!("--{name} has no value"))))
}

/// The same for a number.
pub(crate) fn argument(name: &str, otherwise: u64) -> u64 {
    let Some(text) = text_argument(name) else { return otherwise };
    text.parse().unwrap_or_else(|_| wrong_usage(&format!("--{name} {text}: not a number")))
}

/// Ends a program that was called wrongly, and says how.
pub(crate) fn wrong_usage(message: &str) -> ! {
    end(message, 2)
}

/// Ends a program that cannot do what it is for, and says why.
pub(crate) fn give_up(message: &str) -> ! {
    end(message, 1)
}

#[expect(clippy::print_stderr, reason = "whoever called it is to read it, in the place of a table")]
fn end(message: &str, code: i32) -> ! {
    eprintln!("error: {message}");
    std::process::exit(code)
}

/// Whether `cargo bench` runs us, and not a test of everything.
pub(crate) fn is_bench() -> bool {
    std::env::args().any(|argument| argument == "--bench")
}

/// CPU time of this thread, nanoseconds.
pub(crate) fn cpu_nanos() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("a kernel with schedstat");
    let nanos = text.split(' ').next().and_then(|field| field.parse().ok());
    nanos.expect("the first field of schedstat is a number")
}

//! Failures of our own: what they may say, and how tests bring them about.

/// Lets a failure say where it happened and not what it was about: the text of a panic may hold bytes of a key.
pub(super) fn hide_panic_texts() {
    std::panic::set_hook(Box::new(|panic| match panic.location() {
        Some(place) => tracing::error!("failure at {}:{}", place.file(), place.line()),
        None => tracing::error!("failure at an unknown place"),
    }));
}

/// A failure to order, for tests of what follows. A program built for release has none.
pub(super) struct Fault {
    #[cfg(debug_assertions)]
    needle: Option<Vec<u8>>,
}

impl Fault {
    /// Names the bytes at whose sight a program with debug assertions fails.
    #[cfg(debug_assertions)]
    const VARIABLE: &str = "MEMTAP_FAULT_AT_BYTES";

    pub(super) fn from_environment() -> Fault {
        Fault {
            #[cfg(debug_assertions)]
            needle: std::env::var(Fault::VARIABLE)
                .ok()
                .map(String::into_bytes)
                .filter(|text| !text.is_empty()),
        }
    }

    /// Panics when the bytes hold what was ordered.
    #[inline]
    pub(super) fn strike(&self, bytes: &[u8]) {
        #[cfg(debug_assertions)]
        if let Some(needle) = &self.needle {
            assert!(memchr::memmem::find(bytes, needle).is_none(), "the fault that was ordered");
        }
        #[cfg(not(debug_assertions))]
        let _ = (self, bytes);
    }
}

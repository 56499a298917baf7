//! The PROXY protocol's header, which load balancers put before a connection's first byte (haproxy, `doc/proxy-protocol.txt`).
//!
//! memcached does not know it and takes its lines for commands; servers before which another proxy unpacks it never see it.

/// Beginning of a header of version 1, a line of text.
const V1: &[u8] = b"PROXY ";
/// Longest header of version 1, with its line end.
const V1_BYTES_MAX: usize = 107;
/// Beginning of a header of version 2.
const V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length of the addresses.
const V2_HEAD_BYTES: usize = 16;

/// What stands at the front of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Front {
    /// A header: bytes of its head, bytes of addresses after it, and how many lines memcached sees in it.
    Header { head: usize, addresses: u64, lines: u8 },
    /// What may become one.
    Incomplete,
    /// None.
    Other,
}

/// Looks for a header.
pub(super) fn read(bytes: &[u8]) -> Front {
    match bytes.first() {
        Some(b'P') => read_v1(bytes),
        Some(b'\r') => read_v2(bytes),
        _ => Front::Other,
    }
}

fn read_v1(bytes: &[u8]) -> Front {
    if bytes.len() < V1.len() {
        return if V1.starts_with(bytes) { Front::Incomplete } else { Front::Other };
    }
    if !bytes.starts_with(V1) {
        return Front::Other;
    }
    let line = &bytes[..bytes.len().min(V1_BYTES_MAX)];
    match memchr::memchr(b'\n', line) {
        Some(end) => Front::Header { head: end + 1, addresses: 0, lines: 1 },
        None if bytes.len() < V1_BYTES_MAX => Front::Incomplete,
        None => Front::Other,
    }
}

fn read_v2(bytes: &[u8]) -> Front {
    let signature = &bytes[..bytes.len().min(V2.len())];
    if !V2.starts_with(signature) {
        return Front::Other;
    }
    match bytes.first_chunk::<V2_HEAD_BYTES>() {
        Some(&[.., version, _, high, low]) if version >> 4 == 2 => {
            let addresses = u64::from(u16::from_be_bytes([high, low]));
            Front::Header { head: V2_HEAD_BYTES, addresses, lines: 4 }
        }
        Some(_) => Front::Other,
        None => Front::Incomplete,
    }
}

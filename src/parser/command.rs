//! The verbs of the text protocol: one table, in one place.
//!
//! From `process_command_ascii` in `proto_text.c` and memcached's `doc/protocol.txt`. A new verb is one line here.

use super::queue::{KEY_MAX, Reply, Traits};
use crate::model::Command;

/// How the tokens after a verb are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Syntax {
    /// `K*`
    Keys,
    /// `EXP K*`
    KeysAfterExpiry,
    /// `K flags exptime LEN [noreply]` and a body.
    Storage,
    /// `K flags exptime LEN CAS [noreply]` and a body.
    StorageCas,
    /// `K [0] [noreply]`
    Deletion,
    /// `K N [noreply]`
    KeyNumber,
    /// A meta command with a key: `K flag*`.
    Meta,
    /// `K LEN flag*` and a body.
    MetaSet,
    /// Whatever follows is of no interest, except a last `noreply`.
    Keyless,
}

/// What is known about a verb.
#[derive(Clone, Copy, Debug)]
pub(super) struct Verb {
    pub(super) command: Command,
    pub(super) syntax: Syntax,
    pub(super) reply: Reply,
}

const fn verb(command: Command, syntax: Syntax, reply: Reply) -> Verb {
    Verb { command, syntax, reply }
}

/// The verb with this name. Names are case-sensitive.
pub(super) fn find_verb(name: &[u8]) -> Option<Verb> {
    use Syntax::{Deletion, KeyNumber, Keyless, Keys, KeysAfterExpiry, Meta, MetaSet, Storage, StorageCas};
    Some(match name {
        b"get" => verb(Command::Get, Keys, Reply::Values),
        b"gets" => verb(Command::Gets, Keys, Reply::Values),
        b"bget" => verb(Command::Bget, Keys, Reply::Values),
        b"gat" => verb(Command::Gat, KeysAfterExpiry, Reply::Values),
        b"gats" => verb(Command::Gats, KeysAfterExpiry, Reply::Values),
        b"set" => verb(Command::Set, Storage, Reply::Storage),
        b"add" => verb(Command::Add, Storage, Reply::Storage),
        b"replace" => verb(Command::Replace, Storage, Reply::Storage),
        b"append" => verb(Command::Append, Storage, Reply::Storage),
        b"prepend" => verb(Command::Prepend, Storage, Reply::Storage),
        b"cas" => verb(Command::Cas, StorageCas, Reply::Storage),
        b"delete" => verb(Command::Delete, Deletion, Reply::Deletion),
        b"incr" => verb(Command::Incr, KeyNumber, Reply::Arithmetic),
        b"decr" => verb(Command::Decr, KeyNumber, Reply::Arithmetic),
        b"touch" => verb(Command::Touch, KeyNumber, Reply::Touch),
        b"mg" => verb(Command::MetaGet, Meta, Reply::MetaGet),
        b"ms" => verb(Command::MetaSet, MetaSet, Reply::MetaSet),
        b"md" => verb(Command::MetaDelete, Meta, Reply::MetaDelete),
        b"ma" => verb(Command::MetaArithmetic, Meta, Reply::MetaArithmetic),
        b"me" => verb(Command::MetaDebug, Meta, Reply::MetaDebug),
        b"mn" => verb(Command::MetaNoop, Keyless, Reply::MetaNoop),
        b"flush_all" => verb(Command::FlushAll, Keyless, Reply::Line),
        b"version" => verb(Command::Version, Keyless, Reply::Version),
        b"stats" => verb(Command::Stats, Keyless, Reply::Stats),
        b"verbosity" => verb(Command::Verbosity, Keyless, Reply::Line),
        b"quit" => verb(Command::Quit, Keyless, Reply::Nothing),
        b"watch" => verb(Command::Watch, Keyless, Reply::Watch),
        b"lru_crawler" => verb(Command::LruCrawler, Keyless, Reply::Line),
        b"lru" => verb(Command::Lru, Keyless, Reply::Line),
        b"slabs" => verb(Command::Slabs, Keyless, Reply::Line),
        b"cache_memlimit" => verb(Command::CacheMemlimit, Keyless, Reply::Line),
        b"extstore" => verb(Command::Extstore, Keyless, Reply::Line),
        b"refresh_certs" => verb(Command::RefreshCerts, Keyless, Reply::Line),
        b"shutdown" => verb(Command::Shutdown, Keyless, Reply::Nothing),
        _ => return None,
    })
}

/// The head of a request in either protocol: what must be known to count it and to pair it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head<'a> {
    pub(super) command: Command,
    pub(super) reply: Reply,
    pub(super) traits: Traits,
    /// Empty for keyless commands; at most 250 bytes.
    pub(super) key: &'a [u8],
    /// Never answered, whatever happens (`noreply`).
    pub(super) silent: bool,
    /// Bytes that follow the head and are never looked at.
    pub(super) body: u64,
    /// See `Request::extra`.
    pub(super) extra: u64,
    /// See `Request::opaque`.
    pub(super) opaque: u32,
    /// Binary only.
    pub(super) opcode: u8,
    /// The server takes nonzero client flags as four more bytes of the item.
    pub(super) has_client_flags: bool,
}

impl Head<'_> {
    /// A head without a key or a body.
    pub(super) fn keyless(command: Command, reply: Reply) -> Head<'static> {
        Head {
            command,
            reply,
            traits: Traits::default(),
            key: &[],
            silent: false,
            body: 0,
            extra: 0,
            opaque: 0,
            opcode: 0,
            has_client_flags: false,
        }
    }

    /// A request that the server can only answer with an error.
    pub(super) fn invalid(command: Command, key: &[u8]) -> Head<'_> {
        let (command, key) = if key.is_empty() || key.len() > KEY_MAX {
            (Command::Unknown, &key[..0])
        } else {
            (command, key)
        };
        Head { key, traits: Traits::INVALID, ..Head::keyless(command, Reply::Line) }
    }
}

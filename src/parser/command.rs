//! The verbs of the text protocol: one line each. To add a verb, add it to `Command` and here.

use crate::model::Command;

/// How the line of a verb goes on, and so how it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// `K*`
    Keys,
    /// `EXPTIME K*`
    ExptimeKeys,
    /// `K flags exptime LEN [noreply]` and a body.
    Store,
    /// `K flags exptime LEN CAS [noreply]` and a body.
    StoreCas,
    /// `K … [noreply]`, one line of answer.
    Keyed,
    /// A meta command with a key.
    Meta,
    /// `K LEN flag*` and a body.
    MetaStore,
    /// `mn`
    MetaNoop,
    /// No key, one line of answer.
    Admin,
    /// No key, lines of answer up to END.
    Stats,
    /// No key, a dump or one line.
    LruCrawler,
    /// No key, an endless stream.
    Watch,
    /// No answer: the server closes.
    Quit,
}

/// Verb, command, shape; those that make up nearly all traffic first.
pub(super) const VERBS: &[(&[u8], Command, Shape)] = &[
    (b"get", Command::Get, Shape::Keys),
    (b"set", Command::Set, Shape::Store),
    (b"mg", Command::MetaGet, Shape::Meta),
    (b"ms", Command::MetaSet, Shape::MetaStore),
    (b"md", Command::MetaDelete, Shape::Meta),
    (b"ma", Command::MetaArithmetic, Shape::Meta),
    (b"mn", Command::MetaNoop, Shape::MetaNoop),
    (b"me", Command::MetaDebug, Shape::Meta),
    (b"gets", Command::Gets, Shape::Keys),
    (b"delete", Command::Delete, Shape::Keyed),
    (b"incr", Command::Incr, Shape::Keyed),
    (b"decr", Command::Decr, Shape::Keyed),
    (b"touch", Command::Touch, Shape::Keyed),
    (b"gat", Command::Gat, Shape::ExptimeKeys),
    (b"gats", Command::Gats, Shape::ExptimeKeys),
    (b"add", Command::Add, Shape::Store),
    (b"replace", Command::Replace, Shape::Store),
    (b"append", Command::Append, Shape::Store),
    (b"prepend", Command::Prepend, Shape::Store),
    (b"cas", Command::Cas, Shape::StoreCas),
    (b"bget", Command::Bget, Shape::Keys),
    (b"version", Command::Version, Shape::Admin),
    (b"stats", Command::Stats, Shape::Stats),
    (b"flush_all", Command::FlushAll, Shape::Admin),
    (b"verbosity", Command::Verbosity, Shape::Admin),
    (b"quit", Command::Quit, Shape::Quit),
    (b"watch", Command::Watch, Shape::Watch),
    (b"lru_crawler", Command::LruCrawler, Shape::LruCrawler),
    (b"lru", Command::Lru, Shape::Admin),
    (b"slabs", Command::Slabs, Shape::Admin),
    (b"cache_memlimit", Command::CacheMemlimit, Shape::Admin),
    (b"extstore", Command::Extstore, Shape::Admin),
    (b"refresh_certs", Command::RefreshCerts, Shape::Admin),
    (b"shutdown", Command::Shutdown, Shape::Quit),
];

/// The command and shape of a verb.
pub(super) fn verb(token: &[u8]) -> Option<(Command, Shape)> {
    VERBS.iter().find(|(name, _, _)| *name == token).map(|&(_, command, shape)| (command, shape))
}

//! What a row that a report does not list had at most, whatever the report was asked to list: without it, reports of several machines
//! could not be added up.

use super::contents::{Contents, Ranked};
use super::options::ClientView;
use super::privacy::PrivacyMode;
use crate::collector::Unlisted;
use crate::collector::snapshot::{KeyRow, PairRow, Snapshot};
use std::collections::HashSet;
use std::ptr;

/// The bounds for this report. The view of clients that it does not list has none: what stands there is 0.
pub(crate) fn unlisted(contents: &Contents<'_>) -> Unlisted {
    let snapshot = contents.snapshot;
    let bounds = snapshot.bounds;
    let key = unlisted_key(contents);
    let clients = match contents.options.client {
        ClientView::Ip => &snapshot.clients,
        ClientView::Socket => &snapshot.sockets,
    };
    let mut client = beyond(clients, &contents.hot_clients).max(bounds.client);
    let server = if snapshot.servers.is_empty() {
        0
    } else {
        beyond(&snapshot.servers, &contents.servers).max(bounds.client)
    };
    let mut pair = unlisted_pair(contents).max(bounds.pair);
    if shows_sums(contents) && bounds.pair > 0 {
        pair = contents.requests();
    }
    if let Some(all) = contents.unfiltered {
        // A filter may leave the hottest out.
        let clients = match contents.options.client {
            ClientView::Ip => &all.clients,
            ClientView::Socket => &all.sockets,
        };
        client = client.max(most(clients));
        let hidden = most_of_pairs(all.keys.iter().flat_map(|row| &row.clients));
        pair = if shows_sums(contents) { contents.requests() } else { pair.max(hidden) };
    }
    let (client, socket) = match contents.options.client {
        ClientView::Ip => (client, 0),
        ClientView::Socket => (0, client),
    };
    Unlisted { key, client, socket, server, pair: pair.min(contents.requests()) }
}

/// Rows are of shapes, each the sum of the keys that were held: what was not held adds up as well, and no bound of a key says to what.
fn shows_sums(contents: &Contents<'_>) -> bool {
    contents.options.privacy.mode() == PrivacyMode::Shape
}

fn unlisted_key(contents: &Contents<'_>) -> u64 {
    let snapshot = contents.snapshot;
    let listed = listed_keys(contents);
    if shows_sums(contents) && (contents.unfiltered.is_some() || snapshot.bounds.key > 0) {
        // Of one shape may be all keys that no row is held of, and all that the filter left out.
        let certain: u64 = listed.iter().map(|row| row.counters.requests().saturating_sub(row.err)).sum();
        return contents.requests().saturating_sub(certain);
    }
    let listed: HashSet<*const KeyRow> = listed.into_iter().map(ptr::from_ref).collect();
    let others = snapshot.keys.iter().filter(|row| !listed.contains(&ptr::from_ref(*row)));
    let key = most(others).max(snapshot.bounds.key);
    contents.unfiltered.map_or(key, |all: &Snapshot| key.max(most(&all.keys)))
}

/// The rows of keys that the report lists, each once.
fn listed_keys<'a>(contents: &Contents<'a>) -> Vec<&'a KeyRow> {
    let mut listed: Vec<&KeyRow> = contents.hot_keys.iter().chain(&contents.missed_keys).copied().collect();
    listed.sort_unstable_by_key(|row| ptr::from_ref::<KeyRow>(row));
    listed.dedup_by(|a, b| ptr::eq(*a, *b));
    listed
}

/// The most requests of those rows that are not listed.
fn beyond<R: Ranked>(rows: &[R], listed: &[&R]) -> u64 {
    if rows.len() == listed.len() {
        return 0;
    }
    let listed: HashSet<*const R> = listed.iter().map(|row| ptr::from_ref(*row)).collect();
    most(rows.iter().filter(|row| !listed.contains(&ptr::from_ref(*row))))
}

fn most<'a, R: Ranked + 'a>(rows: impl IntoIterator<Item = &'a R>) -> u64 {
    rows.into_iter().map(|row| row.counters().requests()).max().unwrap_or(0)
}

fn most_of_pairs<'a>(pairs: impl Iterator<Item = &'a PairRow>) -> u64 {
    pairs.map(|pair| pair.requests).max().unwrap_or(0)
}

/// Of pairs that the snapshot holds and the report does not list.
fn unlisted_pair(contents: &Contents<'_>) -> u64 {
    let listed: HashSet<*const KeyRow> = listed_keys(contents).into_iter().map(ptr::from_ref).collect();
    let hidden = contents.snapshot.keys.iter().flat_map(|row| {
        let shown = if listed.contains(&ptr::from_ref(row)) { contents.clients_of(row).len() } else { 0 };
        &row.clients[shown..]
    });
    most_of_pairs(hidden)
}

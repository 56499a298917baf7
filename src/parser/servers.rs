//! What a server said about itself on one connection, for its other ones.
//!
//! memcached 1.6.40 replaced the text parser, and what it does with malformed requests (`proto_parser.c`). Many clients ask for the
//! version on each connection; some ask once, on one of a pool, whose connections may be with several workers: so workers share this.

use crate::anomaly::{Anomaly, AnomalyCounts};
use crate::model::Endpoint;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// The servers that are known to be of 1.6.40 or newer; clones know the same ones. Of the others the older rules hold, which expect what
/// either may do.
///
/// It is asked when a connection begins, and written when a server turns out to be other than it was known to be: so rarely that
/// nobody waits for its lock.
#[derive(Clone, Debug)]
pub(super) struct Servers {
    /// Never holds more than `count_max`, which it was made for, so it never grows.
    new: Arc<RwLock<HashSet<Endpoint, foldhash::fast::RandomState>>>,
    /// One was known at some time: until then nobody touches the lock.
    any: Arc<AtomicBool>,
    count_max: usize,
}

impl Servers {
    /// Allocates room for `count_max` servers.
    pub(super) fn new(count_max: u32) -> Servers {
        let count_max = count_max as usize;
        let new = HashSet::with_capacity_and_hasher(count_max, Default::default());
        Servers { new: Arc::new(RwLock::new(new)), any: Arc::default(), count_max }
    }

    /// Whether `server` is known to be new.
    pub(super) fn is_new(&self, server: &Endpoint) -> bool {
        // The lock orders what is read; a connection that begins just now may follow either rule.
        self.any.load(Ordering::Relaxed)
            && self.new.read().unwrap_or_else(PoisonError::into_inner).contains(server)
    }

    /// `server` told its version. The newest word counts: a server may be replaced at its address. Where there is no room, its
    /// other connections follow the older rules, and that is counted.
    pub(super) fn note(&self, server: &Endpoint, is_new: bool, anomalies: &mut AnomalyCounts) {
        if self.is_new(server) == is_new {
            return;
        }
        // A worker that failed while it wrote left a set all the same.
        let mut new = self.new.write().unwrap_or_else(PoisonError::into_inner);
        if !is_new {
            new.remove(server);
        } else if new.len() < self.count_max {
            new.insert(*server);
            self.any.store(true, Ordering::Relaxed);
        } else if !new.contains(server) {
            anomalies.count(Anomaly::ServerVersionShed);
        }
    }
}

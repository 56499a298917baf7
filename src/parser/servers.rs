//! What a server said about itself on one connection, for its other ones.
//!
//! memcached 1.6.40 replaced the text parser, and what it does with malformed requests (`proto_parser.c`). Many clients ask for the
//! version on each connection; some ask once, on one of a pool.

use crate::anomaly::{Anomaly, AnomalyCounts};
use crate::model::Endpoint;
use std::collections::HashSet;

/// The servers that are known to be of 1.6.40 or newer. Of the others the older rules hold, which expect what either may do.
#[derive(Debug)]
pub(super) struct Servers {
    /// Never holds more than it was made for, so it never grows.
    new: HashSet<Endpoint, foldhash::fast::RandomState>,
    count_max: usize,
}

impl Servers {
    /// Allocates room for `count_max` servers.
    pub(super) fn new(count_max: u32) -> Servers {
        let count_max = count_max as usize;
        Servers { new: HashSet::with_capacity_and_hasher(count_max, Default::default()), count_max }
    }

    /// Whether `server` is known to be new.
    pub(super) fn is_new(&self, server: &Endpoint) -> bool {
        !self.new.is_empty() && self.new.contains(server)
    }

    /// `server` told its version. The newest word counts: a server may be replaced at its address. Where there is no room, its
    /// other connections follow the older rules, and that is counted.
    pub(super) fn note(&mut self, server: &Endpoint, is_new: bool, anomalies: &mut AnomalyCounts) {
        if !is_new {
            self.new.remove(server);
        } else if self.new.len() < self.count_max {
            self.new.insert(*server);
        } else if !self.new.contains(server) {
            anomalies.count(Anomaly::ServerVersionShed);
        }
    }
}

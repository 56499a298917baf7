//! memtap: a passive reporter for memcached.

pub mod anomaly;
pub mod capture;
pub mod collector;
pub mod model;
pub mod parser;
pub mod reassembly;

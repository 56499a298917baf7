//! memtap: a passive reporter for memcached.

pub mod anomaly;
pub mod capture;
pub mod cli;
pub mod collector;
pub mod config;
pub mod model;
pub mod network;
pub mod parser;
pub mod reassembly;
pub mod report;
pub mod sandbox;

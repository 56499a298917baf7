//! Memcached over UDP.

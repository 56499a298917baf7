//! Headers to segments and datagrams.

//! The Workload API as its clients see it: the `spiffe` crate, tonic clients, and hands that write bytes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]

mod bad_input;
mod bounds;
mod foreign_client;
mod grpc;
mod raw;
mod support;
mod tenant;

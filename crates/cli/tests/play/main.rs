//! `seamount play` for real: namespaces, mounter, agent, containers. Each test runs as root and, where the
//! kernel lets an ordinary user make namespaces, without root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod containers;
mod files;
mod leftovers;
mod node;
mod stage;
mod users;

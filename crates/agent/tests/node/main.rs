//! The agent as the kubelet and pods meet it: the real agent (its own uid, no capability) and the real
//! mounter in a mount namespace of their own, a simulated kubelet, a simulated token issuer, and the crate
//! `spiffe` as the workload.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod access;
mod configuration;
mod crashes;
mod drivers;
mod exhaustion;
mod faults;
mod forgeries;
mod harness;
mod identity;
mod lifecycle;
mod network;
mod quotas;
mod registration;
mod stolen;
mod stopped;
mod tenant;

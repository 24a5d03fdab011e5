//! The real mounter, as root in a mount namespace of its own, against everything that it must withstand.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

#[path = "component/bench.rs"]
mod bench;
#[path = "component/disks.rs"]
mod disks;
#[path = "component/drivers.rs"]
mod drivers;
#[path = "component/escape.rs"]
mod escape;
#[path = "component/foreign.rs"]
mod foreign;
#[path = "component/frames.rs"]
mod frames;
#[path = "component/handover.rs"]
mod handover;
#[path = "component/life.rs"]
mod life;
#[path = "component/mounts.rs"]
mod mounts;
#[path = "component/removal.rs"]
mod removal;
#[path = "component/shortage.rs"]
mod shortage;
#[path = "component/volumes.rs"]
mod volumes;

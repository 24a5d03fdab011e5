//! The unprivileged half of the node: CSI, identity, health. `main.rs` only starts it.

pub mod authority;
pub mod config;
pub mod config_manager;
pub mod csi;
pub mod endpoint;
pub mod memory;
pub mod metrics;
pub mod node;
pub mod own_uid;
pub mod program;
pub mod readiness;
pub mod record;
pub mod registration;
pub mod run;
pub mod source;
pub mod state;
pub mod volumes;
pub mod workload_api;

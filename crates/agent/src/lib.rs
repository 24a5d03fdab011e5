//! The unprivileged half of the node: CSI, identity, health. `main.rs` only starts it.

pub mod authority;
pub mod config;
pub mod config_manager;
pub mod csi;
pub mod endpoint;
pub mod health;
pub mod http;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod mounter;
pub mod node;
pub mod own_uid;
pub mod record;
pub mod registration;
pub mod run;
pub mod source;
pub mod state;
pub mod token;
pub mod volumes;

//! What the fuzz targets check. One module per target, each with `run(bytes)`, which panics where a promise
//! is broken.
//!
//! Programs' modules are compiled in as they are: the mounter and `seamount` have no library for them, and
//! need none.

// Other programs' unit tests are theirs, also where cargo is told to test each library.
#![cfg(not(test))]

pub mod authority_filter;
pub mod certificates;
pub mod csi_requests;
pub mod identifiers;
pub mod input;
pub mod manifests;
pub mod mounter_protocol;
pub mod mounter_session;
pub mod pod_tokens;
pub mod state_records;
pub mod token_keys;
pub mod tokens;
pub mod vol_data;
pub mod workload_api;
mod world;

/// The mounter without its `main`, its privileges (it would lock the fuzzer in) and its log.
#[allow(dead_code, reason = "the mounter's, not all of it is called from here")]
#[path = "../../../crates/mounter/src"]
mod mounter {
    pub mod closer;
    pub mod config;
    pub mod dispatch;
    pub mod error;
    pub mod handover;
    pub mod listeners;
    pub mod node;
    pub mod path;
    pub mod server;
    pub mod socket;
    pub mod state;
    pub mod volume;
    pub mod wire;
}
// Its modules know each other by these names.
use mounter::{closer, config, error, handover, node, path, server, socket, volume, wire};

/// In the place of the mounter's log: makes the text and keeps quiet.
mod log {
    use std::fmt::Display;

    use seamount_mounter_protocol::names::Volume;

    pub fn event(_level: &str, msg: &str, fields: &[(&str, &dyn Display)]) {
        let text: String =
            fields.iter().map(|(key, value)| format!(" {key}={:?}", value.to_string())).collect();
        assert!(!(msg.to_owned() + &text).contains('\n'));
    }

    pub fn warn(msg: &str, reason: &dyn Display) {
        event("warn", msg, &[("reason", reason)]);
    }

    pub fn done<'a>(msg: &str, volume: impl Into<Option<&'a Volume>>) {
        let volume = volume.into().map(ToString::to_string).unwrap_or_default();
        event("info", msg, &[("volume", &volume)]);
    }
}

/// How `seamount play` reads manifests.
#[allow(dead_code, reason = "the command's, not all of it is called from here")]
#[path = "../../../crates/play/src"]
mod play {
    pub mod allow;
    pub mod env;
    pub mod manifest;
}
use play::{allow, env};

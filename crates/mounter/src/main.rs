//! The privileged half of the node. Reads nothing but its command line, the kubelet's directory and frames
//! from the one peer whose uid is the agent's.

mod closer;
mod config;
mod dispatch;
mod error;
mod handover;
mod listeners;
mod log;
mod node;
mod path;
mod privileges;
mod server;
mod socket;
mod state;
mod volume;
mod wire;

use std::process::ExitCode;
use std::sync::Arc;

use config::Config;
use error::{Context, Result, bail};
use log::event;
use node::{Node, RESERVED};
use seamount_sys::mounter as sys;
use signal_hook::{consts::SIGTERM, flag};
use volume::tmpfs;

fn main() -> ExitCode {
    match Config::parse(std::env::args_os().skip(1)).and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            event("error", "the mounter stops", &[("reason", &e.text)]);
            ExitCode::FAILURE
        }
    }
}

fn run(config: Config) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!(Unsupported, "the mounter needs root, or --rootless in a user namespace");
    }
    // The first process of a container ignores what it does not handle (pid_namespaces(7)).
    flag::register_conditional_shutdown(SIGTERM, 0, Arc::new(true.into())).context("handle SIGTERM")?;
    // Modes are given in full everywhere.
    rustix::process::umask(rustix::fs::Mode::empty());
    if let Err(e) = sys::leave_network()
        && !config.rootless
    {
        return Err(e).context("leave the network namespace (is it privileged?)");
    }
    let probe = |noswap| tmpfs::make(0, 0, "", 1, noswap);
    let swap = sys::swap_namespace(config.agent_uid, config.agent_gid).ok().filter(|swap| {
        // Idmapped tmpfs came with Linux 6.3, noswap (in the initial user namespace) with 6.4.
        !config.no_idmap && probe(false).is_ok_and(|mount| sys::set_attributes(mount, 0, Some(swap)).is_ok())
    });
    let noswap = probe(true).is_ok();
    let descriptors = privileges::raise_descriptor_limit();
    let closer = privileges::drop_the_rest(|| closer::start(descriptors.saturating_sub(RESERVED)))?;
    let mut node = Node::open(config, swap, noswap, descriptors, closer)?;
    event("info", "ready", &[("volumes", &node.limit), ("idmap", &node.swap.is_some()), ("noswap", &noswap)]);
    server::serve(&mut node)?;
    event("info", "another mounter has taken over", &[]);
    Ok(())
}

//! The privileged half of the node. Reads nothing but its command line, the kubelet's directory and frames from the
//! one peer whose uid is the agent's.

mod config;
mod failure;
mod log;
mod node;
mod path;
mod privileges;
mod server;
mod socket;
mod volume;

use std::process::ExitCode;

use config::Config;
use failure::{Doing, Outcome, fail};
use log::event;
use node::{Abilities, Node, RESERVED};
use seamount_sys::mounter as sys;
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

fn run(config: Config) -> Outcome<()> {
    if !rustix::process::geteuid().is_root() {
        return fail!(Unsupported, "the mounter needs root, or --rootless in a user namespace");
    }
    sys::exit_on_signals();
    // Modes are given in full everywhere.
    rustix::process::umask(rustix::fs::Mode::empty());
    match sys::leave_network() {
        Err(e) if !config.rootless => return Err(e).doing("leave the network namespace (is it privileged?)"),
        left => drop(left),
    }
    let swap = (!config.no_idmap && config.agent_uid != 0)
        .then(|| sys::swap_namespace(config.agent_uid, config.agent_gid).ok().filter(tmpfs::can_idmap))
        .flatten();
    let descriptors = privileges::raise_descriptor_limit();
    let abilities = Abilities { swap, noswap: !config.rootless && tmpfs::can_noswap(), descriptors };
    privileges::drop_the_rest()?;
    let mut node = Node::open(config, abilities)?;
    let listener = server::listen(&node.config.socket)?;
    let volumes = descriptors.saturating_sub(RESERVED);
    let Abilities { swap, noswap, .. } = &node.abilities;
    event("info", "ready", &[("volumes", &volumes), ("idmap", &swap.is_some()), ("noswap", noswap)]);
    server::serve(&listener, &mut node)
}

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
use failure::{Doing, Outcome};
use log::event;
use node::{Abilities, Node, RESERVED};
use seamount_mounter::protocol::Fault;
use seamount_sys::mounter as sys;
use volume::tmpfs::Tmpfs;

fn main() -> ExitCode {
    match Config::parse(std::env::args_os().skip(1)).and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            event("error", "the mounter stops", &[("reason", &e)]);
            ExitCode::FAILURE
        }
    }
}

fn run(config: Config) -> Outcome<()> {
    if !rustix::process::geteuid().is_root() {
        return failure::fail(
            Fault::Unsupported,
            "the mounter needs root, or --rootless in a user namespace",
        );
    }
    sys::exit_on_signals();
    // Modes are given in full everywhere.
    rustix::process::umask(rustix::fs::Mode::empty());
    match sys::leave_network() {
        Err(e) if !config.rootless => return Err(e).doing("leave the network namespace (is it privileged?)"),
        left => drop(left),
    }
    let swap = match config.no_idmap || config.agent_uid == 0 {
        true => None,
        false => sys::swap_namespace(config.agent_uid, config.agent_gid)
            .inspect_err(|e| event("warn", "no namespace for idmapped mounts", &[("reason", e)]))
            .ok()
            .filter(Tmpfs::can_idmap),
    };
    let descriptors = privileges::raise_descriptor_limit();
    let abilities = Abilities { swap, noswap: !config.rootless && Tmpfs::can_noswap(), descriptors };
    privileges::drop_the_rest()?;
    let mut node = Node::open(config, abilities)?;
    let listener = server::listen(&node.config.socket)?;
    event(
        "info",
        "ready",
        &[
            ("driver", &node.config.driver),
            ("volumes", &descriptors.saturating_sub(RESERVED)),
            ("idmap", &node.abilities.swap.is_some()),
            ("noswap", &node.abilities.noswap),
        ],
    );
    server::serve(&listener, &mut node)
}

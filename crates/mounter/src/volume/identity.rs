//! A plain directory with a listening socket in it; no mount. Its inode stays while the pod lives.

use std::os::fd::OwnedFd;

use rustix::fs::{self, AtFlags};
use rustix::net::SocketType;
use seamount_mounter_protocol::names::Volume;
use seamount_mounter_protocol::{Reply, flag};

use crate::error::{Context, Result, bail};
use crate::node::Node;
use crate::path;
use crate::socket;
use crate::wire::Attached;

impl Node {
    pub fn publish_identity(&mut self, volume: &Volume, reply: &mut Reply) -> Result<Attached> {
        let place = self.ours(volume)?;
        let (target, created) = place.make_target()?;
        if target.is_mount() {
            reply.flags |= flag::FOREIGN;
            return Ok(None);
        }
        let (slot, name) = (volume.to_string(), self.config.socket_name().to_owned());
        let made = self.listener(slot, (&target.fd, &name), reply, &|node| node.fill(&target.fd, created));
        if made.is_err() && created {
            // By name: what reads a directory takes descriptors, which may be what is missing.
            for name in &self.config.socket_names {
                let _ = fs::unlinkat(&target.fd, name.as_str(), AtFlags::empty());
            }
            place.undo(true);
        }
        made
    }

    /// Links first, the socket last: its rename is the moment from which there is a volume. A socket that is
    /// there is replaced by that rename, so its name is never missing.
    fn fill(&self, dir: &OwnedFd, created: bool) -> Result<OwnedFd> {
        let first = self.config.socket_name();
        let before = if created { Ok(Vec::new()) } else { path::names(dir, 64) };
        for name in before.context("read the target directory")? {
            if !self.makes(&name) {
                bail!(NotOurs, "{name:?} is in the target directory: remove it or delete the pod");
            } else if name.to_bytes() != first.as_bytes() {
                fs::unlinkat(dir, &name, AtFlags::empty()).context("remove a leftover")?;
            }
        }
        for link in self.config.socket_names.iter().skip(1) {
            fs::symlinkat(first, dir, link.as_str()).context("make a link to the socket")?;
        }
        socket::bind(dir, first, SocketType::STREAM, 0o666)
    }
}

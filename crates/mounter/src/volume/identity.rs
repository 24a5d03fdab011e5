//! A plain directory with a listening socket in it; no mount. Its inode stays while the pod lives.

use std::os::fd::OwnedFd;

use rustix::fs::{self, AtFlags};
use rustix::io::Errno;
use rustix::net::SocketType;
use seamount_mounter::names::Volume;
use seamount_mounter::protocol::{Reply, flag};

use crate::failure::{Doing, Outcome, fail};
use crate::log::done;
use crate::node::{Attached, Node, attach, slot};
use crate::path;
use crate::socket;

impl Node {
    pub fn publish_identity(&mut self, volume: &Volume, reply: &mut Reply) -> Outcome<Attached> {
        let place = self.ours(volume)?;
        let slot = slot(volume);
        self.room(&slot)?;
        let (target, created) = place.make_target()?;
        if target.is_mount() {
            reply.flags |= flag::FOREIGN;
            return Ok(None);
        }
        if let (Some(kept), Some(name)) = (self.kept.get(&slot), self.config.socket_names.first())
            && socket::leads_to(&target.fd, name, kept)
        {
            reply.flags |= flag::EXISTING;
            return Ok(attach(kept, reply));
        }
        let made = self.fill(&target.fd);
        if made.is_err() && created {
            let _ = self.empty(&place, false);
            place.undo(true);
        }
        let fd = made?;
        done("identity published", volume);
        Ok(self.keep(slot, fd, reply))
    }

    /// Links first, the socket last: its rename is the moment from which there is a volume.
    fn fill(&self, dir: &OwnedFd) -> Outcome<OwnedFd> {
        for name in path::names(dir, 64).doing("read the target directory")? {
            if socket::is_temporary(name.to_bytes()) {
                fs::unlinkat(dir, &name, AtFlags::empty()).doing("remove a leftover socket")?;
            } else if !self.is_socket_name(&name) {
                return fail!(NotOurs, "{name:?} is in the target directory: remove it or delete the pod");
            }
        }
        let Some((first, links)) = self.config.socket_names.split_first() else {
            return fail!(Unsupported, "no --socket-name");
        };
        for link in links {
            match fs::readlinkat(dir, link, Vec::new()) {
                Ok(to) if to.as_bytes() == first.as_bytes() => continue,
                Err(Errno::NOENT) => {}
                _ => fs::unlinkat(dir, link, AtFlags::empty()).doing("replace a link to the socket")?,
            }
            fs::symlinkat(first, dir, link).doing("make a link to the socket")?;
        }
        socket::bind(dir, first, SocketType::STREAM, 0o666)
    }
}

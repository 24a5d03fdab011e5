//! A plain directory with a listening socket in it; no mount. Its inode stays while the pod lives.

use std::os::fd::OwnedFd;

use rustix::fs::{self, AtFlags};
use rustix::io::Errno;
use rustix::net::SocketType;
use seamount_mounter::names::Volume;
use seamount_mounter::protocol::{Fault, Reply, flag};

use crate::failure::{Doing, Outcome, fail};
use crate::log::event;
use crate::node::{Attached, Node, Slot};
use crate::path::{self, Target};
use crate::socket;

impl Node {
    pub fn publish_identity(&mut self, volume: &Volume, reply: &mut Reply) -> Outcome<Attached> {
        let place = self.ours(volume)?;
        let slot = Slot::of(volume);
        self.room(&slot)?;
        let (target, created) = place.make_target()?;
        if target.is_mount() {
            reply.flags |= flag::FOREIGN;
            return Ok(None);
        }
        if let (Some(kept), Some(name)) = (self.kept.get(&slot), self.config.socket_names.first())
            && socket::leads_to(&target.fd, name, &kept.fd)
        {
            reply.flags |= flag::EXISTING;
            return Ok(kept.attach(reply));
        }
        match self.fill(&target) {
            Ok(fd) => {
                event("info", "identity published", &[("pod", &volume.pod), ("volume", &volume.name)]);
                self.keep(slot, fd, reply)
            }
            Err(e) => {
                if created {
                    for name in &self.config.socket_names {
                        let _ = fs::unlinkat(&target.fd, name, AtFlags::empty());
                    }
                }
                place.undo(created);
                Err(e)
            }
        }
    }

    /// Links first, the socket last: its rename is the moment from which there is a volume.
    fn fill(&self, target: &Target) -> Outcome<OwnedFd> {
        for name in path::names(&target.fd, 64).doing("read the target directory")? {
            if socket::is_temporary(name.to_bytes()) {
                fs::unlinkat(&target.fd, &name, AtFlags::empty()).doing("remove a leftover socket")?;
            } else if !self.is_socket_name(&name) {
                return fail(
                    Fault::NotOurs,
                    format!(
                        "the target directory has {name:?} in it, which is not ours: remove it, or delete the pod"
                    ),
                );
            }
        }
        let [first, links @ ..] = self.config.socket_names.as_slice() else {
            return fail(Fault::Unsupported, "no --socket-name");
        };
        for link in links {
            match fs::readlinkat(&target.fd, link, Vec::new()) {
                Ok(to) if to.as_bytes() == first.as_bytes() => continue,
                Err(Errno::NOENT) => {}
                _ => {
                    fs::unlinkat(&target.fd, link, AtFlags::empty()).doing(format_args!("replace {link}"))?
                }
            }
            fs::symlinkat(first, &target.fd, link).doing(format_args!("make the link {link}"))?;
        }
        socket::bind(&target.fd, first, SocketType::STREAM, 0o666)
    }
}

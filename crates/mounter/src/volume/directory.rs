//! A bind mount of somebody else's directory, as the SPIFFE CSI driver makes it.

use std::os::fd::OwnedFd;

use rustix::fs::{self, ResolveFlags};
use seamount_mounter_protocol::names::Volume;
use seamount_mounter_protocol::{Reply, flag};
use seamount_sys::mounter::set_attributes;

use crate::error::{Context, Result, bail};
use crate::log::done;
use crate::node::Node;
use crate::path::{self, DIRECTORY, Target};
use crate::volume::tmpfs::{self, INODES, PLAIN};
use crate::wire::Attached;

impl Node {
    /// The source as it is now: it may have been recreated since the last look.
    fn source(&self) -> Result<OwnedFd> {
        let Some((parent, name)) = &self.source else {
            bail!(Unsupported, "the mounter was started without --source-directory");
        };
        let fd = path::open(parent, name, DIRECTORY, ResolveFlags::empty());
        fd.context(format_args!("open the source directory {name:?} (is its owner running?)"))
    }

    /// What kind of mount (or other strange thing) is there, as [`flag`] bits.
    pub fn mounted(&self, target: &Target) -> u32 {
        if tmpfs::is_one(&target.fd, INODES) {
            return flag::TMPFS;
        }
        let Ok(here) = fs::fstat(&target.fd) else { return flag::FOREIGN };
        match self.source().ok().and_then(|fd| fs::fstat(fd).ok()) {
            Some(source) if (source.st_dev, source.st_ino) == (here.st_dev, here.st_ino) => flag::DIRECTORY,
            // Removed, but alive as long as it is mounted: a former incarnation of the source.
            _ if self.source.is_some() && here.st_nlink == 0 => flag::DIRECTORY | flag::STALE,
            _ => flag::FOREIGN,
        }
    }

    pub fn publish_directory(&self, volume: &Volume, reply: &mut Reply) -> Result<Attached> {
        let place = self.ours(volume)?;
        let before = place.target()?.filter(Target::is_mount).map(|t| self.mounted(&t));
        reply.flags |= before.unwrap_or(flag::DIRECTORY);
        let source = match self.source() {
            // Another's mount is left alone; a good one is what was asked for.
            _ if before.is_some_and(|b| b & flag::STALE == 0) => return Ok(None),
            // Nothing to bind anew: the pod keeps what it has, and the flag says so.
            Err(_) if before.is_some() => return Ok(None),
            source => source?,
        };
        let clone = tmpfs::clone(&source)?;
        // Writable on the host, as upstream; the kubelet mounts it read-only into containers, because the
        // agent refuses a volume without `readOnly`.
        set_attributes(&clone, PLAIN.bits().into(), None).context("restrict the clone")?;
        // Anew for containers that start later; running ones keep the dead directory until the pod restarts.
        if before.is_some() {
            place.unmount()?;
        }
        place.mount(&clone)?;
        done("directory published", volume);
        Ok(None)
    }
}

//! Removal, from the path alone.

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use rustix::fs::{self, AtFlags};
use rustix::io::Errno;
use rustix::net::{Shutdown, shutdown};
use seamount_mounter_protocol::names::Volume;

use crate::error::{Context, Result, bail};
use crate::log::done;
use crate::node::Node;
use crate::path::{self, TARGET};
use crate::socket;
use crate::volume::scan::MAX;
use crate::wire::Attached;

/// Mounts on top of each other that one request unwinds.
const MAX_MOUNTS: usize = 128;

impl Node {
    pub fn unpublish(&mut self, volume: &Volume) -> Result<Attached> {
        let place = self.place(volume)?;
        let ours = place.as_ref().map_or(Ok(false), |place| place.is(volume))?;
        // Ends a kept listener also for the agent and whatever else has a copy of it.
        if let Some(fd) = self.lock.kept.remove(&volume.to_string()) {
            let _ = shutdown(&fd, Shutdown::Both);
        }
        let Some(place) = place else { return Ok(None) };
        for _ in 0..MAX_MOUNTS {
            let Some(target) = place.target()? else { return Ok(None) };
            let directory = target.is_directory();
            if !ours && (target.is_mount() || !directory) {
                bail!(NotOurs, "a mount or file is there, and no vol_data.json: remove it");
            }
            if target.is_mount() {
                place.unmount()?;
                self.closer.put(target.fd);
                continue;
            }
            let mut flags = AtFlags::empty();
            if directory {
                self.empty(&target.fd, ours)?;
                flags = AtFlags::REMOVEDIR;
            }
            match fs::unlinkat(&place.0, TARGET, flags) {
                // Somebody mounted there in between: once more.
                Err(Errno::BUSY) => {}
                Ok(()) => {
                    self.closer.put(target.fd);
                    done("unpublished", volume);
                    return Ok(None);
                }
                Err(e) => {
                    let left = path::names(&target.fd, 4).unwrap_or_default();
                    return Err(e).context(format_args!("remove the target directory (in it: {left:?})"));
                }
            }
        }
        bail!(System, "still busy after {MAX_MOUNTS} attempts: something keeps mounting on it")
    }

    /// Whether a name is one that we make in a volume.
    pub fn makes(&self, name: &CStr) -> bool {
        let mut names = self.config.socket_names.iter();
        socket::made_at(name.to_bytes()).is_some()
            || names.any(|ours| ours.as_str().as_bytes() == name.to_bytes())
    }

    /// Removes what is in the target directory: by name, one level, never a directory, never across a mount.
    /// What cannot be proved ours loses only the names that we make.
    pub fn empty(&self, dir: &OwnedFd, ours: bool) -> Result<()> {
        for name in path::names(dir, MAX).context("read the target directory")? {
            if ours || self.makes(&name) {
                match fs::unlinkat(dir, &name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => {}
                    Err(e) => return Err(e).context(format_args!("remove the leftover {name:?}")),
                }
            }
        }
        Ok(())
    }
}

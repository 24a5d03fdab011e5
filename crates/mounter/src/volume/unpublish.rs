//! Removal, from the path alone.

use std::ffi::CStr;

use rustix::fs::{self, AtFlags, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::net::{Shutdown, shutdown};
use seamount_mounter::names::Volume;
use seamount_mounter::protocol::Fault;

use crate::failure::{Doing, Outcome, fail};
use crate::log::event;
use crate::node::{Attached, Node, Slot};
use crate::path::{self, Place, TARGET};
use crate::socket;

/// Mounts on top of each other that one request unwinds.
const MAX_MOUNTS: usize = 128;
/// Leftover files that one request removes.
const MAX_FILES: usize = 65_536;

impl Place {
    /// Unmounts the topmost mount at the target path. Detached, so that a busy one cannot keep a pod from going.
    pub fn unmount(&self) -> Outcome<()> {
        // The path must be relative to the held directory: umount(2) takes no descriptor.
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        let done = rustix::process::fchdir(self.dir()).and_then(|()| unmount(TARGET, flags));
        let _ = rustix::process::chdir("/");
        match done {
            // Somebody else was faster.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
            Err(e) => Err(e).doing("unmount the target directory"),
        }
    }
}

impl Node {
    pub fn unpublish(&mut self, volume: &Volume) -> Outcome<Attached> {
        let place = Place::open(&self.pods, &volume.pod, &volume.name)?;
        let ours = place.as_ref().map(|p| p.is_ours(&self.config.driver, volume)).transpose()?;
        self.forget(&Slot::of(volume));
        let Some(place) = place else { return Ok(None) };
        let ours = ours == Some(true);
        for _ in 0..MAX_MOUNTS {
            let Some(target) = place.target()? else { return Ok(None) };
            if target.is_mount() {
                if !ours {
                    return fail(
                        Fault::NotOurs,
                        "without vol_data.json a mount is not ours to remove: unmount it",
                    );
                }
                place.unmount()?;
                continue;
            }
            let flags = if target.is_directory() {
                self.empty(&place, ours)?;
                AtFlags::REMOVEDIR
            } else if ours {
                AtFlags::empty()
            } else {
                return fail(Fault::NotOurs, "without vol_data.json a file is not ours to remove: remove it");
            };
            match fs::unlinkat(place.dir(), TARGET, flags) {
                Ok(()) => {
                    event("info", "unpublished", &[("pod", &volume.pod), ("volume", &volume.name)]);
                    return Ok(None);
                }
                // Somebody mounted or wrote there in between: once more.
                Err(Errno::NOENT | Errno::BUSY) => {}
                Err(Errno::NOTEMPTY) if ours => {
                    let left = path::names(&target.fd, 4).unwrap_or_default();
                    let text = format!("the target directory still holds directories: {left:?}; remove them");
                    return fail(Fault::System, text);
                }
                Err(e) => return Err(e).doing("remove the target directory"),
            }
        }
        fail(Fault::System, format!("still busy after {MAX_MOUNTS} attempts: something keeps mounting on it"))
    }

    /// Ends a kept listener, also for the agent and whoever else has a copy of it.
    pub fn forget(&mut self, slot: &Slot) {
        if let Some(kept) = self.kept.remove(slot) {
            let _ = shutdown(&kept.fd, Shutdown::Both);
        }
    }

    /// Whether a name is one that we make in a volume.
    pub fn is_socket_name(&self, name: &CStr) -> bool {
        self.config.socket_names.iter().any(|ours| ours.as_bytes() == name.to_bytes())
    }

    /// Removes what is in the target directory: by name, one level, never a directory, never across a mount. What
    /// cannot be proved ours loses only the names that we make.
    fn empty(&self, place: &Place, ours: bool) -> Outcome<()> {
        let dir = path::open(place.dir(), TARGET, OFlags::RDONLY | OFlags::DIRECTORY, ResolveFlags::NO_XDEV)
            .doing("open the target directory")?;
        for name in path::names(&dir, MAX_FILES).doing("read the target directory")? {
            if ours || socket::is_temporary(name.to_bytes()) || self.is_socket_name(&name) {
                match fs::unlinkat(&dir, &name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => {}
                    Err(e) => return Err(e).doing(format_args!("remove the leftover {name:?}")),
                }
            }
        }
        Ok(())
    }
}

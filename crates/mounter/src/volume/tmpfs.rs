//! A tmpfs whose files are root's though the agent writes them, through a detached clone.

use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};
use seamount_mounter::names::Volume;
use seamount_mounter::protocol::{Fault, Reply, flag};
use seamount_sys::mounter::set_attributes;

use crate::failure::{Doing, Outcome, fail};
use crate::log::event;
use crate::node::{Attached, Node};
use crate::path::{self, Target};

/// The file system's magic number (statfs(2)).
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// Bounds the kernel memory that inodes take. An unusual number, because it also tells our tmpfs from another driver's:
/// statfs is all that can be asked of a mount in O(1) before Linux 6.8.
const INODES: u64 = 10_007;
/// The largest volume.
const MAX_SIZE: u64 = 1 << 30;
const PAGE: u64 = 4096;
/// Bounds of what [`Node::settle`] walks.
const MAX_DEPTH: u32 = 8;

/// How to make one.
pub struct Tmpfs {
    pub uid: u32,
    pub gid: u32,
    pub mode: &'static str,
    pub size: u64,
    pub inodes: u64,
}

impl Tmpfs {
    /// A volume's.
    fn volume(uid: u32, gid: u32, size: u64) -> Self {
        // The set-group-ID directory passes its group on to what is made in it.
        Self { uid, gid, mode: "2755", size, inodes: INODES }
    }

    /// A detached mount of a new one.
    pub fn make(&self, noswap: bool) -> Result<OwnedFd, Errno> {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "source", "seamount")?;
        fsconfig_set_string(&context, "mode", self.mode)?;
        for (key, value) in [
            ("uid", self.uid.into()),
            ("gid", self.gid.into()),
            ("size", self.size),
            ("nr_inodes", self.inodes),
        ] {
            fsconfig_set_string(&context, key, value.to_string())?;
        }
        if noswap {
            fsconfig_set_flag(&context, "noswap")?;
        }
        fsconfig_create(&context)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    }

    /// Mounts a new one on `target`.
    pub fn mount(&self, target: &OwnedFd, noswap: bool) -> Outcome<()> {
        attach(&self.make(noswap).doing("make a tmpfs")?, target)
    }

    /// Whether this is on a tmpfs.
    pub fn is_one(fd: &OwnedFd) -> bool {
        fs::fstatfs(fd).is_ok_and(|s| s.f_type as u64 == TMPFS_MAGIC)
    }

    /// Whether this is on a tmpfs that was made for a volume.
    pub fn is_volume(fd: &OwnedFd) -> bool {
        fs::fstatfs(fd).is_ok_and(|s| s.f_type as u64 == TMPFS_MAGIC && s.f_files == INODES)
    }

    /// Whether the kernel can idmap a tmpfs (Linux 6.3) with this namespace.
    pub fn can_idmap(swap: &OwnedFd) -> bool {
        Self::volume(0, 0, PAGE).make(false).is_ok_and(|mount| set_attributes(mount, 0, Some(swap)).is_ok())
    }

    /// Whether the kernel has `noswap` (Linux 6.4, the initial user namespace).
    pub fn can_noswap() -> bool {
        Self::volume(0, 0, PAGE).make(true).is_ok()
    }
}

/// Attaches a detached mount.
pub fn attach(mount: &OwnedFd, target: &OwnedFd) -> Outcome<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", target, "", flags).doing("mount on the target directory")
}

/// A detached clone of the mount that `root` is the root of: from it nobody climbs into the host's tree.
pub fn clone(root: &OwnedFd) -> Outcome<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(root, "", flags).doing("clone the mount")
}

impl Node {
    /// Whether files of the agent become root's as it writes them.
    pub fn idmaps(&self) -> bool {
        self.abilities.swap.is_some() || self.config.agent_uid == 0
    }

    /// A directory descriptor for the agent, on a detached clone.
    pub fn hand_out(&self, root: &Target) -> Outcome<OwnedFd> {
        let mapped = root.stat.stx_uid != self.config.agent_uid;
        if mapped && self.abilities.swap.is_none() {
            return fail(
                Fault::Unsupported,
                "it was made with idmapped mounts, which are off or not possible now: start the mounter as before",
            );
        }
        let clone = clone(&root.fd)?;
        set_attributes(&clone, 0, self.abilities.swap.as_ref().filter(|_| mapped))
            .doing("idmap the clone")?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        fs::openat(&clone, ".", flags, Mode::empty()).doing("open the clone")
    }

    pub fn publish_tmpfs(
        &mut self,
        volume: &Volume,
        gid: u32,
        size: u64,
        reply: &mut Reply,
    ) -> Outcome<Attached> {
        if size == 0 || size > MAX_SIZE || gid == u32::MAX {
            let text =
                format!("size {size} is not between 1 and {MAX_SIZE} bytes, or group {gid} is invalid");
            return fail(Fault::Malformed, text);
        }
        let place = self.ours(volume)?;
        let (mut target, created) = place.make_target()?;
        let mut mounted = false;
        let made = (|| {
            if !target.is_mount() {
                if path::names(&target.fd, 1).doing("read the target directory")?.is_empty() {
                    let uid = if self.idmaps() { 0 } else { self.config.agent_uid };
                    Tmpfs::volume(uid, gid, size).mount(&target.fd, self.abilities.noswap)?;
                    mounted = true;
                    target = place.make_target()?.0;
                } else {
                    return fail(
                        Fault::NotOurs,
                        "the target directory is not empty: remove what is in it, or delete the pod",
                    );
                }
            }
            if !Tmpfs::is_volume(&target.fd) {
                return fail(
                    Fault::NotOurs,
                    "another driver's mount is on the target directory: delete the pod",
                );
            }
            let limit = fs::fstatvfs(&target.fd).doing("look at the tmpfs")?;
            let (has, wanted) = (limit.f_blocks * limit.f_frsize, size.next_multiple_of(PAGE));
            if has != wanted || target.stat.stx_gid != gid {
                let text = format!(
                    "it is published with size {has} and group {}, now asked for size {wanted} and group {gid}: delete the pod",
                    target.stat.stx_gid
                );
                return fail(Fault::Malformed, text);
            }
            self.hand_out(&target)
        })();
        if made.is_err() {
            if mounted {
                let _ = place.unmount();
            }
            place.undo(created);
        }
        let made = made?;
        reply.flags |= flag::TMPFS | if target.stat.stx_uid == 0 { flag::IDMAP } else { 0 };
        if mounted {
            event("info", "tmpfs published", &[("pod", &volume.pod), ("volume", &volume.name)]);
        }
        Ok(Some(Rc::new(made)))
    }

    /// Gives the files of one version directory to root and the volume's group. Directories stay the agent's, who has
    /// to remove old versions.
    pub fn settle(&mut self, volume: &Volume, version: &str) -> Outcome<Attached> {
        let name = CString::new(version).unwrap_or_default();
        if version.contains('/') || matches!(name.to_bytes(), b"" | b"." | b"..") {
            return fail(Fault::Malformed, "the version is not one file name");
        }
        let Some(target) = self.ours(volume)?.target()? else {
            return fail(Fault::NotFound, "it is not published");
        };
        if !target.is_mount() || !Tmpfs::is_volume(&target.fd) {
            return fail(Fault::NotOurs, "it is not a tmpfs volume");
        }
        if target.stat.stx_uid != 0 {
            give_to_root(&target.fd, &name, target.stat.stx_gid, MAX_DEPTH)?;
        }
        Ok(None)
    }
}

/// By descriptor, and never out of the tmpfs; the number of files is bounded by the tmpfs itself.
fn give_to_root(dir: &OwnedFd, name: &CStr, gid: u32, depth: u32) -> Outcome<()> {
    let fd = path::open(dir, name, OFlags::PATH, ResolveFlags::NO_XDEV)
        .doing(format_args!("open {name:?} in the tmpfs"))?;
    let kind = FileType::from_raw_mode(fs::fstat(&fd).doing("look at a file of the tmpfs")?.st_mode);
    match kind {
        FileType::Directory if depth == 0 => fail(Fault::Malformed, "directories nested too deeply"),
        FileType::Directory => {
            for inner in path::names(&fd, INODES as usize).doing("read a directory of the tmpfs")? {
                give_to_root(&fd, &inner, gid, depth - 1)?;
            }
            Ok(())
        }
        _ => fs::chownat(&fd, "", Some(Uid::ROOT), Some(Gid::from_raw(gid)), AtFlags::EMPTY_PATH)
            .doing(format_args!("give {name:?} to root")),
    }
}

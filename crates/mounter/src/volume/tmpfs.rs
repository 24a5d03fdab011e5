//! A tmpfs that the agent fills through a detached clone, and whose files become root's.
//!
//! A runtime that makes a volume read-only by `MS_REMOUNT|MS_BIND|MS_RDONLY` alone takes `nosuid`, `nodev`
//! and `noexec` away: they belong to each mount, the super block has none of them (fsconfig(2) refuses
//! `nosuid`), and a flag is locked only where a mount is copied into the mount namespace of another user
//! namespace. A super block that belongs to a user namespace of its own has no set-user-ID files and no
//! devices whatever the flags say, but cannot be `noswap`, and keys are in these volumes. (Tried on 6.18.) So
//! there is never a file that would be dangerous without the flags: the agent, who cannot make devices, never
//! owns a file that is root's, as it would through an idmapped clone. What it has written is settled: given
//! to root, if its mode is at most 0777.

use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::mount::{self, FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags};
use seamount_mounter_protocol::names::Volume;
use seamount_mounter_protocol::{Reply, flag};
use seamount_sys::mounter::set_attributes;

use crate::error::{Context, Result, bail};
use crate::log::done;
use crate::node::Node;
use crate::path::{self, Target};
use crate::wire::Attached;

/// The file system's magic number (statfs(2)).
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// Bounds the kernel memory that inodes take. An unusual number, because it also tells our tmpfs from another
/// driver's: statfs is all that can be asked of a mount in O(1) before Linux 6.8.
pub const INODES: u64 = 10_007;
/// The largest volume.
const MAX_SIZE: u64 = 1 << 30;
/// Bounds of what [`Node::settle`] walks.
const MAX_DEPTH: u32 = 8;

/// Attributes of every mount that we make.
pub const PLAIN: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// A detached mount of a new one. `options`: more of tmpfs(5), with commas between.
pub fn make(uid: u32, gid: u32, options: &str, inodes: u64, noswap: bool) -> Result<OwnedFd> {
    let options = format!("source=seamount,uid={uid},gid={gid},nr_inodes={inodes},{options}");
    let make = || {
        let context = mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for (key, value) in options.split(',').filter_map(|option| option.split_once('=')) {
            mount::fsconfig_set_string(&context, key, value)?;
        }
        if noswap {
            mount::fsconfig_set_flag(&context, "noswap")?;
        }
        mount::fsconfig_create(&context)?;
        mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, PLAIN)
    };
    make().context(format_args!("make a tmpfs ({options})"))
}

/// Whether this is on a tmpfs with that many inodes.
pub fn is_one(fd: &OwnedFd, inodes: u64) -> bool {
    fs::fstatfs(fd).is_ok_and(|s| s.f_type as u64 == TMPFS_MAGIC && s.f_files == inodes)
}

/// A detached clone of the mount that `root` is the root of: from it nobody climbs into the host's tree.
pub fn clone(root: &OwnedFd) -> Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    mount::open_tree(root, "", flags).context("clone the mount")
}

impl Node {
    /// Owner of a new tmpfs: root where what the agent writes becomes root's, else the agent.
    pub fn owner(&self) -> u32 {
        self.swap.as_ref().map_or(self.config.agent_uid, |_| 0)
    }

    /// A directory descriptor for the agent, on a detached clone.
    pub fn hand_out(&self, root: &Target) -> Result<OwnedFd> {
        let mapped = root.stat.stx_uid != self.config.agent_uid;
        if mapped && self.swap.is_none() {
            bail!(Unsupported, "it was made with idmapping: start the mounter without --no-idmap");
        }
        let clone = clone(&root.fd)?;
        set_attributes(&clone, 0, self.swap.as_ref().filter(|_| mapped)).context("idmap the clone")?;
        path::open(&clone, ".", OFlags::DIRECTORY, ResolveFlags::empty()).context("open the clone")
    }

    pub fn publish_tmpfs(&self, v: &Volume, gid: u32, size: u64, reply: &mut Reply) -> Result<Attached> {
        if size == 0 || size > MAX_SIZE || gid == u32::MAX {
            bail!(Malformed, "size {size} is 0 or above {MAX_SIZE}, or group {gid} is invalid");
        }
        let place = self.ours(v)?;
        let new = !place.target()?.is_some_and(|target| target.is_mount());
        if new {
            // The set-group-ID directory passes its group on to what is made in it.
            let options = format!("mode=2755,size={size}");
            place.mount(&make(self.config.agent_uid, gid, &options, INODES, self.noswap)?)?;
            done("tmpfs published", v);
        }
        let (target, _) = place.make_target()?;
        let handed = matches(&target, gid, size).and_then(|()| self.hand_out(&target));
        if handed.is_err() && new {
            let _ = place.unmount();
            place.undo(true);
        }
        reply.flags |= flag::TMPFS;
        Ok(Some(Rc::new(handed?.into())))
    }

    /// Gives the files of one version directory, which is somewhere in the tmpfs, to root and the volume's
    /// group, and refuses modes above 0777. Directories stay the agent's, who has to remove old versions.
    pub fn settle(&mut self, volume: &Volume, version: &str) -> Result<Attached> {
        let name = CString::new(version).unwrap_or_default();
        let target = match self.ours(volume)?.target()? {
            Some(target) if target.is_mount() && is_one(&target.fd, INODES) => target,
            _ => bail!(NotFound, "no tmpfs is published there"),
        };
        give_to_root(&target.fd, &name, target.stat.stx_gid, MAX_DEPTH)?;
        Ok(None)
    }
}

/// By descriptor, and never out of the tmpfs; the number of files is bounded by the tmpfs itself.
fn give_to_root(dir: &OwnedFd, name: &CStr, gid: u32, depth: u32) -> Result<()> {
    let fd = path::open(dir, name, OFlags::PATH, ResolveFlags::NO_XDEV);
    let fd = fd.context(format_args!("open {name:?} in the tmpfs"))?;
    let stat = fs::fstat(&fd).context("look at a file of the tmpfs")?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind != FileType::Directory {
        if kind == FileType::RegularFile && stat.st_mode & 0o7000 != 0 {
            bail!(Malformed, "{name:?} has a set-user-ID, set-group-ID or sticky bit: write it without");
        }
        // One that is set just now stops chown(2), which has no right to clear it, or is cleared by its new
        // owner. That goes by a descriptor that can be read from, and to the same file.
        let file = (kind == FileType::RegularFile)
            .then(|| path::open(dir, name, OFlags::NONBLOCK, ResolveFlags::NO_XDEV));
        let owned = fs::chownat(&fd, "", Some(Uid::ROOT), Some(Gid::from_raw(gid)), AtFlags::EMPTY_PATH);
        let Some(file) = owned.and(file.transpose()).context(format_args!("give {name:?} to root"))? else {
            return Ok(());
        };
        let opened = fs::fstat(&file).context("look at a file of the tmpfs")?;
        if opened.st_ino != stat.st_ino {
            bail!(Busy, "{name:?} was replaced meanwhile: settle again");
        }
        let mode = Mode::from_raw_mode(opened.st_mode & 0o777);
        return fs::fchmod(&file, mode).context(format_args!("limit the mode of {name:?}"));
    } else if depth == 0 {
        bail!(Malformed, "directories nested too deeply");
    }
    let names = path::names(&fd, INODES as usize).context("read a directory of the tmpfs")?;
    names.iter().try_for_each(|inner| give_to_root(&fd, inner, gid, depth - 1))
}

/// Refuses another's mount, and a volume that was published with other parameters.
fn matches(target: &Target, gid: u32, size: u64) -> Result<()> {
    if !is_one(&target.fd, INODES) {
        bail!(NotOurs, "another's mount is on the target directory: delete the pod");
    }
    let limit = fs::fstatvfs(&target.fd).context("look at the tmpfs")?;
    let (has, wanted) = (limit.f_blocks * limit.f_frsize, size.next_multiple_of(limit.f_frsize));
    let has_gid = target.stat.stx_gid;
    if has == wanted && has_gid == gid {
        return Ok(());
    }
    bail!(Malformed, "it has size {has} and group {has_gid}, not {wanted} and {gid}: delete the pod")
}

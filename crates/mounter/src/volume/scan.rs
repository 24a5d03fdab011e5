//! What is there: one volume, or all of ours on the node.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use rustix::fs::{self, AtFlags, FileType, OFlags, ResolveFlags};
use seamount_mounter_protocol::names::{PodUid, Volume, VolumeName};
use seamount_mounter_protocol::{Reply, Subject, flag};

use crate::error::{Context, Result, bail};
use crate::node::{Node, attach};
use crate::path::{self, CSI, DIRECTORY, Place, Target};
use crate::volume::tmpfs::{self, INODES};
use crate::wire::Attached;

/// Volumes, pods, volumes per pod, and files of a volume that one request looks at.
pub const MAX: usize = 65_536;
/// The kubelet's bind mounts for `subPath`, in a pod's directory: `<volume>/<container>/<number>` each.
const SUBPATHS: &str = "volume-subpaths";
/// Stands for volume id and driver where no `vol_data.json` gives them.
const ORPHAN: &str = "orphan";

impl Node {
    pub fn inspect(&mut self, volume: &Volume, reply: &mut Reply) -> Result<Attached> {
        let Some(place) = self.place(volume)? else {
            bail!(NotFound, "the kubelet has no directory for it");
        };
        let ours = place.is(volume)?;
        let Some(target) = place.target()? else { bail!(NotFound, "it is not published") };
        Ok(self.tell(&self.describe(volume, &target, !ours)?, reply))
    }

    /// Replies with what was found, and with the listener that is kept for it.
    fn tell(&self, found: &Reply, reply: &mut Reply) -> Attached {
        *reply = Reply { id: reply.id, op: reply.op, ..found.clone() };
        let slot = found.subject.volume().map(Volume::to_string).unwrap_or_default();
        self.lock.kept.get(&slot).and_then(|kept| attach(kept, reply))
    }

    pub fn list(&mut self, cursor: u64, reply: &mut Reply) -> Result<Attached> {
        if cursor == 0 {
            self.listed = self.scan()?;
        }
        match self.listed.get(cursor as usize) {
            Some(found) => Ok(self.tell(found, reply)),
            None => bail!(NotFound, "the end of the list"),
        }
    }

    fn flags(&self, target: &Target) -> u32 {
        if target.is_mount() || !target.is_directory() {
            return self.mounted(target);
        }
        let name = self.config.socket_name();
        let stat = fs::statat(&target.fd, name, AtFlags::SYMLINK_NOFOLLOW);
        let socket = stat.is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Socket);
        flag::IDENTITY | if socket { flag::SOCKET } else { 0 }
    }

    /// Goes through the kubelet's pods. A listener whose pod's directory is gone is dropped.
    fn scan(&mut self) -> Result<Vec<Reply>> {
        let mut all = Vec::new();
        let stacks = stacks();
        for pod in path::names(&self.pods, MAX).context("read the kubelet's pods")? {
            let Some(pod) = pod.to_str().ok().and_then(|p| p.parse::<PodUid>().ok()) else { continue };
            // A pod that goes while we look, or that is no directory of the kubelet's, is not a reason to see
            // none.
            let csi = format!("{pod}/{CSI}");
            let csi = path::open(&self.pods, csi, DIRECTORY, ResolveFlags::NO_XDEV);
            let names = csi.and_then(|csi| path::names(csi, MAX)).unwrap_or_default();
            for name in names.iter().filter_map(|n| n.to_str().ok()?.parse::<VolumeName>().ok()) {
                if all.len() < MAX {
                    all.extend(self.look(&pod, name, &stacks));
                }
            }
        }
        self.lock.kept.retain(|slot, _| !matches!(Place::of_slot(&self.pods, slot), Some(Ok(None))));
        Ok(all)
    }

    fn look(&self, pod: &PodUid, name: VolumeName, stacks: &HashMap<u64, u64>) -> Option<Reply> {
        let place = Place::open(&self.pods, pod, &name).ok()??;
        let owner = place.owner().ok()?;
        let orphan = owner.is_none();
        let (driver, id) = owner.unwrap_or_else(|| (ORPHAN.to_owned(), ORPHAN.to_owned()));
        let (driver, id) = (driver.parse().ok()?, id.parse().ok()?);
        if !orphan && !self.config.drivers.contains(&driver) {
            return None;
        }
        let target = place.target().ok()??;
        let volume = Volume { driver, pod: pod.clone(), name, id };
        let mut found = self.describe(&volume, &target, orphan).ok()?;
        let [_, _, mounts] = &mut found.numbers;
        *mounts *= stacks.get(&target.stat.stx_mnt_id).unwrap_or(&1);
        // Without the kubelet's record only our socket's name speaks for us.
        (!orphan || found.flags & flag::SOCKET != 0).then_some(found)
    }

    /// A reply's part about what is at the target path.
    fn describe(&self, volume: &Volume, target: &Target, orphan: bool) -> Result<Reply> {
        let dead = self.dead_subpaths(volume);
        let mut flags = self.flags(target);
        flags |= if dead.is_empty() { 0 } else { flag::SUBPATH };
        flags |= if orphan { flag::ORPHAN } else { 0 };
        let numbers = numbers(target)?;
        let subject = Subject::Volume(volume.clone());
        Ok(Reply { subject, flags, numbers, text: dead, ..Reply::default() })
    }

    /// The containers that hold something of the volume by `subPath` that has been replaced since, as the
    /// socket is when both processes died. A directory that is mounted shows the new one; a file that is
    /// mounted is that file for ever.
    fn dead_subpaths(&self, Volume { pod, name, .. }: &Volume) -> String {
        let below = format!("{pod}/{SUBPATHS}/{name}");
        let Ok(volume) = path::open(&self.pods, below, DIRECTORY, ResolveFlags::NO_XDEV) else {
            return String::new();
        };
        let mut dead = Vec::new();
        for container in path::names(&volume, MAX).unwrap_or_default() {
            let held = path::open(&volume, &container, DIRECTORY, ResolveFlags::NO_XDEV);
            if held.is_ok_and(|held| holds_dead(&held)) {
                dead.push(container.to_string_lossy().into_owned());
            }
        }
        dead.sort();
        dead.join(", ")
    }
}

/// Whether something that is mounted here has no name any more.
fn holds_dead(container: &OwnedFd) -> bool {
    path::names(container, MAX).unwrap_or_default().iter().any(|mounted| {
        let fd = path::open(container, mounted, OFlags::PATH, ResolveFlags::empty());
        fd.and_then(fs::fstat).is_ok_and(|stat| stat.st_nlink == 0)
    })
}

/// Bytes and inodes in use, and whether it is a mount: of a tmpfs all, else those of the directory itself.
fn numbers(target: &Target) -> Result<[u64; 3]> {
    if target.is_mount() && tmpfs::is_one(&target.fd, INODES) {
        let s = fs::fstatvfs(&target.fd).context("look at the tmpfs")?;
        return Ok([(s.f_blocks - s.f_bfree) * s.f_frsize, s.f_files - s.f_ffree, 1]);
    }
    let names = path::names(&target.fd, MAX).unwrap_or_default().len() as u64;
    Ok([target.stat.stx_blocks * 512, 1 + names, target.is_mount().into()])
}

/// By mount id, how many mounts lie on the same path up to this one. One look at the mount table per scan: a
/// single volume is never worth one.
fn stacks() -> HashMap<u64, u64> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut at: HashMap<&str, u64> = HashMap::new();
    let mut by_id = HashMap::new();
    // proc_pid_mountinfo(5): id, parent, major:minor, root, mount point …; a mount comes after the one below
    // it.
    for mut fields in table.lines().map(|line| line.split(' ')) {
        let (Some(Ok(id)), Some(point)) = (fields.next().map(str::parse), fields.nth(3)) else { continue };
        let below = at.entry(point).or_default();
        *below += 1;
        by_id.insert(id, *below);
    }
    by_id
}

//! The way to a volume: beneath the held descriptor of `<root>/pods`, and only to volumes of our driver.

use std::ffi::CString;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    self, AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Statx, StatxAttributes, StatxFlags,
};
use rustix::io::Errno;
use rustix::path::Arg;
use seamount_mounter::names::{PodUid, Volume, VolumeName};
use seamount_mounter::protocol::Fault;

use crate::failure::{Doing, Outcome, fail};

/// The kubelet's directory of CSI volumes in a pod's directory.
pub const CSI: &str = "volumes/kubernetes.io~csi";
/// The last component of a target path, the only one that may be a mount point.
pub const TARGET: &str = "mount";
const VOL_DATA: &str = "vol_data.json";
const VOL_DATA_MAX: u64 = 4096;

/// Opens something beneath `dir` without ever following a link or climbing; with `NO_XDEV` without crossing a mount.
pub fn open(dir: impl AsFd, path: impl Arg, flags: OFlags, more: ResolveFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | more;
    fs::openat2(dir, path, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// `None` instead of "does not exist".
pub fn found<T>(result: Result<T, Errno>) -> Result<Option<T>, Errno> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The names in a directory, at most `max` of them.
pub fn names(dir: impl AsFd, max: usize) -> Result<Vec<CString>, Errno> {
    let mut all = Vec::new();
    let readable = open(dir, ".", OFlags::RDONLY | OFlags::DIRECTORY, ResolveFlags::NO_XDEV)?;
    for entry in Dir::new(readable)?.take(max + 2) {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            all.push(entry.file_name().to_owned());
        }
    }
    Ok(all)
}

/// Whose volume a directory is, by the kubelet's own record.
#[derive(Debug, PartialEq, Eq)]
pub enum Owner {
    /// No record (never written, or removed already).
    Nobody,
    /// Driver and volume id.
    Known(String, String),
    /// A record that is none: why.
    Unclear(&'static str),
}

/// `<pods>/<uid>/volumes/kubernetes.io~csi/<name>`, held.
pub struct Place(OwnedFd);

impl Place {
    /// `None` where the kubelet has no such directory.
    pub fn open(pods: &OwnedFd, pod: &PodUid, name: &VolumeName) -> Outcome<Option<Self>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let fd = open(pods, format!("{pod}/{CSI}/{name}"), flags, ResolveFlags::NO_XDEV);
        Ok(found(fd).doing("open the volume's directory")?.map(Self))
    }

    /// The directory.
    pub fn dir(&self) -> &OwnedFd {
        &self.0
    }

    /// Reads `vol_data.json`.
    pub fn owner(&self) -> Outcome<Owner> {
        // NONBLOCK: a FIFO in its place must not stop us.
        let opened = open(&self.0, VOL_DATA, OFlags::RDONLY | OFlags::NONBLOCK, ResolveFlags::NO_XDEV);
        let file = match found(opened) {
            Ok(None) => return Ok(Owner::Nobody),
            Ok(Some(fd)) => std::fs::File::from(fd),
            Err(Errno::LOOP | Errno::XDEV | Errno::NXIO) => return Ok(Owner::Unclear("is not a plain file")),
            Err(e) => return Err(e).doing("open vol_data.json"),
        };
        let stat = fs::fstat(&file).doing("look at vol_data.json")?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(Owner::Unclear("is not a plain file"));
        }
        if stat.st_uid != rustix::process::geteuid().as_raw() {
            return Ok(Owner::Unclear("is not owned by root"));
        }
        let mut bytes = Vec::new();
        file.take(VOL_DATA_MAX + 1).read_to_end(&mut bytes).doing("read vol_data.json")?;
        if bytes.len() as u64 > VOL_DATA_MAX {
            return Ok(Owner::Unclear("is longer than 4096 bytes"));
        }
        let json = serde_json::from_slice(&bytes).unwrap_or(serde_json::Value::Null);
        let field = |key| json.get(key).and_then(|v| v.as_str()).map(String::from);
        match (field("driverName"), field("volumeHandle")) {
            (Some(driver), Some(id)) => Ok(Owner::Known(driver, id)),
            _ => Ok(Owner::Unclear("has no driverName or no volumeHandle")),
        }
    }

    /// Whether the volume is ours; false where nothing says so. Refuses where something says that it is not.
    pub fn is_ours(&self, driver: &str, volume: &Volume) -> Outcome<bool> {
        match self.owner()? {
            Owner::Known(d, id) if d == driver && id == volume.id.as_str() => Ok(true),
            Owner::Nobody => Ok(false),
            Owner::Known(d, id) => fail(
                Fault::NotOurs,
                format!(
                    "vol_data.json says driver {d:?}, volume {id:?}; asked for {driver:?}, {:?}",
                    volume.id
                ),
            ),
            Owner::Unclear(why) => fail(
                Fault::NotOurs,
                format!(
                    "vol_data.json {why}: only the kubelet may write it; restart the pod if it is damaged"
                ),
            ),
        }
    }

    /// What is at the target path.
    pub fn target(&self) -> Outcome<Option<Target>> {
        let fd = open(&self.0, TARGET, OFlags::PATH, ResolveFlags::empty());
        let Some(fd) = found(fd).doing("open the target path")? else { return Ok(None) };
        Target::of(fd).map(Some)
    }

    /// The target directory, and whether it was made now.
    pub fn make_target(&self) -> Outcome<(Target, bool)> {
        let created = match fs::mkdirat(&self.0, TARGET, Mode::from_raw_mode(0o755)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(e) => return Err(e).doing("make the target directory"),
        };
        match self.target() {
            Ok(Some(target)) if target.is_directory() => Ok((target, created)),
            Ok(_) => fail(Fault::NotOurs, "the target path is not a directory: remove it, or delete the pod"),
            Err(e) => {
                self.undo(created);
                Err(e)
            }
        }
    }

    /// Takes back [`Self::make_target`].
    pub fn undo(&self, created: bool) {
        if created {
            let _ = fs::unlinkat(&self.0, TARGET, AtFlags::REMOVEDIR);
        }
    }
}

/// What a target path leads to, through the mounts on it.
pub struct Target {
    pub fd: OwnedFd,
    pub stat: Statx,
}

impl Target {
    pub fn of(fd: OwnedFd) -> Outcome<Self> {
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
        let stat = fs::statx(&fd, "", AtFlags::EMPTY_PATH, wanted).doing("look at the target path")?;
        Ok(Self { fd, stat })
    }

    pub fn is_directory(&self) -> bool {
        FileType::from_raw_mode(self.stat.stx_mode.into()) == FileType::Directory
    }

    /// Whether something is mounted here: O(1), no look at the mount table.
    pub fn is_mount(&self) -> bool {
        self.stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
    }
}

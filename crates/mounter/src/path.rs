//! The way to a volume: beneath the held descriptor of `<root>/pods`, and only to volumes of our driver.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::LazyLock;

use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::fs::{Statx, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};
use rustix::path::Arg;
use seamount_mounter_protocol::names::{PodUid, Volume, VolumeName};

use crate::error::{Context, Result, bail};

/// The kubelet's directory of CSI volumes in a pod's directory.
pub const CSI: &str = "volumes/kubernetes.io~csi";
/// The last component of a target path, the only one that may be a mount point.
pub const TARGET: &str = "mount";
/// Whether SELinux is there, and we are the privileged container that may label.
static IS_SPC: LazyLock<bool> =
    LazyLock::new(|| std::fs::read_to_string("/proc/self/attr/current").is_ok_and(|l| l.contains(":spc_t:")));
/// What any container may use. The kubelet has a read-only inline volume never relabelled for its pod
/// (1.36.3, `csi_mounter.go` GetAttributes: `Managed: !readOnly`), and what it made itself no container may
/// write to, which connect(2) does. The socket inherits the directory's label.
const SHARED: &str = "system_u:object_r:container_file_t:s0";
/// The mounter's own directory of plugins': there is one mounter per node, whatever drivers it has.
pub const OWN: &str = "seamount.dev";
const VOL_DATA: &str = "vol_data.json";
const VOL_DATA_MAX: usize = 4096;

/// The label of what is made from now on; an empty line gives the kernel's choice back.
fn label_new_files(label: &str) {
    if *IS_SPC {
        let _ = std::fs::write("/proc/thread-self/attr/fscreate", label);
    }
}

/// How directories are held.
pub const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);

/// Opens something beneath `dir` without ever following a link or climbing; with `NO_XDEV` without crossing a
/// mount.
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

/// Makes a directory; false where it is there already.
pub fn make(at: &OwnedFd, name: &str, mode: u32) -> Result<bool> {
    match fs::mkdirat(at, name, Mode::from_raw_mode(mode)) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(e) => Err(e).context(format_args!("make the directory {name}")),
    }
}

/// Makes a directory if it is missing, and opens it.
pub fn make_directory(at: &OwnedFd, name: &str, mode: u32) -> Result<OwnedFd> {
    make(at, name, mode)?;
    open(at, name, DIRECTORY, ResolveFlags::empty()).context(format_args!("open the kubelet's {name}"))
}

/// A directory of plugins': a driver's, or [`OWN`]. By path each time: a descriptor would go on to hold one
/// that was removed.
pub fn plugin(root: &OwnedFd, name: &str) -> Result<OwnedFd> {
    make_directory(&make_directory(root, "plugins", 0o750)?, name, 0o750)
}

/// The directory that something is in, held, and its name there.
pub fn open_parent(path: &Path) -> Result<(OwnedFd, String)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str())) else {
        bail!(Malformed, "{} has no directory or no name", path.display());
    };
    let held = fs::openat(fs::CWD, parent, DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    Ok((held.context(format_args!("open {} for {name}", parent.display()))?, name.to_owned()))
}

/// The names in a directory, at most `max` of them.
pub fn names(dir: impl AsFd, max: usize) -> Result<Vec<CString>, Errno> {
    let readable = open(dir, ".", OFlags::DIRECTORY, ResolveFlags::NO_XDEV)?;
    let mut names = Vec::new();
    for entry in Dir::new(readable)?.take(max + 2) {
        let name = entry?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    Ok(names)
}

/// Attaches a detached mount.
pub fn attach(mount: &OwnedFd, target: &OwnedFd) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", target, "", flags).context("mount on the directory")
}

/// `<pods>/<uid>/volumes/kubernetes.io~csi/<name>`, held.
pub struct Place(pub OwnedFd);

impl Place {
    /// `None` where the kubelet has no such directory.
    pub fn open(pods: &OwnedFd, pod: &PodUid, name: &VolumeName) -> Result<Option<Self>> {
        let fd = open(pods, format!("{pod}/{CSI}/{name}"), DIRECTORY, ResolveFlags::NO_XDEV);
        Ok(found(fd).context("open the volume's directory")?.map(Self))
    }

    /// The directory of the volume whose listener a slot is for; none of the node's own listeners.
    pub fn of_slot(pods: &OwnedFd, slot: &str) -> Option<Result<Option<Self>>> {
        let (pod, name) = slot.split_once('/')?;
        Some(Self::open(pods, &pod.parse().ok()?, &name.parse().ok()?))
    }

    /// Driver and volume id by the kubelet's own record; none where there is none.
    pub fn owner(&self) -> Result<Option<(String, String)>> {
        let unclear =
            |why| bail!(NotOurs, "vol_data.json {why}: the kubelet did not write it; restart the pod");
        // NONBLOCK: a FIFO in its place must not stop us.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let opened = found(open(&self.0, VOL_DATA, flags, ResolveFlags::NO_XDEV));
        let Some(file) = opened.context("open vol_data.json")? else { return Ok(None) };
        let stat = fs::fstat(&file).context("look at vol_data.json")?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_uid != 0 {
            return unclear("is not a plain file of root");
        }
        // One read: what a file of this size has comes at once.
        let mut bytes = [0; VOL_DATA_MAX + 1];
        let len = rustix::io::read(&file, &mut bytes).context("read vol_data.json")?;
        let Some(text) = bytes.get(..len).filter(|text| text.len() <= VOL_DATA_MAX) else {
            return unclear("is longer than 4096 bytes");
        };
        let json = serde_json::from_slice(text).unwrap_or(serde_json::Value::Null);
        let field = |key| json.get(key).and_then(|v| v.as_str()).map(String::from);
        match (field("driverName"), field("volumeHandle")) {
            (Some(driver), Some(id)) => Ok(Some((driver, id))),
            _ => unclear("has no driverName or no volumeHandle"),
        }
    }

    /// Whether this is that volume, of that driver; false where nothing says so. Refuses where something says
    /// that it is not.
    pub fn is(&self, volume: &Volume) -> Result<bool> {
        match self.owner()? {
            None => Ok(false),
            Some((of, id)) if of == volume.driver.as_str() && id == volume.id.as_str() => Ok(true),
            Some((of, id)) => bail!(NotOurs, "it is volume {id} of driver {of}, by its vol_data.json"),
        }
    }

    /// What is at the target path.
    pub fn target(&self) -> Result<Option<Target>> {
        let fd = open(&self.0, TARGET, OFlags::PATH, ResolveFlags::empty());
        let Some(fd) = found(fd).context("open the target path")? else { return Ok(None) };
        Target::of(fd).map(Some)
    }

    /// The target directory, and whether it was made now.
    pub fn make_target(&self) -> Result<(Target, bool)> {
        label_new_files(SHARED);
        let created = make(&self.0, TARGET, 0o755);
        label_new_files("\n");
        let created = created?;
        let target = self.target().and_then(|target| match target.filter(Target::is_directory) {
            Some(target) => Ok((target, created)),
            None => bail!(NotOurs, "the target path is no directory: remove it"),
        });
        self.undo(created && target.is_err());
        target
    }

    /// Mounts on the target directory, which must be new or empty.
    pub fn mount(&self, mount: &OwnedFd) -> Result<()> {
        let (target, created) = self.make_target()?;
        let done = names(&target.fd, 1).context("read the target directory").and_then(|n| match n.first() {
            Some(n) => bail!(NotOurs, "{n:?} is in the target directory: remove it or delete the pod"),
            None => attach(mount, &target.fd),
        });
        self.undo(created && done.is_err());
        done
    }

    /// Unmounts the topmost mount at the target path. Detached, so that a busy one cannot keep a pod from
    /// going.
    pub fn unmount(&self) -> Result<()> {
        // The path must be relative to the held directory: umount(2) takes no descriptor.
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        let done = rustix::process::fchdir(&self.0).and_then(|()| unmount(TARGET, flags));
        let _ = rustix::process::chdir("/");
        match done {
            // Somebody else was faster.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
            Err(e) => Err(e).context("unmount the target directory"),
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
    pub fn of(fd: OwnedFd) -> Result<Self> {
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
        let stat = fs::statx(&fd, "", AtFlags::EMPTY_PATH, wanted).context("look at the target path")?;
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

//! A container's root file system: a tmpfs in which every top-level directory of the base (the host's `/`, or
//! a directory given with `--rootfs`) is bound read-only, with `/run`, `/home`, `/root` and `/tmp` of its
//! own.
//!
//! A tmpfs instead of a clone of `/` because a mount point for `mountPath: /spiffe-workload-api` cannot be
//! made in a read-only root. A mount point deeper inside a bound directory is made the same way: the
//! directory is covered with a tmpfs that holds a bind mount of each of its entries. (An overlay would do it
//! too, but not over directories with locked mounts below them, which is what an ordinary user finds inside a
//! container.)

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, readlinkat, statat,
    symlinkat,
};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
};
use seamount_sys::play::{NO_DEVICES, NO_SUID, READ_ONLY, add_attributes};

/// Why a root file system could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct RootError {
    what: String,
    source: io::Error,
}

type Result<T> = std::result::Result<T, RootError>;

/// Says what was being done when something failed.
trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| RootError { what: what(), source: source.into() })
    }
}

/// What a mount point must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// Anything else.
    File,
}

/// Directories of a host that a container gets empty instead: they hold sockets (connect(2) works through a
/// read-only mount), keys and other people's files.
const MASKED: &[(&str, &str)] = &[("home", "755"), ("root", "700")];
/// Directories that every container has for itself.
const SCRATCH: &[(&str, &str)] = &[("run", "755"), ("tmp", "1777")];
/// Mounted afresh for each container, or not at all.
const OWN: &[&str] = &["proc", "sys", "dev"];
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];

/// A root file system that is being put together.
pub struct Root {
    top: OwnedFd,
    path: PathBuf,
    /// The tmpfs mounts that a container's root user could write to.
    writable: Vec<OwnedFd>,
}

impl Root {
    /// Starts a root at the directory `at` from the directory `base`. `host` masks what a host keeps for
    /// itself.
    pub fn new(at: &Path, base: &Path, host: bool) -> Result<Self> {
        let top =
            filesystem("tmpfs", &[("mode", "755"), ("size", "256m")]).doing(|| "make a tmpfs".into())?;
        move_mount(&top, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .doing(|| format!("mount a tmpfs on {}", at.display()))?;
        let base_fd = openat(CWD, base, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .doing(|| format!("open {}", base.display()))?;
        let masked = if host { MASKED } else { &[] };
        let empty = || SCRATCH.iter().chain(masked).copied();
        let skip: Vec<&str> = empty().map(|(name, _)| name).chain(OWN.iter().copied()).collect();
        mirror(base_fd.as_fd(), top.as_fd(), &skip)?;
        let writable = vec![top.try_clone().doing(|| "keep the root's descriptor".into())?];
        let mut root = Self { top, path: at.to_owned(), writable };
        for (name, mode) in empty() {
            // Where /home is a link (to var/home, say), it is followed, so that the real place is masked as
            // well.
            root.tmpfs(name, mode)?;
        }
        Ok(root)
    }

    /// Mounts an empty tmpfs at `path`.
    fn tmpfs(&mut self, path: &str, mode: &str) -> Result<OwnedFd> {
        let fs = filesystem("tmpfs", &[("mode", mode)]).doing(|| "make a tmpfs".into())?;
        self.attach(&fs, path, Kind::Directory)?;
        self.writable.push(fs.try_clone().doing(|| "keep a tmpfs".into())?);
        Ok(fs)
    }

    fn attach(&mut self, mount: &OwnedFd, path: &str, kind: Kind) -> Result<()> {
        let point = self.place(path, kind)?;
        move_mount(
            mount,
            "",
            &point,
            "",
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
        )
        .doing(|| format!("mount on {path}"))
    }

    /// Makes sure that `path` exists and is of this kind, and opens it. Links are followed inside the new
    /// root.
    pub fn place(&mut self, path: &str, kind: Kind) -> Result<OwnedFd> {
        let mut at = self.top.try_clone().doing(|| "open the root".into())?;
        let mut so_far = String::new();
        let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
        for (i, part) in parts.iter().enumerate() {
            if *part == ".." {
                return Err(Errno::INVAL).doing(|| format!("find {path} (it has a component `..`)"));
            }
            so_far.push('/');
            so_far.push_str(part);
            let doing = || format!("make {so_far} in the container's root");
            at = match self.lookup(&so_far) {
                Ok(fd) => fd,
                Err(Errno::NOENT) => {
                    let wanted = if i + 1 == parts.len() { kind } else { Kind::Directory };
                    match create(at.as_fd(), part, wanted) {
                        Err(Errno::ROFS) => {
                            let shadow = self.shadow(at.as_fd()).map_err(|e| RootError {
                                what: format!("make {so_far} below a directory of the host, {}", e.what),
                                source: e.source,
                            })?;
                            create(shadow.as_fd(), part, wanted).doing(doing)?;
                        }
                        other => other.doing(doing)?,
                    }
                    self.lookup(&so_far).doing(doing)?
                }
                Err(other) => return Err(other).doing(|| format!("open {so_far} in the container's root")),
            };
        }
        let is_directory = statat(&at, "", AtFlags::EMPTY_PATH)
            .map(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory)
            .doing(|| format!("look at {path}"))?;
        match (kind, is_directory) {
            (Kind::Directory, false) => Err(Errno::NOTDIR),
            (Kind::File, true) => Err(Errno::ISDIR),
            _ => Ok(at),
        }
        .doing(|| format!("mount on {path}"))
    }

    fn lookup(&self, path: &str) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.top, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// Covers a read-only directory with a tmpfs that shows the same entries.
    fn shadow(&mut self, directory: BorrowedFd<'_>) -> Result<OwnedFd> {
        let old = openat(directory, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .doing(|| "read it".into())?;
        let mode = statat(&old, "", AtFlags::EMPTY_PATH).doing(|| "look at it".into())?.st_mode & 0o1777;
        let new = filesystem("tmpfs", &[("mode", &format!("{mode:o}"))]).doing(|| "make a tmpfs".into())?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&new, "", &old, "", flags).doing(|| "cover it".into())?;
        mirror(old.as_fd(), new.as_fd(), &[])?;
        self.writable.push(new.try_clone().doing(|| "keep a tmpfs".into())?);
        Ok(new)
    }

    /// Mounts `/proc` of the caller's PID namespace. `protect` covers what root may write there even without
    /// capabilities; in a user namespace the kernel refuses it by itself.
    pub fn proc(&mut self, protect: bool) -> Result<()> {
        let fs = filesystem("proc", &[]).doing(|| {
            "mount /proc (the kernel allows it only where the caller's own /proc has nothing mounted over parts of it, \
             which many container engines do: run on the machine itself)"
                .into()
        })?;
        self.attach(&fs, "/proc", Kind::Directory)?;
        if !protect {
            return Ok(());
        }
        for name in ["bus", "fs", "irq", "sys", "sysrq-trigger"] {
            if let Ok(clone) = clone_tree(fs.as_fd(), name) {
                add_attributes(&clone, READ_ONLY, true).doing(|| format!("make /proc/{name} read-only"))?;
                self.attach_to(&clone, &fs, name)?;
            }
        }
        for name in [
            "acpi",
            "asound",
            "kcore",
            "keys",
            "latency_stats",
            "timer_list",
            "timer_stats",
            "sched_debug",
            "scsi",
        ] {
            let Ok(stat) = statat(&fs, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            let cover = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                filesystem("tmpfs", &[("mode", "555")])
            } else {
                clone_tree(CWD, "/dev/null")
            };
            let cover = cover.doing(|| format!("cover /proc/{name}"))?;
            self.attach_to(&cover, &fs, name)?;
        }
        Ok(())
    }

    fn attach_to(&self, mount: &OwnedFd, directory: &OwnedFd, name: &str) -> Result<()> {
        move_mount(mount, "", directory, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .doing(|| format!("mount on {name}"))
    }

    /// Makes a small `/dev`: device nodes cannot be made in a user namespace, so the host's are bound.
    pub fn dev(&mut self) -> Result<()> {
        let dev = self.tmpfs("/dev", "755")?;
        for name in DEVICES {
            let device = clone_tree(CWD, format!("/dev/{name}")).doing(|| format!("bind /dev/{name}"))?;
            create(dev.as_fd(), name, Kind::File).doing(|| format!("make /dev/{name}"))?;
            self.attach_to(&device, &dev, name)?;
        }
        for (name, to) in [
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
            ("ptmx", "pts/ptmx"),
        ] {
            symlinkat(to, &dev, name).doing(|| format!("make /dev/{name}"))?;
        }
        let shm =
            filesystem("tmpfs", &[("mode", "1777"), ("size", "64m")]).doing(|| "make /dev/shm".into())?;
        self.attach(&shm, "/dev/shm", Kind::Directory)?;
        // Without terminals most programs still run.
        if let Ok(pts) = filesystem("devpts", &[("ptmxmode", "666"), ("mode", "620")]) {
            self.attach(&pts, "/dev/pts", Kind::Directory)?;
        }
        Ok(())
    }

    /// Mounts `source` at `path`.
    pub fn bind(&mut self, source: &Path, path: &str, read_only: bool) -> Result<()> {
        let tree = clone_tree(CWD, source).doing(|| format!("open {}", source.display()))?;
        self.bind_tree(&tree, path, read_only)
    }

    /// Mounts what lies at `sub_path` in the directory `volume` at `path`; a missing sub-path becomes a
    /// directory, if `make` says so. No link leads out of the volume.
    pub fn bind_below(
        &mut self,
        volume: &Path,
        sub_path: &str,
        make: bool,
        path: &str,
        read_only: bool,
    ) -> Result<()> {
        let doing = || format!("open {sub_path} in the volume");
        let inside = Self {
            top: openat(CWD, volume, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .doing(doing)?,
            path: PathBuf::new(),
            writable: Vec::new(),
        };
        let found = match inside.lookup(sub_path) {
            Err(Errno::NOENT) if make => {
                let mut at = inside.top.try_clone().doing(doing)?;
                let mut so_far = String::new();
                for part in sub_path.split('/').filter(|p| !p.is_empty()) {
                    so_far.push_str(part);
                    at = match inside.lookup(&so_far) {
                        Err(Errno::NOENT) => {
                            mkdirat(&at, part, Mode::from_raw_mode(0o777)).doing(doing)?;
                            inside.lookup(&so_far).doing(doing)?
                        }
                        other => other.doing(doing)?,
                    };
                    so_far.push('/');
                }
                at
            }
            other => other.doing(doing)?,
        };
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE
            | OpenTreeFlags::AT_EMPTY_PATH;
        let tree = open_tree(&found, "", flags).doing(doing)?;
        self.bind_tree(&tree, path, read_only)
    }

    fn bind_tree(&mut self, tree: &OwnedFd, path: &str, read_only: bool) -> Result<()> {
        let attributes = NO_SUID | NO_DEVICES | if read_only { READ_ONLY } else { 0 };
        add_attributes(tree, attributes, true).doing(|| format!("set the attributes of {path}"))?;
        let is_directory = statat(tree, "", AtFlags::EMPTY_PATH)
            .map(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory)
            .doing(|| format!("look at what goes to {path}"))?;
        self.attach(tree, path, if is_directory { Kind::Directory } else { Kind::File })
    }

    /// Writes a small file.
    pub fn write(&mut self, path: &str, content: &[u8]) -> Result<()> {
        let doing = || format!("write {path}");
        let file = self.place(path, Kind::File)?;
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file)))
            .doing(doing)?;
        io::Write::write_all(&mut &file, content).doing(doing)
    }

    /// Makes this the root of the calling process and lets go of the old one.
    pub fn enter(self, read_only: bool) -> Result<()> {
        if read_only {
            for mount in &self.writable {
                add_attributes(mount, READ_ONLY, false).doing(|| "make the root read-only".into())?;
            }
        }
        rustix::process::chdir(&self.path).doing(|| format!("enter {}", self.path.display()))?;
        rustix::process::pivot_root(".", ".").doing(|| "change the root".into())?;
        unmount(".", UnmountFlags::DETACH).doing(|| "let go of the old root".into())?;
        rustix::process::chdir("/").doing(|| "enter the new root".into())
    }
}

/// A new file system of this kind, mounted nowhere yet, without set-user-ID programs and devices.
pub fn filesystem(kind: &str, options: &[(&str, &str)]) -> rustix::io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    fsconfig_create(context.as_fd())?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID;
    if kind != "devpts" {
        attributes |= MountAttrFlags::MOUNT_ATTR_NODEV;
    }
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// A detached copy of what is mounted at `path` and below. Recursive because a copy without the mounts below
/// it would show what they hide, which the kernel refuses in a user namespace.
pub fn clone_tree(at: impl AsFd, path: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    open_tree(at, path, flags)
}

fn create(at: BorrowedFd<'_>, name: &str, kind: Kind) -> rustix::io::Result<()> {
    match kind {
        Kind::Directory => mkdirat(at, name, Mode::from_raw_mode(0o755)),
        Kind::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            openat(at, name, flags, Mode::from_raw_mode(0o644)).map(drop)
        }
    }
}

/// Shows each entry of `from` in `to`: links as links, everything else as a read-only bind mount. Directories
/// named in `skip` are left out.
fn mirror(from: BorrowedFd<'_>, to: BorrowedFd<'_>, skip: &[&str]) -> Result<()> {
    let entries = Dir::read_from(from).doing(|| "read a directory".into())?;
    for entry in entries {
        let entry = entry.doing(|| "read a directory".into())?;
        let name: &CStr = entry.file_name();
        let shown = || name.to_string_lossy().into_owned();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = match statat(from, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // Removed meanwhile, or a mount that its server does not let us look at.
            Err(Errno::NOENT | Errno::ACCESS | Errno::STALE | Errno::NOTCONN) => continue,
            other => other.doing(|| format!("look at {}", shown()))?,
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                let target =
                    readlinkat(from, name, Vec::new()).doing(|| format!("read the link {}", shown()))?;
                symlinkat(target, to, name).doing(|| format!("make the link {}", shown()))?;
                continue;
            }
            FileType::Directory if skip.iter().any(|s| s.as_bytes() == name.to_bytes()) => continue,
            FileType::Directory => {
                mkdirat(to, name, Mode::from_raw_mode(stat.st_mode & 0o1777))
                    .doing(|| format!("make {}", shown()))?;
            }
            _ => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                openat(to, name, flags, Mode::empty()).map(drop).doing(|| format!("make {}", shown()))?;
            }
        }
        let tree = match clone_tree(from, name) {
            Ok(tree) => tree,
            Err(Errno::NOENT) => continue,
            other => other.doing(|| format!("bind {}", shown()))?,
        };
        add_attributes(&tree, READ_ONLY | NO_SUID | NO_DEVICES, true)
            .doing(|| format!("make {} read-only", shown()))?;
        move_mount(&tree, "", to, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .doing(|| format!("mount {}", shown()))?;
    }
    Ok(())
}
